"""What may be asked of the engine's thread: messages to its inbox."""

from concurrent.futures import Future
from dataclasses import dataclass

from tiering.matching import CacheUse
from tiering.observation import Observed
from tiering.radix import Tokens
from tiering.residency import Tier

from .request import Request


@dataclass(frozen=True, slots=True)
class Submit:
    """New requests, which arrive together."""

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """The caller does not want this result any more."""

    request: Request


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ask where a prompt's prefix lies; the future gets tokens by tier. `tokens` are salted."""

    tokens: Tokens
    future: "Future[dict[str, int]]"


@dataclass(frozen=True, slots=True)
class Observe:
    """Ask what there is of a prompt, to explain it. `tokens` are salted."""

    tokens: Tokens
    use: CacheUse
    future: "Future[Observed]"


@dataclass(frozen=True, slots=True)
class Demote:
    """Copy what is cached down to a tier; the future gets how many blocks are not there when no more can be copied."""

    to: Tier
    then_free: bool
    """Whether what no request holds leaves the tiers above."""
    future: "Future[int]"


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget everything that no request holds; the future gets whether nothing was left."""

    future: "Future[bool]"


@dataclass(frozen=True, slots=True)
class Erase:
    """Forget what is one owner's, and have the disk erase it; the future gets whether nothing was left."""

    owner: bytes
    future: "Future[bool]"


@dataclass(frozen=True, slots=True)
class Check:
    """Look at the books; the future gets None, or the AssertionError."""

    future: "Future[None]"


@dataclass(frozen=True, slots=True)
class Wake:
    """Something has ended: look at the cache."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel what is left, and end."""


Message = Submit | Cancel | Lookup | Observe | Demote | Clear | Erase | Check | Wake | Stop
