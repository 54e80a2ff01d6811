"""Telling many connections of what happens, from one poller."""

import asyncio
import contextlib
import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from kvstore.admin.asking import Asking
from kvstore.admin.dropping import drop
from kvstore.admin.encoding import encoded
from kvstore.admin.problems import Problem, busy
from kvstore.admin.shapes import Gap
from kvstore.reports import Event

POLL_S = 0.25
HEARTBEAT_S = 15.0
MAX_WAITING_BYTES = 1024**2
"""What may wait for one listener: who is further behind is dropped, and may come again with what it knows."""

_log = logging.getLogger("kvstore.admin")


@dataclass(eq=False, slots=True)
class _Listener:
    request: web.Request
    last: int | None
    """The number of the last event that it knows; None while it wants those from now on, and has been told of none."""
    pieces: "asyncio.Queue[bytes | None]" = field(default_factory=asyncio.Queue)
    """What is to be written; None ends it."""
    waiting_bytes: int = 0
    new: bool = True

    def put(self, piece: bytes) -> bool:
        """Have it written. False if it has fallen behind; then its connection ends at once."""
        if self.waiting_bytes > MAX_WAITING_BYTES:
            drop(self.request.transport)
            return False
        self.waiting_bytes += len(piece)
        self.pieces.put_nowait(piece)
        return True


class Listeners:
    """All connections that listen. The event loop's thread uses it.

    One task asks the subject what is new, four times a second and only while somebody listens, and hands each event to
    all. It never waits for a connection.
    """

    def __init__(self, asking: Asking, *, max_listeners: int) -> None:
        self._asking, self._max = asking, max_listeners
        self._listeners: set[_Listener] = set()
        self._poller: asyncio.Task[None] | None = None
        self._newest = 0
        """The number of the latest event that is known here."""
        self._somebody_came = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._listeners)

    async def serve(self, request: web.Request, after: int | None) -> web.StreamResponse:
        """Tell one connection of events, until it goes, falls behind or `close` is called.

        `after`: the number of the last event that it knows; None for those from now on. Raises Problem 503 where there
        are as many listeners as may be, and 501 where the subject tells of no events.
        """
        self._asking.method("events")
        if self._closed or len(self._listeners) >= self._max:
            raise busy(f"{self._max} connections listen already", retry_after_s=5)
        listener = _Listener(request, after)
        self._listeners.add(listener)
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            if self._poller is None or self._poller.done():
                self._poller = asyncio.create_task(self._poll_while_heard())
            self._somebody_came.set()
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                await self._write(listener, response)
        finally:
            self._listeners.discard(listener)
        return response

    async def _write(self, listener: _Listener, response: web.StreamResponse) -> None:
        await response.write(b"retry: 1000\n: kvtide\n\n")
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    piece = await listener.pieces.get()
            except TimeoutError:
                await response.write(b": still here\n\n")
                continue
            if piece is None:
                return
            await response.write(piece)  # waits while the connection's buffer is full
            listener.waiting_bytes -= len(piece)

    async def _poll_while_heard(self) -> None:
        while self._listeners:
            self._somebody_came.clear()
            try:
                await self._poll()
            except Problem as problem:
                _log.warning("events could not be had: %s", problem.detail)
            except Exception:  # noqa: BLE001 - a task's top: listeners wait for what comes
                _log.exception("events could not be had")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._somebody_came.wait()

    async def _poll(self) -> None:
        """Ask once for what the listener that knows least does not know, and tell each what is new to it."""
        known = [  # of who comes with a number from before a restart, as it seems, nothing
            0 if listener.last > self._newest else listener.last
            for listener in self._listeners
            if listener.last is not None
        ]
        events: Sequence[Event] = await self._asking.ask("events", min(known, default=self._newest))
        if events:
            self._newest = events[-1].number
        elif any(listener.new for listener in self._listeners):
            events = await self._asking.ask("events", 0)  # which numbers there are at all
            self._newest = events[-1].number if events else 0
        news = _News(events)
        told: dict[int, bytes] = {}
        for listener in tuple(self._listeners):
            if listener.last is None:
                listener.last = self._newest
            elif listener.new and listener.last > self._newest:  # from before a restart: it knows nothing
                listener.last = 0
            listener.new = False
            if listener.last not in told:
                told[listener.last] = news.behind(listener.last)
            piece = told[listener.last]
            listener.last = max(listener.last, self._newest)
            if piece and not listener.put(piece):
                self._listeners.discard(listener)

    def close(self) -> None:
        """End all. Safe to call twice."""
        self._closed = True
        for listener in self._listeners:
            listener.pieces.put_nowait(None)
        if self._poller is not None:
            self._poller.cancel()


class _News:
    """Events as they are written, made once for all listeners, however many come who know different things."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._numbers = [event.number for event in events]
        self._alone = [_piece(event.kind, event, event.number) for event in events]
        before = zip(self._numbers, self._numbers[1:], self._alone[1:], strict=False)
        self._following = [_gap(known, number) + piece for known, number, piece in before]

    def behind(self, last: int) -> bytes:
        """What to write to who knows all up to `last`; numbers that are missing are told of as a gap."""
        at = bisect_right(self._numbers, last)
        if at == len(self._numbers):
            return b""
        return b"".join((_gap(last, self._numbers[at]), self._alone[at], *self._following[at:]))


def _gap(known: int, number: int) -> bytes:
    """What to write between two events."""
    if number == known + 1:
        return b""
    return _piece("gap", Gap(first=known + 1, last=number - 1), number - 1)


def _piece(kind: str, data: Any, number: int) -> bytes:
    """One event of a stream. JSON has no line feed in it."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (number, kind.encode(), encoded(data))
