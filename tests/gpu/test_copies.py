"""The mover over CUDA streams and page-locked memory: the bytes that arrive are the bytes that left."""

import numpy as np
import pytest
import torch

from engine.pool import DevicePool
from engine.tiers import compute_stream
from kvstore.block import BlockLayout
from kvstore.host import HostSlab
from tiering.transfer.cuda import CudaDevice
from tiering.transfer.mover import WHOLE_SLOT, Ended, Mover
from tiering.transfer.opening import HostOpening
from tiering.transfer.page_locks import PageLocks
from tiering.transfer.runtime import cupy_runtime
from tiering.transfer.staged import StagedCudaDevice

pytestmark = pytest.mark.gpu

LAYOUT = BlockLayout(num_layers=30, num_kv_heads=3, head_dim=64, dtype="bfloat16")
NUM_SLOTS = 64
LAYER_BYTES = LAYOUT.block_bytes // LAYOUT.num_layers
TWO_GROUPS = (slice(0, 4 * LAYER_BYTES), slice(4 * LAYER_BYTES, LAYOUT.block_bytes))


def wait_for(mover, number: int) -> None:
    """Poll until a transfer has ended; its error is raised."""
    while True:
        for ended in (news for news in mover.poll() if isinstance(news, Ended)):
            if ended.error is not None:
                raise ended.error
            if ended.number == number:
                return


@pytest.mark.parametrize("groups", [(WHOLE_SLOT,), TWO_GROUPS], ids=["whole", "two groups"])
@pytest.mark.parametrize("kind", [CudaDevice, StagedCudaDevice])
@pytest.mark.parametrize("adjacent", [False, True], ids=["scattered", "adjacent"])
def test_blocks_come_back_byte_for_byte(kind, groups, adjacent):
    """Nobody polls before the step looks: it has the events of the copy to wait for, and nothing else."""
    runtime = cupy_runtime()
    everything = range(NUM_SLOTS)
    order = list(everything) if adjacent else np.random.default_rng(0).permutation(NUM_SLOTS).tolist()
    locks = PageLocks(runtime)
    slab = HostSlab(NUM_SLOTS, LAYOUT.block_bytes, piece_bytes=8 * LAYOUT.block_bytes)
    lock = locks.lock if kind is CudaDevice else None
    with DevicePool(LAYOUT, NUM_SLOTS, "cuda") as pool, HostOpening(slab, NUM_SLOTS, lock):
        mover = Mover(kind(runtime, compute_stream), pool, slab, wake=lambda: None, groups=groups)
        expected = []
        for slot in everything:
            pool.view(slot).copy_(torch.randint(0, 256, (LAYOUT.block_bytes,), dtype=torch.uint8))
            expected.append(pool.view(slot).cpu().numpy().copy())
        mover.before_compute([], everything)
        mover.after_compute()
        mover.submit_demote(1, everything, order)
        wait_for(mover, 1)
        assert all(np.array_equal(slab.view(order[slot]), expected[slot]) for slot in everything)
        for slot in everything:
            pool.view(slot).zero_()
        mover.after_compute()
        mover.submit_promote(2, order, everything)
        seen = torch.zeros((NUM_SLOTS, LAYOUT.block_bytes), dtype=torch.uint8, device="cuda")
        for number, group in enumerate(groups):
            mover.before_compute(everything, [], number)
            for slot in everything:
                seen[slot, group] = pool.view(slot)[group]
        mover.after_compute()
        arrived = seen.cpu().numpy()
        assert all(np.array_equal(arrived[slot], expected[slot]) for slot in everything)
        wait_for(mover, 2)
        mover.close()
        locks.unlock_all()
    slab.close()
