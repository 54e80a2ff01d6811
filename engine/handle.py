"""Requests that were submitted: to wait for, to read as they come, or to call off."""

import queue
from collections.abc import Callable, Iterator
from typing import Self

from kvstore.closing import Closing

from .request import Request
from .results import Delta, Result


class Handle:
    """One request on its way. Any thread may call all of it."""

    def __init__(self, request: Request, cancel: Callable[[Request], None]) -> None:
        self.id = request.number
        """Different for each request of an engine."""
        self._request, self._cancel = request, cancel

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the reply. Raises TimeoutError after `timeout` seconds; the request goes on."""
        return self._request.future.result(timeout)

    @property
    def done(self) -> bool:
        """Whether `result` would not wait."""
        return self._request.future.done()

    def when_done(self, call: "Callable[[Handle], None]") -> None:
        """Call `call` when the result is there, on the engine's thread or, if it is there, at once. It must only post."""
        self._request.future.add_done_callback(lambda _: call(self))

    def cancel(self) -> None:
        """Ask for an early end: the result then says "cancelled" and holds the reply so far. Does not wait.

        A request that has ended is left as it is.
        """
        self._cancel(self._request)


class Stream(Closing, Iterator[Delta]):
    """The deltas of one request, as they come. Ends when every reply has; closing it before calls the request off."""

    def __init__(self, handle: Handle, deltas: "queue.SimpleQueue[Delta]", num_replies: int) -> None:
        self.handle = handle
        """Has the whole result, once the stream has ended."""
        self._deltas, self._num_open = deltas, num_replies
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        """Waits for the next. One thread at a time; another may close the stream meanwhile."""
        if self._closed or not self._num_open:
            raise StopIteration
        delta = self._deltas.get()  # a request that is called off has its last ones too
        self._num_open -= delta.finish_reason is not None
        return delta

    def close(self) -> None:
        """Call the request off if it still runs. Safe to call twice; also done when nobody refers to the stream."""
        if not self._closed:
            self._closed = True
            self.handle.cancel()

    def __del__(self) -> None:
        self.close()
