"""What a disk store does when LMDB fails: it goes on with empty tables, as soon as the disk lets it."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from kvstore.disk.environment import Unsound, lmdb_errors
from kvstore.disk.lender import Lender
from kvstore.disk.tables import Tables
from kvstore.disk.writer import Writer
from kvstore.errors import StoreError, StoreFailed

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Recovery:
    """Stands before the tables in use: whoever reads or writes by way of it meets tables that are sound, or a StoreError.

    Any thread may call it, save `guarded`. Tables are replaced on the writer's thread.
    """

    fresh_starts: int
    """How often other tables took the place of some that failed."""

    def __init__(
        self, lender: Lender[Tables], fresh: Callable[[], Tables], writer: Writer, root: Path
    ) -> None:
        """`fresh` makes empty tables in place of those in use, or raises a StoreError. `root`: theirs, for messages."""
        self._lender, self._fresh, self._writer, self._root = lender, fresh, writer, root
        self.fresh_starts = 0
        self._failure: Exception | None = None
        self._lock = threading.Lock()  # readers find damage at the same time

    @property
    def is_sound(self) -> bool:
        """As far as anybody has noticed."""
        return self._failure is None

    def check_sound(self) -> None:
        """Raise unless the tables are sound. If they are not, they are being replaced, or will be tried again."""
        failure, tables = self._failure, self._lender.current
        if failure is not None:
            self._writer.post(lambda: self._replace(tables))
            self._raise_failed(failure)

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        """The tables, open until the body ends. What LMDB raises there turns into a StoreError, and has the
        tables replaced if it means that they are not sound.
        """
        with self._lender.lend() as tables:
            try:
                tables.check_files()
                with lmdb_errors("reading"):
                    yield tables
            except Unsound as error:
                with self._lock:
                    if tables is self._lender.current:
                        self._failure = error  # nobody else goes in
                self._writer.post(lambda: self._replace(tables))
                raise

    def guarded(self, job: Callable[[], T]) -> T:
        """Run a job of the writer's, on its thread, on tables that are sound; they are replaced first, or after it, if not."""
        if self._failure is not None:
            self._replace(self._lender.current)
        if self._failure is not None:
            self._raise_failed(self._failure)
        try:
            self._lender.current.check_files()
            return job()
        except Unsound as error:
            self._failure = error
            self._replace(self._lender.current)
            raise

    def _replace(self, failed: Tables) -> None:
        """Go on with empty tables in place of these, if nobody has done so yet, and if the disk lets us."""
        if failed is not self._lender.current or self._failure is None:
            return
        facts = {"path": self._root, "error": self._failure}
        _log.error("%(path)s failed: %(error)s", facts, extra=facts)
        try:
            fresh = self._fresh()
        except StoreError as error:
            facts = {"path": self._root, "error": error}
            _log.error("%(path)s cannot start afresh yet: %(error)s", facts, extra=facts)
            return
        self.fresh_starts += 1  # first: a scan that borrows the new ones must see it
        with self._lock:
            self._lender.replace(fresh)
            self._failure = None
        self._writer.changed()

    def _raise_failed(self, failure: Exception) -> NoReturn:
        raise StoreFailed(f"{self._root} failed earlier: {failure}", temporary=True) from failure
