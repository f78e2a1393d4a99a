"""gradient_flow against differences of the loss, in every layout of layers that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
T, B, F, H = 6, 4, 3, 5
LENGTHS = np.array([6, 2, 4, 0])
CELLS: dict[str, Any] = {
    "rnn": (fastrnn.RNN, {}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm, projection": (fastrnn.LSTM, {"proj_size": 2}),
    "lstm, layer norm": (fastrnn.LSTM, {"layer_norm": True, "zoneout": (0.1, 0.2)}),
    "gru": (fastrnn.GRU, {}),
    "gru, batch first": (fastrnn.GRU, {"batch_first": True}),
}


def make(name: str, *args: Any, **options: Any) -> Any:
    cls, more = CELLS[name]
    return cls(*args, **more, **options, dtype=np.float64)


def loss_of(rest: fastrnn.Sequential, output: Array, y: Array, lengths: Any) -> float:
    prediction = rest.forward(output, None, lengths)[0]
    return fastrnn.losses.MSE()(prediction, y[:, np.newaxis])[0]


def outputs_with(layer: Any, x: Array, lengths: Array, t: int, change: Array) -> Array:
    """Run a layer over (T, B, F) with `change` (B, R) added to h_t."""
    swap = layer.batch_first

    def run(part: Array, state: Any, start: int) -> tuple[Array, Any]:
        valid = np.clip(lengths - start, 0, len(part))
        output, state, _ = layer.forward(part.swapaxes(0, 1) if swap else part, state, valid)
        return (output.swapaxes(0, 1) if swap else output).copy(), state

    before, state = run(x[: t + 1], None, 0)
    before[t] += change
    h = (state[0] if isinstance(state, tuple) else state) + change
    after, _ = run(x[t + 1 :], (h, state[1]) if isinstance(state, tuple) else h, t + 1)
    return np.concatenate([before, after])


@pytest.mark.parametrize("cell", CELLS)
def test_is_the_derivative_by_h(cell: str, rng: Rng) -> None:
    first, second = make(cell, F, H, seed=0), make("gru", 2 if "proj" in cell else H, 4, seed=1)
    tail = [second, fastrnn.Last(), fastrnn.Dense(4, 1, seed=2, dtype=np.float64)]
    model = fastrnn.Sequential([first, *tail]).compile("sgd", "mse")
    x, y = rng.normal(size=(B, T, F)), rng.normal(size=B)
    flow = fastrnn.gradient_flow(model, x, y, lengths=LENGTHS)
    assert list(flow.norms) == ["0.l0", "1.l0"]

    model.eval()
    rest = fastrnn.Sequential(tail)
    R = 2 if "proj" in cell else H
    for t in range(T - 1):
        gradient = np.zeros((B, R))
        for b in np.flatnonzero(t < LENGTHS):
            for j in range(R):
                change = np.zeros((B, R))
                change[b, j] = 1e-6
                values = [
                    loss_of(
                        rest,
                        outputs_with(first, x.swapaxes(0, 1), LENGTHS, t, sign * change),
                        y,
                        LENGTHS,
                    )
                    for sign in (1, -1)
                ]
                gradient[b, j] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(
            flow.norms["0.l0"][t], np.linalg.norm(gradient), rtol=1e-6, atol=1e-10
        )


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru, batch first"])
def test_stacks_are_what_their_layers_are(cell: str, bidirectional: bool, rng: Rng) -> None:
    options = {"bidirectional": bidirectional}
    D = 1 + bidirectional
    stacked = make(cell, F, H, num_layers=2, seed=0, **options)
    apart = [make(cell, F, H, **options), make(cell, D * H, H, **options)]
    for k, layer in enumerate(apart):
        of_level = {
            name.replace(f"_l{k}", "_l0"): array
            for name, array in stacked.parameters.items()
            if f"_l{k}" in name
        }
        layer.load_state_dict(of_level)
    x, y = rng.normal(size=(B, T, F)), rng.integers(3, size=(B, T))
    flows = []
    for layers in ([stacked], apart):
        dense = fastrnn.Dense(D * H, 3, seed=2, dtype=np.float64)
        model = fastrnn.Sequential([*layers, dense]).compile("sgd", "cross_entropy")
        flows.append(fastrnn.gradient_flow(model, x, y, lengths=LENGTHS).norms)
    ends = ("", "_reverse")[:D]
    names = [f"l{k}{end}" for k in (1, 0) for end in ends]
    assert sorted(flows[0]) == sorted(f"0.{name}" for name in names)
    for k in (0, 1):
        for end in ends:
            np.testing.assert_allclose(flows[0][f"0.l{k}{end}"], flows[1][f"{k}.l0{end}"])


def test_directions_mirror_each_other(rng: Rng) -> None:
    """The reverse direction of a sequence is the forward one of the reversed sequence."""
    layer = fastrnn.GRU(F, H, bidirectional=True, seed=0, dtype=np.float64)
    parameters = layer.state_dict()
    for name in list(parameters):
        if name.endswith("_reverse"):
            parameters[name] = parameters[name.removesuffix("_reverse")]
    layer.load_state_dict(parameters)
    dense = fastrnn.Dense(2 * H, 1, seed=0, dtype=np.float64)
    dense.parameters["weight"][0, H:] = dense.parameters["weight"][0, :H]
    model = fastrnn.Sequential([layer, fastrnn.Pool(), dense]).compile("sgd", "mse")
    x, y = rng.normal(size=(B, T, F)), rng.normal(size=B)
    norms = fastrnn.gradient_flow(model, x, y).norms
    mirrored = fastrnn.gradient_flow(model, x[:, ::-1].copy(), y).norms
    np.testing.assert_allclose(norms["0.l0"], mirrored["0.l0_reverse"][::-1])
    assert norms["0.l0"][0] != pytest.approx(norms["0.l0"][-1])


def test_inside_containers(rng: Rng) -> None:
    inner = fastrnn.GRU(H, H, seed=1)
    model = fastrnn.Sequential(
        [
            fastrnn.Embedding(9, H, mask_zero=True, seed=0),
            fastrnn.Sequential([fastrnn.Residual(inner), fastrnn.Dropout(0.5, seed=0)]),
            fastrnn.Dense(H, 9, seed=2),
        ]
    ).compile("sgd", "cross_entropy")
    x = [rng.integers(1, 9, size=n) for n in (5, 3)]
    flow = fastrnn.gradient_flow(model, x, [ids % 3 for ids in x])
    assert list(flow.norms) == ["1.0.layer.l0"]
    assert np.all(flow.norms["1.0.layer.l0"] > 0)
    assert model.training


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    flow = fastrnn.GradientFlow({"0.l0": np.array([0.0, 1e-8, 1.0])})
    flow.plot(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_calls(rng: Rng) -> None:
    x, y = rng.normal(size=(B, T, F)), rng.normal(size=B)
    dense = fastrnn.Dense(H, 1)
    uncompiled = fastrnn.Sequential([fastrnn.GRU(F, H), fastrnn.Last(), dense])
    with pytest.raises(RuntimeError, match="compile"):
        fastrnn.gradient_flow(uncompiled, x, y)
    with pytest.raises(ValueError, match="recurrent layer, got none"):
        fastrnn.gradient_flow(fastrnn.Sequential([fastrnn.Dense(F, 1)]).compile(), x[:, 0], y)
    merged = fastrnn.GRU(F, H, bidirectional=True, merge="sum")
    model = fastrnn.Sequential([merged, fastrnn.Last(), dense]).compile()
    with pytest.raises(ValueError, match="merge='concat'"):
        fastrnn.gradient_flow(model, x, y)
    with pytest.raises(ValueError, match="at least 1 sample"):
        fastrnn.gradient_flow(uncompiled.compile(), x[:0], y[:0])
