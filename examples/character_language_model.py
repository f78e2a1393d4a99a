"""Write like the manual of Python: a language model of characters, and the same one in torch.

An LSTM reads Python's own help pages as parallel streams and learns which character comes next.
Every window of 64 steps is an update; states are carried on to the next one (truncated
backpropagation). Prints the bits per character of pages that it has not seen, beside those of
counts, and text that it makes up. With torch installed, the same network (weights, windows, Adam,
clipping, threads) is then trained by both in turns; prints the time of an update.

    python examples/character_language_model.py

Needs matplotlib for the picture: ``pip install matplotlib``.
"""

import argparse
import importlib.util
import math
import time
from collections import Counter
from pydoc_data.topics import topics
from typing import Any

import fastrnn
import numpy as np
from fastrnn.optimizers import Adam, CosineDecay

BATCH, WINDOW, RATE = 32, 64, 4e-3


def read_text() -> str:
    """Return the help pages, with each paragraph once: some pages repeat parts of others."""
    paragraphs = "\n\n".join(page.strip() for page in topics.values()).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def streams(ids: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text into rows of whole windows: characters (rows, T) and those that follow."""
    T = (len(ids) - 1) // rows // WINDOW * WINDOW
    return ids[: rows * T].reshape(rows, T), ids[1 : rows * T + 1].reshape(rows, T)


def build(n: int, hidden: int, rate: Any, seed: int) -> fastrnn.Sequential:
    table = fastrnn.Embedding(n, 64, seed=seed)
    lstm = fastrnn.LSTM(64, hidden, seed=seed + 1)
    model = fastrnn.Sequential([table, lstm, fastrnn.Dense(hidden, n, seed=seed + 2)])
    return model.compile(Adam(rate, global_clipnorm=1.0), "cross_entropy")


def count_bits(text: str, start: int, order: int) -> float:
    """Bits per character from `start` on, by counts before it of up to `order` characters.

    The estimate for a context is worth as much for the next longer one as 5 characters seen there.
    """
    grams = Counter(text[i : i + k] for k in range(order + 1) for i in range(start - k))
    letters, bits = len(set(text)), 0.0
    for i in range(start, len(text)):
        p = 1 / letters
        for k in range(order):
            p = (grams[text[i - k : i + 1]] + 5 * p) / (grams[text[i - k : i]] + 5)
        bits -= math.log2(p)
    return bits / (len(text) - start)


class TorchModel:
    """The network in torch, with the weights of a model."""

    def __init__(self, model: fastrnn.Sequential) -> None:
        from torch import nn, optim, set_num_threads, tensor

        sizes = model.layers[2].units, 64, model.layers[1].hidden_size
        layers = [nn.Embedding(*sizes[:2]), nn.LSTM(*sizes[1:]), nn.Linear(sizes[2], sizes[0])]
        self.network = nn.ModuleList(layers)
        self.network.load_state_dict({name: tensor(p) for name, p in model.parameters.items()})
        self.optimizer = optim.Adam(self.network.parameters(), RATE, fused=True)
        set_num_threads(fastrnn.get_num_threads())

    def fit(self, x: np.ndarray, y: np.ndarray) -> float:
        """Train as ``Sequential.fit(x, y, tbptt=WINDOW)`` does, and return the mean loss."""
        from torch import from_numpy, nn

        (embedding, lstm, dense), state, losses = self.network, None, []
        windows = (from_numpy(a.T.copy()).split(WINDOW) for a in (x, y))
        for inputs, targets in zip(*windows, strict=True):
            output, (h, c) = lstm(embedding(inputs), state)
            loss = nn.functional.cross_entropy(dense(output).flatten(0, 1), targets.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            state = h.detach(), c.detach()
            losses.append(loss.item())
        return float(np.mean(losses))


def race(model: fastrnn.Sequential, x: np.ndarray, y: np.ndarray, rounds: int) -> np.ndarray:
    """Train with torch and fastrnn in turns: milliseconds of an update and loss, of each round."""
    other, log = TorchModel(model), []
    for k in range(rounds):
        part = np.s_[:BATCH, k % 4 * 10 * WINDOW : (k % 4 + 1) * 10 * WINDOW]
        start = time.perf_counter()
        loss = other.fit(x[part], y[part])
        middle = time.perf_counter()
        history = model.fit(x[part], y[part], batch_size=BATCH, tbptt=WINDOW, verbose=0)
        times = middle - start, time.perf_counter() - middle
        updates = -(-x[part].shape[1] // WINDOW)
        log.append([[1e3 * s / updates for s in times], [loss, history["loss"][-1]]])
    return np.array(log)


def draw(results: dict[str, Any], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=[2, 1])
    for name in ("training", "validation"):
        curves.plot(results[name], marker="o", label=f"LSTM, {name}")
    for number, (name, bits) in enumerate(results["counts"].items()):
        curves.axhline(bits, color=f"{0.2 + 0.2 * number}", linestyle=":", label=name)
    curves.set(xlabel="epoch", ylabel="bits per character")
    curves.legend()
    times = results.get("milliseconds", {})
    bars.bar_label(bars.bar(list(times), list(times.values())), fmt="%.1f")
    bars.set(ylabel="milliseconds per update")
    figure.savefig(path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="character_language_model.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run of some seconds")
    options = parser.parse_args(argv)
    seed, hidden, epochs, rounds = options.seed, 256, 8, 12
    text = read_text()
    if options.quick:
        text, hidden, epochs, rounds = text[:60_000], 64, 3, 2
    start = len(text) * 9 // 10
    vocabulary = fastrnn.Vocabulary([text], padding=None, unknown=None)
    ids, n = vocabulary.encode(text), len(vocabulary)
    x, y = streams(ids[:start], 4 * BATCH)

    decay = CosineDecay(RATE, epochs * 4 * x.shape[1] // WINDOW)
    model = build(n, hidden, decay, seed)
    options_of_fit = {"batch_size": BATCH, "tbptt": WINDOW, "seed": seed}
    history = model.fit(
        x, y, epochs=epochs, validation_data=streams(ids[start:], 8), **options_of_fit
    )
    orders = {"characters alone": 1, "trigrams": 3, "5-grams": 5}
    results: dict[str, Any] = {
        "training": np.array(history["loss"]) / math.log(2),
        "validation": np.array(history["val_loss"]) / math.log(2),
        "counts": {name: count_bits(text, start, order) for name, order in orders.items()},
    }
    print(f"{len(text)} characters; of the last {len(text) - start}: bits each, perplexity")
    for name, bits in {**results["counts"], "LSTM": results["validation"][-1]}.items():
        print(f"{name:16} {bits:8.2f} {2**bits:8.2f}")
    for temperature in (0.5, 1.0):
        prompt = vocabulary.encode("The ")
        made = model.generate(prompt, 300, temperature=temperature, seed=seed)
        print(f"\nTemperature {temperature}: The {''.join(vocabulary.decode(made))}")
    if importlib.util.find_spec("torch") is not None:
        results["rounds"] = log = race(build(n, hidden, RATE, seed), x, y, rounds)
        theirs, ours = np.median(log[:, 0], axis=0)
        results["milliseconds"] = {"torch": theirs, "fastrnn": ours}
        print(f"\n10 updates each in turns, {rounds} times, {fastrnn.get_num_threads()} threads")
        for name, (ms, loss) in zip(
            results["milliseconds"], zip(np.median(log[:, 0], axis=0), log[-1, 1])
        ):
            print(f"{name:8} {ms:6.1f} ms per update (median), last loss {loss:.3f}")
        print(f"fastrnn is {theirs / ours:.2f} times as fast")
    draw(results, options.picture)
    return results


if __name__ == "__main__":
    main()
