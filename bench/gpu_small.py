"""Run every cell by every policy on an NVIDIA GPU, tiny, and compare with the CPU.

Made to be run under a checker that slows it down by orders of magnitude::

    compute-sanitizer --tool racecheck python bench/gpu_small.py

Needs NumPy only. Which sizes make which policy is asked of the planner; with
``FASTRNN_CUDA_POLICY=steps`` in the environment all are run one launch per step.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from typing import Any

import fastrnn
import numpy as np
from fastrnn import functional

T, B, INPUTS = 3, 5, 6
KINDS = ("float32", "tf32", "float16", "bfloat16", "float64")
# Hidden units, the smallest first: odd ones, and one around each size where plans change.
SIZES = (9, 40, 104, 136, 200, 264, 392, 520, 648, 776, 1032)
# Of errors scaled by the largest value, as the bits of the products have it.
TOLERANCE = {"float32": 2e-5, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 5e-2, "float64": 1e-12}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "rnn_sigmoid": ("RNN", {"nonlinearity": "sigmoid"}),
    "lstm": ("LSTM", {}),
    "lstm_peephole": ("LSTM", {"peephole": True}),
    "lstm_coupled": ("LSTM", {"coupled": True}),
    "lstm_coupled_peephole": ("LSTM", {"coupled": True, "peephole": True}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
}
# Other code than the plain cell's; run at the smallest size.
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lstm", {"num_layers": 2, "bidirectional": True, "merge": "sum", "residual": True}),
    ("lstm", {"proj_size": 4, "clip": 0.5}),
    ("lstm", {"layer_norm": True, "zoneout": 0.2, "recurrent_dropout": 0.3}),
    ("gru", {"layer_norm": True, "weight_drop": 0.3, "input_dropout": 0.2}),
    ("rnn_tanh", {"num_layers": 2, "dropout": 0.5}),
)


def policies_of(cell: str, kind: str) -> dict[str, int]:
    """Return the smallest size that the planner runs by each policy."""
    sizes: dict[str, int] = {}
    for H in SIZES:
        options = (1, False, 0, True, "concat", False, False, math.inf)
        engine = functional.CudaEngine(cell, INPUTS, H, *options, kind)
        (plan,) = engine.plans(0, T, B, functional.Noise(), True)
        sizes.setdefault(plan.partition(":")[0], H)
    return sizes


def bfloat16() -> Any:
    """Return the type that the package ml_dtypes gives NumPy, or None without it."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return ml_dtypes.bfloat16


def make(cell: str, H: int, kind: str, device: str, **options: Any) -> Any:
    """Make a layer; its twin on the other device draws the same parameters and masks."""
    name, own = CELLS[cell]
    if device == "cuda" and kind == "tf32":
        options["allow_tf32"] = True
    dtype: Any = np.float64 if kind == "float64" else np.float32
    if device == "cuda" and kind in ("float16", "bfloat16"):
        dtype = np.float16 if kind == "float16" else bfloat16()
    return getattr(fastrnn, name)(
        INPUTS, H, **own, **options, seed=1, dtype=dtype, device=device
    ).train()


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Draw numbers of so few bits that every type has them."""
    return (np.round(8 * rng.standard_normal(shape)) / 8).astype(dtype)


def results(layer: Any, rng: np.random.Generator, ragged: bool) -> list[np.ndarray]:
    """Output, final state and all gradients of a training step on what `rng` draws."""
    x = drawn(rng, (T, B, INPUTS), layer.dtype)
    given: dict[str, Any] = {}
    if ragged:
        given["lengths"] = rng.integers(0, T + 1, B)
        given["resets"] = rng.random((T, B)) < 0.3
    output, state, tape = layer.forward(x, **given)
    gradients = layer.backward(tape, drawn(rng, output.shape, layer.dtype))
    states = state if isinstance(state, tuple) else (state,)
    return [output, *states, gradients.input, *gradients.parameters.values()]


def compare(policy: str, cell: str, H: int, kind: str, ragged: bool, **options: Any) -> None:
    """Compare a training step with the CPU's."""
    layers = [make(cell, H, kind, device, **options) for device in ("cuda", "cpu")]
    layers[1].load_state_dict(
        {name: value.astype(layers[1].dtype) for name, value in layers[0].parameters.items()}
    )
    pairs = zip(
        *(results(layer, np.random.default_rng(2), ragged) for layer in layers), strict=True
    )
    errors = []
    for actual, expected in pairs:
        difference = np.abs(actual.astype(np.float64) - expected).max()
        errors.append(difference / max(1.0, np.abs(expected).max()))
    error = float(np.max(errors))  # NaN stays
    name = f"{cell} H={H} {kind} {'ragged' if ragged else 'full'} {options or ''}".rstrip()
    print(f"{error:9.1e} {policy:7} {name}", flush=True)
    if not error <= TOLERANCE[kind]:
        raise SystemExit(f"{name}: error {error:.1e}, more than {TOLERANCE[kind]:.0e}")


def cases() -> Iterator[tuple[str, str, int, str, dict[str, Any]]]:
    """Yield policy, cell, H, kind and options; the common cells first."""
    for kind in KINDS:
        if kind == "bfloat16" and bfloat16() is None:
            print("no bfloat16: ml_dtypes is not installed")
            continue
        for cell in ("lstm", "gru", "rnn_tanh"):
            for policy, H in policies_of(cell, kind).items():
                yield policy, cell, H, kind, {}
    for cell in CELLS:
        yield "any", cell, SIZES[0], "float32", {}
    for cell, options in OPTIONS:
        # A residual layer of equal sizes.
        yield "any", cell, INPUTS if options.get("residual") else SIZES[0], "float32", options


def main() -> int:
    """Run all of it, or as much as there is time for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no case after these")
    given = parser.parse_args()
    try:
        print(f"{functional.cuda_device_name(0)}, {functional.cuda_device_count()} device(s)")
    except RuntimeError as error:
        print(f"no GPU: {error}")
        return 3
    start, done, left = time.monotonic(), 0, 0
    for index, (policy, cell, H, kind, options) in enumerate(cases()):
        if time.monotonic() - start > given.seconds:
            left += 1
            continue
        compare(policy, cell, H, kind, index % 2 == 1, **options)
        done += 1
    print(f"{done} cases agree with the CPU" + (f", {left} not reached" if left else ""))
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
