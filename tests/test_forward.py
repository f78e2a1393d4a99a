"""The engine against the oracle, over cell, option, shape and dtype."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import fastrnn
import numpy as np
import pytest
from parity import (
    CELLS,
    LSTM_CELLS,
    MERGES,
    Array,
    arrays,
    assert_close,
    assert_same_bits,
    check,
    draw_resets,
    draw_state,
    make_layer,
    oracle,
    tolerance,
)

Rng = np.random.Generator

DTYPES = ("float32", "float64")
SIZES = (1, 15, 16, 17, 203)
DIRECTIONS: tuple[dict[str, Any], ...] = (
    {"bidirectional": False},
    *({"bidirectional": True, "merge": merge} for merge in MERGES),
)
LENGTHS = {
    "random order": [3, 7, 1, 5, 6],
    "some zero": [0, 7, 0, 2, 0],
    "none full": [2, 4, 1, 5, 3],
    "all full": [7, 7, 7, 7, 7],
    "all zero": [0, 0, 0, 0, 0],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("input_size", SIZES)
@pytest.mark.parametrize("hidden_size", SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(cell: str, hidden_size: int, input_size: int, dtype: str, rng: Rng) -> None:
    check(cell, rng, T=3, B=5, input_size=input_size, hidden_size=hidden_size, dtype=dtype)


@pytest.mark.parametrize("B", range(34))
@pytest.mark.parametrize("cell", CELLS)
def test_batches(cell: str, B: int, rng: Rng) -> None:
    check(cell, rng, T=3, B=B, input_size=5, hidden_size=37)
    check(cell, rng, T=3, B=B, input_size=5, hidden_size=19, dtype="float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("B", [None, 0, 1, 5])
@pytest.mark.parametrize("T", [0, 1, 2, 50])
@pytest.mark.parametrize("cell", CELLS)
def test_steps(cell: str, T: int, B: int | None, bidirectional: bool, dtype: str, rng: Rng) -> None:
    check(
        cell,
        rng,
        T=T,
        B=B,
        input_size=4,
        hidden_size=17,
        num_layers=2,
        bidirectional=bidirectional,
        dtype=dtype,
    )


@pytest.mark.parametrize(("T", "B", "H"), [(50, 33, 203), (600, 1, 64), (40, 64, 32)])
@pytest.mark.parametrize("cell", CELLS)
def test_longer_than_one_block_of_steps(cell: str, T: int, B: int, H: int, rng: Rng) -> None:
    check(cell, rng, T=T, B=B, input_size=3, hidden_size=H, bidirectional=True)


@pytest.mark.parametrize("initial_state", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_options(
    cell: str,
    num_layers: int,
    direction: dict[str, Any],
    residual: bool,
    bias: bool,
    initial_state: bool,
    rng: Rng,
) -> None:
    check(
        cell,
        rng,
        T=5,
        B=3,
        input_size=17,  # = H, so that residual has a layer 0 to act on
        hidden_size=17,
        num_layers=num_layers,
        residual=residual,
        bias=bias,
        initial_state=initial_state,
        batch_first=bias != residual,
        **direction,
    )


@pytest.mark.parametrize("cell", CELLS)
def test_residual_where_only_concatenated_sizes_agree(cell: str, rng: Rng) -> None:
    check(
        cell,
        rng,
        T=5,
        B=3,
        input_size=18,
        hidden_size=9,
        num_layers=2,
        bidirectional=True,
        residual=True,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("proj_size", [1, 5, 16, 30])
@pytest.mark.parametrize("cell", LSTM_CELLS)
def test_projection(
    cell: str, proj_size: int, num_layers: int, direction: dict[str, Any], dtype: str, rng: Rng
) -> None:
    check(
        cell,
        rng,
        T=6,
        B=7,
        input_size=5,
        hidden_size=31,
        proj_size=proj_size,
        num_layers=num_layers,
        residual=True,
        lengths=[6, 2, 0, 6, 4, 1, 3],
        resets=draw_resets(rng, 6, 7),
        dtype=dtype,
        **direction,
    )


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("lengths", [None, *LENGTHS])
@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_and_resets(
    cell: str, direction: dict[str, Any], lengths: str | None, with_resets: bool, rng: Rng
) -> None:
    check(
        cell,
        rng,
        T=7,
        B=5,
        input_size=17,
        hidden_size=17,
        num_layers=2,
        residual=True,
        lengths=None if lengths is None else LENGTHS[lengths],
        resets=draw_resets(rng, 7, 5) if with_resets else None,
        batch_first=with_resets,
        **direction,
    )


@pytest.mark.parametrize("cell", CELLS)
def test_unbatched_resets(cell: str, rng: Rng) -> None:
    check(
        cell,
        rng,
        T=9,
        B=None,
        input_size=4,
        hidden_size=6,
        bidirectional=True,
        resets=draw_resets(rng, 9),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_every_combination_of_three_resets(cell: str, rng: Rng) -> None:
    """All 8 patterns of resets in 3 steps, one a row, with every length."""
    patterns = np.array([[bool(n >> t & 1) for n in range(8)] for t in range(3)])
    for length in range(4):
        check(
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


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_resets_equal_running_the_pieces(cell: str, bidirectional: bool, rng: Rng) -> None:
    T = 11
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": bidirectional}
    layer = make_layer(cell, 3, 18, rng, **options)
    x = rng.standard_normal((T, 1, 3), np.float32)
    state = draw_state(cell, rng, B=1, hidden_size=18, **options)
    cuts = [0, 2, 3, 8, T]
    resets = np.zeros((T, 1), bool)
    resets[cuts[1:-1]] = True

    output, final = layer(x, state, resets=resets)

    # The forward direction starts from its state in the first piece and ends in the last one,
    # the reverse direction the other way round.
    directions = 2 if bidirectional else 1
    pieces, ends = [], []
    for start, stop in pairwise(cuts):
        given = tuple(np.zeros_like(part) for part in arrays(state))
        for mine, whole in zip(given, arrays(state), strict=True):
            if start == 0:
                mine[::directions] = whole[::directions]
            if stop == T and bidirectional:
                mine[1::2] = whole[1::2]
        piece, end = layer(x[start:stop], given if isinstance(state, tuple) else given[0])
        pieces.append(piece)
        ends.append(arrays(end))
    assert_same_bits(output, np.concatenate(pieces))
    for part, first, last in zip(arrays(final), ends[0], ends[-1], strict=True):
        assert_same_bits(part[::directions], last[::directions])
        if bidirectional:
            assert_same_bits(part[1::2], first[1::2])


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_row(cell: str, direction: dict[str, Any], rng: Rng) -> None:
    T, B, row, step = 6, 33, 17, 3
    layer = make_layer(cell, 5, 21, rng, num_layers=2, **direction)
    x = rng.standard_normal((T, B, 5), np.float32)
    clean_output, clean_final = layer(x)
    x[step, row, 2] = np.nan

    output, final = layer(x)

    others = np.arange(B) != row
    assert_same_bits(output[:, others], clean_output[:, others])
    for part, clean in zip(arrays(final), arrays(clean_final), strict=True):
        assert_same_bits(part[:, others], clean[:, others])
    if direction["bidirectional"]:  # the second layer meets a NaN at every step
        assert np.isnan(output[:, row]).all()
    else:
        assert np.isnan(output[step:, row]).all()
        assert_same_bits(output[:step, row], clean_output[:step, row])
        assert all(np.isnan(part[:, row]).all() for part in arrays(final))


@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_the_state_propagates(cell: str, rng: Rng) -> None:
    layer = make_layer(cell, 5, 21, rng)
    x = rng.standard_normal((3, 4, 5), np.float32)
    for part in range(2 if cell in LSTM_CELLS else 1):
        state = draw_state(cell, rng, B=4, hidden_size=21)
        arrays(state)[part][0, 1] = np.nan
        output, _ = layer(x, state)
        assert np.isnan(output[:, 1]).all()
        assert np.isfinite(output[:, [0, 2, 3]]).all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_reset_forgets_nan(cell: str, bidirectional: bool, rng: Rng) -> None:
    """A state is dropped by a reset, not multiplied by zero."""
    layer = make_layer(cell, 5, 21, rng, bidirectional=bidirectional)
    x = rng.standard_normal((6, 3, 5), np.float32)
    x[2, 1] = np.nan
    state = draw_state(cell, rng, B=3, hidden_size=21, bidirectional=bidirectional)
    for part in arrays(state):
        part[0, 1] = np.nan  # the forward direction's, dropped by the reset at t=0
    resets = np.zeros((6, 3), bool)
    resets[[0, 2, 3], 1] = True

    output, final = layer(x, state, resets=resets)

    assert np.isnan(output[2, 1]).all()
    assert np.isfinite(np.delete(output[:, 1], 2, axis=0)).all()
    assert all(np.isfinite(part).all() for part in arrays(final))
    expected, _ = oracle(cell, layer, x, state, None, resets, bidirectional=bidirectional)
    assert_close(output, expected, tolerance(6, 5, 21, bidirectional=bidirectional))


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell: str, direction: dict[str, Any], rng: Rng) -> None:
    layer = make_layer(cell, 17, 17, rng, num_layers=2, residual=True, **direction)
    x = rng.standard_normal((7, 5, 17), np.float32)
    lengths = np.array(LENGTHS["some zero"])
    clean_output, clean_final = layer(x, lengths=lengths)
    padding = np.arange(7)[:, np.newaxis] >= lengths
    x[padding] = np.nan

    output, final = layer(x, lengths=lengths)

    assert_same_bits(output, clean_output)
    assert_same_bits(final, clean_final)
    assert_same_bits(output[padding], np.zeros_like(output[padding]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_infinite_input(cell: str, dtype: str, rng: Rng) -> None:
    """One infinite feature saturates the gates; relu, which cannot, gives what IEEE gives."""
    layer = make_layer(cell, 3, 18, rng, dtype=dtype)
    for value in (np.inf, -np.inf):
        x = rng.standard_normal((4, 5, 3)).astype(dtype)
        x[1, 2, 0] = value
        output, _ = layer(x)
        with np.errstate(invalid="ignore"):  # relu: inf - inf in the step after
            expected, _ = oracle(cell, layer, x)
        assert_close(output, expected, tolerance(4, 3, 18, dtype))
        assert cell == "rnn_relu" or np.isfinite(output).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("cell", CELLS)
def test_large_input(cell: str, scale: float, dtype: str, rng: Rng) -> None:
    layer = make_layer(cell, 1, 18, rng, dtype=dtype)
    x = (scale * rng.standard_normal((4, 5, 1))).astype(dtype)
    output, _ = layer(x)
    expected, _ = oracle(cell, layer, x)
    assert np.isfinite(output).all()
    # The error of a sum is relative to its largest term; beyond 40 a gate is saturated.
    largest = float(np.abs(x).max()) if cell == "rnn_relu" else 40
    assert_close(output, expected, largest * tolerance(4, 1, 18, dtype))


@pytest.mark.parametrize("cell", CELLS)
def test_evaluation_mode_gives_the_same_bits(cell: str, rng: Rng) -> None:
    layer = make_layer(cell, 3, 18, rng, num_layers=2, bidirectional=True)
    x = rng.standard_normal((4, 5, 3), np.float32)
    trained = layer(x)
    layer.eval()
    for _ in range(2):
        evaluated = layer(x)
        assert_same_bits(evaluated[0], trained[0])
        assert_same_bits(evaluated[1], trained[1])
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})
    expected, _ = oracle(cell, layer, x, num_layers=2, bidirectional=True)
    assert_close(layer(x)[0], expected, 2 * tolerance(4, 3, 18, num_layers=2, bidirectional=True))


def dropout_probe(dropout: float, seed: int, **options: Any) -> Any:
    """Two relu layers whose output is the dropout mask that lies between them.

    The first layer's output is 1 everywhere; the second one adds nothing to its input. H = 20.
    """
    layer = fastrnn.RNN(3, 20, 2, "relu", dropout=dropout, seed=seed, **options)
    parameters = {name: np.zeros_like(value) for name, value in layer.parameters.items()}
    directions = [""] + (["_reverse"] if options.get("bidirectional") else [])
    for number, suffix in enumerate(directions):
        parameters[f"bias_ih_l0{suffix}"][:] = 1
        parameters[f"weight_ih_l1{suffix}"][:, 20 * number : 20 * (number + 1)] = np.eye(20)
    layer.load_state_dict(parameters)
    return layer


def dropout_mask(T: int, B: int, dropout: float, seed: int, **options: Any) -> Array:
    mask: Array = dropout_probe(dropout, seed, **options)(np.zeros((T, B, 3), np.float32))[0]
    return mask


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.8])
def test_dropout_statistics(dropout: float, bidirectional: bool) -> None:
    mask = dropout_mask(50, 64, dropout, 1, bidirectional=bidirectional)
    dropped = mask == 0
    np.testing.assert_allclose(mask[~dropped], 1 / (1 - dropout), rtol=1e-6)
    # Five standard deviations of what a fair coin gives; the seed is fixed, so no flakes.
    deviation = np.sqrt(dropout * (1 - dropout))
    assert abs(dropped.mean() - dropout) < 5 * deviation / np.sqrt(dropped.size)
    coin = (dropped - dropout) / deviation
    for axis in range(3):
        rest = tuple(other for other in range(3) if other != axis)
        means = coin.mean(axis=rest) * np.sqrt(coin.size / coin.shape[axis])
        assert np.abs(means).max() < 5
        for lag in (1, 2, 4, 8, 16):
            left = np.take(coin, range(coin.shape[axis] - lag), axis)
            right = np.take(coin, range(lag, coin.shape[axis]), axis)
            assert abs((left * right).mean()) < 5 / np.sqrt(left.size)


def test_dropout_mask_follows_the_seed() -> None:
    mask = dropout_mask(6, 5, 0.5, 1)
    assert_same_bits(dropout_mask(6, 5, 0.5, 1), mask)
    assert (dropout_mask(6, 5, 0.5, 2) != mask).any()


def test_every_call_draws_a_new_mask() -> None:
    x = np.zeros((6, 5, 3), np.float32)
    first, second = dropout_probe(0.5, 1), dropout_probe(0.5, 1)
    calls = [first(x)[0] for _ in range(3)]
    assert all((calls[a] != calls[b]).any() for a, b in ((0, 1), (0, 2), (1, 2)))
    for call in calls:
        assert_same_bits(second(x)[0], call)


def test_every_layer_has_its_own_mask(rng: Rng) -> None:
    layer = fastrnn.RNN(3, 20, 3, "relu", dropout=0.5, seed=1)
    parameters = {name: np.zeros_like(value) for name, value in layer.parameters.items()}
    parameters["bias_ih_l0"][:] = 1
    parameters["weight_ih_l1"][:] = parameters["weight_ih_l2"][:] = np.eye(20)
    layer.load_state_dict(parameters)
    product = layer(np.zeros((50, 8, 3), np.float32))[0]
    np.testing.assert_array_equal(np.unique(product), [0, 4])
    kept = (product > 0).mean()
    assert abs(kept - 0.25) < 5 * np.sqrt(0.25 * 0.75 / product.size)


def test_dropout_of_everything() -> None:
    assert_same_bits(dropout_mask(6, 5, 1.0, 1), np.zeros((6, 5, 20), np.float32))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_against_the_oracle(bidirectional: bool, rng: Rng) -> None:
    mask = dropout_mask(6, 5, 0.4, 9, bidirectional=bidirectional)
    options: dict[str, Any] = {"bidirectional": bidirectional, "residual": True}
    layer = dropout_probe(0.4, 9, **options)
    layer.load_state_dict(
        {name: rng.uniform(-0.2, 0.2, value.shape) for name, value in layer.parameters.items()}
    )
    x = rng.standard_normal((6, 5, 3), np.float32)
    output, final = layer(x)
    expected_output, expected_final = oracle(
        "rnn_relu", layer, x, masks=[mask], num_layers=2, **options
    )
    bound = tolerance(6, 3, 20, num_layers=2, bidirectional=bidirectional)
    assert_close(output, expected_output, bound)
    assert_close(final, expected_final, bound)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_is_off_at_zero_in_evaluation_and_in_step(cell: str, rng: Rng) -> None:
    x = rng.standard_normal((6, 5, 3), np.float32)
    plain = make_layer(cell, 3, 18, rng, num_layers=2)
    expected_output, expected_final = plain(x)
    dropping = make_layer(cell, 3, 18, rng, num_layers=2, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    assert (dropping(x)[0] != expected_output).any()
    state = None
    for t in range(6):
        h, state = dropping.step(x[t], state)
        assert_same_bits(h, expected_output[t])
    dropping.eval()
    output, final = dropping(x)
    assert_same_bits(output, expected_output)
    assert_same_bits(final, expected_final)
    assert_same_bits(state, expected_final)


def test_dropout_leaves_the_last_layer_alone() -> None:
    layer = dropout_probe(0.5, 1)
    parameters = layer.state_dict()
    parameters["weight_ih_l1"][:] = 0
    parameters["bias_ih_l1"][:] = 1
    layer.load_state_dict(parameters)
    output, final = layer(np.zeros((6, 5, 3), np.float32))
    assert_same_bits(output, np.ones_like(output))
    assert_same_bits(final, np.ones_like(final))  # each layer's raw state, not its dropped output
