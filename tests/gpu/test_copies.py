"""The mover over CUDA streams and page-locked memory: the bytes that arrive are the bytes that left."""

import numpy as np
import pytest

from kvstore.block import BlockLayout
from kvstore.host import HostSlab
from tiering.transfer.mover import WHOLE_SLOT, Mover

pytestmark = pytest.mark.gpu

LAYOUT = BlockLayout(num_layers=30, num_kv_heads=3, head_dim=64, dtype="bfloat16")
NUM_SLOTS = 64
LAYER_BYTES = LAYOUT.block_bytes // LAYOUT.num_layers
TWO_GROUPS = (slice(0, 4 * LAYER_BYTES), slice(4 * LAYER_BYTES, LAYOUT.block_bytes))


def wait_for(mover, number: int) -> None:
    """Poll until a transfer has ended; its error is raised."""
    while True:
        for ended in mover.poll():
            if ended.error is not None:
                raise ended.error
            if ended.number == number:
                return


@pytest.mark.parametrize("groups", [(WHOLE_SLOT,), TWO_GROUPS], ids=["whole", "two groups"])
def test_blocks_come_back_byte_for_byte(groups):
    """Nobody polls before the step looks: it has the events of the copy to wait for, and nothing else."""
    import torch

    from engine.pool import DevicePool
    from tiering.transfer.cuda import CudaDevice, registered

    order = np.random.default_rng(0).permutation(NUM_SLOTS).tolist()
    slab = HostSlab(NUM_SLOTS, LAYOUT.block_bytes)
    with DevicePool(LAYOUT, NUM_SLOTS, "cuda") as pool, registered(slab):
        mover = Mover(CudaDevice(), pool, slab, wake=lambda: None, groups=groups)
        expected = []
        for slot in range(NUM_SLOTS):
            pool.view(slot).copy_(torch.randint(0, 256, (LAYOUT.block_bytes,), dtype=torch.uint8))
            expected.append(pool.view(slot).cpu().numpy().copy())
        mover.before_compute([], range(NUM_SLOTS))
        mover.after_compute()
        mover.submit_demote(1, range(NUM_SLOTS), order)
        wait_for(mover, 1)
        assert all(np.array_equal(slab.view(order[slot]), expected[slot]) for slot in range(NUM_SLOTS))
        for slot in range(NUM_SLOTS):
            pool.view(slot).zero_()
        mover.after_compute()
        mover.submit_promote(2, order, range(NUM_SLOTS))
        seen = torch.zeros((NUM_SLOTS, LAYOUT.block_bytes), dtype=torch.uint8, device="cuda")
        for number, group in enumerate(groups):
            mover.before_compute(range(NUM_SLOTS), [], number)
            for slot in range(NUM_SLOTS):
                seen[slot, group] = pool.view(slot)[group]
        mover.after_compute()
        arrived = seen.cpu().numpy()
        assert all(np.array_equal(arrived[slot], expected[slot]) for slot in range(NUM_SLOTS))
        wait_for(mover, 2)
        mover.close()
    slab.close()
