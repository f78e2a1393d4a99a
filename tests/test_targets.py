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
    "module",
    [
        "test_activations.py",
        "test_invariance.py",
        "test_backward_invariance.py",
        "test_optimizers.py",
    ],
)
def test_module(module: str) -> None:
    """What holds a target's own code rather than the driver's, on the targets not in use here."""
    for isa in set(ISAS) - {functional.config()["isa"]}:
        result = run(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", module)
        assert result.returncode == 0, result.stdout


UPDATES = """
import hashlib
import numpy as np
from fastrnn import functional, optimizers

bits = hashlib.sha256()
for dtype in "f", "d":
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=3001).astype(dtype)}
    for optimizer in (
        optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        optimizers.RMSprop(0.01, centered=True, momentum=0.5),
        optimizers.Adam(0.01, amsgrad=True, l1=0.1, l2=0.01, clip_value=0.5),
        optimizers.AdamW(0.01),
    ):
        parameters = {"w": start["w"].copy()}
        for _ in range(3):
            optimizer.update(parameters, {"w": rng.normal(size=3001).astype(dtype)})
        bits.update(parameters["w"])
    bits.update(np.float64(functional.sum_of_squares(start["w"])))
print(bits.hexdigest())
"""


def test_updates_have_the_same_bits_on_all() -> None:
    outputs = {run(isa, "-c", UPDATES).stdout for isa in ISAS}
    assert len(outputs) == 1
    assert len(outputs.pop().strip()) == 64


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
