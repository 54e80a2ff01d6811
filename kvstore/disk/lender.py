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
        self._closed_off = False
        """Whether somebody has, or waits to have, the current one alone."""
        # a borrower must not get one that another thread is closing
        self._changed = threading.Condition(threading.Lock())

    @contextmanager
    def lend(self) -> Iterator[T]:
        """The current one, which is not closed before the body of the `with` ends. Who has one must not ask for another."""
        with self._changed:
            while self._closed_off:
                self._changed.wait()
            one = self.current
            self._lent[id(one)] += 1
        try:
            yield one
        finally:
            with self._changed:
                self._lent[id(one)] -= 1
                last = one is not self.current and self._lent[id(one)] == 0
                if last:
                    del self._lent[id(one)]
                if self._closed_off:
                    self._changed.notify_all()
            if last:
                self._close(one)

    @contextmanager
    def alone(self, timeout_s: float) -> Iterator[T]:
        """The current one while nobody else has it; who asks for it meanwhile waits until the body of the `with` ends.

        Raises TimeoutError if borrowers do not come back in time. One caller at a time, who must have borrowed nothing.
        """
        with self._changed:
            self._closed_off = True
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self._lent[id(self.current)] == 0, timeout_s):
                    raise TimeoutError(f"somebody has it for more than {timeout_s:g} seconds")
            yield self.current
        finally:
            with self._changed:
                self._closed_off = False
                self._changed.notify_all()

    def replace(self, new: T) -> None:
        """Lend `new` from now on."""
        with self._changed:
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
