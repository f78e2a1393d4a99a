"""The modules of fastrnn.torch against torch.nn's, and their extras against the NumPy layers."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastrnn
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastrnn.torch  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread_for_torch"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

T, B, INPUTS, H = 5, 3, 5, 7
SEQUENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "lstm_proj": ("LSTM", {"proj_size": 4}),
    "gru": ("GRU", {}),
}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNNCell", {}),
    "rnn_relu": ("RNNCell", {"nonlinearity": "relu"}),
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
}
NAMES = ["RNN", "LSTM", "GRU"]
CELL_NAMES = ["RNNCell", "LSTMCell", "GRUCell"]
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}

names = pytest.mark.parametrize("name", NAMES)
all_names = pytest.mark.parametrize("name", NAMES + CELL_NAMES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(20140603)  # relu has kinks


def both(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Torch's module and ours, with the same parameters."""
    theirs = getattr(torch.nn, name)(*args, **options)
    ours = getattr(fastrnn.torch, name)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    ours.train(theirs.training)
    return theirs, ours


def small(name: str, **options: Any) -> tuple[Any, Any]:
    return both(name, INPUTS, H, dtype=torch.float64, **options)


def draw(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, dtype=dtype)


def draw_input(name: str) -> Any:
    return draw(B, INPUTS) if name.endswith("Cell") else draw(T, B, INPUTS)


def draw_state(module: Any, rows: tuple[int, ...] = (B,)) -> Any:
    """A random hx for any of the modules."""
    dtype = next(module.parameters()).dtype
    lead: tuple[int, ...] = ()
    width = module.hidden_size
    if isinstance(module, torch.nn.RNNBase):
        lead = (module.num_layers * (2 if module.bidirectional else 1),)
        width = module.proj_size or width
    h = draw(*lead, *rows, width, dtype=dtype)
    if isinstance(module, (torch.nn.LSTM, torch.nn.LSTMCell)):
        return h, draw(*lead, *rows, module.hidden_size, dtype=dtype)
    return h


def leaves(value: Any) -> list[Any]:
    """The floating tensors of inputs or outputs, in order."""
    if value is None:
        return []
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return [value.data]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in leaves(part)]
    return [value]


def rebuilt(value: Any, tensors: Iterator[Any]) -> Any:
    """The structure of `value` with other tensors in it."""
    if value is None:
        return None
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return torch.nn.utils.rnn.PackedSequence(next(tensors), *value[1:])
    if isinstance(value, (tuple, list)):
        return type(value)(rebuilt(part, tensors) for part in value)
    return next(tensors)


def fresh(value: Any) -> Any:
    """Copies that get gradients."""
    return rebuilt(value, (t.detach().clone().requires_grad_() for t in leaves(value)))


def assert_near(actual: Any, expected: Any, bound: float | None = None, what: str = "") -> None:
    assert type(actual) is type(expected), what
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    assert actual.requires_grad == expected.requires_grad, what
    assert torch.isfinite(expected).all(), what
    if expected.numel() == 0:
        return
    actual, expected = actual.detach(), expected.detach()
    bound = BOUNDS[expected.dtype] if bound is None else bound
    scale = max(1.0, float(expected.abs().max()))
    error = float((actual - expected).abs().max()) / scale
    assert error <= bound, f"{what}: error {error:.3g}, bound {bound:.3g}"


def assert_all_near(actual: Any, expected: Any, bound: float | None = None) -> None:
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_near(a, e, bound, f"tensor {i}")


def assert_same(actual: Any, expected: Any) -> None:
    """Bit for bit."""
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)


def weighted(outputs: Any) -> Any:
    """A random linear function of outputs, the same for the same shapes."""
    generator = torch.Generator().manual_seed(1)
    return sum(
        (y * torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype)).sum()
        for y in leaves(outputs)
        if y.requires_grad
    )


def grads_of(module: Any) -> dict[str, Any]:
    return {name: p.grad for name, p in module.named_parameters()}


def assert_grads(ours: Any, theirs: Any, bound: float | None = None) -> None:
    found, expected = grads_of(ours), grads_of(theirs)
    assert list(found) == list(expected)
    for name, grad in expected.items():
        if grad is None:
            assert found[name] is None, name
        else:
            assert_near(found[name], grad, bound, name)


def compare(theirs: Any, ours: Any, *given: Any, bound: float | None = None) -> tuple[Any, Any]:
    """Hold outputs, and gradients of everything, of one call against torch's."""
    outputs = []
    inputs = []
    for module in (theirs, ours):
        module.zero_grad(set_to_none=True)
        inputs.append(fresh(given))
        outputs.append(module(*inputs[-1]))
        weighted(outputs[-1]).backward()
    assert_all_near(outputs[1], outputs[0], bound)
    expected = [tensor.grad for tensor in leaves(inputs[0])]
    assert all(grad is not None for grad in expected)
    assert_all_near([tensor.grad for tensor in leaves(inputs[1])], expected, bound)
    assert_grads(ours, theirs, bound)
    return outputs[0], outputs[1]


def outcome(function: Callable[[], Any]) -> Any:
    """What comes out: a result, or an exception's type and message."""
    try:
        return function()
    except Exception as error:
        return type(error), str(error)


# Sequences.


@dtypes
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequence(
    kind: str,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    batched: bool,
    with_state: bool,
    dtype: Any,
) -> None:
    name, options = SEQUENCES[kind]
    theirs, ours = both(
        name,
        INPUTS,
        H,
        num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        bias=bias,
        dtype=dtype,
        **options,
    )
    shape = (T, INPUTS) if not batched else (B, T, INPUTS) if batch_first else (T, B, INPUTS)
    x = draw(*shape, dtype=dtype)
    hx = draw_state(ours, (B,) if batched else ()) if with_state else None
    compare(theirs, ours, x, hx)
    with torch.no_grad():
        assert_all_near(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize(("steps", "rows"), [(1, 1), (1, 4), (9, 1), (2, 0), (33, 17)])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequence_sizes(kind: str, steps: int, rows: int) -> None:
    name, options = SEQUENCES[kind]
    theirs, ours = both(name, INPUTS, H, 2, bidirectional=True, dtype=torch.float64, **options)
    compare(theirs, ours, draw(steps, rows, INPUTS), draw_state(ours, (rows,)))


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_packed(
    kind: str, num_layers: int, bidirectional: bool, with_state: bool, enforce_sorted: bool
) -> None:
    name, options = SEQUENCES[kind]
    theirs, ours = small(name, num_layers=num_layers, bidirectional=bidirectional, **options)
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        draw(5, 4, INPUTS), torch.tensor(lengths), enforce_sorted=enforce_sorted
    )
    hx = draw_state(ours, (4,)) if with_state else None
    (expected, _), (output, _) = compare(theirs, ours, packed, hx)
    assert isinstance(output, torch.nn.utils.rnn.PackedSequence)
    for part, whole in zip(output[1:], expected[1:], strict=True):
        assert part is whole is None or torch.equal(part, whole)
    with torch.no_grad():
        assert_all_near(ours(packed, hx), theirs(packed, hx))


@names
def test_packed_then_padded(name: str) -> None:
    theirs, ours = small(name, batch_first=True, bidirectional=True)
    utils = torch.nn.utils.rnn
    sequences = [draw(length, INPUTS) for length in (2, 6, 1)]
    packed = utils.pack_sequence(sequences, enforce_sorted=False)
    padded = [
        utils.pad_packed_sequence(module(packed)[0], batch_first=True) for module in (theirs, ours)
    ]
    assert padded[1][0].shape == (3, 6, 2 * H)
    assert_near(padded[1][0], padded[0][0])
    assert torch.equal(padded[1][1], torch.tensor([2, 6, 1]))


# Cells.


@dtypes
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_cell(kind: str, bias: bool, with_state: bool, batched: bool, dtype: Any) -> None:
    name, options = CELLS[kind]
    theirs, ours = both(name, INPUTS, H, bias=bias, dtype=dtype, **options)
    rows = (B,) if batched else ()
    x = draw(*rows, INPUTS, dtype=dtype)
    hx = draw_state(ours, rows) if with_state else None
    compare(theirs, ours, x, hx)
    with torch.no_grad():
        assert_all_near(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_cell_steps(kind: str, bias: bool, batched: bool) -> None:
    name, options = CELLS[kind]
    theirs, ours = small(name, bias=bias, **options)
    xs = draw(T, *((B,) if batched else ()), INPUTS)
    found = []
    for module in (theirs, ours):
        x, state, states = fresh(xs), None, []
        for step in x:
            state = module(step, state)
            states.append(state)
        weighted(states).backward()
        found.append((states, x.grad))
    assert_all_near(found[1][0], found[0][0])
    assert_near(found[1][1], found[0][1])
    assert_grads(ours, theirs)


@pytest.mark.parametrize("name", CELL_NAMES)
def test_cell_without_rows(name: str) -> None:
    compare(*small(name), draw(0, INPUTS))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("sizes", [(0, 4), (3, 0)])
@pytest.mark.parametrize("name", CELL_NAMES)
def test_cell_of_size_zero(name: str, sizes: tuple[int, int]) -> None:
    theirs, ours = both(name, *sizes, dtype=torch.float64)
    x = draw(B, sizes[0])
    assert_all_near(ours(x), theirs(x))


# Layouts, and what needs a gradient.

LAYOUTS: dict[str, Callable[..., Any]] = {
    "transposed": lambda *shape: draw(*shape[::-1]).permute(*reversed(range(len(shape)))),
    "every_other": lambda *shape: draw(*(2 * n for n in shape))[(slice(None, None, 2),) * 3],
    "offset": lambda *shape: draw(*(n + 1 for n in shape))[1:, 1:, 1:],
    "expanded": lambda *shape: draw(shape[-1]).expand(shape),
    "expanded_last": lambda *shape: draw(*shape[:-1], 1).expand(shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@names
def test_strided_input_and_state(name: str, layout: str) -> None:
    theirs, ours = small(name, num_layers=2)
    make = LAYOUTS[layout]
    x, h, c = make(T, B, INPUTS), make(2, B, H), make(2, B, H)
    assert not x.is_contiguous()
    found = []
    for module in (theirs, ours):
        given = [tensor.detach().requires_grad_() for tensor in (x, h, c)]
        assert given[0].stride() == x.stride()
        hx = tuple(given[1:]) if name == "LSTM" else given[1]
        outputs = module(given[0], hx)
        weighted(outputs).backward()
        found.append((outputs, [tensor.grad for tensor in given if tensor.grad is not None]))
        with torch.no_grad():
            assert_all_near([t.detach() for t in leaves(outputs)], module(given[0], hx))
    assert_all_near(found[1][0], found[0][0])
    assert_all_near(found[1][1], found[0][1])


@pytest.mark.parametrize("layout", LAYOUTS)
@names
def test_strided_output_gradients(name: str, layout: str) -> None:
    theirs, ours = small(name, num_layers=2, bidirectional=True)
    x = draw(T, B, INPUTS)
    outputs = [leaves(module(x)) for module in (theirs, ours)]
    gradients = [LAYOUTS[layout](*tensor.shape) for tensor in outputs[0]]
    for found in outputs:
        torch.autograd.backward(found, gradients)
    assert_grads(ours, theirs)


@pytest.mark.parametrize("name", CELL_NAMES)
def test_strided_cells(name: str) -> None:
    theirs, ours = small(name)
    found = []
    x, state = draw(INPUTS, B), draw(2, H, B)
    for module in (theirs, ours):
        given = [x.clone().requires_grad_(), state.clone().requires_grad_()]
        h, c = given[1].transpose(1, 2)
        outputs = module(given[0].t(), (h, c) if name == "LSTMCell" else h)
        sum(tensor.sum() for tensor in leaves(outputs)).backward()
        found.append((outputs, [tensor.grad for tensor in given]))
    assert_all_near(found[1], found[0])
    assert_grads(ours, theirs)


@names
def test_strided_parameters(name: str) -> None:
    theirs, ours = small(name)
    for module in (theirs, ours):
        module.weight_hh_l0.data = module.weight_hh_l0.data.t().contiguous().t()
    assert not ours.weight_hh_l0.is_contiguous()
    x = draw(T, B, INPUTS)
    compare(theirs, ours, x)
    with torch.no_grad():
        assert_all_near(ours(x), theirs(x))


@pytest.mark.parametrize("what", ["input", "state", "h", "c", "parameters", "one", "nothing"])
@all_names
def test_some_need_gradients(name: str, what: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    hx = draw_state(ours)
    found = []
    for module in (theirs, ours):
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(
                what == "parameters" or (what == "one" and key.startswith("weight_hh"))
            )
        given = x.clone().requires_grad_(what == "input")
        state = [part.clone() for part in leaves(hx)]
        for part, part_name in zip(state, "hc", strict=False):
            part.requires_grad_(what in ("state", part_name))
        outputs = module(given, tuple(state) if isinstance(hx, tuple) else state[0])
        if any(tensor.requires_grad for tensor in leaves(outputs)):
            weighted(outputs).backward()
        grads = [tensor.grad for tensor in (given, *state)]
        found.append((outputs, [grad is None for grad in grads], grads))
    assert found[1][1] == found[0][1]
    assert_all_near(found[1][0], found[0][0])
    assert_all_near(found[1][2], found[0][2])
    assert_grads(ours, theirs)
    if what == "one":
        assert sum(grad is not None for grad in grads_of(ours).values()) == 1


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)])
def test_some_outputs_have_gradients(used: tuple[int, ...]) -> None:
    theirs, ours = small("LSTM", num_layers=2)
    x, hx = draw(T, B, INPUTS), draw_state(ours)
    found = []
    for module in (theirs, ours):
        given = fresh((x, hx))
        outputs = leaves(module(*given))
        weighted([outputs[i] for i in used]).backward()
        found.append([tensor.grad for tensor in leaves(given)])
    assert_all_near(found[1], found[0])
    assert_grads(ours, theirs)


@names
def test_one_tensor_for_both_states(name: str) -> None:
    theirs, ours = small(name)
    found = []
    state = draw(1, B, H)
    for module in (theirs, ours):
        h = state.clone().requires_grad_()
        weighted(module(h.new_ones(T, B, INPUTS), (h, h) if name == "LSTM" else h)).backward()
        found.append(h.grad)
    assert_near(found[1], found[0])


@all_names
def test_backward_in_eval_mode(name: str) -> None:
    theirs, ours = small(name)
    theirs.eval()
    ours.eval()
    compare(theirs, ours, draw_input(name))


@names
def test_backward_in_eval_mode_has_no_dropout(name: str) -> None:
    theirs, ours = small(name, num_layers=2, dropout=0.5)
    theirs.eval()
    ours.eval()
    compare(theirs, ours, draw(T, B, INPUTS))


@all_names
def test_no_grad(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name).requires_grad_()
    with torch.no_grad():
        outputs, expected = ours(x), theirs(x)
    assert all(tensor.grad_fn is None for tensor in leaves(outputs))
    assert_all_near(outputs, expected)


@all_names
def test_inference_mode(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    with torch.inference_mode():
        outputs = ours(x)
        assert all(tensor.is_inference() for tensor in leaves(outputs))
        assert_all_near(outputs, theirs(x))
    assert_all_near(ours(x), theirs(x))


@all_names
def test_module_made_in_inference_mode(name: str) -> None:
    with torch.inference_mode():
        theirs, ours = small(name)
        x = draw_input(name)
        for _ in range(2):
            assert_all_near(ours(x), theirs(x))
            for module in (theirs, ours):
                for parameter in module.parameters():
                    parameter.mul_(1.5)  # tensors without versions
    with torch.no_grad():
        assert_all_near(ours(x), theirs(x))


@all_names
def test_inference_tensor_outside_inference_mode(name: str) -> None:
    theirs, ours = small(name)
    with torch.inference_mode():
        x = draw_input(name)
    results = [outcome(lambda module=module: module(x)) for module in (theirs, ours)]
    if isinstance(results[0], tuple) and isinstance(results[0][0], type):
        assert results[1][0] is results[0][0]
    else:
        assert_all_near(results[1], results[0])


# Graphs.


@all_names
def test_backward_twice(name: str) -> None:
    _, ours = small(name)
    x = draw_input(name).requires_grad_()
    loss = weighted(ours(x))
    runs = []
    for retain in (True, True, False):
        ours.zero_grad(set_to_none=True)
        x.grad = None
        loss.backward(retain_graph=retain)
        runs.append([x.grad, *grads_of(ours).values()])
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@names
def test_parts_of_a_graph_one_after_another(name: str) -> None:
    theirs, ours = small(name, num_layers=2)
    x = draw(T, B, INPUTS)
    for module in (theirs, ours):
        outputs = leaves(module(x))
        for i, tensor in enumerate(outputs):
            weighted(tensor).backward(retain_graph=i + 1 < len(outputs))
    assert_grads(ours, theirs)


@pytest.mark.parametrize(
    ("name", "which"),
    [
        (name, which)
        for name, outputs in (("RNN", 2), ("LSTM", 3), ("GRU", 2))
        for which in range(outputs)
    ]
    + [("RNNCell", 0), ("LSTMCell", 0), ("LSTMCell", 1), ("GRUCell", 0)],
)
def test_output_changed_in_place(name: str, which: int) -> None:
    _, ours = small(name)
    x, hx = draw_input(name), draw_state(ours)
    found = []
    for function in ("relu", "relu_"):
        ours.zero_grad(set_to_none=True)
        given = fresh((x, hx))
        outputs = leaves(ours(*given))
        outputs[which] = getattr(outputs[which], function)()
        weighted(outputs).backward()
        found.append([*outputs, *(t.grad for t in leaves(given)), *grads_of(ours).values()])
    assert_same(found[1], found[0])


@all_names
def test_output_changed_through_data(name: str) -> None:
    # Not tracked by torch: but nothing may be written to memory that others use.
    _, ours = small(name)
    x = draw_input(name)
    with torch.no_grad():
        expected = leaves(ours(x))
        kept = [tensor.clone() for tensor in expected]
        for tensor in leaves(ours(x)):
            tensor.fill_(7)
        assert_same(expected, kept)
        assert_same(ours(x), kept)


@pytest.mark.parametrize("what", ["input", "h", "weight"])
@all_names
def test_operand_changed_in_place(name: str, what: str) -> None:
    _, ours = small(name)
    x, hx = draw_input(name), draw_state(ours)
    loss = weighted(ours(x, hx))
    weight = next(ours.parameters())
    with torch.no_grad():
        {"input": x, "h": leaves(hx)[0], "weight": weight}[what].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@all_names
def test_graphs_are_freed(name: str) -> None:
    _, ours = small(name)
    gc.collect()
    gc.disable()  # no cycle may keep them
    try:
        for backward in (False, True):
            x = draw_input(name).requires_grad_() * 1
            saved = weakref.ref(x)
            outputs = leaves(ours(x))
            if backward:
                weighted(outputs).backward()
            del x, outputs
            assert saved() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("grad", [False, True])
@all_names
def test_calls_from_many_threads(name: str, grad: bool) -> None:
    _, ours = both(name, 8, 64)
    xs = [torch.randn(*((16,) if name.endswith("Cell") else (50, 16)), 8) for _ in range(8)]

    def run(x: Any) -> list[Any]:
        with torch.set_grad_enabled(grad):
            x = x.clone().requires_grad_()
            outputs = leaves(ours(x))
            if not grad:
                return outputs
            return [*outputs, *torch.autograd.grad(weighted(outputs), [x, *ours.parameters()])]

    expected = [run(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for actual, alone in zip(pool.map(run, xs), expected, strict=True):
                assert_same(actual, alone)


@pytest.mark.parametrize("grad", [False, True])
@all_names
def test_replicas_in_many_threads(name: str, grad: bool) -> None:
    # Made as torch.nn.DataParallel does: they share what a module keeps besides parameters.
    _, ours = both(name, 16, 64)
    x = torch.randn(*((16,) if name.endswith("Cell") else (20, 8)), 16)
    with torch.no_grad():
        ours(x)
    replicas = []
    for _ in range(6):
        replica = ours._replicate_for_data_parallel()
        for key, parameter in ours.named_parameters():
            setattr(replica, key, (torch.randn_like(parameter) / 8).requires_grad_())
        replicas.append(replica)

    def run(replica: Any) -> list[Any]:
        with torch.set_grad_enabled(grad):
            given = x.clone().requires_grad_()
            outputs = leaves(replica(given))
            return [*outputs, *torch.autograd.grad(weighted(outputs), given)] if grad else outputs

    expected = [run(replica) for replica in replicas]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for actual, alone in zip(pool.map(run, replicas), expected, strict=True):
                assert_same(actual, alone)


@pytest.mark.parametrize("grad", [False, True])
@all_names
def test_state_detached_in_place(name: str, grad: bool) -> None:
    theirs, ours = small(name)
    xs = [draw_input(name) for _ in range(3)]
    states = []
    for module in (theirs, ours):
        state = None
        for x in xs:
            with torch.set_grad_enabled(grad):
                result = module(x, state)
            state = result if name.endswith("Cell") else result[1]
            if grad:
                weighted(result).backward()
            for part in leaves(state):
                part.detach_()
        states.append(state)
    assert_all_near(states[1], states[0])
    if grad:
        assert_grads(ours, theirs)


@names
def test_options_changed_in_place(name: str) -> None:
    _, ours = small(name)
    x = draw(T, B, INPUTS)
    found = []
    for change in (False, True):
        ours.zero_grad(set_to_none=True)
        lengths, resets = torch.tensor([5, 0, 3]), torch.zeros(T, B, dtype=torch.bool)
        resets[2] = True
        y, _ = ours(x, lengths=lengths, resets=resets)
        loss = weighted(y)
        loss.backward(retain_graph=True)
        if change:
            lengths.fill_(1)
            resets.zero_()
        loss.backward()
        found.append(list(grads_of(ours).values()))
    assert_same(found[1], found[0])


@all_names
def test_saved_tensor_hooks(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    packs = []

    def pack(tensor: Any) -> Any:
        packs.append(tensor.shape)
        return tensor.clone()

    for module in (theirs, ours):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            packs.clear()
            loss = weighted(module(x.clone().requires_grad_()))
        assert packs
        loss.backward()
    assert_grads(ours, theirs)


@all_names
def test_batched_gradients(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    found = []
    seeds = None
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        y = leaves(module(given))[0]
        seeds = draw(4, *y.shape) if seeds is None else seeds
        found.append(
            torch.autograd.grad(y, (given, *module.parameters()), seeds, is_grads_batched=True)
        )
    assert_all_near(found[1], found[0])


def second_order(module: Any, run: Callable[[Any], Any], *given: Any) -> list[Any]:
    """First gradients with a graph, and gradients of their squares."""
    wanted = [*given, *module.parameters()]
    first = torch.autograd.grad(weighted(run(module)), wanted, create_graph=True)
    penalty = sum((gradient**2).sum() for gradient in first)
    return [*first, *torch.autograd.grad(penalty, wanted)]


@all_names
def test_gradient_penalty(name: str) -> None:
    theirs, ours = small(name)
    x, hx = draw_input(name), draw_state(ours)
    found = []
    for module in (theirs, ours):
        given = fresh((x, hx))
        found.append(second_order(module, lambda m, given=given: m(*given), *leaves(given)))
    assert_all_near(found[1], found[0])


@all_names
def test_gradient_penalty_of_two_calls(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    found = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()

        def run(module: Any, given: Any = given) -> Any:
            if name.endswith("Cell"):
                return module(given, module(given))
            return module(given, module(given)[1])

        found.append(second_order(module, run, given))
    assert_all_near(found[1], found[0])


@all_names
def test_gradient_penalty_of_a_state_made_of_the_input(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    found = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()

        def run(module: Any, given: Any = given) -> Any:
            h = given.sum().expand((B, H) if name.endswith("Cell") else (1, B, H))
            return module(given, (h, 2 * h) if name.startswith("LSTM") else h)

        found.append(second_order(module, run, given))
    assert_all_near(found[1], found[0])


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_gradient_penalty_of_one_tensor_for_both_states(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    state = draw_state(ours)[0]
    found = []
    for module in (theirs, ours):
        h = state.clone().requires_grad_()
        found.append(second_order(module, lambda m, h=h: m(x, (h, h)), h))
    assert_all_near(found[1], found[0])


@names
def test_gradient_penalty_of_tied_parameters(name: str) -> None:
    theirs, ours = small(name, num_layers=2)
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
    x = draw(T, B, INPUTS)
    assert len(list(ours.parameters())) == 7
    found = [second_order(module, lambda m: m(x)) for module in (theirs, ours)]
    assert_all_near(found[1], found[0])


# Changes of the parameters between calls that keep packed weights.


def optimizer_step(module: Any) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def data_write(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(1.25)


def data_replaced(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data * 1.25


def vector_written(module: Any) -> None:
    vector = torch.nn.utils.parameters_to_vector(module.parameters())
    torch.nn.utils.vector_to_parameters(vector * 1.25, module.parameters())


def parameter_replaced(module: Any) -> None:
    for key, parameter in list(module.named_parameters()):
        setattr(module, key, torch.nn.Parameter(parameter.detach() * 1.25))


def one_parameter_replaced(module: Any) -> None:
    key, parameter = next(iter(module.named_parameters()))
    setattr(module, key, torch.nn.Parameter(parameter.detach() * 1.25))


def state_dict_loaded(module: Any) -> None:
    module.load_state_dict({key: 1.25 * value for key, value in module.state_dict().items()})


def state_dict_assigned(module: Any) -> None:
    module.load_state_dict(
        {key: 1.25 * value for key, value in module.state_dict().items()}, assign=True
    )


def one_element(module: Any) -> None:
    next(module.parameters()).view(-1)[3] += 1


def one_element_through_data(module: Any) -> None:
    next(module.parameters()).data.view(-1)[3] += 1


def out_argument(module: Any) -> None:
    for parameter in module.parameters():
        torch.mul(parameter.detach(), 1.25, out=parameter)


def dtype_there_and_back(module: Any) -> None:
    module.float()
    module.double()


CHANGES = [
    optimizer_step,
    data_write,
    data_replaced,
    vector_written,
    parameter_replaced,
    one_parameter_replaced,
    state_dict_loaded,
    state_dict_assigned,
    one_element,
    one_element_through_data,
    out_argument,
    dtype_there_and_back,
]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@all_names
def test_changed_parameters_are_seen(name: str, change: Callable[[Any], None], grad: bool) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    with torch.set_grad_enabled(grad):
        before = ours(x)
        for _ in range(2):
            with torch.no_grad():
                for module in (theirs, ours):
                    change(module)
            after = ours(x)
            assert_all_near(after, theirs(x))
            if change is not dtype_there_and_back:
                assert not torch.equal(leaves(after)[0], leaves(before)[0])
    compare(theirs, ours, x)


@all_names
def test_interleaved_parameters(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    sets = [{key: draw(*p.shape) for key, p in ours.named_parameters()} for _ in range(2)]
    found = []
    for module in (theirs, ours):
        parameters = [{key: fresh(value) for key, value in given.items()} for given in sets]
        losses = [
            weighted(torch.func.functional_call(module, given, (x,)))
            for given in (*parameters, parameters[0])
        ]
        with torch.no_grad():
            module(x)
        for loss in (losses[1], losses[0], losses[2]):
            loss.backward()
        found.append([value.grad for given in parameters for value in given.values()])
    assert_all_near(found[1], found[0])


@all_names
def test_training_loop(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    losses = []
    for module in (theirs, ours):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        seen = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (leaves(module(x))[0] - 0.5).square().mean()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                seen += [loss.detach(), leaves(module(x))[0].mean()]
        losses.append(torch.stack(seen))
    assert_near(losses[1], losses[0], 1e-9)
    assert losses[1][-2] < losses[1][0]


@all_names
def test_functional_call(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    other = {key: draw(*p.shape) for key, p in ours.named_parameters()}
    found = []
    for module in (theirs, ours):
        parameters = {key: value.clone().requires_grad_() for key, value in other.items()}
        outputs = torch.func.functional_call(module, parameters, (x,))
        weighted(outputs).backward()
        found.append((outputs, [value.grad for value in parameters.values()]))
        assert all(grad is None for grad in grads_of(module).values())
        with torch.no_grad():
            outputs = torch.func.functional_call(module, parameters, (x,))
            found[-1] += (outputs, module(x))
    for actual, expected in zip(found[1], found[0], strict=True):
        assert_all_near(actual, expected)


# Copies.


def through_pickle(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
@all_names
def test_copies(name: str, copied: Callable[[Any], Any]) -> None:
    _, ours = small(name)
    x = draw_input(name)
    with torch.no_grad():
        expected = ours(x)  # which packs
        other = copied(ours)
        assert type(other) is type(ours)
        assert_same(other(x), expected)
        for parameter in other.parameters():
            parameter.add_(1)
        assert not torch.equal(leaves(other(x))[0], leaves(expected)[0])
        assert_same(ours(x), expected)
    weighted(other(x)).backward()
    assert all(grad is None for grad in grads_of(ours).values())
    assert all(grad is not None for grad in grads_of(other).values())


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_copies_keep_extras(copied: Callable[[Any], Any]) -> None:
    x = draw(T, B, INPUTS)
    for ours in (
        fastrnn.torch.LSTM(
            INPUTS,
            H,
            2,
            bidirectional=True,
            peephole=True,
            merge="sum",
            residual=True,
            dtype=torch.float64,
        ),
        fastrnn.torch.GRU(INPUTS, H, reset_after=False, dtype=torch.float64),
    ):
        other = copied(ours)
        assert repr(other) == repr(ours)
        assert_same(other(x), ours(x))


@all_names
def test_dtype_conversion(name: str) -> None:
    theirs, ours = both(name, INPUTS, H)
    x = draw_input(name)
    compare(theirs, ours, x.float())
    for module in (theirs, ours):
        module.to(torch.float64)
    compare(theirs, ours, x)
    for module in (theirs, ours):
        module.float()
    compare(theirs, ours, x.float())


@all_names
def test_same_initialization(name: str) -> None:
    states = []
    for namespace in (torch.nn, fastrnn.torch):
        torch.manual_seed(3)
        module = getattr(namespace, name)(INPUTS, H)
        states.append((module.state_dict(), torch.get_rng_state()))
    assert list(states[0][0]) == list(states[1][0])
    assert_same(list(states[1][0].values()), list(states[0][0].values()))
    assert torch.equal(states[1][1], states[0][1])


@names
def test_calls_without_dropout_draw_nothing(name: str) -> None:
    _, ours = small(name, num_layers=2, dropout=0.5)
    ours.eval()
    before = torch.get_rng_state()
    ours(torch.zeros(T, B, INPUTS, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), before)


# Hooks, containers and utilities of torch.


@all_names
def test_hooks(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    found = []
    for module in (theirs, ours):
        seen: list[Any] = []

        def before(module: Any, args: Any, seen: list[Any] = seen) -> Any:
            seen.append(("before", [a.detach().clone() for a in leaves(args)]))
            return (2 * args[0],)

        def after(module: Any, args: Any, output: Any, seen: list[Any] = seen) -> Any:
            seen.append(("after", [a.detach().clone() for a in leaves(output)]))
            return rebuilt(output, (3 * tensor for tensor in leaves(output)))

        def back(module: Any, grad_in: Any, grad_out: Any, seen: list[Any] = seen) -> None:
            seen.append(("back", [g.clone() for g in (*leaves(grad_in), *leaves(grad_out))]))

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        module.register_full_backward_hook(back)
        weighted(module(x.clone().requires_grad_())).backward()
        found.append(seen)
    assert [kind for kind, _ in found[1]] == ["before", "after", "back"]
    assert [kind for kind, _ in found[0]] == ["before", "after", "back"]
    for (_, actual), (_, expected) in zip(found[1], found[0], strict=True):
        assert_all_near(actual, expected)
    assert_grads(ours, theirs)


@all_names
def test_tensor_hooks_on_parameters(name: str) -> None:
    _, ours = small(name)
    x = draw_input(name)
    weighted(ours(x)).backward()
    parameter = next(ours.parameters())
    expected = 2 * parameter.grad
    ours.zero_grad(set_to_none=True)
    parameter.register_hook(lambda grad: 2 * grad)
    weighted(ours(x)).backward()
    assert_same(parameter.grad, expected)


@names
def test_sequential(name: str) -> None:
    class First(torch.nn.Module):
        def forward(self, outputs: Any) -> Any:
            return outputs[0]

    theirs, ours = small(name)
    linear = [torch.nn.Linear(INPUTS, INPUTS).double() for _ in range(2)]
    linear[1].load_state_dict(linear[0].state_dict())
    models = [
        torch.nn.Sequential(line, module, First(), torch.nn.Tanh())
        for line, module in zip(linear, (theirs, ours), strict=True)
    ]
    compare(*models, draw(T, B, INPUTS))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("how", ["parametrization", "old"])
@all_names
def test_weight_norm(name: str, how: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    suffix = "" if name.endswith("Cell") else "_l0"
    if how == "old":
        norm = torch.nn.utils.weight_norm
    else:
        norm = torch.nn.utils.parametrizations.weight_norm
    for module in (theirs, ours):
        norm(module, f"weight_hh{suffix}")
        norm(module, f"weight_ih{suffix}", dim=None)
    compare(theirs, ours, x)
    for _ in range(2):
        with torch.no_grad():
            assert_all_near(ours(x), theirs(x))
            for module in (theirs, ours):
                for parameter in module.parameters():
                    parameter.mul_(1.25)
    compare(theirs, ours, x)


@all_names
def test_spectral_norm(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    key = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    for module in (theirs, ours):
        torch.nn.utils.parametrizations.spectral_norm(module, key)
    ours.load_state_dict(theirs.state_dict())
    theirs.eval()  # every look at the weight in training mode is a step of its power iteration
    ours.eval()
    compare(theirs, ours, x)
    ours.train()
    for _ in range(50):
        ours(x)
    ours.eval()
    with torch.no_grad():
        norm = float(torch.linalg.matrix_norm(getattr(ours, key), 2))
    assert norm == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("use_reentrant", [False, True])
@names
def test_checkpoint(name: str, use_reentrant: bool, dropout: float) -> None:
    _, ours = small(name, num_layers=2, dropout=dropout)
    x = draw(T, B, INPUTS)
    found = []
    for checkpointed in (False, True):
        ours.zero_grad(set_to_none=True)
        given = x.clone().requires_grad_()
        torch.manual_seed(5)
        if checkpointed:
            outputs = torch.utils.checkpoint.checkpoint(
                lambda x: tuple(leaves(ours(x))), given, use_reentrant=use_reentrant
            )
        else:
            outputs = ours(given)
        weighted(outputs).backward()
        found.append([*leaves(outputs), given.grad, *grads_of(ours).values()])
    assert_same(found[1], found[0])


@all_names
def test_autocast(name: str) -> None:
    _, ours = both(name, INPUTS, H)
    x = draw_input(name).float()
    hx = draw_state(ours)
    expected = leaves(ours(x, hx))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (x, x.bfloat16()):
            outputs = leaves(ours(given.clone().requires_grad_(), hx))
            assert all(tensor.dtype == torch.float32 for tensor in outputs)
            assert_all_near(outputs, expected, 2e-2)
        linear = torch.nn.Linear(INPUTS, INPUTS)
        state = rebuilt(hx, (part.bfloat16() for part in leaves(hx)))
        outputs = leaves(ours(linear(x), state))
        assert all(tensor.dtype == torch.float32 for tensor in outputs)
    weighted(outputs).backward()
    assert all(grad.dtype == torch.float32 for grad in grads_of(ours).values())
    assert linear.weight.grad.abs().max() > 0


@names
def test_flatten_parameters(name: str) -> None:
    theirs, ours = small(name, num_layers=2)
    ours.flatten_parameters()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [len(group) for group in ours.all_weights] == [len(g) for g in theirs.all_weights]
    compare(theirs, ours, draw(T, B, INPUTS))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu", "bias": False}),
        ("LSTM", {"num_layers": 2, "proj_size": 3, "dropout": 0.5}),
        ("GRU", {"bidirectional": True, "batch_first": True}),
        ("RNNCell", {"nonlinearity": "relu"}),
        ("LSTMCell", {"bias": False}),
        ("GRUCell", {}),
    ],
)
def test_repr(name: str, options: dict[str, Any]) -> None:
    theirs, ours = both(name, INPUTS, H, **options)
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()


def test_repr_of_extras() -> None:
    ours = fastrnn.torch
    lstm = ours.LSTM(3, 4, bidirectional=True, peephole=True, merge="sum", residual=True)
    assert repr(lstm) == (
        "LSTM(3, 4, bidirectional=True, peephole=True, merge='sum', residual=True)"
    )
    assert repr(ours.GRU(3, 4, reset_after=False)) == "GRU(3, 4, reset_after=False)"
    assert repr(ours.RNN(3, 4, merge="max")) == "RNN(3, 4, merge='max')"


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.filterwarnings("ignore:.*ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
@all_names
def test_other_dtypes_are_torchs(name: str, dtype: Any) -> None:
    x = draw_input(name)
    found = []
    state = None

    def run(module: Any) -> Any:
        module.load_state_dict(state)
        given = x.to(dtype).requires_grad_()
        outputs = leaves(module(given))
        sum(tensor.real.sum() for tensor in outputs).backward()
        return [*outputs, given.grad, *grads_of(module).values()]

    for namespace in (torch.nn, fastrnn.torch):
        module = getattr(namespace, name)(INPUTS, H).to(dtype)
        state = module.state_dict() if state is None else state
        found.append(outcome(lambda module=module: run(module)))
    if isinstance(found[0], tuple):
        assert found[1] == found[0]
    else:
        assert_same(found[1], found[0])


@all_names
def test_tensor_subclass(name: str) -> None:
    class Tagged(torch.Tensor):
        pass

    theirs, ours = small(name)
    x = draw_input(name).as_subclass(Tagged)
    outputs, expected = leaves(ours(x)), leaves(theirs(x))
    assert [type(tensor) for tensor in outputs] == [type(tensor) for tensor in expected]
    assert Tagged in map(type, outputs)
    assert_all_near(outputs, expected)


@all_names
def test_parameter_as_input(name: str) -> None:
    theirs, ours = small(name)
    x = torch.nn.Parameter(draw_input(name))
    assert_all_near(ours(x), theirs(x))


@all_names
def test_meta_device(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = (
            getattr(namespace, name)(INPUTS, H) for namespace in (torch.nn, fastrnn.torch)
        )
        x = torch.zeros((B, INPUTS) if name.endswith("Cell") else (T, B, INPUTS))
    outputs, expected = leaves(ours(x)), leaves(theirs(x))
    assert [tensor.shape for tensor in outputs] == [tensor.shape for tensor in expected]
    assert all(tensor.is_meta for tensor in outputs)


@all_names
def test_dispatch_modes(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    theirs, ours = small(name)
    x = draw_input(name)
    flops = []
    for module in (theirs, ours):
        with FlopCounterMode(display=False) as counter:
            weighted(module(x)).backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
    assert_grads(ours, theirs)


TRANSFORMS: dict[str, Callable[[Callable[[Any], Any], Any], Any]] = {
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack((x, 2 * x))),
    "vmap_last": lambda f, x: torch.func.vmap(f, in_dims=-1)(torch.stack((x, 2 * x), -1)),
    "grad": lambda f, x: torch.func.grad(lambda a: weighted(f(a)))(x),
    "grad_of_grad": lambda f, x: torch.func.grad(
        lambda a: torch.func.grad(lambda b: weighted(f(b)))(a).square().sum()
    )(x),
    "vjp": lambda f, x: torch.func.vjp(lambda a: leaves(f(a))[0].sum(), x)[1](x.new_ones(())),
    "jvp": lambda f, x: torch.func.jvp(lambda a: leaves(f(a))[0], (x,), (x.cos(),)),
    "jacrev": lambda f, x: torch.func.jacrev(lambda a: leaves(f(a))[0].sum(-1))(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(lambda a: leaves(f(a))[0].sum(-1))(x),
    "hessian": lambda f, x: torch.func.hessian(lambda a: leaves(f(a))[0].sum())(x),
    "jacobian": lambda f, x: torch.autograd.functional.jacobian(lambda a: leaves(f(a))[0], x),
    "autograd_hessian": lambda f, x: torch.autograd.functional.hessian(
        lambda a: leaves(f(a))[0].sum(), x
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop because")
@pytest.mark.parametrize("transform", TRANSFORMS)
@all_names
def test_transforms(name: str, transform: str) -> None:
    theirs, ours = both(name, 2, 3, dtype=torch.float64)
    x = draw(2, 2) if name.endswith("Cell") else draw(3, 2, 2)
    results = [
        outcome(lambda module=module: TRANSFORMS[transform](module, x)) for module in (theirs, ours)
    ]
    if isinstance(results[0], tuple) and isinstance(results[0][0], type):
        assert isinstance(results[1], tuple)
        assert results[1][0] is results[0][0]
    else:
        assert_all_near(results[1], results[0], 1e-11)


@all_names
def test_vectorized_jacobian(name: str) -> None:
    theirs, ours = both(name, 2, 3, dtype=torch.float64)
    x = draw(2, 2) if name.endswith("Cell") else draw(3, 2, 2)
    results = [
        torch.autograd.functional.jacobian(
            lambda a, module=module: leaves(module(a))[0], x, vectorize=True
        )
        for module in (theirs, ours)
    ]
    assert_near(results[1], results[0])


@all_names
def test_per_sample_gradients(name: str) -> None:
    theirs, ours = both(name, 2, 3, dtype=torch.float64)
    xs = draw(4, 2) if name.endswith("Cell") else draw(4, 5, 2)
    found = []
    for module in (theirs, ours):
        parameters = {key: value.detach() for key, value in module.named_parameters()}

        def loss(parameters: Any, x: Any, module: Any = module) -> Any:
            return weighted(torch.func.functional_call(module, parameters, (x,)))

        found.append(
            outcome(
                lambda loss=loss, parameters=parameters: torch.func.vmap(
                    torch.func.grad(loss), in_dims=(None, 0), randomness="same"
                )(parameters, xs)
            )
        )
    assert type(found[1]) is type(found[0])
    if isinstance(found[0], dict):
        assert_all_near(list(found[1].values()), list(found[0].values()))
    else:
        assert found[1][0] is found[0][0]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@all_names
def test_forward_mode(name: str) -> None:
    theirs, ours = small(name)
    x, tangent = draw_input(name), draw_input(name)
    found = []
    for module in (theirs, ours):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            y = leaves(module(dual))[0]
            found.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    assert found[1] is not None
    assert_near(found[1], found[0])


@all_names
def test_fx(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    traced = [
        torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Identity(), module))
        for module in (theirs, ours)
    ]
    assert_all_near(traced[1](x), traced[0](x))


class Wrapped(torch.nn.Module):
    def __init__(self, module: Any) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x):
        return self.inner(x)


jit_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
trace_warnings = pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean")


@jit_warnings
@trace_warnings
@all_names
def test_jit_trace(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    traced = torch.jit.trace(Wrapped(ours), (x,))
    assert_all_near(traced(2 * x), theirs(2 * x))
    weighted(traced(x)).backward()
    weighted(theirs(x)).backward()
    assert_grads(ours, theirs)


@jit_warnings
@all_names
def test_jit_script(name: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    scripted = torch.jit.script(Wrapped(ours))
    assert_all_near(scripted(x), theirs(x))
    if name.endswith("Cell"):  # torch's sequences cannot be called so
        assert_all_near(torch.jit.script(ours)(x), theirs(x))
    assert type(ours) is getattr(fastrnn.torch, name)
    assert list(scripted.state_dict()) == [f"inner.{key}" for key in theirs.state_dict()]
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert_all_near(torch.jit.load(file)(x), theirs(x))


@jit_warnings
def test_jit_script_has_no_extras() -> None:
    with pytest.raises(TypeError, match="reset_after=False"):
        torch.jit.script(Wrapped(fastrnn.torch.GRU(3, 4, reset_after=False)))


# Dropout.


@names
def test_dropout_by_seed(name: str) -> None:
    _, ours = small(name, num_layers=3, dropout=0.5)
    x = draw(T, B, INPUTS)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        ours.zero_grad(set_to_none=True)
        outputs = [ours(x), ours(x)]
        weighted(outputs).backward()
        runs.append([*leaves(outputs), *grads_of(ours).values()])
    assert_same(runs[1], runs[0])
    assert not torch.equal(runs[2][0], runs[0][0])
    second = len(leaves(outputs)) // 2
    assert not torch.equal(runs[0][second], runs[0][0])
    with torch.no_grad():
        torch.manual_seed(1)
        assert_same(ours(x)[0], runs[0][0])


@pytest.mark.parametrize("dropout", [0.2, 0.7])
def test_dropout_statistics(dropout: float) -> None:
    ours = fastrnn.torch.RNN(1, 20, 2, nonlinearity="relu", dropout=dropout)
    with torch.no_grad():  # layer 0 puts out ones, layer 1 what it is given
        for parameter in ours.parameters():
            parameter.zero_()
        ours.bias_ih_l0.fill_(1)
        ours.weight_ih_l1.copy_(torch.eye(20))
        y, _ = ours(torch.zeros(25, 30, 1))
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - dropout)))
    assert float((~kept).double().mean()) == pytest.approx(dropout, abs=0.02)
    for dim in range(3):  # nothing is shared along a dimension
        share = kept.double().mean(dim)
        assert ((share > 0) & (share < 1)).double().mean() > 0.9
    assert not torch.equal(kept[1:], kept[:-1])


@names
def test_dropout_of_everything(name: str) -> None:
    theirs, ours = small(name, num_layers=2, dropout=1.0, bidirectional=True)
    x, hx = draw(T, B, INPUTS), draw_state(ours)
    compare(theirs, ours, x, hx)
    with torch.no_grad():
        assert_all_near(ours(x, hx), theirs(x, hx))


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@names
def test_dropout_of_one_layer_does_nothing(name: str) -> None:
    theirs, ours = small(name, dropout=0.5)
    compare(theirs, ours, draw(T, B, INPUTS))


# Bad calls.


def x_of(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.zeros(shape, dtype=dtype)


def twice(*shape: int, dtype: Any = torch.float32) -> tuple[Any, Any]:
    return x_of(*shape, dtype=dtype), x_of(*shape, dtype=dtype)


packed_of = torch.nn.utils.rnn.pack_sequence
BAD: list[tuple[str, tuple[Any, ...]]] = [
    *(
        (name, given)
        for name in NAMES
        for given in (
            (x_of(T, B, INPUTS + 1),),
            (x_of(T, INPUTS + 1),),
            (x_of(T, B, 0),),
            (x_of(INPUTS),),
            (x_of(),),
            (x_of(2, T, B, INPUTS),),
            (x_of(T, B, INPUTS, dtype=torch.float64),),
            (x_of(T, B, INPUTS, dtype=torch.int64),),
            (x_of(0, B, INPUTS),),
            (x_of(0, INPUTS),),
            (x_of(T, B, INPUTS), ()),
            (x_of(T, B, INPUTS), []),
            (x_of(T, B, INPUTS), 3),
            (x_of(T, B, INPUTS), "state"),
            (x_of(T, B, INPUTS), (None, None)),
            (x_of(T, B, INPUTS), (x_of(1, B, H),)),
            (x_of(T, B, INPUTS), (x_of(1, B, H), None)),
            (x_of(T, B, INPUTS), (x_of(1, B, H),) * 3),
            (x_of(T, B, INPUTS), x_of(2, B, H)),
            (x_of(T, B, INPUTS), x_of(2, 1, B, H)),
            (x_of(T, B, INPUTS), list(twice(1, B, H))),
            (x_of(T, B, INPUTS), x_of(1, B + 1, H)),
            (x_of(T, B, INPUTS), x_of(1, B, H + 1)),
            (x_of(T, B, INPUTS), x_of(B, H)),
            (x_of(T, INPUTS), x_of(1, 1, H)),
            (x_of(T, INPUTS), x_of(H)),
            (x_of(T, B, INPUTS), x_of(1, B, H, dtype=torch.float64)),
            (x_of(T, B, INPUTS), x_of(1, B, H, dtype=torch.int64)),
            (x_of(T, B, INPUTS), twice(1, B, H + 1)),
            (x_of(T, B, INPUTS), twice(1, B + 1, H)),
            (x_of(T, B, INPUTS), twice(B, H)),
            (x_of(T, INPUTS), twice(1, 1, H)),
            (x_of(T, B, INPUTS), (x_of(1, B, H), x_of(1, B, H + 1))),
            (x_of(T, B, INPUTS), (x_of(1, B, H), x_of(1, B, H, dtype=torch.float64))),
            (x_of(T, B, INPUTS), twice(1, B, H, dtype=torch.float64)),
            (packed_of([x_of(T, INPUTS + 1)]),),
            (packed_of([x_of(T, INPUTS)]), x_of(1, 2, H)),
            (packed_of([x_of(T, INPUTS)]), twice(2, 1, H)),
            (packed_of([x_of(T, INPUTS)]), x_of(1, H)),
            (packed_of([x_of(T, INPUTS, dtype=torch.float64)]),),
            (packed_of([x_of(T)]),),
            (None,),
            ([[0.0] * INPUTS],),
            (np.zeros((T, B, INPUTS), np.float32),),
        )
    ),
    *(
        (name, given)
        for name in CELL_NAMES
        for given in (
            (x_of(B, INPUTS + 1),),
            (x_of(INPUTS + 1),),
            (x_of(),),
            (x_of(T, B, INPUTS),),
            (x_of(B, INPUTS, dtype=torch.float64),),
            (x_of(B, INPUTS, dtype=torch.int64),),
            (x_of(B, INPUTS), ()),
            (x_of(B, INPUTS), 3),
            (x_of(B, INPUTS), (None, None)),
            (x_of(B, INPUTS), (x_of(B, H),)),
            (x_of(B, INPUTS), (x_of(B, H), None)),
            (x_of(B, INPUTS), x_of(2, B, H)),
            (x_of(B, INPUTS), list(twice(B, H))),
            (x_of(B, INPUTS), x_of(B, H + 1)),
            (x_of(B, INPUTS), x_of(B + 1, H)),
            (x_of(B, INPUTS), x_of(H)),
            (x_of(B, INPUTS), x_of(1, B, H)),
            (x_of(INPUTS), x_of(1, H)),
            (x_of(INPUTS), x_of(H + 1)),
            (x_of(B, INPUTS), x_of(B, H, dtype=torch.float64)),
            (x_of(B, INPUTS), twice(B, H + 1)),
            (x_of(B, INPUTS), twice(B + 1, H)),
            (x_of(B, INPUTS), twice(1, B, H)),
            (x_of(B, INPUTS), twice(H)),
            (x_of(INPUTS), twice(1, H)),
            (x_of(B, INPUTS), (x_of(B, H), x_of(B, H + 1))),
            (x_of(B, INPUTS), (x_of(B, H), x_of(B, H, dtype=torch.float64))),
            (None,),
            ([0.0] * INPUTS,),
        )
    ),
]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("name", "given"), BAD)
def test_bad_calls_are_torchs(name: str, given: tuple[Any, ...], grad: bool) -> None:
    theirs, ours = both(name, INPUTS, H)
    with torch.set_grad_enabled(grad):
        expected = outcome(lambda: theirs(*given))
        found = outcome(lambda: ours(*given))
    if isinstance(expected, tuple) and isinstance(expected[0], type):
        assert isinstance(found, tuple)
        assert isinstance(found[0], type)
        assert found == expected
    else:
        assert_all_near(found, expected)


BAD_OPTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *(
        (name, args, options)
        for name in NAMES
        for args, options in (
            ((0, 4), {}),
            ((3, 0), {}),
            ((3, 4, 0), {}),
            ((3.0, 4), {}),
            ((3, 4), {"bias": 1}),
            ((3, 4), {"batch_first": 1}),
            ((3, 4), {"dropout": 1.5}),
            ((3, 4), {"dropout": "much"}),
            ((3, 4), {"proj_size": 5}),
            ((3, 4), {"proj_size": -1}),
            ((3, 4), {"colour": 1}),
            ((3, 4), {"nonlinearity": "sine"}),
            ((3,), {}),
        )
    ),
    ("RNNCell", (3, 4), {"colour": 1}),
    ("LSTMCell", (3,), {}),
]


@pytest.mark.parametrize(("name", "args", "options"), BAD_OPTIONS)
def test_bad_options_are_torchs(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    expected = outcome(lambda: getattr(torch.nn, name)(*args, **options))
    found = outcome(lambda: getattr(fastrnn.torch, name)(*args, **options))
    assert isinstance(expected, tuple), expected
    assert found == expected


@jit_warnings
def test_bad_nonlinearity_of_a_cell() -> None:
    theirs, ours = both("RNNCell", 3, 4)
    found = []
    for module in (theirs, ours):
        module.nonlinearity = "sine"
        found.append(outcome(lambda module=module: module(x_of(2, 3))))
    assert found[1] == found[0]


@pytest.mark.parametrize("grad", [False, True])
@all_names
def test_negative_views(name: str, grad: bool) -> None:
    """Tensors whose memory holds the negated values, such as ``z.conj().imag``."""
    theirs, ours = small(name)
    given = torch._neg_view(draw_input(name)).requires_grad_(grad)
    assert given.is_neg()
    with torch.set_grad_enabled(grad):
        for module in (theirs, ours):
            module.zero_grad(set_to_none=True)
        found = [leaves(module(given)) for module in (theirs, ours)]
    assert_all_near(found[1], found[0])
    if grad:
        parameters = [list(module.parameters()) for module in (theirs, ours)]
        upstream = torch._neg_view(torch.ones_like(found[0][0]))
        gradients = [
            torch.autograd.grad(outputs[0], own, upstream)
            for outputs, own in zip(found, parameters, strict=True)
        ]
        assert_all_near(list(gradients[1]), list(gradients[0]))


@pytest.mark.parametrize("write", ["row", "column", "bias"])
@all_names
def test_partial_writes_through_data_are_seen(name: str, write: str) -> None:
    theirs, ours = small(name)
    x = draw_input(name)
    for step in range(4):
        for module in (theirs, ours):
            module.eval()
            weights = dict(module.named_parameters())
            suffix = "" if name.endswith("Cell") else "_l0"
            if write == "row":
                weights[f"weight_hh{suffix}"].data[step] *= 3
            elif write == "column":
                weights[f"weight_ih{suffix}"].data[:, step] += 1
            else:
                weights[f"bias_hh{suffix}"].data[step] -= 1
        with torch.no_grad():
            assert_all_near(leaves(ours(x)), leaves(theirs(x)))


# What torch.nn does not have.

EXTRAS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "merge": "max", "bidirectional": True, "num_layers": 2}),
    ("LSTM", {}),
    ("LSTM", {"peephole": True}),
    ("LSTM", {"peephole": True, "proj_size": 3, "bias": False, "num_layers": 2}),
    ("LSTM", {"peephole": True, "bidirectional": True, "num_layers": 2, "batch_first": True}),
    ("LSTM", {"residual": True, "num_layers": 3}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "bias": False, "bidirectional": True, "num_layers": 2}),
    *(
        ("GRU", {"merge": merge, "bidirectional": True, "num_layers": 2, "batch_first": True})
        for merge in ("concat", "sum", "mean", "max", "mul")
    ),
    (
        "LSTM",
        {"merge": "mean", "bidirectional": True, "num_layers": 3, "residual": True, "dropout": 0.4},
    ),
    ("RNN", {"num_layers": 3, "dropout": 0.5}),
]
extras = pytest.mark.parametrize(
    ("name", "options"), EXTRAS, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain"
)


def with_layer(name: str, **options: Any) -> tuple[Any, Any]:
    """Our module and the NumPy layer, with the same parameters."""
    module = getattr(fastrnn.torch, name)(INPUTS, H, dtype=torch.float64, **options)
    layer = getattr(fastrnn, name)(INPUTS, H, dtype=np.float64, **options)
    layer.load_state_dict(module.state_dict())
    return module, layer


def draw_options(module: Any, batched: bool) -> dict[str, Any]:
    shape = (T,) if not batched else (B, T) if module.batch_first else (T, B)
    resets = torch.rand(shape) < 0.3
    resets[(0,) * len(shape)] = True
    return {"lengths": torch.tensor([4, 0, 5] if batched else [4]), "resets": resets}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("which", [(), ("lengths",), ("resets",), ("lengths", "resets")])
@extras
def test_extras(name: str, options: dict[str, Any], which: tuple[str, ...], batched: bool) -> None:
    module, layer = with_layer(name, **options)
    assert module.state_dict().keys() == layer.parameters.keys()
    shape = (T, INPUTS) if not batched else (B, T, INPUTS) if module.batch_first else (T, B, INPUTS)
    x, hx = fresh((draw(*shape), draw_state(module, (B,) if batched else ())))
    given = {key: value for key, value in draw_options(module, batched).items() if key in which}
    torch.manual_seed(7)
    layer._mask_seed = int(torch.randint(2**62, ()))
    torch.manual_seed(7)
    outputs = module(x, hx, **given)
    grads = [draw(*tensor.shape) for tensor in leaves(outputs)]
    torch.autograd.backward(leaves(outputs), grads)

    state = [part.detach().numpy() for part in leaves(hx)]
    y, final, tape = layer.forward(
        x.detach().numpy(),
        tuple(state) if name == "LSTM" else state[0],
        **{key: value.numpy() for key, value in given.items()},
    )
    arrays = [grad.numpy() for grad in grads]
    found = layer.backward(tape, arrays[0], tuple(arrays[1:]) if name == "LSTM" else arrays[1])
    for actual, expected in zip(
        leaves(outputs), (y, *final) if name == "LSTM" else (y, final), strict=True
    ):
        assert_near(actual.detach(), torch.tensor(expected))
    assert_near(x.grad, torch.tensor(found.input))
    states = found.state if name == "LSTM" else (found.state,)
    for actual, expected in zip(leaves(hx), states, strict=True):
        assert_near(actual.grad, torch.tensor(expected))
    for key, parameter in module.named_parameters():
        assert_near(parameter.grad, torch.tensor(found.parameters[key]), None, key)

    torch.manual_seed(7)
    with torch.no_grad():
        assert_all_near(module(x, hx, **given), [t.detach() for t in leaves(outputs)])


@names
def test_lengths_are_packed_sequences(name: str) -> None:
    theirs, ours = small(name, num_layers=2, bidirectional=True)
    x, lengths = draw(T, B, INPUTS), torch.tensor([2, 5, 1])
    utils = torch.nn.utils.rnn
    packed = utils.pack_padded_sequence(x, lengths, enforce_sorted=False)
    expected, final = theirs(packed)
    padded, _ = utils.pad_packed_sequence(expected, total_length=T)
    assert_all_near(ours(x, lengths=lengths), (padded, final))


@names
def test_resets_are_new_sequences(name: str) -> None:
    theirs, ours = small(name)
    x = draw(T, B, INPUTS)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2] = True
    first, _ = theirs(x[:2])
    second, final = theirs(x[2:])
    assert_all_near(ours(x, resets=resets), (torch.cat((first, second)), final))


@pytest.mark.parametrize(
    "lengths",
    [
        [2, 5, 1],
        np.array([2, 5, 1]),
        torch.tensor([2, 5, 1], dtype=torch.int32),
        torch.tensor([2, 5, 1], dtype=torch.uint8),
        torch.tensor([2, 0, 5, 0, 1])[::2],
        torch.tensor([[2], [5], [1]])[:, 0].expand(3),
    ],
    ids=["list", "numpy", "int32", "uint8", "strided", "view"],
)
def test_lengths_of_all_kinds(lengths: Any) -> None:
    _, ours = small("GRU", bidirectional=True)
    x = draw(T, B, INPUTS)
    assert_same(ours(x, lengths=lengths), ours(x, lengths=torch.tensor([2, 5, 1])))


def test_resets_of_all_kinds() -> None:
    _, ours = small("GRU", bidirectional=True)
    x = draw(T, B, INPUTS)
    resets = torch.rand(T, B) < 0.4
    for other in (resets.tolist(), resets.numpy(), resets.t().contiguous().t()):
        assert_same(ours(x, resets=other), ours(x, resets=resets))
    row = resets[:, :1].expand(T, B)
    assert_same(ours(x, resets=row), ours(x, resets=row.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("lengths", [1.0, 2.0, 3.0], TypeError),
        ("lengths", [True, False, True], TypeError),
        ("lengths", torch.tensor([1j, 2, 3]), TypeError),
        ("lengths", [1, 2], ValueError),
        ("lengths", [1, 2, 3, 4], ValueError),
        ("lengths", [[1, 2, 3]], ValueError),
        ("lengths", 3, ValueError),
        ("lengths", [1, 2, T + 1], ValueError),
        ("lengths", [1, -1, 2], ValueError),
        ("lengths", torch.tensor([1, 2**40, 2]), ValueError),
        ("resets", torch.zeros(T, B), TypeError),
        ("resets", torch.zeros(T, B, dtype=torch.int64), TypeError),
        ("resets", torch.zeros(T, dtype=torch.bool), ValueError),
        ("resets", torch.zeros(B, T, dtype=torch.bool), ValueError),
        ("resets", torch.zeros(T, B, 1, dtype=torch.bool), ValueError),
        ("resets", torch.zeros(T + 1, B, dtype=torch.bool), ValueError),
        ("resets", True, ValueError),
    ],
    ids=str,
)
def test_bad_lengths_and_resets(
    option: str, value: Any, error: type[Exception], dtype: Any
) -> None:
    ours = fastrnn.torch.GRU(INPUTS, H, dtype=dtype)
    with pytest.raises(error, match=f"^{option}: expected"):
        ours(draw(T, B, INPUTS, dtype=dtype), **{option: value})


def test_bad_resets_of_batch_first_and_unbatched() -> None:
    ours = fastrnn.torch.GRU(INPUTS, H, batch_first=True)
    with pytest.raises(ValueError, match=r"^resets: expected bools \(3, 5\)"):
        ours(x_of(B, T, INPUTS), resets=torch.zeros(T, B, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^resets: expected bools \(5,\)"):
        ours(x_of(T, INPUTS), resets=torch.zeros(T, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^lengths: expected integers \(1,\)"):
        ours(x_of(T, INPUTS), lengths=[5, 5])


@names
def test_no_lengths_beside_a_packed_sequence(name: str) -> None:
    ours = getattr(fastrnn.torch, name)(INPUTS, H)
    packed = packed_of([x_of(T, INPUTS)])
    with pytest.raises(ValueError, match="lengths or resets"):
        ours(packed, lengths=[5])


@names
def test_extras_are_keyword_only(name: str) -> None:
    ours = getattr(fastrnn.torch, name)(INPUTS, H)
    with pytest.raises(TypeError, match="positional argument"):
        ours(x_of(T, B, INPUTS), None, torch.tensor([5, 5, 5]))


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("LSTM", {"merge": "add"}, ValueError),
        ("LSTM", {"merge": 3}, (TypeError, ValueError)),
        ("GRU", {"residual": 1}, TypeError),
        ("LSTM", {"peephole": "yes"}, TypeError),
        ("GRU", {"reset_after": None}, TypeError),
        ("RNN", {"peephole": True}, TypeError),
        ("GRU", {"peephole": True}, TypeError),
        ("LSTM", {"reset_after": False}, TypeError),
    ],
)
def test_bad_extras(name: str, options: dict[str, Any], error: Any) -> None:
    with pytest.raises(error, match=next(iter(options))):
        getattr(fastrnn.torch, name)(INPUTS, H, **options)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((x_of(T, B, INPUTS + 1),), "5 inputs"),
        ((x_of(INPUTS),), "5 inputs"),
        ((x_of(T, B, INPUTS), x_of(1, B, H + 1)), "7 units"),
        ((x_of(T, B, INPUTS), (x_of(1, B, H),) * 2), "7 units"),
        ((None,), "NoneType"),
    ],
)
def test_bad_calls_of_modules_with_extras(given: tuple[Any, ...], words: str) -> None:
    ours = fastrnn.torch.GRU(INPUTS, H, reset_after=False)
    with pytest.raises(ValueError, match=words):
        ours(*given)


def test_wrong_dtypes_of_modules_with_extras() -> None:
    ours = fastrnn.torch.GRU(INPUTS, H, reset_after=False)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"dtype|float|double|Double"):
        ours(x_of(T, B, INPUTS, dtype=torch.float64))


def test_dtype_by_position() -> None:
    ours = fastrnn.torch.LSTM(
        INPUTS, H, 2, True, False, 0.0, True, 0, None, torch.float64, merge="sum", peephole=True
    )
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    "options",
    [{"peephole": True}, {"merge": "sum", "bidirectional": True}, {"residual": True}, {}],
    ids=lambda value: "-".join(value) or "plain",
)
def test_half_precision_with_extras(options: dict[str, Any]) -> None:
    ours = fastrnn.torch.LSTM(H, H, 2, **options)
    x = draw(T, B, H, dtype=torch.float32)
    given = draw_options(ours, True)
    expected = ours(x, **given)
    outputs = ours.bfloat16()(x.bfloat16(), **given)
    assert all(tensor.dtype == torch.bfloat16 for tensor in leaves(outputs))
    assert_all_near([tensor.float() for tensor in leaves(outputs)], expected, 5e-2)
    weighted(outputs).backward()
    assert all(torch.isfinite(grad).all() for grad in grads_of(ours).values())


def test_transforms_of_extras() -> None:
    ours = fastrnn.torch.LSTM(
        INPUTS, H, 2, bidirectional=True, peephole=True, merge="max", dtype=torch.float64
    )
    x = draw(T, B, INPUTS)
    given = draw_options(ours, True)
    leaf = x.clone().requires_grad_()
    weighted(ours(leaf, **given)).backward()
    found = torch.func.grad(lambda a: weighted(ours(a, **given)))(x)
    assert_near(found.detach(), leaf.grad)


# Torch's own samples of calls, and numerical gradients.


def check_gradients(module: Any, given: Any, second: bool = True, **options: Any) -> None:
    """Gradcheck and gradgradcheck through all parameters and inputs."""
    keys = [key for key, _ in module.named_parameters()]
    tensors = [p.detach().clone().requires_grad_() for p in module.parameters()]
    tensors += leaves(fresh(given))

    def run(*tensors: Any) -> tuple[Any, ...]:
        torch.manual_seed(11)  # for dropout
        parameters = dict(zip(keys, tensors, strict=False))
        args = rebuilt(given, iter(tensors[len(keys) :]))
        return tuple(leaves(torch.func.functional_call(module, parameters, args, options)))

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    if second:
        assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def samples_of(name: str, training: bool) -> list[Any]:
    pytest.importorskip("expecttest")
    common = pytest.importorskip("torch.testing._internal.common_modules")
    kind = getattr(torch.nn, name)
    info = next(info for info in common.module_db if info.module_cls is kind)
    samples = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
    )
    return list(samples)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [False, True])
@all_names
def test_torchs_samples(name: str, training: bool) -> None:
    samples = samples_of(name, training)
    assert len(samples) >= 2
    for sample in samples:
        made, called = sample.constructor_input, sample.forward_input
        theirs, ours = both(name, *made.args, **made.kwargs, dtype=torch.float64)
        theirs.train(training)
        ours.train(training)
        assert_all_near(ours(*called.args, **called.kwargs), theirs(*called.args, **called.kwargs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@all_names
def test_gradients_of_torchs_samples(name: str) -> None:
    for sample in samples_of(name, True):
        made, called = sample.constructor_input, sample.forward_input
        assert not called.kwargs
        _, ours = both(name, *made.args, **made.kwargs, dtype=torch.float64)
        check_gradients(ours, called.args)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RNN", {"bidirectional": True, "num_layers": 2, "merge": "mul", "residual": True}),
        ("RNN", {"num_layers": 2, "dropout": 0.5}),
        ("LSTM", {"peephole": True, "num_layers": 2, "dropout": 0.5, "batch_first": True}),
        ("LSTM", {"peephole": True, "proj_size": 2, "bidirectional": True, "merge": "sum"}),
        ("LSTM", {"peephole": True, "bidirectional": True, "merge": "max", "residual": True}),
        ("GRU", {"reset_after": False, "bidirectional": True, "merge": "mean", "num_layers": 2}),
        ("GRU", {"reset_after": False, "bias": False, "residual": True, "num_layers": 3}),
        ("GRU", {"bidirectional": True, "num_layers": 2, "dropout": 0.5, "batch_first": True}),
    ],
)
def test_gradients_of_extras(name: str, options: dict[str, Any], batched: bool) -> None:
    ours = getattr(fastrnn.torch, name)(3, 3, dtype=torch.float64, **options)
    shape = (T, 3) if not batched else (B, T, 3) if ours.batch_first else (T, B, 3)
    given = (draw(*shape), draw_state(ours, (B,) if batched else ()))
    check_gradients(ours, given, **draw_options(ours, batched))
