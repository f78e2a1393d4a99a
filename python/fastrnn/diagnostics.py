"""How the gradient of the loss grows or vanishes on its way back through time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn.config import describe_arguments
from fastrnn.containers import Container, in_mode, run, run_back
from fastrnn.layers import valid_steps, without_padding
from fastrnn.recurrent import Recurrent

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from fastrnn.functional import FloatArray
    from fastrnn.models import Sequential

__all__ = ["GradientFlow", "gradient_flow"]


class GradientFlow(NamedTuple):
    """What `gradient_flow` returns.

    Attributes
    ----------
    norms : dict of str to ndarray (T,)
        Euclidean norm of dL/dh_t over batch and units, for every layer and direction by the names
        of its parameters: ``1.l0``, ``1.l0_reverse``.
    """

    norms: dict[str, NDArray[np.float64]]

    def plot(self, path: str | os.PathLike[str] | None = None, ax: Any = None) -> Any:
        """Draw the norms over the steps, on a logarithmic scale.

        Parameters
        ----------
        path : path, optional
            Where to save the picture, in the format that the name ends in.
        ax : matplotlib Axes, optional
            Where to draw; without it a new figure is made.

        Returns
        -------
        matplotlib.figure.Figure
            The figure.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "GradientFlow.plot needs matplotlib: pip install matplotlib"
            ) from None
        if ax is None:
            ax = Figure(figsize=(6, 3.5), layout="constrained").subplots()
        for name, norms in self.norms.items():
            # 0 has no logarithm: a gap shows where nothing arrives.
            ax.plot(np.arange(1, len(norms) + 1), np.where(norms > 0, norms, np.nan), label=name)
        ax.set_yscale("log")
        ax.set_xlabel("step t")
        ax.set_ylabel("norm of dL/dh_t")
        ax.legend()
        if path is not None:
            ax.figure.savefig(path, dpi=120)
        return ax.figure


def gradient_flow(
    model: Sequential, x: Any, y: Any, *, lengths: ArrayLike | None = None
) -> GradientFlow:
    """Measure the gradient dL/dh_t of the loss at every step of every recurrent layer.

    Parameters
    ----------
    model : Sequential
        Compiled, as its loss is what is differentiated. It is run in evaluation mode.
    x, y, lengths
        One batch of data, as for ``model.fit``.

    Returns
    -------
    GradientFlow
        The norms, and a plot of them.

    Raises
    ------
    ValueError
        If the model has no recurrent layer, or one whose directions do not come together by
        concatenation, or with ``residual``.

    Notes
    -----
    dL/dh_t is the whole derivative, through the output at step t and through all later steps. By
    the chain rule dL/dh_t = (dh_{t+1}/dh_t)ᵀ·dL/dh_{t+1} + what comes from the output; if the norms
    of the factors stay below 1 it vanishes exponentially with the distance, and above 1 it explodes
    [1]_. The cost is that of T calls of `forward` and `backward` of one step each.

    References
    ----------
    .. [1] Y. Bengio, P. Simard, P. Frasconi. Learning long-term dependencies with gradient descent
           is difficult. IEEE Transactions on Neural Networks 5(2), 1994.

    Examples
    --------
    >>> import fastrnn
    >>> model = fastrnn.Sequential([
    ...     fastrnn.RNN(2, 16, seed=0), fastrnn.Last(), fastrnn.Dense(16, 1, seed=1)
    ... ]).compile("sgd", "mse")
    >>> x = np.random.default_rng(0).normal(size=(8, 100, 2))
    >>> norms = fastrnn.gradient_flow(model, x, x[:, 0, 0]).norms["0.l0"]
    >>> norms.shape, bool(norms[0] < 1e-6 * norms[-1])  # vanished on its way back to the start
    ((100,), True)
    """
    model._check_compiled()
    samples = model._samples(x, y, lengths)
    if len(samples) == 0:
        raise ValueError("x: expected at least 1 sample, got 0")
    batch = samples.batch(np.arange(len(samples)))
    norms: dict[str, NDArray[np.float64]] = {}
    with in_mode(model, training=False):
        step = model._pass(batch)
        _, gradient = model._loss(step, None)
        for name, layer, inputs, row_lengths, grad_output in _visit(
            model, "", batch.x, batch.lengths, gradient
        ):
            found = _norms(layer, inputs, row_lengths, grad_output)
            norms = {**{f"{name}.{end}": values for end, values in found.items()}, **norms}
    if not norms:
        raise ValueError("model: expected a recurrent layer, got none")
    return GradientFlow(norms)


def _visit(
    container: Container, prefix: str, x: Any, lengths: Any, gradient: FloatArray
) -> Iterator[tuple[str, Recurrent[Any], FloatArray, Any, FloatArray]]:
    """Yield every recurrent layer with its time-major input, its lengths and dL/d(output)."""
    entries = []
    for name, layer in container.children().items():
        output, _, tape = run(layer, x, None, lengths)
        entries.append((f"{prefix}{name}", layer, x, lengths, tape))
        lengths = layer.output_lengths(x, lengths)
        x = output
    for name, layer, inputs, valid, tape in reversed(entries):
        if isinstance(layer, Recurrent):
            yield name, layer, inputs, valid, gradient
        elif isinstance(layer, Container):
            yield from _visit(layer, f"{name}.", inputs, valid, gradient)
        g = run_back(layer, tape, gradient, None, input_grad=True)
        if g.input is not None:
            gradient = g.input


def _norms(
    layer: Recurrent[Any], x: FloatArray, lengths: NDArray[Any] | None, gradient: FloatArray
) -> dict[str, NDArray[np.float64]]:
    """Return the norms of each level and direction of a layer, by the end of its parameters."""
    if layer.residual or (layer.bidirectional and layer.merge != "concat"):
        raise ValueError(
            f"model: expected layers with merge='concat', without residual, got {layer}"
        )
    counts = np.full(x.shape[1], len(x)) if lengths is None else lengths
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    walks = []
    for k in range(layer.num_layers):
        level = [_Walk(layer, f"_l{k}{end}", x, counts) for end in directions]
        x = np.concatenate([walk.output for walk in level], axis=2)
        walks.append(level)
    norms = {}
    for level in reversed(walks):
        parts = np.split(gradient, len(level), axis=2)
        backs = [walk.back(part) for walk, part in zip(level, parts, strict=True)]
        norms.update({walk.name: back[1] for walk, back in zip(level, backs, strict=True)})
        gradient = np.sum([back[0] for back in backs], axis=0)
    return norms


class _Walk:
    """One direction of one level of a layer, run step by step.

    Parameters
    ----------
    layer : Recurrent
        The layer.
    suffix : str
        End of its parameters, such as ``_l0_reverse``.
    x : ndarray (T, B, I)
        Input of the level.
    lengths : integers (B,)
        Valid steps of each row.
    """

    def __init__(
        self, layer: Recurrent[Any], suffix: str, x: FloatArray, lengths: NDArray[Any]
    ) -> None:
        self.name = suffix[1:]
        arguments = describe_arguments(layer)
        for shared in ("num_layers", "bidirectional", "batch_first", "dropout", "merge"):
            arguments.pop(shared)
        self._cell = type(layer)(**{**arguments, "input_size": x.shape[2]})
        self._cell.load_state_dict(
            {
                f"{name.removesuffix(suffix)}_l0": array
                for name, array in layer.parameters.items()
                if name.endswith(suffix)
            }
        )
        self._cell.eval()
        T, B, _ = x.shape
        # The step that comes t-th, of every row.
        order = np.broadcast_to(np.arange(T)[:, np.newaxis], (T, B))
        self._lengths, self._valid = lengths, valid_steps(T, lengths)
        if suffix.endswith("_reverse"):
            order = np.where(self._valid, lengths - 1 - order, order)
        self._order = (order, np.arange(B))
        self._tapes = []
        outputs, state = [], None
        for t, x_t in enumerate(x[self._order]):
            output, state, tape = self._cell.forward(
                np.ascontiguousarray(x_t[np.newaxis]), state, self._valid[t].astype(np.int64)
            )
            outputs.append(output[0])
            self._tapes.append(tape)
        self.output = np.empty((T, B, outputs[0].shape[1]), x.dtype)
        self.output[self._order] = outputs

    def back(self, gradient: FloatArray) -> tuple[FloatArray, NDArray[np.float64]]:
        """Return dL/d(input), and the norm of dL/dh_t at every step of the sequence."""
        ordered = np.ascontiguousarray(without_padding(gradient, self._lengths)[self._order])
        total = ordered.copy()  # dL/dh_t, of the output and of the next step
        grad_input = np.empty((*gradient.shape[:2], self._cell.input_size), gradient.dtype)
        state: Any = None
        for t in reversed(range(len(ordered))):
            if state is not None:
                later = state[0] if isinstance(state, tuple) else state
                total[t] += np.where(self._valid[t][:, np.newaxis], later[0], 0)
            g = self._cell.backward(self._tapes[t], ordered[t : t + 1], state)
            state = g.state
            order, rows = self._order
            assert g.input is not None
            grad_input[order[t], rows] = g.input[0]
        spread = np.empty_like(total)
        spread[self._order] = total
        return grad_input, np.linalg.norm(spread.astype(np.float64), axis=(1, 2))
