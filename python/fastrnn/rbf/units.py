"""Units of a radial-basis-function network: kernels, distances in blocks, gradients.

Letters: n rows, D features, M units. q is the square of a distance in units of the width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["KERNELS", "Kernel", "Units", "row_blocks"]

_BLOCK = 1 << 17  # activations of a block, 1 MB: they stay in a core's cache
_CANCELLED = 1e-6  # a difference that is this part of its terms has lost too many digits
_PAIRS = 1 << 14  # of rows and units, whose distances are computed again at a time


class Kernel(NamedTuple):
    """A radial function of q.

    Attributes
    ----------
    value : callable
        Computes it in place, of an array that it may overwrite, and returns it.
    slope : callable
        Its derivative by q, of q and the value; 0 where that is infinite.
    is_smooth : bool
        Whether rounding of q at 0 does as little as elsewhere.
    is_positive : bool
        Whether it is above 0 everywhere, so that activations can be normalised.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]
    is_smooth: bool
    is_positive: bool


def _gaussian(q: Array) -> Array:
    q *= -0.5
    return np.exp(q, out=q)


def _multiquadric(q: Array) -> Array:
    q += 1
    return np.sqrt(q, out=q)


def _inverse_quadratic(q: Array) -> Array:
    q += 1
    return np.reciprocal(q, out=q)


def _inverse_multiquadric(q: Array) -> Array:
    return np.reciprocal(_multiquadric(q), out=q)


def _logarithm(q: Array) -> Array:
    """Return log q, and 0 for q = 0."""
    return np.log(q, out=np.zeros_like(q), where=q > 0)


def _thin_plate_spline(q: Array) -> Array:
    q *= 0.5 * _logarithm(q)
    return q


def _cubic(q: Array) -> Array:
    q *= np.sqrt(q)
    return q


def _reciprocal(r: Array) -> Array:
    return np.divide(1, r, out=np.zeros_like(r), where=r > 0)


KERNELS = {
    "gaussian": Kernel(_gaussian, lambda q, h: -0.5 * h, True, True),
    "multiquadric": Kernel(_multiquadric, lambda q, h: 0.5 / h, True, True),
    "inverse_multiquadric": Kernel(_inverse_multiquadric, lambda q, h: -0.5 * h**3, True, True),
    "inverse_quadratic": Kernel(_inverse_quadratic, lambda q, h: -(h**2), True, True),
    "thin_plate_spline": Kernel(
        _thin_plate_spline, lambda q, h: np.where(q > 0, 0.5 * _logarithm(q) + 0.5, 0), False, False
    ),
    "cubic": Kernel(_cubic, lambda q, h: 1.5 * np.sqrt(q), False, False),
    "linear": Kernel(lambda q: np.sqrt(q, out=q), lambda q, h: 0.5 * _reciprocal(h), False, False),
}


def row_blocks(n: int, columns: int) -> Iterator[slice]:
    """Divide n rows into blocks of a bounded number of elements.

    Examples
    --------
    >>> list(row_blocks(5000, 64))
    [slice(0, 2048, None), slice(2048, 4096, None), slice(4096, 5000, None)]
    """
    size = max(16, _BLOCK // max(columns, 1))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


class Units:
    """Hidden units h_j(x) = φ(‖(x - c_j) / r_j‖).

    Parameters
    ----------
    centers : ndarray of float64 (M, D)
        Centres c.
    widths : ndarray of float64 (M,) or (M, D)
        Widths r > 0 of each unit, or of each unit and feature.
    kernel : str
        One of `KERNELS`.
    normalize : bool, default False
        Whether the activations of each row are divided by their sum.

    Examples
    --------
    >>> units = Units(np.array([[0.0], [1.0]]), np.array([1.0, 1.0]), "gaussian")
    >>> units(np.array([[0.0]])).round(4).tolist()
    [[1.0, 0.6065]]
    """

    def __init__(self, centers: Array, widths: Array, kernel: str, normalize: bool = False) -> None:
        self.centers, self.widths, self.kernel_name = centers, widths, kernel
        self.kernel = KERNELS[functional.choice("kernel", kernel, tuple(KERNELS))]
        self.normalize = functional.boolean("normalize", normalize)
        if normalize and not self.kernel.is_positive:
            positive = ", ".join(name for name, kind in KERNELS.items() if kind.is_positive)
            raise ValueError(
                f"normalize: expected False for kernel={kernel!r}, got True; it needs one of"
                f" {positive}, which are above 0"
            )
        # With an origin amid the centres, less cancels in x² - 2xc + c².
        self._origin = centers.mean(axis=0)
        scales = 1 / (widths if widths.ndim == 2 else widths[:, np.newaxis])
        moved = centers - self._origin
        self._squares = scales**2  # (M, 1) or (M, D)
        constant = (self._squares * moved**2).sum(axis=1)
        # q is one product of matrices: [x, x², 1] by this.
        self._matrix = np.vstack([-2 * (self._squares * moved).T, self._squares.T, constant])
        self._largest = float(self._squares.max()), float(constant.max())

    def __len__(self) -> int:
        return len(self.centers)

    def squared_distances(self, X: Array) -> Array:
        """Return q (n, M) of rows (n, D), few enough for the memory."""
        moved = X - self._origin
        squares = moved**2
        if self._squares.shape[1] == 1:
            squares = squares.sum(axis=1, keepdims=True)
        q: Array = np.hstack([moved, squares, np.ones((len(X), 1))]) @ self._matrix
        np.maximum(q, 0, out=q)
        terms = self._largest[0] * squares.sum(axis=1, keepdims=True) + self._largest[1]
        # Of smooth kernels only what is far larger than a width matters.
        if not self.kernel.is_smooth or terms.max(initial=0) > 1e4:
            self._correct(q, X, _CANCELLED * terms)
        return q

    def _correct(self, q: Array, X: Array, limits: Array) -> None:
        """Compute the smallest of q again, without cancellation."""
        rows, units = np.nonzero(q < limits)
        for start in range(0, len(rows), _PAIRS):
            i, j = rows[start : start + _PAIRS], units[start : start + _PAIRS]
            q[i, j] = ((X[i] - self.centers[j]) ** 2 * self._squares[j]).sum(axis=1)

    def block(self, X: Array) -> Array:
        """Return the activations (n, M) of rows few enough for the memory."""
        q = self.squared_distances(X)
        if self.normalize and self.kernel_name == "gaussian":
            q -= q.min(axis=1, keepdims=True)  # or all could be 0
        h = self.kernel.value(q)
        if self.normalize:
            h /= h.sum(axis=1, keepdims=True)
        return h

    def __call__(self, X: Array) -> Array:
        """Return the activations (n, M) of rows (n, D)."""
        h = np.empty((len(X), len(self)))
        for rows in row_blocks(len(X), len(self)):
            h[rows] = self.block(X[rows])
        return h

    def blocks(self, X: Array) -> Iterator[tuple[slice, Array]]:
        """Go through the activations without ever having all."""
        for rows in row_blocks(len(X), len(self)):
            yield rows, self.block(X[rows])

    def with_slopes(self, X: Array) -> tuple[Array, Array, Array]:
        """Return activations, q, and what a gradient of q is multiplied by, each (n, M)."""
        q = self.squared_distances(X)
        shifted = q.copy()
        if self.normalize and self.kernel_name == "gaussian":
            shifted -= q.min(axis=1, keepdims=True)
        h = self.kernel.value(shifted)
        slopes = self.kernel.slope(q, h)
        if self.normalize:
            total = h.sum(axis=1, keepdims=True)
            return h / total, q, slopes / total
        return h, q, slopes

    def gradients(self, X: Array, h: Array, slopes: Array, grad: Array) -> tuple[Array, Array]:
        """Differentiate the activations.

        Parameters
        ----------
        X : ndarray of float64 (n, D)
            Rows.
        h, slopes : ndarray of float64 (n, M)
            Of `with_slopes`.
        grad : ndarray of float64 (n, M)
            Gradient of the activations.

        Returns
        -------
        centers : ndarray (M, D)
            Gradient of the centres.
        log_widths : ndarray (M,) or (M, D)
            Gradient of the logarithms of the widths.
        """
        if self.normalize:
            grad = grad - (grad * h).sum(axis=1, keepdims=True)
        G = grad * slopes  # gradient of q
        x, c = X - self._origin, self.centers - self._origin
        total = G.sum(axis=0)[:, np.newaxis]
        first = G.T @ x
        centers = -2 * self._squares * (first - c * total)
        moments = G.T @ x**2 - 2 * c * first + c**2 * total
        scaled: Any = -2 * self._squares * moments
        return centers, scaled if self.widths.ndim == 2 else scaled.sum(axis=1)
