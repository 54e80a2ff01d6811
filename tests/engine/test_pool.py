"""The pool's two faces, bytes by slot and tensors by layer, are one memory."""

import numpy as np
import pytest
import torch

from engine.pool import DevicePool
from kvstore.block import BlockLayout

LAYOUT = BlockLayout(num_layers=3, num_kv_heads=2, head_dim=8, dtype="bfloat16", block_tokens=16)


def test_a_slot_is_one_run_of_bytes_over_all_layers():
    with DevicePool(LAYOUT, 4) as pool:
        pool.check()
        for layer in range(3):
            pool.layer_view(layer)[2] = layer + 1
        values = torch.from_numpy(pool.view(2).copy()).view(torch.bfloat16).view(LAYOUT.shape)
        assert pool.view(2).shape == (LAYOUT.block_bytes,)
        assert [values[layer].unique().tolist() for layer in range(3)] == [[1], [2], [3]]
        assert not pool.view(1).any()
        assert not pool.view(3).any()


def test_bytes_written_to_a_slot_are_seen_by_the_layers():
    pool = DevicePool(LAYOUT, 2)
    block = torch.arange(LAYOUT.block_bytes // 2).to(torch.bfloat16).view(LAYOUT.shape)
    pool.view(1)[:] = block.view(-1).view(torch.uint8).numpy()
    assert torch.equal(pool.layer_view(2)[1], block[2])


def test_the_scratch_slot_is_not_given_out():
    pool = DevicePool(LAYOUT, 2)
    assert pool.scratch == 2
    assert pool.layer_view(0).shape == (3, *LAYOUT.shape[1:])
    with pytest.raises(IndexError, match="outside"):
        pool.view(pool.scratch)
    with pytest.raises(ValueError, match="at least one"):
        DevicePool(LAYOUT, 0)


def test_slots_are_copied_one_by_one():
    """A gathered copy of all of them would take memory of its own: a forked prompt may have thousands."""
    pool = DevicePool(LAYOUT, 4)
    for slot in range(4):
        pool.view(slot)[:] = slot
    pool.copy([0, 1], [3, 2])
    assert [np.unique(pool.view(slot)).tolist() for slot in range(4)] == [[0], [1], [1], [0]]
    with pytest.raises(ValueError, match="zip"):
        pool.copy([0, 1], [3])


def test_closing_twice_is_safe_and_a_view_outlives_it():
    pool = DevicePool(LAYOUT, 2)
    view = pool.view(0)
    pool.close()
    pool.close()
    view[:] = 7
    assert np.all(view == 7)
    with pytest.raises(AssertionError, match="closed"):
        pool.view(0)
