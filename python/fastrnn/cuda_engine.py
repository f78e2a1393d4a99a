"""What recurrent layers on an NVIDIA GPU run on: `functional` has the same for the CPU."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional
from fastrnn.cuda import (
    ALIGNMENT,
    DEFAULT_STREAM,
    DeviceArray,
    Lent,
    Pool,
    expect,
    on_device,
    refuse,
    view,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from numpy.typing import ArrayLike, NDArray

    from fastrnn.cuda import AnyArray
    from fastrnn.functional import FloatArray, Noise

    # What has the address of memory there, and keeps it alive.
    Placed: TypeAlias = "DeviceArray | Lent"

__all__ = ["DeviceTape", "Engine", "backward", "check", "cublas_path", "forward", "step"]

# ---- the library of products ---------------------------------------------------------------------


def cublas_path() -> str | None:
    """Return where the wheel of cuBLAS has put the library, or None if it is not installed."""
    for package in ("nvidia.cu13", "nvidia.cublas"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # nothing of nvidia's
            return None
        for folder in (spec and spec.submodule_search_locations) or ():
            library = Path(folder) / "lib" / "libcublas.so.13"
            if library.is_file():
                return str(library)
    return None


@functools.cache
def _point_to_cublas() -> None:
    """Tell the core of a wheel's cuBLAS, which the system's search does not find."""
    if "FASTRNN_CUBLAS" not in os.environ and (path := cublas_path()):
        os.environ["FASTRNN_CUBLAS"] = path


# ---- what a call is given ------------------------------------------------------------------------


class _Layout(NamedTuple):
    """How the arrays of a call are laid out, and where its results go."""

    steps: int
    batch: int
    batched: bool
    batch_first: bool
    on_device: bool

    def sequence(self, *width: int) -> tuple[int, ...]:
        """Return the shape that the user sees of an array of one row a step."""
        if not self.batched:
            return self.steps, *width
        lead = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        return *lead, *width

    def rows(self, *lead: int, width: int) -> tuple[int, ...]:
        """Return the shape of an array of one row for each of the batch."""
        return (*lead, self.batch, width) if self.batched else (*lead, width)


class _Call(NamedTuple):
    """Arguments of a call, checked."""

    layout: _Layout
    x: AnyArray
    h: AnyArray | None
    c: AnyArray | None
    lengths: NDArray[np.int64] | None = None
    resets: AnyArray | None = None


class DeviceTape:
    """What `backward` needs of a call of `forward` on a GPU.

    It keeps copies of the parameters, and of an `x` and output that are NumPy's: whatever becomes
    of those, gradients are those of the call. An `x` and output on the GPU it refers to; leave
    them unchanged until `backward`.
    """

    def __init__(
        self,
        core: functional.CudaTape,
        layout: _Layout,
        x: Placed,
        y: Lent,
        weights: _Weights,
        memory: Lent,
    ) -> None:
        self._core = core
        self._layout = layout
        self._held: tuple[Placed, Lent, _Weights, Lent] | None = (x, y, weights, memory)

    @property
    def consumed(self) -> bool:
        """Whether `backward` has used it up."""
        return self._core.consumed

    @property
    def nbytes(self) -> int:
        """Bytes of the GPU's memory that it holds."""
        if self._held is None:
            return 0
        x, y, weights, memory = self._held
        blocks = [weights.memory, memory]
        if isinstance(x, Lent):
            blocks.append(x)
        if not self._layout.on_device:
            blocks.append(y)
        return sum(block.memory.nbytes for block in blocks)

    def _close(self) -> None:
        self._held = None


class _Weights(NamedTuple):
    """A copy of all parameters."""

    memory: Lent
    addresses: tuple[int, ...]


class _Block:
    """How the parameters lie in one block, and arrays of the host for such a block."""

    def __init__(self, shapes: Iterable[tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._shapes = tuple(shapes)
        self.offsets: list[int] = []
        end = 0
        for shape in self._shapes:
            self.offsets.append(end)
            nbytes = math.prod(shape) * dtype.itemsize
            end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        self.nbytes = end

    def arrays(self) -> tuple[NDArray[np.uint8], list[FloatArray]]:
        """Return a new block of the host, and the parameters' arrays in it."""
        block = np.empty(self.nbytes, np.uint8)
        places = zip(self._shapes, self.offsets, strict=True)
        return block, [np.ndarray(shape, self._dtype, block, start) for shape, start in places]

    def addresses(self, memory: Lent) -> tuple[int, ...]:
        return tuple(memory.address + offset for offset in self.offsets)


class Engine:
    """What `Recurrent` asks of an engine, on a GPU: that of ``functional.Engine``.

    Any number of threads may use it.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        proj_size: int,
        bias: bool,
        merge: str,
        residual: bool,
        layer_norm: bool,
        clip: float,
        *,
        dtype: np.dtype[Any],
        device: int,
        allow_tf32: bool,
    ) -> None:
        _point_to_cublas()
        self._core = functional.CudaEngine(
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
            clip,
            "tf32" if allow_tf32 else dtype.name,
        )
        self.parameter_shapes = self._core.parameter_shapes
        self._dtype = dtype
        self._device = device
        self._stream = (device, DEFAULT_STREAM)
        self._inputs = input_size
        self._has_c = cell.startswith("lstm")
        self._chains = num_layers * (2 if bidirectional else 1)
        self._bidirectional = bidirectional
        # Of a row of c and of h, and of the output.
        self._hidden, self._recurrent = hidden_size, proj_size or hidden_size
        self._width = self._recurrent * (2 if bidirectional and merge == "concat" else 1)
        self._block = _Block(self.parameter_shapes.values(), dtype)
        self._pool = Pool(device)
        self._staging: list[tuple[NDArray[np.uint8], list[FloatArray]]] = []
        self._packed: _Weights | None = None
        self._step_noise = functional.Noise()

    # -- weights

    def pack(self, parameters: Sequence[FloatArray]) -> None:
        """Copy the parameters to the GPU, for calls that are given none."""
        self._packed = self._upload(parameters)

    def release(self) -> None:
        """Let go of memory that is kept for the next call."""
        self._pool.clear()
        self._staging.clear()

    def set_zoneout(self, h: float, c: float) -> None:
        """Set that of `step`, which acts by expectation."""
        self._step_noise = functional.Noise(zoneout_h=h, zoneout_c=c)

    def _upload(self, parameters: Sequence[FloatArray]) -> _Weights:
        try:
            block, arrays = self._staging.pop()
        except IndexError:
            block, arrays = self._block.arrays()
        for array, parameter in zip(arrays, parameters, strict=True):
            array[...] = parameter
        memory = self._pool.take(self._block.nbytes)
        functional.cuda_upload(self._stream, memory.address, block)
        self._staging.append((block, arrays))
        return _Weights(memory, self._block.addresses(memory))

    # -- arguments

    def read(
        self, x: Any, state: Any, lengths: Any, resets: Any, batch_first: bool = False
    ) -> _Call:
        """Check what a call over a whole sequence is given."""
        x = view("x", x, self._device)
        batched = x.ndim != 2
        batch_first = batched and batch_first
        if x.ndim not in (2, 3) or x.shape[-1] != self._inputs or x.dtype != self._dtype:
            lead = ("B", "T") if batch_first else ("T", "B") if batched else ("T",)
            refuse("x", x, (*lead, self._inputs), self._dtype)
        steps, batch = (*x.shape[:-1], 1) if not batched else x.shape[:2]
        if batch_first:
            steps, batch = batch, steps
        layout = _Layout(steps, batch, batched, batch_first, isinstance(x, DeviceArray))
        return _Call(
            layout,
            x,
            *self._read_state(state, layout),
            self._read_lengths(lengths, layout),
            self._read_resets(resets, layout),
        )

    def _read_state(self, state: Any, layout: _Layout) -> tuple[AnyArray | None, AnyArray | None]:
        parts = self._parts("state", state, "h_0", "c_0")
        shapes = self._state_shapes(layout)
        if state is not None and any(part is None for part in parts[: len(shapes)]):
            raise TypeError("state: expected arrays, got None in the pair")
        return self._read_parts("state", ("h_0", "c_0"), parts, shapes)

    def _read_parts(
        self,
        name: str,
        names: tuple[str, str],
        parts: tuple[Any, Any],
        shapes: Sequence[tuple[int, ...]],
    ) -> tuple[AnyArray | None, AnyArray | None]:
        """Check h and c, each of which may be None."""
        read: list[AnyArray | None] = [None, None]
        for i, (part, shape) in enumerate(zip(parts, shapes, strict=False)):
            if part is not None:
                label = f"{name} ({names[i]})"
                array = view(label, part, self._device)
                expect(label, array, shape, self._dtype)
                read[i] = array
        return read[0], read[1]

    def _parts(self, name: str, state: Any, h: str, c: str) -> tuple[Any, Any]:
        """Return h and c of a state, None of what there is not."""
        if state is None:
            return None, None
        pair = isinstance(state, (tuple, list))
        if not self._has_c:
            if pair:
                raise TypeError(f"{name}: expected one array {h}, got {type(state).__name__}")
            return state, None
        if not pair or len(state) != 2:
            got = f"{len(state)} items" if pair else type(state).__name__
            raise TypeError(f"{name}: expected a pair ({h}, {c}), got {got}")
        return state[0], state[1]

    def _state_shapes(self, layout: _Layout) -> list[tuple[int, ...]]:
        """Return the shapes of h and, where there is one, c."""
        return [layout.rows(self._chains, width=width) for width in self._state_widths()]

    def _states_shapes(self, layout: _Layout) -> list[tuple[int, ...]]:
        """Return the same of those of all steps."""
        widths = self._state_widths()
        return [layout.rows(self._chains, layout.steps, width=width) for width in widths]

    def _state_widths(self) -> list[int]:
        return [self._recurrent, self._hidden][: 1 + self._has_c]

    def _read_lengths(self, lengths: Any, layout: _Layout) -> NDArray[np.int64] | None:
        """Check lengths, on the host: those on a GPU are fetched."""
        if lengths is None:
            return None
        given = _view_or_listed("lengths", lengths, self._device)
        values = functional.integer_lengths(given)
        fits = values.shape == (layout.batch,)
        if not layout.batched:
            fits = values.size == 1 and values.ndim <= 1
        if not fits:
            refuse("lengths", values, (layout.batch,), np.dtype(np.int64))
        values = values.reshape(layout.batch)
        wrong = np.flatnonzero((values < 0) | (values > layout.steps))
        if wrong.size:
            raise ValueError(
                f"lengths: expected integers in 0..{layout.steps}, got {values[wrong[0]]} at row"
                f" {wrong[0]}"
            )
        return values

    def _read_resets(self, resets: Any, layout: _Layout) -> AnyArray | None:
        if resets is None:
            return None
        given = on_device("resets", resets)
        if given is None:
            array = functional.listed("resets", "bools", resets)
            expect("resets", array, layout.sequence(), np.dtype(bool))
            return array
        array_there = view("resets", given, self._device)
        # Libraries without a type for it have bools as bytes.
        dtype = np.dtype(np.uint8 if given.dtype == np.uint8 else bool)
        expect("resets", array_there, layout.sequence(), dtype)
        return array_there

    # -- arrays on the GPU

    def _place(self, array: AnyArray | None, swap: bool = False) -> Placed | None:
        """Return an array's memory on the GPU, contiguous; `swap` says of swapped leading axes."""
        if array is None:
            return None
        if swap:
            array = array._swapped() if isinstance(array, DeviceArray) else array.swapaxes(0, 1)
        if isinstance(array, DeviceArray) and array.size and array._is_contiguous():
            return array
        memory = self._pool.take(array.nbytes)
        if isinstance(array, DeviceArray):
            array._gather(memory.address)
        else:
            contiguous = np.ascontiguousarray(array)
            functional.cuda_upload(self._stream, memory.address, contiguous)
        return memory

    def _take(self, shape: Sequence[int]) -> Lent:
        return self._pool.take(math.prod(shape) * self._dtype.itemsize)

    def _finished(
        self, layout: _Layout, memory: Lent, shape: tuple[int, ...], swap: bool = False
    ) -> Any:
        """Return a result to the user, where it belongs; `shape` is as it lies on the GPU."""
        array = DeviceArray(memory, memory.address, shape, self._dtype, None, self._device)
        array = array._swapped() if swap else array
        return array if layout.on_device else array.numpy()

    def _finished_state(
        self, layout: _Layout, parts: Sequence[Lent], shapes: Sequence[tuple[int, ...]]
    ) -> Any:
        finished = tuple(
            self._finished(layout, memory, shape)
            for memory, shape in zip(parts, shapes, strict=True)
        )
        return finished if self._has_c else finished[0]

    # -- calls

    def forward(
        self,
        call: _Call,
        noise: Noise,
        seed: int,
        parameters: Sequence[FloatArray] | None,
        *,
        keep: bool,
        all_states: bool,
    ) -> Any:
        """Run a call; the results are those of ``functional.forward``."""
        layout = call.layout
        weights = self._packed if parameters is None else self._upload(parameters)
        if weights is None:
            raise RuntimeError("pack the parameters first")
        x = self._place(call.x, swap=layout.batch_first)
        assert x is not None
        given = [
            x,
            self._place(call.h),
            self._place(call.c),
            self._place(call.lengths),
            self._place(call.resets, swap=layout.batch_first),
        ]
        y_shape = layout._replace(batch_first=False).sequence(self._width)
        y = self._take(y_shape)
        state_shapes = self._state_shapes(layout)
        states_shapes = self._states_shapes(layout) if all_states else []
        final = [self._take(shape) for shape in state_shapes]
        states = [self._take(shape) for shape in states_shapes]
        for memory in states:
            memory.memory.zero()
        tape_bytes, workspace_bytes = self._core.forward_bytes(
            layout.steps,
            layout.batch,
            noise,
            call.lengths is not None,
            call.resets is not None,
            keep,
        )
        workspace = self._pool.take(workspace_bytes)
        kept = self._pool.take(tape_bytes) if keep else None
        core_tape = self._core.forward(
            layout.steps,
            layout.batch,
            _addresses(*given, y, *_pair(final), *_pair(states)),
            weights.addresses,
            noise,
            seed,
            self._stream,
            workspace.block(),
            None if kept is None else kept.block(),
        )
        results = [
            self._finished(layout, y, y_shape, swap=layout.batch_first),
            self._finished_state(layout, final, state_shapes),
        ]
        if kept is not None:
            assert core_tape is not None
            results.append(DeviceTape(core_tape, layout, x, y, weights, kept))
        if all_states:
            results.append(self._finished_state(layout, states, states_shapes))
        return tuple(results)

    def backward(
        self,
        tape: DeviceTape,
        grad_output: Any,
        grad_state: Any,
        grad_states: Any,
        *,
        retain: bool,
        input_grad: bool,
    ) -> tuple[Any, Any, list[FloatArray]]:
        """Differentiate a call; the results are those of ``functional.backward``."""
        workspace_bytes = self._core.backward_bytes(tape._core, retain)  # checks the tape, too
        layout, held = tape._layout, tape._held
        if held is None:
            raise ValueError("tape: expected one that no other thread uses, got one in use")
        x, _, weights, _ = held
        time_major = layout._replace(batch_first=False)
        state_shapes = self._state_shapes(layout)
        given = [
            self._place_gradient("grad_output", grad_output, layout),
            *self._place_parts("grad_state", grad_state, state_shapes),
            *self._place_parts("grad_states", grad_states, self._states_shapes(layout)),
        ]
        x_shape = time_major.sequence(self._inputs)
        grad_x = self._take(x_shape) if input_grad else None
        initial = [self._take(shape) for shape in state_shapes]
        gradients = self._pool.take(self._block.nbytes)
        workspace = self._pool.take(workspace_bytes)
        self._core.backward(
            tape._core,
            _addresses(x, *given, grad_x, *_pair(initial)),
            weights.addresses,
            self._block.addresses(gradients),
            retain,
            self._stream,
            workspace.block(),
        )
        if not retain:
            tape._close()
        block, arrays = self._block.arrays()
        functional.cuda_download(self._stream, block, gradients.address)
        grad_input = None
        if grad_x is not None:
            grad_input = self._finished(layout, grad_x, x_shape, swap=layout.batch_first)
        return grad_input, self._finished_state(layout, initial, state_shapes), arrays

    def _place_gradient(self, name: str, value: Any, layout: _Layout) -> Placed | None:
        if value is None:
            return None
        array = view(name, value, self._device)
        expect(name, array, layout.sequence(self._width), self._dtype)
        return self._place(array, swap=layout.batch_first)

    def _place_parts(
        self, name: str, state: Any, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[Placed | None, Placed | None]:
        parts = self._parts(name, state, "grad_h", "grad_c")
        h, c = self._read_parts(name, ("grad_h", "grad_c"), parts, shapes)
        return self._place(h), self._place(c)

    def step(self, x: Any, state: Any) -> tuple[Any, Any]:
        """Run one step of a batch (B, I) or one row (I,)."""
        if self._bidirectional:
            raise ValueError("step: a bidirectional layer needs the whole sequence; call the layer")
        x = view("x", x, self._device)
        batched = x.ndim != 1
        if x.ndim not in (1, 2) or x.shape[-1] != self._inputs or x.dtype != self._dtype:
            refuse("x", x, ("B", self._inputs) if batched else (self._inputs,), self._dtype)
        batch = x.shape[0] if batched else 1
        layout = _Layout(1, batch, batched, False, isinstance(x, DeviceArray))
        call = _Call(layout, x, *self._read_state(state, layout))
        output, after = self.forward(call, self._step_noise, 0, None, keep=False, all_states=False)
        # (1, B, R) or (1, R), of which the step is all there is.
        return _only_step(output), after


def _only_step(output: Any) -> Any:
    if not isinstance(output, DeviceArray):
        return output[0]
    return DeviceArray(
        output._owner,
        output.address,
        output.shape[1:],
        output.dtype,
        output.strides[1:],
        output._number,
    )


def _addresses(*arrays: Placed | None) -> list[int]:
    return [0 if array is None else array.address for array in arrays]


def _pair(arrays: Sequence[Lent]) -> tuple[Lent | None, Lent | None]:
    """Return h and c, or None where there is none."""
    first, second, *_ = (*arrays, None, None)
    return first, second


def _view_or_listed(name: str, value: Any, device: int) -> Any:
    """Return what `value` holds on the host: an array of a GPU is fetched."""
    array = on_device(name, value)
    if array is None:
        return value
    there = view(name, array, device)
    return there.numpy() if isinstance(there, DeviceArray) else there


# ---- as functional has them ----------------------------------------------------------------------


def forward(
    engine: Engine,
    x: Any,
    state: Any,
    lengths: ArrayLike | None,
    resets: ArrayLike | None,
    batch_first: bool,
    noise: Noise,
    seed: int,
    parameters: Sequence[FloatArray] | None,
    *,
    keep: bool,
    all_states: bool = False,
) -> Any:
    """Run `engine` over a whole sequence, see ``functional.forward``."""
    call = engine.read(x, state, lengths, resets, batch_first)
    return engine.forward(call, noise, seed, parameters, keep=keep, all_states=all_states)


def backward(
    engine: Engine,
    tape: Any,
    parameters: Iterable[FloatArray],
    grad_output: Any,
    grad_state: Any,
    *,
    retain: bool,
    input_grad: bool,
    grad_states: Any = None,
) -> tuple[Any, Any, list[FloatArray]]:
    """Differentiate the call that made `tape`, see ``functional.backward``.

    The parameters are those that the tape has a copy of.
    """
    if isinstance(tape, functional.Tape):
        raise ValueError("tape: expected one that this layer's forward returned, got a CPU layer's")
    if not isinstance(tape, DeviceTape):
        raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
    return engine.backward(
        tape, grad_output, grad_state, grad_states, retain=retain, input_grad=input_grad
    )


def check(
    engine: Engine,
    x: Any,
    state: Any,
    lengths: ArrayLike | None,
    resets: ArrayLike | None,
    batch_first: bool,
) -> None:
    """Raise what a call would raise, see ``functional.check``."""
    engine.read(x, state, lengths, resets, batch_first)


def step(engine: Engine, x: Any, state: Any) -> tuple[Any, Any]:
    """Run one step, see ``functional.step``."""
    return engine.step(x, state)
