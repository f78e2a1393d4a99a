"""The engines on an NVIDIA GPU: torch.nn, and the modules of `fastrnn.torch`, which replace them.

Arrays and parameters are on the GPU before anything is timed, and a call only queues work: the
last of a row of calls is waited for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from fastrnn import functional
from fastrnn.bench.peers import PEERS, Candidate, FastRNN, Peer, Torch
from fastrnn.bench.problem import Array, Problem

DEVICES = ("cpu", "cuda")


class CudaTorch(Torch):
    """torch.nn, as a rule with cuDNN's kernels.

    TF32 is forbidden but for the type of that name.
    """

    device: ClassVar[str] = "cuda"

    def _mode(self, problem: Problem) -> Any:
        return _precision(super()._mode(problem), problem.shape.dtype == "tf32")

    def _wait(self) -> Any:
        import torch

        return torch.cuda.synchronize


class CudaFastRNN(CudaTorch):
    """The modules of `fastrnn.torch`."""

    name = FastRNN.name

    def _library(self) -> Any:
        import fastrnn.torch

        return fastrnn.torch

    def training_step(self, problem: Problem, lengths: Array | None = None) -> Candidate:
        """Forward and backward, of rows of `lengths` (B,) steps if that is given."""
        return self._training_step(problem, self._filled_module(problem), lengths)

    def regularised_step(self, problem: Problem, options: Mapping[str, Any]) -> Candidate:
        """Forward and backward of a new module with `options`, which need not fit the weights."""
        return self._training_step(problem, self._module(problem.shape, **options))


@contextmanager
def _precision(mode: Any, tf32: bool) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        with mode:
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


SUBJECTS: dict[str, type[FastRNN] | type[CudaFastRNN]] = {"cpu": FastRNN, "cuda": CudaFastRNN}
"""What is compared with the peers, by device."""

PEERS_ON: dict[str, dict[str, type[Peer]]] = {"cpu": PEERS, "cuda": {"torch": CudaTorch}}
"""The peers, by device."""


def missing(device: str) -> str | None:
    """Return what a device lacks here, or None."""
    if device == "cpu":
        return None
    try:
        functional.cuda_device_count()
    except RuntimeError as error:
        return str(error)
    if importlib.util.find_spec("torch") is None:
        return "device='cuda': expected torch, whose modules are compared, but it is not installed"
    import torch

    if not torch.cuda.is_available():
        return f"device='cuda': expected a torch that sees the GPU, got torch {torch.__version__}"
    return None


def memory_bytes() -> int:
    """Return the memory of the GPU."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def describe() -> dict[str, Any]:
    """Name the GPU and the version of cuDNN."""
    import torch

    return {
        "gpu": torch.cuda.get_device_name(0),
        "cudnn": torch.backends.cudnn.version(),
    }
