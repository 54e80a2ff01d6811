"""Tiers that become smaller or larger while requests go on."""

from tiering.eviction import Eviction
from tiering.holdings import Holdings
from tiering.residency import HOST
from tiering.slot_table import SlotState

_HOST_BATCH = 512  # clean copies that go in one plan: a tenth of a millisecond
_ONE_BY_ONE = 32  # last copies, and records, likewise: about a millisecond


class Sizes:
    """Has host slots retired, and blocks leave the disk, until both are as small as was asked for.

    What is free goes at once, then in each plan some of what is least recently used; what is in use goes when it can.
    Slots that are retired come back into service when the tier may be larger again.
    """

    def __init__(self, holdings: Holdings, eviction: Eviction) -> None:
        self._holdings, self._eviction = holdings, eviction
        self._goes_on = False
        """Whether the last plan stopped although more could go."""

    def resize(self, host_slots: int, disk_bytes: int) -> None:
        """How many host slots may be used, and how many bytes of the disk, from now on."""
        self._holdings.host_target, self._holdings.disk_capacity_bytes = host_slots, disk_bytes
        self._goes_on = self.fit_host() > 0 or self._holdings.disk_is_over

    def fit_host(self) -> int:
        """Retire what is free and too much, or bring back what is wanted. How many slots are too many still."""
        table = self._holdings.slots[HOST]
        too_many = self._holdings.num_host_slots_too_many
        missing = self._holdings.host_target - table.num_usable
        if missing > 0 and table.count(SlotState.RETIRED):
            table.restore(missing)
        return too_many - table.retire(too_many)

    def plan(self, *, writing: bool) -> None:
        """Let some go. `writing`: whether blocks are being written down, which host memory may give up after that."""
        self._goes_on = False
        if self._holdings.slots[HOST].num_usable != self._holdings.host_target:
            self._shrink_host(writing=writing)
        if self._holdings.disk_is_over:
            num_gone = self._eviction.shrink_disk(_ONE_BY_ONE)
            self._goes_on |= num_gone > 0 and self._holdings.disk_is_over

    def _shrink_host(self, *, writing: bool) -> None:
        too_many = self.fit_host()
        if not too_many:
            return
        wanted = min(too_many, _HOST_BATCH)
        num_gone = self._eviction.vacate_host(wanted, elsewhere=True)
        if num_gone < wanted and not writing:
            wanted = min(wanted - num_gone, _ONE_BY_ONE)
            num_gone += self._eviction.vacate_host(wanted, elsewhere=False)
        self._goes_on = num_gone > 0 and self.fit_host() > 0

    @property
    def deadline_s(self) -> float | None:
        """When `plan` has something to do although nothing ends: at once, or None for never."""
        return float("-inf") if self._goes_on else None

    def check(self) -> None:
        """Raise AssertionError if a slot is retired that is wanted."""
        table = self._holdings.slots[HOST]
        missing = self._holdings.host_target - table.num_usable
        assert missing <= 0 or not table.count(SlotState.RETIRED), f"{missing} host slots are missing"
