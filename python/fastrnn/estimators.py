"""Networks for whole sequences with the interface of scikit-learn.

`SequenceClassifier` and `SequenceRegressor` are scikit-learn estimators where scikit-learn is
installed: ``clone``, ``Pipeline``, ``cross_val_score`` and ``GridSearchCV`` take them. Without it
they have the same methods.

Letters: n sequences, T steps, F features, k classes or outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional, optimizers
from fastrnn.activations import softmax
from fastrnn.attention import Attention
from fastrnn.callbacks import EarlyStopping
from fastrnn.layers import Dense, Dropout, Ends, Last, Pool
from fastrnn.models import Sequential
from fastrnn.recurrent import CELLS
from fastrnn.scikit import (
    BaseEstimator,
    ClassifierMixin,
    NotFittedError,
    RegressorMixin,
    Sequences,
    divide,
    encode,
    read_sequences,
    sample_weights,
    to_generator,
    to_numbers,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from fastrnn.callbacks import Callback, History
    from fastrnn.layer import Layer

__all__ = ["SequenceClassifier", "SequenceRegressor"]


def _statistics(
    name: str, rows: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation over the rows; 1 for what is constant."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = rows.mean(axis=0), rows.std(axis=0)
    if not np.isfinite(scale).all():
        raise ValueError(f"{name}: expected numbers whose variance fits float64, got larger ones")
    # Rounding of the sum lets constants differ from their mean.
    scale[scale <= len(rows) * np.finfo(np.float64).eps * np.abs(mean)] = 1
    return mean, scale


_POOLINGS = ("last", "mean", "max", "attention")


class _SequenceEstimator(BaseEstimator):
    """What both estimators share."""

    _loss: str
    _metrics: tuple[str, ...] = ()

    def __init__(
        self,
        cell: str = "lstm",
        hidden_size: int = 64,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 5e-3,
        optimizer: str = "adam",
        clipnorm: float | None = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        standardize: bool = True,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        # As they are: scikit-learn wants them back so, and `fit` checks them.
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.pooling = pooling
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.clipnorm = clipnorm
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.standardize = standardize
        self.random_state = random_state
        self.verbose = verbose

    def _layers(self, features: int, outputs: int, generator: np.random.Generator) -> list[Layer]:
        """Return the layers of the network."""
        H = functional.integer("hidden_size", self.hidden_size, 1)
        cell = functional.choice("cell", self.cell, tuple(CELLS))
        # The classic help to remember, see LSTM.
        options: dict[str, Any] = {"forget_bias": 1.0} if cell == "lstm" else {}
        dropout = functional.number("dropout", self.dropout, 0, 1)
        layer = CELLS[cell](
            features,
            H,
            self.num_layers,
            dropout=dropout if self.num_layers > 1 else 0.0,
            bidirectional=self.bidirectional,
            seed=generator,
            **options,
        )
        width = 2 * H if self.bidirectional else H
        return [
            layer,
            self._pooling(width, generator),
            *([Dropout(dropout, seed=generator)] if dropout else []),
            Dense(width, outputs, seed=generator),
        ]

    def _pooling(self, width: int, generator: np.random.Generator) -> Layer:
        pooling = functional.choice("pooling", self.pooling, _POOLINGS)
        if pooling == "attention":
            return Attention(width, score="general", scale=True, seed=generator)
        if pooling == "last":
            return Ends() if self.bidirectional else Last()
        return Pool(pooling)

    def _optimizer(self) -> optimizers.Optimizer:
        if not isinstance(self.optimizer, str):
            raise TypeError(f"optimizer: expected a name, got {self.optimizer!r}")
        options: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "global_clipnorm": self.clipnorm,
        }
        return type(optimizers.get(self.optimizer))(**options)

    def _train(
        self,
        sequences: Sequences,
        targets: NDArray[Any],
        outputs: int,
        groups: NDArray[np.intp],
        sample_weight: ArrayLike | None,
        class_weight: NDArray[np.float64] | None = None,
    ) -> None:
        """Train a network, and keep it when that is done."""
        weights = sample_weights(sample_weight, len(targets))
        generator = to_generator(self.random_state)
        features = sequences.steps.shape[1]
        mean, scale = np.zeros(features), np.ones(features)
        model = Sequential(self._layers(features, outputs, generator))
        model.compile(self._optimizer(), self._loss, self._metrics)
        callbacks: list[Callback] = []
        validation, held_weights = None, None
        if functional.boolean("early_stopping", self.early_stopping):
            callbacks.append(EarlyStopping("val_loss", self.patience))
            rows, others = divide(groups, self.validation_fraction, generator)
            validation, held_out = sequences.take(others), targets[others]
            sequences, targets = sequences.take(rows), targets[rows]
            if weights is not None:
                held_weights, weights = weights[others], weights[rows]
        if functional.boolean("standardize", self.standardize):
            mean, scale = _statistics("X", sequences.steps)
        history = model.fit(
            sequences.standardized(mean, scale),
            targets,
            epochs=self.epochs,
            batch_size=self.batch_size,
            validation_data=validation
            and (validation.standardized(mean, scale), held_out, None, held_weights),
            sample_weight=weights,
            class_weight=class_weight,
            callbacks=callbacks,
            seed=int(generator.integers(2**62)),
            verbose=self.verbose,
        )
        self.n_features_in_ = features
        self.mean_, self.scale_ = mean, scale
        self.model_: Sequential = model.eval()
        self.history_: History = history
        self.n_iter_ = len(history.epochs)

    def _outputs(self, X: Any) -> NDArray[np.float64]:
        """Return the outputs (n, k) of the network."""
        if not hasattr(self, "model_"):
            raise NotFittedError(f"{type(self).__name__}: call fit first")
        sequences = read_sequences(X)
        if sequences.steps.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X: expected sequences of {self.n_features_in_} features, as fit was given, got"
                f" {sequences.steps.shape[1]}"
            )
        outputs = self.model_.predict(sequences.standardized(self.mean_, self.scale_))
        return np.asarray(outputs, np.float64)

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.three_d_array = True
        return tags


def _check_count(sequences: Sequences, y: NDArray[Any]) -> None:
    if len(y) != len(sequences.lengths):
        raise ValueError(f"y: expected {len(sequences.lengths)} targets, as X, got {len(y)}")


class SequenceClassifier(ClassifierMixin, _SequenceEstimator):
    """Recurrent network that finds the class of a sequence, with scikit-learn's interface.

    A recurrent layer reads the sequence, pooling makes one vector of its steps, and an affine map
    makes logits of that. It is trained with the cross-entropy.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn"}, default "lstm"
        Kind of the recurrent layer.
    hidden_size : int, default 64
        Its units, for each direction.
    num_layers : int, default 1
        Recurrent layers on top of each other.
    bidirectional : bool, default False
        Whether they read the sequence backward, too.
    pooling : {"last", "mean", "max", "attention"}, default "last"
        What becomes of the steps: the last valid one (of a bidirectional layer the step at which
        each direction ends), their mean or maximum, or a mean weighted by how well they answer
        the last one, see `fastrnn.Attention`.
    dropout : float, default 0
        Probability of a zero between recurrent layers and before the affine map.
    epochs : int, default 20
        Passes over the data.
    batch_size : int, default 32
        Sequences in an update.
    learning_rate : float or schedule, default 5e-3
        Size of the updates, see `fastrnn.optimizers`.
    optimizer : {"adam", "adamw", "rmsprop", "sgd"}, default "adam"
        Rule of the updates.
    clipnorm : float or None, default 1
        Largest norm of all gradients together.
    class_weight : None, "balanced" or dict of label to number, default None
        Weights of the classes in the loss; "balanced" gives each class the same in all, and
        classes that a dict leaves out have 1.
    early_stopping : bool, default False
        Whether part of the sequences, drawn class by class, is kept to validate with. Training
        then ends when their loss has not improved for some epochs, with the best weights.
    validation_fraction : float, default 0.1
        That part.
    patience : int, default 5
        Those epochs.
    standardize : bool, default True
        Whether each feature is made to have mean 0 and standard deviation 1 over all steps.
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None, default None
        Source of all randomness. An int makes `fit` repeatable, to the last bit on a machine.
    verbose : {0, 1}, default 0
        Whether progress is shown.

    Attributes
    ----------
    classes_ : ndarray (k,)
        Labels, sorted.
    model_ : Sequential
        The network, which gives logits.
    history_ : History
        Logs of the epochs: ``loss``, ``accuracy``, with `early_stopping` ``val_loss``, ...
    mean_, scale_ : ndarray (F,)
        What is taken off the features, and what they are divided by.
    n_features_in_ : int
        Features F.
    n_iter_ : int
        Epochs that were run.

    Notes
    -----
    The sequences X are an array (n, T, F), or a list of arrays (T_i, F) for different lengths. An
    array (n, T), or a list of arrays (T_i,), holds sequences of one feature.

    Examples
    --------
    Does a sequence rise or fall?

    >>> rng = np.random.default_rng(0)
    >>> slopes = rng.choice([-0.2, 0.2], size=100)
    >>> X = [slope * np.arange(rng.integers(5, 10)) + rng.normal(0, 0.3) for slope in slopes]
    >>> y = np.where(slopes > 0, "up", "down")
    >>> classifier = SequenceClassifier("gru", 16, random_state=0).fit(X, y)
    >>> classifier.score(X, y)
    1.0
    >>> classifier.predict([[0.0, -0.2, -0.4, -0.6, -0.8]]).tolist()
    ['down']
    """

    _loss = "cross_entropy"
    _metrics = ("accuracy",)

    def __init__(
        self,
        cell: str = "lstm",
        hidden_size: int = 64,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 5e-3,
        optimizer: str = "adam",
        clipnorm: float | None = 1.0,
        class_weight: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        standardize: bool = True,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            cell,
            hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            pooling=pooling,
            dropout=dropout,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            clipnorm=clipnorm,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            patience=patience,
            standardize=standardize,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X : array (n, T, F), (n, T), or list of (T_i, F) or (T_i,)
            Sequences.
        y : labels (n,)
            Their classes: strings, integers or anything else that can be sorted.
        sample_weight : numbers >= 0 (n,), optional
            Weights of the sequences in the loss.

        Returns
        -------
        SequenceClassifier
            The estimator.
        """
        sequences = read_sequences(X)
        classes, encoded = encode(y)
        _check_count(sequences, encoded)
        weights = _class_weights(self.class_weight, classes, encoded)
        self._train(sequences, encoded, len(classes), encoded, sample_weight, weights)
        self.classes_ = classes
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Compute how much speaks for each class.

        Parameters
        ----------
        X : array (n, T, F), (n, T), or list of (T_i, F) or (T_i,)
            Sequences.

        Returns
        -------
        ndarray (n, k), or (n,) for two classes
            Logits; of two classes that of the second minus that of the first.
        """
        logits = self._outputs(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Compute the probabilities of the classes.

        Parameters
        ----------
        X : array (n, T, F), (n, T), or list of (T_i, F) or (T_i,)
            Sequences.

        Returns
        -------
        ndarray (n, k)
            Probabilities, in the order of ``classes_``.
        """
        return np.asarray(softmax(self._outputs(X)), np.float64)

    def predict(self, X: Any) -> NDArray[Any]:
        """Find the likeliest class.

        Parameters
        ----------
        X : array (n, T, F), (n, T), or list of (T_i, F) or (T_i,)
            Sequences.

        Returns
        -------
        ndarray (n,)
            Labels.
        """
        best = self._outputs(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels


def _class_weights(
    given: Any, classes: NDArray[Any], encoded: NDArray[np.intp]
) -> NDArray[np.float64] | None:
    """Return the weight of each class."""
    if given is None:
        return None
    if isinstance(given, str) and given == "balanced":
        weights: NDArray[np.float64] = len(encoded) / (len(classes) * np.bincount(encoded))
        return weights
    if not isinstance(given, Mapping):
        raise ValueError(f"class_weight: expected None, 'balanced' or a dict, got {given!r}")
    labels = classes.tolist()
    unknown = [label for label in given if label not in labels]
    if unknown:
        raise ValueError(f"class_weight: expected labels of y, got {unknown[0]!r}")
    return np.array([functional.number("class_weight", given.get(label, 1), 0) for label in labels])


class SequenceRegressor(RegressorMixin, _SequenceEstimator):
    """Recurrent network that finds numbers for a sequence, with scikit-learn's interface.

    It is the network of `SequenceClassifier` with numbers in the place of logits, trained with the
    mean squared error of targets that are standardised.

    Parameters
    ----------
    cell, hidden_size, num_layers, bidirectional, pooling, dropout
        As in `SequenceClassifier`.
    epochs, batch_size, learning_rate, optimizer, clipnorm
        As in `SequenceClassifier`.
    early_stopping, validation_fraction, patience
        As in `SequenceClassifier`, with sequences that are drawn from all.
    standardize, random_state, verbose
        As in `SequenceClassifier`.

    Attributes
    ----------
    model_ : Sequential
        The network, which gives standardised targets.
    target_mean_, target_scale_ : ndarray (k,)
        What is taken off the targets, and what they are divided by.
    history_, mean_, scale_, n_features_in_, n_iter_
        As in `SequenceClassifier`; losses are of standardised targets.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 6))  # (n, T), one feature
    >>> y = X.sum(axis=1)
    >>> regressor = SequenceRegressor("gru", 32, random_state=0).fit(X[:150], y[:150])
    >>> bool(regressor.score(X[150:], y[150:]) > 0.9)
    True
    """

    _loss = "mse"

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X : array (n, T, F), (n, T), or list of (T_i, F) or (T_i,)
            Sequences.
        y : numbers (n,) or (n, k)
            Their targets.
        sample_weight : numbers >= 0 (n,), optional
            Weights of the sequences in the loss.

        Returns
        -------
        SequenceRegressor
            The estimator.
        """
        sequences = read_sequences(X)
        targets = to_numbers("y", "numbers (n,) or (n, k)", y)
        if targets.ndim not in (1, 2) or (targets.ndim == 2 and not targets.shape[1]):
            raise ValueError(f"y: expected numbers (n,) or (n, k), got {targets.shape}")
        _check_count(sequences, targets)
        columns = targets.reshape(len(targets), -1)
        mean, scale = _statistics("y", columns)
        groups = np.zeros(len(columns), np.intp)
        standardized = (columns - mean) / scale
        self._train(sequences, standardized, columns.shape[1], groups, sample_weight)
        self.target_mean_, self.target_scale_ = mean, scale
        self._is_flat = targets.ndim == 1
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Compute the numbers.

        Parameters
        ----------
        X : array (n, T, F), (n, T), or list of (T_i, F) or (T_i,)
            Sequences.

        Returns
        -------
        ndarray (n,) or (n, k)
            As the targets of `fit`.
        """
        numbers = self._outputs(X) * self.target_scale_ + self.target_mean_
        return numbers[:, 0] if self._is_flat else numbers
