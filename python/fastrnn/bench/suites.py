"""What is measured: one `Shape` per row of the table, and the named lists of them.

Letters: T steps, B batch, I inputs, H hidden units, G gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_SLOTS = {"lstm": 4, "gru": 4, "rnn": 1}  # kept of each unit: gates, and W_hn·h + b_hn for the GRU
# A training step has three products for each one of the forward pass: that product, the gradient of
# its input or state, and the gradient of its weights.
_TRAINING = 3
DTYPES = {"float32": 4, "float64": 8, "tf32": 4, "float16": 2, "bfloat16": 2}
"""Names of the element types, and their bytes; tf32 is float32 whose products may be shorter."""

CPU_DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Shape:
    """One problem: a cell and its sizes.

    ``cell`` is a key of `GATES`; ``rnn`` uses tanh, ``gru`` resets after the matrix product, as in
    torch.nn. With ``train`` it is a training step: forward and backward, with the gradients of the
    input and of all parameters.
    """

    cell: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"
    train: bool = False

    @property
    def step(self) -> bool:
        """Whether ``layer.step`` is measured.

        Both directions need the whole sequence; training one step is training a sequence of one.
        """
        return self.T == 1 and not self.bidirectional and not self.train

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def array_dtype(self) -> str:
        """Type of the arrays that a problem is drawn in: engines round them to ``dtype``."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def label(self) -> str:
        """The sizes in words, leaving out what is the usual case."""
        parts = [f"B={self.B} T={self.T} H={self.H}"]
        if self.I != self.H:
            parts.append(f"I={self.I}")
        if self.layers > 1:
            parts.append(f"layers={self.layers}")
        if self.bidirectional:
            parts.append("bidirectional")
        if self.dtype != "float32":
            parts.append(self.dtype)
        return " ".join(parts)

    @property
    def regime(self) -> str:
        """What bounds the time: the call itself, reading the weights, or the arithmetic."""
        if self.train:
            return "B>1 training" if self.B > 1 else "B=1 training"
        if self.B > 1:
            return "B>1"
        return "B=1 step" if self.step else "B=1 sequence"

    @property
    def input_weights(self) -> int:
        """Number of elements in W_ih, all layers and directions."""
        inputs = self.I + (self.layers - 1) * self.directions * self.H
        return self.directions * GATES[self.cell] * self.H * inputs

    @property
    def recurrent_weights(self) -> int:
        """Number of elements in W_hh, all layers and directions."""
        return self.layers * self.directions * GATES[self.cell] * self.H * self.H

    @property
    def forward_flops(self) -> int:
        """Operations of the forward pass's matrix products, without gates and activations."""
        return 2 * self.T * self.B * (self.input_weights + self.recurrent_weights)

    @property
    def flops(self) -> int:
        """Operations of the matrix products; gates and activations are left out, as is usual."""
        return self.forward_flops * (_TRAINING if self.train else 1)

    @property
    def bytes_read(self) -> int:
        """Weights that a call must read at least: W_ih once, W_hh in every step.

        A training step reads both once more, backward. The gradients that it writes are left out.
        """
        forward = self.input_weights + self.T * self.recurrent_weights
        return DTYPES[self.dtype] * forward * (2 if self.train else 1)

    @property
    def bytes_reused(self) -> int:
        """Weights that are read again and again: their size decides which cache they come from.

        Within a sequence, the W_hh of one layer and direction; between single steps, all weights.
        """
        if self.step:
            return self.bytes_read
        return DTYPES[self.dtype] * GATES[self.cell] * self.H * self.H

    @property
    def bytes_held(self) -> int:
        """Rough memory for one engine: weights with a packed copy, and gates for the sequence.

        For a training step: weights, input and the output's gradient, and `bytes_needed`.
        """
        weights = self.input_weights + self.recurrent_weights
        rows, width = self.T * self.B, self.directions * self.H
        if self.train:
            given = weights + rows * (self.I + width)
            return DTYPES[self.dtype] * given + self.bytes_needed
        sequence = rows * (self.I + (GATES[self.cell] + 1) * width)
        return DTYPES[self.dtype] * (2 * weights + sequence)

    @property
    def bytes_needed(self) -> int:
        """What a training step must hold, besides layer, input and the output's gradient.

        These are the gates (of a GRU also the recurrent part of n), cell states and outputs of
        every step, layer and direction; and the gradients of the parameters, of the input, and of
        the outputs of all layers but the last.
        """
        units = self.T * self.B * self.layers * self.directions * self.H
        cell_states = units if self.cell == "lstm" else 0
        kept = _SLOTS[self.cell] * units + cell_states + units
        biases = 2 * self.layers * self.directions * GATES[self.cell] * self.H
        parameters = self.input_weights + self.recurrent_weights + biases
        inner = units // self.layers * (self.layers - 1)
        return DTYPES[self.dtype] * (kept + parameters + self.T * self.B * self.I + inner)


def _square(cell: str, B: int, T: int, H: int) -> Shape:
    return Shape(cell, T=T, B=B, I=H, H=H)


def _quick() -> Iterator[Shape]:
    yield _square("lstm", B=1, T=1, H=64)
    yield _square("lstm", B=1, T=100, H=256)
    yield _square("lstm", B=32, T=50, H=256)
    yield _square("gru", B=1, T=1, H=64)
    yield _square("gru", B=1, T=100, H=256)
    yield _square("gru", B=32, T=50, H=256)
    yield _square("rnn", B=1, T=100, H=256)
    yield _square("rnn", B=32, T=50, H=256)


def _sequences(cell: str) -> Iterator[Shape]:
    sizes = (64, 128, 256, 512, 1024)
    for H in sizes:
        yield _square(cell, B=1, T=100, H=H)
    for B in (8, 32, 64, 128):
        for H in sizes:
            # The largest product is cut short: each of its calls takes most of a second.
            T = 20 if B * H == 128 * 1024 else 100 if H <= 256 else 50
            yield _square(cell, B=B, T=T, H=H)


def _rnn() -> Iterator[Shape]:
    for cell in GATES:
        for H in (32, 64, 128):
            yield _square(cell, B=1, T=1, H=H)
        yield from _sequences(cell)


def _train() -> Iterator[Shape]:
    for cell in GATES:
        shapes = [*_sequences(cell)]
        if cell == "lstm":
            shapes.append(_square("lstm", B=32, T=50, H=768))
        for shape in shapes:
            yield replace(shape, train=True)


def _regularised() -> Iterator[Shape]:
    for cell in GATES:
        yield replace(_square(cell, B=32, T=50, H=256), train=True)


def _latency() -> Iterator[Shape]:
    for cell in GATES:
        for H in (16, 32, 64, 128, 256, 512):
            yield _square(cell, B=1, T=1, H=H)


def _deepbench() -> Iterator[Shape]:
    # github.com/baidu-research/DeepBench, code/kernels/rnn_problems.h: the training set, and the
    # GRU that is commented out there but in the published results. "vanilla" is timed with tanh.
    # DeepBench leaves out the input projection; here I = H.
    for H in (1760, 2048, 2560):
        for B in (16, 32, 64, 128):
            yield _square("rnn", B=B, T=50, H=H)
    for B in (16, 32, 64):
        yield _square("lstm", B=B, T=150, H=256)
    for H in (512, 1024, 2048, 4096):
        for B in (16, 32, 64, 128):
            yield _square("lstm", B=B, T=25, H=H)
    for B in (8, 16, 32):
        yield _square("lstm", B=B, T=50, H=1536)
    yield _square("gru", B=32, T=1, H=512)
    for B in (32, 64):
        yield _square("gru", B=B, T=1500, H=1024)
    for H in (1536, 2048, 2560, 2816):
        for T in (187, 375, 750, 1500):
            yield _square("gru", B=32, T=T, H=H)


SUITES = {
    "quick": tuple(_quick()),
    "rnn": tuple(_rnn()),
    "train": tuple(_train()),
    "regularised": tuple(_regularised()),
    "deepbench": tuple(_deepbench()),
    "latency": tuple(_latency()),
}

LENGTHS = {*((cell, 32, 100, 256) for cell in GATES), ("lstm", 128, 50, 512)}
"""Cell, B, T and H of the shapes for which "train" also measures what shorter rows save."""

PLAIN = "plain"
"""Name of the layer without options that "regularised" compares the others with."""

REGULARISING = {
    "layer_norm": True,
    "recurrent_dropout": 0.3,
    "input_dropout": 0.3,
    "zoneout": 0.1,
    "weight_drop": 0.5,
}
"""Options that "regularised" measures for every cell, alone and together."""

_LSTM_ONLY = {"coupled": True, "clip": 3.0}


def regularised_options(cell: str) -> dict[str, dict[str, Any]]:
    """Return the layers' options that "regularised" compares, by name; `PLAIN` has none."""
    alone = {**REGULARISING, **(_LSTM_ONLY if cell == "lstm" else {})}
    return {
        PLAIN: {},
        **{f"{option}={value}": {option: value} for option, value in alone.items()},
        "all": {**REGULARISING},
    }
