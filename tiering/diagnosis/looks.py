"""What a difference looks like, told from the text around it."""

import json
import re
from typing import Any

from kvstore.reports import DifferenceKind
from tiering.diagnosis.alignment import same_characters
from tiering.diagnosis.entities import entities, is_random, masked, vary, word_at
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
_MOST_CONTAINERS = 48
_BETWEEN_MEMBERS = re.compile(r"""\s*,\s*(?=["'])|[{\[]\s*(?=["'])|\s*[}\]]""")
_KEY = re.compile(r"""(["'])[^"'\n]{1,100}\1\s*:""")
_LEAST_UNIT = 12  # characters: shorter lines are equal by chance
_SEPARATORS = (re.compile(r"\n[ \t]*\n\s*"), re.compile(r"\n"), re.compile(r"</\w{1,40}>\s*"))
_NUMBERING = re.compile(
    r"^\W*(?:(?:document|doc|source|passage|result|chunk|context|example|item|tool)\w*[\s:_#-]*)?"
    r"[\[(#]?\d{1,4}[\])]?[.:)]?\s*",
    re.IGNORECASE,
)
_INDEX_ATTRIBUTE = re.compile(r"""\b(?:index|id|number|n)=["']?\d{1,4}["']?""")
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


def json_kind(window: Window) -> DifferenceKind | None:
    """REORDERED_KEYS or REORDERED_DOCUMENTS, if the smallest JSON value with a difference has the same parts on both sides."""
    decoder = json.JSONDecoder()
    opens = [match.start() for match in re.finditer(r"[{\[]", window.asked[: window.first])]
    for place in reversed(opens[-_MOST_CONTAINERS:]):
        try:
            ours, end = decoder.raw_decode(window.asked, place)
            theirs, end_theirs = decoder.raw_decode(window.cached, place)
            if min(end, end_theirs) <= window.first:
                continue  # it ends before the difference
            if json.dumps(ours) == json.dumps(theirs):
                return None  # written in another way, with the same order
            if ours == theirs:
                return DifferenceKind.REORDERED_KEYS
            if _without_order(ours) == _without_order(theirs):
                return _kind_of_list(ours)
        except (ValueError, RecursionError):
            continue  # not JSON, or not all of it is known
    return None


def _without_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_order(member) for key, member in value.items()}
    if isinstance(value, list):
        return sorted(
            (_without_order(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True)
        )
    return value


def _kind_of_list(value: Any) -> DifferenceKind:
    """Of objects, such as tools, or of names, such as the members that an object must have."""
    has_objects = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    return DifferenceKind.REORDERED_DOCUMENTS if has_objects else DifferenceKind.REORDERED_KEYS


def are_members_permuted(window: Window) -> bool:
    """Whether the next member of each side, of JSON or a Python dict, is one of the other's later ones.

    For objects of which too little is known to read them as JSON.
    """
    start = max(
        (match.end() for match in _BETWEEN_MEMBERS.finditer(window.asked, 0, window.first)), default=0
    )
    ours, theirs = (_BETWEEN_MEMBERS.split(text[start:]) for text in (window.asked, window.cached))
    keys = [match and match.group() for match in (_KEY.match(ours[0]), _KEY.match(theirs[0]))]
    return None not in keys and keys[0] != keys[1] and ours[0] in theirs[1:] and theirs[0] in ours[1:]


def is_permuted(window: Window) -> bool:
    """Whether paragraphs, lines or elements were exchanged: the next of each side stands further on in the other's text."""
    return any(_permuted(window, separator) for separator in _SEPARATORS)


def _permuted(window: Window, separator: re.Pattern[str]) -> bool:
    start = max((match.end() for match in separator.finditer(window.asked, 0, window.first)), default=0)
    ours = _units(window.asked[start:], separator, whole=window.asked_whole)
    theirs = _units(window.cached[start:], separator, whole=window.cached_whole)
    if min(len(ours), len(theirs)) < 2 or min(len(ours[0]), len(theirs[0])) < _LEAST_UNIT:
        return False
    return ours[0] != theirs[0] and ours[0] in theirs[1:] and theirs[0] in ours[1:]


def _units(text: str, separator: re.Pattern[str], *, whole: bool) -> list[str]:
    """Paragraphs, lines or elements, without their numbers; the last one, if it may be cut, is left out."""
    units = separator.split(text)
    return [
        _INDEX_ATTRIBUTE.sub("", _NUMBERING.sub("", unit)).strip()
        for unit in (units if whole else units[:-1])
        if unit.strip()
    ]


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
