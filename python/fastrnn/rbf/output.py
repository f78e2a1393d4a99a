"""Output weights of a radial-basis-function network: ridge regression and softmax.

Letters: n rows, K columns (a constant, P - 1 features of the tail, M activations), k outputs.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastrnn.activations import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastrnn.rbf.data import Rows

    Array = NDArray[np.float64]

__all__ = ["Factor", "Fit", "fit_softmax", "orthogonal_complement", "temperature"]


_BLOCKS = 1 << 24  # elements of matrices for conjugate gradients, 128 MB


class Fit(NamedTuple):
    """Coefficients and what they were found with.

    Attributes
    ----------
    coefficients : ndarray (K, k)
        Of the columns.
    alpha : float
        Penalty.
    inverse : ndarray (K, r) or None
        If asked for, what makes columns orthogonal: for the penalised Gram matrix G of the columns
        inverseᵀ G inverse is the identity.
    """

    coefficients: Array
    alpha: float
    inverse: Array | None


def orthogonal_complement(columns: Array) -> Array | None:
    """Return an orthonormal basis of what is orthogonal to columns (M, P), None if nothing is.

    Examples
    --------
    >>> orthogonal_complement(np.ones((3, 1))).shape
    (3, 2)
    """
    u, s, _ = np.linalg.svd(columns, full_matrices=True)
    rank = int(np.sum(s > 1e-10 * s.max(initial=0)))
    return np.asarray(u[:, rank:]) if rank < len(columns) else None


def _triangle(A: Array) -> Array:
    return np.asarray(np.linalg.qr(A, mode="r"))


def _solve_triangular(R: Array, B: Array) -> Array | None:
    """Solve R X = B, or return None if R is singular to rounding."""
    diagonal = np.abs(np.diag(R))
    if diagonal.min() <= 1e-15 * len(R) * diagonal.max():
        return None
    return np.asarray(np.linalg.solve(R, B))


class Factor:
    """Triangular factor of weighted columns and targets, to which rows can be added.

    Least squares from it are as accurate as from the rows themselves, which normal equations
    are not, and the memory does not grow with the rows.

    Parameters
    ----------
    columns : int
        K.
    outputs : int
        k.

    Attributes
    ----------
    R : ndarray (<= K + k, K + k)
        The factor of the columns followed by the targets.
    rows : int
        Rows so far, equal ones of a call counted once.
    observations : float
        What they stand for.

    Examples
    --------
    Fit 1 + 2x.

    >>> x = np.linspace(0, 1, 20)[:, np.newaxis]
    >>> factor = Factor(2, 1)
    >>> factor.add(np.hstack([np.ones_like(x), x]), 1 + 2 * x, np.ones(20))
    >>> factor.ridge(0.0).coefficients.ravel().round(8).tolist()
    [1.0, 2.0]
    """

    def __init__(self, columns: int, outputs: int) -> None:
        self.columns = columns
        self.R: Array = np.zeros((0, columns + outputs))
        self.rows = 0
        self.observations = 0.0

    def add(
        self,
        A: Array,
        Y: Array,
        weights: Array,
        scatter: Array | None = None,
        observations: float | None = None,
    ) -> None:
        """Add rows (n, K), targets (n, k) and weights (n,).

        The scatter (k,) of merged targets, and how many observations the rows are, change only what
        cross-validation chooses.
        """
        root = np.sqrt(weights)[:, np.newaxis]
        stacked = [self.R, np.hstack([A * root, Y * root])]
        if scatter is not None and scatter.any():
            # It is an error of targets on which no column has a say.
            stacked.append(np.hstack([np.zeros((len(scatter), self.columns)), np.diag(scatter)]))
        self.R = _triangle(np.vstack(stacked))
        self.rows += len(A)
        self.observations += len(A) if observations is None else observations

    def add_in_blocks(self, columns: Callable[[Array], Array], rows: Rows) -> None:
        """Add rows whose columns (n, K) a function makes, without ever having all columns."""
        size = max(64, 2 * self.columns)  # or triangles would be most of the work
        for start in range(0, len(rows.X), size):
            part = slice(start, start + size)
            self.add(
                columns(rows.X[part]),
                rows.Y[part],
                rows.weights[part],
                np.hypot.reduce(rows.scatter[part]),
                float(rows.counts[part].sum()),
            )

    def ridge(
        self, alpha: float | None, basis: Array | None = None, *, inverse: bool = False
    ) -> Fit:
        """Minimise the sum of squared errors + alpha·(squares of all but the constant's weights).

        Parameters
        ----------
        alpha : float or None
            Penalty; None chooses it by generalised cross-validation [1]_.
        basis : ndarray (M, r), optional
            What the weights of the last M columns are combinations of.
        inverse : bool, default False
            Whether the inverse is wanted.

        Returns
        -------
        Fit
            The coefficients; of the least norm where there are several.

        References
        ----------
        .. [1] G. H. Golub, M. Heath, G. Wahba. Generalized cross-validation as a method for
               choosing a good ridge parameter. Technometrics 21 (1979).
        """
        A, Y = self.R[:, : self.columns], self.R[:, self.columns :]
        if basis is not None:
            A = np.hstack([A[:, : -len(basis)], A[:, -len(basis) :] @ basis])
        if alpha is None:
            alpha = _cross_validated(A, Y, self.observations)
        K = A.shape[1]
        # A larger one changes nothing but makes the constant look like rounding.
        alpha = min(alpha, 1e20 * float((A**2).sum()) or alpha)
        penalty = math.sqrt(alpha) * np.eye(K)[1:]
        A = np.vstack([A, penalty])
        Y = np.vstack([Y, np.zeros((K - 1, Y.shape[1]))])
        R = _triangle(np.hstack([A, Y]))
        solution = _solve_triangular(R[:K, :K], R[:K, K:])
        if solution is None:
            solution = np.asarray(np.linalg.lstsq(A, Y, rcond=None)[0])
        inverted = _inverse(R[:K, :K]) if inverse else None
        if basis is not None:
            P = self.columns - len(basis)
            solution = np.vstack([solution[:P], basis @ solution[P:]])
            if inverted is not None:
                inverted = np.vstack([inverted[:P], basis @ inverted[P:]])
        return Fit(solution, alpha, inverted)


def _inverse(R: Array) -> Array:
    inverse = _solve_triangular(R, np.eye(len(R)))
    return np.asarray(np.linalg.pinv(R)) if inverse is None else inverse


def _cross_validated(A: Array, Y: Array, n: float) -> float:
    """Return the penalty that minimises n·(squared errors) / (n - degrees of freedom)²."""
    # The first row of the factor is what the constant explains.
    R = _triangle(np.hstack([A, Y]))[1:]
    K = A.shape[1] - 1
    inner, targets = R[:, 1 : K + 1], R[:, K + 1 :]
    targets = targets / np.maximum(np.abs(targets).max(axis=0, initial=0), 1e-300)
    total = (targets**2).sum(axis=0)
    total[total == 0] = 1
    u, s, _ = np.linalg.svd(inner, full_matrices=False)
    if not s.max(initial=0) > 0:
        return 1.0
    projected = ((u.T @ targets) ** 2 / total).sum(axis=1)
    explained = float(projected.sum())
    rest = max(float(((targets**2).sum(axis=0) / total).sum()) - explained, 0.0)

    def loss(logarithm: float) -> float:
        kept = math.exp(logarithm) / (s**2 + math.exp(logarithm))
        freedom = n - 1 - len(s) + float(kept.sum())
        if freedom <= 1e-9 * n:
            return math.inf
        return n * (rest + float(projected @ kept**2)) / freedom**2

    top = 2 * math.log(float(s[0]))
    grid = np.linspace(top - 32, top + 5, 75)
    losses = [loss(float(value)) for value in grid]
    best = int(np.argmin(losses))
    if not math.isfinite(losses[best]):
        return math.exp(float(grid[0]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    fine = np.linspace(float(low), float(high), 41)
    return math.exp(float(fine[int(np.argmin([loss(float(value)) for value in fine]))]))


def fit_softmax(
    A: Array, Y: Array, weights: Array, alpha: float, inverse: Array, start: Array
) -> Array:
    """Minimise the weighted cross-entropy + alpha/2·(squares of all but the constant's weights).

    Parameters
    ----------
    A : ndarray of float64 (n, K)
        Columns.
    Y : ndarray of float64 (n, k)
        Probabilities of the classes.
    weights : ndarray of float64 (n,)
        Of the rows.
    alpha : float
        Penalty.
    inverse : ndarray (K, r)
        Of the ridge regression `Fit` of the same: in its coordinates the curvature is about the
        same in all directions, which makes Newton's method with conjugate gradients [1]_ quick.
    start : ndarray (K, k)
        Coefficients to start from.

    Returns
    -------
    ndarray (K, k)
        Coefficients of the logits, whose sum over the classes is 0.

    References
    ----------
    .. [1] R. S. Dembo, T. Steihaug. Truncated-Newton algorithms for large-scale unconstrained
           optimization. Mathematical Programming 26 (1983).
    """
    total = weights.sum()
    problem = _Softmax(A @ inverse, Y, weights / total, alpha / total, inverse[1:])
    # A start that is wrong for sure, as on a class that is new, is worse than none.
    start = min(start, np.zeros_like(start), key=lambda start: problem.begin(A, start))
    problem.begin(A, start)
    found, converged = problem.minimise()
    if not converged:
        warnings.warn(
            "alpha: the softmax weights have not converged; a larger alpha makes the problem"
            " easier",
            RuntimeWarning,
            stacklevel=5,
        )
    coefficients = start + inverse @ found
    return np.asarray(coefficients - coefficients.mean(axis=1, keepdims=True))


class _Softmax:
    """Cross-entropy with penalty, as a function of coordinates v (r, k), with its derivatives."""

    def __init__(self, B: Array, Y: Array, weights: Array, alpha: float, inverse: Array) -> None:
        self.B, self.Y, self.weights = B, Y, weights[:, np.newaxis]
        self.alpha = alpha
        self.bent = alpha * inverse.T
        self.penalty = self.bent @ inverse

    def begin(self, A: Array, start: Array) -> float:
        """Say which coefficients v = 0 means, and return the loss there."""
        self.offset, self.slope = A @ start, self.bent @ start[1:]
        return self.evaluate(np.zeros_like(self.slope))[0] + self.alpha / 2 * float(
            (start[1:] ** 2).sum()
        )

    def evaluate(self, v: Array) -> tuple[float, Array, Array]:
        """Return loss, gradient, and probabilities."""
        logits = self.B @ v + self.offset
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        sums = p.sum(axis=1, keepdims=True)
        p /= sums
        bent = self.penalty @ v
        errors = self.Y * (np.log(sums) - logits)
        penalty = float((v * (0.5 * bent + self.slope)).sum())
        gradient = self.B.T @ (self.weights * (p - self.Y)) + bent + self.slope
        return float((self.weights * errors).sum()) + penalty, gradient, p

    def _curvature(self, p: Array, d: Array) -> Array:
        """Multiply the matrix of second derivatives by a direction."""
        t = p * (self.B @ d)
        t -= p * t.sum(axis=1, keepdims=True)
        return np.asarray(self.B.T @ (self.weights * t) + self.penalty @ d)

    def _inverse_blocks(self, p: Array) -> Array:
        """Return the inverses (k, r, r) of the second derivatives by the coordinates of a class."""
        blocks = []
        for q in p.T[:, :, np.newaxis]:
            block = self.B.T @ (self.weights * q * (1 - q) * self.B) + self.penalty
            block[np.diag_indices_from(block)] += 1e-12 * np.trace(block) + 1e-300
            blocks.append(np.linalg.pinv(block, hermitian=True))
        return np.array(blocks)

    def _direction(
        self, gradient: Array, p: Array, tolerance: float, is_hard: bool
    ) -> tuple[Array, int]:
        """Solve for Newton's direction by conjugate gradients, about; and count their steps."""
        blocks = self._inverse_blocks(p) if is_hard else None

        def conditioned(residual: Array) -> Array:
            z = residual
            if blocks is not None:
                z = np.matmul(blocks, residual.T[:, :, np.newaxis])[:, :, 0].T
            # What is the same for all classes changes nothing, and rounding is not to make it grow.
            return np.asarray(z - z.mean(axis=1, keepdims=True))

        d, residual = np.zeros_like(gradient), -gradient
        way = conditioned(residual)
        size = float((residual * way).sum())
        start, steps = size, 0
        while steps < 200:
            steps += 1
            bent = self._curvature(p, way)
            curvature = float((way * bent).sum())
            if curvature <= 1e-16 * float((way**2).sum()):
                break
            step = size / curvature
            d = d + step * way
            residual = residual - step * bent
            better = conditioned(residual)
            before, size = size, float((residual * better).sum())
            if size <= tolerance**2 * start:
                break
            way = better + size / before * way
        return (d if (d * gradient).sum() < 0 else -gradient), steps

    def minimise(self, rounds: int = 100) -> tuple[Array, bool]:
        """Return where the loss is smallest, and whether it was found."""
        v = np.zeros((self.B.shape[1], self.Y.shape[1]))
        loss, gradient, p = self.evaluate(v)
        first = float(np.linalg.norm(gradient)) + 1e-300
        is_hard = False
        for _ in range(rounds):
            tolerance = min(0.1, math.sqrt(float(np.linalg.norm(gradient)) / first))
            d, steps = self._direction(gradient, p, tolerance, is_hard)
            # The coordinates suit p that are all alike, and not those of rows told apart for sure.
            is_hard = is_hard or (steps > 50 and v.size * len(v) <= _BLOCKS)
            descent, step = float((d * gradient).sum()), 1.0  # twice what there is to gain
            if descent >= -1e-12:
                return v + d, True
            moved, found = v + d, self.evaluate(v + d)
            while found[0] > loss + 1e-4 * step * descent:
                step /= 2
                if step < 1e-6:  # rounding is all that is left
                    return v, descent >= -1e-8
                moved = v + step * d
                found = self.evaluate(moved)
            v, (loss, gradient, p) = moved, found
        return v, False


def temperature(outputs: Array, Y: Array, weights: Array) -> float:
    """Return the factor of outputs that makes the softmax of them fit best, of [1, 10].

    Parameters
    ----------
    outputs : ndarray of float64 (n, k)
        Outputs of rows that were left out.
    Y : ndarray of float64 (n, k)
        Probabilities of the classes.
    weights : ndarray of float64 (n,)
        Of the rows.

    Examples
    --------
    >>> outputs = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])
    >>> Y = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round(temperature(outputs, Y, np.ones(3)), 1)
    3.1
    """

    def loss(logarithm: float) -> float:
        p = softmax(math.exp(logarithm) * outputs)
        return float(weights @ (Y * -np.log(np.maximum(p, 1e-300))).sum(axis=1))

    low, high = 0.0, math.log(10)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(20):  # golden section
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
