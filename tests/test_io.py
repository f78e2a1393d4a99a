"""Files of arrays: what is saved comes back, others can read it, damage is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastrnn import io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

Arrays = dict[str, np.ndarray[Any, Any]]
DTYPES = [np.dtype(code) for code in ("?", *"bBhHiIqQefd")]
METADATA = {"model": '{"layers": []}', "ümlaut": "line\nbreak, \0, \u20ac"}
every_suffix = pytest.mark.parametrize("suffix", [".safetensors", ".npz"])


def draw_arrays(rng: np.random.Generator) -> Arrays:
    arrays = {}
    for dtype in DTYPES:
        for shape in ((), (3,), (0, 2), (2, 3, 5)):
            numbers = rng.integers(0, 2 if dtype.kind == "b" else 100, shape)
            arrays[f"{dtype.name} {shape}"] = np.asarray(numbers, dtype)
    return arrays


def assert_same(got: Arrays, expected: Arrays) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype.newbyteorder("="), name
        assert got[name].dtype.isnative
        assert got[name].flags.writeable
        assert got[name].flags.c_contiguous
        assert got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array)


@every_suffix
def test_round_trip(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    path, arrays = tmp_path / f"a{suffix}", draw_arrays(rng)
    io.save_arrays(path, arrays, METADATA)
    got, metadata = io.load_arrays(str(path))
    assert_same(got, arrays)
    assert metadata == METADATA
    assert os.listdir(tmp_path) == [path.name]


@every_suffix
def test_nothing(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    io.save_arrays(path, {})
    assert io.load_arrays(path) == ({}, {})


@every_suffix
def test_layouts_and_special_numbers(suffix: str, tmp_path: Path) -> None:
    cube = np.arange(24.0, dtype=">f4").reshape(2, 3, 4)
    arrays = {
        "big-endian": cube,
        "Fortran": np.asfortranarray(cube[0]),
        "strides": cube[:, ::2, ::-1],
        "file": np.array([np.nan, np.inf, -0.0]),
        "a/b.npy": np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max]),
        "": np.arange(3) > 1,
    }
    path = tmp_path / f"a{suffix}"
    io.save_arrays(path, arrays)
    got, _ = io.load_arrays(path)
    assert_same(got, arrays)
    assert np.signbit(got["file"][2])


@every_suffix
def test_same_arrays_same_bytes(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    arrays = draw_arrays(rng)
    for path in paths:
        io.save_arrays(path, arrays, METADATA)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_safetensors_reads_ours(tmp_path: Path, rng: np.random.Generator) -> None:
    safetensors = pytest.importorskip("safetensors")
    numpy_files = pytest.importorskip("safetensors.numpy")
    path, arrays = tmp_path / "a.safetensors", draw_arrays(rng)
    io.save_arrays(path, arrays, METADATA)
    got = numpy_files.load_file(path)
    assert set(got) == set(arrays)
    for name, array in arrays.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got[name], array)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata.pop("crc32")
    assert metadata == METADATA
    # Who changes what is in it and keeps the checksum has to be noticed; without it all is fine.
    crc = {"crc32": io._checksum(got, METADATA)}
    numpy_files.save_file(got, path, {**METADATA, **crc})
    assert_same({name: io.load_arrays(path)[0][name] for name in arrays}, arrays)
    got["float64 (3,)"][0] += 1
    numpy_files.save_file(got, path, {**METADATA, **crc})
    with pytest.raises(ValueError, match=r"a\.safetensors: .* damaged"):
        io.load_arrays(path)
    numpy_files.save_file(got, path, METADATA)
    assert io.load_arrays(path)[1] == METADATA


@pytest.mark.parametrize("metadata", [None, METADATA])
def test_we_read_theirs(
    metadata: dict[str, str] | None, tmp_path: Path, rng: np.random.Generator
) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    path, arrays = tmp_path / "a.safetensors", draw_arrays(rng)
    numpy_files.save_file(arrays, path, metadata)
    got, got_metadata = io.load_arrays(path)
    assert_same({name: got[name] for name in arrays}, arrays)
    assert len(got) == len(arrays)
    assert got_metadata == (metadata or {})


def draw_bfloat16(rng: np.random.Generator) -> Arrays:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    shapes = ((), (3,), (0, 2), (2, 3, 5))
    arrays = {str(shape): np.asarray(rng.normal(size=shape), bfloat16) for shape in shapes}
    arrays["strides"] = arrays["(2, 3, 5)"][:, ::2, ::-1].T
    arrays["special"] = np.array([-np.inf, -0.0, 3e38, 1e-40], bfloat16)
    arrays["wider"] = np.arange(3.0)
    return arrays


def test_bfloat16(tmp_path: Path, rng: np.random.Generator) -> None:
    path, arrays = tmp_path / "a.safetensors", draw_bfloat16(rng)
    io.save_arrays(path, arrays, METADATA)
    got, metadata = io.load_arrays(path)
    assert_same(got, arrays)
    assert metadata == METADATA
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.safetensors: .* damaged"):
        io.load_arrays(path)


def test_bfloat16_of_others(tmp_path: Path, rng: np.random.Generator) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    path, arrays = tmp_path / "a.safetensors", draw_bfloat16(rng)
    io.save_arrays(path, arrays)
    theirs = torch_files.load_file(path)
    for name, array in arrays.items():
        assert str(theirs[name].dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(theirs[name].double().numpy(), array.astype(float))
    torch_files.save_file(theirs, path)
    got, _ = io.load_arrays(path)
    assert_same({name: got[name] for name in arrays}, arrays)


def test_bfloat16_is_not_for_npz(tmp_path: Path) -> None:
    array = np.ones(3, pytest.importorskip("ml_dtypes").bfloat16)
    message = r"arrays\['x'\]: expected a type that .npz files have, got bfloat16; use .safetensors"
    with pytest.raises(TypeError, match=message):
        io.save_arrays(tmp_path / "a.npz", {"x": array})
    assert os.listdir(tmp_path) == []


def test_bfloat16_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, json.dumps({"x": entry(0, 4, (2,), "BF16")}).encode(), bytes(4))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    message = r"a\.safetensors: 'x' is bfloat16, which needs the package ml_dtypes$"
    with pytest.raises(ImportError, match=message):
        io.load_arrays(path)


def test_header_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in range(1, 10):
        io.save_arrays(path, {"x" * length: np.ones(3, "i1"), "y": np.ones(2)})
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        assert size % 8 == 0
        assert data[8:9] == b"{"
        assert json.loads(data[8 : 8 + size])["y"]["data_offsets"] == [0, 16]
        assert len(data) == 8 + size + 19


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_reads_and_writes_npz(save: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    path, arrays = tmp_path / "a.npz", draw_arrays(rng)
    arrays["Fortran"] = np.asfortranarray(rng.normal(size=(3, 4)))
    io.save_arrays(path, arrays, METADATA)
    with np.load(path, allow_pickle=False) as file:
        metadata = json.loads(str(file["__metadata__"]))
        assert {**METADATA, "crc32": metadata["crc32"]} == metadata
        assert_same({name: file[name] for name in arrays}, arrays)
    save(path, **arrays)
    assert_same(io.load_arrays(path)[0], arrays)


@every_suffix
def test_failure_leaves_the_old_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    io.save_arrays(path, {"x": np.ones(3)})

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        io.save_arrays(path, {"x": np.zeros(1000)})
    assert os.listdir(tmp_path) == [path.name]
    assert_same(io.load_arrays(path)[0], {"x": np.ones(3)})


@every_suffix
def test_kill_leaves_the_old_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    io.save_arrays(path, {"x": np.ones(3)})
    script = (
        "import os, signal, sys, numpy as np; from fastrnn import io\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "io.save_arrays(sys.argv[1], {'x': np.zeros(100000)})"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL
    assert_same(io.load_arrays(path)[0], {"x": np.ones(3)})


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    io.save_arrays(tmp_path / "link.npz", {"x": np.ones(3)})
    assert (tmp_path / "link.npz").is_symlink()
    assert_same(io.load_arrays(tmp_path / "real.npz")[0], {"x": np.ones(3)})


@pytest.mark.parametrize(
    ("arrays", "metadata", "kind", "message"),
    [
        ([1], {}, TypeError, "arrays: expected a mapping"),
        ({"x": [1.0]}, {}, TypeError, r"arrays\['x'\]: expected an array, got list"),
        ({1: np.ones(2)}, {}, TypeError, "arrays: expected text, got 1"),
        ({"x": np.array(["a"])}, {}, TypeError, r"arrays\['x'\]: expected bool, .* got <U1"),
        ({"x": np.array([None])}, {}, TypeError, "got object"),
        ({"x": np.ones(2, "c8")}, {}, TypeError, "got complex64"),
        ({"x": np.ones(2, "g")}, {}, TypeError, "got float128"),
        ({"x": np.ones(2, "M8[s]")}, {}, TypeError, "got datetime64"),
        ({"x": np.ma.ones(2)}, {}, TypeError, "got a masked one"),
        ({"__metadata__": np.ones(2)}, {}, ValueError, "another name than '__metadata__'"),
        ({"a\0b": np.ones(2)}, {}, ValueError, "another name than"),
        ({"\ud800": np.ones(2)}, {}, ValueError, "text that UTF-8 can encode"),
        ({}, {"a": 1}, TypeError, r"metadata\['a'\]: expected text, got 1"),
        ({}, {"a": "\ud800"}, ValueError, r"metadata\['a'\]: expected text that UTF-8"),
        ({}, [("a", "b")], TypeError, "metadata: expected a mapping"),
        ({}, {"crc32": "0"}, ValueError, "metadata: expected another name than 'crc32'"),
    ],
)
@every_suffix
def test_what_cannot_be_saved(
    suffix: str, arrays: Any, metadata: Any, kind: type, message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        io.save_arrays(tmp_path / f"a{suffix}", arrays, metadata)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a", "a.pt", "a.npy", "a.safetensors.part"])
def test_other_suffixes(name: str, tmp_path: Path) -> None:
    message = "path: expected a name ending in .safetensors or .npz, got '"
    with pytest.raises(ValueError, match=message):
        io.save_arrays(tmp_path / name, {})
    with pytest.raises(ValueError, match=message):
        io.load_arrays(tmp_path / name)


@every_suffix
def test_missing_file(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        io.load_arrays(tmp_path / f"a{suffix}")


def entry(begin: Any, end: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# (header, bytes of data, part of the message)
UNSOUND: dict[str, tuple[Any, int, str]] = {
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "starts at byte 4 of the data, not 8"),
    "same place": ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "starts at byte 0 of the data, not 8"),
    "gap": ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "starts at byte 12 of the data, not 8"),
    "outside": ({"a": entry(0, 8)}, 4, "4 bytes of data, the header tells of 8"),
    "left over": ({"a": entry(0, 8)}, 9, "9 bytes of data, the header tells of 8"),
    "far outside": ({"a": entry(2**62, 2**62 + 8)}, 8, "starts at byte 4611686018427387904"),
    "wrong size": ({"a": entry(0, 8, (3,))}, 8, "'a' has 8 bytes, not 12"),
    "huge shape": ({"a": entry(0, 8, (2**40, 2**40))}, 8, "'a' has 8 bytes, not"),
    "huge empty shape": ({"a": entry(0, 0, (0, 2**70))}, 0, ""),
    "backwards": ({"a": entry(8, 0)}, 8, "'a' has -8 bytes, not 8"),
    "negative": ({"a": entry(-8, 0)}, 8, "not a list of integers >= 0"),
    "negative shape": ({"a": entry(0, 8, (-1, -2))}, 8, "not a list of integers >= 0"),
    "fractions": ({"a": entry(0, 8.0)}, 8, "not a list of integers >= 0"),
    "bools": ({"a": entry(0, 4, (True,))}, 4, "not a list of integers >= 0"),
    "shape a number": ({"a": entry(0, 8, 2)}, 8, "not a list of integers >= 0"),
    "three offsets": (
        {"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1, 2]}},
        2,
        "'a' has not two data_offsets",
    ),
    "other dtype": ({"a": entry(0, 4, (2,), "E8M0")}, 4, "'a' has dtype 'E8M0', not one of BOOL"),
    "size of BF16": ({"a": entry(0, 4, (1,), "BF16")}, 4, "'a' has 4 bytes, not 2"),
    "no dtype": ({"a": entry(0, 8, (2,), ["F32"])}, 8, r"'a' has dtype \['F32'\]"),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "'a' needs dtype, shape"),
    "no entry": ({"a": 3}, 0, "'a' needs dtype, shape"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0, "__metadata__ does not map"),
    "metadata a list": ({"__metadata__": []}, 0, "__metadata__ does not map"),
    "list": ([1], 0, "the header is no JSON object"),
}


def write_safetensors(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_safetensors(case: str, tmp_path: Path) -> None:
    header, size, message = UNSOUND[case]
    path = tmp_path / "a.safetensors"
    write_safetensors(path, json.dumps(header).encode(), bytes(size))
    with pytest.raises(
        ValueError, match=f"a.safetensors: not a sound .safetensors file: .*{message}"
    ):
        io.load_arrays(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header of 0 bytes in a file of 0|JSON|Expecting"),
        (b"\x10\0\0", "header of 16 bytes in a file of 3"),
        (b"\xff" * 8, "the limit is 100000000"),
        ((99).to_bytes(8, "little") + b"{}", "header of 99 bytes in a file of 10"),
        ((2).to_bytes(8, "little") + b"{]", "Expecting"),
        ((2).to_bytes(8, "little") + b"\xff{", "utf-8"),
        ((10**5).to_bytes(8, "little") + b"[" * 10**5, "recursion"),
        ((17).to_bytes(8, "little") + b'{"a": 1, "a": 2} ', "a name comes twice"),
    ],
)
def test_unsound_safetensors_bytes(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        io.load_arrays(path)


def test_bools_of_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, json.dumps({"a": entry(0, 2, (2,), "BOOL")}).encode(), b"\1\2")
    with pytest.raises(ValueError, match="expected bools of 0 and 1"):
        io.load_arrays(path)


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + data


def npy_header(shape: str, descr: str = "<f4") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        ("a.txt", b"", "'a.txt' is no .npy file"),
        ("a.npy", b"", "reading magic string"),
        ("a.npy", npy(npy_header("(3,)"), bytes(8)), "'a.npy' has 8 bytes of data, not 12"),
        ("a.npy", npy(npy_header("(1,)"), bytes(8)), "'a.npy' has 8 bytes of data, not 4"),
        ("a.npy", npy(npy_header("(-1, -2)"), bytes(8)), "'a.npy' has 8 bytes"),
        ("a.npy", npy(npy_header(f"({2**60},)"), bytes(8)), "'a.npy' has 8 bytes"),
        ("a.npy", npy(npy_header("(1,)", "<c8"), bytes(8)), "'a': expected bool, .* got complex64"),
        ("a.npy", npy(npy_header("(1,)", "|O"), bytes(8)), "'a.npy' holds Python objects"),
        ("a.npy", npy(npy_header("(2,)", "|b1"), b"\1\2"), "expected bools of 0 and 1"),
        ("a.npy", npy("{", b"", b"\7\0"), "version"),
        ("__metadata__.npy", npy(npy_header("(2,)"), bytes(8)), "__metadata__ does not map"),
    ],
)
def test_unsound_npz(member: str, data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    with pytest.raises(ValueError, match=f"a.npz: not a sound .npz file: .*{message}"):
        io.load_arrays(path)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{"b": 1}]))
    with pytest.raises(ValueError, match="holds Python objects"):
        io.load_arrays(path)


@every_suffix
def test_every_truncation_is_noticed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    io.save_arrays(path, {"x": np.arange(5.0), "y": np.arange(3)}, {"a": "b"})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="not a sound"):
            io.load_arrays(path)


@every_suffix
def test_damage_raises_value_errors(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / f"a{suffix}"
    io.save_arrays(path, {"x": np.arange(5.0), "y": np.arange(3) > 1}, {"a": "b"})
    data, noticed = path.read_bytes(), 0
    for _ in range(1000):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            io.load_arrays(path)  # may pass: a zip file has fields that no one reads
        except ValueError as error:
            noticed += path.name in str(error)
    assert noticed > 100


@every_suffix
def test_no_other_byte_goes_unnoticed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    arrays = {"x": np.arange(5.0), "y": np.arange(3) > 1, "z": np.arange(2, dtype="i4")}
    io.save_arrays(path, arrays, {"a": "b"})
    data, noticed = path.read_bytes(), 0
    for place in range(len(data)):
        for bit in (0, 5):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                got, metadata = io.load_arrays(path)
            except ValueError as error:
                noticed += path.name in str(error)
            else:  # what is not read, or the name of the checksum itself
                assert_same({name: got[name] for name in arrays}, arrays)
                assert len(got) == 3
                assert metadata["a"] == "b"
                assert len(metadata) == 1 or suffix == ".safetensors"
    if suffix == ".safetensors":  # but the name
        assert noticed >= 2 * (len(data) - len("crc32") - 8)
    else:
        assert noticed > len(data)


def test_npz_of_other_numbers(tmp_path: Path) -> None:
    """The zip file's own checksums are right, but not that of all."""
    path, arrays = tmp_path / "a.npz", {"x": np.arange(5.0), "y": np.arange(3)}
    io.save_arrays(path, arrays, {"a": "b"})
    with np.load(path) as file:
        members = dict(file)
    for change in ({"x": np.arange(5.0) + 1}, {"z": np.ones(1)}, {"x": np.arange(5)}):
        np.savez(path, **{**members, **change})
        with pytest.raises(ValueError, match=r"a\.npz: .* damaged"):
            io.load_arrays(path)
    np.savez(path, **members)
    assert_same(io.load_arrays(path)[0], arrays)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_arrays(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    array = st.sampled_from(DTYPES).flatmap(
        lambda dtype: numpy_strategies.arrays(
            dtype, numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=4)
        )
    )
    arrays = data.draw(st.dictionaries(text.filter(lambda name: name != "__metadata__"), array))
    metadata = data.draw(st.dictionaries(text, text))
    for suffix in (".safetensors", ".npz"):
        path = tmp_path_factory.mktemp("any") / f"a{suffix}"
        io.save_arrays(path, arrays, metadata)
        got, got_metadata = io.load_arrays(path)
        assert_same(got, arrays)
        assert got_metadata == metadata
