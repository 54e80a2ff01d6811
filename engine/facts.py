"""What an engine says of itself when it starts."""

import shutil
from typing import Any

from .config import EngineConfig
from .gpu_figures import card_in_words
from .kernels import NO_CUDA
from .lanes import has_lanes
from .sizes import format_bytes
from .tiers import Tiers


def facts(tiers: Tiers, config: EngineConfig, figures: dict[str, Any]) -> str:
    """Model, device, and the size of each tier, in lines. `figures`: the engine's `stats()`."""
    model, layout, disk = tiers.model, tiers.layout, figures["cache"]["tiers"]["disk"]
    computes = f"computes in {model.dtype}, KV in {layout.dtype}".replace("torch.", "")
    ready = figures["cache"]["tiers"]["host"]["slots"]
    coming = "" if ready == tiers.slab.num_slots else ", being made ready"
    off = tiers.flashinfer_off
    why = "" if off in (None, NO_CUDA) else f", not flashinfer: {off}"
    has_own = tiers.kernels is None and has_lanes(
        model.device, tiers.pool.dtype, model.dtype, layout.head_dim
    )
    own = "; of prompts by a kernel of our own" if has_own else ""

    def size(num_blocks: int) -> str:
        num_tokens, num_bytes = num_blocks * layout.block_tokens, num_blocks * layout.block_bytes
        return f"{num_blocks} blocks = {num_tokens} tokens, {format_bytes(num_bytes)}"

    lines = [
        f"kvtide  model   {model.name} ({model.architecture}), identity {tiers.namespace}",
        f"        device  {model.device}{card_in_words(figures['gpu'])}, {computes}",
        f"                attention by {tiers.attention}{why}{own}",
        f"                {size(tiers.pool.num_slots)}",
        f"        host    {size(tiers.slab.num_slots)}{coming}",
    ]
    if config.disk_path is None:
        lines.append("        disk    none (set disk_path)")
    elif tiers.disk_off is not None:
        lines.append(f"        disk    none: {tiers.disk_off}")
    else:
        free = shutil.disk_usage(config.disk_path).free
        lines.append(
            f"        disk    {config.disk_path}: {disk['blocks']} blocks found{', more to come' if disk['restoring'] else ''}, up to "
            f"{format_bytes(disk['capacity_bytes'])}, {format_bytes(free)} free there"
        )
    return "\n".join(lines)
