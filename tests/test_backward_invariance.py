"""The promise of equal bits for gradients: threads, batch and other tapes never change one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastrnn
import numpy as np
import pytest
from parity import (
    CELLS,
    FORMS,
    LSTM_CELLS,
    Case,
    assert_same_bits,
    assert_same_gradients,
    draw_case,
    draw_inputs,
    make_layer,
    map_state,
)

Rng = np.random.Generator

DTYPES = ("float32", "float64")
# What the threads of a call can share: units, rows, directions.
STACKS: tuple[dict[str, Any], ...] = (
    {"num_layers": 2, "residual": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "merge": "max", "residual": True},
)

cells = pytest.mark.parametrize("cell", CELLS)
forms = pytest.mark.parametrize(("cell", "form"), FORMS, ids=str)
stacks = pytest.mark.parametrize("stack", STACKS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def rows(state: Any, pick: Any) -> Any:
    """The same state for some rows only."""
    return map_state(lambda part: part[:, pick], state)


# B, H, I: a row split over threads, a batch split, an input whose columns are shared, more threads
# than units, less work than a barrier costs, and more than a thousand gate units.
SHAPES = (
    (1, 203, 19),
    (33, 64, 19),
    (5, 203, 203),
    (2, 16, 5),
    (1, 1, 3),
    (3, 350, 64),
)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("B", "H", "inputs"), SHAPES)
@stacks
@forms
def test_threads(
    cell: str,
    form: dict[str, Any],
    stack: dict[str, Any],
    B: int,
    H: int,
    inputs: int,
    ragged: bool,
    rng: Rng,
) -> None:
    if form and H < 12:
        H = 12  # the projection needs more units than it makes
    case = draw_case(
        cell, rng, T=5, B=B, input_size=inputs, hidden_size=H, ragged=ragged, **stack, **form
    )
    fastrnn.set_num_threads(1)
    expected = case.gradients()
    for threads in (2, 3, 5):
        fastrnn.set_num_threads(threads)
        assert_same_gradients(case.gradients(), expected)


@pytest.mark.parametrize("threads", [(1, 3), (3, 1), (2, 5)], ids=str)
@forms
def test_threads_change_while_a_tape_is_open(
    cell: str, form: dict[str, Any], threads: tuple[int, int], rng: Rng
) -> None:
    """What a tape keeps has the same order whatever the team that wrote it."""
    case = draw_case(
        cell,
        rng,
        T=6,
        B=7,
        input_size=19,
        hidden_size=130,
        ragged=True,
        num_layers=2,
        bidirectional=True,
        merge="sum",
        **form,
    )
    fastrnn.set_num_threads(1)
    expected = case.gradients()
    fastrnn.set_num_threads(threads[0])
    tape = case.forward()
    fastrnn.set_num_threads(threads[1])
    assert_same_gradients(case.backward(tape), expected)


@pytest.mark.parametrize("T", [3, 90])
@cells
def test_threads_and_chunks_of_rows(cell: str, T: int, rng: Rng) -> None:
    """A sum over the rows is cut into chunks that do not depend on who forms them."""
    case = draw_case(cell, rng, T=T, B=11, input_size=50, hidden_size=65, ragged=True)
    fastrnn.set_num_threads(1)
    expected = case.gradients()
    for threads in (2, 3, 5):
        fastrnn.set_num_threads(threads)
        assert_same_gradients(case.gradients(), expected)


@stacks
@cells
def test_threads_and_dropout(cell: str, stack: dict[str, Any], rng: Rng) -> None:
    case = draw_case(
        cell, rng, T=7, B=33, input_size=19, hidden_size=64, ragged=True, dropout=0.3, **stack
    )
    seed = case.layer._mask_seed
    fastrnn.set_num_threads(1)
    expected = case.gradients()
    assert any((case.gradients()[name] != gradient).any() for name, gradient in expected.items())
    for threads in (2, 3, 5):
        fastrnn.set_num_threads(threads)
        case.layer._mask_seed = seed
        assert_same_gradients(case.gradients(), expected)


@dtypes
@pytest.mark.parametrize("ragged", [False, True])
@stacks
@forms
def test_retain(
    cell: str, form: dict[str, Any], stack: dict[str, Any], ragged: bool, dtype: str, rng: Rng
) -> None:
    """Every use of a tape gives the same bits, whatever runs between them."""
    options = {**stack, **form, "dtype": dtype}
    case = draw_case(cell, rng, T=5, B=4, input_size=19, hidden_size=37, ragged=ragged, **options)
    expected = case.gradients()
    tape = case.forward()
    for _ in range(2):
        assert_same_gradients(case.backward(tape, retain=True), expected)
        assert not tape.consumed
    other = draw_inputs(case.layer, cell, rng, 7, 3, ragged=ragged, **options)
    other.gradients()
    assert_same_gradients(case.backward(tape), expected)
    assert tape.consumed


def test_retain_with_other_gradients(rng: Rng) -> None:
    """As of a Jacobian: each use of a tape has its own gradient of the output."""
    case = draw_case("lstm", rng, T=5, B=4, input_size=9, hidden_size=21, num_layers=2)
    many = [
        {**case.grads, "grad_output": rng.standard_normal((5, 4, 21), np.float32)} for _ in range(3)
    ]
    alone = [case._replace(grads=grads).gradients() for grads in many]
    tape = case.forward()
    for grads, expected in zip(many, alone, strict=True):
        assert_same_gradients(case._replace(grads=grads).backward(tape, retain=True), expected)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)], ids=str)
@forms
def test_several_open_tapes(
    cell: str, form: dict[str, Any], order: tuple[int, ...], rng: Rng
) -> None:
    options = {"num_layers": 2, "bidirectional": True, **form}
    layer = make_layer(cell, 19, 37, rng, **options)
    cases = [
        draw_inputs(layer, cell, rng, T, B, ragged=ragged, **options)
        for T, B, ragged in ((5, 4, False), (1, 9, True), (12, 2, True), (5, 4, True))
    ]
    alone = [case.gradients() for case in cases]
    tapes = [case.forward() for case in cases]
    for number in order:
        assert_same_gradients(cases[number].backward(tapes[number]), alone[number])


def test_a_dropped_tape_leaves_no_trace(rng: Rng) -> None:
    case = draw_case("gru", rng, T=5, B=4, input_size=19, hidden_size=37, ragged=True)
    expected = case.gradients()
    for _ in range(3):
        case.forward()
    assert_same_gradients(case.gradients(), expected)


@dtypes
@pytest.mark.parametrize("ragged", [False, True])
@stacks
@forms
def test_a_row_does_not_depend_on_the_others(
    cell: str, form: dict[str, Any], stack: dict[str, Any], ragged: bool, dtype: str, rng: Rng
) -> None:
    T, B = 4, 9
    options = {**stack, **form, "dtype": dtype}
    case = draw_case(cell, rng, T=T, B=B, input_size=19, hidden_size=37, ragged=ragged, **options)
    together = case.gradients()
    lengths = case.inputs.get("lengths", [T] * B)
    resets = case.inputs.get("resets")
    for b in range(B):
        row, steps = slice(b, b + 1), slice(lengths[b])
        alone = Case(
            case.layer,
            {
                "x": case.inputs["x"][steps, row],
                "state": rows(case.inputs["state"], row),
                "resets": None if resets is None else resets[steps, row],
            },
            {
                "grad_output": case.grads["grad_output"][steps, row],
                "grad_state": rows(case.grads["grad_state"], row),
            },
        ).gradients()
        assert_same_bits(alone["x"], together["x"][steps, row])
        for name in ("h", "c") if cell in LSTM_CELLS else ("h",):
            assert_same_bits(alone[name], together[name][:, row])


@forms
def test_batch_first(cell: str, form: dict[str, Any], rng: Rng) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, **form}
    case = draw_case(cell, rng, T=4, B=7, input_size=19, hidden_size=37, ragged=True, **options)
    layer = make_layer(cell, 19, 37, rng, batch_first=True, **options)
    layer.load_state_dict(case.layer.state_dict())
    expected = case.gradients()
    inputs = {**case.inputs, "resets": case.inputs["resets"].T}
    inputs["x"] = case.inputs["x"].swapaxes(0, 1)
    grads = {**case.grads, "grad_output": case.grads["grad_output"].swapaxes(0, 1)}
    actual = Case(layer, inputs, grads).gradients()
    actual["x"] = actual["x"].swapaxes(0, 1)
    assert_same_gradients(actual, expected)


@cells
def test_unbatched_is_a_batch_of_one(cell: str, rng: Rng) -> None:
    case = draw_case(cell, rng, T=6, B=1, input_size=19, hidden_size=37, num_layers=2)
    expected = case.gradients()
    inputs = {"x": case.inputs["x"][:, 0], "state": rows(case.inputs["state"], 0)}
    grads = {
        "grad_output": case.grads["grad_output"][:, 0],
        "grad_state": rows(case.grads["grad_state"], 0),
    }
    actual = Case(case.layer, inputs, grads).gradients()
    for name in actual.keys() - case.layer.parameters.keys():
        expected[name] = expected[name][:, 0]
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("training", [False, True])
@cells
def test_many_python_threads_train_one_layer(cell: str, training: bool, rng: Rng) -> None:
    """Calls large enough to leave the interpreter lock, each with a tape of its own."""
    layer = make_layer(cell, 16, 96, rng, num_layers=2)
    layer.train(training)
    cases = [
        draw_inputs(layer, cell, rng, T, B, ragged=True, num_layers=2)
        for T, B in ((9, 2), (5, 7), (3, 33))
    ]
    expected = [case.gradients() for case in cases]

    def train(number: int) -> None:
        case = cases[number % len(cases)]
        for _ in range(4):
            assert_same_gradients(case.gradients(), expected[number % len(cases)])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(train, range(6)))


def test_python_threads_share_one_tape(rng: Rng) -> None:
    """One of them gets it."""
    case = draw_case("lstm", rng, T=20, B=8, input_size=16, hidden_size=96)
    expected = case.gradients()
    for _ in range(5):
        tape = case.forward()

        def consume(_: int, tape: Any = tape) -> Any:
            try:
                return case.backward(tape)
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(2) as pool:
            results = sorted(pool.map(consume, range(2)), key=lambda result: type(result).__name__)
        assert_same_gradients(results[0], expected)
        assert results[1].startswith("tape: expected one that ")


def test_a_tape_in_use_is_refused(rng: Rng) -> None:
    """Calls that overlap on one tape: each gives the right bits or says why it does not."""
    case = draw_case("gru", rng, T=40, B=8, input_size=64, hidden_size=128)
    expected = case.gradients()
    tape = case.forward()

    def attempt(_: int) -> bool:
        try:
            assert_same_gradients(case.backward(tape, retain=True), expected)
        except ValueError as error:
            assert "tape: expected one that no other thread uses" in str(error)  # noqa: PT017
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert any(pool.map(attempt, range(16)))
    assert_same_gradients(case.backward(tape), expected)
