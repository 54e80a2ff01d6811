"""What to keep: whether a block's place in the order is worth having, and whether it is worth copying down.

Pure: no bytes, leases, threads or clocks. See docs/keeping.md.
"""

from tiering.keeping.adaptive import Adaptive
from tiering.keeping.admission import Admission, Departing, Ended, Hints, Told, Verdict
from tiering.keeping.everything import Everything
from tiering.plug_ins import plug_in

ADMISSIONS: dict[str, type[Admission]] = {"adaptive": Adaptive, "all": Everything}
"""By name; the first is the default."""


def admission_named(name: str) -> type[Admission]:
    """The class that a name of ADMISSIONS stands for, or "package.module:Class". Raises ValueError for what is neither."""
    return ADMISSIONS.get(name) or plug_in("admission", name, ADMISSIONS, Admission)  # type: ignore[type-abstract]  # it is looked at, not made


__all__ = [
    "ADMISSIONS",
    "Adaptive",
    "Admission",
    "Departing",
    "Ended",
    "Everything",
    "Hints",
    "Told",
    "Verdict",
    "admission_named",
]
