"""The subject's figures, asked for at most a few times a second, and what of them is kept over time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from kvstore.admin.asking import Asking
from kvstore.admin.problems import Problem
from kvstore.admin.tiers import COUNTED, as_engine, counts_of
from kvstore.admin.windows import EVERY_S, Windows

FRESH_S = 0.25
"""For how long figures are shown before they are asked for again."""

_log = logging.getLogger("kvstore.admin")


class Figures:
    """What `stats` said last, and the windows over it. The event loop's thread uses it."""

    def __init__(
        self,
        asking: Asking,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` counts seconds and does not go backwards, `sleep` waits for some of them; `wall` gives seconds since the epoch,
        for the history.
        """
        self._asking, self._clock, self._wall, self._sleep = asking, clock, wall, sleep
        self.windows = Windows(COUNTED)
        self._stats: dict[str, Any] | None = None
        self._asked_s = float("-inf")
        self._question: asyncio.Task[dict[str, Any]] | None = None
        self._counts: dict[str, float] | None = None
        """Those of the last sample."""
        self._resting: asyncio.Event | None = None
        """What is waited for instead of sampling."""

    async def stats(self) -> dict[str, Any]:
        """The figures as of at most a moment ago, in the form of an engine's; callers do not change them.

        Who asks while they are asked for waits for the same answer. Raises Problem as Asking does.
        """
        if self._stats is not None and self._clock() - self._asked_s < FRESH_S:
            return self._stats
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask())
        return await asyncio.shield(self._question)

    async def _ask(self) -> dict[str, Any]:
        asked_s = self._clock()
        stats = as_engine(await self._asking.ask("stats"))
        self._stats, self._asked_s = stats, asked_s
        return stats

    async def sample(self) -> bool:
        """Put one sample into the windows. Whether it is known that nothing has changed since the one before.

        Where the figures cannot be had, there is none.
        """
        try:
            # asked anew: figures from a moment ago may be from before a change that was told of by then
            counts, before = counts_of(await self._ask()), self._counts
            self.windows.add(self._clock(), counts, epoch_s=self._wall())
        except Problem:
            return False
        except Exception:  # noqa: BLE001 - a task's top: the next sample may be fine
            _log.exception("figures could not be sampled")
            return False
        self._counts = counts
        return counts == before

    async def sample_for_ever(self) -> None:
        """Sample every second until cancelled; but not while nothing happens, if the subject says when that ends."""
        due_s, change = self._clock(), self._next_change()
        while True:
            if change is not None and change.is_set():
                change = self._next_change()  # before the sample: what comes behind it is told of
            if await self.sample() and change is not None:
                self._resting = change
                await change.wait()
                self.catch_up()
                self._resting, due_s = None, self._clock()
            due_s = max(due_s + EVERY_S, self._clock())  # what was missed is not made up for
            await self._sleep(due_s - self._clock())

    def _next_change(self) -> asyncio.Event | None:
        """Set when figures may have changed since now; None where the subject does not tell."""
        try:
            tell = self._asking.method("tell_of_change")
        except Problem:
            return None
        loop, change = asyncio.get_running_loop(), asyncio.Event()

        def told() -> None:
            with suppress(RuntimeError):  # the event loop is closed: nobody waits
                loop.call_soon_threadsafe(change.set)

        tell(told)
        return change

    def catch_up(self) -> None:
        """Let the windows reach up to now where nothing has changed for a while, and so no samples were taken."""
        if self._resting is not None:
            self.windows.stay(self._clock(), epoch_s=self._wall())
