"""What one request may ask for: how its reply is chosen, and what the cache may do with it."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from tiering.keeping import Hints

CACHE_USES = ("readwrite", "read", "off")
KEEP_PRIORITIES = ("low", "normal", "high")

_MAX_LOGPROBS = 100  # each of a reply's tokens carries them
_MAX_SAMPLES = 1000
_MAX_STOPS = 64
_MAX_BREAKPOINTS = 64
_MAX_SEED = 2**64


TTL_CLASSES: Final = {"5m": 300.0, "30m": 1800.0, "1h": 3600.0}
"""Times to live that have a name, in seconds."""

MOST_TTL_S: Final = 1e9
"""Some thirty years."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one request's reply is chosen and where it ends. Raises ValueError for what is out of range.

    max_tokens: at most this many new tokens; 0 computes and caches the prompt and replies nothing.
    temperature: 0 takes the most probable token each time; above, logits are divided by it and one is drawn.
    top_k: draw from the most probable k only; 0 for all.
    top_p: draw from the fewest most probable that together have this probability.
    min_p: draw only from those with at least this share of the most probable one's probability.
    repetition_penalty: logits of tokens in prompt or reply are divided by it, negative ones multiplied; 1 for none.
    presence_penalty, frequency_penalty: taken off the logits of the reply's tokens, once and for each time.
    seed: of the draws, from 0 to 2**64 - 1. Equal seeds roll the same numbers whatever else runs; which tokens these pick
        is the same too in the deterministic mode, and elsewhere up to the last bits of logits. None rolls anew.
    stop: the reply ends before the first of these texts, of which it shows nothing; the name of a special token stands for
        that token. A model with a tokenizer only.
    stop_token_ids: the reply ends with any of these tokens, as it does with the model's own end-of-sequence tokens.
    ignore_eos: go on after an end-of-sequence token of the model's own (for measurements).
    logprobs: for each token of the reply its log-probability and those of so many most probable ones, as the model
        gave them, before temperature and penalties; None for none.
    n: so many replies to the one prompt, which is computed once.

    Filters apply in the order penalties, temperature, top_k, top_p, min_p, as in transformers.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        check_whole("max_tokens", self.max_tokens, 0)
        check_number("temperature", self.temperature, 0.0, 100.0)
        check_whole("top_k", self.top_k, 0)
        check_number("top_p", self.top_p, 0.0, 1.0, above=True)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        for name in ("presence_penalty", "frequency_penalty"):
            check_number(name, getattr(self, name), -100.0, 100.0)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, _MAX_SEED - 1)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, _MAX_LOGPROBS)
        check_whole("n", self.n, 1, _MAX_SAMPLES)
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos must be True or False, got {self.ignore_eos!r}")
        object.__setattr__(self, "stop", _texts(self.stop))
        object.__setattr__(self, "stop_token_ids", _ids(self.stop_token_ids))

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        assert isinstance(self.stop, tuple), "made one at construction"
        return self.stop

    @property
    def is_plain(self) -> bool:
        """Whether the reply's tokens are simply the most probable ones, and nothing is told of the others."""
        return self.takes_the_best and self.logprobs is None

    @property
    def takes_the_best(self) -> bool:
        """Whether each token of the reply is the one with the largest logit."""
        return self.temperature == 0 and not self.penalises

    @property
    def penalises(self) -> bool:
        """Whether what was said before changes what is said next."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheHints:
    """How a prompt is thought to go on, counted in tokens. Raises ValueError for what is out of range.

    All of it is optional, and none of it is believed: what a hint is worth is learned (docs/keeping.md).

    goes_on: whether a later prompt will begin with this one and its reply; None if nobody knows.
    one_shot: nothing of it will be asked for again, save what is shared.
    shared_tokens: so many first tokens others begin with as well: a system prompt, tools, a document.
    breakpoints: after how many tokens later prompts may part from it; what follows the last one is for this request only.
    """

    goes_on: bool | None = None
    one_shot: bool = False
    shared_tokens: int = 0
    breakpoints: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.goes_on not in (None, True, False) or self.one_shot not in (True, False):
            raise ValueError(
                f"goes_on and one_shot are True or False, got {self.goes_on!r} and {self.one_shot!r}"
            )
        if self.goes_on and self.one_shot:
            raise ValueError("a request that goes on is no one-shot: give one of the two")
        check_whole("shared_tokens", self.shared_tokens, 0)
        object.__setattr__(self, "breakpoints", _points(self.breakpoints))

    def in_blocks(self, block_tokens: int) -> Hints:
        """The same in whole blocks: of a block that is only in part before a point all is behind it."""
        points = {point // block_tokens for point in self.breakpoints}
        return Hints(
            goes_on=self.goes_on,
            one_shot=self.one_shot,
            shared_blocks=self.shared_tokens // block_tokens,
            breakpoints=tuple(sorted(points - {0})),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOptions:
    """Who asks, and what the cache may do with the prompt. Raises ValueError for what is out of range.

    tenant, cache_salt: what is computed behind `salt_offset` is found again only with the same two. None of both
        shares with everybody who gives none.
    salt_offset: tokens at the prompt's start that are public all the same, such as a common system prompt; whole blocks
        of them are shared. Tokens, not characters: with a chat template its own tokens count.
    cache: "readwrite"; "read" uses what is cached and adds nothing; "off" neither.
    keep_priority: of one tenant's blocks those of "low" go first, and those of "high" last, until nobody has used them for ten
        minutes. A block keeps the highest that it was used with.
    priority: who waits is served from the lowest number up, in order of arrival within a number. Higher numbers wait as
        long as lower ones keep coming.
    timeout_s: the request ends after so long with what it has, its reason "timeout"; None for never.
    hints: how it is thought to go on, for what is kept (docs/keeping.md); None where nobody knows.
    ttl: for how long after each use the blocks of prompt and reply live at least: "5m", "30m", "1h", or seconds from 1 up.
        None: as EngineConfig.ttl_s says. A block that several share has the longest time of them (docs/retention.md).
    """

    tenant: str | None = None
    cache_salt: str | None = None
    salt_offset: int = 0
    cache: Literal["readwrite", "read", "off"] = "readwrite"
    keep_priority: Literal["low", "normal", "high"] = "normal"
    priority: int = 0
    timeout_s: float | None = None
    hints: CacheHints | None = None
    ttl: str | float | None = None

    def __post_init__(self) -> None:
        for name in ("tenant", "cache_salt"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value and value.isprintable()):
                raise ValueError(f"{name} must be a string of printable characters, or None, got {value!r}")
        check_whole("salt_offset", self.salt_offset, 0)
        if self.cache not in CACHE_USES:
            raise ValueError(f"cache must be one of {', '.join(map(repr, CACHE_USES))}, got {self.cache!r}")
        if self.keep_priority not in KEEP_PRIORITIES:
            raise ValueError(
                f"keep_priority must be one of {', '.join(map(repr, KEEP_PRIORITIES))}, got {self.keep_priority!r}"
            )
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise ValueError(f"priority must be a whole number, got {self.priority!r}")
        if self.timeout_s is not None:
            check_number("timeout_s", self.timeout_s, 0.0, above=True)
        if self.hints is not None and not isinstance(self.hints, CacheHints):
            raise ValueError(f"hints must be CacheHints, or None, got {self.hints!r}")
        seconds_of(self.ttl)

    @property
    def ttl_s(self) -> float | None:
        """`ttl` in seconds."""
        return seconds_of(self.ttl)

    def with_breakpoints(self, points: tuple[int, ...]) -> "RequestOptions":
        """The same with breakpoints that the prompt itself has; where the hints name some these count."""
        hints = self.hints or CacheHints()
        if not points or hints.breakpoints:
            return self
        return replace(self, hints=replace(hints, breakpoints=points))


def seconds_of(ttl: str | float | None) -> float | None:
    """A time to live in seconds; None for none. Raises ValueError for what is none of TTL_CLASSES and no number from 1 up."""
    if ttl is None:
        return None
    if isinstance(ttl, str):
        if ttl not in TTL_CLASSES:
            raise ValueError(f"ttl must be one of {', '.join(TTL_CLASSES)}, seconds, or None, got {ttl!r}")
        return TTL_CLASSES[ttl]
    check_number("ttl", ttl, 1.0, MOST_TTL_S)
    return float(ttl)


def check_kinds(params: object, options: object) -> None:
    """Raise ValueError for what stands in the place of one of these, such as a dict or the other of them."""
    for given, kind in ((params, SamplingParams), (options, RequestOptions)):
        if not isinstance(given, kind):
            raise ValueError(f"expected {kind.__name__}(...), got {given!r}")


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number from `low` to `high`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):  # type: ignore[operator]  # see is_whole
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}")


def check_number(
    name: str, value: object, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Raise ValueError unless `value` is a finite number from `low` (with `above`: above it) to `high`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # a whole number may be larger than any float
    if is_number and low <= value <= min(high, sys.float_info.max) and not (above and value == low):  # type: ignore[operator]  # see is_number
        return
    lower = f"above {low:g}" if above else f"of at least {low:g}"
    bounds = lower if high == math.inf else f"{lower} and at most {high:g}"
    raise ValueError(f"{name} must be a number {bounds}, got {value!r}")


def _texts(stop: object) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop must be a text or a list of texts, none of them empty, got {stop!r}")
    if len(texts) > _MAX_STOPS:
        raise ValueError(f"stop may hold {_MAX_STOPS} texts, got {len(texts)}")
    return tuple(texts)


def _ids(ids: object) -> tuple[int, ...]:
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise ValueError(f"stop_token_ids must be a list of token ids, got {ids!r}")
    for token in ids:
        check_whole("each of stop_token_ids", token, 0)
    return tuple(ids)


def _points(points: object) -> tuple[int, ...]:
    if isinstance(points, str) or not isinstance(points, Sequence):
        raise ValueError(f"breakpoints must be a list of counts of tokens, got {points!r}")
    if len(points) > _MAX_BREAKPOINTS:
        raise ValueError(f"there may be {_MAX_BREAKPOINTS} breakpoints, got {len(points)}")
    for point in points:
        check_whole("each of breakpoints", point, 0)
    return tuple(points)
