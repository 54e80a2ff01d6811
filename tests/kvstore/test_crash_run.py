"""`make crash` itself: a few kills with nothing to complain of, and that it complains where there is something."""

import random

import pytest

from benchmarks.crash.store_level import Blocks, Expected, complaints, killed_once, open_store

BLOCKS = [0, 1, 2]


@pytest.fixture
def blocks(tmp_path) -> Blocks:
    return Blocks(tmp_path / "first")


@pytest.fixture
def expected(tmp_path, blocks) -> Expected:
    """Blocks that a writer has put, and that are there."""
    with open_store(tmp_path / "kv") as store:
        store.put_many([blocks.refs[i] for i in BLOCKS], [blocks.data[i] for i in BLOCKS])
    told = Expected()
    told.hear(b"begin put 0 1 2\nend put 0 1 2\n")
    return told


def test_killed_writers_leave_nothing_to_complain_of(tmp_path, blocks):
    rng, expected = random.Random(3), Expected()
    for _ in range(6):
        killed_once(tmp_path / "kv", blocks, expected, rng)
    assert list(complaints(tmp_path / "kv", blocks, expected)) == []


def test_what_is_as_acknowledged_is_no_complaint(tmp_path, blocks, expected):
    assert list(complaints(tmp_path / "kv", blocks, expected)) == []
    assert expected.acknowledged == 3


def test_a_block_that_is_missing_is_one(tmp_path, blocks, expected):
    with open_store(tmp_path / "kv") as store:
        store.delete_many([blocks.refs[1].key])
    assert list(complaints(tmp_path / "kv", blocks, expected)) == [
        "block 1 is missing, which nobody has asked for"
    ]


def test_a_block_that_was_deleted_and_is_there_is_one(tmp_path, blocks, expected):
    expected.hear(b"begin delete 2\nend delete 2\n")
    assert list(complaints(tmp_path / "kv", blocks, expected)) == [
        "block 2 is there, which nobody has asked for"
    ]


def test_what_was_begun_may_be_either(tmp_path, blocks, expected):
    expected.hear(b"begin delete 0\nend delete 0\nbegin put 0 5\nbegin delete 1\nend del")
    assert [sorted(may_be) for may_be in expected.may_be[:2]] == [[False, True], [False, True]]
    assert list(complaints(tmp_path / "kv", blocks, expected)) == []


def test_a_wrong_block_and_a_damaged_one_are_complaints(tmp_path, blocks, expected):
    with open_store(tmp_path / "kv") as store:
        store.put_many([blocks.refs[0]], [blocks.data[7]])
        store.raw().corrupt(blocks.refs[1].key)
    assert [each.split(":")[0] for each in complaints(tmp_path / "kv", blocks, expected)] == [
        "block 0 is served wrong",
        "block 1 fails a check",
        "block 1 is missing, which nobody has asked for",
    ]


def test_an_empty_start_is_a_complaint(tmp_path, blocks, expected):
    (tmp_path / "kv" / "v1" / "meta" / "data.mdb").write_bytes(bytes(1 << 16))
    found = list(complaints(tmp_path / "kv", blocks, expected))
    assert found[0].startswith("started empty")
    assert len(found) == 4
