"""Sequential: training, evaluation, prediction, generation."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import callbacks, losses, optimizers
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator


def classifier(dtype: Any = np.float32, **options: Any) -> fastrnn.Sequential:
    return fastrnn.Sequential(
        [
            fastrnn.Embedding(20, 6, seed=0, dtype=dtype),
            fastrnn.LSTM(6, 8, seed=1, dtype=dtype, **options),
            fastrnn.Last(),
            fastrnn.Dense(8, 4, seed=2, dtype=dtype),
        ]
    )


def tagger(dtype: Any = np.float32, **options: Any) -> fastrnn.Sequential:
    return fastrnn.Sequential(
        [
            fastrnn.GRU(3, 8, seed=1, dtype=dtype, **options),
            fastrnn.Dense(8, 4, seed=2, dtype=dtype),
        ]
    )


def same(first: fastrnn.Sequential, second: fastrnn.Sequential) -> None:
    for name, array in first.state_dict().items():
        np.testing.assert_array_equal(array, second.state_dict()[name], err_msg=name)


def differ(first: fastrnn.Sequential, second: fastrnn.Sequential) -> bool:
    other = second.state_dict()
    return any(np.any(array != other[name]) for name, array in first.state_dict().items())


def close(first: fastrnn.Sequential, second: fastrnn.Sequential, tolerance: float) -> None:
    for name, array in first.state_dict().items():
        np.testing.assert_allclose(
            array, second.state_dict()[name], atol=tolerance, rtol=0, err_msg=name
        )


def ragged(rng: Rng, n: int = 10, features: int = 3) -> tuple[list[Array], list[Array]]:
    sizes = rng.permutation(np.arange(n) % 5 + 1)
    x = [rng.normal(size=(size, features)).astype(np.float32) for size in sizes]
    return x, [rng.integers(4, size=size) for size in sizes]


def test_the_model_of_the_readme() -> None:
    model = fastrnn.Sequential(
        [
            fastrnn.Embedding(1000, 64, seed=0),
            fastrnn.LSTM(64, 128, seed=1),
            fastrnn.Last(),
            fastrnn.Dense(128, 10, seed=2),
        ]
    )
    counts = [sum(a.size for a in layer.parameters.values()) for layer in model.layers]
    assert counts == [64_000, 99_328, 0, 1_290]
    model.compile("adam", "cross_entropy", ["accuracy"])
    rng = np.random.default_rng(0)
    x = rng.integers(1000, size=(300, 9))
    y = x[:, -1] % 10
    history = model.fit(x, y, epochs=15, seed=0, verbose=0)
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert model.evaluate(x, y)["accuracy"] > 0.95
    assert np.mean(model.predict(x).argmax(axis=1) == y) > 0.95


def test_parameters_are_live() -> None:
    model = classifier()
    before = model.predict(np.ones((2, 5), int))
    model.parameters["3.bias"][:] += 1
    np.testing.assert_allclose(model.predict(np.ones((2, 5), int)), before + 1, rtol=1e-6)


@pytest.mark.parametrize("lengths", [None, [5, 3, 0, 1]])
@pytest.mark.parametrize("make", [classifier, tagger])
def test_gradients_of_the_loss(make: Any, lengths: Any, rng: Rng) -> None:
    """Central differences of the whole way from parameters to weighted loss."""
    model = make(np.float64)
    model.compile(optimizers.SGD(1.0), losses.CrossEntropy(label_smoothing=0.1))
    n, T = 4, 5
    x = rng.integers(20, size=(n, T)) if make is classifier else rng.normal(size=(n, T, 3))
    y = rng.integers(4, size=(n,) if make is classifier else (n, T))
    options = {"lengths": lengths, "sample_weight": rng.uniform(size=n), "class_weight": {1: 2.0}}
    before = model.state_dict()
    norm = model.train_on_batch(x, y, **options)["gradient_norm"]
    gradients = {name: before[name] - array for name, array in model.state_dict().items()}
    assert norm == pytest.approx(math.hypot(*(np.linalg.norm(g) for g in gradients.values())))

    model.compile(optimizers.SGD(0.0), model.loss or "mse")
    model.load_state_dict(before)
    for name, array in model.parameters.items():
        direction = rng.normal(size=array.shape)
        values = []
        for sign in (1, -1):
            array += sign * 1e-6 * direction
            values.append(model.train_on_batch(x, y, **options)["loss"])
            array -= sign * 1e-6 * direction
        expected = (values[0] - values[1]) / 2e-6
        assert np.sum(gradients[name] * direction) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_trains_as_torch_does(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    model = classifier().compile(optimizers.Adam(1e-2, global_clipnorm=0.5), "cross_entropy")
    embedding, lstm, dense = torch.nn.Embedding(20, 6), torch.nn.LSTM(6, 8), torch.nn.Linear(8, 4)
    for module, layer in ((embedding, 0), (lstm, 1), (dense, 3)):
        state = model.layers[layer].state_dict()
        module.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    weights = [p for module in (embedding, lstm, dense) for p in module.parameters()]
    adam = torch.optim.Adam(weights, 1e-2)
    x, y = rng.integers(20, size=(50, 7)), rng.integers(4, size=50)
    model.fit(x, y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    for _ in range(3):
        for start in range(0, 50, 16):
            ids = torch.tensor(x[start : start + 16].T)
            logits = dense(lstm(embedding(ids))[0][-1])
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y[start : start + 16]))
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 0.5)
            adam.step()
    for module, layer in ((embedding, 0), (lstm, 1), (dense, 3)):
        for name, expected in module.state_dict().items():
            ours = model.layers[layer].parameters[name]
            np.testing.assert_allclose(ours, expected.numpy(), atol=2e-5)


def test_forms_of_sequences_agree(rng: Rng) -> None:
    """Lists, padded arrays with lengths, and ids with mask_zero are the same data."""
    ids = [rng.integers(1, 20, size=size) for size in (5, 2, 4, 1, 3, 5)]
    y = rng.integers(4, size=6)
    padded, lengths = fastrnn.pad_sequences(ids)
    wide = np.pad(padded, ((0, 0), (0, 3)))
    results = []
    for mask_zero, x, given in (
        (False, ids, None),
        (False, [i.tolist() for i in ids], None),
        (False, padded, lengths),
        (False, wide, lengths),
        (True, padded, None),
        (True, wide, None),
        (True, ids, None),
    ):
        model = classifier()
        model.layers[0] = fastrnn.Embedding(20, 6, mask_zero, seed=0)
        model.layers[0].load_state_dict({"weight": np.arange(120.0).reshape(20, 6) % 7 / 7})
        model.compile("sgd", "cross_entropy", ["accuracy"])
        model.fit(x, y, lengths=given, epochs=2, batch_size=4, seed=0, verbose=0)
        evaluated = model.evaluate(x, y, lengths=given)
        results.append((model.predict(x, lengths=given), evaluated))
    for prediction, evaluated in results[1:]:
        np.testing.assert_allclose(prediction, results[0][0], atol=1e-6)
        assert evaluated == pytest.approx(results[0][1], rel=1e-5)


def test_layout_of_a_layer_does_not_matter(rng: Rng) -> None:
    x, y = rng.normal(size=(10, 5, 3)), rng.integers(4, size=(10, 5))
    models = [tagger(batch_first=first).compile("adam", "cross_entropy") for first in (False, True)]
    for model in models:
        model.fit(x, y, epochs=2, seed=0, verbose=0, lengths=np.arange(10) % 6)
    close(*models, 1e-6)
    np.testing.assert_allclose(*(model.predict(x) for model in models), atol=1e-6)


def test_targets_per_step(rng: Rng) -> None:
    x, y = ragged(rng)
    padded, lengths = fastrnn.pad_sequences(x)
    labels, _ = fastrnn.pad_sequences(y)
    garbage = padded.copy()
    garbage[np.arange(5) >= lengths[:, None]] = np.nan
    wrong = np.where(np.arange(5) < lengths[:, None], labels, -7)
    models = []
    for inputs, targets, given in (
        (x, y, None),
        (padded, labels, lengths),
        (garbage, wrong, lengths),
        (x, labels, None),
    ):
        model = tagger().compile("sgd", "cross_entropy", ["accuracy"])
        model.fit(inputs, targets, lengths=given, epochs=2, batch_size=4, seed=3, verbose=0)
        models.append(model)
    for model in models[1:]:
        same(models[0], model)
    predictions = models[0].predict(x)
    assert [len(p) for p in predictions] == lengths.tolist()
    array = models[0].predict(padded, lengths=lengths)
    for row, length, prediction in zip(array, lengths, predictions, strict=True):
        np.testing.assert_allclose(row[:length], prediction, atol=1e-6)
        assert not np.any(row[length:])


def test_one_to_many(rng: Rng) -> None:
    model = fastrnn.Sequential(
        [
            fastrnn.Dense(4, 8, seed=0),
            fastrnn.Repeat(6),
            fastrnn.GRU(8, 8, seed=1),
            fastrnn.Dense(8, 2),
        ]
    ).compile("adam", "mse")
    x = rng.normal(size=(12, 4))
    history = model.fit(x, rng.normal(size=(12, 6, 2)), epochs=2, seed=0, verbose=0)
    assert len(history["loss"]) == 2
    assert model.predict(x).shape == (12, 6, 2)


def test_one_output_takes_targets_without_axis(rng: Rng) -> None:
    x, y = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=9)
    model = fastrnn.Sequential([fastrnn.Dense(4, 1, seed=0)]).compile("sgd", "mse", ["mae", "r2"])
    flat, column = model.evaluate(x, y), model.evaluate(x, y[:, None])
    assert flat == column
    error = model.predict(x)[:, 0] - y
    assert flat["loss"] == pytest.approx(np.mean(error**2))
    assert flat["mae"] == pytest.approx(np.mean(np.abs(error)))
    model.compile("sgd", "binary_cross_entropy", ["accuracy"])
    assert model.evaluate(x, y > 0) == model.evaluate(x, (y > 0)[:, None])


def test_evaluation_does_not_depend_on_batches(rng: Rng) -> None:
    x, y = ragged(rng, 23)
    weights = rng.uniform(size=23)
    names = ["accuracy", "perplexity", "top_5_accuracy"]
    model = fastrnn.Sequential([fastrnn.GRU(3, 8, seed=0), fastrnn.Dense(8, 6, seed=1)])
    model.compile("sgd", "cross_entropy", names)
    results = [model.evaluate(x, y, batch_size=b, sample_weight=weights) for b in (1, 7, 100)]
    assert set(results[0]) == {"loss", *names}
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)
    one_by_one = [model.evaluate(x[i : i + 1], y[i : i + 1])["loss"] for i in range(23)]
    steps = np.array([len(row) for row in x])
    expected = np.average(one_by_one, weights=weights * steps)
    assert results[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_of_classes_and_samples_agree(rng: Rng) -> None:
    x, y = rng.normal(size=(20, 5)), rng.integers(3, size=20)
    models = []
    for options in (
        {"class_weight": {0: 2.0, 2: 0.5}},
        {"class_weight": [2.0, 1.0, 0.5]},
        {"sample_weight": np.array([2.0, 1.0, 0.5])[y]},
    ):
        model = fastrnn.Sequential([fastrnn.Dense(5, 3, seed=0)]).compile("sgd", "cross_entropy")
        model.fit(x, y, epochs=3, batch_size=6, seed=0, verbose=0, **options)
        models.append(model)
    same(models[0], models[1])
    close(models[0], models[2], 1e-6)
    other = fastrnn.Sequential([fastrnn.Dense(5, 3, seed=0)]).compile("sgd", "cross_entropy")
    other.fit(x, y, epochs=3, batch_size=6, seed=0, verbose=0)
    assert differ(other, models[0])


def test_class_weight_of_one_output(rng: Rng) -> None:
    x, y = rng.normal(size=(20, 5)), rng.integers(2, size=20)
    model = fastrnn.Sequential([fastrnn.Dense(5, 1, seed=0)])
    model.compile(optimizers.SGD(0.0), "binary_cross_entropy")
    log = model.train_on_batch(x, y, class_weight={1: 3.0})
    expected = losses.BinaryCrossEntropy()(model.predict(x), y[:, None], class_weight=3.0)[0]
    assert log["loss"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="class_weight: expected weight 1 for class 0"):
        model.train_on_batch(x, y, class_weight={0: 3.0})


def test_validation(rng: Rng) -> None:
    x, y = rng.normal(size=(20, 5)), rng.integers(3, size=20)
    split, given = (
        fastrnn.Sequential([fastrnn.Dense(5, 3, seed=0)]).compile(
            "sgd", "cross_entropy", ["accuracy"]
        )
        for _ in range(2)
    )
    options: dict[str, Any] = {"epochs": 2, "seed": 0, "verbose": 0, "batch_size": 4}
    first = split.fit(x, y, validation_split=0.25, **options)
    second = given.fit(x[:15], y[:15], validation_data=(x[15:], y[15:]), **options)
    same(split, given)
    assert first["val_loss"] == second["val_loss"]
    assert first["val_accuracy"][-1] == given.evaluate(x[15:], y[15:])["accuracy"]
    assert list(first) == [
        "loss",
        "accuracy",
        "gradient_norm",
        "learning_rate",
        "sequences_per_second",
        "val_loss",
        "val_accuracy",
    ]


def test_validation_of_ragged_data(rng: Rng) -> None:
    x, y = ragged(rng, 12)
    padded, lengths = fastrnn.pad_sequences(x)
    labels, _ = fastrnn.pad_sequences(y)
    options: dict[str, Any] = {"epochs": 1, "seed": 0, "verbose": 0}
    logs = []
    for validation in ((x[9:], y[9:]), (padded[9:], labels[9:], lengths[9:])):
        model = tagger().compile("sgd", "cross_entropy")
        logs.append(model.fit(x[:9], y[:9], validation_data=validation, **options)["val_loss"])
    model = tagger().compile("sgd", "cross_entropy")
    logs.append(model.fit(x, y, validation_split=0.25, **options)["val_loss"])
    assert logs[0] == pytest.approx(logs[1])
    assert logs[0] == pytest.approx(logs[2])


class Spy(callbacks.Callback):
    """Notes the logs and calls of a fit."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_fit_begin(self, model: Any, plan: callbacks.Plan) -> None:
        self.calls.append(f"begin {plan.first_epoch} {plan.epochs} {plan.batches}")

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        self.calls.append(f"epoch {epoch}")

    def on_batch_end(self, model: Any, batch: int, logs: Any) -> None:
        assert {"loss", "gradient_norm"} <= set(logs)
        self.calls.append(f"batch {batch}")

    def on_epoch_end(self, model: Any, epoch: int, logs: Any) -> None:
        self.calls.append(f"end {epoch}")

    def on_fit_end(self, model: Any, history: fastrnn.History) -> None:
        self.calls.append(f"fitted {len(history.epochs)}")


def test_callbacks_are_called(rng: Rng) -> None:
    x, y = rng.normal(size=(5, 4)), rng.normal(size=5)
    model = fastrnn.Sequential([fastrnn.Dense(4, 1, seed=0)]).compile("sgd", "mse")
    for first in (0, 1):
        spy = Spy()
        model.fit(x, y, batch_size=3, callbacks=[spy], verbose=0)
        expected = [f"begin {first} {first + 1} 2", f"epoch {first}", "batch 0", "batch 1"]
        assert spy.calls == [*expected, f"end {first}", "fitted 1"]
    assert model.epochs_trained == 2
    stop = callbacks.LambdaCallback(
        on_epoch_end=lambda model, epoch, logs: setattr(model, "stop_training", True)
    )
    assert model.fit(x, y, epochs=9, callbacks=[stop], verbose=0).epochs == [3]


def test_early_stopping_restores_the_best(rng: Rng) -> None:
    x, y = rng.normal(size=(30, 6)), rng.normal(size=30)
    model = fastrnn.Sequential([fastrnn.Dense(6, 1, seed=0)]).compile(optimizers.SGD(0.3), "mse")
    stopping = callbacks.EarlyStopping(patience=3)
    history = model.fit(
        x, y, epochs=200, validation_split=0.5, callbacks=[stopping], seed=0, verbose=0
    )
    assert len(history.epochs) < 200
    best = min(history["val_loss"])
    assert model.evaluate(x[15:], y[15:])["loss"] == pytest.approx(best)
    assert history["val_loss"][-1] > best


def test_progress_is_shown(rng: Rng, capsys: pytest.CaptureFixture[str]) -> None:
    model = fastrnn.Sequential([fastrnn.Dense(4, 1, seed=0)]).compile("sgd", "mse")
    model.fit(rng.normal(size=(5, 4)), rng.normal(size=5), verbose=0)
    assert capsys.readouterr().err == ""
    model.fit(rng.normal(size=(5, 4)), rng.normal(size=5))
    shown = capsys.readouterr().err
    for word in ("epoch 2", "loss", "gradient_norm", "sequences/s"):
        assert word in shown


def batches_of(samples: Any, *arguments: Any) -> list[list[int]]:
    return [rows.tolist() for rows in samples.shuffled(*arguments)]


def test_bucketing(rng: Rng) -> None:
    x, y = ragged(rng, 40)
    samples = tagger()._samples(x, y)
    sizes = np.array([len(row) for row in x])
    plain = batches_of(samples, 8, np.random.default_rng(0), False)
    bucketed = batches_of(samples, 8, np.random.default_rng(0), True)
    for batches in (plain, bucketed):
        assert sorted(row for rows in batches for row in rows) == list(range(40))
    padding = [
        sum(sizes[rows].max() * len(rows) for rows in batches) for batches in (plain, bucketed)
    ]
    assert padding[1] == sizes.sum() < padding[0]  # 5 lengths, 8 of each
    assert bucketed != sorted(bucketed, key=lambda rows: sizes[rows].max())
    assert bucketed != batches_of(samples, 8, np.random.default_rng(1), True)
    assert batches_of(samples, 8, None, True) == [list(range(i, i + 8)) for i in range(0, 40, 8)]


def test_order_is_a_function_of_the_seed(rng: Rng) -> None:
    x, y = rng.normal(size=(20, 4)), rng.normal(size=20)
    models = []
    for seed in (0, 0, 1):
        model = fastrnn.Sequential([fastrnn.Dense(4, 1, seed=0)]).compile("sgd", "mse")
        model.fit(x, y, epochs=2, batch_size=4, seed=seed, verbose=0)
        models.append(model)
    same(models[0], models[1])
    assert differ(models[0], models[2])


@pytest.mark.parametrize("k", [1, 4, 5, 11, 50])
def test_tbptt_is_a_walk_over_windows(k: int, rng: Rng) -> None:
    x = rng.normal(size=(3, 11, 3)).astype(np.float32)
    y = rng.integers(4, size=(3, 11))
    lengths = np.array([11, 6, 3])
    model = tagger().compile(optimizers.SGD(0.5), "cross_entropy")
    model.fit(x, y, lengths=lengths, tbptt=k, shuffle=False, verbose=0)

    gru, dense = tagger().layers
    loss, optimizer = losses.CrossEntropy(), optimizers.SGD(0.5)
    inputs, targets = np.ascontiguousarray(x.swapaxes(0, 1)), y.T
    for window in fastrnn.tbptt(gru, inputs, k, lengths=lengths):
        start, stop = window.steps.start, window.steps.stop
        valid = np.clip(lengths - start, 0, stop - start)
        logits, _, tape = dense.forward(window.output, None, valid)
        mask = np.arange(stop - start)[:, None] < valid
        gradient = loss(logits, targets[window.steps], mask=mask)[1]
        g = dense.backward(tape, gradient)
        parameters = {f"1.{name}": array for name, array in dense.parameters.items()}
        gradients = {f"1.{name}": array for name, array in g.parameters.items()}
        found = gru.backward(window.tape, g.input).parameters
        parameters.update({f"0.{name}": array for name, array in gru.parameters.items()})
        gradients.update({f"0.{name}": array for name, array in found.items()})
        optimizer.update(parameters, gradients)
    close(model, fastrnn.Sequential([gru, dense]), 1e-6)
    if k >= 11:
        plain = tagger().compile(optimizers.SGD(0.5), "cross_entropy")
        plain.fit(x, y, lengths=lengths, shuffle=False, verbose=0)
        same(model, plain)


def test_tbptt_needs_steps(rng: Rng) -> None:
    y = rng.integers(4, size=5)
    with pytest.raises(ValueError, match="tbptt: expected a model of sequences"):
        classifier().compile("sgd", "cross_entropy").fit(rng.integers(20, size=(5, 6)), y, tbptt=2)
    model = fastrnn.Sequential([fastrnn.GRU(3, 2, bidirectional=True)]).compile("sgd", "mse")
    with pytest.raises(ValueError, match="tbptt: expected a model of sequences"):
        model.fit(rng.normal(size=(5, 6, 3)), rng.normal(size=(5, 6, 4)), tbptt=2)


def test_modes_are_as_before(rng: Rng) -> None:
    x, y = rng.normal(size=(6, 5, 3)), rng.integers(4, size=(6, 5))
    model = tagger().compile("sgd", "cross_entropy")
    for mode in (True, False):
        model.train(mode)
        model.fit(x, y, verbose=0, validation_split=0.5)
        model.evaluate(x, y)
        model.predict(x)
        model.train_on_batch(x, y)
        assert model.training is mode
        assert all(layer.training is mode for layer in model.layers)
    model.train()
    with pytest.raises(ValueError, match="expected classes in"):
        model.evaluate(x, y + 7)
    assert model.training


def test_predictions_are_in_evaluation_mode(rng: Rng) -> None:
    layers = [fastrnn.Dense(4, 8, seed=0), fastrnn.BatchNorm(8), fastrnn.Dropout(0.5, seed=0)]
    model = fastrnn.Sequential(layers).compile("sgd", "mse")
    x = rng.normal(size=(6, 4)).astype(np.float32)
    model.fit(x, rng.normal(size=(6, 8)), epochs=3, verbose=0)
    first = model.predict(x)
    np.testing.assert_array_equal(first, model.predict(x))
    np.testing.assert_allclose(model.predict(x[:1]), first[:1], atol=1e-6)


def test_no_samples(rng: Rng) -> None:
    model = tagger().compile("sgd", "cross_entropy")
    assert model.predict(np.zeros((0, 5, 3))).shape == (0, 5, 4)
    with pytest.raises(ValueError, match="x: expected numbers"):
        model.predict([])  # neither rows nor sequences
    assert math.isnan(model.evaluate(np.zeros((0, 5, 3)), np.zeros((0, 5), int))["loss"])
    with pytest.raises(ValueError, match="x: expected at least 1 sample, got 0"):
        model.fit(np.zeros((0, 5, 3)), np.zeros((0, 5), int))


def test_sequences_without_steps() -> None:
    model = fastrnn.Sequential(
        [fastrnn.Embedding(5, 3, seed=0), fastrnn.Pool(), fastrnn.Dense(3, 2)]
    )
    bias = model.parameters["2.bias"]
    for x in ([[], []], [[], [0]], np.zeros((2, 0), int), [np.zeros(0, int), np.zeros(0, int)]):
        np.testing.assert_array_equal(model.predict(x)[0], bias)
    model = fastrnn.Sequential([fastrnn.Dense(3, 2, seed=0), fastrnn.Last()])
    empty = np.zeros((0, 3))
    np.testing.assert_array_equal(model.predict([empty, empty]), np.zeros((2, 2)))
    assert np.any(model.predict([empty, np.ones((1, 3))])[1])


def test_lists_of_tensors(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    x, _ = ragged(rng)
    model = tagger()
    expected = model.predict(x)
    for given, output in zip(
        expected, model.predict([torch.tensor(row) for row in x]), strict=True
    ):
        np.testing.assert_array_equal(given, output)


class Halve(fastrnn.Layer):
    """Every second step: a layer of one's own that changes the number of steps."""

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        return x[::2].copy(), None, x.shape

    def output_lengths(self, x: Any, lengths: Any) -> Any:
        return None if lengths is None else (lengths + 1) // 2


def test_predictions_have_their_own_steps(rng: Rng) -> None:
    x = rng.normal(size=(5, 6, 3)).astype(np.float32)
    for steps in (2, 9):
        layers = [fastrnn.GRU(3, 4), fastrnn.Last(), fastrnn.Repeat(steps), fastrnn.Dense(4, 2)]
        model = fastrnn.Sequential(layers)
        expected = model.eval()(x.swapaxes(0, 1)).swapaxes(0, 1)
        for given in (x, list(x)):
            np.testing.assert_allclose(model.predict(given, batch_size=2), expected, atol=1e-6)
    model = fastrnn.Sequential([fastrnn.Dense(3, 2, seed=0), Halve()])
    whole = model.predict(x)
    assert whole.shape == (5, 3, 2)
    parts = model.predict([row[:n] for row, n in zip(x, (6, 1, 4, 3, 5), strict=True)])
    assert [len(part) for part in parts] == [3, 1, 2, 2, 3]
    np.testing.assert_allclose(parts[2], whole[2, :2], atol=1e-6)


class Total(fastrnn.Layer):
    """The sum so far: a stateful layer of one's own."""

    @property
    def stepwise(self) -> bool:
        return True

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        output = np.cumsum(x, axis=0) + (0 if state is None else state)
        return output, output[-1], None


def test_layers_of_ones_own_stream(rng: Rng) -> None:
    x = rng.normal(size=(4, 3, 2)).astype(np.float32)
    model, state = fastrnn.Sequential([Total(), fastrnn.Dense(2, 2, seed=0)]), None
    for x_t, expected in zip(x, model(x), strict=True):
        output, state = model.step(x_t, state)
        np.testing.assert_allclose(output, expected, atol=1e-5)
    with pytest.raises(ValueError, match="step: expected a model whose output at a step"):
        fastrnn.Sequential([Halve()]).step(x[0])


def test_layers_that_are_not_trained_stay(rng: Rng) -> None:
    layers = [fastrnn.GRU(3, 4, recurrent_dropout=0.5, seed=0), fastrnn.BatchNorm(4)]
    model = fastrnn.Sequential([*layers, fastrnn.Dense(4, 2, seed=1)]).compile("adam", "mse")
    x, y = rng.normal(size=(8, 5, 3)), rng.normal(size=(8, 5, 2))
    model.fit(x, y, verbose=0)
    for layer in layers:
        layer.trainable = False
    before = model.state_dict()
    model.compile("adam", "mse")
    history = model.fit(x, y, epochs=5, verbose=0)
    after = model.state_dict()
    changed = {name[0] for name in before if np.any(before[name] != after[name])}
    assert changed == {"2"}
    assert history["loss"][-1] < history["loss"][0]
    assert all(layer.training for layer in model.layers)


def test_modes_of_single_layers_are_as_before(rng: Rng) -> None:
    model = fastrnn.Sequential([fastrnn.GRU(3, 4), fastrnn.BatchNorm(4), fastrnn.Dense(4, 2)])
    model[1].eval()
    model.predict(rng.normal(size=(8, 5, 3)))
    assert [layer.training for layer in model] == [True, False, True]
    assert model.training


def test_predictions_of_an_evaluated_model_pack_once(rng: Rng) -> None:
    model = tagger().eval()
    with pytest.MonkeyPatch.context() as patch:
        packs: list[int] = []
        patch.setattr(fastrnn.GRU, "_pack", lambda self: packs.append(1))
        model.predict(rng.normal(size=(3, 5, 3)))
    assert not packs


def test_predictions_from_several_threads(rng: Rng) -> None:
    layers = [fastrnn.GRU(3, 16, seed=0), fastrnn.Dropout(0.5, seed=1), fastrnn.BatchNorm(16)]
    model = fastrnn.Sequential(layers)
    x = rng.normal(size=(40, 9, 3)).astype(np.float32)
    model.forward(x.swapaxes(0, 1))
    expected = model.predict(x)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda n: model.predict(x[:n]), [40, 3, 3, 3] * 20))
    finally:
        sys.setswitchinterval(interval)
    for result in results:
        np.testing.assert_array_equal(result, expected[: len(result)])
    assert model.training


def test_batches_of_no_weight_change_nothing(rng: Rng) -> None:
    x, y = rng.normal(size=(8, 4)), rng.integers(3, size=8)
    model = fastrnn.Sequential([fastrnn.Dense(4, 3, seed=0)]).compile("adam", "cross_entropy")
    model.fit(x, y, verbose=0)
    before = model.state_dict()
    log = model.train_on_batch(x, y, sample_weight=np.zeros(8))
    assert log == {"loss": 0.0, "gradient_norm": 0.0}
    weights = np.repeat([0.0, 1.0], 4)
    stop = callbacks.TerminateOnNaN()
    options: dict[str, Any] = {"shuffle": False, "batch_size": 4, "verbose": 0}
    assert model.optimizer is not None
    assert model.optimizer.updates == 1
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    history = model.fit(x, y, sample_weight=weights, epochs=2, callbacks=[stop], **options)
    assert history.epochs == [2, 3]
    assert model.optimizer.updates == 3


def test_loss_with_class_weights_does_not_depend_on_batches(rng: Rng) -> None:
    x, y = rng.normal(size=(20, 4)), np.repeat([0, 1], 10)
    model = fastrnn.Sequential([fastrnn.Dense(4, 2, seed=0)])
    model.compile(optimizers.SGD(0.0), "cross_entropy")
    options: dict[str, Any] = {"class_weight": {1: 9.0}, "shuffle": False, "verbose": 0}
    values = [model.fit(x, y, batch_size=b, **options)["loss"][0] for b in (3, 10, 20)]
    assert values == pytest.approx([values[0]] * 3)


def test_a_stop_within_an_epoch_does_not_finish_it(rng: Rng) -> None:
    x, y = rng.normal(size=(12, 4)), rng.normal(size=12)

    def model() -> fastrnn.Sequential:
        return fastrnn.Sequential([fastrnn.Dense(4, 1, seed=0)]).compile("sgd", "mse")

    class Stop(callbacks.Callback):
        def on_batch_end(self, model: Any, batch: int, logs: Any) -> None:
            model.stop_training = True

    whole, stopped = model(), model()
    options: dict[str, Any] = {"batch_size": 3, "seed": 0, "verbose": 0}
    expected = whole.fit(x, y, epochs=2, **options)
    stopped.fit(x, y, callbacks=[Stop()], **options)
    assert stopped.epochs_trained == 0
    history = stopped.fit(x, y, epochs=2, **options)
    same(whole, stopped)
    assert history["loss"] == expected["loss"]
    assert history["gradient_norm"] == expected["gradient_norm"]


def test_series_of_one_feature(rng: Rng) -> None:
    x = rng.normal(size=(4, 6)).astype(np.float32)
    model = fastrnn.Sequential([fastrnn.GRU(1, 3, seed=0), fastrnn.Last(), fastrnn.Dense(3, 1)])
    expected = model.predict(x[:, :, None])
    for given in (x, x.tolist(), list(x)):
        np.testing.assert_array_equal(model.predict(given), expected)


def test_rows_of_targets_in_a_list(rng: Rng) -> None:
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 2))
    model = fastrnn.Sequential([fastrnn.Dense(4, 2, seed=0)]).compile("sgd", "mse")
    assert model.evaluate(x, list(y)) == model.evaluate(x, y)


def test_a_loss_of_ones_own(rng: Rng) -> None:
    def half_square(prediction: Array, target: Array) -> tuple[float, Array]:
        error = prediction - target
        return float((error**2).sum() / 2), error

    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 2)).astype(np.float32)
    model = fastrnn.Sequential([fastrnn.Dense(4, 2, seed=0)])
    model.compile(optimizers.SGD(0.05), half_square)
    history = model.fit(x, y, epochs=50, verbose=0)
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def language_model() -> fastrnn.Sequential:
    return fastrnn.Sequential(
        [
            fastrnn.Embedding(7, 5, seed=0),
            fastrnn.Residual(fastrnn.LSTM(5, 5, seed=1)),
            fastrnn.Dropout(0.5, seed=2),
            fastrnn.GRU(5, 6, num_layers=2, seed=3),
            fastrnn.Dense(6, 7, seed=4),
        ]
    )


def test_step_streams(rng: Rng) -> None:
    model = language_model().eval()
    ids = rng.integers(7, size=(9, 4))
    whole = model(ids)
    state = None
    for t in range(9):
        output, state = model.step(ids[t], state)
        np.testing.assert_allclose(output, whole[t], atol=1e-6)


def test_generate(rng: Rng) -> None:
    model = language_model()
    prompt = rng.integers(7, size=(3, 4))
    greedy = model.generate(prompt, 6, temperature=0.0)
    ids = prompt
    for t in range(6):
        chosen = model.predict(ids)[:, -1].argmax(axis=1)
        np.testing.assert_array_equal(greedy[:, t], chosen)
        ids = np.concatenate([ids, chosen[:, None]], axis=1)
    np.testing.assert_array_equal(model.generate(prompt, 6, top_k=1, seed=0), greedy)
    np.testing.assert_array_equal(model.generate(prompt[0], 6, temperature=0), greedy[0])
    first, again, other = (model.generate(prompt, 50, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert model.generate(prompt, 0).shape == (3, 0)
    assert model.training


def test_generate_reads_padding_as_padding() -> None:
    table = fastrnn.Embedding(7, 5, mask_zero=True, seed=0)
    inner = fastrnn.Sequential([table, fastrnn.GRU(5, 6, seed=1)])
    model = fastrnn.Sequential([inner, fastrnn.Dense(6, 7, seed=2)])
    model.parameters["1.bias"][0] = 9  # padding would be the likeliest
    alone = [model.generate(prompt, 5, temperature=0) for prompt in ([3, 1, 4], [2])]
    together = model.generate([[3, 1, 4, 0], [2, 0, 0, 0]], 5, temperature=0)
    np.testing.assert_array_equal(together, alone)
    assert np.all(together > 0)
    with pytest.raises(ValueError, match="prompt: expected at least one id besides padding"):
        model.generate([[0, 0]], 3)


def test_generate_draws_from_the_model() -> None:
    model = fastrnn.Sequential([fastrnn.Embedding(4, 4, seed=0), fastrnn.Dense(4, 4, seed=1)])
    logits = np.array([0.0, 1.0, 2.0, -1.0])
    model.load_state_dict(
        {"0.weight": np.eye(4), "1.weight": np.tile(logits, (4, 1)).T, "1.bias": np.zeros(4)}
    )
    n = 20_000
    for options, expected in (
        ({}, np.exp(logits)),
        ({"temperature": 0.5}, np.exp(2 * logits)),
        ({"top_k": 2}, np.exp(logits) * [0, 1, 1, 0]),
    ):
        ids = model.generate(np.zeros((n, 1), int), 1, seed=0, **options)
        shares = np.bincount(ids[:, 0], minlength=4) / n
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.015)


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    models: list[tuple[list[Any], list[str]]] = [
        (
            [fastrnn.LSTM(3, 8, bidirectional=True), fastrnn.Pool(), fastrnn.Dense(16, 2)],
            ["T, B, 16", "B, 16", "B, 2"],
        ),
        ([fastrnn.Dense(3, 8), fastrnn.Last(), fastrnn.Dense(8, 2)], ["T, B, 8", "B, 8", "B, 2"]),
        (
            [fastrnn.Dense(3, 8), fastrnn.Repeat(5), fastrnn.GRU(8, 4)],
            ["B, 8", "5, B, 8", "5, B, 4"],
        ),
        ([fastrnn.Dropout(0.5), fastrnn.BatchNorm(8)], ["B, 8", "B, 8"]),
        ([fastrnn.Activation("tanh")], ["?"]),
    ]
    for layers, shapes in models:
        model = fastrnn.Sequential(layers)
        model.summary()
        lines = capsys.readouterr().out.splitlines()
        for layer, shape, line in zip(layers, shapes, lines[2:], strict=False):
            assert line.startswith(repr(layer))
            assert f" {shape} " in line
            assert f" {sum(a.size for a in layer.parameters.values())} " in line
        assert lines[-1].startswith(f"{sum(a.size for a in model.parameters.values())} parameters")
    # W_ih 4·8·3 and W_hh 4·8·8 of two directions.
    assert models[0][0][0].multiply_adds(("T", "B", 3)) == 2 * (4 * 8 * 3 + 4 * 8 * 8)


def test_logits_are_expected() -> None:
    for end, loss in (
        (fastrnn.Activation("softmax"), "cross_entropy"),
        (fastrnn.Activation("log_softmax"), "cross_entropy"),
        (fastrnn.Dense(4, 2, "softmax"), "cross_entropy"),
        (fastrnn.Sequential([fastrnn.Dense(4, 1, "sigmoid")]), "binary_cross_entropy"),
    ):
        with pytest.raises(ValueError, match="loss: expected a model that ends in logits"):
            fastrnn.Sequential([fastrnn.Dense(4, 4), end]).compile("sgd", loss)
    fastrnn.Sequential([fastrnn.Dense(4, 4, "sigmoid")]).compile("sgd", "mse")


def wrong_calls() -> dict[str, tuple[Any, type[Exception], str]]:
    ids, y = np.ones((5, 6), int), np.zeros(5, int)
    x, steps = np.zeros((5, 6, 3), np.float32), np.zeros((5, 6), int)

    def fit(*data: Any, model: Any = classifier, **options: Any) -> Any:
        compiled = model().compile("sgd", "cross_entropy")
        return lambda: compiled.fit(*data, verbose=0, **options)

    return {
        "no layers": (lambda: fastrnn.Sequential([]), ValueError, "layers: expected at least 1"),
        "no layer": (lambda: fastrnn.Sequential([3]), TypeError, r"layers\[0\]: expected a layer"),
        "a class": (
            lambda: fastrnn.Sequential([fastrnn.Last]),
            TypeError,
            r"layers\[0\]: expected a layer, got Last",
        ),
        "twice": (
            lambda: fastrnn.Sequential([layer := fastrnn.Dense(2, 2), layer]),
            ValueError,
            "different layers, got one twice",
        ),
        "not compiled": (lambda: classifier().fit(ids, y), RuntimeError, "call compile"),
        "not compiled 2": (lambda: classifier().evaluate(ids, y), RuntimeError, "call compile"),
        "metrics": (
            lambda: classifier().compile("sgd", "mse", "accuracy"),
            TypeError,
            "metrics: expected a list",
        ),
        "metric": (
            lambda: classifier().compile("sgd", "mse", ["speed"]),
            ValueError,
            "metric: expected one of",
        ),
        "metric twice": (
            lambda: classifier().compile("sgd", "mse", ["mae", "mae"]),
            ValueError,
            "metrics: expected different names",
        ),
        "loss": (lambda: classifier().compile("sgd", "mean"), ValueError, "loss: expected one of"),
        "optimizer": (
            lambda: classifier().compile("best"),
            ValueError,
            "optimizer: expected one of",
        ),
        "float ids": (fit(ids * 1.0, y), TypeError, r"x: expected integer ids \(n, T\)"),
        "ids of rows": (fit(ids[:, :, None], y), ValueError, r"x: expected integer ids \(n, T\)"),
        "ids out of range": (fit(ids * 20, y), ValueError, r"x: expected ids in \[0, 20\), got 20"),
        "y of other size": (fit(ids, y[:3]), ValueError, "y: expected 5 samples as x, got 3"),
        "scalar y": (fit(ids, 3), ValueError, "y: expected an array with samples first, got 3"),
        "weights": (
            fit(ids, y, sample_weight=[1.0]),
            ValueError,
            "sample_weight: expected 5 samples",
        ),
        "negative weights": (fit(ids, y, sample_weight=-np.ones(5)), ValueError, "sample_weight"),
        "string labels": (fit(ids, np.array(list("abcde"))), TypeError, "y: expected integers"),
        "lengths": (
            fit(ids, y, lengths=[7] * 5),
            ValueError,
            r"lengths: expected integers in \[0, 6\], got 7",
        ),
        "some lengths": (
            fit(ids, y, lengths=[1]),
            ValueError,
            r"lengths: expected integers \(5,\)",
        ),
        "lengths of a list": (
            fit([[1, 2], [3]], [0, 1], lengths=[1, 1]),
            ValueError,
            "lengths: expected None for a list",
        ),
        "one label for steps": (fit(x, y, model=tagger), ValueError, "y: expected 6 steps"),
        "few labels for steps": (
            fit(x, steps[:, :4], model=tagger),
            ValueError,
            "y: expected 6 steps",
        ),
        "ragged labels": (
            fit([x[0], x[1][:3]], [steps[0], steps[1][:2]], model=tagger),
            ValueError,
            "y: expected sequences as long as those of x",
        ),
        "ragged labels of samples": (
            fit(ids[:2], [[1], [2, 3]]),
            ValueError,
            "y: expected an array, as the model has one output per sequence",
        ),
        "features": (
            fit(x[:, :, :2], steps, model=tagger),
            ValueError,
            r"x: expected \(n, T, 3\), got",
        ),
        "rows for steps": (
            fit(x[:, 0], y, model=tagger),
            ValueError,
            r"x: expected \(n, T, 3\), got",
        ),
        "long labels": (
            fit(x, np.zeros((5, 9), int), model=tagger, lengths=[6, 1, 2, 3, 4]),
            ValueError,
            "y: expected 6 steps",
        ),
        "long weights": (
            fit(x, steps, model=tagger, sample_weight=np.ones((5, 9))),
            ValueError,
            r"sample_weight: expected numbers \(n,\) or \(n, 6\), got \(n, 9\)",
        ),
        "ragged labels in windows": (
            fit([x[0], x[1][:3]], [steps[0][:3], steps[1]], model=tagger, tbptt=2),
            ValueError,
            "y: expected sequences as long as those of x",
        ),
        "no labels": (fit(ids, None), TypeError, "y: expected targets, got None"),
        "one callback": (
            fit(ids, y, callbacks=callbacks.EarlyStopping("loss")),
            TypeError,
            "callbacks: expected a list",
        ),
        "large numbers": (
            fit(x.astype(float) + 1e300, steps, model=tagger),
            ValueError,
            "x: expected numbers that fit float32",
        ),
        "one class": (
            lambda: (
                fastrnn.Sequential([fastrnn.Dense(3, 1)])
                .compile("sgd", "cross_entropy")
                .fit(x[:, 0], y[:, None], verbose=0)
            ),
            ValueError,
            "prediction: expected at least 2 classes",
        ),
        "sizes of layers": (
            lambda: fastrnn.Sequential([fastrnn.LSTM(3, 4), fastrnn.Last(), fastrnn.Dense(5, 2)]),
            ValueError,
            r"layers\[2\]: expected 4 inputs, as layers\[1\] gives, got Dense\(5, 2\)",
        ),
        "dtypes of layers": (
            lambda: fastrnn.Sequential([fastrnn.Dense(3, 4), fastrnn.Dense(4, 2, dtype=float)]),
            ValueError,
            "layers: expected one dtype, got float32 and float64",
        ),
        "trees": (
            lambda: fastrnn.Sequential([fastrnn.TreeLSTM(3, 4)]),
            TypeError,
            r"layers\[0\]: expected a layer of sequences or rows, got a TreeLSTM",
        ),
        "mixed features": (
            fit([np.zeros((2, 3)), np.zeros((2, 4))], [[0, 0], [1, 1]], model=tagger),
            ValueError,
            "x: expected sequences with equal features",
        ),
        "epochs": (fit(ids, y, epochs=0), ValueError, "epochs: expected an integer >= 1"),
        "batch": (fit(ids, y, batch_size=0), ValueError, "batch_size: expected an integer >= 1"),
        "split": (fit(ids, y, validation_split=1.5), ValueError, "validation_split"),
        "no split": (fit(ids, y, validation_split=0.01), ValueError, "validation_split"),
        "two validations": (
            fit(ids, y, validation_split=0.5, validation_data=(ids, y)),
            ValueError,
            "validation_split: expected 0 beside",
        ),
        "validation": (
            fit(ids, y, validation_data=ids),
            ValueError,
            "validation_data: expected",
        ),
        "callbacks": (fit(ids, y, callbacks=[3]), TypeError, "callbacks: expected Callback"),
        "seed": (fit(ids, y, seed=-1), ValueError, "seed: expected an integer >= 0"),
        "shuffle": (fit(ids, y, shuffle=2), TypeError, "shuffle: expected True or False"),
        "class": (
            fit(ids, y, class_weight={9: 1.0}),
            ValueError,
            r"class_weight: expected an integer in \[0, 4\)",
        ),
        "window": (fit(x, steps, model=tagger, tbptt=0), ValueError, "tbptt: expected an integer"),
        "prompt": (
            lambda: tagger().generate([], 3),
            ValueError,
            "prompt: expected at least one id",
        ),
        "temperature": (
            lambda: language_model().generate([1], 3, temperature=-1),
            ValueError,
            "temperature",
        ),
        "top_k": (lambda: language_model().generate([1], 3, top_k=0), ValueError, "top_k"),
        "step": (
            lambda: classifier().step(np.array([1])),
            ValueError,
            "step: expected a model whose output at a step",
        ),
        "state": (
            lambda: tagger().forward(np.zeros((2, 1, 3), np.float32), (None,)),
            ValueError,
            "state: expected a tuple of 2",
        ),
    }


@pytest.mark.parametrize("name", wrong_calls())
def test_wrong_calls(name: str) -> None:
    call, kind, message = wrong_calls()[name]
    with pytest.raises(kind, match=message):
        call()
