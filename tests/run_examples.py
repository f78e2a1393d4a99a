"""Runs the examples, for the tests of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples"


def load(name: str) -> Any:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run an example, check that it saves a picture, and return its results."""
    picture = folder / "picture.png"
    results: dict[str, Any] = load(name).main(["--picture", str(picture), *options])
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 5000  # more than empty axes
    return results
