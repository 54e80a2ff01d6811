"""Recorded requests as the text and tokens that stand before the model, with their parts.

By the tokenizer's own chat template if that takes all requests wholly, else in a plain layout of our own: tools, what the
reply must look like, system prompt, messages, in the order in which providers put them, each encoded by itself.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from tiering.diagnosis.alignment import Ids
from tiering.diagnosis.recorded import Recorded, Turn
from tiering.diagnosis.sections import TOOLS, Layout, Section, layout
from tiering.diagnosis.windows import encode

RESPONSE_FORMAT = "response format"


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A request as tokens.

    starts: where each token begins in the text, if the tokenizer tells.   breakpoints: the name of the part, and the token
        before which it ends, of each place that the request marks.
    by_template: whether the tokenizer's chat template made it, of `messages` and `tools`.
    """

    request: Recorded
    prompt: Layout
    ids: Ids
    starts: tuple[int, ...] | None
    breakpoints: tuple[tuple[str, int], ...]
    by_template: bool
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None

    def section_at(self, token: int) -> str | None:
        """The part that a token lies in; None where the tokenizer does not tell."""
        if self.starts is None or not self.starts:
            return None
        return self.prompt.name_at(self.starts[min(token, len(self.starts) - 1)])


def rendered(requests: Sequence[Recorded], tokenizer: Any) -> tuple[list[Rendering], str | None]:
    """All in the same layout, and why it is the plain one, if it is. Raises ValueError for a tokenizer that cannot encode."""
    made = []
    for request in requests:
        one = _by_template(request, tokenizer)
        if isinstance(one, str):
            return [_plainly(each, tokenizer) for each in requests], one
        made.append(one)
    return made, None


def _by_template(request: Recorded, tokenizer: Any) -> Rendering | str:
    """By the chat template; a sentence where it does not take the whole request."""
    if not getattr(tokenizer, "chat_template", None):
        return "the tokenizer has no chat template"
    if request.shape == "text":
        return "a prompt is no chat"
    turns = request.joined()
    messages, tools = [turn.as_message() for turn in turns], request.functions()
    found = layout(messages, tokenizer, tools=tools or None, names=[turn.name for turn in turns])
    if found is None:
        return "the tokenizer's chat template refuses the request"
    if tools and found.text == getattr(layout(messages, tokenizer), "text", None):
        return "the tokenizer's chat template leaves out tools"
    if any(call["name"] not in found.text for turn in turns for call in turn.tool_calls):
        return "the tokenizer's chat template leaves out calls of tools"
    ids, spans = encode(found.text, tokenizer)
    starts = None if spans is None else tuple(start for start, _ in spans)
    marks = [turn.name for turn in request.turns if turn.breakpoint]
    marks = [*([TOOLS] if request.tools_breakpoint is not None else []), *marks]
    ends = {section.name: section.end for section in found.sections}
    return Rendering(
        request=request,
        prompt=found,
        ids=ids,
        starts=starts,
        breakpoints=tuple(
            (name, bisect_left(starts, ends[name])) for name in marks if starts and name in ends
        ),
        by_template=True,
        messages=messages,
        tools=tools or None,
    )


# --- the plain layout -----------------------------------------------------------------------------------------------


def _plainly(request: Recorded, tokenizer: Any) -> Rendering:
    pieces = _pieces(request)
    encoded = [encode(text, tokenizer) for _, text, _ in pieces]
    edges = [0, *accumulate(len(text) for _, text, _ in pieces)]
    ends = [*accumulate(len(ids) for ids, _ in encoded)]
    starts: list[int] | None = []
    for (_, spans), edge in zip(encoded, edges, strict=False):
        if spans is None:
            starts = None
            break
        assert starts is not None, "it is None only behind the break"
        starts += [edge + start for start, _ in spans]
    return Rendering(
        request=request,
        prompt=Layout(
            text="".join(text for _, text, _ in pieces),
            sections=tuple(
                Section(name=name, start=start, end=end)
                for (name, _, _), (start, end) in zip(pieces, pairwise(edges), strict=True)
                if start < end
            ),
        ),
        ids=np.concatenate([ids for ids, _ in encoded]),
        starts=None if starts is None else tuple(starts),
        breakpoints=tuple((name, end) for (name, _, marked), end in zip(pieces, ends, strict=True) if marked),
        by_template=False,
    )


def _pieces(request: Recorded) -> list[tuple[str, str, bool]]:
    """Name, text, and whether the request marks its end."""
    if request.shape == "text":
        return [("prompt", request.turns[0].content, False)]
    pieces = []
    for number, tool in enumerate(request.tools):
        head = "[tools]\n" if number == 0 else ""
        pieces.append((TOOLS, f"{head}{_json(tool)}\n", number == request.tools_breakpoint))
    if request.response_format is not None:
        pieces.append((RESPONSE_FORMAT, f"[response format]\n{_json(request.response_format)}\n", False))
    before = None
    for turn in request.turns:
        head = "" if (turn.name, turn.role) == before else f"[{turn.role}]\n"
        pieces.append((turn.name, head + _said(turn), turn.breakpoint))
        before = (turn.name, turn.role)
    return pieces


def _said(turn: Turn) -> str:
    parts = [] if turn.reasoning is None else [f"<think>\n{turn.reasoning}\n</think>"]
    parts += [turn.content] if turn.content else []
    parts += [f"[call {call['name']}] {_json(call['arguments'])}" for call in turn.tool_calls]
    return "\n".join(parts) + "\n"


def _json(value: Any) -> str:
    # in the order in which it was written: that is what is looked for
    return json.dumps(value, ensure_ascii=False)
