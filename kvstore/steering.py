"""What some stores can do besides: `Store` does not ask for it, and who uses it does without where it is not there."""

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple, Protocol, runtime_checkable

from kvstore.reports import NamespaceInfo


class Elsewhere(NamedTuple):
    """What another namespace has of a prompt."""

    digest: str
    """Hexadecimal."""
    facts: dict[str, str] | None
    """What is in it, where that is known."""
    blocks: int
    """From the prompt's beginning on, without a gap."""


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
