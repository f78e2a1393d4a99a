"""Encoders and decoders.

Letters: F features, k components, C channels, H height, W width.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import activations, functional
from fastrnn.containers import Channels
from fastrnn.convolution import Convolution, Flatten, Reshape, TransposedConvolution
from fastrnn.layers import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    Ends,
    Last,
    Stateless,
    read_features,
)
from fastrnn.models import Sequential
from fastrnn.recurrent import CELLS, LSTM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Layer, Shape

__all__ = [
    "Style",
    "TiedDense",
    "check_activation",
    "check_sizes",
    "convolutional",
    "dense",
    "recurrent",
]


class Style(NamedTuple):
    """What hidden layers are like.

    Attributes
    ----------
    activation, code_activation : str
        Functions of the hidden layers, and of the code.
    dropout : float
        Probability of a zero after each hidden layer.
    batch_norm : bool
        Whether hidden layers are normalised before their activation.
    generator : numpy.random.Generator
        Source of initial values and masks.
    dtype : dtype
        Type of the parameters.
    """

    activation: str
    code_activation: str
    dropout: float
    batch_norm: bool
    generator: np.random.Generator
    dtype: Any = np.float32

    def after(self, size: int) -> list[Layer]:
        """Return what comes after the linear map of a hidden layer."""
        layers: list[Layer] = []
        if self.batch_norm:
            layers.append(BatchNorm(size, dtype=self.dtype))
        if self.activation != "linear":
            layers.append(Activation(self.activation))
        if self.dropout:
            layers.append(Dropout(self.dropout, seed=self.generator))
        return layers

    def affine(self, inputs: int, units: int, activation: str = "linear") -> Dense:
        """Return a layer of rows."""
        return Dense(inputs, units, activation, seed=self.generator, dtype=self.dtype)


class TiedDense(Stateless):
    """An affine map by the transposed weight of another: y = xW + b.

    Parameters
    ----------
    source : Dense
        Which has W (units, inputs). The gradient of W is given under "weight", though it is no
        parameter of this layer.
    """

    def __init__(self, source: Dense) -> None:
        super().__init__()
        self.source = source
        self.dtype = source.dtype
        self._parameters = {"bias": np.zeros(source.inputs, source.dtype)}

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = np.ascontiguousarray(read_features(x, self.source.units, self.dtype))
        weight = np.ascontiguousarray(self.source.parameters["weight"].T)
        return functional.affine(x, weight, self._parameters["bias"]), (x, weight)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        x, weight = memory
        by_x, by_weight, by_bias = functional.affine_backward(
            x, weight, np.ascontiguousarray(gradient), input_grad, True
        )
        assert by_bias is not None
        return by_x, {"weight": np.ascontiguousarray(by_weight.T), "bias": by_bias}

    def input_shape(self) -> Shape:
        """Return the shape of the input, of rows."""
        return ("B", self.source.units)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return (*shape[:-1], self.source.inputs)

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights a row takes."""
        return self.source.multiply_adds(shape)


def dense(
    features: int, code: int, components: int, hidden: Sequence[int], tied: bool, style: Style
) -> tuple[Sequential, Sequential]:
    """Return encoder and decoder of rows.

    Parameters
    ----------
    features : int
        F.
    code : int
        What the encoder gives: k, or 2k where it is means and variances.
    components : int
        k.
    hidden : sequence of int
        Units of the hidden layers of the encoder; the decoder has them the other way round.
    tied : bool
        Whether the decoder has the transposed weights of the encoder.
    style : Style
        What hidden layers are like.
    """
    encoder: list[Layer] = []
    sizes = [features, *hidden]
    for inputs, units in itertools.pairwise(sizes):
        encoder += [style.affine(inputs, units), *style.after(units)]
    encoder.append(style.affine(sizes[-1], code, style.code_activation))
    maps = [layer for layer in encoder if isinstance(layer, Dense)]
    decoder: list[Layer] = []
    sizes = [components, *reversed(hidden), features]
    for i, (inputs, units) in enumerate(itertools.pairwise(sizes)):
        decoder.append(TiedDense(maps[-1 - i]) if tied else style.affine(inputs, units))
        if i < len(hidden):
            decoder += style.after(units)
    return Sequential(encoder), Sequential(decoder)


def convolutional(
    shape: tuple[int, ...],
    components: int,
    hidden: Sequence[int],
    kernel_size: int,
    style: Style,
) -> tuple[Sequential, Sequential]:
    """Return encoder and decoder of images (C, H, W), as rows.

    Each of the hidden layers halves height and width, rounded up, to its number of channels.
    """
    options: dict[str, Any] = {"seed": style.generator, "dtype": style.dtype}
    widths = [shape[0], *hidden]
    axes = [_halvings(n, kernel_size, len(hidden)) for n in shape[1:]]
    levels = list(zip(*axes, strict=True))
    smallest = tuple(halving.small for halving in levels[-1])
    inside = widths[-1] * math.prod(smallest)
    fused = "linear" if style.batch_norm else style.activation

    def after(units: int) -> list[Layer]:
        layers = style.after(units)
        if not style.batch_norm:  # the activation is part of the convolution
            layers = [layer for layer in layers if not isinstance(layer, Activation)]
        return [Channels(Sequential(layers))] if layers else []

    encoder: list[Layer] = [Reshape(shape)]
    decoder: list[Layer] = [Flatten()]  # from its end
    for i, level in enumerate(levels):
        kernel, stride, padding = (
            tuple(getattr(halving, name) for halving in level)
            for name in ("kernel", "stride", "padding")
        )
        common = {"stride": stride, "padding": padding, **options}
        encoder.append(Convolution(widths[i], widths[i + 1], kernel, fused, **common))
        encoder += after(widths[i + 1])
        if i:
            decoder += reversed(after(widths[i]))
        decoder.append(
            TransposedConvolution(
                widths[i + 1],
                widths[i],
                kernel,
                fused if i else "linear",
                output_padding=tuple(halving.extra for halving in level),
                **common,
            )
        )
    encoder += [Flatten(), style.affine(inside, components, style.code_activation)]
    decoder.append(Reshape((widths[-1], *smallest)))
    decoder += reversed([style.affine(components, inside), *style.after(inside)])
    return Sequential(encoder), Sequential(decoder[::-1])


class _Halving(NamedTuple):
    """A convolution along one axis of an image that keeps every second pixel.

    Attributes
    ----------
    kernel, stride, padding : int
        Of the convolution.
    small : int
        Pixels that are left.
    extra : int
        Output padding with which the transpose has as many as there were.
    """

    kernel: int
    stride: int
    padding: int
    small: int
    extra: int


def _halvings(n: int, kernel_size: int, count: int) -> list[_Halving]:
    """Return the convolutions along an axis of n pixels, one after the other."""
    found = []
    for _ in range(count):
        # One pixel has no neighbours.
        kernel, stride = (kernel_size, 2) if n > 1 else (1, 1)
        padding = (kernel - 1 + n % 2) // 2
        small = (n + 2 * padding - kernel) // stride + 1
        extra = n - ((small - 1) * stride - 2 * padding + kernel)
        found.append(_Halving(kernel, stride, padding, small, extra))
        n = small
    return found


def recurrent(
    features: int,
    components: int,
    hidden: Sequence[int],
    cell: str,
    bidirectional: bool,
    style: Style,
) -> tuple[Sequential, Sequential]:
    """Return encoder and decoder of sequences; the decoder reads the code at every step."""
    kind = CELLS[functional.choice("cell", cell, tuple(CELLS))]
    options: dict[str, Any] = {"forget_bias": 1.0} if kind is LSTM else {}
    options |= {"seed": style.generator, "dtype": style.dtype}

    def stack(inputs: int, sizes: Sequence[int], both: bool) -> tuple[list[Layer], int]:
        layers: list[Layer] = []
        for units in sizes:
            layers.append(kind(inputs, units, bidirectional=both, **options))
            inputs = 2 * units if both else units
            if style.batch_norm:
                layers.append(BatchNorm(inputs, dtype=style.dtype))
            if style.dropout:
                layers.append(Dropout(style.dropout, seed=style.generator))
        return layers, inputs

    encoder, width = stack(features, hidden, bidirectional)
    encoder.append(Ends() if bidirectional else Last())
    encoder.append(style.affine(width, components, style.code_activation))
    decoder, width = stack(components, hidden[::-1], False)
    decoder.append(style.affine(width, features))
    return Sequential(encoder), Sequential(decoder)


def check_sizes(hidden: Any, least: int) -> tuple[int, ...]:
    """Return the sizes of hidden layers."""
    if isinstance(hidden, (int, np.integer)) and not isinstance(hidden, bool):
        hidden = (hidden,)
    if not isinstance(hidden, (tuple, list, np.ndarray)) or len(hidden) < least:
        what = f"at least {least} sizes" if least else "sizes"
        raise ValueError(f"hidden: expected a tuple of {what}, got {hidden!r}")
    return tuple(functional.integer("hidden", size, 1) for size in hidden)


def check_activation(name: str, value: Any) -> str:
    """Return the name of a function of single elements."""
    names = tuple(n for n in activations.NAMES if not n.endswith("softmax"))
    return functional.choice(name, value, names)
