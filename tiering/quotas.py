"""How much of each tier an owner may keep when there is not enough for all, and how much each has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tiering.kernels import kernels
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
_FEW: Final = 8
"""Owners that there is room for at first."""
_DISK: Final = Tier.DISK
_NOTHING: Final[Amounts] = np.empty(0)
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
    ) -> None:
        """`quotas`: None for no parts at all. `capacity`: what a tier can hold."""
        self._kernels = kernels()
        self._residency, self._owners = residency, owners
        self._quotas, self._capacity = quotas, capacity
        # by owner's number, with room for more of them
        self._used = np.zeros((len(Tier), _FEW), dtype=np.int64)
        self._dirty, self._suffered, self._caused = np.zeros((3, _FEW), dtype=np.int64)
        self._sizes = np.full((len(Tier), _FEW), np.nan)
        """A size, a share as a negative number, or NaN for neither."""
        self._weights = np.ones(_FEW)
        self._num_with = np.zeros(len(Tier) + 1, dtype=np.int64)
        """How many have something, by tier, and anywhere."""
        self._coming: list[Amounts | None] = [None] * len(Tier)
        self._forgotten = [0, 0]
        """What those suffered and caused whose numbers were given back."""
        self.asker = NOBODY
        """Who room was asked for last."""
        self.on = False
        """Whether there are quotas, and several who have something: else all goes as without. Asked all the time: an attribute is
        read fastest."""
        self._read_quotas()
        owners.came = self._came

    def change(self, quotas: Quotas | None) -> None:
        """Other quotas from now on. What is too much by them goes when room is needed."""
        self._quotas = quotas
        self._read_quotas()
        self._look()

    def _look(self) -> None:
        self.on = self._quotas is not None and self._num_with.item(-1) > 1

    # --- who there is ---------------------------------------------------------------------------------------------

    def _came(self, owner: bytes, number: int) -> None:
        """This is going to be the number of somebody new."""
        if number >= len(self._weights):
            self._grow(len(self._weights))
        if not self._owners.several:
            self._count_all()
        self._read_quota(owner, number)

    def _grow(self, num_more: int) -> None:
        """All or nothing: loops write wherever an owner's number says. The weights last: other threads take no more of the others than
        those say.
        """
        room = (0, num_more)
        used = np.pad(self._used, ((0, 0), room))
        dirty, suffered, caused = (np.pad(each, room) for each in (self._dirty, self._suffered, self._caused))
        sizes = np.pad(self._sizes, ((0, 0), room), constant_values=np.nan)
        weights = np.pad(self._weights, room, constant_values=1.0)
        self._used, self._dirty, self._suffered, self._caused = used, dirty, suffered, caused
        self._sizes = sizes
        self._weights = weights

    def _count_all(self) -> None:
        """Nothing was counted so far, or not to the end."""
        for counts in (self._used, self._num_with, self._dirty):
            counts[:] = 0
        state = self._residency.state
        for tier in Tier:
            self.change_use(tier, state[tier].nonzero()[0], +1)
        dirty = (state[Tier.HOST] == State.PRESENT) & (state[Tier.DISK] != State.PRESENT)
        self.change_dirty(dirty.nonzero()[0], +1)

    def _read_quotas(self) -> None:
        for owner, number in self._owners.all():
            self._read_quota(owner, number)

    def _read_quota(self, owner: bytes, number: int) -> None:
        self._sizes[:, number], self._weights[number] = self._said_of(owner, number)

    def _said_of(self, owner: bytes, number: int) -> tuple[list[float], float]:
        """What quotas say: sizes by tier, and a weight."""
        quota = (self._quotas or Quotas()).of(owner, number)
        return [_as_number(quota.of(tier)) for tier in Tier], quota.weight

    def idle(self) -> list[int]:
        """The numbers of owners that have nothing in the index, and no quota of their own."""
        has_some = np.zeros(len(self._dirty), dtype=np.bool_)
        self._kernels.mark_owners(has_some, self._residency.owner)
        named = self._quotas.owners if self._quotas is not None else {}
        return [
            number
            for owner, number in self._owners.all()
            if number != NOBODY and not has_some[number] and owner not in named
        ]

    def forget(self, numbers: Sequence[int]) -> None:
        """These are given back: of what became of their blocks no more is known than of all others together."""
        for column, counts in enumerate((self._suffered, self._caused)):
            self._forgotten[column] += int(counts[numbers].sum())
            counts[numbers] = 0
        if self.asker in numbers:
            self.asker = NOBODY

    # --- who has how much -----------------------------------------------------------------------------------------

    def change_use(self, tier: Tier, ids: Ids, sign: int) -> None:
        """Blocks have come to a tier (+1) or left it (-1); of the disk they take what their places say. To be told of all of it once
        there are `several` owners.
        """
        residency = self._residency
        num_owners = self._kernels.count_use(
            self._used, self._num_with, tier, _DISK, residency.place, residency.owner, sign, ids
        )
        self.on = self._quotas is not None and num_owners > 1

    def change_dirty(self, ids: Ids, sign: int) -> None:
        """These blocks of host memory have no finished copy on disk any more, or have one."""
        self._kernels.count_blocks(self._dirty, self._residency.owner, sign, ids)

    def too_dirty(self, clean_share: float) -> list[tuple[int, int]]:
        """Owners with more blocks in host memory that the disk has not than such a share of their part leaves; how many more.

        Who must make room by itself can then do so without losing what only host memory has.
        """
        if not self.shared(Tier.HOST):
            return []
        _, entitled = self.standing(Tier.HOST)
        excess = np.empty(len(entitled), dtype=np.int64)
        if not self._kernels.find_dirty(self._dirty, entitled, clean_share, excess):
            return []
        return [(number, excess.item(number)) for number in np.flatnonzero(excess > 0).tolist()]

    def shared(self, tier: Tier) -> bool:
        """Whether there are quotas, and more than one has something in the tier."""
        return self.on and self._num_with.item(tier) > 1

    # --- who is to give -------------------------------------------------------------------------------------------

    def asks(self, tier: Tier, number: int, amount: int) -> None:
        """So much room is about to be looked for, for this owner: it counts as if it were there, until `asked`."""
        self.asker = number
        if self.on:
            self._coming[tier] = coming = np.zeros(len(self._dirty))
            coming[number] = amount

    def ask_for(self, tier: Tier, ids: Ids) -> None:
        """The same for blocks that are about to come to a tier."""
        if self.on:
            counts = np.bincount(self._residency.owner[ids], minlength=len(self._dirty))
            self._coming[tier] = counts.astype(np.float64)

    def asked(self, tier: Tier) -> None:
        """Nothing is looked for any more."""
        self._coming[tier] = None

    def standing(self, tier: Tier) -> tuple[Amounts, Amounts]:
        """What each has, with what is coming, and what it is entitled to: above 0. Any thread may ask."""
        weights, coming = self._weights, self._coming[tier]
        stood = np.empty((2, len(weights)))
        self._kernels.stand(
            self._used,
            tier,
            _NOTHING if coming is None else coming,
            self._sizes,
            weights,
            self._capacity(tier),
            _LEAST,
            stood,
        )
        return stood[0], stood[1]

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
            self._kernels.count_blocks(self._suffered, self._residency.owner, +1, ids)
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
        if not all_of_them and any(self._forgotten):
            found[OTHERS] = dict.fromkeys(_COUNTS, 0)
            found[OTHERS]["evicted_copies"], found[OTHERS]["evictions_asked"] = self._forgotten
        num_owners = min(len(self._suffered), *(len(used) for used, _ in tiers))
        for owner, number in self._owners.all():
            if number >= num_owners:
                continue  # came a moment ago
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
        self._check_quotas()
        if not self._owners.several:
            return
        for tier in Tier:
            there = np.flatnonzero(residency.state[tier] > 0)
            amounts = residency.place[tier][there] if tier is Tier.DISK else None
            found = np.bincount(residency.owner[there], amounts, len(self._dirty)).astype(np.int64)
            counted = self._used[tier]
            assert (found == counted).all(), (
                f"{tier.label}: owners have {found.tolist()}, counted are {counted.tolist()}"
            )
            assert np.count_nonzero(found) == self._num_with[tier], (
                f"{tier.label}: not so many have something"
            )
        assert np.count_nonzero(self._used.any(axis=0)) == self._num_with[-1], "not so many have something"
        assert self.on == (self._quotas is not None and self._num_with[-1] > 1), (
            "quotas are off, or on in vain"
        )
        state = residency.state
        dirty = np.flatnonzero((state[Tier.HOST] == State.PRESENT) & (state[Tier.DISK] != State.PRESENT))
        found = np.bincount(residency.owner[dirty], minlength=len(self._dirty))
        assert (found == self._dirty).all(), "an owner has more or less that is dirty than is counted"

    def _check_quotas(self) -> None:
        rows = self._dirty, self._suffered, self._caused, self._sizes, self._weights, self._used
        lengths = {each.shape[-1] for each in rows}
        assert len(lengths) == 1, f"columns of owners have {lengths} numbers"
        assert len(self._owners) <= len(self._weights), "an owner is in no column"
        for owner, number in self._owners.all():
            sizes, weight = self._said_of(owner, number)
            assert np.array_equal(self._sizes[:, number], sizes, equal_nan=True), "an owner has other sizes"
            assert self._weights[number] == weight, "an owner has another weight"


def split(used: Amounts, entitled: Amounts, amount: int) -> NDArray[np.int64]:
    """How much each has to give so that `amount` is free, and who stands furthest above its part stands lowest after.

    used, entitled: [owners], entitled above 0. Answers whole numbers, [owners], that add up to `amount`, or to all there is::

        used / entitled     1.8  1.2  0.5        gives      (of 10, 10, 10; amount 8)
                            ___
                           |   | ___             7
        level .............|...|.|.|........     1
                           |   | | | ___         0
    """
    given = np.empty(len(used), dtype=np.int64)
    kernels().split(used, entitled, amount, _LEAST, np.empty(len(used)), given)
    return given


def _as_number(size: float | None) -> float:
    if size is None:
        return np.nan
    return float(size if isinstance(size, int) else -size)
