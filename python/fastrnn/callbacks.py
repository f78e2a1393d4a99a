"""What happens beside training: early stopping, checkpoints, logs, a progress bar.

Hooks count epochs and batches from 0. What people read counts from 1: the bar, warnings, names of
checkpoints, CSV files, and `History.epochs`.

A callback that is to continue where another run ended gets its ``load_state_dict`` called before
``fit``; otherwise a fit from epoch 0 makes it forget what it saw in an earlier fit.
"""

from __future__ import annotations

import csv
import importlib
import math
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    Logs = Mapping[str, float]

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "ModelCheckpoint",
    "Plan",
    "ProgressBar",
    "ReduceLROnPlateau",
    "TerminateOnNaN",
]

# Logs that tell of the training and not of the model.
_TRAINING = ("gradient_norm", "learning_rate", "sequences_per_second")


class Plan(NamedTuple):
    """What a fit is about to do.

    Attributes
    ----------
    epochs : int
        Number of the epoch to stop before.
    batches : int
        Batches of each epoch.
    first_epoch : int
        Number of the epoch to start with; not 0 if earlier training goes on.
    """

    epochs: int
    batches: int
    first_epoch: int = 0


class Callback:
    """Base class whose hooks do nothing; override some.

    A model is a ``fastrnn.Sequential``, or whatever else calls the hooks. Setting
    ``model.stop_training = True`` in a hook ends the training.

    Examples
    --------
    >>> class Patient(Callback):
    ...     def on_epoch_end(self, model, epoch, logs):
    ...         model.stop_training = logs["loss"] < 0.1
    """

    def on_fit_begin(self, model: Any, plan: Plan) -> None:
        """Be called once, before the first epoch."""

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        """Be called before an epoch."""

    def on_batch_end(self, model: Any, batch: int, logs: Logs) -> None:
        """Be called after an update, with logs such as ``loss`` and ``gradient_norm``."""

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        """Be called after an epoch, with logs such as ``loss``, ``accuracy`` and ``val_loss``."""

    def on_fit_end(self, model: Any, history: History) -> None:
        """Be called once, after the last epoch."""

    def on_fit_abort(self, model: Any) -> None:
        """Be called where the fit ends by an exception, instead of `on_fit_end`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what training has to be resumed from: numbers and arrays by name."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from the state of a callback with the same options.

        Parameters
        ----------
        state_dict : mapping of str to number or array
            Of `state_dict`, or loaded from a file, which may make arrays of numbers.

        Raises
        ------
        ValueError, TypeError
            If it does not fit; then nothing has changed.
        """
        _check_names(state_dict, [])


def describe(callback: Callback) -> Any:
    """Return what tells a callback from others: its class and numbers and texts it was made of.

    Examples
    --------
    >>> describe(EarlyStopping("loss"))["monitor"]
    'loss'
    """
    arguments = {
        name: value
        for name, value in vars(callback).items()
        if not name.startswith("_") and isinstance(value, (str, bool))
    }
    return {"class": type(callback).__name__, **arguments}


_HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


def _check_names(state_dict: Mapping[str, Any], expected: Sequence[str]) -> None:
    if set(state_dict) != set(expected):
        raise ValueError(
            f"state_dict: expected {', '.join(expected) or 'nothing'}, got"
            f" {', '.join(state_dict) or 'nothing'}"
        )


class _Remembering(Callback):
    """A callback with numbers to remember, the attributes that `_numbers` names."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_model"}

    _numbers: tuple[str, ...] = ()
    _resumed = False
    _model: Any = None  # whose fit it has seen

    def _forget(self) -> None:
        raise NotImplementedError

    def on_fit_begin(self, model: Any, plan: Plan) -> None:
        other = self._model is None or self._model() is not model
        if (plan.first_epoch == 0 or other) and not self._resumed:
            self._forget()
        self._resumed = False
        self._model = weakref.ref(model)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._numbers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        _check_names(state_dict, self._numbers)
        numbers: dict[str, float] = {}
        for name in self._numbers:
            value = np.asarray(state_dict[name])
            given = value[()] if value.ndim == 0 else state_dict[name]
            label = f"state_dict[{name!r}]"
            if isinstance(getattr(self, name), int):
                numbers[name] = functional.integer(label, given, 0)
            else:
                numbers[name] = functional.number(label, given)
        vars(self).update(numbers)
        self._resumed = True


class _Monitoring(_Remembering):
    """A callback that waits for a log to get better than the best one so far."""

    _numbers: tuple[str, ...] = ("best",)

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor: expected the name of a log, got {monitor!r}")
        self.monitor = monitor
        self.mode = functional.choice("mode", mode, ("auto", "min", "max"))
        self.min_delta = functional.number("min_delta", min_delta, 0, sys.float_info.max)
        largest = mode == "max" or (mode == "auto" and monitor.endswith(("accuracy", "r2")))
        self._sign = -1.0 if largest else 1.0
        self._forget()

    def _forget(self) -> None:
        self.best = self._sign * math.inf

    def _improves(self, logs: Logs) -> bool:
        """Note a better value; NaN is never one."""
        if self.monitor not in logs:
            names = ", ".join(logs) or "none, as there are no logs"
            raise ValueError(f"monitor: expected one of {names}, got {self.monitor!r}")
        value = float(logs[self.monitor])
        if not self._sign * value < self._sign * self.best - self.min_delta:
            return False
        self.best = value
        return True


class EarlyStopping(_Monitoring):
    """Stop when a log has not improved for some epochs.

    Parameters
    ----------
    monitor : str, default "val_loss"
        Name of the log.
    patience : int, default 5
        Epochs in a row without improvement after which training stops.
    min_delta : float, default 0
        By more than this a value has to be better than the best one.
    mode : {"auto", "min", "max"}, default "auto"
        Whether small or large values are good. Of logs that end with ``accuracy`` or ``r2``
        "auto" takes large ones to be, of all others small ones.
    restore_best : bool, default True
        Whether the fit ends with the weights of the best epoch, also if nothing stopped it early.

    Attributes
    ----------
    best : float
        Best value so far; infinite before the first one.
    best_epoch : int
        Its epoch, counted from 1; 0 before.
    wait : int
        Epochs since.

    References
    ----------
    .. [1] L. Prechelt. Early stopping, but when? In: Neural networks: tricks of the trade.
           Springer, 1998.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(stop_training=False)
    >>> stopping = EarlyStopping(patience=2, restore_best=False)
    >>> for epoch, loss in enumerate([0.5, 0.3, 0.4, 0.35]):
    ...     stopping.on_epoch_end(model, epoch, {"val_loss": loss})
    >>> model.stop_training, stopping.best, stopping.best_epoch
    (True, 0.3, 2)
    """

    _numbers = ("best", "best_epoch", "wait")
    _prefix = "weights."  # of weights in the state

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = functional.integer("patience", patience, 1)
        self.restore_best = functional.boolean("restore_best", restore_best)

    def on_fit_begin(self, model: Any, plan: Plan) -> None:
        if not self._resumed:
            self.wait = 0  # a new fit is a new chance
        super().on_fit_begin(model, plan)

    def _forget(self) -> None:
        super()._forget()
        self.best_epoch = self.wait = 0
        self._weights: dict[str, Any] = {}

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        if self._improves(logs):
            self.best_epoch, self.wait = epoch + 1, 0
            if self.restore_best:
                # Copies, whatever the model gives.
                self._weights = {key: np.array(value) for key, value in model.state_dict().items()}
            return
        self.wait += 1
        if self.wait >= self.patience:
            model.stop_training = True

    def on_fit_end(self, model: Any, history: History) -> None:
        # Also after a best last epoch, as updates may have followed it.
        if self.restore_best and self._weights:
            model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        weights = {self._prefix + name: value.copy() for name, value in self._weights.items()}
        return super().state_dict() | weights

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        prefix = self._prefix
        weights = {
            name[len(prefix) :]: np.array(value)
            for name, value in state_dict.items()
            if name.startswith(prefix)
        }
        super().load_state_dict(
            {name: value for name, value in state_dict.items() if not name.startswith(prefix)}
        )
        self._weights = weights


class ModelCheckpoint(_Monitoring):
    """Save the model while it trains.

    Parameters
    ----------
    path : path
        Where to; may hold fields of `str.format`: ``{epoch}``, ``{batch}`` (both counted from 1)
        and the logs, as in ``"model-{epoch:03d}-{val_loss:.3f}.safetensors"``.
    monitor : str, default "val_loss"
        Log that `save_best_only` looks at.
    save_best_only : bool, default False
        Whether to save only after epochs whose log is the best so far, not after each one.
    mode : {"auto", "min", "max"}, default "auto"
        As in `EarlyStopping`.
    every : int, optional
        Save after this many batches, too, counted over epochs.

    Attributes
    ----------
    best : float
        Best value so far; infinite before the first one.
    batches : int
        Batches so far.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> checkpoint = ModelCheckpoint("model-{epoch}.npz", save_best_only=True)
    >>> for epoch, loss in enumerate([0.5, 0.6, 0.4]):
    ...     checkpoint.on_epoch_end(SimpleNamespace(save=print), epoch, {"val_loss": loss})
    model-1.npz
    model-3.npz
    """

    _numbers = ("best", "batches")

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str = "val_loss",
        save_best_only: bool = False,
        mode: str = "auto",
        every: int | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        self.path = os.fspath(path)
        self.save_best_only = functional.boolean("save_best_only", save_best_only)
        self.every = None if every is None else functional.integer("every", every, 1)
        if self.save_best_only and self.every is not None:
            raise ValueError(f"every: expected None with save_best_only=True, got {self.every}")
        self._epoch = self._batch = 0

    def _forget(self) -> None:
        super()._forget()
        self.batches = 0

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        self._epoch = epoch

    def on_batch_end(self, model: Any, batch: int, logs: Logs) -> None:
        self._batch = batch + 1
        self.batches += 1
        if self.every is not None and self.batches % self.every == 0:
            self._save(model, logs)

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        self._epoch = epoch
        if not self.save_best_only or self._improves(logs):
            self._save(model, logs)

    def _save(self, model: Any, logs: Logs) -> None:
        fields = {**logs, "epoch": self._epoch + 1, "batch": self._batch}
        try:
            path = self.path.format(**fields)
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError(
                f"path: expected fields among {', '.join(fields)}, got {self.path!r}: {error}"
            ) from None
        model.save(path)


class ReduceLROnPlateau(_Monitoring):
    """Lower the learning rate when a log has not improved for some epochs.

    Parameters
    ----------
    monitor : str, default "val_loss"
        Name of the log.
    factor : float, default 0.5
        What the rate is multiplied by, in (0, 1).
    patience : int, default 3
        Epochs in a row without improvement after which the rate changes.
    min_delta : float, default 1e-4
        By more than this a value has to be better than the best one.
    cooldown : int, default 0
        Epochs after a change that do not count as lacking improvement.
    min_rate : float, default 0
        The rate is not made smaller.
    mode : {"auto", "min", "max"}, default "auto"
        As in `EarlyStopping`.

    Attributes
    ----------
    best : float
        Best value so far; infinite before the first one.
    wait, rest : int
        Epochs without improvement, and epochs of `cooldown` that are left.

    Notes
    -----
    ``torch.optim.lr_scheduler.ReduceLROnPlateau`` with ``threshold_mode="abs"`` and a patience that
    is smaller by 1. The optimizer's learning rate must be a number: a schedule would not notice.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(optimizer=SimpleNamespace(learning_rate=0.1))
    >>> plateau = ReduceLROnPlateau(patience=2)
    >>> for epoch in range(3):
    ...     plateau.on_epoch_end(model, epoch, {"val_loss": 1.0})
    >>> model.optimizer.learning_rate
    0.05
    """

    _numbers = ("best", "wait", "rest")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.5,
        patience: int = 3,
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_rate: float = 0.0,
        mode: str = "auto",
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.factor = functional.number("factor", factor)
        if not 0 < self.factor < 1:
            raise ValueError(f"factor: expected a number in (0, 1), got {factor}")
        self.patience = functional.integer("patience", patience, 1)
        self.cooldown = functional.integer("cooldown", cooldown, 0)
        self.min_rate = functional.number("min_rate", min_rate, 0, sys.float_info.max)

    def _forget(self) -> None:
        super()._forget()
        self.wait = self.rest = 0

    def on_fit_begin(self, model: Any, plan: Plan) -> None:
        super().on_fit_begin(model, plan)
        self._rate(model)

    def _rate(self, model: Any) -> float:
        rate = model.optimizer.learning_rate
        if callable(rate):
            raise ValueError(f"model.optimizer.learning_rate: expected a number, got {rate!r}")
        return float(rate)

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        rate = self._rate(model)
        self.wait = 0 if self._improves(logs) else self.wait + 1
        if self.rest:
            self.rest -= 1
            self.wait = 0
        if self.wait >= self.patience:
            self.wait, self.rest = 0, self.cooldown
            # Not above the rate, which may have been smaller from the start.
            model.optimizer.learning_rate = min(rate, max(rate * self.factor, self.min_rate))


class TerminateOnNaN(Callback):
    """Stop after an update whose loss or gradient norm is not finite, with a RuntimeWarning.

    The weights may hold NaN by then: `EarlyStopping` goes back to the best ones, a smaller learning
    rate or clipped gradients prevent it.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(stop_training=False)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     TerminateOnNaN().on_batch_end(model, 6, {"loss": math.inf})
    >>> print(caught[0].message, model.stop_training)
    training stopped at epoch 1, batch 7: loss is inf True
    """

    _epoch = 0

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        self._epoch = epoch

    def on_batch_end(self, model: Any, batch: int, logs: Logs) -> None:
        watched = {name: logs[name] for name in ("loss", "gradient_norm") if name in logs}
        if not watched:
            raise ValueError(f"logs: expected loss or gradient_norm, got {', '.join(logs)}")
        for name, value in watched.items():
            if not math.isfinite(value):
                model.stop_training = True
                place = f"epoch {self._epoch + 1}, batch {batch + 1}"
                message = f"training stopped at {place}: {name} is {value}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
                return


class CSVLogger(Callback):
    """Write the logs of each epoch to a CSV file, one line each, as soon as they are there.

    Parameters
    ----------
    path : path
        Where to. A file there is replaced when the fit begins, unless `append`.
    append : bool, default False
        Whether to add lines to a file that is there, which needs the same columns.

    Notes
    -----
    The columns are ``epoch``, from 1 on, and the logs of the first epoch. A log that later is
    missing leaves its place empty.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "log.csv"
    >>> logger = CSVLogger(path)
    >>> logger.on_fit_begin(None, Plan(epochs=1, batches=10))
    >>> logger.on_epoch_end(None, 0, {"loss": 0.25, "val_loss": 0.5})
    >>> path.read_text().split()
    ['epoch,loss,val_loss', '1,0.25,0.5']
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], append: bool = False) -> None:
        self.path = Path(path)
        self.append = functional.boolean("append", append)
        self._columns: list[str] = []

    def on_fit_begin(self, model: Any, plan: Plan) -> None:
        # Now and not after an epoch it shows whether the file can be written.
        with open(self.path, "a+" if self.append else "w+", newline="", encoding="utf-8") as file:
            file.seek(0)
            self._columns = next(csv.reader(file), [])

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        row = {"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}}
        names = self._columns or list(row)
        unknown = [name for name in row if name not in names]
        if unknown:
            raise ValueError(
                f"{self.path}: expected logs among the columns {', '.join(names)}, got"
                f" {', '.join(unknown)}"
            )
        # Opened each time, so that every line is in the file whatever comes next.
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            if not self._columns:
                writer.writeheader()
            writer.writerow(row)
        self._columns = names


class LambdaCallback(Callback):
    """Call functions in place of hooks.

    Parameters
    ----------
    **hooks : callable
        By the hook's name, with its arguments except self.

    Examples
    --------
    >>> callback = LambdaCallback(on_epoch_end=lambda model, epoch, logs: print(epoch, logs))
    >>> callback.on_epoch_end(None, 3, {"loss": 0.5})
    3 {'loss': 0.5}
    """

    def __init__(self, **hooks: Callable[..., None]) -> None:
        for name, function in hooks.items():
            functional.choice("hooks", name, _HOOKS)
            if not callable(function):
                raise TypeError(f"{name}: expected a function, got {function!r}")
            setattr(self, name, function)


def _texts(logs: Logs) -> str:
    """Write logs in a line."""
    parts = [
        f"{name} {value:.4g}"
        for name, value in logs.items()
        if name not in ("learning_rate", "sequences_per_second")
    ]
    if "sequences_per_second" in logs:
        parts.append(f"{logs['sequences_per_second']:.4g} sequences/s")
    return ", ".join(parts)


class ProgressBar(Callback):
    """Show the progress of each epoch and its logs on stderr.

    With tqdm installed it is a bar that moves with the batches, without it a line per epoch.

    Examples
    --------
    >>> import contextlib
    >>> bar = ProgressBar()
    >>> with contextlib.redirect_stderr(sys.stdout):
    ...     bar.on_epoch_end(None, 0, {"loss": 0.25, "sequences_per_second": 1000.0})
    epoch 1: loss 0.25, 1000 sequences/s
    """

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._make_bar: Callable[..., Any] | None = None
        self._bar: Any = None

    def on_fit_begin(self, model: Any, plan: Plan) -> None:
        self._plan = plan
        try:
            self._make_bar = importlib.import_module("tqdm").tqdm
        except ImportError:
            self._make_bar = None

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch + 1}" + (f"/{self._plan.epochs}" if self._plan else "")

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        self._close()  # that of an epoch which was interrupted
        if self._make_bar and self._plan:
            self._bar = self._make_bar(
                total=self._plan.batches, desc=self._title(epoch), unit="batch", file=sys.stderr
            )

    def on_batch_end(self, model: Any, batch: int, logs: Logs) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(_texts(logs), refresh=False)
            # Not by 1: an epoch may go on in its middle.
            self._bar.update(batch + 1 - self._bar.n)

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        if self._bar is None:
            print(f"{self._title(epoch)}: {_texts(logs)}", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(_texts(logs))
            self._close()

    def on_fit_end(self, model: Any, history: History) -> None:
        self._close()

    def on_fit_abort(self, model: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class History(_Remembering, Mapping[str, list[float]]):
    """The logs of all epochs: ``history["val_loss"]`` is a list with a number for each.

    Attributes
    ----------
    epochs : list of int
        Numbers of the epochs, from 1 on.
    logs : dict of str to list of float
        The lists by name. A log that an epoch lacks is NaN there.

    Examples
    --------
    >>> history = History()
    >>> history.on_epoch_end(None, 0, {"loss": 0.5})
    >>> history.on_epoch_end(None, 1, {"loss": 0.25})
    >>> history["loss"], history.epochs
    ([0.5, 0.25], [1, 2])
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.epochs: list[int] = []
        self.logs: dict[str, list[float]] = {}

    def __getitem__(self, name: str) -> list[float]:
        if name not in self.logs:
            raise KeyError(f"{name!r}, there are {', '.join(self.logs) or 'no logs'}")
        return self.logs[name]

    def __contains__(self, name: object) -> bool:
        return name in self.logs

    def __iter__(self) -> Iterator[str]:
        return iter(self.logs)

    def __len__(self) -> int:
        return len(self.logs)

    def __repr__(self) -> str:
        return f"<History of {len(self.epochs)} epochs: {', '.join(self.logs) or 'no logs'}>"

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        for name in logs:
            self.logs.setdefault(name, [math.nan] * len(self.epochs))
        for name, values in self.logs.items():
            values.append(float(logs.get(name, math.nan)))
        self.epochs.append(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        state = {f"logs.{name}": np.array(values, float) for name, values in self.logs.items()}
        return {"epochs": np.array(self.epochs, np.int64), **state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        names = [name for name in state_dict if name.startswith("logs.")]
        _check_names(state_dict, ["epochs", *names])
        epochs = np.asarray(state_dict["epochs"])
        logs = {name[len("logs.") :]: np.asarray(state_dict[name], float) for name in names}
        for name, values in logs.items():
            if values.shape != (len(epochs),):
                raise ValueError(
                    f"state_dict['logs.{name}']: expected {(len(epochs),)}, got {values.shape}"
                )
        self.epochs = [int(epoch) for epoch in epochs]
        self.logs = {name: values.tolist() for name, values in logs.items()}
        self._resumed = True

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        ax: Any = None,
        *,
        names: Sequence[str] | None = None,
    ) -> Any:
        """Draw losses and metrics over epochs, those of training and validation together.

        Parameters
        ----------
        path : path, optional
            Where to save the picture, in the format that the name ends in.
        ax : matplotlib Axes or sequence of them, optional
            Where to draw, one for each name; without it a new figure is made. For a window, pass
            some of ``matplotlib.pyplot``.
        names : sequence of str, optional
            Logs to draw, without ``val_``; all by default except gradient norm, learning rate and
            speed.

        Returns
        -------
        matplotlib.figure.Figure
            The figure.

        Examples
        --------
        >>> history = History()
        >>> for epoch in range(3):
        ...     history.on_epoch_end(None, epoch, {"loss": 1 / (epoch + 1), "val_loss": 1.0})
        >>> figure = history.plot()  # doctest: +SKIP
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError:
            raise ImportError("History.plot needs matplotlib: pip install matplotlib") from None
        quantities = self._quantities(names)
        if ax is None:
            # Without pyplot: no window system is touched and no global state is left behind.
            figure = Figure(figsize=(4.2 * len(quantities), 3.2), layout="constrained")
            ax = figure.subplots(1, len(quantities))
        axes = np.ravel(np.asarray(ax, dtype=object))
        if len(axes) != len(quantities):
            raise ValueError(
                f"ax: expected {len(quantities)} Axes for {', '.join(quantities)}, got {len(axes)}"
            )
        for panel, quantity in zip(axes, quantities, strict=True):
            for name, label in ((quantity, "train"), (f"val_{quantity}", "validation")):
                if name in self.logs:
                    # A dot each, or a single epoch would not be seen.
                    panel.plot(self.epochs, self.logs[name], ".-", label=label)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.set_xlabel("epoch")
            panel.set_ylabel(quantity)
            panel.legend()
        figure = axes[0].figure
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _quantities(self, names: Sequence[str] | None) -> list[str]:
        found = list(dict.fromkeys(name.removeprefix("val_") for name in self.logs))
        if names is None:
            wanted = [name for name in found if name not in _TRAINING]
        elif isinstance(names, str):
            raise TypeError(f"names: expected a sequence of names, got {names!r}")
        else:
            wanted = list(names)
        unknown = [name for name in wanted if name not in found]
        if unknown or not wanted:
            raise ValueError(
                f"names: expected some of {', '.join(found) or 'no logs'}, got"
                f" {', '.join(unknown) or 'none'}"
            )
        return wanted
