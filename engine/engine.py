"""The facade: one model, one cache, one thread; prompts in, results out."""

import contextlib
import itertools
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, overload

import torch

from kvstore.block import BlockLayout, Namespace
from kvstore.closing import Closing
from kvstore.host import HostSlab
from kvstore.store import Store
from tiering.cache import TieredCache
from tiering.index import IndexConfig
from tiering.residency import Tier
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.device import Device

from .chat import Prompt, detokenise, encode, split_prompts
from .config import EngineConfig, Resources, SamplingParams
from .handle import Handle
from .identity import identity
from .loop import Cancel, Check, Clear, Demote, EngineLoop, Lookup, Message, Stop, Submit, Wake
from .model import Model, load_model
from .pool import DevicePool
from .results import Result
from .scheduler import Scheduler
from .sequence import Marks
from .sequence import Sequence as Request
from .sizes import format_bytes

_MIN_HOST_SLOTS = 8  # below this a disk tier would read in drops


class Engine(Closing):
    """A model served from paged KV, whose prefixes are kept on the device, in host memory and on disk.

    `model` is "demo", a local Hugging Face directory, a hub name, or a Model. Everything but construction may be
    called from any thread. A context manager; leaving it closes the engine, which keeps what the disk may hold.

    Raises ValueError, with what to do, for a model that is not supported or settings that do not fit together, and
    StoreError where `disk_path` cannot be used.
    """

    def __init__(
        self,
        model: str | Path | Model,
        config: EngineConfig | None = None,
        *,
        wrap_store: Callable[[Store], Store] | None = None,
        wrap_device: Callable[[Device], Device] | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        """`wrap_store` puts a store of the caller's around the disk store, `wrap_device` a device around what makes the
        copies between device and host. `announce` gets the block of facts that is otherwise printed to standard error
        at start.
        """
        self.config = config = config or EngineConfig()
        self._closed = False
        self._closing = threading.Lock()
        self._ids = itertools.count(1)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        with ExitStack() as stack:
            self._build(stack, model, config, wrap_store, wrap_device)
            self._resources = stack.pop_all()
        (announce or _print)(self._facts())

    def _build(
        self,
        stack: ExitStack,
        model: str | Path | Model,
        config: EngineConfig,
        wrap_store: Callable[[Store], Store] | None,
        wrap_device: Callable[[Device], Device] | None,
    ) -> None:
        chosen = config.resolve()
        self.model = _load(model, config, chosen)
        chosen = config.resolve()  # sizes again: the weights are in memory now
        self.layout = self.model.layout(chosen.kv_dtype, config.block_tokens)
        self.namespace = identity(self.model, self.layout, config)
        device_slots, host_slots = _slots(chosen, self.layout)
        self.pool = stack.enter_context(DevicePool(self.layout, device_slots, chosen.device))
        slab = HostSlab(host_slots, self.layout.block_bytes)
        self.model.warm_up(self.pool)
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._cache = self._open_cache(stack, chosen, host_slots, slab, wrap_store, wrap_device)
        self._slab = slab
        self._loop = EngineLoop(
            self._inbox,
            cache=self._cache,
            scheduler=Scheduler(
                self._cache,
                block_tokens=config.block_tokens,
                max_num_seqs=config.max_num_seqs,
                max_batch_tokens=config.max_batch_tokens,
                deterministic=config.deterministic,
            ),
            model=self.model,
            pool=self.pool,
            decode=lambda ids: detokenise(ids, self.model.tokenizer),
            deterministic=config.deterministic,
        )

    def _open_cache(
        self,
        stack: ExitStack,
        chosen: Resources,
        host_slots: int,
        slab: HostSlab,
        wrap_store: Callable[[Store], Store] | None,
        wrap_device: Callable[[Device], Device] | None,
    ) -> TieredCache:
        with ExitStack() as until_owned:  # the cache closes device and store, once it has them
            device = _device(chosen.device, slab, stack)
            until_owned.callback(device.close)
            device = wrap_device(device) if wrap_device is not None else device
            store = _store(self.config, chosen, self.namespace, self.layout)
            if store is not None:
                until_owned.callback(store.close)
                store = wrap_store(store) if wrap_store is not None else store
            cache = TieredCache(
                _index_config(self.config, chosen, self.pool.num_slots, host_slots, store),
                root_key=self.namespace.root_key,
                device=device,
                pool=self.pool,
                slab=slab,
                store=store,
                wake=lambda: self._inbox.put(Wake()),
                read_threads=self.config.disk_read_threads,
            )
            until_owned.pop_all()
        return cache

    def _post(self, message: Message) -> None:
        """Send the loop a message. Raises ValueError if the engine is closed: nobody would answer."""
        with self._closing:  # against close(): what follows Stop would never be looked at
            if self._closed:
                raise ValueError("the engine is closed")
            self._inbox.put(message)

    # --- requests -------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str | list[int] | list[dict[str, str]], params: SamplingParams | None = None
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]] | list[list[dict[str, str]]],
        params: SamplingParams | None = None,
    ) -> list[Result]: ...

    def generate(self, prompt: Any, params: SamplingParams | None = None) -> Any:
        """Run one prompt, or a list of them together, and wait for the reply.

        A string, a list of token ids, or a list of chat messages ({"role", "content"}) is one prompt and gives one
        Result; a list of those gives a list of Results. Raises ValueError, before anything is computed, for a prompt
        that is empty, holds unknown token ids, or can never fit.
        """
        prompts, single = split_prompts(prompt)
        params = params or SamplingParams()
        requests = [self._request(each, params) for each in prompts]
        handles: list[Handle] = []
        try:
            handles += (self._start(request) for request in requests)
            results = [handle.result() for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return results[0] if single else results

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Handle:
        """Start one prompt, and do not wait for the reply. Raises as `generate` does."""
        return self._start(self._request(prompt, params or SamplingParams()))

    def _start(self, request: Request) -> Handle:
        self._post(Submit(request))
        return Handle(next(self._ids), request.future, cancel=self._cancel)

    def _cancel(self, future: "Future[Result]") -> None:
        self._inbox.put(Cancel(future))  # also after Stop: what is left then is cancelled anyway

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        tokens = encode(prompt, self.model.tokenizer, self.model.vocab_size)
        room = self.model.max_len - len(tokens)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; prompt and reply may have {self.model.max_len}"
            )
        request = Request(
            prompt=tokens,
            params=params,
            max_tokens=min(params.max_tokens, room),
            eos_ids=self.model.eos_ids,
            block_tokens=self.config.block_tokens,
            deterministic=self.config.deterministic,
            future=Future(),
            marks=Marks(submitted_s=time.monotonic()),
        )
        if request.max_blocks > self.pool.num_slots:
            raise ValueError(
                f"prompt and reply need {request.max_blocks} blocks of {self.config.block_tokens} tokens, the device "
                f"pool has {self.pool.num_slots}; raise device_bytes or lower max_tokens"
            )
        return request

    # --- the cache ------------------------------------------------------------------------------------------------

    def lookup(self, prompt: Prompt) -> dict[str, int]:
        """How many of a prompt's tokens each tier would serve now, by "device", "host" and "disk". Changes nothing."""
        future: Future[dict[str, int]] = Future()
        self._post(Lookup(encode(prompt, self.model.tokenizer, self.model.vocab_size), future))
        return future.result()

    def demote(self, to: Literal["host", "disk"]) -> None:
        """Move every cached block that no request holds down to that tier, and wait until that is done."""
        tiers = {"host": Tier.HOST, "disk": Tier.DISK}
        if to not in tiers:
            raise ValueError(f'to must be "host" or "disk", not {to!r}')
        future: Future[None] = Future()
        self._post(Demote(tiers[to], future))
        future.result()

    def clear(self) -> bool:
        """Forget every cached block in every tier. False if requests, or copies that take too long, still hold some.

        Waits for copies in flight, at most 30 seconds; meanwhile nobody is served.
        """
        future: Future[bool] = Future()
        self._post(Clear(future))
        return future.result()

    def stats(self) -> dict[str, Any]:
        """Figures as of the last step, a nested dict: see docs/architecture.md, "Figures"."""
        return self._loop.snapshot

    def check(self) -> None:
        """Raise AssertionError unless the cache's books agree. Waits for the step that runs; for tests and debugging."""
        future: Future[None] = Future()
        self._post(Check(future))
        future.result()

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self, flush_s: float = 60.0) -> None:
        """Cancel what runs, write what the disk does not have yet for at most `flush_s`, and free everything.

        Safe to call twice.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._inbox.put(Stop())
        self._loop.join()
        # an engine that has failed cannot say what is worth keeping, and to whom it belongs
        try:
            joined = self._cache.close(flush_s) if self._loop.failure is None else self._cache.abandon()
        finally:  # whatever the disk says
            self._resources.close()
        if joined:  # else a thread that hangs in a read may still write there
            self._slab.close()

    # --- facts ----------------------------------------------------------------------------------------------------

    def _facts(self) -> str:
        stats, config = self.stats()["cache"]["tiers"], self.config
        slots, host = stats["device"]["slots"], stats["host"]["slots"]
        block_bytes = self.layout.block_bytes
        lines = [
            f"kvtide  model   {self.model.name} ({self.model.architecture}), identity {self.namespace}",
            f"        device  {self.model.device}, computes in {self.model.dtype}, KV in {self.layout.dtype}".replace(
                "torch.", ""
            ),
            f"                {slots} blocks = {slots * config.block_tokens} tokens, {format_bytes(slots * block_bytes)}",
            f"        host    {host} blocks = {host * config.block_tokens} tokens, {format_bytes(host * block_bytes)}",
        ]
        if config.disk_path is None:
            lines.append("        disk    none (set disk_path)")
        else:
            free = shutil.disk_usage(config.disk_path).free
            disk = stats["disk"]
            lines.append(
                f"        disk    {config.disk_path}: {disk['blocks']} blocks found, up to "
                f"{format_bytes(disk['capacity_bytes'])}, {format_bytes(free)} free there"
            )
        return "\n".join(lines)


def _print(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr)  # noqa: T201 - the one thing that a library user sees unless they say otherwise


def _load(model: str | Path | Model, config: EngineConfig, chosen: Resources) -> Model:
    if isinstance(model, Model):
        return model
    return load_model(model, device=chosen.device, dtype=chosen.dtype, max_model_len=config.max_model_len)


def _slots(chosen: Resources, layout: BlockLayout) -> tuple[int, int]:
    """Device and host slots. Raises ValueError for sizes that hold no block."""
    device_slots = chosen.device_bytes // layout.block_bytes
    host_slots = chosen.host_bytes // layout.block_bytes
    if device_slots < 1:
        raise ValueError(
            f"device_bytes of {chosen.device_bytes} holds no block of {layout.block_bytes} bytes"
        )
    if chosen.disk_bytes and host_slots < _MIN_HOST_SLOTS:
        raise ValueError(
            f"the disk tier reads through host memory: host_bytes must be at least {_MIN_HOST_SLOTS} blocks of "
            f"{layout.block_bytes} bytes, got {chosen.host_bytes}"
        )
    return device_slots, host_slots


def _device(kind: str, slab: HostSlab, stack: ExitStack) -> Device:
    if kind == "cpu":
        slab.prefault()
        return CpuDevice()
    from tiering.transfer.cuda import CudaDevice, registered  # needs a CUDA build of torch

    stack.enter_context(registered(slab))
    return CudaDevice()


def _store(
    config: EngineConfig, chosen: Resources, namespace: Namespace, layout: BlockLayout
) -> Store | None:
    if config.disk_path is None:
        return None
    from kvstore.disk import LmdbStore  # needs lmdb, which nothing else does

    return LmdbStore(
        config.disk_path,
        namespace=namespace,
        layout=layout,
        capacity_bytes=chosen.disk_bytes,
        min_free_bytes=chosen.disk_min_free_bytes,
    )


def _index_config(
    config: EngineConfig,
    chosen: Resources,
    device_slots: int,
    host_slots: int,
    store: Store | None,
) -> IndexConfig:
    others = store.stats().other_namespaces_bytes if store is not None else 0
    return IndexConfig(
        block_tokens=config.block_tokens,
        device_slots=device_slots,
        host_slots=host_slots,
        disk_bytes=chosen.disk_bytes - others if store is not None else 0,
        record_bytes=store.max_stored_bytes if store is not None else 0,
        loads=config.load == "always",
        io_deadline_s=config.disk_deadline_s,
        max_overdue_reads=config.disk_read_threads,
    )
