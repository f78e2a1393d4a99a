"""Write digits with a variational autoencoder, and look at maps of them in two dimensions.

Its codes are drawn from a normal distribution for each image, which the loss presses to N(0, I).
So the decoder makes digits of random numbers. A classifier that was trained on real digits
judges these: on average its most likely class should have a probability of at least 0.8. That alone
proves little, as classifiers are sure of much that is no digit, so it also judges draws from a
normal distribution with mean and covariance of the images.

With two numbers for a code the digits lie on a map. An autoencoder whose codes are pulled to an
embedding makes others: a diffusion map, and t-SNE, which by itself could not place digits that it
has not seen.

    python examples/handwriting_vae.py

Prints the evidence lower bounds (ELBO), the judgement, and how many unseen digits a map puts among
their own kind, and draws all. Needs scikit-learn, and for the pictures matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import NormalDist
from typing import Any

import fastrnn
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SAMPLES, SIDE = 1000, 15


def judge(X: np.ndarray, y: np.ndarray, kinds: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean probability of the most likely class of each kind of images."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(X, y)
    found = {}
    print(f"\n{'judged by a classifier':26}{'top probability':>17}   share of each digit in %")
    for name, images in kinds.items():
        top = classifier.predict_proba(images)
        found[name] = float(top.max(axis=1).mean())
        shares = 100 * np.bincount(top.argmax(axis=1), minlength=10) / len(images)
        print(f"{name:26}{found[name]:17.3f}   " + " ".join(f"{s:3.0f}" for s in shares))
    return found


def neighbours(codes: np.ndarray, y: np.ndarray, new: np.ndarray, y_new: np.ndarray) -> float:
    """Return the part of new codes whose ten nearest known ones are mostly of their class."""
    return float(KNeighborsClassifier(10).fit(codes, y).score(new, y_new))


def sheet(figure: Any, images: np.ndarray, columns: int) -> None:
    """Draw images side by side, as one."""
    framed = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    rows = framed.reshape(-1, columns, 10, 10).transpose(0, 2, 1, 3).reshape(-1, 10 * columns)
    ax = figure.subplots()
    ax.imshow(rows, cmap="gray_r", vmin=0, vmax=1)
    ax.axis("off")


def draw_samples(path: Path, kinds: dict[str, np.ndarray]) -> None:
    """Draw a sheet of each kind of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(kinds), 4.2), layout="constrained")
    parts: Any = figure.subfigures(1, len(kinds))
    for part, (name, images) in zip(parts, kinds.items(), strict=True):
        part.suptitle(name)
        sheet(part, images[:100], 10)
    figure.savefig(path, dpi=120)


def draw_bounds(path: Path, bounds: dict[str, tuple[np.ndarray, float]]) -> None:
    """Draw the ELBO of the training images by epoch, and that of unseen ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    for i, (name, (values, unseen)) in enumerate(bounds.items()):
        ax.plot(np.arange(1, len(values) + 1), values, color=f"C{i}", label=name)
        ax.axhline(unseen, color=f"C{i}", linestyle="--", linewidth=1)
    ax.plot([], [], "k--", linewidth=1, label="unseen digits, in the end")
    least = min(values[len(values) // 20] for values, _ in bounds.values())
    ax.set(xlabel="epoch", ylabel="ELBO of a digit [nats]", ylim=(least - 1, None))
    ax.legend()
    figure.savefig(path, dpi=120)


def draw_grid(path: Path, autoencoder: Any) -> None:
    """Draw what the decoder makes of a grid of codes, equally likely steps apart."""
    from matplotlib.figure import Figure

    steps = [NormalDist().inv_cdf(p) for p in np.linspace(0.02, 0.98, SIDE)]
    codes = np.array([(x, y) for y in reversed(steps) for x in steps])
    figure = Figure(figsize=(6, 6), layout="constrained")
    sheet(figure, autoencoder.inverse_transform(codes), SIDE)
    figure.savefig(path, dpi=120)


def draw_maps(path: Path, maps: dict[str, Any], X: np.ndarray, y: np.ndarray) -> None:
    """Draw codes of two numbers side by side, coloured by digit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8.4), layout="constrained")
    for ax, (name, transformer) in zip(figure.subplots(2, 2).flat, maps.items(), strict=True):
        codes = transformer.transform(X)
        for digit in range(10):
            ax.plot(*codes[y == digit].T, ".", markersize=4, color=f"C{digit}", label=str(digit))
        ax.set(title=name, xlabel="component 0", ylabel="component 1")
    ax.legend(markerscale=2, fontsize="small")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="networks are trained briefly")
    arguments = parser.parse_args(argv)
    epochs, seed = 60 if arguments.quick else 150, arguments.seed
    pixels, labels = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        pixels / 16, labels, test_size=0.25, stratify=labels, random_state=seed
    )

    def vae(k: int) -> Any:
        network = fastrnn.VariationalAutoencoder(
            k, (256, 128), loss="bce", epochs=epochs, random_state=seed
        )
        return network.fit(X)

    def geometric(embedding: Any) -> Any:
        network = fastrnn.GeometryRegularizedAutoencoder(2, embedding=embedding, random_state=seed)
        return network.fit(X)

    writers = {f"code of {k} numbers": vae(k) for k in (2, 8)}
    plane, writer = writers.values()
    bounds = {}
    print(f"{'ELBO in nats':22}{'epoch 20':>10}{'last':>8}{'unseen':>9}")
    for name, network in writers.items():
        # The loss is that of a pixel; while it warms up, the divergence counts less in it.
        values = -X.shape[1] * np.array(network.history_["loss"])
        bounds[name] = values, float(network.elbo(X_test, draws=10, random_state=seed).mean())
        print(f"{name:22}{values[19]:10.2f}{values[-1]:8.2f}{bounds[name][1]:9.2f}")

    generator = np.random.default_rng(seed)
    kinds = {
        "unseen digits": X_test,
        "written, code of 8": writer.sample(SAMPLES, random_state=seed),
        "written, code of 2": plane.sample(SAMPLES, random_state=seed),
        "normal distribution": generator.multivariate_normal(
            X.mean(axis=0), np.cov(X.T), SAMPLES, method="eigh"
        ).clip(0, 1),
    }
    top = judge(X, y, kinds)

    maps = {
        "principal components": PCA(2).fit(X),
        "variational": plane,
        "pulled to a diffusion map": geometric("diffusion"),
        "pulled to t-SNE": geometric(TSNE(random_state=seed)),
    }
    print("\nof unseen digits, among their own kind on a map")
    own = {}
    for name, transformer in maps.items():
        own[name] = neighbours(transformer.transform(X), y, transformer.transform(X_test), y_test)
        print(f"{name:26}{own[name]:8.3f}")

    arguments.pictures.mkdir(parents=True, exist_ok=True)
    draw_bounds(arguments.pictures / "handwriting_elbo.png", bounds)
    draw_samples(arguments.pictures / "handwriting_samples.png", kinds)
    draw_grid(arguments.pictures / "handwriting_grid.png", plane)
    plane.plot_latent(X_test, y_test, arguments.pictures / "handwriting_latent.png")
    draw_maps(arguments.pictures / "handwriting_maps.png", maps, X_test, y_test)
    print(f"pictures: {arguments.pictures}/handwriting_{{elbo,samples,grid,latent,maps}}.png")
    rises = {name: (float(values[19]), float(values[-1])) for name, (values, _) in bounds.items()}
    return {"elbo": rises, "top": top, "maps": own}


if __name__ == "__main__":
    main()
