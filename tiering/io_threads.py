"""Threads for blocking I/O that cannot hold up the end of the program."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Jobs(Protocol):
    """Something that runs jobs later: threads, or a test that chooses when and in which order."""

    def put(self, job: Callable[[], None]) -> None:
        """Run a job soon. It must not raise: it reports by itself."""

    def close(self, timeout_s: float) -> bool:
        """Let jobs that were put end, for so long; False if one still runs. Idempotent."""


class IoThreads:
    """`Jobs` on daemon threads. With one thread, jobs run in the order in which they were put.

    Unlike the standard library's executor it never makes interpreter exit wait for a job that hangs in the kernel.
    """

    def __init__(self, name: str, num_threads: int) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"kvtide-{name}-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        for _ in self._threads:
            self._jobs.put(None)
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)
