"""What loops over columns have in common: numbers of states and tiers, as they stand in them, and how a loop is compiled."""

from typing import Any, Final

ABSENT: Final = 0
"""This and the next two are tiering.residency.State, the following its Tier."""
WRITING: Final = 1
PRESENT: Final = 2

DEVICE: Final = 0
HOST: Final = 1
DISK: Final = 2

FREE: Final = 0
"""This and the next two are of tiering.slot_table.SlotState."""
INDEXED: Final = 2
IN_FLIGHT: Final = 3

NO_BLOCK: Final = -1

INSIDE: Final[dict[str, Any]] = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Of what is called by what is compiled: see kvstore.scratch."""
