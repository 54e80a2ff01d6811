"""How much of each tier an owner may keep when there is not enough for all, and how much each has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tiering.owners import NOBODY, Owners
from tiering.residency import Ids, Residency, State, Tier

Amounts = NDArray[np.float64]
"""By an owner's number: places on the device and in host memory, bytes on disk."""

_COUNTS: Final = (
    "evicted_copies",
    "evictions_asked",
    *(f"{tier.label}{part}" for tier in Tier for part in ("", "_part")),
)
OTHERS: Final = "*"
_NO_SIZES: Final = (np.empty((len(Tier), 0)), np.empty(0))
WEIGHTS: Final = (1e-6, 1e6)
"""The least and the largest: products of them with sizes are to be numbers still."""
_MOST_SIZE: Final = 2**63 - 1
_LEAST: Final = 1e-6  # of a place: who is entitled to nothing goes first, by weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """What one owner is entitled to. It may keep more as long as nobody else needs the room; that goes first.

    A whole number is places on the device and in host memory and bytes on disk, a float a share of the tier. None: a part of
    what others are not entitled to by such a number, in proportion to `weight`.
    """

    device: int | float | None = None
    host: int | float | None = None
    disk: int | float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        for tier in Tier:
            size = self.of(tier)
            most = 1.0 if isinstance(size, float) else _MOST_SIZE
            if size is not None and not 0 <= size <= most:
                raise ValueError(
                    f"{tier.label} must be a size of at least 0 or a share up to 1.0, not {size}"
                )
        if not WEIGHTS[0] <= self.weight <= WEIGHTS[1]:
            raise ValueError(
                f"weight must be a number from {WEIGHTS[0]:g} to {WEIGHTS[1]:g}, not {self.weight}"
            )

    def of(self, tier: Tier) -> int | float | None:
        """Of one tier."""
        size: int | float | None = getattr(self, tier.label)
        return size


@dataclass(frozen=True, kw_only=True, slots=True)
class Quotas:
    """Everybody's quotas. What is nobody's, such as public prompts, counts as one owner more, and has one too."""

    default: Quota = field(default_factory=Quota)
    """Of each owner that is not named."""
    nobodys: Quota = field(default_factory=Quota)
    owners: Mapping[bytes, Quota] = field(default_factory=dict)

    def of(self, owner: bytes, number: int) -> Quota:
        """The owner's."""
        return self.nobodys if number == NOBODY else self.owners.get(owner, self.default)


class Shares:
    """Who has how much of each tier, and who has more than its part. Nothing is counted before there is an owner.

    What a request holds counts, although it cannot be taken. A part is what the owner's quota says, or its weight's part of
    what quotas of those that have something leave; so what nobody uses is there for others.
    """

    def __init__(
        self,
        residency: Residency,
        owners: Owners,
        quotas: Quotas | None,
        *,
        capacity: Callable[[Tier], int],
        total: Callable[[Tier], int],
    ) -> None:
        """`quotas`: None for no parts at all. `capacity`, `total`: what a tier can hold, and holds of everybody's."""
        self._residency, self._owners = residency, owners
        self._quotas = quotas
        self._capacity, self._total = capacity, total
        self._used = np.zeros((len(Tier), 1), dtype=np.int64)  # of NOBODY it is not counted: the rest
        self._dirty = np.zeros(1, dtype=np.int64)
        self._coming: list[Amounts | None] = [None] * len(Tier)
        self._sizes_and_weights = _NO_SIZES
        self.asker = NOBODY
        """Who room was asked for last."""
        self._suffered = np.zeros(1, dtype=np.int64)
        self._caused = np.zeros(1, dtype=np.int64)

    def change(self, quotas: Quotas | None) -> None:
        """Other quotas from now on. What is too much by them goes when room is needed."""
        self._quotas, self._sizes_and_weights = quotas, _NO_SIZES

    @property
    def on(self) -> bool:
        """Whether there are quotas, and owners."""
        return self._quotas is not None and self._owners.several

    # --- who has how much -----------------------------------------------------------------------------------------

    def change_use(self, tier: Tier, ids: Ids, amounts: NDArray[np.int64] | int) -> None:
        """These blocks take so much more of a tier, or less. To be told of all of it once there are `several` owners."""
        numbers = self._residency.owner[ids]
        self._grow()
        if isinstance(amounts, int):
            self._used[tier] += amounts * np.bincount(numbers, minlength=self._used.shape[1])
        else:
            self._used[tier] += np.bincount(numbers, amounts, self._used.shape[1]).astype(np.int64)

    def change_use_of(self, tier: Tier, number: int, amount: int) -> None:
        """The same of one block, of the owner with this number."""
        self._grow()
        self._used[tier, number] += amount

    def change_dirty(self, ids: Ids, sign: int) -> None:
        """These blocks of host memory have no finished copy on disk any more, or have one."""
        self._grow()
        self._dirty += sign * np.bincount(self._residency.owner[ids], minlength=len(self._dirty))

    def too_dirty(self, clean_share: float) -> list[tuple[int, int]]:
        """Owners with more blocks in host memory that the disk has not than such a share of their part leaves; how many more.

        Who must make room by itself can then do so without losing what only host memory has.
        """
        if not self.shared(Tier.HOST):
            return []
        _, entitled = self.standing(Tier.HOST)
        parts = np.floor(entitled[: len(self._dirty)]).astype(np.int64)
        clean = np.maximum(1, (clean_share * parts).astype(np.int64))
        excess = self._dirty - np.maximum(0, parts - clean)
        return [(number, excess.item(number)) for number in (np.flatnonzero(excess[1:] > 0) + 1).tolist()]

    def _grow(self) -> None:
        if (more := len(self._owners) - self._used.shape[1]) > 0:
            self._used = np.pad(self._used, ((0, 0), (0, more)))
            self._dirty = np.pad(self._dirty, (0, more))
            self._suffered = np.pad(self._suffered, (0, more))
            self._caused = np.pad(self._caused, (0, more))

    def used(self, tier: Tier) -> Amounts:
        """What each has now. Any thread may ask."""
        counted = self._used[tier]
        used = np.zeros(max(len(self._owners), len(counted)))
        used[: len(counted)] = counted
        used[NOBODY] = max(0.0, self._total(tier) - used[1:].sum())
        return used

    def shared(self, tier: Tier) -> bool:
        """Whether there are quotas, and more than one has something in the tier."""
        if not self.on:
            return False
        used = self._used[tier]
        num_owners = int(np.count_nonzero(used))
        return num_owners > 1 or (num_owners == 1 and self._total(tier) > int(used.sum()))

    # --- who is to give -------------------------------------------------------------------------------------------

    def asks(self, tier: Tier, number: int, amount: int) -> None:
        """So much room is about to be looked for, for this owner: it counts as if it were there, until `asked`."""
        if not self.on:
            return
        self._grow()
        self.asker = number
        coming = np.zeros(self._used.shape[1])
        coming[number] = amount
        self._coming[tier] = coming

    def ask_for(self, tier: Tier, ids: Ids) -> None:
        """The same for blocks that are about to come to a tier."""
        if self.on:
            self._grow()
            counts = np.bincount(self._residency.owner[ids], minlength=self._used.shape[1])
            self._coming[tier] = counts.astype(np.float64)

    def asked(self, tier: Tier) -> None:
        """Nothing is looked for any more."""
        self._coming[tier] = None

    def standing(self, tier: Tier) -> tuple[Amounts, Amounts]:
        """What each has, with what is coming, and what it is entitled to: above 0."""
        used = self.used(tier)
        if (coming := self._coming[tier]) is not None:
            used[: len(coming)] += coming
        sizes, weights = self._read_quotas(len(used))
        capacity, there = self._capacity(tier), used > 0
        fixed = np.where(sizes[tier] < 0, -sizes[tier] * capacity, sizes[tier])
        is_fixed = ~np.isnan(fixed)
        rest = max(0.0, capacity - fixed[is_fixed & there].sum())
        sharing = weights[~is_fixed & there].sum() + np.where(
            there, 0.0, weights
        )  # who has nothing yet would share too
        part = np.where(is_fixed, fixed, rest * weights / np.maximum(sharing, _LEAST))
        return used, np.maximum(part, _LEAST * weights)

    def _read_quotas(self, num_owners: int) -> tuple[Amounts, Amounts]:
        """[tiers, owners]: a size, a share as a negative number, or NaN for neither; and [owners]: weights."""
        sizes, weights = self._sizes_and_weights
        if len(weights) < num_owners:
            quotas = self._quotas or Quotas()
            each = [quotas.of(self._owners.owner(number), number) for number in range(num_owners)]
            sizes = np.array([[_as_number(quota.of(tier)) for quota in each] for tier in Tier])
            weights = np.array([quota.weight for quota in each])
            self._sizes_and_weights = sizes, weights
        return sizes[:, :num_owners], weights[:num_owners]

    def is_over(self, tier: Tier, number: int) -> bool:
        """Whether an owner has more than it is entitled to, what is coming for it included, beside others."""
        if not self.shared(tier):
            return False
        used, entitled = self.standing(tier)
        return bool(used[number] > entitled[number])

    def surplus(self, tier: Tier, giver: int, taker: int) -> float:
        """How much one owner may give another, with what is coming for that, before both stand equally high."""
        used, entitled = self.standing(tier)
        more = used[giver] * entitled[taker] - used[taker] * entitled[giver]
        return max(0.0, float(more / (entitled[giver] + entitled[taker])))

    # --- figures --------------------------------------------------------------------------------------------------

    def evicted(self, ids: Ids) -> None:
        """Copies left a tier to make room."""
        if self._owners.several:
            self._grow()
            self._suffered += np.bincount(self._residency.owner[ids], minlength=len(self._suffered))
            self._caused[self.asker] += len(ids)

    def stats(self, *, all_of_them: bool = False) -> dict[str, dict[str, Any]]:
        """By owner, in hexadecimal: what it has, is entitled to, and what left for want of room. Any thread may ask.

        "" is what is nobody's. Unless all are asked for, owners without a quota of their own are together, as OTHERS. Empty
        as long as there was no owner.
        """
        if not self._owners.several:
            return {}
        tiers = [self.standing(tier) for tier in Tier]
        named = self._quotas.owners if self._quotas is not None else {}
        found: dict[str, dict[str, Any]] = {}
        num_owners = min(len(self._suffered), *(len(used) for used, _ in tiers))
        for number in range(num_owners):
            owner = self._owners.owner(number)
            apart = all_of_them or number == NOBODY or owner in named
            name = OTHERS if not apart else "" if number == NOBODY else owner.hex()
            row = found.setdefault(name, dict.fromkeys(_COUNTS, 0))
            row["evicted_copies"] += int(self._suffered[number])
            row["evictions_asked"] += int(self._caused[number])
            for tier, (used, entitled) in zip(Tier, tiers, strict=True):
                row[tier.label] += int(used[number])
                row[f"{tier.label}_part"] += int(entitled[number]) if self._quotas is not None else 0
        return found

    def check(self) -> None:
        """Raise AssertionError unless each owner has what is counted for it, and what was coming has come."""
        residency = self._residency
        assert not any(coming is not None for coming in self._coming), "room is looked for still"
        if not self._owners.several:
            return
        self._grow()
        for tier in Tier:
            there = np.flatnonzero(residency.state[tier] > 0)
            amounts = residency.place[tier][there] if tier is Tier.DISK else None
            found = np.bincount(residency.owner[there], amounts, self._used.shape[1]).astype(np.int64)
            counted = self._used[tier]
            assert (found[1:] == counted[1:]).all(), (
                f"{tier.label}: owners have {found[1:].tolist()}, counted are {counted[1:].tolist()}"
            )
        state = residency.state
        dirty = np.flatnonzero((state[Tier.HOST] == State.PRESENT) & (state[Tier.DISK] != State.PRESENT))
        found = np.bincount(residency.owner[dirty], minlength=len(self._dirty))
        assert (found[1:] == self._dirty[1:]).all(), "an owner has more or less that is dirty than is counted"


def split(used: Amounts, entitled: Amounts, amount: int) -> NDArray[np.int64]:
    """How much each has to give so that `amount` is free, and who stands furthest above its part stands lowest after.

    used, entitled: [owners], entitled above 0. Answers whole numbers, [owners], that add up to `amount`, or to all there is::

        used / entitled     1.8  1.2  0.5        gives      (of 10, 10, 10; amount 8)
                            ___
                           |   | ___             7
        level .............|...|.|.|........     1
                           |   | | | ___         0
    """
    order = np.argsort(-used / entitled, kind="stable")
    mine, parts = used[order], entitled[order]
    levels = (mine.cumsum() - amount) / parts.cumsum()
    following = np.append((mine / parts)[1:], 0.0)
    (reached,) = (levels >= following).nonzero()
    if not len(reached):
        return used.astype(np.int64)
    exact = np.maximum(0.0, mine - levels[reached[0]] * parts)
    counts = np.floor(exact + _LEAST).astype(np.int64)
    missing = amount - int(counts.sum())
    if missing > 0:
        counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    given = np.zeros(len(used), dtype=np.int64)
    given[order] = counts
    return given


def _as_number(size: float | None) -> float:
    if size is None:
        return np.nan
    return float(size if isinstance(size, int) else -size)
