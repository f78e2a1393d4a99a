"""What all layers share: parameters, modes, saving, and the protocol forward, tape, backward.

Inside a network everything is time-major: sequences (T, B, F), ids (T, B), rows (B, F), with T
steps, B batch and F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from fastrnn.functional import FloatArray, SupportsArray

    # Sizes of the axes of an array, "T" and "B" for those that a network leaves open.
    Shape = tuple[int | str, ...]

__all__ = ["Gradients", "IncompatibleKeys", "Layer"]


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(d, strict=False)`` passed over.

    Attributes
    ----------
    missing_keys : list of str
        Arrays of the layer that the dict does not have; they kept their values.
    unexpected_keys : list of str
        Keys of the dict that the layer does not have.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class Gradients(NamedTuple):
    """What ``layer.backward`` returns.

    Attributes
    ----------
    input : ndarray or None
        Gradient of the input, laid out as it; None if it was not asked for, and of ids.
    state : ndarray, or a pair of them (h, c) for `LSTM`
        Gradient of the initial state; None for layers without one.
    parameters : dict of str to ndarray
        Gradients of the parameters, by the names in ``layer.parameters``.
    """

    input: FloatArray | None
    state: Any
    parameters: dict[str, FloatArray]


class Layer:
    """What all layers share, and the base of a layer of your own.

    A layer of your own overrides `forward` and `backward`; where the defaults do not hold,
    `output_lengths` (as given), `stepwise` (False), and for `Sequential.summary` `input_shape`,
    `output_shape` and `multiply_adds`. It keeps what is trained in ``_parameters`` and what else it
    has to remember in ``_buffers``. `Sequential.load` makes it again from its class and those
    arguments of its constructor that are attributes of the same name; seeds need not be.

    Attributes
    ----------
    training : bool
        Set by `train` and `eval`.
    trainable : bool
        True; set to False, ``fit`` leaves the parameters as they are, and runs the layer in
        evaluation mode.
    parameters : mapping of str to ndarray
        The live arrays that training changes.
    buffers : mapping of str to ndarray
        The live arrays that it does not, such as running means.
    """

    trainable: bool = True
    #: Whether it fits into a `Sequential`.
    stackable: ClassVar[bool] = True
    # Seed of the next call that draws a mask, or None where nothing is random.
    _mask_seed: int | None = None
    _training = True
    _parameters: dict[str, FloatArray]
    _buffers: dict[str, FloatArray]

    def __init__(self) -> None:
        self._parameters = {}
        self._buffers = {}

    def __call__(self, x: SupportsArray, lengths: ArrayLike | None = None) -> Any:
        """Run without keeping what `backward` needs.

        Parameters
        ----------
        x : array
            Input, time-major.
        lengths : integers (B,), optional
            Valid steps of each row.

        Returns
        -------
        ndarray
            Output.
        """
        return self.apply(x, None, lengths)[0]

    def apply(
        self, x: Any, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any]:
        """Run without keeping what `backward` needs.

        Parameters
        ----------
        x, state, lengths
            As of `forward`.

        Returns
        -------
        output : ndarray
            Output.
        state
            Final state; None for layers without one.
        """
        output, state, _ = self.forward(x, state, lengths)
        return output, state

    def forward(
        self, x: SupportsArray, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[FloatArray, Any, Any]:
        """Run, and keep what `backward` needs.

        Parameters
        ----------
        x : array
            Input, time-major. Leave it unchanged until `backward`.
        state : optional
            Initial state of a layer that has one.
        lengths : integers (B,), optional
            Valid steps of each row. Beyond them the output is 0, whatever the input.

        Returns
        -------
        output : ndarray
            Output, not to be changed until `backward`.
        state
            Final state; None for layers without one.
        tape
            What `backward` needs. Several can be open.
        """
        raise NotImplementedError

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        """Differentiate the call of `forward` that made a tape.

        Parameters
        ----------
        tape
            Of this layer's `forward`.
        grad_output : array
            Gradient dL/d(output) of a loss L. That of padded steps is ignored.
        grad_state : optional
            Gradient of the final state of a layer that has one.
        input_grad : bool, default True
            Whether dL/d(input) is wanted.

        Returns
        -------
        Gradients
            dL/d(input), dL/d(initial state) and dL/d(parameters).
        """
        raise NotImplementedError

    def output_lengths(self, x: NDArray[Any], lengths: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return the lengths of the output.

        Parameters
        ----------
        x : array
            Input of the layer.
        lengths : integers (B,) or None
            Its lengths.

        Returns
        -------
        integers (B,) or None
            None if all steps are valid, or there are none.
        """
        return lengths

    def step(self, x: Any, state: Any = None) -> tuple[FloatArray, Any]:
        """Run one step, without keeping what `backward` needs.

        Parameters
        ----------
        x : array (B, F) or ids (B,)
            Input of one step.
        state : optional
            State of a layer that has one.

        Returns
        -------
        output : ndarray
            Output of the step.
        state
            Next state; None for layers without one.
        """
        output, state = self.apply(functional.view("x", x)[np.newaxis], state)
        return output[0], state

    def input_shape(self) -> Shape | None:
        """Return the shape of the input, such as ``("T", "B", 64)``; None if any will do."""
        return None

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for that of the input."""
        return shape

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights a step of one row takes, or a row."""
        return 0

    @property
    def stepwise(self) -> bool:
        """Whether a step of the output depends on that step of the input and the state before it.

        If so, a sequence can be run in parts.
        """
        return False

    @property
    def training(self) -> bool:
        """Whether the layer is in training mode."""
        return self._training

    def train(self, mode: bool = True) -> Self:
        """Enter training mode. A new layer is in it.

        Parameters
        ----------
        mode : bool, default True
            False enters evaluation mode.

        Returns
        -------
        Layer
            The layer.
        """
        self._training = functional.boolean("mode", mode)
        return self

    def eval(self) -> Self:
        """Enter evaluation mode: nothing is random.

        Returns
        -------
        Layer
            The layer.
        """
        return self.train(False)

    @property
    def parameters(self) -> Mapping[str, FloatArray]:
        """The live arrays that are trained, to be changed in place in training mode."""
        return MappingProxyType(self._parameters)

    def _trained(self) -> Mapping[str, FloatArray]:
        """Return the parameters that a fit changes."""
        return self._parameters if self.trainable else {}

    @property
    def buffers(self) -> Mapping[str, FloatArray]:
        """The live arrays that are not trained."""
        return MappingProxyType(self._buffers)

    def state_dict(self) -> dict[str, FloatArray]:
        """Copy parameters and buffers.

        Returns
        -------
        dict of str to ndarray
            Copies, by name.
        """
        return {name: array.copy() for name, array in {**self.parameters, **self.buffers}.items()}

    def load_state_dict(
        self, state_dict: Mapping[str, ArrayLike], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy parameters and buffers in, in either mode.

        Parameters
        ----------
        state_dict : mapping of str to array or torch tensor
            Arrays by name, of any floating-point type and on any device.
        strict : bool, default True
            Whether missing and unexpected keys are errors.

        Returns
        -------
        IncompatibleKeys
            Missing and unexpected keys, for ``strict=False``.

        Raises
        ------
        ValueError, TypeError
            If anything does not fit; all of it is named, and the layer is as it was. A TypeError
            if only types are wrong.

        Examples
        --------
        >>> from fastrnn import GRU, LSTM
        >>> trained, deployed = GRU(8, 16), GRU(8, 16)
        >>> deployed.load_state_dict(trained.state_dict())
        IncompatibleKeys(missing_keys=[], unexpected_keys=[])
        >>> LSTM(8, 16, bias=False).load_state_dict({"weight_ih_l0": np.zeros((64, 7))})
        Traceback (most recent call last):
        ValueError: state_dict: missing weight_hh_l0; weight_ih_l0: expected (64, 8), got (64, 7)
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected a mapping, got {type(state_dict).__name__}")
        own = {**self.parameters, **self.buffers}
        keys = IncompatibleKeys(
            [name for name in own if name not in state_dict],
            [name for name in state_dict if name not in own],
        )
        problems, wrong_types = [], []
        if strict and keys.missing_keys:
            problems.append(f"missing {', '.join(keys.missing_keys)}")
        if strict and keys.unexpected_keys:
            problems.append(f"unexpected {', '.join(map(str, keys.unexpected_keys))}")
        arrays = {}
        for name, current in own.items():
            if name in state_dict:
                try:
                    array = functional.float_array(name, state_dict[name], current.dtype)
                except TypeError as error:
                    wrong_types.append(str(error))
                    continue
                except ValueError as error:
                    problems.append(str(error))
                    continue
                if array.shape != current.shape:
                    problems.append(f"{name}: expected {current.shape}, got {array.shape}")
                # A copy, because it may be a view of an array that is overwritten first.
                arrays[name] = array.copy()
        if problems or wrong_types:
            kind = ValueError if problems else TypeError
            raise kind(f"state_dict: {'; '.join(problems + wrong_types)}")
        for name, array in arrays.items():
            own[name].flags.writeable = True
            own[name][...] = array
        self._reenter_mode()
        return keys

    def _reenter_mode(self) -> None:
        """Prepare new parameters for the mode that the layer is in."""
        self.train(self._training)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _repr(self, *required: object, **defaults: object) -> str:
        """Show the required arguments, and the attributes that differ from their defaults."""
        shown = [repr(value) for value in required]
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                shown.append(f"{name}={value!r}")
        dtype = getattr(self, "dtype", None)
        if dtype is not None and dtype.name != "float32":
            shown.append(f"dtype={dtype.name!r}")
        return f"{type(self).__name__}({', '.join(shown)})"
