"""Opening what an engine computes with and keeps: model, pool, host memory, disk, and the cache over them."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kvstore.block import BlockLayout, Namespace
from kvstore.cores import num_cores
from kvstore.errors import StoreError, StoreFailed
from kvstore.host import PIECE_BYTES, HostSlab
from kvstore.store import Store
from tiering.cache import TieredCache
from tiering.costs import Costs
from tiering.decision import Chooser
from tiering.index_config import IndexConfig
from tiering.kept_costs import BYTES_FACT, CostsFile
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.cuda import CudaDevice
from tiering.transfer.device import Device
from tiering.transfer.opening import HostOpening
from tiering.transfer.page_locks import PageLocks
from tiering.transfer.runtime import cupy_runtime
from tiering.transfer.staged import StagedCudaDevice

from . import lanes
from .config import MIN_HOST_SLOTS, EngineConfig, Resources
from .device_memory import CudaMeter, measured_pool_bytes
from .flashinfer import FlashInfer, Load
from .identity import compute_fingerprint, identity
from .kept_quotas import KeptQuotas
from .kernels import choose_kernels
from .layer_groups import LayerGroups, layer_groups
from .model import Model, load_model
from .out_of_memory import lower, memory_for, pool_setting
from .pool import DevicePool
from .pool_memory import PoolMemory
from .preparation import prepare_beside
from .salt import MARK_SHIFT, MAX_VOCABULARY
from .sizes import available_memory_bytes, format_bytes
from .supported import Shape
from .tenants import core_quotas

WrapStore = Callable[[Store], Store]
WrapDevice = Callable[[Device], Device]

_log = logging.getLogger(__name__)

_MOST_HOST_SHARE = 0.9  # of the memory that is left; with more of it one is warned
_PIECE_BYTES = {"cpu": 32 << 20, "cuda": PIECE_BYTES}  # what is not page-locked costs nothing for each piece


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiers:
    """All of it, open. `cache` owns the store; pool and slab are closed after it, by who opened them."""

    model: Model
    layout: BlockLayout
    namespace: Namespace
    pool: DevicePool
    slab: HostSlab
    store: Store | None
    disk_off: str | None
    """Why there is no disk tier although one was asked for."""
    cache: TieredCache
    groups: LayerGroups
    """In which promotions come."""
    kernels: FlashInfer | None
    """None where SDPA computes attention."""
    flashinfer_off: str | None
    """Why that is so although FlashInfer was not ruled out."""
    chooser: Chooser | None
    """None unless the configuration says that loading or computing is to be chosen."""
    costs_file: CostsFile | None
    """Where what the chooser has learned is kept; None without a chooser or a disk."""
    kept_quotas: KeptQuotas

    @property
    def attention(self) -> str:
        """Who computes it."""
        return "sdpa" if self.kernels is None else "flashinfer"

    def keep_costs(self) -> None:
        """Leave what was learned to who opens the same again. To be called when nobody learns any more, and the disk answers."""
        if self.chooser is not None and self.costs_file is not None:
            self.costs_file.save(self.chooser.costs)


def open_tiers(
    stack: ExitStack,
    model: str | Path | Model,
    config: EngineConfig,
    *,
    wrap_store: WrapStore | None,
    wrap_device: WrapDevice | None,
    wake: Callable[[], None],
    load_flashinfer: Load | None,
) -> Tiers:
    """Open everything; `stack` gets what is to be closed after the cache, save the slab. Raises as Engine does."""
    chosen = config.resolve()
    memory = stack.enter_context(PoolMemory(config, chosen))
    model = _load(model, config, chosen, memory)
    if model.vocab_size > MAX_VOCABULARY:
        raise ValueError(f"a vocabulary of {model.vocab_size} tokens is not served; {MAX_VOCABULARY} are")
    chosen = config.resolve(memory.taken_bytes)  # sizes again: the weights are in memory now
    layout = model.layout(chosen.kv_dtype, config.block_tokens)
    namespace = identity(model, layout, config)
    groups = layer_groups(layout, config.layer_groups, chosen.device)
    if chosen.device_bytes is None:
        chosen = replace(chosen, device_bytes=measured_pool_bytes(model, layout, config, CudaMeter()))
    device_slots, host_slots = _slots(chosen, layout)
    pool = stack.enter_context(memory.pool(layout, device_slots))
    opened_store = _begin_store(stack, config, chosen, namespace, layout)
    told = f"a pool of {device_slots} blocks", lower(config, pool_setting(config, chosen.device))
    with memory.resting(), memory_for(*told):
        # packing takes as long as loading what was compiled, and needs the GIL as little as that needs memory
        with model.packing(pool.dtype):
            lanes.prepare(pool.device, pool.dtype, model.dtype, layout.head_dim)
        kernels, flashinfer_off = choose_kernels(model, pool, config, load_flashinfer)
        if kernels is not None:
            stack.enter_context(kernels)
        model.warm_up(pool, kernels=kernels)
    _tell_of_short_memory(chosen.host_bytes, memory.left_bytes)
    with memory_for(f"{format_bytes(chosen.host_bytes)} of host memory", lower(config, "host_bytes")):
        slab = HostSlab(host_slots, layout.block_bytes, _PIECE_BYTES[chosen.device])
    opening = _open_host(chosen.device, slab, stack)
    with ExitStack() as until_owned:  # the cache closes device and store, once it has them
        device = _device(chosen.device, opening)
        until_owned.callback(device.close)
        device = wrap_device(device) if wrap_device is not None else device
        store, disk_off = opened_store()
        if store is not None:
            until_owned.callback(store.close)
            store = wrap_store(store) if wrap_store is not None else store
        kept_quotas = KeptQuotas(store, config.tenant_quotas)
        config = replace(config, tenant_quotas=kept_quotas.at_start)
        chooser, costs_file = None, None
        if config.load == "auto":
            costs_file = (
                _costs_file(config, chosen, namespace, model, layout.block_bytes)
                if store is not None
                else None
            )
            chooser = Chooser(Costs() if costs_file is None else costs_file.load())
        cache = TieredCache(
            _index_config(config, chosen, pool.num_slots, opening, layout.block_bytes, store),
            root_key=namespace.root_key,
            device=device,
            pool=pool,
            slab=slab,
            store=store,
            wake=wake,
            layer_groups=groups.parts,
            restore_s=config.restore_wait_s,
            chooser=chooser,
        )
        until_owned.pop_all()
    # where the start fails after all; it does nothing where the cache was closed
    stack.callback(cache.abandon)
    opening.start(cache.host_grows, after=memory.wait)
    # before `opening`, which waits for it: else an end would take as long as all of the pool does
    stack.callback(memory.close)
    return Tiers(
        model=model,
        layout=layout,
        namespace=namespace,
        pool=pool,
        slab=slab,
        store=store,
        disk_off=disk_off,
        cache=cache,
        groups=groups,
        kernels=kernels,
        flashinfer_off=flashinfer_off,
        chooser=chooser,
        costs_file=costs_file,
        kept_quotas=kept_quotas,
    )


def _load(model: str | Path | Model, config: EngineConfig, chosen: Resources, memory: PoolMemory) -> Model:
    def shape_known(shape: Shape) -> None:
        memory.before_weights(shape)
        prepare_beside(shape, config, chosen)

    if isinstance(model, Model):
        shape_known(model.shape)
        return model
    return load_model(
        model,
        device=chosen.device,
        dtype=chosen.dtype,
        max_model_len=config.max_model_len,
        shape_known=shape_known,
    )


def _slots(chosen: Resources, layout: BlockLayout) -> tuple[int, int]:
    """Device and host slots. Raises ValueError for sizes that hold no block."""
    assert chosen.device_bytes is not None, "it has been measured"
    device_slots = chosen.device_bytes // layout.block_bytes
    host_slots = chosen.host_bytes // layout.block_bytes
    if device_slots < 1:
        raise ValueError(
            f"device_bytes of {chosen.device_bytes} holds no block of {layout.block_bytes} bytes"
        )
    if chosen.disk_bytes and host_slots < MIN_HOST_SLOTS:
        raise ValueError(
            f"the disk tier reads through host memory: host_bytes must be at least {MIN_HOST_SLOTS} blocks of "
            f"{layout.block_bytes} bytes, got {chosen.host_bytes}"
        )
    return device_slots, host_slots


def _open_host(kind: str, slab: HostSlab, stack: ExitStack) -> HostOpening:
    """Make as much host memory ready as it takes to begin."""
    lock = None
    if kind == "cuda":
        locks = PageLocks(cupy_runtime())
        stack.callback(locks.unlock_all)
        lock = locks.lock
    return stack.enter_context(HostOpening(slab, MIN_HOST_SLOTS, lock))


def _device(kind: str, opening: HostOpening) -> Device:
    if kind == "cpu":
        return CpuDevice()
    if opening.is_locked:
        return CudaDevice(cupy_runtime(), compute_stream)
    _log.warning(
        "copies between host and device go by way of small buffers, and slower: host memory could not be page-locked (%s)",
        opening.refused,
        extra={"error": opening.refused},
    )
    return StagedCudaDevice(cupy_runtime(), compute_stream)


def compute_stream() -> int:
    """The cudaStream_t on which torch computes on this thread."""
    return int(torch.cuda.current_stream().cuda_stream)


def _begin_store(
    stack: ExitStack, config: EngineConfig, chosen: Resources, namespace: Namespace, layout: BlockLayout
) -> Callable[[], tuple[Store | None, str | None]]:
    """Open the store beside what else a start does: the disk is waited for most of the time. What this gives answers as `_store` does;
    a store that nobody has asked it for when `stack` ends is closed.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="kvtide-opening-store")
    opening, is_owned = thread.submit(_store, config, chosen, namespace, layout), False
    thread.shutdown(wait=False)

    def opened() -> tuple[Store | None, str | None]:
        nonlocal is_owned
        found = opening.result()
        is_owned = True
        return found

    def close() -> None:
        if not is_owned and opening.exception() is None and (store := opening.result()[0]) is not None:
            store.close()

    stack.callback(close)
    return opened


def _store(
    config: EngineConfig, chosen: Resources, namespace: Namespace, layout: BlockLayout
) -> tuple[Store | None, str | None]:
    """The store, or why there is none although one was asked for: a cache that cannot be had is no reason not to serve."""
    if config.disk_path is None:
        return None, None
    from kvstore.disk import (  # needs lmdb, which nothing else does
        LmdbStore,
        capacity_within,
        read_master_key,
    )

    try:
        key_file = config.disk_key_file
        if key_file is not None and Path(key_file).resolve().is_relative_to(Path(config.disk_path).resolve()):
            raise StoreFailed(f"disk_key_file {key_file} lies in disk_path, which it is to protect")
        store = LmdbStore(
            config.disk_path,
            namespace=namespace,
            layout=layout,
            capacity_bytes=capacity_within(chosen.disk_bytes),
            min_free_bytes=chosen.disk_min_free_bytes,
            durability=config.disk_durability,
            compression=config.disk_compression,
            read_threads=chosen.disk_read_threads,
            master_key=None if key_file is None else read_master_key(key_file),
            ttl_s=config.ttl_s,
        )
    except StoreError as error:
        _log.warning("runs without a disk tier: %s", error, extra={"path": config.disk_path, "error": error})
        return None, str(error)
    with suppress(OSError):
        _tell_of_short_space(config.disk_path, chosen.disk_min_free_bytes)
    return store, None


def _costs_file(
    config: EngineConfig, chosen: Resources, namespace: Namespace, model: Model, block_bytes: int
) -> CostsFile:
    """Beside the store, of all that its times and the model's depend on."""
    from kvstore.disk.directory import FORMAT  # as for the store itself

    assert config.disk_path is not None, "there is a store"
    facts = {
        "namespace": namespace.digest.hex(),
        BYTES_FACT: str(block_bytes // config.block_tokens),
        **compute_fingerprint(model.device),
        "cores": str(num_cores()),
        "attention": config.attention,
        "max_batch_tokens": str(config.max_batch_tokens),
        "disk_compression": config.disk_compression,
        "disk_read_threads": str(chosen.disk_read_threads),
        "encrypted": str(config.disk_key_file is not None),
    }
    return CostsFile(Path(config.disk_path) / FORMAT / "costs", facts)


def _tell_of_short_memory(host_bytes: int, promised_bytes: int) -> None:
    left = available_memory_bytes() - promised_bytes
    if host_bytes > _MOST_HOST_SHARE * left:
        _log.warning(
            "host_bytes is %s, and %s of memory are left: taking it may end this process, or others",
            format_bytes(host_bytes),
            format_bytes(left),
            extra={"host_bytes": host_bytes, "free_bytes": left},
        )


def _tell_of_short_space(path: str | Path, least_bytes: int) -> None:
    free = shutil.disk_usage(path).free
    if free < least_bytes:
        _log.warning(
            "nothing will be written to %s: of its file system %s are free, and disk_min_free_bytes keeps %s",
            path,
            format_bytes(free),
            format_bytes(least_bytes),
            extra={"path": path, "free_bytes": free, "least_bytes": least_bytes},
        )


def _index_config(
    config: EngineConfig,
    chosen: Resources,
    device_slots: int,
    opening: HostOpening,
    block_bytes: int,
    store: Store | None,
) -> IndexConfig:
    stored = store.stats() if store is not None else None
    return IndexConfig(
        block_tokens=config.block_tokens,
        device_slots=device_slots,
        host_slots=opening.all_slots,
        later_host_slots=opening.all_slots - opening.num_slots,
        disk_bytes=stored.capacity_bytes - stored.other_namespaces_bytes if stored is not None else 0,
        record_bytes=store.max_stored_bytes if store is not None else 0,
        policy=config.policy,
        admission=config.admission,
        disk_bytes_a_day=chosen.disk_bytes_a_day,
        loads=config.load != "never",
        mark_shift=MARK_SHIFT,
        read_threads=chosen.disk_read_threads,
        ttl_s=config.ttl_s,
        held_share=config.held_share,
        quotas=core_quotas(config.tenant_quotas, block_bytes),
        min_prefix_tokens=config.min_prefix_tokens,
        clean_share=config.host_clean_share,
        write_budget_blocks=max(1, chosen.disk_queue_bytes // block_bytes),
        io_deadline_s=config.disk_deadline_s,
        max_overdue_reads=chosen.disk_read_threads,
    )
