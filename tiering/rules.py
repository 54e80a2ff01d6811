"""Which blocks may leave a tier, or are to be copied down, by number: tiering.loops has the rules, tiering.eligible asks them."""

from typing import Final

EVERY_BLOCK: Final = 0

# All others ask for a copy that is whole, out of which nothing is being copied, and that nobody holds there.

DEVICE_VICTIM: Final = 1
"""Of a block that no request has leased; without host memory nobody may hold it anywhere."""
HOST_CLEAN: Final = 2
"""A host copy that may go because the block is, or is about to be, elsewhere.

That includes blocks which a request is computing although the host has them, as it does below a hole: were their copies to stay, they
might have the very slots that the request needs for its loads. What is leased is elsewhere, save while it is being admitted.
"""
HOST_STORED: Final = 3
"""A host copy that may go because the disk has the block."""
HOST_VICTIM: Final = 4
"""A host copy that is the block's last, which nobody holds."""
HOST_DIRTY: Final = 5
"""A host copy of a block that the disk has not, and is not getting. What is held in host memory takes its place whether the disk has it
or not."""
DISK_VICTIM: Final = 6
"""A record of a block that the device has as well, or that nobody holds and no request has leased."""

# Of the blocks that meet a rule a part is one owner's, of one rank, or both.

EVERYBODY: Final = -1
"""In place of an owner's number: of everybody's blocks alike."""
ANY_RANK: Final = 2
"""In place of a rank."""
