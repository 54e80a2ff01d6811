"""What each owner has, is entitled to, and has to give: see tiering.quotas."""

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


def stand(
    used: Any, tier: int, coming: Any, sizes: Any, weights: Any, capacity: int, least: float, stood: Any
) -> Any:
    """What each has, with what is `coming`, which may be of the first ones only, and what it is entitled to: two rows.

    `sizes`: of the tier's `capacity` what each is to have; a share of it as a negative number, and NaN for none of both.
    """
    rest, sharing = float(capacity), 0.0
    for number in range(len(weights)):
        stood[0, number] = used[tier, number]
        if number < len(coming):
            stood[0, number] += coming[number]
        size = sizes[tier, number]
        stood[1, number] = -size * capacity if size < 0 else size
        if stood[0, number] > 0:
            if stood[1, number] >= 0:
                rest -= stood[1, number]
            else:
                sharing += weights[number]
    for number in range(len(weights)):
        weight = weights[number]
        if not stood[1, number] >= 0:
            # who has nothing yet would share too
            among = sharing if stood[0, number] > 0 else sharing + weight
            stood[1, number] = max(0.0, rest) * weight / max(among, least)
        stood[1, number] = max(stood[1, number], least * weight)
    return 0


def split(used: Any, entitled: Any, amount: int, least: float, exact: Any, given: Any) -> Any:
    """How much each has to give, in whole numbers: see tiering.quotas.split. `exact` is room for as many numbers.

    The level to which all give is sought from below: who is not above it does not give, so that it is higher for the others.
    """
    level, all_there_is = 0.0, 0.0
    for number in range(len(used)):
        all_there_is += used[number]
    while True:
        mine, parts = 0.0, 0.0
        for number in range(len(used)):
            if used[number] > level * entitled[number]:
                mine += used[number]
                parts += entitled[number]
        before, level = level, max(level, (mine - amount) / parts if parts > 0 else level)
        if level == before:
            break
    missing = min(amount, int(all_there_is))
    for number in range(len(used)):
        exact[number] = max(0.0, used[number] - level * entitled[number])
        given[number] = int(exact[number] + least)
        exact[number] -= given[number]
        missing -= given[number]
    while missing > 0:
        most = -1
        for number in range(len(used)):
            if exact[number] > least and (most < 0 or exact[number] > exact[most]):
                most = number
        if most < 0:
            break
        given[most] += 1
        exact[most] = 0.0
        missing -= 1
    return 0


def find_dirty(dirty: Any, entitled: Any, clean_share: float, excess: Any) -> Any:
    """How many more blocks of each owner the disk has not than its part has room for, a share of it kept clean. Of how many owners there
    are such.
    """
    num_too_dirty = 0
    for number in range(len(dirty)):
        part = int(entitled[number])
        clean = max(1, int(clean_share * part))
        excess[number] = dirty[number] - max(0, part - clean)
        num_too_dirty += excess[number] > 0
    return num_too_dirty
