"""Layers of images: convolution, its transpose, and the way between images and rows.

Letters: B batch, C channels, H and W height and width of an image, O output channels, kh and kw
height and width of a kernel, h and w the numbers of windows down and across. Images are
(B, C, H, W), as in torch; they have no time axis, so lengths are None.

Inside, the channels come last, (B, H, W, C), so that a row of a window is one run of memory and
the output of a product is an image as it is. The outputs of `Convolution` and
`TransposedConvolution` are views (B, O, H, W) of that: the next such layer reads them without
another copy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastrnn import activations, functional, initializers
from fastrnn.layers import Stateless, read_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Shape

__all__ = ["Convolution", "Flatten", "Reshape", "TransposedConvolution"]

# With fewer channels than this, windows are added up channel by channel: the runs of memory that
# NumPy adds at once are then the rows of an image, and no longer a few channels of a pixel.
_FEW_CHANNELS = 4
# Bytes of the patches that are made and multiplied at a time: about the second cache. Matrices of
# a whole batch take twice as long, most of it for pages that are new to the process.
_BLOCK_BYTES = 1 << 20


class _Windows(NamedTuple):
    """Where the windows of a convolution lie; pairs are of height and width.

    Attributes
    ----------
    kernel, stride, padding : tuple of int
        Size of a window, steps between windows, zeros around an image.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def fitting(self, size: int, axis: int) -> int:
        """Return how many windows fit along an axis of an image."""
        room = size + 2 * self.padding[axis] - self.kernel[axis]
        return room // self.stride[axis] + 1

    def extent(self, number: int, axis: int) -> int:
        """Return the smallest size of an axis into which so many windows fit."""
        return (number - 1) * self.stride[axis] + self.kernel[axis] - 2 * self.padding[axis]


def _padded(images: FloatArray, padding: tuple[int, int]) -> FloatArray:
    """Return images (B, H, W, C) contiguous, with zeros around them."""
    if padding == (0, 0):
        return np.ascontiguousarray(images)
    B, H, W, C = images.shape
    down, across = padding
    framed: FloatArray = np.zeros((B, H + 2 * down, W + 2 * across, C), images.dtype)
    framed[:, down : down + H, across : across + W] = images
    return framed


def _patches(images: FloatArray, windows: _Windows) -> FloatArray:
    """Return the windows of images (B, H, W, C) as rows (B·h·w, kh·kw·C).

    Examples
    --------
    >>> images = np.arange(6.0).reshape(1, 2, 3, 1)
    >>> _patches(images, _Windows((2, 2), (1, 1), (0, 0))).tolist()
    [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]
    """
    down, across = windows.stride
    views = sliding_window_view(_padded(images, windows.padding), windows.kernel, axis=(1, 2))
    views = views[:, ::down, ::across].transpose(0, 1, 2, 4, 5, 3)
    shape = views.shape
    return np.ascontiguousarray(views).reshape(math.prod(shape[:3]), math.prod(shape[3:]))


def _add_patches(
    rows: FloatArray, shape: tuple[int, int, int, int], windows: _Windows
) -> FloatArray:
    """Add rows (B·h·w, kh·kw·C) up where `_patches` takes them from: its adjoint.

    Examples
    --------
    >>> rows = np.ones((2, 4))
    >>> _add_patches(rows, (1, 2, 3, 1), _Windows((2, 2), (1, 1), (0, 0))).ravel().tolist()
    [1.0, 2.0, 1.0, 1.0, 2.0, 1.0]
    """
    B, H, W, C = shape
    (kh, kw), (down, across), padding = windows
    h, w = windows.fitting(H, 0), windows.fitting(W, 1)
    parts = rows.reshape(B, h, w, kh, kw, C)
    total: FloatArray = np.zeros((B, H + 2 * padding[0], W + 2 * padding[1], C), rows.dtype)
    groups = range(C) if C < _FEW_CHANNELS else [slice(None)]
    for i in range(kh):
        for j in range(kw):
            pixels = total[:, i : i + down * h : down, j : j + across * w : across]
            for group in groups:
                pixels[..., group] += parts[:, :, :, i, j, group]
    return total[:, padding[0] : padding[0] + H, padding[1] : padding[1] + W]


def _blocks(images: int, image_bytes: int) -> list[slice]:
    """Cut images into blocks whose patches, so many bytes of each image, fit into a cache.

    Examples
    --------
    >>> _blocks(5, _BLOCK_BYTES // 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, _BLOCK_BYTES // image_bytes)
    return [slice(first, min(first + size, images)) for first in range(0, images, size)]


def _channels_last(images: FloatArray) -> FloatArray:
    return images.transpose(0, 2, 3, 1)


def _channels_first(images: FloatArray) -> FloatArray:
    return images.transpose(0, 3, 1, 2)


def _as_rows(images: FloatArray) -> FloatArray:
    """Return images (B, H, W, C) as contiguous rows (B·H·W, C), without a copy if they are."""
    return np.ascontiguousarray(images).reshape(math.prod(images.shape[:3]), images.shape[3])


def _sum_of_rows(rows: FloatArray) -> FloatArray:
    """Add up rows (N, n): what is left of the gradient of an affine map without inputs.

    NumPy takes twice as long for few columns.
    """
    inputs = np.empty((len(rows), 0), rows.dtype)
    weight = np.empty((rows.shape[1], 0), rows.dtype)
    total = functional.affine_backward(inputs, weight, rows, False, True)[2]
    assert total is not None
    return total


def _pair(name: str, value: Any, low: int) -> tuple[int, int]:
    """Return an integer twice, or a pair of them, or raise an error that names the argument."""
    if not isinstance(value, (tuple, list, np.ndarray)):
        size = functional.integer(name, value, low)
        return size, size
    if len(value) != 2:
        raise ValueError(
            f"{name}: expected an integer >= {low} or a pair of them, got {tuple(value)}"
        )
    return functional.integer(name, value[0], low), functional.integer(name, value[1], low)


def _simplest(pair: tuple[int, int]) -> int | tuple[int, int]:
    return pair[0] if pair[0] == pair[1] else pair


def _without_lengths(lengths: ArrayLike | None) -> None:
    if lengths is not None:
        raise ValueError("lengths: expected None, as the input has no steps")


def _read_images(
    x: SupportsArray, channels: int | None, least: tuple[int, int], dtype: Any
) -> FloatArray:
    """View images (B, C, H, W) of a least height and width, or raise an error that names them."""
    array: FloatArray = np.asarray(functional.view("x", x))
    fits = array.ndim == 4 and channels in (None, array.shape[1])
    fits = fits and array.shape[2] >= least[0] and array.shape[3] >= least[1]
    known = array.dtype in (np.float32, np.float64) if dtype is None else array.dtype == dtype
    if not fits or not known:
        C = "C" if channels is None else channels
        H, W = (
            name if size <= 1 else f"{name} >= {size}"
            for name, size in zip("HW", least, strict=True)
        )
        kind = "float32 or float64" if dtype is None else dtype
        raise ValueError(f"x: expected (B, {C}, {H}, {W}) {kind}, got {array.shape} {array.dtype}")
    return array


class _Kernel(Stateless):
    """What a convolution and its transpose share: windows, parameters, an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        activation: str = "linear",
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        bias: bool = True,
        init: str = "torch",
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.in_channels = functional.integer("in_channels", in_channels, 1)
        self.out_channels = functional.integer("out_channels", out_channels, 1)
        self._windows = _Windows(
            _pair("kernel_size", kernel_size, 1),
            _pair("stride", stride, 1),
            _pair("padding", padding, 0),
        )
        self.kernel_size, self.stride, self.padding = map(_simplest, self._windows)
        activations.get("activation", activation)  # raises
        self.activation = activation
        self.bias = functional.boolean("bias", bias)
        self.dtype = functional.float_dtype("dtype", dtype)
        self._parameters = self._initialize(
            functional.choice("init", init, ("torch", "glorot", "he", "orthogonal")),
            functional.generator("seed", seed),
        )

    def _weight_shape(self) -> tuple[int, int, int, int]:
        raise NotImplementedError

    def _initialize(self, init: str, generator: np.random.Generator) -> dict[str, FloatArray]:
        """Draw the parameters, as those of `Dense` with a window's numbers as its inputs."""
        shape = self._weight_shape()
        inputs = math.prod(shape[1:])
        parameters = initializers.initialize_dense(
            init, inputs, shape[0], False, generator, self.dtype
        )
        parameters["weight"] = parameters["weight"].reshape(shape)
        if self.bias:
            bound = 1 / math.sqrt(inputs) if init == "torch" else 0.0
            bias = generator.uniform(-bound, bound, self.out_channels)
            parameters["bias"] = bias.astype(self.dtype)
        return parameters

    def _matrix(self) -> FloatArray:
        """Return the weight (m, n, kh, kw) as (m, kh·kw·n), laid out as patches are."""
        weight = _channels_last(self._parameters["weight"])
        return np.ascontiguousarray(weight).reshape(len(weight), -1)

    def _gradients(
        self, grad_matrix: FloatArray, grad_bias: FloatArray | None
    ) -> dict[str, FloatArray]:
        """Return the gradients by name, that of `_matrix` laid out as the weight."""
        m, n, kh, kw = self._weight_shape()
        weight = _channels_first(grad_matrix.reshape(m, kh, kw, n))
        gradients = {"weight": np.ascontiguousarray(weight)}
        if grad_bias is not None:
            gradients["bias"] = grad_bias
        return gradients

    def _activate(self, linear: FloatArray) -> tuple[FloatArray, tuple[Any, ...]]:
        """Apply the activation over the last axis; return what its gradient needs, too."""
        if self.activation == "linear":
            return linear, (None, None)
        output = activations.get("activation", self.activation).function(linear)
        return output, (linear, output)

    def _activate_backward(self, kept: tuple[Any, ...], gradient: FloatArray) -> FloatArray:
        linear, output = kept
        if linear is None:
            return gradient
        function = activations.get("activation", self.activation)
        return function.gradient(linear, output, gradient)

    def _size(self, size: int, axis: int) -> int:
        """Return the size of an axis of the output for that of the input."""
        raise NotImplementedError

    def input_shape(self) -> Shape:
        """Return the shape of the input, of images."""
        return ("B", self.in_channels, "H", "W")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        sizes = (
            self._size(size, axis) if isinstance(size, int) else size
            for axis, size in enumerate(shape[2:])
        )
        return (*shape[:1], self.out_channels, *sizes)

    def _positions(self, shape: Shape) -> int:
        """Return how many windows there are, counting an axis of an open size as one."""
        return math.prod(size for size in shape[2:] if isinstance(size, int))

    def __repr__(self) -> str:
        function = [] if self.activation == "linear" else [self.activation]
        return self._repr(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            *function,
            stride=1,
            padding=0,
            **({"output_padding": 0} if hasattr(self, "output_padding") else {}),
            bias=True,
        )


class Convolution(_Kernel):
    """The convolution y = f(W * x + b) of images (B, C, H, W), as in ``torch.nn.Conv2d``.

    Every window of an image, across all its channels, is a row of an affine map.

    Parameters
    ----------
    in_channels : int
        Channels C of the input.
    out_channels : int
        Channels O of the output.
    kernel_size : int or pair of int
        Height and width (kh, kw) of a window.
    activation : str, default "linear"
        The function f, one of ``fastrnn.activations.NAMES``; softmax is over the channels.
    stride : int or pair of int, default 1
        Pixels from one window to the next, down and across.
    padding : int or pair of int, default 0
        Zeros above and below, left and right of an image.
    bias : bool, default True
        Whether there is b.
    init : {"torch", "glorot", "he", "orthogonal"}, default "torch"
        How W (O, C, kh, kw) starts, as in `Dense` with F = C·kh·kw inputs.
    seed : int or numpy.random.Generator, optional
        Source of the initial values.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs.

    Notes
    -----
    The output is (B, O, h, w) with h = floor((H + 2·padding - kh) / stride) + 1, and w alike. What
    is called a convolution here, as everywhere, is a correlation:
    y[b, o, p, q] = bias[o] + sum over c, i, j of weight[o, c, i, j]·x[b, c, p·stride + i,
    q·stride + j], where x is padded [1]_.

    References
    ----------
    .. [1] V. Dumoulin, F. Visin. A guide to convolution arithmetic for deep learning.
           arXiv:1603.07285, 2016.

    Examples
    --------
    >>> layer = Convolution(1, 16, 3, "relu", stride=2, padding=1, seed=0)
    >>> layer(np.ones((5, 1, 8, 8), np.float32)).shape  # (B, O, h, w)
    (5, 16, 4, 4)
    >>> layer.parameters["weight"].shape, layer.parameters["bias"].shape
    ((16, 1, 3, 3), (16,))
    """

    def _weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels, *self._windows.kernel)

    def _size(self, size: int, axis: int) -> int:
        return self._windows.fitting(size, axis)

    def apply(
        self, x: Any, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any]:
        """Run without keeping what `backward` needs, see `Layer.apply`."""
        if state is not None:
            return super().apply(x, state, lengths)  # raises
        return self._run(x, lengths, keep=False)[0], None

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        return self._run(x, lengths, keep=True)

    def _run(
        self, x: SupportsArray, lengths: ArrayLike | None, *, keep: bool
    ) -> tuple[FloatArray, Any]:
        _without_lengths(lengths)
        least = max(1, self._windows.extent(1, 0)), max(1, self._windows.extent(1, 1))
        images = _channels_last(_read_images(x, self.in_channels, least, self.dtype))
        B, H, W, _ = images.shape
        h, w = self._size(H, 0), self._size(W, 1)
        matrix, bias = self._matrix(), self._parameters.get("bias")
        linear: FloatArray = np.empty((B, h, w, self.out_channels), self.dtype)
        # The patches are kept, kh·kw / stride² times the memory of the input, as making them anew
        # in `backward` takes forward and backward together from 0.09 to 0.14 ms for
        # (128, 1, 8, 8) to 16 channels, and from 1.6 to 2.0 ms for (64, 3, 32, 32) to 32, with
        # kernels of 3, a stride of 2 and no gradient of the input.
        kept = []
        for block in _blocks(B, h * w * matrix.shape[1] * matrix.itemsize):
            patches = _patches(images[block], self._windows)
            products = functional.affine(patches, matrix, bias)
            linear[block] = products.reshape(-1, h, w, self.out_channels)
            if keep:
                kept.append((block, patches))
        output, function = self._activate(linear)
        return _channels_first(output), (images.shape, kept, function)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        shape, kept, function = memory
        matrix = self._matrix()
        grad_linear = self._activate_backward(function, _channels_last(gradient))
        grad_matrix = np.zeros_like(matrix)
        grad_bias = np.zeros(self.out_channels, self.dtype) if self.bias else None
        grad_images: FloatArray | None = np.empty(shape, self.dtype) if input_grad else None
        for block, patches in kept:
            grad_patches, of_matrix, of_bias = functional.affine_backward(
                patches, matrix, _as_rows(grad_linear[block]), input_grad, self.bias
            )
            grad_matrix += of_matrix
            if grad_bias is not None and of_bias is not None:
                grad_bias += of_bias
            if grad_images is not None and grad_patches is not None:
                part = (block.stop - block.start, *shape[1:])
                grad_images[block] = _add_patches(grad_patches, part, self._windows)
        gradients = self._gradients(grad_matrix, grad_bias)
        return None if grad_images is None else _channels_first(grad_images), gradients

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights an image takes.

        They are those of one window where the size of the images is open.
        """
        return math.prod(self._weight_shape()) * self._positions(self.output_shape(shape))


class TransposedConvolution(_Kernel):
    """The transpose of a convolution, of images (B, C, H, W), as ``torch.nn.ConvTranspose2d``.

    Every pixel of the input is spread over a window of the output, y = f(Wᵀ * x + b), which is what
    the gradient of a `Convolution` from O to C channels does.

    Parameters
    ----------
    in_channels : int
        Channels C of the input.
    out_channels : int
        Channels O of the output.
    kernel_size : int or pair of int
        Height and width (kh, kw) of a window.
    activation : str, default "linear"
        The function f, one of ``fastrnn.activations.NAMES``; softmax is over the channels.
    stride : int or pair of int, default 1
        Pixels of the output from one window to the next, down and across.
    padding : int or pair of int, default 0
        Pixels cut off the output above and below, left and right.
    output_padding : int or pair of int, default 0
        Pixels added at the bottom and on the right, fewer than `stride`: the sizes that a
        convolution with a stride rounds to the same.
    bias : bool, default True
        Whether there is b.
    init : {"torch", "glorot", "he", "orthogonal"}, default "torch"
        How W (C, O, kh, kw) starts, as in `Dense` with F = O·kh·kw inputs, which is torch's rule.
    seed : int or numpy.random.Generator, optional
        Source of the initial values.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs.

    Notes
    -----
    The output is (B, O, h, w) with h = (H - 1)·stride - 2·padding + kh + output_padding, and w
    alike [1]_.

    References
    ----------
    .. [1] V. Dumoulin, F. Visin. A guide to convolution arithmetic for deep learning.
           arXiv:1603.07285, 2016.

    Examples
    --------
    >>> layer = TransposedConvolution(16, 1, 3, stride=2, padding=1, output_padding=1, seed=0)
    >>> layer(np.ones((5, 16, 4, 4), np.float32)).shape  # (B, O, h, w)
    (5, 1, 8, 8)
    >>> layer.parameters["weight"].shape, layer.parameters["bias"].shape
    ((16, 1, 3, 3), (1,))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        activation: str = "linear",
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        bias: bool = True,
        init: str = "torch",
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            activation,
            stride=stride,
            padding=padding,
            bias=bias,
            init=init,
            seed=seed,
            dtype=dtype,
        )
        self._extra = _pair("output_padding", output_padding, 0)
        self.output_padding = _simplest(self._extra)
        if any(
            extra >= step for extra, step in zip(self._extra, self._windows.stride, strict=True)
        ):
            raise ValueError(
                f"output_padding: expected less than stride {self.stride}, got"
                f" {self.output_padding}"
            )

    def _weight_shape(self) -> tuple[int, int, int, int]:
        return (self.in_channels, self.out_channels, *self._windows.kernel)

    def _size(self, size: int, axis: int) -> int:
        return self._windows.extent(size, axis) + self._extra[axis]

    def _least(self, axis: int) -> int:
        """Return the size of the input from which there is an output."""
        missing = 1 - self._size(1, axis)
        return 1 + max(0, -(-missing // self._windows.stride[axis]))

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        _without_lengths(lengths)
        least = self._least(0), self._least(1)
        images = np.ascontiguousarray(
            _channels_last(_read_images(x, self.in_channels, least, self.dtype))
        )
        B, H, W, _ = images.shape
        shape = self._size(H, 0), self._size(W, 1), self.out_channels
        matrix, bias = self._matrix_of_pixels(), self._parameters.get("bias", 0)
        linear: FloatArray = np.empty((B, *shape), self.dtype)
        for block in self._blocks(images.shape):
            patches = functional.affine(_as_rows(images[block]), matrix, None)
            part = (block.stop - block.start, *shape)
            np.add(_add_patches(patches, part, self._windows), bias, out=linear[block])
        output, function = self._activate(linear)
        return _channels_first(output), (images, function)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        images, function = memory
        matrix = self._matrix_of_pixels()
        grad_linear = self._activate_backward(function, _channels_last(gradient))
        grad_matrix = np.zeros_like(matrix)
        grad_bias = np.zeros(self.out_channels, self.dtype) if self.bias else None
        grad_images: FloatArray | None = np.empty_like(images) if input_grad else None
        for block in self._blocks(images.shape):
            patches = _patches(grad_linear[block], self._windows)
            grad_rows, of_matrix, _ = functional.affine_backward(
                _as_rows(images[block]), matrix, patches, input_grad, False
            )
            grad_matrix += of_matrix
            if grad_bias is not None:
                grad_bias += _sum_of_rows(_as_rows(grad_linear[block]))
            if grad_images is not None and grad_rows is not None:
                grad_images[block] = grad_rows.reshape(images[block].shape)
        gradients = self._gradients(np.ascontiguousarray(grad_matrix.T), grad_bias)
        return None if grad_images is None else _channels_first(grad_images), gradients

    def _matrix_of_pixels(self) -> FloatArray:
        """Return the weight as (kh·kw·O, C), which makes a window of a pixel."""
        return np.ascontiguousarray(self._matrix().T)

    def _blocks(self, shape: tuple[int, ...]) -> list[slice]:
        """Cut images (B, H, W, C), each pixel of which is spread over a window."""
        window = math.prod(self._weight_shape()[1:])
        return _blocks(shape[0], shape[1] * shape[2] * window * self.dtype.itemsize)

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights an image takes.

        They are those of one pixel where the size of the images is open.
        """
        return math.prod(self._weight_shape()) * self._positions(shape)


class Flatten(Stateless):
    """Images as rows: (B, C, H, W) to (B, C·H·W).

    Examples
    --------
    >>> Flatten()(np.arange(8.0).reshape(2, 2, 1, 2)).tolist()
    [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    """

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        _without_lengths(lengths)
        images = _read_images(x, None, (0, 0), None)
        rows = images.reshape(len(images), math.prod(images.shape[1:]))
        return _own(rows, images), images.shape

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        return gradient.reshape(memory).copy() if input_grad else None, {}

    def input_shape(self) -> Shape:
        """Return the shape of the input, of images."""
        return ("B", "C", "H", "W")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        return (*shape[:1], math.prod(sizes) if len(sizes) == 3 else "F")


class Reshape(Stateless):
    """Rows as images: (B, C·H·W) to (B, C, H, W).

    Parameters
    ----------
    shape : sequence of 3 int
        Channels, height and width (C, H, W).

    Examples
    --------
    >>> Reshape((1, 2, 2))(np.array([[1.0, 2.0, 3.0, 4.0]])).tolist()
    [[[[1.0, 2.0], [3.0, 4.0]]]]
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(shape, (tuple, list, np.ndarray)) or len(shape) != 3:
            raise ValueError(f"shape: expected 3 integers (C, H, W), got {shape!r}")
        self.shape = tuple(functional.integer("shape", size, 1) for size in shape)

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        _without_lengths(lengths)
        F = math.prod(self.shape)
        rows = read_features(x, F, None)
        if rows.ndim != 2:
            raise ValueError(f"x: expected (B, {F}), got {rows.shape} {rows.dtype}")
        return _own(rows.reshape(len(rows), *self.shape), rows), None

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        if not input_grad:
            return None, {}
        return _own(gradient.reshape(len(gradient), math.prod(self.shape)), gradient), {}

    def input_shape(self) -> Shape:
        """Return the shape of the input, of rows."""
        return ("B", math.prod(self.shape))

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return (*shape[:1], *self.shape)

    def __repr__(self) -> str:
        return self._repr(self.shape)


def _own(array: FloatArray, source: NDArray[Any]) -> FloatArray:
    """Return an array that is no view of where it comes from."""
    return array.copy() if np.may_share_memory(array, source) else array
