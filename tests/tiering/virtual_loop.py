"""A loop as an engine's is, on a virtual clock: it works as long as there is work, and then sleeps until it is woken.

Around it moves end, fail or hang, and time passes, as it is chosen. What is computed, and for whom, a subclass says.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from kvstore.reasons import MissReason
from tests.tiering.memory_model import DIED, ROOT_KEY, MemoryModel
from tiering.cache import TieredCache
from tiering.errands import SLICE_S, Errands
from tiering.index_config import IndexConfig
from tiering.moves import Promote, Read, SwapIn, SwapOut, Write
from tiering.residency import Tier
from tiering.transfer.virtual import VirtualMemory

RECORD_BYTES = 10
WHOLE_S = 60.0  # never waited for: while the cache waits, moves end
TURNS = 5000

Choose = Callable[[Sequence[Any]], Any]


class NoDevice:
    """What the mover of a cache is made with whose moves are made elsewhere."""

    compute = None

    def stream(self, name):
        return name

    def record(self, stream):
        return stream


class Doorbell:
    """Stands in for the event on which the cache waits for news: while it waits, something happens."""

    def __init__(self, something_happens: Callable[[], bool]) -> None:
        self.set = self.clear = lambda: None
        self._something_happens = something_happens
        self._in_vain = 0

    def wait(self, timeout_s):
        # once in vain is honest: what the cache has just planned may have been all that it waited for
        self._in_vain = 0 if self._something_happens() else self._in_vain + 1
        assert self._in_vain < 3, "the cache waits for what never comes"


class ModelCache(TieredCache):
    """The real cache, but that a model of memory makes its moves."""

    def _note_fresh_start(self):
        """It has no store that could start afresh."""

    def __init__(self, model: MemoryModel, *, wake, clock, something_happens) -> None:
        self._model = model
        memory = VirtualMemory(1, 1, page_locked=False)
        super().__init__(
            model.config,
            root_key=ROOT_KEY,
            device=NoDevice(),
            pool=memory,
            slab=memory,
            store=None,
            wake=wake,
            clock=clock,
            jobs=lambda name, num_threads: None,
        )
        self._index, self._news = model.index, Doorbell(something_happens)
        ticks = itertools.count()
        self._errands = Errands(lambda: next(ticks) * SLICE_S / 2)  # a few steps in each slice
        model.answer = self._report  # taken in when the loop next looks
        self.end_copy = model.complete
        """Ends a copy that compute or the host waits for, well or badly."""

    def _start(self, move):
        self._model.start(move)

    def before_compute(self, read_slots, written_slots, group=0):
        """The last layers wait for what brings the slots: then it has ended."""
        if group:
            for number in self._copies_into(read_slots):
                self.end_copy(number)

    def finish(self, read_slots):
        assert not self._copies_into(read_slots), "the step has waited for them"
        self._take_in()

    def _copies_into(self, slots):
        flights = self._model.flights.items()
        ups = [(n, flight.move) for n, flight in flights if isinstance(flight.move, Promote | SwapIn)]
        return [number for number, move in ups if not set(slots).isdisjoint(move.device_slots.tolist())]

    def is_pending(self, tokens, *, compute_last):
        """Whether somebody else is bringing or computing blocks that these tokens begin with."""
        return self._index._matching.is_pending(self._index._match(tokens, compute_last=compute_last))


class VirtualLoop:
    """The life around an engine's loop. `turn`, `num_left` and `actions` are a subclass's.

    It does without every wake-up that the engine does not promise: messages, moves that end, and the cache's deadline.
    """

    def __init__(self, choose: Choose, *, block_tokens=2, model: type[MemoryModel] = MemoryModel) -> None:
        self.choose = choose
        self.counts: Counter[str] = Counter()
        host_slots = choose([0, 1, 2, 4, 6, 8, 8])
        self.config = IndexConfig(
            block_tokens=block_tokens,
            device_slots=choose([3, 4, 5, 6, 8, 10, 12]),
            host_slots=host_slots,
            later_host_slots=choose(range(max(1, host_slots))),
            disk_bytes=choose([0, 40, 80]) if host_slots else 0,
            record_bytes=RECORD_BYTES,
            loads=choose([True, True, True, False]),
            read_batch_blocks=choose([1, 2]),
            read_budget_blocks=choose([1, 2, 6]),
            write_batch_blocks=choose([1, 2]),
            write_batch_share=0.5,
            write_host_share=1.0,
            write_budget_blocks=choose([1, 2, 6]),
            clean_share=choose([0.0, 0.5, 1.0]),
            ttl_s=choose([None, None, None, 9.0]),
            hole_ttl_s=choose([3.0, 50.0]),
            disk_failures=choose([1, 3]),
            disk_rest_s=10.0,
            io_deadline_s=5.0,
            max_overdue_reads=choose([1, 2]),
        )
        self._late_s, self._late_in = 0.0, 0
        self.idle = self.woken = False
        """Whether the last turn had nothing to compute; whether there is a message."""
        self.model = model(self.config, {}, record_bytes=lambda: choose([RECORD_BYTES, 4]))
        self.cache = ModelCache(
            self.model, wake=self.wake, clock=self._clock, something_happens=self._something_happens
        )
        self.hanging: set[int] = set()
        self.host_slots = self.config.host_slots - self.config.later_host_slots
        """As many as the loop was told are ready; it may not have looked yet."""
        self.asked: list[Future[Any]] = []
        """What other threads wait for."""
        self.moves: list[Callable[[], Any]] = [
            *[self.complete] * 4,
            *[self.first_layers_arrive] * 4,
            *[self.complete_all] * choose([2, 6, 18]),  # copies are slow, or as good as done
            *[self.fail] * 2,
            self.fail_swap,
            self.lose,
            *[self.hang] * 2,
            self.answer_after_all,
            self.grow_host,
            self.ask,
            self.pass_time,
        ]
        self.actions: list[Callable[[], Any]] = []

    def turn(self) -> bool:
        """What the engine does between two looks at its inbox. Whether something was computed."""
        raise NotImplementedError

    def num_left(self) -> int:
        """Requests that have not ended."""
        raise NotImplementedError

    # ---- one thing after the other

    def act(self):
        """Something happens, and the loop takes a turn unless it sleeps on."""
        self.choose(self.actions)()
        self.go_on()

    def go_on(self):
        """Whether the loop was awake, and has taken a turn."""
        deadline_s = self.cache.deadline_s
        late = deadline_s is not None and self.model.now_s >= deadline_s
        awake = self.woken or late or not self.idle
        if awake:
            self.woken = False
            self.idle = not self.turn()
            self.model.check()
        return awake

    def run(self):
        """The loop goes on by itself, or sleeps."""
        for _ in range(self.choose([0, 1, 4])):
            self.go_on()

    def burst(self):
        """Several things happen before the loop can look."""
        for _ in range(self.choose([2, 3])):
            self.choose(self.actions)()

    def wake(self):
        self.woken = True

    # ---- moves

    def _completable(self):
        """What may end now. Where a write hangs, those behind it wait."""
        return [number for number in self.model.completable() if number not in self.hanging]

    def complete(self, error=None):
        if numbers := self._completable():
            self.model.complete(self.choose(numbers), error=error)

    def complete_all(self):
        for _ in self._completable():
            self.complete()

    def first_layers_arrive(self):
        """Of a promotion that is under way: the loop may go on from there."""
        promotions = [n for n, flight in self.model.flights.items() if isinstance(flight.move, Promote)]
        if promotions:
            self.model.index.arriving(self.choose(promotions))
            self.wake()

    def fail(self):
        self.complete(error=DIED)

    def fail_swap(self):
        """A copy of what a preempted request had, down or back up."""
        swaps = [n for n in self._completable() if isinstance(self.model.flights[n].move, SwapOut | SwapIn)]
        if swaps:
            self.model.complete(self.choose(swaps), error=DIED)

    def lose(self):
        """A record is gone or damaged."""
        reads = [n for n in self._completable() if isinstance(self.model.flights[n].move, Read)]
        if reads:
            number = self.choose(reads)
            lost = self.choose(range(len(self.model.flights[number].move.ids)))
            reason = self.choose([MissReason.ABSENT, MissReason.DAMAGED_CHECKSUM])
            self.model.complete(number, misses={lost: reason})

    def hang(self):
        """The disk does not answer."""
        numbers = [
            number
            for number, flight in self.model.flights.items()
            if isinstance(flight.move, Read | Write) and number not in self.hanging
        ]
        if numbers:
            self.hanging.add(self.choose(numbers))

    def answer_after_all(self):
        if self.hanging:
            self.hanging.discard(self.choose(sorted(self.hanging)))

    def grow_host(self):
        """More of host memory is ready."""
        if self.host_slots < self.config.host_slots:
            self.host_slots = self.choose(range(self.host_slots + 1, self.config.host_slots + 1))
            self.cache.host_grows(self.host_slots)

    def ask(self):
        """Another thread wants something of the cache, and waits until it has it."""
        self.choose([self._ask_for_prefix, self._ask_for_list, self._ask_for_change])()

    def _ask_for_prefix(self):
        index = self.model.index
        live = np.flatnonzero(index._holdings.residency.live).tolist()
        if live:
            ids = index._holdings.radix.path(self.choose(live))
            path = b"".join(index._holdings.radix.tokens_up(ids.item(-1), len(ids))[::-1])
            start, config = self.choose(range(len(ids))), index.config
            tiers = [*[Tier.HOST] * (config.host_slots > 0), *[Tier.DISK] * (config.disk_bytes > 0)]
            to = self.choose([None, *tiers])
            if to is None:
                self.asked.append(self.cache.ask_in_steps(lambda: index.remove_prefix(path, start)))
            else:
                self.asked.append(self.cache.ask_in_steps(lambda: index.demote_prefix(path, start, to)))

    def _ask_for_list(self):
        self.asked.append(self.cache.ask_in_steps(self.model.index.walk))

    def _ask_for_change(self):
        least = 1 if self.config.disk_bytes else 0
        changes = {
            "host_slots": self.choose(range(least, self.config.host_slots + 1)),
            "ttl_s": self.choose([None, 9.0]),
            "clean_share": self.choose([0.0, 1.0]),
        }
        if self.config.disk_bytes:
            changes["disk_bytes"] = self.choose([10, 40, 80])
        name = self.choose(sorted(changes))

        def change():
            self.model.index.change(**{name: changes[name]})
            self.model.config = self.model.index.config

        self.asked.append(self.cache.ask(change))

    # ---- time

    def pass_time(self):
        """Now, or in the middle of what the loop does next."""
        self._late_s, self._late_in = self.choose([1.0, 6.0]), self.choose(range(4))
        if not self._late_in:
            self.model.now_s += self._late_s

    def _clock(self):
        self._late_in -= 1
        if self._late_in == 0:
            self.model.now_s += self._late_s
        return self.model.now_s

    # ---- the whole cache

    def sweep(self):
        self.cache.sweep(self.choose([Tier.HOST, Tier.DISK]), then_free=self.choose([True, False]))
        self.wake()

    def clear(self):
        """Rare, or the tiers would hardly ever be full."""
        if self.choose([*[False] * 5, True]):
            self.cache.clear(WHOLE_S)
            self.wake()

    # ---- the law

    def end(self):
        """Everybody is served, and then nothing is held."""
        self.serve()
        self._come_to_rest()

    def serve(self):
        """With what hangs still hanging: finitely many completions serve everybody, and no other wake-up is needed."""
        for _ in range(TURNS):
            if not self.num_left():
                break
            assert self.go_on() or self._something_happens(), "asleep for ever"
        assert not self.num_left(), "requests wait or run for ever"

    def _something_happens(self):
        """A move ends, or else one is overdue. False if neither ever will."""
        deadline_s = self.model.index.deadline_s()
        if self._completable():
            self.complete()
        elif deadline_s is not None:
            self.model.now_s = max(self.model.now_s, deadline_s)
        else:
            return False
        return True

    def _answer_all(self):
        """Whoever asked has an answer in the end, and nothing but a missing prefix is refused."""
        for _ in range(TURNS):
            if all(future.done() for future in self.asked):
                break
            assert self.go_on() or self._something_happens(), "an errand waits for ever"
        for future in self.asked:
            assert isinstance(future.exception(0), KeyError | None)
            self.counts["errands"] += 1

    def _come_to_rest(self):
        self._answer_all()
        self.hanging.clear()
        self._late_in = 0  # nothing takes too long any more
        while self.model.flights:
            self.complete()
            self.cache.pump()
        assert self.cache.settle(WHOLE_S)
        self.model.forget()
        self.model.check_rest()
        self.model.now_s += 1000.0
        self.cache.pump()
        assert self.cache.clear(WHOLE_S)
        assert self.cache.stats()["blocks"] == 0
