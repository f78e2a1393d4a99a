"""Initial values of the parameters.

A weight matrix of G gates is G blocks of H rows, one block per gate; every rule but ``"torch"``
draws the blocks separately, so that its statistics are those of one gate.

References
----------
.. [1] X. Glorot, Y. Bengio. Understanding the difficulty of training deep feedforward neural
       networks. AISTATS 2010.
.. [2] K. He, X. Zhang, S. Ren, J. Sun. Delving deep into rectifiers: surpassing human-level
       performance on ImageNet classification. ICCV 2015.
.. [3] A. M. Saxe, J. L. McClelland, S. Ganguli. Exact solutions to the nonlinear dynamics of
       learning in deep linear neural networks. ICLR 2014.
.. [4] F. Mezzadri. How to generate random matrices from the classical compact groups. Notices of
       the AMS 54(5), 2007.
.. [5] Q. V. Le, N. Jaitly, G. E. Hinton. A simple way to initialize recurrent networks of
       rectified linear units. arXiv:1504.00941, 2015.
.. [6] R. Jozefowicz, W. Zaremba, I. Sutskever. An empirical exploration of recurrent network
       architectures. ICML 2015.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    FloatArray = NDArray[np.floating[Any]]
    # (kind of weight such as "weight_ih", rows, columns, generator) -> block
    Rule = Callable[[str, int, int, np.random.Generator], FloatArray]

__all__ = ["initialize", "initialize_dense", "set_forget_bias"]


def _glorot(kind: str, rows: int, columns: int, generator: np.random.Generator) -> FloatArray:
    bound = math.sqrt(6 / (rows + columns))  # eq. 16 of [1]
    return generator.uniform(-bound, bound, (rows, columns))


def _he(kind: str, rows: int, columns: int, generator: np.random.Generator) -> FloatArray:
    return generator.normal(0, math.sqrt(2 / columns), (rows, columns))  # eq. 10 of [2]


def _orthogonal(kind: str, rows: int, columns: int, generator: np.random.Generator) -> FloatArray:
    if kind == "weight_ih":
        return _glorot(kind, rows, columns, generator)
    tall = generator.normal(size=(max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q *= np.where(np.diag(r) < 0, -1, 1)  # without it Q is not uniformly distributed [4]
    return q if rows >= columns else q.T


def _identity(kind: str, rows: int, columns: int, generator: np.random.Generator) -> FloatArray:
    if kind == "weight_hh":
        return np.eye(rows)
    return generator.normal(0, 0.001, (rows, columns))  # section 3 of [5]


_RULES: dict[str, Rule] = {
    "glorot": _glorot,
    "he": _he,
    "orthogonal": _orthogonal,
    "identity": _identity,
}


def initialize(
    init: str,
    shapes: Mapping[str, tuple[int, ...]],
    hidden_size: int,
    generator: np.random.Generator,
    dtype: np.dtype[np.floating[Any]],
) -> dict[str, FloatArray]:
    """Draw parameters of the given shapes.

    Parameters
    ----------
    init : {"torch", "glorot", "he", "orthogonal", "identity"}
        ``"torch"`` draws everything, biases too, from U(-1/sqrt(H), 1/sqrt(H)). The others leave
        biases and peepholes at 0. Gains of layer norm are 1 and its biases 0, always. Of one gate's
        weights, ``"glorot"`` is the uniform rule of [1]_; ``"he"`` the normal one of [2]_;
        ``"orthogonal"`` makes recurrent and projection weights orthogonal [3]_ and input weights
        glorot; ``"identity"`` is the IRNN of [5]_: recurrent weights are the identity, input
        weights N(0, 0.001²).
    shapes : mapping of str to tuple of int
        Shapes by torch's parameter names.
    hidden_size : int
        Hidden units H.
    generator : numpy.random.Generator
        Source of randomness. The draws do not depend on `dtype`, but for rounding.
    dtype : numpy.dtype
        Floating-point type of the result.

    Returns
    -------
    dict of str to ndarray
        New, contiguous, writable arrays.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> shapes = {"weight_hh_l0": (6, 2)}
    >>> w = initialize("orthogonal", shapes, 2, generator, np.dtype(float))["weight_hh_l0"]
    >>> bool(np.allclose(w[:2] @ w[:2].T, np.eye(2)))
    True
    """

    def draw(name: str, shape: tuple[int, ...]) -> FloatArray:
        if name.startswith("norm_"):
            return np.ones(shape) if "_weight_l" in name else np.zeros(shape)
        if init == "torch":
            bound = 1 / math.sqrt(hidden_size)
            return generator.uniform(-bound, bound, shape)
        kind = name.partition("_l")[0]
        if kind not in ("weight_ih", "weight_hh", "weight_hr"):
            return np.zeros(shape)
        rows = shape[0] if kind == "weight_hr" else hidden_size
        blocks = [_RULES[init](kind, rows, shape[1], generator) for _ in range(shape[0] // rows)]
        return np.concatenate(blocks)

    return {name: np.array(draw(name, shape), dtype, order="C") for name, shape in shapes.items()}


def set_forget_bias(parameters: Mapping[str, FloatArray], hidden_size: int, value: float) -> None:
    """Set the bias of every LSTM forget gate to `value`, as [6]_ advises (with 1).

    A gate adds two biases: ``bias_ih`` gets the value and ``bias_hh`` zero.

    Parameters
    ----------
    parameters : mapping of str to ndarray
        Parameters of an LSTM by torch's names, changed in place.
    hidden_size : int
        Hidden units H.
    value : float
        The bias.
    """
    forget = slice(hidden_size, 2 * hidden_size)  # gate order i, f, g, o
    for name, array in parameters.items():
        if name.startswith("bias"):
            array[forget] = value if name.startswith("bias_ih") else 0


def initialize_dense(
    init: str,
    inputs: int,
    units: int,
    bias: bool,
    generator: np.random.Generator,
    dtype: np.dtype[np.floating[Any]],
) -> dict[str, FloatArray]:
    """Draw the parameters of an affine map.

    Parameters
    ----------
    init : {"torch", "glorot", "he", "orthogonal"}
        ``"torch"`` draws weights and biases from U(-1/sqrt(F), 1/sqrt(F)) for F inputs. The others
        are those of `initialize`, with biases 0.
    inputs, units : int
        Columns F and rows of the weight.
    bias : bool
        Whether there is a bias.
    generator : numpy.random.Generator
        Source of randomness.
    dtype : numpy.dtype
        Floating-point type of the result.

    Returns
    -------
    dict of str to ndarray
        ``weight`` (units, F) and ``bias`` (units,).

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> parameters = initialize_dense("glorot", 3, 2, True, generator, np.dtype(float))
    >>> parameters["weight"].shape, parameters["bias"].tolist()
    ((2, 3), [0.0, 0.0])
    """
    bound = 1 / math.sqrt(inputs)
    if init == "torch":
        weight: FloatArray = generator.uniform(-bound, bound, (units, inputs))
    else:
        weight = _RULES[init]("weight", units, inputs, generator)
    arrays: dict[str, FloatArray] = {"weight": weight}
    if bias:
        torch_like = init == "torch"
        arrays["bias"] = generator.uniform(-bound, bound, units) if torch_like else np.zeros(units)
    return {name: np.array(array, dtype, order="C") for name, array in arrays.items()}
