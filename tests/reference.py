"""Every cell as plain NumPy loops: the oracle that the engine is tested against.

Written from the equations, for reading and not for speed: one row, one direction and one step at
a time, in float64 unless the caller asks for another precision.

T steps, B batch, I inputs, H hidden units, P projected units, R recurrent width (P with a
projection, else H), G gates, L layers, D directions. Parameters carry torch.nn's names:
``weight_ih_l0`` (G*H, I), ``weight_hh_l0`` (G*H, R), ``bias_ih_l0`` and ``bias_hh_l0`` (G*H,),
``weight_hr_l0`` (P, H), ``weight_peep_l0`` (3, H), or (2, H) where the gates are coupled, for layer
normalisation ``norm_ih_weight_l0``, ``norm_ih_bias_l0``, ``norm_hh_weight_l0``,
``norm_hh_bias_l0`` (G*H,), ``norm_c_weight_l0`` and ``norm_c_bias_l0`` (H,), and the same with
``_reverse``.

References
----------
.. [1] F. Gers, J. Schmidhuber, "Recurrent nets that time and count", 2000 (peepholes).
.. [2] K. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014 (GRU).
.. [3] H. Sak et al., "Long short-term memory based recurrent neural network architectures for
   large vocabulary speech recognition", 2014 (projection).
.. [4] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization", 2016.
.. [5] K. Greff et al., "LSTM: a search space odyssey", 2017 (coupled input and forget gates).
.. [6] Y. Gal, Z. Ghahramani, "A theoretically grounded application of dropout in recurrent neural
   networks", 2016 (one mask a sequence).
.. [7] S. Merity, N. S. Keskar, R. Socher, "Regularizing and optimizing LSTM language models", 2018
   (dropout of weights).
.. [8] D. Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations",
   2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = tuple[Array, ...]  # (h,) or, for the LSTM cells, (h, c); each one row: h (R,), c (H,)
Weights = Mapping[str, Array]  # of one layer and direction, without the "_l0_reverse" suffix
Step = Callable[[Weights, Array, State], State]
Gradients = dict[str, Array]  # of the same names as the weights
# w, gradients to add to, x_t, state before, state after, dL/d(state after) -> dL/dx_t, dL/d(before)
StepBackward = Callable[[Weights, Gradients, Array, State, State, State], tuple[Array, State]]


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        return np.asarray(1 / (1 + np.exp(-x)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


EVERY = slice(None)


def layer_norm(v: Array) -> Array:
    """Zero mean and unit variance over all values [4]_."""
    return np.asarray((v - v.mean()) / np.sqrt(v.var() + 1e-5))


def normalise(w: Weights, part: str, v: Array, rows: slice = EVERY) -> Array:
    """Layer norm of `v` with rows `rows` of its gain and bias; without layer norm, v itself."""
    if f"norm_{part}_weight" not in w:
        return v
    gain, shift = w[f"norm_{part}_weight"][rows], w[f"norm_{part}_bias"][rows]
    return np.asarray(gain * layer_norm(v) + shift)


def bias(w: Weights, part: str, rows: slice = EVERY) -> Any:
    return w[f"bias_{part}"][rows] if f"bias_{part}" in w else 0


def from_input(w: Weights, x: Array) -> Array:
    """What the input adds to every gate: W_ih x + b_ih, (G*H,)."""
    return np.asarray(normalise(w, "ih", w["weight_ih"] @ x) + bias(w, "ih"))


def from_state(w: Weights, h: Array, rows: slice = EVERY) -> Array:
    """What the previous output adds to every gate, or some: W_hh h + b_hh, (G*H,)."""
    return np.asarray(normalise(w, "hh", w["weight_hh"][rows] @ h, rows) + bias(w, "hh", rows))


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


def limit(c: Array, clip: float) -> Array:
    return np.minimum(np.maximum(c, -clip), clip)


def emit(w: Weights, o: Array, c: Array) -> Array:
    """What an LSTM shows of its cell: o * tanh(c), normalised and projected if so configured."""
    return project(w, o * np.tanh(normalise(w, "c", c)))


def lstm_step(w: Weights, x: Array, state: State, clip: float = np.inf) -> State:
    h, c = state
    i, f, g, o = np.split(from_input(w, x) + from_state(w, h), 4)
    c = limit(sigmoid(f) * c + sigmoid(i) * np.tanh(g), clip)
    return emit(w, sigmoid(o), c), c


def lstm_peephole_step(w: Weights, x: Array, state: State, clip: float = np.inf) -> State:
    """As [1]_: the input and forget gates see the old c, the output gate sees the new one."""
    h, c = state
    peep_i, peep_f, peep_o = w["weight_peep"]
    i, f, g, o = np.split(from_input(w, x) + from_state(w, h), 4)
    new_c = limit(sigmoid(f + peep_f * c) * c + sigmoid(i + peep_i * c) * np.tanh(g), clip)
    return emit(w, sigmoid(o + peep_o * new_c), new_c), new_c


def lstm_coupled_step(w: Weights, x: Array, state: State, clip: float = np.inf) -> State:
    """What the input gate lets in displaces as much of the old c: f = 1 - i [5]_."""
    h, c = state
    i, g, o = np.split(from_input(w, x) + from_state(w, h), 3)
    c = limit(c + sigmoid(i) * (np.tanh(g) - c), clip)
    return emit(w, sigmoid(o), c), c


def lstm_coupled_peephole_step(w: Weights, x: Array, state: State, clip: float = np.inf) -> State:
    h, c = state
    peep_i, peep_o = w["weight_peep"]
    i, g, o = np.split(from_input(w, x) + from_state(w, h), 3)
    new_c = limit(c + sigmoid(i + peep_i * c) * (np.tanh(g) - c), clip)
    return emit(w, sigmoid(o + peep_o * new_c), new_c), new_c


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
    gates, candidate = slice(0, 2 * len(h)), slice(2 * len(h), None)
    input_r, input_z, input_n = np.split(from_input(w, x), 3)
    state_r, state_z = np.split(from_state(w, h, gates), 2)
    r = sigmoid(input_r + state_r)
    z = sigmoid(input_z + state_z)
    n = np.tanh(input_n + from_state(w, r * h, candidate))
    return ((1 - z) * n + z * h,)


# ---- one step backward: given dL/dh_t (and dL/dc_t), adds to the gradients of the weights, and
# returns dL/dx_t and dL/d(state before the step). Everything of the forward step is computed again.


def through_norm(
    w: Weights, g: Gradients, part: str, v: Array, dn: Array, rows: slice = EVERY
) -> Array:
    """Through `normalise` to v."""
    if f"norm_{part}_weight" not in w:
        return dn
    n = layer_norm(v)
    g[f"norm_{part}_weight"][rows] += dn * n
    g[f"norm_{part}_bias"][rows] += dn
    dn = dn * w[f"norm_{part}_weight"][rows]
    return np.asarray((dn - dn.mean() - n * (dn * n).mean()) / np.sqrt(v.var() + 1e-5))


def through_input(w: Weights, g: Gradients, x: Array, da: Array) -> Array:
    if "bias_ih" in w:
        g["bias_ih"] += da
    da = through_norm(w, g, "ih", w["weight_ih"] @ x, da)
    g["weight_ih"] += np.outer(da, x)
    return np.asarray(w["weight_ih"].T @ da)


def through_state(w: Weights, g: Gradients, h: Array, da: Array, rows: slice = EVERY) -> Array:
    """Through rows `rows` of W_hh h + b_hh only, where gates differ in what they multiply."""
    if "bias_hh" in w:
        g["bias_hh"][rows] += da
    da = through_norm(w, g, "hh", w["weight_hh"][rows] @ h, da, rows)
    g["weight_hh"][rows] += np.outer(da, h)
    return np.asarray(w["weight_hh"][rows].T @ da)


def rnn_backward(slope: Callable[[Array], Array]) -> StepBackward:
    """Backward of h_t = f(a); `slope` is f'(a) in terms of h_t."""

    def backward(
        w: Weights, g: Gradients, x: Array, state: State, after: State, grad: State
    ) -> tuple[Array, State]:
        (dh,) = grad
        da = dh * slope(after[0])
        return through_input(w, g, x, da), (through_state(w, g, state[0], da),)

    return backward


def through_emit(w: Weights, g: Gradients, o: Array, c: Array, dh: Array) -> tuple[Array, Array]:
    """Through `emit` to the pre-activation of o, and to c."""
    tanh_c = np.tanh(normalise(w, "c", c))
    if "weight_hr" in w:
        g["weight_hr"] += np.outer(dh, o * tanh_c)
        dh = w["weight_hr"].T @ dh
    return dh * tanh_c * o * (1 - o), through_norm(w, g, "c", c, dh * o * (1 - tanh_c**2))


def lstm_backward(
    w: Weights,
    g: Gradients,
    x: Array,
    state: State,
    after: State,
    grad: State,
    clip: float = np.inf,
) -> tuple[Array, State]:
    h, c = state
    dh, dc = grad
    new_c = after[1]
    peep_i, peep_f, peep_o = w.get("weight_peep", np.zeros((3, len(c)), c.dtype))
    a_i, a_f, a_g, a_o = np.split(from_input(w, x) + from_state(w, h), 4)
    i, f, n = sigmoid(a_i + peep_i * c), sigmoid(a_f + peep_f * c), np.tanh(a_g)
    da_o, dc_shown = through_emit(w, g, sigmoid(a_o + peep_o * new_c), new_c, dh)
    dc = (dc + dc_shown + peep_o * da_o) * (np.abs(f * c + i * n) <= clip)
    da_i = dc * n * i * (1 - i)
    da_f = dc * c * f * (1 - f)
    da_g = dc * i * (1 - n**2)
    if "weight_peep" in w:
        g["weight_peep"] += np.stack([da_i * c, da_f * c, da_o * new_c])
    da = np.concatenate([da_i, da_f, da_g, da_o])
    dc_before = dc * f + peep_i * da_i + peep_f * da_f
    return through_input(w, g, x, da), (through_state(w, g, h, da), dc_before)


def lstm_coupled_backward(
    w: Weights,
    g: Gradients,
    x: Array,
    state: State,
    after: State,
    grad: State,
    clip: float = np.inf,
) -> tuple[Array, State]:
    h, c = state
    dh, dc = grad
    new_c = after[1]
    peep_i, peep_o = w.get("weight_peep", np.zeros((2, len(c)), c.dtype))
    a_i, a_g, a_o = np.split(from_input(w, x) + from_state(w, h), 3)
    i, n = sigmoid(a_i + peep_i * c), np.tanh(a_g)
    da_o, dc_shown = through_emit(w, g, sigmoid(a_o + peep_o * new_c), new_c, dh)
    dc = (dc + dc_shown + peep_o * da_o) * (np.abs(c + i * (n - c)) <= clip)
    da_i = dc * (n - c) * i * (1 - i)
    da_g = dc * i * (1 - n**2)
    if "weight_peep" in w:
        g["weight_peep"] += np.stack([da_i * c, da_o * new_c])
    da = np.concatenate([da_i, da_g, da_o])
    dc_before = dc * (1 - i) + peep_i * da_i
    return through_input(w, g, x, da), (through_state(w, g, h, da), dc_before)


def gru_backward(
    w: Weights, g: Gradients, x: Array, state: State, after: State, grad: State
) -> tuple[Array, State]:
    (h,), (dh,) = state, grad
    input_r, input_z, input_n = np.split(from_input(w, x), 3)
    state_r, state_z, state_n = np.split(from_state(w, h), 3)
    r, z = sigmoid(input_r + state_r), sigmoid(input_z + state_z)
    n = np.tanh(input_n + r * state_n)
    da_n = dh * (1 - z) * (1 - n**2)
    da_z = dh * (h - n) * z * (1 - z)
    da_r = da_n * state_n * r * (1 - r)
    dx = through_input(w, g, x, np.concatenate([da_r, da_z, da_n]))
    return dx, (dh * z + through_state(w, g, h, np.concatenate([da_r, da_z, da_n * r])),)


def gru_reset_before_backward(
    w: Weights, g: Gradients, x: Array, state: State, after: State, grad: State
) -> tuple[Array, State]:
    (h,), (dh,) = state, grad
    gates, candidate = slice(0, 2 * len(h)), slice(2 * len(h), None)
    input_r, input_z, input_n = np.split(from_input(w, x), 3)
    state_r, state_z = np.split(from_state(w, h, gates), 2)
    r, z = sigmoid(input_r + state_r), sigmoid(input_z + state_z)
    n = np.tanh(input_n + from_state(w, r * h, candidate))
    da_n = dh * (1 - z) * (1 - n**2)
    da_z = dh * (h - n) * z * (1 - z)
    d_reset = through_state(w, g, r * h, da_n, candidate)  # of r h
    da_r = d_reset * h * r * (1 - r)
    dx = through_input(w, g, x, np.concatenate([da_r, da_z, da_n]))
    through_gates = through_state(w, g, h, np.concatenate([da_r, da_z]), gates)
    return dx, (dh * z + d_reset * r + through_gates,)


STEPS: dict[str, Callable[..., State]] = {
    "rnn_tanh": rnn_tanh_step,
    "rnn_relu": rnn_relu_step,
    "rnn_sigmoid": rnn_sigmoid_step,
    "lstm": lstm_step,
    "lstm_peephole": lstm_peephole_step,
    "lstm_coupled": lstm_coupled_step,
    "lstm_coupled_peephole": lstm_coupled_peephole_step,
    "gru": gru_step,
    "gru_reset_before": gru_reset_before_step,
}

BACKWARDS: dict[str, Callable[..., tuple[Array, State]]] = {
    "rnn_tanh": rnn_backward(lambda h: 1 - h**2),
    "rnn_relu": rnn_backward(lambda h: (h > 0).astype(h.dtype)),
    "rnn_sigmoid": rnn_backward(lambda h: h * (1 - h)),
    "lstm": lstm_backward,
    "lstm_peephole": lstm_backward,
    "lstm_coupled": lstm_coupled_backward,
    "lstm_coupled_peephole": lstm_coupled_backward,
    "gru": gru_backward,
    "gru_reset_before": gru_reset_before_backward,
}

GATES = {
    **dict.fromkeys(["rnn_tanh", "rnn_relu", "rnn_sigmoid"], 1),
    **dict.fromkeys(["lstm", "lstm_peephole"], 4),
    **dict.fromkeys(["lstm_coupled", "lstm_coupled_peephole"], 3),
    **dict.fromkeys(["gru", "gru_reset_before"], 3),
}

MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda forward, backward: np.concatenate([forward, backward], axis=-1),
    "sum": lambda forward, backward: forward + backward,
    "mean": lambda forward, backward: (forward + backward) / 2,
    "max": np.maximum,
    "mul": lambda forward, backward: forward * backward,
}

# dL/d(forward), dL/d(backward) of a merge; where both are the maximum, torch halves the gradient.
MERGES_BACKWARD: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {
    "concat": lambda dy, a, b: (dy[..., : a.shape[-1]], dy[..., a.shape[-1] :]),
    "sum": lambda dy, a, b: (dy, dy),
    "mean": lambda dy, a, b: (dy / 2, dy / 2),
    "max": lambda dy, a, b: (
        dy * ((a > b) + (a == b) / 2),
        dy * ((b > a) + (a == b) / 2),
    ),
    "mul": lambda dy, a, b: (dy * b, dy * a),
}


def zone_out(keep: State | None, before: State, after: State) -> State:
    """Keep part of every unit's value before the step: all or nothing, or an expectation [8]_."""
    if keep is None:
        return after
    return tuple(z * old + (1 - z) * new for z, old, new in zip(keep, before, after, strict=True))


def divide(keep: State | None, grad: State) -> tuple[State, State]:
    """Of the gradient of what `zone_out` gives, what belongs to `before`, and what to `after`."""
    if keep is None:
        return zeros_like(grad), grad
    return (
        tuple(z * part for z, part in zip(keep, grad, strict=True)),
        tuple((1 - z) * part for z, part in zip(keep, grad, strict=True)),
    )


def run_row(
    step: Step,
    w: Weights,
    x: Array,
    state: State,
    resets: Array,
    reverse: bool,
    zoneout: State | None = None,
) -> tuple[State, State]:
    """Run one direction over one row.

    Parameters
    ----------
    x
        (T, I), the valid steps of the row only.
    resets
        (T,) bool; a reset at t cuts the sequence between t-1 and t.
    zoneout
        For each part of the state (T, width): how much of it a step leaves as it was.

    Returns
    -------
    states, state
        (T, width) for each part, and the state after the last step taken (step 0 when `reverse`).
    """
    T = len(x)
    states = tuple(np.zeros((T, len(part)), x.dtype) for part in state)
    for t in reversed(range(T)) if reverse else range(T):
        if is_cut(t, resets, reverse):
            state = zeros_like(state)
        state = zone_out(at(t, zoneout), state, step(w, x[t], state))
        for every, part in zip(states, state, strict=True):
            every[t] = part
    return states, state


def at(t: int, parts: State | None) -> State | None:
    return None if parts is None else tuple(part[t] for part in parts)


def is_cut(t: int, resets: Array, reverse: bool) -> bool:
    """Whether a reset lies between the step taken before t and t."""
    cut = t + 1 if reverse else t
    return cut < len(resets) and bool(resets[cut])


def zeros_like(state: State) -> State:
    return tuple(np.zeros_like(part) for part in state)


def backward_row(
    step: Step,
    step_backward: StepBackward,
    w: Weights,
    g: Gradients,
    x: Array,
    state: State,
    resets: Array,
    reverse: bool,
    zoneout: State | None,
    grad_states: State,
    grad_state: State,
) -> tuple[Array, State]:
    """Differentiate `run_row`: adds to `g`; returns dL/dx (T, I) and dL/d(initial state)."""
    T = len(x)
    order = list(reversed(range(T)) if reverse else range(T))
    steps = []  # state before every step and what the cell made of it, in the order taken
    for t in order:
        before = zeros_like(state) if is_cut(t, resets, reverse) else state
        made = step(w, x[t], before)
        steps.append((before, made))
        state = zone_out(at(t, zoneout), before, made)
    dx = np.zeros_like(x)
    grad = grad_state
    for t, (before, made) in zip(reversed(order), reversed(steps), strict=True):
        grad = tuple(part + every[t] for part, every in zip(grad, grad_states, strict=True))
        around, through = divide(at(t, zoneout), grad)
        dx[t], grad = step_backward(w, g, x[t], before, made, through)
        grad = tuple(part + kept for part, kept in zip(grad, around, strict=True))
        if is_cut(t, resets, reverse):
            grad = zeros_like(grad)
    return dx, grad


def weights_of(
    parameters: Mapping[str, Array], layer: int, reverse: bool, precision: Any
) -> dict[str, Array]:
    suffix = suffix_of(layer, reverse)
    return {
        name.removesuffix(suffix): np.asarray(value, precision)
        for name, value in parameters.items()
        if name.endswith(suffix)
    }


def suffix_of(layer: int, reverse: bool) -> str:
    return f"_l{layer}" + ("_reverse" if reverse else "")


class Network:
    """A layer stack and what it is run on, with the batch always the second axis.

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
    input_masks
        What the input of every layer is multiplied by in all its steps, (B, width) each [6]_.
    recurrent_masks
        For every layer and direction, what W_hh's factor is multiplied by in all steps, (B, R).
    weight_masks
        For every layer and direction, what W_hh is multiplied by, (G*H, R) [7]_.
    zoneout
        For every layer and direction a tuple of how much of h, and for the LSTM cells of c, a step
        leaves as it was: numbers, or (T, B, R) and (T, B, H).
    clip
        For the LSTM cells, the largest |c|.
    precision
        The type that everything is computed in.
    """

    def __init__(
        self,
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
        input_masks: Sequence[Array] | None = None,
        recurrent_masks: Sequence[Array] | None = None,
        weight_masks: Sequence[Array] | None = None,
        zoneout: Sequence[tuple[Any, ...]] | None = None,
        clip: float | None = None,
        precision: Any = np.float64,
    ) -> None:
        self.cell, self.parameters, self.precision = cell, parameters, precision
        self.num_layers, self.directions = num_layers, 2 if bidirectional else 1
        self.merge, self.residual, self.masks = merge, residual, masks
        self.input_masks, self.zoneout = input_masks, zoneout
        self.recurrent_masks, self.weight_masks = recurrent_masks, weight_masks
        self.has_c = cell.startswith("lstm")
        bounded = {} if clip is None else {"clip": clip}
        self.step = partial(STEPS[cell], **bounded)
        self.step_backward = partial(BACKWARDS[cell], **bounded)
        self.unbatched, self.batch_first = np.ndim(x) == 2, batch_first
        self.x = self.batch_second(np.asarray(x, precision))
        T, B, _ = self.x.shape
        self.lengths = [T] * B if lengths is None else lengths
        self.resets = (
            np.zeros((T, B), bool) if resets is None else self.batch_second(np.asarray(resets))
        )
        H = parameters["weight_ih_l0"].shape[0] // GATES[cell]
        R = parameters["weight_hh_l0"].shape[1]
        self.widths = (R, H) if self.has_c else (R,)
        self.state = self.state_parts(state)

    def batch_second(self, array: Array) -> Array:
        if self.unbatched:
            return array[:, np.newaxis]
        return array.swapaxes(0, 1) if self.batch_first else array

    def as_given(self, array: Array) -> Array:
        """Undo `batch_second`."""
        if self.unbatched:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def state_parts(self, state: Any) -> list[Array]:
        """Copy a state into one (L*D, B, width) array per part."""
        shape = (self.num_layers * self.directions, self.x.shape[1])
        if state is None:
            return [np.zeros((*shape, width), self.precision) for width in self.widths]
        return [
            np.array(part, self.precision).reshape(*shape, width)
            for part, width in zip(state if self.has_c else [state], self.widths, strict=True)
        ]

    def state_as_given(self, parts: Sequence[Array]) -> Any:
        if self.unbatched:
            parts = [part[:, 0] for part in parts]
        return tuple(parts) if self.has_c else parts[0]

    def row(self, b: int, chain: int, parts: Sequence[Array]) -> State:
        return tuple(part[chain, b] for part in parts)

    def weights(self, layer: int, direction: int) -> dict[str, Array]:
        return weights_of(self.parameters, layer, direction == 1, self.precision)

    def weight_mask(self, chain: int, b: int) -> Any:
        """What W_hh is multiplied by for row b: a mask of h is one of its columns."""
        mask: Any = 1
        if self.weight_masks is not None:
            mask = mask * np.asarray(self.weight_masks[chain], self.precision)
        if self.recurrent_masks is not None:
            mask = mask * np.asarray(self.recurrent_masks[chain][b], self.precision)
        return mask

    def input_mask(self, layer: int) -> Any:
        """What all steps of a layer's input are multiplied by, (B, width)."""
        return 1 if self.input_masks is None else np.asarray(self.input_masks[layer])

    def zoneout_of(self, chain: int, b: int, length: int) -> State | None:
        if self.zoneout is None:
            return None
        shape = self.x.shape[:2]
        return tuple(
            np.broadcast_to(np.asarray(keep, self.precision), (*shape, width))[:length, b]
            for keep, width in zip(self.zoneout[chain], self.widths, strict=True)
        )

    def run_directions(self, layer: int, x: Array, final: Sequence[Array]) -> list[State]:
        """The states (T, B, width) of a layer's directions; writes their last into `final`."""
        x = x * self.input_mask(layer)
        all_states = []
        for direction in range(self.directions):
            chain = layer * self.directions + direction
            w = self.weights(layer, direction)
            states = tuple(np.zeros((*x.shape[:2], width), self.precision) for width in self.widths)
            for b, length in enumerate(self.lengths):
                of_row, last = run_row(
                    self.step,
                    {**w, "weight_hh": w["weight_hh"] * self.weight_mask(chain, b)},
                    x[:length, b],
                    self.row(b, chain, self.state),
                    self.resets[:length, b],
                    direction == 1,
                    self.zoneout_of(chain, b, length),
                )
                for part, value in zip(states, of_row, strict=True):
                    part[:length, b] = value
                for part, value in zip(final, last, strict=True):
                    part[chain, b] = value
            all_states.append(states)
        return all_states

    def combine(self, layer: int, x: Array, states: list[State]) -> Array:
        """Join what the directions made of `x` into the output of the layer."""
        outputs = [h for h, *_ in states]
        y = MERGES[self.merge](*outputs) if self.directions == 2 else outputs[0]
        if self.residual and y.shape == x.shape:
            y = y + x
        y = np.array(y)
        for b, length in enumerate(self.lengths):
            y[length:, b] = 0
        return np.asarray(y * self.mask(layer))

    def mask(self, layer: int) -> Any:
        """What the output of a layer is multiplied by, (T, B, width)."""
        return 1 if self.masks is None or layer == self.num_layers - 1 else self.masks[layer]

    def forward(self, all_states: bool = False) -> tuple[Any, ...]:
        x, final = self.x, [part.copy() for part in self.state]
        chains = []
        for layer in range(self.num_layers):
            states = self.run_directions(layer, x, final)
            chains += states
            x = self.combine(layer, x, states)
        results = self.as_given(x), self.state_as_given(final)
        if not all_states:
            return results
        # With a time axis, the batch is one further right.
        parts = [
            np.stack(part)[:, :, 0] if self.unbatched else np.stack(part)
            for part in zip(*chains, strict=True)
        ]
        return *results, tuple(parts) if self.has_c else parts[0]

    def backward(
        self, grad_output: Any, grad_state: Any, grad_states: Any = None
    ) -> tuple[Array, Any, Gradients]:
        """Gradients of the input, the initial state and the parameters."""
        inputs, states = [self.x], []
        final = [part.copy() for part in self.state]
        for layer in range(self.num_layers):
            states.append(self.run_directions(layer, inputs[-1], final))
            inputs.append(self.combine(layer, inputs[-1], states[-1]))
        dy = np.zeros_like(inputs[-1])
        if grad_output is not None:
            dy += self.batch_second(np.asarray(grad_output, self.precision))
        grad_final = self.state_parts(grad_state)
        grad_initial = [np.zeros_like(part) for part in self.state]
        gradients: Gradients = {}
        for layer in reversed(range(self.num_layers)):
            x, mask = inputs[layer], self.input_mask(layer)
            dy = dy * self.mask(layer)
            for b, length in enumerate(self.lengths):
                dy[length:, b] = 0
            dx = np.zeros_like(x)
            outputs = [h for h, *_ in states[layer]]
            both = self.directions == 2
            parts = MERGES_BACKWARD[self.merge](dy, *outputs) if both else (dy,)
            for direction, part in enumerate(parts):
                chain = layer * self.directions + direction
                w = self.weights(layer, direction)
                total = {name: np.zeros_like(value) for name, value in w.items()}
                grad_steps = self.grad_steps(chain, grad_states)
                grad_steps[0] += part
                for b, length in enumerate(self.lengths):
                    weight_mask = self.weight_mask(chain, b)
                    g = {name: np.zeros_like(value) for name, value in w.items()}
                    row_dx, row_grad = backward_row(
                        self.step,
                        self.step_backward,
                        {**w, "weight_hh": w["weight_hh"] * weight_mask},
                        g,
                        (x * mask)[:length, b],
                        self.row(b, chain, self.state),
                        self.resets[:length, b],
                        direction == 1,
                        self.zoneout_of(chain, b, length),
                        tuple(grad[:length, b] for grad in grad_steps),
                        self.row(b, chain, grad_final),
                    )
                    g["weight_hh"] *= weight_mask
                    for name, value in g.items():
                        total[name] += value
                    dx[:length, b] += row_dx
                    for target, value in zip(grad_initial, row_grad, strict=True):
                        target[chain, b] = value
                suffix = suffix_of(layer, direction == 1)
                gradients.update({name + suffix: value for name, value in total.items()})
            dx = dx * mask
            dy = dx + dy if self.residual and dy.shape == x.shape else dx
        return self.as_given(dy), self.state_as_given(grad_initial), gradients

    def grad_steps(self, chain: int, grad_states: Any) -> list[Array]:
        """The gradients (T, B, width) of a chain's states, new arrays."""
        shape = self.x.shape[:2]
        if grad_states is None:
            return [np.zeros((*shape, width), self.precision) for width in self.widths]
        return [
            np.array(part[chain], self.precision).reshape(*shape, width)
            for part, width in zip(
                grad_states if self.has_c else [grad_states], self.widths, strict=True
            )
        ]


def forward(
    cell: str,
    parameters: Mapping[str, Array],
    x: Array,
    *arguments: Any,
    all_states: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    """Run a layer stack as the engine would, exactly as documented and no faster.

    Takes what `Network` takes; returns output and state, shaped as torch.nn's, and with
    `all_states` the states of every step, which are the state with T as its second axis.
    """
    return Network(cell, parameters, x, *arguments, **options).forward(all_states)


def backward(
    cell: str,
    parameters: Mapping[str, Array],
    x: Array,
    *arguments: Any,
    grad_output: Any = None,
    grad_state: Any = None,
    grad_states: Any = None,
    **options: Any,
) -> tuple[Array, Any, Gradients]:
    """Differentiate a linear function of what `forward` returns, whose coefficients are given.

    Returns
    -------
    input, state, parameters
        The gradients; those of the parameters by name.
    """
    network = Network(cell, parameters, x, *arguments, **options)
    return network.backward(grad_output, grad_state, grad_states)
