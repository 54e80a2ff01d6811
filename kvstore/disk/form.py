"""How a block's record and entry rest: as they are, or in another form that says the same to who may know it."""

from collections.abc import Iterable
from typing import Any, Final, Protocol

from kvstore.block import Namespace
from kvstore.disk.directory import Directory
from kvstore.disk.entry import Entries
from kvstore.errors import StoreFailed
from kvstore.metas import BlockMetas
from kvstore.reasons import MissReason
from kvstore.store import BlockMeta


class Form(Protocol):
    """Of the blocks of one namespace. Any thread may call it; it raises StoreFailed where a key file is at fault."""

    @property
    def extra_bytes(self) -> int:
        """By how much a record becomes longer."""
        ...

    @property
    def sealed(self) -> bool:
        """Whether it takes a key to read what rests."""
        ...

    def entry_key(self, key: bytes) -> bytes:
        """What a block is called in both environments: the namespace's digest, then its `name`."""
        ...

    def name(self, key: bytes) -> bytes:
        """What tells a block from others of its namespace, whichever that is: as many bytes as its key has."""
        ...

    def is_owners(self, rests: BlockMeta, owner: bytes) -> bool:
        """Whether metadata that rest so are of a block of this owner's, in any namespace."""
        ...

    def record(self, record: bytes | memoryview, owner: bytes) -> bytes | memoryview:
        """The record as it is to rest."""
        ...

    def opened(self, rests: Any) -> Any | MissReason:
        """The record that rests so, or why it cannot be had. The record's own checks are the caller's."""
        ...

    def entry(self, meta: BlockMeta) -> BlockMeta:
        """What is to rest of a block's metadata."""
        ...

    def opened_entries(self, rests: BlockMetas) -> BlockMetas:
        """The metadata that rest so, of those blocks whose can be had."""
        ...

    def lost(self, pages: Iterable[Entries]) -> tuple[list[bytes], set[bytes]]:
        """The keys of those entries whose blocks nobody will ever read again, of any namespace; and the owners of the others, as they rest."""
        ...

    def destroy(self, owner: bytes) -> None:
        """See to it that nobody can read what rests of this owner's, where that does not take deleting it."""
        ...

    def forget_all_but(self, owners: Iterable[bytes], records: Iterable[Any]) -> None:
        """Let go of what is there for owners of whom nothing rests: but these, as they rest, and those of these records. Nothing may be
        on its way to the disk.
        """
        ...


class Plain:
    """As they are."""

    extra_bytes: Final = 0
    sealed: Final = False

    def __init__(self, namespace: Namespace) -> None:
        self._digest = namespace.digest

    def entry_key(self, key: bytes) -> bytes:
        return self._digest + key

    def name(self, key: bytes) -> bytes:
        return key

    def is_owners(self, rests: BlockMeta, owner: bytes) -> bool:
        return rests.owner == owner

    def record(self, record: bytes | memoryview, owner: bytes) -> bytes | memoryview:  # noqa: ARG002 - it looks the same for all
        return record

    def opened(self, rests: Any) -> Any | MissReason:
        return rests

    def entry(self, meta: BlockMeta) -> BlockMeta:
        return meta

    def opened_entries(self, rests: BlockMetas) -> BlockMetas:
        return rests

    def lost(self, pages: Iterable[Entries]) -> tuple[list[bytes], set[bytes]]:  # noqa: ARG002 - none is
        return [], set()

    def destroy(self, owner: bytes) -> None:
        """Nothing short of deleting helps."""

    def forget_all_but(self, owners: Iterable[bytes], records: Iterable[Any]) -> None:
        """There is nothing."""


def form_of(directory: Directory, namespace: Namespace, master_key: bytes | None) -> Form:
    """How blocks rest in the directory. Raises StoreFailed if others rest there that do so differently."""
    if directory.keys.exists() and not directory.encrypted_mark.exists():
        raise StoreFailed(f"{directory.root} has keys, but {directory.encrypted_mark.name} is gone from it")
    if master_key is None:
        if directory.encrypted_mark.exists():
            path = directory.root.parent
            raise StoreFailed(
                f"{directory.root} is encrypted, and no key is given (disk_key_file); to use it without one: "
                f"kvtide disk clear {path}"
            )
        return Plain(namespace)
    try:
        from kvstore.disk.keyring import Keyring
        from kvstore.disk.sealed import Sealed
    except ImportError as error:
        raise StoreFailed(
            f"encryption needs another package: pip install 'kvtide[encryption]' ({error})"
        ) from error
    return Sealed(namespace, Keyring(directory, master_key))
