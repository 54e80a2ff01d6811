"""Admissions for tests, by name: an IndexConfig takes "tests.tiering.judges:Hostile"."""

from random import Random

import numpy as np

from tiering.keeping import Adaptive, Everything, Verdict
from tiering.keeping.adaptive import Tuning
from tiering.residency import Tier


class Hostile(Everything):
    """Says anything of anything, and something else when it is asked again."""

    def __init__(self, capacity_blocks) -> None:
        self._random = Random(str(capacity_blocks))

    def ended(self, request):
        return self._random.randrange(len(request.fingerprints) + 1)

    def admit(self, departing):
        verdicts = [self._random.choice(list(Verdict)) for _ in departing.fingerprints]
        return np.array(verdicts, dtype=np.int8)


class Eager(Adaptive):
    """Chooses after each request, of however little it knows."""

    def __init__(self, capacity_blocks) -> None:
        super().__init__(capacity_blocks, tuning=Tuning(ended_per_choice=1, gain=0.0))


class Rejecting(Everything):
    """Keeps everything out of the tiers below."""

    def admit(self, departing):
        return np.full(len(departing.fingerprints), Verdict.REJECT, dtype=np.int8)


class NotToDisk(Everything):
    """Keeps everything off the disk."""

    def admit(self, departing):
        verdict = Verdict.REJECT if departing.tier == Tier.DISK else Verdict.ADMIT
        return np.full(len(departing.fingerprints), verdict, dtype=np.int8)


class Throttling(Everything):
    """Has everything wait."""

    def admit(self, departing):
        return np.full(len(departing.fingerprints), Verdict.THROTTLED, dtype=np.int8)


HOSTILE, EAGER, REJECTING, NOT_TO_DISK, THROTTLING = (
    f"{__name__}:{judge.__name__}" for judge in (Hostile, Eager, Rejecting, NotToDisk, Throttling)
)
