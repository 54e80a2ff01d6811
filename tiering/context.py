"""What of one request's tokens has its KV on the device: what is left to prefill, and what a preemption may save of it."""

from dataclasses import dataclass, field

from tiering.lease import Lease
from tiering.swaps import Stash


@dataclass(slots=True, eq=False)
class Context:
    """The part of a request that is about its context: of an engine's, and of one in a replay. One thread changes it.

    tokens       prompt                  reply
                 |---------------------|--------|
    context      what is prefilled after an admission; at first the prompt
    gaps         [start, end) of it that are still to be computed; None until that is found out
    num_computed tokens whose KV is there once there are no gaps; what follows is fed one at a time
    kept_tokens  tokens whose KV was there when the stash was made
    """

    block_tokens: int = field(kw_only=True)
    # kept by tiering.admission
    lease: Lease | None = field(default=None, kw_only=True)
    stash: Stash | None = field(default=None, kw_only=True)
    # of this admission
    gaps: list[tuple[int, int]] | None = field(default=None, kw_only=True)
    num_computed: int = field(default=0, kw_only=True)
    # beyond it
    kept_tokens: int = field(default=0, kw_only=True)

    @property
    def has_replied(self) -> bool:
        """Whether any token of the reply is there: what is computed for it nobody else can find."""
        raise NotImplementedError

    def num_used_blocks(self) -> int:
        """About to be preempted: how far the slots hold what this request has computed and nobody else can find."""
        if not self.has_replied:
            return 0
        assert self.lease is not None, "only what is admitted is preempted"
        if self.gaps == []:
            self.kept_tokens = self.num_computed
            return self.num_blocks(self.kept_tokens)
        # what came back is there, but a gap before it may not have been filled yet
        num_blocks = self.num_blocks(self.kept_tokens)
        is_there = self.is_back and self.lease.ready[len(self.lease.ids) : num_blocks].all()
        return num_blocks if is_there else 0

    def preempted(self) -> None:
        """The device is gone; what could be saved is in the stash."""
        self.gaps = None
        if self.stash is None:
            self.kept_tokens = 0

    @property
    def is_back(self) -> bool:
        """Whether what was in the stash is on the device again."""
        assert self.lease is not None, "only what is admitted has anything on the device"
        return self.kept_tokens > 0 and bool(self.lease.ready[self.num_blocks(self.kept_tokens) - 1])

    def find_gaps(self, num_tokens: int) -> None:
        """Find out what is left to compute: of so many tokens, or of those that the stash had if it is back."""
        assert self.lease is not None, "only what is admitted can be prefilled"
        size, context = self.block_tokens, self.kept_tokens if self.is_back else num_tokens
        runs = self.lease.gaps(self.num_blocks(context))
        self.gaps = [(start * size, min(end * size, context)) for start, end in runs]
        self.num_computed = context

    def advance(self, end: int, *, decode: bool) -> None:
        """What is next has been computed up to here: of the first gap, or with `decode` of what follows the context."""
        if decode:
            self.num_computed = end
            return
        assert self.gaps, "a chunk was computed that was not asked for"
        if end == self.gaps[0][1]:
            self.gaps.pop(0)
        else:
            self.gaps[0] = (end, self.gaps[0][1])

    @property
    def loading(self) -> bool:
        """Admitted, with blocks still on their way to the device."""
        return self.lease is not None and self.lease.num_loading > 0

    def num_blocks(self, num_tokens: int) -> int:
        """That hold so many tokens."""
        return -(-num_tokens // self.block_tokens)
