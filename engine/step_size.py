"""How large a step can be, and the chunks of such a step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .chunk import Chunk
from .pool import DevicePool


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSize:
    """A step that computes parts of prompts and decodes besides; every sequence wants logits.

    prompt_tokens: computed of all prompts together.   context_tokens: how long each sequence is once that is done.
    num_seqs: sequences in the step.
    """

    prompt_tokens: int
    context_tokens: int
    num_seqs: int

    def chunks(self, pool: DevicePool, *, apart: bool = False) -> list[Chunk]:
        """The step over a pool's scratch slot, which stands for all blocks and is all that it writes to.

        apart: the decodes begin with different blocks, as far as the pool has some, which they only read. Else all of them
        share what is before their last block, and attend over it together.
        """
        prompts = list(self._prompts(pool))
        decodes = [self._decode(pool, i if apart else None) for i in range(self.num_seqs - len(prompts))]
        return [*prompts, *decodes]

    def _prompts(self, pool: DevicePool) -> Iterator[Chunk]:
        """The last chunk of a prompt, and as many more prompts as it takes to fill the step."""
        left = self.prompt_tokens
        for _ in range(self.num_seqs):
            num_tokens = min(left, self.context_tokens)
            if num_tokens < 1:
                return
            left -= num_tokens
            yield self._chunk(pool, num_tokens)

    def _decode(self, pool: DevicePool, first_slot: int | None) -> Chunk:
        chunk = self._chunk(pool, 1, decode=True)
        is_read_only = len(chunk.slots) > 1  # its first block: the token goes to its last
        if first_slot is not None and is_read_only:
            chunk.slots[0] = first_slot % pool.num_slots
        return chunk

    def _chunk(self, pool: DevicePool, num_tokens: int, *, decode: bool = False) -> Chunk:
        num_blocks = -(-self.context_tokens // pool.layout.block_tokens)
        return Chunk(
            tokens=np.ones(num_tokens, dtype=np.int32),  # not 0: often padding, embedded as zeros
            start=self.context_tokens - num_tokens,
            slots=np.full(num_blocks, pool.scratch, dtype=np.intp),
            wants_logits=True,
            decode=decode,
        )
