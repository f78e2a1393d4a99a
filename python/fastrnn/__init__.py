"""Recurrent networks at the speed of the machine, behind the interface of ``torch.nn``.

`RNN`, `LSTM` and `GRU` take the arguments of their ``torch.nn`` namesakes, load their weights, and
run fused C++ kernels on NumPy arrays. `Sequential` trains stacks of them and of other layers.
"""

from fastrnn import callbacks, losses, metrics, optimizers
from fastrnn.attention import Attention
from fastrnn.callbacks import History
from fastrnn.functional import Tape, __version__, get_num_threads, set_num_threads, show_config
from fastrnn.layer import Gradients, Layer
from fastrnn.layers import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    Embedding,
    Last,
    LayerNorm,
    Pool,
    Repeat,
    Residual,
)
from fastrnn.models import Sequential
from fastrnn.recurrent import GRU, LSTM, RNN
from fastrnn.sequences import Vocabulary, one_hot, pad_sequences, sliding_windows
from fastrnn.trees import RecursiveNetwork, TreeLSTM, Trees
from fastrnn.truncation import Window, tbptt

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Attention",
    "BatchNorm",
    "Dense",
    "Dropout",
    "Embedding",
    "Gradients",
    "History",
    "Last",
    "Layer",
    "LayerNorm",
    "Pool",
    "RecursiveNetwork",
    "Repeat",
    "Residual",
    "Sequential",
    "Tape",
    "TreeLSTM",
    "Trees",
    "Vocabulary",
    "Window",
    "__version__",
    "callbacks",
    "get_num_threads",
    "losses",
    "metrics",
    "one_hot",
    "optimizers",
    "pad_sequences",
    "set_num_threads",
    "show_config",
    "sliding_windows",
    "tbptt",
]
