"""Loops over cells of `fastrnn.torch`: all steps share one node for gradients of weights."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastrnn.torch  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread_for_torch")

Module = Any
Tensor = Any

B, INPUTS, H, T = 3, 5, 19, 6
cells = pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])


def both(name: str, **options: Any) -> tuple[Module, Module]:
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(INPUTS, H, dtype=torch.float64, **options)
    ours = copy.deepcopy(theirs)
    fastrnn.torch.replace(ours)
    return theirs, ours


def sequence(*, requires_grad: bool = False) -> Tensor:
    x = torch.randn(T, B, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_(requires_grad)


def hidden(state: Any) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


def loop(cell: Module, x: Tensor, state: Any = None) -> list[Tensor]:
    """h of every step."""
    outputs = []
    for x_t in x:
        state = cell(x_t, state)
        outputs.append(hidden(state))
    return outputs


def loss(cell: Module, x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, T * B * H, dtype=x.dtype).view(T, B, H)
    return (weight * torch.stack(loop(cell, x))).sum()


def assert_same_gradients(theirs: Module, ours: Module) -> None:
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=lambda text, name=name: f"{name}: {text}")


@cells
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs_x", [True, False])
def test_loop(name: str, bias: bool, needs_x: bool) -> None:
    found = []
    for cell in both(name, bias=bias):
        x = sequence(requires_grad=needs_x)
        loss(cell, x).backward()
        found.append((cell, x.grad))
    assert_same_gradients(found[0][0], found[1][0])
    torch.testing.assert_close(found[1][1], found[0][1])


@cells
def test_input_that_needs_gradients_in_some_steps(name: str) -> None:
    found = []
    for cell in both(name):
        x = list(sequence())
        x[1].requires_grad_()
        torch.stack(loop(cell, x)).square().sum().backward()
        found.append((cell, x[1].grad))
    assert_same_gradients(found[0][0], found[1][0])
    torch.testing.assert_close(found[1][1], found[0][1])


@cells
def test_gradients_accumulate_over_graphs(name: str) -> None:
    pair = both(name)
    for cell in pair:
        for factor in (1, -3):
            (factor * loss(cell, sequence())).backward()
    assert_same_gradients(*pair)


@cells
def test_two_graphs_before_either_backward(name: str) -> None:
    pair = both(name)
    for cell in pair:
        first, second = loss(cell, sequence()), loss(cell, 2 * sequence())
        second.backward()
        first.backward()
    assert_same_gradients(*pair)


@cells
def test_retained_graph(name: str) -> None:
    pair = both(name)
    for cell in pair:
        value = loss(cell, sequence())
        value.backward(retain_graph=True)
        value.backward()
    assert_same_gradients(*pair)


@cells
def test_freed_graph_raises(name: str) -> None:
    _, ours = both(name)
    value = loss(ours, sequence())
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@cells
def test_wanted_inputs_alone(name: str) -> None:
    found = []
    for cell in both(name):
        x = sequence(requires_grad=True)
        value = loss(cell, x)
        parts = [
            torch.autograd.grad(value, x, retain_graph=True),
            torch.autograd.grad(value, cell.weight_hh, retain_graph=True),
            torch.autograd.grad(value, [x, cell.bias_ih], retain_graph=True),
        ]
        value.backward(inputs=[cell.weight_ih])
        assert cell.weight_hh.grad is None
        assert x.grad is None
        found.append([*sum(parts, ()), cell.weight_ih.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)


@cells
def test_loss_of_one_step_in_the_middle(name: str) -> None:
    pair = both(name)
    for cell in pair:
        loop(cell, sequence())[2].sum().backward()
    assert_same_gradients(*pair)


@cells
@pytest.mark.parametrize("frozen", [("weight_ih",), ("weight_hh", "bias_hh")])
def test_frozen_weights(name: str, frozen: tuple[str, ...]) -> None:
    pair = both(name)
    for cell in pair:
        for parameter in frozen:
            getattr(cell, parameter).requires_grad_(False)
        loss(cell, sequence()).backward()
        assert all(getattr(cell, parameter).grad is None for parameter in frozen)
    assert_same_gradients(*pair)


@cells
def test_freezing_between_sequences(name: str) -> None:
    pair = both(name)
    for cell in pair:
        loss(cell, sequence()).backward()
        cell.weight_hh.requires_grad_(False)
        loss(cell, sequence()).backward()
        cell.requires_grad_(False)
        assert not loss(cell, sequence()).requires_grad
        x = sequence(requires_grad=True)
        loss(cell, x).backward()
    assert_same_gradients(*pair)


@cells
def test_training(name: str) -> None:
    pair = both(name)
    for cell in pair:
        optimizer = torch.optim.Adam(cell.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            loss(cell, sequence()).backward()
            optimizer.step()
    for a, b in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        torch.testing.assert_close(b, a)


@cells
def test_weights_changed_before_backward_raise(name: str) -> None:
    for cell in both(name):
        value = loss(cell, sequence())
        with torch.no_grad():
            cell.weight_hh.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@cells
@pytest.mark.parametrize("where", [(0, 0), (7, 3)])
def test_single_elements_written_through_data(name: str, where: tuple[int, int]) -> None:
    """As people do who check gradients by differences; torch does not count such writes."""
    pair = both(name)
    values = []
    for cell in pair:
        loss(cell, sequence())
        cell.weight_hh.data[where] += 0.5
        values.append(loss(cell, sequence()).item())
    assert values[1] == pytest.approx(values[0], rel=1e-12)


@cells
def test_weights_changed_between_steps(name: str) -> None:
    found = []
    for cell in both(name):
        state = cell(sequence()[0])
        with torch.no_grad():
            cell.weight_hh.mul_(-2)
        found.append(hidden(cell(sequence()[1], state)))
    torch.testing.assert_close(found[1], found[0])


@cells
def test_double_backward(name: str) -> None:
    found = []
    for cell in both(name):
        x = sequence(requires_grad=True)
        wanted = [x, *cell.parameters()]
        gradients = torch.autograd.grad(loss(cell, x), wanted, create_graph=True)
        penalty = sum(g.square().sum() for g in gradients)
        found.append([*gradients, *torch.autograd.grad(penalty, wanted)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)


@cells
def test_batched_gradients(name: str) -> None:
    found = []
    for cell in both(name):
        value = torch.stack([h.sum() for h in loop(cell, sequence())])
        found.append(
            torch.autograd.grad(
                value,
                list(cell.parameters()),
                torch.eye(T, dtype=value.dtype),
                is_grads_batched=True,
            )
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)


@cells
def test_hooks_see_whole_gradients_once(name: str) -> None:
    for cell in both(name):
        seen: list[Tensor] = []
        cell.weight_hh.register_hook(seen.append)
        after: list[Tensor] = []
        cell.weight_ih.register_post_accumulate_grad_hook(
            lambda p, after=after: after.append(p.grad)
        )
        loss(cell, sequence()).backward()
        assert len(seen) == len(after) == 1
        torch.testing.assert_close(seen[0], cell.weight_hh.grad)


@cells
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(name: str, use_reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    pair = both(name)
    found = []
    for cell in pair:
        x = sequence(requires_grad=True)
        value = checkpoint(lambda x, cell=cell: loss(cell, x), x, use_reentrant=use_reentrant)
        value.backward()
        found.append(x.grad)
    assert_same_gradients(*pair)
    torch.testing.assert_close(found[1], found[0])


@cells
def test_error_in_one_pass_leaves_the_next_alone(name: str) -> None:
    theirs, ours = both(name)

    def fail(_: Tensor) -> None:
        raise ArithmeticError

    outputs = loop(ours, sequence())
    handle = outputs[1].register_hook(fail)
    with pytest.raises(ArithmeticError):
        torch.stack(outputs).sum().backward()
    handle.remove()
    for cell in (theirs, ours):
        cell.zero_grad()
        loss(cell, sequence()).backward()
    assert_same_gradients(theirs, ours)


@cells
def test_threads(name: str) -> None:
    """Each computes gradients of its own, on one module."""
    theirs, ours = both(name)
    expected = torch.autograd.grad(loss(theirs, sequence()), list(theirs.parameters()))
    wrong: list[int] = []

    def work() -> None:
        for _ in range(20):
            found = torch.autograd.grad(loss(ours, sequence()), list(ours.parameters()))
            if not all(torch.allclose(a, b) for a, b in zip(expected, found, strict=True)):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@cells
def test_nothing_outlives_its_use(name: str) -> None:
    _, ours = both(name)
    kept = []
    gc.disable()
    try:
        for _ in range(3):
            value = loss(ours, sequence())
            kept.append(weakref.ref(ours._network()._shared))
            value.backward()
            with torch.no_grad():
                ours.weight_ih.add_(0.1)
        del value
        loss(ours, sequence())
        assert [ref() for ref in kept] == [None] * 3
    finally:
        gc.enable()


@cells
def test_weights_that_are_results(name: str) -> None:
    pair = both(name)
    found = []
    for cell in pair:
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        weights = {key: scale * value.detach() for key, value in cell.named_parameters()}
        state = None
        for x_t in sequence():
            state = torch.func.functional_call(cell, weights, (x_t, state))
        hidden(state).sum().backward()
        found.append(scale.grad)
    torch.testing.assert_close(found[1], found[0])
