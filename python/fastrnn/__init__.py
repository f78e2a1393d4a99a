"""Recurrent networks at the speed of the machine, behind the interface of ``torch.nn``.

`RNN`, `LSTM` and `GRU` take the arguments of their ``torch.nn`` namesakes, load their weights, and
run fused C++ kernels on NumPy arrays.
"""

from fastrnn import losses, optimizers
from fastrnn.functional import Tape, __version__, get_num_threads, set_num_threads, show_config
from fastrnn.recurrent import GRU, LSTM, RNN, Gradients
from fastrnn.truncation import Window, tbptt

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Gradients",
    "Tape",
    "Window",
    "__version__",
    "get_num_threads",
    "losses",
    "optimizers",
    "set_num_threads",
    "show_config",
    "tbptt",
]
