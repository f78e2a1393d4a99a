"""Bad gradients raise and change nothing; any layout gives the same bits; results stay."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import fastrnn
import numpy as np
import pytest
from parity import (
    FORMS,
    Array,
    Case,
    arrays,
    assert_same_bits,
    assert_same_gradients,
    draw_case,
    make_layer,
    map_state,
    name_gradients,
)
from test_inputs import LAYOUTS

Rng = np.random.Generator

forms = pytest.mark.parametrize(("cell", "form"), FORMS, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


# ---- arrays --------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@forms
def test_any_layout_gives_the_same_bits(
    cell: str, form: dict[str, Any], layout: str, batch_first: bool, dtype: str, rng: Rng
) -> None:
    change = LAYOUTS[layout]
    options = {"num_layers": 2, "residual": True, "dtype": dtype, "batch_first": batch_first}
    options |= form
    case = draw_case(cell, rng, T=5, B=4, input_size=18, hidden_size=18, ragged=True, **options)
    expected = case.gradients()
    inputs = {**case.inputs, "x": change(case.inputs["x"])}
    inputs["state"] = map_state(change, case.inputs["state"])
    grads = {
        "grad_output": change(case.grads["grad_output"]),
        "grad_state": map_state(change, case.grads["grad_state"]),
    }
    actual = Case(case.layer, inputs, grads).gradients()
    assert_same_gradients(actual, expected)
    assert all(gradient.flags.c_contiguous for gradient in actual.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("inputs", "hidden"), [(1, 5), (5, 1), (1, 1)])
def test_any_layout_of_single_columns(layout: str, inputs: int, hidden: int, rng: Rng) -> None:
    """NumPy gives an axis of one element any stride."""
    change = LAYOUTS[layout]
    case = draw_case("gru", rng, T=5, B=4, input_size=inputs, hidden_size=hidden)
    expected = case.gradients()
    grads = {name: change(value) for name, value in case.grads.items()}
    assert_same_gradients(
        Case(case.layer, {**case.inputs, "x": change(case.inputs["x"])}, grads).gradients(),
        expected,
    )


def test_broadcast_arrays(rng: Rng) -> None:
    """As of the loss ``output.sum()``."""
    case = draw_case("lstm", rng, T=5, B=4, input_size=9, hidden_size=18)
    one = np.float32(1)
    x = np.broadcast_to(rng.standard_normal((5, 1, 9), np.float32), (5, 4, 9))
    h, c = (np.broadcast_to(rng.standard_normal(18, np.float32), (1, 4, 18)) for _ in range(2))
    broadcast = Case(
        case.layer,
        {"x": x},
        {"grad_output": np.broadcast_to(one, (5, 4, 18)), "grad_state": (h, c)},
    )
    whole = Case(
        case.layer,
        {"x": x.copy()},
        {"grad_output": np.ones((5, 4, 18), np.float32), "grad_state": (h.copy(), c.copy())},
    )
    assert_same_gradients(broadcast.gradients(), whole.gradients())


def test_torch_tensors(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    case = draw_case("lstm", rng, T=5, B=4, input_size=9, hidden_size=18)
    expected = case.gradients()

    def tensor(array: Array) -> Any:
        return torch.from_numpy(array.copy())

    tensors = Case(
        case.layer,
        {"x": tensor(case.inputs["x"]), "state": map_state(tensor, case.inputs["state"])},
        {
            "grad_output": tensor(case.grads["grad_output"]),
            "grad_state": map_state(tensor, case.grads["grad_state"]),
        },
    )
    actual = tensors.gradients()
    assert all(type(gradient) is np.ndarray for gradient in actual.values())
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("layout", ["fortran", "spread", "read-only"])
def test_a_tape_keeps_its_input_alive(layout: str, rng: Rng) -> None:
    """Of the caller's arrays, only a contiguous `x` has to stay as it is."""
    case = draw_case("gru_reset_before", rng, T=9, B=40, input_size=30, hidden_size=18, ragged=True)
    expected = case.gradients()
    given = {name: np.array(value) for name, value in case.inputs.items() if name != "x"}
    tape = case.layer.forward(LAYOUTS[layout](case.inputs["x"]), **given)[2]
    given["state"][:] = np.nan
    given["lengths"][:] = 5
    given["resets"][:] ^= True
    fill = [np.full(case.inputs["x"].shape, np.nan, np.float32) for _ in range(20)]
    assert len(fill) == 20
    assert_same_gradients(case.backward(tape), expected)


@pytest.mark.parametrize("T", [0, 1, 5])
@forms
def test_inputs_are_neither_modified_nor_returned(
    cell: str, form: dict[str, Any], T: int, rng: Rng
) -> None:
    case = draw_case(
        cell, rng, T=T, B=3, input_size=18, hidden_size=18, num_layers=2, residual=True, **form
    )
    case.inputs.update(lengths=np.array([T, 0, T // 2]), resets=rng.random((T, 3)) < 0.3)
    given = case.given()
    before = [value.copy() for value in given]
    output, final, tape = case.layer.forward(**case.inputs)
    forward = [output, *arrays(final)]
    forward_before = [value.copy() for value in forward]

    gradients = [*case.backward(tape, retain=True).values(), *case.backward(tape).values()]

    for value, copied in zip(given + forward, before + forward_before, strict=True):
        assert_same_bits(value, copied)
    for number, gradient in enumerate(gradients):
        others = gradients[number + 1 :] + given + forward
        assert not any(np.shares_memory(gradient, other) for other in others)


# Sizes below and above those from which on memory is taken from a pool of the layer's.
MEMORY_SHAPES = ((3, 2, 4, 18), (40, 20, 50, 70), (130, 32, 70, 64))


@pytest.mark.parametrize(("T", "B", "inputs", "H"), MEMORY_SHAPES)
def test_forward_returns_a_read_only_output(T: int, B: int, inputs: int, H: int, rng: Rng) -> None:
    layer = make_layer("lstm", inputs, H, rng)
    x = rng.standard_normal((T, B, inputs), np.float32)
    output, final, tape = layer.forward(x)
    with pytest.raises(ValueError, match="read-only"):
        output[0, 0, 0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        output.setflags(write=True)
    gradients = layer.backward(tape, output, final)
    assert not output.flags.writeable
    for array in (*final, *name_gradients(gradients).values()):
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.flags.aligned
        array += 1


@pytest.mark.parametrize(
    "make",
    [
        lambda tape: type(tape)(),
        lambda tape: type(tape).__new__(type(tape)),
        lambda tape: object.__new__(type(tape)),
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
    ],
    ids=["constructor", "__new__", "object.__new__", "copy", "deepcopy", "pickle"],
)
def test_only_forward_makes_tapes(make: Callable[[Any], Any], rng: Rng) -> None:
    layer = make_layer("gru", 3, 5, rng)
    _, _, tape = layer.forward(np.zeros((4, 2, 3), np.float32))
    with pytest.raises(TypeError, match="Tape"):
        make(tape)
    assert layer.backward(tape).input is not None


def test_masked_gradients_are_refused(rng: Rng) -> None:
    layer = make_layer("gru", 3, 5, rng)
    output, h, tape = layer.forward(np.zeros((4, 2, 3), np.float32))
    with pytest.raises(TypeError, match="grad_output: expected an array, got a masked one"):
        layer.backward(tape, np.ma.masked_invalid(output))
    with pytest.raises(TypeError, match=r"grad_state.*: expected an array, got a masked one"):
        layer.backward(tape, output, np.ma.masked_invalid(h))


@pytest.mark.parametrize(("T", "B", "inputs", "H"), MEMORY_SHAPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_results_outlive_the_next_steps(
    cell: str, T: int, B: int, inputs: int, H: int, rng: Rng
) -> None:
    """A layer takes the memory of results for new ones, but only once they are gone."""
    case = draw_case(cell, rng, T=T, B=B, input_size=inputs, hidden_size=H)
    kept: list[tuple[Array, Array]] = []
    for number in range(7):
        case.inputs["x"] = rng.standard_normal((T, B, inputs), np.float32)
        output, final, tape = case.layer.forward(**case.inputs)
        arrays_now = [output, *arrays(final)]
        gradients = case.backward(tape, retain=number % 2 == 1)
        if number % 2:
            again = case.backward(tape)
            assert_same_gradients(again, gradients)
            arrays_now += again.values()
        arrays_now += gradients.values()
        del output, final, gradients, tape
        if number != 3:  # all of one step go, to be taken again by the next
            kept += [(array, array.copy()) for array in arrays_now]
        del arrays_now
        for array, copied in kept:
            assert_same_bits(array, copied)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l1"])
def test_a_view_of_one_gradient_outlives_the_next_steps(name: str, rng: Rng) -> None:
    """All gradients of a call lie in one block, which one view of one of them holds."""
    case = draw_case("lstm", rng, T=40, B=20, input_size=50, hidden_size=70, num_layers=2)
    view = case.gradients()[name].T[3:30:2]
    copied = view.copy()
    for _ in range(6):
        case.inputs["x"] = rng.standard_normal(case.inputs["x"].shape, np.float32)
        case.gradients()
        assert_same_bits(view, copied)


@pytest.mark.parametrize("large", [False, True])
def test_views_of_output_and_input_gradient_outlive_the_next_steps(large: bool, rng: Rng) -> None:
    T, B = (130, 32) if large else (3, 2)
    case = draw_case("gru", rng, T=T, B=B, input_size=70, hidden_size=64)
    output, _, tape = case.layer.forward(**case.inputs)
    assert (output.nbytes > 1 << 17) == large
    views = [output[1:, ::2], case.backward(tape)["x"][..., 1]]
    copied = [view.copy() for view in views]
    del output, tape
    for _ in range(6):
        case.inputs["x"] = rng.standard_normal(case.inputs["x"].shape, np.float32)
        case.gradients()
        for view, copy_of_it in zip(views, copied, strict=True):
            assert_same_bits(view, copy_of_it)


def test_results_outlive_the_layer(rng: Rng) -> None:
    case = draw_case("lstm", rng, T=130, B=32, input_size=70, hidden_size=64)
    output, _, tape = case.layer.forward(**case.inputs)
    open_tape = case.forward()
    gradients = case.backward(tape)
    expected, expected_output = copy.deepcopy(gradients), output.copy()
    del case, tape
    gc.collect()
    fill = [np.full((130, 32, 70), np.nan, np.float32) for _ in range(8)]
    assert len(fill) == 8
    assert_same_gradients(gradients, expected)
    assert_same_bits(output, expected_output)
    assert open_tape.nbytes > 0
    del open_tape


def test_a_tape_tells_its_size_and_state(rng: Rng) -> None:
    layer = make_layer("lstm", 9, 64, rng)
    x = rng.standard_normal((10, 4, 9), np.float32)
    tape = layer.forward(x)[2]
    assert isinstance(tape, fastrnn.Tape)
    # Four gates and the cell state of 64 units in every step of every row, at least.
    assert tape.nbytes >= 10 * 4 * 5 * 64 * 4
    assert layer.forward(x[:5])[2].nbytes < tape.nbytes
    assert layer.forward(x, lengths=[10, 1, 0, 2])[2].nbytes < tape.nbytes / 2
    assert not tape.consumed
    assert str(tape.nbytes) in repr(tape)
    layer.backward(tape)
    assert tape.consumed
    assert tape.nbytes == 0
    assert "consumed" in repr(tape)


# ---- errors --------------------------------------------------------------------------------------

T, B, INPUTS, H, P = 5, 3, 8, 6, 4


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


# To a GRU of two layers: what is passed, the error, and the whole message.
BAD_GRADIENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "output features": (
        {"grad_output": zeros(T, B, 7)},
        ValueError,
        "grad_output: expected (5, 3, 6) float32, got (5, 3, 7) float32",
    ),
    "output steps": (
        {"grad_output": zeros(4, B, H)},
        ValueError,
        "grad_output: expected (5, 3, 6) float32, got (4, 3, 6) float32",
    ),
    "output batch first": (
        {"grad_output": zeros(B, T, H)},
        ValueError,
        "grad_output: expected (5, 3, 6) float32, got (3, 5, 6) float32",
    ),
    "output unbatched": (
        {"grad_output": zeros(T, H)},
        ValueError,
        "grad_output: expected (5, 3, 6) float32, got (5, 6) float32",
    ),
    "output rank 0": (
        {"grad_output": np.float32(1)},
        ValueError,
        "grad_output: expected (5, 3, 6) float32, got () float32",
    ),
    "output float64": (
        {"grad_output": zeros(T, B, H, dtype=float)},
        TypeError,
        "grad_output: expected (5, 3, 6) float32, got (5, 3, 6) float64",
    ),
    "output int": (
        {"grad_output": zeros(T, B, H, dtype=np.int32)},
        TypeError,
        "grad_output: expected (5, 3, 6) float32, got (5, 3, 6) int32",
    ),
    "output in the other byte order": (
        {"grad_output": zeros(T, B, H, dtype=">f4")},
        TypeError,
        "grad_output: expected (5, 3, 6) float32, got (5, 3, 6) >f4",
    ),
    "output a list": (
        {"grad_output": [1.0]},
        TypeError,
        "grad_output: expected an array, got list",
    ),
    "state width": (
        {"grad_state": zeros(2, B, 7)},
        ValueError,
        "grad_state (grad_h): expected (2, 3, 6) float32, got (2, 3, 7) float32",
    ),
    "state layers": (
        {"grad_state": zeros(1, B, H)},
        ValueError,
        "grad_state (grad_h): expected (2, 3, 6) float32, got (1, 3, 6) float32",
    ),
    "state batch": (
        {"grad_state": zeros(2, 1, H)},
        ValueError,
        "grad_state (grad_h): expected (2, 3, 6) float32, got (2, 1, 6) float32",
    ),
    "state rank": (
        {"grad_state": zeros(2, H)},
        ValueError,
        "grad_state (grad_h): expected (2, 3, 6) float32, got (2, 6) float32",
    ),
    "state float64": (
        {"grad_state": zeros(2, B, H, dtype=float)},
        TypeError,
        "grad_state (grad_h): expected (2, 3, 6) float32, got (2, 3, 6) float64",
    ),
    "state a pair": (
        {"grad_state": (zeros(2, B, H), zeros(2, B, H))},
        TypeError,
        "grad_state: expected one array grad_h, got tuple",
    ),
    "state a list": (
        {"grad_state": [zeros(2, B, H)]},
        TypeError,
        "grad_state: expected one array grad_h, got list",
    ),
    "state a number": (
        {"grad_state": 1.0},
        TypeError,
        "grad_state: expected an array, got float",
    ),
    "retain": ({"retain": 1}, TypeError, "retain: expected True or False, got 1"),
    "input_grad": ({"input_grad": None}, TypeError, "input_grad: expected True or False, got None"),
}

# To an LSTM with projection.
BAD_LSTM_GRADIENTS: dict[str, tuple[Any, type[Exception], str]] = {
    "one array": (
        zeros(1, B, P),
        TypeError,
        "grad_state: expected a pair (grad_h, grad_c), got ndarray",
    ),
    "three arrays": (
        (zeros(1, B, P),) * 3,
        TypeError,
        "grad_state: expected a pair (grad_h, grad_c), got 3 items",
    ),
    "h width": (
        (zeros(1, B, H), zeros(1, B, H)),
        ValueError,
        "grad_state (grad_h): expected (1, 3, 4) float32, got (1, 3, 6) float32",
    ),
    "c width": (
        (zeros(1, B, P), zeros(1, B, P)),
        ValueError,
        "grad_state (grad_c): expected (1, 3, 6) float32, got (1, 3, 4) float32",
    ),
    "c alone, rank": (
        (None, zeros(B, H)),
        ValueError,
        "grad_state (grad_c): expected (1, 3, 6) float32, got (3, 6) float32",
    ),
    "c float64": (
        (zeros(1, B, P), zeros(1, B, H, dtype=float)),
        TypeError,
        "grad_state (grad_c): expected (1, 3, 6) float32, got (1, 3, 6) float64",
    ),
    "h a list": (
        ([1.0], zeros(1, B, H)),
        TypeError,
        "grad_state: expected an array, got list",
    ),
}


@pytest.mark.parametrize("bad", BAD_GRADIENTS)
def test_bad_gradient_leaves_the_tape_open(bad: str, rng: Rng) -> None:
    arguments, kind, message = BAD_GRADIENTS[bad]
    case = draw_case("gru", rng, T=T, B=B, input_size=INPUTS, hidden_size=H, num_layers=2)
    expected = case.gradients()
    tape = case.forward()
    with pytest.raises(kind) as caught:
        case.layer.backward(tape, **(case.grads | arguments))
    assert str(caught.value) == message
    assert not tape.consumed
    assert_same_gradients(case.backward(tape), expected)


@pytest.mark.parametrize("bad", BAD_LSTM_GRADIENTS)
def test_bad_lstm_gradient_leaves_the_tape_open(bad: str, rng: Rng) -> None:
    grad_state, kind, message = BAD_LSTM_GRADIENTS[bad]
    case = draw_case("lstm", rng, T=T, B=B, input_size=INPUTS, hidden_size=H, proj_size=P)
    expected = case.gradients()
    tape = case.forward()
    with pytest.raises(kind) as caught:
        case.layer.backward(tape, grad_state=grad_state)
    assert str(caught.value) == message
    assert not tape.consumed
    assert_same_gradients(case.backward(tape), expected)


def test_expected_shapes_follow_the_input(rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng, batch_first=True, bidirectional=True)
    tape = layer.forward(zeros(B, T, INPUTS))[2]
    with pytest.raises(ValueError, match=r"grad_output: expected \(3, 5, 12\) .* got \(5, 3, 12\)"):
        layer.backward(tape, zeros(T, B, 2 * H))
    unbatched = layer.forward(zeros(T, INPUTS))[2]
    with pytest.raises(ValueError, match=r"grad_output: expected \(5, 12\) .* got \(5, 1, 12\)"):
        layer.backward(unbatched, zeros(T, 1, 2 * H))
    with pytest.raises(ValueError, match=r"grad_state.*: expected \(2, 6\) .* got \(2, 1, 6\)"):
        layer.backward(unbatched, grad_state=zeros(2, 1, H))
    double = make_layer("gru", INPUTS, H, rng, dtype="float64")
    with pytest.raises(TypeError, match=r"grad_output: expected .* float64, got .* float32"):
        double.backward(double.forward(zeros(T, B, INPUTS, dtype=float))[2], zeros(T, B, H))


class _Unwilling:
    """An array-like whose conversion fails, as that of a tensor with a gradient does."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise RuntimeError("call detach first")


@pytest.mark.parametrize("name", ["grad_output", "grad_state"])
def test_conversion_errors_name_the_argument(name: str, rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng)
    tape = layer.forward(zeros(T, B, INPUTS))[2]
    message = rf"{name}: expected an array, got _Unwilling: call detach first"
    with pytest.raises(TypeError, match=message):
        layer.backward(tape, **{name: _Unwilling()})
    assert not tape.consumed


def test_a_consumed_tape(rng: Rng) -> None:
    case = draw_case("gru", rng, T=T, B=B, input_size=INPUTS, hidden_size=H)
    tape = case.forward()
    case.backward(tape, retain=True)
    case.backward(tape)
    for retain in (False, True):
        with pytest.raises(ValueError, match=r"^tape: expected one that is open, got one that .*"):
            case.backward(tape, retain=retain)


def test_a_tape_of_another_layer(rng: Rng) -> None:
    """Even of an equal one: two layers share no memory."""
    case = draw_case("gru", rng, T=T, B=B, input_size=INPUTS, hidden_size=H)
    expected = case.gradients()
    tape = case.forward()
    others = (
        make_layer("gru", INPUTS, H, rng),
        make_layer("gru", INPUTS, H, rng, dtype="float64"),
        make_layer("lstm", INPUTS, H, rng),
        copy.deepcopy(case.layer),
    )
    for other in others:
        with pytest.raises(ValueError, match=r"^tape: expected one that this layer's forward .*"):
            other.backward(tape)
    assert_same_gradients(case.backward(tape), expected)


@pytest.mark.parametrize("wrong", [None, 1, zeros(1), "tape", (zeros(1),)], ids=repr)
def test_not_a_tape(wrong: Any, rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng)
    kind = type(wrong).__name__
    with pytest.raises(TypeError, match=f"^tape: expected what forward returned, got {kind}$"):
        layer.backward(wrong)


def test_a_bad_forward_leaves_open_tapes_alone(rng: Rng) -> None:
    case = draw_case("gru", rng, T=T, B=B, input_size=INPUTS, hidden_size=H)
    expected = case.gradients()
    tape = case.forward()
    with pytest.raises(ValueError, match=r"^x: expected \(T, B, 8\) float32, got \(5, 3, 7\)"):
        case.layer.forward(zeros(T, B, 7))
    with pytest.raises(ValueError, match=r"^lengths: expected"):
        case.layer.forward(zeros(T, B, INPUTS), lengths=[9, 1, 1])
    assert_same_gradients(case.backward(tape), expected)


def assert_change_is_seen(
    case: Case, tape: Any, name: str, array: Array, change: Any, where: Any = ...
) -> None:
    """`name` is what the error names; the tape stays open, and `array` as it was."""
    kept = array[where].copy()
    array[where] = change
    with pytest.raises(RuntimeError, match=f"^{name}: expected what forward was given, but"):
        case.backward(tape)
    assert not tape.consumed
    array[where] = kept


@dtypes
@pytest.mark.parametrize("hidden_size", [5, 131])
def test_a_changed_element_is_seen(hidden_size: int, dtype: str, rng: Rng) -> None:
    """By one unit in the last place or by its sign, in every parameter, at its ends and inside."""
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": dtype}
    case = draw_case(
        "lstm_peephole",
        rng,
        T=T,
        B=B,
        input_size=INPUTS,
        hidden_size=hidden_size,
        proj_size=P,
        **options,
    )
    expected = case.gradients()
    tape = case.forward()
    assert len(case.layer.parameters) == 4 * 6
    for parameter in case.layer.parameters.values():
        last = tuple(size - 1 for size in parameter.shape)
        inside = tuple(int(rng.integers(size)) for size in parameter.shape)
        for where in ((0,) * parameter.ndim, last, inside):
            value = parameter[where]
            for changed in (np.nextafter(value, np.inf, dtype=dtype), -value, value + 1, np.nan):
                assert_change_is_seen(case, tape, "parameters", parameter, changed, where)
    assert_same_gradients(case.backward(tape), expected)


CHANGES: dict[str, Callable[[Array], Array]] = {
    "sign": np.negative,
    "absolute values": np.abs,
    "twice": lambda a: 2 * a,
    "half": lambda a: a / 2,
    "more by a power of two": lambda a: 256 * a,
    "decayed": lambda a: a * a.dtype.type(0.999),
    "all one": np.ones_like,
    "all zero": np.zeros_like,
    "reversed": lambda a: a[::-1],
    "units moved on": lambda a: np.roll(a, 1, axis=0),
    "inputs moved on": lambda a: np.roll(a, 1, axis=-1),
    "gates moved on": lambda a: np.roll(a, len(a) // 3, axis=0),
    "fewer digits": lambda a: a.astype(np.float16).astype(a.dtype),
}


@dtypes
@pytest.mark.parametrize("hidden_size", [16, 64, 100])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_parameter_is_seen(change: str, hidden_size: int, dtype: str, rng: Rng) -> None:
    """What happens to whole arrays, where the changes of many elements could cancel."""
    case = draw_case("gru", rng, T=2, B=1, input_size=64, hidden_size=hidden_size, dtype=dtype)
    expected = case.gradients()
    tape = case.forward()
    for parameter in case.layer.parameters.values():
        assert_change_is_seen(case, tape, "parameters", parameter, CHANGES[change](parameter))
    assert_same_gradients(case.backward(tape), expected)


@pytest.mark.parametrize("distance", [1, 4, 16, 64, 256, 1024, 4096, 8192])
def test_swapped_elements_are_seen(distance: int, rng: Rng) -> None:
    """Their bits differ in the exponent only."""
    case = draw_case("gru", rng, T=2, B=1, input_size=64, hidden_size=64)
    weights = case.layer.parameters["weight_hh_l0"].reshape(-1)  # a view
    weights[[0, distance]] = 0.25, 0.5
    expected = case.gradients()
    tape = case.forward()
    assert_change_is_seen(case, tape, "parameters", weights, (0.5, 0.25), [0, distance])
    assert_same_gradients(case.backward(tape), expected)


@dtypes
def test_a_changed_input_is_seen(dtype: str, rng: Rng) -> None:
    case = draw_case("gru", rng, T=16, B=8, input_size=64, hidden_size=H, dtype=dtype, ragged=True)
    expected = case.gradients()
    tape = case.forward()
    x = case.inputs["x"]
    for where in ((0, 0, 0), (15, 7, 63), (2, 1, 3)):
        for changed in (np.nextafter(x[where], np.inf, dtype=dtype), -x[where], np.nan):
            assert_change_is_seen(case, tape, "x", x, changed, where)
    for change in CHANGES.values():
        assert_change_is_seen(case, tape, "x", x, change(x))
    assert_same_gradients(case.backward(tape), expected)


@pytest.mark.parametrize("layout", ["fortran", "spread", "reversed", "unaligned"])
def test_an_input_with_gaps_may_change(layout: str, rng: Rng) -> None:
    """It was copied."""
    case = draw_case("gru", rng, T=T, B=B, input_size=INPUTS, hidden_size=H)
    expected = case.gradients()
    x = LAYOUTS[layout](case.inputs["x"])
    case.inputs["x"] = x
    tape = case.forward()
    x[...] = np.nan
    assert_same_gradients(case.backward(tape), expected)


@pytest.mark.parametrize("retained", [False, True])
def test_a_loaded_state_dict_is_seen(retained: bool, rng: Rng) -> None:
    case = draw_case("lstm", rng, T=T, B=B, input_size=INPUTS, hidden_size=H, num_layers=2)
    expected = case.gradients()
    tape = case.forward()
    if retained:
        case.backward(tape, retain=True)
    kept = case.layer.state_dict()
    case.layer.load_state_dict({name: value / 2 for name, value in kept.items()})
    with pytest.raises(RuntimeError, match="parameters"):
        case.backward(tape)
    other = case.gradients()  # a new tape is of the new ones
    assert any((other[name] != gradient).any() for name, gradient in expected.items())
    case.layer.load_state_dict(kept)
    assert_same_gradients(case.backward(tape), expected)
