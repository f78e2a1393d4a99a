"""Set what gpu_sweep.py measured beside the limits of the GPU, as Markdown.

The limits are measured here: the rate of a large matrix product for each kind of number, and the
bandwidth of a large copy, bytes read and bytes written together. A recurrent layer stays far below
both, for its steps follow one another: what is left is the time of a step that is no arithmetic.
With --ncu the first persistent kernels of one shape are looked at with Nsight Compute, too::

    python bench/gpu_roofline.py sweep.jsonl > roofline.md
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_sweep
import torch
from gpu_sweep import Case, Contest, Record, Stopwatch

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
SIDE = 8192  # of the square matrices
COPY = 1 << 31  # bytes
ROUNDS = 10
# Looked at with --ncu; clusters run it on Hopper.
LOOKED_AT = Case("lstm", True, "bfloat16", 1, False, 32, 512, False)
SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "MemoryWorkloadAnalysis")


def flops(case: Case) -> int:
    """Operations of the matrix products of a call; those backward are twice as many."""
    D, H = 2 if case.bidirectional else 1, case.H
    inputs = H + (case.layers - 1) * D * H
    weights = D * GATES[case.cell] * H * (inputs + case.layers * H)
    return 2 * case.T * case.B * weights * (3 if case.training else 1)


def product_rate(kind: str, device: str, side: int) -> float:
    """FLOP/s of a large matrix product."""
    a, b = (torch.randn(side, side, device=device).to(gpu_sweep.DTYPES[kind]) for _ in range(2))
    with gpu_sweep.precision(kind):
        return 2 * side**3 / _fastest(lambda: torch.matmul(a, b), device)


def copy_rate(device: str, size: int) -> float:
    """Bytes per second, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def _fastest(call: gpu_sweep.Function, device: str) -> float:
    stopwatch = Stopwatch(device)
    stopwatch(call, 3)
    return min(stopwatch(call, 3) for _ in range(ROUNDS))


def sheet(records: list[Record], device: str, side: int, size: int) -> str:
    """All of it."""
    rates = {kind: product_rate(kind, device, side) for kind in gpu_sweep.DTYPES}
    lines = ["# Roofline", "", f"Copy: {copy_rate(device, size) / 1e12:.2f} TB/s. Products of"]
    lines[-1] += f" {side} x {side}:"
    lines += [f"* {kind}: {rate / 1e12:.1f} TFLOP/s" for kind, rate in rates.items()]
    lines += [
        "",
        "arithmetic: microseconds of a step at that rate; rest: what else a step takes.",
        "",
        "| cell | pass | kind | rows | form | B | H | us | TFLOP/s | of that | arithmetic | rest |",
        "|" + " --- |" * 5 + " ---: |" * 7,
    ]
    for record in records:
        if record["type"] != "case" or "ratio" not in record or record["ragged"]:
            continue
        case = gpu_sweep.case_of(record)
        step, floor = record["microseconds"]["fastrnn"], 1e6 * flops(case) / case.T
        arithmetic = floor / rates[case.kind]
        lines.append(
            f"| {' | '.join(case.group)} | {case.form} | {case.B} | {case.H} | {step:.2f} | "
            f"{floor / step / 1e12:.2f} | {arithmetic / step:.1%} | {arithmetic:.3f} | "
            f"{step - arithmetic:.2f} |"
        )
    return "\n".join(lines)


def run_once() -> None:
    """Run the shape that is looked at: to be started under ncu."""
    with gpu_sweep.precision(LOOKED_AT.kind):
        Contest(LOOKED_AT, "cuda").runs()["fastrnn"]()
    torch.cuda.synchronize()


def counters(seconds: float) -> str:
    """Return what ncu says of the persistent kernels, or why it says nothing."""
    program = shutil.which("ncu")
    if program is None:
        return "ncu is not installed."
    command = [program, "--clock-control", "none", "--kernel-name", "regex:run_persistent"]
    command += ["--launch-count", "2"]
    command += [word for section in SECTIONS for word in ("--section", section)]
    command += [sys.executable, __file__, "--once", os.devnull]
    with contextlib.suppress(subprocess.TimeoutExpired):
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False
        )
        return f"```\n{finished.stdout[-20000:]}{finished.stderr[-2000:]}\n```"
    return f"ncu was not done within {seconds:.0f} s."


def main() -> int:
    """Print the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="what gpu_sweep.py wrote")
    parser.add_argument("--ncu", type=float, metavar="S", help="seconds that ncu may take")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("no GPU", file=sys.stderr)
        return 3
    if options.once:
        run_once()
        return 0
    device = "cpu" if options.dry_run else "cuda"
    sizes = (64, 1 << 16) if options.dry_run else (SIDE, COPY)
    gpu_sweep.heat(device)
    print(sheet(gpu_sweep.read(options.file), device, *sizes), flush=True)
    if options.ncu:
        print(f"\n## {LOOKED_AT.form} {' '.join(LOOKED_AT.group)}\n\n{counters(options.ncu)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
