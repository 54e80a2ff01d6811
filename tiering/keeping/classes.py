"""The classes of blocks that are told apart: by what is known of a request when it ends."""

import numpy as np

from tiering.keeping.admission import Hints
from tiering.keeping.lifetimes import Array

TAIL = 0
"""What comes after a request's last breakpoint; without one, its last block, which is often not whole."""
SHARED = 1
"""What a hint says that others begin with too."""
_FIRST = 2

LAST_TURN = 3
"""Turns from this one on are one class."""
_OUTPUT_TOKENS = (32, 128)
"""A tool call, a short answer, a long one."""
_NUM_OUTPUTS = len(_OUTPUT_TOKENS) + 1
_NUM_HINTS = 3
_NUM_KINDS = 4
_FAMILY_SIZE = _NUM_OUTPUTS * _NUM_KINDS
_NUM_FAMILIES = (LAST_TURN + 1) * _NUM_HINTS


def families() -> Array:
    """Of each class, its family: turn and hint."""
    bodies = np.repeat(np.arange(_FIRST, _FIRST + _NUM_FAMILIES), _FAMILY_SIZE)
    return np.concatenate([[TAIL, SHARED], bodies])


def body_class(turn: int, output_tokens: int, kind: int, hints: Hints) -> int:
    """The class of a request's blocks, save tail and shared ones."""
    said = 2 if hints.one_shot or hints.goes_on is False else int(bool(hints.goes_on))
    output = sum(output_tokens >= least for least in _OUTPUT_TOKENS)
    family = min(turn, LAST_TURN) * _NUM_HINTS + said
    return _FIRST + family * _FAMILY_SIZE + output * _NUM_KINDS + kind % _NUM_KINDS


def segments(num_blocks: int, hints: Hints) -> tuple[int, int]:
    """Where the shared blocks of a request end, and where its tail begins."""
    tail = max((point for point in hints.breakpoints if point < num_blocks), default=num_blocks - 1)
    shared = min(hints.shared_blocks, num_blocks)
    return shared, max(tail, shared)
