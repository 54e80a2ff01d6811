"""A residency's columns for one block at a time, and for many whose ids count up: neither needs an array of ids."""

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LONG_RUN: Final = 256  # ids among which it pays to look whether they are a run


@dataclass(slots=True)
class Cells:
    """Columns as memoryviews, those by tier one for each: a block's value is a Python int, read or written in half the time that an
    array takes.
    """

    live: "memoryview[bool]"
    parent: "memoryview[int]"
    num_children: "memoryview[int]"
    node: "memoryview[int]"
    fingerprint: "memoryview[int]"
    stamp: "memoryview[int]"
    owner: "memoryview[int]"
    rank: "memoryview[int]"
    term: "memoryview[int]"
    hits: "memoryview[int]"
    leases: "memoryview[int]"
    has_key: "memoryview[bool]"
    state: "tuple[memoryview[int], ...]"
    place: "tuple[memoryview[int], ...]"
    readers: "tuple[memoryview[int], ...]"
    held: "tuple[memoryview[int], ...]"

    @classmethod
    def of(cls, residency: object) -> "Cells":
        """Those of a `Residency` as it is now."""
        cells: dict[str, Any] = {}
        for field in fields(cls):
            column = getattr(residency, field.name)
            cells[field.name] = memoryview(column) if column.ndim == 1 else tuple(map(memoryview, column))
        return cls(**cells)


def run_of(ids: NDArray[np.intp]) -> slice | None:
    """Ids that count up one by one, as a slice: by it a column is read and written in a tenth of the time. None for others, and
    for so few that it makes no difference.
    """
    n = len(ids)
    if n < _LONG_RUN:
        return None
    first = ids.item(0)
    if ids.item(n - 1) - first != n - 1 or np.count_nonzero(ids[1:] > ids[:-1]) < n - 1:
        return None
    return slice(first, first + n)


def add(column: NDArray[np.int32], path: NDArray[np.intp], change: int) -> None:
    """Change the counts of a path's blocks, none of which may fall below zero."""
    run = run_of(path)
    counts = column.take(path) if run is None else column[run]
    assert change > 0 or np.count_nonzero(counts) == len(path), "a path is released as often as it was leased"
    counts += change
    if run is None:
        column[path] = counts
