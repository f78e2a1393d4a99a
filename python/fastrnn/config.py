"""Objects as JSON: their class and the arguments of their constructor, and back.

An object that keeps every argument in an attribute of the same name can be made again from them.
Arguments without such an attribute, such as seeds, are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["build", "describe", "describe_arguments", "place"]

_CLASS = "class"


def _arguments(cls: type) -> list[str]:
    """Return the names of the constructor's arguments, those that it passes on included."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != "self"]


def describe_arguments(item: object) -> dict[str, Any]:
    """Return the arguments that an object was made of, see `describe`."""
    cls = type(item)
    return {
        name: describe(getattr(item, name), f"{cls.__name__}.{name}")
        for name in _arguments(cls)
        if hasattr(item, name)
    }


def describe(item: Any, name: str = "object") -> Any:
    """Return what JSON can hold of an object.

    Parameters
    ----------
    item : object
        A number, string, dtype or None, a list of them, or an object that keeps the arguments of
        its constructor.
    name : str
        What an error calls it.

    Returns
    -------
    object
        For `build`.

    Raises
    ------
    TypeError
        If it is a function, or holds one.

    Examples
    --------
    >>> import fastrnn
    >>> describe(fastrnn.losses.Huber(2.0))
    {'class': 'Huber', 'delta': 2.0}
    """
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    if isinstance(item, np.dtype):
        return item.name
    if isinstance(item, np.generic):
        return item.item()
    if isinstance(item, (list, tuple)):
        return [describe(part, f"{name}[{i}]") for i, part in enumerate(item)]
    if inspect.isroutine(item) or isinstance(item, (type, np.ndarray, Mapping)):
        raise TypeError(
            f"{name}: expected an object of a class that a file can name, got {item!r}; save the"
            " model alone with include_training=False"
        )
    return {_CLASS: type(item).__name__, **describe_arguments(item)}


def build(description: Any, classes: Mapping[str, type]) -> Any:
    """Make the object that `describe` described.

    Parameters
    ----------
    description : object
        Of `describe`.
    classes : mapping of str to type
        Classes by name; no other is ever looked up.

    Returns
    -------
    object
        A new object.

    Raises
    ------
    ValueError
        If a class is unknown or does not take the arguments.

    Examples
    --------
    >>> import fastrnn
    >>> build({"class": "Huber", "delta": 2.0}, {"Huber": fastrnn.losses.Huber})
    Huber(delta=2.0)
    """
    if isinstance(description, list):
        return [build(part, classes) for part in description]
    if not isinstance(description, dict):
        return description
    arguments = {name: build(value, classes) for name, value in description.items()}
    name = arguments.pop(_CLASS, None)
    if name not in classes:
        raise ValueError(
            f"{name}: expected one of {', '.join(sorted(classes))}; classes of your own are passed"
            " as custom={'Name': Name}"
        )
    try:
        return classes[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def place(description: Any, device: str, classes: Mapping[str, type]) -> Any:
    """Move what `describe` described, before it is built.

    Parameters
    ----------
    description : object
        Of `describe`.
    device : str
        Where all that can have a device are to be.
    classes : mapping of str to type
        As for `build`.

    Returns
    -------
    object
        For `build`.

    Examples
    --------
    >>> import fastrnn
    >>> place({"class": "GRU", "device": "cuda"}, "cpu", {"GRU": fastrnn.GRU})
    {'class': 'GRU', 'device': 'cpu'}
    """
    if isinstance(description, list):
        return [place(part, device, classes) for part in description]
    if not isinstance(description, dict):
        return description
    placed = {name: place(part, device, classes) for name, part in description.items()}
    cls = classes.get(placed.get(_CLASS, ""))
    if cls is not None and "device" in _arguments(cls):
        placed["device"] = device
        if device == "cpu":
            placed.pop("allow_tf32", None)
    return placed
