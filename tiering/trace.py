"""Streams of requests with block identities: readers of four formats, and a writer of our own.

All are one JSON object a line, compressed with zstd where the name ends in .zst:

    format     told by          ids              time                    where from
    kvtide     a first line     blocks           at_s, seconds           TraceWriter
    lmcache    chunk_hashes     chunk_hashes     timestamp, seconds      LMCache's log of lookup hashes
    bailian    chat_id          hash_ids         timestamp, seconds      Alibaba's Qwen-Bailian traces
    mooncake   hash_ids         hash_ids         timestamp, milliseconds Mooncake's traces, and many in their form

An id stands for a block, and is the same only where all ids before it are. Times are from the first request of a trace.

A trace of our own may end anywhere: what was cut off in the middle of a line, or of a compressed file, is left out.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import zstandard
from msgspec.structs import replace

from kvstore.closing import Closing
from tiering.keeping import Hints
from tiering.keeping.admission import KINDS, NO_HINTS

FORMAT: Final = "kvtide-trace"
VERSION: Final = 1
_ENDING: Final = b'{"ended"'


class TraceError(ValueError):
    """A line that is not what its format says. The message begins with file and line."""


class TraceRequest(msgspec.Struct, frozen=True):
    """One request of a trace: a struct, as it takes a fifth of the time of a frozen dataclass to make."""

    at_s: float
    """When it came, from the first request on."""
    blocks: list[int]
    """The prompt's blocks: numbers below 2**31, equal in one trace where the ids are."""
    input_tokens: int
    """0 where the trace does not say."""
    output_tokens: int
    hints: Hints = NO_HINTS
    kind: int = 0
    """See Told.kind."""
    reply_blocks: list[int] = []
    """Of a recorded one: the blocks that its reply completed, behind those of the prompt."""
    found: Mapping[str, int] | None = None
    """Of a recorded one: the blocks of the prompt that the cache had, by the nearest tier; None if it never came to that."""
    ttft_s: float | None = None
    """Of a recorded one: until its first token."""


class _Header(msgspec.Struct, omit_defaults=True):
    format: str
    version: int
    block_tokens: int
    about: dict[str, int | str] = {}


class Row(msgspec.Struct, omit_defaults=True):
    """A line of our own: a request, and of a recorded one what became of it (docs/record.md)."""

    at_s: float
    blocks: list[int]
    input_tokens: int = 0
    output_tokens: int = 0
    hints: Hints | None = None
    reply_blocks: list[int] = []
    tenant: str | None = None
    kind: str | None = None
    found: dict[str, int] | None = None
    ttft_s: float | None = None
    end: str | None = None
    dropped: int = 0


class Ending(msgspec.Struct):
    """The last line of a recording, if it came to its end."""

    ended: str
    requests: int
    dropped: int


class _HashIds(msgspec.Struct):
    timestamp: float
    hash_ids: list[int | str]
    input_length: int = 0
    output_length: int = 0


class _Lookup(msgspec.Struct):
    timestamp: float
    chunk_hashes: list[str | int]
    seq_len: int = 0


_Basic = tuple[float, list[Any], int, int]


def _own(row: Row) -> _Basic:
    return row.at_s, row.blocks, row.input_tokens, row.output_tokens


def _mooncake(row: _HashIds) -> _Basic:
    return row.timestamp / 1000, row.hash_ids, row.input_length, row.output_length


def _bailian(row: _HashIds) -> _Basic:
    return row.timestamp, row.hash_ids, row.input_length, row.output_length


def _lmcache(row: _Lookup) -> _Basic:
    return row.timestamp, row.chunk_hashes, row.seq_len, 0


_FORMATS: Final[dict[str, tuple[type, Callable[[Any], _Basic]]]] = {
    "kvtide": (Row, _own),
    "lmcache": (_Lookup, _lmcache),
    "bailian": (_HashIds, _bailian),
    "mooncake": (_HashIds, _mooncake),
}


class _Numbers:
    """Numbers blocks in the order in which their ids come. Many traces have them numbered so: nothing is remembered of those as long as
    they do, which takes a quarter of the time.
    """

    def __init__(self) -> None:
        self._num = 0
        self._by_id: dict[Any, int] | None = None

    def of(self, ids: list[Any]) -> list[int]:
        """The numbers of a prompt's blocks, or of those that follow it."""
        if self._by_id is None:
            if self._are_numbers(ids):
                return ids
            self._by_id = {number: number for number in range(self._num)}
        by_id = self._by_id
        return [by_id.setdefault(each, len(by_id)) for each in ids]

    def _are_numbers(self, ids: list[Any]) -> bool:
        """Whether each of them has come before, or is the next number; if so, count those that are."""
        if not ids:
            return True
        last, num = ids[-1], self._num
        if type(last) is not int:
            return False
        known = ids[: num - last - 1] if last >= num else ids
        if ids[len(known) :] != list(range(num, num + len(ids) - len(known))):
            return False
        try:
            are_known = not known or 0 <= min(known) <= max(known) < num
        except TypeError:  # some are no numbers
            return False
        if are_known:
            self._num = max(num, last + 1)
        return are_known


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """The requests of a trace, in the file's order, as they are read.

    Raises TraceError for a line that cannot be used and for a file without a request, OSError as `open` does.
    """
    numbers = _Numbers()
    name = ""
    convert: Callable[[Any], _Basic] | None = None
    decoder: msgspec.json.Decoder[Any] | None = None
    first_s: float | None = None
    for at, line in _lines(path):
        if decoder is None or convert is None:
            name = _format_of(path, at, line)
            structure, convert = _FORMATS[name]
            decoder = msgspec.json.Decoder(structure)
            if name == "kvtide":
                continue
        if name == "kvtide" and line.startswith(_ENDING):
            continue
        try:
            row = decoder.decode(line)
            at_s, ids, input_tokens, output_tokens = convert(row)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            if name == "kvtide" and not line.endswith(b"\n"):
                break  # cut off: who wrote it was killed
            cut = "" if line.endswith(b"\n") else "; the file ends in this line: is it whole?"
            raise TraceError(f"{path}:{at}: {error}{cut}") from error
        first_s = at_s if first_s is None else first_s
        request = TraceRequest(at_s - first_s, numbers.of(ids), input_tokens, output_tokens)
        if isinstance(row, Row):
            request = replace(
                request,
                hints=row.hints or NO_HINTS,
                kind=KINDS.get(row.kind or "", 0),
                reply_blocks=numbers.of(row.reply_blocks),
                found=row.found,
                ttft_s=row.ttft_s,
            )
        yield request
    if first_s is None:
        raise TraceError(f"{path}: there is no request in it")


def whole_block_tokens(path: Path) -> int | None:
    """Of a trace of our own, which has whole blocks only: how many tokens each has. None of another. Raises as `read_trace`."""
    for at, line in _lines(path):
        is_own = _format_of(path, at, line) == "kvtide"
        return msgspec.json.decode(line, type=_Header).block_tokens if is_own else None
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

    def __init__(
        self, path: Path | IO[bytes], block_tokens: int, about: Mapping[str, int | str] | None = None
    ) -> None:
        """Begins the file, in place of one that is there; what has no path is written to, and closed.

        `block_tokens`: tokens of a block; `about`: what else is to be known of where it was recorded.
        """
        self._below = path.open("wb") if isinstance(path, Path) else path
        self._file: Any = self._below
        if isinstance(path, Path) and path.suffix == ".zst":
            self._file = zstandard.ZstdCompressor().stream_writer(self._below)  # closes what it writes to
        self._encoder = msgspec.json.Encoder()
        self.num_bytes = 0
        """Written so far, before compression."""
        self._put(_Header(FORMAT, VERSION, block_tokens, dict(about or {})))

    def write(
        self,
        at_s: float,
        blocks: Sequence[int],
        input_tokens: int,
        output_tokens: int,
        hints: Hints | None = None,
    ) -> None:
        """Add a request. `at_s`: seconds on any clock; `blocks`: an id of each whole block, below 2**63."""
        self.add(Row(at_s, list(blocks), input_tokens, output_tokens, hints))

    def add(self, row: Row | Ending) -> None:
        """Add a request with what became of it, or the end."""
        self._put(row)

    def flush(self) -> None:
        """Hand on what was written: it survives the end of this process."""
        if self._file is not self._below:
            self._file.flush(zstandard.FLUSH_BLOCK)
        self._below.flush()

    def _put(self, row: msgspec.Struct) -> None:
        self.num_bytes += self._file.write(self._encoder.encode(row) + b"\n") or 0

    def close(self) -> None:
        """End the file. Idempotent."""
        self._file.close()
