"""The benchmark's answers: shapes, agreement, arithmetic and files. Nothing here asserts a time."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fastrnn.__main__
import numpy as np
import pytest
from fastrnn import functional
from fastrnn.bench import cli, cuda_peers, machine, memory, report, runner, timing
from fastrnn.bench.peers import PEERS, Candidate, FastRNN, NumPy, Torch, missing_package
from fastrnn.bench.problem import Problem, scaled_error
from fastrnn.bench.results import Lengths, Memory, Regularised, Result, Run, groups
from fastrnn.bench.suites import GATES, LENGTHS, SUITES, Shape, regularised_options

TINY = ["--T", "1", "3", "--B", "2", "--I", "3", "--H", "5", "--seconds", "0.001", "--repeats", "2"]
ENVIRONMENT: dict[str, Any] = {
    "config": {"version": "0", "isa": "avx2"},
    "threads": 1,
    "cpu": "a processor",
    "platform": "a system",
    "python": "3",
    "packages": {"numpy": "2"},
    "date": "today",
}

Command = Callable[..., int]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, without the pauses that only the times need."""
    monkeypatch.setattr(timing, "settle", lambda: None)
    monkeypatch.setattr(timing, "_WARM", 0.0)
    monkeypatch.setattr(runner, "_PROBE_SECONDS", 1e-4)
    return lambda *arguments: cli.main(arguments)


def result(shape: Shape, **seconds: list[float]) -> Result:
    rounds = len(seconds["fastrnn"])
    return Result(shape, seconds, {}, {}, peak=[1e9] * rounds, bandwidth=[1e9] * rounds)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("T", "layers", "bidirectional"),
    [(1, 1, False), (1, 3, False), (4, 1, False), (4, 2, False), (4, 3, True), (1, 1, True)],
)
@pytest.mark.parametrize("cell", GATES)
def test_peers_agree(
    cell: str, T: int, layers: int, bidirectional: bool, dtype: str, peer: str
) -> None:
    for package in PEERS[peer].requires:
        pytest.importorskip(package)
    shape = Shape(cell, T=T, B=2, I=3, H=5, layers=layers, bidirectional=bidirectional, dtype=dtype)
    engine = PEERS[peer](threads=1)
    if engine.unsupported(shape):
        assert (peer, dtype) == ("onnxruntime", "float64")
        return
    problem = Problem.create(shape)
    expected = FastRNN(threads=1).candidate(problem).result()
    assert scaled_error(engine.candidate(problem).result(), expected) < 30 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("T", "layers", "bidirectional"), [(1, 1, False), (4, 1, False), (4, 3, True), (1, 2, True)]
)
@pytest.mark.parametrize("cell", GATES)
def test_gradients_agree(cell: str, T: int, layers: int, bidirectional: bool, dtype: str) -> None:
    pytest.importorskip("torch")
    shape = Shape(cell, T, 2, 3, 5, layers, bidirectional, dtype, train=True)
    problem = Problem.create(shape)
    expected = FastRNN(threads=1).candidate(problem).result()
    width = 5 * shape.directions
    parameters = [value.shape for value in problem.weights.values()]
    assert [a.shape for a in expected] == [(T, 2, width), (T, 2, 3), *parameters]
    candidate = Torch(threads=1).candidate(problem)
    # The second call's gradients are not added to the first's.
    for actual in (candidate.result(), candidate.result()):
        assert scaled_error(actual, expected) < 30 * np.finfo(dtype).eps


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand the processor in for a GPU; gets an entry whenever it is waited for."""
    pytest.importorskip("torch")
    waits: list[str] = []
    monkeypatch.setattr(cuda_peers.CudaTorch, "device", "cpu")
    monkeypatch.setattr(
        cuda_peers.CudaTorch, "_wait", lambda self: partial(waits.append, self.name)
    )
    monkeypatch.setattr(cuda_peers, "missing", lambda device: None)
    monkeypatch.setattr(cuda_peers, "memory_bytes", lambda: 10**9)
    monkeypatch.setattr(cuda_peers, "describe", lambda: {"gpu": "a GPU", "cudnn": 0})
    return waits


@pytest.mark.parametrize("dtype", ["float32", "float64", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("work", [[], ["--train"]])
def test_peers_on_a_gpu(
    dtype: str,
    work: list[str],
    gpu: list[str],
    bench: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "run.json"
    command = [*TINY, *work, "--device", "cuda", "--dtype", dtype, "--cell", "lstm", "gru"]
    assert bench(*command, "--layers", "1", "2", "--json", str(file)) == 0
    printed = capsys.readouterr().out
    run = Run.load(file)
    assert run.device == "cuda"
    assert len(run.results) == 8
    for entry in run.results:
        assert set(entry.seconds) == {"fastrnn", "torch"}
        assert not entry.peak
        assert entry.memory is None
    assert set(gpu) == {"fastrnn", "torch"}
    assert "a GPU, " in printed
    assert "peak" not in printed
    assert "memory" not in printed
    assert bench("--load", str(file)) == 0
    assert capsys.readouterr().out == printed


def test_tf32_is_allowed_where_it_is_asked_for(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")

    def allowed() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = allowed()
    for dtype, expected in (("tf32", ("high", True)), ("float32", ("highest", False))):
        for train in (False, True):
            shape = Shape("gru", T=2, B=2, I=3, H=3, dtype=dtype, train=train)
            candidate = cuda_peers.CudaTorch(threads=1).candidate(Problem.create(shape))
            with candidate.context():
                assert allowed() == expected
                assert torch.is_grad_enabled() == train
            assert allowed() == before


def test_suites_on_a_gpu(
    gpu: list[str],
    bench: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = Shape("gru", T=9, B=3, I=4, H=4, train=True)
    large = Shape("lstm", T=9999, B=999, I=64, H=64, train=True)
    monkeypatch.setitem(SUITES, "train", (shape, large))
    monkeypatch.setitem(SUITES, "regularised", (shape,))
    monkeypatch.setattr(cli, "LENGTHS", {("gru", 3, 9, 4)})
    effort = ["--device", "cuda", "--seconds", "0.001", "--repeats", "2"]
    assert bench("--suite", "train", *effort) == 0
    printed = capsys.readouterr().out
    assert "Our training step with rows of 1 to T steps" in printed
    assert "Skipped LSTM B=999 T=9999 H=64: every engine needs about" in printed
    assert bench("--suite", "regularised", *effort) == 0
    assert "layer_norm=True" in capsys.readouterr().out


def test_peers_of_a_cpu_do_not_run_on_a_gpu(
    gpu: list[str], bench: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench(*TINY, "--device", "cuda", "--peers", "numpy")
    assert "--peers: expected torch on a GPU, got numpy" in capsys.readouterr().err


def test_without_a_gpu(
    bench: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> int:
        raise RuntimeError("device='cuda': expected a GPU, got none")

    monkeypatch.setattr(functional, "cuda_device_count", none)
    with pytest.raises(SystemExit) as exit_status:
        bench(*TINY, "--device", "cuda")
    assert exit_status.value.code == 2
    assert "device='cuda': expected a GPU, got none" in capsys.readouterr().err
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(functional, "cuda_device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench(*TINY, "--device", "cuda")
    assert "device='cuda': expected a torch that sees the GPU" in capsys.readouterr().err


def test_run_keeps_every_round(
    bench: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.json"
    assert bench(*TINY, "--threads", "1", "--json", str(file)) == 0
    printed = capsys.readouterr().out

    data = json.loads(file.read_text("utf-8"))
    assert data["environment"]["threads"] == 1
    assert data["environment"]["config"]["version"] == fastrnn.__version__
    assert data["environment"]["packages"]["numpy"] == np.__version__
    assert [(entry["shape"]["cell"], entry["shape"]["T"]) for entry in data["results"]] == [
        (cell, T) for cell in GATES for T in (1, 3)
    ]
    installed = {name for name in PEERS if missing_package(name) is None}
    for entry in data["results"]:
        assert set(entry["seconds"]) == {"fastrnn", *installed}
        assert set(entry["errors"]) == installed
        rounds = [*entry["seconds"].values(), entry["peak"], entry["bandwidth"]]
        assert {len(values) for values in rounds} == {2}
        assert min(min(values) for values in rounds) > 0

    assert bench("--load", str(file)) == 0
    assert capsys.readouterr().out == printed
    for cell in GATES:
        assert f"| {cell.upper():4} | B=2 T=3 H=5 I=3 |" in printed


def test_a_peer_that_disagrees_is_an_error(
    bench: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = NumPy.candidate

    def wrong(self: NumPy, problem: Problem) -> Candidate:
        gates = GATES[problem.shape.cell]
        weights = {
            name: np.concatenate(np.split(value, gates)[::-1])
            for name, value in problem.weights.items()
        }
        return right(self, Problem(problem.shape, weights, problem.x, problem.state))

    monkeypatch.setattr(NumPy, "candidate", wrong)
    assert bench(*TINY, "--peers", "numpy", "--cell", "rnn") == 0  # one gate has one order
    capsys.readouterr()
    assert bench(*TINY, "--peers", "numpy", "--cell", "gru") == 1
    assert "GRU B=2 T=1 H=5 I=3: results of numpy and fastrnn differ by" in capsys.readouterr().err


def test_nan_and_other_shapes_disagree() -> None:
    ones = np.ones((2, 3))
    assert scaled_error([ones, 2 * ones], [ones, 4 * ones]) == 0.5
    assert np.isnan(scaled_error([ones, np.nan * ones], [ones, ones]))
    assert scaled_error([ones], [ones[:1]]) == np.inf
    zeros = np.zeros((2, 3))
    assert scaled_error([zeros], [zeros]) == 0.0
    assert scaled_error([ones], [zeros]) == np.inf
    candidates = [
        Candidate("fastrnn", lambda: 1.0, lambda value: [value * ones]),
        Candidate("torch", lambda: np.nan, lambda value: [value * ones]),
    ]
    with pytest.raises(runner.DisagreementError, match="torch"):
        runner._check_agreement(SUITES["quick"][0], candidates)


def test_a_gradient_that_disagrees_is_an_error(
    bench: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    right = Torch.candidate

    def wrong(self: Torch, problem: Problem) -> Candidate:
        candidate = right(self, problem)

        def arrays(result: Any) -> list[np.ndarray[Any, Any]]:
            *others, last = candidate.arrays(result)
            return [*others, -last]

        return dataclasses.replace(candidate, arrays=arrays)

    monkeypatch.setattr(Torch, "candidate", wrong)
    assert bench(*TINY, "--train", "--cell", "gru", "--peers", "torch") == 1
    assert "GRU B=2 T=1 H=5 I=3: results of torch and fastrnn differ" in capsys.readouterr().err


def test_training_suite(
    bench: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shapes = [Shape("gru", T=T, B=3, I=4, H=4, train=True) for T in (1, 9)]
    monkeypatch.setitem(SUITES, "train", tuple(shapes))
    monkeypatch.setattr(cli, "LENGTHS", {("gru", 3, 9, 4)})
    monkeypatch.setattr(memory, "peak_bytes", lambda shape, threads: 2 * shape.bytes_needed)
    file = tmp_path / "run.json"
    command = ["--suite", "train", "--seconds", "0.001", "--repeats", "2", "--json", str(file)]
    assert bench(*command) == 0
    printed = capsys.readouterr().out

    run = Run.load(file)
    assert [entry.shape for entry in run.results] == shapes
    assert [entry.memory for entry in run.results] == [
        Memory(2 * shape.bytes_needed, shape.bytes_needed) for shape in shapes
    ]
    (lengths,) = run.lengths
    assert lengths.shape == shapes[1]
    assert len(lengths.ragged) == len(lengths.padded) == 2
    drawn = lengths.valid * 3 * 9
    assert drawn == pytest.approx(round(drawn))
    assert 3 <= round(drawn) <= 27

    assert bench("--load", str(file)) == 0
    assert capsys.readouterr().out == printed
    for peer in ("numpy", "onnxruntime"):
        if missing_package(peer) is None:
            assert f"No times of {peer}: it has the forward pass only." in printed
    assert "largest 2.00 (GRU B=3 T=1 H=4" in printed
    assert "of the padded time for" in printed
    assert "Our training step with rows of 1 to T steps" in printed


def test_a_peer_without_times_has_no_column(
    bench: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(shape: Shape, threads: int) -> int:
        raise memory.UnavailableError("nobody knows")

    monkeypatch.setattr(memory, "peak_bytes", unavailable)
    assert bench(*TINY, "--train", "--cell", "rnn", "--peers", "numpy") == 0
    lines = capsys.readouterr().out.splitlines()
    (titles,) = (line for line in lines if line.startswith("| cell"))
    assert "numpy" not in titles
    assert titles.endswith("| memory |")
    (row,) = (line for line in lines if line.startswith("| RNN  | B=2 T=3"))
    assert row.endswith("|      - |")
    assert lines.count("No memory of training steps: nobody knows.") == 1


def test_peak_memory_is_measured() -> None:
    shape = Shape("lstm", T=100, B=8, I=128, H=128, train=True)
    peak = memory.peak_bytes(shape, threads=1)
    # Wide: what is tested is the measurement. It is good to 0.1 MB, the step needs 3.4 MB.
    assert 0.9 < peak / shape.bytes_needed < 1.5
    longer = dataclasses.replace(shape, T=200)
    more = memory.peak_bytes(longer, threads=1) - peak
    assert more == pytest.approx(longer.bytes_needed - shape.bytes_needed, rel=0.2)


def test_memory_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shape = Shape("rnn", T=2, B=1, I=3, H=3, train=True)
    with pytest.raises(memory.UnavailableError, match="no attribute 'ELMAN'"):
        memory.peak_bytes(dataclasses.replace(shape, cell="elman"), threads=1)

    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "no" / "such")
    fields = json.dumps(dataclasses.asdict(shape))
    with pytest.raises(SystemExit, match=r"the system does not tell: .*No such file"):
        memory.main("1", fields)
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "clear_refs")
    status = tmp_path / "status"
    status.write_text("Name:\tpython\n", encoding="ascii")
    monkeypatch.setattr(memory, "_STATUS", status)
    with pytest.raises(SystemExit, match="has no VmRSS"):
        memory.main("1", fields)


def test_regularised_suite(
    bench: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    shapes = [Shape(cell, T=3, B=2, I=4, H=4, train=True) for cell in GATES]
    monkeypatch.setitem(SUITES, "regularised", tuple(shapes))
    compared: list[list[str]] = []
    complete = timing.measure

    def recorded(candidates: list[Candidate], *arguments: Any) -> timing.Measurement:
        compared.append([candidate.name for candidate in candidates])
        return complete(candidates, *arguments)

    monkeypatch.setattr(runner, "measure", recorded)
    file, picture = tmp_path / "run.json", tmp_path / "run.png"
    command = ["--suite", "regularised", "--cell", "lstm", "rnn", "--seconds", "0.001"]
    files = ["--json", str(file), "--plot", str(picture)]
    assert bench(*command, "--repeats", "2", *files) == 0
    printed = capsys.readouterr().out

    run = Run.load(file)
    assert not run.results
    assert [entry.shape for entry in run.regularised] == [shapes[0], shapes[2]]
    assert [list(entry.seconds) for entry in run.regularised] == compared
    assert compared == [list(regularised_options(cell)) for cell in ("lstm", "rnn")]
    for entry in run.regularised:
        assert {len(values) for values in entry.seconds.values()} == {2}
        assert entry.ratio("plain").median == 1.0

    assert bench("--load", str(file), "--plot", str(picture)) == 0
    assert capsys.readouterr().out == printed
    assert not picture.exists()
    assert "Nothing to plot" in printed
    assert "No times of peers: torch has no such cells" in printed
    assert "fastest peer" not in printed
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 9 + 7
    assert len({len(row) for row in rows}) == 1


def test_regularised_options() -> None:
    both = ["layer_norm=True", "recurrent_dropout=0.3", "input_dropout=0.3", "zoneout=0.1"]
    both.append("weight_drop=0.5")
    for cell in ("gru", "rnn"):
        assert list(regularised_options(cell)) == ["plain", *both, "all"]
    lstm = regularised_options("lstm")
    assert list(lstm) == ["plain", *both, "coupled=True", "clip=3.0", "all"]
    assert lstm["coupled=True"] == {"coupled": True}
    assert lstm["all"] == {
        "layer_norm": True,
        "recurrent_dropout": 0.3,
        "input_dropout": 0.3,
        "zoneout": 0.1,
        "weight_drop": 0.5,
    }


@pytest.mark.parametrize("cell", GATES)
def test_options_are_at_work(cell: str) -> None:
    problem = Problem.create(Shape(cell, T=9, B=3, I=4, H=4, train=True))
    engine = FastRNN(threads=1)
    plain = engine.candidate(problem).result()
    for name, options in regularised_options(cell).items():
        # These cell states are too small for a clip at 3.
        given = {"clip": 0.01} if "clip" in options else options
        output, *_ = engine.regularised_step(problem, given).result()
        assert np.array_equal(output, plain[0]) == (name == "plain")
    for actual, expected in zip(engine.regularised_step(problem, {}).result(), plain, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_files_from_before_training_load(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    run = Run(ENVIRONMENT, [result(Shape("gru", T=1, B=1, I=8, H=8), fastrnn=[1e-6])])
    run.save(file)
    data = json.loads(file.read_text("utf-8"))
    del data["lengths"], data["regularised"]
    del data["results"][0]["memory"], data["results"][0]["shape"]["train"]
    file.write_text(json.dumps(data), "utf-8")
    assert Run.load(file) == run


def test_interrupt_keeps_what_was_measured(
    bench: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    complete = timing.measure

    def interrupted(candidates: Any, *arguments: Any) -> Any:
        if capsys.readouterr().out.count("LSTM"):
            raise KeyboardInterrupt
        return complete(candidates, *arguments)

    monkeypatch.setattr(runner, "measure", interrupted)
    file = tmp_path / "run.json"
    assert bench(*TINY, "--peers", "numpy", "--json", str(file)) == 130
    assert "Interrupted" in capsys.readouterr().out
    assert len(Run.load(file).results) == 1


def test_unsupported_type_is_said(bench: Command, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    double = ("--dtype", "float64", "--peers", "numpy", "onnxruntime")
    assert bench(*TINY, *double, "--cell", "gru") == 0
    printed = capsys.readouterr().out
    assert printed.count("No times of onnxruntime: its recurrent operators are float32 only.") == 1
    assert "largest scaled difference: numpy" in printed


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "run.json", tmp_path / "run.png"
    shapes = [Shape("gru", T=1, B=1, I=8, H=8), Shape("rnn", T=9, B=1, I=8, H=8)]
    results = [
        result(shapes[0], fastrnn=[1e-6], numpy=[3e-6]),
        result(shapes[1], fastrnn=[1e-5], torch=[9e-6]),
    ]
    Run(ENVIRONMENT, results).save(file)
    assert cli.main(["--load", str(file), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "marathon"], "--suite: invalid choice: 'marathon'"),
        (["--cell", "elman"], "--cell: invalid choice: 'elman'"),
        (["--H", "0"], "--H: expected an integer >= 1, got '0'"),
        (["--T", "many"], "--T: expected an integer >= 1, got 'many'"),
        (["--threads", "-1"], "--threads: expected an integer >= 1, got '-1'"),
        (["--seconds", "nan"], "--seconds: expected a number > 0, got 'nan'"),
        (["--repeats", "0"], "--repeats: expected an integer >= 1, got '0'"),
        (["--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["--dtype", "float16"], "--dtype: expected float32 or float64 on a CPU, got float16"),
        (["--device", "cuda", "--plot", "run.png"], "--plot: expected --device cpu"),
        (["--json", "no/such/folder/run.json"], "--json: expected a file in an existing folder"),
        (["--suite", "latency", "--H", "7"], "--suite latency has no shape that matches"),
        (["--load", "no-such-file"], "--load: no-such-file is not a file that --json wrote"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        cli.main(arguments)
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "package"),
    [(["--plot", "run.png"], "matplotlib"), (["--peers", "onnxruntime"], "onnx")],
)
def test_missing_package_names_the_extra(
    arguments: list[str],
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(SystemExit) as exit_status:
        cli.main(arguments)
    assert exit_status.value.code == 2
    assert not list(tmp_path.iterdir())
    message = capsys.readouterr().err
    assert package in message
    assert "pip install 'fastrnn[bench]'" in message


def test_commands(bench: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert fastrnn.__main__.main(["config"]) == 0
    assert f"fastrnn {fastrnn.__version__}" in capsys.readouterr().out
    assert fastrnn.__main__.main(["bench", *TINY, "--cell", "rnn", "--peers", "numpy"]) == 0
    assert "RNN B>1" in capsys.readouterr().out


def test_bench_does_not_import_peers_it_does_not_use() -> None:
    code = (
        "import sys, fastrnn.__main__\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_selected_shapes() -> None:
    def select(*arguments: str) -> list[Shape]:
        parser = argparse.ArgumentParser()
        cli.add_arguments(parser)
        return cli.select_shapes(parser.parse_args(arguments))

    assert select() == list(SUITES["quick"])
    assert select("--suite", "rnn", "--cell", "gru", "--B", "64", "--H", "1024") == [
        Shape("gru", T=50, B=64, I=1024, H=1024)
    ]
    assert select("--cell", "lstm", "--H", "7", "8", "--H", "9", "--layers", "2") == [
        Shape("lstm", T=100, B=1, I=H, H=H, layers=2) for H in (7, 8, 9)
    ]
    assert {shape.dtype for shape in select("--dtype", "float64")} == {"float64"}

    assert select("--suite", "train", "--cell", "gru", "--B", "64", "--H", "1024") == [
        Shape("gru", T=50, B=64, I=1024, H=1024, train=True)
    ]
    trained = select("--suite", "rnn", "--train")
    assert trained == [dataclasses.replace(shape, train=True) for shape in SUITES["rnn"]]
    assert not any(shape.step for shape in trained)


@pytest.mark.parametrize("suite", SUITES)
def test_suites_repeat_nothing(suite: str) -> None:
    assert len(set(SUITES[suite])) == len(SUITES[suite])
    assert len({(shape.cell, shape.label) for shape in SUITES[suite]}) == len(SUITES[suite])


def test_lengths_are_of_the_training_suite() -> None:
    sizes = {(shape.cell, shape.B, shape.T, shape.H) for shape in SUITES["train"]}
    assert sizes >= LENGTHS
    assert all(shape.train for shape in SUITES["train"])


def test_regularised_shapes() -> None:
    assert list(SUITES["regularised"]) == [
        Shape(cell, T=50, B=32, I=256, H=256, train=True) for cell in ("lstm", "gru", "rnn")
    ]


def test_large_shapes_are_named_and_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "fma_peak", lambda *_: 4e11)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2e9)
    small = Shape("lstm", T=25, B=16, I=512, H=512)
    slow = Shape("gru", T=1500, B=32, I=1024, H=1024)
    wide = Shape("lstm", T=1, B=1, I=4096, H=4096)
    # 0.8 s per call, but what is judged is its forward pass.
    trained = Shape("lstm", T=100, B=16, I=2048, H=2048, train=True)
    run = Run(ENVIRONMENT)
    assert trained.flops > 0.75 * 4e11
    assert runner.drop_large(run, [small, slow, trained, wide], threads=1) == [small, trained]
    assert run.notes == [
        "Skipped GRU B=32 T=1500 H=1024: 1.5 s per call even at the FMA peak.",
        "Skipped LSTM B=1 T=1 H=4096: every engine needs about 1 of 2 GB memory.",
    ]


def test_work_of_a_shape() -> None:
    shape = Shape("gru", T=10, B=2, I=3, H=5, layers=2, bidirectional=True)
    # Layer 0 reads 3 inputs and layer 1 reads 10, each with 15 rows of gates, in two directions.
    assert shape.input_weights == 2 * 15 * (3 + 10)
    assert shape.recurrent_weights == 2 * 2 * 15 * 5
    assert shape.flops == 2 * 10 * 2 * (390 + 300)
    assert shape.bytes_read == 4 * (390 + 10 * 300)
    assert not Shape("gru", T=1, B=1, I=3, H=5, bidirectional=True).step
    step = Shape("rnn", T=1, B=1, I=3, H=5, dtype="float64")
    assert step.step
    assert step.bytes_reused == step.bytes_read == 8 * (15 + 25)


def test_work_of_a_training_step() -> None:
    forward = Shape("lstm", T=10, B=2, I=3, H=5, layers=2, bidirectional=True)
    shape = dataclasses.replace(forward, train=True)
    assert shape.flops == 3 * forward.flops
    assert shape.bytes_read == 2 * forward.bytes_read
    assert shape.bytes_reused == forward.bytes_reused
    # 400 units: each of two layers, two directions, 10 steps and 2 rows has 5.
    kept = 400 * (4 + 1 + 1)
    parameters = sum(array.size for array in Problem.create(shape).weights.values())
    # Of the input (10, 2, 3), and of the output (10, 2, 10) of the first layer.
    gradients = parameters + 60 + 200
    assert shape.bytes_needed == 4 * (kept + gradients)
    gru, rnn = (Shape(cell, T=4, B=1, I=5, H=5, train=True) for cell in ("gru", "rnn"))
    assert gru.bytes_needed == 4 * (20 * (4 + 1) + 15 * (5 + 5 + 2) + 20)
    assert rnn.bytes_needed == 4 * (20 * (1 + 1) + 5 * (5 + 5 + 2) + 20)
    assert shape.bytes_held > shape.bytes_needed
    assert [Shape("rnn", T=1, B=B, I=5, H=5, train=True).regime for B in (1, 2)] == [
        "B=1 training",
        "B>1 training",
    ]
    assert not Shape("rnn", T=1, B=1, I=5, H=5, train=True).step


def test_numbers_of_a_result() -> None:
    shape = Shape("rnn", T=1, B=2, I=50, H=50)  # 20 000 operations, 20 000 bytes
    measured = result(
        shape,
        fastrnn=[1e-4, 2e-4, 1e-4],
        numpy=[9e-4, 9e-4, 9e-4],
        torch=[2e-4, 3e-4, 3e-4],
        onnxruntime=[1e-3, 1e-5, 1e-3],  # its best round is the best of all, its median is not
    )
    assert measured.best_peer == "torch"
    assert measured.ratio is not None
    # Round by round 2, 1.5 and 3; the ratio of the medians would be 3.
    assert measured.ratio.median == pytest.approx(2.0)
    assert (measured.ratio.low, measured.ratio.high) == pytest.approx((1.75, 2.5))
    assert measured.time("fastrnn").spread == pytest.approx(0.25)
    assert measured.flop_rate == pytest.approx(2e8)
    assert measured.peak_fraction == pytest.approx(0.2)
    assert measured.roof == pytest.approx([2e-5] * 3)
    assert measured.roof_fraction == pytest.approx(0.2)
    assert result(shape, fastrnn=[1.0]).ratio is None


def test_numbers_of_lengths_and_memory() -> None:
    shape = Shape("rnn", T=9, B=2, I=5, H=5, train=True)
    lengths = Lengths(shape, 0.5, ragged=[1.0, 3.0, 1.0], padded=[2.0, 4.0, 5.0])
    assert lengths.fraction.median == pytest.approx(0.5)  # round by round 0.5, 0.75 and 0.2
    assert Memory(peak=30, needed=20).ratio == 1.5
    forward = dataclasses.replace(shape, train=False)
    done = [result(one, fastrnn=[1.0]) for one in (shape, forward)]
    assert Run(ENVIRONMENT, done[:1]).work == "training"
    assert Run(ENVIRONMENT, done[1:]).work == "forward"
    assert Run(ENVIRONMENT, done).work == "forward and training"


def test_numbers_of_regularised_cells() -> None:
    shape = Shape("rnn", T=9, B=2, I=5, H=5, train=True)
    seconds = {"plain": [2.0, 4.0, 5.0], "zoneout=0.1": [3.0, 4.0, 10.0]}
    measured = Regularised(shape, seconds)
    assert measured.time("plain").median == 4.0
    # Round by round 1.5, 1 and 2; the ratio of the medians would be 1.
    assert measured.ratio("zoneout=0.1").median == pytest.approx(1.5)
    rows = report.RegularisedTable([shape]).rows(measured).splitlines()
    assert [[cell.strip() for cell in row.split("|")[3:-1]] for row in rows] == [
        ["plain", "4.00 s", "19%", "-"],
        ["zoneout=0.1", "4.00 s", "44%", "1.50 (1.25 to 1.75)"],
    ]


def test_groups() -> None:
    step, sequence = (Shape("gru", T=T, B=1, I=8, H=8) for T in (1, 9))
    batches = [Shape("gru", T=9, B=B, I=8, H=8) for B in (8, 32, 64)]
    ratios = [2.0, 4.0, 0.5, 1.0, 4.0]
    results = [
        result(shape, fastrnn=[1.0], torch=[ratio])
        for shape, ratio in zip([step, sequence, *batches], ratios, strict=True)
    ]
    summaries = groups([*results, result(step, fastrnn=[1.0])])
    assert [summary.name for summary in summaries] == [
        "GRU B=1 step",
        "GRU B=1 sequence",
        "GRU B>1",
    ]
    last = summaries[2]
    assert (last.count, last.losses, last.worst) == (3, 1, 0.5)
    assert last.worst_label == "B=8 T=9 H=8"
    assert last.mean == pytest.approx(2 ** (1 / 3))


def test_losses_are_shown() -> None:
    shape = Shape("lstm", T=1, B=1, I=8, H=8)
    table = report.Table([shape], ["torch"])
    lost = table.row(result(shape, fastrnn=[2.0], torch=[1.0]))
    won = table.row(result(shape, fastrnn=[1.0], torch=[2.0]))
    assert "slower" in lost
    assert "slower" not in won
    lines = [*table.head().splitlines(), lost, won]
    assert {len(line) for line in lines} == {len(lost)}
    assert "memory" not in lines[0]


def test_memory_has_a_column() -> None:
    shape = Shape("lstm", T=9, B=1, I=8, H=8, train=True)
    measured = result(shape, fastrnn=[2.0])
    table = report.Table([shape], [])
    known = table.row(dataclasses.replace(measured, memory=Memory(peak=105, needed=100)))
    unknown = table.row(measured)
    lines = [*table.head().splitlines(), known, unknown]
    assert {len(line) for line in lines} == {len(known)}
    assert [line.split("|")[-2].strip() for line in lines] == ["memory", "-----:", "1.05", "-"]


def test_rounds_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "settle", lambda: order.append("pause"))
    monkeypatch.setattr(timing, "_WARM", 0.0)

    def probe() -> float:
        order.append("p")
        return 1.0

    candidates = [Candidate(name, partial(order.append, name), lambda _: []) for name in "ab"]
    # With a budget below one call's time, every batch is one warm and one timed call.
    measured = timing.measure(candidates, {"p": probe}, 1e-9, 5)
    calibration = ["pause", "a", "a", "pause", "b", "b"]
    assert order == calibration + [*calibration, "pause", "p", "p"] * timing.MIN_ROUNDS
    assert measured.calls == {"a": 1, "b": 1}
    assert {name: len(values) for name, values in measured.seconds.items()} == {"a": 3, "b": 3}
    assert measured.probes == {"p": [1.0, 1.0, 1.0]}
