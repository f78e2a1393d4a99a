"""Tell true formulas from false ones, with networks that follow the tree of each formula.

A formula such as ``((1 and 0) implies (0 or 1))`` is a tree. Each has a twin of the same shape and
tokens in another order, whose value is the opposite: who only counts tokens has to guess. The
networks are told the value of whole formulas, never that of a part.

    python examples/tree_classification.py

Prints the accuracy on new formulas, and on larger ones than any in training, of logistic regression
on the counts of tokens, of an LSTM that reads the tokens one by one, operators before what they
join, and of the three networks on trees. A child-sum `TreeLSTM` adds children up, so it cannot know
which side of "implies" is which. The picture shows the accuracy by size. Needs scikit-learn, and
for the picture matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import fastrnn
import numpy as np
from fastrnn.losses import BinaryCrossEntropy
from fastrnn.optimizers import Adam, CosineDecay
from sklearn.linear_model import LogisticRegression

# Ids of tokens; 0 is padding. The arguments of the operators are 0 and 1.
FALSE, TRUE = 1, 2
OPERATORS = {3: lambda a, b: a & b, 4: lambda a, b: a | b, 5: lambda a, b: 1 - a | b}
TOKENS = 6
SIZE, BATCH, RATE = 32, 64, 0.01

Formula = Any  # FALSE, TRUE, or (operator, (formula, formula))


def value(formula: Formula) -> int:
    if isinstance(formula, int):
        return formula - FALSE
    operator, (left, right) = formula
    return OPERATORS[operator](value(left), value(right))


def build(values: list[int], operators: list[int], cuts: list[float]) -> Formula:
    """Return the formula of these tokens whose shape the cuts decide."""
    if len(values) == 1:
        return values[0]
    k = 1 + int(cuts[0] * len(operators))
    left = build(values[:k], operators[1:k], cuts[1:k])
    return (operators[0], (left, build(values[k:], operators[k:], cuts[k:])))


def twins(leaves: int, rng: np.random.Generator) -> list[Formula]:
    """Return a false and a true formula of the same shape and tokens."""
    while True:
        values = rng.integers(FALSE, TRUE + 1, leaves)
        operators = rng.choice([*OPERATORS], leaves - 1)
        cuts = rng.random(leaves - 1).tolist()
        found: dict[int, Formula] = {}
        for _ in range(20):  # no order helps ``1 and 1``
            order = rng.permutation(values).tolist(), rng.permutation(operators).tolist()
            formula = build(*order, cuts)
            found[value(formula)] = formula
            if len(found) == 2:
                return [found[0], found[1]]


def draw_formulas(sizes: np.ndarray, known: set[Formula], rng: np.random.Generator) -> Any:
    """Return a pair of formulas for each number of leaves, none known yet, and all values."""
    formulas: list[Formula] = []
    for leaves in sizes:
        while not known.isdisjoint(pair := twins(int(leaves), rng)):
            pass
        known.update(pair)
        formulas += pair
    return formulas, np.array([value(formula) for formula in formulas])


class TreeClassifier:
    """An embedding of tokens, a network over trees, and a logit for each.

    `fastrnn.Sequential` has no trees, so this trains by hand: forward, loss, backward, update.
    """

    def __init__(self, network: Any, seed: int) -> None:
        embedding = fastrnn.Embedding(TOKENS, SIZE, seed=seed)
        self.layers = (embedding, network, fastrnn.Dense(SIZE, 1, seed=seed + 1))
        self.parameters = joined([layer.parameters for layer in self.layers])

    def update(self, trees: fastrnn.Trees, target: np.ndarray, optimizer: Adam) -> float:
        embedding, network, head = self.layers
        x, _, embedding_tape = embedding.forward(np.array(trees.leaves))
        h, _, network_tape = network.forward(x, trees)
        logits, _, head_tape = head.forward(trees.roots(h))
        loss, gradient = BinaryCrossEntropy()(logits, target[:, np.newaxis])
        of_head = head.backward(head_tape, gradient)  # and the same way back
        of_network = network.backward(network_tape, trees.roots_backward(of_head.input))
        of_embedding = embedding.backward(embedding_tape, of_network.input)
        gradients = joined([g.parameters for g in (of_embedding, of_network, of_head)])
        optimizer.update(self.parameters, gradients)
        return loss

    def fit(self, formulas: list[Formula], values: np.ndarray, epochs: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        batches = []
        for rows in np.array_split(rng.permutation(len(formulas)), -(-len(formulas) // BATCH)):
            batches.append((fastrnn.Trees.from_nested([formulas[i] for i in rows]), values[rows]))
        optimizer = Adam(CosineDecay(RATE, epochs * len(batches)), global_clipnorm=1.0)
        for epoch in range(1, epochs + 1):
            order = rng.permutation(len(batches))
            loss = np.mean([self.update(*batches[i], optimizer) for i in order])
            print(f"epoch {epoch} of {epochs}: loss {loss:.4f}", file=sys.stderr)

    def predict(self, formulas: list[Formula]) -> np.ndarray:
        trees = fastrnn.Trees.from_nested(formulas)
        embedding, network, head = self.layers
        h, _, _ = network.forward(embedding(np.array(trees.leaves)), trees)
        return head(trees.roots(h))[:, 0] > 0


def joined(groups: list[Any]) -> dict[str, np.ndarray]:
    return {f"{i}.{key}": array for i, group in enumerate(groups) for key, array in group.items()}


def tokens(formula: Formula) -> np.ndarray:
    return np.array(fastrnn.Trees.from_nested([formula]).leaves)  # from left to right


def count_tokens(train: Any, test: list[Formula]) -> np.ndarray:
    """Return what logistic regression on counts predicts."""
    counts = [[np.bincount(tokens(f), minlength=TOKENS) for f in part] for part in (train[0], test)]
    return LogisticRegression().fit(counts[0], train[1]).predict(counts[1]) > 0


def read_tokens(train: Any, test: list[Formula], epochs: int, seed: int) -> np.ndarray:
    """Return what an LSTM that reads the tokens one by one predicts."""
    layers = [
        fastrnn.Embedding(TOKENS, SIZE, mask_zero=True, seed=seed),
        fastrnn.LSTM(SIZE, 2 * SIZE, seed=seed + 1),
        fastrnn.Last(),
        fastrnn.Dense(2 * SIZE, 1, seed=seed + 2),
    ]
    x = [tokens(formula) for formula in train[0]]
    optimizer = Adam(CosineDecay(RATE, epochs * -(-len(x) // BATCH)), global_clipnorm=1.0)
    model = fastrnn.Sequential(layers).compile(optimizer, "binary_cross_entropy")
    model.fit(x, train[1], epochs=epochs, batch_size=BATCH, seed=seed)
    return model.predict([tokens(formula) for formula in test])[:, 0] > 0


def draw(path: str, sizes: np.ndarray, right: dict[str, np.ndarray]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    counts = np.unique(sizes)
    for name, hits in right.items():
        ax.plot(counts, [hits[sizes == count].mean() for count in counts], ".-", label=name)
    ax.axvline(10.5, color="gray", linestyle=":")
    ax.set(xlabel="leaves of the formula; training has 10 at most", ylabel="accuracy")
    ax.legend()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Tell true formulas from false ones.")
    parser.add_argument("--picture", metavar="FILE", default="tree_classification.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer formulas and epochs")
    arguments = parser.parse_args(argv)
    seed = arguments.seed
    pairs, epochs = (500, 4) if arguments.quick else (2000, 12)

    rng, known = np.random.default_rng(seed), set[Formula]()
    train = draw_formulas(rng.integers(3, 11, pairs), known, rng)
    sizes = np.repeat(np.arange(3, 21), 50)
    test, values = draw_formulas(sizes, known, rng)
    sizes = sizes.repeat(2)

    predictions = {"counts of tokens": count_tokens(train, test)}
    predictions["LSTM over tokens"] = read_tokens(train, test, epochs, seed)
    for name, network in {
        "RecursiveNetwork": fastrnn.RecursiveNetwork(SIZE, seed=seed),
        "TreeLSTM child_sum": fastrnn.TreeLSTM(SIZE, SIZE, "child_sum", seed=seed),
        "TreeLSTM binary": fastrnn.TreeLSTM(SIZE, SIZE, "binary", seed=seed),
    }.items():
        print(name, file=sys.stderr)
        model = TreeClassifier(network, seed)
        model.fit(*train, epochs, seed)
        predictions[name] = model.predict(test)

    print(f"{'accuracy, leaves:':20} {'3 to 10':>8} {'11 to 20':>8}")
    right = {name: prediction == values for name, prediction in predictions.items()}
    results = {}
    for name, hits in right.items():
        results[name] = {"new": hits[sizes <= 10].mean(), "larger": hits[sizes > 10].mean()}
        print(f"{name:20} {results[name]['new']:8.3f} {results[name]['larger']:8.3f}")
    draw(arguments.picture, sizes, right)
    return results


if __name__ == "__main__":
    main()
