"""Time torch.nn's recurrent modules before and after `fastrnn.torch.replace`.

Interleaved in one process, with torch's threads for both: a training step is forward, backward and
the gradients of all parameters, as a user of torch runs it. Run it from a checkout:
``python bench/torch_modules.py``.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import fastrnn.torch
import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

Function = Callable[[], object]

SEQUENCES = ((1, 100, 64), (8, 50, 128), (32, 50, 256), (64, 50, 512), (128, 20, 1024))  # B, T, H
CELLS = ((1, 32), (1, 64), (1, 128), (8, 64), (32, 128))  # B, H
CELL_STEPS = 20


def seconds(function: Function, calls: int) -> float:
    """Mean time of some calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def compare(theirs: Function, ours: Function, rounds: int) -> str:
    """Median times and ratio of interleaved rounds."""
    for function in (theirs, ours):
        function()
    calls = max(1, int(0.02 / seconds(theirs, 1)))
    times = [(seconds(theirs, calls), seconds(ours, calls)) for _ in range(rounds)]
    ratios = [a / b for a, b in times]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    a, b = np.median(times, axis=0) * 1e6
    return f"{a:>9.0f} | {b:>9.0f} | {middle:5.2f} ({low:.2f} to {high:.2f}) |"


def training_step(module: nn.Module, forward: Callable[[], torch.Tensor]) -> Function:
    """Forward and backward of an output, with the gradient 1."""

    def step() -> None:
        module.zero_grad()
        output = forward()
        output.backward(torch.ones_like(output))

    return step


def report(name: str, modules: tuple[nn.Module, nn.Module], run: Callable, rounds: int) -> None:
    """Print a line for training and one for inference; `run(module)` gives a tensor."""
    training = [training_step(m, lambda m=m: run(m)) for m in modules]
    print(f"| {name:<26} | training  | {compare(*training, rounds)}", flush=True)
    for module in modules:
        module.eval()
    with torch.no_grad():
        inference = [lambda m=m: run(m) for m in modules]
        print(f"| {name:<26} | inference | {compare(*inference, rounds)}", flush=True)


def pair(kind: type[nn.Module], H: int) -> tuple[nn.Module, nn.Module]:
    """Make a module of torch's, and the same one replaced."""
    theirs = kind(H, H)
    ours = copy.deepcopy(theirs)
    fastrnn.torch.replace(ours)
    return theirs, ours


def loop(cell: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run steps of a cell, as people write them."""
    state = None
    for x_t in x:
        state = cell(x_t, state)
    return state[0] if isinstance(state, tuple) else state


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {given.threads} thread(s), times in microseconds\n")
    print("| module                     | pass      |     torch |   fastrnn | ratio |")
    print("| -------------------------- | --------- | --------: | --------: | ----: |")
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for B, T, H in SEQUENCES:
            x = torch.randn(T, B, H)
            name = f"{kind.__name__} B={B} T={T} H={H}"
            report(name, pair(kind, H), lambda m, x=x: m(x)[0], given.rounds)
        lengths = torch.randint(1, 201, (32,))
        packed = pack_padded_sequence(torch.randn(200, 32, 128), lengths, enforce_sorted=False)
        name = f"{kind.__name__} packed B=32 H=128"
        report(name, pair(kind, 128), lambda m, p=packed: m(p)[0].data, given.rounds)
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        for B, H in CELLS:
            x = torch.randn(CELL_STEPS, B, H)
            name = f"{kind.__name__} B={B} H={H}, {CELL_STEPS}x"
            report(name, pair(kind, H), lambda m, x=x: loop(m, x), given.rounds)


if __name__ == "__main__":
    main()
