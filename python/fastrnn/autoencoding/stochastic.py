"""Layers of autoencoders that draw random numbers.

Letters: B rows, F features, k components of the latent space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional
from fastrnn.layers import Stateless, read_features, read_lengths, without_padding

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Shape

__all__ = ["CORRUPTIONS", "Corruption", "Reparameterization", "normal_parameters"]

CORRUPTIONS = ("gaussian", "masking", "salt_and_pepper")
# Logarithms of variances beyond this are taken as this: exp(±30) is 1e±13.
_LARGEST_LOGARITHM = 30.0


class Corruption(Stateless):
    """Noise on the input in training mode, for denoising [1]_.

    Parameters
    ----------
    kind : {"gaussian", "masking", "salt_and_pepper"}
        What happens to elements: all get a normal number added, some become `zero`, or some become
        one of `low` and `high`.
    amount : float
        Standard deviation, or probability that an element is replaced.
    zero, low, high : numbers () or (F,)
        What replaces elements.
    seed : int or numpy.random.Generator, optional
        Source of the noise, which is a function of it and of the number of calls before.

    References
    ----------
    .. [1] P. Vincent, H. Larochelle, I. Lajoie, Y. Bengio, P.-A. Manzagol. Stacked denoising
           autoencoders. JMLR 11, 2010.

    Examples
    --------
    >>> layer = Corruption("masking", 0.25, seed=0)
    >>> float((layer(np.ones((100, 100), np.float32)) == 0).mean().round(2))
    0.25
    >>> bool((layer.eval()(np.ones((2, 2), np.float32)) == 1).all())
    True
    """

    _mask_seed: int

    def __init__(
        self,
        kind: str,
        amount: float,
        *,
        zero: ArrayLike = 0.0,
        low: ArrayLike = 0.0,
        high: ArrayLike = 1.0,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.kind = functional.choice("noise", kind, CORRUPTIONS)
        # Of a standard deviation that is not finite nothing is left.
        largest = float(np.finfo(np.float32).max) if kind == "gaussian" else 1.0
        self.amount = functional.number("amount", amount, 0, largest)
        self.zero, self.low, self.high = zero, low, high
        self._mask_seed = int(functional.generator("seed", seed).integers(2**62))

    @property
    def stepwise(self) -> bool:
        """True: each element is on its own."""
        return True

    def corrupted(
        self, x: FloatArray, generator: np.random.Generator
    ) -> tuple[FloatArray, NDArray[np.bool_] | None]:
        """Return the input (..., F) with noise, and which elements were replaced, if any are."""
        if self.kind == "gaussian":
            noise = generator.standard_normal(x.shape, np.float32)
            return np.asarray(x + (self.amount * noise).astype(x.dtype)), None
        drawn = generator.random(x.shape, np.float32)
        new = np.asarray(self.zero, x.dtype)
        if self.kind == "salt_and_pepper":
            low, high = np.asarray(self.low, x.dtype), np.asarray(self.high, x.dtype)
            new = np.where(drawn < 0.5 * self.amount, low, high)
        replaced = drawn < self.amount
        return np.where(replaced, new, x), replaced

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = read_features(x, None, None)
        lengths = read_lengths(lengths, x.shape)
        replaced: Any = None
        output = x
        if self._training and self.amount:
            output, replaced = self.corrupted(x, np.random.default_rng([self._mask_seed]))
            self._mask_seed += 1
        if lengths is not None:
            output = without_padding(output, lengths)
        return output.copy() if output is x else output, (replaced, lengths)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        replaced, lengths = memory
        if lengths is not None:
            gradient = without_padding(gradient, lengths)
        if replaced is None:
            return gradient.copy(), {}
        return np.where(replaced, gradient.dtype.type(0), gradient), {}

    def __repr__(self) -> str:
        return self._repr(self.kind, self.amount)


class Reparameterization(Stateless):
    """A draw from a normal distribution, differentiable by its parameters [1]_.

    The input (B, 2k) holds means and logarithms of variances; the output is
    mean + exp(logarithm / 2)·e with e from N(0, I), drawn anew for each call in training mode, and
    the same in each call in evaluation mode.

    Parameters
    ----------
    size : int
        Components k.
    seed : int or numpy.random.Generator, optional
        Source of the draws.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling. Auto-encoding variational Bayes. ICLR 2014.

    Examples
    --------
    >>> layer = Reparameterization(2, seed=0)
    >>> x = np.zeros((10000, 4), np.float32)
    >>> float(layer(x).std().round(2))
    1.0
    """

    _mask_seed: int

    def __init__(self, size: int, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__()
        self.size = functional.integer("size", size, 1)
        self._mask_seed = int(functional.generator("seed", seed).integers(2**62))

    def _forward(self, x: SupportsArray, lengths: ArrayLike | None) -> tuple[FloatArray, Any]:
        x = read_features(x, 2 * self.size, None)
        if lengths is not None or x.ndim != 2:
            raise ValueError(f"x: expected rows (B, {2 * self.size}), got {x.shape} and lengths")
        seed = self._mask_seed if self._training else 0
        drawn = np.random.default_rng([seed]).standard_normal((len(x), self.size))
        if self._training:
            self._mask_seed += 1
        mean, logarithm = x[:, : self.size], x[:, self.size :]
        bounded = np.clip(logarithm, -_LARGEST_LOGARITHM, _LARGEST_LOGARITHM)
        spread = np.exp(0.5 * bounded) * drawn.astype(x.dtype)
        return mean + spread, (spread, bounded == logarithm)

    def _backward(
        self, memory: Any, gradient: FloatArray, input_grad: bool
    ) -> tuple[FloatArray | None, dict[str, FloatArray]]:
        spread, inside = memory
        return np.hstack([gradient, 0.5 * gradient * spread * inside]), {}

    def input_shape(self) -> Shape:
        """Return the shape of the input, of rows."""
        return ("B", 2 * self.size)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return (*shape[:-1], self.size)

    def __repr__(self) -> str:
        return self._repr(self.size)


def normal_parameters(code: NDArray[Any], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return means and logarithms of variances (B, k) of what an encoder gives (B, 2k)."""
    logarithms = np.clip(code[:, size:], -_LARGEST_LOGARITHM, _LARGEST_LOGARITHM)
    return code[:, :size], logarithms
