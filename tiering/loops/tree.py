"""The way down the radix tree, and its table of children: see tiering.nodes.

A prompt, and the tokens of all blocks one after another by id, are flat: block n begins at n * block_tokens.
"""

from typing import Any, Final

import numpy as np
from numba import njit

from tiering.loops.states import INSIDE, NO_BLOCK

ROOT: Final = 0
"""The number of the root: no node is a child of that number, so it stands for none as well."""

UP, FIRST, LAST, COUNT, NEWEST, OLDER, NEWER, TAKEN = range(8)
"""What a node's record says: the node above; its first and last block, and how many it has; the child that was added last; the
children of the same node that were added before and after this one; the child that was taken last. Numbers, ROOT for none."""

_RUN: Final = 64
"""Blocks that are compared at once where their ids follow each other."""
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


@njit(**INSIDE)
def _same(prompt: Any, at: int, edges: Any, start: int, num: int) -> Any:
    """Whether so many tokens are equal: without a branch for each, so that many are compared by one instruction."""
    differ = np.int32(0)
    at_, start_ = np.uint64(at), np.uint64(start)
    for step in range(np.uint64(num)):
        differ |= prompt[at_ + step] ^ edges[start_ + step]
    return differ == 0


@njit(**INSIDE)
def _tag(tokens: Any, at: int, keys: Any, node: int) -> Any:
    """Multilinear hash of a block behind a node: to who does not know the keys any two are alike in one of 2**32 cases."""
    num = len(keys) - 2
    tag = keys[num] + keys[num + 1] * np.uint64(node)
    for step in range(num):
        tag += keys[step] * np.uint64(np.uint32(tokens[at + step]))
    return tag >> _HALF


@njit(**INSIDE)
def _put(slots: Any, entry: Any) -> None:
    mask = len(slots) - 1
    place = np.int64(entry >> _HALF) & mask
    while slots[place] != 0:
        place = (place + 1) & mask
    slots[place] = entry


@njit(**INSIDE)
def find_child(
    tokens: Any, at: int, block_tokens: int, edges: Any, nodes: Any, slots: Any, keys: Any, node: int
) -> Any:
    """The child of a node that begins with the block of tokens from `at` on, ROOT if there is none."""
    tag = _tag(tokens, at, keys, node)
    mask = len(slots) - 1
    place = np.int64(tag) & mask
    while slots[place] != 0:
        if slots[place] >> _HALF == tag:
            child = np.int64(slots[place] & _LOW)
            # its tokens are what counts: others may have the same tag
            if nodes[child, UP] == node and _same(
                tokens, at, edges, nodes[child, FIRST] * block_tokens, block_tokens
            ):
                return child
        place = (place + 1) & mask
    return ROOT


def descend(
    prompt: Any,
    num_blocks: int,
    block_tokens: int,
    edges: Any,
    after: Any,
    nodes: Any,
    slots: Any,
    keys: Any,
    node: int,
    block: int,
    path: Any,
) -> Any:
    """The blocks that the prompt goes on with behind a block of a node, NO_BLOCK for the root. How many."""
    at = 0
    this = NO_BLOCK if block == NO_BLOCK else after[block]
    while at < num_blocks:
        if this == NO_BLOCK:
            child = np.int64(nodes[node, TAKEN])
            if child == ROOT or not _same(
                prompt, at * block_tokens, edges, nodes[child, FIRST] * block_tokens, block_tokens
            ):
                child = find_child(prompt, at * block_tokens, block_tokens, edges, nodes, slots, keys, node)
                if child == ROOT:
                    return at
                nodes[node, TAKEN] = child
            node, this = child, nodes[child, FIRST]
        num, most = 1, min(num_blocks - at, _RUN)
        while num < most and after[this + num - 1] == this + num:
            num += 1
        if not _same(prompt, at * block_tokens, edges, this * block_tokens, num * block_tokens):
            num = 0
            while _same(
                prompt, (at + num) * block_tokens, edges, (this + num) * block_tokens, block_tokens
            ):
                path[at + num] = this + num
                num += 1
            return at + num
        for step in range(num):
            path[at + step] = this + step
        at += num
        this = after[this + num - 1]
    return at


def link(edges: Any, block_tokens: int, nodes: Any, slots: Any, keys: Any, number: int) -> None:
    """A node is the newest child of the one above it, which has none that begins like it."""
    up = nodes[number, UP]
    newest = nodes[up, NEWEST]
    nodes[number, OLDER], nodes[number, NEWER] = newest, ROOT
    if newest != ROOT:
        nodes[newest, NEWER] = number
    nodes[up, NEWEST] = nodes[up, TAKEN] = number
    tag = _tag(edges, nodes[number, FIRST] * block_tokens, keys, up)
    _put(slots, tag << _HALF | np.uint64(number))


def unlink(edges: Any, block_tokens: int, nodes: Any, slots: Any, keys: Any, number: int) -> Any:
    """A node is no child of the one above it any more. False, and nothing more is changed, if the table did not have it."""
    up, older, newer = nodes[number, UP], nodes[number, OLDER], nodes[number, NEWER]
    tag = _tag(edges, nodes[number, FIRST] * block_tokens, keys, up)
    mask = len(slots) - 1
    place = np.int64(tag) & mask
    entry = tag << _HALF | np.uint64(number)
    while slots[place] != entry:
        if slots[place] == 0:
            return False
        place = (place + 1) & mask
    # what lies behind is moved up, unless it would come to lie before the place that its tag names
    at = (place + 1) & mask
    while slots[at] != 0:
        home = np.int64(slots[at] >> _HALF) & mask
        if (at - home) & mask >= (at - place) & mask:
            slots[place] = slots[at]
            place = at
        at = (at + 1) & mask
    slots[place] = 0
    if older != ROOT:
        nodes[older, NEWER] = newer
    if newer != ROOT:
        nodes[newer, OLDER] = older
    else:
        nodes[up, NEWEST] = older
    if nodes[up, TAKEN] == number:
        nodes[up, TAKEN] = ROOT
    return True


def put_all(slots: Any, larger: Any) -> None:
    """Fill a larger table with what is in one."""
    for place in range(len(slots)):
        if slots[place] != 0:
            _put(larger, slots[place])


def lay(edges: Any, after: Any, block_tokens: int, tokens: Any, ids: Any) -> None:
    """New blocks have these tokens, and follow one another in a node; after the last comes nothing."""
    for at in range(len(ids)):
        to, of = ids[at] * block_tokens, at * block_tokens
        for step in range(block_tokens):
            edges[to + step] = tokens[of + step]
        after[ids[at]] = ids[at + 1] if at + 1 < len(ids) else NO_BLOCK


def name_run(node: Any, after: Any, block: int, number: int) -> Any:
    """A block and those after it are in the node of that number from now on. How many they are."""
    num = 0
    while block != NO_BLOCK:
        node[block] = number
        block = after[block]
        num += 1
    return num


def along(links: Any, block: int, ids: Any) -> Any:
    """A block, the one that a column names for it, and so on, as many as there is room for. How many; without room, how many there would be."""
    num = 0
    while block != NO_BLOCK and (num < len(ids) or len(ids) == 0):
        if len(ids):
            ids[num] = block
        block = links[block]
        num += 1
    return num


def are_tail(parent: Any, ids: Any, start: int, end: int) -> Any:
    """Whether each of ids[start:end] follows the next of them."""
    for at in range(start, end - 1):
        if parent[ids[at]] != ids[at + 1]:
            return False
    return True
