"""The recurrences as torch operations: slow, and differentiable any number of times.

Double backward goes through here, and so does what the kernels lack, such as half precision with
`lengths`. The equations are those of ``csrc/cells.h``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Spec", "run"]


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
    def parameters_per_direction(self) -> int:
        """Parameters of one layer and direction."""
        peephole = self.cell == "lstm_peephole"
        return (4 if self.bias else 2) + (self.proj_size > 0) + peephole


class _Weights(NamedTuple):
    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None
    peep: Tensor | None

    @classmethod
    def of(cls, spec: Spec, tensors: Sequence[Tensor]) -> _Weights:
        given = iter(tensors)
        ih, hh = next(given), next(given)
        bias_ih, bias_hh = (next(given), next(given)) if spec.bias else (None, None)
        hr = next(given) if spec.proj_size else None
        peep = next(given) if spec.cell == "lstm_peephole" else None
        return cls(ih, hh, bias_ih, bias_hh, hr, peep)


def _lstm(x: Tensor, h: Tensor, c: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x + linear(h, w.hh, w.bias_hh)).chunk(4, -1)
    if w.peep is not None:
        i, f = i + w.peep[0] * c, f + w.peep[1] * c
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if w.peep is not None:
        o = o + w.peep[2] * c
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w.hr is None else linear(h, w.hr)), c


def _gru(x: Tensor, h: Tensor, w: _Weights) -> Tensor:
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = linear(h, w.hh, w.bias_hh).chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (1 - z) * n + z * h


def _gru_reset_before(x: Tensor, h: Tensor, w: _Weights) -> Tensor:
    H = h.shape[-1]
    first, last = (None, None) if w.bias_hh is None else w.bias_hh.split((2 * H, H))
    r, z = torch.sigmoid(x[..., : 2 * H] + linear(h, w.hh[: 2 * H], first)).chunk(2, -1)
    n = torch.tanh(x[..., 2 * H :] + linear(r * h, w.hh[2 * H :], last))
    return (1 - z) * n + z * h


_NONLINEARITIES = {
    "rnn_tanh": torch.tanh,
    "rnn_relu": torch.relu,
    "rnn_sigmoid": torch.sigmoid,
}


def _step(cell: str, x: Tensor, h: Tensor, c: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
    """One step; `x` is the finished input projection."""
    if cell.startswith("lstm"):
        return _lstm(x, h, c, w)
    if cell == "gru":
        return _gru(x, h, w), c
    if cell == "gru_reset_before":
        return _gru_reset_before(x, h, w), c
    return _NONLINEARITIES[cell](x + linear(h, w.hh, w.bias_hh)), c


def _direction(
    cell: str,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: _Weights,
    valid: Tensor | None,
    cut: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps in the order given; `valid` and `cut` are (T, B, 1)."""
    outputs = []
    for s, projection in enumerate(linear(x, w.ih, w.bias_ih)):
        if cut is not None:
            h, c = h.masked_fill(cut[s], 0), c.masked_fill(cut[s], 0)
        h_next, c_next = _step(cell, projection, h, c, w)
        if valid is None:
            h, c = h_next, c_next
            outputs.append(h)
        else:
            outputs.append(h_next.masked_fill(~valid[s], 0))
            h, c = torch.where(valid[s], h_next, h), torch.where(valid[s], c_next, c)
    if not outputs:
        return x.new_zeros((0, *h.shape)), h, c
    return torch.stack(outputs), h, c


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
    masks: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor]:
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
    masks : sequence of Tensor (T, B, output size)
        Dropout masks, scaled, of all layers but the last; or none.

    Returns
    -------
    y, h, c : Tensor
        Output and final state.
    """
    T, B = x.shape[:2]
    chains = spec.num_layers * spec.directions
    if h0 is None:
        h0 = x.new_zeros(chains, B, spec.state_size)
    if c0 is None:
        c0 = x.new_zeros(chains, B, spec.hidden_size)
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

    final: list[tuple[Tensor, Tensor]] = []
    for layer in range(spec.num_layers):
        outputs = []
        for d in range(spec.directions):
            chain = layer * spec.directions + d
            count = spec.parameters_per_direction
            own = _Weights.of(spec, weights[chain * count : (chain + 1) * count])
            given = x if d == 0 else _turned(x, order)
            y, h, c = _direction(spec.cell, given, h0[chain], c0[chain], own, valid, cuts[d])
            outputs.append(y if d == 0 else _turned(y, order))
            final.append((h, c))
        y = _merge(spec.merge, outputs)
        if spec.residual and x.shape[-1] == y.shape[-1]:
            y = y + (x if valid is None else x.masked_fill(~valid, 0))
        if layer < len(masks):
            y = y * masks[layer]
        x = y
    return x, torch.stack([h for h, _ in final]), torch.stack([c for _, c in final])
