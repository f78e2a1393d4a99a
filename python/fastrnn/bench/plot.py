"""The picture: time per shape, ours against each peer and against the roof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.bench.report import duration
from fastrnn.bench.results import SUBJECT, Result, Run

# Okabe and Ito's palette, which colour-blind readers can tell apart. Drawn in this order.
_STYLES = {
    "numpy": ("#999999", "D"),
    "onnxruntime": ("#009E73", "^"),
    "torch": ("#0072B2", "s"),
    SUBJECT: ("#D55E00", "o"),
}
_ROOF = "roof: FMA rate or weight reads"


def save(run: Run, path: Path) -> None:
    """Draw `run` and write it in the format that the file's name ends in.

    There is a column of panels for each cell and a row for each regime. Times span seven decades,
    so each is divided by its roof; ours is written beside it as it is.
    """
    # Without pyplot: no window system is touched and no global state is left behind.
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Result]] = {}
    for result in run.results:
        panels.setdefault((result.shape.regime, result.shape.cell), []).append(result)
    regimes = list(dict.fromkeys(regime for regime, _ in panels))
    cells = list(dict.fromkeys(cell for _, cell in panels))
    heights = [
        max(len(panel) for (other, _), panel in panels.items() if other == regime)
        for regime in regimes
    ]
    figure = Figure(
        figsize=(1 + 4.6 * len(cells), 1.2 + 0.8 * len(regimes) + 0.24 * sum(heights)),
        layout="constrained",
    )
    grid = figure.subplots(
        len(regimes),
        len(cells),
        sharex="row",
        squeeze=False,
        height_ratios=[height + 1.5 for height in heights],
    )
    handles: dict[str, Any] = {}
    for axes_row, regime in zip(grid, regimes, strict=True):
        for axes, cell in zip(axes_row, cells, strict=True):
            if (regime, cell) in panels:
                handles |= _panel(axes, panels[regime, cell])
                axes.set_title(f"{cell.upper()}, {regime}", fontsize=10)
            else:
                axes.set_axis_off()
    environment = run.environment
    config = environment["config"]
    figure.suptitle(
        f"fastrnn {config['version']}, {run.work}: time per call / roofline bound, "
        "less is better\n"
        f"{environment['cpu']} · {config['isa']} · {environment['threads']} thread(s)"
    )
    order = [name for name in (*reversed(_STYLES), _ROOF) if name in handles]
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside lower center",
        ncols=len(order),
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def _panel(axes: Any, results: list[Result]) -> dict[str, Any]:
    """Draw one row of dots for each result, and return what the legend names."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    handles = {_ROOF: axes.axvline(1.0, color="black")}
    for engine, (colour, marker) in _STYLES.items():
        places, multiples = [], []
        for place, result in enumerate(results):
            if engine in result.seconds:
                pairs = zip(result.seconds[engine], result.roof, strict=True)
                multiples.append(np.median([time / roof for time, roof in pairs]))
                places.append(place)
        if places:
            (handles[engine],) = axes.plot(
                multiples, places, marker, color=colour, markersize=5, alpha=0.9
            )
    for place, result in enumerate(results):
        axes.annotate(
            duration(result.time(SUBJECT).median),
            (1.01, place),
            xycoords=("axes fraction", "data"),
            color=_STYLES[SUBJECT][0],
            fontsize=8,
            verticalalignment="center",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda multiple, _: f"{multiple:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.set_yticks(range(len(results)), [result.shape.label for result in results])
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return handles
