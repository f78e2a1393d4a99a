"""The examples with radial-basis-function networks run and show what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_examples import run


def test_function_approximation(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = run("function_approximation", tmp_path, "--quick")
    assert results["curve"] < 0.15
    assert results["curve"] < 1.2 * results["polynomial"]  # the best one in hindsight
    bumps = results["bumps"]
    assert results["counts"] == [10, 20, 40]
    # 20 units that are chosen do more than 40 in the middle of clusters.
    assert bumps["orthogonal least squares"][1] < 0.3 * bumps["k-means"][2]


def test_anomaly_detection(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    results = run("anomaly_detection", tmp_path, "--quick")
    network, plain = results["network"], results["logistic regression"]
    assert network["normal"] < 0.02
    for kind in ("scan", "flood", "password"):
        assert network[kind] > 0.95
    assert network["copy"] > 0.9 > 0.2 > plain["copy"]


def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    results = run("digits_rbfn", tmp_path, "--quick")
    assert results["counts"] == [50, 400]
    assert results["mean"][1] > 0.98 > 0.6 > results["dmax"][1]
    assert results["30 units, fine-tuned"] > results["30 units, softmax"]
