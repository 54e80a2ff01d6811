"""The configuration that a plan recommends, and why; written as `kvtide serve --config` reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.config import MIN_HOST_SLOTS, config_from
from kvstore.reports import TierName

_SUFFIXES: Final = (".toml", ".json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """Section "engine" of a configuration, and of each setting in it, or left out of it, why."""

    engine: Mapping[str, Any]
    reasons: Mapping[str, str]


def advise(
    *,
    sizes: Mapping[TierName, int],
    block_bytes: int,
    block_tokens: int,
    kv_dtype: str,
    disk_path: str,
    max_len: int | None,
    disk_pays_from: int | None,
) -> Advice:
    """By sizes in bytes of "device", "host" and "disk", and the prefix from which on the disk is faster than computing."""
    engine: dict[str, Any] = {"kv_dtype": kv_dtype, "block_tokens": block_tokens}
    reasons = {"kv_dtype": "as planned", "block_tokens": "the smaller, the more prompts share"}
    engine["device_bytes"] = _size(sizes["device"])
    reasons["device_bytes"] = "--device-memory"
    engine["host_bytes"] = _size(sizes["host"])
    reasons["host_bytes"] = "--host-memory" if sizes["host"] else "no host memory was given"
    tokens = sizes["device"] // block_bytes * block_tokens
    if max_len is not None and tokens < max_len:
        engine["max_model_len"] = tokens
        reasons["max_model_len"] = f"of the model's {max_len:,} tokens the device has room for these"
    if sizes["disk"]:
        why_not = _why_no_disk(sizes["host"] // block_bytes, max_len, disk_pays_from)
        if why_not is None:
            engine |= {"disk_path": disk_path, "disk_bytes": _size(sizes["disk"])}
            reasons["disk_bytes"] = (
                f"--disk; prefixes from {disk_pays_from:,} tokens on come back sooner than computed"
            )
        else:
            reasons["disk_path"] = f"left out: {why_not}"
    config_from(dict(engine))  # what is advised can be meant
    return Advice(engine=engine, reasons=reasons)


def _why_no_disk(host_blocks: int, max_len: int | None, disk_pays_from: int | None) -> str | None:
    if host_blocks < MIN_HOST_SLOTS:
        return f"a disk is read through host memory, which must have {MIN_HOST_SLOTS} blocks and has {host_blocks}"
    if disk_pays_from is None:
        return "computing is faster than this disk at any length"
    if max_len is not None and disk_pays_from >= max_len:
        return f"computing is faster than this disk up to {disk_pays_from:,} tokens, and the model takes {max_len:,}"
    return None


def _size(num_bytes: int) -> int | str:
    """As short as it is exact."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (10**9, "GB")):
        if num_bytes and num_bytes % unit == 0:
            return f"{num_bytes // unit}{name}"
    return num_bytes


def as_text(advice: Advice, suffix: str) -> str:
    """As a file of this ending."""
    if suffix == ".json":
        return json.dumps({"engine": dict(advice.engine)}, indent=2) + "\n"
    # numbers and short strings are written alike in TOML
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in advice.engine.items()]
    return "\n".join(["[engine]", *lines]) + "\n"


def check_target(file: Path) -> None:
    """Raise ValueError for a file that `write` would refuse."""
    if file.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--write {file} must end in .toml or .json, as `kvtide serve --config` reads")
    if file.exists():
        raise ValueError(f"--write {file}: it is there already, and is not overwritten")


def write(advice: Advice, file: Path) -> None:
    """Put it there. Raises ValueError for a file that is there, or cannot be written."""
    check_target(file)
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(as_text(advice, file.suffix.lower()))
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}") from error
