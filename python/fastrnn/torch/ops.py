"""The kernels as registered operators, for torch.compile and torch.export.

They have no state: backward runs the forward kernels once more instead of keeping a tape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Optional

import torch
from torch import Tensor

from fastrnn import functional
from fastrnn.torch import cuda
from fastrnn.torch.composite import Spec
from fastrnn.torch.network import Call, Network, gradients, usable_lengths

__all__ = ["draw_seed", "run"]


def draw_seed() -> Tensor:
    """Take the seed of a call's masks from torch's generator, in a way that can be traced."""
    return torch.randint(
        2**62, (), dtype=torch.int64, device="cpu"
    )  # which need not wait for a GPU


@lru_cache(maxsize=32)
def _network(spec: Spec) -> Network:
    return Network(spec)


def _spec(
    cell: str,
    sizes: Sequence[int],
    flags: Sequence[bool],
    merge: str,
    layer_norm: bool,
    clip: float | None,
) -> Spec:
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
        layer_norm,
        math.inf if clip is None else clip,
    )


def _call(
    x: Tensor,
    batch_first: bool,
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    noise: Sequence[float] | None,
    all_states: bool,
) -> Call:
    """Of what the operators are given: `noise` is what follows `dropout`; a seed means training."""
    given = functional.Noise._make((dropout, *(noise or (0.0,) * 5), seed is not None))
    number = 0 if seed is None else int(seed)
    if lengths is not None and cuda.on_device(x):  # on the CPU, the kernels look at them
        T = x.shape[1 if batch_first and x.dim() == 3 else 0]
        lengths = usable_lengths(lengths, x, T)
    return Call(batch_first, lengths, resets, given, number, all_states=all_states)


def _like_sequence(x: Tensor, width: int, batch_first: bool) -> Tensor:
    """Return a tensor that lies as the kernels' results do, for shapes (T, B, width)."""
    if cuda.on_device(x):
        return cuda.new_sequence(x, width, batch_first)
    return x.new_empty(*x.shape[:-1], width)


@torch.library.custom_op("fastrnn::run", mutates_args=(), device_types=("cpu", "cuda"))
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
    *,
    noise: Optional[Sequence[float]] = None,  # noqa: UP045
    layer_norm: bool = False,
    clip: Optional[float] = None,  # noqa: UP045
    all_states: bool = False,
) -> list[Tensor]:
    network = _network(_spec(cell, sizes, flags, merge, layer_norm, clip))
    call = _call(x, batch_first, lengths, resets, seed, dropout, noise, all_states)
    with torch.no_grad():
        return list(network(call, x, h0, c0, weights))


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
    *,
    noise: Sequence[float] | None = None,
    layer_norm: bool = False,
    clip: float | None = None,
    all_states: bool = False,
) -> list[Tensor]:
    spec = _spec(cell, sizes, flags, merge, layer_norm, clip)
    rows = () if x.dim() == 2 else (x.shape[0 if batch_first else 1],)
    chains = spec.num_layers * spec.directions
    y = _like_sequence(x, spec.output_size, batch_first)
    widths = [spec.state_size, *([spec.hidden_size] if spec.has_cell_state else [])]
    leads = [(chains,), *([(chains, x.shape[1 if batch_first else 0])] if all_states else [])]
    return [
        y,
        *(x.new_empty(*lead, *rows, width) for lead in leads for width in widths),
    ]


@torch.library.custom_op("fastrnn::run_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _run_backward(
    grads: list[Tensor],
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
    *,
    noise: Optional[Sequence[float]] = None,  # noqa: UP045
    layer_norm: bool = False,
    clip: Optional[float] = None,  # noqa: UP045
    all_states: bool = False,
) -> list[Tensor]:
    network = _network(_spec(cell, sizes, flags, merge, layer_norm, clip))
    call = _call(x, batch_first, lengths, resets, seed, dropout, noise, all_states)
    found = gradients(network, call, x, h0, c0, weights, grads, None, True)
    return [gradient for gradient in found if gradient is not None]  # all but c0's


@_run_backward.register_fake
def _(
    grads: list[Tensor],
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
    *_: Any,
    **__: Any,
) -> list[Tensor]:
    states = grads[1 : 3 if cell.startswith("lstm") else 2]
    grad_x = _like_sequence(x, x.shape[-1], batch_first)
    return [grad_x, *(tensor.new_empty(tensor.shape) for tensor in (*states, *weights))]


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: list[Tensor]
) -> None:
    x, h0, c0, weights, lengths, resets, seed, *options = inputs
    ctx.save_for_backward(x, h0, c0, lengths, resets, seed, *weights)
    ctx.options, ctx.extras = options, keyword_only_inputs


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, h0, c0, lengths, resets, seed, *weights = ctx.saved_tensors
    grad_x, grad_h0, *rest = torch.ops.fastrnn.run_backward(
        *(grads, x, h0, c0, weights, lengths, resets, seed, *ctx.options), **ctx.extras
    )
    has_cell_state = ctx.options[0].startswith("lstm")
    grad_c0 = rest.pop(0) if has_cell_state else None
    state = (None if h0 is None else grad_h0, None if c0 is None else grad_c0)
    return (grad_x, *state, rest, None, None, None, *(None for _ in ctx.options))


_run.register_autograd(_backward, setup_context=_setup_context)


def run(
    spec: Spec, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """Run over whole sequences as `Network` does, by operators that can be traced."""
    dropout, *noise, training = call.noise
    outputs = torch.ops.fastrnn.run(
        *(x, h0, c0, weights, call.lengths, call.resets),
        call.seed if training else None,
        spec.cell,
        [spec.input_size, spec.hidden_size, spec.num_layers, spec.proj_size],
        [spec.bidirectional, spec.bias, spec.residual],
        *(spec.merge, call.batch_first, dropout),
        noise=noise if any(noise) else None,
        layer_norm=spec.layer_norm,
        clip=None if spec.clip == math.inf else spec.clip,
        all_states=call.all_states,
    )
    return tuple(outputs)
