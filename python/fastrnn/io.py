"""Files of named arrays, written and read with NumPy alone.

A name's suffix tells the format: ``.safetensors``, which other libraries read, too, or ``.npz`` of
`numpy.savez`. Neither can hold code, so a file of unknown origin is safe to load.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

__all__ = ["load_arrays", "save_arrays"]

_METADATA = "__metadata__"
_CHECKSUM = "crc32"  # in the metadata
_FORMATS = (".safetensors", ".npz")
_HEADER_LIMIT = 100_000_000  # bytes, that of other readers of the format
_DTYPES = {
    "BOOL": np.dtype("?"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_CODES = {dtype.str: code for code, dtype in _DTYPES.items()}
_BFLOAT16 = "BF16"
_DTYPES[_BFLOAT16] = np.dtype("<u2")  # its bits, for NumPy alone has no such type


def save_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays to a file, completely or not at all.

    Parameters
    ----------
    path : path ending in ``.safetensors`` or ``.npz``
        A file there is replaced at the end. If anything goes wrong before, even a kill or a power
        failure, it is what it was.
    arrays : mapping of str to ndarray
        Of bool, (u)int8 to 64 or float16 to 64, and in ``.safetensors`` the bfloat16 of the package
        ml_dtypes; of any shape, byte order and strides.
    metadata : mapping of str to str, optional
        What else is to be remembered; the name ``crc32`` is taken.

    Raises
    ------
    ValueError, TypeError
        If something cannot be saved as it is.

    See Also
    --------
    load_arrays

    Notes
    -----
    A ``.safetensors`` file [1]_ is the length of its header (8 bytes, little-endian), the header
    (JSON: dtype, shape and place of each array), and the numbers (little-endian, in C order). In a
    ``.npz`` file, the array ``__metadata__`` is the metadata as JSON. Among the metadata, ``crc32``
    is a checksum of all else: the CRC-32 of a JSON list of the metadata and, by name, of the names,
    dtypes and shapes, followed by the numbers in that order.

    References
    ----------
    .. [1] Hugging Face. Safetensors, https://github.com/huggingface/safetensors

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "model.safetensors"
    >>> save_arrays(path, {"bias": np.arange(3.0)}, {"made by": "an example"})
    >>> load_arrays(path)
    ({'bias': array([0., 1., 2.])}, {'made by': 'an example'})
    >>> folder.cleanup()
    """
    suffix = _suffix(path)
    checked = _check_arrays(arrays, suffix)
    texts = _check_metadata({} if metadata is None else metadata)
    texts[_CHECKSUM] = _checksum(checked, texts)
    with _replacing(path) as file:
        if suffix == ".npz":
            _write_npz(file, checked, texts)
        else:
            _write_safetensors(file, checked, texts)


def load_arrays(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """Read a file of `save_arrays`, or any other of its format with the same dtypes.

    Parameters
    ----------
    path : path ending in ``.safetensors`` or ``.npz``
        Where the file is.

    Returns
    -------
    arrays : dict of str to ndarray
        New arrays, writable and in C order.
    metadata : dict of str to str
        Empty if there is none.

    Raises
    ------
    ValueError
        If the file is damaged or holds something else. Numbers that were changed are noticed in
        files of `save_arrays`, which have a checksum.
    OSError
        If it cannot be opened.
    ImportError
        If it holds bfloat16, and the package ml_dtypes is not there.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "half.npz"
    >>> save_arrays(path, {"bias": np.arange(3.0)})
    >>> _ = path.write_bytes(path.read_bytes()[:100])
    >>> load_arrays(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ...half.npz: not a sound .npz file: File is not a zip file
    >>> folder.cleanup()
    """
    suffix = _suffix(path)
    with open(path, "rb") as file:
        try:
            arrays, metadata = _read_npz(file) if suffix == ".npz" else _read_safetensors(file)
            expected = metadata.pop(_CHECKSUM, None)
            _require(
                expected is None or expected == _checksum(arrays, metadata),
                "damaged, as the checksum is another one",
            )
            return arrays, metadata
        except ImportError as error:
            raise ImportError(f"{os.fspath(path)}: {error}") from error
        except Exception as error:  # of zipfile, of JSON, of NumPy: there is no end of kinds
            raise ValueError(f"{os.fspath(path)}: not a sound {suffix} file: {error}") from error


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in _FORMATS:
        raise ValueError(
            f"path: expected a name ending in {' or '.join(_FORMATS)}, got {os.fspath(path)!r}"
        )
    return suffix


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of another one if all goes well."""
    final = Path(os.path.realpath(path))  # so that a link stays a link
    temporary = final.with_name(f".{final.name}.{os.urandom(4).hex()}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            # Or the new name could reach the disk before what it names.
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _checksum(arrays: Arrays, metadata: dict[str, str]) -> str:
    """Return the checksum of what a file holds, in whatever order."""
    order = sorted(arrays)
    entries = [[name, _code(arrays[name].dtype), list(arrays[name].shape)] for name in order]
    value = zlib.crc32(json.dumps([sorted(metadata.items()), entries]).encode())
    for name in order:
        value = zlib.crc32(_numbers(arrays[name]), value)
    return f"{value:08x}"


def _numbers(array: NDArray[Any]) -> memoryview:
    """Return the numbers of an array, little-endian in C order."""
    if _code(array.dtype) == _BFLOAT16:
        array = array.view(np.uint16)
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C").data


def _check_text(label: str, text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{label}: expected text, got {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{label}: expected text that UTF-8 can encode, got {text!r}") from None
    return text


def _check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        kind = type(metadata).__name__
        raise TypeError(f"metadata: expected a mapping of names to text, got {kind}")
    if _CHECKSUM in metadata:
        raise ValueError(f"metadata: expected another name than {_CHECKSUM!r}")
    return {
        _check_text("metadata", name): _check_text(f"metadata[{name!r}]", text)
        for name, text in metadata.items()
    }


def _check_arrays(arrays: Mapping[str, NDArray[Any]], suffix: str) -> Arrays:
    """View the arrays, or copy them if need be, as little-endian ones in C order."""
    if not isinstance(arrays, Mapping):
        kind = type(arrays).__name__
        raise TypeError(f"arrays: expected a mapping of names to arrays, got {kind}")
    checked = {}
    for name, given in arrays.items():
        # A zip file ends a name at its first NUL.
        if _check_text("arrays", name) == _METADATA or "\0" in name:
            raise ValueError(f"arrays: expected another name than {name!r}")
        label = f"arrays[{name!r}]"
        array = functional.view(label, given)
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{label}: expected an array, got a masked one")
        dtype = _known(label, array.dtype, suffix)
        checked[name] = np.asarray(array, dtype, order="C")
    return checked


def _code(dtype: np.dtype[Any]) -> str | None:
    if dtype.name == "bfloat16" and dtype.isnative:
        return _BFLOAT16
    return _CODES.get(dtype.newbyteorder("<").str)


def _known(label: str, dtype: np.dtype[Any], suffix: str) -> np.dtype[Any]:
    """Return the little-endian form of one of the dtypes, or raise a TypeError."""
    code = _code(dtype)
    if code == _BFLOAT16:
        if suffix == ".npz":
            raise TypeError(
                f"{label}: expected a type that .npz files have, got bfloat16; use .safetensors"
            )
        return dtype
    if code is None:
        raise TypeError(f"{label}: expected bool, (u)int8 to 64 or float16 to 64, got {dtype}")
    return _DTYPES[code]


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in this machine's byte order, and see that its bools are."""
    if array.dtype == bool and np.any(array.view(np.uint8) > 1):
        raise ValueError("expected bools of 0 and 1, got other bytes")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object; other readers might take another one of two equal names."""
    result = dict(pairs)
    _require(len(result) == len(pairs), "a name comes twice")
    return result


def _is_metadata(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _write_safetensors(file: BinaryIO, arrays: Arrays, metadata: dict[str, str]) -> None:
    # Large items first: then each array starts at a multiple of its item's size, also for those
    # who map the file into memory.
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    places, end = {}, 0
    for name in order:
        places[name] = [end, end + arrays[name].nbytes]
        end += arrays[name].nbytes
    header: dict[str, Any] = {_METADATA: metadata}
    for name, array in arrays.items():
        header[name] = {
            "dtype": _code(array.dtype),
            "shape": list(array.shape),
            "data_offsets": places[name],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _HEADER_LIMIT:
        raise ValueError(
            f"arrays: expected names and metadata of up to {_HEADER_LIMIT} bytes, got {len(text)}"
        )
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        file.write(_numbers(arrays[name]))


def _read_safetensors(file: BinaryIO) -> tuple[Arrays, dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    _require(length <= _HEADER_LIMIT, f"header of {length} bytes, the limit is {_HEADER_LIMIT}")
    _require(8 <= start <= size, f"header of {length} bytes in a file of {size}")
    header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    _require(isinstance(header, dict), "the header is no JSON object")
    metadata = header.pop(_METADATA, {})
    _require(_is_metadata(metadata), f"{_METADATA} does not map names to text")

    _check_entries(header, size - start)
    arrays = {}
    for name, entry in header.items():
        array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
        file.seek(start + entry["data_offsets"][0])
        got = file.readinto(array.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        _require(got == array.nbytes, f"{name!r} is cut off")
        arrays[name] = _native(array)
        if entry["dtype"] == _BFLOAT16:
            bfloat16 = functional.half_dtype("bfloat16")
            if bfloat16 is None:
                raise ImportError(f"{name!r} is bfloat16, which needs the package ml_dtypes")
            arrays[name] = arrays[name].view(bfloat16)
    return arrays, metadata


def _check_entries(header: dict[str, Any], size: int) -> None:
    """Raise unless the arrays of a header fill `size` bytes without a gap or an overlap."""
    places = []
    for name, entry in header.items():
        sound = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
        _require(sound, f"{name!r} needs dtype, shape and data_offsets")
        _require(
            isinstance(entry["dtype"], str) and entry["dtype"] in _DTYPES,
            f"{name!r} has dtype {entry['dtype']!r}, not one of {', '.join(_DTYPES)}",
        )
        for key in ("shape", "data_offsets"):
            numbers = entry[key]
            sound = isinstance(numbers, list) and all(
                type(number) is int and number >= 0 for number in numbers
            )
            _require(sound, f"{name!r} has {key} {numbers!r}, not a list of integers >= 0")
        _require(len(entry["data_offsets"]) == 2, f"{name!r} has not two data_offsets")
        begin, end = entry["data_offsets"]
        expected = math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize
        _require(end - begin == expected, f"{name!r} has {end - begin} bytes, not {expected}")
        places.append((begin, end))
    reached = 0
    for begin, end in sorted(places):
        _require(begin == reached, f"an array starts at byte {begin} of the data, not {reached}")
        reached = end
    _require(reached == size, f"{size} bytes of data, the header tells of {reached}")


def _write_npz(file: BinaryIO, arrays: Arrays, metadata: dict[str, str]) -> None:
    import zipfile  # here, for `import fastrnn` is to be quick

    # Not numpy.savez, to which an array cannot have the name "file".
    # The checksum is in the first member, or damage could lose it with the end of a list of them.
    members = {_METADATA: np.array(json.dumps(metadata), dtype=np.str_), **arrays}
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in members.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_npz(file: BinaryIO) -> tuple[Arrays, dict[str, str]]:
    import zipfile

    arrays, metadata = {}, {}
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        _require(len(set(names)) == len(names), "a name comes twice")
        for member in names:
            _require(member.endswith(".npy"), f"{member!r} is no .npy file")
            name = member[: -len(".npy")]
            array = _read_npy(member, archive.read(member))
            if name == _METADATA:
                text = str(array) if array.dtype.kind == "U" and array.ndim == 0 else "null"
                metadata = json.loads(text, object_pairs_hook=_unique)
                _require(_is_metadata(metadata), f"{_METADATA} does not map names to text")
            else:
                _known(f"{name!r}", array.dtype, ".npz")
                arrays[name] = _native(array)
    return arrays, metadata


def _read_npy(member: str, data: bytes) -> NDArray[Any]:
    """Read an array whose header tells of as many bytes as there are."""
    stream = io.BytesIO(data)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    _require(version in readers, f"{member!r} has version {version}")
    shape, fortran_order, dtype = readers[version](stream)
    _require(not dtype.hasobject, f"{member!r} holds Python objects")
    start, expected = stream.tell(), math.prod(shape) * dtype.itemsize
    _require(
        all(length >= 0 for length in shape) and len(data) - start == expected,
        f"{member!r} has {len(data) - start} bytes of data, not {expected}",
    )
    flat = np.frombuffer(data, dtype, offset=start) if expected else np.empty(0, dtype)
    # A copy, since bytes are read-only.
    return np.array(flat.reshape(shape, order="F" if fortran_order else "C"), order="C")
