from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

class _Config(TypedDict):
    version: str
    isa: str
    isas: list[str]
    threads: int
    cuda: str
    compiler: str

__version__: str
CELLS: tuple[str, ...]
MERGES: tuple[str, ...]

def config() -> _Config: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def activation(name: str, x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]: ...
def affine(
    x: NDArray[np.floating[Any]],
    weight: NDArray[np.floating[Any]],
    bias: NDArray[np.floating[Any]] | None,
) -> NDArray[np.floating[Any]]: ...
def affine_backward(
    x: NDArray[np.floating[Any]],
    weight: NDArray[np.floating[Any]],
    grad: NDArray[np.floating[Any]],
    input: bool,
    bias: bool,
) -> tuple[
    NDArray[np.floating[Any]] | None,
    NDArray[np.floating[Any]],
    NDArray[np.floating[Any]] | None,
]: ...

_Array = NDArray[np.floating[Any]]
_Applied = tuple[float, float, float, float]  # factor, clip, l1, l2

def sgd(
    parameter: _Array,
    gradient: _Array,
    slots: Sequence[_Array | None],
    applied: _Applied,
    rate: float,
    momentum: float,
    nesterov: bool,
    /,
) -> None: ...
def rmsprop(
    parameter: _Array,
    gradient: _Array,
    slots: Sequence[_Array | None],
    applied: _Applied,
    rate: float,
    alpha: float,
    eps: float,
    momentum: float,
    /,
) -> None: ...
def adam(
    parameter: _Array,
    gradient: _Array,
    slots: Sequence[_Array | None],
    applied: _Applied,
    rate: float,
    keep: float,
    beta1: float,
    beta2: float,
    eps: float,
    updates: int,
    /,
) -> None: ...
def sum_of_squares(x: _Array, /) -> float: ...
def borrow_threads_of(*addresses: int) -> None: ...
def read_tensors_of(tensor: type, parameter: type) -> bool: ...
def common_bits(*tensors: Any) -> int: ...
def mask(
    kind: str,
    shape: Sequence[int],
    probability: float,
    seed: int,
    layer: int,
    direction: int,
) -> NDArray[np.float32]: ...
def fma_peak(dtype: str, threads: int, seconds: float) -> float: ...
def read_bandwidth(bytes_per_thread: int, threads: int, seconds: float) -> float: ...

class Tape:
    @property
    def nbytes(self) -> int: ...
    @property
    def consumed(self) -> bool: ...

class KeptSteps: ...

class Engine:
    parameter_shapes: dict[str, tuple[int, ...]]

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
        dtype: str,
    ) -> None: ...
    def pack(self, parameters: Sequence[NDArray[np.floating[Any]]]) -> None: ...
    def release(self) -> None: ...
    def forward(
        self,
        x: Any,
        state: Any,
        lengths: NDArray[np.int64] | None,
        resets: NDArray[np.bool_] | None,
        batch_first: bool,
        noise: tuple[float | bool, ...],
        seed: int,
        keep: bool,
        parameters: Sequence[Any] | None,
        guard: bool,
        tensors: Sequence[Any] | None,
        exact: bool,
        all_states: bool,
    ) -> Any: ...
    def check(
        self,
        x: NDArray[np.floating[Any]],
        state: Any,
        lengths: NDArray[np.int64] | None,
        resets: NDArray[np.bool_] | None,
        batch_first: bool,
    ) -> None: ...
    def backward(
        self,
        tape: Tape,
        parameters: Sequence[NDArray[np.floating[Any]]],
        grad_output: NDArray[np.floating[Any]] | None,
        grad_state: Any,
        retain: bool,
        input: bool,
        x: Any,
        borrow: bool,
        grad_states: Any,
    ) -> tuple[NDArray[np.floating[Any]] | None, Any, list[NDArray[np.floating[Any]]]]: ...
    def cell(
        self, x: Any, h: Any, c: Any, weights: Sequence[Any], exact: bool, keep: bool
    ) -> Any: ...
    def cell_backward(
        self,
        tape: Tape,
        weights: Sequence[Any],
        grad_h: Any,
        grad_c: Any,
        x: Any,
        input: bool,
        steps: KeptSteps | None,
    ) -> tuple[Any, ...]: ...
    def keep_steps(self) -> KeptSteps: ...
    def add_up(self, steps: KeptSteps) -> tuple[Any, ...]: ...
    def set_zoneout(self, h: float, c: float) -> None: ...
    def step(
        self, x: NDArray[np.floating[Any]], state: Any
    ) -> tuple[NDArray[np.floating[Any]], Any]: ...

# Streams are cudaStream_t as ints, 0 the default one; addresses are of the device's memory.
_Noise = tuple[float | bool, ...]
_Stream = tuple[int, int]  # device, stream
_Block = tuple[int, int]  # address, bytes

def cuda_build() -> str: ...
def cuda_device_count() -> int: ...
def cuda_device_name(device: int) -> str: ...
def cuda_device_of(address: int) -> int: ...
def cuda_upload(stream: _Stream, to: int, array: NDArray[Any]) -> None: ...
def cuda_download(stream: _Stream, array: NDArray[Any], source: int) -> None: ...
def cuda_gather(
    stream: _Stream,
    to: int,
    source: int,
    shape: Sequence[int],
    strides: Sequence[int],
    element_bytes: int,
) -> None: ...
def cuda_wait(device: int, stream: int) -> None: ...
def cuda_wait_for(device: int, stream: int, other: int) -> None: ...

class DeviceMemory:
    def __init__(self, nbytes: int, device: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> int: ...
    def zero(self) -> None: ...

class CudaTape:
    @property
    def consumed(self) -> bool: ...

class CudaEngine:
    parameter_shapes: dict[str, tuple[int, ...]]

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
        kind: str,
    ) -> None: ...
    def plans(
        self, device: int, steps: int, batch: int, noise: _Noise, keep: bool
    ) -> list[str]: ...
    def forward_bytes(
        self, steps: int, batch: int, noise: _Noise, lengths: bool, resets: bool, keep: bool
    ) -> tuple[int, int]: ...
    def forward(
        self,
        steps: int,
        batch: int,
        pointers: Sequence[int],
        parameters: Sequence[int],
        noise: _Noise,
        seed: int,
        stream: _Stream,
        workspace: _Block,
        tape: _Block | None,
    ) -> CudaTape | None: ...
    def backward_bytes(self, tape: CudaTape, retain: bool) -> int: ...
    def backward(
        self,
        tape: CudaTape,
        pointers: Sequence[int],
        parameters: Sequence[int],
        gradients: Sequence[int],
        retain: bool,
        stream: _Stream,
        workspace: _Block,
    ) -> None: ...
