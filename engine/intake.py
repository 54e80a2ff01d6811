"""Whether requests are taken, and how many there are."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .request import Request


class Intake:
    """Lets requests in until it is shut, and knows when the last one has ended. Any thread may call all of it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_inside = 0
        self._num_opened = 0
        self._shut = False

    @property
    def is_shut(self) -> bool:
        """Whether requests are refused."""
        return self._shut

    @contextmanager
    def letting_in(self, requests: Sequence[Request]) -> Iterator[None]:
        """Submit requests in the body of the `with`: they are inside until they have ended, or not at all if it raises.

        Raises RuntimeError while requests are refused.
        """
        with self._changed:  # against shutting: what is let in has been counted by then
            if self._shut:
                raise RuntimeError("the engine is being drained: it takes no requests until resume()")
            self._num_inside += len(requests)
        try:
            yield
        except BaseException:
            self._leave(len(requests))
            raise
        for request in requests:
            request.future.add_done_callback(lambda _: self._leave(1))

    def shut(self, timeout_s: float | None) -> bool:
        """Refuse requests from now on, and wait until those inside have ended.

        False if the time was not enough, or somebody opens meanwhile: then the last one may never end.
        """
        with self._changed:
            self._shut = True
            before = self._num_opened
            self._changed.wait_for(lambda: not self._num_inside or self._num_opened != before, timeout_s)
            return not self._num_inside

    def open(self) -> None:
        """Take requests again. Who waits in `shut` waits no longer."""
        with self._changed:
            self._shut = False
            self._num_opened += 1
            self._changed.notify_all()

    def end(self) -> None:
        """Refuse nobody: who comes now is told of something worse. Who waits in `shut` waits on."""
        with self._changed:
            self._shut = False

    def _leave(self, num_requests: int) -> None:
        with self._changed:
            self._num_inside -= num_requests
            self._changed.notify_all()
