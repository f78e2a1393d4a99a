"""Models as files: arrays under their names, the rest as JSON in the metadata."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastrnn import callbacks, functional, io, losses, metrics, optimizers
from fastrnn.config import build, describe, place
from fastrnn.containers import walk
from fastrnn.layer import Layer

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from fastrnn.trainer import Model

__all__ = ["load", "save"]

_FORMAT = "fastrnn model 1"
_OPTIMIZER = "optimizer/"
_CALLBACKS = "callbacks/"
_TOTALS = "totals/"
# Of layers.
_HOMES = ("attention", "containers", "convolution", "layers", "models", "recurrent", "seq2seq")
Kind = TypeVar("Kind", bound="Model")


def save(model: Model, path: str | os.PathLike[str], include_training: bool) -> None:
    """Save a model, see ``Sequential.save``."""
    arrays: dict[str, Any] = {**model.parameters, **model.buffers}
    metadata = {
        "format": _FORMAT,
        "model": json.dumps(describe(model)),
        "mask_seeds": json.dumps(
            {name: layer._mask_seed for name, layer in _random(model).items()}
        ),
        "modes": json.dumps(
            {name: [layer.training, layer.trainable] for name, layer in walk(model)}
        ),
    }
    wrong = [name for name in arrays if name.startswith((_OPTIMIZER, _CALLBACKS, _TOTALS))]
    if wrong:
        raise ValueError(f"parameters: expected other names, got {wrong[0]!r}")
    if include_training and model.optimizer is not None:
        metadata["training"] = json.dumps(_training(model, arrays))
    io.save_arrays(path, arrays, metadata)


def _training(model: Model, arrays: dict[str, Any]) -> dict[str, Any]:
    """Describe the training, and add its arrays to those of the model."""
    assert model.optimizer is not None
    numbers, more = _divide(model.optimizer.state_dict())
    arrays.update({_OPTIMIZER + name: array for name, array in more.items()})
    if model._progress.batch:
        arrays.update({_TOTALS + name: a for name, a in model._totals.state_dict().items()})
    # Of the fit that runs, or, of a model that was loaded, those that wait for the next one.
    running = [(callbacks.describe(each), each.state_dict()) for each in model._callbacks]
    memories = []
    for i, (description, memory) in enumerate(running or model._callback_states):
        state, more = _divide(memory)
        memories.append({"callback": description, "state": state})
        arrays.update({f"{_CALLBACKS}{i}/{key}": array for key, array in more.items()})
    return {
        "optimizer": describe(model.optimizer, "optimizer"),
        "optimizer_state": numbers,
        "loss": describe(model.loss, "loss"),
        "metrics": [_describe_metric(metric) for metric in model.metrics],
        "progress": list(model._progress),
        "seed": model._fit_seed,
        "callbacks": memories,
    }


def _describe_metric(metric: metrics.Metric) -> Any:
    named = metrics.NAMED.get(metric.name) is metric
    return metric.name if named else describe(metric, "metrics")


def load(
    cls: type[Kind],
    path: str | os.PathLike[str],
    custom: Mapping[str, type],
    device: str | None = None,
) -> Kind:
    """Load a model, see ``Sequential.load``."""
    if device is not None:
        functional.device_number("device", device)
    arrays, metadata = io.load_arrays(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: expected a file that a model's save wrote, got one of format"
            f" {metadata.get('format')!r}"
        )
    try:
        return _load(cls, arrays, metadata, custom, device)
    except ValueError as error:  # of JSON, too
        raise ValueError(f"{path}: {error}") from error
    except (LookupError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: expected what a model's save writes, got {error!r}") from error


def _load(
    cls: type[Kind],
    arrays: dict[str, Any],
    metadata: dict[str, str],
    custom: Mapping[str, type],
    device: str | None,
) -> Kind:
    description, classes = json.loads(metadata["model"]), {**_classes(Layer), **custom}
    if device is not None:
        description = place(description, device, classes)
    model = build(description, classes)
    if not isinstance(model, cls):
        raise ValueError(f"expected a {cls.__name__}, got a {type(model).__name__}")
    ours = (_OPTIMIZER, _CALLBACKS, _TOTALS)
    model.load_state_dict({n: a for n, a in arrays.items() if not n.startswith(ours)})
    random = _random(model)
    for name, seed in json.loads(metadata["mask_seeds"]).items():
        random[name]._mask_seed = functional.integer("mask_seeds", seed, 0, 2**64)
    if "training" in metadata:
        _restore(model, json.loads(metadata["training"]), arrays, custom)
    layers = dict(walk(model))
    for name, (training, trainable) in json.loads(metadata["modes"]).items():
        # Inner layers come after those that they are in.
        layers[name].train(training).trainable = functional.boolean("trainable", trainable)
    return model


def _restore(
    model: Model, training: dict[str, Any], arrays: dict[str, Any], custom: Mapping[str, type]
) -> None:
    known = {
        **_classes(losses.Loss),
        **_classes(optimizers.Optimizer),
        **_classes(optimizers.Schedule),
        **_classes(metrics.Metric),
        **custom,
    }
    model.compile(
        build(training["optimizer"], known),
        build(training["loss"], known),
        [build(metric, known) for metric in training["metrics"]],
    )
    assert model.optimizer is not None
    state = {**training["optimizer_state"], **_under(_OPTIMIZER, arrays)}
    if state["updates"]:
        model.optimizer.load_state_dict(state)
    epoch, batch, order = training["progress"]
    model._progress = model._progress._replace(
        epoch=functional.integer("epoch", epoch, 0),
        batch=functional.integer("batch", batch, 0),
        order=tuple(functional.integer("order", number, 0) for number in order),
    )
    model._fit_seed = training["seed"] and functional.integer("seed", training["seed"], 0)
    totals = _under(_TOTALS, arrays)
    if totals:
        model._totals = type(model._totals)(model.metrics)
        model._totals.load_state_dict(totals)
    model._callback_states = [
        (memory["callback"], {**memory["state"], **_under(f"{_CALLBACKS}{i}/", arrays)})
        for i, memory in enumerate(training["callbacks"])
    ]


def _under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def _divide(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide a state into what JSON holds and arrays."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    return {name: value for name, value in state.items() if name not in arrays}, arrays


def _random(model: Layer) -> dict[str, Layer]:
    """Return the layers that draw masks, by name."""
    return {name: layer for name, layer in walk(model) if layer._mask_seed is not None}


def _classes(base: type[Any]) -> dict[str, type]:
    """Return the classes of this package under a base, by name."""
    for module in _HOMES:
        import_module(f"fastrnn.{module}")  # or the base does not know of them
    found: dict[str, type] = {}
    for cls in base.__subclasses__():
        if cls.__module__.startswith("fastrnn."):
            found[cls.__name__] = cls
        found.update(_classes(cls))
    return found
