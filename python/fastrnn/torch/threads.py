"""Has the kernels run on torch's own threads.

OpenMP workers spin for milliseconds after an operation of torch, on the cores that a second pool of
threads would need. So the kernels borrow them; ``torch.set_num_threads`` then holds for both.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from fastrnn import functional

__all__ = ["borrow"]

_FUNCTIONS = (
    "GOMP_parallel",
    "omp_in_parallel",
    "omp_get_dynamic",
    "omp_get_thread_limit",
    "omp_get_max_threads",
)


def borrow() -> bool:
    """Borrow the threads of the OpenMP runtime that torch has loaded, if it is one we know."""
    runtimes = _loaded_runtimes()
    if len(runtimes) != 1:  # none that we can find, or no way to know which is torch's
        return False
    try:
        runtime = ctypes.CDLL(runtimes[0], mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        functions = [getattr(runtime, name) for name in _FUNCTIONS]
    except (OSError, AttributeError):
        return False
    addresses = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    functional.borrow_threads_of(*(address for address in addresses if address))
    return True


def _loaded_runtimes() -> list[str]:
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted(set(re.findall(r"/\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*", maps)))
