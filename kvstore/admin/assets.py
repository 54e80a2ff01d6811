"""The page's files: read once, and served from memory."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Self

from aiohttp import web

from kvstore.admin.problems import not_found

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
INDEX = "index.html"


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: str
    etag: str


class Assets:
    """The files of a folder as they were when it was read, by name, those of folders below it included."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        """Files of a kind that a page does not have are left out."""
        self._files = {
            name: _File(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
            for name, content in contents.items()
            if (suffix := name[name.rfind(".") :]) in _TYPES
        }

    @classmethod
    def found(cls) -> Self:
        """Those that came with the package."""
        return cls(_contents(files("kvstore.admin").joinpath("page")))

    def response(self, name: str, request: web.Request) -> web.Response:
        """A file, or 304 where the client has it. Raises Problem 404 if there is none of this name."""
        file = self._files.get(name)
        if file is None:
            raise not_found("the page has no such file")
        headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
        known = request.headers.get("If-None-Match", "")
        if file.etag in [tag.strip().removeprefix("W/") for tag in known.split(",")] or known.strip() == "*":
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.content, headers={**headers, "Content-Type": file.content_type})


def _contents(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _contents(entry, f"{prefix}{entry.name}/")
        else:
            found[prefix + entry.name] = entry.read_bytes()
    return found
