"""Memory that is freed and asked for again is not made of new pages."""

import subprocess
import sys

from kvstore.disk import allocator

MANY_AND_AGAIN = """
from resource import RUSAGE_SELF, getrusage

import numpy as np

from kvstore.disk.allocator import keep_freed_memory

keep_freed_memory()
for _ in range(4):
    begin = getrusage(RUSAGE_SELF).ru_minflt
    records = [np.ones(1 << 20, np.uint8) for _ in range(8)]
    del records
print(getrusage(RUSAGE_SELF).ru_minflt - begin)
"""


def test_what_was_freed_is_there_again():
    """Eight megabytes are two thousand pages. In a process of its own: glibc changes its ways by what was freed before."""
    done = subprocess.run([sys.executable, "-c", MANY_AND_AGAIN], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.keep_freed_memory()
