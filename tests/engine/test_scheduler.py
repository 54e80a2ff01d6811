"""The scheduler and its sequences over the core and a model of memory: what becomes of KV that comes and goes."""

import numpy as np
import pytest

from engine import RequestOptions, SamplingParams
from engine.request import Marks, Request
from engine.salt import Salt
from engine.sampling import Choice, Dice
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.text import ReplyText
from tests.tiering.memory_model import DIED
from tests.tiering.small_tiers import BLOCK_TOKENS, lookup, model, stats
from tiering.residency import Tier

REPLY = 5  # each token of each reply


class Turns:
    """The engine's loop without a model: what a step computes is noted in memory by owner and position."""

    def __init__(self, tiers, *, max_batch_tokens=8, deterministic=False) -> None:
        self.tiers, self.deterministic = tiers, deterministic
        self.scheduler = Scheduler(
            tiers.index,
            block_tokens=BLOCK_TOKENS,
            max_num_seqs=8,
            max_batch_tokens=max_batch_tokens,
            deterministic=deterministic,
        )

    def add(self, prompt, max_tokens):
        request = Request(
            number=0,
            prompt=np.array(prompt, dtype="<i4"),
            params=SamplingParams(max_tokens=max_tokens),
            options=RequestOptions(),
            max_tokens=max_tokens,
            marks=Marks(submitted_s=0.0),
        )
        sequence = Sequence(
            request=request,
            eos_ids=frozenset(),
            block_tokens=BLOCK_TOKENS,
            deterministic=self.deterministic,
            salt=Salt(request.options, len(prompt), BLOCK_TOKENS),
            text=ReplyText(None),
            dice=Dice(0, 0),
        )
        self.scheduler.add(sequence)
        return sequence

    def step(self):
        self.tiers.settle()
        self.scheduler.admit(news=True)
        self.tiers.settle()
        for sequence, chunk in self.scheduler.next_step():
            for position in range(chunk.start, chunk.end):
                slot = chunk.slots.item(position // BLOCK_TOKENS)
                self.tiers.memory[Tier.DEVICE, slot] = (id(sequence), position)
            sequence.computed(chunk)
            first, end = chunk.start // BLOCK_TOKENS, chunk.end // BLOCK_TOKENS
            if end > first and not (chunk.decode and self.deterministic):
                self.tiers.index.publish(sequence.lease, sequence.indexable, first, end)
            if chunk.wants_logits:
                sequence.accept(Choice(REPLY, None, is_sound=True))

    def make_way(self, older, num_blocks):
        """The older one needs room, and the youngest gives its own."""
        self.scheduler._requests.grow(older, num_blocks)
        self.tiers.settle()


def test_no_block_is_indexed_before_its_last_token_is_computed():
    """The last token of a reply has no KV yet, although it is known, and the block it ends came back with a stash."""
    tiers = model(device=6, host=2)
    turns = Turns(tiers)
    older, younger = turns.add([1], 11), turns.add([2, 2], 4)
    turns.step()
    turns.step()
    assert (younger.num_computed, younger.num_tokens) == (3, 4)
    turns.make_way(older, 6)
    assert younger.stash is not None
    assert tiers.index.clear() is False, "the older one runs"
    turns.scheduler.remove(older)
    turns.step()
    assert (younger.num_computed, younger.num_tokens) == (3, 4), (
        "it is back, and its first block was computed again"
    )
    turns.scheduler.remove(younger)
    assert lookup(tiers, 2, REPLY) == {"device": 1}


def test_what_came_back_is_not_saved_again_while_a_gap_before_it_is_open():
    tiers = model(device=10, host=8, loads=False, write_budget_blocks=1)
    turns = Turns(tiers, max_batch_tokens=2)
    older, younger = turns.add([1], 17), turns.add([2] * 6, 4)
    while not younger.reply or younger.gaps:
        turns.step()
    turns.step()
    turns.make_way(older, len(older.lease.slots) + stats(tiers, "device")["free"] + 1)
    assert (younger.stash.start, len(younger.stash)) == (3, 1)
    turns.scheduler.remove(older)
    tiers.settle()
    sweep = tiers.index.sweep(Tier.HOST, then_free=True)
    first = tiers.index._holdings.radix.match(younger.prompt)[0]
    while not sweep.done:  # only the first block goes down: without loads it is a gap
        tiers.plan()
        for number, flight in list(tiers.flights.items()):
            tiers.complete(number, error=None if first in flight.move.ids else DIED)
    assert tiers.where([2] * 6) == ["H", "D", "D"]
    turns.step()
    assert younger.gaps, "one chunk of several has been computed"
    assert younger.num_used_blocks() == 0


@pytest.mark.parametrize("deterministic", [False, True])
def test_what_is_prefilled_after_a_preemption(deterministic):
    """Prompt and reply together; in the deterministic mode the prompt, and then the reply token by token."""
    tiers = model(device=6)
    turns = Turns(tiers, deterministic=deterministic)
    older, younger = turns.add([1], 11), turns.add([2, 2, 2], 4)
    turns.step()
    turns.step()
    assert younger.reply == [REPLY, REPLY]
    turns.make_way(older, 6)
    assert younger.stash is None
    turns.scheduler.remove(older)
    tiers.index.clear()
    tiers.settle()
    turns.scheduler.admit(news=True)
    [(_, chunk)] = turns.scheduler.next_step()
    assert chunk.tokens.tolist() == ([2, 2, 2] if deterministic else [2, 2, 2, REPLY, REPLY])
    assert chunk.wants_logits is not deterministic


def test_what_a_prompt_took_is_counted_from_the_admission_that_computed_it():
    """Not from one before a preemption: what it waited for since then is no load, and no prefill of the part that was left."""
    tiers = model(device=6)
    turns = Turns(tiers, max_batch_tokens=2)
    older, younger = turns.add([1], 11), turns.add([2] * 6, 4)
    turns.step()
    marks = younger.request.marks
    first_s = marks.loaded_s
    assert first_s >= marks.admitted_s > 0
    assert younger.gaps, "one chunk of several has been computed"
    turns.make_way(older, 6)
    assert (younger.lease, marks.admitted_s, marks.loaded_s) == (None, 0.0, 0.0)
    turns.scheduler.remove(older)
    turns.step()
    assert marks.loaded_s >= marks.admitted_s > first_s
