"""The data of a fit or a prediction, cut into batches.

People give samples first: arrays (n, T, F), ids (n, T), rows (n, F), or lists of (T_i, F) or (T_i,)
arrays. A network reads batches that are time-major and no longer than their longest sequence.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional, losses
from fastrnn.layers import valid_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from fastrnn.functional import FloatArray
    from fastrnn.layer import Shape

__all__ = ["Batch", "Samples", "align", "time_major", "windows"]

# Batches that are shuffled together before they are sorted by length: enough for little padding,
# few enough for other batches in every epoch.
_BATCHES_PER_BUCKET = 50


class Batch(NamedTuple):
    """Some samples, ready for a network.

    Attributes
    ----------
    x : ndarray
        (T, B, F), ids (T, B), or (B, F).
    lengths : ndarray of int64 (B,) or None
        Valid steps of each row of `x`.
    y : ndarray or None
        Targets, samples first; of ragged ones padded by 0.
    y_lengths : ndarray of int64 (B,) or None
        Valid steps of ragged targets.
    sample_weight : ndarray or None
        (B,) or (B, T), samples first.
    size : int
        Number of samples B.
    steps : int
        Steps of the longest input of all batches: targets of an array have so many.
    """

    x: NDArray[Any]
    lengths: NDArray[np.int64] | None
    y: NDArray[Any] | None
    y_lengths: NDArray[np.int64] | None
    sample_weight: NDArray[Any] | None
    size: int
    steps: int


class _Ragged:
    """Sequences (T_i, ...) of different lengths."""

    def __init__(self, name: str, arrays: list[NDArray[Any]]) -> None:
        self.arrays = arrays
        self.lengths = np.array([len(array) for array in arrays], np.int64)
        shapes = {array.shape[1:] for array in arrays}
        if len(shapes) > 1:
            raise ValueError(
                f"{name}: expected sequences with equal features, got {sorted(shapes)}"
            )
        self.shape = shapes.pop() if shapes else ()
        self.dtype = np.result_type(*arrays) if arrays else np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.arrays)

    def pad(self, rows: NDArray[np.intp], dtype: Any) -> NDArray[Any]:
        """Return rows as (T, B, ...), 0 past their lengths."""
        T = int(self.lengths[rows].max(initial=0))
        padded = np.zeros((T, len(rows), *self.shape), dtype)
        for b, row in enumerate(rows):
            padded[: self.lengths[row], b] = self.arrays[row]
        return padded


def time_major(array: NDArray[Any]) -> NDArray[Any]:
    """View (n, T, ...) as (T, n, ...), and back."""
    return array.swapaxes(0, 1)


def _is_ragged(value: Any) -> bool:
    """Tell sequences of their own from what is one array."""
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind == "O")
    if not isinstance(value, (list, tuple)) or not value:
        return False
    if any(hasattr(item, "__array__") and getattr(item, "ndim", 0) for item in value):
        return True
    if not any(isinstance(item, (list, tuple)) for item in value):
        return False
    sizes = {len(item) if isinstance(item, (list, tuple)) else -1 for item in value}
    return len(sizes) > 1


def _read(name: str, value: Any) -> NDArray[Any] | _Ragged:
    if _is_ragged(value):
        arrays = [functional.listed(name, "sequences", item) for item in value]
        for array in arrays:
            if array.ndim == 0:
                raise ValueError(f"{name}: expected sequences only, got the number {array[()]}")
        # A list of no steps has neither features nor a type to show.
        known = [array for array in arrays if array.size] or [a for a in arrays if a.ndim > 1]
        features = known[0].shape[1:] if known else ()
        return _Ragged(name, [a if a.size else np.zeros((0, *features), np.int8) for a in arrays])
    array = functional.listed(name, "an array with samples first", value)
    if array.ndim == 0:
        raise ValueError(f"{name}: expected an array with samples first, got {value!r}")
    return array


class Samples:
    """Inputs and what belongs to them, of n samples.

    Parameters
    ----------
    x : array (n, T, F), (n, T), (n, F), or list of arrays (T_i, F) or (T_i,)
        Inputs.
    y : array (n, ...) or list of arrays (T_i, ...), optional
        Targets.
    lengths : integers (n,), optional
        Valid steps of each row of an array.
    sample_weight : array (n,) or (n, T), optional
        Weights.
    reads_ids : bool
        Whether the network begins with a table of ids.
    dtype : dtype
        Of the network.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        lengths: ArrayLike | None = None,
        sample_weight: Any = None,
        reads_ids: bool,
        dtype: np.dtype[np.floating[Any]],
    ) -> None:
        self._x = _read("x", x)
        self._dtype: Any = np.dtype(np.int64) if reads_ids else dtype
        self._check_x(reads_ids)
        self._y = None if y is None else _read("y", y)
        self._sample_weight = None
        if sample_weight is not None:
            self._sample_weight = functional.listed("sample_weight", "numbers (n,)", sample_weight)
        for name, array in (("y", self._y), ("sample_weight", self._sample_weight)):
            if array is not None and (getattr(array, "ndim", 1) == 0 or len(array) != len(self)):
                got = len(array) if getattr(array, "ndim", 1) else array
                raise ValueError(f"{name}: expected {len(self)} samples as x, got {got}")
        self.lengths = self._read_lengths(lengths)
        #: Steps of the longest input, 0 without steps.
        self.steps = 0
        if isinstance(self._x, _Ragged):
            self.steps = int(self._x.lengths.max(initial=0))
        elif self.has_steps:
            self.steps = int(self._x.shape[1])

    def _check_x(self, reads_ids: bool) -> None:
        x = self._x
        if isinstance(x, _Ragged):
            shape, axes, size = f"{len(x)} sequences", 2 + len(x.shape), int(x.lengths.sum())
        else:
            shape, axes, size = str(x.shape), x.ndim, x.size
        if reads_ids:
            kinds, expected, fits = "iu", "integer ids (n, T)", axes == 2
        else:
            kinds, expected, fits = "iufb", "numbers (n, T, F) or (n, F)", axes >= 2
        if x.dtype.kind not in kinds and size:
            raise TypeError(f"x: expected {expected}, got {shape} {x.dtype}")
        if not fits:
            raise ValueError(f"x: expected {expected}, got {shape} {x.dtype}")
        if isinstance(x, _Ragged) and not reads_ids and axes == 2:
            x.arrays = [array[:, np.newaxis] for array in x.arrays]  # of one feature
            x.shape = (1,)
        self.has_steps = isinstance(x, _Ragged) or reads_ids or axes == 3

    def _read_lengths(self, lengths: ArrayLike | None) -> NDArray[np.int64] | None:
        if isinstance(self._x, _Ragged):
            if lengths is not None:
                raise ValueError(
                    "lengths: expected None for a list of sequences, which has its own"
                )
            return self._x.lengths
        if lengths is None:
            return None
        if not self.has_steps:
            raise ValueError(f"lengths: expected None for x {self._x.shape}, which has no steps")
        array = functional.integer_lengths(lengths)
        T = self._x.shape[1]
        if array.shape != (len(self),):
            raise ValueError(f"lengths: expected integers ({len(self)},), got {array.shape}")
        wrong = array[(array < 0) | (array > T)]
        if wrong.size:
            raise ValueError(f"lengths: expected integers in [0, {T}], got {wrong[0]}")
        return array

    def __len__(self) -> int:
        return len(self._x)

    @property
    def is_ragged(self) -> bool:
        """Whether the inputs were given as a list of sequences."""
        return isinstance(self._x, _Ragged)

    def fingerprint(self) -> int:
        """Return a number that tells other data apart, most of the time, from a few samples."""
        some = np.unique(np.linspace(0, len(self) - 1, 16).astype(np.intp))
        batch = self.batch(some[: len(self)])
        arrays = (batch.x, batch.y, batch.lengths, batch.sample_weight)
        total = 0
        for array in arrays:
            if array is not None:
                total = zlib.crc32(np.ascontiguousarray(array).tobytes(), total)
        return total

    def padded(self) -> NDArray[Any]:
        """Return all inputs time-major."""
        return self.batch(np.arange(len(self))).x

    def batch(self, rows: NDArray[np.intp]) -> Batch:
        """Return the batch of some samples."""
        lengths = None if self.lengths is None else self.lengths[rows]
        steps = slice(None) if lengths is None else slice(int(lengths.max(initial=0)))
        x: NDArray[Any]
        if isinstance(self._x, _Ragged):
            x = self._convert(self._x.pad(rows, self._x.dtype))
        elif self.has_steps:
            x = self._convert(time_major(self._x)[steps, rows])
        else:
            x = self._convert(self._x[rows])
        y, y_lengths = None, None
        if isinstance(self._y, _Ragged):
            y = time_major(self._y.pad(rows, self._y.dtype))
            if np.any(self._y.lengths != self._y.lengths[0]):
                y_lengths = self._y.lengths[rows]
        elif self._y is not None:
            y = self._y[rows]
        weight = None if self._sample_weight is None else self._sample_weight[rows]
        return Batch(x, lengths, y, y_lengths, weight, len(rows), self.steps)

    def _convert(self, x: NDArray[Any]) -> NDArray[Any]:
        try:
            with np.errstate(over="raise"):
                return x.astype(self._dtype, copy=False)
        except FloatingPointError:
            raise ValueError(
                f"x: expected numbers that fit {self._dtype}, got larger ones"
            ) from None

    def fit_to(self, shape: Shape | None) -> None:
        """Check the inputs against the shape that a network reads, such as ("T", "B", 8)."""
        if shape is None or len(shape) < 2 or not isinstance(shape[-1], int):
            return
        F, x = shape[-1], self._x
        wants_steps = shape[0] == "T"
        if not isinstance(x, _Ragged) and wants_steps and F == 1 and x.ndim == 2:
            self._x = x = x[:, :, np.newaxis]  # series of one feature
            self.has_steps, self.steps = True, x.shape[1]
        features = x.shape[-1] if x.shape else None
        if features != F or (wants_steps and not self.has_steps):
            wanted = f"(n, T, {F})" if wants_steps else f"(n, {F}) or (n, T, {F})"
            got = f"sequences (T_i, {features})" if isinstance(x, _Ragged) else x.shape
            raise ValueError(f"x: expected {wanted}, got {got} {x.dtype}")

    def split(self, fraction: float) -> tuple[Self, Self]:
        """Return all but the last part of the samples, and that part."""
        n = len(self) - round(fraction * len(self))
        if not 0 < n < len(self):
            raise ValueError(
                f"validation_split: expected a part of {len(self)} samples that leaves some on"
                f" either side, got {fraction}"
            )
        return self._part(slice(n)), self._part(slice(n, None))

    def _part(self, rows: slice) -> Self:
        part = object.__new__(type(self))
        vars(part).update(vars(self))
        for name in ("_x", "_y", "_sample_weight", "lengths"):
            value = getattr(self, name)
            if isinstance(value, _Ragged):
                ragged = object.__new__(_Ragged)
                vars(ragged).update(vars(value))
                ragged.arrays, ragged.lengths = value.arrays[rows], value.lengths[rows]
                value = ragged
            elif value is not None:
                value = value[rows]
            setattr(part, name, value)
        return part

    def in_order(self, batch_size: int) -> list[NDArray[np.intp]]:
        """Return the rows of each batch for a pass whose order does not matter: by length."""
        order = np.arange(len(self))
        if self.lengths is not None:
            order = np.argsort(self.lengths, kind="stable")
        return _cut(order, batch_size)

    def shuffled(
        self, batch_size: int, generator: np.random.Generator | None, bucketing: bool
    ) -> list[NDArray[np.intp]]:
        """Return the rows of each batch of an epoch.

        Parameters
        ----------
        batch_size : int
            Samples of a batch; the last may have fewer.
        generator : numpy.random.Generator or None
            Source of the order; None keeps it.
        bucketing : bool
            Whether sequences of similar length come together.

        Returns
        -------
        list of ndarray
            Rows of each batch.
        """
        if generator is None:
            return _cut(np.arange(len(self)), batch_size)
        order = generator.permutation(len(self))
        if not bucketing or self.lengths is None:
            return _cut(order, batch_size)
        batches: list[NDArray[np.intp]] = []
        for bucket in _cut(order, _BATCHES_PER_BUCKET * batch_size):
            by_length = bucket[np.argsort(self.lengths[bucket], kind="stable")]
            batches += _cut(by_length, batch_size)
        return [batches[i] for i in generator.permutation(len(batches))]


def _cut(order: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def windows(batch: Batch, k: int | None) -> Iterator[tuple[Batch, list[Any]]]:
    """Cut a batch into windows of k steps, with a list that carries the state between them."""
    state: list[Any] = [None]
    if k is None:
        yield batch, state
        return
    T = len(batch.x)
    for start in range(0, T, k):
        steps = slice(start, min(start + k, T))
        lengths = None
        if batch.lengths is not None:
            lengths = np.clip(batch.lengths - start, 0, steps.stop - start)
        y, weight = batch.y, batch.sample_weight
        yield (
            batch._replace(
                x=batch.x[steps],
                lengths=lengths,
                y=y if y is None or y.ndim < 2 else y[:, steps],
                y_lengths=(
                    None
                    if batch.y_lengths is None
                    else np.clip(batch.y_lengths - start, 0, steps.stop - start)
                ),
                steps=steps.stop - start,
                sample_weight=weight if weight is None or weight.ndim < 2 else weight[:, steps],
            ),
            state,
        )


def align(
    batch: Batch, prediction: FloatArray, lengths: NDArray[Any] | None, loss: Any
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[Any] | None]:
    """Lay targets and weights out as a prediction, or raise an error that names the culprit.

    Parameters
    ----------
    batch : Batch
        Which has the targets.
    prediction : ndarray (T, B, n) or (B, n)
        Output of the model.
    lengths : integers (B,) or None
        Its valid steps.
    loss : Loss or callable
        Which tells whether targets are classes.

    Returns
    -------
    target, mask, sample_weight
        As in `fastrnn.trainer.Pass`.
    """
    y, weight = batch.y, batch.sample_weight
    assert y is not None
    mask = None
    if prediction.ndim == 3:
        T = len(prediction)
        # Batches are as long as their longest sequence, the targets of an array are not.
        given = batch.steps if lengths is not None and len(batch.x) == T else T
        if y.ndim < 2 or (y.shape[1] != given and batch.y_lengths is None):
            raise ValueError(
                f"y: expected {given} steps, (n, {given}) or (n, {given}, k), as the model has an"
                f" output at every step, got (n, {', '.join(map(str, y.shape[1:]))})"
            )
        if batch.y_lengths is not None and np.any(
            batch.y_lengths != (T if lengths is None else lengths)
        ):
            raise ValueError("y: expected sequences as long as those of x, got other lengths")
        y = time_major(y)[:T]
        if weight is not None and weight.ndim > 1:
            if weight.shape[1] != given:
                raise ValueError(
                    f"sample_weight: expected numbers (n,) or (n, {given}), got"
                    f" (n, {', '.join(map(str, weight.shape[1:]))})"
                )
            weight = time_major(weight)[:T]
        mask = None if lengths is None else valid_steps(T, lengths)
    elif batch.y_lengths is not None:
        raise ValueError(
            "y: expected an array, as the model has one output per sequence, got sequences of"
            " different lengths"
        )
    if prediction.ndim == 4 and isinstance(loss, losses.CrossEntropy):
        raise ValueError(
            "loss: expected one of elements for a model that gives images, whose last axis is no"
            " axis of classes, got CrossEntropy"
        )
    if prediction.ndim == 4 and weight is not None:
        if weight.ndim > 1:
            raise ValueError(f"sample_weight: expected numbers (n,) for images, got {weight.shape}")
        weight = weight[:, np.newaxis, np.newaxis]
    is_elementwise = isinstance(loss, losses.Loss) and not isinstance(loss, losses.CrossEntropy)
    if is_elementwise and prediction.shape[-1] == 1 and y.ndim == prediction.ndim - 1:
        y = y[..., np.newaxis]
    return y, mask, weight
