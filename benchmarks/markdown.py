"""Rows of a report as a table for people."""

from collections.abc import Iterable, Mapping, Sequence


def table(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """These columns of the rows, in Markdown, named as the rows name them."""
    lines = [[name.replace("_", " ") for name in columns], ["---"] * len(columns)]
    lines += [[str(row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
