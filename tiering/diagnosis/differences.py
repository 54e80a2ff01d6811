"""What parts a prompt from what is cached: the one call for the engine, the endpoint and the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kvstore.reports import Difference, DifferenceKind
from tiering.diagnosis import looks, sections
from tiering.diagnosis.advice import advice
from tiering.diagnosis.alignment import (
    MEETING_TOKENS,
    Ids,
    Stretch,
    as_ids,
    first_difference,
    holds,
    same_characters,
    stretches,
)
from tiering.diagnosis.entities import ENTITY_KINDS
from tiering.diagnosis.orders import Exchange
from tiering.diagnosis.sections import Layout, Messages
from tiering.diagnosis.windows import AFTER_TOKENS, Window, decode, window_around

REORDERED = (DifferenceKind.REORDERED_KEYS, DifferenceKind.REORDERED_DOCUMENTS)
"""Kinds that a stable order mends."""

SHOWN_TOKENS = 32
SHOWN_CHARACTERS = 240
_LEAST_SAME_CHARACTERS = 24
_LONGEST_VALUE = 64
SHOWN_BEHIND = 40  # characters behind the stretch, the same ones on both sides

_HEAD_TOKENS = 32  # so many tokens found elsewhere are a piece that was moved, not chance
_LEAST_VARIED = 8  # different tokens in it: white space is found everywhere
_HEAD_OFFSETS = (0, 16, 64, 256)
_SAME_BEHIND_GAP_TOKENS = 16


def difference(
    asked_ids: ArrayLike,
    cached_ids: ArrayLike,
    at_token: int,
    *,
    cached_from: int = 0,
    tokenizer: Any = None,
    section: str | None = None,
    messages: Messages | None = None,
    tools: Sequence[Any] | None = None,
    prompt: Layout | None = None,
) -> Difference:
    """Say where a prompt parts from a cached one, what the difference looks like, and what to do about it.

    Changes nothing and may be called from any thread; takes milliseconds, but for what the chat template takes.

    asked_ids: all tokens of the prompt.   cached_ids: those of the cached one, from position `cached_from` on, as far
        as they are known; before that both are equal.
    at_token: where they part, or any position before that up to which both are equal: the answer has the first
        difference from there on. If there is none the answer has no kind.
    tokenizer: of `transformers` or `tokenizers`, or with a `decode(ids)`; None gives an answer without text, whose kind is
        known only where the tokens alone tell it.
    section: the part of the prompt, if the caller knows it.   messages, tools: what the prompt was made of by the
        tokenizer's chat template, if it was: they give the section, and prove that a turn was written anew.
    prompt: the same, where the caller has rendered the prompt himself.

    Raises ValueError if `at_token` lies outside what is known of one of them.
    """
    asked, cached = as_ids(asked_ids), as_ids(cached_ids)
    if not cached_from <= at_token <= min(len(asked), cached_from + len(cached)):
        raise ValueError(
            f"at_token {at_token} is not in what both are known of: from {cached_from} to "
            f"{min(len(asked), cached_from + len(cached))}"
        )
    stretch = _first_stretch(asked, cached, at_token, cached_from)
    at = stretch.asked_start
    window = None if tokenizer is None else window_around(asked, cached, stretch, tokenizer)
    case = _Case(asked=asked, cached=cached, stretch=stretch, window=window, tokenizer=tokenizer)
    if window is not None:
        prompt = prompt or (sections.layout(messages, tokenizer, tools=tools) if messages else None)
        if prompt is not None:
            place = _place(prompt.text, window)
            if place is None:
                place = sections.place_of(prompt.text, asked, at, tokenizer)
            section = section or prompt.name_at(place)
            case.find_rewritten(messages, tools, prompt, place)
    kind = case.kind() if case.parts else None
    also = case.also(kind)
    return Difference(
        at_token=at,
        before_ids=_some(asked[max(0, at - SHOWN_TOKENS) : at]),
        asked_ids=_some(asked[at : at + SHOWN_TOKENS]),
        cached_ids=_some(cached[stretch.cached_start :][:SHOWN_TOKENS]),
        **_texts(case, kind),
        kind=kind,
        advice=None if kind is None else case.advice(kind, also),
        section=section,
        same_after_tokens=stretch.same_tokens if case.parts else None,
        also=also,
    )


def _first_stretch(asked: Ids, cached: Ids, at_token: int, cached_from: int) -> Stretch:
    """The first stretch from there on, its asked places counted in the whole prompt; empty if there is none."""
    skipped = at_token - cached_from
    found = next(stretches(asked[at_token:], cached[skipped:], limit=1), None)
    if found is None:
        same = first_difference(asked[at_token:], cached[skipped:])
        found = Stretch(asked_start=same, asked_end=same, cached_start=same, cached_end=same, same_tokens=0)
    return Stretch(
        asked_start=found.asked_start + at_token,
        asked_end=found.asked_end + at_token,
        cached_start=found.cached_start + skipped,
        cached_end=found.cached_end + skipped,
        same_tokens=found.same_tokens,
    )


@dataclass(kw_only=True)
class _Case:
    """One difference with all that is known of it. `was_rewritten` is proved by the messages, if by anything."""

    asked: Ids
    cached: Ids
    stretch: Stretch
    window: Window | None
    tokenizer: Any
    was_rewritten: bool = False

    @cached_property
    def exchange(self) -> Exchange | None:
        """The exchange of pieces that it is, if all of them are known."""
        return None if self.window is None else looks.exchange_in(self.window)

    @property
    def parts(self) -> bool:
        """Whether there is a difference: both sides have a token here."""
        return self.stretch.asked_start < len(self.asked) and self.stretch.cached_start < len(self.cached)

    def find_rewritten(
        self, messages: Messages | None, tools: Sequence[Any] | None, prompt: Layout, place: int
    ) -> None:
        """Look whether the template wrote what is cached of the first messages, so that this is known for certain."""
        window = self.window
        if messages and window is not None and window.first < len(window.cached):
            place += window.first - window.split
            self.was_rewritten = sections.was_rewritten(
                messages, self.tokenizer, prompt.text, place, window.cached[window.first :], tools=tools
            )

    def kind(self) -> DifferenceKind | None:
        window = self.window
        if window is None:
            return DifferenceKind.REORDERED_DOCUMENTS if self._exchanged() else None
        if looks.is_same_text(window):
            return DifferenceKind.MERGE_AT_BOUNDARY
        if looks.header_name(window):
            return DifferenceKind.BILLING_HEADER
        if self.was_rewritten or looks.is_reasoning_gone(window) or looks.is_turn_trimmed(window):
            return DifferenceKind.REWRITTEN_TURN
        exchange = self.exchange
        if exchange is not None and exchange.of_json:
            return exchange.kind
        if looks.are_members_permuted(window):
            return DifferenceKind.REORDERED_KEYS
        # Before times and numbers: documents that were exchanged, and turns that are gone, may differ in these first.
        if exchange is not None or self._exchanged() or looks.is_permuted(window):
            return DifferenceKind.REORDERED_DOCUMENTS
        if self._lacks_turns(window, offsets=(0,)):
            return DifferenceKind.TRUNCATED
        if of_entities := looks.entity_kinds(window):
            return of_entities[0]
        if looks.is_white_space(window):
            return DifferenceKind.WHITE_SPACE
        if self._lacks_turns(window, offsets=_HEAD_OFFSETS):
            return DifferenceKind.TRUNCATED
        return DifferenceKind.REORDERED_DOCUMENTS if looks.is_moved(window) else DifferenceKind.OTHER_TEXT

    def also(self, kind: DifferenceKind | None) -> tuple[DifferenceKind, ...]:
        """What varies beside a time, an identifier or a number."""
        kinds = () if self.window is None or kind not in ENTITY_KINDS else looks.entity_kinds(self.window)
        return kinds[1:]

    def advice(self, kind: DifferenceKind, also: tuple[DifferenceKind, ...]) -> str:
        stretch, window = self.stretch, self.window
        one_side_empty = (
            stretch.asked_start == stretch.asked_end or stretch.cached_start == stretch.cached_end
        )
        return advice(
            kind,
            header=None if window is None else looks.header_name(window),
            inserted=one_side_empty,
            goes_on=stretch.same_tokens >= MEETING_TOKENS,
            special=window is not None and self._special_against_letters(window),
            day_alone=window is not None and kind is DifferenceKind.TIMESTAMP and looks.is_day_alone(window),
            also=also,
        )

    def _exchanged(self) -> bool:
        """Whether what comes next on each side comes later on the other: told by tokens alone, however long the pieces."""
        ours, theirs = self.asked[self.stretch.asked_start :], self.cached[self.stretch.cached_start :]
        heads = ours[:_HEAD_TOKENS], theirs[:_HEAD_TOKENS]
        if (
            min(map(len, heads)) < _HEAD_TOKENS
            or min(len({*head.tolist()}) for head in heads) < _LEAST_VARIED
        ):
            return False
        return holds(theirs, heads[0]) is not None and holds(ours, heads[1]) is not None

    def _lacks_turns(self, window: Window, offsets: Sequence[int]) -> bool:
        """Whether one side goes on with what stands further on in the other, and turns begin before that.

        offsets: so many tokens behind the difference it may be; with several, a meeting further on counts as well.
        """
        stretch = self.stretch
        ours, theirs = self.asked[stretch.asked_start :], self.cached[stretch.cached_start :]
        gaps = [(ours, theirs, _gap(ours, theirs, offsets)), (theirs, ours, _gap(theirs, ours, offsets))]
        if len(offsets) > 1 and stretch.same_tokens >= _SAME_BEHIND_GAP_TOKENS:
            sizes = stretch.asked_end - stretch.asked_start, stretch.cached_end - stretch.cached_start
            gaps += [(ours, theirs, sizes), (theirs, ours, sizes[::-1])]
        for has_less, has_more, gap in gaps:
            if gap is None or gap[0] >= gap[1]:
                continue
            removed = decode(self.tokenizer, has_more[: min(gap[1], AFTER_TOKENS)])
            instead = decode(self.tokenizer, has_less[: min(gap[0], AFTER_TOKENS)])
            if looks.lacks_turns(removed or "", instead or "", window.markers):
                return True
        return False

    def _special_against_letters(self, window: Window) -> bool:
        sides = self.asked[self.stretch.asked_start :][:1], self.cached[self.stretch.cached_start :][:1]
        told = [decode(self.tokenizer, side) in window.markers for side in sides]
        return told[0] != told[1]


def _place(text: str, window: Window) -> int | None:
    """Where in the text the window is split, if what is around that stands there once: spares decoding all before it."""
    around = window.asked[: window.split + SHOWN_CHARACTERS]
    if text.count(around) != 1:
        return None
    return text.index(around) + window.split


def _gap(has_less: Ids, has_more: Ids, offsets: Sequence[int]) -> tuple[int, int] | None:
    """How much of each lies before the place where what `has_less` goes on with stands in `has_more`; None if nowhere.

    has_less  | i i | . . . . . . .     i: what stands instead, mostly nothing
    has_more  | g g g g g g g g | . . . . . . .
    """
    for offset in offsets:
        found = holds(has_more, has_less[offset : offset + _HEAD_TOKENS])
        if found is not None and len(has_less) - offset >= _HEAD_TOKENS:
            return offset, found
    return None


def _texts(case: _Case, kind: DifferenceKind | None) -> dict[str, str | None]:
    """What is shown. Both sides end behind the stretch with the same characters, if it is short enough for that.

    Of an exchange the pieces that were moved are shown: the first of each side, and nothing behind it.
    """
    window = case.window
    if window is None:
        return {"before": None, "asked": None, "cached": None}
    split, exchange = window.split, case.exchange
    if exchange is not None and kind in REORDERED:
        ends = [
            min(end, split + SHOWN_CHARACTERS)
            for end in (exchange.asked_piece_end, exchange.cached_piece_end)
        ]
        shown = [
            text[split:end].rstrip() for text, end in zip((window.asked, window.cached), ends, strict=True)
        ]
    else:
        ends = [max(end, split) for end in _ends(window, kind, case.stretch.same_tokens)]
        behind = min(same_characters(window.asked[ends[0] :], window.cached[ends[1] :]), SHOWN_BEHIND)
        behind = max(0, min(behind, split + SHOWN_CHARACTERS - max(ends)))
        shown = [
            text[split : min(end + behind, split + SHOWN_CHARACTERS)]
            for text, end in zip((window.asked, window.cached), ends, strict=True)
        ]
    before = window.asked[max(0, split - SHOWN_CHARACTERS) : split]
    return {"before": before, "asked": shown[0], "cached": shown[1]}


def _ends(window: Window, kind: DifferenceKind | None, same_tokens: int) -> tuple[int, int]:
    """Where what differs ends on each side: by the tokens, or by the characters where few tokens are known behind it."""
    ours, theirs = window.asked_end, window.cached_end
    if same_tokens >= MEETING_TOKENS and ours < len(window.asked) and theirs < len(window.cached):
        return ours, theirs
    first = window.first
    sides = [
        as_ids([*map(ord, text[first : first + SHOWN_CHARACTERS])]) for text in (window.asked, window.cached)
    ]
    found = next(stretches(sides[0], sides[1], limit=1), None)
    if found is not None and found.same_tokens >= MEETING_TOKENS:  # not what both happen to be cut behind
        ends = first + found.asked_end, first + found.cached_end
        known = min(len(window.asked) - ends[0], len(window.cached) - ends[1])
        return ends if found.same_tokens >= min(known, _LEAST_SAME_CHARACTERS) else (ours, theirs)
    # Next to nothing is known of one side: what was written anew mostly keeps its length.
    size = min(map(len, sides))
    end = int(max(np.flatnonzero(sides[0][:size] != sides[1][:size]), default=-1)) + 1
    is_value = kind in ENTITY_KINDS and size < SHOWN_CHARACTERS
    return (first + end, first + end) if is_value and end <= _LONGEST_VALUE else (ours, theirs)


def _some(ids: Ids) -> tuple[int, ...]:
    return tuple(ids.tolist())
