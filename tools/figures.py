"""`make figures`: the tables, charts and numbers of README.md, from the result files under benchmarks/results.

Of a theme the newest file counts: THEME_HARDWARE_DATE.json. README.md has

- regions between `<!-- figures: NAME -->` and `<!-- /figures -->`, which are written whole: REGIONS says by what;
- sentences of its own with numbers in them: `tools.claims` says which, and where in a result each number stands. They are
  corrected in place.

Charts go to docs/figures. A new theme takes a function that makes its region, its entry in REGIONS, and the two lines in
README.md; a new sentence takes a Claim. With --check nothing is written, and the exit status says whether anything would be.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiering.cli.markdown import table
from tools.charts import Bar, bar_chart, in_words
from tools.claims import CLAIMS, Claim
from tools.results import ROOT, newest

README = ROOT / "README.md"
CHARTS = Path("docs/figures")

REGION = re.compile(r"(<!-- figures: ([\w-]+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)


# --- regions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """What goes between two marks, and the charts that it shows, by file name."""

    text: str
    charts: dict[str, str] = field(default_factory=dict)


def chart_region(name: str, title: str, bars: list[Bar], note: str) -> Region:
    """A region that is one chart."""
    file = f"{name}.svg"
    return Region(
        f"![{title}. {in_words(bars)}]({(CHARTS / file).as_posix()})", {file: bar_chart(title, bars, note)}
    )


def faults_peers() -> Region:
    """What other systems' disk stores make of damaged files."""
    cells = {(row["fault"], row["system"]): row for row in newest("faults-peers").data}
    systems = list(dict.fromkeys(system for _, system in cells))
    names = {system: system.split()[0] for system in systems}
    versions = {system: cells["nothing", system]["version"] for system in systems}
    ours = systems[0]
    headings = {each: "kvtide" if each == ours else f"{names[each]} {versions[each]}" for each in systems}

    def row(title: str, fault: str, say: Callable[[dict[str, Any]], str]) -> dict[str, str]:
        said = {each: say(cells[fault, each]) for each in systems}
        said[ours] = f"**{said[ours]}**" if said[ours].isdigit() else said[ours]
        return {"": title} | {headings[each]: said[each] for each in systems}

    def wrong(cell: dict[str, Any]) -> str:
        return str(cell["served_wrong"])

    blocks = cells["nothing", ours]["blocks"]
    rows = [
        row("one bit of a stored block flipped: served wrong", "payload: bit flipped, in use", wrong),
        row(
            "its last bytes cut off: served wrong",
            "file: last 1 to 64 bytes of payload cut off, in use",
            wrong,
        ),
        row(
            f"another process finds, of {blocks} blocks",
            "restart: closed in order",
            lambda cell: str(cell["hits"]),
        ),
        row("the file cut to half while in use", "file: cut to half, in use", _what_is_lost),
    ]
    return Region(table(rows, list(rows[0])))


def _what_is_lost(cell: dict[str, Any]) -> str:
    if cell["served_wrong"]:
        return "served wrong"
    if not cell["hits"]:
        return "all blocks lost"
    return "block lost" if cell["hits"] < cell["blocks"] else "nothing lost"


def ttft() -> Region:
    """Time to first token from each tier, beside transformers."""
    data = newest("ttft").data
    labels = {
        "reference_cold": "transformers, nothing cached",
        "cold": "kvtide, nothing cached",
        "reference_hit": "transformers, its own cache",
        "device": "kvtide, from the device",
        "host": "kvtide, from host memory",
        "disk": "kvtide, from disk, in the page cache",
        "disk_dropped": "kvtide, from disk, not in it",
        "restart": "kvtide, after a restart, in it",
    }
    took_s = {row["tier"]: row["ttft_s"] for row in data["rows"]}
    bars = [
        Bar(label, took_s[tier], f"{took_s[tier]:.2f} s", ours=not tier.startswith("reference"))
        for tier, label in labels.items()
    ]
    config = data["config"]
    title = f"Time to first token: {config['prefix_tokens']:,} cached tokens and {config['suffix_tokens']} new ones"
    return chart_region("ttft", title, bars, _machine(data, f"{config['repeats']} repeats, median"))


TTFT_PEERS_ROWS = {"memory": "from memory", "disk": "from disk"}


def ttft_peers() -> Region:
    """Time to first token on a hit, beside other engines."""
    data = newest("ttft-peers").data
    bars = [
        Bar(
            f"{row['title']}, {TTFT_PEERS_ROWS[row['row']]}",
            row["ttft_s"],
            f"{row['ttft_s']:.2f} s",
            ours=row["title"].startswith("kvtide"),
        )
        for wanted in TTFT_PEERS_ROWS
        for row in data["rows"]
        if row["row"] == wanted and row["ttft_s"] is not None
    ]
    config = data["config"]
    title = f"Time to first token beside others: {config['prefix_tokens']:,} cached tokens and {config['suffix_tokens']} new ones"
    return chart_region("ttft-peers", title, bars, _machine(data, f"{config['rounds']} rounds, median"))


def serve() -> Region:
    """Requests a second by what clients share."""
    data = newest("serve").data
    config = data["config"]
    rows = [row for row in data["rows"] if not row["tiers"]]
    bars = [
        Bar(
            f"{row['sharing']} % of each prompt shared",
            row["requests_per_s"],
            f"{row['requests_per_s']:.2f} a second",
            ours=row["sharing"] > 0,
        )
        for row in rows
    ]
    title = f"Requests served by how much they share: {config['clients']} clients, {config['prompt_tokens']:,} tokens each"
    return chart_region("serve", title, bars, _machine(data, "on the device alone"))


INDEX_ROWS = (
    "match 128 k, one run",
    "match 128 k, nodes of 512",
    "insert 512 below 128 k, nodes of 512",
    "evict 512 tokens, 10,000 leaves",
    "hold and let go 128 k, nodes of 512",
    "begin and end a request of 128 k, nodes of 512",
)


def index_peers() -> Region:
    """The prefix index beside others: the rows that say most, those that are lost among them."""
    data = newest("index-peers").data
    titles = {name: system["title"] for name, system in data["systems"].items()}
    rows = []
    for name in INDEX_ROWS:
        [cells] = [row["cells"] for row in data["rows"] if row["row"] == name]
        rows.append({"microseconds": name} | {titles[who]: _us(cell) for who, cell in cells.items()})
    return Region(table(rows, list(rows[0])))


def _us(cell: dict[str, Any]) -> str:
    return f"{cell['median_us']:,.0f}" if "median_us" in cell else "not run"


SPEED = {
    "index": {
        "match and touch 128k, one run": "a prompt of 131,072 tokens is found, among 100,000 others",
        "match and touch 128k, 256 nodes": "the same, grown in 256 turns of a chat",
        "evict 1,000, a block": "a block is evicted, a thousand at once",
    },
    "codec": {
        "ratio of bfloat16, records with all that they hold": "how much smaller KV in bfloat16 is on disk",
        "unpack bfloat16, checks included": "a record is decoded, with all checks",
        "pack bfloat16, checks included": "a block is encoded, with all checks",
    },
    "restart": {
        "1,000,000 blocks, chains, files in the page cache: all in": "a million blocks are known again after a restart",
        "1,000,000 blocks, chains, files in the page cache: first lookup": "a first prompt is looked up after it",
        "engine start": "an engine starts, torch and transformers included",
    },
    "overheads": {
        "loop's share of a step, default": "the engine's part in a step of 16 replies",
        "promotion of 256 blocks from host": "a block comes back from host memory, but for the copy",
        "kvtide --help": "`kvtide --help`",
    },
}
"""By theme, the gates that the page shows, and what it calls them."""


def speed() -> Region:
    """What was measured of speed, and what was promised and is not reached."""
    rows, missed, num_gates = [], [], 0
    for theme in (*SPEED, "disk"):
        result = newest(theme)
        gates = {gate["name"]: gate for gate in result.data["gates"] if gate["bound"] is not None}
        for name, title in SPEED.get(theme, {}).items():
            if name not in gates:
                raise LookupError(f"{result.file} says nothing of {name}")
            shown = _quantity(gates[name]["value"], gates[name]["unit"])
            rows.append({"what": title, "measured": f"[{shown}]({result.report})"})
        num_gates += len(gates)
        missed += [
            f"{name} {_quantity(gate['value'], gate['unit'])} ([{theme}]({result.report}), aim {gate['bound']:g})"
            for name, gate in gates.items()
            if not gate["holds"]
        ]
    are = "is" if len(missed) == 1 else "are"
    lost = f"Of {num_gates} aims {len(missed)} {are} not reached: {'; '.join(missed)}."
    return Region(
        f"{table(rows, list(rows[0]))}\n\n{lost if missed else f'All {num_gates} aims are reached.'}"
    )


def _quantity(value: float, unit: str) -> str:
    if unit == "of the step":
        return f"{value:.1%} of it"
    return f"{value:.4g} {unit}"


def _machine(data: Any, more: str) -> str:
    environment, config = data["environment"], data["config"]
    gpu = environment["gpu"] or "no GPU"
    return f"{config['model']} model, {environment['cores']} cores ({environment['cpu']}), {gpu}; {more}"


REGIONS: dict[str, Callable[[], Region]] = {
    "faults-peers": faults_peers,
    "ttft": ttft,
    "ttft-peers": ttft_peers,
    "serve": serve,
    "index-peers": index_peers,
    "speed": speed,
}


# --- the page ---------------------------------------------------------------------------------------------------------


def written(text: str) -> tuple[str, dict[str, str]]:
    """The page as it must be, and its charts by file name. Raises LookupError for a sentence or result that is missing."""
    charts: dict[str, str] = {}

    def region(match: re.Match[str]) -> str:
        made = REGIONS[match[2]]()
        charts.update(made.charts)
        return f"{match[1]}{made.text}\n{match[4]}"

    text = REGION.sub(region, text)
    for claim in CLAIMS:
        text = corrected(text, claim)
    return text, charts


def corrected(text: str, claim: Claim) -> str:
    """The page with this sentence's numbers as they must be. Raises LookupError if it is not there once."""
    found = list(claim.pattern().finditer(text))
    if len(found) != 1:
        raise LookupError(f"{README.name} has this {len(found)} times: {claim.sentence}")
    [match] = found
    for place, value in reversed(list(enumerate(claim.values(), start=1))):
        start, end = match.span(place)
        text = text[:start] + value + text[end:]
    return text


def differences() -> Iterator[tuple[Path, str]]:
    """The files that are not as they must be, with what they must hold."""
    text = README.read_text(encoding="utf-8")
    page, charts = written(text)
    if page != text:
        yield README, page
    for name, chart in charts.items():
        file = ROOT / CHARTS / name
        if not file.exists() or file.read_text(encoding="utf-8") != chart:
            yield file, chart


def main() -> int:
    """Write what differs, or with --check only say so."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if something would be"
    )
    check = parser.parse_args().check
    found = list(differences())
    for file, text in found:
        print(f"{file.relative_to(ROOT)} {'is not what the results say' if check else 'written'}")
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
