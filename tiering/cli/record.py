"""`kvtide record`: what a kvtide that runs is asked, written to a file here as a trace, until the time is over or Ctrl-C."""

import json
import re
import time
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request

import zstandard

from tiering.cli.explain_url import address_of, headers_with, opened, refused, token_from

PATH: Final = "/admin/v1/recording"
_SILENT_S: Final = 60.0
"""Who records says something every few seconds, and be it a blank line."""
_FLUSH_S: Final = 1.0
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "": 1}


def seconds(text: str) -> float:
    """Of "90s", "10m" or "1.5h". Raises ValueError, with a sentence, for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise ValueError(f"{text!r} is no time: expected such as 90s, 10m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def run(url: str, token_env: str | None, for_s: float, max_bytes: int | None, out: Path) -> int:
    """Record, and say what came of it. 1 if it ended before its time. Raises ValueError with a sentence."""
    params = {"for_s": f"{for_s:g}"} | ({} if max_bytes is None else {"max_bytes": str(max_bytes)})
    address = address_of(url, PATH)
    request = Request(f"{address}?{urlencode(params)}", headers=headers_with(token_from(token_env)))  # noqa: S310 - the scheme is checked
    last = b""
    try:
        with opened(request, _SILENT_S) as answer, _Out(out) as file:
            print(f"recording {url} to {out} for {for_s:g} s; Ctrl-C ends it before")
            with suppress(KeyboardInterrupt):
                for line in answer:
                    if not line.isspace():  # else it says only that somebody is there
                        last = line
                        file.write(line)
    except HTTPError as error:
        raise refused(address, error) from error
    except (URLError, HTTPException, OSError) as error:
        raise ValueError(f"{address}: {getattr(error, 'reason', error)}") from error
    return _told(last, out)


class _Out(ExitStack):
    """The file, compressed where its name ends in .zst; flushed now and then, as whoever records may be killed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._below: IO[bytes] = self.enter_context(path.open("wb"))
        self._file: Any = self._below
        if path.suffix == ".zst":
            self._file = self.enter_context(zstandard.ZstdCompressor().stream_writer(self._below))
        self._flushed_s = time.monotonic()

    def write(self, line: bytes) -> None:
        """Add a line."""
        self._file.write(line)
        if time.monotonic() >= self._flushed_s + _FLUSH_S:
            if self._file is not self._below:
                self._file.flush(zstandard.FLUSH_BLOCK)
            self._below.flush()
            self._flushed_s = time.monotonic()


def _told(last: bytes, out: Path) -> int:
    ending = json.loads(last) if last.startswith(b'{"ended"') else None
    if ending is None:
        print(f"{out}: it was ended before its time; what had come by then is there")
        return 1
    dropped = (
        f", and {ending['dropped']} more were dropped, as they came too fast" if ending["dropped"] else ""
    )
    print(f"{out}: {ending['requests']} requests{dropped}")
    return 0
