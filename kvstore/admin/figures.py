"""The subject's figures, asked for at most a few times a second, and what of them is kept over time."""

import asyncio
import logging
import time
from collections.abc import Callable
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
    ) -> None:
        """`clock` counts seconds and does not go backwards; `wall` gives seconds since the epoch, for the history."""
        self._asking, self._clock, self._wall = asking, clock, wall
        self.windows = Windows(COUNTED)
        self._stats: dict[str, Any] | None = None
        self._asked_s = float("-inf")
        self._question: asyncio.Task[dict[str, Any]] | None = None

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

    async def sample(self) -> None:
        """Put one sample into the windows. Where the figures cannot be had, there is none."""
        try:
            stats = await self.stats()
            self.windows.add(self._clock(), counts_of(stats), epoch_s=self._wall())
        except Problem:
            pass
        except Exception:  # noqa: BLE001 - a task's top: the next sample may be fine
            _log.exception("figures could not be sampled")

    async def sample_for_ever(self) -> None:
        """Sample every second until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            await self.sample()
            due_s = max(due_s + EVERY_S, loop.time())  # what was missed is not made up for
            await asyncio.sleep(due_s - loop.time())
