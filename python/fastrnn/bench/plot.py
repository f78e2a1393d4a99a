"""The picture: time per shape, ours against each peer and against the roof."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastrnn.bench.report import duration
from fastrnn.bench.results import SUBJECT, Run

# Okabe and Ito's palette, which colour-blind readers can tell apart; drawn in this order, ours on top.
_STYLES = {
    "numpy": ("#999999", "D"),
    "onnxruntime": ("#009E73", "^"),
    "torch": ("#0072B2", "s"),
    SUBJECT: ("#D55E00", "o"),
}


def save(run: Run, path: Path) -> None:
    """Draw one panel per cell and write it in the format that the file's name ends in."""
    # Without pyplot: no window system is touched and no global state is left behind.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    cells = list(dict.fromkeys(result.shape.cell for result in run.results))
    panels = [[r for r in run.results if r.shape.cell == cell] for cell in cells]
    rows = max(len(panel) for panel in panels)
    figure = Figure(figsize=(1 + 4.5 * len(panels), 1.8 + 0.25 * rows), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    handles = {}
    for axes, cell, panel in zip(grid, cells, panels, strict=True):
        places = np.arange(len(panel))
        roof = [np.median(result.roof) for result in panel]
        times = {
            engine: np.array(
                [
                    result.time(engine).median if engine in result.seconds else np.nan
                    for result in panel
                ]
            )
            for engine in _STYLES
            if any(engine in result.seconds for result in panel)
        }
        axes.hlines(places, roof, np.nanmax(list(times.values()), axis=0), color="0.85", zorder=0)
        (handles["roof (FMA rate or weight reads)"],) = axes.plot(
            roof, places, "|", color="black", markersize=10, markeredgewidth=1.5
        )
        for engine, values in times.items():
            colour, marker = _STYLES[engine]
            (handles[engine],) = axes.plot(
                values, places, marker, color=colour, markersize=5, alpha=0.9
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(places, [result.shape.label for result in panel], fontsize=8)
        axes.set_ylim(len(panel) - 0.4, -0.6)
        axes.grid(axis="x", color="0.93")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(cell.upper())
        axes.set_xlabel("time per call")
    environment = run.environment
    config = environment["config"]
    figure.suptitle(
        f"fastrnn {config['version']}, forward · {environment['cpu']} · {config['isa']} · "
        f"{environment['threads']} thread(s)"
    )
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False
    )
    figure.savefig(path, dpi=150)
