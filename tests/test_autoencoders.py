"""Autoencoders as estimators: scikit-learn's checks, what they are judged by, files, errors."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastrnn import io
from fastrnn.autoencoders import (
    Autoencoder,
    ContractiveAutoencoder,
    ConvolutionalAutoencoder,
    DenoisingAutoencoder,
    GeometryRegularizedAutoencoder,
    SequenceAutoencoder,
    SparseAutoencoder,
    VariationalAutoencoder,
)
from fastrnn.autoencoding.model import AutoencoderModel
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator

KINDS: list[Any] = [
    Autoencoder,
    DenoisingAutoencoder,
    SparseAutoencoder,
    ContractiveAutoencoder,
    VariationalAutoencoder,
    GeometryRegularizedAutoencoder,
    ConvolutionalAutoencoder,
    SequenceAutoencoder,
]
TINY: dict[str, Any] = {"n_components": 3, "epochs": 3, "random_state": 0}
SETTINGS: list[Any] = [
    Autoencoder(**TINY),
    Autoencoder(**TINY, hidden=(8, 5), tied=True, l1=1e-3, l2=1e-3),
    Autoencoder(**TINY, batch_norm=True, dropout=0.2, early_stopping=True, activation="elu"),
    Autoencoder(**TINY, loss="bce", hidden=(), code_activation="tanh"),
    DenoisingAutoencoder(**TINY, hidden=(8,)),
    DenoisingAutoencoder(**TINY, hidden=(8,), noise="masking", amount=0.3, tied=True),
    DenoisingAutoencoder(**TINY, hidden=(8,), noise="salt_and_pepper", amount=0.3),
    SparseAutoencoder(**TINY),
    SparseAutoencoder(**TINY, penalty="l1", code_activation="relu", loss="bce", tied=True),
    ContractiveAutoencoder(**TINY),
    ContractiveAutoencoder(**TINY, code_activation="tanh", tied=True),
    VariationalAutoencoder(**TINY, hidden=(8,)),
    VariationalAutoencoder(**TINY, hidden=(8,), loss="bce", beta=2.0, early_stopping=True),
    GeometryRegularizedAutoencoder(**TINY, hidden=(8,)),
    GeometryRegularizedAutoencoder(**TINY, hidden=(8,), embedding="pca", early_stopping=True),
    ConvolutionalAutoencoder(**TINY, hidden=(2,)),
    ConvolutionalAutoencoder(**TINY, hidden=(2, 3), image_shape=(3, 3), batch_norm=True),
    ConvolutionalAutoencoder(**TINY, hidden=(2,), image_shape=(1, 3, 3), loss="bce", dropout=0.1),
    SequenceAutoencoder(**TINY, hidden=(4,)),
    SequenceAutoencoder(**TINY, hidden=(4, 3), cell="lstm", bidirectional=True, batch_norm=True),
    SequenceAutoencoder(**TINY, hidden=(4,), cell="rnn", loss="bce", dropout=0.1),
]


def identify(value: Any) -> str | None:
    """Name an estimator in the name of a test by what is not as by default."""
    if type(value) not in KINDS:
        return None
    default = type(value)().get_params()
    changed = [
        f"{name}={each}"
        for name, each in value.get_params().items()
        if name not in TINY and each != default[name]
    ]
    return "-".join([type(value).__name__, *changed])


every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=identify)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(0)


@pytest.fixture(name="X")
def draw(rng: Rng) -> Array:
    """Rows of nine numbers in [0, 1], that two tell."""
    return (np.sin(rng.normal(size=(40, 2)) @ rng.normal(size=(2, 9))) + 1) / 2


def fresh(estimator: Any) -> Any:
    """Make another with the same arguments, as `clone` does."""
    return type(estimator)(**estimator.get_params())


def tiny(kind: Any, **options: Any) -> Any:
    """Make a small one."""
    hidden: tuple[int, ...] = () if kind is ContractiveAutoencoder else (4,)
    return kind(**{**TINY, "hidden": hidden, **options})


def squared_error(estimator: Any, X: Array, target: Array | None = None) -> float:
    return float(np.mean((estimator.reconstruct(X) - (X if target is None else target)) ** 2))


def same(estimator: Any, other: Any, X: Any) -> None:
    """Assert that two do the same, to the last bit."""
    for name in ("transform", "reconstruct", "predict", "score_samples", "decision_function"):
        found, expected = getattr(estimator, name)(X), getattr(other, name)(X)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    codes = other.transform(X)
    np.testing.assert_array_equal(
        estimator.inverse_transform(codes), other.inverse_transform(codes)
    )
    if isinstance(other, VariationalAutoencoder):
        draws: list[Any] = [
            lambda each: each.sample(5, random_state=0),
            lambda each: each.elbo(X, draws=2, random_state=0),
        ]
        for draw in draws:
            np.testing.assert_array_equal(draw(estimator), draw(other))
        if other.model_.likelihood is not None:
            assert estimator.noise_variance_ == other.noise_variance_
    if isinstance(other, ContractiveAutoencoder):
        np.testing.assert_array_equal(estimator.jacobian_norms(X), other.jacobian_norms(X))


# scikit-learn's checks.


def checks() -> pytest.MarkDecorator:
    try:
        from sklearn.utils.estimator_checks import parametrize_with_checks
        from sklearn.utils.validation import validate_data
    except ImportError:
        return pytest.mark.skip("scikit-learn 1.6 is not installed")
    assert validate_data
    short: dict[str, Any] = {"epochs": 5}
    small: dict[str, Any] = {**short, "hidden": (8,)}
    settings = [
        *(kind(**short) for kind in KINDS),
        Autoencoder(3, tied=True, code_activation="tanh", **small),
        Autoencoder(batch_norm=True, dropout=0.2, early_stopping=True, **small),
        DenoisingAutoencoder(noise="masking", **small),
        DenoisingAutoencoder(noise="salt_and_pepper", **small),
        SparseAutoencoder(penalty="l1", code_activation="linear", l2=1e-4, **short),
        ContractiveAutoencoder(code_activation="tanh", tied=True, **short),
        VariationalAutoencoder(early_stopping=True, beta=0.5, warm_up=0, **small),
        GeometryRegularizedAutoencoder(embedding="pca", **small),
        ConvolutionalAutoencoder(batch_norm=True, early_stopping=True, **small),
        SequenceAutoencoder(cell="lstm", bidirectional=True, **small),
    ]
    mark = parametrize_with_checks(settings)
    names, cases = mark.args
    # One check skips unless SciPy was started for arrays of other libraries, which no one promises
    # here.
    kept = [case for case in cases if "check_array_api_input" not in str(case)]
    return pytest.mark.parametrize(names, kept, **mark.kwargs)


@checks()
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# What they are judged by.


class Digits(NamedTuple):
    """Images of digits as rows, with pixels in [0, 1]."""

    train: Array
    test: Array
    train_labels: Array
    test_labels: Array


@functools.cache
def digits() -> Digits:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    return Digits(
        *train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    )


@functools.cache
def fitted(kind: Any, *arguments: Any, **options: Any) -> Any:
    """Fit to digits."""
    return kind(*arguments, **{"random_state": 0, **options}).fit(digits().train)


@pytest.mark.parametrize(("k", "goal"), [(2, 0.040), (8, 0.017), (16, 0.0085)])
def test_digits_are_reconstructed_better_than_by_pca(k: int, goal: float) -> None:
    test = digits().test
    from sklearn.decomposition import PCA

    pca = PCA(k).fit(digits().train)
    by_pca = np.mean((pca.inverse_transform(pca.transform(test)) - test) ** 2)
    errors = [squared_error(fitted(Autoencoder, k, random_state=seed), test) for seed in (0, 1)]
    assert np.mean(errors) < goal < by_pca


@pytest.mark.parametrize("clipped", [False, True])
def test_denoising(clipped: bool, rng: Rng) -> None:
    test = digits().test
    noisy = test + rng.normal(0, 0.3, test.shape)
    noisy = noisy.clip(0, 1) if clipped else noisy
    denoising = squared_error(fitted(DenoisingAutoencoder), noisy, test)
    plain = squared_error(fitted(Autoencoder, 64), noisy, test)
    assert denoising < 0.8 * plain
    assert denoising < 0.5 * np.mean((noisy - test) ** 2)


@pytest.mark.parametrize("rho", [0.05, 0.1])
def test_sparse_reaches_its_rho(rho: float) -> None:
    rates = fitted(SparseAutoencoder, rho=rho).transform(digits().train).mean(axis=0)
    np.testing.assert_allclose(rates, rho, atol=0.02)


def test_l1_makes_codes_sparse(X: Array) -> None:
    options: dict[str, Any] = {"penalty": "l1", "code_activation": "relu", "epochs": 60}
    loose, tight = (
        SparseAutoencoder(12, strength=strength, **options, random_state=0).fit(X).transform(X)
        for strength in (0.0, 0.1)
    )
    assert np.mean(tight == 0) > np.mean(loose == 0) + 0.1
    assert np.abs(tight).sum() < 0.5 * np.abs(loose).sum()


@functools.cache
def elbos(epochs: int) -> float:
    model = fitted(VariationalAutoencoder, epochs=epochs)
    return float(model.elbo(digits().test, draws=3, random_state=0).mean())


def test_evidence_lower_bound_rises() -> None:
    assert elbos(100) > elbos(20) > elbos(5)


@pytest.mark.parametrize(("loss", "k"), [("mse", 16), ("bce", 8)])
def test_latent_space_is_normal(loss: str, k: int, rng: Rng) -> None:
    model = fitted(VariationalAutoencoder, k, loss=loss)
    rows = digits().train
    encoded = model.model_.encoder.predict(model._scaled(rows)).astype(np.float64)
    means = model.transform(rows)
    np.testing.assert_array_equal(means, encoded[:, : model.n_components_])
    deviations = np.exp(encoded[:, model.n_components_ :] / 2)
    assert np.abs(means.mean(axis=0)).max() < 0.2
    variances = (means + deviations * rng.normal(size=means.shape)).var(axis=0)
    assert 0.7 < variances.min() <= variances.max() < 1.3


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_contractive_lowers_the_jacobian(activation: str) -> None:
    train, test = digits().train, digits().test
    strength = {"sigmoid": 3e-3, "tanh": 1e-3}[activation]
    loose, tight = (
        fitted(ContractiveAutoencoder, code_activation=activation, strength=s)
        for s in (0, strength)
    )
    for rows in (train, test):
        assert tight.jacobian_norms(rows).mean() < 0.7 * loose.jacobian_norms(rows).mean()
    assert squared_error(tight, test) < 1.1 * squared_error(loose, test)


def test_classifiers_accept_samples() -> None:
    train, labels = digits().train, digits().train_labels
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=10, max_iter=1000).fit(train, labels)
    assert classifier.score(digits().test, digits().test_labels) > 0.95
    model = fitted(VariationalAutoencoder, hidden=(256, 128), loss="bce")
    probabilities = classifier.predict_proba(model.sample(1000, random_state=0))
    assert probabilities.max(axis=1).mean() >= 0.8
    drawn = np.bincount(probabilities.argmax(axis=1), minlength=10)
    assert drawn.min() >= 20  # of all classes


# Details of single kinds.


@pytest.mark.parametrize("noise", ["gaussian", "masking", "salt_and_pepper"])
def test_noise_is_in_units_of_the_data(noise: str, rng: Rng, X: Array) -> None:
    rows = 5 + 3 * X + np.arange(9)  # features of different means
    model = tiny(DenoisingAutoencoder, noise=noise, amount=0.5).fit(rows)
    scaled = model._scaled(rows).astype(np.float64)
    noisy = model.model_.corruption.corrupted(scaled, rng)[0] * model.scale_ + model.mean_
    changed = ~np.isclose(noisy, rows, atol=1e-5)
    if noise == "gaussian":
        assert np.std(noisy - rows) == pytest.approx(0.5 * model.scale_, rel=0.1)
        return
    assert 0.4 < changed.mean() < 0.6
    values = [0.0] if noise == "masking" else [rows.min(), rows.max()]
    distances = np.abs(noisy[changed][:, np.newaxis] - values)
    np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-4)
    assert set(distances.argmin(axis=1)) == set(range(len(values)))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_jacobian_norms(activation: str, X: Array) -> None:
    model = ContractiveAutoencoder(5, code_activation=activation, epochs=20, random_state=0)
    model.fit(10 * X)
    step = 0.02 * model.scale_  # the network computes in float32
    columns = [
        (model.transform(10 * X + step * unit) - model.transform(10 * X - step * unit)) / 0.04
        for unit in np.eye(X.shape[1])
    ]
    expected = np.linalg.norm(np.stack(columns, axis=2), axis=(1, 2))
    np.testing.assert_allclose(model.jacobian_norms(10 * X), expected, rtol=5e-3)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_evidence_lower_bound_is_one(loss: str, rng: Rng) -> None:
    z = rng.normal(size=(300, 1))
    slopes = np.array([[2.0, -1.0, 0.5]])
    if loss == "mse":
        X = 5 + 3 * (z @ slopes) + rng.normal(0, 0.6, (300, 3))
    else:
        X = (rng.random((300, 3)) < 1 / (1 + np.exp(-2 * z @ slopes))).astype(np.float64)
    model = VariationalAutoencoder(1, (16,), loss=loss, random_state=0).fit(X)
    grid = np.linspace(-6, 6, 2001)
    decoded = model.inverse_transform(grid[:, np.newaxis])
    if loss == "mse":
        variance = model.noise_variance_
        squares = ((X[:, np.newaxis] - decoded) ** 2).sum(axis=2)
        likely = -0.5 * (squares / variance + 3 * np.log(2 * np.pi * variance))
    else:
        likely = X @ np.log(decoded).T + (1 - X) @ np.log1p(-decoded).T
    joint = np.exp(likely - grid**2 / 2) / np.sqrt(2 * np.pi)
    evidence = np.log(joint.sum(axis=1) * (grid[1] - grid[0]))
    # With another seed than that of the rows, whose latent variables it would draw.
    bound = model.elbo(X, draws=300, random_state=1)
    # In the mean over the draws it is below, and the posterior here is nearly normal.
    assert np.all(bound < evidence + 0.2)
    assert -0.3 < np.mean(bound - evidence) < 0
    fewer = model.elbo(X, random_state=2)
    assert abs(fewer.mean() - bound.mean()) < 0.3
    np.testing.assert_array_equal(fewer, model.elbo(X, random_state=2))
    assert not np.array_equal(fewer, model.elbo(X, random_state=3))


def test_samples_are_like_the_data(rng: Rng) -> None:
    X = rng.normal(size=(500, 1)) @ [[2.0, -1.0, 1.0]] + rng.normal([10, 0, -5], 0.3, (500, 3))
    model = VariationalAutoencoder(1, (16,), random_state=0).fit(X)
    drawn = model.sample(2000, random_state=0)
    assert drawn.shape == (2000, 3)
    np.testing.assert_allclose(drawn.mean(axis=0), X.mean(axis=0), atol=0.2)
    noise = model.noise_variance_ * np.eye(3)  # samples are means
    np.testing.assert_allclose(np.cov(drawn.T) + noise, np.cov(X.T), atol=0.5)
    np.testing.assert_array_equal(drawn, model.sample(2000, random_state=0))
    assert model.sample().shape == (1, 3)
    with pytest.raises(ValueError, match="n_samples: expected"):
        model.sample(0)
    with pytest.raises(ValueError, match="draws: expected"):
        model.elbo(X, draws=0)


def test_noise_variance(rng: Rng, X: Array) -> None:
    rows = rng.normal(size=(1000, 1)) @ [[8.0, -4.0, 4.0, 2.0]] + rng.normal(0, 0.5, (1000, 4))
    model = VariationalAutoencoder(1, (16,), random_state=0).fit(rows)
    assert model.noise_variance_ == pytest.approx(0.25, rel=0.1)
    model = VariationalAutoencoder(**TINY, loss="bce").fit(X)
    with pytest.raises(AttributeError, match="loss='mse'"):
        _ = model.noise_variance_


@pytest.mark.parametrize("embedding", ["diffusion", "pca", "array", "object"])
def test_geometry(embedding: Any, rng: Rng) -> None:
    angle = np.sort(rng.uniform(0, 5, 200))
    X = np.column_stack([np.cos(angle), np.sin(angle), rng.normal(0, 0.01, 200)])
    given: Any = embedding
    if embedding == "array":
        given = 7 + 3 * angle[:, np.newaxis]
    elif embedding == "object":

        class Angle:
            def fit_transform(self, X: Array) -> Array:
                return np.arange(len(X), dtype=np.float64)[:, np.newaxis]

        given = Angle()
    model = GeometryRegularizedAutoencoder(1, (32,), embedding=given, random_state=0).fit(X)
    codes, near = model.transform(X)[:, 0], model.embedding_[:, 0]
    assert near.mean() == pytest.approx(0, abs=1e-9)
    assert near.var() == pytest.approx(1)
    assert np.corrcoef(codes, near)[0, 1] > 0.95
    if embedding != "pca":
        assert abs(np.corrcoef(near, angle)[0, 1]) > 0.95
    loose = GeometryRegularizedAutoencoder(1, (32,), embedding=given, strength=0, random_state=0)
    distance = np.mean((loose.fit(X).transform(X)[:, 0] - near) ** 2)
    assert np.mean((codes - near) ** 2) < 0.5 * distance


def test_images_of_all_layouts(rng: Rng, tmp_path: Path) -> None:
    images = rng.uniform(size=(30, 2, 5, 3))
    model = tiny(ConvolutionalAutoencoder).fit(images)
    assert model.image_shape_ == (2, 5, 3)
    assert model.n_features_in_ == 30
    assert model.reconstruct(images).shape == images.shape
    assert model.inverse_transform(np.zeros((4, 3))).shape == (4, 2, 5, 3)
    rows = images.reshape(30, -1)
    by_rows = tiny(ConvolutionalAutoencoder, image_shape=(2, 5, 3)).fit(rows)
    np.testing.assert_array_equal(by_rows.transform(rows), model.transform(images))
    np.testing.assert_array_equal(
        by_rows.reconstruct(rows), model.reconstruct(images).reshape(30, -1)
    )
    np.testing.assert_array_equal(model.transform(images.tolist()), model.transform(images))
    np.testing.assert_array_equal(model.transform(list(images)), model.transform(images))
    gray = images[:, 0]
    flat = tiny(ConvolutionalAutoencoder).fit(gray)
    assert flat.image_shape_ == (1, 5, 3)
    assert flat.reconstruct(gray).shape == gray.shape
    np.testing.assert_array_equal(flat.transform(gray[:, np.newaxis]), flat.transform(gray))
    as_rows = gray.reshape(30, 15)
    shaped = tiny(ConvolutionalAutoencoder, image_shape=(5, 3)).fit(as_rows)
    assert shaped.image_shape_ == (1, 5, 3)
    np.testing.assert_array_equal(shaped.transform(as_rows), flat.transform(gray))
    signals = tiny(ConvolutionalAutoencoder).fit(rows)
    assert signals.image_shape_ == (1, 1, 30)
    assert signals.reconstruct(rows).shape == rows.shape
    for each, given in ((model, images), (flat, gray), (by_rows, rows)):
        each.save(tmp_path / "images.npz")
        same(ConvolutionalAutoencoder.load(tmp_path / "images.npz"), each, given)
    scores = -((images - model.reconstruct(images)) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(model.score_samples(images), scores, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"image_shape": (4, 2)}, (6, 9), "image_shape: expected a shape of 9 pixels"),
        ({"image_shape": (3, 0)}, (6, 9), "image_shape: expected"),
        ({"image_shape": (3, 2.5)}, (6, 9), "image_shape: expected"),
        ({"image_shape": (9,)}, (6, 9), "image_shape: expected"),
        ({"image_shape": 9}, (6, 9), "image_shape: expected"),
        ({"image_shape": "33"}, (6, 9), "image_shape: expected"),
        ({"kernel_size": 1}, (6, 9), "kernel_size: expected"),
        ({"kernel_size": 2.5}, (6, 9), "kernel_size: expected"),
        ({"hidden": ()}, (6, 9), "hidden: expected a tuple of at least 1"),
        ({}, (6, 1, 2, 3, 4), "X: expected"),
        ({}, (6,), "X: expected|Expected 2D array"),
        ({}, (6, 3, 0), r"X: expected|0 feature\(s\)"),
        ({}, (0, 3, 3), r"X: expected|0 sample\(s\)"),
    ],
)
def test_wrong_images(options: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tiny(ConvolutionalAutoencoder, **options).fit(np.ones(shape))


def test_images_of_another_shape(rng: Rng) -> None:
    model = tiny(ConvolutionalAutoencoder).fit(rng.uniform(size=(10, 4, 6)))
    for shape in ((2, 6, 4), (2, 2, 4, 6)):
        with pytest.raises(ValueError, match=r"X: expected images \(1, 4, 6\)"):
            model.transform(np.ones(shape))
    with pytest.raises(ValueError, match="24 features"):
        model.transform(np.ones((2, 23)))


def ragged(rng: Rng, F: int = 2, n: int = 12) -> list[Array]:
    return [rng.normal(size=(length, F)) for length in rng.integers(1, 9, n)]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_sequences_alone_and_together(cell: str, bidirectional: bool, rng: Rng) -> None:
    X = ragged(rng)
    model = tiny(SequenceAutoencoder, cell=cell, bidirectional=bidirectional).fit(X)
    codes, made, scores = model.transform(X), model.reconstruct(X), model.score_samples(X)
    assert model.steps_ == max(map(len, X))
    assert model.n_features_in_ == 2
    lengths = [len(x) for x in X]
    back = model.inverse_transform(codes, lengths)
    for i, x in enumerate(X):
        np.testing.assert_array_equal(model.transform([x])[0], codes[i])
        np.testing.assert_array_equal(model.reconstruct([x])[0], made[i])
        np.testing.assert_array_equal(back[i], made[i])
        np.testing.assert_array_equal(model.score_samples([x]), scores[i : i + 1])
        np.testing.assert_allclose(scores[i], -np.mean((x - made[i]) ** 2), rtol=1e-12)
        assert made[i].shape == x.shape
    assert model.inverse_transform(codes).shape == (12, model.steps_, 2)
    assert model.inverse_transform(codes, 3).shape == (12, 3, 2)
    assert model.inverse_transform(codes, 20).shape == (12, 20, 2)
    np.testing.assert_array_equal(model.transform([x.tolist() for x in X]), codes)
    objects = np.empty(12, object)
    objects[:] = X
    np.testing.assert_array_equal(model.transform(objects), codes)


def test_sequences_of_all_layouts(rng: Rng, tmp_path: Path) -> None:
    cube, table = rng.normal(size=(20, 6, 2)), rng.normal(size=(20, 6))
    model = tiny(SequenceAutoencoder).fit(cube)
    assert model.reconstruct(cube).shape == (20, 6, 2)
    assert model.reconstruct(cube[:, :4]).shape == (20, 4, 2)
    np.testing.assert_array_equal(model.transform(list(cube)), model.transform(cube))
    by_table = tiny(SequenceAutoencoder).fit(table)
    assert by_table.n_features_in_ == 6
    assert by_table.reconstruct(table).shape == (20, 6)
    assert by_table.inverse_transform(by_table.transform(table)).shape == (20, 6)
    as_cube = tiny(SequenceAutoencoder).fit(table[:, :, np.newaxis])
    np.testing.assert_array_equal(
        as_cube.transform(table[..., np.newaxis]), by_table.transform(table)
    )
    np.testing.assert_array_equal(as_cube.transform(table), by_table.transform(table))
    one = [x[: 2 + i % 4] for i, x in enumerate(table)]
    by_list = tiny(SequenceAutoencoder).fit(one)
    assert [len(x) for x in by_list.reconstruct(one)] == [len(x) for x in one]
    for each, given in ((model, cube), (by_table, table), (as_cube, table[..., np.newaxis])):
        each.save(tmp_path / "sequences.npz")
        same(SequenceAutoencoder.load(tmp_path / "sequences.npz"), each, given)
    by_list.save(tmp_path / "list.npz")
    loaded = SequenceAutoencoder.load(tmp_path / "list.npz")
    np.testing.assert_array_equal(loaded.transform(one), by_list.transform(one))
    early = tiny(SequenceAutoencoder, early_stopping=True).fit(one)
    assert early.transform(one).shape == (20, 3)


def test_wrong_sequences(rng: Rng) -> None:
    X = ragged(rng)
    model = tiny(SequenceAutoencoder).fit(X)
    codes = model.transform(X)
    calls: list[Any] = [
        (lambda: model.transform(ragged(rng, 3)), "X: expected sequences of 2 features"),
        (lambda: model.transform(np.ones((4, 5, 3))), "X: expected sequences of 2 features"),
        (lambda: model.transform(np.ones((4, 5))), r"X: expected sequences \(n, T, 2\)"),
        (lambda: model.transform([X[0], np.ones((3, 1))]), "X: expected sequences of equally many"),
        (lambda: model.transform([X[0], X[0][:0]]), "X: expected sequences of at least 1 step"),
        (lambda: model.transform([]), "X: expected|0 sample"),
        (lambda: model.transform(np.ones((2, 3, 4, 2))), "X: expected"),
        (lambda: model.transform([X[0], np.full((3, 2), np.nan)]), "X: expected finite"),
        (lambda: model.fit([X[0], np.full((3, 2), np.inf)]), "X: expected finite"),
        (lambda: model.inverse_transform(codes, [1, 2]), r"lengths: expected .*\(12,\)"),
        (lambda: model.inverse_transform(codes, 0), "lengths: expected integers > 0"),
        (lambda: model.inverse_transform(codes, 2.5), "lengths: expected"),
        (lambda: model.inverse_transform(codes, True), "lengths: expected"),
        (lambda: tiny(SequenceAutoencoder, cell="elman").fit(X), "cell: expected"),
        (lambda: tiny(SequenceAutoencoder, activation="relu").fit(X), "activation: expected"),
        (lambda: tiny(SequenceAutoencoder, bidirectional=2).fit(X), "bidirectional: expected"),
        (lambda: tiny(SequenceAutoencoder, hidden=()).fit(X), "hidden: expected"),
    ]
    for call, message in calls:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    np.testing.assert_array_equal(model.transform(X), codes)


# What all do.


@every_setting
def test_identities(setting: Any, X: Array) -> None:
    model = fresh(setting)
    codes = model.fit_transform(X)
    made = model.reconstruct(X)
    assert codes.shape == (40, 3)
    assert made.shape == X.shape
    assert codes.dtype == made.dtype == np.float64
    np.testing.assert_array_equal(model.transform(X), codes)
    np.testing.assert_array_equal(model.inverse_transform(codes), made)
    if model.loss == "mse":
        expected = -((X - made) ** 2).mean(axis=1)
    else:
        assert 0 <= made.min() <= made.max() <= 1
        expected = (X * np.log(made) + (1 - X) * np.log(1 - made)).mean(axis=1)
    np.testing.assert_allclose(model.score_samples(X), expected, rtol=1e-9)
    assert model.score(X) == pytest.approx(expected.mean())
    np.testing.assert_array_equal(
        model.decision_function(X), model.score_samples(X) - model.offset_
    )
    labels = model.predict(X)
    assert set(labels.tolist()) == {-1, 1}
    assert np.sum(labels == -1) == 4
    np.testing.assert_array_equal(labels == -1, model.decision_function(X) < 0)
    np.testing.assert_array_equal(fresh(setting).fit_predict(X), labels)
    assert len(model.history_["loss"]) == model.n_iter_ <= 3
    assert model.n_components_ == 3
    # Rows on their own are as among others.
    np.testing.assert_array_equal(model.transform(X[7:8]), codes[7:8])
    assert model.fit(X) is model


@every_setting
def test_random_state(setting: Any, X: Array) -> None:
    first, again = fresh(setting).fit(X), fresh(setting).fit(X)
    same(again, first, X)
    same(first.fit(X), again, X)
    other = fresh(setting).set_params(random_state=1).fit(X)
    assert not np.array_equal(other.transform(X), first.transform(X))


@pytest.mark.parametrize("source", [np.random.RandomState, np.random.default_rng])
def test_kinds_of_random_state(source: Any, X: Array) -> None:
    models = [tiny(VariationalAutoencoder, random_state=source(5)).fit(X) for _ in range(2)]
    same(models[0], models[1], X)
    model = models[0]
    np.testing.assert_array_equal(
        model.sample(3, random_state=source(1)), model.sample(3, random_state=source(1))
    )
    tiny(Autoencoder, random_state=None).fit(X)
    for wrong in ("0", -1, 1.5):
        with pytest.raises((TypeError, ValueError), match="random_state: expected"):
            tiny(Autoencoder, random_state=wrong).fit(X)


@every_kind
def test_kinds_of_input(kind: Any, X: Array) -> None:
    whole = np.round(10 * X)
    model = tiny(kind).fit(whole)
    codes = model.transform(whole)
    locked = whole.copy()
    locked.flags.writeable = False
    for given in (
        whole.astype(int),
        whole.tolist(),
        np.asfortranarray(whole),
        locked,
        whole[::-1][::-1],
    ):
        same(tiny(kind).fit(given), model, whole)
        found = model.transform(given)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, codes)
    narrow = whole.astype(np.float32)
    assert model.transform(narrow).dtype == np.float32
    made = model.reconstruct(narrow)
    np.testing.assert_array_equal(model.inverse_transform(model.transform(narrow)), made)
    np.testing.assert_allclose(model.transform(narrow), codes, rtol=1e-4, atol=1e-5)
    model = tiny(kind).fit(narrow)
    np.testing.assert_allclose(model.transform(whole), codes, rtol=1e-2, atol=1e-3)


@every_kind
def test_tables_of_pandas(kind: Any, X: Array) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("sklearn")
    table = pandas.DataFrame(X, columns=[f"column {i}" for i in range(9)], index=range(100, 140))
    model = tiny(kind).fit(table)
    np.testing.assert_array_equal(model.transform(table), tiny(kind).fit(X).transform(X))
    assert list(model.feature_names_in_) == list(table.columns)
    names = [f"{kind.__name__.lower()}{i}" for i in range(3)]
    assert list(model.get_feature_names_out()) == names
    found = model.set_output(transform="pandas").transform(table)
    assert list(found.columns) == names
    assert list(found.index) == list(table.index)
    with pytest.raises(ValueError, match="feature names"):
        model.transform(table[table.columns[::-1]])


def test_output_of_pandas_for_other_input(rng: Rng) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("sklearn")
    for kind, given in (
        (SequenceAutoencoder, ragged(rng)),
        (SequenceAutoencoder, rng.normal(size=(12, 4, 2))),
        (ConvolutionalAutoencoder, rng.normal(size=(12, 4, 5))),
    ):
        found = tiny(kind).set_output(transform="pandas").fit_transform(given)
        assert found.shape == (12, 3)


@pytest.mark.parametrize("contamination", [0.0, 0.25, 0.5])
def test_contamination(contamination: float, X: Array) -> None:
    model = tiny(Autoencoder, contamination=contamination).fit(X)
    assert np.mean(model.predict(X) == -1) == contamination
    assert model.predict(X[:1] + 100) == -1


@every_setting
def test_parameters_set_after_a_fit_wait_for_the_next(setting: Any, X: Array) -> None:
    model, expected = fresh(setting).fit(X), fresh(setting).fit(X)
    options: dict[str, Any] = {
        "n_components": 2,
        "hidden": (3,),
        "loss": "bce" if setting.loss == "mse" else "mse",
        "contamination": 0.4,
    }
    special = {
        "beta": 3.0,
        "rho": 0.3,
        "strength": 0.5,
        "noise": "masking",
        "image_shape": (9, 1),
        "cell": "lstm",
        "penalty": "l1",
        "embedding": "pca",
    }
    options |= {name: value for name, value in special.items() if hasattr(model, name)}
    model.set_params(**options)
    same(model, expected, X)
    assert list(model.get_feature_names_out()) == list(expected.get_feature_names_out())


@every_setting
def test_copies(setting: Any, X: Array) -> None:
    model = fresh(setting).fit(X)
    same(pickle.loads(pickle.dumps(model)), model, X)
    same(copy.deepcopy(model), model, X)
    again = pickle.loads(pickle.dumps(fresh(setting)))
    same(again.fit(X), model, X)


@every_setting
def test_clones(setting: Any, X: Array) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone

    model = fresh(setting).fit(X)
    copied = clone(model)
    assert repr(copied) == repr(setting)
    assert copied.get_params() == setting.get_params()
    assert not any(name.endswith("_") and not name.startswith("_") for name in vars(copied))
    same(copied.fit(X), model, X)


@every_kind
def test_names_of_parameters(kind: Any) -> None:
    names = list(kind().get_params())
    assert sorted(names) == sorted(inspect.signature(kind).parameters)
    assert not [name for name in names if name.startswith("_") or name.endswith("_")]
    first = ["n_components", "hidden", "activation", "loss", "epochs"]
    assert list(inspect.signature(kind).parameters)[:5] == first
    for name in names:
        assert re.search(rf"^    .*\b{name}\b.*", kind.__doc__, re.MULTILINE), name


def test_pipeline_and_search(rng: Rng) -> None:
    pytest.importorskip("sklearn")
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = rng.normal(size=(120, 2)) @ rng.normal(size=(2, 5)) * [1, 10, 100, 1, 1]
    pipeline = make_pipeline(StandardScaler(), Autoencoder(2, (16,), random_state=0))
    codes = pipeline.fit_transform(X)
    assert codes.shape == (120, 2)
    assert np.mean((pipeline.inverse_transform(codes) - X) ** 2 / X.var(axis=0)) < 0.05
    assert set(pipeline.predict(X)) == {-1, 1}
    search = GridSearchCV(
        Autoencoder(hidden=(16,), random_state=0),
        {"n_components": np.arange(1, 3)},
        cv=2,
        error_score="raise",
    ).fit(X / X.std(axis=0))
    assert search.best_params_ == {"n_components": 2}


# Files.


@every_setting
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_save_and_load(setting: Any, suffix: str, tmp_path: Path, X: Array) -> None:
    model = fresh(setting).fit(X)
    path = tmp_path / f"autoencoder.{suffix}"
    model.save(path)
    loaded = type(model).load(path)
    same(loaded, model, X)
    assert loaded.get_params() == model.get_params()
    assert dict(loaded.history_) == dict(model.history_)
    assert loaded.n_iter_ == model.n_iter_
    assert loaded.n_components_ == model.n_components_
    assert loaded.n_features_in_ == model.n_features_in_
    same(loaded.fit(X), model, X)
    # The network is as it was fit, and the parameters as they are.
    model.set_params(n_components=2, hidden=(3, 3), contamination=0.3)
    model.save(path)
    loaded = type(model).load(path)
    same(loaded, model, X)
    assert loaded.get_params() == model.get_params()


@pytest.mark.parametrize(
    "options",
    [
        {"n_components": np.int64(2), "learning_rate": np.float32(1e-3)},
        {"hidden": (np.int64(4),)},
        {"hidden": np.array([4, 3])},
        {"hidden": [4, 3]},
        {"hidden": 4},
        {"random_state": np.random.default_rng(0)},
        {"tied": np.bool_(True)},
    ],
    ids=str,
)
def test_parameters_that_json_does_not_hold(
    options: dict[str, Any], tmp_path: Path, X: Array
) -> None:
    model = tiny(Autoencoder, **options).fit(X)
    model.save(tmp_path / "autoencoder.npz")
    loaded = Autoencoder.load(tmp_path / "autoencoder.npz")
    same(loaded, model, X)
    loaded.fit(X)


class Zeros:
    """An embedding."""

    def fit_transform(self, X: Array) -> Array:
        return np.zeros((len(X), 3))


@pytest.mark.parametrize("kind", ["array", "list", "object"])
def test_embeddings_in_files(kind: str, tmp_path: Path, X: Array) -> None:
    array = np.arange(120.0).reshape(40, 3)
    embedding: Any = {"array": array, "list": array.tolist(), "object": Zeros()}[kind]
    model = tiny(GeometryRegularizedAutoencoder, embedding=embedding).fit(X)
    model.save(tmp_path / "autoencoder.npz")
    loaded = GeometryRegularizedAutoencoder.load(tmp_path / "autoencoder.npz")
    same(loaded, model, X)
    if kind != "object":
        same(loaded.fit(X), model, X)


def test_feature_names_in_files(tmp_path: Path, X: Array) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("sklearn")
    table = pandas.DataFrame(X, columns=list("abcdefghi"))
    model = tiny(Autoencoder).fit(table)
    model.save(tmp_path / "autoencoder.npz")
    loaded = Autoencoder.load(tmp_path / "autoencoder.npz")
    same(loaded, model, table)
    assert list(loaded.feature_names_in_) == list("abcdefghi")


@every_kind
def test_wrong_files(kind: Any, tmp_path: Path, X: Array) -> None:
    path = tmp_path / "autoencoder.npz"
    model = tiny(kind).fit(X)
    model.save(path)
    other = Autoencoder if kind is not Autoencoder else SparseAutoencoder
    with pytest.raises(ValueError, match=rf"expected a file that {other.__name__}\.save wrote"):
        other.load(path)
    arrays, metadata = io.load_arrays(path)
    weight = next(
        name for name in arrays if name.startswith("network/encoder") and "weight" in name
    )
    changes: list[dict[str, Any]] = [
        {weight: arrays[weight][:-1]},
        {weight: np.full_like(arrays[weight], np.nan)},
        {"network/more": np.zeros(3)},
    ]
    for change in changes:
        io.save_arrays(path, {**arrays, **change}, metadata)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            kind.load(path)
    io.save_arrays(path, {name: a for name, a in arrays.items() if name != weight}, metadata)
    with pytest.raises(ValueError, match="expected what save writes"):
        kind.load(path)
    for wrong in ("{}", "[]", "no JSON", '{"mean_": 1}'):
        for part in ("learnt", "fitted", "parameters"):
            if wrong == "{}" and part == "parameters":
                continue  # nothing to set
            io.save_arrays(path, arrays, {**metadata, part: wrong})
            with pytest.raises(ValueError, match="expected what save writes"):
                kind.load(path)
    io.save_arrays(path, {"a": X})
    with pytest.raises(ValueError, match="expected a file that"):
        kind.load(path)
    with pytest.raises(ValueError, match=r"\.txt"):
        model.save(tmp_path / "autoencoder.txt")


# Wrong calls.


@every_kind
def test_not_fitted(kind: Any, tmp_path: Path, X: Array) -> None:
    model = tiny(kind)
    calls: list[Any] = [
        *(getattr(model, name) for name in ("transform", "reconstruct", "predict", "score")),
        *(getattr(model, name) for name in ("score_samples", "decision_function")),
        lambda X: model.inverse_transform(X[:, :3]),
        lambda X: model.save(tmp_path / "autoencoder.npz"),
        lambda X: model.get_feature_names_out(),
        model.plot_latent,
        model.plot_reconstructions,
    ]
    if kind is VariationalAutoencoder:
        calls += [lambda X: model.sample(), model.elbo, lambda X: model.noise_variance_]
    if kind is ContractiveAutoencoder:
        calls.append(model.jacobian_norms)
    for call in calls:
        with pytest.raises(ValueError, match="not fitted"):
            call(X)


COMMON: list[dict[str, Any]] = [
    {"n_components": 0},
    {"n_components": 2.5},
    {"n_components": True},
    {"n_components": None},
    {"hidden": (0,)},
    {"hidden": "8"},
    {"hidden": None},
    {"activation": "softmax"},
    {"code_activation": "swish"},
    {"loss": "mae"},
    {"epochs": 0},
    {"epochs": 1.5},
    {"batch_size": 0},
    {"learning_rate": -1.0},
    {"l1": -1.0},
    {"l2": np.nan},
    {"dropout": 1.5},
    {"dropout": -0.1},
    {"batch_norm": "yes"},
    {"early_stopping": 2},
    {"validation_fraction": 0.0, "early_stopping": True},
    {"validation_fraction": 1.0, "early_stopping": True},
    {"patience": 0, "early_stopping": True},
    {"contamination": 0.6},
    {"contamination": -0.1},
    {"contamination": "auto"},
]
WRONG: list[tuple[Any, dict[str, Any]]] = [
    *((Autoencoder, options) for options in COMMON),
    (Autoencoder, {"tied": 1}),
    (Autoencoder, {"verbose": "yes"}),
    (DenoisingAutoencoder, {"noise": "blur"}),
    (DenoisingAutoencoder, {"amount": -0.1}),
    (DenoisingAutoencoder, {"amount": 1.1, "noise": "masking"}),
    (DenoisingAutoencoder, {"amount": 1.1, "noise": "salt_and_pepper"}),
    (SparseAutoencoder, {"penalty": "l2"}),
    (SparseAutoencoder, {"rho": 0.0}),
    (SparseAutoencoder, {"rho": 1.0}),
    (SparseAutoencoder, {"strength": -1.0}),
    (SparseAutoencoder, {"code_activation": "tanh"}),
    (SparseAutoencoder, {"code_activation": "linear"}),
    (ContractiveAutoencoder, {"hidden": (4,)}),
    (ContractiveAutoencoder, {"code_activation": "relu"}),
    (ContractiveAutoencoder, {"strength": -1.0}),
    (VariationalAutoencoder, {"beta": -1.0}),
    (VariationalAutoencoder, {"warm_up": -1}),
    (VariationalAutoencoder, {"warm_up": 1.5}),
    (VariationalAutoencoder, {"code_activation": "sigmoid"}),
    (GeometryRegularizedAutoencoder, {"embedding": "tsne"}),
    (GeometryRegularizedAutoencoder, {"embedding": np.zeros((39, 3))}),
    (GeometryRegularizedAutoencoder, {"embedding": np.zeros((40, 2))}),
    (GeometryRegularizedAutoencoder, {"embedding": np.full((40, 3), np.nan)}),
    (GeometryRegularizedAutoencoder, {"embedding": None}),
    (GeometryRegularizedAutoencoder, {"strength": -1.0}),
    (GeometryRegularizedAutoencoder, {"code_activation": "tanh"}),
]


@pytest.mark.parametrize(("kind", "options"), WRONG, ids=str)
def test_wrong_parameters(kind: Any, options: dict[str, Any], X: Array) -> None:
    model = tiny(kind).fit(X)
    expected = tiny(kind).fit(X)
    before = dict(vars(model))
    name = next(iter(options))
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
        model.set_params(**options).fit(X)
    # What failed has left what was learnt.
    after = {key: value for key, value in vars(model).items() if key not in options}
    assert after == {key: value for key, value in before.items() if key not in options}
    same(model, expected, X)
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
        kind(**{**TINY, **options}).fit(X)


@every_kind
def test_wrong_data(kind: Any, X: Array) -> None:
    model = tiny(kind).fit(X)
    nan, infinite = X.copy(), X.copy()
    nan[0, 0], infinite[0, 0] = np.nan, np.inf
    calls: list[Any] = [
        (lambda: model.fit(nan), "NaN"),
        (lambda: model.transform(nan), "NaN"),
        (lambda: model.score_samples(infinite), "infinity"),
        (lambda: model.transform(X[:, :5]), "X has 5 features"),
        (lambda: model.transform(X[0]), "X: expected|Expected 2D array"),
        (lambda: model.fit(X[:0]), "0 sample"),
        (lambda: model.fit(np.ones((4, 0))), r"0 feature\(s\)|X: expected"),
        (lambda: model.fit(np.full((5, 9), "a")), "X: expected|could not convert|dtype"),
        (lambda: model.fit(np.ones((5, 9), complex)), "X: expected|[Cc]omplex"),
        (lambda: model.fit(None), "X: expected|None|Expected 2D"),
        (lambda: model.fit(X * 1e300), "X: expected numbers"),
        (lambda: model.transform(X * 1e60), "X: expected numbers"),
        (lambda: model.set_params(loss="bce").fit(2 * X), r"X: expected numbers in \[0, 1\]"),
        (lambda: model.fit(-X), r"X: expected numbers in \[0, 1\]"),
    ]
    for call, message in calls:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    same(model, tiny(kind).fit(X), X)
    for codes in (np.zeros((2, 4)), np.zeros(3), np.full((2, 3), np.nan), np.full((2, 3), "a")):
        with pytest.raises((TypeError, ValueError), match=r"X: expected finite codes \(n, 3\)"):
            model.inverse_transform(codes)


def test_sparse_matrices_raise(X: Array) -> None:
    scipy = pytest.importorskip("scipy.sparse")
    model = tiny(Autoencoder).fit(X)
    for call in (model.fit, model.transform, model.inverse_transform):
        with pytest.raises((TypeError, ValueError), match=r"[Ss]parse|X: expected"):
            call(scipy.csr_matrix(X))


@every_kind
def test_what_is_interrupted_changes_nothing(
    kind: Any, X: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = tiny(kind).fit(X), tiny(kind)

    def interrupted(self: Any, *args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderModel, "_update", interrupted)
        for each in (model, other):
            before = dict(vars(each))
            with pytest.raises(KeyboardInterrupt):
                each.fit(3 * X[:, :4])
            assert vars(each) == before
    same(model, other.fit(X), X)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("learning_rate", [1e6, 1e30, np.inf])
def test_huge_learning_rate(learning_rate: float, X: Array) -> None:
    model = tiny(Autoencoder, hidden=(8, 8), activation="relu").fit(X)
    codes = model.transform(X)
    with pytest.raises((ValueError, ArithmeticError), match="learning_rate"):
        model.set_params(learning_rate=learning_rate).fit(X)
    np.testing.assert_array_equal(model.transform(X), codes)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Autoencoder, "l1"),
        (Autoencoder, "l2"),
        (DenoisingAutoencoder, "amount"),
        (SparseAutoencoder, "strength"),
        (ContractiveAutoencoder, "strength"),
        (VariationalAutoencoder, "beta"),
        (GeometryRegularizedAutoencoder, "strength"),
    ],
)
def test_infinite_parameters(kind: Any, name: str, X: Array) -> None:
    with pytest.raises((ValueError, ArithmeticError), match=f"{name}|learning_rate|finite"):
        tiny(kind, **{name: np.inf}).fit(X)


# Few rows, equal rows, more components than features.


@every_kind
def test_small_data(kind: Any, X: Array) -> None:
    for rows in (X[:1], X[:2], np.repeat(X[:1], 5, axis=0), np.zeros((5, 9)), np.full((7, 9), 1e9)):
        model = tiny(kind).fit(rows)
        assert np.isfinite(model.transform(rows)).all()
        assert np.isfinite(model.score_samples(rows)).all()
    constant = tiny(kind, epochs=10).fit(np.full((5, 9), 7.0))
    assert constant.scale_ == 1
    np.testing.assert_allclose(constant.reconstruct(np.full((2, 9), 7.0)), 7, atol=1.5)
    wide = tiny(kind, n_components=20).fit(X)
    assert wide.transform(X).shape == (40, 20)
    assert tiny(kind).fit(X[:, :1]).transform(X[:, :1]).shape == (40, 3)
    normed = kind(**{**TINY, "hidden": tiny(kind).hidden}, batch_norm=True, batch_size=13).fit(X)
    assert np.isfinite(normed.transform(X)).all()  # the last batch has one row
    with pytest.raises(ValueError, match=r"validation_fraction: expected|1 sample"):
        tiny(kind, early_stopping=True).fit(X[:1])


def test_units_do_not_matter(X: Array) -> None:
    model, scaled = tiny(Autoencoder).fit(X), tiny(Autoencoder).fit(1000 * X - 500)
    found = (scaled.reconstruct(1000 * X - 500) + 500) / 1000
    np.testing.assert_allclose(found, model.reconstruct(X), atol=1e-3)
    assert model.scale_ == pytest.approx(np.sqrt(X.var(axis=0).mean()))
    np.testing.assert_allclose(model.mean_, X.mean(axis=0))


# Early stopping, progress, pictures.


@pytest.mark.parametrize("kind", [Autoencoder, VariationalAutoencoder, SequenceAutoencoder])
def test_early_stopping(kind: Any, rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    X = rng.normal(size=(60, 9))  # noise, which cannot be learnt
    seen: dict[str, Any] = {}
    plain = AutoencoderModel.fit

    def watched(self: Any, x: Any, y: Any, **options: Any) -> Any:
        seen.update(options, x=x)
        return plain(self, x, y, **options)

    monkeypatch.setattr(AutoencoderModel, "fit", watched)
    model = kind(4, (32,), epochs=150, early_stopping=True, patience=3, random_state=0)
    model.set_params(validation_fraction=0.25, learning_rate=0.01).fit(X)
    held, targets = seen["validation_data"]
    assert len(held) == 15
    assert len(seen["x"]) == 45
    rows = {tuple(row) for row in np.concatenate([seen["x"], held]).reshape(60, -1).tolist()}
    assert rows == {tuple(row) for row in model._scaled(model._read(X)).reshape(60, -1).tolist()}
    losses = model.history_["val_loss"]
    assert model.n_iter_ == len(losses) < 150
    assert int(np.argmin(losses)) == len(losses) - 1 - 3
    found = model.model_.evaluate(held, targets)["loss"]
    assert found == pytest.approx(min(losses), rel=1e-6)
    assert found < losses[-1]


@every_kind
def test_progress(kind: Any, X: Array, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = tiny(kind).fit(X)
    assert capsys.readouterr() == ("", "")
    shown = tiny(kind, verbose=1).fit(X)
    captured = capsys.readouterr()
    assert not captured.out
    assert "loss" in captured.err
    same(shown, quiet, X)


def is_picture(path: Path) -> bool:
    content = path.read_bytes()
    path.unlink()
    return content.startswith(b"\x89PNG") and len(content) > 2000


@every_kind
def test_pictures(kind: Any, tmp_path: Path, X: Array) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    model = tiny(kind).fit(X)
    for y in (None, np.arange(40) % 3, np.linspace(0, 1, 40), ["a", "b"] * 20):
        assert model.plot_latent(X, y).axes[0].get_xlabel() == "first principal axis"
    figure = model.plot_latent(X, path=path)
    assert is_picture(path)
    assert model.plot_latent(X, ax=figure.axes[0]) is figure
    for k in (1, 2):
        figure = tiny(kind, n_components=k).fit(X).plot_latent(X)
        offsets = np.asarray(figure.axes[0].collections[0].get_offsets())
        assert np.any(offsets[:, 0])
        assert np.any(offsets[:, 1]) == (k == 2)
    for rows in (X[:3], X.tolist()):
        figure = model.plot_reconstructions(rows, limit=4)
        columns = min(len(rows), 4)
        assert len(figure.axes) == columns
    model.plot_reconstructions(X, path, limit=2)
    assert is_picture(path)
    with pytest.raises(ValueError, match="y: expected"):
        model.plot_latent(X, [1, 2])
    with pytest.raises((TypeError, ValueError), match="limit: expected"):
        model.plot_reconstructions(X, limit=0)


def test_pictures_of_images_and_curves(tmp_path: Path, rng: Rng) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    X = rng.uniform(size=(12, 16))
    model = tiny(Autoencoder).fit(X)
    figure = model.plot_reconstructions(X, path)
    assert is_picture(path)
    assert [len(axes.images) for axes in figure.axes] == [1] * 20
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, X[0].reshape(4, 4))
    figure = model.plot_reconstructions(X, image_shape=(2, 8))
    assert figure.axes[0].images[0].get_array().shape == (2, 8)
    for wrong in ((3, 5), (0, 16), (4, 4.5)):
        with pytest.raises((TypeError, ValueError), match="image_shape: expected"):
            model.plot_reconstructions(X, image_shape=wrong)
    figure = tiny(Autoencoder).fit(X[:, :9]).plot_reconstructions(X[:, :9])
    assert [len(axes.lines) for axes in figure.axes] == [2] * 10
    for channels, shape in ((1, (6, 5)), (2, (6, 5)), (3, (6, 5, 3))):
        images = rng.uniform(size=(5, channels, 6, 5))
        figure = tiny(ConvolutionalAutoencoder).fit(images).plot_reconstructions(images, path)
        assert is_picture(path)
        assert figure.axes[0].images[0].get_array().shape == shape
    sequences = ragged(rng)
    figure = tiny(SequenceAutoencoder).fit(sequences).plot_reconstructions(sequences, path)
    assert is_picture(path)
    assert len(figure.axes[0].lines) == 2


# Without scikit-learn.

WITHOUT_SKLEARN = """
import sys
sys.modules["sklearn"] = None
import numpy as np
from fastrnn import autoencoders
rng = np.random.default_rng(0)
X = (np.sin(rng.normal(size=(40, 2)) @ rng.normal(size=(2, 9))) + 1) / 2
for name in autoencoders.__all__:
    hidden = () if name == "ContractiveAutoencoder" else (4,)
    kind = getattr(autoencoders, name)
    model = kind(3, hidden, epochs=3, random_state=0).fit(X)
    codes = model.transform(X)
    assert np.array_equal(model.inverse_transform(codes), model.reconstruct(X))
    assert np.array_equal(kind(**model.get_params()).fit_transform(X), codes)
    assert np.array_equal(kind(**model.get_params()).fit_predict(X), model.predict(X))
    assert model.get_params()["n_components"] == 3
    assert kind().set_params(epochs=7).epochs == 7
    assert name in repr(model)
    assert model.transform(X.astype(np.float32)).dtype == np.float32
    print(name, repr(float(codes.sum())), int((model.predict(X) == -1).sum()))
    for call, message in (
        (lambda: kind().transform(X), "not fitted"),
        (lambda: model.transform(X[:, :4]), "X has 4 features"),
        (lambda: model.transform(X[0]), "X: expected"),
        (lambda: model.fit(X[:0]), "0 sample"),
        (lambda: model.fit(np.where(X > 0.5, np.nan, X)), "NaN"),
    ):
        try:
            call()
        except ValueError as error:
            assert message in str(error), (message, error)
        else:
            raise AssertionError(message)
"""


def test_without_scikit_learn(X: Array) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_SKLEARN],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert sorted(name for name, _, _ in lines) == sorted(kind.__name__ for kind in KINDS)
    for name, total, outliers in lines:
        kind = next(kind for kind in KINDS if kind.__name__ == name)
        assert tiny(kind).fit(X).transform(X).sum() == pytest.approx(float(total), rel=1e-4)
        assert outliers == "4"


# What strangers found.


def test_bce_wants_numbers_between_0_and_1_in_every_call() -> None:
    X = np.random.default_rng(0).random((40, 8))
    model = VariationalAutoencoder(2, loss="bce", epochs=2, random_state=0).fit(X)
    for method in (model.transform, model.reconstruct, model.score_samples, model.predict):
        with pytest.raises(ValueError, match=r"X: expected numbers in \[0, 1\] for loss='bce'"):
            method(X + 5)
    with pytest.raises(ValueError, match=r"X: expected numbers in \[0, 1\]"):
        model.elbo(-X)


def test_other_threads_see_a_fit_only_when_it_is_done(X: Array) -> None:
    model = SequenceAutoencoder(2, hidden=(8,), epochs=15, random_state=0).fit(X)
    before = model.transform(X)
    model.set_params(random_state=1)
    fitting = threading.Thread(target=model.fit, args=(X,))
    fitting.start()
    seen = []
    while fitting.is_alive():
        seen.append(model.transform(X))
    fitting.join()
    after = model.transform(X)
    assert not np.array_equal(before, after)
    assert seen
    for codes in seen:
        assert np.array_equal(codes, before) or np.array_equal(codes, after)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e140])
def test_scales_do_not_matter(scale: float, X: Array) -> None:
    usual = tiny(Autoencoder).fit(X).reconstruct(X)
    found = tiny(Autoencoder).fit(X * scale).reconstruct(X * scale)
    np.testing.assert_allclose(found / scale, usual, atol=1e-3)


def test_embeddings_are_left_alone(X: Array) -> None:
    class Embedding:
        def fit_transform(self, X: Array) -> Array:
            self.fitted = True
            return X[:, :2]

    embedding = Embedding()
    GeometryRegularizedAutoencoder(embedding=embedding, epochs=1, random_state=0).fit(X)
    assert not hasattr(embedding, "fitted")
    with pytest.raises(ValueError, match=r"embedding: expected one of diffusion, pca.* got None"):
        GeometryRegularizedAutoencoder(embedding=None, epochs=1).fit(X)
    far = GeometryRegularizedAutoencoder(embedding=X[:, :2] * 1e300, epochs=1, random_state=0)
    assert far.fit(X).embedding_.std() == pytest.approx(1)


def test_without_hidden_layers_it_finds_principal_components(rng: Rng) -> None:
    X = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 10)) + 0.1 * rng.normal(size=(300, 10))
    centred = X - X.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    best = float(((centred - centred @ axes.T @ axes) ** 2).mean())
    assert -Autoencoder(3, hidden=(), random_state=0).fit(X).score(X) < 1.5 * best


def test_codes_that_are_too_large_or_none(X: Array) -> None:
    with pytest.raises(ValueError, match="X: expected codes that fit float32"):
        tiny(Autoencoder, n_components=2).fit(X).inverse_transform(np.full((1, 2), 1e300))
    sequences = [np.ones((4, 2)), np.zeros((3, 2))]
    assert tiny(SequenceAutoencoder).fit(sequences).inverse_transform(
        np.zeros((0, tiny(SequenceAutoencoder).n_components))
    ).shape == (0, 4, 2)


def test_masks_are_not_dropped_silently(X: Array) -> None:
    masked = np.ma.masked_array(X, X.mean() < X)
    with pytest.raises(TypeError, match="X: expected an array without masked elements"):
        tiny(Autoencoder).fit(masked)
    tiny(Autoencoder).fit(np.ma.masked_array(X))


def test_plots_of_odd_labels_and_shapes(X: Array) -> None:
    pytest.importorskip("matplotlib")
    model = tiny(Autoencoder, n_components=5).fit(X)
    model.plot_latent(X[:1])
    model.plot_latent(X[:3], y=[None, "a", 1])
    with pytest.raises(ValueError, match=r"image_shape: expected \(H, W\)"):
        model.plot_reconstructions(X, image_shape=(1, 3, 3))  # type: ignore[arg-type]
