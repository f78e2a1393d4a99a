"""Regularised modules of fastrnn.torch against plain loops, by the masks that the kernels draw."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import fastrnn
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastrnn.torch  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread_for_torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]

T, B, INPUTS, H = 5, 3, 4, 4  # as wide as the state, for residuals
SEED = 7
NAMES = ["RNN", "LSTM", "GRU"]
NOISE = {"recurrent_dropout": 0.4, "input_dropout": 0.3, "weight_drop": 0.25, "zoneout": 0.35}
DEEP = {"num_layers": 2, "bidirectional": True, "dropout": 0.3}
EVERY = {**NOISE, **DEEP, "layer_norm": True}
EVERY_LSTM = {**EVERY, "coupled": True, "peephole": True, "clip": 0.3, "zoneout": (0.35, 0.2)}

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"layer_norm": True}) for name in NAMES),
    *((name, {kind: p}) for name in NAMES for kind, p in NOISE.items()),
    *((name, {**EVERY, "merge": "sum", "residual": True}) for name in ("RNN", "GRU")),
    ("RNN", {**EVERY, "nonlinearity": "relu", "bias": False}),
    ("GRU", {"reset_after": False, "layer_norm": True}),
    ("GRU", {"reset_after": False, "recurrent_dropout": 0.4, "zoneout": 0.3}),
    ("GRU", {"reset_after": False, **EVERY}),
    ("LSTM", {"coupled": True}),
    ("LSTM", {"coupled": True, "peephole": True, "bias": False}),
    ("LSTM", {"clip": 0.1}),
    ("LSTM", {"clip": 0.1, "layer_norm": True, "peephole": True}),
    ("LSTM", {"zoneout": (0.0, 0.4)}),
    ("LSTM", {**EVERY, "proj_size": 3, "peephole": True, "forget_bias": 1.0}),
    ("LSTM", {**EVERY_LSTM, "merge": "max", "residual": True}),
    ("LSTM", {**EVERY_LSTM, "proj_size": 3, "bias": False}),
]
ALL = [("RNN", EVERY), ("GRU", EVERY), ("GRU", {**EVERY, "reset_after": False})]
ALL += [("LSTM", EVERY), ("LSTM", {**EVERY_LSTM, "proj_size": 3})]


def label(value: Any) -> str:
    if isinstance(value, str):
        return value
    every = EVERY.keys() <= value.keys()
    return "-".join(["every"] * every + [key for key in value if not every or key not in EVERY])


cases = pytest.mark.parametrize(("name", "options"), CASES, ids=label)
everything = pytest.mark.parametrize(("name", "options"), ALL, ids=label)
names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(20160221)


def make(name: str, dtype: Any = torch.float64, **options: Any) -> Any:
    """A module whose norms do something."""
    module = getattr(fastrnn.torch, name)(INPUTS, H, dtype=dtype, **options)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.startswith("norm_"):
                parameter.add_(torch.randn_like(parameter) / 4)
    return module


def draw(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, dtype=dtype)


def draw_state(module: Any, *rows: int, dtype: Any = torch.float64) -> Any:
    chains = module.num_layers * (2 if module.bidirectional else 1)
    h = draw(chains, *rows, module.proj_size or H, dtype=dtype) / 2
    return (h, draw(chains, *rows, H, dtype=dtype) / 2) if isinstance(module, torch.nn.LSTM) else h


def draw_options() -> dict[str, Any]:
    resets = torch.rand(T, B) < 0.3
    resets[0, 0] = resets[3, 2] = True
    return {"lengths": torch.tensor([4, 0, 5]), "resets": resets}


def leaves(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return [value.data]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in leaves(part)]
    return [value]


def fresh(value: Any) -> Any:
    """Copies that get gradients."""
    if isinstance(value, tuple):
        return tuple(fresh(part) for part in value)
    return value.detach().clone().requires_grad_()


def seeded(function: Any, *args: Any, **options: Any) -> Any:
    """A call whose masks have the seed `seed_of_masks()`."""
    torch.manual_seed(SEED)
    return function(*args, **options)


def seed_of_masks() -> int:
    return int(seeded(torch.randint, 2**62, ()))


def weighted(outputs: Any) -> Any:
    """A function of outputs, the same for the same shapes."""
    generator = torch.Generator().manual_seed(1)
    total = 0
    for y in leaves(outputs):
        factors = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype)
        total = total + (factors * (y + 0.3 * y * y)).sum()
    return total


def assert_near(actual: Any, expected: Any, bound: float | None = None) -> None:
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, i
        assert a.dtype == e.dtype, i
        assert torch.isfinite(e).all(), i
        least = 1e-5 if e.dtype == torch.float32 else 1e-11
        scale = max(1.0, float(e.detach().abs().max()))
        error = float((a.detach() - e.detach()).abs().max()) / scale
        assert error <= (bound or least), f"tensor {i}: error {error:.3g}"


def assert_same(actual: Any, expected: Any) -> None:
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == e.dtype, i
        assert torch.equal(a, e), i


# The equations, row by row and step by step.


def normalised(values: Any, weight: Any, bias: Any) -> Any:
    centred = values - values.sum() / values.numel()
    variance = (centred * centred).sum() / values.numel()
    return weight * centred / torch.sqrt(variance + 1e-5) + bias


class Reference:
    """One call of a module, in plain operations on single rows."""

    def __init__(self, module: Any, x: Any, hx: Any, options: dict[str, Any]) -> None:
        self.module, self.x, self.options = module, x, options
        self.lstm = isinstance(module, torch.nn.LSTM)
        self.h0, self.c0 = hx if self.lstm else (hx, None)
        self.seed = seed_of_masks()

    def mask(self, kind: str, p: float, shape: tuple[int, ...], layer: int, d: int = 0) -> Any:
        if kind.startswith("zoneout"):
            if not (self.module.training and p):
                return torch.full(shape, float(p), dtype=self.x.dtype)
        elif not (self.module.training and p):
            return torch.ones(shape, dtype=self.x.dtype)
        mask = fastrnn.functional.mask(kind, shape, p, self.seed, layer, d)
        assert mask.dtype == np.float32
        found = torch.from_numpy(mask).to(self.x.dtype)
        if kind.startswith("zoneout"):
            assert ((found == 0) | (found == 1)).all()
            return found
        scale = 0.0 if p == 1 else 1 / (1 - p)  # which is no float32 number
        assert ((found == 0) | ((found - scale).abs() < 1e-6)).all()
        return (found != 0).to(self.x.dtype) * scale

    def parameter(self, kind: str, layer: int, d: int) -> Any:
        return getattr(self.module, f"{kind}_l{layer}{'_reverse' * d}", None)

    def run(self) -> tuple[Any, ...]:
        """Output, final state and states, in the form of the module's."""
        module, x = self.module, self.x
        steps, rows, _ = x.shape
        D = 2 if module.bidirectional else 1
        zero = x.new_zeros
        final_h, final_c, every_h, every_c = [], [], [], []
        lengths = self.options.get("lengths", [steps] * rows)
        resets = self.options.get("resets", torch.zeros(steps, rows, dtype=torch.bool))
        for layer in range(module.num_layers):
            sides = []
            for d in range(D):
                hs = [[zero(module.proj_size or H) for _ in range(rows)] for _ in range(steps)]
                cs = [[zero(H) for _ in range(rows)] for _ in range(steps)]
                chain = layer * D + d
                last_h, last_c = [], []
                masks = self.masks(layer, d, x)
                for b in range(rows):
                    h = self.h0[chain, b]
                    c = self.c0[chain, b] if self.lstm else zero(H)
                    order = list(range(int(lengths[b])))
                    for t in order if d == 0 else order[::-1]:
                        before = t if d == 0 else t + 1
                        if before < int(lengths[b]) and resets[before, b]:
                            h, c = torch.zeros_like(h), torch.zeros_like(c)
                        h, c = self.step(layer, d, t, b, x[t, b], h, c, masks)
                        hs[t][b], cs[t][b] = h, c
                    last_h.append(h)
                    last_c.append(c)
                final_h.append(torch.stack(last_h))
                final_c.append(torch.stack(last_c))
                every_h.append(torch.stack([torch.stack(row) for row in hs]))
                every_c.append(torch.stack([torch.stack(row) for row in cs]))
                sides.append(every_h[-1])
            y = sides[0]
            if D == 2:
                y = {
                    "concat": lambda a, b: torch.cat((a, b), -1),
                    "sum": torch.add,
                    "max": torch.maximum,
                }[module.merge](*sides)
            if module.residual and x.shape == y.shape:
                valid = torch.arange(steps)[:, None] < torch.as_tensor(lengths)
                y = y + x * valid[..., None]
            if layer + 1 < module.num_layers:
                y = y * self.mask("dropout", module.dropout, tuple(y.shape), layer)
            x = y
        h, c, hs, cs = map(torch.stack, (final_h, final_c, every_h, every_c))
        return (x, (h, c), (hs, cs)) if self.lstm else (x, h, hs)

    def masks(self, layer: int, d: int, x: Any) -> dict[str, Any]:
        module = self.module
        steps, rows, width = x.shape
        R = module.proj_size or H
        zoneout = module.zoneout if isinstance(module.zoneout, tuple) else (module.zoneout,) * 2
        shape = tuple(self.parameter("weight_hh", layer, d).shape)
        return {
            "input": self.mask("input", module.input_dropout, (rows, width), layer),
            "recurrent": self.mask("recurrent", module.recurrent_dropout, (rows, R), layer, d),
            "weight": self.mask("weight", module.weight_drop, shape, layer, d),
            "h": self.mask("zoneout_h", zoneout[0], (steps, rows, R), layer, d),
            "c": self.mask("zoneout_c", zoneout[1], (steps, rows, H), layer, d)
            if self.lstm
            else None,
        }

    def step(
        self, layer: int, d: int, t: int, b: int, x: Any, h: Any, c: Any, masks: dict[str, Any]
    ) -> tuple[Any, Any]:
        module = self.module

        def p(kind: str) -> Any:
            return self.parameter(kind, layer, d)

        def norm(kind: str, values: Any, rows: slice = slice(None)) -> Any:
            if not module.layer_norm:
                return values
            return normalised(values, p(f"norm_{kind}_weight")[rows], p(f"norm_{kind}_bias")[rows])

        W_hh = p("weight_hh") * masks["weight"]
        b_ih, b_hh = (p("bias_ih"), p("bias_hh")) if module.bias else (0, 0)
        dropped = masks["recurrent"][b] * h
        u = norm("ih", p("weight_ih") @ (masks["input"][b] * x)) + b_ih
        z_h = masks["h"][t, b]
        if isinstance(module, torch.nn.GRU) and not module.reset_after:
            gates, last = slice(0, 2 * H), slice(2 * H, 3 * H)
            b_gates, b_last = (b_hh[gates], b_hh[last]) if module.bias else (0, 0)
            a = u[gates] + norm("hh", W_hh[gates] @ dropped, gates) + b_gates
            r, z = torch.sigmoid(a[:H]), torch.sigmoid(a[H:])
            n = torch.tanh(u[last] + norm("hh", W_hh[last] @ (r * dropped), last) + b_last)
            new = (1 - z) * n + z * h
            return z_h * h + (1 - z_h) * new, c
        s = norm("hh", W_hh @ dropped) + b_hh
        if isinstance(module, torch.nn.GRU):
            r, z = torch.sigmoid(u[:H] + s[:H]), torch.sigmoid(u[H : 2 * H] + s[H : 2 * H])
            n = torch.tanh(u[2 * H :] + r * s[2 * H :])
            new = (1 - z) * n + z * h
            return z_h * h + (1 - z_h) * new, c
        if isinstance(module, torch.nn.RNN):
            new = (torch.relu if module.nonlinearity == "relu" else torch.tanh)(u + s)
            return z_h * h + (1 - z_h) * new, c
        blocks = (u + s).split(H)
        if module.coupled:
            i, g, o = blocks
            f = None
        else:
            i, f, g, o = blocks
        peep = p("weight_peep")
        if module.peephole:
            assert peep.shape == (2 if module.coupled else 3, H)
            i = i + peep[0] * c
            f = f if f is None else f + peep[1] * c
        i = torch.sigmoid(i)
        f = 1 - i if f is None else torch.sigmoid(f)
        cell = f * c + i * torch.tanh(g)
        if module.clip is not None:
            cell = torch.minimum(
                torch.maximum(cell, cell.new_tensor(-module.clip)), cell.new_tensor(module.clip)
            )
        if module.peephole:
            o = o + peep[-1] * cell
        new = torch.sigmoid(o) * torch.tanh(norm("c", cell))
        if module.proj_size:
            new = p("weight_hr") @ new
        z_c = masks["c"][t, b]
        return z_h * h + (1 - z_h) * new, z_c * c + (1 - z_c) * cell


def reference(module: Any, x: Any, hx: Any, **options: Any) -> tuple[Any, ...]:
    return Reference(module, x, hx, options).run()


def first_and_second(outputs: Any, wanted: list[Any]) -> tuple[Any, Any]:
    """Gradients, and gradients of a function of them."""
    first = torch.autograd.grad(weighted(outputs), wanted, create_graph=True, allow_unused=True)
    assert all(gradient is not None for gradient in first)
    second = torch.autograd.grad(weighted(list(first)), wanted, allow_unused=True)
    return first, [
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(wanted, second, strict=True)
    ]


@pytest.mark.parametrize("training", [True, False])
@cases
def test_equations(name: str, options: dict[str, Any], training: bool) -> None:
    module = make(name, **options).train(training)
    given = draw_options() if module.bidirectional else {}
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    found = []
    for function in (module, reference):
        leaf = fresh((x, hx))
        wanted = [*leaves(leaf), *module.parameters()]
        if function is module:
            outputs = seeded(module, *leaf, **given, return_all_states=True)
        else:
            outputs = reference(module, *leaf, **given)
        gradients = torch.autograd.grad(weighted(outputs), wanted, retain_graph=True)
        found.append((outputs, gradients, *first_and_second(outputs, wanted)))
    for actual, expected in zip(*found, strict=True):
        assert_near(actual, expected)
    with torch.no_grad():
        assert_same(seeded(module, x, hx, **given, return_all_states=True), found[0][0])
        assert_same(seeded(module, x, hx, **given), found[0][0][:2])


@everything
def test_equations_in_float32(name: str, options: dict[str, Any]) -> None:
    module = make(name, torch.float32, **options)
    twice = copy.deepcopy(module).double()
    given = draw_options()
    x, hx = draw(T, B, INPUTS, dtype=torch.float32), draw_state(module, B, dtype=torch.float32)
    for training in (True, False):
        module.train(training)
        twice.train(training)
        leaf = fresh((x, hx))
        outputs = seeded(module, *leaf, **given, return_all_states=True)
        gradients = torch.autograd.grad(weighted(outputs), [*leaves(leaf), *module.parameters()])
        larger = fresh((x.double(), tuple(map(torch.Tensor.double, leaves(hx)))))
        hx_larger = larger[1] if name == "LSTM" else larger[1][0]
        expected = reference(twice, larger[0], hx_larger, **given)
        assert_near(leaves(outputs), [y.float() for y in leaves(expected)], 2e-5)
        wanted = [*leaves(larger), *twice.parameters()]
        found = torch.autograd.grad(weighted(expected), wanted)
        assert_near(list(gradients), [gradient.float() for gradient in found], 5e-5)


@pytest.mark.parametrize("batched", [False, True])
@everything
def test_gradients(name: str, options: dict[str, Any], batched: bool) -> None:
    options = {**options, "merge": "mean", "bidirectional": batched, "batch_first": batched}
    module = make(name, **options)
    keys = [key for key, _ in module.named_parameters()]
    tensors = [p.detach().clone().requires_grad_() for p in module.parameters()]
    rows = (2,) if batched else ()
    hx = draw_state(module, *rows)
    tensors += [part.requires_grad_() for part in (draw(*rows, 3, INPUTS), *leaves(hx))]
    given = {"resets": torch.rand(*rows, 3) < 0.3, "lengths": [3, 2] if batched else [3]}

    def run(*tensors: Any) -> tuple[Any, ...]:
        parameters = dict(zip(keys, tensors, strict=False))
        x, *state = tensors[len(keys) :]
        call = (x, tuple(state) if name == "LSTM" else state[0])
        kwargs = {**given, "return_all_states": True}
        result = seeded(torch.func.functional_call, module, parameters, call, kwargs)
        return tuple(leaves(result))

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    if batched:
        assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


# States of all steps.


@everything
def test_states(name: str, options: dict[str, Any]) -> None:
    module = make(name, **options).eval()
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    y, final, states = module(x, hx, return_all_states=True)
    D = 2 if module.bidirectional else 1
    for part, every in zip(leaves(final), leaves(states), strict=True):
        assert every.shape == (part.shape[0], T, *part.shape[1:])
        for chain, steps in enumerate(every):
            assert torch.equal(steps[-1 if chain % D == 0 else 0], part[chain])
    h = leaves(states)[0]
    assert torch.equal(torch.cat(tuple(h[-D:]), -1), y)
    # What a state leads to is the rest of the output.
    if D == 1:
        rest, _ = module(x[3:], tuple(part[:, 2] for part in states))
        assert_same(rest, y[3:])


@pytest.mark.parametrize("which", range(5))
def test_some_of_the_outputs_have_gradients(which: int) -> None:
    module = make("LSTM", **EVERY_LSTM)
    given = draw_options()
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    found = []
    for function in (module, reference):
        leaf = fresh((x, hx))
        if function is module:
            outputs = leaves(seeded(module, *leaf, **given, return_all_states=True))
        else:
            outputs = leaves(reference(module, *leaf, **given))
        wanted = [*leaves(leaf), *module.parameters()]
        gradients = torch.autograd.grad(weighted(outputs[which]), wanted, allow_unused=True)
        found.append(
            [
                torch.zeros_like(w) if g is None else g
                for w, g in zip(wanted, gradients, strict=True)
            ]
        )
    assert_near(found[0], found[1])


@names
def test_states_of_a_plain_module(name: str) -> None:
    module = make(name, num_layers=2)
    x = draw(T, B, INPUTS)
    y, final, states = module(x, return_all_states=True)
    assert_same(module(x), (y, final))
    assert_same(leaves(states)[0][1], y)
    assert_same([part[:, -1] for part in leaves(states)], leaves(final))


@pytest.mark.parametrize("which", [0, 1, 3, 4])
@pytest.mark.parametrize("options", [{}, EVERY_LSTM], ids=label)
def test_outputs_changed_in_place(options: dict[str, Any], which: int) -> None:
    module = make("LSTM", **options)
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    found = []
    for function in ("relu", "relu_"):
        leaf = fresh((x, hx))
        outputs = leaves(seeded(module, *leaf, return_all_states=True))
        outputs[which] = getattr(outputs[which], function)()
        wanted = [*leaves(leaf), *module.parameters()]
        found.append([*outputs, *torch.autograd.grad(weighted(outputs), wanted)])
    assert_same(found[1], found[0])


@names
def test_outputs_share_no_memory(name: str) -> None:
    module = make(name)
    x = draw(T, B, INPUTS)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            expected = [tensor.detach().clone() for tensor in leaves(module(x, None))]
            outputs = leaves(module(x, return_all_states=True))
        kept = [tensor.detach().clone() for tensor in outputs]
        for i, tensor in enumerate(outputs):
            tensor.data.fill_(7)
            assert_same([t.detach() for t in outputs[i + 1 :]], kept[i + 1 :])
        with torch.no_grad():
            assert_same(module(x), expected)


@pytest.mark.parametrize("options", [{}, EVERY_LSTM], ids=label)
def test_states_after_backward(options: dict[str, Any]) -> None:
    # The tape is consumed; what it was made of is not the caller's.
    module = make("LSTM", **options)
    outputs = leaves(module(draw(T, B, INPUTS), return_all_states=True))
    kept = [tensor.detach().clone() for tensor in outputs]
    weighted(outputs).backward()
    assert_same([tensor.detach() for tensor in outputs], kept)


@everything
def test_backward_twice(name: str, options: dict[str, Any]) -> None:
    module = make(name, **options)
    loss = weighted(module(draw(T, B, INPUTS), return_all_states=True))
    wanted = list(module.parameters())
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert_same(list(torch.autograd.grad(loss, wanted)), list(first))


@everything
def test_checkpoint(name: str, options: dict[str, Any]) -> None:
    module = make(name, **options)
    x = draw(T, B, INPUTS).requires_grad_()
    found = []
    for function in (
        module,
        lambda x: torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False),
    ):
        outputs = seeded(function, x)
        found.append(torch.autograd.grad(weighted(outputs), [x, *module.parameters()]))
    assert_same(list(found[1]), list(found[0]))


# Layouts.


@pytest.mark.parametrize("training", [True, False])
@everything
def test_layouts(name: str, options: dict[str, Any], training: bool) -> None:
    module = make(name, **options).train(training)
    other = make(name, **options, batch_first=True).train(training)
    other.load_state_dict(module.state_dict())
    x, hx, given = draw(T, B, INPUTS), draw_state(module, B), draw_options()
    y, final, states = seeded(module, x, hx, **given, return_all_states=True)
    given["resets"] = given["resets"].t()
    result = seeded(other, x.transpose(0, 1), hx, **given, return_all_states=True)
    assert_same(result, (y.transpose(0, 1), final, states))

    x, hx = x[:, :1], draw_state(module, 1)
    y, final, states = seeded(module, x, hx, return_all_states=True)
    hx = tuple(part[:, 0] for part in hx) if name == "LSTM" else hx[:, 0]
    for one in (module, other):
        result = seeded(one, x[:, 0], hx, return_all_states=True)
        expected = (
            [part[:, 0] for part in leaves(final)],
            [part[:, :, 0] for part in leaves(states)],
        )
        assert_same(leaves(result), [y[:, 0], *leaves(expected)])


@pytest.mark.parametrize("enforce_sorted", [True, False])
@everything
def test_packed(name: str, options: dict[str, Any], enforce_sorted: bool) -> None:
    module = make(name, **options)
    lengths = torch.tensor([5, 3, 1] if enforce_sorted else [3, 5, 1])
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    found = []
    for packed in (False, True):
        leaf = fresh((x, hx))
        if packed:
            utils = torch.nn.utils.rnn
            rows = utils.pack_padded_sequence(leaf[0], lengths, enforce_sorted=enforce_sorted)
            order = rows.sorted_indices
            y, *rest = seeded(module, rows, leaf[1], return_all_states=True)
            outputs = (utils.pad_packed_sequence(y)[0], *rest)
        else:
            # Masks follow the rows in the order in which they are packed.
            order = torch.arange(B) if enforce_sorted else lengths.argsort(descending=True)
            back = order.argsort()
            state = [part.index_select(1, order) for part in leaves(leaf[1])]
            state = tuple(state) if name == "LSTM" else state[0]
            outputs = seeded(
                module,
                leaf[0].index_select(1, order),
                state,
                lengths=lengths[order],
                return_all_states=True,
            )
            y, final, states = outputs
            outputs = (
                y.index_select(1, back),
                [part.index_select(1, back) for part in leaves(final)],
                [part.index_select(2, back) for part in leaves(states)],
            )
        wanted = [*leaves(leaf), *module.parameters()]
        gradients = torch.autograd.grad(weighted(outputs), wanted)
        found.append((leaves(outputs), list(gradients)))
    assert_same(found[1][0], found[0][0])
    assert_near(found[1][1], found[0][1])


# Seeds and modes.


@pytest.mark.parametrize("option", [*NOISE, "dropout"])
@names
def test_seeds(name: str, option: str) -> None:
    module = make(name, num_layers=2, **{option: 0.5})
    x = draw(T, B, INPUTS)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append([module(x)[0] for _ in range(2)])
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert not torch.equal(runs[0][0], runs[2][0])
    module.eval()
    before = torch.get_rng_state()
    assert_same(module(x), module(x))
    assert torch.equal(torch.get_rng_state(), before)
    module.train()
    setattr(module, option, 0.0)
    assert_same(module(x), module(x))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", NOISE)
@names
def test_certain_noise(name: str, option: str) -> None:
    module = make(name, **{option: 1.0})
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    assert_near(module(x, hx), reference(module, x, hx)[:2])
    if option == "zoneout":  # keeps everything
        assert_same(leaves(module(x, hx)[1]), leaves(hx))


@everything
def test_dropout_is_off_in_eval_mode(name: str, options: dict[str, Any]) -> None:
    options = {key: value for key, value in options.items() if key != "zoneout"}
    module = make(name, **options).eval()
    plain = {key: value for key, value in options.items() if key not in (*NOISE, "dropout")}
    other = make(name, **plain).eval()
    other.load_state_dict(module.state_dict())
    x = draw(T, B, INPUTS)
    assert_same(module(x), other(x))


# The NumPy layers.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@everything
def test_same_bits_as_numpy(name: str, options: dict[str, Any], dtype: Any, training: bool) -> None:
    module = make(name, torch.from_numpy(np.empty(0, dtype)).dtype, **options).train(training)
    layer = getattr(fastrnn, name)(INPUTS, H, dtype=dtype, **options)
    assert set(module.state_dict()) == set(layer.parameters)
    assert module._flat_weights_names == list(layer.parameters)
    layer.load_state_dict(module.state_dict())
    layer.train(training)
    layer._mask_seed = seed_of_masks()
    kind = next(module.parameters()).dtype
    x, hx, given = draw(T, B, INPUTS, dtype=kind), draw_state(module, B, dtype=kind), draw_options()
    with torch.no_grad():
        outputs = seeded(module, x, hx, **given, return_all_states=True)
    arrays = [part.numpy() for part in leaves(hx)]
    expected = layer(
        x.numpy(),
        tuple(arrays) if name == "LSTM" else arrays[0],
        **{key: value.numpy() for key, value in given.items()},
        return_all_states=True,
    )
    expected = [expected[0], *(expected[1:] if name != "LSTM" else [*expected[1], *expected[2]])]
    for actual, array in zip(leaves(outputs), expected, strict=True):
        np.testing.assert_array_equal(actual.numpy(), array)


# Parameters.


@cases
def test_parameters(name: str, options: dict[str, Any]) -> None:
    module = getattr(fastrnn.torch, name)(INPUTS, H, **options)
    gates = {"RNN": 1, "LSTM": 3 if options.get("coupled") else 4, "GRU": 3}[name]
    D = 2 if module.bidirectional else 1
    assert len(module.all_weights) == D * module.num_layers
    assert sum(map(len, module.all_weights)) == len(list(module.parameters()))
    kinds = ["weight_ih", "weight_hh"]
    kinds += ["bias_ih", "bias_hh"] * module.bias
    kinds += ["weight_hr"] * bool(module.proj_size)
    kinds += ["weight_peep"] * bool(options.get("peephole"))
    if options.get("layer_norm"):
        kinds += [f"norm_{part}_{kind}" for part in ("ih", "hh") for kind in ("weight", "bias")]
        kinds += ["norm_c_weight", "norm_c_bias"] * (name == "LSTM")
    suffixes = [f"_l{i}{'_reverse' * d}" for i in range(module.num_layers) for d in range(D)]
    assert module._flat_weights_names == [kind + end for end in suffixes for kind in kinds]
    assert set(module.state_dict()) == set(module._flat_weights_names)
    for _ in range(2):
        for key, parameter in module.named_parameters():
            if key.startswith("norm_"):
                width = H if key.startswith("norm_c") else gates * H
                assert torch.equal(parameter, torch.full((width,), float("weight" in key)))
            elif key.startswith("weight_peep"):
                assert parameter.shape == (gates - 1, H)
            elif not key.startswith("weight_hr"):
                assert parameter.shape[0] == gates * H
            if options.get("forget_bias") and key.startswith("bias"):
                value = options["forget_bias"] if key.startswith("bias_ih") else 0.0
                assert (parameter[H : 2 * H] == value).all()
            assert parameter.abs().max() > 0 or key.startswith("norm_")
        module.reset_parameters()


def test_forget_bias_alone() -> None:
    torch.manual_seed(3)
    module = fastrnn.torch.LSTM(INPUTS, H, 2, forget_bias=1)
    torch.manual_seed(3)
    plain = fastrnn.torch.LSTM(INPUTS, H, 2)
    for (key, parameter), other in zip(module.named_parameters(), plain.parameters(), strict=True):
        expected = other.detach().clone()
        if key.startswith("bias"):
            expected[H : 2 * H] = float(key.startswith("bias_ih"))
        assert torch.equal(parameter, expected)
    assert repr(module) == f"LSTM({INPUTS}, {H}, num_layers=2, forget_bias=1.0)"
    assert fastrnn.torch.restore(module).left == {}  # a torch.nn.LSTM with other numbers
    assert type(module) is torch.nn.LSTM


@everything
def test_copies(name: str, options: dict[str, Any]) -> None:
    module = make(name, **options)
    x = draw(T, B, INPUTS)
    expected = seeded(module, x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = getattr(fastrnn.torch, name)(INPUTS, H, dtype=torch.float64, **options)
    loaded.load_state_dict(module.state_dict())
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
        loaded,
    ):
        assert repr(other) == repr(module)
        assert_near(seeded(other, x), expected, 1e-12)
        assert_near(other.eval()(x), copy.deepcopy(module).eval()(x), 1e-6)


@pytest.mark.parametrize("method", ["parametrize", "functional_call"])
def test_computed_parameters(method: str) -> None:
    module = make("LSTM", **EVERY_LSTM)
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    if method == "parametrize":
        expected = [tensor.detach() for tensor in leaves(seeded(module, x, hx))]
        utils = torch.nn.utils.parametrizations
        utils.weight_norm(module, "weight_hh_l0")
        utils.weight_norm(module, "norm_c_weight_l1", dim=None)
        outputs = seeded(module, x, hx)
        assert_near([tensor.detach() for tensor in leaves(outputs)], expected)
        weighted(outputs).backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
    else:
        doubled = {key: 2 * value for key, value in module.named_parameters()}
        found = seeded(torch.func.functional_call, module, doubled, (x, hx))
        other = copy.deepcopy(module)
        other.load_state_dict(doubled)
        assert_same(found, seeded(other, x, hx))


@cases
def test_repr(name: str, options: dict[str, Any]) -> None:
    module = getattr(fastrnn.torch, name)(INPUTS, H, **options)
    shown = repr(module)
    for key, value in options.items():
        if key not in ("nonlinearity",):
            assert f"{key}={value!r}" in shown
    assert repr(getattr(fastrnn.torch, name)(INPUTS, H)) == f"{name}({INPUTS}, {H})"


# Where there are no kernels.


@everything
def test_half_precision(name: str, options: dict[str, Any]) -> None:
    module = make(name, torch.float32, **options)
    x, given = draw(T, B, INPUTS, dtype=torch.float32), draw_options()
    expected = seeded(module, x, **given, return_all_states=True)
    outputs = seeded(module.bfloat16(), x.bfloat16(), **given, return_all_states=True)
    assert all(tensor.dtype == torch.bfloat16 for tensor in leaves(outputs))
    # Layer norm of few units is ill-conditioned: how far do rounded numbers lead by themselves?
    rounded = make(name, torch.float32, **options)
    rounded.load_state_dict(module.state_dict())
    nearby = seeded(rounded, x.bfloat16().float(), **given, return_all_states=True)
    for y, e, n in zip(leaves(outputs), leaves(expected), leaves(nearby), strict=True):
        assert (y.float() - n).abs().mean() <= 4 * (n - e).abs().mean() + 2**-8
    weighted(outputs).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@everything
def test_other_devices(name: str, options: dict[str, Any]) -> None:
    module = getattr(fastrnn.torch, name)(INPUTS, H, device="meta", **options)
    assert all(parameter.is_meta for parameter in module.parameters())
    x = torch.empty(T, B, INPUTS, device="meta")
    outputs = module(x, return_all_states=True)
    other = make(name, torch.float32, **options)
    expected = other(draw(T, B, INPUTS, dtype=torch.float32), return_all_states=True)
    for y, e in zip(leaves(outputs), leaves(expected), strict=True):
        assert y.is_meta
        assert (y.shape, y.dtype) == (e.shape, e.dtype)
    with torch.no_grad():
        module.to_empty(device="cpu").load_state_dict(other.state_dict())
        x = draw(T, B, INPUTS, dtype=torch.float32)
        assert_same(seeded(module, x), seeded(other, x))


@everything
def test_older_torch(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(name, **options)
    x, hx, given = draw(T, B, INPUTS), draw_state(module, B), draw_options()
    found = []
    for readable in (True, False):  # else the core is given views that NumPy makes
        for place in (fastrnn.torch.modules, fastrnn.torch.network):
            monkeypatch.setattr(place, "READS_TENSORS", readable and place.READS_TENSORS)
        with torch.no_grad():
            alone = seeded(module, x, hx, **given, return_all_states=True)
        outputs = seeded(module, x, hx, **given, return_all_states=True)
        gradients = torch.autograd.grad(weighted(outputs), list(module.parameters()))
        found.append([*leaves(alone), *leaves(outputs), *gradients])
    assert_same(found[1], found[0])


@everything
def test_transforms(name: str, options: dict[str, Any]) -> None:
    module = make(name, **options)
    x, hx, given = draw(T, B, INPUTS), draw_state(module, B), draw_options()
    leaf = x.clone().requires_grad_()
    outputs = seeded(module, leaf, hx, **given)
    (expected,) = torch.autograd.grad(weighted(outputs), leaf)
    found = seeded(torch.func.grad(lambda a: weighted(module(a, hx, **given))), x)
    assert_near(found, expected)
    direction = draw(*x.shape)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        loss = seeded(lambda: weighted(module(dual, hx, **given)))
        slope = torch.autograd.forward_ad.unpack_dual(loss).tangent
    assert_near(slope.detach(), (direction * expected).sum())


@names
def test_autocast(name: str) -> None:
    module = make(name, torch.float32, **EVERY)
    x = draw(T, B, INPUTS, dtype=torch.float32)
    expected = seeded(module, x.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(seeded(module, x.bfloat16()), expected)


def test_fx() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make("GRU", **EVERY)

        def forward(self, x: Any) -> Any:
            return self.inner(x, return_all_states=True)[2]

    model = Model().eval()
    x = draw(T, B, INPUTS)
    traced = torch.fx.symbolic_trace(model)
    assert_same(traced(x), model(x))


# Compiled.


@pytest.fixture
def nothing_compiled_before() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiled(module: Any, compiled: Any, x: Any, hx: Any, **given: Any) -> None:
    with torch.no_grad():
        assert_same(seeded(compiled, x, hx, **given), seeded(module, x, hx, **given))
    found = []
    for function in (module, compiled):
        leaf = fresh((x, hx))
        outputs = seeded(function, *leaf, **given)
        gradients = torch.autograd.grad(weighted(outputs), [*leaves(leaf), *module.parameters()])
        found.append([*leaves(outputs), *gradients])
    assert [y.stride() for y in found[1]] == [y.stride() for y in found[0]]
    assert_near(found[1], found[0])


@pytest.mark.usefixtures("nothing_compiled_before")
@pytest.mark.parametrize("training", [True, False])
@everything
def test_compiled(name: str, options: dict[str, Any], training: bool) -> None:
    module = make(name, **options).train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    assert_compiled(module, compiled, x, hx, **draw_options(), return_all_states=True)
    assert_compiled(module, compiled, x, hx)


@pytest.mark.usefixtures("nothing_compiled_before")
def test_compiled_layouts() -> None:
    module = make("LSTM", **EVERY_LSTM, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = {"return_all_states": True}
    assert_compiled(module, compiled, draw(B, T, INPUTS), draw_state(module, B), **given)
    assert_compiled(module, compiled, draw(T, INPUTS), draw_state(module), **given)
    x = draw(B, T, INPUTS)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])


@pytest.mark.usefixtures("nothing_compiled_before")
def test_compiled_by_inductor() -> None:
    module = make("LSTM", **EVERY_LSTM)
    x, hx = draw(T, B, INPUTS), draw_state(module, B)
    compiled = torch.compile(module, fullgraph=True)
    with torch._inductor.config.patch(fallback_random=True):  # draws as torch does otherwise
        assert_compiled(module, compiled, x, hx, return_all_states=True)


@pytest.mark.usefixtures("nothing_compiled_before")
def test_compiled_with_packed_sequence() -> None:
    # Dynamo does not trace packing; it may break the graph but not the result.
    module = make("LSTM", **EVERY_LSTM)
    utils = torch.nn.utils.rnn

    def run(x: Any, lengths: Any) -> Any:
        packed = utils.pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, *rest = module(packed, return_all_states=True)
        return utils.pad_packed_sequence(output)[0], rest

    x, lengths = draw(T, B, INPUTS), torch.tensor([2, 5, 3])
    with torch.no_grad():
        compiled = torch.compile(run, backend="aot_eager")
        assert_same(seeded(compiled, x, lengths), seeded(run, x, lengths))


@pytest.mark.parametrize("name", NAMES)
def test_exported(name: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make(name, **(EVERY_LSTM if name == "LSTM" else EVERY))

        def forward(self, x: Any, lengths: Any) -> Any:
            return self.inner(x, lengths=lengths, return_all_states=True)

    model = Model().eval()
    x, lengths = draw(T, B, INPUTS), torch.tensor([5, 1, 3])
    file = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(model, (x, lengths))
        assert "fastrnn.run" in str(program.graph)
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file)
        for other in (torch.tensor([5, 1, 3]), torch.tensor([2, 0, 5])):
            expected = model(x, other)
            assert_same(program.module()(x, other), expected)
            assert_same(loaded.module()(x, other), expected)


@pytest.mark.parametrize("requires_grad", [False, True])
@everything
def test_opcheck(name: str, options: dict[str, Any], requires_grad: bool) -> None:
    module = make(name, **options)
    spec = module._spec()
    h, *c = leaves(draw_state(module, B))
    arguments = (
        draw(T, B, INPUTS).requires_grad_(requires_grad),
        h.requires_grad_(requires_grad),
        c[0].requires_grad_(requires_grad) if c else None,
        [weight.detach().clone().requires_grad_(requires_grad) for weight in module._weights()],
        torch.tensor([5, 2, 0]),
        torch.rand(T, B) < 0.4,
        torch.tensor(3),
        spec.cell,
        [spec.input_size, spec.hidden_size, spec.num_layers, spec.proj_size],
        [spec.bidirectional, spec.bias, spec.residual],
        *(spec.merge, False, 0.3),
    )
    options = {
        "noise": [0.3, 0.4, 0.2, 0.1 if c else 0.0, 0.3],
        "layer_norm": spec.layer_norm,
        "clip": 0.3 if c else None,
        "all_states": True,
    }
    results = torch.library.opcheck(torch.ops.fastrnn.run.default, arguments, options)
    assert set(results.values()) == {"SUCCESS"}


# Torch's own modules, and errors.


@names
def test_replaced_modules_are_as_before(name: str) -> None:
    theirs = getattr(torch.nn, name)(INPUTS, H, 2, dtype=torch.float64)
    ours = copy.deepcopy(theirs)
    fastrnn.torch.replace(ours)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = draw(T, B, INPUTS)
    assert_near(ours(x), theirs(x))
    for module in (theirs, ours):
        torch.manual_seed(5)
        module.reset_parameters()
    assert_same(list(ours.parameters()), list(theirs.parameters()))
    assert len(ours(x)) == 2
    assert leaves(ours(x, return_all_states=True)[2])[0].shape == (2, T, B, H)
    assert fastrnn.torch.restore(ours).left == {}


@pytest.mark.parametrize(
    ("option", "value"), [*NOISE.items(), ("layer_norm", True), ("coupled", True), ("clip", 3.0)]
)
def test_torch_does_not_have_them(option: str, value: Any) -> None:
    module = fastrnn.torch.LSTM(INPUTS, H, **{option: value})
    assert fastrnn.torch.restore(module).left == {"": f"torch.nn has no {option}={value!r}"}
    with pytest.raises(TypeError, match=option):
        torch.jit.script(module)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        *((name, {"layer_norm": 1}, TypeError) for name in NAMES),
        *((name, {key: 1.5}, ValueError) for name in NAMES for key in NOISE),
        *((name, {key: -0.1}, ValueError) for name in NAMES for key in NOISE),
        *((name, {key: "0.5"}, TypeError) for name in NAMES for key in NOISE),
        ("RNN", {"zoneout": (0.1, 0.1)}, TypeError),
        ("GRU", {"zoneout": (0.1, 0.1)}, TypeError),
        ("LSTM", {"zoneout": (0.1, 0.1, 0.1)}, ValueError),
        ("LSTM", {"zoneout": (0.1, 2)}, ValueError),
        ("LSTM", {"coupled": "yes"}, TypeError),
        ("LSTM", {"clip": 0}, ValueError),
        ("LSTM", {"clip": -1.0}, ValueError),
        ("LSTM", {"clip": float("nan")}, ValueError),
        ("LSTM", {"clip": "1"}, TypeError),
        ("LSTM", {"forget_bias": 1.0, "coupled": True}, ValueError),
        ("LSTM", {"forget_bias": 1.0, "bias": False}, ValueError),
        ("LSTM", {"forget_bias": "1"}, TypeError),
        ("RNN", {"coupled": True}, TypeError),
        ("GRU", {"clip": 1.0}, TypeError),
        ("GRU", {"forget_bias": 1.0}, TypeError),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], error: Any) -> None:
    with pytest.raises(error, match=next(iter(options))):
        getattr(fastrnn.torch, name)(INPUTS, H, **options)


@names
def test_cells_do_not_have_them(name: str) -> None:
    with pytest.raises(TypeError, match="layer_norm"):
        getattr(fastrnn.torch, f"{name}Cell")(INPUTS, H, layer_norm=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bad_calls(dtype: Any) -> None:
    module = fastrnn.torch.GRU(INPUTS, H, dtype=dtype)
    with pytest.raises(TypeError, match="return_all_states: expected True or False"):
        module(draw(T, B, INPUTS, dtype=dtype), return_all_states=1)
    with pytest.raises(ValueError, match="4 inputs"):
        module(draw(T, B, INPUTS + 1, dtype=dtype), return_all_states=True)


@pytest.mark.parametrize("shape", [(5, 0, 3), (0, 2, 3)])
def test_empty_inputs(shape: tuple[int, ...]) -> None:
    module = fastrnn.torch.LSTM(3, 4, layer_norm=True, zoneout=0.2, recurrent_dropout=0.1)
    x = torch.zeros(shape, requires_grad=True)
    y, (h, _) = module(x)
    (y.sum() + h.sum()).backward()
    assert y.shape == (*shape[:2], 4)
    assert x.grad.shape == shape


def test_options_that_are_set_later() -> None:
    module = fastrnn.torch.LSTM(3, 4, layer_norm=True)
    with pytest.raises(ValueError, match="zoneout: expected a number in"):
        module.zoneout = 2
    module(torch.zeros(2, 1, 3))
    module.zoneout = 0.5
    for name in ("merge", "clip", "layer_norm"):
        with pytest.raises(AttributeError, match=f"{name}: expected no change"):
            setattr(module, name, None)
