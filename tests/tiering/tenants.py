"""An index that several owners share, with every move of a request carried out at once; a block is one token."""

import numpy as np

from kvstore.block import KEY_BYTES
from kvstore.store import HIT, NO_OWNER, OWNER_BYTES
from tiering.claim import Claim
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.moves import Copied, Demote, Promote, Read, Write, Written
from tiering.moves import HasRead as WasRead
from tiering.owners import Ownership
from tiering.ranks import Rank

A, B, C = (bytes([number]) * OWNER_BYTES for number in (1, 2, 3))


class Tenants:
    def __init__(self, device, host=0, disk=0, **settings) -> None:
        config = IndexConfig(
            block_tokens=1,
            device_slots=device,
            host_slots=host,
            disk_bytes=disk,
            record_bytes=1 if disk else 0,
            write_batch_share=1.0,
            io_deadline_s=1e9,
            **{"write_host_share": 1.0, **settings},
        )
        self.index = Index(config, bytes(KEY_BYTES))
        self.now_s = 0.0
        self.num_keys = 0

    def serve(self, owner, prompt, *, public=0, rank=Rank.NORMAL, check=True):
        """How many of a prompt's blocks were found. Those behind the first `public` ones are the owner's."""
        tokens = np.array(prompt, dtype="<i4")
        lease = self.admit(owner, tokens, public=public, rank=rank)
        found = lease.num_cached_blocks
        self.finish(lease, tokens, check=check)
        return found

    def admit(self, owner, tokens, *, public=0, rank=Rank.NORMAL):
        self.now_s += 1.0
        self.index.at(self.now_s)
        for _ in range(20):
            lease = self.index.admit(
                np.array(tokens, dtype="<i4"),
                len(tokens),
                chunk_blocks=len(tokens),
                compute_last=False,
                claim=Claim(Ownership(owner, public), rank),
            )
            self.settle()
            if not hasattr(lease, "name"):  # a Wait is an enum's member
                return lease
        raise AssertionError(f"never admitted: {lease}")

    def finish(self, lease, tokens, *, check=True):
        for start, end in lease.gaps(len(tokens)):
            self.index.publish(lease, tokens, start, end)
        self.index.release(lease)
        self.settle()
        if check:
            self.index.check()

    def settle(self):
        while moves := self.index.plan(self.now_s):
            for move in moves:
                self._answer(move)

    def _answer(self, move):
        match move:
            case Demote() | Promote():
                self.index.answer(Copied(move.number))
            case Read():
                self.index.answer(WasRead(move.number, (HIT,) * len(move.ids)))
            case Write():
                keys = []
                for _ in range(len(move.unkeyed)):
                    self.num_keys += 1
                    keys.append(self.num_keys.to_bytes(KEY_BYTES, "little"))
                self.index.answer(
                    Written(move.number, np.ones(len(move.ids), dtype=np.int64), b"".join(keys))
                )

    def there(self, prompt):
        """Its blocks, by the nearest tier."""
        found = self.index.lookup(np.array([*prompt, 0], dtype="<i4"))
        return {tier: blocks for tier, blocks in found.items() if blocks}

    def used(self, owner):
        """What an owner has, by tier: device, host, disk."""
        row = self.index.owners()["" if owner == NO_OWNER else owner.hex()]
        return row["device"], row["host"], row["disk"]


def flood(tenants, owner, num, *, start, length=4, **given):
    """Prompts that nobody asks for twice."""
    for number in range(num):
        first = start + number * length
        tenants.serve(owner, range(first, first + length), **given)
