"""Truncated backpropagation: windows that carry the state and cut the gradient."""

from __future__ import annotations

from typing import Any

import fastrnn
import numpy as np
import pytest
import reference
from parity import (
    CELLS,
    Array,
    arrays,
    assert_close,
    assert_same_bits,
    draw_resets,
    draw_state,
    make_layer,
)

Rng = np.random.Generator
T, B, INPUTS, H = 11, 4, 5, 9
LENGTHS = np.array([11, 3, 0, 8])


def total_gradients(layer: Any, x: Array, k: int, grad_output: Array, **given: Any) -> Any:
    """Outputs, final state, gradients of x, and of the parameters summed over the windows."""
    outputs, inputs, state = [], [], None
    total: dict[str, Array] = {}
    for window in fastrnn.tbptt(layer, x, k, **given):
        g = layer.backward(window.tape, grad_output[window.steps])
        for name, gradient in g.parameters.items():
            total[name] = total[name] + gradient if name in total else gradient
        outputs.append(window.output)
        inputs.append(g.input)
        state = window.state
    return np.concatenate(outputs), state, np.concatenate(inputs), total


@pytest.mark.parametrize("cell", CELLS)
def test_one_window_is_plain_backpropagation(cell: str, rng: Rng) -> None:
    layer = make_layer(cell, INPUTS, H, rng, num_layers=2)
    x = rng.standard_normal((T, B, INPUTS), np.float32)
    grad_output = rng.standard_normal((T, B, H), np.float32)
    given = {
        "state": draw_state(cell, rng, B=B, hidden_size=H, num_layers=2),
        "lengths": LENGTHS,
        "resets": draw_resets(rng, T, B),
    }
    for k in (T, T + 5):
        output, state, grad_input, gradients = total_gradients(layer, x, k, grad_output, **given)
        expected_output, expected_state, tape = layer.forward(x, **given)
        expected = layer.backward(tape, grad_output)
        assert_same_bits(output, expected_output)
        assert_same_bits(state, expected_state)
        assert_same_bits(grad_input, expected.input)
        for name, gradient in expected.parameters.items():
            assert_same_bits(gradients[name], gradient)


@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_stop_at_window_edges(cell: str, k: int, rng: Rng) -> None:
    """The definition: each window differentiated alone, its initial state a constant."""
    layer = make_layer(cell, INPUTS, H, rng, dtype=np.float64)
    x = rng.standard_normal((T, B, INPUTS))
    grad_output = rng.standard_normal((T, B, H))
    resets = draw_resets(rng, T, B)
    state = draw_state(cell, rng, B=B, hidden_size=H, dtype=np.float64)
    output, last, grad_input, gradients = total_gradients(
        layer, x, k, grad_output, state=state, lengths=LENGTHS, resets=resets
    )

    expected = {name: np.zeros_like(value) for name, value in layer.parameters.items()}
    for start in range(0, T, k):
        steps = slice(start, min(start + k, T))
        given = (
            *(cell, layer.parameters, x[steps], state),
            *(np.clip(LENGTHS - start, 0, steps.stop - start), resets[steps]),
        )
        y, after = reference.forward(*given)
        dx, _, d_parameters = reference.backward(*given, grad_output=grad_output[steps])
        assert_close(output[steps], y, 1e-13)
        assert_close(grad_input[steps], dx, 1e-13)
        for name, gradient in d_parameters.items():
            expected[name] += gradient
        state = after
    for part, expected_part in zip(arrays(last), arrays(state), strict=True):
        assert_close(part, expected_part, 1e-13)
    for name, gradient in expected.items():
        assert_close(gradients[name], gradient, 1e-12)
    # The cut is seen: plain backpropagation gives something else.
    _, _, tape = layer.forward(x, resets=resets)
    plain = layer.backward(tape, grad_output).parameters["weight_hh_l0"]
    assert np.abs(plain - gradients["weight_hh_l0"]).max() > 1e-3


def test_outputs_are_those_of_the_whole_sequence(rng: Rng) -> None:
    layer = make_layer("lstm", INPUTS, H, rng, batch_first=True)
    x = rng.standard_normal((B, T, INPUTS), np.float32)
    resets = draw_resets(rng, B, T)
    expected, expected_state = layer(x, lengths=LENGTHS, resets=resets)
    windows = list(fastrnn.tbptt(layer, x, 4, lengths=LENGTHS.tolist(), resets=resets.tolist()))
    assert [window.steps for window in windows] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert_same_bits(np.concatenate([window.output for window in windows], 1), expected)
    assert_same_bits(windows[-1].state, expected_state)


def test_unbatched(rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng, batch_first=True)
    x = rng.standard_normal((T, INPUTS), np.float32)
    windows = list(fastrnn.tbptt(layer, x, 3, resets=np.arange(T) == 5))
    expected, _ = layer(x, resets=np.arange(T) == 5)
    assert_same_bits(np.concatenate([window.output for window in windows]), expected)


def test_a_window_runs_when_it_is_asked_for(rng: Rng) -> None:
    layer = make_layer("gru", INPUTS, H, rng)
    x = rng.standard_normal((4, B, INPUTS), np.float32)
    windows = fastrnn.tbptt(layer, x, 2)
    first = next(windows)
    for parameter in layer.parameters.values():
        parameter *= 0.5
    second = next(windows)
    expected, _ = layer(x[2:], first.state)
    assert_same_bits(second.output, expected)
    assert next(windows, None) is None


def test_no_steps_no_windows() -> None:
    assert list(fastrnn.tbptt(fastrnn.GRU(3, 4), np.zeros((0, 2, 3), np.float32), 5)) == []


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: expected an integer >= 1, got 0"),
        ({"k": 2.0}, TypeError, "k: expected an integer >= 1, got 2.0"),
        ({"x": [[1.0]]}, TypeError, "x: expected an array, got list"),
        ({"x": np.zeros((4, 2, 3))}, TypeError, r"x: expected \(T, B, 3\) float32"),
        ({"x": np.zeros((4, 2, 7), np.float32)}, ValueError, r"float32, got \(4, 2, 7\)"),
        ({"x": np.float32(1)}, ValueError, "x: expected"),
        ({"lengths": [5, 0]}, ValueError, "lengths: expected integers in 0..4, got 5 at row 0"),
        ({"lengths": [-1, 0]}, ValueError, "lengths: expected integers in 0..4"),
        ({"lengths": [1, 2, 3]}, ValueError, r"lengths: expected \(2,\) int64"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths: expected integers"),
        ({"resets": np.zeros((3, 2), bool)}, ValueError, r"resets: expected \(4, 2\)"),
        ({"resets": np.zeros((4, 2))}, TypeError, "resets: expected"),
        ({"state": np.zeros((1, 3, 5), np.float32)}, ValueError, "state"),
    ],
)
def test_errors_come_with_the_call(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"x": np.zeros((4, 2, 3), np.float32), "k": 2} | given
    with pytest.raises(error, match=message):
        fastrnn.tbptt(fastrnn.GRU(3, 5), **arguments)


def test_bidirectional_layers_are_refused() -> None:
    layer = fastrnn.GRU(3, 5, bidirectional=True)
    with pytest.raises(ValueError, match="layer: expected one direction"):
        fastrnn.tbptt(layer, np.zeros((4, 2, 3), np.float32), 2)


@pytest.mark.parametrize("layer", [None, fastrnn.GRU, np.zeros(3)], ids=["None", "class", "array"])
def test_what_is_no_layer_is_refused(layer: Any) -> None:
    with pytest.raises(TypeError, match="layer: expected an RNN, LSTM or GRU of this package, got"):
        fastrnn.tbptt(layer, np.zeros((4, 2, 3), np.float32), 2)
