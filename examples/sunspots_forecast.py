"""Forecast sunspots, one to five years ahead.

A GRU reads the last 33 years, three cycles of the sun, and predicts how the next five differ from
the last one known. It is compared with an autoregression and two naive forecasts on the last 60
years, which neither has seen. Cycles of that time are stronger than nearly all before them, so the
windows are divided by their mean: a strong cycle then looks like a weak one. Several networks are
trained, which differ in their seeds, as one alone could be lucky.

It prints the root mean squared error of each forecast by years ahead, and draws the forecasts.

Needs statsmodels for the data (sunspots of each year, 1700-2008): ``pip install statsmodels``.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np

WINDOW, AHEAD, CYCLE = 33, 5, 11  # years
TEST, VALIDATION = 60, 40  # years at the end, and years before those


def fit_autoregression(series: np.ndarray, order: int) -> np.ndarray:
    """Find the weights that give a year from the `order` years before it, by least squares."""
    past, following = fastrnn.sliding_windows(series, order)
    inputs = np.column_stack([past[..., 0], np.ones(len(past))])
    return np.linalg.lstsq(inputs, following[:, 0, 0], rcond=None)[0]


def forecast_autoregression(weights: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Predict year after year, each from those that are known or predicted already."""
    order = len(weights) - 1
    for _ in range(AHEAD):
        following = windows[:, -order:] @ weights[:-1] + weights[-1]
        windows = np.column_stack([windows, following])
    return windows[:, -AHEAD:]


class Networks:
    """GRUs that are equal but for their seeds; they predict sunspots from raw windows."""

    def __init__(self, count: int, epochs: int, seed: int) -> None:
        self.seeds = [1000 * seed + i for i in range(count)]
        self.epochs = epochs
        self.models: list[fastrnn.Sequential] = []

    def fit(self, known: tuple[np.ndarray, np.ndarray], new: tuple[np.ndarray, np.ndarray]) -> None:
        """Find the number of epochs on newer windows, then train anew on all of them."""
        everything = tuple(map(np.concatenate, zip(known, new, strict=True)))
        for seed in self.seeds:
            stopping = fastrnn.callbacks.EarlyStopping(patience=15)
            self._train(
                seed, known, self.epochs, validation_data=_scaled(*new), callbacks=[stopping]
            )
            self.models.append(self._train(seed, everything, stopping.best_epoch))
            print(f"network {seed}: {stopping.best_epoch} epochs", file=sys.stderr)

    @staticmethod
    def _train(
        seed: int, windows: tuple[np.ndarray, ...], epochs: int, **options: Any
    ) -> fastrnn.Sequential:
        model = fastrnn.Sequential(
            [
                fastrnn.GRU(1, 32, seed=seed),
                fastrnn.Last(),
                fastrnn.Dense(32, AHEAD, seed=seed + 1),
            ]
        ).compile(fastrnn.optimizers.Adam(3e-3, clipnorm=1.0), "mse")
        x, y = _scaled(*windows)
        # So weighted, the loss is the squared error in sunspots, not in parts of a mean.
        weight = windows[0].mean(axis=1) ** 2
        options["sample_weight"] = weight / weight.mean()
        model.fit(x, y, epochs=epochs, seed=seed, verbose=0, **options)
        return model

    def predict(self, windows: np.ndarray) -> np.ndarray:
        """Return the forecasts (networks, n, AHEAD)."""
        scale = windows.mean(axis=1, keepdims=True)
        x = (windows / scale - 1)[..., np.newaxis]
        changes = np.stack([model.predict(x) for model in self.models])
        return np.maximum(windows[:, -1:] + scale * changes, 0)


def _scaled(windows: np.ndarray, following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what a network reads, (n, WINDOW, 1), and what it learns: changes (n, AHEAD)."""
    scale = windows.mean(axis=1, keepdims=True)
    return (windows / scale - 1)[..., np.newaxis], (following - windows[:, -1:]) / scale


def rmse(forecast: np.ndarray, truth: np.ndarray, axis: int | None = None) -> Any:
    return np.sqrt(np.mean((forecast - truth) ** 2, axis=axis))


def draw(path: str, years: np.ndarray, truth: np.ndarray, forecasts: dict[str, np.ndarray]) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4), width_ratios=[2, 1], layout="constrained"
    )
    left.plot(years, truth[:, 0], "k", label="sunspots")
    gru = forecasts["GRU, mean of networks"]
    left.plot(years, gru[:, 0], "C0", label="GRU, 1 year ahead")
    left.plot(years + AHEAD - 1, gru[:, -1], "C0:", label=f"GRU, {AHEAD} years ahead")
    left.plot(years, forecasts["autoregression"][:, 0], "C1--", label="autoregression, 1 year")
    left.set(xlabel="year", ylabel="sunspots")
    left.legend()
    for name, forecast in forecasts.items():
        right.plot(range(1, AHEAD + 1), rmse(forecast, truth, axis=0), "o-", label=name)
    right.set(xlabel="years ahead", ylabel="root mean squared error", ylim=0)
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--picture", default="sunspots_forecast.png", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two networks, trained briefly")
    arguments = parser.parse_args(argv)

    from statsmodels.datasets import sunspots

    table = sunspots.load_pandas().data.to_numpy()
    all_years, series = table[:, 0], table[:, 1]
    windows, following = (w[..., 0] for w in fastrnn.sliding_windows(series, WINDOW, horizon=AHEAD))
    # Every target of training lies before every one of validation, and that before the test.
    start = WINDOW + np.arange(len(windows))  # first year that is predicted
    test_start = len(series) - TEST
    validation_start = test_start - VALIDATION
    known = start + AHEAD <= validation_start
    new = (start >= validation_start) & (start + AHEAD <= test_start)
    test = start >= test_start
    x, truth = windows[test], following[test]

    errors = {
        order: rmse(
            forecast_autoregression(
                fit_autoregression(series[:validation_start], order), windows[new]
            ),
            following[new],
        )
        for order in range(1, 21)
    }
    order = min(errors, key=lambda p: errors[p])
    networks = Networks(2 if arguments.quick else 8, 20 if arguments.quick else 300, arguments.seed)
    networks.fit((windows[known], following[known]), (windows[new], following[new]))
    each = networks.predict(x)
    forecasts = {
        "last value": np.repeat(x[:, -1:], AHEAD, axis=1),
        "11 years before": x[:, -CYCLE : -CYCLE + AHEAD],
        "autoregression": forecast_autoregression(
            fit_autoregression(series[:test_start], order), x
        ),
        "GRU, mean of networks": each.mean(axis=0),
    }
    print(f"root mean squared error, {all_years[test_start]:.0f}-{all_years[-1]:.0f}")
    print(f"{'years ahead':24}" + "".join(f"{i:7}" for i in range(1, AHEAD + 1)) + "    all")
    rows = {name: (rmse(f, truth, axis=0), rmse(f, truth)) for name, f in forecasts.items()}
    scores = np.array([rmse(f, truth) for f in each])
    rows["GRU, one network"] = (np.mean([rmse(f, truth, 0) for f in each], axis=0), scores.mean())
    for name, (ahead, total) in rows.items():
        print(f"{name:24}" + "".join(f"{error:7.1f}" for error in ahead) + f"{total:7.1f}")
    wins = int(np.sum(scores < rows["autoregression"][1]))
    print(
        f"\nautoregression of order {order}, the best of 1 to 20 on the {VALIDATION} years before"
    )
    print(
        f"one network: {scores.min():.1f} to {scores.max():.1f}, better than it {wins} times of {len(each)}"
    )
    for name in ("last value", "11 years before", "autoregression"):
        if rows["GRU, one network"][1] > rows[name][1]:
            print(f"The GRU did not beat: {name}")
    draw(arguments.picture, all_years[start[test]], truth, forecasts)
    print(f"picture: {arguments.picture}")
    return {"order": order, "wins": wins, **{name: float(row[1]) for name, row in rows.items()}}


if __name__ == "__main__":
    main()
