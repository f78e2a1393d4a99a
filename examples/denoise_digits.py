"""Take noise off digits, and see what penalties do to the code of an autoencoder.

Pixels in [0, 1] of unseen digits get normal noise, or three in ten of them become black or white.
An autoencoder that was trained to give its input gives the noise, too, as far as its code has
room for it. One that saw such noise in training gives a digit. Beside them stands the denoising by
principal components, as many as serve best in hindsight.

A sparse autoencoder has 64 units of which few answer to a digit, so they look for strokes. A
contractive one has a code that changes little where its input does.

    python examples/denoise_digits.py

Prints errors against the clean pixels, mean activations, and sizes of Jacobians, and draws digits
and what the units look for. Needs scikit-learn, and for the pictures matplotlib.
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

DEVIATION, REPLACED = 0.3, 0.3  # of the two kinds of noise
K = 64  # as many as pixels
# Without it, weights of pixels that are nearly always white grow beyond all others.
L2 = 2e-4


def with_noise(kind: str, X: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return images with noise."""
    if kind == "gaussian":
        return X + generator.normal(0, DEVIATION, X.shape)
    extremes = generator.integers(0, 2, X.shape)
    return np.where(generator.random(X.shape) < REPLACED, extremes, X)


def mse(made: np.ndarray, clean: np.ndarray) -> float:
    return float(np.mean((made - clean) ** 2))


def by_components(X: np.ndarray, noisy: np.ndarray, clean: np.ndarray) -> tuple[float, int]:
    """Return the least error of principal components, and their number."""
    errors = []
    for k in range(1, 65):
        linear = PCA(k).fit(X)
        errors.append(mse(linear.inverse_transform(linear.transform(noisy)), clean))
    return min(errors), int(np.argmin(errors)) + 1


def denoise(
    X: np.ndarray, clean: np.ndarray, epochs: int, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Return errors, and images, of each kind of noise."""
    plain = fastrnn.Autoencoder(K, epochs=epochs, random_state=seed).fit(X)
    # The noise is given in units of the data's deviation, or as a probability.
    amounts = {"gaussian": DEVIATION / plain.scale_, "salt_and_pepper": REPLACED}
    errors: dict[str, dict[str, float]] = {}
    images: dict[str, dict[str, np.ndarray]] = {}
    print(f"{'error of a pixel':18}{'noisy':>8}{'plain':>9}{'denoising':>11}{'components':>12}")
    for kind, amount in amounts.items():
        noisy = with_noise(kind, clean, np.random.default_rng(seed))
        trained = fastrnn.DenoisingAutoencoder(
            K, epochs=epochs, noise=kind, amount=amount, random_state=seed
        ).fit(X)
        made = {
            "noisy": noisy,
            "plain": plain.reconstruct(noisy),
            "denoised": trained.reconstruct(noisy),
        }
        errors[kind] = {name: mse(values, clean) for name, values in made.items()}
        images[kind] = {"clean": clean, **made}
        linear, k = by_components(X, noisy, clean)
        errors[kind]["components"] = linear
        print(f"{kind:18}{errors[kind]['noisy']:8.4f}{errors[kind]['plain']:9.4f}", end="")
        print(f"{errors[kind]['denoised']:11.4f}{linear:12.4f}   ({k} of them)")
    return errors, images


def make_sparse(X: np.ndarray, clean: np.ndarray, epochs: int, seed: int) -> tuple[Any, Any]:
    """Return mean activations by rho, and the networks."""
    networks = {
        rho: fastrnn.SparseAutoencoder(K, rho=rho, l2=L2, epochs=epochs, random_state=seed).fit(X)
        for rho in (0.05, 0.1, 0.2)
    }
    rates = {}
    print(f"\n{'rho':>6}{'mean activation':>18}{'of units':>16}{'error':>11}")
    for rho, network in networks.items():
        each = network.transform(X).mean(axis=0)
        rates[rho] = float(each.mean())
        print(f"{rho:6}{rates[rho]:18.4f}{each.min():9.3f}-{each.max():.3f}", end=" ")
        print(f"{mse(network.reconstruct(clean), clean):11.4f}")
    return rates, networks


def contract(X: np.ndarray, clean: np.ndarray, epochs: int, seed: int) -> Any:
    """Return norms of Jacobians and errors by the strength of the penalty."""
    found = {}
    print(f"\n{'contraction':>12}{'Jacobian':>10}{'error':>10}")
    for strength in (0.0, 0.001, 0.003, 0.01):
        network = fastrnn.ContractiveAutoencoder(
            K, strength=strength, epochs=epochs, random_state=seed
        ).fit(X)
        norm = float(network.jacobian_norms(clean).mean())
        found[strength] = {"norm": norm, "error": mse(network.reconstruct(clean), clean)}
        print(f"{strength:12}{norm:10.3f}{found[strength]['error']:10.5f}")
    return found


def draw_digits(path: Path, images: dict[str, dict[str, np.ndarray]]) -> None:
    """Draw digits without noise, with it, and after it was taken off."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    parts: Any = figure.subfigures(1, 2)
    for part, (kind, rows) in zip(parts, images.items(), strict=True):
        part.suptitle(kind.replace("_", " "))
        grid = part.subplots(len(rows), 8)
        for axes, (name, row) in zip(grid, rows.items(), strict=True):
            for ax, image in zip(axes, row, strict=False):
                ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
            axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=120)


def draw_features(path: Path, networks: Any, X: np.ndarray) -> None:
    """Draw the weights of the units of a sparse autoencoder, and how active units are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    parts: Any = figure.subfigures(1, 2)
    left, right = parts
    rho, network = next(iter(networks.items()))
    left.suptitle(f"weights of the {K} units, rho = {rho}")
    weights = network.model_.encoder[0].parameters["weight"]
    for unit, ax in zip(weights, left.subplots(8, 8).flat, strict=True):
        limit = np.abs(unit).max()
        ax.imshow(unit.reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.axis("off")
    ax = right.subplots()
    for i, (rho, network) in enumerate(networks.items()):
        rates = np.sort(network.transform(X).mean(axis=0))
        ax.plot(rates, ".", color=f"C{i}", label=f"rho = {rho}")
        ax.axhline(rho, color=f"C{i}", linewidth=0.8)
    ax.set(xlabel="unit", ylabel="mean activation", ylim=(0, None))
    ax.legend()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="most networks are trained briefly")
    arguments = parser.parse_args(argv)
    pixels, labels = load_digits(return_X_y=True)
    X, clean = train_test_split(
        pixels / 16, test_size=0.25, stratify=labels, random_state=arguments.seed
    )
    epochs, seed = 40 if arguments.quick else 100, arguments.seed

    errors, images = denoise(X, clean, epochs, seed)
    rates, networks = make_sparse(X, clean, epochs, seed)
    jacobians = contract(X, clean, 100, seed)
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    draw_digits(arguments.pictures / "denoise_digits.png", images)
    draw_features(arguments.pictures / "denoise_digits_features.png", networks, X)
    print(f"pictures: {arguments.pictures}/denoise_digits.png, denoise_digits_features.png")
    return {"errors": errors, "rates": rates, "jacobians": jacobians}


if __name__ == "__main__":
    main()
