"""Records that failed a check, put aside for whoever wants to know what happened to them.

A file each, so that `ls` and `xxd` are all it takes to look:

    PATH/v1/quarantine/<when>-<reason>-<namespace digest><key>

`when` is the time in nanoseconds since 1970, twenty digits; digest and key are hexadecimal.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvstore.block import KEY_BYTES, BlockKey
from kvstore.reasons import MissReason

MAX_RECORDS: Final = 64
MAX_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One record that was put aside."""

    when_ns: int
    """When it was found; later than what was found before it, even if the clock was set back."""
    reason: MissReason
    namespace_digest: bytes
    key: BlockKey
    num_bytes: int
    path: Path
    """Where the record lies, byte for byte as it was found."""


class Quarantine:
    """At most MAX_RECORDS records and MAX_BYTES bytes of them, of which the oldest go first.

    Only the writer's thread calls `add`; any thread may list. Nothing here raises: what cannot be put aside
    is lost, which costs the evidence and nothing else.
    """

    def __init__(self, folder: Path, *, max_records: int = MAX_RECORDS, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_records, self._max_bytes = max_records, max_bytes

    def add(self, entry_key: bytes, reason: MissReason, record: bytes, now_ns: int) -> None:
        """Put a record aside, and let go of the oldest ones where that makes too many. Blocks on the disk."""
        if len(record) > self._max_bytes:
            return
        held = self.listed()
        when_ns = max(now_ns, held[-1].when_ns + 1) if held else now_ns
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            _make_room(held, self._max_records - 1, self._max_bytes - len(record))
            self._write(f"{when_ns:020d}-{reason.value}-{entry_key.hex()}", record)
        except OSError:
            return

    def clear(self) -> None:
        """Let go of all of it. Raises OSError if that fails."""
        for one in self.listed():
            one.path.unlink(missing_ok=True)

    def listed(self) -> list[Quarantined]:
        """What was put aside, oldest first."""
        try:
            found = [_parsed(path) for path in sorted(self._folder.iterdir())]
        except OSError:
            return []
        return [one for one in found if one is not None]

    def _write(self, name: str, record: bytes) -> None:
        path = self._folder / name
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(file, "wb") as out:
                out.write(record)
        except OSError:  # a part of a record is evidence of the wrong thing
            path.unlink(missing_ok=True)
            raise


def _make_room(held: list[Quarantined], max_records: int, max_bytes: int) -> None:
    num_records, num_bytes = len(held), sum(one.num_bytes for one in held)
    for one in held:
        if num_records <= max_records and num_bytes <= max_bytes:
            return
        one.path.unlink(missing_ok=True)
        num_records, num_bytes = num_records - 1, num_bytes - one.num_bytes


def _parsed(path: Path) -> Quarantined | None:
    """None for a file that is not one of ours, or has gone."""
    try:
        when, reason, name = path.name.split("-")
        entry_key = bytes.fromhex(name)
        return Quarantined(
            int(when),
            MissReason(reason),
            entry_key[:KEY_BYTES],
            entry_key[KEY_BYTES:],
            path.stat().st_size,
            path,
        )
    except (OSError, ValueError):
        return None
