"""How fast a plan takes prefilling and loading to be, and where each figure comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.sizes import parse_bytes
from kvstore.reports import TierName
from tiering.cli.curves_file import read_curves
from tiering.cli.plan_kv import KvCost
from tiering.costs import LOADED_FROM, Curves, LoadCurve, PrefillCurve

ASSUMED_OPERATIONS_S: Final = 300e12
"""Of a device for one model: about what is left of the 990e12 that an H100 has in 16 bits. Nothing here has measured it."""
ASSUMED_LOADS_BYTES_S: Final[Mapping[TierName, float]] = {"host": 20e9, "disk": 3e9}
"""KV: over PCIe 4.0 x16, and from one NVMe drive on PCIe 4.0 with a few cores that decode. Likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """The curves, and of each where it comes from: "prefill", "host" and "disk"."""

    curves: Curves
    sources: Mapping[str, str]


def rates(
    kv: KvCost,
    token_bytes: int,
    *,
    measured: Path | None,
    prefill: float | None,
    loads: Mapping[TierName, str | None],
) -> Rates:
    """What options say, else what was measured, else what is assumed.

    `prefill`: tokens a second of a short prompt; `loads`: KV bytes a second, as "3GB". Raises ValueError for what cannot be meant.
    """
    known = (
        Curves(prefill=None, loads={})
        if measured is None
        else read_curves(measured, f"--measured {measured}", token_bytes)[0]
    )
    curve, source = _prefill(kv, prefill, known, measured)
    sources, curves = {"prefill": source}, dict(known.loads)
    for tier in LOADED_FROM:
        if (given := loads.get(tier)) is not None:
            curves[tier] = LoadCurve(byte_s=1 / _bytes_s(tier, given))
            sources[tier] = f"option --{tier}-load"
        elif tier in curves:
            sources[tier] = f"measured: {measured}"
        else:
            curves[tier] = LoadCurve(byte_s=1 / ASSUMED_LOADS_BYTES_S[tier])
            sources[tier] = (
                f"assumed: {ASSUMED_LOADS_BYTES_S[tier] / 1e9:g} GB/s of KV; --{tier}-load or --measured say better"
            )
    return Rates(curves=Curves(prefill=curve, loads=curves), sources=sources)


def _prefill(
    kv: KvCost, given: float | None, known: Curves, measured: Path | None
) -> tuple[PrefillCurve, str]:
    if given is not None:
        if not 0 < given < 1e12:
            raise ValueError(f"--prefill must be tokens a second, above 0, got {given:g}")
        token_s = 1 / given
        return (
            PrefillCurve(token_s=token_s, pair_s=token_s * kv.pair_operations / kv.token_operations),
            "option --prefill, and for long prompts the operations that config.json tells of",
        )
    if known.prefill is not None:
        return known.prefill, f"measured: {measured}"
    return (
        PrefillCurve(
            token_s=kv.token_operations / ASSUMED_OPERATIONS_S,
            pair_s=kv.pair_operations / ASSUMED_OPERATIONS_S,
        ),
        f"assumed: {ASSUMED_OPERATIONS_S / 1e12:g}e12 operations a second; --prefill or --measured say better",
    )


def _bytes_s(tier: TierName, given: str) -> int:
    text = given.strip().removesuffix("/s")
    if not (found := parse_bytes(int(text) if text.isdigit() else text, f"--{tier}-load")):
        raise ValueError(f"--{tier}-load must be bytes of KV a second, above 0, such as 3GB, got {given!r}")
    return found
