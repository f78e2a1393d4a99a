"""Arrays in the memory of an NVIDIA GPU, as layers take and return them there.

A layer with ``device="cuda"`` takes arrays where they are. Of NumPy's it copies what it needs to
the GPU, and the results back. Arrays that are on the GPU already, of CuPy, Numba, JAX, PyTorch and
whoever else has ``__dlpack__`` or ``__cuda_array_interface__``, it reads in place; results are then
`DeviceArray`, which those libraries read in place, too. Results lie where ``x`` lies; any other
argument may lie on either side.

All work is queued on the device's legacy default stream, and nothing waits for it but what copies
to the host. Work of others on arrays that they hand over is waited for by the GPU, as their
protocols say. Who reads a `DeviceArray` on a stream of their own must keep it alive until that work
is done, as its memory is used again once nothing refers to it; and the memory of arrays handed in
must not be freed on another stream before the call's work is done.

An array on the GPU must be laid out step by step, (T, B, ...) without gaps, to be read in place:
with ``batch_first`` that is a view of such memory, which is what results are. Of any other layout
the GPU makes such a copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, TypeAlias

    from numpy.typing import NDArray

    AnyArray: TypeAlias = "NDArray[Any] | DeviceArray"

__all__ = ["DeviceArray", "to_device"]

ALIGNMENT = 256  # of what the core works in
DEFAULT_STREAM = 0  # of cudaStream_t


# ---- DLPack --------------------------------------------------------------------------------------
#
# https://dmlc.github.io/dlpack


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; null: C order
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_CPU, _CUDA, _CUDA_MANAGED = (1, 2, 13)  # device types
_GPUS = (_CUDA, _CUDA_MANAGED)
_SIGNED, _UNSIGNED, _FLOAT, _BFLOAT, _BOOL = (0, 1, 2, 4, 6)  # type codes
_LEGACY, _VERSIONED = b"dltensor", b"dltensor_versioned"
# Prototypes of our own: those of ctypes.pythonapi are shared by everyone in the process.
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _tensor_of(capsule: Any) -> _Tensor:
    """Return what a capsule holds, valid as long as it lives and nobody takes its tensor."""
    name = _capsule_name(capsule)
    if name not in (_LEGACY, _VERSIONED):
        raise BufferError(f"expected a DLPack capsule that is not used yet, got one named {name!r}")
    pointer = _capsule_pointer(capsule, name)
    if name == _LEGACY:
        return _Tensor.from_address(pointer)
    versioned = _Versioned.from_address(pointer)
    if versioned.major != 1:
        raise BufferError(f"expected DLPack 1, got {versioned.major}.{versioned.minor}")
    tensor: _Tensor = versioned.tensor
    return tensor


def _dtype_of(kind: _DataType) -> np.dtype[Any]:
    dtype = None
    if kind.lanes == 1 and kind.code in (_SIGNED, _UNSIGNED, _FLOAT):
        with contextlib.suppress(TypeError):  # such as floats of 8 bits
            dtype = np.dtype(f"{'iuf'[kind.code]}{kind.bits // 8}")
    elif kind.lanes == 1 and kind.code == _BOOL:
        dtype = np.dtype(bool)
    elif kind.lanes == 1 and kind.code == _BFLOAT:
        dtype = functional.half_dtype("bfloat16")
    if dtype is None:
        raise BufferError(
            f"expected numbers that NumPy has, got DLPack's code {kind.code} of {kind.bits} bits"
        )
    return dtype


# What NumPy calls types that not every NumPy exports, and what DLPack does.
_STAND_INS = {"bfloat16": ("<u2", _BFLOAT), "bool": ("|u1", _BOOL)}


class _Addressed:
    """What NumPy makes an array of without looking at its memory."""

    def __init__(
        self, owner: Any, address: int, shape: Sequence[int], typestr: str, strides: Any = None
    ) -> None:
        self._owner = owner  # which the array made of this keeps alive
        self.__array_interface__ = {
            "shape": tuple(shape),
            "typestr": typestr,
            "data": (address, False),
            "strides": strides,
            "version": 3,
        }


def _export(array: DeviceArray, **options: Any) -> Any:
    """Make a capsule: NumPy's own, told that the memory is a GPU's."""
    typestr, code = _STAND_INS.get(array.dtype.name, (array.dtype.str, None))
    stand_in = np.asarray(_Addressed(array, array.address, array.shape, typestr, array.strides))
    try:
        capsule = stand_in.__dlpack__(**options)
    except TypeError:  # NumPy before 2.1 knows the older kind of capsule only
        capsule = stand_in.__dlpack__()
    tensor = _tensor_of(capsule)
    tensor.device.type, tensor.device.number = _CUDA, array._number
    if code is not None:
        tensor.dtype.code = code
    return capsule


def _import(value: Any) -> DeviceArray:
    try:
        capsule = value.__dlpack__(stream=1, max_version=(1, 0))
    except TypeError:  # whoever has not heard of versions
        capsule = value.__dlpack__(stream=1)
    tensor = _tensor_of(capsule)
    dtype = _dtype_of(tensor.dtype)
    shape = tensor.shape[: tensor.ndim]
    strides = None
    if tensor.strides:
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides[: tensor.ndim])
    address = tensor.data + tensor.byte_offset if tensor.data else 0
    # The capsule is left as it is, so that it lets go of the tensor when it dies.
    return _borrow(capsule, address, shape, dtype, strides, tensor.device.number)


def _import_interface(interface: dict[str, Any], owner: Any) -> DeviceArray:
    """Read a CUDA array interface, https://numba.readthedocs.io/en/stable/cuda."""
    if interface.get("mask") is not None:
        raise BufferError("expected an array without a mask")
    missing = [key for key in ("shape", "typestr", "data") if key not in interface]
    if missing:
        raise BufferError(f"expected an interface with {', '.join(missing)}, got one without")
    data = interface["data"]
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise BufferError(f"data: expected a pair (address, read_only), got {data!r}")
    address = functional.integer("data", data[0] or 0, 0, 1 << 64)  # None without elements
    number = functional.cuda_device_of(address) if address else 0
    if number < 0:
        raise BufferError("expected memory of a GPU, got an address of the host")
    stream = interface.get("stream")
    _check_stream(stream, "None or a cudaStream_t but 0", 1)
    if stream not in (None, 1):
        functional.cuda_wait_for(number, DEFAULT_STREAM, stream)
    return _borrow(
        owner,
        address,
        interface["shape"],
        np.dtype(interface["typestr"]),
        interface.get("strides"),
        number,
    )


def _borrow(
    owner: Any, address: int, shape: Any, dtype: np.dtype[Any], strides: Any, number: int
) -> DeviceArray:
    """View memory of others, unless what they say of it cannot be."""
    shape = _integers("shape", shape)
    if any(size < 0 for size in shape):
        raise BufferError(f"shape: expected sizes >= 0, got {shape}")
    if strides is not None:
        strides = _integers("strides", strides)
        if len(strides) != len(shape):
            raise BufferError(f"strides: expected as many as sizes in {shape}, got {strides}")
    if dtype.hasobject:
        raise BufferError(f"expected numbers, got {dtype}")
    if not address and math.prod(shape):
        raise BufferError(f"expected memory of a GPU for {shape} {dtype}, got a null pointer")
    return DeviceArray(owner, address, shape, dtype, strides, number)


def _integers(name: str, values: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name}: expected integers, got {values!r}") from None


def _check_stream(stream: Any, expected: str, low: int) -> None:
    is_integer = isinstance(stream, (int, np.integer)) and not isinstance(stream, bool)
    if stream is None or (is_integer and stream != 0 and low <= stream < 1 << 64):
        return
    raise (ValueError if is_integer else TypeError)(f"stream: expected {expected}, got {stream!r}")


def on_device(name: str, value: Any) -> DeviceArray | None:
    """View an array of a GPU in place; None of anything else."""
    if isinstance(value, DeviceArray):
        return value
    try:
        if hasattr(value, "__dlpack_device__"):
            # An array of the host may have the interface, too, but no values for it.
            return _import(value) if value.__dlpack_device__()[0] in _GPUS else None
        if hasattr(value, "__cuda_array_interface__"):
            return _import_interface(value.__cuda_array_interface__, value)
    except Exception as error:  # whatever the object's own conversion raises
        kind = type(value).__name__
        raise TypeError(f"{name}: expected an array, got {kind}: {error}") from error
    return None


# ---- memory --------------------------------------------------------------------------------------


class Lent:
    """Memory of a pool, which gets it back when nothing refers to it any more."""

    __slots__ = ("_pool", "memory")

    def __init__(self, pool: Pool, memory: functional.DeviceMemory) -> None:
        self._pool = pool
        self.memory = memory

    @property
    def address(self) -> int:
        return self.memory.address

    def block(self) -> tuple[int, int]:
        """Return address and bytes."""
        return self.memory.address, self.memory.nbytes

    def __del__(self) -> None:
        self._pool.give(self.memory)


class Pool:
    """Memory of calls that are over, for those to come.

    All work is on one stream: what is queued has used memory before what is queued later does.
    Nothing here takes a lock, because memory comes back whenever and wherever its last reference
    goes; each change of the list is one that no other thread can interrupt.
    """

    _MOST = 20  # blocks: a training step takes about a dozen

    def __init__(self, device: int) -> None:
        self._device = device
        self._idle: list[functional.DeviceMemory] = []

    def take(self, nbytes: int) -> Lent:
        nbytes = max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
        for memory in tuple(self._idle):
            if nbytes <= memory.nbytes <= nbytes + nbytes // 4:
                with contextlib.suppress(ValueError):  # another thread was faster
                    self._idle.remove(memory)
                    return Lent(self, memory)
        try:
            return Lent(self, functional.DeviceMemory(nbytes, self._device))
        except (MemoryError, RuntimeError):
            if not self._idle:
                raise
        self.clear()
        return Lent(self, functional.DeviceMemory(nbytes, self._device))

    def give(self, memory: functional.DeviceMemory) -> None:
        self._idle.append(memory)
        if len(self._idle) > self._MOST:
            with contextlib.suppress(IndexError):
                self._idle.pop(0)

    def clear(self) -> None:
        self._idle.clear()


# ---- arrays --------------------------------------------------------------------------------------


def _contiguous_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    strides = []
    step = itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


class DeviceArray:
    """An array in the memory of a GPU, as layers take and return it.

    It has no arithmetic: CuPy, PyTorch, JAX and Numba read it in place, and `numpy` copies it to
    the host. Made by `to_device` and by layers.

    Notes
    -----
    What writes to it is queued on the device's legacy default stream. The CUDA array interface
    says so, and DLPack's consumers are made to wait for it.
    """

    # Private, for memory is read by them: who could change them could make that crash.
    __slots__ = ("_address", "_dtype", "_number", "_owner", "_shape", "_strides")

    def __init__(
        self,
        owner: Any,
        address: int,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        strides: Sequence[int] | None,
        device: int,
    ) -> None:
        self._owner = owner
        self._number = device
        self._address = address
        self._shape = tuple(int(size) for size in shape)
        self._dtype = dtype
        if strides is None:
            strides = _contiguous_strides(self._shape, dtype.itemsize)
        self._strides = tuple(int(stride) for stride in strides)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._dtype

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element of an axis to the next."""
        return self._strides

    @property
    def address(self) -> int:
        """Of the first element."""
        return self._address

    @property
    def device(self) -> str:
        """Where it lies, such as ``"cuda:0"``."""
        return f"cuda:{self._number}"

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __bool__(self) -> NoReturn:
        raise TypeError("bool() of an array on a GPU; its method numpy() copies it to the host")

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype.name}, device={self.device!r})"

    def numpy(self) -> NDArray[Any]:
        """Copy to the host, when all that is queued is done.

        Returns
        -------
        ndarray
            A new, contiguous array.
        """
        if not self.size:
            return np.empty(self.shape, self.dtype)
        reach = [(size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)]
        low = sum(min(offset, 0) for offset in reach)
        high = sum(max(offset, 0) for offset in reach) + self.dtype.itemsize
        span = np.empty(high - low, np.uint8)
        functional.cuda_download(self._stream(), span, self.address + low)
        array: NDArray[Any] = np.ndarray(self.shape, self.dtype, span, -low, self.strides)
        return array if array.flags.c_contiguous else array.copy()

    def copy_from(self, array: functional.SupportsArray) -> None:
        """Copy an array of the host into this one, after all that is queued.

        Parameters
        ----------
        array : array
            Of this array's shape and dtype. It may be changed as soon as the call returns.

        Raises
        ------
        ValueError, TypeError
            If it does not fit, or this array has gaps.

        Examples
        --------
        >>> x = to_device(np.zeros((5, 3, 8), np.float32))  # doctest: +SKIP
        >>> x.copy_from(np.ones((5, 3, 8), np.float32))  # doctest: +SKIP
        """
        given = host("array", array)
        expect("array", given, self.shape, self.dtype)
        if not self._is_contiguous():
            raise ValueError(
                f"copy_from: expected an array without gaps, got strides {self.strides}"
            )
        if not self.size:
            return
        functional.cuda_upload(self._stream(), self.address, np.ascontiguousarray(given))

    def _stream(self) -> tuple[int, int]:
        return self._number, DEFAULT_STREAM

    def _is_contiguous(self) -> bool:
        step = self.dtype.itemsize
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != step:
                return False
            step *= size
        return True

    def _swapped(self) -> DeviceArray:
        """View it with its first two axes swapped."""
        (a, b, *shape), (i, j, *strides) = self.shape, self.strides
        return DeviceArray(
            self._owner, self.address, (b, a, *shape), self.dtype, (j, i, *strides), self._number
        )

    def _gather(self, to: int) -> None:
        """Copy it, without gaps, to an address on its device."""
        functional.cuda_gather(
            self._stream(), to, self.address, self.shape, self.strides, self.dtype.itemsize
        )

    def __array__(self, *arguments: Any, **options: Any) -> NoReturn:
        raise TypeError("it is on a GPU; its method numpy() copies it to the host")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype.name == "bfloat16":
            raise AttributeError("the CUDA array interface has no bfloat16; DLPack does")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.size else 0, False),
            "strides": None if self._is_contiguous() else self.strides,
            "version": 3,
            "stream": 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if dl_device is not None and tuple(dl_device) == (_CPU, 0):
            if copy is False:
                raise BufferError("copy: expected None or True for a copy on the host, got False")
            return self.numpy().__dlpack__()
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(
                f"dl_device: expected {self.__dlpack_device__()} or {(_CPU, 0)}, got {dl_device}"
            )
        if copy:
            raise BufferError("copy: expected None or False on a GPU, got True")
        _check_stream(stream, "None, -1 or a cudaStream_t but 0", -1)
        if stream not in (None, -1, 1):
            functional.cuda_wait_for(self._number, stream, DEFAULT_STREAM)
        return _export(self) if max_version is None else _export(self, max_version=max_version)


def to_device(array: functional.SupportsArray, device: str = "cuda") -> DeviceArray:
    """Copy an array to a GPU.

    Parameters
    ----------
    array : array
        Whatever NumPy can view. One that is on that GPU already is viewed there, without a copy.
    device : str, default "cuda"
        ``"cuda"`` or, of several, such as ``"cuda:1"``.

    Returns
    -------
    DeviceArray
        Contiguous, if it is a copy.

    Raises
    ------
    RuntimeError
        If this build or this machine has no CUDA.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.GRU(8, 16, device="cuda")  # doctest: +SKIP
    >>> x = fastrnn.cuda.to_device(np.zeros((5, 3, 8), np.float32))  # doctest: +SKIP
    >>> layer(x)[0]  # doctest: +SKIP
    DeviceArray((5, 3, 16), float32, device='cuda:0')
    """
    number = functional.gpu_number("device", device)
    given = view("array", array, number)
    if isinstance(given, DeviceArray):
        return given
    if given.dtype.hasobject or not given.dtype.isnative:
        raise TypeError(f"array: expected numbers of this machine's byte order, got {given.dtype}")
    memory = functional.DeviceMemory(max(given.nbytes, 1), number)
    copied = DeviceArray(memory, memory.address, given.shape, given.dtype, None, number)
    copied.copy_from(given)
    return copied


# ---- arrays of either side --------------------------------------------------------------------


def host(name: str, value: Any) -> NDArray[Any]:
    array = functional.view(name, value)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array, got a masked one")
    return array


def view(name: str, value: Any, device: int) -> AnyArray:
    """View an array of the host or of this device."""
    if type(value) is np.ndarray:
        return value
    array = on_device(name, value)
    if array is None:
        return host(name, value)
    if array._number != device and array.size:
        raise ValueError(f"{name}: expected an array on cuda:{device}, got one on {array.device}")
    return array


def refuse(name: str, array: AnyArray, sizes: Sequence[int | str], dtype: Any) -> NoReturn:
    shape = ", ".join(map(str, sizes)) + ("," if len(sizes) == 1 else "")
    message = f"{name}: expected ({shape}) {dtype}, got {array.shape} {array.dtype}"
    raise (ValueError if array.dtype == dtype else TypeError)(message)


def expect(name: str, array: AnyArray, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    if array.shape != tuple(shape) or array.dtype != dtype:
        refuse(name, array, shape, dtype)
