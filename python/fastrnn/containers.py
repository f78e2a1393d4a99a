"""Layers that are made of layers."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional
from fastrnn.layer import Gradients, Layer
from fastrnn.layers import read_features, read_gradient, read_lengths, valid_steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Shape

__all__ = [
    "Channels",
    "Container",
    "Residual",
    "in_mode",
    "prefixed",
    "run",
    "run_back",
    "walk",
]


def prefixed(parts: Mapping[str, Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """Join the arrays of inner layers, with the names of these before their own.

    Examples
    --------
    >>> prefixed({"0": {"weight": 1, "bias": 2}, "1": {"weight": 3}})
    {'0.weight': 1, '0.bias': 2, '1.weight': 3}
    """
    return {
        f"{name}.{key}": array for name, arrays in parts.items() for key, array in arrays.items()
    }


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
        return prefixed({name: child.parameters for name, child in self.children().items()})

    @property
    def buffers(self) -> dict[str, FloatArray]:
        """The live arrays that are not trained."""
        return prefixed({name: child.buffers for name, child in self.children().items()})

    def _trained(self) -> Mapping[str, FloatArray]:
        if not self.trainable:
            return {}
        return prefixed({name: child._trained() for name, child in self.children().items()})

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


def walk(layer: Layer, name: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield a layer and all inside it, with their names, such as ``1.layer``."""
    yield name, layer
    for key, child in layer.children().items() if isinstance(layer, Container) else ():
        yield from walk(child, f"{name}.{key}" if name else key)


@contextlib.contextmanager
def in_mode(layer: Layer, *, training: bool) -> Iterator[None]:
    """Put a layer and all inside it in a mode, and each back in its own at the end.

    What is not trainable stays in evaluation mode. What is in the mode already is left alone, with
    the weights that it has packed.
    """
    before = [(inner, inner.training) for _, inner in walk(layer)]
    try:
        _enter(layer, training)
        yield
    finally:
        # Inner layers come after those that they are in.
        for inner, was_training in before:
            if inner.training != was_training:
                inner.train(was_training)


def _enter(layer: Layer, training: bool) -> None:
    training = training and layer.trainable
    for child in layer.children().values() if isinstance(layer, Container) else ():
        _enter(child, training)
    if isinstance(layer, Container):
        layer._training = training
    elif layer.training != training:
        layer.train(training)


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
    >>> import numpy as np
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
        x = read_features(x, None, None)
        lengths = read_lengths(lengths, x.shape)
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
            grad_output = read_gradient(grad_output, shape, dtype)
        g = run_back(self.layer, inner, grad_output, grad_state, input_grad)
        parameters = prefixed({"layer": g.parameters})
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


class Channels(Container):
    """A layer of rows on each pixel of images (B, C, H, W), whose features are the channels.

    Parameters
    ----------
    layer : Layer
        From rows (N, C) to rows of any size: a `BatchNorm`, an `Activation`, a `Dense`.

    Examples
    --------
    >>> import fastrnn
    >>> import numpy as np
    >>> layer = Channels(fastrnn.Dense(3, 2, seed=0))
    >>> layer(np.zeros((5, 3, 8, 6), np.float32)).shape
    (5, 2, 8, 6)
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            raise TypeError(f"layer: expected a layer, got {type(layer).__name__}")
        self.layer = layer

    def children(self) -> Mapping[str, Layer]:
        """Return the inner layer."""
        return {"layer": self.layer}

    @property
    def stepwise(self) -> bool:
        """False: images have no steps."""
        return False

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any, Any]:
        return self._forward(x, lengths, keep=True)

    def apply(
        self, x: Any, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any]:
        """Run without keeping what `backward` needs, see `Layer.apply`."""
        return self._forward(x, lengths, keep=False)[:2]

    def _forward(self, x: Any, lengths: Any, *, keep: bool) -> tuple[FloatArray, Any, Any]:
        images = functional.view("x", x)
        if images.ndim != 4 or lengths is not None:
            raise ValueError(f"x: expected (B, C, H, W) without lengths, got {images.shape}")
        rows, shape = _pixels(images)
        output, _, tape = run(self.layer, rows, None, None, keep=keep)
        return _images(output, shape), None, (tape, shape)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        inner, shape = tape
        rows = None if grad_output is None else _pixels(functional.view("x", grad_output))[0]
        g = run_back(self.layer, inner, rows, grad_state, input_grad)
        found = None if g.input is None else _images(g.input, shape)
        return Gradients(found, None, prefixed({"layer": g.parameters}))

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return (shape[0], self.layer.output_shape((shape[0], shape[1]))[-1], *shape[2:])

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights an image takes."""
        pixels = [size for size in shape[2:] if isinstance(size, int)]
        return math.prod(pixels) * self.layer.multiply_adds((shape[0], shape[1]))

    def __repr__(self) -> str:
        return self._repr(self.layer)


def _pixels(images: FloatArray) -> tuple[FloatArray, tuple[int, int, int]]:
    """Return images (B, C, H, W) as rows (B·H·W, C), and (B, H, W)."""
    B, C, H, W = images.shape
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(B * H * W, C), (B, H, W)


def _images(rows: FloatArray, shape: tuple[int, int, int]) -> FloatArray:
    """Return rows (B·H·W, C) as images (B, C, H, W)."""
    # As a view: convolutions have the channels last inside, too.
    return rows.reshape(*shape, rows.shape[1]).transpose(0, 3, 1, 2)
