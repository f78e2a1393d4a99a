"""What both radial-basis-function estimators share: how a network is made, and its file.

Letters: n rows, D features, M units, K columns (a constant, a tail, units), k outputs or classes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional, io
from fastrnn.callbacks import History
from fastrnn.estimators import BaseEstimator, NotFittedError
from fastrnn.estimators import _generator as to_generator
from fastrnn.rbf import centers as rbf_centers
from fastrnn.rbf.data import Rows, divide, folds, read_rows
from fastrnn.rbf.output import Factor, fit_softmax, orthogonal_complement
from fastrnn.rbf.tuning import tune
from fastrnn.rbf.units import KERNELS, Units, row_blocks

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from typing_extensions import Self

    Array = NDArray[np.float64]

__all__ = ["RadialNetwork"]

_CENTERS = ("kmeans", "random", "pca", "ols", "greedy", "all")
_COUNTS = (5, 10, 20, 50, 100, 200, 500)  # what n_centers="cv" tries
_FORMAT = "fastrnn RBFN 1"


class _Transformer:
    """What scikit-learn's ``TransformerMixin`` gives, for where it is not installed."""

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Array:
        """Fit, and return the activations of the same rows.

        Parameters
        ----------
        X : array (n, D)
            Rows.
        y : array (n,) or (n, k)
            Their targets.
        **fit_params
            More arguments of ``fit``.

        Returns
        -------
        ndarray (n, M)
            Activations.
        """
        estimator: Any = self
        activations: Array = estimator.fit(X, y, **fit_params).transform(X)
        return activations


if TYPE_CHECKING:
    TransformerMixin = _Transformer
else:
    try:
        from sklearn.base import TransformerMixin
    except ModuleNotFoundError:
        TransformerMixin = _Transformer


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


class _Options(NamedTuple):
    """Checked arguments of the constructor."""

    kernel: str
    normalize: bool
    tail: bool
    alpha: float | None
    goal: float
    fine_tune: int


class RadialNetwork(TransformerMixin, BaseEstimator):
    """What both estimators share."""

    _output = "ridge"
    n_features_in_: int

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
        elif self.alpha == math.inf:
            raise ValueError("alpha: expected a finite number >= 0, got inf")
        return _Options(
            functional.choice("kernel", self.kernel, tuple(KERNELS)),
            functional.boolean("normalize", self.normalize),
            functional.boolean("tail", self.tail),
            None if gcv else functional.number("alpha", self.alpha, 0),
            functional.number("goal", self.goal, 0),
            functional.integer("fine_tune", self.fine_tune, 0),
        )

    # How a network is made.

    def _hidden_layer(self, rows: Rows, M: int, rng: np.random.Generator) -> _Network:
        """Choose centres and widths."""
        options = self._options()
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
            centers = _array("centers", "numbers (M, D)", given)
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
        earlier: tuple[Factor, Array] | None = None,
        *,
        inverse: bool = False,
        is_start: bool = False,
    ) -> tuple[Array, float, tuple[Factor, Array | None]]:
        """Return coefficients, alpha, and the factor of all rows with its inverse.

        `earlier` are the factor of earlier rows, which is added to, and the coefficients of them.
        `is_start` tells that the coefficients are only to start from, and so not constrained.
        """
        alpha = self._options().alpha
        is_softmax = self._output == "softmax"
        K = network.fixed + len(network.units)
        penalty = np.eye(K)
        penalty[0, 0] = 0
        old = None if earlier is None else earlier[0].R[:, :K].copy()
        factor = network.factor(rows, None if earlier is None else earlier[0])
        basis = None if is_softmax or is_start else network.basis(factor.rows)
        fit = factor.ridge(alpha, basis, inverse=inverse or is_softmax)
        if is_softmax and alpha is None:  # classes that can be told apart for sure need more
            least = 1e-7 * float((factor.R[:, :K] ** 2).sum()) / K
            fit = factor.ridge(max(fit.alpha, least), inverse=True)
        coefficients = fit.coefficients
        if is_softmax:
            assert fit.inverse is not None
            start: Array = np.zeros_like(coefficients) if earlier is None else earlier[1]
            curvature = fit.alpha * penalty
            if old is not None:
                # The cross-entropy of earlier rows is bent by at most half of their Gram matrix,
                # and has no slope where it is smallest.
                curvature += 0.5 * old.T @ old
            coefficients = fit_softmax(
                network.columns(rows.X), rows.Y, rows.weights, curvature, fit.inverse, start
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
                learning_rate=self.learning_rate,
                patience=functional.integer("patience", self.patience, 1),
                generator=rng,
            )
            self.n_iter_ = self.history_.epochs[-1]
            network = network._replace(units=units)
            self._calibrate(_outputs(network, coefficients, validation.X), validation)
            factor = network.factor(rows)  # for partial_fit
        elif self._needs_inverse:
            assert inverse is not None
            self._calibrate(_left_out(network, coefficients, inverse, rows), rows)
        self._keep(network, coefficients, alpha, factor)

    def _continue(self, rows: Rows, is_first: bool) -> None:
        """Go on with more rows."""
        if is_first:
            for name in ("cv_results_", "history_", "n_iter_"):
                vars(self).pop(name, None)
            rng = to_generator(self.random_state)
            network = self._hidden_layer(rows, self._count(rows, rng), rng)
            earlier = None
        else:
            network = self._network()
            earlier = (self._copied_factor(), self._coefficients())
        before = 0 if earlier is None else earlier[0].rows
        needed = self._needs_inverse
        coefficients, alpha, (factor, inverse) = self._solve(network, rows, earlier, inverse=needed)
        if needed:
            assert inverse is not None
            known = before / (before + len(rows.X))
            self._calibrate(_left_out(network, coefficients, inverse, rows), rows, known)
        self._keep(network, coefficients, alpha, factor)

    _has_classes = False
    _needs_inverse = False

    def _calibrate(self, outputs: Array, rows: Rows, known: float = 0.0) -> None:
        """Learn from outputs of rows that were left out; a part of all rows is known already."""

    # What is known after a fit.

    def _keep(self, network: _Network, coefficients: Array, alpha: float, factor: Factor) -> None:
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
        self.slopes_: Array | None = None
        if network.shift is not None:
            assert network.scale is not None
            self.slopes_ = coefficients[1:P] / network.scale[:, np.newaxis]
            self.intercept_ = coefficients[0] - network.shift @ self.slopes_
        # Not the parameters, which can be set after a fit.
        self._kind = network.units.kernel_name, network.units.normalize
        self._tail = network.shift, network.scale
        self._factor = factor

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

    def _copied_factor(self) -> Factor:
        copied = Factor(self._factor.columns, self.weights_.shape[1])
        copied.R, copied.rows = self._factor.R, self._factor.rows
        return copied

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
        for part, h in units.blocks(X):
            outputs[part] = h @ self.weights_ + self.intercept_
            if self.slopes_ is not None:
                outputs[part] += X[part] @ self.slopes_
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
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("plot_activations needs matplotlib: pip install matplotlib") from None
        if ax is None:
            ax = Figure(figsize=(5, 3.6), layout="constrained").subplots()
        count = functional.integer("resolution", resolution, 2)
        low, high = self.centers_.min(axis=0), self.centers_.max(axis=0)
        margin = 0.15 * (high - low) + 0.1 * float(self.widths_.mean())
        axes = [np.linspace(a, b, count) for a, b in zip(low - margin, high + margin, strict=True)]
        units = self._units()
        if D == 1:
            ax.plot(axes[0], units(axes[0][:, np.newaxis]), linewidth=1)
            ax.plot(self.centers_[:, 0], np.zeros(len(units)), "k|")
            ax.set(xlabel="x", ylabel="activation")
        else:
            grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
            largest = units(grid).max(axis=1).reshape(count, count)
            shown = ax.pcolormesh(*axes, largest, shading="nearest", cmap="viridis")
            ax.figure.colorbar(shown, ax=ax, label="largest activation")
            ax.plot(*self.centers_.T, "w.", markersize=4)
            ax.set(xlabel="first feature", ylabel="second feature")
        if path is not None:
            ax.figure.savefig(path, dpi=150)
        return ax.figure

    # Files.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file, without pickle.

        Parameters
        ----------
        path : path ending in ``.safetensors`` or ``.npz``
            A file there is replaced.

        Notes
        -----
        A `random_state` that is no integer is saved as None.
        """
        self._check_fitted()
        arrays: dict[str, NDArray[Any]] = {
            "centers": self.centers_,
            "widths": self.widths_,
            "weights": self.weights_,
            "intercept": self.intercept_,
            "factor": self._factor.R,
        }
        if self.slopes_ is not None:
            arrays["slopes"] = self.slopes_
            for name, value in zip(("shift", "scale"), self._tail, strict=True):
                assert value is not None
                arrays[name] = value
        if hasattr(self, "history_"):
            for name, value in self.history_.state_dict().items():
                arrays[f"history/{name}"] = value
        parameters = {}
        for name, value in self.get_params().items():
            if name == "random_state" and not isinstance(value, (int, np.integer)):
                value = None
            if isinstance(value, (list, tuple, np.ndarray)):
                arrays[f"parameters/{name}"] = _array(name, "numbers", value)
            else:
                parameters[name] = value.item() if isinstance(value, np.generic) else value
        metadata = {
            "format": _FORMAT,
            "class": type(self).__name__,
            "parameters": json.dumps(parameters),
            "state": json.dumps({"rows": self._factor.rows, "alpha": self.alpha_, **self._state()}),
        }
        io.save_arrays(path, arrays, metadata)

    def _state(self) -> dict[str, Any]:
        """Return what there is beside arrays of numbers."""
        names = getattr(self, "feature_names_in_", None)
        return {
            "kernel": self._kind[0],
            "normalize": self._kind[1],
            "feature_names": None if names is None else [str(name) for name in names],
            "cv_results": getattr(self, "cv_results_", None),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an estimator that `save` wrote.

        Parameters
        ----------
        path : path ending in ``.safetensors`` or ``.npz``
            Where the file is.

        Returns
        -------
        estimator
            It predicts what the saved one did, and can go on with `partial_fit`.

        Raises
        ------
        ValueError
            If the file has another form or holds something else. Numbers that were damaged in a
            safetensors file are not noticed, as it has no checksum.
        """
        arrays, metadata = io.load_arrays(path)
        if metadata.get("format") != _FORMAT or metadata.get("class") != cls.__name__:
            raise ValueError(
                f"{path}: expected a file that {cls.__name__}.save wrote, got one of"
                f" {metadata.get('class')!r} in format {metadata.get('format')!r}"
            )
        try:
            return cls._restored(arrays, metadata)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: expected what save writes, got {error!r}") from error

    @classmethod
    def _restored(cls, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Self:
        parameters = json.loads(metadata["parameters"])
        state = json.loads(metadata["state"])
        for name, array in arrays.items():
            if name.startswith("parameters/"):
                parameters[name.partition("/")[2]] = array
        estimator = cls(**parameters)
        M, D = arrays["centers"].shape
        k = len(arrays["intercept"])
        has_tail = "slopes" in arrays
        P = 1 + D if has_tail else 1
        expected = {"weights": (M, k), "intercept": (k,)}
        if has_tail:
            expected |= {"slopes": (D, k), "shift": (D,), "scale": (D,)}
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name}: expected {shape}, got {arrays[name].shape}")
        if arrays["widths"].shape not in ((M,), (M, D)):
            raise ValueError(f"widths: expected {(M,)} or {(M, D)}, got {arrays['widths'].shape}")
        if arrays["factor"].ndim != 2 or arrays["factor"].shape[1] != P + M + k:
            raise ValueError(f"factor: expected (rows, {P + M + k}), got {arrays['factor'].shape}")
        estimator.centers_, estimator.widths_ = arrays["centers"], arrays["widths"]
        estimator.weights_, estimator.intercept_ = arrays["weights"], arrays["intercept"]
        estimator.slopes_ = arrays.get("slopes")
        kernel = functional.choice("kernel", state["kernel"], tuple(KERNELS))
        estimator._kind = kernel, functional.boolean("normalize", state["normalize"])
        estimator._tail = arrays.get("shift"), arrays.get("scale")
        estimator.n_centers_, estimator.n_features_in_ = M, D
        estimator.alpha_ = functional.number("alpha", state["alpha"], 0)
        estimator._factor = Factor(P + M, k)
        estimator._factor.R = arrays["factor"]
        estimator._factor.rows = functional.integer("rows", state["rows"], 1)
        history = {n.partition("/")[2]: a for n, a in arrays.items() if n.startswith("history/")}
        if history:
            estimator.history_ = History()
            estimator.history_.load_state_dict(history)
            estimator.n_iter_ = estimator.history_.epochs[-1]
        estimator._set_state(state)
        return estimator

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if state["feature_names"] is not None:
            self.feature_names_in_ = np.array(state["feature_names"], dtype=object)
        if state["cv_results"] is not None:
            self.cv_results_ = state["cv_results"]


def _outputs(network: _Network, coefficients: Array, X: Array) -> Array:
    """Return the outputs (n, k) of a network."""
    P = network.fixed
    outputs = network.beside(X) @ coefficients[:P]
    for part, h in network.units.blocks(X):
        outputs[part] += h @ coefficients[P:]
    return outputs


def _left_out(network: _Network, coefficients: Array, inverse: Array, rows: Rows) -> Array:
    """Return the outputs (n, k) that each row would get from a ridge fit to the others."""
    outputs = np.empty_like(rows.Y)
    for part in row_blocks(len(rows.X), inverse.shape[0]):
        A = network.columns(rows.X[part])
        leverage = (rows.weights[part] * ((A @ inverse) ** 2).sum(axis=1))[:, np.newaxis]
        errors = (rows.Y[part] - A @ coefficients) / np.maximum(1 - leverage, 1e-8)
        outputs[part] = rows.Y[part] - np.clip(errors, -2, 2)
    return outputs


def _spread_centers(method: str, rows: Rows, M: int, rng: np.random.Generator) -> Array:
    """Return centres that depend on the rows alone and not on their targets."""
    if method == "all":
        return rows.X
    if method == "random":
        return rbf_centers.draw(rows.X, rows.weights, M, rng)
    if method == "pca":
        return rbf_centers.split(rows.X, rows.weights, M)
    return rbf_centers.cluster(rows.X, rows.weights, M, rng)


def _array(name: str, expected: str, value: Any) -> Array:
    """Return finite numbers, or raise an error that names the argument."""
    array = np.asarray(functional.listed(name, expected, value))
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite {expected}, got {array.shape} {array.dtype}")
    return array.astype(np.float64)


def _widths(width: Any, centers: Array, rows: Rows) -> Array:
    """Return widths (M,) or (M, D)."""
    M, D = centers.shape
    if isinstance(width, str):
        rule = functional.choice("width", width, rbf_centers.RULES)
        _, scale = rows.statistics()
        return rbf_centers.width_rule(rule, centers, math.sqrt(float(scale @ scale)))
    widths = _array("width", f"numbers > 0, (), ({M},) or ({M}, {D})", width)
    if widths.shape not in ((), (1,), (M,), (M, 1), (1, D), (M, D)):
        raise ValueError(f"width: expected (), ({M},) or ({M}, {D}) float64, got {widths.shape}")
    if not np.all(widths > 0):
        raise ValueError(f"width: expected numbers > 0, got {widths.min()}")
    if widths.ndim < 2 or widths.shape == (M, 1):
        return np.array(np.broadcast_to(widths.ravel(), (M,)))
    return np.array(np.broadcast_to(widths, (M, D)))
