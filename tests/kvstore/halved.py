"""A function to be compiled that has no place among those that are kept: for what keeps and loads code."""

from pathlib import Path

import numpy as np

from kvstore.code import Function, compiled

ODD = "tests.kvstore.odd_loops"
HALVE = Function(ODD, "halve", (ODD,), ("int64 1 written", "int64"))


def halves(folders: list[Path]) -> bool:
    """Whether it does what it should, loaded from there."""
    [halve] = compiled([HALVE], folders)
    numbers = np.arange(5)
    return halve(numbers, 2) == 5 and numbers.tolist() == [0, 0, 1, 1, 2]
