"""Autoencoders with the interface of scikit-learn.

All are transformers, from rows to codes and back, and tell outliers by what they cannot
reconstruct. With scikit-learn installed they are its estimators; without it they have the same
methods.

Letters: n rows, F features, k components, C channels, H height, W width, T steps.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional
from fastrnn.autoencoding import networks
from fastrnn.autoencoding.embeddings import embed
from fastrnn.autoencoding.estimator import AutoencoderBase
from fastrnn.autoencoding.model import GaussianLikelihood
from fastrnn.autoencoding.penalties import (
    Activity,
    Contraction,
    Divergence,
    Geometry,
    Penalty,
    Sparsity,
)
from fastrnn.autoencoding.stochastic import (
    CORRUPTIONS,
    Corruption,
    Reparameterization,
    normal_parameters,
)
from fastrnn.recurrent import CELLS
from fastrnn.scikit import Sequences, finite_number, read_sequences, to_generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastrnn.autoencoding.networks import Style
    from fastrnn.models import Sequential

    Array = NDArray[Any]

__all__ = [
    "Autoencoder",
    "ContractiveAutoencoder",
    "ConvolutionalAutoencoder",
    "DenoisingAutoencoder",
    "GeometryRegularizedAutoencoder",
    "SequenceAutoencoder",
    "SparseAutoencoder",
    "VariationalAutoencoder",
]


@dataclass(repr=False, eq=False)
class Autoencoder(AutoencoderBase):
    """Autoencoder: a network that learns to give its input through a code of a few numbers.

    Encoder and decoder are trained together, to make the error of the reconstruction small [1]_.

    Parameters
    ----------
    n_components : int, default 8
        Numbers k of a code; there can be more than features.
    hidden : tuple of int, default (128,)
        Units of the hidden layers of the encoder. The decoder has them the other way round. With
        ``()`` both are a single layer.
    activation : str, default "gelu"
        Function of the hidden layers: "linear", "sigmoid", "tanh", "relu", "leaky_relu", "elu",
        "gelu", "silu" or "softplus".
    loss : {"mse", "bce"}, default "mse"
        Squared errors, or for numbers in [0, 1] cross-entropy.
    epochs : int, default 100
        Passes over the rows.
    tied : bool, default False
        Whether the decoder has the transposed weights of the encoder.
    code_activation : str, default "linear"
        Function of the code.
    l1, l2 : float, default 0
        Factors of the sum of sizes and of the sum of squares of all weights in the loss.
    dropout : float, default 0
        Probability of a zero after each hidden layer in training.
    batch_norm : bool, default False
        Whether hidden layers are normalised over the batch before their activation.
    batch_size : int, default 32
        Rows in an update.
    learning_rate : float, optional
        Size of Adam's updates at its largest: it rises in the first twentieth of the updates, and
        then falls to 0 along half a cosine. By default 3e-3, or 1e-2 without hidden layers.
    early_stopping : bool, default False
        Whether a part of the rows is kept to validate with. Training then ends when their loss has
        not improved for some epochs, with the best weights.
    validation_fraction : float, default 0.1
        That part.
    patience : int, default 10
        Those epochs.
    contamination : float, default 0.1
        Part of the rows of `fit`, up to 0.5, that `predict` calls outliers.
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None, default None
        Source of all randomness. An int makes `fit` repeatable, to the last bit on a machine.
    verbose : {0, 1}, default 0
        Whether progress is shown.

    Attributes
    ----------
    model_ : object
        The network, with `encoder` and `decoder`, both `Sequential`.
    history_ : History
        Logs of the epochs: ``loss``, and with `early_stopping` ``val_loss``, ...
    mean_ : ndarray (F,)
        What is taken off the features before the network.
    scale_ : float
        What they are then divided by, one number for all.
    offset_ : float
        Score of `score_samples` below which `predict` calls a row an outlier.
    n_components_, n_features_in_, n_iter_ : int
        Components, features, and epochs that were run.
    feature_names_in_ : ndarray of str (F,)
        Names of the features, if X had any.

    Notes
    -----
    Features are not scaled one by one: those of larger variance count more, as in PCA. A
    ``StandardScaler`` before this makes them count the same. The network computes in float32.

    References
    ----------
    .. [1] G. E. Hinton, R. R. Salakhutdinov. Reducing the dimensionality of data with neural
           networks. Science 313 (2006).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> angle = rng.uniform(0, 6, 500)
    >>> X = np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle)])
    >>> autoencoder = Autoencoder(n_components=2, epochs=60, random_state=0).fit(X)
    >>> autoencoder.transform(X).shape
    (500, 2)
    >>> bool(np.mean((autoencoder.reconstruct(X) - X) ** 2) < 0.02)
    True
    >>> autoencoder.predict([[1.0, 0.0, 1.0], [3.0, -3.0, 0.0]]).tolist()
    [1, -1]
    """

    _: KW_ONLY
    tied: bool = False

    def _networks(
        self, features: int, components: int, hidden: tuple[int, ...], style: Style
    ) -> tuple[Sequential, Sequential]:
        tied = functional.boolean("tied", self.tied)
        return networks.dense(features, components, components, hidden, tied, style)


@dataclass(repr=False, eq=False)
class DenoisingAutoencoder(Autoencoder):
    """Autoencoder that learns to take noise off its input [1]_.

    In training the encoder reads rows with noise, and the decoder is to give them without;
    `reconstruct` then denoises.

    Parameters
    ----------
    n_components, hidden, activation, loss, epochs
        As in `Autoencoder`; here k is 64 by default.
    noise : {"gaussian", "masking", "salt_and_pepper"}, default "gaussian"
        What happens to elements: all get a normal number added; some become 0; some become the
        least or the largest number in the rows of `fit`.
    amount : float, default 0.5
        Standard deviation of the noise, in units of ``scale_``, the standard deviation of the data;
        or the probability that an element is replaced.
    tied, code_activation, l1, l2, dropout, batch_norm, batch_size, learning_rate
        As in `Autoencoder`.
    early_stopping, validation_fraction, patience, contamination, random_state, verbose
        As in `Autoencoder`.

    References
    ----------
    .. [1] P. Vincent, H. Larochelle, I. Lajoie, Y. Bengio, P.-A. Manzagol. Stacked denoising
           autoencoders. JMLR 11, 2010.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> angle = rng.uniform(0, 6, 500)
    >>> X = np.column_stack([f(n * angle) for n in (1, 2, 3) for f in (np.cos, np.sin)])
    >>> noisy = X + rng.normal(0, 0.3, X.shape)
    >>> autoencoder = DenoisingAutoencoder(amount=0.4, epochs=60, random_state=0).fit(X)
    >>> bool(np.std(autoencoder.reconstruct(noisy) - X) < 0.8 * np.std(noisy - X))
    True
    """

    n_components: int = 64
    _: KW_ONLY
    noise: str = "gaussian"
    amount: float = 0.5

    def _learn(self, elements: Array) -> None:
        self._range = float(elements.min()), float(elements.max())

    def _parts(self, encoder: Sequential, generator: np.random.Generator) -> dict[str, Any]:
        corruption = Corruption(
            functional.choice("noise", self.noise, CORRUPTIONS),
            self.amount,
            zero=-self.mean_ / self.scale_,
            low=(self._range[0] - self.mean_) / self.scale_,
            high=(self._range[1] - self.mean_) / self.scale_,
            seed=generator,
        )
        return {"corruption": corruption}

    _learnt = (*Autoencoder._learnt, "_range")


@dataclass(repr=False, eq=False)
class SparseAutoencoder(Autoencoder):
    """Autoencoder whose codes are mostly near 0 [1]_.

    Parameters
    ----------
    n_components, hidden, activation, loss, epochs
        As in `Autoencoder`; here k is 64 and `hidden` is ``()`` by default.
    penalty : {"kl", "l1"}, default "kl"
        What is added to the loss: how far the mean activation of each unit of the code is from
        `rho`, see Notes, for which `code_activation` has to be "sigmoid"; or the sum of the sizes
        of the numbers of a code.
    rho : float, default 0.05
        That mean activation, between 0 and 1.
    strength : float, default 1
        Factor of the penalty.
    tied, code_activation, l1, l2, dropout, batch_norm, batch_size, learning_rate
        As in `Autoencoder`; here `code_activation` is "sigmoid" by default.
    early_stopping, validation_fraction, patience, contamination, random_state, verbose
        As in `Autoencoder`.

    Notes
    -----
    With r_j the mean of unit j over a batch, "kl" is the sum over the units of
    rho·log(rho/r_j) + (1 - rho)·log((1 - rho)/(1 - r_j)). The loss of the reconstruction is a mean
    over the features, for "mse" in units of ``scale_``².

    References
    ----------
    .. [1] A. Ng. Sparse autoencoder. CS294A lecture notes, Stanford, 2011.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(500, 4)) ** 3
    >>> autoencoder = SparseAutoencoder(16, rho=0.1, epochs=60, random_state=0).fit(X)
    >>> float(autoencoder.transform(X).mean().round(1))
    0.1
    """

    n_components: int = 64
    hidden: Any = ()
    _: KW_ONLY
    code_activation: str = "sigmoid"
    penalty: str = "kl"
    rho: float = 0.05
    strength: float = 1.0

    def _parts(self, encoder: Sequential, generator: np.random.Generator) -> dict[str, Any]:
        strength = finite_number("strength", self.strength)
        penalty: Penalty
        if functional.choice("penalty", self.penalty, ("kl", "l1")) == "l1":
            penalty = Activity(strength)
        elif self.code_activation != "sigmoid":
            raise ValueError(
                "code_activation: expected 'sigmoid' for penalty='kl', whose units are between 0"
                f" and 1, got {self.code_activation!r}"
            )
        else:
            penalty = Sparsity(self.rho, strength)
            rho = min(max(penalty.rho, 1e-3), 1 - 1e-3)
            # Or most of the training would be the way of the units from 1/2.
            encoder[-1].parameters["bias"][:] = math.log(rho / (1 - rho))
        return {"penalty": penalty}


@dataclass(repr=False, eq=False)
class ContractiveAutoencoder(Autoencoder):
    """Autoencoder whose code changes little where the input does [1]_.

    The squared Frobenius norm of the Jacobian of the code by the input is added to the loss,
    exactly, for an encoder of one layer.

    Parameters
    ----------
    n_components, hidden, activation, loss, epochs
        As in `Autoencoder`; here k is 64 by default, and `hidden` has to be ``()``.
    strength : float, default 0.003
        Factor of the penalty, the mean over the rows of that squared norm in units in which the
        data have variance 1.
    tied, code_activation, l1, l2, dropout, batch_norm, batch_size, learning_rate
        As in `Autoencoder`; here `code_activation` is "sigmoid" by default, or "tanh".
    early_stopping, validation_fraction, patience, contamination, random_state, verbose
        As in `Autoencoder`.

    References
    ----------
    .. [1] S. Rifai, P. Vincent, X. Muller, X. Glorot, Y. Bengio. Contractive auto-encoders:
           explicit invariance during feature extraction. ICML 2011.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(300, 3))
    >>> loose, tight = (
    ...     ContractiveAutoencoder(6, strength=strength, epochs=30, random_state=0).fit(X)
    ...     for strength in (0.0, 0.1)
    ... )
    >>> bool(tight.jacobian_norms(X).mean() < loose.jacobian_norms(X).mean())
    True
    """

    n_components: int = 64
    hidden: Any = ()
    _: KW_ONLY
    code_activation: str = "sigmoid"
    strength: float = 0.003

    def _parts(self, encoder: Sequential, generator: np.random.Generator) -> dict[str, Any]:
        if len(encoder) > 1:
            raise ValueError(
                f"hidden: expected (), as the penalty is that of one layer, got {self.hidden!r}"
            )
        layer: Any = encoder[0]
        strength = finite_number("strength", self.strength)
        return {"penalty": Contraction(layer, strength)}

    def jacobian_norms(self, X: Any) -> NDArray[np.float64]:
        """Compute how much the code changes with the input.

        Parameters
        ----------
        X : array (n, F)
            Rows.

        Returns
        -------
        ndarray (n,)
            Frobenius norm of the Jacobian of the code of each row, for inputs in units in which the
            data have variance 1.
        """
        codes = np.asarray(self.transform(X), np.float64)
        penalty: Any = self.model_.penalty
        return np.asarray(np.sqrt(penalty.norms(codes)))


@dataclass(repr=False, eq=False)
class VariationalAutoencoder(AutoencoderBase):
    """Variational autoencoder: a model of the data that new rows can be drawn from [1]_.

    The encoder gives mean and variance of each number of a code, and the code is drawn from that
    normal distribution. The loss is the negative evidence lower bound (ELBO).

    Parameters
    ----------
    n_components, hidden, activation, loss, epochs
        As in `Autoencoder`; with "mse" features are normal around their reconstruction, with one
        variance that is learnt, and with "bce" they are yes or no, with some probability.
    beta : float, default 1
        Factor of the divergence from N(0, I) in the loss; above 1 components are pressed to be
        independent [2]_.
    warm_up : int, default 10
        Epochs in which that factor rises to `beta`, so that codes are used before they are pressed.
    code_activation, l1, l2, dropout, batch_norm, batch_size, learning_rate
        As in `Autoencoder`, but `code_activation` has to be "linear". The loss is that of a
        feature, in nats.
    early_stopping, validation_fraction, patience, contamination, random_state, verbose
        As in `Autoencoder`.

    Attributes
    ----------
    noise_variance_ : float
        With "mse", variance of a feature around its reconstruction.
    model_, history_, mean_, scale_, offset_, n_components_, n_features_in_, n_iter_
        As in `Autoencoder`.

    Notes
    -----
    `transform` gives the means, and `reconstruct`, `score_samples` and `predict` are those of them.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling. Auto-encoding variational Bayes. ICLR 2014.
    .. [2] I. Higgins et al. beta-VAE: learning basic visual concepts with a constrained
           variational framework. ICLR 2017.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> angle = rng.uniform(0, 6, 500)
    >>> X = np.column_stack([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.05, (500, 2))
    >>> autoencoder = VariationalAutoencoder(2, random_state=0).fit(X)
    >>> drawn = autoencoder.sample(200, random_state=0)
    >>> bool(abs(np.linalg.norm(drawn, axis=1).mean() - 1) < 0.2)
    True
    """

    _: KW_ONLY
    beta: float = 1.0
    warm_up: int = 10

    def _networks(
        self, features: int, components: int, hidden: tuple[int, ...], style: Style
    ) -> tuple[Sequential, Sequential]:
        functional.choice("code_activation", self.code_activation, ("linear",))
        return networks.dense(features, 2 * components, components, hidden, False, style)

    def _parts(self, encoder: Sequential, generator: np.random.Generator) -> dict[str, Any]:
        k = self.n_components
        # The loss of the reconstruction is a mean over the features.
        weight = finite_number("beta", self.beta) / len(self.mean_)
        return {
            "draw": Reparameterization(k, seed=generator),
            "penalty": Divergence(k, weight),
            "warm_up": functional.integer("warm_up", self.warm_up, 0),
            "likelihood": GaussianLikelihood() if self.loss == "mse" else None,
        }

    def _code(self, encoded: Array) -> Array:
        return encoded[:, : encoded.shape[1] // 2]

    @property
    def noise_variance_(self) -> float:
        """Variance of a feature around its reconstruction."""
        self._check_fitted()
        likelihood = self.model_.likelihood
        if likelihood is None:
            raise AttributeError("noise_variance_: expected a fit with loss='mse'")
        return likelihood.variance * self.scale_**2

    def sample(self, n_samples: int = 1, *, random_state: Any = None) -> Array:
        """Draw new rows: what the decoder makes of codes from N(0, I).

        Parameters
        ----------
        n_samples : int, default 1
            Rows.
        random_state : int, numpy.random.RandomState, numpy.random.Generator or None
            Source of randomness.

        Returns
        -------
        ndarray (n_samples, F)
            Means of the features, or their probabilities.
        """
        self._check_fitted()
        n = functional.integer("n_samples", n_samples, 1)
        codes = to_generator(random_state).standard_normal((n, self.n_components_))
        return self._decoded(codes)

    def elbo(self, X: Any, *, draws: int = 1, random_state: Any = None) -> NDArray[np.float64]:
        """Estimate the evidence lower bound, for a beta of 1.

        Parameters
        ----------
        X : array (n, F)
            Rows.
        draws : int, default 1
            Codes that are drawn for each row.
        random_state : int, numpy.random.RandomState, numpy.random.Generator or None
            Source of randomness.

        Returns
        -------
        ndarray (n,)
            A lower bound of the logarithm of the density of each row, in nats.
        """
        self._check_fitted()
        rows = self._rows(X)
        encoded = self.model_.encoder.predict(self._scaled(rows))
        mean, logarithm = normal_parameters(encoded.astype(np.float64), self.n_components_)
        generator = to_generator(random_state)
        total = np.zeros(len(rows))
        count = functional.integer("draws", draws, 1)
        for _ in range(count):
            drawn = generator.standard_normal(mean.shape)
            errors = self._errors(rows, self._decoded(mean + np.exp(logarithm / 2) * drawn))
            if self._fitted["loss"] == "mse":
                variance = self.noise_variance_
                errors = 0.5 * (errors / variance + math.log(2 * math.pi * variance))
            total -= errors.sum(axis=1)
        penalty: Any = self.model_.penalty
        return np.asarray(total / count - penalty.of_rows(encoded))


@dataclass(repr=False, eq=False)
class GeometryRegularizedAutoencoder(Autoencoder):
    """Autoencoder whose codes are pulled to an embedding of the rows [1]_.

    It extends embeddings that only know the rows that they were made of: new rows get a code, and
    codes can be turned back into rows.

    Parameters
    ----------
    n_components, hidden, activation, loss, epochs
        As in `Autoencoder`; here k is 2 by default.
    embedding : {"diffusion", "pca"}, array (n, k), or object with ``fit_transform``, optional
        The embedding: a diffusion map [2]_ (the default), principal components, that of the rows of
        `fit`, or what makes it, such as ``sklearn.manifold.Isomap()``, of which a copy is fit.
    strength : float, default 1
        Factor of the mean squared difference of a number of a code from the embedding. This is
        shifted to mean 0 and divided by one number, so that its mean variance is 1.
    tied, code_activation, l1, l2, dropout, batch_norm, batch_size, learning_rate
        As in `Autoencoder`, but `code_activation` has to be "linear".
    early_stopping, validation_fraction, patience, contamination, random_state, verbose
        As in `Autoencoder`.

    Attributes
    ----------
    embedding_ : ndarray (n, k)
        The embedding of the rows of `fit`, scaled; a file does not hold it.
    model_, history_, mean_, scale_, offset_, n_components_, n_features_in_, n_iter_
        As in `Autoencoder`.

    References
    ----------
    .. [1] A. F. Duque, S. Morin, G. Wolf, K. R. Moon. Extendable and invertible manifold learning
           with geometry regularized autoencoders. IEEE Big Data 2020.
    .. [2] R. R. Coifman, S. Lafon. Diffusion maps. Applied and Computational Harmonic Analysis 21
           (2006).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> angle = rng.uniform(1, 8, 400)
    >>> X = np.column_stack([angle * np.cos(angle), rng.uniform(0, 1, 400), angle * np.sin(angle)])
    >>> autoencoder = GeometryRegularizedAutoencoder(1, random_state=0).fit(X)
    >>> Z = autoencoder.transform(X)
    >>> bool(np.corrcoef(Z[:, 0], autoencoder.embedding_[:, 0])[0, 1] > 0.95)
    True
    """

    n_components: int = 2
    _: KW_ONLY
    embedding: Any = "diffusion"
    strength: float = 1.0

    def _parts(self, encoder: Sequential, generator: np.random.Generator) -> dict[str, Any]:
        functional.choice("code_activation", self.code_activation, ("linear",))
        return {"penalty": Geometry(finite_number("strength", self.strength))}

    def _targets(self, inputs: Any, targets: Any, generator: np.random.Generator) -> Any:
        rows = np.asarray(inputs, np.float64)
        self.embedding_ = embed(self.embedding, rows, self.n_components, generator)
        return np.hstack([targets, self.embedding_.astype(np.float32)])


@dataclass(repr=False, eq=False)
class ConvolutionalAutoencoder(AutoencoderBase):
    """Autoencoder of images: convolutions in the encoder, their transposes in the decoder [1]_.

    Parameters
    ----------
    n_components : int, default 8
        Numbers k of a code.
    hidden : tuple of int, default (16, 32)
        Channels of the convolutions of the encoder, each of which halves height and width; an
        affine map follows. The decoder has them the other way round.
    activation, loss, epochs
        As in `Autoencoder`; the function is "relu" by default.
    kernel_size : int, default 3
        Height and width of the windows, at least 2.
    image_shape : (H, W) or (C, H, W), optional
        What rows (n, F) are. By default such rows are signals: images of height 1.
    code_activation, l1, l2, dropout, batch_norm, batch_size, learning_rate
        As in `Autoencoder`; `batch_norm` is that of each channel.
    early_stopping, validation_fraction, patience, contamination, random_state, verbose
        As in `Autoencoder`.

    Attributes
    ----------
    image_shape_ : tuple of int (C, H, W)
        Shape of an image.
    mean_ : ndarray (C·H·W,)
        What is taken off the pixels before the network.
    model_, history_, scale_, offset_, n_components_, n_features_in_, n_iter_
        As in `Autoencoder`.

    Notes
    -----
    Where X stands for rows (n, F) in other autoencoders, it is images (n, H, W), (n, C, H, W), or
    rows. `reconstruct` and `inverse_transform` give what `fit` was given.

    References
    ----------
    .. [1] J. Masci, U. Meier, D. Cireşan, J. Schmidhuber. Stacked convolutional auto-encoders for
           hierarchical feature extraction. ICANN 2011.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows, columns = rng.integers(1, 7, (2, 200))
    >>> images = np.zeros((200, 8, 8))
    >>> for down in (-1, 0, 1):
    ...     for right in (-1, 0, 1):
    ...         images[np.arange(200), rows + down, columns + right] = 1  # a square somewhere
    >>> autoencoder = ConvolutionalAutoencoder(4, epochs=40, random_state=0).fit(images)
    >>> autoencoder.reconstruct(images).shape
    (200, 8, 8)
    >>> bool(np.mean((autoencoder.reconstruct(images) - images) ** 2) < 0.3 * images.var())
    True
    """

    hidden: Any = (16, 32)
    activation: str = "relu"
    _: KW_ONLY
    kernel_size: int = 3
    image_shape: Any = None

    _least_hidden = 1
    _learnt = (*AutoencoderBase._learnt, "image_shape_", "_layout")
    image_shape_: tuple[int, ...] = field(init=False)
    _layout: tuple[int, ...] = field(init=False)

    def _networks(
        self, features: int, components: int, hidden: tuple[int, ...], style: Style
    ) -> tuple[Sequential, Sequential]:
        kernel_size = functional.integer("kernel_size", self.kernel_size, 2)
        return networks.convolutional(self.image_shape_, components, hidden, kernel_size, style)

    def _read(self, X: Any, *, reset: bool = False) -> Any:
        images = X
        axes = _axes(X)
        if axes > 2:
            images = functional.listed("X", "images (n, H, W) or (n, C, H, W)", X)
            if images.ndim > 4:
                raise ValueError(
                    f"X: expected (n, H, W), (n, C, H, W) or (n, F), got {images.shape}"
                )
            shape = images.shape[1:] if images.ndim == 4 else (1, *images.shape[1:])
            if not reset and shape != self.image_shape_:
                raise ValueError(
                    f"X: expected images {self.image_shape_} (C, H, W), as fit was given, got"
                    f" {shape}"
                )
            layout = images.shape[1:]
            images = images.reshape(len(images), math.prod(layout))
        rows = super()._read(images, reset=reset)
        if reset:
            if axes <= 2:
                layout = rows.shape[1:]
            if axes <= 2 or self.image_shape is not None:
                given = self._shape_of_rows(rows.shape[1])
                if axes > 2 and given != shape:
                    raise ValueError(
                        f"image_shape: expected {shape}, as X has images, got {self.image_shape}"
                    )
                shape = given
            self.image_shape_, self._layout = tuple(map(int, shape)), tuple(map(int, layout))
        return rows

    def _shape_of_rows(self, F: int) -> tuple[int, ...]:
        """Return the shape (C, H, W) of images that are given as rows."""
        if self.image_shape is None:
            return (1, 1, F)
        given = self.image_shape
        if not isinstance(given, (tuple, list, np.ndarray)) or len(given) not in (2, 3):
            raise ValueError(f"image_shape: expected (H, W) or (C, H, W), got {given!r}")
        shape = tuple(functional.integer("image_shape", size, 1) for size in given)
        if math.prod(shape) != F:
            raise ValueError(
                f"image_shape: expected a shape of {F} pixels, as X has features, got {given}"
            )
        return shape if len(shape) == 3 else (1, *shape)

    def _shown(self, rows: Any, elements: Array) -> Any:
        return elements.reshape(len(elements), *self._layout)

    def _pictures(self, X: Any) -> list[Array]:
        C, H, W = self.image_shape_
        images = np.asarray(X, np.float64).reshape(-1, C, H, W)
        if H == 1:
            return list(images[:, 0, 0])
        if C == 3:
            return list(np.clip(images, 0, 1).transpose(0, 2, 3, 1))
        return list(images[:, 0])


@dataclass(repr=False, eq=False)
class SequenceAutoencoder(AutoencoderBase):
    """Autoencoder of sequences: recurrent layers in encoder and decoder [1]_.

    The encoder reads a sequence of any length, and a code is made of the last output. The decoder
    reads the code at every step.

    Parameters
    ----------
    n_components : int, default 8
        Numbers k of a code.
    hidden : tuple of int, default (64,)
        Units of the recurrent layers of the encoder. The decoder has them the other way round.
    loss, epochs
        As in `Autoencoder`; there is no other `activation` than "tanh", that of the cells.
    cell : {"lstm", "gru", "rnn"}, default "gru"
        Kind of the recurrent layers.
    bidirectional : bool, default True
        Whether the encoder reads sequences backward, too, and so ends at either end.
    code_activation, l1, l2, dropout, batch_norm, batch_size, learning_rate
        As in `Autoencoder`.
    early_stopping, validation_fraction, patience, contamination, random_state, verbose
        As in `Autoencoder`.

    Attributes
    ----------
    steps_ : int
        Steps of the longest sequence of `fit`.
    mean_ : ndarray (F,)
        What is taken off the features of each step.
    model_, history_, scale_, offset_, n_components_, n_features_in_, n_iter_
        As in `Autoencoder`.

    Notes
    -----
    Where X stands for rows (n, F) in other autoencoders, it is sequences here: (n, T, F), a list of
    (T_i, F) or (T_i,), or (n, T) with one feature. As with other estimators, rows (n, T) have as
    many steps in all calls; the other kinds may have more or fewer. The error of a sequence is that
    of a step, in the mean.

    References
    ----------
    .. [1] N. Srivastava, E. Mansimov, R. Salakhutdinov. Unsupervised learning of video
           representations using LSTMs. ICML 2015.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> t = np.arange(20)
    >>> X = [np.sin(t[: rng.integers(10, 21)] * 0.4 + rng.uniform(0, 6)) for _ in range(200)]
    >>> autoencoder = SequenceAutoencoder(4, epochs=40, random_state=0).fit(X)
    >>> autoencoder.transform(X).shape
    (200, 4)
    >>> found = autoencoder.reconstruct(X)
    >>> bool(np.mean((np.concatenate(found)[:, 0] - np.concatenate(X)) ** 2) < 0.1)
    True
    """

    hidden: Any = (64,)
    activation: str = "tanh"
    _: KW_ONLY
    cell: str = "gru"
    bidirectional: bool = True

    _least_hidden = 1
    _draws_curves = True
    _learnt = (*AutoencoderBase._learnt, "steps_", "_is_table")
    steps_: int = field(init=False)
    _is_table: bool = field(init=False)

    def _networks(
        self, features: int, components: int, hidden: tuple[int, ...], style: Style
    ) -> tuple[Sequential, Sequential]:
        functional.choice("activation", self.activation, ("tanh",))
        return networks.recurrent(
            features,
            components,
            hidden,
            functional.choice("cell", self.cell, tuple(CELLS)),
            functional.boolean("bidirectional", self.bidirectional),
            style,
        )

    def _read(self, X: Any, *, reset: bool = False) -> Any:
        is_table = _axes(X) < 3 and not _is_list_of_arrays(X)
        if not reset and is_table and not self._is_table and self.n_features_in_ != 1:
            raise ValueError(
                f"X: expected sequences (n, T, {self.n_features_in_}), as fit was given, got rows"
            )
        if is_table and (reset or self._is_table):
            rows = super()._read(X, reset=reset)
            sequences = Sequences(rows.reshape(-1, 1), np.full(len(rows), rows.shape[1]))
        else:
            sequences = read_sequences(X)
            F = sequences.steps.shape[1]
            if reset:
                self.n_features_in_ = F
            elif len(self.mean_) != F:
                raise ValueError(
                    f"X: expected sequences of {len(self.mean_)} features, as fit was given, got"
                    f" {F}"
                )
        if reset:
            self._is_table = bool(is_table)
            self.steps_ = int(sequences.lengths.max())
        return sequences

    def _width(self, rows: Any) -> int:
        return int(rows.steps.shape[1])

    def _elements(self, rows: Any) -> Array:
        return np.asarray(rows.steps)

    def _like(self, rows: Any, elements: Array) -> Any:
        parts = np.split(elements, np.cumsum(rows.lengths)[:-1])
        return np.stack(parts) if np.all(rows.lengths == rows.lengths[0]) else parts

    def _reconstructed(self, rows: Any) -> Array:
        padded = self._unrolled(self._encoded(rows), rows.lengths)
        inside = np.arange(padded.shape[1]) < rows.lengths[:, np.newaxis]
        return np.asarray(padded[inside])

    def _shown(self, rows: Any, elements: Array) -> Any:
        shown = self._like(rows, elements)
        return shown[:, :, 0] if self._is_table and not isinstance(shown, list) else shown

    def _scores(self, rows: Any) -> NDArray[np.float64]:
        errors = self._errors(rows.steps, self._reconstructed(rows)).mean(axis=1)
        starts = np.cumsum(rows.lengths) - rows.lengths
        return np.asarray(-np.add.reduceat(errors, starts) / rows.lengths)

    def _unrolled(self, codes: Array, lengths: NDArray[np.int64]) -> Array:
        """Return sequences (n, T, F) of some lengths, with 0 after them, from codes."""
        shape = (len(codes), int(lengths.max()), codes.shape[1])
        repeated = np.broadcast_to(codes.astype(np.float32)[:, np.newaxis], shape)
        outputs = self.model_.decoder.predict(repeated, lengths=lengths)
        return self._unscaled(outputs.astype(codes.dtype, copy=False))

    def inverse_transform(self, X: Any, lengths: Any = None) -> Any:
        """Compute sequences from codes.

        Parameters
        ----------
        X : array (n, k)
            Codes.
        lengths : int or integers (n,), optional
            Steps of each sequence; by default those of the longest that `fit` was given.

        Returns
        -------
        ndarray (n, T, F) or (n, T), or list of (T_i, F)
            A sequence for each; (n, T) if `fit` was given such rows.
        """
        self._check_fitted()
        codes = self._read_codes(X)
        if not len(codes):
            shape = (0, self.steps_) if self._is_table else (0, self.steps_, len(self.mean_))
            return np.zeros(shape, codes.dtype)
        steps = np.asarray(self.steps_ if lengths is None else lengths)
        if steps.shape not in ((), (len(codes),)) or steps.dtype.kind not in "iu":
            raise ValueError(
                f"lengths: expected an integer or integers ({len(codes)},), got {steps.shape}"
                f" {steps.dtype}"
            )
        if np.any(steps < 1):
            raise ValueError(f"lengths: expected integers > 0, got {steps.min()}")
        counts = np.broadcast_to(steps, (len(codes),)).astype(np.int64)
        padded = self._unrolled(codes, counts)
        rows = Sequences(padded.reshape(-1, padded.shape[2]), counts)
        inside = np.arange(padded.shape[1]) < counts[:, np.newaxis]
        return self._shown(rows, padded[inside])

    def _pictures(self, X: Any) -> list[Array]:
        return [np.asarray(x, np.float64).reshape(len(x), -1)[:, 0] for x in X]


def _axes(X: Any) -> int:
    """Return how many axes X has, 1 for a list of arrays of different shapes."""
    if hasattr(X, "ndim"):
        return int(X.ndim)
    if isinstance(X, (list, tuple)):
        axes = [_axes(x) for x in X[:1]]
        return 1 + sum(axes)
    return np.asarray(X).ndim


def _is_list_of_arrays(X: Any) -> bool:
    """Whether X is a list, or an array of objects, of arrays, or of lists that differ in length."""
    if not isinstance(X, (list, tuple)) and getattr(X, "dtype", np.dtype(float)).kind != "O":
        return False
    items = list(X)
    if any(isinstance(item, np.ndarray) and item.ndim for item in items):
        return True
    return len({len(item) for item in items if isinstance(item, (list, tuple))}) > 1
