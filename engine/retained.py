"""The part of an engine that keeps what its users ask it to."""

from typing import Any

from kvstore.reports import TierName

from .caches import Caches
from .explained import Explained
from .params import RequestOptions


class RetainsPrefixes(Explained):
    """An engine's named caches, and prefixes that it keeps in a tier."""

    caches: Caches
    """Prompts that are held under a name, also over restarts."""

    def keep(self, prompt: Any, tier: TierName = "device", options: RequestOptions | None = None) -> int:
        """Hold what is cached of a prompt's whole blocks in a tier, or nearer, until `release`. How many tokens that is.

        What lies below the tier is brought up first; what is not cached is not computed. It ends with the engine, and gives way
        on the device where a request could not run otherwise, which an event tells. Of `options` tenant and salt count. Raises
        ValueError where more would be held than may be (EngineConfig.held_share), and if there is no such tier.
        """
        return self.caches.keep(prompt, tier, options)

    def release(self, prompt: Any, options: RequestOptions | None = None) -> int:
        """Let go of what `keep` holds of a prompt, all of it. How many tokens that was; they stay as others do."""
        return self.caches.release(prompt, options)
