"""`make faults` itself: what it counts of tries that hang, that end their process, and that are over."""

import sys

import pytest

from benchmarks.faults.__main__ import failed, measure

# Plays the tries [first, end) as it is told by the list: each is over, hangs for good, or ends the process. What is said
# before that is said at once, so that no limit is too short for it.
WORKER = """
import json, os, sys, threading

first, end = map(int, sys.argv[-2:])
over = {"requests": 2, "served_wrong": 0, "requests_failed": 0, "hits": 1, "complaint": ""}
lines = [{"ready": True}]
for fate in sys.argv[1].split(",")[first:]:
    if fate != "over":
        break
    lines.append(over)
print("\\n".join(map(json.dumps, lines)), flush=True)
if fate == "hangs":
    threading.Event().wait()
if fate == "ends":
    os._exit(3)
"""


def played(fates, num_tries):
    worker = (sys.executable, "-c", WORKER, ",".join(fates))
    return measure("store", "any", num_tries, 0.1, worker)


def test_a_try_that_hangs_is_ended_and_counted_and_the_next_one_is_played():
    row = played(["over", "hangs", "over", "hangs", "over"], 5)
    assert (row["tries"], row["tries_hung"], row["requests"], row["hits"]) == (5, 2, 6, 3)
    assert row["complaints"] == ["try 1 was not over after 0.1 s", "try 3 was not over after 0.1 s"]
    assert row["processes_ended"] == 0
    assert failed(row)


def test_the_last_try_may_hang_and_so_may_the_end():
    for fates in (["over", "hangs"], ["over", "over", "hangs"]):
        row = played(fates, 2)
        assert (row["tries"], row["tries_hung"]) == (2, 1)
        assert failed(row)


def test_a_try_that_ends_its_process_is_no_hang():
    row = played(["over", "ends", "over"], 3)
    assert (row["tries"], row["tries_hung"], row["processes_ended"], row["requests"]) == (3, 0, 1, 4)
    assert row["complaints"][0].startswith("process ended with 3")
    assert not failed(row)


def test_a_worker_that_does_not_start_is_no_row():
    with pytest.raises(RuntimeError, match="does not start"):
        measure("store", "any", 1, 0.1, (sys.executable, "-c", "raise SystemExit('no')"))
