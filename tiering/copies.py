"""Copies in memory that end: each with the slot that it lies in, in one pass over the blocks. docs/adr/0023 says why here."""

from typing import Final

from tiering.kernels import kernels
from tiering.residency import Ids, Residency, State, Tier
from tiering.slot_table import SlotState, SlotTable

_WRITING, _PRESENT = map(int, (State.WRITING, State.PRESENT))
_SLOT_OF: Final = {_WRITING: SlotState.IN_FLIGHT, _PRESENT: SlotState.INDEXED}
"""The state of a slot in which a copy in a state lies."""


class Copies:
    """Of one tier in memory. The columns are the residency's and the table's own, which count and check them: nothing is kept here."""

    def __init__(self, tier: Tier, residency: Residency, table: SlotTable, other: Tier) -> None:
        """`other`: the tier that is asked which of the same blocks it has."""
        self._tier, self._other = int(tier), int(other)
        self._residency, self._table, self._kernels = residency, table, kernels()

    def arrived(self, ids: Ids) -> int:
        """WRITING -> PRESENT, IN_FLIGHT -> INDEXED. How many of the blocks the other tier has whole."""
        residency, table = self._residency, self._table
        num_other = self._kernels.copies_arrive(
            residency.state, residency.place, self._tier, table.column, self._other, ids
        )
        assert num_other >= 0, "only a copy that was begun, in a slot that waits for it, can be finished"
        table.turned(len(ids), SlotState.IN_FLIGHT, SlotState.INDEXED)
        return num_other

    def left(self, ids: Ids, state: int) -> int:
        """PRESENT, or else WRITING -> ABSENT, and the slots FREE; nobody may be reading. Answers as `arrived`."""
        residency, table = self._residency, self._table
        num_other = self._kernels.copies_leave(
            residency.state,
            residency.readers,
            residency.place,
            self._tier,
            table.column,
            *table.stack,
            state,
            self._other,
            ids,
        )
        assert num_other >= 0, (
            f"only a copy in state {state} and its slot can be given up, and none with readers"
        )
        table.freed(len(ids), _SLOT_OF[state])
        return num_other
