"""The table of routes: what validates requests, what describes them and what answers them are read off it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPMethod, HTTPStatus
from typing import Any

from aiohttp import web

from kvstore.admin import answers, shapes
from kvstore.admin.endpoint import Answer, Call, Endpoint
from kvstore.admin.guard import Role
from kvstore.reports import NamedCache, PrefixDetail, PrefixPage, Removed, RequestReport

V1 = "/admin/v1"
JSON = "application/json"

GET, POST, PATCH, DELETE = HTTPMethod.GET, HTTPMethod.POST, HTTPMethod.PATCH, HTTPMethod.DELETE
PUT = HTTPMethod.PUT


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
    params: Any = shapes.NoParams
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


def _ok(kind: Any, description: str = "As asked.") -> Mapping[int, Gives]:
    return {200: Gives(kind=kind, description=description)}


_FILE = {
    200: Gives(media_type="*/*", description="The file."),
    304: Gives(media_type="", description="The client has it."),
}
_JOB = {202: Gives(kind=shapes.Job, description="Begun: Location says where to ask after it.")}

ROUTES = (
    Route(
        method=GET,
        path="/",
        answer=answers.page,
        summary="A page that shows all this.",
        gives={**_FILE, 200: Gives(media_type="text/html", description="The page.")},
        role=Role.NONE,
        params=None,
        asks=False,
        finds=True,
    ),
    Route(
        method=GET,
        path="/page/{name:.+}",
        answer=answers.page_file,
        summary="What the page is made of.",
        gives=_FILE,
        role=Role.NONE,
        params=None,
        asks=False,
        finds=True,
    ),
    Route(
        method=GET,
        path="/healthz",
        answer=answers.healthz,
        summary="Whether the endpoint answers.",
        gives=_ok(shapes.Health),
        role=Role.NONE,
        params=None,
        asks=False,
    ),
    Route(
        method=GET,
        path="/readyz",
        answer=answers.readyz,
        summary="Whether requests are served.",
        gives={
            200: Gives(kind=shapes.Readiness, description="They are."),
            503: Gives(kind=shapes.Readiness, description="They are not, or not now."),
        },
        role=Role.NONE,
        params=None,
        asks=False,
    ),
    Route(
        method=GET,
        path="/version",
        answer=answers.version_,
        summary="What runs.",
        gives=_ok(shapes.Version),
        role=Role.NONE,
        params=None,
        asks=False,
    ),
    Route(
        method=GET,
        path=f"{V1}/session",
        answer=answers.session,
        summary="What whoever asks may do, and what this cache can.",
        gives=_ok(shapes.Session),
        asks=False,
    ),
    Route(
        method=GET,
        path="/openapi.json",
        answer=answers.openapi,
        summary="This document.",
        gives=_ok(dict[str, Any]),
        asks=False,
    ),
    Route(
        method=GET,
        path="/metrics",
        answer=answers.metrics,
        summary="Figures for Prometheus.",
        gives={200: Gives(media_type="text/plain", description="In Prometheus' text format.")},
    ),
    Route(
        method=GET,
        path=f"{V1}/tiers",
        answer=answers.tiers,
        summary="What the tiers hold, how often they serve, and what moves between them.",
        gives=_ok(shapes.Tiers),
    ),
    Route(
        method=GET,
        path=f"{V1}/namespaces",
        answer=answers.namespaces,
        summary="What the tiers hold, by namespace.",
        gives=_ok(shapes.Namespaces),
    ),
    Route(
        method=GET,
        path=f"{V1}/prefixes",
        answer=answers.prefixes,
        summary="The tree of cached prefixes, a page of it.",
        gives=_ok(PrefixPage),
        params=shapes.PrefixParams,
        finds=True,
    ),
    Route(
        method=GET,
        path=f"{V1}/prefixes/{{key}}",
        answer=answers.prefix,
        summary="One run of blocks, with those that lead to it.",
        gives=_ok(PrefixDetail),
        params=shapes.TextParams,
        finds=True,
    ),
    Route(
        method=DELETE,
        path=f"{V1}/prefixes/{{key}}",
        answer=answers.remove_prefix,
        summary="Forget a run and all that follows it, save what is in use.",
        gives=_ok(Removed),
        role=Role.FULL,
        finds=True,
    ),
    Route(
        method=POST,
        path=f"{V1}/explain",
        answer=answers.explain,
        summary="What of a prompt would be served from where, and why the rest would not.",
        gives=_ok(shapes.Explained),
        body=shapes.Prompt,
    ),
    Route(
        method=GET,
        path=f"{V1}/requests",
        answer=answers.requests,
        summary="The last requests.",
        gives=_ok(shapes.Requests),
        params=shapes.RequestParams,
    ),
    Route(
        method=GET,
        path=f"{V1}/requests/{{id}}",
        answer=answers.request,
        summary="One of the last requests, and why its prompt was not served further.",
        gives=_ok(RequestReport),
        params=shapes.TextParams,
        finds=True,
    ),
    Route(
        method=GET,
        path=f"{V1}/advice",
        answer=answers.advice,
        summary="Where prompts of live traffic leave what is cached at the highest cost.",
        gives=_ok(shapes.Advices),
        params=shapes.TextParams,
    ),
    Route(
        method=GET,
        path=f"{V1}/events",
        answer=answers.events,
        summary="What happens, as server-sent events.",
        headers={"Last-Event-ID": "As `after`, which it goes before: what clients send that come again."},
        gives={
            200: Gives(
                media_type="text/event-stream",
                description="The id of each is its number, its event the kind, its data an Event as JSON; of the "
                "event `gap`, a Gap.",
            )
        },
        params=shapes.EventParams,
    ),
    Route(
        method=GET,
        path=f"{V1}/recording",
        answer=answers.recording,
        summary="What is asked from now on, as a trace without tokens or text, until the connection ends.",
        gives={
            200: Gives(
                media_type="application/x-ndjson",
                description="A JSON object a line, as `kvtide simulate` reads it: docs/record.md.",
            )
        },
        role=Role.FULL,
        params=shapes.RecordingParams,
    ),
    Route(
        method=POST,
        path=f"{V1}/warm",
        answer=answers.warm,
        summary="Compute a prompt and cache it.",
        gives=_JOB,
        role=Role.FULL,
        body=shapes.Warm,
    ),
    Route(
        method=GET,
        path=f"{V1}/caches",
        answer=answers.caches,
        summary="The named caches of a tenant, or of nobody.",
        gives=_ok(shapes.Caches),
        params=shapes.TenantParams,
    ),
    Route(
        method=POST,
        path=f"{V1}/caches",
        answer=answers.create_cache,
        summary="Compute a prompt, and hold it under a name.",
        gives=_JOB,
        role=Role.FULL,
        body=shapes.Cache,
    ),
    Route(
        method=GET,
        path=f"{V1}/caches/{{cache}}",
        answer=answers.cache,
        summary="A named cache as it is now.",
        gives=_ok(NamedCache),
        params=shapes.TenantParams,
        finds=True,
    ),
    Route(
        method=PATCH,
        path=f"{V1}/caches/{{cache}}",
        answer=answers.extend_cache,
        summary="Give a named cache another time from now on.",
        gives=_ok(NamedCache),
        role=Role.FULL,
        params=shapes.TenantParams,
        body=shapes.Extension,
        finds=True,
    ),
    Route(
        method=DELETE,
        path=f"{V1}/caches/{{cache}}",
        answer=answers.delete_cache,
        summary="Hold a named cache no longer.",
        gives=_ok(shapes.Deleted),
        role=Role.FULL,
        params=shapes.TenantParams,
        finds=True,
    ),
    Route(
        method=POST,
        path=f"{V1}/keep",
        answer=answers.keep,
        summary="Keep what is cached of a prompt in a tier, until it is released.",
        gives=_JOB,
        role=Role.FULL,
        body=shapes.Kept,
    ),
    Route(
        method=POST,
        path=f"{V1}/release",
        answer=answers.release,
        summary="Keep a prompt no longer.",
        gives=_ok(shapes.Released),
        role=Role.FULL,
        body=shapes.Prompt,
    ),
    Route(
        method=POST,
        path=f"{V1}/demote",
        answer=answers.demote,
        summary="Move what is idle down to a lower tier.",
        gives=_JOB,
        role=Role.FULL,
        body=shapes.Demote,
        conflicts=True,
    ),
    Route(
        method=POST,
        path=f"{V1}/flush",
        answer=answers.flush,
        summary="Write down what the disk does not have yet.",
        gives=_JOB,
        role=Role.FULL,
        body=shapes.Nothing,
        conflicts=True,
    ),
    Route(
        method=POST,
        path=f"{V1}/drain",
        answer=answers.drain,
        summary="Take no new requests, and wait until those there are have ended.",
        gives=_JOB,
        role=Role.FULL,
        body=shapes.Drain,
        conflicts=True,
    ),
    Route(
        method=POST,
        path=f"{V1}/resume",
        answer=answers.resume,
        summary="Take requests again.",
        gives=_ok(shapes.Resumed),
        role=Role.FULL,
        body=shapes.Nothing,
    ),
    Route(
        method=POST,
        path=f"{V1}/verify",
        answer=answers.verify,
        summary="Read every record on disk and check it.",
        gives=_JOB,
        role=Role.FULL,
        body=shapes.Nothing,
        conflicts=True,
    ),
    Route(
        method=GET,
        path=f"{V1}/jobs",
        answer=answers.jobs,
        summary="The last long actions.",
        gives=_ok(shapes.Jobs),
        asks=False,
    ),
    Route(
        method=GET,
        path=f"{V1}/jobs/{{id}}",
        answer=answers.job,
        summary="One long action.",
        gives=_ok(shapes.Job),
        asks=False,
        finds=True,
    ),
    Route(
        method=GET,
        path=f"{V1}/config",
        answer=answers.config,
        summary="The configuration as it is now.",
        gives=_ok(shapes.Settings),
    ),
    Route(
        method=PATCH,
        path=f"{V1}/config",
        answer=answers.change,
        summary="Change settings while requests run; all of them or none.",
        gives=_ok(shapes.Settings),
        role=Role.FULL,
        body=shapes.Changes,
    ),
    Route(
        method=GET,
        path=f"{V1}/tenants",
        answer=answers.tenants,
        summary="What each tenant has in the tiers, and may have.",
        gives=_ok(shapes.Tenants),
        role=Role.FULL,
    ),
    Route(
        method=PUT,
        path=f"{V1}/tenants/{{tenant}}/quota",
        answer=answers.set_quota,
        summary="Set what a tenant may keep when there is not room for all.",
        gives=_ok(shapes.QuotaSet),
        role=Role.FULL,
        body=shapes.TenantQuota,
    ),
    Route(
        method=DELETE,
        path=f"{V1}/tenants/{{tenant}}/quota",
        answer=answers.delete_quota,
        summary="Take a tenant's quota away: it has that of every tenant then.",
        gives=_ok(shapes.QuotaSet),
        role=Role.FULL,
        finds=True,
    ),
)
