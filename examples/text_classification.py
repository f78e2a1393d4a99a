"""Tell which library a sentence was written for: scipy, scikit-learn or Python itself.

The sentences are those of the docstrings that are installed here, without the names of the three.
Whole source files are for training, validation or test, so that no function has sentences in two of
them, and a sentence that occurs twice counts once. A bidirectional GRU reads word by word, and is
compared with a logistic regression that sees which words there are and not their order. Prints the
accuracy of both, and the sentences that the network is most wrong about.

    python examples/text_classification.py

Needs scikit-learn, and matplotlib for the picture: ``pip install scikit-learn matplotlib``.
"""

import argparse
import ast
import importlib.util
import re
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

CLASSES = ("scipy", "sklearn", "Python")
NAMES = {"scipy", "sklearn", "scikit", "python"}  # would give the answer away
SIZES = {"training": 3500, "validation": 600, "test": 800}  # sentences of each class
QUICK_SIZES = {"training": 400, "validation": 60, "test": 100}


def source_files(name: str) -> list[Path]:
    """Return the source files of a library, without those that came from elsewhere or test it."""
    if name == "Python":
        root, patterns = Path(sysconfig.get_path("stdlib")), ("*.py", "[a-z]*/*.py")
    else:
        root, patterns = Path(importlib.util.find_spec(name).origin).parent, ("**/*.py",)
    others = {"test", "tests", "externals", "_lib", "idlelib", "lib2to3", "site-packages"}
    files = [file for pattern in patterns for file in root.glob(pattern)]
    return sorted(file for file in files if not others & set(file.relative_to(root).parts))


def sentences(file: Path) -> list[str]:
    """Return the sentences in the docstrings of public functions and classes, as words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some files are older than today's rules
        tree = ast.parse(file.read_bytes())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                if not re.search(r">>>|---|^\s*(\.\.|[:*-])", paragraph):  # code, tables, lists
                    found += re.findall(r"[A-Z][^.>]*\.(?=\s|$)", paragraph)
    words = [re.findall(r"[a-z]+", sentence.lower()) for sentence in found]
    return [" ".join(line) for line in words if 6 <= len(line) <= 40 and not NAMES & set(line)]


def load(sizes: dict[str, int], seed: int) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return sentences and labels of each part, which has so many of each class."""
    rng = np.random.default_rng(seed)
    seen: set[str] = set()
    parts: dict[str, list[str]] = {name: [] for name in sizes}
    for library in CLASSES:
        files = iter(rng.permutation(source_files(library)))
        for name, size in sizes.items():
            chosen: list[str] = []
            while len(chosen) < size:
                new = [line for line in dict.fromkeys(sentences(next(files))) if line not in seen]
                seen.update(new)
                chosen += new
            parts[name] += chosen[:size]
    return {name: (lines, np.repeat(range(3), sizes[name])) for name, lines in parts.items()}


def bag_of_words(data: dict[str, tuple[list[str], np.ndarray]]) -> Any:
    """Return the logistic regression on words that is best on the validation sentences."""
    classifiers = [LogisticRegression(C=C, max_iter=1000) for C in (0.3, 1, 3, 10)]
    models = [make_pipeline(TfidfVectorizer(), classifier) for classifier in classifiers]
    return max(models, key=lambda m: m.fit(*data["training"]).score(*data["validation"]))


def build(words: int, pooling: str, seed: int) -> fastrnn.Sequential:
    """Words -> vectors -> GRU in both directions -> one vector -> a logit for each class."""
    table = fastrnn.Embedding(words, 64, mask_zero=True, seed=seed)
    gru = fastrnn.GRU(64, 64, bidirectional=True, seed=seed + 1)
    asks = pooling == "attention"
    pool = fastrnn.Attention(128, score="additive", seed=seed) if asks else fastrnn.Pool(pooling)
    out = fastrnn.Dense(128, len(CLASSES), seed=seed + 2)
    first, second = (fastrnn.Dropout(0.4, seed=seed + k) for k in (3, 4))
    return fastrnn.Sequential([table, first, gru, pool, second, out])


def draw(counts: np.ndarray, path: str) -> None:
    """Draw how many sentences of each class were taken for which."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(4.5, 4), layout="constrained").subplots()
    axes.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if count > counts.max() / 2 else "black"
        axes.text(column, row, count, ha="center", va="center", color=color)
    axes.set(xticks=range(3), xticklabels=CLASSES, xlabel="prediction of the GRU")
    axes.set(yticks=range(3), yticklabels=CLASSES, ylabel="source of the sentence")
    axes.figure.savefig(path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="text_classification.png")
    parser.add_argument("--pooling", default="max", choices=("max", "mean", "attention"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run of some seconds")
    options = parser.parse_args(argv)
    data = load(QUICK_SIZES if options.quick else SIZES, options.seed)
    (lines, y), (test_lines, test_y) = data["training"], data["test"]

    vocabulary = fastrnn.Vocabulary([line.split() for line in lines], min_count=2)
    x, valid_x, test_x = ([vocabulary.encode(s.split()) for s in part] for part, _ in data.values())
    model = build(len(vocabulary), options.pooling, options.seed)
    model.compile(fastrnn.optimizers.Adam(3e-3, global_clipnorm=1.0), "cross_entropy", ["accuracy"])
    stop = fastrnn.callbacks.EarlyStopping("val_accuracy", patience=3)  # keeps the best weights
    fitting = {"epochs": 12, "batch_size": 64, "callbacks": [stop], "seed": options.seed}
    model.fit(x, y, validation_data=(valid_x, data["validation"][1]), **fitting)
    logits = model.predict(test_x)
    predicted = logits.argmax(axis=1)
    scores = {
        "one class for all": 1 / len(CLASSES),
        "bag of words": bag_of_words(data).score(test_lines, test_y),
        "GRU": float(np.mean(predicted == test_y)),
    }
    print(f"{len(lines)} sentences and {len(vocabulary)} words learnt; of {len(test_y)} others:")
    for name, score in scores.items():
        print(f"{name:18} {100 * score:5.1f} % right")
    print("(With other files, see --seed, both change by several percent.)\n\nMost wrong about:")
    lead = logits.max(axis=1) - logits[np.arange(len(test_y)), test_y]
    for i in np.argsort(-lead)[:3]:
        print(f"{CLASSES[test_y[i]]}, not {CLASSES[predicted[i]]}: {test_lines[i]}")
    counts = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(counts, (test_y, predicted), 1)
    draw(counts, options.picture)
    return {"accuracy": scores, "confusion": counts}


if __name__ == "__main__":
    main()
