"""What tiers of given sizes hold, what loading saves against computing, and from which length on. Arithmetic, and no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kvstore.reports import TierName
from tiering.costs import Curves, PrefillCurve

SUFFIX_TOKENS: Final = 64
"""What is never seen behind a prefix, and computed in any case."""
_FAR_TOKENS: Final = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What one tier holds: whole blocks, and their tokens."""

    tier: TierName
    num_bytes: int
    num_blocks: int
    num_tokens: int


def capacity(tier: TierName, num_bytes: int, block_bytes: float, block_tokens: int) -> Capacity:
    """Of so many bytes, where a block takes `block_bytes`."""
    num_blocks = int(num_bytes / block_bytes)
    return Capacity(
        tier=tier, num_bytes=num_bytes, num_blocks=num_blocks, num_tokens=num_blocks * block_tokens
    )


def saved_s(prefill: PrefillCurve, prefix_tokens: int) -> float:
    """What need not be computed if the prefix's KV is there, with SUFFIX_TOKENS behind it."""
    whole_s = prefill.seconds(0, prefix_tokens + SUFFIX_TOKENS)
    return whole_s - prefill.seconds(prefix_tokens, SUFFIX_TOKENS)


def break_even_tokens(curves: Curves, tier: TierName, token_bytes: int, block_tokens: int) -> int | None:
    """The shortest prefix, in whole blocks, that is loaded from this tier no later than it is computed; None for none.

    What is saved grows ever faster with the length, what loading takes in proportion: from there on loading is faster.
    """
    prefill, load = curves.prefill, curves.loads[tier]
    assert prefill is not None, "a plan has all curves"

    def pays(num_blocks: int) -> bool:
        tokens = num_blocks * block_tokens
        return load.seconds(tokens * token_bytes) <= saved_s(prefill, tokens)

    high = 1
    while not pays(high):
        high *= 2
        if high * block_tokens > _FAR_TOKENS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high * block_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a trace's hits are worth.

    hit_rate: hits of all block accesses.   prefill_s: not computed; load_s: loaded instead.   money: what the device costs in
    the time that is left over, None without a price.
    """

    hit_rate: float
    hits_by_tier: Mapping[TierName, int]
    prefill_s: float
    load_s: float
    money: float | None


def saved(
    hits_by_tier: Mapping[TierName, int],
    num_requests: int,
    num_blocks: int,
    curves: Curves,
    *,
    token_bytes: int,
    block_tokens: int,
    price_per_hour: float | None,
) -> Saved:
    """By what a simulation has counted: hits and accesses in blocks of `block_tokens`.

    Prefill is that of the mean request, for each: as later tokens cost more than earlier ones, at most what is saved in truth.
    """
    assert curves.prefill is not None, "a plan has all curves"
    hits = sum(hits_by_tier.values())
    prefill_s = load_s = 0.0
    if num_requests:
        prefill_s = num_requests * saved_s(curves.prefill, hits * block_tokens // num_requests)
        for tier, num_hits in hits_by_tier.items():
            if tier in curves.loads:
                each_bytes = num_hits * block_tokens * token_bytes // num_requests
                load_s += num_requests * curves.loads[tier].seconds(each_bytes)
    money = None if price_per_hour is None else (prefill_s - load_s) / 3600 * price_per_hour
    rate = hits / num_blocks if num_blocks else 0.0
    return Saved(hit_rate=rate, hits_by_tier=hits_by_tier, prefill_s=prefill_s, load_s=load_s, money=money)
