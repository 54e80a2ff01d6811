"""The feed-forward's activation, with bits that do not depend on where in the batch a row lies."""

import torch
import torch.nn.functional as F

_VECTOR_ELEMENTS = 64
"""At least what torch's CPU kernels take in one step, in any dtype and instruction set. What is left over at the end
of a run goes through scalar code, whose exponential has other bits."""

_GRAIN_ELEMENTS = 32768
"""torch gives no thread fewer elements than this."""


class AlignedSiLU(torch.nn.Module):
    """SiLU whose CPU threads each get a run of whole vector steps.

    torch cuts a tensor into equal runs, one a thread, wherever that falls. Each run ends with scalar code unless its
    length is a multiple of a step, and which element that hits depends on the number of rows. So the input is padded
    until all runs are. Common shapes need no padding and cost nothing.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        num_elements = x.numel()
        threads = min(torch.get_num_threads(), max(1, -(-num_elements // _GRAIN_ELEMENTS)))
        padding = -num_elements % (threads * _VECTOR_ELEMENTS)
        if not padding or x.device.type != "cpu":
            return F.silu(x)
        return F.silu(F.pad(x.reshape(-1), (0, padding)))[:num_elements].view(x.shape)


def align_activations(hf: torch.nn.Module) -> None:
    """Replace the SiLU of every feed-forward of a transformers model; other activations are left as they are."""
    for module in list(hf.modules()):
        if is_silu(getattr(module, "act_fn", None)):
            module.act_fn = AlignedSiLU()


def is_silu(activation: object) -> bool:
    """Whether this is SiLU, as torch or transformers spell it."""
    return type(activation).__name__ in {"SiLU", "SiLUActivation"}
