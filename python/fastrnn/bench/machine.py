"""The machine and the software that a run is measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastrnn import functional
from fastrnn.bench import cuda_peers
from fastrnn.bench.cuda_peers import PEERS_ON, SUBJECTS


def describe(threads: int, peers: Sequence[str], device: str = "cpu") -> dict[str, Any]:
    """Collect what someone else needs to know to repeat the run."""
    engines = [SUBJECTS[device], *(PEERS_ON[device][peer] for peer in peers)]
    packages = {"numpy", *(package for engine in engines for package in engine.requires)}
    return {
        "device": device,
        **({} if device == "cpu" else cuda_peers.describe()),
        "config": functional.config(),
        "threads": threads,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in sorted(packages)},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> float:
    """Return the size of the memory; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return float("inf")
