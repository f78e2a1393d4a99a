"""Recurrent networks at the speed of the machine, behind the interface of ``torch.nn``.

`RNN`, `LSTM` and `GRU` take the arguments of their ``torch.nn`` namesakes, load their weights, and
run fused C++ kernels on NumPy arrays. `Sequential` trains stacks of them and of other layers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastrnn.functional import Tape, __version__, get_num_threads, set_num_threads, show_config
from fastrnn.layer import Gradients, Layer
from fastrnn.recurrent import GRU, LSTM, RNN
from fastrnn.truncation import Window, tbptt

if TYPE_CHECKING:
    from fastrnn import callbacks, cuda, losses, metrics, optimizers
    from fastrnn.attention import Attention
    from fastrnn.autoencoders import (
        Autoencoder,
        ContractiveAutoencoder,
        ConvolutionalAutoencoder,
        DenoisingAutoencoder,
        GeometryRegularizedAutoencoder,
        SequenceAutoencoder,
        SparseAutoencoder,
        VariationalAutoencoder,
    )
    from fastrnn.callbacks import History
    from fastrnn.containers import Channels, Residual
    from fastrnn.convolution import Convolution, Flatten, Reshape, TransposedConvolution
    from fastrnn.diagnostics import GradientFlow, gradient_flow
    from fastrnn.estimators import SequenceClassifier, SequenceRegressor
    from fastrnn.layers import (
        Activation,
        BatchNorm,
        Dense,
        Dropout,
        Embedding,
        Ends,
        Last,
        LayerNorm,
        Pool,
        Repeat,
    )
    from fastrnn.models import Sequential
    from fastrnn.rbfn import RBFNClassifier, RBFNRegressor
    from fastrnn.seq2seq import Seq2Seq
    from fastrnn.sequences import Vocabulary, one_hot, pad_sequences, sliding_windows
    from fastrnn.trees import RecursiveNetwork, TreeLSTM, Trees

# Whoever wants a layer that runs does not wait for the trainer: the rest is imported when it is
# first asked for.
_MODULES = ("callbacks", "cuda", "losses", "metrics", "optimizers")
_HOMES = {
    "Attention": "attention",
    "History": "callbacks",
    "SequenceClassifier": "estimators",
    "SequenceRegressor": "estimators",
    "GradientFlow": "diagnostics",
    "gradient_flow": "diagnostics",
    "Autoencoder": "autoencoders",
    "ContractiveAutoencoder": "autoencoders",
    "ConvolutionalAutoencoder": "autoencoders",
    "DenoisingAutoencoder": "autoencoders",
    "GeometryRegularizedAutoencoder": "autoencoders",
    "SequenceAutoencoder": "autoencoders",
    "SparseAutoencoder": "autoencoders",
    "VariationalAutoencoder": "autoencoders",
    "Convolution": "convolution",
    "Flatten": "convolution",
    "Reshape": "convolution",
    "TransposedConvolution": "convolution",
    "Activation": "layers",
    "BatchNorm": "layers",
    "Dense": "layers",
    "Dropout": "layers",
    "Embedding": "layers",
    "Ends": "layers",
    "Last": "layers",
    "LayerNorm": "layers",
    "Pool": "layers",
    "Repeat": "layers",
    "Channels": "containers",
    "Residual": "containers",
    "Sequential": "models",
    "Seq2Seq": "seq2seq",
    "Vocabulary": "sequences",
    "one_hot": "sequences",
    "pad_sequences": "sequences",
    "sliding_windows": "sequences",
    "RBFNClassifier": "rbfn",
    "RBFNRegressor": "rbfn",
    "RecursiveNetwork": "trees",
    "TreeLSTM": "trees",
    "Trees": "trees",
}

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Attention",
    "Autoencoder",
    "BatchNorm",
    "Channels",
    "ContractiveAutoencoder",
    "Convolution",
    "ConvolutionalAutoencoder",
    "DenoisingAutoencoder",
    "Dense",
    "Dropout",
    "Embedding",
    "Ends",
    "Flatten",
    "GeometryRegularizedAutoencoder",
    "GradientFlow",
    "Gradients",
    "History",
    "Last",
    "Layer",
    "LayerNorm",
    "Pool",
    "RBFNClassifier",
    "RBFNRegressor",
    "RecursiveNetwork",
    "Repeat",
    "Reshape",
    "Residual",
    "Seq2Seq",
    "SequenceAutoencoder",
    "SequenceClassifier",
    "SequenceRegressor",
    "Sequential",
    "SparseAutoencoder",
    "Tape",
    "TransposedConvolution",
    "TreeLSTM",
    "Trees",
    "VariationalAutoencoder",
    "Vocabulary",
    "Window",
    "__version__",
    "callbacks",
    "cuda",
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


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
