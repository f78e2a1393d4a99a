"""The examples of fastrnn.torch: training in two processes, and a swap in a trained model."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: str, timeout: float = 300) -> str:
    """Run Python in a process of its own and return what it printed."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",  # torchrun warns where it is not set
        "GLOO_SOCKET_IFNAME": "lo",
        "RES_OPTIONS": "timeout:1 attempts:1",  # torchrun asks for this host's full name
    }
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # not kill: the launcher has to end its workers
        output, errors = process.communicate()
        pytest.fail(f"not done after {timeout} s\n{output}{errors}")
    assert process.returncode == 0, output + errors
    return output


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\S+)", output)]


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    options = (str(EXAMPLES / "ddp_train.py"), "--double", "--steps", "10", "--threads", "1")
    alone = run(*options, "--save", str(one))
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--local-addr=127.0.0.1")
    rendezvous = ("--master-addr=127.0.0.1", f"--master-port={free_port()}")
    together = run(*launcher, *rendezvous, *options, "--save", str(two))

    assert "processes 1," in alone
    assert "processes 2," in together
    first, last = losses(alone)
    assert last < first - 0.01
    assert losses(together) == pytest.approx([first, last], abs=2e-6)  # six digits are printed
    expected, found = torch.load(one), torch.load(two)
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert parameter.dtype == torch.float64
        scale = parameter.abs().max().item()
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-12 * scale)


def test_example_replaces_in_a_trained_model() -> None:
    pytest.importorskip("sklearn")
    quick = ("--epochs", "3", "--hidden", "32", "--rounds", "1", "--threads", "1")
    output = run(str(EXAMPLES / "replace_in_model.py"), *quick)
    assert re.search(r"replaced +lstm\n", output), output
    assert re.search(r"differing predictions +0 of 450\n", output), output
    difference = re.search(r"logits differ by +(\S+)", output)
    assert difference
    assert float(difference[1]) < 1e-5
    table = dict(re.findall(r"^(test accuracy|loss, one epoch later) +(\S+ +\S+)$", output, re.M))
    before, after = map(float, table["test accuracy"].split())
    assert before == after > 0.2  # guesses get 0.1
    theirs, ours = map(float, table["loss, one epoch later"].split())
    assert ours == pytest.approx(theirs, rel=1e-3)
    for row in ("training epoch", "450 predictions"):
        assert re.search(rf"{row} +\S+ ms +\S+ ms +ratio \S+\n", output), output
