"""Blocks on a local disk, in LMDB."""

from kvstore.disk.master_key import read_master_key
from kvstore.disk.opening import capacity_within
from kvstore.disk.store import LmdbStore

__all__ = ["LmdbStore", "capacity_within", "read_master_key"]
