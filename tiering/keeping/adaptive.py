"""Keeps what is likely to be used again, as far as there is not room for all: the default."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tiering.keeping.admission import Admission, Departing, Ended, Verdict, Verdicts
from tiering.keeping.choice import chosen
from tiering.keeping.classes import LAST_TURN, SHARED, TAIL, body_class, families, segments
from tiering.keeping.conditions import Condition, Question, default_conditions
from tiering.keeping.ghosts import Ghosts, Seen
from tiering.keeping.lifetimes import Curves, Floats, Lifetimes

_MIN_GHOSTS, _MAX_GHOSTS = 1 << 14, 1 << 20  # at most 24 MB
_SAMPLE = 1 << 15  # ghosts looked at for a choice, which takes about a millisecond
_NOBODY = "nothing against it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What was chosen by trial. None of it matters much: docs/keeping.md says how much."""

    ghosts_per_block: int = 16
    """Remembered for each block of the tiers: a choice is worth most where blocks live several times as long as in the plain order."""
    ended_per_choice: int = 128
    """Requests from one choice to the next."""
    doubt_blocks: float = 200.0
    """A class of so many blocks is believed half as much as what is known of all."""
    gain: float = 0.02
    """The share of hits that a choice must promise to add, or the plain order stays."""


class Adaptive(Admission):
    """Learns how long blocks of each class wait for their next use, and chooses the classes that fill each tier best.

    Time is counted in block accesses, so nothing depends on a clock or on how fast requests come. The first tier's order is
    planned for its own size; what may go down for that of all tiers together, as what leaves one may go on to the next.
    With room for all that comes again, or before anything is known, all is kept.
    """

    def __init__(
        self,
        capacity_blocks: Sequence[int],
        *,
        conditions: Sequence[Condition] | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """`conditions`: what is asked before a block may go down, in this order; the first that has a verdict is heard."""
        self.resize(capacity_blocks)
        self._tuning = tuning or Tuning()
        self._conditions = default_conditions() if conditions is None else conditions
        self._heard: Counter[tuple[int, str, int]] = Counter()
        """Blocks by the tier that they would enter, who had the verdict, and which."""
        wanted = self._tuning.ghosts_per_block * self._capacities[-1]
        self._ghosts = Ghosts(1 << (min(max(wanted, _MIN_GHOSTS), _MAX_GHOSTS) - 1).bit_length())
        # what was seen fades as fast as blocks are forgotten
        half_life = float(len(self._ghosts))
        self._lifetimes = Lifetimes(families(), doubt=self._tuning.doubt_blocks, half_life=half_life)
        self._curves: Curves | None = None
        self._chosen: list[Floats | None] = [None] * len(self._capacities)
        self._owed = np.zeros(len(families()))
        """Of each class, the part of a request that is to be kept and was not yet."""
        self._now = 0
        self._num_ended = 0

    def resize(self, capacity_blocks: Sequence[int]) -> None:
        if not capacity_blocks or min(capacity_blocks) < 0:
            raise ValueError(f"capacity_blocks must be counts of blocks, not {capacity_blocks}")
        self._capacities: list[int] = np.cumsum(capacity_blocks).tolist()

    # --- the first tier -------------------------------------------------------------------------------------------

    def ended(self, request: Ended) -> int:
        num_blocks = len(request.fingerprints)
        if not num_blocks:
            return 0
        self._now += num_blocks
        shared, tail, body = self._learn(request)
        self._num_ended += 1
        if self._num_ended % self._tuning.ended_per_choice == 0:
            self._choose()
        return self._num_kept(num_blocks, shared, tail, body)

    def _learn(self, request: Ended) -> tuple[int, int, int]:
        """Where the request's shared blocks end, where its tail begins, and its class."""
        fingerprints = request.fingerprints
        num_blocks = len(fingerprints)
        places = self._ghosts.places(fingerprints)
        seen = self._ghosts.seen(fingerprints, places)
        self._lifetimes.use(seen.kind[seen.known], self._now - seen.last[seen.known])
        replaced = self._ghosts.taken(places) & ~seen.known
        self._lifetimes.lose(seen.kind[replaced], self._now - seen.last[replaced])
        turn = _turn(seen)
        body = body_class(turn, request.told.output_tokens, request.told.kind, request.told.hints)
        shared, tail = segments(num_blocks, request.told.hints)
        kinds = np.full(num_blocks, body, dtype=np.int16)
        kinds[:shared] = SHARED
        kinds[tail:] = TAIL
        for kind, num in ((SHARED, shared), (body, tail - shared), (TAIL, num_blocks - tail)):
            self._lifetimes.enter(kind, num)
        again = seen.known
        self._ghosts.remember(fingerprints, places, kinds=kinds, last=self._now, turn=turn, again=again)
        return shared, tail, body

    def _num_kept(self, num_blocks: int, shared: int, tail: int, body: int) -> int:
        shares = self._chosen[0]
        if shares is None:
            return num_blocks
        if not self._draw(body, shares):
            return shared if shares[SHARED] >= 0.5 else 0
        return num_blocks if shares[TAIL] >= 0.5 else tail

    def _draw(self, kind: int, shares: Floats) -> bool:
        """Whether the next request of a class is among the share that is kept: evenly, not by chance."""
        self._owed[kind] += shares[kind]
        kept = self._owed.item(kind) >= 1
        self._owed[kind] -= kept
        return kept

    def _choose(self) -> None:
        self._lifetimes.fade(self._now)
        kinds, last, weight = self._ghosts.sample(_SAMPLE)
        self._curves = self._lifetimes.curves(kinds, last, weight)
        self._chosen = [
            chosen(self._curves, capacity, until=self._now, gain=self._tuning.gain)
            for capacity in self._capacities
        ]

    # --- those below ----------------------------------------------------------------------------------------------

    def admit(self, departing: Departing) -> Verdicts:
        fingerprints = departing.fingerprints
        seen = self._ghosts.seen(fingerprints, self._ghosts.places(fingerprints))
        question = Question(
            departing=departing,
            seen=seen,
            ages=self._now - seen.last,
            curves=self._curves,
            now=self._now,
            # what enters a tier may go on to those below: it is judged by what all of them have room for
            shares=self._chosen[-1],
            capacity_blocks=self._capacities[-1] - self._capacities[departing.tier - 1],
            life_blocks=self._capacities[-1],
        )
        verdicts = np.zeros(len(fingerprints), dtype=np.int8)
        for condition in self._conditions:
            open_ = verdicts == 0
            if not np.count_nonzero(open_):
                return verdicts
            said = np.where(open_, condition.says(question), 0).astype(np.int8)
            self._hear(departing.tier, type(condition).__name__, said)
            verdicts += said
        left = np.where(verdicts == 0, np.int8(Verdict.ADMIT), np.int8(0))
        self._hear(departing.tier, _NOBODY, left)
        verdicts += left
        return verdicts

    def _hear(self, tier: int, who: str, said: Verdicts) -> None:
        for verdict, num in enumerate(np.bincount(said).tolist()):
            if verdict and num:
                self._heard[tier, who, verdict] += num

    # --- figures --------------------------------------------------------------------------------------------------

    @property
    def chooses(self) -> tuple[bool, ...]:
        """Of each tier, whether there is not room for all, so that something is kept out."""
        return tuple(shares is not None for shares in self._chosen)

    @property
    def num_bytes(self) -> int:
        """Memory of what is remembered of blocks."""
        return self._ghosts.num_bytes

    def reasons(self, tier: int) -> Mapping[str, Mapping[str, int]]:
        told: dict[str, dict[str, int]] = {}
        for (entered, who, verdict), num in self._heard.copy().items():
            if entered == tier:
                told.setdefault(who, {})[Verdict(verdict).name.lower()] = num
        return told

    def check(self) -> None:
        self._ghosts.check(self._now)
        self._lifetimes.check()
        assert self._owed.min() >= 0, "more was kept than is owed"
        assert self._owed.max() < 1, "a request that is owed was not kept"
        for shares in self._chosen:
            assert shares is None or (shares.min() >= 0 and shares.max() <= 1), (
                "a share is not between 0 and 1"
            )


def _turn(seen: Seen) -> int:
    """Which turn of a conversation a request is: one more than the request had that it begins with all of, else 0."""
    (known,) = seen.known.nonzero()
    if not len(known) or known[-1] == 0:
        return 0  # a first block alone is everybody's
    deepest = known[-1]
    if seen.to_end[deepest] > 1:
        return 0
    return min(seen.turn.item(deepest) + 1, LAST_TURN)
