"""What some stores can do besides: `Store` does not ask for it, and who uses it does without where it is not there."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple, Protocol, runtime_checkable

from kvstore.block import BlockKey
from kvstore.reports import NamespaceInfo


class Elsewhere(NamedTuple):
    """What another namespace has of a prompt."""

    digest: str
    """Hexadecimal."""
    facts: dict[str, str] | None
    """What is in it, where that is known."""
    blocks: int
    """From the prompt's beginning on, without a gap."""


class StoredName(NamedTuple):
    """A named cache, as a store keeps it."""

    key: bytes
    """32 bytes, which the caller chooses: a name in the same namespace with the same key takes its place."""
    owner: bytes
    """Whose it is, as of blocks: NO_OWNER, or what `Store.erase` erases by."""
    first_block: int
    """How many blocks come before the first of its owner's."""
    tokens: bytes
    """The token ids of its blocks, from a first one on."""
    block_bytes: int
    """What the token ids of one block take."""
    since_ns: int
    """When it was made or given another time, nanoseconds since the epoch."""
    ttl_ns: int | None
    """How long after its last use it is over; None for never."""
    content: bytes
    """What else the caller wants to know of it."""


class StoredTerm(NamedTuple):
    """How long a block is to live after its last use, as a store keeps it: a time, whether the TTL counts too, and a rank."""

    own_s: float
    by_default: bool
    rank: int = 0
    """From -128 to 127, for the caller to read: which blocks go before which. 0 where nobody said anything."""


class Unchanged(Enum):
    """Stands for a setting that is to stay as it is, where None says something else."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


@runtime_checkable
class KnowsOthers(Protocol):
    """A store that tells whose blocks its medium holds. Any thread may call it; errors are as those of Store."""

    def namespaces(self) -> list[NamespaceInfo]:
        """All namespaces with blocks on the medium: the store's own first, also without, then the largest."""
        ...

    def others_with(self, tokens: Sequence[bytes]) -> list[Elsewhere]:
        """The other namespaces that have the beginning of a prompt, those with most of it first.

        `tokens`: the prompt's whole blocks, as in BlockRef. Touches no payload, and looks at no more than a bounded number of
        blocks and namespaces; one that cuts prompts into blocks of another length is not found.
        """
        ...


@runtime_checkable
class Retains(Protocol):
    """A store that keeps what users asked to keep, in its own namespace. Any thread may call it; errors are as those of Store."""

    def names(self) -> list[StoredName]:
        """All names that can be read, in any order."""
        ...

    def put_name(self, name: StoredName) -> None:
        """Keep a name, in place of one with the same key. It survives a loss of power when this returns.

        Blocks of a name in another namespace are not deleted to make room, as long as its time is not over. Raises
        StoreFull, and changes nothing, if there is no room, or names would take more than they may.
        """
        ...

    def delete_name(self, key: bytes) -> None:
        """Forget a name. One that is not there is fine."""
        ...

    def settings(self) -> bytes | None:
        """What `put_settings` was given last; None for nothing."""
        ...

    def put_settings(self, content: bytes | None) -> None:
        """Keep what the caller was told to go by, in place of what was kept; None for nothing. As for `put_name`."""
        ...

    def put_terms(self, terms: Mapping[BlockKey, StoredTerm]) -> None:
        """Note how long blocks are to live, and their ranks, in place of what was noted. It goes when the block is deleted."""
        ...

    def terms(self, keys: Sequence[BlockKey]) -> dict[BlockKey, StoredTerm]:
        """What was noted, of those of these blocks of which something was."""
        ...


@runtime_checkable
class Changeable(Protocol):
    """A store whose limits can be set anew while it is in use. Any thread may call it."""

    def change(
        self,
        *,
        capacity_bytes: int | None = None,
        min_free_bytes: int | None = None,
        ttl_s: float | Unchanged | None = UNCHANGED,
    ) -> None:
        """Set limits anew, all of them or none; None, and UNCHANGED, leave one as it is.

        A capacity below what there is refuses puts until enough is deleted. A TTL has other namespaces' blocks that are older
        deleted now. Raises ValueError for what cannot be meant, StoreFailed where the medium does not let it.
        """
        ...
