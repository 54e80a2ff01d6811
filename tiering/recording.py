"""What a live engine is asked, written down as a trace, behind a key: which prompts begin alike, and nothing of what they say.

A block's id is a keyed hash (BLAKE2b) of its tokens and of what is before it, so that ids are equal where whole prefixes are. Who
does not have the key learns from an id nothing but that; one that is drawn for a recording is never written down.
"""

import contextlib
import heapq
import itertools
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Final

import numpy as np

from kvstore.closing import Closing
from kvstore.reports import TierName
from tiering.keeping import Hints
from tiering.keeping.admission import NO_HINTS
from tiering.radix import Tokens
from tiering.trace import Ending, Row, TraceWriter

_log = logging.getLogger(__name__)

KEY_BYTES: Final = 32

_MOST_WAITING: Final = 1024
_MOST_WAITING_TOKENS: Final = 1 << 22
"""Of requests that have ended and are not written down: 16 MB. What comes then is dropped, and counted."""
_MOST_HELD: Final = 4096
"""Rows that wait for an earlier request to end, as rows stand in the order of arrival: beyond that they stand as they come."""
_FLUSH_S: Final = 1.0
"""What is lost, at most, of a process that is killed."""
_LEAST_BYTES: Final = 4096
_JOIN_S: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A request that has ended.

    arrived_s: on the recording's clock.   tokens: int32, prompt and reply as far as their KV was computed, as the cache was asked
    for them.   prompt_tokens: of these the prompt, whose last may be missing.   hints: as the admission was told them.   found:
    blocks of the prompt by the tier that had them; None if it never came to that, and likewise ttft_s.   tenant, kind, end: plain
    words; of the tenant a hash is written.
    """

    arrived_s: float
    tokens: Tokens
    prompt_tokens: int
    output_tokens: int
    hints: Hints = NO_HINTS
    tenant: str | None = None
    kind: str | None = None
    found: Mapping[TierName, int] | None = None
    ttft_s: float | None = None
    end: str | None = None


class Ids:
    """Names blocks and tenants under a key."""

    def __init__(self, key: bytes, block_tokens: int) -> None:
        self._key, self._size = key, 4 * block_tokens
        # copied for each block: making one anew would work the key in again
        self._began = blake2b(key=key, digest_size=16, person=b"kvtide-trace")

    def blocks(self, tokens: Tokens) -> list[int]:
        """An id, below 2**63, of each whole block."""
        data = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
        chain, digests = b"", []
        for end in range(self._size, len(data) + 1, self._size):
            hasher = self._began.copy()
            hasher.update(chain + data[end - self._size : end])
            chain = hasher.digest()
            digests.append(chain)
        ids: list[int] = (np.frombuffer(b"".join(digests), dtype="<u8")[::2] >> np.uint64(1)).tolist()
        return ids

    def tenant(self, name: str) -> str:
        """Sixteen hexadecimal digits."""
        return blake2b(name.encode(), key=self._key, digest_size=8, person=b"kvtide-tenant").hexdigest()


class Recording(Closing):
    """Writes requests down as they end, on a thread of its own. Any thread may call all of it; a context manager.

    It ends with `close`, or by itself where it has become too long or too large, or what it writes to fails.
    """

    def __init__(
        self,
        target: Path | IO[bytes],
        *,
        block_tokens: int,
        key: bytes | None = None,
        max_s: float | None = None,
        max_bytes: int | None = None,
        rotate: bool = False,
        about: Mapping[str, int | str] | None = None,
        settle: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins the file, in place of one that is there, or writes to something that is open, and closes it.

        `key`: of KEY_BYTES; None draws one. `max_bytes`: of rows, before compression; with `rotate` a file that has become so large
        is renamed, in place of the one before it, and another begun. `about`: for the file's first line. `settle` is called by who
        closes it, to wait until what has ended was offered. Raises OSError as `open` does, ValueError for a key of another
        length, and if what is no file is to be rotated.
        """
        if key is not None and len(key) != KEY_BYTES:
            raise ValueError(f"the key must have {KEY_BYTES} bytes, not {len(key)}")
        if max_bytes is not None and max_bytes < _LEAST_BYTES:
            raise ValueError(f"a recording needs {_LEAST_BYTES} bytes at least, not {max_bytes}")
        if rotate and (max_bytes is None or not isinstance(target, Path)):
            raise ValueError("only a file is rotated, and max_bytes must say when")
        self._target, self._block_tokens, self._about = target, block_tokens, about
        self._ids = Ids(key or secrets.token_bytes(KEY_BYTES), block_tokens)
        self._max_bytes, self._rotate, self._clock = max_bytes, rotate, clock
        self._settle = settle
        self._began_s = clock()
        self._end_s = None if max_s is None else self._began_s + max_s
        self._writer = self._begun()
        self._changed = threading.Condition()
        """Of what follows, down to `ended`."""
        self._waiting: deque[Served] = deque()
        self._waiting_tokens = 0
        self._running_since_s = float("inf")
        self._closing = False
        self.num_dropped = 0
        self.ended: str | None = None
        """Why it is over: "stopped", "seconds", "bytes" or "failed"; None while it goes on."""
        # of the thread alone
        self._held: list[tuple[float, int, Row]] = []
        self._numbers = itertools.count()
        self.num_written = self._num_told_dropped = 0
        self._flushed_s = self._began_s
        self._is_flushed = True
        self._thread = threading.Thread(target=self._run, name="kvtide-recording", daemon=True)
        self._thread.start()

    def offer(self, served: Served, running_since_s: float = float("inf")) -> None:
        """Have this written down. Does not wait: where too much waits already it is dropped.

        `running_since_s`: when the first of those that have not ended has come; what came before it need wait for none of them.
        """
        with self._changed:
            if self.ended or self._closing or served.arrived_s < self._began_s:
                return
            self._running_since_s = running_since_s
            num_tokens = len(served.tokens)
            is_full = len(self._waiting) >= _MOST_WAITING or (
                self._waiting and self._waiting_tokens + num_tokens > _MOST_WAITING_TOKENS
            )
            if is_full:
                self.num_dropped += 1
                return
            self._waiting.append(served)
            self._waiting_tokens += num_tokens
            self._changed.notify_all()

    def close(self) -> None:
        """Write what has ended, and end the file. Idempotent."""
        self._settle()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_JOIN_S)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it is over. False if the time was not enough."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stats(self) -> dict[str, int | str | None]:
        """Requests written and dropped, bytes of the file that is being written, and why it has ended, if it has."""
        return {
            "requests": self.num_written,
            "dropped": self.num_dropped,
            "bytes": self._writer.num_bytes,
            "ended": self.ended,
        }

    def check(self) -> None:
        """Raise AssertionError if what waits is more than may, or is not what was counted."""
        with self._changed:
            num_tokens = sum(len(served.tokens) for served in self._waiting)
            assert num_tokens == self._waiting_tokens, (
                f"{num_tokens} tokens wait, {self._waiting_tokens} are counted"
            )
            assert len(self._waiting) <= _MOST_WAITING, f"{len(self._waiting)} requests wait"
            assert 0 <= self._num_told_dropped <= self.num_dropped, (
                f"{self._num_told_dropped} of {self.num_dropped} dropped were told of"
            )

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason = "failed"
        try:
            while (over := self._over()) is None:
                self._take(self._awaited())
            reason = over
            self._take(self._taken())
            self._write(all_of_them=True)
            self._writer.add(Ending(reason, self.num_written, self.num_dropped))
        except Exception as error:  # noqa: BLE001 - the thread's top: a recording must not end what it records
            _log.warning("a recording has ended: %s", error, extra={"error": error})
        with self._changed:
            self.ended = reason
            self._waiting.clear()
            self._waiting_tokens = 0
        with contextlib.suppress(OSError):  # which writing has told of, or the next reader will see
            self._writer.close()

    def _over(self) -> str | None:
        if self._closing:
            return "stopped"
        if self._end_s is not None and self._clock() >= self._end_s:
            return "seconds"
        return "bytes" if self._is_too_large and not self._rotate else None

    @property
    def _is_too_large(self) -> bool:
        return self._max_bytes is not None and self._writer.num_bytes >= self._max_bytes

    def _awaited(self) -> list[Served]:
        """What has ended, once there is something, or something else to do."""
        now_s = self._clock()
        ends_s = [self._end_s] if self._end_s is not None else []
        ends_s += [] if self._is_flushed else [self._flushed_s + _FLUSH_S]
        timeout_s = max(0.0, min(ends_s) - now_s) if ends_s else None
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing, timeout_s)
        return self._taken()

    def _taken(self) -> list[Served]:
        with self._changed:
            some, self._waiting, self._waiting_tokens = self._waiting, deque(), 0
        return list(some)

    def _take(self, some: list[Served]) -> None:
        for served in some:
            heapq.heappush(self._held, (served.arrived_s, next(self._numbers), self._row(served)))
        self._write()
        if not self._is_flushed and self._clock() >= self._flushed_s + _FLUSH_S:
            self._writer.flush()
            self._flushed_s, self._is_flushed = self._clock(), True

    def _write(self, *, all_of_them: bool = False) -> None:
        """The rows before which none can come any more."""
        while self._held and (
            all_of_them or self._held[0][0] < self._running_since_s or len(self._held) > _MOST_HELD
        ):
            if self._is_too_large and self._rotate:
                self._next_file()
            _, _, row = heapq.heappop(self._held)
            num_dropped = self.num_dropped
            row.dropped, self._num_told_dropped = num_dropped - self._num_told_dropped, num_dropped
            self._writer.add(row)
            self.num_written += 1
            if self._is_flushed:
                self._flushed_s, self._is_flushed = self._clock(), False

    def _row(self, served: Served) -> Row:
        ids = self._ids.blocks(served.tokens)
        num_prompt = served.prompt_tokens // self._block_tokens
        return Row(
            at_s=round(served.arrived_s - self._began_s, 6),
            blocks=ids[:num_prompt],
            input_tokens=served.prompt_tokens,
            output_tokens=served.output_tokens,
            hints=None if served.hints == NO_HINTS else served.hints,
            reply_blocks=ids[num_prompt:],
            tenant=None if served.tenant is None else self._ids.tenant(served.tenant),
            kind=served.kind,
            found=None if served.found is None else {str(tier): num for tier, num in served.found.items()},
            ttft_s=None if served.ttft_s is None else round(served.ttft_s, 6),
            end=served.end,
        )

    # --- files ----------------------------------------------------------------------------------------------------

    def _begun(self) -> TraceWriter:
        return TraceWriter(self._target, self._block_tokens, self._about)

    def _next_file(self) -> None:
        assert isinstance(self._target, Path), "only files are rotated"
        self._writer.close()
        self._target.replace(earlier(self._target))
        self._writer = self._begun()


def earlier(path: Path) -> Path:
    """What a file is called once it has been rotated: trace.jsonl.zst becomes trace.1.jsonl.zst."""
    name, dot, rest = path.name.partition(".")
    return path.with_name(f"{name}.1{dot}{rest}")
