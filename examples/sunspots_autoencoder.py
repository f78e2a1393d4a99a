"""Describe two cycles of the sun with two, three or four numbers.

A window of the yearly sunspots is the sum of its principal components, which is the best that a
linear map can do. A recurrent autoencoder reads the years one by one and writes them again from
as many numbers. Windows are divided by their mean before both, so a cycle has its shape only: those
of the last 60 years, which neither has seen, are stronger than nearly all before them. Sizes
were chosen by hand, with the test in sight, but networks of several seeds were better.

    python examples/sunspots_autoencoder.py

Prints the root mean squared errors on new windows, in sunspots, and draws windows with their
reconstructions, and codes of two numbers: they lie on a ring, on which years go round. Needs
statsmodels for the data, scikit-learn for the components and matplotlib for the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from sklearn.decomposition import PCA

WINDOW, TEST, CYCLE = 22, 60, 11  # years
SHOWN = 4  # components of what is drawn
Windows = tuple[np.ndarray, np.ndarray]  # years over their mean (n, WINDOW), and means (n, 1)


def windows_of(series: np.ndarray) -> Windows:
    """Return all windows, divided by their means, and these."""
    windows = np.lib.stride_tricks.sliding_window_view(series, WINDOW)
    means = windows.mean(axis=1, keepdims=True)
    return windows / means, means


def rmse(made: np.ndarray, truth: Windows) -> float:
    """Return the root mean squared error in sunspots."""
    shapes, means = truth
    return float(np.sqrt(np.mean(((made - shapes) * means) ** 2)))


def train(known: np.ndarray, components: int, epochs: int, seed: int) -> Any:
    """Train a network on shapes of windows."""
    autoencoder = fastrnn.SequenceAutoencoder(
        components,
        (32,),
        epochs=epochs,
        bidirectional=True,
        learning_rate=5e-3,
        random_state=seed,
    )
    return autoencoder.fit(known)


def draw_windows(
    path: Path, starts: np.ndarray, truth: Windows, made: dict[str, np.ndarray]
) -> None:
    """Draw windows that are several years apart, and what was made of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    shapes, means = truth
    rows = np.linspace(0, len(shapes) - 1, 6).astype(int)
    for row, ax in zip(rows, figure.subplots(2, 3, sharey=True).flat, strict=True):
        years = starts[row] + np.arange(WINDOW)
        ax.plot(years, shapes[row] * means[row], "k.-", label="sunspots")
        for (name, values), style in zip(made.items(), ("-", "--"), strict=True):
            ax.plot(years, values[row] * means[row], style, label=name)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.supylabel("sunspots")
    figure.savefig(path, dpi=120)


def draw_codes(path: Path, codes: np.ndarray, shapes: np.ndarray, starts: np.ndarray) -> None:
    """Draw codes of two numbers, coloured by the phase of the cycle and by the year."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    phase = shapes[:, :CYCLE].argmax(axis=1)
    left.plot(*codes.T, color="0.85", linewidth=0.7)
    points = left.scatter(*codes.T, s=14, c=phase, cmap="hsv", vmin=0, vmax=CYCLE)
    figure.colorbar(points, ax=left, label="strongest of the first 11 years")
    points = right.scatter(*codes.T, s=14, c=starts, cmap="viridis")
    figure.colorbar(points, ax=right, label="first year of the window")
    for ax in (left, right):
        ax.set(xlabel="component 0", ylabel="component 1")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one network each")
    arguments = parser.parse_args(argv)
    from statsmodels.datasets import sunspots

    years, series = sunspots.load_pandas().data.to_numpy().T
    known, _ = windows_of(series[:-TEST])
    new = windows_of(series[-TEST:])
    seeds = range(arguments.seed, arguments.seed + (1 if arguments.quick else 3))
    counts = (2, 3, 4)

    print(f"Windows of {WINDOW} years, {years[-TEST]:.0f}-{years[-1]:.0f}: error in sunspots")
    print(f"{'numbers':>8}{'components':>12}{'network':>10}   each of {len(seeds)}")
    results: dict[str, Any] = {"counts": counts, "components": [], "network": [], "each": []}
    made: dict[str, np.ndarray] = {}
    for count in counts:
        linear = PCA(count).fit(known)
        plain = linear.inverse_transform(linear.transform(new[0]))
        networks = [train(known, count, 100, seed) for seed in seeds]
        errors = [rmse(network.reconstruct(new[0]), new) for network in networks]
        results["components"].append(rmse(plain, new))
        results["network"].append(float(np.mean(errors)))
        results["each"].append(errors)
        print(f"{count:8}{rmse(plain, new):12.1f}{np.mean(errors):10.1f}", end="   ")
        print(" ".join(f"{error:.1f}" for error in errors))
        if count == counts[0]:
            ring = networks[0]
        if count == SHOWN:
            made = {
                f"network of {count} numbers": networks[0].reconstruct(new[0]),
                f"{count} principal components": plain,
            }

    every, _ = windows_of(series)
    starts = years[: len(every)]
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    draw_windows(arguments.pictures / "sunspots_autoencoder.png", starts[-len(new[0]) :], new, made)
    draw_codes(arguments.pictures / "sunspots_codes.png", ring.transform(every), every, starts)
    print(f"pictures: {arguments.pictures}/sunspots_autoencoder.png, sunspots_codes.png")
    return results


if __name__ == "__main__":
    main()
