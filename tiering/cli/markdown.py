"""Reports for people: rows as a table, and a page beside the figures that it tells of."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def table(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """These columns of the rows, in Markdown, named as the rows name them."""
    lines = [[name.replace("_", " ") for name in columns], ["---"] * len(columns)]
    lines += [[str(row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gate(name: str, value: float, bound: float | None, unit: str, *, at_most: bool) -> dict[str, Any]:
    """A figure that must be at most, or at least, a bound, and whether it is; None of a figure that has no bound."""
    holds = None if bound is None else value <= bound if at_most else value >= bound
    return {"name": name, "value": value, "bound": bound, "unit": unit, "holds": holds}


def write(path: Path | None, figures: object, page: str) -> None:
    """Put the figures there as JSON, and the page for people beside it, as .md. Nothing where no path was given."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n")
        path.with_suffix(".md").write_text(page.rstrip("\n") + "\n")
