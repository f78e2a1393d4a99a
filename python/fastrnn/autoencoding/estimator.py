"""What all autoencoders share: how one is fit and used, with scikit-learn's interface.

Letters: n rows, F features, k components.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastrnn import functional, optimizers
from fastrnn.activations import sigmoid
from fastrnn.autoencoding import plots
from fastrnn.autoencoding.model import AutoencoderModel
from fastrnn.autoencoding.networks import Style, check_activation, check_sizes
from fastrnn.callbacks import EarlyStopping, History
from fastrnn.estimator_files import SavedEstimator
from fastrnn.scikit import (
    BaseEstimator,
    NotFittedError,
    OutlierMixin,
    TransformerMixin,
    all_or_nothing,
    divide,
    finite_number,
    read_rows,
    to_generator,
)

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray
    from typing_extensions import Self

    from fastrnn.callbacks import Callback
    from fastrnn.models import Sequential

    Array = NDArray[Any]

__all__ = ["AutoencoderBase"]


@dataclass(repr=False, eq=False)
class AutoencoderBase(TransformerMixin, OutlierMixin, SavedEstimator, BaseEstimator):
    """What the autoencoders share, see `fastrnn.Autoencoder`."""

    # As they are: scikit-learn wants them back so, and `fit` checks them.
    n_components: int = 8
    hidden: Any = (128,)
    activation: str = "gelu"
    loss: str = "mse"
    epochs: int = 100
    _: KW_ONLY
    code_activation: str = "linear"
    l1: float = 0.0
    l2: float = 0.0
    dropout: float = 0.0
    batch_norm: bool = False
    batch_size: int = 32
    learning_rate: float | None = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    patience: int = 10
    contamination: float = 0.1
    random_state: Any = None
    verbose: int = 0

    n_features_in_: int = field(init=False)

    _format = "fastrnn autoencoder 1"
    _least_hidden = 0  # hidden layers that there have to be
    _draws_curves = False  # whether rows are never images

    # What a kind of autoencoder has to give, or changes.

    def _networks(
        self, features: int, components: int, hidden: tuple[int, ...], style: Style
    ) -> tuple[Sequential, Sequential]:
        """Return encoder and decoder."""
        raise NotImplementedError

    def _parts(self, encoder: Sequential, generator: np.random.Generator) -> dict[str, Any]:
        """Return more arguments of the `AutoencoderModel`."""
        return {}

    def _learn(self, elements: Array) -> None:
        """Learn more from all rows or steps before the network is made."""

    def _targets(self, inputs: Any, targets: Any, generator: np.random.Generator) -> Any:
        """Return targets of the decoder together with what codes are to be near to, if anything."""
        return targets

    def _read(self, X: Any, *, reset: bool = False) -> Any:
        """Check rows (n, F)."""
        return read_rows(self, X, reset=reset, dtypes=(np.float64, np.float32))

    def _rows(self, X: Any) -> Any:
        """Check rows that a fitted estimator is given."""
        rows = self._read(X)
        _check_range(self._fitted["loss"], self._elements(rows))
        return rows

    def _width(self, rows: Any) -> int:
        """Return the features F of rows."""
        return int(rows.shape[1])

    def _elements(self, rows: Any) -> Array:
        """Return all rows or steps one below the other."""
        return np.asarray(rows)

    def _like(self, rows: Any, elements: Array) -> Any:
        """Return elements that are laid out as `_elements`, laid out as rows."""
        return elements

    def _code(self, encoded: Array) -> Array:
        """Return the code of what the encoder gives."""
        return encoded

    # Fitting.

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit a new network.

        Parameters
        ----------
        X : array (n, F)
            Rows.
        y : ignored
            Accepted as scikit-learn does.

        Returns
        -------
        estimator
            The estimator.
        """
        with all_or_nothing(self) as new:
            new._fit(new._read(X, reset=True))
        return self

    def _fit(self, rows: Any) -> None:
        loss = functional.choice("loss", self.loss, ("mse", "bce"))
        contamination = functional.number("contamination", self.contamination, 0, 0.5)
        generator = to_generator(self.random_state)
        elements = self._elements(rows)
        _check_range(loss, elements)
        self.mean_, self.scale_ = _statistics(elements)
        self._fitted = self.get_params(deep=False)
        inputs = self._scaled(rows)
        self._learn(elements)
        self.model_ = model = self._model(self._width(rows), generator)
        plain = inputs if loss == "mse" else self._like(rows, elements.astype(np.float32))
        targets = self._targets(inputs, plain, generator)
        self.history_ = self._train(model, inputs, targets, generator)
        self.n_iter_ = len(self.history_.epochs)
        self.n_components_ = int(self.n_components)
        self.offset_ = float(np.percentile(self._scores(rows), 100 * contamination))

    def _train(
        self, model: AutoencoderModel, inputs: Any, targets: Any, generator: np.random.Generator
    ) -> History:
        """Train a model, which is in evaluation mode then."""
        callbacks: list[Callback] = []
        validation = None
        if functional.boolean("early_stopping", self.early_stopping):
            kept, held = divide(np.zeros(len(inputs), np.intp), self.validation_fraction, generator)
            validation = _take(inputs, held), _take(targets, held)
            inputs, targets = _take(inputs, kept), _take(targets, kept)
            patience = functional.integer("patience", self.patience, 1)
            callbacks.append(EarlyStopping("val_loss", patience))
        name = {"mse": "mse", "bce": "binary_cross_entropy"}[self.loss]
        model.compile(optimizers.Adam(self._rate(len(inputs))), name)
        history = model.fit(
            inputs,
            targets,
            epochs=self.epochs,
            batch_size=self.batch_size,
            validation_data=validation,
            callbacks=callbacks,
            seed=int(generator.integers(2**62)),
            verbose=self.verbose,
        )
        model.eval()
        if not all(np.isfinite(array).all() for array in model.parameters.values()):
            raise ValueError(
                "learning_rate: expected one (and penalties and noise) with which the weights stay"
                f" finite, got {self.learning_rate}"
            )
        return history

    def _rate(self, n: int) -> optimizers.Schedule:
        """Return the learning rate: it rises over a twentieth of the updates, and falls to 0."""
        epochs = functional.integer("epochs", self.epochs, 1)
        batches = -(-n // functional.integer("batch_size", self.batch_size, 1))
        # A single layer starts slowly.
        usual = 3e-3 if len(np.atleast_1d(self.hidden)) else 1e-2
        given = self.learning_rate
        highest = usual if given is None else finite_number("learning_rate", given)
        cosine = optimizers.CosineDecay(highest, epochs * batches)
        return optimizers.WarmUp(cosine, max(1, epochs * batches // 20))

    def _model(self, features: int, generator: np.random.Generator) -> AutoencoderModel:
        """Make a network."""
        style = Style(
            check_activation("activation", self.activation),
            check_activation("code_activation", self.code_activation),
            functional.number("dropout", self.dropout, 0, 1),
            functional.boolean("batch_norm", self.batch_norm),
            generator,
        )
        k = functional.integer("n_components", self.n_components, 1)
        hidden = check_sizes(self.hidden, self._least_hidden)
        encoder, decoder = self._networks(features, k, hidden, style)
        return AutoencoderModel(
            encoder,
            decoder,
            l1=finite_number("l1", self.l1),
            l2=finite_number("l2", self.l2),
            **self._parts(encoder, generator),
        )

    # Scales.

    def _scaled(self, rows: Any) -> Any:
        """Return what the network reads: mean 0, and variance 1 over all features together."""
        elements = self._elements(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = ((elements - self.mean_) / self.scale_).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise ValueError("X: expected numbers that fit float32 after scaling, got larger ones")
        return self._like(rows, scaled)

    def _unscaled(self, outputs: Array) -> Array:
        """Return outputs of the decoder in units of the data."""
        if self._fitted["loss"] == "bce":
            return sigmoid(outputs)
        return np.asarray(outputs * self.scale_ + self.mean_, outputs.dtype)

    # Use.

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    def _check_fitted(self) -> None:
        if not hasattr(self, "offset_"):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet: call fit first"
            )

    def transform(self, X: Any) -> Array:
        """Compute the codes.

        Parameters
        ----------
        X : array (n, F)
            Rows.

        Returns
        -------
        ndarray (n, k)
            Code of each row.
        """
        self._check_fitted()
        return self._encoded(self._rows(X))

    def _encoded(self, rows: Any) -> Array:
        codes = self._code(self.model_.encoder.predict(self._scaled(rows)))
        return np.asarray(codes, self._elements(rows).dtype)

    def inverse_transform(self, X: Any) -> Any:
        """Compute rows from codes.

        Parameters
        ----------
        X : array (n, k)
            Codes.

        Returns
        -------
        ndarray (n, F)
            A row for each.
        """
        self._check_fitted()
        return self._shown(None, self._decoded(self._read_codes(X)))

    def _read_codes(self, X: Any) -> Array:
        codes = functional.listed("X", f"codes (n, {self.n_components_})", X)
        fits = codes.ndim == 2 and codes.shape[1] == self.n_components_
        if codes.dtype.kind not in "iuf" or not fits or not np.isfinite(codes).all():
            raise ValueError(
                f"X: expected finite codes (n, {self.n_components_}), got {codes.shape}"
                f" {codes.dtype}"
            )
        if np.any(np.abs(codes) > np.finfo(np.float32).max):
            raise ValueError("X: expected codes that fit float32, got larger ones")
        return codes.astype(np.float64 if codes.dtype != np.float32 else np.float32, copy=False)

    def _decoded(self, codes: Array) -> Array:
        outputs = self.model_.decoder.predict(codes.astype(np.float32))
        return self._unscaled(outputs.astype(codes.dtype, copy=False))

    def reconstruct(self, X: Any) -> Any:
        """Compute what the network makes of rows: `inverse_transform` of `transform`.

        Parameters
        ----------
        X : array (n, F)
            Rows.

        Returns
        -------
        ndarray (n, F)
            Their reconstructions.
        """
        self._check_fitted()
        rows = self._rows(X)
        return self._shown(rows, self._reconstructed(rows))

    def _reconstructed(self, rows: Any) -> Array:
        """Return what the network makes of rows, laid out as `_elements`."""
        return self._decoded(self._encoded(rows))

    def _shown(self, rows: Any, elements: Array) -> Any:
        """Return elements as people get them."""
        return elements

    def _scores(self, rows: Any) -> NDArray[np.float64]:
        """Return the negative error of each row."""
        return np.asarray(-self._errors(rows, self._reconstructed(rows)).mean(axis=1))

    def _errors(self, target: Array, found: Array) -> NDArray[np.float64]:
        """Return the error of each element."""
        target = target.astype(np.float64, copy=False)
        if self._fitted["loss"] == "mse":
            return np.asarray((target - found) ** 2, np.float64)
        likely = np.clip(found.astype(np.float64, copy=False), 1e-12, 1 - 1e-12)
        return np.asarray(-(target * np.log(likely) + (1 - target) * np.log1p(-likely)))

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Tell how normal rows are.

        Parameters
        ----------
        X : array (n, F)
            Rows.

        Returns
        -------
        ndarray (n,)
            The negative error of the reconstruction, in the mean over the features: of squares, or
            with ``loss="bce"`` the cross-entropy. Higher is more normal.
        """
        self._check_fitted()
        return self._scores(self._rows(X))

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`.

        Parameters
        ----------
        X : array (n, F)
            Rows.
        y : ignored
            Accepted as scikit-learn does.

        Returns
        -------
        float
            At most 0; higher is better.
        """
        return float(self.score_samples(X).mean())

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Tell how far rows are from being outliers.

        Parameters
        ----------
        X : array (n, F)
            Rows.

        Returns
        -------
        ndarray (n,)
            `score_samples` minus ``offset_``: below 0 for outliers.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Tell outliers.

        Parameters
        ----------
        X : array (n, F)
            Rows.

        Returns
        -------
        ndarray of int (n,)
            1 for what is normal, -1 for outliers: what is less normal than all but the part
            `contamination` of the rows of `fit`.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return names of the components.

        Parameters
        ----------
        input_features : ignored
            Accepted as scikit-learn does.

        Returns
        -------
        ndarray of str (k,)
            The name of the class and the number of the component.
        """
        self._check_fitted()
        prefix = type(self).__name__.lower()
        names = [f"{prefix}{component}" for component in range(self.n_components_)]
        return np.array(names, dtype=object)

    # Pictures.

    def plot_reconstructions(
        self,
        X: Any,
        path: str | os.PathLike[str] | None = None,
        *,
        image_shape: tuple[int, int] | None = None,
        limit: int = 10,
    ) -> Any:
        """Draw rows above what the network makes of them.

        Parameters
        ----------
        X : array (n, F)
            Rows.
        path : path, optional
            Where to save the picture, in the format that the name ends in.
        image_shape : pair of int, optional
            Height and width of rows that are images; without it, a square number of at least 16
            features is taken for an image, and other rows are drawn as curves.
        limit : int, default 10
            Rows that are drawn at most.

        Returns
        -------
        matplotlib.figure.Figure
            The figure.
        """
        self._check_fitted()
        rows = self._take_first(X, functional.integer("limit", limit, 1))
        pairs = list(zip(self._pictures(rows), self._pictures(self.reconstruct(rows)), strict=True))
        if not self._draws_curves:
            pairs = [
                (plots.as_image(a, image_shape), plots.as_image(b, image_shape)) for a, b in pairs
            ]
        return plots.reconstructions(pairs, path)

    def _take_first(self, X: Any, limit: int) -> Any:
        return X[:limit] if not hasattr(X, "iloc") else X.iloc[:limit]

    def _pictures(self, rows: Any) -> list[Array]:
        """Return rows one by one, as images (H, W) or curves."""
        return list(np.asarray(rows, np.float64))

    def plot_latent(
        self, X: Any, y: Any = None, path: str | os.PathLike[str] | None = None, ax: Any = None
    ) -> Any:
        """Draw the codes of rows.

        Parameters
        ----------
        X : array (n, F)
            Rows.
        y : array (n,), optional
            Labels or numbers that colour them.
        path : path, optional
            Where to save the picture, in the format that the name ends in.
        ax : matplotlib Axes, optional
            Where to draw; without it a new figure is made.

        Returns
        -------
        matplotlib.figure.Figure
            The figure. Of more than two components it shows the two principal axes of the codes.
        """
        return plots.latent(np.asarray(self.transform(X), np.float64), y, path, ax)

    # Files.

    _learnt: ClassVar[tuple[str, ...]] = ("mean_", "scale_", "offset_", "n_features_in_")

    def _knowledge(self) -> dict[str, dict[str, Any]]:
        names = getattr(self, "feature_names_in_", None)
        return {
            # As the parameters were when the network was made.
            "fitted": self._fitted,
            "learnt": {name: getattr(self, name) for name in self._learnt},
            "names": {} if names is None else {"features": [str(name) for name in names]},
            "network": {**self.model_.parameters, **self.model_.buffers},
            "history": self.history_.state_dict(),
        }

    @classmethod
    def _restored(cls, parameters: dict[str, Any], knowledge: dict[str, dict[str, Any]]) -> Self:
        estimator = cls(**knowledge["fitted"])
        estimator._fitted = knowledge["fitted"]
        for name in cls._learnt:
            setattr(estimator, name, knowledge["learnt"][name])
        if "features" in knowledge["names"]:
            names = np.array(knowledge["names"]["features"], dtype=object)
            setattr(estimator, "feature_names_in_", names)  # noqa: B010, one that others lack
        F = len(estimator.mean_)
        estimator.model_ = estimator._model(F, np.random.default_rng(0))
        estimator.model_.load_state_dict(knowledge["network"])
        estimator.model_.eval()
        estimator.history_ = History()
        estimator.history_.load_state_dict(knowledge["history"])
        estimator.n_iter_ = len(estimator.history_.epochs)
        estimator.n_components_ = int(estimator.n_components)
        return estimator.set_params(**parameters)


def _take(rows: Any, which: Array) -> Any:
    """Return some of the rows of an array, or sequences of a list."""
    return [rows[row] for row in which] if isinstance(rows, list) else rows[which]


def _check_range(loss: str, elements: Array) -> None:
    """Raise unless numbers are what a loss is for."""
    if loss == "bce" and elements.size and (elements.min() < 0 or elements.max() > 1):
        raise ValueError(
            "X: expected numbers in [0, 1] for loss='bce', got"
            f" [{elements.min():g}, {elements.max():g}]"
        )


def _statistics(elements: Array) -> tuple[Array, float]:
    """Return the mean of each feature, and the standard deviation of all around these."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = elements.mean(axis=0, dtype=np.float64)
        centred = elements - mean
        # Squares of small numbers would be 0.
        largest = float(np.abs(centred).max(initial=0)) or 1.0
        scale = largest * float(np.sqrt(((centred / largest) ** 2).mean(dtype=np.float64)))
        spread = np.square(np.float64(scale))
    if not np.isfinite(spread):
        raise ValueError("X: expected numbers whose variance fits float64, got larger ones")
    # Rounding of the sum lets constants differ from their mean.
    least = len(elements) * np.finfo(elements.dtype).eps * float(np.abs(mean).max(initial=0))
    return mean, scale if scale > least else 1.0
