"""The OpenAPI 3.1 document, from the table of routes and the types that check requests."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from kvstore.admin.guard import Role
from kvstore.admin.problems import CONTENT_TYPE, ProblemDocument
from kvstore.admin.route import JSON, Gives, Route
from kvstore.admin.sent import PROMPT_FORMS, Cache, Kept, Key, Name, Prompt, Warm
from kvstore.admin.shapes import Gap
from kvstore.reports import Event

_REFS = "#/components/schemas/{name}"
_DESCRIPTION = """See and steer a tiered prefix cache, and ask it why a prompt missed.

Every answer has the header X-Request-Id. Errors are problem documents (RFC 9457). GET may be HEAD, which leaves out the body.
"""
_PATH_PARAMETERS = {
    "key": {**msgspec.json.schema(Key), "description": "The key of a run's last block, or of any in it."},
    "id": {"type": "string", "description": "As it was told when it began."},
    "name": {"type": "string", "description": "A file of the page."},
    "cache": {**msgspec.json.schema(Name), "description": "A named cache's name, percent-encoded."},
    "tenant": {
        "type": "string",
        "description": "A tenant's name, percent-encoded; * for each that has no quota of its own.",
    },
}
_WHY = {
    HTTPStatus.BAD_REQUEST: "The request does not fit, or the cache does not take what it holds.",
    HTTPStatus.UNAUTHORIZED: "A token is needed.",
    HTTPStatus.FORBIDDEN: "The token may not do this, or the Host or Origin is not this endpoint's.",
    HTTPStatus.NOT_FOUND: "There is no such thing.",
    HTTPStatus.REQUEST_TIMEOUT: "The body took too long to come.",
    HTTPStatus.CONFLICT: "A job that does the same has not ended; `instance` says which.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too long.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not JSON by its Content-Type.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests from this address.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Something that should not happen; the log says what.",
    HTTPStatus.NOT_IMPLEMENTED: "This cache cannot do that.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not now.",
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "string"}}
}
_LOCATION = {
    "Location": {"description": "Where to ask after the job.", "required": True, "schema": {"type": "string"}}
}


def document(routes: Sequence[Route], *, version: str, tokens: bool) -> dict[str, Any]:
    """Describe the routes. `tokens`: whether those that are not for everybody need one."""
    kinds = _kinds_of(routes)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFS)
    by_kind = dict(zip(map(repr, kinds), schemas, strict=True))
    # what text and the like exclude of each other, no annotation says
    for kind in (Prompt, Warm, Cache, Kept):
        components[kind.__name__]["oneOf"] = [{"required": [form]} for form in PROMPT_FORMS]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = route.path.replace(":.+}", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(
            route, path, by_kind, components, tokens=tokens
        )
    for route in routes:  # a parameter is described where it is sent
        if route.params is not None:
            components.pop(route.params.__name__, None)
    return {
        "openapi": "3.1.0",
        "info": {"title": "kvtide admin endpoint", "version": version, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}} if tokens else {},
        },
    }


def _kinds_of(routes: Sequence[Route]) -> list[Any]:
    kinds = [ProblemDocument, Event, Gap, Prompt]
    for route in routes:
        kinds += [kind for kind in (route.params, route.body) if kind is not None]
        kinds += [gives.kind for gives in route.gives.values() if gives.kind is not None]
    return list({repr(kind): kind for kind in kinds}.values())


def _operation(
    route: Route, path: str, schemas: dict[str, Any], components: dict[str, Any], *, tokens: bool
) -> dict[str, Any]:
    responses = {
        str(status.value): _response(
            Gives(kind=ProblemDocument, media_type=CONTENT_TYPE, description=_WHY[status]), schemas, status
        )
        for status in sorted(route.problems)
    }
    for status, gives in route.gives.items():
        responses[str(status)] = _merged(responses.get(str(status)), _response(gives, schemas, status))
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [
            *_path_parameters(path),
            *_query_parameters(route, components),
            *_header_parameters(route),
        ],
        "responses": responses,
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": schemas[repr(route.body)]}},
        }
    if tokens:
        operation["security"] = [] if route.role is Role.NONE else [{"token": []}]
        operation["description"] = _ROLES[route.role]
    return operation


_ROLES = {
    Role.NONE: "Needs no token.",
    Role.READ: "Needs a token.",
    Role.FULL: "Needs the token that may do everything.",
}


def _response(gives: Gives, schemas: dict[str, Any], status: int) -> dict[str, Any]:
    response: dict[str, Any] = {"description": gives.description}
    if gives.media_type:
        schema = {"type": "string"} if gives.kind is None else schemas[repr(gives.kind)]
        response["content"] = {gives.media_type: {"schema": schema}}
    if status == HTTPStatus.ACCEPTED:
        response["headers"] = _LOCATION
    elif status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        response["headers"] = _RETRY_AFTER
    return response


def _merged(problem: dict[str, Any] | None, response: dict[str, Any]) -> dict[str, Any]:
    """An answer that has a meaning of its own beside the problem that may have the same status."""
    if problem is None:
        return response
    return {**problem, **response, "content": {**response["content"], **problem["content"]}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": schema["description"], "schema": schema}
        for name, schema in _PATH_PARAMETERS.items()
        if f"{{{name}}}" in path
    ]


def _query_parameters(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    if route.params is None:
        return []
    properties: dict[str, Any] = components.get(route.params.__name__, {}).get("properties", {})
    return [
        {"name": name, "in": "query", "description": schema.get("description", ""), "schema": schema}
        for name, schema in properties.items()
    ]


def _header_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}
        for name, description in route.headers.items()
    ]
