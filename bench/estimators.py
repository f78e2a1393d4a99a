"""Time the estimators against what people use instead, and print their errors, too.

Radial-basis-function networks against scikit-learn's kernel methods; autoencoders against the same
networks trained in torch, with the same sizes, batches, updates and Adam. Times are interleaved,
ratios are medians over the rounds. Run it from a checkout: ``python bench/estimators.py``.
"""

from __future__ import annotations

import argparse
import itertools
import time
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

import fastrnn
import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    Function = Callable[[], object]


def seconds(function: Function) -> float:
    """Time a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(ours: Function, other: Function, rounds: int) -> tuple[float, float, float]:
    """Return median seconds of both, and the median of the ratio of the other to ours."""
    ours()
    other()
    times = np.array([[seconds(ours), seconds(other)] for _ in range(rounds)])
    return (*np.median(times, axis=0), float(np.median(times[:, 1] / times[:, 0])))


def row(task: str, other: str, times: tuple[float, float, float], note: str) -> None:
    """Print a row of the table."""
    ours, theirs, ratio = times
    print(f"| {task} | {1e3 * ours:.1f} | {other} | {1e3 * theirs:.1f} | {ratio:.2f} | {note} |")


def predict_in_blocks(rounds: int) -> None:
    """Predict many rows, and measure the memory that takes."""
    rng = np.random.default_rng(0)
    X, width = rng.normal(size=(100_000, 20)), 4.0
    for M in (100, 500, 2000):
        centers = X[:M]
        network = fastrnn.RBFNRegressor(centers=centers, width=width).fit(X[:5000], X[:5000, 0])

        def kernel(network: Any = network) -> object:
            return rbf_kernel(X, network.centers_, 0.5 / width**2) @ network.weights_

        times = compare(lambda network=network: network.predict(X), kernel, rounds)
        peaks = []
        for function in (lambda network=network: network.predict(X), kernel):
            tracemalloc.start()
            function()
            peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
            tracemalloc.stop()
        note = f"extra memory {peaks[0]:.0f} MB, {peaks[1]:.0f} MB"
        row(f"RBFN, predict 100 000 x 20, M = {M}", "rbf_kernel @ weights", times, note)


def fit_networks(rounds: int) -> None:
    """Fit kernel methods on the two data sets that scikit-learn brings."""
    X, y = load_digits(return_X_y=True)
    parts = train_test_split(X / 16, y, random_state=0, stratify=y)
    machine = SVC(gamma=0.05, C=10)
    for M in (100, 400):
        network = fastrnn.RBFNClassifier(M, random_state=0)
        fit_pair(f"RBFN, fit digits, M = {M}", network, "SVC", machine, parts, rounds)
    X, y = load_diabetes(return_X_y=True)
    parts = train_test_split(X, y - y.mean(), random_state=0)
    regressor = fastrnn.RBFNRegressor(50, alpha="gcv", random_state=0)
    for name, other in (
        ("KernelRidge", KernelRidge(kernel="rbf", alpha=1, gamma=0.02)),
        ("SVR", SVR(C=100, gamma=0.02)),
    ):
        pair = [make_pipeline(StandardScaler(), model) for model in (regressor, other)]
        fit_pair("RBFN, fit diabetes, M = 50, gcv", pair[0], name, pair[1], parts, rounds)


def fit_pair(task: str, ours: Any, name: str, other: Any, parts: list[Any], rounds: int) -> None:
    """Fit two estimators, and compare their scores."""
    X, test, y, y_test = parts
    times = compare(lambda: ours.fit(X, y), lambda: other.fit(X, y), rounds)
    note = f"test score {ours.score(test, y_test):.3f}, {other.score(test, y_test):.3f}"
    row(task, name, times, note)


class Recurrent(nn.Module):  # type: ignore[misc]
    """Torch's counterpart of `fastrnn.SequenceAutoencoder`."""

    def __init__(self, features: int, hidden: int, k: int) -> None:
        super().__init__()
        self.encoder = nn.GRU(features, hidden, bidirectional=True, batch_first=True)
        self.code = nn.Linear(2 * hidden, k)
        self.decoder = nn.GRU(k, hidden, batch_first=True)
        self.output = nn.Linear(hidden, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(x)
        code = self.code(torch.cat([state[0], state[1]], 1))
        repeated = code[:, None].expand(-1, x.shape[1], -1)
        return self.output(self.decoder(repeated)[0])


def dense(sizes: list[int]) -> nn.Sequential:
    """Return torch's counterpart of `fastrnn.Autoencoder`."""
    layers: list[nn.Module] = []
    half = len(sizes) // 2
    for i, (inputs, units) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(inputs, units))
        if i not in (half - 1, len(sizes) - 2):
            layers.append(nn.GELU(approximate="tanh"))
    return nn.Sequential(*layers)


def convolutional() -> nn.Sequential:
    """Return torch's counterpart of `fastrnn.ConvolutionalAutoencoder` for digits."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 8),
        nn.Linear(8, 128), nn.ReLU(), nn.Unflatten(1, (32, 2, 2)),
        nn.ConvTranspose2d(32, 16, 3, 2, 1, 1), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 3, 2, 1, 1), nn.Flatten(),
    )  # fmt: skip


def train(model: nn.Module, X: Any, epochs: int) -> None:
    """Train a model of torch as the autoencoders are."""
    rows = torch.tensor((X - X.mean(axis=0)) / (X - X.mean(axis=0)).std(), dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, fused=True)
    for _ in range(epochs):
        for batch in torch.split(rows[torch.randperm(len(rows))], 32):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(batch), batch).backward()
            optimizer.step()


def train_autoencoders(rounds: int) -> None:
    """Train autoencoders for some epochs."""
    X = load_digits().data / 16
    wide = np.random.default_rng(0).normal(size=(2000, 784)).astype(np.float32)
    t = np.arange(64)
    waves = np.sin(t * 0.3 + np.random.default_rng(0).uniform(0, 6, (1000, 1)))[:, :, np.newaxis]
    images = partial(fastrnn.ConvolutionalAutoencoder, image_shape=(8, 8))
    deep = partial(fastrnn.Autoencoder, 32, (256, 128))
    sizes = [784, 256, 128, 32, 128, 256, 784]
    cases: list[tuple[str, Any, Callable[[], nn.Module], Any, int]] = [
        (
            "Autoencoder(8), 1797 x 64",
            fastrnn.Autoencoder,
            partial(dense, [64, 128, 8, 128, 64]),
            X,
            5,
        ),
        ("Autoencoder(32, (256, 128)), 2000 x 784", deep, partial(dense, sizes), wide, 3),
        ("ConvolutionalAutoencoder(8), 1797 x 8 x 8", images, convolutional, X, 3),
        (
            "SequenceAutoencoder(8), 1000 x 64 steps",
            fastrnn.SequenceAutoencoder,
            partial(Recurrent, 1, 64, 8),
            waves,
            2,
        ),
    ]
    for task, make, make_other, data, epochs in cases:
        ours = make(epochs=epochs, random_state=0)
        other = make_other()
        times = compare(partial(ours.fit, data), partial(train, other, data, epochs), rounds)
        row(f"{task}, {epochs} epochs", "torch", times, "same network, batches of 32")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fastrnn.set_num_threads(options.threads)
    print("| task | ms | other | ms | ratio | ours, other |")
    print("| --- | --- | --- | --- | --- | --- |")
    predict_in_blocks(options.rounds)
    fit_networks(options.rounds)
    train_autoencoders(options.rounds)


if __name__ == "__main__":
    main()
