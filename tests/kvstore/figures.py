"""What `stats()` gives: of an engine with everything, and of what has less."""

from typing import Any

from kvstore import MissReason
from kvstore.admin.metric_table import DECISION, OUTCOME, TIERS, TRANSFER, VERDICT


def histogram(*counts: int, total: float = 1.5) -> dict[str, Any]:
    return {"bounds": [0.01, 0.1, 1.0], "counts": [*counts, *[0] * (4 - len(counts))], "sum": total}


def engine_alone() -> dict[str, Any]:
    """The counts of an engine that does not say why prompts missed."""
    return {
        "requests": 7,
        "running": 2,
        "waiting": 1,
        "steps": 90,
        "prefilled_tokens": 700,
        "generated_tokens": 80,
        "forked_replies": 1,
        "early_prefills": 2,
        "void_prefills": 0,
        "cached_tokens": 320,
    }


def engine() -> dict[str, Any]:
    return {
        **engine_alone(),
        "prompt_tokens": 1000,
        "cached_tokens_by_tier": {"device": 160, "host": 96, "disk": 64},
        "missed_tokens": {MissReason.NEVER_SEEN: 600, "not_a_whole_block": 80},
        "ended": {"stop": 3, "length": 2},
        "ttft_s": {"none": histogram(0, 1, 2), "disk": histogram(0, 0, 0, 3, total=9.0)},
        "queue_s": histogram(5),
        "load_s": histogram(1, 1, 1, 1),
        "tenants": {
            "acme": {
                "used_bytes": {"device": 10, "host": 20, "disk": 30},
                "evicted_copies": 4,
                "evictions_asked": 5,
            }
        },
        "draining": False,
        "failed": False,
    }


def cache_alone() -> dict[str, Any]:
    slots = {
        "slots": 10,
        "free": 4,
        "private": 1,
        "indexed": 3,
        "in_flight": 2,
        "evicted": 5,
        "dropped": 6,
        "not_admitted": 1,
    }
    return {
        "tiers": {
            "device": slots,
            "host": {**slots, "slots": 20, "free": 14},
            "disk": {
                "blocks": 9,
                "bytes": 90_000,
                "capacity_bytes": 1_000_000,
                "ready": True,
                "restoring": False,
                "found_blocks": 120,
                "restored_blocks": 120,
                "overdue_reads": 0,
                "writing_blocks": 3,
                "failed_writes": 1,
                "written_bytes": 120_000,
                "read_bytes": 40_000,
                "written_by_read": 3.0,
                "evicted": 0,
                "dropped": 2,
                "not_admitted": 1,
            },
        },
        "blocks": 12,
        "leases": 2,
        "expired": 4,
        "retention": {
            "names": 2,
            "held_blocks": dict.fromkeys(TIERS, 5),
            "expired_names": 1,
            "gave_way": 1,
        },
        "failed_loads": {"overdue": 2},
        "preempted": {"requests": 1, "swapped_out_blocks": 3, "swapped_in_blocks": 2},
        "failed_deletes": 0,
        "failed_touches": 1,
        "failed_terms": 1,
    }


def store() -> dict[str, Any]:
    return {
        "blocks": 9,
        "stored_bytes": 90_000,
        "raw_bytes": 180_000,
        "capacity_bytes": 1_100_000,
        "other_namespaces_bytes": 100_000,
        "damaged": {MissReason.DAMAGED_CHECKSUM: 2},
        "fresh_starts": 0,
        "written": {"planes": 3, "baseline": 10, "huffman": 30},
        "encodes": True,
    }


def cache() -> dict[str, Any]:
    move = {
        "moves": 4,
        "blocks": 16,
        "bytes": 196_608,
        "busy_s": 0.25,
        "failed_blocks": 1,
        "in_flight_blocks": 2,
    }
    figures = cache_alone()
    figures["tiers"]["host"]["retired"] = 1
    return {
        **figures,
        "block_bytes": 12_288,
        "block_tokens": 16,
        "lookups": {"requests": 7, "blocks": 60, "hit_blocks": dict.fromkeys(TIERS, 6)},
        "admission": {
            tier: {
                "verdicts": dict.fromkeys(VERDICT["verdict"] or (), 4),
                "reasons": {"ReuseSeen": {"admit": 4}, "NeverReused": {"reject": 4}},
            }
            for tier in VERDICT["tier"] or ()
        },
        "load_or_compute": {
            "decisions": dict.fromkeys(DECISION["decision"] or (), 3),
            "probes": 1,
            "blocks": dict.fromkeys(OUTCOME["outcome"] or (), 40),
            "ended": 10,
            "predicted_s": 2.5,
            "took_s": 2.25,
            "errors": {"bounds": [0.1, 1.0], "counts": [6, 3, 1], "sum": 1.25},
            "mean_error": 0.125,
            "came_late": 2,
        },
        "transfers": {name: dict(move) for name in TRANSFER["transfer"] or ()},
        "removed": 3,
        "departed": 11,
        "events": 200,
        "store": store(),
    }


def gpu() -> dict[str, Any]:
    return {
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "580.1",
        "memory_used_bytes": 60_000_000_000,
        "memory_total_bytes": 85_000_000_000,
        "utilization_percent": 93,
        "pcie": {
            "generation": 5,
            "max_generation": 5,
            "width": 16,
            "max_width": 16,
            "read_bytes_per_s": 20_000_000_000,
            "written_bytes_per_s": 5_000_000_000,
        },
        "power_w": 512.5,
        "power_limit_w": 700.0,
        "temperature_c": 64,
    }


def everything() -> dict[str, Any]:
    """Of an engine on a GPU with a disk, that tells all."""
    chosen = {"attention": "sdpa", "flashinfer_off": "not installed", "disk_off": None}
    return {"engine": engine(), "cache": cache(), **chosen, "gpu": gpu()}


def without_reasons() -> dict[str, Any]:
    """Of an engine that counts neither reasons nor transfers."""
    return {
        "engine": engine_alone(),
        "cache": {**cache_alone(), "store": store()},
        "attention": "sdpa",
        "flashinfer_off": None,
        "disk_off": None,
        "gpu": None,
    }
