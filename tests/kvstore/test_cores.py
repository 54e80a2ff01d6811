"""How many cores there are, also where the system tells only of the whole machine's."""

import os

import pytest

from kvstore.cores import num_cores


def test_those_of_the_process_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert num_cores() == 3


@pytest.mark.parametrize(("told", "expected"), [(12, 12), (None, 1)])
def test_elsewhere_than_on_linux_all_of_them(monkeypatch, told, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: told)
    assert num_cores() == expected
