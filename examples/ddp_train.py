"""Train one model in several processes with torch's DistributedDataParallel.

An LSTM learns which channel of a signal is more than noise, in sequences of different lengths.
Every process takes its share of the same batches, and DistributedDataParallel averages their
gradients. So the parameters are those of one process, up to rounding, which many steps amplify.

One process, then two of them on this machine::

    python examples/ddp_train.py --save one.pt
    torchrun --nproc-per-node=2 examples/ddp_train.py --save two.pt

Needs torch: ``pip install torch``.
"""

from __future__ import annotations

import argparse
import os
import sys

import fastrnn
import fastrnn.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

CHANNELS = 6
STEPS_IN_TIME = 30
HIDDEN = 64


class Classifier(nn.Module):
    """The last state of an LSTM, then a logit for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastrnn.torch.LSTM(CHANNELS, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, CHANNELS)

    def forward(self, signals: Tensor, lengths: Tensor) -> Tensor:
        _, (h, _) = self.lstm(signals, lengths=lengths)
        logits: Tensor = self.head(h[-1])
        return logits


def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return signals (rows, T, C), their lengths, and the channels that are not noise alone."""
    signals = torch.randn(rows, STEPS_IN_TIME, CHANNELS, generator=generator)
    lengths = torch.randint(STEPS_IN_TIME // 2, STEPS_IN_TIME + 1, (rows,), generator=generator)
    channels = torch.randint(CHANNELS, (rows,), generator=generator)
    signals[torch.arange(rows), :, channels] += 0.5
    return signals, lengths, channels


def train(arguments: argparse.Namespace, rank: int, processes: int) -> nn.Module:
    """Train on this process's share of every batch."""
    torch.manual_seed(0)
    dtype = torch.float64 if arguments.double else torch.float32
    model = Classifier().to(dtype)
    distributed = dist.is_initialized()
    parallel = DistributedDataParallel(model) if distributed else model
    optimizer = torch.optim.Adam(parallel.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)  # all processes draw the same batches
    for step in range(1, arguments.steps + 1):
        batch = draw(arguments.batch, generator)
        signals, lengths, channels = (part[rank::processes] for part in batch)
        loss = cross_entropy(parallel(signals.to(dtype), lengths), channels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, arguments.steps) or step % 20 == 0:
            mean = loss.detach() / processes
            if distributed:
                dist.reduce(mean, dst=0)
            if rank == 0:
                print(f"step {step:4}  loss {mean.item():.6f}", flush=True)
    return model


def main() -> int:
    """Read the command line, train, and save the parameters."""
    parser = argparse.ArgumentParser(description="Train in one process, or in several by torchrun.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64, help="rows of all processes together")
    parser.add_argument("--double", action="store_true", help="train in float64")
    parser.add_argument("--save", metavar="PATH", help="where the state_dict goes")
    parser.add_argument("--threads", type=int, help="of each process; by default they share cores")
    arguments = parser.parse_args()

    launched = "WORLD_SIZE" in os.environ  # by torchrun
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    # A mean of means is the mean of all only where the shares are of one size.
    if arguments.batch % processes:
        parser.error(f"--batch: expected a multiple of {processes}, got {arguments.batch}")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = arguments.threads or max(1, fastrnn.get_num_threads() // here)
    fastrnn.set_num_threads(threads)
    torch.set_num_threads(threads)

    if launched:
        dist.init_process_group("gloo")
    try:
        if rank == 0:
            print(f"processes {processes}, threads of each {threads}")
        model = train(arguments, rank, processes)
        if rank == 0 and arguments.save:
            torch.save(model.state_dict(), arguments.save)
    finally:
        if launched:
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
