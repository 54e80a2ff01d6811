"""Recorded requests: chat completions of OpenAI's shape and messages of Anthropic's, as one kind of value.

Nothing is sent anywhere, and nothing is looked up: images and files stand in the text as their digest.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from tiering.diagnosis.sections import section_name

MOST_BYTES = 256 * 1024 * 1024
_WRAPPERS = ("request", "body", "params", "json")
_DEPTH = 6
_ANTHROPIC_BLOCKS = ("tool_use", "tool_result", "thinking", "redacted_thinking", "document")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


class NotARequest(ValueError):
    """What was given cannot be read as a request; the sentence says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message as chat templates take it, with the name of the part of the request that it came from.

    breakpoint: whether the request marks its end as a place up to which to cache.
    """

    name: str
    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    reasoning: str | None = None
    tool_call_id: str | None = None
    breakpoint: bool = False

    def as_message(self) -> dict[str, Any]:
        """For a chat template."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in self.tool_calls
            ]
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A request. `tools` are as they were written; `breakpoint_in_tools`: the number of the last one that is marked."""

    shape: Literal["openai", "anthropic", "text"]
    model: str | None
    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()
    response_format: Any = None
    tools_breakpoint: int | None = None

    @property
    def has_breakpoints(self) -> bool:
        """Whether it marks places up to which to cache."""
        return self.tools_breakpoint is not None or any(turn.breakpoint for turn in self.turns)

    def joined(self) -> list[Turn]:
        """The turns, with what one message says in several parts as one: most templates want one system message, too."""
        joined: list[Turn] = []
        for _, group in groupby(self.turns, key=lambda turn: (turn.name, turn.role, turn.tool_call_id)):
            parts = [*group]
            thoughts = [part.reasoning for part in parts if part.reasoning is not None]
            one = replace(
                parts[0],
                content="\n".join(part.content for part in parts if part.content),
                tool_calls=tuple(call for part in parts for call in part.tool_calls),
                reasoning="\n".join(thoughts) if thoughts else None,
                breakpoint=any(part.breakpoint for part in parts),
            )
            joined.append(one)
        return joined

    def functions(self) -> list[dict[str, Any]]:
        """The tools as chat templates take them."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.get("name"),
                    "description": tool.get("description", ""),
                    "parameters": tool["input_schema"],
                },
            }
            if "input_schema" in tool
            else tool
            for tool in self.tools
        ]


def read_requests(path: Path) -> list[Recorded]:
    """All requests in a file: one object, a list of them, or one on each line. Raises NotARequest with one sentence."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise NotARequest(
                f"{path} has more than {MOST_BYTES // 2**20} MiB: give the requests that matter alone"
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NotARequest(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise NotARequest(f"{path} is not UTF-8 text") from error
    try:
        found = [_parsed(_whole_characters(value)) for value in _values(text)]
    except NotARequest as error:
        raise NotARequest(f"{path}: {error}") from error
    except RecursionError as error:
        raise NotARequest(f"{path}: its JSON is nested too deep") from error
    if not found:
        raise NotARequest(f"{path} has no request in it")
    return found


def _whole_characters(value: Any) -> Any:
    """The value; text in it that a client cut within a character has no UTF-8, which tokenizers want."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise NotARequest(
            "its text has half of a character in it (a lone surrogate), which no tokenizer takes"
        ) from error
    return value


def _values(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return [_line(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if isinstance(value, list) and not (value and isinstance(value[0], Mapping) and "role" in value[0]):
        return value
    return [value]


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise NotARequest(
            f"it is neither JSON nor a JSON value on each line (line {number}: {error})"
        ) from error


def _parsed(value: Any) -> Recorded:
    request = _unwrapped(value)
    if "messages" not in request:
        text = request.get("text", request.get("prompt"))
        if not isinstance(text, str):
            raise NotARequest('its "prompt" is not a string')
        return Recorded(
            shape="text", model=_model(request), turns=(Turn(name="prompt", role="user", content=text),)
        )
    messages = request["messages"]
    if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
        raise NotARequest('its "messages" are not a list of objects')
    for number, each in enumerate(messages, 1):
        if not isinstance(each.get("role"), str):
            raise NotARequest(f"message {number} has no role")
    tools = request.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise NotARequest('its "tools" are not a list of objects')
    anthropic = _is_anthropic(request, messages, tools)
    turns = [*(_anthropic_turns(request) if anthropic else _openai_turns(messages))]
    if not turns:
        raise NotARequest("it has no messages")
    marked = [number for number, tool in enumerate(tools) if "cache_control" in tool]
    return Recorded(
        shape="anthropic" if anthropic else "openai",
        model=_model(request),
        turns=tuple(turns),
        tools=tuple({key: each for key, each in tool.items() if key != "cache_control"} for tool in tools),
        response_format=request.get("response_format"),
        tools_breakpoint=marked[-1] if marked else None,
    )


def _unwrapped(value: Any) -> Mapping[str, Any]:
    """The request itself, out of what logs and batch files put around it."""
    for _ in range(_DEPTH):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                break
        if isinstance(value, list) and value:
            return {"messages": value}
        if not isinstance(value, Mapping):
            break
        if "messages" in value or isinstance(value.get("prompt", value.get("text")), str):
            return value
        if "input" in value:
            raise NotARequest(
                "it is a request of OpenAI's Responses API, which is not read: record one of chat completions"
            )
        inner = [value[key] for key in _WRAPPERS if key in value]
        if not inner:
            break
        value = inner[0]
    raise NotARequest(
        "there is no request in it: expected an object with \"messages\", of OpenAI's chat completions or Anthropic's shape, "
        'one with "prompt" or "text", or a list of messages; one of these, a list of them, or one on each line, and each '
        'may lie under "request", "body", "params" or "json"'
    )


def _model(request: Mapping[str, Any]) -> str | None:
    model = request.get("model")
    return model if isinstance(model, str) else None


def _is_anthropic(request: Mapping[str, Any], messages: list[Any], tools: list[Any]) -> bool:
    if "system" in request or "anthropic_version" in request or any("input_schema" in tool for tool in tools):
        return True
    blocks = [
        block for each in messages if isinstance(each.get("content"), list) for block in each["content"]
    ]
    return any(
        isinstance(block, Mapping)
        and (block.get("type") in _ANTHROPIC_BLOCKS or "cache_control" in block or "source" in block)
        for block in blocks
    )


# --- OpenAI ---------------------------------------------------------------------------------------------------------


def _openai_turns(messages: list[Any]) -> Iterator[Turn]:
    for number, each in enumerate(messages, 1):
        role = each["role"]
        calls = each.get("tool_calls") or []
        if not isinstance(calls, list):
            raise NotARequest(f'the "tool_calls" of message {number} are not a list')
        reasoning = each.get("reasoning_content", each.get("reasoning"))
        tool_call_id = each.get("tool_call_id")
        yield Turn(
            name=section_name(number, role),
            role="system" if role == "developer" else role,
            content=_text_of(each.get("content"), f"message {number}"),
            tool_calls=tuple(_openai_call(call, number) for call in calls),
            reasoning=reasoning if isinstance(reasoning, str) else None,
            tool_call_id=tool_call_id if isinstance(tool_call_id, str) else None,
        )


def _openai_call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise NotARequest(f"a tool call of message {number} has no function")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # a model wrote it: it may be no JSON, and stays as it is
            arguments = json.loads(arguments)
    return {"id": str(call.get("id", "")), "name": str(function.get("name", "")), "arguments": arguments}


# --- Anthropic ------------------------------------------------------------------------------------------------------


def _anthropic_turns(request: Mapping[str, Any]) -> Iterator[Turn]:
    system = request.get("system")
    if system:
        blocks = system if isinstance(system, list) else [{"type": "text", "text": system}]
        for content, marked in _until_breakpoints(_blocks(blocks, "the system prompt")):
            text = "\n".join(_text_of_part(block, "the system prompt") for block in content)
            yield Turn(name="system message", role="system", content=text, breakpoint=marked)
    for number, each in enumerate(request["messages"], 1):
        content = each.get("content")
        blocks = (
            content
            if isinstance(content, list)
            else [{"type": "text", "text": _text_of(content, f"message {number}")}]
        )
        name = f"message {number} ({each['role']})"
        for part, marked in _until_breakpoints(_blocks(blocks, f"message {number}")):
            turns = [*_of_blocks(part, name, each["role"])]
            yield from turns[:-1]
            if turns:
                yield replace(turns[-1], breakpoint=True) if marked else turns[-1]


def _blocks(blocks: list[Any], where: str) -> list[Mapping[str, Any]]:
    if not all(isinstance(block, Mapping) for block in blocks):
        raise NotARequest(f"a block of {where} is not an object")
    return blocks


def _until_breakpoints(blocks: list[Mapping[str, Any]]) -> Iterator[tuple[list[Mapping[str, Any]], bool]]:
    """The blocks in runs, each up to one that is marked, and whether it is; the others behind the last mark."""
    run: list[Mapping[str, Any]] = []
    for block in blocks:
        run.append(block)
        if "cache_control" in block:
            yield run, True
            run = []
    if run:
        yield run, False


def _of_blocks(blocks: list[Mapping[str, Any]], name: str, role: str) -> Iterator[Turn]:
    """Results of tools are messages of their own to a chat template, and come before what the user says."""
    texts, calls, thoughts = [], [], []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            content = _text_of(block.get("content"), name)
            yield Turn(
                name=name, role="tool", content=content, tool_call_id=str(block.get("tool_use_id", ""))
            )
        elif kind == "tool_use":
            calls.append(
                {
                    "id": str(block.get("id", "")),
                    "name": str(block.get("name", "")),
                    "arguments": block.get("input"),
                }
            )
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        else:
            texts.append(_text_of_part(block, name))
    if texts or calls or thoughts:
        yield Turn(
            name=name,
            role=role,
            content="\n".join(texts),
            tool_calls=tuple(calls),
            reasoning="\n".join(thoughts) if thoughts else None,
        )


# --- both -----------------------------------------------------------------------------------------------------------


def _text_of(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise NotARequest(f"the content of {where} is neither a string nor a list of parts")
    return "\n".join(_text_of_part(part, where) for part in content)


def _text_of_part(part: Any, where: str) -> str:
    """Text as it is; an image, a file, or what else there may be, as its kind and digest."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or not isinstance(part.get("type", "text"), str):
        raise NotARequest(f"a part of {where} has no type")
    kind = part.get("type", "text")
    if kind in _TEXT_PARTS:
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise NotARequest(f"a text part of {where} has no text")
        return text
    facts = {key: value for key, value in part.items() if key != "cache_control"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"[{kind} {digest[:16]}]"
