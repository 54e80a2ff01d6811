"""Weights of the layers' matrix products, in the order in which the CPU's kernels read them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from .layers import PackedLayer, is_hooked, packs, prepare

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
def packing(hf: Any) -> Iterator[None]:
    """Pack the layers of a transformers model on the CPU, beside what is done within, which must not compute with it.

    Decoder layers whole where engine/layers.py computes them, elsewhere their linear layers; not the last product, which has few
    rows and may share its weight, nor what is packed already, or hooked. Does nothing where this processor or dtype has no such
    products. Threads of its own do it: half of the time goes into new memory, and the GIL is free for nearly all of it. Meanwhile
    the layers' kernel is loaded.
    """
    if not _has_packed(torch.device(hf.device), hf.dtype):
        yield
        return
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="kvtide-packing") as threads:
        places = list(_places(hf))
        packed = [threads.submit(_pack, *place) for place in places]
        if any(kind is PackedLayer for *_, kind in places):
            prepare(hf.dtype)
        yield
        for one in packed:
            one.result()


def _pack(module: torch.nn.Module, name: str, kind: Callable[[Any], torch.nn.Module]) -> None:
    """In its place at once, so that no more than some weights are in memory twice."""
    setattr(module, name, kind(getattr(module, name)))


def _places(hf: Any) -> Iterator[tuple[torch.nn.Module, str, Callable[[Any], torch.nn.Module]]]:
    """Of each layer that is packed, what it is part of, its name there, and what takes its place."""
    head = hf.get_output_embeddings()
    inside: set[torch.nn.Module] = set()
    for module in hf.modules():
        for name, child in module.named_children():
            if packs(child, hf.config):
                inside |= set(child.modules())
                yield module, name, PackedLayer
            elif type(child) is torch.nn.Linear and not (
                child is head or module in inside or is_hooked(child)
            ):
                yield module, name, PackedLinear


def _has_packed(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - torch has no public name for it
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()
