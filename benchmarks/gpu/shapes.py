"""The shapes of models that are measured, by name. Needs nothing but the standard library."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.block import BlockLayout

_KV: dict[str, dict[str, Any]] = {
    "demo": {"num_layers": 30, "num_kv_heads": 3, "head_dim": 64},
    "8b": {"num_layers": 32, "num_kv_heads": 8, "head_dim": 128},
    "tiny": {"num_layers": 4, "num_kv_heads": 2, "head_dim": 16},
}

_MODELS = {"demo": "random", "8b": "random-8b", "tiny": "random-tiny"}

NAMES = tuple(_MODELS)

SHAPES = {"full": ("demo", "8b"), "quick": ("demo", "8b"), "rehearsal": ("tiny",)}
"""Which are measured at each size; the largest comes last."""


def layout(shape: str, block_tokens: int) -> "BlockLayout":
    """Of blocks in bfloat16."""
    from kvstore.block import BlockLayout

    return BlockLayout(**_KV[shape], dtype="bfloat16", block_tokens=block_tokens)


def model_name(shape: str) -> str:
    """What `kvtide bench` calls a model of this shape with random weights; another name is a model's own."""
    return _MODELS.get(shape, shape)
