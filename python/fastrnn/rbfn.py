"""Radial-basis-function networks with the interface of scikit-learn.

`RBFNRegressor` and `RBFNClassifier` are scikit-learn estimators where scikit-learn is installed.
Without it they have the same methods.

Letters: n rows, D features, M units, k outputs or classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional
from fastrnn.activations import softmax
from fastrnn.rbf.data import read_classes, read_labels, read_targets
from fastrnn.rbf.network import RadialNetwork
from fastrnn.rbf.output import temperature
from fastrnn.scikit import ClassifierMixin, RegressorMixin, all_or_nothing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    Array = NDArray[np.float64]

__all__ = ["RBFNClassifier", "RBFNRegressor"]


class RBFNRegressor(RegressorMixin, RadialNetwork):
    """Radial-basis-function network that finds numbers, with scikit-learn's interface.

    The output is a weighted sum of units h_j(x) = φ(‖(x - c_j) / r_j‖) and a constant [1]_. Centres
    and widths are chosen, and the weights are a ridge regression.

    Parameters
    ----------
    n_centers : int or "cv", default 100
        Units M, at most the number of different rows. "cv" chooses among 5, 10, 20, 50, 100, 200
        and 500 by cross-validation with 5 parts.
    centers : {"kmeans", "random", "pca", "ols", "greedy", "all"} or array (M, D), default "kmeans"
        Where the units are. "kmeans" takes means of clusters, from k-means++; "random" draws rows;
        "pca" takes means of parts that rows are split into along principal axes, which is not
        random; "ols" chooses rows by orthogonal least squares, each time the one that explains
        most; "greedy" each time the one with the largest error, as MATLAB's ``newrb``; "all" takes
        all rows.
    width : {"mean", "nearest", "dmax"}, number or array (M,) or (M, D), default "mean"
        Widths r of all units, of each, or of each and each feature. "mean" is the mean distance of
        two centres, "nearest" for each unit twice the distance to the nearest other one, and "dmax"
        the largest distance over sqrt(2M), which in many dimensions leaves no unit active; that
        warns. For one or two features "nearest" is the sharper choice: the mean distance of centres
        is large there, so that with 40 units in one dimension "mean" is too smooth. With "ols" and
        "greedy" a rule acts on k-means centres, and its mean is taken.
    kernel : str, default "gaussian"
        With t = ‖x - c‖ / r: "gaussian" exp(-t²/2), so exp(-‖x - c‖² / (2r²)). Of the others r is
        1 / ``epsilon`` of ``scipy.interpolate.RBFInterpolator``: "multiquadric" sqrt(1 + t²),
        "inverse_multiquadric" 1/sqrt(1 + t²), "inverse_quadratic" 1/(1 + t²),
        "thin_plate_spline" t² log t, "cubic" t³, "linear" t. SciPy's gaussian is exp(-t²), so
        there r = 1 / (sqrt(2)·``epsilon``).
    alpha : float >= 0 or "gcv", default 1e-3
        Penalty alpha·(sum of squared weights), added to the sum of squared errors. "gcv" chooses it
        by generalised cross-validation, in which a `sample_weight` of 2 is two observations if all
        are integers, and otherwise each row is one.
    normalize : bool, default False
        Whether activations are divided by their sum.
    tail : bool, default False
        Whether a linear function of the features is added. Its slopes, for features of standard
        deviation 1, are penalised as weights are.
    goal : float, default 0
        With "ols" and "greedy", mean squared error (summed over outputs, without penalty) at which
        no more units are taken.
    fine_tune : int, default 0
        Epochs in which centres, widths and weights are trained together by gradient (Adam, batches
        of up to 128), up to the lowest loss of rows that are kept to validate with. After each
        epoch the weights of a ridge regression are solved for anew.
    learning_rate : float, default 0.03
        Of that, at its largest. Parameters are scaled so that the same suits most networks.
    validation_fraction : float in (0, 1), default 0.1
        Part of the rows that is kept, if there is fine-tuning.
    patience : int, default 10
        Epochs without a lower validation loss after which fine-tuning ends.
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None, default None
        Source of all randomness.

    Attributes
    ----------
    centers_ : ndarray (M, D)
        Centres.
    widths_ : ndarray (M,) or (M, D)
        Widths.
    weights_ : ndarray (M, k)
        Output weights.
    intercept_ : ndarray (k,)
        The constant.
    slopes_ : ndarray (D, k) or None
        Of the tail.
    alpha_ : float
        Penalty.
    n_centers_ : int
        Units M.
    n_features_in_ : int
        Features D.
    feature_names_in_ : ndarray of str (D,)
        Names of the features, if X had any.
    cv_results_ : dict
        With ``n_centers="cv"``: ``n_centers`` tried and the ``loss`` of each.
    history_ : History
        With `fine_tune`: ``loss`` and ``val_loss``; epoch 0 is before it.
    n_iter_ : int
        With `fine_tune`: epochs that were run.

    Notes
    -----
    Rows that are equal are merged, so a `sample_weight` of 2 is the same as a row that comes twice,
    and the order of rows does not matter. If there are fewer rows than weights, as with "all",
    the weights are orthogonal to constants (and with `tail` to linear functions) over the centres:
    with alpha near 0 this is the interpolation of SciPy with ``degree`` 0 (with `tail` 1).

    References
    ----------
    .. [1] D. S. Broomhead, D. Lowe. Multivariable functional interpolation and adaptive networks.
           Complex Systems 2 (1988).

    Examples
    --------
    >>> X = np.linspace(0, 10, 100)[:, np.newaxis]
    >>> y = np.sin(X[:, 0])
    >>> regressor = RBFNRegressor(12, width="nearest", random_state=0).fit(X, y)
    >>> bool(regressor.score(X, y) > 0.999)
    True
    """

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit a new network.

        Parameters
        ----------
        X : array (n, D)
            Rows.
        y : numbers (n,) or (n, k)
            Their targets.
        sample_weight : numbers >= 0 (n,), optional
            Weights of the rows' squared errors.

        Returns
        -------
        RBFNRegressor
            The estimator.
        """
        with all_or_nothing(self) as new:
            rows, new._is_flat = read_targets(new, X, y, sample_weight, reset=True, minimum=2)
            new._train(rows)
        return self

    def partial_fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Go on with more rows: centres and widths stay those of the first call or of `fit`.

        So do `kernel`, `normalize`, `tail`; if they were set anew, it raises.

        The weights are then those of the ridge regression on all rows so far, where there are at
        least as many as weights. Nothing is fine-tuned.

        Parameters
        ----------
        X : array (n, D)
            Rows.
        y : numbers (n,) or (n, k)
            Their targets.
        sample_weight : numbers >= 0 (n,), optional
            Weights of the rows' squared errors.

        Returns
        -------
        RBFNRegressor
            The estimator.
        """
        is_first = not hasattr(self, "weights_")
        with all_or_nothing(self) as new:
            rows, is_flat = read_targets(new, X, y, sample_weight, reset=is_first, minimum=1)
            if not is_first and (rows.Y.shape[1], is_flat) != (len(new.intercept_), new._is_flat):
                raise ValueError(f"y: expected {len(new.intercept_)} output(s) as before")
            new._continue(rows, is_first)
            new._is_flat = is_flat
        return self

    def predict(self, X: Any) -> Array:
        """Compute the numbers.

        Parameters
        ----------
        X : array (n, D)
            Rows.

        Returns
        -------
        ndarray (n,) or (n, k)
            As the targets of `fit`.
        """
        outputs = self._forward(X)
        return outputs[:, 0] if self._is_flat else outputs

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "is_flat": self._is_flat}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        super()._set_state(state)
        self._is_flat = functional.boolean("is_flat", state["is_flat"])

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()  # type: ignore[misc]
        tags.target_tags.multi_output = True
        return tags


class RBFNClassifier(ClassifierMixin, RadialNetwork):
    """Radial-basis-function network that finds classes, with scikit-learn's interface.

    It is the network of `RBFNRegressor` with an output for each class.

    Parameters
    ----------
    n_centers, centers, width, kernel, alpha
        As in `RBFNRegressor`. With ``output="softmax"`` the penalty is alpha/2·(sum of squared
        weights), added to the sum of cross-entropies, and "gcv" takes what suits a ridge
        regression.
    output : {"ridge", "softmax"}, default "ridge"
        Whether the weights are a ridge regression on 1 for a row's class and 0 for the others, or
        minimise the cross-entropy of the softmax of the outputs. With "softmax" the estimator, its
        pickle and its file hold rows of the training, for `partial_fit`: up to 10 000.
    normalize, tail, goal
        As in `RBFNRegressor`.
    fine_tune, learning_rate, validation_fraction, patience, random_state
        As in `RBFNRegressor`; the loss is that of `output`.

    Attributes
    ----------
    classes_ : ndarray (k,)
        Labels, sorted.
    temperature_ : float
        With ``output="ridge"``: what outputs are multiplied by before a softmax makes probabilities
        of them. It suits outputs that each row would get if it alone were left out.
    centers_, widths_, weights_, intercept_, slopes_, alpha_, n_centers_
        As in `RBFNRegressor`.
    n_features_in_, feature_names_in_, cv_results_, history_, n_iter_
        As in `RBFNRegressor`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 2))
    >>> y = np.where((X**2).sum(axis=1) < 1, "inside", "outside")
    >>> classifier = RBFNClassifier(20, random_state=0).fit(X[:200], y[:200])
    >>> bool(classifier.score(X[200:], y[200:]) > 0.95)
    True
    >>> classifier.predict([[0.0, 0.0], [2.0, 2.0]]).tolist()
    ['inside', 'outside']
    """

    temperature_: float
    _has_classes = True

    def __init__(
        self,
        n_centers: Any = 100,
        centers: Any = "kmeans",
        *,
        width: Any = "mean",
        kernel: str = "gaussian",
        alpha: Any = 1e-3,
        output: str = "ridge",
        normalize: bool = False,
        tail: bool = False,
        goal: float = 0.0,
        fine_tune: int = 0,
        learning_rate: float = 0.03,
        validation_fraction: float = 0.1,
        patience: int = 10,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            n_centers,
            centers,
            width=width,
            kernel=kernel,
            alpha=alpha,
            normalize=normalize,
            tail=tail,
            goal=goal,
            fine_tune=fine_tune,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            patience=patience,
            random_state=random_state,
        )
        self.output = output

    @property
    def _output(self) -> str:  # type: ignore[override]
        return functional.choice("output", self.output, ("ridge", "softmax"))

    @property
    def _needs_inverse(self) -> bool:  # type: ignore[override]
        return self._output == "ridge"

    def _calibrate(self, outputs: Array, Y: Array, weights: Array, known: float = 0.0) -> None:
        before = self.temperature_ if known else 1.0
        self.temperature_ = 1.0
        if self._output == "ridge":
            # Of few new rows alone it could be anything: they count as the part that they are.
            fresh = temperature(outputs, Y, weights)
            self.temperature_ = float(before**known * fresh ** (1 - known))

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit a new network.

        Parameters
        ----------
        X : array (n, D)
            Rows.
        y : labels (n,)
            Their classes.
        sample_weight : numbers >= 0 (n,), optional
            Weights of the rows' losses.

        Returns
        -------
        RBFNClassifier
            The estimator.
        """
        with all_or_nothing(self) as new:
            rows, classes = read_labels(new, X, y, sample_weight, None, reset=True, minimum=2)
            new.temperature_ = 1.0
            new._train(rows)
            new.classes_ = classes
        return self

    def partial_fit(
        self,
        X: Any,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Go on with more rows: centres and widths stay those of the first call or of `fit`.

        So do `kernel`, `output`, `normalize`, `tail`; if they were set anew, it raises.

        With ``output="ridge"`` the weights are then those of the regression on all rows so far.
        With "softmax" they minimise the cross-entropy of the new rows and of those that the
        estimator keeps. These are all earlier ones, up to 10 000 different ones. Of more it keeps a
        sample, in which each class has its share, and whose weights make up for the others. Nothing
        is fine-tuned.

        Parameters
        ----------
        X : array (n, D)
            Rows.
        y : labels (n,)
            Their classes.
        classes : labels (k,), optional
            All that there will be; the first call without an earlier `fit` needs them.
        sample_weight : numbers >= 0 (n,), optional
            Weights of the rows' losses.

        Returns
        -------
        RBFNClassifier
            The estimator.
        """
        is_first = not hasattr(self, "weights_")
        if is_first:
            if classes is None:
                raise ValueError("classes: expected all labels in the first call of partial_fit")
            known = read_classes(classes)
        else:
            known = self.classes_
            if classes is not None and not np.array_equal(read_classes(classes), known):
                raise ValueError("classes: expected those of the first call of partial_fit")
        with all_or_nothing(self) as new:
            rows, _ = read_labels(new, X, y, sample_weight, known, reset=is_first, minimum=1)
            new.temperature_ = getattr(new, "temperature_", 1.0)
            new._continue(rows, is_first)
            new.classes_ = known
        return self

    def decision_function(self, X: Any) -> Array:
        """Compute how much speaks for each class.

        Parameters
        ----------
        X : array (n, D)
            Rows.

        Returns
        -------
        ndarray (n, k), or (n,) for two classes
            Outputs; of two classes that of the second minus that of the first.
        """
        outputs = self._forward(X)
        return outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs

    def predict_proba(self, X: Any) -> Array:
        """Compute the probabilities of the classes.

        Parameters
        ----------
        X : array (n, D)
            Rows.

        Returns
        -------
        ndarray (n, k)
            Probabilities, in the order of ``classes_``.
        """
        return np.asarray(softmax(self._forward(X) * self.temperature_), np.float64)

    def predict(self, X: Any) -> NDArray[Any]:
        """Find the likeliest class.

        Parameters
        ----------
        X : array (n, D)
            Rows.

        Returns
        -------
        ndarray (n,)
            Labels.
        """
        best = self._forward(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _state(self) -> dict[str, Any]:
        kind = self.classes_.dtype
        if kind.kind not in "biufU" and not all(isinstance(label, str) for label in self.classes_):
            raise TypeError(f"classes_: expected texts or numbers to save, got {kind}")
        return {
            **super()._state(),
            "classes": self.classes_.tolist(),
            "dtype": kind.str,
            "temperature": self.temperature_,
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        super()._set_state(state)
        self.classes_ = np.array(state["classes"], dtype=np.dtype(state["dtype"]))
        if self.classes_.shape != self.intercept_.shape:
            raise ValueError(f"classes: expected {len(self.intercept_)}, got {self.classes_.shape}")
        self.temperature_ = functional.number("temperature", state["temperature"], 1, 10)
