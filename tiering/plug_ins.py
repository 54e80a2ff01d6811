"""Classes of one's own, named in a configuration."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any, TypeVar

_Base = TypeVar("_Base")


def plug_in(what: str, name: str, known: Iterable[str], base: type[_Base]) -> type[_Base]:
    """The subclass of `base` that "package.module:Class" names. `what` it is, and the names that are `known`, are for messages.

    Raises ValueError for what is none, cannot be imported, or leaves something out.
    """
    module, colon, attribute = str(name).partition(":")
    if not (colon and module and attribute):
        raise ValueError(
            f"there is no {what} {name!r}: there are {', '.join(known)}, and package.module:Class"
        )
    try:
        found: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the {what} {name} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{name} is no {base.__module__}.{base.__name__}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ValueError(f"the {what} {name} leaves out {', '.join(missing)}")
    return found
