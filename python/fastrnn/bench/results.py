"""What was measured, the numbers that are derived from it, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

from fastrnn.bench.suites import PLAIN, Shape

SUBJECT = "fastrnn"


@dataclass(frozen=True)
class Interval:
    """Median and quartiles of the rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        """Summarise at least one value."""
        low, median, high = np.quantile(list(values), (0.25, 0.5, 0.75))
        return cls(float(low), float(median), float(high))

    @property
    def spread(self) -> float:
        """Half the interquartile range, relative to the median."""
        return (self.high - self.low) / (2 * self.median)


@dataclass(frozen=True)
class Memory:
    """Peak memory of our training step, and ``shape.bytes_needed``, in bytes."""

    peak: int
    needed: int

    @property
    def ratio(self) -> float:
        """Peak / needed."""
        return self.peak / self.needed


@dataclass(frozen=True)
class Result:
    """The rounds of one shape. Every list has one value per round.

    Attributes
    ----------
    shape : Shape
        What was run.
    seconds : dict of str to list of float
        Seconds per call of `SUBJECT` and its peers.
    calls : dict of str to int
        Calls behind each value in ``seconds``.
    errors : dict of str to float
        Largest scaled difference between each peer's outputs and ours.
    peak : list of float
        Measured FMA rate of the machine, FLOP/s; none of a GPU.
    bandwidth : list of float
        Measured rate of reading ``shape.bytes_reused`` again and again, B/s; likewise.
    memory : Memory or None
        Of a training step, where it could be measured.
    """

    shape: Shape
    seconds: dict[str, list[float]]
    calls: dict[str, int]
    errors: dict[str, float]
    peak: list[float]
    bandwidth: list[float]
    memory: Memory | None = None

    def time(self, engine: str) -> Interval:
        """Seconds per call."""
        return Interval.of(self.seconds[engine])

    @property
    def best_peer(self) -> str | None:
        """The peer with the shortest median time."""
        peers = [engine for engine in self.seconds if engine != SUBJECT]
        return min(peers, key=lambda peer: self.time(peer).median, default=None)

    @property
    def ratio(self) -> Interval | None:
        """Best peer's time / our time, above 1 where we are faster; None without a peer."""
        if self.best_peer is None:
            return None
        pairs = zip(self.seconds[self.best_peer], self.seconds[SUBJECT], strict=True)
        return Interval.of(theirs / ours for theirs, ours in pairs)

    @property
    def flop_rate(self) -> float:
        """FLOP/s."""
        return self.shape.flops / self.time(SUBJECT).median

    @property
    def peak_fraction(self) -> float:
        """Our FLOP rate / the FMA rate of the same round."""
        pairs = zip(self.seconds[SUBJECT], self.peak, strict=True)
        return Interval.of(self.shape.flops / (time * peak) for time, peak in pairs).median

    @property
    def roof(self) -> list[float]:
        """Least seconds of a call: its arithmetic at the FMA rate, or reading its weights.

        This is the roofline bound of Williams, Waterman and Patterson (2009). Activations, thread
        synchronisation and the Python call are not in it.
        """
        return [
            max(self.shape.flops / peak, self.shape.bytes_read / bandwidth)
            for peak, bandwidth in zip(self.peak, self.bandwidth, strict=True)
        ]

    @property
    def roof_fraction(self) -> float:
        """Roof / our time."""
        pairs = zip(self.roof, self.seconds[SUBJECT], strict=True)
        return Interval.of(roof / time for roof, time in pairs).median


@dataclass(frozen=True)
class Group:
    """Ratios of the shapes that share cell and regime."""

    name: str
    count: int
    losses: int
    worst: float
    worst_label: str
    mean: float
    """Geometric."""


def groups(results: Iterable[Result]) -> list[Group]:
    """Summarise the results that have a ratio, in order of first appearance."""
    members: dict[str, list[tuple[float, str]]] = {}
    for result in results:
        if result.ratio is not None:
            entry = (result.ratio.median, result.shape.label)
            name = f"{result.shape.cell.upper()} {result.shape.regime}"
            members.setdefault(name, []).append(entry)
    return [
        Group(
            name,
            len(entries),
            sum(ratio < 1 for ratio, _ in entries),
            *min(entries),
            geometric_mean(ratio for ratio, _ in entries),
        )
        for name, entries in members.items()
    ]


@dataclass(frozen=True)
class Lengths:
    """Our training step with rows of different lengths against rows that all have T steps.

    Attributes
    ----------
    shape : Shape
        What was run.
    valid : float
        Steps of the rows / T·B, in the call with lengths.
    ragged, padded : list of float
        Seconds per call with lengths and without, one value per round.
    """

    shape: Shape
    valid: float
    ragged: list[float]
    padded: list[float]

    @property
    def fraction(self) -> Interval:
        """Time with lengths / time without, round by round."""
        return Interval.of(
            ragged / padded for ragged, padded in zip(self.ragged, self.padded, strict=True)
        )


@dataclass(frozen=True)
class Regularised:
    """Our training step with regularising options against the plain cell's.

    Attributes
    ----------
    shape : Shape
        What was run.
    seconds : dict of str to list of float
        Seconds per call by the names of `regularised_options`, one value per round.
    """

    shape: Shape
    seconds: dict[str, list[float]]

    def time(self, name: str) -> Interval:
        """Seconds per call."""
        return Interval.of(self.seconds[name])

    def ratio(self, name: str) -> Interval:
        """Time with these options / time of the plain cell, round by round."""
        pairs = zip(self.seconds[name], self.seconds[PLAIN], strict=True)
        return Interval.of(seconds / plain for seconds, plain in pairs)


@dataclass
class Run:
    """Everything that a run of the benchmark leaves behind.

    Attributes
    ----------
    environment : dict
        Machine, versions, threads and date.
    results : list of Result
        In the order of measuring.
    notes : list of str
        What was left out, and why.
    lengths : list of Lengths
        Of the training suite.
    regularised : list of Regularised
        Of the suite of that name, which has nothing else.
    """

    environment: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lengths: list[Lengths] = field(default_factory=list)
    regularised: list[Regularised] = field(default_factory=list)

    @property
    def peers(self) -> list[str]:
        """Every peer that has a result."""
        engines = dict.fromkeys(engine for result in self.results for engine in result.seconds)
        return [engine for engine in engines if engine != SUBJECT]

    @property
    def device(self) -> str:
        """What was measured on; files from before there was a choice do not say."""
        return str(self.environment.get("device", "cpu"))

    @property
    def work(self) -> str:
        """What was timed, in words."""
        kinds = {result.shape.train for result in self.results}
        names = [name for train, name in ((False, "forward"), (True, "training")) if train in kinds]
        return " and ".join(names)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def save(self, path: Path) -> None:
        """Write all of it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what `save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        results = [Result(**_with_objects(entry)) for entry in data["results"]]
        # Files from before these were measured have none.
        lengths = [Lengths(**_with_objects(entry)) for entry in data.get("lengths", [])]
        regularised = [Regularised(**_with_objects(entry)) for entry in data.get("regularised", [])]
        return cls(data["environment"], results, data["notes"], lengths, regularised)


def _with_objects(entry: dict[str, Any]) -> dict[str, Any]:
    memory = {"memory": Memory(**entry["memory"])} if entry.get("memory") else {}
    return {**entry, "shape": Shape(**entry["shape"]), **memory}
