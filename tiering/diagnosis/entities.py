"""What changes from one request to the next: points in time, identifiers, numbers, found in text with their extent."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from kvstore.reports import DifferenceKind

_MONTHS = (
    "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|"
    "Sep(?:t(?:ember)?)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?"
)
_DAYS = (
    "Mon(?:day)?|Tue(?:s(?:day)?)?|Wed(?:nesday)?|Thu(?:rs(?:day)?)?|Fri(?:day)?|Sat(?:urday)?|Sun(?:day)?"
)
_ZONE = r"(?:\s?(?:Z|UTC|GMT|[A-Z]{1,3}[SD]T|[+-]\d{2}:?\d{2})(?![A-Za-z\d]))?"
_SECONDS = r"(?::[0-5]\d(?:[.,]\d{1,9})?)"
_CLOCK = rf"(?:[01]?\d|2[0-3]):[0-5]\d{_SECONDS}?(?:\s?[AaPp]\.?[Mm]\b\.?)?{_ZONE}"
_LONE_CLOCK = (
    rf"(?:(?:[01]\d|2[0-3]):[0-5]\d{_SECONDS}?|(?:[01]?\d|2[0-3]):[0-5]\d"
    rf"(?:{_SECONDS}|(?=\s?[AaPp]\.?[Mm]\b)))(?:\s?[AaPp]\.?[Mm]\b\.?)?{_ZONE}"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_YEAR = r"(?:19|20)\d\d"
_THEN_CLOCK = rf"(?:(?:T|,?\s+(?:at\s+)?){_CLOCK})?"

# Alternatives from the longest to the shortest.
_TIME = re.compile(
    "|".join(
        (
            rf"(?<![\w.]){_YEAR}([-/.])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])(?![\d-]){_THEN_CLOCK}",
            rf"(?<![\w.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])T\d{{4}}(?:\d\d)?Z?(?!\w)",
            rf"(?<![\w.])(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|[12]\d|3[01])\2{_YEAR}(?!\w){_THEN_CLOCK}",
            rf"\b(?:(?:{_DAYS}),?\s+)?{_DAY}\s+(?:of\s+)?(?:{_MONTHS})\b\.?(?:,?\s+{_YEAR})?{_THEN_CLOCK}",
            rf"\b(?:(?:{_DAYS}),?\s+)?(?:{_MONTHS})\b\.?\s+{_DAY}(?!\w)(?:,?\s+{_CLOCK}{_ZONE})?(?:,?\s+{_YEAR})?{_THEN_CLOCK}",
            rf"\b(?:{_MONTHS})\b\.?,?\s+{_YEAR}\b",
            rf"(?<![\w.:/]){_LONE_CLOCK}(?![\w:])",
            r"(?<![\w.$€£-])1\d{9}(?:\.\d{1,9}|\d{3}|\d{6}|\d{9})?(?![\w-])",  # seconds to nanoseconds since 1970
            r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
        )
    )
)
_LEAST_EPOCH_S = 1_000_000_000
_MOST_EPOCH_S = 2_200_000_000  # 2039

_UUID = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9A-Za-z])")
_WORD = re.compile(r"(?<![0-9A-Za-z_-])[0-9A-Za-z_-]{6,128}(?![0-9A-Za-z_-])")
_NUMBER = re.compile(r"(?<![\w.,$€£¥])(?<!\d:)[+-]?(?:\d{1,3}(?:,\d{3})+|\d{1,11})(?![.,:]?\d)(?![A-Za-z_])")
_NUMBER_IN_NAME = re.compile(r"(?<=[#_-])\d{1,11}(?![\w.-])")
_MONEY_BEHIND = re.compile(r"\s?(?:[$€£¥]|(?:USD|EUR|GBP|JPY|CHF|dollars?|euros?|cents?)\b)")
_MONEY_BEFORE = re.compile(r"(?:[$€£¥]|\b(?:USD|EUR|GBP|JPY|CHF))\s?$")

ENTITY_KINDS = (DifferenceKind.TIMESTAMP, DifferenceKind.UUID, DifferenceKind.COUNTER)

NEAR_AT_MOST = 16
NEAR_SHARE = 0.1
"""Two numbers are near each other if they differ by no more than so much, or than this share of the larger one."""


@dataclass(frozen=True, slots=True)
class Entity:
    """Something of a kind at [start, end) of a text. `shape`: only those of one shape are compared."""

    kind: DifferenceKind
    start: int
    end: int
    shape: str
    text: str


def entities(text: str) -> list[Entity]:
    """All in a text, in order and without overlap; where several kinds fit, the first of times, identifiers, numbers."""
    found: list[Entity] = []
    for some in (_times(text), _identifiers(text), _numbers(text)):
        taken = sorted((each.start, each.end) for each in found)
        found += [each for each in some if not _overlaps(each, taken)]
    return sorted(found, key=lambda each: each.start)


def vary(ours: Entity, theirs: Entity) -> bool:
    """Whether the two are one thing that was written anew: of one kind and shape, and numbers near each other."""
    if (ours.kind, ours.shape) != (theirs.kind, theirs.shape) or ours.text == theirs.text:
        return False
    if ours.kind is not DifferenceKind.COUNTER:
        return True
    one, other = (int(each.text.replace(",", "")) for each in (ours, theirs))
    return abs(one - other) <= max(NEAR_AT_MOST, NEAR_SHARE * max(abs(one), abs(other)))


def masked(text: str) -> str:
    """The text with one character in place of each entity: equal for texts that differ in nothing else."""
    parts, done = [], 0
    for each in entities(text):
        parts += [text[done : each.start], chr(0xE000 + list(DifferenceKind).index(each.kind))]
        done = each.end
    return "".join([*parts, text[done:]])


def _overlaps(one: Entity, taken: list[tuple[int, int]]) -> bool:
    return any(start < one.end and one.start < end for start, end in taken)


def _times(text: str) -> Iterator[Entity]:
    for match in _TIME.finditer(text):
        told = match.group()
        digits = told.split(".")[0]
        if digits.isdecimal() and len(digits) >= 10 and not _is_epoch(digits):
            continue
        shape = "epoch" if digits.isdecimal() and len(digits) >= 10 else "time"
        yield Entity(DifferenceKind.TIMESTAMP, match.start(), match.end(), shape, told)


def _is_epoch(digits: str) -> bool:
    return _LEAST_EPOCH_S <= int(digits[:10]) <= _MOST_EPOCH_S


def _identifiers(text: str) -> Iterator[Entity]:
    done = 0
    for match in _UUID.finditer(text):
        yield from _words(text, done, match.start())
        yield Entity(DifferenceKind.UUID, match.start(), match.end(), "uuid", match.group())
        done = match.end()
    yield from _words(text, done, len(text))


def _words(text: str, start: int, end: int) -> Iterator[Entity]:
    for match in _WORD.finditer(text, start, end):
        if is_random(match.group()):
            yield Entity(DifferenceKind.UUID, match.start(), match.end(), "word", match.group())


def is_random(word: str) -> bool:
    """Whether a word looks drawn at random, or like a hash: letters and digits alternate as in no word that means something.

    Of "req_", "session-" and the like only what follows is looked at. Twelve digits in a row count as well.
    """
    core = max(re.split(r"[_-]", word), key=len)
    if core.isdecimal():
        return len(core) >= 12
    num_digits = sum(map(str.isdigit, core))
    changes = sum(one.isdigit() != other.isdigit() for one, other in pairwise(core))
    return len(core) >= 6 and num_digits >= 3 and len(core) - num_digits >= 2 and changes >= 3


def word_at(text: str, place: int) -> tuple[int, int] | None:
    """Where the word of letters, digits, "_" and "-" begins and ends that `place` lies in, or at the end of."""
    for match in _WORD.finditer(text, max(0, place - 128)):
        if match.start() > place:
            return None
        if place <= match.end():
            return match.span()
    return None


def _numbers(text: str) -> Iterator[Entity]:
    for pattern in (_NUMBER, _NUMBER_IN_NAME):
        for match in pattern.finditer(text):
            is_money = _MONEY_BEHIND.match(text, match.end()) or _MONEY_BEFORE.search(
                text[max(0, match.start() - 5) : match.start()]
            )
            if not is_money:
                yield Entity(DifferenceKind.COUNTER, match.start(), match.end(), "number", match.group())
