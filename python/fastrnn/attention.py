"""Attention: means over a memory, weighted by how well its steps answer a query.

Letters: Tq steps of the query, Tm of the memory, B batch, Q query units, M memory units, U hidden
units of the score. In a network the sequence (T, B, F) is query and memory at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional
from fastrnn.initializers import initialize_dense
from fastrnn.layers import Stateless, step_counts, valid_steps, without_padding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Shape

__all__ = ["Attention", "AttentionGradients", "AttentionTape"]

_SCORES = ("dot", "general", "concat", "additive")

# Elements of tanh that exist at a time, whatever the lengths: a score with hidden units has
# Tq·B·Tm·U of them in all. So few stay in the cache from one pass over them to the next.
_BLOCK = 1 << 18


class AttentionTape(NamedTuple):
    """What `Attention.attend_backward` needs; it can be used more than once.

    Attributes
    ----------
    query : ndarray (Tq, B, Q)
        The query.
    memory : ndarray (Tm, B, M)
        The memory, 0 past the lengths.
    weights : ndarray (Tq, B, Tm)
        The weights.
    """

    query: FloatArray
    memory: FloatArray
    weights: FloatArray


class AttentionGradients(NamedTuple):
    """What `Attention.attend_backward` returns.

    Attributes
    ----------
    query : ndarray (Tq, B, Q)
        Gradient of the query.
    memory : ndarray (Tm, B, M)
        Gradient of the memory; 0 past the lengths.
    parameters : dict of str to ndarray
        Gradients of the parameters, by the names in ``attention.parameters``.
    """

    query: FloatArray
    memory: FloatArray
    parameters: dict[str, FloatArray]


class _LayerTape(NamedTuple):
    """Tape of a sequence that attends to itself.

    Attributes
    ----------
    attended : AttentionTape
        Of its attention.
    lengths : ndarray of int64 (B,)
        Valid steps of each row.
    """

    attended: AttentionTape
    lengths: NDArray[np.int64]


def _rows(x: FloatArray) -> FloatArray:
    """View (T, B, F) as (T·B, F)."""
    return np.ascontiguousarray(x).reshape(x.shape[0] * x.shape[1], x.shape[2])


def _linear(x: FloatArray, weight: FloatArray) -> FloatArray:
    """Multiply (T, B, F) by (F, n)."""
    product: FloatArray = functional.affine(_rows(x), np.ascontiguousarray(weight.T), None)
    return product.reshape(*x.shape[:2], weight.shape[1])


def _linear_gradient(grad: FloatArray, x: FloatArray) -> FloatArray:
    """Sum the outer products (n, F) of (T, B, n) and (T, B, F) over steps and rows."""
    shape_only = np.empty((grad.shape[2], x.shape[2]), x.dtype)
    gradient = functional.affine_backward(_rows(x), shape_only, _rows(grad), False, False)[1]
    return gradient


def _row_by_row(a: FloatArray, b: FloatArray) -> FloatArray:
    """Multiply (B, n, k) by (B, k, m), and return the product time-major, (n, B, m)."""
    product = np.empty((a.shape[1], a.shape[0], b.shape[2]), a.dtype)
    np.matmul(a, b, out=product.transpose(1, 0, 2))
    return product


def _inner(query: FloatArray, memory: FloatArray) -> FloatArray:
    """Return the inner products (Tq, B, Tm) of all steps of (Tq, B, M) and (Tm, B, M)."""
    return _row_by_row(query.transpose(1, 0, 2), memory.transpose(1, 2, 0))


def _mix(weights: FloatArray, memory: FloatArray) -> FloatArray:
    """Return the sums (Tq, B, M) of the memory (Tm, B, M) with weights (Tq, B, Tm)."""
    return _row_by_row(weights.transpose(1, 0, 2), memory.transpose(1, 0, 2))


def _spread(weights: FloatArray, values: FloatArray) -> FloatArray:
    """Send values (Tq, B, M) to the steps they came from, (Tm, B, M): the transpose of `_mix`."""
    return _row_by_row(weights.transpose(1, 2, 0), values.transpose(1, 0, 2))


def _softmax(scores: FloatArray, lengths: NDArray[np.int64]) -> FloatArray:
    """Turn scores (Tq, B, Tm) into weights, in place; 0 past the lengths."""
    T = scores.shape[2]
    empty = (lengths == 0)[:, np.newaxis]
    if np.any(lengths < T):
        np.copyto(scores, -np.inf, where=~valid_steps(T, lengths).T)
    largest = scores.max(axis=2, keepdims=True, initial=-np.inf)
    np.copyto(largest, 0, where=empty)  # as -inf - -inf is NaN
    scores -= largest
    np.exp(scores, out=scores)
    sums = scores.sum(axis=2, keepdims=True)
    np.copyto(sums, 1, where=empty)
    scores /= sums
    return scores


def _softmax_gradient(weights: FloatArray, grad: FloatArray) -> FloatArray:
    """Turn the gradient of the weights into that of the scores, in place."""
    grad -= np.einsum("qbm,qbm->qb", weights, grad)[:, :, np.newaxis]
    grad *= weights
    return grad


def _blocks(Tq: int, Tm: int, B: int, U: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices of query steps, memory steps and rows with at most `_BLOCK` elements of tanh."""
    rows = max(1, min(B, _BLOCK // U))
    memory_steps = max(1, min(Tm, _BLOCK // (U * rows)))
    query_steps = max(1, _BLOCK // (U * rows * memory_steps))
    for q in range(0, Tq, query_steps):
        for m in range(0, Tm, memory_steps):
            for b in range(0, B, rows):
                yield slice(q, q + query_steps), slice(m, m + memory_steps), slice(b, b + rows)


def _hidden(
    query: FloatArray, memory: FloatArray, block: tuple[slice, slice, slice]
) -> tuple[FloatArray, FloatArray]:
    """Return tanh of all sums of a block, (query steps, memory steps, rows, U), and a 2-D view."""
    q, m, b = block
    hidden = query[q, np.newaxis, b] + memory[np.newaxis, m, b]
    np.tanh(hidden, out=hidden)
    return hidden, hidden.reshape(-1, hidden.shape[-1])


def _tanh_scores(query: FloatArray, memory: FloatArray, vector: FloatArray) -> FloatArray:
    """Return vᵀ tanh(q + m), (Tq, B, Tm), of (Tq, B, U), (Tm, B, U) and v (U,)."""
    (Tq, B, U), Tm = query.shape, len(memory)
    scores = np.empty((Tq, B, Tm), query.dtype)
    for block in _blocks(Tq, Tm, B, U):
        q, m, b = block
        hidden, rows = _hidden(query, memory, block)
        scores[q, b, m] = (rows @ vector).reshape(hidden.shape[:3]).transpose(0, 2, 1)
    return scores


def _tanh_gradients(
    query: FloatArray, memory: FloatArray, vector: FloatArray, grad: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Differentiate `_tanh_scores`, whose tanh is computed again."""
    (Tq, B, U), Tm = query.shape, len(memory)
    grad_query, grad_memory = np.zeros_like(query), np.zeros_like(memory)
    grad_vector = np.zeros_like(vector)
    for block in _blocks(Tq, Tm, B, U):
        q, m, b = block
        hidden, rows = _hidden(query, memory, block)
        slopes = np.ascontiguousarray(grad[q, b, m].transpose(0, 2, 1))
        grad_vector += slopes.reshape(-1) @ rows
        np.multiply(hidden, hidden, out=hidden)
        np.subtract(1, hidden, out=hidden)
        hidden *= slopes[..., np.newaxis]
        grad_query[q, b] += hidden.sum(axis=1)
        grad_memory[m, b] += hidden.sum(axis=0)
    grad_query *= vector  # the same factor for every pair of steps
    grad_memory *= vector
    return grad_query, grad_memory, grad_vector


class Attention(Stateless):
    """Attention of a query to a memory, or of a sequence to itself.

    With a score e_j of each step m_j of the memory, the weights are a = softmax(e) over the valid
    steps, and the context is c = sum_j a_j·m_j. There is no projection of the context.

    Parameters
    ----------
    query_size : int
        Query units Q.
    memory_size : int, optional
        Memory units M; Q by default.
    score : {"dot", "general", "concat", "additive"}, default "dot"
        How well m answers q, see Notes. ``"dot"`` needs Q = M.
    units : int, optional
        Hidden units U of ``"concat"`` and ``"additive"``; Q by default. The others have none.
    queries : {"last", "all"}, default "last"
        Of a sequence that attends to itself: whether its last valid step asks, and the output is
        (B, F), or every step does, and it is (T, B, F).
    scale : bool, default False
        Whether the scores of ``"dot"`` and ``"general"`` are divided by sqrt(M) [3]_.
    seed : int or numpy.random.Generator, optional
        Source of the initial parameters; fresh entropy by default. Weights are uniform in
        ±sqrt(6 / (rows + columns)), the bias is 0.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs.

    Notes
    -----
    The scores are

    * ``"dot"`` [2]_: qᵀ·m,
    * ``"general"`` [2]_: qᵀ·W·m with ``weight`` (Q, M),
    * ``"concat"`` [2]_: vᵀ·tanh(W·[q; m]) with ``weight`` (U, Q+M) and ``vector`` (U,),
    * ``"additive"`` [1]_: vᵀ·tanh(W_q·q + W_m·m + b) with ``weight_query`` (U, Q),
      ``weight_memory`` (U, M), ``bias`` (U,) and ``vector`` (U,).

    The weights take O(Tq·B·Tm) memory. The tanh of all pairs of steps, U times as large, never
    exists as a whole: it is computed block by block, and again in the backward pass.

    References
    ----------
    .. [1] D. Bahdanau, K. Cho, Y. Bengio. Neural machine translation by jointly learning to align
           and translate. ICLR 2015.
    .. [2] M.-T. Luong, H. Pham, C. D. Manning. Effective approaches to attention-based neural
           machine translation. EMNLP 2015.
    .. [3] A. Vaswani et al. Attention is all you need. NIPS 2017.

    Examples
    --------
    A decoder's state asks what an encoder has seen:

    >>> rng = np.random.default_rng(0)
    >>> attention = Attention(4, 6, score="general", seed=0, dtype=np.float64)
    >>> query, memory = rng.normal(size=(1, 2, 4)), rng.normal(size=(5, 2, 6))
    >>> context, weights, tape = attention.attend(query, memory, lengths=[5, 3])
    >>> context.shape, weights.shape
    ((1, 2, 6), (1, 2, 5))
    >>> weights[0, 1].round(2).tolist()
    [0.57, 0.25, 0.19, 0.0, 0.0]

    A sequence is summed up by what its last step finds in it:

    >>> Attention(6, seed=0, dtype=np.float64)(memory, lengths=[5, 3]).shape
    (2, 6)
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int | None = None,
        *,
        score: str = "dot",
        units: int | None = None,
        queries: str = "last",
        scale: bool = False,
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        Q = self.query_size = functional.integer("query_size", query_size, 1)
        M = Q if memory_size is None else functional.integer("memory_size", memory_size, 1)
        self.memory_size = M
        self.score = functional.choice("score", score, _SCORES)
        self.units = self._read_units(units)
        self.queries = functional.choice("queries", queries, ("last", "all"))
        self.scale = functional.boolean("scale", scale)
        self.dtype = functional.float_dtype("dtype", dtype)
        if score == "dot" and M != Q:
            raise ValueError(f"memory_size: expected {Q} as query_size for score='dot', got {M}")
        if self.scale and self.units:
            raise ValueError(f"scale: expected False for score={score!r}, got True")
        self._parameters = self._draw(functional.generator("seed", seed))

    def _read_units(self, given: int | None) -> int | None:
        if self.score in ("concat", "additive"):
            return self.query_size if given is None else functional.integer("units", given, 1)
        if given is not None:
            raise ValueError(f"units: expected None for score={self.score!r}, got {given!r}")
        return None

    def _draw(self, generator: np.random.Generator) -> dict[str, FloatArray]:
        def draw(rows: int, columns: int) -> FloatArray:
            return initialize_dense("glorot", columns, rows, False, generator, self.dtype)["weight"]

        Q, M, U = self.query_size, self.memory_size, self.units
        if U is None:
            return {"weight": draw(Q, M)} if self.score == "general" else {}
        if self.score == "concat":
            weights = {"weight": draw(U, Q + M)}
        else:
            weights = {"weight_query": draw(U, Q), "weight_memory": draw(U, M)}
            weights["bias"] = np.zeros(U, self.dtype)
        return {**weights, "vector": draw(1, U)[0]}

    def attend(
        self,
        query: SupportsArray,
        memory: SupportsArray,
        lengths: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray, AttentionTape]:
        """Attend to a memory.

        Parameters
        ----------
        query : array (Tq, B, Q)
            What asks, of the layer's dtype. Leave it unchanged until `attend_backward`, as well
            as `memory`.
        memory : array (Tm, B, M)
            What is asked, of the layer's dtype.
        lengths : integers (B,), optional
            Valid steps of each row of the memory, 0 to Tm. What is past them is never used.

        Returns
        -------
        context : ndarray (Tq, B, M)
            Weighted means; 0 in a row of length 0.
        weights : ndarray (Tq, B, Tm)
            The weights, 0 past the lengths; read-only because the tape refers to them.
        tape : AttentionTape
            What `attend_backward` needs.

        Examples
        --------
        >>> query, memory = np.ones((1, 1, 2)), np.array([[[0.0, 0.0]], [[1.0, 2.0]]])
        >>> context, weights, _ = Attention(2, dtype=np.float64).attend(query, memory)
        >>> weights.round(3).tolist(), context.round(3).tolist()  # softmax of 0 and 3
        ([[[0.047, 0.953]]], [[[0.953, 1.905]]])
        """
        query = self._read("query", query, ("Tq", "B", self.query_size))
        memory = self._read("memory", memory, ("Tm", query.shape[1], self.memory_size))
        valid = step_counts(lengths, memory.shape)
        tape = self._attend(query, without_padding(memory, valid), valid)
        tape.weights.flags.writeable = False
        return self._context(tape), tape.weights, tape

    def attend_backward(
        self,
        tape: AttentionTape,
        grad_context: SupportsArray | None = None,
        grad_weights: SupportsArray | None = None,
    ) -> AttentionGradients:
        """Differentiate the call of `attend` that made a tape.

        Parameters
        ----------
        tape : AttentionTape
            Of this layer's `attend`, whose parameters are unchanged since.
        grad_context : array (Tq, B, M), optional
            Gradient dL/d(context) of a loss L; zero by default.
        grad_weights : array (Tq, B, Tm), optional
            Gradient of the weights; zero by default. That past the lengths is ignored.

        Returns
        -------
        AttentionGradients
            dL/d(query), dL/d(memory) and dL/d(parameters).

        Examples
        --------
        >>> attention = Attention(2, dtype=np.float64)
        >>> query, memory = np.ones((1, 1, 2)), np.array([[[0.0, 0.0]], [[1.0, 2.0]]])
        >>> context, weights, tape = attention.attend(query, memory)
        >>> g = attention.attend_backward(tape, np.ones_like(context))
        >>> g.query.round(3).tolist()  # 3·a_0·a_1·(m_1 - m_0)
        [[[0.136, 0.271]]]
        """
        if not isinstance(tape, AttentionTape):
            raise TypeError(f"tape: expected what attend returned, got {type(tape).__name__}")
        query, memory, weights = tape
        with np.errstate(over="ignore", invalid="ignore"):
            grad = np.zeros_like(weights)
            grad_memory = np.zeros_like(memory)
            if grad_context is not None:
                shape = (*query.shape[:2], self.memory_size)
                grad_context = self._read("grad_context", grad_context, shape)
                grad = _inner(grad_context, memory)
                grad_memory = _spread(weights, grad_context)
            if grad_weights is not None:
                grad_weights = self._read("grad_weights", grad_weights, weights.shape)
                np.add(grad, grad_weights, out=grad, where=weights != 0)
            grad = _softmax_gradient(weights, grad)
            grad_query, grad_scored, parameters = self._score_gradients(query, memory, grad)
            grad_memory += grad_scored
        return AttentionGradients(grad_query, grad_memory, parameters)

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        tape = self._attend_to_itself(x, lengths)
        output = self._context(tape.attended)
        if self.queries == "last":
            return output[0], tape
        output[~valid_steps(len(output), tape.lengths)] = 0
        return output, tape

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        attended, lengths = memory
        last = self.queries == "last"
        gradient = gradient[np.newaxis] if last else without_padding(gradient, lengths)
        g = self.attend_backward(attended, gradient)
        if not last:
            return g.query + g.memory, g.parameters
        rows = np.flatnonzero(lengths)
        g.memory[lengths[rows] - 1, rows] += g.query[0, rows]
        return g.memory, g.parameters

    def weights(self, x: SupportsArray, lengths: ArrayLike | None = None) -> FloatArray:
        """Return which steps a sequence attends to, to look at them.

        Parameters
        ----------
        x : array (T, B, F)
            Sequence.
        lengths : integers (B,), optional
            Valid steps of each row.

        Returns
        -------
        ndarray
            The weights of the steps: (B, T) for ``queries="last"``, and for ``"all"`` (T, B, T),
            in which the first axis asks; 0 past the lengths.

        Examples
        --------
        >>> x = np.zeros((3, 2, 8))
        >>> Attention(8, dtype=np.float64).weights(x, lengths=[2, 3]).round(2).tolist()
        [[0.5, 0.5, 0.0], [0.33, 0.33, 0.33]]
        """
        tape = self._attend_to_itself(x, lengths)
        weights: FloatArray = tape.attended.weights
        if self.queries == "last":
            return weights.reshape(weights.shape[1:])
        weights[~valid_steps(len(weights), tape.lengths)] = 0
        return weights

    @property
    def stepwise(self) -> bool:
        """False: it needs the whole sequence."""
        return False

    def output_lengths(self, x: NDArray[Any], lengths: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return the lengths given, or None for ``queries="last"``: no steps are left."""
        return None if self.queries == "last" else lengths

    def input_shape(self) -> Shape:
        """Return the shape of the input, of sequences."""
        return ("T", "B", self.query_size)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return shape[1:] if self.queries == "last" else shape

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights a step that asks and answers takes.

        The products of steps with each other are not counted: their number grows with T.
        """
        weights = (array for array in self._parameters.values() if array.ndim == 2)
        return sum(array.size for array in weights)

    def __repr__(self) -> str:
        options = [str(self.query_size)]
        if self.memory_size != self.query_size:
            options.append(str(self.memory_size))
        options.append(f"score={self.score!r}")
        if self.units not in (None, self.query_size):
            options.append(f"units={self.units}")
        options.append(f"queries={self.queries!r}")
        if self.scale:
            options.append("scale=True")
        if self.dtype != np.float32:
            options.append(f"dtype={self.dtype.name!r}")
        return f"Attention({', '.join(options)})"

    def _read(self, name: str, value: Any, shape: tuple[int | str, ...]) -> FloatArray:
        """View an array whose axes have the sizes given as integers, of the layer's dtype."""
        array: FloatArray = np.asarray(functional.view(name, value))
        fits = array.ndim == len(shape) and all(
            isinstance(expected, str) or size == expected
            for size, expected in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype != self.dtype:
            expected = f"({', '.join(map(str, shape))})"
            raise ValueError(
                f"{name}: expected {expected} {self.dtype}, got {array.shape} {array.dtype}"
            )
        return array

    def _attend(
        self, query: FloatArray, memory: FloatArray, lengths: NDArray[np.int64]
    ) -> AttentionTape:
        with np.errstate(over="ignore", invalid="ignore"):
            return AttentionTape(query, memory, _softmax(self._scores(query, memory), lengths))

    @staticmethod
    def _context(tape: AttentionTape) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            return _mix(tape.weights, tape.memory)

    def _attend_to_itself(self, given: SupportsArray, lengths: ArrayLike | None) -> _LayerTape:
        if self.memory_size != self.query_size:
            raise ValueError(
                f"x: expected memory_size {self.memory_size} to be query_size {self.query_size}"
                " where a sequence attends to itself; see attend"
            )
        x = self._read("x", given, ("T", "B", self.query_size))
        valid = step_counts(lengths, x.shape)
        query = memory = without_padding(x, valid)
        if self.queries == "last":
            query = np.zeros((1, *x.shape[1:]), self.dtype)
            rows = np.flatnonzero(valid)
            query[0, rows] = x[valid[rows] - 1, rows]
        return _LayerTape(self._attend(query, memory, valid), valid)

    def _scores(self, query: FloatArray, memory: FloatArray) -> FloatArray:
        """Return the scores (Tq, B, Tm)."""
        if self.units is not None:
            return _tanh_scores(*self._hidden_sums(query, memory), self._parameters["vector"])
        if self.score == "general":
            query = _linear(query, self._parameters["weight"])
        scores = _inner(query, memory)
        if self.scale:
            scores /= math.sqrt(self.memory_size)
        return scores

    def _score_gradients(
        self, query: FloatArray, memory: FloatArray, grad: FloatArray
    ) -> tuple[FloatArray, FloatArray, dict[str, FloatArray]]:
        """Differentiate `_scores`; changes `grad`."""
        if self.units is not None:
            return self._tanh_score_gradients(query, memory, grad)
        if self.scale:
            grad /= math.sqrt(self.memory_size)
        grad_query = _mix(grad, memory)
        if self.score == "dot":
            return grad_query, _spread(grad, query), {}
        weight = self._parameters["weight"]
        grad_memory = _spread(grad, _linear(query, weight))
        grad_weight = _linear_gradient(query, grad_query)
        return _linear(grad_query, weight.T), grad_memory, {"weight": grad_weight}

    def _tanh_score_gradients(
        self, query: FloatArray, memory: FloatArray, grad: FloatArray
    ) -> tuple[FloatArray, FloatArray, dict[str, FloatArray]]:
        sums = self._hidden_sums(query, memory)
        a, b, grad_vector = _tanh_gradients(*sums, self._parameters["vector"], grad)
        weight_query, weight_memory = self._halves()
        grads = (_linear_gradient(a, query), _linear_gradient(b, memory))
        if self.score == "concat":
            parameters = {"weight": np.concatenate(grads, axis=1)}
        else:
            parameters = dict(zip(("weight_query", "weight_memory"), grads, strict=True))
            parameters["bias"] = a.sum(axis=(0, 1))
        parameters["vector"] = grad_vector
        return _linear(a, weight_query), _linear(b, weight_memory), parameters

    def _halves(self) -> tuple[FloatArray, FloatArray]:
        """Return what multiplies the query, (U, Q), and the memory, (U, M)."""
        if self.score == "additive":
            return self._parameters["weight_query"], self._parameters["weight_memory"]
        weight, Q = self._parameters["weight"], self.query_size
        return weight[:, :Q], weight[:, Q:]

    def _hidden_sums(self, query: FloatArray, memory: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the terms (Tq, B, U) and (Tm, B, U) whose sums tanh is taken of."""
        weight_query, weight_memory = self._halves()
        a, b = _linear(query, weight_query.T), _linear(memory, weight_memory.T)
        if self.score == "additive":
            a += self._parameters["bias"]
        return a, b
