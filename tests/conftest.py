from __future__ import annotations

from collections.abc import Iterator

import fastrnn
import numpy as np
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Deselected and not skipped, so that a skip always means something is not installed.
    if config.getoption("--slow"):
        return
    slow = [item for item in items if "slow" in item.keywords]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]


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
