"""The NumPy peer's forward pass: what one would write by hand, vectorised over the batch."""

from __future__ import annotations

import numpy as np

from fastrnn.bench.problem import STATES, Array, Problem


def forward(problem: Problem) -> list[Array]:
    """Return output, h and (LSTM) c of all layers and directions, as torch.nn lays them out."""
    shape = problem.shape
    finals: list[list[Array]] = []
    output = problem.x[None] if shape.step else problem.x
    for layer in range(shape.layers):
        outputs = []
        for direction, suffix in enumerate(("", "_reverse")[: shape.directions]):
            if problem.state is None:
                zeros = np.zeros((shape.B, shape.H), shape.array_dtype)
                state = [zeros for _ in STATES[shape.cell]]
            else:
                state = [part[layer] for part in problem.state]
            W_ih, W_hh, b_ih, b_hh = (
                problem.weights[f"{name}_l{layer}{suffix}"]
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            order = slice(None, None, -1 if direction else 1)
            projected = output[order] @ W_ih.T + b_ih
            steps = []
            for gates in projected:
                state = _CELLS[shape.cell](gates, state[0] @ W_hh.T + b_hh, state)
                steps.append(state[0])
            outputs.append(np.stack(steps)[order])
            finals.append(state)
        output = np.concatenate(outputs, axis=-1)
    states = [np.stack(parts) for parts in zip(*finals, strict=True)]
    return [output[0] if shape.step else output, *states]


def _lstm(x: Array, h: Array, state: list[Array]) -> list[Array]:
    i, f, g, o = np.split(x + h, 4, axis=-1)
    c = _sigmoid(f) * state[1] + _sigmoid(i) * np.tanh(g)
    return [_sigmoid(o) * np.tanh(c), c]


def _gru(x: Array, h: Array, state: list[Array]) -> list[Array]:
    x_r, x_z, x_n = np.split(x, 3, axis=-1)
    h_r, h_z, h_n = np.split(h, 3, axis=-1)
    z = _sigmoid(x_z + h_z)
    n = np.tanh(x_n + _sigmoid(x_r + h_r) * h_n)
    return [n + z * (state[0] - n)]


def _rnn(x: Array, h: Array, state: list[Array]) -> list[Array]:
    return [np.tanh(x + h)]


def _sigmoid(x: Array) -> Array:
    # Through tanh: exp(-x) would overflow for large negative x.
    result: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return result


_CELLS = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
