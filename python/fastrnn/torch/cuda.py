"""Tensors of a GPU in, tensors of it out: the CUDA kernels on torch's stream, in torch's memory.

Nothing here waits for the GPU. All work goes to the stream that is current, and all memory comes
from torch's allocator, which knows that stream; so calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.torch.composite import Spec
    from fastrnn.torch.network import Call

__all__ = ["AVAILABLE", "KINDS", "CudaKernels", "CudaTape", "have", "new_sequence", "on_device"]

# Whether this build has the kernels and this torch CUDA: one for ROCm calls its devices so, too.
AVAILABLE = functional.cuda_build() != "none" and torch.version.hip is None
KINDS = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}

_LEAST_CAPABILITY = (8, 0)  # of the GPUs that the kernels are compiled for
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_ALIGNMENT = 256  # of memory that the kernels work in; torch's own has it on GPUs


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor lies on a GPU."""
    return tensor.is_cuda


def _stream(tensor: Tensor) -> tuple[int, int]:
    """Return the device of a tensor and its current stream."""
    device = tensor.get_device()
    return device, torch.cuda.current_stream(device).cuda_stream


def _is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _allows_tf32() -> bool:
    """Whether torch multiplies matrices of float32 in TF32, as that is what users set."""
    matmul = torch.backends.cuda.matmul
    try:
        precision = matmul.fp32_precision
    except AttributeError:  # torch < 2.9
        return matmul.allow_tf32
    return precision == "tf32"


def have(tensors: Sequence[Tensor | None], *, traced: bool) -> bool:
    """Whether the kernels have tensors: common ones of one GPU and one dtype.

    Parameters
    ----------
    tensors : sequence of Tensor or None
        The first is the input, on a GPU.
    traced : bool
        Whether these only stand for those that a compiled call will be given.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    first = given[0]
    dtype = first.dtype
    if not AVAILABLE or dtype not in KINDS or first.size(-1) == 0:
        return False
    if traced:
        device, strided = first.device, torch.strided
        return all(t.dtype == dtype and t.device == device and t.layout == strided for t in given)
    index = first.get_device()
    return (
        _runs_here(index)
        and readable(given)
        and all(
            tensor.dtype is dtype and tensor.get_device() == index and not tensor.is_neg()
            for tensor in given
        )
    )


@functools.cache
def _runs_here(device: int) -> bool:
    """Whether kernels of this build can run on a GPU, with the driver that is there."""
    if functional.cuda_build() == "emulated":
        return True
    try:
        functional.cuda_device_count()
    except RuntimeError:
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def readable(tensors: Sequence[Tensor | None]) -> bool:
    """Whether all have memory of their own, so neither sparse ones nor what vmap has batched."""
    has_storage = torch._C._has_storage
    return all(
        tensor is None or (type(tensor) in _PLAIN and has_storage(tensor) and not tensor.is_nested)
        for tensor in tensors
    )


def new_sequence(x: Tensor, width: int, batch_first: bool) -> Tensor:
    """Return an uninitialised tensor of the leading axes of `x`, which in memory starts with T."""
    if not batch_first or x.dim() == 2:
        return x.new_empty(*x.shape[:-1], width)
    B, T, _ = x.shape
    return x.new_empty(T, B, width).transpose_(0, 1)


class _Layout(NamedTuple):
    """How the sequences of a call lie, beside the kernels' (T, B, n) without gaps."""

    call: Call
    batched: bool

    @classmethod
    def of(cls, call: Call, x: Tensor) -> _Layout:
        return cls(call, call.packed is not None or x.dim() == (2 if call.cell else 3))

    def laid_out(self, given: Tensor) -> Tensor:
        """As the kernels want it: a copy only where it has to be."""
        call = self.call
        if call.packed is not None:
            given = call.packed.pad(given, fill=None)
        if call.cell:
            given = given[None]
        if not self.batched:
            given = given[:, None]
        elif call.batch_first:
            given = given.transpose(0, 1)
        return given.contiguous()

    def flags(self, resets: Tensor) -> Tensor:
        """(T, B) of resets, which lie as the input."""
        if not self.batched:
            return resets[:, None].contiguous()
        return (resets.transpose(0, 1) if self.call.batch_first else resets).contiguous()

    # In place, as these are new: a view could not be changed in place once it is a result.

    def given_back(self, sequence: Tensor) -> Tensor:
        """From (T, B, n) to what the caller expects."""
        call = self.call
        if call.packed is not None:
            return call.packed.rows(sequence)
        if not self.batched:
            sequence = sequence.squeeze_(1)
        elif call.batch_first:
            sequence = sequence.transpose_(0, 1)
        return sequence.squeeze_(0) if call.cell else sequence

    def given_back_state(self, state: Tensor) -> Tensor:
        """From (D*L, B, n) or, of all steps, (D*L, T, B, n)."""
        if not self.batched:
            state = state.squeeze_(-2)
        return state.squeeze_(0) if self.call.cell else state


class _Memory:
    """Memory of the GPU for one call; torch uses it again after what the stream has queued."""

    def __init__(self, like: Tensor, size: int) -> None:
        self._tensor = like.new_empty(size + _ALIGNMENT - 1, dtype=torch.uint8)
        address = self._tensor.data_ptr()
        self.block = (-(-address // _ALIGNMENT) * _ALIGNMENT, size)


class CudaTape:
    """What a call keeps on the GPU for its backward, until that has been."""

    def __init__(
        self, engine: functional.CudaEngine, tape: Any, memory: _Memory, y: Tensor
    ) -> None:
        self.engine = engine
        self.tape = tape
        self._kept: tuple[Any, ...] = (memory, y)

    @property
    def consumed(self) -> bool:
        """Whether backward has used it."""
        return not self._kept

    def consume(self) -> None:
        """Give the memory back."""
        self._kept = ()


class CudaKernels:
    """The CUDA kernels of one configuration.

    Parameters
    ----------
    spec : Spec
        The configuration.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._engines: dict[str, functional.CudaEngine] = {}

    def _engine(self, dtype: torch.dtype) -> functional.CudaEngine:
        kind = KINDS[dtype]
        if dtype == torch.float32 and _allows_tf32():
            kind = "tf32"
        engine = self._engines.get(kind)
        if engine is None:
            engine = self._engines[kind] = functional.CudaEngine(*self._spec, kind)
        return engine

    def run(
        self,
        call: Call,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor],
        *,
        keep: bool,
    ) -> tuple[tuple[Tensor, ...], CudaTape | None]:
        """Run over whole sequences: y, the state and any states, then with `keep` a tape."""
        if call.noise.is_random and _is_capturing():
            raise RuntimeError(
                "CUDA graph: expected a call without random masks (eval(), or no dropout and no"
                " zoneout), got one that would draw them once, and the same in every replay"
            )
        spec, engine, layout = self._spec, self._engine(x.dtype), _Layout.of(call, x)
        x = layout.laid_out(x)
        T, B, _ = x.shape
        resets = None if call.resets is None else layout.flags(call.resets)
        # A state's axes do not matter here, as those of one row or step do not change where it is.
        given = [_contiguous(tensor) for tensor in (x, h0, c0, call.lengths, resets)]
        chains = spec.num_layers * spec.directions
        widths = [spec.state_size, *([spec.hidden_size] if spec.has_cell_state else [])]
        y = x.new_empty(T, B, spec.output_size)
        final = [x.new_empty(chains, B, width) for width in widths]
        states = [x.new_zeros(chains, T, B, width) for width in widths] if call.all_states else []
        parameters = [weight.contiguous() for weight in weights]

        sizes = engine.forward_bytes(
            T, B, call.noise, call.lengths is not None, resets is not None, keep
        )
        tape_memory = _Memory(x, sizes[0]) if keep else None
        workspace = _Memory(x, sizes[1])
        tape = engine.forward(
            T,
            B,
            _addresses(*given, y, *_padded(final), *_padded(states)),
            _addresses(*parameters),
            call.noise,
            call.seed,
            _stream(x),
            workspace.block,
            None if tape_memory is None else tape_memory.block,
        )
        # Detached, it shares memory and version, and does not refer to us by its graph.
        kept = None if tape_memory is None else CudaTape(engine, tape, tape_memory, y.detach())
        parts = [layout.given_back_state(state) for state in (*final, *states)]
        return tuple(parts if call.cell else (layout.given_back(y), *parts)), kept

    def backward(
        self,
        call: Call,
        kept: CudaTape,
        x: Tensor,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        needs_x: bool,
    ) -> list[Tensor | None]:
        """Gradients as of `fastrnn.torch.network.gradients`. Consumes the tape."""
        spec, engine, layout = self._spec, kept.engine, _Layout.of(call, x)
        x = layout.laid_out(x)
        _, B, _ = x.shape
        chains = spec.num_layers * spec.directions
        grad_y, *rest = (None, *grads) if call.cell else grads
        if grad_y is not None:
            grad_y = layout.laid_out(grad_y.resolve_neg())
        per_state = 2 if spec.has_cell_state else 1
        rest = [None if grad is None else grad.resolve_neg().contiguous() for grad in rest]
        given = [x, grad_y, *_padded(rest[:per_state]), *_padded(rest[per_state:])]
        grad_x = torch.empty_like(x) if needs_x else None
        grad_h0 = x.new_empty(chains, B, spec.state_size)
        grad_c0 = x.new_empty(chains, B, spec.hidden_size) if spec.has_cell_state else None
        parameters = [weight.contiguous() for weight in weights]
        found = [x.new_empty(weight.shape) for weight in weights]

        workspace = _Memory(x, engine.backward_bytes(kept.tape, False))
        engine.backward(
            kept.tape,
            _addresses(*given, grad_x, grad_h0, grad_c0),
            _addresses(*parameters),
            _addresses(*found),
            False,
            _stream(x),
            workspace.block,
        )
        kept.consume()
        return [
            None if grad_x is None else layout.given_back(grad_x),
            layout.given_back_state(grad_h0),
            None if grad_c0 is None else layout.given_back_state(grad_c0),
            *found,
        ]


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _padded(parts: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Return h and c, of what may be both, h alone or nothing."""
    h, c = (*parts, None, None)[:2]
    return h, c


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
