"""What a loop counts and what its cache has, as they are and as they were in the end."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from kvstore.errors import StoreClosed

_log = logging.getLogger(__name__)


class Figures:
    """Tells any thread the figures while the loop runs, and those of its end when the store is closed already.

    Reading the cache's may fail, as the store may be anybody's. Who asks while the loop runs hears of that; at the end the last
    that could be had stand for them.
    """

    def __init__(self, engine: Callable[[], dict[str, Any]], cache: Callable[[], dict[str, Any]]) -> None:
        """`engine`, `cache`: what is counted, each a new dict. Reads once, and raises what that raises."""
        self._engine, self._cache = engine, cache
        self._last_of_cache = cache()
        self._last: dict[str, Any] | None = None
        """Those of the end; None until then."""
        self._watching: deque[Callable[[], None]] = deque()

    def __call__(self) -> dict[str, Any]:
        """The figures, {"engine": ..., "cache": ...}."""
        if self._last is None:
            with contextlib.suppress(StoreClosed):  # the loop has ended a moment ago
                self._last_of_cache = self._cache()
                return self._with_cache(self._last_of_cache)
        assert self._last is not None, "the store is closed after the loop has ended"
        return self._last

    def tell_of_change(self, tell: Callable[[], None]) -> None:
        """Have this called at the next `changed`, once. Any thread may ask."""
        self._watching.append(tell)

    def changed(self) -> None:
        """To be called by the loop when it has done something, before it sleeps."""
        while self._watching:
            self._watching.popleft()()

    def end(self) -> None:
        """The loop ends: what is read now is told from now on. Never raises."""
        try:
            self._last_of_cache = self._cache()
        except Exception:  # noqa: BLE001 - the store may be anybody's; the loop must end all the same
            _log.exception("the cache's last figures cannot be had; earlier ones stand for them")
        self._last = self._with_cache(self._last_of_cache)

    def _with_cache(self, cache: dict[str, Any]) -> dict[str, Any]:
        return {"engine": self._engine(), "cache": cache}
