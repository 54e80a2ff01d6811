"""Blocks on a local disk, in LMDB."""

from kvstore.disk.store import LmdbStore

__all__ = ["LmdbStore"]
