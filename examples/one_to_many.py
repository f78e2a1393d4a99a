"""Draw a digit from its name: one vector in, a sequence out.

A one-hot vector that names a digit becomes the 8 rows of its image: a dense layer makes features of
it, `Repeat` gives them to an LSTM at each of 8 steps, and a dense layer turns every state into a
row of 8 pixels. The network learns from handwritten digits of scikit-learn.

A class has many images and a single name, so the mean image of the class has the least squared
error that a function of the name can have on the images it learnt from. The network has to come
close to it; it cannot know better. Two errors are on digits that neither has seen: the distance of
pixels, and how many digits are nearer to another class's image than to that of their own.

    python examples/one_to_many.py

Prints both for the class means, for the network and for the mean of all images, and draws the
images. Needs scikit-learn, and for the picture matplotlib.
"""

import argparse
import time
from collections.abc import Sequence

import fastrnn
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ROWS = COLUMNS = 8
HIDDEN, BATCH = 64, 32


def make_model(updates: int, seed: int) -> fastrnn.Sequential:
    """Return the network, whose learning rate falls to 0 over that many updates."""
    model = fastrnn.Sequential(
        [
            fastrnn.Dense(10, HIDDEN, "tanh", seed=[seed, 0]),
            fastrnn.Repeat(ROWS),
            fastrnn.LSTM(HIDDEN, HIDDEN, seed=[seed, 1]),
            fastrnn.Dense(HIDDEN, COLUMNS, seed=[seed, 2]),
        ]
    )
    schedule = fastrnn.optimizers.CosineDecay(1e-2, updates)
    return model.compile(fastrnn.optimizers.Adam(schedule, global_clipnorm=1.0), "mse")


def compare(images: np.ndarray, labels: np.ndarray, templates: np.ndarray) -> tuple[float, float]:
    """Return the root mean squared error of templates (10, 8, 8), and how often they mislead."""
    error = np.sqrt(np.mean((images - templates[labels]) ** 2))
    distances = np.sum((images[:, np.newaxis] - templates) ** 2, axis=(2, 3))
    return float(error), float(np.mean(distances.argmin(axis=1) != labels))


def draw(path: str, pictures: dict[str, np.ndarray]) -> None:
    """Draw a row of ten images for each name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.9 * len(pictures) + 0.6), layout="constrained")
    axes = figure.subplots(len(pictures), 10)
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        for ax, image in zip(row, images, strict=True):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="one_to_many.png", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    arguments = parser.parse_args(argv)
    epochs, seed = 6 if arguments.quick else 30, arguments.seed

    digits = load_digits()
    images, test_images, labels, test_labels = train_test_split(
        digits.images / 16, digits.target, stratify=digits.target, random_state=seed
    )
    model = make_model(epochs * -(-len(images) // BATCH), seed)
    model.summary()
    start = time.perf_counter()
    x = fastrnn.one_hot(labels, 10)
    model.fit(x, images, epochs=epochs, batch_size=BATCH, seed=seed)
    seconds = time.perf_counter() - start

    means = np.stack([images[labels == digit].mean(axis=0) for digit in range(10)])
    generated = model.predict(np.eye(10))
    blurred = np.broadcast_to(images.mean(axis=0), means.shape)
    print(f"\non {len(test_labels)} digits   error of pixels   nearer to another class")
    table = {"mean of all": blurred, "class means": means, "network": generated}
    results = {name: compare(test_images, test_labels, made) for name, made in table.items()}
    for name, (error, mistaken) in results.items():
        print(f"{name:15} {error:15.4f}   {mistaken:23.1%}")
    distance = np.sqrt(np.mean((generated - means) ** 2))
    print(f"The network's images are {distance:.4f} from the class means ({seconds:.1f} s).")
    examples = np.stack([test_images[test_labels == digit][0] for digit in range(10)])
    draw(arguments.picture, {"network": generated, "class mean": means, "a digit": examples})
    print(f"picture: {arguments.picture}")
    return results


if __name__ == "__main__":
    main()
