"""The text around a difference, cut where characters begin and end."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tiering.diagnosis.alignment import Ids, Stretch, as_ids, same_characters

_UNFINISHED = "\ufffd"  # what a tokenizer shows of a character whose bytes are not all there
_MOST_TOKENS_OF_A_CHARACTER = 4  # it has at most four bytes

BEFORE_TOKENS = 1024
AFTER_TOKENS = 4096
"""So much is decoded at most, before the difference and on each side behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The text of both sides from one token on, before the difference, to some way behind it.

    asked, cached: the texts; they are equal up to `split`, where the first token that differs begins.
    first: where the texts differ for the first time, not before `split`: if one only goes on, the other's length.
    asked_end, cached_end: where the stretch that differs ends in each.
    asked_whole, cached_whole: whether the text reaches to the end of all that is known of that side.
    begins: whether the texts begin where the prompts do.
    markers: the texts of special tokens, as far as the tokenizer tells them.
    """

    asked: str
    cached: str
    split: int
    first: int
    asked_end: int
    cached_end: int
    asked_whole: bool
    cached_whole: bool
    begins: bool = True
    markers: tuple[str, ...] = ()


def window_around(asked: Ids, cached: Ids, stretch: Stretch, tokenizer: Any) -> Window | None:
    """Decode what is around a stretch. `cached` is aligned with `asked` at its beginning, as `stretch` counts.

    None where the tokenizer cannot turn these tokens into text.
    """
    at = stretch.asked_start
    start = _clean_start(asked, max(0, at - BEFORE_TOKENS), at, tokenizer)
    before = asked[start:at]
    texts = []
    for ids, first, last in (
        (asked, at, stretch.asked_end),
        (cached, stretch.cached_start, stretch.cached_end),
    ):
        end = min(len(ids), first + AFTER_TOKENS)
        whole = decode(tokenizer, (*before, *ids[first:end]))
        part = decode(tokenizer, (*before, *ids[first : min(last, end)]))
        if whole is None or part is None:
            return None
        # cut by us, or by who knows a part only, perhaps within a character
        whole = whole.rstrip(_UNFINISHED)
        texts.append((whole, same_characters(part, whole), end == len(ids)))
    lead = decode(tokenizer, before)
    if lead is None:
        return None
    (ours, our_end, our_whole), (theirs, their_end, their_whole) = texts
    first = same_characters(ours, theirs)
    return Window(
        asked=ours,
        cached=theirs,
        split=min(first, same_characters(lead, ours)),
        first=first,
        asked_end=our_end,
        cached_end=their_end,
        asked_whole=our_whole,
        cached_whole=their_whole,
        begins=start == 0,
        markers=special_texts(tokenizer),
    )


def decode(tokenizer: Any, ids: Iterable[int]) -> str | None:
    """The text of token ids, special tokens included, by a tokenizer of `transformers`, `tokenizers`, or with a `decode`.

    Ids that it does not know are left out. None where it fails.
    """
    known = [int(token) for token in ids if 0 <= token < 2**31]
    for options in (
        {"skip_special_tokens": False, "clean_up_tokenization_spaces": False},
        {"skip_special_tokens": False},
        {},
    ):
        try:
            return str(tokenizer.decode(known, **options))
        except TypeError:
            continue  # it does not take these options
        except (ValueError, KeyError, IndexError, OverflowError):
            return None
    return None


def encode(text: str, tokenizer: Any) -> tuple[Ids, list[tuple[int, int]] | None]:
    """Token ids of a text, nothing added, and where each stands in it; None in place of that if the tokenizer does not tell."""
    if hasattr(tokenizer, "encode_batch"):  # of the package tokenizers
        found = tokenizer.encode(text, add_special_tokens=False)
        return as_ids(found.ids), [(int(start), int(end)) for start, end in found.offsets]
    if not getattr(tokenizer, "is_fast", False):
        return as_ids(tokenizer.encode(text, add_special_tokens=False)), None
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return as_ids(told["input_ids"]), [(int(start), int(end)) for start, end in told["offset_mapping"]]


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """What a tokenizer's special tokens look like, the longest first; () where it does not tell."""
    told = getattr(tokenizer, "added_tokens_decoder", None)  # transformers: {id: AddedToken}
    if told is None and hasattr(tokenizer, "get_added_tokens_decoder"):
        told = tokenizer.get_added_tokens_decoder()
    values: Iterable[Any] = getattr(told, "values", tuple)()
    texts = {str(getattr(token, "content", token)) for token in values if getattr(token, "special", True)}
    texts.update(map(str, getattr(tokenizer, "all_special_tokens", ())))
    return tuple(sorted((text for text in texts if text.strip()), key=len, reverse=True))


def _clean_start(ids: Ids, start: int, stop: int, tokenizer: Any) -> int:
    """The first token from `start` on with which a character begins; `start` itself if that cannot be told."""
    if not start:
        return 0
    for cut in range(start, min(start + _MOST_TOKENS_OF_A_CHARACTER, stop)):
        text = decode(tokenizer, ids[cut : cut + _MOST_TOKENS_OF_A_CHARACTER])
        if text and not text.startswith(_UNFINISHED):
            return cut
    return start
