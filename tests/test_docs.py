"""What the documentation shows is what happens."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import fastrnn
import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(fastrnn.__path__, "fastrnn.")
    if not module.name.endswith("__main__")  # importing it runs it
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    if name.startswith("fastrnn.torch"):
        pytest.importorskip("torch")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "name", [name for name in fastrnn.__all__ if callable(getattr(fastrnn, name))]
)
def test_public_names_are_documented(name: str) -> None:
    public = getattr(fastrnn, name)
    members = [
        member
        for key, member in inspect.getmembers(public)
        if not key.startswith("_") and (callable(member) or isinstance(member, property))
    ]
    for documented in [public, *members]:
        assert inspect.getdoc(documented), documented


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert blocks
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks), "utf-8")
    monkeypatch.chdir(tmp_path)  # it saves a model
    runpy.run_path(str(script))


def test_example_moves_a_trained_model() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    example = ROOT / "examples" / "torch_to_fastrnn.py"
    result = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"equal predictions +450 of 450", result.stdout), result.stdout
    accuracy = re.search(r"test accuracy +(\S+)", result.stdout)
    assert accuracy
    assert float(accuracy[1]) > 0.9
