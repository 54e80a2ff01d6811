"""Reading what a request holds, and saying where it does not fit."""

import asyncio
import re
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from kvstore.admin.problems import FieldError, Problem, bad_request

_T = TypeVar("_T")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def read_params(request: web.Request, kind: type[_T]) -> _T:
    """The query parameters. Raises Problem 400 for one that is unknown, repeated or out of range."""
    query = request.query
    repeated = sorted({name for name in query if len(query.getall(name)) > 1})
    if repeated:
        raise bad_request(f"the parameter {repeated[0]!r} is given more than once", f"$.{repeated[0]}")
    try:
        return msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise _misfit("the query", error, kind) from error


async def read_body(request: web.Request, kind: Any, *, timeout_s: float) -> Any:
    """The body, which must be JSON; none at all stands for an empty object.

    Raises Problem: 415 for another type, 413 for a body that is too long, 408 for one that takes too long, 400 for what
    is no JSON or does not fit.
    """
    check_type(request)
    try:
        async with asyncio.timeout(timeout_s):
            data = await request.read()
    except TimeoutError:
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, "the body took too long to come") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_long(request) from None
    except web.RequestPayloadError:
        raise bad_request("the body cannot be read") from None
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise _misfit("the body", error, kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"the body is no JSON: {error}") from error
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None


def check_type(request: web.Request) -> None:
    """Raise Problem 415 unless the body is JSON by name, which no form of another page can send; 413 if it is too long."""
    if request.content_type != "application/json":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a body must be JSON, with Content-Type: application/json"
        )
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a body must not be compressed")
    if request.content_length is not None and request.content_length > request.client_max_size:
        raise _too_long(request)


def _too_long(request: web.Request) -> Problem:
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body may have {request.client_max_size} bytes at most"
    )


def _misfit(what: str, error: msgspec.ValidationError, kind: Any) -> Problem:
    """What msgspec says: what is wrong, and then where: "Expected `int`, got `str` - at `$.token_ids[0]`".

    `kind`: what was to be read, whose names are told to who gave another.
    """
    message, _, path = str(error).partition(" - at `")
    path = path.rstrip("`") or "$"
    known = ""
    if (unknown := _UNKNOWN.fullmatch(message)) is not None:
        if path == "$" and (fields := getattr(kind, "__struct_encode_fields__", ())):
            known = f"; known are {', '.join(fields)}"
        path = f"{path}.{unknown[1]}"
    found = FieldError(path=path, message=message)
    return Problem(HTTPStatus.BAD_REQUEST, f"{what} does not fit: {message}{known}", errors=(found,))
