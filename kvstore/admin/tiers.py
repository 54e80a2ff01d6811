"""The figures of `GET /admin/v1/tiers`, from a cache's `stats` and the windows over them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from kvstore.admin.shapes import (
    DiskFigures,
    HistoryPoint,
    Queue,
    TierFigures,
    Tiers,
    TransferFigures,
    TransferName,
    WindowFigures,
)
from kvstore.admin.windows import SECONDS, Growth, Windows
from kvstore.reports import TierName

TIERS: tuple[TierName, ...] = ("device", "host", "disk")
WAYS: dict[TransferName, tuple[TierName, TierName]] = {
    "demote": ("device", "host"),
    "promote": ("host", "device"),
    "swap_out": ("device", "host"),
    "swap_in": ("host", "device"),
    "read": ("disk", "host"),
    "write": ("host", "disk"),
}
COUNTED = (
    "prompt_tokens",
    *(f"cached_{tier}" for tier in TIERS),
    *(f"{name}_{what}" for name in get_args(TransferName) for what in ("bytes", "busy_s")),
)
"""What windows are kept of."""


def as_engine(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The stats of a bare cache in the form of an engine's; an engine's as they are."""
    return dict(stats) if "cache" in stats else {"cache": dict(stats)}


def counts_of(stats: Mapping[str, Any]) -> dict[str, float]:
    """What COUNTED names, from an engine's stats. What a cache does not tell counts as 0."""
    asked, cached = _asked(stats)
    transfers = _at(stats, "cache", "transfers")
    return {
        "prompt_tokens": asked,
        **{f"cached_{tier}": cached.get(tier, 0) for tier in TIERS},
        **{
            f"{name}_{what}": _at(transfers, name).get(what, 0)
            for name in WAYS
            for what in ("bytes", "busy_s")
        },
    }


def _asked(stats: Mapping[str, Any]) -> tuple[float, Mapping[str, float]]:
    """Prompt tokens, and those of them that were cached by tier: an engine counts them, a bare cache only blocks."""
    engine = _at(stats, "engine")
    if "prompt_tokens" in engine:
        return engine["prompt_tokens"], _at(engine, "cached_tokens_by_tier")
    cache = _at(stats, "cache")
    lookups, block_tokens = _at(cache, "lookups"), cache.get("block_tokens", 0)
    hits = {tier: blocks * block_tokens for tier, blocks in _at(lookups, "hit_blocks").items()}
    return lookups.get("blocks", 0) * block_tokens, hits


def tiers_of(stats: Mapping[str, Any], windows: Windows) -> Tiers:
    """All that is told of the tiers. Pure, and at most a few milliseconds."""
    growth = {seconds: windows.growth(seconds) for seconds in SECONDS}
    cache, engine = _at(stats, "cache"), _at(stats, "engine")
    return Tiers(
        windows=tuple(_window(seconds, growth[seconds]) for seconds in SECONDS),
        tiers=tuple(_tier(tier, stats, growth) for tier in TIERS),
        transfers=tuple(_transfers(_at(cache, "transfers"), growth)),
        disk=_disk(cache),
        queue=Queue(waiting=engine["waiting"], running=engine["running"]) if "waiting" in engine else None,
        history=tuple(_history(windows)),
        missed_tokens=dict(_at(engine, "missed_tokens")),
        gpu=stats.get("gpu"),
    )


def _window(seconds: int, growth: Growth | None) -> WindowFigures:
    counts = growth.counts if growth is not None else {}
    asked = counts.get("prompt_tokens", 0)
    cached: dict[TierName, int] = {tier: int(counts.get(f"cached_{tier}", 0)) for tier in TIERS}
    return WindowFigures(
        seconds=seconds,
        prompt_tokens=int(asked),
        cached_tokens_by_tier=cached,
        hit_rate=_share(sum(cached.values()), asked),
    )


def _tier(tier: TierName, stats: Mapping[str, Any], growth: Mapping[int, Growth | None]) -> TierFigures:
    cache = _at(stats, "cache")
    figures = _at(cache, "tiers", tier)
    block_bytes = cache.get("block_bytes")
    if tier == "disk":
        sizes = _disk_sizes(cache)
        on = bool(figures.get("capacity_bytes")) and not stats.get("disk_off")
        ready = on and bool(figures.get("ready"))
    else:
        sizes = _slot_sizes(figures, block_bytes)
        on = ready = bool(figures.get("slots"))
    return TierFigures(
        name=tier,
        on=on,
        ready=ready,
        **sizes,
        hit_rate={
            str(seconds): None if grown is None else _rate(grown.counts, tier)
            for seconds, grown in growth.items()
        },
        evicted_blocks=figures.get("evicted", 0),
        dropped_blocks=figures.get("dropped", 0),
        reason=None if ready else _why_not(tier, stats, on=on),
    )


def _why_not(tier: TierName, stats: Mapping[str, Any], *, on: bool) -> str | None:
    """Why a tier does not work, as a sentence; None where the figures do not tell."""
    if tier != "disk":
        return "It has no slots yet, or is switched off."
    if stats.get("disk_off"):
        return str(stats["disk_off"])
    if not on:
        return "No directory is set for it."
    overdue = _at(stats, "cache", "tiers", "disk").get("overdue_reads", 0)
    hang = f" {overdue} of its reads hang." if overdue else ""
    return f"It is left alone for a while, because reads or writes failed or took too long.{hang}"


def _slot_sizes(figures: Mapping[str, int], block_bytes: int | None) -> dict[str, int | None]:
    slots = figures.get("slots", 0) - figures.get("retired", 0)  # out of service, they hold nothing
    blocks = {
        "capacity": slots,
        "used": slots - figures.get("free", 0),
        "live": figures.get("indexed", 0),
        "in_flight": figures.get("in_flight", 0),
    }
    return {
        **{f"{name}_blocks": count for name, count in blocks.items()},
        **{
            f"{name}_bytes": None if block_bytes is None else count * block_bytes
            for name, count in blocks.items()
        },
    }


def _disk_sizes(cache: Mapping[str, Any]) -> dict[str, int | None]:
    """Records are of many sizes, so that how many more would fit is not known."""
    figures, store = _at(cache, "tiers", "disk"), _at(cache, "store")
    block_bytes, writing = cache.get("block_bytes"), figures.get("writing_blocks", 0)
    return {
        "capacity_blocks": None,
        "used_blocks": figures.get("blocks", 0),
        "live_blocks": figures.get("blocks", 0),
        "in_flight_blocks": writing,
        "capacity_bytes": figures.get("capacity_bytes", 0),
        "used_bytes": figures.get("bytes", 0),
        "live_bytes": store.get("stored_bytes", 0),
        "in_flight_bytes": None if block_bytes is None else writing * block_bytes,
    }


def _transfers(
    transfers: Mapping[str, Any], growth: Mapping[int, Growth | None]
) -> Iterator[TransferFigures]:
    for name, (source, target) in WAYS.items():
        figures = _at(transfers, name)
        yield TransferFigures(
            name=name,
            source=source,
            target=target,
            bytes=figures.get("bytes", 0),
            blocks=figures.get("blocks", 0),
            failed_blocks=figures.get("failed_blocks", 0),
            in_flight_blocks=figures.get("in_flight_blocks", 0),
            bytes_per_s=_per_second(growth, f"{name}_bytes"),
            busy_share=_per_second(growth, f"{name}_busy_s"),
        )


def _per_second(growth: Mapping[int, Growth | None], name: str) -> dict[str, float | None]:
    return {
        str(seconds): None if grown is None else _share(grown.counts[name], grown.covered_s)
        for seconds, grown in growth.items()
    }


def _disk(cache: Mapping[str, Any]) -> DiskFigures | None:
    store, figures = _at(cache, "store"), _at(cache, "tiers", "disk")
    if not store:
        return None
    return DiskFigures(
        compression_ratio=_share(store.get("raw_bytes", 0), store.get("stored_bytes", 0)),
        stored_bytes=store.get("stored_bytes", 0),
        raw_bytes=store.get("raw_bytes", 0),
        written_bytes=figures.get("written_bytes", 0),
        read_bytes=figures.get("read_bytes", 0),
        written_by_read=figures.get("written_by_read"),
        damaged=dict(_at(store, "damaged")),
        other_namespaces_bytes=store.get("other_namespaces_bytes", 0),
    )


def _history(windows: Windows) -> Iterator[HistoryPoint]:
    for point in windows.history():
        device, host, disk = (_rate(point.counts, tier) for tier in TIERS)
        yield (point.epoch_s, device, host, disk, int(point.counts["prompt_tokens"]))


def _rate(counts: Mapping[str, float], tier: TierName) -> float | None:
    return _share(counts[f"cached_{tier}"], counts["prompt_tokens"])


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _at(value: Any, *path: str) -> Mapping[str, Any]:
    """What lies at a path of nested dicts; an empty one where there is nothing, as with a cache that has no store."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def not_ready(stats: Mapping[str, Any]) -> Sequence[str]:
    """Why requests are not served, in sentences; empty if they are."""
    engine = _at(stats, "engine")
    reasons = []
    if engine.get("draining"):
        reasons.append("the engine drains: it takes no new requests")
    if engine.get("failed"):
        reasons.append("the engine has failed, and must be started anew: the log says why")
    return reasons
