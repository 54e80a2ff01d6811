"""One request on its way through the engine."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tiering.lease import Lease
from tiering.leases import Wait
from tiering.swaps import Stash

from .batch import Chunk
from .config import SamplingParams
from .results import FinishReason, Result, Timings, Usage


@dataclass(slots=True)
class Marks:
    """When things happened, in seconds of the monotonic clock; 0 for not yet."""

    submitted_s: float
    admitted_s: float = 0.0
    loaded_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt, its reply so far, and what it holds. Only the loop's thread changes it.

    What it holds it may lose at any time to an older request (see `tiering.admission`, whose `Request` this is). Its
    tokens stay, and their KV is found, loaded, brought back or computed again when it is next admitted::

        tokens       prompt                  reply
                     |---------------------|--------|
        context      what is prefilled after an admission; at first the prompt
        gaps         [start, end) of it that are still to be computed; None until the loads are over
        num_computed tokens whose KV is there once there are no gaps; what follows is fed one at a time
    """

    prompt: NDArray[np.int32]
    params: SamplingParams
    max_tokens: int
    eos_ids: frozenset[int]
    block_tokens: int
    deterministic: bool
    future: "Future[Result]"
    marks: Marks
    reply: list[int] = field(default_factory=list)
    # kept by Admission
    lease: Lease | None = None
    stash: Stash | None = None
    arrival: int = 0
    overtaken: int = 0
    waits: Wait = Wait.FOR_ROOM
    # of this admission
    gaps: list[tuple[int, int]] | None = None
    num_computed: int = 0
    # beyond it
    kept_tokens: int = 0
    """Tokens whose KV was there when the stash was made."""
    cached_blocks: dict[str, int] | None = None
    """By tier, as of the first token: what the request did not have to compute."""

    # --- for admission --------------------------------------------------------------------------------------------

    @property
    def max_blocks(self) -> int:
        """Blocks for prompt and reply. The last token of a reply is never fed back, so it has no KV."""
        return self._blocks(len(self.prompt) + self.max_tokens - 1)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """What the cache is asked for."""
        if self.stash is not None:
            return self._known[: self.stash.start * self.block_tokens]
        return self.prompt if self.deterministic else self._known

    @property
    def compute_last(self) -> bool:
        """Whether the last of `tokens` must be computed, because what comes next is not known yet."""
        return not self.reply or (self.stash is None and not self.deterministic)

    def num_used_blocks(self) -> int:
        """About to be preempted: how far the slots hold what this request has computed and nobody else can find."""
        if not self.reply:
            return 0
        assert self.lease is not None, "only what is admitted is preempted"
        if self.gaps == []:
            self.kept_tokens = self.num_computed
            return self._blocks(self.kept_tokens)
        # what came back is there, but a gap before it may not have been filled yet
        num_blocks = self._blocks(self.kept_tokens)
        is_there = self._is_back and self.lease.ready[len(self.lease.ids) : num_blocks].all()
        return num_blocks if is_there else 0

    def preempted(self) -> None:
        """The device is gone; what could be saved is in the stash."""
        self.gaps = None
        if self.stash is None:
            self.kept_tokens = 0

    @property
    def _is_back(self) -> bool:
        """Whether what was in the stash is on the device again."""
        assert self.lease is not None, "only what is admitted has anything on the device"
        return self.kept_tokens > 0 and bool(self.lease.ready[self._blocks(self.kept_tokens) - 1])

    @property
    def _known(self) -> NDArray[np.int32]:
        """Prompt and reply."""
        return (
            np.concatenate([self.prompt, np.array(self.reply, dtype=np.int32)]) if self.reply else self.prompt
        )

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    # --- computing ------------------------------------------------------------------------------------------------

    @property
    def loading(self) -> bool:
        """Admitted, with blocks still on their way to the device."""
        return self.lease is not None and self.lease.num_loading > 0

    def begin_prefill(self) -> None:
        """The last load is over: find out what is left to compute."""
        assert self.lease is not None, "only an admitted sequence can be prefilled"
        if self.gaps is not None:
            return
        if self._is_back:
            context = self.kept_tokens
        else:
            # a reply is computed again as it was the first time where bits matter, else as fast as a prompt
            context = len(self.prompt) if self.deterministic else self.num_tokens
        runs = self.lease.gaps(self._blocks(context))
        self.gaps = [
            (start * self.block_tokens, min(end * self.block_tokens, context)) for start, end in runs
        ]
        self.num_computed = context
        self.marks.loaded_s = self.marks.loaded_s or time.monotonic()

    def next_end(self, max_tokens: int, multiple: int | None) -> int:
        """Where the next part of the context to compute ends, if it may have `max_tokens`; or at a multiple."""
        assert self.gaps, "nothing is left to prefill"
        start, end = self.gaps[0]
        return min(end, start + max_tokens if multiple is None else (start // multiple + 1) * multiple)

    def prefill_chunk(self, end: int) -> Chunk:
        """The next part of the context, up to `end`."""
        assert self.gaps and self.lease is not None, "nothing is left to prefill"
        start, _ = self.gaps[0]
        return Chunk(
            tokens=self._known[start:end],
            start=start,
            slots=self.lease.slots,
            wants_logits=end == self.num_tokens,
        )

    def decode_chunk(self) -> Chunk:
        """The first token that has no KV yet, to be fed back; the next one is wanted if that is not known."""
        assert self.lease is not None, "only an admitted sequence can decode"
        return Chunk(
            tokens=np.array([self.reply[self.num_computed - len(self.prompt)]], dtype=np.int32),
            start=self.num_computed,
            slots=self.lease.slots,
            wants_logits=self.num_computed == self.num_tokens - 1,
            decode=True,
        )

    def computed(self, chunk: Chunk) -> None:
        """That chunk has been computed."""
        if chunk.decode:
            self.num_computed = chunk.end
            return
        assert self.gaps is not None, "a chunk was computed that was not asked for"
        _, end = self.gaps[0]
        if chunk.end == end:
            self.gaps.pop(0)
        else:
            self.gaps[0] = (chunk.end, end)

    @property
    def num_tokens(self) -> int:
        """Prompt and reply so far."""
        return len(self.prompt) + len(self.reply)

    @property
    def indexable(self) -> NDArray[np.int32]:
        """The tokens whose blocks others may use once they are computed: none whose KV is not there or in a gap."""
        return self.prompt if self.deterministic else self._known[: self.num_computed]

    def accept(self, token: int) -> FinishReason | None:
        """Take the next token of the reply. Why the reply ends with it, or None."""
        if not self.reply:
            assert self.lease is not None, "what is computed has a lease"
            self.cached_blocks = self.lease.cached_blocks_by_tier()
        self.reply.append(token)
        self.marks.last_token_s = time.monotonic()
        self.marks.first_token_s = self.marks.first_token_s or self.marks.last_token_s
        if token in self.eos_ids and not self.params.ignore_eos:
            return "stop"
        return "length" if len(self.reply) >= self.max_tokens else None

    # --- the end --------------------------------------------------------------------------------------------------

    def result(self, reason: FinishReason, text: str, error: str | None = None) -> Result:
        """Everything about the request, as its caller sees it; `text` is its reply's."""
        return Result(
            text=text,
            token_ids=list(self.reply),
            finish_reason=reason,
            usage=self._usage(),
            timings=self._timings(),
            error=error,
        )

    def _usage(self) -> Usage:
        blocks = {"device": 0, "host": 0, "disk": 0}
        unfinished = len(self.prompt)
        if self.cached_blocks is not None:
            blocks, unfinished = self.cached_blocks, 0
        elif self.lease is not None:
            blocks = self.lease.cached_blocks_by_tier()
            if self.gaps is not None:
                unfinished = sum(end - start for start, end in self.gaps)
        by_tier = {tier: num * self.block_tokens for tier, num in blocks.items()}
        cached = sum(by_tier.values())
        return Usage(
            prompt_tokens=len(self.prompt),
            cached_tokens=cached,
            prefilled_tokens=max(0, len(self.prompt) - cached - unfinished),
            completion_tokens=len(self.reply),
            cached_by_tier=by_tier,
        )

    def _timings(self) -> Timings:
        marks = self.marks
        decode_s = marks.last_token_s - marks.first_token_s
        return Timings(
            queue_s=max(0.0, marks.admitted_s - marks.submitted_s),
            load_s=max(0.0, marks.loaded_s - marks.admitted_s),
            prefill_s=max(0.0, marks.first_token_s - marks.loaded_s),
            ttft_s=max(0.0, marks.first_token_s - marks.submitted_s),
            decode_tokens_per_s=(len(self.reply) - 1) / decode_s if decode_s > 0 else 0.0,
        )
