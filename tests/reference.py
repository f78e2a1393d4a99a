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
Gradients = dict[str, Array]  # of the same names as the weights
# w, gradients to add to, x_t, state before, state after, dL/d(state after) -> dL/dx_t, dL/d(before)
StepBackward = Callable[[Weights, Gradients, Array, State, State, State], tuple[Array, State]]


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


# ---- one step backward: given dL/dh_t (and dL/dc_t), adds to the gradients of the weights, and
# returns dL/dx_t and dL/d(state before the step). Everything of the forward step is computed again.


def through_input(w: Weights, g: Gradients, x: Array, da: Array) -> Array:
    g["weight_ih"] += np.outer(da, x)
    if "bias_ih" in w:
        g["bias_ih"] += da
    return np.asarray(w["weight_ih"].T @ da)


def through_state(
    w: Weights, g: Gradients, h: Array, da: Array, gates: slice = slice(None)
) -> Array:
    """Through rows `gates` of W_hh h + b_hh only, where gates differ in what they multiply."""
    g["weight_hh"][gates] += np.outer(da, h)
    if "bias_hh" in w:
        g["bias_hh"][gates] += da
    return np.asarray(w["weight_hh"][gates].T @ da)


def rnn_backward(slope: Callable[[Array], Array]) -> StepBackward:
    """Backward of h_t = f(a); `slope` is f'(a) in terms of h_t."""

    def backward(
        w: Weights, g: Gradients, x: Array, state: State, after: State, grad: State
    ) -> tuple[Array, State]:
        (dh,) = grad
        da = dh * slope(after[0])
        return through_input(w, g, x, da), (through_state(w, g, state[0], da),)

    return backward


def lstm_backward(
    w: Weights, g: Gradients, x: Array, state: State, after: State, grad: State
) -> tuple[Array, State]:
    h, c = state
    dh, dc = grad
    new_c = after[1]
    peep_i, peep_f, peep_o = w.get("weight_peep", np.zeros((3, len(c))))
    a_i, a_f, a_g, a_o = np.split(from_input(w, x) + from_state(w, h), 4)
    i, f, n = sigmoid(a_i + peep_i * c), sigmoid(a_f + peep_f * c), np.tanh(a_g)
    o, tanh_c = sigmoid(a_o + peep_o * new_c), np.tanh(new_c)
    if "weight_hr" in w:
        g["weight_hr"] += np.outer(dh, o * tanh_c)
        dh = w["weight_hr"].T @ dh
    da_o = dh * tanh_c * o * (1 - o)
    dc = dc + dh * o * (1 - tanh_c**2) + peep_o * da_o
    da_i = dc * n * i * (1 - i)
    da_f = dc * c * f * (1 - f)
    da_g = dc * i * (1 - n**2)
    if "weight_peep" in w:
        g["weight_peep"] += np.stack([da_i * c, da_f * c, da_o * new_c])
    da = np.concatenate([da_i, da_f, da_g, da_o])
    dc_before = dc * f + peep_i * da_i + peep_f * da_f
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
    state_r, state_z, _ = np.split(from_state(w, h), 3)
    r, z = sigmoid(input_r + state_r), sigmoid(input_z + state_z)
    n = np.tanh(input_n + from_state(w, r * h)[candidate])
    da_n = dh * (1 - z) * (1 - n**2)
    da_z = dh * (h - n) * z * (1 - z)
    d_reset = through_state(w, g, r * h, da_n, candidate)  # of r h
    da_r = d_reset * h * r * (1 - r)
    dx = through_input(w, g, x, np.concatenate([da_r, da_z, da_n]))
    through_gates = through_state(w, g, h, np.concatenate([da_r, da_z]), gates)
    return dx, (dh * z + d_reset * r + through_gates,)


STEPS: dict[str, Step] = {
    "rnn_tanh": rnn_tanh_step,
    "rnn_relu": rnn_relu_step,
    "rnn_sigmoid": rnn_sigmoid_step,
    "lstm": lstm_step,
    "lstm_peephole": lstm_peephole_step,
    "gru": gru_step,
    "gru_reset_before": gru_reset_before_step,
}

BACKWARDS: dict[str, StepBackward] = {
    "rnn_tanh": rnn_backward(lambda h: 1 - h**2),
    "rnn_relu": rnn_backward(lambda h: (h > 0).astype(h.dtype)),
    "rnn_sigmoid": rnn_backward(lambda h: h * (1 - h)),
    "lstm": lstm_backward,
    "lstm_peephole": lstm_backward,
    "gru": gru_backward,
    "gru_reset_before": gru_reset_before_backward,
}

GATES = {"rnn": 1, "lstm": 4, "gru": 3}

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
    for t in reversed(range(T)) if reverse else range(T):
        if is_cut(t, resets, reverse):
            state = zeros_like(state)
        state = step(w, x[t], state)
        output[t] = state[0]
    return output, state


def is_cut(t: int, resets: Array, reverse: bool) -> bool:
    """Whether a reset lies between the step taken before t and t."""
    cut = t + 1 if reverse else t
    return cut < len(resets) and bool(resets[cut])


def zeros_like(state: State) -> State:
    return tuple(np.zeros_like(part) for part in state)


def backward_row(
    cell: str,
    w: Weights,
    g: Gradients,
    x: Array,
    state: State,
    resets: Array,
    reverse: bool,
    grad_output: Array,
    grad_state: State,
) -> tuple[Array, State]:
    """Differentiate `run_row`: adds to `g`; returns dL/dx (T, I) and dL/d(initial state)."""
    T = len(x)
    order = list(reversed(range(T)) if reverse else range(T))
    states = []  # before and after every step, in the order taken
    for t in order:
        before = zeros_like(state) if is_cut(t, resets, reverse) else state
        state = STEPS[cell](w, x[t], before)
        states.append((before, state))
    dx = np.zeros_like(x)
    grad = grad_state
    for t, (before, after) in zip(reversed(order), reversed(states), strict=True):
        grad = (grad[0] + grad_output[t], *grad[1:])
        dx[t], grad = BACKWARDS[cell](w, g, x[t], before, after, grad)
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
        precision: Any = np.float64,
    ) -> None:
        self.cell, self.parameters, self.precision = cell, parameters, precision
        self.num_layers, self.directions = num_layers, 2 if bidirectional else 1
        self.merge, self.residual, self.masks = merge, residual, masks
        self.has_c = cell.startswith("lstm")
        self.unbatched, self.batch_first = np.ndim(x) == 2, batch_first
        self.x = self.batch_second(np.asarray(x, precision))
        T, B, _ = self.x.shape
        self.lengths = [T] * B if lengths is None else lengths
        self.resets = (
            np.zeros((T, B), bool) if resets is None else self.batch_second(np.asarray(resets))
        )
        H = parameters["weight_ih_l0"].shape[0] // GATES[cell.partition("_")[0]]
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

    def run_directions(self, layer: int, x: Array, final: Sequence[Array]) -> list[Array]:
        """Outputs (T, B, R) of a layer's directions; writes their last states into `final`."""
        outputs = []
        for direction in range(self.directions):
            reverse, chain = direction == 1, layer * self.directions + direction
            w = weights_of(self.parameters, layer, reverse, self.precision)
            output = np.zeros((*x.shape[:2], self.widths[0]), self.precision)
            for b, length in enumerate(self.lengths):
                output[:length, b], last = run_row(
                    STEPS[self.cell],
                    w,
                    x[:length, b],
                    self.row(b, chain, self.state),
                    self.resets[:length, b],
                    reverse,
                )
                for part, value in zip(final, last, strict=True):
                    part[chain, b] = value
            outputs.append(output)
        return outputs

    def combine(self, layer: int, x: Array, outputs: list[Array]) -> Array:
        """Join what the directions made of `x` into the output of the layer."""
        y = MERGES[self.merge](*outputs) if self.directions == 2 else outputs[0]
        if self.residual and y.shape == x.shape:
            y = y + x
        y = np.array(y)
        for b, length in enumerate(self.lengths):
            y[length:, b] = 0
        return y * self.mask(layer)

    def mask(self, layer: int) -> Any:
        return 1 if self.masks is None or layer == self.num_layers - 1 else self.masks[layer]

    def forward(self) -> tuple[Array, Any]:
        x, final = self.x, [part.copy() for part in self.state]
        for layer in range(self.num_layers):
            x = self.combine(layer, x, self.run_directions(layer, x, final))
        return self.as_given(x), self.state_as_given(final)

    def backward(self, grad_output: Any, grad_state: Any) -> tuple[Array, Any, Gradients]:
        """Gradients of the input, the initial state and the parameters."""
        inputs, outputs = [self.x], []
        final = [part.copy() for part in self.state]
        for layer in range(self.num_layers):
            outputs.append(self.run_directions(layer, inputs[-1], final))
            inputs.append(self.combine(layer, inputs[-1], outputs[-1]))
        dy = np.zeros_like(inputs[-1])
        if grad_output is not None:
            dy += self.batch_second(np.asarray(grad_output, self.precision))
        grad_final = self.state_parts(grad_state)
        grad_initial = [np.zeros_like(part) for part in self.state]
        gradients: Gradients = {}
        for layer in reversed(range(self.num_layers)):
            x = inputs[layer]
            dy = dy * self.mask(layer)
            for b, length in enumerate(self.lengths):
                dy[length:, b] = 0
            dx = dy.copy() if self.residual and dy.shape == x.shape else np.zeros_like(x)
            both = self.directions == 2
            parts = MERGES_BACKWARD[self.merge](dy, *outputs[layer]) if both else (dy,)
            for direction, part in enumerate(parts):
                reverse, chain = direction == 1, layer * self.directions + direction
                w = weights_of(self.parameters, layer, reverse, self.precision)
                g = {name: np.zeros_like(value) for name, value in w.items()}
                for b, length in enumerate(self.lengths):
                    row_dx, row_grad = backward_row(
                        self.cell,
                        w,
                        g,
                        x[:length, b],
                        self.row(b, chain, self.state),
                        self.resets[:length, b],
                        reverse,
                        part[:length, b],
                        self.row(b, chain, grad_final),
                    )
                    dx[:length, b] += row_dx
                    for target, value in zip(grad_initial, row_grad, strict=True):
                        target[chain, b] = value
                suffix = suffix_of(layer, reverse)
                gradients.update({name + suffix: value for name, value in g.items()})
            dy = dx
        return self.as_given(dy), self.state_as_given(grad_initial), gradients


def forward(
    cell: str, parameters: Mapping[str, Array], x: Array, *arguments: Any, **options: Any
) -> tuple[Array, Any]:
    """Run a layer stack as the engine would, exactly as documented and no faster.

    Takes what `Network` takes; returns output and state, shaped as torch.nn's.
    """
    return Network(cell, parameters, x, *arguments, **options).forward()


def backward(
    cell: str,
    parameters: Mapping[str, Array],
    x: Array,
    *arguments: Any,
    grad_output: Any = None,
    grad_state: Any = None,
    **options: Any,
) -> tuple[Array, Any, Gradients]:
    """Differentiate sum(output * grad_output) + sum(state * grad_state) of `forward`.

    Returns
    -------
    input, state, parameters
        The gradients; those of the parameters by name.
    """
    network = Network(cell, parameters, x, *arguments, **options)
    return network.backward(grad_output, grad_state)
