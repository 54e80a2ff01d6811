"""Who may ask what: rate, host, origin, token."""

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import web

from kvstore.admin.config import AdminConfig, is_loopback
from kvstore.admin.problems import Problem

MAX_CLIENTS = 4096


class Role(IntEnum):
    """What a client may do; each may do what those before it may."""

    NONE = 0
    READ = 1
    FULL = 2


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class RateLimit:
    """A bucket of requests for each client, filled at a rate, as large as what a second brings, and at least one.

    Of the last 4096 clients; who is forgotten has a full bucket again.
    """

    def __init__(self, per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_s`: 0 for no limit."""
        self._per_s, self._clock = per_s, clock
        self._size = max(1.0, per_s)
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, client: str) -> float:
        """0 if the client may go on, else the seconds after which it may. Changes nothing then."""
        if not self._per_s:
            return 0.0
        now_s = self._clock()
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = _Bucket(self._size, now_s)
            if len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(client)
        bucket.tokens = min(self._size, bucket.tokens + (now_s - bucket.at_s) * self._per_s)
        bucket.at_s = now_s
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / self._per_s
        bucket.tokens -= 1.0
        return 0.0


class Guard:
    """Decides for each request whether it may be handled. Raises Problem if not; keeps no token as it was given."""

    def __init__(self, config: AdminConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = RateLimit(config.max_requests_per_s, clock=clock)
        self._open = config.is_open
        self._full, self._read = _digest(config.token), _digest(config.read_token)

    def check_client(self, request: web.Request) -> None:
        """How often the client comes, and whether it is where it may be. Raises Problem 429 or 403."""
        wait_s = self._rate.take(request.remote or "")
        if wait_s:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many requests from this address",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if self._open:
            # A page from elsewhere may have its own name resolve to this machine, and is then of the same origin.
            if not is_loopback(_without_port(host)):
                raise _forbidden("without a token only localhost, 127.0.0.1 and [::1] are answered as Host")
            if request.remote is not None and not is_loopback(request.remote):
                raise _forbidden("without a token only clients on this machine are answered")
        if origin is not None and not _same_origin(origin, host):
            raise _forbidden("pages of other origins may not ask")

    def role_of(self, request: web.Request) -> Role:
        """What the client may do. Takes as long for any token that is wrong."""
        if self._open:
            return Role.FULL
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        full, read = hmac.compare_digest(given, self._full), hmac.compare_digest(given, self._read)
        if scheme.lower() != "bearer":
            return Role.NONE
        return Role.FULL if full else Role.READ if read else Role.NONE


def check_role(role: Role, needed: Role) -> None:
    """Raise Problem 401 where nobody has been named, 403 where who was named may not."""
    if role >= needed:
        return
    if role is Role.NONE:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "a token is needed: send the header Authorization: Bearer TOKEN",
            headers={"WWW-Authenticate": 'Bearer realm="kvtide"'},
        )
    raise _forbidden("this token may only read")


def _digest(token: str | None) -> bytes:
    """Of equal length for all; of no token, what no token has."""
    return bytes(32) if token is None else hashlib.sha256(token.encode()).digest()


def _forbidden(detail: str) -> Problem:
    return Problem(HTTPStatus.FORBIDDEN, detail)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1 : host.find("]")]
    return host.partition(":")[0]


def _same_origin(origin: str, host: str) -> bool:
    """Whether an Origin is the one that this Host serves, by whichever scheme: a proxy may speak TLS for us."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() != ""
