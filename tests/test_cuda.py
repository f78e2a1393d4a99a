"""Layers with device="cuda" against those of the CPU: every option, on arrays of either side.

Most of this runs on a GPU or in an emulated build, where device memory is host memory; conftest.py
leaves it out elsewhere.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import cuda, cuda_engine, functional
from fastrnn.config import describe_arguments
from fastrnn.cuda import DeviceArray, to_device
from parity import (
    CELLS,
    FORMS,
    MERGES,
    Array,
    Case,
    assert_same_bits,
    draw_case,
    draw_resets,
    draw_state,
    gradient_tolerance,
    make_layer,
    map_state,
    name_gradients,
    scaled_error,
    together,
    tolerance,
)

Rng = np.random.Generator
F4 = np.float32
T, B, I, H = 6, 4, 5, 7  # noqa: E741
SIZES: dict[str, int] = {"T": T, "B": B, "input_size": I, "hidden_size": H}

cells = pytest.mark.parametrize("cell", CELLS)
emulated = functional.cuda_build() == "emulated"


# ---- arrays of other libraries -------------------------------------------------------------------


class Interface:
    """An array with nothing but the CUDA array interface, as Numba's."""

    def __init__(self, array: Any, **more: Any) -> None:
        there = array if isinstance(array, DeviceArray) else to_device(array)
        self._keep = there
        self.__cuda_array_interface__ = there.__cuda_array_interface__ | more


class Without(Interface):
    """One whose interface lacks something."""

    def __init__(self, *keys: str) -> None:
        super().__init__(np.ones(3))
        for key in keys:
            del self.__cuda_array_interface__[key]


class Packed:
    """An array with nothing but DLPack, as PyTorch's bfloat16."""

    def __init__(self, array: Any) -> None:
        self._array = array if isinstance(array, DeviceArray) else to_device(array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, *, stream: int) -> Any:  # of before versions
        assert stream == 1
        return self._array.__dlpack__(stream=stream)


class Versioned(Packed):
    """The same, of today."""

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int]) -> Any:
        assert stream == 1
        return self._array.__dlpack__(stream=stream, max_version=max_version)


def as_it_is(array: Any) -> Any:
    return array


PLACES: dict[str, Callable[[Any], Any]] = {
    "host": as_it_is,
    "DeviceArray": to_device,
    "interface": Interface,
    "DLPack": Packed,
    "DLPack 1": Versioned,
}
places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())


def place_all(place: Callable[[Any], Any], item: Any) -> Any:
    """Put all arrays of a dict of arguments somewhere."""
    if isinstance(item, dict):
        return {name: place_all(place, value) for name, value in item.items()}
    if isinstance(item, tuple):
        return tuple(place_all(place, part) for part in item)
    return place(item) if isinstance(item, np.ndarray) else item


def host(item: Any) -> Any:
    """Bring all results back."""
    if isinstance(item, fastrnn.Gradients):
        return fastrnn.Gradients(*(host(part) for part in item))
    if isinstance(item, dict):
        return {name: host(value) for name, value in item.items()}
    if isinstance(item, (tuple, list)):
        return tuple(host(part) for part in item)
    return item.numpy() if isinstance(item, DeviceArray) else item


def results(output: Any) -> list[Array]:
    """Every array of what a call or a gradient is."""
    if output is None:
        return []
    if isinstance(output, fastrnn.Gradients):
        return list(name_gradients(host(output)).values())
    if isinstance(output, (tuple, list)):
        return [array for part in output for array in results(part)]
    return [host(output)]


# ---- layers --------------------------------------------------------------------------------------


def on_gpu(layer: Any, **changes: Any) -> Any:
    """A layer of the same arguments, parameters, masks and mode, on the GPU."""
    twin = type(layer)(**(describe_arguments(layer) | {"device": "cuda"} | changes))
    twin.load_state_dict(layer.state_dict())
    twin._mask_seed = layer._mask_seed
    return twin.train(layer.training)


def in_double(layer: Any) -> Any:
    """The same layer on the CPU in float64."""
    changes = {"dtype": "float64", "device": "cpu", "allow_tf32": False}
    twin = type(layer)(**(describe_arguments(layer) | changes))
    twin.load_state_dict({name: a.astype(float) for name, a in layer.parameters.items()})
    twin._mask_seed = layer._mask_seed
    return twin.train(layer.training)


def widened(item: Any) -> Any:
    """The same arguments in float64."""
    narrow = {np.dtype(np.float32), np.dtype(np.float16), functional.half_dtype("bfloat16")}
    return place_all(lambda array: array.astype(float) if array.dtype in narrow else array, item)


def train(layer: Any, inputs: Any, grads: Any, **options: Any) -> list[Array]:
    """Forward and backward: output, state and all gradients."""
    output, state, tape, *states = layer.forward(**inputs, **options)
    return results((output, state, *states, layer.backward(tape, **grads)))


def agree(
    case: Case,
    place: Callable[[Any], Any] = as_it_is,
    *,
    slack: float = 1,
    all_states: bool = False,
    rng: Rng | None = None,
) -> None:
    """Hold a layer on the GPU against the CPU's in float64, forward and backward."""
    gpu, reference = on_gpu(case.layer), in_double(case.layer)
    options = {"return_all_states": True} if all_states else {}
    grads = dict(case.grads)
    if all_states:
        assert rng is not None
        states = case.layer(**case.inputs, return_all_states=True)[2]
        case.layer._mask_seed = gpu._mask_seed
        grads["grad_states"] = map_state(
            lambda part: rng.standard_normal(part.shape).astype(part.dtype), states
        )
    expected_call = results(reference(**widened(case.inputs), **options))
    reference._mask_seed = gpu._mask_seed
    expected = train(reference, widened(case.inputs), widened(grads), **options)
    given = place_all(place, case.inputs)
    actual_call = results(gpu(**given, **options))
    gpu._mask_seed = case.layer._mask_seed
    actual = train(gpu, given, place_all(place, grads), **options)
    layer = case.layer
    lead = (case.inputs["x"].shape[0], int(np.prod(case.inputs["x"].shape[:-1])))
    about = vars(layer) | {"dtype": layer.dtype}
    sizes = about.pop("input_size"), about.pop("hidden_size")
    steps = max(lead)
    call_bound = slack * tolerance(steps, *sizes, **about)
    bound = slack * gradient_tolerance(steps, None, *sizes, **about)
    for bounded, pairs in (
        (call_bound, zip(actual_call, expected_call, strict=True)),
        (bound, zip(actual, expected, strict=True)),
    ):
        for ours, theirs in pairs:
            assert ours.dtype == layer.dtype
            assert ours.shape == theirs.shape
            assert ours.flags.c_contiguous
            error = scaled_error(ours.astype(float), theirs)
            assert error <= bounded, f"{error / bounded:.3g} times the bound {bounded:.3g}"


# ---- the same results ----------------------------------------------------------------------------

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
OPTIONS: dict[str, dict[str, Any]] = {
    "no bias": {"bias": False},
    "layers": {"num_layers": 3, "residual": True},
    "batch_first": {"batch_first": True, "bidirectional": True, "num_layers": 2},
    **{
        f"both directions, {merge}": {"bidirectional": True, "merge": merge, "num_layers": 2}
        for merge in MERGES
    },
}


@DTYPES
@places
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize(("cell", "form"), FORMS, ids=str)
def test_forms(cell: str, form: Any, ragged: bool, place: Any, dtype: str, rng: Rng) -> None:
    form = {"proj_size": 3} if form else {}
    agree(draw_case(cell, rng, **SIZES, ragged=ragged, dtype=dtype, **form), place)


@DTYPES
@places
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_options(cell: str, options: Any, place: Any, dtype: str, rng: Rng) -> None:
    agree(draw_case(cell, rng, **SIZES, ragged=True, dtype=dtype, **options), place)


@pytest.mark.parametrize("place", [as_it_is, to_device], ids=["host", "GPU"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@cells
def test_everything_at_once(cell: str, training: bool, place: Any, rng: Rng) -> None:
    """Masks are the CPU's. Layer norm makes errors larger, see `parity.rounding_of`."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": "float64", **together(cell)}
    case = draw_case(cell, rng, **SIZES, ragged=True, **options)
    case.layer.train(training)
    agree(case, place, slack=30)


@pytest.mark.parametrize(
    "name", ["dropout", "input_dropout", "recurrent_dropout", "weight_drop", "zoneout"]
)
@pytest.mark.parametrize("cell", ["rnn_relu", "lstm", "gru"])
def test_each_noise(cell: str, name: str, rng: Rng) -> None:
    agree(draw_case(cell, rng, **SIZES, num_layers=2, **{name: 0.4}))


@places
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru_reset_before"])
def test_states_of_every_step(cell: str, bidirectional: bool, place: Any, rng: Rng) -> None:
    options = {"num_layers": 2, "bidirectional": bidirectional}
    case = draw_case(cell, rng, **SIZES, ragged=True, **options)
    agree(case, place, all_states=True, rng=rng)


@places
@pytest.mark.parametrize(("steps", "batch"), [(1, 4), (6, 1), (1, 1), (0, 4), (6, 0), (0, 0)])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_sizes(cell: str, steps: int, batch: int, place: Any, rng: Rng) -> None:
    sizes = {"T": steps, "B": batch, "input_size": I, "hidden_size": H}
    for batch_first in (False, True):
        agree(draw_case(cell, rng, **sizes, batch_first=batch_first, num_layers=2), place)


@places
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_without_a_batch(cell: str, batch_first: bool, place: Any, rng: Rng) -> None:
    layer = make_layer(cell, I, H, rng, num_layers=2, batch_first=batch_first)
    inputs = {
        "x": rng.standard_normal((T, I)).astype(np.float32),
        "state": draw_state(cell, rng, B=None, hidden_size=H, num_layers=2),
        "lengths": np.array([4]),
        "resets": draw_resets(rng, T),
    }
    grads = {
        "grad_output": rng.standard_normal((T, H)).astype(np.float32),
        "grad_state": draw_state(cell, rng, B=None, hidden_size=H, num_layers=2),
    }
    agree(Case(layer, inputs, grads), place)


@pytest.mark.parametrize("given", [("h",), ("c",), ("output",), ()], ids=str)
def test_gradients_that_are_not_given_are_zero(given: Any, rng: Rng) -> None:
    case = draw_case("lstm", rng, **SIZES)
    h, c = case.grads["grad_state"]
    grads = {
        "grad_output": case.grads["grad_output"] if "output" in given else None,
        "grad_state": (h if "h" in given else None, c if "c" in given else None),
    }
    agree(Case(case.layer, case.inputs, grads))
    agree(Case(case.layer, case.inputs, grads | {"grad_state": None}))


def test_the_input_gradient_can_be_left_out(rng: Rng) -> None:
    case = draw_case("gru", rng, **SIZES)
    gpu = on_gpu(case.layer)
    whole = gpu.backward(gpu.forward(**case.inputs)[2], **case.grads)
    rest = gpu.backward(gpu.forward(**case.inputs)[2], **case.grads, input_grad=False)
    assert rest.input is None
    assert_same_bits(rest.state, whole.state)
    for name, gradient in rest.parameters.items():
        assert_same_bits(gradient, whole.parameters[name])


@pytest.mark.parametrize("name", ["proj_size", "clip", "coupled", "peephole"])
def test_options_of_the_lstm(name: str, rng: Rng) -> None:
    value = {"proj_size": 3, "clip": 0.2}.get(name, True)
    layer = fastrnn.LSTM(I, H, seed=0, num_layers=2, **{name: value})
    case = draw_case("lstm", rng, **SIZES, num_layers=2, proj_size=layer.proj_size)
    agree(Case(layer, case.inputs, case.grads))


# ---- numbers of few bits -------------------------------------------------------------------------

HALVES = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


@places
@pytest.mark.parametrize("dtype", HALVES)
@cells
def test_half_precision(cell: str, dtype: str, place: Any, rng: Rng) -> None:
    """Sums are float32, so what is rounded are states and results: a few roundings of each.

    A wrong gate, mask or step is an error of a tenth and more, as is a gradient that takes the
    other side of relu's kink: there, output and state alone are compared.
    """
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
        if place is Interface:
            place = to_device  # the interface has no such type
    case = draw_case(cell, rng, **SIZES, ragged=True, num_layers=2, bidirectional=True)
    gpu = on_gpu(case.layer, dtype=dtype)
    rounded = place_all(
        lambda a: a.astype(gpu.dtype) if a.dtype == np.float32 else a,
        {"inputs": case.inputs, "grads": case.grads},
    )
    reference = in_double(gpu)
    given = place_all(place, rounded)
    actual = train(gpu, given["inputs"], given["grads"])
    expected = train(reference, *widened(rounded).values())
    smooth = len(expected) if cell != "rnn_relu" else 2
    for ours, theirs in zip(actual[:smooth], expected[:smooth], strict=True):
        assert ours.dtype == gpu.dtype
        assert scaled_error(ours.astype(float), theirs) <= 12 * HALVES[dtype]


def test_parameters_of_half_precision_are_those_of_float32_rounded() -> None:
    single = fastrnn.LSTM(90, 130, seed=3, forget_bias=1)
    half = fastrnn.LSTM(90, 130, seed=3, forget_bias=1, dtype=np.float16, device="cuda")
    assert half.dtype == np.float16
    for name, array in half.parameters.items():
        np.testing.assert_array_equal(
            array, single.parameters[name].astype(np.float16), strict=True
        )
        assert array.flags.writeable


def test_bfloat16_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match=r"dtype: expected .*, got 'bfloat16' \(a bfloat16 needs"):
        fastrnn.GRU(I, H, dtype="bfloat16", device="cuda")


@pytest.mark.parametrize("dtype", [np.int32, "float99", None, ">f2"])
def test_other_types_are_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"^dtype: expected float32, float64, float16 or bfloat16"):
        fastrnn.GRU(I, H, dtype=dtype, device="cuda")


def test_forget_bias_and_clip_of_half_precision() -> None:
    with pytest.raises(ValueError, match="forget_bias: expected a finite float16, got 100000"):
        fastrnn.LSTM(I, H, forget_bias=1e5, dtype=np.float16, device="cuda")
    layer = fastrnn.LSTM(I, H, clip=0.5, dtype=np.float16, device="cuda")
    assert np.abs(layer(np.ones((T, B, I), np.float16) * 9)[1][1]).max() <= 0.5


@cells
def test_tf32(cell: str, rng: Rng) -> None:
    case = draw_case(cell, rng, **SIZES, ragged=True)
    gpu, exact = on_gpu(case.layer, allow_tf32=True), on_gpu(case.layer)
    assert gpu.allow_tf32
    actual = train(gpu, case.inputs, case.grads)
    expected = train(in_double(gpu), widened(case.inputs), widened(case.grads))
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == np.float32
        assert scaled_error(ours.astype(float), theirs) <= 12 * 2.0**-11
    plain = train(exact, case.inputs, case.grads)
    assert any((a != b).any() for a, b in zip(actual, plain, strict=True))


def test_tf32_is_of_float32() -> None:
    with pytest.raises(ValueError, match="allow_tf32: expected False but for device='cuda' and"):
        fastrnn.GRU(I, H, allow_tf32=True, device="cuda", dtype=np.float64)


# ---- where things lie ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@places
def test_results_lie_where_x_lies(place: Any, batch_first: bool, rng: Rng) -> None:
    case = draw_case("lstm", rng, **SIZES, batch_first=batch_first, num_layers=2, ragged=True)
    gpu = on_gpu(case.layer)
    kind = np.ndarray if place is as_it_is else DeviceArray
    for elsewhere in (as_it_is, place):
        inputs = place_all(elsewhere, case.inputs) | {"x": place(case.inputs["x"])}
        output, state, tape, states = gpu.forward(**inputs, return_all_states=True)
        gradients = gpu.backward(tape, **place_all(elsewhere, case.grads))
        found = [output, *state, *states, gradients.input, *gradients.state]
        assert [type(array) for array in found] == [kind] * len(found)
        assert {type(array) for array in gradients.parameters.values()} == {np.ndarray}
        assert output.shape == case.grads["grad_output"].shape
        assert gradients.input.shape == case.inputs["x"].shape
        assert all(array.flags.writeable for array in gradients.parameters.values())


class Traffic:
    """Counts what is copied between host and GPU, and memory that is allocated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        counts = self.counts = {"up": 0, "down": 0, "made": 0}

        class Counting(functional.DeviceMemory):
            def __init__(self, *arguments: Any) -> None:
                counts["made"] += 1
                super().__init__(*arguments)

        def counted(name: str, function: Any) -> Any:
            def call(*arguments: Any) -> None:
                counts[name] += 1
                function(*arguments)

            return call

        monkeypatch.setattr(functional, "DeviceMemory", Counting)
        for name, function in (("up", "cuda_upload"), ("down", "cuda_download")):
            counting = counted(name, getattr(functional, function))
            monkeypatch.setattr(functional, function, counting)

    def during(self, call: Callable[[], Any]) -> tuple[int, int]:
        before = dict(self.counts)
        self.result = call()
        return tuple(self.counts[name] - before[name] for name in ("up", "down"))  # type: ignore


@pytest.mark.parametrize("place", [to_device, Interface, Packed])
def test_arrays_of_the_gpu_are_not_copied(
    place: Any, rng: Rng, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = Traffic(monkeypatch)
    case = draw_case("lstm", rng, **SIZES, num_layers=2)
    gpu = on_gpu(case.layer).eval()
    inputs = place_all(place, case.inputs | {"resets": draw_resets(rng, T, B)})
    assert traffic.during(lambda: gpu(**inputs)) == (0, 0)
    assert traffic.during(lambda: gpu(**inputs)) == (0, 0)
    # The state goes in as it came out.
    state = traffic.result[1]
    assert traffic.during(lambda: gpu(inputs["x"], state)) == (0, 0)
    grads = place_all(place, case.grads)
    assert traffic.during(lambda: gpu.forward(**inputs)) == (1, 0)  # the parameters
    tape = traffic.result[2]
    assert traffic.during(lambda: gpu.backward(tape, **grads)) == (0, 1)  # and their gradients
    assert traffic.during(lambda: gpu(**case.inputs)) == (3, 3)


@pytest.mark.parametrize("place", [to_device, Interface, Packed])
def test_a_step_of_the_gpu_copies_nothing(
    place: Any, rng: Rng, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = Traffic(monkeypatch)
    gpu = on_gpu(make_layer("lstm", I, H, rng)).eval()
    x = place(rng.standard_normal((B, I)).astype(np.float32))
    assert traffic.during(lambda: gpu.step(x)) == (0, 0)
    state = traffic.result[1]
    assert traffic.during(lambda: gpu.step(x, state)) == (0, 0)


def test_batch_first_views_of_steps_are_not_copied(
    rng: Rng, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = Traffic(monkeypatch)
    gpu = on_gpu(make_layer("gru", H, H, rng, batch_first=True)).eval()
    x = to_device(rng.standard_normal((B, T, H)).astype(np.float32))
    assert traffic.during(lambda: gpu(x)) == (0, 0)  # rearranged there
    once = traffic.result[0]
    assert once.shape == (B, T, H)
    assert traffic.during(lambda: gpu(once)) == (0, 0)
    assert_same_bits(once.numpy(), gpu(x.numpy())[0])
    assert_same_bits(traffic.result[0].numpy(), gpu(once.numpy())[0])


def test_strides_of_one_row_do_not_matter(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(monkeypatch)
    gpu = on_gpu(make_layer("gru", I, H, rng)).eval()
    x = to_device(rng.standard_normal((T, 1, I)).astype(np.float32))
    odd = DeviceArray(x, x.address, x.shape, x.dtype, (x.strides[0], 12345, 4), 0)
    assert traffic.during(lambda: gpu(odd)) == (0, 0)
    assert_same_bits(traffic.result[0].numpy(), gpu(x.numpy())[0])


def test_memory_is_used_again(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(monkeypatch)
    case = draw_case("lstm", rng, **SIZES, num_layers=2, ragged=True, dropout=0.5)
    gpu = on_gpu(case.layer)
    for _ in range(3):
        train(gpu, case.inputs, case.grads)
        gpu(**case.inputs)
    gc.collect()
    made = traffic.counts["made"]
    for _ in range(5):
        train(gpu, case.inputs, case.grads)
        gpu(**case.inputs)
    assert traffic.counts["made"] == made
    gpu.eval()  # lets go of it
    train(gpu, case.inputs, case.grads)
    assert traffic.counts["made"] > made


def test_a_pool_that_is_full_makes_room(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that waits for the next call is given up before an allocation fails."""
    pool = cuda.Pool(0)
    lent = pool.take(1 << 16)
    del lent
    assert len(pool._idle) == 1
    real, refused = functional.DeviceMemory, []

    class Full(real):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            if pool._idle:
                refused.append(arguments)
                raise RuntimeError("out of memory")
            super().__init__(*arguments)

    monkeypatch.setattr(functional, "DeviceMemory", Full)
    assert pool.take(1 << 20).memory.nbytes >= 1 << 20
    assert len(refused) == 1


# ---- arrays on the GPU ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8", "bool"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)], ids=str)
def test_there_and_back(shape: tuple[int, ...], dtype: str, rng: Rng) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    known = functional.half_dtype(dtype) or np.dtype(dtype)
    array = np.asarray(rng.integers(0, 2, shape)).astype(known)
    there = to_device(array)
    assert (there.shape, there.dtype, there.device) == (shape, known, "cuda:0")
    assert (there.ndim, there.size, there.nbytes) == (array.ndim, array.size, array.nbytes)
    assert there.strides == array.strides or not array.size
    assert repr(there) == f"DeviceArray({shape}, {dtype}, device='cuda:0')"
    np.testing.assert_array_equal(there.numpy(), array, strict=True)
    for view in (Packed, Versioned, *([] if dtype == "bfloat16" else [Interface])):
        seen = to_device(view(there))
        assert seen.address == there.address or not array.size
        np.testing.assert_array_equal(seen.numpy(), array, strict=True)
    if shape:
        assert len(there) == shape[0]
    else:
        with pytest.raises(TypeError, match="len"):
            len(there)


def test_to_device_takes_what_numpy_can_view(rng: Rng) -> None:
    array = rng.standard_normal((3, 4, 5))[::2, ::-1].T
    np.testing.assert_array_equal(to_device(array).numpy(), array)
    np.testing.assert_array_equal(to_device(memoryview(array), "cuda:0").numpy(), array)
    there = to_device(array)
    assert to_device(there) is there


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([1.0], "array: expected an array, got list"),
        (np.ma.masked_array([1.0]), "array: expected an array, got a masked one"),
        (np.array([object()]), "array: expected numbers of this machine's byte order, got object"),
        (np.ones(2, ">f4"), "array: expected numbers of this machine's byte order, got >f4"),
    ],
)
def test_to_device_refuses(array: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        to_device(array)


@pytest.mark.parametrize("device", ["cpu", "gpu", None])
def test_to_device_is_not_for_the_cpu(device: Any) -> None:
    message = f"device: expected 'cuda' or 'cuda:0', 'cuda:1', ..., got {device!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        to_device(np.ones(2), device)


@pytest.mark.parametrize("name", ["shape", "dtype", "strides", "address", "device"])
def test_what_a_device_array_is_cannot_be_changed(name: str) -> None:
    there = to_device(np.ones((2, 3)))
    with pytest.raises(AttributeError):
        setattr(there, name, getattr(there, name))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,)])
def test_a_device_array_is_neither_true_nor_false(shape: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match=r"^bool\(\) of an array on a GPU; its method numpy"):
        bool(to_device(np.ones(shape)))


def strided(rng: Rng) -> tuple[DeviceArray, Array]:
    """A view with gaps and a backward axis, and what it is."""
    base = rng.standard_normal((4, 5, 6))
    there = to_device(base)
    view = base[::2, ::-1, 1:5].swapaxes(0, 1)
    offset = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return (
        DeviceArray(there, there.address + offset, view.shape, view.dtype, view.strides, 0),
        view,
    )


def test_views_with_gaps(rng: Rng) -> None:
    there, expected = strided(rng)
    np.testing.assert_array_equal(there.numpy(), expected)
    for view in (Interface, Packed, Versioned):
        np.testing.assert_array_equal(to_device(view(there)).numpy(), expected)
    with pytest.raises(ValueError, match="copy_from: expected an array without gaps, got strides"):
        there.copy_from(expected)


def test_parts_of_an_array(rng: Rng) -> None:
    array = rng.standard_normal((4, 5))
    there = to_device(array)
    offset = there.address + array.strides[0]
    part = DeviceArray(there._owner, offset, (2, 5), there.dtype, None, 0)
    np.testing.assert_array_equal(part.numpy(), array[1:3])
    part.copy_from(np.zeros((2, 5)))
    array[1:3] = 0
    np.testing.assert_array_equal(there.numpy(), array)


def test_copy_from(rng: Rng) -> None:
    there = to_device(np.zeros((3, 4)))
    array = rng.standard_normal((4, 3)).T
    there.copy_from(array)
    np.testing.assert_array_equal(there.numpy(), array)
    to_device(Packed(there)).copy_from(np.ones((3, 4)))
    np.testing.assert_array_equal(there.numpy(), np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"array: expected \(3, 4\) float64, got \(4, 3\) float64"):
        there.copy_from(array.T)
    with pytest.raises(TypeError, match=r"array: expected \(3, 4\) float64, got \(3, 4\) float32"):
        there.copy_from(np.zeros((3, 4), np.float32))
    with pytest.raises(
        TypeError, match="array: expected an array, got DeviceArray: it is on a GPU"
    ):
        there.copy_from(there)


def test_an_array_of_the_gpu_is_no_array_of_the_host() -> None:
    there = to_device(np.zeros((T, B, I), np.float32))
    for convert in (np.asarray, np.array):
        with pytest.raises(TypeError, match="it is on a GPU; its method numpy"):
            convert(there)
    message = "x: expected an array, got DeviceArray: it is on a GPU; its method numpy"
    with pytest.raises(TypeError, match=message):
        fastrnn.GRU(I, H)(there)
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(there)


def test_the_interface_of_a_device_array(rng: Rng) -> None:
    there, _ = strided(rng)
    interface = there.__cuda_array_interface__
    assert interface == {
        "shape": (5, 2, 4),
        "typestr": "<f8",
        "data": (there.address, False),
        "strides": there.strides,
        "version": 3,
        "stream": 1,
    }
    assert to_device(np.ones(3)).__cuda_array_interface__["strides"] is None
    assert to_device(np.ones(0)).__cuda_array_interface__["data"] == (0, False)
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    assert not hasattr(to_device(np.ones(3, bfloat16)), "__cuda_array_interface__")


class Exported:
    """A capsule of a GPU's array, relabelled as the host's so that NumPy takes it."""

    def __init__(self, capsule: Any) -> None:
        tensor = cuda._tensor_of(capsule)
        self.label = tensor.device.type, tensor.device.number
        tensor.device.type = 1
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_capsules(version: Any, rng: Rng) -> None:
    there, expected = strided(rng)
    for stream in (None, -1, 1, 2):
        exported = Exported(there.__dlpack__(stream=stream, max_version=version))
        assert exported.label == (2, 0) == there.__dlpack_device__()
        if emulated:
            np.testing.assert_array_equal(np.from_dlpack(exported), expected)


@pytest.mark.parametrize("taken", [True, False] if emulated else [False])
def test_a_capsule_keeps_its_array_and_lets_go_of_it(taken: bool) -> None:
    """By NumPy, which cannot read a GPU's memory, or by us."""

    class Owner:
        alive = 0

        def __init__(self, memory: Any) -> None:
            self.memory = memory
            Owner.alive += 1

        def __del__(self) -> None:
            Owner.alive -= 1

    source = to_device(np.arange(6.0))
    there = DeviceArray(Owner(source), source.address, (6,), source.dtype, None, 0)
    capsule = there.__dlpack__()
    del there
    assert Owner.alive == 1
    if taken:
        array = np.from_dlpack(Exported(capsule))
        del capsule
        assert Owner.alive == 1
        np.testing.assert_array_equal(array, np.arange(6.0))
        del array
    else:
        seen = cuda._import(type("Once", (), {"__dlpack__": lambda _, stream: capsule})())
        del capsule
        assert Owner.alive == 1
        np.testing.assert_array_equal(seen.numpy(), np.arange(6.0))
        del seen
    assert Owner.alive == 0


def test_a_capsule_can_be_asked_for_on_the_host(rng: Rng) -> None:
    there, expected = strided(rng)

    class OnHost:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **_: Any) -> Any:
            return there.__dlpack__(dl_device=(1, 0))

    np.testing.assert_array_equal(np.from_dlpack(OnHost()), expected)
    for options, error, message in (
        ({"dl_device": (1, 0), "copy": False}, BufferError, "copy: expected None or True"),
        ({"dl_device": (2, 3)}, BufferError, r"dl_device: expected \(2, 0\) or \(1, 0\), got"),
        ({"copy": True}, BufferError, "copy: expected None or False on a GPU, got True"),
        ({"stream": 0}, ValueError, "stream: expected None, -1 or a cudaStream_t but 0, got 0"),
        ({"stream": -2}, ValueError, "stream: expected None, -1 or a cudaStream_t but 0, got -2"),
        ({"stream": 1 << 64}, ValueError, "stream: expected None, -1 or a cudaStream_t but 0, g"),
        ({"stream": "a"}, TypeError, "stream: expected None, -1 or a cudaStream_t but 0, got 'a'"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            there.__dlpack__(**options)  # type: ignore[arg-type]


class Handmade:
    """A capsule of NumPy's with the label of a GPU, made without this package."""

    def __init__(self, array: Array, device_type: int, offset: int) -> None:
        self.array, self.type, self.offset = array, device_type, offset

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.type, 0

    def __dlpack__(self, *, stream: int) -> Any:
        capsule = self.array.__dlpack__()
        pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )
        # struct DLTensor { void* data; int32_t device_type, device_id; int32_t ndim;
        #                   DLDataType dtype; int64_t *shape, *strides; uint64_t byte_offset; }
        tensor = pointer(capsule, b"dltensor")
        ctypes.c_void_p.from_address(tensor).value = self.array.ctypes.data - self.offset
        ctypes.c_int32.from_address(tensor + 8).value = self.type
        ctypes.c_uint64.from_address(tensor + 40).value = self.offset
        return capsule


class Null(Handmade):
    """The same, without memory."""

    def __dlpack__(self, *, stream: int) -> Any:
        capsule = super().__dlpack__(stream=stream)
        ctypes.c_void_p.from_address(ctypes.addressof(cuda._tensor_of(capsule))).value = None
        return capsule


@pytest.mark.emulated
@pytest.mark.parametrize("offset", [0, 64])
@pytest.mark.parametrize("device_type", [2, 13])
def test_capsules_of_others(device_type: int, offset: int, rng: Rng) -> None:
    array = rng.standard_normal((5, 4, 6))[1:, ::2]
    seen = to_device(Handmade(array, device_type, offset))
    assert (seen.address, seen.shape) == (array.ctypes.data, array.shape)
    assert (seen.strides, seen.dtype) == (array.strides, array.dtype)
    np.testing.assert_array_equal(seen.numpy(), array)


def raising(error: Exception) -> Any:
    def dlpack(*_: Any, **__: Any) -> Any:
        raise error

    def number(_: Any) -> tuple[int, int]:
        return 2, 0

    return type("Tensor", (), {"__dlpack__": dlpack, "__dlpack_device__": number})()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: raising(BufferError("it has a gradient")), "got Tensor: it has a gradient"),
        (lambda: Interface(np.ones(3), mask=np.ones(3)), "Interface: expected an array without a"),
        (lambda: Interface(np.ones(3), stream=0), "Interface: stream: expected None or a cuda"),
        (lambda: Interface(np.ones(3), stream="a"), "Interface: stream: expected None or a cuda"),
        (lambda: Interface(np.ones(3), typestr="<x9"), "got Interface: "),
        (lambda: Interface(np.ones(3), typestr="|O"), "Interface: expected numbers, got object"),
        (
            lambda: Interface(np.ones((T, B, I), F4), data=(0, False)),
            r"expected memory of a GPU for \(6, 4, 5\) float32, got a null pointer",
        ),
        (lambda: Interface(np.ones(3), data=None), r"data: expected a pair \(.*\), got None"),
        (lambda: Interface(np.ones(3), data=("a", False)), "data: expected an integer .* got 'a'"),
        (lambda: Without("data"), "expected an interface with data, got one without"),
        (lambda: Without("shape", "typestr"), "expected an interface with shape, typestr, got one"),
        (lambda: Interface(np.ones(3), shape=(-3,)), r"shape: expected sizes >= 0, got \(-3,\)"),
        (lambda: Interface(np.ones(3), shape=(2.7,)), r"shape: expected integers, got \(2.7,\)"),
        (lambda: Interface(np.ones(3), shape=3), "shape: expected integers, got 3"),
        (lambda: Interface(np.ones(3), strides=(8.5,)), r"strides: expected integers, got \(8.5,"),
        (
            lambda: Interface(np.ones(3), strides=(8, 8)),
            r"strides: expected as many as sizes in \(3,\), got \(8, 8\)",
        ),
        (lambda: Null(np.ones((T, B, I), F4), 2, 64), "got Null: expected memory of a GPU for"),
    ],
)
def test_what_others_cannot_give(make: Any, message: str) -> None:
    for call in (fastrnn.GRU(I, H, device="cuda"), to_device):
        name = "array" if call is to_device else "x"
        with pytest.raises(TypeError, match=f"^{name}: expected an array, .*{message}"):
            call(make())


def test_nothing_needs_no_address() -> None:
    assert to_device(Interface(np.ones((3, 0)), data=(None, False))).shape == (3, 0)
    assert to_device(Null(np.ones((3, 0)), 2, 0)).shape == (3, 0)


def test_streams_of_others_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    monkeypatch.setattr(functional, "cuda_wait_for", lambda *given: waits.append(given))
    array = to_device(np.zeros((T, B, I), np.float32))
    layer = fastrnn.GRU(I, H, device="cuda")
    layer(Interface(array))
    layer(Interface(array, stream=None))
    assert waits == []
    layer(Interface(array, stream=77))
    assert waits == [(0, 0, 77)]
    for own in (None, -1, 1):
        array.__dlpack__(stream=own)
    assert len(waits) == 1
    array.__dlpack__(stream=99)
    assert waits == [(0, 0, 77), (0, 99, 0)]


def test_memory_of_the_host_is_not_taken_for_a_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "cuda_device_of", lambda address: -1)
    with pytest.raises(TypeError, match=r"x: .* got Interface: expected memory of a GPU"):
        fastrnn.GRU(I, H, device="cuda")(Interface(np.zeros((T, B, I), np.float32)))
    # Nothing has an address.
    empty = Interface(np.zeros((T, 0, I), np.float32))
    assert fastrnn.GRU(I, H, device="cuda")(empty)[0].shape == (T, 0, H)


def test_arrays_of_another_gpu_are_refused() -> None:
    there = to_device(np.zeros((T, B, I), np.float32))
    other = DeviceArray(there, there.address, there.shape, there.dtype, None, 1)
    with pytest.raises(ValueError, match="x: expected an array on cuda:0, got one on cuda:1"):
        fastrnn.GRU(I, H, device="cuda")(other)


# ---- wrong calls ---------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("gru", {"x": np.zeros((T, B, 6), F4)}, ValueError, "x: expected (T, B, 5) float32, got"),
    ("gru", {"x": np.zeros((T, 6), F4)}, ValueError, "x: expected (T, 5) float32, got (6, 6)"),
    ("gru", {"x": np.zeros(5, F4)}, ValueError, "x: expected (T, B, 5) float32, got (5,) float32"),
    ("gru", {"x": np.zeros((T, B, I))}, TypeError, "x: expected (T, B, 5) float32, got (6, 4, 5)"),
    ("gru", {"x": [[0.0] * I]}, TypeError, "x: expected an array, got list"),
    (
        "gru",
        {"state": np.zeros((2, B, H), F4)},
        ValueError,
        "state (h_0): expected (1, 4, 7) float32, got (2, 4, 7) float32",
    ),
    ("gru", {"state": np.zeros((1, B, H))}, TypeError, "state (h_0): expected (1, 4, 7) float32"),
    ("gru", {"state": (1, 2)}, TypeError, "state: expected one array h_0, got tuple"),
    (
        "lstm",
        {"state": np.zeros((1, B, H), F4)},
        TypeError,
        "state: expected a pair (h_0, c_0), got ",
    ),
    ("lstm", {"state": (1, 2, 3)}, TypeError, "state: expected a pair (h_0, c_0), got 3 items"),
    (
        "lstm",
        {"state": (np.zeros((1, B, H), F4), np.zeros((1, B, 8), F4))},
        ValueError,
        "state (c_0): expected (1, 4, 7) float32, got (1, 4, 8) float32",
    ),
    ("lstm", {"state": (np.zeros((1, B, H), F4), None)}, TypeError, "state: expected arrays, got"),
    ("gru", {"lengths": np.array([1, 2, 3])}, ValueError, "lengths: expected (4,) int64, got (3,)"),
    ("gru", {"lengths": np.ones(B)}, TypeError, "lengths: expected integers (B,), got (4,) float"),
    (
        "gru",
        {"lengths": np.array([1, 2, 7, -1])},
        ValueError,
        "lengths: expected integers in 0..6, got 7 at row 2",
    ),
    (
        "gru",
        {"lengths": np.array([1, -2, 6, 1], np.int32)},
        ValueError,
        "lengths: expected integers in 0..6, got -2 at row 1",
    ),
    (
        "gru",
        {"resets": np.zeros((B, T), bool)},
        ValueError,
        "resets: expected (6, 4) bool, got (4, 6) bool",
    ),
    ("gru", {"resets": np.zeros((T, B), int)}, TypeError, "resets: expected (6, 4) bool, got (6,"),
]


@pytest.mark.parametrize("place", [as_it_is, to_device], ids=["host", "GPU"])
@pytest.mark.parametrize(("cell", "arguments", "error", "message"), WRONG)
def test_wrong_arguments(
    cell: str, arguments: Any, error: type[Exception], message: str, place: Any, rng: Rng
) -> None:
    layer = on_gpu(make_layer(cell, I, H, rng, recurrent_dropout=0.5))
    seed = layer._mask_seed
    inputs = place_all(place, {"x": np.zeros((T, B, I), np.float32)} | arguments)
    for call in (layer, layer.forward, layer.check):
        with pytest.raises(error) as caught:
            call(**inputs)
        assert str(caught.value).startswith(message), caught.value
    assert layer._mask_seed == seed


WRONG_GRADIENTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "gru",
        {"grad_output": np.zeros((T, B, 3), F4)},
        ValueError,
        "grad_output: expected (6, 4, 7)",
    ),
    ("gru", {"grad_output": np.zeros((T, B, H))}, TypeError, "grad_output: expected (6, 4, 7) f"),
    ("gru", {"grad_state": np.zeros((1, H), F4)}, ValueError, "grad_state (grad_h): expected (1,"),
    ("gru", {"grad_state": (1, 2)}, TypeError, "grad_state: expected one array grad_h, got tuple"),
    ("lstm", {"grad_state": 0.0}, TypeError, "grad_state: expected a pair (grad_h, grad_c), got"),
    (
        "lstm",
        {"grad_states": (None, np.zeros((1, B, H), F4))},
        ValueError,
        "grad_states (grad_c): expected (1, 6, 4, 7) float32, got (1, 4, 7) float32",
    ),
    ("gru", {"retain": 1}, TypeError, "retain: expected True or False, got 1"),
]


@pytest.mark.parametrize("place", [as_it_is, to_device], ids=["host", "GPU"])
@pytest.mark.parametrize(("cell", "arguments", "error", "message"), WRONG_GRADIENTS)
def test_wrong_gradients_leave_the_tape_open(
    cell: str, arguments: Any, error: type[Exception], message: str, place: Any, rng: Rng
) -> None:
    case = draw_case(cell, rng, **SIZES)
    gpu = on_gpu(case.layer)
    tape = gpu.forward(**case.inputs)[2]
    with pytest.raises(error) as caught:
        gpu.backward(tape, **place_all(place, arguments))
    assert str(caught.value).startswith(message), caught.value
    assert not tape.consumed
    gpu.backward(tape, **case.grads)


def test_masked_arrays_are_refused() -> None:
    layer = fastrnn.GRU(I, H, device="cuda")
    with pytest.raises(TypeError, match="x: expected an array, got a masked one"):
        layer(np.ma.masked_array(np.zeros((T, B, I), np.float32)))


def test_tensors_of_the_host_with_a_gradient_are_refused() -> None:
    torch = pytest.importorskip("torch")
    layer = fastrnn.GRU(I, H, device="cuda")
    x = torch.zeros(T, B, I)
    assert isinstance(layer(x)[0], np.ndarray)
    with pytest.raises(TypeError, match=r"x: expected an array, got Tensor: .*grad"):
        layer(x.requires_grad_())


def test_numbers_of_gpus_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "cuda_device_count", lambda: 1)
    with pytest.raises(ValueError, match="device: expected one GPU, 'cuda:0', got 'cuda:9'"):
        fastrnn.GRU(I, H, device="cuda:9")
    monkeypatch.setattr(functional, "cuda_device_count", lambda: 3)
    with pytest.raises(ValueError, match="device: expected one of 3 GPUs, from 'cuda:0' on, got"):
        fastrnn.GRU(I, H, device="cuda:3")
    with pytest.raises(ValueError, match="got 'cuda:9'"):
        to_device(np.ones(3), "cuda:9")


# ---- tapes ---------------------------------------------------------------------------------------


def test_a_tape_is_consumed_unless_it_is_retained(rng: Rng) -> None:
    case = draw_case("lstm", rng, **SIZES, num_layers=2, ragged=True, dropout=0.3)
    gpu = on_gpu(case.layer)
    tape = gpu.forward(**case.inputs)[2]
    size = tape.nbytes
    assert size > 4 * (T * B * (I + H) + sum(p.size for p in gpu.parameters.values()))
    first = gpu.backward(tape, **case.grads, retain=True)
    second = gpu.backward(tape, **case.grads, retain=True)
    assert not tape.consumed
    assert tape.nbytes == size
    last = gpu.backward(tape, **case.grads)
    assert tape.consumed
    assert tape.nbytes == 0
    for gradients in (second, last):
        for a, b in zip(results(gradients), results(first), strict=True):
            assert_same_bits(a, b)
    with pytest.raises(ValueError, match=r"tape: expected one that is open, .* consumed \(see ret"):
        gpu.backward(tape, **case.grads)


def test_a_tape_with_arrays_of_the_gpu_holds_less(rng: Rng) -> None:
    case = draw_case("gru", rng, **SIZES)
    gpu = on_gpu(case.layer)
    ours = gpu.forward(to_device(case.inputs["x"]))[2].nbytes
    copied = gpu.forward(case.inputs["x"])[2].nbytes
    assert 4 * T * B * (I + H) <= copied - ours < 4 * T * B * (I + H) + 512


def test_wrong_tapes(rng: Rng) -> None:
    case = draw_case("gru", rng, **SIZES)
    gpu, other = on_gpu(case.layer), on_gpu(case.layer)
    double = on_gpu(case.layer, dtype="float64")
    tape = gpu.forward(**case.inputs)[2]
    message = "tape: expected one that this layer's forward returned, got another layer's"
    for wrong in (other, double):
        with pytest.raises(ValueError, match=message):
            wrong.backward(tape)
    with pytest.raises(ValueError, match=r"tape: expected one .* returned, got a CPU layer's"):
        gpu.backward(case.forward())
    for wrong in (None, 3):
        with pytest.raises(TypeError, match="tape: expected what forward returned, got"):
            gpu.backward(wrong)
    with pytest.raises(ValueError, match=r"tape: expected one .* returned, got a cuda layer's"):
        case.layer.backward(tape)
    gpu.backward(tape)


def test_gradients_are_those_of_the_call(rng: Rng) -> None:
    """Whatever becomes of the parameters and of an input of the host afterwards."""
    case = draw_case("lstm", rng, **SIZES, num_layers=2)
    gpu = on_gpu(case.layer)
    expected = gpu.backward(gpu.forward(**case.inputs)[2], **case.grads)
    output, _, tape = gpu.forward(**case.inputs)
    between = gpu.forward(**case.inputs)[2]
    case.inputs["x"][:] = 7
    output[:] = 7
    for array in gpu.parameters.values():
        array[:] = 7
    gpu(**case.inputs)
    actual = gpu.backward(tape, **case.grads)
    for a, b in zip(results(actual), results(expected), strict=True):
        assert_same_bits(a, b)
    gpu.backward(between)


def test_several_tapes_are_open(rng: Rng) -> None:
    case = draw_case("gru", rng, **SIZES)
    gpu = on_gpu(case.layer)
    inputs = [case.inputs | {"x": case.inputs["x"] * scale} for scale in (1, 2, 3)]
    alone = [gpu.backward(gpu.forward(**given)[2], **case.grads) for given in inputs]
    tapes = [gpu.forward(**given)[2] for given in inputs]
    for tape, expected in reversed(list(zip(tapes, alone, strict=True))):
        for a, b in zip(results(gpu.backward(tape, **case.grads)), results(expected), strict=True):
            assert_same_bits(a, b)


# ---- modes, steps, copies ------------------------------------------------------------------------


def test_eval_copies_the_parameters_once(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(monkeypatch)
    gpu = on_gpu(make_layer("gru", I, H, rng))
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    assert traffic.during(lambda: gpu(x)) == (2, 2)
    assert traffic.during(gpu.eval) == (1, 0)
    assert traffic.during(lambda: gpu(x)) == (1, 2)
    assert traffic.during(lambda: gpu.step(x[0])) == (1, 2)
    with pytest.raises(ValueError, match="read-only"):
        gpu.parameters["bias_ih_l0"][:] = 0


@cells
def test_changes_of_parameters_take_effect(cell: str, rng: Rng) -> None:
    layer = make_layer(cell, I, H, rng)
    gpu = on_gpu(layer)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    before = gpu(x)[0]
    gpu.parameters["weight_ih_l0"][:] *= 2
    changed = gpu(x)[0]
    assert (before != changed).any()
    np.testing.assert_allclose(gpu.forward(x)[0], changed, atol=1e-5)
    assert_same_bits(gpu.eval()(x)[0], changed)
    gpu.load_state_dict(layer.state_dict())
    assert_same_bits(gpu(x)[0], before)


@pytest.mark.parametrize("training", [True, False])
@places
@pytest.mark.parametrize(("cell", "form"), FORMS, ids=str)
def test_steps_are_the_sequence(cell: str, form: Any, place: Any, training: bool, rng: Rng) -> None:
    options = {"num_layers": 2, "zoneout": 0.3, **({"proj_size": 3} if form else {})}
    layer = make_layer(cell, I, H, rng, **options)
    gpu = on_gpu(layer).train(training)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    expected, _ = in_double(layer).eval()(x.astype(float))
    state, bound = None, tolerance(T, I, H, **options)
    for xt, yt in zip(x, expected, strict=True):
        y, state = gpu.step(place(xt), state)
        assert isinstance(y, np.ndarray if place is as_it_is else DeviceArray)
        assert scaled_error(host(y).astype(float), yt) <= bound
    state = None
    for xt, yt in zip(x[:, 1], expected[:, 1], strict=True):
        y, state = gpu.step(place(xt), state)
        assert host(y).shape == yt.shape
        assert scaled_error(host(y).astype(float), yt) <= bound


@pytest.mark.parametrize(
    ("x", "state", "error", "message"),
    [
        (np.zeros((B, 6), F4), None, ValueError, r"x: expected (B, 5) float32, got (4, 6) float32"),
        (np.zeros(6, F4), None, ValueError, r"x: expected (5,) float32, got (6,) float32"),
        (np.zeros((1, B, I), F4), None, ValueError, r"x: expected (B, 5) float32, got (1, 4, 5)"),
        (np.zeros((B, I)), None, TypeError, r"x: expected (B, 5) float32, got (4, 5) float64"),
        ([0.0] * 5, None, TypeError, r"x: expected an array, got list"),
        (
            np.zeros((B, I), F4),
            np.zeros((1, 3, H), F4),
            ValueError,
            r"state (h_0): expected (1, 4, 7) float32, got (1, 3, 7) float32",
        ),
    ],
)
def test_wrong_steps(x: Any, state: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        fastrnn.GRU(I, H, device="cuda").step(x, state)


def test_step_has_no_direction_to_the_past() -> None:
    layer = fastrnn.GRU(I, H, bidirectional=True, device="cuda")
    with pytest.raises(ValueError, match="step: a bidirectional layer needs the whole sequence"):
        layer.step(np.zeros((B, I), np.float32))


def test_lengths_and_resets_of_other_types(rng: Rng) -> None:
    gpu = on_gpu(make_layer("gru", I, H, rng)).eval()
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    lengths, resets = [3, 0, 6, 1], draw_resets(rng, T, B)
    expected = gpu(x, None, lengths, resets)[0]
    for integers in (np.int32, np.int64, np.uint8):
        for place in (as_it_is, to_device):
            given = place(np.array(lengths, integers))
            assert_same_bits(gpu(x, None, given, resets)[0], expected)
    for bools in (resets, resets.view(np.uint8)):
        assert_same_bits(gpu(x, None, lengths, to_device(bools))[0], expected)
    assert_same_bits(gpu(x, None, lengths, resets.tolist())[0], expected)
    row = gpu(x[:, 0], None, [3])[0]
    for number in (3, np.array(3), to_device(np.array(3))):
        assert_same_bits(gpu(x[:, 0], None, number)[0], row)
    for number in (9, to_device(np.array(9))):
        with pytest.raises(
            ValueError, match=r"lengths: expected integers in 0\.\.6, got 9 at row 0"
        ):
            gpu(x[:, 0], None, number)


TEXTS = [
    "GRU(5, 7, num_layers=2, dropout=0.5, device='cuda')",
    "LSTM(5, 7, proj_size=3, device='cuda:0', allow_tf32=True)",
    "RNN(5, 7, device='cuda', dtype='float16')",
]


@pytest.mark.parametrize("text", TEXTS)
def test_repr_and_copies(text: str, rng: Rng) -> None:
    layer = eval(text, vars(fastrnn).copy())
    assert repr(layer) == text
    x = rng.standard_normal((T, B, I)).astype(layer.dtype)
    for make in (copy.deepcopy, copy.copy, lambda item: pickle.loads(pickle.dumps(item))):
        for training in (True, False):
            twin = make(layer.train(training))
            assert repr(twin) == text
            assert twin.training == training
            seed = layer._mask_seed
            assert twin._mask_seed == seed
            assert_same_bits(twin(x)[0], layer(x)[0])
            twin.train().parameters["weight_ih_l0"][:] = 0
            assert layer.parameters["weight_ih_l0"].all()


@pytest.mark.parametrize("name", ["device", "allow_tf32"])
def test_what_a_layer_is_made_with_stays(name: str) -> None:
    layer = fastrnn.GRU(I, H, device="cuda")
    with pytest.raises(AttributeError, match=f"{name}: expected no change once the layer is made"):
        setattr(layer, name, getattr(layer, name))


def test_threads(rng: Rng) -> None:
    """Calls of one layer from several threads: each gets its own memory while it queues work."""
    sizes = {"T": 20, "B": 6, "input_size": 30, "hidden_size": 40}
    case = draw_case("lstm", rng, **sizes, num_layers=2, ragged=True)
    gpu = on_gpu(case.layer)
    given = [case.inputs | {"x": case.inputs["x"] * scale} for scale in range(8)]
    expected = [train(gpu, inputs, case.grads) for inputs in given]
    lean = [results(gpu(**inputs)) for inputs in given]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            trained = list(pool.map(lambda inputs: train(gpu, inputs, case.grads), given * 3))
            called = list(pool.map(lambda inputs: results(gpu(**inputs)), given * 3))
    finally:
        sys.setswitchinterval(interval)
    for ours, theirs in zip(trained + called, expected * 3 + lean * 3, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


# ---- in models -----------------------------------------------------------------------------------


def model_of(device: str) -> fastrnn.Sequential:
    layers = [
        fastrnn.LSTM(3, 12, dropout=0.1, num_layers=2, seed=1, device=device),
        fastrnn.Last(),
        fastrnn.Dense(12, 2, seed=2),
    ]
    optimizer = fastrnn.optimizers.Adam(0.02)
    return fastrnn.Sequential(layers).compile(optimizer, "cross_entropy", ["accuracy"])


def series(rng: Rng) -> tuple[Array, Array]:
    x = rng.standard_normal((96, 10, 3)).astype(np.float32)
    return x, (x[:, :, 0].sum(1) > 0).astype(int)


def test_a_model_learns_what_it_learns_on_the_cpu(rng: Rng, tmp_path: Path) -> None:
    x, y = series(rng)
    histories, models = [], []
    for device in ("cpu", "cuda"):
        model = model_of(device)
        models.append(model)
        histories.append(model.fit(x, y, epochs=12, batch_size=32, seed=0))
    cpu, gpu = histories
    np.testing.assert_allclose(gpu["loss"], cpu["loss"], rtol=0.02)
    assert gpu["accuracy"][-1] > 0.9
    np.testing.assert_allclose(models[1].predict(x), models[0].predict(x), atol=0.1)
    path = tmp_path / "model.safetensors"
    models[1].save(path)
    loaded = fastrnn.Sequential.load(path)
    assert loaded.layers[0].device == "cuda"
    assert_same_bits(loaded.predict(x), models[1].predict(x))
    moved = fastrnn.Sequential.load(path, device="cpu")
    assert moved.layers[0].device == "cpu"
    np.testing.assert_allclose(moved.predict(x), models[1].predict(x), atol=1e-4)
    moved.save(path)
    assert fastrnn.Sequential.load(path, device="cuda:0").layers[0].device == "cuda:0"


@pytest.mark.parametrize("dtype", HALVES)
def test_models_of_half_precision_are_saved(dtype: str, rng: Rng, tmp_path: Path) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = fastrnn.Sequential([fastrnn.GRU(I, H, device="cuda", dtype=dtype)])
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = fastrnn.Sequential.load(path)
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], array, strict=True)
    with pytest.raises(ValueError, match=r"dtype: expected float32 or float64, got '.*float16'"):
        fastrnn.Sequential.load(path, device="cpu")


def test_truncated_backpropagation(rng: Rng) -> None:
    case = draw_case("lstm", rng, **SIZES, ragged=True)
    gpu = on_gpu(case.layer)
    windows: list[list[Array]] = []
    for layer in (gpu, in_double(case.layer)):
        inputs, grads = case.inputs, case.grads["grad_output"]
        if layer is not gpu:
            inputs, grads = widened(inputs), grads.astype(float)
        windows.append([])
        for window in fastrnn.tbptt(layer, k=4, **inputs):
            gradients = layer.backward(window.tape, grads[window.steps])
            windows[-1] += [window.output, *results(window.state), *results(gradients)]
    bound = gradient_tolerance(T, B, I, H)
    for ours, theirs in zip(*windows, strict=True):
        assert scaled_error(ours.astype(float), theirs) <= bound


# ---- what is around it ---------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["cu13", "cublas"])
def test_the_library_of_a_wheel_is_found(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    assert cuda_engine.cublas_path() is None
    folder = tmp_path / "nvidia" / package / "lib"
    folder.mkdir(parents=True)
    importlib.invalidate_caches()
    assert cuda_engine.cublas_path() is None
    (folder / "libcublas.so.13").touch()
    assert cuda_engine.cublas_path() == str(folder / "libcublas.so.13")
    monkeypatch.delenv("FASTRNN_CUBLAS", raising=False)
    cuda_engine._point_to_cublas.__wrapped__()
    assert cuda_engine.os.environ["FASTRNN_CUBLAS"] == str(folder / "libcublas.so.13")
    monkeypatch.setenv("FASTRNN_CUBLAS", "mine")
    cuda_engine._point_to_cublas.__wrapped__()
    assert cuda_engine.os.environ["FASTRNN_CUBLAS"] == "mine"


@pytest.mark.anywhere
def test_nothing_of_this_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, numpy, fastrnn; fastrnn.GRU(5, 7)(numpy.zeros((2, 3, 5), numpy.float32));"
        "assert not [name for name in sys.modules if name.startswith('fastrnn.cuda')];"
        "fastrnn.cuda.to_device"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.anywhere
@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda0", "", None, 0]
)
def test_unknown_devices(device: Any) -> None:
    expected = "device: expected 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ..., got "
    for cls in (fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU):
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}{re.escape(repr(device))}$"):
            cls(I, H, device=device)


@pytest.mark.anywhere
def test_types_and_options_that_need_a_gpu() -> None:
    message = "dtype: expected float32 or float64, got 'float16' (device='cuda' takes it)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fastrnn.LSTM(I, H, dtype="float16")
    with pytest.raises(ValueError, match=r"^allow_tf32: expected False but for device='cuda'"):
        fastrnn.LSTM(I, H, allow_tf32=True)
    with pytest.raises(TypeError, match=r"^allow_tf32: expected True or False, got 1"):
        fastrnn.LSTM(I, H, allow_tf32=1)  # type: ignore[arg-type]


@pytest.mark.without_gpu
def test_the_error_says_what_is_missing() -> None:
    for call in (
        lambda: fastrnn.LSTM(I, H, device="cuda"),
        lambda: fastrnn.GRU(I, H, device="cuda:9"),
        lambda: to_device(np.ones(3)),
    ):
        with pytest.raises(RuntimeError, match=r"^device='cuda': expected "):
            call()


# ---- what the kernels multiply -------------------------------------------------------------------


def test_an_infinite_state_stays_infinite(rng: Rng) -> None:
    # Products of float32 are formed of parts, of which infinity has no two.
    layer = make_layer("rnn_relu", 3, H, rng)
    x = rng.standard_normal((3, B, 3)).astype(np.float32)
    state = np.zeros((1, B, H), np.float32)
    state[0, 0, 0], state[0, 1, 1] = np.inf, 3.402e38
    expected, actual = layer(x, state)[0], on_gpu(layer)(x, state)[0]
    assert np.isinf(expected).any()
    finite = np.isfinite(expected)
    assert (np.isfinite(actual) == finite).all()
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=1e-5, atol=1e-5)


# ---- the README ----------------------------------------------------------------------------------


def test_what_the_readme_shows_of_gpus_runs(rng: Rng) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    blocks = re.findall(r"```py\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1
    x = rng.standard_normal((100, 32, 8)).astype(np.float32)
    names: dict[str, Any] = {"fastrnn": fastrnn, "x": x, "lengths": np.arange(32) * 3}
    exec(blocks[0], names)
    assert isinstance(names["output"], DeviceArray)
    assert names["output"].shape == (100, 32, 64)
