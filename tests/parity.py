"""Build layers with random parameters and hold them against the oracle.

Run as a script it is the compact check of whatever instruction set `FASTRNN_ISA` names.
"""

from __future__ import annotations

import math
from typing import Any

import fastrnn
import numpy as np
import reference
from fastrnn import functional
from numpy.typing import NDArray

Array = NDArray[Any]

# How a user asks for each of the engine's cells. A cell that is missing here fails every test.
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn_tanh": (fastrnn.RNN, {}),
    "rnn_relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "rnn_sigmoid": (fastrnn.RNN, {"nonlinearity": "sigmoid"}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm_peephole": (fastrnn.LSTM, {"peephole": True}),
    "gru": (fastrnn.GRU, {}),
    "gru_reset_before": (fastrnn.GRU, {"reset_after": False}),
}
CELLS: tuple[str, ...] = tuple(functional.CELLS)
MERGES: tuple[str, ...] = tuple(functional.MERGES)
LSTM_CELLS = tuple(cell for cell in CELLS if cell.startswith("lstm"))


def make_layer(
    cell: str, input_size: int, hidden_size: int, rng: np.random.Generator, **options: Any
) -> Any:
    """A layer of `cell` whose parameters, biases included, are uniform in +-1/sqrt(H)."""
    kind, cell_options = LAYERS[cell]
    layer = kind(input_size, hidden_size, **cell_options, **options)
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


def arrays(state: Any) -> tuple[Array, ...]:
    """The arrays of a state: (h, c) as it is, h as (h,)."""
    return state if isinstance(state, tuple) else (state,)


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
    width = recurrent * (2 if bidirectional and merge == "concat" else 1)
    K = input_size + recurrent + (num_layers - 1) * (width + recurrent)
    return 4 * math.ceil(math.log2(K * max(T, 1))) * float(np.finfo(dtype).eps)


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


def oracle(
    cell: str,
    layer: Any,
    x: Array,
    state: Any = None,
    lengths: Any = None,
    resets: Array | None = None,
    *,
    masks: Any = None,
    **options: Any,
) -> tuple[Array, Any]:
    """`reference.forward` on a layer's parameters, one precision wider than the layer."""
    known = ("num_layers", "bidirectional", "merge", "residual", "batch_first")
    return reference.forward(
        cell,
        layer.parameters,
        x,
        state,
        lengths,
        resets,
        masks=masks,
        precision=np.float64 if x.dtype == np.float32 else np.longdouble,
        **{name: value for name, value in options.items() if name in known},
    )


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
    **options: Any,
) -> None:
    """Compare a new layer's output and final state with the oracle's on random input.

    `B` None means unbatched; `resets` is always (T, B), or (T,) if unbatched.
    """
    dtype = options.get("dtype", np.float32)
    layer = make_layer(cell, input_size, hidden_size, rng, **options)
    x = rng.standard_normal((T, input_size) if B is None else (T, B, input_size)).astype(dtype)
    if options.get("batch_first") and B is not None:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
        resets = None if resets is None else np.ascontiguousarray(resets.T)
    state = None
    if initial_state:
        state = draw_state(cell, rng, B=B, hidden_size=hidden_size, **options)

    output, final = layer(x, state, lengths, resets)

    expected_output, expected_final = oracle(cell, layer, x, state, lengths, resets, **options)
    bound = tolerance(T, input_size, hidden_size, **options)
    assert len(arrays(final)) == len(arrays(expected_final))
    for actual, expected in zip(
        (output, *arrays(final)), (expected_output, *arrays(expected_final)), strict=True
    ):
        assert actual.dtype == dtype
        assert actual.flags.c_contiguous
        assert_close(actual, expected, bound)


def draw_resets(rng: np.random.Generator, *shape: int) -> NDArray[np.bool_]:
    """About one reset in four steps, and one at t=0 of the first row."""
    resets = rng.random(shape) < 0.25
    resets[(0,) * len(shape)] = True
    return resets


def main() -> None:
    """Check every cell, tails of every width, lengths, resets and threads; print the target."""
    rng = np.random.default_rng(1)
    for cell in CELLS:
        for hidden_size in (1, 7, 15, 16, 17, 33, 64):
            check(cell, rng, T=5, B=7, input_size=hidden_size + 2, hidden_size=hidden_size)
        for B in range(1, 18):
            check(cell, rng, T=3, B=B, input_size=9, hidden_size=20, bidirectional=True)
        for threads in (1, 2, 3):
            fastrnn.set_num_threads(threads)
            check(
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
        check(cell, rng, T=8, B=4, input_size=11, hidden_size=19, dtype=np.float64)
    for cell in LSTM_CELLS:
        check(cell, rng, T=6, B=5, input_size=3, hidden_size=21, proj_size=5, num_layers=2)
    print(functional.config()["isa"])


if __name__ == "__main__":
    main()
