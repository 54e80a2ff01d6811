"""The last norm and the logits, for code that numba compiles: of engine/decoder_kernel.py."""

from typing import Any, Final

from numba import njit, types

from kvstore.scratch import on_stack

from .lane_products import (
    ROW_LEFT,
    ROW_RIGHT,
    row_by_rows,
    row_by_rows_pairs,
    rows_by_rows,
    rows_by_rows_pairs,
)
from .lane_signals import next_number
from .lane_vectors import REGISTER_BYTES, is_bfloat16
from .lane_words import number
from .layer_kernel import normalise
from .native import UNIT
from .waiting import INSIDE, done, wait_for

_TOKENS: Final = 512
"""Of the vocabulary, whose logits a task computes; the last one those of the rest too."""


_sums: Final = on_stack(types.float32, 1, UNIT)


@njit(**INSIDE)
def _multiply(left: Any, row: int, num_rows: int, head: Any, token: int, logits: Any) -> None:
    """So many rows of `left`, ROW_LEFT or one, by the weights of ROW_RIGHT tokens."""
    whole = left.shape[1] * left.itemsize // REGISTER_BYTES
    at, weights = left.ctypes.data + row * left.strides[0], head.ctypes.data + token * head.strides[0]
    to = logits.ctypes.data + row * logits.strides[0] + token * 4
    if is_bfloat16(left):
        if num_rows == 1:
            row_by_rows_pairs(at, 0, weights, head.strides[0], to, 0, whole)
        else:
            rows_by_rows_pairs(at, left.strides[0], weights, head.strides[0], to, logits.strides[0], whole)
    elif num_rows == 1:
        row_by_rows(at, 0, weights, head.strides[0], to, 0, whole)
    else:
        rows_by_rows(at, left.strides[0], weights, head.strides[0], to, logits.strides[0], whole)
    rest = whole * REGISTER_BYTES // left.itemsize
    if rest < left.shape[1]:
        for i in range(row, row + num_rows):
            for j in range(token, token + ROW_RIGHT):
                for at in range(rest, left.shape[1]):
                    logits[i, j] += number(left[i], at) * number(head[j], at)


@njit(**INSIDE)
def _logits(left: Any, head: Any, first: int, end: int, logits: Any) -> None:
    """Of some tokens, in all rows."""
    rows = logits.shape[0]
    for begin in range(first, end, ROW_RIGHT):
        token = min(begin, end - ROW_RIGHT)  # some are computed twice
        row = 0
        while row < rows:
            num_rows = ROW_LEFT if rows - row >= ROW_LEFT else 1
            _multiply(left, row, num_rows, head, token, logits)
            row += num_rows


@njit(**INSIDE)
def finish(x: Any, norm: Any, epsilon: float, head: Any, normal: Any, logits: Any, progress: Any) -> None:
    """Logits of all rows, by any number of threads together, as engine/layer_kernel.py's `before`.

    x: [rows, hidden].   norm: [hidden].   head: [vocabulary, hidden], of at least ROW_RIGHT tokens.   normal: scratch, like x.   logits:
    float32 [rows, vocabulary], what is made.   progress: int64 [PROGRESS], 0 before the first call.
    """
    sums = _sums()
    rows, num_tokens = logits.shape
    num_tasks = max(1, num_tokens // _TOKENS)
    while True:
        task = next_number(progress.ctypes.data)
        if task < rows:
            normalise(x, norm, epsilon, task, task + 1, normal, sums)
            done(progress, 0)
        elif task < rows + num_tasks:
            wait_for(progress, 0, rows)
            first = (task - rows) * _TOKENS
            end = first + _TOKENS if task - rows < num_tasks - 1 else num_tokens
            _logits(normal, head, first, end, logits)
            done(progress, 1)
        else:
            break
    wait_for(progress, 1, num_tasks)
