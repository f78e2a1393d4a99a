"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import fastrnn
from fastrnn.bench import cuda_peers, machine, report, runner
from fastrnn.bench.cuda_peers import DEVICES, PEERS_ON
from fastrnn.bench.peers import PEERS, missing_package
from fastrnn.bench.results import Run
from fastrnn.bench.suites import CPU_DTYPES, DTYPES, GATES, LENGTHS, SUITES, Shape

DESCRIPTION = (
    "Compare the forward pass, or with --train a training step, with every engine that is "
    "installed: check that the outputs and gradients agree, then time them in interleaved rounds, "
    "with the same weights and the same number of threads."
)

_SIZES = {"T": "steps", "B": "batch", "I": "inputs (default: H)", "H": "hidden units"}
_LARGE_SUITES = ("rnn", "deepbench")
_PICTURES = (".png", ".svg", ".pdf")
_EXTRA = "pip install 'fastrnn[bench]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with `arguments`, by default the process's own; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastrnn.bench", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser, parser.parse_args(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    shapes = parser.add_argument_group(
        "shapes",
        "With --suite: those of its shapes that match --cell, --T, --B, --I and --H. Without: "
        "every combination of the given values. T = 1 is measured through step, except with "
        "--train.",
    )
    shapes.add_argument(
        "--suite",
        choices=SUITES,
        help="quick, if nothing else is given; train implies --train, and also measures what rows "
        "of different lengths save; regularised measures what layer norm, dropout, zoneout and "
        "other options add to our own training step, without peers",
    )
    shapes.add_argument(
        "--train",
        action="store_true",
        help="time a training step, forward and backward, and measure its memory; T = 1 is then a "
        "sequence of one step",
    )
    shapes.add_argument("--cell", choices=GATES, type=str.lower, nargs="+", action="extend")
    for letter, meaning in _SIZES.items():
        shapes.add_argument(
            f"--{letter}", type=_positive_int, nargs="+", action="extend", metavar="N", help=meaning
        )
    shapes.add_argument(
        "--layers", type=_positive_int, nargs="+", action="extend", metavar="N", help="default: 1"
    )
    shapes.add_argument("--bidirectional", action="store_true")
    shapes.add_argument(
        "--dtype",
        choices=DTYPES,
        nargs="+",
        action="extend",
        help="default: float32, without TF32; what is not float32 or float64 needs --device cuda",
    )

    method = parser.add_argument_group("measurement")
    method.add_argument(
        "--peers",
        choices=PEERS,
        nargs="+",
        action="extend",
        help="default: those installed, numpy not in the large suites",
    )
    method.add_argument(
        "--threads",
        type=_thread_count,
        metavar="N",
        default=fastrnn.get_num_threads(),
        help="of every engine (default: %(default)s)",
    )
    method.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="cuda: fastrnn.torch against torch.nn on the first NVIDIA GPU (default: cpu)",
    )
    method.add_argument(
        "--seconds",
        type=_positive_float,
        metavar="S",
        default=0.15,
        help="to spend on each engine and shape (default: %(default)s)",
    )
    method.add_argument(
        "--repeats",
        type=_positive_int,
        metavar="N",
        default=5,
        help="rounds in which to spend them (default: %(default)s)",
    )

    output = parser.add_argument_group("output")
    output.add_argument("--json", type=_output_path, metavar="FILE", help="keep every round")
    output.add_argument("--plot", type=_output_path, metavar="FILE.png", help="draw the times")
    output.add_argument(
        "--load", type=Path, metavar="FILE", help="measure nothing, show what --json kept"
    )


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Do what the parsed options say and return the exit code."""
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error(f"--plot: matplotlib is not installed: {_EXTRA}")
    if options.plot and options.plot.suffix not in _PICTURES:
        parser.error(f"--plot: expected a name in {', '.join(_PICTURES)}, got {options.plot}")
    if options.plot and options.device != "cpu":
        parser.error("--plot: expected --device cpu, whose roofs are measured")
    if options.load:
        finished, status = _load(parser, options.load), 0
    else:
        finished, status = _measure(parser, options)
    print(f"\n{report.summary(finished)}")
    if options.json:
        finished.save(options.json)
    if options.plot and any(result.peak for result in finished.results):
        from fastrnn.bench import plot

        plot.save(finished, options.plot)
    elif options.plot:
        print(f"Nothing to plot: no time over its roofline bound for {options.plot}.")
    return status


def select_shapes(options: argparse.Namespace) -> list[Shape]:
    """Return the suite's shapes that match, or every combination of the given values."""
    given = {name: getattr(options, name) for name in ("cell", *_SIZES)}
    if options.suite or not any(given.values()):
        shapes = [
            shape
            for shape in SUITES[options.suite or "quick"]
            if all(not values or getattr(shape, name) in values for name, values in given.items())
        ]
    else:
        shapes = [
            Shape(cell, T=T, B=B, I=I or H, H=H)
            for cell, B, T, H, I in itertools.product(  # noqa: E741
                options.cell or GATES,
                options.B or [1],
                options.T or [100],
                options.H or [256],
                options.I or [None],
            )
        ]
    return [
        dataclasses.replace(
            shape,
            layers=layers,
            bidirectional=options.bidirectional,
            dtype=dtype,
            train=shape.train or options.train,
        )
        for dtype in options.dtype or ["float32"]
        for layers in options.layers or [1]
        for shape in shapes
    ]


def _select_peers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    peers = PEERS_ON[options.device]
    for name in options.peers or []:
        if name not in peers:
            parser.error(f"--peers: expected {', '.join(peers)} on a GPU, got {name}")
        if package := missing_package(name):
            parser.error(f"--peers: {name} needs {package}, which is not installed: {_EXTRA}")
    if options.suite == "regularised":
        return []
    if options.peers:
        return list(dict.fromkeys(options.peers))
    installed = [name for name in peers if missing_package(name) is None]
    if options.suite in _LARGE_SUITES and "numpy" in installed[:-1]:
        installed.remove("numpy")
    return installed


def _check_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for dtype in options.dtype or []:
        if options.device == "cpu" and dtype not in CPU_DTYPES:
            parser.error(f"--dtype: expected {' or '.join(CPU_DTYPES)} on a CPU, got {dtype}")
    if reason := cuda_peers.missing(options.device):
        parser.error(reason)


def _measure(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[Run, int]:
    """Return a new run, as far as it came, and the exit code."""
    _check_device(parser, options)
    peers = _select_peers(parser, options)
    shapes = select_shapes(options)
    if not shapes:
        parser.error(f"--suite {options.suite or 'quick'} has no shape that matches")
    current = Run(machine.describe(options.threads, peers, options.device))
    print(report.heading(current.environment), end="\n\n")
    try:
        if options.suite:
            shapes = runner.drop_large(current, shapes, options.threads, options.device)
        effort = (options.threads, options.seconds, options.repeats, options.device)
        if options.suite == "regularised":
            runner.measure_regularised(current, shapes, *effort)
        else:
            runner.measure_shapes(current, shapes, peers, *effort)
        if options.suite == "train":
            some = [s for s in shapes if (s.cell, s.B, s.T, s.H) in LENGTHS]
            runner.measure_lengths(current, some, *effort)
    except KeyboardInterrupt:
        current.notes.append("Interrupted: the shapes that followed were not measured.")
        return current, 130
    except runner.DisagreementError as error:
        print(f"error: {error}", file=sys.stderr)
        return current, 1
    return current, 0


def _load(parser: argparse.ArgumentParser, path: Path) -> Run:
    try:
        finished = Run.load(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(f"--load: {path} is not a file that --json wrote: {error!r}")
    print(report.heading(finished.environment), end="\n\n")
    if finished.regularised:
        options = report.RegularisedTable([entry.shape for entry in finished.regularised])
        print(options.head())
        for entry in finished.regularised:
            print(options.rows(entry))
    else:
        shapes = [result.shape for result in finished.results]
        table = report.Table(shapes, finished.peers, finished.device)
        print(table.head())
        for result in finished.results:
            print(table.row(result))
    return finished


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return value


def _thread_count(text: str) -> int:
    threads = _positive_int(text)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > max(cpus, fastrnn.get_num_threads()):
        raise argparse.ArgumentTypeError(
            f"expected at most the {cpus} CPUs of this process, got {threads}"
        )
    return threads


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return value


def _output_path(text: str) -> Path:
    # Checked before the measurement, which may take an hour, not after it.
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"expected a writable file: {error}") from error
    if not existed:
        path.unlink()  # a command that fails later must not leave an empty file
    return path
