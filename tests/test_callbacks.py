"""Callbacks on a model that does as it is told."""

from __future__ import annotations

import csv
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastrnn import callbacks
from fastrnn.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    History,
    LambdaCallback,
    ModelCheckpoint,
    Plan,
    ProgressBar,
    ReduceLROnPlateau,
    TerminateOnNaN,
)

LOSSES = [1.0, 0.8, 0.9, 0.85, 0.7, 0.75, 0.71, 0.72]


class Optimizer:
    learning_rate: Any = 0.1


class Model:
    """Its weight is the number of the epoch that it trains."""

    def __init__(self) -> None:
        self.stop_training = False
        self.optimizer = Optimizer()
        self.weight = np.zeros(1)
        self.saved: list[str] = []
        self.rates: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}  # live, as in the worst case

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weight[...] = state_dict["weight"]

    def save(self, path: str) -> None:
        self.saved.append(path)

    def fit(
        self, hooks: list[Callback], losses: list[Any], first_epoch: int = 0, batches: int = 2
    ) -> History:
        """Log `losses`, numbers or dicts, one for each epoch from `first_epoch` on."""
        self.stop_training, history = False, History()
        hooks = [history, *hooks]
        for hook in hooks:
            hook.on_fit_begin(self, Plan(first_epoch + len(losses), batches, first_epoch))
        for epoch, loss in enumerate(losses, first_epoch):
            logs = loss if isinstance(loss, dict) else {"loss": 2 * loss, "val_loss": loss}
            for hook in hooks:
                hook.on_epoch_begin(self, epoch)
            for batch in range(batches):
                self.weight[...] = epoch
                for hook in hooks:
                    hook.on_batch_end(self, batch, {"loss": 0.5, "gradient_norm": 2.0})
            self.rates.append(self.optimizer.learning_rate)
            for hook in hooks:
                hook.on_epoch_end(self, epoch, logs)
            if self.stop_training:
                break
        for hook in hooks:
            hook.on_fit_end(self, history)
        return history


@pytest.fixture
def model() -> Model:
    return Model()


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """What is left of a state that a file has kept."""
    return {
        name: value if isinstance(value, np.ndarray) else json.loads(json.dumps(value))
        for name, value in state.items()
    }


def through_npz(state: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in state.items()}


# --- EarlyStopping


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 8), (9, 8)])
def test_early_stopping_waits(patience: int, epochs: int, model: Model) -> None:
    stopping = EarlyStopping(patience=patience)
    history = model.fit([stopping], LOSSES)
    assert len(history.epochs) == epochs
    best = int(np.argmin(LOSSES[:epochs]))
    assert (stopping.best, stopping.best_epoch) == (LOSSES[best], best + 1)
    assert model.weight == best  # also where nothing stopped it


def test_early_stopping_may_keep_the_last_weights(model: Model) -> None:
    model.fit([EarlyStopping(patience=2, restore_best=False)], LOSSES)
    assert model.weight == 3


@pytest.mark.parametrize(("min_delta", "best_epoch"), [(0.0, 5), (0.15, 2), (0.25, 5), (0.35, 1)])
def test_early_stopping_min_delta(min_delta: float, best_epoch: int, model: Model) -> None:
    stopping = EarlyStopping(patience=9, min_delta=min_delta)
    model.fit([stopping], LOSSES)
    assert stopping.best_epoch == best_epoch


@pytest.mark.parametrize(
    ("monitor", "mode", "best"),
    [
        ("val_loss", "auto", 1),
        ("mae", "auto", 1),
        ("val_accuracy", "auto", 3),
        ("top_5_accuracy", "auto", 3),
        ("val_r2", "auto", 3),
        ("val_loss", "max", 3),
        ("accuracy", "min", 1),
    ],
)
def test_modes(monitor: str, mode: str, best: float, model: Model) -> None:
    stopping = EarlyStopping(monitor, mode=mode)
    model.fit([stopping], [{monitor: value} for value in (2.0, 1.0, 3.0)])
    assert stopping.best == best


def test_nan_is_never_the_best(model: Model) -> None:
    stopping = EarlyStopping(patience=2)
    history = model.fit([stopping], [math.nan, 0.5, math.nan, math.nan, 0.1])
    assert len(history.epochs) == 4
    assert (stopping.best, stopping.best_epoch) == (0.5, 2)
    assert model.weight == 1


def test_without_any_best_epoch_weights_stay(model: Model) -> None:
    model.fit([EarlyStopping(patience=2)], [math.nan] * 5)
    assert model.weight == 1


def test_best_weights_come_back_after_later_updates(model: Model) -> None:
    def spoil(model: Model, history: History) -> None:
        model.weight[...] = math.nan

    model.fit([LambdaCallback(on_fit_end=spoil), EarlyStopping()], [3.0, 2.0])
    assert model.weight == 1


@pytest.mark.parametrize("keep", [through_json, through_npz])
def test_best_weights_come_back_after_resuming(keep: Any, model: Model) -> None:
    first, second = EarlyStopping(), EarlyStopping()
    model.fit([first], [3.0, 2.0, 4.0])
    second.load_state_dict(keep(first.state_dict()))
    model.fit([second], [5.0, 6.0], first_epoch=3)
    assert model.weight == 1


def test_missing_monitor(model: Model) -> None:
    message = "monitor: expected one of loss, accuracy, got 'val_loss'"
    hooks = [EarlyStopping(), ReduceLROnPlateau(), ModelCheckpoint("a", save_best_only=True)]
    for hook in hooks:
        with pytest.raises(ValueError, match=message):
            model.fit([hook], [{"loss": 1.0, "accuracy": 0.5}])
    model.fit([ModelCheckpoint("a")], [{"loss": 1.0}])  # which has no use for it


def test_a_new_fit_forgets(model: Model) -> None:
    stopping = EarlyStopping(patience=2)
    model.fit([stopping], LOSSES)
    model.fit([stopping], [5.0, 4.0, 3.0])
    assert (stopping.best, stopping.best_epoch) == (3.0, 3)


def test_a_fit_that_goes_on_does_not(model: Model) -> None:
    stopping = EarlyStopping(patience=4)
    model.fit([stopping], LOSSES[:2])
    history = model.fit([stopping], [5.0, 4.0, 3.0, 2.0, 1.0], first_epoch=2)
    assert history.epochs == [3, 4, 5, 6]
    assert (stopping.best, model.weight) == (0.8, 1)


@pytest.mark.parametrize("keep", [through_json, through_npz])
@pytest.mark.parametrize("first_epoch", [0, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(patience=3),
        lambda: ModelCheckpoint("{epoch}", save_best_only=True),
        lambda: ModelCheckpoint("{epoch}-{batch}", every=5),
        lambda: ReduceLROnPlateau(patience=1, cooldown=2),
    ],
)
def test_resuming_is_as_going_on(make: Any, first_epoch: int, keep: Any) -> None:
    losses = [*LOSSES, *LOSSES]
    models, hooks = [Model(), Model()], [make(), make()]
    whole = models[0].fit([hooks[0]], losses)
    models[1].fit([hooks[1]], losses[:3])
    resumed = make()
    resumed.load_state_dict(keep(hooks[1].state_dict()))
    # A checkpoint within epoch 0 would go on there, hence first_epoch=0.
    rest = models[1].fit([resumed], losses[3:], first_epoch)
    if first_epoch:
        assert rest.epochs == whole.epochs[3:]
        assert models[1].saved == models[0].saved
        assert models[1].rates == models[0].rates
        np.testing.assert_equal(resumed.state_dict(), hooks[0].state_dict())
    else:
        assert len(rest.epochs) == len(whole.epochs) - 3
        assert len(models[1].saved) == len(models[0].saved)


def test_states_that_do_not_fit() -> None:
    stopping = EarlyStopping()
    state = stopping.state_dict()
    assert state == {"best": math.inf, "best_epoch": 0, "wait": 0}
    for wrong, kind, message in [
        ({}, ValueError, "state_dict: expected best, best_epoch, wait, got nothing"),
        (state | {"x": 1}, ValueError, "got best, best_epoch, wait, x"),
        (state | {"wait": 0.5}, TypeError, r"state_dict\['wait'\]: expected an integer >= 0"),
        (state | {"wait": -1}, ValueError, r"state_dict\['wait'\]: expected an integer >= 0"),
        (state | {"best": "a"}, TypeError, r"state_dict\['best'\]: expected a number"),
        (state | {"best": math.nan}, ValueError, r"state_dict\['best'\]: expected a number"),
    ]:
        with pytest.raises(kind, match=message):
            stopping.load_state_dict(wrong | {"weights.a": np.ones(2)})
        assert stopping.state_dict() == state
    with pytest.raises(ValueError, match="state_dict: expected nothing, got best"):
        TerminateOnNaN().load_state_dict({"best": 1})
    TerminateOnNaN().load_state_dict(TerminateOnNaN().state_dict())


# --- ModelCheckpoint


def test_checkpoint_after_each_epoch(model: Model) -> None:
    model.fit([ModelCheckpoint(Path("run") / "m-{epoch:02d}-{val_loss:.2f}.npz")], LOSSES[:3])
    assert model.saved == ["run/m-01-1.00.npz", "run/m-02-0.80.npz", "run/m-03-0.90.npz"]


def test_checkpoint_of_the_best(model: Model) -> None:
    model.fit([ModelCheckpoint("{epoch}", save_best_only=True)], LOSSES)
    assert model.saved == ["1", "2", "5"]


def test_checkpoint_every_few_batches(model: Model) -> None:
    model.fit([ModelCheckpoint("{epoch}-{batch}", every=3)], LOSSES[:2], batches=4)
    assert model.saved == ["1-3", "1-4", "2-2", "2-4"]


@pytest.mark.parametrize("path", ["{accuracy}", "{}", "{0}", "{epoch.x}", "{epoch:q}", "{"])
def test_checkpoint_unknown_fields(path: str, model: Model) -> None:
    with pytest.raises(ValueError, match="path: expected fields among loss, val_loss, epoch, batc"):
        model.fit([ModelCheckpoint(path)], [1.0])


# --- ReduceLROnPlateau


@pytest.mark.parametrize("patience", [1, 2, 4])
@pytest.mark.parametrize("cooldown", [0, 1, 3])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("min_rate", [0.0, 0.02])
def test_plateau_is_that_of_torch(
    patience: int, cooldown: int, mode: Any, min_rate: float, rng: np.random.Generator, model: Model
) -> None:
    torch = pytest.importorskip("torch")
    losses = (1 / np.arange(1, 41) + 0.05 * rng.normal(size=40)).tolist()
    plateau = ReduceLROnPlateau("val_loss", 0.3, patience, 0.01, cooldown, min_rate, mode)
    model.fit([plateau], losses)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, 0.3, patience - 1, 0.01, "abs", cooldown, min_rate, eps=0
    )
    rates = []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    assert rates[0] != rates[-1]
    assert model.rates == rates


def test_plateau_does_not_raise_the_rate(model: Model) -> None:
    model.fit([ReduceLROnPlateau(patience=1, min_rate=0.5)], [1.0] * 4)
    assert model.rates == [0.1] * 4


def test_plateau_refuses_schedules(model: Model) -> None:
    model.optimizer.learning_rate = math.sqrt
    with pytest.raises(ValueError, match="learning_rate: expected a number, got <built-in"):
        model.fit([ReduceLROnPlateau()], [])


# --- TerminateOnNaN


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32(np.nan)])
def test_terminate(name: str, value: float, model: Model) -> None:
    hook = TerminateOnNaN()
    hook.on_epoch_begin(model, 2)
    hook.on_batch_end(model, 0, {"loss": 1.0, "gradient_norm": 1e300})
    assert not model.stop_training
    with pytest.warns(RuntimeWarning, match=f"epoch 3, batch 5: {name} is -?(nan|inf)"):
        hook.on_batch_end(model, 4, {"loss": 1.0, "gradient_norm": 2.0, name: value})
    assert model.stop_training


def test_terminate_needs_something_to_watch(model: Model) -> None:
    with pytest.raises(ValueError, match="logs: expected loss or gradient_norm, got accuracy"):
        TerminateOnNaN().on_batch_end(model, 0, {"accuracy": 1.0})


def test_best_weights_come_back_after_nan(model: Model) -> None:
    def spoil(model: Model, batch: int, logs: dict[str, float]) -> None:
        if model.weight == 2:
            model.weight[...] = math.nan
            hook.on_batch_end(model, batch, {"loss": math.nan})

    hook = TerminateOnNaN()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit([EarlyStopping(), hook, LambdaCallback(on_batch_end=spoil)], [3.0, 2.0, math.nan])
    assert model.weight == 1


# --- CSVLogger


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "log.csv"
    path.write_text("something else\n")
    losses = [1 / 3, 1e-30, math.nan]
    model.fit([CSVLogger(path)], losses)
    got = rows(path)
    assert [row["epoch"] for row in got] == ["1", "2", "3"]
    np.testing.assert_array_equal([float(row["val_loss"]) for row in got], losses)


def test_csv_appends(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "log.csv"
    for first_epoch in (0, 2):  # the file is not there, then it is
        model.fit([CSVLogger(path, append=True)], [0.5, 0.25], first_epoch)
    assert [row["epoch"] for row in rows(path)] == ["1", "2", "3", "4"]
    assert [row["val_loss"] for row in rows(path)] == ["0.5", "0.25"] * 2


def test_csv_columns(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "log.csv"
    both, one = {"loss": 1.0, "val_loss": 2.0}, {"loss": 0.5}
    model.fit([CSVLogger(path)], [both, one])
    assert rows(path)[1] == {"epoch": "2", "loss": "0.5", "val_loss": ""}
    with pytest.raises(ValueError, match=r"log.csv: expected logs among the columns epoch, l"):
        model.fit([CSVLogger(path, append=True)], [{"accuracy": 1.0}])
    with pytest.raises(ValueError, match="got val_loss"):
        model.fit([CSVLogger(path)], [one, both])


def test_csv_writes_at_once(tmp_path: Path, model: Model) -> None:
    path, lines = tmp_path / "log.csv", []

    def count(model: Model, epoch: int, logs: dict[str, float]) -> None:
        lines.append(len(rows(path)))

    model.fit([CSVLogger(path), LambdaCallback(on_epoch_end=count)], [1.0, 0.5])
    assert lines == [1, 2]


def test_csv_path_is_tried_first(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CSVLogger(tmp_path / "missing" / "log.csv").on_fit_begin(None, Plan(1, 1))


# --- LambdaCallback


def test_lambda_callback_has_every_hook(model: Model) -> None:
    calls: list[str] = []
    hooks = {
        name: (lambda *arguments, name=name: calls.append(name))
        for name in ("on_fit_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_fit_end")
    }
    model.fit([LambdaCallback(**hooks)], [1.0], batches=1)
    assert calls == list(hooks)


def test_lambda_callback_refuses() -> None:
    with pytest.raises(ValueError, match=r"hooks: expected one of 'on_fit_begin', .*'on_epoch'"):
        LambdaCallback(on_epoch=print)
    with pytest.raises(TypeError, match="on_epoch_end: expected a function, got 3"):
        LambdaCallback(on_epoch_end=3)  # type: ignore[arg-type]


# --- ProgressBar

LOGS = {
    "loss": 0.123456,
    "gradient_norm": 1.5,
    "learning_rate": 0.1,
    "sequences_per_second": 1234.5,
}


def test_bar_without_tqdm(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    model.fit([ProgressBar()], [LOGS, LOGS])
    out, err = capsys.readouterr()
    line = "loss 0.1235, gradient_norm 1.5, 1234 sequences/s\n"
    assert (out, err) == ("", f"epoch 1/2: {line}epoch 2/2: {line}")


def test_bar_with_tqdm(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    bar = ProgressBar()
    model.fit([bar], [LOGS, LOGS], batches=3)
    assert bar._bar is None
    out, err = capsys.readouterr()
    assert out == ""
    for text in ("epoch 1/2: 100%", "epoch 2/2: 100%", "3/3", "loss 0.1235, gradient_norm 1.5, 12"):
        assert text in err


def test_bar_goes_on_within_an_epoch(model: Model) -> None:
    pytest.importorskip("tqdm")
    bar = ProgressBar()
    bar.on_fit_begin(model, Plan(1, 5))
    bar.on_epoch_begin(model, 0)
    bar.on_batch_end(model, 3, LOGS)
    assert bar._bar.n == 4
    bar.on_fit_end(model, History())


def test_bar_of_an_interrupted_epoch_is_closed(model: Model) -> None:
    pytest.importorskip("tqdm")
    bar = ProgressBar()
    bar.on_fit_begin(model, Plan(2, 3))
    bar.on_epoch_begin(model, 0)
    first = bar._bar
    bar.on_epoch_begin(model, 0)
    assert first.disable  # as tqdm notes that it is closed
    assert not bar._bar.disable
    bar.on_fit_end(model, History())


# --- History


def test_history(model: Model) -> None:
    history = model.fit([], [0.5, 0.25])
    assert history.epochs == [1, 2]
    assert history["loss"] == [1.0, 0.5]
    assert dict(history) == history.logs == {"loss": [1.0, 0.5], "val_loss": [0.5, 0.25]}
    assert "loss" in history
    assert "accuracy" not in history
    assert repr(history) == "<History of 2 epochs: loss, val_loss>"
    with pytest.raises(KeyError, match="'accuracy', there are loss, val_loss"):
        history["accuracy"]
    assert not History().get("loss")


def test_history_keeps_lists_of_one_length(model: Model) -> None:
    history = model.fit([], [{"loss": 1}, {"loss": np.float32(2), "val_loss": 3}, {"loss": 4}])
    np.testing.assert_equal(history.logs, {"loss": [1, 2, 4], "val_loss": [math.nan, 3, math.nan]})
    assert {type(value) for value in history["loss"]} == {float}


@pytest.mark.parametrize("keep", [through_json, through_npz])
def test_history_goes_on(keep: Any, model: Model) -> None:
    state = keep(model.fit([], [0.5, 0.25]).state_dict())
    history = History()
    history.load_state_dict(state)
    model.fit([history], [0.125], first_epoch=2)
    assert history.epochs == [1, 2, 3]
    assert history["val_loss"] == [0.5, 0.25, 0.125]
    model.fit([history], [1.0])
    assert history["val_loss"] == [1.0]


def test_history_states_that_do_not_fit() -> None:
    for wrong in ({}, {"epochs": [1], "loss": [1.0]}, {"logs.loss": [1.0]}):
        with pytest.raises(ValueError, match="state_dict: expected epochs"):
            History().load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"state_dict\['logs.loss'\]: expected \(1,\), got \(2,\)"):
        History().load_state_dict({"epochs": [1], "logs.loss": [1.0, 2.0]})


PLOTTED = {"loss": 1.0, "accuracy": 0.5, "val_loss": 2.0, "gradient_norm": 3.0, "val_mae": 4.0}


def test_plot(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    history = model.fit([], [PLOTTED, PLOTTED])
    figure = history.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    got = {
        axes.get_ylabel(): {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in figure.axes
    }
    assert got == {
        "loss": {"train": [[1, 1.0], [2, 1.0]], "validation": [[1, 2.0], [2, 2.0]]},
        "accuracy": {"train": [[1, 0.5], [2, 0.5]]},
        "mae": {"validation": [[1, 4.0], [2, 4.0]]},
    }


def test_plot_in_given_axes(model: Model) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    history = model.fit([], [PLOTTED])
    figure = figures.Figure()
    axes = figure.subplots(1, 2)
    assert history.plot(ax=axes, names=["loss", "gradient_norm"]) is figure
    assert [panel.get_ylabel() for panel in axes] == ["loss", "gradient_norm"]
    assert history.plot(ax=axes[0], names=["mae"]) is figure
    with pytest.raises(ValueError, match="ax: expected 3 Axes for loss, accuracy, mae, got 2"):
        history.plot(ax=axes)


def test_plot_refuses(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    history = model.fit([], [PLOTTED])
    with pytest.raises(ValueError, match=r"names: expected some of loss, accuracy, .* got r2"):
        history.plot(names=["loss", "r2"])
    with pytest.raises(TypeError, match="names: expected a sequence of names, got 'loss'"):
        history.plot(names="loss")
    with pytest.raises(ValueError, match="names: expected some of no logs, got none"):
        History().plot()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="needs matplotlib: pip install matplotlib"):
        history.plot()


# --- Options


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: EarlyStopping(3), TypeError, "monitor: expected the name of a log, got 3"),
        (lambda: EarlyStopping(patience=0), ValueError, "patience: expected an integer >= 1"),
        (lambda: EarlyStopping(min_delta=-1), ValueError, "min_delta: expected a number"),
        (
            lambda: EarlyStopping(mode="up"),
            ValueError,
            "mode: expected one of 'auto', 'min', 'max'",
        ),
        (lambda: EarlyStopping(restore_best=1), TypeError, "restore_best: expected True or False"),
        (lambda: ModelCheckpoint("a", every=0), ValueError, "every: expected an integer >= 1"),
        (
            lambda: ModelCheckpoint("a", save_best_only=True, every=1),
            ValueError,
            "every: expected None with save_best_only=True, got 1",
        ),
        (
            lambda: ReduceLROnPlateau(factor=1),
            ValueError,
            r"factor: expected .* in \(0, 1\), got 1",
        ),
        (
            lambda: ReduceLROnPlateau(factor=0),
            ValueError,
            r"factor: expected .* in \(0, 1\), got 0",
        ),
        (lambda: ReduceLROnPlateau(cooldown=-1), ValueError, "cooldown: expected an integer >= 0"),
        (lambda: ReduceLROnPlateau(min_rate=-1), ValueError, "min_rate: expected a number"),
        (lambda: CSVLogger("a", append=1), TypeError, "append: expected True or False"),
    ],
)
def test_options_are_checked(make: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_options_are_attributes() -> None:
    options = {"monitor": "loss", "patience": 2, "min_delta": 0.5, "mode": "max"}
    made = EarlyStopping(**options)  # type: ignore[arg-type]
    assert options.items() <= vars(made).items()
    assert all(issubclass(getattr(callbacks, name), (Callback, Plan)) for name in callbacks.__all__)
