"""The way into the compiled core: checks arguments, names the culprit, hands arrays over.

No other module imports ``fastrnn._core``.
"""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn._core import (
    CELLS,
    MERGES,
    CudaEngine,
    CudaTape,
    DeviceMemory,
    Engine,
    KeptSteps,
    Tape,
    __version__,
    activation,
    adam,
    affine,
    affine_backward,
    borrow_threads_of,
    common_bits,
    config,
    cuda_build,
    cuda_device_count,
    cuda_device_name,
    cuda_device_of,
    cuda_download,
    cuda_gather,
    cuda_upload,
    cuda_wait,
    cuda_wait_for,
    fma_peak,
    read_bandwidth,
    read_tensors_of,
    rmsprop,
    sgd,
    sum_of_squares,
)
from fastrnn._core import get_num_threads as _get_num_threads
from fastrnn._core import mask as _mask
from fastrnn._core import set_num_threads as _set_num_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal, Protocol

    from numpy.typing import ArrayLike, NDArray

    FloatArray = NDArray[np.floating[Any]]

    class SupportsArray(Protocol):
        """What NumPy can view: an ndarray, a torch tensor, anything else with ``__array__``."""

        def __array__(self) -> NDArray[Any]: ...


__all__ = [
    "CELLS",
    "MERGES",
    "CudaEngine",
    "CudaTape",
    "DeviceMemory",
    "Engine",
    "KeptSteps",
    "Noise",
    "Tape",
    "__version__",
    "activation",
    "adam",
    "affine",
    "affine_backward",
    "backward",
    "borrow_threads_of",
    "common_bits",
    "config",
    "cuda_build",
    "cuda_device_count",
    "cuda_device_name",
    "cuda_device_of",
    "cuda_download",
    "cuda_gather",
    "cuda_upload",
    "cuda_wait",
    "cuda_wait_for",
    "fma_peak",
    "forward",
    "get_num_threads",
    "listed",
    "mask",
    "read_bandwidth",
    "read_tensors_of",
    "rmsprop",
    "set_num_threads",
    "sgd",
    "show_config",
    "step",
    "sum_of_squares",
    "view",
    "view_state",
]


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int of [`low`, `high`), or raise an error that names the argument.

    Examples
    --------
    >>> integer("hidden_size", 0, 1)
    Traceback (most recent call last):
    ValueError: hidden_size: expected an integer >= 1, got 0
    """
    expected = f">= {low}" if high is None else f"in [{low}, {high})"
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer {expected}, got {value!r}") from None
    if result < low or (high is not None and result >= high):
        raise ValueError(f"{name}: expected an integer {expected}, got {result}")
    return result


def boolean(name: str, value: object) -> bool:
    """Return `value` as a bool, or raise an error that names the argument."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a float of [`low`, `high`], or raise an error that names the argument."""
    expected = "a number" if low == -math.inf else f"a number >= {low:g}"
    if high < math.inf:
        expected = f"a number in [{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return float(value)


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, or raise an error that names the argument."""
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


_FLOATS: tuple[np.dtype[np.floating[Any]], ...] = (np.dtype(np.float32), np.dtype(np.float64))


def float_dtype(name: str, value: Any) -> np.dtype[np.floating[Any]]:
    """Return float32 or float64 in this machine's byte order, or raise a ValueError."""
    for known in _FLOATS:
        is_it = known is value
        if is_it:
            return known
    dtype = None
    if value is not None:  # which NumPy would take for float64
        with contextlib.suppress(TypeError):
            dtype = np.dtype(value).str
    for known in _FLOATS:
        if known.str == dtype:
            return known
    raise ValueError(f"{name}: expected float32 or float64, got {value!r}")


def half_dtype(value: Any) -> np.dtype[Any] | None:
    """Return float16, or the bfloat16 of the package ml_dtypes, if `value` names it; else None."""
    if isinstance(value, str) and value == "bfloat16":
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            return None
        value = bfloat16
    dtype = None
    if value is not None:
        with contextlib.suppress(TypeError):
            dtype = np.dtype(value)
    known = dtype is not None and dtype.name in ("float16", "bfloat16") and dtype.isnative
    return dtype if known else None


def layer_dtype(name: str, value: Any, device: str) -> np.dtype[Any]:
    """Return the type of a recurrent layer's arrays, or raise a ValueError.

    Examples
    --------
    >>> layer_dtype("dtype", "float16", "cpu")
    Traceback (most recent call last):
    ValueError: dtype: expected float32 or float64, got 'float16' (device='cuda' takes it)
    """
    half = half_dtype(value)
    if device != "cpu" and half is not None:
        return half
    try:
        return float_dtype(name, value)
    except ValueError as error:
        if half is not None:
            raise ValueError(f"{error} (device='cuda' takes it)") from None
        if device == "cpu":
            raise
        missing = " (a bfloat16 needs the package ml_dtypes)" if value == "bfloat16" else ""
        raise ValueError(
            f"{name}: expected float32, float64, float16 or bfloat16, got {value!r}{missing}"
        ) from None


_GPUS = "'cuda' or 'cuda:0', 'cuda:1', ..."


def device_number(name: str, value: Any) -> int | None:
    """Return the number of a GPU that is there, None of the CPU, or raise an error.

    Examples
    --------
    >>> device_number("device", "gpu")
    Traceback (most recent call last):
    ValueError: device: expected 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ..., got 'gpu'
    """
    if isinstance(value, str) and value == "cpu":
        return None
    return gpu_number(name, value, f"'cpu', {_GPUS}")


def gpu_number(name: str, value: Any, expected: str = _GPUS) -> int:
    """Return the number of a GPU that is there, or raise an error that says what is expected."""
    kind, colon, digits = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind != "cuda" or bool(colon) != (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    count = cuda_device_count()
    number = int(digits or 0)
    if number >= count:
        there = "one GPU, 'cuda:0'" if count == 1 else f"one of {count} GPUs, from 'cuda:0' on"
        raise ValueError(f"{name}: expected {there}, got {value!r}")
    return number


def generator(name: str, seed: Any) -> np.random.Generator:
    """Return the random generator of a seed, or raise an error that names the argument."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name}: expected an integer >= 0, a numpy.random.Generator or None, got {seed!r}"
        ) from None


def view(name: str, value: Any) -> NDArray[Any]:
    """View `value` as an array; what NumPy could only copy, such as a list, is refused."""
    if isinstance(value, np.ndarray):
        return value
    kind = type(value).__name__
    if not hasattr(value, "__array__"):
        try:
            memoryview(value)
        except TypeError:
            raise TypeError(f"{name}: expected an array, got {kind}") from None
    try:
        return np.asarray(value)
    except Exception as error:  # whatever the object's own conversion raises
        raise TypeError(f"{name}: expected an array, got {kind}: {error}") from error


def listed(name: str, expected: str, value: Any) -> NDArray[Any]:
    """Convert an array or nested lists, or raise an error that names the argument."""
    try:
        array: NDArray[Any] = np.asanyarray(value)
    except Exception as error:  # ragged lists, a tensor on a GPU
        kind = type(value).__name__
        raise type(error)(f"{name}: expected {expected}, got {kind}: {error}") from error
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected {expected}, got a masked array")
    return array


def view_state(state: Any, name: str = "state") -> Any:
    """View a state, None, ``h`` or ``(h, c)``, as arrays."""
    if state is None:
        return None
    if isinstance(state, (tuple, list)):
        absent = name != "state"  # a gradient may have one part only
        views = [None if absent and part is None else view(name, part) for part in state]
        return tuple(views) if isinstance(state, tuple) else views
    return view(name, state)


def float_array(
    name: str, value: Any, dtype: np.dtype[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Convert an array or a torch tensor of any floating-point type, or raise a TypeError."""
    if hasattr(value, "detach"):
        # NumPy reads no tensor that has a gradient, lies on a GPU or is bfloat16.
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    array = listed(name, "floats", value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected floats, got {array.shape} {array.dtype}")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    if converted is not array and np.any(np.isinf(converted) & ~np.isinf(array)):
        raise ValueError(f"{name}: expected numbers that fit {dtype}, got larger ones")
    return converted


def integer_lengths(lengths: ArrayLike) -> NDArray[np.int64]:
    """Return integers of any type as int64, or raise an error that names the argument."""
    values = listed("lengths", "integers (B,)", lengths)
    # An empty list has no integers to show its type by.
    if values.dtype.kind not in "iu" and values.size:
        raise TypeError(f"lengths: expected integers (B,), got {values.shape} {values.dtype}")
    return values.astype(np.int64, copy=False)


def sequence(
    x: SupportsArray, state: Any, lengths: ArrayLike | None, resets: ArrayLike | None
) -> tuple[NDArray[Any], Any, NDArray[np.int64] | None, NDArray[Any] | None]:
    """View what a whole-sequence call is given as the arrays that the core takes."""
    return (
        x if type(x) is np.ndarray else view("x", x),
        state if state is None else view_state(state),
        None if lengths is None else integer_lengths(lengths),
        None if resets is None else listed("resets", "bools", resets),
    )


class Noise(NamedTuple):
    """What is random in training, and zoneout, which acts in evaluation mode, too.

    Attributes
    ----------
    dropout, input_dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_drop : float
        Probabilities.
    training : bool
        Whether masks are drawn; if not, zoneout acts by its expectation, and the rest must be 0.
    """

    dropout: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    weight_drop: float = 0.0
    training: bool = False

    @property
    def is_random(self) -> bool:
        """Whether a call draws any mask."""
        return self.training and any(self[:-1])

    def evaluated(self) -> Noise:
        """Return what of it acts in evaluation mode."""
        return Noise(zoneout_h=self.zoneout_h, zoneout_c=self.zoneout_c)


def mask(
    kind: Literal["dropout", "input", "recurrent", "weight", "zoneout_h", "zoneout_c"],
    shape: tuple[int, ...],
    probability: float,
    seed: int,
    layer: int,
    direction: int = 0,
) -> NDArray[np.float32]:
    """Draw a mask as the kernels do.

    Parameters
    ----------
    kind : {"dropout", "input", "recurrent", "weight", "zoneout_h", "zoneout_c"}
        What it is a mask of.
    shape : tuple of int
        (T, B, units) of "dropout" and zoneout, (B, units) of "input" and "recurrent", which hold
        for a whole sequence, (G·H, R) of "weight".
    probability : float
        Of a zero, where the others are 1 / (1 - probability); of zoneout that of a one, which
        keeps a unit's state.
    seed : int
        Of the call.
    layer, direction : int
        Which.

    Returns
    -------
    ndarray
        What is multiplied by.

    Examples
    --------
    >>> kept = mask("recurrent", (64, 256), 0.25, seed=1, layer=0) > 0
    >>> bool(abs(kept.mean() - 0.75) < 0.02)
    True
    """
    return _mask(
        kind,
        [integer("shape", size, 0) for size in shape],
        number("probability", probability, 0, 1),
        seed,
        integer("layer", layer, 0),
        integer("direction", direction, 0, 2),
    )


def forward(
    engine: Engine,
    x: SupportsArray,
    state: Any,
    lengths: ArrayLike | None,
    resets: ArrayLike | None,
    batch_first: bool,
    noise: Noise,
    seed: int,
    parameters: Sequence[FloatArray] | None,
    *,
    keep: bool,
    all_states: bool = False,
) -> Any:
    """Run `engine` over a whole sequence.

    Parameters
    ----------
    engine : Engine
        Packed engine, unless it is given parameters.
    x : array (T, B, I), (B, T, I) if `batch_first`, or (T, I)
        Input, of the engine's dtype.
    state : None, array or pair of arrays
        Initial state, zero by default.
    lengths : integers (B,), optional
        Valid steps of each row.
    resets : bools (T, B), (B, T) if `batch_first`, or (T,), optional
        Where the state is zeroed before the step is consumed.
    batch_first : bool
        Whether the batch is the first axis.
    noise : Noise
        What is random.
    seed : int
        Seed of its masks.
    parameters : sequence of arrays or None
        In the engine's order. None uses the packed ones.
    keep : bool
        Whether to keep what `backward` needs, of given parameters.
    all_states : bool, default False
        Whether the states of all steps are wanted.

    Returns
    -------
    output : array
        Output of the last layer at every step; with `keep` read-only, as the tape refers to it.
    state : array or pair of arrays
        Final state.
    tape : Tape
        With `keep`: to be given to `backward`.
    states : array or pair of arrays
        With `all_states`: (L*D, T, B, R), of an LSTM's c (L*D, T, B, H).
    """
    arrays = sequence(x, state, lengths, resets)
    return engine.forward(
        *arrays, batch_first, noise, seed, keep, parameters, keep, None, False, all_states
    )


def check(
    engine: Engine,
    x: SupportsArray,
    state: Any,
    lengths: ArrayLike | None,
    resets: ArrayLike | None,
    batch_first: bool,
) -> None:
    """Raise what `forward` would raise of these arguments."""
    engine.check(*sequence(x, state, lengths, resets), batch_first)


def step(engine: Engine, x: SupportsArray, state: Any) -> tuple[FloatArray, Any]:
    """Run one step of a packed engine, on whatever NumPy can view."""
    return engine.step(view("x", x), view_state(state))


def backward(
    engine: Engine,
    tape: Tape,
    parameters: Iterable[FloatArray],
    grad_output: SupportsArray | None,
    grad_state: Any,
    *,
    retain: bool,
    input_grad: bool,
    grad_states: Any = None,
) -> tuple[FloatArray | None, Any, list[FloatArray]]:
    """Differentiate the call that made `tape`.

    Parameters
    ----------
    engine : Engine
        The one that made it.
    tape : Tape
        Of `forward`.
    parameters : iterable of arrays
        In the engine's order, unchanged since.
    grad_output : array, optional
        Gradient of the output, laid out as it; zero by default.
    grad_state : array or pair of arrays, optional
        Gradient of the final state; zero by default, as is a part that is None.
    retain : bool
        Whether the tape can be used again.
    input_grad : bool
        Whether the gradient of the input is wanted.
    grad_states : array or pair of arrays, optional
        Gradient of the states of all steps; zero by default.

    Returns
    -------
    input : array or None
        Gradient of the input.
    state : array or pair of arrays
        Gradient of the initial state.
    parameters : list of arrays
        Gradients in the engine's order.
    """
    if not isinstance(tape, Tape):
        from fastrnn.cuda_engine import DeviceTape  # here, for `import fastrnn` is to be quick

        if isinstance(tape, DeviceTape):
            raise ValueError(
                "tape: expected one that this layer's forward returned, got a cuda layer's"
            )
        raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
    return engine.backward(
        tape,
        tuple(parameters),
        None if grad_output is None else view("grad_output", grad_output),
        view_state(grad_state, "grad_state"),
        retain,
        input_grad,
        None,
        False,
        view_state(grad_states, "grad_states"),
    )


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, in this process.

    It starts as the environment variable ``FASTRNN_NUM_THREADS``, else as the number of physical
    cores. Results do not depend on it, to the last bit.

    Parameters
    ----------
    n : int
        From 1 to 4096. More than there are cores gains nothing.

    Examples
    --------
    >>> import fastrnn
    >>> before = fastrnn.get_num_threads()
    >>> fastrnn.set_num_threads(1)
    >>> fastrnn.get_num_threads()
    1
    >>> fastrnn.set_num_threads(before)
    """
    _set_num_threads(integer("n", n, 1, 4097))


def get_num_threads() -> int:
    """Return how many threads a call may use, see `set_num_threads`.

    Returns
    -------
    int
        At least 1.
    """
    return _get_num_threads()


def show_config() -> None:
    """Print what this build is and what it uses on this machine.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.show_config()  # doctest: +ELLIPSIS
    fastrnn ...
      instructions  ...
      threads       ...
      CUDA          ...
      compiler      ...
      Python        ..., NumPy ...
    """
    build = config()
    print(
        f"fastrnn {build['version']}\n"
        f"  instructions  {build['isa']} (usable here: {', '.join(build['isas'])})\n"
        f"  threads       {build['threads']}\n"
        f"  CUDA          {'not in this build' if build['cuda'] == 'none' else build['cuda']}\n"
        f"  compiler      {build['compiler']}\n"
        f"  Python        {sys.version.split()[0]}, NumPy {np.__version__}"
    )
