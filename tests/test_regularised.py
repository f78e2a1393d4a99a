"""Layer norm, coupled gates, clipping, zoneout and dropout of every kind, against the oracle.

The oracle is held against torch's autograd and against differences first. What masks are, and what
else a layer with these options promises, is in test_regularised_masks.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import fastrnn
import numpy as np
import pytest
import reference
from parity import (
    CELLS,
    LAYERS,
    LSTM_CELLS,
    MERGES,
    Array,
    arrays,
    assert_close,
    assert_same_bits,
    check,
    check_backward,
    draw_case,
    draw_resets,
    draw_state,
    make_layer,
    map_state,
    name_gradients,
    oracle,
    output_width,
    scaled_error,
    together,
    tolerance,
)

Rng = np.random.Generator

DTYPES = ("float32", "float64")
dtypes = pytest.mark.parametrize("dtype", DTYPES)
cells = pytest.mark.parametrize("cell", CELLS)

ALONE: tuple[dict[str, Any], ...] = (
    {"layer_norm": True},
    {"input_dropout": 0.3},
    {"recurrent_dropout": 0.4},
    {"weight_drop": 0.5},
    {"zoneout": 0.35},
)
LSTM_ALONE: tuple[dict[str, Any], ...] = (
    {"clip": 0.3},
    {"zoneout": (0.0, 0.5)},
    {"zoneout": (0.5, 0.0)},
    {"layer_norm": True, "clip": 0.3},
)
# Every cell with every option alone and with all of them, as (cell, options).
OPTIONS = tuple(
    (cell, options)
    for cell in CELLS
    for options in (*ALONE, *(LSTM_ALONE if cell in LSTM_CELLS else ()), together(cell))
)
every_option = pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
# Every cell with all options, and the LSTM cells once more with a projection.
TOGETHER = (
    *((cell, together(cell)) for cell in CELLS),
    *((cell, {**together(cell), "proj_size": 11}) for cell in LSTM_CELLS),
)
all_options = pytest.mark.parametrize(
    ("cell", "options"), TOGETHER, ids=lambda value: value if isinstance(value, str) else ""
)


# ---- the oracle, against torch's autograd and against differences of itself ----------------------


def draw_parameters(
    cell: str,
    rng: Rng,
    input_size: int,
    H: int,
    *,
    P: int,
    L: int,
    D: int,
    merge: str,
    bias: bool,
    layer_norm: bool,
) -> dict[str, Array]:
    """Parameters of the names, the shapes and in the order that are documented."""
    G, R = reference.GATES[cell], P or H
    parameters: dict[str, Array] = {}
    for layer, suffix in itertools.product(range(L), ("", "_reverse")[:D]):
        inputs = input_size if layer == 0 else R * (D if merge == "concat" else 1)
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (G * H, inputs),
            "weight_hh": (G * H, R),
        }
        if bias:
            shapes |= {"bias_ih": (G * H,), "bias_hh": (G * H,)}
        if P:
            shapes["weight_hr"] = (P, H)
        if cell.endswith("peephole"):
            shapes["weight_peep"] = (G - 1, H)
        if layer_norm:
            norms = {"ih": G * H, "hh": G * H} | ({"c": H} if cell in LSTM_CELLS else {})
            for part, size in norms.items():
                shapes |= {f"norm_{part}_weight": (size,), f"norm_{part}_bias": (size,)}
        for name, shape in shapes.items():
            parameters[f"{name}_l{layer}{suffix}"] = rng.uniform(-1, 1, shape)
    return parameters


def draw_noise(
    rng: Rng, T: int, B: int, widths: list[int], R: int, H: int, G: int, D: int, lstm: bool
) -> dict[str, Any]:
    """Masks of every kind, as the oracle takes them; `widths` of the layers' inputs."""
    chains = len(widths) * D

    def keep(*shape: int) -> Array:
        return (rng.random(shape) < 0.7) / 0.7

    return {
        "masks": [keep(T, B, width) for width in widths[1:]],
        "input_masks": [keep(B, width) for width in widths],
        "recurrent_masks": [keep(B, R) for _ in range(chains)],
        "weight_masks": [keep(G * H, R) for _ in range(chains)],
        # One chain of an expectation, the rest of masks.
        "zoneout": [(0.2, 0.3)[: 1 + lstm]]
        + [
            tuple(rng.random((T, B, size)) < 0.3 for size in (R, H)[: 1 + lstm])
            for _ in range(chains - 1)
        ],
    }


def torch_cell(torch: Any, cell: str, w: Any, x: Any, h: Any, c: Any, mask: Any, clip: Any) -> Any:
    """One step of a batch, and nothing after it: what the cell makes of h and c."""
    H = w["weight_ih"].shape[0] // reference.GATES[cell]

    def affine(part: str, product: Any, rows: Any = slice(None)) -> Any:
        if "norm_ih_weight" in w:
            size = product.shape[-1:]
            gain, shift = w[f"norm_{part}_weight"][rows], w[f"norm_{part}_bias"][rows]
            product = torch.nn.functional.layer_norm(product, size, gain, shift, eps=1e-5)
        return product + w[f"bias_{part}"][rows] if f"bias_{part}" in w else product

    u, W = affine("ih", x @ w["weight_ih"].T), w["weight_hh"]
    if cell.startswith("rnn"):
        a = u + affine("hh", (mask * h) @ W.T)
        return getattr(torch, cell.removeprefix("rnn_"))(a), c
    if cell == "gru":
        s = affine("hh", (mask * h) @ W.T)
        r, z = torch.sigmoid(u[:, : 2 * H] + s[:, : 2 * H]).chunk(2, 1)
        n = torch.tanh(u[:, 2 * H :] + r * s[:, 2 * H :])
        return n + z * (h - n), c
    if cell == "gru_reset_before":
        s = affine("hh", (mask * h) @ W[: 2 * H].T, slice(0, 2 * H))
        r, z = torch.sigmoid(u[:, : 2 * H] + s).chunk(2, 1)
        s = affine("hh", (r * (mask * h)) @ W[2 * H :].T, slice(2 * H, None))
        n = torch.tanh(u[:, 2 * H :] + s)
        return n + z * (h - n), c
    a = (u + affine("hh", (mask * h) @ W.T)).unflatten(1, (-1, H))
    peep = w.get("weight_peep", torch.zeros(a.shape[1] - 1, H, dtype=a.dtype))
    i = torch.sigmoid(a[:, 0] + peep[0] * c)
    f = 1 - i if "coupled" in cell else torch.sigmoid(a[:, 1] + peep[1] * c)
    c = f * c + i * torch.tanh(a[:, -2])
    c = c if clip is None else c.clamp(-clip, clip)
    o = torch.sigmoid(a[:, -1] + peep[-1] * c)
    shown = c
    if "norm_c_weight" in w:
        gain, shift = w["norm_c_weight"], w["norm_c_bias"]
        shown = torch.nn.functional.layer_norm(c, (H,), gain, shift, eps=1e-5)
    h = o * torch.tanh(shown)
    return h @ w["weight_hr"].T if "weight_hr" in w else h, c


def torch_network(
    torch: Any,
    cell: str,
    parameters: dict[str, Any],
    x: Any,
    state: Any,
    lengths: Any,
    resets: Any,
    noise: dict[str, Any],
    *,
    L: int,
    D: int,
    merge: str,
    residual: bool,
    clip: float | None,
) -> list[Any]:
    """All rows at once, in torch: output, final h (and c), h (and c) of every step."""
    T, B, _ = x.shape
    parts = 2 if cell in LSTM_CELLS else 1
    valid = torch.arange(T)[:, None] < torch.as_tensor(lengths)
    finals: list[list[Any]] = [[], []]
    every: list[list[Any]] = [[], []]
    masks = {
        name: [torch.as_tensor(np.asarray(mask)) for mask in noise[name]]
        for name in ("masks", "input_masks", "recurrent_masks", "weight_masks")
    }
    for layer in range(L):
        outputs = []
        for direction in range(D):
            chain = layer * D + direction
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            w = {k.removesuffix(suffix): v for k, v in parameters.items() if k.endswith(suffix)}
            w["weight_hh"] = w["weight_hh"] * masks["weight_masks"][chain]
            h, c = state[0][chain], state[-1][chain]
            steps: list[Any] = [None] * T
            for t in reversed(range(T)) if direction else range(T):
                if direction:
                    cut = resets[t + 1] & valid[t + 1] if t + 1 < T else torch.zeros(B, dtype=bool)
                else:
                    cut = resets[t]
                h_before = torch.where(cut[:, None], 0.0, h)
                c_before = torch.where(cut[:, None], 0.0, c)
                new_h, new_c = torch_cell(
                    torch,
                    cell,
                    w,
                    x[t] * masks["input_masks"][layer],
                    h_before,
                    c_before,
                    masks["recurrent_masks"][chain],
                    clip,
                )
                z = [torch.as_tensor(np.asarray(part)) for part in noise["zoneout"][chain]]
                z = [part[t].double() if part.ndim else part for part in z]
                new_h = z[0] * h_before + (1 - z[0]) * new_h
                new_c = z[-1] * c_before + (1 - z[-1]) * new_c
                running = valid[t][:, None]
                h, c = torch.where(running, new_h, h), torch.where(running, new_c, c)
                steps[t] = torch.where(running, h, 0.0), torch.where(running, c, 0.0)
            for part, last in enumerate((h, c)):
                finals[part].append(last)
                every[part].append(torch.stack([step[part] for step in steps]))
            outputs.append(every[0][-1])
        y = outputs[0]
        if D == 2:
            y = {
                "concat": lambda a, b: torch.cat([a, b], 2),
                "sum": torch.add,
                "mean": lambda a, b: (a + b) / 2,
                "max": torch.maximum,
                "mul": torch.mul,
            }[merge](*outputs)
        if residual and y.shape == x.shape:
            y = torch.where(valid[:, :, None], y + x, 0.0)
        x = y * masks["masks"][layer] if layer < L - 1 else y
    return [x, *map(torch.stack, finals[:parts]), *map(torch.stack, every[:parts])]


ORACLE_CASES: tuple[dict[str, Any], ...] = (
    {"P": 0, "D": 1, "merge": "concat", "layer_norm": True, "bias": True, "clip": None},
    {"P": 0, "D": 2, "merge": "concat", "layer_norm": False, "bias": True, "clip": 0.4},
    {"P": 0, "D": 2, "merge": "max", "layer_norm": True, "bias": False, "clip": 0.4},
    {"P": 2, "D": 2, "merge": "mul", "layer_norm": True, "bias": True, "clip": 0.4},
)


@pytest.mark.usefixtures("one_thread_for_torch")
@pytest.mark.parametrize("case", ORACLE_CASES, ids=str)
@cells
def test_oracle(cell: str, case: dict[str, Any], rng: Rng) -> None:
    """The oracle's results and gradients are torch's, and differences along random directions."""
    torch = pytest.importorskip("torch")
    if case["P"] and cell not in LSTM_CELLS:
        case = {**case, "P": 0}
    T, B, H, L, D, P = 5, 3, 4, 2, case["D"], case["P"]
    merge, lstm, clip = (
        case["merge"],
        cell in LSTM_CELLS,
        case["clip"] if cell in LSTM_CELLS else None,
    )
    R, G = P or H, reference.GATES[cell]
    width = R * (D if merge == "concat" else 1)
    shape = {name: case[name] for name in ("P", "D", "merge", "bias", "layer_norm")}
    parameters = draw_parameters(cell, rng, width, H, L=L, **shape)
    noise = draw_noise(rng, T, B, [width] * L, R, H, G, D, lstm)
    x = rng.standard_normal((T, B, width))
    state = [rng.uniform(-1, 1, (L * D, B, size)) for size in (R, H)[: 1 + lstm]]
    lengths, resets = [2, T, 4], draw_resets(rng, T, B)
    given = [x, *state, *parameters.values()]
    run: dict[str, Any] = {"num_layers": L, "bidirectional": D == 2, "merge": merge}
    run |= {"residual": True, **noise} | ({} if clip is None else {"clip": clip})

    def oracle(arguments: list[Array]) -> list[Array]:
        x, rest = arguments[0], arguments[1:]
        start = tuple(rest[: 1 + lstm]) if lstm else rest[0]
        named = dict(zip(parameters, rest[1 + lstm :], strict=True))
        results = reference.forward(cell, named, x, start, lengths, resets, all_states=True, **run)
        return [array for part in results for array in arrays(part)]

    results = oracle(given)
    coefficients = [rng.standard_normal(result.shape) for result in results]
    tensors = [torch.tensor(array, requires_grad=True) for array in given]
    theirs = torch_network(
        torch,
        cell,
        dict(zip(parameters, tensors[2 + lstm :], strict=True)),
        tensors[0],
        tensors[1 : 2 + lstm],
        lengths,
        torch.as_tensor(resets),
        noise,
        L=L,
        D=D,
        merge=merge,
        residual=True,
        clip=clip,
    )
    for ours, value in zip(results, theirs, strict=True):
        np.testing.assert_allclose(ours, value.detach().numpy(), rtol=0, atol=1e-12)

    loss = sum(
        (torch.as_tensor(k) * value).sum() for k, value in zip(coefficients, theirs, strict=True)
    )
    expected = [gradient.numpy() for gradient in torch.autograd.grad(loss, tensors)]
    parts = coefficients[1 : 2 + lstm], coefficients[2 + lstm :]
    dx, d_state, d_parameters = reference.backward(
        cell,
        parameters,
        x,
        tuple(state) if lstm else state[0],
        lengths,
        resets,
        grad_output=coefficients[0],
        grad_state=parts[0] if lstm else parts[0][0],
        grad_states=parts[1] if lstm else parts[1][0],
        **run,
    )
    assert d_parameters.keys() == parameters.keys()
    gradients = [dx, *arrays(d_state), *(d_parameters[name] for name in parameters)]
    for ours, gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, gradient, rtol=1e-10, atol=1e-10)

    direction = [rng.standard_normal(array.shape) for array in given]
    above, below = (
        oracle([array + side * change for array, change in zip(given, direction, strict=True)])
        for side in (1e-6, -1e-6)
    )
    slope = sum(
        float(np.sum(k * (a - b))) for k, a, b in zip(coefficients, above, below, strict=True)
    )
    products = [g * change for g, change in zip(gradients, direction, strict=True)]
    scale = np.sqrt(sum(float(np.sum(product**2)) for product in products))
    assert abs(slope / 2e-6 - sum(float(product.sum()) for product in products)) < 1e-7 * scale


def test_oracle_normalises_to_mean_0_and_variance_1(rng: Rng) -> None:
    v = 3 + 5 * rng.standard_normal(1000)
    normalised = reference.layer_norm(v)
    assert abs(normalised.mean()) < 1e-12
    assert abs(normalised.var() - 1) < 1e-6  # less than 1 by the 1e-5 that is added to 25
    np.testing.assert_array_equal(reference.layer_norm(np.full(7, 3.0)), np.zeros(7))


# ---- the engine against the oracle ---------------------------------------------------------------

PARTS = ("output", "h", "c", "states")


def check_both(cell: str, rng: Rng, **options: Any) -> None:
    """Results in both modes and gradients in training mode."""
    for training in (True, False):
        check(cell, rng, all_states=True, training=training, **options)
    check_backward(cell, rng, given=PARTS, **options)


@dtypes
@pytest.mark.parametrize("bidirectional", [False, True])
@every_option
def test_alone_and_together(
    cell: str, options: dict[str, Any], bidirectional: bool, dtype: str, rng: Rng
) -> None:
    options = {**options, "bidirectional": bidirectional, "merge": "sum", "dtype": dtype}
    check_both(
        cell,
        rng,
        T=5,
        B=3,
        input_size=17,
        hidden_size=17,
        num_layers=2,
        residual=True,
        lengths=[2, 5, 4] if bidirectional else None,
        resets=draw_resets(rng, 5, 3),
        batch_first=bidirectional != (dtype == "float32"),
        **options,
    )


@pytest.mark.parametrize("merge", MERGES)
@all_options
def test_merges(cell: str, options: dict[str, Any], merge: str, rng: Rng) -> None:
    options = {**options, "bidirectional": True, "merge": merge}
    check_both(
        cell,
        rng,
        T=4,
        B=4,
        input_size=output_width(13, **options),
        hidden_size=13,
        num_layers=2,
        residual=True,
        lengths=[3, 0, 4, 1],
        resets=draw_resets(rng, 4, 4),
        **options,
    )


@dtypes
@pytest.mark.parametrize(
    ("input_size", "hidden_size"), [(1, 1), (5, 3), (50, 7), (9, 16), (17, 33), (3, 65)]
)
@cells
def test_sizes(cell: str, input_size: int, hidden_size: int, dtype: str, rng: Rng) -> None:
    sizes = {"input_size": input_size, "hidden_size": hidden_size}
    options = {**together(cell), "dropout": 0.0, "dtype": dtype}
    check_both(cell, rng, T=3, B=2, **sizes, **options)
    check_both(cell, rng, T=3, B=2, **sizes, layer_norm=True, dtype=dtype)


@pytest.mark.parametrize("B", [7, 8, 17, 33])
@cells
def test_batches(cell: str, B: int, rng: Rng) -> None:
    options = {**together(cell), "dropout": 0.0}
    check_both(cell, rng, T=2, B=B, input_size=5, hidden_size=21, **options)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0), (1, 1), (20, 2)])
@all_options
def test_steps(
    cell: str, options: dict[str, Any], T: int, B: int, bidirectional: bool, rng: Rng
) -> None:
    options = {**options, "num_layers": 2, "bidirectional": bidirectional}
    check_both(cell, rng, T=T, B=B, input_size=4, hidden_size=13, **options)


@pytest.mark.parametrize("batch_first", [False, True])
@all_options
def test_unbatched(cell: str, options: dict[str, Any], batch_first: bool, rng: Rng) -> None:
    options = {**options, "num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    for T in (0, 6):
        resets = draw_resets(rng, T) if T else None
        check_both(cell, rng, T=T, B=None, input_size=9, hidden_size=13, resets=resets, **options)


@dtypes
@all_options
def test_no_bias_and_no_state(cell: str, options: dict[str, Any], dtype: str, rng: Rng) -> None:
    """The biases of layer norm are not those of `bias`."""
    check_both(
        cell,
        rng,
        T=4,
        B=3,
        input_size=5,
        hidden_size=19,
        num_layers=2,
        bias=False,
        initial_state=False,
        dtype=dtype,
        **options,
    )


@pytest.mark.parametrize(
    "given", [("output",), ("h",), ("c",), ("states",), ("output", "states"), ("c", "h"), ()]
)
@all_options
def test_what_the_loss_depends_on(
    cell: str, options: dict[str, Any], given: tuple[str, ...], rng: Rng
) -> None:
    check_backward(
        cell,
        rng,
        T=4,
        B=3,
        input_size=5,
        hidden_size=13,
        num_layers=2,
        bidirectional=True,
        lengths=[2, 4, 0],
        given=given,
        **options,
    )


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"weight_drop": 0.5, "zoneout": 0.3}])
@cells
def test_more_rows_than_two_chunks(cell: str, options: dict[str, Any], rng: Rng) -> None:
    """Weight gradients, those of gains among them, are summed over up to 256 rows at a time."""
    lengths = rng.integers(38, 46, 13)
    assert lengths.sum() > 512
    check_backward(cell, rng, T=45, B=13, input_size=3, hidden_size=5, lengths=lengths, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"input_dropout": 1.0},
        {"recurrent_dropout": 1.0},
        {"weight_drop": 1.0},
        {"zoneout": 1.0},
        {"layer_norm": True, "input_dropout": 1.0, "recurrent_dropout": 1.0, "weight_drop": 1.0},
        {"layer_norm": True, "zoneout": 0.95, "dropout": 1.0},
        {"input_dropout": 0.01, "recurrent_dropout": 0.99, "weight_drop": 0.01, "zoneout": 0.99},
    ],
    ids=str,
)
@cells
def test_little_and_much(cell: str, options: dict[str, Any], rng: Rng) -> None:
    """Where all is dropped, a layer norm divides by the root of 1e-5 and nothing is NaN."""
    options = {**options, "num_layers": 2, "bidirectional": True}
    for dtype in DTYPES:
        check_both(cell, rng, T=4, B=3, input_size=5, hidden_size=11, dtype=dtype, **options)


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1.0, 1e30])
@pytest.mark.parametrize("cell", LSTM_CELLS)
def test_clip(cell: str, clip: float, rng: Rng) -> None:
    check_both(cell, rng, T=6, B=4, input_size=5, hidden_size=17, clip=clip)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", LSTM_CELLS)
def test_clip_holds_every_cell_state(cell: str, dtype: str, rng: Rng) -> None:
    layer = make_layer(cell, 5, 17, rng, clip=0.25, dtype=dtype)
    x = 20 * rng.standard_normal((6, 4, 5)).astype(dtype)
    _, (_, c), (_, every) = layer(x, return_all_states=True)
    assert np.abs(every).max() == 0.25
    assert (np.abs(every) < 0.25).any()
    assert_same_bits(c[0], every[0, -1])


@dtypes
@pytest.mark.parametrize("cell", LSTM_CELLS)
def test_clip_passes_gradients_up_to_its_bound(cell: str, dtype: str) -> None:
    """Shut input gates leave c as it is: at the bound that is no clipping, beyond it is."""
    layer = fastrnn.LSTM(1, 4, clip=0.5, dtype=dtype, **LAYERS[cell][1])
    for array in layer.parameters.values():
        array[:] = 0
    layer.parameters["bias_ih_l0"][:4] = -1e3
    if "coupled" not in cell:
        layer.parameters["bias_ih_l0"][4:8] = 1e3
    c = np.array([[[0.5, -0.5, 0.25, np.nextafter(0.5, 1, dtype=dtype)]]], dtype)
    ones, x = np.ones_like(c), np.zeros((1, 1, 1), dtype)
    _, (_, last), tape = layer.forward(x, (np.zeros_like(c), c))
    np.testing.assert_array_equal(last, [[[0.5, -0.5, 0.25, 0.5]]])
    gradients = layer.backward(tape, grad_state=(None, ones))
    np.testing.assert_array_equal(gradients.state[1], [[[1, 1, 1, 0]]])


@dtypes
@cells
def test_layer_norm_of_values_far_from_zero(cell: str, dtype: str, rng: Rng) -> None:
    """A variance is that of differences from the mean: squares of values would swamp it."""
    layer = make_layer(cell, 5, 21, rng, layer_norm=True, dtype=dtype)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        layer.parameters[name][:] = 1 + layer.parameters[name] / 300
    x = rng.uniform(1, 2, (4, 3, 5)).astype(dtype)
    output, final = layer(x)
    wide, narrow = (
        oracle(cell, layer, x, precision=precision)
        for precision in (np.longdouble, np.dtype(dtype).type)
    )
    bound = tolerance(4, 5, 21, dtype)
    results = [output, *arrays(final)], [wide[0], *arrays(wide[1])], [narrow[0], *arrays(narrow[1])]
    bound += 4 * max(scaled_error(plain, exact) for _, exact, plain in zip(*results, strict=True))
    assert bound < 0.05 if dtype == "float32" else bound < 1e-9
    for actual, exact, _ in zip(*results, strict=True):
        assert_close(actual, exact, bound)


# ---- the engine against differences of itself ----------------------------------------------------

STEP = 1e-6
# Times the root of the sum of squares of what is summed. Results are rounded to 1e-16, which the
# division by STEP makes 1e-10, and layer norm several times that.
DIFFERENCE_TOLERANCE = 1e-8


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "options"), [*OPTIONS, *TOGETHER[len(CELLS) :]], ids=str)
def test_differences(cell: str, options: dict[str, Any], bidirectional: bool, rng: Rng) -> None:
    """Slopes of a random linear function of all results along random directions of all inputs."""
    T, B, H = 4, 3, 12
    options = {**options, "num_layers": 2, "bidirectional": bidirectional, "dtype": "float64"}
    layer = make_layer(cell, 5, H, rng, **options)
    x = rng.standard_normal((T, B, 5))
    state = draw_state(cell, rng, B=B, hidden_size=H, **options)
    lengths, resets, seed = [2, T, 3], draw_resets(rng, T, B), layer._mask_seed
    moved = [x, *arrays(state), *layer.parameters.values()]
    start = [array.copy() for array in moved]

    def results() -> tuple[list[Array], Any]:
        layer._mask_seed = seed  # the same masks every time
        output, final, tape, states = layer.forward(
            x, state, lengths, resets, return_all_states=True
        )
        return [output, *arrays(final), *arrays(states)], tape

    values, tape = results()
    weights = [rng.standard_normal(value.shape) for value in values]
    parts = len(arrays(state))
    ends, steps = weights[1 : 1 + parts], weights[1 + parts :]
    gradients = layer.backward(
        tape,
        weights[0],
        tuple(ends) if cell in LSTM_CELLS else ends[0],
        grad_states=tuple(steps) if cell in LSTM_CELLS else steps[0],
    )
    for _ in range(3):
        direction = [rng.standard_normal(array.shape) for array in start]
        sides = []
        for side in (STEP, -STEP):
            for array, middle, change in zip(moved, start, direction, strict=True):
                array[...] = middle + side * change
            sides.append(results()[0])
        slope = sum(
            float(np.sum(weight * (above - below)))
            for weight, above, below in zip(weights, *sides, strict=True)
        ) / (2 * STEP)
        products = [
            gradient * change
            for gradient, change in zip(name_gradients(gradients).values(), direction, strict=True)
        ]
        expected = sum(float(product.sum()) for product in products)
        scale = np.sqrt(sum(float(np.sum(product**2)) for product in products))
        error = abs(slope - expected) / max(1.0, scale)
        assert error <= DIFFERENCE_TOLERANCE, f"{error:.3g} for {options}"


# ---- invariance ----------------------------------------------------------------------------------


class Run:
    """A layer with the same arguments and the same masks in every call."""

    def __init__(self, cell: str, rng: Rng, T: int, B: int, **options: Any) -> None:
        self.case = draw_case(cell, rng, T=T, B=B, ragged=True, **options)
        self.seed = self.case.layer._mask_seed
        layer = self.case.layer
        D, R = 1 + layer.bidirectional, layer.proj_size or layer.hidden_size
        sizes = (R, layer.hidden_size) if cell in LSTM_CELLS else (R,)
        steps = tuple(
            rng.standard_normal((layer.num_layers * D, T, B, size)).astype(layer.dtype)
            for size in sizes
        )
        self.case.grads["grad_states"] = steps if cell in LSTM_CELLS else steps[0]

    def call(self) -> list[Array]:
        self.case.layer._mask_seed = self.seed
        output, *states = self.case.layer(**self.case.inputs, return_all_states=True)
        return [output, *(array for state in states for array in arrays(state))]

    def forward(self) -> tuple[list[Array], Any]:
        """All results, and the tape."""
        self.case.layer._mask_seed = self.seed
        forward = self.case.layer.forward(**self.case.inputs, return_all_states=True)
        output, final, tape, states = forward
        return [output, *arrays(final), *arrays(states)], tape

    def everything(self) -> list[Array]:
        results, tape = self.forward()
        return [*results, *self.case.backward(tape).values()]


def rows(state: Any, pick: slice) -> Any:
    """The same state, or states, for some rows only."""
    return map_state(lambda part: part[..., pick, :], state)


def assert_same_arrays(actual: list[Array], expected: list[Array]) -> None:
    assert_same_bits(tuple(actual), tuple(expected))


# B, H, I: a row split over threads, a batch split, all odd, more threads than units, and less work
# than a barrier costs.
@pytest.mark.parametrize(
    ("B", "H", "inputs"), [(1, 203, 19), (33, 64, 19), (5, 203, 203), (2, 16, 5), (1, 12, 3)]
)
@pytest.mark.parametrize("bidirectional", [False, True])
@all_options
def test_threads(
    cell: str, options: dict[str, Any], bidirectional: bool, B: int, H: int, inputs: int, rng: Rng
) -> None:
    options = {**options, "bidirectional": bidirectional, "num_layers": 2}
    run = Run(cell, rng, 5, B, input_size=inputs, hidden_size=H, **options)
    fastrnn.set_num_threads(1)
    expected = run.everything()
    for threads in (2, 3, 5):
        fastrnn.set_num_threads(threads)
        assert_same_arrays(run.everything(), expected)
        assert_same_arrays(run.call(), expected[: len(run.call())])


@pytest.mark.parametrize("threads", [(1, 3), (3, 1), (2, 5)], ids=str)
@all_options
def test_threads_change_while_a_tape_is_open(
    cell: str, options: dict[str, Any], threads: tuple[int, int], rng: Rng
) -> None:
    options = {**options, "bidirectional": True, "num_layers": 2, "merge": "sum"}
    run = Run(cell, rng, 6, 7, input_size=19, hidden_size=130, **options)
    fastrnn.set_num_threads(1)
    expected = run.everything()
    fastrnn.set_num_threads(threads[0])
    results, tape = run.forward()
    fastrnn.set_num_threads(threads[1])
    assert_same_arrays([*results, *run.case.backward(tape).values()], expected)


@every_option
def test_threads_and_every_option(cell: str, options: dict[str, Any], rng: Rng) -> None:
    run = Run(cell, rng, 5, 4, input_size=19, hidden_size=140, num_layers=2, **options)
    fastrnn.set_num_threads(1)
    expected = run.everything()
    fastrnn.set_num_threads(3)
    assert_same_arrays(run.everything(), expected)


def fixed(cell: str) -> dict[str, Any]:
    """All that is not random, in evaluation mode with zoneout by expectation."""
    options: dict[str, Any] = {"layer_norm": True}
    return options | ({"clip": 0.4} if cell in LSTM_CELLS else {})


@dtypes
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("projection", [0, 11])
@cells
def test_batch_against_its_rows(
    cell: str, projection: int, training: bool, dtype: str, rng: Rng
) -> None:
    """The output and the gradient of the input of a row are its own."""
    T, B = 4, 17
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": dtype}
    options |= {**fixed(cell)} if training else together(cell)
    options |= {"proj_size": projection} if projection and cell in LSTM_CELLS else {}
    case = draw_case(cell, rng, T=T, B=B, input_size=19, hidden_size=37, ragged=True, **options)
    layer = case.layer.train(training)
    del case.inputs["lengths"]
    output, final, states = layer(**case.inputs, return_all_states=True)
    gradients = case.gradients()
    for b in range(B):
        row = slice(b, b + 1)
        state = rows(case.inputs["state"], row)
        inputs = {"x": case.inputs["x"][:, row], "resets": case.inputs["resets"][:, row]}
        alone = layer(**inputs, state=state, return_all_states=True)
        assert_same_bits(alone[0], output[:, row])
        assert_same_bits(alone[1], rows(final, row))
        assert_same_bits(alone[2], rows(states, row))
        grads = {
            "grad_output": case.grads["grad_output"][:, row],
            "grad_state": rows(case.grads["grad_state"], row),
        }
        own = case._replace(inputs={**inputs, "state": state}, grads=grads).gradients()
        for name in ("x", *"hc"[: len(arrays(state))]):
            assert_same_bits(own[name], gradients[name][:, row])


@cells
def test_masks_of_the_first_rows_of_a_larger_batch(cell: str, rng: Rng) -> None:
    """Of a sequence that is cut off, too: a mask depends on step, row and unit alone."""
    options: dict[str, Any] = {**together(cell), "num_layers": 2}
    layer = make_layer(cell, 5, 21, rng, **options)
    seed, x = layer._mask_seed, rng.standard_normal((7, 9, 5), np.float32)
    output, _, states = layer(x, return_all_states=True)
    for T, B in ((7, 4), (3, 9), (2, 1)):
        layer._mask_seed = seed
        part, _, part_states = layer(x[:T, :B], return_all_states=True)
        assert_same_bits(part, output[:T, :B])
        for actual, expected in zip(arrays(part_states), arrays(states), strict=True):
            assert_same_bits(actual, expected[:, :T, :B])
    layer._mask_seed = seed
    alone, _ = layer(x[:, 0])
    assert_same_bits(alone, output[:, 0])


@all_options
def test_padded_row_against_the_row_cut_off(cell: str, options: dict[str, Any], rng: Rng) -> None:
    """With the same masks: the row is the first, and its steps begin at 0 in either direction."""
    options = {**options, "num_layers": 2, "bidirectional": True}
    layer = make_layer(cell, 5, 21, rng, **options)
    seed, x = layer._mask_seed, rng.standard_normal((7, 3, 5), np.float32)
    output, final, states = layer(x, lengths=[4, 7, 0], return_all_states=True)
    layer._mask_seed = seed
    alone, alone_final, alone_states = layer(x[:4, :1], return_all_states=True)
    assert_same_bits(output[:4, :1], alone)
    assert not output[4:, 0].any()
    assert_same_bits(rows(final, slice(1)), alone_final)
    assert_same_bits(map_state(lambda part: part[:, :4, :1], states), alone_states)
    for part in arrays(states):
        assert not part[:, 4:, 0].any()
        assert not part[:, :, 2].any()


@dtypes
@all_options
def test_batch_first_and_strides(cell: str, options: dict[str, Any], dtype: str, rng: Rng) -> None:
    """Layout changes no bit: batch first, or an input whose elements are apart."""
    options = {**options, "num_layers": 2, "bidirectional": True, "dtype": dtype}
    run = Run(cell, rng, 5, 7, input_size=9, hidden_size=21, **options)
    inputs, grads = run.case.inputs, run.case.grads
    expected = run.everything()
    spread = np.zeros((5, 7, 27), dtype)
    spread[..., 1::3] = inputs["x"]
    run.case.inputs["x"] = spread[..., 1::3]
    assert_same_arrays(run.everything(), expected)

    layer = make_layer(cell, 9, 21, rng, batch_first=True, **options)
    layer.load_state_dict(run.case.layer.state_dict())
    case = run.case._replace(
        layer=layer,
        inputs={
            **inputs,
            "x": np.ascontiguousarray(inputs["x"].swapaxes(0, 1)),
            "resets": inputs["resets"].T,
        },
        grads={**grads, "grad_output": grads["grad_output"].swapaxes(0, 1)},
    )
    run.case = case
    actual = run.everything()
    dx = 1 + 2 * len(arrays(inputs["state"]))
    for index in (0, dx):
        actual[index] = np.ascontiguousarray(actual[index].swapaxes(0, 1))
    assert_same_arrays(actual, expected)


@all_options
def test_nothing_beyond_a_length(cell: str, options: dict[str, Any], rng: Rng) -> None:
    """Padding is neither read, of the input and of gradients, nor does it get a gradient."""
    options = {**options, "num_layers": 2, "bidirectional": True, "residual": True, "merge": "sum"}
    run = Run(cell, rng, 7, 5, input_size=output_width(21, **options), hidden_size=21, **options)
    lengths = np.array([3, 0, 7, 1, 6])
    run.case.inputs["lengths"] = lengths
    expected = run.everything()
    padding = np.arange(7)[:, np.newaxis] >= lengths
    run.case.inputs["x"][padding] = np.nan
    run.case.grads["grad_output"][padding] = np.nan
    for part in arrays(run.case.grads["grad_states"]):
        part[:, padding] = np.nan
    assert_same_arrays(run.everything(), expected)


@cells
def test_nan_does_not_cross_a_reset(cell: str, rng: Rng) -> None:
    """Nor the rows, in either pass: a state is dropped, and not multiplied by zero."""
    run = Run(cell, rng, 6, 3, input_size=5, hidden_size=21, **{**together(cell), "dropout": 0.0})
    del run.case.inputs["lengths"]
    run.case.inputs["resets"] = np.zeros((6, 3), bool)
    run.case.inputs["resets"][3, 1] = True
    clean, tape = run.forward()
    gradients = run.case.backward(tape)
    run.case.grads["grad_output"][4, 1] = np.nan
    _, tape = run.forward()
    spoilt = run.case.backward(tape)
    assert np.isnan(spoilt["x"][3:5, 1]).any()
    assert_same_bits(spoilt["x"][:3], gradients["x"][:3])
    assert_same_bits(spoilt["x"][:, [0, 2]], gradients["x"][:, [0, 2]])
    assert_same_bits(spoilt["h"], gradients["h"])
    run.case.inputs["x"][2, 1] = np.nan
    results = run.call()
    assert np.isnan(results[0][2, 1]).any()
    assert_same_bits(results[0][3:], clean[0][3:])
    assert_same_bits(results[0][:, [0, 2]], clean[0][:, [0, 2]])


# ---- the states of every step --------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("B", [None, 4])
@pytest.mark.parametrize("regular", [False, True])
@cells
def test_states(cell: str, regular: bool, B: int | None, batch_first: bool, rng: Rng) -> None:
    """Shapes, and what agrees with the output and the final state."""
    T, H, P = 6, 21, 11 if cell in LSTM_CELLS else 0
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    options |= ({"proj_size": P} if P else {}) | (together(cell) if regular else {})
    layer = make_layer(cell, 5, H, rng, **options)
    x = rng.standard_normal((T, 5) if B is None else (B, T, 5) if batch_first else (T, B, 5))
    x = x.astype(np.float32)
    lengths = None if B is None else [4, 0, 6, 1]
    state = draw_state(cell, rng, B=B, hidden_size=H, **options)
    seed = layer._mask_seed
    plain_output, plain_final = layer(x, state, lengths)
    layer._mask_seed = seed
    output, final, states = layer(x, state, lengths, return_all_states=True)
    assert_same_bits(output, plain_output)
    assert_same_bits(final, plain_final)
    assert isinstance(states, tuple) == (cell in LSTM_CELLS)
    for every, last, size in zip(arrays(states), arrays(final), (P or H, H), strict=False):
        assert every.shape == ((4, T, size) if B is None else (4, T, B, size))
        assert every.dtype == np.float32
        assert every.flags.c_contiguous
        with_batch = every[:, :, np.newaxis] if B is None else every
        ends = last[:, np.newaxis] if B is None else last
        for b, length in enumerate(lengths or [T]):
            assert not with_batch[:, length:, b].any()
            if length:
                assert_same_bits(ends[::2, b], with_batch[::2, length - 1, b])
                assert_same_bits(ends[1::2, b], with_batch[1::2, 0, b])
    steps_first = output.swapaxes(0, 1) if batch_first and B is not None else output
    assert_same_bits(steps_first[..., : P or H], arrays(states)[0][2])
    assert_same_bits(steps_first[..., P or H :], arrays(states)[0][3])


@pytest.mark.parametrize("regular", [False, True])
@cells
def test_gradients_of_the_last_states_are_those_of_the_final_one(
    cell: str, regular: bool, rng: Rng
) -> None:
    options: dict[str, Any] = {"num_layers": 2, "dtype": "float64"}
    options |= together(cell) if regular else {}
    run = Run(cell, rng, 5, 3, input_size=4, hidden_size=21, **options)
    del run.case.inputs["lengths"]
    grad_state = run.case.grads["grad_state"]
    _, tape = run.forward()
    expected = run.case.layer.backward(tape, None, grad_state, retain=True)

    def last(part: Array) -> Array:
        steps = np.zeros((len(part), 5, *part.shape[1:]), part.dtype)
        steps[:, -1] = part
        return steps

    actual = run.case.layer.backward(
        tape, None, None, retain=True, grad_states=map_state(last, grad_state)
    )
    for name, gradient in name_gradients(actual).items():
        np.testing.assert_array_equal(gradient, name_gradients(expected)[name], err_msg=name)
    if cell in LSTM_CELLS:
        h, c = map_state(last, grad_state)
        some = run.case.layer.backward(tape, retain=True, grad_states=(None, c))
        full = run.case.layer.backward(tape, retain=True, grad_states=(np.zeros_like(h), c))
        for name, gradient in name_gradients(some).items():
            np.testing.assert_array_equal(gradient, name_gradients(full)[name], err_msg=name)
