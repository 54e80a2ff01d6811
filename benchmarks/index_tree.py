"""A core's own parts with prefixes in them: what `make bench-index` measures."""

from collections.abc import Iterable

import numpy as np

from benchmarks.workloads_index import BLOCK_TOKENS, Tokens
from kvstore.block import BlockKey
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.lease import Lease
from tiering.residency import Ids, Tier
from tiering.slot_table import SlotState

RECORD_BYTES = 1 << 17
_ROOT_KEY = BlockKey(bytes(32))


class Tree:
    """An `Index` without a driver, and the parts of it by name. What is entered is in tiers as if it had been computed."""

    def __init__(self, device_blocks: int, host_blocks: int = 0, disk_blocks: int = 0) -> None:
        self.index = Index(
            IndexConfig(
                block_tokens=BLOCK_TOKENS,
                device_slots=device_blocks,
                host_slots=host_blocks,
                disk_bytes=disk_blocks * RECORD_BYTES,
                record_bytes=RECORD_BYTES if disk_blocks else 0,
            ),
            _ROOT_KEY,
        )
        self.holdings = self.index._holdings
        self.eviction = self.index._eviction
        self.radix, self.order, self.residency = (
            self.holdings.radix,
            self.holdings.order,
            self.holdings.residency,
        )

    def enter(self, tokens: Tokens, *tiers: Tier) -> Ids:
        """A prompt, of which these tiers have what is new. Answers its path."""
        path = self.radix.insert(tokens)
        self.fill(path[~self.residency.resident_anywhere(path)], *tiers)
        self.order.touch(path)
        return path

    def fill(self, ids: Ids, *tiers: Tier) -> None:
        """These tiers have got these blocks, of which they had none."""
        for tier in tiers:
            if tier is Tier.DISK:
                sizes = np.full(len(ids), RECORD_BYTES, dtype=np.int64)
                self.residency.set_keys(ids, np.pad(ids[:, None].view(np.uint8), [(0, 0), (0, 24)]))
                self.holdings.expect(tier, ids, sizes)
                self.holdings.arrived(tier, ids, sizes)
            else:
                slots = self.holdings.slots[tier].take(len(ids), SlotState.IN_FLIGHT)
                assert slots is not None, "the tree was made for as many blocks as are entered"
                self.holdings.expect(tier, ids, slots)
                self.holdings.arrived(tier, ids)

    def enter_all(self, prompts: Iterable[Tokens], *tiers: Tier) -> None:
        """Many prompts, in this order."""
        for tokens in prompts:
            self.enter(tokens, *tiers)

    def admit(self, tokens: Tokens) -> Lease:
        """A request's turn, which must succeed at once."""
        lease = self.index.admit(tokens, len(tokens) // BLOCK_TOKENS + 2, chunk_blocks=64)
        assert isinstance(lease, Lease), "there is room for one"
        return lease

    def take_out(self, ids: Ids) -> None:
        """Have blocks leave the index that are in no tier, children first."""
        self.holdings.remove(ids)
