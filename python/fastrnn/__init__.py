"""Recurrent networks at the speed of the machine, behind the interface of ``torch.nn``.

`RNN`, `LSTM` and `GRU` take the arguments of their ``torch.nn`` namesakes, load their weights, and
run fused C++ kernels on NumPy arrays. `Sequential` trains stacks of them and of other layers.
"""

from typing import TYPE_CHECKING, Any

from fastrnn import callbacks, losses, metrics, optimizers
from fastrnn.attention import Attention
from fastrnn.callbacks import History
from fastrnn.functional import Tape, __version__, get_num_threads, set_num_threads, show_config
from fastrnn.gradient_flow import GradientFlow, gradient_flow
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

if TYPE_CHECKING:
    from fastrnn.estimators import SequenceClassifier, SequenceRegressor

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
    "GradientFlow",
    "Gradients",
    "History",
    "Last",
    "Layer",
    "LayerNorm",
    "Pool",
    "RecursiveNetwork",
    "Repeat",
    "Residual",
    "SequenceClassifier",
    "SequenceRegressor",
    "Sequential",
    "Tape",
    "TreeLSTM",
    "Trees",
    "Vocabulary",
    "Window",
    "__version__",
    "callbacks",
    "get_num_threads",
    "gradient_flow",
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

# They import scikit-learn, so it takes someone who asks for them.
_ESTIMATORS = ("SequenceClassifier", "SequenceRegressor")


def __getattr__(name: str) -> Any:
    if name in _ESTIMATORS:
        from fastrnn import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ESTIMATORS})
