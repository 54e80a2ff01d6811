"""Text while it comes: no character is cut, no stop text shows, and the pieces are the whole."""

from hypothesis import example, given
from hypothesis import strategies as st

from engine.text import ReplyText


def replied(tokenizer, ids, stops=()):
    """The pieces of a reply, up to where it stops."""
    text = ReplyText(tokenizer, stops)
    pieces = []
    for token in ids:
        text.push(token)
        pieces.append(text.take())
        if text.stopped:
            break
    text.finish()
    pieces.append(text.take())
    assert "".join(pieces) == text.text
    return pieces


@given(st.text(max_size=30))
@example("naïve 👩‍👩‍👧 Ελλάδα 日本")
def test_pieces_are_the_whole_and_every_one_is_whole(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    pieces = replied(tokenizer, ids)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)


@given(st.lists(st.integers(0, 260), max_size=20))
def test_any_tokens_at_all_give_what_they_give_together(tokenizer, ids):
    """Also bytes that are no character: they show as such, once nothing can make them one."""
    assert "".join(replied(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(st.text("abE", max_size=25), st.lists(st.text("abE", min_size=1, max_size=4), min_size=1, max_size=3))
@example("aab", ["ab"])
@example("ababab", ["abb", "bab"])
def test_nothing_of_a_stop_text_shows_and_nothing_before_it_is_missing(tokenizer, text, stops):
    pieces = replied(tokenizer, tokenizer(text)["input_ids"], stops)
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not ends:
        assert "".join(pieces) == text
        return
    heard = text[: min(ends)]  # the token with which the first stop text is whole
    begins = [at for at in map(heard.find, stops) if at >= 0]
    assert "".join(pieces) == heard[: min(begins)]


def test_what_may_become_a_stop_text_is_held_back_and_given_out_if_it_does_not(tokenizer):
    text = ReplyText(tokenizer, ["END"])
    shown = []
    for token in tokenizer("x E N EN!")["input_ids"]:
        text.push(token)
        shown.append(text.take())
    assert shown == ["x", " ", "", "E ", "N", " ", "", "", "EN!"]


def test_a_reply_that_ends_within_a_character_shows_that_it_did(tokenizer):
    ids = tokenizer("ab👍")["input_ids"]
    assert replied(tokenizer, ids[:-1]) == ["a", "b", "", "", "", "\ufffd"]


def test_special_tokens_have_no_text(tokenizer):
    ids = [*tokenizer("ab")["input_ids"], tokenizer.eos_token_id, *tokenizer("c")["input_ids"]]
    assert "".join(replied(tokenizer, ids)) == "abc"


def test_a_model_without_a_tokenizer_has_no_text():
    assert replied(None, [1, 2, 3]) == ["", "", "", ""]
