"""Which replies are read together, by the blocks that they begin with."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.sharing import Family, families


def table(*runs: tuple[int, int]) -> np.ndarray:
    """Runs of slots, each a first slot and a count."""
    return np.concatenate([np.arange(first, first + count) for first, count in runs]).astype(np.intp)


@st.composite
def trees(draw: st.DrawFn) -> list[np.ndarray]:
    """Block tables that go apart where blocks of a few names do: the same name, the same slot at that depth."""
    names = draw(st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=8))
    slots: dict[tuple[int, ...], int] = {}
    return [
        np.array(
            [slots.setdefault(tuple(path[: i + 1]), len(slots)) for i in range(len(path))], dtype=np.intp
        )
        for path in names
    ]


@given(trees())
def test_each_is_in_one_family_and_has_its_blocks(tables):
    found = families(tables)
    assert sorted(member for family in found for member in family.members) == list(range(len(tables)))
    for family in found:
        first, *others = (tables[member][: family.shared].tolist() for member in family.members)
        assert all(other == first for other in others)
        assert len(first) == family.shared
        lengths = [len(tables[member]) for member in family.members]
        assert lengths == sorted(lengths, reverse=True)


def test_what_shares_nothing_is_one_family():
    assert families([table((0, 3)), table((10, 9)), table((20, 5))]) == [Family((1, 2, 0), 0)]


def test_nothing_is_no_family():
    assert families([]) == []


def test_one_alone_shares_nothing():
    assert families([table((0, 30))]) == [Family((0,), 0)]


def test_all_share_up_to_where_the_first_goes_apart():
    prefix = (0, 30)
    assert families([table(prefix, (50, 4)), table(prefix), table(prefix, (60, 2))]) == [
        Family((0, 2, 1), 30)
    ]


def test_documents_go_apart_if_that_saves_more_than_it_reads_again():
    """Two documents of 40 blocks behind a system prompt of 20, then one of 4 behind it."""
    system, first, second, short = (0, 20), (100, 40), (200, 40), (300, 4)
    found = families(
        [
            table(system, document, (1000 + n, 1))
            for n, document in enumerate([first, second] * 3 + [short] * 2)
        ]
    )
    assert sorted(found, key=lambda family: family.members) == [
        Family((0, 2, 4), 60),
        Family((1, 3, 5), 60),
        Family((6, 7), 20),
    ]
