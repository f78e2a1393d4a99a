"""Build layers with random parameters and hold them against the oracle.

Run as a script it is the compact check of whatever instruction set `FASTRNN_ISA` names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import fastrnn
import numpy as np
import reference
from fastrnn import Gradients, functional
from numpy.typing import NDArray

Array = NDArray[Any]

# How a user asks for each of the engine's cells. A cell that is missing here fails every test.
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn_tanh": (fastrnn.RNN, {}),
    "rnn_relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "rnn_sigmoid": (fastrnn.RNN, {"nonlinearity": "sigmoid"}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm_peephole": (fastrnn.LSTM, {"peephole": True}),
    "lstm_coupled": (fastrnn.LSTM, {"coupled": True}),
    "lstm_coupled_peephole": (fastrnn.LSTM, {"coupled": True, "peephole": True}),
    "gru": (fastrnn.GRU, {}),
    "gru_reset_before": (fastrnn.GRU, {"reset_after": False}),
}
CELLS: tuple[str, ...] = tuple(functional.CELLS)
MERGES: tuple[str, ...] = tuple(functional.MERGES)
LSTM_CELLS = tuple(cell for cell in CELLS if cell.startswith("lstm"))
# Every cell plain, and the LSTM cells once more with a projection.
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((cell, {}) for cell in CELLS),
    *((cell, {"proj_size": 11}) for cell in LSTM_CELLS),
)


def together(cell: str) -> dict[str, Any]:
    """Every option at once that makes a cell regular."""
    options = {
        "layer_norm": True,
        "dropout": 0.2,
        "input_dropout": 0.3,
        "recurrent_dropout": 0.25,
        "weight_drop": 0.15,
        "zoneout": 0.3,
    }
    return options | ({"zoneout": (0.3, 0.15), "clip": 0.4} if cell in LSTM_CELLS else {})


def make_layer(
    cell: str, input_size: int, hidden_size: int, rng: np.random.Generator, **options: Any
) -> Any:
    """A layer of `cell` whose parameters, biases included, are uniform in +-1/sqrt(H).

    Its masks are the same in every run, as are the numbers of `rng`.
    """
    kind, cell_options = LAYERS[cell]
    layer = kind(input_size, hidden_size, **cell_options, **{"seed": 0, **options})
    bound = 1 / math.sqrt(hidden_size)
    layer.load_state_dict(
        {name: rng.uniform(-bound, bound, p.shape) for name, p in layer.parameters.items()}
    )
    return layer


def draw_state(
    cell: str,
    rng: np.random.Generator,
    *,
    B: int | None,
    hidden_size: int,
    dtype: Any = np.float32,
    num_layers: int = 1,
    bidirectional: bool = False,
    proj_size: int = 0,
    **_: Any,
) -> Any:
    """A random initial state; `B` None means unbatched. Takes a layer's options, ignores most."""
    lead = (num_layers * (2 if bidirectional else 1),) + (() if B is None else (B,))
    h = rng.uniform(-1, 1, (*lead, proj_size or hidden_size)).astype(dtype)
    c = rng.uniform(-1, 1, (*lead, hidden_size)).astype(dtype)
    return (h, c) if cell in LSTM_CELLS else h


def draw_resets(rng: np.random.Generator, *shape: int) -> NDArray[np.bool_]:
    """About one reset in four steps, and one at t=0 of the first row."""
    resets = rng.random(shape) < 0.25
    resets[(0,) * len(shape)] = True
    return resets


def output_width(
    hidden_size: int,
    *,
    proj_size: int = 0,
    bidirectional: bool = False,
    merge: str = "concat",
    **_: Any,
) -> int:
    """Features of a layer's output. Takes its options, ignores most."""
    return (proj_size or hidden_size) * (2 if bidirectional and merge == "concat" else 1)


def arrays(state: Any) -> tuple[Array, ...]:
    """The arrays of a state: (h, c) as it is, h as (h,)."""
    return state if isinstance(state, tuple) else (state,)


def map_state(function: Callable[[Array], Any], state: Any) -> Any:
    """The same for each array of a state."""
    parts = tuple(function(part) for part in arrays(state))
    return parts if isinstance(state, tuple) else parts[0]


def tolerance(
    T: int,
    input_size: int,
    hidden_size: int,
    dtype: Any = np.float32,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    merge: str = "concat",
    proj_size: int = 0,
    **_: Any,
) -> float:
    """The engine's promise, 4*ceil(log2(K*T))*eps: an error of outputs scaled by max(1, |ref|).

    K is what one gate sums over, inputs and recurrent units, added up over the layers.
    """
    recurrent = proj_size or hidden_size
    width = output_width(hidden_size, proj_size=proj_size, bidirectional=bidirectional, merge=merge)
    K = input_size + recurrent + (num_layers - 1) * (width + recurrent)
    return 4 * math.ceil(math.log2(K * max(T, 1))) * float(np.finfo(dtype).eps)


def gradient_tolerance(T: int, B: int | None, *sizes: int, **options: Any) -> float:
    """8*ceil(log2(K*T*B))*eps, for errors scaled by max(1, the largest of the reference).

    Arguments and K as in `tolerance`, twice of which it is: an error passes forward and back. T*B
    is there because gradients of weights sum over the rows too. The worst case of the tests has a
    quarter of it.
    """
    return 2 * tolerance(T * (1 if B is None else B), *sizes, **options)


def scaled_error(actual: Array, expected: Array) -> float:
    """The largest error, relative to the largest of what is expected or to 1."""
    scale = max(1, np.abs(expected).max(initial=0))
    return float(np.abs(actual - expected).max(initial=0) / scale)


def assert_gradient_close(name: str, actual: Array, expected: Array, bound: float) -> None:
    """Hold ``|actual - expected| / max(1, max|expected|)`` under `bound`, and zeros to be zero."""
    assert actual.shape == expected.shape, name
    assert not actual[expected == 0].any(), f"{name}: not zero where no path leads to the loss"
    error = scaled_error(actual, expected)
    assert error <= bound, (
        f"{name}: error {error:.3g} is {error / bound:.3g} times the bound {bound:.3g}"
    )


def assert_close(actual: Array, expected: Array, bound: float) -> None:
    """Hold ``|actual - expected| / max(1, |expected|)`` under `bound`; NaN and inf must agree."""
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    finite = np.isfinite(expected)
    expected = expected.astype(np.longdouble)
    special = ~finite & ~np.isnan(expected)
    np.testing.assert_array_equal(actual[special], expected[special])
    error = np.abs(actual[finite] - expected[finite]) / np.maximum(1, np.abs(expected[finite]))
    worst = float(error.max(initial=0))
    assert worst <= bound, f"error {worst:.3g} is {worst / bound:.3g} times the bound {bound:.3g}"


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Compare arrays, or states made of them, byte by byte: -0 is not 0, NaN is itself."""
    assert len(arrays(actual)) == len(arrays(expected))
    for a, b in zip(arrays(actual), arrays(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        different = np.flatnonzero(a.view(np.uint8) != b.view(np.uint8))
        assert different.size == 0, f"{different.size} of {a.nbytes} bytes differ"


ORACLE_OPTIONS = (
    *("num_layers", "bidirectional", "merge", "residual", "batch_first", "clip", "precision"),
    *("masks", "input_masks", "recurrent_masks", "weight_masks"),
)


def for_oracle(x: Array, options: dict[str, Any]) -> dict[str, Any]:
    """Those of a layer's options that the oracle takes, and one precision wider than `x`."""
    known = {name: options[name] for name in ORACLE_OPTIONS if name in options}
    if isinstance(options.get("zoneout"), list):  # what `noise_of` gives, and not a probability
        known["zoneout"] = options["zoneout"]
    return {"precision": np.float64 if x.dtype == np.float32 else np.longdouble} | known


def noise_of(layer: Any, T: int, B: int) -> dict[str, Any]:
    """What the oracle is to multiply by in the layer's next call, as options of `reference`."""
    options = vars(layer)
    seed, training = layer._mask_seed, layer.training
    L, D, G_H = layer.num_layers, 1 + layer.bidirectional, len(layer.parameters["weight_hh_l0"])
    R, width = layer.proj_size or layer.hidden_size, output_width(**options)
    chains = [(number, direction) for number in range(L) for direction in range(D)]
    noise: dict[str, Any] = {}

    def kept(kind: Any, shape: tuple[int, ...], p: float, *place: int) -> Any:
        """A mask of zeros and 1 / (1 - p), which `functional.mask` rounds to float32."""
        mask = functional.mask(kind, shape, p, seed, *place)
        return (mask != 0) * layer.dtype.type(0 if p == 1 else 1 / (1 - p))

    def zoned(kind: Any, size: int, p: float, *place: int) -> Any:
        return functional.mask(kind, (T, B, size), p, seed, *place) if training else p

    if training and layer.dropout:
        noise["masks"] = draw_masks(layer, T, B)
    if training and (p := options.get("input_dropout")):
        widths = [layer.input_size] + [width] * (L - 1)
        noise["input_masks"] = [
            kept("input", (B, inputs), p, number) for number, inputs in enumerate(widths)
        ]
    if training and (p := options.get("recurrent_dropout")):
        noise["recurrent_masks"] = [kept("recurrent", (B, R), p, *chain) for chain in chains]
    if training and (p := options.get("weight_drop")):
        noise["weight_masks"] = [kept("weight", (G_H, R), p, *chain) for chain in chains]
    if zoneout := options.get("zoneout"):
        pair = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout)
        sizes = {"h": R} | ({"c": layer.hidden_size} if isinstance(layer, fastrnn.LSTM) else {})
        noise["zoneout"] = [
            tuple(
                zoned(f"zoneout_{part}", size, p, *chain)
                for (part, size), p in zip(sizes.items(), pair, strict=False)
            )
            for chain in chains
        ]
    return noise


def oracle(
    cell: str,
    layer: Any,
    x: Array,
    state: Any = None,
    lengths: Any = None,
    resets: Array | None = None,
    **options: Any,
) -> Any:
    """`reference.forward` on a layer's parameters, one precision wider than the layer."""
    return reference.forward(
        cell,
        layer.parameters,
        x,
        state,
        lengths,
        resets,
        all_states=options.get("all_states", False),
        **for_oracle(x, options),
    )


def oracle_backward(
    cell: str,
    layer: Any,
    x: Array,
    state: Any = None,
    lengths: Any = None,
    resets: Array | None = None,
    *,
    grad_output: Any = None,
    grad_state: Any = None,
    grad_states: Any = None,
    **options: Any,
) -> Gradients:
    """`reference.backward` likewise."""
    return Gradients(
        *reference.backward(
            cell,
            layer.parameters,
            x,
            state,
            lengths,
            resets,
            grad_output=grad_output,
            grad_state=grad_state,
            grad_states=grad_states,
            **for_oracle(x, options),
        )
    )


# Options whose masks or expectations the oracle is to be told.
NOISY = ("dropout", "input_dropout", "recurrent_dropout", "weight_drop", "zoneout")


def rounding_of(dtype: Any, options: dict[str, Any], plain: Callable[[Any], list[Array]]) -> float:
    """What layer norm adds to a bound: four times the error of plain loops in the same precision.

    It divides by a deviation, and so makes errors larger by as much as what a product sums over is
    larger than that: little or a hundredfold, as weights and inputs happen to be. The oracle knows.
    `plain` computes everything in a given precision.
    """
    if not options.get("layer_norm"):
        return 0
    wider = plain(np.float64 if np.dtype(dtype) == np.float32 else np.longdouble)
    return 4 * max(scaled_error(a, e) for a, e in zip(plain(dtype), wider, strict=True))


def check(
    cell: str,
    rng: np.random.Generator,
    *,
    T: int,
    B: int | None,
    input_size: int,
    hidden_size: int,
    initial_state: bool = True,
    lengths: Any = None,
    resets: Array | None = None,
    all_states: bool = False,
    training: bool = True,
    **options: Any,
) -> None:
    """Compare a new layer's output and final state with the oracle's on random input.

    `B` None means unbatched; `resets` is always (T, B), or (T,) if unbatched. With `all_states`
    those of every step, too.
    """
    dtype = options.get("dtype", np.float32)
    layer = make_layer(cell, input_size, hidden_size, rng, **options).train(training)
    x = rng.standard_normal((T, input_size) if B is None else (T, B, input_size)).astype(dtype)
    if options.get("batch_first") and B is not None:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
        resets = None if resets is None else np.ascontiguousarray(resets.T)
    state = None
    if initial_state:
        state = draw_state(cell, rng, B=B, hidden_size=hidden_size, **options)
    noisy = any(options.get(name) for name in NOISY)
    noise = noise_of(layer, T, 1 if B is None else B) if noisy else {}

    if all_states:
        output, *states = layer(x, state, lengths, resets, return_all_states=True)
    else:
        output, *states = layer(x, state, lengths, resets)

    def plain(precision: Any = None) -> list[Array]:
        given = {**options, **noise, "all_states": all_states}
        given |= {} if precision is None else {"precision": precision}
        results = oracle(cell, layer, x, state, lengths, resets, **given)
        return [array for part in results for array in arrays(part)]

    bound = tolerance(T, input_size, hidden_size, **options) + rounding_of(dtype, options, plain)
    actual_arrays = [output, *(array for part in states for array in arrays(part))]
    for actual, expected in zip(actual_arrays, plain(), strict=True):
        assert actual.dtype == dtype
        assert actual.flags.c_contiguous
        assert_close(actual, expected, bound)


def name_gradients(gradients: Gradients) -> dict[str, Array]:
    """All arrays of what `backward` returns; without the input's where it was not asked for."""
    named = dict(zip(("h", "c"), arrays(gradients.state), strict=False)) | gradients.parameters
    return named if gradients.input is None else {"x": gradients.input} | named


def draw_masks(layer: Any, T: int, B: int) -> list[Array]:
    """The dropout masks of a layer's next call in training mode, (T, B, width) each.

    A mask depends on the seed, its layer, the step, row and unit, and on nothing else: networks
    of relu layers show them, whose outputs are 1 up to the mask and what it left of that after it.
    """
    width = output_width(**vars(layer))
    masks = []
    for number in range(layer.num_layers - 1):
        probe = fastrnn.RNN(1, width, number + 2, "relu", dropout=layer.dropout, dtype=layer.dtype)
        parameters = {name: np.zeros_like(value) for name, value in probe.parameters.items()}
        parameters[f"bias_ih_l{number}"][:] = 1
        parameters[f"weight_ih_l{number + 1}"][:] = np.eye(width)
        probe.load_state_dict(parameters)
        probe._mask_seed = layer._mask_seed
        masks.append(probe(np.zeros((T, B, 1), layer.dtype))[0])
    return masks


def check_backward(
    cell: str,
    rng: np.random.Generator,
    *,
    T: int,
    B: int | None,
    input_size: int,
    hidden_size: int,
    initial_state: bool = True,
    lengths: Any = None,
    resets: Array | None = None,
    given: Collection[str] = ("output", "h", "c"),
    training: bool = True,
    **options: Any,
) -> None:
    """Compare a new layer's gradients with the oracle's on random input, and `forward` with a call.

    `B` and `resets` as in `check`; `given` is what the loss depends on, the rest gets None. With
    "states" among it, the states of every step are asked for.
    """
    dtype = options.get("dtype", np.float32)
    layer = make_layer(cell, input_size, hidden_size, rng, **options).train(training)
    x = rng.standard_normal((T, input_size) if B is None else (T, B, input_size)).astype(dtype)
    if options.get("batch_first") and B is not None:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
        resets = None if resets is None else np.ascontiguousarray(resets.T)
    state_options = {"B": B, "hidden_size": hidden_size, **options}
    state = draw_state(cell, rng, **state_options) if initial_state else None
    noisy = any(options.get(name) for name in NOISY)
    noise = noise_of(layer, T, 1 if B is None else B) if noisy else {}
    mask_seed = layer._mask_seed
    asked = {"return_all_states": True} if "states" in given else {}

    expected_output, expected_final, *expected_states = layer(x, state, lengths, resets, **asked)
    layer._mask_seed = mask_seed
    output, final, tape, *states = layer.forward(x, state, lengths, resets, **asked)
    assert_same_bits(output, expected_output)
    assert_same_bits(final, expected_final)
    assert len(states) == len(expected_states)

    grad_output = rng.standard_normal(output.shape).astype(dtype) if "output" in given else None
    parts = dict(zip(("h", "c"), arrays(draw_state(cell, rng, **state_options)), strict=False))
    grad_parts = tuple(part if name in given else None for name, part in parts.items())
    grad_state = None
    if any(part is not None for part in grad_parts):
        grad_state = grad_parts if cell in LSTM_CELLS else grad_parts[0]
    grads: dict[str, Any] = {"grad_output": grad_output}
    more: dict[str, Any] = {}
    if states:
        assert_same_bits(states[0], expected_states[0])
        draw = rng.standard_normal
        more["grad_states"] = map_state(lambda part: draw(part.shape).astype(dtype), states[0])
    gradients = layer.backward(tape, grad_output, grad_state, **more)

    known = tuple(part if name in given else np.zeros_like(part) for name, part in parts.items())
    grads |= {"grad_state": known if cell in LSTM_CELLS else known[0], **more}

    def plain(precision: Any = None) -> Gradients:
        chosen = {**options, **noise} | ({} if precision is None else {"precision": precision})
        return oracle_backward(cell, layer, x, state, lengths, resets, **grads, **chosen)

    expected = name_gradients(plain())
    bound = gradient_tolerance(T, B, input_size, hidden_size, **options)
    bound += rounding_of(dtype, options, lambda p: list(name_gradients(plain(p)).values()))
    assert list(gradients.parameters) == list(layer.parameters)
    actual = name_gradients(gradients)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert gradient.dtype == dtype, name
        assert gradient.flags.c_contiguous, name
        assert gradient.flags.writeable, name
        assert_gradient_close(name, gradient, expected[name], bound)


class Case(NamedTuple):
    """A layer, what its `forward` takes, and what its `backward` takes."""

    layer: Any
    inputs: dict[str, Any]
    grads: dict[str, Any]

    def forward(self) -> Any:
        """The tape of a call."""
        return self.layer.forward(**self.inputs)[2]

    def backward(self, tape: Any, **options: Any) -> dict[str, Array]:
        return name_gradients(self.layer.backward(tape, **self.grads, **options))

    def gradients(self, **options: Any) -> dict[str, Array]:
        return self.backward(self.forward(), **options)

    def given(self) -> list[Array]:
        """All arrays that go in."""
        loose = [self.inputs["x"], *arrays(self.inputs["state"]), self.grads["grad_output"]]
        loose += [self.inputs[name] for name in ("lengths", "resets") if name in self.inputs]
        return [*loose, *arrays(self.grads["grad_state"]), *self.layer.parameters.values()]


def draw_inputs(
    layer: Any, cell: str, rng: np.random.Generator, T: int, B: int, *, ragged: bool, **options: Any
) -> Case:
    """Random arguments for a layer of these options; `ragged` means lengths and resets."""
    dtype = layer.dtype
    lead = (B, T) if layer.batch_first else (T, B)
    inputs: dict[str, Any] = {"x": rng.standard_normal((*lead, layer.input_size)).astype(dtype)}
    sizes = {"B": B, "hidden_size": layer.hidden_size, **options}
    inputs["state"] = draw_state(cell, rng, **sizes)
    if ragged:
        inputs["lengths"] = rng.integers(0, T + 1, B)
        inputs["resets"] = draw_resets(rng, *lead)
    width = output_width(layer.hidden_size, **options)
    grads = {
        "grad_output": rng.standard_normal((*lead, width)).astype(dtype),
        "grad_state": draw_state(cell, rng, **sizes),
    }
    return Case(layer, inputs, grads)


def draw_case(
    cell: str,
    rng: np.random.Generator,
    *,
    T: int,
    B: int,
    input_size: int,
    hidden_size: int,
    ragged: bool = False,
    **options: Any,
) -> Case:
    """A new layer and random arguments for it."""
    layer = make_layer(cell, input_size, hidden_size, rng, **options)
    return draw_inputs(layer, cell, rng, T, B, ragged=ragged, **options)


def assert_same_gradients(actual: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(actual) == list(expected)
    for name, gradient in actual.items():
        assert_same_bits(gradient, expected[name])


def main() -> None:
    """Check every cell, tails of every width, lengths, resets and threads; print the target."""
    rng = np.random.default_rng(1)
    for cell in CELLS:
        for hidden_size in (1, 7, 15, 16, 17, 33, 64):
            check(cell, rng, T=5, B=7, input_size=hidden_size + 2, hidden_size=hidden_size)
            check_backward(cell, rng, T=2, B=7, input_size=hidden_size + 2, hidden_size=hidden_size)
        for B in range(1, 18):
            check(cell, rng, T=3, B=B, input_size=9, hidden_size=20, bidirectional=True)
            check_backward(cell, rng, T=2, B=B, input_size=9, hidden_size=20)
        # More rows than a sum of weight gradients covers at once.
        check_backward(cell, rng, T=99, B=1, input_size=3, hidden_size=5)
        for threads in (1, 2, 3):
            fastrnn.set_num_threads(threads)
            for checked in (check, check_backward):
                checked(
                    cell,
                    rng,
                    T=6,
                    B=5,
                    input_size=3,
                    hidden_size=70,
                    num_layers=2,
                    bidirectional=True,
                    merge="sum",
                    residual=True,
                    lengths=np.array([6, 0, 3, 1, 5]),
                    resets=draw_resets(rng, 6, 5),
                )
        for checked in (check, check_backward):
            checked(cell, rng, T=8, B=4, input_size=11, hidden_size=19, dtype=np.float64)
        for hidden_size, options in ((21, together(cell)), (33, {"layer_norm": True})):
            for checked in (check, check_backward):
                checked(
                    cell,
                    rng,
                    T=4,
                    B=5,
                    input_size=9,
                    hidden_size=hidden_size,
                    num_layers=2,
                    bidirectional=True,
                    **options,
                )
    for cell in LSTM_CELLS:
        for checked in (check, check_backward):
            for dtype in (np.float32, np.float64):
                checked(
                    cell,
                    rng,
                    T=6,
                    B=5,
                    input_size=3,
                    hidden_size=21,
                    proj_size=5,
                    num_layers=2,
                    dtype=dtype,
                )
    print(functional.config()["isa"])


if __name__ == "__main__":
    main()
