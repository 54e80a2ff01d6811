"""Which part of a prompt a token lies in, for templates as families write them, those that refuse things among them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers import CHAT_TEMPLATE, byte_tokenizer
from tiering.diagnosis.alignment import as_ids
from tiering.diagnosis.sections import layout, place_of, render, section_name, was_rewritten

SYSTEM = {"role": "system", "content": "You help with clocks."}
TURNS = [
    {"role": "user", "content": "user"},  # its words are those of the template
    {"role": "assistant", "content": "  Which clock is it?  "},
    {"role": "user", "content": "The tall one."},
]
TOOLS = [{"type": "function", "function": {"name": "wind", "parameters": {}}}]

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = (
    "<|begin|>{% if tools %}<|start|>system<|tools|>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>"
    "{% endif %}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# Refuses a system message, turns that do not alternate, and a conversation that begins with the assistant.
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
# Writes what stands in the last line only, and so nothing of the marks' length.
LAST_LINES = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('\n')[-1] }}</{{ m['role'] }}>\n{% endfor %}"
# Refuses what is not plain ASCII: no marks.
ASCII = (
    "{% for m in messages %}{% if m['content'] != m['content'] | urlencode | replace('%20', ' ') | replace('%3F', '?') %}"
    "{{ raise_exception('plain words only') }}{% endif %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
)


def named(found):
    return [(section.name, found.text[section.start : section.end]) for section in found.sections]


def check(found):
    """The parts cover the text without gaps."""
    edges = [0, *(section.end for section in found.sections)]
    assert [section.start for section in found.sections] == edges[:-1]
    assert edges[-1] == len(found.text)


def test_a_template_that_puts_a_system_message_of_its_own():
    found = layout(TURNS, byte_tokenizer(CHATML))
    check(found)
    assert named(found) == [
        ("before the first message", "<|im_start|>system\nYou are kind.<|im_end|>\n"),
        ("message 1 (user)", "<|im_start|>user\nuser<|im_end|>\n"),
        ("message 2 (assistant)", "<|im_start|>assistant\n  Which clock is it?  <|im_end|>\n"),
        ("message 3 (user)", "<|im_start|>user\nThe tall one.<|im_end|>\n"),
        ("after the last message", "<|im_start|>assistant\n"),
    ]
    assert [name for name, _ in named(layout([SYSTEM, *TURNS], byte_tokenizer(CHATML), reply=False))] == [
        "system message",
        "message 2 (user)",
        "message 3 (assistant)",
        "message 4 (user)",
    ]


def test_tools_and_content_that_is_trimmed():
    found = layout([SYSTEM, *TURNS], byte_tokenizer(WITH_TOOLS), tools=TOOLS)
    check(found)
    parts = dict(named(found))
    assert '"wind"' in parts["tools"]
    assert parts["system message"] == "<|start|>system\nYou help with clocks.<|end|>"
    assert parts["message 3 (assistant)"] == "<|start|>assistant\nWhich clock is it?<|end|>"


@pytest.mark.parametrize("template", [STRICT, LAST_LINES, ASCII, CHAT_TEMPLATE])
def test_templates_that_refuse_or_rewrite(template):
    messages = [dict(message, content=message["content"].strip()) for message in TURNS]
    messages[1]["content"] = "Which\nclock is it?" if template is LAST_LINES else messages[1]["content"]
    found = layout(messages, byte_tokenizer(template))
    check(found)
    assert [name.partition(" (")[0] for name, _ in named(found) if name.startswith("m")] == [
        "message 1",
        "message 2",
        "message 3",
    ]
    for number, words in enumerate(("user", "clock is it?", "The tall one."), 1):
        [text] = [text for name, text in named(found) if name.startswith(f"message {number} ")]
        assert words in text


def test_what_a_template_refuses_has_no_layout(tokenizer):
    assert layout([SYSTEM, *TURNS], byte_tokenizer(STRICT)) is None
    assert layout(TURNS, tokenizer.backend_tokenizer) is None  # has no template
    assert render([{"role": "user"}], byte_tokenizer("{{ messages[0]['content'].strip() }}")) is None


def test_names():
    assert section_name(1, "system") == section_name(1, "developer") == "system message"
    assert section_name(2, "system") == "message 2 (system)"


def test_the_demo_models_template(demo_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_dir, local_files_only=True)
    found = layout(TURNS, tokenizer)
    check(found)
    ids = as_ids(tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False))
    names = []
    for at in range(len(ids)):
        place = place_of(found.text, ids, at, tokenizer)
        assert tokenizer.decode(ids[at:]) == found.text[place:]
        names.append(found.name_at(place))
    assert list(dict.fromkeys(names)) == [section.name for section in found.sections]


words = st.text(st.sampled_from("ab <>\n|é"), max_size=12)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), words), min_size=1, max_size=5))
def test_any_conversation_is_cut_where_its_messages_are(messages):
    messages = [{"role": role, "content": content} for role, content in messages]
    found = layout(messages, byte_tokenizer(CHATML))
    check(found)
    parts = dict(named(found))
    for number, message in enumerate(messages, 1):
        head = f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        assert parts[section_name(number, message["role"])] == head


def test_the_place_of_a_token_where_decoding_gives_other_text():
    """A tokenizer that drops the space at the beginning, as those with SentencePiece do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "▁three": 2, "?": 3}, unk_token="?"))  # noqa: S106
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    text = " one two three"
    for tokenizer in (bare, PreTrainedTokenizerFast(tokenizer_object=bare)):
        assert [place_of(text, as_ids([0, 1, 2]), at, tokenizer) for at in (1, 2)] == [4, 8]


def test_a_turn_that_was_written_in_another_way_before():
    tokenizer = byte_tokenizer(
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] if loop.last else m['content'].split('||')[-1] }}\n"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    messages = [
        {"role": "user", "content": "Now?"},
        {"role": "assistant", "content": "He asks.||At noon."},
        TURNS[2],
    ]
    whole = render(messages, tokenizer)
    place = whole.index("At noon.")
    assert was_rewritten(messages, tokenizer, whole, place, "He asks.||At noon.\n<user>")
    assert not was_rewritten(messages, tokenizer, whole, place, "She asks.||At noon.\n<user>")
