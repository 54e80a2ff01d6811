"""What a request gives back."""

from dataclasses import dataclass
from typing import Literal

from kvstore.reports import Decision, Explanation, TierName

from .explainer import CacheReport

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """How probable the model thought a token of the reply: natural logarithms.

    top: the most probable tokens and their log-probabilities, most probable first; as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One reply to a prompt; there are several where `n` was more than 1.

    text: empty where the model has no tokenizer.   token_ids: the new tokens, the one that ended the reply included.
    finish_reason: "stop" (the model, a stop text or a stop token ended it), "length" (max_tokens or the model's limit),
        "cancelled", "timeout" or "error".   logprobs: one a token if they were asked for, else None.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one request. Once it has its first token, prompt_tokens = cached_tokens + prefilled_tokens.

    A request that ended before counts neither what it had not computed nor, unless it was admitted, what it would
    have found. One that gave up its room before its first token counts as cached what it finds again of its own.

    cached_by_tier: cached tokens by the tier in which their blocks lay when the request was admitted; exactly the
        keys "device", "host" and "disk".   completion_tokens: of all replies together.
    """

    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    completion_tokens: int
    cached_by_tier: dict[TierName, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Where one request's time went, in seconds.

    queue_s: from submission to admission.   load_s: until the last cached block was on the device.
    prefill_s: from there to the first token, or of a warm-up until the prompt was computed.   ttft_s: from submission to the first token.
    decode_tokens_per_s: of the tokens after the first, of all replies together; 0 where there are none.
    """

    queue_s: float
    load_s: float
    prefill_s: float
    ttft_s: float
    decode_tokens_per_s: float


class _Explained:
    """What a result knows beside its values: neither compared nor copied nor shown, as it is worked out later."""

    __slots__ = ("_report",)

    def explained_by(self, report: CacheReport | None) -> None:
        """To be called once, by who made the result."""
        object.__setattr__(self, "_report", report)

    @property
    def cache_report(self) -> Explanation | None:
        """Why the cache did not serve more of this prompt, as it was when the request was admitted.

        None for a request that ended before its prompt was computed, and for a copy of a result. Worked out when it is first
        asked for: milliseconds, or a tenth of a second for a chat of a hundred thousand tokens.
        """
        report: CacheReport | None = getattr(self, "_report", None)
        return None if report is None else report.explanation()


@dataclass(frozen=True, kw_only=True, slots=True)
class Result(_Explained):
    """The reply to one prompt, or the replies; `text` and the like are the first one's.

    samples: in order of their index, one unless `n` was more.
    error: the sentence that goes with the finish reason "error", else None.
    cache_notes: sentences that say why the cache could not serve more of this prompt than it did, if anything is known.
    decision: with `EngineConfig.load="auto"`, how many of the blocks that match were used, and what that was thought to take:
        `decision.ttft_s`, against timings.load_s + timings.prefill_s. None where nothing below the device matched.
    """

    samples: tuple[Sample, ...]
    usage: Usage
    timings: Timings
    error: str | None = None
    cache_notes: tuple[str, ...] = ()
    decision: Decision | None = None

    @property
    def text(self) -> str:
        """See Sample."""
        return self.samples[0].text

    @property
    def token_ids(self) -> list[int]:
        """See Sample."""
        return self.samples[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """See Sample."""
        return self.samples[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """See Sample."""
        return self.samples[0].logprobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What a stream has new of one reply.

    text: whole characters, and nothing that belongs to a stop text; the deltas of a reply add up to its text.
    token_ids: the tokens since the last delta; their text may come with a later one.
    index: which reply.   finish_reason: of the reply's last delta, else None.   error: as in Result.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
