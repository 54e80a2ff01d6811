"""Which block a tier gives up first. A policy knows nothing of bytes, tiers or threads."""

from tiering.plug_ins import plug_in
from tiering.policies.arc import ARC
from tiering.policies.cost import RecomputeCost
from tiering.policies.fifo import FIFO
from tiering.policies.policy import Policy
from tiering.policies.s3fifo import S3FIFO

POLICIES: dict[str, type[Policy] | None] = {
    "lru": None,
    "fifo": FIFO,
    "s3fifo": S3FIFO,
    "arc": ARC,
    "recompute-cost": RecomputeCost,
}
"""By name. The last use is kept anyway, in the core's log of touches (`policies/lru.py`): that order is no plug-in."""


def policy_named(name: str) -> type[Policy] | None:
    """The class that a name of POLICIES stands for, or "package.module:Class"; None for "lru".

    Raises ValueError for what is neither, or is no Policy.
    """
    return POLICIES[name] if name in POLICIES else plug_in("policy", name, POLICIES, Policy)  # type: ignore[type-abstract]  # it is looked at, not made
