"""Prompts as users give them, and the token ids that the engine works with."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS = "a prompt is a string, a list of token ids, or a list of chat messages"

Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Sequence[Mapping[str, Any]]
"""Text, token ids, or chat messages, each {"role": ..., "content": ...}; {"cache_control": {"type": "ephemeral"}} beside it is a
breakpoint behind the message."""


def split_prompts(prompt: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """Tell one prompt from several: the prompts, and whether there was one that stood alone.

    A list of numbers or of messages is one prompt; a list of strings, lists or arrays is several, as are the rows of a
    two-dimensional array. Raises ValueError for an empty list, which could be either, and for what is no prompt.
    """
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, np.ndarray):
        return ([prompt], True) if prompt.ndim == 1 else (list(prompt), False)
    if isinstance(prompt, Mapping):
        raise ValueError("a message belongs in a list: [{'role': 'user', 'content': '...'}]")
    if not isinstance(prompt, Sequence):
        raise ValueError(f"{_KINDS}, not {type(prompt).__name__}")
    if not prompt:
        raise ValueError("the prompt is an empty list")
    if all(_is_id(item) for item in prompt) or all(isinstance(item, Mapping) for item in prompt):
        return [prompt], True  # type: ignore[list-item]  # all() does not narrow a sequence
    if all(isinstance(item, (str, Sequence, np.ndarray)) for item in prompt):
        return list(prompt), False  # type: ignore[arg-type]  # see above
    raise ValueError(
        f"{_KINDS}; this list mixes {', '.join(sorted({type(item).__name__ for item in prompt}))}"
    )


def encode(prompt: Prompt, tokenizer: Any, vocab_size: int) -> NDArray[np.int32]:
    """Turn one prompt into token ids, int32 [tokens], little-endian and contiguous.

    Text gets the tokenizer's own special tokens, messages its chat template up to where the reply begins. Raises
    ValueError for a prompt without tokens, an id outside the vocabulary, text for a model without a tokenizer, and
    messages for one without a chat template.
    """
    ids = _check_ids(prompt) if not _is_text(prompt) else _tokenise(prompt, tokenizer)
    if not len(ids):
        raise ValueError("the prompt has no tokens")
    if (low := ids.min()) < 0 or (high := ids.max()) >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token id {wrong} is outside the vocabulary: ids are from 0 to {vocab_size - 1}")
    return np.ascontiguousarray(ids, dtype="<i4")


def messages_of(prompt: Prompt) -> tuple[Mapping[str, str], ...] | None:
    """The messages of a chat; None for a prompt of another kind."""
    if isinstance(prompt, Sequence) and prompt and _is_message(prompt[0]):
        return tuple(prompt)  # type: ignore[arg-type]  # encode has looked at each of them
    return None


def breakpoints_of(prompt: Prompt, ids: NDArray[np.int32], tokenizer: Any) -> tuple[int, ...]:
    """After how many of a chat's tokens, which are `ids`, messages end that have a `cache_control`: see CacheHints.

    What a template writes otherwise when nothing follows ends a breakpoint earlier; what it refuses then is none.
    """
    messages = messages_of(prompt) or ()
    points = []
    for at, message in enumerate(messages, 1):
        if message.get("cache_control"):
            text = _rendered([dict(each) for each in messages[:at]], tokenizer)
            upto = np.array(
                tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64
            )
            length = min(len(upto), len(ids))
            differs = np.flatnonzero(upto[:length] != ids[:length])
            points.append(int(differs[0]) if len(differs) else length)
    return tuple(points)


def notes_on(prompt: Prompt, tokenizer: Any) -> tuple[str, ...]:
    """Sentences on what about a prompt keeps its earlier turns from being found in the cache.

    A chat template may write a turn in one way while it is the last and in another once more follow, such as without
    the reasoning in it. What was computed for the turn as it was is then not a prefix of what is asked now.
    """
    if not (isinstance(prompt, Sequence) and prompt and _is_message(prompt[0])):
        return ()
    messages = [dict(message) for message in prompt if isinstance(message, Mapping)]
    replies = [number for number, message in enumerate(messages, 1) if message["role"] == "assistant"]
    if not replies:
        return ()
    num_before = replies[-1]  # earlier ones were written anew when this one was asked for
    whole, before = _rendered(messages, tokenizer), _rendered(messages[:num_before], tokenizer).rstrip()
    if whole.startswith(before):
        return ()
    num_kept = next(at for at, pair in enumerate(zip_longest(whole, before)) if pair[0] != pair[1])
    note = (
        f"the chat template writes message {num_before} in another way now that more follow: what was computed for "
        f"it, from {before[num_kept : num_kept + 30]!r} on, is not found"
    )
    return (note,)


def _rendered(messages: list[dict[str, Any]], tokenizer: Any) -> str:
    """A conversation as text; "" where the template does not take it, such as one cut short."""
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return ""
    return text


def detokenise(ids: Sequence[int] | NDArray[np.int32], tokenizer: Any) -> str:
    """The text of token ids, special tokens left out; "" for a model without a tokenizer."""
    if tokenizer is None:
        return ""
    text: str = tokenizer.decode(
        [int(token) for token in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _is_id(item: object) -> bool:
    return isinstance(item, (int, np.integer)) and not isinstance(item, bool)


def _is_message(item: object) -> bool:
    return isinstance(item, Mapping)


def _is_text(prompt: object) -> bool:
    """Whether a tokenizer is needed: a string, a message, or a list of messages."""
    first = prompt[0] if isinstance(prompt, Sequence) and prompt else None
    return isinstance(prompt, (str, Mapping)) or _is_message(first)


def _tokenise(prompt: Any, tokenizer: Any) -> NDArray[np.int64]:
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: give the prompt as token ids")
    return _encode_text(prompt, tokenizer) if isinstance(prompt, str) else _encode_chat(prompt, tokenizer)


def _encode_text(text: str, tokenizer: Any) -> NDArray[np.int64]:
    # verbose=False: the length is checked against the engine's own limit, not the tokenizer's.
    return np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)


def _encode_chat(messages: Any, tokenizer: Any) -> NDArray[np.int64]:
    if isinstance(messages, Mapping):
        messages = [messages]
    for message in messages:
        if not _is_message(message) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f"a message needs the strings 'role' and 'content', got {message!r}")
    if tokenizer.chat_template is None:
        raise ValueError("this model's tokenizer has no chat template: give the prompt as text or token ids")
    from jinja2 import TemplateError  # transformers needs it for templates, nothing else here does

    try:
        ids = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
        )
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses these messages: {error}") from error
    return np.array(ids, dtype=np.int64)


def _check_ids(prompt: Any) -> NDArray[np.integer[Any]]:
    if not isinstance(prompt, (Sequence, np.ndarray)):
        raise ValueError(f"{_KINDS}, not {type(prompt).__name__}")
    try:
        ids = np.asarray(prompt) if len(prompt) else np.zeros(0, dtype=np.int64)
    except (ValueError, OverflowError) as error:  # ragged, or beyond 64 bits
        raise ValueError(f"token ids must be a flat list of whole numbers ({error})") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"token ids must be a flat list of whole numbers, got {prompt!r:.100}")
    return ids
