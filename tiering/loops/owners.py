"""Counts by owner, kept as blocks come and go."""

from typing import Any


def count_blocks(counts: Any, owner: Any, sign: int, ids: Any) -> Any:
    """So many blocks more of each owner, or less."""
    for block in ids:
        counts[owner[block]] += sign
    return 0


def count_use(
    used: Any, num_with: Any, tier: int, sized: int, place: Any, owner: Any, sign: int, ids: Any
) -> Any:
    """Copies have come to a tier, or left it: each takes one place, or in the `sized` tier as much as its place says.

    `used` has a row for each tier; `num_with` says how many owners have something in each, and behind those anywhere at all, which is
    answered.
    """
    num_tiers = len(used)
    for block in ids:
        number = owner[block]
        before = used[tier, number]
        after = before + sign * (place[tier, block] if tier == sized else 1)
        used[tier, number] = after
        if (before == 0) != (after == 0):
            change = -1 if after == 0 else 1
            num_with[tier] += change
            elsewhere = False
            for other in range(num_tiers):
                elsewhere |= other != tier and used[other, number] != 0
            if not elsewhere:
                num_with[num_tiers] += change
    return num_with[num_tiers]


def mark_owners(has_some: Any, owner: Any) -> Any:
    """Which numbers blocks have."""
    for number in owner:
        has_some[number] = True
    return 0
