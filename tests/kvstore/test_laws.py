"""Every store keeps every law."""

import pytest

from kvstore.testing import LAWS


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, store):
    law(store, store.raw())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_fault_store_without_faults_keeps_the_laws(law, store, wrapped):
    law(wrapped, store.raw())
