"""A way around a store, for tests and tools: the records themselves, unchecked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kvstore.block import BlockKey


@dataclass(frozen=True, slots=True)
class RawRecords:
    """Reads and writes the records of one open store below all of its checks.

    `read` answers a copy of the record under a key, or None; `write` replaces the record of a key that is
    there and leaves what the store believes about it as it was, or raises KeyError. Any thread may call both.
    """

    read: Callable[[BlockKey], bytes | None]
    write: Callable[[BlockKey, bytes], None]

    def corrupt(self, key: BlockKey, byte: int = -1, bit: int = 0) -> None:
        """Flip one bit of the stored record. `byte` counts from the start of the record, or from its end if
        negative.

        Raises KeyError if there is no record.
        """
        record = bytearray(self._existing(key))
        record[byte] ^= 1 << bit
        self.write(key, bytes(record))

    def truncate(self, key: BlockKey, num_bytes: int = 1) -> None:
        """Cut bytes off the end of the stored record. Raises KeyError if there is none."""
        record = self._existing(key)
        self.write(key, record[: len(record) - num_bytes])

    def _existing(self, key: BlockKey) -> bytes:
        record = self.read(key)
        if record is None:
            raise KeyError(key.hex())
        return record


@runtime_checkable
class HasRaw(Protocol):
    """A store that gives access to its records. `Store` does not ask for it."""

    def raw(self) -> RawRecords:
        """The records below all checks."""
        ...
