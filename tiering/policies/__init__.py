"""Which block a tier gives up first. A policy knows nothing of bytes, tiers or threads."""

from importlib import import_module

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
    if name in POLICIES:
        return POLICIES[name]
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        known = ", ".join(POLICIES)
        raise ValueError(f"there is no policy {name!r}: there are {known}, and package.module:Class")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the policy {name} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ValueError(f"{name} is no tiering.policies.policy.Policy")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ValueError(f"the policy {name} leaves out {', '.join(missing)}")
    return found
