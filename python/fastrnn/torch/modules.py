"""torch.nn's recurrent modules with the kernels inside."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from fastrnn import functional
from fastrnn.torch import cuda, ops
from fastrnn.torch.composite import Spec
from fastrnn.torch.network import (
    DTYPES,
    READS_TENSORS,
    Call,
    Network,
    Packed,
    functorch_level,
    usable_lengths,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from typing_extensions import Self

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

_PLAIN = (torch.Tensor, nn.Parameter)
_SILENCE = functional.Noise()


def _kernels_have(on_gpu: bool, *tensors: Tensor | None) -> bool:
    """Whether all are common tensors of one place and one dtype that the kernels have there."""
    if on_gpu:
        return cuda.have(tensors, traced=is_compiling())
    if READS_TENSORS and not is_compiling():
        return functional.common_bits(*tensors) != 0
    given = [tensor for tensor in tensors if tensor is not None]
    dtype = given[0].dtype
    return (
        dtype in DTYPES
        and all(
            tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.dtype == dtype
            for tensor in given
        )
        and (
            is_compiling()
            or all(type(tensor) in _PLAIN and not tensor.is_neg() for tensor in given)
        )
    )


_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_forward_ad = torch.autograd.forward_ad


def _torch_transforms() -> bool:
    """Whether torch records, differentiates forward or maps the operations of a call.

    It can do that with its own alone.
    """
    return (
        _dispatch_modes() > 0
        or functorch_level() is not None
        or _forward_ad._current_level >= 0
        or _tracing_state() is not None
    )


def _parts(state: Any, has_cell_state: bool) -> tuple[Any, Any] | None:
    """Split a state in (h, c), or return None where it is no such state."""
    if state is None:
        return None, None
    if not has_cell_state:
        return (state, None) if isinstance(state, torch.Tensor) else None
    if isinstance(state, (tuple, list)) and len(state) == 2:
        h, c = state
        if isinstance(h, torch.Tensor) and isinstance(c, torch.Tensor):
            return h, c
    return None


def _fx_leaf(module: nn.Module, input: Any, hx: Any, **options: Any) -> Any:
    """Record a call for torch.fx, which does not look into torch.nn's modules either."""
    tracer = input.tracer
    arguments = (input,) if hx is None else (input, hx)
    given = {name: v for name, v in options.items() if v is not None and v is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, given)


class _Kernels:
    """What sequences and cells share."""

    if TYPE_CHECKING:  # of nn.Module
        _parameters: dict[str, Any]

        def _spec(self) -> Spec: ...

    def _network(self) -> Network:
        network: Network | None = self.__dict__.get("_kernels")
        if network is None:
            network = self.__dict__["_kernels"] = Network(self._spec())
        return network

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as torch's modules do; evaluation gives back memory that training keeps."""
        network: Network | None = self.__dict__.get("_kernels")
        if not mode and network is not None:
            network.release()
        return super().train(mode)  # type: ignore[misc]

    def _tensors_of(self, names: Iterable[str]) -> list[Tensor]:
        try:
            parameters = self._parameters
            return [parameters[name] for name in names]
        except KeyError:  # parametrized: computed by a property
            return [getattr(self, name) for name in names]


def _cast(
    on_gpu: bool, x: Tensor, h: Any, c: Any, weights: list[Tensor]
) -> tuple[Any, Any, Any, list[Tensor]]:
    """Cast under autocast: to the dtype of the weights, on a GPU all to autocast's own."""
    if on_gpu:
        return _cast_all(x, h, c, weights)
    if not torch.is_autocast_enabled("cpu"):
        return x, h, c, weights
    dtype = weights[0].dtype
    h, c = (None if part is None else part.to(dtype) for part in (h, c))
    return x.to(dtype), h, c, weights


def _cast_all(
    x: Tensor, h: Any, c: Any, weights: list[Tensor]
) -> tuple[Any, Any, Any, list[Tensor]]:
    if not torch.is_autocast_enabled("cuda"):
        return x, h, c, weights
    dtype = torch.get_autocast_dtype("cuda")

    def cast(tensor: Any) -> Any:
        if tensor is None or tensor.dtype == torch.float64:  # which autocast leaves as it is
            return tensor
        return tensor.to(dtype)

    return cast(x), cast(h), cast(c), [cast(weight) for weight in weights]


class Sequence(_Kernels, nn.RNNBase):
    """What `RNN`, `LSTM` and `GRU` share."""

    # Of instances that torch.nn made, too: `replace` changes nothing but their class.
    merge: str = "concat"
    residual: bool = False
    layer_norm: bool = False
    recurrent_dropout: float = 0.0
    input_dropout: float = 0.0
    weight_drop: float = 0.0
    zoneout: float | tuple[float, float] = 0.0
    clip: float | None = None
    forget_bias: float | None = None
    _OWN: ClassVar[tuple[str, ...]] = ()  # extras of one class
    _SHARED: ClassVar[tuple[str, ...]] = (
        "merge",
        "residual",
        "layer_norm",
        "recurrent_dropout",
        "input_dropout",
        "weight_drop",
        "zoneout",
    )

    # What the kernels are made for.
    _FIXED: ClassVar[tuple[str, ...]] = (
        "merge",
        "residual",
        "layer_norm",
        "peephole",
        "coupled",
        "clip",
        "reset_after",
    )

    def _cell(self) -> str:
        raise NotImplementedError

    def _spec(self) -> Spec:
        return Spec(
            self._cell(),
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.proj_size,
            self.bias,
            self.merge,
            self.residual,
            self.layer_norm,
            math.inf if self.clip is None else self.clip,
        )

    def _weights(self) -> list[Tensor]:
        return self._tensors_of(self._flat_weights_names)

    def _set_extras(
        self,
        *,
        merge: str = "concat",
        residual: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
    ) -> None:
        self.merge = functional.choice("merge", merge, functional.MERGES)
        self.residual = functional.boolean("residual", residual)
        self.layer_norm = functional.boolean("layer_norm", layer_norm)
        self.recurrent_dropout = recurrent_dropout
        self.input_dropout = input_dropout
        self.weight_drop = weight_drop
        self.zoneout = zoneout
        if self._extras():
            self._make_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("recurrent_dropout", "input_dropout", "weight_drop"):
            value = functional.number(name, value, 0, 1)
        elif name == "zoneout":
            value = self._zoneout_of(value)
        elif name in self._FIXED and self.__dict__.get("_kernels") is not None:
            raise AttributeError(f"{name}: expected no change after the first call, got {value!r}")
        super().__setattr__(name, value)

    def _zoneout_of(self, zoneout: Any) -> float | tuple[float, float]:
        return functional.number("zoneout", zoneout, 0, 1)

    def _make_parameters(self) -> None:
        """Make what torch's class has not made, or not in the shape that the extras ask for."""
        shapes = functional.Engine(*self._spec(), "float32").parameter_shapes
        made = {name: parameter.shape for name, parameter in self.named_parameters()}
        if made == shapes:
            return
        like = next(self.parameters()).detach()
        for name, shape in shapes.items():
            if made.get(name) != shape:
                setattr(self, name, nn.Parameter(like.new_empty(shape)))
        names, count = list(shapes), self._spec().parameters_per_direction
        self._all_weights = [names[i : i + count] for i in range(0, len(names), count)]
        self._flat_weights_names = names
        self._init_flat_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw parameters as torch's module does; norms start with gains of 1 and biases of 0."""
        super().reset_parameters()
        self._set_constants()

    def _set_constants(self) -> None:
        """Set the parameters that do not start at random."""
        H = self.hidden_size
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("norm_"):
                    parameter.fill_(float("weight" in name))
                elif self.forget_bias is not None and name.startswith("bias_"):
                    # Gate order i, f, g, o; the two biases are added.
                    parameter[H : 2 * H] = self.forget_bias if name.startswith("bias_ih") else 0.0

    def flatten_parameters(self) -> None:
        """Have cuDNN's layout where cuDNN runs the module, which has none of the extras."""
        if not self._extras():
            super().flatten_parameters()

    def _extras(self) -> dict[str, Any]:
        """Options of this network that torch.nn does not have."""
        given = {name: getattr(self, name) for name in (*self._OWN, *self._SHARED)}
        return {name: value for name, value in given.items() if value != getattr(type(self), name)}

    def extra_repr(self) -> str:
        """Show the options that torch's module does not have, too."""
        shown = self._extras()
        if self.forget_bias is not None:
            shown["forget_bias"] = self.forget_bias
        extras = (f"{name}={value!r}" for name, value in shown.items())
        return ", ".join((super().extra_repr(), *extras))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_all_states: bool = False,
    ) -> tuple[Any, ...]:
        """Run over whole sequences.

        Parameters
        ----------
        input : Tensor (T, B, I), (B, T, I) if `batch_first`, or (T, I), or PackedSequence
            As for torch's module.
        hx : Tensor, or pair of Tensor for `LSTM`, optional
            As for torch's module.
        lengths : integers (B,), optional
            Valid steps of each row, 0 to T: beyond them the output is 0, the final state is that of
            the last valid step, and the reverse direction starts there. Those on a GPU are not
            looked at, but taken for 0 or T where they are outside.
        resets : bools (T, B), (B, T) if `batch_first`, or (T,), optional
            Where a new sequence begins: the state is zeroed before the step is consumed.
        return_all_states : bool, default False
            Whether the states of all steps are wanted.

        Returns
        -------
        output, hx
            As of torch's module.
        states : Tensor (D·L, T, B, R), or a pair of them for `LSTM`
            With `return_all_states`: the state after each step, (D·L, T, R) for an input without
            batch, of the reverse direction the one after it has consumed that step; 0 past a row's
            length. The second of the pair, c, has H units.
        """
        if isinstance(input, Proxy):
            return _fx_leaf(
                *(self, input, hx),
                lengths=lengths,
                resets=resets,
                return_all_states=return_all_states,
            )
        every = functional.boolean("return_all_states", return_all_states)
        with_options = lengths is not None or resets is not None
        if with_options and isinstance(input, PackedSequence):
            raise ValueError("input: expected a Tensor beside lengths or resets, got a packed one")
        weights = self._weights()
        x = input.data if isinstance(input, PackedSequence) else input
        state = _parts(hx, self.mode == "LSTM")
        if state is None or not isinstance(x, torch.Tensor):
            return self._refuse(input, hx, every)
        on_gpu = cuda.on_device(x)
        x, h, c, weights = _cast(on_gpu, x, *state, weights)
        if not self._fits(x, h, c, input):
            return self._refuse(input, hx, every)
        ours = _kernels_have(on_gpu, x, h, c, *weights) and (
            is_compiling() or not _torch_transforms()
        )
        if not ours and not with_options and not every and not self._extras():
            return super().forward(input, hx)
        if isinstance(input, PackedSequence):
            return self._run_packed(input, x, h, c, weights, ours, every)
        B = 1 if x.dim() == 2 else x.size(0 if self.batch_first else 1)
        call = Call(
            self.batch_first and x.dim() == 3,
            None if lengths is None else _lengths(lengths, x, B),
            None if resets is None else _resets(resets, x),
            *self._noise(),
            exact=self.training,
            all_states=every,
        )
        y, *states = self._run(call, x, h, c, weights, ours)
        return y, *self._states(states)

    def _states(self, tensors: list[Tensor]) -> list[Any]:
        """Group the final state and, if they are there, those of all steps."""
        if self.mode != "LSTM":
            return tensors
        return [tuple(tensors[i : i + 2]) for i in range(0, len(tensors), 2)]

    def __prepare_scriptable__(self) -> nn.Module:
        """Give torch.jit.script, which cannot compile our kernels, torch's own module."""
        if self._extras():
            raise TypeError(f"torch.jit.script: torch.nn has no {self!r}")
        return _torchs_twin(self)

    def _refuse(self, input: Any, hx: Any, every: bool) -> Any:
        """Have torch say what is wrong, or take what only it can."""
        if not self._extras() and not every:
            return super().forward(input, hx)
        raise ValueError(
            f"input, hx: expected a sequence of {self.input_size} inputs and a state of"
            f" {self._spec().state_size} units, got {_described(input)} and {_described(hx)}"
        )

    def _fits(self, x: Tensor, h: Any, c: Any, input: Any) -> bool:
        """Whether the shapes do."""
        spec = self._network().spec
        packed = isinstance(input, PackedSequence)
        if x.dim() != 2 and (packed or x.dim() != 3):
            return False
        if x.size(-1) != self.input_size or (0 in x.shape[:-1] and not self._extras()):
            return False
        if h is None:
            return True
        chains = spec.num_layers * spec.directions
        rows: tuple[int, ...] = ()
        if packed:
            rows = (int(input.batch_sizes[0]),)
        elif x.dim() == 3:
            rows = (x.size(0 if self.batch_first else 1),)
        if h.shape != (chains, *rows, spec.state_size):
            return False
        return c is None or c.shape == (chains, *rows, spec.hidden_size)

    def _noise(self) -> tuple[functional.Noise, Any]:
        """Say what is random in a call, and draw the one seed of all its masks."""
        zoneout = self.zoneout
        dropout = self.dropout if self.num_layers > 1 else 0.0
        if not (
            zoneout or dropout or self.input_dropout or self.recurrent_dropout or self.weight_drop
        ):
            return _SILENCE, 0  # at once, as for most modules
        zoneout_h, zoneout_c = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout)
        noise = functional.Noise(
            dropout=dropout,
            input_dropout=self.input_dropout,
            recurrent_dropout=self.recurrent_dropout,
            zoneout_h=zoneout_h,
            zoneout_c=zoneout_c if self.mode == "LSTM" else 0.0,
            weight_drop=self.weight_drop,
            training=self.training,
        )
        return (noise, ops.draw_seed()) if noise.is_random else (noise.evaluated(), 0)

    def _run(
        self, call: Call, x: Tensor, h: Any, c: Any, weights: list[Tensor], ours: bool
    ) -> tuple[Tensor, ...]:
        if is_compiling() and ours:
            return ops.run(self._spec(), call, x, h, c, weights)
        call = call._replace(seed=int(call.seed))
        network = self._network()
        return (network if ours else network.composite)(call, x, h, c, weights)

    def _run_packed(
        self,
        packed: PackedSequence,
        data: Tensor,
        h: Any,
        c: Any,
        weights: list[Tensor],
        ours: bool,
        every: bool,
    ) -> tuple[Any, ...]:
        """Run with lengths."""
        _, batch_sizes, sorted_indices, unsorted_indices = packed
        rows = Packed.of(batch_sizes)
        if cuda.on_device(data):
            rows = rows.on(data.device)
        if h is not None:
            state = h if c is None else (h, c)
            state = self.permute_hidden(state, sorted_indices)
            h, c = (state, None) if c is None else state
        noise, seed = self._noise()
        call = Call(
            lengths=rows.lengths,
            noise=noise,
            seed=seed,
            packed=rows,
            exact=self.training,
            all_states=every,
        )
        if is_compiling():
            data, call = rows.pad(data), call._replace(packed=None)
        y, *tensors = self._run(call, data, h, c, weights, ours)
        output = PackedSequence(
            rows.rows(y) if is_compiling() else y, batch_sizes, sorted_indices, unsorted_indices
        )
        if unsorted_indices is not None:
            tensors = [part.index_select(-2, unsorted_indices) for part in tensors]
        return output, *self._states(tensors)


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence):
        return f"({', '.join(map(_described, value))})"
    return type(value).__name__


def _as_tensor(values: Any) -> Tensor:
    """Return a list as a tensor of the host, whatever torch's default device is."""
    if isinstance(values, (list, tuple)):
        return torch.tensor(values, device="cpu")
    return torch.as_tensor(values)


def _lengths(lengths: Any, x: Tensor, B: int) -> Tensor:
    lengths = _as_tensor(lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers ({B},), got {_described(lengths)}")
    if lengths.shape != (B,):
        raise ValueError(f"lengths: expected integers ({B},), got {_described(lengths)}")
    if not is_compiling():
        return usable_lengths(lengths, x, x.numel() // max(1, B * x.size(-1)))
    # The operators look at them.
    return lengths.clone() if cuda.on_device(x) else lengths.to("cpu", torch.int64, copy=True)


def _resets(resets: Any, x: Tensor) -> Tensor:
    resets = _as_tensor(resets)
    expected = f"resets: expected bools {tuple(x.shape[:-1])}, got {_described(resets)}"
    if resets.dtype != torch.bool:
        raise TypeError(expected)
    if resets.shape != x.shape[:-1]:
        raise ValueError(expected)
    return resets.to(x.device, non_blocking=cuda.on_device(x), copy=True)


def _positive(name: str, value: Any) -> float:
    given = functional.number(name, value)
    if not given > 0:
        raise ValueError(f"{name}: expected a number > 0, got {given}")
    return given


def _torchs_twin(module: nn.Module) -> nn.Module:
    """Torch's own module with the same parameters."""
    twin = copy.copy(module)
    twin.__class__ = next(
        kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.")
    )
    return twin


class RNN(Sequence, nn.RNN):
    """`torch.nn.RNN` with the kernels inside.

    Parameters
    ----------
    *args, **kwargs
        Of ``torch.nn.RNN``.
    merge, residual, layer_norm, recurrent_dropout, input_dropout, weight_drop, zoneout
        As of `fastrnn.RNN`.
    """

    def __init__(
        self,
        *args: Any,
        merge: str = "concat",
        residual: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._set_extras(
            merge=merge,
            residual=residual,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            weight_drop=weight_drop,
            zoneout=zoneout,
        )

    def _cell(self) -> str:
        return "rnn_relu" if self.mode == "RNN_RELU" else "rnn_tanh"


class LSTM(Sequence, nn.LSTM):
    """`torch.nn.LSTM` with the kernels inside.

    Parameters
    ----------
    *args, **kwargs
        Of ``torch.nn.LSTM``.
    peephole, coupled, clip, forget_bias
        As of `fastrnn.LSTM`.
    merge, residual, layer_norm, recurrent_dropout, input_dropout, weight_drop, zoneout
        As of `fastrnn.LSTM`.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> layer = fastrnn.torch.LSTM(8, 16, bidirectional=True)
    >>> output, (h, c) = layer(torch.zeros(5, 3, 8), lengths=torch.tensor([5, 2, 0]))
    >>> output.shape
    torch.Size([5, 3, 32])
    """

    peephole: bool = False
    coupled: bool = False
    _OWN = ("peephole", "coupled", "clip")

    def __init__(
        self,
        *args: Any,
        peephole: bool = False,
        coupled: bool = False,
        clip: float | None = None,
        forget_bias: float | None = None,
        merge: str = "concat",
        residual: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.peephole = functional.boolean("peephole", peephole)
        self.coupled = functional.boolean("coupled", coupled)
        self.clip = None if clip is None else _positive("clip", clip)
        if forget_bias is not None:
            self._set_forget_bias(functional.number("forget_bias", forget_bias))
        self._set_extras(
            merge=merge,
            residual=residual,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            weight_drop=weight_drop,
            zoneout=zoneout,
        )

    def _set_forget_bias(self, value: float) -> None:
        for name, unfit in (("coupled", self.coupled), ("bias", not self.bias)):
            if unfit:
                given = f"{name}={getattr(self, name)}"
                raise ValueError(f"forget_bias: expected None for {given}, got {value}")
        self.forget_bias = value
        self._set_constants()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("recurrent_dropout", "input_dropout", "weight_drop"):
            value = functional.number(name, value, 0, 1)
        elif name == "zoneout":
            value = self._zoneout_of(value)
        elif name in self._FIXED and self.__dict__.get("_kernels") is not None:
            raise AttributeError(f"{name}: expected no change after the first call, got {value!r}")
        super().__setattr__(name, value)

    def _zoneout_of(self, zoneout: Any) -> float | tuple[float, float]:
        if not isinstance(zoneout, (tuple, list)):
            return super()._zoneout_of(zoneout)
        if len(zoneout) != 2:
            raise ValueError(f"zoneout: expected a number or a pair (h, c), got {zoneout!r}")
        h, c = (functional.number("zoneout", part, 0, 1) for part in zoneout)
        return h if h == c else (h, c)

    def _cell(self) -> str:
        return "lstm" + "_coupled" * self.coupled + "_peephole" * self.peephole


class GRU(Sequence, nn.GRU):
    """`torch.nn.GRU` with the kernels inside.

    Parameters
    ----------
    *args, **kwargs
        Of ``torch.nn.GRU``.
    reset_after, merge, residual, layer_norm, recurrent_dropout, input_dropout, weight_drop, zoneout
        As of `fastrnn.GRU`.
    """

    reset_after: bool = True
    _OWN = ("reset_after",)

    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        merge: str = "concat",
        residual: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reset_after = functional.boolean("reset_after", reset_after)
        self._set_extras(
            merge=merge,
            residual=residual,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            weight_drop=weight_drop,
            zoneout=zoneout,
        )

    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"


_CELL_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(_Kernels, nn.RNNCellBase):
    """What `RNNCell`, `LSTMCell` and `GRUCell` share."""

    _HAS_CELL_STATE: ClassVar[bool] = False

    def _cell(self) -> str:
        raise NotImplementedError

    def _spec(self) -> Spec:
        sizes = (self.input_size, self.hidden_size)
        return Spec(self._cell(), *sizes, 1, False, 0, self.bias, "concat", False)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Run one step, as torch's module does."""
        state = _parts(hx, self._HAS_CELL_STATE)
        compiling = is_compiling()
        if isinstance(input, Proxy):
            return _fx_leaf(self, input, hx)
        if state is None or not self._is_known() or not isinstance(input, torch.Tensor):
            return super().forward(input, hx)
        if not compiling and _torch_transforms():
            return super().forward(input, hx)
        on_gpu = cuda.on_device(input)
        weights = self._tensors_of(_CELL_NAMES if self.bias else _CELL_NAMES[:2])
        x, h, c, weights = _cast(on_gpu, input, *state, weights)
        if READS_TENSORS and not compiling and not on_gpu:
            network = self._network()
            if not torch.is_grad_enabled():
                found = network.cell(x, h, c, weights, exact=self.training)
            else:
                found = network.differentiable_cell(x, h, c, weights, exact=self.training)
            return super().forward(input, hx) if found is None else found
        if not self._fits(x, h, c) or not _kernels_have(on_gpu, x, h, c, *weights):
            return super().forward(input, hx)
        if compiling:
            h, c = (None if part is None else part[None] for part in (h, c))
            _, *parts = ops.run(self._spec(), Call(), x[None], h, c, weights)
            final = tuple(part[0] for part in parts)
        else:
            call = Call(cell=True, exact=self.training)
            final = self._network()(call, x, h, c, weights)
        return final if self._HAS_CELL_STATE else final[0]

    def _is_known(self) -> bool:
        """Whether the kernels have the cell, which may be of size 0."""
        return bool(self.input_size and self.hidden_size)

    def _fits(self, x: Tensor, h: Any, c: Any) -> bool:
        """Whether the shapes do."""
        expected = (*x.shape[:-1], self.hidden_size)
        return (
            x.dim() in (1, 2)
            and x.size(-1) == self.input_size
            and all(part is None or part.shape == expected for part in (h, c))
        )

    def __prepare_scriptable__(self) -> nn.Module:
        """Give torch.jit.script, which cannot compile our kernels, torch's own module."""
        return _torchs_twin(self)


class RNNCell(_Cell, nn.RNNCell):
    """`torch.nn.RNNCell` with the kernels inside."""

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def _is_known(self) -> bool:
        return super()._is_known() and self.nonlinearity in ("tanh", "relu")

    def _network(self) -> Network:
        network = super()._network()
        if network.spec.cell != self._cell():  # torch looks at it in every call
            network = self.__dict__["_kernels"] = Network(self._spec())
        return network


class LSTMCell(_Cell, nn.LSTMCell):
    """`torch.nn.LSTMCell` with the kernels inside.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> cell = fastrnn.torch.LSTMCell(8, 16)
    >>> h, c = cell(torch.zeros(3, 8))
    >>> h.shape
    torch.Size([3, 16])
    """

    _HAS_CELL_STATE = True

    def _cell(self) -> str:
        return "lstm"


class GRUCell(_Cell, nn.GRUCell):
    """`torch.nn.GRUCell` with the kernels inside."""

    def _cell(self) -> str:
        return "gru"
