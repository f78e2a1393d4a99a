"""torch.nn's recurrent modules with the kernels inside; torch is needed for this module only.

`RNN`, `LSTM`, `GRU`, `RNNCell`, `LSTMCell` and `GRUCell` are subclasses of torch.nn's: the same
arguments, parameters, ``state_dict`` and results. `replace` puts them into an existing model.

On the CPU the kernels have float32 and float64. A build with CUDA has them for tensors on NVIDIA
GPUs, too, with float16 and bfloat16 besides. All else, such as other devices, runs as torch's own
modules do. Under autocast the kernels compute in the dtype of the parameters on the CPU, and in
autocast's dtype on a GPU.

On a GPU, work goes to torch's current stream, memory comes from torch's allocator, and no call
waits for the GPU; so CUDA graphs can capture forward and backward. Three things follow:

* ``lengths`` that are on a GPU are not looked at: those outside of 0..T count as 0 or T. Those on
  the host are checked and copied, which a graph cannot capture.
* The seed of dropout and zoneout is drawn from torch's CPU generator (``torch.manual_seed``). A
  graph would draw it once, so a call that draws masks raises an error where a graph is captured.
* Products of float32 use TF32 if torch's matrix products may: not unless it is asked for, as by
  ``torch.set_float32_matmul_precision("high")``.

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
