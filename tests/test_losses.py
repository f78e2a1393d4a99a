"""Losses: values and gradients against torch and central differences, masks, weights, errors."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from fastrnn import losses
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
T, B, N_CLASSES = 5, 3, 4
POSITIONS = ((T, B), (B,))
DTYPES = (np.float32, np.float64)
# (what to call, kind of target, options of the call)
CASES: dict[str, tuple[losses.Loss, str, dict[str, Any]]] = {
    "mse": (losses.MSE(), "numbers", {}),
    "mae": (losses.MAE(), "numbers", {}),
    "huber": (losses.Huber(), "numbers", {}),
    "huber, delta": (losses.Huber(0.3), "numbers", {}),
    "binary": (losses.BinaryCrossEntropy(), "bits", {}),
    "binary, soft": (losses.BinaryCrossEntropy(), "fractions", {}),
    "binary, weight": (losses.BinaryCrossEntropy(), "bits", {"class_weight": 3.0}),
    "binary, weights": (
        losses.BinaryCrossEntropy(),
        "fractions",
        {"class_weight": [0.5, 1.0, 0.0, 3.0]},
    ),
}
for _kind in ("classes", "probabilities"):
    for _smoothing in (0.0, 0.2):
        _loss = losses.CrossEntropy(label_smoothing=_smoothing)
        CASES[f"{_kind}, {_smoothing}"] = (_loss, _kind, {})
        CASES[f"{_kind}, {_smoothing}, weights"] = (
            _loss,
            _kind,
            {"class_weight": [0.5, 1.0, 0.0, 3.0]},
        )
every_case = pytest.mark.parametrize("case", CASES)


def draw_target(kind: str, positions: tuple[int, ...], rng: Rng) -> Array:
    shape = (*positions, N_CLASSES)
    if kind == "classes":
        return rng.integers(N_CLASSES, size=positions)
    if kind == "bits":
        return rng.integers(2, size=shape)
    if kind == "fractions":
        return rng.uniform(size=shape)
    if kind == "probabilities":
        return rng.dirichlet(np.ones(N_CLASSES), positions)
    return rng.normal(size=shape)


def draw(
    case: str, positions: tuple[int, ...], rng: Rng, dtype: Any = np.float64
) -> tuple[losses.Loss, Array, Array, dict[str, Any]]:
    loss, kind, options = CASES[case]
    prediction = rng.normal(size=(*positions, N_CLASSES)).astype(dtype)
    return loss, prediction, draw_target(kind, positions, rng), options


def torch_loss(
    loss: losses.Loss, prediction: Array, target: Array, class_weight: Any = None
) -> tuple[float, Array]:
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    z = torch.tensor(prediction, requires_grad=True)
    t = torch.tensor(target)
    t = t if target.shape == prediction.shape[:-1] else t.to(z.dtype)
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=z.dtype)
    if isinstance(loss, losses.CrossEntropy):
        rows = z.reshape(-1, N_CLASSES)
        t = t.reshape(-1) if t.ndim < z.ndim else t.reshape(-1, N_CLASSES)
        value = F.cross_entropy(rows, t, weight, label_smoothing=loss.label_smoothing)
    elif isinstance(loss, losses.BinaryCrossEntropy):
        value = F.binary_cross_entropy_with_logits(z, t, pos_weight=weight)
    elif isinstance(loss, losses.Huber):
        value = F.huber_loss(z, t, delta=loss.delta)
    else:
        value = {losses.MSE: F.mse_loss, losses.MAE: F.l1_loss}[type(loss)](z, t)
    value.backward()
    return value.item(), z.grad.numpy()


@every_case
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_torch(case: str, positions: tuple[int, ...], dtype: Any, rng: Rng) -> None:
    loss, prediction, target, options = draw(case, positions, rng, dtype)
    value, gradient = loss(prediction, target, **options)
    expected_value, expected_gradient = torch_loss(loss, prediction, target, **options)
    tolerance = 8 * np.finfo(dtype).eps
    assert type(value) is float
    assert (gradient.shape, gradient.dtype) == (prediction.shape, dtype)
    np.testing.assert_allclose(value, expected_value, rtol=tolerance)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=tolerance)


@every_case
def test_gradient_is_the_slope(case: str, rng: Rng) -> None:
    loss, prediction, target, options = draw(case, (T, B), rng)
    options = options | {
        "mask": rng.random((T, B)) < 0.7,
        "sample_weight": rng.uniform(0, 2, size=(T, B)),
    }
    _, gradient = loss(prediction, target, **options)
    width = 1e-6
    for index in np.ndindex(prediction.shape):
        ends = []
        for move in (-width, width):
            moved = prediction.copy()
            moved[index] += move
            ends.append(loss(moved, target, **options)[0])
        assert abs((ends[1] - ends[0]) / (2 * width) - gradient[index]) < 1e-8, index


@every_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_positions_count_nowhere(case: str, dtype: Any, rng: Rng) -> None:
    loss, prediction, target, options = draw(case, (T, B), rng, dtype)
    sample_weight = rng.uniform(0, 2, size=(T, B))
    mask = rng.random((T, B)) < 0.6
    expected_value, expected_gradient = loss(
        prediction[mask], target[mask], sample_weight=sample_weight[mask], **options
    )
    prediction[~mask] = np.nan
    sample_weight[~mask] = np.nan
    target[~mask] = -100 if target.dtype.kind == "i" else np.nan
    value, gradient = loss(prediction, target, mask=mask, sample_weight=sample_weight, **options)
    assert value == expected_value
    np.testing.assert_array_equal(gradient[mask], expected_gradient)
    assert (gradient[~mask] == 0).all()


@every_case
def test_sample_weight_is_how_often_a_position_counts(case: str, rng: Rng) -> None:
    loss, prediction, target, options = draw(case, (20,), rng)
    counts = rng.integers(4, size=20)
    value, gradient = loss(prediction, target, sample_weight=counts, **options)
    source = np.repeat(np.arange(20), counts)
    expected_value, parts = loss(prediction[source], target[source], **options)
    expected_gradient = np.zeros_like(prediction)
    np.add.at(expected_gradient, source, parts)
    np.testing.assert_allclose(value, expected_value, rtol=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-15)


@every_case
def test_sample_weight_broadcasts(case: str, rng: Rng) -> None:
    loss, prediction, target, options = draw(case, (T, B), rng)
    for weight in (2.0, rng.uniform(size=B), rng.uniform(size=(T, 1))):
        value, gradient = loss(prediction, target, sample_weight=weight, **options)
        expected = loss(
            prediction, target, sample_weight=np.broadcast_to(weight, (T, B)), **options
        )
        assert value == expected[0]
        np.testing.assert_array_equal(gradient, expected[1])


@every_case
def test_nothing_valid_is_zero(case: str, rng: Rng) -> None:
    loss, prediction, target, options = draw(case, (T, B), rng, np.float32)
    for given in ({"mask": np.zeros((T, B), bool)}, {"sample_weight": 0.0}):
        value, gradient = loss(prediction, target, **given, **options)
        assert value == 0
        assert gradient.dtype == np.float32
        np.testing.assert_array_equal(gradient, np.zeros_like(prediction))
    value, gradient = loss(prediction[:0], target[:0], **options)
    assert value == 0
    assert gradient.shape == (0, B, N_CLASSES)


@every_case
def test_layout_is_no_matter_and_nothing_is_written(case: str, rng: Rng) -> None:
    loss, prediction, target, options = draw(case, (T, B), rng, np.float32)
    expected = loss(prediction, target, **options)
    before = target.copy()
    prediction = np.asfortranarray(prediction)
    prediction.flags.writeable = target.flags.writeable = False
    value, gradient = loss(prediction, target.tolist(), **options)
    assert value == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])
    assert gradient.flags.c_contiguous
    assert gradient.flags.writeable
    np.testing.assert_array_equal(target, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits(dtype: Any) -> None:
    big = np.finfo(dtype).max / 8
    binary, cross = losses.BinaryCrossEntropy(), losses.CrossEntropy()
    for size in (1e4, big):
        z = np.array([[size, -size]], dtype)
        for target, expected, slope in (([1, 0], 0, [0, 0]), ([0, 1], size, [0.5, -0.5])):
            value, gradient = binary(z, [target])
            np.testing.assert_allclose(value, expected, rtol=1e-6)
            np.testing.assert_array_equal(gradient, np.array([slope], dtype))
        for target, expected, slope in ((0, 0, [0, 0]), (1, 2 * size, [1, -1])):
            value, gradient = cross(z, [target])
            np.testing.assert_allclose(value, expected, rtol=1e-6)
            np.testing.assert_array_equal(gradient, np.array([slope], dtype))


def test_small_losses_keep_their_digits() -> None:
    z = np.array([[50.0]], np.float32)
    value, gradient = losses.BinaryCrossEntropy()(z, [[1]])
    np.testing.assert_allclose(value, np.exp(-50), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-np.exp(-50)]], rtol=1e-6)


def test_impossible_classes() -> None:
    value, gradient = losses.CrossEntropy()(np.array([[0.0, -np.inf, 0.0]]), [2])
    np.testing.assert_allclose(value, np.log(2))
    np.testing.assert_allclose(gradient, [[0.5, 0, -0.5]])


@every_case
def test_what_is_not_finite_shows(case: str, rng: Rng) -> None:
    loss, prediction, target, options = draw(case, (B,), rng, np.float32)
    prediction[1] = np.nan
    value, gradient = loss(prediction, target, **options)
    assert np.isnan(value)
    assert np.isfinite(gradient[[0, 2]]).all()
    assert np.isnan(gradient[1]).any()


@pytest.mark.parametrize("shape", [(3, 1), (1, 3)])
def test_sums_are_float64(shape: tuple[int, int]) -> None:
    prediction = np.array([4096, 1, 1], np.float32).reshape(shape)
    assert losses.MSE()(prediction, np.zeros(shape))[0] * 3 == 2**24 + 2  # no float32


def test_reads_tensors() -> None:
    torch = pytest.importorskip("torch")
    value, gradient = losses.CrossEntropy()(torch.zeros(2, 4), torch.tensor([1, 3]))
    np.testing.assert_allclose(value, np.log(4))
    assert type(gradient) is np.ndarray


X = np.zeros((5, 3, 4), np.float32)
ERRORS: list[tuple[losses.Loss, Any, Any, dict[str, Any], type[Exception], str]] = [
    (losses.MSE(), [1.0], [1.0], {}, TypeError, "prediction: expected an array, got list"),
    (
        losses.MSE(),
        X[0, 0],
        X[0, 0],
        {},
        ValueError,
        "prediction: expected (B, n) or (T, B, n) float32 or float64, got (4,) float32",
    ),
    (losses.MSE(), X.astype(int), X, {}, ValueError, "prediction: expected float32 or float64"),
    (
        losses.MSE(),
        X,
        X[0],
        {},
        ValueError,
        "target: expected numbers (5, 3, 4), got (3, 4) float32",
    ),
    (losses.MSE(), X, X.astype(complex), {}, TypeError, "target: expected numbers (5, 3, 4), got"),
    (losses.MSE(), X, "all", {}, TypeError, "target: expected numbers (5, 3, 4), got () <U3"),
    (losses.MSE(), X, np.ma.array(X), {}, TypeError, "got a masked array"),
    (
        losses.MSE(),
        X,
        X,
        {"mask": np.ones((3, 5), bool)},
        ValueError,
        "mask: expected bools (5, 3), got (3, 5) bool",
    ),
    (
        losses.MSE(),
        X,
        X,
        {"mask": np.ones((5, 3))},
        TypeError,
        "mask: expected bools (5, 3), got (5, 3) float64",
    ),
    (
        losses.MSE(),
        X,
        X,
        {"sample_weight": np.ones(5)},
        ValueError,
        "sample_weight: expected numbers that broadcast to (5, 3), got (5,) float64",
    ),
    (
        losses.MSE(),
        X,
        X,
        {"sample_weight": [1, -1, 1]},
        ValueError,
        "sample_weight: expected finite numbers >= 0, got -1.0",
    ),
    (
        losses.MSE(),
        X,
        X,
        {"sample_weight": np.nan},
        ValueError,
        "sample_weight: expected finite numbers >= 0, got nan",
    ),
    (
        losses.MSE(),
        X,
        X,
        {"class_weight": [1, 2]},
        ValueError,
        "class_weight: expected None for MSE, which has no classes, got [1, 2]",
    ),
    (
        losses.BinaryCrossEntropy(),
        X,
        X - 1,
        {},
        ValueError,
        "target: expected numbers in [0, 1], got -1.0",
    ),
    (
        losses.BinaryCrossEntropy(),
        X,
        X * np.nan,
        {},
        ValueError,
        "target: expected numbers in [0, 1], got nan",
    ),
    (
        losses.BinaryCrossEntropy(),
        X,
        X,
        {"class_weight": [1, 2]},
        ValueError,
        "class_weight: expected a number or numbers (4,), got (2,) int64",
    ),
    (
        losses.CrossEntropy(),
        X,
        X[..., 0].astype(int) + 4,
        {},
        ValueError,
        "target: expected classes in [0, 4), got 4",
    ),
    (
        losses.CrossEntropy(),
        X,
        X[..., 0].astype(int) - 1,
        {},
        ValueError,
        "target: expected classes in [0, 4), got -1",
    ),
    (
        losses.CrossEntropy(),
        X,
        X[..., 0],
        {},
        TypeError,
        "target: expected integers (5, 3) or probabilities (5, 3, 4), got (5, 3) float32",
    ),
    (
        losses.CrossEntropy(),
        X,
        X[..., :1].astype(int),
        {},
        ValueError,
        "target: expected integers (5, 3) or probabilities (5, 3, 4), got (5, 3, 1) int64",
    ),
    (
        losses.CrossEntropy(),
        X,
        X + 2,
        {},
        ValueError,
        "target: expected numbers in [0, 1], got 2.0",
    ),
    (
        losses.CrossEntropy(),
        X,
        X,
        {"class_weight": {0: 1.0}},
        TypeError,
        "class_weight: expected numbers (4,), got () object",
    ),
    (
        losses.CrossEntropy(),
        X[..., :0],
        X[..., 0].astype(int),
        {},
        ValueError,
        "prediction: expected at least 2 classes, got 0",
    ),
]


@pytest.mark.parametrize(
    ("loss", "prediction", "target", "options", "kind", "message"),
    ERRORS,
    ids=[message for *_, message in ERRORS],
)
def test_errors_name_the_argument(
    loss: losses.Loss,
    prediction: Any,
    target: Any,
    options: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind) as caught:
        loss(prediction, target, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, np.nan])
def test_label_smoothing_is_below_one(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing: expected a number"):
        losses.CrossEntropy(label_smoothing=smoothing)


@pytest.mark.parametrize("delta", [0, -1.0])
def test_delta_is_positive(delta: float) -> None:
    with pytest.raises(ValueError, match="delta: expected a number > 0, got"):
        losses.Huber(delta)


def test_get() -> None:
    names = {
        "mse": losses.MSE,
        "mae": losses.MAE,
        "huber": losses.Huber,
        "binary_cross_entropy": losses.BinaryCrossEntropy,
        "cross_entropy": losses.CrossEntropy,
    }
    for name, kind in names.items():
        loss = losses.get(name)
        assert type(loss) is kind
        assert losses.get(loss) is loss
        assert repr(pickle.loads(pickle.dumps(loss))) == repr(loss)
    for wrong in ("hinge", None, losses.MSE):
        with pytest.raises(ValueError, match="loss: expected one of 'mse', 'mae'"):
            losses.get(wrong)
