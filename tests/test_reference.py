"""The oracle's BPTT against central differences of its own forward pass, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from parity import CELLS, LSTM_CELLS, MERGES, arrays, draw_state, make_layer

Rng = np.random.Generator
T, B, INPUTS, H, P = 4, 3, 3, 4, 2
STEP = 1e-6
TOLERANCE = (
    1e-8  # of sums of some 50 products of numbers below 1; the error of a difference is 1e-10
)


def assert_gradients(
    cell: str, rng: Rng, options: dict[str, Any], *, lengths: Any = None, resets: Any = None
) -> None:
    """Compare every element of every gradient of a random linear function of all outputs."""
    given = {name: value for name, value in options.items() if name != "masks"}
    layer = make_layer(cell, INPUTS, H, rng, dtype=np.float64, **given)
    run = {k: v for k, v in options.items() if k not in ("bias", "proj_size")}
    parameters = layer.state_dict()
    x = rng.normal(size=(T, B, INPUTS))
    state = draw_state(cell, rng, B=B, hidden_size=H, dtype=np.float64, **options)

    def outputs() -> list[Any]:
        y, last = reference.forward(cell, parameters, x, state, lengths, resets, **run)
        return [y, *arrays(last)]

    weights = [rng.normal(size=out.shape) for out in outputs()]
    grad_state = tuple(weights[1:]) if len(weights) > 2 else weights[1]
    dx, d_state, d_parameters = reference.backward(
        cell,
        parameters,
        x,
        state,
        lengths,
        resets,
        grad_output=weights[0],
        grad_state=grad_state,
        **run,
    )
    assert d_parameters.keys() == parameters.keys()
    pairs = [(x, dx), *zip(arrays(state), arrays(d_state), strict=True)]
    pairs += [(parameters[name], gradient) for name, gradient in d_parameters.items()]

    def value() -> float:
        return sum(float(np.sum(w * out)) for w, out in zip(weights, outputs(), strict=True))

    for array, gradient in pairs:
        assert gradient.shape == array.shape
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + STEP
            above = value()
            array[index] = kept - STEP
            below = value()
            array[index] = kept
            expected = (above - below) / (2 * STEP)
            assert abs(gradient[index] - expected) <= TOLERANCE * max(1, abs(expected))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_cells(cell: str, bias: bool, rng: Rng) -> None:
    assert_gradients(cell, rng, {"bias": bias})


@pytest.mark.parametrize("cell", LSTM_CELLS)
def test_projection(cell: str, rng: Rng) -> None:
    assert_gradients(cell, rng, {"proj_size": P})


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_and_resets(cell: str, rng: Rng) -> None:
    resets = rng.random((T, B)) < 0.4
    assert resets[1:].any()
    assert_gradients(cell, rng, {"bidirectional": True}, lengths=[2, 0, T], resets=resets)


@pytest.mark.parametrize("merge", MERGES)
def test_merges_and_residual(merge: str, rng: Rng) -> None:
    options = {"num_layers": 2, "bidirectional": True, "merge": merge, "residual": True}
    width = 2 * H if merge == "concat" else H
    masks = [(rng.random((T, B, width)) < 0.5) * 2.0]
    assert_gradients("gru", rng, {**options, "masks": masks}, lengths=[3, T, 1])
