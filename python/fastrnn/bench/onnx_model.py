"""The ONNX Runtime peer's graph: one recurrent node for each layer, made from torch.nn's weights.

ONNX stores W (D, G·H, I), R (D, G·H, H) and B (D, 2·G·H), and returns Y (T, D, B, H).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.bench.problem import STATES, Array, Problem
from fastrnn.bench.suites import GATES, Shape

GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
"""Where ONNX's gates (i, o, f, c; z, r, h) are in torch's order (i, f, g, o; r, z, n)."""

# Old enough for every ONNX Runtime that installs today; the operators are those of opset 14.
_OPSET, _IR_VERSION = 17, 8


def build(problem: Problem) -> bytes:
    """Serialise the model; the initial state is an input only where the problem has one."""
    from onnx import TensorProto, helper, numpy_helper

    shape = problem.shape
    kinds = STATES[shape.cell]
    nodes, weights, outputs = [], [], []
    inputs = {"x": (shape.T, shape.B, shape.I)}
    layer_input = "x"
    for layer in range(shape.layers):
        names = [f"{name}_{layer}" for name in "WRB"]
        arrays = _layer_weights(problem, layer)
        weights += [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)]
        initial = [] if problem.state is None else [f"initial_{kind}_{layer}" for kind in kinds]
        inputs |= dict.fromkeys(initial, (1, shape.B, shape.H))
        sequence = "" if shape.step else f"Y_{layer}"
        final = [f"{kind}_{layer}" for kind in kinds]
        attributes: dict[str, Any] = {"hidden_size": shape.H}
        if shape.bidirectional:
            attributes["direction"] = "bidirectional"
        if shape.cell == "gru":
            attributes["linear_before_reset"] = 1
        nodes.append(
            helper.make_node(
                shape.cell.upper(),
                # The empty name is sequence_lens.
                [layer_input, *names, *([""] if initial else []), *initial],
                [sequence, *final],
                **attributes,
            )
        )
        outputs += final
        if shape.step:
            layer_input = final[0]  # (1, B, H): already the shape of one step's input
        elif layer < shape.layers - 1:
            layer_input = f"x_{layer + 1}"
            nodes += [
                helper.make_node("Transpose", [sequence], [f"T_{layer}"], perm=(0, 2, 1, 3)),
                helper.make_node("Reshape", [f"T_{layer}", "merged"], [layer_input]),
            ]
        else:
            outputs.insert(0, sequence)
    if shape.layers > 1:
        merged = np.array([shape.T, shape.B, shape.directions * shape.H])
        weights.append(numpy_helper.from_array(merged, "merged"))

    graph = helper.make_graph(
        nodes,
        shape.cell,
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
            for name, size in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    return bytes(model.SerializeToString())


def feeds(problem: Problem) -> dict[str, Array]:
    """Name the session's inputs."""
    if problem.state is None:
        return {"x": problem.x}
    named = {"x": problem.x[None]}
    for kind, part in zip(STATES[problem.shape.cell], problem.state, strict=True):
        for layer in range(problem.shape.layers):
            named[f"initial_{kind}_{layer}"] = part[layer : layer + 1]
    return named


def arrays(shape: Shape, outputs: list[Array]) -> list[Array]:
    """Turn the session's outputs into output, h and (LSTM) c in torch.nn's layout."""
    kinds = len(STATES[shape.cell])
    finals = outputs[-kinds * shape.layers :]
    states = [np.concatenate(finals[kind::kinds]) for kind in range(kinds)]
    if shape.step:
        return [states[0][-1], *states]
    output = outputs[0].transpose(0, 2, 1, 3).reshape(shape.T, shape.B, -1)
    return [output, *states]


def _layer_weights(problem: Problem, layer: int) -> tuple[Array, Array, Array]:
    """W, R and B of one layer."""
    shape = problem.shape

    def directions(name: str) -> Array:
        return np.stack(
            [
                _reorder(problem.weights[f"{name}_l{layer}{suffix}"], shape)
                for suffix in ("", "_reverse")[: shape.directions]
            ]
        )

    bias = np.concatenate([directions("bias_ih"), directions("bias_hh")], axis=1)
    return directions("weight_ih"), directions("weight_hh"), bias


def _reorder(weight: Array, shape: Shape) -> Array:
    gates = weight.reshape(GATES[shape.cell], shape.H, *weight.shape[1:])
    reordered: Array = gates[list(GATE_ORDER[shape.cell])].reshape(weight.shape)
    return reordered
