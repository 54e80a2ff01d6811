"""Telling the disk when its blocks were last used, so that their order and their age survive the process."""

import math

import numpy as np

from tiering.holdings import Holdings
from tiering.moves import Touch
from tiering.outbox import Outbox
from tiering.residency import DISK, PRESENT, Ids, Mask

_BATCH_BLOCKS = 1024
"""In one Touch: some 20 ms of the writer's thread where entries fill many pages."""

_MOST_AT_THE_END = 64 * _BATCH_BLOCKS
"""More than a second of the writer's thread: less than a close waits for it."""


class Uses:
    """Finds the blocks of which the disk does not know the last use, and asks for it to be told, in the background.

    Uses are gathered for half of `within_s` and told during the other half, a batch now and then: so after a crash no
    record tells a time that is older than what it should tell by more than that.
    """

    def __init__(self, holdings: Holdings, outbox: Outbox, within_s: float | None) -> None:
        """`within_s`: None for at the end only."""
        self._holdings, self._outbox = holdings, outbox
        self._set(within_s)
        self._seen = 0  # the latest stamp of which `_since_s` knows
        self._since_s = -math.inf  # when the first use or write was that no round has looked at
        self._queue: Ids = np.empty(0, dtype=np.intp)  # what a round found and has not told yet
        self._next_s, self._gap_s = 0.0, 0.0  # when the next batch of it is due, and between batches
        self._ready = False

    def _set(self, within_s: float | None) -> None:
        self._half_s = math.inf if within_s is None else within_s / 2
        self.are_told = self._half_s < math.inf
        """Whether any are told before the end. Asked at each step: an attribute is read fastest."""

    def change(self, within_s: float | None) -> None:
        """Tell uses within another time from now on: those that were not told yet are gathered anew."""
        self._set(within_s)
        self._queue = self._queue[:0]
        self._since_s = min(self._since_s, self._holdings.order.now_s)

    def was_written(self, now_s: float) -> None:
        """There are new records. When their blocks were used they do not know."""
        self._since_s = min(self._since_s, now_s)

    def plan(self, now_s: float, *, disk_ready: bool) -> None:
        """Ask for a batch if one is due."""
        self._ready = disk_ready
        if self._seen != self._holdings.order.now:
            self._seen = self._holdings.order.now
            self._since_s = min(self._since_s, now_s)
        if not disk_ready:
            return
        if not len(self._queue) and now_s >= self._since_s + self._half_s:
            self._since_s = math.inf
            self._queue = self._untold(np.flatnonzero(self._holdings.residency.live))
            self._next_s, self._gap_s = now_s, self._half_s / (1 + len(self._queue) // _BATCH_BLOCKS)
        if len(self._queue) and now_s >= self._next_s:
            self._next_s += self._gap_s
            self._tell(self._queue[:_BATCH_BLOCKS])
            self._queue = self._queue[_BATCH_BLOCKS:]

    def deadline_s(self) -> float | None:
        """When `plan` must be called; None for never, as while the disk does not take writes."""
        if not self._ready or not self.are_told:
            return None
        due_s = self._next_s if len(self._queue) else self._since_s + self._half_s
        return due_s if due_s < math.inf else None

    def tell_all(self) -> None:
        """Ask for what is left, all at once, up to a bound; what was used last is worth most."""
        residency = self._holdings.residency
        ids = self._untold(np.flatnonzero(residency.live))
        ids = ids[np.argsort(-residency.stamp[ids], kind="stable")][:_MOST_AT_THE_END]
        for start in range(0, len(ids), _BATCH_BLOCKS):
            self._tell(ids[start : start + _BATCH_BLOCKS])

    def _untold(self, ids: Ids) -> Ids:
        residency = self._holdings.residency
        untold: Mask = (residency.state[DISK, ids] == PRESENT) & (residency.told[ids] != residency.stamp[ids])
        return ids[untold]

    def _tell(self, ids: Ids) -> None:
        """What has been forgotten meanwhile, or told, is left out."""
        ids = self._untold(ids)
        if len(ids):
            residency = self._holdings.residency
            used_s = tuple(self._holdings.order.touched_s(ids).tolist())
            self._outbox.send(Touch(tuple(residency.keys_of(ids)), used_s))
            residency.told[ids] = residency.stamp[ids]
