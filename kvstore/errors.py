"""What can go wrong with a store as a whole. A missing or damaged record is never an exception: see
`reasons`.

    StoreError
    ├── StoreFull       no room: the capacity, or the floor of free space, would be crossed
    ├── StoreClosed     used after close(), or in the child of a fork
    ├── StoreLocked     another process (or another store here) has the directory
    ├── StoreFailed     the medium failed: an I/O error, or LMDB's own pages are damaged
    ├── Unsupported     this store declares that it cannot do this
    └── FormatError     bytes that claim to be ours and are not
        ├── CodecError  a payload that does not decode
        └── MissingBaseline  a payload that needs a baseline which is not there

Each error says whether it is `temporary`: whether the very same call may succeed later although nobody acts
on the error. Only a retry layer reads that.
"""


class StoreError(Exception):
    """Root of what a store raises about itself. What the caller gave wrongly is a `ValueError`."""

    temporary: bool = False


class StoreFull(StoreError):
    """There is no room. Nothing of the batch was written; deleting blocks makes room, waiting does not."""


class StoreClosed(StoreError):
    """The store was used after `close()`, or in a forked process, where it is closed: the child opens its own."""


class StoreLocked(StoreError):
    """Another process, or another store in this one, has the directory open. It may leave."""

    temporary = True


class StoreFailed(StoreError):
    """The medium failed. Pass `temporary=True` where a later attempt may fare better."""

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


class Unsupported(StoreError):
    """This store declares that it cannot do what was asked."""


class FormatError(StoreError):
    """Bytes that claim to be ours and are not."""


class CodecError(FormatError):
    """A payload that does not decode to as many bytes as were encoded."""


class MissingBaseline(FormatError):
    """A payload that cannot be decoded because the baseline that it names is lost or damaged."""
