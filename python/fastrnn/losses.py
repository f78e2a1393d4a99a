"""Losses of predictions, with their gradients.

Letters: T steps, B batch, n outputs or classes, N valid positions. A position is one row of one
step: an index into the leading axes (B,) or (T, B) of a prediction (B, n) or (T, B, n).

A loss computes in the prediction's dtype and sums in float64. What is not finite passes through
without a warning, as it does in torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from fastrnn.functional import FloatArray, SupportsArray

__all__ = ["MAE", "MSE", "BinaryCrossEntropy", "CrossEntropy", "Huber", "Loss", "get"]


def read_array(
    name: str, value: Any, kinds: str, expected: str, *shapes: tuple[int, ...]
) -> NDArray[Any]:
    """Read an array or lists of one of the `kinds` and, if given, one of the `shapes`."""
    array = np.asarray(functional.listed(name, expected, value))
    error: type[Exception] | None = None
    if array.dtype.kind not in kinds:
        error = TypeError
    elif shapes and array.shape not in shapes:
        error = ValueError
    if error:
        raise error(f"{name}: expected {expected}, got {array.shape} {array.dtype}")
    return array


def select_positions(
    array: NDArray[Any], valid: NDArray[np.bool_] | None, axes: int
) -> NDArray[Any]:
    """Join the first `axes` axes to one of the valid positions."""
    if valid is not None:
        return array[valid]
    # Not -1, which NumPy cannot resolve for an empty array.
    return array.reshape(math.prod(array.shape[:axes]), *array.shape[axes:])


def _weights(name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """Return weights as float64, or raise an error that names the argument."""
    weights = array.astype(np.float64, copy=False)
    wrong = weights[~((weights >= 0) & (weights < math.inf))]  # so that NaN is wrong, too
    if wrong.size:
        raise ValueError(f"{name}: expected finite numbers >= 0, got {wrong[0]}")
    return weights


def _check_probabilities(target: NDArray[Any]) -> None:
    # Mixing two distributions can exceed 1 by rounding, of float32 by 1e-7.
    wrong = target[~((target >= -1e-6) & (target <= 1 + 1e-6))]
    if wrong.size:
        raise ValueError(f"target: expected numbers in [0, 1], got {wrong[0]}")


def read_prediction(prediction: Any, mask: Any) -> tuple[FloatArray, NDArray[np.bool_] | None]:
    """Return a prediction and its mask as arrays, or raise an error that names the argument."""
    array = np.asarray(functional.view("prediction", prediction))
    if array.ndim < 2:
        raise ValueError(
            "prediction: expected (B, n) or (T, B, n) float32 or float64, got"
            f" {array.shape} {array.dtype}"
        )
    functional.float_dtype("prediction", array.dtype)
    positions = array.shape[:-1]
    valid = None
    if mask is not None:
        valid = read_array("mask", mask, "b", f"bools {positions}", positions)
    return array, valid


class Loss:
    """What the losses share; use one of the others.

    A loss is the weighted mean over the N valid positions, sum_i w_i·L_i / sum_i w_i, where w_i is
    the sample weight (1 by default) and L_i the loss of a position.
    """

    def __call__(
        self,
        prediction: SupportsArray,
        target: ArrayLike | SupportsArray,
        *,
        mask: ArrayLike | SupportsArray | None = None,
        sample_weight: ArrayLike | SupportsArray | None = None,
        class_weight: ArrayLike | SupportsArray | None = None,
    ) -> tuple[float, FloatArray]:
        """Compute the loss and its gradient.

        Parameters
        ----------
        prediction : array (..., n) of float32 or float64
            With leading axes (B,) or (T, B), or more of them.
        target : array
            What was to be predicted, (..., n); see `CrossEntropy` for its own.
        mask : bools over the leading axes, optional
            Which positions are valid. The others count nowhere and may hold anything, NaN too.
        sample_weight : numbers >= 0 that broadcast to the leading axes, optional
            Weight of each position.
        class_weight : array, optional
            See `BinaryCrossEntropy` and `CrossEntropy`; the others have no classes.

        Returns
        -------
        value : float
            The loss; 0 if no position is valid or all weights are 0.
        gradient : ndarray
            Its gradient with respect to `prediction`, of the same shape and dtype; 0 at positions
            that are not valid.

        Examples
        --------
        >>> prediction = np.array([[[1.0], [2.0]], [[4.0], [np.nan]]])
        >>> mask = [[True, True], [True, False]]
        >>> value, gradient = MSE()(prediction, np.zeros((2, 2, 1)), mask=mask)
        >>> value, gradient.ravel().round(3).tolist()
        (7.0, [0.667, 1.333, 2.667, 0.0])
        """
        prediction, valid = read_prediction(prediction, mask)
        *leading, n = prediction.shape
        positions = tuple(leading)
        targets = self._read_target(target, positions, n)
        sample_weights = self._read_sample_weight(sample_weight, positions)
        rows = select_positions(prediction, valid, len(positions))
        targets = select_positions(targets, valid, len(positions))
        weights = _weights("sample_weight", select_positions(sample_weights, valid, len(positions)))
        with np.errstate(over="ignore", invalid="ignore"):
            values, slopes, divisors = self._rows(
                rows, targets, self._read_class_weight(class_weight, n)
            )
            total = float(np.sum(weights * divisors))
            if total == 0:
                return 0.0, np.zeros_like(prediction, order="C")
            value = float(np.sum(weights * values)) / total
            slopes *= (weights / total).astype(prediction.dtype)[:, np.newaxis]
        if valid is None:
            return value, slopes.reshape(prediction.shape)
        gradient = np.zeros_like(prediction, order="C")
        gradient[valid] = slopes
        return value, gradient

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"

    def _read_target(self, target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
        shape = (*positions, n)
        return read_array("target", target, "biuf", f"numbers {shape}", shape)

    @staticmethod
    def _read_sample_weight(given: Any, positions: tuple[int, ...]) -> NDArray[Any]:
        expected = f"numbers that broadcast to {positions}"
        array = read_array("sample_weight", 1.0 if given is None else given, "biuf", expected)
        try:
            return np.broadcast_to(array, positions)
        except ValueError:
            raise ValueError(
                f"sample_weight: expected {expected}, got {array.shape} {array.dtype}"
            ) from None

    def _read_class_weight(self, given: Any, n: int) -> NDArray[np.float64] | None:
        if given is not None:
            raise ValueError(
                f"class_weight: expected None for {type(self).__name__}, which has no classes, got"
                f" {given!r}"
            )
        return None

    def _rows(
        self, prediction: FloatArray, target: NDArray[Any], class_weight: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], FloatArray, NDArray[np.float64] | float]:
        """Return the loss (N,) of each row, its new gradient (N, n), and the divisor's terms."""
        raise NotImplementedError


class _Elementwise(Loss):
    """The loss of a position is the mean over its n elements."""

    def _rows(
        self, prediction: FloatArray, target: NDArray[Any], class_weight: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], FloatArray, float]:
        values, slopes = self._elements(
            prediction, target.astype(prediction.dtype, copy=False), class_weight
        )
        n = max(prediction.shape[1], 1)
        slopes /= n
        return values.sum(axis=1, dtype=np.float64) / n, slopes, 1.0

    def _elements(
        self, prediction: FloatArray, target: FloatArray, class_weight: NDArray[np.float64] | None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the loss (N, n) of each element and its gradient, which is a new array."""
        raise NotImplementedError


class MSE(_Elementwise):
    """Mean squared error: L = (y - t)² for a prediction y and a target t, over all elements.

    Notes
    -----
    The gradient of an element is 2·(y - t) over the number of elements. It is the negative
    log-likelihood of a normal distribution, but for constants [1]_.

    References
    ----------
    .. [1] C. M. Bishop. Pattern recognition and machine learning. Springer, 2006. Section 1.2.5.

    Examples
    --------
    >>> prediction = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    >>> value, gradient = MSE()(prediction, np.zeros((5, 3, 2)))
    >>> bool(np.isclose(value, (prediction**2).mean())), gradient.shape, gradient.dtype.name
    (True, (5, 3, 2), 'float32')
    """

    def _elements(
        self, prediction: FloatArray, target: FloatArray, class_weight: NDArray[np.float64] | None
    ) -> tuple[FloatArray, FloatArray]:
        error = prediction - target
        return error * error, 2 * error


class MAE(_Elementwise):
    """Mean absolute error: ``L = |y - t|`` for a prediction y and a target t, over all elements.

    Notes
    -----
    The gradient of an element is sign(y - t) over the number of elements, 0 where y = t. The
    minimum is at the median, which outliers do not move [1]_.

    References
    ----------
    .. [1] P. Bloomfield, W. L. Steiger. Least absolute deviations. Birkhäuser, 1983.

    Examples
    --------
    >>> prediction = np.random.default_rng(0).normal(size=(5, 3, 2))
    >>> value, gradient = MAE()(prediction, np.zeros((5, 3, 2)))
    >>> bool(np.isclose(value, np.abs(prediction).mean()))
    True
    """

    def _elements(
        self, prediction: FloatArray, target: FloatArray, class_weight: NDArray[np.float64] | None
    ) -> tuple[FloatArray, FloatArray]:
        error = prediction - target
        return np.abs(error), np.sign(error)


class Huber(_Elementwise):
    """Huber's loss [1]_: squared for small errors, linear for large ones.

    For e = y - t, a prediction y and a target t, ``L = e²/2`` where ``|e| <= delta`` and
    ``delta·(|e| - delta/2)`` elsewhere, averaged over all elements.

    Parameters
    ----------
    delta : float, default 1
        Error from which on the loss is linear; more than 0.

    Notes
    -----
    The gradient of an element is e, clipped to ±delta, over the number of elements.

    References
    ----------
    .. [1] P. J. Huber. Robust estimation of a location parameter. The Annals of Mathematical
           Statistics 35(1), 1964.

    Examples
    --------
    >>> prediction = np.random.default_rng(0).normal(size=(5, 3, 2))
    >>> target = prediction + 3
    >>> Huber(delta=2.0)(prediction, target)[0]  # 2 * (3 - 2 / 2)
    4.0
    """

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = functional.number("delta", delta)
        if not self.delta > 0:
            raise ValueError(f"delta: expected a number > 0, got {delta}")

    def _elements(
        self, prediction: FloatArray, target: FloatArray, class_weight: NDArray[np.float64] | None
    ) -> tuple[FloatArray, FloatArray]:
        error = prediction - target
        clipped = np.clip(error, -self.delta, self.delta)
        return clipped * (error - clipped / 2), clipped  # both branches at once


class BinaryCrossEntropy(_Elementwise):
    """Cross-entropy of n independent yes-or-no questions, from logits.

    For a logit z and a target t in [0, 1], with s the logistic sigmoid,
    L = -(w·t·log s(z) + (1 - t)·log s(-z)), averaged over all elements. This is
    ``torch.nn.BCEWithLogitsLoss``, and the class weight w is its ``pos_weight``: a number, or an
    array (n,), by which positive targets count more than negative ones. It is no part of the
    divisor.

    Notes
    -----
    The gradient of an element is (1 - t)·s(z) - w·t·s(-z) over the number of elements. All is
    computed from exp(-|z|), which cannot overflow, and 1 - s(z) is never formed, so that small
    losses keep their digits [1]_.

    References
    ----------
    .. [1] M. Mächler. Accurately computing log(1 - exp(-|a|)). CRAN, 2012.

    Examples
    --------
    >>> logits = np.random.default_rng(0).normal(size=(5, 3, 1))
    >>> target = logits > 0
    >>> round(BinaryCrossEntropy()(logits, target)[0], 3)
    0.438
    >>> BinaryCrossEntropy()(1e6 * logits, target)[0]
    0.0
    """

    def _read_class_weight(self, given: Any, n: int) -> NDArray[np.float64] | None:
        if given is None:
            return None
        array = read_array("class_weight", given, "biuf", f"a number or numbers ({n},)", (), (n,))
        return _weights("class_weight", array)

    def _elements(
        self, prediction: FloatArray, target: FloatArray, class_weight: NDArray[np.float64] | None
    ) -> tuple[FloatArray, FloatArray]:
        _check_probabilities(target)
        yes, no = target, 1 - target
        if class_weight is not None:
            yes = target * class_weight.astype(target.dtype)
        small = np.exp(-np.abs(prediction))
        tail = np.log1p(small)
        values = yes * (np.maximum(-prediction, 0) + tail) + no * (np.maximum(prediction, 0) + tail)
        large_side, small_side = 1 / (1 + small), small / (1 + small)  # s(|z|), s(-|z|)
        positive = prediction >= 0
        slopes = no * np.where(positive, large_side, small_side)
        slopes -= yes * np.where(positive, small_side, large_side)
        return values, slopes


class CrossEntropy(Loss):
    """Cross-entropy of one choice among n classes, from logits.

    For logits z and a distribution p over the classes, L = -sum_c w_c·p_c·log softmax(z)_c,
    averaged over the positions. This is ``torch.nn.CrossEntropyLoss`` with the classes on the last
    axis.

    Parameters
    ----------
    label_smoothing : float, default 0
        Mixes the target with the uniform distribution [1]_: p becomes
        (1 - label_smoothing)·p + label_smoothing/n. In [0, 1).

    Notes
    -----
    The target is either integers over the leading axes, each a class in [0, n), or probabilities
    (..., n). The class weights w (n,) are 1 by default. As in torch, a position adds the weight of
    its class to the divisor if the target is integers, else 1.

    The gradient of a position is softmax(z)·sum_c w_c·p_c - w·p over the divisor. The largest logit
    is subtracted before exp, which therefore cannot overflow [2]_.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna. Rethinking the inception
           architecture for computer vision. CVPR 2016.
    .. [2] P. Blanchard, D. J. Higham, N. J. Higham. Accurately computing the log-sum-exp and
           softmax functions. IMA Journal of Numerical Analysis 41(4), 2021.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> logits, target = rng.normal(size=(5, 3, 4)), rng.integers(4, size=(5, 3))
    >>> value, gradient = CrossEntropy()(logits, target)
    >>> bool(abs(gradient.sum(axis=-1)).max() < 1e-15)
    True
    >>> for _ in range(100):
    ...     logits -= CrossEntropy()(logits, target)[1] * 15
    >>> bool((logits.argmax(axis=-1) == target).all())
    True
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = functional.number("label_smoothing", label_smoothing)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing: expected a number in [0, 1), got {self.label_smoothing}"
            )

    def _read_target(self, target: Any, positions: tuple[int, ...], n: int) -> NDArray[Any]:
        expected = f"integers {positions} or probabilities {(*positions, n)}"
        array = read_array("target", target, "biuf", expected, positions, (*positions, n))
        if array.shape == positions and array.dtype.kind not in "iu":
            raise TypeError(f"target: expected {expected}, got {array.shape} {array.dtype}")
        return array

    def _read_class_weight(self, given: Any, n: int) -> NDArray[np.float64] | None:
        if given is None:
            return None
        return _weights(
            "class_weight", read_array("class_weight", given, "biuf", f"numbers ({n},)", (n,))
        )

    def _rows(
        self, prediction: FloatArray, target: NDArray[Any], class_weight: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], FloatArray, NDArray[np.float64] | float]:
        N, n = prediction.shape
        if n < 2:
            raise ValueError(
                f"prediction: expected at least 2 classes, got {n}; one logit, which answers"
                " yes or no, is for BinaryCrossEntropy"
            )
        shifted = prediction - prediction.max(axis=1, keepdims=True)
        softmax = np.exp(shifted)
        sums = softmax.sum(axis=1, keepdims=True, dtype=np.float64)
        softmax /= sums.astype(prediction.dtype)
        log_sums = np.log(sums[:, 0])  # so that log softmax = shifted - log_sums

        divisors: NDArray[np.float64] | float = 1.0
        rows = np.arange(N)
        if target.ndim == 1:
            wrong = target[(target < 0) | (target >= n)]
            if wrong.size:
                raise ValueError(f"target: expected classes in [0, {n}), got {wrong[0]}")
            target = target.astype(np.intp, copy=False)
            if class_weight is not None:
                divisors = class_weight[target]
            if not self.label_smoothing:
                # One class in a row counts: no array of probabilities is needed.
                softmax[rows, target] -= 1
                if class_weight is not None:
                    softmax *= class_weight[target, np.newaxis]
                return divisors * (log_sums - shifted[rows, target]), softmax, divisors
            probabilities = np.zeros_like(prediction)
            probabilities[rows, target] = 1
        else:
            _check_probabilities(target)
            probabilities = target.astype(prediction.dtype)
        if self.label_smoothing:
            probabilities *= 1 - self.label_smoothing
            probabilities += self.label_smoothing / n
        if class_weight is not None:
            probabilities *= class_weight
        masses = probabilities.sum(axis=1, dtype=np.float64)
        values = masses * log_sums - np.sum(probabilities * shifted, axis=1, dtype=np.float64)
        softmax *= masses[:, np.newaxis]
        softmax -= probabilities
        return values, softmax, divisors


_LOSSES: dict[str, Callable[[], Loss]] = {
    "mse": MSE,
    "mae": MAE,
    "huber": Huber,
    "binary_cross_entropy": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
}


def get(name_or_loss: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return the loss of a name with its default options.

    Parameters
    ----------
    name_or_loss : str or callable
        "mse", "mae", "huber", "binary_cross_entropy", "cross_entropy", or a loss: one of this
        module, or any callable that takes and returns the same.

    Returns
    -------
    callable
        A new loss of that name, or what was given.

    Examples
    --------
    >>> get("huber")
    Huber(delta=1.0)
    """
    if callable(name_or_loss) and not isinstance(name_or_loss, type):
        return name_or_loss
    return _LOSSES[functional.choice("loss", name_or_loss, tuple(_LOSSES))]()
