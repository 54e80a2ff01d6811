"""Every store keeps every law."""

import pytest

from kvstore.layers import Delay, DirtyMiss, FaultStore, Gate, Hang
from kvstore.testing import LAWS


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, store):
    law(store, store.raw())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("store", ["memory", "lmdb"], indirect=True)
def test_a_fault_store_without_faults_keeps_the_laws(law, store):
    layer = FaultStore(store)
    law(layer, layer.raw())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("store", ["memory", "lmdb"], indirect=True)
def test_faults_that_break_no_promise_break_no_law(law, store):
    """Slow calls, calls that stall and go on, and junk where the contract says that nothing is to be found."""
    gate, slept = Gate(), []
    gate.open()
    layer = FaultStore(store, [Delay(1.0), Hang(gate), DirtyMiss()], sleep=slept.append)
    law(layer, layer.raw())
    assert slept
