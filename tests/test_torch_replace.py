"""Swapping the recurrent modules of a model for ours, and back."""

from __future__ import annotations

import copy
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastrnn.torch  # noqa: E402

T, B, INPUTS, H = 5, 3, 4, 7
NAMES = ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"]
names = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.usefixtures("one_thread_for_torch")


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(20140603)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in leaves(part)]
    return [value]


def draw_input(name: str) -> Any:
    return torch.randn(B, INPUTS) if name.endswith("Cell") else torch.randn(T, B, INPUTS)


def assert_close(actual: Any, expected: Any) -> None:
    for a, e in zip(leaves(actual), leaves(expected), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


class Classifier(torch.nn.Module):
    """A model with recurrent modules at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, INPUTS)
        self.encoder = torch.nn.ModuleDict(
            {
                "lstm": torch.nn.LSTM(INPUTS, H, 2, bidirectional=True),
                "gru": torch.nn.GRU(2 * H, H),
            }
        )
        self.decoder = torch.nn.ModuleList([torch.nn.RNN(H, H), torch.nn.LSTMCell(H, H)])
        self.head = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(H, 3))

    def forward(self, tokens: Any) -> Any:
        x, _ = self.encoder["lstm"](self.embedding(tokens))
        x, _ = self.encoder["gru"](x)
        x, _ = self.decoder[0](x)
        state = None
        for step in x:
            state = self.decoder[1](step, state)
        return self.head(state[0])


RECURRENT = ["encoder.lstm", "encoder.gru", "decoder.0", "decoder.1"]


def class_of(model: Any, name: str) -> type:
    return type(model.get_submodule(name))


@names
def test_the_model_itself(name: str) -> None:
    model = getattr(torch.nn, name)(INPUTS, H)
    x = draw_input(name)
    expected = model(x)
    result = fastrnn.torch.replace(model)
    assert result == fastrnn.torch.Replacement([""], {})
    assert type(model) is getattr(fastrnn.torch, name)
    assert_close(model(x), expected)
    assert fastrnn.torch.restore(model) == ([""], {})
    assert type(model) is getattr(torch.nn, name)
    assert_close(model(x), expected)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RNN", {"nonlinearity": "relu", "bias": False}),
        ("LSTM", {"num_layers": 2, "proj_size": 3, "bidirectional": True}),
        ("GRU", {"batch_first": True}),
        ("RNNCell", {"nonlinearity": "relu"}),
        ("LSTMCell", {"bias": False}),
    ],
)
def test_options_are_kept(name: str, options: dict[str, Any]) -> None:
    model = getattr(torch.nn, name)(INPUTS, H, **options)
    x = draw_input(name)
    expected, text = model(x), repr(model)
    fastrnn.torch.replace(model)
    assert repr(model) == text
    assert_close(model(x), expected)


def test_nested_model() -> None:
    model = Classifier()
    tokens = torch.randint(11, (T, B))
    expected = model(tokens)
    kinds = {name: class_of(model, name) for name in RECURRENT}
    result = fastrnn.torch.replace(model)
    assert isinstance(result, fastrnn.torch.Replacement)
    assert result.replaced == RECURRENT
    assert result.left == {}
    for name in RECURRENT:
        assert class_of(model, name) is getattr(fastrnn.torch, kinds[name].__name__)
    assert type(model.head[1]) is torch.nn.Linear
    assert_close(model(tokens), expected)

    assert fastrnn.torch.restore(model) == (RECURRENT, {})
    assert {name: class_of(model, name) for name in RECURRENT} == kinds
    assert_close(model(tokens), expected)


def test_nothing_to_do() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    assert fastrnn.torch.replace(model) == ([], {})
    assert fastrnn.torch.restore(model) == ([], {})


def test_already_replaced() -> None:
    model = Classifier()
    model.decoder.append(fastrnn.torch.GRU(3, 4))
    assert fastrnn.torch.replace(model).replaced == RECURRENT
    assert fastrnn.torch.replace(model) == ([], {})
    assert fastrnn.torch.restore(model).replaced == [*RECURRENT, "decoder.2"]
    assert fastrnn.torch.restore(model) == ([], {})
    assert class_of(model, "decoder.2") is torch.nn.GRU


def test_shared_modules() -> None:
    shared = torch.nn.LSTM(INPUTS, INPUTS)
    model = torch.nn.ModuleDict({"a": shared, "b": shared, "c": torch.nn.Sequential(shared)})
    assert fastrnn.torch.replace(model) == (["a"], {})
    assert type(shared) is fastrnn.torch.LSTM
    assert model["a"] is model["b"] is model["c"][0] is shared
    assert fastrnn.torch.restore(model) == (["a"], {})
    assert type(shared) is torch.nn.LSTM


def test_identities() -> None:
    model = Classifier()
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for swap in (fastrnn.torch.replace, fastrnn.torch.restore):
        swap(model)
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        for key, module in model.named_modules():
            assert module is modules[key]
        for key, parameter in model.named_parameters():
            assert parameter is parameters[key]


def test_state_dicts_go_either_way() -> None:
    first, second = Classifier(), Classifier()
    fastrnn.torch.replace(first)
    tokens = torch.randint(11, (T, B))
    second.load_state_dict(first.state_dict())
    assert_close(second(tokens), first(tokens))
    third = Classifier()
    first.load_state_dict(third.state_dict())
    assert_close(first(tokens), third(tokens))


def test_optimizer_continues() -> None:
    # From the same start, one of two models is swapped in the middle, and back at the end.
    models = [Classifier(), Classifier()]
    models[1].load_state_dict(models[0].state_dict())
    tokens, classes = torch.randint(11, (T, 8)), torch.randint(3, (8,))
    losses = []
    for model, swapped in zip(models, (False, True), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        seen = []
        for step in range(12):
            if swapped and step == 4:
                assert fastrnn.torch.replace(model).replaced == RECURRENT
            if swapped and step == 9:
                assert fastrnn.torch.restore(model).replaced == RECURRENT
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(tokens), classes)
            loss.backward()
            optimizer.step()
            seen.append(loss.detach())
        losses.append(torch.stack(seen))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    assert losses[0][-1] < 0.9 * losses[0][0]
    for actual, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@names
def test_hooks_stay(name: str) -> None:
    model = getattr(torch.nn, name)(INPUTS, H)
    seen: list[str] = []
    model.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.register_forward_hook(lambda *_: seen.append("after"))
    model.register_full_backward_hook(lambda *_: seen.append("back"))
    for swap in (fastrnn.torch.replace, fastrnn.torch.restore):
        swap(model)
        seen.clear()
        leaves(model(draw_input(name).requires_grad_()))[0].sum().backward()
        assert seen == ["before", "after", "back"]


def test_mode_buffers_and_attributes_stay() -> None:
    model = torch.nn.LSTM(INPUTS, H).eval()
    model.register_buffer("mean", torch.ones(3))
    model.note = "mine"
    model.weight_hh_l0.requires_grad_(False)
    fastrnn.torch.replace(model)
    assert not model.training
    assert model.note == "mine"
    assert torch.equal(model.mean, torch.ones(3))
    assert not model.weight_hh_l0.requires_grad
    assert "mean" in model.state_dict()


@names
def test_restored_modules_are_as_before(name: str) -> None:
    model = getattr(torch.nn, name)(INPUTS, H)
    x = draw_input(name)
    before = set(vars(model))
    fastrnn.torch.replace(model)
    with torch.no_grad():
        model(x)
    leaves(model(x))[0].sum().backward()
    fastrnn.torch.restore(model)
    assert set(vars(model)) == before
    words = {str(argument) for _, argument, _ in pickletools.genops(pickle.dumps(model))}
    assert not any("fastrnn" in word for word in words)


@names
def test_replaced_models_can_be_copied(name: str) -> None:
    model = torch.nn.Sequential(getattr(torch.nn, name)(INPUTS, H))
    fastrnn.torch.replace(model)
    x = draw_input(name)
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(other[0]) is getattr(fastrnn.torch, name)
            assert_close(other(x), expected)
            assert fastrnn.torch.restore(other) == (["0"], {})
            assert_close(other(x), expected)


class Doubled(torch.nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return 2 * output, state


class OwnCell(torch.nn.RNNCellBase):
    def __init__(self) -> None:
        super().__init__(INPUTS, H, bias=True, num_chunks=1)


def test_subclasses_are_left() -> None:
    model = torch.nn.ModuleDict(
        {"mine": Doubled(INPUTS, H), "cell": OwnCell(), "gru": torch.nn.GRU(INPUTS, H)}
    )
    result = fastrnn.torch.replace(model)
    assert result.replaced == ["gru"]
    assert list(result.left) == ["mine", "cell"]
    assert "Doubled" in result.left["mine"]
    assert "OwnCell" in result.left["cell"]
    assert type(model["mine"]) is Doubled
    x = draw_input("LSTM")
    expected, _ = torch.nn.LSTM.forward(model["mine"], x)
    assert_close(model["mine"](x)[0], 2 * expected)
    result = fastrnn.torch.restore(model)
    assert result.replaced == ["gru"]
    assert list(result.left) == ["mine", "cell"]


def test_subclasses_of_ours_are_left() -> None:
    class Mine(fastrnn.torch.GRU):
        pass

    model = torch.nn.Sequential(Mine(INPUTS, H))
    result = fastrnn.torch.restore(model)
    assert result.replaced == []
    assert "Mine" in result.left["0"]
    assert type(model[0]) is Mine


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left(dtype: Any) -> None:
    model = torch.nn.Sequential(torch.nn.LSTM(INPUTS, H, dtype=dtype), torch.nn.GRU(INPUTS, H))
    result = fastrnn.torch.replace(model)
    assert result.replaced == ["1"]
    assert list(result.left) == ["0"]
    assert str(dtype).removeprefix("torch.") in result.left["0"]
    assert type(model[0]) is torch.nn.LSTM


def test_other_devices_are_left() -> None:
    model = torch.nn.Sequential(torch.nn.GRUCell(INPUTS, H, device="meta"))
    result = fastrnn.torch.replace(model)
    assert result.replaced == []
    assert "meta" in result.left["0"]
    assert type(model[0]) is torch.nn.GRUCell


def test_double_precision() -> None:
    model = torch.nn.GRU(INPUTS, H, dtype=torch.float64)
    assert fastrnn.torch.replace(model) == ([""], {})


def old_weight_norm(module: Any, key: str) -> None:
    torch.nn.utils.weight_norm(module, key)


PARAMETRIZATIONS: list[Callable[[Any, str], Any]] = [
    torch.nn.utils.parametrizations.weight_norm,
    torch.nn.utils.parametrizations.spectral_norm,
    torch.nn.utils.parametrizations.orthogonal,
    old_weight_norm,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("parametrize", PARAMETRIZATIONS)
@names
def test_parametrized(name: str, parametrize: Callable[[Any, str], Any]) -> None:
    model = torch.nn.Sequential(getattr(torch.nn, name)(INPUTS, H))
    key = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    parametrize(model[0], key)
    model.eval()
    x = draw_input(name)
    state = list(model.state_dict())
    parameters = dict(model.named_parameters())
    found = []
    for swap in (None, fastrnn.torch.replace, fastrnn.torch.restore):
        if swap is not None:
            assert swap(model) == (["0"], {})
        base = fastrnn.torch if swap is fastrnn.torch.replace else torch.nn
        assert isinstance(model[0], getattr(base, name))
        assert isinstance(model[0], fastrnn.torch.modules._Kernels) == (base is fastrnn.torch)
        model.zero_grad(set_to_none=True)
        outputs = leaves(model(x))
        sum(tensor.square().sum() for tensor in outputs).backward()
        found.append([*outputs, *(p.grad for p in model.parameters())])
        assert list(model.state_dict()) == state
        assert all(p is parameters[name] for name, p in model.named_parameters())
        with torch.no_grad():
            assert_close(model(x), outputs if len(outputs) == 1 else model(x))
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


@names
def test_parametrizations_after_replace(name: str) -> None:
    model = getattr(torch.nn, name)(INPUTS, H)
    x = draw_input(name)
    key = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    fastrnn.torch.replace(model)
    torch.nn.utils.parametrizations.weight_norm(model, key)
    assert fastrnn.torch.replace(model) == ([], {})
    expected = model(x)
    assert fastrnn.torch.restore(model) == ([""], {})
    assert_close(model(x), expected)
    torch.nn.utils.parametrize.remove_parametrizations(model, key)
    assert type(model) is getattr(torch.nn, name)
    assert_close(model(x), expected)
    assert fastrnn.torch.replace(model) == ([""], {})


@names
def test_parametrizations_removed_after_replace(name: str) -> None:
    model = getattr(torch.nn, name)(INPUTS, H)
    x = draw_input(name)
    key = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    torch.nn.utils.parametrizations.weight_norm(model, key)
    expected = model(x)
    fastrnn.torch.replace(model)
    torch.nn.utils.parametrize.remove_parametrizations(model, key)
    assert type(model) is getattr(fastrnn.torch, name)
    assert_close(model(x), expected)


def test_replaced_parametrized_copies_are_independent() -> None:
    # Torch makes a class per parametrized module; the swap must not change another's.
    first = torch.nn.GRU(INPUTS, H)
    second = torch.nn.GRU(INPUTS, H)
    for module in (first, second):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    fastrnn.torch.replace(first)
    assert isinstance(first, fastrnn.torch.GRU)
    assert not isinstance(second, fastrnn.torch.GRU)
    other = copy.deepcopy(first)
    x = draw_input("GRU")
    assert_close(other(x), first(x))
    fastrnn.torch.restore(other)
    assert isinstance(first, fastrnn.torch.GRU)
    assert not isinstance(other, fastrnn.torch.GRU)


@pytest.mark.parametrize("swap", [fastrnn.torch.replace, fastrnn.torch.restore])
@pytest.mark.parametrize("wrong", [None, 3, "model", torch.nn.LSTM, torch.ones(3), [], {}])
def test_wrong_argument(swap: Callable[[Any], Any], wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got "):
        swap(wrong)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("LSTM", {"peephole": True}, "peephole=True"),
        ("GRU", {"reset_after": False}, "reset_after=False"),
        ("RNN", {"merge": "sum", "bidirectional": True}, "merge='sum'"),
        ("LSTM", {"residual": True}, "residual=True"),
    ],
)
def test_extras_are_left_by_restore(name: str, options: dict[str, Any], reason: str) -> None:
    ours = getattr(fastrnn.torch, name)
    model = torch.nn.Sequential(ours(INPUTS, H), ours(INPUTS, H, **options))
    result = fastrnn.torch.restore(model)
    assert result.replaced == ["0"]
    assert list(result.left) == ["1"]
    assert reason in result.left["1"]
    assert type(model[1]) is ours
    x = draw_input(name)
    assert all(torch.isfinite(tensor).all() for tensor in leaves(model[1](x)))


def test_extras_of_a_replaced_module() -> None:
    # Lengths and resets are arguments of a call, so a replaced module takes them too.
    model = torch.nn.GRU(INPUTS, H)
    x = draw_input("GRU")
    expected, _ = model(x[:2])
    fastrnn.torch.replace(model)
    y, h = model(x, lengths=torch.tensor([2, 2, 2]))
    assert_close(y[:2], expected)
    assert not y[2:].any()
    assert_close(h[0], expected[-1])


@names
def test_gradients_before_and_after(name: str) -> None:
    model = getattr(torch.nn, name)(INPUTS, H)
    x = draw_input(name)
    grads = []
    for swap in (None, fastrnn.torch.replace, fastrnn.torch.restore):
        if swap is not None:
            swap(model)
        model.zero_grad(set_to_none=True)
        sum(tensor.square().sum() for tensor in leaves(model(x))).backward()
        grads.append([p.grad for p in model.parameters()])
    assert_close(grads[1], grads[0])
    assert_close(grads[2], grads[0])


def test_a_graph_outlives_the_swap() -> None:
    model = torch.nn.LSTM(INPUTS, H)
    x = draw_input("LSTM")
    fastrnn.torch.replace(model)
    y, _ = model(x)
    fastrnn.torch.restore(model)
    y.sum().backward()
    found = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    model(x)[0].sum().backward()
    assert_close(found, [p.grad for p in model.parameters()])
