"""Terms that autoencoders add to the reconstruction loss.

Each is a mean over the rows of a batch. Letters: B rows, F features, k components.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional
from fastrnn.autoencoding.stochastic import normal_parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastrnn.functional import FloatArray
    from fastrnn.layers import Dense

__all__ = [
    "Activity",
    "Contraction",
    "Divergence",
    "Geometry",
    "Penalty",
    "Sparsity",
    "Term",
    "weight_decay",
]

_LEAST_RATE = 1e-6  # of a unit that is never active: the divergence is finite


class Term(NamedTuple):
    """A term and its gradients.

    Attributes
    ----------
    value : float
        The term, without its weight in the loss.
    code : ndarray, of the shape of the code
        Its gradient by what the encoder gives.
    parameters : dict of str to ndarray
        Its gradients by parameters of the encoder.
    """

    value: float
    code: FloatArray
    parameters: dict[str, FloatArray]


class Penalty:
    """A term with a weight in the loss.

    Parameters
    ----------
    weight : float
        What the term is multiplied by.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, code: FloatArray, target: NDArray[Any] | None = None) -> Term:
        """Compute the term of a code (B, k), and what the code is to be near to, if anything."""
        raise NotImplementedError


class Activity(Penalty):
    """Size of the code: mean over the rows of sum |h|.

    Examples
    --------
    >>> Activity()(np.array([[1.0, -2.0], [0.0, 0.5]])).value
    1.75
    """

    def __call__(self, code: FloatArray, target: NDArray[Any] | None = None) -> Term:
        """Compute the term."""
        return Term(float(np.abs(code).sum() / len(code)), np.sign(code) / len(code), {})


class Sparsity(Penalty):
    """How far the mean activation of each unit is from a small one [1]_.

    With r_j the mean of unit j over the batch, this is the sum over the units of
    rho·log(rho / r_j) + (1 - rho)·log((1 - rho) / (1 - r_j)).

    Parameters
    ----------
    rho : float
        The mean that is wanted, between 0 and 1.
    weight : float
        What the term is multiplied by.

    References
    ----------
    .. [1] A. Ng. Sparse autoencoder. CS294A lecture notes, Stanford, 2011.

    Examples
    --------
    >>> Sparsity(0.5)(np.array([[0.25], [0.75]])).value
    0.0
    """

    def __init__(self, rho: float, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.rho = functional.number("rho", rho, 0, 1)
        if self.rho in (0, 1):
            raise ValueError(f"rho: expected a number > 0 and < 1, got {rho}")

    def __call__(self, code: FloatArray, target: NDArray[Any] | None = None) -> Term:
        """Compute the term."""
        rate = np.clip(code.mean(axis=0, dtype=np.float64), _LEAST_RATE, 1 - _LEAST_RATE)
        rho = self.rho
        value = rho * np.log(rho / rate) + (1 - rho) * np.log((1 - rho) / (1 - rate))
        slope = ((1 - rho) / (1 - rate) - rho / rate) / len(code)
        return Term(float(value.sum()), np.broadcast_to(slope, code.shape).astype(code.dtype), {})


class Contraction(Penalty):
    """Squared Frobenius norm of the Jacobian of the code by the input [1]_, exact.

    For one layer h = f(Wx + b) with f the sigmoid or tanh it is the mean over the rows of
    sum_j f'_j²·‖w_j‖², where f' is h·(1 - h) or 1 - h².

    Parameters
    ----------
    layer : Dense
        That layer.
    weight : float
        What the term is multiplied by.

    References
    ----------
    .. [1] S. Rifai, P. Vincent, X. Muller, X. Glorot, Y. Bengio. Contractive auto-encoders:
           explicit invariance during feature extraction. ICML 2011.
    """

    def __init__(self, layer: Dense, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.layer = layer
        functional.choice("code_activation", layer.activation, ("sigmoid", "tanh"))

    def slopes(self, code: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return f' as a function of h, and the derivative of that function."""
        if self.layer.activation == "sigmoid":
            return code * (1 - code), 1 - 2 * code
        return 1 - code**2, -2 * code

    def norms(self, code: FloatArray) -> FloatArray:
        """Return the squared norm of the Jacobian of each row (B,)."""
        weight = self.layer.parameters["weight"]
        squares: FloatArray = self.slopes(code)[0] ** 2 @ (weight**2).sum(axis=1)
        return squares

    def __call__(self, code: FloatArray, target: NDArray[Any] | None = None) -> Term:
        """Compute the term."""
        weight = self.layer.parameters["weight"]
        slope, bend = self.slopes(code)
        size = (weight**2).sum(axis=1)
        by_code = 2 * slope * bend * size / len(code)
        by_weight = 2 * weight * (slope**2).mean(axis=0)[:, np.newaxis]
        value = float((slope**2).mean(axis=0, dtype=np.float64) @ size)
        return Term(value, by_code, {"0.weight": by_weight})


class Divergence(Penalty):
    """Kullback-Leibler divergence of N(mean, variance) from N(0, I), in nats.

    Per row it is half the sum of mean² + variance - 1 - log variance [1]_.

    Parameters
    ----------
    size : int
        Components k; the code (B, 2k) has means and logarithms of variances.
    weight : float
        What the term is multiplied by.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling. Auto-encoding variational Bayes. ICLR 2014. Appendix B.

    Examples
    --------
    >>> Divergence(1)(np.array([[2.0, 0.0]])).value
    2.0
    """

    def __init__(self, size: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.size = size

    def of_rows(self, code: FloatArray) -> NDArray[np.float64]:
        """Return the divergence of each row (B,)."""
        mean, logarithm = normal_parameters(code.astype(np.float64), self.size)
        parts = mean**2 + np.exp(logarithm) - 1 - logarithm
        return np.asarray(0.5 * parts.sum(axis=1))

    def __call__(self, code: FloatArray, target: NDArray[Any] | None = None) -> Term:
        """Compute the term."""
        mean, logarithm = normal_parameters(code, self.size)
        inside = logarithm == code[:, self.size :]
        gradient = np.hstack([mean, 0.5 * (np.exp(logarithm) - 1) * inside]) / len(code)
        return Term(float(self.of_rows(code).mean()), gradient.astype(code.dtype, copy=False), {})


class Geometry(Penalty):
    """Mean squared distance of the code from an embedding that was given [1]_, per component.

    References
    ----------
    .. [1] A. F. Duque, S. Morin, G. Wolf, K. R. Moon. Extendable and invertible manifold learning
           with geometry regularized autoencoders. IEEE Big Data 2020.

    Examples
    --------
    >>> Geometry()(np.zeros((1, 2)), np.array([[1.0, 3.0]])).value
    5.0
    """

    def __call__(self, code: FloatArray, target: NDArray[Any] | None = None) -> Term:
        """Compute the term."""
        assert target is not None
        difference = code - target.astype(code.dtype, copy=False)
        value = float(np.mean(difference**2, dtype=np.float64))
        return Term(value, 2 / code.size * difference, {})


def weight_decay(
    parameters: dict[str, FloatArray], l1: float, l2: float
) -> tuple[float, dict[str, FloatArray]]:
    """Return l1·(sum of sizes) + l2·(sum of squares) of all weights, biases left out.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Those with at least two axes are weights.
    l1, l2 : float
        Factors.

    Returns
    -------
    value : float
        The term.
    gradients : dict of str to ndarray
        Of the weights.

    Examples
    --------
    >>> weight_decay({"weight": np.array([[2.0, -1.0]]), "bias": np.ones(1)}, 1.0, 0.5)[0]
    5.5
    """
    value, gradients = 0.0, {}
    for name, array in parameters.items():
        if array.ndim > 1:
            value += l1 * float(np.abs(array).sum()) + l2 * float((array**2).sum())
            gradients[name] = l1 * np.sign(array) + 2 * l2 * array
    return value, gradients
