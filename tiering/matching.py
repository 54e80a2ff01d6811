"""What a prompt could use of what is cached: looking changes nothing, and holds nothing."""

from enum import Enum, auto

import numpy as np

from tiering.expiry import Expiry
from tiering.holdings import Holdings
from tiering.kernels import kernels
from tiering.loads import Loads
from tiering.observation import Observed
from tiering.observer import Observer
from tiering.radix import Tokens
from tiering.residency import ABSENT, DEVICE, NO_BLOCK, Ids, Mask


class CacheUse(Enum):
    """What a request may do with what is cached."""

    READ_WRITE = auto()
    READ = auto()
    """It uses what is there, and what it computes itself is found by nobody."""
    OFF = auto()
    """Nor does it use anything."""


class Matching:
    """Finds the blocks of prompts. One thread calls it."""

    def __init__(
        self,
        holdings: Holdings,
        loads: Loads,
        expiry: Expiry,
        observer: Observer,
        *,
        host_loads: bool,
        min_prefix_tokens: int,
    ) -> None:
        """`host_loads`: whether blocks below the device are used. `min_prefix_tokens`: see IndexConfig."""
        self.min_prefix_tokens = min_prefix_tokens
        self._kernels = kernels()
        self._block_tokens = holdings.radix.block_tokens
        self._holdings, self._loads, self._expiry, self._observer = holdings, loads, expiry, observer
        self._host_loads = host_loads

    def match(self, tokens: Tokens, *, compute_last: bool, disk_ready: bool, use: CacheUse) -> Ids:
        """The path of whole blocks that a prompt could use, as far as they are somewhere or on their way, and not over.

        What is shorter than is worth loading is used as far as the device has it, or will have it for others.
        """
        matched = self._match(tokens, compute_last=compute_last, disk_ready=disk_ready, use=use)
        if len(matched) * self._block_tokens >= self.min_prefix_tokens:
            return matched
        residency = self._holdings.residency
        return matched[: self._kernels.num_usable(residency.state, residency.computing, 0, matched)]

    def is_too_short(self, tokens: Tokens) -> bool:
        """Whether a prompt is shorter than is worth keeping."""
        if not self.min_prefix_tokens:
            return False
        block_tokens = self._block_tokens
        return len(tokens) // block_tokens * block_tokens < self.min_prefix_tokens

    def _match(self, tokens: Tokens, *, compute_last: bool, disk_ready: bool, use: CacheUse) -> Ids:
        if use is CacheUse.OFF:
            return np.empty(0, dtype=np.intp)
        holdings, usable_tokens = self._holdings, max(0, len(tokens) - compute_last)
        matched = holdings.radix.match_below(NO_BLOCK, tokens[:usable_tokens])
        residency = holdings.residency
        below = self._host_loads + (self._host_loads and disk_ready)
        num = self._kernels.num_usable(residency.state, residency.computing, below, matched)
        matched = matched if num == len(matched) else matched[:num]
        if self._loads.overdue:  # and what is not on the device either way
            at_hand = (residency.state[DEVICE].take(matched) != ABSENT) | residency.computing.take(matched)
            matched = _until(matched, ~at_hand & self._loads.is_overdue(matched))
        if self._expiry.is_any_over:
            matched = _until(matched, self._expiry.is_over(matched))
        return matched

    def num_usable(self, tokens: Tokens, *, compute_last: bool) -> int:
        """Whole blocks of a prompt that may match."""
        return max(0, len(tokens) - compute_last) // self._block_tokens

    def observe(self, tokens: Tokens, matched: Ids, *, compute_last: bool, use: CacheUse) -> Observed:
        """What there is of a prompt that `match` has answered this for."""
        usable_blocks = self.num_usable(tokens, compute_last=compute_last)
        too_short = len(matched) * self._block_tokens < self.min_prefix_tokens and len(
            self._match(tokens, compute_last=compute_last, disk_ready=True, use=use)
        ) > len(matched)
        off = use is CacheUse.OFF
        return self._observer.observe(tokens, matched, usable_blocks, off=off, too_short=too_short)

    def is_pending(self, matched: Ids) -> bool:
        """Whether a block is being computed or loaded for another request."""
        return self.num_absent(matched) < 0

    def num_absent(self, matched: Ids) -> int:
        """How many blocks of a match the device does not have; -1 if one is being computed or loaded for another request."""
        residency = self._holdings.residency
        return self._kernels.num_absent(residency.state, residency.computing, matched)


def _until(path: Ids, barred: Mask) -> Ids:
    """A path up to the first block that is barred."""
    return path[: barred.argmax()] if np.count_nonzero(barred) else path
