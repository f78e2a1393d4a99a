"""The promise of equal bits: thread count, batch, chunks and layout never change a result."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import fastrnn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import (
    CELLS,
    LSTM_CELLS,
    MERGES,
    arrays,
    assert_close,
    assert_same_bits,
    draw_resets,
    draw_state,
    make_layer,
    oracle,
    tolerance,
)

Rng = np.random.Generator

DTYPES = ("float32", "float64")
# Every cell plain, and the LSTM cells once more with a projection.
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((cell, {}) for cell in CELLS),
    *((cell, {"proj_size": 11}) for cell in LSTM_CELLS),
)
DIRECTIONS: tuple[dict[str, Any], ...] = (
    {"num_layers": 2, "residual": True},
    {"num_layers": 2, "bidirectional": True, "merge": "concat"},
    {"num_layers": 2, "bidirectional": True, "merge": "sum", "residual": True},
)

forms = pytest.mark.parametrize(("cell", "form"), FORMS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def rows(state: Any, pick: Any) -> Any:
    """The same state for some rows only."""
    parts = tuple(np.ascontiguousarray(part[:, pick]) for part in arrays(state))
    return parts if isinstance(state, tuple) else parts[0]


# B, H: a row split over threads, a batch split, both odd, more threads than units, less work
# than a barrier costs.
@pytest.mark.parametrize(("B", "H"), [(1, 203), (33, 64), (5, 203), (2, 16), (1, 1), (4, 512)])
@pytest.mark.parametrize("options", DIRECTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_threads(cell: str, options: dict[str, Any], B: int, H: int, rng: Rng) -> None:
    T = 5
    layer = make_layer(cell, 19, H, rng, **options)
    x = rng.standard_normal((T, B, 19), np.float32)
    state = draw_state(cell, rng, B=B, hidden_size=H, **options)
    lengths = rng.integers(0, T + 1, B)
    resets = draw_resets(rng, T, B)
    for arguments in ((x, state), (x, state, lengths, resets)):
        fastrnn.set_num_threads(1)
        expected_output, expected_final = layer(*arguments)
        for threads in (2, 3, 5):
            fastrnn.set_num_threads(threads)
            assert fastrnn.get_num_threads() == threads
            output, final = layer(*arguments)
            assert_same_bits(output, expected_output)
            assert_same_bits(final, expected_final)


@pytest.mark.parametrize("H", [37, 256])
@forms
def test_threads_in_step(cell: str, form: dict[str, Any], H: int, rng: Rng) -> None:
    layer = make_layer(cell, 19, H, rng, num_layers=2, **form)
    x = rng.standard_normal((3, 19), np.float32)
    fastrnn.set_num_threads(1)
    expected_h, expected_state = layer.step(x)
    for threads in (2, 3, 5):
        fastrnn.set_num_threads(threads)
        h, state = layer.step(x)
        assert_same_bits(h, expected_h)
        assert_same_bits(state, expected_state)


def test_threads_and_dropout() -> None:
    x = np.random.default_rng(1).standard_normal((7, 33, 19), np.float32)

    def drop(threads: int) -> Any:
        fastrnn.set_num_threads(threads)
        layer = fastrnn.GRU(19, 64, 3, dropout=0.3, bidirectional=True, seed=5)
        return layer(x)

    expected_output, expected_final = drop(1)
    for threads in (2, 3, 5):
        output, final = drop(threads)
        assert_same_bits(output, expected_output)
        assert_same_bits(final, expected_final)


@dtypes
@pytest.mark.parametrize("options", DIRECTIONS, ids=str)
@forms
def test_batch_against_its_rows(
    cell: str, form: dict[str, Any], options: dict[str, Any], dtype: str, rng: Rng
) -> None:
    T, B = 4, 33
    options = {**options, **form, "dtype": dtype}
    layer = make_layer(cell, 19, 37, rng, **options)
    x = rng.standard_normal((T, B, 19)).astype(dtype)
    state = draw_state(cell, rng, B=B, hidden_size=37, **options)
    resets = draw_resets(rng, T, B)
    output, final = layer(x, state, resets=resets)
    for b in range(B):
        row = slice(b, b + 1)
        row_output, row_final = layer(x[:, row], rows(state, row), resets=resets[:, row])
        assert_same_bits(row_output, output[:, row])
        assert_same_bits(row_final, rows(final, row))


@pytest.mark.parametrize("B", range(1, 34))
@pytest.mark.parametrize("cell", CELLS)
def test_batch_against_the_first_rows_of_a_larger_one(cell: str, B: int, rng: Rng) -> None:
    layer = make_layer(cell, 19, 37, rng)
    x = rng.standard_normal((3, 40, 19), np.float32)
    assert_same_bits(layer(x[:, :B])[0], layer(x)[0][:, :B])


@pytest.mark.parametrize("cell", CELLS)
def test_unbatched_against_a_batch_of_one(cell: str, rng: Rng) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    layer = make_layer(cell, 19, 37, rng, **options)
    x = rng.standard_normal((4, 19), np.float32)
    state = draw_state(cell, rng, B=None, hidden_size=37, **options)
    output, final = layer(x, state)
    batched = tuple(part[:, np.newaxis] for part in arrays(state))
    batch_output, batch_final = layer(
        x[:, np.newaxis], batched if isinstance(state, tuple) else batched[0]
    )
    assert_same_bits(output, batch_output[:, 0])
    for part, batch_part in zip(arrays(final), arrays(batch_final), strict=True):
        assert_same_bits(part, batch_part[:, 0])


@dtypes
@pytest.mark.parametrize("B", [None, 1, 2, 7, 33])
@pytest.mark.parametrize("num_layers", [1, 3])
@forms
def test_sequence_against_step(
    cell: str, form: dict[str, Any], num_layers: int, B: int | None, dtype: str, rng: Rng
) -> None:
    T = 6
    options = {**form, "num_layers": num_layers, "residual": True, "dtype": dtype}
    layer = make_layer(cell, 19, 37, rng, **options)
    x = rng.standard_normal((T, 19) if B is None else (T, B, 19)).astype(dtype)
    for start in (None, draw_state(cell, rng, B=B, hidden_size=37, **options)):
        output, final = layer(x, start)
        state = start
        for t in range(T):
            h, state = layer.step(x[t], state)
            assert_same_bits(h, output[t])
        assert_same_bits(state, final)


@pytest.mark.parametrize("cell", CELLS)
def test_step_ignores_batch_first(cell: str, rng: Rng) -> None:
    layer = make_layer(cell, 19, 37, rng, batch_first=True)
    x = rng.standard_normal((5, 3, 19), np.float32)
    output, final = layer(x)
    state = None
    for t in range(3):
        h, state = layer.step(x[:, t], state)
        assert_same_bits(h, output[:, t])
    assert_same_bits(state, final)


@forms
def test_one_call_against_chunks(cell: str, form: dict[str, Any], rng: Rng) -> None:
    B, cuts = 5, (0, 1, 3, 3, 8, 23)
    options = {**form, "num_layers": 2}
    layer = make_layer(cell, 19, 37, rng, **options)
    x = rng.standard_normal((cuts[-1], B, 19), np.float32)
    resets = draw_resets(rng, cuts[-1], B)
    state = draw_state(cell, rng, B=B, hidden_size=37, **options)
    output, final = layer(x, state, resets=resets)
    for start, stop in pairwise(cuts):
        chunk, state = layer(x[start:stop], state, resets=resets[start:stop])
        assert_same_bits(chunk, output[start:stop])
    assert_same_bits(state, final)


@pytest.mark.parametrize("cell", CELLS)
def test_long_sequence_against_chunks(cell: str, rng: Rng) -> None:
    """Longer than the block of steps that one input projection covers."""
    layer = make_layer(cell, 19, 128, rng)
    x = rng.standard_normal((400, 3, 19), np.float32)
    output, final = layer(x)
    state = None
    for start in range(0, 400, 57):
        chunk, state = layer(x[start : start + 57], state)
        assert_same_bits(chunk, output[start : start + 57])
    assert_same_bits(state, final)


@dtypes
@pytest.mark.parametrize("options", DIRECTIONS, ids=str)
@forms
def test_padded_row_against_the_row_alone(
    cell: str, form: dict[str, Any], options: dict[str, Any], dtype: str, rng: Rng
) -> None:
    T, lengths = 7, np.array([3, 0, 7, 1, 6, 7, 2])
    options = {**options, **form, "dtype": dtype}
    layer = make_layer(cell, 19, 37, rng, **options)
    x = rng.standard_normal((T, len(lengths), 19)).astype(dtype)
    state = draw_state(cell, rng, B=len(lengths), hidden_size=37, **options)
    resets = draw_resets(rng, T, len(lengths))
    output, final = layer(x, state, lengths, resets)
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        alone, alone_final = layer(x[:length, row], rows(state, row), resets=resets[:length, row])
        assert_same_bits(output[:length, row], alone)
        assert_same_bits(output[length:, row], np.zeros_like(output[length:, row]))
        assert_same_bits(rows(final, row), alone_final)


@dtypes
@pytest.mark.parametrize("options", DIRECTIONS, ids=str)
@forms
def test_batch_first(
    cell: str, form: dict[str, Any], options: dict[str, Any], dtype: str, rng: Rng
) -> None:
    T, B = 4, 7
    options = {**options, **form, "dtype": dtype}
    steps_first = make_layer(cell, 19, 37, rng, **options)
    batch_first = make_layer(cell, 19, 37, rng, batch_first=True, **options)
    batch_first.load_state_dict(steps_first.state_dict())
    x = rng.standard_normal((T, B, 19)).astype(dtype)
    state = draw_state(cell, rng, B=B, hidden_size=37, **options)
    lengths, resets = np.array([4, 0, 1, 3, 2, 4, 4]), draw_resets(rng, T, B)
    expected_output, expected_final = steps_first(x, state, lengths, resets)
    for given_x in (x.swapaxes(0, 1), np.ascontiguousarray(x.swapaxes(0, 1))):
        output, final = batch_first(given_x, state, lengths, resets.T)
        assert_same_bits(output, expected_output.swapaxes(0, 1))
        assert_same_bits(final, expected_final)


@pytest.mark.parametrize("cell", CELLS)
def test_same_call_again(cell: str, rng: Rng) -> None:
    layer = make_layer(cell, 19, 37, rng, bidirectional=True)
    x = rng.standard_normal((9, 7, 19), np.float32)
    expected_output, expected_final = layer(x)
    layer(rng.standard_normal((3, 2, 19), np.float32))
    output, final = layer(x)
    assert_same_bits(output, expected_output)
    assert_same_bits(final, expected_final)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    bidirectional = draw(st.booleans())
    return {
        "cell": draw(st.sampled_from(CELLS)),
        "T": draw(st.integers(0, 9)),
        "B": draw(st.integers(0, 20)),
        "input_size": draw(st.integers(1, 70)),
        "hidden_size": draw(st.integers(1, 70)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "options": {
            "num_layers": draw(st.integers(1, 3)),
            "bidirectional": bidirectional,
            "merge": draw(st.sampled_from(MERGES)) if bidirectional else "concat",
            "residual": draw(st.booleans()),
            "bias": draw(st.booleans()),
            "dtype": draw(st.sampled_from(DTYPES)),
        },
    }


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(problem=problems())
def test_any_shape(problem: dict[str, Any]) -> None:
    cell, T, B, H = (problem[name] for name in ("cell", "T", "B", "hidden_size"))
    options = problem["options"]
    dtype = options["dtype"]
    rng = np.random.default_rng(problem["seed"])
    layer = make_layer(cell, problem["input_size"], H, rng, **options)
    x = rng.standard_normal((T, B, problem["input_size"])).astype(dtype)
    state = draw_state(cell, rng, B=B, hidden_size=H, **options)
    lengths, resets = rng.integers(0, T + 1, B), rng.random((T, B)) < 0.2

    fastrnn.set_num_threads(1)
    output, final = layer(x, state, lengths, resets)
    expected_output, expected_final = oracle(cell, layer, x, state, lengths, resets, **options)
    bound = tolerance(T, problem["input_size"], H, **options)
    assert_close(output, expected_output, bound)
    for part, expected in zip(arrays(final), arrays(expected_final), strict=True):
        assert_close(part, expected, bound)

    fastrnn.set_num_threads(2)
    again_output, again_final = layer(x, state, lengths, resets)
    assert_same_bits(again_output, output)
    assert_same_bits(again_final, final)
    for b in range(B):
        row, length = slice(b, b + 1), lengths[b]
        alone, alone_final = layer(x[:length, row], rows(state, row), resets=resets[:length, row])
        assert_same_bits(alone, output[:length, row])
        assert_same_bits(alone_final, rows(final, row))
