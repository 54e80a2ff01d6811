"""What requests do to an Index, at the time that a clock tells, and what is started because of it: in real time, or in a replay."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from tiering.claim import NO_CLAIM, Claim
from tiering.eviction import Room
from tiering.index import Index
from tiering.keeping import Told
from tiering.lease import Lease
from tiering.leases import Wait
from tiering.matching import CacheUse
from tiering.moves import Move
from tiering.radix import Tokens
from tiering.swaps import Stash


class Driver(ABC):
    """An Index with a clock, and somebody who makes its moves: `Places`, as `tiering.admission.Admission` wants it.

    One thread calls it. Nothing waits: what must move for a call is only begun.
    """

    def __init__(self, index: Index, clock: Callable[[], float]) -> None:
        """`clock`: seconds, never backwards."""
        self._index, self._clock = index, clock

    @abstractmethod
    def _start(self, move: Move) -> None:
        """Begin a move; its answer goes to the index later."""

    def _start_moves(self) -> None:
        """Begin what the index wants to have moved now."""
        for move in self._index.plan(self._clock()):
            self._start(move)

    def admit(
        self,
        tokens: Tokens,
        max_blocks: int,
        *,
        chunk_blocks: int,
        compute_last: bool = True,
        stash: Stash | None = None,
        use: CacheUse = CacheUse.READ_WRITE,
        claim: Claim = NO_CLAIM,
    ) -> Lease | Wait:
        """See Index.admit."""
        self._index.at(self._clock())
        outcome = self._index.admit(
            tokens,
            max_blocks,
            chunk_blocks=chunk_blocks,
            compute_last=compute_last,
            stash=stash,
            use=use,
            claim=claim,
        )
        self._start_moves()
        return outcome

    def computed(self, lease: Lease, num_tokens: int, *, load_s: float, prefill_s: float) -> None:
        """See Index.computed."""
        self._index.computed(lease, num_tokens, load_s=load_s, prefill_s=prefill_s)

    def num_matching(self, tokens: Tokens, use: CacheUse = CacheUse.READ_WRITE) -> int:
        """See Index.num_matching."""
        self._index.at(self._clock())
        return self._index.num_matching(tokens, use)

    def fork(self, lease: Lease, num_used: int, max_blocks: int) -> Lease | None:
        """See Index.fork."""
        forked = self._index.fork(lease, num_used, max_blocks)
        self._start_moves()
        return forked

    def make_room(self, num_blocks: int) -> None:
        """See Index.make_room."""
        self._index.make_room(num_blocks)
        self._start_moves()

    def grow(self, lease: Lease, num_blocks: int) -> Room:
        """See Index.grow."""
        room = self._index.grow(lease, num_blocks)
        if room is Room.SOON:
            self._start_moves()
        return room

    def preempt(self, lease: Lease, num_used: int) -> Stash | None:
        """See Index.preempt."""
        self._index.at(self._clock())
        stash = self._index.preempt(lease, num_used)
        self._start_moves()
        return stash

    def drop(self, stash: Stash) -> None:
        """See Index.drop."""
        self._index.drop(stash)

    def publish(self, lease: Lease, tokens: Tokens, start: int, end: int) -> None:
        """See Index.publish."""
        self._index.at(self._clock())
        self._index.publish(lease, tokens, start, end)

    def release(self, lease: Lease, told: Told | None = None) -> None:
        """See Index.release."""
        self._index.at(self._clock())
        self._index.release(lease, told)
        self._start_moves()
