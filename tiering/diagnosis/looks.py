"""What a difference looks like, told from the text around it."""

import re

from kvstore.reports import DifferenceKind
from tiering.diagnosis import orders
from tiering.diagnosis.alignment import same_characters
from tiering.diagnosis.entities import Entity, entities, is_random, masked, vary, word_at
from tiering.diagnosis.orders import Exchange, exchange
from tiering.diagnosis.turns import is_turn_begun, num_turns, speaker, starts_turn
from tiering.diagnosis.windows import Window

ATTRIBUTION_HEADER = "x-anthropic-billing-header"

# characters around the first difference in which entities are looked for
_NEAR_BEFORE, _NEAR_BEHIND = 400, 800
_AGREE = 6  # so many characters behind an entity, or all there are, say that it alone was written anew
_AGREE_WITHOUT_SPACE = 12
_AGREE_WITHOUT_HEADER = 24
_BESIDE = 80  # characters that are the same, at most, between two things that vary in one stretch
_CLOCK = re.compile(r"\d?\d:\d\d\S*(?:\s?[AaPp]\.?[Mm])?|T\d{4,6}Z?")
_LONGEST_HEADER = 600
_LINE_BEGINS = ("", "\n", ">", "]")  # or what a template puts before it

# Such a line ends with its last "name=value;": some servers put the system prompt behind it without a line break.
_HEADER = re.compile(
    r"(?P<name>x-[a-z0-9]+(?:-[a-z0-9]+)+):[ \t]*(?:(?:[\w.-]{1,64}=[^;\n]{0,200};[ \t]*)+|[^\n]*)",
    re.IGNORECASE,
)
_SPACE = re.compile(r"[\s\u200b\u2060\ufeff]+")
_REASONING = re.compile(
    r"<think(?:ing)?>|<reasoning>|\[THINK\]|<\|channel\|>analysis|<\|START_THINKING\|>|<seed:think>",
    re.IGNORECASE,
)
_LONGEST_TAG = 24


def is_same_text(window: Window) -> bool:
    """Whether the texts are the same and only the tokens are not: up to where they meet again, or to an end."""
    if max(window.asked_end, window.cached_end) <= window.first:
        return window.asked_end == window.cached_end
    return window.first > window.split and window.first in (len(window.asked), len(window.cached))


# --- values written anew --------------------------------------------------------------------------------------------


def header_name(window: Window) -> str | None:
    """The name of the client's header line that the first difference lies in, on both sides.

    Claude Code's may be there on one side only, if both are alike without it. Others count near the beginning of a prompt
    alone: further on they are what somebody talks about.
    """
    sides = window.asked, window.cached
    found = [_header_at(text, window.first) for text in sides]
    names = [match and match["name"].lower() for match in found]
    if names[0] == names[1]:
        return names[0] if names[0] == ATTRIBUTION_HEADER or window.begins else None
    for match, name, text, other in zip(found, names, sides, reversed(sides), strict=True):
        if match is not None and name == ATTRIBUTION_HEADER:
            behind, instead = text[match.end() :].lstrip(), other[match.start() :].lstrip()
            return name if behind and instead and _agree(behind, instead, _AGREE_WITHOUT_HEADER) else None
    return None


def _header_at(text: str, place: int) -> re.Match[str] | None:
    for match in _HEADER.finditer(text, max(0, place - _LONGEST_HEADER), place + _LONGEST_HEADER):
        before = text[: match.start()].rstrip(" \t")
        if match.start() <= place < match.end() and (
            match["name"].lower() == ATTRIBUTION_HEADER or before[-1:] in _LINE_BEGINS
        ):
            return match
    return None


def entity_kinds(window: Window) -> tuple[DifferenceKind, ...]:
    """TIMESTAMP, UUID or COUNTER, if the first difference lies in one on both sides, and what follows agrees again.

    Behind it the kinds of others that vary beside it, each once.
    """
    ours, theirs, place = _around(window)
    found, found_theirs = entities(ours), entities(theirs)
    pair = _pair_at(found, found_theirs, place)
    ends = (pair[0].end, pair[1].end, pair[0].kind) if pair else _identifiers_at(ours, theirs, place)
    if ends is None:
        return ()
    end, end_theirs, kind = ends
    if not _agree(masked(ours[end:]), masked(theirs[end_theirs:]), _AGREE):
        return ()
    kinds, quiet = [kind], 0
    rest = zip(
        (each for each in found if each.start >= end),
        (each for each in found_theirs if each.start >= end_theirs),
        strict=False,
    )
    for one, other in rest:
        between = ours[end : one.start]
        quiet += len(between)
        if between != theirs[end_theirs : other.start] or quiet > _BESIDE:
            break
        if vary(one, other):
            quiet = 0
            kinds.append(one.kind)
        elif one.text != other.text:
            break
        end, end_theirs = one.end, other.end
    return tuple(dict.fromkeys(kinds))


def is_day_alone(window: Window) -> bool:
    """Whether the first difference lies in a date, and the time of day is the same or not there."""
    ours, theirs, place = _around(window)
    pair = _pair_at(entities(ours), entities(theirs), place)
    if pair is None or "epoch" in (pair[0].shape, pair[1].shape):
        return False
    clocks = [_CLOCK.findall(each.text) for each in pair]
    return clocks[0] == clocks[1]


def _around(window: Window) -> tuple[str, str, int]:
    """The texts in which entities are looked for, and where in them the first difference is."""
    low = max(0, window.first - _NEAR_BEFORE)
    ours, theirs = (text[low : window.first + _NEAR_BEHIND] for text in (window.asked, window.cached))
    return ours, theirs, window.first - low


def _pair_at(ours: list[Entity], theirs: list[Entity], place: int) -> tuple[Entity, Entity] | None:
    """What was written anew at that place, as it is on each side."""
    return next(
        (
            (one, other)
            for one in ours
            for other in theirs
            if one.start == other.start <= place <= min(one.end, other.end) and vary(one, other)
        ),
        None,
    )


def _identifiers_at(ours: str, theirs: str, place: int) -> tuple[int, int, DifferenceKind] | None:
    """Two words of one length, one of which looks random: of random ones, some happen to look like others."""
    span = word_at(ours, place)
    if span is None or span != word_at(theirs, place):
        return None
    if is_random(ours[slice(*span)]) or is_random(theirs[slice(*span)]):
        return span[1], span[1], DifferenceKind.UUID
    return None


def _agree(ours: str, theirs: str, least: int) -> bool:
    return same_characters(ours, theirs) >= min(least, len(ours), len(theirs))


def is_white_space(window: Window) -> bool:
    """Whether the texts are equal but for white space, for a good while or to an end."""
    start = _before_space(window)
    ours, theirs = window.asked[start:], window.cached[start:]
    if _leading_space(ours) == _leading_space(theirs):
        return False
    return _agree(_SPACE.sub("", ours), _SPACE.sub("", theirs), _AGREE_WITHOUT_SPACE)


def _before_space(window: Window) -> int:
    """Where the white space before the first difference begins."""
    place = window.first
    while place and _SPACE.match(window.asked[place - 1]):
        place -= 1
    return place


def _leading_space(text: str) -> str:
    match = _SPACE.match(text)
    return match.group() if match else ""


# --- the same things in another order -------------------------------------------------------------------------------


def exchange_in(window: Window) -> Exchange | None:
    """The exchange of pieces that the difference is, if all of them are known."""
    return exchange(
        window.asked,
        window.cached,
        window.first,
        markers=window.markers,
        asked_whole=window.asked_whole,
        cached_whole=window.cached_whole,
    )


def are_members_permuted(window: Window) -> bool:
    """Whether the next member of an object on each side is one of the other's later ones."""
    return orders.are_members_permuted(window.asked, window.cached, window.first)


def is_permuted(window: Window) -> bool:
    """Whether paragraphs, lines or elements were exchanged: the next of each side stands further on in the other's text."""
    return orders.are_next_exchanged(
        window.asked,
        window.cached,
        window.first,
        asked_whole=window.asked_whole,
        cached_whole=window.cached_whole,
    )


def is_moved(window: Window) -> bool:
    """Whether what stands here on either side comes later on the other, without being a paragraph or line of its own."""
    return orders.is_moved(window.asked, window.cached, window.first, window.asked_end, window.cached_end)


# --- turns ----------------------------------------------------------------------------------------------------------


def is_reasoning_gone(window: Window) -> bool:
    """Whether one side has reasoning, perhaps empty, where the other goes on with what follows it."""
    return _has_reasoning(window.asked, window.cached, window.first) or _has_reasoning(
        window.cached, window.asked, window.first
    )


def _has_reasoning(text: str, other: str, first: int) -> bool:
    match = _REASONING.search(text, max(0, first - _LONGEST_TAG), first + 2 * _LONGEST_TAG)
    if match is None or match.end() <= first or text[first : match.start()].strip():
        return False
    start = min(first, match.start())
    follows = _SPACE.sub("", other[start : start + 400])[:_LONGEST_TAG]
    return bool(follows) and follows in _SPACE.sub("", text[match.end() :])


def is_turn_trimmed(window: Window) -> bool:
    """Whether the difference is white space at either end of what an assistant said."""
    start = _before_space(window)
    if not is_white_space(window) or speaker(window.asked[:start]) != "assistant":
        return False
    if is_turn_begun(window.asked[:start]):
        return True
    behind = (text[start:].lstrip() for text in (window.asked, window.cached))
    return any(starts_turn(text, window.markers) for text in behind)


def lacks_turns(removed: str, instead: str, markers: tuple[str, ...]) -> bool:
    """Whether turns begin in a text for which the other side has fewer of them."""
    return num_turns(removed, markers) > num_turns(instead, markers)
