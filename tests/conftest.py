from __future__ import annotations

from collections.abc import Iterator

import fastrnn
import numpy as np
import pytest
from fastrnn import functional

# What runs without a GPU in an emulated build, where device memory is host memory, and what does
# not; but for tests that are marked.
EMULATED_FILES = ("test_cuda.py", "test_torch_cuda.py")
GPU_FILES = ("test_gpu.py",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")
    config.addinivalue_line("markers", "anywhere: of a file about GPUs, but needs none")
    config.addinivalue_line("markers", "emulated: of a file about GPUs; needs an emulated build")
    config.addinivalue_line("markers", "without_gpu: of a file about GPUs; runs where none is")


def has_gpu() -> bool:
    """Whether this is a build for GPUs, on a machine with one."""
    try:
        return functional.cuda_build() == "cuda" and functional.cuda_device_count() > 0
    except RuntimeError:
        return False


def runs_here(item: pytest.Item, slow: bool, gpu: bool, emulated: bool) -> bool:
    marks = {mark.name for mark in item.iter_markers()}
    if "slow" in marks and not slow:
        return False
    if "without_gpu" in marks:
        return not (gpu or emulated)
    if "emulated" in marks:
        return emulated
    if "anywhere" in marks or gpu:
        return True
    return item.path.name not in (GPU_FILES if emulated else (*GPU_FILES, *EMULATED_FILES))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Deselected and not skipped, so that a skip always means something is not installed.
    here = config.getoption("--slow"), has_gpu(), functional.cuda_build() == "emulated"
    chosen: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        (chosen if runs_here(item, *here) else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20140603)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread_for_torch() -> Iterator[None]:
    """Its operators are tiny here, and so many that waking threads for them takes minutes."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
