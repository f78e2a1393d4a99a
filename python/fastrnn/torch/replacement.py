"""Swapping the recurrent modules of a model, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from fastrnn.torch import cuda, modules
from fastrnn.torch.network import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Replacement", "replace", "restore"]

_OURS: dict[type, type] = {
    nn.RNN: modules.RNN,
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNNCell: modules.RNNCell,
    nn.LSTMCell: modules.LSTMCell,
    nn.GRUCell: modules.GRUCell,
}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Replacement(NamedTuple):
    """What `replace` and `restore` return.

    Attributes
    ----------
    replaced : list of str
        Names of the modules that were swapped; ``""`` is the model itself.
    left : dict of str to str
        Names of the recurrent modules that were not, and why.
    """

    replaced: list[str]
    left: dict[str, str]


def _base(module: nn.Module) -> type:
    """Return the class, or what torch.nn.utils.parametrize made it of."""
    kind = type(module)
    parent = kind.__base__
    if parent is not None and kind.__name__ == f"Parametrized{parent.__name__}":
        return parent
    return kind


def _set_base(module: nn.Module, base: type) -> None:
    kind = type(module)
    if kind is not _base(module):
        own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        base = type(f"Parametrized{base.__name__}", (base,), own)
    module.__class__ = base
    module.__dict__.pop("_kernels", None)


def _swap_all(
    model: nn.Module, classes: dict[type, type], why_not: Callable[[nn.Module], str | None]
) -> Replacement:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    result = Replacement([], {})
    for name, module in model.named_modules():
        base = _base(module)
        if not isinstance(module, _RECURRENT) or base in classes.values():
            continue
        if base not in classes:
            result.left[name] = f"a class of its own, {base.__module__}.{base.__qualname__}"
        elif reason := why_not(module):
            result.left[name] = reason
        else:
            _set_base(module, classes[base])
            result.replaced.append(name)
    return result


def _reason_to_replace_not(module: nn.Module) -> str | None:
    for parameter in module.parameters():
        if cuda.on_device(parameter):
            fits = cuda.AVAILABLE and parameter.dtype in cuda.KINDS
        else:
            fits = parameter.device.type == "cpu" and parameter.dtype in DTYPES
        if not fits:
            dtype = str(parameter.dtype).removeprefix("torch.")
            on_gpus = ", these and 16-bit floats on CUDA" if cuda.AVAILABLE else ""
            return (
                f"the kernels run float32 and float64 on the CPU{on_gpus},"
                f" not {dtype} on {parameter.device}"
            )
    return None


def _reason_to_restore_not(module: nn.Module) -> str | None:
    extras = module._extras() if isinstance(module, modules.Sequence) else {}
    if not extras:
        return None
    return f"torch.nn has no {', '.join(f'{name}={value!r}' for name, value in extras.items())}"


def replace(model: nn.Module) -> Replacement:
    """Put the kernels into every recurrent module of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; it may be a recurrent module itself.

    Returns
    -------
    Replacement
        Which modules were replaced, and which were left and why.

    Notes
    -----
    A module stays the object that it is, with its Parameter objects, hooks and state: only its
    class becomes the subclass of this package. So optimizers, references to it and ``state_dict``
    stay valid, and `restore` takes everything back. Subclasses of torch's modules are left: their
    ``forward`` is their own.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.LSTM(8, 16))
    >>> fastrnn.torch.replace(model)
    Replacement(replaced=['1'], left={})
    >>> model[1]
    LSTM(8, 16)
    >>> isinstance(model[1], fastrnn.torch.LSTM)
    True
    """
    return _swap_all(model, _OURS, _reason_to_replace_not)


def restore(model: nn.Module) -> Replacement:
    """Make the recurrent modules of a model torch's again, in place.

    Parameters
    ----------
    model : torch.nn.Module
        A model, after `replace` or built of this package's modules.

    Returns
    -------
    Replacement
        Which modules are torch's again, and which are not and why.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> ours = fastrnn.torch.GRU
    >>> model = torch.nn.Sequential(ours(8, 16), ours(16, 4, reset_after=False))
    >>> fastrnn.torch.restore(model)
    Replacement(replaced=['0'], left={'1': 'torch.nn has no reset_after=False'})
    """
    return _swap_all(model, _TORCHS, _reason_to_restore_not)
