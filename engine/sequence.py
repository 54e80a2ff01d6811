"""One request on its way through the engine."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tiering.lease import Lease

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

    The KV of `tokens[:num_computed]` and of cached blocks is in the slots of the lease; `gaps` are the parts of the
    prompt, [start, end) in tokens, that are still to be computed.
    """

    prompt: NDArray[np.int32]
    params: SamplingParams
    max_tokens: int
    eos_ids: frozenset[int]
    future: "Future[Result]"
    marks: Marks
    lease: Lease | None = None
    gaps: list[tuple[int, int]] | None = None
    reply: list[int] = field(default_factory=list)

    def num_blocks(self, block_tokens: int) -> int:
        """Blocks for prompt and reply. The last token of a reply is never fed back, so it has no KV."""
        return -(-(len(self.prompt) + self.max_tokens - 1) // block_tokens)

    @property
    def loading(self) -> bool:
        """Admitted, with blocks still on their way to the device."""
        return self.lease is not None and self.lease.num_loading > 0

    def begin_prefill(self, block_tokens: int) -> None:
        """The last load is over: find out what is left to compute."""
        assert self.lease is not None, "only an admitted sequence can be prefilled"
        if self.gaps is None:
            length = len(self.prompt)
            runs = self.lease.gaps(-(-length // block_tokens))
            self.gaps = [(start * block_tokens, min(end * block_tokens, length)) for start, end in runs]
            self.marks.loaded_s = time.monotonic()

    def prefill_chunk(self, max_tokens: int, multiple: int | None) -> Chunk:
        """The next part of the prompt to compute, at most `max_tokens`; up to a multiple of `multiple` if given."""
        assert self.gaps and self.lease is not None, "nothing is left to prefill"
        start, end = self.gaps[0]
        limit = start + max_tokens if multiple is None else (start // multiple + 1) * multiple
        end = min(end, limit)
        return Chunk(
            tokens=self.prompt[start:end],
            start=start,
            slots=self.lease.slots,
            wants_logits=end == len(self.prompt),
        )

    def decode_chunk(self) -> Chunk:
        """The last token, to be fed back."""
        assert self.lease is not None, "only an admitted sequence can decode"
        return Chunk(
            tokens=np.array(self.reply[-1:], dtype=np.int32),
            start=self.num_tokens - 1,
            slots=self.lease.slots,
            wants_logits=True,
            decode=True,
        )

    def prefilled(self, chunk: Chunk) -> None:
        """That chunk has been computed."""
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

    def block(self, position: int, block_tokens: int) -> NDArray[np.int32]:
        """The token ids of one block of prompt and reply, [block_tokens]."""
        start, end = position * block_tokens, (position + 1) * block_tokens
        length = len(self.prompt)
        own = np.array(self.reply[max(0, start - length) : max(0, end - length)], dtype=np.int32)
        return np.concatenate([self.prompt[start:end], own])

    def accept(self, token: int) -> FinishReason | None:
        """Take the next token of the reply. Why the reply ends with it, or None."""
        self.reply.append(token)
        self.marks.last_token_s = time.monotonic()
        self.marks.first_token_s = self.marks.first_token_s or self.marks.last_token_s
        if token in self.eos_ids and not self.params.ignore_eos:
            return "stop"
        return "length" if len(self.reply) >= self.max_tokens else None

    def result(
        self,
        reason: FinishReason,
        decode: Callable[[list[int]], str],
        block_tokens: int,
        error: str | None = None,
    ) -> Result:
        """Everything about the request, as its caller sees it."""
        by_tier = {"device": 0, "host": 0, "disk": 0}
        if self.lease is not None:
            by_tier = {tier: n * block_tokens for tier, n in self.lease.cached_blocks_by_tier().items()}
        cached = sum(by_tier.values())
        unfinished = sum(end - start for start, end in self.gaps or [])
        prefilled = len(self.prompt) - cached - unfinished if self.gaps is not None else 0
        return Result(
            text=decode(self.reply),
            token_ids=list(self.reply),
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self.prompt),
                cached_tokens=cached,
                prefilled_tokens=prefilled,
                completion_tokens=len(self.reply),
                cached_by_tier=by_tier,
            ),
            timings=self._timings(),
            error=error,
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
