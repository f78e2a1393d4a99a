"""Optimizers that change parameters in place, and schedules of their learning rate.

Letters: p a parameter, g its gradient, k the number of an update, from 0 on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from fastrnn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from fastrnn.functional import FloatArray

    Rate = float | Callable[[int], float]

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineDecay",
    "OneCycle",
    "Optimizer",
    "RMSprop",
    "Schedule",
    "StepDecay",
    "WarmUp",
    "get",
]


def _positive(name: str, value: Any) -> float:
    number = functional.number(name, value)
    if not number > 0:
        raise ValueError(f"{name}: expected a number > 0, got {value}")
    return number


def _not_negative(name: str, value: Any) -> float:
    number = functional.number(name, value)
    if not number >= 0:
        raise ValueError(f"{name}: expected a number >= 0, got {value}")
    return number


def _below_one(name: str, value: Any) -> float:
    number = functional.number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
    return number


class Schedule:
    """What the schedules share; use one of the others.

    A schedule gives the learning rate of an update by its number. Any function of that number will
    do as one.
    """

    def __call__(self, step: int) -> float:
        """Return the learning rate of an update.

        Parameters
        ----------
        step : int
            Number of the update, from 0 on.

        Returns
        -------
        float
            The learning rate.

        Examples
        --------
        >>> schedule = StepDecay(1.0, 2, factor=0.5)
        >>> [schedule(step) for step in range(5)]  # what a plot would show
        [1.0, 1.0, 0.5, 0.5, 0.25]
        """
        return self._rate(functional.integer("step", step, 0))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"

    def _rate(self, step: int) -> float:
        raise NotImplementedError


class StepDecay(Schedule):
    """Multiply the rate by a factor every so many updates: rate·factor^floor(k / steps).

    Parameters
    ----------
    rate : float
        Learning rate at the start.
    steps : int
        Updates between two changes.
    factor : float, default 0.1
        What each change multiplies by.

    Notes
    -----
    ``torch.optim.lr_scheduler.StepLR``, stepped after each update. Examples of its use are in [1]_.

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren, J. Sun. Deep residual learning for image recognition. CVPR 2016.

    Examples
    --------
    >>> schedule = StepDecay(0.1, 1000)
    >>> schedule(0), schedule(999), round(schedule(1000), 12)
    (0.1, 0.1, 0.01)
    """

    def __init__(self, rate: float, steps: int, factor: float = 0.1) -> None:
        self.rate = _not_negative("rate", rate)
        self.steps = functional.integer("steps", steps, 1)
        self.factor = _not_negative("factor", factor)

    def _rate(self, step: int) -> float:
        return self.rate * self.factor ** (step // self.steps)


def _cosine(start: float, end: float, fraction: float) -> float:
    """Go from `start` to `end` along half a cosine."""
    weight = (1 + math.cos(math.pi * fraction)) / 2
    return weight * start + (1 - weight) * end


class CosineDecay(Schedule):
    """Lower the rate along half a cosine [1]_.

    The rate is final + (rate - final)·(1 + cos(pi·k / steps)) / 2 up to k = steps, and stays final.

    Parameters
    ----------
    rate : float
        Learning rate at the start.
    steps : int
        Updates until it is `final`.
    final : float, default 0
        Learning rate at the end.

    Notes
    -----
    Up to its end this is ``torch.optim.lr_scheduler.CosineAnnealingLR``, which then rises again.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter. SGDR: stochastic gradient descent with warm restarts.
           ICLR 2017.

    Examples
    --------
    >>> schedule = CosineDecay(0.1, 1000)
    >>> schedule(0), round(schedule(500), 12), schedule(1000), schedule(5000)
    (0.1, 0.05, 0.0, 0.0)
    """

    def __init__(self, rate: float, steps: int, final: float = 0.0) -> None:
        self.rate = _not_negative("rate", rate)
        self.steps = functional.integer("steps", steps, 1)
        self.final = _not_negative("final", final)

    def _rate(self, step: int) -> float:
        return _cosine(self.rate, self.final, min(step / self.steps, 1.0))


class WarmUp(Schedule):
    """Raise the rate linearly before a schedule starts [1]_.

    The rate is s(0)·(k + 1) / steps for k < steps, then s(k - steps), where s is the schedule.

    Parameters
    ----------
    schedule_or_rate : callable or float
        What follows.
    steps : int
        Updates until it does.

    References
    ----------
    .. [1] P. Goyal et al. Accurate, large minibatch SGD: training ImageNet in 1 hour.
           arXiv:1706.02677, 2017.

    Examples
    --------
    >>> schedule = WarmUp(CosineDecay(1.0, 1000), 4)
    >>> [schedule(step) for step in (0, 1, 2, 3, 4, 1004)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.0]
    """

    def __init__(self, schedule_or_rate: Rate, steps: int) -> None:
        if not callable(schedule_or_rate):
            schedule_or_rate = _not_negative("schedule_or_rate", schedule_or_rate)
        self.schedule_or_rate = schedule_or_rate
        self.steps = functional.integer("steps", steps, 1)

    def _rate(self, step: int) -> float:
        after = self.schedule_or_rate
        rate = after(max(step - self.steps, 0)) if callable(after) else after
        return rate * min((step + 1) / self.steps, 1.0)


class OneCycle(Schedule):
    """Raise the rate to a peak and lower it to almost nothing, both along half a cosine [1]_.

    Parameters
    ----------
    peak : float
        Largest learning rate.
    steps : int
        Updates of the cycle; after it the rate stays at its last value.
    warm_up : float, default 0.3
        Part of the steps before the peak.
    initial_divisor : float, default 25
        The first rate is peak / initial_divisor.
    final_divisor : float, default 1e4
        The last rate is peak / (initial_divisor·final_divisor).

    Notes
    -----
    ``torch.optim.lr_scheduler.OneCycleLR``, but the momentum does not change.

    References
    ----------
    .. [1] L. N. Smith, N. Topin. Super-convergence: very fast training of neural networks using
           large learning rates. arXiv:1708.07120, 2017.

    Examples
    --------
    >>> schedule = OneCycle(1.0, 100)
    >>> schedule(0), schedule(29), round(schedule(99), 12)
    (0.04, 1.0, 4e-06)
    """

    def __init__(
        self,
        peak: float,
        steps: int,
        warm_up: float = 0.3,
        initial_divisor: float = 25.0,
        final_divisor: float = 1e4,
    ) -> None:
        self.peak = _not_negative("peak", peak)
        self.steps = functional.integer("steps", steps, 1)
        self.warm_up = functional.number("warm_up", warm_up, 0, 1)
        self.initial_divisor = _positive("initial_divisor", initial_divisor)
        self.final_divisor = _positive("final_divisor", final_divisor)

    def _rate(self, step: int) -> float:
        initial = self.peak / self.initial_divisor
        top, last = self.warm_up * self.steps - 1, self.steps - 1
        step = min(step, last)
        if step <= top:
            return _cosine(initial, self.peak, step / top if top else 1.0)
        return _cosine(self.peak, initial / self.final_divisor, (step - top) / (last - top))


def _shrink(norm: float, limit: float | None) -> float:
    """Return the factor that brings `norm` under `limit`."""
    if limit is None or not math.isfinite(norm):
        return 1.0
    return min(1.0, limit / (norm + 1e-6))  # the 1e-6 is torch's


class Common(TypedDict, total=False):
    """Options of every optimizer, see `Optimizer`."""

    l1: float
    l2: float
    clip_value: float | None
    clipnorm: float | None
    global_clipnorm: float | None


_MISSING = object()  # no gradient


def _is_plain(array: Any) -> bool:
    return type(array) is np.ndarray and array.dtype in (np.float32, np.float64)


def _is_alike(a: FloatArray, b: FloatArray) -> bool:
    return a.shape == b.shape and bool(a.dtype == b.dtype)


class Optimizer:
    """What the optimizers share; use one of the others.

    Parameters
    ----------
    learning_rate : float or callable
        A number, or a schedule: a function of the number of the update, from 0 on.
    l1, l2 : float, default 0
        Adds l1·sign(p) + l2·p to every gradient, as a penalty ``l1·|p| + l2·p²/2`` in the loss
        would; l2 is what torch calls ``weight_decay``, except in `AdamW`. They act on every
        parameter, biases and gains too: for others, use a second optimizer.
    clip_value : float, optional
        Bound of the size of every element of a gradient.
    clipnorm : float, optional
        Bound of the Euclidean norm of each array's gradient.
    global_clipnorm : float, optional
        Bound of the Euclidean norm of all gradients together [1]_.

    Attributes
    ----------
    learning_rate : float or callable
        Can be set between two updates.
    updates : int
        Updates so far.

    Notes
    -----
    The order is `global_clipnorm`, `clipnorm`, `clip_value`, `l1` and `l2`. Gradients that are not
    finite are applied as they are: the norm that `update` returns tells. Where a norm is not
    finite, nothing is scaled by it.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio. On the difficulty of training recurrent neural
           networks. ICML 2013.
    """

    def __init__(
        self,
        learning_rate: Rate,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        clip_value: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
    ) -> None:
        def limit(name: str, value: float | None) -> float | None:
            return None if value is None else _positive(name, value)

        self.learning_rate = learning_rate
        self.l1 = _not_negative("l1", l1)
        self.l2 = _not_negative("l2", l2)
        self.clip_value = limit("clip_value", clip_value)
        self.clipnorm = limit("clipnorm", clipnorm)
        self.global_clipnorm = limit("global_clipnorm", global_clipnorm)
        self.updates = 0
        self._slot_names: tuple[str, ...] = ()
        # What is remembered of each parameter: an array for each of the slot names.
        self._slots: dict[str, tuple[FloatArray, ...]] = {}
        _ = self.rate  # which checks the learning rate

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        rate = self.learning_rate
        return _not_negative("learning_rate", rate(self.updates) if callable(rate) else rate)

    def update(
        self, parameters: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]
    ) -> float:
        """Change parameters in place by one step.

        Parameters
        ----------
        parameters : mapping of str to ndarray
            Writable arrays of float32 or float64, such as ``layer.parameters`` in training mode.
            Optimizers with a memory need the same ones each time.
        gradients : mapping of str to ndarray
            Gradient of each parameter, of its shape and dtype. There may be others, which are
            ignored, so that frozen parameters are those left out of `parameters`.

        Returns
        -------
        float
            Euclidean norm of the gradients of all `parameters`, before clipping and penalties,
            summed in float64.

        Raises
        ------
        ValueError, TypeError
            If an array does not fit; then no parameter has changed.

        Examples
        --------
        >>> parameters = {"weight": np.ones((2, 2)), "bias": np.ones(2)}
        >>> SGD(0.5).update(parameters, {"weight": np.full((2, 2), 2.0), "bias": np.zeros(2)})
        4.0
        >>> parameters["weight"].tolist(), parameters["bias"].tolist()
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0])
        """
        rate = self.rate
        pairs = self._check(parameters, gradients)
        if self._slot_names and not self._slots:
            self._slots = {
                name: tuple(np.zeros(parameter.shape, parameter.dtype) for _ in self._slot_names)
                for name, (parameter, _) in pairs.items()
            }
        contiguous = {name: np.ascontiguousarray(g) for name, (_, g) in pairs.items()}
        norms = {name: math.sqrt(functional.sum_of_squares(g)) for name, g in contiguous.items()}
        norm = math.hypot(*norms.values())
        shared = _shrink(norm, self.global_clipnorm)
        clip = math.inf if self.clip_value is None else self.clip_value
        for name, (parameter, _) in pairs.items():
            factor = shared * _shrink(shared * norms[name], self.clipnorm)
            own = np.ascontiguousarray(parameter)
            slots = self._slots.get(name, ())
            self._apply(own, contiguous[name], slots, (factor, clip, self.l1, self.l2), rate)
            if own is not parameter:  # a view that the kernels do not take
                parameter[...] = own
        self.updates += 1
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return what training has to be resumed from, bit for bit.

        Returns
        -------
        dict of str to number or ndarray
            ``updates``; ``learning_rate``, if it is a number; and copies of what the optimizer
            remembers of each parameter, by names such as ``momentum.weight_hh_l0``. It does not
            have the other options. ``numpy.savez(file, **state)`` saves it.

        Examples
        --------
        >>> optimizer = SGD(0.1, momentum=0.9)
        >>> norm = optimizer.update({"bias": np.ones(2)}, {"bias": np.ones(2)})
        >>> optimizer.state_dict()
        {'updates': 1, 'learning_rate': 0.1, 'momentum.bias': array([1., 1.])}
        """
        state: dict[str, Any] = {"updates": self.updates}
        if not callable(self.learning_rate):
            state["learning_rate"] = self.learning_rate
        for name, slots in self._slots.items():
            for slot_name, slot in zip(self._slot_names, slots, strict=True):
                state[f"{slot_name}.{name}"] = slot.copy()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from the state of an optimizer with the same options.

        Parameters
        ----------
        state_dict : mapping of str to number or array
            Of `state_dict`, or loaded by ``numpy.load``. It is copied.

        Raises
        ------
        ValueError, TypeError
            If it does not fit; then nothing has changed.

        Examples
        --------
        >>> optimizer = SGD(0.1, momentum=0.9)
        >>> optimizer.load_state_dict({"updates": 1, "learning_rate": 0.2, "momentum.bias": [1.0]})
        >>> optimizer.updates, optimizer.rate
        (1, 0.2)
        """
        # Of numpy.load even numbers are arrays.
        given = {
            key: value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
            for key, value in state_dict.items()
        }
        names = dict.fromkeys(key.partition(".")[2] for key in given if "." in key)
        expected = ["updates"] if callable(self.learning_rate) else ["updates", "learning_rate"]
        expected += [f"{slot_name}.{name}" for name in names for slot_name in self._slot_names]
        missing = [key for key in expected if key not in given]
        if given.get("updates") and not names:
            missing += [f"{slot_name}.<parameter>" for slot_name in self._slot_names]
        unexpected = [key for key in given if key not in expected]
        if missing or unexpected:
            problems = [f"missing {', '.join(missing)}"] if missing else []
            problems += [f"unexpected {', '.join(unexpected)}"] if unexpected else []
            raise ValueError(f"state_dict: {'; '.join(problems)}")
        updates = functional.integer("state_dict['updates']", given["updates"], 0)
        rate = self.learning_rate
        if not callable(rate):
            rate = _not_negative("state_dict['learning_rate']", given["learning_rate"])
        slots = {}
        for name in names:
            arrays = [
                np.array(given[f"{slot_name}.{name}"], order="C") for slot_name in self._slot_names
            ]
            for slot_name, array in zip(self._slot_names, arrays, strict=True):
                label = f"state_dict['{slot_name}.{name}']"
                functional.float_dtype(label, array.dtype)
                if array.shape != arrays[0].shape:
                    raise ValueError(f"{label}: expected {arrays[0].shape}, got {array.shape}")
            slots[name] = tuple(arrays)
        self.updates, self.learning_rate, self._slots = updates, rate, slots

    def __repr__(self) -> str:
        options = ", ".join(
            f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_")
        )
        return f"{type(self).__name__}({options})"

    def _check(
        self, parameters: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]
    ) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Return the parameters and their gradients, or raise an error that names the culprit."""
        for argument, mapping in (("parameters", parameters), ("gradients", gradients)):
            if not isinstance(mapping, Mapping):
                kind = type(mapping).__name__
                raise TypeError(f"{argument}: expected a mapping of names to arrays, got {kind}")
        known = list(self._slots) or list(parameters)
        if not parameters or set(known) != set(parameters):
            expected = f"{', '.join(known)} as before" if known else "at least one array"
            raise ValueError(
                f"parameters: expected {expected}, got {', '.join(parameters) or 'none'}"
            )
        pairs = {}
        for name, parameter in parameters.items():
            gradient: Any = gradients.get(name, _MISSING)
            slots = self._slots.get(name, ())
            # Most are right, and texts of shapes and types take longer than small updates.
            fits = _is_plain(parameter) and parameter.flags.writeable and _is_plain(gradient)
            if not fits or any(not _is_alike(parameter, a) for a in (gradient, *slots)):
                parameter, gradient = self._check_pair(name, parameter, gradient)
            pairs[name] = (parameter, gradient)
        return pairs

    def _check_pair(self, name: str, given: Any, given_gradient: Any) -> Any:
        """Return a parameter and its gradient, or raise an error that names the culprit."""
        label = f"parameters[{name!r}]"
        parameter = np.asarray(functional.view(label, given))
        functional.float_dtype(label, parameter.dtype)
        expected = f"{parameter.shape} {parameter.dtype}"
        for slot in self._slots.get(name, ()):
            if not _is_alike(slot, parameter):
                raise ValueError(
                    f"{label}: expected {slot.shape} {slot.dtype} as before, got {expected}"
                )
        if not parameter.flags.writeable:
            raise ValueError(
                f"{label}: expected a writable array, got a read-only one; a layer's are"
                " writable in training mode, see its train()"
            )
        label = f"gradients[{name!r}]"
        if given_gradient is _MISSING:
            raise ValueError(f"{label}: expected {expected}, got none")
        gradient = np.asarray(functional.view(label, given_gradient))
        if not _is_alike(gradient, parameter):
            raise ValueError(f"{label}: expected {expected}, got {gradient.shape} {gradient.dtype}")
        return parameter, gradient

    def _apply(
        self,
        parameter: FloatArray,
        gradient: FloatArray,
        slots: tuple[FloatArray, ...],
        applied: tuple[float, float, float, float],
        rate: float,
    ) -> None:
        """Change a parameter and its slots by a gradient (factor, clip, l1, l2 act on it first)."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum [1]_.

    p -= rate·v with v = momentum·v + g, or with Nesterov's momentum [2]_
    p -= rate·(g + momentum·v) with the same v.

    Parameters
    ----------
    learning_rate : float or callable, default 0.01
        As in `Optimizer`.
    momentum : float, default 0
        In [0, 1); 0 needs no memory.
    nesterov : bool, default False
        Whether the momentum is Nesterov's.
    **common
        Options l1, l2, clip_value, clipnorm and global_clipnorm of `Optimizer`.

    References
    ----------
    .. [1] B. T. Polyak. Some methods of speeding up the convergence of iteration methods. USSR
           Computational Mathematics and Mathematical Physics 4(5), 1964.
    .. [2] I. Sutskever, J. Martens, G. Dahl, G. Hinton. On the importance of initialization and
           momentum in deep learning. ICML 2013.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.GRU(8, 16, seed=0)
    >>> optimizer = SGD(CosineDecay(0.1, 50), momentum=0.9, global_clipnorm=1.0)
    >>> x = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    >>> for _ in range(50):
    ...     output, state, tape = layer.forward(x)
    ...     value, gradient = fastrnn.losses.MSE()(output, np.full((5, 3, 16), 0.5))
    ...     norm = optimizer.update(layer.parameters, layer.backward(tape, gradient).parameters)
    >>> value < 0.2
    True
    """

    def __init__(
        self,
        learning_rate: Rate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.momentum = _below_one("momentum", momentum)
        self.nesterov = functional.boolean("nesterov", nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected False for momentum=0, got True")
        self._slot_names = ("momentum",) if self.momentum else ()

    def _apply(
        self,
        parameter: FloatArray,
        gradient: FloatArray,
        slots: tuple[FloatArray, ...],
        applied: tuple[float, float, float, float],
        rate: float,
    ) -> None:
        functional.sgd(parameter, gradient, slots, applied, rate, self.momentum, self.nesterov)


class RMSprop(Optimizer):
    """Divide the gradient by a running average of its size [1]_.

    p -= rate·g / (sqrt(s) + eps) with s = alpha·s + (1 - alpha)·g².

    Parameters
    ----------
    learning_rate : float or callable, default 0.01
        As in `Optimizer`.
    alpha : float, default 0.99
        How much of s is kept, in [0, 1).
    eps : float, default 1e-8
        What keeps the divisor from 0.
    momentum : float, default 0
        In [0, 1). If not 0, p -= rate·v with v = momentum·v + g / (sqrt(s) + eps).
    centered : bool, default False
        Whether s is replaced by s - m², with m = alpha·m + (1 - alpha)·g: an estimate of the
        variance [2]_.
    **common
        Options l1, l2, clip_value, clipnorm and global_clipnorm of `Optimizer`.

    References
    ----------
    .. [1] T. Tieleman, G. Hinton. Lecture 6.5, RMSProp. COURSERA: Neural networks for machine
           learning, 2012.
    .. [2] A. Graves. Generating sequences with recurrent neural networks. arXiv:1308.0850, 2013.

    Examples
    --------
    >>> parameters = {"weight": np.random.default_rng(0).normal(size=(4, 3))}
    >>> optimizer = RMSprop(0.01)
    >>> for _ in range(400):  # of the loss (weight**2).sum() / 2
    ...     norm = optimizer.update(parameters, {"weight": parameters["weight"]})
    >>> bool(np.abs(parameters["weight"]).max() < 0.01)
    True
    """

    def __init__(
        self,
        learning_rate: Rate = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.alpha = _below_one("alpha", alpha)
        self.eps = _not_negative("eps", eps)
        self.momentum = _below_one("momentum", momentum)
        self.centered = functional.boolean("centered", centered)
        options = {"mean": self.centered, "momentum": bool(self.momentum)}
        self._slot_names = ("square", *(name for name, wanted in options.items() if wanted))

    def _apply(
        self,
        parameter: FloatArray,
        gradient: FloatArray,
        slots: tuple[FloatArray, ...],
        applied: tuple[float, float, float, float],
        rate: float,
    ) -> None:
        square, *others = slots
        mean = others[0] if self.centered else None
        velocity = others[-1] if self.momentum else None
        functional.rmsprop(
            parameter,
            gradient,
            (square, mean, velocity),
            applied,
            rate,
            self.alpha,
            self.eps,
            self.momentum,
        )


class Adam(Optimizer):
    """Adaptive moment estimation [1]_.

    With running averages m = beta1·m + (1 - beta1)·g and v = beta2·v + (1 - beta2)·g², which
    start at 0 and are corrected for it, m̂ = m / (1 - beta1^(k+1)) and v̂ = v / (1 - beta2^(k+1)),
    p -= rate·m̂ / (sqrt(v̂) + eps).

    Parameters
    ----------
    learning_rate : float or callable, default 0.001
        As in `Optimizer`.
    betas : pair of floats, default (0.9, 0.999)
        How much of m and v is kept, in [0, 1).
    eps : float, default 1e-8
        What keeps the divisor from 0.
    amsgrad : bool, default False
        Whether v̂ is of the largest v so far [2]_.
    **common
        Options l1, l2, clip_value, clipnorm and global_clipnorm of `Optimizer`.

    References
    ----------
    .. [1] D. P. Kingma, J. Ba. Adam: a method for stochastic optimization. ICLR 2015.
    .. [2] S. J. Reddi, S. Kale, S. Kumar. On the convergence of Adam and beyond. ICLR 2018.

    Examples
    --------
    >>> parameters = {"weight": np.random.default_rng(0).normal(size=(4, 3))}
    >>> optimizer = Adam(0.01)
    >>> for _ in range(1000):  # of the loss (weight**2).sum() / 2
    ...     norm = optimizer.update(parameters, {"weight": parameters["weight"]})
    >>> bool(np.abs(parameters["weight"]).max() < 0.01)
    True
    """

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, **common)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas: expected a pair of numbers, got {betas!r}")
        self.betas = (_below_one("betas[0]", betas[0]), _below_one("betas[1]", betas[1]))
        self.eps = _not_negative("eps", eps)
        self.amsgrad = functional.boolean("amsgrad", amsgrad)
        self._slot_names = ("mean", "square", *(("largest_square",) if self.amsgrad else ()))

    @property
    def _decay(self) -> float:
        return 0.0

    def _apply(
        self,
        parameter: FloatArray,
        gradient: FloatArray,
        slots: tuple[FloatArray, ...],
        applied: tuple[float, float, float, float],
        rate: float,
    ) -> None:
        keep = 1 - rate * self._decay
        functional.adam(
            parameter,
            gradient,
            slots,
            applied,
            rate,
            keep,
            *self.betas,
            self.eps,
            self.updates + 1,
        )


class AdamW(Adam):
    """`Adam` with decoupled weight decay [1]_.

    p *= 1 - rate·weight_decay comes before the step of Adam, and does not enter its averages as l2
    does. It acts on every parameter.

    Parameters
    ----------
    learning_rate, betas, eps
        As in `Adam`.
    weight_decay : float, default 0.01
        The decay.
    amsgrad : bool, default False
        As in `Adam`.
    **common
        Options l1, l2, clip_value, clipnorm and global_clipnorm of `Optimizer`.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter. Decoupled weight decay regularization. ICLR 2019.

    Examples
    --------
    >>> weight = np.random.default_rng(0).normal(size=(4, 3))
    >>> parameters = {"weight": weight.copy()}
    >>> norm = AdamW(0.1, weight_decay=0.5).update(parameters, {"weight": np.zeros((4, 3))})
    >>> bool(np.allclose(parameters["weight"], 0.95 * weight))
    True
    """

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, betas, eps, amsgrad, **common)
        self.weight_decay = _not_negative("weight_decay", weight_decay)

    @property
    def _decay(self) -> float:
        return self.weight_decay


_OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": SGD,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}


def get(name_or_optimizer: str | Optimizer) -> Optimizer:
    """Return the optimizer of a name with its default options.

    Parameters
    ----------
    name_or_optimizer : {"sgd", "rmsprop", "adam", "adamw"} or Optimizer
        A name, or an optimizer.

    Returns
    -------
    Optimizer
        A new one of that name, or what was given.

    Examples
    --------
    >>> get("adam").rate
    0.001
    """
    if isinstance(name_or_optimizer, Optimizer):
        return name_or_optimizer
    return _OPTIMIZERS[functional.choice("optimizer", name_or_optimizer, tuple(_OPTIMIZERS))]()
