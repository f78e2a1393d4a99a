"""Radial-basis-function networks: their parts, scikit-learn's checks, what they are judged by."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastrnn import io
from fastrnn.rbf import centers as rbf_centers
from fastrnn.rbf import memory as rbf_memory
from fastrnn.rbf import network as rbf_network
from fastrnn.rbf import tuning as rbf_tuning
from fastrnn.rbf.data import Rows, divide, merge
from fastrnn.rbf.network import _left_out, _Network
from fastrnn.rbf.output import Factor
from fastrnn.rbf.tuning import prepare
from fastrnn.rbf.units import KERNELS, Units
from fastrnn.rbfn import RBFNClassifier, RBFNRegressor
from numpy.typing import NDArray

pytest.importorskip("sklearn", "1.6")

from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_diabetes, load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

Array = NDArray[Any]
KINDS = [RBFNRegressor, RBFNClassifier]

# Of t = distance / width.
FORMULAS = {
    "gaussian": lambda t: np.exp(-(t**2) / 2),
    "multiquadric": lambda t: np.sqrt(1 + t**2),
    "inverse_multiquadric": lambda t: 1 / np.sqrt(1 + t**2),
    "inverse_quadratic": lambda t: 1 / (1 + t**2),
    "thin_plate_spline": lambda t: t**2 * np.log(np.where(t > 0, t, 1)),
    "cubic": lambda t: t**3,
    "linear": lambda t: t,
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def draw(kind: Any, rng: np.random.Generator, n: int = 80) -> tuple[Array, Array]:
    """Draw rows of two features, with targets that they tell."""
    X = rng.uniform(-1, 1, (n, 2))
    y = np.sin(3 * X[:, 0]) + X[:, 1] ** 2
    return X, np.where(y > 0.3, "high", "low") if kind is RBFNClassifier else y


def outputs(estimator: Any, X: Array) -> Array:
    """Compute what does not hide small differences."""
    found = getattr(estimator, "predict_proba", estimator.predict)(X)
    assert isinstance(found, np.ndarray)
    return found


# Units.


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", ["unit", "feature"])
def test_kernels(kernel: str, shape: str, rng: np.random.Generator) -> None:
    X, centers = rng.normal(size=(50, 3)), rng.normal(size=(7, 3))
    X[3] = centers[2]  # distance 0
    widths = rng.uniform(0.5, 2, (7, 3) if shape == "feature" else 7)
    scaled = (X[:, np.newaxis] - centers) / (widths if shape == "feature" else widths[:, None])
    expected = FORMULAS[kernel](np.linalg.norm(scaled, axis=2))
    found = Units(centers, widths, kernel)(X)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-14)
    assert found[3, 2] == FORMULAS[kernel](np.float64(0))


@pytest.mark.parametrize("kernel", [name for name in KERNELS if KERNELS[name].is_positive])
def test_normalized_activations(kernel: str, rng: np.random.Generator) -> None:
    X, units = rng.normal(size=(40, 2)), Units(rng.normal(size=(5, 2)), np.ones(5), kernel, True)
    plain = Units(units.centers, units.widths, kernel)(X)
    np.testing.assert_allclose(units(X), plain / plain.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(units(X * 1e4).sum(axis=1), 1)  # where all gaussians are 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_distances_far_from_the_origin(kernel: str, rng: np.random.Generator) -> None:
    X = 1e6 + np.vstack([rng.normal(size=(30, 2)) * 1e-3, [[1e5, 1e5]]])
    units = Units(X[::3], np.full(11, 1e-3), kernel)
    t = np.linalg.norm(X[:, np.newaxis] - units.centers, axis=2) / 1e-3
    np.testing.assert_allclose(units(X), FORMULAS[kernel](t), rtol=1e-6, atol=1e-12)


def numerical(function: Any, x: Array, step: float = 1e-6) -> Array:
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        high = function()
        x[index] = kept - step
        gradient[index] = (high - function()) / (2 * step)
        x[index] = kept
    return gradient


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", ["unit", "feature"])
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_of_units(
    kernel: str, shape: str, normalize: bool, rng: np.random.Generator
) -> None:
    if normalize and not KERNELS[kernel].is_positive:
        with pytest.raises(ValueError, match="normalize: expected False"):
            Units(np.zeros((1, 1)), np.ones(1), kernel, normalize)
        return
    X, centers = rng.normal(size=(9, 3)), rng.normal(size=(4, 3))
    logarithms = rng.normal(size=(4, 3) if shape == "feature" else 4) * 0.3
    G = rng.normal(size=(9, 4))

    def units() -> Units:
        return Units(centers, np.exp(logarithms), kernel, normalize)

    h, _, slopes = units().with_slopes(X)
    np.testing.assert_allclose(h, units()(X))
    for found, x in zip(units().gradients(X, h, slopes, G), (centers, logarithms), strict=True):
        expected = numerical(lambda: float((units()(X) * G).sum()), x)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("is_softmax", [False, True])
@pytest.mark.parametrize("shape", ["unit", "feature"])
def test_gradients_of_fine_tuning(is_softmax: bool, shape: str, rng: np.random.Generator) -> None:
    X, Y = rng.normal(size=(30, 2)), np.eye(3)[rng.integers(0, 3, 30)]
    rows = merge(X, Y, rng.uniform(1, 2, 30))
    X, Y = rows.X, rows.Y
    widths = np.full((5, 2) if shape == "feature" else 5, 0.8)
    units = Units(rng.normal(size=(5, 2)), widths, "gaussian")

    def beside(X: Array) -> Array:
        return np.hstack([np.ones((len(X), 1)), X])

    factor = Factor(8, 3)
    factor.add(np.hstack([beside(X), units(X)]), Y, rows.weights)
    fit = factor.ridge(0.1, inverse=True)
    assert fit.inverse is not None
    tuning = prepare(
        units, beside, fit.coefficients, fit.inverse, rows, alpha=0.1, is_softmax=is_softmax
    )
    parameters = {name: rng.normal(size=x.shape) * 0.1 for name, x in tuning.parameters().items()}
    _, gradients = tuning.gradients(parameters, rows)
    for name, x in parameters.items():
        expected = numerical(lambda: tuning.gradients(parameters, rows)[0], x)
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-5, atol=1e-8)


# Centres and widths.


def test_kmeans_is_as_good_as_that_of_scikit_learn() -> None:
    X = load_digits().data
    ours = [
        rbf_centers.cluster(X, np.ones(len(X)), 40, np.random.default_rng(seed))
        for seed in range(3)
    ]
    errors = [rbf_centers.distances(X, centers).min(axis=1).sum() for centers in ours]
    theirs = [KMeans(40, n_init=1, random_state=seed).fit(X).inertia_ for seed in range(3)]
    assert np.mean(errors) < 1.02 * np.mean(theirs)


def test_kmeans_with_weights(rng: np.random.Generator) -> None:
    X, weights = rng.normal(size=(60, 2)), rng.integers(1, 4, 60).astype(float)
    centers = rbf_centers.cluster(X, weights, 5, np.random.default_rng(0))
    labels = rbf_centers.distances(X, centers).argmin(axis=1)
    for j in range(5):  # each is the mean of its own
        mine = labels == j
        expected = np.average(X[mine], axis=0, weights=weights[mine])
        np.testing.assert_allclose(centers[j], expected, atol=1e-3)


def test_a_cluster_without_rows_gets_the_farthest(rng: np.random.Generator) -> None:
    X = np.array([[0.0], [1.0], [8.0]])
    labels, squares = np.array([0, 0, 0]), np.array([0.0, 1.0, 64.0])
    means = rbf_centers._means(X, np.array([1.0, 3.0, 1.0]), labels, squares, 2)
    np.testing.assert_array_equal(means, [[0.75], [8.0]])


def test_draw_follows_the_weights() -> None:
    X, weights = np.arange(4.0)[:, np.newaxis], np.array([1.0, 1.0, 1.0, 7.0])
    drawn = [rbf_centers.draw(X, weights, 1, np.random.default_rng(i))[0, 0] for i in range(500)]
    assert abs(np.mean(np.array(drawn) == 3) - 0.7) < 0.06
    assert len(np.unique(rbf_centers.draw(X, weights, 4, np.random.default_rng(0)))) == 4


def test_split_is_along_the_first_principal_axis(rng: np.random.Generator) -> None:
    X = rng.normal(size=(60, 3)) @ np.diag([1.0, 5.0, 2.0]) + 7
    side = (X - X.mean(axis=0)) @ np.linalg.svd(X - X.mean(axis=0))[2][0] > 0
    expected = [X[side].mean(axis=0), X[~side].mean(axis=0)]
    found = rbf_centers.split(X, np.ones(60), 2)
    np.testing.assert_allclose(found[found[:, 1].argsort()], sorted(expected, key=lambda c: c[1]))
    wide = rng.normal(size=(5, 40))  # fewer rows than features
    assert rbf_centers.split(wide, np.ones(5), 9).shape == (5, 40)


@pytest.mark.parametrize("method", ["kmeans", "random", "pca", "ols", "greedy", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_ways_to_choose_centers(kind: Any, method: str, rng: np.random.Generator) -> None:
    X, y = draw(kind, rng)
    fitted = kind(12, method, alpha=1e-5, random_state=0).fit(X, y)
    assert fitted.centers_.shape == ((80 if method == "all" else 12), 2)
    assert fitted.n_centers_ == len(fitted.centers_) == len(fitted.widths_)
    assert fitted.score(X, y) > 0.9
    is_row = (fitted.centers_[:, np.newaxis] == X).all(axis=2).any(axis=1)
    assert is_row.all() == (method not in ("kmeans", "pca"))
    if method in ("pca", "all", "greedy", "ols"):  # with a number as width nothing is random
        again = kind(12, method, width=0.5, random_state=1).fit(X, y)
        other = kind(12, method, width=0.5, random_state=2).fit(X, y)
        np.testing.assert_array_equal(again.centers_, other.centers_)


def test_centers_that_are_given(rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    fitted = RBFNRegressor(centers=X[:9].tolist(), width=0.7).fit(X, y)
    np.testing.assert_array_equal(fitted.centers_, X[:9])
    np.testing.assert_array_equal(fitted.widths_, np.full(9, 0.7))


def test_first_choice_of_orthogonal_least_squares(rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng, 30)
    weights = rng.uniform(1, 2, 30)
    fitted = RBFNRegressor(3, "ols", width=0.5, alpha=0.0).fit(X, y, weights)
    chosen: list[int] = []
    for _ in range(3):  # what a search finds that fits anew each time
        errors = []
        for i in range(30):
            H = Units(X[[*chosen, i]], np.full(len(chosen) + 1, 0.5), "gaussian")(X)
            A = np.hstack([np.ones((30, 1)), H]) * np.sqrt(weights)[:, np.newaxis]
            b = y * np.sqrt(weights)
            errors.append(((A @ np.linalg.lstsq(A, b, rcond=None)[0] - b) ** 2).sum())
        chosen.append(int(np.argmin(errors)))
    np.testing.assert_array_equal(fitted.centers_, X[chosen])


def test_greedy_takes_the_largest_error(rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng, 30)
    weights = rng.choice([1.0, 100.0], 30)  # which say how much a fit cares, not where errors are
    common: dict[str, Any] = {"width": 0.5, "alpha": 0.0}
    first = RBFNRegressor(1, "greedy", **common).fit(X, y, weights)
    worst = np.abs(y - np.average(y, weights=weights)).argmax()
    np.testing.assert_array_equal(first.centers_[0], X[worst])
    second = RBFNRegressor(2, "greedy", **common).fit(X, y, weights)
    worst = np.abs(y - first.predict(X)).argmax()
    np.testing.assert_array_equal(second.centers_[1], X[worst])


@pytest.mark.parametrize("method", ["ols", "greedy"])
def test_goal(method: str, rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    options: dict[str, Any] = {"width": 0.5, "alpha": 0.0, "goal": 1e-3}
    fitted = RBFNRegressor(80, method, **options).fit(X, y)
    assert np.mean((fitted.predict(X) - y) ** 2) <= 1e-3
    fewer = RBFNRegressor(fitted.n_centers_ - 1, method, **options).fit(X, y)
    assert np.mean((fewer.predict(X) - y) ** 2) > 1e-3


@pytest.mark.parametrize("method", ["ols", "greedy"])
@pytest.mark.parametrize("alpha", [1e-3, "gcv"])
def test_scale_of_targets(method: str, alpha: Any, rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    X[40:60], y = X[20:40], y + 0.1 * rng.normal(size=80)  # some rows come twice
    network = RBFNRegressor(15, method, width=0.5, alpha=alpha)
    centers, predicted = network.fit(X, y).centers_, network.predict(X)
    assert len(centers) == 15
    for scale in (1e-200, 1e160):
        np.testing.assert_array_equal(network.fit(X, y * scale).centers_, centers)
        np.testing.assert_allclose(network.predict(X) / scale, predicted, rtol=1e-6)
    few = RBFNRegressor(60, method, width=0.5, goal=0.01).fit(X, y)
    for scale in (1e-3, 1e3):  # the goal is in units of the targets
        same = RBFNRegressor(60, method, width=0.5, goal=0.01 * scale**2).fit(X, y * scale)
        np.testing.assert_array_equal(same.centers_, few.centers_)
    assert RBFNRegressor(60, method, width=0.5, goal=1.0).fit(X, y * 1e-200).n_centers_ == 1


@pytest.mark.parametrize("method", ["ols", "greedy"])
@pytest.mark.parametrize("tail", [False, True])
def test_targets_without_an_error_need_one_center(
    method: str, tail: bool, rng: np.random.Generator
) -> None:
    X, _ = draw(RBFNRegressor, rng)
    y = 3 * X[:, 0] - 700 if tail else np.full(80, 0.1)
    for weights in (None, rng.uniform(1, 2, 80)):
        fitted = RBFNRegressor(20, method, tail=tail, alpha=0.0).fit(X, y, weights)
        assert fitted.n_centers_ == 1
        np.testing.assert_allclose(fitted.predict(X), y)


def test_width_rules() -> None:
    centers = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    distances = [5, 1, np.sqrt(18)]
    mean = rbf_centers.width_rule("mean", centers, 1.0)
    np.testing.assert_allclose(mean, np.full(3, np.mean(distances)))
    np.testing.assert_allclose(
        rbf_centers.width_rule("nearest", centers, 1.0), [2, 2 * np.sqrt(18), 2]
    )
    np.testing.assert_allclose(
        rbf_centers.width_rule("dmax", centers, 1.0), np.full(3, 5 / np.sqrt(6))
    )
    np.testing.assert_array_equal(rbf_centers.width_rule("mean", centers[:1], 2.5), [2.5])


@pytest.mark.parametrize("shape", [(), (6,), (6, 1), (1, 2), (6, 2)])
def test_widths_that_are_given(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    width = rng.uniform(0.5, 1, shape)
    fitted = RBFNRegressor(6, width=width if shape else float(width), random_state=0).fit(X, y)
    per_feature = len(shape) == 2 and shape[1] == 2
    assert fitted.widths_.shape == ((6, 2) if per_feature else (6,))
    wide = np.broadcast_to(width, (6, 2)) if per_feature else np.broadcast_to(width.ravel(), 6)
    np.testing.assert_array_equal(fitted.widths_, wide)
    assert np.isfinite(fitted.predict(X)).all()


# Output weights.


@pytest.mark.parametrize("tail", [False, True])
def test_ridge_is_that_of_scikit_learn(tail: bool, rng: np.random.Generator) -> None:
    X, _ = draw(RBFNRegressor, rng)
    Y, weights = rng.normal(size=(80, 3)), rng.uniform(0.5, 2, 80)
    fitted = RBFNRegressor(10, alpha=0.1, tail=tail, random_state=0).fit(X, Y, weights)
    columns = fitted.transform(X)
    if tail:
        mean = np.average(X, axis=0, weights=weights)
        scale = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights))
        columns = np.hstack([columns, (X - mean) / scale])
    ridge = Ridge(0.1, solver="svd").fit(columns, Y, weights)
    np.testing.assert_allclose(fitted.predict(X), ridge.predict(columns), rtol=1e-8)
    np.testing.assert_allclose(fitted.weights_, ridge.coef_.T[:10], rtol=1e-7)
    assert (fitted.slopes_ is not None) == tail


def test_alpha_by_generalised_cross_validation(rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    y = y + 0.3 * rng.normal(size=80)
    fitted = RBFNRegressor(40, width=0.3, alpha="gcv", random_state=0).fit(X, y)

    def criterion(alpha: float) -> float:
        A = np.hstack([np.ones((80, 1)), fitted.transform(X)])
        penalty = alpha * np.eye(41)
        penalty[0, 0] = 0
        hat = A @ np.linalg.solve(A.T @ A + penalty, A.T)
        return float(80 * ((y - hat @ y) ** 2).sum() / (80 - np.trace(hat)) ** 2)

    best = min(criterion(alpha) for alpha in np.logspace(-6, 3, 200))
    assert criterion(fitted.alpha_) <= 1.001 * best
    assert 1e-5 < fitted.alpha_ < 1e2


def test_cross_validation_of_repeated_rows(rng: np.random.Generator) -> None:
    """Rows that are merged are as many observations as before, with all of their noise."""
    X = np.repeat(rng.uniform(-1, 1, (40, 1)), 5, axis=0)
    y = np.stack([np.sin(6 * X[:, 0]), X[:, 0]], axis=1) + 0.5 * rng.normal(size=(200, 2))
    options: dict[str, Any] = {"centers": X[:150:5], "width": 0.3, "alpha": "gcv"}
    fitted = RBFNRegressor(**options).fit(X, y)
    A = np.hstack([np.ones((200, 1)), fitted.transform(X)])
    # The criterion is the same for all outputs, each in units of its own deviation.
    scaled = (y - y.mean(axis=0)) / y.std(axis=0)

    def criterion(alpha: float) -> float:
        penalty = alpha * np.eye(31)
        penalty[0, 0] = 0
        hat = A @ np.linalg.solve(A.T @ A + penalty, A.T)
        return float(((scaled - hat @ scaled) ** 2).sum() / (200 - np.trace(hat)) ** 2)

    alphas = np.logspace(-6, 3, 200)
    best = alphas[np.argmin([criterion(alpha) for alpha in alphas])]
    assert best / 1.1 < fitted.alpha_ < best * 1.1
    parts = RBFNRegressor(**options).partial_fit(X[:77], y[:77]).partial_fit(X[77:], y[77:])
    np.testing.assert_allclose(parts.alpha_, fitted.alpha_, rtol=1e-6)


def test_cross_validation_of_integer_weights(rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    y, weights = y + 0.3 * rng.normal(size=80), rng.integers(0, 4, 80)
    for kind, targets in [(RBFNRegressor, y), (RBFNClassifier, y > 0.3)]:
        options: dict[str, Any] = {"centers": X[:30], "width": 0.3, "alpha": "gcv"}
        weighted = kind(**options).fit(X, targets, weights)
        repeated = kind(**options).fit(np.repeat(X, weights, axis=0), np.repeat(targets, weights))
        np.testing.assert_allclose(weighted.alpha_, repeated.alpha_, rtol=1e-9)
        np.testing.assert_allclose(outputs(weighted, X), outputs(repeated, X), rtol=1e-9)
        assert kind(**options).fit(X, targets).alpha_ != weighted.alpha_


def test_softmax_is_logistic_regression(rng: np.random.Generator) -> None:
    X, y = load_digits(return_X_y=True)
    X, y = X[:300], y[:300]
    weights = rng.uniform(0.5, 2, 300)
    ours = RBFNClassifier(20, output="softmax", alpha=0.5, random_state=0).fit(X, y, weights)
    theirs = LogisticRegression(C=2, tol=1e-8, max_iter=5000).fit(ours.transform(X), y, weights)
    expected = theirs.predict_proba(ours.transform(X))
    np.testing.assert_allclose(ours.predict_proba(X), expected, atol=1e-5)


def test_softmax_of_classes_that_can_be_told_apart(rng: np.random.Generator) -> None:
    X = np.concatenate([rng.normal(size=(30, 2)) * 0.1, 3 + rng.normal(size=(30, 2)) * 0.1])
    y = np.repeat([0, 1], 30)
    for alpha in (0.0, "gcv"):
        p = RBFNClassifier(20, output="softmax", alpha=alpha, random_state=0).fit(X, y)
        assert p.predict_proba(X)[np.arange(60), y].min() > 0.99


@pytest.mark.parametrize("weighting", ["none", "counts", "fractions"])
def test_outputs_of_rows_that_are_left_out(weighting: str, rng: np.random.Generator) -> None:
    X, labels = np.repeat(rng.normal(size=(12, 2)), 3, axis=0)[:-4], rng.integers(0, 3, 32)
    Y = np.eye(3)[labels]
    weights = np.repeat(rng.uniform(1, 2, 12), 3)[:-4] if weighting == "fractions" else np.ones(32)
    rows = merge(X, Y, weights)
    if weighting == "counts":
        each, numbers = np.unique(np.column_stack([X, labels]), axis=0, return_counts=True)
        classes = np.eye(3)[each[:, 2].astype(int)]
        rows = merge(each[:, :2].copy(), classes, numbers.astype(float))
    network = _Network(Units(X[::4], np.ones(8), "gaussian"), None, None)
    fit = network.factor(rows).ridge(0.5, inverse=True)
    assert fit.inverse is not None
    outputs, classes, found_weights = _left_out(network, fit.coefficients, fit.inverse, rows)
    np.testing.assert_allclose(found_weights @ classes, weights @ Y)
    columns = network.columns(X)
    for i in range(32):
        others = np.arange(32) != i
        factor = Factor(9, 3)
        factor.add(columns[others], Y[others], weights[others])
        expected = columns[i] @ factor.ridge(0.5).coefficients
        assert np.abs(expected - Y[i]).max() < 2  # larger errors are cut off
        # Those of a class at a place are the same, and returned once.
        errors = np.abs(outputs - expected).max(axis=1)
        assert errors[(classes == Y[i]).all(axis=1)].min() < 1e-10


def test_singular_least_squares(rng: np.random.Generator) -> None:
    """Without a penalty the smallest of many solutions is taken."""
    A = rng.normal(size=(20, 4))
    A = np.hstack([A, A[:, 1:3]])  # twice the same
    y = rng.normal(size=(20, 1))
    factor = Factor(6, 1)
    factor.add(A, y, np.ones(20))
    np.testing.assert_allclose(
        factor.ridge(0.0).coefficients, np.linalg.lstsq(A, y, rcond=None)[0], atol=1e-12
    )


def test_probabilities_of_ridge_are_calibrated() -> None:
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0, stratify=y)
    p = RBFNClassifier(50, random_state=0).fit(X, y).predict_proba(X_test)
    likelihood = np.log(p[np.arange(len(p)), y_test]).mean()
    assert likelihood > -0.25
    assert abs(p.max(axis=1).mean() - np.mean(p.argmax(axis=1) == y_test)) < 0.1


@pytest.mark.parametrize("kernel", FORMULAS)
@pytest.mark.parametrize("alpha", [0.0, 1e-12])
def test_interpolation_is_that_of_scipy(
    kernel: str, alpha: float, rng: np.random.Generator
) -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    # Not too close to each other, or rounding and alpha matter more than that.
    X = np.stack(np.meshgrid(*[np.linspace(-1, 1, 9)] * 2), axis=-1).reshape(-1, 2)
    X += rng.uniform(-0.05, 0.05, X.shape)
    y = np.stack([np.sin(3 * X[:, 0]) + X[:, 1] ** 2, X.sum(axis=1)], axis=1)
    X_test = rng.uniform(-1, 1, (300, 2))
    epsilon = 4.0
    needs_tail = kernel in ("thin_plate_spline", "cubic")  # SciPy's own choice of degree
    width = 1 / (np.sqrt(2) * epsilon) if kernel == "gaussian" else 1 / epsilon
    ours = RBFNRegressor(centers="all", width=width, kernel=kernel, alpha=alpha, tail=needs_tail)
    theirs = interpolate.RBFInterpolator(X, y, kernel=kernel, epsilon=epsilon)
    np.testing.assert_allclose(ours.fit(X, y).predict(X_test), theirs(X_test), atol=1e-6)
    np.testing.assert_allclose(ours.predict(X), y, atol=1e-6)


@pytest.mark.parametrize("degree", [0, 1])
def test_interpolation_of_either_degree(degree: int, rng: np.random.Generator) -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    X, y = draw(RBFNRegressor, rng)
    theirs = interpolate.RBFInterpolator(X, y, kernel="linear", degree=degree)
    ours = RBFNRegressor(centers="all", width=1, kernel="linear", alpha=0, tail=degree == 1).fit(
        X, y
    )
    X_test = rng.uniform(-1, 1, (100, 2))
    np.testing.assert_allclose(ours.predict(X_test), theirs(X_test), atol=1e-9)


# Habits of scikit-learn.

CONFIGURATIONS = [
    RBFNRegressor(),
    RBFNClassifier(),
    RBFNClassifier(output="softmax"),
    RBFNRegressor(20, "random", fine_tune=3),
    RBFNClassifier(20, "pca", fine_tune=3, output="softmax"),
    RBFNRegressor(10, "ols", alpha="gcv", tail=True),
    RBFNClassifier(10, "greedy", kernel="multiquadric"),
    RBFNRegressor(centers="all", kernel="cubic", tail=True),
    RBFNClassifier(10, width="nearest", kernel="inverse_multiquadric", normalize=True),
    RBFNRegressor("cv"),
]


CHECKS = parametrize_with_checks(CONFIGURATIONS)
NAMES, ALL_CASES = CHECKS.args
# One check skips unless SciPy was started for arrays of other libraries, which no one promises
# here.
CASES = [case for case in ALL_CASES if "check_array_api_input" not in str(case)]


@pytest.mark.filterwarnings("ignore:n_centers. the first call of partial_fit has:RuntimeWarning")
@pytest.mark.parametrize(NAMES, CASES, **CHECKS.kwargs)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_order_and_repetition_do_not_matter(rng: np.random.Generator) -> None:
    for kind in KINDS:
        X, y = draw(kind, rng)
        weights = rng.integers(0, 3, len(X))
        order = rng.permutation(np.repeat(np.arange(len(X)), weights))
        weighted = kind(9, random_state=0).fit(X, y, weights)
        repeated = kind(9, random_state=0).fit(X[order], y[order])
        np.testing.assert_allclose(outputs(weighted, X), outputs(repeated, X), rtol=1e-9)
        np.testing.assert_array_equal(weighted.centers_, repeated.centers_)


def test_merged_rows(rng: np.random.Generator) -> None:
    X = np.array([[0.0, 1.0], [2.0, 2.0], [-0.0, 1.0], [5.0, 5.0]])
    rows = merge(X, np.array([[1.0], [4.0], [3.0], [9.0]]), np.array([1.0, 2.0, 3.0, 0.0]))
    found = {tuple(row[0]): np.hstack(row[1:]).tolist() for row in zip(*rows, strict=True)}
    # Mean target, weight, scatter, observations.
    assert found == {
        (0.0, 1.0): [2.5, 4.0, pytest.approx(np.sqrt(1.5**2 + 3 * 0.5**2)), 4.0],
        (2.0, 2.0): [4.0, 2.0, 0.0, 2.0],
    }
    fractions = merge(X, np.arange(4.0)[:, np.newaxis], np.array([1.0, 2.0, 3.5, 0.0]))
    assert sorted(fractions.counts) == [1, 2]
    huge = merge(np.zeros((2, 1)), np.array([[3e200], [5e200]]), None)
    np.testing.assert_allclose(huge.scatter, np.sqrt(2) * 1e200)


def test_division_keeps_every_class(rng: np.random.Generator) -> None:
    groups = np.repeat([0, 1, 2], [50, 49, 1])
    held = divide(groups, 0.2, rng)
    assert 15 <= held.sum() <= 20
    assert not held[groups == 2].any()
    with pytest.raises(ValueError, match="validation_fraction: expected a part of 2 rows"):
        divide(np.array([0, 1]), 0.5, rng)


@pytest.mark.parametrize("kind", KINDS)
def test_pipeline_search_clone_and_pickle(kind: Any, rng: np.random.Generator) -> None:
    X, y = draw(kind, rng)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), kind(random_state=0)),
        {f"{kind.__name__.lower()}__n_centers": [3, 20]},
        cv=3,
    ).fit(X, y)
    assert search.best_score_ > 0.8
    fitted = kind(10, tail=True, fine_tune=2, random_state=0).fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(outputs(again, X), outputs(fitted, X))
    np.testing.assert_array_equal(outputs(clone(fitted).fit(X, y), X), outputs(fitted, X))
    assert fitted.get_feature_names_out()[3] == f"{kind.__name__.lower()}3"
    assert repr(kind(10, width="nearest")).startswith(f"{kind.__name__}(n_centers=10")


def test_parameters_set_after_a_fit_wait_for_the_next(rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    fitted = RBFNRegressor(10, random_state=0).fit(X, y)
    before = fitted.predict(X)
    fitted.set_params(kernel="cubic", normalize=True)
    np.testing.assert_array_equal(fitted.predict(X), before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_partial_fit_cannot_change(kind: Any, rng: np.random.Generator) -> None:
    X, y = draw(kind, rng)
    changes = {"kernel": "cubic", "normalize": True, "tail": True}
    if kind is RBFNClassifier:
        changes["output"] = "softmax"
    for name, value in changes.items():
        fitted = kind(10, random_state=0).fit(X, y)
        was = getattr(fitted, name)
        fitted.set_params(**{name: value})
        with pytest.raises(ValueError, match=f"{name}: expected {was!r}, .* got {value!r}"):
            fitted.partial_fit(X, y)
        fitted.set_params(**{name: was, "alpha": 1.0}).partial_fit(X, y)
        assert fitted.alpha_ == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_changes_nothing(
    kind: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd = pytest.importorskip("pandas")
    X, y = draw(kind, rng)
    table = pd.DataFrame(X, columns=["first", "second"])
    options = {"output": "softmax"} if kind is RBFNClassifier else {}
    fitted = kind(10, fine_tune=2, random_state=0, **options).fit(table, y)
    new = kind(10, random_state=0, **options)

    keep = kind._keep

    def interrupted(self: Any, *arguments: Any) -> None:
        keep(self, *arguments)  # all is changed then
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "_keep", interrupted)
    known = {"classes": ["high", "low"]} if kind is RBFNClassifier else {}
    for estimator in (fitted, new):
        before = dict(vars(estimator))
        for call in (estimator.fit, lambda X, y, e=estimator: e.partial_fit(X, y, **known)):
            with pytest.raises(KeyboardInterrupt):
                call(X if estimator is new else table, y)
            assert vars(estimator) == before
        with pytest.raises(ValueError, match="n_centers"):
            estimator.set_params(n_centers=0).fit(np.hstack([X, X]), y)
        assert vars(estimator) == {**before, "n_centers": 0}
    assert fitted.feature_names_in_.tolist() == ["first", "second"]


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_at_first(kind: Any, rng: np.random.Generator) -> None:
    X, y = draw(kind, rng)
    known = {"classes": ["high", "low"]} if kind is RBFNClassifier else {}
    message = "n_centers: .* has 7 different rows, fewer than 20, .* keeps 7 centres .* centers"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        fitted = kind(20, random_state=0).partial_fit(X[:7], y[:7], **known)
    assert caught[0].filename.endswith(("rbfn.py", "test_rbfn.py"))
    assert fitted.partial_fit(X, y).n_centers_ == 7
    # No warning.
    assert kind(20, random_state=0).partial_fit(X[:20], y[:20], **known).n_centers_ == 20
    assert kind(20, "all").partial_fit(X[:7], y[:7], **known).n_centers_ == 7
    assert kind(20, X[:9]).partial_fit(X[:7], y[:7], **known).n_centers_ == 9


def test_equal_rows_cannot_validate() -> None:
    with pytest.raises(ValueError, match=r"fine_tune: .* equal rows are merged"):
        RBFNRegressor(5, fine_tune=1).fit(np.ones((50, 2)), np.arange(50.0))


@pytest.mark.parametrize("kind", KINDS)
def test_huge_learning_rate(kind: Any, rng: np.random.Generator) -> None:
    X, y = draw(kind, rng)
    for options in ({"learning_rate": 1e6}, {"learning_rate": 1e300, "width": [[0.5, 0.5]]}):
        for output in ("softmax", "ridge") if kind is RBFNClassifier else (None,):
            more = {} if output is None else {"output": output}
            tuned = kind(10, fine_tune=5, random_state=0, **options, **more).fit(X, y)
            assert np.isfinite(outputs(tuned, X)).all()
            losses = np.array(tuned.history_["val_loss"])
            assert np.isfinite(losses).all()
            assert tuned.n_iter_ == len(losses) - 1
            assert tuned.score(X, y) > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_data(kind: Any, rng: np.random.Generator) -> None:
    X, y = draw(kind, rng)
    fitted = kind(5, random_state=0).fit(X, y)
    for wrong, message in [(np.nan, "NaN"), (np.inf, "infinity")]:
        bad = X.copy()
        bad[3, 1] = wrong
        for call in (fitted.predict, fitted.transform, lambda X: kind(5).fit(X, y)):
            with pytest.raises(ValueError, match=message):
                call(bad)
    with pytest.raises(ValueError, match=r"X has 3 features, but .* is expecting 2"):
        fitted.predict(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="0 sample"):
        kind(5).fit(X[:0], y[:0])
    with pytest.raises(ValueError, match="0 feature"):
        kind(5).fit(X[:, :0], y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        kind(5).fit(X, y[:-1])
    with pytest.raises(ValueError, match="sample_weight"):
        kind(5).fit(X, y, -np.ones(len(X)))
    with pytest.raises(ValueError, match="not fitted"):
        kind(5).predict(X)


def test_wrong_classes(rng: np.random.Generator) -> None:
    X, y = draw(RBFNClassifier, rng)
    with pytest.raises(ValueError, match="1 class"):
        RBFNClassifier(5).fit(X, np.full(len(X), "high"))
    with pytest.raises(ValueError, match="1 class"):
        RBFNClassifier(5).fit(X, y, (y == "high").astype(float))
    with pytest.raises(ValueError, match="continuous"):
        RBFNClassifier(5).fit(X, X[:, 0])
    for mixed in (["a", 1] * 40, np.array(["a", 1] * 40, object), ["a", None] * 40):
        with pytest.raises(ValueError, match="y: expected labels of one kind"):
            RBFNClassifier(5).fit(X, mixed)
        with pytest.raises(ValueError, match="y: expected labels of one kind"):
            RBFNClassifier(5).partial_fit(X, mixed, classes=["a", "b"])
    for classes, message in [
        ([0, 1, np.nan], "labels, got nan"),
        ([None, None], "labels, got None"),
        ([0, 1, None], "labels of one kind"),
        (["a", 1], "labels of one kind"),
        ([[0, 1]], r"labels \(k,\), got \(1, 2\)"),
        (3, r"labels \(k,\), got \(\)"),
        ([3, 3], "at least 2 classes"),
    ]:
        with pytest.raises(ValueError, match=f"classes: expected {message}"):
            RBFNClassifier(5).partial_fit(X, y, classes=classes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_centers": 0}, ValueError, "n_centers: expected an integer >= 1"),
        ({"n_centers": 2.5}, TypeError, "n_centers: expected an integer"),
        ({"n_centers": "many"}, ValueError, "n_centers: expected one of 'cv'"),
        ({"centers": "means"}, ValueError, "centers: expected one of 'kmeans'"),
        ({"centers": np.zeros((3, 5))}, ValueError, r"centers: expected \(M, 2\) float64"),
        ({"centers": [[np.nan, 0]]}, ValueError, "centers: expected finite"),
        ({"width": "wide"}, ValueError, "width: expected one of 'mean'"),
        ({"width": 0}, ValueError, "width: expected numbers > 0"),
        (
            {"width": [1, 2, 3]},
            ValueError,
            r"width: expected \(\), \(10,\) or \(10, 2\) for 10 cen",
        ),
        ({"width": [1, 2], "centers": "ols"}, ValueError, "width: expected a rule or one number"),
        ({"kernel": "rbf"}, ValueError, "kernel: expected one of 'gaussian'"),
        ({"kernel": "cubic", "normalize": True}, ValueError, "normalize: expected False"),
        ({"alpha": -1}, ValueError, "alpha: expected a number >= 0"),
        ({"alpha": "loo"}, ValueError, "alpha: expected one of 'gcv'"),
        ({"tail": 1}, TypeError, "tail: expected True or False"),
        ({"fine_tune": -1}, ValueError, "fine_tune: expected an integer >= 0"),
        ({"fine_tune": 1, "patience": 0}, ValueError, "patience: expected an integer >= 1"),
        ({"fine_tune": 1, "validation_fraction": 2}, ValueError, "validation_fraction: expected"),
        ({"fine_tune": 1, "validation_fraction": 0}, ValueError, "expected a number > 0 and < 1"),
        ({"fine_tune": 1, "validation_fraction": 1}, ValueError, "expected a number > 0 and < 1"),
        ({"fine_tune": 1, "learning_rate": -1}, ValueError, "learning_rate: expected"),
        ({"fine_tune": 1, "learning_rate": np.inf}, ValueError, "learning_rate: expected"),
        ({"fine_tune": 1, "learning_rate": "high"}, TypeError, "learning_rate: expected"),
        ({"n_centers": "cv", "width": [1, 2]}, ValueError, "width: expected .* for n_centers='cv'"),
        ({"random_state": "x"}, TypeError, "random_state: expected"),
    ],
)
def test_wrong_parameters(
    options: dict[str, Any], error: type[Exception], message: str, rng: np.random.Generator
) -> None:
    for kind in KINDS:
        X, y = draw(kind, rng)
        with pytest.raises(error, match=message):
            kind(**{"n_centers": 10, **options}).fit(X, y)


def test_wrong_output(rng: np.random.Generator) -> None:
    X, y = draw(RBFNClassifier, rng)
    with pytest.raises(ValueError, match="output: expected one of 'ridge', 'softmax'"):
        RBFNClassifier(output="sigmoid").fit(X, y)


WITHOUT_SKLEARN = """
import sys
sys.modules["sklearn"] = None
import numpy as np
from fastrnn.rbfn import RBFNClassifier, RBFNRegressor
rng = np.random.default_rng(0)
X = rng.uniform(-1, 1, (80, 2))
y = np.sin(3 * X[:, 0]) + X[:, 1] ** 2
labels = np.where(y > 0.3, "high", "low")
regressor = RBFNRegressor(10, tail=True, random_state=0).fit(X, y)
classifier = RBFNClassifier(10, output="softmax", random_state=0).fit(X, labels)
print(repr(float(regressor.predict(X).sum())), repr(float(classifier.predict_proba(X)[:, 0].sum())))
assert regressor.score(X, y) > 0.9 and classifier.score(X, labels) > 0.9
assert regressor.get_params()["n_centers"] == 10
assert RBFNRegressor(5).fit_transform(X, y).shape == (80, 5)
bad = X.copy()
bad[0, 0] = np.nan
calls = [
    (lambda: regressor.predict(bad), "NaN"),
    (lambda: RBFNRegressor().fit(-bad / 0, y), "NaN|infinity"),
    (lambda: regressor.predict(X[:, :1]), "X has 1 features, but RBFNRegressor is expecting 2"),
    (lambda: regressor.fit(X[:0], y[:0]), "0 sample"),
    (lambda: regressor.fit(X[:, :0], y), "0 feature"),
    (lambda: regressor.fit(X, y[:-1]), "y: expected 80 targets"),
    (lambda: regressor.fit(X[0], y), "Reshape your data"),
    (lambda: regressor.fit(X, None), "requires y"),
    (lambda: classifier.fit(X, labels[:1].repeat(80)), "1 class"),
    (lambda: RBFNClassifier().predict(X), "not fitted"),
]
import re
for call, message in calls:
    try:
        with np.errstate(all="ignore"):
            call()
    except ValueError as error:
        assert re.search(message, str(error)), (message, error)
    else:
        raise AssertionError(message)
"""


def test_without_scikit_learn(rng: np.random.Generator) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_SKLEARN],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    X, y = draw(RBFNRegressor, rng)
    labels = np.where(y > 0.3, "high", "low")
    regressor = RBFNRegressor(10, tail=True, random_state=0).fit(X, y)
    classifier = RBFNClassifier(10, output="softmax", random_state=0).fit(X, labels)
    expected = [regressor.predict(X).sum(), classifier.predict_proba(X)[:, 0].sum()]
    np.testing.assert_allclose([float(text) for text in result.stdout.split()], expected)


# More ways to fit.


@pytest.mark.parametrize("alpha", [1e-3, "gcv"])
@pytest.mark.parametrize("tail", [False, True])
def test_partial_fit_of_ridge_is_a_fit_to_all(
    alpha: Any, tail: bool, rng: np.random.Generator
) -> None:
    X, y = draw(RBFNRegressor, rng)
    y = np.stack([y, rng.normal(size=80)], axis=1)
    options: dict[str, Any] = {"centers": X[:10], "width": 0.8, "alpha": alpha, "tail": tail}
    parts = RBFNRegressor(**options)
    for start in range(0, 80, 20):
        parts.partial_fit(X[start : start + 20], y[start : start + 20])
    whole = RBFNRegressor(**options).fit(X, y)
    if not tail:  # whose features are scaled as those of the first part are
        np.testing.assert_allclose(parts.alpha_, whole.alpha_, rtol=1e-6)
        np.testing.assert_allclose(parts.predict(X), whole.predict(X), rtol=1e-6)
    continued = RBFNRegressor(**options).fit(X[:40], y[:40]).partial_fit(X[40:], y[40:])
    np.testing.assert_allclose(continued.predict(X), whole.predict(X), atol=1e-2)


@pytest.mark.parametrize("output", ["ridge", "softmax"])
def test_partial_fit_of_classifiers(output: str) -> None:
    X, y = load_digits(return_X_y=True)
    names = np.array([f"digit {digit}" for digit in range(10)])
    X, X_test, labels, test_labels = train_test_split(X, names[y], random_state=0, stratify=y)
    classifier = RBFNClassifier(50, output=output, alpha=0.1, random_state=0)
    scores = []
    for part in np.array_split(np.arange(len(X)), 6):
        classifier.partial_fit(X[part], labels[part], classes=names)
        scores.append(classifier.score(X_test, test_labels))
    assert scores[-1] > max(scores[0], 0.945)
    whole = RBFNClassifier(50, output=output, alpha=0.1, random_state=0).fit(X, labels)
    assert scores[-1] > whole.score(X_test, test_labels) - 0.02
    with pytest.raises(ValueError, match="classes: expected those of the first call"):
        classifier.partial_fit(X, labels, classes=names[:5])
    with pytest.raises(ValueError, match=r"y: expected labels of classes, got .*another"):
        classifier.partial_fit(X[:2], ["another", "digit 1"])
    with pytest.raises(ValueError, match="classes: expected all labels"):
        RBFNClassifier().partial_fit(X, labels)


def sorted_digits() -> tuple[Array, Array]:
    X, y = load_digits(return_X_y=True)
    order = np.argsort(y, kind="stable")
    return X[order], y[order]


@pytest.mark.parametrize("alpha", [1e-3, 0.1])
@pytest.mark.parametrize("is_fit_first", [False, True])
def test_partial_fit_of_softmax_is_a_fit_to_all(alpha: float, is_fit_first: bool) -> None:
    X, y = sorted_digits()
    options: dict[str, Any] = {"centers": X[::30], "width": 30.0, "alpha": alpha}
    whole = RBFNClassifier(output="softmax", **options).fit(X, y)
    parts = RBFNClassifier(output="softmax", **options)
    chunks = np.array_split(np.arange(len(X)), 9)
    if is_fit_first:
        chunks = [np.append(chunks[0], np.arange(400, len(X), 20)), *chunks[1:]]
        parts.fit(X[chunks[0]], y[chunks[0]])
        whole.fit(*(np.concatenate([a[chunk] for chunk in chunks]) for a in (X, y)))
    for chunk in chunks[is_fit_first:]:
        parts.partial_fit(X[chunk], y[chunk], classes=np.arange(10))
    np.testing.assert_allclose(parts.predict_proba(X), whole.predict_proba(X), atol=1e-6)


def test_partial_fit_of_softmax_beyond_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = sorted_digits()
    X, X_test, y, y_test = X[::2], X[1::2], y[::2], y[1::2]
    options: dict[str, Any] = {"centers": X[::20], "output": "softmax", "alpha": 0.1}
    whole = RBFNClassifier(**options).fit(X, y)
    monkeypatch.setattr(rbf_memory, "CAPACITY", 300)
    parts = RBFNClassifier(**options)
    for chunk in np.array_split(np.arange(len(X)), 9):
        parts.partial_fit(X[chunk], y[chunk], classes=np.arange(10))
    assert len(parts._memory.X) <= 310
    np.testing.assert_allclose(parts._memory.weights @ parts._memory.Y, np.bincount(y))
    assert parts.score(X_test, y_test) > whole.score(X_test, y_test) - 0.05
    assert pickle.loads(pickle.dumps(parts))._memory.X.tolist() == parts._memory.X.tolist()


def test_memory_is_unbiased(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rbf_memory, "CAPACITY", 10)
    X, weights = rng.normal(size=(30, 1)), rng.choice([0.1, 1.0, 2.0, 30.0], 30)
    rows = merge(X, np.eye(3)[np.append(np.arange(29) % 2, 2)], weights)
    found = np.zeros((4000, 30))
    for seed in range(4000):
        thinned = rbf_memory.thin(rows, seed)
        assert len(thinned.X) <= 12
        np.testing.assert_allclose(thinned.weights @ thinned.Y, rows.weights @ rows.Y)
        found[seed, np.isin(rows.X, thinned.X)[:, 0]] = thinned.weights
    errors = np.abs(found.mean(axis=0) - rows.weights)
    assert (errors <= 4 * found.std(axis=0) / np.sqrt(4000) + 1e-9).all()
    assert (found > 0).sum(axis=1).min() > 5


def test_number_of_centers_by_cross_validation(rng: np.random.Generator) -> None:
    X = rng.uniform(-1, 1, (300, 1))
    y = np.sin(12 * X[:, 0]) + 0.2 * rng.normal(size=300)
    fitted = RBFNRegressor("cv", width="nearest", random_state=0).fit(X, y)
    results = fitted.cv_results_
    assert results["n_centers"] == [5, 10, 20, 50, 100, 200]
    assert fitted.n_centers_ == results["n_centers"][int(np.argmin(results["loss"]))]
    assert 10 <= fitted.n_centers_ <= 100
    assert min(results["loss"]) < 0.06  # of noise of variance 0.04
    assert not hasattr(fitted.set_params(n_centers=5).fit(X, y), "cv_results_")


def test_many_outputs(rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    Y = np.stack([y, -2 * y, np.ones(80)], axis=1)
    many = RBFNRegressor(15, random_state=0).fit(X, Y)
    one = RBFNRegressor(15, random_state=0).fit(X, y)
    assert many.predict(X).shape == (80, 3)
    np.testing.assert_allclose(many.predict(X)[:, 0], one.predict(X), atol=1e-9)
    np.testing.assert_allclose(many.predict(X)[:, 2], 1, atol=1e-9)
    with pytest.raises(ValueError, match=r"y: expected 3 output\(s\) as before"):
        many.partial_fit(X, y)


# Files and pictures.


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize(
    "estimator",
    [
        RBFNRegressor(10, tail=True, fine_tune=2, random_state=0),
        RBFNRegressor("cv", width=0.5, random_state=0),
        RBFNClassifier(10, kernel="inverse_quadratic", normalize=True, random_state=0),
        RBFNClassifier(centers=np.eye(2), width=[[1.0, 2.0], [3.0, 4.0]], output="softmax"),
    ],
)
def test_save_and_load(
    estimator: Any, suffix: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    X, y = draw(type(estimator), rng)
    fitted = clone(estimator).fit(X, y)
    path = tmp_path / f"network.{suffix}"
    fitted.save(path)
    loaded = type(estimator).load(path)
    np.testing.assert_array_equal(outputs(loaded, X), outputs(fitted, X))
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    parameters = [each.get_params() for each in (loaded, fitted)]
    for each in parameters:  # lists come back as tuples
        each.update({k: np.array(v).tolist() for k, v in each.items() if np.ndim(v)})
    assert repr(parameters[0]) == repr(parameters[1])
    assert getattr(loaded, "cv_results_", None) == getattr(fitted, "cv_results_", None)
    if hasattr(fitted, "history_"):
        assert dict(loaded.history_) == dict(fitted.history_)
    for each in (loaded, fitted):
        each.partial_fit(X[:20] + 0.1, y[:20])
    np.testing.assert_array_equal(outputs(loaded, X), outputs(fitted, X))


def test_wrong_files(tmp_path: Path, rng: np.random.Generator) -> None:
    X, y = draw(RBFNClassifier, rng)
    path = tmp_path / "network.npz"
    fitted = RBFNClassifier(5, random_state=0).fit(X, y)
    fitted.save(path)
    with pytest.raises(ValueError, match=r"expected a file that RBFNRegressor\.save wrote"):
        RBFNRegressor.load(path)
    arrays, metadata = io.load_arrays(path)
    io.save_arrays(path, {**arrays, "network/weights": arrays["network/weights"][:-1]}, metadata)
    with pytest.raises(ValueError, match="weights: expected"):
        RBFNClassifier.load(path)
    for name, wrong in [("factor", np.nan), ("centers", np.inf), ("widths", 0.0), ("widths", -1.0)]:
        damaged = arrays[f"network/{name}"].copy()
        damaged.flat[-1] = wrong
        io.save_arrays(path, {**arrays, f"network/{name}": damaged}, metadata)
        with pytest.raises(ValueError, match=rf"network\.npz: .*{name}: expected"):
            RBFNClassifier.load(path)
    io.save_arrays(path, {**arrays, "memory/X": X}, metadata)
    with pytest.raises(ValueError, match="memory: expected rows for output='softmax' alone"):
        RBFNClassifier.load(path)
    fitted.save(path.with_suffix(".safetensors"))
    data = bytearray(path.with_suffix(".safetensors").read_bytes())
    data[-20] ^= 1
    path.with_suffix(".safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"network\.safetensors: .* damaged"):
        RBFNClassifier.load(path.with_suffix(".safetensors"))
    io.save_arrays(path, arrays, {**metadata, "state": "{}"})
    with pytest.raises(ValueError, match="expected what save writes"):
        RBFNClassifier.load(path)
    io.save_arrays(path, {"a": X})
    with pytest.raises(ValueError, match=r"expected a file that RBFNClassifier\.save wrote"):
        RBFNClassifier.load(path)
    with pytest.raises(ValueError, match="not fitted"):
        RBFNClassifier().save(path)


def test_plot_activations(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("matplotlib")
    X, y = draw(RBFNRegressor, rng)
    for D in (1, 2):
        path = tmp_path / f"{D}.png"
        fitted = RBFNRegressor(7, random_state=0).fit(X[:, :D], y)
        figure = fitted.plot_activations(path, resolution=50)
        assert len(path.read_bytes()) > 5000
        if D == 1:
            assert len(figure.axes[0].lines) == 7 + 1
    with pytest.raises(ValueError, match="1 or 2 features, got 3"):
        RBFNRegressor(7).fit(np.hstack([X, X[:, :1]]), y).plot_activations()


# What they are judged by.


def test_digits() -> None:
    X, y = load_digits(return_X_y=True)
    scores = []
    for seed in range(5):
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, test_size=0.25, stratify=y, random_state=seed
        )
        classifier = RBFNClassifier(400, random_state=seed).fit(X_train, y_train)
        scores.append(classifier.score(X_test, y_test))
    assert np.mean(scores) >= 0.985


def test_dmax_collapses_and_says_so() -> None:
    X, y = load_digits(return_X_y=True)
    with pytest.warns(RuntimeWarning, match="width: activations of .* are nearly all zero"):
        collapsed = RBFNClassifier(200, width="dmax", random_state=0).fit(X[::2], y[::2])
    assert collapsed.score(X[1::2], y[1::2]) < 0.9
    RBFNClassifier(200, width="nearest", random_state=0).fit(X[::2], y[::2])  # no warning


def bumps(X: Array) -> Array:
    """Return eight narrow bumps in the square: most of the inputs tell nothing."""
    centers = np.random.default_rng(5).uniform(-0.9, 0.9, (8, 2))
    heights = [1, -1, 2, -2, 1, 1, -1, 2]
    return Units(centers, np.full(8, 0.15), "gaussian")(X) @ heights


def test_orthogonal_least_squares_needs_fewer_centers(rng: np.random.Generator) -> None:
    X, X_test = rng.uniform(-1, 1, (500, 2)), rng.uniform(-1, 1, (1000, 2))

    def error(M: int, centers: str) -> float:
        network = RBFNRegressor(M, centers, width=0.15, alpha=1e-8, random_state=0)
        predicted = network.fit(X, bumps(X)).predict(X_test)
        return float(np.sqrt(np.mean((predicted - bumps(X_test)) ** 2)) / bumps(X_test).std())

    assert error(15, "ols") < 0.1 < error(60, "kmeans")


def test_diabetes() -> None:
    X, y = load_diabetes(return_X_y=True)
    X, y = X / X.std(axis=0), (y - y.mean()) / y.std()
    alphas, widths = np.logspace(-2, 2, 5).tolist(), [1, 2, 4, 8, 16]

    def score(estimator: Any, grid: dict[str, Any]) -> float:
        inner, outer = (KFold(4, shuffle=True, random_state=seed) for seed in (1, 0))
        return float(
            cross_val_score(GridSearchCV(estimator, grid, cv=inner), X, y, cv=outer).mean()
        )

    theirs = score(
        KernelRidge(kernel="rbf"), {"alpha": alphas, "gamma": [0.5 / r**2 for r in widths]}
    )
    ours = score(RBFNRegressor(50, random_state=0), {"alpha": alphas, "width": widths})
    assert ours >= theirs - 0.02
    assert score(RBFNRegressor(50, alpha="gcv", random_state=0), {"width": widths}) >= theirs - 0.02


def test_fine_tuning_lowers_the_validation_loss(rng: np.random.Generator) -> None:
    """Few units have to find their places."""
    X, X_test = rng.uniform(-1, 1, (1000, 2)), rng.uniform(-1, 1, (500, 2))
    options: dict[str, Any] = {"n_centers": 10, "random_state": 0}
    tuned = RBFNRegressor(fine_tune=60, **options).fit(X, np.sin(6 * X[:, 0] * X[:, 1]))
    losses = tuned.history_["val_loss"]
    assert tuned.history_.epochs[0] == 0
    assert len(losses) == tuned.n_iter_ + 1
    assert min(losses) < 0.6 * losses[0]
    plain = RBFNRegressor(**options).fit(X, np.sin(6 * X[:, 0] * X[:, 1]))
    y_test = np.sin(6 * X_test[:, 0] * X_test[:, 1])
    assert tuned.score(X_test, y_test) > plain.score(X_test, y_test) + 0.2


@pytest.mark.parametrize("output", ["ridge", "softmax"])
def test_fine_tuning_of_a_classifier(output: str) -> None:
    X, y = load_digits(return_X_y=True)
    options: dict[str, Any] = {"output": output, "alpha": 0.1, "random_state": 0}
    tuned = RBFNClassifier(30, fine_tune=20, **options).fit(X[:1200], y[:1200])
    plain = RBFNClassifier(30, **options).fit(X[:1200], y[:1200])
    assert min(tuned.history_["val_loss"]) < 0.9 * tuned.history_["val_loss"][0]
    assert tuned.score(X[1200:], y[1200:]) > plain.score(X[1200:], y[1200:])


def test_fine_tuning_keeps_the_best(rng: np.random.Generator) -> None:
    X, _ = draw(RBFNRegressor, rng)
    noise = rng.normal(size=80)  # nothing to be learnt
    tuned = RBFNRegressor(
        10, alpha=0.1, fine_tune=200, learning_rate=0.1, patience=3, random_state=0
    ).fit(X, noise)
    losses = tuned.history_["val_loss"]
    assert tuned.n_iter_ < 200
    assert tuned.n_iter_ == int(np.argmin(losses)) + 3


def test_fine_tuning_validates_with_other_rows(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = draw(RBFNRegressor, rng)
    given: list[Array] = []

    def tune(*arguments: Any, **options: Any) -> Any:
        given.extend(rows.X for rows in arguments if isinstance(rows, Rows))
        return rbf_tuning.tune(*arguments, **options)

    monkeypatch.setattr(rbf_network, "tune", tune)
    RBFNRegressor(10, fine_tune=1, validation_fraction=0.25, random_state=0).fit(X, y)
    assert [len(rows) for rows in given] == [60, 20]
    np.testing.assert_array_equal(np.sort(np.concatenate(given)[:, 0]), np.sort(X[:, 0]))


def test_partial_fit_after_fine_tuning(rng: np.random.Generator) -> None:
    X, y = draw(RBFNRegressor, rng)
    tuned = RBFNRegressor(10, fine_tune=5, random_state=0).fit(X[:60], y[:60])
    tuned.partial_fit(X[60:], y[60:])
    again = RBFNRegressor(centers=tuned.centers_, width=tuned.widths_).fit(X, y)
    np.testing.assert_allclose(tuned.predict(X), again.predict(X), rtol=1e-7)


def test_prediction_in_blocks(rng: np.random.Generator) -> None:
    X = rng.normal(size=(100_000, 20))
    fitted = RBFNRegressor(500, "random", random_state=0).fit(X[:2000], np.sin(X[:2000, 0]))
    tracemalloc.start()
    predicted = fitted.predict(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 200e6
    activations = rbf_kernel(X, fitted.centers_, gamma=0.5 / fitted.widths_[0] ** 2)
    expected = activations @ fitted.weights_ + fitted.intercept_
    np.testing.assert_allclose(predicted, expected[:, 0], atol=1e-9)


def test_few_new_rows_change_probabilities_little(rng: np.random.Generator) -> None:
    X = rng.normal(size=(600, 3))
    y = (X[:, 0] + rng.normal(size=600) > 0).astype(int)
    model = RBFNClassifier(20, random_state=0).fit(X[:500], y[:500])
    before = model.predict_proba(X)
    for row in range(500, 505):
        model.partial_fit(X[row : row + 1], y[row : row + 1])
    assert np.abs(model.predict_proba(X) - before).max() < 0.05
    assert model.temperature_ != 1.0


def test_what_is_not_finite_raises(rng: np.random.Generator) -> None:
    X = rng.normal(size=(60, 3))
    y = X[:, 0]
    with pytest.raises(ValueError, match="alpha: expected a finite number"):
        RBFNRegressor(5, alpha=np.inf).fit(X, y)
    for wrong in ({"width": 1e-160}, {}):
        scale = 1.0 if wrong else 1e160
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="expected"):
            RBFNRegressor(5, centers="random", random_state=0, **wrong).fit(X * scale, y)


def test_equal_rows_have_one_center() -> None:
    model = RBFNRegressor("cv").fit(np.ones((50, 2)), np.arange(50.0))
    assert model.n_centers_ == 1
    np.testing.assert_allclose(model.predict(np.ones((1, 2))), 24.5)


def test_extreme_scales() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = X[:, 0]
    with pytest.raises(ValueError, match="X: expected features, and widths, whose squares"):
        RBFNRegressor(8, random_state=0).fit(X * 1e-200, y)
    cubic = RBFNRegressor(8, kernel="cubic", random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="X: expected features whose outputs fit float64"):
        cubic.predict(X * 1e200)
    flat = RBFNRegressor(8, alpha=1e100, random_state=0).fit(X, y + 3)
    np.testing.assert_allclose(flat.predict(X), y.mean() + 3, rtol=1e-6)
    with pytest.raises(ValueError, match="sample_weight: expected numbers whose squares fit"):
        RBFNRegressor(8, alpha="gcv").fit(X, y, np.full(60, 1e300))
    with pytest.raises(TypeError, match="X: expected an array without masked elements"):
        RBFNRegressor(8).fit(np.ma.masked_array(X, X > 0), y)
