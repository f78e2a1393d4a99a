"""The problem that gates were invented for: remember two numbers over hundreds of steps.

In the adding problem (Hochreiter & Schmidhuber 1997) each step has a random number in [0, 1] and a
marker, which is 1 at two steps, one in each half of the sequence, and 0 elsewhere. After the last
step the network has to give the sum of the two marked numbers. Who always answers 1 has a mean
squared error of 1/6, about 0.167; below 0.01 the task is solved.

    python examples/vanishing_gradients.py

Prints for sequences of 50, 200 and 400 steps after how many updates an RNN, an LSTM and a GRU have
solved it, and their test error. Each run ends when it has, or after a fixed number of epochs. The
picture shows why: the gradient of the loss with respect to the state at every step, before
training, which vanishes in the RNN on its way back to the marked steps; and the curves of the
error. Needs matplotlib for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import fastrnn
import numpy as np
from fastrnn.optimizers import Adam

HIDDEN, BATCH, SEQUENCES, TESTS = 64, 50, 5000, 2000
GUESSING, SOLVED = 1 / 6, 0.01
EPOCHS = {50: 12, 200: 12, 400: 6}  # at most, for each number of steps
RATE = {"RNN": 0.001, "LSTM": 0.01, "GRU": 0.01}  # the RNN learns no more with 0.01, but trembles


def adding(count: int, T: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences (count, T, 2) of numbers and markers, and the sums (count,)."""
    x = np.zeros((count, T, 2), np.float32)
    x[:, :, 0] = rng.random((count, T))
    rows = np.arange(count)
    first, second = rng.integers(0, T // 2, count), rng.integers(T // 2, T, count)
    x[rows, first, 1] = x[rows, second, 1] = 1
    return x, x[rows, first, 0] + x[rows, second, 0]


def make_model(kind: str, T: int, seed: int) -> fastrnn.Sequential:
    layer = {"RNN": fastrnn.RNN, "LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU}[kind](
        2, HIDDEN, seed=seed
    )
    if kind != "RNN":
        # Gates that open so little that units forget after 1 to T steps (Tallec & Ollivier 2018).
        # The second quarter of the LSTM's biases is of its forget gates, the second third of the
        # GRU's of its update gates, which keep the state where they are 1, too. With
        # ``forget_bias=1`` instead, the LSTM needs some 1500 updates for 200 steps.
        remember = np.log(np.random.default_rng(seed).uniform(1, T - 1, HIDDEN))
        layer.parameters["bias_ih_l0"][HIDDEN : 2 * HIDDEN] = remember
        if kind == "LSTM":
            layer.parameters["bias_ih_l0"][:HIDDEN] = -remember  # the input gates
    model = fastrnn.Sequential([layer, fastrnn.Last(), fastrnn.Dense(HIDDEN, 1, seed=seed)])
    return model.compile(Adam(RATE[kind], global_clipnorm=1.0), "mse")


def train(kind: str, T: int, epochs: int, count: int, seed: int) -> dict[str, Any]:
    """Train until the task is solved, and return the error after every epoch, among others."""
    rng = np.random.default_rng(seed)
    x, y = adding(count, T, rng)
    test = adding(TESTS, T, rng)
    model = make_model(kind, T, seed)
    flow = fastrnn.gradient_flow(model, x[:BATCH], y[:BATCH]).norms["0.l0"]
    start = time.perf_counter()
    errors: list[float] = []
    while len(errors) < epochs and (not errors or errors[-1] > SOLVED):
        model.fit(x, y, batch_size=BATCH, seed=seed, verbose=0)
        errors.append(model.evaluate(*test)["loss"])
        print(f"{kind}, {T} steps, epoch {len(errors)}: error {errors[-1]:.4f}", file=sys.stderr)
    updates = len(errors) * -(-count // BATCH)
    seconds = time.perf_counter() - start
    return {"errors": errors, "flow": flow, "updates": updates, "seconds": seconds}


def draw(path: str, runs: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Draw gradients before training and errors, in a column for each number of steps."""
    from matplotlib.figure import Figure

    lengths = sorted({T for _, T in runs})
    figure = Figure(figsize=(4 * len(lengths), 6), layout="constrained")
    axes = figure.subplots(2, len(lengths), squeeze=False)
    for column, T in enumerate(lengths):
        upper, lower = axes[:, column]
        for kind in RATE:
            run = runs[kind, T]
            # 0, for what is too small for float32, has no logarithm.
            norms = np.where(run["flow"] > 0, run["flow"], np.nan)
            upper.semilogy(np.arange(1, T + 1), norms, label=kind)
            lower.plot(np.arange(1, len(run["errors"]) + 1), run["errors"], ".-", label=kind)
        upper.set(title=f"{T} steps", xlabel="step t", ylabel="norm of dL/dh_t before training")
        lower.axhline(GUESSING, color="gray", linestyle=":", label="always 1")
        lower.set(xlabel="epoch", ylabel="test error", ylim=(0, 0.25))
        lower.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Remember two numbers over hundreds of steps.")
    parser.add_argument("--picture", metavar="FILE", default="vanishing_gradients.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="50 steps only, fewer epochs")
    arguments = parser.parse_args(argv)
    plan = {50: 5} if arguments.quick else EPOCHS
    count = 2000 if arguments.quick else SEQUENCES

    runs = {
        (kind, T): train(kind, T, epochs, count, arguments.seed)
        for T, epochs in plan.items()
        for kind in RATE
    }
    print(f"{'steps':>5} {'network':8} {'test error':>10} {'updates':>8} {'seconds':>8}")
    for (kind, T), run in runs.items():
        error = run["errors"][-1]
        verdict = "solved" if error < SOLVED else f"not solved in {plan[T]} epochs"
        print(f"{T:5} {kind:8} {error:10.4f} {run['updates']:8} {run['seconds']:8.1f}  {verdict}")
    print(f"always 1       {GUESSING:10.4f}")
    draw(arguments.picture, runs)
    return {f"{kind} {T}": run for (kind, T), run in runs.items()}


if __name__ == "__main__":
    main()
