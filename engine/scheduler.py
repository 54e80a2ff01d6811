"""What the next step computes, and for whom."""

import time

from tiering.admission import Admission
from tiering.cache import TieredCache

from .chunk import Chunk
from .sequence import Sequence


class Scheduler:
    """Fills each step: one token for every reply, the rest with prompts, oldest requests first.

    Who runs is `Admission`'s business. Only the loop's thread calls this.
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
        self._block_tokens = block_tokens
        self._max_batch_tokens = max_batch_tokens
        self._multiple = max_batch_tokens if deterministic else None
        self._timed: list[Sequence] = []
        """Those that time out if they take too long."""
        self._requests: Admission[Sequence] = Admission(
            cache, max_running=max_num_seqs, chunk_blocks=self._blocks(max_batch_tokens)
        )

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_tokens)

    def add(self, sequence: Sequence) -> None:
        """Queue a request."""
        self._requests.add(sequence)
        self._note_deadline(sequence)

    def _note_deadline(self, sequence: Sequence) -> None:
        if sequence.request.deadline_s is not None:
            self._timed.append(sequence)

    def admit(self, *, news: bool) -> None:
        """Give waiting requests what they need to begin, as long as there is room.

        `news`: whether a move has ended or a prompt's blocks were published since the last call.
        """
        if news:
            self._requests.stir()
        now_s = time.monotonic()  # their loads begin, and have deadlines, before all of them are admitted
        for sequence in self._requests.admit():
            marks = sequence.request.marks
            marks.admitted_s = marks.admitted_s or now_s

    def next_step(self) -> list[tuple[Sequence, Chunk]]:
        """What to compute next; empty if all that runs is waiting for blocks to arrive, or for room.

        Where nothing else can be computed it begins early, with one prompt of which no more than the first layers may have
        arrived: it is still `loading`.
        """
        return self._ready_step() or self._early_step()

    def _ready_step(self) -> list[tuple[Sequence, Chunk]]:
        ready = [sequence for sequence in self._requests.running if not sequence.loading]
        for sequence in ready:
            sequence.begin_prefill()
        num_decodes = sum(not sequence.gaps and not sequence.is_warming for sequence in ready)
        left = max(self._block_tokens, self._max_batch_tokens - num_decodes)
        step: list[tuple[Sequence, Chunk]] = []
        prefilling = False
        for sequence in ready:
            if sequence.lease is None:
                continue  # has just lost its room to an older one
            if not sequence.gaps:
                if not sequence.is_warming and (chunk := self._decode(sequence)) is not None:
                    step.append((sequence, chunk))
            elif left > 0 and (chunk := self._prefill(sequence, left, first=not prefilling)) is not None:
                step.append((sequence, chunk))
                prefilling = True
                left -= len(chunk.tokens)
        return step

    def _early_step(self) -> list[tuple[Sequence, Chunk]]:
        """A prompt that one chunk completes: whether that was worth anything is known when its logits are.

        One, as copies come one behind the other: what one prompt waits for has come when the next one's begins.
        """
        for sequence in self._requests.running:
            if sequence.arriving and (chunk := self._early(sequence)) is not None:
                return [(sequence, chunk)]
        return []

    def _early(self, sequence: Sequence) -> Chunk | None:
        """All that is left of a prompt, if that is one chunk and has its slots."""
        assert sequence.lease is not None, "what arrives has a lease"
        sequence.begin_early()
        if sequence.gaps is not None and len(sequence.gaps) == 1:
            _, end = sequence.gaps[0]
            has_slots = self._blocks(end) <= len(sequence.lease.slots)
            if has_slots and end == sequence.next_end(self._max_batch_tokens, self._multiple):
                chunk = sequence.prefill_chunk(end)
                if chunk.wants_logits:
                    return chunk
        sequence.forget_prefill()
        return None

    def _decode(self, sequence: Sequence) -> Chunk | None:
        num_blocks = sequence.num_computed // self._block_tokens + 1
        if not self._requests.grow(sequence, num_blocks):
            return None
        # what must leave for the next block leaves while this one is filled
        self._requests.look_ahead(sequence, num_blocks + 1)
        return sequence.decode_chunk()

    def _prefill(self, sequence: Sequence, left: int, *, first: bool) -> Chunk | None:
        """The next chunk; None if it has no room yet, or, save for the step's first, not fit into what is left."""
        assert sequence.gaps, "there is something to prefill"
        start, _ = sequence.gaps[0]
        end = sequence.next_end(left, self._multiple)
        if not self._requests.grow(sequence, self._blocks(end)):
            assert sequence.lease is not None, "who grows keeps its lease"
            room_tokens = len(sequence.lease.slots) * self._block_tokens - start
            if room_tokens < 1 or self._multiple is not None:
                return None
            end = sequence.next_end(min(left, room_tokens), None)
        # a deterministic chunk cannot be cut to fit: where it does not, it comes in a later step
        if not first and end - start > left:
            return None
        if sequence.num_forks:
            self._requests.make_room_for_forks(sequence.num_forks)  # it leaves while this is computed
        return sequence.prefill_chunk(end)

    def remove(self, sequence: Sequence) -> None:
        """The request has ended: give up what it holds."""
        if sequence in self._timed:
            self._timed.remove(sequence)
        self._requests.remove(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> bool:
        """Begin another reply to a prompt that `parent` has just computed. False if it has to wait for room.

        What the prompt has in slots of the parent's own must be copied into the child's before the next step.
        """
        self._note_deadline(child)
        if not self._requests.fork(parent, child, parent.num_prompt_blocks):
            return False
        child.forked()
        return True

    def warmed(self) -> list[Sequence]:
        """What only had its prompt to compute, and has it."""
        return [
            sequence for sequence in self._requests.running if sequence.is_warming and sequence.gaps == []
        ]

    @property
    def deadline_s(self) -> float | None:
        """When the first of all requests times out, on the monotonic clock; None for never."""
        return min(map(_deadline_s, self._timed), default=None)

    def late(self, now_s: float) -> list[Sequence]:
        """Those that have timed out."""
        return [sequence for sequence in self._timed if _deadline_s(sequence) <= now_s]

    def all(self) -> list[Sequence]:
        """All requests that have not ended, running ones first."""
        return [*self._requests.running, *self._requests.waiting]

    @property
    def num_running(self) -> int:
        """Requests that are admitted."""
        return len(self._requests.running)

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted yet, or not any more."""
        return len(self._requests.waiting)


def _deadline_s(sequence: Sequence) -> float:
    deadline_s = sequence.request.deadline_s
    assert deadline_s is not None, "only what times out is noted"
    return deadline_s
