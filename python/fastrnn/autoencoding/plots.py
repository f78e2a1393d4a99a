"""Pictures of autoencoders."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["as_image", "latent", "reconstructions"]

_LEAST_IMAGE = 16  # features of a row that is taken for an image


def _figure(what: str, **options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"{what} needs matplotlib: pip install matplotlib") from None
    return Figure(layout="constrained", **options)


def as_image(row: Array, shape: tuple[int, int] | None) -> Array:
    """Return a row as an image (H, W) if it is one."""
    if row.ndim > 1:
        return row
    if shape is None:
        side = math.isqrt(row.size)
        return row.reshape(side, side) if side**2 == row.size >= _LEAST_IMAGE else row
    if not isinstance(shape, (tuple, list, np.ndarray)) or len(shape) != 2:
        raise ValueError(f"image_shape: expected (H, W), got {shape!r}")
    H, W = (functional.integer("image_shape", size, 1) for size in shape)
    if row.size != H * W:
        raise ValueError(f"image_shape: expected H·W = {row.size}, as X has features, got {shape}")
    return row.reshape(H, W)


def reconstructions(pairs: list[tuple[Array, Array]], path: str | os.PathLike[str] | None) -> Any:
    """Draw rows above their reconstructions.

    Parameters
    ----------
    pairs : list of pairs of ndarray (F,), (H, W) or (H, W, 3)
        Rows, curves or images, and what became of them.
    path : path or None
        Where to save the picture.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    figure = _figure("plot_reconstructions", figsize=(1.1 * max(len(pairs), 3), 2.6))
    if pairs[0][0].ndim == 1:
        for axes, pair in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            for curve, label in zip(pair, ("input", "reconstruction"), strict=True):
                axes.plot(curve, linewidth=1, label=label)
            axes.set(xticks=[], yticks=[])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    else:
        grid = figure.subplots(2, len(pairs), squeeze=False)
        for column, (original, made) in enumerate(pairs):
            limits = {"vmin": original.min(), "vmax": original.max(), "cmap": "gray"}
            for axes, image in zip(grid[:, column], (original, made), strict=True):
                axes.imshow(image, **limits)
                axes.set(xticks=[], yticks=[])
        grid[0, 0].set_ylabel("input")
        grid[1, 0].set_ylabel("output")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def latent(codes: Array, y: Any, path: str | os.PathLike[str] | None, ax: Any) -> Any:
    """Draw codes.

    Parameters
    ----------
    codes : ndarray (n, k)
        Codes.
    y : array (n,) or None
        Labels or numbers.
    path : path or None
        Where to save the picture.
    ax : matplotlib Axes or None
        Where to draw.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    labels = None if y is None else np.asarray(y)
    if labels is not None and labels.shape != (len(codes),):
        raise ValueError(f"y: expected labels ({len(codes)},), got {labels.shape}")
    if ax is None:
        ax = _figure("plot_latent", figsize=(5, 4)).subplots()
    names = "component 0", "component 1"
    if codes.shape[1] > 2:
        centred = codes - codes.mean(axis=0)
        codes = centred @ np.linalg.svd(centred, full_matrices=True)[2][:2].T
        names = "first principal axis", "second principal axis"
    elif codes.shape[1] == 1:
        codes = np.hstack([codes, np.zeros_like(codes)])
        names = "component 0", ""
    if labels is None:
        ax.scatter(*codes.T, s=6)
    elif labels.dtype.kind == "f":
        shown = ax.scatter(*codes.T, s=6, c=labels, cmap="viridis")
        ax.figure.colorbar(shown, ax=ax)
    else:
        if labels.dtype.kind == "O":  # of several types, perhaps, which have no order
            labels = np.array([str(label) for label in labels])
        values = np.unique(labels)
        for i, value in enumerate(values):
            own = codes[labels == value]
            ax.scatter(*own.T, s=6, color=f"C{i % 10}", label=str(value))
        if len(values) <= 20:
            ax.legend(loc="best", fontsize="small", markerscale=2)
    ax.set(xlabel=names[0], ylabel=names[1])
    if path is not None:
        ax.figure.savefig(path, dpi=150)
    return ax.figure
