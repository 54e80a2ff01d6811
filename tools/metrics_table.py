"""Write the table of docs/metrics.md anew, from the one that /metrics is answered from: python -m tools.metrics_table"""

from collections.abc import Iterator
from pathlib import Path

from kvstore.admin.metric_table import SECTIONS, Metric

DOC = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
BEGIN = "<!-- Written by tools/metrics_table.py from kvstore/admin/metric_table.py: do not edit. -->"
OF_STATS = ("engine", "cache", "gpu", "disk_off")
END = "<!-- The end of what is written. -->"


def table() -> str:
    """All metrics, section by section."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for title, metrics in SECTIONS.items():
        yield f"\n### {title}\n"
        yield "| name | type | unit | labels | meaning | in `stats()` |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            source = f"`{metric.source}`" if metric.source.startswith(OF_STATS) else ""
            cells = (f"`{metric.name}`", metric.kind, metric.unit, labels, metric.help, source)
            yield f"| {' | '.join(cells)} |"
    yield "\n### Values of labels\n"
    yield "| label | of | values |"
    yield "| --- | --- | --- |"
    yield from _label_rows([metric for metrics in SECTIONS.values() for metric in metrics])


def _label_rows(metrics: list[Metric]) -> Iterator[str]:
    """A row for each set of values that a label has, with the metrics that have it."""
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for metric in metrics:
        for label, values in metric.labels.items():
            if values is not None:
                rows.setdefault((label, values), []).append(metric.name)
    for (label, values), names in rows.items():
        shown = ", ".join(f"`{name}`" for name in names)
        yield f"| `{label}` | {shown} | {', '.join(f'`{value}`' for value in values)} |"


def with_table(text: str) -> str:
    """The document with the table as it must be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert rest and after, f"{DOC} lacks the lines between which the table goes"
    return f"{before}{BEGIN}\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    DOC.write_text(with_table(DOC.read_text(encoding="utf-8")), encoding="utf-8")
