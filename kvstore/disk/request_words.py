"""The words of memory by which those who want reads, and the threads that make them, tell each other: see kvstore.disk.requests."""

from typing import Final

FREE, QUEUED, BEGUN, DONE, TAKEN_BACK = range(5)
"""States of a row: nobody's; waiting for a thread; a thread's; its caller's again, with an answer; no longer wanted, but a thread's still, or to be."""
STATE, NUM_BYTES, OFFSET, ANSWER, PIECE = range(5)
"""Words of a row: its state; how many bytes are wanted, and from where in the file; what the read has answered; and in which piece they are."""
ENDED: Final = 8
"""The word at which a semaphore of the C library's begins, posted when a request is done: four words with glibc, no more than these eight anywhere."""
ROW: Final = 16

FREED: Final = 0
"""Where among the words about the memory a semaphore begins, which is posted when a piece of it is given back; then come those words, as of a request."""
PIECES, PIECE_BYTES, NUM_GIVEN, HELD, LET_GO, TIMES = range(ENDED, ENDED + 6)
"""The pieces that nobody has, a bit each; how large one is; how many were given back so far; those that caches may hold still, and those that
they were made to let go of, a bit each; and two times, of reads to the former and the latter: nanoseconds a MiB, 0 if there was none yet.
"""
MOST_PIECES: Final = 62

PREAD, WAIT, POST, CLOCK = range(4)
