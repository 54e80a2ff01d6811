"""Copies of single slots that are one copy of several."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tiering.transfer.runs import Run, runs


@dataclass
class Memory:
    piece_slots: int = 1000
    address: int = 0


WHOLE = Memory()


def test_slots_that_follow_each_other_in_both_memories_are_one_run():
    assert runs(WHOLE, [5, 6, 7], WHOLE, [2, 3, 4]) == [Run(5, 2, 3)]


def test_the_order_of_the_pairs_does_not_matter():
    assert runs(WHOLE, [7, 5, 6], WHOLE, [4, 2, 3]) == [Run(5, 2, 3)]


def test_slots_that_follow_each_other_on_one_side_only_are_not():
    assert runs(WHOLE, [5, 6, 7], WHOLE, [4, 3, 2]) == [Run(5, 4, 1), Run(6, 3, 1), Run(7, 2, 1)]


def test_a_run_ends_with_its_piece_on_either_side():
    assert runs(WHOLE, range(6), Memory(4), range(6)) == [Run(0, 0, 4), Run(4, 4, 2)]
    assert runs(Memory(4), range(6), WHOLE, range(6)) == [Run(0, 0, 4), Run(4, 4, 2)]


def test_no_slots_are_no_run():
    assert runs(WHOLE, [], WHOLE, []) == []


@given(
    st.lists(st.integers(0, 40), unique=True, max_size=20),
    st.data(),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_every_pair_is_in_one_run_and_no_two_runs_could_be_one(to, data, to_piece, fro_piece):
    fro = data.draw(st.lists(st.integers(0, 40), unique=True, min_size=len(to), max_size=len(to)))
    found = runs(Memory(to_piece), to, Memory(fro_piece), fro)
    pairs = [(run.destination + i, run.source + i) for run in found for i in range(run.length)]
    assert sorted(pairs) == sorted(zip(to, fro, strict=True))
    for run in found:
        last = run.length - 1
        assert run.destination // to_piece == (run.destination + last) // to_piece
        assert run.source // fro_piece == (run.source + last) // fro_piece
    for one in found:
        for other in found:
            adjacent = (one.destination + one.length, one.source + one.length) == other[:2]
            ends = other.destination % to_piece == 0 or other.source % fro_piece == 0
            assert not adjacent or ends
