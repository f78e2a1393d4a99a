"""Padding, windows, one-hot vectors and vocabularies: properties, views, wrong calls."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from fastrnn.sequences import Vocabulary, one_hot, pad_sequences, sliding_windows

Rng = np.random.Generator
LENGTHS = (3, 0, 5, 1)


@pytest.mark.parametrize("features", [(), (2,), (2, 3)])
@pytest.mark.parametrize("steps", [None, 0, 3, 7])
@pytest.mark.parametrize("padding", ["post", "pre"])
@pytest.mark.parametrize("truncating", ["post", "pre"])
def test_padding(
    features: tuple[int, ...], steps: int | None, padding: str, truncating: str, rng: Rng
) -> None:
    sequences = [rng.normal(size=(T, *features)).astype(np.float32) for T in LENGTHS]
    padded, lengths = pad_sequences(
        sequences, steps, padding=padding, truncating=truncating, value=-9
    )
    T = 5 if steps is None else steps
    assert (padded.shape, padded.dtype) == ((4, T, *features), np.float32)
    assert lengths.dtype == np.int64
    assert lengths.tolist() == [min(length, T) for length in LENGTHS]
    for row, sequence, length in zip(padded, sequences, lengths, strict=True):
        kept = sequence[len(sequence) - length :] if truncating == "pre" else sequence[:length]
        filling = np.full((T - length, *features), -9)
        parts = (filling, kept) if padding == "pre" else (kept, filling)
        np.testing.assert_array_equal(row, np.concatenate(parts))


def test_padding_matches_torch(rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    sequences = [torch.tensor(rng.normal(size=(T, 2))) for T in LENGTHS]
    expected = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=0.5)
    padded, _ = pad_sequences(sequences, value=0.5)
    np.testing.assert_array_equal(padded, expected.numpy())


def test_padding_dtypes() -> None:
    integers, floats = np.arange(2), np.ones(1, np.float32)
    assert pad_sequences([[1], [], [2, 3]])[0].dtype == np.int64  # [] shows no dtype
    assert pad_sequences([[], [True]])[0].dtype == bool
    assert pad_sequences([[], [[1.5, 2.5]]])[0].tolist() == [[[0, 0]], [[1.5, 2.5]]]
    assert pad_sequences([integers, floats])[0].dtype == np.float64
    assert pad_sequences([integers, floats], dtype=np.float32)[0].dtype == np.float32
    assert pad_sequences([floats], dtype="int8")[0].dtype == np.int8
    assert np.isnan(pad_sequences([floats, []], value=np.nan)[0][1, 0])
    assert pad_sequences([[], []])[0].shape == (2, 0)
    assert pad_sequences([[1], []], value=2**62 + 1)[0][1, 0] == 2**62 + 1  # never a float


def test_padding_copies() -> None:
    sequence = np.zeros(3)
    pad_sequences([sequence])[0][:] = 1
    assert (sequence == 0).all()


PADDING_ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (5, {}, TypeError, "sequences: expected an iterable, got int"),
    ([], {}, ValueError, "sequences: expected at least 1 sequence, got 0"),
    (
        [1, 2],
        {},
        ValueError,
        "sequences[0]: expected numbers (T,) or (T, F), got () int64",
    ),
    (
        [np.zeros((2, 3)), np.zeros((2, 4))],
        {},
        ValueError,
        "sequences[1]: expected numbers (T, 3), got (2, 4) float64",
    ),
    (
        [[1], [[1, 2]]],
        {},
        ValueError,
        "sequences[1]: expected numbers (T,), got (1, 2) int64",
    ),
    ([[1], [[1], [1, 2]]], {}, ValueError, "sequences[1]: expected numbers (T,) or (T, F), got"),
    ([["a"]], {}, TypeError, "sequences[0]: expected numbers (T,) or (T, F), got (1,) <U1"),
    ([[1]], {"steps": -1}, ValueError, "steps: expected an integer >= 0, got -1"),
    ([[1]], {"padding": "left"}, ValueError, "padding: expected one of 'pre', 'post', got 'left'"),
    ([[1]], {"truncating": 0}, ValueError, "truncating: expected one of 'pre', 'post', got 0"),
    ([[1]], {"value": 0.5}, ValueError, "value: expected numbers that int64 can hold, got 0.5"),
    ([[1]], {"value": "0"}, TypeError, "value: expected a number, got '0'"),
    ([[1]], {"value": [0, 1]}, TypeError, "value: expected a number, got [0, 1]"),
    (
        [[1], [300]],
        {"dtype": np.uint8},
        ValueError,
        "sequences[1]: expected numbers that uint8 can hold, got 300",
    ),
    (
        [[np.nan]],
        {"dtype": int},
        ValueError,
        "sequences[0]: expected numbers that int64 can hold, got nan",
    ),
    ([[1]], {"dtype": str}, TypeError, "dtype: expected a dtype of bools, integers or floats, got"),
    ([[1]], {"dtype": "no"}, TypeError, "dtype: expected a dtype of bools, integers or floats"),
]


@pytest.mark.parametrize(("sequences", "options", "kind", "message"), PADDING_ERRORS)
def test_padding_errors(
    sequences: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        pad_sequences(sequences, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("target", [None, 1, -1, [2, 0], np.array([0])])
@pytest.mark.parametrize(("window", "horizon", "stride"), [(4, 1, 1), (3, 2, 1), (5, 3, 4)])
def test_windows(target: Any, window: int, horizon: int, stride: int, rng: Rng) -> None:
    series = rng.normal(size=(17, 3))
    x, y = sliding_windows(series, window, horizon=horizon, stride=stride, target=target)
    wanted = series[:, np.ravel([0, 1, 2] if target is None else target)]
    starts = range(0, 17 - window - horizon + 1, stride)
    assert x.shape == (len(starts), window, 3)
    assert y.shape == (len(starts), horizon, wanted.shape[1])
    for i, start in enumerate(starts):
        end = start + window
        np.testing.assert_array_equal(x[i], series[start:end])
        np.testing.assert_array_equal(y[i], wanted[end : end + horizon])


def test_windows_are_read_only_views(rng: Rng) -> None:
    series = rng.normal(size=(10, 3)).astype(np.float32)
    for target in (None, 1):
        x, y = sliding_windows(series, 4, target=target)
        for view in (x, y):
            assert np.shares_memory(view, series)
            assert not view.flags.writeable
            assert view.dtype == np.float32
    assert not np.shares_memory(sliding_windows(series, 4, target=[1])[1], series)


def test_windows_of_one_feature() -> None:
    x, y = sliding_windows(np.arange(4), 3)
    assert (x.shape, y.shape) == ((1, 3, 1), (1, 1, 1))  # just long enough
    assert y.item() == 3


WINDOW_ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        np.zeros(4),
        {"window": 3, "horizon": 2},
        ValueError,
        "series: expected at least 5 steps (a window of 3 and a horizon of 2), got 4",
    ),
    (
        np.zeros((2, 2, 2)),
        {},
        ValueError,
        "series: expected numbers (N,) or (N, F), got (2, 2, 2) float64",
    ),
    ("abc", {}, TypeError, "series: expected numbers (N,) or (N, F), got () <U3"),
    (np.zeros(9), {"window": 0}, ValueError, "window: expected an integer >= 1, got 0"),
    (np.zeros(9), {"horizon": 0}, ValueError, "horizon: expected an integer >= 1, got 0"),
    (np.zeros(9), {"stride": 1.0}, TypeError, "stride: expected an integer >= 1, got 1.0"),
    (np.zeros((9, 2)), {"target": 2}, ValueError, "target: expected an integer in [-2, 2), got 2"),
    (
        np.zeros((9, 2)),
        {"target": [0, -3]},
        ValueError,
        "target: expected an integer in [-2, 2), got -3",
    ),
    (np.zeros((9, 2)), {"target": []}, ValueError, "target: expected at least 1 column, got none"),
    (np.zeros((9, 2)), {"target": True}, TypeError, "target: expected an integer in [-2, 2)"),
    (np.zeros((9, 2)), {"target": 0.5}, TypeError, "target: expected an iterable, got float"),
]


@pytest.mark.parametrize(("series", "options", "kind", "message"), WINDOW_ERRORS)
def test_window_errors(
    series: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        sliding_windows(series, **({"window": 3} | options))
    assert message in str(error.value)


@pytest.mark.parametrize("shape", [(), (4,), (5, 3), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool])
def test_one_hot(shape: tuple[int, ...], dtype: Any, rng: Rng) -> None:
    ids = rng.integers(6, size=shape)
    vectors = one_hot(ids, 6, dtype)
    assert vectors.dtype == dtype
    np.testing.assert_array_equal(vectors, np.eye(6)[ids])


def test_one_hot_classes() -> None:
    assert one_hot([[0, 3]]).shape == (1, 2, 4)
    assert one_hot([], 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("ids", "options", "kind", "message"),
    [
        ([0, 3], {"classes": 3}, ValueError, "ids: expected integers in [0, 3), got 3"),
        ([0, -1], {}, ValueError, "ids: expected integers in [0, 1), got -1"),
        ([0.0], {}, TypeError, "ids: expected integers, got (1,) float64"),
        ([True], {}, TypeError, "ids: expected integers, got (1,) bool"),
        ([], {}, ValueError, "classes: expected an integer as there are no ids, got None"),
        ([0], {"classes": 0}, ValueError, "classes: expected an integer >= 1, got 0"),
        ([0], {"dtype": object}, TypeError, "dtype: expected a dtype of bools, integers or floats"),
    ],
)
def test_one_hot_errors(
    ids: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        one_hot(ids, **options)
    assert message in str(error.value)


def test_vocabulary_order(rng: Rng) -> None:
    sequences = ["".join(rng.choice(list("abcdefgh"), 20)) for _ in range(5)]
    counts = Counter("".join(sequences))
    expected = sorted(counts, key=lambda token: (-counts[token], token))
    assert len(set(counts.values())) < len(counts)  # there are ties
    for order in (sequences, sequences[::-1], (s for s in sequences)):
        vocabulary = Vocabulary(order, special=["<s>", "</s>"])
        assert vocabulary.tokens == ("<pad>", "<unk>", "<s>", "</s>", *expected)
    assert list(vocabulary) == list(vocabulary.tokens)
    assert len(vocabulary) == len(expected) + 4
    assert [vocabulary[token] for token in vocabulary] == list(range(len(vocabulary)))
    rebuilt = Vocabulary(padding=None, unknown=None, special=vocabulary.tokens)
    assert rebuilt.tokens == vocabulary.tokens
    assert pickle.loads(pickle.dumps(vocabulary))["a"] == vocabulary["a"]


def test_vocabulary_bounds() -> None:
    sequences = [[7] * 3, [5] * 3, [9] * 2, [1]]
    assert Vocabulary(sequences).tokens[2:] == (5, 7, 9, 1)
    assert Vocabulary(sequences, min_count=2).tokens[2:] == (5, 7, 9)
    assert Vocabulary(sequences, max_size=3).tokens == ("<pad>", "<unk>", 5)
    assert Vocabulary(sequences, max_size=2).tokens == ("<pad>", "<unk>")
    assert Vocabulary(sequences, max_size=99).tokens[2:] == (5, 7, 9, 1)


def test_vocabulary_encodes_and_decodes() -> None:
    vocabulary = Vocabulary([["to", "be", "to"]])
    ids = vocabulary.encode(["be", "to", "see"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [3, 2, 1]
    assert vocabulary.decode([*ids, 0, 0]) == ["be", "to", "<unk>"]
    assert vocabulary.encode([]).dtype == np.int64
    assert vocabulary.decode([]) == []
    assert "be" in vocabulary
    assert "see" not in vocabulary
    assert Vocabulary(["<unk>", ["<pad>", "<unk>"]])["<unk>"] == 1  # one id for each
    assert repr(vocabulary) == "<Vocabulary of 4 tokens>"


def test_vocabulary_without_padding_or_unknown() -> None:
    vocabulary = Vocabulary(["aab"], padding=None, unknown=None)
    assert vocabulary.tokens == ("a", "b")
    assert vocabulary.decode([0, 1, 0]) == ["a", "b", "a"]
    with pytest.raises(ValueError, match="token: expected one of the vocabulary, got 'c'"):
        vocabulary.encode("abc")
    assert Vocabulary(["a"], padding=None).tokens == ("<unk>", "a")
    assert Vocabulary(["a"], unknown=None).tokens == ("<pad>", "a")


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ([5], {}, TypeError, "sequences: expected an iterable, got int"),
        ([["a", 5]], {}, TypeError, "sequences[1]: expected an iterable, got int"),
        ([[[["a"]]]], {}, TypeError, "sequences[0]: expected tokens that can be hashed: unhash"),
        ([[["a", 5]]], {}, TypeError, "sequences: expected tokens that can be sorted: '<' not"),
        ([], {"max_size": 1}, ValueError, "max_size: expected an integer >= 2, got 1"),
        ([], {"min_count": 0}, ValueError, "min_count: expected an integer >= 1, got 0"),
        ([], {"special": "<s>"}, TypeError, "special: expected an iterable of tokens, got '<s>'"),
        ([], {"special": ["<unk>"]}, ValueError, "unknown, got '<unk>' twice"),
        ([], {"padding": "<unk>"}, ValueError, "unknown, got '<unk>' twice"),
    ],
)
def test_vocabulary_errors(
    arguments: list[Any], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        Vocabulary(*arguments, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("ids", "kind", "message"),
    [
        ([3], ValueError, "ids: expected integers in [0, 3), got 3"),
        ([-1], ValueError, "ids: expected integers in [0, 3), got -1"),
        ([[0]], ValueError, "ids: expected integers (T,), got (1, 1) int64"),
        ([0.5], TypeError, "ids: expected integers, got (1,) float64"),
    ],
)
def test_decode_errors(ids: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        Vocabulary(["a"]).decode(ids)
    assert message in str(error.value)


def test_encode_errors() -> None:
    with pytest.raises(TypeError, match="tokens: expected an iterable, got int"):
        Vocabulary(["a"]).encode(5)  # type: ignore[arg-type]
