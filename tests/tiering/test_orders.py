"""The same pieces in another order: how far an exchange reaches, in short passages, lines, sentences, tools and members."""

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.reports import DifferenceKind as Kind
from tiering.diagnosis.alignment import first_difference, same_characters
from tiering.diagnosis.differences import difference
from tiering.diagnosis.orders import end_of_mixed, exchange

PASSAGES = ("The mill is old.", "A bridge crosses the river.", "Clocks hang in the tower.")
ORDERS = [order for order in permutations(range(3)) if order != (0, 1, 2)]
FORMS = {
    "in a message of their own": ("<user>", "\n\n", "\n<assistant>"),
    "behind a lead-in": ("<user>Context: ", "\n\n", "\n<assistant>"),
    "before a question": ("<user>Use these.\n\n", "\n\n", "\n\nHow old is it?\n<assistant>"),
    "on lines": ("<user>Use these.\n", "\n", "\n<assistant>"),
    "in one paragraph": ("<user>Use these. ", " ", " How old is it?\n<assistant>"),
    "in a plain layout": ("[user]\n", "\n\n", "\n[assistant]\nIt is old, I believe.\n"),
}


def found_in(asked, cached, **more):
    return exchange(asked, cached, same_characters(asked, cached), **more)


def prompts(form, order):
    lead, between, rest = FORMS[form]
    cached = lead + between.join(PASSAGES) + rest
    return lead + between.join(PASSAGES[number] for number in order) + rest, cached


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", FORMS)
def test_short_passages_in_any_order(tokenizer, form, order):
    asked, cached = prompts(form, order)
    found = found_in(asked, cached)
    assert (found.kind, found.of_json) == (Kind.REORDERED_DOCUMENTS, False)
    assert asked[found.asked_end :] == cached[found.cached_end :]
    texts = asked[: found.asked_end], cached[: found.cached_end]
    assert len({(*sorted(text.replace(">", "> ").split()),) for text in texts}) == 1
    ids = [tokenizer(text)["input_ids"] for text in (asked, cached)]
    told = difference(*ids, first_difference(*ids), tokenizer=tokenizer)
    assert told.kind is Kind.REORDERED_DOCUMENTS
    moved = [next(piece for piece in PASSAGES if text.endswith(piece)) for text in (told.asked, told.cached)]
    assert moved[0] != moved[1]


def test_a_piece_that_moved_within_a_line_is_not_said_to_be_gone(tokenizer):
    """Between commas, where no piece is known to end."""
    asked = "List: a blue heron that stands, a bear, an owl, and more than that. Then go on as before."
    cached = "List: a bear, an owl, a blue heron that stands, and more than that. Then go on as before."
    for one, other in ((asked, cached), (cached, asked)):
        ids = [tokenizer(text)["input_ids"] for text in (one, other)]
        assert difference(*ids, 0, tokenizer=tokenizer).kind is Kind.REORDERED_DOCUMENTS


def test_what_is_there_once_more_was_not_moved(tokenizer):
    rest = " Clocks hang in the tower. Then it goes on as it did before, for a good while."
    ids = [tokenizer(text)["input_ids"] for text in (f"So: Clocks hang in the tower.{rest}", f"So:{rest}")]
    found = difference(*ids, 0, tokenizer=tokenizer)
    assert found.kind is Kind.OTHER_TEXT
    assert "lacks" not in found.advice


@pytest.mark.parametrize(
    ("asked", "cached"),
    [
        ("A mill, old.\n\nA bridge.\n\nEnd", "A bridge.\n\nA tower.\n\nEnd"),  # one of them is another
        ("1. A mill, old.\n2. A bridge.\n", "2. A mill, old.\n1. A bridge.\n"),  # only the numbers
        ("A mill, old.\n\nA bridge.", "A mill, old."),
        ("", "A mill, old."),
        ('{"a": 1, "b": 2}', '{"a":1, "b": 2}'),
    ],
)
def test_no_exchange(asked, cached):
    assert found_in(asked, cached) is None
    assert found_in(cached, asked) is None


def test_a_list_ends_where_both_go_on_alike_though_one_of_its_pieces_is_another():
    rest = "\n\nHow old is it?\n<assistant>"
    asked = "<user>Use these.\n\n" + "\n\n".join(PASSAGES) + rest
    cached = "<user>Use these.\n\n" + "\n\n".join([PASSAGES[1], "The well is dry.", PASSAGES[0]]) + rest
    first = same_characters(asked, cached)
    assert exchange(asked, cached, first) is None
    ends = end_of_mixed(asked, cached, first)
    assert asked[ends[0] :] == cached[ends[1] :] == rest.strip("\n")
    unlike = cached.replace(PASSAGES[1], "It rains.")
    assert end_of_mixed(asked, unlike, same_characters(asked, unlike)) is None


def test_the_last_piece_of_a_text_that_is_cut_counts_for_nothing():
    asked, cached = "A bridge.\n\nA mill, old.", "A mill, old.\n\nA bridge."
    assert found_in(asked, cached).asked_end == len(asked)
    assert found_in(asked, cached, asked_whole=False) is None
    assert found_in(asked + "<end>more", cached + "<end>", markers=("<end>",), asked_whole=False) is not None


def test_json_ends_where_its_value_does_and_its_pieces_where_its_members_do():
    one, other = {"name": "a", "x": [1, {"y": 2}]}, {"name": "b"}
    asked, cached = (f"T: {json.dumps(each)} end" for each in ([other, one], [one, other]))
    found = found_in(asked, cached)
    assert (found.kind, found.of_json) == (Kind.REORDERED_DOCUMENTS, True)
    assert asked[found.asked_end :] == " end"
    assert asked[: found.asked_piece_end].endswith(json.dumps(other))
    assert cached[: found.cached_piece_end].endswith(json.dumps(one))
    keys = found_in(f"T: {json.dumps(one)}.", f"T: {json.dumps(dict(reversed(one.items())))}.")
    assert (keys.kind, keys.asked_end) == (Kind.REORDERED_KEYS, len(f"T: {json.dumps(one)}"))


texts = st.lists(
    st.sampled_from(["a\n", "b. ", "\n\n", '{"a": 1, ', '"b": [2, 1]}', "[1, 2]", "</d>", ": "])
    | st.text(max_size=4)
)


@given(asked=texts.map("".join), cached=texts.map("".join))
def test_whatever_comes_ends_lie_within_the_texts(asked, cached):
    found = found_in(asked, cached)
    if found is not None:
        first = same_characters(asked, cached)
        assert first < found.asked_piece_end <= found.asked_end <= len(asked)
        assert first < found.cached_piece_end <= found.cached_end <= len(cached)
