"""Blocks on a local disk, in LMDB."""

from kvstore.disk.opening import capacity_within
from kvstore.disk.store import LmdbStore

__all__ = ["LmdbStore", "capacity_within"]
