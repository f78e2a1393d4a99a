"""Read handwritten digits with a radial-basis-function network, and see why its width matters.

The 1797 digits of scikit-learn are images of 8 by 8 pixels, points in 64 dimensions. A network
compares each with some hundred typical images, the centres of its units, and a ridge regression
on the activations names the digit. The textbook's width, the largest distance of two centres over
sqrt(2M), shrinks with more units M until no unit answers to anything but its own centre.

    python examples/digits_rbfn.py

Prints test accuracies, means over several divisions of the data, beside those of logistic
regression and a support vector machine, and draws them with some centres that were fine-tuned.
Needs scikit-learn, and for the picture matplotlib.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
from fastrnn import RBFNClassifier
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

RULES = {"mean": "mean distance", "nearest": "2 x nearest", "dmax": "textbook"}


def divisions(seeds: range) -> list[tuple[list[np.ndarray], int]]:
    """Return rows to train and to test with, and the classes of both, for each seed."""
    pixels, labels = load_digits(return_X_y=True)
    return [
        (train_test_split(pixels, labels, stratify=labels, random_state=seed), seed)
        for seed in seeds
    ]


def accuracy(make: Any, data: list[tuple[list[np.ndarray], int]]) -> float:
    """Return the mean test accuracy of what `make` makes for each seed."""
    scores = []
    for (X, X_test, y, y_test), seed in data:
        scores.append(make(seed).fit(X, y).score(X_test, y_test))
    return float(np.mean(scores))


def compare_widths(counts: list[int], data: Any) -> dict[str, list[float]]:
    """Return the accuracies of each rule for several numbers of units."""
    found: dict[str, list[float]] = {}
    with warnings.catch_warnings():
        # The textbook's rule warns here that nearly all activations are zero: the point of it.
        warnings.filterwarnings("ignore", message="width", category=RuntimeWarning)
        for rule in RULES:
            found[rule] = [
                accuracy(
                    lambda seed, M=M, r=rule: RBFNClassifier(M, width=r, random_state=seed), data
                )
                for M in counts
            ]
    return found


def draw(path: str, counts: list[int], found: dict[str, list[float]], svc: float, net: Any) -> None:
    """Draw accuracies over the number of units, and centres."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    ax = left.subplots()
    for rule, accuracies in found.items():
        ax.plot(counts, accuracies, "o-", label=f"width: {RULES[rule]}")
    ax.axhline(svc, color="0.6", linestyle="--", label="support vector machine")
    ax.set(xscale="log", xlabel="units", ylabel="test accuracy", ylim=(0, 1.02))
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.minorticks_off()
    ax.legend()
    right.suptitle("fine-tuned centres")
    for center, ax in zip(net.centers_, right.subplots(4, 5).flat, strict=False):
        ax.imshow(center.reshape(8, 8), cmap="gray_r")
        ax.axis("off")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Read digits with an RBF network.")
    parser.add_argument("--picture", metavar="FILE", default="digits_rbfn.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer divisions and networks")
    arguments = parser.parse_args(argv)
    counts = [50, 400] if arguments.quick else [25, 50, 100, 200, 400]
    data = divisions(range(arguments.seed, arguments.seed + (1 if arguments.quick else 5)))

    found = compare_widths(counts, data)
    print(f"{'units':32}" + "".join(f"{count:8}" for count in counts))
    for rule, accuracies in found.items():
        print(f"{'width: ' + RULES[rule]:32}" + "".join(f"{value:8.3f}" for value in accuracies))

    few: dict[str, Any] = {"n_centers": 30, "output": "softmax", "alpha": 0.1}
    start = time.perf_counter()
    results = {
        "30 units, softmax": accuracy(lambda s: RBFNClassifier(random_state=s, **few), data),
        "30 units, fine-tuned": accuracy(
            lambda s: RBFNClassifier(fine_tune=40, random_state=s, **few), data
        ),
    }
    seconds = time.perf_counter() - start
    results["logistic regression"] = accuracy(lambda s: LogisticRegression(max_iter=5000), data)
    results["support vector machine"] = accuracy(lambda s: SVC(), data)
    print()
    for name, value in results.items():
        print(f"{name:32}{value:8.3f}")
    print(f"(the small networks took {seconds:.1f} s for {len(data)} division(s))")

    (X, _, y, _), seed = data[0]
    network = RBFNClassifier(fine_tune=40, random_state=seed, **few).fit(X, y)
    draw(arguments.picture, counts, found, results["support vector machine"], network)
    return {"counts": counts, **found, **results}


if __name__ == "__main__":
    main()
