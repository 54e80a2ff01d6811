"""Moves that the core has asked for: to be taken by the driver, and then in flight until they are answered."""

from collections import Counter

from tiering.moves import Answer, Forget, Move


class Outbox:
    """Numbers moves, hands them out once, and remembers those that are not over."""

    def __init__(self) -> None:
        self._last_number = 0
        self._new: list[Move] = []
        self._in_flight: dict[int, Move] = {}
        self._blocks: Counter[type] = Counter()

    def next_number(self) -> int:
        """A number for the next move. Numbers are never reused."""
        self._last_number += 1
        return self._last_number

    def send(self, move: Move) -> None:
        """Ask for a move."""
        self._new.append(move)
        if not isinstance(move, Forget):
            self._in_flight[move.number] = move
            self._blocks[type(move)] += len(move.ids)

    def take(self) -> list[Move]:
        """The moves asked for since the last call, in the order in which they must be started."""
        new, self._new = self._new, []
        return new

    def answered(self, answer: Answer) -> Move:
        """The move that is over. Each is answered once."""
        move = self._in_flight.pop(answer.number)
        assert not isinstance(move, Forget), "nobody answers a Forget"
        self._blocks[type(move)] -= len(move.ids)
        return move

    def blocks_in_flight(self, kind: type) -> int:
        """Blocks of all moves of this kind that are not over."""
        return self._blocks[kind]

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for and nothing is in flight."""
        return not self._new and not self._in_flight
