"""A few threads that wait for the cache, so that the event loop does not."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class TooManyCalls(Exception):
    """As many calls run and wait as may."""


class CallThreads:
    """Runs calls on `num_threads` daemon threads, and lets `num_waiting` more wait; any thread may use it.

    Unlike the standard library's executor it refuses what is too much, and never makes the interpreter's exit wait
    for a call that does not end. Threads are started as they are needed.
    """

    def __init__(self, name: str, num_threads: int, num_waiting: int) -> None:
        self._name, self._num_threads = name, num_threads
        self._max_calls = num_threads + num_waiting
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._num_calls = 0
        self._closed = False

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """Have a call run soon. Raises TooManyCalls where that cannot be promised, or after `close`."""
        future: Future[_T] = Future()
        with self._lock:
            if self._closed or self._num_calls >= self._max_calls:
                raise TooManyCalls
            self._num_calls += 1
            if len(self._threads) < min(self._num_calls, self._num_threads):
                name = f"kvtide-{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._calls.put((future, call))
        return future

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            self._answer(*item)
            del item  # or the last result lives until the next call

    def _answer(self, future: Future[Any], call: Callable[[], Any]) -> None:
        result, error = None, None
        if runs := future.set_running_or_notify_cancel():
            try:
                result = call()
            except BaseException as raised:  # noqa: BLE001 - a thread's top: it reaches whoever waits
                error = raised
        with self._lock:  # before the answer: who has it may call again at once
            self._num_calls -= 1
        if runs and error is not None:
            future.set_exception(error)
        elif runs:
            future.set_result(result)

    def close(self) -> None:
        """Take no more calls. Those that run go on, and nobody waits for them. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for _ in self._threads:
                self._calls.put(None)
