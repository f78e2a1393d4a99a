"""fastrnn.torch and the process it is in: threads borrowed from torch, fork, imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")


def run(code: str) -> str:
    """Output of a program of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_are_torchs() -> None:
    """One OpenMP runtime is loaded, and it lends its threads."""
    found = run("from fastrnn.torch import threads; print(threads.borrow())")
    assert found == "True"


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    code = """
import fastrnn, fastrnn.torch, torch
torch.manual_seed(0)
fastrnn.set_num_threads(3)
module, x = fastrnn.torch.LSTM(96, 128), torch.ones(40, 24, 96)

def step():
    module.zero_grad()
    output, _ = module(x)
    output.sum().backward()
    return [output.detach(), *(parameter.grad for parameter in module.parameters())]

torch.set_num_threads(1)
expected = step()
for threads in (2, 3, 1):
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(step(), expected)), threads
print("same")
"""
    assert run(code) == "same"


def test_a_child_after_fork_has_threads_of_its_own() -> None:
    code = """
import fastrnn, fastrnn.torch, os, torch
fastrnn.set_num_threads(2)
torch.set_num_threads(2)
module, x = fastrnn.torch.LSTM(96, 128).eval(), torch.ones(40, 24, 96)
with torch.no_grad():
    before = module(x)[0].numpy()
    child = os.fork()
    if child == 0:
        os._exit(0 if (module(x)[0].numpy() == before).all() else 1)
    print(os.waitpid(child, 0)[1], bool((module(x)[0].numpy() == before).all()))
"""
    assert run(code) == "0 True"


def test_calls_inside_of_torchs_threads_are_alone() -> None:
    """Autograd of several roots and DataLoader threads run calls side by side."""
    code = """
import concurrent.futures, fastrnn.torch, torch
torch.set_num_threads(2)
module = fastrnn.torch.GRU(32, 128).eval()
xs = [torch.randn(30, 16, 32) for _ in range(8)]
with torch.no_grad():
    expected = [module(x)[0] for x in xs]

def call(x):
    with torch.no_grad():
        return [module(x)[0] for _ in range(10)][-1]

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(all(torch.equal(a, b) for a, b in zip(pool.map(call, xs), expected)))
"""
    assert run(code) == "True"
