"""Layers alone and stacked: gradients, parity with torch, lengths, shapes, copies, wrong calls."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import activations, saving
from fastrnn.config import build, describe
from fastrnn.containers import Container
from fastrnn.layer import Layer
from fastrnn.layers import Embedding, valid_steps
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
T, B, F, VOCABULARY = 4, 3, 5, 7
LENGTHS = np.array([4, 0, 1])

SEQUENCES, ROWS, IDS = "sequences", "rows", "ids"
# What makes each layer, with a dtype, and the inputs that it takes.
LAYERS: dict[str, tuple[Callable[[Any], Layer], tuple[str, ...]]] = {
    "Embedding": (lambda d: fastrnn.Embedding(VOCABULARY, F, seed=0, dtype=d), (IDS,)),
    "Embedding, mask_zero": (
        lambda d: fastrnn.Embedding(VOCABULARY, F, mask_zero=True, seed=0, dtype=d),
        (IDS,),
    ),
    "Dense": (lambda d: fastrnn.Dense(F, 6, seed=0, dtype=d), (SEQUENCES, ROWS)),
    "Dense, bias=False": (
        lambda d: fastrnn.Dense(F, 6, "tanh", bias=False, seed=0, dtype=d),
        (SEQUENCES, ROWS),
    ),
    **{
        f"Dense, {name}": (
            lambda d, name=name: fastrnn.Dense(F, 3, name, seed=0, dtype=d),
            (SEQUENCES, ROWS),
        )
        for name in activations.NAMES[1:]
    },
    **{
        f"Activation, {name}": (lambda d, name=name: fastrnn.Activation(name), (SEQUENCES, ROWS))
        for name in activations.NAMES
    },
    "BatchNorm": (lambda d: fastrnn.BatchNorm(F, 0.3, 1e-3, dtype=d), (SEQUENCES, ROWS)),
    "LayerNorm": (lambda d: fastrnn.LayerNorm(F, 1e-3, dtype=d), (SEQUENCES, ROWS)),
    "Dropout": (lambda d: fastrnn.Dropout(0.3, seed=0), (SEQUENCES, ROWS)),
    "Last": (lambda d: fastrnn.Last(), (SEQUENCES,)),
    "Ends": (
        lambda d: fastrnn.Sequential([fastrnn.Dense(F, 4, seed=0, dtype=d), fastrnn.Ends()]),
        (SEQUENCES,),
    ),
    "Pool, mean": (lambda d: fastrnn.Pool(), (SEQUENCES,)),
    "Pool, max": (lambda d: fastrnn.Pool("max"), (SEQUENCES,)),
    "Repeat": (lambda d: fastrnn.Repeat(3), (ROWS,)),
    "Residual(Dense)": (
        lambda d: fastrnn.Residual(fastrnn.Dense(F, F, "tanh", seed=0, dtype=d)),
        (SEQUENCES, ROWS),
    ),
    "Residual(LSTM)": (
        lambda d: fastrnn.Residual(fastrnn.LSTM(F, F, seed=0, dtype=d)),
        (SEQUENCES,),
    ),
    "Residual(LSTM, batch_first)": (
        lambda d: fastrnn.Residual(fastrnn.LSTM(F, F, batch_first=True, seed=0, dtype=d)),
        (SEQUENCES,),
    ),
    "Residual(Sequential)": (
        lambda d: fastrnn.Residual(
            fastrnn.Sequential(
                [
                    fastrnn.LayerNorm(F, dtype=d),
                    fastrnn.GRU(F, 3, bidirectional=True, seed=0, dtype=d),
                    fastrnn.Dropout(0.2, seed=1),
                    fastrnn.Dense(6, F, seed=2, dtype=d),
                ]
            )
        ),
        (SEQUENCES,),
    ),
    "classifier": (
        lambda d: fastrnn.Sequential(
            [
                fastrnn.Embedding(VOCABULARY, 4, mask_zero=True, seed=0, dtype=d),
                fastrnn.LSTM(4, 3, bidirectional=True, seed=1, dtype=d),
                fastrnn.Pool("max"),
                fastrnn.Dropout(0.2, seed=2),
                fastrnn.Dense(6, 2, seed=3, dtype=d),
            ]
        ),
        (IDS,),
    ),
    "one to many": (
        lambda d: fastrnn.Sequential(
            [
                fastrnn.Sequential([fastrnn.Dense(F, 4, "tanh", seed=0, dtype=d)]),
                fastrnn.Repeat(3),
                fastrnn.RNN(4, 3, seed=1, dtype=d),
                fastrnn.Dense(3, 2, seed=2, dtype=d),
            ]
        ),
        (ROWS,),
    ),
    "deep": (
        lambda d: fastrnn.Sequential(
            [
                fastrnn.BatchNorm(F, dtype=d),
                fastrnn.LSTM(F, 4, batch_first=True, recurrent_dropout=0.2, seed=0, dtype=d),
                fastrnn.Sequential(
                    [
                        fastrnn.Residual(fastrnn.GRU(4, 4, 2, dropout=0.2, seed=1, dtype=d)),
                        fastrnn.Activation("tanh"),
                    ]
                ),
                fastrnn.GRU(4, 3, batch_first=True, bidirectional=True, seed=2, dtype=d),
                fastrnn.Dense(6, 2, seed=3, dtype=d),
            ]
        ),
        (SEQUENCES,),
    ),
    "batch_first": (
        lambda d: fastrnn.Sequential([fastrnn.LSTM(F, 3, batch_first=True, seed=0, dtype=d)]),
        (SEQUENCES,),
    ),
    "attention": (
        lambda d: fastrnn.Sequential(
            [
                fastrnn.GRU(F, 4, seed=0, dtype=d),
                fastrnn.Attention(4, score="general", seed=1, dtype=d),
                fastrnn.Dense(4, 2, seed=2, dtype=d),
            ]
        ),
        (SEQUENCES,),
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
every_case = pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (_, kinds) in LAYERS.items() for kind in kinds]
)
RECURRENT = {
    "RNN": lambda: fastrnn.RNN(F, 4, nonlinearity="relu", seed=0),
    "LSTM": lambda: fastrnn.LSTM(F, 4, peephole=True, proj_size=2, zoneout=(0.1, 0.2), seed=0),
    "GRU": lambda: fastrnn.GRU(F, 4, 2, reset_after=False, dtype=np.float64, seed=0),
}


def make(name: str, rng: Rng | None = None, dtype: Any = np.float64) -> Layer:
    """Make a layer, with parameters and buffers away from 0 and 1 if there is an `rng`."""
    layer = LAYERS[name][0](dtype)
    if rng is not None:
        for array in layer.parameters.values():
            array[...] = rng.normal(size=array.shape)
        for array in layer.buffers.values():
            array[...] = rng.uniform(0.5, 1.5, size=array.shape)
        for part in parts(layer):
            if isinstance(part, Embedding) and part.mask_zero:
                part.parameters["weight"][0] = 0
    return layer


def parts(layer: Layer) -> Iterator[Layer]:
    yield layer
    if isinstance(layer, Container):
        for child in layer.children().values():
            yield from parts(child)


def draw(kind: str, rng: Rng, dtype: Any = np.float64) -> Array:
    if kind == IDS:
        return rng.integers(1, VOCABULARY, size=(T, B))
    shape = (T, B, F) if kind == SEQUENCES else (B, F)
    return rng.normal(size=shape).astype(dtype)


def flatten(value: Any) -> list[Array]:
    """Return the arrays of a state."""
    if value is None:
        return []
    if isinstance(value, np.ndarray):
        return [value]
    return [array for part in value for array in flatten(part)]


def rebuild(value: Any, function: Callable[[Array], Array]) -> Any:
    """Apply a function to each array of a state."""
    if value is None or isinstance(value, np.ndarray):
        return None if value is None else function(value)
    return tuple(rebuild(part, function) for part in value)


def slopes(loss: Callable[[], float], array: Array, width: float = 1e-6) -> Array:
    """Differentiate a loss with respect to an array, which it reads, by central differences."""
    result = np.zeros_like(array)
    writeable = array.flags.writeable
    array.flags.writeable = True  # recurrent layers lock theirs in evaluation mode
    for index in np.ndindex(array.shape):
        before = array[index]
        array[index] = before + width
        above = loss()
        array[index] = before - width
        result[index] = (above - loss()) / (2 * width)
        array[index] = before
    array.flags.writeable = writeable
    return result


def assert_slopes(loss: Callable[[], float], array: Array, gradient: Array | None) -> None:
    assert gradient is not None
    assert gradient.shape == array.shape
    assert gradient.dtype == array.dtype
    np.testing.assert_allclose(gradient, slopes(loss, array), rtol=1e-6, atol=1e-8)


def check_gradients(
    layer: Layer, x: Array, rng: Rng, lengths: Any = None, state: Any = None
) -> None:
    """Compare `backward` with central differences, of input, state and all parameters."""
    seeds = {part: part._mask_seed for part in parts(layer)}

    def forward() -> tuple[Array, Any, Any]:
        for part, seed in seeds.items():
            part._mask_seed = seed  # the same masks every time
        return layer.forward(x, state, lengths)

    output, final, tape = forward()
    grad_output = rng.normal(size=output.shape)
    grad_state = rebuild(final, lambda array: rng.normal(size=array.shape))

    def loss() -> float:
        output, final, _ = forward()
        pairs = zip(flatten(final), flatten(grad_state), strict=True)
        return float(np.sum(output * grad_output) + sum(np.sum(a * b) for a, b in pairs))

    given = grad_output.copy()
    out_lengths = layer.output_lengths(x, lengths)
    if out_lengths is not None:
        given[~valid_steps(len(output), out_lengths)] = np.nan  # of padding: ignored
    g = layer.backward(tape, given, grad_state)
    assert list(g.parameters) == list(layer.parameters)
    for name, parameter in layer.parameters.items():
        assert_slopes(loss, parameter, g.parameters[name])
    if x.dtype.kind == "f":
        assert_slopes(loss, x, g.input)
    else:
        assert g.input is None
    for start, gradient in zip(flatten(state), flatten(g.state), strict=bool(flatten(state))):
        assert_slopes(loss, start, gradient)

    again = layer.backward(forward()[2], given, grad_state, input_grad=False)
    assert again.input is None
    for name, gradient in g.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], gradient)


@pytest.mark.parametrize("training", [True, False])
@every_case
def test_gradients(name: str, kind: str, training: bool, rng: Rng) -> None:
    layer = make(name, rng).train(training)
    check_gradients(layer, draw(kind, rng), rng)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [n for n, (_, kinds) in LAYERS.items() if kinds != (ROWS,)])
def test_gradients_with_lengths(name: str, training: bool, rng: Rng) -> None:
    layer = make(name, rng).train(training)
    kind = LAYERS[name][1][0]
    check_gradients(layer, draw(kind, rng), rng, LENGTHS)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradients_of_a_state(lengths: Any, rng: Rng) -> None:
    layer = make("deep", rng)
    _, final, _ = layer.forward(draw(SEQUENCES, rng), None, lengths)
    state = rebuild(final, lambda array: rng.normal(size=array.shape))
    check_gradients(layer, draw(SEQUENCES, rng), rng, lengths, state)


@every_case
def test_gradient_of_the_output_is_zero_by_default(name: str, kind: str, rng: Rng) -> None:
    layer = make(name, rng)
    _, _, tape = layer.forward(draw(kind, rng))
    g = layer.backward(tape)
    for gradient in [*g.parameters.values(), *flatten(g.input)]:
        np.testing.assert_array_equal(gradient, 0)


def test_gradient_of_the_state_alone(rng: Rng) -> None:
    recurrent, model = (fastrnn.GRU(F, 4, seed=0) for _ in range(2))
    model = fastrnn.Sequential([model, fastrnn.Attention(4, seed=0), fastrnn.Dense(4, 2)])
    x = draw(SEQUENCES, rng, np.float32)
    _, state, tape = recurrent.forward(x)
    expected = recurrent.backward(tape, grad_state=state)
    _, _, tape = model.forward(x)
    g = model.backward(tape, grad_state=(state, None, None))
    np.testing.assert_array_equal(g.input, expected.input)


@every_case
def test_gradients_are_new_arrays(name: str, kind: str, rng: Rng) -> None:
    layer = make(name, rng)
    output, _, tape = layer.forward(draw(kind, rng))
    grad_output = rng.normal(size=output.shape)
    g = layer.backward(tape, grad_output)
    for gradient in [*g.parameters.values(), *flatten(g.input)]:
        assert not np.shares_memory(gradient, grad_output)


@every_case
def test_float32(name: str, kind: str, rng: Rng) -> None:
    layers = make(name), make(name, dtype=np.float32)
    layers[1].load_state_dict(layers[0].state_dict())
    x = draw(kind, rng, np.float32)
    outputs, gradients = [], []
    for layer, dtype in zip(layers, (np.float64, np.float32), strict=True):
        output, _, tape = layer.forward(x if kind == IDS else x.astype(dtype))
        assert output.dtype == dtype
        g = layer.backward(tape, np.ones(output.shape, dtype))
        for gradient in [*g.parameters.values(), *flatten(g.input)]:
            assert gradient.dtype == dtype
        outputs.append(output)
        gradients.append([*g.parameters.values(), *flatten(g.input)])
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    for single, double in zip(gradients[1], gradients[0], strict=True):
        np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-4)


# Lengths.


@pytest.mark.parametrize("padding", [np.nan, np.inf])
@pytest.mark.parametrize("name", [n for n, (_, kinds) in LAYERS.items() if SEQUENCES in kinds])
def test_padding_is_ignored(name: str, padding: float, rng: Rng) -> None:
    layer, same = make(name, rng), make(name)
    same.load_state_dict(layer.state_dict())
    x = draw(SEQUENCES, rng)
    clean = x.copy()
    valid = valid_steps(T, LENGTHS)
    x[~valid], clean[~valid] = padding, 0
    output, _, tape = layer.forward(x, None, LENGTHS)
    expected, _, clean_tape = same.forward(clean, None, LENGTHS)
    np.testing.assert_array_equal(output, expected)
    grad_output = rng.normal(size=output.shape)
    g, clean_g = layer.backward(tape, grad_output), same.backward(clean_tape, grad_output)
    np.testing.assert_array_equal(g.input, clean_g.input)
    for key, gradient in clean_g.parameters.items():
        np.testing.assert_array_equal(g.parameters[key], gradient)
    for key, buffer in same.buffers.items():
        np.testing.assert_array_equal(layer.buffers[key], buffer)
    assert g.input is not None
    np.testing.assert_array_equal(g.input[~valid], 0)
    if layer.output_lengths(x, LENGTHS) is None:
        assert output.ndim == 2
    else:
        np.testing.assert_array_equal(output[~valid], 0)


@pytest.mark.parametrize("name", [n for n, (_, kinds) in LAYERS.items() if kinds != (ROWS,)])
def test_rows_do_not_depend_on_their_padding(name: str, rng: Rng) -> None:
    layer = make(name, rng).eval()
    x = draw(LAYERS[name][1][0], rng)
    output = layer.forward(x, None, LENGTHS)[0]
    for row, length in enumerate(LENGTHS):
        alone = layer.forward(x[:length, row : row + 1])[0] if length else None
        if output.ndim == 3 and alone is not None:
            np.testing.assert_allclose(output[:length, row], alone[:, 0], rtol=1e-12)
        elif alone is not None:
            np.testing.assert_allclose(output[row], alone[0], rtol=1e-12)


@every_case
@pytest.mark.parametrize("empty", ["T", "B"])
def test_empty_inputs(name: str, kind: str, empty: str, rng: Rng) -> None:
    layer = make(name, rng)
    if kind == ROWS and empty == "T":
        empty = "B"
    x = draw(kind, rng)
    x = x[:0] if empty == "T" or kind == ROWS else x[:, :0]
    output, _, tape = layer.forward(x)
    assert output.size == 0 or not np.any(np.isnan(output))
    g = layer.backward(tape, np.ones_like(output))
    for gradient in g.parameters.values():
        assert not np.any(np.isnan(gradient))
    if kind != IDS:
        assert g.input is not None
        assert g.input.shape == x.shape


def test_last_and_pool(rng: Rng) -> None:
    x = draw(SEQUENCES, rng)
    for lengths in (None, LENGTHS):
        last, mean, largest = (
            layer(x, lengths)
            for layer in (fastrnn.Last(), fastrnn.Pool("mean"), fastrnn.Pool("max"))
        )
        for row, length in enumerate([T] * B if lengths is None else lengths):
            steps = x[:length, row] if length else np.zeros((1, F))
            np.testing.assert_array_equal(last[row], steps[-1])
            np.testing.assert_allclose(mean[row], steps.mean(axis=0), rtol=1e-12)
            np.testing.assert_array_equal(largest[row], steps.max(axis=0))


def test_gradient_of_equal_maxima_goes_to_the_first() -> None:
    layer = fastrnn.Pool("max")
    x = np.array([1.0, 2.0, 2.0]).reshape(3, 1, 1)
    _, _, tape = layer.forward(x)
    g = layer.backward(tape, np.array([[3.0]]))
    assert g.input is not None
    assert g.input.ravel().tolist() == [0, 3, 0]


def test_mask_zero() -> None:
    layer = fastrnn.Embedding(VOCABULARY, F, mask_zero=True, seed=0, dtype=np.float64)
    ids = np.array([[3, 0, 2], [1, 0, 0], [4, 0, 0]], np.uint8)
    lengths = layer.output_lengths(ids, None)
    assert lengths is not None
    assert lengths.tolist() == [3, 0, 1]
    np.testing.assert_array_equal(layer.parameters["weight"][0], 0)
    output, _, tape = layer.forward(ids)
    np.testing.assert_array_equal(output[ids == 0], 0)
    np.testing.assert_array_equal(output[2, 0], layer.parameters["weight"][4])
    g = layer.backward(tape, np.ones_like(output))
    assert g.parameters["weight"][:, 0].tolist() == [0, 1, 1, 1, 1, 0, 0]
    # Given lengths go before those that the zeros show.
    np.testing.assert_array_equal(layer(ids, lengths=[1, 0, 1])[1:], 0)
    assert layer.output_lengths(ids, np.array([1, 0, 1]))[0] == 1  # type: ignore[index]
    # A step has no padding.
    assert layer.step(np.array([3, 0]))[0].shape == (2, F)
    with pytest.raises(ValueError, match="x: expected id 0 at the end of a row only"):
        layer(np.array([[1], [0], [2]]))


def test_row_of_padding_stays_zero() -> None:
    layer = fastrnn.Embedding(VOCABULARY, F, mask_zero=True, seed=0)
    ids = np.array([[3, 0], [0, 2]])
    for x, lengths in [(ids, [2, 2]), (ids[0], None)]:  # where id 0 is an id like others
        output, _, tape = layer.forward(x, None, lengths)
        g = layer.backward(tape, np.ones_like(output))
        np.testing.assert_array_equal(g.parameters["weight"][0], 0)
        assert np.any(g.parameters["weight"])
    model = fastrnn.Sequential([layer, fastrnn.GRU(F, 1, seed=0)]).compile("adam", "mse")
    model.train_on_batch(ids, np.zeros((2, 2, 1)), lengths=[2, 2])
    np.testing.assert_array_equal(layer.parameters["weight"][0], 0)


def test_ids_of_padding_are_not_checked() -> None:
    layer = fastrnn.Embedding(VOCABULARY, F, seed=0)
    ids = np.array([[1, -1], [99, 99]])
    assert layer(ids, lengths=[1, 0]).shape == (2, 2, F)
    with pytest.raises(ValueError, match=r"x: expected ids in \[0, 7\), got 99"):
        layer(ids, lengths=[2, 0])


def test_lengths_pass_through_a_stack(rng: Rng) -> None:
    embedding, recurrent = fastrnn.Embedding(VOCABULARY, 4, True, seed=0), fastrnn.GRU(4, 3, seed=1)
    model = fastrnn.Sequential([embedding, fastrnn.Residual(fastrnn.Dense(4, 4)), recurrent])
    ids = draw(IDS, rng)
    ids[~valid_steps(T, LENGTHS)] = 0
    output = model(ids)
    np.testing.assert_array_equal(output, model(ids, LENGTHS))
    np.testing.assert_array_equal(output[~valid_steps(T, LENGTHS)], 0)
    lengths = model.output_lengths(ids, None)
    np.testing.assert_array_equal(lengths, LENGTHS)
    assert fastrnn.Sequential([model, fastrnn.Last()]).output_lengths(ids, None) is None


# Torch.


def to_torch(array: Array) -> Any:
    torch = pytest.importorskip("torch")
    return torch.tensor(array, requires_grad=array.dtype.kind == "f")


def assert_like_torch(layer: Layer, module: Any, x: Array, rng: Rng) -> None:
    """Compare outputs and gradients."""
    output, _, tape = layer.forward(x)
    given = to_torch(x)
    expected = module(given)
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    grad_output = rng.normal(size=output.shape)
    g = layer.backward(tape, grad_output)
    expected.backward(to_torch(grad_output))
    if g.input is not None:
        np.testing.assert_allclose(g.input, given.grad, rtol=1e-8, atol=1e-12)
    for name, parameter in getattr(module, "named_parameters", dict)():
        np.testing.assert_allclose(g.parameters[name], parameter.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", [SEQUENCES, ROWS])
def test_linear_of_torch(kind: str, rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(F, 6, dtype=torch.float64)
    layer = fastrnn.Dense(F, 6, dtype=np.float64)
    layer.load_state_dict(module.state_dict())
    assert_like_torch(layer, module, draw(kind, rng), rng)


def test_embedding_of_torch(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    for mask_zero in (False, True):
        module = torch.nn.Embedding(
            VOCABULARY, F, padding_idx=0 if mask_zero else None, dtype=torch.float64
        )
        layer = fastrnn.Embedding(VOCABULARY, F, mask_zero, dtype=np.float64)
        layer.load_state_dict(module.state_dict())
        ids = draw(IDS, rng)
        ids[2:, 1] = 0
        assert_like_torch(layer, module, ids, rng)


def test_layer_norm_of_torch(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.LayerNorm(F, eps=1e-3, dtype=torch.float64)
    layer = make("LayerNorm", rng)
    module.load_state_dict({name: to_torch(array) for name, array in layer.parameters.items()})
    assert_like_torch(layer, module, draw(SEQUENCES, rng), rng)


def test_batch_norm_of_torch(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(F, eps=1e-3, momentum=0.3, dtype=torch.float64)
    layer = make("BatchNorm", rng)
    state = {name: to_torch(array) for name, array in layer.state_dict().items()}
    module.load_state_dict(state, strict=False)
    for _ in range(3):
        assert_like_torch(layer, module, rng.normal(1, 2, (6, F)), rng)
        module.zero_grad()
        for name, buffer in layer.buffers.items():
            np.testing.assert_allclose(buffer, getattr(module, name), rtol=1e-12)
    layer.eval()
    module.eval()
    before = layer.state_dict()
    assert_like_torch(layer, module, rng.normal(1, 2, (6, F)), rng)
    for name, array in before.items():
        np.testing.assert_array_equal(layer.state_dict()[name], array)


def test_batch_norm_of_valid_steps(rng: Rng) -> None:
    """Statistics are those of the valid steps, laid out one after another."""
    layer, flat = make("BatchNorm"), make("BatchNorm")
    x, valid = draw(SEQUENCES, rng), valid_steps(T, LENGTHS)
    output = layer(x, LENGTHS)
    np.testing.assert_allclose(output[valid], flat(x[valid]), rtol=1e-12)
    for name, buffer in flat.buffers.items():
        np.testing.assert_array_equal(layer.buffers[name], buffer)


@pytest.mark.parametrize("name", activations.NAMES)
def test_activations_of_torch(name: str, rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    functions = torch.nn.functional
    function = {
        "linear": lambda x: x + 0,
        "gelu": lambda x: functions.gelu(x, approximate="tanh"),
        "softmax": lambda x: functions.softmax(x, dim=-1),
        "log_softmax": lambda x: functions.log_softmax(x, dim=-1),
    }.get(name) or getattr(functions, name)
    for scale in (1, 30):
        x = scale * draw(SEQUENCES, rng)
        assert_like_torch(fastrnn.Activation(name), function, x, rng)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", activations.NAMES)
def test_activations_far_out(name: str, dtype: Any) -> None:
    """No overflow, warning or NaN, and the limit of each slope."""
    x = np.array([[1e20, -1e20, 0.0]], dtype)
    activation = activations.get("function", name)
    y = activation.function(x)
    gradient = activation.gradient(x, y, np.ones_like(x))
    assert y.dtype == gradient.dtype == dtype
    assert np.all(np.isfinite(y))
    assert np.all(np.isfinite(gradient))
    if name in ("relu", "leaky_relu", "elu", "gelu", "silu", "softplus"):
        assert y[0, 0] == dtype(1e20)
        np.testing.assert_allclose(gradient[0, :2], [1, 0.01 * (name == "leaky_relu")])


def test_sequential_of_torch(rng: Rng) -> None:
    """Names of parameters are those of ``torch.nn.Sequential``."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(
        torch.nn.Linear(F, 4, dtype=torch.float64),
        torch.nn.Tanh(),
        torch.nn.LayerNorm(4, dtype=torch.float64),
        torch.nn.Linear(4, 2, dtype=torch.float64),
    )
    model = fastrnn.Sequential(
        [
            fastrnn.Dense(F, 4, dtype=np.float64),
            fastrnn.Activation("tanh"),
            fastrnn.LayerNorm(4, dtype=np.float64),
            fastrnn.Dense(4, 2, dtype=np.float64),
        ]
    )
    model.load_state_dict(module.state_dict())
    assert_like_torch(model, module, draw(SEQUENCES, rng), rng)


# Single layers.


def test_inits() -> None:
    for init in ("torch", "glorot", "he", "orthogonal"):
        layer = fastrnn.Dense(300, 200, init=init, seed=0, dtype=np.float64)
        weight, bias = layer.parameters["weight"], layer.parameters["bias"]
        bound = {"torch": 1 / np.sqrt(300), "glorot": np.sqrt(6 / 500)}.get(init)
        if bound:
            assert 0.99 * bound < abs(weight).max() <= bound
        if init == "he":
            assert abs(weight.std() / np.sqrt(2 / 300) - 1) < 0.02
        if init == "orthogonal":
            np.testing.assert_allclose(weight @ weight.T, np.eye(200), atol=1e-12)
        assert np.any(bias) == (init == "torch")
        again = fastrnn.Dense(300, 200, init=init, seed=0, dtype=np.float64)
        np.testing.assert_array_equal(again.parameters["weight"], weight)
        other = fastrnn.Dense(300, 200, init=init, seed=1, dtype=np.float64)
        assert np.all(other.parameters["weight"] != weight)


def test_dropout(rng: Rng) -> None:
    layer = fastrnn.Dropout(0.3, seed=0)
    x = rng.normal(size=(50, 40, 30))
    output, _, tape = layer.forward(x)
    kept = output != 0
    assert abs(kept.mean() - 0.7) < 0.01
    np.testing.assert_allclose(output[kept], x[kept] / 0.7, rtol=1e-6)
    g = layer.backward(tape, np.ones_like(x))
    np.testing.assert_array_equal(g.input != 0, kept)
    assert np.any((layer(x) != 0) != kept)  # another mask in the next call
    again = fastrnn.Dropout(0.3, seed=0)
    lengths = rng.integers(0, 51, 40)
    valid = valid_steps(50, lengths)
    np.testing.assert_array_equal(again(x, lengths)[valid], output[valid])
    np.testing.assert_array_equal(layer.eval()(x), x)
    assert not np.shares_memory(layer(x), x)
    np.testing.assert_array_equal(fastrnn.Dropout(1.0)(x), 0)
    np.testing.assert_array_equal(fastrnn.Dropout(0.0)(x), x)


@pytest.mark.parametrize("batch_first", [False, True])
def test_residual_adds_its_input(batch_first: bool, rng: Rng) -> None:
    x = draw(SEQUENCES, rng)
    plain = fastrnn.LSTM(F, F, seed=0, dtype=np.float64)
    inner = fastrnn.LSTM(F, F, batch_first=batch_first, seed=0, dtype=np.float64)
    change, (h, _), plain_tape = plain.forward(x)
    output, (residual_h, _), tape = fastrnn.Residual(inner).forward(x)
    np.testing.assert_array_equal(output, x + change)
    np.testing.assert_array_equal(residual_h, h)
    grad_output = rng.normal(size=x.shape)
    expected = plain.backward(plain_tape, grad_output)
    g = fastrnn.Residual(inner).backward(tape, grad_output)
    np.testing.assert_allclose(g.input, grad_output + expected.input, rtol=1e-12)
    for name, gradient in expected.parameters.items():
        np.testing.assert_allclose(g.parameters[f"layer.{name}"], gradient, rtol=1e-12)


# Stacks.


@pytest.mark.parametrize("mode", ["forward", "step"])
def test_steps_are_the_sequence(mode: str, rng: Rng) -> None:
    model = fastrnn.Sequential(
        [
            fastrnn.Embedding(VOCABULARY, F, seed=0, dtype=np.float64),
            fastrnn.LSTM(F, 4, 2, proj_size=3, batch_first=True, seed=1, dtype=np.float64),
            fastrnn.BatchNorm(3, dtype=np.float64),
            fastrnn.Dropout(0.5),
            fastrnn.Residual(fastrnn.Sequential([fastrnn.GRU(3, 3, seed=2, dtype=np.float64)])),
            fastrnn.Dense(3, 2, "tanh", seed=3, dtype=np.float64),
        ]
    ).eval()
    ids = draw(IDS, rng)
    expected, expected_state, _ = model.forward(ids)
    state = None
    for t in range(T):
        if mode == "step":
            output, state = model.step(ids[t], state)
        else:
            output, state, _ = model.forward(ids[t : t + 1], state)
            output = output[0]
        np.testing.assert_allclose(output, expected[t], rtol=1e-12, atol=1e-14)
    for actual, wanted in zip(flatten(state), flatten(expected_state), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["classifier", "one to many", "deep", "attention"])
def test_no_steps_where_all_of_a_sequence_is_needed(name: str) -> None:
    model = make(name)
    assert not model.stepwise
    with pytest.raises(ValueError, match="step: expected a model whose output at a step"):
        model.step(np.zeros((B, F)))


def test_stack_is_its_layers_one_after_another(rng: Rng) -> None:
    model = make("deep", rng).eval()
    assert isinstance(model, fastrnn.Sequential)
    x = draw(SEQUENCES, rng)
    first, batch_first, nested, both, dense = model.layers
    y = nested(batch_first(first(x).swapaxes(0, 1))[0].swapaxes(0, 1))
    y = dense(both(y.swapaxes(0, 1))[0].swapaxes(0, 1))
    np.testing.assert_allclose(model(x), y, rtol=1e-12)


@every_layer
def test_modes_reach_every_layer(name: str) -> None:
    layer = make(name)
    assert all(part.training for part in parts(layer))
    assert layer.eval() is layer
    assert not any(part.training for part in parts(layer))
    assert layer.train() is layer
    assert all(part.training for part in parts(layer))


def test_recurrent_children_are_read_only_in_evaluation() -> None:
    model = make("deep").eval()
    with pytest.raises(ValueError, match="read-only"):
        model.parameters["2.0.layer.weight_ih_l0"][:] = 0
    model.train()
    model.parameters["2.0.layer.weight_ih_l0"][:] = 0


# States.


@every_layer
def test_state_dict(name: str, rng: Rng) -> None:
    layer, other = make(name, rng), make(name)
    kind = LAYERS[name][1][0]
    x = draw(kind, rng)
    layer.eval()
    other.eval()
    state = layer.state_dict()
    assert list(state) == [*layer.parameters, *layer.buffers]
    keys = other.load_state_dict(state)
    assert keys == ([], [])
    np.testing.assert_array_equal(other(x), layer(x))
    for array in state.values():
        array[...] = 100  # copies
    np.testing.assert_array_equal(other(x), layer(x))
    with pytest.raises(ValueError, match="state_dict: unexpected nonsense"):
        layer.load_state_dict({**layer.state_dict(), "nonsense": np.zeros(3)})
    missing = layer.load_state_dict({}, strict=False).missing_keys
    assert missing == list(state)
    if state:
        first = next(iter(state))
        with pytest.raises(ValueError, match=f"state_dict: missing {first}"):
            layer.load_state_dict({})
        wrong = {**layer.state_dict(), first: np.zeros(99)}
        with pytest.raises(ValueError, match=rf"{first}: expected \(.*\), got \(99,\)"):
            layer.load_state_dict(wrong)
        with pytest.raises(TypeError, match=f"state_dict: {first}: expected floats"):
            layer.load_state_dict({**layer.state_dict(), first: np.zeros(99, int)})
    with pytest.raises(TypeError, match="state_dict: expected a mapping, got list"):
        layer.load_state_dict([])  # type: ignore[arg-type]
    np.testing.assert_array_equal(other(x), layer(x))


def test_loading_leaves_the_modes_of_inner_layers() -> None:
    model = fastrnn.Sequential([fastrnn.BatchNorm(F), fastrnn.Residual(fastrnn.GRU(F, F, seed=0))])
    norm, recurrent = model.layers[0].eval(), model.layers[1].children()["layer"].eval()  # type: ignore[attr-defined]
    x = np.ones((T, B, F), np.float32)
    state = {name: 0.5 * array for name, array in model.state_dict().items()}
    model.load_state_dict(state)
    assert (model.training, norm.training, recurrent.training) == (True, False, False)
    assert not recurrent.parameters["weight_ih_l0"].flags.writeable
    fresh = fastrnn.GRU(F, F)
    fresh.load_state_dict({name[8:]: array for name, array in state.items() if "layer" in name})
    np.testing.assert_array_equal(recurrent(x)[0], fresh(x)[0])  # the packed copy is new, too


def duplicates() -> dict[str, Callable[[Layer], Layer]]:
    return {
        "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
        "deepcopy": copy.deepcopy,
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", duplicates())
@every_layer
def test_copies(name: str, how: str, training: bool, rng: Rng) -> None:
    layer = make(name, rng)
    x = draw(LAYERS[name][1][0], rng)
    layer(x)  # so that seeds and running means have moved
    layer.train(training)
    twin = duplicates()[how](layer)
    assert twin.training == training
    assert repr(twin) == repr(layer)
    for _ in range(2):
        output, _, tape = layer.forward(x)
        twin_output, _, twin_tape = twin.forward(x)
        np.testing.assert_array_equal(twin_output, output)
    g = layer.backward(tape, np.ones_like(output))
    twin_g = twin.backward(twin_tape, np.ones_like(output))
    for key, gradient in g.parameters.items():
        np.testing.assert_array_equal(twin_g.parameters[key], gradient)
    before = layer.state_dict()
    twin.train()
    for array in {**twin.parameters, **twin.buffers}.values():
        array[...] = 99
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


ALSO = {
    **{name: fastrnn.Sequential([make()]) for name, make in RECURRENT.items()},
    "BatchNorm": fastrnn.BatchNorm(3),
    "LayerNorm": fastrnn.LayerNorm(3),
    "Dense": fastrnn.Dense(2, 3, "relu", bias=False, dtype=np.float64),
    "attention": fastrnn.Attention(3, 4, score="concat", units=2, queries="all", dtype=np.float64),
}


@pytest.mark.parametrize("name", [*LAYERS, *(f"also {name}" for name in ALSO)])
def test_repr_and_file_make_the_layer_again(name: str) -> None:
    layer = ALSO[name[5:]] if name.startswith("also ") else make(name)
    written = describe(layer)
    again = [
        eval(repr(layer), {"__builtins__": {}, "True": True}, vars(fastrnn)),
        build(written, saving._classes(Layer)),
    ]
    for copied in again:
        assert describe(copied) == written
        assert repr(copied) == repr(layer)
        kinds = {key: (array.shape, array.dtype) for key, array in layer.state_dict().items()}
        assert kinds == {k: (array.shape, array.dtype) for k, array in copied.state_dict().items()}


# Shapes.


@every_case
def test_shapes(name: str, kind: str, rng: Rng) -> None:
    layer = make(name)
    x = draw(kind, rng)
    output = layer(x)
    assert layer.output_shape(x.shape) == output.shape
    symbols = {IDS: ("T", "B"), SEQUENCES: ("T", "B", F), ROWS: ("B", F)}[kind]
    sizes = {"T": T, "B": B}
    shape = layer.output_shape(symbols)
    assert tuple(sizes.get(size, size) for size in shape) == output.shape  # type: ignore[arg-type]
    wanted = layer.input_shape()
    if wanted is not None:
        fits = {("T", "B"): (IDS,), ("T", "B", F): (SEQUENCES,), ("B", F): (SEQUENCES, ROWS)}
        fits |= {("T", "B", "F"): (SEQUENCES,), ("B", "F"): (ROWS,)}
        assert kind in fits[wanted]


def test_input_shapes_of_stacks() -> None:
    dense, repeat, recurrent = fastrnn.Dense(F, 4), fastrnn.Repeat(3), fastrnn.GRU(4, 2)
    last, norm = fastrnn.Last(), fastrnn.BatchNorm(F)
    embedding, attention = fastrnn.Embedding(9, 4), fastrnn.Attention(4)
    for layers, shape in [
        ([dense], ("B", F)),
        ([dense, recurrent], ("T", "B", F)),
        ([fastrnn.Dropout(0.5), dense], ("B", F)),
        ([norm, last, dense], ("T", "B", F)),
        ([last, dense], ("T", "B", F)),
        ([dense, repeat, recurrent], ("B", F)),
        ([fastrnn.Sequential([dense, repeat]), recurrent], ("B", F)),
        ([dense, fastrnn.Sequential([repeat, recurrent])], ("B", F)),
        ([embedding, recurrent], ("T", "B")),
        ([fastrnn.Sequential([embedding]), recurrent], ("T", "B")),
        ([attention, fastrnn.Dense(4, 2)], ("T", "B", 4)),
        ([fastrnn.Residual(dense)], ("B", F)),
        ([fastrnn.Activation("relu")], None),
    ]:
        assert fastrnn.Sequential(layers).input_shape() == shape, layers


def test_multiply_adds_are_those_of_the_matrices() -> None:
    assert fastrnn.Dense(F, 6).multiply_adds(("T", "B", F)) == F * 6
    assert fastrnn.LSTM(F, 4, 2, bidirectional=True).multiply_adds(("T", "B", F)) == 2 * (
        4 * 4 * (F + 4) + 4 * 4 * (8 + 4)
    )
    assert make("classifier").multiply_adds(("T", "B")) == 2 * 4 * 3 * (4 + 3) + 6 * 2
    inner = make("Residual(LSTM)")
    assert inner.multiply_adds(("T", "B", F)) == 4 * F * 2 * F
    for name in ("Embedding", "BatchNorm", "LayerNorm", "Dropout", "Last", "Pool, max", "Repeat"):
        assert make(name).multiply_adds(("T", "B", F)) == 0


# Wrong calls.


@pytest.mark.parametrize(
    ("make_wrong", "message"),
    [
        (lambda: fastrnn.Dense(0, 3), r"inputs: expected"),
        (lambda: fastrnn.Dense(3, 2.5), r"units: expected"),
        (lambda: fastrnn.Dense(3, 2, "sine"), r"activation: expected one of 'linear'"),
        (lambda: fastrnn.Dense(3, 2, bias=1), r"bias: expected True or False, got 1"),
        (lambda: fastrnn.Dense(3, 2, init="identity"), r"init: expected one of 'torch'"),
        (lambda: fastrnn.Dense(3, 2, seed="x"), r"seed: expected"),
        (lambda: fastrnn.Dense(3, 2, dtype=np.float16), r"dtype: expected float32 or float64"),
        (lambda: fastrnn.Activation("sine"), r"function: expected one of 'linear'"),
        (lambda: fastrnn.Embedding(0, 3), r"vocabulary: expected"),
        (lambda: fastrnn.Embedding(3, 0), r"size: expected"),
        (lambda: fastrnn.Embedding(3, 2, mask_zero=0), r"mask_zero: expected True or False"),
        (lambda: fastrnn.BatchNorm(0), r"size: expected"),
        (lambda: fastrnn.BatchNorm(3, momentum=1.5), r"momentum: expected a number in \[0, 1\]"),
        (lambda: fastrnn.BatchNorm(3, eps=-1), r"eps: expected"),
        (lambda: fastrnn.LayerNorm(3, np.nan), r"eps: expected"),
        (lambda: fastrnn.Dropout(1.1), r"probability: expected a number in \[0, 1\], got 1.1"),
        (lambda: fastrnn.Pool("min"), r"mode: expected one of 'mean', 'max', got 'min'"),
        (lambda: fastrnn.Repeat(0), r"steps: expected"),
        (lambda: fastrnn.Residual(3), r"layer: expected a layer, got int"),
        (lambda: fastrnn.Sequential([]), r"layers: expected at least 1 layer"),
        (lambda: fastrnn.Sequential([fastrnn.Last]), r"layers\[0\]: expected a layer, got Last"),
    ],
)
def test_wrong_arguments(make_wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        make_wrong()


def test_a_layer_may_be_in_a_stack_once() -> None:
    dense = fastrnn.Dense(F, F)
    for layers in (
        [dense, dense],
        [dense, fastrnn.Sequential([dense])],
        [fastrnn.Residual(dense), dense],
    ):
        with pytest.raises(ValueError, match="layers: expected different layers, got one twice"):
            fastrnn.Sequential(layers)


FLOATS = [name for name, (_, kinds) in LAYERS.items() if IDS not in kinds]
OF_ANY_SIZE = ("Activation", "Dropout", "Last", "Pool", "Repeat")


@pytest.mark.parametrize("name", FLOATS)
def test_wrong_inputs(name: str, rng: Rng) -> None:
    layer = make(name)
    kinds = LAYERS[name][1]
    x = draw(kinds[0], rng)
    wrong: list[Any] = [x[..., np.newaxis], x.ravel(), x.astype(int), x.astype(np.float16), None]
    wrong.append(x.tolist())
    if not name.startswith(OF_ANY_SIZE):
        wrong += [x[..., :-1], x.astype(np.float32)]
    if ROWS not in kinds:
        wrong.append(rng.normal(size=(F, F)))  # rows, or one sequence
    if SEQUENCES not in kinds:
        wrong.append(rng.normal(size=(T, F, F)))
    for value in wrong:
        with pytest.raises((ValueError, TypeError), match=r"^x: expected"):
            layer(value)


@pytest.mark.parametrize("name", ["Embedding", "Embedding, mask_zero", "classifier"])
def test_wrong_ids(name: str, rng: Rng) -> None:
    layer = make(name)
    ids = draw(IDS, rng)
    wrong: list[Any] = [ids.astype(float), ids > 3, ids[..., np.newaxis], ids[0, 0], ids.tolist()]
    for value in [-1, VOCABULARY]:
        wrong.append(ids.copy())
        wrong[-1][0, 1] = value
    for value in wrong:
        with pytest.raises((ValueError, TypeError), match=r"^x: expected"):
            layer(value)


@every_case
def test_wrong_lengths(name: str, kind: str, rng: Rng) -> None:
    layer = make(name)
    x = draw(kind, rng)
    wrong: list[Any] = [[T] * (B + 1), T, [[T] * B], [T + 1] * B, [-1] * B, [1.0] * B, ["a"] * B]
    if kind == ROWS:
        wrong = [[1] * B, [1] * F]
    for lengths in wrong:
        with pytest.raises((ValueError, TypeError), match=r"^lengths: expected"):
            layer(x, lengths)
    if kind == IDS:
        with pytest.raises(ValueError, match=r"^lengths: expected None for an input without steps"):
            make("Embedding")(x[0], [1] * B)


@every_case
def test_wrong_gradients(name: str, kind: str, rng: Rng) -> None:
    layer = make(name)
    output, _, _ = layer.forward(draw(kind, rng))
    for wrong in (output[..., :-1], output[:-1], output.astype(np.float32), output.tolist()):
        _, _, tape = layer.forward(draw(kind, rng))
        with pytest.raises((ValueError, TypeError), match=r"^grad_output: expected"):
            layer.backward(tape, wrong)


@every_case
def test_states_of_layers_without_one(name: str, kind: str, rng: Rng) -> None:
    layer, x = make(name), draw(kind, rng)
    stateless = layer.forward(x)[1] is None
    state = np.zeros((1, B, F))
    if stateless:
        for call in (lambda: layer.forward(x, state), lambda: layer.step(x, state)):
            with pytest.raises(ValueError, match="state: expected None"):
                call()
        with pytest.raises(ValueError, match="grad_state: expected None"):
            layer.backward(layer.forward(x)[2], None, state)
    else:
        with pytest.raises((ValueError, TypeError), match=r"^state: expected"):
            layer.forward(x, state)


def test_rows_are_no_sequence(rng: Rng) -> None:
    """A stack does not take (B, F) for one sequence, as a recurrent layer alone does."""
    rows = rng.normal(size=(B, F)).astype(np.float32)
    recurrent = fastrnn.LSTM(F, F)
    assert recurrent(rows)[0].shape == (B, F)
    for layers in (
        [recurrent],
        [fastrnn.Dense(F, F), fastrnn.GRU(F, 2, batch_first=True)],
        [fastrnn.Residual(recurrent)],
        [fastrnn.Sequential([recurrent])],
    ):
        with pytest.raises(ValueError, match=r"^x: expected \(T, B, 5\), got \(3, 5\) float32"):
            fastrnn.Sequential(layers)(rows)
    model = fastrnn.Sequential([recurrent, fastrnn.Dense(F, 1)]).compile("adam", "mse")
    with pytest.raises(ValueError, match=r"^x: expected \(n, T, 5\), got \(3, 5\) float32"):
        model.fit(rows, np.zeros((B, 1), np.float32), verbose=0)
    state = None
    for _ in range(2):
        output, state = model.layers[0].step(rows, state)
    assert output.shape == (B, F)


def test_wrong_stacks(rng: Rng) -> None:
    x = draw(SEQUENCES, rng, np.float32)
    with pytest.raises(ValueError, match=r"^layer: expected an output \(4, 3, 5\) float32"):
        fastrnn.Residual(fastrnn.Dense(F, 1))(x)
    with pytest.raises(ValueError, match=r"^layer: expected an output \(3, 5\) float32"):
        fastrnn.Residual(fastrnn.Dense(F, 1)).step(x[0])
    model = fastrnn.Sequential([fastrnn.GRU(F, 4), fastrnn.Dense(4, 2)])
    for state in (3, (None,), np.zeros((1, B, 4), np.float32)):
        with pytest.raises(ValueError, match=r"^state: expected a tuple of 2"):
            model.forward(x, state)


def test_batch_norm_of_one_row_takes_the_running_averages(rng: Rng) -> None:
    layer, x = fastrnn.BatchNorm(F), draw(SEQUENCES, rng, np.float32)
    layer(x)
    buffers = {name: array.copy() for name, array in layer.buffers.items()}
    np.testing.assert_array_equal(layer(x, [1, 0, 0]), layer.eval()(x, [1, 0, 0]))
    for name, array in layer.buffers.items():
        np.testing.assert_array_equal(array, buffers[name])


@pytest.mark.parametrize("lengths", [None, [5, 1, 0, 3]])
def test_ends_are_the_final_states(lengths: list[int] | None, rng: Rng) -> None:
    layer = fastrnn.GRU(3, 2, bidirectional=True, seed=0, dtype=np.float64)
    output, state, _ = layer.forward(rng.normal(size=(5, 4, 3)), None, lengths)
    np.testing.assert_array_equal(
        fastrnn.Ends()(output, lengths), np.concatenate(list(state), axis=1)
    )
    with pytest.raises(ValueError, match=r"x: expected \(T, B, 2H\), got \(5, 4, 3\)"):
        fastrnn.Ends()(output[:, :, :3], lengths)


@pytest.mark.parametrize("name", LAYERS)
def test_a_call_gives_what_forward_gives(name: str, rng: Rng) -> None:
    """Without a tape, in evaluation mode, and in training mode with the same masks."""
    for kind in LAYERS[name][1]:
        for training in (False, True):
            first, second = (LAYERS[name][0](np.float32).train(training) for _ in range(2))
            x = rng.integers(1, VOCABULARY, size=(T, B))
            if kind != IDS:
                x = rng.normal(size=(T, B, F) if kind == SEQUENCES else (B, F)).astype(np.float32)
            lengths = None if kind == ROWS else LENGTHS
            expected, state, _ = first.forward(x, None, lengths)
            output, final = second.apply(x, None, lengths)
            np.testing.assert_array_equal(output, expected)
            flat = [
                np.concatenate([a.ravel() for a in _arrays(s)] or [np.zeros(0)])
                for s in (state, final)
            ]
            np.testing.assert_array_equal(*flat)


def _arrays(state: Any) -> list[Array]:
    if state is None:
        return []
    return (
        [state] if isinstance(state, np.ndarray) else [a for part in state for a in _arrays(part)]
    )
