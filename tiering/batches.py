"""Into which reads a load is parted."""

from collections.abc import Iterator
from typing import Final

_LEAST_READS: Final = 2
"""In which a load that has many blocks comes: while the last ones are read the others go up."""
_LEAST_SHARE: Final = 8
"""No read is for less than such a part of what may be on its way: when one begins and when it ends the disk has little to do, milliseconds each time."""


def batches(num_blocks: int, num_left: int, budget: int, threads: int, batch: int) -> Iterator[slice]:
    """The first `num_blocks` of the `num_left` that a load has to read, in parts: large ones first, the last ones small.

    A read is for a thread's part of what is left, or of the budget if that is less, so that all end about together, but for `batch` blocks
    or an eighth of these at least where there are as many. Whatever ends takes a turn of the loop, for which it fights with those that read for Python's lock.
    (Guided self-scheduling: Polychronopoulos and Kuck, 1987.)
    """
    start, least = 0, max(batch, min(num_left, budget) // _LEAST_SHARE)
    while start < num_blocks:
        share = min(num_left - start, budget) // max(threads, _LEAST_READS)
        end = min(num_blocks, start + max(least, share))
        yield slice(start, end)
        start = end
