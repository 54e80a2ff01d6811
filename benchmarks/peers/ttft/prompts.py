"""A prefix, and for each round a suffix that nobody has seen: real text of ours, one stretch after the other."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiering.cli.prompts import RANDOM
from tiering.cli.texts import long_text

PREFIX_STEP = 128
"""vLLM keeps whole blocks of so many tokens on a CPU; kvtide's are 16. So a prefix is whole to all, and a suffix to none."""


class Prompts(NamedTuple):
    """Token ids. warm_up: for the round that does not count.   other: a suffix that is never timed.   text: what all of
    it was made of, where the model has a tokenizer."""

    prefix: list[int]
    other: list[int]
    warm_up: list[int]
    rounds: list[list[int]]
    text: str | None


def prompts(model: str, prefix_tokens: int, suffix_tokens: int, rounds: int, seed: int) -> Prompts:
    """Raises ValueError where the sizes do not fit what is kept, or each other."""
    if prefix_tokens < PREFIX_STEP or prefix_tokens % PREFIX_STEP:
        raise ValueError(f"prefix_tokens must be a multiple of {PREFIX_STEP}, got {prefix_tokens}")
    if not 0 < suffix_tokens < PREFIX_STEP:
        raise ValueError(f"suffix_tokens must be 1 to {PREFIX_STEP - 1}, got {suffix_tokens}")
    needed = prefix_tokens + suffix_tokens * (rounds + 2)
    text = None if model in RANDOM else long_text()
    ids = _random(model, needed, seed) if text is None else token_ids(Path(model), text)
    if len(ids) < needed:
        raise ValueError(
            f"the text has {len(ids)} tokens, and {needed} are needed: fewer rounds, or a shorter prefix"
        )
    suffixes = [ids[start : start + suffix_tokens] for start in range(prefix_tokens, needed, suffix_tokens)]
    if len({tuple(suffix) for suffix in suffixes}) < len(suffixes):
        raise ValueError(f"with {suffix_tokens} tokens some suffixes are equal: take more")
    return Prompts(ids[:prefix_tokens], suffixes[0], suffixes[1], suffixes[2:], text)


def token_ids(model: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(model).encode(text, add_special_tokens=False)
    return ids


def _random(model: str, num_tokens: int, seed: int) -> list[int]:
    shape = RANDOM[model]
    assert shape is not None, f"{model} has the demo's vocabulary, and the demo has text"
    drawn: list[int] = np.random.default_rng(seed).integers(1, shape["vocab_size"], num_tokens).tolist()
    return drawn
