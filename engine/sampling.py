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
_FIRST_LEAST = 2**-8  # of the largest weight: the tokens that weigh as much are tried as candidates
_STEP = 16  # where those are not enough, the ones that weigh this many times less are too
_ROUNDING = 1e-9  # far more than float64 loses in a sum over a vocabulary


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


def choose_from(logits: torch.Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> list[Choice]:
    """`choose` for draws of which each looks at one of the rows of [R, vocab], a bounded number of them together."""
    choices: list[Choice] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = list(rows[start : start + ROWS_AT_ONCE])
        in_order = some == list(range(some[0], some[0] + len(some)))  # as mostly: megabytes less to copy
        wanted = logits[some[0] : some[0] + len(some)] if in_order else logits[some]
        choices += choose(wanted, draws[start : start + ROWS_AT_ONCE])
    return choices


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """The next token for each row of [rows, vocab], float32 on any device; the smallest id where several tie.

    Changes nothing. Waits for the device that computes the logits. What a row gives does not depend on other rows.
    """
    if not draws:
        return []
    tokens, sound = _most_probable(logits)
    others = [row for row, draw in enumerate(draws) if sound[row] and not draw.params.takes_the_best]
    if others:
        chosen = torch.stack([_chosen(logits[row], draws[row]) for row in others])
        for row, token in zip(others, chosen.tolist(), strict=True):  # one wait for all of them
            tokens[row] = token
    return [
        Choice(token, _logprob(logits[row], token, draw.params.logprobs), is_sound)
        for row, (token, is_sound, draw) in enumerate(zip(tokens, sound, draws, strict=True))
    ]


def _most_probable(logits: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Of each row the token with the largest logit, and whether the row is of numbers: a NaN anywhere is its largest."""
    if logits.device.type == "cpu":
        # numpy's argmax takes a tenth of the time of torch's, with the same answer
        rows = logits.numpy()
        best = rows.argmax(axis=1)
        return best.tolist(), np.isfinite(rows[np.arange(len(rows)), best]).tolist()
    largest, ids = logits.max(dim=-1)
    sound = largest.isfinite().to(ids.dtype)
    tokens, is_sound = torch.stack([ids, sound]).tolist()
    return tokens, [bool(each) for each in is_sound]


def _chosen(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """The token of one row that is not simply the most probable one, int64 []."""
    allowed = _penalised(logits, draw) if draw.params.penalises else logits
    return _drawn(allowed, draw) if draw.params.temperature > 0 else allowed.argmax()


def _penalised(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """A copy of a row with the draw's penalties."""
    params, logits = draw.params, logits.clone()
    if params.repetition_penalty != 1.0:
        ids = torch.from_numpy(np.unique(draw.known).astype(np.int64)).to(logits.device)
        seen = logits[ids]
        penalty = params.repetition_penalty
        logits[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
    if params.presence_penalty or params.frequency_penalty:
        said, times = np.unique(draw.known[len(draw.known) - draw.num_replied :], return_counts=True)
        ids = torch.from_numpy(said.astype(np.int64)).to(logits.device)
        taken_off = params.presence_penalty + params.frequency_penalty * times
        logits[ids] -= torch.from_numpy(taken_off).to(logits.device, logits.dtype)
    return logits


def _drawn(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """A token of one row at random, int64 []: the one at which the cumulated probabilities pass `uniform`.

    In float64, so that rounding moves a border between two tokens by next to nothing. Sorts no more than it must: a
    vocabulary takes milliseconds.
    """
    params = draw.params
    if params.top_k:
        best, ids = logits.topk(min(params.top_k, len(logits)))
        weights = _weights(best, best[0], params.temperature)
        return ids[_among_the_best(weights, weights.sum(), draw)]
    weights = _weights(logits, logits.max(), params.temperature)
    if params.top_p == 1.0 and not params.min_p:
        return _picked(weights.cumsum(dim=0), draw.uniform)
    whole = weights.sum()
    candidates = _candidates(weights, whole.item(), params)
    best, order = weights[candidates].sort(descending=True, stable=True)
    return candidates[order[_among_the_best(best, whole, draw)]]


def _candidates(weights: torch.Tensor, whole: float, params: SamplingParams) -> torch.Tensor:
    """The tokens that weigh more than some weight, all that top_p and min_p keep among them: mostly some hundreds."""
    # All tokens that weigh at most w are at most len(weights) * w together. Where that is less than what top_p leaves out
    # they are left out. Half of either bound, as sums are rounded.
    bound = max((1 - params.top_p) / len(weights) * whole, params.min_p) / 2
    enough = (params.top_p + _ROUNDING) * whole
    least = max(bound, _FIRST_LEAST)
    while True:
        found = _at_least(weights, least)
        if least == bound or weights[found].sum().item() >= enough:
            return found
        least = max(bound, least / _STEP)


def _at_least(weights: torch.Tensor, least: float) -> torch.Tensor:
    """Where weights are not smaller, int64, ascending."""
    if weights.device.type == "cpu":  # numpy takes an eighth of the time of torch's nonzero
        return torch.from_numpy(np.flatnonzero(weights.numpy() >= least))
    return (weights >= least).nonzero()[:, 0]


def _weights(logits: torch.Tensor, largest: torch.Tensor, temperature: float) -> torch.Tensor:
    """What is proportional to probabilities: 1 for the largest logit."""
    return logits.double().sub_(largest).div_(temperature).exp_()


def _among_the_best(weights: torch.Tensor, whole: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Which of the largest weights, in descending order, is drawn, of those that top_p and min_p keep. int64 []."""
    probabilities = weights / whole
    before = probabilities.cumsum(dim=0) - probabilities
    kept = (before < draw.params.top_p) & (probabilities >= draw.params.min_p * probabilities[0])
    kept[0] = True
    return _picked((probabilities * kept).cumsum(dim=0), draw.uniform)


def _picked(cumulated: torch.Tensor, uniform: float) -> torch.Tensor:
    """Where cumulated weights pass `uniform` of their sum: never at a weight of 0, whatever the rounding."""
    at = torch.searchsorted(cumulated, cumulated[-1:] * uniform, right=True)
    last = torch.searchsorted(cumulated, cumulated[-1:])  # the first at which the sum is whole
    return torch.minimum(at, last)[0]


def _logprob(logits: torch.Tensor, token: int, num_top: int | None) -> TokenLogprob | None:
    if num_top is None:
        return None
    logprobs = logits.double().log_softmax(dim=-1)
    best, ids = logprobs.topk(min(num_top, len(logprobs)))
    return TokenLogprob(
        token_id=token,
        logprob=float(logprobs[token]),
        top=tuple(zip(ids.tolist(), best.tolist(), strict=True)),
    )
