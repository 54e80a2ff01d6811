"""An engine without a model, on the core with a virtual clock: requests that come, compute block by block, and go."""

import random
from dataclasses import dataclass
from typing import Any

from tests.tiering.memory_model import Request, ownership_of
from tests.tiering.virtual_loop import Choose, VirtualLoop
from tiering.admission import PATIENCE, Admission
from tiering.claim import Claim
from tiering.keeping import Told
from tiering.leases import Wait
from tiering.matching import CacheUse


@dataclass(eq=False)
class Client:
    """What `Admission` calls a request: a prompt, and a reply of so many blocks, indexed or, if deterministic, its own."""

    request: Request
    reply_blocks: int
    deterministic: bool
    block_tokens: int
    name: int
    lease: Any = None
    stash: Any = None
    arrival: int = 0
    overtaken: int = 0
    waits: Wait = Wait.FOR_ROOM
    priority: int = 0
    cache_use: CacheUse = CacheUse.READ_WRITE
    decoded: int = 0
    saved: Any = None

    @property
    def claim(self):
        return Claim(ownership_of(self.request.tokens), self.request.rank)

    @property
    def told(self):
        return Told(output_tokens=self.decoded)

    @property
    def tokens(self):
        if self.stash is not None:
            return self.request.array[: self.stash.start * self.block_tokens]
        return self.request.array

    @property
    def compute_last(self):
        return not self.decoded or (self.stash is None and not self.deterministic)

    @property
    def max_blocks(self):
        return self.request.num_blocks

    @property
    def num_blocks(self):
        """What it has computed, or is to compute before it decodes."""
        return self.request.prompt_blocks + self.request.own_blocks

    @property
    def gaps(self):
        return self.lease.gaps(self.num_blocks)

    def num_used_blocks(self):
        return self.num_blocks if self.lease.ready[: self.num_blocks].all() else 0

    def admitted(self):
        self.request.lease = self.lease
        self.request.prompt_blocks = len(self.request.tokens) // self.block_tokens

    def preempted(self):
        self.request.lease = None
        if self.stash is None:
            self.lose()

    def lose(self):
        """What it had for itself alone is gone: it is decoded again."""
        self.decoded -= self.request.own_blocks
        self.request.own_blocks = 0


@dataclass(frozen=True)
class Part:
    """What a step computes of a client: the blocks of [start, end), or of its reply."""

    client: Client
    start: int
    end: int
    decode: bool


class Progress(VirtualLoop):
    """Runs clients on a core whose moves end, fail or hang as `choose` decides."""

    def __init__(self, choose: Choose) -> None:
        super().__init__(choose)
        self.deterministic = choose([True, False])
        self.chunk_blocks = choose([1, 2, 3, 4])
        self.admission: Admission[Client] = Admission(
            self.cache, max_running=choose([1, 2, 4, 8]), chunk_blocks=self.chunk_blocks
        )
        self.has_published = False
        self.num_arrived = 0
        self.ended: list[Client] = []
        self.actions = [
            *[self.arrive] * 9,
            *[self.run] * 4,
            *self.moves,
            *[self.burst] * 3,
            self.cancel,
            self.sweep,
            self.clear,
        ]

    def turn(self):
        """As EngineLoop does it."""
        news = self.cache.pump()
        if news or self.has_published:
            self.admission.stir()
        for client in self.admission.admit():
            assert client.overtaken <= max(PATIENCE.values()), "overtaken more often than promised"
            client.admitted()
        step = self._next_step()
        self.has_published = any(not part.decode for part in step)
        for part in step:
            self._compute(part)
        for part in step:
            self._publish(part)
        self.model.running = [client.request for client in self.admission.running]
        return bool(step)

    def num_left(self):
        return len(self.admission.running) + len(self.admission.waiting)

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
        self.admission.add(Client(request, reply_blocks, self.deterministic, 2, self.num_arrived))
        self.wake()

    def cancel(self):
        clients = [*self.admission.running, *self.admission.waiting]
        if clients:
            self._end(self.choose(clients))
            self.wake()

    def _end(self, client):
        self.admission.remove(client)
        self.ended.append(client)

    # ---- steps

    def _next_step(self):
        """As Scheduler does it, with blocks for tokens."""
        ready = [client for client in self.admission.running if not client.lease.num_loading]
        for client in ready:
            own = client.lease.ready[client.request.prompt_blocks : client.num_blocks]
            if not own.all():  # the copy back has failed
                client.lose()
        num_decodes = sum(not client.gaps for client in ready)
        left = max(1, self.chunk_blocks - num_decodes)
        step: list[Part] = []
        prefilling = False
        for client in ready:
            if client.lease is None:
                continue  # has just lost its room to an older one
            if not client.gaps:
                if (part := self._decode(client)) is not None:
                    step.append(part)
            elif left > 0 and (part := self._prefill(client, left, first=not prefilling)) is not None:
                step.append(part)
                prefilling = True
                left -= part.end - part.start
        return step

    def _decode(self, client):
        start = client.num_blocks
        if client.decoded == client.reply_blocks:
            return Part(client, start, start, decode=True)
        if not self.admission.grow(client, start + 1):
            return None
        before = len(client.lease.slots)
        self.admission.look_ahead(client, start + 2)
        self.counts["looked ahead"] += len(client.lease.slots) - before
        return Part(client, start, start + 1, decode=True)

    def _prefill(self, client, left, *, first):
        start, gap_end = client.gaps[0]
        whole = self.chunk_blocks
        end = min(gap_end, (start // whole + 1) * whole if self.deterministic else start + left)
        if not self.admission.grow(client, end):
            room = len(client.lease.slots) - start
            if room < 1 or self.deterministic:
                return None
            end = min(gap_end, start + min(left, room))
            self.counts["cut"] += 1
        return Part(client, start, end, decode=False) if first or end - start <= left else None

    def _compute(self, part):
        """All parts of a step are computed together, before any of them is published."""
        client, request = part.client, part.client.request
        if not part.decode:
            self.model.compute(request, part.start, part.end)
        elif part.end > part.start:
            client.decoded += 1
            if self.deterministic:
                self.model.compute_own(request)
            else:
                short = 2 - len(request.tokens) % 2
                request.tokens += [self.choose([0, 0, 1])] * short
                request.prompt_blocks += 1
                self.model.compute(request, part.start, part.end)

    def _publish(self, part):
        client = part.client
        if part.end > part.start and not (part.decode and self.deterministic):
            self.model.publish(client.request, part.start, part.end)
        if client.decoded == client.reply_blocks and not client.gaps:
            self._end(client)


def walk(seed, num_actions):
    """A long history; answers it with everybody served."""
    progress = Progress(random.Random(seed).choice)
    for _ in range(num_actions):
        progress.act()
    progress.end()
    return progress
