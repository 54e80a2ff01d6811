"""kvstore: where the KV blocks of prompts rest. Knows nothing of radix trees, models or devices.

Importing the package costs little: what needs numpy, zstandard or LMDB is loaded when it is first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from kvstore.block import KEY_BYTES, BlockKey, BlockLayout, Namespace, chain_key
from kvstore.errors import (
    CodecError,
    FormatError,
    StoreClosed,
    StoreError,
    StoreFailed,
    StoreFull,
    StoreLocked,
    Unsupported,
)
from kvstore.reasons import MissReason
from kvstore.slots import SlotMemory
from kvstore.store import HIT, BlockMeta, BlockRef, ReadOutcome, Store, StoreStats

if TYPE_CHECKING:
    from kvstore.disk import LmdbStore
    from kvstore.host import HostSlab
    from kvstore.layers import (
        Delay,
        DirtyMiss,
        ErrorAfter,
        ErrorBefore,
        FalseMiss,
        Fault,
        FaultStore,
        Garbage,
        Gate,
        Hang,
        ShortData,
    )
    from kvstore.memory import MemoryStore

__all__ = [
    "HIT",
    "KEY_BYTES",
    "BlockKey",
    "BlockLayout",
    "BlockMeta",
    "BlockRef",
    "CodecError",
    "Delay",
    "DirtyMiss",
    "ErrorAfter",
    "ErrorBefore",
    "FalseMiss",
    "Fault",
    "FaultStore",
    "FormatError",
    "Garbage",
    "Gate",
    "Hang",
    "HostSlab",
    "LmdbStore",
    "MemoryStore",
    "MissReason",
    "Namespace",
    "ReadOutcome",
    "ShortData",
    "SlotMemory",
    "Store",
    "StoreClosed",
    "StoreError",
    "StoreFailed",
    "StoreFull",
    "StoreLocked",
    "StoreStats",
    "Unsupported",
    "chain_key",
]

_LAZY = {
    "Delay": "kvstore.layers",
    "DirtyMiss": "kvstore.layers",
    "ErrorAfter": "kvstore.layers",
    "ErrorBefore": "kvstore.layers",
    "FalseMiss": "kvstore.layers",
    "Fault": "kvstore.layers",
    "FaultStore": "kvstore.layers",
    "Garbage": "kvstore.layers",
    "Gate": "kvstore.layers",
    "Hang": "kvstore.layers",
    "HostSlab": "kvstore.host",
    "LmdbStore": "kvstore.disk",
    "MemoryStore": "kvstore.memory",
    "ShortData": "kvstore.layers",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
