"""The block pool on CUDA is slot memory like any other."""

import pytest
import torch

from engine.pool import DevicePool
from kvstore.block import BlockLayout
from kvstore.slot_laws import CLOSING_LAWS, SLOT_LAWS

pytestmark = pytest.mark.gpu

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=1, head_dim=8, dtype="bfloat16", block_tokens=4)


@pytest.mark.parametrize("law", SLOT_LAWS + CLOSING_LAWS, ids=lambda law: law.__name__)
def test_law(law):
    law(DevicePool(LAYOUT, 3, "cuda"))


def test_it_has_the_same_faces_as_on_a_cpu():
    pool = DevicePool(LAYOUT, 2, "cuda")
    pool.check()
    pool.layer_view(1)[0] = 5
    assert pool.view(0).is_cuda
    assert pool.view(0).view(torch.bfloat16).view(LAYOUT.shape)[1].eq(5).all()
