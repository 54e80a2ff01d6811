"""Whole lives of blocks in the real cache, with an engine that enqueues far ahead and dies now and then.

Blocks are published, demoted and read by others while the kernel that makes them still waits in its stream.
"""

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from tests.tiering.virtual_process import LAYOUT, Process, key_of, kv_of
from tiering.eviction import Room
from tiering.lease import Lease
from tiering.leases import Wait
from tiering.residency import Tier
from tiering.swaps import Stash

TAIL = (7,)
"""Stands for the tokens of a block that is not whole: what a request has decoded for itself alone."""

MORE_BLOCKS = (2, 8)
"""A prompt has one of two first blocks, and up to two behind it, of which there are so many."""

FLUSH_S = 60.0  # never waited for: while the cache waits, the process goes on


def prompt_of(blocks):
    return [token for token in blocks for _ in range(LAYOUT.block_tokens)] + [9]


PROMPTS = [
    prompt_of(blocks)
    for num_more in range(len(MORE_BLOCKS) + 1)
    for blocks in itertools.product((1, 2), *map(range, MORE_BLOCKS[:num_more]))
]


@dataclass
class Request:
    tokens: list[int]
    max_blocks: int
    lease: Lease
    stash: Stash | None = None
    has_tail: bool = False
    """A block behind the whole ones has been written ..."""
    came_back: bool = False
    """... and swapped out since then; whether it has arrived is still to be seen."""
    ahead: tuple[int, int] | None = None
    """Blocks that were computed while others that they need were still on their way."""
    lost_before: int = 0

    def prefix(self, position):
        return tuple(self.tokens[: (position + 1) * LAYOUT.block_tokens])

    @property
    def whole_blocks(self):
        return len(self.tokens) // LAYOUT.block_tokens

    @property
    def array(self):
        return np.array(self.tokens, dtype="<i4")

    def look_for_tail(self):
        """Whether what was swapped out with the request is there again, once its loads are over."""
        if self.came_back:
            self.came_back = False
            self.has_tail = self.has_tail and bool(self.lease.ready[self.whole_blocks])
        return self.has_tail


class CacheWalk:
    def __init__(self, choose) -> None:
        self.choose = choose
        self.shelf, self.kv_by_key, self.counts = {}, {}, Counter()
        self.start()
        self.actions = [
            *[self.arrive] * 8,
            *[self.serve] * 6,
            *[self.compute] * 8,
            *[self.compute_ahead] * 6,
            *[self.break_off] * 6,
            *[self.decode] * 4,
            *[self.reply] * 2,
            *[self.release] * 6,
            *[self.preempt] * 3,
            *[self.resume] * 8,
            *[self.pump] * 8,
            *[self.run_device] * 8,
            *[self.run_job] * 4,
            *[self.sweep] * 5,
            *[self.settle] * 2,
            self.end_an_era,
        ]

    def start(self):
        self.process = Process(self.choose, self.shelf, self.kv_by_key, self.counts)
        self.cache = self.process.cache
        self.running: list[Request] = []
        self.preempted: list[Request] = []

    def act(self):
        self.choose(self.actions)()
        self.process.overwrite_what_is_free()
        self.process.check()

    # ---- requests

    def arrive(self):
        """One of a few documents with forks, so that prompts share blocks and push others out."""
        if len(self.running) < 3:
            more = MORE_BLOCKS[: self.choose([0, 1, 2, 2])]
            self.admit(prompt_of([self.choose([1, 1, 2]), *(self.choose(range(k)) for k in more)]))
            if self.choose([True, False]):
                self.compute_ahead()

    def admit(self, tokens):
        num_blocks = len(tokens) // LAYOUT.block_tokens + self.choose([1, 2])
        if num_blocks > self.process.pool.num_slots:
            return
        chunk_blocks = self.choose([1, num_blocks])
        outcome = self.cache.admit(np.array(tokens, dtype="<i4"), num_blocks, chunk_blocks=chunk_blocks)
        if isinstance(outcome, Wait):
            return
        request = Request(tokens, num_blocks, outcome)
        for position in range(request.whole_blocks):
            self.know(request.prefix(position))
        self.running.append(request)

    def prompts_in_host(self):
        return [prompt for prompt in PROMPTS if self.cache.lookup(np.array(prompt, dtype="<i4"))["host"]]

    def know(self, prefix):
        self.kv_by_key[key_of(prefix)] = kv_of(prefix)

    def serve(self):
        """A request whose steps are all enqueued at once, and that is gone before they have run."""
        before = len(self.running)
        self.arrive()
        for request in self.running[before:]:
            if not request.lease.num_loading:
                self.finish(request)

    def finish(self, request):
        if self.has_room(request, request.whole_blocks):
            for start, end in request.lease.gaps(request.whole_blocks):
                self.step([(request, start, end)])
                self.publish(request, start, end)
            self.step([(request, request.whole_blocks, len(request.lease.slots))], part_of_block=True)
        self.end_of(request)

    def has_room(self, request, num_blocks):
        """Whether the block table reaches so far, or could be made to."""
        return self.cache.grow(request.lease, num_blocks) is Room.NOW

    def publish(self, request, start, end):
        self.cache.publish(request.lease, request.array, start, end)

    def release(self):
        """The end of a request, at any time: it may be loading, or be read by a step that has not run."""
        if self.running:
            self.end_of(self.choose(self.running))

    def end_of(self, request):
        self.running.remove(request)
        self.cache.release(request.lease)

    def loaded(self):
        return [request for request in self.running if not request.lease.num_loading]

    def whole(self):
        loaded = [request for request in self.loaded() if request.ahead is None]
        return [request for request in loaded if not request.lease.gaps(request.whole_blocks)]

    def preempt(self):
        """At any time: while it loads, while a step that has not run writes what is to be saved."""
        if not self.running:
            return
        self.choose([self.decode, lambda: None])()
        whole = self.whole()
        request = self.choose([each for each in whole if each.has_tail] or self.running)
        num_used = request.whole_blocks + request.look_for_tail() if request in whole else 0
        request.stash, request.ahead = self.cache.preempt(request.lease, num_used), None
        request.has_tail &= request.stash is not None
        self.running.remove(request)
        self.preempted.append(request)
        self.counts["preempted"] += 1

    def resume(self):
        if not self.preempted:
            return
        request = self.choose(self.preempted)
        if request.stash is not None and request.stash.lost:
            request.stash, request.has_tail = None, False
        stash = request.stash
        tokens = request.array if stash is None else request.array[: stash.start * LAYOUT.block_tokens]
        outcome = self.cache.admit(
            tokens, request.max_blocks, chunk_blocks=1, compute_last=stash is None, stash=stash
        )
        if not isinstance(outcome, Wait):
            request.lease, request.stash, request.came_back = outcome, None, stash is not None
            self.preempted.remove(request)
            self.running.append(request)
            self.counts["swapped in"] += stash is not None

    # ---- steps

    def step(self, chunks, arriving=None, *, part_of_block=False, num_layers=LAYOUT.num_layers):
        """Each chunk (request, start, end) reads what is before it and writes its blocks, whole or not.

        `num_layers`: the step breaks off behind so many. Returns the slots that it reads or writes.
        """
        found, written, promotions = {}, {}, arriving or {}
        for request, start, end in chunks:
            for position, slot in enumerate(request.lease.slots[:end].tolist()):
                right = kv_of(request.prefix(position) if position < start or not part_of_block else TAIL)
                if position < start:
                    found[slot] = right, promotions.get(slot)
                else:
                    written[slot] = right
            if start >= request.whole_blocks and request.look_for_tail():
                found[request.lease.slots.item(request.whole_blocks)] = kv_of(TAIL), None
        self.process.step(found, written, num_layers)
        return found.keys() | written.keys()

    def batch(self):
        """Of some requests a part of the first gap."""
        chunks = []
        for request in self.loaded():
            gaps = request.lease.gaps(request.whole_blocks)
            if gaps and request.ahead is None and self.choose([True, True, False]):
                start, end = gaps[0]
                end = self.choose(range(start + 1, end + 1))
                if self.has_room(request, end):
                    chunks.append((request, start, end))
        return chunks

    def compute(self):
        """A batch, published before it has run."""
        if chunks := self.batch():
            self.step(chunks)
            for request, start, end in chunks:
                self.publish(request, start, end)

    def break_off(self):
        """Some layers of a step are enqueued, the rest never will be, and its requests are gone at once.

        Whoever comes next loads into their slots while those layers still wait in their stream.
        """
        chunks = self.batch() or self.next_tokens()
        if chunks and (in_host := self.prompts_in_host()):
            slots = self.step(chunks, num_layers=self.choose(range(1, LAYOUT.num_layers)))
            for request, _, _ in chunks:
                self.end_of(request)
            self.admit(self.choose(in_host))
            self.counts["broken off"] += 1
            self.counts["behind a broken step"] += not slots.isdisjoint(self.process.arriving())

    def compute_ahead(self):
        """A step that reads blocks whose copy up is in flight, and begins with the layers that come first."""
        arriving = self.process.arriving()
        for request in self.running:
            lease = request.lease
            filling = np.flatnonzero(lease.filling[: len(lease.slots)]).tolist()
            if not lease.num_loading or request.ahead is not None or not filling:
                continue
            missing = np.flatnonzero(~lease.ready[: filling[0]])
            if all(slot in arriving for slot in lease.slots[missing].tolist()):
                request.ahead, request.lost_before = (filling[0], filling[0] + 1), lease.num_lost
                self.step([(request, *request.ahead)], arriving)
                self.counts["computed ahead"] += 1

    def settle_ahead(self):
        """What was computed ahead counts if all that it read has come."""
        for request in self.loaded():
            if request.ahead is not None:
                (start, end), request.ahead = request.ahead, None
                if request.lease.num_lost == request.lost_before:
                    self.publish(request, start, end)

    def next_tokens(self):
        """Of each whole request the block, not whole, into which the next token of its reply goes."""
        ends = [(request, request.whole_blocks) for request in self.whole()]
        return [
            (request, end, end + 1)
            for request, end in ends
            if end < request.max_blocks and self.has_room(request, end + 1)
        ]

    def decode(self):
        """A token of a reply: reads everything before it, writes into a block that is not whole."""
        for chunk in self.next_tokens():
            self.step([chunk], part_of_block=True)
            chunk[0].has_tail = True

    def reply(self):
        """A reply has filled the block behind the path."""
        for request in self.whole():
            position = request.whole_blocks
            if position < len(request.lease.slots) and self.choose([True, False]):
                short = (position + 1) * LAYOUT.block_tokens - len(request.tokens)
                request.tokens += [self.choose([0, 1])] * short
                self.know(request.prefix(position))
                self.step([(request, position, position + 1)])
                request.has_tail = False
                self.publish(request, position, position + 1)

    # ---- the driver

    def pump(self):
        self.cache.pump()
        self.settle_ahead()

    def run_device(self):
        self.process.run_device()

    def run_job(self):
        self.process.run_job()

    def sweep(self):
        tier = self.choose([Tier.HOST, Tier.HOST, Tier.DISK])
        self.cache.sweep(tier, then_free=self.choose([True, True, False]))

    def settle(self):
        """The loop has nothing to compute and sleeps until all moves are over."""
        self.process.now_s += self.choose([0.0, 1.0, 10.0])
        assert self.cache.settle(FLUSH_S)
        self.cache.check()
        self.settle_ahead()

    # ---- ends

    def end_an_era(self):
        """Rare, or the tiers would hardly ever be full."""
        self.choose([*[lambda: None] * 3, self.restart])()

    def restart(self):
        for request in [*self.running]:
            self.end_of(request)
        self.process.close(self.choose([0.0, FLUSH_S]))
        self.start()
        self.counts["restarts"] += 1

    def end(self):
        """Whoever is still there gets the right bytes; then the process ends."""
        self.settle()
        for request in [*self.running]:
            self.finish(request)
        for request in self.preempted:
            if request.stash is not None:
                self.cache.drop(request.stash)
        self.process.overwrite_what_is_free()
        self.process.close(self.choose([0.0, FLUSH_S]))
        return self.counts
