"""A request that was submitted: to wait for, or to call off."""

from collections.abc import Callable
from concurrent.futures import Future

from .results import Result


class Handle:
    """One request on its way. Any thread may call all of it."""

    def __init__(
        self, number: int, future: "Future[Result]", cancel: "Callable[[Future[Result]], None]"
    ) -> None:
        self.id = number
        """Different for each request of an engine."""
        self._future, self._cancel = future, cancel

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the reply. Raises TimeoutError after `timeout` seconds; the request goes on."""
        return self._future.result(timeout)

    @property
    def done(self) -> bool:
        """Whether `result` would not wait."""
        return self._future.done()

    def cancel(self) -> None:
        """Ask for an early end: the result then says "cancelled" and holds the reply so far. Does not wait.

        A request that has ended is left as it is.
        """
        self._cancel(self._future)
