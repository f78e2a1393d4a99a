"""The kernels as registered operators, for torch.compile and torch.export.

They have no state: backward runs the forward kernels once more instead of keeping a tape.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor

from fastrnn.torch.composite import Spec
from fastrnn.torch.network import Call, Network, gradients

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["draw_seed", "run"]


def draw_seed() -> Tensor:
    """Take a seed for dropout masks from torch's generator, in a way that can be traced."""
    return torch.randint(2**62, (), dtype=torch.int64)


@lru_cache(maxsize=32)
def _network(spec: Spec) -> Network:
    return Network(spec)


def _spec(cell: str, sizes: Sequence[int], flags: Sequence[bool], merge: str) -> Spec:
    input_size, hidden_size, num_layers, proj_size = sizes
    bidirectional, bias, residual = flags
    return Spec(
        cell,
        input_size,
        hidden_size,
        num_layers,
        bidirectional,
        proj_size,
        bias,
        merge,
        residual,
    )


@torch.library.custom_op("fastrnn::run", mutates_args=(), device_types="cpu")
def _run(
    x: Tensor,
    h0: Optional[Tensor],  # noqa: UP045  (the schema is read from these)
    c0: Optional[Tensor],  # noqa: UP045
    weights: list[Tensor],
    lengths: Optional[Tensor],  # noqa: UP045
    resets: Optional[Tensor],  # noqa: UP045
    seed: Optional[Tensor],  # noqa: UP045
    cell: str,
    sizes: list[int],
    flags: list[bool],
    merge: str,
    batch_first: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    network = _network(_spec(cell, sizes, flags, merge))
    call = Call(batch_first, lengths, resets, dropout, 0 if seed is None else int(seed))
    with torch.no_grad():
        y, h, *c = network(call, x, h0, c0, weights)
    return y, h, c[0] if c else x.new_empty(0)


@_run.register_fake
def _(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor | None,
    cell: str,
    sizes: list[int],
    flags: list[bool],
    merge: str,
    batch_first: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    spec = _spec(cell, sizes, flags, merge)
    rows = () if x.dim() == 2 else (x.shape[0 if batch_first else 1],)
    chains = spec.num_layers * spec.directions
    y = x.new_empty(*x.shape[:-1], spec.output_size)
    h = x.new_empty(chains, *rows, spec.state_size)
    c = x.new_empty(chains, *rows, spec.hidden_size) if spec.has_cell_state else x.new_empty(0)
    return y, h, c


@torch.library.custom_op("fastrnn::run_backward", mutates_args=(), device_types="cpu")
def _run_backward(
    grad_y: Tensor,
    grad_h: Tensor,
    grad_c: Optional[Tensor],  # noqa: UP045
    x: Tensor,
    h0: Optional[Tensor],  # noqa: UP045
    c0: Optional[Tensor],  # noqa: UP045
    weights: list[Tensor],
    lengths: Optional[Tensor],  # noqa: UP045
    resets: Optional[Tensor],  # noqa: UP045
    seed: Optional[Tensor],  # noqa: UP045
    cell: str,
    sizes: list[int],
    flags: list[bool],
    merge: str,
    batch_first: bool,
    dropout: float,
) -> list[Tensor]:
    network = _network(_spec(cell, sizes, flags, merge))
    call = Call(batch_first, lengths, resets, dropout, 0 if seed is None else int(seed))
    grads = (grad_y, grad_h, *(() if grad_c is None else (grad_c,)))
    found = gradients(network, call, x, h0, c0, weights, grads, None, True)
    return [gradient for gradient in found if gradient is not None]  # all but c0's


@_run_backward.register_fake
def _(
    grad_y: Tensor,
    grad_h: Tensor,
    grad_c: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    *_: Any,
) -> list[Tensor]:
    state = (grad_h,) if grad_c is None else (grad_h, grad_c)
    like = (x, *state, *weights)
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in like]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h0, c0, weights, lengths, resets, seed, *options = inputs
    ctx.save_for_backward(x, h0, c0, lengths, resets, seed, *weights)
    ctx.options = options


def _backward(ctx: Any, grad_y: Tensor, grad_h: Tensor, grad_c: Tensor) -> tuple[Any, ...]:
    x, h0, c0, lengths, resets, seed, *weights = ctx.saved_tensors
    has_cell_state = ctx.options[0].startswith("lstm")
    grad_x, grad_h0, *rest = torch.ops.fastrnn.run_backward(
        *(grad_y, grad_h, grad_c if has_cell_state else None),
        *(x, h0, c0, weights, lengths, resets, seed, *ctx.options),
    )
    grad_c0 = rest.pop(0) if has_cell_state else None
    state = (None if h0 is None else grad_h0, None if c0 is None else grad_c0)
    return (grad_x, *state, rest, None, None, None, *(None for _ in ctx.options))


_run.register_autograd(_backward, setup_context=_setup_context)


def run(
    spec: Spec, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """Run over whole sequences as `Network` does, by operators that can be traced."""
    y, h, c = torch.ops.fastrnn.run(
        *(x, h0, c0, weights, call.lengths, call.resets),
        call.seed if call.dropout else None,
        spec.cell,
        [spec.input_size, spec.hidden_size, spec.num_layers, spec.proj_size],
        [spec.bidirectional, spec.bias, spec.residual],
        *(spec.merge, call.batch_first, call.dropout),
    )
    return (y, h, c) if spec.has_cell_state else (y, h)
