"""Write like the manual of Python: a language model of characters, and the same one in torch.

A GRU reads Python's own help pages as parallel streams and learns which character comes next, by
truncated backpropagation. Prints the bits per character of pages that it has not seen, beside those
of counts, and text that it makes up. With torch installed, the same network, and one with an LSTM,
is then trained with both in turns, with the same windows, optimizer and threads; prints the time of
an update.

    python examples/character_language_model.py

Needs matplotlib for the picture: ``pip install matplotlib``.
"""

import argparse
import importlib.util
import time
from collections import Counter
from pydoc_data.topics import topics
from typing import Any

import fastrnn
import numpy as np
from fastrnn.optimizers import Adam, CosineDecay

BATCH, WINDOW, RATE = 32, 64, 4e-3
CELLS = {"gru": fastrnn.GRU, "lstm": fastrnn.LSTM}


def read_text() -> str:
    """Return the help pages, with each paragraph once: some pages repeat parts of others."""
    paragraphs = "\n\n".join(page.strip() for page in topics.values()).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def streams(ids: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text into rows of whole windows: characters (rows, T) and those that follow."""
    T = (len(ids) - 1) // rows // WINDOW * WINDOW
    return ids[: rows * T].reshape(rows, T), ids[1 : rows * T + 1].reshape(rows, T)


def build(cell: str, n: int, hidden: int, rate: Any, seed: int) -> fastrnn.Sequential:
    table = fastrnn.Embedding(n, 64, seed=seed)
    layer = CELLS[cell](64, hidden, seed=seed + 1)
    model = fastrnn.Sequential([table, layer, fastrnn.Dense(hidden, n, seed=seed + 2)])
    return model.compile(Adam(rate, global_clipnorm=1.0), "cross_entropy")


def count_bits(text: str, start: int, order: int) -> float:
    """Bits per character from `start` on, by counts before it of up to `order` characters.

    Beside counts, the estimate from a shorter context has the weight of 5 characters.
    """
    places = [(i, i + k) for k in range(order) for i in range(start - k)]
    contexts = Counter(text[i:j] for i, j in places)
    grams = Counter(text[i : j + 1] for i, j in places)
    bits, chance = 0.0, 1 / len(set(text))
    for i in range(start, len(text)):
        p = chance
        for k in range(order):
            p = (grams[text[i - k : i + 1]] + 5 * p) / (contexts[text[i - k : i]] + 5)
        bits -= np.log2(p)
    return float(bits) / (len(text) - start)


def race(model: fastrnn.Sequential, x: np.ndarray, y: np.ndarray, rounds: int) -> np.ndarray:
    """Return milliseconds per update and loss of torch and fastrnn, in turns: (rounds, 2, 2)."""
    import torch

    nn, n, hidden = torch.nn, model.layers[2].units, model.layers[1].hidden_size
    cell = getattr(nn, type(model.layers[1]).__name__)
    network = nn.ModuleList([nn.Embedding(n, 64), cell(64, hidden), nn.Linear(hidden, n)])
    network.load_state_dict({name: torch.tensor(p) for name, p in model.parameters.items()})
    optimizer = torch.optim.Adam(network.parameters(), RATE, fused=True)
    torch.set_num_threads(fastrnn.get_num_threads())
    (embedding, layer, dense), log = network, []
    for _ in range(rounds):
        start, state, losses = time.perf_counter(), None, []
        windows = (torch.from_numpy(a.T.copy()).split(WINDOW) for a in (x, y))
        for inputs, targets in zip(*windows, strict=True):
            output, state = layer(embedding(inputs), state)
            loss = nn.functional.cross_entropy(dense(output).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            # The next window starts from the state, and passes no gradient back to it.
            is_pair = isinstance(state, tuple)
            state = tuple(s.detach() for s in state) if is_pair else state.detach()
            losses.append(loss.item())
        middle = time.perf_counter()
        history = model.fit(x, y, batch_size=BATCH, tbptt=WINDOW, shuffle=False, verbose=0)
        times = np.array([middle - start, time.perf_counter() - middle]) / len(losses)
        log.append([1e3 * times, [np.mean(losses), history["loss"][0]]])
    return np.array(log)


def draw(results: dict[str, Any], path: str) -> None:
    from matplotlib.figure import Figure

    curves, bars = Figure(figsize=(10, 4), layout="constrained").subplots(1, 2, width_ratios=[2, 1])
    epochs = np.arange(len(results["training"])) + 1
    for name in ("training", "validation"):
        curves.plot(epochs, results[name], marker="o", label=f"GRU, {name}")
    for name, bits in results["counts"].items():
        curves.axhline(bits, color="gray")
        curves.text(epochs[-1], bits, name, ha="right", va="bottom")
    curves.set(xlabel="epoch", ylabel="bits per character")
    curves.legend()
    for name, times in results.get("milliseconds", {}).items():
        for library, ms in zip(("torch", "fastrnn"), times, strict=True):
            bars.bar_label(bars.bar(f"{name.upper()}\n{library}", ms), fmt="%.1f")
    bars.set(ylabel="milliseconds per update")
    curves.figure.savefig(path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="character_language_model.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run of some seconds")
    options = parser.parse_args(argv)
    seed, hidden, epochs, rounds = options.seed, *((64, 3, 2) if options.quick else (256, 8, 10))
    text = read_text()[: 100_000 if options.quick else None]
    start = len(text) * 9 // 10
    vocabulary = fastrnn.Vocabulary([text], padding=None, unknown=None)
    ids, n = vocabulary.encode(text), len(vocabulary)
    x, y = streams(ids[:start], 4 * BATCH)
    model = build("gru", n, hidden, CosineDecay(RATE, epochs * x.size // BATCH // WINDOW), seed)
    training = {"epochs": epochs, "batch_size": BATCH, "tbptt": WINDOW, "seed": seed}
    history = model.fit(x, y, validation_data=streams(ids[start:], 8), **training)
    results: dict[str, Any] = {
        "training": np.array(history["loss"]) / np.log(2),
        "validation": np.array(history["val_loss"]) / np.log(2),
        "counts": {f"{k}-grams": count_bits(text, start, k) for k in (1, 3, 5)},
    }
    print(f"{len(text)} characters; of the last {len(text) - start}: bits each, perplexity")
    for name, bits in {**results["counts"], "GRU": results["validation"][-1]}.items():
        print(f"{name:8} {bits:8.2f} {2**bits:8.2f}")
    for temperature in (0.5, 1.0):
        made = model.generate(vocabulary.encode("The "), 300, temperature=temperature, seed=seed)
        print(f"\nTemperature {temperature}: The {''.join(vocabulary.decode(made))}")
    if importlib.util.find_spec("torch") is not None:
        print(f"\nms per update (median) on {fastrnn.get_num_threads()} threads, and last loss")
        part = np.s_[:BATCH, : 10 * WINDOW]
        results["race"], results["milliseconds"] = {}, {}
        for cell in CELLS:
            log = race(build(cell, n, hidden, RATE, seed), x[part], y[part], rounds)
            theirs, ours = np.median(log[:, 0], axis=0)
            results["race"][cell], results["milliseconds"][cell] = log, (theirs, ours)
            print(f"{cell:4} torch {theirs:5.1f} {log[-1, 1, 0]:.3f}", end="   ")
            print(f"fastrnn {ours:5.1f} {log[-1, 1, 1]:.3f}   torch takes {theirs / ours:.2f} x")
    draw(results, options.picture)
    return results


if __name__ == "__main__":
    main()
