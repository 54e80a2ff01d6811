"""Write docs/grafana/kvtide.json, the Grafana dashboard, from what its panels ask: python -m tools.dashboard"""

import json
from pathlib import Path

from tools.grafana import Panel, dashboard

FILE = Path(__file__).resolve().parent.parent / "docs" / "grafana" / "kvtide.json"

# the instances that the reader has chosen
ON = 'instance=~"$instance"'
FREE = 'state="free"'
IN_SERVICE = 'state!="retired"'


def rate(name: str, by: str = "", more: str = "") -> str:
    """The summed rate of a counter."""
    summed = f"sum by ({by})" if by else "sum"
    matchers = f"{ON},{more}" if more else ON
    return f"{summed} (rate({name}{{{matchers}}}[$__rate_interval]))"


def gauge(name: str, by: str = "instance", more: str = "") -> str:
    """The sum of a gauge."""
    return f"sum by ({by}) ({name}{{{f'{ON},{more}' if more else ON}}})"


def quantile(share: float, name: str, by: str = "") -> str:
    """That share of a histogram's values lie below it."""
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', f'{by}, le' if by else 'le')})"


def ratio(above: str, below: str) -> str:
    """One by the other, which has no labels."""
    return f"{above} / on () group_left () {below}"


HIT_RATE = f"{rate('kvtide_cached_tokens_total')} / {rate('kvtide_prompt_tokens_total')}"

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel(
            title="Hit rate",
            asks={"": HIT_RATE},
            unit="percentunit",
            most=1,
            kind="stat",
            columns=4,
            rows=4,
            says="Prompt tokens that did not have to be computed.",
        ),
        Panel(
            title="TTFT, 95 %",
            asks={"": quantile(0.95, "kvtide_ttft_seconds")},
            unit="s",
            kind="stat",
            columns=4,
            rows=4,
            says="95 of 100 requests have their first token sooner.",
        ),
        Panel(
            title="Requests",
            asks={"": rate("kvtide_requests_total")},
            unit="reqps",
            kind="stat",
            columns=4,
            rows=4,
        ),
        Panel(
            title="Running",
            asks={"": f"sum(kvtide_running_replies{{{ON}}})"},
            unit="short",
            kind="stat",
            columns=4,
            rows=4,
        ),
        Panel(
            title="Waiting",
            asks={"": f"sum(kvtide_waiting_replies{{{ON}}})"},
            unit="short",
            kind="stat",
            columns=4,
            rows=4,
        ),
        Panel(
            title="Errors and timeouts",
            asks={"": rate("kvtide_replies_total", more='reason=~"error|timeout"')},
            unit="ops",
            kind="stat",
            columns=4,
            rows=4,
        ),
        Panel(
            title="Hit rate by tier",
            asks={
                "{{tier}}": ratio(
                    rate("kvtide_cached_tokens_total", "tier"), rate("kvtide_prompt_tokens_total")
                )
            },
            unit="percentunit",
            most=1,
            stacked=True,
            columns=12,
            says="Share of prompt tokens that each tier served.",
        ),
        Panel(
            title="TTFT by the slowest tier that served",
            asks={
                "{{tier}} 50 %": quantile(0.5, "kvtide_ttft_seconds", "tier"),
                "{{tier}} 95 %": quantile(0.95, "kvtide_ttft_seconds", "tier"),
            },
            unit="s",
            columns=12,
            says="none: computed in full.",
        ),
        Panel(
            title="Replies by how they ended",
            asks={"{{reason}}": rate("kvtide_replies_total", "reason")},
            unit="ops",
            stacked=True,
        ),
        Panel(
            title="Waits, 95 %",
            asks={
                "for room": quantile(0.95, "kvtide_queue_seconds"),
                "for blocks": quantile(0.95, "kvtide_load_seconds"),
            },
            unit="s",
            says="From submission to admission, and from there until the last cached block was on the device.",
        ),
        Panel(
            title="Tokens",
            asks={
                "of prompts": rate("kvtide_prompt_tokens_total"),
                "prefilled": rate("kvtide_prefilled_tokens_total"),
                "generated": rate("kvtide_generated_tokens_total"),
            },
            unit="cps",
        ),
    ],
    "Tiers": [
        Panel(
            title="Fill",
            asks={
                "{{tier}}": f"1 - {gauge('kvtide_slots', 'tier', FREE)} "
                f"/ {gauge('kvtide_slots', 'tier', IN_SERVICE)}",
                "disk": f"sum(kvtide_disk_used_bytes{{{ON}}}) / sum(kvtide_disk_capacity_bytes{{{ON}}})",
            },
            unit="percentunit",
            most=1,
        ),
        Panel(
            title="Hit tokens",
            asks={"{{tier}}": rate("kvtide_cached_tokens_total", "tier")},
            unit="cps",
            stacked=True,
        ),
        Panel(
            title="Blocks that leave",
            asks={
                "evicted from {{tier}}": rate("kvtide_evicted_blocks_total", "tier"),
                "dropped in {{tier}}": rate("kvtide_dropped_blocks_total", "tier"),
                "expired": rate("kvtide_expired_blocks_total"),
                "removed": rate("kvtide_removed_blocks_total"),
            },
            unit="cps",
            says="Evicted: a copy made room. Dropped: it was the last copy.",
        ),
        Panel(
            title="Device slots",
            asks={"{{state}}": gauge("kvtide_slots", "state", 'tier="device"')},
            unit="short",
            stacked=True,
        ),
        Panel(
            title="Host slots",
            asks={"{{state}}": gauge("kvtide_slots", "state", 'tier="host"')},
            unit="short",
            stacked=True,
        ),
        Panel(
            title="Requests that gave up their room",
            asks={
                "preempted": rate("kvtide_preemptions_total"),
                "blocks out": rate("kvtide_swapped_out_blocks_total"),
                "blocks in": rate("kvtide_swapped_in_blocks_total"),
            },
            unit="ops",
        ),
    ],
    "Transfers": [
        Panel(
            title="Bytes",
            asks={"{{transfer}}": rate("kvtide_transfer_bytes_total", "transfer")},
            unit="Bps",
            columns=12,
        ),
        Panel(
            title="Moves under way, on average",
            asks={"{{transfer}}": rate("kvtide_transfer_busy_seconds_total", "transfer")},
            unit="short",
            columns=12,
            says="1: one move at any time. More: moves wait for each other.",
        ),
        Panel(
            title="Blocks in flight",
            asks={"{{transfer}}": gauge("kvtide_transfer_in_flight_blocks", "transfer")},
            unit="short",
        ),
        Panel(
            title="Blocks that a move did not bring",
            asks={"{{transfer}}": rate("kvtide_transfer_failed_blocks_total", "transfer")},
            unit="cps",
        ),
        Panel(
            title="Failed loads by reason",
            asks={"{{reason}}": f"{rate('kvtide_failed_load_blocks_total', 'reason')} > 0"},
            unit="cps",
            says="Blocks that requests waited for and that were computed.",
        ),
    ],
    "Disk": [
        Panel(
            title="Ready",
            asks={"{{instance}}": f'min by (instance) (kvtide_tier_ready{{{ON},tier="disk"}})'},
            unit="bool_yes_no",
            kind="stat",
            columns=4,
        ),
        Panel(
            title="Compression",
            asks={"": f"sum(kvtide_store_raw_bytes{{{ON}}}) / sum(kvtide_store_stored_bytes{{{ON}}})"},
            unit="short",
            kind="stat",
            columns=4,
            says="Bytes of blocks by the bytes that their records take.",
        ),
        Panel(
            title="Written by read",
            asks={
                "": f"sum(increase(kvtide_disk_written_bytes_total{{{ON}}}[$__range])) "
                f"/ sum(increase(kvtide_disk_read_bytes_total{{{ON}}}[$__range]))"
            },
            unit="short",
            kind="stat",
            columns=4,
            says="Bytes written for each byte of hits, over the time shown.",
        ),
        Panel(
            title="Bytes",
            asks={
                "used": f"sum(kvtide_disk_used_bytes{{{ON}}})",
                "capacity": f"sum(kvtide_disk_capacity_bytes{{{ON}}})",
                "other namespaces": f"sum(kvtide_store_other_namespaces_bytes{{{ON}}})",
            },
            unit="bytes",
            columns=12,
        ),
        Panel(
            title="Traffic",
            asks={
                "written": rate("kvtide_disk_written_bytes_total"),
                "read for hits": rate("kvtide_disk_read_bytes_total"),
            },
            unit="Bps",
        ),
        Panel(
            title="Failed checks by reason",
            asks={
                "{{reason}}": f"sum by (reason) (increase(kvtide_store_damaged_records_total{{{ON}}}[$__rate_interval]))"
            },
            unit="short",
            says="Records that are not what was written. Each is put aside and computed again.",
        ),
        Panel(
            title="What the disk could not do",
            asks={
                "blocks not written": rate("kvtide_disk_failed_write_blocks_total"),
                "records not deleted": rate("kvtide_failed_deletes_total"),
                "uses not noted": rate("kvtide_failed_touches_total"),
                "fresh starts": rate("kvtide_store_fresh_starts_total"),
            },
            unit="cps",
        ),
        Panel(
            title="Queue",
            asks={
                "blocks to write": f"sum(kvtide_disk_writing_blocks{{{ON}}})",
                "overdue reads": f"sum(kvtide_disk_overdue_reads{{{ON}}})",
            },
            unit="short",
            columns=24,
            rows=6,
        ),
    ],
    "Misses": [
        Panel(
            title="Computed tokens by reason",
            asks={"{{reason}}": f"{rate('kvtide_missed_tokens_total', 'reason')} > 0"},
            unit="cps",
            stacked=True,
            columns=16,
            says="docs/troubleshooting.md has what each means and what to do.",
        ),
        Panel(
            title="In the time shown",
            asks={
                "{{reason}}": "sort_desc(sum by (reason) "
                f"(increase(kvtide_missed_tokens_total{{{ON}}}[$__range])) > 0)"
            },
            unit="short",
            kind="bargauge",
            columns=8,
        ),
    ],
    "GPU": [
        Panel(
            title="Memory",
            asks={
                "{{instance}} used": f"kvtide_gpu_memory_used_bytes{{{ON}}}",
                "{{instance}} capacity": f"kvtide_gpu_memory_capacity_bytes{{{ON}}}",
            },
            unit="bytes",
        ),
        Panel(
            title="Utilisation",
            asks={"{{instance}}": f"kvtide_gpu_utilization_ratio{{{ON}}}"},
            unit="percentunit",
            most=1,
        ),
        Panel(
            title="PCIe",
            asks={
                "{{instance}} received": f"kvtide_gpu_pcie_read_bytes_per_second{{{ON}}}",
                "{{instance}} sent": f"kvtide_gpu_pcie_written_bytes_per_second{{{ON}}}",
            },
            unit="Bps",
            says="Over the 20 ms of each scrape.",
        ),
        Panel(
            title="Link",
            asks={
                "{{instance}} generation": f"kvtide_gpu_pcie_generation{{{ON}}}",
                "{{instance}} lanes": f"kvtide_gpu_pcie_width{{{ON}}}",
            },
            unit="short",
            says="Slower while the card idles.",
        ),
        Panel(
            title="Power",
            asks={
                "{{instance}}": f"kvtide_gpu_power_watts{{{ON}}}",
                "{{instance}} limit": f"kvtide_gpu_power_limit_watts{{{ON}}}",
            },
            unit="watt",
        ),
        Panel(
            title="Temperature",
            asks={"{{instance}}": f"kvtide_gpu_temperature_celsius{{{ON}}}"},
            unit="celsius",
        ),
    ],
    "Endpoint": [
        Panel(
            title="Requests by route",
            asks={"{{method}} {{route}} {{code}}": rate("kvtide_http_requests_total", "route, method, code")},
            unit="reqps",
            columns=12,
        ),
        Panel(
            title="Refused and failed",
            asks={"{{code}}": rate("kvtide_http_requests_total", "code", 'code=~"[45].."')},
            unit="reqps",
            columns=6,
        ),
        Panel(
            title="Listeners and jobs",
            asks={
                "listeners": f"sum(kvtide_http_listeners{{{ON}}})",
                "jobs": f"sum(kvtide_http_running_jobs{{{ON}}})",
            },
            unit="short",
            columns=6,
        ),
    ],
}


def written() -> str:
    """The file's text."""
    return json.dumps(dashboard(ROWS), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
