"""What `make gpu-check` has found, for people: written from its JSON and nothing else. Only the standard library."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.gpu.measurements import MEASUREMENTS
from tiering.cli.markdown import table

AIM = 0.9
"""The share of a plain copy's rate that a copy of scattered blocks should reach."""


def markdown(report: Mapping[str, Any], json_name: str) -> str:
    """The whole of it."""
    parts = [_head(report, json_name), *_failures(report), "## Steps", table(report["steps"], _STEPS)]
    parts += ["## Tests", _tests(report["tests"])]
    for name, rows in report["rows"].items():
        parts += [f"## {name.capitalize()}"]
        if name == "copies":
            parts.append(_aim(rows))
        parts.append(table(map(_rounded, rows), MEASUREMENTS[name].columns))
    return "\n\n".join(parts) + "\n"


_STEPS = ("name", "seconds", "limit_s", "outcome", "command")


def _head(report: Mapping[str, Any], json_name: str) -> str:
    found = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    counts = f"{report['passed']} passed, {len(report['failed'])} failed, {len(report['not_run'])} not run"
    return f"""# GPU check, {found["gpu"] or "rehearsed on a CPU"}, {report["date"]}

```
{report["command"]}
```

**{counts}** (exit status {report["status"]}), sizes "{report["size"]}", all values in [the JSON]({json_name}).

- GPU: {found["gpu"]}, driver {found["gpu_driver"]}, CUDA of torch {found["torch_cuda"]}
- CPU: {found["cpu"]}, {found["cores"]} cores, {found["memory_bytes"] / 2**30:.0f} GiB
- Python {found["python"]}, {versions}
- commit {found["commit"]}"""


def _failures(report: Mapping[str, Any]) -> Iterable[str]:
    for title, name in (("Failed", "failed"), ("Not run", "not_run")):
        if report[name]:
            lines = [f"- {what}: {why}" for what, why in report[name].items()]
            yield f"## {title}\n\n" + "\n".join(lines)


def _tests(tests: Mapping[str, str]) -> str:
    return "\n".join(f"- {outcome.lower()}: `{name}`" for name, outcome in tests.items()) or "None were run."


def _aim(rows: Iterable[Mapping[str, Any]]) -> str:
    scattered = [row for row in rows if row["scattered"] and row["layer_groups"] == 1]
    reached = [row for row in scattered if row["share"] >= AIM]
    return (
        f"Scattered whole slots reach {AIM:.0%} of a plain copy's rate in {len(reached)} of {len(scattered)} rows. "
        "Rates are medians, slowest and fastest repeat."
    )


def _rounded(row: Mapping[str, Any]) -> dict[str, object]:
    return {
        name: "" if value is None else f"{value:.4g}" if isinstance(value, float) else value
        for name, value in row.items()
    }
