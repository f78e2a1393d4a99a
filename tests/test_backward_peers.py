"""Gradients against PyTorch's autograd."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from parity import (
    Array,
    arrays,
    assert_gradient_close,
    draw_resets,
    draw_state,
    gradient_tolerance,
    make_layer,
    name_gradients,
)
from test_peers import LENGTHS, TORCH

torch = pytest.importorskip("torch")

Rng = np.random.Generator
T, B, INPUTS, H = 7, 5, 5, 17


pytestmark = [
    pytest.mark.usefixtures("one_thread_for_torch"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def pair(parts: tuple[Any, ...]) -> Any:
    """A state from its arrays."""
    return parts if len(parts) == 2 else parts[0]


def leaf(array: Array) -> Any:
    """A tensor that gets a gradient."""
    return torch.from_numpy(array.copy()).requires_grad_()


class Problem:
    """A module, a layer with its parameters, and their input and state, as arrays and leaves."""

    def __init__(
        self, cell: str, rng: Rng, *, B: int | None = B, dtype: str = "float32", **options: Any
    ) -> None:
        name, torch_options = TORCH[cell]
        torch.manual_seed(int(rng.integers(2**31)))  # relu has kinks: the same numbers every time
        self.module = getattr(torch.nn, name)(
            INPUTS, H, dtype=getattr(torch, dtype), **torch_options, **options
        )
        self.layer = make_layer(cell, INPUTS, H, rng, dtype=dtype, **options)
        self.layer.load_state_dict(self.module.state_dict())
        x = rng.standard_normal((T, INPUTS) if B is None else (T, B, INPUTS)).astype(dtype)
        if options.get("batch_first") and B is not None:
            x = np.ascontiguousarray(x.swapaxes(0, 1))
        self.x, self.torch_x = x, leaf(x)
        self.state = draw_state(cell, rng, B=B, hidden_size=H, dtype=dtype, **options)
        self.torch_state = tuple(leaf(part) for part in arrays(self.state))
        self.bound = 2 * gradient_tolerance(
            T, B, INPUTS, H, dtype=dtype, **options
        )  # torch errs too

    def assert_gradients(
        self,
        rng: Rng,
        torch_output: Any,
        torch_final: tuple[Any, ...],
        *,
        with_output: bool = True,
        with_state: bool = True,
        **given: Any,
    ) -> None:
        """Compare the gradients of a random linear function of what the module put out."""
        output, final, tape = self.layer.forward(self.x, self.state, **given)
        grads = [rng.standard_normal(a.shape).astype(a.dtype) for a in (output, *arrays(final))]
        used = [with_output, *[with_state] * len(arrays(final))]
        sum(
            (theirs * torch.from_numpy(grad)).sum()
            for theirs, grad, use in zip((torch_output, *torch_final), grads, used, strict=True)
            if use
        ).backward()
        gradients = name_gradients(
            self.layer.backward(
                tape,
                grads[0] if with_output else None,
                pair(tuple(grads[1:])) if with_state else None,
            )
        )
        leaves = [self.torch_x, *self.torch_state, *self.module.parameters()]
        assert len(leaves) == len(gradients)
        for (name, gradient), theirs in zip(gradients.items(), leaves, strict=True):
            assert_gradient_close(name, gradient, theirs.grad.numpy(), self.bound)


@dtypes
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", TORCH)
def test_torch(
    cell: str,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    batch_first: bool,
    dtype: str,
    rng: Rng,
) -> None:
    problem = Problem(
        cell,
        rng,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        batch_first=batch_first,
        dtype=dtype,
    )
    output, final = problem.module(problem.torch_x, pair(problem.torch_state))
    problem.assert_gradients(
        rng,
        output,
        arrays(final),
        with_output=bias or batch_first,
        with_state=bias or not batch_first,
    )


@dtypes
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("proj_size", [1, 6, 16])
def test_projection(
    proj_size: int, num_layers: int, bidirectional: bool, dtype: str, rng: Rng
) -> None:
    problem = Problem(
        "lstm",
        rng,
        num_layers=num_layers,
        bidirectional=bidirectional,
        proj_size=proj_size,
        dtype=dtype,
    )
    output, final = problem.module(problem.torch_x, problem.torch_state)
    problem.assert_gradients(rng, output, final)


@dtypes
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", TORCH)
def test_unbatched(cell: str, bidirectional: bool, batch_first: bool, dtype: str, rng: Rng) -> None:
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "num_layers": 2}
    problem = Problem(cell, rng, B=None, dtype=dtype, **options)
    output, final = problem.module(problem.torch_x, pair(problem.torch_state))
    problem.assert_gradients(rng, output, arrays(final))


@dtypes
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("cell", "projection"), [(cell, {}) for cell in TORCH] + [("lstm", {"proj_size": 6})], ids=str
)
def test_packed_sequence(
    cell: str,
    projection: dict[str, int],
    bidirectional: bool,
    batch_first: bool,
    dtype: str,
    rng: Rng,
) -> None:
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "num_layers": 2}
    problem = Problem(cell, rng, dtype=dtype, **options, **projection)
    rnn = torch.nn.utils.rnn
    packed, final = problem.module(
        rnn.pack_padded_sequence(problem.torch_x, LENGTHS, batch_first, enforce_sorted=False),
        pair(problem.torch_state),
    )
    output, _ = rnn.pad_packed_sequence(packed, batch_first, total_length=T)
    problem.assert_gradients(rng, output, arrays(final), lengths=LENGTHS)


@dtypes
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("cell", "projection"), [(cell, {}) for cell in TORCH] + [("lstm", {"proj_size": 6})], ids=str
)
def test_resets_are_pieces(
    cell: str,
    projection: dict[str, int],
    bidirectional: bool,
    with_lengths: bool,
    dtype: str,
    rng: Rng,
) -> None:
    """Each row of torch's is cut where it resets, and every piece run alone.

    The forward direction starts from its state in the first piece and ends in the last one, the
    reverse direction the other way round; everywhere else they start from zero.
    """
    problem = Problem(
        cell, rng, dtype=dtype, bidirectional=bidirectional, num_layers=2, **projection
    )
    resets = draw_resets(rng, T, B)
    assert resets[1:].any()
    directions = 2 if bidirectional else 1
    reverse = torch.arange(2 * directions)[:, None, None] % directions == 1
    outputs, finals = [], []
    for b in range(B):
        length = LENGTHS[b] if with_lengths else T
        inside = [t for t in range(1, length) if resets[t, b]]
        pieces = list(pairwise([0, *inside, length]))
        row, ends = [], []
        for start, stop in pieces:
            # Where a direction begins with what it was given; a reset at 0 cuts the forward one.
            given = (reverse & (stop == length)) | (~reverse & (start == 0 and not resets[0, b]))
            state = tuple(part[:, b : b + 1] * given for part in problem.torch_state)
            output, end = problem.module(problem.torch_x[start:stop, b : b + 1], pair(state))
            row.append(output)
            ends.append(arrays(end))
        padding = output.new_zeros((T - length, *output.shape[1:]))
        outputs.append(torch.cat([*row, padding]))
        finals.append(
            [
                torch.where(reverse, first, last)
                for first, last in zip(ends[0], ends[-1], strict=True)
            ]
        )
    final = tuple(torch.cat(parts, dim=1) for parts in zip(*finals, strict=True))
    problem.assert_gradients(
        rng,
        torch.cat(outputs, dim=1),
        final,
        resets=resets,
        lengths=LENGTHS if with_lengths else None,
    )


@pytest.mark.parametrize("merge", ["sum", "mean", "max", "mul"])
@pytest.mark.parametrize("cell", TORCH)
def test_merges(cell: str, merge: str, rng: Rng) -> None:
    """Of torch's two halves, by its own operators."""
    problem = Problem(cell, rng, bidirectional=True)
    merged = make_layer(cell, INPUTS, H, rng, bidirectional=True, merge=merge)
    merged.load_state_dict(problem.module.state_dict())
    problem.layer = merged
    output, final = problem.module(problem.torch_x, pair(problem.torch_state))
    halves = output.split(H, dim=-1)
    join = {
        "sum": torch.add,
        "mean": lambda a, b: (a + b) / 2,
        "max": torch.maximum,
        "mul": torch.mul,
    }
    problem.assert_gradients(rng, join[merge](*halves), arrays(final))


def test_max_of_equal_directions(rng: Rng) -> None:
    """One step with equal weights makes ties everywhere; both halve the gradient there."""

    def eighths(values: Any) -> Any:
        return (values * 8).round() / 8  # whose sums are exact in any order

    problem = Problem("rnn_tanh", rng, bidirectional=True)
    state = {name: eighths(value) for name, value in problem.module.state_dict().items()}
    for name in [name for name in state if "reverse" not in name]:
        state[f"{name}_reverse"] = state[name]
    problem.module.load_state_dict(state)
    problem.layer = make_layer("rnn_tanh", INPUTS, H, rng, bidirectional=True, merge="max")
    problem.layer.load_state_dict(state)
    problem.x = eighths(problem.x[:1])
    problem.torch_x = leaf(problem.x)
    problem.state = np.repeat(eighths(problem.state[:1]), 2, axis=0)
    problem.torch_state = (leaf(problem.state),)
    output, final = problem.module(problem.torch_x, problem.torch_state[0])
    ahead, back = output.split(H, dim=-1)
    assert bool((ahead == back).all())
    problem.assert_gradients(rng, torch.maximum(ahead, back), (final,), with_state=False)
    assert bool(problem.module.weight_ih_l0.grad.any())
    assert bool(problem.module.weight_ih_l0_reverse.grad.any())


def test_a_training_run(rng: Rng) -> None:
    """Thirty steps of gradient descent go the way that torch goes."""
    problem = Problem("lstm", rng, num_layers=2, bidirectional=True, dtype="float64")
    target = rng.standard_normal((T, B, 2 * H))
    optimizer = torch.optim.SGD(problem.module.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        theirs, _ = problem.module(problem.torch_x.detach())
        loss = ((theirs - torch.from_numpy(target)) ** 2).sum() / 2
        loss.backward()
        optimizer.step()
        output, _, tape = problem.layer.forward(problem.x)
        losses.append(float(((output - target) ** 2).sum() / 2))
        np.testing.assert_allclose(losses[-1], loss.item(), rtol=1e-12)
        gradients = problem.layer.backward(tape, output - target, input_grad=False).parameters
        for name, parameter in problem.layer.parameters.items():
            parameter -= 0.05 * gradients[name]
    assert losses[-1] < losses[0] / 1.3
    for name, parameter in problem.module.named_parameters():
        ours = problem.layer.parameters[name]
        np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=0, atol=1e-11)
