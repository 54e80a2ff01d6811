"""Everything that can happen to the core, one action at a time, on the model of memory. Who chooses is a parameter."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.errors import StoreFull
from kvstore.reasons import MissReason
from kvstore.reports import Decision
from tests.tiering.judges import EAGER, HOSTILE
from tests.tiering.memory_model import DIED, OWNERS, MemoryModel, ownership_of
from tiering.costs import Costs
from tiering.decision import Chooser
from tiering.index_config import IndexConfig
from tiering.moves import Read
from tiering.policies import POLICIES
from tiering.quotas import Quota, Quotas
from tiering.ranks import Rank
from tiering.residency import NO_BLOCK, Tier
from tiering.retention import TooMuchHeld
from tiering.slot_table import SlotState
from tiering.transfers import NAMES

RECORD_BYTES = 10

Choose = Callable[[Sequence[Any]], Any]
"""Picks one of several, each as likely as the others."""


QUOTAS = (
    None,
    Quotas(),
    Quotas(default=Quota(device=0.25, host=1, disk=0.5), nobodys=Quota(weight=3.0)),
    Quotas(owners={OWNERS[0]: Quota(device=2, disk=20), OWNERS[1]: Quota(device=1.0, host=0)}),
)


def some_config(choose):
    host_slots = choose([0, 1, 1, 2, 2, 3, 4, 6])
    disk_blocks = choose([0, 1, 3, 5, 6, 8]) if host_slots else 0
    return IndexConfig(
        block_tokens=choose([2, 3, 4]),
        device_slots=choose([2, 3, 4, 5, 6, 8]),
        host_slots=host_slots,
        later_host_slots=choose(range(max(1, host_slots))),
        disk_bytes=disk_blocks * RECORD_BYTES,
        record_bytes=RECORD_BYTES,
        policy=choose(["lru", *POLICIES]),
        admission=choose(["all", "adaptive", EAGER, HOSTILE]),
        disk_bytes_a_day=choose([None, None, 10_000, 1_000_000]),
        loads=choose([True, True, True, False]),
        read_batch_blocks=choose([1, 2, 3]),
        read_budget_blocks=choose([1, 2, 6]),
        write_batch_blocks=choose([1, 2, 3]),
        write_batch_share=0.5,
        write_host_share=choose([0.25, 1.0]),
        write_least_blocks=1,
        write_budget_blocks=choose([1, 2, 6]),
        clean_share=choose([0.0, 0.25, 0.5, 1.0]),
        quotas=choose([None, *QUOTAS]),
        high_s=choose([4.0, 600.0]),
        min_prefix_tokens=choose([0, 0, 0, 5]),
        ttl_s=choose([None, None, 5.0, 20.0]),
        held_share=choose([0.25, 0.5, 1.0]),
        hole_ttl_s=choose([3.0, 50.0]),
        disk_failures=choose([1, 2, 3]),
        disk_rest_s=10.0,
    )


class Fickle(Chooser):
    """Uses any part of a match, and something else whenever it is asked again; waits for a moment, for some time or for ever."""

    def __init__(self, choose) -> None:
        super().__init__(Costs())
        self._choose = choose

    def choose(self, match):
        num_blocks = self._choose(range(match.num_on_device, match.num_blocks + 1))
        deadline_s = self._choose([None, 1e-3, 1.0, 1.0, 6.0])
        return Decision(num_blocks=num_blocks, of_blocks=match.num_blocks, ttft_s=1.0, deadline_s=deadline_s)


@dataclass
class Errand:
    """Work of another thread, that is gone on with now and then."""

    steps: Any
    waits_for: Callable[[], bool] = lambda: True

    def step(self):
        """Whether it is over: done, or what it was about is gone."""
        if not self.waits_for():
            return False
        try:
            self.waits_for = next(self.steps) or (lambda: True)
        except (StopIteration, KeyError):
            return True
        return False


def _begins(tokens, path):
    return len(path) <= len(tokens) and (tokens[: len(path)] == path).all()


class Traffic:
    """Requests that come, wait, run and go, moves that end well or badly, time, and the end of the process."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.waiting: list[Any] = []
        self.errands: list[Errand] = []
        self.config = self.some_config()
        self.chooser = self.some_chooser()
        self.model = self._model({}, 0.0)
        self.kept: list[Any] = []
        """The prompts of what is kept."""
        self.actions = [
            *[self.arrive] * 6,
            *[self.retry] * 4,
            self.give_up_waiting,
            *[self.compute] * 6,
            *[self.reply] * 3,
            *[self.release] * 4,
            *[self.grow] * 2,
            *[self.compute_own] * 3,
            *[self.preempt] * 2,
            *[self.complete] * 6,
            *[self.fail] * 2,
            *[self.read_in_part] * 2,
            self.forget,
            self.settle,
            *[self.serve] * 6,
            self.pass_time,
            *[self.sweep] * 2,
            *[self.keep] * 2,
            *[self.let_go] * 2,
            *[self.name] * 2,
            self.unname,
            self.extend,
            self.grow_host,
            *[self.change] * 2,
            self.begin_errand,
            *[self.go_on_with_errands] * 4,
            self.end_an_era,
        ]

    def some_config(self):
        return some_config(self.choose)

    def some_chooser(self):
        return self.choose([None, None, Fickle(self.choose)])

    def _model(self, disk, now_s, *, in_steps=False, names=None):
        sizes = [RECORD_BYTES, 4]
        self.most_host_slots = self.config.host_slots
        return MemoryModel(
            self.config,
            disk,
            record_bytes=lambda: self.choose(sizes),
            now_s=now_s,
            restores_in_steps=in_steps,
            chooser=self.chooser,
            names=names or {},
        )

    def act(self):
        """Take one action, plan as a driver does after each, and look whether all is right."""
        self.choose(self.actions)()
        self.model.plan()
        self.model.check()
        self._check_figures()
        self._check_held()

    def _check_figures(self):
        """What is in flight is counted as that, and what has ended as that, once."""
        transfers = self.model.index.stats()["transfers"]
        for kind, name in NAMES.items():
            flying = [each.move for each in self.model.flights.values() if type(each.move) is kind]
            asked, figures = self.model.moves(kind), transfers[name]
            assert figures["in_flight_blocks"] == sum(len(move.host_slots) for move in flying)
            assert figures["moves"] == len(asked) - len(flying)
            assert figures["blocks"] + figures["failed_blocks"] + figures["in_flight_blocks"] == sum(
                len(move.host_slots) for move in asked
            )

    @property
    def num_blocks(self):
        return self.model.index.stats()["blocks"]

    # ---- requests

    def _prompt(self):
        """One of three documents with few forks: prompts share blocks, and push others out. Ends anywhere in a block."""
        blocks = [self.choose([0, 0, 0, 1]) for _ in range(self.choose(range(self.config.device_slots)))]
        blocks[:1] = [self.choose([0, 1, 2]) for _ in blocks[:1]]
        tail = self.choose(range(0 if blocks else 1, self.config.block_tokens))
        return [token for token in blocks for _ in range(self.config.block_tokens)] + [1] * tail

    def grow_host(self):
        """More of host memory is ready."""
        ready = self.model.index.stats()["tiers"]["host"]["slots"]
        self.model.index.host_grows(self.choose(range(ready, self.most_host_slots + 1)))

    def _request(self):
        tokens = self._prompt()
        num_blocks = len(tokens) // self.config.block_tokens + self.choose([1, 1, 2, 3])
        if num_blocks > self.config.device_slots:
            return None
        request = self.model.request(tokens, num_blocks, self.choose([1, 2, num_blocks, num_blocks]))
        request.rank = self.choose([Rank.NORMAL, Rank.NORMAL, Rank.NORMAL, *Rank])
        request.ttl_s = self.choose([None, None, None, 3.0, 12.0])
        return request

    def arrive(self):
        request = self._request()
        if request is not None and not self.model.try_to_admit(request):
            self.waiting.append(request)

    def serve(self):
        """A request from its arrival to its end, so that the tiers fill up."""
        request = self._request()
        if request is not None and not self.model.running:
            self._serve_alone(request)

    def retry(self):
        if self.waiting:
            request = self.choose(self.waiting)
            if self.model.try_to_admit(request):
                self.waiting.remove(request)

    def give_up_waiting(self):
        if self.waiting:
            request = self.choose(self.waiting)
            self.waiting.remove(request)
            if request.stash is not None:
                self.model.index.drop(request.stash)

    def compute(self):
        """A part of the first gap of a request whose loads are over."""
        loaded = [request for request in self.model.running if not request.lease.num_loading]
        gaps = [(request, request.lease.gaps(request.prompt_blocks)) for request in loaded]
        gaps = [(request, missing) for request, missing in gaps if missing]
        if gaps:
            request, [(start, end), *_] = self.choose(gaps)
            end = min(self.choose(range(start + 1, end + 1)), len(request.lease.slots))
            if end > start:
                self.model.compute(request, start, end)
                self.model.publish(request, start, end)

    def grow(self):
        if self.model.running:
            request = self.choose(self.model.running)
            self.model.grow(request, len(request.lease.slots) + self.choose([1, 1, 2]))

    def compute_own(self):
        """The next block of a reply that is not indexed."""
        decoding = [
            request
            for request in self._decoding()
            if not request.missing() and request.prompt_blocks + request.own_blocks < len(request.lease.slots)
        ]
        if decoding:
            self.model.compute_own(self.choose(decoding))

    def preempt(self):
        if self.model.running:
            request = self.choose(self.model.running)
            self.model.preempt(request)
            self.waiting.append(request)

    def reply(self):
        """The next whole block of a reply."""
        decoding = [request for request in self._decoding() if not request.own_blocks]
        if decoding:
            request = self.choose(decoding)
            short = self.config.block_tokens - len(request.tokens) % self.config.block_tokens
            self.model.reply(request, [self.choose([0, 0, 1])] * short)

    def _decoding(self):
        """Requests whose indexed blocks are all computed and that have a place for the next."""
        return [
            request
            for request in self.model.running
            if not request.lease.gaps(request.prompt_blocks)
            and request.prompt_blocks < len(request.lease.slots)
        ]

    def release(self):
        if self.model.running:
            self.model.release(self.choose(self.model.running))

    # ---- moves

    def complete(self):
        if self.model.flights:
            self.model.complete(self.choose(self.model.completable()))

    def fail(self):
        if self.model.flights:
            self.model.complete(self.choose(self.model.completable()), error=DIED)

    def read_in_part(self):
        reads = [number for number, flight in self.model.flights.items() if isinstance(flight.move, Read)]
        if reads:
            number = self.choose(reads)
            lost = [i for i in range(len(self.model.flights[number].move.ids)) if self.choose([True, False])]
            reason = self.choose([MissReason.ABSENT, MissReason.DAMAGED_CHECKSUM])
            self.model.complete(number, misses=dict.fromkeys(lost, reason))

    def forget(self):
        self.model.forget()

    def settle(self):
        self.model.settle(self.choose)
        self._check_disk()
        self._check_sizes()

    def _check_disk(self):
        """What the core believes of the disk is what is there, once the writer has done all that it was asked to."""
        counted, there = self.model.index.stats()["tiers"]["disk"], self.model.disk.values()
        assert counted["blocks"] == len(there), f"{counted['blocks']} blocks counted, {len(there)} are there"
        assert counted["bytes"] == sum(record.meta.stored_bytes for record in there)
        assert counted["bytes"] <= max(self.config.disk_bytes, self.model.index.retention.held_bytes())

    def pass_time(self):
        self.model.now_s += self.choose([1.0, 6.0, 11.0])

    # ---- what users hold

    def _known_prompt(self):
        """The tokens of a path of the index; None if it is empty."""
        holdings = self.model.index._holdings
        if not len(holdings.radix):
            return None
        ids = holdings.radix.path(self.choose(np.flatnonzero(holdings.residency.live).tolist()))
        tokens = b"".join(holdings.radix.tokens_up(each)[0] for each in ids.tolist())
        return np.frombuffer(tokens, dtype="<i4")

    def keep(self):
        """Somebody has a prefix kept in a tier: all of what is said to be kept is there, or nearer to the model."""
        tokens, index = self._known_prompt(), self.model.index
        if tokens is None:
            return
        tiers = [
            Tier.DEVICE,
            *[Tier.HOST] * (self.config.host_slots > 0),
            *[Tier.DISK] * (self.config.disk_bytes > 0),
        ]
        tier = self.choose(tiers)
        index.at(self.model.now_s)
        try:
            num_tokens = index.keep.prefix(tokens, tier)
        except TooMuchHeld:
            return
        if num_tokens:
            self.kept.append((index, tokens[:num_tokens], tier))
            self._touched(tokens[:num_tokens])

    def _touched(self, tokens):
        for end in range(self.config.block_tokens, len(tokens) + 1, self.config.block_tokens):
            self.model.used_s[tuple(tokens[:end].tolist())] = self.model.now_s

    def let_go(self):
        """Somebody wants no more of what is kept of a prompt."""
        if self.kept:
            _, tokens, _ = self.choose(self.kept)
            self.model.index.retention.release(tokens.tobytes())
            self.kept = [each for each in self.kept if not _begins(tokens, each[1])]

    def name(self):
        """Somebody gives a prefix a name: when that is done it is on disk, and so is the name."""
        tokens, index, model = self._known_prompt(), self.model.index, self.model
        key, ttl_s = bytes([self.choose(range(3))]), self.choose([None, 5.0, 20.0])
        if tokens is None or len(self.errands) == 2 or key in index.retention._names:
            return

        def steps():
            self._touched(tokens)  # with the errand's first step, which may be made later
            try:
                now = yield from index.keep.name(key, tokens, ownership_of(tokens.tolist()), ttl_s)
            except (TooMuchHeld, StoreFull):
                return
            if now is not None and key in index.retention._names:
                assert now.blocks == len(tokens) // self.config.block_tokens
                assert not now.held or not now.lost_blocks
                model.names[key] = (tuple(tokens.tolist()), ttl_s, model.epoch_s + model.now_s)

        index.at(model.now_s)
        self.errands.append(Errand(steps()))

    def unname(self):
        if self.model.index.retention._names:
            key = self.choose(sorted(self.model.index.retention._names))
            self.model.index.retention.drop(key)
            self.model.names.pop(key, None)

    def extend(self):
        if self.model.names:
            key, ttl_s = self.choose(sorted(self.model.names)), self.choose([None, 5.0, 20.0])
            if key in self.model.index.retention._names:
                self.model.index.at(self.model.now_s)
                self.model.index.retention.extend(key, ttl_s)
                tokens, _, _ = self.model.names[key]
                self.model.names[key] = (tokens, ttl_s, self.model.epoch_s + self.model.now_s)

    def _check_held(self):
        """What is kept is where it was to be kept, or nearer, unless it was lost or had to give way; names are on disk."""
        index = self.model.index
        residency, retention = index._holdings.residency, index.retention
        for path, holds in retention._kept.items():
            for hold in holds:
                if not hold.released:
                    nearest = residency.nearest_tier(hold.ids)
                    lost = nearest == len(Tier)
                    assert (lost | (nearest <= hold.tier)).all(), f"{path!r} is not where it is kept"

    # ---- the whole cache

    def sweep(self):
        self.model.index.sweep(self.choose([Tier.HOST, Tier.DISK]), then_free=self.choose([True, False]))

    def change(self):
        """Somebody changes the settings: tiers become smaller or larger, the TTL comes and goes."""
        has_disk = self.config.disk_bytes > 0
        least = 1 if has_disk else 0
        changes = {
            "host_slots": self.choose(range(least, max(least, self.most_host_slots) + 1)),
            "ttl_s": self.choose([None, 5.0, 20.0]),
            "clean_share": self.choose([0.0, 0.5, 1.0]),
            "write_budget_blocks": self.choose([1, 6]),
            "quotas": self.choose(QUOTAS),
            "min_prefix_tokens": self.choose([0, 5]),
        }
        if has_disk:
            changes["disk_bytes"] = self.choose([1, 3, 8]) * RECORD_BYTES
        name = self.choose(sorted(changes))
        try:
            self.model.index.change(**{name: changes[name]})
        except ValueError:
            assert len(self.model.index._holdings.holds), "nothing is held, and it cannot be changed"
        self.config = self.model.config = self.model.index.config

    def _check_sizes(self):
        """What was to go has gone, but for what is in use."""
        table = self.model.index._holdings.slots[Tier.HOST]
        kept = table.count(SlotState.PRIVATE) + table.count(SlotState.IN_FLIGHT)
        assert table.num_usable <= max(self.config.host_slots, kept + 1), "slots are not retired"
        if not self.model.running:
            held = self.model.index._holdings.holds.are_held(np.flatnonzero(self._in_host()))
            assert table.count(SlotState.INDEXED) <= max(self.config.host_slots, np.count_nonzero(held))

    def _in_host(self):
        return self.model.index._holdings.residency.state[Tier.HOST] != 0

    def begin_errand(self):
        """Somebody removes a prefix by hand, or moves one down."""
        holdings = self.model.index._holdings
        if len(self.errands) == 2 or not len(holdings.radix):
            return
        block = self.choose(np.flatnonzero(holdings.residency.live).tolist())
        ids = holdings.radix.path(block)
        path = b"".join(holdings.radix.tokens_up(each)[0] for each in ids.tolist())
        start = self.choose(range(len(ids)))
        to = self.choose([None, None, Tier.HOST, *[Tier.DISK] * (self.config.disk_bytes > 0)])
        if to is None:
            self.errands.append(Errand(self.model.index.remove_prefix(path, start)))
        elif self.config.host_slots:
            self.errands.append(Errand(self.model.index.demote_prefix(path, start, to)))

    def go_on_with_errands(self):
        self.errands = [errand for errand in self.errands if not errand.step()]

    def _end_errands(self):
        for _ in range(1000):
            if not self.errands:
                return
            self.go_on_with_errands()
            self.model.settle(self.choose)
        raise AssertionError("an errand is never done")

    def end_an_era(self):
        """Rare, or the tiers would hardly ever be full."""
        self.choose([*[lambda: None] * 6, self.clear, self.erase, self.restart])()

    def clear(self):
        # a write that hangs keeps the index idle, and reads its block
        used = self.model.running or self.model.flights or not self.model.index.idle
        held = len(self.model.index._holdings.holds)
        assert self.model.index.clear() or used or held, "something is left although nothing is in use"
        assert used or held or self.num_blocks == 0

    def erase(self):
        """Whatever can go of an owner's goes, and nothing else does."""
        owner, index = self.choose(OWNERS), self.model.index
        used, others = self.model.running or not index.idle, self._owned_by_others(owner)
        assert index.erase(owner) or used, "something is left although nothing is in use"
        assert used or not len(index._holdings.tops_of(owner))
        assert self._owned_by_others(owner) == others

    def _owned_by_others(self, owner):
        """But for holes, which go with the last that follows them."""
        holdings = self.model.index._holdings
        ids = holdings.radix.subtree(NO_BLOCK)
        ids = ids[holdings.residency.resident_anywhere(ids)]
        return [each for each in ids.tolist() if holdings.owner_of(each) != owner]

    def restart(self):
        """A crash: what the writer had not done is lost; a record may be as well. The disk may be smaller than it was."""
        disk = self.model.disk
        if disk and self.choose([True, False]):
            del disk[self.choose(sorted(disk))]
        if self.config.disk_bytes:
            self.config = dataclasses.replace(self.config, disk_bytes=self.choose([1, 3, 8]) * RECORD_BYTES)
        self.waiting.clear()
        self.errands.clear()
        self.kept.clear()
        names = self.model.names if self.config.disk_bytes else {}
        self.model = self._model(disk, self.model.now_s, in_steps=self.choose([True, False]), names=names)
        if self.model.index.restoring:
            self.errands.append(Errand(self.model.restoring))
            return
        self.model.plan()
        self.model.forget()
        self._check_disk()

    # ---- the end

    def end(self):
        """Everything comes to its end: whoever waits is served, nothing moves any more, and nothing is held."""
        self.model.settle(self.choose)
        self._end_errands()
        self._check_held()
        for request in [*self.model.running]:
            if self.model.grow(request, request.prompt_blocks):
                self.model.prefill(request)
                self.model.check()
                self.model.release(request)
            else:
                self.model.preempt(request)
                self.waiting.append(request)
        self.model.settle(self.choose)
        for request in self.waiting:
            self._serve_alone(request)
        retention = self.model.index.retention
        for path in list(retention._kept):
            retention.release(path)
        for key in list(retention._names):
            retention.drop(key)
        self.model.now_s += 100.0
        self.model.settle(self.choose)
        self.model.check_rest()
        if self.config.ttl_s is not None:
            self._expire()
        assert self.model.index.clear()
        assert self.num_blocks == 0

    def _expire(self):
        """With nobody to use it everything goes, by the deadlines alone."""
        until_s = self.model.now_s + 2 * self.config.ttl_s
        for _ in range(1000):
            deadline_s = self.model.index.deadline_s()
            if deadline_s is None or deadline_s > until_s:
                break
            self.model.now_s = max(self.model.now_s, deadline_s)
            self.model.settle(self.choose)
        else:
            raise AssertionError("the core wants to be driven for ever")
        assert self.num_blocks == 0, "the TTL has forgotten something"
        self.model.forget()
        assert not self.model.disk, "something is left on disk"

    def _serve_alone(self, request):
        """The law of progress: with nothing else running, finitely many completions admit a request that fits."""
        for _ in range(10):
            if self.model.try_to_admit(request):
                break
            self.model.settle(self.choose)
        assert request.lease is not None, f"never admitted: {request.wait}"
        self.model.settle(self.choose)
        self.model.prefill(request)
        self.model.check()
        self.model.release(request)
        self.model.settle(self.choose)
