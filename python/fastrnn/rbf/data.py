"""What people hand to radial-basis-function networks, checked and in a canonical form.

Letters: n rows, D features, k outputs or classes.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional
from fastrnn.scikit import (
    check_rows,
    encode,
    refuse_masked,
    sample_weights,
    to_numbers,
    validate,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = [
    "Rows",
    "divide",
    "folds",
    "merge",
    "read_classes",
    "read_labels",
    "read_targets",
]

_check_targets: Any = None
if validate is not None and not TYPE_CHECKING:
    from sklearn.utils.multiclass import check_classification_targets as _check_targets


class Rows(NamedTuple):
    """Rows that differ from each other, in an order that depends on nothing but themselves.

    Equal rows were merged: their targets averaged, their weights summed, which leaves all least
    squares and cross-entropies the same but for a constant. So a weight of 2 does what a row does
    that comes twice, and the order of the rows does not matter. What merging hides is kept beside:
    noise of the targets that no function of X explains, and how many rows there were.

    Attributes
    ----------
    X : ndarray (n, D)
        Features.
    Y : ndarray (n, k)
        Targets; of classes their probabilities.
    weights : ndarray (n,)
        Above 0.
    scatter : ndarray (n, k)
        Roots of the weighted sums of squares of what merged targets differ from Y by.
    counts : ndarray (n,)
        Observations that each row stands for. Weights that are all integers are such counts.
    """

    X: Array
    Y: Array
    weights: Array
    scatter: Array
    counts: Array

    def take(self, which: NDArray[Any]) -> Rows:
        """Return some of the rows."""
        return Rows(*(array[which] for array in self))

    def groups(self, has_classes: bool) -> NDArray[np.intp]:
        """Return the class of each row, or 0."""
        return self.Y.argmax(axis=1) if has_classes else np.zeros(len(self.X), np.intp)

    def statistics(self) -> tuple[Array, Array]:
        """Return mean and standard deviation of the features; 1 for what is constant."""
        mean = np.average(self.X, axis=0, weights=self.weights)
        scale = np.sqrt(np.average((self.X - mean) ** 2, axis=0, weights=self.weights))
        scale[scale <= len(self.X) * np.finfo(np.float64).eps * np.abs(mean)] = 1
        return mean, scale


def merge(X: Array, Y: Array, weights: Array | None) -> Rows:
    """Bring rows into the canonical form.

    Parameters
    ----------
    X : ndarray of float64 (n, D)
        Features.
    Y : ndarray of float64 (n, k)
        Targets.
    weights : ndarray of float64 (n,) or None
        Not below 0; None for equal ones.

    Examples
    --------
    >>> rows = merge(np.array([[1.0], [0.0], [1.0]]), np.array([[3.0], [5.0], [1.0]]), None)
    >>> rows.X.tolist(), rows.Y.tolist(), rows.weights.tolist()
    ([[0.0], [1.0]], [[5.0], [2.0]], [1.0, 2.0])
    """
    X = X + 0.0  # or -0 would differ from 0
    if weights is None:
        weights = np.ones(len(X))
    elif not weights.all():
        kept = weights > 0
        X, Y, weights = X[kept], Y[kept], weights[kept]
    counts = weights if np.all(weights == np.rint(weights)) else np.ones(len(X))
    # As bytes, a row is compared at once.
    keys = np.ascontiguousarray(X).view(np.dtype((np.void, X.shape[1] * 8))).ravel()
    order = np.argsort(keys, kind="stable")
    X, Y, weights, counts = X[order], Y[order], weights[order], counts[order]
    is_new = np.append(True, np.any(X[1:] != X[:-1], axis=1))
    if is_new.all():
        return Rows(X, Y, weights, np.zeros_like(Y), counts)
    starts = np.flatnonzero(is_new)
    totals = np.add.reduceat(weights, starts)
    means = np.add.reduceat(Y * weights[:, np.newaxis], starts) / totals[:, np.newaxis]
    off = np.abs(Y - means[np.cumsum(is_new) - 1]) * np.sqrt(weights)[:, np.newaxis]
    # Not as squares, which could be too large or too small for float64.
    scatter = np.hypot.reduceat(off, starts)
    return Rows(X[starts], means, totals, scatter, np.add.reduceat(counts, starts))


def folds(
    groups: NDArray[np.intp], count: int, generator: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Divide rows into parts with about the same share of each group."""
    order = generator.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    return [np.sort(order[start::count]) for start in range(count)]


def divide(
    groups: NDArray[np.intp], fraction: Any, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Mark rows to validate with, about the same part of each group."""
    n = len(groups)
    part = functional.number("validation_fraction", fraction, 0, 1)
    if part in (0, 1):
        raise ValueError(f"validation_fraction: expected a number > 0 and < 1, got {part}")
    if n < 2:
        raise ValueError(
            f"fine_tune: expected rows that differ, so that some can validate, got {n} different"
            " one, as equal rows are merged"
        )
    count = max(1, round(part * n))
    order = generator.permutation(n)
    order = order[np.argsort(groups[order], kind="stable")]
    held = np.zeros(n, bool)
    # Evenly spaced among rows that are sorted by group.
    held[order[((np.arange(count) + 0.5) * n / count).astype(np.intp)]] = True
    for group in np.unique(groups):  # training needs each of them
        members = groups == group
        if held[members].all():
            held[members] = False
    if held.all() or not held.any():
        raise ValueError(
            f"validation_fraction: expected a part of {n} rows that leaves some on either side,"
            f" got {fraction}"
        )
    return held


def read_targets(
    estimator: Any, X: Any, y: Any, sample_weight: Any, *, reset: bool, minimum: int
) -> tuple[Rows, bool]:
    """Check rows with numbers, and return them with whether y has one axis."""
    refuse_masked("X", X)
    refuse_masked("y", y)
    if validate is not None:
        X, y = validate(
            estimator,
            X,
            y,
            reset=reset,
            dtype=np.float64,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=minimum,
        )
        targets = np.asarray(y, np.float64)
    else:
        X = check_rows(estimator, X, reset=reset, minimum=minimum)
        targets = to_numbers("y", "numbers (n,) or (n, k)", y)
        if targets.ndim not in (1, 2) or (targets.ndim == 2 and not targets.shape[1]):
            raise ValueError(f"y: expected numbers (n,) or (n, k), got {targets.shape}")
        _check_count(X, targets)
    weights = _weights(sample_weight, len(X))
    return merge(X, targets.reshape(len(X), -1), weights), targets.ndim == 1


def _check_count(X: Array, y: NDArray[Any]) -> None:
    if len(y) != len(X):
        raise ValueError(f"y: expected {len(X)} targets, as X has rows, got {len(y)}")


def _weights(given: Any, n: int) -> Array | None:
    if given is None:
        return None
    weights = np.asarray(functional.listed("sample_weight", f"numbers >= 0 ({n},)", given))
    if weights.size and not weights.any():
        raise ValueError("sample_weight: expected weights that are not all zero")
    return sample_weights(weights, n)


def _check_kinds(name: str, labels: Any) -> None:
    """Raise unless labels are of one kind; NumPy would make texts of numbers among texts."""
    objects = np.dtype(object)
    if getattr(labels, "dtype", objects) != objects:
        return
    kinds = set()
    for label in np.asarray(labels, object).ravel():
        is_number = isinstance(label, (numbers.Number, np.bool_))
        kinds.add("number" if is_number else type(label).__name__)
    if len(kinds) > 1:
        found = ", ".join(sorted(kinds))
        raise ValueError(f"{name}: expected labels of one kind, all texts or all numbers: {found}")


def read_classes(given: Any) -> NDArray[Any]:
    """Check the labels that there can be, and return them sorted."""
    _check_kinds("classes", given)
    labels = np.asarray(functional.listed("classes", "labels (k,)", given))
    if labels.ndim != 1:
        raise ValueError(f"classes: expected labels (k,), got {labels.shape}")
    for label in labels.tolist():
        if label is None or label != label:
            raise ValueError(f"classes: expected labels, got {label}")
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"classes: expected at least 2 classes, got {len(classes)} class")
    return classes


def read_labels(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    classes: NDArray[Any] | None,
    *,
    reset: bool,
    minimum: int,
) -> tuple[Rows, NDArray[Any]]:
    """Check rows with labels, and return them with the sorted classes.

    `classes` are those that there can be, None for those of y, of which there have to be two.
    """
    refuse_masked("X", X)
    _check_kinds("y", y)
    if validate is not None:
        X, y = validate(estimator, X, y, reset=reset, dtype=np.float64, ensure_min_samples=minimum)
        _check_targets(y)
    else:
        X = check_rows(estimator, X, reset=reset, minimum=minimum)
    weights = _weights(sample_weight, len(X))
    if classes is None:
        classes, encoded = encode(y)
        _check_count(X, encoded)
        if weights is not None and len(np.unique(encoded[weights > 0])) < 2:
            raise ValueError(
                "sample_weight: expected at least 2 classes of weight > 0, got 1 class"
            )
    else:
        labels = np.asarray(y)
        if labels.shape != (len(X),):
            raise ValueError(f"y: expected labels ({len(X)},), got {labels.shape}")
        unknown = labels[~np.isin(labels, classes)]
        if unknown.size:
            raise ValueError(f"y: expected labels of classes, got {unknown[0]!r}")
        encoded = np.searchsorted(classes, labels)
    return merge(X, np.eye(len(classes))[encoded], weights), classes
