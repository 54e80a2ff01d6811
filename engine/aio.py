"""The engine for asyncio: the same calls, awaited. Everything is done by the Engine underneath."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, Literal, Self

from kvstore.reports import (
    Advice,
    Event,
    Explanation,
    NamedCache,
    NamespaceInfo,
    PrefixDetail,
    PrefixPage,
    PrefixQuery,
    Removed,
    RequestReport,
    TenantReport,
    TierName,
    Verified,
)
from tiering.recording import Recording

from .caches import Caches
from .chat import Prompt, split_prompts
from .engine import Engine
from .handle import Handle
from .params import RequestOptions, SamplingParams
from .results import Delta, Result


class AsyncCaches:
    """The named caches of an engine; see Caches for what each call does, takes and raises."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches

    async def create(
        self, name: str, prompt: Any, ttl: str | float | None = None, options: RequestOptions | None = None
    ) -> NamedCache:
        """See Caches.create. Who is cancelled meanwhile does not keep it from being made."""
        return await asyncio.to_thread(self._caches.create, name, prompt, ttl, options)

    async def get(self, name: str, tenant: str | None = None) -> NamedCache:
        """See Caches.get."""
        return await asyncio.to_thread(self._caches.get, name, tenant)

    async def list(self, tenant: str | None = None) -> tuple[NamedCache, ...]:
        """See Caches.list."""
        return await asyncio.to_thread(self._caches.list, tenant)

    async def extend(self, name: str, ttl: str | float | None, tenant: str | None = None) -> NamedCache:
        """See Caches.extend."""
        return await asyncio.to_thread(self._caches.extend, name, ttl, tenant)

    async def delete(self, name: str, tenant: str | None = None) -> None:
        """See Caches.delete."""
        await asyncio.to_thread(self._caches.delete, name, tenant)


class AsyncEngine:
    """Wraps an Engine; see there for what each call does, takes and raises.

    Cancelling a call calls its requests off. Calls may be made from any event loop, and beside calls of the Engine.
    """

    def __init__(self, engine: Engine) -> None:
        """Takes `engine` over: closing this closes it."""
        self.engine = engine
        self.caches = AsyncCaches(engine.caches)

    async def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> Any:
        """A Result for one prompt, a list of them for several."""
        prompts, single = split_prompts(prompt)
        handles = await _started(lambda: self.engine.submit_all(prompts, params, options))
        try:
            results = [await _result(handle) for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()  # those that have ended are left as they are
        return results[0] if single else results

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, options: RequestOptions | None = None
    ) -> AsyncIterator[Delta]:
        """The reply as it comes, from the first iteration on. Leaving it early calls the request off."""
        deltas: asyncio.Queue[Delta] = asyncio.Queue()
        here = asyncio.get_running_loop()

        def post(delta: Delta) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody reads any more
                here.call_soon_threadsafe(deltas.put_nowait, delta)

        [handle] = await _started(lambda: self.engine.submit_all([prompt], params, options, on_delta=post))
        num_open = (params or SamplingParams()).n
        try:
            while num_open:
                delta = await deltas.get()
                num_open -= delta.finish_reason is not None
                yield delta
        finally:
            handle.cancel()

    async def warm(self, prompt: Prompt | Sequence[Prompt], options: RequestOptions | None = None) -> Any:
        """A Result for one prompt, a list of them for several."""
        return await self.generate(prompt, SamplingParams(max_tokens=0), options)

    async def lookup(self, prompt: Prompt, options: RequestOptions | None = None) -> dict[str, int]:
        """See Engine.lookup."""
        return await asyncio.to_thread(self.engine.lookup, prompt, options)

    async def demote(self, to: Literal["host", "disk"]) -> None:
        """See Engine.demote."""
        await asyncio.to_thread(self.engine.demote, to)

    async def flush(self) -> None:
        """See Engine.flush."""
        await asyncio.to_thread(self.engine.flush)

    async def clear(self) -> bool:
        """See Engine.clear."""
        return await asyncio.to_thread(self.engine.clear)

    async def erase(self, tenant: str, timeout_s: float = 60.0) -> bool:
        """See Engine.erase."""
        return await asyncio.to_thread(self.engine.erase, tenant, timeout_s)

    async def drain(self, timeout_s: float | None = None) -> bool:
        """See Engine.drain."""
        return await asyncio.to_thread(self.engine.drain, timeout_s)

    async def resume(self) -> None:
        """See Engine.resume."""
        await asyncio.to_thread(self.engine.resume)

    async def verify(self) -> Verified:
        """See Engine.verify."""
        return await asyncio.to_thread(self.engine.verify)

    async def namespaces(self) -> Sequence[NamespaceInfo]:
        """See Engine.namespaces."""
        return await asyncio.to_thread(self.engine.namespaces)

    async def settings(self) -> dict[str, Any]:
        """See Engine.settings."""
        return await asyncio.to_thread(self.engine.settings)

    async def change(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """See Engine.change."""
        return await asyncio.to_thread(self.engine.change, changes)

    async def prefixes(self, query: PrefixQuery | None = None) -> PrefixPage:
        """See Engine.prefixes."""
        return await asyncio.to_thread(self.engine.prefixes, query)

    async def prefix(self, key: str, *, text: bool = False) -> PrefixDetail:
        """See Engine.prefix."""
        return await asyncio.to_thread(self.engine.prefix, key, text=text)

    async def demote_prefix(self, key: str, to: TierName) -> Removed:
        """See Engine.demote_prefix."""
        return await asyncio.to_thread(self.engine.demote_prefix, key, to)

    async def keep(
        self, prompt: Prompt, tier: TierName = "device", options: RequestOptions | None = None
    ) -> int:
        """See Engine.keep."""
        return await asyncio.to_thread(self.engine.keep, prompt, tier, options)

    async def release(self, prompt: Prompt, options: RequestOptions | None = None) -> int:
        """See Engine.release."""
        return await asyncio.to_thread(self.engine.release, prompt, options)

    async def tenants(self) -> Sequence[TenantReport]:
        """See Engine.tenants."""
        return await asyncio.to_thread(self.engine.tenants)

    async def set_quota(self, tenant: str, quota: Mapping[str, Any]) -> None:
        """See Engine.set_quota."""
        await asyncio.to_thread(self.engine.set_quota, tenant, quota)

    async def delete_quota(self, tenant: str) -> None:
        """See Engine.delete_quota."""
        await asyncio.to_thread(self.engine.delete_quota, tenant)

    @contextlib.asynccontextmanager
    async def record(self, target: str | Path | IO[bytes], **settings: Any) -> AsyncIterator[Recording]:
        """See Engine.record, whose settings it takes."""
        recording = await asyncio.to_thread(self.engine.record, target, **settings)
        try:
            yield recording
        finally:
            await asyncio.to_thread(recording.close)

    async def stats(self) -> dict[str, Any]:
        """See Engine.stats."""
        return await asyncio.to_thread(self.engine.stats)

    async def remove_prefix(self, key: str) -> Removed:
        """See Engine.remove_prefix."""
        return await asyncio.to_thread(self.engine.remove_prefix, key)

    async def explain(
        self, prompt: Prompt, options: RequestOptions | None = None, *, text: bool = True
    ) -> Explanation:
        """See Engine.explain."""
        return await asyncio.to_thread(self.engine.explain, prompt, options, text=text)

    async def request(self, number: int, *, text: bool = True) -> RequestReport:
        """See Engine.request."""
        return await asyncio.to_thread(self.engine.request, number, text=text)

    async def requests(self, limit: int = 50) -> tuple[RequestReport, ...]:
        """See Engine.requests."""
        return await asyncio.to_thread(self.engine.requests, limit)

    async def advice(self, *, text: bool = False) -> tuple[Advice, ...]:
        """See Engine.advice."""
        return await asyncio.to_thread(self.engine.advice, text=text)

    async def events(self, after: int = 0) -> Sequence[Event]:
        """See Engine.events."""
        return await asyncio.to_thread(self.engine.events, after)

    async def close(self, flush_s: float = 60.0) -> None:
        """See Engine.close."""
        await asyncio.to_thread(self.engine.close, flush_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()


async def _started(submit: Callable[[], list[Handle]]) -> list[Handle]:
    """Run `submit` on a thread. Who is cancelled meanwhile leaves nothing that runs, also where the event loop ends."""
    handles: Future[list[Handle]] = Future()

    def start() -> None:
        try:
            handles.set_result(submit())
        except Exception as error:  # noqa: BLE001 - who awaits gets it
            handles.set_exception(error)

    try:
        await asyncio.to_thread(start)
    except asyncio.CancelledError:
        handles.add_done_callback(_call_off)  # on that thread: there may be no event loop by then
        raise
    return handles.result()


def _call_off(handles: "Future[list[Handle]]") -> None:
    if handles.exception() is None:
        for handle in handles.result():
            handle.cancel()


async def _result(handle: Handle) -> Result:
    there = asyncio.Event()
    here = asyncio.get_running_loop()

    def post(_: Handle) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            here.call_soon_threadsafe(there.set)

    handle.when_done(post)
    await there.wait()
    return handle.result()
