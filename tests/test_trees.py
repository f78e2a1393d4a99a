"""Trees, and the networks on them: a recursive oracle, central differences, chains, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn.trees import RecursiveNetwork, TreeLSTM, Trees
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
I, H = 2, 3  # noqa: E741
KINDS = ("child_sum", "binary", "recursive")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_lstm = pytest.mark.parametrize("kind", KINDS[:2])

BINARY = [((0, 1), (2, (3, 4))), 5, (6, 7)]
# One child, two, three; leaves of different depths; a tree that is a leaf.
SHAPES = {
    "child_sum": [((0, 1, 2), [3], 4), 5, ((6,),), (7, (8, 9))],
    "binary": [*BINARY, ((8,),), ([9], (10, 11))],
    "recursive": BINARY,
}


def make(kind: str, **options: Any) -> TreeLSTM | RecursiveNetwork:
    options = {"seed": 1, "dtype": np.float64} | options
    if kind == "recursive":
        return RecursiveNetwork(H, **options)
    return TreeLSTM(I, H, kind, **options)


def draw(kind: str, trees: Trees, rng: Rng, leaves_only: bool = False) -> Array:
    if kind == "recursive":
        return rng.normal(size=(len(trees.leaf), H))
    return rng.normal(size=(len(trees.leaf) if leaves_only else trees.nodes, I))


def random_binary(leaves: int, rng: Rng) -> Any:
    if leaves == 1:
        return int(rng.integers(100))
    left = int(rng.integers(1, leaves))
    return random_binary(left, rng), random_binary(leaves - left, rng)


def run(layer: Any, x: Array, trees: Trees) -> tuple[Array, Array]:
    h, c, _ = layer.forward(x, trees)
    return h, np.zeros_like(h) if c is None else c


# The oracle: one node at a time, by recursion, from the equations of the papers.


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def child_sum_node(p: dict[str, Array], x: Array, children: list[Any]) -> tuple[Array, Array]:
    W, U, b = (dict(zip("ifuo", np.split(p[name], 4), strict=True)) for name in p)
    total = sum((h for h, _ in children), np.zeros(H))
    i, o = (sigmoid(W[g] @ x + U[g] @ total + b[g]) for g in "io")
    u = np.tanh(W["u"] @ x + U["u"] @ total + b["u"])
    c = i * u
    for h_k, c_k in children:
        c = c + sigmoid(W["f"] @ x + U["f"] @ h_k + b["f"]) * c_k
    return o * np.tanh(c), c


def binary_node(p: dict[str, Array], x: Array, children: list[Any]) -> tuple[Array, Array]:
    W, b = (dict(zip("ifuo", np.split(p[name], 4), strict=True)) for name in ("weight_ih", "bias"))
    U = dict(zip(("i", "f0", "f1", "u", "o"), np.split(p["weight_hh"], 5), strict=True))
    both = children + [(np.zeros(H), np.zeros(H))] * (2 - len(children))

    def gate(g: str, rows: str) -> Array:
        left, right = U[rows][:, :H], U[rows][:, H:]
        a: Array = W[g] @ x + left @ both[0][0] + right @ both[1][0] + b[g]
        return a

    c = sigmoid(gate("i", "i")) * np.tanh(gate("u", "u"))
    for k in range(2):
        c = c + sigmoid(gate("f", f"f{k}")) * both[k][1]
    return sigmoid(gate("o", "o")) * np.tanh(c), c


def oracle(kind: str, layer: Any, x: Array, trees: Trees) -> tuple[Array, Array]:
    p = dict(layer.parameters)
    h, c = np.zeros((2, trees.nodes, H))

    def visit(node: int) -> tuple[Array, Array]:
        children = [visit(int(child)) for child in np.flatnonzero(trees.parent == node)]
        if kind == "child_sum":
            h[node], c[node] = child_sum_node(p, x[node], children)
        elif kind == "binary":
            h[node], c[node] = binary_node(p, x[node], children)
        elif children:
            joined = np.concatenate([children[0][0], children[1][0]])
            h[node] = np.tanh(p["weight"] @ joined + p["bias"])
        else:
            h[node] = x[trees.leaf.tolist().index(node)]
        return h[node], c[node]

    for root in trees.root:
        visit(int(root))
    return h, c


@every_kind
def test_oracle(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested(SHAPES[kind] + [random_binary(20, rng) for _ in range(5)])
    layer = make(kind)
    x = draw(kind, trees, rng)
    for actual, expected in zip(run(layer, x, trees), oracle(kind, layer, x, trees), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


@every_kind
def test_float32(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested(SHAPES[kind])
    single, double = make(kind, dtype=np.float32), make(kind)
    double.load_state_dict(single.state_dict())
    x = draw(kind, trees, rng).astype(np.float32)
    h, _, tape = single.forward(x, trees)
    reference, _, exact = double.forward(x.astype(np.float64), trees)
    assert h.dtype == np.float32
    np.testing.assert_allclose(h, reference, rtol=0, atol=1e-6)
    g, g_exact = single.backward(tape, h), double.backward(exact, reference)
    for name, gradient in g.parameters.items():
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, g_exact.parameters[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid"])
def test_nonlinearity(nonlinearity: str, rng: Rng) -> None:
    layer = RecursiveNetwork(H, nonlinearity=nonlinearity, seed=0, dtype=np.float64)
    x = rng.normal(size=(2, H))
    a = layer.parameters["weight"] @ x.reshape(-1) + layer.parameters["bias"]
    expected = {"tanh": np.tanh(a), "relu": np.maximum(a, 0), "sigmoid": sigmoid(a)}
    h = layer(x, Trees.from_nested([(0, 1)]))
    np.testing.assert_allclose(h[0], expected[nonlinearity], rtol=0, atol=1e-14)


# Gradients.


def differences(loss: Any, array: Array, step: float = 1e-6) -> Array:
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        before = array[index]
        array[index] = before + step
        above = loss()
        array[index] = before - step
        result[index] = (above - loss()) / (2 * step)
        array[index] = before
    return result


@every_kind
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leaves_only", [True, False])
def test_gradients(kind: str, bias: bool, leaves_only: bool, rng: Rng) -> None:
    trees = Trees.from_nested(SHAPES[kind])
    layer = make(kind, bias=bias)
    x = draw(kind, trees, rng, leaves_only)
    to_h, to_c = rng.normal(size=(2, trees.nodes, H))

    def loss() -> float:
        h, c = run(layer, x, trees)
        return float((h * to_h).sum() + (c * to_c).sum())

    tape = layer.forward(x, trees)[-1]
    g = layer.backward(tape, to_h, None if kind == "recursive" else to_c)
    assert g.state is None
    assert list(g.parameters) == list(layer.parameters)
    assert ("bias" in g.parameters) == bias
    assert g.input is not None
    np.testing.assert_allclose(g.input, differences(loss, x), rtol=0, atol=1e-8)
    for name, parameter in layer.parameters.items():
        expected = differences(loss, parameter)
        np.testing.assert_allclose(g.parameters[name], expected, rtol=0, atol=1e-8, err_msg=name)


@every_lstm
def test_one_gradient_alone(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested(SHAPES[kind])
    layer = make(kind)
    x, grads = draw(kind, trees, rng), rng.normal(size=(2, trees.nodes, H))
    both, h_alone, c_alone = (
        layer.backward(layer.forward(x, trees)[-1], *given)
        for given in ((grads[0], grads[1]), (grads[0],), (None, grads[1]))
    )
    assert np.abs(c_alone.parameters["weight_hh"]).max() > 0
    for name in layer.parameters:
        total = h_alone.parameters[name] + c_alone.parameters[name]
        np.testing.assert_allclose(both.parameters[name], total, rtol=0, atol=1e-13)


@every_kind
def test_input_grad_is_optional(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested(SHAPES[kind])
    layer = make(kind)
    x, grad = draw(kind, trees, rng), rng.normal(size=(trees.nodes, H))
    full = layer.backward(layer.forward(x, trees)[-1], grad)
    without = layer.backward(layer.forward(x, trees)[-1], grad, input_grad=False)
    assert without.input is None
    for name in layer.parameters:
        np.testing.assert_array_equal(without.parameters[name], full.parameters[name])


# What must not matter.


@every_lstm
@pytest.mark.parametrize("length", [1, 7, 500])
def test_chain_is_lstm(kind: str, length: int, rng: Rng) -> None:
    layer = make(kind)
    lstm = fastrnn.LSTM(I, H, seed=0, dtype=np.float64)
    U = layer.parameters["weight_hh"]
    rows = np.delete(np.arange(5 * H), np.s_[2 * H : 3 * H]) if kind == "binary" else np.s_[:]
    state = {
        "weight_ih_l0": layer.parameters["weight_ih"],
        "weight_hh_l0": U[rows, :H],
        "bias_ih_l0": layer.parameters["bias"],
        "bias_hh_l0": np.zeros(4 * H),
    }
    lstm.load_state_dict(state)
    trees = Trees.from_parents([[*range(1, length), -1]])
    assert trees.height[-1] == length - 1
    x, grad = rng.normal(size=(length, I)), rng.normal(size=(length, H))
    h, c, tape = layer.forward(x, trees)
    output, (_, c_n), lstm_tape = lstm.forward(x)
    np.testing.assert_allclose(h, output, rtol=0, atol=1e-14)
    assert c is not None
    np.testing.assert_allclose(c[-1], c_n[0], rtol=0, atol=1e-14)
    g, expected = layer.backward(tape, grad), lstm.backward(lstm_tape, grad)
    np.testing.assert_allclose(g.input, expected.input, rtol=0, atol=1e-12)
    for name, gradient in (("weight_ih", g.parameters["weight_ih"]), ("bias_ih", None)):
        actual = g.parameters["bias"] if gradient is None else gradient
        np.testing.assert_allclose(actual, expected.parameters[f"{name}_l0"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        g.parameters["weight_hh"][rows, :H], expected.parameters["weight_hh_l0"], rtol=0, atol=1e-11
    )


def test_order_of_children(rng: Rng) -> None:
    x = rng.normal(size=(7, I))  # children 1 to 5 of the root, 6 a child of 1
    order = np.array([0, 4, 1, 5, 3, 2, 6])
    parent = np.array([-1, 0, 0, 0, 0, 0, 1])
    moved = parent.copy()
    moved[6] = int(np.flatnonzero(order == 1)[0])
    layer, other = make("child_sum"), make("binary")
    h, _ = run(layer, x, Trees([parent]))
    permuted, _ = run(layer, x[order], Trees([moved]))
    np.testing.assert_allclose(permuted, h[order], rtol=0, atol=1e-15)
    pair, swapped = x[:3], x[[0, 2, 1]]
    trees = Trees([[-1, 0, 0]])
    assert np.abs(other(pair, trees)[0][0] - other(swapped, trees)[0][0]).max() > 1e-3


@every_kind
def test_same_bits_alone_and_in_a_forest(kind: str, rng: Rng) -> None:
    shapes = SHAPES[kind] + [random_binary(15, rng) for _ in range(20)]
    layer = make(kind, dtype=np.float32)
    trees = Trees.from_nested(shapes)
    x = draw(kind, trees, rng).astype(np.float32)
    h, c = run(layer, x, trees)
    of_rows = trees.tree[trees.leaf] if kind == "recursive" else trees.tree
    for i, shape in enumerate(shapes):
        alone_h, alone_c = run(layer, x[of_rows == i], Trees.from_nested([shape]))
        np.testing.assert_array_equal(alone_h, h[trees.tree == i])
        np.testing.assert_array_equal(alone_c, c[trees.tree == i])


@every_kind
def test_order_of_nodes(kind: str, rng: Rng) -> None:
    # Children before parents: what is numbered by hand need not be numbered as from_nested does.
    nested = Trees.from_nested([((0, 1), 2)])  # nodes: root, inner, 0, 1, 2
    number = np.array([4, 2, 0, 1, 3])  # of these nodes in the other trees
    other = Trees.from_parents([[2, 2, 4, 4, -1]], leaves=[0, 1, 2])
    layer = make(kind)
    x = draw(kind, nested, rng)
    moved = x if kind == "recursive" else x[np.argsort(number)]
    h, _ = run(layer, x, nested)
    np.testing.assert_array_equal(run(layer, moved, other)[0][number], h)


@every_lstm
def test_leaves_only(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested(SHAPES[kind])
    layer = make(kind)
    x = draw(kind, trees, rng, leaves_only=True)
    full = np.zeros((trees.nodes, I))
    full[trees.leaf] = x
    for actual, expected in zip(run(layer, x, trees), run(layer, full, trees), strict=True):
        np.testing.assert_array_equal(actual, expected)


# Protocol.


@every_kind
def test_call_has_the_bits_of_forward(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested(SHAPES[kind])
    layer = make(kind)
    x = draw(kind, trees, rng)
    expected = run(layer, x, trees)

    def check(other: Any) -> None:
        result = other(x, trees)
        parts = result if isinstance(result, tuple) else (result, np.zeros_like(result))
        for actual, part in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(actual, part)

    check(layer)
    check(layer.eval())
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer, 5))):
        assert not copied.training
        check(copied)
    with pytest.raises(ValueError, match="read-only"):
        next(iter(layer.parameters.values()))[:] = 0
    fresh = make(kind, seed=2).eval()
    fresh.load_state_dict(layer.state_dict())
    check(fresh)
    copied.train()
    for parameter in copied.parameters.values():
        parameter[:] = 0
    check(layer)  # which shares nothing with its copy


@every_kind
def test_tapes(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested(SHAPES[kind])
    layer = make(kind)
    x, grad = draw(kind, trees, rng), rng.normal(size=(trees.nodes, H))
    expected = layer.backward(layer.forward(x, trees)[-1], grad)
    tape = layer.forward(x, trees)[-1]
    layer.forward(x + 1, trees)
    x[:] = np.nan
    for parameter in layer.parameters.values():
        parameter[:] = np.nan
    g = layer.backward(tape, grad)  # of the call as it was
    for name in layer.parameters:
        np.testing.assert_array_equal(g.parameters[name], expected.parameters[name])
    with pytest.raises(ValueError, match="tape: expected one that is open"):
        layer.backward(tape, grad)
    with pytest.raises(ValueError, match="got another layer's"):
        make(kind).backward(tape, grad)
    with pytest.raises(TypeError, match="tape: expected what forward returned"):
        layer.backward(None, grad)


@every_kind
def test_it_learns(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested([random_binary(int(n), rng) for n in rng.integers(2, 9, 20)])
    layer = make(kind)
    x = draw(kind, trees, rng)
    target = rng.uniform(-0.5, 0.5, (len(trees), H))
    optimizer = fastrnn.optimizers.Adam(0.03)
    losses = []
    for _ in range(60):
        h, _, tape = layer.forward(x, trees)
        value, grad = fastrnn.losses.MSE()(trees.roots(h), target)
        losses.append(value)
        g = layer.backward(tape, trees.roots_backward(grad))
        optimizer.update(layer.parameters, g.parameters)
    assert losses[-1] < 0.7 * losses[0]


def test_representation() -> None:
    assert repr(TreeLSTM(2, 3)) == "TreeLSTM(2, 3)"
    layer = TreeLSTM(2, 3, "binary", bias=False, dtype=np.float64)
    assert repr(layer) == "TreeLSTM(2, 3, kind='binary', bias=False, dtype='float64')"
    assert repr(RecursiveNetwork(3, nonlinearity="relu")) == (
        "RecursiveNetwork(3, nonlinearity='relu')"
    )
    assert layer.output_shape(("N", 2)) == ("N", 3)
    assert layer.multiply_adds(("N", 2)) == 4 * 3 * 2 + 5 * 3 * 2 * 3


# Trees.


def test_nested() -> None:
    array = np.zeros(3)
    trees = Trees.from_nested([[("a", array), (("b",), "c", "d")], "e"])
    assert trees.parent.tolist() == [-1, 0, 1, 1, 0, 4, 5, 4, 4, -1]
    assert trees.tree.tolist() == [0] * 9 + [1]
    assert trees.root.tolist() == [0, 9]
    assert trees.height.tolist() == [3, 1, 0, 0, 2, 1, 0, 0, 0, 0]
    assert trees.child_counts.tolist() == [2, 2, 0, 0, 3, 1, 0, 0, 0, 0]
    assert trees.leaf.tolist() == [2, 3, 6, 7, 8, 9]
    assert trees.leaves is not None
    assert trees.leaves[0] == "a"
    assert trees.leaves[1] is array
    assert trees.leaves[2:] == ("b", "c", "d", "e")
    assert (len(trees), trees.nodes) == (2, 10)
    same = Trees.from_parents([[-1, 0, 1, 1, 0, 4, 5, 4, 4], [-1]])
    np.testing.assert_array_equal(same.height, trees.height)
    assert same.leaves is None


def test_shared_parts_are_separate_nodes() -> None:
    part = (1, 2)
    assert Trees.from_nested([(part, part)]).nodes == 7


def test_trees_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Trees([[-1, 0]]).parent[0] = 1


def test_deep_nesting() -> None:
    tree: Any = 0
    for i in range(1, 20_000):
        tree = (tree, i)
    trees = Trees.from_nested([tree])
    assert trees.height[0] == 19_999
    assert trees.leaves == tuple(range(20_000))


def test_roots(rng: Rng) -> None:
    trees = Trees.from_nested(BINARY)
    h, grad = rng.normal(size=(trees.nodes, H)), rng.normal(size=(len(trees), H))
    picked = trees.roots(h)
    np.testing.assert_array_equal(picked, h[[0, 9, 10]])
    back = trees.roots_backward(grad)
    assert back.shape == h.shape
    np.testing.assert_allclose((back * h).sum(), (grad * picked).sum(), rtol=1e-12)


def test_lists_that_contain_themselves() -> None:
    tree: list[Any] = [1]
    tree.append(tree)
    with pytest.raises(ValueError, match=r"trees\[0\]: .* a list that contains itself"):
        Trees.from_nested([tree])


@pytest.mark.parametrize(
    ("parents", "leaves", "error", "message"),
    [
        ([], None, ValueError, "parents: expected one tree or more, got none"),
        ([[-1], []], None, ValueError, r"parents\[1\]: expected integers .*, got \(0,\)"),
        ([[[-1]]], None, ValueError, r"parents\[0\]: .* got \(1, 1\)"),
        ([[-1.0, 0.0]], None, TypeError, r"parents\[0\]: .* float64"),
        ([[-1, 0, -1]], None, ValueError, r"parents\[0\]: expected one root \(-1\), got 2"),
        ([[1, 0]], None, ValueError, r"parents\[0\]: expected one root \(-1\), got 0"),
        ([[-1, 2]], None, ValueError, r"expected integers in \[-1, 2\), got 2"),
        ([[-1, -2]], None, ValueError, r"expected integers in \[-1, 2\), got -2"),
        ([[-1], [-1, 2, 1]], None, ValueError, r"parents\[1\]: .* cycle at or below node 1"),
        ([[-1, 1]], None, ValueError, r"parents\[0\]: .* cycle at or below node 1"),
        ([[-1, 0, 0]], [1], ValueError, "leaves: expected 2 values, one per leaf, got 1"),
    ],
)
def test_wrong_parents(parents: Any, leaves: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Trees.from_parents(parents, leaves)


@pytest.mark.parametrize(
    ("nested", "error", "message"),
    [
        ([], ValueError, "trees: expected one tree or more, got none"),
        (5, TypeError, "trees: expected a list of trees, got int"),
        ([1, ()], ValueError, r"trees\[1\]: expected a child or more of each node, got none"),
        ([(1, (2, []))], ValueError, r"trees\[0\]: expected a child or more"),
    ],
)
def test_wrong_nested(nested: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Trees.from_nested(nested)


def test_wrong_rows_of_roots() -> None:
    trees = Trees.from_nested([(1, 2), 3])
    with pytest.raises(ValueError, match=r"h: expected \(4, ...\), got \(3, 2\)"):
        trees.roots(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"grad: expected \(2, ...\), got \(4, 2\)"):
        trees.roots_backward(np.zeros((4, 2)))


# Wrong calls.


def test_wrong_options() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (TreeLSTM, {"input_size": 0, "hidden_size": 3}, "input_size"),
        (TreeLSTM, {"input_size": 2, "hidden_size": 0}, "hidden_size"),
        (TreeLSTM, {"input_size": 2, "hidden_size": 3, "kind": "ternary"}, "kind"),
        (TreeLSTM, {"input_size": 2, "hidden_size": 3, "dtype": np.int64}, "dtype"),
        (RecursiveNetwork, {"hidden_size": 3, "nonlinearity": "gelu"}, "nonlinearity"),
    ]
    for make_layer, options, name in wrong:
        with pytest.raises(ValueError, match=f"{name}: expected"):
            make_layer(**options)


@every_kind
def test_wrong_inputs(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested([(0, 1)])
    layer = make(kind)
    size = H if kind == "recursive" else I
    expected = rf"x: expected .*\(2, {size}\) float64, got "
    for x in (np.zeros((4, size)), np.zeros((2, size + 1)), np.zeros((2, size), np.float32)):
        for call in (layer, layer.forward):
            with pytest.raises(ValueError, match=expected):
                call(x, trees)
    with pytest.raises(TypeError, match="x: expected an array, got list"):
        layer.forward([[0.0]], trees)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="trees: expected Trees, got list"):
        layer.forward(np.zeros((2, size)), [(0, 1)])  # type: ignore[arg-type]


def test_inner_nodes_have_no_vectors() -> None:
    with pytest.raises(ValueError, match=r"x: expected \(2, 3\) float64, got \(3, 3\)"):
        make("recursive")(np.zeros((3, H)), Trees.from_nested([(0, 1)]))


@pytest.mark.parametrize(
    ("kind", "nested", "message"),
    [
        ("binary", [1, (1, (2, 3, 4))], "two children or fewer of each node, got 3 of node 3"),
        ("recursive", [1, (1, (2, 3, 4))], "two children or none of each node, got 3 of node 3"),
        ("recursive", [(1,)], "two children or none of each node, got 1 of node 0"),
    ],
)
def test_wrong_numbers_of_children(kind: str, nested: Any, message: str) -> None:
    trees = Trees.from_nested(nested)
    with pytest.raises(ValueError, match=f"trees: expected {message}"):
        make(kind).forward(np.zeros((trees.nodes, I)), trees)


@every_kind
def test_wrong_gradients(kind: str, rng: Rng) -> None:
    trees = Trees.from_nested([(0, 1)])
    layer = make(kind)
    tape = layer.forward(draw(kind, trees, rng), trees)[-1]
    for grad in (np.zeros((2, H)), np.zeros((3, H), np.float32)):
        with pytest.raises(ValueError, match=r"grad_output: expected \(3, 3\) float64, got "):
            layer.backward(tape, grad)
    with pytest.raises(ValueError, match="grad_state: expected "):
        layer.backward(tape, None, np.zeros((2, H)))
    with pytest.raises(TypeError, match="input_grad: expected True or False"):
        layer.backward(tape, input_grad=1)  # type: ignore[arg-type]
    layer.backward(tape, np.zeros((3, H)))  # still open
