"""What a difference looks like: every kind from prompts that differ so, both ways round, and what only looks like one."""

import json
import re
import time
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.reports import DifferenceKind as Kind
from tests.tokenizers import byte_tokenizer
from tiering.diagnosis.advice import advice
from tiering.diagnosis.alignment import first_difference
from tiering.diagnosis.differences import SHOWN_BEHIND, SHOWN_CHARACTERS, SHOWN_TOKENS, difference

RULES = " You answer briefly and never guess. Name the page of each figure, and say so if there is none."
TURNS = (
    "<user>How high is the first tower?\n<assistant>It is 71 metres high.\n",
    "<user>Who built the second one, and in which year?\n<assistant>A guild of masons, in 1311.\n",
    "<user>What is it used for these days?\n<assistant>It houses a museum of clocks.\n",
)
NUMBERED = [
    f"<user>What is the fee for entry {number}?\n<assistant>Entry {number} costs nothing on Sundays, I believe.\n"
    for number in range(1, 6)
]
TOOL = {"name": "weather", "description": "Tells the weather.", "input": {"place": "text", "days": 3}}
OTHER_TOOL = {"name": "calendar", "description": "Lists what is due.", "input": {"from": "date"}}
PAGES = ("The mill stands by the river and was built of oak.", "The bridge has nine arches.\nIt is narrow.")

DIFFER = [
    (
        Kind.BILLING_HEADER,
        "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=36ee5;\nYou help."
        + RULES,
        "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=0aaa9;\nYou help."
        + RULES,
    ),
    (  # some servers put the system prompt behind it without a line break
        Kind.BILLING_HEADER,
        "x-anthropic-billing-header: cc_version=2.1.39.c39; cc_entrypoint=cli; cch=56445;You help." + RULES,
        "x-anthropic-billing-header: cc_version=2.1.39.f01; cc_entrypoint=cli; cch=9b2c1;You help." + RULES,
    ),
    (
        Kind.BILLING_HEADER,
        "x-anthropic-billing-header: cc_version=2.1.39.c39; cc_entrypoint=cli; cch=56445;\nYou help." + RULES,
        "You help." + RULES,
    ),
    (
        Kind.BILLING_HEADER,
        "x-request-trace: blue heron\nYou help." + RULES,
        "x-request-trace: grey owl\nYou help." + RULES,
    ),
    (Kind.TIMESTAMP, "Now: 2026-03-01T10:33:05Z." + RULES, "Now: 2026-03-01T11:02:59Z." + RULES),
    (
        Kind.TIMESTAMP,
        "Now: 2026-03-01 10:33:05.123+01:00" + RULES,
        "Now: 2026-04-11 08:01:00.9+02:00" + RULES,
    ),
    (Kind.TIMESTAMP, "Today's date is March 3, 2026." + RULES, "Today's date is May 12, 2026." + RULES),
    (Kind.TIMESTAMP, "Today is Monday, 2 March 2026." + RULES, "Today is Friday, 13 March 2026." + RULES),
    (Kind.TIMESTAMP, "It is Wed Mar 4 09:15:01 2026." + RULES, "It is Thu Mar 5 17:40:22 2026." + RULES),
    (Kind.TIMESTAMP, "Date: 03/14/2026." + RULES, "Date: 03/15/2026." + RULES),
    (Kind.TIMESTAMP, "Started at 09:15, in the hall." + RULES, "Started at 17:40, in the hall." + RULES),
    (Kind.TIMESTAMP, "At 9:15 pm we close." + RULES, "At 9:45 pm we close." + RULES),
    (Kind.TIMESTAMP, "It is Monday." + RULES, "It is Thursday." + RULES),
    (Kind.TIMESTAMP, "ts=1767225600" + RULES, "ts=1767229911" + RULES),
    (Kind.TIMESTAMP, "ts: 1767225600123 ms" + RULES, "ts: 1767225998877 ms" + RULES),
    (Kind.TIMESTAMP, "[20260301T103305Z]" + RULES, "[20260302T110259Z]" + RULES),
    (Kind.TIMESTAMP, "Time: 10:00. User: Alice." + RULES, "Time: 11:00. User: Bob." + RULES),
    (
        Kind.UUID,
        "Session 3f2b9c1d-77aa-4c10-9f6e-0d9b1f0e2a55." + RULES,
        f"Session {uuid.UUID(int=2**127 + 9)}." + RULES,
    ),
    (Kind.UUID, "id: req_011CSHoEeqs5C35K2UUqR7Fy." + RULES, "id: req_0927AbcE99q3XzK2UUp8mL1a." + RULES),
    (Kind.UUID, "run 01ARZ3NDEKTSV4RRFFQ69G5FAV" + RULES, "run 01BX5ZZKBKACTAV9WEVGEMMVRZ" + RULES),
    (Kind.UUID, "commit 4f9e2ab1 of main" + RULES, "commit 90c1de77 of main" + RULES),
    (
        Kind.UUID,
        "commit 4f9e2ab1 of main" + RULES,
        "commit 90417755 of main" + RULES,
    ),  # by chance only digits
    (Kind.UUID, "order 729104883120045" + RULES, "order 118830045729102" + RULES),
    (Kind.COUNTER, "This is request 41 of today." + RULES, "This is request 42 of today." + RULES),
    (Kind.COUNTER, "Turn 9. Go on, please." + RULES, "Turn 10. Go on, please." + RULES),
    (Kind.COUNTER, "There are 128,004 tokens left." + RULES, "There are 126,811 tokens left." + RULES),
    (Kind.COUNTER, "worker-7 is speaking." + RULES, "worker-8 is speaking." + RULES),
    (
        Kind.REORDERED_KEYS,
        f"Tool: {json.dumps(TOOL)}{RULES}",
        f"Tool: {json.dumps(dict(reversed(TOOL.items())))}{RULES}",
    ),
    (
        Kind.REORDERED_KEYS,
        f"Tool: {json.dumps(TOOL, indent=2)}{RULES}",
        f"Tool: {json.dumps(TOOL, indent=2, sort_keys=True)}{RULES}",
    ),
    (Kind.REORDERED_KEYS, '{"need": ["place", "days"]}' + RULES, '{"need": ["days", "place"]}' + RULES),
    (
        Kind.REORDERED_DOCUMENTS,
        f"Tools: {json.dumps([TOOL, OTHER_TOOL])}{RULES}",
        f"Tools: {json.dumps([OTHER_TOOL, TOOL])}{RULES}",
    ),
    (
        Kind.REORDERED_DOCUMENTS,
        f"Tools:\n{json.dumps(TOOL)}\n{json.dumps(OTHER_TOOL)}\n{RULES}",
        f"Tools:\n{json.dumps(OTHER_TOOL)}\n{json.dumps(TOOL)}\n{RULES}",
    ),
    (
        Kind.REORDERED_DOCUMENTS,
        f"Use these.\n\n[1] {PAGES[0]}\n\n[2] {PAGES[1]}\n\nHow wide?",
        f"Use these.\n\n[1] {PAGES[1]}\n\n[2] {PAGES[0]}\n\nHow wide?",
    ),
    (
        Kind.REORDERED_DOCUMENTS,
        f'<document index="1">{PAGES[0]}</document><document index="2">{PAGES[1]}</document>{RULES}',
        f'<document index="1">{PAGES[1]}</document><document index="2">{PAGES[0]}</document>{RULES}',
    ),
    (Kind.WHITE_SPACE, "Rules:\n- be brief\n- be kind" + RULES, "Rules:\n\n-  be brief\n- be kind" + RULES),
    (
        Kind.WHITE_SPACE,
        '{"a":1,"b":[1,2,3],"name":"x"}' + RULES,
        '{"a": 1, "b": [1, 2, 3], "name": "x"}' + RULES,
    ),
    (Kind.WHITE_SPACE, "You help.\r\nYou hurry." + RULES, "You help.\nYou hurry." + RULES),
    (
        Kind.REWRITTEN_TURN,
        "<user>Hello\n<assistant>Good morning to you.\n<user>And now?" + RULES,
        "<user>Hello\n<assistant><think>\nA greeting.\n</think>\n\nGood morning to you.\n<user>And now?"
        + RULES,
    ),
    (
        Kind.REWRITTEN_TURN,
        "<user>Hello\n<assistant>Good morning to you.\n<user>And now?" + RULES,
        "<user>Hello\n<assistant><think>\n\n</think>\n\nGood morning to you.\n<user>And now?" + RULES,
    ),
    (
        Kind.REWRITTEN_TURN,
        "<user>Hello\n<assistant>Good morning to you.\n<user>And now?" + RULES,
        "<user>Hello\n<assistant>Good morning to you. \n\n<user>And now?" + RULES,
    ),
    (
        Kind.REWRITTEN_TURN,
        "<user>Hello\n<assistant>Good morning to you.\n<user>And now?" + RULES,
        "<user>Hello\n<assistant>\n Good morning to you.\n<user>And now?" + RULES,
    ),
    (  # white space at the end of what a user says is no more than that
        Kind.WHITE_SPACE,
        "<user>Hello\n<assistant>Good morning.\n<user>And now? \n<assistant>Here it is." + RULES,
        "<user>Hello\n<assistant>Good morning.\n<user>And now?\n<assistant>Here it is." + RULES,
    ),
    (
        Kind.TRUNCATED,
        f"<system>Be kind.{RULES}\n{''.join(NUMBERED[1:])}",
        f"<system>Be kind.{RULES}\n{''.join(NUMBERED)}",
    ),
    (
        Kind.TRUNCATED,
        f"<system>Be kind.{RULES}\n{TURNS[1]}{TURNS[2]}",
        f"<system>Be kind.{RULES}\n{''.join(TURNS)}",
    ),
    (
        Kind.TRUNCATED,
        f"<system>Be kind.{RULES}\n{TURNS[2]}<user>Is it open?",
        f"<system>Be kind.{RULES}\n{''.join(TURNS)}",
    ),
    (Kind.OTHER_TEXT, "Write a poem about the sea." + RULES, "Put this letter into French." + RULES),
    (Kind.OTHER_TEXT, "Be kind." + RULES, "Be kind. Be just to everybody as well." + RULES),
]

# What differs in something else than what it looks like at first.
NEAR = [
    ("Status deadbeefcafe holds." + RULES, "Status feedfacebabe holds." + RULES),  # hexadecimal, and words
    ("Use parseJsonV2Api here." + RULES, "Use parseYamlV2Api here." + RULES),
    ("The lamp costs $19 today." + RULES, "The lamp costs $21 today." + RULES),
    ("The lamp costs 19.99 today." + RULES, "The lamp costs 21.99 today." + RULES),
    ("The lamp costs 19 euros today." + RULES, "The lamp costs 21 euros today." + RULES),
    ("Release 2.1.100 is out." + RULES, "Release 2.1.101 is out." + RULES),
    ("There are 12 rooms in it." + RULES, "There are 480 rooms in it." + RULES),  # numbers that do not count
    ("Room 12 is on the left." + RULES, "Room 12 has a red door." + RULES),  # the same number
    ("At 10:00 the hall opens." + RULES, "At 10:00 nobody is there." + RULES),  # the same time
    ("10:00 a bell rings" + RULES, "11:30 nobody came at all" + RULES),  # times, but the rest differs as well
    ("Verse 3:16 it is." + RULES, "Verse 4:12 it is." + RULES),  # no time of day
    ("See main.py:12:30 for it." + RULES, "See main.py:14:30 for it." + RULES),
    ("The number 2025550143 is ours." + RULES, "The number 2125550197 is theirs." + RULES),
    (
        'Tool: {"name": "look", "days": 3}' + RULES,
        'Tool: {"days": 4, "name": "look"}' + RULES,
    ),  # another value
    ("Rules:\n- be brief\n- be kind" + RULES, "Rules:\n\n- be short\n- be cruel" + RULES),
    (
        f"{PAGES[0]}\n\n{PAGES[1]}\n\nHow?",
        f"{PAGES[1]}\n\nThe house is empty.\n\nHow?",
    ),  # one of them is gone
    ("I said to him: x-ray-films: old" + RULES * 50, "I said to him: x-ray-films: new" + RULES * 50),
    ("<user>Say <think>" + RULES, "<user>Say <b>" + RULES),
]


@pytest.fixture(scope="session", params=["bytes", "merges"])
def any_tokenizer(request):
    """A token for each byte, and the demo model's, with real merges."""
    if request.param == "bytes":
        return request.getfixturevalue("tokenizer")
    return request.getfixturevalue("demo_tokenizer")


@pytest.fixture(scope="session")
def demo_tokenizer(demo_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_dir, local_files_only=True)


def compare(asked, cached, tokenizer, **more):
    ids, cached_ids = (tokenizer(text)["input_ids"] for text in (asked, cached))
    return difference(ids, cached_ids, first_difference(ids, cached_ids), tokenizer=tokenizer, **more)


@pytest.mark.parametrize(("kind", "one", "other"), DIFFER)
def test_each_kind_both_ways_round(any_tokenizer, kind, one, other):
    for asked, cached in ((one, other), (other, one)):
        found = compare(asked, cached, any_tokenizer)
        assert found.kind is kind, (asked, cached)
        assert found.advice
        assert found.before + found.asked in asked
        assert found.before + found.cached in cached
        assert found.same_after_tokens > 0


@pytest.mark.parametrize(("one", "other"), NEAR)
def test_what_only_looks_like_it(any_tokenizer, one, other):
    for asked, cached in ((one, other), (other, one)):
        assert compare(asked, cached, any_tokenizer).kind is Kind.OTHER_TEXT, (asked, cached)


def test_every_kind_is_among_them():
    assert {kind for kind, *_ in DIFFER} == set(Kind) - {Kind.MERGE_AT_BOUNDARY}


@pytest.mark.parametrize(("shared", "rest"), [("The answer is wor", "ld peace."), ("Ask the libr", "arian.")])
def test_tokens_merged_at_the_end_of_what_is_cached(demo_tokenizer, shared, rest):
    """The prompt that was cached ended within what is one token now."""
    found = compare(shared + rest, shared, demo_tokenizer)
    assert found.kind is Kind.MERGE_AT_BOUNDARY
    assert found.at_token == len(demo_tokenizer(shared)["input_ids"]) - 1


def test_tokens_merged_between_a_prompt_and_its_reply(demo_tokenizer):
    """A reply came as tokens of its own; sent back as text it is encoded together with the prompt."""
    pieces = [
        demo_tokenizer(text)["input_ids"] for text in ("It is unbeliev", "able, and it is true." + RULES)
    ]
    cached, asked = (
        np.concatenate(pieces),
        demo_tokenizer("It is unbelievable, and it is true." + RULES)["input_ids"],
    )
    found = difference(asked, cached, first_difference(asked, cached), tokenizer=demo_tokenizer)
    assert found.kind is Kind.MERGE_AT_BOUNDARY
    assert found.same_after_tokens == len(pieces[1]) - 1
    assert "token ids" in found.advice


def test_a_special_token_against_its_letters(demo_tokenizer):
    letters = demo_tokenizer("<|im_end|", add_special_tokens=False)["input_ids"]
    special = demo_tokenizer("<|im_end|>" + RULES)["input_ids"]
    plain = [*letters, *demo_tokenizer(">" + RULES)["input_ids"]]
    found = difference(special, plain, 0, tokenizer=demo_tokenizer)
    assert found.kind is Kind.MERGE_AT_BOUNDARY
    assert "special token" in found.advice


# --- how it is called -----------------------------------------------------------------------------------------------


def test_what_is_cached_may_be_known_from_the_difference_on_only(tokenizer):
    asked, cached = "Now: 2026-03-01T10:33:05Z." + RULES, "Now: 2026-03-01T11:02:59Z." + RULES
    ids, cached_ids = (np.array(tokenizer(text)["input_ids"], dtype=np.int32) for text in (asked, cached))
    at = first_difference(ids, cached_ids)
    whole = difference(ids, cached_ids, at, tokenizer=tokenizer)
    assert difference(ids, cached_ids[at:], at, cached_from=at, tokenizer=tokenizer) == whole
    assert difference(ids, cached_ids[5:], 5, cached_from=5, tokenizer=tokenizer) == whole
    known = difference(ids, cached_ids[at : at + 60], at, cached_from=at, tokenizer=tokenizer)
    assert (known.kind, known.before, known.cached) == (whole.kind, whole.before, whole.cached)
    assert 0 < known.same_after_tokens < 60 < whole.same_after_tokens


def test_without_a_tokenizer_there_are_ids_only():
    found = difference([1, 2, 3, 4], [1, 2, 9], 2)
    assert (found.at_token, found.before_ids, found.asked_ids, found.cached_ids) == (2, (1, 2), (3, 4), (9,))
    assert (found.before, found.asked, found.cached, found.kind, found.advice) == (None,) * 5


def test_exchanged_pieces_are_told_by_tokens_alone():
    one, other, rest = list(range(100, 1100)), list(range(2000, 3000)), list(range(50))
    found = difference([*one, *other, *rest], [*other, *one, *rest], 0)
    assert found.kind is Kind.REORDERED_DOCUMENTS
    assert difference([*one, *rest], [*other, *rest], 0).kind is None
    assert difference([*one, *other, *rest], [*other, *rest], 0).kind is None  # one is gone


@pytest.mark.parametrize(
    ("asked", "cached"), [([1, 2], [1, 2]), ([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2]), ([], [1])]
)
def test_no_difference_has_no_kind(tokenizer, asked, cached):
    found = difference(asked, cached, 0, tokenizer=tokenizer)
    assert found.at_token == min(len(asked), len(cached))
    assert (found.kind, found.advice, found.same_after_tokens) == (None, None, None)


def test_a_place_outside_is_refused():
    for at, start in ((3, 0), (-1, 0), (0, 1)):
        with pytest.raises(ValueError, match="at_token"):
            difference([1, 2], [1, 3], at, cached_from=start)


def test_what_is_shown_is_bounded_and_ends_alike(tokenizer):
    lead, tail = "a" * 5000, "z" * 5000
    found = compare(f"{lead} 10:15 {tail}", f"{lead} 17:40 {tail}", tokenizer)
    assert found.before == ("a" * SHOWN_CHARACTERS + " 1")[-SHOWN_CHARACTERS:]
    assert (found.asked[:5], found.cached[:5]) == ("0:15 ", "7:40 ")
    assert found.asked[5:] == found.cached[5:] == "z" * len(found.asked[5:])
    assert max(map(len, (found.before_ids, found.asked_ids, found.cached_ids))) == SHOWN_TOKENS
    longer = compare(lead + "x" * 900 + tail, lead + "y" * 900 + tail, tokenizer)
    assert len(longer.asked) == SHOWN_CHARACTERS


def test_characters_are_not_cut(tokenizer):
    """Every byte is a token here: windows and the difference itself fall within characters."""
    lead = "日本語の文章です。" * 200
    for asked, cached in (("é", "è"), ("語", "誤"), ("🙂", "🙃")):
        found = compare(lead + asked + RULES, lead + cached + RULES, tokenizer)
        assert (found.asked[0], found.cached[0]) == (asked, cached)
        assert lead.endswith(found.before)
        assert "\ufffd" not in found.before + found.asked + found.cached
        long = compare(asked + lead, cached + lead, tokenizer)
        assert "\ufffd" not in long.asked + long.cached


def test_messages_give_the_section_and_prove_that_a_turn_was_rewritten():
    template = (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' and not loop.last %}"
        "{{ m['content'].split('||')[-1] }}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = byte_tokenizer(template)
    messages = [
        {"role": "user", "content": "How high is it?"},
        {"role": "assistant", "content": "The user asks of the tower.||It is 71 metres high."},
        {"role": "user", "content": "And how wide?"},
    ]
    cached = tokenizer(tokenizer.apply_chat_template(messages[:2], tokenize=False))["input_ids"]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    at = first_difference(asked, cached)
    found = difference(asked, cached, at, tokenizer=tokenizer, messages=messages)
    assert (found.kind, found.section) == (Kind.REWRITTEN_TURN, "message 2 (assistant)")
    other = tokenizer("<user>How high is it?\n<assistant>He asks what is known.||It is 71 metres high.\n")[
        "input_ids"
    ]
    unproved = difference(
        asked, other, first_difference(asked, other), tokenizer=tokenizer, messages=messages
    )
    assert unproved.kind is Kind.OTHER_TEXT


def test_advice_has_the_setting_that_stops_the_header_and_nothing_of_the_prompt():
    assert "CLAUDE_CODE_ATTRIBUTION_HEADER=0" in advice(Kind.BILLING_HEADER)
    assert "'x-request-trace'" in advice(Kind.BILLING_HEADER, header="x-request-trace")
    for kind in Kind:
        assert re.fullmatch(r"[A-Z].*\.", advice(kind)), kind


# --- whatever comes -------------------------------------------------------------------------------------------------

tokens = st.lists(st.integers(-3, 300) | st.integers(-(2**31), 2**31 - 1), max_size=80)


@given(asked=tokens, cached=tokens, start=st.integers(0, 80))
def test_any_ids_are_told_apart_where_they_first_differ(tokenizer, asked, cached, start):
    at = first_difference(asked, cached)
    start = min(start, at)
    for each in (None, tokenizer):
        found = difference(asked, cached[start:], start, cached_from=start, tokenizer=each)
        assert found.at_token == at
        assert found.asked_ids == tuple(asked[at : at + SHOWN_TOKENS])
        assert found.cached_ids == tuple(cached[at : at + SHOWN_TOKENS])


pieces = st.lists(
    st.sampled_from(
        [
            "10:15",
            "2026-01-02",
            "{",
            '"a": 1',
            "[",
            "]",
            "}",
            ", ",
            "\n\n",
            " ",
            "<user>",
            "<think>",
            "é",
            "🙂",
            "x-a-b: c",
            "$",
            "7",
        ]
    )
    | st.text(max_size=8),
    max_size=14,
).map("".join)


@settings(max_examples=300)
@given(lead=pieces, asked=pieces, cached=pieces, rest=pieces)
def test_any_text_is_shown_as_it_was(tokenizer, lead, asked, cached, rest):
    one, other = lead + asked + rest, lead + cached + rest
    found = compare(one, other, tokenizer)
    assert found.before + found.asked in one
    assert found.before + found.cached in other
    assert one.startswith(found.before) or len(found.before) == SHOWN_CHARACTERS
    whole = found.same_after_tokens is None
    assert whole == (one.startswith(other) or other.startswith(one))


class Failing:
    """A tokenizer that cannot decode."""

    def decode(self, ids):
        raise KeyError(ids)


def test_a_tokenizer_that_fails_leaves_ids():
    found = difference([1, 2], [1, 3], 0, tokenizer=Failing())
    assert (found.at_token, found.asked, found.kind) == (1, None, None)


def test_a_tokenizer_of_the_package_tokenizers(tokenizer):
    bare = tokenizer.backend_tokenizer
    ids = [bare.encode(text).ids for text in ("It is 10:15 now." + RULES, "It is 17:40 now." + RULES)]
    assert difference(*ids, 0, tokenizer=bare).kind is Kind.TIMESTAMP


def test_members_of_an_object_of_which_only_a_part_is_known(tokenizer):
    """A live engine knows a few hundred tokens of what is cached: too few for a tool with a long description."""
    long = dict(TOOL, description="Tells the weather. " * 60)
    asked, cached = json.dumps([long, OTHER_TOOL]), json.dumps([dict(reversed(long.items())), OTHER_TOOL])
    ids, cached_ids = (tokenizer(text)["input_ids"] for text in (asked, cached))
    at = first_difference(ids, cached_ids)
    for known in (cached_ids[at : at + 1500], cached_ids[at:]):
        assert difference(ids, known, at, cached_from=at, tokenizer=tokenizer).kind is Kind.REORDERED_KEYS
    exchanged = json.dumps([OTHER_TOOL, long])
    known = tokenizer(exchanged)["input_ids"][:400]
    found = difference(
        tokenizer(asked)["input_ids"], known, first_difference(ids, known), tokenizer=tokenizer
    )
    assert found.kind is not Kind.REORDERED_KEYS  # tools, and not the members of one


def test_nothing_in_common_behind_is_said(tokenizer):
    found = compare("Write a poem about the sea", "Draw up a contract of sale?", tokenizer)
    assert (found.kind, found.same_after_tokens) == (Kind.OTHER_TEXT, 0)
    assert "nothing in common" in found.advice


def test_a_cached_part_that_ends_within_a_character(tokenizer):
    asked, cached = (tokenizer(f"At {time} 🙂🙂🙂")["input_ids"] for time in ("10:15", "17:40"))
    found = difference(asked, cached[:-2], 0, tokenizer=tokenizer)
    assert found.kind is Kind.TIMESTAMP
    assert "\ufffd" not in found.cached


@pytest.mark.parametrize("case", ["nothing is shared", "a time", "pieces exchanged", "turns dropped"])
def test_long_prompts_take_little_time(tokenizer, case):
    """128k tokens of each took under a third of a second; 10 s is for slow machines, quadratic work would take hours."""
    random = np.random.default_rng(0)
    one, other = random.integers(0, 256, (2, 131_072))
    asked, cached = {
        "nothing is shared": (one, other),
        "a time": (
            [*tokenizer("At 10:15 ")["input_ids"], *one],
            [*tokenizer("At 11:40 ")["input_ids"], *one],
        ),
        "pieces exchanged": ([*one, *other], [*other, *one]),
        "turns dropped": (one[60_000:], one),
    }[case]
    start = time.perf_counter()
    found = difference(asked, cached, 0, tokenizer=tokenizer)
    assert time.perf_counter() - start < 10
    expected = {"a time": Kind.TIMESTAMP, "pieces exchanged": Kind.REORDERED_DOCUMENTS}
    assert case not in expected or found.kind is expected[case]


# --- what is told beside the kind -----------------------------------------------------------------------------------

BOTH = "Current time: {}\nRequest id: {}\n" + RULES
ONE_UUID, OTHER_UUID = "3f2b9c1d-77aa-4c10-9f6e-0d9b1f0e2a55", "0e7d1b2c-1234-4c10-8f6e-aa9b1f0e2a77"


def test_all_that_varies_in_one_stretch_is_named(any_tokenizer):
    asked, cached = (
        BOTH.format("2026-03-01T10:33:05Z", ONE_UUID),
        BOTH.format("2026-03-01T11:02:59Z", OTHER_UUID),
    )
    found = compare(asked, cached, any_tokenizer)
    assert (found.kind, found.also) == (Kind.TIMESTAMP, (Kind.UUID,))
    assert "put it at the end" in found.advice
    assert "Beside it an identifier is drawn anew" in found.advice
    asked, cached = f"Id: {ONE_UUID}, turn 4, at 10:15.{RULES}", f"Id: {OTHER_UUID}, turn 5, at 11:20.{RULES}"
    found = compare(asked, cached, any_tokenizer)
    assert (found.kind, found.also) == (Kind.UUID, (Kind.COUNTER, Kind.TIMESTAMP))
    assert "a number counts, and a date or time varies" in found.advice


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("At 10:15 it rang." + RULES + " Turn 7", "At 10:20 it rang." + RULES + " Turn 8"),  # far behind it
        (BOTH.format("10:15", ONE_UUID), BOTH.format("10:20", ONE_UUID)),
        ("At 10:15, day 4 (11:15)." + RULES, "At 10:20, day 4 (11:20)." + RULES),  # of the same kind
    ],
)
def test_nothing_is_named_that_does_not_vary_beside_it(any_tokenizer, one, other):
    found = compare(one, other, any_tokenizer)
    assert (found.kind, found.also) == (Kind.TIMESTAMP, ())
    assert "Beside it" not in found.advice


HEADER = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=36ee5;\n"


def test_a_header_is_not_blamed_for_prompts_that_are_others_without_it_as_well(any_tokenizer):
    tail = "\n<user>Look at main.py, and say what is wrong with it.\n<assistant>"
    asked, cached = f"<system>{HEADER}You help.{RULES}{tail}", f"<system>Translate into Old Norse.{tail}"
    for one, other in ((asked, cached), (cached, asked)):
        assert compare(one, other, any_tokenizer).kind is Kind.OTHER_TEXT
        assert "BILLING" not in compare(one, other, any_tokenizer).advice.upper()


def test_where_only_the_day_differs_it_is_not_advised_to_give_the_day_alone(any_tokenizer):
    for one, other in (
        ("It is 2026-11-28.", "It is 2026-11-29."),
        ("It is Monday, 2 March 2026.", "It is Tuesday, 3 March 2026."),
        ("It is 2026-11-28T00:00:00Z.", "It is 2026-11-29T00:00:00Z."),
    ):
        found = compare(one + RULES, other + RULES, any_tokenizer)
        assert found.kind is Kind.TIMESTAMP
        assert "without the time" not in found.advice
    found = compare("It is 2026-11-28 10:15." + RULES, "It is 2026-11-29 11:20." + RULES, any_tokenizer)
    assert "without the time" in found.advice


@pytest.mark.parametrize("known", [1, 3, 6, 12, 40, 400])
def test_what_differs_alone_is_marked_however_little_is_known_behind_it(any_tokenizer, known):
    """A live engine knows what is cached up to the end of a block."""
    text = "The keeper walks up and writes down what he sees. " * 9
    ids, cached_ids = (
        any_tokenizer(f"{text}It is for {day} and for nothing else. {text}")["input_ids"]
        for day in ("2026-11-28", "2026-11-29")
    )
    at = first_difference(ids, cached_ids)
    found = difference(ids, cached_ids[at : at + known], at, cached_from=at, tokenizer=any_tokenizer)
    assert found.kind is Kind.TIMESTAMP
    assert found.asked[0] != found.cached[0]
    assert found.asked[1:] == found.cached[1:]
    assert len(found.asked) <= SHOWN_CHARACTERS


def test_excerpts_end_alike_where_one_side_is_longer(any_tokenizer):
    found = compare(f"So: {RULES * 2}It is old.{RULES}", f"So: It is old.{RULES}", any_tokenizer)
    assert len(found.asked) != len(found.cached)
    assert found.asked[-SHOWN_BEHIND:] == found.cached[-SHOWN_BEHIND:]
