"""Interleaved measurement: every candidate takes its turn in every round.

A machine's speed drifts by several percent within seconds (clock, neighbours), so candidates that
are timed one after the other cannot be compared. In rounds A B C, A B C, … each ratio is taken
within one round, where the drift is common to both sides.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

from fastrnn.bench.peers import Candidate

MIN_ROUNDS = 3
_SETTLE_SLICE = 0.012  # s; longer than the 10 ms tick in which some kernels account processor time
_SETTLE_LIMIT = 1.0  # s
_WARM = 0.01  # s


@dataclass(frozen=True)
class Measurement:
    """What one shape's rounds gave.

    Attributes
    ----------
    seconds : dict of str to list of float
        Seconds per call of every candidate, one value per round.
    calls : dict of str to int
        Calls in each of those values.
    probes : dict of str to list of float
        What each probe returned, one value per round.
    """

    seconds: dict[str, list[float]]
    calls: dict[str, int]
    probes: dict[str, list[float]]


def settle() -> None:
    """Sleep until no thread of this process uses a processor.

    Thread pools busy-wait for more work after a call: about 10 ms in libgomp, 35 ms in ONNX Runtime
    and 100 ms in OpenBLAS were seen. A core that still spins for the previous candidate is missing
    for the next one, which would then look slower than it is when used alone.
    """
    deadline = time.perf_counter() + _SETTLE_LIMIT
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(_SETTLE_SLICE)
        if time.process_time() - before < _SETTLE_SLICE / 6:
            return


def warm(candidate: Candidate) -> None:
    """Call at least once, and for a few milliseconds.

    This refills the caches and wakes the threads. The scheduler may wake two threads on one core
    and part them a tick or more later: calls of 60 µs were seen to take 4 ms to 90 ms until then.
    """
    deadline = time.perf_counter() + _WARM
    time_calls(candidate, 1)
    while time.perf_counter() < deadline:
        time_calls(candidate, 1)


def time_calls(candidate: Candidate, count: int) -> float:
    """Seconds for `count` calls in a row, until what they queued is done."""
    call, turns = candidate.call, repeat(None, count)
    start = time.perf_counter()
    for _ in turns:
        call()
    if candidate.wait is not None:
        candidate.wait()
    return time.perf_counter() - start


def calibrate(candidate: Candidate, batch: float) -> tuple[int, float]:
    """How many calls fill `batch` seconds, at least one, and the seconds that they take."""
    settle()
    with candidate.context():
        warm(candidate)
        count = 1
        while (elapsed := time_calls(candidate, count)) < batch / 4:
            count *= 2
    calls = max(1, round(count * batch / elapsed))
    return calls, elapsed * calls / count


def measure(
    candidates: Sequence[Candidate],
    probes: Mapping[str, Callable[[], float]],
    seconds: float,
    repeats: int,
) -> Measurement:
    """Time all candidates in rounds.

    Parameters
    ----------
    candidates : sequence of Candidate
        In the order of their turns.
    probes : mapping of str to callable
        Measurements of the machine itself, in every round: their values are kept.
    seconds : float
        Timed seconds for each candidate, shared out evenly over the rounds.
    repeats : int
        Number of rounds. Where single calls take longer than their share, there are fewer, but not
        less than `MIN_ROUNDS`.
    """
    batch = seconds / repeats
    calls: dict[str, int] = {}
    round_seconds = 0.0
    for candidate in candidates:
        calls[candidate.name], batch_seconds = calibrate(candidate, batch)
        round_seconds += batch_seconds
    affordable = math.ceil(seconds * len(candidates) / round_seconds)
    rounds = min(repeats, max(affordable, MIN_ROUNDS))

    measured: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    probed: dict[str, list[float]] = {name: [] for name in probes}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for candidate in candidates:
                count = calls[candidate.name]
                settle()
                with candidate.context():
                    warm(candidate)
                    measured[candidate.name].append(time_calls(candidate, count) / count)
            for name, probe in probes.items():
                settle()
                probe()  # warms up, as above
                probed[name].append(probe())
    finally:
        if collecting:
            gc.enable()
    return Measurement(measured, calls, probed)
