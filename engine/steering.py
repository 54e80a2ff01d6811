"""What is done to an engine while it serves: draining, verifying, other settings; what its cache holds, run by run."""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import torch

from kvstore.closing import Closing
from kvstore.errors import StoreError, StoreFailed, Unsupported
from kvstore.reports import (
    Event,
    NamespaceInfo,
    Removed,
    TenantReport,
    TierName,
    Verified,
)
from kvstore.steering import Changeable, KnowsOthers
from kvstore.verify import verify
from tiering.cache import TieredCache

from .config import MIN_HOST_SLOTS, EngineConfig, read_threads
from .dtypes import dtype_name
from .intake import Intake
from .params import check_number
from .tenants import Tenants, core_quotas, figures
from .tiers import Tiers

CHANGEABLE: Final = (
    "host_bytes",
    "host_clean_share",
    "disk_bytes",
    "disk_min_free_bytes",
    "disk_queue_bytes",
    "disk_deadline_s",
    "ttl_s",
    "tenant_quotas",
    "min_prefix_tokens",
)
"""The settings of EngineConfig that can be changed while the engine runs."""


class Steering:
    """Of one engine. Any thread may call all of it; nothing here makes the engine's thread wait."""

    def __init__(self, config: EngineConfig, tiers: Tiers, check_open: Callable[[], None]) -> None:
        """`check_open` raises EngineClosed once the engine is closed."""
        self._tiers, self._check_open = tiers, check_open
        self._config = _as_it_is(config, tiers)
        """Replaced, never changed."""
        # a change is checked against the settings that it changes, and one quota joins the others
        self._changing = threading.RLock()
        self._verifying = threading.Lock()
        self.tenants = Tenants()
        self._stopped = threading.Event()
        self.intake = Intake()

    def close(self) -> None:
        """End what runs here. Safe to call twice."""
        self._stopped.set()
        self.intake.end()  # it is closed, which is worth more saying

    def drain(self, timeout_s: float | None) -> bool:
        self._check_open()
        if timeout_s is not None:
            check_number("timeout_s", timeout_s, 0.0)
        return self.intake.shut(timeout_s)

    def resume(self) -> None:
        self._check_open()
        self.intake.open()

    # --- the disk -------------------------------------------------------------------------------------------------

    def verify(self) -> Verified:
        self._check_open()
        if self._tiers.disk_off is not None:
            raise StoreFailed(f"there is no disk tier to verify: {self._tiers.disk_off}")
        if self._tiers.store is None:
            return Verified(records=0)
        if not self._verifying.acquire(blocking=False):
            raise RuntimeError("the disk is being verified already")
        try:
            return verify(self._tiers.store, stopped=self._stopped)
        finally:
            self._verifying.release()

    def namespaces(self) -> Sequence[NamespaceInfo]:
        self._check_open()
        tiers, store = self._tiers, self._tiers.store
        if isinstance(store, KnowsOthers):
            try:
                return store.namespaces()
            except StoreError:
                pass  # a layer around a store that does not know, or a disk that fails: it knows its own
        blocks = int(tiers.cache.stats()["blocks"])
        own = NamespaceInfo(
            digest=tiers.namespace.digest.hex(),
            own=True,
            facts=dict(tiers.namespace.fields),
            blocks=blocks,
            stored_bytes=blocks * tiers.layout.block_bytes,
        )
        return [own]

    # --- settings -------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        config = self._config
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def change(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        self._check_open()
        with self._changing:
            wanted = self._checked(changes)
            self._keep_quotas(wanted, changes)
            try:
                self._apply(wanted, changes.keys())
            except BaseException:
                with suppress(StoreError):
                    self._keep_quotas(self._config, changes)
                raise
            self._config = wanted
        if changes:
            facts = {name: getattr(wanted, name) for name in changes}
            if "tenant_quotas" in facts:  # whose they are is not for all who hear of events
                facts["tenant_quotas"] = len(wanted.tenant_quotas)
            self._tiers.cache.note("settings", **facts)
        return self.settings()

    def _keep_quotas(self, config: EngineConfig, changes: Collection[str]) -> None:
        """Have the disk know of quotas before they hold. Raises StoreError, and nothing has changed, if it does not take them."""
        if "tenant_quotas" in changes:
            self._tiers.kept_quotas.keep(config.tenant_quotas)

    def set_quota(self, tenant: str, quota: Mapping[str, Any] | None) -> None:
        """None takes it away: KeyError if there is none."""
        with self._changing:
            quotas = dict(self._config.tenant_quotas)
            if quota is None:
                del quotas[tenant]
            else:
                quotas[tenant] = dict(quota)
            self.change({"tenant_quotas": quotas})

    def tenants_there(self) -> Sequence[TenantReport]:
        self._check_open()
        owners = self._tiers.cache.owners()
        return self.tenants.reports(owners, self._config.tenant_quotas, self._tiers.layout.block_bytes)

    def tenant_figures(self, owners: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        """Of `stats()` what is there by owner, by tenant."""
        return figures(owners, self._config.tenant_quotas, self._tiers.layout.block_bytes)

    def _checked(self, changes: Mapping[str, Any]) -> EngineConfig:
        """The settings with these changes. Raises ValueError for what cannot be changed, or not to that."""
        for name in changes:
            if name not in CHANGEABLE:
                known = {field.name for field in fields(EngineConfig)}
                what = (
                    f"{name!r} cannot be changed while the engine runs"
                    if name in known
                    else f"unknown setting {name!r}"
                )
                raise ValueError(f"{what}; changeable are {', '.join(CHANGEABLE)}")
            if name.startswith("disk_") and self._tiers.store is None:
                raise ValueError(f"{name} cannot be changed: there is no disk tier")
        wanted = replace(self._config, **changes)
        if not isinstance(wanted.host_bytes, int):
            raise ValueError(f"host_bytes must be a size, got {wanted.host_bytes!r}")
        self._check_host(wanted.host_bytes)
        return wanted

    def _check_host(self, host_bytes: int) -> None:
        block_bytes, most = self._tiers.layout.block_bytes, self._tiers.slab.num_slots
        if host_bytes > most * block_bytes:
            raise ValueError(
                f"host_bytes cannot be more than the {most * block_bytes} that were taken at the start, got {host_bytes}"
            )
        if self._tiers.store is not None and host_bytes < MIN_HOST_SLOTS * block_bytes:
            raise ValueError(
                f"the disk tier reads through host memory: host_bytes must be at least {MIN_HOST_SLOTS} blocks of "
                f"{block_bytes} bytes, got {host_bytes}"
            )

    def _apply(self, wanted: EngineConfig, names: Collection[str]) -> None:
        """Have store and cache work to these settings. Where one of them cannot, both go on as before."""
        before, after = _limits(self._config, names), _limits(wanted, names)
        # the store has the larger capacity first and last: the cache must not count on what the store would refuse
        larger = {
            name: max(each[name] for each in (before, after)) for name in after if name == "capacity_bytes"
        }
        self._change_store({**after, **larger})
        try:
            if values := self._index_settings(wanted, names):
                self._tiers.cache.change(**values)
        except BaseException:
            self._change_store(before)
            raise
        if larger != {name: after[name] for name in larger}:
            self._change_store({name: after[name] for name in larger})

    def _change_store(self, limits: Mapping[str, Any]) -> None:
        store = self._tiers.store
        if store is None or not limits:
            return
        try:
            if not isinstance(store, Changeable):
                raise Unsupported(f"{type(store).__name__} has limits that cannot be changed")
            store.change(**limits)
        except Unsupported:
            if limits.keys() != {"ttl_s"}:  # which a store need not know
                raise

    def _index_settings(self, wanted: EngineConfig, names: Collection[str]) -> dict[str, Any]:
        """What changes for the core, as IndexConfig calls it."""
        block_bytes, store = self._tiers.layout.block_bytes, self._tiers.store
        values: dict[str, Any] = {}
        if "host_bytes" in names:
            values["host_slots"] = _whole(wanted.host_bytes) // block_bytes
        if "host_clean_share" in names:
            values["clean_share"] = wanted.host_clean_share
        if "disk_queue_bytes" in names:
            values["write_budget_blocks"] = max(1, _whole(wanted.disk_queue_bytes) // block_bytes)
        if "disk_deadline_s" in names:
            values["io_deadline_s"] = wanted.disk_deadline_s
        if "ttl_s" in names:
            values["ttl_s"] = wanted.ttl_s
        if "tenant_quotas" in names:
            values["quotas"] = core_quotas(wanted.tenant_quotas, block_bytes)
        if "min_prefix_tokens" in names:
            values["min_prefix_tokens"] = wanted.min_prefix_tokens
        if "disk_bytes" in names and store is not None:
            others_bytes = store.stats().other_namespaces_bytes
            values["disk_bytes"] = max(0, _limits(wanted, names)["capacity_bytes"] - others_bytes)
        return values


class Steered(Closing):
    """The part of an engine that `Steering` and its cache do."""

    _steering: Steering
    _cache: TieredCache

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no new requests, and wait until those there are have ended. False if `timeout_s` was not enough,
        or somebody resumed meanwhile.

        Until `resume` what would begin a request raises RuntimeError, also after False; everything else goes on.
        """
        return self._steering.drain(timeout_s)

    def resume(self) -> None:
        """Take requests again. Nothing to do if the engine is not drained."""
        self._steering.resume()

    def verify(self) -> Verified:
        """Read every record of the engine's own model on disk and check it; what is damaged is put aside, as by a request.

        Blocks for as long as that takes: it reads a few megabytes at a time and at most half of the time, so that requests
        come first. Nothing to do without a disk tier. Raises StoreError if the disk fails, there is none although one was
        asked for, or the engine is closed meanwhile; RuntimeError if it is being verified already.
        """
        return self._steering.verify()

    def namespaces(self) -> Sequence[NamespaceInfo]:
        """What the disk holds, by namespace, the engine's own first; without a disk its own alone, in all tiers.

        A namespace is all that must be equal for KV to be shared; `facts` says what that is, where it is known.
        """
        return self._steering.namespaces()

    def settings(self) -> dict[str, Any]:
        """Every field of EngineConfig as it is now: "auto" as it was decided, sizes in bytes, paths as strings."""
        return self._steering.settings()

    def change(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings while requests run, all of them or none; those in CHANGEABLE can be. What `settings` says then.

        Sizes may be strings such as "512MiB". What is above a smaller size leaves in the background. `host_bytes` goes up to what
        it was at the start. Raises ValueError for what cannot be changed, or not to that; StoreError if the disk cannot.
        """
        return self._steering.change(changes)

    def tenants(self) -> Sequence[TenantReport]:
        """What each tenant has in the tiers, who has most first, and what is no tenant's. Empty as long as no tenant asked."""
        return self._steering.tenants_there()

    def set_quota(self, tenant: str, quota: Mapping[str, Any]) -> None:
        """Set a tenant's quota while requests run: one of `EngineConfig.tenant_quotas`. With a disk tier it is on disk when
        this returns, and holds for the next engine too, as long as its configuration says of the tenant what this one's does.
        ValueError for what is no quota; StoreError, and no change, if the disk does not take it.
        """
        self._steering.set_quota(tenant, quota)

    def delete_quota(self, tenant: str) -> None:
        """Take a tenant's quota away: it has that of every tenant then. KeyError if it has none, else as `set_quota`."""
        self._steering.set_quota(tenant, None)

    def _check_open(self) -> None:
        """Raise EngineClosed if the engine is closed."""
        raise NotImplementedError

    def demote_prefix(self, key: str, to: TierName) -> Removed:
        """See TieredCache.demote_prefix."""
        self._check_open()
        return self._cache.demote_prefix(key, to)

    def remove_prefix(self, key: str) -> Removed:
        """See TieredCache.remove_prefix."""
        self._check_open()
        return self._cache.remove_prefix(key)

    def events(self, after: int = 0) -> Sequence[Event]:
        """What has happened since the event of that number, oldest first; what is too long ago is missing.

        The kinds are those of EventLog; "settings": those that `change` has changed, as they are now; and "request": one
        that has ended, with its number, its end and counts of tokens.
        """
        return self._cache.events(after)


def _as_it_is(config: EngineConfig, tiers: Tiers) -> EngineConfig:
    """The configuration with what was left open as it was decided."""
    block_bytes = tiers.layout.block_bytes
    decided: dict[str, Any] = {
        "tenant_quotas": tiers.kept_quotas.at_start,
        "device": tiers.model.device.type,
        "dtype": dtype_name(tiers.model.dtype),
        "kv_dtype": tiers.layout.dtype,
        "attention": tiers.attention,
        "device_bytes": tiers.pool.num_slots * block_bytes,
        "host_bytes": tiers.slab.num_slots * block_bytes,
        "disk_read_threads": read_threads(config.disk_read_threads),
        "layer_groups": len(tiers.groups.starts),
        "max_model_len": tiers.model.max_len,
        "num_threads": torch.get_num_threads(),
    }
    return replace(config, **decided)


def _limits(config: EngineConfig, names: Collection[str]) -> dict[str, Any]:
    """What these settings are to the store: see Changeable.change."""
    limits: dict[str, Any] = {}
    if "disk_bytes" in names:
        from kvstore.disk import capacity_within  # needs lmdb, which nothing else does

        limits["capacity_bytes"] = capacity_within(_whole(config.disk_bytes))
    if "disk_min_free_bytes" in names:
        limits["min_free_bytes"] = config.disk_min_free_bytes
    if "ttl_s" in names:
        limits["ttl_s"] = config.ttl_s
    return limits


def _whole(size: int | str) -> int:
    """A size that was decided."""
    assert isinstance(size, int), f"{size!r} was to be decided at the start"
    return size
