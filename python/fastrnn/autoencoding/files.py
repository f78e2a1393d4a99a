"""Autoencoders as files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastrnn import io
from fastrnn.callbacks import History

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from fastrnn.autoencoding.estimator import AutoencoderBase

    Kind = TypeVar("Kind", bound=AutoencoderBase)

__all__ = ["load", "save"]

_FORMAT = "fastrnn autoencoder 1"


def save(estimator: AutoencoderBase, path: str | os.PathLike[str]) -> None:
    """Save a fitted estimator, see ``AutoencoderBase.save``."""
    model = estimator.model_
    arrays: dict[str, Any] = {
        f"model/{name}": array for name, array in {**model.parameters, **model.buffers}.items()
    }
    for name, array in estimator.history_.state_dict().items():
        arrays[f"history/{name}"] = array
    texts = {
        # As they are, and as they were when the network was made.
        "parameters": estimator.get_params(deep=False),
        "fitted": estimator._fitted,
        "state": estimator._state(),
    }
    metadata = {"format": _FORMAT, "class": type(estimator).__name__}
    for kind, values in texts.items():
        metadata[kind] = json.dumps(_numbers(kind, values, arrays))
    io.save_arrays(path, arrays, metadata)


def _numbers(kind: str, values: Mapping[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON holds of values, and put what it does not among the arrays."""
    numbers = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            arrays[f"{kind}/{name}"] = value
            continue
        if isinstance(value, np.generic):
            value = value.item()
        try:
            value = json.loads(json.dumps(value, default=lambda v: v.item()))
        except (TypeError, AttributeError):
            value = None  # a source of randomness, another estimator
        numbers[name] = value
    return numbers


def load(cls: type[Kind], path: str | os.PathLike[str]) -> Kind:
    """Load an estimator, see ``AutoencoderBase.load``."""
    arrays, metadata = io.load_arrays(path)
    if metadata.get("format") != _FORMAT or metadata.get("class") != cls.__name__:
        raise ValueError(
            f"{path}: expected a file that {cls.__name__}.save wrote, got one of"
            f" {metadata.get('class')!r} in format {metadata.get('format')!r}"
        )
    try:
        return _restored(cls, arrays, metadata)
    except (LookupError, TypeError, AttributeError, ValueError, MemoryError) as error:
        raise ValueError(f"{path}: expected what save writes, got {error!r}") from error


def _restored(cls: type[Kind], arrays: dict[str, Any], metadata: Mapping[str, str]) -> Kind:
    def values(kind: str) -> dict[str, Any]:
        prefix = f"{kind}/"
        found = {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
        numbers = json.loads(metadata[kind]) if kind in metadata else {}
        # JSON has no tuples.
        return found | {n: tuple(v) if isinstance(v, list) else v for n, v in numbers.items()}

    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("numbers that are not finite")
    estimator = cls(**values("fitted"))
    estimator._fitted = values("fitted")
    estimator._set_state(values("state"))
    model = estimator._model(estimator._features(), np.random.default_rng(0))
    model.load_state_dict(values("model"))
    estimator.model_ = model.eval()
    estimator.history_ = History()
    estimator.history_.load_state_dict(values("history"))
    estimator.n_iter_ = len(estimator.history_.epochs)
    estimator.n_components_ = int(estimator.n_components)
    estimator.set_params(**values("parameters"))
    return estimator
