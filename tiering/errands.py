"""Work that other threads have the cache's own thread do, a slice at a time between its steps."""

import queue
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

Answer = TypeVar("Answer")

Steps: TypeAlias = Generator[Callable[[], bool] | None, None, Answer]
"""An errand in steps. It yields None to be gone on with when there is time, or a question, to be gone on with when
that is answered with True; what it returns is the answer. A step should take a small part of a slice."""


def at_once(function: Callable[[], Answer]) -> Callable[[], Steps[Answer]]:
    """An errand of one step. It should take well below a slice."""

    def begin() -> Steps[Answer]:
        return function()
        yield  # what makes it a generator

    return begin


SLICE_S: Final = 1e-3
"""For how long errands together may keep the thread in one turn; the step that is under way then is ended."""


@dataclass(slots=True)
class _Errand:
    begin: Callable[[], Steps[Any]]
    future: "Future[Any]"
    steps: Steps[Any] | None = None
    waits_for: Callable[[], bool] | None = None

    @property
    def is_ready(self) -> bool:
        return self.waits_for is None or self.waits_for()


class Errands:
    """A queue of errands. Any thread may `post`; one thread, the cache's own, runs them.

    They take turns, a step each, the one that came first beginning. Who posts may wait for the future; whatever
    happens it is completed, at the latest by `close`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, slice_s: float = SLICE_S) -> None:
        """`clock`: in seconds, for what a slice takes."""
        self._clock, self._slice_s = clock, slice_s
        self._posted: queue.SimpleQueue[_Errand] = queue.SimpleQueue()
        self._under_way: deque[_Errand] = deque()
        self._closed: Exception | None = None

    def post(self, begin: Callable[[], Steps[Answer]]) -> "Future[Answer]":
        """Have this done: `begin` is called, and its steps are made, by the thread that runs errands.

        Does not block; where errands are not done any more the future fails at once.
        """
        future: Future[Answer] = Future()
        self._posted.put(_Errand(begin, future))
        if self._closed is not None:  # looked at after it was put: whoever closes either sees it or is seen
            self._fail(self._closed)
        return future

    @property
    def are_ready(self) -> bool:
        """Whether there is something to do now. For the thread that runs them."""
        return not self._posted.empty() or any(errand.is_ready for errand in self._under_way)

    def run(self) -> bool:
        """Go on with what is ready, for a slice at most. Whether anything was done.

        What an errand raises its future gets. That our own books do not agree, an AssertionError, is raised here too.
        """
        while not self._posted.empty():
            self._under_way.append(self._posted.get_nowait())
        until_s = self._clock() + self._slice_s
        num_waiting, did_any = 0, False
        while num_waiting < len(self._under_way):
            errand = self._under_way.popleft()
            if not errand.is_ready:
                self._under_way.append(errand)
                num_waiting += 1
                continue
            num_waiting, did_any = 0, True
            if not self._step(errand):
                self._under_way.append(errand)
            if self._clock() >= until_s:
                break
        return did_any

    def _step(self, errand: _Errand) -> bool:
        """Whether that was the last one."""
        try:
            if errand.steps is None:
                if not errand.future.set_running_or_notify_cancel():
                    return True
                errand.steps = errand.begin()
            errand.waits_for = next(errand.steps)
        except StopIteration as end:
            errand.future.set_result(end.value)
            return True
        except Exception as error:
            errand.future.set_exception(error)
            if isinstance(error, AssertionError):
                raise
            return True
        return False

    def close(self, error: Exception) -> None:
        """Nothing is done any more: what is left, and what still comes, fails with this. Idempotent.

        To be called by the thread that runs them, or when that has ended.
        """
        if self._closed is None:
            self._closed = error
        while self._under_way:
            errand = self._under_way.popleft()
            if errand.steps is not None:
                errand.steps.close()
            self._fail_one(errand, self._closed)
        self._fail(self._closed)

    def _fail(self, error: Exception) -> None:
        while True:
            try:
                errand = self._posted.get_nowait()
            except queue.Empty:
                return
            self._fail_one(errand, error)

    @staticmethod
    def _fail_one(errand: _Errand, error: Exception) -> None:
        if errand.future.running() or errand.future.set_running_or_notify_cancel():
            errand.future.set_exception(error)
