"""The words of memory by which those who want reads, and the threads that make them, tell each other: see kvstore.disk.requests."""

from typing import Final

FREE, TAKEN, QUEUED, BEGUN, DONE, GIVEN_UP = range(6)
"""States of a row: nobody's; whose words are being written; waiting for a thread; a thread's; its caller's again, with an answer; and a
thread's still, but no longer wanted.
"""
STATE, NUM_BYTES, OFFSET, TICKET, ANSWER, PIECE = range(6)
"""Words of a row: its state; how many bytes are wanted, and from where in the file; how many were put before it; what the read has answered;
and in which piece they are.
"""
ENDED: Final = 8
"""The word at which a semaphore of the C library's begins, posted when a request is done: four words with glibc, no more than these eight anywhere."""
ROW: Final = 16

FREED, WANTED = 0, 8
"""Where among the words about all rows two semaphores begin, posted when a piece of memory is given back, and when a request is put."""
NUM_THREADS, NUM_PUT, NUM_QUEUED, PIECES, PIECE_BYTES, MEMORY, NUM_GIVEN, HELD, LET_GO, TIMES = range(16, 26)
"""Then: how many threads there are; how many requests have had a ticket, and were put; the pieces that nobody has, a bit each; how large one is; where the first begins; how many were given back so
far; those that caches may hold still, and those that they were made to let go of, a bit each; and two times, of reads to the former and
the latter: nanoseconds a MiB, 0 if there was none yet.
"""
WORDS: Final = TIMES + 2
MOST_PIECES: Final = 62

PREAD, WAIT, TIMED_WAIT, TRY_WAIT, POST, CLOCK, MINCORE = range(7)
"""Of functions."""

RUN_BEGIN, RUN_BYTES, RUN_LEAST, RUN_ADDRESS, FIRST, END = range(6)
"""Words of a run: where in the file it begins; how many bytes are to be read, and how many there must be; its address in memory, where it need not be
read, 0 elsewhere; and the first of its records, and the first that is not.
"""
RUN: Final = 6

AT, NUM_ASKED, IS_OPEN = range(3)
"""Words of a call: the run that is next; how many were asked for; and whether that one is being looked at."""
CALL: Final = 3

OVER, UNPROVEN, UNREAD, UNANSWERED = range(4)
"""Why a call does not go on by itself: there is no run any more; one is there, of which not all was proven; one is the caller's to read; the disk has
not answered in a while, or a signal has come.
"""
