"""What attention reads of a layer: the blocks that it names, cast, in memory that it may change."""

import pytest
import torch

from engine.gather import Gather
from engine.pool import DevicePool
from kvstore.block import BlockLayout


@pytest.fixture(params=["bfloat16", "float32"])
def layer(request: pytest.FixtureRequest) -> torch.Tensor:
    layout = BlockLayout(num_layers=3, num_kv_heads=2, head_dim=8, dtype=request.param, block_tokens=4)
    layer = DevicePool(layout, 9).layer_view(1)
    layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(0)))
    return layer


def plain(layer: torch.Tensor, blocks: list[int]) -> torch.Tensor:
    """The same, token by token."""
    tokens = [layer[slot, :, offset].float() for slot in blocks for offset in range(layer.shape[2])]
    return torch.stack(tokens, dim=2)


def test_a_read_is_what_the_blocks_hold(layer):
    """Whatever was read before: more, less, or another part."""
    gather = Gather(torch.device("cpu"))
    for blocks in ([3, 1, 7], [0], [8, 2, 2, 5, 4], [6, 1], []):
        assert torch.equal(
            gather.read("own", layer, torch.tensor(blocks, dtype=torch.int64), torch.float32),
            plain(layer, blocks) if blocks else torch.empty(2, 2, 0, 8),
        )


def test_parts_of_one_call_do_not_meet(layer):
    """And what is changed in them is changed nowhere else."""
    gather, stored = Gather(torch.device("cpu")), layer.clone()
    own, shared = (
        gather.read(part, layer, torch.tensor(blocks), torch.float32)
        for part, blocks in (("own", [3, 1, 7]), ("shared", [3, 5, 2]))
    )
    own.fill_(float("nan"))
    assert torch.equal(shared, plain(layer, [3, 5, 2]))
    assert torch.equal(layer, stored)
    assert torch.equal(gather.read("own", layer, torch.tensor([3]), torch.float32), plain(layer, [3]))


def test_memory_is_taken_when_more_is_needed_and_else_kept(layer):
    """A context that grows by a block now and then does not take other memory each time."""
    gather = Gather(torch.device("cpu"))
    held, taken = 0, 0
    for num_blocks in [*range(1, 9), 3, 8]:
        gather.read("own", layer, torch.arange(num_blocks), torch.float32)
        taken += gather.kept_bytes != held
        held = gather.kept_bytes
    assert taken < 8
    block_bytes = layer[0].numel() * (layer.element_size() + 4)
    assert 8 * block_bytes <= held <= 10 * block_bytes
