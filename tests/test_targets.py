"""Every instruction set that this machine has, forced one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastrnn import functional

TESTS = Path(__file__).parent
ISAS = tuple(functional.config()["isas"])


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"FASTRNN_ISA": isa},
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_default_is_the_best_one() -> None:
    wanted = os.environ.get("FASTRNN_ISA", ISAS[-1])
    assert functional.config()["isa"] == wanted


@pytest.mark.parametrize("isa", ISAS)
def test_parity(isa: str) -> None:
    result = run(isa, "parity.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == isa


@pytest.mark.parametrize(
    "module", ["test_activations.py", "test_invariance.py", "test_backward_invariance.py"]
)
def test_module(module: str) -> None:
    """What holds a target's own code rather than the driver's, on the targets not in use here."""
    for isa in set(ISAS) - {functional.config()["isa"]}:
        result = run(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", module)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("isa", ["nowhere", "AVX2 "])
def test_unknown_name_is_loud(isa: str) -> None:
    result = run(isa, "-c", "import fastrnn; fastrnn.GRU(2, 3)")
    assert result.returncode != 0
    assert "FASTRNN_ISA" in result.stderr
    assert f"'{isa}'" in result.stderr
    for known in ISAS:
        assert known in result.stderr


def test_empty_is_unset() -> None:
    assert run("", "-c", "import fastrnn; fastrnn.show_config()").returncode == 0
