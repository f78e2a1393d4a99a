"""The recurrences as torch operations: slow, and differentiable any number of times.

Double backward goes through here, and so does what the kernels lack, such as half precision with
`lengths` on the CPU. The equations are those of ``csrc/cells.h``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import layer_norm, linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    # (kind, shape, layer, direction) -> mask, a number in its place, or None for no mask
    Masks = Callable[[str, tuple[int, ...], int, int], Any]

__all__ = ["Spec", "run"]

_EPSILON = 1e-5  # added to a variance before its root


class Spec(NamedTuple):
    """What is fixed of a network; the arguments of ``_core.Engine`` but for the dtype."""

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    proj_size: int
    bias: bool
    merge: str
    residual: bool
    layer_norm: bool = False
    clip: float = math.inf  # of c

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def state_size(self) -> int:
        """Width R of h."""
        return self.proj_size or self.hidden_size

    @property
    def output_size(self) -> int:
        """Width of the output."""
        return self.state_size * (self.directions if self.merge == "concat" else 1)

    @property
    def has_cell_state(self) -> bool:
        """Whether the state is a pair (h, c)."""
        return self.cell.startswith("lstm")

    @property
    def has_peepholes(self) -> bool:
        """Whether gates see c."""
        return self.cell.endswith("_peephole")

    @property
    def parameters_per_direction(self) -> int:
        """Parameters of one layer and direction."""
        norms = (6 if self.has_cell_state else 4) * self.layer_norm
        return (4 if self.bias else 2) + (self.proj_size > 0) + self.has_peepholes + norms


class _Norm(NamedTuple):
    """Gain and bias of values that are normalised over a row."""

    weight: Tensor
    bias: Tensor

    def of(self, values: Tensor) -> Tensor:
        return layer_norm(values, self.weight.shape, self.weight, self.bias, _EPSILON)

    def split(self, *sizes: int) -> list[_Norm]:
        parts = zip(self.weight.split(sizes), self.bias.split(sizes), strict=True)
        return [_Norm(*part) for part in parts]


class _Weights(NamedTuple):
    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None
    peep: Tensor | None
    norm_ih: _Norm | None
    norm_hh: _Norm | None
    norm_c: _Norm | None

    @classmethod
    def of(cls, spec: Spec, tensors: Sequence[Tensor]) -> _Weights:
        given = iter(tensors)

        def norm(present: bool) -> _Norm | None:
            return _Norm(next(given), next(given)) if present else None

        ih, hh = next(given), next(given)
        bias_ih, bias_hh = (next(given), next(given)) if spec.bias else (None, None)
        hr = next(given) if spec.proj_size else None
        peep = next(given) if spec.has_peepholes else None
        norms = norm(spec.layer_norm), norm(spec.layer_norm)
        norm_c = norm(spec.layer_norm and spec.has_cell_state)
        return cls(ih, hh, bias_ih, bias_hh, hr, peep, *norms, norm_c)


def _product(values: Tensor, weight: Tensor, bias: Tensor | None, norm: _Norm | None) -> Tensor:
    if norm is None:
        return linear(values, weight, bias)
    product = norm.of(linear(values, weight))
    return product if bias is None else product + bias


def _lstm(spec: Spec, x: Tensor, hidden: Tensor, c: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
    gates = x + _product(hidden, w.hh, w.bias_hh, w.norm_hh)
    if spec.cell.startswith("lstm_coupled"):
        i, g, o = gates.chunk(3, -1)
        if w.peep is not None:
            i = i + w.peep[0] * c
        c = c + torch.sigmoid(i) * (torch.tanh(g) - c)
    else:
        i, f, g, o = gates.chunk(4, -1)
        if w.peep is not None:
            i, f = i + w.peep[0] * c, f + w.peep[1] * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if spec.clip < math.inf:
        c = c.clamp(-spec.clip, spec.clip)
    if w.peep is not None:
        o = o + w.peep[-1] * c
    h = torch.sigmoid(o) * torch.tanh(c if w.norm_c is None else w.norm_c.of(c))
    return (h if w.hr is None else linear(h, w.hr)), c


def _gru(x: Tensor, hidden: Tensor, h: Tensor, w: _Weights) -> Tensor:
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = _product(hidden, w.hh, w.bias_hh, w.norm_hh).chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (1 - z) * n + z * h


def _gru_reset_before(x: Tensor, hidden: Tensor, h: Tensor, w: _Weights) -> Tensor:
    H = h.shape[-1]
    sizes = (2 * H, H)
    first, last = (None, None) if w.bias_hh is None else w.bias_hh.split(sizes)
    # Two products, so each has a mean and a variance of its own.
    norm, norm_n = (None, None) if w.norm_hh is None else w.norm_hh.split(*sizes)
    gates = x[..., : 2 * H] + _product(hidden, w.hh[: 2 * H], first, norm)
    r, z = torch.sigmoid(gates).chunk(2, -1)
    n = torch.tanh(x[..., 2 * H :] + _product(r * hidden, w.hh[2 * H :], last, norm_n))
    return (1 - z) * n + z * h


_NONLINEARITIES = {
    "rnn_tanh": torch.tanh,
    "rnn_relu": torch.relu,
    "rnn_sigmoid": torch.sigmoid,
}


def _step(
    spec: Spec, x: Tensor, hidden: Tensor, h: Tensor, c: Tensor, w: _Weights
) -> tuple[Tensor, Tensor]:
    """One step; `x` is the finished input projection, `hidden` is h as W_hh sees it."""
    if spec.has_cell_state:
        return _lstm(spec, x, hidden, c, w)
    if spec.cell == "gru":
        return _gru(x, hidden, h, w), c
    if spec.cell == "gru_reset_before":
        return _gru_reset_before(x, hidden, h, w), c
    return _NONLINEARITIES[spec.cell](x + _product(hidden, w.hh, w.bias_hh, w.norm_hh)), c


def _kept(zoneout: Any, s: int, before: Tensor, after: Tensor) -> Tensor:
    """Of a state, the part that does not take the step."""
    if zoneout is None:
        return after
    share = zoneout[s] if isinstance(zoneout, torch.Tensor) else zoneout
    return share * before + (1 - share) * after


def _direction(
    spec: Spec,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: _Weights,
    recurrent: Tensor | None,
    zoneouts: tuple[Any, Any],
    valid: Tensor | None,
    cut: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """All steps in the order given: h and c after each, 0 past the end, and the last.

    `valid` and `cut` are (T, B, 1).
    """
    states: tuple[list[Tensor], list[Tensor]] = ([], [])
    for s, projection in enumerate(_product(x, w.ih, w.bias_ih, w.norm_ih)):
        if cut is not None:
            h, c = h.masked_fill(cut[s], 0), c.masked_fill(cut[s], 0)
        hidden = h if recurrent is None else h * recurrent
        h_next, c_next = _step(spec, projection, hidden, h, c, w)
        h_next = _kept(zoneouts[0], s, h, h_next)
        c_next = _kept(zoneouts[1], s, c, c_next)
        for steps, part in zip(states, (h_next, c_next), strict=True):
            steps.append(part if valid is None else part.masked_fill(~valid[s], 0))
        if valid is not None:
            h_next, c_next = torch.where(valid[s], h_next, h), torch.where(valid[s], c_next, c)
        h, c = h_next, c_next
    return *states, h, c


def _stacked(steps: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(steps) if steps else like.new_zeros((0, *like.shape))


def _merge(how: str, outputs: list[Tensor]) -> Tensor:
    if len(outputs) == 1:
        return outputs[0]
    ahead, back = outputs
    if how == "concat":
        return torch.cat(outputs, -1)
    if how == "sum":
        return ahead + back
    if how == "mean":
        return (ahead + back) / 2
    return torch.maximum(ahead, back) if how == "max" else ahead * back


def _turned(values: Tensor, order: Tensor) -> Tensor:
    """Reorder the steps of every row; the order is its own inverse."""
    index = order if values.dim() == 2 else order[..., None].expand_as(values)
    return values.gather(0, index)


def run(
    spec: Spec,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    masks: Masks | None = None,
    all_states: bool = False,
) -> tuple[Tensor, ...]:
    """Run a whole network.

    Parameters
    ----------
    spec : Spec
        The network.
    x : Tensor (T, B, I)
        Input.
    h0, c0 : Tensor (D·L, B, R) and (D·L, B, H), optional
        Initial state.
    weights : sequence of Tensor
        In torch's order.
    lengths : Tensor (B,), optional
        Valid steps of each row.
    resets : Tensor (T, B) of bool, optional
        Where the state is zeroed before the step.
    masks : callable, optional
        Gives the mask of a kind of `fastrnn.functional.mask`, a shape, a layer and a direction, or
        None where there is none; or for zoneout the share of the state that every step keeps.
    all_states : bool, default False
        Whether the states of all steps are wanted.

    Returns
    -------
    y, h, c : Tensor
        Output and final state.
    h_all, c_all : Tensor (D·L, T, B, R) and (D·L, T, B, H)
        With `all_states`: those of all steps.
    """
    T, B = x.shape[:2]
    D = spec.directions
    if h0 is None:
        h0 = x.new_zeros(spec.num_layers * D, B, spec.state_size)
    if c0 is None:
        c0 = x.new_zeros(spec.num_layers * D, B, spec.hidden_size)
    steps = torch.arange(T, device=x.device)[:, None].expand(T, B)
    inside = None if lengths is None else steps < lengths.to(x.device)
    end = T if lengths is None else lengths.to(x.device)
    order = torch.where(steps < end, end - 1 - steps, steps)

    cuts: list[Tensor | None] = [None, None]
    if resets is not None:
        # Backwards the cut lies between the same two steps, so before the other one.
        back = torch.cat((resets.new_zeros(1, B), _turned(resets, order)[:-1]))[:T]
        for d, cut in enumerate((resets, back)):
            cuts[d] = (cut if inside is None else cut & inside)[..., None]
    valid = None if inside is None else inside[..., None]

    def mask(kind: str, shape: tuple[int, ...], layer: int, d: int = 0) -> Any:
        return None if masks is None else masks(kind, shape, layer, d)

    def turned(values: Any, d: int) -> Any:
        return _turned(values, order) if d and isinstance(values, torch.Tensor) else values

    final: list[tuple[Tensor, Tensor]] = []
    every: list[tuple[Tensor, Tensor]] = []
    for layer in range(spec.num_layers):
        outputs = []
        dropped = mask("input", (B, x.shape[-1]), layer)
        given = x if dropped is None else x * dropped
        for d in range(D):
            chain = layer * D + d
            count = spec.parameters_per_direction
            own = _Weights.of(spec, weights[chain * count : (chain + 1) * count])
            dropped = mask("weight", tuple(own.hh.shape), layer, d)
            if dropped is not None:
                own = own._replace(hh=own.hh * dropped)
            zoneout_h = mask("zoneout_h", (T, B, spec.state_size), layer, d)
            zoneout_c = (
                mask("zoneout_c", (T, B, spec.hidden_size), layer, d)
                if spec.has_cell_state
                else None
            )
            hs, cs, h, c = _direction(
                spec,
                turned(given, d),
                h0[chain],
                c0[chain],
                own,
                mask("recurrent", (B, spec.state_size), layer, d),
                (turned(zoneout_h, d), turned(zoneout_c, d)),
                valid,
                cuts[d],
            )
            y = turned(_stacked(hs, h), d)
            outputs.append(y)
            final.append((h, c))
            if all_states:
                every.append((y, turned(_stacked(cs, c), d)))
        y = _merge(spec.merge, outputs)
        if spec.residual and x.shape[-1] == y.shape[-1]:
            y = y + (x if valid is None else x.masked_fill(~valid, 0))
        if layer + 1 < spec.num_layers:
            dropped = mask("dropout", tuple(y.shape), layer)
            y = y if dropped is None else y * dropped
        x = y
    parts = (*zip(*final, strict=True), *zip(*every, strict=True))
    return x, *(torch.stack(part) for part in parts)
