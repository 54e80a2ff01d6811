"""Recorded requests of both shapes, what logs put around them, and what is refused with which sentence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizers import byte_tokenizer
from tiering.diagnosis.recorded import NotARequest, read_requests
from tiering.diagnosis.renderings import rendered

OPENAI = {
    "model": "small",
    "messages": [
        {"role": "developer", "content": "You look after clocks."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What time is on it?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "read", "arguments": '{"b": 1, "a": 2}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "It is ten."},
    ],
    "tools": [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_object"},
}
ANTHROPIC = {
    "model": "large",
    "max_tokens": 100,
    "system": [
        {"type": "text", "text": "You look after clocks."},
        {"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Today is Monday."},
    ],
    "tools": [
        {
            "name": "read",
            "description": "Reads.",
            "input_schema": {"type": "object"},
            "cache_control": {"type": "ephemeral"},
        }
    ],
    "messages": [
        {"role": "user", "content": "What time is on it?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I must read it.", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "read", "input": {"b": 1, "a": 2}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "It is ten."}],
                },
                {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
                {"type": "text", "text": "Well?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ],
}


@pytest.fixture
def read(tmp_path):
    def read_text(text):
        (tmp_path / "requests").write_text(text)
        return read_requests(tmp_path / "requests")

    return read_text


def test_openai(read):
    [found] = read(json.dumps(OPENAI))
    assert (found.shape, found.model, found.has_breakpoints) == ("openai", "small", False)
    assert [turn.name for turn in found.turns] == [
        "system message",
        "message 2 (user)",
        "message 3 (assistant)",
        "message 4 (tool)",
    ]
    system, user, assistant, tool = (turn.as_message() for turn in found.turns)
    assert system == {"role": "system", "content": "You look after clocks."}
    words, image = user["content"].split("\n")
    assert words == "What time is on it?"
    assert image.startswith("[image_url ")
    assert list(assistant["tool_calls"][0]["function"]["arguments"]) == [
        "b",
        "a",
    ]  # the order is what may differ
    assert tool["tool_call_id"] == "c1"
    assert found.functions() == OPENAI["tools"]


def test_anthropic(read):
    [found] = read(json.dumps(ANTHROPIC))
    assert (found.shape, found.model, found.tools_breakpoint) == ("anthropic", "large", 0)
    assert [(turn.name, turn.role, turn.breakpoint) for turn in found.turns] == [
        ("system message", "system", True),
        ("system message", "system", False),
        ("message 1 (user)", "user", False),
        ("message 2 (assistant)", "assistant", False),
        ("message 3 (user)", "tool", False),
        ("message 3 (user)", "user", True),
    ]
    joined = [turn.as_message() for turn in found.joined()]
    assert joined[0]["content"] == "You look after clocks.\nYou are brief.\nToday is Monday."
    assert joined[2]["reasoning_content"] == "I must read it."
    assert joined[2]["content"] == "I look."
    assert joined[3]["content"] == "It is ten."
    assert joined[4]["content"].endswith("]\nWell?")
    [function] = found.functions()
    assert function["function"]["parameters"] == {"type": "object"}


def test_images_are_told_apart_by_their_digest(read):
    other = json.loads(json.dumps(OPENAI).replace("AAAA", "AAAB"))
    texts = [each.turns[1].content for each in read(json.dumps([OPENAI, other, OPENAI]))]
    assert texts[0] == texts[2] != texts[1]
    assert "AAA" not in texts[0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one: {"request": one},
        lambda one: {"time": 1, "body": json.dumps(one)},
        lambda one: {"custom_id": "a", "params": one},
        lambda one: {"request": {"method": "POST", "body": one}, "response": {"status": 200}},
    ],
)
def test_what_logs_put_around_a_request(read, wrap):
    plain = read(json.dumps(ANTHROPIC))
    assert read(json.dumps(wrap(ANTHROPIC))) == plain
    assert read(json.dumps([wrap(ANTHROPIC)])) == plain
    assert read("\n".join([json.dumps(wrap(ANTHROPIC))] * 2) + "\n\n") == plain * 2


def test_messages_alone_and_a_prompt_alone(read):
    assert read(json.dumps(OPENAI["messages"]))[0].turns == read(json.dumps(OPENAI))[0].turns
    for key in ("text", "prompt"):
        [found] = read(json.dumps({key: "Once upon a time"}))
        assert (found.shape, found.turns[0].content) == ("text", "Once upon a time")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no request in it"),
        ("[]", "no request in it"),
        ("{", "neither JSON nor a JSON value on each line"),
        ('{"messages": []}\nnot', r"line 2"),
        ("{}", "there is no request in it"),
        ('"words"', "there is no request in it"),
        ("7", "there is no request in it"),
        ('{"model": "m", "input": "x"}', "Responses API"),
        ('{"prompt": ["a", "b"]}', "there is no request in it"),
        ('{"messages": {}}', '"messages" are not a list'),
        ('{"messages": ["a"]}', '"messages" are not a list'),
        ('{"messages": []}', "it has no messages"),
        ('{"messages": [{"content": "x"}]}', "message 1 has no role"),
        ('{"messages": [{"role": "user", "content": 7}]}', "message 1 is neither"),
        ('{"messages": [{"role": "user", "content": [7]}]}', "a part of message 1"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "has no text"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": {"a": 1}}', '"tools" are not a list'),
        ('{"messages": [{"role": "assistant", "tool_calls": [7]}]}', "has no function"),
        ('{"messages": [{"role": "assistant", "tool_calls": 7}]}', '"tool_calls" of message 1'),
        ('{"system": [7], "messages": []}', "a block of the system prompt"),
        ("[" * 100_000, "nested too deep|neither JSON"),
        ('{"messages": [{"role": "user", "content": "cut \\ud83d"}]}', "half of a character"),
    ],
)
def test_what_is_refused_gets_one_sentence(read, text, words):
    with pytest.raises(NotARequest, match=words) as caught:
        read(text)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(NotARequest, match="cannot be read: No such file"):
        read_requests(tmp_path / "none")
    with pytest.raises(NotARequest, match="cannot be read: Is a directory"):
        read_requests(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NotARequest, match="not UTF-8"):
        read_requests(tmp_path / "bytes")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "role",
                    "content",
                    "type",
                    "text",
                    "system",
                    "tools",
                    "tool_calls",
                    "function",
                    "body",
                    "prompt",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(anything)
def test_any_json_is_read_or_refused(tmp_path_factory, tokenizer, value):
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_text(json.dumps(value))
    try:
        found = read_requests(path)
    except NotARequest:
        return
    rendered(found, tokenizer)


# --- as text and tokens ---------------------------------------------------------------------------------------------

WITH_TOOLS = (
    "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    "{{ call | tojson }}{% endfor %}<|end|>{% endfor %}<|start|>assistant\n"
)


def test_the_plain_layout_has_all_parts_in_the_providers_order(read, tokenizer):
    [found], why = rendered(read(json.dumps(OPENAI)), tokenizer)
    assert why == "the tokenizer's chat template leaves out tools"
    assert [section.name for section in found.prompt.sections] == [
        "tools",
        "response format",
        "system message",
        "message 2 (user)",
        "message 3 (assistant)",
        "message 4 (tool)",
    ]
    assert tokenizer.decode(found.ids) == found.prompt.text
    assert '[call read] {"b": 1, "a": 2}' in found.prompt.text
    for token, start in enumerate(found.starts):
        assert found.section_at(token) == found.prompt.name_at(start)


def test_a_template_that_takes_tools(read):
    tokenizer = byte_tokenizer(WITH_TOOLS)
    [found], why = rendered(read(json.dumps(ANTHROPIC)), tokenizer)
    assert why is None
    assert tokenizer.decode(found.ids) == found.prompt.text
    names = [section.name for section in found.prompt.sections]
    assert names == [
        "tools",
        "system message",
        "message 1 (user)",
        "message 2 (assistant)",
        "message 3 (user)",
        "message 3 (user)",
        "after the last message",
    ]
    assert [name for name, _ in found.breakpoints] == ["tools", "system message", "message 3 (user)"]
    ends = [end for _, end in found.breakpoints]
    assert ends == sorted(ends)
    assert found.prompt.text[: ends[0]].endswith("<|end|>")


def test_breakpoints_of_the_plain_layout_are_where_the_marked_block_ends(read, tokenizer):
    [found], _ = rendered(read(json.dumps(ANTHROPIC)), tokenizer)
    texts = [(name, tokenizer.decode(found.ids[:end])[-16:]) for name, end in found.breakpoints]
    assert texts[1] == ("system message", "\nYou are brief.\n")
    assert texts[2][1].endswith("Well?\n")
    assert texts[0][0] == "tools"


@pytest.mark.parametrize("bare", [True, False])
def test_all_are_in_one_layout(read, tokenizer, bare):
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    requests = [*read(json.dumps(chat)), *read(json.dumps(OPENAI))]
    made, why = rendered(requests, tokenizer.backend_tokenizer if bare else tokenizer)
    assert not any(each.by_template for each in made)
    assert why == (
        "the tokenizer has no chat template" if bare else "the tokenizer's chat template leaves out tools"
    )
    made, why = rendered(requests[:1], tokenizer)
    assert made[0].by_template
    assert why is None
