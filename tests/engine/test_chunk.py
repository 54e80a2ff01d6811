"""The slots that a step touches, by definition: those of the blocks of its tokens, and of all tokens before them."""

import numpy as np
import pytest

from engine.chunk import Chunk, StepSlots

BLOCK = 16


def chunk(start, num_tokens, first_slot):
    slots = np.arange(first_slot, first_slot + 100, dtype=np.intp)
    tokens = np.zeros(num_tokens, dtype=np.int32)
    return Chunk(tokens=tokens, start=start, slots=slots, wants_logits=False, decode=num_tokens == 1)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(0, 1, 0)],
        [chunk(15, 1, 0), chunk(16, 1, 200)],
        [chunk(10, 30, 0), chunk(32, 16, 200), chunk(47, 1, 400), chunk(0, 33, 600)],
    ],
    ids=len,
)
def test_a_step_reads_the_blocks_up_to_its_last_tokens_and_writes_those_of_its_tokens(chunks):
    read, written = set(), set()
    for each in chunks:
        for position in range(each.end):
            slot = int(each.slots[position // BLOCK])
            read.add(slot)
            if position >= each.start:
                written.add(slot)
    found = StepSlots(chunks, BLOCK), StepSlots(chunks, BLOCK, written=True)
    for _ in range(2):  # each group of layers asks anew
        assert [sorted(slots) for slots in found] == [sorted(read), sorted(written)]
