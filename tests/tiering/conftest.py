"""Caches with real threads and copies, over each kind of store."""

import pytest

from kvstore.layers import FaultStore
from kvstore.memory import MemoryStore
from tests.tiering.rig import LAYOUT, NAMESPACE, Rig, lmdb_stores, memory_stores


@pytest.fixture(params=[memory_stores, lmdb_stores], ids=["memory", "lmdb"])
def open_store(request, tmp_path):
    """Opens the same store again and again, one after the other."""
    return request.param(tmp_path)


@pytest.fixture
def start():
    """Starts caches, and ends those that the test has not closed."""
    rigs = []

    def start(store, device=None, **settings):
        rigs.append(Rig(store, device, **settings))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.cache.close()


@pytest.fixture
def faulty():
    return FaultStore(MemoryStore(NAMESPACE, LAYOUT, 1 << 20))
