"""What transfers have carried, how much of it did not arrive, and how long they took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiering.moves import Demote, Promote, Read, SwapIn, SwapOut, Write

Transfer = Demote | Promote | SwapOut | SwapIn | Read | Write
"""The moves that somebody answers."""

NAMES: dict[type, str] = {
    Demote: "demote",
    Promote: "promote",
    SwapOut: "swap_out",
    SwapIn: "swap_in",
    Read: "read",
    Write: "write",
}


@dataclass(slots=True)
class _Figures:
    moves: int = 0
    blocks: int = 0
    bytes: int = 0
    busy_s: float = 0.0
    failed_blocks: int = 0


class Transfers:
    """Figures by kind of move, counted where moves are answered.

    `moves` are those that have ended; `blocks` and `bytes` are what arrived, of reads and writes as they lie on disk;
    `busy_s` is the sum, over moves, of the time from asking to the answer. One thread counts, any may read.
    """

    def __init__(self) -> None:
        self._by_kind = {kind: _Figures() for kind in NAMES}

    def ended(self, move: Transfer, took_s: float, failed_blocks: int, num_bytes: int) -> None:
        """It is over. `num_bytes`: of what arrived."""
        figures, num_blocks = self._by_kind[type(move)], len(move.host_slots)
        figures.moves += 1
        figures.blocks += num_blocks - failed_blocks
        figures.failed_blocks += failed_blocks
        figures.bytes += num_bytes
        figures.busy_s += took_s

    def stats(self, in_flight: Mapping[type, int]) -> dict[str, dict[str, Any]]:
        """The figures by the move's name. `in_flight`: blocks of moves of each kind that are not over."""
        return {
            NAMES[kind]: {
                "moves": figures.moves,
                "blocks": figures.blocks,
                "bytes": figures.bytes,
                "busy_s": figures.busy_s,
                "failed_blocks": figures.failed_blocks,
                "in_flight_blocks": in_flight[kind],
            }
            for kind, figures in self._by_kind.items()
        }
