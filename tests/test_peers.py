"""The engine, and the oracle itself, against PyTorch and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity import CELLS, Array, arrays, assert_close, draw_state, make_layer, oracle, tolerance

Rng = np.random.Generator

TORCH = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}
LENGTHS = [3, 7, 1, 5, 6]  # PackedSequence takes no zero


def check_torch(
    cell: str,
    rng: Rng,
    *,
    input_size: int,
    hidden_size: int,
    dtype: str = "float32",
    lengths: list[int] | None = None,
    initial_state: bool = True,
    unbatched: bool = False,
    **options: Any,
) -> None:
    """Load a torch module's state_dict and compare layer, oracle and module."""
    torch = pytest.importorskip("torch")
    T, B = 7, None if unbatched else 5
    name, torch_options = TORCH[cell]
    module = getattr(torch.nn, name)(
        input_size, hidden_size, dtype=getattr(torch, dtype), **torch_options, **options
    )
    layer = make_layer(cell, input_size, hidden_size, rng, dtype=dtype, **options)
    assert list(layer.parameters) == list(module.state_dict())
    layer.load_state_dict(module.state_dict())

    x = rng.standard_normal((T, input_size) if unbatched else (T, 5, input_size)).astype(dtype)
    if options.get("batch_first") and not unbatched:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    state = torch_state = None
    if initial_state:
        state = draw_state(cell, rng, B=B, hidden_size=hidden_size, dtype=dtype, **options)
        parts = tuple(torch.from_numpy(part) for part in arrays(state))
        torch_state = parts if len(parts) == 2 else parts[0]
    torch_x = torch.from_numpy(x)
    with torch.no_grad():
        if lengths is None:
            torch_output, torch_final = module(torch_x, torch_state)
        else:
            batch_first = options.get("batch_first", False)
            rnn = torch.nn.utils.rnn
            packed, torch_final = module(
                rnn.pack_padded_sequence(torch_x, lengths, batch_first, enforce_sorted=False),
                torch_state,
            )
            torch_output, _ = rnn.pad_packed_sequence(packed, batch_first, total_length=T)
    expected = [part.numpy() for part in (torch_output, *arrays(torch_final))]

    output, final = layer(x, state, lengths)
    oracle_output, oracle_final = oracle(cell, layer, x, state, lengths, **options)
    bound = 2 * tolerance(T, input_size, hidden_size, dtype, **options)  # torch errs too
    for ours, truth, theirs in zip(
        (output, *arrays(final)), (oracle_output, *arrays(oracle_final)), expected, strict=True
    ):
        assert_close(truth, theirs, bound)
        assert_close(ours, theirs, bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", TORCH)
def test_torch(
    cell: str,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    batch_first: bool,
    dtype: str,
    rng: Rng,
) -> None:
    check_torch(
        cell,
        rng,
        input_size=5,
        hidden_size=17,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        batch_first=batch_first,
        dtype=dtype,
        lengths=LENGTHS if bias else None,
        initial_state=batch_first,
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=("full", "lengths"))
def test_torch_projection(
    lengths: list[int] | None, num_layers: int, bidirectional: bool, rng: Rng
) -> None:
    check_torch(
        "lstm",
        rng,
        input_size=5,
        hidden_size=17,
        proj_size=6,
        num_layers=num_layers,
        bidirectional=bidirectional,
        lengths=lengths,
    )


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", TORCH)
def test_torch_unbatched(cell: str, bidirectional: bool, batch_first: bool, rng: Rng) -> None:
    check_torch(
        cell,
        rng,
        input_size=5,
        hidden_size=17,
        bidirectional=bidirectional,
        batch_first=batch_first,
        unbatched=True,
    )


# Cell: operator, our gates in ONNX's order (LSTM i,o,f,c; GRU z,r,h), attributes.
ONNX: dict[str, tuple[str, list[int | None], dict[str, Any]]] = {
    "rnn_tanh": ("RNN", [0], {}),
    "rnn_relu": ("RNN", [0], {"activations": ["Relu"]}),
    "rnn_sigmoid": ("RNN", [0], {"activations": ["Sigmoid"]}),
    "lstm": ("LSTM", [0, 3, 1, 2], {}),
    "lstm_peephole": ("LSTM", [0, 3, 1, 2], {}),
    "lstm_coupled": ("LSTM", [0, 2, None, 1], {"input_forget": 1}),
    "lstm_coupled_peephole": ("LSTM", [0, 2, None, 1], {"input_forget": 1}),
    "gru": ("GRU", [1, 0, 2], {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", [1, 0, 2], {"linear_before_reset": 0}),
}


def onnx_arrays(cell: str, parameters: dict[str, Array], bidirectional: bool) -> dict[str, Array]:
    """The W, R, B and P inputs of the operator, directions first."""
    _, order, _ = ONNX[cell]

    def stacked(name: str, order: list[int | None]) -> Array:
        suffixes = ["_l0"] + (["_l0_reverse"] if bidirectional else [])
        gates = len(order) - order.count(None)
        blocks = [np.split(parameters[name + suffix], gates) for suffix in suffixes]
        return np.stack(
            [
                np.concatenate([0 * one[0] if gate is None else one[gate] for gate in order])
                for one in blocks
            ]
        )

    named = {
        "W": stacked("weight_ih", order),
        "R": stacked("weight_hh", order),
        "B": np.concatenate([stacked("bias_ih", order), stacked("bias_hh", order)], axis=1),
    }
    if cell == "lstm_peephole":  # ours i,f,o; ONNX i,o,f
        named["P"] = stacked("weight_peep", [0, 2, 1]).reshape(len(named["W"]), -1)
    if cell == "lstm_coupled_peephole":  # ours i,o
        named["P"] = stacked("weight_peep", [0, 1, None]).reshape(len(named["W"]), -1)
    return named


def run_onnx(
    cell: str,
    parameters: dict[str, Array],
    x: Array,
    state: Any,
    lengths: list[int],
    bidirectional: bool,
) -> tuple[Array, ...]:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    operator, _, attributes = ONNX[cell]
    H = parameters["weight_hh_l0"].shape[1]
    given = {
        "X": x,
        **onnx_arrays(cell, parameters, bidirectional),
        "lengths": np.array(lengths, np.int32),
        **dict(zip(("h", "c"), arrays(state), strict=False)),
    }
    slots = ["X", "W", "R", "B", "lengths", "h"]
    slots += ["c", "P" if "P" in given else ""] if operator == "LSTM" else []
    results = ["Y", "Y_h"] + (["Y_c"] if operator == "LSTM" else [])
    if bidirectional:
        attributes = {
            name: 2 * value if name == "activations" else value
            for name, value in attributes.items()
        } | {"direction": "bidirectional"}
    node = onnx.helper.make_node(operator, slots, results, hidden_size=H, **attributes)
    kinds = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}
    graph = onnx.helper.make_graph(
        [node],
        "one_layer",
        [
            onnx.helper.make_tensor_value_info(name, kinds[value.dtype.name], value.shape)
            for name, value in given.items()
        ],
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in results
        ],
    )
    model = onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 14)]
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    output, *final = session.run(results, given)
    T, B, _ = x.shape
    return output.swapaxes(1, 2).reshape(T, B, -1), *final  # (T, D, B, H) to (T, B, D*H)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_onnxruntime(cell: str, bidirectional: bool, rng: Rng) -> None:
    T, B = 7, 5
    options: dict[str, Any] = {"bidirectional": bidirectional}
    layer = make_layer(cell, 6, 17, rng, **options)
    x = rng.standard_normal((T, B, 6), np.float32)
    state = draw_state(cell, rng, B=B, hidden_size=17, **options)
    expected = run_onnx(cell, layer.parameters, x, state, LENGTHS, bidirectional)

    output, final = layer(x, state, LENGTHS)
    oracle_output, oracle_final = oracle(cell, layer, x, state, LENGTHS, **options)
    bound = 2 * tolerance(T, 6, 17, **options)  # ONNX Runtime errs too
    for ours, truth, theirs in zip(
        (output, *arrays(final)), (oracle_output, *arrays(oracle_final)), expected, strict=True
    ):
        assert_close(truth, theirs, bound)
        assert_close(ours, theirs, bound)
