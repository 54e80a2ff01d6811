"""Lends what may be replaced while it is in use."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Lender(Generic[T]):
    """Lends the current one. One that was replaced is closed when its last borrower is back.

    Replacing waits for nobody: a borrower may hang in a read from the very disk that is at fault. Any thread
    may call anything here.
    """

    def __init__(self, first: T, close: Callable[[T], None]) -> None:
        self.current = first
        self._close = close
        self._lent = {id(first): 0}
        self._lock = threading.Lock()  # a borrower must not get one that another thread is closing

    @contextmanager
    def lend(self) -> Iterator[T]:
        """The current one, which is not closed before the body of the `with` ends."""
        with self._lock:
            one = self.current
            self._lent[id(one)] += 1
        try:
            yield one
        finally:
            with self._lock:
                self._lent[id(one)] -= 1
                last = one is not self.current and self._lent[id(one)] == 0
                if last:
                    del self._lent[id(one)]
            if last:
                self._close(one)

    def replace(self, new: T) -> None:
        """Lend `new` from now on."""
        with self._lock:
            old, self.current = self.current, new
            self._lent[id(new)] = 0
            idle = self._lent[id(old)] == 0
            if idle:
                del self._lent[id(old)]
        if idle:
            self._close(old)

    def close(self) -> None:
        """Close the current one. Nobody may borrow any more."""
        self._close(self.current)
