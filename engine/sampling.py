"""Choosing the next tokens from logits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .params import SamplingParams
from .results import TokenLogprob

ROWS_AT_ONCE = 64
"""Logits that tokens are drawn from together, at most: each row takes memory of several vocabularies."""

_SEED_BITS = 64
_FIRST_TRIED = 1024  # most probable tokens in which top_p and min_p mostly end


@dataclass(frozen=True, slots=True)
class Draw:
    """One row of logits, and what decides over it.

    uniform: the random number in [0, 1) that picks the token; unused at temperature 0.   known: int32 [prompt + reply],
    of which the last `num_replied` are the reply: what penalties look at.
    """

    params: SamplingParams
    uniform: float
    known: NDArray[np.int32]
    num_replied: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token, and what was asked to be told of it. `is_sound`: whether the row held numbers at all."""

    token: int
    logprob: TokenLogprob | None
    is_sound: bool


class Dice:
    """The random numbers of one reply: a stream of its own (Philox), so that no other request moves it."""

    def __init__(self, seed: int | None, index: int) -> None:
        """`index`: which of the replies to one prompt it is. Without a seed no two are alike."""
        key = secrets.randbits(_SEED_BITS) if seed is None else seed
        self._numbers = np.random.Generator(np.random.Philox(key=np.array([key, index], dtype=np.uint64)))

    def roll(self) -> float:
        """The next number in [0, 1)."""
        return float(self._numbers.random())


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """The next token for each row of [rows, vocab], float32 on any device; the smallest id where several tie.

    Changes nothing. Waits for the device that computes the logits. What a row gives does not depend on other rows.
    """
    if not draws:
        return []
    allowed = _penalised(logits, draws)
    tokens = allowed.argmax(dim=-1)
    sound = logits.amax(dim=-1).isfinite()  # a NaN anywhere is the largest of its row
    for row, draw in enumerate(draws):
        if draw.params.temperature > 0 and sound[row]:
            tokens[row] = _drawn(allowed[row], draw)
    logprobs = [_logprob(logits[row], tokens[row], draw.params.logprobs) for row, draw in enumerate(draws)]
    return [
        Choice(token, logprob, is_sound)
        for token, logprob, is_sound in zip(tokens.tolist(), logprobs, sound.tolist(), strict=True)
    ]


def _penalised(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """The logits after each row's penalties; a copy if there are any."""
    rows = [row for row, draw in enumerate(draws) if draw.params.penalises]
    if rows:
        logits = logits.clone()
    for row in rows:
        draw, params = draws[row], draws[row].params
        ids = torch.from_numpy(np.unique(draw.known).astype(np.int64)).to(logits.device)
        seen = logits[row, ids]
        penalty = params.repetition_penalty
        logits[row, ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
        said, times = np.unique(draw.known[len(draw.known) - draw.num_replied :], return_counts=True)
        ids = torch.from_numpy(said.astype(np.int64)).to(logits.device)
        taken_off = params.presence_penalty + params.frequency_penalty * times
        logits[row, ids] -= torch.from_numpy(taken_off).to(logits.device, logits.dtype)
    return logits


def _drawn(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """A token of one row at random, int64 []: the one at which the cumulated probabilities pass `uniform`.

    In float64, so that rounding moves a border between two tokens by next to nothing. Sorts no more than it must: a
    vocabulary takes tens of milliseconds.
    """
    params = draw.params
    scaled = (logits.double() - logits.max()) / params.temperature
    if not (params.top_k or params.top_p < 1.0 or params.min_p):
        return _picked(scaled.exp().cumsum(dim=0), draw.uniform)
    whole = scaled.exp().sum()
    num = min(params.top_k or _FIRST_TRIED, len(scaled))
    while True:
        best, ids = scaled.topk(num)
        probabilities = best.exp() / (best.exp().sum() if params.top_k else whole)
        before = probabilities.cumsum(dim=0) - probabilities
        kept = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
        kept[0] = True
        if params.top_k or num == len(scaled) or not kept[-1]:
            return ids[_picked((probabilities * kept).cumsum(dim=0), draw.uniform)]
        num = len(scaled)


def _picked(cumulated: torch.Tensor, uniform: float) -> torch.Tensor:
    """Where cumulated weights pass `uniform` of their sum: never at a weight of 0, whatever the rounding."""
    at = torch.searchsorted(cumulated, cumulated[-1:] * uniform, right=True)
    last = torch.searchsorted(cumulated, cumulated[-1:])  # the first at which the sum is whole
    return torch.minimum(at, last)[0]


def _logprob(logits: torch.Tensor, token: torch.Tensor, num_top: int | None) -> TokenLogprob | None:
    if num_top is None:
        return None
    logprobs = logits.double().log_softmax(dim=-1)
    best, ids = logprobs.topk(min(num_top, len(logprobs)))
    return TokenLogprob(
        token_id=int(token),
        logprob=float(logprobs[token]),
        top=tuple(zip(ids.tolist(), best.tolist(), strict=True)),
    )
