"""Every store keeps every law, and so does every layer around one."""

import ast
from pathlib import Path

import pytest

import kvstore
from kvstore.layers import Delay, DirtyMiss, FaultStore, Gate, Hang
from kvstore.testing.laws import LAWS
from tests.kvstore.conftest import EXAMPLES

by_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
wrapped = pytest.mark.parametrize(
    "store", ["memory", "lmdb", "lmdb strict", "lmdb encrypted", "sqlite"], indirect=True
)


@by_law
def test_law(law, store):
    law(store, store.raw())


@by_law
@wrapped
def test_a_fault_store_without_faults_keeps_the_laws(law, store):
    layer = FaultStore(store)
    law(layer, layer.raw())


@by_law
@wrapped
def test_faults_that_break_no_promise_break_no_law(law, store):
    """Slow calls, calls that stall and go on, and junk where the contract says that nothing is to be found."""
    gate, slept = Gate(), []
    gate.open()
    layer = FaultStore(store, [Delay(1.0), Hang(gate), DirtyMiss()], sleep=slept.append)
    law(layer, layer.raw())
    assert slept


@by_law
def test_a_layer_around_a_layer_keeps_the_laws(law, memory_store):
    layer = FaultStore(FaultStore(memory_store))
    law(layer, layer.raw())


def test_there_is_no_other_store():
    """Neither in the package, layers included, nor among the examples: whoever adds one puts it on trial above."""
    files = [*Path(kvstore.__file__).parent.rglob("*.py"), *EXAMPLES.glob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    stores = [c.name for c in classes if "put_many" in {getattr(item, "name", "") for item in c.body}]
    assert sorted(stores) == ["FaultStore", "LmdbStore", "MemoryStore", "SqliteStore", "Store"]
