"""What the figures say: a table, and whether kvtide is the faster one in each row."""

from typing import Any

from tiering.cli.markdown import table

_Row = dict[str, Any]

METHOD = """\
Prompts are drawn from one seed, and each contender says which it was given (`benchmarks/workloads_index.py`): blocks, or
pages, of 16 tokens; a tree of 1,000 prefixes, each of them one of 16 system prompts of 1,024 tokens and 512 tokens of its
own; beside it prompts of up to 131,072 tokens in one run, and such that grew by 512 tokens at a time with a sibling at each
turn. In rows about leaves the tree is nothing but prefixes.

Microseconds of the calling thread's processor time for one call, median (10th to 90th percentile), after a warm-up. The
contenders run at the same time, each in its own process with one thread, and are asked in turns for one sample each: one
call that is not timed, since the others have used the processor's caches meanwhile, then some that are. In rows with cold
caches 64 MiB of other memory are written before each call: so it is in an engine, where a step of the model comes between.
Tokens, keys and slots are in the form that each system takes before the clock starts. After loading, the garbage collector
is told to leave alone what is there (`gc.freeze`), in all of them, and is on while they are timed. A call must answer
the right length, or the row fails."""


def gates(rows: list[_Row], systems: dict[str, _Row]) -> list[_Row]:
    """For each row and peer, how many times as long the peer takes: kvtide is faster where that is more than one."""
    found = []
    for row in rows:
        ours = row["cells"].get("kvtide", {}).get("median_us")
        for name, cell in row["cells"].items():
            if name == "kvtide" or ours is None or "median_us" not in cell:
                continue
            ratio = cell["median_us"] / ours
            found.append(
                {
                    "name": f"{row['row']}: {systems[name]['title']} by kvtide",
                    "value": round(ratio, 2),
                    "bound": 1.0,
                    "unit": "x",
                    "holds": ratio > 1,
                }
            )
    return found


def _cell(cell: _Row) -> str:
    if "median_us" not in cell:
        return str(cell["why_not"]).partition(":")[0]
    return f"{cell['median_us']:,.1f} ({cell['p10_us']:,.1f} to {cell['p90_us']:,.1f})"


def why_not(rows: list[_Row], systems: dict[str, _Row]) -> list[str]:
    """A line for each reason that a contender has no figure in some rows."""
    missing: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, cell in row["cells"].items():
            if "median_us" not in cell:
                missing.setdefault((systems[name]["title"], cell["why_not"]), []).append(row["row"])
    return [f"* {title}, {reason} ({'; '.join(names)})" for (title, reason), names in missing.items()]


def report(figures: _Row) -> str:
    """For people."""
    systems, machine = figures["systems"], figures["environment"]
    rows = [
        {"": row["row"], **{systems[name]["title"]: _cell(cell) for name, cell in row["cells"].items()}}
        for row in figures["rows"]
    ]
    what = [
        f"* **{system['title']}** {system.get('version') or system.get('why_not')}: {system['meaning']}"
        for system in systems.values()
    ]
    lost = [f"* {gate['name']}: {gate['value']}" for gate in figures["gates"] if not gate["holds"]]
    num_held = sum(gate["holds"] for gate in figures["gates"])
    parts = [
        "# The prefix index beside those of others",
        (
            f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores, "
            f"Python {machine['python']}: {figures['repeats']} samples a row after {figures['warm_up']}."
        ),
        METHOD,
        "\n".join(what),
        table(rows, list(rows[0])) if rows else "Nothing was run.",
        "\n".join(why_not(figures["rows"], systems)),
        f"kvtide is faster in {num_held} of {len(figures['gates'])} comparisons."
        + (" It is not in these, where the peer takes so many times as long:" if lost else ""),
        "\n".join(lost),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
