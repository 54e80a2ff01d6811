"""Lets calls in while a store is open, and lets its closing wait for them."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kvstore.errors import StoreClosed


class Door:
    """Open until `close`, which returns when everybody who came in has left. Any thread may call it.

    An LMDB environment must not be closed while a thread reads from its map: that read would be a
    segmentation fault. Nor may it be used in the child of a fork, which shares its table of readers and has none of its threads: what the child
    does there the parent takes for damage. So the door is closed to any other process than that which made it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = os.getpid()
        self._inside = 0
        self._open = True
        self._changed = threading.Condition()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Stay inside for the body of the `with`. Raises StoreClosed when closed, and in the child of a fork."""
        if not self._is_here:  # first: a thread that the child does not have may have held the lock
            raise StoreClosed(
                f"{self._name} was opened by process {self._process}: a forked one opens its own"
            )
        with self._changed:
            if not self._open:
                raise StoreClosed(f"{self._name} is closed")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self) -> bool:
        """Let nobody else in and wait until all have left. Answers whether this call closed the door, which the child of a fork cannot."""
        if not self._is_here:
            return False
        with self._changed:
            first = self._open
            self._open = False
            self._changed.wait_for(lambda: self._inside == 0)
            return first

    @property
    def _is_here(self) -> bool:
        return os.getpid() == self._process
