"""What a real GPU alone can show: the results of its arithmetic, streams, graphs, races.

Deselected where there is none; `bench/gpu_check.sh` runs them where there is one.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import fastrnn
import numpy as np
import pytest
import reference
from fastrnn import functional
from parity import CELLS, LSTM_CELLS, check, check_backward, draw_resets, together

torch = pytest.importorskip("torch")
import fastrnn.torch  # noqa: E402

pytestmark = [
    # Warm-ups run on another stream than the one that leaves were made on, as torch asks for.
    pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

DEVICE = "cuda"
POLICIES = ("block", "cluster", "grid")
MODULES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}
KINDS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SIZES = (24, 72, 136, 200, 264, 392, 520, 648, 776, 1032, 1544)
T, B, INPUTS = 6, 5, 7


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    """No TF32 but where a test asks for it."""
    with precision("float32"):
        yield


@contextlib.contextmanager
def precision(kind: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@functools.cache
def planned_size(policy: str, cell: str, kind: str) -> int | None:
    """The smallest number of hidden units that the planner runs by a policy."""
    for H in SIZES:
        options = (1, False, 0, True, "concat", False, False, math.inf)
        engine = functional.CudaEngine(cell, INPUTS, H, *options, kind)
        (plan,) = engine.plans(0, T, B, functional.Noise(), True)
        if plan.partition(":")[0] == policy:
            return H
    return None


def size_of(policy: str, cell: str, kind: str) -> int:
    size = planned_size(policy, cell, kind)
    if size is None:
        pytest.skip(f"this GPU runs no {cell} in {kind} by {policy}")
    return size


def module_of(cell: str, H: int, kind: str, source: Any = fastrnn.torch, **options: Any) -> Any:
    torch.manual_seed(1)
    given = {"device": DEVICE, "dtype": KINDS[kind], **options}
    return getattr(source, MODULES[cell])(INPUTS, H, **given)


def input_of(kind: str, steps: int = T, rows: int = B) -> Any:
    torch.manual_seed(2)
    return torch.randn(steps, rows, INPUTS, device=DEVICE, dtype=KINDS[kind], requires_grad=True)


def training_step(module: Any, x: Any, **options: Any) -> list[Any]:
    """Output, final state and all gradients, of a loss that differs from element to element.

    Its sums over many rows stay small, so that float32 has them with many digits.
    """
    leaves = [x, *module.parameters()]
    for leaf in leaves:
        leaf.grad = None
    output, state = module(x, **options)
    places = torch.arange(output.numel(), device=x.device, dtype=torch.float64)
    output.backward(places.cos().to(x.dtype).view_as(output))
    states = state if isinstance(state, tuple) else (state,)
    return [output.detach(), *(part.detach() for part in states), *(leaf.grad for leaf in leaves)]


def assert_same(actual: list[Any], expected: list[Any]) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# ---- results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", MODULES)
def test_a_hopper_gpu_has_every_policy(cell: str, kind: str) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("another GPU may lack some")
    assert None not in [planned_size(policy, cell, kind) for policy in POLICIES]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cell", MODULES)
def test_policies_match_the_oracle(cell: str, policy: str, rng: np.random.Generator) -> None:
    sizes = {"input_size": INPUTS, "hidden_size": size_of(policy, cell, "float32")}
    lengths = np.array([T, 1, 0, 4, 3])
    for ragged in ({}, {"lengths": lengths, "resets": draw_resets(rng, T, B)}):
        check(cell, rng, T=T, B=B, **sizes, **ragged, device=DEVICE)
        check_backward(cell, rng, T=T, B=B, **sizes, **ragged, device=DEVICE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_cells_match_the_oracle(cell: str, dtype: Any, rng: np.random.Generator) -> None:
    sizes = {"T": 7, "B": 11, "input_size": 9, "hidden_size": 37, "dtype": dtype}
    deep = {"num_layers": 2, "bidirectional": True, "merge": "mean", "residual": True}
    ragged = {"lengths": rng.integers(0, 8, 11), "resets": draw_resets(rng, 7, 11)}
    projected = {"proj_size": 13, "clip": 0.4} if cell in LSTM_CELLS else {}
    regular = {"num_layers": 2, **together(cell)}
    for options in ({}, deep | ragged, projected, regular):
        check(cell, rng, **sizes, **options, device=DEVICE)
        check_backward(cell, rng, **sizes, **options, device=DEVICE)


def errors(arrays: list[Any], expected: list[np.ndarray]) -> list[float]:
    """Euclidean distance of each array from the oracle's, relative to the oracle's length."""
    pairs = [
        (a.double().cpu().numpy().reshape(b.shape), b)
        for a, b in zip(arrays, expected, strict=True)
    ]
    return [float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)) for a, b in pairs]


def oracle_step(cell: str, module: Any, x: Any) -> list[np.ndarray]:
    """What `training_step` gives, in float64."""
    parameters = {n: p.detach().double().cpu().numpy() for n, p in module.named_parameters()}
    value = x.detach().double().cpu().numpy()
    output, state = reference.forward(cell, parameters, value)
    grad = torch.arange(output.size, dtype=torch.float64).cos().to(x.dtype).double()
    grad = grad.view(output.shape).numpy()
    dx, _, gradients = reference.backward(cell, parameters, value, grad_output=grad)
    states = state if isinstance(state, tuple) else (state,)
    return [output, *states, dx, *(gradients[name] for name in parameters)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", MODULES)
def test_short_numbers_err_at_most_twice_as_much_as_torch(
    cell: str, kind: str, policy: str
) -> None:
    H = size_of(policy, cell, kind)
    x = input_of(kind, steps=8)
    theirs = module_of(cell, H, kind, torch.nn)
    ours = module_of(cell, H, kind)
    ours.load_state_dict(theirs.state_dict())
    expected = oracle_step(cell, theirs, x)
    with precision(kind):
        their_errors = errors(training_step(theirs, x), expected)
        our_errors = errors(training_step(ours, x), expected)
    unit = {"tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}[kind]
    for mine, other in zip(our_errors, their_errors, strict=True):
        # Rounding the result alone makes an error of half a unit.
        assert mine <= max(2 * other, unit / 2), (our_errors, their_errors)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cell", MODULES)
def test_float32_has_no_tf32_unless_asked(cell: str, policy: str) -> None:
    x = input_of("float32")
    module = module_of(cell, size_of(policy, cell, "float32"), "float32")
    expected = oracle_step(cell, module, x)
    assert max(errors(training_step(module, x), expected)) < 5e-6
    with precision("tf32"):
        assert max(errors(training_step(module, x), expected)) > 5e-6


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cell", MODULES)
def test_long_sequences(cell: str, policy: str) -> None:
    """Thousands of exchanges: one that comes too late makes another result."""
    H = size_of(policy, cell, "float32")
    x = input_of("float32", steps=1500, rows=33)
    module = module_of(cell, H, "float32")
    double = module_of(cell, H, "float32", torch.nn).double()
    double.load_state_dict(module.state_dict())
    results = [training_step(module, x) for _ in range(3)]
    for other in results[1:]:
        assert_same(other, results[0])
    expected = training_step(double, x.detach().double().requires_grad_())
    parameters = len(list(module.parameters()))
    pairs = list(zip(results[0], expected, strict=True))
    for actual, wanted in pairs[:-parameters]:
        assert float((actual - wanted).abs().max() / wanted.abs().max()) < 5e-5
    for actual, wanted in pairs[-parameters:]:  # sums over all steps and rows, which cancel
        assert float((actual - wanted).norm() / wanted.norm()) < 2e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cell", MODULES)
def test_two_runs_give_the_same_bits(cell: str, policy: str, kind: str) -> None:
    with precision(kind):
        module = module_of(cell, size_of(policy, cell, kind), kind, num_layers=2)
        x = input_of(kind, steps=60, rows=17)
        assert_same(training_step(module, x), training_step(module, x))
        module.eval()
        with torch.no_grad():
            torch.testing.assert_close(module(x)[0], module(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("cell", MODULES)
def test_gradcheck(cell: str) -> None:
    torch.manual_seed(3)
    kind = getattr(fastrnn.torch, MODULES[cell])
    module = kind(3, 4, 2, bidirectional=True, device=DEVICE, dtype=torch.float64)
    x = torch.randn(4, 3, 3, device=DEVICE, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 1, 3], device=DEVICE)
    resets = torch.tensor(draw_resets(np.random.default_rng(4), 4, 3), device=DEVICE)

    def outputs(*_: Any) -> tuple[Any, ...]:
        output, state = module(x, lengths=lengths, resets=resets)
        return output, *(state if isinstance(state, tuple) else (state,))

    leaves = (x, *module.parameters())
    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, leaves, fast_mode=True)


# ---- lengths and resets on the device


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cell", MODULES)
def test_lengths_and_resets_on_the_device(cell: str, policy: str) -> None:
    H = size_of(policy, cell, "float32")
    module = module_of(cell, H, "float32")
    x = input_of("float32")
    lengths = torch.tensor([T, 0, 1, 3, T - 1])
    resets = torch.tensor(draw_resets(np.random.default_rng(5), T, B))
    expected = training_step(module, x, lengths=lengths, resets=resets)
    moved = {"lengths": lengths.to(DEVICE), "resets": resets.to(DEVICE)}
    assert_same(training_step(module, x, **moved), expected)
    output, grad_x = expected[0], x.grad
    for row, length in enumerate(lengths.tolist()):
        assert not output[length:, row].any()
        assert not grad_x[length:, row].any()
        if length and not resets[:, row].any():
            alone, _ = module(x[:length, row : row + 1])
            torch.testing.assert_close(output[:length, row : row + 1], alone.detach())


# ---- streams, graphs, synchronisation


@pytest.mark.parametrize("policy", POLICIES)
def test_work_is_queued_on_the_current_stream(policy: str) -> None:
    module = module_of("lstm", size_of(policy, "lstm", "float32"), "float32")
    x = input_of("float32", steps=40, rows=16)
    expected = training_step(module, x)
    slow = torch.randn(6000, 6000, device=DEVICE)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(10):
            slow = slow @ slow / 6000  # x is ready long after the host has queued what follows
        late = (x.detach() + 0 * slow[0, 0].nan_to_num()).requires_grad_()
        actual = training_step(module, late)
    stream.synchronize()
    assert_same(actual, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_two_streams_at_once(policy: str) -> None:
    """Kernels whose blocks wait for each other must not starve each other."""
    module = module_of("lstm", size_of(policy, "lstm", "bfloat16"), "bfloat16").eval()
    x = input_of("bfloat16", steps=300, rows=16).detach()
    streams = [torch.cuda.Stream() for _ in range(4)]
    with torch.no_grad():
        expected, _ = module(x)
        torch.cuda.synchronize()
        results = []
        for _ in range(5):
            for stream in streams:
                with torch.cuda.stream(stream):
                    results.append(module(x)[0])
        torch.cuda.synchronize()
    for actual in results:
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_threads(policy: str) -> None:
    module = module_of("gru", size_of(policy, "gru", "float32"), "float32").eval()
    inputs = [input_of("float32").detach() + number for number in range(4)]
    with torch.no_grad():
        expected = [module(x)[0] for x in inputs]
    torch.cuda.synchronize()
    results: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            results[number] = [module(inputs[number])[0] for _ in range(20)]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate(expected):
        for actual in results[number]:
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


def warmed_up(call: Callable[[], Any]) -> None:
    """As torch asks for before a capture: some calls on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cell", MODULES)
def test_a_graph_captures_forward_and_backward(cell: str, policy: str, kind: str) -> None:
    module = module_of(cell, size_of(policy, cell, kind), kind)
    x = input_of(kind)
    warmed_up(lambda: training_step(module, x))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training_step(module, x)
    for seed in (6, 7):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        graph.replay()  # nothing is left over from the last one
        torch.cuda.synchronize()
        replayed = [array.clone() for array in captured]
        fresh = x.detach().clone().requires_grad_()
        assert_same(replayed, training_step(module, fresh))


def test_graphed_callables() -> None:
    class Output(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module_of("lstm", 24, "float32")

        def forward(self, x: Any) -> Any:
            return self.inner(x)[0]

    plain = Output()
    x = input_of("float32")
    grad = torch.randn(T, B, 24, device=DEVICE)
    plain(x).backward(grad)
    expected = [x.grad, *(p.grad for p in plain.parameters())]
    x.grad = None
    graphed = torch.cuda.make_graphed_callables(plain, (torch.zeros_like(x, requires_grad=True),))
    for parameter in plain.parameters():
        parameter.grad = None
    graphed(x).backward(grad)
    assert_same([x.grad, *(p.grad for p in plain.parameters())], expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cell", MODULES)
def test_nothing_waits_for_the_gpu(cell: str, policy: str, training: bool) -> None:
    module = module_of(cell, size_of(policy, cell, "float32"), "float32").train(training)
    x = input_of("float32")
    given = {
        "lengths": torch.tensor([T, 0, 1, 3, T - 1], device=DEVICE),
        "resets": torch.zeros(T, B, dtype=torch.bool, device=DEVICE),
    }

    def call() -> None:
        for options in ({}, given):
            if training:
                training_step(module, x, **options)
            else:
                with torch.no_grad():
                    module(x, **options)

    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_is_given_back(policy: str) -> None:
    module = module_of("lstm", size_of(policy, "lstm", "float32"), "float32")
    x = input_of("float32")
    training_step(module, x)
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        training_step(module, x)
    assert torch.cuda.memory_allocated() == before


# ---- arrays of others


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_layers_take_arrays_of_others_on_the_gpu(library: str) -> None:
    pytest.importorskip(library)
    layer = fastrnn.GRU(INPUTS, 24, seed=0, device=DEVICE)
    x = input_of("float32").detach()
    expected, state = layer(x.cpu().numpy())
    given = x
    if library == "cupy":
        import cupy

        given = cupy.from_dlpack(x)
    output, final = layer(given)
    for actual, wanted in ((output, expected), (final, state)):
        np.testing.assert_array_equal(actual.numpy(), wanted)
        np.testing.assert_array_equal(torch.from_dlpack(actual).cpu().numpy(), wanted)
    assert torch.from_dlpack(output).data_ptr() == output.__cuda_array_interface__["data"][0]
