"""All compiled code that a store needs, at once."""

from kvstore.code import Function, loaded
from kvstore.disk import requests, runs, tree
from kvstore.kernels import FUNCTIONS


def functions(itemsize: int | None) -> tuple[Function, ...]:
    """All of it, where elements of so many bytes are encoded, and decoded; None where none are."""
    encoding = [] if itemsize not in FUNCTIONS else [*FUNCTIONS[itemsize], runs.PROVING[itemsize]]
    return *encoding, *requests.FUNCTIONS, *runs.FUNCTIONS, *tree.FUNCTIONS


def load_code(itemsize: int | None) -> None:
    """Load it, in milliseconds; where it is not kept, have it compiled by one process, which takes seconds. Raises StoreFailed where it cannot
    be had.
    """
    loaded(*functions(itemsize))
