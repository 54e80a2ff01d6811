"""All compiled code that a store needs, at once."""

from kvstore.code import loaded
from kvstore.disk import requests, tree
from kvstore.kernels import FUNCTIONS


def load_code(*, encodes: bool) -> None:
    """Load it, in milliseconds; where it is not kept, have it compiled by one process, which takes seconds. encodes: whether blocks are
    encoded, and decoded. Raises StoreFailed where it cannot be had.
    """
    loaded(*(FUNCTIONS if encodes else ()), *requests.FUNCTIONS, *tree.FUNCTIONS)
