"""What the routes of one endpoint share."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPMethod
from typing import Any

import msgspec
from aiohttp import web

from kvstore.admin.asking import Asking
from kvstore.admin.assets import Assets
from kvstore.admin.config import AdminConfig
from kvstore.admin.figures import Figures
from kvstore.admin.guard import Guard, Role
from kvstore.admin.http_figures import HttpFigures
from kvstore.admin.jobs import Jobs
from kvstore.admin.listeners import Listeners
from kvstore.admin.recordings import Recordings

_METHODS = frozenset(HTTPMethod)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request, read and checked.

    params, body: what the route says they are; None where it has none.   may_see_text: whether text may be shown.
    may_see_tenants: whether their names may.
    """

    request: web.Request
    role: Role
    params: Any
    body: Any
    may_see_text: bool
    may_see_tenants: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A value to be sent as JSON."""

    value: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Endpoint:
    """One subject, seen over HTTP. The event loop's thread uses it."""

    def __init__(
        self, subject: object, config: AdminConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.subject, self.config = subject, config
        self.guard = Guard(config, clock=clock)
        self.asking = Asking(subject, config.request_timeout_s)
        self.figures = Figures(self.asking, clock=clock)
        self.jobs = Jobs(clock=clock)
        self.listeners = Listeners(self.asking, max_listeners=config.max_listeners)
        self.recordings = Recordings(self.asking)
        self.assets = Assets.found()
        self.document: bytes = msgspec.json.encode({})
        """The OpenAPI document; who makes the application sets it."""
        self._requests: Counter[tuple[str, str, int]] = Counter()

    def count(self, route: str, method: str, status: int) -> None:
        """Count an answer."""
        self._requests[route, method if method in _METHODS else "OTHER", status] += 1

    @property
    def http_figures(self) -> HttpFigures:
        """What was counted, as of now."""
        return HttpFigures(
            requests=dict(self._requests),
            listeners=len(self.listeners),
            running_jobs=self.jobs.num_running,
        )

    async def run(self, _app: web.Application) -> AsyncIterator[None]:
        """Sample figures while the application runs, and let go of everything at its end."""
        sampling = asyncio.create_task(self.figures.sample_for_ever())
        yield
        sampling.cancel()
        self.jobs.close()
        self.asking.close()

    async def end_listeners(self, _app: web.Application) -> None:
        """Before connections are waited for: listeners would never end by themselves."""
        self.listeners.close()
        self.recordings.close()
