"""The engine's thread: the only one that calls the cache, the scheduler and the model."""

import contextlib
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiering.cache import TieredCache
from tiering.radix import Tokens
from tiering.residency import Tier
from tiering.writes import Sweep

from .batch import Chunk
from .model import Model
from .pool import DevicePool
from .results import FinishReason, Result
from .sampling import greedy
from .scheduler import Scheduler
from .sequence import Sequence

_log = logging.getLogger(__name__)

_CLEAR_S = 30.0  # how long clear() may wait for copies in flight


@dataclass(frozen=True, slots=True)
class Submit:
    """A new request."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Cancel:
    """The caller does not want this result any more."""

    future: "Future[Result]"


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ask where a prompt's prefix lies; the future gets tokens by tier."""

    tokens: Tokens
    future: "Future[dict[str, int]]"


@dataclass(frozen=True, slots=True)
class Demote:
    """Move what no request holds down to a tier; the future gets None when no more can be moved."""

    to: Tier
    future: "Future[None]"


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget everything that no request holds; the future gets whether nothing was left."""

    future: "Future[bool]"


@dataclass(frozen=True, slots=True)
class Check:
    """Look at the books; the future gets None, or the AssertionError."""

    future: "Future[None]"


@dataclass(frozen=True, slots=True)
class Wake:
    """Something has ended: look at the cache."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel what is left, and end."""


Message = Submit | Cancel | Lookup | Demote | Clear | Check | Wake | Stop


class EngineLoop:
    """Takes messages, admits, computes step after step; sleeps on its inbox when there is nothing to compute.

    `snapshot` may be read by any thread; messages to `inbox` may come from any; everything else runs on the loop's own.
    """

    def __init__(
        self,
        inbox: "queue.SimpleQueue[Message]",
        *,
        cache: TieredCache,
        scheduler: Scheduler,
        model: Model,
        pool: DevicePool,
        decode: Callable[[list[int]], str],
        deterministic: bool,
    ) -> None:
        """Takes over `cache`: from here on only the loop's thread calls it. `cache` wakes the loop through `inbox`."""
        self._inbox = inbox
        self._cache, self._scheduler = cache, scheduler
        self._model, self._pool, self._decode = model, pool, decode
        self._deterministic = deterministic
        self._block_tokens = pool.layout.block_tokens
        self._sweeps: list[tuple[Sweep, Future[None]]] = []
        self._stopping = False
        self._has_published = False
        """Whether the last step computed parts of prompts, for which a waiting request may have waited."""
        self._results: list[tuple[Future[Result], Result]] = []
        """What is to be told when the figures say so too."""
        self._counts = {
            "requests": 0,
            "steps": 0,
            "prefilled_tokens": 0,
            "cached_tokens": 0,
            "generated_tokens": 0,
        }
        self.snapshot: dict[str, Any] = self._take_snapshot()
        """Figures as of the last step; replaced, never changed."""
        self._at_hand: Message | None = None
        """The message that is being looked at."""
        self.failure: str | None = None
        """Why the engine cannot go on; None while it can."""
        self._thread = threading.Thread(target=self._run, name="kvtide-engine", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the loop has ended."""
        self._thread.join()

    # --- the loop's own thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            idle = True
            while not self._stopping:
                idle = not self._turn(block=idle)
            for sequence in self._scheduler.all():
                self._end(sequence, "cancelled")
            self._deliver()
        except Exception as error:  # noqa: BLE001 - the thread's top: reaches every caller that waits, or will
            _log.exception("the engine has failed")
            self._refuse(_told(error))
        for _, future in self._sweeps:
            future.set_exception(ValueError("the engine was closed"))

    def _turn(self, *, block: bool) -> bool:
        """Everything once: messages, news of the cache, admission, one step. Whether something was computed.

        With `block` it sleeps until there is a message, or something in the cache has taken too long.
        """
        self._take_messages(block=block)
        news = self._cache.pump()
        self._scheduler.admit(news=news or self._has_published)
        step = self._scheduler.next_step()
        self._has_published = any(not chunk.decode for _, chunk in step)
        if step:
            self._compute(step)
        self.snapshot = self._take_snapshot()
        self._resolve_sweeps()
        self._deliver()
        return bool(step)

    def _take_messages(self, *, block: bool) -> None:
        timeout_s = None
        if block and (deadline_s := self._cache.deadline_s) is not None:
            timeout_s = max(0.0, deadline_s - time.monotonic())
        with contextlib.suppress(queue.Empty):
            while not self._stopping:
                self._at_hand = self._inbox.get(block=block, timeout=timeout_s)
                block = False
                self._take(self._at_hand)
                self._at_hand = None

    def _refuse(self, error: str) -> None:
        """The books cannot be trusted any more: tell everybody who waits or still comes, until the engine is closed."""
        self.failure = error
        for sequence in self._scheduler.all():
            self._answer(sequence, "error", error)
        self._deliver()
        failed = RuntimeError(f"the engine has failed: {error}")
        for _, future in self._sweeps:
            future.set_exception(failed)
        self._sweeps = []
        message = self._at_hand
        while not self._stopping:
            match message:
                case Submit(sequence):
                    self._answer(sequence, "error", error)
                    self._deliver()
                case Lookup(_, asked) | Demote(_, asked) | Clear(asked) | Check(asked):
                    asked.set_exception(failed)
                case Stop():
                    self._stopping = True
                    return
            message = self._inbox.get()

    def _take(self, message: Message) -> None:
        match message:
            case Submit(sequence):
                self._counts["requests"] += 1
                self._scheduler.add(sequence)
            case Cancel(future):
                if (found := self._scheduler.find(future)) is not None:
                    self._end(found, "cancelled")
            case Lookup(tokens, future):
                future.set_result(self._cache.lookup(tokens))
            case Demote(to, future):
                self._sweeps.append((self._cache.sweep(to, then_free=True), future))
            case Clear(future):
                future.set_result(self._cache.clear(_CLEAR_S))
            case Check(future):
                try:
                    self._cache.check()
                except AssertionError as error:
                    future.set_exception(error)
                else:
                    future.set_result(None)
            case Wake():
                pass
            case Stop():
                self._stopping = True

    def _compute(self, step: list[tuple[Sequence, Chunk]]) -> None:
        """One forward over the chunks, and what follows from it. Where that fails, their requests end with the error."""
        chunks = [chunk for _, chunk in step]
        try:
            batch = self._model.batch(chunks, self._pool, deterministic=self._deterministic)
            self._cache.before_compute(*self._slots_of(chunks))
            try:
                logits = self._model.forward(batch, self._pool)
            finally:  # also where it breaks off: layers that were enqueued before that still write to their slots
                self._cache.after_compute()
            chosen = greedy(logits).tolist() if len(logits) else []
        except Exception as error:  # noqa: BLE001 - the model's errors have no common type; its requests report them
            _log.exception("a step failed")
            for sequence, _ in step:
                self._end(sequence, "error", _told(error))
            return
        self._counts["steps"] += 1
        tokens = iter(chosen)
        for sequence, chunk in step:
            self._computed(sequence, chunk)
            if chunk.wants_logits:
                self._accept(sequence, next(tokens))

    def _slots_of(self, chunks: list[Chunk]) -> tuple[list[int], list[int]]:
        """The slots that a step reads, and those that it writes."""
        read, written = [], []
        for chunk in chunks:
            end = -(-chunk.end // self._block_tokens)
            read.append(chunk.slots[:end])
            written.append(chunk.slots[chunk.start // self._block_tokens : end])
        return np.concatenate(read).tolist(), np.concatenate(written).tolist()

    def _computed(self, sequence: Sequence, chunk: Chunk) -> None:
        """Whole blocks that a chunk has completed become usable for all."""
        lease = sequence.lease
        assert lease is not None, "what is computed has a lease"
        sequence.computed(chunk)
        if not chunk.decode:
            self._counts["prefilled_tokens"] += len(chunk.tokens)
        first, end = chunk.start // self._block_tokens, chunk.end // self._block_tokens
        # decode computes other last bits than prefill: in the deterministic mode it is not cached
        if end > first and not (chunk.decode and self._deterministic):
            self._cache.publish(lease, sequence.indexable, first, end)

    def _accept(self, sequence: Sequence, token: int) -> None:
        reason = sequence.accept(token)
        if len(sequence.reply) == 1:
            assert sequence.lease is not None, "what is computed has a lease"
            self._counts["cached_tokens"] += sequence.lease.num_cached_blocks * self._block_tokens
        self._counts["generated_tokens"] += 1
        if reason is not None:
            self._end(sequence, reason)

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        try:
            self._scheduler.remove(sequence)
        finally:  # the books may be wrong, but nobody is left waiting
            self._answer(sequence, reason, error)

    def _answer(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        text = ""
        if self.failure is None:  # else nothing may run that could raise: this is the last answer there is
            try:
                text = self._decode(sequence.reply)
            except Exception as failure:  # noqa: BLE001 - a tokenizer is not ours; its request reports what it raises
                _log.exception("a reply cannot be turned into text")
                reason, error = "error", error or _told(failure)
        self._results.append((sequence.future, sequence.result(reason, text, error)))

    def _deliver(self) -> None:
        results, self._results = self._results, []
        for future, result in results:
            if not future.done():
                future.set_result(result)

    def _resolve_sweeps(self) -> None:
        for sweep, future in self._sweeps:
            if sweep.done:
                future.set_result(None)
        self._sweeps = [(sweep, future) for sweep, future in self._sweeps if not sweep.done]

    def _take_snapshot(self) -> dict[str, Any]:
        requests = {"running": self._scheduler.num_running, "waiting": self._scheduler.num_waiting}
        return {"engine": {**self._counts, **requests}, "cache": self._cache.stats()}


def _told(error: Exception) -> str:
    """An error as one who waits is told of it: its type and its sentence."""
    return "".join(traceback.format_exception_only(error)).strip()
