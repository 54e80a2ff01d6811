"""The engine's loop, scheduler and sequences over the core and a model of memory: an engine whose model is a hash.

What the KV of a position must be follows from the tokens up to it, and so does the next token of a reply. So a step
that reads anything else is seen when it reads, and a reply that is not what the request would have got alone at its end.
"""

import queue
import random
import zlib
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import torch

from engine import RequestOptions, SamplingParams
from engine.explainer import Explainer
from engine.loop import EngineLoop
from engine.messages import Cancel, Clear, Demote, Submit, Wake
from engine.request import Marks, Request
from engine.salt import Salt
from engine.sampling import Dice
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.text import ReplyText
from kvstore.block import Namespace
from kvstore.store import NO_OWNER
from tests.tiering.memory_model import DIED, POISON, MemoryModel
from tests.tiering.virtual_loop import Choose, VirtualLoop
from tiering.leases import Wait
from tiering.residency import Tier
from tiering.slot_table import SlotState

DEVICE = Tier.DEVICE  # looked up once: enums are slow at it
EOS = 0
VOCABULARY = 4
MAX_OPEN = 8
UNWRITTEN = ((), "unwritten")
NONSENSE = VOCABULARY - 1
"""A token like any other: who believes it goes on wrongly."""
LAST_GROUP = 1
"""Of two layer groups, and the layer that it begins with."""


def next_token(tokens):
    """What the model says to these tokens. Few tokens, so that replies meet again after a fork; rarely the end."""
    number = zlib.crc32(bytes(tokens))
    return EOS if number % 16 == 0 else 1 + number % 3


def reply_alone(sequence):
    """What a request gets that nobody disturbs."""
    tokens = sequence.prompt.tolist()
    for _ in range(sequence.request.max_tokens):
        tokens.append(next_token(tokens))
        if tokens[-1] == EOS and not sequence.request.params.ignore_eos:
            break
    return tokens[len(sequence.prompt) :]


class TokenMemory(MemoryModel):
    """Remembers of each position which tokens it was computed from, itself the last, and how: prefilled or decoded."""

    only_prefilled = False
    """Whether nothing else may be indexed."""

    def is_right(self, content, prefix):
        start = len(prefix) - self.config.block_tokens
        right = [prefix[: start + i + 1] for i in range(self.config.block_tokens)]
        return [tokens for tokens, _ in content] == right and (
            not self.only_prefilled or all(how == "prefill" for _, how in content)
        )

    def owner_of(self, prefix):
        """Everybody's: no sequence here has a tenant."""
        return NO_OWNER

    def key_of(self, content):
        if content and content is not POISON and isinstance(content[0], tuple):
            content, _ = content[-1]
        return super().key_of(content)

    def position(self, slots, position):
        """What lies there."""
        content = self.memory[DEVICE, slots.item(position // self.config.block_tokens)]
        return UNWRITTEN if content == POISON else content[position % self.config.block_tokens]

    def write_position(self, slots, position, tokens, how):
        place = DEVICE, slots.item(position // self.config.block_tokens)
        content = self.memory[place]
        content = [UNWRITTEN] * self.config.block_tokens if content == POISON else list(content)
        content[position % self.config.block_tokens] = tokens, how
        self.write(place, tuple(content))


class HashModel:
    """In the place of a model: reads KV as attention would, writes KV, and says what comes next."""

    def __init__(self, memory: TokenMemory, max_batch_tokens, counts) -> None:
        self.memory, self.max_batch_tokens, self.counts = memory, max_batch_tokens, counts
        self.step: list = []
        self.breaks = False
        self.found_wrong: AssertionError | None = None
        self.void: set[Sequence] = set()
        """Of the step: what was computed from bytes that have never come."""

    def batch(self, chunks, pool, *, deterministic, kernels):
        return chunks

    def forward(self, chunks, pool, before_layer):
        assert [chunk for _, chunk in self.step] == list(chunks)
        self.void = set()
        before_layer(LAST_GROUP)
        try:
            for sequence, chunk in self.step:
                self._attend(sequence, chunk)
            self._check_apart()
            if self.breaks:
                self.breaks = False
                raise RuntimeError("the step was told to fail")
            for sequence, chunk in self.step:
                self._write(sequence, chunk)
        except AssertionError as error:
            self.found_wrong = error  # the engine would make it the answer to a request
            raise
        said = [
            next_token(known(s, chunk.end)) if s not in self.void else NONSENSE
            for s, chunk in self.step
            if chunk.wants_logits
        ]
        return torch.nn.functional.one_hot(torch.tensor(said, dtype=torch.int64), VOCABULARY)

    def _attend(self, sequence, chunk):
        """All that is before the chunk is what it must be, and made as it must be."""
        assert chunk.tokens.tolist() == list(known(sequence, chunk.end)[chunk.start :]), "other tokens"
        self.counts["early"] += sequence.loading
        for position in range(chunk.start):
            tokens, how = self.memory.position(chunk.slots, position)
            if sequence.loading and (tokens, how) == UNWRITTEN:
                self.void.add(
                    sequence
                )  # a copy that it waited for has failed: whatever it says must be forgotten
                self.counts["void"] += 1
                return
            assert tokens == known(sequence, position + 1), f"position {position} holds the KV of {tokens}"
            if sequence.deterministic:
                right = "prefill" if position < len(sequence.prompt) else "decode"
                assert how == right, f"position {position} was made by {how}"
        if sequence.deterministic:
            assert chunk.decode == (chunk.end > len(sequence.prompt)), "other bits than the first time"
            if not chunk.decode:
                _, gap_end = sequence.gaps[0]
                assert chunk.end == gap_end or chunk.end % self.max_batch_tokens == 0, "a chunk was cut"

    def _check_apart(self):
        """No row of a step writes to a block that another reads."""
        size = self.memory.config.block_tokens
        states = self.memory.index._holdings.slots[DEVICE].states
        for sequence, chunk in self.step:
            slots = chunk.slots[chunk.start // size : -(-chunk.end // size)]
            assert not (states(slots) == SlotState.INDEXED).any(), "a block is written that others may use"
            written = set(slots.tolist())
            for other, others in self.step:
                used = set(others.slots[: -(-others.end // size)].tolist())
                assert other is sequence or written.isdisjoint(used), "a block is written that another reads"

    def _write(self, sequence, chunk):
        self.counts["decoded" if chunk.decode else "prefilled"] += len(chunk.tokens)
        for position in range(chunk.start, chunk.end):
            how = "decode" if chunk.decode else "prefill" if sequence not in self.void else "void"
            self.memory.write_position(chunk.slots, position, known(sequence, position + 1), how)


def known(sequence, num_tokens):
    return (*sequence.prompt.tolist(), *sequence.reply)[:num_tokens]


class CountedSequence(Sequence):
    """Counts what becomes of it."""

    def __init__(self, *, counts, **what) -> None:
        super().__init__(**what)
        self.counts = counts
        self.saved = None

    def preempted(self):
        if self.stash is None and self.saved is not None:
            self.counts["stashes lost on the way out"] += self.saved.lost
        self.saved = self.stash
        super().preempted()

    def begin_prefill(self):
        begins = self.gaps is None
        super().begin_prefill()
        if begins:
            ready = self.lease.ready.tolist()
            holes = [end for _, end in self.gaps if ready[end // self.block_tokens :].count(True)]
            self.counts["gaps before what is there"] += bool(holes)
            came_back = self.saved is not None and self.is_back
            self.counts["stashes lost on the way in"] += self.saved is not None and not came_back
            self.counts["stashes back"] += came_back
            self.saved = None


class CountedScheduler(Scheduler):
    """Counts what is rare, and sees that nobody waits in vain."""

    def __init__(self, cache, *, counts, **how) -> None:
        super().__init__(cache, **how)
        self.cache, self.counts = cache, counts

    def admit(self, *, news):
        num_expired = self.cache._index.num_expired
        super().admit(news=news)
        requests = self._requests
        may_begin = not requests._starved and len(requests.running) < requests._max_running
        if requests.waiting and may_begin and self.cache._index.num_expired == num_expired:
            first = requests.waiting[0]
            if first.waits is Wait.FOR_BLOCKS:
                assert self.cache.is_pending(first.tokens, compute_last=first.compute_last), (
                    "what the first waits for is there, and nobody has looked"
                )

    def next_step(self):
        step = super().next_step()
        oldest = self._requests.running[:1]
        if oldest and not oldest[0].loading and oldest[0] not in self._requests._starved:
            assert oldest[0] in [sequence for sequence, _ in step], (
                "the oldest has room, but no part in the step"
            )
        return step

    def _prefill(self, sequence, left, *, first):
        chunk = super()._prefill(sequence, left, first=first)
        self.counts["cut"] += chunk is not None and sequence in self._requests._starved
        return chunk

    def _decode(self, sequence):
        before = len(sequence.lease.slots)
        chunk = super()._decode(sequence)
        if chunk is not None and len(sequence.lease.slots) > before:
            self.counts["looked ahead"] += len(sequence.lease.slots) > chunk.start // self._block_tokens + 1
        return chunk


class HandTurnedLoop(EngineLoop):
    """The engine's loop, but that its turns are taken by the test."""

    def _run(self):
        pass

    def _compute(self, step):
        self._model.step = step
        super()._compute(step)
        if self._model.found_wrong is not None:
            raise self._model.found_wrong


class SchedulerWalk(VirtualLoop):
    """Requests that share prefixes, fork, go on where others ended, and are called off, on a few slots."""

    def __init__(self, choose: Choose) -> None:
        super().__init__(choose, block_tokens=choose([2, 2, 3, 4]), model=TokenMemory)
        self.deterministic = self.model.only_prefilled = choose([False, True])
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        max_batch_tokens = choose([1, 2, 3]) * self.config.block_tokens * choose([1, 2])
        self.machine = HashModel(self.model, max_batch_tokens, self.counts)
        self.scheduler = CountedScheduler(
            self.cache,
            block_tokens=self.config.block_tokens,
            max_num_seqs=choose([1, 4, 8, 8]),
            max_batch_tokens=max_batch_tokens,
            deterministic=self.deterministic,
            counts=self.counts,
        )
        self.loop = HandTurnedLoop(
            self.inbox,
            cache=self.cache,
            scheduler=self.scheduler,
            model=self.machine,
            pool=SimpleNamespace(layout=SimpleNamespace(block_tokens=self.config.block_tokens)),
            deterministic=self.deterministic,
            group_starts=(0, LAST_GROUP),
            memory_advice="lower nothing",
            ended=self.explained,
            explainer=Explainer(None, Namespace.of({}), None),
        )
        self.cache.end_copy = self.end_copy
        self.loop.join()
        self.open: list[CountedSequence] = []
        """Requests that have no answer yet."""
        self.cancelled: set[Request] = set()
        self.futures: list[Future] = []
        """Of sweeps and of clearing."""
        self.long_replies = choose([False, True, True])
        self.texts: list[list[int]] = [[]]
        """What was asked and answered before, for others to begin with."""
        self.actions = [
            *[self.arrive] * 9,
            *[self.run] * 4,
            *self.moves,
            *[self.burst] * 3,
            self.cancel,
            *[self.sweep] * 2,
            self.clear,
            self.break_step,
        ]

    def turn(self):
        computed = self.loop._turn(block=False)
        for sequence in [*self.open]:
            if sequence.request.future.done():
                self.open.remove(sequence)
                self._look_at(sequence, sequence.request.future.result())
        return computed

    def num_left(self):
        """Sweeps are waited for as well."""
        return len(self.open) + sum(not future.done() for future in self.futures)

    def _post(self, message):
        self.inbox.put(message)
        super().wake()

    def wake(self):
        self._post(Wake())

    def end_copy(self, number):
        """While a step waits for it."""
        self.model.complete(number, error=self.choose([None, None, None, DIED]))

    # ---- requests

    def arrive(self):
        if len(self.open) >= MAX_OPEN:
            return
        size, num_slots = self.config.block_tokens, self.config.device_slots
        text = self.choose(self.texts)
        start = text[: self.choose(range(self.choose([size, 3 * size, len(text)]) + 1))]
        more = self.choose([[], [1], [2], [1, 2], [3, 3, 3], [1] * size, [2] * 2 * size])
        prompt = ([*start, *more] or [1])[: num_slots * size]
        room = num_slots * size - len(prompt) + 1
        max_tokens = min(
            room, self.choose([6 * size, room] if self.long_replies else [1, 2 * size + 1, room])
        )
        request = Request(
            number=self.counts["arrived"],
            prompt=np.array(prompt, dtype="<i4"),
            params=SamplingParams(max_tokens=max_tokens, ignore_eos=self.choose([False, True])),
            options=RequestOptions(),
            max_tokens=max_tokens,
            marks=Marks(submitted_s=0.0),
        )
        sequence = CountedSequence(
            request=request,
            eos_ids=frozenset({EOS}),
            block_tokens=size,
            deterministic=self.deterministic,
            salt=Salt(request.options, len(prompt), size),
            text=ReplyText(None),
            dice=Dice(0, 0),
            counts=self.counts,
        )
        request.sequences.append(sequence)
        self.counts["arrived"] += 1
        self.open.append(sequence)
        self._post(Submit((request,)))

    def explained(self, request):
        """Whatever happened to a request, what is said of its prompt agrees with what it was served."""
        if request.cache_report is not None:
            explanation, usage = request.cache_report.explanation(), request.usage()
            assert explanation.cached_tokens == usage.cached_tokens, f"{explanation} of {usage}"
            assert sum(explanation.reasons.values()) == usage.prompt_tokens - usage.cached_tokens
            for reason in explanation.reasons:
                self.counts[f"missed: {reason}"] += 1

    def cancel(self):
        if self.open:
            request = self.choose(self.open).request
            self.cancelled.add(request)
            self._post(Cancel(request))

    def break_step(self):
        """Rarely, the model fails in the next step that there is."""
        self.machine.breaks = self.choose([False, False, False, True])

    def _look_at(self, sequence, result):
        """Each request got what it would have got alone, as far as it came."""
        right = reply_alone(sequence)
        self.counts[result.finish_reason] += 1
        if result.finish_reason == "error":
            assert result.error == "RuntimeError: the step was told to fail"
        elif result.finish_reason == "cancelled":
            assert sequence.request in self.cancelled
        else:
            assert result.token_ids == right, f"{sequence.prompt.tolist()}: {result.token_ids}, not {right}"
            assert result.finish_reason == (
                "stop" if right[-1] == EOS and not sequence.request.params.ignore_eos else "length"
            )
        assert result.token_ids == right[: len(result.token_ids)]
        text = [*sequence.prompt.tolist(), *result.token_ids]
        if text not in self.texts:
            self.texts = [*self.texts[-8:], text]

    # ---- the whole cache

    def sweep(self):
        self._post(Demote(self.choose([Tier.HOST, Tier.DISK]), self.choose([False, True]), self._future()))

    def clear(self):
        if self.choose([*[False] * 5, True]):
            self._post(Clear(self._future()))

    def end(self):
        """Sweeps are all that is left to do."""
        self.serve()
        for _ in range(3):
            self.sweep()
        super().end()

    def _future(self):
        self.futures = [future for future in self.futures if not future.done()]
        self.futures.append(Future())
        return self.futures[-1]


def walk(seed, num_actions):
    """A long history; answers it with everybody served."""
    walked = SchedulerWalk(random.Random(seed).choice)
    for _ in range(num_actions):
        walked.act()
    walked.end()
    return walked
