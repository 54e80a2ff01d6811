"""Where turns of a conversation begin in a text, as the common chat templates write them."""

import re

_ROLES = r"(?:system|developer|user|assistant|model|tool|human|ipython)"
_TURN = re.compile(
    rf"<\|(?:im_start|start_header_id|start|turn)\|>|<[|\uff5c]{_ROLES}[|\uff5c]>|<(?:start_of_turn|turn)>|<{_ROLES}>|\[/?INST\]"
    rf"|(?:^|\n)(?:Human|Assistant|User|System|AI|USER|ASSISTANT):|(?:^|\n)\[{_ROLES}[^\]\n]{{0,60}}\]\n",
    re.IGNORECASE,
)
_TURN_END = re.compile(
    rf"<\|(?:im_end|eot_id|end|eot)\|>|<(?:end_of_turn)>|</{_ROLES}>|</tool_response>|</s>", re.IGNORECASE
)
_ROLE = re.compile(rf"\s*({_ROLES})\b", re.IGNORECASE)
_HEAD = re.compile(rf"\s*(?:{_ROLES}\b)?\s*(?:<\|(?:end_header_id|message|sep)\|>|>)?\s*", re.IGNORECASE)
_ASSISTANT = re.compile(r"assistant|model\b|\bAI:|/INST", re.IGNORECASE)


def num_turns(text: str, markers: tuple[str, ...] = ()) -> int:
    """How many turns begin in a text: by the forms of templates, or by a tokenizer's special tokens, if it has none of these."""
    found = sum(1 for _ in _TURN.finditer(text))
    return found or sum(text.count(marker) for marker in markers)


def starts_turn(text: str, markers: tuple[str, ...] = ()) -> bool:
    """Whether a text goes on with the end or the beginning of a turn."""
    return bool(_TURN.match(text) or _TURN_END.match(text)) or (bool(markers) and text.startswith(markers))


def is_turn_begun(text: str) -> bool:
    """Whether a text ends with the beginning of a turn, of which nothing is said yet."""
    turns = [*_TURN.finditer(text)]
    return bool(turns) and _HEAD.fullmatch(text, turns[-1].end()) is not None


def last_turn(text: str, start: int, end: int) -> int | None:
    """Where in text[start:end] the last turn begins; None where none does."""
    place = None
    for match in _TURN.finditer(text, start, end):
        place = match.start() + len(match.group()) - len(match.group().lstrip("\n"))
    return place


def end_of_turn(text: str, start: int, end: int) -> int:
    """Where in text[start:end], which lies between what two messages say, the one ends and the other begins."""
    place = last_turn(text, start, end)
    ends = [match.end() for match in _TURN_END.finditer(text, start, end)]
    return place if place is not None else ends[-1] if ends else start


def speaker(text: str) -> str | None:
    """Whose turn it is at the end of a text: "assistant" or "other"; None where no turn begins in it."""
    turns = [*_TURN.finditer(text)]
    if not turns:
        return None
    last = turns[-1]
    role = _ROLE.match(text, last.end())
    return "assistant" if _ASSISTANT.search(last.group() + (role[1] if role else "")) else "other"


def start_of_words(text: str, end: int) -> int:
    """Where in text[:end] what is said in the last turn begins, behind its role; 0 where no turn begins in it."""
    start = 0
    for match in _TURN.finditer(text, 0, end):
        head = _HEAD.match(text, match.end(), end)
        start = match.end() if head is None else head.end()
    return start


def end_of_words(text: str, start: int, markers: tuple[str, ...] = ()) -> int:
    """Where what is said at `start` ends: at the next end or beginning of a turn, or special token; else with the text."""
    found = [match.start() for pattern in (_TURN, _TURN_END) if (match := pattern.search(text, start))]
    found += [place for marker in markers if (place := text.find(marker, start)) >= 0]
    return min(found, default=len(text))
