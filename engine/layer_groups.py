"""Into which groups of layers a promotion is cut, so that computing can begin before the last has arrived."""

from dataclasses import dataclass
from itertools import pairwise

from kvstore.block import BlockLayout

_AUTO = {"cpu": 1, "cuda": 4}
"""On the CPU copies take a few hundredths of what computing does, so there is nothing to hide (docs/LOG.md). The figure
for CUDA is a guess: with four, at most a quarter of a promotion is waited for."""
_MIN_GROUP_BYTES = 1 << 16
"""Of one block, with "auto": each group of each block is a copy, and smaller ones cost more to ask for than to make. A
guess."""


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """Groups of layers that follow each other.

    starts: the first layer of each.   parts: which bytes of a block are its.
    """

    starts: tuple[int, ...]
    parts: tuple[slice, ...]


def layer_groups(layout: BlockLayout, num_groups: int | str, device: str) -> LayerGroups:
    """As many groups as that, or as there are layers, of nearly equal size; "auto" is the device's own number."""
    if num_groups == "auto":
        num_groups = min(_AUTO[device], max(1, layout.block_bytes // _MIN_GROUP_BYTES))
    assert isinstance(num_groups, int), "the configuration was checked"
    num_groups = min(num_groups, layout.num_layers)
    edges = [layout.num_layers * group // num_groups for group in range(num_groups + 1)]
    layer_bytes = layout.block_bytes // layout.num_layers
    return LayerGroups(
        starts=tuple(edges[:-1]),
        parts=tuple(slice(start * layer_bytes, end * layer_bytes) for start, end in pairwise(edges)),
    )
