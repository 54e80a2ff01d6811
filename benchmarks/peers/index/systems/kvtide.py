"""kvtide's core: the parts that an engine's loop calls, and for whole requests the core itself."""

import numpy as np

from benchmarks.peers.index.rows import Call
from benchmarks.workloads_index import BLOCK_TOKENS, Tokens
from tiering.index import Index as Core
from tiering.index_config import IndexConfig
from tiering.lease import Lease
from tiering.moves import Copied, Demote
from tiering.residency import ABSENT, DEVICE, Ids
from tiering.slot_table import SlotState

_ROOT_KEY = bytes(32)
_LEFT_TO_COMPUTE = np.arange(8, dtype="<i4")


class Index:
    def __init__(self, num_blocks: int) -> None:
        config = IndexConfig(block_tokens=BLOCK_TOKENS, device_slots=num_blocks, host_slots=0)
        self._core = Core(config, _ROOT_KEY)
        self._holdings = self._core._holdings

    def insert(self, tokens: Tokens) -> None:
        self._insert(tokens)

    def matching(self, tokens: Tokens) -> Call:
        radix, order = self._holdings.radix, self._holdings.order

        def match() -> int:
            path = radix.match(tokens)
            order.touch(path)
            return len(path) * BLOCK_TOKENS

        return match

    known = matching  # there are no hashes

    def inserting(self, tokens: Tokens) -> Call:
        return lambda: len(tokens) - self._insert(tokens)

    def holding(self, tokens: Tokens) -> Call:
        holdings, path = self._holdings, self._holdings.radix.match(tokens)

        def hold() -> int:
            holdings.lease(path)
            holdings.release(path)
            return len(path) * BLOCK_TOKENS

        return hold

    def serving(self, tokens: Tokens) -> Call:
        core, prompt = self._core, np.concatenate([tokens, _LEFT_TO_COMPUTE])
        max_blocks = len(prompt) // BLOCK_TOKENS + 2

        def serve() -> int:
            lease = core.admit(prompt, max_blocks, chunk_blocks=1)
            assert isinstance(lease, Lease), f"there is room, but the request waits: {lease}"
            num_cached = lease.num_cached_blocks
            core.release(lease)
            return num_cached * BLOCK_TOKENS

        return serve

    def evicting(self, num_tokens: int) -> Call:
        core, table = self._core, self._holdings.slots[DEVICE]

        def evict() -> int:
            num_free = table.num_free
            core.make_room(num_free + num_tokens // BLOCK_TOKENS)
            return (table.num_free - num_free) * BLOCK_TOKENS

        return evict

    def settle(self) -> None:
        pass

    def _insert(self, tokens: Tokens) -> int:
        """Enter a computed prompt; how many of its tokens are new."""
        path = self._holdings.radix.insert(tokens)
        new = _enter(self._core, path)
        self._holdings.order.touch(path)
        return len(new) * BLOCK_TOKENS


def _enter(core: Core, path: Ids) -> Ids:
    """What is not on the device yet of a path gets a place there, and has arrived."""
    holdings = core._holdings
    new = path[holdings.residency.state[DEVICE][path] == ABSENT]
    slots = holdings.slots[DEVICE].take(len(new), SlotState.IN_FLIGHT)
    assert slots is not None, "the device is as large as what is inserted"
    holdings.expect(DEVICE, new, slots)
    holdings.arrived(DEVICE, new)
    return new


class Offload:
    """Blocks on the device that get a place in host memory, as they do before they leave the device."""

    def __init__(self, num_blocks: int) -> None:
        config = IndexConfig(block_tokens=BLOCK_TOKENS, device_slots=4 * 8192, host_slots=num_blocks)
        self._core = Core(config, _ROOT_KEY)

    def looking_up(self, tokens: Tokens) -> Call:
        prompt = np.concatenate([tokens, _LEFT_TO_COMPUTE])
        return lambda: self._core.num_matching(prompt) * BLOCK_TOKENS

    def storing(self, tokens: Tokens) -> Call:
        holdings, eviction = self._core._holdings, self._core._eviction
        path = holdings.radix.insert(tokens)
        _enter(self._core, path)
        holdings.order.touch(path)

        def store() -> int:
            slots = eviction.host_slots(len(path))
            eviction.demote(path, slots, then_free=True)
            return len(slots) * BLOCK_TOKENS

        return store

    def settle(self) -> None:
        for move in self._core._outbox.take():
            assert isinstance(move, Demote), "nothing else was asked for"
            self._core.answer(Copied(move.number))
