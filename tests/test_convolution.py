"""Layers of images: gradients, parity with torch, adjoints, shapes, copies, wrong calls."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import activations, convolution
from fastrnn.config import build, describe
from fastrnn.convolution import Convolution, Flatten, Reshape, TransposedConvolution
from fastrnn.layer import Layer
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
Options = dict[str, Any]

# (channels, outputs, kernel), options, (H, W): windows that do not fill an image, skip pixels of it
# or lie in its padding alone, few channels and many.
CONVOLUTIONS: list[tuple[tuple[Any, ...], Options, tuple[int, int]]] = [
    ((2, 3, 3), {}, (4, 5)),
    ((1, 2, 1), {}, (3, 2)),
    ((5, 2, 1), {"stride": 2, "bias": False}, (3, 4)),
    ((3, 2, 3), {"stride": 2, "padding": 1}, (6, 5)),
    ((2, 4, (1, 3)), {"stride": (1, 2), "padding": (0, 2)}, (2, 6)),
    ((4, 2, (3, 2)), {"stride": (2, 1), "padding": (1, 0)}, (5, 3)),
    ((2, 2, 2), {"stride": 3}, (6, 8)),
    ((1, 1, 2), {"padding": 3, "stride": 2}, (1, 2)),
    ((2, 2, (4, 3)), {"padding": (2, 1)}, (2, 1)),
]
TRANSPOSED: list[tuple[tuple[Any, ...], Options, tuple[int, int]]] = [
    ((2, 3, 3), {}, (2, 3)),
    ((5, 1, 1), {}, (3, 2)),
    ((3, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1}, (3, 2)),
    ((3, 4, 4), {"stride": 2, "padding": 1, "bias": False}, (2, 3)),
    ((2, 5, (1, 3)), {"stride": (1, 3), "output_padding": (0, 2)}, (3, 2)),
    ((1, 2, 2), {"stride": 3, "output_padding": (1, 0)}, (2, 2)),
    ((2, 2, (3, 2)), {"padding": (1, 0)}, (1, 3)),
    ((2, 1, 2), {"padding": 2, "stride": (1, 2)}, (4, 4)),
]
CASES = [
    *((Convolution, *case) for case in CONVOLUTIONS),
    *((TransposedConvolution, *case) for case in TRANSPOSED),
]
every_case = pytest.mark.parametrize(("kind", "sizes", "options", "size"), CASES)


def images(rng: Rng, B: int, channels: int, size: tuple[int, int], dtype: Any = float) -> Array:
    return rng.normal(size=(B, channels, *size)).astype(dtype)


def numerical(layer: Layer, x: Array, grad: Array, array: Array, step: float = 1e-6) -> Array:
    """Central differences of sum(grad·output) by an array that the call reads."""
    result = np.zeros_like(array)
    for i in np.ndindex(array.shape):
        before, values = array[i], []
        for shift in (step, -step):
            array[i] = before + shift
            values.append(np.sum(grad * layer(x)))
        array[i] = before
        result[i] = (values[0] - values[1]) / (2 * step)
    return result


def check_gradients(layer: Layer, x: Array, rng: Rng) -> None:
    output, state, tape = layer.forward(x)
    assert state is None
    np.testing.assert_array_equal(layer(x), output)
    grad = rng.normal(size=output.shape)
    g = layer.backward(tape, grad)
    assert g.state is None
    assert g.input is not None
    assert g.input.shape == x.shape
    np.testing.assert_allclose(g.input, numerical(layer, x, grad, x), rtol=1e-6, atol=1e-7)
    assert list(g.parameters) == list(layer.parameters)
    for name, array in layer.parameters.items():
        assert g.parameters[name].flags.c_contiguous  # as optimizers need it
        np.testing.assert_allclose(
            g.parameters[name], numerical(layer, x, grad, array), rtol=1e-6, atol=1e-7
        )
    without = layer.backward(tape, grad, input_grad=False)
    assert without.input is None
    for name, array in g.parameters.items():
        np.testing.assert_array_equal(without.parameters[name], array)


@every_case
def test_gradients(kind: Any, sizes: Any, options: Options, size: Any, rng: Rng) -> None:
    layer = kind(*sizes, **options, seed=0, dtype=float)
    check_gradients(layer, images(rng, 2, sizes[0], size), rng)


@pytest.mark.parametrize("name", activations.NAMES)
@pytest.mark.parametrize("kind", [Convolution, TransposedConvolution])
def test_gradients_of_activations(kind: Any, name: str, rng: Rng) -> None:
    layer = kind(2, 3, 2, name, stride=2, padding=1, seed=0, dtype=float)
    check_gradients(layer, images(rng, 2, 2, (4, 3)), rng)


def test_gradients_of_the_others(rng: Rng) -> None:
    check_gradients(Flatten(), images(rng, 2, 3, (2, 4)), rng)
    check_gradients(Reshape((3, 2, 4)), rng.normal(size=(2, 24)), rng)
    # Axes as convolutions leave them.
    turned = images(rng, 3, 3, (2, 4)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(Flatten()(turned), turned.reshape(3, -1))


def test_gradients_of_a_stack(rng: Rng) -> None:
    layer = fastrnn.Sequential(
        [
            Convolution(2, 3, 3, "tanh", stride=2, padding=1, seed=0, dtype=float),
            Convolution(3, 4, 2, "sigmoid", seed=1, dtype=float),
            Flatten(),
            fastrnn.Dense(8, 8, seed=2, dtype=float),
            Reshape((4, 2, 1)),
            TransposedConvolution(4, 2, 2, "tanh", stride=2, seed=3, dtype=float),
        ]
    )
    x = images(rng, 2, 2, (5, 3))
    output, _, tape = layer.forward(x)
    grad = rng.normal(size=output.shape)
    g = layer.backward(tape, grad)
    np.testing.assert_allclose(g.input, numerical(layer, x, grad, x), atol=1e-8)
    for name, array in layer.parameters.items():
        expected = numerical(layer, x, grad, array)
        np.testing.assert_allclose(g.parameters[name], expected, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)])
@every_case
def test_torch(
    kind: Any, sizes: Any, options: Options, size: Any, dtype: Any, tolerance: float, rng: Rng
) -> None:
    torch = pytest.importorskip("torch")
    layer = kind(*sizes, **options, seed=0, dtype=dtype)
    x = images(rng, 3, sizes[0], size, dtype)
    output, _, tape = layer.forward(x)
    grad = rng.normal(size=output.shape).astype(dtype)
    g = layer.backward(tape, grad)

    module = (torch.nn.Conv2d if kind is Convolution else torch.nn.ConvTranspose2d)(
        *sizes, **options, dtype=getattr(torch, np.dtype(dtype).name)
    )
    # Names and shapes of the parameters are torch's, too.
    module.load_state_dict({n: torch.from_numpy(a) for n, a in layer.state_dict().items()})
    inputs = torch.from_numpy(x).requires_grad_()
    expected = module(inputs)
    expected.backward(torch.from_numpy(grad))
    assert output.dtype == g.input.dtype == dtype
    assert output.shape == tuple(expected.shape)
    pairs = [(output, expected.detach()), (g.input, inputs.grad)]
    pairs += [(g.parameters[name], p.grad) for name, p in module.named_parameters()]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=tolerance, atol=tolerance)
    layer.load_state_dict(module.state_dict())


@pytest.mark.parametrize("kind", [Convolution, TransposedConvolution])
def test_torch_for_images_of_many_blocks(kind: Any, rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    layer = kind(8, 6, 5, stride=2, padding=2, seed=0)
    x = images(rng, 40, 8, (33, 30), np.float32)
    windows = 17 * 15 if kind is Convolution else 33 * 30
    assert len(convolution._blocks(40, 4 * windows * 25 * 6)) > 1
    output, _, tape = layer.forward(x)
    grad = rng.normal(size=output.shape).astype(np.float32)
    g = layer.backward(tape, grad)
    function = getattr(torch.nn.functional, "conv2d" if kind is Convolution else "conv_transpose2d")
    tensors = [
        torch.from_numpy(a).double().requires_grad_() for a in (x, *layer.parameters.values())
    ]
    expected = function(*tensors, stride=2, padding=2)
    expected.backward(torch.from_numpy(grad).double())
    for ours, theirs in (
        (output, expected.detach()),
        (g.input, tensors[0].grad),
        (g.parameters["weight"], tensors[1].grad),
        (g.parameters["bias"], tensors[2].grad),
    ):
        scale = float(theirs.abs().max())
        np.testing.assert_allclose(ours, theirs.numpy(), atol=3e-6 * scale)
    # No image depends on the others, nor on whether patches are kept.
    np.testing.assert_array_equal(layer(x), output)
    np.testing.assert_array_equal(layer(x[35:]), output[35:])


@pytest.mark.parametrize(("sizes", "options", "size"), CONVOLUTIONS)
def test_the_transpose_is_the_adjoint(sizes: Any, options: Options, size: Any, rng: Rng) -> None:
    """<conv(x), y> = <x, conv_T(y)>, and each is the gradient of the other."""
    inputs, outputs, kernel = sizes
    options = {name: value for name, value in options.items() if name != "bias"}
    forth = Convolution(inputs, outputs, kernel, **options, bias=False, seed=0, dtype=float)
    x = images(rng, 2, inputs, size)
    output, _, tape = forth.forward(x)
    y = rng.normal(size=output.shape)
    # The sizes that rounding makes one are told apart by output_padding.
    short = TransposedConvolution(outputs, inputs, kernel, **options, bias=False, dtype=float)
    missing = tuple(np.subtract(size, short.output_shape(output.shape)[2:]).tolist())
    back = TransposedConvolution(
        outputs, inputs, kernel, **options, output_padding=missing, bias=False, dtype=float
    )
    back.parameters["weight"][...] = forth.parameters["weight"]
    returned, _, back_tape = back.forward(y)
    assert returned.shape == x.shape
    np.testing.assert_allclose(np.sum(output * y), np.sum(x * returned), rtol=1e-12)
    np.testing.assert_allclose(forth.backward(tape, y).input, returned, atol=1e-12)
    np.testing.assert_allclose(back.backward(back_tape, x).input, output, atol=1e-12)
    np.testing.assert_allclose(
        forth.backward(tape, y).parameters["weight"],
        back.backward(back_tape, x).parameters["weight"],
        atol=1e-12,
    )


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_patches_and_their_adjoint(channels: int, rng: Rng) -> None:
    windows = convolution._Windows((3, 2), (2, 1), (1, 2))
    x = rng.normal(size=(2, 6, 4, channels))
    rows = convolution._patches(x, windows)
    assert rows.shape == (2 * 3 * 7, 6 * channels)
    given = rng.normal(size=rows.shape)
    added = convolution._add_patches(given, x.shape, windows)
    np.testing.assert_allclose(np.sum(rows * given), np.sum(x * added), rtol=1e-12)


@every_case
def test_shapes(kind: Any, sizes: Any, options: Options, size: Any) -> None:
    layer = kind(*sizes, **options, seed=0)
    x = np.zeros((2, sizes[0], *size), np.float32)
    shape = ("B", *x.shape[1:])
    assert layer.output_shape(shape) == ("B", *layer(x).shape[1:])
    assert layer.input_shape() == ("B", sizes[0], "H", "W")
    assert layer.output_shape(layer.input_shape()) == ("B", sizes[1], "H", "W")
    weights = layer.parameters["weight"].size
    windows = np.prod((x if kind is TransposedConvolution else layer(x)).shape[2:])
    assert layer.multiply_adds(shape) == weights * windows
    assert layer.multiply_adds(layer.input_shape()) == weights


def test_shapes_of_the_others() -> None:
    assert Flatten().output_shape(("B", 2, 3, 4)) == ("B", 24)
    assert Flatten().output_shape(("B", 2, "H", "W")) == ("B", "F")
    assert Reshape((2, 3, 4)).output_shape(("B", 24)) == ("B", 2, 3, 4)
    assert Reshape((2, 3, 4)).input_shape() == ("B", 24)
    assert Flatten().multiply_adds(("B", 2, 3, 4)) == 0


@every_case
def test_no_images(kind: Any, sizes: Any, options: Options, size: Any) -> None:
    layer = kind(*sizes, **options, seed=0)
    x = np.zeros((0, sizes[0], *size), np.float32)
    output, _, tape = layer.forward(x)
    assert output.shape == (0, *layer.output_shape(x.shape)[1:])
    g = layer.backward(tape, output)
    assert g.input is not None
    assert g.input.shape == x.shape
    for name, array in layer.parameters.items():
        assert g.parameters[name].shape == array.shape
        assert not np.any(g.parameters[name])


def test_no_rows() -> None:
    for layer, x in ((Flatten(), np.zeros((0, 2, 3, 4))), (Reshape((2, 3, 4)), np.zeros((0, 24)))):
        output, _, tape = layer.forward(x)
        assert output.shape == layer.output_shape(x.shape)
        gradient = layer.backward(tape, output).input
        assert gradient is not None
        assert gradient.shape == x.shape


@pytest.mark.parametrize(
    "layer",
    [
        Convolution(2, 3, 1),
        Convolution(2, 3, 2, stride=2),
        TransposedConvolution(2, 3, 1),
        Flatten(),
        Reshape((2, 4, 1)),
    ],
    ids=repr,
)
def test_arrays_are_new_and_gradients_zero_by_default(layer: Layer, rng: Rng) -> None:
    x = rng.normal(size=(3, 8) if isinstance(layer, Reshape) else (3, 2, 2, 2)).astype(np.float32)
    output, _, tape = layer.forward(x)
    assert not np.shares_memory(output, x)
    grad = rng.normal(size=output.shape).astype(np.float32)
    before = x.copy(), grad.copy(), output.copy()
    g = layer.backward(tape, grad)
    for array in (g.input, *g.parameters.values()):
        assert array is not None
        assert not np.shares_memory(array, grad)
    again = layer.backward(tape, grad)  # a tape can be used twice
    np.testing.assert_array_equal(again.input, g.input)
    for array, copied in zip((x, grad, output), before, strict=True):
        np.testing.assert_array_equal(array, copied)
    zero = layer.backward(tape)
    for array in (zero.input, *zero.parameters.values()):
        np.testing.assert_array_equal(array, 0)


def test_layout_of_the_input_does_not_matter(rng: Rng) -> None:
    x = images(rng, 3, 2, (4, 4), np.float32)
    layouts = [np.asfortranarray(x), x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)]
    layouts.append(np.repeat(x, 2, axis=3)[..., ::2])
    for kind in (Convolution, TransposedConvolution):
        for kernel in (1, 2):
            layer = kind(2, 3, kernel, seed=0)
            output, _, tape = layer.forward(x)
            g = layer.backward(tape, output)
            for other in layouts:
                again, _, tape = layer.forward(other)
                np.testing.assert_array_equal(again, output)
                found = layer.backward(tape, np.asfortranarray(output))
                np.testing.assert_array_equal(found.input, g.input)
                for name, gradient in g.parameters.items():
                    np.testing.assert_array_equal(found.parameters[name], gradient)


def test_values_by_hand() -> None:
    x = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    layer = Convolution(1, 1, 2, dtype=float)
    layer.parameters["weight"][...] = [[[[1, 10], [100, 1000]]]]
    layer.parameters["bias"][...] = 0.5
    # Not flipped: the upper left pixel of a window meets the first weight.
    assert layer(x)[0, 0].tolist() == [[5421.5, 6532.5], [8754.5, 9865.5]]
    back = TransposedConvolution(1, 1, 2, stride=2, dtype=float)
    back.load_state_dict(layer.state_dict())
    assert back(np.array([[[[1.0, 2.0]]]]))[0, 0].tolist() == [
        [1.5, 10.5, 2.5, 20.5],
        [100.5, 1000.5, 200.5, 2000.5],
    ]


def test_softmax_is_over_the_channels(rng: Rng) -> None:
    for kind in (Convolution, TransposedConvolution):
        output = kind(2, 3, 2, "softmax", seed=0)(images(rng, 2, 2, (3, 3), np.float32))
        np.testing.assert_allclose(output.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("init", ["torch", "glorot", "he", "orthogonal"])
def test_initial_values(init: str) -> None:
    for kind, fan_in, outputs in (
        (Convolution, 30 * 9, 40),
        (TransposedConvolution, 40 * 9, 30),
    ):
        layer = kind(30, 40, 3, init=init, seed=0, dtype=float)
        dense = fastrnn.Dense(fan_in, outputs, init=init, seed=0, dtype=float)
        weight = layer.parameters["weight"]
        np.testing.assert_array_equal(weight.reshape(outputs, fan_in), dense.parameters["weight"])
        bias = abs(layer.parameters["bias"])
        bound = 1 / np.sqrt(fan_in) if init == "torch" else 0
        assert 0.8 * bound <= bias.max() <= bound
        single = kind(30, 40, 3, init=init, seed=0)
        assert single.parameters["weight"].dtype == single.parameters["bias"].dtype == np.float32
        np.testing.assert_allclose(single.parameters["weight"], weight, rtol=1e-6)
        other = kind(30, 40, 3, init=init, seed=1)
        assert np.any(other.parameters["weight"] != single.parameters["weight"])


LAYERS = [
    Convolution(1, 2, 3, seed=0),
    Convolution(2, 2, (3, 2), "relu", stride=(2, 1), padding=(0, 1), bias=False, dtype=float),
    TransposedConvolution(2, 1, 3, stride=2, padding=1, output_padding=1, seed=0),
    TransposedConvolution(2, 2, [3, 3], "tanh", stride=(1, 3), output_padding=(0, 2)),
    Flatten(),
    Reshape([2, 3, 4]),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_copies(layer: Layer, rng: Rng) -> None:
    namespace = {**vars(convolution), **vars(np)}
    classes: Any = {type(layer).__name__: type(layer)}
    described = describe(layer)
    clones = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    clones += [build(described, classes), eval(repr(layer), namespace)]
    dtype = getattr(layer, "dtype", np.float64)
    wanted = layer.input_shape()
    assert wanted
    x = rng.normal(
        size=(2, 24) if len(wanted) == 2 else (2, getattr(layer, "in_channels", 2), 3, 5)
    ).astype(dtype)
    for clone in clones:
        clone.load_state_dict(layer.state_dict())
        np.testing.assert_array_equal(clone(x), layer(x))
        assert repr(clone) == repr(layer)
        assert describe(clone) == described
        assert not clone.stepwise


def test_repr() -> None:
    assert repr(LAYERS[0]) == "Convolution(1, 2, 3)"
    assert repr(LAYERS[1]) == (
        "Convolution(2, 2, (3, 2), 'relu', stride=(2, 1), padding=(0, 1), bias=False,"
        " dtype='float64')"
    )
    assert repr(LAYERS[3]) == (
        "TransposedConvolution(2, 2, 3, 'tanh', stride=(1, 3), output_padding=(0, 2))"
    )
    assert repr(LAYERS[4:]) == "[Flatten(), Reshape((2, 3, 4))]"


def test_no_bit_depends_on_threads(rng: Rng) -> None:
    x = images(rng, 40, 8, (16, 16), np.float32)
    for kind in (Convolution, TransposedConvolution):
        layer = kind(8, 16, 3, "tanh", stride=2, padding=1, seed=0)
        found = []
        for threads in (1, 2, 3):
            fastrnn.set_num_threads(threads)
            output, _, tape = layer.forward(x)
            g = layer.backward(tape, output)
            assert g.input is not None
            arrays = (output, g.input, *g.parameters.values())
            found.append([np.ascontiguousarray(array).tobytes() for array in arrays])
        assert found[0] == found[1] == found[2]


def test_fit_and_save(rng: Rng, tmp_path: Path) -> None:
    """From images where a bar stands or lies, wherever it is."""
    x = rng.normal(scale=0.2, size=(400, 8, 8))
    y = rng.integers(2, size=400)
    corners = rng.integers(6, size=(400, 2))
    for image, label, (row, column) in zip(x, y, corners, strict=True):
        if label:
            image[row : row + 3, column] += 1
        else:
            image[row, column : column + 3] += 1
    model = fastrnn.Sequential(
        [
            Reshape((1, 8, 8)),
            Convolution(1, 8, 3, "relu", padding=1, seed=0),
            Convolution(8, 8, 3, "relu", stride=2, seed=1),
            Flatten(),
            fastrnn.Dense(72, 2, seed=2),
        ]
    )
    model.compile(fastrnn.optimizers.Adam(0.01), "cross_entropy", ["accuracy"])
    rows = x.reshape(400, 64)
    model.fit(rows[:300], y[:300], epochs=10, seed=0, verbose=0)
    assert model.evaluate(rows[300:], y[300:])["accuracy"] > 0.95
    model.save(tmp_path / "model.safetensors")
    again = fastrnn.Sequential.load(tmp_path / "model.safetensors")
    assert repr(again) == repr(model)
    np.testing.assert_array_equal(again.predict(rows), model.predict(rows))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Convolution(0, 1, 3), ValueError, "in_channels: expected an integer >= 1, got 0"),
        (lambda: Convolution(1, 1.5, 3), TypeError, "out_channels: expected an integer"),
        (lambda: Convolution(1, 1, 0), ValueError, "kernel_size: expected an integer >= 1, got 0"),
        (
            lambda: Convolution(1, 1, (3, 3, 3)),
            ValueError,
            r"kernel_size: expected an integer >= 1 or a pair of them, got \(3, 3, 3\)",
        ),
        (lambda: Convolution(1, 1, (3, "3")), TypeError, "kernel_size: expected an integer >= 1"),
        (lambda: Convolution(1, 1, 3, stride=0), ValueError, "stride: expected an integer >= 1"),
        (lambda: Convolution(1, 1, 3, padding=-1), ValueError, "padding: expected .* >= 0, got -1"),
        (
            lambda: TransposedConvolution(1, 1, 3, padding=(0, -1)),
            ValueError,
            "padding: expected an integer >= 0, got -1",
        ),
        (
            lambda: TransposedConvolution(1, 1, 3, output_padding=-1),
            ValueError,
            "output_padding: expected an integer >= 0, got -1",
        ),
        (
            lambda: TransposedConvolution(1, 1, 3, stride=(3, 2), output_padding=2),
            ValueError,
            r"output_padding: expected less than stride \(3, 2\), got 2",
        ),
        (lambda: Convolution(1, 1, 3, "sine"), ValueError, "activation: expected one of"),
        (lambda: Convolution(1, 1, 3, bias=1), TypeError, "bias: expected True or False"),
        (lambda: Convolution(1, 1, 3, init="zero"), ValueError, "init: expected one of"),
        (lambda: Convolution(1, 1, 3, seed="a"), TypeError, "seed: expected"),
        (lambda: Convolution(1, 1, 3, dtype=int), ValueError, "dtype: expected float32 or"),
        (lambda: Reshape((2, 3)), ValueError, r"shape: expected 3 integers \(C, H, W\), got"),
        (lambda: Reshape(6), ValueError, r"shape: expected 3 integers \(C, H, W\), got 6"),
        (lambda: Reshape((2, 0, 3)), ValueError, "shape: expected an integer >= 1, got 0"),
    ],
)
def test_wrong_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "dtype", "message"),
    [
        (Convolution(3, 1, 2), (2, 1, 4, 4), "f4", r"x: expected \(B, 3, H >= 2, W >= 2\) float32"),
        (Convolution(1, 1, 1), (2, 4, 4), "f4", r"x: expected \(B, 1, H, W\) float32, got \(2, 4"),
        (Convolution(1, 1, 1), (2, 1, 4, 4), "f8", r"x: .* float32, got \(2, 1, 4, 4\) float64"),
        (Convolution(1, 1, 1), (2, 1, 0, 4), "f4", r"x: expected \(B, 1, H, W\) float32, got"),
        (
            Convolution(1, 1, (5, 3), padding=(1, 1)),
            (2, 1, 2, 4),
            "f4",
            r"x: expected \(B, 1, H >= 3, W\) float32, got \(2, 1, 2, 4\) float32",
        ),
        (TransposedConvolution(3, 1, 2), (2, 1, 4, 4), "f4", r"x: expected \(B, 3, H, W\) float32"),
        (
            TransposedConvolution(1, 1, (2, 3), stride=2, padding=(3, 0)),
            (2, 1, 3, 1),
            "f4",
            r"x: expected \(B, 1, H >= 4, W\) float32, got \(2, 1, 3, 1\) float32",
        ),
        (Flatten(), (2, 3), "f4", r"x: expected \(B, C, H, W\) float32 or float64, got"),
        (Flatten(), (2, 3, 1, 1), "i4", r"x: expected \(B, C, H, W\) float32 or float64, got"),
        (Reshape((2, 3, 4)), (2, 23), "f4", r"x: expected .* got \(2, 23\) float32"),
        (Reshape((2, 3, 4)), (1, 2, 24), "f4", r"x: expected \(B, 24\), got \(1, 2, 24\) float32"),
    ],
)
def test_wrong_inputs(layer: Layer, shape: Any, dtype: str, message: str) -> None:
    x = np.zeros(shape, dtype)
    for call in (layer, layer.forward):
        with pytest.raises(ValueError, match=f"^{message}"):
            call(x)


@pytest.mark.parametrize(
    ("layer", "shape", "smaller"),
    [
        (Convolution(1, 1, (5, 3), padding=(1, 1)), (1, 1, 3, 1), (1, 1, 2, 1)),
        (TransposedConvolution(1, 1, 2, stride=2, padding=3), (1, 1, 4, 4), (1, 1, 3, 4)),
        (
            TransposedConvolution(1, 1, 2, stride=2, padding=3, output_padding=1),
            (1, 1, 3, 3),
            (1, 1, 3, 2),
        ),
    ],
)
def test_smallest_images(layer: Layer, shape: Any, smaller: Any) -> None:
    assert min(layer(np.zeros(shape, np.float32)).shape) > 0
    with pytest.raises(ValueError, match=r"^x: expected"):
        layer(np.zeros(smaller, np.float32))


def test_wrong_calls() -> None:
    x = np.zeros((2, 2, 3, 3), np.float32)
    layers: list[tuple[Layer, Array]] = [
        (Convolution(2, 3, 2), x),
        (TransposedConvolution(2, 3, 2), x),
        (Flatten(), x),
        (Reshape((2, 3, 3)), x.reshape(2, 18)),
    ]
    for layer, given in layers:
        with pytest.raises(ValueError, match=r"^lengths: expected None, as the input has no steps"):
            layer.forward(given, lengths=[1, 1])
        with pytest.raises(ValueError, match=r"^lengths: expected None"):
            layer(given, [1, 1])
        with pytest.raises(ValueError, match=r"^state: expected None"):
            layer.forward(given, given)
        with pytest.raises(ValueError, match=r"^state: expected None"):
            layer.apply(given, given)
        with pytest.raises(TypeError, match=r"^x: expected an array, got list"):
            layer(given.tolist())  # type: ignore[arg-type]
        output, _, tape = layer.forward(given)
        with pytest.raises(ValueError, match=r"^grad_output: expected"):
            layer.backward(tape, output[:1])
        with pytest.raises(TypeError, match=r"^tape: expected what forward returned"):
            layer.backward(None, output)


def test_what_is_not_finite_stays_in_its_windows() -> None:
    x = np.zeros((2, 1, 4, 4), np.float32)
    x[0, 0, 0, 0] = np.nan
    output = Convolution(1, 2, 2, seed=0)(x)
    assert np.isnan(output).sum() == 2
    assert np.all(np.isnan(output[0, :, 0, 0]))
    spread = TransposedConvolution(1, 2, 2, seed=0)(x)
    assert np.isnan(spread).sum() == 8
    assert np.all(np.isnan(spread[0, :, :2, :2]))


def test_an_image_larger_than_a_block_is_one() -> None:
    blocks = convolution._blocks(3, 2 * convolution._BLOCK_BYTES)
    assert blocks == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert convolution._blocks(0, 1) == []
