"""The examples of trees, vanishing gradients and digits: what they draw, and that they learn it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_examples import load, run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run("digits_row_by_row", tmp_path)
    assert results["accuracy"] >= 0.97
    assert 0.94 < results["baseline"] < 0.99
    assert f"{results['accuracy']:.3f}" in capsys.readouterr().out


def test_vanishing_gradients(tmp_path: Path) -> None:
    """In full: LSTM and GRU solve the adding problem, the plain RNN does not."""
    results = run("vanishing_gradients", tmp_path)
    for steps in (50, 200, 400):
        kinds = {kind: results[f"{kind} {steps}"] for kind in ("RNN", "LSTM", "GRU")}
        fractions = {kind: result["flow"][0] / result["flow"][-1] for kind, result in kinds.items()}
        assert kinds["LSTM"]["errors"][-1] < 0.01
        assert kinds["GRU"]["errors"][-1] < 0.01
        assert kinds["RNN"]["errors"][-1] > 0.14
        assert fractions["RNN"] < 1e-8
        assert fractions["LSTM"] > 1e-4
        assert fractions["GRU"] > 1e-2


def test_adding_problem() -> None:
    x, y = load("vanishing_gradients").adding(500, 20, np.random.default_rng(0))
    markers = x[:, :, 1]
    assert (markers[:, :10].sum(axis=1) == 1).all()
    assert (markers[:, 10:].sum(axis=1) == 1).all()
    np.testing.assert_allclose((x[:, :, 0] * markers).sum(axis=1), y, rtol=1e-6)
    assert y.var() == pytest.approx(1 / 6, abs=0.03)


def test_trees(tmp_path: Path) -> None:
    results = run("tree_classification", tmp_path, "--quick")
    accuracies = {name: new for name, (new, _) in results.items()}
    assert accuracies["counts of tokens"] == 0.5
    assert accuracies["TreeLSTM binary"] > 0.98
    assert accuracies["RecursiveNetwork"] > 0.98
    # Without order it can be right where "implies" decides nothing, and no more often.
    assert 0.65 < accuracies["TreeLSTM child_sum"] < 0.95


def test_values_of_formulas() -> None:
    trees = load("tree_classification")
    table = {
        trees.AND: [False, False, False, True],
        trees.OR: [False, True, True, True],
        trees.IMPLIES: [True, True, False, True],
    }
    arguments = [(a, b) for a in (trees.FALSE, trees.TRUE) for b in (trees.FALSE, trees.TRUE)]
    for operator, expected in table.items():
        assert [trees.value((operator, pair)) for pair in arguments] == expected
    nested = (trees.IMPLIES, ((trees.AND, (trees.TRUE, trees.FALSE)), trees.FALSE))
    assert trees.value(nested)


def test_twins_differ_in_order_alone() -> None:
    trees = load("tree_classification")
    rng = np.random.default_rng(0)

    def flat(formula: Any) -> list[Any]:
        return [formula] if isinstance(formula, int) else [*flat(formula[0]), *flat(formula[1])]

    def shape(formula: Any) -> Any:
        return 0 if isinstance(formula, int) else tuple(map(shape, formula))

    for size in (3, 5, 9):
        known: dict[Any, bool] = {}
        trees.add_twins(known, size, rng)
        (one, one_value), (other, other_value) = known.items()
        assert one_value != other_value
        assert (trees.value(one), trees.value(other)) == (one_value, other_value)
        assert Counter(flat(one)) == Counter(flat(other))
        assert len(flat(one)) == 2 * size - 1
        assert shape(one) == shape(other)
