"""The pool's memory is ready before it is used, however early it was begun."""

import dataclasses
import mmap
import threading

import pytest

from engine import EngineConfig
from engine import pool_memory as module
from engine.dtypes import torch_dtype
from engine.model import Model
from engine.out_of_memory import OutOfMemory
from engine.pool_memory import PoolMemory
from engine.supported import shape_of
from kvstore.disk.page_cache import pages_absent
from kvstore.host import HostSlab
from kvstore.pages import Taking
from tests.engine.engines import engine_on, open_engine

SHAPE = shape_of(
    {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
    }
)
LAYOUT = SHAPE.layout("bfloat16", 16)
NUM_SLOTS = 500


def memory_of(num_bytes: int | str) -> PoolMemory:
    config = EngineConfig(device="cpu", device_bytes=num_bytes)
    return PoolMemory(config, config.resolve())


def absent(pool) -> int:
    """Pages of its slots that nobody has taken from the system."""
    return pages_absent(pool.address, pool.num_slots * pool.block_bytes)


@pytest.fixture
def memory():
    with memory_of(NUM_SLOTS * LAYOUT.block_bytes) as memory:
        yield memory


def test_it_is_ready_when_it_was_begun_before_the_weights(memory):
    memory.before_weights(SHAPE)
    with memory.pool(LAYOUT, NUM_SLOTS) as pool:
        memory.wait()
        pool.check()
        assert pool.num_slots == NUM_SLOTS
        assert memory.taken_bytes == NUM_SLOTS * LAYOUT.block_bytes
        assert not absent(pool)


def test_it_is_ready_when_it_was_not(memory):
    assert not memory.taken_bytes
    with memory.pool(LAYOUT, NUM_SLOTS - 3) as pool:
        memory.wait()
        assert pool.num_slots == NUM_SLOTS - 3
        assert not absent(pool)


@pytest.mark.parametrize("may_be_used", [False, True])
def test_pages_that_may_not_be_used_while_they_are_taken_are_waited_for(memory, may_be_used, monkeypatch):
    """By an old kernel they are taken by writing to them what is there, which may be somebody's KV a moment later."""
    waits, wait = [], Taking.wait
    monkeypatch.setattr("kvstore.pages.populated", lambda *_: may_be_used)
    monkeypatch.setattr(Taking, "wait", lambda taking: (waits.append(1), wait(taking)))
    memory.before_weights(SHAPE)
    with memory.pool(LAYOUT, NUM_SLOTS) as pool:
        assert len(waits) == (not may_be_used)
        assert may_be_used or not absent(pool)


def test_a_smaller_pool_gives_the_rest_back(memory):
    memory.before_weights(SHAPE)
    memory.wait()
    with memory.pool(LAYOUT, 99) as pool:
        memory.wait()
        assert pool.num_slots == 99
        assert not absent(pool)
        rest = (NUM_SLOTS - 99) * LAYOUT.block_bytes
        assert pages_absent(pool.address + 100 * LAYOUT.block_bytes, rest) == rest // mmap.PAGESIZE


def test_it_does_not_become_larger_than_it_was_begun(memory):
    memory.before_weights(SHAPE)
    assert memory.pool(LAYOUT, NUM_SLOTS + 1).num_slots == NUM_SLOTS


def test_other_blocks_than_the_config_made_one_think_are_begun_anew(memory):
    other = dataclasses.replace(LAYOUT, num_layers=3)
    memory.before_weights(SHAPE)
    with memory.pool(other, 300) as pool:
        memory.wait()
        assert pool.layout == other
        assert not absent(pool)


def test_a_pool_that_might_leave_too_little_for_the_weights_waits(memory, monkeypatch):
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 3 * NUM_SLOTS * LAYOUT.block_bytes)
    memory.before_weights(SHAPE)
    assert memory._pages is None


def test_no_memory_is_told_with_what_to_lower(monkeypatch):
    """Before weights are loaded: test_out_of_memory has it behind them."""
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 1 << 60)
    with (
        memory_of("1024TiB") as memory,
        pytest.raises(OutOfMemory, match=r"for a pool of \d+ blocks: lower device_bytes \(now 1024.0 TiB\)"),
    ):
        memory.before_weights(SHAPE)


def test_closing_leaves_pools_alone(memory):
    memory.before_weights(SHAPE)
    pool = memory.pool(LAYOUT, NUM_SLOTS)
    memory.close()
    memory.close()
    pool.view(3)[:] = 7
    assert pool.view(3).min() == 7


def test_what_is_taken_already_is_the_pools_share_still(monkeypatch):
    """Weights are loaded beside it: what "auto" comes to must not hang on how far that went."""
    monkeypatch.setattr("engine.config.available_memory_bytes", lambda: 1000 << 20)
    config = EngineConfig(device="cpu")
    before = config.resolve()
    monkeypatch.setattr("engine.config.available_memory_bytes", lambda: 900 << 20)
    assert config.resolve(100 << 20) == before


def test_an_engine_has_begun_before_weights_are_loaded_and_goes_on_behind_its_start(
    tiny_llama_dir, monkeypatch
):
    """Not while all cores pack and warm up; and host memory comes after it."""
    events = []

    def noted(call):
        return lambda *given, **more: (events.append(call.__name__), call(*given, **more))[1]

    for name in ("before_weights", "resting", "wait"):
        monkeypatch.setattr(PoolMemory, name, noted(getattr(PoolMemory, name)))
    monkeypatch.setattr("engine.model.torch_dtype", noted(torch_dtype))  # asked for weights
    monkeypatch.setattr(Model, "warm_up", noted(Model.warm_up))
    monkeypatch.setattr(HostSlab, "prefault", noted(HostSlab.prefault))
    with engine_on(tiny_llama_dir, host_bytes="128MiB") as engine:
        while events.count("prefault") < 4:
            pass
        assert not absent(engine._tiers.pool)
    order = ["before_weights", "torch_dtype", "resting", "warm_up", "prefault", "wait", "prefault"]
    assert list(dict.fromkeys(events)) == list(dict.fromkeys(order))


def test_an_engine_that_ends_soon_does_not_take_all_of_its_pool_first(tiny_llama_dir, monkeypatch):
    """Which takes a second for every few gigabytes, and host memory waits for it."""
    ended, did_end = threading.Event(), []
    close = Taking.close
    monkeypatch.setattr(Taking, "wait", lambda _: did_end.append(ended.wait(10)))
    monkeypatch.setattr(Taking, "close", lambda taking: (close(taking), ended.set()))
    with engine_on(tiny_llama_dir, host_bytes="128MiB"):
        assert not did_end
    assert did_end == [True]


def test_no_memory_before_the_weights_is_told_as_such(tiny_llama_dir, monkeypatch):
    """And not as a model that cannot be loaded."""
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 1 << 60)
    with pytest.raises(OutOfMemory, match=r"for a pool of \d+ blocks: lower device_bytes \(now 1024.0 TiB\)"):
        open_engine(tiny_llama_dir, device_bytes="1024TiB")
