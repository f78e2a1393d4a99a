"""Time the training of whole models against the same in torch: all of an update, end to end.

Both have the same sizes, batches, Adam, clipping of the norm and threads; torch is used as its
tutorials do, with the fused Adam, and PackedSequence for sequences of different lengths. A round is
some updates of each, interleaved. Run it from a checkout: ``python bench/train_models.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import fastrnn
import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

VOCABULARY, CLASSES, STEPS, UPDATES = 100, 10, 64, 10
Function = Callable[[], object]


class Network(nn.Module):  # type: ignore[misc]
    """Table of ids, recurrent layer, affine map: of every step, or of the last."""

    def __init__(self, cell: str, hidden: int, classes: int, bidirectional: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 64)
        self.layer = getattr(nn, cell)(64, hidden, bidirectional=bidirectional)
        self.dense = nn.Linear((1 + bidirectional) * hidden, classes)


def build(
    cell: str, hidden: int, classes: int, bidirectional: bool, last: bool
) -> tuple[fastrnn.Sequential, Network]:
    """Return the same model twice."""
    layers = [
        fastrnn.Embedding(VOCABULARY, 64, seed=0),
        getattr(fastrnn, cell)(64, hidden, bidirectional=bidirectional, seed=1),
        *([fastrnn.Last()] if last else []),
        fastrnn.Dense((1 + bidirectional) * hidden, classes, seed=2),
    ]
    model = fastrnn.Sequential(layers)
    optimizer = fastrnn.optimizers.Adam(1e-3, global_clipnorm=1.0)
    return model.compile(optimizer, "cross_entropy"), Network(cell, hidden, classes, bidirectional)


def update(network: Network, optimizer: torch.optim.Optimizer, logits: object, y: object) -> float:
    """Change torch's network by a batch."""
    loss = nn.functional.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


def language_model(cell: str, batch: int, hidden: int) -> tuple[Function, Function]:
    """Predict the next id at every step of streams, in windows that carry the state."""
    model, network = build(cell, hidden, VOCABULARY, False, False)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    ids = np.random.default_rng(0).integers(VOCABULARY, size=(batch, UPDATES * STEPS + 1))
    x, y = ids[:, :-1], ids[:, 1:]

    def theirs() -> None:
        state = None
        windows = (torch.from_numpy(a.T.copy()).split(STEPS) for a in (x, y))
        for inputs, targets in zip(*windows, strict=True):
            output, state = network.layer(network.table(inputs), state)
            state = tuple(s.detach() for s in state) if cell == "LSTM" else state.detach()
            update(network, optimizer, network.dense(output).flatten(0, 1), targets.flatten())

    return theirs, lambda: model.fit(x, y, tbptt=STEPS, batch_size=batch, shuffle=False, verbose=0)


def classifier(cell: str, batch: int, hidden: int) -> tuple[Function, Function]:
    """Find the class of sequences of one length."""
    model, network = build(cell, hidden, CLASSES, False, True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    rng = np.random.default_rng(0)
    x = rng.integers(VOCABULARY, size=(UPDATES * batch, STEPS))
    y = rng.integers(CLASSES, size=len(x))

    def theirs() -> None:
        for start in range(0, len(x), batch):
            ids = torch.from_numpy(x[start : start + batch].T.copy())
            output, _ = network.layer(network.table(ids))
            targets = torch.from_numpy(y[start : start + batch])
            update(network, optimizer, network.dense(output[-1]), targets)

    return theirs, lambda: model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)


def tagger(cell: str, batch: int, hidden: int) -> tuple[Function, Function]:
    """Find the class of every step of sequences of 1 to T steps, in both directions."""
    model, network = build(cell, hidden, CLASSES, True, False)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, STEPS + 1, size=UPDATES * batch)
    x = [rng.integers(VOCABULARY, size=n) for n in lengths]
    y = [rng.integers(CLASSES, size=n) for n in lengths]

    def theirs() -> None:
        for start in range(0, len(x), batch):
            rows = slice(start, start + batch)
            ids, targets = (
                nn.utils.rnn.pad_sequence(
                    [torch.from_numpy(a) for a in part[rows]], padding_value=v
                )
                for part, v in ((x, 0), (y, -100))
            )
            sizes = torch.from_numpy(lengths[rows])
            packed = pack_padded_sequence(network.table(ids), sizes, enforce_sorted=False)
            output, _ = pad_packed_sequence(network.layer(packed)[0])
            update(network, optimizer, network.dense(output).flatten(0, 1), targets.flatten())

    return theirs, lambda: model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)


def compare(theirs: Function, ours: Function, rounds: int) -> str:
    """Median milliseconds of an update, and ratio, of interleaved rounds."""
    times = np.empty((rounds, 2))
    for function in (theirs, ours):
        function()
    for row in times:
        for i, function in enumerate((theirs, ours)):
            start = time.perf_counter()
            function()
            row[i] = 1e3 * (time.perf_counter() - start) / UPDATES
    low, middle, high = np.percentile(times[:, 0] / times[:, 1], (25, 50, 75))
    torch_ms, ours_ms = np.median(times, axis=0)
    return f"{torch_ms:8.2f} | {ours_ms:8.2f} | {middle:5.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(fastrnn.get_num_threads())
    print(f"torch {torch.__version__}, {fastrnn.get_num_threads()} thread(s), ms per update\n")
    print("| model                             |    torch |  fastrnn | ratio |")
    print("| --------------------------------- | -------: | -------: | ----: |")
    for task in (language_model, classifier, tagger):
        for cell in ("LSTM", "GRU"):
            for batch, hidden in ((16, 64), (32, 128), (32, 256), (64, 512)):
                name = f"{task.__name__.replace('_', ' ')} {cell} B={batch} H={hidden}"
                print(f"| {name:33} | {compare(*task(cell, batch, hidden), rounds)} |", flush=True)


if __name__ == "__main__":
    main()
