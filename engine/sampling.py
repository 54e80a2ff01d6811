"""Choosing the next tokens from logits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .params import SamplingParams
from .results import TokenLogprob

_SEED_BITS = 64


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
    random = [row for row, draw in enumerate(draws) if draw.params.temperature > 0]
    if random:
        tokens[random] = _drawn(allowed[random], [draws[row] for row in random])
    sound = logits.amax(dim=-1).isfinite()  # a NaN anywhere is the largest of its row
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


def _drawn(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """A token of each row at random, int64 [rows]: the one at which the cumulated probabilities pass `uniform`.

    In float64, the most probable first: rounding then moves a border between two tokens by next to nothing, so that
    the same logits give the same token on any device.
    """

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    def setting(name: str) -> torch.Tensor:
        return column([getattr(draw.params, name) for draw in draws])

    ordered, ids = (logits.double() / setting("temperature")).sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(logits.shape[1], device=logits.device)
    most = column([draw.params.top_k or logits.shape[1] for draw in draws])
    probabilities = ordered.softmax(dim=-1) * (ranks < most)
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = (before < setting("top_p")) & (probabilities >= setting("min_p") * probabilities[:, :1])
    kept &= ranks < most
    kept[:, 0] = True
    cumulated = (probabilities * kept).cumsum(dim=-1)
    target = column([draw.uniform for draw in draws]) * cumulated[:, -1:]
    # what is kept is the first so many: rounding must not pick one behind them
    rank = torch.minimum((cumulated <= target).sum(dim=-1), kept.sum(dim=-1) - 1)
    return ids.gather(1, rank[:, None])[:, 0]


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
