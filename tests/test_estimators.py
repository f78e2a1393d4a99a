"""Estimators: what they learn, scikit-learn's tools and habits, wrong calls, life without it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn.scikit import divide
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
KINDS = [fastrnn.SequenceClassifier, fastrnn.SequenceRegressor]

# Blocks the import of scikit-learn, in a process of its own.
WITHOUT_SKLEARN = "import sys; sys.modules['sklearn'] = None\n"


def run_script(script: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def small(kind: Any, **options: Any) -> Any:
    """Make an estimator that takes no time."""
    return kind("gru", 4, **{"epochs": 2, "random_state": 0, **options})


def draw(kind: Any, rng: Rng, n: int = 24) -> tuple[list[Array], Array]:
    """Draw sequences of different lengths, with targets that their first feature tells."""
    X = [rng.normal(size=(rng.integers(3, 9), 2)) for _ in range(n)]
    means = np.array([x[:, 0].mean() for x in X])
    return X, np.where(means > 0, "high", "low") if kind is KINDS[0] else means


def outputs(estimator: Any, X: Any) -> Array:
    """Compute what does not hide small differences."""
    found = getattr(estimator, "predict_proba", estimator.predict)(X)
    assert isinstance(found, np.ndarray)
    return found


# What they learn.


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array, Array, Array]:
    """Digits as 8 steps of 8 features: X and y to train with, X and y to test with."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    X, y = data.images[order], data.target[order]
    return X[:1300], y[:1300], X[1300:], y[1300:]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_digits_row_by_row(cell: str, digits: tuple[Array, ...]) -> None:
    X, y, X_test, y_test = digits
    classifier = fastrnn.SequenceClassifier(cell, epochs=12, random_state=0).fit(X, y)
    assert classifier.score(X_test, y_test) >= 0.95
    assert classifier.score(X_test, y_test) == np.mean(classifier.predict(X_test) == y_test)
    assert classifier.n_iter_ == 12
    assert classifier.n_features_in_ == 8
    assert list(classifier.history_) == [
        "loss",
        "accuracy",
        "gradient_norm",
        "learning_rate",
        "sequences_per_second",
    ]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_network_learns(cell: str, pooling: str, bidirectional: bool, rng: Rng) -> None:
    X, y = draw(KINDS[0], rng, 120)
    classifier = fastrnn.SequenceClassifier(
        cell,
        16,
        num_layers=2,
        pooling=pooling,
        bidirectional=bidirectional,
        dropout=0.1,
        epochs=40,
        random_state=0,
    )
    assert classifier.fit(X, y).score(X, y) > 0.9
    assert [type(layer).__name__ for layer in classifier.model_.layers][2:] == ["Dropout", "Dense"]


def test_regressor_predicts_in_units_of_its_targets(rng: Rng) -> None:
    X = rng.normal(size=(300, 8))
    y = 1e4 + 100 * X.sum(axis=1)
    regressor = fastrnn.SequenceRegressor("gru", 32, epochs=30, random_state=0)
    regressor.fit(X[:200], y[:200])
    predicted = regressor.predict(X[200:])
    assert predicted.shape == (100,)
    assert predicted.dtype == np.float64
    error = np.mean((predicted - y[200:]) ** 2)
    score = 1 - error / y[200:].var()
    assert score > 0.9
    assert regressor.score(X[200:], y[200:]) == pytest.approx(score)
    assert regressor.target_mean_ == pytest.approx([y[:200].mean()])


def test_regressor_of_many_outputs(rng: Rng) -> None:
    X = rng.normal(size=(200, 6, 2))
    y = np.column_stack([X[:, :, 0].sum(axis=1), 50 * X[:, -1, 1], np.full(200, 7.0)])
    regressor = fastrnn.SequenceRegressor("gru", 32, epochs=40, random_state=0).fit(X, y)
    predicted = regressor.predict(X)
    assert predicted.shape == y.shape
    for k in range(2):
        assert np.corrcoef(predicted[:, k], y[:, k])[0, 1] > 0.97
    np.testing.assert_allclose(predicted[:, 2], 7, atol=0.2)  # a constant is no division by 0
    assert fastrnn.SequenceRegressor("gru", 4, epochs=1).fit(X, y[:, :1]).predict(X).shape == (
        200,
        1,
    )


# Inputs.


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_the_same_sequences(kind: Any, rng: Rng) -> None:
    X = rng.normal(size=(20, 5, 1))
    y = rng.integers(2, size=20)
    expected = outputs(small(kind).fit(X, y), X)
    objects = np.empty(20, object)
    objects[:] = list(X)
    same = [X[:, :, 0], list(X), tuple(X), list(X[:, :, 0]), X[:, :, 0].tolist(), X.tolist()]
    for other in [*same, objects, X[:, :, 0].astype(object)]:
        np.testing.assert_array_equal(outputs(small(kind).fit(other, y), other), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_list_do_not_depend_on_their_neighbours(kind: Any, rng: Rng) -> None:
    X, y = draw(kind, rng)
    estimator = small(kind).fit(X, y)
    alone = np.concatenate([outputs(estimator, [x]) for x in X])
    np.testing.assert_allclose(outputs(estimator, X), alone, rtol=1e-5)


def test_standardize_is_over_all_steps(rng: Rng) -> None:
    X, y = draw(KINDS[0], rng)
    X = [np.column_stack([100 + 5 * x, np.full(len(x), 0.1)]) for x in X]
    steps = np.concatenate(X)
    classifier = small(KINDS[0]).fit(X, y)
    np.testing.assert_allclose(classifier.mean_, steps.mean(axis=0))
    np.testing.assert_allclose(classifier.scale_, [*steps[:, :2].std(axis=0), 1])  # a constant
    plain = small(KINDS[0], standardize=False).fit(X, y)
    assert plain.mean_.tolist() == [0, 0, 0]
    assert plain.scale_.tolist() == [1, 1, 1]
    by_hand = [(x - classifier.mean_) / classifier.scale_ for x in X]
    plain = small(KINDS[0], standardize=False).fit(by_hand, y)
    np.testing.assert_allclose(outputs(plain, by_hand), outputs(classifier, X), rtol=1e-6)


@pytest.mark.parametrize(
    "labels", [["b", "a"], [3, -1], [True, False], [2.0, 7.0], ["x", "y", "zebra"]]
)
def test_labels_of_any_kind(labels: list[Any], rng: Rng) -> None:
    y = np.array(labels)[np.arange(30) % len(labels)]
    X = rng.normal(size=(30, 4, 2)) + 3 * (np.arange(30) % len(labels))[:, np.newaxis, np.newaxis]
    classifier = small(KINDS[0], epochs=150).fit(X, y)
    np.testing.assert_array_equal(classifier.classes_, np.unique(y))
    np.testing.assert_array_equal(classifier.predict(X), y)
    assert classifier.predict(X).dtype == y.dtype
    probabilities, decision = classifier.predict_proba(X), classifier.decision_function(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    if len(labels) == 2:
        np.testing.assert_allclose(1 / (1 + np.exp(-decision)), probabilities[:, 1])
    else:
        assert decision.shape == (30, len(labels))
        np.testing.assert_array_equal(decision.argmax(axis=1), probabilities.argmax(axis=1))


def test_class_weight(rng: Rng) -> None:
    X, y = rng.normal(size=(200, 4, 1)), np.array(["rare", *["common"] * 9] * 20)

    def rare(class_weight: Any) -> float:
        """How likely the rare class is, where nothing tells it."""
        classifier = fastrnn.SequenceClassifier(
            "rnn", 2, epochs=20, learning_rate=0.02, class_weight=class_weight, random_state=0
        )
        return float(classifier.fit(X, y).predict_proba(X)[:, 1].mean())

    assert rare(None) == pytest.approx(0.1, abs=0.05)
    assert rare("balanced") == pytest.approx(0.5, abs=0.1)
    assert rare({"rare": 9.0}) == pytest.approx(0.5, abs=0.1)
    # Weights are relative.
    assert rare({"rare": 5.0, "common": 5 / 9}) == pytest.approx(rare("balanced"), rel=1e-5)


# Early stopping.


@pytest.mark.parametrize("kind", KINDS)
def test_early_stopping_keeps_the_best(kind: Any, rng: Rng) -> None:
    X, y = rng.normal(size=(60, 5, 2)), rng.permutation(np.arange(60) % 2)  # nothing to learn
    estimator = kind(
        hidden_size=32,
        epochs=100,
        early_stopping=True,
        validation_fraction=0.3,
        patience=3,
        random_state=0,
    ).fit(X, y)
    losses = estimator.history_["val_loss"]
    assert estimator.n_iter_ == len(losses) == int(np.argmin(losses)) + 1 + 3 < 100
    rows, held_out = divide(
        y if kind is KINDS[0] else np.zeros(60, np.intp), 0.3, replayed(estimator)
    )
    assert estimator.mean_ == pytest.approx(X[rows].mean(axis=(0, 1)))  # of the others alone
    if kind is KINDS[0]:
        likely = estimator.predict_proba(X[held_out])[np.arange(18), y[held_out]]
        loss = -np.log(likely).mean()
    else:
        errors = estimator.predict(X[held_out]) - y[held_out]
        loss = np.mean((errors / estimator.target_scale_) ** 2)
    assert loss == pytest.approx(min(losses), rel=1e-4)


def replayed(estimator: Any) -> Rng:
    """Return the generator of a fit as it is when the rows are drawn."""
    generator = np.random.default_rng(estimator.random_state)
    estimator._layers(2, len(getattr(estimator, "classes_", [0])), generator)
    return generator


def test_held_out_rows_are_stratified(rng: Rng) -> None:
    groups = rng.permutation(np.repeat([0, 1, 2], [70, 20, 10]))
    rows, held_out = divide(groups, 0.2, rng)
    assert sorted([*rows, *held_out]) == list(range(100))
    assert np.bincount(groups[held_out]).tolist() == [14, 4, 2]
    other = divide(groups, 0.2, rng)[1]
    assert not np.array_equal(held_out, other)
    with pytest.raises(ValueError, match="y: expected more sequences of each class"):
        divide(np.array([0, 1, 2, 3]), 0.5, rng)
    for fraction, message in ((0.95, "a part of 4"), (1.0, "a number > 0 and < 1")):
        with pytest.raises(ValueError, match=f"validation_fraction: expected {message}"):
            divide(np.zeros(4, np.intp), fraction, rng)


# Habits of scikit-learn.


@pytest.mark.parametrize("kind", KINDS)
def test_same_random_state_same_bits(kind: Any, rng: Rng) -> None:
    X, y = draw(kind, rng)
    options = {"dropout": 0.3, "early_stopping": True, "validation_fraction": 0.25}
    estimator = small(kind, **options)
    first = outputs(estimator.fit(X, y), X)
    np.testing.assert_array_equal(outputs(estimator.fit(X, y), X), first)  # fit forgets
    np.testing.assert_array_equal(outputs(small(kind, **options).fit(X, y), X), first)
    other = (
        small(kind, **options, random_state=1)
        if False
        else small(kind).set_params(**options, random_state=1)
    )
    assert not np.array_equal(outputs(other.fit(X, y), X), first)
    state = np.random.RandomState(3)
    drawn = outputs(small(kind, random_state=state).fit(X, y), X)
    again = outputs(small(kind, random_state=np.random.RandomState(3)).fit(X, y), X)
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(outputs(small(kind, random_state=state).fit(X, y), X), drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_changes_neither_data_nor_parameters(kind: Any, rng: Rng) -> None:
    X, y = draw(kind, rng)
    copies, targets = [x.copy() for x in X], y.copy()
    estimator = small(kind)
    before = estimator.get_params()
    assert estimator.fit(X, y) is estimator
    assert estimator.get_params() == before
    estimator.predict(X)
    np.testing.assert_array_equal(y, targets)
    for x, copy in zip(X, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("kind", KINDS)
def test_pickle(kind: Any, rng: Rng) -> None:
    X, y = draw(kind, rng)
    estimator = small(kind).fit(X, y)
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(outputs(again, X), outputs(estimator, X))
    assert again.history_["loss"] == estimator.history_["loss"]
    np.testing.assert_array_equal(outputs(again.fit(X, y), X), outputs(estimator, X))


@pytest.mark.parametrize("kind", KINDS)
def test_clone_and_tags(kind: Any, rng: Rng) -> None:
    base = pytest.importorskip("sklearn.base")
    utils = pytest.importorskip("sklearn.utils")
    estimator = small(kind, pooling="nonsense")  # which only fit looks at
    assert base.clone(estimator).get_params() == estimator.get_params()
    X, y = draw(kind, rng)
    estimator.set_params(pooling="mean").fit(X, y)
    assert not hasattr(base.clone(estimator), "model_")
    assert base.is_classifier(estimator) == (kind is KINDS[0])
    assert base.is_regressor(estimator) == (kind is KINDS[1])
    tags = utils.get_tags(estimator)
    assert tags.input_tags.three_d_array
    assert not tags.input_tags.sparse
    assert not tags.input_tags.allow_nan
    assert tags.target_tags.required


def test_grid_search(digits: tuple[Array, ...]) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    X, y = digits[0][:300], digits[1][:300]
    search = selection.GridSearchCV(
        fastrnn.SequenceClassifier("gru", 32, random_state=0), {"epochs": [1, 12]}, cv=2
    ).fit(X, y)
    assert search.best_params_ == {"epochs": 12}
    assert search.best_score_ > 0.7
    assert search.predict(X[:5]).shape == (5,)


@pytest.mark.parametrize("kind", KINDS)
def test_cross_validation_of_lists_in_a_pipeline(kind: Any, rng: Rng) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    X, y = draw(kind, rng, 200)

    def first_feature(sequences: list[Array]) -> list[Array]:
        return [x[:, :1] for x in sequences]

    steps = pipeline.make_pipeline(
        preprocessing.FunctionTransformer(first_feature),
        kind("gru", 16, pooling="mean", random_state=0),
    )
    scores = selection.cross_val_score(steps, X, y, cv=2, error_score="raise")
    assert scores.min() > 0.8
    found = selection.cross_val_predict(steps, X, y, cv=2)
    assert found.shape == y.shape


def test_scorer_of_probabilities(rng: Rng) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    X, y = draw(KINDS[0], rng, 100)
    classifier = fastrnn.SequenceClassifier("gru", 8, random_state=0)
    for scoring in ("roc_auc", "neg_log_loss"):
        scores = selection.cross_val_score(
            classifier, X, y, cv=2, scoring=scoring, error_score="raise"
        )
        assert np.isfinite(scores).all()


# Wrong calls.

GOOD = np.random.default_rng(0).normal(size=(6, 4, 2))


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.zeros(6), ValueError, r"X: expected \(n, T, F\), \(n, T\), or a list.* got \(6,\)"),
        (np.zeros((6, 4, 2, 1)), ValueError, r"X: expected .* got \(6, 4, 2, 1\)"),
        ([1.0] * 6, ValueError, "X: expected .* got sequences of"),
        (np.where(GOOD > 2, GOOD, np.nan), ValueError, "X: expected finite numbers, got NaN"),
        (np.where(GOOD > 2, GOOD, np.inf), ValueError, "X: expected finite numbers, got infinity"),
        (np.full((6, 4), "a"), ValueError, "X: expected .* got .* <U1"),
        (np.full((6, 4), {}), TypeError, "X: expected .*dict"),
        (GOOD * 1j, ValueError, "X: expected .* complex128"),
        (None, ValueError, "X: expected .* got None"),
        ([], ValueError, "X: expected at least 1 sequence, got 0"),
        (np.zeros((0, 4, 2)), ValueError, "X: expected at least 1 sequence, got 0"),
        (np.zeros((6, 0, 2)), ValueError, "X: expected sequences of at least 1 step, got 0"),
        (np.zeros((6, 4, 0)), ValueError, r"X: expected sequences of equally many .* got \[0\]"),
        ([*GOOD[:5], np.zeros((0, 2))], ValueError, "at least 1 step, got 0 of sequence 5"),
        ([*GOOD[:5], np.zeros((4, 3))], ValueError, r"equally many features, got \[2, 3\]"),
        ([*GOOD[:5], np.zeros(4)], ValueError, r"X: expected .* got sequences of \[1, 2\] axes"),
        (np.ma.masked_array(GOOD), TypeError, "X: expected .* got a masked array"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_sequences(kind: Any, X: Any, error: type[Exception], message: str) -> None:
    y = [0, 1, 0, 1, 0, 1]
    with pytest.raises(error, match=message):
        small(kind).fit(X, y)
    fitted = small(kind).fit(GOOD, y)
    with pytest.raises(error, match=message):
        fitted.predict(X)


def test_numbers_too_large(rng: Rng) -> None:
    for kind in KINDS:
        with pytest.raises(ValueError, match="X: expected numbers whose variance fits float64"):
            small(kind).fit(np.where(GOOD > 0, 1e300, -1e300), [0, 1] * 3)
        with pytest.raises(ValueError, match="X: expected numbers that fit float32"):
            small(kind, standardize=False).fit(1e50 * GOOD, [0, 1] * 3)
        estimator = small(kind).fit(1e50 * GOOD, [0, 1] * 3)
        small_ones = small(kind).fit(GOOD, [0, 1] * 3)
        np.testing.assert_allclose(
            outputs(estimator, 1e50 * GOOD), outputs(small_ones, GOOD), rtol=1e-5
        )
        with pytest.raises(ValueError, match="X: expected numbers that fit float32"):
            estimator.predict(1e100 * GOOD)


def test_sparse_data() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="got sparse data"):
        small(KINDS[0]).fit(sparse.eye(6), [0, 1] * 3)


@pytest.mark.parametrize(
    ("kind", "y", "message"),
    [
        (KINDS[0], None, "y: expected labels .* requires y"),
        (KINDS[0], [0, 1], "y: expected 6 targets, as X, got 2"),
        (KINDS[0], [[0], [1]] * 3, r"y: expected labels \(n,\), got \(6, 1\)"),
        (KINDS[0], ["a"] * 6, "y: expected at least 2 classes, got 1 class"),
        (KINDS[0], [0.5, 1.0] * 3, "y: .* got 0.5. Unknown label type: continuous"),
        (KINDS[0], [0.0, np.nan] * 3, "y: expected labels, got nan"),
        (KINDS[0], [0.0, np.inf] * 3, "y: expected labels, got inf"),
        (KINDS[0], np.array(["a", None] * 3, object), "y: expected labels that can be sorted"),
        (KINDS[1], None, "y: expected numbers .* requires y"),
        (KINDS[1], [0, 1], "y: expected 6 targets, as X, got 2"),
        (KINDS[1], ["a", "b"] * 3, "y: expected numbers"),
        (KINDS[1], [0, np.nan] * 3, "y: expected finite numbers, got NaN"),
        (KINDS[1], [1e300, -1e300] * 3, "y: expected numbers whose variance fits"),
        (KINDS[1], np.zeros((6, 2, 2)), r"y: expected numbers .* got \(6, 2, 2\)"),
        (KINDS[1], np.zeros((6, 0)), r"y: expected numbers .* got \(6, 0\)"),
    ],
)
def test_wrong_targets(kind: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(kind).fit(GOOD, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "transformer"}, "cell: expected one of 'rnn', 'lstm', 'gru'"),
        ({"pooling": "sum"}, "pooling: expected one of"),
        ({"hidden_size": 0}, "hidden_size: expected"),
        ({"num_layers": 0}, "num_layers: expected"),
        ({"bidirectional": "yes"}, "bidirectional: expected"),
        ({"dropout": 1.5}, "dropout: expected"),
        ({"epochs": 0}, "epochs: expected"),
        ({"batch_size": 2.5}, "batch_size: expected"),
        ({"learning_rate": -1.0}, "learning_rate: expected"),
        ({"optimizer": "newton"}, "optimizer: expected"),
        ({"optimizer": fastrnn.optimizers.SGD(0.1)}, "optimizer: expected a name"),
        ({"clipnorm": 0.0}, "global_clipnorm: expected"),
        ({"early_stopping": 1}, "early_stopping: expected"),
        ({"early_stopping": True, "validation_fraction": 2.0}, "validation_fraction: expected"),
        ({"early_stopping": True, "patience": 0}, "patience: expected"),
        ({"standardize": None}, "standardize: expected"),
        ({"random_state": "x"}, "random_state: expected"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_parameters(kind: Any, options: dict[str, Any], message: str) -> None:
    estimator = small(kind).set_params(**options)
    with pytest.raises((TypeError, ValueError), match=message):
        estimator.fit(GOOD, [0, 1] * 3)
    assert not hasattr(estimator, "model_")


@pytest.mark.parametrize("given", ["equal", [1, 2], {"c": 1.0}, {"a": -1.0}])
def test_wrong_class_weight(given: Any) -> None:
    with pytest.raises(ValueError, match="class_weight: expected"):
        small(KINDS[0], class_weight=given).fit(GOOD, ["a", "b"] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_features_and_not_fitted(kind: Any) -> None:
    exceptions = pytest.importorskip("sklearn.exceptions")
    estimator = small(kind)
    with pytest.raises(exceptions.NotFittedError, match="call fit first"):
        estimator.predict(GOOD)
    estimator.fit(GOOD, [0, 1] * 3)
    with pytest.raises(ValueError, match=r"X: expected sequences of 2 features, .* got 1"):
        estimator.predict(GOOD[:, :, :1])
    with pytest.raises(ValueError, match="depth"):
        estimator.set_params(depth=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_can_be_saved(kind: Any, rng: Rng, tmp_path: Path) -> None:
    X, y = rng.normal(size=(12, 5, 2)), [0, 1] * 6
    estimator = small(kind, bidirectional=True, standardize=False).fit(X, y)
    estimator.model_.save(tmp_path / "model.safetensors")
    again = fastrnn.Sequential.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict(X), estimator.model_.predict(X))


# Without scikit-learn.


def test_import_of_the_package_leaves_it_alone() -> None:
    loaded = run_script(
        "import sys, fastrnn\n"
        "assert 'SequenceClassifier' in dir(fastrnn)\n"
        "print('sklearn' in sys.modules, 'fastrnn.estimators' in sys.modules)"
    )
    assert loaded.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="has no attribute 'SequenceClusterer'"):
        fastrnn.SequenceClusterer  # noqa: B018


def test_works_without_it() -> None:
    run_script(
        WITHOUT_SKLEARN
        + """
import pickle
import numpy as np, fastrnn
rng = np.random.default_rng(0)
X = [rng.normal(size=(rng.integers(3, 9), 2)) for _ in range(80)]
means = np.array([x[:, 0].mean() for x in X])
labels = np.where(means > 0, "high", "low")
classifier = fastrnn.SequenceClassifier("gru", 16, random_state=0)
try:
    classifier.predict(X)
except ValueError as error:
    assert "call fit first" in str(error) and isinstance(error, AttributeError)
else:
    raise AssertionError
assert repr(classifier) == "SequenceClassifier(cell='gru', hidden_size=16, random_state=0)"
classifier.fit(X, labels)
assert classifier.score(X, labels) == np.mean(classifier.predict(X) == labels) > 0.9
regressor = fastrnn.SequenceRegressor().set_params(cell="gru", epochs=40, random_state=0)
assert regressor.get_params()["epochs"] == 40 and "class_weight" in classifier.get_params()
regressor.fit(X, means)
error = np.mean((regressor.predict(X) - means) ** 2)
assert np.isclose(regressor.score(X, means), 1 - error / means.var())
assert regressor.score(X, means) > 0.8
again = pickle.loads(pickle.dumps(regressor))
assert np.array_equal(again.predict(X), regressor.predict(X))
for wrong in (lambda: regressor.set_params(depth=3), lambda: regressor.score(X, np.ones(80))):
    try:
        wrong()
    except ValueError:
        continue
    raise AssertionError
assert sys.modules["sklearn"] is None
"""
    )


@pytest.mark.parametrize("early_stopping", [False, True])
def test_sample_weights_count(early_stopping: bool, rng: Rng) -> None:
    """Sequences of weight 0 do not teach, however wrong they are."""
    X = rng.normal(size=(120, 4, 2))
    y = (X[:, -1, 0] > 0).astype(int)
    wrong = y.copy()
    wrong[:60] = 1 - wrong[:60]
    options: dict[str, Any] = {"epochs": 15, "random_state": 0, "early_stopping": early_stopping}
    classifier = fastrnn.SequenceClassifier("gru", 16, **options, patience=15)
    weights = np.repeat([0.0, 1.0], 60)
    assert classifier.fit(X, wrong, sample_weight=weights).score(X, y) > 0.9
    assert classifier.fit(X, wrong).score(X, y) < 0.75
    regressor = fastrnn.SequenceRegressor("gru", 16, **options, patience=15)
    targets = X[:, -1, 0].copy()
    targets[:60] *= -1
    assert regressor.fit(X, targets, sample_weight=weights).score(X, X[:, -1, 0]) > 0.7
    for given, message in (
        (np.ones(3), r"sample_weight: expected numbers >= 0 \(120,\), got \(3,\)"),
        (-weights, "sample_weight: expected numbers >= 0 that are not all 0"),
        (0 * weights, "sample_weight: expected numbers >= 0 that are not all 0"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.fit(X, y, sample_weight=given)
