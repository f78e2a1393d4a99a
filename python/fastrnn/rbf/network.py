"""What both radial-basis-function estimators share: how a network is made and run.

Letters: n rows, D features, M units, K columns (a constant, a tail, units), k outputs or classes.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional
from fastrnn.rbf import centers as rbf_centers
from fastrnn.rbf.data import Rows, divide, folds
from fastrnn.rbf.files import SavedNetwork
from fastrnn.rbf.memory import combine, thin
from fastrnn.rbf.output import Factor, fit_softmax, orthogonal_complement
from fastrnn.rbf.plots import draw_activations
from fastrnn.rbf.tuning import tune
from fastrnn.rbf.units import KERNELS, Units, row_blocks
from fastrnn.scikit import (
    BaseEstimator,
    NotFittedError,
    TransformerMixin,
    finite_array,
    finite_number,
    read_rows,
    to_generator,
)

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["RadialNetwork"]

_CENTERS = ("kmeans", "random", "pca", "ols", "greedy", "all")
_COUNTS = (5, 10, 20, 50, 100, 200, 500)  # what n_centers="cv" tries


class _Network(NamedTuple):
    """Units and what the columns beside them are.

    Attributes
    ----------
    units : Units
        The hidden layer.
    shift, scale : ndarray (D,) or None
        Of a tail: what is taken off the features, and what they are divided by.
    """

    units: Units
    shift: Array | None
    scale: Array | None

    @property
    def fixed(self) -> int:
        """How many columns are not of units."""
        return 1 if self.shift is None else 1 + len(self.shift)

    def beside(self, X: Array) -> Array:
        """Return the columns (n, P) that are not of units: a constant, and those of the tail."""
        ones = np.ones((len(X), 1))
        if self.shift is None or self.scale is None:
            return ones
        return np.hstack([ones, (X - self.shift) / self.scale])

    def columns(self, X: Array) -> Array:
        """Return all columns (n, P + M)."""
        return np.hstack([self.beside(X), self.units(X)])

    def factor(self, rows: Rows, into: Factor | None = None) -> Factor:
        """Add rows to a factor, a new one by default."""
        K = self.fixed + len(self.units)
        factor = into or Factor(K, rows.Y.shape[1])
        factor.add_in_blocks(self.columns, rows)
        return factor

    def basis(self, count: int) -> Array | None:
        """Return what weights are combinations of where rows are fewer than unknowns.

        They are orthogonal to the other columns at the centres, which is what makes interpolation
        by a radial function and a polynomial unique.
        """
        if count >= self.fixed + len(self.units):
            return None
        return orthogonal_complement(self.beside(self.units.centers))


class _Earlier(NamedTuple):
    """What a network knows when more rows come.

    Attributes
    ----------
    factor : Factor
        Of earlier rows.
    coefficients : ndarray (K, k)
        Found with them.
    rows : Rows
        Of softmax all that are remembered, with the new ones.
    """

    factor: Factor
    coefficients: Array
    rows: Rows


class _Options(NamedTuple):
    """Checked arguments of the constructor."""

    output: str
    kernel: str
    normalize: bool
    tail: bool
    alpha: float | None
    goal: float
    fine_tune: int


class RadialNetwork(TransformerMixin, SavedNetwork, BaseEstimator):
    """What both estimators share."""

    _output = "ridge"

    def __init__(
        self,
        n_centers: Any = 100,
        centers: Any = "kmeans",
        *,
        width: Any = "mean",
        kernel: str = "gaussian",
        alpha: Any = 1e-3,
        normalize: bool = False,
        tail: bool = False,
        goal: float = 0.0,
        fine_tune: int = 0,
        learning_rate: float = 0.03,
        validation_fraction: float = 0.1,
        patience: int = 10,
        random_state: Any = None,
    ) -> None:
        # As they are: scikit-learn wants them back so, and `fit` checks them.
        self.n_centers = n_centers
        self.centers = centers
        self.width = width
        self.kernel = kernel
        self.alpha = alpha
        self.normalize = normalize
        self.tail = tail
        self.goal = goal
        self.fine_tune = fine_tune
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state

    def _options(self) -> _Options:
        gcv = isinstance(self.alpha, str)
        if gcv:
            functional.choice("alpha", self.alpha, ("gcv",))
        return _Options(
            self._output,
            functional.choice("kernel", self.kernel, tuple(KERNELS)),
            functional.boolean("normalize", self.normalize),
            functional.boolean("tail", self.tail),
            None if gcv else finite_number("alpha", self.alpha),
            functional.number("goal", self.goal, 0),
            functional.integer("fine_tune", self.fine_tune, 0),
        )

    # How a network is made.

    def _hidden_layer(self, rows: Rows, M: int, rng: np.random.Generator) -> _Network:
        """Choose centres and widths."""
        options = self._options()
        if len(rows.X) > 1 and not np.any((rows.X - rows.X[0]) ** 2 > 0):
            raise ValueError(
                "X: expected features, and widths, whose squares float64 can tell apart, got"
                " differences that are too small"
            )
        shift, scale = None, None
        if options.tail:
            shift, scale = rows.statistics()
        given = self.centers
        width: Any = self.width
        if isinstance(given, str):
            method = functional.choice("centers", given, _CENTERS)
            if method in ("ols", "greedy"):
                width = self._shared_width(rows, M, rng)
                beside = _Network(Units(rows.X[:1], np.ones(1), "linear"), shift, scale)
                common = (rows.X, rows.weights, rows.Y, beside.beside(rows.X), M, width)
                if method == "ols":
                    centers = rbf_centers.select_orthogonally(
                        *common, options.kernel, options.goal, rng
                    )
                else:
                    centers = rbf_centers.select_greedily(*common, options.kernel, options.goal)
            else:
                centers = _spread_centers(method, rows, M, rng)
        else:
            centers = finite_array("centers", "numbers (M, D)", given)
            if centers.ndim != 2 or not len(centers) or centers.shape[1] != rows.X.shape[1]:
                raise ValueError(
                    f"centers: expected (M, {rows.X.shape[1]}) float64, got {centers.shape}"
                    f" {centers.dtype}"
                )
        widths = _widths(width, centers, rows)
        units = Units(centers, widths, options.kernel, options.normalize)
        rbf_centers.warn_of_collapse(units, rows.X)
        return _Network(units, shift, scale)

    def _shared_width(self, rows: Rows, M: int, rng: np.random.Generator) -> float:
        """Return the width of units whose centres are still to be chosen."""
        if isinstance(self.width, str):
            likely = rbf_centers.cluster(rows.X, rows.weights, M, rng)
            return float(_widths(self.width, likely, rows).mean())
        if np.size(self.width) != 1:
            raise ValueError(
                f"width: expected a rule or one number for centers={self.centers!r}, got"
                f" {np.shape(self.width)}"
            )
        return float(_widths(self.width, rows.X[:1], rows)[0])

    def _count(self, rows: Rows, rng: np.random.Generator) -> int:
        """Return how many centres there are to be."""
        if isinstance(self.n_centers, str):
            functional.choice("n_centers", self.n_centers, ("cv",))
            if isinstance(self.centers, str) and self.centers != "all":
                return self._cross_validated_count(rows, rng)
            return len(rows.X)
        M = functional.integer("n_centers", self.n_centers, 1)
        return len(rows.X) if isinstance(self.centers, str) and self.centers == "all" else M

    def _cross_validated_count(self, rows: Rows, rng: np.random.Generator) -> int:
        if not isinstance(self.width, str):
            shape = finite_array("width", "numbers > 0", self.width).shape
            if shape[:1] not in ((), (1,)):
                raise ValueError(
                    f"width: expected a rule, one number or (1, {rows.X.shape[1]}) for"
                    f" n_centers='cv', got widths of {shape[0]} units"
                )
        parts = folds(rows.groups(self._has_classes), min(5, len(rows.X)), rng)
        smallest = len(rows.X) - max(len(part) for part in parts)
        if len(parts) < 2:  # one row alone, many times perhaps
            return 1
        counts = [count for count in _COUNTS if count < smallest] or [max(1, smallest)]
        losses = []
        seed = int(rng.integers(2**62))
        for M in counts:
            loss = 0.0
            for part in parts:
                inside = np.ones(len(rows.X), bool)
                inside[part] = False
                network = self._hidden_layer(rows.take(inside), M, np.random.default_rng(seed))
                coefficients, _, _ = self._solve(network, rows.take(inside))
                out = _outputs(network, coefficients, rows.X[part])
                loss += self._loss(out, rows.take(part))
            losses.append(loss / rows.weights.sum())
        self.cv_results_ = {"n_centers": counts, "loss": [float(loss) for loss in losses]}
        return counts[int(np.argmin(losses))]

    def _loss(self, outputs: Array, rows: Rows) -> float:
        """Return the sum of squared errors or of cross-entropies."""
        if self._output == "softmax":
            logits = outputs - outputs.max(axis=1, keepdims=True)
            errors = np.log(np.exp(logits).sum(axis=1)) - (rows.Y * logits).sum(axis=1)
        else:
            errors = ((outputs - rows.Y) ** 2).sum(axis=1)
        return float(rows.weights @ errors)

    def _solve(
        self,
        network: _Network,
        rows: Rows,
        earlier: _Earlier | None = None,
        *,
        inverse: bool = False,
        is_start: bool = False,
    ) -> tuple[Array, float, tuple[Factor, Array | None]]:
        """Return coefficients, alpha, and the factor of all rows with its inverse.

        The factor of earlier rows is added to. `is_start` tells that the coefficients are only to
        start from, and so not constrained.
        """
        alpha = self._options().alpha
        is_softmax = self._output == "softmax"
        K = network.fixed + len(network.units)
        factor = network.factor(rows, None if earlier is None else earlier.factor)
        basis = None if is_softmax or is_start else network.basis(factor.rows)
        fit = factor.ridge(alpha, basis, inverse=inverse or is_softmax)
        if is_softmax and alpha is None:  # classes that can be told apart for sure need more
            least = 1e-7 * float((factor.R[:, :K] ** 2).sum()) / K
            fit = factor.ridge(max(fit.alpha, least), inverse=True)
        coefficients = fit.coefficients
        if is_softmax:
            assert fit.inverse is not None
            start: Array = np.zeros_like(coefficients)
            if earlier is not None:
                rows, start = earlier.rows, earlier.coefficients
            coefficients = fit_softmax(
                network.columns(rows.X), rows.Y, rows.weights, fit.alpha, fit.inverse, start
            )
        return coefficients, fit.alpha, (factor, fit.inverse)

    def _train(self, rows: Rows) -> None:
        """Fit a new network."""
        options = self._options()
        rng = to_generator(self.random_state)
        for name in ("cv_results_", "history_", "n_iter_"):
            vars(self).pop(name, None)
        M = self._count(rows, rng)
        if options.fine_tune:
            held = divide(rows.groups(self._has_classes), self.validation_fraction, rng)
            train, validation = rows.take(~held), rows.take(held)
        else:
            train = rows
        network = self._hidden_layer(train, M, rng)
        is_start = options.fine_tune > 0
        coefficients, alpha, (factor, inverse) = self._solve(
            network, train, inverse=self._needs_inverse or is_start, is_start=is_start
        )
        if options.fine_tune:
            assert inverse is not None
            units, coefficients, self.history_ = tune(
                network.units,
                network.beside,
                coefficients,
                inverse,
                train,
                validation,
                alpha=alpha,
                is_softmax=self._output == "softmax",
                epochs=options.fine_tune,
                learning_rate=finite_number("learning_rate", self.learning_rate),
                patience=functional.integer("patience", self.patience, 1),
                generator=rng,
            )
            self.n_iter_ = self.history_.epochs[-1]
            network = network._replace(units=units)
            outputs = _outputs(network, coefficients, validation.X)
            self._calibrate(outputs, validation.Y, validation.weights)
            factor = network.factor(rows)  # for partial_fit
        elif self._needs_inverse:
            assert inverse is not None
            self._calibrate(*_left_out(network, coefficients, inverse, rows))
        self._keep(network, coefficients, alpha, factor, rows)

    def _continue(self, rows: Rows, is_first: bool) -> None:
        """Go on with more rows."""
        if is_first:
            for name in ("cv_results_", "history_", "n_iter_"):
                vars(self).pop(name, None)
            rng = to_generator(self.random_state)
            M = self._count(rows, rng)
            network = self._hidden_layer(rows, M, rng)
            if isinstance(self.centers, str) and len(rows.X) < M:
                warnings.warn(
                    f"n_centers: the first call of partial_fit has {len(rows.X)} different rows,"
                    f" fewer than {M}, and so the network keeps {len(network.units)} centres for"
                    " ever; start with more rows, or give an array as centers",
                    RuntimeWarning,
                    stacklevel=3,
                )
            everything, earlier = rows, None
        else:
            self._check_unchanged()
            network = self._network()
            everything = rows if self._memory is None else combine(self._memory, rows)
            earlier = _Earlier(copy.copy(self._factor), self._coefficients(), everything)
        before = 0.0 if earlier is None else earlier.factor.observations
        needed = self._needs_inverse
        coefficients, alpha, (factor, inverse) = self._solve(network, rows, earlier, inverse=needed)
        if needed:
            assert inverse is not None
            left_out = _left_out(network, coefficients, inverse, rows)
            self._calibrate(*left_out, before / factor.observations)
        self._keep(network, coefficients, alpha, factor, everything)

    def _check_unchanged(self) -> None:
        """Raise if parameters were set that a fitted network cannot follow."""
        options = self._options()
        kernel, normalize = self._kind
        fitted = {
            "output": self._objective,
            "kernel": kernel,
            "normalize": normalize,
            "tail": self.slopes_ is not None,
        }
        for name, value in fitted.items():
            if getattr(options, name) != value:
                raise ValueError(
                    f"{name}: expected {value!r}, which the network was fitted with, got"
                    f" {getattr(options, name)!r}; only fit can change it"
                )

    _has_classes = False
    _needs_inverse = False

    def _calibrate(self, outputs: Array, Y: Array, weights: Array, known: float = 0.0) -> None:
        """Learn from outputs of rows that were left out; a part of all rows is known already."""

    # What is known after a fit.

    def _keep(
        self, network: _Network, coefficients: Array, alpha: float, factor: Factor, rows: Rows
    ) -> None:
        if not np.all(np.isfinite(coefficients)):
            raise ValueError(
                "X: expected features, and widths, whose squares float64 can tell apart, got such"
                " that the weights are not finite"
            )
        self.centers_, self.widths_ = network.units.centers, network.units.widths
        self.n_centers_ = len(network.units)
        self.alpha_ = alpha
        P = network.fixed
        self.weights_ = coefficients[P:]
        self.intercept_ = coefficients[0]
        self.slopes_ = None
        if network.shift is not None:
            assert network.scale is not None
            self.slopes_ = coefficients[1:P] / network.scale[:, np.newaxis]
            self.intercept_ = coefficients[0] - network.shift @ self.slopes_
        # Not the parameters, which can be set after a fit.
        self._objective = self._output
        self._kind = network.units.kernel_name, network.units.normalize
        self._tail = network.shift, network.scale
        self._factor = factor
        # The factor tells least squares all about earlier rows, but not the cross-entropy.
        self._memory = thin(rows, factor.rows) if self._output == "softmax" else None

    def _network(self) -> _Network:
        return _Network(self._units(), *self._tail)

    def _units(self) -> Units:
        return Units(self.centers_, self.widths_, *self._kind)

    def _coefficients(self) -> Array:
        """Return the coefficients of the network's columns."""
        if self.slopes_ is None:
            return np.vstack([self.intercept_, self.weights_])
        shift, scale = self._tail
        assert shift is not None
        assert scale is not None
        return np.vstack(
            [
                self.intercept_ + shift @ self.slopes_,
                self.slopes_ * scale[:, np.newaxis],
                self.weights_,
            ]
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_")

    def _check_fitted(self) -> None:
        if not hasattr(self, "weights_"):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet: call fit first"
            )

    def _forward(self, X: Any) -> Array:
        """Return the outputs (n, k)."""
        self._check_fitted()
        X = read_rows(self, X)
        units = self._units()
        outputs = np.empty((len(X), self.weights_.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            for part, h in units.blocks(X):
                outputs[part] = h @ self.weights_ + self.intercept_
                if self.slopes_ is not None:
                    outputs[part] += X[part] @ self.slopes_
        if not np.isfinite(outputs).all():
            raise ValueError("X: expected features whose outputs fit float64, got larger ones")
        return outputs

    def transform(self, X: Any) -> Array:
        """Compute the activations of the units.

        Parameters
        ----------
        X : array (n, D)
            Rows.

        Returns
        -------
        ndarray (n, M)
            Activations.
        """
        self._check_fitted()
        X = read_rows(self, X)
        return self._units()(X)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return names of the activations.

        Parameters
        ----------
        input_features : ignored
            Accepted as scikit-learn does.

        Returns
        -------
        ndarray of str (M,)
            The name of the class and the number of the unit.
        """
        self._check_fitted()
        prefix = type(self).__name__.lower()
        return np.array([f"{prefix}{unit}" for unit in range(self.n_centers_)], dtype=object)

    def plot_activations(
        self,
        path: str | os.PathLike[str] | None = None,
        ax: Any = None,
        *,
        resolution: int = 200,
    ) -> Any:
        """Draw what the units answer to inputs of one or two features.

        Parameters
        ----------
        path : path, optional
            Where to save the picture, in the format that the name ends in.
        ax : matplotlib Axes, optional
            Where to draw; without it a new figure is made.
        resolution : int, default 200
            Points along each axis.

        Returns
        -------
        matplotlib.figure.Figure
            The figure: of one feature a curve for each unit, of two the largest activation.
        """
        self._check_fitted()
        D = self.n_features_in_
        if D > 2:
            raise ValueError(f"plot_activations: expected a fit to 1 or 2 features, got {D}")
        return draw_activations(
            self._units(), path, ax, functional.integer("resolution", resolution, 2)
        )


def _outputs(network: _Network, coefficients: Array, X: Array) -> Array:
    """Return the outputs (n, k) of a network."""
    P = network.fixed
    outputs = network.beside(X) @ coefficients[:P]
    for part, h in network.units.blocks(X):
        outputs[part] += h @ coefficients[P:]
    return outputs


def _left_out(
    network: _Network, coefficients: Array, inverse: Array, rows: Rows
) -> tuple[Array, Array, Array]:
    """Return the outputs that observations would get from a ridge fit to the others.

    Of a row that was merged from many, one is left out at a time: the others stay, and tell what
    there is at that place. Rows of many classes are returned once for each class.

    Returns
    -------
    outputs, Y : ndarray (m, k)
        Outputs, and 1 for the class of each.
    weights : ndarray (m,)
        Weights.
    """
    outputs, leverage = np.empty_like(rows.Y), np.empty((len(rows.X), 1))
    for part in row_blocks(len(rows.X), inverse.shape[0]):
        A = network.columns(rows.X[part])
        outputs[part] = A @ coefficients
        one = rows.weights[part] / rows.counts[part]
        leverage[part, 0] = one * ((A @ inverse) ** 2).sum(axis=1)
    row, label = np.nonzero(rows.Y)
    Y = np.eye(rows.Y.shape[1])[label]
    errors = (Y - outputs[row]) / np.maximum(1 - leverage[row], 1e-8)
    return Y - np.clip(errors, -2, 2), Y, rows.weights[row] * rows.Y[row, label]


def _spread_centers(method: str, rows: Rows, M: int, rng: np.random.Generator) -> Array:
    """Return centres that depend on the rows alone and not on their targets."""
    if method == "all":
        return rows.X
    if method == "random":
        return rbf_centers.draw(rows.X, rows.weights, M, rng)
    if method == "pca":
        return rbf_centers.split(rows.X, rows.weights, M)
    return rbf_centers.cluster(rows.X, rows.weights, M, rng)


def _widths(width: Any, centers: Array, rows: Rows) -> Array:
    """Return widths (M,) or (M, D)."""
    M, D = centers.shape
    if isinstance(width, str):
        rule = functional.choice("width", width, rbf_centers.RULES)
        _, scale = rows.statistics()
        return rbf_centers.width_rule(rule, centers, math.sqrt(float(scale @ scale)))
    widths = finite_array("width", f"numbers > 0, (), ({M},) or ({M}, {D})", width)
    if widths.shape not in ((), (1,), (M,), (M, 1), (1, D), (M, D)):
        raise ValueError(
            f"width: expected (), ({M},) or ({M}, {D}) for {M} centres, got {widths.shape}"
        )
    if not np.all(widths > 0):
        raise ValueError(f"width: expected numbers > 0, got {widths.min()}")
    if widths.ndim < 2 or widths.shape == (M, 1):
        return np.array(np.broadcast_to(widths.ravel(), (M,)))
    return np.array(np.broadcast_to(widths, (M, D)))
