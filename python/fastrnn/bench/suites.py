"""What is measured: one `Shape` per row of the table, and the named lists of them.

Letters: T steps, B batch, I inputs, H hidden units, G gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
DTYPES = {"float32": 4, "float64": 8}
"""Names of the element types, and their bytes."""


@dataclass(frozen=True)
class Shape:
    """One problem: a cell and its sizes.

    ``cell`` is a key of `GATES`; ``rnn`` uses tanh, ``gru`` resets after the matrix product, as in
    torch.nn.
    """

    cell: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"

    @property
    def step(self) -> bool:
        """Whether ``layer.step`` is measured; both directions need the whole sequence."""
        return self.T == 1 and not self.bidirectional

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

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
    def flops(self) -> int:
        """Operations of the matrix products; gates and activations are left out, as is usual."""
        return 2 * self.T * self.B * (self.input_weights + self.recurrent_weights)

    @property
    def bytes_read(self) -> int:
        """Weights that a call must read at least: W_ih once, W_hh in every step."""
        return DTYPES[self.dtype] * (self.input_weights + self.T * self.recurrent_weights)

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
        """Rough memory for one engine: weights with a packed copy, and gates for the sequence."""
        weights = self.input_weights + self.recurrent_weights
        sequence = self.T * self.B * (self.I + (GATES[self.cell] + 1) * self.directions * self.H)
        return DTYPES[self.dtype] * (2 * weights + sequence)


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


def _rnn() -> Iterator[Shape]:
    sizes = (64, 128, 256, 512, 1024)
    for cell in GATES:
        for H in (32, 64, 128):
            yield _square(cell, B=1, T=1, H=H)
        for H in sizes:
            yield _square(cell, B=1, T=100, H=H)
        for B in (8, 32, 64, 128):
            for H in sizes:
                # The largest product is cut short: each of its calls takes most of a second.
                T = 20 if B * H == 128 * 1024 else 100 if H <= 256 else 50
                yield _square(cell, B=B, T=T, H=H)


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
    "deepbench": tuple(_deepbench()),
    "latency": tuple(_latency()),
}
