"""Where prompts of live traffic leave what is cached, again and again, and what that costs."""

from dataclasses import dataclass
from typing import Final

from kvstore.reports import Advice, Difference, DifferenceKind

_MOST_PLACES: Final = 256

_VARYING: Final = frozenset(DifferenceKind) - {DifferenceKind.OTHER_TEXT}
"""Kinds of which something can be said; that prompts ask different things is what prompts are for."""


@dataclass(slots=True)
class _Place:
    difference: Difference
    requests: int = 0
    lost_tokens: int = 0
    lost_s: float = 0.0


class Costs:
    """Adds up differences by what they look like and where they are. Bounded: the cheapest places are forgotten."""

    def __init__(self) -> None:
        self._places: dict[tuple[DifferenceKind, int], _Place] = {}

    def add(self, difference: Difference, prefill_s_per_token: float, stands_for: int) -> None:
        """A prompt left what is cached. What follows the differing part and is the same was computed for nothing.

        `stands_for`: so many prompts, of which this one was looked at.
        """
        if difference.kind not in _VARYING or difference.kind is None:
            return
        place = self._places.setdefault((difference.kind, difference.at_token), _Place(difference))
        lost_tokens = (difference.same_after_tokens or 0) * stands_for
        place.difference = difference
        place.requests += stands_for
        place.lost_tokens += lost_tokens
        place.lost_s += lost_tokens * prefill_s_per_token
        if len(self._places) > _MOST_PLACES:
            cheapest = min(self._places, key=lambda key: self._places[key].lost_s)
            del self._places[cheapest]

    def forget_text(self) -> None:
        """Keep of the examples nothing that a prompt could be read from."""
        for place in self._places.values():
            place.difference = place.difference.without_text()

    def advice(self, *, text: bool) -> tuple[Advice, ...]:
        """The costliest places first. `text`: whether their examples have text."""
        places = sorted(self._places.items(), key=lambda item: (-item[1].lost_s, -item[1].requests))
        return tuple(
            Advice(
                kind=kind,
                sentence=place.difference.advice or "",
                at_token=at_token,
                requests=place.requests,
                lost_tokens=place.lost_tokens,
                lost_s=place.lost_s,
                example=place.difference if text else place.difference.without_text(),
            )
            for (kind, at_token), place in places
        )
