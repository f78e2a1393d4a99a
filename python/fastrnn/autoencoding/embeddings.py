"""Embeddings that a latent space can be pulled to.

Letters: n rows, F features, k components.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional
from fastrnn.rbf.centers import distances

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["EMBEDDINGS", "embed"]

EMBEDDINGS = ("diffusion", "pca")
_LANDMARKS = 2000  # rows whose distances are all computed
_NEIGHBOURS = 10
_BLOCK = 1000  # rows whose distances to landmarks are computed at a time


def embed(embedding: Any, X: Array, k: int, generator: np.random.Generator) -> Array:
    """Return the embedding (n, k) of rows, with mean 0 and mean variance 1.

    Parameters
    ----------
    embedding : {"diffusion", "pca"}, array (n, k), or object with ``fit_transform``
        What to embed with.
    X : ndarray (n, F)
        Rows.
    k : int
        Components.
    generator : numpy.random.Generator
        Source of randomness.
    """
    if isinstance(embedding, str):
        name = functional.choice("embedding", embedding, EMBEDDINGS)
        found = principal_axes(X, k) if name == "pca" else diffusion_map(X, k, generator)
    else:
        made = embedding
        if hasattr(embedding, "fit_transform"):
            made = copy.deepcopy(embedding).fit_transform(X)
        elif embedding is None:
            raise ValueError(
                f"embedding: expected one of {', '.join(EMBEDDINGS)}, numbers ({len(X)}, {k}) or an"
                " object with fit_transform, got None"
            )
        found = np.asarray(functional.listed("embedding", f"numbers ({len(X)}, {k})", made))
        if found.dtype.kind not in "iuf" or found.shape != (len(X), k):
            raise ValueError(
                f"embedding: expected numbers ({len(X)}, {k}), got {found.shape} {found.dtype}"
            )
        found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise ValueError("embedding: expected finite numbers, got others")
    found = found / (np.abs(found).max(initial=0) or 1.0)  # or squares could be too large
    found = found - found.mean(axis=0)
    scale = float(np.sqrt((found**2).mean()))
    return np.asarray(found / scale if scale > 0 else found)


def principal_axes(X: Array, k: int) -> Array:
    """Return the first k principal components of rows, 0 for more than there are.

    Examples
    --------
    >>> principal_axes(np.array([[0.0, 0.0], [2.0, 0.0]]), 2).round(9).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    centred = X - X.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :k]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    found = np.zeros((len(X), k))
    found[:, : axes.shape[1]] = centred @ axes
    return found


def diffusion_map(X: Array, k: int, generator: np.random.Generator) -> Array:
    """Return the first k coordinates of the diffusion map [1]_ of rows.

    Affinities are gaussian, of the width that the 10th neighbours of both rows have [2]_, and
    divided by the densities, so that these do not matter. Of more than 2000 rows so many are drawn,
    and the others get the mean of their neighbours, weighted by affinity (Nyström).

    References
    ----------
    .. [1] R. R. Coifman, S. Lafon. Diffusion maps. Applied and Computational Harmonic Analysis 21
           (2006).
    .. [2] L. Zelnik-Manor, P. Perona. Self-tuning spectral clustering. NIPS 2004.
    """
    n = len(X)
    chosen = np.arange(n)
    if n > _LANDMARKS:
        chosen = np.sort(generator.choice(n, _LANDMARKS, replace=False))
    landmarks = X[chosen]
    m = len(landmarks)
    found = np.zeros((n, k))
    if m < 3:
        return found
    near = min(_NEIGHBOURS, m - 1)
    q = distances(landmarks, landmarks)
    widths = np.sqrt(np.partition(q, near, axis=1)[:, near])
    widths[widths == 0] = widths[widths > 0].mean() if np.any(widths) else 1.0
    affinity = np.exp(-q / np.outer(widths, widths))
    density = affinity.sum(axis=1)
    affinity /= np.outer(density, density)
    degree = affinity.sum(axis=1)
    root = np.sqrt(degree)
    values, vectors = np.linalg.eigh(affinity / np.outer(root, root))
    # The first is constant.
    count = min(k, m - 1)
    values, vectors = values[::-1][1 : count + 1], vectors[:, ::-1][:, 1 : count + 1]
    coordinates = vectors / root[:, np.newaxis]
    # The sign of an eigenvector is arbitrary: its largest element is above 0.
    coordinates *= np.sign(coordinates[np.abs(coordinates).argmax(axis=0), np.arange(count)])
    coordinates = coordinates / coordinates.std(axis=0) * values
    found[chosen, :count] = coordinates
    others = np.setdiff1d(np.arange(n), chosen)
    for start in range(0, len(others), _BLOCK):
        part = others[start : start + _BLOCK]
        q = distances(X[part], landmarks)
        own = np.sqrt(np.partition(q, near - 1, axis=1)[:, near - 1])
        own[own == 0] = widths.mean()
        weights = np.exp(-q / (own[:, np.newaxis] * widths)) / density
        weights /= weights.sum(axis=1, keepdims=True)
        found[part, :count] = weights @ coordinates / values
    return found
