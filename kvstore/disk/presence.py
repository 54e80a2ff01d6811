"""Who is somewhere, and when nobody is any more."""

import threading
import time
from typing import Final
from weakref import ref

_LOOK_EVERY_S: Final = 0.001
"""Seldom does anybody wait, and nobody for long."""


class Presence:
    """Whoever comes is given a mark, and is there as long as that exists: `with presence.come():` stays for the body. Any thread may call it.

    An interrupt (KeyboardInterrupt) may come between any two calls in Python: behind one that counts who is there, and before the one that
    would count them off. A mark leaves with its last reference, which the `with` holds, and is of a type of C, as is all that is called
    then: nobody is there for ever who was interrupted. It serves for nothing else, so that it may be any lock.
    """

    def __init__(self) -> None:
        self._marks: set[ref[threading.Lock]] = set()

    def __len__(self) -> int:
        return len(self._marks)

    def come(self) -> threading.Lock:
        """A mark, to be held by nothing but a `with`. Does not block."""
        mark = threading.Lock()
        try:
            self._marks.add(ref(mark, self._marks.discard))
            return mark
        finally:
            del mark  # or the traceback of an interrupt would hold it

    def wait_until_over(self, timeout_s: float) -> bool:
        """Whether nobody is there any more before so much time has passed."""
        deadline_s = time.monotonic() + timeout_s
        while self._marks:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_LOOK_EVERY_S)
        return True
