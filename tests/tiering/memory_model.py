"""A driver for the core that moves no bytes: memory is dicts that say what lies in each place.

What a place holds of a block is named by all tokens of the prefix that ends with the block, so a wrong byte is a
wrong tuple. Copies happen when a move is completed, at any time and in any order that the contract of the moves
allows; until then their destination is poison, and their source must stay as it was.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np

from kvstore.block import BlockKey, chain_key
from kvstore.metas import BlockMetas
from kvstore.reasons import MissReason
from kvstore.store import HIT, OWNER_BYTES, BlockMeta, ReadOutcome
from tests.tiering.watched_index import WatchedIndex
from tiering.claim import Claim
from tiering.decision import Chooser
from tiering.eviction import Room
from tiering.found import arranged
from tiering.index_config import IndexConfig
from tiering.keeping import Told
from tiering.lease import Lease
from tiering.leases import Wait
from tiering.moves import (
    Answer,
    Copied,
    Demote,
    Forget,
    HasRead,
    Move,
    Promote,
    Read,
    Retain,
    SwapIn,
    SwapOut,
    Touch,
    Unname,
    Wanted,
    Write,
    Written,
)
from tiering.owners import EVERYBODYS, Ownership
from tiering.ranks import Rank
from tiering.residency import NO_BLOCK, State, Tier, block_keys
from tiering.swaps import Stash
from tiering.terms import Term

Content = tuple[int, ...]
Place = tuple[Tier, int]

ROOT_KEY = bytes(32)
OWNERS = (bytes([1]) * OWNER_BYTES, bytes([2]) * OWNER_BYTES)
POISON: Content = (-1,)
DIED = RuntimeError("the copy died")


def ownership_of(tokens):
    """Whose a prompt's blocks are, in the model: it depends on the first token, and the first block may be everybody's."""
    return (Ownership(OWNERS[0]), EVERYBODYS, Ownership(OWNERS[1], 1))[tokens[0] % 3]


@dataclass
class Flight:
    move: Demote | Promote | SwapOut | SwapIn | Read | Write
    sources: dict[Place, Content]
    destinations: list[Place]


@dataclass
class Record:
    meta: BlockMeta
    content: Content
    wanted: Wanted | None = None


@dataclass
class Request:
    """A sequence of tokens that the model stands for: `lease` once it was admitted.

    Behind the indexed path it may compute blocks that are its own, as a deterministic reply is.
    """

    tokens: list[int]
    num_blocks: int
    chunk_blocks: int
    lease: Lease | None = None
    stash: Stash | None = None
    ttl_s: float | None = None
    wait: Wait | None = None
    rank: Rank = Rank.NORMAL
    prompt_blocks: int = 0
    own_blocks: int = 0

    @property
    def array(self):
        return np.array(self.tokens, dtype="<i4")

    def own(self, position):
        """What a block of its own holds."""
        return (id(self), position)

    def missing(self):
        """The parts of its blocks that are to be computed, indexed ones and then its own."""
        return self.lease.gaps(self.prompt_blocks + self.own_blocks)


def _in_small_steps(steps):
    while True:
        with patch.multiple("tiering.restore", _STEP_BLOCKS=1, _STEP_RUNS=1):
            try:
                waits_for = next(steps)
            except StopIteration:
                return
        yield waits_for


@dataclass
class MemoryModel:
    config: IndexConfig
    disk: dict[BlockKey, Record] = field(default_factory=dict)
    record_bytes: Callable[[], int] = lambda: 10
    now_s: float = 0.0
    epoch_s: float = 1_000_000.0
    restores_in_steps: bool = False
    """Whether what the disk holds is entered by `restore_some` only."""
    chooser: Chooser | None = None
    names: dict[bytes, tuple[Content, float | None, float]] = field(default_factory=dict)
    """What is on disk of named caches: their tokens, times to live, and when they were made, on the disk's clock."""

    def __post_init__(self) -> None:
        self.index = WatchedIndex(self.config, ROOT_KEY, self._overwrite, self.chooser)
        self.answer: Callable[[Answer], None] = self.index.answer
        """Who is told that a move is over."""
        self.used_s: defaultdict[Content, float] = defaultdict(lambda since_s=self.now_s: since_s)
        """When each block was used last, at the latest."""
        self.terms: defaultdict[Content, Term] = defaultdict(lambda: Term(0.0, by_default=False))
        """The longest that uses of each block, since it was entered, have asked it to live."""
        for record in self.disk.values():
            self._recall(record)
        self.keys: dict[Content, BlockKey] = {(): ROOT_KEY}
        self.memory: dict[Place, Content] = {}
        self.flights: dict[int, Flight] = {}
        self.writer: deque[Write | Forget | Touch] = deque()
        self.running: list[Request] = []
        self.whole: set[int] = set()
        """Fingerprints of all blocks that were whole in some tier when it was last looked."""
        self.memory_of_them: object = None
        self.asked: list[Move] = []
        for key, (tokens, ttl_s, since_s) in self.names.items():
            path, age_s = np.array(tokens, dtype="<i4").tobytes(), self.epoch_s + self.now_s - since_s
            self.index.at(self.now_s)
            self.index.retention.restore_name(key, path, ownership_of(tokens), ttl_s, age_s)
        if self.disk or self.names:
            self.begin_restore()
            if not self.restores_in_steps:
                self.restore()

    def begin_restore(self):
        """List what the disk holds."""
        self.index.begin_restore(self.now_s)
        pages = [BlockMetas.of([record.meta]) for record in self.disk.values()]
        wanted = {key: record.wanted for key, record in self.disk.items() if record.wanted is not None}
        self.restoring = _in_small_steps(self.index.restore(arranged(pages, ROOT_KEY, self.now_ns), wanted))

    def restore_some(self):
        """Enter a part of it. False when there is no more."""
        return next(self.restoring, self) is not self

    def restore(self):
        while self.restore_some():
            pass

    @property
    def now_ns(self):
        """The clock of the disk: it goes as the other does, from where `epoch_s` says."""
        return round((self.epoch_s + self.now_s) * 1e9)

    # ---- requests

    def request(self, tokens, num_blocks=None, chunk_blocks=None):
        """A request for the blocks of these tokens and at least one token more, unless `num_blocks` says otherwise."""
        num_blocks = num_blocks or len(tokens) // self.config.block_tokens + 1
        return Request(list(tokens), num_blocks, chunk_blocks or num_blocks)

    def try_to_admit(self, request):
        if request.stash is not None and request.stash.lost:
            request.stash, request.own_blocks = None, 0
        resumed = request.stash is not None
        self._find(request, compute_last=not resumed)
        known = len(self.index._holdings.radix.match(request.array))
        self.index._holdings.owners.are_many = True  # who has nothing is forgotten at once
        outcome = self.index.admit(
            request.array[: request.stash.start * self.config.block_tokens] if resumed else request.array,
            request.num_blocks,
            chunk_blocks=request.chunk_blocks,
            compute_last=not resumed,
            stash=request.stash,
            claim=Claim(ownership_of(request.tokens), request.rank, request.ttl_s),
        )
        if isinstance(outcome, Wait):
            request.wait = outcome
            return False
        request.lease, request.wait, request.stash = outcome, None, None
        request.prompt_blocks = len(request.tokens) // self.config.block_tokens
        assert len(outcome.slots) >= outcome.num_cached_blocks
        assert len(outcome.ids) <= request.prompt_blocks
        assert resumed or outcome.num_cached_blocks * self.config.block_tokens < len(request.tokens), (
            "nothing is left to compute"
        )
        self.running.append(request)
        for position in range(known, request.prompt_blocks):
            self._enters(self.prefix(request, position))
        for position in range(request.prompt_blocks):
            self._lives(self.prefix(request, position), self._term(request))
        return True

    @staticmethod
    def _term(request) -> Term:
        return Term() if request.ttl_s is None else Term(request.ttl_s, by_default=False)

    def _recall(self, record):
        """A block, and what leads to it, lives as long as the disk says that it was asked to."""
        for end in range(self.config.block_tokens, len(record.content) + 1, self.config.block_tokens):
            self._lives(record.content[:end], (record.wanted or Wanted()).term)

    def _enters(self, prefix):
        """What was asked of the block before it left counts no more; what the disk says, where that is still to be entered, does."""
        self.terms.pop(prefix, None)
        if self.index.restoring:
            for record in self.disk.values():
                if record.content[: len(prefix)] == prefix:
                    self._recall(record)

    def _lives(self, prefix, term):
        mine = self.terms[prefix]
        self.terms[prefix] = Term(max(mine.own_s, term.own_s), mine.by_default or term.by_default)

    def _lives_s(self, prefix):
        """For how long after its last use a block lives."""
        own_s, by_default = self.terms[prefix]
        default_s = np.inf if self.config.ttl_s is None else self.config.ttl_s
        return max(own_s, default_s if by_default else 0.0)

    def _find(self, request, *, compute_last):
        """A request looks for its blocks, which is a use: what nobody has used for the TTL must not be there."""
        self.index.at(self.now_s)
        tokens = (
            request.array[: request.stash.start * self.config.block_tokens]
            if request.stash
            else request.array
        )
        held = {
            self.prefix(other, position) for other in self.running for position in range(len(other.lease.ids))
        }
        for position in range(len(self.index._match(tokens, compute_last=compute_last))):
            prefix = self.prefix(request, position)
            fresh = self.now_s - self.used_s[prefix] < self._lives_s(prefix)
            assert fresh or prefix in held or prefix in self.held(), (
                f"unused since {self.used_s[prefix]}, and found at {self.now_s}"
            )
            self.used_s[prefix] = self.now_s

    def held(self):
        """The prefixes that users hold."""
        holdings, prefixes = self.index._holdings, self._prefixes()
        return {prefixes[block] for hold in holdings.holds for block in hold.ids.tolist()}

    def _use(self, request):
        """A request does something with its blocks."""
        self.index.at(self.now_s)
        for position in range(request.prompt_blocks):
            self.used_s[self.prefix(request, position)] = self.now_s

    def _overwrite(self, device_slots):
        """They hold nothing that anybody may count on."""
        for slot in device_slots:
            self.write((Tier.DEVICE, slot), POISON)

    def grow(self, request, num_blocks):
        """Ask for more slots. Whether they are there."""
        before = len(request.lease.slots)
        room = self.index.grow(request.lease, num_blocks)
        after = len(request.lease.slots)
        asked = max(before, min(num_blocks, request.num_blocks))
        assert after == (asked if room is Room.NOW else before)
        if room is Room.NO:
            assert self._num_to_be_had() < asked - before, "a reply must wait although idle blocks could go"
        return room is Room.NOW

    def _num_to_be_had(self):
        """Device slots that nobody uses, or that hold blocks which nobody uses."""
        holdings = self.index._holdings
        everything = np.arange(holdings.residency.capacity)
        residency = holdings.residency
        idle = residency.present(Tier.DEVICE, everything) & (residency.leases == 0)
        idle &= (residency.readers[Tier.DEVICE] == 0) & ~holdings.holds.are_held(everything)
        return holdings.slots[Tier.DEVICE].num_free + np.count_nonzero(idle)

    def admit(self, tokens, num_blocks=None):
        """A request that must be admitted at once."""
        request = self.request(tokens, num_blocks)
        assert self.try_to_admit(request), f"not admitted: {request.wait}"
        return request

    def prefix(self, request, position):
        return tuple(request.tokens[: (position + 1) * self.config.block_tokens])

    def compute(self, request, start, end):
        """Compute the blocks of [start, end), which must be a gap, from what is in memory before them."""
        lease = request.lease
        for position in range(start, end):
            assert not lease.ready[position]
            if position:
                before = self.memory[Tier.DEVICE, lease.slots.item(position - 1)]
                assert before == self.prefix(request, position - 1), "computed from something else"
            self.write((Tier.DEVICE, lease.slots.item(position)), self.prefix(request, position))

    def compute_own(self, request):
        """Compute the next block behind the indexed path, for the request alone."""
        position = request.prompt_blocks + request.own_blocks
        self.write((Tier.DEVICE, request.lease.slots.item(position)), request.own(position))
        request.lease.ready[position] = True
        request.own_blocks += 1

    def preempt(self, request):
        """Take the device from a request; what is its own is saved if there is a place."""
        self._use(request)
        lease = request.lease
        end = request.prompt_blocks + request.own_blocks
        here = lease.ready[len(lease.ids) : end].all()
        request.stash = self.index.preempt(lease, end if here else 0)
        request.lease = None
        if request.stash is None:
            request.own_blocks = 0
        self.running.remove(request)

    def prefill(self, request):
        """Compute all that is missing of the prompt and publish it, as an engine does that has got its loads."""
        for start, end in request.lease.gaps(request.prompt_blocks):
            for _ in range(10):
                if self.grow(request, end):
                    break
                self.settle()
            self.compute(request, start, end)
            self.publish(request, start, end)
        request.own_blocks = min(request.own_blocks, request.num_blocks - request.prompt_blocks)
        if request.missing():  # the copy back failed
            request.own_blocks = 0

    def publish(self, request, start, end):
        """Blocks that were computed become usable for all."""
        self._use(request)
        self.index.publish(request.lease, request.array, start, end)

    def reply(self, request, tokens):
        """Decode up to the end of a block; `tokens` fill it from where the request ends."""
        request.tokens += tokens
        position = request.prompt_blocks
        request.prompt_blocks += 1
        if len(self.index._holdings.radix.match(request.array)) < request.prompt_blocks:
            self._enters(self.prefix(request, position))
        self._lives(self.prefix(request, position), self._term(request))
        self.compute(request, position, position + 1)
        self.publish(request, position, position + 1)

    def release(self, request):
        self._use(request)
        self.index.release(request.lease, Told(output_tokens=40 * request.own_blocks))
        self.running.remove(request)

    def run(self, tokens, num_blocks=None):
        """A whole request, from arrival to its end, with everything that it sets going before and after."""
        request = self.request(tokens, num_blocks)
        for _ in range(10):
            if self.try_to_admit(request):
                break
            self.settle()
        assert request.lease is not None, f"never admitted: {request.wait}"
        self.settle()
        self.prefill(request)
        self.release(request)
        self.settle()
        return request

    # ---- moves

    def plan(self):
        self.index.check()
        self._check_departed()
        for move in self.index.plan(self.now_s):
            self.start(move)

    def _check_departed(self):
        """Of what was whole somewhere, and is nowhere whole any more, it is known why."""
        residency, departed = self.index._holdings.residency, self.index._eviction.departed
        # where somebody was erased, all were forgotten with that
        if departed._chunks is not self.memory_of_them:
            self.whole, self.memory_of_them = set(), departed._chunks
        live = np.flatnonzero(residency.live)
        there = set(residency.fingerprint[live[residency.present_anywhere(live)]].tolist())
        gone = np.array(sorted(self.whole - there), dtype=np.uint64)
        assert len(departed.view().find(gone).positions) == len(gone), "a block went, and nobody knows why"
        self.whole |= there

    def start(self, move):
        """Begin a move that the core has asked for."""
        self.asked.append(move)
        match move:
            case Demote() | SwapOut():
                self._depart(move, Tier.DEVICE, move.device_slots, Tier.HOST, move.host_slots)
            case Promote() | SwapIn():
                self._depart(move, Tier.HOST, move.host_slots, Tier.DEVICE, move.device_slots)
            case Read():
                self._depart(move, None, [], Tier.HOST, move.host_slots)
            case Write():
                self._depart(move, Tier.HOST, move.host_slots, None, [])
                self.writer.append(move)
            case Forget() | Touch() | Retain() | Unname():
                self.writer.append(move)

    def _depart(self, move, source, source_slots, destination, destination_slots):
        sources = {(source, int(slot)): self.memory[source, int(slot)] for slot in source_slots}
        assert POISON not in sources.values(), f"{move} reads what is not there"
        destinations = [(destination, int(slot)) for slot in destination_slots]
        for place in destinations:
            self.write(place, POISON)
            assert place not in sources, f"{move} copies a place onto itself"
        self.flights[move.number] = Flight(move, sources, destinations)

    def write(self, place, content):
        """Somebody writes to a place: no move may have to do with it."""
        for flight in self.flights.values():
            assert place not in flight.sources, f"{place} is overwritten while {flight.move} reads it"
            assert place not in flight.destinations, f"{place} is overwritten while {flight.move} writes it"
        self.memory[place] = content

    def completable(self):
        """Numbers of the moves that may end now: all but writes that wait for one before them."""
        first = next((move.number for move in self.writer if isinstance(move, Write)), None)
        return [n for n, flight in self.flights.items() if not isinstance(flight.move, Write) or n == first]

    def complete(self, number, *, error=None, misses=None):
        """End a move: well, or with an error, or, if it is a read, with `misses` {position: reason}."""
        flight = self.flights.pop(number)
        for place, content in flight.sources.items():
            assert self.memory[place] == content, f"the source {place} of {flight.move} has changed"
        match flight.move:
            case Read():
                self.answer(self._read(flight, error, misses or {}))
            case Write():
                self.forget(until=flight.move)
                self.answer(self._written(flight, error))
            case _:
                if error is None:
                    self.memory.update(zip(flight.destinations, flight.sources.values(), strict=True))
                self.answer(Copied(number, error))

    def _read(self, flight, error, misses):
        move = flight.move
        if error is not None:
            return HasRead(move.number, error=error)
        outcomes = []
        for position, (ref, place) in enumerate(zip(self.index.refs(move), flight.destinations, strict=True)):
            if position in misses:
                self.disk.pop(ref.key, None)
            record = self.disk.get(ref.key)
            if record is None:
                outcomes.append(ReadOutcome(misses.get(position, MissReason.ABSENT)))
                continue
            assert record.meta.ref == ref, "a record is asked for by another identity"
            self.memory[place] = record.content
            outcomes.append(HIT)
        return HasRead(move.number, tuple(outcomes))

    def _written(self, flight, error):
        move = flight.move
        ancestors, keys = self.index.lineage(move)
        for block in ancestors:
            keys[block.id] = chain_key(keys[block.parent_id], block.tokens)
        computed = b"".join(keys[block.id] for block in ancestors)
        prefixes = self._prefixes()
        for block, key in keys.items():  # those that were known among them, and the root's
            expected = ROOT_KEY if block == NO_BLOCK else self.key_of(prefixes[block])
            assert key == expected, f"a write takes another key for that of block {block}"
        if error is not None:
            return Written(move.number, keys=computed, error=error)
        lineage = {block.id: block for block in ancestors}
        sizes = []
        for block, content in zip(move.ids.tolist(), flight.sources.values(), strict=True):
            parent, tokens = keys[lineage[block].parent_id], lineage[block].tokens
            owner = lineage[block].owner
            meta = BlockMeta(keys[block], parent, tokens, self.record_bytes(), self.now_ns, owner)
            assert meta.key == self.key_of(content), "a record under another block's key"
            self.disk[meta.key] = Record(meta, content)
            sizes.append(meta.stored_bytes)
        return Written(move.number, np.array(sizes, dtype=np.int64), computed)

    def key_of(self, content):
        """The key of the block that ends this prefix, from the first token on."""
        if content not in self.keys:
            above, block = content[: -self.config.block_tokens], content[-self.config.block_tokens :]
            self.keys[content] = chain_key(self.key_of(above), np.array(block, dtype="<i4").tobytes())
        return self.keys[content]

    def forget(self, until=None):
        """Let the writer delete and note what it was asked to, up to a write."""
        while self.writer and (not isinstance(self.writer[0], Write) or self.writer[0] is until):
            job = self.writer.popleft()
            if job is until:
                return
            if isinstance(job, Touch):
                self._touch(job)
                continue
            if isinstance(job, Retain):
                for key, wanted in zip(job.keys, job.wanted, strict=True):
                    if key in self.disk:
                        self.disk[key].wanted = wanted
                continue
            if isinstance(job, Unname):
                self.names.pop(job.key, None)
                continue
            for key in block_keys(job.keys):
                self.disk.pop(key, None)

    def _touch(self, touch):
        for key, used_s in zip(touch.keys, touch.used_s, strict=True):
            if key in self.disk:
                record = self.disk[key]
                used_ns = self.now_ns - round((self.now_s - used_s) * 1e9)
                record.meta = replace(record.meta, used_ns=used_ns)

    def settle(self, choose=lambda numbers: numbers[0]):
        """Plan and complete until nothing is left to do; a core that never comes to rest fails."""
        if self.index.restoring:
            self.restore()
        for _ in range(500):
            self.plan()
            if not self.flights:
                break
            self.complete(choose(self.completable()))
        else:
            raise AssertionError("the core never comes to rest")
        self.forget()
        assert self.index.idle, "nothing moves, but the core is not idle"
        for request in self.running:
            assert request.lease.num_loading == 0, "nothing moves, but a request waits for a load"

    def moves(self, kind):
        """All moves of this kind that were asked for so far."""
        return [move for move in self.asked if isinstance(move, kind)]

    # ---- what must hold at any time

    def check(self):
        self.index.check()
        owners = {}
        for request in self.running:
            lease = request.lease
            for position, slot in enumerate(lease.slots.tolist()):
                block = position < request.prompt_blocks
                owner = self.prefix(request, position) if block else (id(request), position)
                assert owners.setdefault(slot, owner) == owner, f"slot {slot} is used twice"
                if lease.ready[position]:
                    right = self.prefix(request, position) if block else request.own(position)
                    assert self.memory[Tier.DEVICE, slot] == right, "wrong bytes"
        self.index.overwrite_what_is_free()
        self.check_indexed()

    def check_indexed(self):
        """Each copy that the core takes for whole is the right block's."""
        residency = self.index._holdings.residency
        for block, prefix in self._prefixes().items():
            for tier in (Tier.DEVICE, Tier.HOST):
                if residency.state.item(tier, block) == State.PRESENT:
                    place = tier, residency.place.item(tier, block)
                    assert self.is_right(self.memory[place], prefix), f"{tier.label} holds other bytes"
            key = residency.key_of(block)
            assert key in (None, self.key_of(prefix)), "the key is another block's"
            if residency.state.item(Tier.DISK, block) == State.PRESENT:
                assert key is not None, "a stored block has no key"
                record = self.disk.get(self.key_of(prefix))  # may be gone, which the core cannot know
                assert record is None or self.is_right(record.content, prefix), "disk holds other bytes"
                assert record is None or record.meta.owner == self.owner_of(prefix), "the record is another's"
            assert self.index._holdings.owner_of(block) == self.owner_of(prefix), "the block is another's"

    def is_right(self, content, prefix):
        """Whether this is what the block at the end of a prefix must hold."""
        return content == prefix

    def owner_of(self, prefix):
        """Whose the block at the end of a prefix is."""
        return ownership_of(prefix).of(len(prefix) // self.config.block_tokens - 1)

    def _prefixes(self):
        """The tokens up to the end of each block in the index."""
        radix, residency = self.index._holdings.radix, self.index._holdings.residency
        prefixes = {NO_BLOCK: ()}
        for block in radix.subtree(NO_BLOCK).tolist():  # parents first
            tokens = np.frombuffer(radix.tokens_up(block)[0], dtype="<i4")
            prefixes[block] = (*prefixes[residency.parent.item(block)], *tokens.tolist())
        del prefixes[NO_BLOCK]
        return prefixes

    def check_rest(self):
        """Nobody runs and nothing moves: so nothing is held either."""
        self.check()
        stats = self.index.stats()
        assert stats["leases"] == 0
        for tier in ("device", "host"):
            assert stats["tiers"][tier]["private"] == stats["tiers"][tier]["in_flight"] == 0, (
                "a slot has leaked"
            )
        residency = self.index._holdings.residency
        assert not residency.leases.any()
        assert not residency.readers.any()
        assert not residency.computing.any()
        assert stats["tiers"]["disk"]["overdue_reads"] == 0

    def where(self, tokens):
        """The tiers that hold each whole block of these tokens, as letters: "D", "DH", "K" for disk, "" for a hole."""
        ids = self.index._holdings.radix.match(np.array(tokens, dtype="<i4"))
        state = self.index._holdings.residency.state
        letters = dict(zip(Tier, "DHK", strict=True))
        return [
            "".join(letters[tier] for tier in Tier if state[tier, block] == State.PRESENT)
            for block in ids.tolist()
        ]
