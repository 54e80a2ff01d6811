"""The endpoint on a thread of its own, for programs without an event loop."""

import asyncio
import logging
import socket
import threading
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.web_request import BaseRequest

from kvstore.admin.application import SECURITY_HEADERS, app
from kvstore.admin.config import AdminConfig
from kvstore.admin.dropping import drop
from kvstore.admin.problems import Problem, busy
from kvstore.closing import Closing

_BACKLOG = 128
_END_S = 1.0
"""For how long requests that are being handled may hold up the end, and then once more after they were cancelled."""
_JOIN_S = 10.0

_log = logging.getLogger("kvstore.admin")


def serve(subject: object, config: AdminConfig | None = None) -> "AdminServer":
    """Serve a cache or an engine over HTTP until the server is closed; it answers when this returns.

    The subject stays the caller's, and is closed after the server. Raises OSError, with a sentence, if it cannot listen there.
    """
    return AdminServer(subject, config or AdminConfig())


class AdminServer(Closing):
    """An endpoint that runs. Any thread may close it; a context manager."""

    def __init__(self, subject: object, config: AdminConfig) -> None:
        self.config = config
        self._socket = _listening(config.host, config.port)
        host, port = self._socket.getsockname()[:2]
        self.port: int = port
        """Where it listens, also if the configuration left that open."""
        self.url = f"http://{_reachable(host)}:{port}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started, self._stop = threading.Event(), asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(subject,), name="kvtide-admin", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self, subject: object) -> None:
        try:
            asyncio.run(self._serve(subject))
        except BaseException as failure:  # noqa: BLE001 - a thread's top: it reaches whoever waits for the start
            self._failure = failure
            if self._started.is_set():
                _log.critical("the admin endpoint has ended", exc_info=failure)
        finally:
            self._socket.close()
            self._started.set()

    async def _serve(self, subject: object) -> None:
        loop = self._loop = asyncio.get_running_loop()
        timeout_s = self.config.request_timeout_s
        runner = web.AppRunner(
            app(subject, self.config),
            handler_cancellation=True,
            shutdown_timeout=_END_S,
            access_log=None,
            logger=_log,
        )
        await runner.setup()
        server, connections = runner.server, self.config.max_connections
        assert server is not None, "set up"

        transports: set[asyncio.BaseTransport] = set()
        handle = server.request_handler

        async def handle_and_note(request: BaseRequest) -> web.StreamResponse:
            if isinstance(request.protocol, _Connection):
                request.protocol.has_asked()
            return await handle(request)

        server.request_handler = handle_and_note

        def connection() -> asyncio.Protocol:
            if len(server.connections) >= connections:
                return _Refusal()
            return _Connection(
                transports,
                server,
                loop=loop,
                keepalive_timeout=timeout_s,
                lingering_time=min(timeout_s, 5.0),
                auto_decompress=False,
                access_log=None,
                logger=_log,
            )

        listening = await loop.create_server(connection, sock=self._socket, backlog=_BACKLOG)
        self._started.set()
        try:
            await self._stop.wait()
        finally:
            listening.close()
            await runner.cleanup()
            for _ in range(3):  # what was being accepted meanwhile is a connection now
                await asyncio.sleep(0)
            for transport in tuple(transports):
                drop(transport)
            await asyncio.sleep(0)

    def close(self) -> None:
        """Answer no more, and end all connections. Takes a few seconds at most; jobs that run go on. Safe to call twice."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:  # closed meanwhile
                return
        self._thread.join(_JOIN_S)


class _Connection(web.RequestHandler):
    """One connection, on which what is no HTTP is answered, and logged, without a word of what was sent.

    While it is open its transport is in `transports`. It ends if no request has come within `keepalive_timeout`, which
    not every aiohttp that may be installed sees to by itself.
    """

    def __init__(
        self,
        transports: set[asyncio.BaseTransport],
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        keepalive_timeout: float,
        **settings: Any,
    ) -> None:
        super().__init__(server, loop=loop, keepalive_timeout=keepalive_timeout, **settings)
        self._transports, self._event_loop = transports, loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transports.add(transport)
        self._made = transport
        self._silent = self._event_loop.call_later(self.keepalive_timeout, drop, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._silent.cancel()
        self._transports.discard(self._made)
        super().connection_lost(exc)

    def has_asked(self) -> None:
        """A first request has come whole; for the next ones it has time from answer to answer."""
        self._silent.cancel()

    def handle_error(
        self,
        request: BaseRequest,  # noqa: ARG002 - what was sent is not looked at
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        sentence = "the request is no HTTP that could be read" if status < 500 else "something went wrong"
        if status < 500:
            _log.info("a connection was ended: %s", sentence)
        else:
            _log.error("a request failed", exc_info=exc)
        response = Problem(HTTPStatus(status), sentence).response()
        response.headers.update({**SECURITY_HEADERS, "Cache-Control": "no-store"})
        response.force_close()
        return response

    def log_exception(self, *args: object, **kw: object) -> None:
        """What ends a connection by an error of ours; never what was sent on it."""
        error = kw.get("exc_info")
        _log.error("a connection failed: %s", type(error).__name__ if error is not None else args[:1])


class _Refusal(asyncio.Protocol):
    """Tells one connection too many that there are too many, and closes it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "TCP"
        problem = busy("there are as many connections as may be")
        body = problem.body()
        headers = {
            **SECURITY_HEADERS,
            **problem.headers,
            "Content-Type": "application/problem+json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        transport.write(f"HTTP/1.1 503 Service Unavailable\r\n{lines}\r\n".encode() + body)
        transport.close()


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens on the first address that a host has."""
    try:
        infos = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = infos[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror}") from error


def _reachable(host: str) -> str:
    """An address at which this machine reaches itself, as a URL has it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound to here
    return f"[{host}]" if ":" in host else host
