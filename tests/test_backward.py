"""Backpropagation through time against the oracle and differences, and what gradients mean."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from parity import (
    CELLS,
    FORMS,
    LSTM_CELLS,
    MERGES,
    Array,
    Case,
    arrays,
    assert_same_bits,
    assert_same_gradients,
    check_backward,
    draw_case,
    draw_resets,
    draw_state,
    make_layer,
    map_state,
    name_gradients,
    output_width,
)

Rng = np.random.Generator

DTYPES = ("float32", "float64")
DIRECTIONS: tuple[dict[str, Any], ...] = (
    {"bidirectional": False},
    *({"bidirectional": True, "merge": merge} for merge in MERGES),
)
LENGTHS = {
    "random order": [3, 6, 1, 5, 6],
    "some zero": [0, 6, 0, 2, 0],
    "none full": [2, 4, 1, 5, 3],
    "all full": [6, 6, 6, 6, 6],
    "all zero": [0, 0, 0, 0, 0],
}

cells = pytest.mark.parametrize("cell", CELLS)
forms = pytest.mark.parametrize(("cell", "form"), FORMS, ids=str)
directions = pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


# ---- against the oracle --------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("input_size", [1, 17, 50])
@pytest.mark.parametrize("hidden_size", [1, 15, 16, 17, 203])
@cells
def test_sizes(cell: str, hidden_size: int, input_size: int, dtype: str, rng: Rng) -> None:
    check_backward(cell, rng, T=2, B=3, input_size=input_size, hidden_size=hidden_size, dtype=dtype)


@pytest.mark.parametrize(("input_size", "hidden_size"), [(47, 49), (97, 33), (31, 95)])
@cells
def test_tails_of_every_width(cell: str, input_size: int, hidden_size: int, rng: Rng) -> None:
    """Neither size is a multiple of a vector, nor of the three and six that a tile has."""
    check_backward(
        cell,
        rng,
        T=3,
        B=9,
        input_size=input_size,
        hidden_size=hidden_size,
        bidirectional=True,
        merge="sum",
    )


@cells
def test_more_units_than_one_part_of_a_product(cell: str, rng: Rng) -> None:
    """All gates of all units are more than the 1024 that are summed before all rows pass."""
    check_backward(cell, rng, T=2, B=9, input_size=5, hidden_size=403)


@pytest.mark.parametrize("B", range(34))
@cells
def test_batches(cell: str, B: int, rng: Rng) -> None:
    check_backward(cell, rng, T=2, B=B, input_size=5, hidden_size=37)
    check_backward(cell, rng, T=2, B=B, input_size=5, hidden_size=19, dtype="float64")


@dtypes
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("B", [None, 0, 1, 3])
@pytest.mark.parametrize("T", [0, 1, 2, 50])
@cells
def test_steps(cell: str, T: int, B: int | None, bidirectional: bool, dtype: str, rng: Rng) -> None:
    check_backward(
        cell,
        rng,
        T=T,
        B=B,
        input_size=4,
        hidden_size=17,
        num_layers=1 if bidirectional else 2,
        bidirectional=bidirectional,
        dtype=dtype,
    )


@pytest.mark.parametrize("batch_first", [False, True])
@directions
@cells
def test_unbatched(cell: str, direction: dict[str, Any], batch_first: bool, rng: Rng) -> None:
    check_backward(
        cell,
        rng,
        T=7,
        B=None,
        input_size=9,
        hidden_size=9,
        num_layers=2,
        residual=True,
        resets=draw_resets(rng, 7),
        batch_first=batch_first,
        **direction,
    )


@pytest.mark.parametrize("initial_state", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@directions
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@cells
def test_options(
    cell: str,
    num_layers: int,
    direction: dict[str, Any],
    residual: bool,
    bias: bool,
    initial_state: bool,
    rng: Rng,
) -> None:
    check_backward(
        cell,
        rng,
        T=3,
        B=3,
        input_size=output_width(17, **direction),  # so that residual has a layer 0 to act on
        hidden_size=17,
        num_layers=num_layers,
        residual=residual,
        bias=bias,
        initial_state=initial_state,
        batch_first=bias != residual,
        dtype="float64" if initial_state != residual else "float32",
        **direction,
    )


@cells
def test_residual_from_the_second_layer_on(cell: str, rng: Rng) -> None:
    check_backward(
        cell,
        rng,
        T=4,
        B=3,
        input_size=5,
        hidden_size=18,
        num_layers=3,
        bidirectional=True,
        residual=True,
    )


GIVEN = (("output",), ("h", "c"), ("h",), ("c",), ("output", "h"), ("output", "c"), ())


@pytest.mark.parametrize("given", GIVEN, ids=str)
@directions
@forms
def test_what_the_loss_depends_on(
    cell: str, form: dict[str, Any], direction: dict[str, Any], given: tuple[str, ...], rng: Rng
) -> None:
    options = {**form, **direction}
    check_backward(
        cell,
        rng,
        T=4,
        B=3,
        input_size=output_width(17, **options),
        hidden_size=17,
        num_layers=2,
        residual=len(given) > 1,
        lengths=[2, 4, 0],
        given=given,
        **options,
    )


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@directions
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("proj_size", [1, 5, 16, 30])
@pytest.mark.parametrize("cell", LSTM_CELLS)
def test_projection(
    cell: str,
    proj_size: int,
    num_layers: int,
    direction: dict[str, Any],
    residual: bool,
    with_lengths: bool,
    with_resets: bool,
    rng: Rng,
) -> None:
    check_backward(
        cell,
        rng,
        T=4,
        B=4,
        input_size=output_width(31, proj_size=proj_size, **direction),
        hidden_size=31,
        proj_size=proj_size,
        num_layers=num_layers,
        residual=residual,
        lengths=[2, 0, 4, 3] if with_lengths else None,
        resets=draw_resets(rng, 4, 4) if with_resets else None,
        dtype="float64" if with_resets != residual else "float32",
        **direction,
    )


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("lengths", [None, *LENGTHS])
@directions
@cells
def test_lengths_and_resets(
    cell: str, direction: dict[str, Any], lengths: str | None, with_resets: bool, rng: Rng
) -> None:
    check_backward(
        cell,
        rng,
        T=6,
        B=5,
        input_size=9,
        hidden_size=9,
        num_layers=2,
        residual=True,
        lengths=None if lengths is None else LENGTHS[lengths],
        resets=draw_resets(rng, 6, 5) if with_resets else None,
        batch_first=with_resets,
        **direction,
    )


@cells
def test_every_combination_of_three_resets(cell: str, rng: Rng) -> None:
    """All 8 patterns of resets in 3 steps, one a row, with every length."""
    patterns = np.array([[bool(n >> t & 1) for n in range(8)] for t in range(3)])
    for length in range(4):
        check_backward(
            cell,
            rng,
            T=3,
            B=8,
            input_size=2,
            hidden_size=3,
            bidirectional=True,
            lengths=[length] * 8,
            resets=patterns,
        )


@pytest.mark.parametrize("with_lengths", [False, True])
@forms
def test_more_rows_than_two_chunks(
    cell: str, form: dict[str, Any], with_lengths: bool, rng: Rng
) -> None:
    """Weight gradients are summed over up to 256 rows at a time: more, where a tape is large."""
    T, B = 45, 15
    lengths = rng.integers(T - 8, T + 1, B)
    lengths[4] = 0
    assert lengths.sum() > 2 * 256
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True} if with_lengths else {}
    check_backward(
        cell,
        rng,
        T=T,
        B=B,
        input_size=3,
        hidden_size=13,
        lengths=lengths if with_lengths else None,
        **options,
        **form,
    )


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@directions
@pytest.mark.parametrize("num_layers", [2, 3])
@forms
def test_dropout(
    cell: str,
    form: dict[str, Any],
    num_layers: int,
    direction: dict[str, Any],
    residual: bool,
    with_lengths: bool,
    rng: Rng,
) -> None:
    options = {**form, **direction}
    check_backward(
        cell,
        rng,
        T=3,
        B=4,
        input_size=output_width(13, **options),
        hidden_size=13,
        num_layers=num_layers,
        residual=residual,
        lengths=[3, 0, 1, 2] if with_lengths else None,
        resets=draw_resets(rng, 3, 4) if with_lengths else None,
        batch_first=with_lengths != residual,
        dropout=0.4,
        seed=1,
        **options,
    )


@pytest.mark.parametrize("dropout", [0.1, 0.9, 1.0])
@cells
def test_little_and_much_dropout(cell: str, dropout: float, rng: Rng) -> None:
    check_backward(
        cell,
        rng,
        T=5,
        B=6,
        input_size=3,
        hidden_size=21,
        num_layers=2,
        dropout=dropout,
        seed=2,
        dtype="float64",
    )


# ---- against differences -------------------------------------------------------------------------

STEP = 1e-6
# Times the root of the sum of squares of what is summed, which are a hundred numbers and more. The
# differences err by up to a quarter of it, mostly because results are rounded to 1e-16.
DIFFERENCE_TOLERANCE = 1e-9


def assert_directional_derivatives(
    cell: str,
    rng: Rng,
    input_size: int,
    hidden_size: int,
    *,
    ragged: tuple[bool, bool],
    **options: Any,
) -> None:
    """The slope of a random linear function of all results along random directions of all inputs,
    by central differences of the engine's own `forward`, against the gradients."""
    T, B = 4, 3
    layer = make_layer(cell, input_size, hidden_size, rng, dtype=np.float64, **options)
    x = rng.standard_normal((T, B, input_size))
    state = draw_state(cell, rng, B=B, hidden_size=hidden_size, dtype=np.float64, **options)
    lengths = [2, T, 0] if ragged[0] else None
    resets = draw_resets(rng, T, B) if ragged[1] else None
    moved = [x, *arrays(state), *layer.parameters.values()]
    start = [array.copy() for array in moved]

    def results() -> tuple[list[Array], Any]:
        output, final, tape = layer.forward(x, state, lengths, resets)
        return [output, *arrays(final)], tape

    values, tape = results()
    weights = [rng.standard_normal(value.shape) for value in values]
    grad_state = tuple(weights[1:]) if cell in LSTM_CELLS else weights[1]
    gradients = list(name_gradients(layer.backward(tape, weights[0], grad_state)).values())

    for _ in range(3):
        direction = [rng.standard_normal(array.shape) for array in start]
        sums = []
        for side in (STEP, -STEP):
            for array, middle, change in zip(moved, start, direction, strict=True):
                array[...] = middle + side * change
            # Differences first: sums would round off what they have in common.
            sums.append(results()[0])
        slope = sum(
            float(np.sum(weight * (above - below)))
            for weight, above, below in zip(weights, *sums, strict=True)
        ) / (2 * STEP)
        products = [g * change for g, change in zip(gradients, direction, strict=True)]
        expected = sum(float(product.sum()) for product in products)
        scale = np.sqrt(sum(float(np.sum(product**2)) for product in products))
        error = abs(slope - expected) / max(1.0, scale)
        assert error <= DIFFERENCE_TOLERANCE, f"{error:.3g} for {options} {ragged}"


SWITCHES = tuple(itertools.product([False, True], repeat=4))


@directions
@pytest.mark.parametrize("num_layers", [1, 2])
@cells
def test_differences(cell: str, num_layers: int, direction: dict[str, Any], rng: Rng) -> None:
    for residual, bias, *ragged in SWITCHES:
        assert_directional_derivatives(
            cell,
            rng,
            output_width(5, **direction) if residual else 3,
            5,
            num_layers=num_layers,
            residual=residual,
            bias=bias,
            ragged=(ragged[0], ragged[1]),
            **direction,
        )


@directions
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", LSTM_CELLS)
def test_differences_of_a_projection(
    cell: str, num_layers: int, direction: dict[str, Any], rng: Rng
) -> None:
    for residual, bias, *ragged in SWITCHES:
        assert_directional_derivatives(
            cell,
            rng,
            output_width(5, proj_size=3, **direction) if residual else 2,
            5,
            proj_size=3,
            num_layers=num_layers,
            residual=residual,
            bias=bias,
            ragged=(ragged[0], ragged[1]),
            **direction,
        )


# ---- what gradients mean -------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@directions
@forms
def test_nothing_beyond_a_length(
    cell: str, form: dict[str, Any], direction: dict[str, Any], residual: bool, rng: Rng
) -> None:
    """Padding is neither read, of the input and of the gradient, nor does it get a gradient."""
    T, lengths = 7, np.array([3, 0, 7, 1, 6])
    options = {**form, **direction, "residual": residual, "num_layers": 2}
    H = 17
    case = draw_case(
        cell, rng, T=T, B=5, input_size=output_width(H, **options), hidden_size=H, **options
    )
    case.inputs["lengths"] = lengths
    expected = case.gradients()
    padding = np.arange(T)[:, np.newaxis] >= lengths
    assert_same_bits(expected["x"][padding], np.zeros_like(expected["x"][padding]))
    assert expected["x"][~padding].all(axis=-1).any()

    case.inputs["x"][padding] = np.nan
    case.grads["grad_output"][padding] = np.nan
    assert_same_gradients(case.gradients(), expected)
    case.grads["grad_output"][padding] = np.inf
    assert_same_gradients(case.gradients(), expected)


@directions
@forms
def test_a_row_of_length_zero_passes_its_gradient_on(
    cell: str, form: dict[str, Any], direction: dict[str, Any], rng: Rng
) -> None:
    options = {**form, **direction, "num_layers": 2}
    case = draw_case(cell, rng, T=4, B=3, input_size=5, hidden_size=17, **options)
    case.inputs["lengths"] = [4, 0, 2]
    case.inputs["resets"] = np.ones((4, 3), bool)
    gradients = case.gradients()
    for name, part in zip(("h", "c"), arrays(case.grads["grad_state"]), strict=False):
        assert_same_bits(gradients[name][:, 1], part[:, 1])


@pytest.mark.parametrize("residual", [False, True])
@directions
@forms
def test_no_gradient_crosses_a_reset(
    cell: str, form: dict[str, Any], direction: dict[str, Any], residual: bool, rng: Rng
) -> None:
    T, cut, H = 6, 3, 17
    options = {**form, **direction, "residual": residual, "num_layers": 2}
    case = draw_case(
        cell, rng, T=T, B=2, input_size=output_width(H, **options), hidden_size=H, **options
    )
    case.inputs["resets"] = np.zeros((T, 2), bool)
    case.inputs["resets"][cut, 0] = True  # and never in row 1
    D = 2 if direction["bidirectional"] else 1
    grad_output = case.grads["grad_output"]
    for mine, others, unreached in (
        (slice(cut, T), slice(0, cut), slice(0, None, D)),  # forward begins in the other part
        (slice(0, cut), slice(cut, T), slice(1, None, 2) if D == 2 else slice(0)),
    ):
        only = np.zeros_like(grad_output)
        only[mine] = grad_output[mine]
        gradients = case._replace(grads={"grad_output": only}).gradients()
        assert not gradients["x"][others, 0].any()
        assert gradients["x"][mine, 0].any()
        for name in ("h", "c") if cell in LSTM_CELLS else ("h",):
            assert not gradients[name][unreached, 0].any()
            assert gradients[name][unreached, 1].any() or not gradients[name][unreached].size
    if D == 2:
        assert gradients["x"][cut:, 1].any()  # the last one is of the steps before the cut


@cells
def test_a_gradient_of_nan_or_infinity_does_not_cross_a_reset(cell: str, rng: Rng) -> None:
    case = draw_case(cell, rng, T=6, B=3, input_size=5, hidden_size=17)
    case.inputs["resets"] = np.zeros((6, 3), bool)
    case.inputs["resets"][3, 1] = True
    clean = case.gradients()
    for value in (np.nan, np.inf):
        case.grads["grad_output"][4, 1] = value
        gradients = case.gradients()
        assert not np.isfinite(gradients["x"][3:5, 1]).all()
        assert_same_bits(gradients["x"][:3], clean["x"][:3])
        assert_same_bits(gradients["h"], clean["h"])
        assert_same_bits(gradients["x"][:, [0, 2]], clean["x"][:, [0, 2]])


@cells
def test_resets_equal_running_the_pieces(cell: str, rng: Rng) -> None:
    """Gradients of inputs to the bit; those of parameters add up, in another order."""
    options: dict[str, Any] = {"num_layers": 2, "dtype": "float64"}
    case = draw_case(cell, rng, T=9, B=3, input_size=5, hidden_size=17, **options)
    case.inputs["resets"] = np.zeros((9, 3), bool)
    case.inputs["resets"][[2, 7]] = True
    whole = case.gradients()
    total = {name: np.zeros_like(value) for name, value in case.layer.parameters.items()}
    for start, stop in ((0, 2), (2, 7), (7, 9)):
        piece = Case(
            case.layer,
            {
                "x": case.inputs["x"][start:stop],
                "state": case.inputs["state"] if not start else None,
            },
            {
                "grad_output": case.grads["grad_output"][start:stop],
                "grad_state": case.grads["grad_state"] if stop == 9 else None,
            },
        ).gradients()
        assert_same_bits(piece["x"], whole["x"][start:stop])
        if start == 0:
            assert_same_bits(piece["h"], whole["h"])
        for name in total:
            total[name] += piece[name]
    for name, value in total.items():
        np.testing.assert_allclose(value, whole[name], rtol=0, atol=1e-13)


@cells
def test_twice_the_gradient_of_the_loss(cell: str, rng: Rng) -> None:
    """Backward is linear, and exactly so for powers of two."""
    case = draw_case(cell, rng, T=5, B=4, input_size=9, hidden_size=21, ragged=True, num_layers=2)
    once = case.gradients()
    twice = {
        "grad_output": 2 * case.grads["grad_output"],
        "grad_state": map_state(lambda part: 2 * part, case.grads["grad_state"]),
    }
    doubled = case._replace(grads=twice).gradients()
    assert_same_gradients(doubled, {name: 2 * value for name, value in once.items()})


@pytest.mark.parametrize("num_layers", [1, 2])
@directions
@forms
def test_without_the_gradient_of_the_input(
    cell: str, form: dict[str, Any], direction: dict[str, Any], num_layers: int, rng: Rng
) -> None:
    options = {**form, **direction, "num_layers": num_layers, "residual": num_layers == 2}
    case = draw_case(
        cell,
        rng,
        T=5,
        B=4,
        input_size=21,
        hidden_size=21,
        ragged=direction["bidirectional"],
        **options,
    )
    expected = case.gradients()
    del expected["x"]
    assert case.layer.backward(case.forward(), **case.grads, input_grad=False).input is None
    assert_same_gradients(case.gradients(input_grad=False), expected)


@forms
def test_absent_gradients_are_zero(cell: str, form: dict[str, Any], rng: Rng) -> None:
    case = draw_case(
        cell, rng, T=5, B=4, input_size=9, hidden_size=21, ragged=True, num_layers=2, **form
    )
    zero_state = map_state(np.zeros_like, case.grads["grad_state"])
    state = case.grads["grad_state"]
    output = case.grads["grad_output"]
    absent: list[tuple[Any, Any]] = [(None, None), (output, None), (None, state)]
    present: list[tuple[Any, Any]] = [
        (np.zeros_like(output), zero_state),
        (output, zero_state),
        (np.zeros_like(output), state),
    ]
    if cell in LSTM_CELLS:
        absent += [(output, (None, None)), (output, (state[0], None)), (output, (None, state[1]))]
        present += [
            (output, zero_state),
            (output, (state[0], zero_state[1])),
            (output, (zero_state[0], state[1])),
        ]
    for missing, full in zip(absent, present, strict=True):
        actual, expected = (
            case._replace(grads={"grad_output": one, "grad_state": other}).gradients()
            for one, other in (missing, full)
        )
        for name, gradient in actual.items():
            # Adding a zero makes 0 of -0.
            np.testing.assert_array_equal(gradient, expected[name])
    nothing = case._replace(grads={}).gradients()
    assert not any(gradient.any() for gradient in nothing.values())


@cells
def test_evaluation_mode(cell: str, rng: Rng) -> None:
    """No dropout, and otherwise the bits of training mode, also across a change of mode."""
    plain = draw_case(cell, rng, T=5, B=4, input_size=9, hidden_size=21, ragged=True, num_layers=2)
    expected = plain.gradients()
    dropping = make_layer(cell, 9, 21, rng, num_layers=2, dropout=0.5)
    dropping.load_state_dict(plain.layer.state_dict())
    case = plain._replace(layer=dropping)
    dropped = case.gradients()
    assert any((dropped[name] != gradient).any() for name, gradient in expected.items())

    dropping.eval()
    assert_same_gradients(case.gradients(), expected)
    tape = case.forward()
    dropping.train()
    assert_same_gradients(case.backward(tape), expected)

    plain_tape = plain.forward()
    plain.layer.eval()
    assert_same_gradients(plain.backward(plain_tape), expected)


def test_each_forward_has_a_new_mask_and_backward_its_own(rng: Rng) -> None:
    options: dict[str, Any] = {"num_layers": 2, "dropout": 0.5, "seed": 4}
    case = draw_case("gru", rng, T=5, B=4, input_size=9, hidden_size=21, **options)
    seed = case.layer._mask_seed
    calls = [case.gradients() for _ in range(3)]
    assert all((calls[a]["x"] != calls[b]["x"]).any() for a, b in ((0, 1), (0, 2), (1, 2)))
    case.layer._mask_seed = seed
    tapes = [case.forward() for _ in range(3)]
    for tape, expected in reversed(list(zip(tapes, calls, strict=True))):
        assert_same_gradients(case.backward(tape, retain=True), expected)
        assert_same_gradients(case.backward(tape), expected)


@pytest.mark.parametrize("hidden_size", [1, 5, 16, 17])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu"])
def test_an_infinite_input_saturates_gates_and_no_more(
    cell: str, hidden_size: int, rng: Rng
) -> None:
    # As a large one does; but a zero gradient times infinity is NaN in weight_ih.
    case = draw_case(cell, rng, T=4, B=2, input_size=3, hidden_size=hidden_size)
    x = case.inputs["x"]
    x[1, 0, 0] = 1e30
    expected = case.gradients()
    x[1, 0, 0] = np.inf
    actual = case.gradients()
    for name in actual.keys() - {"weight_ih_l0"}:
        assert np.isfinite(expected[name]).all(), name
        assert_same_bits(actual[name], expected[name])
