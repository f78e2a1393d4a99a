"""What is compared: one small class for each engine that can run a `Problem`.

Every engine gets the same weights and the same input, and what it computes can be brought into one
common form, so that the outputs, and of a training step all gradients, are compared before anything
is timed. Each is called in the fastest way that takes arrays and returns new ones.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

import fastrnn
from fastrnn.bench import numpy_model, onnx_model
from fastrnn.bench.problem import Array, Problem, new_layer
from fastrnn.bench.suites import Shape


@dataclass(frozen=True)
class Candidate:
    """A call to time.

    Attributes
    ----------
    name : str
        The engine's.
    call : callable
        Runs the problem once.
    arrays : callable
        Turns what ``call`` returns into output, h and (LSTM) c, in the shapes of torch.nn; the
        output of a single step is (B, H). Of a training step: output, the gradient of the input,
        and those of the parameters in the order of ``problem.weights``. Not timed.
    context : callable
        Makes the context that the calls run in; entered once for many calls.
    wait : callable, optional
        Waits for what the calls have queued, on a GPU.
    """

    name: str
    call: Callable[[], Any]
    arrays: Callable[[Any], list[Array]]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    wait: Callable[[], Any] | None = None

    def result(self) -> list[Array]:
        """Run once and return the arrays."""
        with self.context():
            return self.arrays(self.call())


class Peer(ABC):
    """An engine that runs problems with a number of threads."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    trains: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def unsupported(self, shape: Shape) -> str | None:
        """Return why it cannot run this shape, or None."""
        return "it has the forward pass only" if shape.train and not self.trains else None

    @abstractmethod
    def candidate(self, problem: Problem) -> Candidate:
        """Bring the problem into the engine's own form, ready to be timed."""


class FastRNN(Peer):
    """The layer of this package.

    Forward in evaluation mode, through ``step`` where T = 1; a training step in training mode.
    """

    name = "fastrnn"
    requires = ()
    trains = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        fastrnn.set_num_threads(threads)

    def candidate(self, problem: Problem) -> Candidate:
        if problem.shape.train:
            return self.training_step(problem)
        layer = _filled_layer(problem)
        layer.eval()
        if problem.state is None:
            call = partial(layer, problem.x)
        else:
            call = partial(layer.step, problem.x, _as_state(problem.state))
        return Candidate(self.name, call, _flat)

    def training_step(self, problem: Problem, lengths: Array | None = None) -> Candidate:
        """Forward and backward, of rows of `lengths` (B,) steps if that is given."""
        return self._training_step(_filled_layer(problem), problem, lengths)

    def regularised_step(self, problem: Problem, options: Mapping[str, Any]) -> Candidate:
        """Forward and backward of a new layer with `options`, which need not fit the weights."""
        return self._training_step(new_layer(problem.shape, **options), problem)

    def _training_step(
        self, layer: Any, problem: Problem, lengths: Array | None = None
    ) -> Candidate:
        def call() -> tuple[Array, Any]:
            output, _, tape = layer.forward(problem.x, lengths=lengths)
            return output, layer.backward(tape, problem.grad_output)

        def arrays(result: tuple[Array, Any]) -> list[Array]:
            output, gradients = result
            return [output, gradients.input, *(gradients.parameters[n] for n in problem.weights)]

        return Candidate(self.name, call, arrays)


class NumPy(Peer):
    """Plain NumPy: one matrix product for all inputs, then one in each step."""

    name = "numpy"
    requires = ("numpy",)

    def candidate(self, problem: Problem) -> Candidate:
        return Candidate(self.name, partial(numpy_model.forward, problem), list, self._blas_threads)

    def _blas_threads(self) -> AbstractContextManager[Any]:
        # Without threadpoolctl the number is the BLAS library's own: it is fixed at its import.
        if importlib.util.find_spec("threadpoolctl") is None:
            return nullcontext()
        from threadpoolctl import threadpool_limits

        limits: AbstractContextManager[Any] = threadpool_limits(self._threads, user_api="blas")
        return limits


class Torch(Peer):
    """torch.nn: in evaluation and inference mode, or in training mode with autograd."""

    name = "torch"
    requires = ("torch",)
    trains = True
    device: ClassVar[str] = "cpu"

    def __init__(self, threads: int) -> None:
        import torch

        super().__init__(threads)
        torch.set_num_threads(threads)

    def candidate(self, problem: Problem) -> Candidate:
        if problem.shape.train:
            return self._training_step(problem, self._filled_module(problem))
        shape = problem.shape
        x = self._tensor(problem.x, shape)
        state = [self._tensor(part, shape) for part in problem.state or ()]
        if shape.step and shape.layers == 1:
            # nn.LSTMCell needs a quarter of nn.LSTM's time for one step (a twentieth at H = 512,
            # where nn.LSTM reorders the weights for oneDNN in every call).
            module = self._filled_module(problem, cell=True)
            call = partial(module, x, _as_state([part[0] for part in state]))
            arrays: Callable[[Any], list[Array]] = _cell_arrays
        else:
            module = self._filled_module(problem)
            call = partial(module, x[None], _as_state(state)) if state else partial(module, x)
            arrays = _step_arrays if state else _flat
        module.eval()
        return self._candidate(problem, call, lambda result: arrays(_on_host(result)))

    def _candidate(
        self, problem: Problem, call: Callable[[], Any], arrays: Callable[[Any], list[Array]]
    ) -> Candidate:
        return Candidate(self.name, call, arrays, partial(self._mode, problem), self._wait())

    def _mode(self, problem: Problem) -> Any:
        """Make the context that calls run in."""
        import torch

        return torch.enable_grad() if problem.shape.train else torch.inference_mode()

    def _wait(self) -> Any:
        """Return what waits for the device."""
        return None

    def _library(self) -> Any:
        """Return the module that has the classes."""
        import torch

        return torch.nn

    def _tensor(self, array: Any, shape: Shape) -> Any:
        import torch

        return torch.from_numpy(array).to(self.device, _torch_dtype(shape))

    def _module(self, shape: Shape, **options: Any) -> Any:
        return getattr(self._library(), shape.cell.upper())(
            shape.I,
            shape.H,
            shape.layers,
            bidirectional=shape.bidirectional,
            dtype=_torch_dtype(shape),
            device=self.device,
            **options,
        )

    def _filled_module(self, problem: Problem, cell: bool = False) -> Any:
        shape = problem.shape
        weights = {name: self._tensor(value, shape) for name, value in problem.weights.items()}
        if cell:
            kind = getattr(self._library(), f"{shape.cell.upper()}Cell")
            module = kind(shape.I, shape.H, dtype=_torch_dtype(shape), device=self.device)
            weights = {name.removesuffix("_l0"): value for name, value in weights.items()}
        else:
            module = self._module(shape)
        module.load_state_dict(weights)
        return module

    def _training_step(
        self, problem: Problem, module: Any, lengths: Array | None = None
    ) -> Candidate:
        import torch

        module.train()
        parameters = dict(module.named_parameters())
        x = self._tensor(problem.x, problem.shape).requires_grad_()
        leaves = [x, *parameters.values()]
        grad_output = self._tensor(problem.grad_output, problem.shape)
        options: dict[str, Any] = {}
        if lengths is not None:
            options["lengths"] = torch.from_numpy(lengths).to(self.device)

        def call() -> Any:
            for leaf in leaves:  # as zero_grad does: new gradients, not sums
                leaf.grad = None
            output, _ = module(x, **options)
            output.backward(grad_output)
            return output

        def arrays(output: Any) -> list[Array]:
            gradients = [x.grad, *(parameters[name].grad for name in problem.weights)]
            return [_on_host(part) for part in (output, *gradients)]

        return self._candidate(problem, call, arrays)


class OnnxRuntime(Peer):
    """ONNX Runtime's operators in a prepared sequential session.

    Its threads spin between calls, which is the default and makes it faster. The output stays in
    ONNX's layout (T, directions, B, H).
    """

    name = "onnxruntime"
    requires = ("onnx", "onnxruntime")

    def unsupported(self, shape: Shape) -> str | None:
        double = None if shape.dtype == "float32" else "its recurrent operators are float32 only"
        return super().unsupported(shape) or double

    def candidate(self, problem: Problem) -> Candidate:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        session = onnxruntime.InferenceSession(
            onnx_model.build(problem), options, providers=["CPUExecutionProvider"]
        )
        outputs = [output.name for output in session.get_outputs()]
        call = partial(session.run, outputs, onnx_model.feeds(problem))
        return Candidate(self.name, call, partial(onnx_model.arrays, problem.shape))


PEERS: dict[str, type[Peer]] = {"numpy": NumPy, "torch": Torch, "onnxruntime": OnnxRuntime}


def missing_package(peer: str) -> str | None:
    """Return the first package that a peer needs and that is not installed, or None."""
    for package in PEERS[peer].requires:
        if importlib.util.find_spec(package) is None:
            return package
    return None


def _filled_layer(problem: Problem) -> Any:
    layer = new_layer(problem.shape)
    layer.load_state_dict(problem.weights)
    return layer


def _torch_dtype(shape: Shape) -> Any:
    import torch

    return getattr(torch, "float32" if shape.dtype == "tf32" else shape.dtype)


def _on_host(result: Any) -> Any:
    """Return arrays for tensors, also of types that NumPy does not have."""
    if isinstance(result, tuple):
        return tuple(map(_on_host, result))
    tensor = result.detach().cpu()
    return (tensor.float() if tensor.element_size() == 2 else tensor).numpy()


def _as_state(parts: Sequence[Any]) -> Any:
    """Return h alone, or (h, c)."""
    return tuple(parts) if len(parts) == 2 else parts[0]


def _states(state: Any) -> list[Array]:
    parts = state if isinstance(state, tuple) else (state,)
    return [np.asarray(part) for part in parts]


def _flat(result: Any) -> list[Array]:
    output, state = result
    return [np.asarray(output), *_states(state)]


def _step_arrays(result: Any) -> list[Array]:
    output, *states = _flat(result)
    return [output[0], *states]


def _cell_arrays(state: Any) -> list[Array]:
    states = _states(state)
    return [states[0], *(part[None] for part in states)]
