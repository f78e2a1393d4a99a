"""Compress images of digits, with an autoencoder and with principal components.

A code of k numbers is rounded to 2^b levels each, between quantiles of the codes of the training
images, and so an image of 64 pixels takes k·b bits. For each budget of bits, both ways use the
k and b that serve the training images best. Components are not all worth as many bits: in a third
way each gets its own share, bit by bit where the error of the training images falls most. What is
learnt is not counted, the networks and the components: sender and receiver have it.

    python examples/image_compression.py

Prints errors on new images, with pixels in [0, 1], and draws them over the bits per pixel, and
images from codes of some budgets. The autoencoder is best up to 1.5 bits per pixel. With more the
components are: of all of them nothing is lost, and a network always makes errors. Needs
scikit-learn, and for the pictures matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

COUNTS = (2, 4, 6, 8, 12, 16, 24, 32, 48)  # of numbers k
BITS = range(2, 9)  # of a number
BUDGETS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # bits of an image


def rounded(codes: np.ndarray, known: np.ndarray, bits: int) -> np.ndarray:
    """Round codes (n, k) to 2^bits levels between quantiles of known ones, or with 0 to a mean."""
    if not bits:
        return np.broadcast_to(known.mean(axis=0), codes.shape)
    low, high = np.quantile(known, [0.005, 0.995], axis=0)
    steps = 2**bits - 1
    level = np.rint((codes - low) / (high - low) * steps)  # this is what would be sent
    return np.asarray(low + level.clip(0, steps) * (high - low) / steps)


def mse(made: np.ndarray, images: np.ndarray) -> float:
    """Return the mean squared error of a pixel, none of which is outside [0, 1]."""
    return float(np.mean((made.clip(0, 1) - images) ** 2))


def psnr(error: float) -> float:
    """Return the peak signal-to-noise ratio in decibels."""
    return float(-10 * np.log10(error))


class Coder:
    """A transformer, and its error for each number of bits."""

    def __init__(self, transformer: Any, X: np.ndarray, X_test: np.ndarray) -> None:
        self.transformer = transformer.fit(X)
        self.known = self.transformer.transform(X)
        self.errors = {
            bits: (mse(self(X, bits), X), mse(self(X_test, bits), X_test)) for bits in BITS
        }

    def __call__(self, images: np.ndarray, bits: int) -> np.ndarray:
        """Return what is left of images."""
        codes = rounded(self.transformer.transform(images), self.known, bits)
        return np.asarray(self.transformer.inverse_transform(codes))


def choose(coders: dict[int, Coder], budget: int) -> tuple[int, int]:
    """Return the k and b within a budget that are best for the training images."""
    fitting = [(k, bits) for k in coders for bits in BITS if k * bits <= budget]
    return min(fitting, key=lambda pair: coders[pair[0]].errors[pair[1]][0])


def share(X: np.ndarray, X_test: np.ndarray) -> list[float]:
    """Return the errors of principal components for each budget, each with its own bits."""
    linear = PCA(0.9999).fit(X)
    known, codes = linear.transform(X), linear.transform(X_test)
    most = BITS[-1]
    errors = np.array(
        [((rounded(known, known, bits) - known) ** 2).mean(axis=0) for bits in range(most + 1)]
    )
    # One bit is of little use, so the gain is that of one or of two, whichever is more per bit.
    errors = np.vstack([errors, errors[-1:], errors[-1:]])
    bits = np.zeros(known.shape[1], int)
    each = np.arange(len(bits))
    found = []
    for total in range(1, BUDGETS[-1] + 1):
        now = errors[bits, each]
        gain = np.maximum(now - errors[bits + 1, each], (now - errors[bits + 2, each]) / 2)
        bits[np.argmax(np.where(bits < most, gain, -1))] += 1
        if total in BUDGETS:
            kept = [rounded(codes[:, [j]], known[:, [j]], bits[j]) for j in each]
            found.append(mse(linear.inverse_transform(np.hstack(kept)), X_test))
    return found


def draw_rates(
    path: Path,
    coders: dict[str, dict[int, Coder]],
    chosen: dict[str, Any],
    shared: list[float],
) -> None:
    """Draw the errors over the bits per pixel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    ax = figure.subplots()
    for i, (name, own) in enumerate(coders.items()):
        pairs = [(k, bits) for k in own for bits in BITS]
        ax.plot(
            [k * bits / 64 for k, bits in pairs],
            [psnr(own[k].errors[bits][1]) for k, bits in pairs],
            ".",
            color=f"C{i}",
            alpha=0.3,
        )
        ax.plot(np.divide(BUDGETS, 64), chosen[name]["psnr"], "o-", color=f"C{i}", label=name)
    decibels = [psnr(error) for error in shared]
    ax.plot(np.divide(BUDGETS, 64), decibels, "k.--", label="components, bits shared out")
    ax.set(xscale="log", xlabel="bits per pixel", ylabel="peak signal-to-noise ratio [dB]")
    ax.set_xticks([0.125, 0.25, 0.5, 1, 2, 4], ["1/8", "1/4", "1/2", "1", "2", "4"])
    ax.minorticks_off()
    ax.set(xlim=(0.1, 5), ylim=(12, None))
    ax.legend()
    figure.savefig(path, dpi=120)


def draw_images(path: Path, images: np.ndarray, made: dict[str, np.ndarray]) -> None:
    """Draw images, and below what became of them."""
    from matplotlib.figure import Figure

    rows = {"original": images, **made}
    figure = Figure(figsize=(0.75 * len(images) + 2, 0.8 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(images))
    for axes, (name, row) in zip(grid, rows.items(), strict=True):
        for ax, image in zip(axes, row, strict=True):
            ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="networks are trained briefly")
    arguments = parser.parse_args(argv)
    epochs = 50 if arguments.quick else 100
    pixels, labels = load_digits(return_X_y=True)
    X, X_test = train_test_split(
        pixels / 16, test_size=0.25, stratify=labels, random_state=arguments.seed
    )

    def network(k: int) -> Any:
        return fastrnn.Autoencoder(k, epochs=epochs, random_state=arguments.seed)

    coders: dict[str, dict[int, Coder]] = {
        "autoencoder": {k: Coder(network(k), X, X_test) for k in COUNTS},
        "components": {k: Coder(PCA(k), X, X_test) for k in COUNTS},
    }
    chosen: dict[str, Any] = {}
    for name, own in coders.items():
        pairs = [choose(own, budget) for budget in BUDGETS]
        errors = [own[k].errors[bits][1] for k, bits in pairs]
        chosen[name] = {"pairs": pairs, "mse": errors, "psnr": [psnr(e) for e in errors]}

    shared = share(X, X_test)
    names = [*coders, "bits shared out"]
    print(f"{'bits per':>8}  " + "".join(f"{name:>27}" for name in names))
    print(f"{'pixel':>8}  " + f"{'k':>10}{'b':>3}{'mse':>8}{'dB':>6}" * 2, end="")
    print(f"{'mse':>21}{'dB':>6}")
    for i, budget in enumerate(BUDGETS):
        print(f"{budget / 64:8.3f}", end="  ")
        for found in chosen.values():
            (k, bits), error = found["pairs"][i], found["mse"][i]
            print(f"{k:10}{bits:3}{error:8.4f}{psnr(error):6.1f}", end="")
        print(f"{shared[i]:21.4f}{psnr(shared[i]):6.1f}")
    table = [*(found["mse"] for found in chosen.values()), shared]
    best = np.argmin(table, axis=0)
    for i, name in enumerate(names):
        rates = [f"{budget / 64:g}" for budget, j in zip(BUDGETS, best, strict=True) if i == j]
        if rates:
            print(f"best with {', '.join(rates)} bits per pixel: {name}")

    made = {}
    for budget in (16, 32, 128):
        for name, own in coders.items():
            k, bits = chosen[name]["pairs"][BUDGETS.index(budget)]
            made[f"{name}, {budget / 64:g}"] = own[k](X_test[:10], bits)
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    draw_rates(arguments.pictures / "image_compression_rates.png", coders, chosen, shared)
    draw_images(arguments.pictures / "image_compression.png", X_test[:10], made)
    print(f"pictures: {arguments.pictures}/image_compression.png, image_compression_rates.png")
    return {"budgets": BUDGETS, **dict(zip(names, table, strict=True))}


if __name__ == "__main__":
    main()
