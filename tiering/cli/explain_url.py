"""Asks the admin endpoint of a running kvtide why a prompt is not served further."""

import json
import os
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

PATH = "/admin/v1/explain"
TIMEOUT_S = 60.0
_MOST_BYTES = 64 * 1024 * 1024


class _NoRedirects(HTTPRedirectHandler):
    """The token is for the address that the user named, and for no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def address_of(url: str, path: str) -> str:
    """Where a kvtide that runs at `url` has this. Raises ValueError with a sentence."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a kvtide: expected such as http://127.0.0.1:8421")
    return url.rstrip("/") + path


def token_from(variable: str | None) -> str | None:
    """The token that an environment variable has. Raises ValueError where one is named and has none."""
    token = None if variable is None else os.environ.get(variable, "").strip()
    if token == "":
        raise ValueError(f"--token-env: the environment variable {variable} is not set, or empty")
    return token


def headers_with(token: str | None) -> dict[str, str]:
    """Those of a request. Raises ValueError for what can be no token."""
    if token is not None and not (token.isascii() and token.isprintable()):  # http.client would quote it
        raise ValueError("the token must be of printable ASCII characters, on one line")
    headers = {"Accept": "application/json, application/problem+json"}
    return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}


def opened(request: Request, timeout_s: float) -> Any:
    """The answer to a request, past proxies; a context manager. Raises as urllib does."""
    return build_opener(_NoRedirects, ProxyHandler({})).open(request, timeout=timeout_s)


def refused(address: str, error: HTTPError) -> ValueError:
    """What to tell of an answer that is an error."""
    return ValueError(f"{address} answers {error.code}: {_problem(error)}")


def ask(url: str, token: str | None, question: dict[str, Any]) -> dict[str, Any]:
    """POST the question and return the explanation. Blocks; goes past proxies. Raises ValueError with a sentence."""
    address = address_of(url, PATH)
    headers = {**headers_with(token), "Content-Type": "application/json"}
    request = Request(address, json.dumps(question).encode(), headers)  # noqa: S310 - the scheme is checked above
    try:
        with opened(request, TIMEOUT_S) as answer:
            return _explanation(answer.read(_MOST_BYTES), address)
    except HTTPError as error:
        raise refused(address, error) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        if isinstance(error, _Refused):
            raise
        raise ValueError(f"{address} cannot be asked: {getattr(error, 'reason', error)}") from error


class _Refused(ValueError):
    """An answer that is no explanation."""


def _explanation(body: bytes, address: str) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise _Refused(f"{address} answers with something other than JSON") from error
    if not _is_explanation(answer):
        raise _Refused(f"{address} answers with something other than an explanation")
    found: dict[str, Any] = answer
    return found


def _is_explanation(answer: Any) -> bool:
    """Whether it has all that is printed, and of the types that can be."""
    if not isinstance(answer, dict):
        return False
    parts, told = answer.get("parts"), answer.get("difference")
    return (
        all(isinstance(answer.get(key), int) for key in ("prompt_tokens", "cached_tokens"))
        and isinstance(answer.get("reasons"), dict)
        and isinstance(answer.get("notes", []), list)
        and isinstance(parts, list)
        and all(_has_numbers(part, "start_token", "end_token") for part in parts)
        and all(isinstance(part.get("ago_s") or 0.0, (int, float)) for part in parts)
        and (told is None or (_has_numbers(told, "at_token") and _has_sides(told)))
    )


def _has_numbers(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), int) for key in keys)


def _has_sides(told: dict[str, Any]) -> bool:
    return all(isinstance(told.get(key), list) for key in ("asked_ids", "cached_ids"))


def _problem(error: HTTPError) -> str:
    """The sentence of a problem+json, or what HTTP says."""
    try:
        told = json.loads(error.read(_MOST_BYTES))
        return str(told.get("detail") or told.get("title") or error.reason)
    except (ValueError, AttributeError, OSError):
        return str(error.reason)
