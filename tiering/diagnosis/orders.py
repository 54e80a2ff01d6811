"""The same pieces in another order: documents, lines, tools, members of JSON; and how far the exchange reaches.

asked   . . . | C  A  B | . . .
cached  . . . | A  B  C | . . .
              ^ first     ^ asked_end, cached_end
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvstore.reports import DifferenceKind
from tiering.diagnosis.turns import end_of_words, start_of_words

MOST_CHARACTERS = 400_000
"""An exchange is looked for so far behind the first difference."""

_MOST_CONTAINERS = 48
_BETWEEN_MEMBERS = re.compile(r"""\s*,\s*(?=["'])|[{\[]\s*(?=["'])|\s*[}\]]""")
_KEY = re.compile(r"""(["'])[^"'\n]{1,100}\1\s*:""")
_JSON_GAP = re.compile(r"[\s,:]*")
_LEAST_UNIT = 12  # characters: shorter lines are equal by chance
_SEPARATORS = (  # of paragraphs, lines, elements, sentences
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"\n"),
    re.compile(r"</\w{1,40}>\s*"),
    re.compile(r"(?<=[.!?])\s+"),
)
_LEAD_IN = re.compile(r":\s+")
_NUMBERING = re.compile(
    r"^\W*(?:(?:document|doc|source|passage|result|chunk|context|example|item|tool)\w*[\s:_#-]*)?"
    r"[\[(#]?\d{1,4}[\])]?[.:)]?\s*",
    re.IGNORECASE,
)
_INDEX_ATTRIBUTE = re.compile(r"""\b(?:index|id|number|n)=["']?\d{1,4}["']?""")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Up to these places both texts have the same pieces, in another order.

    asked_piece_end, cached_piece_end: where the first piece ends that stands elsewhere in the other text.
    of_json: whether it was read as JSON.
    """

    kind: DifferenceKind
    asked_end: int
    cached_end: int
    asked_piece_end: int
    cached_piece_end: int
    of_json: bool = False


def exchange(
    asked: str,
    cached: str,
    first: int,
    *,
    markers: tuple[str, ...] = (),
    asked_whole: bool = True,
    cached_whole: bool = True,
) -> Exchange | None:
    """The exchange that the first difference is the beginning of; None if the pieces are not the same, or not all known.

    first: how many characters both begin with.   markers: texts of special tokens, at which nothing that is said goes on.
    asked_whole, cached_whole: whether the texts are not cut at their ends.
    """
    asked, cached = asked[: first + MOST_CHARACTERS], cached[: first + MOST_CHARACTERS]
    found, written_otherwise = _in_json(asked, cached, first)
    if found is not None or written_otherwise:
        return found
    ends = end_of_words(asked, first, markers), end_of_words(cached, first, markers)
    for separator in _SEPARATORS:
        for start in _starts(asked, first, separator):
            found = _of_pieces(
                _pieces(asked[: ends[0]], start, separator, whole=asked_whole or ends[0] < len(asked)),
                _pieces(cached[: ends[1]], start, separator, whole=cached_whole or ends[1] < len(cached)),
            )
            if found is not None:
                return found
    return None


# --- JSON -----------------------------------------------------------------------------------------------------------


def _in_json(asked: str, cached: str, first: int) -> tuple[Exchange | None, bool]:
    """The smallest JSON value with a difference, if it has the same parts on both sides, and whether it only looks otherwise."""
    decoder = json.JSONDecoder()
    opens = [match.start() for match in re.finditer(r"[{\[]", asked[max(0, first - MOST_CHARACTERS) : first])]
    for place in reversed(opens[-_MOST_CONTAINERS:]):
        place += max(0, first - MOST_CHARACTERS)
        try:
            ours, end = decoder.raw_decode(asked, place)
            theirs, end_theirs = decoder.raw_decode(cached, place)
            if min(end, end_theirs) <= first:
                continue  # it ends before the difference
            if json.dumps(ours) == json.dumps(theirs):
                return None, True  # written in another way, with the same order
            if ours == theirs:
                kind = DifferenceKind.REORDERED_KEYS
            elif _without_order(ours) == _without_order(theirs):
                kind = _kind_of_list(ours)
            else:
                continue
        except (ValueError, RecursionError):
            continue  # not JSON, or not all of it is known
        return Exchange(
            kind=kind,
            asked_end=end,
            cached_end=end_theirs,
            asked_piece_end=_member_end(asked, place, first, decoder),
            cached_piece_end=_member_end(cached, place, first, decoder),
            of_json=True,
        ), False
    return None, False


def _member_end(text: str, place: int, first: int, decoder: json.JSONDecoder) -> int:
    """Where the member or item that `first` lies in ends, of the JSON value that begins at `place`."""
    end = place + 1
    while end <= first:
        gap = _JSON_GAP.match(text, end)
        start = gap.end() if gap else end
        if text[start] in "}]":
            return start + 1
        end = decoder.raw_decode(text, start)[1]
        if text[place] == "{":
            gap = _JSON_GAP.match(text, end)
            end = decoder.raw_decode(text, gap.end() if gap else end)[1]
    return end


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


def are_members_permuted(asked: str, cached: str, first: int) -> bool:
    """Whether the next member of each side, of JSON or a Python dict, is one of the other's later ones.

    For objects of which too little is known to read them as JSON.
    """
    start = max((match.end() for match in _BETWEEN_MEMBERS.finditer(asked, 0, first)), default=0)
    ours, theirs = (_BETWEEN_MEMBERS.split(text[start:]) for text in (asked, cached))
    keys = [match and match.group() for match in (_KEY.match(ours[0]), _KEY.match(theirs[0]))]
    return None not in keys and keys[0] != keys[1] and ours[0] in theirs[1:] and theirs[0] in ours[1:]


# --- documents, lines, elements -------------------------------------------------------------------------------------


def are_next_exchanged(asked: str, cached: str, first: int, *, asked_whole: bool, cached_whole: bool) -> bool:
    """Whether the next paragraph, line or element of each side stands further on in the other's text.

    For lists of which not all is the same, or too little is known.
    """
    for separator in _SEPARATORS:
        start = max((match.end() for match in separator.finditer(asked, 0, first)), default=0)
        ours = [piece for piece, _ in _pieces(asked, start, separator, whole=asked_whole)]
        theirs = [piece for piece, _ in _pieces(cached, start, separator, whole=cached_whole)]
        if min(len(ours), len(theirs)) < 2 or min(len(ours[0]), len(theirs[0])) < _LEAST_UNIT:
            continue
        if ours[0] != theirs[0] and ours[0] in theirs[1:] and theirs[0] in ours[1:]:
            return True
    return False


def end_of_mixed(
    asked: str, cached: str, first: int, *, markers: tuple[str, ...] = ()
) -> tuple[int, int] | None:
    """Where a list ends in both texts of which some pieces are the same in another order, and others are not there.

    That is where both go on with the same pieces up to the end of what is said; None if they have no two pieces in common.
    """
    asked, cached = asked[: first + MOST_CHARACTERS], cached[: first + MOST_CHARACTERS]
    ends = end_of_words(asked, first, markers), end_of_words(cached, first, markers)
    for separator in _SEPARATORS:
        start = _starts(asked, first, separator)[0]
        ours, theirs = (
            [*_pieces(text[:end], start, separator, whole=True)]
            for text, end in zip((asked, cached), ends, strict=True)
        )
        while ours and theirs and ours[-1][0] == theirs[-1][0]:
            ours.pop()
            theirs.pop()
        common = Counter(piece for piece, _ in ours) & Counter(piece for piece, _ in theirs)
        if sum(number for piece, number in common.items() if len(piece) >= _LEAST_UNIT) >= 2:
            return ours[-1][1], theirs[-1][1]
    return None


def _starts(text: str, first: int, separator: re.Pattern[str]) -> list[int]:
    """Where the piece may begin that the first difference lies in: behind a separator, what begins a turn, or a colon."""
    start = max((match.end() for match in separator.finditer(text, 0, first)), default=0)
    start = max(start, start_of_words(text, first))
    lead_in = [match.end() for match in _LEAD_IN.finditer(text, start, first)]
    return [start, *lead_in[-1:]]


def _pieces(text: str, start: int, separator: re.Pattern[str], *, whole: bool) -> Iterator[tuple[str, int]]:
    """Paragraphs, lines or elements, without their numbers, and where each ends; the last one, if it may be cut, is left out."""
    while start < len(text):
        match = separator.search(text, start)
        if match is None and not whole:
            return
        end, behind = (len(text), len(text)) if match is None else match.span()
        if (piece := text[start:end]).strip():
            yield _INDEX_ATTRIBUTE.sub("", _NUMBERING.sub("", piece)).strip(), behind
        start = behind


def _of_pieces(ours: Iterator[tuple[str, int]], theirs: Iterator[tuple[str, int]]) -> Exchange | None:
    """Up to the first place where both have had the same pieces, each as often as the other."""
    left: Counter[str] = Counter()
    unequal = num_characters = 0
    piece_ends = None
    for (one, end), (other, end_theirs) in zip(ours, theirs, strict=False):
        if piece_ends is None:
            if one == other:
                return None  # what differs is no piece
            piece_ends = end, end_theirs
        for piece, step in ((one, 1), (other, -1)):
            unequal -= left[piece] != 0
            left[piece] += step
            unequal += left[piece] != 0
        num_characters += len(one)
        if not unequal and num_characters >= _LEAST_UNIT:
            return Exchange(
                kind=DifferenceKind.REORDERED_DOCUMENTS,
                asked_end=end,
                cached_end=end_theirs,
                asked_piece_end=piece_ends[0],
                cached_piece_end=piece_ends[1],
            )
    return None


def is_moved(asked: str, cached: str, first: int, asked_end: int, cached_end: int) -> bool:
    """Whether what stands on each side before [asked_end, cached_end), where both go on alike, comes later on the other.

    One side may have nothing there. What both have behind it as often was not moved: it is there once more.
    """
    if first in (asked_end, cached_end):  # one side has it alone, and may begin with what stands before it
        longer, end = (asked, asked_end) if cached_end == first else (cached, cached_end)
        while first and end > first and longer[first - 1] == longer[end - 1]:
            first, end = first - 1, end - 1
            asked_end, cached_end = asked_end - 1, cached_end - 1
    ours, theirs = asked[first:asked_end].strip(), cached[first:cached_end].strip()
    if max(len(ours), len(theirs)) < _LEAST_UNIT:
        return False
    return all(
        not piece or other.count(piece) > own.count(piece)
        for piece, own, other in (
            (ours, asked[asked_end:], cached[cached_end:]),
            (theirs, cached[cached_end:], asked[asked_end:]),
        )
    )
