"""What attention reads of a layer: the blocks that it names, cast, in memory that it may change."""

import weakref

import pytest
import torch

import engine.gather
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


def memory_of(gather: Gather, layer: torch.Tensor, num_blocks: int) -> "weakref.ref[torch.Tensor]":
    """What a read of so many blocks was into, as long as it is kept."""
    read = gather.read("own", layer, torch.arange(num_blocks), torch.float32)
    assert read._base is not None
    return weakref.ref(read._base)


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
    held, num_taken = None, 0
    for num_blocks in [*range(1, 9), 3, 8]:
        memory = memory_of(gather, layer, num_blocks)
        num_taken += memory() is not held
        held = memory()
    assert 1 < num_taken < 8
    block_bytes = 4 * layer[0].numel()
    assert held is not None and 8 * block_bytes <= held.nbytes <= 10 * block_bytes


def test_the_old_memory_goes_before_the_new_is_taken(layer, monkeypatch):
    gather = Gather(torch.device("cpu"))
    old, take = memory_of(gather, layer, 1), torch.empty
    has_gone = []

    def note(*size: int, **more: object):
        has_gone.append(old() is None)
        return take(*size, **more)

    monkeypatch.setattr(torch, "empty", note)
    memory_of(gather, layer, 8)
    assert has_gone == [False, True], "as stored, then the call's own"


def test_no_more_is_kept_than_is_allowed(layer, monkeypatch):
    """A read of more has memory of its own, and is no other read."""
    monkeypatch.setattr(engine.gather, "KEPT_BYTES", 5 * 4 * layer[0].numel())
    gather = Gather(torch.device("cpu"))
    few = memory_of(gather, layer, 5)
    assert few() is not None and few().nbytes == engine.gather.KEPT_BYTES, "nothing to spare"
    blocks = torch.tensor([8, 2, 2, 5, 4, 1])
    assert torch.equal(gather.read("own", layer, blocks, torch.float32), plain(layer, blocks.tolist()))
    assert memory_of(gather, layer, 6)() is None
    assert memory_of(gather, layer, 3)() is few() is not None


def test_a_closed_pool_keeps_nothing():
    layout = BlockLayout(num_layers=1, num_kv_heads=2, head_dim=8, dtype="float32", block_tokens=4)
    pool = DevicePool(layout, 9)
    memory = memory_of(pool.gather, pool.layer_view(0), 3)
    assert memory() is not None
    pool.close()
    assert memory() is None
