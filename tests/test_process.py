"""How the library behaves in a process: fork, threads, other libraries, imports.

Everything that could hang runs in a process of its own, under a time limit.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity import CELLS, assert_same_bits, make_layer

TESTS = Path(__file__).parent

# A layer whose call is worth two threads, and what its output has to be, to the bit.
LAYER = """
import numpy as np, fastrnn
fastrnn.set_num_threads(2)
layer = fastrnn.LSTM(64, 256, bidirectional=True, seed=1).eval()
x = np.random.default_rng(1).standard_normal((20, 16, 64), np.float32)
expected = layer(x)[0]
"""


def run_script(script: str, timeout: float = 60) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_first_calls_from_several_threads() -> None:
    run_script(
        """
import sys, threading
import numpy as np, fastrnn
sys.setswitchinterval(1e-6)
layers = [fastrnn.LSTM(3, 4) for _ in range(8)]
x = np.zeros((2, 1, 3), np.float32)
together = threading.Barrier(len(layers))
def work(layer):
    together.wait()
    layer(x)
threads = [threading.Thread(target=work, args=(layer,)) for layer in layers]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    )


def test_fork_after_use() -> None:
    """The child has none of its parent's threads: the team has to notice."""
    run_script(
        LAYER
        + """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from os.fork about threads
for generation in range(3):
    child = os.fork()
    if child == 0:
        same = all((layer(x)[0] == expected).all() for _ in range(3))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (layer(x)[0] == expected).all()
"""
    )


def test_multiprocessing_fork_pool() -> None:
    run_script(
        LAYER
        + """
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)

def same(_):
    return bool((layer(x)[0] == expected).all())

with multiprocessing.get_context("fork").Pool(3) as pool:
    assert all(pool.map(same, range(12)))
assert same(0)
"""
    )


def test_fork_before_use() -> None:
    run_script(
        """
import os, warnings
import numpy as np, fastrnn
fastrnn.set_num_threads(2)
layer = fastrnn.GRU(64, 256, seed=1)
x = np.ones((20, 16, 64), np.float32)
child = os.fork()
output = layer(x)[0]
assert np.isfinite(output).all()
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    )


@pytest.mark.parametrize("first", ["fastrnn", "torch"])
def test_beside_torch(first: str) -> None:
    """Two OpenMP runtimes in one process, loaded in either order and used in turns."""
    pytest.importorskip("torch")
    second = {"fastrnn": "torch", "torch": "fastrnn"}[first]
    run_script(
        f"import {first}\nimport {second}\n"
        + """
import numpy as np
module = torch.nn.GRU(64, 256)
layer = fastrnn.GRU(64, 256)
layer.load_state_dict(module.state_dict())
x = np.random.default_rng(1).standard_normal((20, 16, 64), np.float32)
for threads in (1, 2):
    fastrnn.set_num_threads(threads)
    torch.set_num_threads(threads)
    for _ in range(5):
        with torch.no_grad():
            expected = module(torch.from_numpy(x))[0].numpy()
        assert abs(layer(x)[0] - expected).max() < 1e-5
"""
    )


def call_from_many(layers: list[Any], inputs: list[Any]) -> None:
    """Call layers from four Python threads at once; every result has its serial bits."""
    expected = [layer(x) for layer, x in zip(layers, inputs, strict=True)]

    def call(number: int) -> None:
        output, final = layers[number](inputs[number])
        assert_same_bits(output, expected[number][0])
        assert_same_bits(final, expected[number][1])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(call, n % len(layers)) for n in range(48)]:
            done.result()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_one_layer_from_many_threads(cell: str, training: bool, rng: np.random.Generator) -> None:
    layer = make_layer(cell, 16, 96, rng, num_layers=2)
    layer.train(training)
    inputs = [rng.standard_normal((T, B, 16), np.float32) for T, B in ((9, 1), (5, 7), (3, 33))]
    call_from_many([layer] * len(inputs), inputs)


def test_many_layers_from_many_threads(rng: np.random.Generator) -> None:
    layers = [make_layer(cell, 16, 96, rng) for cell in CELLS]
    inputs = [rng.standard_normal((7, 5, 16), np.float32) for _ in layers]
    call_from_many(layers, inputs)


def test_step_from_many_threads(rng: np.random.Generator) -> None:
    layer = make_layer("lstm", 16, 96, rng, num_layers=2)
    layer.eval()
    x = rng.standard_normal((40, 16), np.float32)
    expected, _ = layer(x)

    def stream(_: int) -> None:
        state = None
        for t in range(len(x)):
            h, state = layer.step(x[t], state)
            assert_same_bits(h, expected[t])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(stream, range(8)))


def test_thread_count_changes_while_calls_run() -> None:
    run_script(
        LAYER
        + """
import threading
stop = threading.Event()
failures = []

def call():
    while not stop.is_set():
        if (layer(x)[0] != expected).any():
            failures.append(1)

callers = [threading.Thread(target=call) for _ in range(2)]
for caller in callers:
    caller.start()
for number in range(60):
    fastrnn.set_num_threads(1 + number % 4)
    layer(x)
stop.set()
for caller in callers:
    caller.join()
assert not failures
"""
    )


def test_more_threads_than_cores() -> None:
    run_script(
        LAYER
        + """
for threads in (8, 3, 8):
    fastrnn.set_num_threads(threads)
    for _ in range(5):
        assert (layer(x)[0] == expected).all()
"""
    )


def test_nothing_spins_after_return() -> None:
    spent = run_script(
        LAYER
        + """
import time
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""
    )
    assert float(spent) < 0.1


def test_threads_end_with_the_python_thread() -> None:
    """Calls from short-lived threads leave no team behind each of them."""
    left = run_script(
        LAYER
        + """
import os, threading

def call():
    assert (layer(x)[0] == expected).all()

for _ in range(50):
    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
print(len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1)
"""
    )
    # BLAS may have started one per core when NumPy was imported.
    assert int(left) < 20


def test_import_stays_light() -> None:
    loaded = run_script("import sys, fastrnn; print(*sys.modules)").split()
    assert "numpy" in loaded
    heavy = {"torch", "scipy", "sklearn", "matplotlib", "rich", "onnx", "onnxruntime"}
    assert not heavy.intersection(loaded)


def test_what_is_not_asked_for_is_not_imported() -> None:
    code = """
        import sys, fastrnn
        lazy = {"fastrnn.trainer", "fastrnn.layers", "fastrnn.io", "sklearn", "matplotlib", "tqdm"}
        assert not lazy & set(sys.modules), lazy & set(sys.modules)
        for name in dir(fastrnn):
            getattr(fastrnn, name)
        for name in fastrnn.__all__:
            value = getattr(fastrnn, name)
            assert getattr(value, "__name__", name).rpartition(".")[2] == name, (name, value)
        assert "fastrnn.trainer" in sys.modules
        try:
            fastrnn.nothing
        except AttributeError as error:
            assert "'fastrnn' has no attribute 'nothing'" in str(error)
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)
