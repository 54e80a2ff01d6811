"""Which copies of single slots are one copy of several."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvstore.slots import SlotMemory


class Run(NamedTuple):
    """`length` slots that follow each other in both memories, from `destination` and `source` on."""

    destination: int
    source: int
    length: int


def runs(
    destination: SlotMemory,
    destination_slots: Sequence[int],
    source: SlotMemory,
    source_slots: Sequence[int],
) -> list[Run]:
    """The same pairs in as few runs as there can be, by ascending destination. None goes on over the end of a piece.

    Both sequences have one length, the destination's without duplicates. Empty sequences are no run.
    """
    if len(destination_slots) == 0:
        return []
    to, fro = np.array(destination_slots, dtype=np.intp), np.array(source_slots, dtype=np.intp)
    if (to[1:] < to[:-1]).any():
        order = np.argsort(to)
        to, fro = to[order], fro[order]
    breaks = (to[1:] - to[:-1] != 1) | (fro[1:] - fro[:-1] != 1)
    for slots, piece in ((to, destination.piece_slots), (fro, source.piece_slots)):
        if slots.max() >= piece:
            breaks |= slots[1:] // piece != slots[:-1] // piece
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    lengths = np.diff(np.concatenate((starts, [len(to)])))
    return [
        Run(*run) for run in zip(to[starts].tolist(), fro[starts].tolist(), lengths.tolist(), strict=True)
    ]
