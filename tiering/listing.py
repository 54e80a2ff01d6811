"""Lists of what is cached, for whoever looks at it: sorted, filtered and paged beside the thread that computes.

That thread is only asked for a walk over its nodes, at most every second, and for no more than a twentieth of its time.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from kvstore.block import BlockKey
from kvstore.reports import (
    MAX_PAGE_ROWS,
    SEARCHED_RUNS,
    PrefixDetail,
    PrefixPage,
    PrefixQuery,
    PrefixRun,
    TierName,
)
from tiering.keys import Keys
from tiering.radix import Tokens
from tiering.runs import NO_RUN, Numbers, Runs
from tiering.walk import Nodes

FRESH_S: Final = 1.0
_MOST_SHARE: Final = 20
"""A walk that took so long is followed by none for so many times that."""

_STALE_SHARE: Final = 4
"""Where making a list took long, the last one is shown for so many times that while the next is made."""

TEXT_TOKENS: Final = 64
"""How many tokens of a run are told as text in a list."""

DETAIL_TOKENS: Final = 4096
"""How many of a run's token ids are told."""

_TIERS: Final[tuple[TierName, ...]] = ("device", "host", "disk")
_ORDERS: Final = ("recent", "oldest", "hits", "blocks", "size")

Describe = Callable[[Tokens], str]
"""Makes text of token ids, as they are in the index."""


@dataclass(frozen=True, slots=True)
class Table:
    """A list, when on the cache's clock it was taken, and until when it is used: for itself, and while another is made."""

    runs: Runs
    taken_s: float
    fresh_until_s: float
    stale_until_s: float
    texts: dict[int, str] = field(default_factory=dict)
    """How runs begin, in lower case, of those that were searched."""


class Listing:
    """The latest list of runs, and the keys that were handed out. Any thread may call all of it."""

    def __init__(
        self,
        take: Callable[[], list[Nodes]],
        root_key: BlockKey,
        block_tokens: int,
        *,
        clock: Callable[[], float],
        ttl_s: Callable[[], float | None],
        wait: "Callable[[Future[Table]], Table]",
    ) -> None:
        """Where it gets things from.

        `take`: walks the index, blocking; `clock`: the cache's, which touches are on; `ttl_s`: as it is now; `wait`: for
        a list that another thread makes: whoever is to walk the index for that must not stand still.
        """
        self._take, self._clock, self._ttl_s, self._wait = take, clock, ttl_s, wait
        self._block_tokens = block_tokens
        self._keys = Keys(root_key, block_tokens)
        self._lock = threading.Lock()
        self._table: Table | None = None
        self._coming: Future[Table] | None = None

    def forget(self) -> None:
        """What was cached must not be known here any more, tokens among it. Does not block."""
        with self._lock:
            self._table = self._coming = None
        self._keys.forget()

    def expire(self) -> None:
        """The index has changed by hand: who looks next must see it."""
        with self._lock:
            self._table = self._coming = None

    # --- what is asked for ----------------------------------------------------------------------------------------

    def page(self, query: PrefixQuery, describe: Describe | None = None) -> PrefixPage:
        """The rows that a query meets. Raises ValueError for what no query can be, KeyError if `under` is not there."""
        _check(query)
        table = self._latest()
        runs = table.runs
        under = NO_RUN if query.under is None else self._find(runs, query.under)
        chosen = runs.chosen(under, query)
        ordered = runs.ordered(chosen, query.order)
        if query.contains is not None:
            ordered = self._containing(table, ordered, query.contains, describe)
        rows = ordered[query.offset : query.offset + query.limit].tolist()
        now_s, ttl_s = self._clock(), self._ttl_s()
        text = describe if query.text else None
        return PrefixPage(
            rows=tuple(self._row(runs, run, now_s, ttl_s, text) for run in rows),
            total=len(ordered),
            taken_ago_s=max(0.0, now_s - table.taken_s),
            # Of a flat list some runs follow others: what is below them would count twice.
            blocks=None if query.flat else int((runs.blocks + runs.below)[ordered].sum()),
        )

    def detail(
        self,
        key: str,
        *,
        text: bool = False,
        describe: Describe | None = None,
        unmark: Callable[[Tokens], Tokens] | None = None,
    ) -> PrefixDetail:
        """The run that holds the block of this key; with `text` its token ids, as `unmark` leaves them, and its text.

        Raises KeyError if there is none.
        """
        runs = self._latest().runs
        run = self._find(runs, key)
        now_s, ttl_s = self._clock(), self._ttl_s()
        above, describe = runs.above(run), describe if text else None
        ids = None
        if text:
            tokens = runs.tokens(run, DETAIL_TOKENS)
            ids = tuple((tokens if unmark is None else unmark(tokens)).tolist())
        return PrefixDetail(
            run=self._row(runs, run, now_s, ttl_s, describe),
            above=tuple(self._row(runs, each, now_s, ttl_s, describe) for each in above),
            token_ids=ids,
        )

    def path_of(self, key: str) -> tuple[bytes, int]:
        """All tokens up to the end of the block of this key, and where the run of it begins that was last seen.

        Raises KeyError if none is known.
        """
        known = self._keys.path_of(_bytes_of(key))
        if known is not None:
            return known
        runs = self._latest().runs
        path = self._keys.search(runs, _bytes_of(key))
        return path, runs.starts.item(runs.holding(path))

    # --- the list -------------------------------------------------------------------------------------------------

    def _latest(self) -> Table:
        """A list that is fresh: the one there is, or one that is being made or has to be.

        Of a large index, which takes long, everybody has the last one meanwhile.
        """
        with self._lock:
            table, now_s = self._table, self._clock()
            if table is not None and now_s < table.fresh_until_s:
                return table
            coming = self._coming
            mine = coming is None
            if coming is None:
                coming = self._coming = Future()
        if table is not None and now_s < table.stale_until_s:
            if mine:
                threading.Thread(target=self._make, args=(coming,), name="kvtide-list", daemon=True).start()
            return table
        if mine:
            self._make(coming)
        return self._wait(coming)

    def _make(self, coming: "Future[Table]") -> None:
        try:
            began_s = time.perf_counter()
            nodes = self._take()
            taken_s, walk_s = self._clock(), time.perf_counter() - began_s
            runs = Runs(nodes, self._block_tokens)
            fresh_until_s = taken_s + max(FRESH_S, _MOST_SHARE * walk_s)
            made_s = time.perf_counter() - began_s
            table = Table(runs, taken_s, fresh_until_s, fresh_until_s + _STALE_SHARE * made_s)
        except BaseException as error:  # noqa: BLE001 - whoever waits for this list gets it
            with self._lock:
                if self._coming is coming:
                    self._coming = None
            coming.set_exception(error)
            return
        with self._lock:
            if self._coming is coming:  # else it was made of what must not be shown any more
                self._table, self._coming = table, None
        coming.set_result(table)

    def _find(self, runs: Runs, key: str) -> int:
        known = self._keys.path_of(_bytes_of(key))
        path = self._keys.search(runs, _bytes_of(key)) if known is None else known[0]
        run = runs.holding(path)
        if run == NO_RUN:
            raise KeyError(key)
        return run

    @staticmethod
    def _containing(table: Table, ordered: Numbers, wanted: str, describe: Describe | None) -> Numbers:
        """Those of the first runs in whose beginning a text stands. Texts are kept with the list."""
        if describe is None:
            raise ValueError("runs have no text that could contain anything: there is no tokenizer")
        wanted, texts, found = wanted.casefold(), table.texts, []
        for run in ordered[:SEARCHED_RUNS].tolist():
            if run not in texts:
                texts[run] = describe(table.runs.tokens(run, TEXT_TOKENS)).casefold()
            if wanted in texts[run]:
                found.append(run)
        return np.array(found, dtype=ordered.dtype)

    @staticmethod
    def _left_s(runs: Runs, run: int, ttl_s: float | None, ago_s: float | None) -> float | None:
        """How long a run will be kept, all of it, if nobody uses it; None for as long as there is room."""
        if runs.kept.item(run) or (runs.by_default.item(run) and ttl_s is None):
            return None
        default_s = ttl_s if ttl_s is not None and runs.by_default.item(run) else 0.0
        lives_s: float = max(runs.own_s.item(run), default_s)
        return max(0.0, lives_s - (ago_s or 0.0))

    def _row(
        self, runs: Runs, run: int, now_s: float, ttl_s: float | None, describe: Describe | None
    ) -> PrefixRun:
        touched_s = runs.touched_s.item(run)
        ago_s = None if np.isnan(touched_s) else max(0.0, now_s - touched_s)
        parent = runs.parents.item(run)
        return PrefixRun(
            key=self._keys.of(runs, run).hex(),
            parent=None if parent == NO_RUN else self._keys.of(runs, parent).hex(),
            start_token=runs.starts.item(run),
            end_token=runs.ends.item(run),
            blocks=runs.blocks.item(run),
            blocks_by_tier=dict(zip(_TIERS, runs.held[:, run].tolist(), strict=True)),
            hits=runs.hits.item(run),
            last_used_ago_s=ago_s,
            ttl_s=self._left_s(runs, run, ttl_s, ago_s),
            held=runs.kept.item(run),
            leases=runs.leases.item(run),
            private=runs.private.item(run),
            children=runs.children.item(run),
            blocks_below=runs.below.item(run),
            text=None if describe is None else describe(runs.tokens(run, TEXT_TOKENS)),
        )


def _check(query: PrefixQuery) -> None:
    if query.order not in _ORDERS:
        raise ValueError(f"order must be one of {', '.join(_ORDERS)}, not {query.order!r}")
    if query.tier is not None and query.tier not in _TIERS:
        raise ValueError(f"tier must be one of {', '.join(_TIERS)}, not {query.tier!r}")
    if query.offset < 0 or not 0 <= query.limit <= MAX_PAGE_ROWS:
        raise ValueError(
            f"offset must not be negative and limit at most {MAX_PAGE_ROWS}, not {query.offset}, {query.limit}"
        )


def _bytes_of(key: str) -> BlockKey:
    try:
        return bytes.fromhex(key)
    except ValueError:
        raise KeyError(key) from None
