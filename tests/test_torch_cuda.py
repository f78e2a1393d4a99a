"""fastrnn.torch on a GPU, or in an emulated build, where memory of the host stands for a GPU's.

There tensors of the host are taken for those of a GPU, but for int32, which stay the host's.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from fastrnn import functional

torch = pytest.importorskip("torch")

import fastrnn.torch  # noqa: E402
from fastrnn.torch import cuda, ops  # noqa: E402
from test_torch_modules import (  # noqa: E402
    CELL_NAMES,
    CELLS,
    NAMES,
    SEQUENCES,
    fresh,
    leaves,
    outcome,
    rebuilt,
    weighted,
)

EMULATED = functional.cuda_build() == "emulated"
DEVICE = "cpu" if EMULATED else "cuda"
T, B, INPUTS, H = 5, 3, 4, 6
F64 = torch.float64
BOUNDS = {torch.float32: 2e-5, F64: 1e-11}
NOISE = {"recurrent_dropout": 0.4, "input_dropout": 0.3, "weight_drop": 0.25, "zoneout": 0.35}
EVERY = {**NOISE, "num_layers": 2, "bidirectional": True, "dropout": 0.3, "layer_norm": True}

# What torch.nn has, too.
PLAIN: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in SEQUENCES),
    *((kind, {"num_layers": 2, "bidirectional": True}) for kind in SEQUENCES),
    *((kind, {"batch_first": True, "bias": False}) for kind in SEQUENCES),
]
# What it has not.
EXTRAS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {"merge": "mean", "bidirectional": True}),
    ("RNN", {**EVERY, "nonlinearity": "relu"}),
    ("GRU", {"reset_after": False, "batch_first": True}),
    ("GRU", {**EVERY, "reset_after": False}),
    ("GRU", {**EVERY, "merge": "sum", "batch_first": True}),
    ("GRU", {"merge": "max", "bidirectional": True, "num_layers": 2, "residual": True}),
    ("LSTM", {"peephole": True, "proj_size": 3}),
    ("LSTM", {"coupled": True, "clip": 0.1}),
    ("LSTM", {**EVERY, "coupled": True, "peephole": True, "clip": 0.3, "zoneout": (0.35, 0.2)}),
    ("LSTM", {**EVERY, "proj_size": 3, "merge": "mul", "bias": False}),
]


def label(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(value) or "plain"


plain = pytest.mark.parametrize(("kind", "options"), PLAIN, ids=label)
extras = pytest.mark.parametrize(("name", "options"), EXTRAS, ids=label)
names = pytest.mark.parametrize("name", NAMES)
all_names = pytest.mark.parametrize("name", NAMES + CELL_NAMES)

pytestmark = [
    pytest.mark.usefixtures("one_thread_for_torch"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]


def stands_for_a_gpu(tensor: Any) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype != torch.int32


class Recorder:
    """An engine that keeps what it is given."""

    calls: ClassVar[list[tuple[str, tuple[Any, ...]]]] = []
    kinds: ClassVar[list[str]] = []

    def __init__(self, *arguments: Any) -> None:
        self.kinds.append(arguments[-1])
        self.engine = functional.CudaEngine(*arguments)
        self.forward_bytes = self.engine.forward_bytes
        self.backward_bytes = self.engine.backward_bytes

    def forward(self, *arguments: Any) -> Any:
        self.calls.append(("forward", arguments))
        return self.engine.forward(*arguments)

    def backward(self, *arguments: Any) -> Any:
        self.calls.append(("backward", arguments))
        return self.engine.backward(*arguments)

    @classmethod
    def count(cls, what: str) -> int:
        return sum(name == what for name, _ in cls.calls)


class Functional:
    """`fastrnn.functional` with recorders for engines."""

    CudaEngine = Recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(functional, name)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(20140603)
    torch._dynamo.reset()
    Recorder.calls.clear()
    Recorder.kinds.clear()
    ops._network.cache_clear()
    monkeypatch.setattr(cuda, "functional", Functional())
    if EMULATED:
        monkeypatch.setattr(cuda, "on_device", stands_for_a_gpu)
        monkeypatch.setattr(cuda, "_stream", lambda tensor: (0, 0))
        monkeypatch.setattr(cuda, "_is_capturing", lambda: False)
    yield
    ops._network.cache_clear()


@contextlib.contextmanager
def on_the_host() -> Iterator[None]:
    """Where tensors of the host are what they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "on_device", lambda tensor: tensor.is_cuda)
        yield


def wait(*_: Any, **__: Any) -> Any:
    raise AssertionError("waits for the GPU")


WAITING = ("item", "cpu", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__")


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    if not EMULATED:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in WAITING:
            patch.setattr(torch.Tensor, name, wait)
        yield


def draw(*shape: int, dtype: Any = F64) -> Any:
    return torch.randn(shape, dtype=dtype).to(DEVICE)


def make(name: str, dtype: Any = F64, **options: Any) -> Any:
    module = getattr(fastrnn.torch, name)(INPUTS, H, dtype=dtype, **options)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.startswith("norm_"):  # which else do nothing
                parameter.add_(torch.randn_like(parameter) / 4)
    return module.to(DEVICE)


def draw_state(module: Any, *rows: int) -> Any:
    dtype = next(module.parameters()).dtype
    lead: tuple[int, ...] = ()
    width = H
    if isinstance(module, torch.nn.RNNBase):
        lead = (module.num_layers * (2 if module.bidirectional else 1),)
        width = module.proj_size or H
    h = draw(*lead, *rows, width, dtype=dtype) / 2
    if isinstance(module, (torch.nn.LSTM, torch.nn.LSTMCell)):
        return h, draw(*lead, *rows, H, dtype=dtype) / 2
    return h


def draw_given(module: Any, batched: bool = True) -> tuple[Any, Any]:
    """An input and a state."""
    dtype = next(module.parameters()).dtype
    rows = (B,) if batched else ()
    if not isinstance(module, torch.nn.RNNBase):
        return draw(*rows, INPUTS, dtype=dtype), draw_state(module, *rows)
    lead = (T,) if not batched else (B, T) if module.batch_first else (T, B)
    return draw(*lead, INPUTS, dtype=dtype), draw_state(module, *rows)


def draw_options(module: Any, batched: bool = True) -> dict[str, Any]:
    shape = (T,) if not batched else (B, T) if module.batch_first else (T, B)
    resets = torch.rand(shape) < 0.3
    resets[(0,) * len(shape)] = True
    lengths = torch.tensor([4, 0, 5] if batched else [4])
    return {"lengths": lengths.to(DEVICE), "resets": resets.to(DEVICE)}


def home(value: Any) -> Any:
    """What is on a GPU, on the host."""
    if not isinstance(value, dict):
        return rebuilt(value, (tensor.cpu() for tensor in leaves(value)))
    return {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in value.items()}


def twin_of(module: Any, dtype: Any = F64) -> Any:
    """The same on the host."""
    return copy.deepcopy(module).cpu().to(dtype)


def theirs_of(module: Any, dtype: Any = F64) -> Any:
    """Torch's module with the same parameters, on the host."""
    twin = twin_of(module, dtype)
    assert fastrnn.torch.restore(twin) == ([""], {})
    return twin


class Result:
    """Outputs of a call, and the gradients of all that went in."""

    def __init__(self, module: Any, given: Any, **options: Any) -> None:
        module.zero_grad(set_to_none=True)
        inputs = fresh(given)
        torch.manual_seed(5)  # of masks
        self.outputs = module(*inputs, **options)
        weighted(home(self.outputs)).backward()
        self.grads = [tensor.grad for tensor in leaves(inputs)]
        self.grads += [parameter.grad for parameter in module.parameters()]

    def tensors(self) -> list[Any]:
        return [*leaves(self.outputs), *self.grads]


def error(actual: Any, expected: Any) -> float:
    """The largest, on the scale of what is expected."""
    actual, expected = actual.detach().cpu().to(F64), expected.detach().to(F64)
    scale = max(1.0, float(expected.abs().amax())) if expected.numel() else 1.0
    return float((actual - expected).abs().max()) / scale if expected.numel() else 0.0


def assert_near(actual: Any, expected: Any, bound: float) -> None:
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert error(a, e) <= bound, f"tensor {i}: error {error(a, e):.3g}, bound {bound:.3g}"


def assert_same(actual: Any, expected: Any) -> None:
    """Bit for bit."""
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected)
    assert all(map(torch.equal, actual, expected))


def ran(forward: int, backward: int = 0) -> bool:
    """Whether the kernels did that many times."""
    found = Recorder.count("forward"), Recorder.count("backward")
    Recorder.calls.clear()
    return found == (forward, backward)


# Against torch.nn.


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
@plain
def test_parity(
    kind: str, options: dict[str, Any], dtype: Any, with_state: bool, batched: bool
) -> None:
    name, given_options = SEQUENCES[kind]
    ours = make(name, dtype, **given_options, **options)
    x, hx = draw_given(ours, batched)
    given = (x, hx) if with_state else (x,)
    theirs = theirs_of(ours)
    expected = Result(theirs, tuple(rebuilt(home(g), map(in_double, leaves(g))) for g in given))
    found = Result(ours, given)
    assert ran(1, 1)
    assert all(tensor.dtype == dtype for tensor in found.tensors())
    assert_near(found.tensors(), expected.tensors(), BOUNDS[dtype])
    with torch.no_grad(), without_waiting():
        outputs = ours(*given)
    assert ran(1)
    assert_near(outputs, expected.outputs, BOUNDS[dtype])


def in_double(tensor: Any) -> Any:
    return tensor.cpu().to(F64)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, batched: bool) -> None:
    name, options = CELLS[kind]
    ours = make(name, **options)
    given = draw_given(ours, batched)
    expected = Result(theirs_of(ours), home(given))
    assert_near(Result(ours, given).tensors(), expected.tensors(), 1e-12)
    assert ran(1, 1)
    with torch.no_grad(), without_waiting():
        outputs = ours(*given)
    assert ran(1)
    assert_near(outputs, expected.outputs, 1e-12)


@pytest.mark.parametrize("name", CELL_NAMES)
def test_loop_of_a_cell(name: str) -> None:
    ours = make(name)

    def loop(module: Any, steps: Any) -> Any:
        state = None
        for x in steps:
            state = module(x, state)
        weighted(home(state)).backward()
        return [*leaves(state), steps.grad, *(p.grad for p in module.parameters())]

    x = draw(T, B, INPUTS)
    expected = loop(theirs_of(ours), fresh(home(x)))
    assert_near(loop(ours, fresh(x)), expected, 1e-12)
    assert ran(T, T)


def distance(found: list[Any], expected: list[Any]) -> float:
    """Root of the mean square of all errors, each on its tensor's scale."""
    squares = [
        ((f.detach().cpu().to(F64) - e.detach()) / e.detach().abs().max()).square().mean()
        for f, e in zip(found, expected, strict=True)
    ]
    return float(torch.stack(squares).mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_half_precision(kind: str, dtype: Any) -> None:
    name, options = SEQUENCES[kind]
    found = []
    ours = make(name, dtype, num_layers=2, bidirectional=True, **options)
    given = draw_given(ours)
    exact = Result(theirs_of(ours), tuple(rebuilt(g, map(in_double, leaves(g))) for g in given))
    peer = theirs_of(ours, dtype).to(DEVICE)
    for module in (peer, ours):
        result = Result(module, given)
        assert all(tensor.dtype == dtype for tensor in result.tensors())
        found.append(distance(result.tensors(), exact.tensors()))
    assert ran(1, 1)
    assert 0 < found[1] <= 2 * found[0]


def test_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(T, B, INPUTS, dtype=torch.float32)
    module = make("LSTM", torch.float32)
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = False
        exact = module(x)[0]
        assert Recorder.kinds == ["float32"]
        matmul.allow_tf32 = True
        found = module(x)[0]
        assert Recorder.kinds == ["float32", "tf32"]
        make("LSTM")(x.double())
        assert Recorder.kinds[2:] == ["float64"]
    finally:
        matmul.allow_tf32 = before
    assert 0 < error(found, exact.cpu()) < 2**-9


# Extras, against the same module on the CPU.


def compare_with_host(module: Any, given: Any, bound: float = 1e-11, **options: Any) -> Result:
    with on_the_host():
        expected = Result(twin_of(module), home(given), **home(options))
    found = Result(module, given, **options)
    assert_near(found.tensors(), expected.tensors(), bound)
    return found


@pytest.mark.parametrize("batched", [True, False])
@extras
def test_extras(name: str, options: dict[str, Any], batched: bool) -> None:
    module = make(name, **options)
    given = draw_given(module, batched)
    compare_with_host(module, given)
    assert ran(1, 1)
    found = compare_with_host(
        module, given, **draw_options(module, batched), return_all_states=True
    )
    assert ran(1, 1)
    assert len(found.outputs) == 3


@pytest.mark.parametrize("which", ["lengths", "resets"])
@pytest.mark.parametrize("batch_first", [False, True])
@names
def test_lengths_and_resets(name: str, batch_first: bool, which: str) -> None:
    module = make(name, bidirectional=True, batch_first=batch_first)
    options = {which: draw_options(module)[which]}
    compare_with_host(module, draw_given(module), **options)
    assert ran(1, 1)


@names
def test_evaluation_mode(name: str) -> None:
    module = make(name, **EVERY).eval()
    x, hx = draw_given(module)
    with on_the_host(), torch.no_grad():
        expected = twin_of(module)(home(x), home(hx))
    with torch.no_grad(), without_waiting():
        found = module(x, hx)
    assert_near(found, expected, 1e-12)
    assert ran(1)


@pytest.mark.parametrize("shape", [(0, B, INPUTS), (T, 0, INPUTS)])
@names
def test_empty_inputs(name: str, shape: tuple[int, ...]) -> None:
    module = make(name, layer_norm=True, bidirectional=True)
    compare_with_host(module, (draw(*shape), draw_state(module, shape[1])))
    assert ran(1, 1)


# Lengths: those of the host are checked, those of the device are not looked at.


compiling = pytest.mark.parametrize("compiled", [False, True])


def maybe_compiled(module: Any, compiled: bool) -> Any:
    return torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module


@compiling
@pytest.mark.parametrize("wrong", [[4, 0, 6], [4, -1, 5]])
def test_lengths_of_the_host_are_checked(wrong: list[int], compiled: bool) -> None:
    module = make("GRU")
    x, _ = draw_given(module)
    lengths = torch.tensor(wrong, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^lengths: expected integers in 0\.\.5, got \["):
        maybe_compiled(module, compiled)(x, lengths=lengths)
    assert ran(0)


@compiling
def test_lengths_of_the_host(compiled: bool) -> None:
    module = make("GRU", bidirectional=True)
    x, _ = draw_given(module)
    lengths = torch.tensor([4, 0, 5], dtype=torch.int32)
    expected = module(x, lengths=lengths.to(DEVICE, torch.int64))
    assert_same(maybe_compiled(module, compiled)(x, lengths=lengths), expected)
    assert ran(2)


@compiling
def test_lengths_of_the_device_are_clamped(compiled: bool) -> None:
    module = make("LSTM", bidirectional=True)
    run = maybe_compiled(module, compiled)
    x, _ = draw_given(module)
    lengths = torch.tensor([99, -3, 2]).to(DEVICE)
    with torch.no_grad():
        found = run(x, lengths=lengths)
        assert lengths.tolist() == [99, -3, 2]
        assert_same(found, module(x, lengths=torch.tensor([T, 0, 2]).to(DEVICE)))


def test_lengths_that_change_later() -> None:
    module = make("GRU", bidirectional=True)
    x, _ = draw_given(module)
    found = []
    for change in (False, True):
        module.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        options = draw_options(module)
        loss = weighted(home(module(x, **options)))
        if change:
            options["lengths"].fill_(1)
            options["resets"].zero_()
        loss.backward(retain_graph=True)
        loss.backward()  # runs forward again
        found.append([p.grad for p in module.parameters()])
    assert_same(found[1], found[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("enforce_sorted", [True, False])
@names
def test_packed(name: str, enforce_sorted: bool, batch_first: bool) -> None:
    ours = make(name, num_layers=2, bidirectional=True, batch_first=batch_first)
    theirs = theirs_of(ours)
    lengths = [5, 4, 1] if enforce_sorted else [4, 1, 5]
    found = []
    for module, place in ((theirs, home), (ours, lambda value: value)):
        torch.manual_seed(2)
        x, hx = fresh(place(draw_given(ours)))
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first, enforce_sorted)
        y, state = module(packed, hx)
        weighted(home((y, state))).backward()
        found.append([y.data, *leaves(state), *(t.grad for t in leaves((x, hx)))])
        found[-1] += [parameter.grad for parameter in module.parameters()]
    assert_near(found[1], found[0], 1e-12)
    assert ran(1, 1)


def test_packed_without_waiting() -> None:
    module = make("LSTM")
    packed = torch.nn.utils.rnn.pack_padded_sequence(draw(T, B, INPUTS), [5, 3, 1])
    rows = fastrnn.torch.network.Packed
    made, on, moves = rows.of(packed.batch_sizes), rows.on, []  # of the host it may be looked at
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "of", lambda sizes: made)
        patch.setattr(rows, "on", lambda *where: moves.append(where) or on(*where))
        patch.setattr(module, "_fits", lambda *_: True)
        with without_waiting():
            module(packed)[0].data.sum().backward()
    assert ran(1, 1)
    assert len(moves) == 1


# Nothing is copied, nothing is waited for.


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16], ids=str)
def test_nothing_is_copied(dtype: Any) -> None:
    module = make("LSTM", dtype, num_layers=2)
    x, (h0, c0) = fresh(draw_given(module))
    lengths, resets = draw_options(module).values()
    y, (h, c), (hs, cs) = module(
        x, (h0, c0), lengths=lengths, resets=resets, return_all_states=True
    )
    grads = [torch.randn_like(tensor) for tensor in (y, h, c, hs, cs)]
    torch.autograd.backward([y, h, c, hs, cs], grads)
    (_, forward), (_, backward) = Recorder.calls
    assert forward[:2] == (T, B)
    arrays, parameters = forward[2:4]
    assert arrays[:3] == tuple(t.data_ptr() for t in (x, h0, c0))
    assert arrays[5:] == tuple(t.data_ptr() for t in (y, h, c, hs, cs))
    assert parameters == tuple(p.data_ptr() for p in module.parameters())
    assert backward[1][:6] == tuple(t.data_ptr() for t in (x, *grads))
    assert backward[1][6:] == tuple(t.grad.data_ptr() for t in (x, h0, c0))
    assert backward[2] == parameters
    assert backward[3] == tuple(p.grad.data_ptr() for p in module.parameters())
    for *_, workspace, tape in (forward, (*backward, None)):
        for address, size in filter(None, (workspace, tape)):
            assert address % 256 == 0
            assert size >= 0


@all_names
def test_nothing_waits(name: str) -> None:
    module = make(name)
    given = fresh(draw_given(module))
    options = {} if name in CELL_NAMES else draw_options(module)
    with without_waiting():
        outputs = leaves(module(*given, **options))
        torch.autograd.backward([y.sum() for y in outputs])
        with torch.no_grad():
            module(*given, **options)
    assert ran(2, 1)


@pytest.mark.parametrize("batched", [True, False])
@names
def test_strided_tensors(name: str, batched: bool) -> None:
    module = make(name, bidirectional=True)
    x, hx = draw_given(module, batched)

    def spread(tensor: Any) -> Any:
        wide = torch.stack((tensor, tensor + 9), -1).transpose(0, 1).contiguous().transpose(0, 1)
        return wide[..., 0]

    expected = Result(module, (x, hx))
    assert not spread(x).is_contiguous()
    found = fresh((x, hx))
    y, state = module(*rebuilt(found, map(spread, leaves(found))))
    assert_same((y, state), expected.outputs)
    factors = torch.autograd.grad(weighted(home(expected.outputs)), leaves(expected.outputs))
    grads = torch.autograd.grad(leaves((y, state)), leaves(found), [spread(f) for f in factors])
    assert_same(list(grads), expected.grads[: len(grads)])


def test_strided_weights() -> None:
    module = make("GRU")
    given = draw_given(module)
    expected = Result(module, given)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    assert not module.weight_ih_l0.is_contiguous()
    assert_same(Result(module, given).tensors(), expected.tensors())
    assert ran(2, 2)


def test_memory_of_a_tape_goes_with_its_backward() -> None:
    module = make("LSTM")
    x, hx = draw_given(module)
    gc.disable()
    try:
        y = module(fresh(x), hx)[0]
        kept = y.grad_fn.kept
        assert isinstance(kept.tape, cuda.CudaTape)
        assert not kept.tape.consumed
        memory = weakref.ref(kept.tape._kept[0])
        loss = y.sum()
        loss.backward(retain_graph=True)
        assert kept.tape.consumed
        assert memory() is None
        y = module(fresh(x), hx)[0]
        memory = weakref.ref(y.grad_fn.kept.tape._kept[0])
        del y
        assert memory() is None  # without a cycle that waits for the collector
    finally:
        gc.enable()


# Autograd.


def functions_of(module: Any, given: Any, **options: Any) -> tuple[Callable[..., Any], list[Any]]:
    """A function of all parameters and inputs, and these."""
    keys = [key for key, _ in module.named_parameters()]
    tensors = [*(p.detach() for p in module.parameters()), *leaves(given)]

    def run(*tensors: Any) -> tuple[Any, ...]:
        torch.manual_seed(11)
        parameters = dict(zip(keys, tensors, strict=False))
        args = rebuilt(given, iter(tensors[len(keys) :]))
        return tuple(leaves(torch.func.functional_call(module, parameters, args, options)))

    return run, [tensor.clone().requires_grad_() for tensor in tensors]


def check(module: Any, given: Any, second: bool = True, **options: Any) -> None:
    run, tensors = functions_of(module, given, **options)
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    assert Recorder.count("backward") > 0
    if second:
        assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@all_names
def test_gradients(name: str) -> None:
    module = make(name)
    check(module, draw_given(module))


@extras
def test_gradients_of_extras(name: str, options: dict[str, Any]) -> None:
    module = make(name, **options)
    given = draw_given(module)
    check(module, given, second="layer_norm" in options, **draw_options(module))


@all_names
def test_gradient_penalty(name: str) -> None:
    ours = make(name)
    given = draw_given(ours)

    def penalty(module: Any, given: Any) -> list[Any]:
        wanted = [*leaves(given), *module.parameters()]
        loss = weighted(home(module(*given)))
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        second = sum((gradient**2).sum() for gradient in first)
        return [*first, *torch.autograd.grad(second, wanted)]

    expected = penalty(theirs_of(ours), fresh(home(given)))
    assert_near(penalty(ours, fresh(given)), expected, 1e-11)
    assert ran(1)  # the composite has the rest


@pytest.mark.parametrize("options", [{}, EVERY], ids=["plain", "every"])
@names
def test_backward_again(name: str, options: dict[str, Any]) -> None:
    module = make(name, **options)
    given = fresh(draw_given(module))
    loss = weighted(home(module(*given)))
    wanted = [*leaves(given), *module.parameters()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert ran(1, 1)
    assert_same(torch.autograd.grad(loss, wanted), first)
    assert ran(1, 1)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, wanted)


def test_outputs_changed_in_place() -> None:
    module = make("LSTM", batch_first=True)
    x, hx = draw_given(module)
    expected = Result(module, (x, hx))
    given = fresh((x, hx))
    ran(0)
    y, _ = outputs = module(*given)
    loss = weighted(home(outputs))
    with torch.no_grad():
        y.zero_()
    loss.backward()
    assert ran(2, 1)
    assert_same([tensor.grad for tensor in leaves(given)], expected.grads[:3])


@pytest.mark.parametrize("batched", [True, False])
@all_names
def test_results_can_be_changed_in_place(name: str, batched: bool) -> None:
    module = make(name, **({} if name in CELL_NAMES else {"batch_first": True}))
    given = draw_given(module, batched)

    def grads(change: bool) -> list[Any]:
        outputs = leaves(module(*given))
        doubled = [tensor.mul_(2) if change else tensor * 2 for tensor in outputs]
        return list(torch.autograd.grad(weighted(home(doubled)), module.parameters()))

    assert_same(grads(True), grads(False))


def test_changed_input_raises() -> None:
    module = make("GRU")
    x, hx = draw_given(module)
    y, _ = module(x, hx)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("which", ["y", "h", "states"])
def test_some_outputs_have_gradients(which: str) -> None:
    module = make("LSTM", num_layers=2)
    given = draw_given(module)

    def grads(module: Any, given: Any) -> list[Any]:
        y, (h, _), (_, states) = module(*given, return_all_states=True)
        loss = weighted([home({"y": y, "h": h, "states": states}[which])])
        return list(torch.autograd.grad(loss, [*leaves(given), *module.parameters()]))

    with on_the_host():
        expected = grads(twin_of(module), fresh(home(given)))
    assert_near(grads(module, fresh(given)), expected, 1e-12)


def test_some_inputs_need_gradients() -> None:
    module = make("GRU").requires_grad_(False)
    given = draw_given(module)
    x, h = fresh(given)
    y, _ = module(x.detach(), h)
    (found,) = torch.autograd.grad(y.sum(), h)
    y, _ = module(x, h)
    _, wanted = torch.autograd.grad(y.sum(), (x, h))
    assert_same(found, wanted)
    y, _ = module(x.detach(), h.detach())
    assert not y.requires_grad


@all_names
def test_saved_tensor_hooks(name: str) -> None:
    module = make(name)
    given = draw_given(module)
    expected = Result(module, given)
    inputs = fresh(given)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t)
    ran(0)
    with hooks:
        outputs = module(*inputs)
    module.zero_grad(set_to_none=True)
    weighted(home(outputs)).backward()
    assert ran(2, 1)  # no tape is kept, as hooks are there to save memory
    assert_same([tensor.grad for tensor in leaves(inputs)], expected.grads[: len(leaves(inputs))])


@pytest.mark.parametrize("use_reentrant", [False, True])
@names
def test_checkpoint(name: str, use_reentrant: bool) -> None:
    module = make(name, num_layers=2, dropout=0.4)
    wanted = [draw(T, B, INPUTS).requires_grad_(), *module.parameters()]

    def run(x: Any) -> Any:
        return module(x)[0]

    def grads(checkpointed: bool) -> list[Any]:
        for tensor in wanted:
            tensor.grad = None
        torch.manual_seed(5)
        checkpoint = torch.utils.checkpoint.checkpoint
        y = (
            checkpoint(run, wanted[0], use_reentrant=use_reentrant)
            if checkpointed
            else run(wanted[0])
        )
        weighted(home([y])).backward()
        return [tensor.grad for tensor in wanted]

    assert_same(grads(True), grads(False))


@all_names
def test_batched_gradients(name: str) -> None:
    ours = make(name)
    theirs = theirs_of(ours)
    x, _ = draw_given(ours)
    found = []
    for module, given in ((theirs, fresh(home(x))), (ours, fresh(x))):
        y = leaves(module(given))[0]
        torch.manual_seed(3)
        seeds = draw(4, *y.shape).to(y.device)
        wanted = (given, *module.parameters())
        found.append(torch.autograd.grad(y, wanted, seeds, is_grads_batched=True))
    assert_near(found[1], found[0], 1e-12)


@all_names
def test_transforms(name: str) -> None:
    """Of torch.func, which only torch's own operations go through."""
    ours = make(name)
    x, _ = draw_given(ours)

    def total(x: Any) -> Any:
        return leaves(ours(x))[0].square().sum()

    expected = fresh(home(x))
    leaves(theirs_of(ours)(expected))[0].square().sum().backward()
    assert_near(torch.func.grad(total)(x), expected.grad, 1e-12)
    assert ran(0)


# torch.compile.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NAMES + CELL_NAMES),
        ("LSTM", {"batch_first": True, "bidirectional": True}),
        ("GRU", {**EVERY, "batch_first": True}),
        ("LSTM", {"num_layers": 2, "proj_size": 3, "peephole": True}),
    ],
    ids=label,
)
def test_compiled(name: str, options: dict[str, Any]) -> None:
    module = make(name, **options)
    given = draw_given(module)
    more = {} if name in CELL_NAMES else draw_options(module)
    expected = Result(module, given, **more)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    ran(0)
    found = Result(compiled, given, **more)
    assert ran(2, 1)  # the operators keep no tape
    assert_near(found.tensors(), [t.detach().cpu() for t in expected.tensors()], 1e-12)
    for a, b in zip(leaves(found.outputs), leaves(expected.outputs), strict=True):
        assert a.stride() == b.stride()


def arguments(module: Any, needs: bool, **options: Any) -> tuple[Any, ...]:
    """Of torch.ops.fastrnn.run."""
    spec = module._spec()
    x, hx = draw_given(module)
    state = [tensor.requires_grad_(needs) for tensor in leaves(hx)]
    return (
        x.requires_grad_(needs),
        *(*state, None)[:2],
        [weight.detach().clone().requires_grad_(needs) for weight in module._weights()],
        options.get("lengths"),
        options.get("resets"),
        None,
        spec.cell,
        [spec.input_size, spec.hidden_size, spec.num_layers, spec.proj_size],
        [spec.bidirectional, spec.bias, spec.residual],
        spec.merge,
        module.batch_first,
        0.0,
    )


@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@names
def test_opcheck(name: str, batch_first: bool, needs: bool) -> None:
    module = make(name, batch_first=batch_first, bidirectional=True)
    given = arguments(module, needs, **draw_options(module))
    results = torch.library.opcheck(torch.ops.fastrnn.run.default, given)
    assert set(results.values()) == {"SUCCESS"}
    assert Recorder.count("forward") > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_fake_tensors_of_a_gpu(batch_first: bool, dtype: Any) -> None:
    module = fastrnn.torch.LSTM(INPUTS, H, batch_first=batch_first)
    given = arguments(module, False)
    with on_the_host(), torch._subclasses.FakeTensorMode():

        def fake(tensor: Any) -> Any:
            return torch.empty(tensor.shape, dtype=dtype, device="cuda")

        x, weights = fake(given[0]), [fake(weight) for weight in given[3]]
        outputs = torch.ops.fastrnn.run(x, None, None, weights, *given[4:])
        assert [tuple(y.shape) for y in outputs] == [(*x.shape[:2], H), (1, B, H), (1, B, H)]
        grads = torch.ops.fastrnn.run_backward(outputs, x, None, None, weights, *given[4:])
        state = (outputs[1], outputs[2])
        assert [g.shape for g in grads] == [t.shape for t in (x, *state, *weights)]
        for tensor in (*outputs, *grads):
            assert tensor.device.type == "cuda"
            assert tensor.dtype == dtype
        for sequence in (outputs[0], grads[0]):
            assert (sequence.transpose(0, 1) if batch_first else sequence).is_contiguous()


# Autocast.


@contextlib.contextmanager
def autocast(dtype: Any) -> Iterator[None]:
    """As torch.autocast("cuda", dtype) does, which wants a GPU."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "GRUCell", "LSTMCell"])
def test_autocast(name: str, dtype: Any) -> None:
    module = make(name, torch.float32)
    given = fresh(draw_given(module))
    exact = Result(theirs_of(module), tuple(rebuilt(g, map(in_double, leaves(g))) for g in given))
    rounded = Result(copy.deepcopy(module).to(dtype), tuple(cast_all(g, dtype) for g in given))
    ran(0)
    with autocast(dtype):
        outputs = module(*given)
    assert ran(1)
    assert all(tensor.dtype == dtype for tensor in leaves(outputs))
    assert_same(outputs, rounded.outputs)
    weighted(home(outputs)).backward()
    grads = [tensor.grad for tensor in (*leaves(given), *module.parameters())]
    assert all(grad.dtype == torch.float32 for grad in grads)
    assert distance(grads, exact.grads) < 0.1


def cast_all(value: Any, dtype: Any) -> Any:
    return rebuilt(value, (tensor.detach().to(dtype) for tensor in leaves(value)))


def test_autocast_leaves_double_precision() -> None:
    module = make("LSTM")
    given = draw_given(module)
    expected = module(*given)
    with autocast(torch.float16):
        assert_same(module(*given), expected)


# Modules.


def test_replace() -> None:
    model = torch.nn.ModuleList(
        [
            torch.nn.LSTM(INPUTS, H),
            torch.nn.GRU(INPUTS, H, dtype=torch.bfloat16),
            torch.nn.RNNCell(INPUTS, H, dtype=torch.float16),
        ]
    ).to(DEVICE)
    assert fastrnn.torch.replace(model) == (["0", "1", "2"], {})
    model[1](draw(T, B, INPUTS, dtype=torch.bfloat16))
    model[2](draw(B, INPUTS, dtype=torch.float16))
    assert ran(2)
    with on_the_host():
        left = fastrnn.torch.replace(torch.nn.GRU(INPUTS, H, dtype=torch.bfloat16)).left
    assert left == {
        "": "the kernels run float32 and float64 on the CPU, these and 16-bit floats on CUDA,"
        " not bfloat16 on cpu"
    }


@all_names
def test_a_build_without_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "AVAILABLE", False)
    module = make(name)
    given = draw_given(module)
    assert_near(
        Result(module, given).tensors(), Result(theirs_of(module), home(given)).tensors(), 1e-12
    )
    assert ran(0)
    twin = copy.deepcopy(module)
    fastrnn.torch.restore(twin)
    assert list(fastrnn.torch.replace(twin).left.values()) == [
        f"the kernels run float32 and float64 on the CPU, not float64 on {given[0].device}"
    ]


@names
def test_extras_in_a_build_without_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(name, **EVERY)
    given, options = draw_given(module), draw_options(module)
    expected = Result(module, given, **options)
    assert ran(1, 1)
    monkeypatch.setattr(cuda, "AVAILABLE", False)
    found = Result(module, given, **options)
    assert ran(0)
    assert_near(found.tensors(), [t.detach().cpu() for t in expected.tensors()], 1e-11)


def test_mixed_dtypes_are_torchs_to_refuse() -> None:
    module = make("LSTM", torch.float32)
    x = draw(T, B, INPUTS)
    theirs = theirs_of(module, torch.float32).to(DEVICE)
    assert outcome(lambda: module(x)) == outcome(lambda: theirs(x))
    assert ran(0)


def test_masks_in_a_graph_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("GRU", recurrent_dropout=0.2, zoneout=0.1)
    x, _ = draw_given(module)
    monkeypatch.setattr(cuda, "_is_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"^CUDA graph: expected a call without random masks"):
        module(x)
    module.eval()(x)
    make("GRU")(x)


@all_names
def test_copies(name: str) -> None:
    module = make(name)
    given = draw_given(module)
    expected = module(*given)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert_same(twin(*given), expected)
    assert ran(4)


def test_threads() -> None:
    module = make("LSTM", bidirectional=True)
    given = [draw_given(module) for _ in range(4)]

    def run(state: Any) -> list[Any]:
        inputs = fresh(state)
        outputs = module(*inputs)
        wanted = [*leaves(inputs), *module.parameters()]
        loss = sum(y.square().sum() for y in leaves(outputs))
        return [*leaves(outputs), *torch.autograd.grad(loss, wanted)]

    expected = [run(state) for state in given]
    found: list[Any] = [None] * len(given)

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = run(given[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)


def test_training_reaches_the_hosts_loss() -> None:
    ours = torch.nn.Sequential(torch.nn.Linear(INPUTS, INPUTS), torch.nn.LSTM(INPUTS, H)).double()
    theirs = copy.deepcopy(ours)
    assert fastrnn.torch.replace(ours.to(DEVICE)).replaced == ["1"]
    x, y = draw(T, B, INPUTS), draw(T, B, H)
    losses = []
    for model, place in ((theirs, home), (ours, lambda value: value)):
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(place(x))[0] - place(y)).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert ran(20, 20)
