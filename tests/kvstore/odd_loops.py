"""Loops that have no place among those that are kept: for tests/kvstore/test_code.py."""

from typing import Any

import numpy as np


def halve(numbers: Any, by: Any) -> Any:
    """Divides in a way that may fail; answers how many numbers there are."""
    for at in range(numbers.size):
        if by == 0:
            raise ZeroDivisionError
        numbers[at] = numbers[at] // by
    return numbers.size


def add(numbers: Any, others: Any, twice: Any) -> Any:
    """Tuples: arrays of two kinds, and a number beside a Boolean."""
    of_floats, of_words = numbers
    addend, is_added = others
    total = np.int64(0)
    for at in range(of_words.size):
        total += np.int64(of_floats[at]) + np.int64(of_words[at])
    if is_added:
        total += addend
    return 2 * total if twice else total


def needs_another_library(numbers: Any) -> Any:
    """LLVM would end the process that loads it where there is no such function."""
    for at in range(numbers.size):
        numbers[at] = np.arctan2(np.float64(numbers[at]), 2.0)
