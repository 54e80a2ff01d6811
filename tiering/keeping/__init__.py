"""What to keep: whether a block's place in the order is worth having, and whether it is worth copying down.

Pure: no bytes, leases, threads or clocks. See docs/keeping.md.
"""

from tiering.keeping.adaptive import Adaptive
from tiering.keeping.admission import Admission, Departing, Ended, Hints, Verdict
from tiering.keeping.everything import Everything

ADMISSIONS: dict[str, type[Admission]] = {"adaptive": Adaptive, "all": Everything}
"""By name; the first is the default."""

__all__ = ["ADMISSIONS", "Adaptive", "Admission", "Departing", "Ended", "Everything", "Hints", "Verdict"]
