"""Lends what may be replaced while it is in use."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from kvstore.disk.presence import Presence

T = TypeVar("T")


class _Lent(NamedTuple, Generic[T]):
    one: T
    borrowers: Presence


class Lender(Generic[T]):
    """Lends the current one. One that was replaced is closed when its last borrower is back.

    Replacing waits for nobody: a borrower may hang in a read from the very disk that is at fault. Any thread
    may call anything here.
    """

    def __init__(self, first: T, close: Callable[[T], None]) -> None:
        self._close = close
        self._lent = _Lent(first, Presence())
        self._replaced: list[_Lent[T]] = []
        """What somebody has still, or had a moment ago."""
        self._sorting_out = threading.Lock()  # one after the other: two would close the same one
        self._alone = threading.Lock()
        """Held by who has, or waits to have, the current one alone."""

    @property
    def current(self) -> T:
        """The one that is lent now."""
        return self._lent.one

    @contextmanager
    def lend(self) -> Iterator[T]:
        """The current one, which is not closed before the body of the `with` ends. Who has one must not ask for another."""
        try:
            while True:
                lent = self._lent
                with lent.borrowers.come():
                    # who replaces it, or wants it alone, says so first, and then looks who has it
                    if lent is self._lent and not self._alone.locked():
                        yield lent.one
                        return
                with self._alone:
                    pass
        finally:
            if self._replaced:
                self._close_replaced()

    @contextmanager
    def alone(self, timeout_s: float) -> Iterator[T]:
        """The current one while nobody else has it; who asks for it meanwhile waits until the body of the `with` ends.

        Raises TimeoutError if borrowers do not come back in time. Who calls it must have borrowed nothing.
        """
        with self._alone:
            if not self._lent.borrowers.wait_until_over(timeout_s):
                raise TimeoutError(f"somebody has it for more than {timeout_s:g} seconds")
            yield self.current

    def replace(self, new: T) -> None:
        """Lend `new` from now on."""
        with self._sorting_out:
            old, self._lent = self._lent, _Lent(new, Presence())
            self._replaced.append(old)
        self._close_replaced()

    def close(self) -> None:
        """Close the current one. Nobody may borrow any more."""
        self._close_replaced()
        self._close(self.current)

    def _close_replaced(self) -> None:
        """Close what was replaced and nobody has any more."""
        with self._sorting_out:
            idle = [lent for lent in self._replaced if not lent.borrowers]
            self._replaced = [lent for lent in self._replaced if lent not in idle]
        for lent in idle:
            self._close(lent.one)
