"""Pictures of radial-basis-function networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os

    from fastrnn.rbf.units import Units

__all__ = ["draw_activations"]


def draw_activations(
    units: Units, path: str | os.PathLike[str] | None, ax: Any, resolution: int
) -> Any:
    """Draw what units of one or two features answer, and return the figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot_activations needs matplotlib: pip install matplotlib") from None
    if ax is None:
        ax = Figure(figsize=(5, 3.6), layout="constrained").subplots()
    low, high = units.centers.min(axis=0), units.centers.max(axis=0)
    margin = 0.15 * (high - low) + 0.1 * float(units.widths.mean())
    limits = zip(low - margin, high + margin, strict=True)
    axes = [np.linspace(a, b, resolution) for a, b in limits]
    if len(axes) == 1:
        ax.plot(axes[0], units(axes[0][:, np.newaxis]), linewidth=1)
        ax.plot(units.centers[:, 0], np.zeros(len(units)), "k|")
        ax.set(xlabel="x", ylabel="activation")
    else:
        grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
        largest = units(grid).max(axis=1).reshape(resolution, resolution)
        shown = ax.pcolormesh(*axes, largest, shading="nearest", cmap="viridis")
        ax.figure.colorbar(shown, ax=ax, label="largest activation")
        ax.plot(*units.centers.T, "w.", markersize=4)
        ax.set(xlabel="first feature", ylabel="second feature")
    if path is not None:
        ax.figure.savefig(path, dpi=150)
    return ax.figure
