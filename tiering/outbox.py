"""Moves that the core has asked for: to be taken by the driver, and then in flight until they are answered."""

from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

from tiering.moves import Forget, Move, Retain, Touch, Unname
from tiering.transfers import Transfer, Transfers

_Kind = TypeVar("_Kind", bound=Transfer)


@dataclass(slots=True)
class _Flight:
    move: Transfer
    since_s: float
    overdue: bool = False


class Outbox:
    """Numbers moves, hands them out once, and remembers which are not over, and since when."""

    def __init__(self) -> None:
        self._last_number = 0
        self._new: list[Move] = []
        self._in_flight: dict[int, _Flight] = {}
        self._blocks: Counter[type] = Counter()
        self._overdue: Counter[type] = Counter()
        self.transfers = Transfers()
        self.now_s = 0.0
        """The time as of the last `at`."""
        self.num_expired = 0
        """Moves that have become overdue, ever."""

    def next_number(self) -> int:
        """A number for the next move. Numbers are never reused."""
        self._last_number += 1
        return self._last_number

    def send(self, move: Move) -> None:
        """Ask for a move."""
        self._new.append(move)
        if not isinstance(move, Forget | Touch | Retain | Unname):
            self._in_flight[move.number] = _Flight(move, self.now_s)
            self._blocks[type(move)] += _num_blocks(move)
            self.transfers.asked(move)

    def take(self) -> list[Move]:
        """The moves asked for since the last call, in the order in which they must be started."""
        new, self._new = self._new, []
        return new

    def answered(self, number: int) -> tuple[Transfer, float]:
        """The move that is over, and how long ago it was asked for. Each is answered once."""
        flight = self._in_flight.pop(number)
        if flight.overdue:
            self._overdue[type(flight.move)] -= 1
        else:
            self._blocks[type(flight.move)] -= _num_blocks(flight.move)
        return flight.move, self.now_s - flight.since_s

    def in_flight(self, number: int) -> Transfer:
        """A move that is not over."""
        return self._in_flight[number].move

    def numbers(self, kind: type) -> list[int]:
        """The moves of this kind that are not over."""
        return [number for number, flight in self._in_flight.items() if type(flight.move) is kind]

    def moves(self, kind: type[_Kind]) -> list[_Kind]:
        """The moves of this kind that are not over."""
        return [flight.move for flight in self._in_flight.values() if isinstance(flight.move, kind)]

    def blocks_in_flight(self, kind: type) -> int:
        """Blocks of all moves of this kind that are neither over nor overdue."""
        return self._blocks[kind]

    # --- time -----------------------------------------------------------------------------------------------------

    def at(self, now_s: float) -> None:
        """It is `now_s`: what is sent from here on is in flight since then."""
        self.now_s = now_s

    def expire(self, kind: type, deadline_s: float) -> list[Transfer]:
        """The moves of this kind that have been in flight for `deadline_s`; each is told once and is overdue then."""
        late = [
            flight
            for flight in self._in_flight.values()
            if type(flight.move) is kind and not flight.overdue and self.now_s - flight.since_s >= deadline_s
        ]
        for flight in late:
            flight.overdue = True
            self.num_expired += 1
            self._overdue[kind] += 1
            self._blocks[kind] -= _num_blocks(flight.move)
        return [flight.move for flight in late]

    def num_overdue(self, kind: type) -> int:
        """Moves of this kind that took too long and are still not over."""
        return self._overdue[kind]

    def oldest_s(self, kind: type) -> float | None:
        """Since when the oldest move of this kind is in flight that is not overdue; None if there is none."""
        return min(
            (
                flight.since_s
                for flight in self._in_flight.values()
                if type(flight.move) is kind and not flight.overdue
            ),
            default=None,
        )

    @property
    def hangs(self) -> bool:
        """Whether something has taken too long and is still not over."""
        return any(self._overdue.values())

    @property
    def is_moving(self) -> bool:
        """Whether something is in flight that is not overdue."""
        return any(self._blocks.values())

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for and nothing is in flight, save what is overdue."""
        return not self._new and not self.is_moving


def _num_blocks(move: Transfer) -> int:
    return len(move.host_slots)
