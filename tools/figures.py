"""`make figures`: the tables, charts and numbers of README.md, from the result files under benchmarks/results.

Of a theme the newest file counts: THEME_HARDWARE_DATE.json. README.md has

- regions between `<!-- figures: NAME -->` and `<!-- /figures -->`, which are written whole: REGIONS says by what;
- sentences of its own with numbers in them: CLAIMS says which, and where in a result each number stands. They are corrected
  in place.

Charts go to docs/figures. A new theme takes a function that makes its region, its entry in REGIONS, and the two lines in
README.md; a new sentence takes a Claim. With --check nothing is written, and the exit status says whether anything would be.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.markdown import table
from tools.charts import Bar, bar_chart, in_words

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = Path("benchmarks/results")
CHARTS = Path("docs/figures")

REGION = re.compile(r"(<!-- figures: ([\w-]+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a run has measured."""

    file: Path
    """Relative to the root, as links are."""
    data: Any

    @property
    def report(self) -> str:
        """The page for people that goes with it."""
        return self.file.with_suffix(".md").as_posix()


@cache
def newest(theme: str) -> Result:
    """The result of a theme with the latest date. Raises LookupError if there is none."""
    files = (ROOT / RESULTS).glob(f"{theme}_*.json")
    of_theme = [file for file in files if file.stem.split("_")[0] == theme]
    if not of_theme:
        raise LookupError(f"{RESULTS} has no {theme}_HARDWARE_DATE.json")
    file = max(of_theme, key=lambda file: (file.stem.rpartition("_")[2], file.stem))
    data = json.loads(file.read_text(encoding="utf-8"))
    return Result(file.relative_to(ROOT), one_length(data) if theme == "ttft" else data)


def one_length(data: Any) -> Any:
    """Of first tokens behind prefixes of several lengths those behind the first: that one the page speaks of."""
    config = data["config"]
    lengths = config["prefix_tokens"]
    if not isinstance(lengths, list):
        return data  # files that know of one length only
    rows = [row for row in data["rows"] if row["prefix_tokens"] == lengths[0]]
    return {
        **data,
        "rows": rows,
        "config": {**config, "prefix_tokens": lengths[0], "repeats": config["repeats"][0]},
    }


def at(data: Any, path: str) -> Any:
    """What stands at a path such as `rows[tier=disk].ttft_s` or `[0].tries`: names, numbers, and rows by their fields.

    Raises LookupError if nothing, or more than one row, is there.
    """
    for name, brackets in re.findall(r"([\w-]+)|\[([^\]]+)\]", path):
        if name:
            data = data[name]
        elif brackets.isdigit():
            data = data[int(brackets)]
        else:
            wanted = dict(pair.split("=") for pair in brackets.split(","))
            found = [row for row in data if all(str(row[key]) == value for key, value in wanted.items())]
            if len(found) != 1:
                raise LookupError(f"{len(found)} rows have {brackets}, in {path}")
            [data] = found
    return data


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
        "disk": "kvtide, from disk",
        "restart": "kvtide, from disk after a restart",
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
}


# --- sentences --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number in a sentence: where it stands in the theme's result, and how it is written."""

    path: str
    shown: str = "{}"
    by: str = ""
    """Where what it is divided by stands; empty for nothing."""
    pick: Callable[[list[Any]], Any] | None = None
    """Where several paths are named, with a space between them: which of their values it is."""

    def text(self, data: Any) -> str:
        """As the sentence has it."""
        values = [at(data, path) for path in self.path.split()]
        value = self.pick(values) if self.pick is not None else values[0]
        return self.shown.format(value / at(data, self.by) if self.by else value)


@dataclass(frozen=True)
class Claim:
    """A part of a sentence in README.md: `{name}` stands for a number, `{report}` for the result's page.

    It begins and ends with words: between them it is found, whatever the numbers are.
    """

    theme: str
    sentence: str
    numbers: dict[str, Number]

    def pattern(self) -> re.Pattern[str]:
        """Finds the sentence, whatever its numbers are and wherever its lines end."""
        parts = re.split(r"(\{\w+\})", self.sentence)
        found = [r"(\S+?)" if part.startswith("{") else _in_any_lines(part) for part in parts]
        return re.compile("".join(found))

    def values(self) -> list[str]:
        """What must stand at each place, in order."""
        result = newest(self.theme)
        texts = {name: number.text(result.data) for name, number in self.numbers.items()}
        texts["report"] = result.report
        return [texts[name] for name in re.findall(r"\{(\w+)\}", self.sentence)]


def _in_any_lines(text: str) -> str:
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", text))


_HIT = "rows[tier={}].ttft_s"
_MEMORY = f"{_HIT.format('device')} {_HIT.format('host')}"
_DISK = f"{_HIT.format('disk')} {_HIT.format('restart')}"

CLAIMS = (
    Claim(
        "faults-peers",
        "released systems, {tries} tries a row, at the store and without an engine ([how, and all rows]({report});",
        {"tries": Number("[0].tries")},
    ),
    Claim(
        "ttft",
        "kvtide bench ttft --model demo --prefix-tokens {prefix} --suffix-tokens {suffix} --repeats {repeats} "
        "--threads {threads} --json rows.json",
        {
            "prefix": Number("config.prefix_tokens"),
            "suffix": Number("config.suffix_tokens"),
            "repeats": Number("config.repeats"),
            "threads": Number("config.threads"),
        },
    ),
    Claim(
        "ttft",
        "([result]({report})) a cold prompt took {cold} s, and a hit {memory_low} to {memory_high} s from the device or "
        "host memory and {disk_low} to {disk_high} s from disk or after a restart",
        {
            "cold": Number(_HIT.format("cold"), "{:.1f}"),
            "memory_low": Number(_MEMORY, "{:.2f}", pick=min),
            "memory_high": Number(_MEMORY, "{:.2f}", pick=max),
            "disk_low": Number(_DISK, "{:.2f}", pick=min),
            "disk_high": Number(_DISK, "{:.2f}", pick=max),
        },
    ),
    Claim(
        "serve",
        "--clients {clients} --requests {requests} --threads {threads} --json rows.json",
        {name: Number(f"config.{name}") for name in ("clients", "requests", "threads")},
    ),
    Claim(
        "serve",
        "Where they share {sharing} % of {tokens} tokens, two cores answered [{ratio} times as many]({report}) as where they "
        "share none",
        {
            "sharing": Number("config.sharing[2]"),
            "tokens": Number("config.prompt_tokens", "{:,}"),
            "ratio": Number(
                "rows[sharing=90,tiers=False].requests_per_s",
                "{:.1f}",
                by="rows[sharing=0,tiers=False].requests_per_s",
            ),
        },
    ),
)


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
