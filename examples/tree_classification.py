"""Tell true formulas from false ones, with networks that follow the tree of each formula.

A formula such as ``((1 and 0) implies (0 or 1))`` is a tree. Each has a twin of the same shape and
tokens in another order, whose value is the opposite: who only counts tokens has to guess.

    python examples/tree_classification.py

Prints the accuracy on new formulas, and on larger ones than any in training, of logistic regression
on the counts of tokens, of an LSTM that reads them one by one, and of three networks on trees. A
child-sum `TreeLSTM` adds children up, so it cannot know which side of "implies" is which. The
picture shows the accuracy by size. Needs scikit-learn, and for the picture matplotlib.
"""

import argparse
import sys
from typing import Any

import fastrnn
import numpy as np
from fastrnn.losses import BinaryCrossEntropy
from fastrnn.optimizers import Adam
from sklearn.linear_model import LogisticRegression

FALSE, TRUE, AND, OR, IMPLIES = range(1, 6)  # ids of tokens; 0 is padding
TOKENS, SIZE, BATCH = 6, 32, 64

Formula = Any  # FALSE, TRUE, or (operator, (formula, formula))


def value(formula: Formula) -> bool:
    if isinstance(formula, int):
        return formula == TRUE
    operator, (left, right) = formula
    a, b = value(left), value(right)
    return (a and b) if operator == AND else (a or b) if operator == OR else (not a or b)


def build(leaves: list[int], operators: list[int], cuts: list[float]) -> Formula:
    """Return the formula of these tokens, whose shape the cuts decide."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1 + int(cuts[0] * len(operators))
    left = build(leaves[:k], operators[1:k], cuts[1:k])
    return (operators[0], (left, build(leaves[k:], operators[k:], cuts[k:])))


def add_twins(known: dict[Formula, bool], size: int, rng: np.random.Generator) -> None:
    """Add a false and a true formula of the same shape and tokens, unless one is known."""
    found: dict[bool, Formula] = {}
    while len(found) < 2:  # not every set of tokens has twins
        leaves, operators = rng.integers(FALSE, TRUE + 1, size), rng.integers(AND, 6, size - 1)
        cuts, found = rng.random(size - 1).tolist(), {}
        for _ in range(10):
            order = rng.permutation(leaves).tolist(), rng.permutation(operators).tolist()
            formula = build(*order, cuts)
            found[value(formula)] = formula
    if known.keys().isdisjoint(found.values()):
        known |= {formula: truth for truth, formula in found.items()}


def read_tokens(ids: Any, values: np.ndarray, count: int, epochs: int, seed: int) -> np.ndarray:
    """Train on the first `count` formulas as sequences, and return predictions for the others."""
    embedding = fastrnn.Embedding(TOKENS, SIZE, seed=seed)
    layers = [embedding, fastrnn.LSTM(SIZE, 2 * SIZE, seed=seed), fastrnn.Last()]
    model = fastrnn.Sequential([*layers, fastrnn.Dense(2 * SIZE, 1, seed=seed)])
    model.compile(Adam(0.005, global_clipnorm=1.0), "binary_cross_entropy")
    model.fit(ids[:count], values[:count], epochs=epochs, batch_size=BATCH, seed=seed)
    return model.predict(ids[count:])[:, 0] > 0


def read_trees(network: Any, formulas: Any, values: Any, count: int, epochs: int, seed: int) -> Any:
    """Do the same by hand, as `fastrnn.Sequential` has no trees."""
    embedding = fastrnn.Embedding(TOKENS, SIZE, seed=seed)
    head = fastrnn.Dense(SIZE, 1, seed=seed)
    parameters = joined([layer.parameters for layer in (embedding, network, head)])  # live arrays
    optimizer, rng = Adam(0.005, global_clipnorm=1.0), np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        for rows in np.array_split(rng.permutation(count), count // BATCH):
            trees = fastrnn.Trees.from_nested([formulas[i] for i in rows])
            x, _, embedding_tape = embedding.forward(np.array(trees.leaves))
            h, _, network_tape = network.forward(x, trees)
            logits, _, head_tape = head.forward(trees.roots(h))
            loss, gradient = BinaryCrossEntropy()(logits, values[rows, np.newaxis])
            of_head = head.backward(head_tape, gradient)
            of_network = network.backward(network_tape, trees.roots_backward(of_head.input))
            of_embedding = embedding.backward(embedding_tape, of_network.input)
            gradients = joined([g.parameters for g in (of_embedding, of_network, of_head)])
            optimizer.update(parameters, gradients)
        print(f"{network}, epoch {epoch}: loss {loss:.4f}", file=sys.stderr)
    trees = fastrnn.Trees.from_nested(formulas[count:])
    h, _, _ = network.forward(embedding(np.array(trees.leaves)), trees)
    return head(trees.roots(h))[:, 0] > 0


def joined(groups: list[Any]) -> dict[str, np.ndarray]:
    return {f"{i}.{key}": array for i, group in enumerate(groups) for key, array in group.items()}


def draw(path: str, sizes: np.ndarray, right: dict[str, np.ndarray]) -> None:
    from matplotlib.figure import Figure

    ax = Figure(figsize=(8, 4), layout="constrained").subplots()
    for i, (name, hits) in enumerate(right.items()):
        means = [hits[sizes == size].mean() for size in np.unique(sizes)]
        ax.plot(np.unique(sizes), means, ".-", linewidth=5 - i, label=name)
    ax.axvline(10.5, color="gray", linestyle=":")
    ax.set(xlabel="leaves (in training up to 10)", ylabel="accuracy", ylim=(0.2, 1.03))
    ax.legend(loc="lower right")
    ax.figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Tell true formulas from false ones.")
    parser.add_argument("--picture", metavar="FILE", default="tree_classification.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer formulas")
    arguments = parser.parse_args(argv)
    seed, pairs, epochs = arguments.seed, 500 if arguments.quick else 2000, 8
    rng = np.random.default_rng(seed)
    known: dict[Formula, bool] = {}
    for size in rng.integers(5, 11, pairs):
        add_twins(known, int(size), rng)
    count = len(known)  # those that come later are to test with
    for size in np.repeat(np.arange(5, 21), 60):
        add_twins(known, int(size), rng)
    formulas, values = list(known), np.array(list(known.values()))
    ids = [np.array(fastrnn.Trees.from_nested([formula]).leaves) for formula in formulas]
    counts = [np.bincount(row, minlength=TOKENS) for row in ids]
    logistic = LogisticRegression().fit(counts[:count], values[:count])
    predictions = {"counts of tokens": logistic.predict(counts[count:])}
    predictions["LSTM over tokens"] = read_tokens(ids, values, count, epochs, seed)
    networks: dict[str, Any] = {"RecursiveNetwork": fastrnn.RecursiveNetwork(SIZE, seed=seed)}
    for kind in ("child_sum", "binary"):
        networks[f"TreeLSTM {kind}"] = fastrnn.TreeLSTM(SIZE, SIZE, kind, seed=seed)
    for name, network in networks.items():
        predictions[name] = read_trees(network, formulas, values, count, epochs, seed)

    sizes = np.array([(len(row) + 1) // 2 for row in ids[count:]])
    right = {name: prediction == values[count:] for name, prediction in predictions.items()}
    results = {}
    print(f"\n{'accuracy, leaves:':20} {'5 to 10':>8} {'11 to 20':>8}")
    for name, hits in right.items():
        results[name] = (float(hits[sizes <= 10].mean()), float(hits[sizes > 10].mean()))
        print("{:20} {:8.3f} {:8.3f}".format(name, *results[name]))
    draw(arguments.picture, sizes, right)
    return results


if __name__ == "__main__":
    main()
