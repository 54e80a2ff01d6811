"""Tiers of a few blocks on the model of memory, and words for what is asked of them."""

from tests.tiering.memory_model import MemoryModel
from tiering.index_config import IndexConfig
from tiering.residency import Tier

BLOCK_TOKENS = 2
RECORD_BYTES = 10


def config(device, host=0, disk=0, **changed):
    """Sizes in blocks."""
    return IndexConfig(
        block_tokens=BLOCK_TOKENS,
        device_slots=device,
        host_slots=host,
        disk_bytes=disk * RECORD_BYTES,
        record_bytes=RECORD_BYTES if disk else 0,
        **{"write_batch_share": 0.5, "write_host_share": 1.0, **changed},
    )


def model(device, host=0, disk=0, *, chooser=None, **changed):
    return MemoryModel(config(device, host, disk, **changed), chooser=chooser)


def prompt(*names: int):
    """A block for each name, and one token more: so all of the blocks may match, and one slot more is needed."""
    return [name for name in names for _ in range(BLOCK_TOKENS)] + [99]


def on_disk(tiers, *names: int):
    """Have these blocks computed, and leave them on disk only."""
    tiers.run(prompt(*names))
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    assert tiers.where(prompt(*names)) == ["K"] * len(names)


def stats(tiers, tier):
    return tiers.index.stats()["tiers"][tier]


def lookup(tiers, *names: int):
    """Blocks that would be served, by tier."""
    found = tiers.index.lookup(tiers.request(prompt(*names)).array)
    return {tier: tokens // BLOCK_TOKENS for tier, tokens in found.items() if tokens}
