"""A run of one sequence's tokens that one forward computes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence that one forward computes.

    tokens: int32 [T], T >= 1.
    start: position of the first of them; the KV of all tokens before it is in `slots` already.
    slots: intp, the sequence's block table in order: position p lies in slots[p // block_tokens]. At least as
        many as start + T tokens need; more are ignored.
    wants_logits: whether the logits of the last token are wanted.
    decode: the chunk is one token after the prompt. Decodes share one attention call; in deterministic mode each
        has a call of its own. A one-token chunk without this flag is computed as a prefill.
    """

    tokens: NDArray[np.int32]
    start: int
    slots: NDArray[np.intp]
    wants_logits: bool
    decode: bool = False

    @property
    def end(self) -> int:
        """Position after the last token: the number of tokens whose KV the last one sees."""
        return self.start + len(self.tokens)


class StepSlots:
    """The slots that a step reads, or those that it writes; put together when somebody looks, as few steps need it."""

    def __init__(self, chunks: Sequence[Chunk], block_tokens: int, *, written: bool = False) -> None:
        self._chunks, self._block_tokens, self._written = chunks, block_tokens, written

    def __iter__(self) -> Iterator[int]:
        size = self._block_tokens
        parts = [
            chunk.slots[chunk.start // size if self._written else 0 : -(-chunk.end // size)]
            for chunk in self._chunks
        ]
        return iter(np.concatenate(parts).tolist())
