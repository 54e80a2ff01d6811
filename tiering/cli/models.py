"""`kvtide models`: whether a model is served, and what its KV costs, from its config.json or GGUF header alone."""

import json
from pathlib import Path
from typing import Any

from engine.checkpoint import NotLoaded, config_at
from engine.demo_model import DEMO, demo_gguf
from engine.sizes import format_bytes
from engine.supported import NotServed, Shape, shape_of
from kvstore.block import ITEMSIZES

SERVED, NOT_SERVED, UNREADABLE = 0, 1, 2
"""Exit statuses."""

BLOCK_TOKENS = 16


def judge(place: Path) -> dict[str, Any]:
    """All that can be said of the model at `place`: a config.json, a directory with one, a GGUF file, or "demo".

    Raises NotLoaded, with a sentence, for what says nothing that can be read.
    """
    place = config_place(place)
    if not place.exists():
        raise NotLoaded(place, "there is no such file or directory")
    try:
        shape = shape_of(config_at(place))
    except NotServed as error:
        return {"served": False, "reason": str(error)}
    except NotLoaded:
        raise
    except ValueError as error:
        raise NotLoaded(place, str(error)) from error
    return {"served": True, "reason": None, **_facts(shape)}


def config_place(named: Path) -> Path:
    """What a user names: itself, but for "demo", unless there is one. Raises ValueError where the demo's model is not installed."""
    return demo_gguf() if str(named) == DEMO and not named.exists() else named


def _facts(shape: Shape) -> dict[str, Any]:
    layouts = {dtype: shape.layout(dtype, BLOCK_TOKENS) for dtype in ITEMSIZES}
    return {
        "architecture": shape.architecture,
        "model_type": shape.model_type,
        "num_layers": shape.num_layers,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_len": shape.max_len,
        "windows": list(shape.windows),
        "not_deterministic": shape.not_deterministic,
        "block_tokens": BLOCK_TOKENS,
        "kv_bytes": {
            dtype: {"token": layout.token_bytes, "block": layout.block_bytes}
            for dtype, layout in layouts.items()
        },
    }


def run(place: Path, *, as_json: bool) -> int:
    """Print the judgement, for people or as one JSON object, and return the exit status."""
    found = judge(place)
    print(json.dumps(found, indent=1) if as_json else _told(found))
    return SERVED if found["served"] else NOT_SERVED


def _told(found: dict[str, Any]) -> str:
    if not found["served"]:
        return str(found["reason"])
    lengths = ("a token", f"a block of {BLOCK_TOKENS}", f"{found['max_len']} tokens")
    heads = f"{found['num_layers']} layers, {found['num_kv_heads']} KV heads of {found['head_dim']}"
    lines = [
        f"{found['architecture']} ({found['model_type']}) is served.",
        f"{heads}, at most {found['max_len']} tokens; {_windows(found['windows'])}",
        f"deterministic mode: {found['not_deterministic'] or 'offered'}",
        "{:<10}{:>16}{:>18}{:>20}".format("KV in", *lengths),
    ]
    for dtype, each in found["kv_bytes"].items():
        longest = format_bytes(each["token"] * found["max_len"])
        lines.append(f"{dtype:<10}{each['token']:>14,} B{each['block']:>16,} B{longest:>20}")
    return "\n".join(lines)


def _windows(windows: list[int | None]) -> str:
    sliding = [window for window in windows if window is not None]
    if not sliding:
        return "no sliding window"
    return f"a sliding window of {sliding[0]} tokens in {len(sliding)} of them"
