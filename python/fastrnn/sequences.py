"""Data made ready for a network: padding, windows of a series, one-hot vectors, vocabularies.

Letters: n sequences, T steps of the longest one, F features of a step, N steps of a series. Data
are laid out as `fit` takes them, the samples first: (n, T, F).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from fastrnn.functional import SupportsArray

__all__ = ["Vocabulary", "one_hot", "pad_sequences", "sliding_windows"]

_ENDS = ("pre", "post")


def _dtype(name: str, value: DTypeLike) -> np.dtype[Any]:
    """Return a dtype of bools, integers or floats, or raise an error that names the argument."""
    expected = "expected a dtype of bools, integers or floats"
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name}: {expected}, got {value!r}") from None
    if dtype.kind not in "biuf":
        raise TypeError(f"{name}: {expected}, got {dtype}")
    return dtype


def _iterator(name: str, value: Any) -> Iterator[Any]:
    """Return the iterator of an iterable, or raise an error that names the argument."""
    try:
        return iter(value)
    except TypeError:
        raise TypeError(f"{name}: expected an iterable, got {type(value).__name__}") from None


def _convert(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert numbers, but raise an error where integers or bools would not hold them."""
    with np.errstate(invalid="ignore"):  # NaN as an integer, which the comparison finds
        converted = array.astype(dtype, copy=False)
    if dtype.kind != "f":
        wrong = array[converted != array]  # 1-D, of a number, too
        if wrong.size:
            raise ValueError(f"{name}: expected numbers that {dtype} can hold, got {wrong[0]}")
    return converted


def _read_number(name: str, value: Any) -> NDArray[Any]:
    number = np.asarray(functional.listed(name, "a number", value))
    if number.shape != () or number.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return number


def _read_sequences(sequences: Any) -> list[NDArray[Any] | None]:
    """Return the arrays of sequences that all have the same features; None stands for []."""
    arrays: list[NDArray[Any] | None] = []
    features: tuple[int, ...] | None = None
    for i, given in enumerate(_iterator("sequences", sequences)):
        name = f"sequences[{i}]"
        array = np.asarray(functional.listed(name, "numbers (T,) or (T, F)", given))
        if array.shape == (0,) and not hasattr(given, "dtype"):
            arrays.append(None)  # neither a dtype nor features to show
            continue
        error: type[Exception] | None = None
        if array.dtype.kind not in "biuf":
            error = TypeError
        elif array.ndim == 0 or features not in (None, array.shape[1:]):
            error = ValueError
        if error:
            expected = "(T,) or (T, F)"
            if features is not None:
                expected = f"({', '.join(['T', *map(str, features)])}{'' if features else ','})"
            raise error(f"{name}: expected numbers {expected}, got {array.shape} {array.dtype}")
        features = array.shape[1:]
        arrays.append(array)
    if not arrays:
        raise ValueError("sequences: expected at least 1 sequence, got 0")
    return arrays


def pad_sequences(
    sequences: Iterable[ArrayLike | SupportsArray],
    steps: int | None = None,
    *,
    padding: str = "post",
    truncating: str = "post",
    value: float = 0,
    dtype: DTypeLike | None = None,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Put sequences of several lengths into one array.

    Parameters
    ----------
    sequences : iterable of n arrays or lists
        Numbers or bools, (T_i,) or (T_i, F) with one F; T_i may be 0.
    steps : int, optional
        T, to which all are padded or truncated. The longest one by default.
    padding : {"post", "pre"}, default "post"
        Whether values are added after or before a sequence. Lengths, as layers take them, are those
        of sequences that are padded after their steps.
    truncating : {"post", "pre"}, default "post"
        Whether the last or the first steps of a sequence longer than `steps` are dropped.
    value : float, default 0
        What is added.
    dtype : dtype, optional
        Of the result; one that holds all sequences by default.

    Returns
    -------
    padded : ndarray (n, T) or (n, T, F)
        The sequences.
    lengths : ndarray of int64 (n,)
        How many steps of each are in it.

    Raises
    ------
    ValueError
        If the features differ, or `dtype` is of integers or bools that do not hold the numbers.

    Examples
    --------
    >>> padded, lengths = pad_sequences([[1, 2], [], [3, 4, 5]])
    >>> padded.tolist(), lengths.tolist()
    ([[1, 2, 0], [0, 0, 0], [3, 4, 5]], [2, 0, 3])
    >>> pad_sequences([[1, 2], [3, 4, 5]], 2, truncating="pre")[0].tolist()
    [[1, 2], [4, 5]]
    """
    before = functional.choice("padding", padding, _ENDS) == "pre"
    drop_first = functional.choice("truncating", truncating, _ENDS) == "pre"
    arrays = _read_sequences(sequences)
    known = [array for array in arrays if array is not None]
    sizes = [0 if array is None else len(array) for array in arrays]
    T = max(sizes) if steps is None else functional.integer("steps", steps, 0)
    if dtype is not None:
        result_type = _dtype("dtype", dtype)
    else:
        result_type = np.result_type(*{array.dtype for array in known} or {np.dtype(np.float64)})
    filling = _convert("value", _read_number("value", value), result_type)

    features = known[0].shape[1:] if known else ()
    padded = np.full((len(arrays), T, *features), filling, result_type)
    lengths = np.minimum(np.array(sizes, np.int64), T)
    for i, (array, length) in enumerate(zip(arrays, lengths.tolist(), strict=True)):
        if array is None:
            continue
        kept = array[len(array) - length :] if drop_first else array[:length]
        start = T - length if before else 0
        padded[i, start : start + length] = _convert(f"sequences[{i}]", kept, result_type)
    return padded, lengths


def _columns(series: NDArray[Any], target: int | Sequence[int] | None) -> NDArray[Any]:
    """Return columns of a series (N, F) as (N, F_target), as a view unless they are a list."""
    if target is None:
        return series
    F = series.shape[1]
    if isinstance(target, (int, np.integer)):
        first = functional.integer("target", target, -F, F) % F
        return series[:, first : first + 1]
    chosen = [functional.integer("target", column, -F, F) for column in _iterator("target", target)]
    if not chosen:
        raise ValueError("target: expected at least 1 column, got none")
    return series[:, chosen]


def sliding_windows(
    series: ArrayLike | SupportsArray,
    window: int,
    *,
    horizon: int = 1,
    stride: int = 1,
    target: int | Sequence[int] | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cut a series into windows and the steps that follow each.

    Parameters
    ----------
    series : array or list (N,) or (N, F)
        Numbers; (N,) is read as one feature.
    window : int
        Steps that are known.
    horizon : int, default 1
        Steps after them that are to be predicted.
    stride : int, default 1
        Steps from one window to the next.
    target : int or list of int, optional
        Features that are to be predicted; all by default. Negative ones count from the last.

    Returns
    -------
    x : ndarray (n, window, F)
        Windows, where n = (N - window - horizon) // stride + 1.
    y : ndarray (n, horizon, F_target)
        What follows each.

    Raises
    ------
    ValueError
        If the series is too short for one window and what follows it.

    Notes
    -----
    Both are read-only views: no window is copied. `x` refers to `series` if that is an array, and
    so does `y` unless `target` is a list, whose columns are copied once.

    Examples
    --------
    >>> x, y = sliding_windows([0, 1, 2, 3, 4, 5], 3, horizon=2)
    >>> x[..., 0].tolist(), y[..., 0].tolist()
    ([[0, 1, 2], [1, 2, 3]], [[3, 4], [4, 5]])
    """
    expected = "numbers (N,) or (N, F)"
    values = np.asarray(functional.listed("series", expected, series))
    if values.dtype.kind not in "biuf":
        raise TypeError(f"series: expected {expected}, got {values.shape} {values.dtype}")
    if values.ndim not in (1, 2):
        raise ValueError(f"series: expected {expected}, got {values.shape} {values.dtype}")
    if values.ndim == 1:
        values = values[:, np.newaxis]
    window = functional.integer("window", window, 1)
    horizon = functional.integer("horizon", horizon, 1)
    stride = functional.integer("stride", stride, 1)
    wanted = _columns(values, target)
    if len(values) < window + horizon:
        raise ValueError(
            f"series: expected at least {window + horizon} steps (a window of {window} and a"
            f" horizon of {horizon}), got {len(values)}"
        )
    x = sliding_window_view(values[:-horizon], window, axis=0)
    y = sliding_window_view(wanted[window:], horizon, axis=0)
    return np.moveaxis(x, -1, 1)[::stride], np.moveaxis(y, -1, 1)[::stride]


def one_hot(
    ids: ArrayLike | SupportsArray, classes: int | None = None, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Turn ids into vectors that are 1 at the id and 0 elsewhere.

    Parameters
    ----------
    ids : array or lists of integers (...)
        Each in [0, classes).
    classes : int, optional
        Length of a vector. One more than the largest id by default, which differs from batch to
        batch.
    dtype : dtype, default float32
        Of the result.

    Returns
    -------
    ndarray (..., classes)
        Vectors.

    Examples
    --------
    >>> one_hot([2, 0], 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    array = _read_ids(ids)
    if classes is None and array.size == 0:
        raise ValueError("classes: expected an integer as there are no ids, got None")
    n = int(array.max()) + 1 if classes is None else functional.integer("classes", classes, 1)
    _check_ids(array, n)
    vectors = np.zeros((array.size, n), _dtype("dtype", dtype))
    vectors[np.arange(array.size), array.ravel()] = 1
    return vectors.reshape(*array.shape, n)


def _read_ids(ids: Any) -> NDArray[Any]:
    array = np.asarray(functional.listed("ids", "integers", ids))
    if array.size == 0 and not hasattr(ids, "dtype"):
        return array.astype(np.int64)  # an empty list has no integers to show its type by
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got {array.shape} {array.dtype}")
    return array


def _check_ids(ids: NDArray[Any], n: int) -> None:
    wrong = ids[(ids < 0) | (ids >= n)]
    if wrong.size:
        raise ValueError(f"ids: expected integers in [0, {n}), got {wrong[0]}")


class Vocabulary:
    """Tokens and their ids.

    The ids are, from 0 on: padding, unknown, the special tokens in their order, then the tokens of
    the sequences from the most to the least frequent, equally frequent ones in sorted order.

    Parameters
    ----------
    sequences : iterable of iterables of tokens, optional
        Where the tokens are counted. A str is a sequence of characters; for words give lists of
        words. Tokens are anything that can be hashed and sorted, such as str or int.
    max_size : int, optional
        Bound of the number of tokens, those that are not counted included; the least frequent ones
        are left out.
    min_count : int, default 1
        Tokens that are less frequent are left out.
    padding : token or None, default "<pad>"
        Token of padded steps, which `decode` drops. None: without one.
    unknown : token or None, default "<unk>"
        Token that stands for all that are left out. None: without one, so that they raise.
    special : iterable of tokens, default ()
        Tokens that are in it however often they occur, such as those of beginning and end.

    Attributes
    ----------
    tokens : tuple
        Token of each id.
    padding, unknown, special
        As given.

    Notes
    -----
    ``Vocabulary(padding=None, unknown=None, special=tokens)`` has the given tokens in the given
    order, for ids that were made elsewhere.

    Examples
    --------
    >>> vocabulary = Vocabulary(["to be or not to be".split()], min_count=2)
    >>> vocabulary.tokens
    ('<pad>', '<unk>', 'be', 'to')
    >>> ids = vocabulary.encode(["to", "see"])
    >>> ids, vocabulary.decode(ids)
    (array([3, 1]), ['to', '<unk>'])
    >>> Vocabulary(["abba", "a"], padding=None, unknown=None).encode("baa").tolist()
    [1, 0, 0]
    """

    def __init__(
        self,
        sequences: Iterable[Iterable[Hashable]] | None = None,
        *,
        max_size: int | None = None,
        min_count: int = 1,
        padding: Hashable | None = "<pad>",
        unknown: Hashable | None = "<unk>",
        special: Iterable[Hashable] = (),
    ) -> None:
        self.padding = padding
        self.unknown = unknown
        if isinstance(special, str):  # it would be taken for its characters
            raise TypeError(f"special: expected an iterable of tokens, got {special!r}")
        self.special = tuple(_iterator("special", special))
        first = (*(token for token in (padding, unknown) if token is not None), *self.special)
        counts = Counter(first)
        twice = [token for token, count in counts.items() if count > 1]
        if twice:
            raise ValueError(
                "special: expected tokens that differ from each other and from padding and"
                f" unknown, got {twice[0]!r} twice"
            )
        room = None
        if max_size is not None:
            room = functional.integer("max_size", max_size, len(first)) - len(first)
        least = functional.integer("min_count", min_count, 1)
        counted = _count(() if sequences is None else sequences)
        frequent = [token for token in counted if counted[token] >= least and token not in counts]
        self.tokens: tuple[Any, ...] = (*first, *_ordered(frequent, counted)[:room])
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tokens)

    def __getitem__(self, token: Hashable) -> int:
        """Return the id of a token, that of `unknown` if it has none."""
        found = self._ids.get(token)
        if found is not None:
            return found
        if self.unknown is None:
            raise ValueError(f"token: expected one of the vocabulary, got {token!r}")
        return self._ids[self.unknown]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} tokens>"

    def encode(self, tokens: Iterable[Hashable]) -> NDArray[np.int64]:
        """Return the ids of a sequence of tokens.

        Parameters
        ----------
        tokens : iterable of T tokens
            A str is a sequence of characters.

        Returns
        -------
        ndarray of int64 (T,)
            Their ids, that of `unknown` for those that have none.

        Raises
        ------
        ValueError
            If there is no `unknown`, and a token has no id.
        """
        return np.array([self[token] for token in _iterator("tokens", tokens)], np.int64)

    def decode(self, ids: ArrayLike | SupportsArray) -> list[Any]:
        """Return the tokens of ids, without padding.

        Parameters
        ----------
        ids : array or list of integers (T,)
            Each in [0, len(vocabulary)).

        Returns
        -------
        list
            Their tokens.
        """
        array = _read_ids(ids)
        if array.ndim != 1:
            raise ValueError(f"ids: expected integers (T,), got {array.shape} {array.dtype}")
        _check_ids(array, len(self))
        tokens = [self.tokens[i] for i in array.tolist()]
        if self.padding is None:
            return tokens
        return [token for token in tokens if token != self.padding]


def _count(sequences: Iterable[Iterable[Hashable]]) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for i, sequence in enumerate(_iterator("sequences", sequences)):
        tokens = list(_iterator(f"sequences[{i}]", sequence))  # a mapping is no counts
        try:
            counts.update(tokens)
        except TypeError as error:
            raise TypeError(
                f"sequences[{i}]: expected tokens that can be hashed: {error}"
            ) from None
    return counts


def _ordered(tokens: list[Any], counts: Counter[Any]) -> list[Any]:
    """Sort tokens by falling frequency, and equally frequent ones by themselves."""
    try:
        return sorted(tokens, key=lambda token: (-counts[token], token))
    except TypeError as error:
        raise TypeError(f"sequences: expected tokens that can be sorted: {error}") from None
