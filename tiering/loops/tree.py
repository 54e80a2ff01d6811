"""The way down the radix tree, and its table of children: see tiering.nodes.

A prompt, and the tokens of all blocks one after another by id (`edges`), are flat: block n begins at n * block_tokens. `after` says of a
block which one follows in the same node; of a node's last block it says -2 - n, where n begins the child that was taken last, or
NO_BLOCK if that is gone. `top` says the same of the root. So the way down is one read a block, and nodes are not looked at.
"""

from typing import Any, Final

import numpy as np
from numba import njit

from tiering.loops.states import COUNT, FIRST, INSIDE, LAST, LIFE, NEWER, NEWEST, NO_BLOCK, OLDER, ROOT, UP

_MOST_LIVES: Final = 2**31 - 1
_RUN: Final = 64
"""Blocks that are compared at once where their ids follow each other."""
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
_VOID: Final = np.uint64(1 << 32)
_ALL: Final = np.uint64(0xFFFFFFFFFFFFFFFF)
"""These two are at a place of a table that is taken by no child: no block is behind it, and it follows none."""


@njit(**INSIDE)
def _same(prompt: Any, at: int, edges: Any, start: int, num: int) -> Any:
    """Whether so many tokens are equal: without a branch for each, so that many are compared by one instruction."""
    differ = np.int32(0)
    at_, start_ = np.uint64(at), np.uint64(start)
    for step in range(np.uint64(num)):
        differ |= prompt[at_ + step] ^ edges[start_ + step]
    return differ == 0


@njit(**INSIDE)
def _tag(tokens: Any, at: int, keys: Any, above: int) -> Any:
    """Multilinear hash of a block and the one that it follows: to who does not know the keys any two are alike in one of 2**32 cases."""
    num = len(keys) - 2
    tag = keys[num] + keys[num + 1] * np.uint64(above + 1)
    for step in range(num):
        tag += keys[step] * np.uint64(np.uint32(tokens[at + step]))
    return tag >> _HALF


@njit(**INSIDE)
def _put(slots: Any, entry: Any, above: Any) -> None:
    mask = len(slots) - 1
    place = np.int64(entry >> _HALF) & mask
    while slots[place, 0] != 0:
        place = (place + 1) & mask
    slots[place, 0], slots[place, 1] = entry, above


@njit(**INSIDE)
def _find(tokens: Any, at: int, block_tokens: int, edges: Any, slots: Any, tag: Any, above: int) -> Any:
    """`find_child` in one of the tables."""
    mask = len(slots) - 1
    place = np.int64(tag) & mask
    while slots[place, 0] != 0:
        if slots[place, 0] >> _HALF == tag and np.int64(slots[place, 1]) == above + 1:
            block = np.int64(slots[place, 0] & _LOW) - 1
            # its tokens are what counts: others may have the same tag
            if _same(tokens, at, edges, block * block_tokens, block_tokens):
                return block
        place = (place + 1) & mask
    return NO_BLOCK


@njit(**INSIDE)
def find_child(
    tokens: Any, at: int, block_tokens: int, edges: Any, slots: Any, older: Any, keys: Any, above: int
) -> Any:
    """The block that begins a node, follows the last one of another (NO_BLOCK for the root), and has the tokens from `at` on; or NO_BLOCK."""
    tag = _tag(tokens, at, keys, above)
    block = _find(tokens, at, block_tokens, edges, slots, tag, above)
    if block == NO_BLOCK and len(older):
        block = _find(tokens, at, block_tokens, edges, older, tag, above)
    return block


@njit(**INSIDE)
def _taken(prompt: Any, at: int, block_tokens: int, edges: Any, follows: int) -> Any:
    """The child that was taken last, if it has the tokens from `at` on; or NO_BLOCK. Apart from `find_child`, so that it is part of the walk:
    a call hands over each array by eight words.
    """
    taken = -2 - follows
    if taken >= 0 and _same(prompt, at, edges, taken * block_tokens, block_tokens):
        return taken
    return np.int64(NO_BLOCK)


def descend(
    prompt: Any,
    num_blocks: int,
    block_tokens: int,
    walked: Any,
    above: Any,
    path: Any,
) -> Any:
    """The blocks that the prompt goes on with behind a block, NO_BLOCK for the root. How many."""
    edges, after, top, slots, older, keys = walked
    at, this = 0, np.int64(NO_BLOCK)
    if above != NO_BLOCK:
        this = np.int64(after[above])
    elif num_blocks:
        above = _taken(prompt, 0, block_tokens, edges, np.int64(top[0]))
        if above == NO_BLOCK:
            above = find_child(prompt, 0, block_tokens, edges, slots, older, keys, NO_BLOCK)
        if above == NO_BLOCK:
            return 0
        top[0] = -2 - above
        path[0] = above
        at, this = 1, np.int64(after[above])
    while at < num_blocks:
        # the blocks from `this` to `end` have ids that follow each other; none where the node ends with `above`
        num, end, most = 0, above, min(num_blocks - at, _RUN)
        if this >= 0:
            num, end = 1, this
            while num < most and after[end] == end + 1:
                num, end = num + 1, end + 1
        # what comes then is looked for before these are compared: both wait for memory, and so do it at once
        child, then = NO_BLOCK, np.int64(after[end])
        follows = then
        if follows < 0 and at + num < num_blocks:
            child_at = (at + num) * block_tokens
            child = _taken(prompt, child_at, block_tokens, edges, follows)
            if child == NO_BLOCK:
                child = find_child(prompt, child_at, block_tokens, edges, slots, older, keys, end)
            if child != NO_BLOCK:
                then = np.int64(after[child])
        if not _same(prompt, at * block_tokens, edges, this * block_tokens, num * block_tokens):
            while _same(prompt, at * block_tokens, edges, this * block_tokens, block_tokens):
                path[at] = this
                at, this = at + 1, this + 1
            return at
        for step in range(num):
            path[at + step] = this + step
        at += num
        above, this = end, then
        if child != NO_BLOCK:
            if follows != -2 - child:
                after[end] = -2 - child
            path[at] = above = child
            at += 1
        elif follows < 0:
            return at
    return at


@njit(**INSIDE)
def link(block_tokens: int, nodes: Any, walked: Any, number: int) -> None:
    """A node is the newest child of the one above it, which has none that begins like it."""
    edges, after, top, slots, _, keys = walked
    up, first = nodes[number, UP], nodes[number, FIRST]
    newest, above = nodes[up, NEWEST], np.int64(nodes[up, LAST])
    nodes[number, OLDER], nodes[number, NEWER] = newest, ROOT
    if newest != ROOT:
        nodes[newest, NEWER] = number
    nodes[up, NEWEST] = number
    if above == NO_BLOCK:
        top[0] = -2 - first
    else:
        after[above] = -2 - first
    tag = _tag(edges, first * block_tokens, keys, above)
    _put(slots, tag << _HALF | np.uint64(first + 1), np.uint64(above + 1))


@njit(**INSIDE)
def _take(slots: Any, entry: Any) -> Any:
    """Take a child out of the table. Whether it was there."""
    mask = len(slots) - 1
    place = np.int64(entry >> _HALF) & mask
    while slots[place, 0] != entry:
        if slots[place, 0] == 0:
            return False
        place = (place + 1) & mask
    # what lies behind is moved up, unless it would come to lie before the place that its tag names
    at = (place + 1) & mask
    while slots[at, 0] != 0:
        home = np.int64(slots[at, 0] >> _HALF) & mask
        if (at - home) & mask >= (at - place) & mask:
            slots[place, 0], slots[place, 1] = slots[at, 0], slots[at, 1]
            place = at
        at = (at + 1) & mask
    slots[place, 0] = 0
    return True


@njit(**INSIDE)
def _void(older: Any, entry: Any) -> Any:
    """Make a child's place in the older table one that is taken by none: others stay where they are, for they are counted off. Whether it was there."""
    mask = len(older) - 1
    place = np.int64(entry >> _HALF) & mask
    while older[place, 0] != entry:
        if older[place, 0] == 0:
            return False
        place = (place + 1) & mask
    older[place, 0], older[place, 1] = _VOID, _ALL
    return True


@njit(**INSIDE)
def unlink(block_tokens: int, nodes: Any, walked: Any, number: int) -> Any:
    """A node is no child of the one above it any more. False, and no change, if no table had it."""
    edges, after, top, slots, older, keys = walked
    up, before, behind = nodes[number, UP], nodes[number, OLDER], nodes[number, NEWER]
    first, above = nodes[number, FIRST], np.int64(nodes[up, LAST])
    tag = _tag(edges, first * block_tokens, keys, above)
    entry = tag << _HALF | np.uint64(first + 1)
    was_there = _take(slots, entry)
    if len(older):
        was_there |= _void(older, entry)
    if not was_there:
        return False
    if before != ROOT:
        nodes[before, NEWER] = behind
    if behind != ROOT:
        nodes[behind, OLDER] = before
    else:
        nodes[up, NEWEST] = before
    if above == NO_BLOCK:
        if top[0] == -2 - first:
            top[0] = NO_BLOCK
    elif after[above] == -2 - first:
        after[above] = NO_BLOCK
    return True


def move_places(older: Any, slots: Any, start: int, end: int) -> None:
    """Put what is at these places of a table into a larger one. It stays where it is as well: what lies behind is found past it."""
    for place in range(start, end):
        if older[place, 0] & _LOW != 0:
            _put(slots, older[place, 0], older[place, 1])


def lay(edges: Any, after: Any, block_tokens: int, tokens: Any, ids: Any) -> None:
    """New blocks have these tokens, and follow one another in a node; after the last comes nothing."""
    for at in range(len(ids)):
        to, of = ids[at] * block_tokens, at * block_tokens
        for step in range(block_tokens):
            edges[to + step] = tokens[of + step]
        after[ids[at]] = ids[at + 1] if at + 1 < len(ids) else NO_BLOCK


@njit(**INSIDE)
def name_run(node: Any, after: Any, block: int, number: int) -> Any:
    """A block and those after it are in the node of that number from now on. How many they are."""
    num = 0
    while block >= 0:
        node[block] = number
        block = after[block]
        num += 1
    return num


def plant(
    block_tokens: int, nodes: Any, walked: Any, node: Any, number: int, up: int, first: int, last: int
) -> None:
    """A run of blocks that were laid is a node without children, `link`ed below another."""
    nodes[number, UP], nodes[number, FIRST], nodes[number, LAST] = up, first, last
    nodes[number, COUNT], nodes[number, NEWEST] = name_run(node, walked[1], first, number), ROOT
    link(block_tokens, nodes, walked, number)


def take_off(
    block_tokens: int,
    nodes: Any,
    walked: Any,
    node: Any,
    parent: Any,
    num_children: Any,
    ids: Any,
    numbers: Any,
) -> Any:
    """Take blocks off the ends of nodes, each without children at its turn. How many runs of blocks of one node they are; -1 if one has
    children, or is in no node, -2 if there cannot be such a block. `numbers`: whose, below 0 for one that has no blocks left.
    """
    for at in range(len(ids)):
        if ids[at] >= len(node):
            return -2
        if ids[at] < 0:
            return -1
    num, start, after = 0, 0, walked[1]
    while start < len(ids):
        number, end = node[ids[start]], start + 1
        while end < len(ids) and node[ids[end]] == number:
            if parent[ids[end - 1]] != ids[end]:
                return -1
            end += 1
        if number <= ROOT or nodes[number, LAST] != ids[start] or nodes[number, NEWEST] != ROOT:
            return -1
        above = parent[ids[end - 1]]
        if above != NO_BLOCK:
            num_children[above] -= 1
        if end - start == nodes[number, COUNT]:
            if not unlink(block_tokens, nodes, walked, number):
                return -1
            nodes[number, UP], nodes[number, COUNT] = ROOT, 0
            nodes[number, LIFE] = (nodes[number, LIFE] + 1) & _MOST_LIVES
            numbers[num] = -number
        else:
            after[above] = NO_BLOCK
            nodes[number, LAST] = above
            nodes[number, COUNT] -= end - start
            numbers[num] = number
        for at in range(start, end):  # each had the next one, which went before it
            num_children[ids[at]] = 0
        num, start = num + 1, end
    return num


def along(links: Any, block: int, ids: Any) -> Any:
    """A block, the one that a column names for it, and so on, as many as there is room for. How many; without room, how many there would be."""
    num = 0
    while block >= 0 and (num < len(ids) or len(ids) == 0):
        if len(ids):
            ids[num] = block
        block = links[block]
        num += 1
    return num


def gather(nodes: Any, after: Any, numbers: Any, ids: Any) -> None:
    """The blocks of nodes, one node after the other."""
    at = 0
    for number in numbers:
        block = nodes[number, FIRST]
        while block >= 0:
            ids[at] = block
            block = after[block]
            at += 1
