"""The admission that keeps nothing out."""

from collections.abc import Sequence

import numpy as np

from tiering.keeping.admission import Admission, Departing, Ended, Verdict, Verdicts


class Everything(Admission):
    """Admits every block: the order alone decides."""

    def __init__(self, capacity_blocks: Sequence[int]) -> None:
        pass

    def ended(self, request: Ended) -> int:
        return len(request.fingerprints)

    def resize(self, capacity_blocks: Sequence[int]) -> None:
        pass

    def admit(self, departing: Departing) -> Verdicts:
        return np.full(len(departing.fingerprints), Verdict.ADMIT, dtype=np.int8)
