"""Activation functions and their derivatives, over the last axis of rows (N, F)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastrnn.functional import FloatArray

__all__ = ["NAMES", "Activation", "get", "log_softmax", "sigmoid", "softmax"]

_GELU_SCALE = math.sqrt(2 / math.pi)
_GELU_CUBE = 0.044715


class Activation(NamedTuple):
    """A function y = f(x), and its gradient.

    Attributes
    ----------
    function : callable
        x -> y, a new array.
    gradient : callable
        (x, y, dL/dy) -> dL/dx.
    """

    function: Callable[[FloatArray], FloatArray]
    gradient: Callable[[FloatArray, FloatArray, FloatArray], FloatArray]


def sigmoid(x: FloatArray) -> FloatArray:
    """Compute 1 / (1 + exp(-x)), without overflow.

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    with np.errstate(over="ignore"):  # exp(1000) is inf, and 1 / inf the right answer
        y: FloatArray = 1 / (1 + np.exp(-x))
    return y


def softmax(x: FloatArray) -> FloatArray:
    """Compute exp(x) over its sum along the last axis, without overflow.

    Examples
    --------
    >>> softmax(np.array([[1000.0, 1000.0]])).tolist()
    [[0.5, 0.5]]
    """
    y: FloatArray = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y


def log_softmax(x: FloatArray) -> FloatArray:
    """Compute the logarithm of `softmax`, which is finite where that is 0.

    Examples
    --------
    >>> log_softmax(np.array([[1000.0, 0.0]])).tolist()
    [[0.0, -1000.0]]
    """
    shifted: FloatArray = x - x.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _softplus(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(x: FloatArray) -> FloatArray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _gelu_tanh(x: FloatArray) -> FloatArray:
    return np.tanh(_GELU_SCALE * (x + _GELU_CUBE * x * x * x))


def _gelu(x: FloatArray) -> FloatArray:
    return 0.5 * x * (1 + _gelu_tanh(_clipped(x)))


def _gelu_gradient(x: FloatArray, y: FloatArray, grad: FloatArray) -> FloatArray:
    x = _clipped(x)
    inner = _gelu_tanh(x)
    slope = _GELU_SCALE * (1 + 3 * _GELU_CUBE * x * x) * (1 - inner * inner)
    return grad * (0.5 * (1 + inner) + 0.5 * x * slope)


def _clipped(x: FloatArray) -> FloatArray:
    """Bound x where the tanh of gelu is ±1 anyway, so that x³ does not overflow."""
    return np.clip(x, -100, 100)


def _silu_gradient(x: FloatArray, y: FloatArray, grad: FloatArray) -> FloatArray:
    s = sigmoid(x)
    return grad * (s + y * (1 - s))


def _softmax_gradient(x: FloatArray, y: FloatArray, grad: FloatArray) -> FloatArray:
    along: FloatArray = (grad * y).sum(axis=-1, keepdims=True)
    return y * (grad - along)


_ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x: x.copy(), lambda x, y, grad: grad.copy()),
    "sigmoid": Activation(sigmoid, lambda x, y, grad: grad * y * (1 - y)),
    "tanh": Activation(np.tanh, lambda x, y, grad: grad * (1 - y * y)),
    "relu": Activation(lambda x: np.maximum(x, 0), lambda x, y, grad: grad * (x > 0)),
    "leaky_relu": Activation(
        lambda x: np.maximum(x, 0.01 * x),
        lambda x, y, grad: np.where(x > 0, grad, 0.01 * grad),
    ),
    "elu": Activation(_elu, lambda x, y, grad: np.where(x > 0, grad, grad * (y + 1))),
    "gelu": Activation(_gelu, _gelu_gradient),
    "silu": Activation(lambda x: x * sigmoid(x), _silu_gradient),
    "softplus": Activation(_softplus, lambda x, y, grad: grad * sigmoid(x)),
    "softmax": Activation(softmax, _softmax_gradient),
    "log_softmax": Activation(
        log_softmax,
        lambda x, y, grad: grad - np.exp(y) * grad.sum(axis=-1, keepdims=True),
    ),
}
NAMES = tuple(_ACTIVATIONS)


def get(argument: str, name: str) -> Activation:
    """Return the activation of a name, or raise an error that names the argument.

    Examples
    --------
    >>> get("activation", "sine")
    Traceback (most recent call last):
    ValueError: activation: expected one of 'linear', 'sigmoid', 'tanh', 'relu', 'leaky_relu', \
'elu', 'gelu', 'silu', 'softplus', 'softmax', 'log_softmax', got 'sine'
    """
    return _ACTIVATIONS[functional.choice(argument, name, NAMES)]
