"""What goes wrong, as the client is told of it: problem documents (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from aiohttp import web

CONTENT_TYPE = "application/problem+json"


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a request something is wrong, such as `$.messages[0].role`, and what."""

    path: str
    message: str


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"kind": "type"}):
    """What went wrong.

    title: the status in words.   detail: a sentence on this very case.
    instance: of a conflict, the job that is in the way.   errors: of a request that does not fit, where.
    """

    kind: str
    title: str
    status: int
    detail: str
    instance: str | msgspec.UnsetType = msgspec.UNSET
    errors: tuple[FieldError, ...] | msgspec.UnsetType = msgspec.UNSET


class Problem(Exception):
    """Ends the handling of a request with a problem document."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        instance: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.errors, self.instance, self.headers = errors, instance, headers or {}

    def body(self) -> bytes:
        """The document, as JSON."""
        return msgspec.json.encode(
            ProblemDocument(
                kind="about:blank",
                title=self.status.phrase,
                status=self.status.value,
                detail=self.detail,
                instance=self.instance or msgspec.UNSET,
                errors=self.errors or msgspec.UNSET,
            )
        )

    def response(self) -> web.Response:
        """The document as an answer."""
        return web.Response(
            status=self.status.value,
            body=self.body(),
            content_type=CONTENT_TYPE,
            headers=dict(self.headers),
        )


def busy(detail: str, retry_after_s: int = 1) -> Problem:
    """It cannot be done now, and may be tried again."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(max(1, retry_after_s))}
    )


def not_found(detail: str) -> Problem:
    """Nothing has this key, id or name."""
    return Problem(HTTPStatus.NOT_FOUND, detail)


def bad_request(detail: str, path: str | None = None) -> Problem:
    """The request does not fit; `path` says where, if that is known."""
    errors = () if path is None else (FieldError(path=path, message=detail),)
    return Problem(HTTPStatus.BAD_REQUEST, detail, errors=errors)
