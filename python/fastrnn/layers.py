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
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Shape

__all__ = [
    "Activation",
    "BatchNorm",
    "Dense",
    "Dropout",
    "Embedding",
    "Ends",
    "Last",
    "LayerNorm",
    "Pool",
    "Repeat",
    "Stateless",
    "read_features",
    "read_gradient",
    "read_lengths",
    "step_counts",
    "valid_steps",
    "without_padding",
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


def read_features(x: SupportsArray, size: int | None, dtype: Any, what: str = "x") -> FloatArray:
    """View an input (…, F), or raise an error that names it."""
    array: FloatArray = np.asarray(functional.view(what, x))
    fits = array.ndim in (2, 3) and (size is None or array.shape[-1] == size)
    known = array.dtype in (np.float32, np.float64) if dtype is None else array.dtype == dtype
    if not fits or not known:
        F = "F" if size is None else size
        kind = "float32 or float64" if dtype is None else dtype
        hint = "; Flatten makes rows of images, and Channels works on their pixels"
        raise ValueError(
            f"{what}: expected (T, B, {F}) or (B, {F}) {kind}, got {array.shape} {array.dtype}"
            f"{hint if array.ndim == 4 else ''}"
        )
    return array


def _sequence(x: SupportsArray, what: str = "x") -> FloatArray:
    array = read_features(x, None, None, what)
    if array.ndim != 3:
        raise ValueError(f"{what}: expected (T, B, F), got {array.shape} {array.dtype}")
    return array


def read_lengths(
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


def without_padding(x: FloatArray, lengths: NDArray[np.int64]) -> FloatArray:
    """Return (T, B, F) with 0 past the lengths, as 0 times what may be there could be NaN."""
    if not np.any(lengths < len(x)):
        return x
    return np.where(valid_steps(len(x), lengths)[:, :, np.newaxis], x, x.dtype.type(0))


def step_counts(lengths: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the valid steps of each row of an input (T, B, F), all T by default."""
    given = read_lengths(lengths, shape)
    return np.full(shape[1], shape[0], np.int64) if given is None else given


def read_gradient(grad_output: Any, shape: tuple[int, ...], dtype: Any) -> FloatArray:
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


class _Tape(NamedTuple):
    """Tape of a layer without a state.

    Attributes
    ----------
    shape : tuple of int
        Of the output.
    dtype : dtype
        Of the output.
    memory
        What the layer keeps.
    """

    shape: tuple[int, ...]
    dtype: Any
    memory: Any


class Stateless(Layer):
    """A layer without a state, which gives `_forward` and `_backward`."""

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, None, Any]:
        """Run, and keep what `backward` needs, see `Layer.forward`."""
        _no_state("state", state)
        output, memory = self._forward(x, lengths)
        return output, None, _Tape(output.shape, output.dtype, memory)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        """Differentiate the call of `forward` that made a tape, see `Layer.backward`."""
        _no_state("grad_state", grad_state)
        if not isinstance(tape, _Tape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        gradient = read_gradient(grad_output, tape.shape, tape.dtype)
        grad_input, parameters = self._backward(tape.memory, gradient, input_grad)
        return Gradients(grad_input if input_grad else None, None, parameters)

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        """Return the output and what the gradient needs."""
        raise NotImplementedError

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        """Return the gradients of the input, which is ignored unless wanted, and parameters."""
        raise NotImplementedError


class _Rowwise(Stateless):
    """A layer that works on rows (N, F): those of all steps and sequences that are valid."""

    _size: int | None = None  # features of the input
    _dtype: Any = None  # dtype of the input

    @property
    def stepwise(self) -> bool:
        """True: each row is on its own."""
        return True

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = read_features(x, self._size, self._dtype)
        lengths = read_lengths(lengths, x.shape)
        if lengths is None:
            valid = None
            rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        else:
            valid = valid_steps(len(x), lengths)
            rows = x[valid]
        result, memory = self._forward_rows(rows)
        return _spread(result, valid, x.shape[:-1]), (valid, memory)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        valid, kept = memory
        positions = gradient.shape[:-1]
        if valid is None:
            rows = gradient.reshape(math.prod(positions), gradient.shape[-1])
        else:
            rows = gradient[valid]
        result, parameters = self._backward_rows(kept, rows, input_grad)
        return None if result is None else _spread(result, valid, positions), parameters

    def input_shape(self) -> Shape | None:
        """Return the shape of the input, of rows."""
        return None if self._size is None else ("B", self._size)

    def _forward_rows(self, rows: FloatArray) -> tuple[FloatArray, tuple[Any, ...]]:
        """Return the output (N, n) and what the gradient needs."""
        raise NotImplementedError

    def _backward_rows(
        self, memory: tuple[Any, ...], gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        """Return the gradients of the rows and of the parameters."""
        raise NotImplementedError


def _spread(
    rows: FloatArray, valid: NDArray[np.bool_] | None, positions: tuple[int, ...]
) -> FloatArray:
    """Put rows (N, n) back where they come from, (T, B, n) or (B, n), with 0 in between."""
    if valid is None:
        return rows.reshape(*positions, rows.shape[1])
    spread: FloatArray = np.zeros((*positions, rows.shape[1]), rows.dtype)
    spread[valid] = rows
    return spread


class Embedding(Stateless):
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

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        ids = self._ids(x)
        lengths = self.output_lengths(ids, read_lengths(lengths, ids.shape, 2))
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
        return output, (ids, valid)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        ids, valid = memory
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
        return None, {"weight": grad_weight}

    @property
    def stepwise(self) -> bool:
        """True: each id is on its own."""
        return True

    def _reenter_mode(self) -> None:
        super()._reenter_mode()
        if self.mask_zero:  # whatever was loaded
            self._parameters["weight"][0] = 0

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
        # Not by BLAS: its threads spin for milliseconds after a call, on the cores that the
        # recurrent layers need next.
        rows = np.ascontiguousarray(rows)
        linear = functional.affine(rows, self._parameters["weight"], self._parameters.get("bias"))
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
        grad_rows, grad_weight, grad_bias = functional.affine_backward(
            rows,
            self._parameters["weight"],
            np.ascontiguousarray(gradient),
            input_grad,
            self.bias,
        )
        gradients = {"weight": grad_weight}
        if grad_bias is not None:
            gradients["bias"] = grad_bias
        return grad_rows, gradients

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
    averages of those in evaluation mode, and where there is a single row, which has no variance.

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
        training = self._training and len(rows) > 1
        if training:
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


class Dropout(Stateless):
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

    @property
    def stepwise(self) -> bool:
        """True: each element is on its own."""
        return True

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = read_features(x, None, None)
        lengths = read_lengths(lengths, x.shape)
        if lengths is not None:
            x = without_padding(x, lengths)
        mask: Any = None
        if self._training and self.probability:
            # The mask of a row does not depend on the lengths.
            rows = (1, math.prod(x.shape[:-1]), x.shape[-1])
            mask = functional.mask("dropout", rows, self.probability, self._mask_seed, 0)
            mask = mask.reshape(x.shape).astype(x.dtype, copy=False)
            self._mask_seed += 1
        output = x.copy() if mask is None else x * mask
        return output, (mask, lengths)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        mask, lengths = memory
        if lengths is not None:
            gradient = without_padding(gradient, lengths)
        return gradient.copy() if mask is None else gradient * mask, {}

    def __repr__(self) -> str:
        return self._repr(self.probability)


class _Summary(Stateless):
    """A layer that makes one row of a sequence: (T, B, F) to (B, F)."""

    @property
    def stepwise(self) -> bool:
        """False: it needs the whole sequence."""
        return False

    def output_lengths(self, x: NDArray[Any], lengths: NDArray[Any] | None) -> None:
        """Return None: no steps are left."""
        return None

    def input_shape(self) -> Shape:
        """Return the shape of the input, of sequences."""
        return ("T", "B", "F")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return shape[1:]


class Last(_Summary):
    """The last valid step of each row: (T, B, F) to (B, F); 0 for a row of length 0.

    After a bidirectional layer use `Ends`, as there the last step of the second half of the
    features has read one step only.

    Examples
    --------
    >>> x = np.arange(6.0).reshape(3, 2, 1)
    >>> Last()(x, lengths=[3, 1]).tolist()
    [[4.0], [1.0]]
    """

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = _sequence(x)
        last = step_counts(lengths, x.shape)
        output = np.zeros(x.shape[1:], x.dtype)
        rows = np.flatnonzero(last)
        output[rows] = x[last[rows] - 1, rows]
        return output, (x.shape, last, rows)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        shape, last, rows = memory
        spread = np.zeros(shape, gradient.dtype)
        spread[last[rows] - 1, rows] = gradient[rows]
        return spread, {}

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

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = _sequence(x)
        if x.shape[2] % 2:
            raise ValueError(f"x: expected (T, B, 2H), got {x.shape} {x.dtype}")
        output, memory = super()._forward(x, lengths)
        rows, backward_half = memory[2], slice(x.shape[2] // 2, None)
        output[rows, backward_half] = x[:1, rows, backward_half]
        return output, memory

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        shape, last, rows = memory
        H = shape[2] // 2
        spread = np.zeros(shape, gradient.dtype)
        spread[last[rows] - 1, rows, :H] = gradient[rows, :H]
        spread[:1, rows, H:] = gradient[rows, H:]
        return spread, {}


class Pool(_Summary):
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

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = _sequence(x)
        T = len(x)
        counts = step_counts(lengths, x.shape)
        valid = valid_steps(T, counts)[:, :, np.newaxis]
        if self.mode == "mean":
            divisors = np.maximum(counts, 1).astype(x.dtype)[:, np.newaxis]
            output = np.sum(x, axis=0, where=valid) / divisors
            return output, (x.shape, valid, divisors)
        empty = counts == 0
        if T == 0:
            return np.zeros(x.shape[1:], x.dtype), (x.shape, None, None)
        largest = np.where(valid, x, -np.inf).argmax(axis=0)[np.newaxis]
        output = np.take_along_axis(x, largest, axis=0)[0]
        output[empty] = 0
        return output, (x.shape, largest, empty)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        shape, where, rows = memory
        zero = gradient.dtype.type(0)
        if self.mode == "mean":
            return np.where(where, gradient / rows, zero), {}
        spread = np.zeros(shape, gradient.dtype)
        if shape[0]:
            kept = np.where(rows[:, np.newaxis], zero, gradient)
            np.put_along_axis(spread, where, kept[np.newaxis], axis=0)
        return spread, {}

    def __repr__(self) -> str:
        return self._repr(self.mode)


class Repeat(Stateless):
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

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = read_features(x, None, None)
        if x.ndim != 2:
            raise ValueError(f"x: expected (B, F), got {x.shape} {x.dtype}")
        if lengths is not None:
            raise ValueError("lengths: expected None, as the input has no steps")
        output = np.repeat(x[np.newaxis], self.steps, axis=0)
        return output, None

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        return gradient.sum(axis=0), {}

    def input_shape(self) -> Shape:
        """Return the shape of the input, of rows."""
        return ("B", "F")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return (self.steps, *shape)

    def __repr__(self) -> str:
        return self._repr(self.steps)
