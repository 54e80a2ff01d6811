"""Handing a connection what is recorded, while it is: whoever asks for a recording has it written where they are."""

import asyncio
import contextlib
import io
import threading
from typing import Any

from aiohttp import web

from kvstore.admin.asking import Asking
from kvstore.admin.problems import busy

HEARTBEAT_S = 5.0
_HEADERS = {"Content-Type": "application/x-ndjson"}
MAX_WAITING_BYTES = 1024**2
"""What may wait for a connection: the recording's thread waits then, and what it has no room for is dropped, and counted."""


class _Pipe(io.RawIOBase):
    """Written by the recording's thread, read by the event loop's."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        """What is to be sent; None is the end."""
        self._changed = threading.Condition()
        self._waiting_bytes = 0
        self._gone = False

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        """Waits while too much waits. Raises BrokenPipeError once nobody reads."""
        data = bytes(piece)
        with self._changed:
            self._changed.wait_for(lambda: self._gone or self._waiting_bytes < MAX_WAITING_BYTES)
            if self._gone:
                raise BrokenPipeError("nobody reads the recording any more")
            self._waiting_bytes += len(data)
        self._post(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._post(None)

    def _post(self, piece: bytes | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    def taken(self, num_bytes: int) -> None:
        """So much was sent."""
        with self._changed:
            self._waiting_bytes -= num_bytes
            self._changed.notify_all()

    def leave(self) -> None:
        """Nobody reads any more."""
        with self._changed:
            self._gone = True
            self._changed.notify_all()


class Recordings:
    """The one recording that is asked for over HTTP at a time. The event loop's thread uses it."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._pipe: _Pipe | None = None
        self._closed = False

    async def serve(
        self, request: web.Request, max_s: float | None, max_bytes: int | None
    ) -> web.StreamResponse:
        """Send one connection what is recorded from now on, until that ends, or the connection does.

        Raises Problem 503 while another is recorded, and 501 where the subject cannot.
        """
        if self._closed or self._pipe is not None:
            raise busy("a recording is under way already", retry_after_s=5)
        if request.method == "HEAD":
            return web.StreamResponse(headers=_HEADERS)
        pipe = self._pipe = _Pipe()
        try:
            recording = await self._asking.ask("record", pipe, max_s=max_s, max_bytes=max_bytes)
            response = web.StreamResponse(headers=_HEADERS)
            try:
                with contextlib.suppress(ConnectionError):
                    await response.prepare(request)
                    await _send(pipe, response)
            finally:
                pipe.leave()  # or it may wait for room to write in
                # beside: it waits for its thread, and nobody for it
                asyncio.get_running_loop().run_in_executor(None, recording.close)
        finally:
            pipe.leave()
            self._pipe = None
        return response

    def close(self) -> None:
        """End it: what has been written is sent. Safe to call twice."""
        self._closed = True
        if self._pipe is not None:
            self._pipe.pieces.put_nowait(None)


async def _send(pipe: _Pipe, response: web.StreamResponse) -> None:
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                piece = await pipe.pieces.get()
        except TimeoutError:
            await response.write(b"\n")  # a blank line says nothing, save that somebody is there
            continue
        if piece is None:
            return
        await response.write(piece)
        pipe.taken(len(piece))
