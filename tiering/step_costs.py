"""What a step of an engine takes, by what is in it, and a move, by its blocks: what a replay is told."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


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


@dataclass(frozen=True, slots=True)
class Part:
    """What a step computes of one request: `num_tokens` behind `start` others."""

    start: int
    num_tokens: int
    decode: bool


def terms(parts: Iterable[Part]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """What a step is charged for, in the order of StepCosts' fields."""
    found = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    for part in parts:
        if part.decode:
            found[3:] += 1, part.start + 1
        else:
            found[1:3] += part.num_tokens, part.num_tokens * (part.start + part.num_tokens / 2)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveCosts:
    """Seconds of one move: until it begins, and for each block."""

    latency_s: float = 0.0
    block_s: float = 0.0

    def seconds(self, num_blocks: int) -> float:
        """Of one with so many blocks."""
        return self.latency_s + self.block_s * num_blocks
