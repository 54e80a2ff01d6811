"""Prompts for measuring prefix indexes: the same for kvtide and for every peer, from nothing but a seed.

Only numpy is imported, because the peers' environments have no more. Tokens are 1-D little-endian int32 arrays of whole
blocks of 16, drawn evenly from a vocabulary of 128,000.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

BLOCK_TOKENS = 16
PROMPT_TOKENS = 131_072
"""The longest prompts: 8,192 blocks."""
LENGTHS_TOKENS = (1024, 8192, 32_768, PROMPT_TOKENS)
NODE_TOKENS = 512
"""What a chat grows by at each turn, and what is inserted below a path: 32 blocks."""
NUM_SHARED, SHARED_TOKENS, OWN_TOKENS = 16, 1024, 512
"""Prefixes in a tree: each is one of 16 system prompts, and 512 tokens of its own."""

_VOCABULARY = 128_000
# What is drawn from one seed, apart from each other.
_SHARED, _OWN, _RUN, _CHAT, _SIBLING, _EXTENSION, _ORDER = range(7)


def _drawn(num_tokens: int, *key: int) -> Tokens:
    return np.random.default_rng(key).integers(0, _VOCABULARY, num_tokens, dtype=np.int32).astype("<i4")


def prefixes(num_prefixes: int, seed: int, first: int = 0) -> Iterator[Tokens]:
    """The prompts of a tree, [1536] each, from number `first` on: a system prompt, and a leaf of 32 blocks behind it.

    A tree of more prefixes begins with the same ones.
    """
    shared = [_drawn(SHARED_TOKENS, seed, _SHARED, number) for number in range(NUM_SHARED)]
    for number in range(first, first + num_prefixes):
        yield np.concatenate([shared[number % NUM_SHARED], _drawn(OWN_TOKENS, seed, _OWN, number)])


def run(num_tokens: int, seed: int, number: int = 0) -> Tokens:
    """A prompt that shares nothing with others: inserted, it is one run of blocks without a branch."""
    return _drawn(num_tokens, seed, _RUN, num_tokens, number)


def chat(num_tokens: int, seed: int, number: int = 0) -> Tokens:
    """A prompt that grew by 512 tokens at a time: `turns` are what is inserted of it."""
    return _drawn(num_tokens, seed, _CHAT, num_tokens, number)


def turns(num_tokens: int, seed: int, number: int = 0, node_tokens: int = NODE_TOKENS) -> Iterator[Tokens]:
    """What is inserted, in this order, so that `chat` lies along nodes of `node_tokens`, a sibling beside each.

    First the prompt up to the end of the node, then the one that parts from it where the node begins, for each node.
    """
    path = chat(num_tokens, seed, number)
    for start in range(0, num_tokens, node_tokens):
        yield path[: start + node_tokens]
        sibling = _drawn(node_tokens, seed, _SIBLING, num_tokens, number, start)
        sibling[0] = (path[start] + 1) % _VOCABULARY  # it parts at once, whatever was drawn
        yield np.concatenate([path[:start], sibling])


def extension(path: Tokens, seed: int, number: int) -> Tokens:
    """A path with 512 tokens behind it, others for each number."""
    return np.concatenate([path, _drawn(NODE_TOKENS, seed, _EXTENSION, number)])


def in_any_order(num: int, seed: int) -> list[int]:
    """The numbers below `num`, shuffled."""
    numbers: list[int] = np.random.default_rng([seed, _ORDER]).permutation(num).tolist()
    return numbers


def digest(prompts: Iterable[Tokens]) -> str:
    """Names these prompts: two processes that answer the same have been given the same."""
    whole = hashlib.sha256()
    for prompt in prompts:
        whole.update(len(prompt).to_bytes(8, "little"))
        whole.update(np.ascontiguousarray(prompt, dtype="<i4").tobytes())
    return whole.hexdigest()
