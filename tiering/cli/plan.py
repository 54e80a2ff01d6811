"""`kvtide plan`: what a model's KV costs, what tiers of given sizes hold, and whether loading from them pays. Without torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from engine.checkpoint import NotLoaded, config_at
from engine.config import config_from
from engine.sizes import parse_bytes
from kvstore.block import ITEMSIZES
from kvstore.disk import capacity_within
from kvstore.reports import TierName
from tiering.cli.models import config_place
from tiering.cli.plan_advice import Advice, advise, as_text, check_target, write
from tiering.cli.plan_kv import KvCost, kv_cost
from tiering.cli.plan_rates import Rates, rates
from tiering.cli.plan_trace import Counted, read_simulated, simulate
from tiering.plan import Capacity, break_even_tokens, capacity, saved, saved_s

COST_TOKENS: Final = 4000
"""A prompt's worth: a long document, a chat of an hour."""
LENGTHS: Final = (256, 1024, 4000, 16_384, 65_536, 131_072)
RATIOS: Final[Mapping[str, float]] = {"bfloat16": 1.507, "float16": 1.181, "float32": 1.0}
"""How much smaller records are than KV: benchmarks/results/codec_zen4-2core_2026-11-30.md, of the demo's model. float32 was not
measured with a gate, and is taken for nothing."""
_RATIO_SOURCE: Final = "measured: benchmarks/results/codec_zen4-2core_2026-11-30.md, of the demo's model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command was given; sizes as text."""

    config: Path
    device_memory: str
    host_memory: str
    disk: str
    kv_dtype: str
    block_tokens: int
    prefill: float | None
    host_load: str | None
    disk_load: str | None
    measured: Path | None
    disk_ratio: float | None
    disk_path: str
    trace: Path | None
    trace_block_tokens: int
    simulated: Path | None
    price_per_hour: float | None
    write: Path | None


def run(options: Options, *, as_json: bool) -> int:
    """Print the plan, for people or as one JSON object. Raises ValueError for what cannot be meant."""
    made = make(options)
    if options.write is not None:
        write(made.advice, options.write)
    print(json.dumps(made.as_json(), indent=1) if as_json else told(made))
    if options.write is not None and not as_json:
        print(f"\nwritten to {options.write}")
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A plan. rows: for each length, its KV in bytes, seconds to compute it and to load it by tier."""

    options: Options
    kv: KvCost
    token_bytes: int
    tiers: tuple[Capacity, ...]
    ratio: float
    ratio_source: str
    rates: Rates
    rows: tuple[Mapping[str, Any], ...]
    break_even: Mapping[TierName, int | None]
    advice: Advice
    saved: Mapping[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """One object, sizes in bytes, times in seconds."""
        curves = self.rates.curves
        assert curves.prefill is not None, "a plan has all curves"
        return {
            "model": asdict(self.kv),
            "kv_dtype": self.options.kv_dtype,
            "block_tokens": self.options.block_tokens,
            "token_bytes": self.token_bytes,
            "block_bytes": self.token_bytes * self.options.block_tokens,
            "tokens": {str(COST_TOKENS): COST_TOKENS * self.token_bytes},
            "tiers": [asdict(each) for each in self.tiers],
            "disk_ratio": {"value": self.ratio, "source": self.ratio_source},
            "rates": {
                "prefill": {**asdict(curves.prefill), "source": self.rates.sources["prefill"]},
                **{
                    tier: {**asdict(curve), "source": self.rates.sources[tier]}
                    for tier, curve in curves.loads.items()
                },
            },
            "load_or_compute": list(self.rows),
            "break_even_tokens": dict(self.break_even),
            "recommended": {"engine": dict(self.advice.engine)},
            "reasons": dict(self.advice.reasons),
            "trace": self.saved,
        }


def make(options: Options) -> Made:
    """All of it, without printing or writing anything."""
    if options.write is not None:
        check_target(options.write)
    config_from({"block_tokens": options.block_tokens})  # or it is refused, with a sentence
    kv = _kv(options.config)
    token_bytes = kv.token_bytes(_dtype(options.kv_dtype))
    block_bytes = token_bytes * options.block_tokens
    sizes = _sizes(options, block_bytes)
    ratio, ratio_source = _ratio(options)
    tiers = tuple(
        capacity(tier, sizes[tier], each_bytes, options.block_tokens)
        for tier, each_bytes in _block_bytes(sizes, block_bytes, ratio).items()
    )
    loads: dict[TierName, str | None] = {"host": options.host_load, "disk": options.disk_load}
    known = rates(kv, token_bytes, measured=options.measured, prefill=options.prefill, loads=loads)
    break_even = {
        tier: break_even_tokens(known.curves, tier, token_bytes, options.block_tokens)
        for tier in loads
        if sizes[tier]
    }
    return Made(
        options=options,
        kv=kv,
        token_bytes=token_bytes,
        tiers=tiers,
        ratio=ratio,
        ratio_source=ratio_source,
        rates=known,
        rows=_rows(kv, known, token_bytes, sizes),
        break_even=break_even,
        advice=advise(
            sizes=sizes,
            block_bytes=block_bytes,
            block_tokens=options.block_tokens,
            kv_dtype=options.kv_dtype,
            disk_path=options.disk_path,
            max_len=kv.max_len,
            disk_pays_from=break_even.get("disk"),
        ),
        saved=_saved(options, known, token_bytes, tiers),
    )


def _kv(place: Path) -> KvCost:
    place = config_place(place)
    if not place.exists():
        raise ValueError(f"cannot read --config {place}: there is no such file or directory")
    try:
        return kv_cost(config_at(place))
    except NotLoaded:
        raise
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"--config {place}: something in it is of another type than in a config.json ({error!r})"
        ) from error
    except ValueError as error:
        raise ValueError(f"--config {place}: {error}") from error


def _dtype(kv_dtype: str) -> str:
    if kv_dtype not in ITEMSIZES:
        raise ValueError(f"--kv-dtype must be one of {', '.join(ITEMSIZES)}, got {kv_dtype!r}")
    return kv_dtype


def _sizes(options: Options, block_bytes: int) -> dict[TierName, int]:
    given: dict[TierName, tuple[str, str]] = {
        "device": ("--device-memory", options.device_memory),
        "host": ("--host-memory", options.host_memory),
        "disk": ("--disk", options.disk),
    }
    sizes = {
        tier: parse_bytes(int(text) if text.isdigit() else text, name) for tier, (name, text) in given.items()
    }
    if sizes["device"] < block_bytes:
        raise ValueError(
            f"--device-memory {options.device_memory} holds no block: {options.block_tokens} tokens take {block_bytes:,} bytes"
        )
    return sizes


def _block_bytes(sizes: Mapping[TierName, int], block_bytes: int, ratio: float) -> dict[TierName, float]:
    """By tier that there is, what a block takes of its size."""
    of_disk = sizes["disk"] / max(1, capacity_within(sizes["disk"]))
    each: dict[TierName, float] = {
        "device": block_bytes,
        "host": block_bytes,
        "disk": block_bytes / ratio * of_disk,
    }
    return {tier: num_bytes for tier, num_bytes in each.items() if sizes[tier]}


def _ratio(options: Options) -> tuple[float, str]:
    if options.disk_ratio is None:
        if options.kv_dtype == "float32":
            return 1.0, "assumed: float32 is stored as it is"
        return RATIOS[options.kv_dtype], _RATIO_SOURCE
    if not 1 <= options.disk_ratio <= 100:
        raise ValueError(f"--disk-ratio must be from 1 to 100, got {options.disk_ratio:g}")
    return options.disk_ratio, "option --disk-ratio"


def _rows(
    kv: KvCost, known: Rates, token_bytes: int, sizes: Mapping[TierName, int]
) -> tuple[Mapping[str, Any], ...]:
    prefill = known.curves.prefill
    assert prefill is not None, "a plan has all curves"
    rows = []
    for tokens in (each for each in LENGTHS if kv.max_len is None or each <= kv.max_len):
        times = {"compute": saved_s(prefill, tokens)}
        for tier, load in known.curves.loads.items():
            if sizes[tier]:
                times[tier] = load.seconds(tokens * token_bytes)
        rows.append(
            {
                "tokens": tokens,
                "bytes": tokens * token_bytes,
                "seconds": times,
                "sooner": min(times, key=lambda way: times[way]),
            }
        )
    return tuple(rows)


def _saved(
    options: Options, known: Rates, token_bytes: int, tiers: tuple[Capacity, ...]
) -> Mapping[str, Any] | None:
    if (price := options.price_per_hour) is not None and not 0 <= price < 1e9:
        raise ValueError(f"--price-per-hour must be a price from 0 on, got {price:g}")
    if (counted := _counted(options, tiers)) is None:
        if price is not None:
            raise ValueError("--price-per-hour says what saved time is worth: of which --trace?")
        return None
    found = saved(
        counted.hits_by_tier,
        counted.num_requests,
        counted.num_blocks,
        known.curves,
        token_bytes=token_bytes,
        block_tokens=options.trace_block_tokens,
        price_per_hour=price,
    )
    return {"num_requests": counted.num_requests, "num_blocks": counted.num_blocks, **asdict(found)}


def _counted(options: Options, tiers: tuple[Capacity, ...]) -> Counted | None:
    if options.trace is not None and options.simulated is not None:
        raise ValueError("--trace is simulated here, and --simulated was elsewhere: give one of them")
    if options.trace is not None:
        return simulate(options.trace, tiers, options.block_tokens, options.trace_block_tokens)
    return None if options.simulated is None else read_simulated(options.simulated)


# ---- for people ------------------------------------------------------------------------------------------------------


def told(made: Made) -> str:
    """The plan in words and small tables."""
    parts = [_told_kv(made), _told_tiers(made), _told_rates(made), _told_advice(made)]
    if made.saved is not None:
        parts.append(_told_saved(made.saved))
    return "\n\n".join(parts)


def _told_kv(made: Made) -> str:
    kv, options = made.kv, made.options
    block_bytes = made.token_bytes * options.block_tokens
    lines = [
        f"{kv.name}: {kv.attention}, {kv.num_layers} layers, {kv.layer_values:,} numbers a layer and token",
        f"KV in {options.kv_dtype}: {made.token_bytes:,} bytes a token, {block_bytes:,} a block of {options.block_tokens}",
        f"{COST_TOKENS:,} tokens: {_size(COST_TOKENS * made.token_bytes)}",
        *(f"note: {note}" for note in kv.notes),
    ]
    if not kv.served:
        lines.append(f"note: kvtide does not run it, so this is arithmetic only. {kv.why_not}")
    return "\n".join(lines)


def _told_tiers(made: Made) -> str:
    lines = [f"{'tier':<8}{'size':>12}{'blocks':>14}{'tokens':>16}"]
    lines += [
        f"{each.tier:<8}{_size(each.num_bytes):>12}{each.num_blocks:>14,}{each.num_tokens:>16,}"
        for each in made.tiers
    ]
    if any(each.tier == "disk" for each in made.tiers):
        lines.append(
            f"disk: records {made.ratio:g} times smaller than KV ({made.ratio_source}), in four fifths of its size"
        )
    return "\n".join(lines)


def _told_rates(made: Made) -> str:
    ways = list(made.rows[0]["seconds"]) if made.rows else ["compute"]
    lines = ["seconds until a prefix is there, by what it takes:"]
    lines.append("".join([f"{'tokens':>9}{'KV':>12}", *(f"{way:>12}" for way in ways), "  sooner"]))
    for row in made.rows:
        times = "".join(f"{row['seconds'][way]:>12.4g}" for way in ways)
        lines.append(f"{row['tokens']:>9,}{_size(row['bytes']):>12}{times}  {row['sooner']}")
    for tier, tokens in made.break_even.items():
        says = "never" if tokens is None else f"from {tokens:,} tokens on"
        lines.append(f"loading from {tier} is no slower than computing: {says}")
    shown = ("prefill", *made.break_even)
    return "\n".join([*lines, *(f"{name}: {made.rates.sources[name]}" for name in shown)])


def _told_advice(made: Made) -> str:
    text = as_text(made.advice, ".toml").rstrip()
    return "\n".join(
        [
            "recommended, for `kvtide serve MODEL --config FILE`:",
            *(f"    {line}" for line in text.splitlines()),
            *(f"{name}: {why}" for name, why in made.advice.reasons.items()),
        ]
    )


def _told_saved(found: Mapping[str, Any]) -> str:
    by_tier = ", ".join(f"{hits:,} {tier}" for tier, hits in found["hits_by_tier"].items())
    lines = [
        f"trace: {found['num_requests']:,} requests, {found['hit_rate']:.1%} of {found['num_blocks']:,} blocks hit ({by_tier})",
        f"prefill saved: {found['prefill_s']:,.0f} s, for {found['load_s']:,.0f} s of loading",
    ]
    if found["money"] is not None:
        lines.append(f"money saved, at the price given: {found['money']:,.2f}")
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    """With two decimals, so that a plan can be checked by hand."""
    size, unit = float(num_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
