"""One run: for each shape, check that the engines agree, time them, print the row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fastrnn import functional
from fastrnn.bench import cuda_peers, machine, memory, report
from fastrnn.bench.cuda_peers import PEERS_ON, SUBJECTS
from fastrnn.bench.peers import Candidate, Peer
from fastrnn.bench.problem import Problem, scaled_error
from fastrnn.bench.results import Lengths, Memory, Regularised, Result, Run
from fastrnn.bench.suites import Shape, regularised_options
from fastrnn.bench.timing import measure

TOLERANCE = {"float32": 1e-4, "float64": 1e-10, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 0.1}
"""Scaled difference from which on results count as different.

Wide enough for approximate activations, and for gradients that are sums over T·B rows: those of the
training suite are within 6e-6 of PyTorch's in float32. Types of fewer bits have some thirty times
their unit of rounding. A wrong gate order, state or bias is far above.
"""

_PROBE_SECONDS = 0.01
# In a first-level cache everywhere; what is smaller is there too, but would time the probe's loop.
_LEAST_BLOCK = 32768
_LONGEST_CALL = 0.5  # s, forward at the FMA peak; longer ones would make a suite take hours


class DisagreementError(Exception):
    """A peer computed something else than fastrnn."""


def drop_large(run: Run, shapes: Sequence[Shape], threads: int, device: str = "cpu") -> list[Shape]:
    """Leave out shapes that this machine is too slow or too small for, and note which."""
    if device == "cpu":
        peak = functional.fma_peak("float32", threads, 10 * _PROBE_SECONDS)
        available = machine.memory_bytes()
    else:
        peak, available = float("inf"), cuda_peers.memory_bytes()
    kept = []
    for shape in shapes:
        seconds, size = shape.flops / peak, shape.bytes_held
        if shape.forward_flops / peak > _LONGEST_CALL:
            reason = f"{seconds:.1f} s per call even at the FMA peak"
        elif size > available / 4:
            reason = f"every engine needs about {size / 1e9:.0f} of {available / 1e9:.0f} GB memory"
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
    device: str = "cpu",
) -> None:
    """Measure `shapes` and add them to `run`.

    Parameters
    ----------
    run : Run
        Gets each result as soon as it is there, so that it is of use after an interrupt.
    shapes : sequence of Shape
        At least one.
    peers : sequence of str
        Keys of `PEERS_ON[device]`.
    threads : int
        For every engine.
    seconds, repeats : float, int
        See `fastrnn.bench.timing.measure`.
    device : str
        Of every engine.

    Raises
    ------
    DisagreementError
        Before the shape is timed.
    """
    engines: list[Peer] = [SUBJECTS[device](threads)]
    for engine in [PEERS_ON[device][name](threads) for name in peers]:
        reasons = [engine.unsupported(shape) for shape in shapes]
        for reason in filter(None, reasons):
            run.note(f"No times of {engine.name}: {reason}.")
        if None in reasons:
            engines.append(engine)
    table = report.Table(shapes, [engine.name for engine in engines[1:]], device)
    progress = report.Progress(len(shapes))
    print(table.head())
    try:
        for done, shape in enumerate(shapes):
            progress.show(done, f"{shape.cell.upper()} {shape.label}")
            able = [engine for engine in engines if engine.unsupported(shape) is None]
            result = _measure_shape(shape, able, threads, seconds, repeats, device)
            if shape.train and device == "cpu":
                result = dataclasses.replace(result, memory=_measure_memory(run, shape, threads))
            run.results.append(result)
            progress.clear()
            print(table.row(result), flush=True)
    finally:
        progress.clear()


def _measure_shape(
    shape: Shape,
    engines: Sequence[Peer],
    threads: int,
    seconds: float,
    repeats: int,
    device: str,
) -> Result:
    problem = Problem.create(shape)
    candidates = [engine.candidate(problem) for engine in engines]
    errors = _check_agreement(shape, candidates)
    probes = _probes(shape, threads) if device == "cpu" else {}
    measured = measure(candidates, probes, seconds, repeats)
    peak, bandwidth = (measured.probes.get(name, []) for name in ("peak", "bandwidth"))
    return Result(shape, measured.seconds, measured.calls, errors, peak, bandwidth)


def _probes(shape: Shape, threads: int) -> dict[str, Callable[[], float]]:
    block = max(_LEAST_BLOCK, shape.bytes_reused // threads)
    return {
        "peak": partial(functional.fma_peak, shape.dtype, threads, _PROBE_SECONDS),
        "bandwidth": partial(functional.read_bandwidth, block, threads, _PROBE_SECONDS),
    }


def _measure_memory(run: Run, shape: Shape, threads: int) -> Memory | None:
    try:
        return Memory(memory.peak_bytes(shape, threads), shape.bytes_needed)
    except memory.UnavailableError as error:
        run.note(f"No memory of training steps: {error}.")
        return None


def measure_lengths(
    run: Run,
    shapes: Sequence[Shape],
    threads: int,
    seconds: float,
    repeats: int,
    device: str = "cpu",
) -> None:
    """Measure what our training step gains from rows of different lengths, and add it to `run`.

    Their lengths are drawn uniformly from 1 to T; the other candidate is the same call without
    them. The parameters are those of `measure_shapes`.
    """
    engine = SUBJECTS[device](threads)
    progress = report.Progress(len(shapes))
    try:
        for done, shape in enumerate(shapes):
            progress.show(done, f"lengths of {shape.cell.upper()} {shape.label}")
            problem = Problem.create(shape)
            lengths = np.random.default_rng(0).integers(1, shape.T, shape.B, endpoint=True)
            candidates = [
                dataclasses.replace(engine.training_step(problem, lengths), name="ragged"),
                dataclasses.replace(engine.training_step(problem), name="padded"),
            ]
            measured = measure(candidates, {}, seconds, repeats)
            valid = float(lengths.mean()) / shape.T
            run.lengths.append(Lengths(shape, valid, **measured.seconds))
    finally:
        progress.clear()


def measure_regularised(
    run: Run,
    shapes: Sequence[Shape],
    threads: int,
    seconds: float,
    repeats: int,
    device: str = "cpu",
) -> None:
    """Measure what regularising options add to our training step, and add it to `run`.

    All layers of a shape take turns with the plain one. The parameters are those of
    `measure_shapes`.
    """
    run.note(
        "No times of peers: torch has no such cells, numpy and onnxruntime have the forward pass "
        "only."
    )
    engine = SUBJECTS[device](threads)
    table = report.RegularisedTable(shapes)
    progress = report.Progress(len(shapes))
    print(table.head())
    try:
        for done, shape in enumerate(shapes):
            progress.show(done, f"options of {shape.cell.upper()} {shape.label}")
            problem = Problem.create(shape)
            candidates = [
                dataclasses.replace(engine.regularised_step(problem, options), name=name)
                for name, options in regularised_options(shape.cell).items()
            ]
            measured = measure(candidates, {}, seconds, repeats)
            entry = Regularised(shape, measured.seconds)
            run.regularised.append(entry)
            progress.clear()
            print(table.rows(entry), flush=True)
    finally:
        progress.clear()


def _check_agreement(shape: Shape, candidates: Sequence[Candidate]) -> dict[str, float]:
    """Scaled difference of every peer from the first candidate, which is fastrnn."""
    subject, *peers = candidates
    expected = subject.result()
    errors = {peer.name: scaled_error(peer.result(), expected) for peer in peers}
    for name, error in errors.items():
        # Written so that NaN counts as different.
        if not error <= TOLERANCE[shape.dtype]:
            raise DisagreementError(
                f"{shape.cell.upper()} {shape.label}: results of {name} and fastrnn differ by "
                f"{error:.1e} (scaled), more than {TOLERANCE[shape.dtype]:.0e}"
            )
    return errors
