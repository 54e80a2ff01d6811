"""The garbage collector waits, and is then as it was."""

import gc

import pytest

from kvstore.collector import paused


@pytest.fixture(autouse=True)
def enabled():
    """Nothing that tests of others have left is counted."""
    assert gc.isenabled()
    gc.collect()


def _full_collections():
    return gc.get_stats()[2]["collections"]


def test_many_objects_are_looked_at_once_and_are_old_then():
    before = [each["collections"] for each in gc.get_stats()]
    with paused():
        kept = [[] for _ in range(150_000)]
        assert [each["collections"] for each in gc.get_stats()] == before
    assert gc.isenabled()
    assert _full_collections() == before[2] + 1
    assert sum(map(len, (gc.get_objects(0), gc.get_objects(1)))) < len(kept)


def test_few_objects_cost_no_look_at_all_there_is():
    before = _full_collections()
    with paused():
        kept = [[] for _ in range(10_000)]
    assert kept
    assert _full_collections() == before


def test_whoever_has_disabled_it_finds_it_so():
    gc.disable()
    try:
        with paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_is_enabled_after_an_error():
    with pytest.raises(KeyError), paused():
        raise KeyError
    assert gc.isenabled()
