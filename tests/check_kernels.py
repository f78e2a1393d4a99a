"""Check what nvcc made of the kernels: registers, spills, shared memory, tensor core instructions.

Reads object files or the built module by cuobjdump, of the CUDA toolkit or of the packages
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm:

    python tests/check_kernels.py build/*/cuda/CMakeFiles/*/*.o

Lists every kernel. Fails for one that keeps values of its threads in memory (spills), for one
with more static shared memory than there is, and for a persistent kernel without tensor core
instructions; with --all also for persistent kernels that are not there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

CUDA = Path(__file__).resolve().parent.parent / "cuda"
# Every block has these on top of its own; cuobjdump counts them from this architecture on.
RESERVED_BYTES, RESERVED_FROM = 1024, 90
CLUSTERS_FROM = 90
CELLS = (
    "Rnn<0>",
    "Rnn<1>",
    "Rnn<2>",
    "Lstm<false, false>",
    "Lstm<false, true>",
    "Gru",
)


def enumerators(header: str, name: str) -> list[str]:
    """Names of a C++ enumeration, in order."""
    found = re.search(rf"enum class {name} : int {{(.*?)}}", (CUDA / header).read_text(), re.S)
    if not found:
        raise SystemExit(f"{header}: expected an enumeration {name}")
    return [word.strip() for word in found[1].split(",") if word.strip() != "count"]


def shared_limits() -> dict[int, int]:
    """Bytes of shared memory that a block may have, by compute capability, as the planner knows."""
    rows = re.findall(
        r'{"[^"]+", (\d+), (\d+), \d+, (\d+) \* kib', (CUDA / "planner.cpp").read_text()
    )
    if not rows:
        raise SystemExit("planner.cpp: expected the table of known devices")
    limits: dict[int, int] = {}
    for major, minor, kib in rows:
        capability = int(major) * 10 + int(minor)
        limits[capability] = min(limits.get(capability, sys.maxsize), int(kib) * 1024)
    return limits


def static_budget() -> int:
    """Bytes of static shared memory that the planner leaves to a persistent kernel."""
    found = re.search(
        r"persistent_static_bytes = (\d+);", (CUDA / "persistent_shape.h").read_text()
    )
    if not found:
        raise SystemExit("persistent_shape.h: expected persistent_static_bytes")
    return int(found[1])


@dataclass
class Kernel:
    """One kernel of one architecture."""

    architecture: int  # 90: compute capability 9.0
    symbol: str
    registers: int
    stack: int  # bytes of each thread
    shared: int  # bytes of a block, static
    multiplies: bool = False  # on tensor cores
    spills: bool = False
    label: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether it is for hardware that this architecture lacks."""
        return ", cluster" in self.label and self.architecture < CLUSTERS_FROM

    def faults(self, limits: dict[int, int], budget: int) -> Iterator[str]:
        """What is wrong with it."""
        if self.stack or self.spills:
            yield f"expected no spills, got a stack of {self.stack} bytes"
        # Code for 8.0 runs on 8.9, too.
        devices = [
            limit
            for capability, limit in limits.items()
            if capability // 10 == self.architecture // 10 and capability >= self.architecture
        ]
        is_persistent = self.label.startswith("persistent")
        limit = min([*devices, budget] if is_persistent else devices, default=48 * 1024)
        if self.shared > limit:
            yield f"expected at most {limit} bytes of static shared memory, got {self.shared}"
        if is_persistent and not self.is_empty and not self.multiplies:
            yield "expected tensor core instructions (HMMA), got none"


def lines_of(cuobjdump: str, option: str, path: Path) -> Iterator[str]:
    """The output of cuobjdump, line by line."""
    # It calls nvdisasm, which packages put beside it.
    search = os.pathsep.join([str(Path(cuobjdump).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        [cuobjdump, option, path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": search},
    ) as process:
        assert process.stdout
        yield from process.stdout
    if process.returncode:
        raise SystemExit(f"cuobjdump {option} {path}: failed with {process.returncode}")


def kernels_in(cuobjdump: str, path: Path) -> list[Kernel]:
    """All kernels of a file."""
    kernels: dict[tuple[int, str], Kernel] = {}
    architecture, symbol = 0, ""
    for line in lines_of(cuobjdump, "--dump-resource-usage", path):
        if found := re.match(r"arch = sm_(\d+)", line):
            architecture = int(found[1])
        elif found := re.match(r"\s*Function (\S+):", line):
            symbol = found[1]
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, found.groups())
            if architecture >= RESERVED_FROM:
                shared = max(0, shared - RESERVED_BYTES)
            kernels[architecture, symbol] = Kernel(
                architecture, symbol, registers, stack + local, shared
            )
    kernel = None
    for line in lines_of(cuobjdump, "--dump-sass", path):
        if found := re.match(r"arch = sm_(\d+)", line):
            architecture = int(found[1])
        elif found := re.match(r"\s*Function : (\S+)", line):
            kernel = kernels.get((architecture, found[1]))
        elif kernel and "HMMA" in line:
            kernel.multiplies = True
        elif kernel and re.search(r"\b(STL|LDL)\b", line):
            kernel.spills = True
    return list(kernels.values())


def name(kernels: list[Kernel]) -> None:
    """Give all kernels readable labels."""
    names = subprocess.run(
        ["c++filt"],
        input="\n".join(kernel.symbol for kernel in kernels),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    precisions = enumerators("fragments.h", "Precision")
    policies = enumerators("planner.h", "Policy")
    for kernel, full in zip(kernels, names, strict=True):
        short = re.sub(r"fastrnn::(cuda::)?|\(anonymous namespace\)::|^void ", "", full)
        found = re.match(
            r"run_persistent<(.*), \(Precision\)(\d), (\d+), \(Policy\)(\d)>"
            r"\(Persistent(\w+)Call",
            short,
        )
        if found:
            cell = found[1].replace("(Nonlinearity)", "")
            kernel.label = persistent_label(
                cell,
                precisions[int(found[2])],
                policies[int(found[4])],
                found[5].lower(),
                f", depth {found[3]}",
            )
        else:
            kernel.label = short


def persistent_label(
    cell: str, precision: str, policy: str, direction: str, depth: str = ""
) -> str:
    """How the listing calls a persistent kernel."""
    return f"persistent {direction} {cell}, {precision}, {policy}{depth}"


def missing(kernels: Iterable[Kernel]) -> Iterator[str]:
    """Persistent kernels that an architecture lacks, of one that has any."""
    labels: dict[int, set[str]] = {}
    for kernel in kernels:
        if kernel.label.startswith("persistent"):
            without_depth = kernel.label.rsplit(", depth", 1)[0]
            labels.setdefault(kernel.architecture, set()).add(without_depth)
    policies = [policy for policy in enumerators("planner.h", "Policy") if policy != "steps"]
    precisions = enumerators("fragments.h", "Precision")
    for architecture, present in labels.items():
        for cell, precision, policy, direction in product(
            CELLS, precisions, policies, ("forward", "backward")
        ):
            label = persistent_label(cell, precision, policy, direction)
            if label not in present:
                yield f"sm_{architecture} {label}: expected it, but it is not there"


def main() -> int:
    """Check the files of the command line; 1 where a kernel has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", nargs="+", type=Path, help="objects or the built module")
    parser.add_argument("--cuobjdump", default="cuobjdump", help="where cuobjdump is")
    parser.add_argument(
        "--all", action="store_true", help="expect every persistent kernel of every architecture"
    )
    arguments = parser.parse_args()
    cuobjdump = shutil.which(arguments.cuobjdump)
    if not cuobjdump:
        parser.error(f"--cuobjdump: expected a program, got {arguments.cuobjdump}")
    kernels = [kernel for path in arguments.files for kernel in kernels_in(cuobjdump, path)]
    if not kernels:
        print("expected kernels, found none", file=sys.stderr)
        return 1
    name(kernels)
    limits, budget = shared_limits(), static_budget()
    faults = list(missing(kernels)) if arguments.all else []
    if arguments.all and not any(kernel.label.startswith("persistent") for kernel in kernels):
        faults.append("expected persistent kernels, found none")
    print("  sm  registers  stack  shared  HMMA  kernel")
    for kernel in sorted(kernels, key=lambda k: (k.architecture, k.label)):
        print(
            f"{kernel.architecture:4}  {kernel.registers:9}  {kernel.stack:5}  {kernel.shared:6}"
            f"  {'yes' if kernel.multiplies else '-':4}  {kernel.label[:120]}"
        )
        for fault in kernel.faults(limits, budget):
            faults.append(f"sm_{kernel.architecture} {kernel.label[:120]}: {fault}")
    print(f"{len(kernels)} kernels, {len(faults)} faults")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
