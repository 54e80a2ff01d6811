"""Whether the disk may be read and written: there is one, and it neither keeps failing nor hangs."""

from kvstore.reasons import MissReason
from kvstore.store import ReadOutcome
from tiering.events import EventLog
from tiering.index_config import IndexConfig
from tiering.moves import HasRead, Read, Write, Written
from tiering.outbox import Outbox
from tiering.rest import Rest


class DiskHealth:
    """Learns from the answers of reads and writes. The time is the outbox's."""

    def __init__(self, config: IndexConfig, outbox: Outbox) -> None:
        self._outbox = outbox
        self._is_there, self._max_overdue_reads = config.disk_bytes > 0, config.max_overdue_reads
        self._reads_rest = Rest(config.disk_failures, config.disk_rest_s)
        self._writes_rest = Rest(config.disk_failures, config.disk_rest_s)
        self._outdated_reads: set[int] = set()
        """Reads in flight that may be of files which are gone."""
        self._did_read = self._did_write = self._is_there
        """Whether it could be read, and written, when it was last told of."""

    @property
    def can_read(self) -> bool:
        """Whether it may be read."""
        outbox = self._outbox
        if not self._is_there or outbox.now_s < self._reads_rest.until_s:
            return False
        return not outbox.hangs or outbox.num_overdue(Read) < self._max_overdue_reads

    @property
    def can_write(self) -> bool:
        """Whether it may be written."""
        outbox = self._outbox
        if not self._is_there or outbox.now_s < self._writes_rest.until_s:
            return False
        return not outbox.hangs or not outbox.num_overdue(Write)

    def has_read(self, answer: HasRead, num_blocks: int) -> HasRead:
        """A read is over. What to make of it: one that failed, but was asked for before the disk was emptied, has found nothing."""
        if answer.number in self._outdated_reads:
            self._outdated_reads.remove(answer.number)
            if answer.error is not None:
                answer = HasRead(answer.number, (ReadOutcome(MissReason.ABSENT),) * num_blocks)
        self._reads_rest.note(answer.error, self._outbox.now_s)
        return answer

    def has_written(self, answer: Written) -> bool:
        """A write is over. Whether no more are asked for, for a while."""
        return self._writes_rest.note(answer.error, self._outbox.now_s)

    def was_emptied(self) -> None:
        """Its files are new: a read that fails may have been of the old ones."""
        self._outdated_reads.update(self._outbox.numbers(Read))
        self._reads_rest.end()
        self._writes_rest.end()

    def tell(self, events: EventLog) -> None:
        """Note if it is left alone since the last call, or works again."""
        can_read, can_write = self.can_read, self.can_write
        if can_read != self._did_read:
            events.append("disk_works" if can_read else "disk_rests", what="reads")
        if can_write != self._did_write:
            events.append("disk_works" if can_write else "disk_rests", what="writes")
        self._did_read, self._did_write = can_read, can_write
