"""Metrics of predictions, which add up over batches.

Letters: T steps, B batch, n outputs or classes, N valid positions. A position is one row of one
step, as in `fastrnn.losses`.

Most values of a whole data set are not the mean of those of its batches. So a `Metric` has two
parts: `partial` of each batch, whose sum `result` turns into the value.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional, losses
from fastrnn.losses import read_array, read_prediction, select_positions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from fastrnn.functional import FloatArray, SupportsArray

__all__ = [
    "NAMED",
    "Metric",
    "TopK",
    "accuracy",
    "binary_accuracy",
    "get",
    "mae",
    "mse",
    "perplexity",
    "r2",
    "top_5_accuracy",
]

# Sums of squares are known to a few units of the last digit; a smaller spread is none.
_ROUNDING = 64 * np.finfo(np.float64).eps


class Metric:
    """A value that tells how good predictions are, aggregated over batches.

    A subclass gives `partial` and, unless it is a mean, `result`.

    Attributes
    ----------
    name : str
        What the value is called in a log.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> prediction, target = rng.normal(size=(6, 1)), rng.normal(size=(6, 1))
    >>> partials = r2.partial(prediction[:4], target[:4]) + r2.partial(prediction[4:], target[4:])
    >>> bool(np.isclose(r2.result(partials), r2(prediction, target)))
    True
    """

    name: str

    def __call__(
        self,
        prediction: SupportsArray,
        target: ArrayLike | SupportsArray,
        *,
        mask: ArrayLike | SupportsArray | None = None,
    ) -> float:
        """Compute the value for predictions.

        Parameters
        ----------
        prediction : array (..., n) of float32 or float64
            With leading axes (B,) or (T, B), or more of them.
        target : array
            What was to be predicted.
        mask : bools over the leading axes, optional
            Which positions are valid. The others count nowhere and may hold anything, NaN too.

        Returns
        -------
        float
            The value; NaN if no position is valid.
        """
        return self.result(self.partial(prediction, target, mask=mask))

    def partial(
        self,
        prediction: SupportsArray,
        target: ArrayLike | SupportsArray,
        *,
        mask: ArrayLike | SupportsArray | None = None,
    ) -> NDArray[np.float64]:
        """Return what of one batch goes into the value, which is added over batches.

        Parameters
        ----------
        prediction, target, mask
            As of a call.

        Returns
        -------
        ndarray of float64
            Of a mean: the sum over the valid positions and their number N.
        """
        array, valid = read_prediction(prediction, mask)
        *leading, n = array.shape
        targets = self._read_target(target, tuple(leading), n)
        axes = len(leading)
        return self._partial(
            select_positions(array, valid, axes), select_positions(targets, valid, axes)
        )

    def result(self, partials: NDArray[np.float64]) -> float:
        """Return the value.

        Parameters
        ----------
        partials : ndarray
            Sum of what `partial` returned of each batch.

        Returns
        -------
        float
            The value over all of them.
        """
        total, count = partials.tolist()
        return total / count if count else math.nan

    def __repr__(self) -> str:
        return f"<metric {self.name}>"

    def _read_target(self, target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
        raise NotImplementedError

    def _partial(self, prediction: FloatArray, target: NDArray[Any]) -> NDArray[np.float64]:
        """Return the partial result of rows (N, n) and their targets."""
        raise NotImplementedError


def _read_bits(target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
    """Read an array of the prediction's shape, whose last axis may be missing if it is 1."""
    shape = (*positions, n)
    if n != 1:
        return read_array("target", target, "biuf", f"numbers {shape}", shape)
    expected = f"numbers {positions} or {shape}"
    return read_array("target", target, "biuf", expected, positions, shape).reshape(shape)


def _right_bits(prediction: FloatArray, target: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where the sign of a logit is that of its bit, which it never is for NaN."""
    wrong = target[(target != 0) & (target != 1)]
    if wrong.size:
        raise ValueError(f"target: expected 0 or 1, got {wrong[0]}")
    return np.where(target == 1, prediction > 0, prediction <= 0)


def _read_choice(target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
    """Read classes or one-hot vectors."""
    expected = f"integers {positions} or one-hot {(*positions, n)}"
    array = read_array("target", target, "biuf", expected, positions, (*positions, n))
    if array.shape == positions and array.dtype.kind not in "iu":
        raise TypeError(f"target: expected {expected}, got {array.shape} {array.dtype}")
    return array


def _classes(target: NDArray[Any], n: int) -> NDArray[np.intp]:
    """Return the classes (N,) of rows of classes or one-hot vectors."""
    if target.ndim == 1:
        wrong = target[(target < 0) | (target >= n)]
        if wrong.size:
            raise ValueError(f"target: expected classes in [0, {n}), got {wrong[0]}")
        return target.astype(np.intp, copy=False)
    # Several ones in a row are several labels: argmax would look at the first only.
    ones, zeros = target == 1, target == 0
    bad = target[(ones.sum(axis=1) != 1) | (zeros.sum(axis=1) != n - 1)]
    if len(bad):
        raise ValueError(f"target: expected one-hot vectors, got {bad[0]}")
    classes: NDArray[np.intp] = ones.argmax(axis=1)
    return classes


class _BinaryAccuracy(Metric):
    """Share of right answers to n yes-or-no questions at each position."""

    name = "binary_accuracy"

    def _read_target(self, target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
        return _read_bits(target, positions, n)

    def _partial(self, prediction: FloatArray, target: NDArray[Any]) -> NDArray[np.float64]:
        N, n = prediction.shape
        right = np.count_nonzero(_right_bits(prediction, target))
        return np.array([right / max(n, 1), N], np.float64)


class TopK(Metric):
    """Share of the positions whose class is among the k of the largest logits.

    The target is integers over the leading axes, each a class in [0, n), or one-hot (..., n). Of
    equal logits that of the smaller class counts as the larger, as argmax has it. A class whose
    logit is NaN is never right, and other NaN count as larger.

    Parameters
    ----------
    k : int
        Number of guesses, in [1, n].

    Examples
    --------
    >>> prediction = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    >>> TopK(1)(prediction, [1, 1]), TopK(2)(prediction, [1, 1])
    (0.5, 1.0)
    """

    def __init__(self, k: int) -> None:
        self.k = functional.integer("k", k, 1)
        self.name = f"top_{self.k}_accuracy"

    def _read_target(self, target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
        if self.k > n:  # all would be right
            noun = "class" if self.k == 1 else "classes"
            raise ValueError(f"prediction: expected at least {self.k} {noun}, got {n}")
        return _read_choice(target, positions, n)

    def _partial(self, prediction: FloatArray, target: NDArray[Any]) -> NDArray[np.float64]:
        N, n = prediction.shape
        classes = _classes(target, n)[:, np.newaxis]
        own = np.take_along_axis(prediction, classes, axis=1)
        ahead = ~(prediction <= own)  # so that NaN is ahead, too
        ahead |= (prediction == own) & (np.arange(n) < classes)
        right = np.count_nonzero(ahead.sum(axis=1) < self.k)
        return np.array([right, N], np.float64)


class _Accuracy(TopK):
    """Share of the positions that are classified rightly.

    For n > 1 classes the largest logit is the answer, else whether the only logit is more than 0.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self.name = "accuracy"

    def _read_target(self, target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
        if n == 1:
            return _read_bits(target, positions, n)
        return super()._read_target(target, positions, n)

    def _partial(self, prediction: FloatArray, target: NDArray[Any]) -> NDArray[np.float64]:
        if prediction.shape[1] == 1:
            right = np.count_nonzero(_right_bits(prediction, target))
            return np.array([right, len(prediction)], np.float64)
        return super()._partial(prediction, target)


class _MeanLoss(Metric):
    """The value of a loss, whose partial results are its mean times N, and N."""

    def __init__(self, name: str, loss: losses.Loss) -> None:
        self.name = name
        self.loss = loss

    def partial(
        self,
        prediction: SupportsArray,
        target: ArrayLike | SupportsArray,
        *,
        mask: ArrayLike | SupportsArray | None = None,
    ) -> NDArray[np.float64]:
        array, valid = read_prediction(prediction, mask)
        N = math.prod(array.shape[:-1]) if valid is None else np.count_nonzero(valid)
        value, _ = self.loss(array, target, mask=valid)
        return np.array([value * N, N], np.float64)


class _Perplexity(_MeanLoss):
    """exp of the cross-entropy: among how many equally likely classes the prediction is at sea."""

    def __init__(self) -> None:
        super().__init__("perplexity", losses.CrossEntropy())

    def result(self, partials: NDArray[np.float64]) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(super().result(partials)))


class _R2(Metric):
    """Coefficient of determination, averaged over the n outputs."""

    name = "r2"

    def _read_target(self, target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
        shape = (*positions, n)
        return read_array("target", target, "biuf", f"numbers {shape}", shape)

    def _partial(self, prediction: FloatArray, target: NDArray[Any]) -> NDArray[np.float64]:
        """Return (4, n): N, sums of targets, of their squares, of squared errors."""
        t = target.astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            error = prediction.astype(np.float64, copy=False) - t
            counts = np.full(t.shape[1], len(t), np.float64)
            return np.stack(
                [counts, t.sum(axis=0), np.square(t).sum(axis=0), np.square(error).sum(axis=0)]
            )

    def result(self, partials: NDArray[np.float64]) -> float:
        N, sums, squares, errors = partials
        if not N.size or N[0] < 2:  # one target has no spread
            return math.nan
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            spread = squares - np.square(sums) / N
            constant = spread <= _ROUNDING * squares
            values = 1 - errors / np.where(constant, 1, spread)
        perfect = np.where(errors == 0, 1.0, np.where(np.isnan(errors), np.nan, 0.0))
        return float(np.where(constant, perfect, values).mean())


class _FunctionMetric(Metric):
    """The mean of what a function gives for the batches, weighted by their valid positions."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def _read_target(self, target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
        expected = f"an array with leading axes {positions}"
        array = np.asarray(functional.listed("target", expected, target))
        if array.shape[: len(positions)] != positions:
            raise ValueError(f"target: expected {expected}, got {array.shape} {array.dtype}")
        return array

    def _partial(self, prediction: FloatArray, target: NDArray[Any]) -> NDArray[np.float64]:
        N = len(prediction)
        if N == 0:
            return np.zeros(2)
        value = np.asarray(self.function(prediction, target))
        if value.shape != () or value.dtype.kind not in "biuf":
            raise TypeError(
                f"{self.name}: expected a metric that returns a number, got"
                f" {value.shape} {value.dtype}"
            )
        return np.array([float(value) * N, N], np.float64)


#: Share of the positions that are classified rightly. For n > 1 classes the largest logit is the
#: answer, and the target is integers over the leading axes or one-hot (..., n). For n = 1 a logit
#: above 0 means 1, and the target is 0 or 1, (...) or (..., 1). NaN is never right.
accuracy: Metric = _Accuracy()

#: Share of the n yes-or-no questions at each position whose logit is above 0 where the target
#: (..., n) is 1, and not above 0 where it is 0. NaN is never right.
binary_accuracy: Metric = _BinaryAccuracy()

#: Mean squared error, `fastrnn.losses.MSE`.
mse: Metric = _MeanLoss("mse", losses.MSE())

#: Mean absolute error, `fastrnn.losses.MAE`.
mae: Metric = _MeanLoss("mae", losses.MAE())

#: exp of the cross-entropy of logits, for targets as of `fastrnn.losses.CrossEntropy`.
perplexity: Metric = _Perplexity()

#: Coefficient of determination, 1 - sum (t - y)² / sum (t - mean t)² of each output, averaged over
#: the n outputs. As in scikit-learn, an output whose target is constant has 1 if its predictions
#: are exact, else 0, and fewer than 2 positions have NaN. The spread of targets counts as 0 where
#: it is below 1e-7 of their size, as sums of squares cannot tell it from rounding.
r2: Metric = _R2()

#: `TopK` for 5 guesses.
top_5_accuracy: Metric = TopK(5)

#: The metrics by name.
NAMED = {
    metric.name: metric
    for metric in (accuracy, binary_accuracy, mse, mae, r2, perplexity, top_5_accuracy)
}


def get(name_or_metric: str | Callable[..., Any]) -> Metric:
    """Return the metric of a name, or make one of a function.

    Parameters
    ----------
    name_or_metric : str or callable
        "accuracy", "binary_accuracy", "mse", "mae", "r2", "perplexity", "top_5_accuracy", a
        `Metric`, a loss of `fastrnn.losses`, or a function. That is given the valid positions of
        a batch alone, a prediction (N, n) and a target (N, ...), and returns a number, of which the
        mean over the batches is taken, weighted by N.

    Returns
    -------
    Metric
        The metric.

    Examples
    --------
    >>> get("accuracy")(np.array([[0.3, 0.7], [0.9, 0.1]]), [1, 1])
    0.5
    >>> def largest_error(prediction, target):
    ...     return abs(prediction - target).max()
    >>> metric = get(largest_error)
    >>> metric.name, metric(np.array([[1.0], [2.0]]), [[1.5], [2.0]])
    ('largest_error', 0.5)
    """
    if isinstance(name_or_metric, Metric):
        return name_or_metric
    if isinstance(name_or_metric, losses.Loss):
        return _MeanLoss(type(name_or_metric).__name__, name_or_metric)
    if callable(name_or_metric) and not isinstance(name_or_metric, type):
        return _FunctionMetric(name_or_metric)
    return NAMED[functional.choice("metric", name_or_metric, tuple(NAMED))]
