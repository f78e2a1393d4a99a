"""The table, the lines around it and the progress bar, in plain text.

The table is Markdown: readable in a terminal, and what a document needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from fastrnn.bench.results import SUBJECT, Interval, Lengths, Regularised, Result, Run, groups
from fastrnn.bench.suites import PLAIN, REGULARISING, Shape, regularised_options

_TRAINING_STEP = (
    "A training step is forward and backward: gradients of the input and all parameters."
)


def heading(environment: dict[str, Any]) -> str:
    """Say which software ran where."""
    config = environment["config"]
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items())
    gpu = f"{environment['gpu']}, " if "gpu" in environment else ""
    return (
        f"fastrnn {config['version']} ({config['isa']}), {environment['threads']} thread(s), "
        f"{gpu}{environment['cpu']}, {environment['platform']}, {environment['date']}\n"
        f"Python {environment['python']}, {packages}"
    )


class _Columns:
    """Rows of a fixed width, so that each can be printed as soon as it is measured.

    Parameters
    ----------
    titles : sequence of str
        One for each column.
    widths : sequence of int
        Of the columns, in letters.
    left : int
        Number of columns, from the first, that are aligned to the left.
    """

    def __init__(self, titles: Sequence[str], widths: Sequence[int], left: int) -> None:
        self._titles = titles
        self._widths = widths
        self._left = left

    def head(self) -> str:
        """Titles and rule."""
        rule = [
            "-" * width if column < self._left else "-" * (width - 1) + ":"
            for column, width in enumerate(self._widths)
        ]
        return self._join(self._titles) + "\n" + self._join(rule)

    def _join(self, cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < self._left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"


class Table(_Columns):
    """One row for each shape.

    Parameters
    ----------
    shapes : sequence of Shape
        All that may come.
    peers : sequence of str
        One column of times for each.
    device : str
        Of a GPU neither roofs nor memory are measured.

    Training steps have a column more, for their memory.
    """

    def __init__(self, shapes: Sequence[Shape], peers: Sequence[str], device: str = "cpu") -> None:
        self._engines = [SUBJECT, *peers]
        titles = ["cell", "shape", *self._engines, "±", "ratio", "", "GFLOP/s"]
        widths = [4, _label_width(shapes), *(max(9, len(engine)) for engine in self._engines)]
        widths += [4, 21, 6, 7]
        self._roofs = device == "cpu"
        if self._roofs:
            titles += ["peak", "roof"]
            widths += [5, 5]
        self._memory = self._roofs and any(shape.train for shape in shapes)
        if self._memory:
            titles.append("memory")
            widths.append(6)
        super().__init__(titles, widths, left=2)

    def row(self, result: Result) -> str:
        """One measured shape."""
        times = [
            duration(result.time(engine).median) if engine in result.seconds else "-"
            for engine in self._engines
        ]
        ratio = result.ratio
        cells = [
            result.shape.cell.upper(),
            result.shape.label,
            *times,
            f"{result.time(SUBJECT).spread:.0%}",
            "-" if ratio is None else ratio_text(ratio),
            "slower" if ratio is not None and ratio.median < 1 else "",
            f"{result.flop_rate / 1e9:.1f}",
        ]
        if self._roofs:
            cells += [f"{result.peak_fraction:.1%}", f"{result.roof_fraction:.1%}"]
        if self._memory:
            cells.append("-" if result.memory is None else f"{result.memory.ratio:.2f}")
        return self._join(cells)


class RegularisedTable(_Columns):
    """One row for each layer that is compared with the plain one.

    Parameters
    ----------
    shapes : sequence of Shape
        All that may come.
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        names = [name for shape in shapes for name in regularised_options(shape.cell)]
        widths = [4, _label_width(shapes), max(map(len, names), default=7), 9, 4, 21]
        super().__init__(["cell", "shape", "options", SUBJECT, "±", "ratio"], widths, left=3)

    def rows(self, measured: Regularised) -> str:
        """All rows of one measured shape."""
        shape = measured.shape
        return "\n".join(
            self._join(
                [
                    shape.cell.upper(),
                    shape.label,
                    name,
                    duration(measured.time(name).median),
                    f"{measured.time(name).spread:.0%}",
                    "-" if name == PLAIN else ratio_text(measured.ratio(name)),
                ]
            )
            for name in measured.seconds
        )


def _label_width(shapes: Sequence[Shape]) -> int:
    return max((len(shape.label) for shape in shapes), default=0)


def summary(run: Run) -> str:
    """Explain the columns, and list groups, machine and what was left out."""
    lines = _regularised_explanation() if run.regularised else _explanation(run)
    summaries = groups(run.results)
    if summaries:
        width = max(len(group.name) for group in summaries)
        lines += ["", "Ratios to the fastest peer:"]
        lines += [
            f"  {group.name:{width}}  geometric mean {group.mean:.2f}, "
            f"lowest {group.worst:.2f} ({group.worst_label}), "
            f"slower on {group.losses} of {group.count}"
            for group in summaries
        ]
    if run.lengths:
        lines += ["", *_lengths(run.lengths)]
    if run.results:
        lines.append("")
    if any(result.peak for result in run.results):
        peak = Interval.of(peak / 1e9 for result in run.results for peak in result.peak)
        lines.append(
            f"FMA peak {peak.median:.0f} GFLOP/s, quartiles {peak.low:.0f} and {peak.high:.0f}."
        )
    if line := _largest_memory(run.results):
        lines.append(line)
    errors: dict[str, float] = {}
    for result in run.results:
        for peer, error in result.errors.items():
            errors[peer] = max(error, errors.get(peer, 0.0))
    if errors:
        listed = ", ".join(f"{peer} {error:.1e}" for peer, error in errors.items())
        what = "Outputs and gradients" if _trained(run) else "Outputs"
        lines.append(f"{what} agree; largest scaled difference: {listed}.")
    return "\n".join([*lines, *run.notes])


def _explanation(run: Run) -> list[str]:
    lines = [
        "Times are medians of interleaved rounds; ±: half the interquartile range of ours.",
        "ratio: the fastest peer's time / ours, with quartiles; above 1 where we are faster.",
    ]
    if run.device != "cpu":
        lines.append("fastrnn: its modules for torch, with tensors and weights on the GPU.")
        return [*lines, *([_TRAINING_STEP] if _trained(run) else [])]
    lines += [
        "peak: fraction of the FMA rate measured between rounds. roof: fraction of the roofline",
        "bound, that rate or, if slower, reading the weights from the cache they fit in.",
    ]
    if _trained(run):
        lines += [
            _TRAINING_STEP,
            "memory: the most that ours held, measured to about 0.1 MB / what must be kept: gates,",
            "cell states, outputs and gradients.",
        ]
    return lines


def _regularised_explanation() -> list[str]:
    return [
        "Times are medians of interleaved rounds; ±: half the interquartile range.",
        "ratio: time / the plain cell's time, with quartiles; above 1 where the option costs time.",
        _TRAINING_STEP,
        f"all: {', '.join(REGULARISING)} together.",
    ]


def _trained(run: Run) -> bool:
    return any(result.shape.train for result in run.results)


def _lengths(measured: Sequence[Lengths]) -> list[str]:
    names = [f"{entry.shape.cell.upper()} {entry.shape.label}" for entry in measured]
    width = max(map(len, names))
    return [
        "Our training step with rows of 1 to T steps, drawn uniformly:",
        *(
            f"  {name:{width}}  {ratio_text(entry.fraction)} of the padded time "
            f"for {entry.valid:.2f} of the steps"
            for name, entry in zip(names, measured, strict=True)
        ),
    ]


def _largest_memory(results: Sequence[Result]) -> str | None:
    measured = [(result.memory, result.shape) for result in results if result.memory]
    if not measured:
        return None
    largest, shape = max(measured, key=lambda pair: pair[0].ratio)
    median = Interval.of(memory.ratio for memory, _ in measured).median
    return (
        f"Memory: median {median:.2f} of what must be kept, largest {largest.ratio:.2f} "
        f"({shape.cell.upper()} {shape.label}: {largest.peak / 1e6:.3g} of "
        f"{largest.needed / 1e6:.3g} MB)."
    )


def duration(seconds: float) -> str:
    """Write three significant digits and a unit.

    Examples
    --------
    >>> duration(1.234e-6), duration(0.0567), duration(9.999e-4)
    ('1.23 µs', '56.7 ms', '1.00 ms')
    """
    unit, size = next(
        (unit, size)
        for unit, size in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0))
        if seconds < 999.5 * size or unit == "s"
    )
    value = seconds / size
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def ratio_text(ratio: Interval) -> str:
    """Write median and quartiles."""
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


class Progress:
    """A bar on the terminal's last line; silent where standard error is not a terminal.

    It is drawn between measurements only: a thread that refreshes it would disturb them.
    """

    _WIDTH = 30

    def __init__(self, total: int) -> None:
        self._total = total

    def show(self, done: int, label: str) -> None:
        """Draw how many are done, and the label of the one at work."""
        filled = self._WIDTH * done // self._total
        bar = "#" * filled + "-" * (self._WIDTH - filled)
        self._write(f"[{bar}] {done}/{self._total} {label}")

    def clear(self) -> None:
        """Make room for a line of output."""
        self._write("")

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
