"""Parts of autoencoders: their loss terms, their noise, their networks and the gradients of all."""

from __future__ import annotations

from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn.autoencoding import networks
from fastrnn.autoencoding.model import AutoencoderModel, GaussianLikelihood
from fastrnn.autoencoding.networks import Style, TiedDense
from fastrnn.autoencoding.penalties import (
    Activity,
    Contraction,
    Divergence,
    Geometry,
    Penalty,
    Sparsity,
    weight_decay,
)
from fastrnn.autoencoding.stochastic import CORRUPTIONS, Corruption, Reparameterization
from fastrnn.containers import walk
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(0)


def numerical(function: Any, x: Array, step: float = 1e-6) -> Array:
    """Differentiate by central differences."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        high = function()
        x[index] = kept - step
        gradient[index] = (high - function()) / (2 * step)
        x[index] = kept
    return gradient


def dense_layer(activation: str = "sigmoid") -> fastrnn.Dense:
    return fastrnn.Dense(4, 3, activation, seed=0, dtype=np.float64)


# Loss terms.


@pytest.mark.parametrize(
    "penalty",
    [
        Activity(),
        Sparsity(0.05),
        Sparsity(0.7),
        Contraction(dense_layer("sigmoid")),
        Contraction(dense_layer("tanh")),
        Divergence(3),
        Geometry(),
    ],
    ids=lambda penalty: type(penalty).__name__,
)
def test_gradients_of_penalties(penalty: Penalty, rng: Rng) -> None:
    code = rng.uniform(0.05, 0.95, (7, 6 if isinstance(penalty, Divergence) else 3))
    if isinstance(penalty, (Activity, Divergence, Geometry)):
        code -= 0.5
    near = rng.normal(size=(7, 3)) if isinstance(penalty, Geometry) else None
    term = penalty(code, near)
    assert term.code.shape == code.shape
    expected = numerical(lambda: penalty(code, near).value, code)
    np.testing.assert_allclose(term.code, expected, rtol=1e-6, atol=1e-9)
    if isinstance(penalty, Contraction):
        weight = penalty.layer.parameters["weight"]
        expected = numerical(lambda: penalty(code).value, weight)
        np.testing.assert_allclose(term.parameters["0.weight"], expected, rtol=1e-6, atol=1e-9)
    else:
        assert not term.parameters


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_of_penalties(dtype: Any, rng: Rng) -> None:
    code = rng.uniform(0.1, 0.9, (5, 4)).astype(dtype)
    layer = fastrnn.Dense(3, 4, "sigmoid", seed=0, dtype=dtype)
    for penalty in (Activity(), Sparsity(0.1), Contraction(layer), Divergence(2), Geometry()):
        term = penalty(code, np.zeros((5, 4)))
        assert isinstance(term.value, float)
        arrays = [term.code, *term.parameters.values()]
        assert {array.dtype for array in arrays} == {np.dtype(dtype)}


def test_values_of_penalties(rng: Rng) -> None:
    code, near = rng.uniform(0.1, 0.9, (6, 3)), rng.normal(size=(6, 3))
    assert Activity()(code - 0.5).value == pytest.approx(np.abs(code - 0.5).sum(axis=1).mean())
    assert Geometry()(code, near).value == pytest.approx(np.mean((code - near) ** 2))
    rates = code.mean(axis=0)
    expected = 0.2 * np.log(0.2 / rates) + 0.8 * np.log(0.8 / (1 - rates))
    assert Sparsity(0.2)(code).value == pytest.approx(expected.sum())
    assert Sparsity(0.2)(np.full((4, 3), 0.2)).value == pytest.approx(0, abs=1e-12)
    for saturated in (np.zeros((4, 3)), np.ones((4, 3))):
        term = Sparsity(0.2)(saturated)
        assert np.isfinite(term.value)
        assert np.isfinite(term.code).all()


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_contraction_is_the_norm_of_the_jacobian(activation: str, rng: Rng) -> None:
    layer = dense_layer(activation)
    X = rng.normal(size=(5, 4))
    squares = []
    for x in X:
        jacobian = [numerical(lambda j=j, x=x: layer(x[np.newaxis])[0, j], x) for j in range(3)]
        squares.append(np.sum(np.square(jacobian)))
    penalty = Contraction(layer)
    np.testing.assert_allclose(penalty.norms(layer(X)), squares, rtol=1e-7)
    assert penalty(layer(X)).value == pytest.approx(np.mean(squares), rel=1e-7)


@pytest.mark.parametrize("activation", ["linear", "relu", "gelu"])
def test_contraction_needs_a_known_slope(activation: str) -> None:
    with pytest.raises(ValueError, match="code_activation: expected one of 'sigmoid', 'tanh'"):
        Contraction(dense_layer(activation))


def test_divergence_is_the_integral(rng: Rng) -> None:
    mean, logarithm = rng.normal(size=(2, 4, 2))
    grid = np.linspace(-25, 25, 20001)
    spread = np.exp(logarithm[..., np.newaxis])
    log_q = -0.5 * ((grid - mean[..., np.newaxis]) ** 2 / spread + np.log(2 * np.pi * spread))
    log_p = -0.5 * (grid**2 + np.log(2 * np.pi))
    # The trapezoidal rule is exact to rounding for what is smooth and 0 at either end.
    integral = (np.exp(log_q) * (log_q - log_p)).sum(axis=-1) * (grid[1] - grid[0])
    found = Divergence(2).of_rows(np.hstack([mean, logarithm]))
    np.testing.assert_allclose(found, integral.sum(axis=1), rtol=1e-9)


def test_divergence_of_huge_logarithms() -> None:
    term = Divergence(1)(np.array([[0.0, 500.0], [0.0, -500.0]], np.float32))
    assert np.isfinite(term.value)
    np.testing.assert_array_equal(term.code, 0)


def test_weight_decay(rng: Rng) -> None:
    parameters: dict[str, Array] = {"weight": rng.normal(size=(3, 2)), "bias": rng.normal(size=3)}
    value, gradients = weight_decay(parameters, 0.3, 0.7)
    weight = parameters["weight"]
    assert value == pytest.approx(0.3 * np.abs(weight).sum() + 0.7 * (weight**2).sum())
    assert list(gradients) == ["weight"]
    expected = numerical(lambda: weight_decay(parameters, 0.3, 0.7)[0], weight)
    np.testing.assert_allclose(gradients["weight"], expected, rtol=1e-7)


# Noise.


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
def test_gradient_of_corruption(kind: str, lengths: Any, rng: Rng) -> None:
    x, G = rng.normal(size=(2, 4, 3, 5))
    layer = Corruption(kind, 0.4, seed=0)
    seed = layer._mask_seed

    def loss() -> float:
        layer._mask_seed = seed
        return float((layer(x, lengths=lengths) * G).sum())

    expected = numerical(loss, x)
    layer._mask_seed = seed
    _, _, tape = layer.forward(x, None, lengths)
    found: Any = layer.backward(tape, G).input
    np.testing.assert_allclose(found, expected, atol=1e-8)
    if kind != "gaussian":
        assert 0.3 < np.mean(expected == 0) < 0.8


def test_gradient_of_what_is_replaced_by_itself() -> None:
    layer = Corruption("masking", 1.0, seed=0)
    _, _, tape = layer.forward(np.zeros((2, 3)))
    np.testing.assert_array_equal(layer.backward(tape, np.ones((2, 3))).input, 0)


def test_statistics_of_corruption(rng: Rng) -> None:
    x = rng.normal(size=(2000, 50))
    noise = Corruption("gaussian", 0.3, seed=0)(x) - x
    # Standard errors of 100,000 draws: 0.001 of the mean, 0.0007 of the deviation.
    assert abs(noise.mean()) < 4e-3
    assert abs(noise.std() - 0.3) < 3e-3
    zero, low, high = rng.normal(size=(3, 50))
    masked = Corruption("masking", 0.3, zero=zero, seed=0)(x)
    replaced = masked != x
    assert abs(replaced.mean() - 0.3) < 6e-3
    np.testing.assert_array_equal(masked, np.where(replaced, zero, x))
    # Each element is on its own: rates of rows and columns are as uneven as chance makes them.
    assert abs(replaced.mean(axis=0).std() - np.sqrt(0.21 / 2000)) < 4e-3
    assert abs(replaced.mean(axis=1).std() - np.sqrt(0.21 / 50)) < 4e-3
    salted = Corruption("salt_and_pepper", 0.3, low=low, high=high, seed=0)(x)
    pepper, salt = salted == low, salted == high
    assert abs(pepper.mean() - 0.15) < 5e-3
    assert abs(salt.mean() - 0.15) < 5e-3
    np.testing.assert_array_equal(salted[~(pepper | salt)], x[~(pepper | salt)])


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_draws_of_corruption(kind: str, rng: Rng) -> None:
    x = rng.normal(size=(20, 30)).astype(np.float32)
    first, second, other = Corruption(kind, 0.5, seed=1), Corruption(kind, 0.5, seed=1), None
    calls = [first(x) for _ in range(3)]
    for call in calls:
        np.testing.assert_array_equal(second(x), call)
        assert call.dtype == np.float32
    other = Corruption(kind, 0.5, seed=2)(x)
    for a, b in ((calls[0], calls[1]), (calls[1], calls[2]), (calls[0], other)):
        assert np.mean((a != x) != (b != x) if kind != "gaussian" else a != b) > 0.3
    np.testing.assert_array_equal(first.eval()(x), x)
    np.testing.assert_array_equal(Corruption(kind, 0, seed=0)(x), x)
    assert first(x) is not x
    padded = Corruption(kind, 0.5, seed=0)(np.ones((4, 2, 3)), lengths=[1, 4])
    assert not padded[1:, 0].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blur", 0.1), "noise: expected"),
        (("gaussian", -0.1), "amount: expected"),
        (("masking", 1.1), "amount: expected"),
        (("salt_and_pepper", np.nan), "amount: expected"),
        (("masking", "0.5"), "amount: expected"),
    ],
)
def test_wrong_corruption(arguments: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Corruption(*arguments)


def test_gradient_of_reparameterization(rng: Rng) -> None:
    x, G = rng.normal(size=(6, 4)), rng.normal(size=(6, 2))
    x[0, 2], x[1, 3] = 40, -40  # beyond the bounds
    layer = Reparameterization(2, seed=0)
    seed = layer._mask_seed

    def loss() -> float:
        layer._mask_seed = seed
        return float((layer(x) * G)[2:].sum())

    G[:2] = 0
    expected = numerical(loss, x)
    layer._mask_seed = seed
    _, _, tape = layer.forward(x)
    found: Any = layer.backward(tape, G).input
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    found = layer.backward(tape, np.ones_like(G)).input
    assert found[0, 2] == found[1, 3] == 0


def test_draws_of_reparameterization() -> None:
    x = np.tile([[1.0, -2.0, np.log(4.0), np.log(0.25)]], (40000, 1))
    layer = Reparameterization(2, seed=0)
    drawn = layer(x)
    # Four standard errors of the mean, and of the deviation.
    np.testing.assert_allclose(drawn.mean(axis=0), [1, -2], atol=4 * 2 / 200)
    np.testing.assert_allclose(drawn.std(axis=0), [2, 0.5], rtol=4 / np.sqrt(2 * 40000))
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.02
    again = layer(x)
    assert not np.any(again == drawn)
    same = Reparameterization(2, seed=0)
    np.testing.assert_array_equal(same(x), drawn)
    np.testing.assert_array_equal(same(x), again)
    layer.eval()
    np.testing.assert_array_equal(layer(x), layer(x))


def test_wrong_input_of_reparameterization() -> None:
    layer = Reparameterization(2, seed=0)
    for x, lengths in ((np.ones((3, 3)), None), (np.ones((2, 3, 4)), None), (np.ones(4), None)):
        with pytest.raises(ValueError, match="x: expected"):
            layer(x, lengths=lengths)
    with pytest.raises(ValueError, match="x: expected rows"):
        layer(np.ones((3, 4)), lengths=[1, 1, 1])
    with pytest.raises((TypeError, ValueError), match="size: expected"):
        Reparameterization(0)


# Whole networks.


def style(activation: str = "tanh", code: str = "linear", **options: Any) -> Style:
    return Style(
        **{
            "activation": activation,
            "code_activation": code,
            "dropout": 0.0,
            "batch_norm": False,
            "generator": np.random.default_rng(0),
            "dtype": np.float64,
            **options,
        }
    )


class State:
    """What calls in training mode change: draws and running means."""

    def __init__(self, model: AutoencoderModel) -> None:
        self.model = model
        self.buffers = {name: array.copy() for name, array in model.buffers.items()}
        self.seeds = [
            (layer, layer._mask_seed) for _, layer in walk(model) if layer._mask_seed is not None
        ]

    def restore(self) -> None:
        for name, array in self.model.buffers.items():
            array[...] = self.buffers[name]
        for layer, seed in self.seeds:
            layer._mask_seed = seed


def check_gradients(
    model: AutoencoderModel,
    x: Array,
    y: Array | None = None,
    *,
    lengths: Any = None,
    loss: str = "mse",
    training: bool = True,
) -> None:
    """Compare the gradient of the loss by every parameter with differences."""
    model.compile("sgd", loss)
    model.train(training)
    samples = model._samples(x, x if y is None else y, lengths)
    batch = samples.batch(np.arange(len(x)))
    state = State(model)

    def both() -> tuple[Any, float, Array]:
        state.restore()
        step = model._pass(batch)
        return step, *model._loss(step, None)

    step, value, gradient = both()
    assert np.isfinite(value)
    assert value == both()[1]
    gradients = model._gradients(step.tape, gradient)
    assert set(gradients) == set(model.parameters)
    for name, array in model.parameters.items():
        assert gradients[name].shape == array.shape
        assert gradients[name].dtype == np.float64
        expected = numerical(lambda: both()[1], array)
        np.testing.assert_allclose(
            gradients[name], expected, rtol=1e-5, atol=2e-8, err_msg=f"gradient of {name}"
        )


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
def test_gradients_of_dense(
    hidden: tuple[int, ...], tied: bool, batch_norm: bool, loss: str, rng: Rng
) -> None:
    parts = networks.dense(4, 3, 3, hidden, tied, style("gelu", "tanh", batch_norm=batch_norm))
    check_gradients(AutoencoderModel(*parts), rng.uniform(size=(7, 4)), loss=loss)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["activity", "sparsity", "contraction", "geometry", "decay"])
def test_gradients_with_penalties(kind: str, tied: bool, rng: Rng) -> None:
    hidden = () if kind == "contraction" else (5,)
    encoder, decoder = networks.dense(
        4, 3, 3, hidden, tied, style(code="linear" if kind == "geometry" else "sigmoid")
    )
    X = rng.normal(size=(7, 4))
    first: Any = encoder[0]
    penalties = {
        "activity": Activity(0.3),
        "sparsity": Sparsity(0.1, 0.7),
        "contraction": Contraction(first, 0.9) if kind == "contraction" else None,
        "geometry": Geometry(0.8),
        "decay": None,
    }
    model = AutoencoderModel(
        encoder, decoder, penalty=penalties[kind], l1=0.02, l2=0.03 * (kind == "decay")
    )
    y = np.hstack([X, rng.normal(size=(7, 3))]) if kind == "geometry" else X
    check_gradients(model, X, y)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_gradients_with_noise_and_dropout(kind: str, rng: Rng) -> None:
    parts = networks.dense(4, 3, 3, (6,), True, style(dropout=0.3))
    model = AutoencoderModel(*parts, corruption=Corruption(kind, 0.4, seed=1))
    check_gradients(model, rng.normal(size=(7, 4)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_gradients_of_variational(
    hidden: tuple[int, ...], loss: str, training: bool, rng: Rng
) -> None:
    parts = networks.dense(4, 4, 2, hidden, False, style("silu"))
    likelihood = None
    if loss == "mse" and not training:  # in training the variance changes with each call
        likelihood = GaussianLikelihood()
        likelihood.buffers["variance"][...] = 0.3
    model = AutoencoderModel(
        *parts,
        draw=Reparameterization(2, seed=0),
        penalty=Divergence(2, 0.25),
        warm_up=3,
        likelihood=likelihood,
        l2=0.01,
    )
    check_gradients(model, rng.uniform(size=(7, 4)), loss=loss, training=training)


@pytest.mark.parametrize(
    ("shape", "kernel_size", "hidden"),
    [
        ((1, 5, 5), 3, (3,)),
        ((2, 5, 3), 3, (3, 2)),
        ((3, 4, 7), 2, (2,)),
        ((1, 1, 7), 3, (2, 3)),
        ((2, 1, 1), 5, (2,)),
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradients_of_convolutional(
    shape: tuple[int, ...],
    kernel_size: int,
    hidden: tuple[int, ...],
    batch_norm: bool,
    rng: Rng,
) -> None:
    options = style("tanh", batch_norm=batch_norm, dropout=0.2)
    parts = networks.convolutional(shape, 2, hidden, kernel_size, options)
    check_gradients(AutoencoderModel(*parts, l2=0.01), rng.normal(size=(4, int(np.prod(shape)))))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 2, 4]])
def test_gradients_of_recurrent(cell: str, bidirectional: bool, lengths: Any, rng: Rng) -> None:
    parts = networks.recurrent(2, 3, (4,), cell, bidirectional, style("tanh", "tanh"))
    X = rng.normal(size=(3, 5, 2))
    check_gradients(AutoencoderModel(*parts, l1=0.01), X, lengths=lengths)


def test_gradients_of_deep_recurrent(rng: Rng) -> None:
    options = style("tanh", batch_norm=True, dropout=0.2)
    parts = networks.recurrent(2, 2, (4, 3), "gru", True, options)
    X = rng.uniform(size=(3, 4, 2))
    model = AutoencoderModel(*parts)
    check_gradients(model, X, lengths=[4, 1, 3], loss="binary_cross_entropy")


def test_code_of_both_directions(rng: Rng) -> None:
    encoder, _ = networks.recurrent(2, 3, (4,), "gru", True, style())
    recurrent, affine = encoder[0], encoder.layers[-1]
    x, lengths = rng.normal(size=(5, 3, 2)), [5, 2, 4]
    outputs = np.asarray(recurrent.forward(x, None, lengths)[0])
    # Each direction ends where it has read the whole sequence.
    ends = [np.hstack([outputs[n - 1, i, :4], outputs[0, i, 4:]]) for i, n in enumerate(lengths)]
    np.testing.assert_allclose(encoder(x, lengths=lengths), affine(np.stack(ends)), rtol=1e-12)


def test_padding_is_ignored(rng: Rng) -> None:
    parts = networks.recurrent(2, 3, (4,), "lstm", True, style())
    model = AutoencoderModel(*parts)
    model.compile("sgd", "mse")
    X = rng.normal(size=(3, 5, 2))
    padded = X.copy()
    padded[1, 2:], padded[2, 4:] = 7, np.nan
    losses = [model.evaluate(x, x, lengths=[5, 2, 4])["loss"] for x in (X, padded)]
    assert losses[0] == losses[1]


def test_tied_weights(rng: Rng) -> None:
    encoder, decoder = networks.dense(6, 2, 2, (5,), True, style("gelu", dtype=np.float32))
    model = AutoencoderModel(encoder, decoder)
    assert [name for name in model.parameters if name.startswith("decoder")] == [
        f"decoder.{i}.bias" for i, layer in enumerate(decoder.layers) if layer.parameters
    ]
    maps = [layer for layer in decoder.layers if isinstance(layer, TiedDense)]
    first, last = encoder[0], encoder.layers[-1]
    assert [layer.source for layer in maps] == [last, first]
    x = rng.normal(size=(3, 5)).astype(np.float32)
    expected = x @ first.parameters["weight"] + maps[1].parameters["bias"]
    np.testing.assert_allclose(maps[1](x), expected, rtol=1e-5, atol=1e-6)
    assert maps[1].output_shape(("B", 5)) == ("B", 6)
    assert maps[1].input_shape() == ("B", 5)
    assert maps[1].multiply_adds(("B", 5)) == 30
    X = (rng.normal(size=(200, 2)) @ rng.normal(size=(2, 6))).astype(np.float32)
    model.compile(fastrnn.optimizers.Adam(1e-2), "mse")
    before = first.parameters["weight"].copy()
    history = model.fit(X, X, epochs=40, verbose=0, seed=0)
    assert history["loss"][-1] < 0.1 * history["loss"][0]
    assert not np.array_equal(first.parameters["weight"], before)
    expected = x @ first.parameters["weight"] + maps[1].parameters["bias"]
    np.testing.assert_allclose(maps[1](x), expected, rtol=1e-5, atol=1e-5)


def test_warm_up(rng: Rng) -> None:
    parts = networks.dense(4, 3, 3, (), False, style(dtype=np.float32))
    model = AutoencoderModel(*parts, penalty=Activity(0.6), warm_up=2)
    model.compile("sgd", "mse")
    X = rng.normal(size=(8, 4)).astype(np.float32)
    model.train()
    found = [model.penalty_weight()]
    for _ in range(3):
        model.fit(X, X, epochs=len(found), verbose=0, seed=0)
        model.train()
        found.append(model.penalty_weight())
    np.testing.assert_allclose(found, [0.2, 0.4, 0.6, 0.6])
    model = AutoencoderModel(*parts, penalty=Activity(0.6), warm_up=2)
    model.eval()
    assert model.penalty_weight() == 0.6
    assert AutoencoderModel(*parts).penalty_weight() == 0


def test_likelihood() -> None:
    likelihood = GaussianLikelihood()
    for _ in range(600):
        likelihood.learn(0.25)
    assert likelihood.variance == pytest.approx(0.25, rel=1e-4)
    draws = np.random.default_rng(0).normal(0, 0.5, 200_000)
    density = -0.5 * (draws**2 / 0.25 + np.log(2 * np.pi * 0.25))
    assert likelihood.loss(float(np.mean(draws**2))) == pytest.approx(-density.mean(), rel=1e-4)
    slope = (likelihood.loss(0.25 + 1e-6) - likelihood.loss(0.25 - 1e-6)) / 2e-6
    assert likelihood.factor() == pytest.approx(slope)
    for _ in range(2000):
        likelihood.learn(0.0)
    assert 0 < likelihood.variance <= 1e-6


# Shapes.


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_convolutions_give_back_the_shape(kernel_size: int, depth: int) -> None:
    options = style(dtype=np.float32)
    for H, W in np.ndindex(9, 9):
        shape = (2, H + 1, W + 1)
        x = np.ones((2, int(np.prod(shape))), np.float32)
        encoder, decoder = networks.convolutional(shape, 3, (2,) * depth, kernel_size, options)
        code = encoder(x)
        assert code.shape == (2, 3)
        assert decoder(code).shape == x.shape, shape
        assert encoder.output_shape(("B", x.shape[1])) == ("B", 3)
        assert decoder.output_shape(("B", 3)) == ("B", x.shape[1])


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
def test_every_pixel_is_read(kernel_size: int) -> None:
    for H, W in np.ndindex(7, 7):
        shape = (1, H + 1, W + 1)
        options = style(dtype=np.float64)
        encoder, _ = networks.convolutional(shape, 3, (4, 4), kernel_size, options)
        x = np.zeros((1, (H + 1) * (W + 1)))
        code, _, tape = encoder.forward(x)
        by_x = encoder.backward(tape, np.ones_like(code)).input
        assert by_x is not None
        assert np.all(by_x != 0), (shape, kernel_size)


@pytest.mark.parametrize("least", [0, 1])
def test_sizes(least: int) -> None:
    for given in ((3, 2), [3, 2], np.array([3, 2])):
        assert networks.check_sizes(given, least) == (3, 2)
    assert networks.check_sizes(7, least) == networks.check_sizes(np.int64(7), least) == (7,)
    for wrong in (None, "8", 2.5, (0,), (-1,), (2.5,), (True,), True, {3}, *[()] * least):
        with pytest.raises((TypeError, ValueError), match="hidden: expected"):
            networks.check_sizes(wrong, least)
    if not least:
        assert networks.check_sizes((), least) == ()


def test_activations() -> None:
    assert networks.check_activation("activation", "silu") == "silu"
    for wrong in ("softmax", "log_softmax", "swish", None):
        with pytest.raises((TypeError, ValueError), match="activation: expected"):
            networks.check_activation("activation", wrong)
