"""Weights of the layers' matrix products, in the order in which the CPU's kernels read them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from .decoder import Decoder
from .layers import Weights, is_hooked, packs, taken

DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(torch.nn.Linear):
    """A linear layer whose weight lies in blocks, as oneDNN's products for this CPU take it: they need not sort it each time.

    It takes the layer's place, memory and all: `weight` is no longer a plain tensor; `state_dict` has it as it was. What
    torch.compile does to a frozen model. Rows have the same bits in any number of rows but one.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)  # Linear's would draw another weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())  # noqa: SLF001 - torch has no public name for it
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - the same
            x, self.weight, self.bias, "none", [], ""
        )
        return product

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:  # noqa: FBT001 - torch's own
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.detach().to_dense()


@contextmanager
def packing(hf: Any, stored: torch.dtype | None = None) -> Iterator[Decoder | None]:
    """Pack the layers of a transformers model on the CPU, beside what is done within, which must not compute with it.

    Decoder layers whole where engine/decoder.py computes them, and gives what does; elsewhere their linear layers; not the last product,
    which has few rows and may share its weight, nor what is packed already, or hooked. Does nothing where this processor or dtype has no
    such products. Threads of its own do it: half of the time goes into new memory, and the GIL is free for nearly all of it. Meanwhile
    the decoder's kernel is loaded for a pool of the dtype `stored`.
    """
    if not _has_packed(torch.device(hf.device), hf.dtype):
        yield None
        return
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="kvtide-packing") as threads:
        weights, packed = taken(hf), []
        if weights is None and packs(hf):
            weights, layers = Weights(hf), hf.model.layers
            packed = [threads.submit(weights.take, layers, number) for number in range(len(layers))]
        elif weights is None:
            packed = [threads.submit(_pack, *place) for place in list(_places(hf))]
        decoder = None if weights is None else Decoder(hf, weights)
        if decoder is not None and stored is not None:
            decoder.prepare(stored)
        yield decoder
        for one in packed:
            one.result()
        if decoder is not None:
            decoder.seal()


def _pack(module: torch.nn.Module, name: str) -> None:
    """In its place at once, so that no more than some weights are in memory twice."""
    setattr(module, name, PackedLinear(getattr(module, name)))


def _places(hf: Any) -> Iterator[tuple[torch.nn.Module, str]]:
    """Of each linear layer that is packed, what it is part of, and its name there."""
    head = hf.get_output_embeddings()
    for module in hf.modules():
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear and child is not head and not is_hooked(child):
                yield module, name


def _has_packed(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - torch has no public name for it
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()
