"""Train with PyTorch, deploy without it.

A small GRU learns to read handwritten digits row by row, 8 steps of 8 pixels. Its weights then move
to `fastrnn.GRU`, which has to predict the same digits, and both are timed.

Needs torch and scikit-learn: ``pip install torch scikit-learn``.
"""

import sys
import time
from collections.abc import Callable

import fastrnn
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Model = Callable[[np.ndarray], np.ndarray]


class Classifier(torch.nn.Module):
    """The last state of a GRU over the rows, then ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = torch.nn.GRU(input_size=8, hidden_size=64, batch_first=True)
        self.head = torch.nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        _, h = self.gru(images)
        return self.head(h[-1])


def train(images: np.ndarray, labels: np.ndarray) -> Classifier:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # steps as small as these gain nothing from a second one
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(20):
        for rows in torch.randperm(len(inputs)).split(64):
            loss = torch.nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def medians(first: Model, second: Model, images: np.ndarray) -> tuple[float, float]:
    """Median microseconds of two models, timed in turns so that both see the same machine."""
    times: list[list[float]] = [[], []]
    for _ in range(100):
        for model, record in zip((first, second), times, strict=True):
            start = time.perf_counter()
            model(images)
            record.append(1e6 * (time.perf_counter() - start))
    return float(np.median(times[0])), float(np.median(times[1]))


def main() -> int:
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    model = train(train_images, train_labels)

    gru = fastrnn.GRU(input_size=8, hidden_size=64, batch_first=True)
    gru.load_state_dict(model.gru.state_dict())
    gru.eval()
    weight, bias = (parameter.detach().numpy() for parameter in model.head.parameters())

    def with_fastrnn(images: np.ndarray) -> np.ndarray:
        _, h = gru(images)
        return h[-1] @ weight.T + bias

    def with_torch(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    expected, scores = with_torch(test_images), with_fastrnn(test_images)
    predictions = scores.argmax(axis=1)
    equal = int(np.sum(predictions == expected.argmax(axis=1)))
    print(f"test accuracy      {np.mean(predictions == test_labels):.3f}")
    print(f"equal predictions  {equal} of {len(test_images)}")
    print(f"scores differ by   {np.abs(scores - expected).max():.1e} at most")

    torch.set_num_threads(fastrnn.get_num_threads())
    print(f"\nlatency, {fastrnn.get_num_threads()} threads     torch    fastrnn")
    for name, batch in (
        ("one digit", test_images[:1]),
        (f"{len(test_images)} digits", test_images),
    ):
        theirs, ours = medians(with_torch, with_fastrnn, batch)
        print(f"{name:15} {theirs:10.0f} us {ours:7.0f} us   (ratio {theirs / ours:.1f})")
    return 0 if equal == len(test_images) else 1


if __name__ == "__main__":
    sys.exit(main())
