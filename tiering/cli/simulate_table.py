"""The figures of a sweep in a terminal: one table a trace."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from tiering.cli.simulate import Run

_BELOW: Final = ("host", "disk")


def table(trace: Path, runs: Sequence[Run]) -> Table:
    """A row a run."""
    first = runs[0].outcome
    title = f"{trace.name}: {first.num_requests:,} requests, {first.num_blocks:,} blocks"
    below = _BELOW[: max(sum(size > 0 for size in each.sizes) - 1 for each in runs)]
    tiers = " + ".join(("device", *below))
    caption = "%: of all blocks" + (f"; tiers: {tiers}" if below else "")
    rows = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    rows.add_column("blocks", justify="right")
    rows.add_column("policy", min_width=len("adaptive"))
    best, takes_time = (
        any(each.minimum_hit_rate for each in runs),
        any(each.ttft_s is not None for each in runs),
    )
    heads = ["hits %", *(["by tier %", "written below %"] if below else []), *(["of MIN %"] if best else [])]
    for name in (*heads, *(["TTFT s, p50", "p99"] if takes_time else [])):
        rows.add_column(name, justify="right")
    for each in runs:
        rows.add_row(
            " + ".join(_short(size) for size in each.sizes[: 1 + len(below)]),
            each.policy,
            f"{100 * each.outcome.hit_rate:.2f}",
            *([_shares(each.outcome.hits_by_tier, each, ("device", *below))] if below else []),
            *([_shares(each.outcome.writes_by_tier, each, below)] if below else []),
            *([f"{100 * each.share_of_minimum:.0f}"] if best else []),
            *(ttft_cells(each) if takes_time else []),
        )
    return rows


def _short(size: int) -> str:
    return f"{size // 1000}k" if size and not size % 1000 else f"{size:,}"


def _shares(counts: Mapping[str, int], run: Run, tiers: Sequence[str]) -> str:
    share = 100 / max(1, run.outcome.num_blocks)
    return " + ".join(f"{share * counts.get(tier, 0):.1f}" for tier in tiers)


def ttft_cells(run: Run) -> list[str]:
    """Median and 99th percentile, in seconds."""
    ttft_s = run.ttft_s
    return ["", ""] if ttft_s is None else [f"{ttft_s[name]:.3f}" for name in ("p50", "p99")]
