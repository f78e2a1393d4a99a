"""No code of one instruction set may be taken for another's.

A weak or global symbol that several targets define under one name is kept once by the linker, and
the copy it keeps may be the AVX-512 one, which then runs on every CPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fastrnn import functional

TARGETS = ("x86_64_v2", "avx2", "avx512", "neon")
OBJECTS = os.environ.get("FASTRNN_OBJECTS")


def symbols(path: Path, *options: str) -> list[str]:
    """The demangled names of the weak and global symbols that an object or archive defines."""
    result = subprocess.run(
        ["nm", "--demangle", "--extern-only", "--defined-only", *options, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return names_in(result.stdout)


def names_in(listing: str) -> list[str]:
    """Pick the names out of nm's lines: an address, a letter for the kind, the name."""
    return re.findall(r"^[0-9a-f]+ [A-Za-z] (.+)$", listing, re.MULTILINE)


def leaks_in(names: list[str]) -> list[str]:
    """The names outside the one target's namespace that the object was compiled for."""
    own = [target for target in TARGETS if any(f"fastrnn::{target}::" in name for name in names)]
    if len(own) != 1:
        raise ValueError(f"expected the symbols of one target, got {own or 'none'}")
    return [name for name in names if f"fastrnn::{own[0]}::" not in name]


def leaked_symbols(path: Path) -> list[str]:
    """What a per-target object or archive defines for others to see without its namespace."""
    return leaks_in(symbols(path))


LISTING = """
kernels.cpp.o:
0000000000000000 R fastrnn::avx2::table
0000000000000000 W fastrnn::avx2::Vec<float>::load(float const*)
0000000000000000 V guard variable for fastrnn::avx2::once()::flag
"""


def test_own_symbols_are_no_leak() -> None:
    assert leaks_in(names_in(LISTING)) == []


@pytest.mark.parametrize(
    "leak",
    [
        "0000000000000000 W std::vector<float, std::allocator<float> >::~vector()",
        "0000000000000000 u fastrnn::shared_table",
        "0000000000000010 T fastrnn::gemm(float const*)",
        "0000000000000010 V typeinfo name for fastrnn::Problem",
        "0000000000000010 W float fastrnn::sigmoid<float>(float)",
    ],
)
def test_leak_is_found(leak: str) -> None:
    assert leaks_in(names_in(LISTING + leak + "\n")) == [leak[19:]]


def test_object_of_no_single_target_is_refused() -> None:
    with pytest.raises(ValueError, match="none"):
        leaks_in([])
    with pytest.raises(ValueError, match="avx512"):
        leaks_in(["fastrnn::avx2::table", "fastrnn::avx512::table"])


def test_extension_exports_none_of_its_own_code() -> None:
    """Whatever else is loaded can then neither replace our code nor be replaced by it."""
    extension = Path(str(sys.modules[functional.Engine.__module__].__file__))
    names = symbols(extension, "--dynamic")
    assert "PyInit__core" in names
    assert not [name for name in names if name.startswith("fastrnn::")]
    assert not [name for name in names if any(f"fastrnn::{t}::" in name for t in TARGETS)]


@pytest.mark.skipif(OBJECTS is None, reason="FASTRNN_OBJECTS names no build directory")
def test_targets_leak_nothing() -> None:
    objects = sorted(Path(str(OBJECTS)).rglob("kernels.cpp*.o"))
    assert objects, f"no kernels.cpp*.o under {OBJECTS}"
    leaks = {str(path): leaked_symbols(path) for path in objects}
    assert not any(leaks.values()), leaks
    defined = {name for path in objects for name in symbols(path)}
    for isa in functional.config()["isas"]:
        namespace = isa.replace("-", "_")
        assert any(f"fastrnn::{namespace}::" in name for name in defined)
