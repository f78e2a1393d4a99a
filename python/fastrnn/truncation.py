"""Truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn import functional
from fastrnn.recurrent import Recurrent

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastrnn.functional import FloatArray, SupportsArray

__all__ = ["Window", "tbptt"]


class Window(NamedTuple):
    """What `tbptt` yields.

    Attributes
    ----------
    steps : slice
        Steps of the sequence that the window covers.
    output : ndarray
        Output at those steps, read-only.
    state : ndarray, or a pair of them (h, c) for `LSTM`
        State after them, which the next window starts from.
    tape : Tape
        For ``layer.backward``.
    """

    steps: slice
    output: FloatArray
    state: Any
    tape: functional.Tape


def tbptt(
    layer: Recurrent[Any],
    x: SupportsArray,
    k: int,
    state: Any = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> Iterator[Window]:
    """Walk a long sequence in windows of k steps for truncated backpropagation through time.

    Each window starts from the state that the one before it ended with, and no gradient passes
    from one to the other. A window runs when it is asked for, so parameters may change between
    two of them.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Not bidirectional: the reverse direction needs the whole sequence.
    x, state, lengths, resets
        As for ``layer.forward``.
    k : int
        Steps in a window; the last may be shorter. From T on this is plain backpropagation.

    Returns
    -------
    iterator of Window
        `steps`, `output`, `state` and `tape` of each.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Notes
    -----
    This is BPTT(k; k) in the notation of [1]_. Outputs are bit for bit those of the whole sequence
    as long as the parameters stay the same and nothing is random: each window is a call of its own
    and draws masks of its own, those of ``recurrent_dropout`` too.

    References
    ----------
    .. [1] R. J. Williams, J. Peng. An efficient gradient-based algorithm for on-line training of
           recurrent network trajectories. Neural Computation 2(4), 1990.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.GRU(8, 16, seed=0)
    >>> x, target = np.ones((100, 3, 8), np.float32), np.ones((100, 3, 16), np.float32)
    >>> for window in fastrnn.tbptt(layer, x, k=40):
    ...     g = layer.backward(window.tape, window.output - target[window.steps])
    ...     for name, parameter in layer.parameters.items():
    ...         parameter -= 0.001 * g.parameters[name]
    ...     print(window.steps, window.output.shape)
    slice(0, 40, None) (40, 3, 16)
    slice(40, 80, None) (40, 3, 16)
    slice(80, 100, None) (20, 3, 16)
    """
    if not isinstance(layer, Recurrent):
        kind = type(layer).__name__
        raise TypeError(f"layer: expected an RNN, LSTM or GRU of this package, got {kind}")
    if layer.bidirectional:
        raise ValueError("layer: expected one direction, got a bidirectional layer")
    k = functional.integer("k", k, 1)
    x, state, lengths, resets = functional.sequence(x, state, lengths, resets)
    layer.check(x, state, lengths, resets)
    return _windows(layer, x, k, state, lengths, resets)


def _windows(
    layer: Recurrent[Any],
    x: NDArray[Any],
    k: int,
    state: Any,
    lengths: NDArray[np.int64] | None,
    resets: NDArray[Any] | None,
) -> Iterator[Window]:
    time_axis = 1 if layer.batch_first and x.ndim == 3 else 0
    T = x.shape[time_axis]
    cut = (slice(None),) * time_axis
    for start in range(0, T, k):
        steps = slice(start, min(start + k, T))
        output, state, tape = layer.forward(
            x[(*cut, steps)],
            state,
            None if lengths is None else np.clip(lengths - start, 0, steps.stop - start),
            None if resets is None else resets[(*cut, steps)],
        )
        yield Window(steps, output, state, tape)
