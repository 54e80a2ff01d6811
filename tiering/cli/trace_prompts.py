"""Prompts for a real engine, made from the blocks of a trace: equal tokens where ids are equal, and the same each time."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiering.trace import TraceRequest, read_trace, whole_block_tokens

Tokens = NDArray[np.int32]

_EVERYBODYS: Final = 0.05
"""Blocks that more requests than such a part of them have are no group's: a system prompt, or tools."""

_SIZES: Final = (16, 32, 64, 128, 256, 512, 1024)
"""Blocks of sources that do not say how many tokens theirs have."""

_FIRST_TOKEN: Final = 100
"""Below are tokens that models give a meaning to."""


class Prompts:
    """The prompts of a part of a trace, at another size of block. Raises as `read_trace` does, ValueError for an empty part.

    The part is of whole groups, drawn at random: what begins alike stays together, so that of the whole trace's reuse the part has
    its share; of the first requests in a row it would have next to none.

    A block of the trace becomes one of `block_tokens`; a last one that is not whole, as sources other than recordings have, becomes
    shorter in proportion, and a recording's rest behind its whole blocks as well.
    """

    def __init__(self, path: Path, *, limit: int, block_tokens: int, vocabulary: int, seed: int) -> None:
        """`limit`: requests at most; `vocabulary`: below which tokens are; `seed`: of what is drawn, and of tokens."""
        self.requests = _groups(list(read_trace(path)), limit, seed)
        if not any(request.blocks for request in self.requests):
            raise ValueError(f"{path} has no blocks in it, or no group of {limit} requests at most")
        self._size, self._vocabulary, self._seed = block_tokens, vocabulary, seed
        whole = whole_block_tokens(path)
        self._of_source, self._only_whole = _block_tokens(self.requests) if whole is None else (whole, True)

    @property
    def num_distinct(self) -> int:
        """Different blocks."""
        return len({block for request in self.requests for block in request.blocks})

    def made(self, most_tokens: int) -> list[Tokens]:
        """One prompt a request, int32, cut off at so many tokens."""
        return [self._made(number, request)[:most_tokens] for number, request in enumerate(self.requests)]

    def _made(self, number: int, request: TraceRequest) -> Tokens:
        blocks = [self._block(0, block) for block in request.blocks]
        rest = self._rest_tokens(request)
        if self._only_whole or not blocks:
            blocks.append(self._block(1, number)[:rest])
        elif rest:
            blocks[-1] = blocks[-1][:rest]
        return np.concatenate(blocks)

    def _rest_tokens(self, request: TraceRequest) -> int:
        """Of what is not a whole block; 0 if all are, or nobody says."""
        rest = request.input_tokens % self._of_source if self._of_source else 0
        if not rest:
            return 0 if request.blocks else 1
        return max(1, rest * self._size // self._of_source)

    def _block(self, kind: int, number: int) -> Tokens:
        random = np.random.default_rng((self._seed, kind, number))
        return random.integers(
            min(_FIRST_TOKEN, self._vocabulary // 2), self._vocabulary, self._size, dtype=np.int32
        )


def _groups(requests: list[TraceRequest], limit: int, seed: int) -> list[TraceRequest]:
    """Of these requests so many at most, in their order: groups drawn at random, as long as the next one fits.

    A group begins with one block that not everybody's prompts have.
    """
    if len(requests) <= limit:
        return requests
    num_users = Counter(block for request in requests for block in request.blocks)
    groups: defaultdict[int | None, list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        rare = (block for block in request.blocks if num_users[block] <= _EVERYBODYS * len(requests))
        groups[next(rare, None)].append(number)
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    members = list(groups.values())
    chosen: list[int] = []
    for each in order:
        if len(chosen) + len(members[each]) <= limit:
            chosen += members[each]
    return [requests[number] for number in sorted(chosen)]


def _block_tokens(requests: Sequence[TraceRequest]) -> tuple[int, bool]:
    """Of a source that does not say: the size with which lengths and blocks agree best, and whether only whole blocks are named.

    (0, True) where lengths are not known: all blocks are whole, and nothing is behind them.
    """
    lengths = np.array([request.input_tokens for request in requests])
    counts = np.array([len(request.blocks) for request in requests])
    if not lengths.any():
        return 0, True
    agree = {
        (size, whole): int((counts == (lengths // size if whole else -(-lengths // size))).sum())
        for size in _SIZES
        for whole in (False, True)
    }
    return max(agree, key=lambda each: agree[each])
