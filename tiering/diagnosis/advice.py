"""What to do about a difference: a sentence for each kind, without any of the prompt's text in it."""

from collections.abc import Sequence

from kvstore.reports import DifferenceKind
from tiering.diagnosis.looks import ATTRIBUTION_HEADER

_SENTENCES = {
    DifferenceKind.BILLING_HEADER: (
        "Claude Code writes this line anew for each request: set CLAUDE_CODE_ATTRIBUTION_HEADER=0 in its environment, "
        'or under "env" in its settings.json, and the line is gone.'
    ),
    DifferenceKind.TIMESTAMP: (
        "A date or time stands before text that stays the same: put it at the end, such as into the last user message, "
        "or give it no finer than it is needed, such as the day without the time."
    ),
    DifferenceKind.UUID: (
        "An identifier that is drawn anew stands before text that stays the same: leave it out if the model does not need "
        "it, use one that lasts as long as the conversation, or put it at the end."
    ),
    DifferenceKind.COUNTER: (
        "A number that counts stands before text that stays the same: put it at the end, such as into the last user message."
    ),
    DifferenceKind.REORDERED_KEYS: (
        "The same JSON is written in another order each time: write it with sorted keys, such as by "
        "json.dumps(..., sort_keys=True), and make lists from sets by sorted()."
    ),
    DifferenceKind.REORDERED_DOCUMENTS: (
        "The same documents, lines or tools stand in another order: sort them by something that stays, such as their name "
        "or id, and not by their score, or put them behind what stays the same."
    ),
    DifferenceKind.WHITE_SPACE: (
        "Only white space differs: make the prompt in one place, with the same line breaks, indentation and JSON separators "
        "each time, and do not trim it in one place alone."
    ),
    DifferenceKind.MERGE_AT_BOUNDARY: (
        "The text is the same and the tokens are not, because what was two pieces when it was cached is encoded as one now: "
        "end the shared part at a line break or special token, or give token ids and append to them."
    ),
    DifferenceKind.REWRITTEN_TURN: (
        "An earlier turn is written in another way than when it was cached, such as without its reasoning or trimmed: send "
        "replies back unchanged, and use a chat template, or its option, that keeps them."
    ),
    DifferenceKind.TRUNCATED: (
        "One of the prompts lacks turns that the other has: drop old turns seldom and many at a time, so that the beginning "
        "stays the same for many requests, or put a summary in their place and keep that."
    ),
    DifferenceKind.OTHER_TEXT: (
        "The text itself is another: if what follows stays the same, put it before the part that changes."
    ),
}

_BESIDE = {
    DifferenceKind.TIMESTAMP: "a date or time varies",
    DifferenceKind.UUID: "an identifier is drawn anew",
    DifferenceKind.COUNTER: "a number counts",
}


def advice(
    kind: DifferenceKind,
    *,
    header: str | None = None,
    inserted: bool = False,
    goes_on: bool = True,
    special: bool = False,
    day_alone: bool = False,
    also: Sequence[DifferenceKind] = (),
) -> str:
    """The sentence for a kind.

    header: the name of the header line, if it is one.   inserted: whether one side only has text more.
    goes_on: whether anything behind the difference is the same again.
    special: whether one side has a special token where the other has its letters.
    day_alone: whether of a date or time only the day differs.
    also: what varies beside it: a time, an identifier, a number.
    """
    sentence = _sentence(
        kind, header, inserted=inserted, goes_on=goes_on, special=special, day_alone=day_alone
    )
    if also:
        beside = ", and ".join(_BESIDE[each] for each in also)
        sentence += f" Beside it {beside}: move or drop all of it, as what is left breaks the prefix alone."
    return sentence


def _sentence(
    kind: DifferenceKind,
    header: str | None,
    *,
    inserted: bool,
    goes_on: bool,
    special: bool,
    day_alone: bool,
) -> str:
    if kind is DifferenceKind.OTHER_TEXT and not goes_on:
        return (
            "From here on the prompts have nothing in common: there is nothing to move, and no more to reuse."
        )
    if kind is DifferenceKind.TIMESTAMP and day_alone:
        return (
            "A date stands before text that stays the same, and breaks it whenever the day is another: put it at the end, "
            "such as into the last user message."
        )
    if kind is DifferenceKind.BILLING_HEADER and header not in (None, ATTRIBUTION_HEADER):
        return (
            f"The client writes the line {header!r} anew for each request: switch it off there, or have a proxy take it out "
            "of the prompt."
        )
    if kind is DifferenceKind.MERGE_AT_BOUNDARY and special:
        return (
            "One side has a special token where the other has the letters that it is written with: make both prompts by the "
            "chat template, and do not encode a rendered prompt as if it were plain text."
        )
    if kind is DifferenceKind.OTHER_TEXT and inserted:
        return (
            "One of the prompts has a piece of text here that the other does not have in this place, and then both go on "
            "alike: put what is not always there at the end."
        )
    return _SENTENCES[kind]
