"""Layers that a network has besides the recurrent ones.

Letters: T steps, B batch, F features of the input. Sequences are time-major (T, B, F), rows are
(B, F). Where a call has lengths, steps beyond them come out as 0 and neither receive nor contribute
gradients, whatever they hold.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import activations, functional, initializers
from fastrnn.layer import Gradients, Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, DTypeLike, NDArray
    from typing_extensions import Self

    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Shape

__all__ = [
    "Activation",
    "BatchNorm",
    "Container",
    "Dense",
    "Dropout",
    "Embedding",
    "Ends",
    "Gradients",
    "Last",
    "Layer",
    "LayerNorm",
    "Pool",
    "Repeat",
    "Residual",
    "run",
    "run_back",
    "valid_steps",
]


def valid_steps(T: int, lengths: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which steps are valid.

    Parameters
    ----------
    T : int
        Steps.
    lengths : integers (B,)
        Valid steps of each row.

    Returns
    -------
    ndarray of bool (T, B)

    Examples
    --------
    >>> valid_steps(3, np.array([2, 0])).tolist()
    [[True, False], [True, False], [False, False]]
    """
    return np.arange(T)[:, np.newaxis] < lengths


def _features(x: SupportsArray, size: int | None, dtype: Any, what: str = "x") -> FloatArray:
    """View an input (…, F), or raise an error that names it."""
    array: FloatArray = np.asarray(functional.view(what, x))
    fits = array.ndim in (2, 3) and (size is None or array.shape[-1] == size)
    known = array.dtype in (np.float32, np.float64) if dtype is None else array.dtype == dtype
    if not fits or not known:
        F = "F" if size is None else size
        kind = "float32 or float64" if dtype is None else dtype
        raise ValueError(
            f"{what}: expected (T, B, {F}) or (B, {F}) {kind}, got {array.shape} {array.dtype}"
        )
    return array


def _sequence(x: SupportsArray, what: str = "x") -> FloatArray:
    array = _features(x, None, None, what)
    if array.ndim != 3:
        raise ValueError(f"{what}: expected (T, B, F), got {array.shape} {array.dtype}")
    return array


def _lengths(
    lengths: ArrayLike | None, shape: tuple[int, ...], axes: int = 3
) -> NDArray[np.int64] | None:
    """Check the lengths of an input that has steps, (T, B, …), if it has so many axes."""
    if lengths is None:
        return None
    if len(shape) != axes:
        raise ValueError(f"lengths: expected None for an input without steps {shape}")
    array = functional.integer_lengths(lengths)
    if array.shape != shape[1:2]:
        raise ValueError(f"lengths: expected integers {shape[1:2]}, got {array.shape}")
    wrong = array[(array < 0) | (array > shape[0])]
    if wrong.size:
        raise ValueError(f"lengths: expected integers in [0, {shape[0]}], got {wrong[0]}")
    return array


def _gradient(grad_output: Any, shape: tuple[int, ...], dtype: Any) -> FloatArray:
    """View the gradient of an output, which is zero by default."""
    if grad_output is None:
        return np.zeros(shape, dtype)
    gradient: FloatArray = np.asarray(functional.view("grad_output", grad_output))
    if gradient.shape != shape or gradient.dtype != dtype:
        raise ValueError(
            f"grad_output: expected {shape} {dtype}, got {gradient.shape} {gradient.dtype}"
        )
    return gradient


def _no_state(name: str, state: Any) -> None:
    """Raise if a layer without a state is given one, or its gradient."""
    if state is not None:
        raise ValueError(
            f"{name}: expected None, as the layer has no state, got {type(state).__name__}"
        )


class _Rows(NamedTuple):
    """Tape of a layer that works on each row of each step alone.

    Attributes
    ----------
    shape : tuple of int
        Of the output.
    valid : ndarray of bool (T, B) or None
        Which rows were given to the layer; None if all were.
    memory
        What the layer keeps.
    """

    shape: tuple[int, ...]
    valid: NDArray[np.bool_] | None
    memory: Any


class _Rowwise(Layer):
    """A layer that works on rows (N, F): those of all steps and sequences that are valid."""

    _size: int | None = None  # features of the input
    _dtype: Any = None  # dtype of the input

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, None, _Rows]:
        _no_state("state", state)
        x = _features(x, self._size, self._dtype)
        lengths = _lengths(lengths, x.shape)
        if lengths is None:
            valid = None
            rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        else:
            valid = valid_steps(len(x), lengths)
            rows = x[valid]
        result, memory = self._forward_rows(rows)
        if valid is None:
            output = result.reshape(*x.shape[:-1], result.shape[1])
        else:
            output = np.zeros((*x.shape[:-1], result.shape[1]), result.dtype)
            output[valid] = result
        return output, None, _Rows(output.shape, valid, memory)

    def backward(
        self,
        tape: _Rows,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        _no_state("grad_state", grad_state)
        shape, valid, memory = tape
        rows = memory[0]
        gradient = _gradient(grad_output, shape, rows.dtype)
        if valid is None:
            selected = gradient.reshape(math.prod(shape[:-1]), shape[-1])
        else:
            selected = gradient[valid]
        result, parameters = self._backward_rows(memory, selected, input_grad)
        if result is None:
            return Gradients(None, None, parameters)
        if valid is None:
            return Gradients(result.reshape(*shape[:-1], result.shape[1]), None, parameters)
        spread = np.zeros((*shape[:-1], result.shape[1]), result.dtype)
        spread[valid] = result
        return Gradients(spread, None, parameters)

    def input_shape(self) -> Shape | None:
        """Return the shape of the input, of rows."""
        return None if self._size is None else ("B", self._size)

    def _forward_rows(self, rows: FloatArray) -> tuple[FloatArray, tuple[Any, ...]]:
        """Return the output (N, n) and what the gradient needs, the rows first."""
        raise NotImplementedError

    def _backward_rows(
        self, memory: tuple[Any, ...], gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        """Return the gradients of the rows and of the parameters."""
        raise NotImplementedError


class Embedding(Layer):
    """A row of a table for each id: y = W[id].

    Parameters
    ----------
    vocabulary : int
        Number of ids, 0 to vocabulary - 1.
    size : int
        Features of a row.
    mask_zero : bool, default False
        Whether id 0 is padding at the end of a row. The row's length is then the number of ids
        before it, unless lengths are given, and row 0 of the table is 0 and stays it.
    seed : int or numpy.random.Generator, optional
        Source of the initial table, which is drawn from N(0, 1) as in ``torch.nn.Embedding``.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of the table.

    Examples
    --------
    >>> layer = Embedding(10, 4, mask_zero=True, seed=0)
    >>> ids = np.array([[3, 1], [7, 0]])  # (T, B)
    >>> layer(ids).shape
    (2, 2, 4)
    >>> layer.output_lengths(ids, None).tolist()
    [2, 1]
    """

    def __init__(
        self,
        vocabulary: int,
        size: int,
        mask_zero: bool = False,
        *,
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.vocabulary = functional.integer("vocabulary", vocabulary, 1)
        self.size = functional.integer("size", size, 1)
        self.mask_zero = functional.boolean("mask_zero", mask_zero)
        self.dtype = functional.float_dtype("dtype", dtype)
        weight = functional.generator("seed", seed).normal(size=(self.vocabulary, self.size))
        if self.mask_zero:
            weight[0] = 0
        self._parameters = {"weight": weight.astype(self.dtype)}

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, None, Any]:
        _no_state("state", state)
        ids = self._ids(x)
        lengths = self.output_lengths(ids, _lengths(lengths, ids.shape, 2))
        weight = self._parameters["weight"]
        if lengths is None:
            valid = None
            wrong = ids[(ids < 0) | (ids >= self.vocabulary)]
        else:
            valid = valid_steps(len(ids), lengths)
            wrong = ids[valid & ((ids < 0) | (ids >= self.vocabulary))]
            ids = np.where(valid, ids, 0)
        if wrong.size:
            raise ValueError(f"x: expected ids in [0, {self.vocabulary}), got {wrong[0]}")
        output = weight[ids]
        if valid is not None:
            output[~valid] = 0
        return output, None, (ids, valid)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        _no_state("grad_state", grad_state)
        ids, valid = tape
        gradient = _gradient(grad_output, (*ids.shape, self.size), self.dtype)
        used, rows = (
            (ids.ravel(), gradient.reshape(-1, self.size))
            if valid is None
            else (ids[valid], gradient[valid])
        )
        grad_weight = np.zeros_like(self._parameters["weight"])
        if used.size:
            # Sorting puts the rows of an id side by side, in the order in which they came.
            order = np.argsort(used, kind="stable")
            used = used[order]
            starts = np.flatnonzero(np.diff(used, prepend=-1))
            grad_weight[used[starts]] = np.add.reduceat(rows[order], starts, axis=0)
        if self.mask_zero:
            grad_weight[0] = 0
        return Gradients(None, None, {"weight": grad_weight})

    def output_lengths(self, x: NDArray[Any], lengths: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return the lengths given, or those that the padding shows."""
        ids = self._ids(x)
        if lengths is not None or not self.mask_zero or ids.ndim != 2:
            return lengths
        known = ids != 0
        counted: NDArray[Any] = np.count_nonzero(known, axis=0)
        if len(ids) and np.any(known & ~valid_steps(len(ids), counted)):
            raise ValueError(
                "x: expected id 0 at the end of a row only, where mask_zero makes it padding, got"
                " one before another id (see padding='post' of pad_sequences)"
            )
        return counted

    def input_shape(self) -> Shape:
        """Return the shape of the input, of ids."""
        return ("T", "B")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return (*shape, self.size)

    def __repr__(self) -> str:
        return self._repr(self.vocabulary, self.size, mask_zero=False)

    @staticmethod
    def _ids(x: SupportsArray) -> NDArray[Any]:
        ids = np.asarray(functional.view("x", x))
        if ids.dtype.kind not in "iu":
            raise TypeError(f"x: expected integer ids (T, B), got {ids.shape} {ids.dtype}")
        if ids.ndim not in (1, 2):
            raise ValueError(f"x: expected ids (T, B) or (B,), got {ids.shape} {ids.dtype}")
        return ids


class Dense(_Rowwise):
    """The affine map y = f(W·x + b), of every step where there are steps.

    Parameters
    ----------
    inputs : int
        Features F of the input.
    units : int
        Features of the output.
    activation : str, default "linear"
        The function f, one of ``fastrnn.activations.NAMES``.
    bias : bool, default True
        Whether there is b.
    init : {"torch", "glorot", "he", "orthogonal"}, default "torch"
        How W (units, F) starts. ``"torch"`` draws it and b from U(-1/sqrt(F), 1/sqrt(F)); with the
        others, see `fastrnn.initializers.initialize`, b starts at 0.
    seed : int or numpy.random.Generator, optional
        Source of the initial values.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs.

    Examples
    --------
    >>> layer = Dense(3, 2, seed=0)
    >>> layer(np.ones((5, 4, 3), np.float32)).shape  # (T, B, F)
    (5, 4, 2)
    >>> layer.parameters["weight"].shape, layer.parameters["bias"].shape
    ((2, 3), (2,))
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        activation: str = "linear",
        *,
        bias: bool = True,
        init: str = "torch",
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.inputs = self._size = functional.integer("inputs", inputs, 1)
        self.units = functional.integer("units", units, 1)
        activations.get("activation", activation)  # raises
        self.activation = activation
        self.bias = functional.boolean("bias", bias)
        self.dtype = self._dtype = functional.float_dtype("dtype", dtype)
        self._parameters = initializers.initialize_dense(
            functional.choice("init", init, ("torch", "glorot", "he", "orthogonal")),
            self.inputs,
            self.units,
            self.bias,
            functional.generator("seed", seed),
            self.dtype,
        )

    def _forward_rows(self, rows: FloatArray) -> tuple[FloatArray, tuple[Any, ...]]:
        linear = rows @ self._parameters["weight"].T
        if self.bias:
            linear += self._parameters["bias"]
        if self.activation == "linear":
            return linear, (rows, None, None)
        output = activations.get("activation", self.activation).function(linear)
        return output, (rows, linear, output)

    def _backward_rows(
        self, memory: tuple[Any, ...], gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        rows, linear, output = memory
        if linear is not None:
            function = activations.get("activation", self.activation)
            gradient = function.gradient(linear, output, gradient)
        gradients = {"weight": gradient.T @ rows}
        if self.bias:
            gradients["bias"] = gradient.sum(axis=0)
        return gradient @ self._parameters["weight"] if input_grad else None, gradients

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return (*shape[:-1], self.units)

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights a step of one row takes, or a row."""
        return self.inputs * self.units

    def __repr__(self) -> str:
        function = [] if self.activation == "linear" else [self.activation]
        return self._repr(self.inputs, self.units, *function, bias=True)


class Activation(_Rowwise):
    """A function of every element, or of every row for softmax.

    Parameters
    ----------
    function : str
        One of ``fastrnn.activations.NAMES``: "linear", "sigmoid", "tanh", "relu", "leaky_relu",
        "elu", "gelu" (by tanh), "silu", "softplus", "softmax", "log_softmax".

    Notes
    -----
    The losses "cross_entropy" and "binary_cross_entropy" take logits: no softmax or sigmoid comes
    before them.

    Examples
    --------
    >>> Activation("relu")(np.array([[-1.0, 2.0]])).tolist()
    [[0.0, 2.0]]
    """

    def __init__(self, function: str) -> None:
        super().__init__()
        activations.get("function", function)  # raises
        self.function = function

    def _forward_rows(self, rows: FloatArray) -> tuple[FloatArray, tuple[Any, ...]]:
        output = activations.get("function", self.function).function(rows)
        return output, (rows, output)

    def _backward_rows(
        self, memory: tuple[Any, ...], gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        rows, output = memory
        if not input_grad:
            return None, {}
        function = activations.get("function", self.function)
        return function.gradient(rows, output, gradient), {}

    def __repr__(self) -> str:
        return self._repr(self.function)


class BatchNorm(_Rowwise):
    """Batch normalisation [1]_: y = weight·(x - mean) / sqrt(var + eps) + bias.

    Mean and variance of a feature are over all valid steps and rows in training mode, and running
    averages of those in evaluation mode.

    Parameters
    ----------
    size : int
        Features F.
    momentum : float, default 0.1
        Part of a call's statistics in the running average, in [0, 1].
    eps : float, default 1e-5
        What keeps the divisor from 0.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs.

    Notes
    -----
    As in ``torch.nn.BatchNorm1d`` the variance is biased, except in the running average.

    References
    ----------
    .. [1] S. Ioffe, C. Szegedy. Batch normalization: accelerating deep network training by reducing
           internal covariate shift. ICML 2015.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(3, 2, (100, 8)).astype(np.float32)
    >>> y = BatchNorm(8)(x)
    >>> bool(abs(y.mean(axis=0)).max() < 1e-6), bool(abs(y.std(axis=0) - 1).max() < 1e-5)
    (True, True)
    """

    def __init__(
        self,
        size: int,
        momentum: float = 0.1,
        eps: float = 1e-5,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.size = self._size = functional.integer("size", size, 1)
        self.momentum = functional.number("momentum", momentum, 0, 1)
        self.eps = functional.number("eps", eps, 0)
        self.dtype = self._dtype = functional.float_dtype("dtype", dtype)
        self._parameters = {
            "weight": np.ones(self.size, self.dtype),
            "bias": np.zeros(self.size, self.dtype),
        }
        self._buffers = {
            "running_mean": np.zeros(self.size, self.dtype),
            "running_var": np.ones(self.size, self.dtype),
        }

    def _forward_rows(self, rows: FloatArray) -> tuple[FloatArray, tuple[Any, ...]]:
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        training = self._training and len(rows) > 0
        if training:
            if len(rows) == 1:
                raise ValueError(
                    "x: expected more than 1 valid row for a variance in training mode, got 1"
                )
            mean, variance = rows.mean(axis=0), rows.var(axis=0)
            unbiased = variance * (len(rows) / (len(rows) - 1))
            for name, new in (("running_mean", mean), ("running_var", unbiased)):
                self._buffers[name] += self.momentum * (new - self._buffers[name])
        scale = 1 / np.sqrt(variance + self.dtype.type(self.eps))
        normal = (rows - mean) * scale
        output = normal * self._parameters["weight"] + self._parameters["bias"]
        return output, (normal, scale, training)

    def _backward_rows(
        self, memory: tuple[Any, ...], gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        normal, scale, training = memory
        gradients = {"weight": (gradient * normal).sum(axis=0), "bias": gradient.sum(axis=0)}
        if not input_grad:
            return None, gradients
        slope = scale * self._parameters["weight"]
        if training:
            N = len(normal)
            shift = gradients["bias"] / N + normal * (gradients["weight"] / N)
            gradient = gradient - shift
        return gradient * slope, gradients

    def __repr__(self) -> str:
        return self._repr(self.size, momentum=0.1, eps=1e-5)


class LayerNorm(_Rowwise):
    """Layer normalisation [1]_ of each row: y = weight·(x - mean) / sqrt(var + eps) + bias.

    Mean and biased variance are over the F features of a row.

    Parameters
    ----------
    size : int
        Features F.
    eps : float, default 1e-5
        What keeps the divisor from 0.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton. Layer normalization. arXiv:1607.06450, 2016.

    Examples
    --------
    >>> LayerNorm(4)(np.array([[1, 1, 3, 3]], np.float32)).round(3).tolist()
    [[-1.0, -1.0, 1.0, 1.0]]
    """

    def __init__(self, size: int, eps: float = 1e-5, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__()
        self.size = self._size = functional.integer("size", size, 1)
        self.eps = functional.number("eps", eps, 0)
        self.dtype = self._dtype = functional.float_dtype("dtype", dtype)
        self._parameters = {
            "weight": np.ones(self.size, self.dtype),
            "bias": np.zeros(self.size, self.dtype),
        }

    def _forward_rows(self, rows: FloatArray) -> tuple[FloatArray, tuple[Any, ...]]:
        centred = rows - rows.mean(axis=1, keepdims=True)
        variance = np.mean(centred * centred, axis=1, keepdims=True)
        scale = 1 / np.sqrt(variance + self.dtype.type(self.eps))
        centred *= scale
        output = centred * self._parameters["weight"] + self._parameters["bias"]
        return output, (centred, scale)

    def _backward_rows(
        self, memory: tuple[Any, ...], gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        normal, scale = memory
        gradients = {"weight": (gradient * normal).sum(axis=0), "bias": gradient.sum(axis=0)}
        if not input_grad:
            return None, gradients
        inner = gradient * self._parameters["weight"]
        mean = inner.mean(axis=1, keepdims=True)
        along = np.mean(inner * normal, axis=1, keepdims=True)
        return scale * (inner - mean - normal * along), gradients

    def __repr__(self) -> str:
        return self._repr(self.size, eps=1e-5)


class Dropout(Layer):
    """Zero elements at random in training mode, and scale the rest by 1 / (1 - p) [1]_.

    Parameters
    ----------
    probability : float
        Probability p of a zero, in [0, 1].
    seed : int or numpy.random.Generator, optional
        Source of the masks, which are a function of it and of the number of calls before.

    References
    ----------
    .. [1] N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov. Dropout: a
           simple way to prevent neural networks from overfitting. JMLR 15, 2014.

    Examples
    --------
    >>> layer = Dropout(0.25, seed=0)
    >>> y = layer(np.ones((100, 100)))
    >>> round(float((y == 0).mean()), 1), bool(abs(y.mean() - 1) < 0.05)
    (0.3, True)
    >>> layer.eval()(np.ones((2, 2))).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """

    _mask_seed: int

    def __init__(
        self, probability: float, *, seed: int | np.random.Generator | None = None
    ) -> None:
        super().__init__()
        self.probability = functional.number("probability", probability, 0, 1)
        self._mask_seed = int(functional.generator("seed", seed).integers(2**62))

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, None, Any]:
        _no_state("state", state)
        x = _features(x, None, None)
        lengths = _lengths(lengths, x.shape)
        valid = None
        if lengths is not None:
            valid = valid_steps(len(x), lengths)
            x = np.where(valid[:, :, np.newaxis], x, x.dtype.type(0))
        mask: Any = None
        if self._training and self.probability:
            # The mask of a row does not depend on the lengths.
            rows = (1, math.prod(x.shape[:-1]), x.shape[-1])
            mask = functional.mask("dropout", rows, self.probability, self._mask_seed, 0)
            mask = mask.reshape(x.shape).astype(x.dtype, copy=False)
            self._mask_seed += 1
        output = x.copy() if mask is None else x * mask
        return output, None, (output.shape, output.dtype, mask, valid)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        _no_state("grad_state", grad_state)
        shape, dtype, mask, valid = tape
        gradient = _gradient(grad_output, shape, dtype)
        if not input_grad:
            return Gradients(None, None, {})
        if valid is not None:
            gradient = np.where(valid[:, :, np.newaxis], gradient, dtype.type(0))
        return Gradients(gradient.copy() if mask is None else gradient * mask, None, {})

    def __repr__(self) -> str:
        return self._repr(self.probability)


class Last(Layer):
    """The last valid step of each row: (T, B, F) to (B, F); 0 for a row of length 0.

    After a bidirectional layer use `Ends`, as there the last step of the second half of the
    features has read one step only.

    Examples
    --------
    >>> x = np.arange(6.0).reshape(3, 2, 1)
    >>> Last()(x, lengths=[3, 1]).tolist()
    [[4.0], [1.0]]
    """

    @property
    def stepwise(self) -> bool:
        """False: the last step needs the whole sequence."""
        return False

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, None, Any]:
        _no_state("state", state)
        x = _sequence(x)
        lengths = _lengths(lengths, x.shape)
        T, B, F = x.shape
        last = np.full(B, T) if lengths is None else lengths
        output = np.zeros((B, F), x.dtype)
        rows = np.flatnonzero(last)
        output[rows] = x[last[rows] - 1, rows]
        return output, None, (x.shape, x.dtype, last, rows)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        _no_state("grad_state", grad_state)
        shape, dtype, last, rows = tape
        gradient = _gradient(grad_output, shape[1:], dtype)
        if not input_grad:
            return Gradients(None, None, {})
        spread = np.zeros(shape, dtype)
        spread[last[rows] - 1, rows] = gradient[rows]
        return Gradients(spread, None, {})

    def output_lengths(self, x: NDArray[Any], lengths: NDArray[Any] | None) -> None:
        """Return None: no steps are left."""
        return None

    def input_shape(self) -> Shape:
        """Return the shape of the input, of sequences."""
        return ("T", "B", "F")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return shape[1:]

    def __repr__(self) -> str:
        return self._repr()


class Ends(Last):
    """Where each direction of a bidirectional layer ends: (T, B, 2H) to (B, 2H).

    That is the last valid step of the first half of the features and the first step of the second
    half, which has read the row backward. `Last` would take what that half knows after one step.

    Examples
    --------
    >>> x = np.arange(12.0).reshape(3, 2, 2)  # (T, B, 2H)
    >>> Ends()(x, lengths=[3, 1]).tolist()
    [[8.0, 1.0], [2.0, 3.0]]
    """

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, None, Any]:
        output, _, tape = super().forward(x, state, lengths)
        rows = tape[3]
        if output.shape[1] % 2:
            raise ValueError(f"x: expected (T, B, 2H), got {tape[0]} {tape[1]}")
        H = output.shape[1] // 2
        if rows.size:
            output[rows, H:] = functional.view("x", x)[0, rows, H:]
        return output, None, tape

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        gradients = super().backward(tape, grad_output, grad_state, input_grad=input_grad)
        spread = gradients.input
        if spread is None:
            return gradients
        _, _, last, rows = tape
        H = spread.shape[2] // 2
        second = spread[last[rows] - 1, rows, H:]  # a copy
        spread[last[rows] - 1, rows, H:] = 0
        if rows.size:
            spread[0, rows, H:] = second
        return gradients

    def __repr__(self) -> str:
        return "Ends()"


class Pool(Layer):
    """The mean or the maximum over the valid steps: (T, B, F) to (B, F).

    A row of length 0 gives 0. The gradient of a maximum goes to the first step that has it.

    Parameters
    ----------
    mode : {"mean", "max"}, default "mean"
        Which.

    Examples
    --------
    >>> x = np.arange(6.0).reshape(3, 2, 1)
    >>> Pool("mean")(x, lengths=[3, 2]).tolist(), Pool("max")(x, lengths=[3, 2]).tolist()
    ([[2.0], [2.0]], [[4.0], [3.0]])
    """

    def __init__(self, mode: str = "mean") -> None:
        super().__init__()
        self.mode = functional.choice("mode", mode, ("mean", "max"))

    @property
    def stepwise(self) -> bool:
        """False: it needs the whole sequence."""
        return False

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, None, Any]:
        _no_state("state", state)
        x = _sequence(x)
        T, B, _ = x.shape
        given = _lengths(lengths, x.shape)
        counts = np.full(B, T) if given is None else given
        valid = valid_steps(T, counts)[:, :, np.newaxis]
        if self.mode == "mean":
            divisors = np.maximum(counts, 1).astype(x.dtype)[:, np.newaxis]
            output = np.sum(x, axis=0, where=valid) / divisors
            return output, None, (x.shape, x.dtype, valid, divisors)
        empty = counts == 0
        if T == 0:
            return np.zeros(x.shape[1:], x.dtype), None, (x.shape, x.dtype, None, None)
        largest = np.where(valid, x, -np.inf).argmax(axis=0)[np.newaxis]
        output = np.take_along_axis(x, largest, axis=0)[0]
        output[empty] = 0
        return output, None, (x.shape, x.dtype, largest, empty)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        _no_state("grad_state", grad_state)
        shape, dtype, where, rows = tape
        gradient = _gradient(grad_output, shape[1:], dtype)
        if not input_grad:
            return Gradients(None, None, {})
        if self.mode == "mean":
            return Gradients(np.where(where, gradient / rows, dtype.type(0)), None, {})
        spread = np.zeros(shape, dtype)
        if shape[0]:
            kept = np.where(rows[:, np.newaxis], dtype.type(0), gradient)
            np.put_along_axis(spread, where, kept[np.newaxis], axis=0)
        return Gradients(spread, None, {})

    def output_lengths(self, x: NDArray[Any], lengths: NDArray[Any] | None) -> None:
        """Return None: no steps are left."""
        return None

    def input_shape(self) -> Shape:
        """Return the shape of the input, of sequences."""
        return ("T", "B", "F")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return shape[1:]

    def __repr__(self) -> str:
        return self._repr(self.mode)


class Repeat(Layer):
    """The same row at every step: (B, F) to (T, B, F), for sequences from one vector.

    Parameters
    ----------
    steps : int
        Steps T of the output.

    Examples
    --------
    >>> Repeat(3)(np.array([[1.0, 2.0]])).tolist()
    [[[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0]]]
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = functional.integer("steps", steps, 1)

    @property
    def stepwise(self) -> bool:
        """False: the input has no steps."""
        return False

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, None, Any]:
        _no_state("state", state)
        x = _features(x, None, None)
        if x.ndim != 2:
            raise ValueError(f"x: expected (B, F), got {x.shape} {x.dtype}")
        if lengths is not None:
            raise ValueError("lengths: expected None, as the input has no steps")
        output = np.repeat(x[np.newaxis], self.steps, axis=0)
        return output, None, (output.shape, output.dtype)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        _no_state("grad_state", grad_state)
        gradient = _gradient(grad_output, *tape)
        return Gradients(gradient.sum(axis=0) if input_grad else None, None, {})

    def input_shape(self) -> Shape:
        """Return the shape of the input, of rows."""
        return ("B", "F")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return (self.steps, *shape)

    def __repr__(self) -> str:
        return self._repr(self.steps)


class Container(Layer):
    """What layers that are made of layers share; use `Residual` or `Sequential`.

    Parameters and buffers have the names of the inner layers before their own: ``0.weight``.
    """

    def children(self) -> Mapping[str, Layer]:
        """Return the inner layers by name."""
        raise NotImplementedError

    @property
    def stepwise(self) -> bool:
        """Whether all inner layers are."""
        return all(child.stepwise for child in self.children().values())

    @property
    def parameters(self) -> dict[str, FloatArray]:
        """The live arrays that are trained, to be changed in place in training mode."""
        return {
            f"{name}.{key}": array
            for name, child in self.children().items()
            for key, array in child.parameters.items()
        }

    @property
    def buffers(self) -> dict[str, FloatArray]:
        """The live arrays that are not trained."""
        return {
            f"{name}.{key}": array
            for name, child in self.children().items()
            for key, array in child.buffers.items()
        }

    def train(self, mode: bool = True) -> Self:
        """Enter training mode, as all inner layers do.

        Parameters
        ----------
        mode : bool, default True
            False enters evaluation mode.

        Returns
        -------
        Layer
            The layer.
        """
        super().train(mode)
        for child in self.children().values():
            child.train(mode)
        return self

    def _reenter_mode(self) -> None:
        """Prepare new parameters for the mode that each inner layer is in."""
        for child in self.children().values():
            child._reenter_mode()


def run(
    layer: Layer, x: Any, state: Any, lengths: Any, *, keep: bool = True
) -> tuple[FloatArray, Any, Any]:
    """Run an inner layer, whose own layout may be batch-first, forward on a time-major input.

    There is a tape if `keep`.
    """
    x = functional.view("x", x)
    wanted = None if isinstance(layer, Container) else layer.input_shape()
    if wanted and wanted[0] == "T" and len(wanted) == 3 and x.ndim != 3:
        # A recurrent layer alone would take rows (B, F) for one sequence (T, F).
        raise ValueError(f"x: expected (T, B, {wanted[2]}), got {x.shape} {x.dtype}")
    swap = getattr(layer, "batch_first", False)
    x = x.swapaxes(0, 1) if swap else x
    tape = None
    if keep:
        output, state, tape = layer.forward(x, state, lengths)
    else:
        output, state = layer.apply(x, state, lengths)
    return output.swapaxes(0, 1) if swap else output, state, tape


def run_back(
    layer: Layer, tape: Any, grad_output: Any, grad_state: Any, input_grad: bool
) -> Gradients:
    """Differentiate `run`."""
    swap = getattr(layer, "batch_first", False)
    if swap and grad_output is not None:
        grad_output = functional.view("grad_output", grad_output).swapaxes(0, 1)
    gradients = layer.backward(tape, grad_output, grad_state, input_grad=input_grad)
    if swap and gradients.input is not None:
        return gradients._replace(input=gradients.input.swapaxes(0, 1))
    return gradients


class Residual(Container):
    """The input plus what a layer makes of it: y = x + f(x) [1]_.

    Parameters
    ----------
    layer : Layer
        The function f, whose output has the shape of its input: a recurrent layer, a `Dense`, a
        `Sequential`.

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren, J. Sun. Deep residual learning for image recognition. CVPR 2016.

    Examples
    --------
    >>> import fastrnn
    >>> layer = Residual(fastrnn.GRU(8, 8, seed=0))
    >>> layer(np.zeros((5, 3, 8), np.float32)).shape
    (5, 3, 8)
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            raise TypeError(f"layer: expected a layer, got {type(layer).__name__}")
        self.layer = layer

    def children(self) -> Mapping[str, Layer]:
        """Return the inner layer."""
        return {"layer": self.layer}

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any, Any]:
        return self._forward(x, state, lengths, keep=True)

    def apply(
        self, x: Any, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any]:
        """Run without keeping what `backward` needs, see `Layer.apply`."""
        return self._forward(x, state, lengths, keep=False)[:2]

    def _forward(
        self, x: Any, state: Any, lengths: Any, *, keep: bool
    ) -> tuple[FloatArray, Any, Any]:
        x = _features(x, None, None)
        lengths = _lengths(lengths, x.shape)
        change, state, tape = run(self.layer, x, state, lengths, keep=keep)
        output = self._add(x, change)
        valid = None
        if lengths is not None:
            valid = valid_steps(len(x), lengths)
            output[~valid] = 0
        return output, state, (tape, x.shape, x.dtype, valid)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        inner, shape, dtype, valid = tape
        if grad_output is not None:
            grad_output = _gradient(grad_output, shape, dtype)
        g = run_back(self.layer, inner, grad_output, grad_state, input_grad)
        parameters = {f"layer.{name}": gradient for name, gradient in g.parameters.items()}
        total = None
        if g.input is not None:
            total = g.input if grad_output is None else g.input + grad_output
            if valid is not None:
                total[~valid] = 0
        return Gradients(total, g.state, parameters)

    def step(self, x: Any, state: Any = None) -> tuple[FloatArray, Any]:
        """Run one step, see `Layer.step`."""
        x = functional.view("x", x)
        change, state = self.layer.step(x, state)
        return self._add(x, change), state

    @staticmethod
    def _add(x: FloatArray, change: FloatArray) -> FloatArray:
        if change.shape != x.shape or change.dtype != x.dtype:
            raise ValueError(
                f"layer: expected an output {x.shape} {x.dtype} as its input, got {change.shape}"
                f" {change.dtype}"
            )
        return x + change

    def input_shape(self) -> Shape | None:
        """Return the shape of the input."""
        return self.layer.input_shape()

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return self.layer.output_shape(shape)

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights a step of one row takes, or a row."""
        return self.layer.multiply_adds(shape)

    def __repr__(self) -> str:
        return self._repr(self.layer)
