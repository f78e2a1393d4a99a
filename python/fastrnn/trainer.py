"""Training, evaluation and prediction of a model."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import callbacks as _callbacks
from fastrnn import functional, losses, optimizers, saving
from fastrnn import metrics as _metrics
from fastrnn.batches import windows
from fastrnn.containers import Container, in_mode, walk

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from fastrnn.batches import Batch, Samples
    from fastrnn.callbacks import Callback, History
    from fastrnn.functional import FloatArray
    from fastrnn.layer import Layer

__all__ = ["Model", "Pass", "Progress"]


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
        Of that epoch: seed, samples, batch size, shuffle, bucketing, and a fingerprint of the data.
        It goes on where it stopped only in the same order.
    """

    epoch: int = 0
    batch: int = 0
    order: tuple[int, ...] = ()


class _Totals:
    """Loss, metrics and norms of gradients of the batches so far."""

    def __init__(self, metrics: Sequence[_metrics.Metric]) -> None:
        self._metrics = metrics
        self._partials: list[Any] = [0.0] * len(metrics)
        # Sums: of weighted losses, of weights, of norms; and the number of updates.
        self._loss = self._weight = self._norm = self._updates = 0.0
        self._any = False

    def add(self, step: Pass, loss: float, weight: float) -> None:
        # A batch of no weight has loss 0, not NaN.
        self._loss += weight * loss if weight else 0.0
        self._any = True
        self._weight += weight
        for i, metric in enumerate(self._metrics):
            self._partials[i] = self._partials[i] + metric.partial(
                step.prediction, step.target, mask=step.mask
            )

    def add_update(self, norm: float) -> None:
        self._norm += norm
        self._updates += 1

    def logs(self) -> dict[str, float]:
        empty = 0.0 if self._any else float("nan")
        logs = {"loss": self._loss / self._weight if self._weight else empty}
        for metric, partial in zip(self._metrics, self._partials, strict=True):
            logs[metric.name] = metric.result(partial) if np.ndim(partial) else float("nan")
        return logs

    def mean_norm(self) -> float:
        return self._norm / self._updates if self._updates else 0.0

    def state_dict(self) -> dict[str, Any]:
        sums = np.array([self._loss, self._weight, self._norm, self._updates])
        partials = {f"partial{i}": np.asarray(p) for i, p in enumerate(self._partials)}
        return {"sums": sums, **partials}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._loss, self._weight, self._norm, self._updates = np.asarray(
            state_dict["sums"]
        ).tolist()
        self._partials = [state_dict[f"partial{i}"] for i in range(len(self._metrics))]
        self._any = True


class Model(Container):
    """What models share, `Sequential` and others: training, evaluation, prediction.

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
        self.metrics: list[_metrics.Metric] = []
        self.stop_training = False
        self._progress = Progress()
        self._totals = _Totals([])  # of the epoch that progress is in
        self._fit_seed: int | None = None
        # Callbacks of the fit that runs, and states of those of one that a file was saved in.
        self._callbacks: Sequence[Callback] = ()
        self._callback_states: list[tuple[Any, dict[str, Any]]] = []
        # Modes are set for a batch or a call: one thread at a time.
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"]  # made anew
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

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
        metrics: Iterable[str | Callable[..., Any]] | None = None,
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
        self.metrics = [_metrics.get(metric) for metric in metrics or ()]
        names = ["loss", *(metric.name for metric in self.metrics)]
        if len(set(names)) < len(names):
            raise ValueError(f"metrics: expected different names, got {', '.join(names[1:])}")
        self._progress = self._progress._replace(batch=0)
        return self

    def _check_logits(self, loss: Any) -> None:
        last = self._output_layer()
        function = getattr(last, "function", getattr(last, "activation", "linear"))
        squashing = {
            losses.CrossEntropy: ("softmax", ("softmax", "log_softmax", "sigmoid")),
            losses.BinaryCrossEntropy: ("sigmoid", ("softmax", "log_softmax", "sigmoid")),
        }
        for kind, (own, refused) in squashing.items():
            if isinstance(loss, kind) and function in refused:
                raise ValueError(
                    f"loss: expected a model that ends in logits for {type(loss).__name__}, which"
                    f" applies the {own} itself, got one that ends in {function}"
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
        x : array (n, T, F), ids (n, T), (n, F), (n, C, H, W), or list of (T_i, F) or (T_i,)
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
        validation_data : (x, y), (x, y, lengths) or (x, y, lengths, sample_weight), optional
            What to validate with after every epoch; lengths can be None.
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
            Of the order. By default that of the fit before, and of the first fit fresh entropy.
        verbose : {0, 1}, default 1
            1 shows a progress bar (with tqdm installed) or a line per epoch, on stderr.

        Returns
        -------
        History
            Logs of the epochs of this call: ``loss``, metrics, the same of validation with
            ``val_`` before, ``gradient_norm`` (mean over the updates, before clipping),
            ``learning_rate``, ``sequences_per_second``.

        Raises
        ------
        ValueError, TypeError
            If an argument does not fit; data are looked at batch by batch.
        RuntimeError
            If the model is not compiled.

        Notes
        -----
        Layers whose ``trainable`` is False stay as they are. The order is a function of `seed` and
        of the number of the epoch, and all that is random in layers one of their own seeds and
        calls. So ``fit(epochs=2)`` twice, with `save` and `load` between them or not, is
        ``fit(epochs=4)`` bit for bit on the same machine with the same number of threads. An
        interrupted fit goes on where it stopped, within its epoch, if the next has the same data,
        `batch_size`, `seed`, `shuffle` and `bucketing`, and `compile` was not called in between;
        with `tbptt` at the first window of the batch. A batch whose weights are all 0 changes
        nothing.
        """
        samples = self._labelled(x, y, lengths, sample_weight, least=1)
        epochs = functional.integer("epochs", epochs, 1)
        batch_size = functional.integer("batch_size", batch_size, 1)
        shuffle = functional.boolean("shuffle", shuffle)
        bucketing = functional.boolean("bucketing", bucketing)
        self._check_windows(tbptt, samples)
        samples, validation = self._validation(samples, validation_split, validation_data)
        seed = self._seed(seed)

        verbose = int(verbose) if isinstance(verbose, bool) else verbose
        verbose = functional.integer("verbose", verbose, 0, 2)
        flags = (len(samples), batch_size, int(shuffle), int(bucketing))
        order = (seed, *flags, samples.fingerprint())
        if self._progress.order != order:
            self._progress = Progress(self._progress.epoch, 0, order)
            self._callback_states = []  # of other data
        first, last = self._progress.epoch, self._progress.epoch + epochs
        history = _callbacks.History()
        everyone = self._everyone(callbacks, history, verbose)
        plan = _callbacks.Plan(last, -(-len(samples) // batch_size), first)

        self.stop_training = False
        try:
            with in_mode(self, training=True):
                for callback in everyone:
                    callback.on_fit_begin(self, plan)
                while self._progress.epoch < last and not self.stop_training:
                    epoch = self._progress.epoch
                    generator = np.random.default_rng([seed, epoch]) if shuffle else None
                    rows = samples.shuffled(batch_size, generator, bucketing)
                    logs = self._epoch(samples, rows, tbptt, class_weight, everyone)
                    if validation is not None:
                        for name, value in self._evaluate(validation, batch_size).items():
                            logs[f"val_{name}"] = value
                    for callback in everyone:
                        callback.on_epoch_end(self, epoch, logs)
                for callback in everyone:
                    callback.on_fit_end(self, history)
        except BaseException:
            for callback in everyone:
                callback.on_fit_abort(self)
            raise
        finally:
            self._callbacks = ()
        return history

    def _everyone(
        self, callbacks: Iterable[Callback], history: History, verbose: int
    ) -> list[Callback]:
        """Return all callbacks in the order in which they are called."""
        if isinstance(callbacks, _callbacks.Callback):
            raise TypeError(f"callbacks: expected a list of them, got {type(callbacks).__name__}")
        given = list(callbacks)
        for callback in given:
            if not isinstance(callback, _callbacks.Callback):
                raise TypeError(f"callbacks: expected Callback objects, got {callback!r}")
        # A checkpoint holds the memory of the others, and so comes last.
        given.sort(key=lambda callback: isinstance(callback, _callbacks.ModelCheckpoint))
        for callback, (description, state) in zip(given, self._callback_states, strict=False):
            if _callbacks.describe(callback) == description:
                callback.load_state_dict(state)
        self._callback_states = []
        self._callbacks = given
        bar = [_callbacks.ProgressBar()] if verbose else []
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
        assert self.optimizer is not None
        epoch, start, _ = self._progress
        if start == 0:
            self._totals = _Totals(self.metrics)
        for callback in everyone:
            callback.on_epoch_begin(self, epoch)
        sequences, began = 0, time.perf_counter()
        for number in range(start, len(batches)):
            batch = samples.batch(batches[number])
            norm = self._update(batch, tbptt, class_weight, self._totals)
            sequences += batch.size
            self._progress = self._progress._replace(batch=number + 1)
            logs = {**self._totals.logs(), "gradient_norm": norm}
            logs["sequences_per_second"] = sequences / (time.perf_counter() - began)
            for callback in everyone:
                callback.on_batch_end(self, number, logs)
            if self.stop_training:
                break
        logs = {**self._totals.logs(), "gradient_norm": self._totals.mean_norm()}
        logs["learning_rate"] = self.optimizer.rate
        logs["sequences_per_second"] = sequences / max(time.perf_counter() - began, 1e-9)
        if self._progress.batch == len(batches):
            self._progress = self._progress._replace(epoch=epoch + 1, batch=0)
        return logs

    def _update(self, batch: Batch, tbptt: int | None, class_weight: Any, totals: _Totals) -> float:
        """Change the parameters by a batch, and return the norm of the last gradients."""
        assert self.optimizer is not None
        norm = 0.0
        with self._lock:
            for window, state in windows(batch, tbptt):
                with _undone_if_unfinished(self):
                    step = self._pass(window, state.pop())
                    loss, gradient = self._loss(step, class_weight)
                    weight = self._weight(step, class_weight)
                    gradients = self._gradients(step.tape, gradient)
                    if weight:
                        norm = self.optimizer.update(self._trained(), gradients)
                totals.add(step, loss, weight)
                state.append(step.state)
                if weight:
                    totals.add_update(norm)
        return norm

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
        samples = self._labelled(x, y, lengths, sample_weight, least=1)
        totals = _Totals(self.metrics)
        with in_mode(self, training=True):
            batch = samples.batch(np.arange(len(samples)))
            norm = self._update(batch, None, class_weight, totals)
        return {**totals.logs(), "gradient_norm": norm}

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
        samples = self._labelled(x, y, lengths, sample_weight)
        return self._evaluate(samples, functional.integer("batch_size", batch_size, 1))

    def _evaluate(self, samples: Samples, batch_size: int) -> dict[str, float]:
        totals = _Totals(self.metrics)
        for batch in self._in_evaluation(samples, samples.in_order(batch_size)):
            step = self._pass(batch, keep=False)
            totals.add(step, self._loss(step, None)[0], self._weight(step, None))
        return totals.logs()

    def _in_evaluation(self, samples: Samples, batches: list[NDArray[np.intp]]) -> Iterator[Batch]:
        with self._lock, in_mode(self, training=False):
            for rows in batches:
                yield samples.batch(rows)

    # Files.

    def save(self, path: str | os.PathLike[str], *, include_training: bool = True) -> None:
        """Save the model, and what its training goes on from.

        Parameters
        ----------
        path : path
            Ends in ``.safetensors`` or ``.npz``. No pickle is in either.
        include_training : bool, default True
            Whether optimizer, loss, metrics, random state and progress are saved, too.

        Raises
        ------
        TypeError
            If a loss, metric or schedule is a function, which a file cannot hold.

        Examples
        --------
        >>> import fastrnn, tempfile, pathlib
        >>> model = fastrnn.Sequential([fastrnn.Dense(3, 2, seed=0)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(pathlib.Path(folder, "model.safetensors"))
        ...     again = fastrnn.Sequential.load(pathlib.Path(folder, "model.safetensors"))
        >>> bool((again.parameters["0.weight"] == model.parameters["0.weight"]).all())
        True
        """
        saving.save(self, path, functional.boolean("include_training", include_training))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        custom: Mapping[str, type] | None = None,
        device: str | None = None,
    ) -> Self:
        """Load a model that `save` wrote.

        Parameters
        ----------
        path : path
            The file.
        custom : mapping of str to type, optional
            Classes of your own that the model has, by name.
        device : str, optional
            ``"cpu"`` or ``"cuda"``, for all layers that have a device, whatever they were saved
            with, such as to load on a machine without a GPU; without `allow_tf32` on the CPU.

        Returns
        -------
        Model
            A new model, compiled if the saved one was. A fit continues as if it had never
            stopped; callbacks of the same classes in the same order get their memory back, where
            the file was saved in a fit.
        """
        return saving.load(cls, path, custom or {}, device)

    # Parts of both.

    def _loss(self, step: Pass, class_weight: Any) -> tuple[float, FloatArray]:
        assert self.loss is not None
        options: dict[str, Any] = {"mask": step.mask, "sample_weight": step.sample_weight}
        if class_weight is not None:
            options["class_weight"] = _class_weights(class_weight, step.prediction.shape[-1])
        given = {name: value for name, value in options.items() if value is not None}
        try:
            value, gradient = self.loss(step.prediction, step.target, **given)
        except (TypeError, ValueError) as error:
            if not str(error).startswith("target:"):
                raise
            raise type(error)(f"y{str(error).removeprefix('target')}") from error
        return value, gradient

    def _weight(self, step: Pass, class_weight: Any) -> float:
        """Return the weight of a pass: what its loss is the mean over."""
        positions = step.prediction.shape[:-1]
        weights = np.ones(positions)
        if step.sample_weight is not None:
            weights *= step.sample_weight
        # Of classes, and not of probabilities.
        by_class = isinstance(self.loss, losses.CrossEntropy) and step.target.ndim == len(positions)
        if class_weight is not None and by_class:
            # What is masked may be no class.
            classes = step.target if step.mask is None else np.where(step.mask, step.target, 0)
            weights *= np.asarray(_class_weights(class_weight, step.prediction.shape[-1]))[classes]
        return float(weights.sum(where=True if step.mask is None else step.mask))

    def _labelled(
        self, x: Any, y: Any, lengths: Any = None, sample_weight: Any = None, *, least: int = 0
    ) -> Samples:
        """Read data with targets, for a model that is compiled."""
        self._check_compiled()
        if y is None:
            raise TypeError("y: expected targets, got None")
        samples = self._samples(x, y, lengths, sample_weight)
        if len(samples) < least:
            raise ValueError(f"x: expected at least {least} sample, got {len(samples)}")
        return samples

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
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3, 4):
            raise ValueError(
                "validation_data: expected (x, y), (x, y, lengths) or (x, y, lengths,"
                f" sample_weight), got {type(data).__name__}"
                f"{f' of {len(data)}' if isinstance(data, (tuple, list)) else ''}"
            )
        return samples, self._labelled(*data, least=1)

    def _seed(self, seed: int | None) -> int:
        if seed is not None:
            self._fit_seed = functional.integer("seed", seed, 0)
        elif self._fit_seed is None:
            self._fit_seed = int(np.random.default_rng().integers(2**62))
        return self._fit_seed


@contextlib.contextmanager
def _undone_if_unfinished(model: Model) -> Iterator[None]:
    """Put back masks and running means where a batch ends by an exception: it will come again."""
    seeds = [(layer, layer._mask_seed) for _, layer in walk(model)]
    buffers = {name: array.copy() for name, array in model.buffers.items()}
    try:
        yield
    except BaseException:
        for layer, seed in seeds:
            if layer._mask_seed != seed:
                layer._mask_seed = seed
        for name, array in model.buffers.items():
            array[...] = buffers[name]
        raise


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
