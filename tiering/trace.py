"""Streams of requests with block identities: readers of four formats, and a writer of our own.

All are one JSON object a line, compressed with zstd where the name ends in .zst:

    format     told by          ids              time                    where from
    kvtide     a first line     blocks           at_s, seconds           TraceWriter
    lmcache    chunk_hashes     chunk_hashes     timestamp, seconds      LMCache's log of lookup hashes
    bailian    chat_id          hash_ids         timestamp, seconds      Alibaba's Qwen-Bailian traces
    mooncake   hash_ids         hash_ids         timestamp, milliseconds Mooncake's traces, and many in their form

An id stands for a block, and is the same only where all ids before it are. Times are from the first request of a trace.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import zstandard

from kvstore.closing import Closing
from tiering.keeping import Hints
from tiering.keeping.admission import NO_HINTS

FORMAT: Final = "kvtide-trace"
VERSION: Final = 1


class TraceError(ValueError):
    """A line that is not what its format says. The message begins with file and line."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace."""

    at_s: float
    """When it came, from the first request on."""
    blocks: list[int]
    """The prompt's blocks: numbers below 2**31, equal in one trace where the ids are."""
    input_tokens: int
    """0 where the trace does not say."""
    output_tokens: int
    hints: Hints = NO_HINTS


class _Header(msgspec.Struct):
    format: str
    version: int
    block_tokens: int


class _Own(msgspec.Struct, omit_defaults=True):
    at_s: float
    blocks: list[int]
    input_tokens: int = 0
    output_tokens: int = 0
    hints: Hints | None = None


class _HashIds(msgspec.Struct):
    timestamp: float
    hash_ids: list[int | str]
    input_length: int = 0
    output_length: int = 0


class _Lookup(msgspec.Struct):
    timestamp: float
    chunk_hashes: list[str | int]
    seq_len: int = 0


Row = tuple[float, list[Any], int, int]


def _own(row: _Own) -> Row:
    return row.at_s, row.blocks, row.input_tokens, row.output_tokens


def _mooncake(row: _HashIds) -> Row:
    return row.timestamp / 1000, row.hash_ids, row.input_length, row.output_length


def _bailian(row: _HashIds) -> Row:
    return row.timestamp, row.hash_ids, row.input_length, row.output_length


def _lmcache(row: _Lookup) -> Row:
    return row.timestamp, row.chunk_hashes, row.seq_len, 0


_FORMATS: Final[dict[str, tuple[type, Callable[[Any], Row]]]] = {
    "kvtide": (_Own, _own),
    "lmcache": (_Lookup, _lmcache),
    "bailian": (_HashIds, _bailian),
    "mooncake": (_HashIds, _mooncake),
}


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """The requests of a trace, in the file's order, as they are read.

    Raises TraceError for a line that cannot be used and for a file without a request, OSError as `open` does.
    """
    numbers: dict[Any, int] = {}
    convert: Callable[[Any], Row] | None = None
    decoder: msgspec.json.Decoder[Any] | None = None
    first_s: float | None = None
    for at, line in _lines(path):
        if decoder is None or convert is None:
            name = _format_of(path, at, line)
            structure, convert = _FORMATS[name]
            decoder = msgspec.json.Decoder(structure)
            if name == "kvtide":
                continue
        try:
            row = decoder.decode(line)
            at_s, ids, input_tokens, output_tokens = convert(row)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TraceError(f"{path}:{at}: {error}") from error
        first_s = at_s if first_s is None else first_s
        blocks = [numbers.setdefault(each, len(numbers)) for each in ids]
        hints = getattr(row, "hints", None) or NO_HINTS  # none but our own has some
        yield TraceRequest(at_s - first_s, blocks, input_tokens, output_tokens, hints)
    if first_s is None:
        raise TraceError(f"{path}: there is no request in it")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if path.suffix == ".zst":
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            file = stack.enter_context(io.BufferedReader(reader))
        try:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line
        except zstandard.ZstdError as error:
            raise TraceError(f"{path}: {error}") from error


def _format_of(path: Path, at: int, line: bytes) -> str:
    """The format that a first line speaks of."""
    try:
        row = msgspec.json.decode(line)
        if not isinstance(row, dict):
            raise TraceError(f"{path}:{at}: a request is a JSON object, not {type(row).__name__}")
        if "format" in row:
            header = msgspec.convert(row, _Header)
            if (header.format, header.version) != (FORMAT, VERSION):
                raise TraceError(f"{path}:{at}: {header.format} {header.version} is not {FORMAT} {VERSION}")
            return "kvtide"
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}:{at}: {error}") from error
    if "chunk_hashes" in row:
        return "lmcache"
    if "hash_ids" in row:
        return "bailian" if "chat_id" in row else "mooncake"
    raise TraceError(
        f"{path}:{at}: no trace that is known: it has neither hash_ids nor chunk_hashes nor a header"
    )


class TraceWriter(Closing):
    """Writes a trace of our own, a line a request, compressed where the name ends in .zst. A context manager."""

    def __init__(self, path: Path, block_tokens: int) -> None:
        """Begins the file, in place of one that is there. `block_tokens`: tokens of a block."""
        file: IO[bytes] = path.open("wb")
        if path.suffix == ".zst":
            file = zstandard.ZstdCompressor().stream_writer(file)  # closes what it writes to
        self._file = file
        self._encoder = msgspec.json.Encoder()
        self._put(_Header(FORMAT, VERSION, block_tokens))

    def write(
        self,
        at_s: float,
        blocks: Sequence[int],
        input_tokens: int,
        output_tokens: int,
        hints: Hints | None = None,
    ) -> None:
        """Add a request. `at_s`: seconds on any clock; `blocks`: an id of each whole block, below 2**63."""
        self._put(_Own(at_s, list(blocks), input_tokens, output_tokens, hints))

    def _put(self, row: msgspec.Struct) -> None:
        self._file.write(self._encoder.encode(row) + b"\n")

    def close(self) -> None:
        """End the file. Idempotent."""
        self._file.close()
