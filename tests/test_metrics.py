"""Metrics: against scikit-learn, torch and the losses, sums over batches, masks, wrong calls."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
from fastrnn import losses, metrics
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
T, B, N_CLASSES = 5, 4, 7


def draw_targets(kind: str, positions: tuple[int, ...], n: int, rng: Rng) -> Array:
    if kind == "classes":
        return rng.integers(n, size=positions)
    if kind == "one-hot":
        return np.eye(n)[rng.integers(n, size=positions)]
    if kind == "bits":
        return rng.integers(2, size=(*positions, n))
    if kind == "flat bits":
        return rng.integers(2, size=positions)
    return rng.normal(size=(*positions, n))


def mean_error(prediction: Array, target: Array) -> Any:
    return np.abs(prediction - target).mean()


# (metric, kind of target, n)
CASES: dict[str, tuple[Any, str, int]] = {
    "accuracy": ("accuracy", "classes", N_CLASSES),
    "accuracy, one-hot": ("accuracy", "one-hot", N_CLASSES),
    "accuracy, one logit": ("accuracy", "bits", 1),
    "accuracy, one logit, flat": ("accuracy", "flat bits", 1),
    "binary_accuracy": ("binary_accuracy", "bits", N_CLASSES),
    "mse": ("mse", "numbers", N_CLASSES),
    "mae": ("mae", "numbers", N_CLASSES),
    "r2": ("r2", "numbers", N_CLASSES),
    "perplexity": ("perplexity", "classes", N_CLASSES),
    "top 5": ("top_5_accuracy", "classes", N_CLASSES),
    "top 2": (metrics.TopK(2), "one-hot", N_CLASSES),
    "huber": (losses.Huber(0.5), "numbers", N_CLASSES),
    "function": (mean_error, "numbers", N_CLASSES),
}
every_case = pytest.mark.parametrize("case", CASES)


def draw(
    case: str, positions: tuple[int, ...], rng: Rng, dtype: Any = np.float64
) -> tuple[metrics.Metric, Array, Array]:
    metric, kind, n = CASES[case]
    prediction = rng.normal(size=(*positions, n)).astype(dtype)
    return metrics.get(metric), prediction, draw_targets(kind, positions, n, rng)


def expected_value(case: str, prediction: Array, target: Array) -> float:
    """Return the value of rows (N, n) as scikit-learn or plain NumPy computes it."""
    sk = pytest.importorskip("sklearn.metrics")
    classes = target.argmax(axis=-1) if "one-hot" in CASES[case][1] else target
    labels = range(N_CLASSES)
    if "one logit" in case:
        return float(sk.accuracy_score(target.ravel(), prediction.ravel() > 0))
    if case.startswith("accuracy"):
        return float(sk.accuracy_score(classes, prediction.argmax(axis=-1)))
    if case == "binary_accuracy":
        return float(np.mean((prediction > 0) == target))
    if case == "perplexity":
        exps = np.exp(prediction)
        return float(np.exp(sk.log_loss(target, exps / exps.sum(1, keepdims=True), labels=labels)))
    if case.startswith("top"):
        k = int(case[-1])
        return float(sk.top_k_accuracy_score(classes, prediction, k=k, labels=labels))
    if case == "huber":
        return losses.Huber(0.5)(prediction, target)[0]
    score = {"mse": sk.mean_squared_error, "r2": sk.r2_score}.get(case, sk.mean_absolute_error)
    return float(score(target, prediction))


@every_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("positions", [(20,), (T, B)])
def test_values(case: str, dtype: Any, positions: tuple[int, ...], rng: Rng) -> None:
    metric, prediction, target = draw(case, positions, rng, dtype)
    value = metric(prediction, target)
    assert type(value) is float
    rows = prediction.reshape(20, -1)
    targets = target.reshape(20, *target.shape[len(positions) :])
    expected = expected_value(case, rows.astype(np.float64), targets)
    np.testing.assert_allclose(value, expected, rtol=1e-6 if dtype is np.float32 else 1e-12)


@every_case
def test_partial_results_add_up(case: str, rng: Rng) -> None:
    metric, prediction, target = draw(case, (20,), rng)
    ends = [0, 3, 3, 4, 20]  # one batch is empty
    partials = [metric.partial(prediction[a:b], target[a:b]) for a, b in itertools.pairwise(ends)]
    assert {(partial.dtype, partial.shape) for partial in partials} == {
        (np.dtype(np.float64), partials[0].shape)
    }
    whole = metric(prediction, target)
    np.testing.assert_allclose(metric.result(np.sum(partials, axis=0)), whole, rtol=1e-12)


@every_case
def test_masked_positions_count_nowhere(case: str, rng: Rng) -> None:
    metric, prediction, target = draw(case, (T, B), rng)
    mask = rng.random((T, B)) < 0.6
    expected = metric(prediction[mask], target[mask])
    prediction[~mask] = np.nan
    target[~mask] = -100 if target.dtype.kind == "i" else np.nan
    assert metric(prediction, target, mask=mask) == expected
    assert metric(prediction, target.tolist(), mask=mask.tolist()) == expected


@every_case
def test_nothing_valid_is_unknown(case: str, rng: Rng) -> None:
    metric, prediction, target = draw(case, (T, B), rng)
    assert math.isnan(metric(prediction, target, mask=np.zeros((T, B), bool)))
    assert math.isnan(metric(prediction[:0], target[:0]))


@every_case
def test_not_a_number_is_never_good(case: str, rng: Rng) -> None:
    metric, prediction, target = draw(case, (T, B), rng)
    value = metric(np.full_like(prediction, np.nan), target)
    assert math.isnan(value) or value == 0
    assert ("accuracy" in metric.name) == (value == 0)


@pytest.mark.parametrize("k", range(1, N_CLASSES + 1))
def test_top_k_matches_a_stable_sort(k: int, rng: Rng) -> None:
    prediction = rng.integers(3, size=(50, N_CLASSES)).astype(np.float32)  # many are equal
    target = rng.integers(N_CLASSES, size=50)
    guesses = np.argsort(-prediction, axis=1, kind="stable")[:, :k]
    expected = (guesses == target[:, np.newaxis]).any(axis=1).mean()
    assert metrics.TopK(k)(prediction, target) == expected
    if k == 1:
        assert metrics.accuracy(prediction, target) == expected


def test_other_nan_is_ahead() -> None:
    prediction = np.array([[np.nan, 1.0, 0.0]])
    assert metrics.accuracy(prediction, [1]) == 0
    assert metrics.TopK(2)(prediction, [1]) == 1


def test_zero_is_no() -> None:
    assert metrics.accuracy(np.zeros((3, 1)), [0, 0, 1]) == 2 / 3
    assert metrics.binary_accuracy(np.zeros((1, 2)), [[False, True]]) == 0.5


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_r2_of_constant_outputs(offset: float, rng: Rng) -> None:
    sk = pytest.importorskip("sklearn.metrics")
    target = rng.normal(size=(30, 3)) + offset
    target[:, :2] = offset + 0.25
    prediction = target.copy()
    prediction[:, 1:] += rng.normal(size=(30, 2))
    expected = sk.r2_score(target, prediction)
    np.testing.assert_allclose(metrics.r2(prediction, target), expected, rtol=1e-6)
    assert metrics.r2(target, target) == 1
    constants = np.tile(rng.uniform(size=50), (30, 1))  # whose sums of squares are rounded
    assert metrics.r2(constants, constants) == 1
    assert metrics.r2(constants + 1, constants) == 0
    assert math.isnan(metrics.r2(prediction[:1], target[:1]))


def test_perplexity() -> None:
    np.testing.assert_allclose(metrics.perplexity(np.zeros((4, 9)), [0, 1, 2, 3]), 9)
    assert metrics.perplexity(np.array([[1e4, 0.0]]), [1]) == math.inf
    # Of batches it is no mean of the batches' values.
    first, second = np.array([[5.0, 0.0]]), np.array([[0.0, 5.0]])
    partials = metrics.perplexity.partial(first, [0]) + metrics.perplexity.partial(second, [0])
    np.testing.assert_allclose(
        metrics.perplexity.result(partials),
        math.sqrt(metrics.perplexity(first, [0]) * metrics.perplexity(second, [0])),
    )


def test_perplexity_matches_torch(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    prediction, target = rng.normal(size=(T, B, 3)), rng.integers(3, size=(T, B))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(prediction).reshape(-1, 3), torch.tensor(target).reshape(-1)
    ).exp()
    value = metrics.perplexity(torch.tensor(prediction), torch.tensor(target))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)


def test_functions_see_valid_rows_only() -> None:
    seen: list[tuple[Any, Any]] = []

    def last(prediction: Array, target: Array) -> float:
        seen.append((prediction.tolist(), target.tolist()))
        return 3

    mask = np.array([[True, False], [True, True]])
    prediction = np.arange(4.0).reshape(2, 2, 1)
    metric = metrics.get(last)
    assert metric.name == "last"
    assert metric.partial(prediction, [["a", "b"], ["c", "d"]], mask=mask).tolist() == [9, 3]
    assert seen == [([[0.0], [2.0], [3.0]], ["a", "c", "d"])]


@pytest.mark.parametrize(
    "name",
    ["accuracy", "binary_accuracy", "mse", "mae", "r2", "perplexity", "top_5_accuracy"],
)
def test_names(name: str) -> None:
    metric = metrics.get(name)
    assert metric is getattr(metrics, name)
    assert metric is metrics.get(metric)
    assert metric.name == name
    assert repr(metric) == f"<metric {name}>"
    assert name in metrics.__all__
    assert pickle.loads(pickle.dumps(metric)).name == name


X = np.zeros((5, 3, 4), np.float32)
ERRORS: list[tuple[Any, Any, Any, dict[str, Any], type[Exception], str]] = [
    ("mse", [1.0], [1.0], {}, TypeError, "prediction: expected an array, got list"),
    (
        "accuracy",
        X[0, 0],
        [0],
        {},
        ValueError,
        "prediction: expected (B, n) or (T, B, n) float32 or float64, got (4,) float32",
    ),
    ("r2", X.astype(int), X, {}, ValueError, "prediction: expected float32 or float64"),
    ("r2", X, X[0], {}, ValueError, "target: expected numbers (5, 3, 4), got (3, 4) float32"),
    (
        "accuracy",
        X,
        X,
        {"mask": np.ones((3, 5), bool)},
        ValueError,
        "mask: expected bools (5, 3), got (3, 5) bool",
    ),
    (
        "accuracy",
        X[0],
        [0, 1, 1.0],
        {},
        TypeError,
        "target: expected integers (3,) or one-hot (3, 4), got (3,) float64",
    ),
    (
        "accuracy",
        X[0],
        [[0], [1], [1]],
        {},
        ValueError,
        "target: expected integers (3,) or one-hot (3, 4), got (3, 1) int64",
    ),
    ("accuracy", X[0], [0, 1, 4], {}, ValueError, "target: expected classes in [0, 4), got 4"),
    ("accuracy", X[0], [0, 1, -1], {}, ValueError, "target: expected classes in [0, 4), got -1"),
    ("accuracy", X[0, :1], [[1, 0, 1, 0]], {}, ValueError, "target: expected one-hot vectors, got"),
    ("accuracy", X[0, :1], [[1, 0, 0.5, 0]], {}, ValueError, "target: expected one-hot vectors"),
    ("accuracy", X[0, :, :1], [0, 1, 2], {}, ValueError, "target: expected 0 or 1, got 2"),
    (
        "accuracy",
        X[0, :, :1],
        [0, 1],
        {},
        ValueError,
        "target: expected numbers (3,) or (3, 1), got (2,) int64",
    ),
    ("accuracy", X[0, :, :0], [0, 0, 0], {}, ValueError, "expected at least 1 class, got 0"),
    ("binary_accuracy", X, X + 0.5, {}, ValueError, "target: expected 0 or 1, got 0.5"),
    ("binary_accuracy", X, X * np.nan, {}, ValueError, "target: expected 0 or 1, got nan"),
    (
        "binary_accuracy",
        X[0],
        [0, 1, 1],
        {},
        ValueError,
        "target: expected numbers (3, 4), got (3,) int64",
    ),
    (
        "top_5_accuracy",
        X[0],
        [0, 1, 1],
        {},
        ValueError,
        "prediction: expected at least 5 classes, got 4",
    ),
    (
        mean_error,
        X,
        X[:, 0],
        {},
        ValueError,
        "target: expected an array with leading axes (5, 3), got (5, 4) float32",
    ),
    (
        np.subtract,
        X,
        X,
        {},
        TypeError,
        "subtract: expected a metric that returns a number, got (15, 4) float32",
    ),
]


@pytest.mark.parametrize(("metric", "prediction", "target", "options", "kind", "message"), ERRORS)
def test_errors(
    metric: Any,
    prediction: Any,
    target: Any,
    options: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind) as error:
        metrics.get(metric)(prediction, target, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("given", ["acc", None, metrics.TopK, 3])
def test_unknown_metrics(given: Any) -> None:
    with pytest.raises(ValueError, match=r"metric: expected one of 'accuracy', .*, got"):
        metrics.get(given)


def test_wrong_k() -> None:
    with pytest.raises(ValueError, match="k: expected an integer >= 1, got 0"):
        metrics.TopK(0)
