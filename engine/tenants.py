"""What tenants may keep, as a user writes it and as the core takes it; and what each has."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kvstore.reports import TenantReport, TierName
from tiering.quotas import WEIGHTS, Quota, Quotas
from tiering.residency import Tier

from .params import RequestOptions, check_number
from .salt import owner_of
from .sizes import parse_bytes

EVERY_TENANT: Final = "*"
"""In place of a name: each tenant without a quota of its own."""
NO_TENANT: Final = ""
"""In place of a name: what is no tenant's, as public prompts are."""

TenantQuota = Mapping[str, Any]
"""By tier's label a size in bytes, an int, or a share of the tier, a float; and "weight"."""

_MOST_QUOTAS: Final = 1000
_MOST_NAMES: Final = 16_384
_TIERS: Final[tuple[TierName, ...]] = ("device", "host", "disk")


def checked_quotas(values: object) -> dict[str, TenantQuota]:
    """Quotas by tenant, sizes parsed. Raises ValueError for what is none, and for more than a thousand."""
    if not isinstance(values, Mapping):
        raise ValueError(f"tenant_quotas must be quotas by tenant, got {values!r}")
    if len(values) > _MOST_QUOTAS:
        raise ValueError(f"tenant_quotas may name {_MOST_QUOTAS} tenants, got {len(values)}")
    return {_checked_name(name): checked_quota(name, quota) for name, quota in values.items()}


def checked_quota(tenant: str, values: object) -> TenantQuota:
    """One tenant's quota, sizes parsed. Raises ValueError for what is none."""
    if not isinstance(values, Mapping):
        raise ValueError(f"the quota of {tenant!r} must be sizes by tier, got {values!r}")
    quota: dict[str, int | float] = {}
    for name, value in values.items():
        what = f"{name} of the quota of {tenant!r}"
        if name == "weight":
            check_number(what, value, *WEIGHTS)
            quota[name] = float(value)
        elif name in _TIERS:
            quota[name] = _size(what, value)
        else:
            known = ", ".join((*_TIERS, "weight"))
            raise ValueError(f"unknown {name!r} in the quota of {tenant!r}; known are {known}")
    return quota


def _checked_name(name: object) -> str:
    if name not in (EVERY_TENANT, NO_TENANT):
        RequestOptions(tenant=name)  # type: ignore[arg-type]  # which is what it looks at
    assert isinstance(name, str), "a tenant's name was looked at"
    return name


def _size(what: str, value: object) -> int | float:
    if isinstance(value, float):
        check_number(what, value, 0.0, 1.0)
        return value
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            percent = float(value.strip()[:-1])
        except ValueError:
            raise ValueError(
                f"{what} must be a size, or a share such as 0.25 or '25%', got {value!r}"
            ) from None
        check_number(what, percent / 100, 0.0, 1.0)
        return percent / 100
    return parse_bytes(value, what)  # type: ignore[arg-type]  # which refuses all else


def core_quotas(settings: Mapping[str, TenantQuota], block_bytes: int) -> Quotas | None:
    """The same for the core, which counts blocks on the device and in host memory; None for no quotas at all."""
    if not settings:
        return None
    quotas = {tenant: _core_quota(quota, block_bytes) for tenant, quota in settings.items()}
    special = (EVERY_TENANT, NO_TENANT)
    return Quotas(
        default=quotas.get(EVERY_TENANT, Quota()),
        nobodys=quotas.get(NO_TENANT, Quota()),
        owners={owner_of(tenant): quota for tenant, quota in quotas.items() if tenant not in special},
    )


def _core_quota(quota: TenantQuota, block_bytes: int) -> Quota:
    sizes: dict[str, int | float] = {}
    for tier in _TIERS:
        if (size := quota.get(tier)) is not None:
            sizes[tier] = size // block_bytes if isinstance(size, int) and tier != "disk" else size
    return Quota(**sizes, weight=float(quota.get("weight", 1.0)))


class Tenants:
    """The names of tenants that have asked for something since the start, the last ones: the cache knows owners only.

    Any thread may call it.
    """

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def saw(self, tenant: str | None) -> None:
        """A tenant has asked for something."""
        if tenant is None:
            return
        with self._lock:
            self._names[owner_of(tenant).hex()] = tenant
            self._names.move_to_end(owner_of(tenant).hex())
            if len(self._names) > _MOST_NAMES:
                self._names.popitem(last=False)

    def reports(
        self,
        owners: Mapping[str, Mapping[str, int]],
        settings: Mapping[str, TenantQuota],
        block_bytes: int,
    ) -> Sequence[TenantReport]:
        """Of each owner of `Index.owners` what it has, who has most first. Also of those with a quota that have nothing."""
        with self._lock:
            names = dict(self._names)
        names |= named(settings)
        names[NO_TENANT] = NO_TENANT
        found = [
            _report(owner, names.get(owner), row, settings, block_bytes) for owner, row in owners.items()
        ]
        nothing: dict[str, int] = {}
        found += [
            _report(owner, name, nothing, settings, block_bytes)
            for owner, name in named(settings).items()
            if owner not in owners
        ]
        return sorted(found, key=lambda each: -sum(each.used_bytes.values()))


def named(settings: Mapping[str, TenantQuota]) -> dict[str, str]:
    """The names of those that have a quota of their own, by owner in hexadecimal."""
    return {owner_of(name).hex(): name for name in settings if name not in (EVERY_TENANT, NO_TENANT)}


def _report(
    owner: str,
    name: str | None,
    row: Mapping[str, int],
    settings: Mapping[str, TenantQuota],
    block_bytes: int,
) -> TenantReport:
    default = settings.get(EVERY_TENANT) if name != NO_TENANT else None
    quota = default if name is None else settings.get(name, default)
    return TenantReport(
        tenant=name,
        owner=owner,
        used_bytes=_by_tier(row, "", block_bytes),
        part_bytes=_by_tier(row, "_part", block_bytes) if settings else None,
        quota=None if quota is None else dict(quota),
        evicted_copies=row.get("evicted_copies", 0),
        evictions_asked=row.get("evictions_asked", 0),
    )


def _by_tier(row: Mapping[str, int], suffix: str, block_bytes: int) -> dict[TierName, int]:
    sizes = {Tier.DEVICE: block_bytes, Tier.HOST: block_bytes, Tier.DISK: 1}
    return {tier.label: row.get(f"{tier.label}{suffix}", 0) * size for tier, size in sizes.items()}


def figures(
    owners: Mapping[str, Mapping[str, int]], settings: Mapping[str, TenantQuota], block_bytes: int
) -> dict[str, Any]:
    """By tenant what `Index.stats` has by owner: those with a quota of their own, "" for what is nobody's, and "*" for all others."""
    names = named(settings)
    return {
        names.get(owner, owner): {
            "used_bytes": _by_tier(row, "", block_bytes),
            "evicted_copies": row["evicted_copies"],
            "evictions_asked": row["evictions_asked"],
        }
        for owner, row in owners.items()
    }
