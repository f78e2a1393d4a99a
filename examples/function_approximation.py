"""Approximate functions with radial-basis-function networks, and choose where the units are.

The first function is a curve with a smooth part and a quick one, seen through noise. The second
one, of two inputs, has eight narrow bumps, and most of the square tells nothing. Networks get
their centres by k-means, which sees the inputs only, by orthogonal least squares (Chen, Cowan &
Grant 1991), which sees the targets, too, and by k-means with fine-tuning by gradient.

    python examples/function_approximation.py

Prints the errors on new inputs for several numbers of units, beside those of polynomials, and
draws the curve, the units, and the errors. Needs matplotlib for the picture.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from fastrnn import RBFNRegressor

NOISE = 0.15


def curve(x: np.ndarray) -> np.ndarray:
    """Return a function of one input that is quick on the right."""
    return np.sin(x) + np.sin(0.5 * x**2) * np.exp(-((x - 4.5) ** 2))


def bumps(X: np.ndarray) -> np.ndarray:
    """Return a function of two inputs, 0 but for eight bumps."""
    centers = np.random.default_rng(5).uniform(-0.9, 0.9, (8, 2))
    heights = np.array([1, -1, 2, -2, 1, 1, -1, 2])
    squares = ((X[:, np.newaxis] - centers) ** 2).sum(axis=2)
    return np.exp(-squares / (2 * 0.15**2)) @ heights


def error(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the root mean square of the errors, as a part of the standard deviation."""
    return float(np.sqrt(np.mean((prediction - truth) ** 2)) / truth.std())


def fit_curve(seed: int) -> dict[str, Any]:
    """Fit the curve with a network whose penalty GCV chooses, and with polynomials."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0, 6, 150))
    y = curve(x) + NOISE * rng.normal(size=150)
    grid = np.linspace(0.05, 5.95, 400)
    network = RBFNRegressor(25, width="nearest", alpha="gcv", random_state=seed)
    network.fit(x[:, np.newaxis], y)
    fitted = network.predict(grid[:, np.newaxis])
    polynomials = [
        error(np.polynomial.Chebyshev.fit(x, y, degree)(grid), curve(grid))
        for degree in range(1, 25)
    ]
    return {
        "x": x,
        "y": y,
        "grid": grid,
        "fitted": fitted,
        "network": network,
        "error": error(fitted, curve(grid)),
        "polynomial": min(polynomials),  # the best one in hindsight
        "degree": int(np.argmin(polynomials)) + 1,
    }


def fit_bumps(counts: list[int], epochs: int, seed: int) -> dict[str, list[float]]:
    """Return the errors of each way to place units, for several numbers of them."""
    rng = np.random.default_rng(seed)
    X, X_test = rng.uniform(-1, 1, (500, 2)), rng.uniform(-1, 1, (2000, 2))
    y, truth = bumps(X), bumps(X_test)
    options = {"width": 0.15, "alpha": 1e-6, "random_state": seed}
    ways = {
        "k-means": {"centers": "kmeans"},
        "k-means, fine-tuned": {"centers": "kmeans", "fine_tune": epochs},
        "largest error first": {"centers": "greedy"},
        "orthogonal least squares": {"centers": "ols"},
    }
    return {
        name: [
            error(RBFNRegressor(M, **way, **options).fit(X, y).predict(X_test), truth)
            for M in counts
        ]
        for name, way in ways.items()
    }


def draw(path: str, one: dict[str, Any], counts: list[int], two: dict[str, list[float]]) -> None:
    """Draw the curve and the units above each other, and the errors beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    top, bottom = left.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    top.plot(one["x"], one["y"], ".", color="0.6", label="data")
    top.plot(one["grid"], curve(one["grid"]), "k--", linewidth=1, label="function")
    top.plot(one["grid"], one["fitted"], label="network")
    top.legend()
    one["network"].plot_activations(ax=bottom)
    ax = right.subplots()
    for name, errors in two.items():
        ax.loglog(counts, errors, "o-", label=name)
    ax.set_xticks(counts, [str(count) for count in counts], minor=False)
    ax.minorticks_off()
    ax.set(xlabel="units", ylabel="error / standard deviation", title="eight bumps in a square")
    ax.legend()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Approximate functions with RBF networks.")
    parser.add_argument("--picture", metavar="FILE", default="function_approximation.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer networks and epochs")
    arguments = parser.parse_args(argv)
    counts = [10, 20, 40] if arguments.quick else [10, 20, 40, 80]

    one = fit_curve(arguments.seed)
    print(f"{'curve: error / standard deviation':42} on new inputs")
    print(f"{'network of 25 units, penalty by GCV':42} {one['error']:.3f}")
    print(f"{'polynomial of degree ' + str(one['degree']) + ', best of 24':42}", end=" ")
    print(f"{one['polynomial']:.3f}\n")

    two = fit_bumps(counts, 20 if arguments.quick else 200, arguments.seed)
    print(f"{'bumps: units':26}" + "".join(f"{count:8}" for count in counts))
    for name, errors in two.items():
        print(f"{name:26}" + "".join(f"{value:8.3f}" for value in errors))
    draw(arguments.picture, one, counts, two)
    return {"curve": one["error"], "polynomial": one["polynomial"], "bumps": two, "counts": counts}


if __name__ == "__main__":
    main()
