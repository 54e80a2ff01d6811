"""What a difference looks like, told from the text around it."""

import re

from kvstore.reports import DifferenceKind
from tiering.diagnosis import orders
from tiering.diagnosis.alignment import same_characters
from tiering.diagnosis.entities import entities, is_random, masked, vary, word_at
from tiering.diagnosis.orders import Exchange, exchange
from tiering.diagnosis.turns import is_turn_begun, num_turns, speaker, starts_turn
from tiering.diagnosis.windows import Window

ATTRIBUTION_HEADER = "x-anthropic-billing-header"

_NEAR_BEFORE, _NEAR_BEHIND = (
    400,
    800,
)  # characters around the first difference in which entities are looked for
_AGREE = 6  # so many characters behind an entity, or all there are, say that it alone was written anew
_AGREE_WITHOUT_SPACE = 12
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
    """The name of the client's header line that the first difference lies in; Claude Code's may be there on one side only.

    Others count near the beginning of a prompt alone: further on they are what somebody talks about.
    """
    names = [_header_at(text, window.first) for text in (window.asked, window.cached)]
    if ATTRIBUTION_HEADER in names:
        return ATTRIBUTION_HEADER
    return names[0] if names[0] == names[1] and window.begins else None


def _header_at(text: str, place: int) -> str | None:
    for match in _HEADER.finditer(text, max(0, place - _LONGEST_HEADER), place + _LONGEST_HEADER):
        name, before = match["name"].lower(), text[: match.start()].rstrip(" \t")
        if match.start() <= place < match.end() and (
            name == ATTRIBUTION_HEADER or before[-1:] in _LINE_BEGINS
        ):
            return name
    return None


def entity_kind(window: Window) -> DifferenceKind | None:
    """TIMESTAMP, UUID or COUNTER, if the first difference lies in one on both sides, and what follows agrees again."""
    low = max(0, window.first - _NEAR_BEFORE)
    place = window.first - low
    ours, theirs = (text[low : window.first + _NEAR_BEHIND] for text in (window.asked, window.cached))
    pair = next(
        (
            (one.end, other.end, one.kind)
            for one in entities(ours)
            for other in entities(theirs)
            if one.start == other.start <= place <= min(one.end, other.end) and vary(one, other)
        ),
        None,
    )
    pair = pair or _identifiers_at(ours, theirs, place)
    if pair is None:
        return None
    end, end_theirs, kind = pair
    return kind if _agree(masked(ours[end:]), masked(theirs[end_theirs:]), _AGREE) else None


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
