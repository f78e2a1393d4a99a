"""Estimators as files, without pickle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastrnn import io

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from typing_extensions import Self

    # What an estimator knows, by kind and name: arrays, and what JSON holds.
    Knowledge = dict[str, dict[str, Any]]

__all__ = ["SavedEstimator"]


class SavedEstimator:
    """What estimators share that can be saved; they give `_knowledge` and `_restored`."""

    _format: ClassVar[str]

    if TYPE_CHECKING:

        def _check_fitted(self) -> None: ...

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...

    def _knowledge(self) -> Knowledge:
        """Return all that was learnt."""
        raise NotImplementedError

    @classmethod
    def _restored(cls, parameters: dict[str, Any], knowledge: Knowledge) -> Self:
        """Make an estimator that knows what one with these parameters knew."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file, without pickle.

        Parameters
        ----------
        path : path ending in ``.safetensors`` or ``.npz``
            A file there is replaced.

        Notes
        -----
        A `random_state` that is no integer is saved as None, as are other objects among the
        parameters. The file of an `RBFNClassifier` with ``output="softmax"`` holds the rows that it
        keeps for `partial_fit`.
        """
        self._check_fitted()
        arrays: dict[str, Any] = {}
        metadata = {"format": self._format, "class": type(self).__name__}
        everything = {"parameters": self.get_params(deep=False), **self._knowledge()}
        for kind, values in everything.items():
            metadata[kind] = json.dumps(_without_arrays(kind, values, arrays))
        io.save_arrays(path, arrays, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an estimator that `save` wrote.

        Parameters
        ----------
        path : path ending in ``.safetensors`` or ``.npz``
            Where the file is.

        Returns
        -------
        estimator
            It does what the saved one did.

        Raises
        ------
        ValueError
            If the file is damaged or holds something else.
        """
        arrays, metadata = io.load_arrays(path)
        if metadata.get("format") != cls._format or metadata.get("class") != cls.__name__:
            raise ValueError(
                f"{path}: expected a file that {cls.__name__}.save wrote, got one of"
                f" {metadata.get('class')!r} in format {metadata.get('format')!r}"
            )
        try:
            knowledge = _knowledge(arrays, metadata)
            return cls._restored(knowledge.pop("parameters"), knowledge)
        except (LookupError, TypeError, AttributeError, ValueError, MemoryError) as error:
            raise ValueError(f"{path}: expected what save writes, got {error!r}") from error


def _without_arrays(kind: str, values: Mapping[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON holds of values, and put what it does not among the arrays."""
    texts = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype != np.dtype(object):
            arrays[f"{kind}/{name}"] = value
            continue
        try:
            texts[name] = json.loads(json.dumps(value, default=lambda number: number.item()))
        except (TypeError, AttributeError, ValueError):
            texts[name] = None  # a source of randomness, another estimator
    return texts


def _knowledge(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Knowledge:
    """Return what was saved."""
    found: Knowledge = {}
    for kind, text in metadata.items():
        if kind not in ("format", "class"):
            # JSON has no tuples.
            texts = json.loads(text).items()
            found[kind] = {name: tuple(v) if isinstance(v, list) else v for name, v in texts}
    for key, array in arrays.items():
        kind, _, name = key.partition("/")
        if kind != "history" and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite numbers")
        found[kind][name] = array
    return found
