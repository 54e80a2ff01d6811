"""Curves of computing and loading from a file that users name."""

from pathlib import Path
from typing import Any, Final

from tiering.cli.parsing import parsed
from tiering.costs import Costs, Curves
from tiering.kept_costs import read_costs

_DISK_ROWS: Final = ("disk_dropped", "disk")
"""Of `kvtide bench ttft`: with the page cache dropped is more honest, where it was measured."""


def read_curves(file: Path, name: str, token_bytes: int | None) -> tuple[Curves, int]:
    """Curves over tokens and bytes, and how many bytes of KV a token has: `token_bytes`, or if that is None as the file says.

    Of what `kvtide bench ttft --json` has written, which counts tokens and no bytes, of costs that an engine keeps, or of
    `Costs.as_json`. Raises ValueError, with a sentence that calls the file by `name`, for any other, and for costs that do not say.
    """
    found = parsed(file, name)
    if isinstance(found, dict) and ("prefill" in found or "costs" in found):
        try:
            costs, told = read_costs(found)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if (token_bytes := token_bytes or told) is None:
            raise ValueError(f"{name} counts bytes and does not say how many a token has: give --token-bytes")
        return costs.curves, token_bytes
    token_bytes = token_bytes or 1
    try:
        costs = _of_bench(found, token_bytes)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{name} is neither what `kvtide bench ttft --json` writes nor costs of kvtide"
        ) from error
    return costs.curves, token_bytes


def _of_bench(found: Any, token_bytes: int) -> Costs:
    """Of a benchmark with this model: its rows name no bytes."""
    costs, suffix = Costs(), found["config"]["suffix_tokens"]
    rows = {row["tier"] for row in found["rows"]}
    disk = next((name for name in _DISK_ROWS if name in rows), None)
    for row in found["rows"]:
        prefix, took = row["prefix_tokens"], row["timings_s"]
        if row["tier"] == "cold":
            costs.prefilled(0, prefix + suffix, took["prefill_s"])
        elif row["tier"] == "device":
            costs.prefilled(prefix, suffix, took["prefill_s"])
        elif row["tier"] == "host":
            costs.loaded("host", prefix * token_bytes, took["load_s"])
        elif row["tier"] == disk:
            costs.loaded("disk", prefix * token_bytes, took["load_s"])
    return costs
