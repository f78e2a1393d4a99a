"""Detect intrusions, also those of a kind that was never seen, with a network's activations.

The records are simulated: connections of a small network with seven numbers each (duration, bytes
sent and received, connections in the last seconds, part of them that failed, different ports,
hour). Most are normal: web pages, mail, and a backup at night. Some are attacks: port scans,
floods and guessed passwords are known, while copies of data to the outside are not in the records
that the detectors learn from.

A radial-basis-function network knows how near a record is to what it has learnt: if no unit is
active, it is like nothing seen before. Its alarm is the larger of two ranks among normal records:
that of the probability of a known attack, and that of how inactive all units are. Logistic
regression, a plain classifier, has the first only.

    python examples/anomaly_detection.py

Prints how many attacks of each kind are found where 1 % of normal records raise a false alarm, and
draws the scores. Needs scikit-learn, and for the picture matplotlib.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from fastrnn import RBFNClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

KNOWN, UNKNOWN = ("scan", "flood", "password"), "copy"
FALSE_ALARMS = 0.01
# Of each kind: its share of normal records or None, and mean and spread of log duration, log bytes
# sent, log bytes received, log connections, failures (logit), log ports, and hour.
KINDS: dict[str, tuple[float | None, list[float], list[float]]] = {
    "web": (0.7, [0, 6, 9, 1.5, -4, 0.3, 14], [1, 0.7, 1.2, 0.6, 0.7, 0.2, 3]),
    "mail": (0.25, [1, 8, 6, 0.7, -4, 0.1, 13], [0.7, 1.3, 0.7, 0.5, 0.7, 0.1, 3]),
    "backup": (0.05, [5, 15, 7, 0.3, -5, 0.1, 2], [0.5, 0.7, 0.5, 0.2, 0.7, 0.1, 0.7]),
    "scan": (None, [-3, 4, 3.5, 3.5, 2, 3.5, 12], [0.7, 0.5, 1, 0.8, 1, 0.8, 6]),
    "flood": (None, [-2, 5, 2, 5, 1, 0.2, 12], [0.7, 0.5, 1, 0.7, 1, 0.2, 6]),
    "password": (None, [0, 5.5, 5.5, 2.5, 2, 0.1, 12], [0.7, 0.4, 0.4, 0.6, 1, 0.1, 6]),
    # Like a backup, but by day and through one slow connection.
    "copy": (None, [4, 13, 6, 0.5, -4.5, 0.1, 14], [0.7, 1, 0.7, 0.4, 0.7, 0.1, 3]),
}


def simulate(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n records (n, 8): the hour becomes a place on a circle."""
    _, mean, spread = KINDS[kind]
    records = rng.normal(mean, spread, (n, 7))
    angle = 2 * np.pi * records[:, 6] / 24
    return np.column_stack([records[:, :6], np.cos(angle), np.sin(angle)])


def simulate_normal(n: int, rng: np.random.Generator) -> np.ndarray:
    shares = {kind: share for kind, (share, _, _) in KINDS.items() if share}
    counts = rng.multinomial(n, list(shares.values()))
    parts = [simulate(kind, m, rng) for kind, m in zip(shares, counts, strict=True)]
    return np.concatenate(parts)


def rank(scores: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return which part of the normal scores is below each score."""
    return np.searchsorted(np.sort(normal), scores) / len(normal)


def draw(path: str, scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw both scores of the network for each kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    ax = figure.subplots()
    for kind, (attack, novelty) in scores.items():
        color = {"normal": "0.7", UNKNOWN: "crimson"}.get(kind)
        odds = np.log10(attack[:300] + 1e-15) - np.log10(1 - attack[:300] + 1e-15)
        ax.plot(odds, novelty[:300], ".", color=color, markersize=4, label=kind)
    ax.set(xlabel="log10 of the odds of a known attack", ylabel="inactivity of all units")
    ax.legend()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Detect anomalies with an RBF network.")
    parser.add_argument("--picture", metavar="FILE", default="anomaly_detection.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer records")
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(arguments.seed)
    n = 2000 if arguments.quick else 10_000

    X = np.concatenate([simulate_normal(n, rng), *(simulate(k, n // 20, rng) for k in KNOWN)])
    y = np.repeat(["normal", *KNOWN], [n, *[n // 20] * len(KNOWN)])
    scaler = StandardScaler().fit(X)
    calibration = scaler.transform(simulate_normal(n, rng))
    tests = {"normal": scaler.transform(simulate_normal(n, rng))}
    tests |= {kind: scaler.transform(simulate(kind, 500, rng)) for kind in (*KNOWN, UNKNOWN)}

    # With one width for all units, the largest activation tells how far the nearest centre is.
    network = RBFNClassifier(100, output="softmax", alpha=0.01, random_state=arguments.seed)
    network.fit(scaler.transform(X), y)
    plain = LogisticRegression(max_iter=2000).fit(scaler.transform(X), y)

    def suspect(model: Any, X: np.ndarray) -> np.ndarray:
        return 1 - model.predict_proba(X)[:, list(model.classes_).index("normal")]

    def novelty(X: np.ndarray) -> np.ndarray:
        return -np.log(network.transform(X).max(axis=1) + 1e-300)

    def alarm(X: np.ndarray) -> np.ndarray:
        by_attack = rank(suspect(network, X), suspect(network, calibration))
        return np.maximum(by_attack, rank(novelty(X), novelty(calibration)))

    detectors = {"logistic regression": lambda X: suspect(plain, X), "network": alarm}
    detectors["network, probability only"] = lambda X: suspect(network, X)
    results: dict[str, Any] = {}
    print(f"{'part that raises an alarm':28}" + "".join(f"{kind:>10}" for kind in tests))
    for name, detector in detectors.items():
        threshold = np.quantile(detector(calibration), 1 - FALSE_ALARMS)
        results[name] = {k: float(np.mean(detector(x) > threshold)) for k, x in tests.items()}
        print(f"{name:28}" + "".join(f"{value:10.3f}" for value in results[name].values()))
    print(f"'{UNKNOWN}' is in no record that they learnt from; all records are simulated")
    draw(arguments.picture, {k: (suspect(network, x), novelty(x)) for k, x in tests.items()})
    return results


if __name__ == "__main__":
    main()
