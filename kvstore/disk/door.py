"""Lets calls in while a store is open, and lets its closing wait for them."""

import math
import os
import threading

from kvstore.disk.presence import Presence
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
        self._inside = Presence()
        self._open = True
        self._closing = threading.Lock()  # two would take themselves for the first

    def enter(self) -> threading.Lock:
        """`with door.enter():` stays inside for the body. Raises StoreClosed when closed, and in the child of a fork."""
        if not self._is_here:
            raise StoreClosed(
                f"{self._name} was opened by process {self._process}: a forked one opens its own"
            )
        mark = self._inside.come()
        try:
            if not self._open:  # who closes says so first, and then looks who is inside
                raise StoreClosed(f"{self._name} is closed")
            return mark
        finally:
            del mark  # see Presence

    def close(self) -> bool:
        """Let nobody else in and wait until all have left. Answers whether this call closed the door, which the child of a fork cannot."""
        if not self._is_here:
            return False
        with self._closing:
            first, self._open = self._open, False
        self._inside.wait_until_over(math.inf)
        return first

    @property
    def _is_here(self) -> bool:
        return os.getpid() == self._process
