"""Records of a store on disk, read and checked on the calling threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvstore.codec import Bytes
from kvstore.disk.encoding import Encoding
from kvstore.disk.form import Form
from kvstore.disk.recovery import Recovery
from kvstore.disk.writer import Writer
from kvstore.reasons import MissReason
from kvstore.record import RecordFormat
from kvstore.store import HIT, BlockRef, ReadOutcome

if TYPE_CHECKING:
    from kvstore.store import Writable

HEAD_BYTES: Final = 256
"""Enough of a record to tell it from a later one under the same key: the time of writing and all checksums."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A record that failed a check."""

    key: bytes
    head: bytes
    reason: MissReason


class Reading:
    """Any thread may call it, of which several read and decode side by side. Raises StoreFailed as `Recovery.reading` does."""

    def __init__(
        self, format_: RecordFormat, form: Form, encoding: Encoding, recovery: Recovery, writer: Writer
    ) -> None:
        """On the thread of `writer` baselines are loaded that could not be before."""
        self._format, self._form, self._encoding = format_, form, encoding
        self._recovery, self._writer = recovery, writer

    def read(self, refs: Sequence[BlockRef], out: Sequence[Bytes]) -> tuple[list[ReadOutcome], list[Damage]]:
        """Outcomes, and what failed a check. Where a read fails and not all baselines could be loaded so far, once more if
        now they can.
        """
        was_loaded = self._encoding.is_loaded
        outcomes, damaged = self._read_once(refs, out)
        failed = any(outcome.reason is MissReason.READ_FAILED for outcome in outcomes)
        if failed and not was_loaded and self._writer.run(self._encoding.load):
            return self._read_once(refs, out)
        return outcomes, damaged

    def _read_once(
        self, refs: Sequence[BlockRef], out: Sequence[Bytes]
    ) -> tuple[list[ReadOutcome], list[Damage]]:
        keys = [self._form.entry_key(ref.key) for ref in refs]
        heads: dict[int, bytes] = {}

        def examine(position: int, rests: memoryview) -> MissReason | None:
            reason = self._unpack(rests, refs[position], out[position])
            if reason is not None and reason.damaged:
                heads[position] = bytes(rests[:HEAD_BYTES])
            return reason

        wanted = None if self._form.sealed else self._format.wanted(refs, out)

        with self._recovery.reading() as tables:
            reasons = tables.examined(keys, examine, wanted)
        outcomes = [HIT if reason is None else ReadOutcome(reason) for reason in reasons]
        damaged = [
            Damage(keys[position], heads[position], reason)
            for position, reason in enumerate(reasons)
            if reason is not None and reason.damaged
        ]
        return outcomes, damaged

    def _unpack(self, rests: memoryview, ref: BlockRef, buffer: "Writable") -> MissReason | None:
        record = self._form.opened(rests)
        if isinstance(record, MissReason):
            return record
        all_known = self._encoding.is_loaded  # before: what is loaded meanwhile was not there to decode with
        reason = self._format.unpack(record, ref, buffer)
        is_unread = reason is MissReason.MISSING_BASELINE and not all_known
        return MissReason.READ_FAILED if is_unread else reason
