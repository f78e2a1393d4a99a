"""Training of an encoder and a decoder together.

Letters: T steps, B batch, F features, k components of the code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn.autoencoding.networks import TiedDense
from fastrnn.autoencoding.penalties import Geometry, Term, weight_decay
from fastrnn.batches import Samples, align
from fastrnn.containers import prefixed, run, run_back
from fastrnn.layer import Layer
from fastrnn.models import leaves
from fastrnn.trainer import Model, Pass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastrnn.autoencoding.penalties import Penalty
    from fastrnn.autoencoding.stochastic import Corruption, Reparameterization
    from fastrnn.batches import Batch
    from fastrnn.functional import FloatArray
    from fastrnn.models import Sequential

__all__ = ["AutoencoderModel", "GaussianLikelihood"]

_LEAST_VARIANCE = 1e-6
_MOMENTUM = 0.02  # of a batch in the running variance


class GaussianLikelihood(Layer):
    """Normal distribution of an element around its reconstruction, whose variance is learnt.

    The variance is a running mean of the squared errors in training, where its likelihood is
    largest [1]_.

    References
    ----------
    .. [1] O. Rybkin, K. Daniilidis, S. Levine. Simple and effective VAE training with calibrated
           decoders. ICML 2021.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers = {"variance": np.ones(1)}

    @property
    def variance(self) -> float:
        """Variance of an element."""
        return float(self._buffers["variance"][0])

    def learn(self, error: float) -> None:
        """Take the mean squared error of a batch into account."""
        mean = self.variance + _MOMENTUM * (error - self.variance)
        self._buffers["variance"][0] = max(mean, _LEAST_VARIANCE)

    def factor(self) -> float:
        """Return by what the mean squared error is multiplied in `loss`."""
        return 0.5 / self.variance

    def loss(self, error: float) -> float:
        """Return the negative log-likelihood of an element, from the mean squared error."""
        return self.factor() * error + 0.5 * math.log(2 * math.pi * self.variance)


class _Tape(NamedTuple):
    """What the gradient of a pass needs.

    Attributes
    ----------
    encoder, draw, decoder
        Tapes of the parts; None where none was asked for.
    steps : int
        Steps T that the code was repeated for; 0 without.
    term : Term or None
        The penalty.
    weight : float
        Its weight.
    """

    encoder: Any
    draw: Any
    decoder: Any
    steps: int
    term: Term | None
    weight: float


class AutoencoderModel(Model):
    """An encoder and a decoder whose output is to be like the input.

    Parameters
    ----------
    encoder : Sequential
        From rows (B, F) or sequences (T, B, F) to codes (B, k), or (B, 2k) with a `draw`.
    decoder : Sequential
        From codes (B, k) to rows, or from codes at every step (T, B, k) to sequences.
    corruption : Corruption, optional
        Noise on the input.
    draw : Reparameterization, optional
        What makes a code of means and variances.
    penalty : Penalty, optional
        What is added to the loss.
    warm_up : int, default 0
        Epochs in which the weight of the penalty rises to its own.
    l1, l2 : float, default 0
        Factors of the sizes and squares of all weights in the loss.
    likelihood : GaussianLikelihood, optional
        Which turns the mean squared error into nats.
    """

    def __init__(
        self,
        encoder: Sequential,
        decoder: Sequential,
        *,
        corruption: Corruption | None = None,
        draw: Reparameterization | None = None,
        penalty: Penalty | None = None,
        warm_up: int = 0,
        l1: float = 0.0,
        l2: float = 0.0,
        likelihood: GaussianLikelihood | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.corruption, self.draw, self.likelihood = corruption, draw, likelihood
        self.penalty, self.warm_up = penalty, warm_up
        self.l1, self.l2 = l1, l2

    def children(self) -> Mapping[str, Layer]:
        """Return the parts by name."""
        parts = {
            "encoder": self.encoder,
            "decoder": self.decoder,
            "corruption": self.corruption,
            "draw": self.draw,
            "likelihood": self.likelihood,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def dtype(self) -> Any:
        """Type of the parameters."""
        return self.encoder.dtype

    def _output_layer(self) -> Layer:
        return leaves(self.decoder)[-1]

    def _samples(
        self, x: Any, y: Any = None, lengths: Any = None, sample_weight: Any = None
    ) -> Samples:
        samples = Samples(
            x,
            y,
            lengths=lengths,
            sample_weight=sample_weight,
            reads_ids=False,
            dtype=self.dtype,
        )
        samples.fit_to(self.encoder.input_shape())
        return samples

    def penalty_weight(self) -> float:
        """Return the weight of the penalty, which is smaller while it warms up."""
        if self.penalty is None:
            return 0.0
        if not self._training or self.epochs_trained >= self.warm_up:
            return self.penalty.weight
        return self.penalty.weight * (self.epochs_trained + 1) / (self.warm_up + 1)

    def _pass(self, batch: Batch, state: Any = None, *, keep: bool = True) -> Pass:
        x, lengths = batch.x, batch.lengths
        if self.corruption is not None:
            x, _, _ = run(self.corruption, x, None, lengths, keep=False)
        code, _, encoder_tape = run(self.encoder, x, None, lengths, keep=keep)
        term, draw_tape, z = None, None, code
        if self.draw is not None:
            z, _, draw_tape = run(self.draw, code, None, None, keep=keep)
        near = None
        if isinstance(self.penalty, Geometry):
            # Targets hold the rows and then what their codes are to be near to.
            assert batch.y is not None
            F = x.shape[-1]
            near, batch = batch.y[:, F:], batch._replace(y=batch.y[:, :F])
        if self.penalty is not None:
            term = self.penalty(code, near)
        steps = len(x) if x.ndim == 3 else 0
        if steps:
            z = np.broadcast_to(z, (steps, *z.shape))
        prediction, _, decoder_tape = run(
            self.decoder, z, None, lengths if steps else None, keep=keep
        )
        target, mask, weight = align(batch, prediction, lengths if steps else None, self.loss)
        tape = _Tape(encoder_tape, draw_tape, decoder_tape, steps, term, self.penalty_weight())
        return Pass(prediction, target, mask, weight, None, tape)

    def _loss(self, step: Pass, class_weight: Any) -> tuple[float, FloatArray]:
        value, gradient = super()._loss(step, class_weight)
        if self.likelihood is not None:
            if self._training:
                self.likelihood.learn(value)
            gradient = gradient * gradient.dtype.type(self.likelihood.factor())
            value = self.likelihood.loss(value)
        if step.tape.term is not None:
            value += step.tape.weight * step.tape.term.value
        if self.l1 or self.l2:
            value += weight_decay(self.parameters, self.l1, self.l2)[0]
        return value, gradient

    def _gradients(self, tape: Any, gradient: FloatArray) -> dict[str, FloatArray]:
        decoded = run_back(self.decoder, tape.decoder, gradient, None, input_grad=True)
        by_code = decoded.input
        assert by_code is not None
        if tape.steps:
            by_code = by_code.sum(axis=0)
        if self.draw is not None:
            by_code = run_back(self.draw, tape.draw, by_code, None, input_grad=True).input
            assert by_code is not None
        if tape.term is not None:
            by_code = by_code + by_code.dtype.type(tape.weight) * tape.term.code
        encoded = run_back(self.encoder, tape.encoder, by_code, None, input_grad=False)
        found = prefixed({"encoder": encoded.parameters, "decoder": decoded.parameters})
        if tape.term is not None:
            for name, array in tape.term.parameters.items():
                found[f"encoder.{name}"] += tape.weight * array
        self._tie(found)
        if self.l1 or self.l2:
            for name, array in weight_decay(self.parameters, self.l1, self.l2)[1].items():
                found[name] += array
        return found

    def _tie(self, gradients: dict[str, FloatArray]) -> None:
        """Add the gradients of weights that the decoder has from the encoder to theirs."""
        for i, layer in enumerate(self.decoder.layers):
            if isinstance(layer, TiedDense):
                source = next(
                    j for j, other in enumerate(self.encoder.layers) if other is layer.source
                )
                gradients[f"encoder.{source}.weight"] += gradients.pop(f"decoder.{i}.weight")
