"""Translate dates from many formats to ISO, character by character, with attention.

"the 3rd of March 1987", "TUE 3 MAR 87" and "3.3.1987" all become "1987-03-03". A bidirectional GRU
reads the characters of a date, another GRU writes those of its translation, and for each of them
attention looks up where in the source the answer is. Nobody tells the network about formats or
months: it learns from 8000 examples, which this script makes.

Prints how many days that were never shown are translated without a single mistake, with attention
and without, where all that the decoder knows is one vector; some translations, and mistakes. The
picture shows where the network looked: for the year it reads the year, for the month the name of
the month, wherever they are.

    python examples/dates_to_iso.py

Needs matplotlib for the picture: ``pip install matplotlib``.
"""

import argparse
import time
from datetime import date
from typing import Any

import numpy as np
from fastrnn import GRU, Attention, Dense, Embedding, Sequential, Vocabulary
from fastrnn.optimizers import Adam, CosineDecay
from fastrnn.seq2seq import Seq2Seq

FIRST, LAST = date(1950, 1, 1), date(2049, 12, 31)
SHOWN = ["the 3rd of March 1987", "TUE 3 MAR 87", "3.3.1987", "friday, 13 november 2026"]
START, END = 2, 3  # in a vocabulary they come after padding and unknown characters
BATCH, RATE = 64, 5e-3


def ordinal(day: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, ..."""
    suffix = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def write(day: date, rng: np.random.Generator) -> str:
    """Write a date in a format drawn at random; none of them is ambiguous."""
    d, m, y = day.day, day.month, day.year
    formats = [
        f"{ordinal(d)} of {day:%B}, {y}",
        f"the {ordinal(d)} of {day:%B} {y}",
        f"{day:%B} {ordinal(d)}, {y}",
        f"{day:%b} {d}, {y}",
        f"{day:%A}, {d} {day:%B} {y}",
        f"{day:%a} {d} {day:%b} {day:%y}",
        f"{d}-{day:%b}-{day:%y}",
        f"{y}, {day:%B} {d}",
        f"{y}/{m}/{d}",
        f"{d}.{m}.{y}",
        f"{d:02}.{m:02}.{day:%y}",
        f"{day:%Y%m%d}",
    ]
    text = formats[rng.integers(len(formats))]
    return [text, text.lower(), text.upper()][rng.integers(3)]


def draw(n: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Draw n different days of a hundred years; return how they are written, and in ISO."""
    ordinals = np.arange(FIRST.toordinal(), LAST.toordinal() + 1)
    days = [date.fromordinal(int(i)) for i in rng.choice(ordinals, n, replace=False)]
    return [write(day, rng) for day in days], [day.isoformat() for day in days]


def build(sources: int, targets: int, attention: bool, updates: int, seed: int) -> Seq2Seq:
    """Make a network for vocabularies of so many characters."""
    table = Embedding(sources, 32, mask_zero=True, seed=seed)
    encoder = Sequential([table, GRU(32, 64, bidirectional=True, seed=seed + 1)])
    # It starts from the final states of both directions of the encoder, side by side.
    decoder = Sequential([Embedding(targets, 32, seed=seed + 2), GRU(32, 128, seed=seed + 3)])
    hidden = Dense(256 if attention else 128, 128, "tanh", seed=seed + 4)
    output = Sequential([hidden, Dense(128, targets, seed=seed + 5)])
    looks = Attention(128, score="general", seed=seed + 6) if attention else None
    model = Seq2Seq(encoder, decoder, looks, output, start=START, end=END)
    rate = CosineDecay(RATE, updates)
    return model.compile(Adam(rate, global_clipnorm=1.0), "cross_entropy", ["accuracy"])


def draw_attention(
    sources: list[str], results: list[str], weights: list[np.ndarray], path: str
) -> None:
    """Save a heat map for each date: a row for each character that was written."""
    from matplotlib.figure import Figure

    widths = [len(source) for source in sources]
    figure = Figure(figsize=(0.27 * sum(widths) + 1.5, 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(sources), width_ratios=widths, squeeze=False)[0]
    for axes, source, result, matrix in zip(all_axes, sources, results, weights, strict=True):
        axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), source)
        axes.set_yticks(range(len(result)), result)
        axes.set(xlabel="read", ylabel="written")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Translate dates to ISO.")
    parser.add_argument("--picture", default="dates_to_iso.png", help="where to save the picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run, to try it out")
    options = parser.parse_args(argv)
    n, held_out, epochs = (2500, 200, 4) if options.quick else (8000, 2000, 6)

    texts, isos = draw(n + held_out, np.random.default_rng(options.seed))
    # Of the training dates alone; characters that they lack would be read as unknown.
    read = Vocabulary(texts[:n], special=("<start>", "<end>"))
    written = Vocabulary(isos[:n], special=("<start>", "<end>"))
    x, y = [read.encode(text) for text in texts], [written.encode(iso) for iso in isos]

    def decode(found: list[np.ndarray]) -> list[str]:
        return ["".join(map(str, written.decode(ids))) for ids in found]

    print(f"{n} dates to learn from, such as {texts[0]!r}; {held_out} other days to test with")
    results: dict[str, Any] = {}
    table = [f"{'':<20} {'correct dates':>13} {'characters':>11} {'training':>10}"]
    for name in ("without attention", "with attention"):
        updates = epochs * -(-n // BATCH)
        model = build(len(read), len(written), name == "with attention", updates, options.seed)
        began = time.perf_counter()
        model.fit(x[:n], y[:n], epochs=epochs, batch_size=BATCH, seed=options.seed)
        seconds = time.perf_counter() - began
        found = decode(model.translate(x[n:], max_steps=12))
        results[name] = float(np.mean([a == b for a, b in zip(found, isos[n:], strict=True)]))
        characters = model.evaluate(x[n:], y[n:])["accuracy"]  # given the right ones before
        table.append(f"{name:<20} {results[name]:>13.2%} {characters:>11.2%} {seconds:>8.1f} s")
    print("\n".join(table))

    mistakes = [(t, a, b) for t, a, b in zip(texts[n:], found, isos[n:], strict=True) if a != b]
    print(f"\n{len(mistakes)} mistakes with attention")
    for text, got, expected in mistakes[:5]:
        print(f"  {text:<32} {got}, which is {expected}")
    ids, weights = model.translate(
        [read.encode(text) for text in SHOWN], max_steps=12, beam=4, return_attention=True
    )
    results["translations"] = dict(zip(SHOWN, decode(ids), strict=True))
    print("translations, searched with 4 beams")
    for text, iso in results["translations"].items():
        print(f"  {text:<32} {iso}")
    draw_attention(SHOWN[:2], decode(ids)[:2], weights[:2], options.picture)
    print(f"picture in {options.picture}")
    return results


if __name__ == "__main__":
    main()
