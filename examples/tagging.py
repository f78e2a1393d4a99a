"""Color Python code without knowing its grammar: an output for every character.

A bidirectional LSTM reads pieces of modules of the standard library, some lines each and of
different lengths, and says of every character which kind of token it belongs to: keyword, name,
number, string, comment, operator or space. Python's own ``tokenize`` gives the answers to learn
from. The baseline takes the most frequent kind of each character. What makes the task hard is that
the pieces begin anywhere: whether their first lines stand in a docstring only the rest can tell.

    python examples/tagging.py

Prints how many characters of other modules both get right, by kind, and draws a piece of code in
the colors that the network gives it. Needs matplotlib for the picture.
"""

import argparse
import io
import keyword
import sysconfig
import tokenize
from collections.abc import Sequence
from pathlib import Path

import fastrnn
import numpy as np

KINDS = ("keyword", "name", "number", "string", "comment", "operator", "space")
COLORS = ("tab:purple", "black", "tab:orange", "tab:green", "tab:gray", "tab:blue", "black")
OF_TOKENS = {"NAME": 1, "NUMBER": 2, "STRING": 3, "COMMENT": 4, "OP": 5}
BATCH = 16
TRAIN = (  # modules
    "calendar contextlib csv argparse codecs dataclasses difflib fractions functools glob hashlib"
    " inspect pprint queue random selectors smtplib statistics string timeit"
)
TEST = "bisect copy configparser colorsys heapq mailbox shelve shlex socket textwrap"


def read_module(name: str) -> tuple[str, np.ndarray]:
    """Return the source of a module, and the kind of each of its characters."""
    source = Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text(encoding="utf-8")
    starts = np.cumsum([0, *map(len, io.StringIO(source)), 0])  # of each line in the source
    kinds = np.full(len(source), KINDS.index("space"))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        label = tokenize.tok_name[token.type]
        kind = OF_TOKENS.get("STRING" if "STRING_" in label else label)  # parts of f-strings, too
        if label == "NAME" and keyword.iskeyword(token.string):
            kind = KINDS.index("keyword")
        if kind is not None:
            (row, column), (last_row, last_column) = token.start, token.end
            kinds[starts[row - 1] + column : starts[last_row - 1] + last_column] = kind
    return source, kinds


def cut(modules: list[str], seed: int) -> tuple[list[str], list[np.ndarray]]:
    """Cut modules into pieces of 1 to 12 lines: texts, and kinds of their characters."""
    generator = np.random.default_rng(seed)
    texts, kinds = [], []
    for module in modules:
        source, labels = read_module(module)
        ends = np.cumsum([len(line) for line in io.StringIO(source)])
        last = np.cumsum(generator.integers(1, 13, size=len(ends))) - 1  # lines that end a piece
        ends = [*ends[last[last < len(ends) - 1]], len(source)]
        for start, end in zip([0, *ends], ends, strict=False):
            texts.append(source[start:end])
            kinds.append(labels[start:end])
    return texts, kinds


def draw(path: str, text: str, kinds: np.ndarray, predictions: np.ndarray) -> None:
    """Draw a text in the colors of its predicted kinds, with a red bar under mistakes."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    lines = list(io.StringIO(text))
    width = max(map(len, lines))
    figure = Figure(figsize=(0.085 * width + 1.6, 0.2 * len(lines) + 0.4))
    ax = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    ax.set(xlim=(0, width + 14), ylim=(len(lines), -1))
    ax.axis("off")
    i = 0
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            if character.strip():
                color = COLORS[predictions[i]]
                ax.text(column, row, character, color=color, family="monospace", fontsize=9)
            if predictions[i] != kinds[i]:
                ax.plot([column, column + 0.9], [row + 0.3, row + 0.3], color="red", linewidth=2)
            i += 1
    handles = [Line2D([], [], color=color, linewidth=6) for color in (*COLORS[:-1], "red")]
    ax.legend(handles, [*KINDS[:-1], "mistake"], loc="upper right", fontsize=9)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="tagging.png", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer modules and a smaller network")
    arguments = parser.parse_args(argv)
    part, size, epochs = (slice(3), 32, 4) if arguments.quick else (slice(None), 64, 6)
    train, test, seed = TRAIN.split()[part], TEST.split()[part], arguments.seed

    texts, kinds = cut(train, seed)
    test_texts, test_kinds = cut(test, seed)
    vocabulary = fastrnn.Vocabulary(texts, min_count=5)
    x, test_x = ([vocabulary.encode(text) for text in some] for some in (texts, test_texts))
    print(f"{len(x)} pieces of {sum(map(len, x))} characters of {len(train)} modules")

    model = fastrnn.Sequential(
        [
            fastrnn.Embedding(len(vocabulary), 16, seed=[seed, 0]),
            fastrnn.LSTM(16, size, bidirectional=True, seed=[seed, 1]),
            fastrnn.Dense(2 * size, len(KINDS), seed=[seed, 2]),
        ]
    )
    schedule = fastrnn.optimizers.CosineDecay(1e-2, epochs * -(-len(x) // BATCH))
    optimizer = fastrnn.optimizers.Adam(schedule, global_clipnorm=1.0)
    model.compile(optimizer, "cross_entropy", ["accuracy"])
    model.fit(x, kinds, epochs=epochs, batch_size=BATCH, seed=seed)
    predictions = [scores.argmax(axis=1) for scores in model.predict(test_x)]

    # How often each character has each kind, for the baseline.
    counts = np.zeros((len(vocabulary), len(KINDS)))
    np.add.at(counts, (np.concatenate(x), np.concatenate(kinds)), 1)
    truth = np.concatenate(test_kinds)
    right = np.concatenate(predictions) == truth
    baseline = counts.argmax(axis=1)[np.concatenate(test_x)] == truth
    print(f"\ncharacters of {len(test)} other modules that are right")
    print(f"{'kind':10} {'share':>8} {'baseline':>9} {'network':>8}")
    for i, kind in enumerate(KINDS):
        of = truth == i
        print(f"{kind:10} {of.mean():8.1%} {baseline[of].mean():9.1%} {right[of].mean():8.1%}")
    print(f"{'all':10} {1:8.1%} {baseline.mean():9.1%} {right.mean():8.1%}")

    # The piece to draw has as many kinds as one can have, and is long.
    best = max(range(len(test_x)), key=lambda i: (len(set(test_kinds[i])), len(test_x[i])))
    draw(arguments.picture, test_texts[best], test_kinds[best], predictions[best])
    print(f"picture: {arguments.picture}")
    return {"network": float(right.mean()), "baseline": float(baseline.mean())}


if __name__ == "__main__":
    main()
