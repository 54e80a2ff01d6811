"""The feed-forward's activation, with bits that do not depend on where in the batch a row lies."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

_VECTOR_ELEMENTS = 64
"""At least what torch's CPU kernels take in one step, in any dtype and instruction set. What is left over at the end
of a run goes through scalar code, whose exponential has other bits."""

_GRAIN_ELEMENTS = 32768
"""torch gives no thread fewer elements than this."""

_GELU_ALONE_ELEMENTS = 16384
"""Except in GELU, which more elements than this divide evenly among all threads."""

Activation = Callable[[torch.Tensor], torch.Tensor]

ALIGNED: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
"""What is one kernel over all elements, by the name that configs give it."""


class AlignedActivation(torch.nn.Module):
    """An activation whose CPU threads each get a run of whole vector steps.

    torch cuts a tensor into equal runs, one a thread, wherever that falls. Each run ends with scalar code unless its
    length is a multiple of a step, and which element that hits depends on the number of rows. So the input is padded
    until all runs are. Common shapes need no padding and cost nothing.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._function = ALIGNED[name]
        self._num_runs = _gelu_runs if name.startswith("gelu") else _runs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return self._function(x)
        num_elements = x.numel()
        padding = -num_elements % (self._num_runs(num_elements) * _VECTOR_ELEMENTS)
        if not padding and x.is_contiguous():
            return self._function(x)
        return self._function(F.pad(x.reshape(-1), (0, padding)))[:num_elements].view(x.shape)


def _runs(num_elements: int) -> int:
    return min(torch.get_num_threads(), max(1, -(-num_elements // _GRAIN_ELEMENTS)))


def _gelu_runs(num_elements: int) -> int:
    return torch.get_num_threads() if num_elements > _GELU_ALONE_ELEMENTS else 1


def align_activations(hf: torch.nn.Module, name: str) -> None:
    """Replace the activation called `name` wherever a transformers model has it. One that is not in ALIGNED is left."""
    if name not in ALIGNED:
        return
    kind = type(ACT2FN[name])
    for module in list(hf.modules()):
        for attribute, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, attribute, AlignedActivation(name))
