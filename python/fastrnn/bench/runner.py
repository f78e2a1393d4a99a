"""One run: for each shape, check that the engines agree, time them, print the row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastrnn import functional
from fastrnn.bench import machine, report
from fastrnn.bench.peers import PEERS, Candidate, FastRNN, Peer
from fastrnn.bench.problem import Problem, scaled_error
from fastrnn.bench.results import Result, Run
from fastrnn.bench.suites import Shape
from fastrnn.bench.timing import measure

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
"""Scaled difference from which on outputs count as different.

Wide enough for approximate activations; a wrong gate order, state or bias is far above.
"""

_PROBE_SECONDS = 0.01
# In a first-level cache everywhere; what is smaller is there too, but would time the probe's loop.
_LEAST_BLOCK = 32768
_LONGEST_CALL = 0.5  # s, at the FMA peak; longer ones would make a suite take hours


class DisagreementError(Exception):
    """A peer computed something else than fastrnn."""


def drop_large(run: Run, shapes: Sequence[Shape], threads: int) -> list[Shape]:
    """Leave out shapes that this machine is too slow or too small for, and note which."""
    peak = functional.fma_peak("float32", threads, 10 * _PROBE_SECONDS)
    memory = machine.memory_bytes()
    kept = []
    for shape in shapes:
        seconds, size = shape.flops / peak, shape.bytes_held
        if seconds > _LONGEST_CALL:
            reason = f"{seconds:.1f} s per call even at the FMA peak"
        elif size > memory / 4:
            reason = f"every engine needs about {size / 1e9:.0f} of {memory / 1e9:.0f} GB memory"
        else:
            kept.append(shape)
            continue
        run.notes.append(f"Skipped {shape.cell.upper()} {shape.label}: {reason}.")
    return kept


def measure_shapes(
    run: Run,
    shapes: Sequence[Shape],
    peers: Sequence[str],
    threads: int,
    seconds: float,
    repeats: int,
) -> None:
    """Measure `shapes` and add them to `run`.

    Parameters
    ----------
    run : Run
        Gets each result as soon as it is there, so that it is of use after an interrupt.
    shapes : sequence of Shape
        At least one.
    peers : sequence of str
        Keys of `PEERS`.
    threads : int
        For every engine.
    seconds, repeats : float, int
        See `fastrnn.bench.timing.measure`.

    Raises
    ------
    DisagreementError
        Before the shape is timed.
    """
    engines = [FastRNN(threads), *(PEERS[name](threads) for name in peers)]
    table = report.Table(shapes, peers)
    progress = report.Progress(len(shapes))
    print(table.head())
    try:
        for done, shape in enumerate(shapes):
            progress.show(done, f"{shape.cell.upper()} {shape.label}")
            able = []
            for engine in engines:
                if reason := engine.unsupported(shape):
                    note = f"No times of {engine.name}: {reason}."
                    run.notes += [note] if note not in run.notes else []
                else:
                    able.append(engine)
            result = _measure_shape(shape, able, threads, seconds, repeats)
            run.results.append(result)
            progress.clear()
            print(table.row(result), flush=True)
    finally:
        progress.clear()


def _measure_shape(
    shape: Shape, engines: Sequence[Peer], threads: int, seconds: float, repeats: int
) -> Result:
    problem = Problem.create(shape)
    candidates = [engine.candidate(problem) for engine in engines]
    errors = _check_agreement(shape, candidates)
    block = max(_LEAST_BLOCK, shape.bytes_reused // threads)
    probes = {
        "peak": partial(functional.fma_peak, shape.dtype, threads, _PROBE_SECONDS),
        "bandwidth": partial(functional.read_bandwidth, block, threads, _PROBE_SECONDS),
    }
    measured = measure(candidates, probes, seconds, repeats)
    return Result(shape, measured.seconds, measured.calls, errors, **measured.probes)


def _check_agreement(shape: Shape, candidates: Sequence[Candidate]) -> dict[str, float]:
    """Scaled difference of every peer from the first candidate, which is fastrnn."""
    subject, *peers = candidates
    expected = subject.result()
    errors = {peer.name: scaled_error(peer.result(), expected) for peer in peers}
    for name, error in errors.items():
        # Written so that NaN counts as different.
        if not error <= TOLERANCE[shape.dtype]:
            raise DisagreementError(
                f"{shape.cell.upper()} {shape.label}: outputs of {name} and fastrnn differ by "
                f"{error:.1e} (scaled), more than {TOLERANCE[shape.dtype]:.0e}"
            )
    return errors
