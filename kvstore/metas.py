"""What a store knows of many blocks, in columns: a million of them as objects would take seconds to make."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvstore.block import KEY_BYTES
from kvstore.store import OWNER_BYTES, BlockMeta

if TYPE_CHECKING:
    from kvstore.store import Store


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockMetas:
    """A BlockMeta for each of n blocks, a field a column. Nobody changes it. Iterating over it makes BlockMetas."""

    keys: NDArray[np.uint8]
    """[n, KEY_BYTES]"""
    parent_keys: NDArray[np.uint8]
    """[n, KEY_BYTES]"""
    tokens: NDArray[np.uint8]
    """[n, bytes of a block's token ids], little-endian int32"""
    stored_bytes: NDArray[np.int64]
    used_ns: NDArray[np.int64]
    owners: NDArray[np.uint8]
    """[n, OWNER_BYTES]"""

    @classmethod
    def of(cls, metas: Iterable[BlockMeta]) -> "BlockMetas":
        """The same in columns. ValueError where blocks have not all as many tokens."""
        rows = list(metas)
        token_bytes = len(rows[0].tokens) if rows else 0
        return cls(
            keys=rows_of(b"".join(meta.key for meta in rows), KEY_BYTES),
            parent_keys=rows_of(b"".join(meta.parent_key for meta in rows), KEY_BYTES),
            tokens=rows_of(b"".join(meta.tokens for meta in rows), token_bytes),
            stored_bytes=np.array([meta.stored_bytes for meta in rows], dtype=np.int64),
            used_ns=np.array([meta.used_ns for meta in rows], dtype=np.int64),
            owners=rows_of(b"".join(meta.owner for meta in rows), OWNER_BYTES),
        )

    @classmethod
    def joined(cls, pages: Iterable["BlockMetas"]) -> "BlockMetas":
        """All of them, in order."""
        some = [page for page in pages if len(page)] or [cls.of(())]
        columns = (field.name for field in fields(cls))
        return cls(**{name: np.concatenate([getattr(page, name) for page in some]) for name in columns})

    def __len__(self) -> int:
        return len(self.stored_bytes)

    def __iter__(self) -> Iterator[BlockMeta]:
        columns = (
            [row.tobytes() for row in self.keys],
            [row.tobytes() for row in self.parent_keys],
            [row.tobytes() for row in self.tokens],
            self.stored_bytes.tolist(),
            self.used_ns.tolist(),
            [row.tobytes() for row in self.owners],
        )
        return map(BlockMeta, *columns)


def metas_of(store: "Store") -> Iterator[BlockMeta]:
    """What a scan of the store tells, a block at a time."""
    return chain.from_iterable(store.scan())


def rows_of(data: bytes, row_bytes: int) -> NDArray[np.uint8]:
    """Bytes as rows of so many. ValueError where they are no whole rows."""
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, max(1, row_bytes))
