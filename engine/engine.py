"""The facade: one model, one cache, one thread; prompts in, results out."""

import atexit
import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from kvstore.errors import StoreFailed
from tiering.residency import Tier

from .accounts import Accounts
from .caches import Caches
from .chat import Prompt, encode, split_prompts
from .config import EngineConfig
from .errors import EngineClosed
from .explainer import Explainer
from .facts import facts
from .flashinfer import Load
from .gpu_figures import figures_of
from .handle import Handle, Stream
from .incoming import Incoming
from .loop import EngineLoop
from .messages import Cancel, Check, Clear, Demote, Erase, Lookup, Message, Stop, Submit, Wake
from .model import Model
from .out_of_memory import lower, pool_setting
from .params import RequestOptions, SamplingParams, check_kinds
from .recorded import Recorded, served
from .request import Request
from .results import Delta, Result
from .retained import RetainsPrefixes
from .salt import Salt, owner_of
from .scheduler import Scheduler
from .steering import Steering
from .tiers import WrapDevice, WrapStore, open_tiers

if TYPE_CHECKING:
    from kvstore.admin.subject import Subject

Prompts = list[str] | list[list[int]] | list[list[dict[str, str]]]


class Engine(RetainsPrefixes, Recorded):
    """A model served from paged KV, whose prefixes are kept on the device, in host memory and on disk.

    `model` is "demo", a local Hugging Face directory, a GGUF file, a hub name, or a Model. Everything but construction
    may be called from any thread. A context manager; leaving it closes the engine, which keeps what the disk may hold:
    what takes an open engine raises EngineClosed then.

    Raises ValueError, with what to do, for a model that is not supported and for settings that do not fit together, or
    not into memory. Where `disk_path` cannot be used, because another process has it, it cannot be written or the disk
    fails, the engine runs without a disk tier: one warning, and `stats()["disk_off"]` says why.
    """

    def __init__(
        self,
        model: str | Path | Model,
        config: EngineConfig | None = None,
        *,
        wrap_store: WrapStore | None = None,
        wrap_device: WrapDevice | None = None,
        announce: Callable[[str], None] | None = None,
        load_flashinfer: Load | None = None,
    ) -> None:
        """`wrap_store` puts a store of the caller's around the disk store, `wrap_device` a device around what makes the
        copies between device and host. `announce` gets the block of facts that is otherwise printed to standard error
        at start. `load_flashinfer` gives the class that computes attention in place of importing FlashInfer's, on any
        device; it is tried all the same.
        """
        self.config = config = config or EngineConfig()
        self._closed = False
        self._closing = threading.Lock()
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        with ExitStack() as stack:
            self._accounts = Accounts(lambda **facts: self._cache.note("request", **facts), served)
            stack.callback(self._accounts.close)
            self._tiers = tiers = open_tiers(
                stack,
                model,
                config,
                wrap_store=wrap_store,
                wrap_device=wrap_device,
                wake=lambda: self._inbox.put(Wake()),
                load_flashinfer=load_flashinfer,
            )
            self.model, self.layout, self.namespace = tiers.model, tiers.layout, tiers.namespace
            self._cache = tiers.cache
            self._incoming = Incoming(
                tiers.model,
                block_tokens=config.block_tokens,
                num_slots=tiers.pool.num_slots,
                deterministic=config.deterministic,
            )
            self.caches = Caches(
                tiers.cache.retaining,
                block_tokens=config.block_tokens,
                encode=self._tokens_of,
                warm=self.warm,
                check_open=self._check_open,
                most=config.max_names,
            )
            self._steering = Steering(config, tiers, self._check_open)
            self._gpu = figures_of(tiers.model.device)
            if self._gpu is not None:
                stack.enter_context(self._gpu)
            self._explainer = Explainer(tiers.model.tokenizer, tiers.namespace, tiers.store)
            self._loop = EngineLoop(
                self._inbox,
                cache=tiers.cache,
                scheduler=Scheduler(
                    tiers.cache,
                    block_tokens=config.block_tokens,
                    max_num_seqs=config.max_num_seqs,
                    max_batch_tokens=config.max_batch_tokens,
                    deterministic=config.deterministic,
                ),
                model=tiers.model,
                pool=tiers.pool,
                deterministic=config.deterministic,
                group_starts=tiers.groups.starts,
                memory_advice=lower(
                    config,
                    pool_setting(config, tiers.model.device.type),
                    "max_batch_tokens",
                    "max_num_seqs",
                ),
                kernels=tiers.kernels,
                ended=self._accounts.ended,
                explainer=self._explainer,
            )
            self._resources = stack.pop_all()
        # a thread that computes while the interpreter ends would abort the process
        atexit.register(self.close)
        try:
            self._record_as(config)
        except BaseException:
            self.close()
            raise
        (announce or _print)(facts(tiers, config, self.stats()))

    def _post(self, message: Message) -> None:
        """Send the loop a message. Raises EngineClosed where nobody would answer."""
        with self._closing:  # against close(): what follows Stop would never be looked at
            self._check_open()
            self._inbox.put(message)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed

    # --- requests -------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompt: str | list[int] | list[dict[str, str]],
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> list[Result]: ...

    def generate(
        self, prompt: Any, params: SamplingParams | None = None, options: RequestOptions | None = None
    ) -> Any:
        """Run one prompt, or a list of them together, and wait for the reply.

        A string, a list of token ids, or a list of chat messages ({"role", "content"}) is one prompt and gives one
        Result; a list of those gives a list of Results, and those that share a prefix are computed one after the other.
        Raises ValueError, before anything is computed, for a prompt that is empty, holds unknown token ids, or can never
        fit.
        """
        prompts, single = split_prompts(prompt)
        handles = self.submit_all(prompts, params, options)
        try:
            results = [handle.result() for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return results[0] if single else results

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, options: RequestOptions | None = None
    ) -> Stream:
        """Start one prompt and read the reply as it comes. Raises as `generate` does."""
        deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        handle = self.submit(prompt, params, options, on_delta=deltas.put)
        return Stream(handle, deltas, (params or SamplingParams()).n)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        *,
        on_delta: Callable[[Delta], None] | None = None,
    ) -> Handle:
        """Start one prompt, and do not wait for the reply. Raises as `generate` does.

        `on_delta` is told of the reply as it comes, on the engine's thread: it must only post, and must not raise.
        """
        [handle] = self.submit_all([prompt], params, options, on_delta=on_delta)
        return handle

    def submit_all(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        *,
        on_delta: Callable[[Delta], None] | None = None,
    ) -> list[Handle]:
        """`submit` for prompts that arrive together: all of them, or none where one is refused."""
        params, options = params or SamplingParams(), options or RequestOptions()
        check_kinds(params, options)
        requests = [self._incoming.request(prompt, params, options, on_delta) for prompt in prompts]
        # in the order of their tokens, so that what shares a prefix comes together and finds it
        together = sorted(requests, key=lambda request: request.prompt.astype(">u4").tobytes())
        self._steering.tenants.saw(options.tenant)
        with self._steering.intake.letting_in(requests), self._accounts.coming(requests):
            self._post(Submit(tuple(together)))
        return [Handle(request, cancel=self._cancel) for request in requests]

    def warm(self, prompt: Any, options: RequestOptions | None = None) -> Any:
        """Compute a prompt, or a list of them, and cache their whole blocks on the device; reply nothing.

        Takes and gives what `generate` does, and raises as it does.
        """
        return self.generate(prompt, SamplingParams(max_tokens=0), options)

    def _cancel(self, request: Request) -> None:
        self._inbox.put(Cancel(request))  # also after Stop: what is left then is cancelled anyway

    # --- the cache ------------------------------------------------------------------------------------------------

    def lookup(self, prompt: Prompt, options: RequestOptions | None = None) -> dict[str, int]:
        """How many of a prompt's tokens each tier would serve now, by "device", "host" and "disk". Changes nothing.

        Of `options` only tenant and salt count.
        """
        tokens = encode(prompt, self.model.tokenizer, self.model.vocab_size)
        salt = Salt(options or RequestOptions(), len(tokens), self.config.block_tokens)
        future: Future[dict[str, int]] = Future()
        self._post(Lookup(salt(tokens), future))
        return future.result()

    def demote(self, to: Literal["host", "disk"]) -> None:
        """Move every cached block that no request holds down to that tier, and wait until that is done.

        Raises ValueError where no such tier was asked for; where the disk tier is off, nothing goes there.
        """
        tiers = {"host": Tier.HOST, "disk": Tier.DISK}
        if to not in tiers:
            raise ValueError(f'to must be "host" or "disk", not {to!r}')
        if to == "disk" and self._tiers.store is None and self._tiers.disk_off is None:
            raise ValueError("there is no disk tier to move to: disk_path is not set")
        if not self._tiers.slab.num_slots:
            raise ValueError("there is no host memory to move to: host_bytes is 0")
        self._sweep(tiers[to], then_free=True)

    def flush(self) -> None:
        """Write down every cached block that the disk does not have yet, and wait until that would survive a power cut.

        What requests hold is written too. Nothing to do without a disk tier. Raises StoreFailed if the disk is full,
        fails or rests, or a copy on the way there failed, so that some blocks are not there.
        """
        num_left = self._sweep(Tier.DISK, then_free=False)
        if self._tiers.store is not None:
            self._tiers.store.sync()
            if num_left:
                why = "it is full, fails or rests, or a copy on the way there failed"
                raise StoreFailed(f"{num_left} cached blocks are not on disk: {why}")

    def _sweep(self, to: Tier, *, then_free: bool) -> int:
        """Blocks that are above the tier and not in it afterwards."""
        future: Future[int] = Future()
        self._post(Demote(to, then_free, future))
        return future.result()

    def clear(self) -> bool:
        """Forget every cached block in every tier. False if requests, or copies that take too long, still hold some, or if a
        start is still finding out what the disk holds.

        Waits for copies in flight, and for that, at most 30 seconds; meanwhile nobody is served.
        """
        future: Future[bool] = Future()
        self._post(Clear(future))
        return future.result()

    def erase(self, tenant: str, timeout_s: float = 60.0) -> bool:
        """Forget what is cached of a tenant's private tokens, in every tier, and of other models on the same disk too.

        Where the disk is encrypted, the tenant's key is destroyed: copies of the files that lie elsewhere tell nothing
        any more. `request` and `advice` show nothing of the tenant's text from then on. False if requests, or copies that
        take too long, still hold some blocks, or may still write some: end them, and erase again. Waits for copies in
        flight, at most 30 seconds; meanwhile nobody is served. Raises TimeoutError if the disk has not done its part
        within `timeout_s`, StoreError if it cannot, or if the engine runs without the disk tier that it should have, and
        ValueError for what is no tenant's name.
        """
        if tenant is None:
            raise ValueError(
                "tenant must be a name: what has none, also behind a salt, cannot be erased by itself"
            )
        RequestOptions(tenant=tenant)  # or no request can have had it
        future: Future[bool] = Future()
        self._post(Erase(owner_of(tenant), future))
        try:
            erased = future.result(timeout_s)
        finally:
            self._accounts.erase(tenant)
            self.caches.erase(tenant)
        if self._tiers.disk_off is not None:
            raise StoreFailed(
                f"what is on disk was not erased, as there is no disk tier: {self._tiers.disk_off}"
            )
        return erased

    def stats(self) -> dict[str, Any]:
        """Figures as they are now, a nested dict: see docs/architecture.md, "Figures".

        Blocks on a GPU for the 20 ms over which its bus is watched; computing goes on meanwhile.
        """
        figures = self._loop.figures()
        gpu = None if self._gpu is None else self._gpu.read()
        tiers = self._tiers
        states = {"draining": self._steering.intake.is_shut, "failed": self._loop.failure is not None}
        tenants = self._steering.tenant_figures(figures["cache"]["owners"])
        engine = {**figures["engine"], **self._accounts.figures(), **states, "tenants": tenants}
        chosen = {"attention": tiers.attention, "flashinfer_off": tiers.flashinfer_off}
        return {**figures, "engine": engine, **chosen, "disk_off": tiers.disk_off, "gpu": gpu}

    def tell_of_change(self, tell: Callable[[], None]) -> None:
        """Have this called, once, when anything next happens by which figures may change. Does not block.

        `tell` is called by the thread that computes: it must only post.
        """
        self._loop.figures.tell_of_change(tell)

    def check(self) -> None:
        """Raise AssertionError unless the cache's books agree. Waits for the step that runs; for tests and debugging."""
        future: Future[None] = Future()
        self._post(Check(future))
        future.result()

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self, flush_s: float = 60.0) -> None:
        """Cancel what runs, write what the disk does not have yet for at most `flush_s`, and free everything.

        Safe to call twice. An engine that is open when the interpreter ends is closed then.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._inbox.put(Stop())
        self._steering.close()
        atexit.unregister(self.close)
        self._loop.join()
        # an engine that has failed cannot say what is worth keeping, and to whom it belongs
        try:
            if self._loop.failure is None:
                self._cache.close(flush_s)
            else:
                self._cache.abandon()
        finally:  # whatever the disk says
            self._resources.close()
            if self._cache.abandon():  # else a thread that hangs in a read may still write there
                self._tiers.slab.close()
                self._tiers.keep_costs()


def _print(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr)  # noqa: T201 - the one thing that a library user sees unless they say otherwise


if TYPE_CHECKING:

    def _is_a_subject(engine: Engine) -> Subject:  # an engine is all that the admin endpoint may ask for
        return engine
