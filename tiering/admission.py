"""Which request gets room on the device next, and which gives it up.

The law of progress: if a waiting request fits alone, and none of a better priority keeps coming, finitely many
completions admit it. It holds because

* whoever waits holds nothing, save host memory for what a preemption saved;
* a request is overtaken a bounded number of times, and after that nobody passes it: what ends leaves room for it;
* what runs can end: only younger requests give up their room to older ones, so the oldest always gets what it needs,
  and nobody is admitted into room that somebody who runs has asked for.
"""

import bisect
from typing import Generic, Protocol, TypeVar

from tiering.claim import Claim
from tiering.eviction import Room
from tiering.keeping import Told
from tiering.lease import Lease
from tiering.leases import Wait
from tiering.matching import CacheUse
from tiering.radix import Tokens
from tiering.swaps import Stash

WINDOW = 32
"""Waiting requests that are looked at in one go: each costs a match in the index."""

PATIENCE = {Wait.FOR_ROOM: 4, Wait.FOR_BLOCKS: 64}
"""How often a request may be overtaken. Who waits for blocks takes no room yet, so others may pass for longer."""


class Request(Protocol):
    """A request as admission sees it; `lease`, `stash` and the three figures are kept there by `Admission`."""

    lease: Lease | None
    stash: Stash | None
    arrival: int
    overtaken: int
    waits: Wait

    @property
    def priority(self) -> int:
        """The lowest goes first; must not change."""
        ...

    @property
    def tokens(self) -> Tokens:
        """What is to be found in the index and entered there: for Index.admit. May depend on whether there is a stash."""
        ...

    @property
    def compute_last(self) -> bool:
        """For Index.admit."""
        ...

    @property
    def cache_use(self) -> CacheUse:
        """For Index.admit."""
        ...

    @property
    def claim(self) -> Claim:
        """For Index.admit."""
        ...

    @property
    def max_blocks(self) -> int:
        """For Index.admit. Must not be more than the device has."""
        ...

    @property
    def told(self) -> Told | None:
        """For Index.release, when it has ended."""
        ...

    def num_used_blocks(self) -> int:
        """Asked when the request is about to be preempted: how far its block table holds what it has computed.

        0 if nothing behind the indexed path is worth keeping.
        """
        ...

    def preempted(self) -> None:
        """Told after it: `lease` is None now, `stash` what was saved. Told again if that is lost."""


class Places(Protocol):
    """What gives out the room: an Index or a TieredCache, whose methods these are."""

    def admit(
        self,
        tokens: Tokens,
        max_blocks: int,
        *,
        chunk_blocks: int,
        compute_last: bool,
        stash: Stash | None,
        use: CacheUse,
        claim: Claim,
    ) -> Lease | Wait: ...

    def num_matching(self, tokens: Tokens, use: CacheUse) -> int: ...

    def fork(self, lease: Lease, num_used: int, max_blocks: int) -> Lease | None: ...

    def make_room(self, num_blocks: int) -> None: ...

    def grow(self, lease: Lease, num_blocks: int) -> Room: ...

    def preempt(self, lease: Lease, num_used: int) -> Stash | None: ...

    def release(self, lease: Lease, told: Told | None) -> None: ...

    def drop(self, stash: Stash) -> None: ...


R = TypeVar("R", bound=Request)


class Admission(Generic[R]):
    """All requests that have not ended: those that wait and those that run, each by priority and then arrival.

    In place of that order goes, among those that wait, who would find most of its prompt in the cache: so requests
    that share a prefix come together, while it is there. How often that may pass somebody is bounded.
    """

    def __init__(self, places: Places, *, max_running: int, chunk_blocks: int) -> None:
        """`max_running`: requests that run together; `chunk_blocks`: for Index.admit."""
        self._places = places
        self._max_running, self._chunk_blocks = max_running, chunk_blocks
        self._arrivals = 0
        self.waiting: list[R] = []
        self.running: list[R] = []
        self._worth_trying = True
        self._starved: set[R] = set()
        """Running requests that have asked for more room and not got it yet."""

    def add(self, request: R) -> None:
        """A request has arrived."""
        self._arrivals += 1
        request.arrival, request.overtaken, request.waits = self._arrivals, 0, Wait.FOR_ROOM
        _insert(self.waiting, request)
        self._worth_trying = True

    def fork(self, parent: R, child: R, num_used: int) -> bool:
        """Another reply to a prompt that a running request has computed, in `num_used` blocks.

        True if it runs now, see Index.fork. Else it waits, in the place of its parent, as one that has been preempted does.
        """
        assert parent.lease is not None, "what runs has a lease"
        child.arrival, child.overtaken, child.waits = parent.arrival, 0, Wait.FOR_ROOM
        _insert(self.waiting, child)
        self._worth_trying = True
        passed = [other for other in self.waiting if _rank(other) < _rank(child)]
        may_pass = all(other.overtaken < PATIENCE[other.waits] for other in passed)
        if self._starved or len(self.running) >= self._max_running or not may_pass:
            return False
        child.lease = self._places.fork(parent.lease, num_used, child.max_blocks)
        if child.lease is None:
            return False
        self._begin(child)
        return True

    def make_room_for_forks(self, num_forks: int) -> None:
        """Let idle blocks leave for forks that will soon come, unless somebody has asked for room already.

        Each copies a block that is not whole and decodes into another.
        """
        if not self._starved:
            self._places.make_room(2 * min(num_forks, self._max_running - len(self.running)))

    def remove(self, request: R) -> None:
        """A request has ended, in whatever way: it holds nothing any more. `lease` stays, to be read."""
        self._worth_trying = True
        if request in self.running:
            self.running.remove(request)
            self._starved.discard(request)
            assert request.lease is not None, "what runs has a lease"
            self._places.release(request.lease, request.told)
        else:
            self.waiting.remove(request)
            if request.stash is not None:
                self._places.drop(request.stash)

    def stir(self) -> None:
        """A move has ended, or blocks of a prompt were published: who waits may find what it waits for.

        To be told, as trying costs a match in the index for each: between such events nobody is tried twice.
        """
        self._worth_trying = True

    # --- who may begin --------------------------------------------------------------------------------------------

    def admit(self) -> list[R]:
        """Let requests begin as long as there is room. Answers who did, in that order."""
        admitted: list[R] = []
        while self._worth_trying and not self._starved and len(self.running) < self._max_running:
            if (request := self._admit_one()) is None:
                self._worth_trying = False
            else:
                admitted.append(request)
        return admitted

    def _admit_one(self) -> R | None:
        for request in self._candidates():
            outcome = self._places.admit(
                request.tokens,
                request.max_blocks,
                chunk_blocks=self._chunk_blocks,
                compute_last=request.compute_last,
                stash=request.stash,
                use=request.cache_use,
                claim=request.claim,
            )
            if isinstance(outcome, Wait):
                request.waits = outcome
                continue
            request.lease, request.stash = outcome, None
            self._begin(request)
            return request
        return None

    def _candidates(self) -> list[R]:
        """Who may be tried, best first: those up to the first that must not be passed any more."""
        window: list[R] = []
        for request in self.waiting[:WINDOW]:
            if request.stash is not None and request.stash.lost:
                request.stash = None
                request.preempted()
            window.append(request)
            if request.overtaken >= PATIENCE[request.waits]:
                break
        if len(window) > 1:
            # sorting is stable: where the cache has as much of one as of the other, who came first goes first
            window.sort(key=self._merit)
        return window

    def _merit(self, request: R) -> tuple[int, int]:
        return request.priority, -self._places.num_matching(request.tokens, request.cache_use)

    def _begin(self, request: R) -> None:
        self.waiting.remove(request)
        for other in self.waiting:
            if _rank(other) < _rank(request):
                other.overtaken += 1
        _insert(self.running, request)

    # --- who goes on ----------------------------------------------------------------------------------------------

    def grow(self, request: R, num_blocks: int) -> bool:
        """Give a running request room for `num_blocks` blocks in all. False if it must wait for that.

        Where no idle block can go, the youngest of the requests that came later gives up its room and waits again.
        """
        assert request.lease is not None, "what runs has a lease"
        if not request.lease.num_missing(num_blocks):  # as at most steps of a reply
            self._starved.discard(request)
            return True
        while (room := self._places.grow(request.lease, num_blocks)) is Room.NO:
            if self.running[-1] is request:
                break
            self._preempt(self.running[-1])
        if room is Room.NOW:
            self._starved.discard(request)
            return True
        self._starved.add(request)
        return False

    def look_ahead(self, request: R, num_blocks: int) -> None:
        """Make room now for what a running request will soon ask for, unless somebody has asked for room already."""
        assert request.lease is not None, "what runs has a lease"
        if request.lease.num_missing(num_blocks) and not self._starved:
            self._places.grow(request.lease, num_blocks)

    def _preempt(self, request: R) -> None:
        assert request.lease is not None, "what runs has a lease"
        self._worth_trying = True
        self.running.remove(request)
        self._starved.discard(request)
        request.stash = self._places.preempt(request.lease, request.num_used_blocks())
        request.lease = None
        request.preempted()
        _insert(self.waiting, request)


def _rank(request: R) -> tuple[int, int]:
    return request.priority, request.arrival


def _insert(requests: list[R], request: R) -> None:
    bisect.insort(requests, request, key=_rank)
