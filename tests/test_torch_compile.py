"""The modules of fastrnn.torch under torch.compile and torch.export, and as operators."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastrnn.torch  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread_for_torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

T, B, INPUTS, H = 5, 3, 4, 7
NAMES = ["RNN", "LSTM", "GRU"]
CELL_NAMES = ["RNNCell", "LSTMCell", "GRUCell"]
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES + CELL_NAMES),
    ("RNN", {"nonlinearity": "relu", "bias": False}),
    ("LSTM", {"batch_first": True, "bidirectional": True}),
    ("LSTM", {"num_layers": 2, "proj_size": 3, "peephole": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "merge": "sum", "residual": True}),
    ("GRU", {"reset_after": False, "batch_first": True}),
    ("LSTMCell", {"bias": False}),
]
configurations = pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain"
)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(20140603)
    yield
    torch._dynamo.reset()


def leaves(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in leaves(part)]
    return [value]


class Model(torch.nn.Module):
    """Linear layers around one of our modules."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.before = torch.nn.Linear(INPUTS, module.input_size)
        self.inner = module
        with torch.no_grad():
            width = leaves(module(torch.zeros(1, module.input_size)))[0].shape[-1]
        self.after = torch.nn.Linear(width, 2)

    def forward(self, x: Any, hx: Any = None, **options: Any) -> Any:
        result = self.inner(self.before(x), hx, **options)
        if not isinstance(result, tuple):
            return self.after(result), result
        return self.after(result[0]), result[1]


def make(name: str, **options: Any) -> Any:
    return Model(getattr(fastrnn.torch, name)(INPUTS, H, **options))


def draw_input(name: str, steps: int = T, rows: int = B) -> Any:
    return torch.randn(rows, INPUTS) if name.endswith("Cell") else torch.randn(steps, rows, INPUTS)


def draw_state(module: Any, rows: int = B) -> Any:
    lead, width = (rows,), module.hidden_size
    if isinstance(module, torch.nn.RNNBase):
        lead = (module.num_layers * (2 if module.bidirectional else 1), rows)
        width = module.proj_size or width
    h = torch.randn(*lead, width)
    if isinstance(module, (torch.nn.LSTM, torch.nn.LSTMCell)):
        return h, torch.randn(*lead, module.hidden_size)
    return h


def rows_of(model: Any, x: Any) -> int:
    batched_last = x.dim() == 3 and not model.inner.batch_first
    return int(x.shape[1 if batched_last else 0])


def fresh(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(fresh(part) for part in value)
    return value.clone().requires_grad_()


def assert_close(actual: Any, expected: Any) -> None:
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        assert a.stride() == e.stride()
        torch.testing.assert_close(a.detach(), e.detach(), rtol=2e-5, atol=2e-5)


def compare(model: Any, compiled: Any, x: Any, hx: Any = None, **options: Any) -> None:
    """Hold inference and training of a compiled model against the model itself."""
    with torch.no_grad():
        assert_close(compiled(x, hx, **options), model(x, hx, **options))
    found = []
    for function in (model, compiled):
        model.zero_grad(set_to_none=True)
        given = [fresh(x)] if hx is None else [fresh(x), fresh(hx)]
        torch.manual_seed(1)
        outputs = function(*given, **options)
        sum((tensor * tensor.cos()).sum() for tensor in leaves(outputs)).backward()
        found.append(
            [
                *leaves(outputs),
                *(t.grad for t in leaves(given)),
                *(p.grad for p in model.parameters()),
            ]
        )
    assert all(tensor is not None for tensor in found[0])
    assert_close(found[1], found[0])


@configurations
def test_compiled(name: str, options: dict[str, Any]) -> None:
    model = make(name, **options)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = draw_input(name)
    compare(model, compiled, x, draw_state(model.inner, rows_of(model, x)) if options else None)


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_compiled_by_inductor(name: str) -> None:
    model = make(name)
    compare(model, torch.compile(model, fullgraph=True), draw_input(name), draw_state(model.inner))


@pytest.mark.parametrize("name", NAMES + CELL_NAMES)
def test_compiled_in_eval_mode(name: str) -> None:
    model = make(name).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compare(model, compiled, draw_input(name), draw_state(model.inner))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_without_a_batch(name: str) -> None:
    model = make(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compare(model, compiled, torch.randn(T, INPUTS))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_with_strided_input(name: str, batch_first: bool) -> None:
    module = getattr(fastrnn.torch, name)(INPUTS, H, batch_first=batch_first)

    def run(x: Any) -> Any:
        return module(x.transpose(0, 1))

    x = torch.randn(B, T, INPUTS)
    found = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        given = fresh(x)
        y, state = function(given)
        y.sum().backward()  # an expanded gradient
        found.append([y, state, given.grad])
    assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_compiled_module_itself(name: str) -> None:
    module = getattr(fastrnn.torch, name)(INPUTS, H)
    x = draw_input(name)
    assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    expected = module(x)
    module.compile(fullgraph=True, backend="aot_eager")
    assert_close(module(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_shapes(name: str) -> None:
    model = make(name, bidirectional=True)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    first = 0
    with torch.no_grad():
        for steps, rows in ((5, 3), (9, 3), (7, 4), (2, 6), (13, 5)):
            x = draw_input(name, steps, rows)
            assert_close(compiled(x), model(x))
            first = first or counter.frame_count  # Dynamo itself may start over within a call
    assert counter.frame_count == first > 0
    for steps in (5, 9, 4):
        compare(model, compiled, draw_input(name, steps, 4))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_with_lengths_and_resets(name: str) -> None:
    model = make(name, bidirectional=True, num_layers=2, batch_first=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(B, T, INPUTS)
    for lengths in ([5, 0, 3], [1, 5, 5]):
        given = {"lengths": torch.tensor(lengths), "resets": torch.rand(B, T) < 0.4}
        compare(model, compiled, x, draw_state(model.inner), **given)
    plain = model(x)
    assert not torch.equal(compiled(x, lengths=torch.tensor([5, 0, 3]))[0], plain[0])
    compare(model, compiled, x, lengths=torch.tensor([2, 2, 2]))
    compare(model, compiled, x, resets=torch.rand(B, T) < 0.4)


def test_compiled_with_bad_lengths() -> None:
    model = make("GRU")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="lengths"):
        compiled(draw_input("GRU"), lengths=torch.tensor([1, T + 1, 2]))
    with pytest.raises(Exception, match="lengths"):
        compiled(draw_input("GRU"), lengths=torch.tensor([1, -1, 2]))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_dropout(name: str) -> None:
    model = make(name, num_layers=3, dropout=0.5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = draw_input(name)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([compiled(x)[0].detach() for _ in range(2)])
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert not torch.equal(runs[0][0], runs[2][0])
    model.eval()
    assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_compiled_dropout(name: str) -> None:
    # By the same seed, compiled and not: they draw it alike.
    model = make(name, num_layers=3, dropout=0.5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = draw_input(name)
    found = []
    for function in (model, compiled):
        torch.manual_seed(7)
        model.zero_grad(set_to_none=True)
        y, _ = function(x)
        y.square().sum().backward()
        found.append([y, *(p.grad for p in model.parameters())])
    assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_compiled_packed_sequence_equals_lengths(name: str) -> None:
    # Dynamo does not trace packing; it may break the graph but not the result.
    module = getattr(fastrnn.torch, name)(INPUTS, H)

    def run(x: Any, lengths: Any) -> Any:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, state = module(packed)
        return torch.nn.utils.rnn.pad_packed_sequence(output)[0], state

    x, lengths = draw_input(name), torch.tensor([2, 5, 3])
    compiled = torch.compile(run, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(x, lengths), run(x, lengths))
        assert_close(compiled(x, lengths)[0], module(x, lengths=lengths)[0])


@pytest.mark.parametrize("name", NAMES + CELL_NAMES)
def test_parameters_change_between_compiled_calls(name: str) -> None:
    model = make(name)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x = draw_input(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        before = compiled(x)[0]
    for _ in range(3):
        optimizer.zero_grad()
        compiled(x)[0].square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            assert_close(compiled(x), model(x))
    assert not torch.allclose(compiled(x)[0], before, rtol=1e-3)
    assert counter.frame_count == 2  # with and without gradients


def test_compiled_loop_of_cells() -> None:
    cell = fastrnn.torch.LSTMCell(INPUTS, H)

    def run(x: Any) -> Any:
        state = None
        for step in x:
            state = cell(step, state)
        return state

    x = torch.randn(3, B, INPUTS)
    found = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        cell.zero_grad(set_to_none=True)
        h, c = function(x)
        (h.sum() + c.square().sum()).backward()
        found.append([h, c, *(p.grad for p in cell.parameters())])
    assert_close(found[1], found[0])


def test_compiled_under_autocast() -> None:
    model = make("GRU")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = draw_input("GRU")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y, h = compiled(x)
        expected, state = model(x)
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(h, state, rtol=2e-2, atol=2e-2)


def test_compiled_half_precision() -> None:
    # As torch's own module: a break of the graph, but a result.
    module = fastrnn.torch.GRU(INPUTS, H).bfloat16()
    x = draw_input("GRU").bfloat16()
    with torch.no_grad():
        y, _ = torch.compile(module, backend="aot_eager")(x)
        torch.testing.assert_close(y, module(x)[0], rtol=2e-2, atol=2e-2)


def test_replaced_model_compiles() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(INPUTS, INPUTS), torch.nn.LSTM(INPUTS, H))
    fastrnn.torch.replace(model)
    x = draw_input("LSTM")
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_modules_are_still_refused(name: str) -> None:
    x = draw_input(name)
    for _ in range(2):
        ours = getattr(fastrnn.torch, name)(INPUTS, H)
        torch.compile(ours, fullgraph=True, backend="aot_eager")(x)
        assert torch._dynamo.config.allow_rnn is False
        theirs = getattr(torch.nn, name)(INPUTS, H)
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"RNN|rnn|wrapping"):
            torch.compile(theirs, fullgraph=True, backend="aot_eager")(x)
        assert torch._dynamo.config.allow_rnn is False


def test_a_failed_trace_leaves_the_flag() -> None:
    class Bad(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fastrnn.torch.GRU(INPUTS, H)

        def forward(self, x: Any) -> Any:
            y, _ = self.inner(x)
            torch._dynamo.graph_break()
            return y

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(Bad(), fullgraph=True, backend="aot_eager")(draw_input("GRU"))
    assert torch._dynamo.config.allow_rnn is False


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports() -> None:
    code = "import sys, fastrnn; print('torch' in sys.modules, 'fastrnn.torch' in sys.modules)"
    assert run_python(code) == "False False"


def test_import_leaves_dynamo_alone() -> None:
    code = (
        "import torch, sys; before = {m for m in sys.modules if m.startswith('torch._dynamo')};"
        "import fastrnn.torch;"
        "after = {m for m in sys.modules if m.startswith('torch._dynamo')};"
        "print(sorted(after - before), 'torch._dynamo.variables.builder' in after)"
    )
    assert run_python(code) == "[] False"


@pytest.mark.parametrize("first", ["import torch._dynamo", "import fastrnn.torch"])
def test_compiles_whatever_is_imported_first(first: str) -> None:
    code = f"""
import warnings
warnings.simplefilter("ignore")
{first}
import torch, torch._dynamo.variables.builder, fastrnn.torch, sys
assert not any("fastrnn" in type(finder).__module__ for finder in sys.meta_path)
module = fastrnn.torch.GRU(3, 4)
compiled = torch.compile(module, fullgraph=True, backend="eager")
x = torch.randn(5, 2, 3)
print(torch.equal(compiled(x)[0], module(x)[0]), torch._dynamo.config.allow_rnn)
"""
    assert run_python(code) == "True False"


# Export.


@configurations
def test_export(name: str, options: dict[str, Any]) -> None:
    model = make(name, **options).eval()
    x = draw_input(name)
    hx = draw_state(model.inner, rows_of(model, x))
    with torch.no_grad():
        for given in ((x,), (x, hx)):
            program = torch.export.export(model, given)
            assert "fastrnn.run" in str(program.graph)
            assert_close(program.module()(*given), model(*given))
            if len(given) == 1:
                other = draw_input(name)
                assert_close(program.module()(other), model(other))


@pytest.mark.parametrize("name", NAMES + CELL_NAMES)
def test_export_with_dynamic_dimensions(name: str) -> None:
    model = make(name).eval()
    rows = torch.export.Dim("rows", min=2, max=64)
    shape = {0: rows}
    if not name.endswith("Cell"):
        shape = {0: torch.export.Dim("steps", min=2, max=64), 1: rows}
    with torch.no_grad():
        program = torch.export.export(model, (draw_input(name),), dynamic_shapes={"x": shape})
        for steps, batch in ((5, 3), (11, 2), (4, 9)):
            x = draw_input(name, steps, batch)
            assert_close(program.module()(x), model(x))


def test_export_with_lengths() -> None:
    model = make("LSTM", bidirectional=True).eval()
    x = draw_input("LSTM")
    with torch.no_grad():
        program = torch.export.export(model, (x,), {"lengths": torch.tensor([5, 1, 3])})
        for lengths in ([5, 1, 3], [2, 0, 5]):
            given = {"lengths": torch.tensor(lengths)}
            assert_close(program.module()(x, **given), model(x, **given))


def test_saved_export(tmp_path: Any) -> None:
    model = make("GRU").eval()
    x = draw_input("GRU")
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "gru.pt2")
        assert_close(torch.export.load(tmp_path / "gru.pt2").module()(x), model(x))


# The operator itself.

RUNS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("LSTM", {}, {}),
    ("GRU", {}, {"state": True}),
    ("RNN", {"num_layers": 2, "bidirectional": True}, {"lengths": [5, 0, 3], "resets": True}),
    ("LSTM", {"num_layers": 2, "proj_size": 3, "peephole": True}, {"state": True, "seed": 3}),
    ("GRU", {"batch_first": True, "bidirectional": True, "merge": "max"}, {"lengths": [1, 3, 2]}),
    ("LSTM", {}, {"steps": 1, "state": True}),
    ("RNN", {"bias": False}, {"unbatched": True}),
]


def arguments(
    name: str, options: dict[str, Any], given: dict[str, Any], requires_grad: bool
) -> tuple[Any, ...]:
    """What torch.ops.fastrnn.run is called with."""
    module = getattr(fastrnn.torch, name)(INPUTS, H, dtype=torch.float64, **options)
    spec = module._spec()
    steps = given.get("steps", T)
    shape = (B, steps, INPUTS) if module.batch_first else (steps, B, INPUTS)
    shape = (T, INPUTS) if given.get("unbatched") else shape
    state = [None, None]
    if given.get("state"):
        drawn = leaves(draw_state(module))
        state[: len(drawn)] = [t.double().requires_grad_(requires_grad) for t in drawn]
    lengths = given.get("lengths")
    seed = given.get("seed")
    return (
        torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad),
        *state,
        [weight.detach().clone().requires_grad_(requires_grad) for weight in module._weights()],
        None if lengths is None else torch.tensor(lengths),
        torch.rand(shape[:2]) < 0.4 if given.get("resets") else None,
        None if seed is None else torch.tensor(seed),
        spec.cell,
        [spec.input_size, spec.hidden_size, spec.num_layers, spec.proj_size],
        [spec.bidirectional, spec.bias, spec.residual],
        spec.merge,
        module.batch_first and len(shape) == 3,
        0.0 if seed is None else 0.5,
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("name", "options", "given"), RUNS)
def test_opcheck(
    name: str, options: dict[str, Any], given: dict[str, Any], requires_grad: bool
) -> None:
    results = torch.library.opcheck(
        torch.ops.fastrnn.run.default, arguments(name, options, given, requires_grad)
    )
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


@pytest.mark.parametrize(
    ("name", "options", "given"), [run for run in RUNS if "seed" not in run[2]]
)
def test_operator_is_the_module(name: str, options: dict[str, Any], given: dict[str, Any]) -> None:
    args = arguments(name, options, given, True)
    x, h, c, weights = args[:4]
    module = getattr(fastrnn.torch, name)(INPUTS, H, dtype=torch.float64, **options)
    parameters = [module.get_parameter(key) for key in module._flat_weights_names]
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.data.copy_(weight)
    outputs = torch.ops.fastrnn.run(*args)
    hx = None if h is None else (h, c) if name == "LSTM" else h
    expected = leaves(module(x, hx, lengths=args[4], resets=args[5]))
    assert_close(outputs[: len(expected)], expected)
    grads = torch.autograd.grad(sum(t.square().sum() for t in outputs), [x, *weights])
    assert_close(
        grads, torch.autograd.grad(sum(t.square().sum() for t in expected), [x, *parameters])
    )


@pytest.mark.parametrize(("name", "options", "given"), RUNS)
def test_operator_gradients(name: str, options: dict[str, Any], given: dict[str, Any]) -> None:
    args = arguments(name, options, given, True)
    tensors = [tensor for tensor in (*args[:3], *args[3]) if tensor is not None]

    def run(*tensors: Any) -> Any:
        rest = iter(tensors)
        head = [None if tensor is None else next(rest) for tensor in args[:3]]
        outputs = torch.ops.fastrnn.run(*head, list(rest), *args[4:])
        return tuple(tensor for tensor in outputs if tensor.numel())

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def test_double_backward_through_the_operator_raises() -> None:
    args = arguments("LSTM", {}, {}, True)
    y, _, _ = torch.ops.fastrnn.run(*args)
    (grad,) = torch.autograd.grad(y.square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="fastrnn"):
        grad.sum().backward()


def test_double_backward_of_a_compiled_model_raises() -> None:
    model = make("GRU")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = draw_input("GRU").requires_grad_()
    (grad,) = torch.autograd.grad(compiled(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_operator_does_not_share_memory_with_later_calls() -> None:
    args = arguments("GRU", {}, {}, False)
    first = torch.ops.fastrnn.run(*args)
    kept = [tensor.clone() for tensor in first]
    for tensor in torch.ops.fastrnn.run(*args):
        tensor.fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert_close(torch.ops.fastrnn.run(*args), kept)
