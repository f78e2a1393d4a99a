"""exp, sigmoid and tanh of every instruction set's lanes: at most 4 ulp from the true value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastrnn import functional
from numpy.typing import NDArray
from parity import assert_same_bits

Array = NDArray[Any]
MAX_ULP = 4
LIMITS = {  # at -inf and +inf
    "exp": (0, np.inf),
    "sigmoid": (0, 1),
    "tanh": (-1, 1),
}
TRUTH: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}
names = pytest.mark.parametrize("name", TRUTH)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def specials(dtype: Any) -> Array:
    """Zeros, subnormals, the ends of the range and of each function's interesting part."""
    info = np.finfo(dtype)
    edges = [0.0, info.smallest_subnormal, info.smallest_normal, info.eps, 0.5, 1, info.max]
    edges += [np.log(info.max), -np.log(info.smallest_normal), -np.log(info.smallest_subnormal)]
    edges += [np.log(2) / 2, 9.01, 19.06, 40, 104, 746, np.inf]
    values = np.array(edges, dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        near = [values, np.nextafter(values, dtype(0)), np.nextafter(values, dtype(np.inf))]
    values = np.concatenate(near)
    return np.concatenate([values, -values])


def error_in_ulp(name: str, x: Array) -> Array:
    """The distance from the true value, in units of the spacing of floats around it.

    Infinity counts as the number after the largest one. The truth comes from the next precision.
    """
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    assert np.finfo(wide).nmant >= np.finfo(x.dtype).nmant + 8
    actual = functional.activation(name, x)
    assert actual.dtype == x.dtype
    assert actual.shape == x.shape
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(x))
    number = ~np.isnan(x)
    beyond = 2 * wide(2) ** (np.finfo(x.dtype).maxexp - 1)
    with np.errstate(over="ignore", under="ignore"):
        truth = np.clip(TRUTH[name](x[number].astype(wide)), -beyond, beyond)
        largest = np.finfo(x.dtype).max
        spacing = np.spacing(np.minimum(np.abs(truth), largest).astype(x.dtype)).astype(wide)
        distance = np.abs(np.clip(actual[number].astype(wide), -beyond, beyond) - truth)
        return np.asarray(distance / spacing)


def assert_accurate(name: str, x: Array) -> None:
    error = error_in_ulp(name, x)
    bad = np.flatnonzero(~(error <= MAX_ULP))
    assert bad.size == 0, f"{name}({x[~np.isnan(x)][bad[0]]!r}): {error[bad[0]]:.2f} ulp"


def all_floats(step: int) -> Iterator[NDArray[np.float32]]:
    """Every `step`-th of the 2^32 bit patterns, in chunks of at most 2^21."""
    chunk = step << 21
    for start in range(0, 1 << 32, chunk):
        stop = min(start + chunk, 1 << 32)
        yield np.arange(start, stop, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


@names
def test_float32_sampled(name: str, rng: np.random.Generator) -> None:
    for x in all_floats(step=2053):  # a prime: the low bits vary too
        assert_accurate(name, x)
    assert_accurate(name, rng.uniform(-110, 110, 1 << 19).astype(np.float32))
    assert_accurate(name, rng.uniform(-1, 1, 1 << 19).astype(np.float32))
    assert_accurate(name, specials(np.float32))


@pytest.mark.slow
@names
def test_float32_sweep(name: str) -> None:
    for x in all_floats(step=1):
        assert_accurate(name, x)


@names
def test_float64_sampled(name: str, rng: np.random.Generator) -> None:
    patterns = rng.integers(0, 2**64, 1 << 17, np.uint64)
    assert_accurate(name, patterns.view(np.float64))
    for bound in (1, 40, 760):
        assert_accurate(name, rng.uniform(-bound, bound, 1 << 17))
    assert_accurate(name, specials(np.float64))


@dtypes
@names
def test_infinity_saturates_and_nan_propagates(name: str, dtype: Any) -> None:
    x = np.array([-np.inf, np.inf, np.nan], dtype)
    expected = np.array([*LIMITS[name], np.nan], dtype)
    np.testing.assert_array_equal(functional.activation(name, x), expected)


@dtypes
@names
def test_within_the_range_of_the_function(name: str, dtype: Any) -> None:
    x = np.linspace(-120, 120, 100_001).astype(dtype)
    y = functional.activation(name, x)
    low, high = LIMITS[name]
    assert y.min() >= low
    assert y.max() <= high


@dtypes
def test_tanh_is_odd(dtype: Any, rng: np.random.Generator) -> None:
    x = np.concatenate([specials(dtype), rng.uniform(-20, 20, 10_000).astype(dtype)])
    assert_same_bits(functional.activation("tanh", -x), -functional.activation("tanh", x))


@dtypes
@names
def test_every_length(name: str, dtype: Any, rng: np.random.Generator) -> None:
    """The partial vector at the end gives the bits that a whole one gives."""
    x = rng.uniform(-30, 30, 40).astype(dtype)
    whole = functional.activation(name, np.tile(x, 2))[:40]
    for length in range(41):
        assert_same_bits(functional.activation(name, x[:length]), whole[:length])


@dtypes
@names
def test_nan_stays_in_its_lane(name: str, dtype: Any) -> None:
    x = np.linspace(-3, 3, 40).astype(dtype)
    expected = functional.activation(name, x)
    for lane in range(40):
        poisoned = x.copy()
        poisoned[lane] = np.nan
        y = functional.activation(name, poisoned)
        assert np.isnan(y[lane])
        assert_same_bits(np.delete(y, lane), np.delete(expected, lane))


def test_unknown_function() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        functional.activation("nowhere", np.zeros(3, np.float32))
