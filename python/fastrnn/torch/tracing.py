"""Lets torch.compile trace our modules.

Dynamo breaks the graph at every instance of torch.nn's RNN, LSTM and GRU, subclasses included,
unless ``torch._dynamo.config.allow_rnn`` is set; but that would have it unroll torch's own modules
as well, step by step. So the flag is set for the moment in which Dynamo wraps one of ours, and for
no other module. Dynamo is not imported for it: an import hook waits for whoever does.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["allow"]

_BUILDER = "torch._dynamo.variables.builder"


def allow(kind: type) -> None:
    """Have Dynamo trace instances of a class."""
    builder = sys.modules.get(_BUILDER)
    if builder is not None:
        _patch(builder, kind)
    else:
        sys.meta_path.insert(0, _Hook(kind))


class _Hook(importlib.abc.MetaPathFinder):
    """Finds one module as others do, and patches it once it is loaded."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            _patch(module, self._kind)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


def _patch(builder: Any, kind: type) -> None:
    wrap_module = builder.VariableBuilder.wrap_module

    @functools.wraps(wrap_module)
    def wrap_ours(self: Any, value: Any) -> Any:
        if not isinstance(value, kind):
            return wrap_module(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap_ours
