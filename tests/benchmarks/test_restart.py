"""What `make bench-restart` does, with a hundred blocks."""

import subprocess
import sys

import pytest

from benchmarks.restart import _start_row, build, gates, restart


def test_a_store_that_was_built_is_known_again(tmp_path):
    build(tmp_path, "branching", 128, seed=0)
    row = restart(tmp_path, 128)
    assert row["blocks"] == 128
    assert 0 < row["opened_s"] < row["first_lookup_s"] <= row["all_in_s"]
    assert row["cpu_s"] > 0


def test_a_store_that_is_not_known_whole_is_an_error(tmp_path):
    build(tmp_path, "branching", 64, seed=0)
    with pytest.raises(AssertionError, match="64 of 128 blocks"):
        restart(tmp_path, 128)


def test_the_first_of_a_start_is_all_that_is_not_the_standard_library():
    """Importing what is measured is measured."""
    code = "import benchmarks.engine_start, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"kvstore", "tiering", "engine", "numpy", "torch"} & set(done.stdout.split())


def test_ours_is_what_an_engine_takes_longer_than_the_start_of_theirs_beside_it():
    pairs = [
        ({"all_s": all_s, "cpu_s": 5.0}, {"all_s": theirs_s, "cpu_s": 4.0})
        for all_s, theirs_s in [(5, 4), (9, 7), (6, 3)]
    ]
    row = _start_row(pairs, compiled=True)
    assert (row["all_s"], row["theirs_all_s"], row["ours_s"], row["ours_cpu_s"]) == (6, 4, 2, 1)
    assert row["ours_s_spread"] == [1, 3]


def test_gates_have_the_bounds_of_what_was_asked_for():
    stores = [
        {"blocks": 100_000, "shape": "chains", "all_in_s": 0.4, "first_lookup_s": 0.2},
        {"blocks": 500, "shape": "chains", "all_in_s": 9.0, "first_lookup_s": 9.0},
    ]
    starts = [{"ours_compiled": True, "all_s": 6.0, "ours_s": 2.0}]
    held = {gate["name"]: (gate["bound"], gate["holds"]) for gate in gates(stores, starts)}
    assert held == {
        "100,000 blocks, chains, files in the page cache: all in": (0.5, True),
        "100,000 blocks, chains, files in the page cache: first lookup": (0.1, False),
        "engine start": (8.0, True),
        "engine start, ours": (1.0, False),
    }
