"""Every cell as plain NumPy loops: the oracle that the engine is tested against.

Written from the equations, for reading and not for speed: one row, one direction and one step at
a time, in float64 unless the caller asks for another precision.

T steps, B batch, I inputs, H hidden units, P projected units, R recurrent width (P with a
projection, else H), G gates, L layers, D directions. Parameters carry torch.nn's names:
``weight_ih_l0`` (G*H, I), ``weight_hh_l0`` (G*H, R), ``bias_ih_l0`` and ``bias_hh_l0`` (G*H,),
``weight_hr_l0`` (P, H), ``weight_peep_l0`` (3, H), and the same with ``_reverse``.

References
----------
.. [1] F. Gers, J. Schmidhuber, "Recurrent nets that time and count", 2000 (peepholes).
.. [2] K. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014 (GRU).
.. [3] H. Sak et al., "Long short-term memory based recurrent neural network architectures for
   large vocabulary speech recognition", 2014 (projection).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = tuple[Array, ...]  # (h,) or, for the LSTM cells, (h, c); each one row: h (R,), c (H,)
Weights = Mapping[str, Array]  # of one layer and direction, without the "_l0_reverse" suffix
Step = Callable[[Weights, Array, State], State]


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        return np.asarray(1 / (1 + np.exp(-x)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def from_input(w: Weights, x: Array) -> Array:
    """What the input adds to every gate: W_ih x + b_ih, (G*H,)."""
    return w["weight_ih"] @ x + w.get("bias_ih", 0)


def from_state(w: Weights, h: Array) -> Array:
    """What the previous output adds to every gate: W_hh h + b_hh, (G*H,)."""
    return w["weight_hh"] @ h + w.get("bias_hh", 0)


def rnn_tanh_step(w: Weights, x: Array, state: State) -> State:
    (h,) = state
    return (np.tanh(from_input(w, x) + from_state(w, h)),)


def rnn_relu_step(w: Weights, x: Array, state: State) -> State:
    (h,) = state
    return (relu(from_input(w, x) + from_state(w, h)),)


def rnn_sigmoid_step(w: Weights, x: Array, state: State) -> State:
    (h,) = state
    return (sigmoid(from_input(w, x) + from_state(w, h)),)


def project(w: Weights, h: Array) -> Array:
    """LSTM projection [3]_, (H,) to (P,); without one, h itself."""
    return w["weight_hr"] @ h if "weight_hr" in w else h


def lstm_step(w: Weights, x: Array, state: State) -> State:
    h, c = state
    i, f, g, o = np.split(from_input(w, x) + from_state(w, h), 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return project(w, h), c


def lstm_peephole_step(w: Weights, x: Array, state: State) -> State:
    """As [1]_: the input and forget gates see the old c, the output gate sees the new one."""
    h, c = state
    peep_i, peep_f, peep_o = w["weight_peep"]
    i, f, g, o = np.split(from_input(w, x) + from_state(w, h), 4)
    new_c = sigmoid(f + peep_f * c) * c + sigmoid(i + peep_i * c) * np.tanh(g)
    h = sigmoid(o + peep_o * new_c) * np.tanh(new_c)
    return project(w, h), new_c


def gru_step(w: Weights, x: Array, state: State) -> State:
    """The reset gate scales W_hn h + b_hn, as in torch and cuDNN."""
    (h,) = state
    input_r, input_z, input_n = np.split(from_input(w, x), 3)
    state_r, state_z, state_n = np.split(from_state(w, h), 3)
    r = sigmoid(input_r + state_r)
    z = sigmoid(input_z + state_z)
    n = np.tanh(input_n + r * state_n)
    return ((1 - z) * n + z * h,)


def gru_reset_before_step(w: Weights, x: Array, state: State) -> State:
    """The original GRU [2]_: the reset gate scales h before W_hn multiplies it."""
    (h,) = state
    input_r, input_z, input_n = np.split(from_input(w, x), 3)
    state_r, state_z, _ = np.split(from_state(w, h), 3)
    r = sigmoid(input_r + state_r)
    z = sigmoid(input_z + state_z)
    _, _, state_n = np.split(from_state(w, r * h), 3)
    n = np.tanh(input_n + state_n)
    return ((1 - z) * n + z * h,)


STEPS: dict[str, Step] = {
    "rnn_tanh": rnn_tanh_step,
    "rnn_relu": rnn_relu_step,
    "rnn_sigmoid": rnn_sigmoid_step,
    "lstm": lstm_step,
    "lstm_peephole": lstm_peephole_step,
    "gru": gru_step,
    "gru_reset_before": gru_reset_before_step,
}

GATES = {"rnn": 1, "lstm": 4, "gru": 3}

MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda forward, backward: np.concatenate([forward, backward], axis=-1),
    "sum": lambda forward, backward: forward + backward,
    "mean": lambda forward, backward: (forward + backward) / 2,
    "max": np.maximum,
    "mul": lambda forward, backward: forward * backward,
}


def run_row(
    step: Step, w: Weights, x: Array, state: State, resets: Array, reverse: bool
) -> tuple[Array, State]:
    """Run one direction over one row.

    Parameters
    ----------
    x
        (T, I), the valid steps of the row only.
    resets
        (T,) bool; a reset at t cuts the sequence between t-1 and t.

    Returns
    -------
    output, state
        (T, R), and the state after the last step taken (step 0 when `reverse`).
    """
    T = len(x)
    output = np.zeros((T, len(state[0])), x.dtype)
    zero = tuple(np.zeros_like(part) for part in state)
    for t in reversed(range(T)) if reverse else range(T):
        came_from = t + 1 if reverse else t - 1
        cut = max(t, came_from)  # the reset that lies between `came_from` and t
        if cut < T and resets[cut]:
            state = zero
        state = step(w, x[t], state)
        output[t] = state[0]
    return output, state


def weights_of(
    parameters: Mapping[str, Array], layer: int, reverse: bool, precision: Any
) -> dict[str, Array]:
    suffix = f"_l{layer}" + ("_reverse" if reverse else "")
    return {
        name.removesuffix(suffix): np.asarray(value, precision)
        for name, value in parameters.items()
        if name.endswith(suffix)
    }


def forward(
    cell: str,
    parameters: Mapping[str, Array],
    x: Array,
    state: Any = None,
    lengths: Any = None,
    resets: Array | None = None,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    merge: str = "concat",
    residual: bool = False,
    batch_first: bool = False,
    masks: Sequence[Array] | None = None,
    precision: Any = np.float64,
) -> tuple[Array, Any]:
    """Run a whole layer stack as the engine would, exactly as documented and no faster.

    Parameters
    ----------
    x
        (T, B, I), (B, T, I) with `batch_first`, or unbatched (T, I).
    state
        None, h, or for the LSTM cells (h, c): h (L*D, B, R), c (L*D, B, H); no B if unbatched.
    lengths
        (B,) valid steps of every row.
    resets
        bool, laid out as `x` without its last axis.
    masks
        Dropout of every layer but the last: what its output is multiplied by, (T, B, width) each.
    precision
        The type that everything is computed in.

    Returns
    -------
    output, state
        Shaped as torch.nn's.
    """
    step = STEPS[cell]
    has_c = cell.startswith("lstm")
    unbatched = np.ndim(x) == 2
    x = np.asarray(x, precision)
    if unbatched:
        x = x[:, np.newaxis]
        resets = None if resets is None else np.asarray(resets)[:, np.newaxis]
    elif batch_first:
        x = x.swapaxes(0, 1)
        resets = None if resets is None else np.asarray(resets).swapaxes(0, 1)
    T, B, _ = x.shape
    if lengths is None:
        lengths = [T] * B
    if resets is None:
        resets = np.zeros((T, B), bool)

    H = parameters["weight_ih_l0"].shape[0] // GATES[cell.partition("_")[0]]
    R = parameters["weight_hh_l0"].shape[1]
    directions = 2 if bidirectional else 1
    widths = (R, H) if has_c else (R,)
    if state is None:
        state = [np.zeros((num_layers * directions, B, width), precision) for width in widths]
    else:
        state = [
            np.asarray(part, precision).reshape(num_layers * directions, B, width)
            for part, width in zip(state if has_c else [state], widths, strict=True)
        ]
    final = [part.copy() for part in state]

    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            reverse = direction == 1
            w = weights_of(parameters, layer, reverse, precision)
            row_state = layer * directions + direction
            output = np.zeros((T, B, R), precision)
            for b in range(B):
                valid = slice(0, lengths[b])
                output[valid, b], last = run_row(
                    step,
                    w,
                    x[valid, b],
                    tuple(part[row_state, b] for part in state),
                    resets[valid, b],
                    reverse,
                )
                for part, value in zip(final, last, strict=True):
                    part[row_state, b] = value
            outputs.append(output)
        y = MERGES[merge](*outputs) if bidirectional else outputs[0]
        if residual and y.shape == x.shape:
            y = y + x
        for b in range(B):
            y[lengths[b] :, b] = 0
        if masks is not None and layer < num_layers - 1:
            y = y * masks[layer]
        x = y

    if unbatched:
        x = x[:, 0]
        final = [part[:, 0] for part in final]
    elif batch_first:
        x = x.swapaxes(0, 1)
    return x, tuple(final) if has_c else final[0]
