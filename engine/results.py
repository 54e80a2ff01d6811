"""What a request gives back."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one request. Once it has its first token, prompt_tokens = cached_tokens + prefilled_tokens.

    A request that ended before counts neither what it had not computed nor, unless it was admitted, what it would
    have found. One that gave up its room before its first token counts as cached what it finds again of its own.

    cached_by_tier: cached tokens by the tier in which their blocks lay when the request was admitted; exactly the
        keys "device", "host" and "disk".
    """

    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    completion_tokens: int
    cached_by_tier: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Where one request's time went, in seconds.

    queue_s: from submission to admission.   load_s: until the last cached block was on the device.
    prefill_s: from there to the first token.   ttft_s: from submission to the first token.
    decode_tokens_per_s: of the tokens after the first; 0 where there are none.
    """

    queue_s: float
    load_s: float
    prefill_s: float
    ttft_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The reply to one prompt.

    text: empty where the model has no tokenizer.   token_ids: the new tokens, an end-of-sequence token included.
    finish_reason: "stop" (the model ended it), "length" (max_tokens or the model's limit), "cancelled" or "error".
    error: the sentence that goes with "error", else None.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    error: str | None = None
