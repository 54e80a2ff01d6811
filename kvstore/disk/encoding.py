"""How the blocks of a store are encoded: what is learned of them on the way, and whether it pays at all."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from kvstore.codec import as_bytes
from kvstore.cores import num_cores
from kvstore.disk.baselines import BaselineFiles
from kvstore.disk.worth import Rates, is_worth_encoding
from kvstore.record import RecordFormat, codec_of
from kvstore.store import NO_OWNER, BlockRef

if TYPE_CHECKING:
    from kvstore.store import Readable


_log = logging.getLogger(__name__)


class Encoding:
    """Packs records, and keeps what they are encoded with. Any thread may call `pack`, `written`, `is_due` and `is_loaded`; all
    else is for the writer's thread.
    """

    def __init__(
        self,
        form: RecordFormat,
        files: BaselineFiles,
        *,
        rates: Callable[[], Rates | None] | None,
        read_threads: int,
    ) -> None:
        """`rates` measures, and answers None while it cannot; None where it is decided whether blocks are encoded."""
        self._format, self._files = form, files
        self._rates, self._read_threads = rates, read_threads
        self._lock = threading.Lock()
        self._written: Counter[str] = Counter()
        self._is_loaded: bool | None = None
        """None before the first try."""

    @property
    def is_due(self) -> bool:
        """Whether enough is learned for `keep_baseline`."""
        return self._format.baselines.is_due

    @property
    def is_loaded(self) -> bool:
        """Whether every baseline that there is in the files is known. If not, a record that names another one may be sound."""
        return bool(self._is_loaded)

    @property
    def encodes(self) -> bool:
        """Whether blocks are encoded now, where that gains."""
        return self._format.encodes

    @property
    def itemsize(self) -> int | None:
        """Bytes of an element of what is encoded now; None where nothing is."""
        return self._format.layout.itemsize if self.encodes else None

    def pack(self, ref: BlockRef, block: "Readable", written_ns: int) -> memoryview:
        """The record of a block, which is learned from if it is everybody's: of what is an owner's, a baseline is to have
        nothing.
        """
        record = self._format.pack(ref, block, written_ns)
        if self._format.encodes and ref.owner == NO_OWNER:
            self._format.baselines.learn(as_bytes(block))
        with self._lock:
            self._written[codec_of(record).name.lower()] += 1
        return record

    def written(self) -> dict[str, int]:
        """How many records were packed, by codec."""
        with self._lock:
            return dict(self._written)

    def load(self) -> bool:
        """Have the baselines that are in the files. Answers whether that is all; if not, it is to be tried again."""
        if not self._is_loaded:
            found, unread = self._files.found()
            baselines = self._format.baselines
            for baseline in found:
                if baseline.fits(self._format.layout) and baseline.digest not in baselines.known:
                    baselines.add(baseline)
            for error in unread if self._is_loaded is None else []:
                facts = {"error": error}
                _log.warning(
                    "a baseline cannot be read yet, and is tried again: %(error)s", facts, extra=facts
                )
            self._is_loaded = not unread  # last: who sees it must find them all
        return self._is_loaded

    def keep_baseline(self, leave_room: Callable[[int], bool]) -> None:
        """Have what was learned on the disk, then write with it; if there is room for so many bytes.

        Does nothing while none is due, and is to be called again where it fails.
        """
        baselines = self._format.baselines
        if baselines.is_due:
            baseline = baselines.learned()
            if leave_room(len(baseline.content)) and self._files.keep(baseline):
                baselines.add(baseline)

    def forget_all_but(self, digests: Collection[bytes]) -> None:
        """Delete the baselines of all other namespaces."""
        self._files.forget_all_but(digests)

    def weigh(self) -> None:
        """Find out whether encoding pays, if that is open and can be told yet."""
        if self._rates is not None and (rates := self._rates()) is not None:
            self._rates = None
            at_once = min(self._read_threads, num_cores())  # the others wait for the disk
            self._format.encodes = is_worth_encoding(rates, at_once)

    def check(self) -> None:
        """Raise AssertionError where the baselines contradict each other."""
        self._format.baselines.check()
