"""One prompt on its way through the engine, with all of its replies."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvstore.reports import Decision, TierName

from .explainer import CacheReport
from .params import RequestOptions, SamplingParams
from .results import Delta, Result, Sample, Timings, Usage

if TYPE_CHECKING:
    from .sequence import Sequence


@dataclass(slots=True)
class Marks:
    """When things happened, in seconds of the monotonic clock; 0 for not yet."""

    submitted_s: float
    admitted_s: float = 0.0
    loaded_s: float = 0.0
    computed_s: float = 0.0
    """The prompt was."""
    first_token_s: float = 0.0
    last_token_s: float = 0.0


@dataclass(slots=True, eq=False)
class Request:
    """What a caller asked for, what became of it so far, and where the answer goes.

    Made on the caller's thread; once submitted, only the loop's thread changes it. `sequences` are its replies that have
    begun: one until the prompt is computed, then as many as were asked for.
    """

    number: int
    """Different for each request of an engine."""
    prompt: NDArray[np.int32]
    params: SamplingParams
    options: RequestOptions
    max_tokens: int
    """As asked for, or what the model's limit leaves of it."""
    marks: Marks
    future: "Future[Result]" = field(default_factory=Future)
    sink: Callable[[Delta], None] | None = None
    """Told, on the loop's thread, of what a stream shows. Must only post."""
    cache_notes: tuple[str, ...] = ()
    sequences: "list[Sequence]" = field(default_factory=list)
    samples: dict[int, Sample] = field(default_factory=dict)
    """The replies that have ended, by index."""
    error: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    """The prompt, if it was given as a chat."""
    cache_report: CacheReport | None = None
    """Why the prompt was not served further; None until it is computed."""
    decision: Decision | None = None
    """How much of what lower tiers had was loaded, and what that was thought to take; None where nobody chose."""
    cached_blocks: dict[TierName, int] | None = None
    """By tier, as of the first token: what the request did not have to compute."""

    @property
    def deadline_s(self) -> float | None:
        """When it times out, on the monotonic clock; None for never."""
        timeout_s = self.options.timeout_s
        return None if timeout_s is None else self.marks.submitted_s + timeout_s

    @property
    def is_over(self) -> bool:
        """Whether every reply has ended."""
        return len(self.samples) == self.params.n

    def result(self) -> Result:
        """Everything about the request, as its caller sees it. Replies that never began have the first one's end."""
        result = Result(
            samples=tuple(self.samples[index] for index in sorted(self.samples)),
            usage=self.usage(),
            timings=self.timings(),
            error=self.error,
            cache_notes=self.cache_notes,
            decision=self.decision,
        )
        result.explained_by(self.cache_report)
        return result

    def usage(self) -> Usage:
        """Tokens so far. Another thread than the loop's may see some of it a little late."""
        first = self.sequences[0]
        blocks: dict[TierName, int] = {"device": 0, "host": 0, "disk": 0}
        unfinished = len(self.prompt)
        if self.cached_blocks is not None:
            blocks, unfinished = self.cached_blocks, 0
        elif (lease := first.lease) is not None:
            blocks = lease.cached_blocks_by_tier()
            if (gaps := first.gaps) is not None:
                unfinished = sum(end - start for start, end in list(gaps))
        by_tier = {tier: num * first.block_tokens for tier, num in blocks.items()}
        cached = sum(by_tier.values())
        return Usage(
            prompt_tokens=len(self.prompt),
            cached_tokens=cached,
            prefilled_tokens=max(0, len(self.prompt) - cached - unfinished),
            completion_tokens=sum(len(sample.token_ids) for sample in list(self.samples.values())),
            cached_by_tier=by_tier,
        )

    def timings(self) -> Timings:
        """Where the time went so far."""
        marks = self.marks
        decode_s = marks.last_token_s - marks.first_token_s
        num_decoded = sum(max(0, len(sample.token_ids) - 1) for sample in list(self.samples.values()))
        return Timings(
            queue_s=max(0.0, marks.admitted_s - marks.submitted_s),
            load_s=max(0.0, marks.loaded_s - marks.admitted_s),
            prefill_s=max(0.0, (marks.first_token_s or marks.computed_s) - marks.loaded_s),
            ttft_s=max(0.0, marks.first_token_s - marks.submitted_s),
            decode_tokens_per_s=num_decoded / decode_s if decode_s > 0 else 0.0,
        )
