"""Which replies attend over the same blocks, so that these are read once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CALL_BLOCKS = 8
"""What an attention call costs beyond what it reads, in blocks read."""


@dataclass(frozen=True, slots=True)
class Family:
    """Replies whose first `shared` blocks are the same slots.

    members: indices into what was given, longest first.
    """

    members: tuple[int, ...]
    shared: int


def families(tables: Sequence[NDArray[np.intp]]) -> list[Family]:
    """Sort block tables into families, each in exactly one.

    tables: of each reply, the slots of the blocks that are full. They form a tree: replies go apart where their blocks
    do, if what they share from there on is worth reading once more what they share with the rest.
    """
    if not tables:
        return []
    longest_first = sorted(range(len(tables)), key=lambda i: -len(tables[i]))
    return [
        Family(tuple(members), shared if len(members) > 1 else 0)
        for members, shared in _split(tables, longest_first)
    ]


def _split(tables: Sequence[NDArray[np.intp]], members: list[int]) -> list[tuple[list[int], int]]:
    """These, longest first, as families: each its members and what they share."""
    shared = _common(tables, members)
    branches: dict[int | None, list[int]] = {}
    for member in members:
        table = tables[member]
        branches.setdefault(int(table[shared]) if len(table) > shared else None, []).append(member)
    apart: list[tuple[list[int], int]] = []
    rest = members
    for branch in branches.values():
        saved = (len(branch) - 1) * (_common(tables, branch) - shared)
        if saved > shared + _CALL_BLOCKS:
            apart += _split(tables, branch)
            rest = [member for member in rest if member not in branch]
    return [*apart, (rest, shared)] if rest else apart


def _common(tables: Sequence[NDArray[np.intp]], members: Sequence[int]) -> int:
    """How many blocks all of these begin with alike."""
    first = tables[members[0]]
    shared = len(first)
    for member in members[1:]:
        table = tables[member][:shared]
        differs = np.flatnonzero(table != first[: len(table)])
        shared = int(differs[0]) if len(differs) else len(table)
    return shared
