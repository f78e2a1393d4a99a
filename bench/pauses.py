"""How much longer a call takes after a pause than right after another call.

Workers sleep, caches cool down and cores slow down meanwhile. Run it from a checkout:
``python bench/pauses.py``.
"""

from __future__ import annotations

import time

import fastrnn
import numpy as np

SHAPES = ((1, 100, 64), (8, 30, 128), (8, 50, 256), (32, 20, 512), (32, 20, 1024))  # B, T, H
PAUSES = (0.0, 1e-3, 30e-3)  # seconds
CALLS = 40


def seconds(layer: fastrnn.LSTM, x: np.ndarray, pause: float) -> float:
    """Median time of calls that follow a pause."""
    times = []
    for _ in range(CALLS):
        time.sleep(pause)
        start = time.perf_counter()
        layer(x)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Print a line per shape."""
    for B, T, H in SHAPES:
        layer = fastrnn.LSTM(H, H, seed=0).eval()
        x = np.ones((T, B, H), np.float32)
        layer(x)
        first, *others = (seconds(layer, x, pause) for pause in PAUSES)
        ratios = ", ".join(
            f"{other / first:.2f} times as long after {pause * 1e3:.0f} ms"
            for other, pause in zip(others, PAUSES[1:], strict=True)
        )
        print(f"LSTM B={B} T={T} H={H}: {first * 1e6:.0f} us, {ratios}")


if __name__ == "__main__":
    main()
