"""Where the units of a radial-basis-function network are, and how wide.

All functions take rows that differ from each other and their weights > 0.

Letters: n rows, D features, M centres, k outputs.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from fastrnn.rbf.units import Units, row_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Indices = NDArray[np.intp]
    Rng = np.random.Generator

__all__ = [
    "RULES",
    "cluster",
    "distances",
    "draw",
    "select_greedily",
    "select_orthogonally",
    "split",
    "warn_of_collapse",
    "width_rule",
]

RULES = ("mean", "nearest", "dmax")
_ROUNDS = 100  # of Lloyd's algorithm
_ROUNDING = 1e-13  # of errors, in relation to targets
_CANDIDATES = 1 << 25  # elements of the matrix that orthogonal least squares works on, 256 MB


def distances(A: Array, B: Array) -> Array:
    """Return the squared distances (n, M) of rows (n, D) to others (M, D).

    Examples
    --------
    >>> distances(np.array([[0.0], [3.0]]), np.array([[1.0]])).tolist()
    [[1.0], [4.0]]
    """
    return Units(B, np.ones(len(B)), "linear").squared_distances(A)


def _nearest(X: Array, centers: Array) -> tuple[Indices, Array]:
    """Return which centre is nearest to each row, and the square of its distance."""
    units = Units(centers, np.ones(len(centers)), "gaussian")
    labels, squares = np.empty(len(X), np.intp), np.empty(len(X))
    for rows in row_blocks(len(X), len(centers)):
        q = units.squared_distances(X[rows])
        labels[rows] = q.argmin(axis=1)
        squares[rows] = q[np.arange(len(q)), labels[rows]]
    return labels, squares


def draw(X: Array, weights: Array, M: int, generator: Rng) -> Array:
    """Draw M of the rows, with probabilities in proportion to their weights."""
    # The largest of u^(1/w) are such a draw (Efraimidis & Spirakis 2006).
    keys = np.log(generator.random(len(X))) / weights
    return X[np.sort(np.argsort(-keys, kind="stable")[:M])]


def _seeds(X: Array, weights: Array, M: int, generator: Rng) -> Array:
    """Draw centres that are far from each other: k-means++, with the best of some tries."""
    tries = 2 + int(math.log(M))
    cumulated = np.cumsum(weights)
    first = np.searchsorted(cumulated, generator.random() * cumulated[-1], side="right")
    chosen = [min(int(first), len(X) - 1)]
    squared = (X**2).sum(axis=1)

    def to_rows(candidates: Indices) -> Array:
        q: Array = squared[candidates, np.newaxis] - 2 * X[candidates] @ X.T + squared
        q[np.arange(len(candidates)), candidates] = 0
        return np.maximum(q, 0, out=q)

    nearest = to_rows(np.array(chosen))[0]
    for _ in range(M - 1):
        cumulated = np.cumsum(weights * nearest)
        if not cumulated[-1] > 0:
            break
        drawn = np.searchsorted(cumulated, generator.random(tries) * cumulated[-1], side="right")
        candidates = np.minimum(drawn, len(X) - 1)
        q = np.minimum(to_rows(candidates), nearest)
        best = int((q @ weights).argmin())
        chosen.append(int(candidates[best]))
        nearest = q[best]
    return X[chosen]


def cluster(X: Array, weights: Array, M: int, generator: Rng) -> Array:
    """Return the M centres of k-means: k-means++ [1]_, then Lloyd's algorithm.

    Parameters
    ----------
    X : ndarray of float64 (n, D)
        Rows.
    weights : ndarray of float64 (n,)
        Their weights.
    M : int
        Centres.
    generator : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray (M, D)
        Means of the clusters; fewer where rows are too close to be told apart.

    References
    ----------
    .. [1] D. Arthur, S. Vassilvitskii. k-means++: the advantages of careful seeding. SODA 2007.

    Examples
    --------
    >>> X = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> sorted(cluster(X, np.ones(4), 2, np.random.default_rng(0)).ravel().tolist())
    [0.5, 10.5]
    """
    if len(X) <= M:
        return X.copy()
    mean = np.average(X, axis=0, weights=weights)
    X = X - mean  # less cancels in distances
    centers = _seeds(X, weights, M, generator)
    tolerance = 1e-8 * np.average((X**2).sum(axis=1), weights=weights)
    for _ in range(_ROUNDS):
        labels, squares = _nearest(X, centers)
        moved = _means(X, weights, labels, squares, len(centers))
        shift = ((moved - centers) ** 2).sum(axis=1).max()
        centers = moved
        if shift <= tolerance:
            break
    return centers + mean


def _means(X: Array, weights: Array, labels: Indices, squares: Array, M: int) -> Array:
    """Return the means of clusters; one without rows gets the row farthest from its centre."""
    totals = np.bincount(labels, weights, M)
    empty = np.flatnonzero(totals == 0)
    if empty.size:
        far = np.argsort(-squares, kind="stable")[: empty.size]
        labels = labels.copy()
        labels[far] = empty
        totals = np.bincount(labels, weights, M)
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=M)
    filled = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[filled]
    sums = np.add.reduceat(X[order] * weights[order, np.newaxis], starts)
    return np.asarray(sums / totals[filled, np.newaxis])


def split(X: Array, weights: Array, M: int) -> Array:
    """Return the means of M clusters made by splitting along principal axes [1]_.

    The cluster whose rows are farthest from their mean (in the sum of weighted squares) is split
    at the mean along its first principal axis, until there are M. Nothing is random.

    References
    ----------
    .. [1] T. Su, J. G. Dy. In search of deterministic methods for initializing k-means and
           Gaussian mixture clustering. Intelligent Data Analysis 11 (2007).

    Examples
    --------
    >>> X = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> sorted(split(X, np.ones(4), 2).ravel().tolist())
    [0.5, 10.5]
    """

    def describe(rows: Indices) -> tuple[float, Array]:
        mean = np.average(X[rows], axis=0, weights=weights[rows])
        return float(weights[rows] @ ((X[rows] - mean) ** 2).sum(axis=1)), mean

    groups = [np.arange(len(X))]
    error, mean = describe(groups[0])
    errors, means = [error], [mean]
    while len(groups) < min(M, len(X)):
        worst = int(np.argmax(errors))
        rows = groups[worst]
        if len(rows) < 2 or not errors[worst] > 0:
            break
        centred = (X[rows] - means[worst]) * np.sqrt(weights[rows])[:, np.newaxis]
        side = centred @ _principal_axis(centred) > 0
        if side.all() or not side.any():  # by rounding
            side = np.arange(len(rows)) < len(rows) // 2
        groups[worst], extra = rows[side], rows[~side]
        groups.append(extra)
        errors[worst], means[worst] = describe(groups[worst])
        error, mean = describe(extra)
        errors.append(error)
        means.append(mean)
    return np.array(means)


def _principal_axis(centred: Array) -> Array:
    n, D = centred.shape
    if n < D:
        _, vectors = np.linalg.eigh(centred @ centred.T)
        axis = centred.T @ vectors[:, -1]
    else:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        axis = vectors[:, -1]
    # The sign is arbitrary, but has to be the same each time.
    return np.asarray(axis * (np.sign(axis[np.abs(axis).argmax()]) or 1.0))


def _normalised(Y: Array, goal: float) -> tuple[Array, float]:
    """Return targets of which the largest is 1, whose squares are numbers, and a goal for them."""
    largest = float(np.abs(Y).max()) or 1.0
    return Y / largest, goal / largest / largest


def _limit(goal: float, weights: Array, Y: Array) -> float:
    """Return the sum of squared errors at which no more centres are taken."""
    # Less than the second is rounding, and no unit explains it.
    return max(goal * float(weights.sum()), _ROUNDING**2 * float(weights @ (Y**2).sum(axis=1)))


def _basis(columns: Array) -> Array:
    """Return an orthonormal basis of what columns span."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(u[:, s > 1e-10 * s.max(initial=0)])


def select_orthogonally(
    X: Array,
    weights: Array,
    Y: Array,
    fixed: Array,
    M: int,
    width: float,
    kernel: str,
    goal: float,
    generator: Rng,
) -> Array:
    """Choose rows as centres by orthogonal least squares [1]_.

    Each time, the candidate is taken that explains most of what the units so far leave of the
    targets, until there are M units, or the mean squared error is at most the goal or no more than
    rounding.

    Parameters
    ----------
    X : ndarray of float64 (n, D)
        Rows, the candidates; if their activations would need too much memory, candidates are
        drawn from them.
    weights : ndarray of float64 (n,)
        Their weights.
    Y : ndarray of float64 (n, k)
        Targets.
    fixed : ndarray of float64 (n, P)
        Columns that the network has besides: a constant, the features.
    M : int
        Largest number of centres.
    width : float
        Of all units.
    kernel : str
        Of all units.
    goal : float
        Mean squared error to stop at.
    generator : numpy.random.Generator
        Source of the draw.

    Returns
    -------
    ndarray (M, D)
        Centres, in the order in which they were chosen.

    References
    ----------
    .. [1] S. Chen, C. F. N. Cowan, P. M. Grant. Orthogonal least squares learning algorithm for
           radial basis function networks. IEEE Transactions on Neural Networks 2 (1991).
    """
    Y, goal = _normalised(Y, goal)
    count = max(4 * M, _CANDIDATES // len(X))
    candidates = X if len(X) <= count else draw(X, weights, count, generator)
    root = np.sqrt(weights)[:, np.newaxis]
    H = Units(candidates, np.full(len(candidates), width), kernel)(X) * root
    basis = _basis(fixed * root)
    residual = Y * root
    residual -= basis @ (basis.T @ residual)
    original = (H**2).sum(axis=0)
    H -= basis @ (basis.T @ H)
    H -= basis @ (basis.T @ H)  # twice is enough, once is not
    limit = _limit(goal, weights, Y)
    chosen: list[int] = []
    while len(chosen) < min(M, len(candidates)) and (residual**2).sum() > limit:
        norms = np.einsum("ij,ij->j", H, H)
        usable = norms > 1e-14 * original  # what is left of others is rounding
        if chosen:
            usable[chosen] = False
        if not usable.any():
            break
        explained = ((residual.T @ H) ** 2).sum(axis=0)
        gains = np.divide(explained, norms, out=np.full(len(norms), -1.0), where=usable)
        best = int(gains.argmax())
        q = H[:, best] / math.sqrt(norms[best])
        residual -= np.outer(q, q @ residual)
        H -= np.outer(q, q @ H)
        chosen.append(best)
    return candidates[chosen or [0]]


def select_greedily(
    X: Array,
    weights: Array,
    Y: Array,
    fixed: Array,
    M: int,
    width: float,
    kernel: str,
    goal: float,
) -> Array:
    """Choose rows as centres where the error is largest, as MATLAB's ``newrb`` does.

    Parameters
    ----------
    X, weights, Y, fixed, M, width, kernel, goal
        As in `select_orthogonally`; every row is a candidate.

    Returns
    -------
    ndarray (M, D)
        Centres, in the order in which they were chosen.
    """
    Y, goal = _normalised(Y, goal)
    root = np.sqrt(weights)[:, np.newaxis]
    start = _basis(fixed * root)
    Q = np.empty((len(X), start.shape[1] + min(M, len(X))))
    Q[:, : start.shape[1]] = start
    used = start.shape[1]
    residual = Y * root
    residual -= start @ (start.T @ residual)
    limit = _limit(goal, weights, Y)
    left = np.ones(len(X), bool)
    chosen: list[int] = []
    while len(chosen) < M and left.any() and (residual**2).sum() > limit:
        errors = ((residual / root) ** 2).sum(axis=1)
        errors[~left] = -1
        worst = int(errors.argmax())
        left[worst] = False
        column = (Units(X[[worst]], np.array([width]), kernel)(X) * root)[:, 0]
        size = np.linalg.norm(column)
        for _ in range(2):
            column -= Q[:, :used] @ (Q[:, :used].T @ column)
        norm = np.linalg.norm(column)
        if norm <= 1e-7 * size:  # the others span it already
            continue
        Q[:, used] = column / norm
        residual -= np.outer(Q[:, used], Q[:, used] @ residual)
        used += 1
        chosen.append(worst)
    return X[chosen or [0]]


def width_rule(rule: str, centers: Array, spread: float) -> Array:
    """Return the widths (M,) that a rule gives.

    Parameters
    ----------
    rule : {"mean", "nearest", "dmax"}
        Mean distance of centres; twice that to the nearest other centre, for each; or the largest
        distance divided by sqrt(2M).
    centers : ndarray of float64 (M, D)
        Centres.
    spread : float
        What is taken where no two centres differ.

    Examples
    --------
    >>> centers = np.array([[0.0], [1.0], [3.0]])
    >>> width_rule("mean", centers, 1.0).tolist()
    [2.0, 2.0, 2.0]
    >>> width_rule("nearest", centers, 1.0).tolist()
    [2.0, 2.0, 4.0]
    """
    M = len(centers)
    total, largest = 0.0, 0.0
    nearest = np.full(M, np.inf)
    for rows in row_blocks(M, M):
        d = np.sqrt(distances(centers[rows], centers))
        total += float(d.sum())
        largest = max(largest, float(d.max()))
        # Centres that coincide say nothing about a width.
        nearest[rows] = np.where(d > 0, d, np.inf).min(axis=1)
    if not largest > 0:
        return np.full(M, spread)
    if rule == "mean":
        return np.full(M, total / (M * (M - 1)))
    if rule == "dmax":
        return np.full(M, largest / math.sqrt(2 * M))
    return 2 * nearest


def warn_of_collapse(units: Units, X: Array) -> None:
    """Warn if hardly any unit but those at a row itself is active for most rows.

    Notes
    -----
    Only kernels that fall to 0 can collapse.
    """
    if units.kernel_name != "gaussian" or units.normalize:
        return
    sample = X[:: max(1, len(X) // 200)]
    # A centre that is the row itself is active at any width.
    active = np.where(distances(sample, units.centers) > 0, units(sample), 0)
    dead = float(np.mean(active.max(axis=1, initial=0) < 1e-2))
    if dead > 0.5 and len(units) > 1:
        warnings.warn(
            f"width: activations of {dead:.0%} of the rows are nearly all zero, so that the network"
            " knows little but its centres; try width='mean' or a larger number",
            RuntimeWarning,
            stacklevel=4,
        )
