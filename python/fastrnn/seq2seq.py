"""Sequences to sequences: an encoder, a decoder, and attention between them.

Letters: S steps of the source, T of the target, B batch, H units of the decoder's output, M of the
encoder's, V ids of the target, k beams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from fastrnn import functional
from fastrnn.activations import log_softmax
from fastrnn.attention import Attention
from fastrnn.batches import time_major
from fastrnn.containers import Residual, prefixed, run, run_back
from fastrnn.layer import Layer
from fastrnn.layers import Dense, Embedding, valid_steps
from fastrnn.models import Sequential, leaves
from fastrnn.recurrent import Recurrent
from fastrnn.trainer import Model, Pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from fastrnn import optimizers
    from fastrnn.batches import Batch, Samples
    from fastrnn.functional import FloatArray

__all__ = ["Seq2Seq"]

Kind = TypeVar("Kind")


class _Tape(NamedTuple):
    """What the gradient needs.

    Attributes
    ----------
    memory : ndarray (S, B, M)
        Output of the encoder.
    encoder, decoder, attention, output
        Tapes of the parts.
    """

    memory: FloatArray
    encoder: Any
    decoder: Any
    attention: Any
    output: Any


class _Translation(NamedTuple):
    """What the search found for a source.

    Attributes
    ----------
    ids : ndarray of int64 (T,)
        Without end.
    weights : ndarray (T, S) or None
        Attention.
    score : float
        Log-probability, divided by the length penalty.
    """

    ids: NDArray[np.int64]
    weights: FloatArray | None
    score: float


class _Choice(NamedTuple):
    """Which beams a step of the search kept.

    Attributes
    ----------
    parents : ndarray (k, B)
        The beams that were continued.
    ids : ndarray (k, B)
        By which ids.
    weights : ndarray (k, B, S) or None
        Attention of the parents, before they were chosen.
    """

    parents: NDArray[np.intp]
    ids: NDArray[np.intp]
    weights: FloatArray | None


class Seq2Seq(Model):
    """A network that reads a sequence, then writes another of ids [1]_.

    The decoder's recurrent layers start from the final states of the encoder's, in their order.
    With attention [2]_, each output h_t of the decoder asks the encoder's outputs, whose weighted
    mean c_t goes with it: the logits of the next id are ``output([h_t; c_t])``. Without, they are
    ``output(h_t)``.

    Parameters
    ----------
    encoder : Sequential
        Reads the source. A bidirectional layer hands on the final states of its two directions side
        by side, so that the decoder's needs twice the hidden units.
    decoder : Sequential
        Reads the target: an `Embedding` of its V ids, then at least one recurrent layer. There are
        as many as in the encoder, of the same kinds and sizes, each in one direction.
    attention : Attention, optional
        With query_size H and memory_size M; its ``queries`` mean nothing here.
    output : Layer, optional
        Makes the V logits of each step: a `Sequential` that ends in them, or a `Dense`, which is
        the default.
    start, end : int
        Ids that the decoder begins with, and that ends a sequence. Neither they nor 0, which is
        padding, are in the targets.
    seed : int or numpy.random.Generator, optional
        Source of the initial values of the default `output`.

    Attributes
    ----------
    encoder, decoder, attention, output, start, end
        As given.
    parameters : dict of str to ndarray
        The live arrays, named after the parts: ``encoder.0.weight``, ``output.bias``.

    Notes
    -----
    `fit` takes sources as `Sequential.fit` does, and as targets lists of ids or an array (n, T)
    with 0 for padding. The model adds `start` and `end` itself: it reads [start, y...] and is to
    predict [y..., end], step by step from the true ids before (teacher forcing). Attention comes
    after the recurrent layers, as in [2]_, so that all steps are computed at once.

    References
    ----------
    .. [1] I. Sutskever, O. Vinyals, Q. V. Le. Sequence to sequence learning with neural networks.
           NIPS 2014.
    .. [2] M.-T. Luong, H. Pham, C. D. Manning. Effective approaches to attention-based neural
           machine translation. EMNLP 2015.

    Examples
    --------
    Sequences of the ids 3 to 7, to be written backwards:

    >>> from fastrnn import Attention, Embedding, GRU, Sequential
    >>> model = Seq2Seq(
    ...     Sequential([Embedding(8, 16, mask_zero=True, seed=0), GRU(16, 32, seed=1)]),
    ...     Sequential([Embedding(8, 16, seed=2), GRU(16, 32, seed=3)]),
    ...     Attention(32),
    ...     start=1,
    ...     end=2,
    ...     seed=4,
    ... )
    >>> rng = np.random.default_rng(0)
    >>> x = [rng.integers(3, 8, size=rng.integers(1, 5)) for _ in range(1000)]
    >>> y = [ids[::-1] for ids in x]
    >>> history = model.compile("adam").fit(x, y, epochs=12, seed=0, verbose=0)
    >>> model.translate([[3, 4, 5], [7, 3]], max_steps=6)
    [array([5, 4, 3]), array([3, 7])]
    """

    def __init__(
        self,
        encoder: Sequential,
        decoder: Sequential,
        attention: Attention | None = None,
        output: Layer | None = None,
        *,
        start: int,
        end: int,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = _expect("encoder", encoder, Sequential)
        self.decoder = _expect("decoder", decoder, Sequential)
        self.attention = None if attention is None else _expect("attention", attention, Attention)
        first = leaves(decoder)[0]
        if not isinstance(first, Embedding):
            raise TypeError(f"decoder: expected an Embedding of ids first, got {first!r}")
        self.start = functional.integer("start", start, 1, first.vocabulary)
        self.end = functional.integer("end", end, 1, first.vocabulary)
        if start == end:
            raise ValueError(f"end: expected an id other than start, got {end} for both")
        if output is None:
            output = self._default_output(first.vocabulary, seed)
        self.output = _expect("output", output, Layer)
        self._check_parts()
        self._check_states()
        self._check_sizes(first.vocabulary)

    def _default_output(self, V: int, seed: int | np.random.Generator | None) -> Dense:
        H, memory_size = _width(self.decoder), 0
        if H is None:
            raise ValueError("output: expected a layer, as the decoder shows no number of features")
        if self.attention is not None:
            memory_size = self.attention.memory_size
        return Dense(H + memory_size, V, seed=seed, dtype=self.decoder.dtype)

    def _check_parts(self) -> None:
        for name, part in (("decoder", self.decoder), ("output", self.output)):
            if not part.stepwise:
                raise ValueError(
                    f"{name}: expected layers whose output at a step depends on that step and those"
                    f" before it only, got {part!r}"
                )
        arrays = list(self.parameters.values())
        if len({id(array) for array in arrays}) < len(arrays):
            raise ValueError("decoder: expected layers of its own, got one that is in two parts")
        dtypes = sorted({array.dtype.name for array in arrays})
        if len(dtypes) > 1:
            raise ValueError(f"decoder: expected one dtype in all parts, got {', '.join(dtypes)}")

    def _check_states(self) -> None:
        sources, targets = _recurrent(self.encoder), _recurrent(self.decoder)
        if not targets or len(sources) != len(targets):
            raise ValueError(
                "decoder: expected as many recurrent layers as the encoder has, at least 1, got"
                f" {len(targets)} for {len(sources)}"
            )
        for source, target in zip(sources, targets, strict=True):
            wanted, got = _state_sizes(source), _state_sizes(target)
            if wanted != got:
                raise ValueError(
                    f"decoder: expected {_describe(*wanted)} to start from {source!r}, got"
                    f" {_describe(*got)} in {target!r}"
                )

    def _check_sizes(self, V: int) -> None:
        """Check what is known before there are data: some layers take any input."""
        H, M = _width(self.decoder), _width(self.encoder)
        features, what = H, "decoder's output"
        if self.attention is not None:
            query_size, memory_size = self.attention.query_size, self.attention.memory_size
            _check_width("attention", "query_size as the decoder's output", H, query_size)
            _check_width("attention", "memory_size as the encoder's output", M, memory_size)
            features, what = query_size + memory_size, f"{what} and the context"
        shape = self.output.input_shape()
        takes = shape[-1] if shape is not None and isinstance(shape[-1], int) else None
        _check_width("output", f"inputs as the {what}", features, takes)
        if takes is not None:
            gives = self.output.output_shape(("T", "B", takes))[-1]
            _check_width("output", "logits as ids of the decoder", V, gives)

    def children(self) -> Mapping[str, Layer]:
        """Return the parts by name."""
        parts = {"encoder": self.encoder, "decoder": self.decoder, "output": self.output}
        return parts if self.attention is None else {**parts, "attention": self.attention}

    @property
    def stepwise(self) -> bool:
        """False: the decoder needs the whole source."""
        return False

    def compile(
        self,
        optimizer: str | optimizers.Optimizer = "adam",
        loss: str | Callable[..., Any] = "cross_entropy",
        metrics: Iterable[str | Callable[..., Any]] | None = None,
    ) -> Self:
        """Set what `fit` and `evaluate` use, see `Sequential.compile`.

        Parameters
        ----------
        optimizer : str or Optimizer, default "adam"
            See `fastrnn.optimizers.get`.
        loss : str or callable, default "cross_entropy"
            Of logits (T, B, V) and ids (T, B), see `fastrnn.losses.get`.
        metrics : sequence of str or callable, default none
            See `fastrnn.metrics.get`. They see each step alone: "accuracy" is that of single ids.

        Returns
        -------
        Seq2Seq
            The model.
        """
        return super().compile(optimizer, loss, metrics)

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        """Refuse: it takes two sequences, see `fit` and `translate`."""
        raise NotImplementedError("Seq2Seq: it takes a source and a target; see fit and translate")

    # Training.

    def _samples(
        self, x: Any, y: Any = None, lengths: Any = None, sample_weight: Any = None
    ) -> Samples:
        if sample_weight is not None and np.ndim(sample_weight) != 1:
            raise ValueError(f"sample_weight: expected numbers (n,), got {np.shape(sample_weight)}")
        targets = None if y is None else self._targets(y)
        return self.encoder._samples(x, targets, lengths, sample_weight)

    def _targets(self, y: Any) -> list[NDArray[np.int64]]:
        """Return the ids of each target, with the end that is to be predicted."""
        fits = y.ndim == 2 or y.dtype == object if isinstance(y, np.ndarray) else True
        if not fits or not isinstance(y, (np.ndarray, list, tuple)):
            got = f"{y.shape} {y.dtype}" if isinstance(y, np.ndarray) else type(y).__name__
            raise ValueError(f"y: expected ids (n, T) or a list of ids (T_i,), got {got}")
        return [self._target(row) for row in y]

    def _target(self, row: Any) -> NDArray[np.int64]:
        expected = "sequences of integer ids (T,)"
        ids = functional.listed("y", expected, row)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise TypeError(f"y: expected {expected}, got {ids.shape} {ids.dtype}")
        known = np.flatnonzero(ids)
        ids = ids[: known[-1] + 1 if known.size else 0].astype(np.int64)
        V = self._vocabulary
        wrong = ids[(ids <= 0) | (ids >= V) | (ids == self.start) | (ids == self.end)]
        if wrong.size:
            raise ValueError(
                f"y: expected ids in [1, {V}) without start {self.start} and end {self.end}, and 0"
                f" as padding at the end only, got {wrong[0]}"
            )
        return np.append(ids, self.end)

    @property
    def _vocabulary(self) -> int:
        first = leaves(self.decoder)[0]
        assert isinstance(first, Embedding)
        return first.vocabulary

    def _pass(self, batch: Batch, state: Any = None, *, keep: bool = True) -> Pass:
        assert batch.y is not None
        target, valid = time_major(batch.y), batch.y_lengths
        if valid is None:
            valid = np.full(batch.size, len(target))
        memory, initial, lengths, encoder_tape = self._encode(batch, keep)
        ids = np.concatenate((np.full_like(target[:1], self.start), target[:-1]))
        h, _, decoder_tape = run(self.decoder, ids, initial, valid, keep=keep)
        features, attention_tape = h, None
        if self.attention is not None:
            context, _, attention_tape = self.attention.attend(h, memory, lengths)
            features = np.concatenate((h, context), axis=2)
        logits, _, output_tape = run(self.output, features, None, valid, keep=keep)
        tape = _Tape(memory, encoder_tape, decoder_tape, attention_tape, output_tape)
        mask = valid_steps(len(target), valid)
        return Pass(logits, target, mask, batch.sample_weight, None, tape)

    def _encode(self, batch: Batch, keep: bool) -> tuple[FloatArray, Any, NDArray[Any] | None, Any]:
        """Return the memory, the decoder's initial state, the memory's lengths and the tape."""
        memory, final, tape = run(self.encoder, batch.x, None, batch.lengths, keep=keep)
        lengths = self.encoder.output_lengths(batch.x, batch.lengths)
        states = [
            _side_by_side(state, layer)
            for layer, state in zip(
                _recurrent(self.encoder), _states(self.encoder, final), strict=True
            )
        ]
        return memory, _placed(self.decoder, iter(states)), lengths, tape

    def _gradients(self, tape: Any, gradient: FloatArray) -> dict[str, FloatArray]:
        g = run_back(self.output, tape.output, gradient, None, True)
        grad_h, grad_memory = g.input, np.zeros_like(tape.memory)
        found = {"output": g.parameters}
        if self.attention is not None:
            assert g.input is not None
            H = self.attention.query_size
            attended = self.attention.attend_backward(tape.attention, g.input[..., H:])
            grad_h, grad_memory = g.input[..., :H] + attended.query, attended.memory
            found["attention"] = attended.parameters
        g = self.decoder.backward(tape.decoder, grad_h, input_grad=False)
        found["decoder"] = g.parameters
        states = [
            _apart(state, layer)
            for layer, state in zip(
                _recurrent(self.encoder), _states(self.decoder, g.state), strict=True
            )
        ]
        grad_final = _placed(self.encoder, iter(states))
        g = self.encoder.backward(tape.encoder, grad_memory, grad_final, input_grad=False)
        found["encoder"] = g.parameters
        return prefixed(found)

    def _output_layer(self) -> Layer:
        return leaves(self.output)[-1]

    # Translation.

    def translate(
        self,
        x: Any,
        *,
        max_steps: int,
        lengths: ArrayLike | None = None,
        beam: int = 1,
        length_penalty: float = 0.0,
        batch_size: int = 256,
        return_attention: bool = False,
        return_scores: bool = False,
    ) -> Any:
        """Write the sequences that the model finds likeliest, in evaluation mode.

        Parameters
        ----------
        x, lengths
            Sources, as in `fit`.
        max_steps : int
            Most ids of a translation; one that has so many ends there.
        beam : int, default 1
            How many beginnings are kept at each step [1]_. 1 takes the likeliest id each time.
        length_penalty : float, default 0
            Power of the length by which log-probabilities are divided when beams are compared: 0
            prefers short translations, 1 compares means over the ids [2]_.
        batch_size : int, default 256
            Sources at a time.
        return_attention : bool, default False
            Whether the weights of the attention are wanted, too.
        return_scores : bool, default False
            Whether the scores are wanted, too.

        Returns
        -------
        ids : list of ndarray of int64 (T_i,)
            Translations, without start and end.
        attention : list of ndarray (T_i, S_i)
            With `return_attention`: to which steps of the source each id attended.
        scores : ndarray of float64 (n,)
            With `return_scores`: log-probability of each translation with its end, divided by the
            number of these ids to the power `length_penalty`.

        Notes
        -----
        Padding and start are never chosen. A beam that has ended keeps its place until others are
        better; the search is over when none of those that go on can become better than the best
        that has ended.

        References
        ----------
        .. [1] A. Graves. Sequence transduction with recurrent neural networks. ICML 2012 workshop
               on representation learning.
        .. [2] Y. Wu et al. Google's neural machine translation system: bridging the gap between
               human and machine translation. arXiv:1609.08144, 2016.

        Examples
        --------
        >>> from fastrnn import Embedding, LSTM, Sequential
        >>> model = Seq2Seq(
        ...     Sequential([Embedding(8, 4, mask_zero=True, seed=0), LSTM(4, 6, seed=1)]),
        ...     Sequential([Embedding(5, 4, seed=2), LSTM(4, 6, seed=3)]),
        ...     start=1,
        ...     end=2,
        ... )
        >>> x = [[3, 4, 5], [7]]
        >>> ids, scores = model.translate(x, max_steps=3, beam=2, return_scores=True)
        >>> len(ids), scores.shape
        (2, (2,))
        """
        max_steps = functional.integer("max_steps", max_steps, 1)
        beam = functional.integer("beam", beam, 1)
        length_penalty = functional.number("length_penalty", length_penalty, 0)
        with_attention = functional.boolean("return_attention", return_attention)
        with_scores = functional.boolean("return_scores", return_scores)
        if with_attention and self.attention is None:
            raise ValueError("return_attention: expected False for a model without attention")
        samples = self._samples(x, None, lengths)
        order = samples.in_order(functional.integer("batch_size", batch_size, 1))
        found: dict[int, _Translation] = {}
        for rows, batch in zip(order, self._in_evaluation(samples, order), strict=True):
            translations = self._search(batch, max_steps, beam, length_penalty, with_attention)
            found.update(zip(rows.tolist(), translations, strict=True))
        translations = [found[i] for i in range(len(samples))]
        results: list[Any] = [[translation.ids for translation in translations]]
        if with_attention:
            results.append([translation.weights for translation in translations])
        if with_scores:
            results.append(np.array([translation.score for translation in translations]))
        return results[0] if len(results) == 1 else tuple(results)

    def _search(
        self, batch: Batch, max_steps: int, k: int, penalty: float, with_attention: bool
    ) -> list[_Translation]:
        """Search for the best translation of each source, all beams of all sources at once."""
        B, columns = batch.size, np.arange(batch.size)
        memory, initial, lengths, _ = self._encode(batch, keep=False)
        state = (_rows(initial, np.tile(columns, k)), None)
        ids = np.full((k, B), self.start)
        # All beams begin alike: but for the first they are impossible.
        totals = np.full((k, B), -np.inf)
        totals[0] = 0
        done, sizes = np.zeros((k, B), bool), np.zeros((k, B), np.int64)
        choices: list[_Choice] = []
        for i in range(max_steps + 1):
            logits, state, weights = self._step(ids, state, memory, lengths)
            candidates = self._log_probabilities(logits, done, i == max_steps)
            candidates += totals[..., np.newaxis]
            sizes = sizes + ~done
            parents, ids = _best(candidates / (sizes[..., np.newaxis] ** penalty))
            totals = candidates[parents, columns, ids]
            sizes, done = sizes[parents, columns], done[parents, columns] | (ids == self.end)
            choices.append(_Choice(parents, ids, weights if with_attention else None))
            if k > 1:
                state = _rows(state, (parents * B + columns).ravel())
            finished = np.where(done, totals / sizes**penalty, -np.inf)
            possible = np.where(done, -np.inf, totals) / (max_steps + 1) ** penalty
            if np.all(finished.max(axis=0) >= possible.max(axis=0)):
                break
        best = finished.argmax(axis=0)
        steps = np.full(B, len(memory)) if lengths is None else lengths
        return [
            _Translation(*_trace(choices, j, b, sizes[j, b], steps[b]), float(finished[j, b]))
            for b, j in enumerate(best)
        ]

    def _step(
        self, ids: NDArray[np.intp], state: Any, memory: FloatArray, lengths: NDArray[Any] | None
    ) -> tuple[FloatArray, Any, FloatArray | None]:
        """Return the logits (k, B, V) after ids (k, B), the next state and the attention."""
        k, B = ids.shape
        features, decoder_state = self.decoder.step(ids.ravel(), state[0])
        weights = None
        if self.attention is not None:
            # As steps of a query, beams share the memory of their source.
            query = features.reshape(k, B, features.shape[1])
            context, weights, _ = self.attention.attend(query, memory, lengths)
            features = np.concatenate((query, context), axis=2).reshape(k * B, -1)
        logits, output_state = self.output.step(features, state[1])
        return logits.reshape(k, B, logits.shape[1]), (decoder_state, output_state), weights

    def _log_probabilities(
        self, logits: FloatArray, done: NDArray[np.bool_], is_last: bool
    ) -> NDArray[np.float64]:
        """Return the log-probability (k, B, V) of each way to go on."""
        if not np.all(np.isfinite(logits)):
            raise ValueError("model: expected finite logits, got NaN or infinity")
        shifted = np.asarray(log_softmax(logits.astype(np.float64)), np.float64)
        allowed = np.full(shifted.shape[2], not is_last)
        allowed[[0, self.start]] = False
        allowed[self.end] = True
        shifted[..., ~allowed] = -np.inf
        # What has ended ends again, for nothing.
        shifted[done] = -np.inf
        shifted[done, self.end] = 0
        return shifted

    def __repr__(self) -> str:
        attention = "" if self.attention is None else f", {self.attention!r}"
        return (
            f"Seq2Seq({self.encoder!r}, {self.decoder!r}, {self.output!r}{attention},"
            f" start={self.start}, end={self.end})"
        )


def _expect(name: str, value: Kind | None, kind: type[Kind]) -> Kind:
    if not isinstance(value, kind):
        got = value.__name__ if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: expected a {kind.__name__}, got {got}")
    return value


def _width(model: Sequential) -> int | None:
    """Return the features of a model's output, if they are known."""
    shape = model.input_shape()
    last = None if shape is None else model.output_shape(shape)[-1]
    return last if isinstance(last, int) else None


def _check_width(part: str, what: str, wanted: int | None, got: Any) -> None:
    if wanted is not None and isinstance(got, int) and wanted != got:
        raise ValueError(f"{part}: expected {wanted} {what}, got {got}")


# States of recurrent layers, which lie at any depth of a stack.


def _recurrent(layer: Layer) -> list[Recurrent[Any]]:
    """Return the recurrent layers in their order."""
    if isinstance(layer, Recurrent):
        return [layer]
    if isinstance(layer, Sequential):
        return [found for inner in layer.layers for found in _recurrent(inner)]
    return _recurrent(layer.layer) if isinstance(layer, Residual) else []


def _states(layer: Layer, state: Any) -> list[Any]:
    """Return the states of the recurrent layers in their order."""
    if isinstance(layer, Recurrent):
        return [state]
    if isinstance(layer, Sequential):
        pairs = zip(layer.layers, state, strict=True)
        return [found for inner, given in pairs for found in _states(inner, given)]
    return _states(layer.layer, state) if isinstance(layer, Residual) else []


def _placed(layer: Layer, states: Iterator[Any]) -> Any:
    """Return the state of a stack, made of those of its recurrent layers."""
    if isinstance(layer, Recurrent):
        return next(states)
    if isinstance(layer, Sequential):
        return tuple(_placed(inner, states) for inner in layer.layers)
    return _placed(layer.layer, states) if isinstance(layer, Residual) else None


def _state_sizes(layer: Recurrent[Any]) -> tuple[str, int, int, int]:
    """Return the kind of a layer, and L, R and H of the state that it hands on or starts from."""
    D = 2 if layer.bidirectional else 1
    kind = next(cls.__name__ for cls in type(layer).__mro__ if Recurrent in cls.__bases__)
    R = layer.proj_size or layer.hidden_size
    return kind, layer.num_layers, D * R, D * layer.hidden_size


def _describe(kind: str, L: int, R: int, H: int) -> str:
    return f"{kind} with {L} layers of {H} units" + (f" projected to {R}" if R != H else "")


def _side_by_side(state: Any, layer: Recurrent[Any]) -> Any:
    """Turn a layer's state (2·L, B, R) of two directions into (L, B, 2·R) of one."""
    if not layer.bidirectional:
        return state
    if isinstance(state, tuple):
        return tuple(_side_by_side(part, layer) for part in state)
    _, B, R = state.shape
    L = layer.num_layers
    return state.reshape(L, 2, B, R).swapaxes(1, 2).reshape(L, B, 2 * R)


def _apart(state: Any, layer: Recurrent[Any]) -> Any:
    """Undo `_side_by_side`."""
    if not layer.bidirectional:
        return state
    if isinstance(state, tuple):
        return tuple(_apart(part, layer) for part in state)
    L, B, R = state.shape
    return state.reshape(L, B, 2, R // 2).swapaxes(1, 2).reshape(2 * L, B, R // 2)


def _rows(state: Any, rows: NDArray[np.intp]) -> Any:
    """Select rows of a state, whose arrays are (L, B, R)."""
    if isinstance(state, tuple):
        return tuple(_rows(part, rows) for part in state)
    return None if state is None else state[:, rows]


# The search.


def _best(scores: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return beam and id, (k, B) each, of the k best of (k, B, V), the best first."""
    k, B, V = scores.shape
    flat = scores.swapaxes(0, 1).reshape(B, k * V)
    if k == 1:
        chosen = flat.argmax(axis=1)[:, np.newaxis]
    else:
        chosen = np.sort(np.argpartition(-flat, k - 1, axis=1)[:, :k], axis=1)
        falling = np.argsort(-np.take_along_axis(flat, chosen, axis=1), axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, falling, axis=1)
    parents, ids = np.divmod(chosen.T, V)
    return parents, ids


def _trace(
    choices: list[_Choice], beam: int, row: int, size: int, source_steps: int
) -> tuple[NDArray[np.int64], FloatArray | None]:
    """Follow a beam of a row back to its start; `size` counts its ids and the end."""
    ids, weights = [], []
    for choice in reversed(choices):
        ids.append(choice.ids[beam, row])
        beam = choice.parents[beam, row]
        if choice.weights is not None:
            weights.append(choice.weights[beam, row, :source_steps])
    written = slice(-1, -size, -1)  # all but the end, the first last
    return (
        np.array(ids[written], np.int64),
        np.array(weights[written]).reshape(size - 1, source_steps) if weights else None,
    )
