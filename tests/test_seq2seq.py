"""Sequences to sequences: gradients, parity with torch, search, saving, wrong calls."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastrnn import (
    GRU,
    LSTM,
    RNN,
    Attention,
    Dense,
    Dropout,
    Embedding,
    Last,
    LayerNorm,
    Pool,
    Residual,
    Sequential,
)
from fastrnn.seq2seq import Seq2Seq
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
START, END, V = 1, 2, 6
CELLS: dict[str, Any] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
X = [[3, 4, 5, 6], [3], [], [6, 5]]
Y = [[3, 4], [5], [3, 5, 4], []]


def build(
    cell: str = "LSTM",
    *,
    score: str | None = "general",
    bidirectional: bool = False,
    layers: int = 1,
    dtype: Any = np.float64,
    seed: int = 0,
    **options: Any,
) -> Seq2Seq:
    """Make a small model whose parameters are far enough from 0 for clear preferences."""
    D = 2 if bidirectional else 1
    recurrent, H, E = CELLS[cell], 3, 2
    encoder = recurrent(
        E, H, layers, bidirectional=bidirectional, **options, seed=seed, dtype=dtype
    )
    R = options.get("proj_size", 0)
    if R:
        options = {"proj_size": D * R}
    decoder = recurrent(E, D * H, layers, **options, seed=seed + 1, dtype=dtype)
    Q = D * (R or H)
    M = encoder.output_shape(("T", "B", E))[-1]
    attention = None
    if score is not None:
        attention = Attention(Q, M, score=score, seed=seed + 2, dtype=dtype)
    model = Seq2Seq(
        Sequential([Embedding(7, E, mask_zero=True, seed=seed + 3, dtype=dtype), encoder]),
        Sequential([Embedding(V, E, seed=seed + 4, dtype=dtype), decoder]),
        attention,
        Dense(Q if score is None else Q + M, V, seed=seed + 5, dtype=dtype),
        start=START,
        end=END,
    )
    rng = np.random.default_rng(seed)
    for name, array in model.parameters.items():
        array[...] = rng.normal(size=array.shape)
        if name == "encoder.0.weight":
            array[0] = 0
    return model.compile("adam")


def batch_of(model: Seq2Seq, x: Any = X, y: Any = Y, **options: Any) -> Any:
    samples = model._samples(x, y, **options)
    return samples.batch(np.arange(len(samples)))


def alone(x: Any) -> Array:
    """Return a source as an array of one, as NumPy would take an empty list for floats."""
    return (x if isinstance(x, np.ndarray) else np.array(x, np.int64))[np.newaxis]


def loss_of(model: Seq2Seq, batch: Any) -> float:
    return model._loss(model._pass(batch), None)[0]


def check_gradients(model: Seq2Seq, batch: Any, width: float = 1e-6) -> None:
    step = model._pass(batch)
    _, slope = model._loss(step, None)
    gradients = model._gradients(step.tape, slope)
    assert gradients.keys() == model.parameters.keys()
    has_padding = isinstance(model.encoder.layers[0], Embedding)
    for name, array in model.parameters.items():
        expected = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            if has_padding and name == "encoder.0.weight" and index[0] == 0:
                continue  # of padding, which stays 0
            before = array[index]
            array[index] = before + width
            above = loss_of(model, batch)
            array[index] = before - width
            expected[index] = (above - loss_of(model, batch)) / (2 * width)
            array[index] = before
        np.testing.assert_allclose(gradients[name], expected, atol=2e-8, err_msg=name)
    assert any(np.abs(gradients[name]).max() > 1e-3 for name in gradients if "encoder" in name)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("score", [None, "dot", "general", "concat", "additive"])
def test_gradients(cell: str, score: str | None) -> None:
    model = build(cell, score=score)
    check_gradients(model, batch_of(model))


@pytest.mark.parametrize("score", [None, "general"])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("LSTM", {"bidirectional": True, "layers": 2}),
        ("GRU", {"bidirectional": True, "layers": 2}),
        ("LSTM", {"proj_size": 2, "bidirectional": True}),
        ("LSTM", {"layers": 2, "batch_first": True}),
    ],
)
def test_gradients_of_stacked_states(cell: str, score: str | None, options: Any) -> None:
    model = build(cell, score=score, **options)
    check_gradients(model, batch_of(model))


def mixed_model(score: str | None = "general", dtype: Any = np.float64) -> Seq2Seq:
    """Vectors as source, and stacks of stacks on either side."""
    kind: dict[str, Any] = {"dtype": dtype}
    encoder = Sequential(
        [
            Dense(2, 3, "tanh", seed=0, **kind),
            Residual(GRU(3, 3, seed=1, **kind)),
            Sequential([LayerNorm(3, **kind), LSTM(3, 4, seed=2, **kind)]),
            Dense(4, 2, "tanh", seed=3, **kind),
        ]
    )
    decoder = Sequential(
        [
            Embedding(V, 3, seed=4, **kind),
            Sequential([Residual(GRU(3, 3, seed=5, **kind))]),
            LSTM(3, 4, seed=6, **kind),
            Dense(4, 3, "tanh", seed=7, **kind),
        ]
    )
    attention = None if score is None else Attention(3, 2, score=score, seed=8, **kind)
    inputs = 3 if score is None else 5
    output = Sequential(
        [
            Dense(inputs, 4, "tanh", seed=9, **kind),
            RNN(4, 3, seed=10, **kind),
            Dense(3, V, seed=11, **kind),
        ]
    )
    return Seq2Seq(encoder, decoder, attention, output, start=START, end=END).compile()


def vectors(rng: Rng) -> list[Array]:
    return [rng.normal(size=(T, 2)) for T in (4, 1, 0, 2)]


@pytest.mark.parametrize("score", [None, "general"])
def test_gradients_of_nested_stacks(score: str | None, rng: Rng) -> None:
    model = mixed_model(score)
    check_gradients(model, batch_of(model, vectors(rng)))


def test_gradients_with_dropout_and_weights() -> None:
    model = build()
    dropout = Dropout(0.5, seed=0)
    model.output = Sequential([dropout, model.output])
    batch = batch_of(model, sample_weight=[1.0, 0.0, 2.0, 0.5])
    forward = model._pass

    def with_the_same_mask(batch: Any) -> Any:
        dropout._mask_seed = 7
        return forward(batch)

    model._pass = with_the_same_mask  # type: ignore
    check_gradients(model, batch)


def test_parity_with_torch() -> None:
    torch = pytest.importorskip("torch")
    model = build("LSTM", score="general")
    p = {name: torch.from_numpy(array.copy()) for name, array in model.parameters.items()}
    for tensor in p.values():
        tensor.requires_grad_()
    x, y = [[3, 4, 5, 6], [3, 6], [5]], [[3, 4], [5], [3, 5, 4]]

    def lstm(part: str, ids: list[int], state: Any) -> Any:
        layer = torch.nn.LSTM(2, 3).double()
        weights = {k: p[f"{part}.1.{k}"] for k, _ in layer.named_parameters()}
        inputs = p[f"{part}.0.weight"][torch.tensor(ids)][:, None]
        return torch.func.functional_call(layer, weights, (inputs, state))

    losses = []
    for source, target in zip(x, y, strict=True):
        memory, state = lstm("encoder", source, (torch.zeros(1, 1, 3).double(),) * 2)
        h, _ = lstm("decoder", [START, *target], state)
        weights = torch.softmax(h[:, 0] @ p["attention.weight"] @ memory[:, 0].T, dim=1)
        features = torch.cat((h[:, 0], weights @ memory[:, 0]), dim=1)
        logits = features @ p["output.weight"].T + p["output.bias"]
        wanted = torch.tensor([*target, END])
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
    loss = torch.cat(losses).mean()
    loss.backward()

    step = model._pass(batch_of(model, x, y))
    value, slope = model._loss(step, None)
    assert value == pytest.approx(loss.item(), abs=1e-12)
    for name, gradient in model._gradients(step.tape, slope).items():
        np.testing.assert_allclose(gradient, p[name].grad.numpy(), atol=1e-12, err_msg=name)


def test_bidirectional_states_lie_side_by_side() -> None:
    model = build("LSTM", score=None, bidirectional=True, layers=2)
    batch = batch_of(model)
    _, initial, _, _ = model._encode(batch, keep=False)
    _, (_, final), _ = model.encoder.forward(batch.x, None, batch.lengths)
    for joined, parts in zip(initial[1], final, strict=True):
        assert joined.shape == (2, 4, 6)
        np.testing.assert_array_equal(joined[0], np.hstack((parts[0], parts[1])))
        np.testing.assert_array_equal(joined[1], np.hstack((parts[2], parts[3])))


def test_lists_and_padded_arrays_are_the_same() -> None:
    model = build()
    padded_x, padded_y = np.zeros((4, 6), np.int32), np.zeros((4, 5), np.int32)
    for i in range(4):
        padded_x[i, : len(X[i])], padded_y[i, : len(Y[i])] = X[i], Y[i]
    assert model.evaluate(X, Y) == model.evaluate(padded_x, padded_y)
    arrays = np.empty(4, object)
    arrays[:] = [np.array(row, np.int64) for row in Y]
    assert model.evaluate(X, Y) == model.evaluate(X, arrays)
    assert model.evaluate(X, Y) != model.evaluate(X, Y[::-1])


def test_loss_and_accuracy_are_over_all_ids() -> None:
    model = build().compile("adam", metrics=["accuracy"])
    total = right = count = 0.0
    for x, y in zip(X, Y, strict=True):
        step = model._pass(batch_of(model, alone(x), [y]))
        wanted = [*y, END]
        assert step.target[:, 0].tolist() == wanted
        total += model._loss(step, None)[0] * len(wanted)
        right += np.sum(step.prediction[:, 0].argmax(axis=1) == wanted)
        count += len(wanted)
    for batch_size in (1, 3, 4):
        logs = model.evaluate(X, Y, batch_size=batch_size)
        assert logs["loss"] == pytest.approx(total / count, rel=1e-12)
        assert logs["accuracy"] == pytest.approx(right / count)


# Search.


def rescored(model: Seq2Seq, x: Any, y: Any) -> float:
    """Compute the log-probability of a target as training does."""
    return -(len(y) + 1) * loss_of(model, batch_of(model, alone(x), [y]))


def greedy(model: Seq2Seq, x: Any, max_steps: int) -> list[int]:
    """Take the likeliest id each time, by running all again for each."""
    ids: list[int] = []
    while len(ids) < max_steps:
        # An id that is not looked at stands for the next.
        logits = model._pass(batch_of(model, alone(x), [[*ids, 3]])).prediction[len(ids), 0]
        logits[[0, START]] = -np.inf
        best = int(logits.argmax())
        if best == END:
            break
        ids.append(best)
    return ids


def opinionated(cell: str, **options: Any) -> Seq2Seq:
    """Make a model whose translations differ from source to source."""
    model = build(cell, **options)
    for array in model.parameters.values():
        array *= 2.5
    model.parameters["output.bias"][...] = 0
    model.parameters["output.bias"][END] = -2
    return model


SEARCHED = [
    {"cell": "LSTM", "score": "general"},
    {"cell": "GRU", "score": None},
    {"cell": "GRU", "score": "additive", "bidirectional": True, "layers": 2},
]


@pytest.mark.parametrize("options", SEARCHED)
def test_beam_of_one_is_greedy(options: Any) -> None:
    sizes = set()
    for seed in range(5):
        model = opinionated(**options, seed=seed)
        found, scores = model.translate(X, max_steps=5, return_scores=True)
        for x, ids, score in zip(X, found, scores, strict=True):
            assert ids.dtype == np.int64
            assert ids.tolist() == greedy(model, x, 5)
            assert score == pytest.approx(rescored(model, x, ids), abs=1e-10)
            sizes.add(len(ids))
    assert len(sizes) > 2  # else the test shows little


def every_target(max_steps: int) -> list[tuple[int, ...]]:
    allowed = [i for i in range(V) if i not in (0, START, END)]
    return [y for T in range(max_steps + 1) for y in itertools.product(allowed, repeat=T)]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("options", SEARCHED)
def test_large_beam_is_exhaustive(options: Any, penalty: float) -> None:
    model = opinionated(**options, seed=4)
    targets = every_target(3)
    found, scores = model.translate(
        X, max_steps=3, beam=100, length_penalty=penalty, return_scores=True
    )
    for x, ids, score in zip(X, found, scores, strict=True):
        values = [rescored(model, x, y) / (len(y) + 1) ** penalty for y in targets]
        best = int(np.argmax(values))
        assert tuple(ids) == targets[best]
        assert score == pytest.approx(values[best], abs=1e-10)


def test_probabilities_of_all_targets_and_of_what_is_never_chosen_sum_to_one() -> None:
    # That is what makes scores log-probabilities: no target is counted twice or left out.
    model = build()
    first = model._pass(batch_of(model, [[3]], [[]])).prediction[0, 0]
    p = np.exp(first - np.logaddexp.reduce(first))
    total = p[0] + p[START] + math.exp(rescored(model, [3], ()))
    for i in range(3, V):
        second = model._pass(batch_of(model, [[3]], [[i]])).prediction[1, 0]
        ends = math.exp(rescored(model, [3], (i,)))
        total += ends / np.exp(second[END] - np.logaddexp.reduce(second))
    assert total == pytest.approx(1)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_larger_beams_score_no_less_on_average(penalty: float, rng: Rng) -> None:
    x = [rng.integers(1, 7, size=rng.integers(1, 6)) for _ in range(30)]
    model = opinionated("GRU", seed=8)
    means, results = [], []
    for beam in (1, 2, 4, 16):
        found, scores = model.translate(
            x, max_steps=6, beam=beam, length_penalty=penalty, return_scores=True
        )
        for source, ids, score in zip(x, found, scores, strict=True):
            expected = rescored(model, source, ids) / (len(ids) + 1) ** penalty
            assert score == pytest.approx(expected, abs=1e-10)
        means.append(scores.mean())
        results.append([ids.tolist() for ids in found])
    assert means == sorted(means)
    assert means[-1] > means[0] + 1e-3
    assert results[0] != results[-1]


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("score", [None, "general"])
def test_a_source_alone_is_translated_as_among_others(
    beam: int, score: str | None, rng: Rng
) -> None:
    x = [rng.integers(1, 7, size=rng.integers(0, 6)) for _ in range(20)]
    model = opinionated("GRU", score=score, seed=5)
    options: dict[str, Any] = {"max_steps": 5, "beam": beam}
    together = model.translate(x, **options)
    assert len({tuple(ids) for ids in together}) > 3
    for batch_size in (1, 7):
        others = model.translate(x, batch_size=batch_size, **options)
        assert [ids.tolist() for ids in others] == [ids.tolist() for ids in together]


def test_search_of_nested_stacks(rng: Rng) -> None:
    # With a recurrent layer in the output, whose state follows the beams, too.
    model = mixed_model()
    for array in model.parameters.values():
        array *= 2
    x, targets = vectors(rng), every_target(2)
    found, scores = model.translate(x, max_steps=2, beam=20, return_scores=True)
    for source, ids, score in zip(x, found, scores, strict=True):
        values = [rescored(model, source, y) for y in targets]
        assert tuple(ids) == targets[int(np.argmax(values))]
        assert score == pytest.approx(max(values), abs=1e-10)


@pytest.mark.parametrize("beam", [1, 4])
def test_attention_of_translations(beam: int) -> None:
    sizes = set()
    for seed in range(8):
        model = opinionated("GRU", score="dot", seed=seed)
        found, weights, scores = model.translate(
            X, max_steps=6, beam=beam, length_penalty=1.5, return_attention=True, return_scores=True
        )
        assert scores.shape == (4,)
        for x, ids, matrix in zip(X, found, weights, strict=True):
            assert matrix.shape == (len(ids), len(x))
            batch = batch_of(model, alone(x), [ids])
            memory, initial, lengths, _ = model._encode(batch, keep=False)
            h = model.decoder.forward(np.array([[START], *([i] for i in ids)]), initial)[0]
            assert model.attention is not None
            expected = model.attention.attend(h, memory, lengths)[1][: len(ids), 0]
            np.testing.assert_allclose(matrix, expected, atol=1e-12)
            sizes.add(len(ids))
    assert len(sizes) > 2


def test_translations_of_no_and_of_empty_sources() -> None:
    model = build()
    assert model.translate(np.zeros((0, 4), np.int64), max_steps=3) == []
    found, weights = model.translate(np.zeros((2, 0), np.int64), max_steps=3, return_attention=True)
    assert found[0].tolist() == found[1].tolist()
    assert weights[0].shape == (len(found[0]), 0)


def test_translate_is_in_evaluation_mode_and_leaves_the_mode() -> None:
    model = build()
    model.output = Sequential([Dropout(0.9, seed=0), model.output])
    first = model.translate(X, max_steps=5)
    assert model.training
    assert model.output.training
    assert [i.tolist() for i in model.translate(X, max_steps=5)] == [i.tolist() for i in first]
    model.eval()
    model.translate(X, max_steps=5)
    assert not model.training


def test_max_steps_bounds_and_ids_are_never_padding_or_start() -> None:
    model = build()
    model.parameters["output.bias"][[0, START]] = 1000
    model.parameters["output.bias"][END] = -1000
    for beam in (1, 3):
        for ids in model.translate(X, max_steps=4, beam=beam):
            assert len(ids) == 4
            assert not set(ids.tolist()) & {0, START, END}
    model.parameters["output.bias"][...] = np.nan
    with pytest.raises(ValueError, match="expected finite logits"):
        model.translate(X, max_steps=4)


# Training.


def reversals(n: int, seed: int) -> tuple[list[Array], list[Array]]:
    rng = np.random.default_rng(seed)
    x = [rng.integers(3, 7, size=rng.integers(1, 6)) for _ in range(n)]
    return x, [row[::-1] for row in x]


def model_of_reversals(attention: bool, dropout: float = 0.0) -> Seq2Seq:
    output = Dense(64 if attention else 32, 7, seed=4)
    return Seq2Seq(
        Sequential([Embedding(7, 16, mask_zero=True, seed=0), GRU(16, 32, seed=1)]),
        Sequential([Embedding(7, 16, seed=2), GRU(16, 32, seed=3)]),
        Attention(32, score="general", seed=6) if attention else None,
        Sequential([Dropout(dropout, seed=5), output]),
        start=START,
        end=END,
    )


@pytest.mark.parametrize("attention", [False, True])
def test_learns_to_reverse(attention: bool) -> None:
    model = model_of_reversals(attention).compile("adam", metrics=["accuracy"])
    assert model.optimizer is not None
    model.optimizer.learning_rate = 5e-3
    x, y = reversals(2000, 0)
    history = model.fit(x, y, epochs=12, seed=0, verbose=0, validation_split=0.1)
    assert history["val_accuracy"][-1] > 0.95
    x, y = reversals(200, 1)
    found = model.translate(x, max_steps=8, beam=2)
    right = [np.array_equal(a, b) for a, b in zip(found, y, strict=True)]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_loaded_model_goes_on_as_if_never_saved(suffix: str, tmp_path: Path) -> None:
    x, y = reversals(100, 0)
    options: dict[str, Any] = {"seed": 0, "verbose": 0, "batch_size": 16}
    whole = model_of_reversals(True, 0.2).compile("adam", metrics=["accuracy"])
    whole.fit(x, y, epochs=4, **options)
    first = model_of_reversals(True, 0.2).compile("adam", metrics=["accuracy"])
    first.fit(x, y, epochs=2, **options)
    path = tmp_path / f"model{suffix}"
    first.save(path)
    second = Seq2Seq.load(path)
    assert repr(second) == repr(first)
    assert second.evaluate(x, y) == first.evaluate(x, y)
    second.fit(x, y, epochs=2, **options)
    assert second.epochs_trained == 4
    for name, array in whole.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], array, err_msg=name)
    again = [ids.tolist() for ids in second.translate(x, max_steps=5, beam=3)]
    assert again == [ids.tolist() for ids in whole.translate(x, max_steps=5, beam=3)]
    with pytest.raises(ValueError, match="expected a Sequential, got a Seq2Seq"):
        Sequential.load(path)


def test_a_model_without_attention_is_saved(tmp_path: Path) -> None:
    model = build(score=None, bidirectional=True)
    model.save(tmp_path / "model.npz", include_training=False)
    again = Seq2Seq.load(tmp_path / "model.npz")
    assert again.attention is None
    assert again.optimizer is None
    assert again.compile().evaluate(X, Y) == model.evaluate(X, Y)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(duplicate: Any) -> None:
    model = build()
    again = duplicate(model)
    assert again.evaluate(X, Y) == model.evaluate(X, Y)
    again.train_on_batch(X, Y)
    assert again.evaluate(X, Y) != model.evaluate(X, Y)


def test_train_on_batch_lowers_the_loss() -> None:
    model = build()
    before = model.evaluate(X, Y)["loss"]
    logs = [model.train_on_batch(X, Y) for _ in range(5)]
    assert logs[0]["loss"] == pytest.approx(before)
    assert model.evaluate(X, Y)["loss"] < before
    weighted = build().train_on_batch(X, Y, sample_weight=[1, 0, 0, 0])["loss"]
    assert weighted == pytest.approx(build().evaluate(X[:1], Y[:1])["loss"])
    assert build().train_on_batch(X, Y, class_weight={END: 3.0})["loss"] != logs[0]["loss"]


# Wrong calls.


def embedding(**options: Any) -> Embedding:
    return Embedding(V, 2, seed=0, **options)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"encoder": GRU(2, 3)}, TypeError, "encoder: expected a Sequential, got GRU"),
        ({"decoder": Sequential}, TypeError, "decoder: expected a Sequential, got Sequential"),
        ({"decoder": [GRU(2, 3)]}, TypeError, "decoder: expected an Embedding of ids first"),
        ({"attention": "dot"}, TypeError, "attention: expected a Attention, got str"),
        ({"start": 0}, ValueError, r"start: expected an integer in \[1, 6\), got 0"),
        ({"end": 6}, ValueError, r"end: expected an integer in \[1, 6\), got 6"),
        ({"end": 1}, ValueError, "end: expected an id other than start, got 1"),
        ({"decoder": [embedding(), LSTM(2, 3)]}, ValueError, "expected GRU with 1 layers of 3"),
        ({"decoder": [embedding(), GRU(2, 4)]}, ValueError, "of 3 units to start .* of 4 units in"),
        ({"decoder": [embedding(), GRU(2, 3, 2)]}, ValueError, "got GRU with 2 layers"),
        ({"encoder": [GRU(2, 3, bidirectional=True)]}, ValueError, "of 6 units to start from"),
        ({"decoder": [embedding(), GRU(2, 3), GRU(3, 3)]}, ValueError, "got 2 for 1"),
        ({"decoder": [embedding(), Dense(2, 3)]}, ValueError, "at least 1, got 0 for 1"),
        ({"decoder": [embedding(), GRU(2, 3), Last()]}, ValueError, "decoder: expected layers who"),
        ({"output": Sequential([Pool(), Dense(6, V)])}, ValueError, "output: expected layers whos"),
        ({"output": Dense(3, V)}, ValueError, "6 inputs as the decoder's output and the context"),
        ({"output": Dense(6, 7)}, ValueError, "output: expected 6 logits as ids of the decoder"),
        ({"attention": None}, ValueError, "output: expected 3 inputs as the decoder's output, got"),
        ({"attention": Attention(4)}, ValueError, "expected 3 query_size as the decoder's"),
        ({"attention": Attention(3, 4, score="general")}, ValueError, "3 memory_size as the enco"),
        ({"output": Dense(6, V, dtype=np.float64)}, ValueError, "one dtype .*, got float32, float"),
    ],
)
def test_parts_that_do_not_fit(change: dict[str, Any], kind: Any, message: str) -> None:
    parts: dict[str, Any] = {
        "encoder": [GRU(2, 3)],
        "decoder": [embedding(), GRU(2, 3)],
        "output": Dense(6, V),
        "attention": Attention(3),
        "start": START,
        "end": END,
    } | change
    for name in ("encoder", "decoder"):
        if isinstance(parts[name], list):
            parts[name] = Sequential(parts[name])
    with pytest.raises(kind, match=message):
        Seq2Seq(**parts)


def test_projections_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="of 3 units projected to 2 to start"):
        Seq2Seq(
            Sequential([LSTM(2, 3, proj_size=2)]),
            Sequential([embedding(), LSTM(2, 3)]),
            output=Dense(3, V),
            start=START,
            end=END,
        )


@pytest.mark.parametrize("score", [None, "general"])
def test_default_output_is_dense(score: str | None) -> None:
    given = build(score=score)
    parts = (given.encoder, given.decoder, given.attention)
    model, again, other = (Seq2Seq(*parts, start=START, end=END, seed=s) for s in (1, 1, 2))
    assert isinstance(model.output, Dense)
    assert repr(model.output) == repr(given.output)
    weights = [each.parameters["output.weight"] for each in (model, again, other)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.any(weights[0] != weights[2])


def test_a_layer_in_two_parts() -> None:
    shared = embedding()
    with pytest.raises(ValueError, match="expected layers of its own"):
        Seq2Seq(
            Sequential([shared, GRU(2, 3)]),
            Sequential([shared, GRU(2, 3)]),
            output=Dense(3, V),
            start=START,
            end=END,
        )


@pytest.mark.parametrize(
    ("y", "kind", "message"),
    [
        ([[3], [4], [5], [END]], ValueError, r"y: expected ids in \[1, 6\) without .*, got 2"),
        ([[3], [4], [5], [START, 3]], ValueError, "without start 1 and end 2, .* got 1"),
        ([[3], [4], [5], [6]], ValueError, "got 6"),
        ([[3], [4], [5], [-1]], ValueError, "got -1"),
        ([[3], [4], [5], [3, 0, 3]], ValueError, "padding at the end only, got 0"),
        ([[3], [4], [5], [3.5]], TypeError, "y: expected sequences of integer ids"),
        (["a", "b", "c", "d"], TypeError, "y: expected sequences of integer ids"),
        ([3, 4, 5, 3], TypeError, "y: expected sequences of integer ids"),
        (np.array([3, 4, 5, 3]), ValueError, r"y: expected ids \(n, T\) or a list .*, got \(4,\)"),
        (np.ones((4, 3, 2), int), ValueError, r"got \(4, 3, 2\)"),
        ("abcd", ValueError, "got str"),
        ([[3], [4], [5]], ValueError, "y: expected 4 samples as x, got 3"),
    ],
)
def test_wrong_targets(y: Any, kind: Any, message: str) -> None:
    model = build()
    for call in (model.train_on_batch, model.evaluate):
        with pytest.raises(kind, match=message):
            call(X, y)


def test_wrong_calls() -> None:
    model = build()
    with pytest.raises(ValueError, match="tbptt: expected a model of sequences"):
        model.fit(X, Y, tbptt=2, verbose=0)
    with pytest.raises(ValueError, match=r"sample_weight: expected numbers \(n,\), got \(4, 3\)"):
        model.train_on_batch(X, Y, sample_weight=np.ones((4, 3)))
    with pytest.raises(ValueError, match="x: expected ids in"):
        model.translate([[3, 9]], max_steps=3)
    with pytest.raises(ValueError, match="max_steps: expected an integer >= 1, got 0"):
        model.translate(X, max_steps=0)
    with pytest.raises(ValueError, match="beam: expected an integer >= 1, got 0"):
        model.translate(X, max_steps=3, beam=0)
    with pytest.raises(ValueError, match="length_penalty: expected a number"):
        model.translate(X, max_steps=3, length_penalty=-1)
    with pytest.raises(TypeError, match="return_scores: expected True or False"):
        model.translate(X, max_steps=3, return_scores=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="return_attention: expected False"):
        build(score=None).translate(X, max_steps=3, return_attention=True)
    softmax = Dense(6, V, "softmax", dtype=np.float64)
    parts = (model.encoder, model.decoder, model.attention, softmax)
    with pytest.raises(ValueError, match="loss: expected a model that ends in logits"):
        Seq2Seq(*parts, start=START, end=END).compile()
