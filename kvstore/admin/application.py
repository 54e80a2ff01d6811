"""The endpoint as an aiohttp application: what happens around every request."""

import asyncio
import logging
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from kvstore.admin.config import AdminConfig
from kvstore.admin.dropping import drop
from kvstore.admin.encoding import encoded
from kvstore.admin.endpoint import Answer, Call, Endpoint
from kvstore.admin.guard import Role, check_role
from kvstore.admin.openapi import document
from kvstore.admin.problems import Problem, bad_request
from kvstore.admin.reading import read_body, read_params
from kvstore.admin.route import Route
from kvstore.admin.routes import ROUTES
from kvstore.admin.version import own_version

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Server": "kvtide",
}

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class _Asker:
    request_id: str
    role: Role = Role.NONE


_asker: ContextVar[_Asker] = ContextVar("kvtide_asker")
"""Of the request that this task handles; each has a task of its own."""

_log = logging.getLogger("kvstore.admin")
_access = logging.getLogger("kvstore.admin.access")


def app(subject: object, config: AdminConfig | None = None) -> web.Application:
    """The endpoint of a cache or an engine, for a program that has an event loop of its own.

    It samples figures while it runs, and asks the subject on threads of its own. Whoever serves it decides where it can be
    reached and for how long connections may idle: of `config`, host, port and max_connections count for nothing here.
    """
    config = config or AdminConfig()
    endpoint = Endpoint(subject, config)
    endpoint.document = msgspec.json.encode(
        document(ROUTES, version=own_version(), tokens=not config.is_open)
    )
    made = web.Application(
        client_max_size=config.max_body_bytes, middlewares=[_around(endpoint)], logger=_log
    )
    for route in ROUTES:
        handle = _handle(endpoint, route)
        made.router.add_route(route.method, route.path, handle, expect_handler=_expects)
        if route.method == "GET" and route.path != "/admin/v1/events":
            made.router.add_route("HEAD", route.path, handle, expect_handler=_expects)
    made.on_response_prepare.append(_secure)
    made.cleanup_ctx.append(endpoint.run)
    made.on_shutdown.append(endpoint.end_listeners)
    return made


def _handle(endpoint: Endpoint, route: Route) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        role = endpoint.guard.role_of(request)
        _asker.get().role = role
        check_role(role, route.role)
        params = None if route.params is None else read_params(request, route.params)
        body = None
        if route.body is not None:
            body = await read_body(request, route.body, timeout_s=endpoint.config.request_timeout_s)
        elif request.can_read_body:
            raise bad_request("this takes no body")
        call = Call(
            request=request,
            role=role,
            params=params,
            body=body,
            may_see_text=endpoint.config.show_text and role is Role.FULL,
            may_see_tenants=endpoint.config.show_tenants or role is Role.FULL,
        )
        answer = await route.answer(endpoint, call)
        return _json(answer) if isinstance(answer, Answer) else answer

    return handle


def _json(answer: Answer) -> web.Response:
    return web.Response(
        status=answer.status,
        body=encoded(answer.value),
        content_type="application/json",
        headers=answer.headers,
    )


def _around(endpoint: Endpoint) -> Middleware:
    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        started_s = time.monotonic()
        asked_id = request.headers.get("X-Request-Id", "")
        _asker.set(_Asker(asked_id if _SANE_ID.fullmatch(asked_id) else uuid.uuid4().hex))
        status = 499  # unless it is sent, nobody waits for it any more
        try:
            response = await _answered(endpoint, request, handler)
            if await _send(request, response, endpoint.config.request_timeout_s):
                status = response.status
        finally:
            _note(endpoint, request, status, time.monotonic() - started_s)
        return response

    return around


async def _answered(endpoint: Endpoint, request: web.Request, handle: Handler) -> web.StreamResponse:
    try:
        endpoint.guard.check_client(request)
        return await handle(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPException as error:  # of the router
        return _of_router(error).response()
    except Exception:  # noqa: BLE001 - whoever asked is told, and the log
        id_ = _asker.get().request_id
        _log.exception("request %s failed", id_, extra={"request_id": id_})
        return Problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, f"something went wrong; the log has it under request {id_}"
        ).response()


def _of_router(error: web.HTTPException) -> Problem:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(HTTPStatus.METHOD_NOT_ALLOWED, f"this takes {allowed}", headers={"Allow": allowed})
    if error.status == HTTPStatus.NOT_FOUND:
        return Problem(
            HTTPStatus.NOT_FOUND, "nothing lies at this path; /openapi.json lists those that there are"
        )
    return Problem(HTTPStatus(error.status), error.reason)


async def _send(request: web.Request, response: web.StreamResponse, timeout_s: float) -> bool:
    """Write an answer; False if the client is gone. One that does not read is dropped after a while, and holds nothing."""
    if not isinstance(response, web.Response):
        return True  # a stream has been written by now
    try:
        async with asyncio.timeout(timeout_s):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        drop(request.transport)
        return False
    except ConnectionError:
        return False
    return True


def _note(endpoint: Endpoint, request: web.Request, status: int, seconds: float) -> None:
    resource = request.match_info.route.resource
    route = "unmatched" if resource is None else resource.canonical
    endpoint.count(route, request.method, status)
    asker = _asker.get()
    _access.info(
        "%s %s %d %.1f ms",
        request.method,
        route,
        status,
        seconds * 1000,
        extra={
            "request_id": asker.request_id,
            "method": request.method,
            "route": route,
            "status": status,
            "seconds": seconds,
            "role": asker.role.name.lower(),
        },
    )


async def _secure(_request: web.Request, response: web.StreamResponse) -> None:
    """Before the headers of any answer are sent."""
    response.headers.update(SECURITY_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    if (asker := _asker.get(None)) is not None:
        response.headers["X-Request-Id"] = asker.request_id


async def _expects(request: web.Request) -> None:
    """A client may want to know that its body is welcome before it sends it. Other expectations are not known, and ignored."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # or the answer's headers would count as sent
