"""The result files under benchmarks/results, as `tools.figures` reads them."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")


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
