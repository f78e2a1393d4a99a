r"""Peak memory of a training step, measured in a process of its own.

In the benchmark's process it would drown in what the engines hold. The new one takes the number of
threads and a shape's fields as JSON, and prints bytes::

    python -m fastrnn.bench.memory 2 \
        '{"cell": "lstm", "T": 100, "B": 32, "I": 256, "H": 256, "train": true}'

The kernel counts pages, and keeps the high-water mark to a batch of pages per core only: figures
are good to about 0.1 MB.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

from fastrnn.bench.peers import FastRNN
from fastrnn.bench.problem import Problem
from fastrnn.bench.suites import Shape

# For glibc: every block of a page or more is mapped by itself and given back when freed. Otherwise
# the step would partly run in freed memory that the process had before, which would not be counted.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4096",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
}
_STEPS = 3  # the later ones show what is not given back between steps
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CLEAR_HIGH_WATER = "5"  # proc_pid_clear_refs(5)


class UnavailableError(Exception):
    """The peak could not be measured; the message says why."""


def peak_bytes(shape: Shape, threads: int) -> int:
    """Measure what a training step of ours needs besides layer, input and the output's gradient.

    Raises
    ------
    UnavailableError
        If the system does not tell, or the process failed.
    """
    fields = json.dumps(dataclasses.asdict(shape))
    finished = subprocess.run(
        [sys.executable, "-m", "fastrnn.bench.memory", str(threads), fields],
        env=os.environ | _ALLOCATOR,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        lines = finished.stderr.splitlines() or [f"exit code {finished.returncode}"]
        raise UnavailableError(lines[-1])
    return int(finished.stdout)


def main(threads: str, fields: str) -> None:
    """Measure in this process and print the bytes."""
    engine, shape = FastRNN(int(threads)), Shape(**json.loads(fields))
    # Threads and whatever is made at first use are not the step's: start them with another layer.
    small = engine.candidate(Problem.create(dataclasses.replace(shape, T=2, I=8, H=8)))
    small.call()
    call = engine.candidate(Problem.create(shape)).call
    gc.collect()
    try:
        _CLEAR_REFS.write_text(_CLEAR_HIGH_WATER, encoding="ascii")
        base = _status("VmRSS")
        peak = base
        for _ in range(_STEPS):
            result = call()
            peak = max(peak, _status("VmRSS"))  # exact, which the high-water mark is not
            del result
        print(max(peak, _status("VmHWM")) - base)
    except OSError as error:
        raise SystemExit(f"the system does not tell: {error}") from None


def _status(field: str) -> int:
    """Bytes in a field of this process's status."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise OSError(f"{_STATUS} has no {field}")


if __name__ == "__main__":
    main(*sys.argv[1:])
