"""What `kvtide bench ttft` has measured: its rows, its gates, and both as tables."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from engine import Result
from engine.results import Timings
from tiering.cli.markdown import table as markdown_table

GATE_PREFIXES: Final = (1024, 4096, 7168)
GATE_SUFFIX: Final = 64
"""Tokens to which the gates belong."""

GATES: Final = {"device": 1.0, "host": 1.05, "disk": 1.15, "disk_dropped": None, "restart": 1.25}
"""The most that a hit may take, by its tier, of what transformers' own forward takes over its own cache; None: to be known."""

YARDSTICKS: Final = {
    "cold": "reference_cold",
    "reference_cold": "reference_cold",
    "restart": "reference_restart",
    "reference_restart": "reference_restart",
}
"""What a tier is compared with, if not with transformers' hits in the same process: a restart with those in processes as new."""

LABELS: Final = {
    "disk": "disk, in the page cache",
    "disk_dropped": "disk, dropped from the page cache",
    "restart": "restart, in the page cache",
}
"""For people: where the files of a tier are."""

_TIMINGS: Final = ("queue_s", "load_s", "prefill_s")


@dataclass(slots=True)
class Row:
    """The measurements of one tier, and of one prefix."""

    tier: str
    prefix_tokens: int
    ttft_s: list[float] = field(default_factory=list)
    last: Result | None = None
    token_ids: list[list[int]] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    """From each token to the next, in all repeats."""
    timings: list[Timings] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    """Of further repeats, with clocks."""

    def add(
        self,
        ttft_s: float,
        token_ids: list[int],
        result: Result | None = None,
        between_s: Sequence[float] = (),
    ) -> None:
        """One repeat."""
        self.ttft_s.append(ttft_s)
        self.token_ids.append(token_ids)
        self.between_s += between_s
        self.last = result
        if result is not None:
            self.timings.append(result.timings)

    def as_dict(self) -> dict[str, Any]:
        """As the JSON has it."""
        usage = self.last.usage if self.last is not None else None
        return {
            "tier": self.tier,
            "prefix_tokens": self.prefix_tokens,
            "ttft_s": statistics.median(self.ttft_s),
            "ttft_s_all": self.ttft_s,
            "cached_tokens": usage.cached_tokens if usage else None,
            "prefilled_tokens": usage.prefilled_tokens if usage else None,
            "cached_by_tier": usage.cached_by_tier if usage else None,
            "decode_tokens_per_s": self._decode_tokens_per_s(),
            "between_tokens_s": _spread(self.between_s),
            "timings_s": _medians([{name: getattr(one, name) for name in _TIMINGS} for one in self.timings]),
            "phases_s": _medians(self.phases),
            "token_ids": self.token_ids,
        }

    def _decode_tokens_per_s(self) -> float | None:
        """By the median step: what else the machine does for a moment does not count."""
        return 1 / statistics.median(self.between_s) if self.between_s else None


def _spread(values: Sequence[float]) -> dict[str, float]:
    """The middle and the quarters of these, by how many percent are less."""
    return {str(share): float(np.percentile(values, share)) for share in (25, 50, 75)} if values else {}


def _medians(repeats: Sequence[dict[str, float]]) -> dict[str, float] | None:
    """Of each figure; None where there is no repeat."""
    if not repeats:
        return None
    return {name: statistics.median(one[name] for one in repeats) for name in repeats[0]}


def gates(rows: Sequence[dict[str, Any]], suffix_tokens: int) -> list[dict[str, Any]]:
    """What the rows say of the gates: none for other lengths, or without transformers' rows.

    `spread`: the ratio of the least and of the most that a repeat took to the median of transformers' hits.
    """
    lengths = dict.fromkeys(row["prefix_tokens"] for row in rows)
    return [
        gate
        for length in lengths
        if length in GATE_PREFIXES and suffix_tokens == GATE_SUFFIX
        for gate in _gates_behind(
            length, {row["tier"]: row for row in rows if row["prefix_tokens"] == length}
        )
    ]


def _gates_behind(prefix_tokens: int, by_tier: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of the rows of one prefix."""
    for tier, bound in GATES.items():
        yardstick = by_tier.get(YARDSTICKS.get(tier, "reference_hit"))
        if tier in by_tier and yardstick is not None:
            row, yardstick_s = by_tier[tier], yardstick["ttft_s"]
            ratio = row["ttft_s"] / yardstick_s
            yield {
                "name": f"{LABELS.get(tier, tier)}, by transformers' forward over its own cache, "
                f"{prefix_tokens} + {GATE_SUFFIX} tokens",
                "value": ratio,
                "spread": [one(row["ttft_s_all"]) / yardstick_s for one in (min, max)],
                "bound": bound,
                "unit": "times",
                "holds": None if bound is None else ratio <= bound,
            }


# --- tables -----------------------------------------------------------------------------------------------------------


def show(measured: dict[str, Any]) -> None:
    """Print what was measured."""
    console = Console()
    console.print(_times(measured["rows"]))
    with_phases = [row for row in measured["rows"] if row["phases_s"]]
    if with_phases:
        console.print(_phases(with_phases))
    if measured["gates"]:
        console.print(_gates(measured["gates"]))


def _table(title: str, columns: Sequence[str], left: str) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name == left else "right")
    return table


def _times(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("prefix", "tier", "TTFT", "spread", "vs cold", "vs reference", "cached", "prefilled", "decode")
    table = _table("time to first token, median", columns, "tier")
    table.caption = "; ".join(f"{tier}: {label}" for tier, label in LABELS.items())
    by_tier = {(row["prefix_tokens"], row["tier"]): row["ttft_s"] for row in rows}
    for row in rows:
        prefix, ttft_s, every = row["prefix_tokens"], row["ttft_s"], row["ttft_s_all"]
        cold = by_tier.get((prefix, "cold"))
        yardstick = by_tier.get((prefix, YARDSTICKS.get(row["tier"], "reference_hit")))
        table.add_row(
            str(prefix),
            row["tier"],
            f"{ttft_s * 1e3:,.0f} ms",
            f"{min(every) * 1e3:,.0f}-{max(every) * 1e3:,.0f}",
            f"{cold / ttft_s:.1f}x" if cold else "",
            f"{ttft_s / yardstick:.2f}" if yardstick else "",
            "" if row["cached_tokens"] is None else str(row["cached_tokens"]),
            "" if row["prefilled_tokens"] is None else str(row["prefilled_tokens"]),
            "" if row["decode_tokens_per_s"] is None else f"{row['decode_tokens_per_s']:.1f}/s",
        )
    return table


def _phases(rows: Sequence[dict[str, Any]]) -> Table:
    names = list(rows[0]["phases_s"])
    table = _table(
        "where a hit's time goes, ms, median of the repeats with clocks",
        ("phase", *map(_head, rows)),
        "phase",
    )
    for name in names:
        table.add_row(name, *(f"{row['phases_s'][name] * 1e3:,.1f}" for row in rows))
    return table


def _head(row: dict[str, Any]) -> str:
    return f"{row['prefix_tokens']}, {row['tier']}"


def _gates(found: Sequence[dict[str, Any]]) -> Table:
    table = _table("gates", ("gate", "value", "spread", "bound", "holds"), "gate")
    for gate in found:
        spread = "-".join(f"{value:.2f}" for value in gate["spread"])
        holds = {True: "yes", False: "no", None: ""}[gate["holds"]]
        bound = "" if gate["bound"] is None else f"{gate['bound']:.2f}"
        table.add_row(gate["name"], f"{gate['value']:.3f}", spread, bound, holds)
    return table


def _options(config: dict[str, Any]) -> str:
    """What the command was told of sizes and repeats."""
    lengths = ",".join(map(str, config["prefix_tokens"]))
    return (
        f"--prefix-tokens {lengths} --suffix-tokens {config['suffix_tokens']} --repeats {max(config['repeats'])} "
        f"--cold-repeats {config['cold_repeats']} --phases {config['phases']} --threads {config['threads']}"
    )


def page(measured: dict[str, Any]) -> str:
    """The same in Markdown."""
    config, machine = measured["config"], measured["environment"]
    parts = [
        "# Time to first token, by tier",
        (
            f"`kvtide bench ttft {_options(config)} --json FILE`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores, {config['threads']} threads. "
            f"{config['model']}, dtype {config['dtype']}, KV {config['kv_dtype']}, {config['suffix_tokens']} new tokens behind each prefix. Medians of "
            "interleaved repeats, each with a suffix of its own; cold prompts may have fewer. The yardstick is transformers' own forward over its own "
            "cache, for a restart in the same, new processes. `disk` and `restart` are in the page cache, `disk_dropped` is not."
        ),
    ]
    if measured["gates"]:
        gates = [
            {**gate, "value": f"{gate['value']:.3f}", "spread": "{:.2f} to {:.2f}".format(*gate["spread"])}
            for gate in measured["gates"]
        ]
        parts.append(markdown_table(gates, ("name", "value", "spread", "bound", "holds")))
    times = [
        {
            "tier": row["tier"],
            "prefix": row["prefix_tokens"],
            "first token, s": f"{row['ttft_s']:.3f}",
            "least and most": f"{min(row['ttft_s_all']):.3f} to {max(row['ttft_s_all']):.3f}",
            "loading, s": f"{row['timings_s']['load_s']:.3f}" if row["timings_s"] else "",
            "tokens a second after it": f"{row['decode_tokens_per_s']:.1f}"
            if row["decode_tokens_per_s"]
            else "",
        }
        for row in measured["rows"]
    ]
    parts.append(markdown_table(times, list(times[0])))
    with_phases = [row for row in measured["rows"] if row["phases_s"]]
    if with_phases:
        phases = [
            {"phase, ms": name} | {_head(row): f"{row['phases_s'][name] * 1e3:.1f}" for row in with_phases}
            for name in with_phases[0]["phases_s"]
        ]
        parts += ["## Where a hit's time goes", markdown_table(phases, list(phases[0]))]
    return "\n\n".join(parts)
