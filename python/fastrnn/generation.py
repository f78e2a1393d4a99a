"""Sampling from language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional
from fastrnn.activations import softmax
from fastrnn.containers import in_mode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastrnn.functional import FloatArray

__all__ = ["draw", "generate"]


def draw(
    logits: FloatArray, temperature: float, top_k: int | None, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw one id for each row of logits.

    Parameters
    ----------
    logits : array (B, n)
        Of the ids.
    temperature : float
        Divides them; 0 takes the largest.
    top_k : int or None
        Draws among the k largest.
    generator : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray of int64 (B,)

    Examples
    --------
    >>> draw(np.array([[0.0, 2.0, 1.0]]), 0.0, None, np.random.default_rng(0)).tolist()
    [1]
    """
    logits = logits.astype(np.float64)
    if not np.all(np.isfinite(logits) | (logits == -np.inf)) or np.any(
        logits.max(axis=1) == -np.inf
    ):
        raise ValueError("model: expected finite logits, got NaN or infinity")
    if temperature == 0 or top_k == 1:
        return np.asarray(logits.argmax(axis=1), np.int64)
    if top_k is not None and top_k < logits.shape[1]:
        # Those that equal the k-th largest stay, too.
        least = np.partition(logits, -top_k, axis=1)[:, -top_k, np.newaxis]
        logits = np.where(logits < least, -np.inf, logits)
    cumulative = softmax(logits / temperature).cumsum(axis=1)
    thresholds = generator.random((len(logits), 1)) * cumulative[:, -1:]
    return np.asarray(np.sum(cumulative <= thresholds, axis=1), np.int64)


def generate(
    model: Any,
    prompt: Any,
    steps: int,
    temperature: float,
    top_k: int | None,
    seed: Any,
    has_padding: bool,
) -> NDArray[np.int64]:
    """Continue sequences of ids, see ``Sequential.generate``."""
    ids = functional.listed("prompt", "ids (T,) or (B, T)", prompt)
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or ids.shape[-1] == 0:
        raise ValueError(
            f"prompt: expected at least one id, (T,) or (B, T), got {ids.shape} {ids.dtype}"
        )
    steps = functional.integer("steps", steps, 0)
    temperature = functional.number("temperature", temperature, 0)
    top_k = None if top_k is None else functional.integer("top_k", top_k, 1)
    generator = functional.generator("seed", seed)
    columns = np.atleast_2d(ids).T.astype(np.int64)
    chosen = np.empty((steps, columns.shape[1]), np.int64)

    if not model.stepwise:
        raise ValueError(
            "generate: expected a model whose output at a step depends on that step and those"
            " before it only; this one looks at a whole sequence at once"
        )
    with model._lock, in_mode(model, training=False):
        lengths = model.output_lengths(columns, None)
        if lengths is not None and not lengths.all():
            raise ValueError("prompt: expected at least one id besides padding in each row")
        output, state = model.apply(columns, None, lengths)
        last = np.full(columns.shape[1], len(columns)) if lengths is None else lengths
        logits = output[last - 1, np.arange(columns.shape[1])]
        for i in range(steps):
            if has_padding:
                logits[:, 0] = -np.inf  # padding is no id
            chosen[i] = draw(logits, temperature, top_k, generator)
            if i + 1 < steps:
                logits, state = model.step(chosen[i], state)
    return chosen[:, 0] if ids.ndim == 1 else chosen.T.copy()
