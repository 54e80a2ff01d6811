"""Stores around a store. So far one: `FaultStore`, which injects faults. See docs/faults.md."""

from kvstore.layers.fault_store import FaultStore
from kvstore.layers.faults import (
    Delay,
    DirtyMiss,
    ErrorAfter,
    ErrorBefore,
    FalseMiss,
    Fault,
    Garbage,
    Gate,
    Hang,
    ShortData,
)

__all__ = [
    "Delay",
    "DirtyMiss",
    "ErrorAfter",
    "ErrorBefore",
    "FalseMiss",
    "Fault",
    "FaultStore",
    "Garbage",
    "Gate",
    "Hang",
    "ShortData",
]
