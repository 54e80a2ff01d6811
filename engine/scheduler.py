"""Which requests run, and what the next step computes."""

import time
from collections import deque
from collections.abc import Iterator

from tiering.cache import TieredCache
from tiering.index import Wait

from .batch import Chunk
from .sequence import Sequence


class Scheduler:
    """Admits in order of arrival, and fills each step: one token for every reply, the rest with prompts.

    A request that waits for blocks that another one computes or loads lets others pass; one that waits for room does
    not, so that room is not taken from under it. Only the loop's thread calls it.
    """

    def __init__(
        self,
        cache: TieredCache,
        *,
        block_tokens: int,
        max_num_seqs: int,
        max_batch_tokens: int,
        deterministic: bool,
    ) -> None:
        self._cache = cache
        self._block_tokens = block_tokens
        self._max_num_seqs = max_num_seqs
        self._max_batch_tokens = max_batch_tokens
        self._deterministic = deterministic
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a request."""
        self._waiting.append(sequence)

    def admit(self) -> None:
        """Give waiting requests what they need, as long as there is room."""
        passed: list[Sequence] = []
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting.popleft()
            outcome = self._cache.admit(sequence.prompt, sequence.num_blocks(self._block_tokens))
            if isinstance(outcome, Wait):
                passed.append(sequence)
                if outcome is Wait.FOR_ROOM:
                    break
            else:
                sequence.lease = outcome
                sequence.marks.admitted_s = time.monotonic()
                self._running.append(sequence)
        self._waiting.extendleft(reversed(passed))

    def next_step(self) -> list[tuple[Sequence, Chunk]]:
        """What to compute next; empty if all that runs is waiting for its blocks to arrive."""
        ready = [sequence for sequence in self._running if not sequence.loading]
        for sequence in ready:
            sequence.begin_prefill(self._block_tokens)
        step = [(sequence, sequence.decode_chunk()) for sequence in ready if not sequence.gaps]
        step.extend(self._prefills([sequence for sequence in ready if sequence.gaps], len(step)))
        return step

    def _prefills(self, sequences: list[Sequence], num_decodes: int) -> Iterator[tuple[Sequence, Chunk]]:
        left = max(self._block_tokens, self._max_batch_tokens - num_decodes)
        for i, sequence in enumerate(sequences):
            chunk = sequence.prefill_chunk(left, self._max_batch_tokens if self._deterministic else None)
            # a deterministic chunk cannot be cut to fit: where it does not, it comes in a later step
            if i == 0 or len(chunk.tokens) <= left:
                yield sequence, chunk
                left -= len(chunk.tokens)
            if left < 1:
                return

    def remove(self, sequence: Sequence) -> None:
        """The request has ended: give up what it holds."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            assert sequence.lease is not None, "what runs has a lease"
            self._cache.release(sequence.lease)

    def find(self, future: object) -> Sequence | None:
        """The request whose result this future will hold, None if it has ended."""
        return next((s for s in self.all() if s.future is future), None)

    def all(self) -> list[Sequence]:
        """All requests that have not ended, running ones first."""
        return [*self._running, *self._waiting]

    @property
    def num_running(self) -> int:
        """Requests that are admitted."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._waiting)
