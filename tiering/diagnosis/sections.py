"""Which part of a prompt a token lies in: "system message", "tools", "message 3 (user)".

A chat template is a program, and what it wrote where is not told. So the conversation is rendered once more with marks
in place of what the messages say: what stands between the marks is the template's own, and with it the messages are
found in the text. A template that takes no marks is searched for the messages' words instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tiering.diagnosis.alignment import Ids, same_characters
from tiering.diagnosis.turns import end_of_turn, last_turn
from tiering.diagnosis.windows import decode, encode

BEFORE_FIRST = "before the first message"
BEHIND_LAST = "after the last message"
TOOLS = "tools"

_MARK = "\ue0ff{}\ue0fe"  # of the private use area, as no prompt has it
_SYSTEM_ROLES = ("system", "developer")
_MOST_EARLIER = 8
_LEAST_REWRITTEN = 8  # characters that the earlier rendering and what is cached must share

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A named part of a text, [start, end) in characters."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A prompt as one text, and its parts, in order and without gaps."""

    text: str
    sections: tuple[Section, ...]

    def name_at(self, place: int) -> str | None:
        """The part that the character at `place` lies in; at the end of the text, the last one; None without parts."""
        for section in self.sections:
            if place < section.end:
                return section.name
        return self.sections[-1].name if self.sections else None


def render(
    messages: Messages, tokenizer: Any, *, tools: Sequence[Any] | None = None, reply: bool = True
) -> str | None:
    """A conversation by the tokenizer's chat template, as `transformers` runs it; None where it refuses or has none.

    reply: whether the text ends with the beginning of a reply.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    from jinja2 import TemplateError  # transformers needs it for templates, nothing else here does

    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": reply}
    if tools:
        options["tools"] = list(tools)
    try:
        return str(tokenizer.apply_chat_template([dict(message) for message in messages], **options))
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None  # templates are programs of others: they fail as they like on what they do not expect


def layout(
    messages: Messages,
    tokenizer: Any,
    *,
    tools: Sequence[Any] | None = None,
    reply: bool = True,
    names: Sequence[str] | None = None,
) -> Layout | None:
    """The conversation as text with its parts; None where the chat template refuses it, or there is none.

    names: what the messages are called, if not by their numbers.
    """
    text = render(messages, tokenizer, tools=tools, reply=reply)
    if text is None:
        return None
    if names is None:
        names = [section_name(number, str(each.get("role"))) for number, each in enumerate(messages, 1)]
    marked = [dict(message, content=_MARK.format(number)) for number, message in enumerate(messages)]
    between = _between(render(marked, tokenizer, tools=tools, reply=reply), len(messages))
    spans = _spans(text, [_said(message) for message in messages], between)
    tool_span = None
    if tools and between is not None:
        bare = _between(render(marked, tokenizer, reply=reply), len(messages))
        tool_span = _tool_span(between, bare, spans)
    return Layout(text=text, sections=tuple(_sections(text, names, spans, tool_span)))


def section_name(number: int, role: str) -> str:
    """What the message with that number, from 1 on, is called."""
    return "system message" if number == 1 and role in _SYSTEM_ROLES else f"message {number} ({role})"


def place_of(text: str, ids: Ids, at_token: int, tokenizer: Any) -> int:
    """Where in the text of `ids` the token at `at_token` begins.

    By the text of the tokens before it where a tokenizer gives text back as it was, else by encoding the text.
    """
    before = (decode(tokenizer, ids[:at_token]) or "").rstrip("\ufffd")
    if text.startswith(before):
        return len(before)
    _, offsets = encode(text, tokenizer)
    if offsets is not None and at_token < len(offsets):
        return offsets[at_token][0]
    return same_characters(before, text)


def was_rewritten(
    messages: Messages,
    tokenizer: Any,
    whole: str,
    place: int,
    cached: str,
    *,
    tools: Sequence[Any] | None = None,
) -> bool:
    """Whether the template wrote what is at `place` in another way when the conversation was shorter.

    whole: the text of all messages.   cached: what is cached from `place` on. Earlier conversations are tried that end
    behind `place`, the longest first, as far as the template takes them.
    """
    for count in range(len(messages) - 1, max(0, len(messages) - 1 - _MOST_EARLIER), -1):
        reply = messages[count - 1].get("role") != "assistant"
        before = render(messages[:count], tokenizer, tools=tools, reply=reply)
        if before is None or before[:place] != whole[:place]:
            continue
        if len(before) <= place:
            break  # and so will all that are shorter
        was, now = before[place:].rstrip(), whole[place:]
        length = min(len(was), len(cached), 64)
        if length >= _LEAST_REWRITTEN and was[:length] == cached[:length] != now[:length]:
            return True
    return False


def _said(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _between(text: str | None, num_messages: int) -> list[str] | None:
    """What the template puts before, between and behind the messages; None if it lost or repeated one."""
    if text is None:
        return None
    parts, rest = [], text
    for number in range(num_messages):
        mark = _MARK.format(number)
        if rest.count(mark) != 1:
            return None
        before, _, rest = rest.partition(mark)
        parts.append(before)
    return [*parts, rest]


def _spans(text: str, said: list[str], between: list[str] | None) -> list[tuple[int, int]]:
    """Where each message's words stand in the text."""
    spans, done = [], 0
    for number, words in enumerate(said):
        lead, behind = ("", "") if between is None else (between[number], between[number + 1])
        start = done + len(lead) if text.startswith(lead, done) else done
        end = _end_of_words(text, start, words, behind)
        if between is None or end is None:
            found = text.find(words.strip(), start) if words.strip() else start
            start = found if found >= 0 else start
            end = start + len(words.strip()) if found >= 0 else start
        spans.append((start, end))
        done = end
    return spans


def _end_of_words(text: str, start: int, words: str, behind: str) -> int | None:
    for form in (words, words.strip(), words.rstrip(), words.lstrip()):
        if text.startswith(form + behind, start):
            return start + len(form)
    found = text.find(behind, start) if behind else -1  # the template wrote it in another way
    return found if found >= 0 else None


def _tool_span(
    between: list[str], bare: list[str] | None, spans: list[tuple[int, int]]
) -> tuple[int, int] | None:
    """What the tools add to the template's own text, in the first place where they add something."""
    if bare is None:
        return None
    for number, (ours, plain) in enumerate(zip(between, bare, strict=True)):
        if ours != plain:
            head = same_characters(ours, plain)
            end = len(ours) - min(same_characters(ours[::-1], plain[::-1]), len(plain) - head)
            while head and end > head and ours[head - 1] == ours[end - 1]:  # not within what begins a turn
                head, end = head - 1, end - 1
            start = spans[number - 1][1] if number else 0
            return start + head, start + end
    return None


def _sections(
    text: str, names: Sequence[str], spans: list[tuple[int, int]], tool_span: tuple[int, int] | None
) -> Iterator[Section]:
    """Cut the text between the messages, each cut where the template ends a turn, and cut the tools out."""
    starts = [end_of_turn(text, 0, spans[0][0]) if spans else 0]
    starts += [end_of_turn(text, one[1], other[0]) for one, other in pairwise(spans)]
    last = last_turn(text, spans[-1][1], len(text)) if spans else 0
    edges = [*starts, len(text) if last is None else last, len(text)]
    parts = [(BEFORE_FIRST, 0, edges[0])]
    parts += [(name, *edge) for name, edge in zip([*names, BEHIND_LAST], pairwise(edges), strict=True)]
    for name, start, end in parts:
        low, high = (max(start, tool_span[0]), min(end, tool_span[1])) if tool_span else (end, end)
        if low < high:
            pieces = [(name, start, low), (TOOLS, low, high), (name, high, end)]
        else:
            pieces = [(name, start, end)]
        yield from (Section(name=each, start=a, end=b) for each, a, b in pieces if a < b)
