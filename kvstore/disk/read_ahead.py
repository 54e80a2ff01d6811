"""Reads that other threads make before their results are needed."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Final, TypeAlias

Read: TypeAlias = Callable[[], None]

_MOST_WAITING: Final = 64
"""Reads that no thread has begun with: more are the caller's, as where all threads hang in the kernel."""


class ReadAhead:
    """Daemon threads, which begin with the first read if they have not before. Any thread may call it.

    A read that no thread has begun with can be taken back, so that whoever needs it does not wait for those of others for ever: one
    that hangs stops its own caller only. Unlike the standard library's executor it never makes interpreter exit wait for one.
    """

    def __init__(self, name: str, num_threads: int) -> None:
        self._name, self._num_threads = name, num_threads
        self._lock = threading.Lock()  # two callers would begin threads for both
        self._threads: list[threading.Thread] = []
        self._reads: SimpleQueue[tuple[Future[None], Read] | None] = SimpleQueue()

    def put(self, read: Read) -> Future[None]:
        """Have it done soon. It is cancelled where there is no thread for it: then it is the caller's to do."""
        self.begin()
        future: Future[None] = Future()
        if self._threads and self._reads.qsize() < _MOST_WAITING:
            self._reads.put((future, read))
        else:
            future.cancel()
        return future

    def begin(self) -> None:
        """Have the threads run, as far as the system has so many."""
        if len(self._threads) == self._num_threads:
            return
        with self._lock:
            for number in range(len(self._threads), self._num_threads):
                thread = threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more of them, or the program is about to end
                    return
                self._threads.append(thread)

    def close(self) -> None:
        """No read may be on its way, and none may be put any more."""
        for _ in self._threads:
            self._reads.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (queued := self._reads.get()) is not None:
            _do(*queued)
            del queued  # or it kept the caller's buffer until the next one


def _do(future: "Future[None]", read: Read) -> None:
    if future.set_running_or_notify_cancel():
        try:
            read()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
            future.set_exception(error)
        else:
            future.set_result(None)
