"""What a layer is besides its equations: arguments, parameters, modes, copies."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections import OrderedDict
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn.recurrent import Recurrent

Layer = Recurrent[Any]
CLASSES = [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU]


def gates(layer: Layer) -> int:
    return {"RNN": 1, "LSTM": 4, "GRU": 3}[type(layer).__name__]


def input_of(layer: Layer, T: int = 4, B: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(T, B, layer.input_size)).astype(layer.dtype)


def values(result: tuple[np.ndarray, Any]) -> list[np.ndarray]:
    """Every array of what a call returns."""
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def assert_same_results(actual: tuple[np.ndarray, Any], expected: tuple[np.ndarray, Any]) -> None:
    for a, b in zip(values(actual), values(expected), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


# Constructor arguments: name, value, error, what the message says.
INTEGER = "expected an integer >= 1"
BOOL = "expected True or False"
BAD_ARGUMENTS: list[tuple[str, Any, type[Exception], str]] = [
    ("input_size", 0, ValueError, f"{INTEGER}, got 0"),
    ("input_size", 2.0, TypeError, f"{INTEGER}, got 2.0"),
    ("hidden_size", -3, ValueError, f"{INTEGER}, got -3"),
    ("hidden_size", "4", TypeError, f"{INTEGER}, got '4'"),
    ("num_layers", 0, ValueError, f"{INTEGER}, got 0"),
    ("num_layers", True, TypeError, f"{INTEGER}, got True"),
    ("num_layers", np.ones(2), TypeError, f"{INTEGER}, got array([1., 1.])"),
    ("bias", 1, TypeError, f"{BOOL}, got 1"),
    ("batch_first", "yes", TypeError, f"{BOOL}, got 'yes'"),
    ("dropout", 1.5, ValueError, "expected a number in [0, 1], got 1.5"),
    ("dropout", -0.1, ValueError, "expected a number in [0, 1], got -0.1"),
    ("dropout", math.nan, ValueError, "expected a number in [0, 1], got nan"),
    ("dropout", False, TypeError, "expected a number in [0, 1], got False"),
    ("dropout", None, TypeError, "expected a number in [0, 1], got None"),
    ("bidirectional", None, TypeError, f"{BOOL}, got None"),
    ("merge", "max ", ValueError, "'sum', 'mean', 'max', 'mul', got 'max '"),
    ("residual", 0, TypeError, f"{BOOL}, got 0"),
    ("init", "xavier", ValueError, "'glorot', 'he', 'orthogonal'"),
    ("init", None, ValueError, "got None"),
    ("seed", -1, ValueError, "expected an integer >= 0, a numpy.random.Generator or None, got -1"),
    ("seed", 1.5, TypeError, "got 1.5"),
    ("dtype", np.float16, ValueError, "expected float32 or float64, got <class 'numpy.float16'>"),
    ("dtype", "int32", ValueError, "expected float32 or float64, got 'int32'"),
    ("dtype", "float99", ValueError, "expected float32 or float64, got 'float99'"),
    ("dtype", None, ValueError, "expected float32 or float64, got None"),
    ("device", "gpu", ValueError, "expected 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ..., got 'gpu'"),
    ("allow_tf32", True, ValueError, "expected False but for device='cuda' and float32, got True"),
]
BAD_OWN_ARGUMENTS: list[tuple[type[Layer], str, Any, type[Exception], str]] = [
    (fastrnn.RNN, "nonlinearity", "gelu", ValueError, "'tanh', 'relu', 'sigmoid', got 'gelu'"),
    (fastrnn.LSTM, "proj_size", 16, ValueError, "expected an integer in [0, 16), got 16"),
    (fastrnn.LSTM, "proj_size", -1, ValueError, "expected an integer in [0, 16), got -1"),
    (fastrnn.LSTM, "proj_size", 1.0, TypeError, "expected an integer in [0, 16), got 1.0"),
    (fastrnn.LSTM, "peephole", 1, TypeError, f"{BOOL}, got 1"),
    (fastrnn.LSTM, "forget_bias", "1", TypeError, "expected a number, got '1'"),
    (fastrnn.LSTM, "forget_bias", math.nan, ValueError, "expected a number, got nan"),
    (fastrnn.LSTM, "init", "identity", ValueError, "got 'identity'"),
    (fastrnn.GRU, "init", "identity", ValueError, "got 'identity'"),
    (fastrnn.GRU, "reset_after", 0, TypeError, f"{BOOL}, got 0"),
]


@pytest.mark.parametrize(
    ("cls", "name", "value", "error", "message"),
    [(cls, *case) for cls in CLASSES for case in BAD_ARGUMENTS] + BAD_OWN_ARGUMENTS,
)
def test_bad_argument(
    cls: Any, name: str, value: Any, error: type[Exception], message: str
) -> None:
    arguments = {"input_size": 8, "hidden_size": 16} | {name: value}
    with pytest.raises(error) as caught:
        cls(**arguments)
    assert str(caught.value).startswith(f"{name}: expected ")
    assert message in str(caught.value)


def test_forget_bias_needs_bias() -> None:
    with pytest.raises(ValueError, match=r"forget_bias: expected None for bias=False, got 1\.0"):
        fastrnn.LSTM(8, 16, bias=False, forget_bias=1)


@pytest.mark.parametrize("cls", CLASSES)
def test_options_of_another_cell_are_unknown(cls: Any) -> None:
    own = {fastrnn.RNN: "nonlinearity", fastrnn.LSTM: "peephole", fastrnn.GRU: "reset_after"}
    for other, name in own.items():
        if other is not cls:
            with pytest.raises(TypeError, match=name):
                cls(8, 16, **{name: True})


@pytest.mark.parametrize("cls", CLASSES)
def test_numpy_scalars_are_numbers(cls: Any) -> None:
    layer = cls(np.int64(8), np.int32(16), np.uint8(2), bias=np.True_, dropout=np.float32(0.5))
    assert repr(layer) == f"{cls.__name__}(8, 16, num_layers=2, dropout=0.5)"


@pytest.mark.parametrize("dtype", [np.float32, "float32", "f4", np.dtype(np.float32)])
def test_dtype_spellings(dtype: Any) -> None:
    layer = fastrnn.GRU(8, 16, dtype=dtype)
    assert layer.dtype == np.float32
    assert {array.dtype for array in layer.parameters.values()} == {layer.dtype}


def test_positional_order_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    common = (8, 16, 2, False, True, 0.25, True)
    for name, arguments in {
        "RNN": (8, 16, 2, "relu", False, True, 0.25, True),
        "LSTM": (*common, 4),
        "GRU": common,
    }.items():
        ours, theirs = getattr(fastrnn, name)(*arguments), getattr(torch.nn, name)(*arguments)
        for attribute in (
            *("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"),
            *("bidirectional", "proj_size"),
        ):
            assert getattr(ours, attribute) == getattr(theirs, attribute), (name, attribute)


@pytest.mark.parametrize("cls", CLASSES)
def test_dropout_of_a_single_layer_warns_at_the_caller(cls: Any) -> None:
    with pytest.warns(UserWarning, match="dropout: .*num_layers=1") as caught:
        cls(8, 16, dropout=0.5)
    assert caught[0].filename == __file__


# repr


@pytest.mark.parametrize(
    "text",
    [
        "RNN(8, 16)",
        "RNN(8, 16, nonlinearity='relu', residual=True)",
        "LSTM(8, 16, proj_size=4, num_layers=2, bias=False, batch_first=True, dropout=0.5)",
        "LSTM(8, 16, peephole=True, dtype='float64')",
        "GRU(8, 16, bidirectional=True, merge='sum', reset_after=False)",
    ],
)
def test_repr_is_the_call(text: str) -> None:
    layer = eval(text, vars(fastrnn).copy())
    assert repr(layer) == text


def test_repr_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    options: dict[str, Any] = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5}
    for ours, theirs in (
        (fastrnn.RNN(8, 16), torch.nn.RNN(8, 16)),
        (fastrnn.LSTM(8, 16, **options, proj_size=4), torch.nn.LSTM(8, 16, **options, proj_size=4)),
        (fastrnn.GRU(8, 16, bidirectional=True), torch.nn.GRU(8, 16, bidirectional=True)),
    ):
        assert repr(ours) == repr(theirs)


# Initial parameters


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("init", ["torch", "glorot", "he", "orthogonal"])
def test_seed_decides_the_parameters(cls: Any, init: str) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "init": init}
    first, again, other = (cls(8, 16, seed=seed, **options) for seed in (3, 3, 4))
    double = cls(8, 16, seed=3, dtype=np.float64, **options)
    for name, array in first.parameters.items():
        np.testing.assert_array_equal(array, again.parameters[name], strict=True)
        np.testing.assert_array_equal(array, double.parameters[name].astype(np.float32))
        assert array.flags.c_contiguous
        assert array.flags.writeable
        if not (name.startswith("bias") and init != "torch"):
            assert not np.array_equal(array, other.parameters[name])


def test_seed_takes_a_generator() -> None:
    seeded = fastrnn.GRU(8, 16, seed=3)
    generator = np.random.default_rng(3)
    first, second = fastrnn.GRU(8, 16, seed=generator), fastrnn.GRU(8, 16, seed=generator)
    weights = [layer.parameters["weight_ih_l0"] for layer in (seeded, first, second)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[1], weights[2])


def test_no_seed_is_fresh_entropy() -> None:
    first, second = fastrnn.GRU(8, 16), fastrnn.GRU(8, 16)
    assert not np.array_equal(first.parameters["weight_ih_l0"], second.parameters["weight_ih_l0"])


def assert_uniform(array: np.ndarray, bound: float) -> None:
    """Mean and variance within 5 standard errors of U(-bound, bound), which is reached."""
    n = array.size
    assert abs(array.mean()) < 5 * bound / math.sqrt(3 * n)
    # The variance of x² is bound⁴ · (1/5 - 1/9).
    assert abs((array**2).mean() / bound**2 - 1 / 3) < 5 * math.sqrt((1 / 5 - 1 / 9) / n)
    assert 0.99 * bound < np.abs(array).max() <= bound * (1 + 1e-6)


def assert_normal(array: np.ndarray, std: float) -> None:
    """Mean and variance within 5 standard errors of N(0, std²), with tails."""
    n = array.size
    assert abs(array.mean()) < 5 * std / math.sqrt(n)
    assert abs((array**2).mean() / std**2 - 1) < 5 * math.sqrt(2 / n)
    assert np.abs(array).max() > 3 * std


@pytest.mark.parametrize("cls", CLASSES)
def test_init_torch(cls: Any) -> None:
    layer = cls(48, 400, num_layers=2, bidirectional=True, seed=0)
    for array in layer.parameters.values():
        assert_uniform(array, 1 / 20)


@pytest.mark.parametrize("init", ["glorot", "he"])
@pytest.mark.parametrize("cls", CLASSES)
def test_init_glorot_and_he_per_gate(cls: Any, init: str) -> None:
    layer = cls(60, 80, num_layers=2, bidirectional=True, init=init, seed=0)
    for name, array in layer.parameters.items():
        if name.startswith("bias"):
            assert not array.any()
            continue
        for block in np.split(array, gates(layer)):
            rows, columns = block.shape
            assert rows == 80
            if init == "glorot":
                assert_uniform(block, math.sqrt(6 / (rows + columns)))
            else:
                assert_normal(block, math.sqrt(2 / columns))


@pytest.mark.parametrize("cls", CLASSES)
def test_init_orthogonal_per_gate(cls: Any) -> None:
    layer = cls(60, 80, num_layers=2, init="orthogonal", seed=0, dtype=np.float64)
    for name, array in layer.parameters.items():
        if name.startswith("bias"):
            assert not array.any()
            continue
        for block in np.split(array, gates(layer)):
            if name.startswith("weight_hh"):
                np.testing.assert_allclose(block @ block.T, np.eye(80), atol=1e-12)
            else:
                assert_uniform(block, math.sqrt(6 / (block.shape[1] + 80)))


def test_init_orthogonal_is_uniformly_distributed() -> None:
    # Of a uniformly distributed orthogonal matrix, the trace has mean 0 and variance 1. A bare QR
    # has a negative diagonal.
    layer = fastrnn.LSTM(1, 4, num_layers=100, init="orthogonal", seed=0)
    blocks = [
        block
        for name, array in layer.parameters.items()
        if name.startswith("weight_hh")
        for block in np.split(array, 4)
    ]
    assert abs(np.trace(blocks, axis1=1, axis2=2).mean()) < 5 / math.sqrt(len(blocks))


def test_init_orthogonal_projection() -> None:
    layer = fastrnn.LSTM(8, 32, proj_size=5, init="orthogonal", seed=0, dtype=np.float64)
    for block in np.split(layer.parameters["weight_hh_l0"], 4):  # (32, 5)
        np.testing.assert_allclose(block.T @ block, np.eye(5), atol=1e-12)
    projection = layer.parameters["weight_hr_l0"]  # (5, 32)
    np.testing.assert_allclose(projection @ projection.T, np.eye(5), atol=1e-12)


@pytest.mark.parametrize("init", ["glorot", "he", "orthogonal"])
def test_peepholes_start_at_zero_but_in_torchs_rule(init: str) -> None:
    assert not fastrnn.LSTM(8, 16, peephole=True, init=init).parameters["weight_peep_l0"].any()
    assert_uniform(fastrnn.LSTM(8, 900, peephole=True, seed=0).parameters["weight_peep_l0"], 1 / 30)


def test_init_identity() -> None:
    layer = fastrnn.RNN(60, 80, nonlinearity="relu", init="identity", bidirectional=True, seed=0)
    for suffix in ("", "_reverse"):
        np.testing.assert_array_equal(layer.parameters[f"weight_hh_l0{suffix}"], np.eye(80))
        assert_normal(layer.parameters[f"weight_ih_l0{suffix}"], 0.001)
        assert not layer.parameters[f"bias_ih_l0{suffix}"].any()
        assert not layer.parameters[f"bias_hh_l0{suffix}"].any()


@pytest.mark.parametrize("init", ["torch", "orthogonal"])
def test_forget_bias(init: str) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "init": init, "seed": 0}
    layer, plain = fastrnn.LSTM(8, 16, forget_bias=1.5, **options), fastrnn.LSTM(8, 16, **options)
    biases = 0
    for name, array in layer.parameters.items():
        if name.startswith("bias"):
            biases += 1
            expected = 1.5 if name.startswith("bias_ih") else 0
            np.testing.assert_array_equal(array[16:32], expected)
            array[16:32] = plain.parameters[name][16:32]
        np.testing.assert_array_equal(array, plain.parameters[name])
    assert biases == 8


# Modes


@pytest.mark.parametrize("cls", CLASSES)
def test_training_mode_sees_changes_in_place(cls: Any) -> None:
    layer = cls(8, 16, seed=0)
    assert layer.training
    x = input_of(layer)
    before, before_step = layer(x), layer.step(x[0])
    layer.parameters["weight_ih_l0"][:] *= 2
    after, after_step = layer(x), layer.step(x[0])
    assert not np.array_equal(before[0], after[0])
    assert not np.array_equal(before_step[0], after_step[0])
    fresh = cls(8, 16)
    fresh.load_state_dict(layer.state_dict())
    assert_same_results(after, fresh(x))
    assert_same_results(after_step, fresh.step(x[0]))


@pytest.mark.parametrize("cls", CLASSES)
def test_evaluation_mode_is_read_only(cls: Any) -> None:
    layer = cls(8, 16, seed=0)
    array = layer.parameters["weight_ih_l0"]
    training = layer(input_of(layer))
    assert layer.eval() is layer
    assert not layer.training
    assert_same_results(layer(input_of(layer)), training)
    for name in layer.parameters:
        with pytest.raises(ValueError, match="read-only"):
            layer.parameters[name][:] = 0
    assert layer.train() is layer
    assert layer.training
    array[:] = 0
    assert layer.parameters["weight_ih_l0"] is array
    assert not np.array_equal(layer(input_of(layer))[0], training[0])


def test_modes_are_not_set_by_assignment() -> None:
    layer = fastrnn.GRU(8, 16)
    with pytest.raises(AttributeError):
        layer.training = False  # type: ignore[misc]
    with pytest.raises(TypeError, match="mode: expected True or False, got 'eval'"):
        layer.train("eval")  # type: ignore[arg-type]
    assert layer.training


def test_parameters_are_not_replaced() -> None:
    layer = fastrnn.GRU(8, 16)
    with pytest.raises(TypeError):
        layer.parameters["weight_ih_l0"] = np.zeros((48, 8))  # type: ignore[index]


def test_dropout_masks() -> None:
    options: dict[str, Any] = {"num_layers": 2, "dropout": 0.5}
    layer = fastrnn.GRU(8, 16, seed=0, **options)
    twin = fastrnn.GRU(8, 16, seed=0, **options)
    x = input_of(layer)
    first, second = layer(x), layer(x)
    assert not np.array_equal(first[0], second[0])
    with pytest.raises(ValueError, match="x: expected"):
        twin(x[..., :3])  # a failed call does not use up a mask
    assert_same_results(twin(x), first)
    assert_same_results(copy.deepcopy(twin)(x), second)
    plain = fastrnn.GRU(8, 16, num_layers=2)
    plain.load_state_dict(layer.state_dict())
    assert_same_results(layer.step(x[0]), plain.step(x[0]))
    assert_same_results(layer.eval()(x), plain(x))


def test_dropout_of_one_leaves_the_first_layer_only() -> None:
    layer = fastrnn.GRU(8, 16, num_layers=2, dropout=1.0, seed=0)
    x = input_of(layer)
    output, h = layer(x)
    blind_output, blind_h = layer(np.zeros_like(x))
    np.testing.assert_array_equal(output, blind_output)
    np.testing.assert_array_equal(h[1], blind_h[1])
    assert not np.array_equal(h[0], blind_h[0])
    assert np.isfinite(output).all()


# Streaming


@pytest.mark.parametrize("cls", CLASSES)
def test_step_takes_what_numpy_can_view(cls: Any) -> None:
    torch = pytest.importorskip("torch")
    layer = cls(8, 16, seed=0).eval()
    x = input_of(layer)[0]
    output, state = layer.step(x)
    lstm = cls is fastrnn.LSTM
    as_tensors = tuple(map(torch.from_numpy, state)) if lstm else torch.from_numpy(state)
    assert_same_results(layer.step(torch.from_numpy(x)), (output, state))
    assert_same_results(layer.step(memoryview(x)), (output, state))
    assert_same_results(layer.step(torch.from_numpy(x), as_tensors), layer.step(x, state))


@pytest.mark.parametrize("cls", CLASSES)
def test_what_numpy_would_copy_is_refused(cls: Any) -> None:
    layer = cls(8, 16, dtype=np.float64).eval()
    with pytest.raises(TypeError, match="x: expected an array, got list"):
        layer.step([0.0] * 8)
    with pytest.raises(TypeError, match="x: expected an array, got list"):
        layer([[0.0] * 8])
    with pytest.raises(TypeError, match=r"state: expected an array, got (float|str)"):
        layer(np.zeros((4, 8)), ("h", "c") if cls is fastrnn.LSTM else 0.0)


@pytest.mark.parametrize("cls", CLASSES)
def test_step_has_no_direction_to_the_past(cls: Any) -> None:
    with pytest.raises(ValueError, match="bidirectional"):
        cls(8, 16, bidirectional=True).step(np.zeros((2, 8), np.float32))


# State dict


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_state_dict_is_torchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    if name == "LSTM":
        options["proj_size"] = 4
    theirs = getattr(torch.nn, name)(8, 16, **options)
    ours = getattr(fastrnn, name)(8, 16, **options)
    assert list(ours.state_dict()) == list(ours.parameters) == list(theirs.state_dict())

    ours.load_state_dict(theirs.state_dict())
    for key, array in ours.parameters.items():
        np.testing.assert_array_equal(array, theirs.state_dict()[key].numpy(), strict=True)

    theirs.load_state_dict(
        {
            key: torch.from_numpy(array)
            for key, array in getattr(fastrnn, name)(8, 16, **options).state_dict().items()
        }
    )
    ours.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(input_of(ours)))[0].numpy()
    np.testing.assert_allclose(ours(input_of(ours))[0], expected, atol=1e-6)


def test_state_dict_is_a_copy() -> None:
    layer = fastrnn.GRU(8, 16).eval()
    before = layer.parameters["bias_ih_l0"].copy()
    layer.state_dict()["bias_ih_l0"][:] = 7
    np.testing.assert_array_equal(layer.parameters["bias_ih_l0"], before)


@pytest.mark.parametrize("training", [True, False])
def test_load_state_dict_takes_effect_and_keeps_mode_and_arrays(training: bool) -> None:
    source, layer = fastrnn.LSTM(8, 16), fastrnn.LSTM(8, 16).train(training)
    live = dict(layer.parameters)
    values = source.state_dict()
    assert layer.load_state_dict(OrderedDict(reversed(values.items()))) == ([], [])
    assert_same_results(layer(input_of(layer)), source(input_of(layer)))
    assert layer.training == training
    for name, array in layer.parameters.items():
        assert array is live[name]
        assert array.flags.writeable == training
    values["bias_ih_l0"][:] = 7  # nothing is shared with what was given
    assert not (layer.parameters["bias_ih_l0"] == 7).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_load_state_dict_casts_tensors(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.GRU(8, 16).to(getattr(torch, dtype))
    layer = fastrnn.GRU(8, 16)
    layer.load_state_dict(dict(theirs.named_parameters()))  # these have gradients
    for name, parameter in theirs.named_parameters():
        expected = parameter.detach().float().numpy()
        np.testing.assert_array_equal(layer.parameters[name], expected, strict=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_load_state_dict_casts_arrays(dtype: Any) -> None:
    source, layer = fastrnn.GRU(8, 16, dtype=np.float64), fastrnn.GRU(8, 16)
    given = {name: array.astype(dtype) for name, array in source.parameters.items()}
    given["weight_ih_l0"] = np.asfortranarray(given["weight_ih_l0"])
    given["weight_hh_l0"].flags.writeable = False
    layer.load_state_dict(given)
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, given[name].astype(np.float32), strict=True)


def test_load_state_dict_names_everything_that_is_wrong() -> None:
    layer = fastrnn.GRU(8, 16)
    bad: dict[str, Any] = layer.state_dict()
    del bad["bias_hh_l0"], bad["weight_hh_l0"]
    bad |= {"weight_ih_l0": np.zeros((48, 7)), "bias_ih_l0": np.zeros(16)}
    bad |= {"weight_ih_l1": np.zeros((48, 16)), "head.bias": np.zeros(10)}
    with pytest.raises(ValueError, match="state_dict: ") as caught:
        layer.load_state_dict(bad)
    assert str(caught.value) == (
        "state_dict: missing weight_hh_l0, bias_hh_l0; unexpected weight_ih_l1, head.bias; "
        "weight_ih_l0: expected (48, 8), got (48, 7); bias_ih_l0: expected (48,), got (16,)"
    )


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("bias_hh_l0", np.zeros((48, 1)), ValueError),
        ("bias_hh_l0", np.zeros(48, int), TypeError),
        ("bias_hh_l0", np.zeros(48, complex), TypeError),
        ("bias_hh_l0", None, TypeError),
    ],
)
def test_failed_load_changes_nothing(
    strict: bool, training: bool, key: str, value: Any, error: type[Exception]
) -> None:
    layer = fastrnn.GRU(8, 16).train(training)
    before, result = layer.state_dict(), layer(input_of(layer))
    with pytest.raises(error, match=rf"{key}: expected"):
        layer.load_state_dict(fastrnn.GRU(8, 16).state_dict() | {key: value}, strict=strict)
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before[name])
        assert array.flags.writeable == training
    assert layer.training == training
    assert_same_results(layer(input_of(layer)), result)


def test_load_state_dict_needs_a_mapping() -> None:
    layer = fastrnn.GRU(8, 16)
    with pytest.raises(TypeError, match="state_dict: expected a mapping, got GRU"):
        layer.load_state_dict(fastrnn.GRU(8, 16))  # type: ignore[arg-type]


def test_load_state_dict_not_strict() -> None:
    layer = fastrnn.GRU(8, 16)
    before = layer.state_dict()
    given = fastrnn.GRU(8, 16).state_dict()
    del given["bias_ih_l0"]
    keys = layer.load_state_dict(given | {"head.bias": np.zeros(10)}, strict=False)
    assert keys.missing_keys == ["bias_ih_l0"]
    assert keys.unexpected_keys == ["head.bias"]
    np.testing.assert_array_equal(layer.parameters["bias_ih_l0"], before["bias_ih_l0"])
    np.testing.assert_array_equal(layer.parameters["bias_hh_l0"], given["bias_hh_l0"])


# Copies


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, "pickle"])
@pytest.mark.parametrize(
    "text",
    [
        "RNN(8, 16, nonlinearity='sigmoid')",
        "LSTM(8, 16, proj_size=4, num_layers=2, bidirectional=True, merge='sum')",
        "GRU(8, 16, bias=False, batch_first=True, dtype='float64')",
    ],
)
def test_copies_are_equal_and_independent(text: str, duplicate: Any, training: bool) -> None:
    layer = eval(text, vars(fastrnn).copy()).train(training)
    twin = pickle.loads(pickle.dumps(layer)) if duplicate == "pickle" else duplicate(layer)
    assert repr(twin) == text
    assert twin.training == training
    expected = layer(input_of(layer))
    assert_same_results(twin(input_of(layer)), expected)
    for name, array in twin.parameters.items():
        assert array.flags.writeable == training
        assert not np.shares_memory(array, layer.parameters[name])
    twin.train()
    twin.parameters["weight_ih_l0"][:] = 0
    assert_same_results(layer(input_of(layer)), expected)
    assert not np.array_equal(twin(input_of(layer))[0], expected[0])


class Named(fastrnn.GRU):
    """A user's subclass with an attribute of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(8, 16)
        self.name = name


def test_a_subclass_survives_pickling() -> None:
    layer = Named("encoder")
    twin = pickle.loads(pickle.dumps(layer))
    assert (type(twin), twin.name) == (Named, "encoder")
    assert_same_results(twin(input_of(layer)), layer(input_of(layer)))


# Module functions


def test_threads() -> None:
    fastrnn.set_num_threads(1)
    assert fastrnn.get_num_threads() == 1
    for bad, error in ((0, ValueError), (-2, ValueError), (1.0, TypeError), ("2", TypeError)):
        with pytest.raises(error, match=r"n: expected an integer in \[1, 4097\), got"):
            fastrnn.set_num_threads(bad)  # type: ignore[arg-type]
    assert fastrnn.get_num_threads() == 1


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    fastrnn.set_num_threads(1)
    fastrnn.show_config()
    text = capsys.readouterr().out
    assert text.startswith(f"fastrnn {fastrnn.__version__}\n")
    assert re.search(r"^  threads +1$", text, re.MULTILINE)
    assert re.search(r"^  instructions +(\S+) \(usable here: .*\1", text, re.MULTILINE)
