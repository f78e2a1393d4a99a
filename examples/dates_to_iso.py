"""Translate dates from many formats to ISO, character by character, with attention.

"the 3rd of March, 1987", "Tue 3 Mar 87" and "3.3.1987" all become "1987-03-03". A bidirectional GRU
reads the characters of a date, another GRU writes those of its translation, and for each of them
attention looks up where in the source the answer is. Nobody tells the network about formats or
months: it sees 20 000 examples, which this script makes.

It prints how many dates that were never shown, in any format, are translated without a single
mistake, some of them, and all kinds of mistakes. The picture shows where the network looked: for
the year it reads the year, for the month the name of the month, wherever they are.

Needs matplotlib for the picture: ``pip install matplotlib``.
"""

from __future__ import annotations

import argparse
import time
from datetime import date

import numpy as np
from fastrnn import GRU, Attention, Dense, Embedding, Sequential, Vocabulary
from fastrnn.optimizers import Adam
from fastrnn.seq2seq import Seq2Seq

FIRST, LAST = date(1950, 1, 1).toordinal(), date(2049, 12, 31).toordinal()
BASELINE = "day month year, read from left to right"


def ordinal(day: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, ..."""
    suffix = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def write(day: date, rng: np.random.Generator) -> str:
    """Write a date in a format drawn at random; none of them is ambiguous."""
    d, m, y, short_y = day.day, day.month, day.year, f"{day:%y}"
    formats = [
        f"{ordinal(d)} of {day:%B}, {y}",
        f"the {ordinal(d)} of {day:%B} {y}",
        f"{day:%B} {ordinal(d)}, {y}",
        f"{day:%b} {d}, {y}",
        f"{day:%A}, {d} {day:%B} {y}",
        f"{day:%a} {d} {day:%b} {short_y}",
        f"{d}-{day:%b}-{short_y}",
        f"{y}, {day:%B} {d}",
        f"{y}/{m}/{d}",
        f"{d}.{m}.{y}",
        f"{d:02}.{m:02}.{short_y}",
        f"{day:%Y%m%d}",
    ]
    text = formats[rng.integers(len(formats))]
    return [text, text.lower(), text.upper()][rng.integers(3)]


def draw(n: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Draw n different days from 1950 to 2049, and write each in some format and in ISO."""
    days = [date.fromordinal(int(i)) for i in rng.choice(np.arange(FIRST, LAST + 1), n, False)]
    return [write(day, rng) for day in days], [day.isoformat() for day in days]


def build(vocabulary: int, digits: int, units: int, attention: bool, seed: int) -> Seq2Seq:
    """Make a network for ids of 0 (padding), 1 (unknown), 2 (start), 3 (end) and characters."""
    encoder = Sequential(
        [
            Embedding(vocabulary, 32, mask_zero=True, seed=seed),
            GRU(32, units // 2, bidirectional=True, seed=seed + 1),
        ]
    )
    decoder = Sequential([Embedding(digits, 32, seed=seed + 2), GRU(32, units, seed=seed + 3)])
    output = Sequential(
        [
            Dense(2 * units if attention else units, units, "tanh", seed=seed + 4),
            Dense(units, digits, seed=seed + 5),
        ]
    )
    looks = Attention(units, score="general", seed=seed + 6) if attention else None
    model = Seq2Seq(encoder, decoder, output, looks, start=2, end=3)
    return model.compile(Adam(3e-3, global_clipnorm=1.0), metrics=["accuracy"])
