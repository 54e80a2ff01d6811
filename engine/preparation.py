"""What is compiled, loaded while weights are; and compiled meanwhile, by processes of their own, the first time on a machine."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch

from kvstore.code import are_kept
from kvstore.errors import StoreError
from kvstore.kernels import FUNCTIONS
from tiering.kernels import kernels as core_loops

from . import decoder, lanes, layers
from .config import EngineConfig, Resources
from .dtypes import torch_dtype
from .supported import Shape


def prepare_beside(shape: Shape, config: EngineConfig, chosen: Resources) -> None:
    """Begin to. Whoever needs a kernel waits for it, and is told where it cannot be had."""
    device, stored, computed = (
        torch.device(chosen.device),
        torch_dtype(chosen.kv_dtype),
        torch_dtype(chosen.dtype),
    )
    _begin(core_loops)
    if lanes.has_lanes(device, stored, computed, shape.head_dim):
        _begin(lambda: lanes.prepare(device, stored, computed, shape.head_dim))
    if layers.may_pack(shape, device, computed):
        _begin(lambda: decoder.prepare(stored, computed))
    encoding = FUNCTIONS.get(stored.itemsize, FUNCTIONS[2])
    if config.disk_path is not None and config.disk_compression != "off" and not are_kept(encoding):
        # what is kept a store loads when it opens, and importing it takes longer than that. These are most of it: to ask for the rest takes lmdb
        _begin(partial(_compile_for_disk, stored.itemsize))


def _compile_for_disk(itemsize: int) -> None:
    from kvstore.disk.compiled import load_code  # needs lmdb, which nothing else does

    load_code(itemsize)


def _begin(prepare: Callable[[], object]) -> None:
    def run() -> None:
        with suppress(StoreError):
            prepare()

    threading.Thread(target=run, name="kvtide-preparing", daemon=True).start()
