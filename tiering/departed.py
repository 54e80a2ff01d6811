"""What went lately, and why: remembered by fingerprint, so that a prompt that misses it can be told."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvstore.reasons import MissReason

Fingerprints = NDArray[np.uint64]

CHUNK_BLOCKS: Final = 4096
CHUNKS: Final = 16

REASONS: Final = tuple(MissReason)
_NUMBER: Final = {reason: number for number, reason in enumerate(REASONS)}


@dataclass(frozen=True, slots=True)
class Gone:
    """What became of some blocks, those of `positions` in the prompt that was asked about.

    positions: [n] int64, ascending.   tiers: [n] int8, the tier that had each last, `len(Tier)` if none ever had.
    reasons: [n] uint8, numbers into REASONS.   times_s: [n] float64, when each went, on the clock of the core.
    by_others: [n] bool, whether it was over its owner's quota, and another owner asked for the room.
    """

    positions: NDArray[np.int64]
    tiers: NDArray[np.int8]
    reasons: NDArray[np.uint8]
    times_s: NDArray[np.float64]
    by_others: NDArray[np.bool_]

    def reason(self, at: int) -> MissReason:
        """Why the block at place `at` of the arrays went."""
        return REASONS[self.reasons.item(at)]


class _Chunk:
    """Room for CHUNK_BLOCKS blocks, filled from the front; what is filled does not change."""

    __slots__ = ("by_others", "cells", "fingerprints", "reasons", "tiers", "times_s")

    def __init__(self) -> None:
        self.fingerprints: Fingerprints = np.zeros(CHUNK_BLOCKS, dtype=np.uint64)
        self.tiers: NDArray[np.int8] = np.zeros(CHUNK_BLOCKS, dtype=np.int8)
        self.reasons: NDArray[np.uint8] = np.zeros(CHUNK_BLOCKS, dtype=np.uint8)
        self.times_s: NDArray[np.float64] = np.zeros(CHUNK_BLOCKS, dtype=np.float64)
        self.by_others: NDArray[np.bool_] = np.zeros(CHUNK_BLOCKS, dtype=np.bool_)
        columns: tuple[NDArray[Any], ...] = (self.fingerprints, self.tiers, self.reasons, self.times_s)
        self.cells: tuple[memoryview[Any], ...] = tuple(column.data for column in columns)
        """To write one block's, which takes less time by these."""


class DepartedView:
    """What was remembered at one moment. Any thread may read it, at any later time."""

    def __init__(self, chunks: tuple[_Chunk, ...], num_in_last: int) -> None:
        self._chunks, self._num_in_last = chunks, num_in_last

    def find(self, fingerprints: Fingerprints) -> Gone:
        """Which of these blocks went, and how: of what went more than once the last time counts.

        Takes time in proportion to what is remembered: a few milliseconds.
        """
        order = np.argsort(fingerprints, kind="stable")
        ordered = fingerprints[order]
        found: dict[int, tuple[int, int, float, bool]] = {}
        for chunk in self._chunks:
            num = self._num_in_last if chunk is self._chunks[-1] else CHUNK_BLOCKS
            remembered = chunk.fingerprints[:num]
            at = np.searchsorted(ordered, remembered)
            hits = np.flatnonzero(at < len(ordered))
            hits = hits[ordered[at[hits]] == remembered[hits]]
            for hit, position in zip(hits.tolist(), order[at[hits]].tolist(), strict=True):
                found[position] = (
                    chunk.tiers.item(hit),
                    chunk.reasons.item(hit),
                    chunk.times_s.item(hit),
                    chunk.by_others.item(hit),
                )
        positions = sorted(found)
        rows = [found[position] for position in positions]
        return Gone(
            np.array(positions, dtype=np.int64),
            np.array([tier for tier, _, _, _ in rows], dtype=np.int8),
            np.array([reason for _, reason, _, _ in rows], dtype=np.uint8),
            np.array([time_s for _, _, time_s, _ in rows], dtype=np.float64),
            np.array([by_others for _, _, _, by_others in rows], dtype=np.bool_),
        )


class Departed:
    """Remembers at least the last (CHUNKS - 1) * CHUNK_BLOCKS blocks that went. One thread calls it."""

    def __init__(self) -> None:
        self._chunks: deque[_Chunk] = deque([_Chunk()], maxlen=CHUNKS)
        self._num_in_last = 0

    def __len__(self) -> int:
        """Blocks that are remembered."""
        return (len(self._chunks) - 1) * CHUNK_BLOCKS + self._num_in_last

    def note(
        self,
        fingerprints: Fingerprints,
        tiers: NDArray[np.integer[Any]] | int,
        reason: MissReason,
        now_s: float,
        *,
        by_others: bool = False,
    ) -> None:
        """These blocks are gone. `tiers`: where each was, or all were; see Gone, also for `by_others`."""
        start = 0
        while start < len(fingerprints):
            if self._num_in_last == CHUNK_BLOCKS:
                self._chunks.append(_Chunk())
                self._num_in_last = 0
            chunk, at = self._chunks[-1], self._num_in_last
            end = min(len(fingerprints), start + CHUNK_BLOCKS - at)
            room = slice(at, at + end - start)
            chunk.fingerprints[room] = fingerprints[start:end]
            chunk.tiers[room] = tiers if isinstance(tiers, int) else tiers[start:end]
            chunk.reasons[room] = _NUMBER[reason]
            chunk.times_s[room] = now_s
            chunk.by_others[room] = by_others
            self._num_in_last += end - start
            start = end

    def note_one(self, fingerprint: int, tier: int, reason: int, now_s: float) -> None:
        """`note` for one block, in a tenth of the time. `reason`: a number into REASONS."""
        if self._num_in_last == CHUNK_BLOCKS:
            self._chunks.append(_Chunk())
            self._num_in_last = 0
        at = self._num_in_last
        fingerprints, tiers, reasons, times_s = self._chunks[-1].cells
        fingerprints[at] = fingerprint
        tiers[at] = tier
        reasons[at] = reason
        times_s[at] = now_s
        self._num_in_last += 1

    def view(self) -> DepartedView:
        """What is remembered now. Copies nothing: takes a microsecond."""
        return DepartedView(tuple(self._chunks), self._num_in_last)

    def forget(self) -> None:
        """Remember nothing of what went so far, as when a tenant was erased."""
        self._chunks = deque([_Chunk()], maxlen=CHUNKS)
        self._num_in_last = 0
