"""torch.nn's recurrent modules with the kernels inside; torch is needed for this module only.

`RNN`, `LSTM`, `GRU`, `RNNCell`, `LSTMCell` and `GRUCell` are subclasses of torch.nn's: the same
arguments, parameters, ``state_dict`` and results. `replace` puts them into an existing model.

What the kernels do not have, such as half precision and devices other than the CPU, runs as torch's
own modules do. Under autocast the kernels compute in the dtype of the parameters.

Packed weights are used again as long as torch's version counters say that no parameter has changed.
Writes through ``.data`` are not counted; they are found by looking at every value in training mode,
and at one value in every row in evaluation mode. So change single elements of a parameter under
``torch.no_grad()``, not through ``.data``, where the module is in evaluation mode.

Examples
--------
>>> import torch, fastrnn.torch
>>> model = torch.nn.Sequential(torch.nn.LSTM(8, 16, num_layers=2))
>>> fastrnn.torch.replace(model)
Replacement(replaced=['0'], left={})
>>> output, (h, c) = model(torch.zeros(5, 3, 8))
"""

from fastrnn.torch import modules, threads, tracing
from fastrnn.torch.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.torch.replacement import Replacement, replace, restore

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Replacement",
    "replace",
    "restore",
]

threads.borrow()
tracing.allow(modules.Sequence)
