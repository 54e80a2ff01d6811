"""What a step of an engine takes, by what is in it, and a move, by its blocks: what a replay is told."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

_ALIKE: Final = 16
"""Observations that are drawn from: those of the steps most like it."""
AROUND_S: Final = 1.0
"""How far about a step that is asked for lie those that tell how fast the machine was then, as a normal distribution's deviation."""
_FAR: Final = 1e-9
"""What a step counts that is far from then: where none was near, the machine was as fast as in all of the run."""


class StepTimes(Protocol):
    """What tells how long a step takes."""

    def took_s(self, parts: "Sequence[Part]", now_s: float, random: np.random.Generator) -> float:
        """Seconds of a step with these parts that begins now, in the time of the run."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCosts:
    """Seconds of one step: for itself, for each token of prompts, for each pair of such a token and one that it sees; for each
    reply's token, and for each token that one sees.
    """

    step_s: float
    token_s: float
    pair_s: float = 0.0
    decode_s: float = 0.0
    context_s: float = 0.0

    def seconds(self, parts: Iterable["Part"]) -> float:
        """Of a step with these parts."""
        return float(
            terms(parts) @ np.array([self.step_s, self.token_s, self.pair_s, self.decode_s, self.context_s])
        )

    def took_s(self, parts: "Sequence[Part]", now_s: float, random: np.random.Generator) -> float:  # noqa: ARG002 - see StepTimes
        """Always the same."""
        return self.seconds(parts)


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """What a step computes of one request: `num_tokens` behind `start` others."""

    start: int
    num_tokens: int
    decode: bool

    @property
    def end(self) -> int:
        """One past its last token."""
        return self.start + self.num_tokens


def terms(parts: Iterable[Part]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """What a step is charged for, in the order of StepCosts' fields."""
    found = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    for part in parts:
        if part.decode:
            found[3:] += 1, part.start + 1
        else:
            found[1:3] += part.num_tokens, part.num_tokens * (part.start + part.num_tokens / 2)
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a run computed, when it began, in seconds from the run's beginning, and how long it took."""

    parts: tuple[Part, ...]
    began_s: float
    took_s: float


class Scatter:
    """What steps of a run took beside what they cost: as fast as the machine was around then, and as steps like them scattered.

    A machine that is shared is slow for seconds and then is not: what steps took is first divided by its pace, which is what those
    about the same time took together, by what they cost; what is left of each is drawn from. Steps are alike that compute
    as many tokens of prompts, and among them those that cost about as much.
    """

    def __init__(self, costs: StepCosts, steps: Sequence[Step], around_s: float = AROUND_S) -> None:
        """`steps`: at least one, and each costs something. `around_s`: infinite where the machine is to be as fast at all times."""
        self._costs, self._around_s = costs, around_s
        self._began_s = np.array([step.began_s for step in steps])
        self._took_s = np.array([step.took_s for step in steps])
        self._cost_s = np.array([costs.seconds(step.parts) for step in steps])
        paces = np.array([self.pace(began_s) for began_s in self._began_s.tolist()])
        likeness = np.array(
            [_likeness(step.parts, cost_s) for step, cost_s in zip(steps, self._cost_s.tolist(), strict=True)]
        )
        order = np.argsort(likeness, kind="stable")
        self._likeness = likeness[order]
        self.rests = (self._took_s / self._cost_s / paces)[order]
        """What each took, by what it should have at the machine's pace, in order of likeness."""

    def pace(self, now_s: float) -> float:
        """What steps took about that time, by what they cost."""
        near = np.exp(-0.5 * np.square((self._began_s - now_s) / self._around_s)) + _FAR
        return float(near @ self._took_s / (near @ self._cost_s))

    def took_s(self, parts: Sequence[Part], now_s: float, random: np.random.Generator) -> float:
        """As one of those took that are most like it, at the pace of that time."""
        cost_s = self._costs.seconds(parts)
        likeness = _likeness(parts, cost_s)
        left, right = (int(self._likeness.searchsorted(likeness, side)) for side in ("left", "right"))
        first = max(0, min((left + right - _ALIKE) // 2, len(self.rests) - _ALIKE))
        rest = self.rests[random.integers(first, min(first + _ALIKE, len(self.rests)))]
        return cost_s * self.pace(now_s) * float(rest)


def _likeness(parts: Iterable[Part], cost_s: float) -> float:
    """By tokens of prompts, and behind the point by cost."""
    return sum(part.num_tokens for part in parts if not part.decode) + cost_s / (1.0 + cost_s)


class SameSteps(Scatter):
    """A step that computes just what one of the run computed takes what that took, of several the nearest; others scatter."""

    def __init__(self, costs: StepCosts, steps: Sequence[Step]) -> None:
        """As Scatter's."""
        super().__init__(costs, steps)
        self._same: defaultdict[tuple[Part, ...], list[Step]] = defaultdict(list)
        for step in steps:
            self._same[_in_order(step.parts)].append(step)

    def took_s(self, parts: Sequence[Part], now_s: float, random: np.random.Generator) -> float:
        """See above."""
        same = self._same.get(_in_order(parts))
        if same is None:
            return super().took_s(parts, now_s, random)
        return min(same, key=lambda step: abs(step.began_s - now_s)).took_s


def _in_order(parts: Iterable[Part]) -> tuple[Part, ...]:
    return tuple(sorted(parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveCosts:
    """Seconds of one move: until it begins, and for each block."""

    latency_s: float = 0.0
    block_s: float = 0.0

    def seconds(self, num_blocks: int) -> float:
        """Of one with so many blocks."""
        return self.latency_s + self.block_s * num_blocks
