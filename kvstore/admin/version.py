"""The version of kvtide that runs."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def own_version() -> str:
    """As it is installed; "unknown" where it is run from a folder."""
    try:
        return version("kvtide")
    except PackageNotFoundError:
        return "unknown"
