"""An engine without a model, on the core with a virtual clock: requests that come, compute block by block, and go."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.tiering.memory_model import DIED, MemoryModel, Request
from tiering.admission import PATIENCE, Admission
from tiering.index import IndexConfig
from tiering.leases import CacheUse, Wait
from tiering.moves import Read, Write
from tiering.residency import Tier

RECORD_BYTES = 10

Choose = Callable[[Sequence[Any]], Any]


@dataclass(eq=False)
class Client:
    """What `Admission` calls a request: a prompt, and a reply of so many blocks that are indexed, or its own."""

    request: Request
    reply_blocks: int
    indexes_reply: bool
    block_tokens: int
    name: int = 0
    lease: Any = None
    stash: Any = None
    arrival: int = 0
    overtaken: int = 0
    waits: Wait = Wait.FOR_ROOM
    priority: int = 0
    cache_use: CacheUse = CacheUse.READ_WRITE
    decoded: int = 0

    @property
    def tokens(self):
        return (
            self.request.array[: self.stash.start * self.block_tokens]
            if self.stash is not None
            else self.request.array
        )

    @property
    def compute_last(self):
        return self.stash is None

    @property
    def max_blocks(self):
        return self.request.num_blocks

    def num_used_blocks(self):
        num_blocks = self.request.prompt_blocks + self.request.own_blocks
        return num_blocks if self.lease.ready[:num_blocks].all() else 0

    def preempted(self):
        self.request.lease = None


class Progress:
    """Runs clients on a core whose moves end, fail or hang as `choose` decides."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        host_slots = choose([0, 1, 2, 4, 6, 8])
        self.config = IndexConfig(
            block_tokens=2,
            device_slots=choose([3, 4, 5, 6, 8]),
            host_slots=host_slots,
            disk_bytes=choose([0, 40, 80]) if host_slots else 0,
            record_bytes=RECORD_BYTES,
            read_batch_blocks=choose([1, 2]),
            read_budget_blocks=choose([1, 2, 6]),
            write_batch_blocks=choose([1, 2]),
            write_budget_blocks=choose([1, 2, 6]),
            clean_share=choose([0.0, 0.5, 1.0]),
            hole_ttl_s=choose([3.0, 50.0]),
            disk_failures=choose([1, 3]),
            disk_rest_s=10.0,
            io_deadline_s=5.0,
            max_overdue_reads=choose([1, 2]),
        )
        self.model = MemoryModel(self.config, {}, record_bytes=lambda: choose([RECORD_BYTES, 4]))
        self.admission: Admission[Client] = Admission(
            self.model.index, max_running=choose([1, 2, 4, 8]), chunk_blocks=choose([1, 2, 3])
        )
        self.num_arrived = 0
        self.ended: list[Client] = []
        self.hanging: set[int] = set()
        self.actions = [
            *[self.arrive] * 6,
            *[self.step] * 8,
            *[self.complete] * 6,
            *[self.fail] * 2,
            *[self.hang] * 2,
            self.wake,
            self.cancel,
            self.pass_time,
            self.sweep,
        ]

    def act(self):
        """Take one action, then do as an engine's loop does on every turn."""
        self.choose(self.actions)()
        self.turn()

    def turn(self):
        num_expired = self.model.index.num_expired
        self.model.plan()
        if self.model.index.num_expired > num_expired:
            self.admission.stir()
        self.admit()
        self.model.plan()
        self.model.check()

    # ---- requests

    def arrive(self):
        """Dozens of requests over three documents, which share, fork, and have replies of a few blocks."""
        blocks = [self.choose([0, 0, 0, 1]) for _ in range(self.choose(range(self.config.device_slots)))]
        blocks[:1] = [self.choose([0, 1, 2]) for _ in blocks[:1]]
        tokens = [token for token in blocks for _ in range(2)] + [1] * self.choose([0, 1] if blocks else [1])
        prompt_blocks = -(-len(tokens) // 2)
        reply_blocks = self.choose(range(max(1, self.config.device_slots - prompt_blocks + 1)))
        request = self.model.request(tokens, prompt_blocks + reply_blocks)
        self.num_arrived += 1
        client = Client(request, reply_blocks, self.choose([True, False]), 2, self.num_arrived)
        self.admission.add(client)

    def admit(self):
        for client in self.admission.admit():
            assert client.overtaken <= max(PATIENCE.values()), "overtaken more often than promised"
            client.request.lease = client.lease
            client.request.prompt_blocks = len(client.request.tokens) // 2
            self.model.running.append(client.request)
            self.model._poison(client.request, 0)

    def step(self):
        """One block for each request that has its blocks and its room, oldest first."""
        for client in list(self.admission.running):
            if client.lease is not None and not client.lease.num_loading:
                self._compute(client)

    def _compute(self, client):
        request, lease = client.request, client.lease
        gaps = lease.gaps(request.prompt_blocks)
        if gaps:
            start = gaps[0][0]
            if self._grow(client, start + 1):
                self.model.compute(request, start, start + 1)
                self.model.publish(request, start, start + 1)
                self.admission.stir()
            return
        if request.own_blocks and not lease.ready[request.prompt_blocks + request.own_blocks - 1]:
            client.decoded -= request.own_blocks  # what was saved is lost: it is computed again
            request.own_blocks = 0
        if client.decoded == client.reply_blocks:
            self._end(client)
        elif self._grow(client, request.prompt_blocks + request.own_blocks + 1):
            client.decoded += 1
            if client.indexes_reply and not request.own_blocks:
                short = 2 - len(request.tokens) % 2
                self.model.reply(request, [self.choose([0, 0, 1])] * short)
            else:
                self.model.compute_own(request)

    def _grow(self, client, num_blocks):
        before, running = len(client.lease.slots), list(self.admission.running)
        grown = self.admission.grow(client, num_blocks)
        for other in running:
            if other not in self.admission.running:
                self.model.running.remove(other.request)
                if other.stash is None:
                    other.decoded -= other.request.own_blocks
                    other.request.own_blocks = 0
        if grown:
            self.model._poison(client.request, before)
        return grown

    def _end(self, client):
        if client in self.admission.running:
            self.model.running.remove(client.request)
        self.admission.remove(client)
        self.ended.append(client)

    def cancel(self):
        clients = [*self.admission.running, *self.admission.waiting]
        if clients:
            self._end(self.choose(clients))

    # ---- moves

    def _completable(self):
        """What may end now. Where a write hangs, those behind it wait."""
        return [number for number in self.model.completable() if number not in self.hanging]

    def complete(self, error=None):
        if numbers := self._completable():
            self.model.complete(self.choose(numbers), error=error)
            self.admission.stir()

    def fail(self):
        self.complete(error=DIED)

    def hang(self):
        """The disk does not answer."""
        numbers = [
            number
            for number, flight in self.model.flights.items()
            if isinstance(flight.move, Read | Write) and number not in self.hanging
        ]
        if numbers:
            self.hanging.add(self.choose(numbers))

    def wake(self):
        """It answers after all."""
        if self.hanging:
            self.hanging.discard(self.choose(sorted(self.hanging)))

    def pass_time(self):
        self.model.now_s += self.choose([1.0, 6.0])

    def sweep(self):
        self.model.index.sweep(self.choose([Tier.HOST, Tier.DISK]), then_free=self.choose([True, False]))

    # ---- the law

    def end(self):
        """With what hangs still hanging: finitely many completions serve everybody."""
        for _ in range(2000):
            if not (self.admission.running or self.admission.waiting):
                break
            self.turn()
            self.step()
            if self._completable():
                self.complete()
            else:
                deadline_s = self.model.index.deadline_s()
                if deadline_s is not None:
                    self.model.now_s = max(self.model.now_s, deadline_s)
        waiting = [client.name for client in self.admission.waiting]
        running = [client.name for client in self.admission.running]
        assert not (waiting or running), f"requests {waiting} wait and {running} run for ever"
        self._come_to_rest()

    def _come_to_rest(self):
        self.hanging.clear()
        self.model.settle(self.choose)
        self.model.check_rest()
        self.model.now_s += 1000.0
        self.model.settle(self.choose)
        assert self.model.index.clear()
        assert self.model.index.stats()["blocks"] == 0


def walk(seed, num_actions):
    """A long history; answers it with everybody served."""
    progress = Progress(random.Random(seed).choice)
    for _ in range(num_actions):
        progress.act()
    progress.end()
    return progress
