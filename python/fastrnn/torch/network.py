"""Tensors in, tensors out: the kernels behind torch's autograd, without a copy either way."""

from __future__ import annotations

import operator
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastrnn import functional
from fastrnn.torch import composite, cuda

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from fastrnn.functional import FloatArray, Tape
    from fastrnn.torch.composite import Spec

functorch_level = torch._C._functorch.peek_interpreter_stack

__all__ = [
    "DTYPES",
    "READS_TENSORS",
    "Call",
    "DifferentiableCell",
    "Kept",
    "Network",
    "gradients",
    "usable_lengths",
]

DTYPES = {torch.float32: "float32", torch.float64: "float64"}  # on the CPU


# Whether the core reads tensors where they lie (torch >= 2.10); else NumPy has to view them.
READS_TENSORS = functional.read_tensors_of(torch.Tensor, torch.nn.Parameter)


def _array(tensor: Any) -> Any:
    """Return what the core can read of a tensor or None."""
    return tensor if READS_TENSORS or tensor is None else tensor.detach().numpy()


def _arrays(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    return tuple(tensors) if READS_TENSORS else tuple(map(_array, tensors))


class Packed(NamedTuple):
    """Where the rows of a `PackedSequence` lie among those of a padded one."""

    T: int
    B: int
    places: Tensor  # t * B + b of every row
    lengths: Tensor

    @classmethod
    def of(cls, batch_sizes: Tensor) -> Packed:
        """Read `PackedSequence.batch_sizes`."""
        B = int(batch_sizes[0])
        present = torch.arange(B, device=batch_sizes.device) < batch_sizes[:, None]
        places = present.flatten().nonzero().flatten()
        return cls(len(batch_sizes), B, places, present.sum(0))

    def on(self, device: torch.device) -> Packed:
        """Return the same on a GPU, without waiting for it."""
        places, lengths = (part.to(device, non_blocking=True) for part in self[2:])
        return self._replace(places=places, lengths=lengths)

    def pad(self, rows: Tensor, fill: float | None = 0.0) -> Tensor:
        """(T, B, n) of rows; the rest is `fill`, or anything if that is None."""
        shape = (self.T * self.B, rows.size(-1))
        padded = rows.new_empty(shape) if fill is None else rows.new_full(shape, fill)
        return padded.index_copy_(0, self.places.to(rows.device), rows).view(self.T, self.B, -1)

    def rows(self, padded: Tensor) -> Tensor:
        """Back from (T, B, n)."""
        return padded.flatten(0, 1).index_select(0, self.places.to(padded.device))


def usable_lengths(lengths: Tensor, x: Tensor, T: int) -> Tensor:
    """Return a copy of lengths as the kernels for `x` want them, in 0..T.

    Those on the host are checked. Those on a GPU are clamped, as to look at them is to wait for it.
    """
    on_gpu = cuda.on_device(x)
    if on_gpu and cuda.on_device(lengths):
        return lengths.to(x.device, torch.int64).clamp(0, T)
    if bool(((lengths < 0) | (lengths > T)).any()):
        raise ValueError(f"lengths: expected integers in 0..{T}, got {lengths.tolist()}")
    lengths = lengths.to("cpu", torch.int64, copy=True)  # backward may come after they change
    return lengths.to(x.device, non_blocking=True) if on_gpu else lengths


class Call(NamedTuple):
    """What a call is given besides tensors that can have gradients."""

    batch_first: bool = False
    lengths: Tensor | None = None
    resets: Tensor | None = None  # laid out as the input
    noise: functional.Noise = functional.Noise()
    seed: Any = 0  # a Tensor while torch traces
    packed: Packed | None = None  # how the rows of x, (sum of lengths, I), are to be laid out
    cell: bool = False  # one step of x (B, I) or (I,) and states of as many axes
    exact: bool = True  # whether packed weights are used again only if no value has changed
    all_states: bool = False  # whether the states of all steps are results, too


class Network:
    """The kernels of one configuration, with packed weights for repeated inference.

    Parameters
    ----------
    spec : Spec
        The configuration.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._engines: dict[torch.dtype, functional.Engine] = {}
        self._cuda: cuda.CudaKernels | None = None
        self._shared: Shared | None = None

    def __reduce__(self) -> tuple[type[Network], tuple[Spec]]:
        return Network, (self.spec,)  # engines can neither be copied nor pickled

    def engine(self, dtype: torch.dtype) -> functional.Engine:
        """Kernels for one dtype."""
        engine = self._engines.get(dtype)
        if engine is None:
            engine = self._engines[dtype] = functional.Engine(*self.spec, DTYPES[dtype])
        return engine

    def gpu(self) -> cuda.CudaKernels:
        """Kernels for tensors on a GPU."""
        if self._cuda is None:
            self._cuda = cuda.CudaKernels(self.spec)
        return self._cuda

    def release(self) -> None:
        """Give back memory of the host that is kept for the next training step."""
        for engine in self._engines.values():
            engine.release()

    def __call__(
        self, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run over whole sequences: y, h and, of an LSTM, c; then those of all steps, if wanted."""
        if torch.is_grad_enabled() and _any_requires_grad(x, h0, c0, weights):
            result: tuple[Tensor, ...] = _Differentiable.apply(self, call, x, h0, c0, *weights)
            return result
        if cuda.on_device(x):
            return self.gpu().run(call, x, h0, c0, weights, keep=False)[0]
        return _outputs(call, *_forward(self.engine(x.dtype), call, x, h0, c0, weights, keep=False))

    def cell(
        self, x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor], *, exact: bool
    ) -> Any:
        """Run one step without gradients, or return None where the kernels do not fit."""
        dtype = weights[0].dtype
        if dtype not in DTYPES:
            return None
        return self.engine(dtype).cell(x, h, c, weights, exact, False)

    def differentiable_cell(
        self, x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor], *, exact: bool
    ) -> Any:
        """Run one step, or return None where the kernels do not fit."""
        shared = self._share(weights)
        if shared is not None:
            # The weights of a step that starts from another's result were looked at there.
            state = h if c is None else c
            first = state is None or getattr(state.grad_fn, "shared", None) is not shared
            arguments = (self, shared.engine, shared, shared.handle, first, x, h, c)
        elif weights[0].dtype not in DTYPES or not _any_requires_grad(x, h, c, weights):
            return self.cell(x, h, c, weights, exact=exact)
        else:
            arguments = (self, self.engine(weights[0].dtype), None, None, True, x, h, c, *weights)
        try:
            return _apply_cell(*arguments)
        except _UnfitError:
            return None

    def _share(self, weights: list[Tensor]) -> Shared | None:
        """Weights as one input of all steps, or None where they are results or need no gradient."""
        shared = self._shared
        if shared is None or not shared.holds(weights):
            needed = any(weight.requires_grad for weight in weights)
            if not needed or not all(weight.is_leaf for weight in weights):
                return None
            if weights[0].dtype not in DTYPES:
                return None
            shared = self._shared = Shared(self.engine(weights[0].dtype), weights)
        return shared

    def keep(
        self,
        call: Call,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor],
    ) -> tuple[tuple[Tensor, ...], Any]:
        """Run as a call does, and return what backward needs, too."""
        if cuda.on_device(x):
            return self.gpu().run(call, x, h0, c0, weights, keep=True)
        y, state, tape, *states = self._keep(call, x, h0, c0, weights)
        return _outputs(call, y, state, *states), tape

    def tape(
        self,
        call: Call,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor],
    ) -> Any:
        """Return what a call leaves for backward."""
        if cuda.on_device(x):
            return self.gpu().run(call, x, h0, c0, weights, keep=True)[1]
        return self._keep(call, x, h0, c0, weights)[2]

    def _keep(self, call: Call, x: Tensor, *rest: Any) -> Any:
        return _forward(self.engine(x.dtype), call, x, *rest, keep=True)

    def composite(
        self,
        call: Call,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Run as torch operations over `x` of any layout."""
        with _without_autocast(x.device.type):
            if call.packed:
                x = call.packed.pad(x)
            if call.cell:
                x, h0, c0 = x[None], _with_axis(h0), _with_axis(c0)
            batched = x.dim() == 3
            resets = call.resets
            if not batched:
                x, h0, c0 = x[:, None], _batch_of_one(h0), _batch_of_one(c0)
                resets = None if resets is None else resets[:, None]
            elif call.batch_first:
                x = x.transpose(0, 1)
                resets = None if resets is None else resets.transpose(0, 1)
            y, *states = composite.run(
                self.spec,
                x,
                h0,
                c0,
                weights,
                call.lengths,
                resets,
                _masks(call, x) if any(call.noise) else None,
                call.all_states,
            )
            if not self.spec.has_cell_state:
                states = states[::2]
            if not batched:
                y, states = y[:, 0], [part.select(-2, 0) for part in states]
            elif call.batch_first:
                y = y.transpose(0, 1)
            if call.packed:
                y = call.packed.rows(y)
        return tuple(part[0] for part in states) if call.cell else (y, *states)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device_type):  # as for "meta"
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _masks(call: Call, x: Tensor) -> composite.Masks:
    """Those that the kernels draw, like `x`."""
    noise = call.noise

    def mask(kind: Any, shape: tuple[int, ...], layer: int, direction: int) -> Any:
        probability = getattr(noise, _PROBABILITIES.get(kind, kind))
        if not probability:
            return None
        zoneout = kind.startswith("zoneout")
        if zoneout and not noise.training:
            return probability  # what the mask is on average
        drawn = functional.mask(kind, shape, probability, call.seed, layer, direction)
        scale = 1.0 if zoneout or probability == 1 else 1 / (1 - probability)
        kept = torch.from_numpy(drawn != 0).to(x.dtype)
        return kept.to(x.device, non_blocking=cuda.on_device(x)) * scale

    return mask


_PROBABILITIES = {  # what `functional.mask` calls otherwise
    "input": "input_dropout",
    "recurrent": "recurrent_dropout",
    "weight": "weight_drop",
}


def _with_axis(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor[None]


def _batch_of_one(state: Tensor | None) -> Tensor | None:
    return None if state is None else state[:, None]


def _any_requires_grad(
    x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor]
) -> bool:
    return (
        x.requires_grad
        or (h0 is not None and h0.requires_grad)
        or (c0 is not None and c0.requires_grad)
        or any(weight.requires_grad for weight in weights)
    )


def _state(h: Tensor | None, c: Tensor | None) -> Any:
    if h is None:
        return None
    return _array(h) if c is None else (_array(h), _array(c))


def _outputs(call: Call, array: FloatArray, *states: Any) -> tuple[Tensor, ...]:
    """Of the final state and, if wanted, those of all steps."""
    parts = [part for state in states for part in _parts(state)]
    if call.cell:
        return tuple(torch.from_numpy(part[0]) for part in parts)
    y, *final = map(torch.from_numpy, (array, *parts))
    return (y if call.packed is None else call.packed.rows(y), *final)


def _parts(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _readable(x: Tensor, grads: Sequence[Tensor | None]) -> bool:
    """Whether the kernels can read the gradients of what a call with `x` gave."""
    if cuda.on_device(x):
        return cuda.readable(grads)
    return not READS_TENSORS or functional.common_bits(*grads) != 0


def _laid_out(call: Call, x: Tensor) -> Tensor:
    """As the kernels want it."""
    if call.packed is not None:
        return call.packed.pad(x, fill=None)
    return x[None] if call.cell else x


def _forward(
    engine: functional.Engine,
    call: Call,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    keep: bool,
) -> Any:
    """Call the core.

    It uses weights that it holds packed again, unless a tensor, its version or its values are
    others: any value if ``call.exact``, else one in every row, which writes to single elements
    through ``.data`` can spare, as torch does not count those.
    """
    if call.cell:
        h0, c0 = _with_axis(h0), _with_axis(c0)
    arrays = _arrays(weights)
    given = keep or call.noise.weight_drop > 0  # of which other weights are made than packed ones
    if not (READS_TENSORS or given):
        engine.pack(arrays)
    return engine.forward(
        _array(_laid_out(call, x)),
        _state(h0, c0),
        _array(call.lengths),
        _array(call.resets),
        call.batch_first,
        call.noise,
        call.seed,
        keep,
        arrays if given and not READS_TENSORS else None,
        False,  # torch's version counters guard what a tape refers to
        arrays if READS_TENSORS else None,
        call.exact or keep,
        call.all_states,
    )


class Kept:
    """What a forward pass leaves for backward, and whether it is still what it was."""

    def __init__(self, tape: Tape | cuda.CudaTape, y: Tensor) -> None:
        self.tape = tape
        self._y = y.detach()  # shares memory and version; y itself would refer to us
        self._version = y._version

    def usable(self) -> bool:
        return not self.tape.consumed and self._y._version == self._version


class _Differentiable(torch.autograd.Function):
    """The kernels, forward and backward; backward itself is differentiable by the composite."""

    @staticmethod
    def forward(
        ctx: Any,
        network: Network,
        call: Call,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.network, ctx.call, ctx.kept = network, call, None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, *weights)
        outputs, tape = network.keep(call, x, h0, c0, weights)
        # Hooks on saved tensors are there to save memory, as checkpoints do: keep no tape then.
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            ctx.kept = Kept(tape, outputs[0])  # which for cells and packed rows is a copy
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h0, c0, *weights = ctx.saved_tensors
        count = 5 + len(weights)
        if all(grad is None for grad in grads):
            return (None,) * count
        network, call, needs = ctx.network, ctx.call, ctx.needs_input_grad
        batched = not _readable(x, grads)  # by vmap
        if torch.is_grad_enabled() or batched or functorch_level() is not None:
            found = _composite_gradients(network, call, (x, h0, c0, *weights), needs[2:], grads)
            return (None, None, *found)
        found = gradients(network, call, x, h0, c0, weights, grads, ctx.kept, needs[2])
        return (
            None,
            None,
            *(gradient if need else None for gradient, need in zip(found, needs[2:], strict=True)),
        )


class _SharedWeights(torch.autograd.Function):
    """Where all steps of a cell lead to: gives the weights their gradients at once."""

    @staticmethod
    def forward(ctx: Any, shared: Shared, *weights: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.shared = weakref.ref(shared)  # which refers to us; the steps keep it
        return weights[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.shared().add_up())


class Shared:
    """The weights that steps of a cell have in common, as one input of each.

    A backward pass leaves here what the gradients of the weights are sums of: one product over the
    rows of all steps takes the place of a product and a sum per step.
    """

    def __init__(self, engine: functional.Engine, weights: list[Tensor]) -> None:
        self.engine = engine
        self.weights = weights
        self._versions = [weight._version for weight in weights]
        self._needs = [weight.requires_grad for weight in weights]
        self._sums: dict[int, _Sums] = {}  # of each backward pass that is on its way
        self.handle: Tensor = _SharedWeights.apply(self, *weights)

    def holds(self, weights: list[Tensor]) -> bool:
        """Whether these are the same, and unchanged."""
        return (
            all(map(operator.is_, weights, self.weights))
            and self._versions == [weight._version for weight in weights]
            and self._needs == [weight.requires_grad for weight in weights]
        )

    def sums(self) -> _Sums | None:
        """Those of the pass that runs, or None if it does not want gradients of weights."""
        task = torch._C._current_graph_task_id()
        sums = self._sums.get(task)
        if sums is None:
            for weight, version in zip(self.weights, self._versions, strict=True):
                if weight._version != version:
                    raise RuntimeError(
                        "one of the variables needed for gradient computation has been modified by "
                        f"an inplace operation: a weight of shape {tuple(weight.shape)} is at "
                        f"version {weight._version}; expected version {version} instead"
                    )
            if not torch._C._will_engine_execute_node(self.handle.grad_fn):
                return None
            sums = self._sums[task] = _Sums()
        return sums

    def add_up(self) -> list[Tensor | None]:
        """Return the gradients of the weights in the pass that runs."""
        sums = self._sums.pop(torch._C._current_graph_task_id(), None)
        if sums is None:
            return [None] * len(self.weights)
        found = sums.of_operations
        if sums.of_kernels is not None:
            formed = self.engine.add_up(sums.of_kernels)
            found = [
                part if other is None else part + other
                for part, other in zip(formed, found or [None] * len(formed), strict=True)
            ]
        return [part if need else None for part, need in zip(found, self._needs, strict=True)]


class _Sums:
    """What one backward pass has found so far."""

    def __init__(self) -> None:
        self.of_kernels: functional.KeptSteps | None = None
        self.of_operations: list[Tensor | None] = []  # gradients that can be differentiated

    def add(self, gradients: list[Tensor | None]) -> None:
        if not self.of_operations:
            self.of_operations = gradients
            return
        self.of_operations = [
            a if b is None else b if a is None else a + b
            for a, b in zip(self.of_operations, gradients, strict=True)
        ]


class _UnfitError(Exception):
    """The kernels cannot run what a cell was given."""


class DifferentiableCell(torch.autograd.Function):
    """One step, for which the way through whole sequences would take longer than the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        network: Network,
        engine: functional.Engine,
        shared: Shared | None,
        handle: Tensor | None,
        exact: bool,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        *weights: Tensor,
    ) -> Any:
        used = weights if shared is None else shared.weights
        found = engine.cell(x.contiguous(), h, c, used, exact, True)
        if found is None:
            raise _UnfitError
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h, c, *weights)
        ctx.network, ctx.shared, ctx.engine = network, shared, engine
        h, c, ctx.tape = found
        return h if c is None else (h, c)

    @staticmethod
    def backward(
        ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        x, h, c, *weights = ctx.saved_tensors
        if grad_h is None and grad_c is None:
            return (None,) * (8 + len(weights))
        shared, sums = ctx.shared, None
        if shared is not None:
            weights, sums = shared.weights, shared.sums()
        needs = ctx.needs_input_grad[5:]
        if torch.is_grad_enabled() or not functional.common_bits(
            grad_h, grad_c
        ):  # or unreadable, as by vmap
            network = ctx.network
            grads = (grad_h, grad_c) if network.spec.has_cell_state else (grad_h,)
            if shared is not None:
                needs += tuple(sums is not None and weight.requires_grad for weight in weights)
            inputs = (x, h, c, *weights)
            found = _composite_gradients(network, Call(cell=True), inputs, needs, grads)
            if sums is not None:
                sums.add(found[3:])
            return (None, None, None, None, None, *(found if shared is None else found[:3]))
        engine, tape, steps = ctx.engine, ctx.tape, None
        x = x.contiguous()
        if tape.consumed:
            tape = engine.cell(x, h, c, weights, True, True)[2]
        if sums is not None:
            steps = sums.of_kernels
            if steps is None:
                steps = sums.of_kernels = engine.keep_steps()
        grad_x, grad_h0, grad_c0, *found = engine.cell_backward(
            tape, weights, grad_h, grad_c, x, needs[0], steps
        )
        if h is None:
            grad_h0 = None
        if c is None:
            grad_c0 = None
        if shared is not None:  # without sums, nobody wants the rest
            return (None, None, None, None, None, grad_x, grad_h0, grad_c0)
        found = [part if need else None for part, need in zip(found, needs[3:], strict=True)]
        return (None, None, None, None, None, grad_x, grad_h0, grad_c0, *found)


# Past what Function.apply does for torch.func, whose transforms never come here.
_apply_cell = super(torch.autograd.Function, DifferentiableCell).apply


def gradients(
    network: Network,
    call: Call,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    kept: Kept | None,
    needs_x: bool,
) -> list[Tensor | None]:
    """Gradients of x, h0, c0 and the weights, from those of what the call gave.

    Those of h0 and c0 come where there is no such tensor, too; that of c0 is None but for an LSTM.
    """
    tape: Any
    if kept is not None and kept.usable():
        tape = kept.tape
    else:
        # A second backward, or an output that was changed in place: the same bits once more.
        tape = network.tape(call, x, h0, c0, weights)
    if cuda.on_device(x):
        return network.gpu().backward(call, tape, x, weights, grads, needs_x)
    engine = network.engine(x.dtype)
    # The input may lie elsewhere now; what was padded, the tape holds itself.
    x_array = None if call.packed else _array(_laid_out(call, x))
    grads = [None if grad is None else grad.resolve_neg() for grad in grads]
    if call.cell:
        grads = (None, *map(_with_axis, grads))
    if call.packed and grads[0] is not None:
        grads = (call.packed.pad(grads[0], fill=None), *grads[1:])
    grad_y, *rest = map(_array, grads)
    pair = network.spec.has_cell_state
    grad_state, *grad_states = zip(rest[::2], rest[1::2], strict=True) if pair else rest
    grad_x, grad_initial, found = engine.backward(
        tape,
        _arrays(weights),
        grad_y,
        grad_state,
        False,
        needs_x,
        x_array,
        True,
        grad_states[0] if grad_states else None,
    )
    grad_h0, grad_c0 = grad_initial if pair else (grad_initial, None)
    arrays = [grad_x, grad_h0, grad_c0, *found]
    if call.cell:
        arrays[:3] = (None if array is None else array[0] for array in arrays[:3])
    tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
    if call.packed and tensors[0] is not None:
        tensors[0] = call.packed.rows(tensors[0])
    return tensors


def _composite_gradients(
    network: Network,
    call: Call,
    inputs: tuple[Tensor | None, ...],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients as torch operations, which know where they come from if they are to."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, because one input may be made of another, which is none of our business.
        own = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        x, h0, c0, *weights = own
        assert x is not None
        outputs = network.composite(call, x, h0, c0, [w for w in weights if w is not None])
        given = [(y, grad) for y, grad in zip(outputs, grads, strict=True) if grad is not None]
        wanted = [tensor for tensor, need in zip(own, needs, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in given],
                [tensor for tensor in wanted if tensor is not None],
                [grad for _, grad in given],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
        return [next(found) if need else None for need in needs]
