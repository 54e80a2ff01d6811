"""How much of one prompt could be reused after another, what breaks it, and what moving the varying parts would gain."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvstore.reports import Difference, DifferenceKind
from tiering.diagnosis.alignment import Stretch, first_difference, same_characters, stretches
from tiering.diagnosis.differences import REORDERED, difference
from tiering.diagnosis.orders import end_of_mixed, exchange
from tiering.diagnosis.renderings import Rendering
from tiering.diagnosis.windows import special_texts

MOST_STRETCHES = 10_000
MOST_FURTHER = 20
"""So many differences behind the first are looked at, and so many of them are told."""

_BESIDE_TOKENS = 64  # nearer than that, what varies beside another stands in one stretch with it

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
        of both; of what only stands in another order, if the order were the same.   by_order: whether the first is that.
    difference: the first; None if nothing breaks it.   further: those behind it, the first few; there are `num_further`,
        without those that are the same exchange seen again.   breakpoints: name of the part, the token before which it ends, and whether all before it is equal.
    """

    prompt_tokens: int
    shared: Reuse
    without_first: Reuse
    without_any: Reuse
    difference: Difference | None
    further: tuple[Difference, ...]
    num_further: int
    by_order: bool
    breakpoints: tuple[tuple[str, int, bool], ...]
    notes: tuple[str, ...]


def most_alike(asked: Rendering, earlier: Sequence[Rendering]) -> Rendering:
    """Of several, the one that has the longest beginning in common with it; the latest of equals."""
    return max(reversed(earlier), key=lambda each: first_difference(asked.ids, each.ids))


def compare(asked: Rendering, cached: Rendering, tokenizer: Any, *, block_tokens: int) -> Comparison:
    """Compare two prompts wholly. Takes up to a second for prompts of 100,000 tokens that differ everywhere."""
    num_tokens = len(asked.ids)
    found = _findings(asked, cached, tokenizer)
    shared = first_difference(asked.ids, cached.ids)
    told = [each.told for each in found if each.told is not None]

    def reuse(tokens: int) -> Reuse:
        whole = min(tokens, num_tokens - 1) // block_tokens  # the last token is always computed
        return Reuse(tokens=tokens, blocks=max(whole, 0), block_tokens=block_tokens)

    return Comparison(
        prompt_tokens=num_tokens,
        shared=reuse(shared),
        without_first=reuse(shared + sum(each.gain for each in found[:1])),
        without_any=reuse(shared + sum(each.gain for each in found)),
        difference=told[0] if told else None,
        further=tuple(told[1:]),
        num_further=max(len(found) - 1, 0),
        by_order=bool(found) and found[0].by_order,
        breakpoints=tuple((name, end, end <= shared) for name, end in asked.breakpoints),
        notes=tuple(_notes(asked, cached, shared)),
    )


@dataclass(kw_only=True)
class _Finding:
    """One difference, with what follows from the same cause.

    gain: tokens that would be found if it were mended: those behind it that are the same, and of what only stands in
        another order that itself.   told: None for those that are only counted.
    """

    told: Difference | None
    gain: int
    by_order: bool = False

    def takes_in(self, other: "_Finding") -> bool:
        """Whether the other, which follows, has the same cause."""
        if self.told is None or other.told is None:
            return False
        if self.told.section != other.told.section:
            return False
        if other.told.kind in self.told.also and self.gain < _BESIDE_TOKENS:
            return True
        return self.by_order and other.by_order and self.told.kind == other.told.kind


def _findings(asked: Rendering, cached: Rendering, tokenizer: Any) -> list[_Finding]:
    """All differences, in order, at most MOST_STRETCHES; what is told of them is worked out for the first ones."""
    found: list[_Finding] = []
    begin, todo = (0, 0), stretches(asked.ids, cached.ids)
    for _ in range(MOST_STRETCHES):
        if (stretch := next(todo, None)) is None:
            break
        told = _told(asked, cached, _moved(stretch, begin), tokenizer) if len(found) <= MOST_FURTHER else None
        one = _Finding(told=told, gain=stretch.same_tokens)
        if told is not None and told.kind in REORDERED:
            ends, by_order = _exchange_ends(asked, cached, begin, tokenizer, told.kind)
            if ends is not None and ends[0] > told.at_token:
                same = first_difference(asked.ids[ends[0] :], cached.ids[ends[1] :])
                gain = same + (ends[0] - told.at_token if by_order else 0)
                one = _Finding(told=told, gain=gain, by_order=by_order)
                begin, todo = ends, stretches(asked.ids[ends[0] :], cached.ids[ends[1] :])
        if found and found[-1].takes_in(one):
            # what is between would move with it
            found[-1].gain = one.gain + (found[-1].gain if one.by_order else 0)
        else:
            found.append(one)
    return found


def _moved(stretch: Stretch, begin: tuple[int, int]) -> Stretch:
    """The stretch of what begins there, in the whole."""
    return replace(
        stretch,
        asked_start=stretch.asked_start + begin[0],
        asked_end=stretch.asked_end + begin[0],
        cached_start=stretch.cached_start + begin[1],
        cached_end=stretch.cached_end + begin[1],
    )


def _exchange_ends(
    asked: Rendering, cached: Rendering, begin: tuple[int, int], tokenizer: Any, kind: DifferenceKind
) -> tuple[tuple[int, int] | None, bool]:
    """The tokens before which an exchange ends that is the first difference from there on, and whether all is in it on both sides."""
    starts = asked.starts, cached.starts
    if not starts[0] or not starts[1]:
        return None, False
    places = starts[0][begin[0]], starts[1][begin[1]]
    ours, theirs = asked.prompt.text[places[0] :], cached.prompt.text[places[1] :]
    first, markers = same_characters(ours, theirs), special_texts(tokenizer)
    found = exchange(ours, theirs, first, markers=markers)
    ends = None if found is None else (found.asked_end, found.cached_end)
    if found is None and kind is DifferenceKind.REORDERED_DOCUMENTS:
        ends = end_of_mixed(ours, theirs, first, markers=markers)
    if ends is None:
        return None, False
    return (
        bisect_left(starts[0], places[0] + ends[0]),
        bisect_left(starts[1], places[1] + ends[1]),
    ), found is not None


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
    reached = max((end for _, end in asked.breakpoints if end <= shared), default=0)
    if 0 < reached < HOSTED_LEAST_TOKENS:
        notes.append(
            f"hosted APIs cache no prefix below {HOSTED_LEAST_TOKENS} tokens, for some models 2048 or 4096; kvtide caches "
            "every whole block"
        )
    return notes
