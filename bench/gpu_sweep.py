"""Time fastrnn.torch against torch.nn on an NVIDIA GPU, over shapes sorted by importance.

Both run the same weights and inputs in one process, in interleaved rounds, timed by CUDA events.
Every shape is first checked: where outputs or gradients differ, no time is taken. What is measured
goes to a file of JSON lines at once, so that a budget of seconds, a hanging kernel or an interrupt
costs only what was not reached; ``--table`` makes Markdown of it::

    python bench/gpu_sweep.py sweep.jsonl --seconds 120
    python bench/gpu_sweep.py sweep.jsonl --table > sweep.md

A time is that of a call divided by its T steps, in microseconds. "tf32" is float32 with TF32
allowed on both sides, "float32" forbids it on both.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import fastrnn.torch
import torch
from fastrnn import functional
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Function = Callable[[], Any]
Record = dict[str, Any]

DTYPES = {
    "tf32": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CELLS = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh"}  # the modules' and the engine's names
# Of |ours - theirs| / |theirs| in the Euclidean norm, for each array: some ten times what rounding
# makes of it. A wrong gate, state or bias is far above.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 6e-2}
LEAST = 0.9  # ratio that no shape may be below
LENGTHS_GOAL = 5.0
ROUNDS = 7
WARM_CALLS = 3
PATIENCE = 30.0  # s; a case that takes longer hangs
POLICY = "FASTRNN_CUDA_POLICY"
# Shares of the budget.
STEPS_SHARE, KERNELS_SHARE = 0.2, 0.1


@dataclass(frozen=True)
class Case:
    """One shape; with ``ragged``, rows have 1 to T steps."""

    cell: str
    training: bool
    kind: str
    layers: int
    bidirectional: bool
    B: int
    H: int
    ragged: bool
    T: int = 200

    @property
    def goal(self) -> float:
        """The ratio that is aimed at."""
        if self.ragged:
            return LENGTHS_GOAL
        if 128 <= self.H <= 512:
            return 3.0
        return 1.5 if 768 <= self.H <= 1024 else LEAST

    @property
    def group(self) -> tuple[str, ...]:
        """What shapes are summarised by."""
        passes = "training" if self.training else "forward"
        return self.cell.upper(), passes, self.kind, "lengths" if self.ragged else "full"

    @property
    def form(self) -> str:
        """Layers and directions."""
        return f"{self.layers} {'bi' if self.bidirectional else 'uni'}"


# The lower the sum of an attribute's values, the earlier a shape's turn.
_COSTS: dict[str, dict[Any, float]] = {
    "cell": {"lstm": 0, "gru": 1, "rnn": 4},
    "training": {False: 0, True: 0.1},
    "kind": {"tf32": 0, "bfloat16": 0.2, "float16": 1, "float32": 1},
    "form": {(1, False): 0, (2, False): 2, (1, True): 2, (2, True): 4},
    "B": {32: 0, 1: 0.5, 8: 0.5, 64: 0.5, 16: 2},
    "H": {256: 0, 512: 0, 128: 0.5, 1024: 0.5, 768: 1, 384: 2, 64: 1.5},
    "ragged": {False: 0, True: 1.2},
}
_TINY = {"kind": {"float32": 0.0, "bfloat16": 0.2}, "B": {3: 0.0}, "H": {8: 0.0, 5: 1.0}}


def all_cases(tiny: bool) -> list[Case]:
    """List every shape, the most important first."""
    costs = _COSTS | (_TINY if tiny else {})
    found = []
    for combination in itertools.product(*(costs[name].items() for name in _COSTS)):
        (cell, training, kind, (layers, bidirectional), B, H, ragged), prices = zip(
            *combination, strict=True
        )
        if ragged and B == 1:
            continue
        case = Case(cell, training, kind, layers, bidirectional, B, H, ragged, 6 if tiny else 200)
        found.append((sum(prices), case))
    return [case for _, case in sorted(found, key=lambda pair: pair[0])]


def steps_cases(cases: Sequence[Case]) -> list[Case]:
    """Those that are also run by the policy of one launch per step."""
    plain = [c for c in cases if not c.ragged and c.layers == 1 and not c.bidirectional]
    chosen = [c for c in plain if c.kind != "float16" and c.B not in (8, 16) and c.cell != "rnn"]
    return chosen[:48]


# ---- what is timed


@contextlib.contextmanager
def precision(kind: str) -> Iterator[None]:
    """Allow TF32 on both sides, or forbid it."""
    allowed = kind == "tf32"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Contest:
    """Both modules of a case, with the same weights and the same input."""

    def __init__(self, case: Case, device: str) -> None:
        self.case = case
        torch.manual_seed(20140603)
        where = {"device": device, "dtype": DTYPES[case.kind]}
        name, H = case.cell.upper(), case.H
        sizes = {"num_layers": case.layers, "bidirectional": case.bidirectional}
        self._theirs = getattr(nn, name)(H, H, **sizes, **where).train(case.training)
        self._ours = getattr(fastrnn.torch, name)(H, H, **sizes, **where).train(case.training)
        self._ours.load_state_dict(self._theirs.state_dict())
        self._x = torch.randn(case.T, case.B, H, **where).requires_grad_(case.training)
        width = H * (2 if case.bidirectional else 1)
        self._grad = torch.randn(case.T, case.B, width, **where)
        if case.ragged:
            self._draw_lengths(device, width)

    def _draw_lengths(self, device: str, width: int) -> None:
        self._lengths = torch.randint(1, self.case.T + 1, (self.case.B,))  # packing wants them here
        self._device_lengths = self._lengths.to(device)
        x = self._x.detach()
        self._packed = pack_padded_sequence(x, self._lengths, enforce_sorted=False)
        self._packed.data.requires_grad_(self.case.training)
        rows = int(self._lengths.sum())
        self._packed_grad = torch.randn(rows, width, device=device, dtype=x.dtype)

    def runs(self) -> dict[str, Function]:
        """Name what is timed; "packed" leaves out packing and padding."""
        runs = {"torch": self._step(self._theirs, self._their_output)}
        runs["fastrnn"] = self._step(self._ours, self._our_output)
        if self.case.ragged:
            runs["packed"] = self._packed_step
        return runs

    def arrays(self, name: str) -> list[Tensor]:
        """Output of a call, and of training the gradients of input and weights."""
        module = self._theirs if name == "torch" else self._ours
        output = self.runs()[name]()
        if not self.case.training:
            return [output]
        leaves = [self._x, *module.parameters()]
        return [output.detach(), *(leaf.grad for leaf in leaves)]

    def _their_output(self) -> Tensor:
        if not self.case.ragged:
            return self._theirs(self._x)[0]
        packed = pack_padded_sequence(self._x, self._lengths, enforce_sorted=False)
        output, _ = self._theirs(packed)
        return pad_packed_sequence(output, total_length=self.case.T)[0]

    def _our_output(self) -> Tensor:
        if not self.case.ragged:
            return self._ours(self._x)[0]
        return self._ours(self._x, lengths=self._device_lengths)[0]

    def _step(self, module: nn.Module, forward: Callable[[], Tensor]) -> Function:
        if not self.case.training:
            return forward

        def train() -> Tensor:
            self._x.grad = None
            module.zero_grad()
            output = forward()
            output.backward(self._grad)
            return output

        return train

    def _packed_step(self) -> Tensor:
        if not self.case.training:
            return self._theirs(self._packed)[0].data
        self._packed.data.grad = None
        self._theirs.zero_grad()
        output = self._theirs(self._packed)[0].data
        output.backward(self._packed_grad)
        return output


def disagreement(contest: Contest) -> float:
    """Largest relative difference of an array; NaN counts as infinite."""
    pairs = zip(contest.arrays("fastrnn"), contest.arrays("torch"), strict=True)
    errors = []
    for ours, theirs in pairs:
        ours, theirs = ours.double(), theirs.double()
        error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
        errors.append(error if math.isfinite(error) else math.inf)
    return max(errors)


# ---- timing


class Stopwatch:
    """Seconds of some calls in a row, on the device."""

    def __init__(self, device: str) -> None:
        self._events = None
        if device == "cuda":
            self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Function, count: int) -> float:
        """Seconds of each of `count` calls."""
        if self._events is None:
            start = time.perf_counter()
            for _ in range(count):
                call()
            return (time.perf_counter() - start) / count
        begin, end = self._events
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / count


def host_seconds(call: Function, device: str) -> float:
    """Seconds until the host has queued a call."""
    values = []
    for _ in range(ROUNDS):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        values.append(time.perf_counter() - start)
    return median(values)


def timed(runs: dict[str, Function], device: str, batch: float) -> dict[str, list[float]]:
    """Interleave rounds of about `batch` seconds each."""
    stopwatch, counts = Stopwatch(device), {}
    for name, call in runs.items():
        for _ in range(WARM_CALLS):
            call()
        counts[name] = min(200, max(1, round(batch / max(stopwatch(call, 2), 1e-7))))
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, call in runs.items():
            measured[name].append(stopwatch(call, counts[name]))
    return measured


def heat(device: str) -> None:
    """Bring an idle GPU to its clock."""
    if device == "cuda":
        a = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
        deadline = time.perf_counter() + 1.0
        while time.perf_counter() < deadline:
            for _ in range(50):
                a @ a
            torch.cuda.synchronize()


def plans_of(case: Case, device: str) -> list[str]:
    """Which policy runs each layer, and why."""
    if device != "cuda":
        return []
    engine = functional.CudaEngine(
        CELLS[case.cell],
        *(case.H, case.H, case.layers, case.bidirectional),
        *(0, True, "concat", False, False, math.inf, case.kind),
    )
    plans: list[str] = engine.plans(0, case.T, case.B, functional.Noise(), case.training)
    return plans


def measure(case: Case, device: str, batch: float) -> Record:
    """Check and time one case."""
    inference = contextlib.nullcontext() if case.training else torch.no_grad()
    with precision(case.kind), inference:
        contest = Contest(case, device)
        record: Record = {"type": "case", **asdict(case), "goal": case.goal}
        record["difference"] = disagreement(contest)
        record["plans"] = plans_of(case, device)
        if not record["difference"] <= TOLERANCE[case.kind]:
            record["failure"] = f"differs from torch by {record['difference']:.1e}"
            return record
        runs = contest.runs()
        seconds = timed(runs, device, batch)
        record["host"] = 1e6 * host_seconds(runs["fastrnn"], device) / case.T
    record["microseconds"] = {
        name: 1e6 * median(values) / case.T for name, values in seconds.items()
    }
    record["ratio"] = ratios(seconds["torch"], seconds["fastrnn"])
    if case.ragged:
        record["packed_ratio"] = ratios(seconds["packed"], seconds["fastrnn"])
    return record


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Lowest, median and highest of the rounds."""
    values = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    return [values[0], median(values), values[-1]]


def measure_steps(case: Case, device: str, batch: float) -> Record:
    """Time ours alone, in a process where the environment asks for one launch per step."""
    inference = contextlib.nullcontext() if case.training else torch.no_grad()
    with precision(case.kind), inference:
        contest = Contest(case, device)
        seconds = timed({"fastrnn": contest.runs()["fastrnn"]}, device, batch)
    step = 1e6 * median(seconds["fastrnn"]) / case.T
    return {"type": "steps", **asdict(case), "microseconds": step}


def measure_kernels(case: Case, device: str, _: float) -> Record:
    """Which kernels take how many microseconds of one call of each side."""
    inference = contextlib.nullcontext() if case.training else torch.no_grad()
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CUDA if device == "cuda" else activity.CPU]
    record: Record = {"type": "kernels", **asdict(case)}
    with precision(case.kind), inference:
        for name, call in Contest(case, device).runs().items():
            call()
            with torch.profiler.profile(activities=kinds) as profile:
                call()
                if device == "cuda":
                    torch.cuda.synchronize()
            record[name] = _longest(profile)
    return record


def _longest(profile: Any) -> list[list[Any]]:
    """Name, launches and microseconds of the kernels that take most of the time."""
    rows = [
        [row.key, row.count, row.self_device_time_total]
        for row in profile.key_averages()
        if row.device_type != torch.autograd.DeviceType.CPU and row.self_device_time_total > 0
    ]
    return sorted(rows, key=lambda row: -row[2])[:5]


# ---- the run

_TYPES = {measure: "case", measure_steps: "steps", measure_kernels: "kernels"}


class Sweep:
    """A file of records, a deadline and a way on after a kernel that hangs or breaks the device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._device = "cpu" if options.dry_run else "cuda"
        self._start = time.monotonic()
        self._file = options.file.open("a" if options.first else "w", encoding="utf-8")

    def run(self) -> int:
        """Do all of it; the exit code says whether every case agreed."""
        if not self._options.first:
            self._write(self._machine())
        heat(self._device)
        cases = all_cases(self._options.dry_run)
        budget = self._options.seconds
        if self._options.steps:
            self._loop(steps_cases(cases), budget, measure_steps)
        else:
            self._loop(cases, (1 - STEPS_SHARE - KERNELS_SHARE) * budget, measure)
            self._kernels((1 - STEPS_SHARE) * budget)
            self._steps_process(STEPS_SHARE * budget)
        # Of the processes before this one, too.
        return 1 if any("failure" in record for record in read(self._options.file)) else 0

    def _loop(
        self, cases: Sequence[Case], seconds: float, work: Callable[[Case, str, float], Record]
    ) -> None:
        for index in range(self._options.first, len(cases)):
            if time.monotonic() - self._start > seconds:
                break
            with self._watched(cases[index], index, _TYPES[work]):
                record = self._attempt(cases[index], work)
            self._write(record)
            if "failure" in record and self._is_broken():
                self._restart(index + 1)

    def _attempt(self, case: Case, work: Callable[[Case, str, float], Record]) -> Record:
        try:
            return work(case, self._device, self._options.batch)
        except Exception as error:  # one shape must not cost all others
            lines = str(error).splitlines() or [""]
            failure = f"{type(error).__name__}: {lines[0]}"
            return {"type": _TYPES[work], **asdict(case), "goal": case.goal, "failure": failure}

    @contextlib.contextmanager
    def _watched(self, case: Case, index: int, kind: str) -> Iterator[None]:
        def give_up() -> None:
            failure = f"no result within {PATIENCE:.0f} s"
            self._write({"type": kind, **asdict(case), "goal": case.goal, "failure": failure})
            self._restart(index + 1)

        timer = threading.Timer(PATIENCE, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _is_broken(self) -> bool:
        """Whether an error stays with the device: only a new process gets rid of it."""
        if self._device != "cuda":
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def _restart(self, first: int) -> None:
        left = self._options.seconds - (time.monotonic() - self._start)
        print(f"a new process goes on with case {first}", file=sys.stderr, flush=True)
        self._file.flush()
        command = [sys.executable, __file__, str(self._options.file), "--from", str(first)]
        command += ["--seconds", f"{max(1.0, left):.1f}", "--batch", str(self._options.batch)]
        for flag in ("steps", "verbose", "dry_run"):
            command += [f"--{flag.replace('_', '-')}"] * getattr(self._options, flag)
        os.execv(sys.executable, command)

    def _steps_process(self, seconds: float) -> None:
        """Run a subset of one launch per step; the policy is read once in a process."""
        path = self._options.file.with_suffix(".steps")
        command = [sys.executable, __file__, str(path), "--steps", "--seconds", f"{seconds:.1f}"]
        command += ["--batch", str(self._options.batch)]
        command += ["--dry-run"] * self._options.dry_run
        # Its start is not in its seconds.
        limit = 2 * seconds + 60
        try:
            subprocess.run(command, env=os.environ | {POLICY: "steps"}, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            failure = f"{POLICY}=steps was not done within {limit:.0f} s"
            self._write({"type": "process", "failure": failure})
        for record in read(path):
            if record["type"] != "machine":
                self._write(record)
        path.unlink(missing_ok=True)

    def _kernels(self, seconds: float) -> None:
        """Profile one case of each group, after all times: tracing slows launches down."""
        seen = set()
        for case in [case_of(record) for record in read(self._options.file) if "ratio" in record]:
            if time.monotonic() - self._start > seconds:
                break
            key = (*case.group, case.form, case.H >= 768)
            if key not in seen:
                seen.add(key)
                self._write(self._attempt(case, measure_kernels))

    def _machine(self) -> Record:
        record: Record = {"type": "machine", "torch": torch.__version__}
        record["fastrnn"] = fastrnn.__version__
        record["policy"] = os.environ.get(POLICY, "auto")
        record["device"] = "CPU"
        if self._device == "cuda":
            record["device"] = torch.cuda.get_device_name()
            record["cudnn"] = torch.backends.cudnn.version()
        return record

    def _write(self, record: Record) -> None:
        print(json.dumps(record), file=self._file, flush=True)
        if self._options.verbose and record["type"] == "case":
            print(line_of(record), flush=True)


def read(path: Path) -> list[Record]:
    """Return the records of a file, of which the last line may be cut."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


# ---- the table


def case_of(record: Record) -> Case:
    """Return the case of a record."""
    return Case(**{name: record[name] for name in Case.__dataclass_fields__})


def mark_of(record: Record) -> str:
    """Judge a ratio."""
    ratio = record["ratio"][1]
    if ratio < LEAST:
        return "**LOSS**"
    if ratio < 1:
        return "slower"
    return "met" if ratio >= record["goal"] else "below goal"


def line_of(record: Record) -> str:
    """One row."""
    case = case_of(record)
    label = f"| {' | '.join(case.group)} | {case.form} | {case.B} | {case.H} |"
    if "failure" in record:
        return f"{label} - | - | - | {case.goal:g} | **FAILED** | {record['failure']} |"
    times, (low, middle, high) = record["microseconds"], record["ratio"]
    remarks = [plan.partition(":")[0] for plan in record["plans"]]
    if record["host"] > 0.9 * times["fastrnn"]:
        remarks.append("host-bound")
    if case.ragged:
        remarks.append(f"{record['packed_ratio'][1]:.2f} without packing")
    return (
        f"{label} {times['torch']:.2f} | {times['fastrnn']:.2f} | {middle:.2f} ({low:.2f} to"
        f" {high:.2f}) | {case.goal:g} | {mark_of(record)} | {', '.join(remarks)} |"
    )


def table(records: Sequence[Record]) -> str:
    """All of it as Markdown."""
    machine = next((r for r in records if r["type"] == "machine"), {})
    cases = [r for r in records if r["type"] == "case"]
    good = [r for r in cases if "ratio" in r]
    lines = [
        "# fastrnn.torch against torch.nn",
        "",
        f"{machine.get('device', '?')}, torch {machine.get('torch', '?')}, cuDNN "
        f"{machine.get('cudnn', '-')}. Times are microseconds per step, T = "
        f"{cases[0]['T'] if cases else '?'}; ratio: torch's time / ours, with "
        "the rounds' extremes.",
        f"Goals: 3 for H 128 to 512, 1.5 for 768 to 1024, {LENGTHS_GOAL:g} with lengths (against "
        f"packing, running and padding), nowhere below {LEAST}.",
        "",
        f"{len(good)} shapes: {sum(mark_of(r) == 'met' for r in good)} met their goal, "
        f"{sum(r['ratio'][1] < 1 for r in good)} are slower than torch, "
        f"{sum(r['ratio'][1] < LEAST for r in good)} below {LEAST}; "
        f"{len(cases) - len(good)} failed.",
        "",
        *_summary(good),
        "| cell | pass | kind | rows | form | B | H | torch | fastrnn | ratio | goal | | plan |",
        "|" + " --- |" * 6 + " ---: |" * 5 + " --- | --- |",
        *(line_of(r) for r in cases),
        "",
        *_steps_table(records, good),
        *_kernels_list(records),
    ]
    return "\n".join(lines)


def _summary(good: Sequence[Record]) -> list[str]:
    groups: dict[tuple[str, ...], list[float]] = {}
    for record in good:
        groups.setdefault(case_of(record).group, []).append(record["ratio"][1])
    lines = ["| cell | pass | kind | rows | shapes | geometric mean | lowest | highest |"]
    lines.append("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for group, values in groups.items():
        numbers = f"{geometric_mean(values):.2f} | {min(values):.2f} | {max(values):.2f}"
        lines.append(f"| {' | '.join(group)} | {len(values)} | {numbers} |")
    return [*lines, ""]


def _steps_table(records: Sequence[Record], good: Sequence[Record]) -> list[str]:
    times = {case_of(r): r["microseconds"]["fastrnn"] for r in good}
    plans = {case_of(r): r["plans"] for r in good}
    lines = ["## One launch per step, against the policy that is chosen", ""]
    lines += ["| cell | pass | kind | rows | form | B | H | steps | chosen | ratio | policy |"]
    lines += ["|" + " --- |" * 5 + " ---: |" * 5 + " --- |"]
    lines += [f"| {r['failure']} |" for r in records if r["type"] == "process"]
    for record in records:
        if record["type"] != "steps" or "failure" in record:
            continue
        case, steps = case_of(record), record["microseconds"]
        if case not in times:
            continue
        policy = ", ".join(plan.partition(":")[0] for plan in plans[case])
        lines.append(
            f"| {' | '.join(case.group)} | {case.form} | {case.B} | {case.H} | {steps:.2f} | "
            f"{times[case]:.2f} | {steps / times[case]:.2f} | {policy} |"
        )
    return [*lines, ""]


def _kernels_list(records: Sequence[Record]) -> list[str]:
    lines = ["## Kernels", ""]
    for record in records:
        if record["type"] != "kernels":
            continue
        case = case_of(record)
        lines.append(f"* {' '.join(case.group)}, {case.form}, B={case.B}, H={case.H}")
        if "failure" in record:
            lines.append(f"  * {record['failure']}")
            continue
        for side in ("torch", "fastrnn"):
            listed = (f"`{n[:90]}` {count}x {us:.0f} us" for n, count, us in record[side])
            lines.append(f"  * {side}: {'; '.join(listed) or '-'}")
    return [*lines, ""]


def main() -> int:
    """Run the sweep, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="of JSON lines")
    parser.add_argument("--seconds", type=float, default=120.0, help="default: %(default)s")
    parser.add_argument(
        "--batch", type=float, default=0.004, help="seconds of a round (default: %(default)s)"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    parser.add_argument("--verbose", action="store_true", help="print a row for every shape")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(table(read(options.file)))
        return 0
    if not options.dry_run and not torch.cuda.is_available():
        print("no GPU: --dry-run runs tiny shapes on the CPU", file=sys.stderr)
        return 3
    if not options.dry_run and functional.cuda_build() != "cuda":
        print(f"no kernels for GPUs: this build is {functional.cuda_build()!r}", file=sys.stderr)
        return 3
    return Sweep(options).run()


if __name__ == "__main__":
    raise SystemExit(main())
