"""What is said of one thing that can be asked for: how it is validated, described and answered."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPMethod, HTTPStatus
from typing import Any

from aiohttp import web

from kvstore.admin.endpoint import Answer, Call, Endpoint
from kvstore.admin.guard import Role
from kvstore.admin.sent import NoParams

JSON = "application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gives:
    """What an answer holds: a type that JSON is made from, or text of some media type."""

    kind: Any = None
    media_type: str = JSON
    description: str = "As asked."


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One thing that can be asked for.

    params: the struct of the query parameters; None takes any, and ignores them.   body: the type of the body; None
        takes none.   gives: by status.   asks: whether the subject is asked, which may not be able to, or not now.
    finds: whether there may be no such thing.   conflicts: whether something else may be in the way.
    headers: those of the request that it reads, and what they are for.
    """

    method: HTTPMethod
    path: str
    answer: Callable[[Endpoint, Call], Awaitable[Answer | web.StreamResponse]]
    summary: str
    gives: Mapping[int, Gives]
    role: Role = Role.READ
    params: Any = NoParams
    body: Any = None
    asks: bool = True
    finds: bool = False
    conflicts: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name of its own for each route."""
        return f"{self.answer.__name__.strip('_')}"

    @property
    def problems(self) -> frozenset[HTTPStatus]:
        """The statuses with which a problem document may be answered."""
        found = {
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.FORBIDDEN,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            HTTPStatus.SERVICE_UNAVAILABLE,
        }
        if self.role > Role.NONE:
            found.add(HTTPStatus.UNAUTHORIZED)
        if self.asks:
            found.add(HTTPStatus.NOT_IMPLEMENTED)
        if self.finds:
            found.add(HTTPStatus.NOT_FOUND)
        if self.conflicts:
            found.add(HTTPStatus.CONFLICT)
        if self.body is not None:
            found |= {
                HTTPStatus.REQUEST_TIMEOUT,
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            }
        return frozenset(found)
