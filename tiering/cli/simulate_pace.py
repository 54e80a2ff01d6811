"""What a simulation takes computing and loading to take."""

from collections.abc import Mapping
from pathlib import Path

from tiering.cli.parsing import parsed
from tiering.kept_costs import read_costs
from tiering.pace import ASSUMED, ASSUMED_TOKEN_BYTES, Pace


def pace_of(curves: str | None, load: str, block_tokens: int, times_s: Mapping[str, float]) -> Pace | None:
    """By the file, or the assumed ones, which "auto" needs at least. None where nothing is said of them.

    `times_s`: what options say of the same, by their names. Raises ValueError where these are given as well, and for a file that is no
    kept costs.
    """
    if curves is None and load != "auto":
        return None
    if given := [f"--{name}-s" for name, seconds in times_s.items() if seconds]:
        raise ValueError(f"{', '.join(given)} and curves say the same: give one of them")
    if curves is None or curves == "assumed":
        return Pace.of(ASSUMED, block_tokens=block_tokens, token_bytes=ASSUMED_TOKEN_BYTES)
    name = f"--curves {curves}"
    found = parsed(Path(curves), name)
    try:
        costs, token_bytes = read_costs(found)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if token_bytes is None:
        raise ValueError(f"{name} does not say how many bytes a token has: take a file of disk_path/v1/costs")
    return Pace.of(costs.curves, block_tokens=block_tokens, token_bytes=token_bytes)
