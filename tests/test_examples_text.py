"""The examples of text: a language model of characters, and sentences and their libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from run_examples import load, run

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def restore_threads_of_torch() -> Iterator[None]:
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_language_model_learns_and_agrees_with_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run("character_language_model", tmp_path, "--quick")
    bits, counts = results["validation"], results["counts"]
    assert len(bits) == len(results["training"])
    assert bits[-1] < bits[0]
    assert bits[-1] < counts["1-grams"]
    assert counts["5-grams"] < counts["3-grams"] < counts["1-grams"]
    printed = capsys.readouterr().out
    assert "Temperature 0.5: The " in printed
    assert ("milliseconds" in results) == (importlib.util.find_spec("torch") is not None)
    if "milliseconds" in results:
        # The same updates: the losses part by rounding only.
        for log in results["race"].values():
            theirs, ours = log[:, 1].T
            np.testing.assert_allclose(ours, theirs, rtol=1e-3)
            assert ours[-1] < ours[0]
        assert printed.count("torch takes") == len(results["race"]) == 2


def test_counts_give_a_distribution() -> None:
    count_bits = load("character_language_model").count_bits
    text = "abracadabra"
    total = sum(2 ** -count_bits(text + letter, len(text), 3) for letter in sorted(set(text)))
    assert total == pytest.approx(1)
    # Of 4 characters 2 are a; the weight of the uniform estimate is that of 5.
    assert count_bits("aabba", 4, 1) == pytest.approx(-np.log2((2 + 5 / 2) / (4 + 5)))


def test_streams_follow_each_other() -> None:
    module = load("character_language_model")
    ids = np.arange(2 * 3 * module.WINDOW + 5)
    x, y = module.streams(ids, 2)
    assert x.shape == (2, 3 * module.WINDOW)
    np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(x.ravel(), ids[: x.size])


@pytest.mark.parametrize("pooling", ["max", "attention"])
def test_sentences_are_told_apart(
    pooling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    results = run("text_classification", tmp_path, "--quick", "--pooling", pooling)
    accuracy, counts = results["accuracy"], results["confusion"]
    assert np.trace(counts) / counts.sum() == pytest.approx(accuracy["GRU"])
    assert len(set(counts.sum(axis=1))) == 1  # as many of each class
    assert accuracy["one class for all"] == pytest.approx(1 / len(counts))
    assert min(accuracy["GRU"], accuracy["bag of words"]) > 0.5
    assert "bag of words" in capsys.readouterr().out


def test_parts_share_no_file_and_no_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    module = load("text_classification")
    read: list[tuple[Path, list[str]]] = []
    original = module.sentences

    def sentences(file: Path) -> list[str]:
        read.append((file, original(file)))
        return list(read[-1][1])

    monkeypatch.setattr(module, "sentences", sentences)
    data = module.load(module.QUICK_SIZES, 0)
    lines = [line for part, _ in data.values() for line in part]
    assert len(set(lines)) == len(lines)
    files = [file for file, _ in read]
    assert len(set(files)) == len(files)  # each is read once, for one part
    for name, (part, labels) in data.items():
        assert len(part) == len(labels) == 3 * module.QUICK_SIZES[name]
    assert not any(module.NAMES & set(line.split()) for line in lines)


def test_sentences_are_prose_of_public_functions(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    file = tmp_path / "module.py"
    file.write_text(
        '''
def shown():
    """Add the two numbers to each other.

    >>> Never show what the examples of functions contain.

    The result has the type
    of both. Too short.
    """

def _hidden():
    """Say nothing about what is hidden here."""
''',
        "utf-8",
    )
    assert load("text_classification").sentences(file) == [
        "add the two numbers to each other",
        "the result has the type of both",
    ]


def test_dates_are_translated(tmp_path: Path) -> None:
    results = run("dates_to_iso", tmp_path, "--quick")
    assert results["with attention"] > results["without attention"] + 0.1
    assert results["translations"]["the 3rd of March 1987"].startswith("1987-")
