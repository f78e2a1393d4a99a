"""Put the kernels into a model that torch has trained, and train on.

A bidirectional LSTM of two layers reads handwritten digits row by row. `fastrnn.torch.replace` then
swaps the LSTM in place: predictions have to stay, the optimizer has to stay valid, and both are
timed in turns.

    python examples/replace_in_model.py

Needs torch and scikit-learn: ``pip install torch scikit-learn``.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from statistics import median

import fastrnn
import fastrnn.torch
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 64
PREDICTIONS = 5  # timed for every epoch that is

Data = tuple[Tensor, Tensor]


class Classifier(nn.Module):
    """The last states of both directions over the rows, then ten logits."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, hidden_size, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden_size, 10)

    def forward(self, images: Tensor) -> Tensor:
        _, (h, _) = self.lstm(images)
        logits: Tensor = self.head(torch.cat((h[-2], h[-1]), dim=1))
        return logits


def digits() -> tuple[Data, Data]:
    """Images and labels to train with, and to test with."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images).float().reshape(-1, 8, 8) / 16
    rows, test_rows = train_test_split(
        torch.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0
    )
    targets = torch.from_numpy(labels)
    return (inputs[rows], targets[rows]), (inputs[test_rows], targets[test_rows])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, epoch: int) -> float:
    """Train an epoch and return its mean loss; its number decides the order of the images."""
    model.train()
    images, labels = data
    total = 0.0
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
    for rows in order.split(BATCH):
        loss = cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(labels)


def predict(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def times(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, images: Tensor, rounds: int
) -> dict[str, list[float]]:
    """Median milliseconds of an epoch and a prediction, each of torch's module and of ours."""
    swaps = (fastrnn.torch.restore, fastrnn.torch.replace)
    epochs: list[list[float]] = [[], []]
    predictions: list[list[float]] = [[], []]
    for number in range(rounds):  # in turns, so that both see the same machine
        for swap, of_epochs, of_predictions in zip(swaps, epochs, predictions, strict=True):
            swap(model)
            start = time.perf_counter()
            train(model, optimizer, data, number)
            of_epochs.append(1e3 * (time.perf_counter() - start))
            for _ in range(PREDICTIONS):
                start = time.perf_counter()
                predict(model, images)
                of_predictions.append(1e3 * (time.perf_counter() - start))
    return {
        "training epoch": [median(of) for of in epochs],
        f"{len(images)} predictions": [median(of) for of in predictions],
    }


def main() -> int:
    """Train, swap, compare, train on, and time."""
    parser = argparse.ArgumentParser(description="Swap the LSTM of a trained model.")
    parser.add_argument("--epochs", type=int, default=10, help="with torch, before the swap")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7, help="of timing")
    parser.add_argument("--threads", type=int, default=fastrnn.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    fastrnn.set_num_threads(arguments.threads)

    data, (images, labels) = digits()
    torch.manual_seed(0)
    model = Classifier(arguments.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(arguments.epochs):
        train(model, optimizer, data, epoch)
    expected = predict(model, images)
    twin, twins_optimizer = copy.deepcopy((model, optimizer))  # together, so that they belong

    print(f"replaced              {', '.join(fastrnn.torch.replace(model).replaced)}")
    logits = predict(model, images)
    differing = int((logits.argmax(1) != expected.argmax(1)).sum())
    print(f"differing predictions {differing} of {len(labels)}")
    print(f"logits differ by      {(logits - expected).abs().max().item():.1e} at most\n")

    print(f"{'':22}{'torch':>10}{'fastrnn':>10}")
    print(f"{'test accuracy':22}{accuracy(expected, labels):10.3f}{accuracy(logits, labels):10.3f}")
    losses = [
        train(*trained, data, arguments.epochs)
        for trained in ((twin, twins_optimizer), (model, optimizer))
    ]
    print(f"{'loss, one epoch later':22}{losses[0]:10.5f}{losses[1]:10.5f}")
    after = [accuracy(predict(trained, images), labels) for trained in (twin, model)]
    print(f"{'accuracy after it':22}{after[0]:10.3f}{after[1]:10.3f}")
    for name, (theirs, ours) in times(model, optimizer, data, images, arguments.rounds).items():
        print(f"{name:22}{theirs:7.1f} ms{ours:7.1f} ms   ratio {theirs / ours:.2f}")
    print(f"\n{arguments.threads} threads, hidden size {arguments.hidden}, batches of {BATCH}")
    return 0 if differing == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
