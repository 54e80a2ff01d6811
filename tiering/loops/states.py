"""What loops over columns have in common: numbers of states, tiers and places, as they stand in them, and how a loop is compiled."""

from typing import Any, Final

ABSENT: Final = 0
"""This and the next two are tiering.residency.State, the following its Tier."""
WRITING: Final = 1
PRESENT: Final = 2

DEVICE: Final = 0
HOST: Final = 1
DISK: Final = 2

FREE: Final = 0
"""This and the next four are tiering.slot_table.SlotState."""
PRIVATE: Final = 1
INDEXED: Final = 2
IN_FLIGHT: Final = 3
RETIRED: Final = 4
STACKED, FRESH = 5, 6
"""What a slot table counts behind the slots of each state: free ones on its stack, and those that were ever given out."""

DISK_BYTES, DISK_BLOCKS, DIRTY = range(3)
"""What a tally of copies says: bytes on disk, those of writes in flight included; whole blocks there; blocks whole in host memory that are
not whole on disk."""

NO_BLOCK: Final = -1

ROOT: Final = 0
"""The number of the radix index' root: no node is a child of that number, so it stands for none as well."""
UP, FIRST, LAST, COUNT, NEWEST, OLDER, NEWER, LIFE = range(8)
"""What a node's record says: the node above; its first and last block, and how many it has; the child that was added last; the
children of the same node that were added before and after this one; how often the number was given back."""

INSIDE: Final[dict[str, Any]] = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Of what is called by what is compiled: see kvstore.scratch."""
