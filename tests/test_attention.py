"""Attention: gradients against central differences, parity with torch, lengths, wrong calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastrnn import attention as module
from fastrnn.attention import Attention, AttentionGradients
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
TQ, TM, B, Q, M, U = 3, 5, 4, 3, 2, 6
LENGTHS = [5, 2, 0, 1]
OPTIONS: dict[str, dict[str, Any]] = {
    "dot": {"score": "dot"},
    "dot, scale": {"score": "dot", "scale": True},
    "general": {"score": "general"},
    "general, scale": {"score": "general", "scale": True},
    "concat": {"score": "concat", "units": U},
    "additive": {"score": "additive", "units": U},
}
every_score = pytest.mark.parametrize("case", OPTIONS)
every_lengths = pytest.mark.parametrize("lengths", [None, LENGTHS])


def make(case: str, rng: Rng, *, memory_size: int = M, dtype: Any = np.float64) -> Attention:
    """Make a layer whose parameters are all away from 0."""
    size = Q if case.startswith("dot") else memory_size
    layer = Attention(Q, size, **OPTIONS[case], seed=0, dtype=dtype)
    for parameter in layer.parameters.values():
        parameter[...] = rng.normal(size=parameter.shape)
    return layer


def make_layer(case: str, queries: str, rng: Rng) -> Attention:
    layer = Attention(Q, **OPTIONS[case], queries=queries, seed=0, dtype=np.float64)
    for parameter in layer.parameters.values():
        parameter[...] = rng.normal(size=parameter.shape)
    return layer


def draw(layer: Attention, rng: Rng, dtype: Any = np.float64) -> tuple[Array, Array]:
    query, memory = rng.normal(size=(TQ, B, Q)), rng.normal(size=(TM, B, layer.memory_size))
    return query.astype(dtype), memory.astype(dtype)


def oracle(layer: Attention, query: Array, memory: Array, lengths: Any) -> tuple[Array, Array]:
    """Compute context and weights step by step, as the papers write them."""
    p = layer.parameters

    def score(q: Array, m: Array) -> float:
        if layer.score == "concat":
            return float(p["vector"] @ np.tanh(p["weight"] @ np.concatenate((q, m))))
        if layer.score == "additive":
            hidden = p["weight_query"] @ q + p["weight_memory"] @ m + p["bias"]
            return float(p["vector"] @ np.tanh(hidden))
        value = q @ m if layer.score == "dot" else q @ p["weight"] @ m
        return float(value) / (math.sqrt(m.size) if layer.scale else 1)

    weights = np.zeros((len(query), query.shape[1], len(memory)))
    context = np.zeros((*query.shape[:2], memory.shape[2]))
    for t, b in np.ndindex(query.shape[:2]):
        valid = len(memory) if lengths is None else lengths[b]
        powers = [math.exp(score(query[t, b], memory[j, b])) for j in range(valid)]
        for j, power in enumerate(powers):
            weights[t, b, j] = power / sum(powers)
            context[t, b] += weights[t, b, j] * memory[j, b]
    return context, weights


def slopes(loss: Callable[[], float], array: Array, width: float = 1e-6) -> Array:
    """Differentiate a loss with respect to an array, which it reads, by central differences."""
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        before = array[index]
        array[index] = before + width
        above = loss()
        array[index] = before - width
        result[index] = (above - loss()) / (2 * width)
        array[index] = before
    return result


@every_score
@every_lengths
def test_matches_the_papers(case: str, lengths: Any, rng: Rng) -> None:
    layer = make(case, rng)
    query, memory = draw(layer, rng)
    context, weights, _ = layer.attend(query, memory, lengths)
    expected_context, expected_weights = oracle(layer, query, memory, lengths)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-12)
    np.testing.assert_allclose(context, expected_context, rtol=1e-12, atol=1e-14)


@every_score
@every_lengths
def test_attend_gradients(case: str, lengths: Any, rng: Rng) -> None:
    layer = make(case, rng)
    query, memory = draw(layer, rng)
    context, weights, tape = layer.attend(query, memory, lengths)
    grad_context, grad_weights = rng.normal(size=context.shape), rng.normal(size=weights.shape)

    def loss() -> float:
        context, weights, _ = layer.attend(query, memory, lengths)
        return float(np.sum(context * grad_context) + np.sum(weights * grad_weights))

    g = layer.attend_backward(tape, grad_context, grad_weights)
    np.testing.assert_allclose(g.query, slopes(loss, query), rtol=0, atol=1e-8)
    np.testing.assert_allclose(g.memory, slopes(loss, memory), rtol=0, atol=1e-8)
    assert g.parameters.keys() == layer.parameters.keys()
    for name, parameter in layer.parameters.items():
        np.testing.assert_allclose(
            g.parameters[name], slopes(loss, parameter), rtol=0, atol=1e-8, err_msg=name
        )


@every_score
@every_lengths
@pytest.mark.parametrize("queries", ["last", "all"])
def test_layer_gradients(case: str, lengths: Any, queries: str, rng: Rng) -> None:
    layer = make_layer(case, queries, rng)
    x = rng.normal(size=(TM, B, Q))
    output, state, tape = layer.forward(x, lengths=lengths)
    grad_output = rng.normal(size=output.shape)

    def loss() -> float:
        return float(np.sum(layer(x, lengths) * grad_output))

    g = layer.backward(tape, grad_output)
    assert state is None
    assert g.state is None
    np.testing.assert_allclose(g.input, slopes(loss, x), rtol=0, atol=1e-8)
    assert g.parameters.keys() == layer.parameters.keys()
    for name, parameter in layer.parameters.items():
        np.testing.assert_allclose(
            g.parameters[name], slopes(loss, parameter), rtol=0, atol=1e-8, err_msg=name
        )
    alone = layer.backward(tape, grad_output, input_grad=False)
    assert alone.input is None
    for name, gradient in g.parameters.items():
        np.testing.assert_array_equal(alone.parameters[name], gradient)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", ["dot, scale", "general"])
def test_matches_torch(case: str, dtype: Any, rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    layer = make(case, rng, dtype=dtype)
    query, memory = draw(layer, rng, dtype)
    lengths = [5, 2, 3, 1]  # softmax of nothing is NaN in torch
    context, weights, tape = layer.attend(query, memory, lengths)
    grad_context = rng.normal(size=context.shape).astype(dtype)
    g = layer.attend_backward(tape, grad_context)

    q, m = (torch.tensor(array, requires_grad=True) for array in (query, memory))
    parameters = [torch.tensor(p, requires_grad=True) for p in layer.parameters.values()]
    asked = q @ parameters[0] if parameters else q
    scores = torch.einsum("qbf,mbf->qbm", asked, m)
    scores = scores / math.sqrt(layer.memory_size) if layer.scale else scores
    past = torch.arange(TM) >= torch.tensor(lengths)[:, None]
    expected_weights = torch.softmax(scores.masked_fill(past, -math.inf), dim=-1)
    expected = torch.einsum("qbm,mbf->qbf", expected_weights, m)
    expected.backward(torch.tensor(grad_context))

    tolerance = 64 * np.finfo(dtype).eps
    assert (context.dtype, weights.dtype, g.query.dtype) == (dtype, dtype, dtype)
    np.testing.assert_allclose(weights, expected_weights.detach(), rtol=0, atol=tolerance)
    np.testing.assert_allclose(context, expected.detach(), rtol=0, atol=tolerance)
    np.testing.assert_allclose(g.query, q.grad, rtol=0, atol=tolerance)
    np.testing.assert_allclose(g.memory, m.grad, rtol=0, atol=tolerance)
    for gradient, parameter in zip(g.parameters.values(), parameters, strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=0, atol=tolerance)


def test_scaled_dot_is_torchs(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    layer = Attention(Q, queries="all", scale=True, dtype=np.float64)
    x = rng.normal(size=(TM, B, Q))
    rows = torch.tensor(x).transpose(0, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(rows, rows, rows).transpose(0, 1)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12, atol=1e-14)


def test_concat_is_additive_without_bias(rng: Rng) -> None:
    concat, additive = make("concat", rng), make("additive", rng)
    p = concat.parameters
    additive.load_state_dict(
        {
            "weight_query": p["weight"][:, :Q],
            "weight_memory": p["weight"][:, Q:],
            "bias": np.zeros(U),
            "vector": p["vector"],
        }
    )
    query, memory = draw(concat, rng)
    a, b = (layer.attend(query, memory, LENGTHS) for layer in (concat, additive))
    np.testing.assert_array_equal(a[0], b[0])
    grad = rng.normal(size=a[0].shape)
    left, right = concat.attend_backward(a[2], grad), additive.attend_backward(b[2], grad)
    np.testing.assert_array_equal(left.memory, right.memory)
    np.testing.assert_array_equal(
        left.parameters["weight"][:, Q:], right.parameters["weight_memory"]
    )


@every_score
def test_padding_is_never_used(case: str, rng: Rng) -> None:
    layer = make(case, rng)
    query, memory = draw(layer, rng)
    past = np.arange(TM)[:, np.newaxis] >= np.array(LENGTHS)
    dirty = memory.copy()
    dirty[past] = np.nan
    clean_run, dirty_run = (layer.attend(query, m, LENGTHS) for m in (memory, dirty))
    context, weights, tape = dirty_run
    np.testing.assert_array_equal(context, clean_run[0])
    np.testing.assert_array_equal(weights, clean_run[1])
    assert not weights[:, past.T].any()
    assert not context[:, LENGTHS.index(0)].any()
    valid = np.array(LENGTHS) > 0
    np.testing.assert_allclose(weights.sum(axis=2)[:, valid], 1)

    grad, grad_weights = np.ones_like(context), rng.normal(size=weights.shape)
    clean = layer.attend_backward(clean_run[2], grad, grad_weights)
    grad_weights[:, past.T] = np.nan
    g = layer.attend_backward(tape, grad, grad_weights)
    np.testing.assert_array_equal(g.memory, clean.memory)
    np.testing.assert_array_equal(g.query, clean.query)
    assert not g.memory[past].any()
    assert not g.query[:, LENGTHS.index(0)].any()
    for name, gradient in g.parameters.items():
        np.testing.assert_array_equal(gradient, clean.parameters[name])


@every_score
@pytest.mark.parametrize("queries", ["last", "all"])
def test_padding_of_a_sequence_is_never_used(case: str, queries: str, rng: Rng) -> None:
    layer = make_layer(case, queries, rng)
    past = np.arange(TM)[:, np.newaxis] >= np.array(LENGTHS)
    x = rng.normal(size=(TM, B, Q))
    x[past] = np.nan
    output, _, tape = layer.forward(x, lengths=LENGTHS)
    grad = rng.normal(size=output.shape)
    if queries == "all":
        grad[past] = np.nan
    g = layer.backward(tape, grad)
    assert g.input is not None
    assert not g.input[past].any()
    assert all(np.isfinite(array).all() for array in (g.input, *g.parameters.values()))
    for b, length in enumerate(LENGTHS):
        alone = layer(x[:length, b : b + 1])
        if queries == "last":
            np.testing.assert_allclose(output[b], alone[0], rtol=1e-12, atol=1e-14)
        else:
            np.testing.assert_allclose(output[:length, b], alone[:, 0], rtol=1e-12, atol=1e-14)
            assert not output[length:, b].any()


@every_score
@every_lengths
def test_weights_make_the_output(case: str, lengths: Any, rng: Rng) -> None:
    x = rng.normal(size=(TM, B, Q))
    layer = make_layer(case, "all", rng)
    every = layer.weights(x, lengths)
    product = np.einsum("tbm,mbf->tbf", every, x)
    np.testing.assert_allclose(layer(x, lengths), product, rtol=1e-12, atol=1e-14)
    layer.queries = "last"
    weights = layer.weights(x, lengths)
    product = np.einsum("bm,mbf->bf", weights, x)
    np.testing.assert_allclose(layer(x, lengths), product, rtol=1e-12, atol=1e-14)
    for b, length in enumerate(lengths or [TM] * B):
        assert not every[length:, b].any()
        assert not weights[b, length:].any()
        if length:
            np.testing.assert_allclose(weights[b], every[length - 1, b], rtol=1e-12)


@pytest.mark.parametrize("case", ["concat", "additive"])
@pytest.mark.parametrize("block", [1, U, 3 * U, 2 * B * U, 7 * B * U])
def test_blocks_do_not_matter(
    case: str, block: int, rng: Rng, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(case, rng)
    query, memory = draw(layer, rng)

    def run() -> tuple[Array, AttentionGradients]:
        context, _, tape = layer.attend(query, memory, LENGTHS)
        return context, layer.attend_backward(tape, np.ones_like(context))

    expected, expected_g = run()
    monkeypatch.setattr(module, "_BLOCK", block)
    context, g = run()
    np.testing.assert_allclose(context, expected, rtol=1e-13)
    np.testing.assert_allclose(g.query, expected_g.query, rtol=0, atol=1e-13)
    np.testing.assert_allclose(g.memory, expected_g.memory, rtol=0, atol=1e-13)
    for name, gradient in g.parameters.items():
        np.testing.assert_allclose(gradient, expected_g.parameters[name], rtol=0, atol=1e-13)


def test_memory_stays_modest() -> None:
    import tracemalloc

    layer = Attention(8, score="additive", units=64, queries="all", seed=0)
    x = np.ones((200, 4, 8), np.float32)  # 200·200·4·64 floats are 41 MB
    layer(x)
    tracemalloc.start()
    try:
        output, _, tape = layer.forward(x)
        layer.backward(tape, output)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


@every_score
def test_large_scores_do_not_overflow(case: str, rng: Rng) -> None:
    layer = make(case, rng, dtype=np.float32)
    query, memory = draw(layer, rng, np.float32)
    for parameter in layer.parameters.values():
        parameter *= 1e4
    context, weights, tape = layer.attend(1e4 * query, memory, LENGTHS)
    g = layer.attend_backward(tape, np.ones_like(context))
    assert all(np.isfinite(array).all() for array in (context, weights, g.query, g.memory))


@every_score
def test_nan_stays_in_its_row(case: str, rng: Rng) -> None:
    layer = make(case, rng)
    query, memory = draw(layer, rng)
    clean, _, _ = layer.attend(query, memory)
    memory[1, 2] = np.nan
    memory[1, 3] = np.inf
    context, _, tape = layer.attend(query, memory)
    layer.attend_backward(tape, np.ones_like(context))
    np.testing.assert_array_equal(context[:, :2], clean[:, :2])
    assert np.isnan(context[:, 2]).all()


@every_score
@pytest.mark.parametrize(("Tq", "Tm", "rows"), [(0, 3, 2), (3, 0, 2), (3, 3, 0), (1, 1, 1)])
def test_empty_and_single(case: str, Tq: int, Tm: int, rows: int, rng: Rng) -> None:
    layer = make(case, rng)
    query, memory = np.ones((Tq, rows, Q)), np.ones((Tm, rows, layer.memory_size))
    context, weights, tape = layer.attend(query, memory)
    g = layer.attend_backward(tape, np.ones_like(context))
    assert context.shape == (Tq, rows, layer.memory_size)
    np.testing.assert_array_equal(context, np.full_like(context, Tm > 0))
    assert weights.shape == (Tq, rows, Tm)
    assert (g.query.shape, g.memory.shape) == (query.shape, memory.shape)
    for queries in ("last", "all"):
        x = np.ones((Tm, rows, Q))
        own = make_layer(case, queries, rng)
        output, _, own_tape = own.forward(x)
        assert output.shape == own.output_shape(x.shape)
        np.testing.assert_array_equal(output, np.full_like(output, Tm > 0))
        gradient = own.backward(own_tape, output).input
        assert gradient is not None
        assert gradient.shape == x.shape


@every_score
def test_strides_do_not_matter(case: str, rng: Rng) -> None:
    layer = make(case, rng)
    query, memory = draw(layer, rng)
    context, _, tape = layer.attend(query, memory, LENGTHS)
    grad = rng.normal(size=context.shape)
    g = layer.attend_backward(tape, grad)

    def strided(array: Array) -> Array:
        return np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)

    other, _, tape = layer.attend(strided(query), strided(memory)[:], LENGTHS)
    h = layer.attend_backward(tape, strided(grad))
    np.testing.assert_allclose(other, context, rtol=1e-13)
    np.testing.assert_allclose(h.query, g.query, rtol=0, atol=1e-13)
    np.testing.assert_allclose(h.memory, g.memory, rtol=0, atol=1e-13)


def test_tape_can_be_used_again_and_weights_are_read_only(rng: Rng) -> None:
    layer = make("additive", rng)
    context, weights, tape = layer.attend(*draw(layer, rng))
    first, second = (layer.attend_backward(tape, context) for _ in range(2))
    np.testing.assert_array_equal(first.memory, second.memory)
    assert not layer.attend_backward(tape).memory.any()
    assert not weights.flags.writeable


def test_protocol(rng: Rng) -> None:
    last = Attention(Q, score="additive", units=U, seed=0)
    every = Attention(Q, score="general", queries="all", seed=0)
    lengths, x = np.array(LENGTHS), np.zeros((TM, B, Q), np.float32)
    assert last.output_lengths(x, lengths) is None
    assert every.output_lengths(x, lengths) is lengths
    assert last.output_shape(("T", "B", Q)) == ("B", Q)
    assert every.output_shape(("T", "B", Q)) == ("T", "B", Q)
    assert (last.multiply_adds(("T", "B", Q)), every.multiply_adds(("T", "B", Q))) == (36, 9)
    assert not last.stepwise
    assert {name: p.shape for name, p in last.parameters.items()} == {
        "weight_query": (U, Q),
        "weight_memory": (U, Q),
        "bias": (U,),
        "vector": (U,),
    }
    assert repr(last) == "Attention(3, score='additive', units=6, queries='last')"
    assert repr(Attention(3, 2, score="general", scale=True)) == (
        "Attention(3, 2, score='general', queries='last', scale=True)"
    )
    assert Attention(Q, score="concat").units == Q


@every_score
def test_attributes_make_the_layer_again(case: str) -> None:
    layer = Attention(Q, **OPTIONS[case], queries="all", seed=1, dtype=np.float64)
    names = ("query_size", "memory_size", "score", "units", "queries", "scale", "dtype")
    again = Attention(**{name: getattr(layer, name) for name in names}, seed=1)
    assert repr(again) == repr(layer)
    assert again.parameters.keys() == layer.parameters.keys()
    for name, parameter in layer.parameters.items():
        assert parameter.dtype == np.float64
        np.testing.assert_array_equal(again.parameters[name], parameter)


def test_finds_the_marked_step(rng: Rng) -> None:
    """A few steps of gradient descent learn to copy the step that a flag marks."""
    layer = Attention(2, 3, score="general", seed=0, dtype=np.float64)
    query = np.ones((1, 64, 2))
    memory = rng.normal(size=(6, 64, 3))
    marked = rng.integers(6, size=64)
    memory[..., 0] = np.arange(6)[:, np.newaxis] == marked
    target = memory[marked, np.arange(64)][np.newaxis]
    for _ in range(200):
        context, weights, tape = layer.attend(query, memory)
        g = layer.attend_backward(tape, (context - target) / 64)
        layer.parameters["weight"][...] -= 2.0 * g.parameters["weight"]
    assert (weights[0].argmax(axis=1) == marked).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_size": 0}, "query_size: expected an integer >= 1, got 0"),
        ({"memory_size": 2}, "memory_size: expected 3 as query_size for score='dot', got 2"),
        ({"score": "cosine"}, "score: expected one of 'dot', 'general', 'concat', 'additive'"),
        ({"units": 4}, "units: expected None for score='dot', got 4"),
        ({"score": "concat", "units": 0}, "units: expected an integer >= 1, got 0"),
        ({"score": "concat", "scale": True}, "scale: expected False for score='concat', got True"),
        ({"queries": "first"}, "queries: expected one of 'last', 'all', got 'first'"),
        ({"dtype": np.int32}, "dtype: expected float32 or float64"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        Attention(**{"query_size": 3, **options})


def test_wrong_calls() -> None:
    layer = Attention(3, 2, score="general", seed=0)
    query, memory = np.zeros((TQ, B, 3), np.float32), np.zeros((TM, B, 2), np.float32)
    context, weights, tape = layer.attend(query, memory)
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: layer.attend(query[0], memory), r"query: expected \(Tq, B, 3\) float32, got"),
        (lambda: layer.attend(memory, memory), r"query: expected \(Tq, B, 3\) float32, got"),
        (lambda: layer.attend(query.astype(float), memory), "query: .* float32, got .* float64"),
        (lambda: layer.attend(query, memory[:, :1]), r"memory: expected \(Tm, 4, 2\) float32"),
        (lambda: layer.attend(query, query), r"memory: expected \(Tm, 4, 2\) float32"),
        (lambda: layer.attend(query, memory, [5, 5]), r"lengths: expected integers \(4,\), got"),
        (lambda: layer.attend(query, memory, [6] * B), r"lengths: .* in \[0, 5\], got 6"),
        (lambda: layer.attend(query, memory, [-1] * B), r"lengths: .* in \[0, 5\], got -1"),
        (lambda: layer.attend_backward(tape, weights), r"grad_context: expected \(3, 4, 2\)"),
        (
            lambda: layer.attend_backward(tape, context, context),
            r"grad_weights: expected \(3, 4, 5",
        ),
        (lambda: layer(query), "x: expected memory_size 2 to be query_size 3"),
        (lambda: layer.weights(query), "x: expected memory_size 2 to be query_size 3"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match="^" + message):
            call()
    with pytest.raises(TypeError, match=r"^lengths: expected integers"):
        layer.attend(query, memory, [1.0] * B)
    with pytest.raises(TypeError, match=r"^tape: expected what attend returned, got tuple"):
        layer.attend_backward(tuple(tape), context)  # type: ignore[arg-type]


def test_wrong_calls_of_the_layer() -> None:
    layer = Attention(3, seed=0)
    x = np.zeros((TM, B, 3), np.float32)
    output, _, tape = layer.forward(x)
    with pytest.raises(ValueError, match=r"^x: expected \(T, B, 3\) float32, got \(4, 3\)"):
        layer(x[0])
    with pytest.raises(
        ValueError, match=r"^state: expected None, as the layer has no state, got int"
    ):
        layer.forward(x, 1)
    with pytest.raises(ValueError, match=r"^grad_output: expected \(4, 3\) float32, got \(5, 4, 3"):
        layer.backward(tape, x)
    with pytest.raises(
        TypeError, match=r"^tape: expected what forward returned, got AttentionTape"
    ):
        layer.backward(tape.memory.attended, output)
