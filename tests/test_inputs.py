"""Bad input raises and changes nothing; any memory layout gives the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import fastrnn
import numpy as np
import pytest
from parity import CELLS, LSTM_CELLS, Array, arrays, assert_same_bits, draw_state, make_layer

Rng = np.random.Generator
Errors = type[Exception] | tuple[type[Exception], ...]
# What is passed, the error, the argument that it names, and what it says was given.
Bad = tuple[dict[str, Any], Errors, str, str]

T, B, INPUTS, H, P = 5, 3, 8, 6, 4
EITHER = (TypeError, ValueError)


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def good(dtype: Any = np.float32) -> Array:
    return zeros(T, B, INPUTS, dtype=dtype)


def assert_raises(bad: Bad, call: Callable[..., Any], **arguments: Any) -> None:
    """Calling with the bad ones among the arguments raises ``name: expected ..., got ...``."""
    changed, error, name, given = bad
    with pytest.raises(error) as caught:
        call(**(arguments | changed))
    message = str(caught.value)
    assert re.match(rf"{name}\b[^:]*: expected .+, got .*{re.escape(given)}", message), message


# To a GRU of two layers that takes (T, B, 8).
BAD_CALLS: dict[str, Bad] = {
    "x rank 0": ({"x": np.float32(1)}, ValueError, "x", "()"),
    "x rank 1": ({"x": zeros(INPUTS)}, ValueError, "x", "(8,)"),
    "x rank 4": ({"x": zeros(1, T, B, INPUTS)}, ValueError, "x", "(1, 5, 3, 8)"),
    "x features": ({"x": zeros(T, B, 7)}, ValueError, "x", "(5, 3, 7)"),
    "x no features": ({"x": zeros(T, B, 0)}, ValueError, "x", "(5, 3, 0)"),
    "x features, unbatched": ({"x": zeros(T, 7)}, ValueError, "x", "(5, 7)"),
    "x int": ({"x": good(np.int64)}, TypeError, "x", "int64"),
    "x bool": ({"x": good(bool)}, TypeError, "x", "bool"),
    "x float16": ({"x": good(np.float16)}, TypeError, "x", "float16"),
    "x float64": ({"x": good(np.float64)}, TypeError, "x", "float64"),
    "x complex": ({"x": good(np.complex64)}, TypeError, "x", "complex64"),
    "x object": ({"x": good(object)}, TypeError, "x", "object"),
    "x in the other byte order": ({"x": good(">f4")}, TypeError, "x", ">f4"),
    "x shape and dtype": ({"x": zeros(T, B, 7, dtype=float)}, TypeError, "x", "(5, 3, 7) float64"),
    "state rank": ({"state": zeros(2, H)}, ValueError, "state", "(2, 6)"),
    "state layers": ({"state": zeros(1, B, H)}, ValueError, "state", "(1, 3, 6)"),
    "state batch": ({"state": zeros(2, 1, H)}, ValueError, "state", "(2, 1, 6)"),
    "state width": ({"state": zeros(2, B, 1)}, ValueError, "state", "(2, 3, 1)"),
    "state float64": ({"state": zeros(2, B, H, dtype=float)}, TypeError, "state", "float64"),
    "state int": ({"state": zeros(2, B, H, dtype=np.int64)}, TypeError, "state", "int64"),
    "state a pair": ({"state": (zeros(2, B, H), zeros(2, B, H))}, EITHER, "state", ""),
    "state batched, x not": (
        {"x": zeros(T, INPUTS), "state": zeros(2, B, H)},
        ValueError,
        "state",
        "(2, 3, 6)",
    ),
    "lengths > T": ({"lengths": [5, 6, 1]}, ValueError, "lengths", "6"),
    "lengths negative": ({"lengths": [5, -2, 1]}, ValueError, "lengths", "-2"),
    "lengths too few": ({"lengths": [5, 4]}, ValueError, "lengths", "(2,)"),
    "lengths rank 0": ({"lengths": np.int64(5)}, ValueError, "lengths", "()"),
    "lengths rank 2": ({"lengths": np.ones((3, 1), int)}, ValueError, "lengths", "(3, 1)"),
    "lengths float": ({"lengths": np.ones(3)}, TypeError, "lengths", "float64"),
    "lengths bool": ({"lengths": np.ones(3, bool)}, TypeError, "lengths", "bool"),
    "lengths beyond int64": (
        {"lengths": np.array([1, 2**63, 1], np.uint64)},
        EITHER,
        "lengths",
        "",
    ),
    "resets shape": ({"resets": zeros(B, T, dtype=bool)}, ValueError, "resets", "(3, 5)"),
    "resets rank": ({"resets": zeros(T, dtype=bool)}, ValueError, "resets", "(5,)"),
    "resets int": ({"resets": zeros(T, B, dtype=np.int64)}, TypeError, "resets", "int64"),
    "resets float": ({"resets": zeros(T, B)}, TypeError, "resets", "float32"),
}

# To a bidirectional LSTM with projection, whose h is (2, 3, 4) and c (2, 3, 6).
BAD_LSTM_STATES: dict[str, Bad] = {
    "h alone": ({"state": zeros(2, B, P)}, EITHER, "state", ""),  # two rows are not a pair
    "three arrays": ({"state": (zeros(2, B, P),) * 3}, EITHER, "state", ""),
    "h width": ({"state": (zeros(2, B, H), zeros(2, B, H))}, ValueError, "state", "(2, 3, 6)"),
    "c width": ({"state": (zeros(2, B, P), zeros(2, B, P))}, ValueError, "state", "(2, 3, 4)"),
    "c rank": ({"state": (zeros(2, B, P), zeros(B, H))}, ValueError, "state", "(3, 6)"),
    "c float64": (
        {"state": (zeros(2, B, P), zeros(2, B, H, dtype=float))},
        TypeError,
        "state",
        "float64",
    ),
}

# To the step of a GRU of two layers that takes (B, 8).
BAD_STEPS: dict[str, Bad] = {
    "x rank 3": ({"x": good()}, ValueError, "x", "(5, 3, 8)"),
    "x features": ({"x": zeros(B, 7)}, ValueError, "x", "(3, 7)"),
    "x features, unbatched": ({"x": zeros(7)}, ValueError, "x", "(7,)"),
    "x float64": ({"x": zeros(B, INPUTS, dtype=float)}, TypeError, "x", "float64"),
    "x int": ({"x": zeros(B, INPUTS, dtype=np.int64)}, TypeError, "x", "int64"),
    "state batch": ({"state": zeros(2, 2, H)}, ValueError, "state", "(2, 2, 6)"),
    "state unbatched, x not": ({"state": zeros(2, H)}, ValueError, "state", "(2, 6)"),
    "state float64": ({"state": zeros(2, B, H, dtype=float)}, TypeError, "state", "float64"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call(case: str, rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng, num_layers=2)
    assert_raises(BAD_CALLS[case], layer, x=good())


@pytest.mark.parametrize("case", BAD_LSTM_STATES)
def test_bad_lstm_state(case: str, rng: Rng) -> None:
    layer = make_layer("lstm", INPUTS, H, rng, bidirectional=True, proj_size=P)
    assert_raises(BAD_LSTM_STATES[case], lambda state: layer(good(), state))


@pytest.mark.parametrize("case", BAD_STEPS)
def test_bad_step(case: str, rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng, num_layers=2)
    assert_raises(BAD_STEPS[case], layer.step, x=zeros(B, INPUTS))


def test_float64_layer_refuses_float32(rng: Rng) -> None:
    layer = make_layer("lstm", INPUTS, H, rng, dtype=np.float64)
    with pytest.raises(TypeError, match=r"x: expected .* float64, got \(5, 3, 8\) float32"):
        layer(good())
    with pytest.raises(TypeError, match=r"state.*: expected .* float64, got .*float32"):
        layer(good(float), (zeros(1, B, H), zeros(1, B, H)))


def test_what_was_expected_is_spelled_out(rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng, num_layers=2)
    with pytest.raises(TypeError) as caught:
        layer(zeros(T, B, 7, dtype=float))
    assert str(caught.value) == "x: expected (T, B, 8) float32, got (5, 3, 7) float64"
    with pytest.raises(ValueError, match=r"expected .*\(2, 3, 6\).* got .*\(2, 3, 7\)"):
        layer(good(), zeros(2, B, 7))
    with pytest.raises(ValueError, match=r"expected .*\(5, 3\).* got .*\(3, 5\)"):
        layer(good(), resets=zeros(B, T, dtype=bool))
    with pytest.raises(ValueError, match=r"expected .*\(3,\).* got .*\(4,\)"):
        layer(good(), lengths=[1, 2, 3, 4])


def test_batch_first_expects_its_own_layout(rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng, batch_first=True)
    with pytest.raises(ValueError, match=r"x: expected \(B, T, 8\) float32, got \(3, 5, 7\)"):
        layer(zeros(B, T, 7))
    with pytest.raises(ValueError, match=r"resets: expected .*\(3, 5\).* got .*\(5, 3\)"):
        layer(zeros(B, T, INPUTS), resets=zeros(T, B, dtype=bool))
    with pytest.raises(ValueError, match=r"lengths: expected .* got .*6"):
        layer(zeros(B, T, INPUTS), lengths=[5, 6, 1])


@pytest.mark.parametrize("training", [True, False])
def test_failed_calls_leave_the_layer_as_it_was(training: bool, rng: Rng) -> None:
    """Neither parameters nor the place in the sequence of dropout masks may move."""
    layers = [fastrnn.GRU(INPUTS, H, 2, dropout=0.5, seed=3) for _ in range(2)]
    disturbed, untouched = layers
    x = rng.standard_normal((T, B, INPUTS), np.float32)
    for layer in layers:
        layer.train(training)
        layer(x)
    for arguments, error, _, _ in BAD_CALLS.values():
        with pytest.raises(error):
            disturbed(**({"x": good()} | arguments))
    for arguments, error, _, _ in BAD_STEPS.values():
        with pytest.raises(error):
            disturbed.step(**({"x": zeros(B, INPUTS)} | arguments))
    assert disturbed.training is training
    for _ in range(2):
        for ours, theirs in zip(disturbed(x), untouched(x), strict=True):
            assert_same_bits(ours, theirs)
    for name, value in untouched.parameters.items():
        assert_same_bits(disturbed.parameters[name], value)


def unaligned(a: Array) -> Array:
    """A copy that starts one byte past an aligned address."""
    copy = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    copy[...] = a
    assert a.size == 0 or not copy.flags.aligned
    return copy


def transposed(a: Array) -> Array:
    """A copy whose first two axes lie in memory the other way round."""
    return a.swapaxes(0, 1).copy().swapaxes(0, 1)


def spread(a: Array) -> Array:
    """A copy with a gap after every element and NaN in the gaps."""
    buffer = np.full((*a.shape[:-1], 3 * a.shape[-1]), np.nan, a.dtype)
    buffer[..., ::3] = a
    return buffer[..., ::3]


def window(a: Array) -> Array:
    """A copy inside a larger array of NaN: every axis but the last has a gap."""
    buffer = np.full([size + 2 for size in a.shape], np.nan, a.dtype)
    inside = buffer[tuple(slice(1, 1 + size) for size in a.shape)]
    inside[...] = a
    return inside


def read_only(a: Array) -> Array:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "transposed": transposed,
    "reversed first axis": lambda a: a[::-1].copy()[::-1],
    "reversed last axis": lambda a: a[..., ::-1].copy()[..., ::-1],
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "spread": spread,
    "window": window,
    "unaligned": unaligned,
    "read-only": read_only,
}


def with_layout(state: Any, layout: Callable[[Array], Array]) -> Any:
    parts = tuple(layout(part) for part in arrays(state))
    return parts if isinstance(state, tuple) else parts[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_any_layout_gives_the_same_bits(
    cell: str, layout: str, batch_first: bool, dtype: str, rng: Rng
) -> None:
    change = LAYOUTS[layout]
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": dtype}
    layer = make_layer(cell, 19, 18, rng, batch_first=batch_first, **options)
    x = rng.standard_normal((5, 7, 19)).astype(dtype)
    B = 5 if batch_first else 7
    state = draw_state(cell, rng, B=B, hidden_size=18, **options)
    expected_output, expected_final = layer(x, state)

    output, final = layer(change(x), with_layout(state, change))

    assert_same_bits(output, expected_output)
    assert_same_bits(final, expected_final)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("cell", CELLS)
def test_any_layout_gives_the_same_bits_in_step(cell: str, B: int, layout: str, rng: Rng) -> None:
    change = LAYOUTS[layout]
    layer = make_layer(cell, 19, 18, rng, num_layers=2)
    x = rng.standard_normal((B, 19), np.float32)
    state = draw_state(cell, rng, B=B, hidden_size=18, num_layers=2)
    expected_h, expected_state = layer.step(x, state)

    h, new_state = layer.step(change(x), with_layout(state, change))

    assert_same_bits(h, expected_h)
    assert_same_bits(new_state, expected_state)


def test_layouts_of_lengths_and_resets(rng: Rng) -> None:
    layer = make_layer("gru", 4, 18, rng)
    x = rng.standard_normal((6, 5, 4), np.float32)
    lengths = np.array([6, 0, 3, 1, 5])
    resets = rng.random((6, 5)) < 0.3
    expected, _ = layer(x, lengths=lengths, resets=resets)
    for given_lengths in (
        list(lengths),
        tuple(lengths),
        lengths.astype(np.int32),
        lengths.astype(np.uint8),
        lengths.astype(">i8"),
        lengths[::-1].copy()[::-1],
        read_only(lengths),
    ):
        assert_same_bits(layer(x, lengths=given_lengths, resets=resets)[0], expected)
    for layout in ("fortran", "reversed", "reversed last axis", "read-only"):
        given_resets = LAYOUTS[layout](resets)
        assert_same_bits(layer(x, lengths=lengths, resets=given_resets)[0], expected)


def test_broadcast_array(rng: Rng) -> None:
    layer = make_layer("gru", 4, 18, rng)
    x = np.broadcast_to(rng.standard_normal((6, 1, 4), np.float32), (6, 5, 4))
    h = np.broadcast_to(rng.standard_normal(18, np.float32), (1, 5, 18))
    for ours, expected in zip(layer(x, h), layer(x.copy(), h.copy()), strict=True):
        assert_same_bits(ours, expected)


def test_torch_tensor_as_input(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    layer = make_layer("gru", 4, 18, rng)
    x = rng.standard_normal((6, 5, 4), np.float32)
    h = rng.standard_normal((1, 5, 18), np.float32)
    expected_output, expected_final = layer(x, h)
    output, final = layer(torch.from_numpy(x), torch.from_numpy(h), torch.tensor([6] * 5))
    assert isinstance(output, np.ndarray)
    assert_same_bits(output, expected_output)
    assert_same_bits(final, expected_final)


@pytest.mark.parametrize("T", [0, 1, 5])
@pytest.mark.parametrize(
    ("cell", "projection"),
    [(cell, {}) for cell in CELLS] + [(cell, {"proj_size": 4}) for cell in LSTM_CELLS],
    ids=str,
)
def test_inputs_are_neither_modified_nor_returned(
    cell: str, projection: dict[str, int], T: int, rng: Rng
) -> None:
    options: dict[str, Any] = {"num_layers": 2, **projection}
    layer = make_layer(cell, 4, 18, rng, residual=True, **options)
    x = rng.standard_normal((T, 3, 4), np.float32)
    state = draw_state(cell, rng, B=3, hidden_size=18, **options)
    lengths = np.array([T, 0, T // 2])
    resets = rng.random((T, 3)) < 0.3
    given = [x, *arrays(state), lengths, resets, *layer.parameters.values()]
    copies = [value.copy() for value in given]

    output, final = layer(x, state, lengths, resets)
    results = [output, *arrays(final)]
    if T:
        h, stepped = layer.step(x[0], state)
        results += [h, *arrays(stepped)]

    for value, copy in zip(given, copies, strict=True):
        assert_same_bits(value, copy)
    everything = results + given
    for number, result in enumerate(results):
        assert result.flags.writeable
        assert not any(np.shares_memory(result, other) for other in everything[number + 1 :])


def test_results_outlive_the_next_call(rng: Rng) -> None:
    layer = make_layer("lstm", 4, 18, rng)
    layer.eval()
    x = rng.standard_normal((6, 3, 4), np.float32)
    output, final = layer(x)
    kept = [part.copy() for part in (output, *arrays(final))]
    layer(-x)
    layer.step(x[0])
    for part, copy in zip((output, *arrays(final)), kept, strict=True):
        assert_same_bits(part, copy)


def test_load_state_dict_from_own_parameters() -> None:
    """Live arrays, permuted: each is read before it is overwritten."""
    layer = fastrnn.GRU(3, 4, bidirectional=True)
    before = layer.state_dict()
    live = layer.parameters
    swapped = {}
    for name in live:
        forward = name.removesuffix("_reverse")
        swapped[name] = live[forward if name != forward else f"{name}_reverse"]
    layer.load_state_dict(swapped)
    for name, array in layer.parameters.items():
        forward = name.removesuffix("_reverse")
        other = forward if name != forward else f"{name}_reverse"
        np.testing.assert_array_equal(array, before[other])


def test_load_state_dict_names_all_problems() -> None:
    layer = fastrnn.GRU(3, 4)
    state = layer.state_dict()
    wrong = {**state, "bias_hh_l0": np.zeros(12, int), "weight_ih_l0": np.zeros((12, 9))}
    with pytest.raises(ValueError, match=r"weight_ih_l0: expected \(12, 3\).*bias_hh_l0: expected"):
        layer.load_state_dict(wrong)
    with pytest.raises(TypeError, match="bias_hh_l0: expected floats"):
        layer.load_state_dict({**state, "bias_hh_l0": np.zeros(12, int)})
    with pytest.raises(ValueError, match="bias_hh_l0: expected numbers that fit float32"):
        layer.load_state_dict({**state, "bias_hh_l0": np.full(12, 1e300)})
    with pytest.raises(ValueError, match="bias_hh_l0: expected floats, got list"):
        layer.load_state_dict({**state, "bias_hh_l0": [[1.0], [1.0, 2.0]]})  # type: ignore[dict-item]
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, state[name])


def test_errors_say_what_would_fit() -> None:
    layer = fastrnn.GRU(3, 4)
    x = np.zeros((5, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"x: expected \(T, 3\) float32, got \(5, 9\)"):
        layer(np.zeros((5, 9), np.float32))
    with pytest.raises(ValueError, match=r"x: expected \(3,\) float32, got \(9,\)"):
        layer.step(np.zeros(9, np.float32))
    with pytest.raises(TypeError, match="state: expected one array h_0, got list"):
        layer(x, [np.zeros((1, 2, 4), np.float32)])
    with pytest.raises(TypeError, match=r"state \(h_0\): expected an array, got float"):
        layer.step(x[0], 0.0)
    with pytest.raises(ValueError, match=r"lengths: expected integers \(B,\), got list"):
        layer(x, lengths=[[1], [1, 2]])
    with pytest.raises(ValueError, match="resets: expected bools, got list"):
        layer(x, resets=[[True], [True, False]])
    with pytest.raises(ValueError, match=r"input_size: expected an integer in 1\.\.268435455, got"):
        fastrnn.GRU(2**40, 4)
    with pytest.raises(ValueError, match=r"n: expected an integer in \[1, 4097\), got 4097"):
        fastrnn.set_num_threads(4097)


class _Unwilling:
    """An array-like whose conversion fails, as that of a tensor with a gradient does."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise RuntimeError("call detach first")


def test_masked_arrays_are_refused(rng: Rng) -> None:
    """Their masks would be lost without a word."""
    layer = make_layer("gru", 3, 5, rng)
    x, h = np.zeros((4, 2, 3), np.float32), np.zeros((1, 2, 5), np.float32)
    masked = np.ma.masked_invalid
    message = "expected an array, got a masked one"
    with pytest.raises(TypeError, match=f"x: {message}"):
        layer(masked(x))
    with pytest.raises(TypeError, match=f"x: {message}"):
        layer.step(masked(x[0]))
    with pytest.raises(TypeError, match=f"state.*: {message}"):
        layer.step(x[0], masked(h))
    with pytest.raises(TypeError, match=r"lengths: expected integers \(B,\), got a masked array"):
        layer(x, lengths=masked([1, 2]))
    with pytest.raises(TypeError, match="resets: expected bools, got a masked array"):
        layer(x, resets=masked(np.zeros((4, 2), bool)))
    with pytest.raises(TypeError, match="weight_hh_l0: expected floats, got a masked array"):
        layer.load_state_dict({k: masked(v) for k, v in layer.state_dict().items()})


@pytest.mark.parametrize("call", ["__call__", "step"])
def test_conversion_errors_name_the_argument(call: str) -> None:
    layer = fastrnn.GRU(3, 4)
    x = np.zeros((5, 2, 3) if call == "__call__" else (2, 3), np.float32)
    with pytest.raises(TypeError, match="x: expected an array, got _Unwilling: call detach first"):
        getattr(layer, call)(_Unwilling())
    with pytest.raises(TypeError, match="expected an array, got _Unwilling: call detach first"):
        getattr(layer, call)(x, _Unwilling())
