"""Which block a tier gives up first. A policy knows nothing of bytes, tiers or threads."""

from tiering.policies.lru import LRU

POLICIES = {"lru": LRU}
