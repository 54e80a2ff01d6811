"""Quotas that were set while an engine ran: its disk keeps them, and the next engine goes by them."""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from kvstore.errors import StoreError, Unsupported
from kvstore.steering import Retains
from kvstore.store import Store

from .tenants import TenantQuota, checked_quotas

_log = logging.getLogger(__name__)

_NOT_READ: Final = (
    "quotas that were set while an engine ran cannot be read, those of the configuration hold: %s"
)


class KeptQuotas:
    """Of one engine: what its configuration says, and on disk what was set beside it.

    The later word counts: for each tenant whose quota was set, the disk has the configuration's quota of then as well, and
    where the configuration says something else now, that holds. Any thread may call it, one at a time.
    """

    def __init__(self, store: Store | None, configured: Mapping[str, TenantQuota]) -> None:
        """Reads what `store` has. Without a disk tier nothing is kept."""
        self._store: Retains | None = None
        if isinstance(store, Retains):
            self._store = store
        self._configured = configured
        self.at_start = self._read()
        """What holds when the engine starts."""

    def _read(self) -> dict[str, TenantQuota]:
        configured = dict(self._configured)
        try:
            content = self._store.settings() if self._store is not None else None
            if content is None:
                return configured
            quotas = checked_quotas(self._with(json.loads(content)))
        except Unsupported:
            self._store = None
        except (StoreError, ValueError, TypeError) as error:
            _log.error(_NOT_READ, error, extra={"error": error})
        else:
            with suppress(StoreError):  # what is out of date would hold again if the configuration went back
                self.keep(quotas)
            return quotas
        return configured

    def _with(self, kept: Mapping[str, tuple[TenantQuota | None, TenantQuota | None]]) -> dict[str, Any]:
        if not isinstance(kept, Mapping):
            raise ValueError(f"they are by tenant, not {kept!r}")
        quotas: dict[str, Any] = dict(self._configured)
        for tenant, (was, now) in kept.items():
            if was == self._configured.get(tenant):
                quotas.pop(tenant, None)
                if now is not None:
                    quotas[tenant] = now
        return quotas

    def keep(self, quotas: Mapping[str, TenantQuota]) -> None:
        """From now on these hold: they are on disk when this returns. Raises StoreError, and what was there stays, if not."""
        if self._store is None:
            return
        kept = {
            tenant: (self._configured.get(tenant), quotas.get(tenant))
            for tenant in {**self._configured, **quotas}
            if self._configured.get(tenant) != quotas.get(tenant)
        }
        content = json.dumps(kept, sort_keys=True).encode() if kept else None
        if content != self._store.settings():
            self._store.put_settings(content)
