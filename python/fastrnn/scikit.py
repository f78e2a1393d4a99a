"""What estimators share, with scikit-learn installed or without: base classes and checks.

With scikit-learn (1.6 or later) its own checks of tables are used, so that its kinds of error are
raised; without it small ones of the same kinds.

Letters: n rows or sequences, T steps, F features, k outputs or classes.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

__all__ = [
    "BaseEstimator",
    "ClassifierMixin",
    "NotFittedError",
    "OutlierMixin",
    "RegressorMixin",
    "Sequences",
    "TransformerMixin",
    "all_or_nothing",
    "check_rows",
    "divide",
    "encode",
    "finite_array",
    "finite_number",
    "read_rows",
    "read_sequences",
    "refuse_masked",
    "sample_weights",
    "to_generator",
    "to_numbers",
    "validate",
]


class _Parameters:
    """What scikit-learn's ``BaseEstimator`` gives, for where it is not installed."""

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        parameters = inspect.signature(cls).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Parameters
        ----------
        deep : bool, default True
            Accepted as scikit-learn does; there are no estimators inside.

        Returns
        -------
        dict of str to object
            The arguments of the constructor.
        """
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters.

        Parameters
        ----------
        **params
            Arguments of the constructor.

        Returns
        -------
        estimator
            The estimator.
        """
        known = self._defaults()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        values = self.get_params()
        changed = [f"{k}={values[k]!r}" for k, v in self._defaults().items() if values[k] != v]
        return f"{type(self).__name__}({', '.join(changed)})"


class _Accuracy:
    """What scikit-learn's ``ClassifierMixin`` gives, for where it is not installed."""

    predict: Callable[..., NDArray[Any]]

    def score(self, X: Any, y: ArrayLike, sample_weight: Any = None) -> float:
        """Return the part of the sequences whose class is found.

        Parameters
        ----------
        X : array (n, T, F), (n, T), or list of (T_i, F) or (T_i,)
            Sequences.
        y : labels (n,)
            Their classes.
        sample_weight : numbers (n,), optional
            Weights of the sequences.

        Returns
        -------
        float
            Accuracy.
        """
        return float(np.average(self.predict(X) == np.asarray(y), weights=sample_weight))


class _R2:
    """What scikit-learn's ``RegressorMixin`` gives, for where it is not installed."""

    predict: Callable[..., NDArray[Any]]

    def score(self, X: Any, y: ArrayLike, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R², the mean of that of all outputs.

        Parameters
        ----------
        X : array (n, T, F), (n, T), or list of (T_i, F) or (T_i,)
            Sequences.
        y : numbers (n,) or (n, k)
            Their targets, which are not all equal.
        sample_weight : numbers (n,), optional
            Weights of the sequences.

        Returns
        -------
        float
            R², at most 1; 0 is what the mean of the targets gets.
        """
        y = np.asarray(y, np.float64)
        centre = np.average(y, axis=0, weights=sample_weight)
        errors = np.average((y - self.predict(X)) ** 2, axis=0, weights=sample_weight)
        variance = np.average((y - centre) ** 2, axis=0, weights=sample_weight)
        if np.any(variance == 0):
            raise ValueError("y: expected targets that are not all equal")
        return float(np.mean(1 - errors / variance))


class _Transformer:
    """What scikit-learn's ``TransformerMixin`` gives, for where it is not installed."""

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> NDArray[Any]:
        """Fit, and return the activations of the same rows.

        Parameters
        ----------
        X : array (n, D)
            Rows.
        y : array (n,) or (n, k)
            Their targets.
        **fit_params
            More arguments of ``fit``.

        Returns
        -------
        ndarray (n, M)
            Activations.
        """
        estimator: Any = self
        activations: NDArray[Any] = estimator.fit(X, y, **fit_params).transform(X)
        return activations


class _Outliers:
    """What scikit-learn's ``OutlierMixin`` gives, for where it is not installed."""

    def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> NDArray[Any]:
        """Fit, and tell the outliers among the same rows.

        Parameters
        ----------
        X : array (n, F)
            Rows.
        y : ignored
            Accepted as scikit-learn does.
        **kwargs
            More arguments of ``fit``.

        Returns
        -------
        ndarray of int (n,)
            1 for what is normal, -1 for outliers.
        """
        estimator: Any = self
        labels: NDArray[Any] = estimator.fit(X, **kwargs).predict(X)
        return labels


class _NotFittedError(ValueError, AttributeError):
    """What scikit-learn's ``NotFittedError`` is, for where it is not installed."""


if TYPE_CHECKING:
    BaseEstimator = _Parameters
    ClassifierMixin = _Accuracy
    OutlierMixin = _Outliers
    RegressorMixin = _R2
    TransformerMixin = _Transformer
    NotFittedError = _NotFittedError
else:
    try:
        from sklearn.base import (
            BaseEstimator,
            ClassifierMixin,
            OutlierMixin,
            RegressorMixin,
            TransformerMixin,
        )
        from sklearn.exceptions import NotFittedError
    except ModuleNotFoundError:  # and not what a broken one raises
        BaseEstimator, ClassifierMixin, RegressorMixin = _Parameters, _Accuracy, _R2
        OutlierMixin, TransformerMixin = _Outliers, _Transformer
        NotFittedError = _NotFittedError

validate: Any = None
if not TYPE_CHECKING:
    try:
        from sklearn.utils.validation import validate_data as validate
    except ImportError:  # not there, or too old
        validate = None


@contextlib.contextmanager
def all_or_nothing(estimator: Any) -> Iterator[Any]:
    """Yield a copy of an estimator to fit, of which the estimator has all at the end.

    If anything goes wrong, or to other threads until then, it is as it was.
    """
    fitted = object.__new__(type(estimator))
    vars(fitted).update(vars(estimator))
    yield fitted
    estimator.__dict__ = vars(fitted)


def to_generator(random_state: Any) -> np.random.Generator:
    """Return the source of randomness of a fit."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**32, size=4, dtype=np.uint32))
    return functional.generator("random_state", random_state)


def to_numbers(name: str, expected: str, value: Any) -> NDArray[np.float64]:
    """Return finite numbers as float64, or raise an error that names the argument."""
    if value is None:
        raise ValueError(f"{name}: expected {expected}, got None: this estimator requires {name}")
    if hasattr(value, "toarray"):
        raise TypeError(f"{name}: expected {expected}, got sparse data; its toarray makes it dense")
    array = np.asarray(functional.listed(name, expected, value))
    if array.dtype.kind == "O" and array.ndim:  # rows of a table may come so
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: expected {expected}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected {expected}, got {array.shape} {array.dtype}")
    numbers = array.astype(np.float64, copy=False)
    wrong = numbers[~np.isfinite(numbers)]
    if wrong.size:
        kind = "NaN" if np.isnan(wrong[0]) else "infinity"
        raise ValueError(f"{name}: expected finite numbers, got {kind}")
    return numbers


def finite_number(name: str, value: Any) -> float:
    """Return a finite number >= 0, or raise an error that names the argument."""
    number = functional.number(name, value, 0)
    if math.isinf(number):
        raise ValueError(f"{name}: expected a finite number >= 0, got inf")
    return number


def finite_array(name: str, expected: str, value: Any) -> NDArray[np.float64]:
    """Return finite numbers, or raise an error that names the argument."""
    array = np.asarray(functional.listed(name, expected, value))
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite {expected}, got {array.shape} {array.dtype}")
    return array.astype(np.float64)


def read_rows(
    estimator: Any,
    X: Any,
    *,
    reset: bool = False,
    minimum: int = 1,
    dtypes: tuple[type, ...] = (np.float64,),
) -> NDArray[Any]:
    """Check rows (n, D).

    Parameters
    ----------
    estimator : object
        Whose ``n_features_in_`` is set with `reset`, and has to be D without.
    X : array (n, D)
        Rows.
    reset : bool, default False
        Whether the estimator is being fit.
    minimum : int, default 1
        Rows that there have to be.
    dtypes : tuple of type, default (numpy.float64,)
        Types that are left as they are; others become the first.

    Returns
    -------
    ndarray (n, D)
        The rows, all finite.
    """
    refuse_masked("X", X)
    if validate is not None:
        rows: NDArray[Any] = validate(
            estimator, X, reset=reset, dtype=list(dtypes), ensure_min_samples=minimum
        )
        return rows
    kept = getattr(X, "dtype", None)
    found = check_rows(estimator, X, reset=reset, minimum=minimum)
    return found.astype(kept) if kept in dtypes else found


def refuse_masked(name: str, value: Any) -> None:
    """Raise if elements are masked: NumPy and scikit-learn would take what is under the mask."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(f"{name}: expected an array without masked elements; see its filled")


def check_rows(estimator: Any, X: Any, *, reset: bool, minimum: int) -> NDArray[np.float64]:
    """Do what `read_rows` does where there is no scikit-learn."""
    rows = to_numbers("X", "(n, D)", X)
    if rows.ndim != 2:
        raise ValueError(f"X: expected (n, D), got {rows.shape}. Reshape your data")
    n, D = rows.shape
    if n < minimum:
        raise ValueError(f"X: expected at least {minimum} sample(s), got {n} sample(s)")
    if not D:
        raise ValueError(f"X: expected at least 1 feature, got 0 feature(s) (shape={rows.shape})")
    if reset:
        estimator.n_features_in_ = D
    elif estimator.n_features_in_ != D:
        raise ValueError(
            f"X has {D} features, but {type(estimator).__name__} is expecting"
            f" {estimator.n_features_in_} features as input"
        )
    return rows


def sample_weights(given: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    """Check weights (n,) of rows, if there are any."""
    if given is None:
        return None
    weights = to_numbers("sample_weight", f"numbers >= 0 ({n},)", given)
    if weights.shape != (n,):
        raise ValueError(f"sample_weight: expected numbers >= 0 ({n},), got {weights.shape}")
    if np.any(weights < 0) or not np.any(weights):
        raise ValueError("sample_weight: expected numbers >= 0 that are not all 0")
    if weights.max() > 1e150:
        raise ValueError("sample_weight: expected numbers whose squares fit float64, got larger")
    return weights


def encode(y: Any) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the sorted labels, and which of them each target is."""
    if y is None:
        raise ValueError("y: expected labels (n,), got None: a classifier requires y")
    labels = np.asarray(functional.listed("y", "labels (n,)", y))
    if labels.ndim != 1:
        raise ValueError(f"y: expected labels (n,), got {labels.shape} {labels.dtype}")
    if labels.dtype.kind == "f":
        wrong = labels[~np.isfinite(labels) | (labels != np.floor(labels))]
        if wrong.size:
            raise ValueError(
                f"y: expected labels, got {wrong[0]}. Unknown label type: continuous; numbers are"
                " for a regressor"
            )
    try:
        classes, encoded = np.unique(labels, return_inverse=True)
    except TypeError as error:  # such as None among strings
        raise ValueError(f"y: expected labels that can be sorted: {error}") from None
    if len(classes) < 2:
        raise ValueError(f"y: expected at least 2 classes, got {len(classes)} class")
    return classes, encoded.astype(np.intp)


def divide(
    groups: NDArray[np.intp], fraction: float, generator: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw rows to validate with, the same part of each group but for rounding."""
    n = len(groups)
    if n < 2:
        raise ValueError(f"X: expected at least 2 samples to validate with some, got {n} sample")
    part = functional.number("validation_fraction", fraction, 0, 1)
    if part in (0, 1):
        raise ValueError(f"validation_fraction: expected a number > 0 and < 1, got {part}")
    count = max(1, round(part * n))
    if count >= n:
        raise ValueError(
            f"validation_fraction: expected a part of {n} sequences that leaves some on either"
            f" side, got {fraction}"
        )
    order = generator.permutation(n)
    order = order[np.argsort(groups[order], kind="stable")]
    # Evenly spaced among sequences that are sorted by group.
    chosen = np.zeros(n, bool)
    chosen[((np.arange(count) + 0.5) * n / count).astype(np.intp)] = True
    rest, validation = order[~chosen], order[chosen]
    if len(np.unique(groups[rest])) < len(np.unique(groups)):
        raise ValueError(
            "y: expected more sequences of each class, got one whose sequences would all be kept"
            " for early_stopping"
        )
    return np.sort(rest), np.sort(validation)


class Sequences(NamedTuple):
    """Sequences one after the other.

    Attributes
    ----------
    steps : ndarray of float64 (sum of lengths, F)
        Their steps.
    lengths : ndarray of int64 (n,)
        How many each has.
    """

    steps: NDArray[np.float64]
    lengths: NDArray[np.int64]

    def take(self, rows: NDArray[np.intp]) -> Sequences:
        """Return some of the sequences."""
        parts = np.split(self.steps, np.cumsum(self.lengths)[:-1])
        return Sequences(np.concatenate([parts[row] for row in rows]), self.lengths[rows])

    def standardized(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> Any:
        """Return what a network reads, (n, T, F), or a list of (T_i, F), of float32."""
        with np.errstate(over="ignore", invalid="ignore"):
            steps = ((self.steps - mean) / scale).astype(np.float32)
        if not np.isfinite(steps).all():
            raise ValueError(
                "X: expected numbers that fit float32 (after standardisation, if it is asked for),"
                " got larger ones"
            )
        if np.all(self.lengths == self.lengths[0]):
            return steps.reshape(len(self.lengths), -1, steps.shape[1])
        return np.split(steps, np.cumsum(self.lengths)[:-1])


def read_sequences(X: Any) -> Sequences:
    """Read what people hand over as X."""
    expected = "(n, T, F), (n, T), or a list of (T_i, F) or (T_i,)"
    is_objects = isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1
    items: Any
    if is_objects or isinstance(X, (list, tuple)):
        items = [to_numbers("X", expected, item) for item in X]
        axes = {item.ndim for item in items} or {1}
    else:
        items = to_numbers("X", expected, X)
        axes = {items.ndim - 1}
    if axes not in ({1}, {2}):
        shapes = getattr(items, "shape", f"sequences of {sorted(axes)} axes")
        raise ValueError(f"X: expected {expected}, got {shapes}")
    if not len(items):
        raise ValueError("X: expected at least 1 sequence, got 0")
    sequences = [item if item.ndim == 2 else item[:, np.newaxis] for item in items]
    features = {sequence.shape[1] for sequence in sequences}
    if len(features) > 1 or 0 in features:
        raise ValueError(f"X: expected sequences of equally many features, got {sorted(features)}")
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    if not lengths.all():
        raise ValueError(
            f"X: expected sequences of at least 1 step, got 0 of sequence {lengths.argmin()}"
        )
    return Sequences(np.concatenate(sequences), lengths)
