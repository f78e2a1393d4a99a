"""What the masks of regularised layers are, and what such a layer is besides its equations."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import functional
from parity import (
    CELLS,
    LAYERS,
    LSTM_CELLS,
    Array,
    arrays,
    assert_close,
    assert_gradient_close,
    assert_same_bits,
    assert_same_gradients,
    draw_case,
    draw_masks,
    draw_state,
    gradient_tolerance,
    make_layer,
    name_gradients,
    together,
    tolerance,
)

Rng = np.random.Generator

KINDS = ("dropout", "input", "recurrent", "weight", "zoneout_h", "zoneout_c")
STEPWISE = ("dropout", "zoneout_h", "zoneout_c")  # what differs from step to step

cells = pytest.mark.parametrize("cell", CELLS)
lstm_cells = pytest.mark.parametrize("cell", LSTM_CELLS)
kinds = pytest.mark.parametrize("kind", KINDS)


# ---- the masks -----------------------------------------------------------------------------------


def mask_of(kind: Any, p: float, seed: int = 1, *place: int, shape: Any = (64, 64)) -> Array:
    """A mask; of a kind that differs from step to step, that of one step."""
    place = place or (0,)
    if kind in ("dropout", "input"):
        place = place[:1]
    if kind in STEPWISE and len(shape) == 2:
        return np.asarray(functional.mask(kind, (1, *shape), p, seed, *place)[0])
    return functional.mask(kind, shape, p, seed, *place)


def coins(mask: Array, kind: str, p: float) -> Array:
    """What a mask tossed, of mean 0 and variance 1."""
    tossed: Array = mask != 0 if kind.startswith("zoneout") else mask == 0
    return np.asarray((tossed - p) / math.sqrt(p * (1 - p)))


@kinds
@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.8, 1.0])
def test_values(kind: str, p: float) -> None:
    mask = mask_of(kind, p)
    assert mask.dtype == np.float32
    assert mask.shape == (64, 64)
    one = np.float32(1 if kind.startswith("zoneout") else 1 / (1 - p) if p < 1 else 0)
    values = {0.03: [0, one], 0.5: [0, one], 0.8: [0, one]}
    values |= {0.0: [0], 1.0: [1]} if kind.startswith("zoneout") else {0.0: [1], 1.0: [0]}
    np.testing.assert_array_equal(np.unique(mask), np.array(values[p], np.float32))


@kinds
@pytest.mark.parametrize("p", [0.03, 0.5, 0.8])
def test_statistics(kind: str, p: float) -> None:
    """Five standard deviations of what fair coins give; the seed is fixed, so no flakes."""
    coin = coins(mask_of(kind, p, shape=(40, 64, 50) if kind in STEPWISE else (400, 320)), kind, p)
    assert abs(coin.mean()) < 5 / math.sqrt(coin.size)
    for axis in range(coin.ndim):
        rest = tuple(other for other in range(coin.ndim) if other != axis)
        means = coin.mean(axis=rest) * math.sqrt(coin.size / coin.shape[axis])
        # Of a rare event, counts of some hundred coins are wider than a normal distribution's.
        assert np.abs(means).max() < (5 if p > 0.1 else 7)
        for lag in (1, 2, 4, 8, 16, 32):
            left = np.take(coin, range(coin.shape[axis] - lag), axis)
            right = np.take(coin, range(lag, coin.shape[axis]), axis)
            assert abs((left * right).mean()) < 5 / math.sqrt(left.size)


def test_masks_of_different_things_are_independent() -> None:
    """Kinds, layers, directions and seeds, which differ by 1 where calls follow each other."""
    p = 0.5
    places = [
        (kind, seed, layer, direction)
        for kind in KINDS
        for seed in (1, 2, 3, 4, 2**32 + 1, 2**62 - 1)
        for layer in (0, 1, 2)
        for direction in ((0,) if kind in ("dropout", "input") else (0, 1))
    ]
    tossed = np.stack(
        [coins(mask_of(kind, p, *rest), kind, p).ravel() for kind, *rest in places]
    ).astype(np.float32)
    correlation = tossed @ tossed.T / math.sqrt(tossed.shape[1])
    np.fill_diagonal(correlation, 0)
    worst = np.unravel_index(np.abs(correlation).argmax(), correlation.shape)
    assert abs(correlation[worst]) < 5.5, [places[i] for i in worst]  # of 16 thousand pairs


@kinds
def test_the_masks_of_one_place_are_one(kind: str) -> None:
    """The same again, and a part of a larger one: it depends on step, row and unit alone."""
    large = (5, 9, 150) if kind in STEPWISE else (9, 150)
    small = (2, 4, 70) if kind in STEPWISE else (4, 70)
    mask = mask_of(kind, 0.4, 7, 1, 1, shape=large)
    assert_same_bits(mask_of(kind, 0.4, 7, 1, 1, shape=large), mask)
    assert_same_bits(
        mask_of(kind, 0.4, 7, 1, 1, shape=small), mask[tuple(slice(size) for size in small)]
    )


@kinds
def test_a_larger_probability_hits_all_that_a_smaller_one_does(kind: str) -> None:
    few, many = (coins(mask_of(kind, p), kind, p) > 0 for p in (0.2, 0.3))
    assert (many >= few).all()
    assert (many > few).any()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("zoneout", (2, 3, 4), 0.5, 1, 0), "kind"),
        (("input", (2, 3, 4), 0.5, 1, 0), "shape"),
        (("dropout", (2, 3), 0.5, 1, 0), "shape"),
        (("recurrent", (2, -3), 0.5, 1, 0), "shape"),
        (("input", (2, 3), 1.5, 1, 0), "probability"),
        (("input", (2, 3), math.nan, 1, 0), "probability"),
        (("input", (2, 3), 0.5, 1, -1), "layer"),
        (("recurrent", (2, 3), 0.5, 1, 0, 2), "direction"),
    ],
    ids=str,
)
def test_bad_arguments_of_a_mask(arguments: Any, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
        functional.mask(*arguments)


# ---- the masks as layers show them ---------------------------------------------------------------

T, B, H = 5, 4, 37


def probe(cell: str, biases: dict[str, Any], **options: Any) -> Any:
    """A layer of these biases (by name and gate) and no weights but what the caller sets."""
    kind, own = LAYERS[cell]
    layer = kind(3, H, **own, **options)
    for name, array in layer.parameters.items():
        array[:] = 0
        if name.startswith("bias_ih"):
            for gate, value in biases.items():
                array.reshape(-1, H)[int(gate)] = value
    return layer


def chains_of(layer: Any) -> list[tuple[int, int]]:
    return list(itertools.product(range(layer.num_layers), range(1 + layer.bidirectional)))


def set_weights(layer: Any, name: str, value: Any) -> None:
    for key, array in layer.parameters.items():
        if key.startswith(name):
            array[:] = value


STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def test_a_layer_shows_its_dropout_masks() -> None:
    layer = fastrnn.GRU(3, H, 3, dropout=0.4, bidirectional=True)
    for number, mask in enumerate(draw_masks(layer, T, B)):
        assert_same_bits(
            mask, functional.mask("dropout", (T, B, 2 * H), 0.4, layer._mask_seed, number)
        )


@pytest.mark.parametrize("residual", [False, True])
def test_a_layer_shows_its_input_masks(residual: bool) -> None:
    """The same in every step and for both directions; a residual connection does not see them."""
    layer = fastrnn.RNN(
        H, H, 2, "relu", input_dropout=0.5, residual=residual, bidirectional=True, merge="max"
    )
    set_weights(layer, "", 0)
    set_weights(layer, "weight_ih", np.eye(H))
    first, second = (
        functional.mask("input", (B, H), 0.5, layer._mask_seed, number) for number in range(2)
    )
    output, _, states = layer(np.ones((T, B, H), np.float32), return_all_states=True)
    for t, direction in itertools.product(range(T), range(2)):
        assert_same_bits(states[direction, t], first)
        assert_same_bits(states[2 + direction, t], (first + residual) * second)
        assert_same_bits(output[t], (first + residual) * second + (first + residual) * residual)


def test_a_layer_shows_its_recurrent_masks() -> None:
    """A state that only W_hh = 1 passes on is multiplied by the same mask in every step."""
    layer = probe("rnn_relu", {}, recurrent_dropout=0.5, **STACK)
    set_weights(layer, "weight_hh", np.eye(H))
    seed = layer._mask_seed
    x, ones = np.zeros((T, B, 3), np.float32), np.ones((4, B, H), np.float32)
    _, _, states = layer(x, ones, return_all_states=True)
    for n, (number, direction) in enumerate(chains_of(layer)):
        mask = functional.mask("recurrent", (B, H), 0.5, seed, number, direction)
        for taken, t in enumerate(reversed(range(T)) if direction else range(T)):
            assert_same_bits(states[n, t], mask ** np.float32(taken + 1))


def test_a_layer_shows_its_weight_masks() -> None:
    """From a state with one unit, ones as weights bring out one column of the mask."""
    layer = probe("rnn_relu", {}, weight_drop=0.5, **STACK)
    set_weights(layer, "weight_hh", 1)
    seed = layer._mask_seed
    units = np.broadcast_to(np.eye(H, dtype=np.float32), (4, H, H))
    output = layer(np.zeros((1, H, 3), np.float32), units, return_all_states=True)
    for n, (number, direction) in enumerate(chains_of(layer)):
        mask = functional.mask("weight", (H, H), 0.5, seed, number, direction)
        assert_same_bits(output[2][n, 0].T, mask)


def test_a_layer_shows_its_zoneout_masks() -> None:
    """A state that counts its steps misses those that are zoned out."""
    layer = probe("rnn_relu", {"0": 1}, zoneout=0.4, **STACK)
    set_weights(layer, "weight_hh", np.eye(H))
    seed = layer._mask_seed
    _, _, states = layer(np.zeros((T, B, 3), np.float32), return_all_states=True)
    for n, (number, direction) in enumerate(chains_of(layer)):
        mask = functional.mask("zoneout_h", (T, B, H), 0.4, seed, number, direction)
        in_order = states[n, ::-1] if direction else states[n]
        counted = np.diff(in_order, axis=0, prepend=np.float32(0))
        assert_same_bits(1 - (counted[::-1] if direction else counted), mask)


@lstm_cells
def test_an_lstm_shows_its_zoneout_masks(cell: str) -> None:
    """Saturated gates make of c a count of the steps that are not zoned out."""
    coupled = "coupled" in cell
    # With f = 1, i = 1 and g = tanh(1e3) = 1; with i = 1/2 = 1 - f, c comes half closer to g = 1.
    biases = {"0": 0, "1": 1e3, "2": 1e3} if coupled else {"0": 1e3, "1": 1e3, "2": 1e3, "3": 1e3}
    x = np.zeros((T, B, 3), np.float32)
    layer = probe(cell, biases, zoneout=(0.0, 0.4), **STACK)
    seed = layer._mask_seed
    _, _, (_, c) = layer(x, return_all_states=True)
    for n, (number, direction) in enumerate(chains_of(layer)):
        mask = functional.mask("zoneout_c", (T, B, H), 0.4, seed, number, direction)
        in_order = c[n, ::-1] if direction else c[n]
        counted = -np.log2(1 - in_order) if coupled else in_order
        counted = np.diff(counted, axis=0, prepend=np.float32(0))
        assert_same_bits(1 - (counted[::-1] if direction else counted), mask)

    layer = probe(cell, biases, zoneout=(0.4, 0.0), **STACK)
    seed = layer._mask_seed
    _, _, (h, c) = layer(x, return_all_states=True)
    for n, (number, direction) in enumerate(chains_of(layer)):
        mask = functional.mask("zoneout_h", (T, B, H), 0.4, seed, number, direction)
        in_order = h[n, ::-1] if direction else h[n]  # tanh(c) grows with every step
        stayed = (np.diff(in_order, axis=0, prepend=np.float32(0)) == 0).astype(np.float32)
        assert_same_bits(stayed[::-1] if direction else stayed, mask)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@cells
def test_zoneout_of_1_keeps_the_initial_state(
    cell: str, dtype: str, training: bool, rng: Rng
) -> None:
    options: dict[str, Any] = {**STACK, "dtype": dtype}
    layer = make_layer(cell, 3, H, rng, zoneout=1.0, **options).train(training)
    x = rng.standard_normal((T, B, 3)).astype(dtype)
    state = draw_state(cell, rng, B=B, hidden_size=H, **options)
    _, final, states = layer(x, state, return_all_states=True)
    assert_same_bits(final, state)
    for every, part in zip(arrays(states), arrays(state), strict=True):
        for t in range(T):
            assert_same_bits(every[:, t], part)
    resets = np.zeros((T, B), bool)
    resets[2, 1] = True
    _, final, states = layer(x, state, None, resets, return_all_states=True)
    for every, part in zip(arrays(states), arrays(state), strict=True):
        assert not every[::2, 2:, 1].any()
        assert not every[1::2, :2, 1].any()
        assert_same_bits(every[::2, 1], part[::2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@cells
def test_zoned_out_units_keep_their_bits(cell: str, dtype: str, rng: Rng) -> None:
    options: dict[str, Any] = {**STACK, **together(cell), "dtype": dtype}
    layer = make_layer(cell, 3, H, rng, **options)
    state = draw_state(cell, rng, B=B, hidden_size=H, **options)
    seed, x = layer._mask_seed, rng.standard_normal((T, B, 3)).astype(dtype)
    _, _, states = layer(x, state, return_all_states=True)
    names: Any = ("zoneout_h", "zoneout_c")
    probabilities = (0.3, 0.15) if cell in LSTM_CELLS else (0.3,)
    for name, p, every, part in zip(
        names, probabilities, arrays(states), arrays(state), strict=False
    ):
        for n, (number, direction) in enumerate(chains_of(layer)):
            kept = functional.mask(name, (T, B, H), p, seed, number, direction) == 1
            before = np.concatenate(
                [every[n, 1:], part[[n]]] if direction else [part[[n]], every[n, :-1]]
            )
            assert_same_bits(every[n][kept], before[kept])
            # Of relu many units are 0 before and after.
            assert (every[n][~kept] != before[~kept]).mean() > 0.5


def test_every_call_draws_masks_of_its_own(rng: Rng) -> None:
    """The seed moves on by one with every call in training mode that draws any."""
    x = rng.standard_normal((T, B, 3), np.float32)
    for name in ("input_dropout", "recurrent_dropout", "weight_drop", "zoneout"):
        layer = make_layer("lstm", 3, H, rng, seed=5, **{name: 0.4})
        seed = layer._mask_seed
        outputs = [layer(x)[0], layer.forward(x)[0], layer(x)[0]]
        assert layer._mask_seed == seed + 3
        assert all((a != b).any() for a, b in itertools.combinations(outputs, 2))
        layer._mask_seed = seed + 1
        assert_same_bits(layer(x)[0], outputs[1])

        twin = make_layer("lstm", 3, H, rng, seed=5, **{name: 0.4})
        twin.load_state_dict(layer.state_dict())
        assert_same_bits(twin(x)[0], outputs[0])
        other = make_layer("lstm", 3, H, rng, seed=6, **{name: 0.4})
        other.load_state_dict(layer.state_dict())
        assert (other(x)[0] != outputs[0]).any()


def test_calls_that_draw_nothing_leave_the_seed(rng: Rng) -> None:
    x = rng.standard_normal((T, B, 3), np.float32)
    for options in ({"layer_norm": True}, {"clip": 0.5}, {"coupled": True}):
        layer = fastrnn.LSTM(3, H, **options)
        seed = layer._mask_seed
        first = layer(x)
        assert_same_bits(layer(x)[0], first[0])
        assert layer._mask_seed == seed
    layer = fastrnn.LSTM(3, H, 2, **together("lstm"))
    seed = layer._mask_seed
    with pytest.raises(ValueError, match="x: expected"):
        layer(x[..., :2])
    layer.step(x[0])
    layer.eval()
    layer(x)
    layer.forward(x)
    assert layer._mask_seed == seed


# ---- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("projection", [0, 11])
@cells
def test_step_by_step(cell: str, projection: int, dtype: str, rng: Rng) -> None:
    """Evaluation mode is the same every time, and `step` is that in either mode."""
    if projection and cell not in LSTM_CELLS:
        projection = 0
    options: dict[str, Any] = {**together(cell), "num_layers": 3, "residual": True, "dtype": dtype}
    options |= {"proj_size": projection} if projection else {}
    layer = make_layer(cell, 5, H, rng, **options)
    for shape in ((6, 4, 5), (6, 5)):
        x = rng.standard_normal(shape).astype(dtype)
        start = draw_state(cell, rng, B=4 if len(shape) == 3 else None, hidden_size=H, **options)
        layer.eval()
        output, final, states = layer(x, start, return_all_states=True)
        again, again_final, _ = layer.forward(x, start)
        assert_same_bits(again, output)
        assert_same_bits(again_final, final)
        for mode in (True, False):
            layer.train(mode)
            state = start
            for t in range(6):
                h, state = layer.step(x[t], state)
                assert_same_bits(h, output[t])
                for part, every in zip(arrays(state), arrays(states), strict=True):
                    assert_same_bits(part, every[:, t])
            assert_same_bits(state, final)


@cells
def test_nothing_at_probability_0(cell: str, rng: Rng) -> None:
    """And next to nothing at probabilities below that of any word of 32 bits."""
    plain = draw_case(
        cell, rng, T=T, B=B, input_size=5, hidden_size=H, ragged=True, num_layers=2, residual=True
    )
    output, final, tape = plain.layer.forward(**plain.inputs)
    gradients = plain.backward(tape)
    names = ("input_dropout", "recurrent_dropout", "weight_drop", "zoneout")
    for p in (0, 1e-12):
        layer = make_layer(cell, 5, H, rng, num_layers=2, residual=True, **dict.fromkeys(names, p))
        layer.load_state_dict(plain.layer.state_dict())
        regular = plain._replace(layer=layer)
        actual_output, actual_final, tape = layer.forward(**plain.inputs)
        if p == 0:
            assert_same_bits(actual_output, output)
            assert_same_bits(actual_final, final)
            assert_same_gradients(regular.backward(tape), gradients)
            continue
        np.testing.assert_array_equal(actual_output, output)  # but for the sign of a zero
        for actual, expected in zip(arrays(actual_final), arrays(final), strict=True):
            np.testing.assert_array_equal(actual, expected)
        bound = gradient_tolerance(T, B, 5, H, num_layers=2)  # some sums begin elsewhere
        for name, gradient in regular.backward(tape).items():
            assert_gradient_close(name, gradient, gradients[name], bound)


@lstm_cells
def test_an_infinite_clip_is_none(cell: str, rng: Rng) -> None:
    case = draw_case(cell, rng, T=T, B=B, input_size=5, hidden_size=H, ragged=True)
    expected, gradients = case.layer(**case.inputs), case.gradients()
    for clip in (None, 1e30, math.inf):
        layer = make_layer(cell, 5, H, rng, clip=clip)
        layer.load_state_dict(case.layer.state_dict())
        output, final = layer(**case.inputs)
        assert_same_bits(output, expected[0])
        assert_same_bits(final, expected[1])
        assert_same_gradients(case._replace(layer=layer).gradients(), gradients)


@pytest.mark.parametrize("peephole", [False, True])
def test_coupled_gates_are_those_of_opposite_weights(peephole: bool, rng: Rng) -> None:
    """1 - sigmoid(a) is sigmoid(-a): another LSTM_CELLS is the same, to rounding."""
    options: dict[str, Any] = {"num_layers": 2, "dtype": "float64"}
    coupled = make_layer(
        "lstm_coupled_peephole" if peephole else "lstm_coupled", 5, H, rng, **options
    )
    plain = fastrnn.LSTM(5, H, peephole=peephole, **options)
    parameters = {}
    for name, array in coupled.state_dict().items():
        size = 1 if name.startswith("weight_peep") else H
        parameters[name] = np.concatenate([array[:size], -array[:size], array[size:]])
    plain.load_state_dict(parameters)
    x = rng.standard_normal((T, B, 5))
    bound = tolerance(T, 5, H, **options)
    for actual, expected in zip(coupled(x), plain(x), strict=True):
        for ours, theirs in zip(arrays(actual), arrays(expected), strict=True):
            assert_close(ours, theirs, bound)


@cells
def test_a_tape_knows_its_masks(cell: str, rng: Rng) -> None:
    """In any order, twice if it is retained, and in another mode than it was made in."""
    options: dict[str, Any] = {**STACK, **together(cell), "seed": 4}
    case = draw_case(cell, rng, T=T, B=B, input_size=9, hidden_size=H, ragged=True, **options)
    seed = case.layer._mask_seed
    calls = [case.gradients() for _ in range(3)]
    assert all((a["x"] != b["x"]).any() for a, b in itertools.combinations(calls, 2))
    case.layer._mask_seed = seed
    tapes = [case.forward() for _ in range(3)]
    case.layer.eval()
    evaluated = case.forward()
    case.layer.train()
    for tape, expected in reversed(list(zip(tapes, calls, strict=True))):
        assert_same_gradients(case.backward(tape, retain=True), expected)
        case.layer.eval()
        assert_same_gradients(case.backward(tape, retain=True), expected)
        case.layer.train()
        del expected["x"]
        assert_same_gradients(case.backward(tape, input_grad=False), expected)
        with pytest.raises(ValueError, match="tape"):
            case.backward(tape)
    smooth = case.backward(evaluated)
    case.layer.eval()
    assert_same_gradients(case.gradients(), smooth)
    assert any((smooth[name] != value).any() for name, value in calls[0].items())


def test_a_changed_gain_is_noticed(rng: Rng) -> None:
    case = draw_case("lstm", rng, T=T, B=B, input_size=9, hidden_size=H, layer_norm=True)
    for name in ("norm_ih_weight_l0", "norm_hh_bias_l0", "norm_c_weight_l0", "norm_c_bias_l0"):
        tape = case.forward()
        parameter = case.layer.parameters[name]
        kept = parameter.copy()
        parameter[3] += 1
        with pytest.raises(RuntimeError, match=r"^parameters: expected"):
            case.backward(tape)
        parameter[:] = kept
        case.backward(tape)


# ---- arguments -----------------------------------------------------------------------------------

CLASSES = (fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU)
PROBABILITY = "expected a number in [0, 1]"
BAD_ARGUMENTS: tuple[tuple[str, Any, type[Exception], str], ...] = (
    ("layer_norm", 1, TypeError, "expected True or False, got 1"),
    ("layer_norm", None, TypeError, "expected True or False, got None"),
    *(
        (name, value, ValueError, f"{PROBABILITY}, got {value}")
        for name in ("recurrent_dropout", "input_dropout", "weight_drop")
        for value in (-0.1, 1.5, math.nan, math.inf)
    ),
    *(
        (name, value, TypeError, f"{PROBABILITY}, got {value!r}")
        for name in ("recurrent_dropout", "input_dropout", "weight_drop")
        for value in (True, None, "0.5", (0.1, 0.2))
    ),
    ("zoneout", -0.1, ValueError, ", got -0.1"),
    ("zoneout", 1.1, ValueError, ", got 1.1"),
    ("zoneout", math.nan, ValueError, ", got nan"),
    ("zoneout", True, TypeError, ", got True"),
    ("zoneout", None, TypeError, ", got None"),
    ("zoneout", "0.5", TypeError, ", got '0.5'"),
)
PAIRS: tuple[Any, ...] = ((0.1,), (0.1, 0.2, 0.3), (), (0.1, 1.5), (math.nan, 0), (0.1, None))
BAD_LSTM_ARGUMENTS: tuple[tuple[str, Any, type[Exception], str], ...] = (
    ("coupled", 1, TypeError, "expected True or False, got 1"),
    ("clip", 0, ValueError, ", got 0"),
    ("clip", -1.5, ValueError, ", got -1.5"),
    ("clip", math.nan, ValueError, ", got nan"),
    ("clip", "1", TypeError, ", got '1'"),
    ("clip", True, TypeError, ", got True"),
    ("clip", (1, 2), TypeError, ", got (1, 2)"),
)


@pytest.mark.parametrize(
    ("cls", "name", "value", "error", "message"),
    [
        *((cls, *case) for cls in CLASSES for case in BAD_ARGUMENTS),
        *((fastrnn.LSTM, *case) for case in BAD_LSTM_ARGUMENTS),
    ],
)
def test_bad_argument(
    cls: Any, name: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        cls(8, 16, **{name: value})
    assert str(caught.value).startswith(f"{name}: expected ")
    assert message in str(caught.value)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_bad_pair(pair: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^zoneout: expected "):
        fastrnn.LSTM(8, 16, zoneout=pair)


@pytest.mark.parametrize("cls", [fastrnn.RNN, fastrnn.GRU])
def test_a_pair_is_for_the_lstm(cls: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^zoneout: expected "):
        cls(8, 16, zoneout=(0.1, 0.2))
    for name in ("clip", "coupled"):
        with pytest.raises(TypeError, match=name):
            cls(8, 16, **{name: True})


def test_coupled_gates_have_no_forget_bias() -> None:
    with pytest.raises(ValueError, match=r"^forget_bias: expected None for coupled=True"):
        fastrnn.LSTM(8, 16, coupled=True, forget_bias=1)


@pytest.mark.parametrize("cls", CLASSES)
def test_options_are_given_by_name(cls: Any) -> None:
    parameters = inspect.signature(cls).parameters
    for name in ("layer_norm", "recurrent_dropout", "input_dropout", "weight_drop", "zoneout"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == 0


def test_bad_arguments_of_a_call(rng: Rng) -> None:
    layer, x = fastrnn.LSTM(3, H, 2), np.zeros((T, B, 3), np.float32)
    calls: Any = (layer, layer.forward)
    for call in calls:
        with pytest.raises(TypeError, match=r"^return_all_states: expected True or False, got 1"):
            call(x, return_all_states=1)
    _, _, tape, (h, c) = layer.forward(x, return_all_states=True)
    for bad in (
        (h[:1], c),
        (h, c[:, :, :, 1:]),
        (h, c[:, 0]),
        (h, c.astype(np.float64)),
        (h,),
        h,
        (h, c, c),
        "h",
    ):
        with pytest.raises((TypeError, ValueError), match=r"^grad_states"):
            layer.backward(tape, grad_states=bad)
    layer.backward(tape, grad_states=(h, c))  # still open
    plain = fastrnn.GRU(3, H)
    _, _, tape, h = plain.forward(x, return_all_states=True)
    for bad in (h[0], (h, h), h[..., :-1]):
        with pytest.raises((TypeError, ValueError), match=r"^grad_states"):
            plain.backward(tape, grad_states=bad)


# ---- copies, and what they carry -----------------------------------------------------------------

TEXTS = (
    "RNN(8, 16, nonlinearity='relu', layer_norm=True)",
    "GRU(8, 16, zoneout=0.25)",
    "GRU(8, 16, recurrent_dropout=0.5)",
    "LSTM(8, 16, input_dropout=0.5)",
    "LSTM(8, 16, weight_drop=0.5)",
    "LSTM(8, 16, zoneout=(0.1, 0.2))",
    "LSTM(8, 16, coupled=True)",
    "LSTM(8, 16, clip=2.5)",
    "LSTM(8, 16)",
)


@pytest.mark.parametrize("text", TEXTS)
def test_repr_is_the_call(text: str) -> None:
    assert repr(eval(text, vars(fastrnn).copy())) == text


@cells
def test_copies_carry_everything(cell: str, rng: Rng) -> None:
    options: dict[str, Any] = {**STACK, **together(cell)}
    layer = make_layer(cell, 5, H, rng, **options)
    x = rng.standard_normal((T, B, 5), np.float32)
    seed = layer._mask_seed
    expected, expected_final, tape = layer.forward(x)
    gradients = name_gradients(layer.backward(tape, np.ones_like(expected)))
    layer.eval()
    smooth, _ = layer(x)
    for mode in (True, False):
        layer._mask_seed = seed
        layer.train(mode)
        described = eval(repr(layer), vars(fastrnn).copy())
        described._mask_seed = seed
        described.load_state_dict(layer.state_dict())
        described.train(mode)
        copies = [pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)]
        for twin in (*copies, described):
            assert repr(twin) == repr(layer)
            for name, value in options.items():
                assert getattr(twin, name) == value
            if not mode:
                assert_same_bits(twin(x)[0], smooth)
                continue
            output, final, tape = twin.forward(x)
            assert_same_bits(output, expected)
            assert_same_bits(final, expected_final)
            actual = name_gradients(twin.backward(tape, np.ones_like(output)))
            assert_same_gradients(actual, gradients)


@pytest.mark.parametrize("bias", [False, True])
@cells
def test_parameters(cell: str, bias: bool) -> None:
    """Names, order and shapes."""
    kind, own = LAYERS[cell]
    P = 5 if cell in LSTM_CELLS else 0
    options: dict[str, Any] = {**own, **STACK, "bias": bias} | ({"proj_size": P} if P else {})
    layer = kind(7, 16, layer_norm=True, **options)
    G = {"rnn": 1, "gru": 3, "lstm": 3 if "coupled" in cell else 4}[cell.split("_")[0]]
    R = P or 16
    expected: dict[str, tuple[int, ...]] = {}
    for number, suffix in itertools.product(range(2), ("", "_reverse")):
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (G * 16, 2 * R if number else 7),
            "weight_hh": (G * 16, R),
        }
        shapes |= {"bias_ih": (G * 16,), "bias_hh": (G * 16,)} if bias else {}
        shapes |= {"weight_hr": (P, 16)} if P else {}
        shapes |= {"weight_peep": (G - 1, 16)} if cell.endswith("peephole") else {}
        for part in ("ih", "hh"):
            shapes |= {f"norm_{part}_weight": (G * 16,), f"norm_{part}_bias": (G * 16,)}
        shapes |= {"norm_c_weight": (16,), "norm_c_bias": (16,)} if cell in LSTM_CELLS else {}
        expected |= {f"{name}_l{number}{suffix}": shape for name, shape in shapes.items()}
    assert {name: array.shape for name, array in layer.parameters.items()} == expected
    assert list(layer.parameters) == list(expected)
    plain = kind(7, 16, **options)
    assert list(plain.parameters) == [name for name in expected if not name.startswith("norm")]


@pytest.mark.parametrize("init", ["torch", "glorot", "he", "orthogonal"])
@cells
def test_initial_gains_and_biases(cell: str, init: str) -> None:
    kind, own = LAYERS[cell]
    layer = kind(7, 16, layer_norm=True, init=init, seed=1, **own, **STACK)
    for name, array in layer.parameters.items():
        if name.startswith("norm"):
            np.testing.assert_array_equal(array, float("weight" in name))
        else:
            assert not (array == 1).any()
    if "peephole" not in cell and init != "torch":
        assert layer.parameters["weight_hh_l0"].any()


def test_parameters_of_a_layer_without_norm_do_not_fit(rng: Rng) -> None:
    plain, normed = fastrnn.LSTM(3, 16), fastrnn.LSTM(3, 16, layer_norm=True)
    names = [f"norm_{part}_{kind}_l0" for part in ("ih", "hh", "c") for kind in ("weight", "bias")]
    with pytest.raises(ValueError, match=f"state_dict: missing {', '.join(names)}"):
        normed.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match=f"state_dict: unexpected {', '.join(names)}"):
        plain.load_state_dict(normed.state_dict())
    assert normed.load_state_dict(plain.state_dict(), strict=False).missing_keys == names
    assert plain.load_state_dict(normed.state_dict(), strict=False).unexpected_keys == names
    coupled = fastrnn.LSTM(3, 16, coupled=True, peephole=True)
    with pytest.raises(ValueError, match=r"weight_peep_l0: expected \(2, 16\), got \(3, 16\)"):
        coupled.load_state_dict(fastrnn.LSTM(3, 16, peephole=True).state_dict())


@pytest.mark.parametrize("name", ["dropout", "recurrent_dropout", "input_dropout", "weight_drop"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, "a", None])
def test_probabilities_are_checked_when_they_are_set(name: str, value: Any) -> None:
    layer = fastrnn.GRU(3, 4, 2)
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
        setattr(layer, name, value)
    setattr(layer, name, 0.5)
    assert getattr(layer, name) == 0.5


def test_zoneout_that_is_set_later_acts_on_steps_too() -> None:
    layer = fastrnn.LSTM(3, 4, seed=0).eval()
    x = np.ones((1, 2, 3), np.float32)
    before = layer.step(x[0])[0]
    layer.zoneout = (0.5, 0.25)
    after = layer.step(x[0])[0]
    assert (after != before).any()
    np.testing.assert_array_equal(after, layer(x)[0][0])
    with pytest.raises(ValueError, match="zoneout: expected a number or a pair"):
        layer.zoneout = (0.1,)


@pytest.mark.parametrize("name", ["merge", "residual", "layer_norm", "clip", "coupled"])
def test_what_makes_a_layer_cannot_be_set(name: str) -> None:
    with pytest.raises(AttributeError, match=f"{name}: expected no change"):
        setattr(fastrnn.LSTM(3, 4), name, True)


@pytest.mark.parametrize("options", [{"forget_bias": 1e300}, {"clip": 1e-300}])
def test_numbers_that_the_dtype_has_not(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        fastrnn.LSTM(3, 4, **options)
    fastrnn.LSTM(3, 4, **options, dtype=np.float64)
