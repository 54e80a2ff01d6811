"""TieredCache: the core, the mover and a store, driven in real time by the thread that owns the engine loop."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from kvstore.block import BlockKey
from kvstore.closing import Closing
from kvstore.reports import Event, PrefixDetail, PrefixPage, PrefixQuery, Removed, TierName
from kvstore.slots import SlotMemory
from kvstore.steering import UNCHANGED, Unchanged
from kvstore.store import Store
from tiering.decision import Chooser
from tiering.driver import Driver
from tiering.errands import Errands, Steps, at_once
from tiering.events import EventLog
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.io_threads import IoThreads, Jobs
from tiering.listing import Describe, Listing
from tiering.matching import CacheUse
from tiering.moves import (
    Answer,
    Copied,
    Demote,
    Forget,
    HasRead,
    Move,
    Promote,
    Read,
    Retain,
    SwapIn,
    SwapOut,
    Touch,
    Unname,
    Write,
    Written,
)
from tiering.observation import Observed
from tiering.quotas import Quotas
from tiering.radix import Tokens
from tiering.residency import Tier
from tiering.retaining import Retaining
from tiering.store_calls import HasFound, StoreCalls
from tiering.transfer.device import Device
from tiering.transfer.mover import WHOLE_SLOT, Arriving, Mover
from tiering.writes import Sweep

_Item = TypeVar("_Item")
Answered = TypeVar("Answered")

_CLOSED = "the cache is closed"
_SETTLE_STEP_S = 0.1  # how long to wait for news before planning again: a resting disk wakes nobody


class TieredCache(Driver, Closing):
    """A prefix cache over device, host and disk. One thread drives it, and calls `close` or has ended by then.

    Others may call what says so; where that takes the thread that drives, they wait for its next turns.

    Nothing here decides where a block goes (the core does) or in which order copies run (the mover does). Calls do
    not block, save `before_compute` where the device blocks, `finish`, `settle`, `restored`, `clear`, `erase` and
    `close`. `wake` is called from other threads when `pump` has news; it must only post.
    """

    def __init__(
        self,
        config: IndexConfig,
        *,
        root_key: BlockKey,
        device: Device,
        pool: SlotMemory,
        slab: SlotMemory,
        store: Store | None,
        wake: Callable[[], None],
        join_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
        jobs: Callable[[str, int], Jobs] = IoThreads,
        layer_groups: Sequence[slice] = (WHOLE_SLOT,),
        restore_s: float = 1.0,
        chooser: Chooser | None = None,
    ) -> None:
        """Takes over `device` and `store`: closing the cache closes them. What the store holds is found again.

        For `restore_s` at most this waits until all of that is known; what takes longer goes on meanwhile, in pumps.
        `join_s`: for how long reads, and then writes, that do not end may hold up `close`. `clock` counts seconds and
        does not go backwards; `now_ns` is the store's clock, which may jump: it is asked only for how old blocks are
        at the start, and for what the store is to know of their age. `jobs` makes what runs the store's calls, from
        a name and a number of threads. `layer_groups`: see Mover. `chooser`: see Index. A store that cannot be listed, twice, is taken
        for empty.
        """
        index = Index(
            config,
            root_key,
            block_bytes=pool.block_bytes,
            events=EventLog(lambda: now_ns() / 1e9),
            chooser=chooser,
        )
        super().__init__(index, clock)
        self._now_ns = now_ns
        self._news = threading.Event()
        self._wake, self._woken = wake, False
        self._mover = Mover(device, pool, slab, self._announce, layer_groups)
        self._store = store
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._host_slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._calls: StoreCalls | None = None
        if store is not None:
            self._calls = StoreCalls(store, slab, self._report, jobs=jobs, read_threads=config.read_threads)
        self._fresh_starts = 0
        self._suspect = False
        """Whether a read or write has failed since the store last went on empty: it may do so at any time."""
        self._num_ended = self._num_told = 0
        self._errands = Errands()
        self._listing = Listing(
            lambda: self._answer_to(lambda: self._index.walk()),  # noqa: PLW0108 - the index as it is then
            root_key,
            config.block_tokens,
            clock=clock,
            ttl_s=lambda: self._index.config.ttl_s,
            wait=self._wait_for,
        )
        self._join_s = join_s
        self._joined: bool | None = None
        """What `close` answers; None while the cache is open."""
        self._take_in()
        self.retaining = Retaining(self._index, store, self._answer_to, clock, now_ns)
        """What users have it keep: any thread may ask for it."""
        if self._calls is not None:
            self.retaining.restore()
            self._index.begin_restore(clock())
            self._calls.find(root_key, now_ns(), self._found)
            try:
                self.restored(restore_s)
            except BaseException:
                # the store is the caller's still, to be closed: nobody may be at work in it
                self._calls.close(join_s)
                raise
        self._owner: int | None = None
        """The thread that drives the cache, once one has: it cannot wait for itself."""

    def _found(self, found: HasFound) -> None:
        """Called on a thread of the store's: what it holds was listed, or could not be."""
        if isinstance(found, Exception):
            self.ask(lambda: self._index.end_restore(found))
        else:
            self.ask_in_steps(lambda: self._index.restore(*found))

    @property
    def config(self) -> IndexConfig:
        """See Index.config. Any thread may ask."""
        return self._index.config

    # --- what requests do -----------------------------------------------------------------------------------------

    def owners(self) -> dict[str, dict[str, Any]]:
        """See Index.owners."""
        return self._index.owners()

    def observe(self, tokens: Tokens, use: CacheUse = CacheUse.READ_WRITE) -> Observed:
        """See Index.observe."""
        self._index.at(self._clock())
        return self._index.observe(tokens, use)

    def not_indexed(self, tokens: Tokens, start: int) -> None:
        """See Index.not_indexed."""
        self._index.not_indexed(tokens, start)

    def lookup(self, tokens: Tokens) -> dict[str, int]:
        """See Index.lookup."""
        self._index.at(self._clock())
        return self._index.lookup(tokens)

    def host_grows(self, num_slots: int) -> None:
        """So many host slots are ready, those from before among them. Any thread may call it."""
        self._host_slots.put(num_slots)
        self._announce()

    def before_compute(self, read_slots: Iterable[int], written_slots: Iterable[int], group: int = 0) -> None:
        """See Mover.before_compute."""
        self._mover.before_compute(read_slots, written_slots, group)

    def finish(self, read_slots: Iterable[int]) -> None:
        """See Mover.finish; then take in how copies have ended."""
        self._mover.finish(read_slots)
        self._take_in()

    def after_compute(self) -> None:
        """See Mover.after_compute."""
        self._mover.after_compute()

    # --- the driver -----------------------------------------------------------------------------------------------

    def pump(self, *, errands: bool = True) -> bool:
        """Take in what has ended, start what follows from it, and run errands of other threads for a millisecond.

        True if since the last call anything has ended, taken too long, or made room: whoever waits may find what it
        waits for. `errands`: to be given once in a turn of the loop.
        """
        self._take_in()
        if errands:
            self._run_errands()
        news, self._num_told = self._has_news, self._num_events
        return news

    def _run_errands(self) -> bool:
        """Whether there was something to do."""
        if self._errands.run():
            self._start_moves()
            return True
        return False

    @property
    def _num_events(self) -> int:
        return self._num_ended + self._index.num_expired + self._index.num_changes

    @property
    def _has_news(self) -> bool:
        return self._num_events > self._num_told

    def _take_in(self) -> bool:
        """Whether anything had ended."""
        self._woken = False  # before the look: what comes behind it wakes again
        answers: list[Answer] = []
        for news in self._mover.poll():
            if isinstance(news, Arriving):
                self._index.arriving(news.number)
            else:
                answers.append(Copied(news.number, news.error))
        answers += _drained(self._answers)
        for num_slots in _drained(self._host_slots):
            self._index.host_grows(num_slots)
        if answers:
            self._index.at(self._clock())  # or what they took would be too short
        for answer in answers:
            self._index.answer(answer)
        self._num_ended += len(answers)
        for answer in answers:
            if isinstance(answer, HasRead | Written):
                self._suspect |= answer.error is not None
        self._start_moves()
        return bool(answers)

    def _note_fresh_start(self) -> None:
        """Tell the index if the store has gone on empty: it would take blocks for safe that are not there."""
        assert self._store is not None, "only reads and writes make it suspect"
        fresh_starts = self._store.stats().fresh_starts
        if fresh_starts != self._fresh_starts:
            self._fresh_starts = fresh_starts
            self._suspect = False
            self._index.disk_was_emptied()

    @property
    def deadline_s(self) -> float | None:
        """When `pump` must be called even if nothing has ended before, on the cache's clock; None for never.

        At once if something has taken too long since it was last called: other calls look at the clock as well.
        """
        if self._has_news or self._errands.are_ready:
            return float("-inf")
        return self._index.deadline_s()

    def _start_moves(self) -> None:
        self._owner = threading.get_ident()
        if self._suspect:
            self._note_fresh_start()
        super()._start_moves()

    def _start(self, move: Move) -> None:
        match move:
            case Demote() | SwapOut():
                self._mover.submit_demote(move.number, move.device_slots.tolist(), move.host_slots.tolist())
            case Promote() | SwapIn():
                self._mover.submit_promote(move.number, move.host_slots.tolist(), move.device_slots.tolist())
            case _:
                self._call(move)

    def _call(self, move: Read | Write | Forget | Touch | Retain | Unname) -> None:
        assert self._calls is not None, "the disk is moved to and from only where there is a store"
        match move:
            case Read():
                self._calls.read(move, self._index.refs(move))
            case Write():
                self._calls.write(move, self._index.lineage(move))
            case Forget():
                self._calls.forget(move)
            case Retain() | Unname():
                self._calls.retain(move)
            case Touch():
                now_s, now_ns = self._clock(), self._now_ns()
                used_ns = [max(0, now_ns - int((now_s - used_s) * 1e9)) for used_s in move.used_s]
                self._calls.touch(move, used_ns)

    def _report(self, answer: Answer) -> None:
        self._answers.put(answer)
        self._announce()

    def _announce(self) -> None:
        """Called on any thread, after what there is to pump is there. Whoever was woken and has not looked yet will see it."""
        if not self._woken:
            self._woken = True
            self._news.set()
            self._wake()

    # --- for other threads ----------------------------------------------------------------------------------------

    def ask(self, function: Callable[[], Answered]) -> "Future[Answered]":
        """Have the cache's own thread call this in one of its next turns: `ask_in_steps` for what takes but a moment."""
        return self.ask_in_steps(at_once(function))

    def ask_in_steps(self, begin: Callable[[], Steps[Answered]]) -> "Future[Answered]":
        """Have the cache's own thread do something in its next turns: see Errands. Any thread may call it.

        The future fails with RuntimeError if the cache is closed, or can compute no more, before it is done.
        """
        future = self._errands.post(begin)
        self._announce()
        return future

    def _answer_to(self, begin: Callable[[], Steps[Answered]]) -> Answered:
        """Have the cache's own thread do something, and wait until it is done."""
        return self._wait_for(self.ask_in_steps(begin))

    def _wait_for(self, future: "Future[Answered]") -> Answered:
        """Wait for what takes the cache's own thread: where this is that thread, errands are done here."""
        while self._owner == threading.get_ident() and not future.done():
            self._news.clear()
            self._take_in()
            self._run_errands()
            if not (future.done() or self._errands.are_ready):
                self._news.wait(_SETTLE_STEP_S)
        return future.result()

    def prefixes(self, query: PrefixQuery, describe: Describe | None = None) -> PrefixPage:
        """List runs of blocks, as of a second ago at most where the index is not large. Any thread may call it.

        `describe` makes text of the token ids of rows, where the query wants text. Raises ValueError for what no query
        can be, and KeyError if there is no run `under` which to look.
        """
        return self._listing.page(query, describe)

    def prefix(
        self,
        key: str,
        *,
        text: bool = False,
        describe: Describe | None = None,
        unmark: Callable[[Tokens], Tokens] | None = None,
    ) -> PrefixDetail:
        """The run that holds the block of this key, in hexadecimal. Any thread may call it; KeyError if none does.

        With `text` its token ids, as `unmark` leaves them, and what `describe` makes of them.
        """
        return self._listing.detail(key, text=text, describe=describe, unmark=unmark)

    def remove_prefix(self, key: str) -> Removed:
        """Forget what is idle of a run and of all that follows it, in every tier, and wait until that is done.

        `key`: of a block of the run. Any thread may call it; KeyError if no block has that key.
        """
        path, start = self._listing.path_of(key)
        removed = self._answer_to(
            lambda: self._index.remove_prefix(path, start // self._index.config.block_tokens)
        )
        self._listing.expire()
        return removed

    def demote_prefix(self, key: str, to: TierName) -> Removed:
        """Move what is idle of a run, and of all that follows it, down to "host" or "disk"; wait until that is done.

        Counted as in use is all that is above that tier still. As for `remove_prefix`; ValueError for another tier, and
        RuntimeError if there is no such tier.
        """
        if to not in ("host", "disk"):
            raise ValueError(f'to must be "host" or "disk", not {to!r}')
        path, start = self._listing.path_of(key)
        tier = Tier[to.upper()]
        moved = self._answer_to(
            lambda: self._index.demote_prefix(path, start // self._index.config.block_tokens, tier)
        )
        self._listing.expire()
        return moved

    def change(
        self,
        *,
        host_slots: int | None = None,
        disk_bytes: int | None = None,
        ttl_s: float | Unchanged | None = UNCHANGED,
        clean_share: float | None = None,
        write_budget_blocks: int | None = None,
        io_deadline_s: float | None = None,
        min_prefix_tokens: int | None = None,
        quotas: Quotas | Unchanged | None = UNCHANGED,
    ) -> None:
        """Change fields of the IndexConfig, all of them or none; of those that are left out nothing changes.

        What a smaller tier must give up leaves over the next turns: `stats` says how far that is. `host_slots` may be
        what it was at the start, at most. The store's own settings are not touched. Any thread may call it; ValueError
        for what cannot work.
        """
        changes = {
            "host_slots": host_slots,
            "disk_bytes": disk_bytes,
            "clean_share": clean_share,
            "write_budget_blocks": write_budget_blocks,
            "io_deadline_s": io_deadline_s,
            "min_prefix_tokens": min_prefix_tokens,
        }
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        nullable: dict[str, Any] = {"ttl_s": ttl_s, "quotas": quotas}
        given |= {name: value for name, value in nullable.items() if value is not UNCHANGED}
        self._answer_to(at_once(lambda: self._index.change(**given)))

    def refuse(self, error: str) -> None:
        """The cache is driven no more: errands, those still to come among them, fail with this. For the owner's thread."""
        self._errands.close(RuntimeError(error))

    # --- the whole cache ------------------------------------------------------------------------------------------

    def sweep(self, to: Tier, *, then_free: bool) -> Sweep:
        """Begin to move what no request holds down to a tier; later pumps go on with it until it says `done`."""
        sweep = self._index.sweep(to, then_free=then_free)
        self._start_moves()
        return sweep

    def settle(self, timeout_s: float) -> bool:
        """Pump until nothing is in flight. False if the time was not enough."""
        deadline_s = time.monotonic() + timeout_s
        while not self._index.idle:
            self._news.clear()
            if self._index.restoring:  # what waits for that is in flight
                self._run_errands()
            if not self._take_in() and not self._errands.are_ready:
                self._news.wait(max(0.0, min(_SETTLE_STEP_S, deadline_s - time.monotonic())))
            if time.monotonic() >= deadline_s:
                return self._index.idle
        return True

    def restored(self, timeout_s: float) -> bool:
        """Pump until all that the store held at the start is known again. False if the time was not enough."""
        deadline_s = time.monotonic() + timeout_s
        while self._index.restoring:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._news.clear()
            self._take_in()
            if not self._run_errands():
                self._news.wait(min(_SETTLE_STEP_S, left_s))
        return True

    def clear(self, timeout_s: float) -> bool:
        """Forget every block in every tier. False if a request, or a copy that takes too long, holds some.

        Also if after this time the disk may still hold what is not known yet: the next start would serve it. It goes
        on being deleted.
        """
        deadline_s = time.monotonic() + timeout_s
        settled = self.settle(timeout_s)
        cleared = self._index.clear()
        self._listing.forget()
        self._start_moves()
        restored = self.restored(deadline_s - time.monotonic())
        return settled and cleared and restored

    def erase(self, owner: bytes, timeout_s: float, erased: Future[bool], *, in_use: bool) -> None:
        """Forget every block of an owner in every tier, then have the store erase what it has of the owner's.

        `erased` is completed by the thread that writes: with whether nothing is left and, as requests of the owner's may
        compute more, none is `in_use`; or with what the store raises.
        """
        settled = self.settle(timeout_s)
        all_gone = self._index.erase(owner) and settled and not in_use
        self._listing.forget()
        self._start_moves()
        if self._calls is None:
            erased.set_result(all_gone)
        else:
            self._calls.erase(owner, erased, all_gone=all_gone)

    def stats(self) -> dict[str, Any]:
        """Index.stats with the store's own figures, where there is a store. Any thread may call it."""
        stats = self._index.stats()
        if self._store is not None:
            stats["store"] = dataclasses.asdict(self._store.stats())
        calls = self._calls
        stats["failed_deletes"] = calls.num_failed_deletes if calls is not None else 0
        stats["failed_terms"] = calls.num_failed_terms if calls is not None else 0
        stats["failed_touches"] = calls.num_failed_touches if calls is not None else 0
        return stats

    def events(self, after: int) -> Sequence[Event]:
        """What has happened since the event of that number, oldest first: see EventLog. Any thread may call it."""
        return self._index.events.after(after)

    def note(self, kind: str, **facts: Any) -> None:
        """Add an event. `facts`: plain values that nobody changes afterwards, no text. Any thread may call it."""
        self._index.events.append(kind, **facts)

    def check(self) -> None:
        """See Index.check."""
        self._index.check()

    def close(self, flush_s: float = 0.0) -> bool:
        """Write down what the disk does not have yet, for at most `flush_s`, then end threads and close the store.

        Requests must have been released. The pool and the slab are not touched after this returns; they are the
        caller's to free. False if I/O was left hanging: then the slab must not be freed. Idempotent.
        """
        if self._joined is not None:
            return self._joined
        self._joined = False
        end_s = time.monotonic() + flush_s
        try:
            restored = self.restored(flush_s)  # an errand still
            self.refuse(_CLOSED)  # before the rest, which takes time
            if self._store is not None and flush_s > 0 and restored:
                self._index.sweep(Tier.DISK, then_free=False)
                self._start_moves()
            self.settle(max(0.0, end_s - time.monotonic()))
            if self._calls is not None:
                self._calls.touch_for(self._join_s / 2)
            self._index.tell_uses()
            self._start_moves()
        finally:
            self._end()
        return self._joined

    def abandon(self) -> bool:
        """`close` without a look at the books, for when they are wrong: nothing more is written.

        After either of them it does nothing, and answers as they did, or would have if the store could be closed.
        """
        if self._joined is None:
            self._end()
        return bool(self._joined)

    def _end(self) -> None:
        self.refuse(_CLOSED)
        try:
            self._mover.close()
        finally:  # whatever a device says that is broken
            self._joined = self._calls is None or self._calls.close(self._join_s)
            if self._store is not None and self._joined:
                self._store.close()


def _drained(items: "queue.SimpleQueue[_Item]") -> list[_Item]:
    """What is in the queue now."""
    found = []
    while True:
        try:
            found.append(items.get_nowait())
        except queue.Empty:
            return found
