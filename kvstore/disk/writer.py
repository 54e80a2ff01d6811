"""The one thread that changes an LMDB environment.

LMDB ties a write transaction to its thread: one that is committed elsewhere than it began raises nothing, and
the next one never starts. So everything that writes is a function run here, from begin to commit.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from kvstore.errors import StoreClosed

T = TypeVar("T")


class Writer:
    """Runs functions one after the other on its own thread, and `sync` some time after one that wrote.

    `sync` is called on the same thread, `sync_interval_s` after a change that `changed` reported, if nothing
    synced in between; it must not raise. With nothing to do the thread sleeps.
    """

    def __init__(self, sync: Callable[[], None], sync_interval_s: float) -> None:
        self._sync = sync
        self._sync_interval_s = sync_interval_s
        self._sync_due_s: float | None = None
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()  # no job may be queued behind the end of the thread: it would never run
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="kvstore-writer", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[], T]) -> T:
        """Run `job` on the writer's thread; answer what it answers, raise what it raises. Blocks."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise StoreClosed("the writer has ended")
            self._jobs.put((job, future))
        return future.result()

    def post(self, job: Callable[[], object]) -> None:
        """Run `job` after what is queued, and do not wait. What it raises is lost; it may never run if the
        writer ends.
        """
        with self._lock:
            if not self._closed:
                self._jobs.put((job, Future()))

    def changed(self) -> None:
        """Start the clock for a sync, unless it runs. For jobs: called on the writer's thread."""
        if self._sync_due_s is None:
            self._sync_due_s = time.monotonic() + self._sync_interval_s

    def synced(self) -> None:
        """Stop that clock. For jobs."""
        self._sync_due_s = None

    def close(self) -> None:
        """Run what is queued, then end the thread. Safe to call twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            timeout_s = None if self._sync_due_s is None else self._sync_due_s - time.monotonic()
            if timeout_s is not None and timeout_s <= 0:
                self.synced()  # before it, so that a sync that failed can ask for another
                self._sync()
                continue
            try:
                queued = self._jobs.get(timeout=timeout_s)
            except Empty:
                continue
            if queued is None:
                return
            _run(*queued)
            del queued  # or its blocks would stay in memory until the next job


def _run(job: Callable[[], Any], future: Future[Any]) -> None:
    try:
        result = job()
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits; this thread must live on
        future.set_exception(error)
    else:
        future.set_result(result)
