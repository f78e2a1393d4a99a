"""Recurrent layers with the interface of ``torch.nn``, on NumPy arrays.

Letters: T steps, B batch, I inputs, H hidden units, P projected units, R units of the recurrent
state (P if there is a projection, else H), G gates, L layers, D directions.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy import ndarray

from fastrnn import functional, initializers
from fastrnn.layer import Gradients, Layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Self

    from fastrnn import cuda_engine
    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Shape

__all__ = ["CELLS", "GRU", "LSTM", "RNN", "Recurrent"]

State = TypeVar("State")


class Recurrent(Layer, Generic[State]):
    """What `RNN`, `LSTM` and `GRU` share; use one of these.

    Parameters
    ----------
    input_size : int
        Inputs I.
    hidden_size : int
        Hidden units H.
    num_layers : int, default 1
        Layers L; each reads the output of the one before it.
    bias : bool, default True
        Whether the gates have biases.
    batch_first : bool, default False
        Whether sequences are (B, T, I) instead of (T, B, I). States are (D·L, B, R) either way.
    dropout : float, default 0
        Probability of a zero in the output of every layer but the last, in training mode.
    bidirectional : bool, default False
        Whether a second set of weights reads the sequence from its end: D = 2.
    merge : {"concat", "sum", "mean", "max", "mul"}, default "concat"
        How the outputs of the two directions join, in every layer. ``"concat"`` makes the output
        2·R wide, the others R.
    residual : bool, default False
        Whether a layer's input is added to its output, where their sizes agree.
    layer_norm : bool, default False
        Whether each product is normalised over the G·H values of a row, see Notes. Adds the
        parameters ``norm_ih_weight_l{k}``, ``norm_ih_bias_l{k}``, ``norm_hh_weight_l{k}`` and
        ``norm_hh_bias_l{k}`` (G·H), and for `LSTM` ``norm_c_weight_l{k}`` and
        ``norm_c_bias_l{k}`` (H).
    recurrent_dropout : float, default 0
        Probability of a zero in the h_{t-1} that W_hh multiplies, in training mode: one mask for
        all steps of a row in a call [2]_, through resets too.
    input_dropout : float, default 0
        The same for the input of every layer.
    zoneout : float, default 0
        Probability that a unit keeps its state for a step [3]_: drawn anew for each step in
        training mode, by expectation in evaluation mode. For `LSTM` of h and c alike, or a pair
        (of h, of c).
    weight_drop : float, default 0
        Probability of a zero in W_hh, in training mode: one mask per call [4]_.
    init : {"torch", "glorot", "he", "orthogonal"}, default "torch"
        How parameters start, see `fastrnn.initializers.initialize`.
    seed : int or numpy.random.Generator, optional
        Source of the initial parameters and of all masks; fresh entropy by default.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs. On a GPU also ``numpy.float16`` and the
        ``bfloat16`` of the package ml_dtypes, whose sums and cell states are float32.
    device : str, default "cpu"
        Where the layer runs: ``"cpu"``, ``"cuda"`` or, of several GPUs, such as ``"cuda:1"``; see
        `fastrnn.cuda`.
    allow_tf32 : bool, default False
        Whether products of float32 on a GPU may round their operands to the 10 bits of TF32, which
        is faster.

    Attributes
    ----------
    training : bool
        Set by `train` and `eval`.
    parameters : mapping of str to ndarray
        The live arrays.

    Notes
    -----
    With layer norm [1]_, W_ih·x_t becomes norm_ih_weight * LN(W_ih·x_t) + norm_ih_bias, and
    W_hh·h_{t-1} likewise, where LN(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over all G·H values of
    a row; biases are added after it. Of the GRU with ``reset_after=False``, whose two products with
    h depend on each other, each is normalised by itself. For `LSTM`,
    h_t = o * tanh(norm_c_weight * LN(c_t) + norm_c_bias).
    Zoneout is h_t = z * h_{t-1} + (1 - z) * h̃_t for the h̃_t that the cell computes, and likewise
    for c: what else a step of the LSTM does with its new c, it does with c̃_t. What is dropped is
    zero, and the rest is scaled by 1 / (1 - p).

    Masks are a function of the layer's seed and of the number of random calls before: they depend
    neither on the number of threads nor on the machine, and `backward` draws them again instead of
    storing them. Probabilities may be changed between calls; what decides about parameters and
    equations may not.

    On a GPU, `parameters` and their gradients remain NumPy arrays: parameters are copied there once
    by `eval`, and in training mode by every call. Results lie where `x` lies. Sums are in the order
    that the GPU's kernels have, so that a row's last bits may depend on its batch.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton. Layer normalization. arXiv:1607.06450, 2016.
    .. [2] Y. Gal, Z. Ghahramani. A theoretically grounded application of dropout in recurrent
           neural networks. NIPS 2016.
    .. [3] D. Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden activations.
           ICLR 2017.
    .. [4] S. Merity, N. S. Keskar, R. Socher. Regularizing and optimizing LSTM language models.
           ICLR 2018.
    """

    _INITS: ClassVar[tuple[str, ...]] = ("torch", "glorot", "he", "orthogonal")
    # What `repr` leaves out, in the order in which it shows the rest.
    _DEFAULTS: ClassVar[dict[str, object]] = {
        "proj_size": 0,
        "num_layers": 1,
        "nonlinearity": "tanh",
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
        "merge": "concat",
        "residual": False,
        "peephole": False,
        "coupled": False,
        "clip": None,
        "reset_after": True,
        "layer_norm": False,
        "recurrent_dropout": 0.0,
        "input_dropout": 0.0,
        "zoneout": 0.0,
        "weight_drop": 0.0,
        "device": "cpu",
        "allow_tf32": False,
    }
    # These may change at any time, as may `zoneout` and `batch_first`.
    _PROBABILITIES: ClassVar[tuple[str, ...]] = (
        "dropout",
        "recurrent_dropout",
        "input_dropout",
        "weight_drop",
    )
    zoneout: float | tuple[float, float]

    # `functional`, or `cuda_engine`, which has the same functions.
    _kernels: Any
    _engine: functional.Engine | cuda_engine.Engine
    _step: Callable[[Any, Any], tuple[FloatArray, State]]

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int = 0,
        *,
        clip: float = math.inf,
        merge: str,
        residual: bool,
        layer_norm: bool,
        recurrent_dropout: float,
        input_dropout: float,
        zoneout: float | tuple[float, float],
        weight_drop: float,
        init: str,
        seed: int | np.random.Generator | None,
        dtype: DTypeLike,
        device: str,
        allow_tf32: bool,
    ) -> None:
        super().__init__()
        functional.device_number("device", device)
        self.device = device
        self._cell = cell
        self._clip = clip
        self.input_size = functional.integer("input_size", input_size, 1)
        self.hidden_size = functional.integer("hidden_size", hidden_size, 1)
        self.num_layers = functional.integer("num_layers", num_layers, 1)
        self.bias = functional.boolean("bias", bias)
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = functional.boolean("bidirectional", bidirectional)
        self.proj_size = functional.integer("proj_size", proj_size, 0, self.hidden_size)
        self.merge = functional.choice("merge", merge, functional.MERGES)
        self.residual = functional.boolean("residual", residual)
        self.layer_norm = functional.boolean("layer_norm", layer_norm)
        self.recurrent_dropout = recurrent_dropout
        self.input_dropout = input_dropout
        self.zoneout = zoneout
        self.weight_drop = weight_drop
        self.dtype = functional.layer_dtype("dtype", dtype, device)
        self.allow_tf32 = functional.boolean("allow_tf32", allow_tf32)
        if allow_tf32 and (device == "cpu" or self.dtype != np.float32):
            raise ValueError(
                "allow_tf32: expected False but for device='cuda' and float32, got True for"
                f" device={device!r} and {self.dtype}"
            )
        init = functional.choice("init", init, self._INITS)
        generator = functional.generator("seed", seed)
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"dropout: expected 0 for num_layers=1, got {dropout}; it acts between layers, so"
                " it does nothing here",
                stacklevel=3,
            )
        self._start_engine()
        drawn = initializers.initialize(
            init,
            self._engine.parameter_shapes,
            self.hidden_size,
            generator,
            np.dtype(np.float32) if self.dtype.itemsize == 2 else self.dtype,
        )
        self._parameters = {
            name: array.astype(self.dtype, copy=False) for name, array in drawn.items()
        }
        self._mask_seed: int = int(generator.integers(2**62))

    @staticmethod
    def _zoneout(given: Any) -> float | tuple[float, float]:
        return functional.number("zoneout", given, 0, 1)

    def _start_engine(self) -> None:
        arguments = (
            self._cell,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.proj_size,
            self.bias,
            self.merge,
            self.residual,
            self.layer_norm,
            self._clip,
        )
        number = functional.device_number("device", self.device)
        if number is None:
            self._kernels = functional
            self._engine = functional.Engine(*arguments, self.dtype.name)
        else:
            from fastrnn import cuda_engine

            self._kernels = cuda_engine
            self._engine = cuda_engine.Engine(
                *arguments, dtype=self.dtype, device=number, allow_tf32=self.allow_tf32
            )
        self._engine.set_zoneout(*self._zoneouts())
        self._step = self._engine.step

    def _zoneouts(self) -> tuple[float, float]:
        """Of h and c."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout, 0.0)

    def _noise(self) -> functional.Noise:
        noise = functional.Noise(
            self.dropout,
            self.input_dropout,
            self.recurrent_dropout,
            *self._zoneouts(),
            self.weight_drop,
            training=True,
        )
        return noise if self._training else noise.evaluated()

    def _pack(self) -> None:
        self._engine.pack(tuple(self._parameters.values()))

    def __call__(  # type: ignore[override]
        self,
        x: SupportsArray,
        state: State | None = None,
        lengths: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        *,
        return_all_states: bool = False,
    ) -> Any:
        """Run over whole sequences.

        Parameters
        ----------
        x : array (T, B, I), (B, T, I) if `batch_first`, or (T, I)
            Input of the layer's dtype: an ndarray of any strides, a torch tensor on the CPU that
            has no gradient (see its ``detach``), or anything else that NumPy can view. A layer on a
            GPU takes arrays of that GPU, too, and then returns such, see `fastrnn.cuda`.
        state : array (D·L, B, R), or a pair of them (h, c) for `LSTM`, optional
            Initial state, (D·L, R) for an input without batch; zero by default. c has H units.
        lengths : integers (B,), optional
            Valid steps of each row, 0 to T. Beyond them the output is 0; the final state is that
            of the last valid step, and the reverse direction starts there. Those on a GPU are
            fetched and checked like others, which waits for it.
        resets : bools (T, B), (B, T) if `batch_first`, or (T,), optional
            Where a new sequence begins: the state is zeroed before the step is consumed.
        return_all_states : bool, default False
            Whether the states of every step are wanted, too.

        Returns
        -------
        output : ndarray
            Output of the last layer at every step, as long and laid out as `x`.
        state : ndarray, or a pair of them (h, c) for `LSTM`
            Final state, to continue from.
        states : ndarray, or a pair of them (h, c) for `LSTM`
            With `return_all_states`: those after every step, (D·L, T, B, R) and for c
            (D·L, T, B, H), without B for an input without batch; zero where no step is taken.

        Examples
        --------
        >>> layer = GRU(8, 16, bidirectional=True)
        >>> output, h = layer(np.zeros((5, 3, 8), np.float32), lengths=[5, 2, 0])
        >>> output.shape, h.shape
        ((5, 3, 32), (2, 3, 16))
        """
        parameters = None
        noise = self._noise()
        if noise.training:
            if noise.weight_drop:
                parameters = tuple(self._parameters.values())
            else:
                self._pack()
        return self._run(
            x, state, lengths, resets, return_all_states, parameters, noise, keep=False
        )

    def apply(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any]:
        """Run without keeping what `backward` needs, see `Layer.apply`."""
        output, state = self(x, state, lengths)
        return output, state

    def _run(
        self,
        x: SupportsArray,
        state: State | None,
        lengths: ArrayLike | None,
        resets: ArrayLike | None,
        all_states: bool,
        parameters: tuple[FloatArray, ...] | None,
        noise: functional.Noise,
        *,
        keep: bool,
    ) -> Any:
        all_states = functional.boolean("return_all_states", all_states)
        seed = self._mask_seed
        self._mask_seed += noise.is_random  # at once, for calls from several threads
        try:
            return self._kernels.forward(
                self._engine,
                x,
                state,
                lengths,
                resets,
                self.batch_first,
                noise,
                seed,
                parameters,
                keep=keep,
                all_states=all_states,
            )
        except Exception:
            self._mask_seed -= noise.is_random  # a failed call leaves the layer as it was
            raise

    def check(
        self,
        x: SupportsArray,
        state: State | None = None,
        lengths: ArrayLike | None = None,
        resets: ArrayLike | None = None,
    ) -> None:
        """Raise what a call with these arguments would raise, and do nothing else.

        Parameters
        ----------
        x, state, lengths, resets
            As in a call of the layer.

        Raises
        ------
        ValueError, TypeError
            If one does not fit.

        Examples
        --------
        >>> GRU(8, 16).check(np.zeros((5, 3, 7), np.float32))
        Traceback (most recent call last):
        ValueError: x: expected (T, B, 8) float32, got (5, 3, 7) float32
        """
        self._kernels.check(self._engine, x, state, lengths, resets, self.batch_first)

    def forward(
        self,
        x: SupportsArray,
        state: State | None = None,
        lengths: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        *,
        return_all_states: bool = False,
    ) -> Any:
        """Run over whole sequences, and keep what `backward` needs.

        Parameters
        ----------
        x, state, lengths, resets, return_all_states
            As in a call of the layer. The tape refers to a contiguous `x` and copies any other:
            leave it unchanged until `backward`, which raises where it is not. On a GPU the tape
            has copies of the parameters and of what came from the host; an `x` on the GPU is to be
            left unchanged, which nobody checks.

        Returns
        -------
        output : ndarray
            Output of the last layer at every step, read-only because the tape refers to it: copy
            it to change it, or to make a torch tensor of it.
        state : ndarray, or a pair of them (h, c) for `LSTM`
            Final state, to continue from.
        tape : Tape
            What `backward` needs: the gates, cell states and outputs of every step.
            ``tape.nbytes`` is its size. Several can be open.
        states : ndarray, or a pair of them (h, c) for `LSTM`
            With `return_all_states`: as a call returns them.

        Notes
        -----
        On the CPU, bit for bit the result of a call. In training mode all that is random is on,
        with the same masks in `backward`.

        Examples
        --------
        >>> layer = LSTM(8, 16, seed=0)
        >>> x = np.ones((5, 3, 8), np.float32)
        >>> output, state, tape = layer.forward(x)
        >>> g = layer.backward(tape, grad_output=output - 1)  # loss ((output - 1)**2).sum() / 2
        >>> for name, parameter in layer.parameters.items():
        ...     parameter -= 0.1 * g.parameters[name]
        >>> bool(np.abs(layer(x)[0] - 1).sum() < np.abs(output - 1).sum())
        True
        """
        parameters = tuple(self._parameters.values())
        noise = self._noise()
        return self._run(x, state, lengths, resets, return_all_states, parameters, noise, keep=True)

    def backward(
        self,
        tape: functional.Tape,
        grad_output: SupportsArray | None = None,
        grad_state: Any = None,
        retain: bool = False,
        *,
        input_grad: bool = True,
        grad_states: Any = None,
    ) -> Gradients:
        """Backpropagate through time: differentiate the call of `forward` that made a tape.

        Parameters
        ----------
        tape : Tape
            Of this layer's `forward`. It is consumed, unless `retain` is true.
        grad_output : array, optional
            Gradient dL/d(output) of a loss L, of the output's shape and dtype; zero by default.
            That of padded steps is ignored.
        grad_state : array, or a pair of them (h, c) for `LSTM`, optional
            Gradient of the final state, of its shape and dtype; zero by default. Either of a pair
            can be None.
        retain : bool, default False
            Whether the tape can be used for another call, which gives the same bits; this one then
            works on a copy of its gates.
        input_grad : bool, default True
            Whether dL/d(input) is wanted. Of a network's first layer it rarely is, and it is a
            sixth of the work of a training step where I = H.
        grad_states : array, or a pair of them (h, c) for `LSTM`, optional
            Gradient of the states of every step, as `forward` returns them on request; zero by
            default.

        Returns
        -------
        Gradients
            dL/d(input), dL/d(initial state) and dL/d(parameters), as `input`, `state` and
            `parameters`: new arrays in every call. Sum them yourself over several tapes.

        Raises
        ------
        ValueError, TypeError
            If a gradient does not fit; if the tape is another layer's or consumed.
        RuntimeError
            If a parameter or the input changed since `forward`; the tape is then still open. (Not
            on a GPU, where gradients are those of the parameters that `forward` had.)

        Notes
        -----
        Gradients do not depend on the number of threads, to the last bit. None crosses a reset,
        and steps past a row's length neither receive nor contribute any. The gradient of
        ``merge="max"`` goes to the larger direction, and in halves where they are equal. The cost
        is twice that of `forward`; the memory, that of the gradients and a few percent more.

        References
        ----------
        .. [1] P. J. Werbos. Backpropagation through time: what it does and how to do it.
               Proceedings of the IEEE 78(10), 1990.

        Examples
        --------
        >>> layer = GRU(8, 16, seed=0)
        >>> output, h, tape = layer.forward(np.ones((5, 3, 8), np.float32), lengths=[5, 2, 0])
        >>> g = layer.backward(tape, grad_state=np.ones_like(h))
        >>> g.input.shape, g.state.shape, g.parameters["weight_hh_l0"].shape
        ((5, 3, 8), (1, 3, 16), (48, 16))
        >>> float(np.abs(g.input[2:, 1]).max())
        0.0
        >>> layer.backward(tape, output)
        Traceback (most recent call last):
        ValueError: tape: expected one that is open, got one that backward consumed (see retain)
        """
        grad_input, grad_initial, gradients = self._kernels.backward(
            self._engine,
            tape,
            self._parameters.values(),
            grad_output,
            grad_state,
            retain=functional.boolean("retain", retain),
            input_grad=functional.boolean("input_grad", input_grad),
            grad_states=grad_states,
        )
        named = dict(zip(self._parameters, gradients, strict=True))
        return Gradients(grad_input, grad_initial, named)

    def step(self, x: SupportsArray, state: State | None = None) -> tuple[FloatArray, State]:
        """Run one step, without anything random: the fast way to stream, in evaluation mode.

        Parameters
        ----------
        x : array (B, I) or (I,)
            Input of one step.
        state : array (L, B, R), or a pair of them (h, c) for `LSTM`, optional
            State, (L, R) for an input without batch; zero by default.

        Returns
        -------
        output : ndarray (B, R) or (R,)
            Output of the last layer, bit for bit that of a whole-sequence call.
        state : ndarray, or a pair of them (h, c) for `LSTM`
            Next state.

        Examples
        --------
        >>> layer = LSTM(8, 16).eval()
        >>> state = None
        >>> for x in np.zeros((5, 8), np.float32):
        ...     h, state = layer.step(x, state)
        >>> h.shape
        (16,)
        """
        if self._training:
            self._pack()
        if type(x) is not ndarray:
            return self._kernels.step(self._engine, x, state)  # type: ignore[no-any-return]
        return self._step(x, state)

    @property
    def stepwise(self) -> bool:
        """Whether a sequence can be run in parts: where there is one direction."""
        return not self.bidirectional

    def input_shape(self) -> Shape:
        """Return the shape of the input, of sequences."""
        return ("T", "B", self.input_size)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        joined = 2 if self.bidirectional and self.merge == "concat" else 1
        return (*shape[:-1], joined * (self.proj_size or self.hidden_size))

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights a step of one row takes."""
        weights = (name for name in self._parameters if name.startswith("weight_"))
        return sum(self._parameters[name].size for name in weights)

    def train(self, mode: bool = True) -> Self:
        """Enter training mode: parameters may change at any time, dropout is on.

        Weights are packed for the kernels in every call. A new layer is in this mode.

        Parameters
        ----------
        mode : bool, default True
            False enters evaluation mode, see `eval`.

        Returns
        -------
        Recurrent
            The layer.
        """
        self._training = functional.boolean("mode", mode)
        for array in self._parameters.values():
            array.flags.writeable = mode
        if not mode:
            self._pack()
            self._engine.release()
        return self

    def eval(self) -> Self:
        """Enter evaluation mode: weights are packed once, dropout is off.

        The parameter arrays are read-only until `train`, so that a change which the packed copy
        would miss raises. (A view taken in training mode stays writable: do not write to it.)

        Returns
        -------
        Recurrent
            The layer.

        Examples
        --------
        >>> layer = GRU(8, 16).eval()
        >>> layer.parameters["bias_ih_l0"][:] = 0
        Traceback (most recent call last):
        ValueError: assignment destination is read-only
        """
        return self.train(False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._PROBABILITIES:
            value = functional.number(name, value, 0, 1)
        elif name == "zoneout":
            value = self._zoneout(value)
        elif name == "batch_first":
            value = functional.boolean(name, value)
        elif name in self._DEFAULTS and "_engine" in self.__dict__:
            raise AttributeError(
                f"{name}: expected no change once the layer is made, got {value!r}"
            )
        super().__setattr__(name, value)
        if name == "zoneout" and "_engine" in self.__dict__:
            self._engine.set_zoneout(*self._zoneouts())

    def __repr__(self) -> str:
        shown = [str(self.input_size), str(self.hidden_size)]
        for name, default in self._DEFAULTS.items():
            value = getattr(self, name, default)
            if value != default:
                shown.append(f"{name}={value!r}")
        if self.dtype != np.float32:
            shown.append(f"dtype={self.dtype.name!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_engine"], state["_kernels"], state["_step"]  # made anew
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Copies, because an array that was pickled read-only can never be made writable.
        self._parameters = self.state_dict()
        self._start_engine()
        self.train(self._training)


class RNN(Recurrent[ndarray[Any, Any]]):
    """Elman network: h_t = f(W_ih·x_t + b_ih + W_hh·h_{t-1} + b_hh).

    Arguments, shapes and parameter names are those of ``torch.nn.RNN``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        As in `fastrnn.recurrent.Recurrent`.
    nonlinearity : {"tanh", "relu", "sigmoid"}, default "tanh"
        The function f.
    merge, residual, layer_norm, recurrent_dropout, input_dropout, zoneout, weight_drop
        As in `fastrnn.recurrent.Recurrent`.
    seed, dtype, device, allow_tf32
        As in `fastrnn.recurrent.Recurrent`.
    init : {"torch", "glorot", "he", "orthogonal", "identity"}, default "torch"
        How parameters start. ``"identity"`` with ``nonlinearity="relu"`` is the IRNN of [1]_.

    References
    ----------
    .. [1] Q. V. Le, N. Jaitly, G. E. Hinton. A simple way to initialize recurrent networks of
           rectified linear units. arXiv:1504.00941, 2015.

    Examples
    --------
    >>> layer = RNN(8, 16, nonlinearity="relu", init="identity")
    >>> output, h = layer(np.zeros((5, 3, 8), np.float32))
    >>> output.shape, h.shape
    ((5, 3, 16), (1, 3, 16))
    """

    _INITS = (*Recurrent._INITS, "identity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        merge: str = "concat",
        residual: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_drop: float = 0.0,
        init: str = "torch",
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
        device: str = "cpu",
        allow_tf32: bool = False,
    ) -> None:
        self.nonlinearity = functional.choice(
            "nonlinearity", nonlinearity, ("tanh", "relu", "sigmoid")
        )
        super().__init__(
            f"rnn_{nonlinearity}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge=merge,
            residual=residual,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            zoneout=zoneout,
            weight_drop=weight_drop,
            init=init,
            seed=seed,
            dtype=dtype,
            device=device,
            allow_tf32=allow_tf32,
        )


class LSTM(Recurrent[tuple[ndarray[Any, Any], ndarray[Any, Any]]]):
    """Long short-term memory [1]_ with forget gates [2]_.

    With the gates i, f, g, o from W_ih·x_t + b_ih + W_hh·h_{t-1} + b_hh,
    c_t = f * c_{t-1} + i * g and h_t = o * tanh(c_t). Arguments, shapes and parameter names are
    those of ``torch.nn.LSTM``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        As in `fastrnn.recurrent.Recurrent`.
    proj_size : int, default 0
        Projected units P < H, 0 for no projection: h_t = W_hr·(o * tanh(c_t)) [3]_.
    merge, residual, layer_norm, recurrent_dropout, input_dropout, zoneout, weight_drop
        As in `fastrnn.recurrent.Recurrent`.
    init, seed, dtype, device, allow_tf32
        As in `fastrnn.recurrent.Recurrent`.
    peephole : bool, default False
        Whether the gates see the cell [2]_: i and f see c_{t-1}, o sees c_t. Adds the parameters
        ``weight_peep_l{k}`` (3, H), in the order i, f, o.
    coupled : bool, default False
        Whether f = 1 - i [5]_: three gates i, g, o, a quarter less work. Peepholes are then (2, H).
    clip : float, optional
        Bound of ``|c_t|`` [3]_; no gradient passes where it acts.
    forget_bias : float, optional
        Initial bias of the forget gates, whatever `init`; 1 helps to remember [4]_.

    References
    ----------
    .. [1] S. Hochreiter, J. Schmidhuber. Long short-term memory. Neural Computation 9(8), 1997.
    .. [2] F. A. Gers, N. N. Schraudolph, J. Schmidhuber. Learning precise timing with LSTM
           recurrent networks. JMLR 3, 2002.
    .. [3] H. Sak, A. Senior, F. Beaufays. Long short-term memory based recurrent neural network
           architectures for large vocabulary speech recognition. arXiv:1402.1128, 2014.
    .. [4] R. Jozefowicz, W. Zaremba, I. Sutskever. An empirical exploration of recurrent network
           architectures. ICML 2015.
    .. [5] K. Greff, R. K. Srivastava, J. Koutník, B. R. Steunebrink, J. Schmidhuber. LSTM: a search
           space odyssey. IEEE Transactions on Neural Networks and Learning Systems 28(10), 2017.

    Examples
    --------
    >>> layer = LSTM(8, 16, num_layers=2, proj_size=4)
    >>> output, (h, c) = layer(np.zeros((5, 3, 8), np.float32))
    >>> output.shape, h.shape, c.shape
    ((5, 3, 4), (2, 3, 4), (2, 3, 16))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        peephole: bool = False,
        coupled: bool = False,
        clip: float | None = None,
        merge: str = "concat",
        residual: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_drop: float = 0.0,
        init: str = "torch",
        forget_bias: float | None = None,
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
        device: str = "cpu",
        allow_tf32: bool = False,
    ) -> None:
        self.peephole = functional.boolean("peephole", peephole)
        self.coupled = functional.boolean("coupled", coupled)
        self.clip = None if clip is None else functional.number("clip", clip)
        double = functional.layer_dtype("dtype", dtype, device) == np.float64
        least = float(np.finfo(np.float64 if double else np.float32).tiny)
        if self.clip is not None and self.clip < least:
            raise ValueError(f"clip: expected a number > 0, got {clip}")
        super().__init__(
            "lstm" + ("_coupled" if coupled else "") + ("_peephole" if peephole else ""),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            clip=math.inf if self.clip is None else self.clip,
            merge=merge,
            residual=residual,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            zoneout=zoneout,
            weight_drop=weight_drop,
            init=init,
            seed=seed,
            dtype=dtype,
            device=device,
            allow_tf32=allow_tf32,
        )
        if forget_bias is not None:
            forget_bias = functional.number("forget_bias", forget_bias)
            with np.errstate(over="ignore"):
                rounded = np.array(forget_bias).astype(self.dtype)
            if np.isinf(rounded):
                raise ValueError(f"forget_bias: expected a finite {self.dtype}, got {forget_bias}")
            if not self.bias:
                raise ValueError(f"forget_bias: expected None for bias=False, got {forget_bias}")
            if self.coupled:
                raise ValueError(
                    "forget_bias: expected None for coupled=True, which has no forget gate, got"
                    f" {forget_bias}"
                )
            initializers.set_forget_bias(self._parameters, self.hidden_size, forget_bias)

    @staticmethod
    def _zoneout(given: Any) -> float | tuple[float, float]:
        if not isinstance(given, (tuple, list)):
            return functional.number("zoneout", given, 0, 1)
        if len(given) != 2:
            raise ValueError(f"zoneout: expected a number or a pair (h, c), got {len(given)} items")
        h, c = (functional.number("zoneout", p, 0, 1) for p in given)
        return h, c

    def _zoneouts(self) -> tuple[float, float]:
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout, self.zoneout)


class GRU(Recurrent[ndarray[Any, Any]]):
    """Gated recurrent unit [1]_.

    With the gates r, z from W_ih·x_t + b_ih + W_hh·h_{t-1} + b_hh, h_t = (1 - z) * n + z * h_{t-1},
    where n = tanh(W_in·x_t + b_in + r * (W_hn·h_{t-1} + b_hn)). Arguments, shapes and parameter
    names are those of ``torch.nn.GRU``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        As in `fastrnn.recurrent.Recurrent`.
    merge, residual, layer_norm, recurrent_dropout, input_dropout, zoneout, weight_drop
        As in `fastrnn.recurrent.Recurrent`.
    init, seed, dtype, device, allow_tf32
        As in `fastrnn.recurrent.Recurrent`.
    reset_after : bool, default True
        Whether r acts after the product with W_hn, as in torch. False is the original unit,
        n = tanh(W_in·x_t + b_in + W_hn·(r * h_{t-1}) + b_hn).

    References
    ----------
    .. [1] K. Cho, B. van Merriënboer, C. Gulcehre, D. Bahdanau, F. Bougares, H. Schwenk, Y. Bengio.
           Learning phrase representations using RNN encoder-decoder for statistical machine
           translation. EMNLP 2014.

    Examples
    --------
    >>> layer = GRU(8, 16, batch_first=True)
    >>> output, h = layer(np.zeros((3, 5, 8), np.float32))
    >>> output.shape, h.shape
    ((3, 5, 16), (1, 3, 16))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        merge: str = "concat",
        residual: bool = False,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_drop: float = 0.0,
        init: str = "torch",
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
        device: str = "cpu",
        allow_tf32: bool = False,
    ) -> None:
        self.reset_after = functional.boolean("reset_after", reset_after)
        super().__init__(
            "gru" if reset_after else "gru_reset_before",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge=merge,
            residual=residual,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            zoneout=zoneout,
            weight_drop=weight_drop,
            init=init,
            seed=seed,
            dtype=dtype,
            device=device,
            allow_tf32=allow_tf32,
        )


#: The layers by the names of their cells.
CELLS: dict[str, type[RNN] | type[LSTM] | type[GRU]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
