"""Find digits of a kind that was never seen.

An autoencoder learns nine of the ten digits. Its code has few numbers, so it can only write what it
has learnt, and what it makes of the tenth differs from that more than what it makes of
others: `score_samples` is lower. Unseen images of all digits are ranked by that score. The area
under the ROC curve (AUC) is the probability that a novel one has a lower score than a known one.

The size of the code matters: with 32 numbers a network writes digits it does not know, too. That is
also why principal components of the same number are the worse detector. (Eight numbers were
chosen by these AUCs; from 4 to 16 their mean is above 0.95.)

`predict` calls an image novel whose score is below those of all but one in 100 training images. A
network knows these better than others, so more than one in 100 known digits are false alarms.

    python examples/novel_digits.py

Prints the AUC for each digit left out, and draws them, with the scores of one digit and what
the network makes of it. Needs scikit-learn, and for the pictures matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

K = 8


def errors_of_components(X: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the squared error of each image after K principal components."""
    linear = PCA(K).fit(X)
    made = linear.inverse_transform(linear.transform(new))
    return np.asarray(((made - new) ** 2).mean(axis=1))


def draw(path: Path, aucs: dict[str, list[float]], digits: list[int]) -> None:
    """Draw the AUCs as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(digits))
    for i, (name, values) in enumerate(aucs.items()):
        label = f"{name}, mean {np.mean(values):.3f}"
        bars = ax.bar(places + 0.4 * i - 0.2, values, 0.38, label=label)
        ax.bar_label(bars, fmt="%.2f", fontsize="x-small")
    ax.set_xticks(places, [str(digit) for digit in digits])
    ax.set(xlabel="digit that is novel", ylabel="AUC", ylim=(0.4, 1.15))
    ax.legend(loc="upper center", ncols=2)
    figure.savefig(path, dpi=120)


def draw_scores(path: Path, digit: int, network: Any, X: np.ndarray, novel: np.ndarray) -> None:
    """Draw the scores of images, and images above what the network makes of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.3))
    left, right = parts
    ax = left.subplots()
    scores = network.score_samples(X)
    bins = np.linspace(scores.min(), 0, 40)
    for name, rows in (("known digits", ~novel), (f"novel digit {digit}", novel)):
        ax.hist(scores[rows], bins, density=True, alpha=0.6, label=name)
    ax.axvline(network.offset_, color="k", linestyle="--", linewidth=1, label="limit of predict")
    ax.set(xlabel="score", yticks=[])
    ax.legend()
    grid = right.subplots(4, 8)
    for half, (name, rows) in enumerate((("novel", novel), ("known", ~novel))):
        images = X[rows][:8]
        for row, values in enumerate((images, network.reconstruct(images))):
            axes = grid[2 * half + row]
            axes[0].set_ylabel((name, "output")[row], rotation=0, ha="right", va="center")
            for ax, image in zip(axes, values, strict=True):
                ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--digit", type=int, default=4, choices=range(10), help="the one drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="networks are trained briefly")
    arguments = parser.parse_args(argv)
    pixels, labels = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        pixels / 16, labels, test_size=0.25, stratify=labels, random_state=arguments.seed
    )
    epochs = 50 if arguments.quick else 100

    aucs: dict[str, list[float]] = {"autoencoder": [], "components": []}
    found: dict[str, list[float]] = {"found": [], "false alarms": []}
    digits = list(range(10))
    print(
        f"{'novel digit':>12}{'autoencoder':>14}{'components':>13}{'found':>10}{'false alarms':>15}"
    )
    for digit in digits:
        known = X[y != digit]
        network = fastrnn.Autoencoder(
            K, epochs=epochs, contamination=0.01, random_state=arguments.seed
        ).fit(known)
        novel = y_test == digit
        aucs["autoencoder"].append(roc_auc_score(novel, -network.score_samples(X_test)))
        aucs["components"].append(roc_auc_score(novel, errors_of_components(known, X_test)))
        outlying = network.predict(X_test) == -1
        found["found"].append(float(outlying[novel].mean()))
        found["false alarms"].append(float(outlying[~novel].mean()))
        print(f"{digit:12}{aucs['autoencoder'][-1]:14.3f}{aucs['components'][-1]:13.3f}", end="")
        print(f"{found['found'][-1]:10.2f}{found['false alarms'][-1]:15.2f}")
        if digit == arguments.digit:
            drawn = network
    ours, theirs, hits, alarms = (float(np.mean(v)) for v in (aucs | found).values())
    print(f"{'mean':>12}{ours:14.3f}{theirs:13.3f}{hits:10.2f}{alarms:15.2f}")

    arguments.pictures.mkdir(parents=True, exist_ok=True)
    draw(arguments.pictures / "novel_digits.png", aucs, digits)
    draw_scores(
        arguments.pictures / "novel_digits_scores.png",
        arguments.digit,
        drawn,
        X_test,
        y_test == arguments.digit,
    )
    print(f"pictures: {arguments.pictures}/novel_digits.png, novel_digits_scores.png")
    return {name: [float(v) for v in values] for name, values in (aucs | found).items()}


if __name__ == "__main__":
    main()
