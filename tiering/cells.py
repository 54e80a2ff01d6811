"""A residency's columns for one block at a time."""

from dataclasses import dataclass, fields
from typing import Any


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
