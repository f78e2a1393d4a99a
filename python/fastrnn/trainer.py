"""Training, evaluation and prediction of a model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import callbacks as _callbacks
from fastrnn import functional, losses, metrics, optimizers
from fastrnn.batches import Batch, Samples, time_major
from fastrnn.containers import Container
from fastrnn.layers import Activation, Dense, valid_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from fastrnn.callbacks import Callback, History
    from fastrnn.functional import FloatArray
    from fastrnn.layer import Layer

__all__ = ["Model", "Pass", "Progress", "align"]


class Pass(NamedTuple):
    """What a model made of a batch.

    Attributes
    ----------
    prediction : ndarray (T, B, n) or (B, n)
        Output.
    target : ndarray
        What was to be predicted, laid out as the prediction.
    mask : ndarray of bool (T, B) or None
        Which positions are valid.
    sample_weight : ndarray or None
        Weight of each position, to be broadcast.
    state
        Final state.
    tape
        For the gradient.
    """

    prediction: FloatArray
    target: NDArray[Any]
    mask: NDArray[np.bool_] | None
    sample_weight: NDArray[Any] | None
    state: Any
    tape: Any


class Progress(NamedTuple):
    """How far training has come.

    Attributes
    ----------
    epoch : int
        Epochs that are done.
    batch : int
        Batches of the next one that are.
    order : tuple of int
        Of that epoch: seed, samples, batch size, shuffle, bucketing. It goes on where it stopped
        only in the same order.
    """

    epoch: int = 0
    batch: int = 0
    order: tuple[int, ...] = ()


class _Totals:
    """Loss and metrics of the batches so far."""

    def __init__(self, model: Model) -> None:
        self._metrics = model.metrics
        self._partials: list[Any] = [0.0] * len(model.metrics)
        self._loss = self._weight = 0.0

    def add(self, step: Pass, loss: float) -> None:
        positions = step.prediction.shape[:-1]
        weights = np.broadcast_to(
            1.0 if step.sample_weight is None else step.sample_weight, positions
        )
        weight = float(weights.sum(where=True if step.mask is None else step.mask))
        # A batch of no weight has loss 0, not NaN.
        self._loss += weight * loss if weight else 0.0
        self._weight += weight
        for i, metric in enumerate(self._metrics):
            self._partials[i] = self._partials[i] + metric.partial(
                step.prediction, step.target, mask=step.mask
            )

    def logs(self) -> dict[str, float]:
        logs = {"loss": self._loss / self._weight if self._weight else float("nan")}
        for metric, partial in zip(self._metrics, self._partials, strict=True):
            logs[metric.name] = metric.result(partial)
        return logs


class Model(Container):
    """What `Sequential` and `Seq2Seq` share: training, evaluation, prediction.

    Attributes
    ----------
    optimizer : fastrnn.optimizers.Optimizer
        Of `compile`.
    loss : fastrnn.losses.Loss or callable
        Of `compile`.
    metrics : list of fastrnn.metrics.Metric
        Of `compile`.
    epochs_trained : int
        Epochs that `fit` has finished, over all its calls.
    stop_training : bool
        Set to True by a callback to end a fit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.optimizer: optimizers.Optimizer | None = None
        self.loss: Callable[..., Any] | None = None
        self.metrics: list[metrics.Metric] = []
        self.stop_training = False
        self._progress = Progress()
        self._fit_seed: int | None = None
        # Callbacks of the fit that runs, and states of those of one that a file was saved in.
        self._callbacks: Sequence[Callback] = ()
        self._callback_states: list[tuple[str, dict[str, Any]]] = []

    # What a kind of model has to give.

    def _samples(
        self, x: Any, y: Any = None, lengths: Any = None, sample_weight: Any = None
    ) -> Samples:
        """Read what people hand over."""
        raise NotImplementedError

    def _pass(self, batch: Batch, state: Any = None, *, keep: bool = True) -> Pass:
        """Run a batch forward, with a tape if `keep`."""
        raise NotImplementedError

    def _gradients(self, tape: Any, gradient: FloatArray) -> dict[str, FloatArray]:
        """Return the gradients of the parameters."""
        raise NotImplementedError

    def _output_layer(self) -> Layer | None:
        """Return the layer that makes the predictions, if one does."""
        return None

    # Training.

    @property
    def epochs_trained(self) -> int:
        """Epochs that `fit` has finished, over all its calls."""
        return self._progress.epoch

    def compile(
        self,
        optimizer: str | optimizers.Optimizer = "adam",
        loss: str | Callable[..., Any] = "mse",
        metrics: Iterable[str | Callable[..., Any]] = (),
    ) -> Self:
        """Set what `fit` and `evaluate` use.

        Parameters
        ----------
        optimizer : str or Optimizer, default "adam"
            See `fastrnn.optimizers.get`.
        loss : str or callable, default "mse"
            See `fastrnn.losses.get`. "cross_entropy" and "binary_cross_entropy" take logits: the
            model ends without softmax or sigmoid.
        metrics : sequence of str or callable, default none
            See `fastrnn.metrics.get`.

        Returns
        -------
        Model
            The model.
        """
        if isinstance(metrics, str):
            raise TypeError(f"metrics: expected a list of names or functions, got {metrics!r}")
        new_loss = losses.get(loss)
        self._check_logits(new_loss)
        self.optimizer = optimizers.get(optimizer)
        self.loss = new_loss
        self.metrics = [_metric(metric) for metric in metrics]
        names = ["loss", *(metric.name for metric in self.metrics)]
        if len(set(names)) < len(names):
            raise ValueError(f"metrics: expected different names, got {', '.join(names[1:])}")
        return self

    def _check_logits(self, loss: Any) -> None:
        last = self._output_layer()
        function = getattr(last, "function", getattr(last, "activation", "linear"))
        squashing = {
            losses.CrossEntropy: ("softmax", "log_softmax", "sigmoid"),
            losses.BinaryCrossEntropy: ("softmax", "log_softmax", "sigmoid"),
        }
        if isinstance(last, (Activation, Dense)) and function in squashing.get(type(loss), ()):
            raise ValueError(
                f"loss: expected a model that ends in logits for {type(loss).__name__}, which"
                f" applies the {function} itself, got one that ends in {function}"
            )

    def fit(
        self,
        x: Any,
        y: Any,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation_split: float = 0.0,
        validation_data: Sequence[Any] | None = None,
        lengths: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        class_weight: Any = None,
        callbacks: Iterable[Callback] = (),
        shuffle: bool = True,
        bucketing: bool = True,
        tbptt: int | None = None,
        seed: int | None = None,
        verbose: int = 1,
    ) -> History:
        """Train.

        Parameters
        ----------
        x : array (n, T, F), ids (n, T), (n, F), or list of arrays (T_i, F) or (T_i,)
            Inputs, samples first.
        y : array (n, ...) or list of arrays (T_i, ...)
            Targets: (n,) classes or (n, k) for a model with one output per sequence, (n, T) or
            (n, T, k) for one with an output at every step, lists for lists.
        epochs : int, default 1
            Passes over the data, in addition to those of earlier calls.
        batch_size : int, default 32
            Samples in an update.
        validation_split : float, default 0
            Part of the data, from the end, to validate with.
        validation_data : (x, y) or (x, y, lengths), optional
            What to validate with after every epoch.
        lengths : integers (n,), optional
            Valid steps of each row of an array `x`. A list has its own.
        sample_weight : numbers (n,) or (n, T), optional
            Weights in the loss.
        class_weight : dict of class to number, or array (k,), optional
            Weights of the classes in the training loss; classes that a dict leaves out have 1.
        callbacks : sequence of Callback, optional
            See `fastrnn.callbacks`.
        shuffle : bool, default True
            Whether the order is drawn anew for each epoch.
        bucketing : bool, default True
            Whether shuffling puts sequences of similar length into a batch, which saves padding.
        tbptt : int, optional
            Truncates backpropagation to windows of so many steps, each with an update of its own.
            States are carried from one to the next. The model needs an output at every step.
        seed : int, optional
            Of the order. By default fresh entropy, once for a model.
        verbose : {0, 1}, default 1
            1 shows a progress bar (with tqdm installed) or a line per epoch, on stderr.

        Returns
        -------
        History
            Logs of the epochs of this call: ``loss``, metrics, the same of validation with
            ``val_`` before, ``gradient_norm`` (mean over the updates, before clipping),
            ``learning_rate``, ``sequences_per_second``.

        Notes
        -----
        The order is a function of `seed` and of the number of the epoch, and all that is random in
        layers one of their own seeds and calls. So ``fit(epochs=2)`` twice, with `save` and `load`
        between them or not, is ``fit(epochs=4)`` bit for bit on the same machine with the same
        number of threads. An interrupted fit goes on where it stopped, within its epoch, if the
        next has the same data, `batch_size`, `seed`, `shuffle` and `bucketing`.
        """
        self._check_compiled()
        samples = self._samples(x, y, lengths, sample_weight)
        if len(samples) == 0:
            raise ValueError("x: expected at least 1 sample, got 0")
        epochs = functional.integer("epochs", epochs, 1)
        batch_size = functional.integer("batch_size", batch_size, 1)
        shuffle = functional.boolean("shuffle", shuffle)
        bucketing = functional.boolean("bucketing", bucketing)
        self._check_windows(tbptt, samples)
        samples, validation = self._validation(samples, validation_split, validation_data)
        seed = self._seed(seed)

        order = (seed, len(samples), batch_size, int(shuffle), int(bucketing))
        start = self._progress
        if start.order != order:
            start = Progress(start.epoch, 0, order)
        last = start.epoch + epochs
        history = _callbacks.History()
        everyone = self._everyone(callbacks, history, verbose)
        batches = -(-len(samples) // batch_size)
        plan = _callbacks.Plan(last, batches, start.epoch)

        training = self.training
        self.stop_training = False
        try:
            for callback in everyone:
                callback.on_fit_begin(self, plan)
            while start.epoch < last and not self.stop_training:
                self._progress = start
                generator = np.random.default_rng([seed, start.epoch]) if shuffle else None
                rows = samples.shuffled(batch_size, generator, bucketing)
                logs = self._epoch(samples, rows, tbptt, class_weight, everyone)
                start = Progress(start.epoch + 1, 0, order)
                self._progress = start
                if validation is not None:
                    for name, value in self._evaluate(validation, batch_size).items():
                        logs[f"val_{name}"] = value
                for callback in everyone:
                    callback.on_epoch_end(self, start.epoch - 1, logs)
            for callback in everyone:
                callback.on_fit_end(self, history)
        finally:
            self._callbacks = ()
            self.train(training)
        return history

    def _everyone(
        self, callbacks: Iterable[Callback], history: History, verbose: int
    ) -> list[Callback]:
        """Return all callbacks in the order in which they are called."""
        given = list(callbacks)
        for callback in given:
            if not isinstance(callback, _callbacks.Callback):
                raise TypeError(f"callbacks: expected Callback objects, got {callback!r}")
        # A checkpoint holds the memory of the others, and so comes last.
        given.sort(key=lambda callback: isinstance(callback, _callbacks.ModelCheckpoint))
        for callback, (name, state) in zip(given, self._callback_states, strict=False):
            if type(callback).__name__ == name:
                callback.load_state_dict(state)
        self._callback_states = []
        self._callbacks = given
        bar = [_callbacks.ProgressBar()] if functional.integer("verbose", verbose, 0, 3) else []
        return [*bar, history, *given]

    def _epoch(
        self,
        samples: Samples,
        batches: list[NDArray[np.intp]],
        tbptt: int | None,
        class_weight: Any,
        everyone: Sequence[Callback],
    ) -> dict[str, float]:
        """Train for what is left of an epoch, and return its logs."""
        for callback in everyone:
            callback.on_epoch_begin(self, self._progress.epoch)
        self.train()
        totals = _Totals(self)
        norms: list[float] = []
        sequences, began = 0, time.perf_counter()
        for number in range(self._progress.batch, len(batches)):
            batch = samples.batch(batches[number])
            norms += self._update(batch, tbptt, class_weight, totals)
            sequences += batch.size
            self._progress = self._progress._replace(batch=number + 1)
            logs = {**totals.logs(), "gradient_norm": norms[-1] if norms else 0.0}
            logs["sequences_per_second"] = sequences / (time.perf_counter() - began)
            for callback in everyone:
                callback.on_batch_end(self, number, logs)
            if self.stop_training:
                break
        logs = {**totals.logs(), "gradient_norm": float(np.mean(norms)) if norms else 0.0}
        assert self.optimizer is not None
        logs["learning_rate"] = self.optimizer.rate
        logs["sequences_per_second"] = sequences / max(time.perf_counter() - began, 1e-9)
        return logs

    def _update(
        self, batch: Batch, tbptt: int | None, class_weight: Any, totals: _Totals
    ) -> list[float]:
        """Change the parameters by a batch, and return the norms of the gradients."""
        assert self.optimizer is not None
        norms = []
        for window, state in _windows(batch, tbptt):
            step = self._pass(window, state.pop())
            loss, gradient = self._loss(step, class_weight)
            totals.add(step, loss)
            gradients = self._gradients(step.tape, gradient)
            norms.append(self.optimizer.update(self.parameters, gradients))
            state.append(step.state)
        return norms

    def train_on_batch(
        self,
        x: Any,
        y: Any,
        *,
        lengths: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        class_weight: Any = None,
    ) -> dict[str, float]:
        """Change the parameters by one batch.

        Parameters
        ----------
        x, y, lengths, sample_weight, class_weight
            As in `fit`, of one batch.

        Returns
        -------
        dict of str to float
            ``loss``, metrics and ``gradient_norm``.
        """
        self._check_compiled()
        samples = self._samples(x, y, lengths, sample_weight)
        if len(samples) == 0:
            raise ValueError("x: expected at least 1 sample, got 0")
        training = self.training
        totals = _Totals(self)
        try:
            self.train()
            batch = samples.batch(np.arange(len(samples)))
            norms = self._update(batch, None, class_weight, totals)
        finally:
            self.train(training)
        return {**totals.logs(), "gradient_norm": norms[0]}

    def evaluate(
        self,
        x: Any,
        y: Any,
        *,
        lengths: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        batch_size: int = 256,
    ) -> dict[str, float]:
        """Compute loss and metrics, in evaluation mode.

        Parameters
        ----------
        x, y, lengths, sample_weight
            As in `fit`.
        batch_size : int, default 256
            Samples at a time. The result does not depend on it, but for rounding.

        Returns
        -------
        dict of str to float
            ``loss`` and metrics, over all samples.
        """
        self._check_compiled()
        samples = self._samples(x, y, lengths, sample_weight)
        return self._evaluate(samples, functional.integer("batch_size", batch_size, 1))

    def _evaluate(self, samples: Samples, batch_size: int) -> dict[str, float]:
        totals = _Totals(self)
        for batch in self._in_evaluation(samples, samples.in_order(batch_size)):
            step = self._pass(batch, keep=False)
            totals.add(step, self._loss(step, None)[0])
        return totals.logs()

    def _in_evaluation(self, samples: Samples, batches: list[NDArray[np.intp]]) -> Iterator[Batch]:
        training = self.training
        try:
            self.eval()
            for rows in batches:
                yield samples.batch(rows)
        finally:
            self.train(training)

    # Parts of both.

    def _loss(self, step: Pass, class_weight: Any) -> tuple[float, FloatArray]:
        assert self.loss is not None
        given: dict[str, Any] = {"mask": step.mask, "sample_weight": step.sample_weight}
        if class_weight is not None:
            given["class_weight"] = _class_weights(class_weight, step.prediction.shape[-1])
        value, gradient = self.loss(step.prediction, step.target, **given)
        return value, gradient

    def _check_compiled(self) -> None:
        if self.optimizer is None:
            raise RuntimeError(
                f"{type(self).__name__}: call compile(optimizer, loss, metrics) before training"
                " or evaluating"
            )

    def _check_windows(self, tbptt: int | None, samples: Samples) -> None:
        if tbptt is None:
            return
        functional.integer("tbptt", tbptt, 1)
        if not self.stepwise or not samples.has_steps:
            raise ValueError(
                "tbptt: expected a model of sequences whose output at a step depends on that step"
                " and those before it only; this one looks at a whole sequence at once"
            )

    def _validation(
        self, samples: Samples, split: float, data: Sequence[Any] | None
    ) -> tuple[Samples, Samples | None]:
        split = functional.number("validation_split", split, 0, 1)
        if data is None:
            return samples.split(split) if split else (samples, None)
        if split:
            raise ValueError("validation_split: expected 0 beside validation_data")
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise ValueError(
                f"validation_data: expected (x, y) or (x, y, lengths), got {type(data).__name__}"
                f"{f' of {len(data)}' if isinstance(data, (tuple, list)) else ''}"
            )
        validation = self._samples(*data)
        if len(validation) == 0:
            raise ValueError("validation_data: expected at least 1 sample, got 0")
        return samples, validation

    def _seed(self, seed: int | None) -> int:
        if seed is not None:
            return functional.integer("seed", seed, 0)
        if self._fit_seed is None:
            self._fit_seed = int(np.random.default_rng().integers(2**62))
        return self._fit_seed


def _metric(given: str | Callable[..., Any]) -> metrics.Metric:
    return metrics.get(given)


def _class_weights(given: Any, n: int) -> Any:
    if not isinstance(given, Mapping):
        return given
    # One output answers yes or no.
    weights = np.ones(max(n, 2))
    for key, value in given.items():
        weights[functional.integer("class_weight", key, 0, len(weights))] = functional.number(
            "class_weight", value, 0
        )
    if n > 1:
        return weights
    if weights[0] != 1:
        raise ValueError(
            "class_weight: expected weight 1 for class 0 of a model with one output, where that of"
            f" class 1 is relative to it, got {weights[0]:g}"
        )
    return weights[1:]


def _windows(batch: Batch, k: int | None) -> Iterator[tuple[Batch, list[Any]]]:
    """Cut a batch into windows of k steps, with a list that carries the state between them."""
    state: list[Any] = [None]
    if k is None:
        yield batch, state
        return
    T = len(batch.x)
    for start in range(0, T, k):
        steps = slice(start, min(start + k, T))
        lengths = None
        if batch.lengths is not None:
            lengths = np.clip(batch.lengths - start, 0, steps.stop - start)
        y, weight = batch.y, batch.sample_weight
        yield (
            batch._replace(
                x=batch.x[steps],
                lengths=lengths,
                y=y if y is None or y.ndim < 2 else y[:, steps],
                y_lengths=None,
                sample_weight=weight if weight is None or weight.ndim < 2 else weight[:, steps],
            ),
            state,
        )


def align(
    batch: Batch, prediction: FloatArray, lengths: NDArray[Any] | None, loss: Any
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[Any] | None]:
    """Lay targets and weights out as a prediction, or raise an error that names the culprit.

    Parameters
    ----------
    batch : Batch
        Which has the targets.
    prediction : ndarray (T, B, n) or (B, n)
        Output of the model.
    lengths : integers (B,) or None
        Its valid steps.
    loss : Loss or callable
        Which tells whether targets are classes.

    Returns
    -------
    target, mask, sample_weight
        As in `Pass`.
    """
    y, weight = batch.y, batch.sample_weight
    assert y is not None
    mask = None
    if prediction.ndim == 3:
        T = len(prediction)
        if y.ndim < 2 or y.shape[1] < T:
            raise ValueError(
                f"y: expected {T} steps, (n, {T}) or (n, {T}, k), as the model has an output at"
                f" every step, got (n, {', '.join(map(str, y.shape[1:]))})"
            )
        if batch.y_lengths is not None and np.any(
            batch.y_lengths != (T if lengths is None else lengths)
        ):
            raise ValueError("y: expected sequences as long as those of x, got other lengths")
        # Batches are as long as their longest sequence, the targets of an array are not.
        y = time_major(y)[:T] if lengths is not None else time_major(y)
        weight = weight if weight is None or weight.ndim < 2 else time_major(weight)[:T]
        mask = None if lengths is None else valid_steps(T, lengths)
    elif batch.y_lengths is not None:
        raise ValueError(
            "y: expected an array, as the model has one output per sequence, got sequences of"
            " different lengths"
        )
    is_elementwise = isinstance(loss, losses.Loss) and not isinstance(loss, losses.CrossEntropy)
    if is_elementwise and prediction.shape[-1] == 1 and y.ndim == prediction.ndim - 1:
        y = y[..., np.newaxis]
    return y, mask, weight
