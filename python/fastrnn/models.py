"""Models that are trained: a stack of layers."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional, generation
from fastrnn.batches import Samples, align, time_major
from fastrnn.containers import prefixed, run, run_back, walk
from fastrnn.layer import Gradients, Layer
from fastrnn.layers import Embedding, Repeat
from fastrnn.trainer import Model, Pass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from fastrnn.batches import Batch
    from fastrnn.functional import FloatArray
    from fastrnn.layer import Shape

__all__ = ["Sequential", "leaves"]


def _width(shape: Shape | None) -> int | str | None:
    """Return the features of a shape, or the channels of that of images."""
    if not shape or len(shape) < 2:
        return None
    return shape[1] if len(shape) == 4 else shape[-1]


class Sequential(Model):
    """A stack of layers, each of which reads the output of the one before it.

    Parameters
    ----------
    layers : sequence of Layer
        Recurrent layers, those of `fastrnn.layers`, or others with `Layer` as their base; a
        `Sequential` is one, too.

    Attributes
    ----------
    layers : list of Layer
        The layers.
    parameters : dict of str to ndarray
        The live arrays, named after the number of the layer: ``0.weight``, ``1.weight_ih_l0``.

    Notes
    -----
    `fit`, `evaluate` and `predict` take samples first, (n, T, F), whatever ``batch_first`` of a
    layer is. As a `Layer`, in `forward`, `backward` and a call, it is time-major, (T, B, F).

    Examples
    --------
    >>> import fastrnn
    >>> model = fastrnn.Sequential([
    ...     fastrnn.Embedding(1000, 64, seed=0),
    ...     fastrnn.LSTM(64, 128, seed=1),
    ...     fastrnn.Last(),
    ...     fastrnn.Dense(128, 10, seed=2),
    ... ])
    >>> model.compile("adam", "cross_entropy", ["accuracy"]).summary()
    layer                    output     parameters  multiply-adds
    -------------------------------------------------------------
    Embedding(1000, 64)      T, B, 64        64000              0
    LSTM(64, 128)            T, B, 128       99328          98304
    Last()                   B, 128              0              0
    Dense(128, 10)           B, 10            1290           1280
    -------------------------------------------------------------
    164618 parameters; multiply-adds are per row, and where there is T per step
    >>> rng = np.random.default_rng(0)
    >>> x = rng.integers(1000, size=(40, 12))
    >>> history = model.fit(x, x[:, -1] % 10, epochs=10, seed=0, verbose=0)
    >>> history["loss"][-1] < history["loss"][0]
    True
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = list(layers)
        if not self.layers:
            raise ValueError("layers: expected at least 1 layer, got none")
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                got = layer.__name__ if isinstance(layer, type) else type(layer).__name__
                raise TypeError(f"layers[{i}]: expected a layer, got {got}")
            if not layer.stackable:
                raise TypeError(
                    f"layers[{i}]: expected a layer of sequences or rows, got a"
                    f" {type(layer).__name__}"
                )
        inner = [layer for _, layer in walk(self)]
        if len({id(layer) for layer in inner}) < len(inner):
            raise ValueError("layers: expected different layers, got one twice")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Check what is known before there are data: some layers take any input."""
        shape = self.input_shape()
        for i, layer in enumerate(self.layers):
            wanted = layer.input_shape()
            given = _width(shape)
            takes = _width(wanted)
            if i and isinstance(given, int) and isinstance(takes, int) and given != takes:
                raise ValueError(
                    f"layers[{i}]: expected {given} inputs, as layers[{i - 1}] gives, got {layer!r}"
                )
            shape = layer.output_shape(shape) if shape else None
        dtypes = sorted({array.dtype.name for array in self.parameters.values()})
        if len(dtypes) > 1:
            raise ValueError(f"layers: expected one dtype, got {' and '.join(dtypes)}")

    def children(self) -> Mapping[str, Layer]:
        """Return the layers by number."""
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i: int) -> Layer:
        return self.layers[i]

    # As a layer.

    def forward(
        self, x: Any, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any, Any]:
        """Run, and keep what `backward` needs, see `Layer.forward`.

        Parameters
        ----------
        x : array (T, B, F), ids (T, B), or (B, F)
            Input, time-major.
        state : tuple, optional
            State of each layer.
        lengths : integers (B,), optional
            Valid steps of each row.

        Returns
        -------
        output : ndarray
            Output of the last layer.
        state : tuple
            Final state of each layer.
        tape
            What `backward` needs.
        """
        return self._forward(x, state, lengths, keep=True)

    def apply(
        self, x: Any, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any]:
        """Run without keeping what `backward` needs, see `Layer.apply`."""
        output, state, _ = self._forward(x, state, lengths, keep=False)
        return output, state

    def _forward(
        self, x: Any, state: Any, lengths: ArrayLike | None, *, keep: bool
    ) -> tuple[FloatArray, Any, Any]:
        current = None if lengths is None else functional.integer_lengths(lengths)
        states, tapes = [], []
        for layer, given in zip(self.layers, self._states(state), strict=True):
            lengths, current = current, layer.output_lengths(x, current)
            x, final, tape = run(layer, x, given, lengths, keep=keep)
            states.append(final)
            tapes.append(tape)
        return x, tuple(states), tapes

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        """Differentiate the call of `forward` that made a tape, see `Layer.backward`.

        Parameters
        ----------
        tape
            Of `forward`.
        grad_output : array, optional
            Gradient of the output.
        grad_state : tuple, optional
            Gradient of the final state of each layer.
        input_grad : bool, default True
            Whether the gradient of the input is wanted.

        Returns
        -------
        Gradients
            dL/d(input), dL/d(initial state) and dL/d(parameters).
        """
        found: list[Gradients] = []
        states = self._states(grad_state)
        for i in reversed(range(len(self.layers))):
            g = run_back(self.layers[i], tape[i], grad_output, states[i], input_grad or i > 0)
            grad_output = g.input
            found.append(g)
        found.reverse()
        parameters = prefixed({str(i): g.parameters for i, g in enumerate(found)})
        return Gradients(grad_output, tuple(g.state for g in found), parameters)

    def step(self, x: Any, state: Any = None) -> tuple[FloatArray, Any]:
        """Run one step: the way to stream, in evaluation mode.

        Parameters
        ----------
        x : array (B, F) or ids (B,)
            Input of one step.
        state : tuple, optional
            State of each layer.

        Returns
        -------
        output : ndarray (B, n)
            Output of the step.
        state : tuple
            Next state.

        Examples
        --------
        >>> import fastrnn
        >>> model = fastrnn.Sequential([fastrnn.GRU(8, 16), fastrnn.Dense(16, 2)]).eval()
        >>> state = None
        >>> for x_t in np.zeros((5, 1, 8), np.float32):
        ...     y_t, state = model.step(x_t, state)
        >>> y_t.shape
        (1, 2)
        """
        if not self.stepwise:
            raise ValueError(
                "step: expected a model whose output at a step depends on that step and those"
                " before it only; this one looks at a whole sequence at once"
            )
        states = []
        for layer, given in zip(self.layers, self._states(state), strict=True):
            x, final = layer.step(x, given)
            states.append(final)
        return x, tuple(states)

    def output_lengths(self, x: NDArray[Any], lengths: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return the lengths of the output."""
        for layer in self.layers:
            lengths = layer.output_lengths(x, lengths)
            x = _NOTHING  # only a table of ids, which comes first, looks at its input
        return lengths

    def input_shape(self) -> Shape | None:
        """Return the shape of the input."""
        shapes: list[Shape] = []
        for layer in self.layers:
            wanted = layer.input_shape()
            if wanted == ("T", "B"):  # ids
                return wanted if not shapes else None
            if wanted is not None and len(wanted) == 4:  # images
                if not shapes:
                    return wanted
                break
            if wanted is not None:
                shapes.append(wanted)
            if any(isinstance(leaf, Repeat) for leaf in leaves(layer)):
                break  # what follows reads steps that the input has not
        # The first layer may be one that takes any number of features, or rows as well as steps.
        features = [shape[-1] for shape in shapes if isinstance(shape[-1], int)]
        steps = any(shape[0] == "T" for shape in shapes)
        if not features:
            return None
        return ("T", "B", features[0]) if steps else ("B", features[0])

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights the layers take, of a step or row each."""
        total = 0
        for layer in self.layers:
            total += layer.multiply_adds(shape)
            shape = layer.output_shape(shape)
        return total

    def _states(self, state: Any) -> Any:
        if state is None:
            return [None] * len(self.layers)
        if not isinstance(state, (tuple, list)) or len(state) != len(self.layers):
            raise ValueError(
                f"state: expected a tuple of {len(self.layers)}, one of each layer, got"
                f" {type(state).__name__}"
            )
        return state

    # As a model.

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the parameters."""
        return next((array.dtype for array in self.parameters.values()), np.dtype(np.float32))

    def _samples(
        self, x: Any, y: Any = None, lengths: Any = None, sample_weight: Any = None
    ) -> Samples:
        first = leaves(self)[0]
        samples = Samples(
            x,
            y,
            lengths=lengths,
            sample_weight=sample_weight,
            reads_ids=isinstance(first, Embedding),
            dtype=self.dtype,
        )
        samples.fit_to(self.input_shape())
        if isinstance(first, Embedding) and first.mask_zero and samples.lengths is None:
            # Known once and for all, so that batches need not hold more than their longest.
            samples.lengths = first.output_lengths(samples.padded(), None)
        return samples

    def _pass(self, batch: Batch, state: Any = None, *, keep: bool = True) -> Pass:
        prediction, state, tape = self._forward(batch.x, state, batch.lengths, keep=keep)
        lengths = self.output_lengths(batch.x, batch.lengths)
        target, mask, weight = align(batch, prediction, lengths, self.loss)
        return Pass(prediction, target, mask, weight, state, tape)

    def _gradients(self, tape: Any, gradient: FloatArray) -> dict[str, FloatArray]:
        return self.backward(tape, gradient, input_grad=False).parameters

    def _output_layer(self) -> Layer:
        return leaves(self)[-1]

    def predict(self, x: Any, *, lengths: ArrayLike | None = None, batch_size: int = 256) -> Any:
        """Compute the output, in evaluation mode.

        Parameters
        ----------
        x, lengths
            As in `fit`.
        batch_size : int, default 256
            Samples at a time.

        Returns
        -------
        ndarray (n, k) or (n, T, k), or list of (T_i, k)
            Output for each sample, or for each of its steps: 0 past the lengths for an array, and a
            list for a list.

        Examples
        --------
        >>> import fastrnn
        >>> model = fastrnn.Sequential([fastrnn.GRU(8, 16), fastrnn.Dense(16, 2)])
        >>> model.predict(np.zeros((3, 5, 8), np.float32)).shape
        (3, 5, 2)
        >>> [y.shape for y in model.predict([np.zeros((5, 8)), np.zeros((2, 8))])]
        [(5, 2), (2, 2)]
        """
        samples = self._samples(x, None, lengths)
        batch_size = functional.integer("batch_size", batch_size, 1)
        # Without samples one empty batch shows the shape.
        order = samples.in_order(batch_size) or [np.arange(0)]
        outputs: list[FloatArray] = []
        lengths_of = np.zeros(len(samples), np.int64)
        T, has_lengths, keeps_steps = 0, False, True
        for rows, batch in zip(order, self._in_evaluation(samples, order), strict=True):
            output, _ = self.apply(batch.x, None, batch.lengths)
            if output.ndim == 3:
                output_lengths = self.output_lengths(batch.x, batch.lengths)
                has_lengths = output_lengths is not None
                lengths_of[rows] = len(output) if output_lengths is None else output_lengths
                keeps_steps = keeps_steps and samples.has_steps and len(output) == len(batch.x)
                T = max(T, len(output))
                output = time_major(output)
            outputs.append(output)
        shape = outputs[0].shape[1:]
        if len(shape) == 2:
            shape = (samples.steps if keeps_steps else T, shape[1])
        result = np.zeros((len(samples), *shape), outputs[0].dtype)
        for rows, output in zip(order, outputs, strict=True):
            if len(shape) == 2:
                result[rows, : output.shape[1]] = output
            else:
                result[rows] = output
        if samples.is_ragged and has_lengths:
            return [row[:length] for row, length in zip(result, lengths_of, strict=True)]
        return result

    def generate(
        self,
        prompt: ArrayLike,
        steps: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | np.random.Generator | None = None,
    ) -> NDArray[np.int64]:
        """Continue sequences of ids with what the model, a language model, finds likely.

        Parameters
        ----------
        prompt : ids (T,) or (B, T)
            What to continue, at least one id each.
        steps : int
            Ids to add.
        temperature : float, default 1
            Divides the logits: less than 1 prefers what is likely, 0 takes the likeliest.
        top_k : int, optional
            Draws among the k likeliest ids only.
        seed : int or numpy.random.Generator, optional
            Source of randomness; fresh entropy by default.

        Returns
        -------
        ndarray of int64 (steps,) or (B, steps)
            The ids that were added.

        Examples
        --------
        >>> import fastrnn
        >>> model = fastrnn.Sequential([
        ...     fastrnn.Embedding(20, 8, seed=0),
        ...     fastrnn.GRU(8, 16, seed=1),
        ...     fastrnn.Dense(16, 20, seed=2),
        ... ])
        >>> model.generate([3, 1, 4], 5, seed=0).shape
        (5,)
        """
        has_padding = getattr(leaves(self)[0], "mask_zero", False)
        return generation.generate(self, prompt, steps, temperature, top_k, seed, has_padding)

    def summary(self) -> None:
        """Print a table of the layers: shape of the output, parameters, multiply-adds.

        Multiply-adds are those with weights, of one row, and of one step where there are steps.
        """
        shape = self.input_shape()
        rows = []
        for layer in self.layers:
            work = layer.multiply_adds(shape) if shape else 0
            shape = layer.output_shape(shape) if shape else None
            count = sum(array.size for array in layer.parameters.values())
            rows.append(
                (
                    textwrap.shorten(repr(layer), 60),
                    ", ".join(map(str, shape or ("?",))),
                    count,
                    work,
                )
            )
        width = max(24, *(len(row[0]) + 1 for row in rows))
        print(f"{'layer':<{width}} {'output':<10} {'parameters':>10} {'multiply-adds':>14}")
        print("-" * (width + 37))
        for name, output, count, work in rows:
            print(f"{name:<{width}} {output:<10} {count:>10} {work:>14}")
        print("-" * (width + 37))
        total = sum(row[2] for row in rows)
        print(f"{total} parameters; multiply-adds are per row, and where there is T per step")

    def __repr__(self) -> str:
        return f"Sequential([{', '.join(map(repr, self.layers))}])"


_NOTHING = np.zeros((0, 0), np.int64)


def leaves(layer: Layer) -> list[Layer]:
    """Return the layers of a stack of stacks in their order."""
    if isinstance(layer, Sequential):
        return [leaf for inner in layer.layers for leaf in leaves(inner)]
    return [layer]
