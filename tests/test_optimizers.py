"""Optimizers and schedules: against torch and formulas, clipping, resuming, errors."""

from __future__ import annotations

import copy
import io
import math
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastrnn import optimizers
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
# (class, options, the name of torch's and its options).
CASES: dict[str, tuple[Callable[..., optimizers.Optimizer], dict[str, Any], str, dict[str, Any]]]
CASES = {
    "sgd": (optimizers.SGD, {}, "SGD", {"lr": 0.01}),
    "sgd, l2": (optimizers.SGD, {"l2": 0.1}, "SGD", {"lr": 0.01, "weight_decay": 0.1}),
    "sgd, momentum": (
        optimizers.SGD,
        {"learning_rate": 0.02, "momentum": 0.9},
        "SGD",
        {"lr": 0.02, "momentum": 0.9},
    ),
    "sgd, nesterov": (
        optimizers.SGD,
        {"momentum": 0.8, "nesterov": True, "l2": 0.1},
        "SGD",
        {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "rmsprop": (optimizers.RMSprop, {}, "RMSprop", {}),
    "rmsprop, all": (
        optimizers.RMSprop,
        {"alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "centered": True, "l2": 0.1},
        "RMSprop",
        {"alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
    ),
    "rmsprop, momentum": (optimizers.RMSprop, {"momentum": 0.9}, "RMSprop", {"momentum": 0.9}),
    "rmsprop, centered": (optimizers.RMSprop, {"centered": True}, "RMSprop", {"centered": True}),
    "adam": (optimizers.Adam, {}, "Adam", {}),
    "adam, all": (
        optimizers.Adam,
        {"learning_rate": 0.01, "betas": (0.8, 0.9), "eps": 1e-3, "amsgrad": True, "l2": 0.1},
        "Adam",
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3, "amsgrad": True, "weight_decay": 0.1},
    ),
    "adamw": (optimizers.AdamW, {}, "AdamW", {}),
    "adamw, all": (
        optimizers.AdamW,
        {"learning_rate": 0.01, "weight_decay": 0.3, "amsgrad": True},
        "AdamW",
        {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True},
    ),
}
every_case = pytest.mark.parametrize("case", CASES)
SHAPES = {"weight": (7, 3), "bias": (7,), "gain": ()}


def draw(rng: Rng, dtype: Any = np.float64) -> dict[str, Array]:
    return {name: np.array(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def slopes(parameters: dict[str, Array], noise: dict[str, Array]) -> dict[str, Array]:
    """Gradients that depend on the parameters, as those of a quadratic loss, and are noisy."""
    return {name: parameters[name] + noise[name] for name in parameters}


def follow(
    optimizer: optimizers.Optimizer, parameters: dict[str, Array], rng: Rng, steps: int
) -> list[float]:
    dtype = parameters["bias"].dtype
    return [
        optimizer.update(parameters, slopes(parameters, draw(rng, dtype))) for _ in range(steps)
    ]


def follow_torch(
    optimizer: Callable[..., Any],
    parameters: dict[str, Array],
    rng: Rng,
    steps: int,
    clip: Callable[[list[Any]], Any] = lambda tensors: None,
    schedule: Callable[..., Any] | None = None,
) -> dict[str, Array]:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in parameters.items()}
    torchs = optimizer(list(tensors.values()))
    scheduler = schedule(torchs) if schedule else None
    dtype = parameters["bias"].dtype
    for _ in range(steps):
        noise = draw(rng, dtype)
        for name, tensor in tensors.items():
            tensor.grad = tensor + torch.tensor(noise[name])
        clip(list(tensors.values()))
        torchs.step()
        if scheduler:
            scheduler.step()
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def assert_close(actual: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, array in actual.items():
        tolerance = 1e-9 if array.dtype == np.float64 else 1e-5
        # Parameters start at about 1, and some have come close to 0.
        np.testing.assert_allclose(array, expected[name], rtol=tolerance, atol=tolerance / 10)


def assert_same_bits(actual: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, array in actual.items():
        assert array.dtype == expected[name].dtype
        assert array.tobytes() == expected[name].tobytes(), name


@every_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("one_thread_for_torch")
def test_matches_torch(case: str, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    ours, options, name, torch_options = CASES[case]
    parameters = draw(np.random.default_rng(1), dtype)
    expected = follow_torch(
        lambda tensors: getattr(torch.optim, name)(tensors, **torch_options),
        parameters,
        np.random.default_rng(2),
        100,
    )
    follow(ours(**options), parameters, np.random.default_rng(2), 100)
    assert_close(parameters, expected)


@pytest.mark.usefixtures("one_thread_for_torch")
@pytest.mark.parametrize("option", ["global_clipnorm", "clipnorm", "clip_value"])
def test_clips_as_torch(option: str) -> None:
    torch = pytest.importorskip("torch")

    def clip(tensors: list[Any]) -> None:
        if option == "global_clipnorm":
            torch.nn.utils.clip_grad_norm_(tensors, 0.5)
        for tensor in tensors:
            if option == "clipnorm":
                torch.nn.utils.clip_grad_norm_([tensor], 0.5)
            if option == "clip_value":
                torch.nn.utils.clip_grad_value_([tensor], 0.5)

    parameters = draw(np.random.default_rng(1))
    expected = follow_torch(
        lambda tensors: torch.optim.SGD(tensors, lr=0.1, momentum=0.9, weight_decay=0.01),
        parameters,
        np.random.default_rng(2),
        100,
        clip,
    )
    optimizer = optimizers.SGD(0.1, momentum=0.9, l2=0.01, **{option: 0.5})
    follow(optimizer, parameters, np.random.default_rng(2), 100)
    assert_close(parameters, expected)


def test_order_of_clipping_and_penalties(rng: Rng) -> None:
    parameters, gradients = draw(rng), draw(rng)
    expected = {}
    norm = math.sqrt(sum(float(np.sum(g**2)) for g in gradients.values()))
    assert norm > 3
    for name, g in gradients.items():
        g = g * (3 / (norm + 1e-6))
        g = g * min(1, 1.0 / (float(np.linalg.norm(g)) + 1e-6))
        g = np.clip(g, -0.3, 0.3) + 0.2 * np.sign(parameters[name]) + 0.1 * parameters[name]
        expected[name] = parameters[name] - 0.5 * g
    optimizer = optimizers.SGD(
        0.5, l1=0.2, l2=0.1, clip_value=0.3, clipnorm=1.0, global_clipnorm=3.0
    )
    before = {name: g.copy() for name, g in gradients.items()}
    np.testing.assert_allclose(optimizer.update(parameters, gradients), norm, rtol=1e-14)
    assert_close(parameters, expected)
    assert_same_bits(gradients, before)


def test_small_gradients_are_not_clipped(rng: Rng) -> None:
    parameters, gradients = draw(rng), draw(rng)
    expected = copy.deepcopy(parameters)
    optimizers.SGD(clip_value=1e3, clipnorm=1e3, global_clipnorm=1e3).update(parameters, gradients)
    optimizers.SGD().update(expected, gradients)
    assert_same_bits(parameters, expected)


def test_norm_does_not_overflow() -> None:
    parameters = {"weight": np.zeros(20000, np.float32)}
    optimizer = optimizers.SGD(1.0, global_clipnorm=1.0)
    norm = optimizer.update(parameters, {"weight": np.full(20000, 1e30, np.float32)})
    np.testing.assert_allclose(norm, 1e30 * math.sqrt(20000), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(parameters["weight"]), 1, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every_case
def test_gradients_that_are_not_finite_are_applied(case: str, bad: float) -> None:
    ours, options, *_ = CASES[case]
    parameters = {"weight": np.ones(4), "bias": np.ones(4)}
    gradients = {"weight": np.ones(4), "bias": np.array([1, bad, 1, 1])}
    unclipped = copy.deepcopy(parameters)
    ours(**options).update(unclipped, gradients)
    norm = ours(**options, global_clipnorm=1e-3).update(parameters, gradients)
    assert not math.isfinite(norm)
    np.testing.assert_array_equal(np.isfinite(parameters["bias"]), [True, False, True, True])
    assert_same_bits(parameters, unclipped)


SCHEDULES: list[tuple[optimizers.Schedule, str, dict[str, Any]]] = [
    (optimizers.StepDecay(0.3, 7), "StepLR", {"step_size": 7}),
    (optimizers.StepDecay(0.3, 20, factor=0.7), "StepLR", {"step_size": 20, "gamma": 0.7}),
    (
        optimizers.CosineDecay(0.3, 100, final=0.02),
        "CosineAnnealingLR",
        {"T_max": 100, "eta_min": 0.02},
    ),
    (
        optimizers.WarmUp(0.3, 10),
        "LinearLR",
        {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 9},
    ),
    (
        optimizers.OneCycle(0.3, 101),
        "OneCycleLR",
        {"max_lr": 0.3, "total_steps": 101, "cycle_momentum": False},
    ),
    (
        optimizers.OneCycle(0.3, 110, warm_up=0.47, initial_divisor=3, final_divisor=7),
        "OneCycleLR",
        {
            "max_lr": 0.3,
            "total_steps": 110,
            "cycle_momentum": False,
            "pct_start": 0.47,
            "div_factor": 3,
            "final_div_factor": 7,
        },
    ),
]


@pytest.mark.usefixtures("one_thread_for_torch")
@pytest.mark.parametrize(("schedule", "name", "options"), SCHEDULES, ids=repr)
def test_schedules_match_torch(
    schedule: optimizers.Schedule, name: str, options: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    torchs = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler = getattr(torch.optim.lr_scheduler, name)(torchs, **options)
    for step in range(100):
        np.testing.assert_allclose(schedule(step), scheduler.get_last_lr()[0], rtol=1e-9)
        torchs.step()
        scheduler.step()


def test_schedules_end() -> None:
    assert optimizers.CosineDecay(0.3, 10, final=0.1)(10**9) == 0.1
    cycle = optimizers.OneCycle(0.3, 10)
    assert cycle(9) == cycle(10**9) == 0.3 / 25 / 1e4
    assert optimizers.WarmUp(lambda step: 1 / (1 + step), 2)(5) == 1 / 4


@pytest.mark.parametrize("warm_up", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_one_cycle_of_any_length(steps: int, warm_up: float) -> None:
    schedule = optimizers.OneCycle(1.0, steps, warm_up)
    rates = [schedule(step) for step in range(steps + 2)]
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.usefixtures("one_thread_for_torch")
def test_schedule_in_an_optimizer_matches_torch() -> None:
    torch = pytest.importorskip("torch")
    parameters = draw(np.random.default_rng(1))
    expected = follow_torch(
        lambda tensors: torch.optim.Adam(tensors, lr=0.05),
        parameters,
        np.random.default_rng(2),
        100,
        schedule=lambda torchs: torch.optim.lr_scheduler.CosineAnnealingLR(torchs, 100),
    )
    optimizer = optimizers.Adam(optimizers.CosineDecay(0.05, 100))
    follow(optimizer, parameters, np.random.default_rng(2), 100)
    assert_close(parameters, expected)
    assert (optimizer.updates, optimizer.rate) == (100, 0)


def test_learning_rate_can_be_set() -> None:
    parameters = {"bias": np.zeros(1)}
    optimizer = optimizers.SGD(1.0)
    for rate in (1.0, 0.5):
        optimizer.learning_rate = rate
        optimizer.update(parameters, {"bias": np.ones(1)})
    assert parameters["bias"] == -1.5


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return dict(np.load(file))


@every_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resumes_bit_for_bit(case: str, dtype: Any) -> None:
    ours, options, *_ = CASES[case]
    if "learning_rate" in options:
        options = options | {"learning_rate": optimizers.CosineDecay(0.05, 12)}
    parameters, rng = draw(np.random.default_rng(1), dtype), np.random.default_rng(2)
    optimizer = ours(**options)
    follow(optimizer, parameters, rng, 5)
    resumed = copy.deepcopy(parameters)
    other = ours(**options)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    pickled = copy.deepcopy(parameters)
    twin = pickle.loads(pickle.dumps(optimizer))

    norms = follow(optimizer, parameters, copy.deepcopy(rng), 5)
    for stand_in, follower in ((other, resumed), (twin, pickled)):
        assert follow(stand_in, follower, copy.deepcopy(rng), 5) == norms
        assert_same_bits(follower, parameters)
        state, expected = stand_in.state_dict(), optimizer.state_dict()
        assert list(state) == list(expected)
        assert all(np.array_equal(state[key], expected[key]) for key in expected)


def test_state_is_a_copy(rng: Rng) -> None:
    parameters = draw(rng)
    optimizer = optimizers.SGD(momentum=0.9)
    follow(optimizer, parameters, rng, 1)
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    for _ in range(2):
        follow(optimizer, parameters, rng, 1)
        for key in ("momentum.weight", "momentum.bias"):
            np.testing.assert_array_equal(state[key], before[key])
        optimizer.load_state_dict(state)


def test_state_has_the_learning_rate() -> None:
    optimizer = optimizers.Adam(0.5)
    optimizer.load_state_dict(saved_and_loaded(optimizers.Adam(0.25).state_dict()))
    assert optimizer.rate == 0.25


def test_a_new_optimizer_is_small_when_pickled() -> None:
    assert len(pickle.dumps(optimizers.SGD())) < 1000


def test_rounding_leaves_no_negative_variance() -> None:
    parameters = {"weight": np.zeros(1000, np.float32)}
    gradients = {"weight": np.linspace(0.1, 1, 1000, dtype=np.float32)}
    optimizer = optimizers.RMSprop(1e-3, alpha=0.5, centered=True)
    for _ in range(100):  # of which the variance tends to 0
        optimizer.update(parameters, gradients)
    assert np.isfinite(parameters["weight"]).all()


@every_case
def test_layout_is_no_matter(case: str, rng: Rng) -> None:
    """Views of every kind, and arrays of more than one piece."""
    ours, options, *_ = CASES[case]
    shape = (3, 40, 250)
    plain = {"weight": rng.normal(size=shape)}
    gradient = rng.normal(size=shape)
    odd = {"weight": np.zeros((3, 80, 251))[:, ::2, 1:]}
    odd["weight"][...] = plain["weight"]
    fortran = {"weight": np.asfortranarray(plain["weight"])}
    optimizer, odd_optimizer, fortran_optimizer = (ours(**options) for _ in range(3))
    for _ in range(3):
        norms = [
            optimizer.update(plain, {"weight": gradient}),
            odd_optimizer.update(odd, {"weight": np.asfortranarray(gradient)}),
            fortran_optimizer.update(fortran, {"weight": gradient}),
        ]
        np.testing.assert_allclose(norms, np.linalg.norm(gradient), rtol=1e-13)
    for other in (odd, fortran):
        np.testing.assert_array_equal(other["weight"], plain["weight"])


@every_case
def test_updates_allocate_nothing(case: str, rng: Rng) -> None:
    ours, options, *_ = CASES[case]
    optimizer = ours(**options, l1=0.1, clipnorm=0.1, clip_value=0.1)
    parameters = {"weight": rng.normal(size=(300, 1000)).astype(np.float32)}
    gradients = {"weight": rng.normal(size=(300, 1000)).astype(np.float32)}
    optimizer.update(parameters, gradients)
    tracemalloc.start()
    optimizer.update(parameters, gradients)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000


def test_frozen_parameters_are_those_left_out(rng: Rng) -> None:
    gradients = draw(rng)
    parameters = {"bias": np.zeros(7)}
    norm = optimizers.SGD(1.0).update(parameters, gradients)
    np.testing.assert_allclose(norm, np.linalg.norm(gradients["bias"]), rtol=1e-14)
    np.testing.assert_array_equal(parameters["bias"], -gradients["bias"])


def read_only() -> Array:
    array = np.zeros((2, 3))
    array.flags.writeable = False
    return array


W = np.zeros((2, 3))
UPDATE_ERRORS: list[tuple[Any, Any, type[Exception], str]] = [
    ([W], {"w": W}, TypeError, "parameters: expected a mapping of names to arrays, got list"),
    ({"w": W}, [W], TypeError, "gradients: expected a mapping of names to arrays, got list"),
    ({}, {"w": W}, ValueError, "parameters: expected at least one array, got none"),
    ({"w": W}, {"v": W}, ValueError, "gradients['w']: expected (2, 3) float64, got none"),
    (
        {"w": W},
        {"w": W.T},
        ValueError,
        "gradients['w']: expected (2, 3) float64, got (3, 2) float64",
    ),
    (
        {"w": W},
        {"w": W.astype(np.float32)},
        ValueError,
        "gradients['w']: expected (2, 3) float64, got (2, 3) float32",
    ),
    ({"w": W}, {"w": None}, TypeError, "gradients['w']: expected an array, got NoneType"),
    ({"w": [1.0]}, {"w": W}, TypeError, "parameters['w']: expected an array, got list"),
    (
        {"w": W.astype(int)},
        {"w": W},
        ValueError,
        "parameters['w']: expected float32 or float64, got dtype('int64')",
    ),
    (
        {"w": read_only()},
        {"w": W},
        ValueError,
        "parameters['w']: expected a writable array, got a read-only one",
    ),
]


@pytest.mark.parametrize(
    ("parameters", "gradients", "kind", "message"),
    UPDATE_ERRORS,
    ids=[message for *_, message in UPDATE_ERRORS],
)
def test_errors_name_the_culprit(
    parameters: Any, gradients: Any, kind: type[Exception], message: str
) -> None:
    optimizer = optimizers.Adam()
    good = np.ones(2)
    if isinstance(parameters, dict) and parameters:
        parameters = {"good": good} | parameters
        gradients = {"good": np.ones(2)} | gradients if isinstance(gradients, dict) else gradients
    with pytest.raises(kind) as caught:
        optimizer.update(parameters, gradients)
    assert message in str(caught.value)
    assert optimizer.updates == 0
    assert (good == 1).all()
    assert list(optimizer.state_dict()) == ["updates", "learning_rate"]


def test_parameters_stay_the_same() -> None:
    optimizer = optimizers.Adam()
    optimizer.update({"w": np.ones((2, 3))}, {"w": W})
    for other in ({"v": np.ones((2, 3))}, {"w": np.ones((2, 3)), "v": np.ones(2)}):
        with pytest.raises(ValueError, match="parameters: expected w as before, got"):
            optimizer.update(other, other)
    for other in ({"w": np.ones((3, 2))}, {"w": np.ones((2, 3), np.float32)}):
        with pytest.raises(ValueError, match=r"'w'\]: expected \(2, 3\) float64 as before, got"):
            optimizer.update(other, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.SGD(-1), "learning_rate: expected a number >= 0, got -1"),
        (lambda: optimizers.SGD("big"), "learning_rate: expected a number, got 'big'"),
        (lambda: optimizers.SGD(lambda step: None), "learning_rate: expected a number, got None"),
        (lambda: optimizers.SGD(momentum=1), r"momentum: expected a number in \[0, 1\), got 1"),
        (lambda: optimizers.SGD(nesterov=True), "nesterov: expected False for momentum=0, got"),
        (lambda: optimizers.SGD(nesterov=1), "nesterov: expected True or False, got 1"),
        (lambda: optimizers.SGD(l1=-1), "l1: expected a number >= 0, got -1"),
        (lambda: optimizers.SGD(l2=math.nan), "l2: expected a number, got nan"),
        (lambda: optimizers.SGD(clip_value=0), "clip_value: expected a number > 0, got 0"),
        (lambda: optimizers.SGD(clipnorm=-1), "clipnorm: expected a number > 0, got -1"),
        (lambda: optimizers.SGD(global_clipnorm=0), "global_clipnorm: expected a number > 0"),
        (lambda: optimizers.SGD(clip_norm=1), "unexpected keyword argument 'clip_norm'"),
        (lambda: optimizers.RMSprop(alpha=1.5), r"alpha: expected a number in \[0, 1\), got 1.5"),
        (lambda: optimizers.Adam(betas=0.9), "betas: expected a pair of numbers, got 0.9"),
        (lambda: optimizers.Adam(betas=(0.9, 1)), r"betas\[1\]: expected a number in \[0, 1\)"),
        (lambda: optimizers.Adam(eps=-1), "eps: expected a number >= 0, got -1"),
        (lambda: optimizers.AdamW(weight_decay=-1), "weight_decay: expected a number >= 0"),
        (lambda: optimizers.StepDecay(0.1, 0), "steps: expected an integer >= 1, got 0"),
        (lambda: optimizers.CosineDecay(-0.1, 1), "rate: expected a number >= 0, got -0.1"),
        (lambda: optimizers.WarmUp(None, 1), "schedule_or_rate: expected a number, got None"),
        (lambda: optimizers.OneCycle(1, 5, 2), r"warm_up: expected a number in \[0, 1\], got 2"),
        (lambda: optimizers.OneCycle(1, 5)(-1), "step: expected an integer >= 0, got -1"),
        (lambda: optimizers.OneCycle(1, 5)(1.5), "step: expected an integer >= 0, got 1.5"),
    ],
)
def test_options_are_checked(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates": None}, "state_dict: missing updates"),
        ({"learning_rate": None}, "state_dict: missing learning_rate"),
        ({"mean.w": None}, "state_dict: missing mean.w"),
        (
            {"mean.w": None, "square.w": None},
            "state_dict: missing mean.<parameter>, square.<parameter>",
        ),
        ({"momentum.w": W}, "state_dict: unexpected momentum.w"),
        ({"epoch": 3}, "state_dict: unexpected epoch"),
        ({"updates": -1}, r"state_dict\['updates'\]: expected an integer >= 0, got -1"),
        ({"learning_rate": "x"}, r"state_dict\['learning_rate'\]: expected a number, got 'x'"),
        ({"mean.w": W.astype(int)}, r"state_dict\['mean.w'\]: expected float32 or float64"),
        ({"square.w": W.T}, r"state_dict\['square.w'\]: expected \(2, 3\), got \(3, 2\)"),
    ],
)
def test_states_are_checked(change: dict[str, Any], message: str) -> None:
    optimizer = optimizers.Adam()
    optimizer.update({"w": np.ones((2, 3))}, {"w": np.ones((2, 3))})
    before = optimizer.state_dict()
    state = {key: value for key, value in (before | change).items() if value is not None}
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.load_state_dict(state)
    assert repr(optimizer.state_dict()) == repr(before)


def test_a_schedule_takes_no_learning_rate() -> None:
    with pytest.raises(ValueError, match="state_dict: unexpected learning_rate"):
        optimizers.SGD(optimizers.StepDecay(0.1, 5)).load_state_dict(optimizers.SGD().state_dict())


def test_get() -> None:
    names = {
        "sgd": optimizers.SGD,
        "rmsprop": optimizers.RMSprop,
        "adam": optimizers.Adam,
        "adamw": optimizers.AdamW,
    }
    for name, kind in names.items():
        optimizer = optimizers.get(name)
        assert type(optimizer) is kind
        assert optimizers.get(optimizer) is optimizer
        assert optimizers.get(name) is not optimizer
        assert repr(optimizer).startswith(f"{kind.__name__}(learning_rate=0.0")
    for wrong in ("adagrad", None, optimizers.SGD):
        with pytest.raises(ValueError, match="optimizer: expected one of 'sgd', 'rmsprop'"):
            optimizers.get(wrong)
