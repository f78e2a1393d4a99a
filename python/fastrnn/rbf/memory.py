"""Rows that a softmax classifier keeps, to go on from when there are more.

Letters: n rows, D features, k classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastrnn.rbf.data import Rows, merge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["combine", "thin"]

CAPACITY = 10_000  # rows; and one of each class that is too rare for a share of them


def combine(earlier: Rows, fresh: Rows) -> Rows:
    """Return the rows of both, equal ones merged."""
    return merge(
        np.vstack([earlier.X, fresh.X]),
        np.vstack([earlier.Y, fresh.Y]),
        np.concatenate([earlier.weights, fresh.weights]),
    )


def thin(rows: Rows, seed: int) -> Rows:
    """Draw rows if they are too many, so that all weighted sums are the same on average.

    Each class keeps its share of the rows, at least one, and its weight.

    Examples
    --------
    >>> n = 4 * CAPACITY
    >>> classes = np.eye(2)[(np.arange(n) % 10 == 0).astype(int)]
    >>> thinned = thin(merge(np.arange(n * 1.0)[:, np.newaxis], classes, None), 0)
    >>> len(thinned.X), thinned.weights @ thinned.Y
    (10000, array([36000.,  4000.]))
    """
    if len(rows.X) <= CAPACITY:
        return rows
    generator = np.random.default_rng(seed)
    groups, weights, total = rows.groups(True), rows.weights.copy(), rows.weights.sum()
    for group in np.unique(groups):
        members = generator.permutation(np.flatnonzero(groups == group))
        share = float(weights[members].sum() / total)
        # The part is of a number of rows, and so not wrong by more than rounding.
        count = max(1, math.floor(CAPACITY * share * (1 + 1e-12)))
        weights[members] = _sampled(weights[members], count, float(generator.random()))
    return rows._replace(weights=weights).take(weights > 0)


def _sampled(weights: Array, count: int, start: float) -> Array:
    """Return weights of which about `count` are not 0: by systematic sampling.

    Each is on average what it was, and so is the sum always.
    """
    unit = weights.sum() / count
    small = weights < unit  # the others stay
    if not small.any():
        return weights
    cumulated = np.cumsum(weights[small])
    draws = max(1, round(float(cumulated[-1] / unit)))
    edges = cumulated * (draws / cumulated[-1])
    edges[-1] = draws
    hits = np.diff(np.floor(edges + start), prepend=0.0)
    sampled = weights.copy()
    sampled[small] = hits * (cumulated[-1] / draws)
    return sampled
