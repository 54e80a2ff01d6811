"""What `kvtide bench disk` has measured: its rows, its gates, and both for people."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tiering.cli.markdown import gate, table

RAW_REQUEST_MIB: Final = (1, 4)


@dataclass(slots=True)
class Row:
    """One way to read or write, in one state, by so many threads."""

    what: str
    state: str
    threads: int
    gb_per_s: list[float] = field(default_factory=list)
    gb_per_cpu_s: list[float] = field(default_factory=list)
    read_bytes: list[int] = field(default_factory=list)
    """What this process had the disk read."""
    absent: list[float] = field(default_factory=list)
    """The least share of a file that was not in memory before it was read; empty where that is of no account."""

    def as_dict(self) -> dict[str, Any]:
        """As the JSON has it."""
        return {
            "what": self.what,
            "state": self.state,
            "threads": self.threads,
            "gb_per_s": statistics.median(self.gb_per_s),
            "gb_per_cpu_s": statistics.median(self.gb_per_cpu_s),
            "gb_per_s_all": self.gb_per_s,
            "gb_per_cpu_s_all": self.gb_per_cpu_s,
            "read_bytes_all": self.read_bytes,
            "absent_share_all": self.absent,
        }


def gates(rows: Sequence[dict[str, Any]], cores: int) -> list[dict[str, Any]]:
    """What is promised, and whether it holds. The last ones have no bound: they are there to be known.

    The best raw read is the fastest of all, though it leaves its bytes where nobody takes them: into buffers in huge pages, where the
    machine has them.
    """
    cold = _best(rows, "store", "cold")
    warm = [row for row in rows if row["what"] == "store" and row["state"] == "warm"]
    growth = _best(rows, "store", "warm") / warm[0]["gb_per_s"]
    threads = min(cores, max(row["threads"] for row in warm))
    to_slots, ordinary = (
        max(_best(rows, f"raw {mib} MiB, {place}", "cold") for mib in RAW_REQUEST_MIB)
        for place in ("slots", "buffers")
    )
    raw = max(float(row["gb_per_s"]) for row in rows if row["what"].startswith("raw "))
    a_core = min(row["gb_per_cpu_s"] for row in warm)
    demotion = _only(rows, "demotion", "written", 1)["gb_per_cpu_s"]
    return [
        gate("cold, by the best raw read", cold / raw, 1.25, "x", at_most=False),
        gate("warm, a core", a_core, 1.1, "GB/s", at_most=False),
        gate("warm, all cores by one thread", growth, 1 + 0.5 * (threads - 1), "x", at_most=False),
        gate("demotion, a core", demotion, 0.7, "GB/s", at_most=False),
        gate("cold, by the best raw read into the slots", cold / to_slots, None, "x", at_most=False),
        gate("cold, by the best raw read into ordinary pages", cold / ordinary, None, "x", at_most=False),
    ]


def _best(rows: Sequence[dict[str, Any]], what: str, state: str) -> float:
    return max(float(row["gb_per_s"]) for row in rows if (row["what"], row["state"]) == (what, state))


def _only(rows: Sequence[dict[str, Any]], what: str, state: str, threads: int) -> dict[str, Any]:
    [row] = [row for row in rows if (row["what"], row["state"], row["threads"]) == (what, state, threads)]
    return row


def show(measured: dict[str, Any]) -> None:
    """Print what was measured."""
    shown = Table(title=f"KV from and to disk, GB/s, medians: {measured['kv']['source']}")
    for name in ("what", "state", "threads", "wall", "spread", "a core", "in memory before"):
        shown.add_column(name, justify="left" if name in ("what", "state") else "right")
    for row in measured["rows"]:
        spread = row["gb_per_s_all"]
        absent = row["absent_share_all"]
        shown.add_row(
            row["what"],
            row["state"],
            str(row["threads"]),
            f"{row['gb_per_s']:.2f}",
            f"{min(spread):.2f}-{max(spread):.2f}",
            f"{row['gb_per_cpu_s']:.2f}",
            f"{1 - min(absent):.1%}" if absent else "",
        )
    Console().print(shown)
    for each in measured["gates"]:
        held = {True: "holds", False: "does not hold", None: "no bound"}[each["holds"]]
        bound = "" if each["bound"] is None else f" (at least {each['bound']:g})"
        Console().print(f"{each['name']}: {each['value']:.2f} {each['unit']}{bound}: {held}")


def page(measured: dict[str, Any]) -> str:
    """The same in Markdown."""
    config, machine, kv = measured["config"], measured["environment"], measured["kv"]
    gates = [{**each, "value": f"{each['value']:.2f}"} for each in measured["gates"]]
    rows = [
        {
            **{name: row[name] for name in ("what", "state", "threads")},
            "GB/s": f"{row['gb_per_s']:.2f}",
            "least and most": f"{min(row['gb_per_s_all']):.2f} to {max(row['gb_per_s_all']):.2f}",
            "GB per processor second": f"{row['gb_per_cpu_s']:.2f}",
        }
        for row in measured["rows"]
    ]
    parts = [
        "# KV from disk, and to it",
        (
            f"`kvtide bench disk --json FILE`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores. "
            f"{kv['source'].capitalize()}: {kv['blocks']} blocks of {kv['block_bytes']} bytes, all checks included, medians of "
            f"{config['repeats']} interleaved repeats. What is cold was dropped from the page cache. The best raw read is the "
            "fastest of all, into buffers of each thread's that nobody takes anything from; into the slots it brings blocks to where "
            "they are wanted, as the store does."
        ),
        table(gates, ("name", "value", "bound", "unit", "holds")),
        table(rows, list(rows[0])),
    ]
    return "\n\n".join(parts)
