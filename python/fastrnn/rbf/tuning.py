"""Training of centres, widths and output weights together, by gradient.

Letters: n rows, D features, M units, K columns, k outputs or classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn.activations import softmax
from fastrnn.callbacks import History
from fastrnn.optimizers import Adam, CosineDecay, WarmUp
from fastrnn.rbf.output import Factor
from fastrnn.rbf.units import Units, row_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastrnn.rbf.data import Rows

    Array = NDArray[np.float64]

__all__ = ["Tuning", "tune"]

_BATCH = 128  # rows of an update at most
_UPDATES = 32  # of an epoch at least, if there are rows enough
_SAMPLE = 2000  # rows that sensitivities are estimated from


class Tuning(NamedTuple):
    """A network as a function of parameters that start at 0 and have about the same effect.

    Output weights are in coordinates in which the columns are orthogonal, centres and logarithms
    of widths in units of what they do to the outputs: so one learning rate fits all, also where
    the weights are huge because the units overlap.

    Attributes
    ----------
    units : Units
        Hidden layer to start from.
    beside : callable
        Makes the columns (n, P) that are not of units.
    coefficients : ndarray (K, k)
        Output weights to start from.
    inverse : ndarray (K, r)
        What makes the columns orthogonal.
    center_steps : ndarray (M, D)
        Units of the centres.
    width_steps : ndarray (M,) or (M, D)
        Units of the logarithms of widths.
    scales : ndarray (k,)
        Standard deviations of the targets; 1 for classes with softmax.
    alpha : float
        Penalty, divided by the sum of the weights.
    is_softmax : bool
        Whether the loss is the cross-entropy, not half the squared error.
    """

    units: Units
    beside: Callable[[Array], Array]
    coefficients: Array
    inverse: Array
    center_steps: Array
    width_steps: Array
    scales: Array
    alpha: float
    is_softmax: bool

    def parameters(self) -> dict[str, Array]:
        """Return parameters to start from."""
        return {
            "centers": np.zeros_like(self.center_steps),
            "widths": np.zeros_like(self.width_steps),
            "weights": np.zeros((self.inverse.shape[1], len(self.scales))),
        }

    def network(self, parameters: dict[str, Array]) -> tuple[Units, Array]:
        """Return the units and the output weights (K, k) that parameters mean."""
        old = self.units
        units = Units(
            old.centers + self.center_steps * parameters["centers"],
            old.widths * np.exp(self.width_steps * parameters["widths"]),
            old.kernel_name,
            old.normalize,
        )
        return units, self.coefficients + self.inverse @ parameters["weights"] * self.scales

    def loss(self, outputs: Array, rows: Rows) -> float:
        """Return the mean loss, without the penalty."""
        if self.is_softmax:
            logits = outputs - outputs.max(axis=1, keepdims=True)
            errors = np.log(np.exp(logits).sum(axis=1)) - (rows.Y * logits).sum(axis=1)
        else:
            errors = 0.5 * (((outputs - rows.Y) / self.scales) ** 2).sum(axis=1)
        return float(np.average(errors, weights=rows.weights))

    def evaluate(self, parameters: dict[str, Array], rows: Rows) -> float:
        """Return the mean loss of rows, without the penalty."""
        units, coefficients = self.network(parameters)
        P = len(coefficients) - len(units)
        outputs = self.beside(rows.X) @ coefficients[:P]
        for part, h in units.blocks(rows.X):
            outputs[part] += h @ coefficients[P:]
        return self.loss(outputs, rows)

    def gradients(self, parameters: dict[str, Array], rows: Rows) -> tuple[float, dict[str, Array]]:
        """Return the mean loss of rows with the penalty, and its gradients."""
        units, coefficients = self.network(parameters)
        P = len(coefficients) - len(units)
        h, _, slopes = units.with_slopes(rows.X)
        A = np.hstack([self.beside(rows.X), h])
        outputs = A @ coefficients
        if self.is_softmax:
            difference = softmax(outputs) - rows.Y
        else:
            difference = (outputs - rows.Y) / self.scales**2
        difference *= (rows.weights / rows.weights.sum())[:, np.newaxis]
        penalised = coefficients / self.scales**2
        penalised[0] = 0
        loss = self.loss(outputs, rows) + 0.5 * self.alpha * float((coefficients * penalised).sum())
        centers, widths = units.gradients(rows.X, h, slopes, difference @ coefficients[P:].T)
        direct = A.T @ difference + self.alpha * penalised
        return loss, {
            "centers": centers * self.center_steps,
            "widths": widths * self.width_steps,
            "weights": self.inverse.T @ direct * self.scales,
        }


def _sensitivities(units: Units, weights: Array, X: Array) -> tuple[Array, Array]:
    """Return the root mean squares of what centres (M, D) and log widths (M,) do to the outputs."""
    first, second = np.zeros_like(units.centers), np.zeros(len(units))
    squares = 1 / (units.widths if units.widths.ndim == 2 else units.widths[:, np.newaxis]) ** 2
    origin = units.centers.mean(axis=0)
    c = units.centers - origin
    for part in row_blocks(len(X), len(units)):
        _, q, slopes = units.with_slopes(X[part])
        G, x = slopes**2, X[part] - origin
        first += G.T @ x**2 - 2 * c * (G.T @ x) + c**2 * G.sum(axis=0)[:, np.newaxis]
        second += (G * q**2).sum(axis=0)
    size = np.sqrt((weights**2).sum(axis=1))
    centers = 2 * squares * np.sqrt(np.maximum(first, 0) / len(X)) * size[:, np.newaxis]
    return centers, 2 * np.sqrt(second / len(X)) * size


def _steps(sensitivities: Array, largest: Any) -> Array:
    """Return steps of about the same effect, none of which is too large."""
    # Not below a part of the typical one, or what does little now could go far.
    floor = 0.1 * float(np.sqrt(np.mean(sensitivities**2))) + 1e-300
    return np.asarray(np.minimum(1 / np.maximum(sensitivities, floor), largest))


def prepare(
    units: Units,
    beside: Callable[[Array], Array],
    coefficients: Array,
    inverse: Array,
    rows: Rows,
    *,
    alpha: float,
    is_softmax: bool,
) -> Tuning:
    """Make the `Tuning` of a network that was fit to rows."""
    k = rows.Y.shape[1]
    scales = np.ones(k)
    if not is_softmax:
        mean = np.average(rows.Y, axis=0, weights=rows.weights)
        scales = np.sqrt(np.average((rows.Y - mean) ** 2, axis=0, weights=rows.weights))
        scales[scales == 0] = 1
    total = float(rows.weights.sum())
    M, D = units.centers.shape
    sample = rows.X[:: max(1, len(rows.X) // _SAMPLE)]
    centers, widths = _sensitivities(units, coefficients[-M:] / scales, sample)
    # Many parameters of a unit move at once.
    width = units.widths if units.widths.ndim == 2 else units.widths[:, np.newaxis]
    center_steps = _steps(centers, width) / math.sqrt(D)
    width_steps = _steps(widths, 1.0)
    if units.widths.ndim == 2:
        width_steps = np.repeat(width_steps[:, np.newaxis] / math.sqrt(D), D, axis=1)
    return Tuning(
        units,
        beside,
        coefficients,
        inverse * math.sqrt(total),
        center_steps,
        width_steps,
        scales,
        alpha / total,
        is_softmax,
    )


def _solved_anew(
    tuning: Tuning, parameters: dict[str, Array], rows: Rows, alpha: float
) -> Tuning | None:
    """Return a tuning that starts from units as they are, and a ridge regression on them.

    None if activations are not finite.
    """
    units, coefficients = tuning.network(parameters)
    factor = Factor(len(coefficients), rows.Y.shape[1])
    factor.add_in_blocks(lambda X: np.hstack([tuning.beside(X), units(X)]), rows)
    if not np.isfinite(factor.R).all():
        return None
    fit = factor.ridge(alpha, inverse=True)
    assert fit.inverse is not None
    return prepare(
        units, tuning.beside, fit.coefficients, fit.inverse, rows, alpha=alpha, is_softmax=False
    )


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # it ends with the first of those
def tune(
    units: Units,
    beside: Callable[[Array], Array],
    coefficients: Array,
    inverse: Array,
    train: Rows,
    validation: Rows,
    *,
    alpha: float,
    is_softmax: bool,
    epochs: int,
    learning_rate: float,
    patience: int,
    generator: np.random.Generator,
) -> tuple[Units, Array, History]:
    """Train a network with Adam, and return it as it was when it was best in validation.

    A loss that is not finite, as of too large a learning rate, is the end of it.

    Parameters
    ----------
    units, beside, coefficients, inverse
        Of `Tuning`.
    train, validation : Rows
        Rows to train with, to which the network was fit, and others.
    alpha : float
        Penalty of the output weights.
    is_softmax : bool
        Whether the loss is the cross-entropy. If not, the output weights are solved for anew after
        each epoch, as best weights have a formula.
    epochs : int
        Largest number of passes over the rows.
    learning_rate : float
        It rises to this in the first epoch, and then falls to 0 along half a cosine.
    patience : int
        Epochs in a row without a lower validation loss after which it ends.
    generator : numpy.random.Generator
        Source of the order of the rows.

    Returns
    -------
    units : Units
        The hidden layer.
    coefficients : ndarray (K, k)
        Output weights.
    history : History
        ``loss`` and ``val_loss``; epoch 0 is before the first update.
    """
    n = len(train.X)
    batches = max(-(-n // _BATCH), min(_UPDATES, -(-n // 16)))
    optimizer = Adam(WarmUp(CosineDecay(learning_rate, epochs * batches), batches))
    tuning = prepare(
        units, beside, coefficients, inverse, train, alpha=alpha, is_softmax=is_softmax
    )
    parameters = tuning.parameters()
    history = History()
    best, waited = math.inf, 0
    kept = units, coefficients
    for epoch in range(epochs + 1):
        if epoch:
            order = generator.permutation(n)
            for part in np.array_split(order, batches):
                _, gradients = tuning.gradients(parameters, train.take(part))
                optimizer.update(parameters, gradients)
            if not is_softmax:
                anew = _solved_anew(tuning, parameters, train, alpha)
                if anew is None:
                    break
                tuning, parameters = anew, anew.parameters()
        losses = tuning.evaluate(parameters, train), tuning.evaluate(parameters, validation)
        if epoch and not np.isfinite(losses).all():
            break
        history.on_epoch_end(None, epoch - 1, {"loss": losses[0], "val_loss": losses[1]})
        if losses[1] < best:
            best, waited = losses[1], 0
            kept = tuning.network(parameters)
        else:
            waited += 1
            if waited >= patience:
                break
    return *kept, history
