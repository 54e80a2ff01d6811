"""Who may enter the tiers below: asks the admission before blocks are copied down, and counts what it says."""

from collections import Counter
from typing import Any, Final

import numpy as np

from tiering.holdings import Holdings
from tiering.keeping.admission import Admission, Departing, Ended, Told, Verdict, Verdicts
from tiering.keeping.endurance import Endurance
from tiering.residency import DEVICE, DISK, HOST, PRESENT, Ids, Tier

_AGAIN_S: Final = 1.0
"""For so long nobody is asked again when all that might have been written has to wait."""

_ADMIT, _THROTTLED = int(Verdict.ADMIT), int(Verdict.THROTTLED)


class Entry:
    """Owns the admission: nobody else asks it. The core's thread calls this.

    What requests no longer need is copied down only with its leave. What somebody asks for by hand is not its business:
    a sweep, the end of the process, and what comes up from below.
    """

    def __init__(
        self,
        holdings: Holdings,
        admission: type[Admission] | None,
        *,
        record_bytes: int,
        bytes_a_day: float | None,
    ) -> None:
        """`admission`: None: every block may enter. `record_bytes`: what a block takes on disk at most.

        `bytes_a_day`: what may be written to the disk; None for no limit.
        """
        self._holdings, self._record_bytes = holdings, max(1, record_bytes)
        self._admission = None if admission is None else admission(self._sizes())
        self._endurance = (
            None if bytes_a_day is None else Endurance(bytes_a_day, least_bytes=self._record_bytes)
        )
        self._counts: Counter[tuple[Tier, int]] = Counter()
        self._again_s = float("-inf")

    def _sizes(self) -> list[int]:
        """Blocks of each tier."""
        holdings = self._holdings
        sizes = [holdings.slots[DEVICE].num_slots, holdings.host_target]
        return [*sizes, holdings.disk_capacity_bytes // self._record_bytes]

    def resize(self) -> None:
        """Tiers have other sizes."""
        if self._admission is not None:
            self._admission.resize(self._sizes())

    # --- requests that have ended ---------------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether anybody wants to know of requests that have ended."""
        return self._admission is not None

    def ended(self, path: Ids, num_found: int, told: Told) -> None:
        """A request's path was just released, of which it had found so many blocks. What is not worth a place goes first."""
        assert self._admission is not None, "nobody learns from it"
        residency = self._holdings.residency
        there = residency.state[DEVICE].take(path) == PRESENT
        whole = path if np.count_nonzero(there) == len(path) else path[: there.argmin()]
        if len(whole):
            fingerprints = residency.fingerprint.take(whole)
            num_used = self._admission.ended(Ended(fingerprints=fingerprints, told=told))
            self._holdings.go_first(whole[max(num_used, num_found) :])

    # --- blocks that might go down --------------------------------------------------------------------------------

    def asks(self, tier: Tier) -> bool:
        """Whether anybody has a say in what enters a tier."""
        return self._admission is not None or (tier is DISK and self._endurance is not None)

    @property
    def disk_waits(self) -> bool:
        """Whether it is too early to ask again for the disk."""
        return self._holdings.order.now_s < self._again_s

    def verdicts(self, tier: Tier, ids: Ids) -> Verdicts:
        """Whether each of these blocks, which are to leave the tier above, may enter `tier`."""
        if self._admission is None:
            verdicts = np.full(len(ids), _ADMIT, dtype=np.int8)
        else:
            departing = Departing(
                tier=int(tier),
                fingerprints=self._holdings.residency.fingerprint.take(ids),
                free_blocks=self._num_free(tier),
                now_s=self._holdings.order.now_s,
            )
            verdicts = self._admission.admit(departing)
        if tier is DISK:
            self._throttle(verdicts)
        for verdict, num in enumerate(np.bincount(verdicts).tolist()):
            if num:
                self._counts[tier, verdict] += num
        return verdicts

    def _throttle(self, verdicts: Verdicts) -> None:
        """What was admitted to the disk has to wait, as far as there is nothing left to be written."""
        now_s = self._holdings.order.now_s
        if self._endurance is not None:
            (admitted,) = (verdicts == _ADMIT).nonzero()
            may_blocks = int(self._endurance.left_bytes(now_s) / self._record_bytes)
            verdicts[admitted[max(0, may_blocks) :]] = _THROTTLED
        if len(verdicts) and (verdicts == _THROTTLED).all():
            self._again_s = now_s + _AGAIN_S

    def _num_free(self, tier: Tier) -> int:
        """Places in a tier and those below it."""
        left = self._holdings.disk_capacity_bytes - self._holdings.disk_bytes
        on_disk = max(0, left // self._record_bytes)
        return on_disk if tier is DISK else on_disk + self._holdings.slots[HOST].num_free

    def write(self, num_bytes: int) -> None:
        """So many bytes are being written to the disk; fewer than 0 if they take less than was thought."""
        if self._endurance is not None:
            self._endurance.write(num_bytes)

    # --- figures --------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Blocks by the tier that was asked for: what was said of them, and for which reasons. Any thread may ask."""
        counts = self._counts.copy()
        return {
            tier.label: {
                "verdicts": {verdict.name.lower(): counts[tier, verdict] for verdict in Verdict},
                "reasons": {} if self._admission is None else self._admission.reasons(tier),
            }
            for tier in (HOST, DISK)
        }

    def check(self) -> None:
        """Raise AssertionError unless what is remembered is in order."""
        if self._admission is not None:
            self._admission.check()
        if self._endurance is not None:
            self._endurance.check()
