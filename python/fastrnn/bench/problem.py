"""One shape with weights and input, shared by every engine, and how far two results are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import fastrnn
from fastrnn.bench.suites import Shape

Array = npt.NDArray[Any]

STATES = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}


@dataclass(frozen=True)
class Problem:
    """One shape with its weights and its input.

    Attributes
    ----------
    shape : Shape
        The cell and its sizes.
    weights : mapping of str to array
        Parameters under torch.nn's names.
    x : array
        (T, B, I), or (B, I) for a single step.
    state : tuple of array, or None
        Initial h, and c for an LSTM, each (layers, B, H). Sequences start from zeros: None.
    grad_output : array or None
        Gradient of the output (T, B, directions·H), for a training step.
    """

    shape: Shape
    weights: Mapping[str, Array]
    x: Array
    state: tuple[Array, ...] | None
    grad_output: Array | None = None

    @classmethod
    def create(cls, shape: Shape) -> Problem:
        """Take the weights of a new layer and a random input, the same in every run."""
        generator = np.random.default_rng(0)
        weights = new_layer(shape).state_dict()
        x = generator.standard_normal((shape.T, shape.B, shape.I)).astype(shape.array_dtype)
        if shape.train:
            width = shape.directions * shape.H
            grad_output = generator.standard_normal((shape.T, shape.B, width))
            grad_output = grad_output.astype(shape.array_dtype)
            return cls(shape, weights, x, None, grad_output)
        if not shape.step:
            return cls(shape, weights, x, None)
        # Not zeros: a wrong use of W_hh or of the state must show in the outputs.
        size = (shape.layers, shape.B, shape.H)
        state = tuple(
            generator.uniform(-1.0, 1.0, size).astype(shape.array_dtype) for _ in STATES[shape.cell]
        )
        return cls(shape, weights, x[0], state)


def new_layer(shape: Shape, **options: Any) -> Any:
    """Make a `fastrnn` layer of this shape, with the same weights in every run."""
    return getattr(fastrnn, shape.cell.upper())(
        shape.I,
        shape.H,
        shape.layers,
        bidirectional=shape.bidirectional,
        dtype=np.dtype(shape.array_dtype),
        seed=0,
        **options,
    )


def scaled_error(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return the largest difference relative to its array's largest value; inf if shapes differ."""
    if [a.shape for a in actual] != [b.shape for b in expected]:
        return float("inf")
    return float(np.max([_scaled(a, b) for a, b in zip(actual, expected, strict=True)]))


def _scaled(actual: Array, expected: Array) -> float:
    difference, scale = float(np.abs(actual - expected).max()), float(np.abs(expected).max())
    if difference == 0.0:  # all may be zeros, as is the gradient of W_hh for T = 1
        return 0.0
    return difference / scale if scale else math.inf
