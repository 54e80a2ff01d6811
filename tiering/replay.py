"""Requests through the core as an engine serves them, on a virtual clock: what each finds, and when its first token comes.

`tiering.simulate` serves one request after the other and asks what a cache finds. Here they run together, as in an engine: they
wait for room and for each other's blocks, prompts are computed in chunks beside replies, whole blocks of replies are cached, and
loads end while others compute. Who gets room is decided by the engine's own `Admission` over the engine's own `Index`; of its
scheduler this has the one rule that matters here, that each step has a token of every reply and the rest of it prompts, oldest first.
What takes time is given: a step by what is in it, a move by its blocks.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Final
from zlib import crc32

import numpy as np

from kvstore.block import KEY_BYTES
from kvstore.reports import TierName
from kvstore.store import HIT
from tiering.admission import Admission
from tiering.claim import NO_CLAIM
from tiering.context import Context
from tiering.decision import Chooser
from tiering.driver import Driver
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.keeping import Hints, Told
from tiering.keeping.admission import NO_HINTS
from tiering.leases import Wait
from tiering.matching import CacheUse
from tiering.moves import (
    Answer,
    Copied,
    Demote,
    Forget,
    HasRead,
    Move,
    Read,
    Retain,
    SwapOut,
    Touch,
    Unname,
    Write,
    Written,
)
from tiering.radix import Tokens
from tiering.step_costs import MoveCosts, Part, StepTimes

_REPLY_TOKEN: Final = 1 << 23
"""From here on are the tokens of replies, which no prompt has. Below any mark (IndexConfig.mark_shift)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """An engine, as far as it matters here: see EngineConfig for what the fields mean. Moves that are not named take no time."""

    index: IndexConfig
    max_num_seqs: int
    max_batch_tokens: int
    stored_bytes: Sequence[int] = (1,)
    """Of blocks on disk, in the order in which they are written; any more take their mean."""
    block_bytes: int = 1
    """Of a block in memory: what a chooser reckons with."""
    steps: StepTimes
    moves: Mapping[type, MoveCosts] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request: when it comes, its prompt's tokens (int32), how many it is to reply, at least one, and what is said of it."""

    at_s: float
    prompt: Tokens
    max_tokens: int
    hints: Hints = NO_HINTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What became of one: blocks found by tier, and seconds from its coming to its first token, and of these until it was admitted,
    and then until what it found was there: the rest is its prefill.
    """

    found: Mapping[TierName, int]
    ttft_s: float
    queue_s: float
    load_s: float

    @property
    def prefill_s(self) -> float:
        """From the end of its loads to its first token."""
        return self.ttft_s - self.queue_s - self.load_s


class _Request(Context):
    """One on its way: what Admission and the scheduler keep of it."""

    def __init__(self, number: int, asked: Asked, block_tokens: int) -> None:
        super().__init__(block_tokens=block_tokens)
        self.number, self.asked = number, asked
        self.prompt = asked.prompt
        self.priority = 0
        self.cache_use, self.claim = CacheUse.READ_WRITE, NO_CLAIM
        self.max_blocks = -(-(len(asked.prompt) + asked.max_tokens - 1) // block_tokens)
        # equal prompts get equal replies, which are cached once
        self._replied = _REPLY_TOKEN + crc32(asked.prompt.tobytes()) % _REPLY_TOKEN
        self.num_replied = 0
        self.arrival = self.overtaken = 0
        self.waits = Wait.FOR_ROOM
        self.came_s = asked.at_s
        self.admitted_s = self.loaded_s = 0.0
        self.seen: Seen | None = None

    @property
    def known(self) -> Tokens:
        """Prompt and reply so far."""
        reply = np.full(self.num_replied, self._replied, dtype=np.int32)
        return np.concatenate([self.prompt, reply]) if self.num_replied else self.prompt

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + self.num_replied

    @property
    def tokens(self) -> Tokens:
        return self.known if self.stash is None else self.known[: self.stash.start * self.block_tokens]

    @property
    def compute_last(self) -> bool:
        return not self.num_replied or self.stash is None

    @property
    def told(self) -> Told:
        """What an engine tells of a request that has ended."""
        return Told(output_tokens=self.num_replied, hints=self.asked.hints)

    @property
    def has_replied(self) -> bool:
        return self.num_replied > 0

    def begin(self, now_s: float) -> None:
        """The last load is over: find out what is left to compute."""
        if self.gaps is None:
            self.find_gaps(self.num_tokens)
            self.loaded_s = now_s


class Replay:
    """Serves requests as an engine would. Once; `run` says what became of them."""

    def __init__(self, config: ReplayConfig, chooser: Chooser | None = None, *, seed: int = 0) -> None:
        """`chooser`: as an engine's with load="auto": it is asked, and told what things took here. `seed`: of all that is chance."""
        self._config = config
        self._random = np.random.default_rng(seed)
        self._block_tokens = config.index.block_tokens
        # all host memory is ready: nobody makes it so here
        self._index = Index(
            replace(config.index, later_host_slots=0),
            bytes(KEY_BYTES),
            block_bytes=config.block_bytes,
            chooser=chooser,
            seed=seed,
        )
        self._places = _Places(self._index, config)
        self._requests: Admission[_Request] = Admission(
            self._places, max_running=config.max_num_seqs, chunk_blocks=self._blocks(config.max_batch_tokens)
        )
        self._ended: Callable[[float], None] = lambda _: None
        self.num_steps = 0

    def run(self, asked: Sequence[Asked], *, clients: int | None = None) -> list[Seen]:
        """Serve these, and say of each what became of it.

        clients: so many are there at a time, each asking its next when the one before has ended, whatever `at_s` says; None for
        as they come.
        """
        requests = [_Request(number, each, self._block_tokens) for number, each in enumerate(asked)]
        coming = iter(requests)
        arrivals: list[tuple[float, int, _Request]] = []
        if clients is None:
            arrivals = [(request.came_s, request.number, request) for request in coming]
            arrivals.sort()
        else:

            def ask_next(now_s: float) -> None:
                if (request := next(coming, None)) is not None:
                    request.came_s = now_s
                    heappush(arrivals, (now_s, request.number, request))

            self._ended = ask_next
            for _ in range(clients):
                ask_next(0.0)
        self._serve(arrivals)
        self._index.check()
        return [request.seen for request in requests if request.seen is not None]

    def _serve(self, arrivals: list[tuple[float, int, _Request]]) -> None:
        """Turns of the loop until nobody is there."""
        news = False
        while arrivals or self._requests.waiting or self._requests.running:
            now_s = self._places.now_s
            while arrivals and arrivals[0][0] <= now_s:
                self._requests.add(heappop(arrivals)[2])
            if self._places.take_in() or news:
                self._requests.stir()
            for request in self._requests.admit():
                request.admitted_s = now_s
            step = self._step()
            news = any(not part.decode for _, part in step)
            if step:
                self.num_steps += 1
                self._places.now_s += self._took_s(step)
                self._computed(step)
            else:
                self._places.sleep(arrivals[0][0] if arrivals else None)

    def _took_s(self, step: list[tuple[_Request, Part]]) -> float:
        return self._config.steps.took_s([part for _, part in step], self._places.now_s, self._random)

    # --- steps: as engine.scheduler fills them ------------------------------------------------------------------------

    def _step(self) -> list[tuple[_Request, Part]]:
        ready = [request for request in self._requests.running if not request.loading]
        for request in ready:
            request.begin(self._places.now_s)
        num_decodes = sum(not request.gaps for request in ready)
        left = max(self._block_tokens, self._config.max_batch_tokens - num_decodes)
        step: list[tuple[_Request, Part]] = []
        for request in ready:
            if request.lease is None:
                continue  # it has just lost its room to an older one
            if not request.gaps:
                part = self._decode(request)
            else:
                part = self._prefill(request, left) if left > 0 else None
                left -= 0 if part is None else part.num_tokens
            if part is not None:
                step.append((request, part))
        return step

    def _decode(self, request: _Request) -> Part | None:
        num_blocks = request.num_computed // self._block_tokens + 1
        if not self._requests.grow(request, num_blocks):
            return None
        self._requests.look_ahead(request, num_blocks + 1)
        return Part(request.num_computed, 1, decode=True)

    def _prefill(self, request: _Request, left: int) -> Part | None:
        assert request.gaps, "there is something to prefill"
        start, end = request.gaps[0]
        end = min(end, start + left)
        if not self._requests.grow(request, self._blocks(end)):
            assert request.lease is not None, "who grows keeps its lease"
            end = min(end, len(request.lease.slots) * self._block_tokens)
        return Part(start, end - start, decode=False) if end > start else None

    def _computed(self, step: list[tuple[_Request, Part]]) -> None:
        for request, part in step:
            request.advance(part.end, decode=part.decode)
            first, end = part.start // self._block_tokens, part.end // self._block_tokens
            if end > first:
                assert request.lease is not None, "what is computed has a lease"
                self._places.publish(request.lease, request.known[: request.num_computed], first, end)
        for request, part in step:
            is_last = part.end == request.num_tokens
            if is_last and not request.gaps:
                self._accept(request)

    def _accept(self, request: _Request) -> None:
        """Its next token is there."""
        now_s = self._places.now_s
        assert request.lease is not None, "it was computed"
        if request.seen is None:
            request.seen = seen = Seen(
                found=request.lease.cached_blocks_by_tier(),
                ttft_s=now_s - request.came_s,
                queue_s=request.admitted_s - request.came_s,
                load_s=request.loaded_s - request.admitted_s,
            )
            self._places.computed(
                request.lease, len(request.prompt), load_s=seen.load_s, prefill_s=seen.prefill_s
            )
        request.num_replied += 1
        if request.num_replied >= request.asked.max_tokens:
            self._requests.remove(request)
            self._ended(now_s)

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_tokens)


class _Places(Driver):
    """Drives the index with a clock that somebody sets, and moves that take the time they are given."""

    def __init__(self, index: Index, config: ReplayConfig) -> None:
        super().__init__(index, lambda: self.now_s)
        self._config = config
        self.now_s = 0.0
        self._due: list[tuple[float, int, Answer]] = []
        """A heap of answers, and when they come."""
        # one thread copies up, one down, one writes; some read
        self._free_s: dict[str, list[float]] = defaultdict(lambda: [0.0])
        self._free_s["read"] = [0.0] * config.index.read_threads
        self._num_ended = self._num_told = 0
        self._keys = itertools.count(1)
        self._stored_bytes = itertools.chain(
            config.stored_bytes, itertools.repeat(sum(config.stored_bytes) // len(config.stored_bytes))
        )

    # --- time -----------------------------------------------------------------------------------------------------

    def take_in(self) -> bool:
        """Take in the answers that have come, and start what follows. Whether since the last call anything has ended, or made room."""
        answers = []
        while self._due and self._due[0][0] <= self.now_s:
            answers.append(heappop(self._due)[2])
        self._index.at(self.now_s)
        for answer in answers:
            self._index.answer(answer)
        self._start_moves()
        self._num_ended += len(answers)
        num_events = self._num_ended + self._index.num_expired + self._index.num_changes
        news, self._num_told = num_events > self._num_told, num_events
        return news

    def sleep(self, until_s: float | None) -> None:
        """Nothing can be computed: go on to the next answer, or to this time, or to when something has taken too long."""
        times_s = [self._due[0][0]] if self._due else []
        times_s += [] if until_s is None else [until_s]
        deadline_s = self._index.deadline_s()
        if deadline_s is not None and (deadline_s > self.now_s or not times_s):
            times_s.append(deadline_s)
        assert times_s, "somebody waits, and nothing is on its way"
        self.now_s = max(self.now_s, min(times_s))

    def _start(self, move: Move) -> None:
        answer: Answer
        match move:
            case Forget() | Touch() | Retain() | Unname():
                return  # nobody waits for these
            case Read():
                thread, answer = "read", HasRead(move.number, (HIT,) * len(move.ids))
            case Write():
                thread, answer = "write", self._written(move)
            case Demote() | SwapOut():
                thread, answer = "down", Copied(move.number)
            case _:
                thread, answer = "up", Copied(move.number)
        costs = self._config.moves.get(type(move), MoveCosts())
        begins_s = max(self.now_s, heappop(self._free_s[thread]))
        ends_s = begins_s + costs.seconds(len(move.host_slots))
        heappush(self._free_s[thread], ends_s)
        heappush(self._due, (ends_s, move.number, answer))

    def _written(self, move: Write) -> Written:
        keys = b"".join(next(self._keys).to_bytes(KEY_BYTES, "little") for _ in range(len(move.unkeyed)))
        return Written(move.number, np.fromiter(self._stored_bytes, np.int64, len(move.ids)), keys)
