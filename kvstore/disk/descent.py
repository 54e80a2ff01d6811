"""The way down LMDB's B-tree, compiled: where values lie, found without touching one. See kvstore.disk.tree.

Pages and nodes are as LMDB's data format 1 has them on 64-bit machines, little-endian. A page begins with its number (8 bytes), 2 bytes of
no meaning here, what kind it is (2), and how far its nodes' places go and where its nodes begin (2 and 2); then come the places, 2 bytes each. A node
is the size of its value (4), flags (2), the key's size (2), the key, and the value, or the number of the first page that the value has for
itself. In a branch the first six bytes are a page's number, and the first node's key says nothing.

No byte is read outside of the pages that it is given, whatever these hold, and no more pages than the tree is deep.
"""

from typing import Any, Final

import numpy as np
from numba import njit

from kvstore.instructions import array_at, load8

_U64: Final = np.uint64
_PAIR: Final = _U64(0xFFFF)
_SIZE: Final = _U64(0xFFFFFFFF)
_NUMBER: Final = _U64(0xFFFFFFFFFFFF)
_BRANCH, _LEAF = 0x01, 0x02
_BIG: Final = 0x01
_PAGE_HEAD: Final = 16
_NODE_HEAD: Final = 8
_NUMBER_BYTES: Final = 8
_FIRST_PAGE: Final = 2
"""After those that are about the whole file."""
_FAR: Final = _U64(1 << 40)
"""A page number that no file has."""

_COMPILED: Final[dict[str, Any]] = {"_nrt": False}


def find(
    begin: Any,
    num_pages: Any,
    page_bytes: Any,
    root: Any,
    depth: Any,
    keys: Any,
    ends: Any,
    firsts: Any,
    sizes: Any,
) -> None:
    """Where the values under `keys` begin, one behind the other, of which each ends at `ends` [n]: `firsts` [n] their first pages, and `sizes` [n].

    -1 in `firsts` where that is not sure: there is no such key, its value has no pages for itself, or a page is not what it should be. The
    tree lies at the address `begin`, of which so many pages can be read, `root` and `depth` say where it begins.
    """
    of_keys = np.int64(keys.ctypes.data)
    key_begin = 0
    for i in range(ends.size):
        firsts[i] = -1
        key = array_at(of_keys + key_begin, ends[i] - key_begin, keys)
        key_begin = ends[i]
        page = np.int64(root)
        for level in range(depth):
            if page < _FIRST_PAGE or page >= num_pages:
                break
            at, is_leaf = begin + page * page_bytes, level == depth - 1
            node, is_exact = _last_up_to(at, page, page_bytes, is_leaf, key)
            if node == 0:
                break
            word = load8(node)
            if not is_leaf:
                page = np.int64(word & _NUMBER)
            elif is_exact and np.int64((word >> _U64(32)) & _PAIR) == _BIG:
                number = node + _NODE_HEAD + key.size
                if number + _NUMBER_BYTES <= at + page_bytes:
                    firsts[i] = np.int64(min(load8(number), _FAR))
                    sizes[i] = np.int64(word & _SIZE)


@njit(**_COMPILED)
def _last_up_to(at: Any, page: Any, page_bytes: Any, is_leaf: Any, key: Any) -> Any:
    """The address of the last node of a page whose key is not above this one, and whether it is this one; 0 if there is none, or the
    page is not what it should be.
    """
    head = load8(at + 8)
    lower, upper = np.int64((head >> _U64(32)) & _PAIR), np.int64(head >> _U64(48))
    kind = _LEAF if is_leaf else _BRANCH
    if (
        load8(at) != _U64(page)
        or np.int64((head >> _U64(16)) & _PAIR) != kind
        or lower < _PAGE_HEAD
        or lower > upper
        or upper > page_bytes
    ):
        return 0, False
    low: Any = 0 if is_leaf else 1
    high: Any = (lower - _PAGE_HEAD) // 2
    found: Any = 0
    is_exact = False
    if not is_leaf and high > 0:
        found = _node(at, 0, upper, page_bytes)
        if found == 0:
            return 0, False
    while low < high:
        middle = (low + high) // 2
        node = _node(at, middle, upper, page_bytes)
        if node == 0:
            return 0, False
        order = _compared(node, key)
        if order > 0:
            high = middle
        else:
            low, found, is_exact = middle + 1, node, order == 0
    return found, is_exact


@njit(**_COMPILED)
def _node(at: Any, number: Any, upper: Any, page_bytes: Any) -> Any:
    """Its address; 0 if it and its key are not all within the page."""
    place = at + _PAGE_HEAD + 2 * number
    # no such place has a part in two words
    offset = np.int64((load8(place & ~7) >> _U64(8 * (place & 7))) & _PAIR)
    if offset < upper or offset % 2 or offset + _NODE_HEAD > page_bytes:
        return 0
    key_bytes = np.int64(load8(at + offset) >> _U64(48))
    return at + offset if offset + _NODE_HEAD + key_bytes <= page_bytes else 0


@njit(**_COMPILED)
def _compared(node: Any, key: Any) -> Any:
    """Less than, equal to or more than 0, as a node's key is before, the same as or after another."""
    own = array_at(node + _NODE_HEAD, np.int64(load8(node) >> _U64(48)), key)
    num_bytes = min(own.size, key.size)
    at = 0
    while at + 8 <= num_bytes and load8(node + _NODE_HEAD + at) == load8(np.int64(key.ctypes.data) + at):
        at += 8
    while at < num_bytes:
        if own[at] != key[at]:
            return np.int64(own[at]) - np.int64(key[at])
        at += 1
    return np.int64(own.size) - np.int64(key.size)
