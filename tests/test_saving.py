"""Models as files, and training that goes on from them to the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import callbacks, functional, io, losses, metrics, optimizers
from fastrnn.config import place
from fastrnn.containers import walk
from numpy.typing import NDArray

Array = NDArray[Any]
SUFFIXES = (".safetensors", ".npz")
every_format = pytest.mark.parametrize("suffix", SUFFIXES)

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: optimizers.SGD(optimizers.WarmUp(optimizers.CosineDecay(0.1, 30), 5), 0.9, True),
    "rmsprop": lambda: optimizers.RMSprop(0.01, centered=True, momentum=0.5, clip_value=0.1),
    "adam": lambda: optimizers.Adam(
        optimizers.OneCycle(0.01, 40), (0.8, 0.99), global_clipnorm=1.0
    ),
    "adamw": lambda: optimizers.AdamW(optimizers.StepDecay(0.01, 7), amsgrad=True, l1=1e-4),
}


def make_model(optimizer: str = "adam") -> fastrnn.Sequential:
    """Return a model in which everything has a memory: masks, running means, moments."""
    return fastrnn.Sequential(
        [
            fastrnn.Embedding(20, 6, mask_zero=True, seed=0),
            fastrnn.LSTM(6, 8, 2, dropout=0.2, recurrent_dropout=0.2, zoneout=(0.1, 0.2), seed=1),
            fastrnn.Residual(fastrnn.GRU(8, 8, weight_drop=0.3, layer_norm=True, seed=2)),
            fastrnn.Sequential([fastrnn.BatchNorm(8), fastrnn.Dropout(0.3, seed=3)]),
            fastrnn.Attention(8, score="additive", units=5, seed=4),
            fastrnn.LayerNorm(8),
            fastrnn.Dense(8, 4, seed=5),
        ]
    ).compile(OPTIMIZERS[optimizer](), losses.CrossEntropy(0.1), ["accuracy", metrics.TopK(2)])


def data() -> tuple[list[Array], Array]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 20, size=rng.integers(1, 9)) for _ in range(40)], rng.integers(
        4, size=40
    )


def same(first: fastrnn.Sequential, second: fastrnn.Sequential) -> None:
    assert list(first.state_dict()) == list(second.state_dict())
    for name, array in first.state_dict().items():
        np.testing.assert_array_equal(array, second.state_dict()[name], err_msg=name)


OPTIONS: dict[str, Any] = {"batch_size": 8, "seed": 0, "verbose": 0}


@every_format
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fit_continues_as_if_it_had_never_stopped(
    suffix: str, optimizer: str, tmp_path: Path
) -> None:
    whole, stopped = make_model(optimizer), make_model(optimizer)
    same(whole, stopped)
    history = whole.fit(*data(), epochs=4, **OPTIONS)
    first = stopped.fit(*data(), epochs=2, **OPTIONS)
    stopped.save(tmp_path / f"model{suffix}")
    loaded = fastrnn.Sequential.load(tmp_path / f"model{suffix}")
    same(loaded, stopped)
    assert loaded.epochs_trained == 2
    assert repr(loaded) == repr(stopped)
    assert repr(loaded.optimizer) == repr(stopped.optimizer)
    assert repr(loaded.loss) == repr(stopped.loss)
    second = loaded.fit(*data(), epochs=2, **OPTIONS)
    same(whole, loaded)
    for name in ("loss", "accuracy", "top_2_accuracy", "gradient_norm", "learning_rate"):
        assert [*first[name], *second[name]] == history[name]
    assert second.epochs == [3, 4]


def test_the_order_goes_on_without_a_seed(tmp_path: Path) -> None:
    options = {"batch_size": 8, "verbose": 0}
    model = make_model()
    model.fit(*data(), epochs=1, **options)
    model.save(tmp_path / "model.npz")
    models = [fastrnn.Sequential.load(tmp_path / "model.npz"), model]
    for each in models:
        each.fit(*data(), epochs=2, **options)
    same(*models)


KILLED = """
import os, sys
sys.path.insert(0, {folder!r})
import fastrnn
from test_saving import OPTIONS, data, make_model

class Kill(fastrnn.callbacks.Callback):
    updates = 0
    def on_batch_end(self, model, batch, logs):
        self.updates += 1
        if self.updates == {updates}:
            os._exit(9)  # no destructor, no handler: as SIGKILL

checkpoint = fastrnn.callbacks.ModelCheckpoint({path!r}, every=3)
make_model().fit(*data(), epochs=4, callbacks=[checkpoint, Kill()], **OPTIONS)
"""


@every_format
@pytest.mark.parametrize("updates", [4, 10, 13])
def test_resume_after_a_kill(suffix: str, updates: int, tmp_path: Path) -> None:
    """5 updates make an epoch, so that the checkpoints lie within epochs and at their ends."""
    whole = make_model()
    whole.fit(*data(), epochs=4, **OPTIONS)
    path = tmp_path / f"model{suffix}"
    script = KILLED.format(folder=str(Path(__file__).parent), path=str(path), updates=updates)
    result = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert result.returncode == 9
    model = fastrnn.Sequential.load(path)
    assert model.epochs_trained == {4: 0, 10: 1, 13: 2}[updates]
    model.fit(*data(), epochs=4 - model.epochs_trained, **OPTIONS)
    same(whole, model)


@every_format
def test_logs_go_on_within_an_epoch(suffix: str, tmp_path: Path) -> None:
    """Of an epoch that was resumed, also where its last batch was done before."""
    whole = make_model().fit(*data(), epochs=1, **OPTIONS)
    for updates in (2, 5):
        path = tmp_path / f"model-{updates}{suffix}"

        def save(model: Any, batch: int, logs: Any, path: Any = path, n: int = updates) -> None:
            if batch == n - 1:
                model.save(path)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_model().fit(
                *data(), callbacks=[callbacks.LambdaCallback(on_batch_end=save)], **OPTIONS
            )
        history = fastrnn.Sequential.load(path).fit(*data(), epochs=1, **OPTIONS)
        for name in ("loss", "accuracy", "top_2_accuracy", "gradient_norm"):
            assert history[name] == whole[name]


def test_a_failed_batch_leaves_masks_and_means_as_they_were() -> None:
    x, y = data()
    wrong = y.copy()
    wrong[17] = 9  # no class
    whole, failed = make_model(), make_model()
    whole.fit(x, y, shuffle=False, batch_size=8, verbose=0, seed=0)
    with pytest.raises(ValueError, match="y: expected classes in"):
        failed.fit(x, wrong, shuffle=False, batch_size=8, verbose=0, seed=0)
    failed._progress = failed._progress._replace(order=(), batch=0)
    # Two batches were right: done again, they differ, but what is random comes in its order.
    seeds = [layer._mask_seed for _, layer in walk(failed)]
    ran: list[Any] = []
    other = make_model()
    other.fit(
        x[:16],
        y[:16],
        shuffle=False,
        batch_size=8,
        verbose=0,
        seed=0,
        callbacks=[callbacks.LambdaCallback(on_batch_end=lambda *a: ran.append(1))],
    )
    assert len(ran) == 2
    assert seeds == [layer._mask_seed for _, layer in walk(other)]
    same(failed, other)


def test_other_data_begin_a_new_epoch() -> None:
    for change in ("x", "y", "compile"):
        model = make_model()
        x, y = data()
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, callbacks=[Interrupt(3)], **OPTIONS)
        if change == "x":
            x[0] = x[0] + 1
        elif change == "y":
            y[0] = 3 - y[0]
        else:
            model.compile("adam", "cross_entropy")
        counts: list[int] = []
        count = callbacks.LambdaCallback(on_batch_end=lambda m, b, logs, c=counts: c.append(b))
        model.fit(x, y, callbacks=[count], **OPTIONS)
        assert counts == [0, 1, 2, 3, 4]


def test_memory_is_not_given_to_others(tmp_path: Path) -> None:
    """Neither to a callback that watches something else, nor to a fit on other data."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.integers(2, size=8)

    def model() -> fastrnn.Sequential:
        layers = [fastrnn.Dense(3, 2, seed=0)]
        return fastrnn.Sequential(layers).compile("sgd", "cross_entropy", ["accuracy"])

    path = tmp_path / "model.npz"
    watchers = [callbacks.EarlyStopping("loss"), callbacks.ModelCheckpoint(path)]
    model().fit(x, y, epochs=3, seed=0, verbose=0, callbacks=watchers)
    for monitor, data_x, known in (
        ("loss", x, True),
        ("accuracy", x, False),
        ("loss", x + 1, False),
    ):
        first: list[float] = []

        class Spy(callbacks.EarlyStopping):
            def on_epoch_begin(self, model: Any, epoch: int, seen: Any = first) -> None:
                seen.append(self.best)

        Spy.__name__ = "EarlyStopping"
        loaded = fastrnn.Sequential.load(path)
        loaded.fit(data_x, y, seed=0, verbose=0, callbacks=[Spy(monitor)])
        assert np.isfinite(first[0]) == known
    # One object for two models forgets the first.
    stopping = callbacks.EarlyStopping("loss")
    one, two = model(), model()
    for each in (one, two):
        each.fit(x, y, verbose=0, seed=0)
    one.fit(x, y, epochs=5, verbose=0, seed=0, callbacks=[stopping])
    best = stopping.best
    two.fit(x + 100, y, verbose=0, seed=0, callbacks=[stopping])
    assert stopping.best != best
    assert np.any(two.parameters["0.weight"] != one.parameters["0.weight"])


class Interrupt(callbacks.Callback):
    def __init__(self, updates: int) -> None:
        self.left = updates

    def on_batch_end(self, model: Any, batch: int, logs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_fit_goes_on_within_its_epoch() -> None:
    whole, stopped, other = (make_model() for _ in range(3))
    whole.fit(*data(), epochs=3, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(*data(), epochs=3, callbacks=[Interrupt(8)], **OPTIONS)
    assert stopped.epochs_trained == 1
    stopped.fit(*data(), epochs=2, **OPTIONS)
    same(whole, stopped)
    # In another order it begins an epoch anew.
    with pytest.raises(KeyboardInterrupt):
        other.fit(*data(), epochs=3, callbacks=[Interrupt(3)], **OPTIONS)
    counts: list[int] = []
    count = callbacks.LambdaCallback(on_batch_end=lambda model, batch, logs: counts.append(batch))
    other.fit(*data(), callbacks=[count], **{**OPTIONS, "batch_size": 10})
    assert counts == [0, 1, 2, 3]


def test_callbacks_get_their_memory_back(tmp_path: Path) -> None:
    """A checkpoint of a fit holds what early stopping and the plateau have seen."""

    def watchers() -> list[callbacks.Callback]:
        return [
            callbacks.ModelCheckpoint(tmp_path / "{epoch}.npz"),
            callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=0.5),
            callbacks.EarlyStopping("loss", patience=5, min_delta=0.5),
        ]

    def model() -> fastrnn.Sequential:
        return fastrnn.Sequential([fastrnn.Dense(3, 1, seed=0)]).compile("sgd", "mse")

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=8)
    options: dict[str, Any] = {"epochs": 20, "seed": 0, "verbose": 0}
    whole = model()
    history = whole.fit(x, y, callbacks=watchers(), **options)
    assert 3 < len(history.epochs) < 20
    loaded = fastrnn.Sequential.load(tmp_path / "3.npz")
    second = loaded.fit(x, y, callbacks=watchers(), **options)
    assert second.epochs == history.epochs[3:]
    assert second["learning_rate"] == history["learning_rate"][3:]
    same(whole, loaded)
    # Of a file that was not saved in a fit, nothing is left.
    loaded.save(tmp_path / "after.npz")
    again = fastrnn.Sequential.load(tmp_path / "after.npz")
    assert len(again.fit(x, y, callbacks=watchers(), **options).epochs) >= 5


@every_format
def test_the_model_alone(suffix: str, tmp_path: Path) -> None:
    model = make_model()
    model.fit(*data(), epochs=1, **OPTIONS)
    model.eval()
    model.save(tmp_path / f"model{suffix}", include_training=False)
    loaded = fastrnn.Sequential.load(tmp_path / f"model{suffix}")
    assert loaded.optimizer is None
    assert not loaded.training
    np.testing.assert_array_equal(loaded.predict(data()[0]), model.predict(data()[0]))
    with pytest.raises(RuntimeError, match="call compile"):
        loaded.fit(*data())


def test_arrays_have_their_names_in_the_file(tmp_path: Path) -> None:
    numpy_reader = pytest.importorskip("safetensors.numpy")
    model = make_model()
    model.fit(*data(), epochs=1, **OPTIONS)
    model.save(tmp_path / "model.safetensors")
    arrays = numpy_reader.load_file(tmp_path / "model.safetensors")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(arrays[name], array)


LAYERS: dict[str, Any] = {
    "rnn": lambda: fastrnn.RNN(3, 4, 2, "relu", bidirectional=True, merge="max", seed=0),
    "lstm": lambda: fastrnn.LSTM(3, 4, peephole=True, proj_size=2, clip=3.0, seed=0),
    "lstm, coupled": lambda: fastrnn.LSTM(3, 4, coupled=True, zoneout=0.1, seed=0),
    "lstm, forget bias": lambda: fastrnn.LSTM(3, 4, forget_bias=1.0, init="orthogonal", seed=0),
    "gru": lambda: fastrnn.GRU(3, 4, reset_after=False, batch_first=True, bias=False, seed=0),
    "float64": lambda: fastrnn.GRU(3, 4, dtype=np.float64, seed=0),
    "dense": lambda: fastrnn.Dense(3, 4, "gelu", bias=False, init="he", seed=0),
    "activation": lambda: fastrnn.Activation("silu"),
    "dropout": lambda: fastrnn.Dropout(0.3, seed=0),
    "batch norm": lambda: fastrnn.BatchNorm(3, 0.2, 1e-3),
    "layer norm": lambda: fastrnn.LayerNorm(3, 1e-3),
    "pool": lambda: fastrnn.Pool("max"),
    "repeat": lambda: fastrnn.Sequential([fastrnn.Last(), fastrnn.Repeat(4)]),
    "ends": lambda: fastrnn.Sequential([fastrnn.Dense(3, 4, seed=0), fastrnn.Ends()]),
    "residual": lambda: fastrnn.Residual(fastrnn.Sequential([fastrnn.GRU(3, 3, seed=0)])),
    "attention": lambda: fastrnn.Attention(3, score="concat", units=5, queries="all", seed=0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name: str, tmp_path: Path) -> None:
    model = fastrnn.Sequential([LAYERS[name]()])
    model.save(tmp_path / "model.npz")
    loaded = fastrnn.Sequential.load(tmp_path / "model.npz")
    assert repr(loaded) == repr(model)
    same(loaded, model)
    dtype = np.float64 if name == "float64" else np.float32
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(dtype)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    # What is random goes on with the same masks.
    first, second = (each.forward(x.swapaxes(0, 1))[0] for each in (model, loaded))
    np.testing.assert_array_equal(first, second)


class Scale(fastrnn.Layer):
    """A layer of one's own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self._parameters = {"weight": np.ones(1, np.float32)}

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        return x * self._parameters["weight"] * np.float32(self.factor), None, x

    def backward(
        self, tape: Any, grad_output: Any = None, grad_state: Any = None, *, input_grad: bool = True
    ) -> fastrnn.Gradients:
        scale = np.float32(self.factor)
        gradient = np.sum(grad_output * tape * scale, keepdims=True).reshape(1)
        weight = self._parameters["weight"]
        return fastrnn.Gradients(grad_output * weight * scale, None, {"weight": gradient})


def test_a_layer_of_ones_own(tmp_path: Path) -> None:
    model = fastrnn.Sequential([fastrnn.Dense(3, 2, seed=0), Scale(2.0)]).compile("adam", "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3)).astype(np.float32)
    history = model.fit(x, x[:, :2], epochs=30, seed=0, verbose=0)
    assert history["loss"][-1] < history["loss"][0]
    model.save(tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"Scale: expected one of .*custom="):
        fastrnn.Sequential.load(tmp_path / "model.npz")
    loaded = fastrnn.Sequential.load(tmp_path / "model.npz", custom={"Scale": Scale})
    assert isinstance(loaded.layers[1], Scale)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))


def test_functions_do_not_fit_a_file(tmp_path: Path) -> None:
    def error(prediction: Array, target: Array) -> float:
        return float(abs(prediction - target).max())

    def schedule(update: int) -> float:
        return 0.1 / (update + 1)

    for compiled in (
        ("sgd", "mse", [error]),
        (optimizers.SGD(schedule), "mse", []),
        ("sgd", lambda prediction, target, mask, sample_weight: (0.0, prediction), []),
    ):
        model = fastrnn.Sequential([fastrnn.Dense(3, 2, seed=0)]).compile(*compiled)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="include_training=False"):
            model.save(tmp_path / "model.npz")
        assert not list(tmp_path.iterdir())
        model.save(tmp_path / "alone.npz", include_training=False)
        (tmp_path / "alone.npz").unlink()


def as_if_saved_on_a_gpu(path: Path, **changes: Any) -> None:
    """Rewrite a model's file: all its recurrent layers are on a GPU."""
    arrays, metadata = io.load_arrays(path)

    def change(item: dict[str, Any]) -> dict[str, Any]:
        return item | {"device": "cuda", **changes} if "device" in item else item

    described = json.loads(metadata["model"], object_hook=change)
    io.save_arrays(path, arrays, {**metadata, "model": json.dumps(described)})


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("device='cuda': expected an NVIDIA GPU")

    monkeypatch.setattr(functional, "cuda_device_count", fail)


def make_seq2seq() -> fastrnn.Seq2Seq:
    return fastrnn.Seq2Seq(
        fastrnn.Sequential([fastrnn.Embedding(8, 4, seed=0), fastrnn.LSTM(4, 6, seed=1)]),
        fastrnn.Sequential([fastrnn.Embedding(5, 4, seed=2), fastrnn.LSTM(4, 6, seed=3)]),
        start=1,
        end=2,
    )


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("make", [make_model, make_seq2seq])
def test_a_model_of_a_gpu_is_loaded_without_one(make: Any, tmp_path: Path) -> None:
    model, path = make(), tmp_path / "model.npz"
    model.save(path)
    as_if_saved_on_a_gpu(path, allow_tf32=True)
    for device in (None, "cuda"):
        with pytest.raises(RuntimeError, match="device='cuda': expected an NVIDIA GPU"):
            type(model).load(path, device=device)
    loaded = type(model).load(path, device="cpu")
    assert repr(loaded) == repr(model)
    same(loaded, model)


def test_descriptions_without_a_device_get_one() -> None:
    """Those of layers that were saved when there was the CPU alone."""

    class Mine(fastrnn.GRU):
        pass

    classes = {"Sequential": fastrnn.Sequential, "Mine": Mine, "Dense": fastrnn.Dense}
    old = {"class": "Sequential", "layers": [{"class": "Mine"}, {"class": "Dense"}]}
    new = {
        "class": "Sequential",
        "layers": [{"class": "Mine", "device": "cuda"}, {"class": "Dense"}],
    }
    assert place(old, "cuda", classes) == new


def test_devices_that_layers_cannot_be_loaded_on(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    fastrnn.Sequential([fastrnn.GRU(3, 4)]).save(path)
    with pytest.raises(ValueError, match=r"^device: expected 'cpu', 'cuda' or .*, got 'gpu'"):
        fastrnn.Sequential.load(path, device="gpu")
    as_if_saved_on_a_gpu(path, dtype="float16")
    message = r"model\.npz: dtype: expected float32 or float64, got 'float16' \(device='cuda'"
    with pytest.raises(ValueError, match=message):
        fastrnn.Sequential.load(path, device="cpu")


def test_wrong_files(tmp_path: Path) -> None:
    io.save_arrays(tmp_path / "arrays.npz", {"weight": np.zeros(3)}, {})
    with pytest.raises(ValueError, match="expected a file that a model's save wrote"):
        fastrnn.Sequential.load(tmp_path / "arrays.npz")
    with pytest.raises(FileNotFoundError):
        fastrnn.Sequential.load(tmp_path / "none.npz")
    model = fastrnn.Sequential([fastrnn.Dense(3, 2, seed=0)])
    with pytest.raises(ValueError, match=r"\.safetensors"):
        model.save(tmp_path / "model.pickle")
    model.save(tmp_path / "model.npz")
    arrays, metadata = io.load_arrays(tmp_path / "model.npz")
    io.save_arrays(tmp_path / "other.npz", {"0.weight": np.zeros((2, 2))}, metadata)
    with pytest.raises(ValueError, match=r"missing 0\.bias; 0\.weight: expected \(2, 3\)"):
        fastrnn.Sequential.load(tmp_path / "other.npz")
    for part, message in (
        ('{"class": "Sequential"}', "Sequential"),
        ('{"class": "system"}', "system: expected one of"),
        ("{", r"model\.npz: Expecting"),
        ("[1]", r"model\.npz: expected a Sequential, got a list"),
        ("[" * 100_000, r"model\.npz: expected what a model's save writes"),
        ('{"class": "Dense", "inputs": 3, "units": 2}', "expected a Sequential, got a Dense"),
    ):
        io.save_arrays(tmp_path / "model.npz", arrays, {**metadata, "model": part})
        with pytest.raises(ValueError, match=message):
            fastrnn.Sequential.load(tmp_path / "model.npz")
    for name in ("mask_seeds", "modes"):
        io.save_arrays(
            tmp_path / "model.npz", arrays, {k: v for k, v in metadata.items() if k != name}
        )
        with pytest.raises(ValueError, match=f"expected what a model's save writes.*{name}"):
            fastrnn.Sequential.load(tmp_path / "model.npz")


def test_damaged_training(tmp_path: Path) -> None:
    model = fastrnn.Sequential([fastrnn.Dense(3, 2), fastrnn.Dropout(0.5)]).compile("adam", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    model.save(tmp_path / "model.npz")
    arrays, metadata = io.load_arrays(tmp_path / "model.npz")
    training = json.loads(metadata["training"])
    for name, wrong in (("progress", ["a", 0, []]), ("progress", [0, -3, []]), ("seed", -1)):
        damaged = {**metadata, "training": json.dumps({**training, name: wrong})}
        io.save_arrays(tmp_path / "damaged.npz", arrays, damaged)
        with pytest.raises(ValueError, match=r"damaged\.npz: expected|: expected an integer"):
            fastrnn.Sequential.load(tmp_path / "damaged.npz")
    for seed in ('"x"', "-5"):
        damaged = {**metadata, "mask_seeds": f'{{"1": {seed}}}'}
        io.save_arrays(tmp_path / "damaged.npz", arrays, damaged)
        with pytest.raises(ValueError, match="mask_seeds: expected an integer"):
            fastrnn.Sequential.load(tmp_path / "damaged.npz")


def test_names_with_slashes(tmp_path: Path) -> None:
    class Odd(Scale):
        def __init__(self, name: str) -> None:
            super().__init__(1.0)
            self.name = name
            self._parameters = {name: np.ones(1, np.float32)}

    model = fastrnn.Sequential([Odd("a/b")])
    model.save(tmp_path / "model.npz")
    loaded = fastrnn.Sequential.load(tmp_path / "model.npz", custom={"Odd": Odd})
    assert list(loaded.parameters) == ["0.a/b"]


def test_what_is_not_trained_is_remembered(tmp_path: Path) -> None:
    model = make_model()
    model[1].trainable = False
    model[3].eval()
    model.save(tmp_path / "model.npz")
    loaded = fastrnn.Sequential.load(tmp_path / "model.npz")
    for before, after in zip(model, loaded, strict=True):
        assert (before.trainable, before.training) == (after.trainable, after.training)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    """A file names classes of this package, and no others are looked up."""
    model = fastrnn.Sequential([fastrnn.Dense(3, 2, seed=0)])
    model.save(tmp_path / "model.npz")
    arrays, metadata = io.load_arrays(tmp_path / "model.npz")
    evil = '{"class": "Sequential", "layers": [{"class": "os.system", "command": "touch evil"}]}'
    io.save_arrays(tmp_path / "model.npz", arrays, {**metadata, "model": evil})
    script = f"""
        import fastrnn
        try:
            fastrnn.Sequential.load({str(tmp_path / "model.npz")!r})
        except ValueError as error:
            print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "os.system: expected one of" in result.stdout
    assert not (tmp_path / "evil").exists()
