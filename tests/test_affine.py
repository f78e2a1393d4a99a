"""The affine map under Dense and Attention: values, bits, wrong calls."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import functional
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
# (rows, columns, units): around vectors, tiles, blocks of rows and chunks, and nothing at all.
SHAPES = [
    (1, 1, 1),
    (5, 3, 7),
    (63, 16, 15),
    (64, 17, 16),
    (65, 15, 17),
    (130, 33, 95),
    (200, 130, 64),
    (777, 33, 257),
    (1100, 5, 40),
    (20, 1500, 3),
    (3, 0, 4),
    (0, 5, 4),
    (4, 5, 0),
]
DTYPES = (np.float32, np.float64)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def draw(shape: tuple[int, int, int], dtype: Any, rng: Rng) -> tuple[Array, Array, Array, Array]:
    rows, columns, units = shape
    sizes = ((rows, columns), (units, columns), (units,), (rows, units))
    x, weight, bias, grad = (rng.normal(size=size).astype(dtype) for size in sizes)
    return x, weight, bias, grad


def exact(a: Array, b: Array) -> Array:
    return a.astype(np.longdouble) @ b.astype(np.longdouble)


def assert_close(result: Array, expected: Array, terms: int) -> None:
    assert result.shape == expected.shape
    # A chain of n roundings of values of size up to sqrt(n), with room for the largest of many.
    bound = 8 * np.finfo(result.dtype).eps * max(terms, 1)
    assert np.max(np.abs(result - expected), initial=0) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@every_shape
def test_values(shape: tuple[int, int, int], dtype: Any, rng: Rng) -> None:
    x, weight, bias, grad = draw(shape, dtype, rng)
    rows, columns, units = shape
    assert_close(functional.affine(x, weight, bias), exact(x, weight.T) + bias, columns)
    assert_close(functional.affine(x, weight, None), exact(x, weight.T), columns)
    for wants_input in (True, False):
        for wants_bias in (True, False):
            found = functional.affine_backward(x, weight, grad, wants_input, wants_bias)
            grad_x, grad_weight, grad_bias = found
            assert_close(grad_weight, exact(grad.T, x), rows)
            assert (grad_x is None) is not wants_input
            assert (grad_bias is None) is not wants_bias
            if grad_x is not None:
                assert_close(grad_x, exact(grad, weight), units)
            if grad_bias is not None:
                assert_close(grad_bias, grad.astype(np.longdouble).sum(axis=0), rows)


@every_shape
def test_no_bit_depends_on_threads_or_other_rows(shape: tuple[int, int, int], rng: Rng) -> None:
    x, weight, bias, grad = draw(shape, np.float32, rng)

    def run() -> list[bytes]:
        y = functional.affine(x, weight, bias)
        return [
            a.tobytes()
            for a in (y, *functional.affine_backward(x, weight, grad, True, True))
            if a is not None
        ]

    fastrnn.set_num_threads(1)
    expected = run()
    for threads in (2, 3, 5):
        fastrnn.set_num_threads(threads)
        assert run() == expected
    y = functional.affine(x, weight, bias)
    grad_x = functional.affine_backward(x, weight, grad, True, True)[0]
    assert grad_x is not None
    for row in range(0, shape[0], 37):
        part = slice(row, row + 1)
        np.testing.assert_array_equal(functional.affine(x[part], weight, bias), y[part])
        alone = functional.affine_backward(x[part], weight, grad[part], True, True)[0]
        np.testing.assert_array_equal(alone, grad_x[part])


def test_what_is_not_finite_passes_through() -> None:
    x = np.ones((9, 20), np.float32)
    x[3, 19] = np.nan
    x[5, 0] = np.inf
    weight, bias = np.ones((33, 20), np.float32), np.zeros(33, np.float32)
    y = functional.affine(x, weight, bias)
    assert np.all(np.isnan(y[3]))
    assert np.all(y[5] == np.inf)
    assert np.all(y[[0, 1, 2, 4, 6, 7, 8]] == 20)
    # What pads vectors inside must not meet them: 0 times infinity is NaN.
    grad = np.full((9, 33), np.inf, np.float32)
    grad_x, grad_weight, _ = functional.affine_backward(x[:2], weight, grad[:2], True, True)
    assert grad_x is not None
    assert np.all(grad_x == np.inf)
    assert np.all(grad_weight == np.inf)


@pytest.mark.parametrize("isa", functional.config()["isas"])
def test_every_instruction_set(isa: str) -> None:
    code = """
import numpy as np
from test_affine import SHAPES, test_values
for shape in SHAPES:
    for dtype in (np.float32, np.float64):
        test_values(shape, dtype, np.random.default_rng(0))
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "FASTRNN_ISA": isa,
            "PYTHONPATH": ":".join([str(__file__).rpartition("/")[0], *sys.path]),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.stdout == "done\n", result.stderr


def test_wrong_calls() -> None:
    x, weight, bias = np.ones((4, 3)), np.ones((2, 3)), np.ones(2)
    calls: list[tuple[Any, type[Exception], str]] = [
        (
            lambda: functional.affine(x[:, :2], weight, bias),
            ValueError,
            r"x: expected \(rows, 3\) float64, got",
        ),
        (lambda: functional.affine(x.T, weight, bias), ValueError, r"x: expected \(rows, 3\)"),
        (lambda: functional.affine(x[0], weight, bias), ValueError, r"x: expected \(rows, 3\)"),
        (
            lambda: functional.affine(x, weight, x),
            ValueError,
            r"bias: expected \(2,\) float64, got",
        ),
        (
            lambda: functional.affine(x.astype(np.float32), weight, bias),
            TypeError,
            r"x: expected \(rows, 3\) float64, got \(4, 3\) float32",
        ),
        (
            lambda: functional.affine(x.astype(int), weight.astype(int), bias),
            TypeError,
            r"weight: expected \(units, columns\) float32, got \(2, 3\) int64",
        ),
        (
            lambda: functional.affine_backward(x, weight, x, True, True),
            ValueError,
            r"grad: expected \(4, 2\) float64, got \(4, 3\)",
        ),
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=message):
            call()
