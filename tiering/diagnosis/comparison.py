"""How much of one prompt could be reused after another, what breaks it, and what moving the varying parts would gain."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kvstore.reports import Difference
from tiering.diagnosis.alignment import Stretch, first_difference, stretches
from tiering.diagnosis.differences import difference
from tiering.diagnosis.renderings import Rendering

MOST_STRETCHES = 10_000
MOST_FURTHER = 20
"""So many differences behind the first are looked at, and so many of them are told."""

HOSTED_LEAST_TOKENS = 1024
"""Below this neither OpenAI nor Anthropic cache a prefix; some of Anthropic's models want 2048 or 4096."""


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Tokens at the beginning that could be reused, and how many whole blocks these are."""

    tokens: int
    blocks: int
    block_tokens: int

    @property
    def whole_tokens(self) -> int:
        """Tokens in these whole blocks."""
        return self.blocks * self.block_tokens


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What of `prompt_tokens` is found after the other prompt was computed.

    shared: as the prompts are.   without_first, without_any: if the first varying part, or all of them, stood at the end
        of both.   difference: the first; None if nothing breaks it.   further: those behind it, the first few; there are
        `num_further`.   breakpoints: name of the part, the token before which it ends, and whether all before it is equal.
    """

    prompt_tokens: int
    shared: Reuse
    without_first: Reuse
    without_any: Reuse
    difference: Difference | None
    further: tuple[Difference, ...]
    num_further: int
    breakpoints: tuple[tuple[str, int, bool], ...]
    notes: tuple[str, ...]


def most_alike(asked: Rendering, earlier: Sequence[Rendering]) -> Rendering:
    """Of several, the one that has the longest beginning in common with it; the latest of equals."""
    return max(reversed(earlier), key=lambda each: first_difference(asked.ids, each.ids))


def compare(asked: Rendering, cached: Rendering, tokenizer: Any, *, block_tokens: int) -> Comparison:
    """Compare two prompts wholly. Takes up to a second for prompts of 100,000 tokens that differ everywhere."""
    num_tokens = len(asked.ids)
    found = [*islice(stretches(asked.ids, cached.ids), MOST_STRETCHES)]
    shared = first_difference(asked.ids, cached.ids)
    told = [_told(asked, cached, stretch, tokenizer) for stretch in found[: MOST_FURTHER + 1]]
    same = [stretch.same_tokens for stretch in found]

    def reuse(tokens: int) -> Reuse:
        whole = min(tokens, num_tokens - 1) // block_tokens  # the last token is always computed
        return Reuse(tokens=tokens, blocks=max(whole, 0), block_tokens=block_tokens)

    return Comparison(
        prompt_tokens=num_tokens,
        shared=reuse(shared),
        without_first=reuse(shared + sum(same[:1])),
        without_any=reuse(shared + sum(same)),
        difference=told[0] if told else None,
        further=tuple(told[1:]),
        num_further=max(len(found) - 1, 0),
        breakpoints=tuple((name, end, end <= shared) for name, end in asked.breakpoints),
        notes=tuple(_notes(asked, cached, shared)),
    )


def _told(asked: Rendering, cached: Rendering, stretch: Stretch, tokenizer: Any) -> Difference:
    return difference(
        asked.ids,
        cached.ids[stretch.cached_start :],
        stretch.asked_start,
        cached_from=stretch.asked_start,
        tokenizer=tokenizer,
        section=asked.section_at(stretch.asked_start),
        messages=asked.messages,
        tools=asked.tools,
        prompt=asked.prompt if asked.by_template else None,
    )


def _notes(asked: Rendering, cached: Rendering, shared: int) -> list[str]:
    notes = []
    models = asked.request.model, cached.request.model
    if None not in models and models[0] != models[1]:
        notes.append(f"the requests name different models, {models[1]} and {models[0]}: these share nothing")
    if asked.by_template and asked.request.response_format != cached.request.response_format:
        notes.append(
            "their response_format differs; it is not in the text that is compared, but providers put it before it"
        )
    if any(each.request.has_breakpoints for each in (asked, cached)) and shared < HOSTED_LEAST_TOKENS:
        notes.append(
            f"hosted APIs cache no prefix below {HOSTED_LEAST_TOKENS} tokens, for some models 2048 or 4096; kvtide caches "
            "every whole block"
        )
    return notes
