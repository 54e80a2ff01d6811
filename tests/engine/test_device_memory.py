"""The pool takes its share of what is left beside the model and the largest step, which is computed for real."""

from typing import Any

import pytest
import torch

from engine.batch import build_batch
from engine.calls import PrefillCall
from engine.config import EngineConfig
from engine.device_memory import CudaMeter, largest_step, left_beside, measured_pool_bytes, run_step
from engine.engine import Engine
from engine.model import Model, random_model
from engine.out_of_memory import OutOfMemory
from engine.pool import DevicePool
from engine.sampling import ROWS_AT_ONCE, Draw, choose
from engine.step_size import StepSize
from kvstore.block import BlockLayout
from tests.engine.families import CASES

LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=4, dtype="float32", block_tokens=16)
SIZES = [
    StepSize(prompt_tokens=256, context_tokens=1000, num_seqs=5),
    StepSize(prompt_tokens=1024, context_tokens=300, num_seqs=8),  # takes several prompts
    StepSize(prompt_tokens=1024, context_tokens=300, num_seqs=2),  # has too few
    StepSize(prompt_tokens=128, context_tokens=128, num_seqs=1),
    StepSize(prompt_tokens=17, context_tokens=16, num_seqs=4),
    StepSize(prompt_tokens=5, context_tokens=1, num_seqs=20),
]
MIB = 1 << 20


class Meter:
    """A device of numbers: what the step takes is said, not measured."""

    def __init__(self, *, free: int, model: int = 0, step: int = 0, stays: int = 0) -> None:
        """`stays`: what of the step remains allocated."""
        self.free, self.allocated, self.step, self.stays = free, model, step, stays
        self.calls: list[str] = []

    def free_bytes(self) -> int:
        self.calls.append("free")
        # the step has been computed, if at all, before the second look
        return self.free - (self.stays if "peak" in self.calls else 0)

    def allocated_bytes(self) -> int:
        self.calls.append("allocated")
        return self.allocated

    def peak_bytes(self) -> int:
        self.calls.append("peak")
        return self.allocated + self.step

    def reset_peak(self) -> None:
        self.calls.append("reset peak")

    def empty_cache(self) -> None:
        self.calls.append("empty cache")

    def run(self, most_tokens: int) -> None:
        self.calls.append(f"run {most_tokens}")


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(CASES["llama"].config())


# ---- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_of_that_size_is_a_legal_batch_on_the_scratch_slot(size, apart, deterministic):
    """Batch.check, save that all rows write to the scratch slot."""
    pool = DevicePool(LAYOUT, 4)
    batch = build_batch(size.chunks(pool, apart=apart), pool, deterministic=deterministic, windows=[None, 40])
    assert set(batch.slots.tolist()) == {pool.scratch}
    assert batch.num_logits == size.num_seqs
    assert int(batch.positions.max()) == size.context_tokens - 1
    for calls in batch.calls.values():
        rows = [row for call in calls for row in range(call.rows.start, call.rows.stop)]
        assert rows == list(range(batch.num_tokens))
        prompts = [call for call in calls if isinstance(call, PrefillCall)]
        num_prompt_tokens = sum(call.rows.stop - call.rows.start for call in prompts)
        assert num_prompt_tokens == min(size.prompt_tokens, size.num_seqs * size.context_tokens)
        assert batch.num_tokens == num_prompt_tokens + size.num_seqs - len(prompts)


def test_the_longest_prompt_is_gathered_whole():
    pool = DevicePool(LAYOUT, 4)
    prompt, *_ = build_batch(SIZES[0].chunks(pool), pool).calls[None]
    assert len(prompt.blocks) == -(-1000 // 16)
    assert prompt.rows == slice(0, 256)


def test_decodes_share_all_or_nothing():
    """Sharing takes memory for the scores of all, not sharing for the keys and values of all."""
    pool = DevicePool(LAYOUT, 4)
    shared, apart = (build_batch(SIZES[0].chunks(pool, apart=way), pool).calls[None] for way in (False, True))
    assert [(len(call.shared), len(call.blocks)) for call in shared[1:]] == [(62, 4)]
    assert [(len(call.shared), len(call.blocks)) for call in apart[1:]] == [(0, 4 * 63)]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe, window", "gemma3_text, window in some layers"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("size", [*SIZES, None])
def test_warming_up_writes_to_the_scratch_slot_alone(family, deterministic, size):
    model = random_model(CASES[family].config())
    with DevicePool(model.layout("float32", 16), 4) as pool:
        logits = model.warm_up(pool, size, deterministic=deterministic)
        assert logits.shape == (4 if size is None else size.num_seqs, model.vocab_size)
        assert logits.isfinite().all()
        assert not any(pool.view(slot).any() for slot in range(4))
        assert pool.layer_view(0)[pool.scratch].any()


def test_the_largest_step_is_bounded_by_model_configuration_and_memory(model):
    config = EngineConfig(max_batch_tokens=256, max_num_seqs=3)
    assert largest_step(model, config, 10**9) == StepSize(prompt_tokens=256, context_tokens=4096, num_seqs=3)
    assert largest_step(model, config, 160).context_tokens == 160


@pytest.mark.parametrize("deterministic", [False, True])
def test_as_many_tokens_are_drawn_as_are_ever_drawn_together(model, monkeypatch, deterministic):
    drawn, ways = [], []
    batch = model.batch

    def draw(logits: torch.Tensor, draws: list[Draw]) -> None:
        drawn.append((logits.shape, len(draws), draws[0].params.penalises, draws[0].params.temperature > 0))
        choose(logits, draws)

    monkeypatch.setattr("engine.device_memory.choose", draw)
    monkeypatch.setattr(model, "batch", lambda *args, **how: ways.append(how) or batch(*args, **how))
    run_step(model, model.layout("bfloat16", 16), SIZES[0], deterministic=deterministic)
    assert drawn == [((ROWS_AT_ONCE, model.vocab_size), ROWS_AT_ONCE, True, True)]
    assert [way["deterministic"] for way in ways] == [deterministic] * 2, (
        "decodes that share, and decodes that do not"
    )


# ---- the measurement -------------------------------------------------------------------------------------------------


def test_gaps_are_given_back_before_and_after_and_the_peak_is_the_steps_own():
    meter = Meter(free=100 * MIB, model=50 * MIB, step=30 * MIB, stays=10 * MIB)
    left, peak = left_beside(meter.run, meter, LAYOUT, 0.5)
    assert meter.calls == [
        *("empty cache", "free", "allocated", "reset peak"),
        f"run {50 * MIB // LAYOUT.block_bytes * 16}",
        *("peak", "empty cache", "free"),
    ]
    assert (left, peak) == ((90 - 30) * MIB // 2, 30 * MIB)


def test_a_step_that_takes_more_than_is_left_leaves_nothing():
    meter = Meter(free=10 * MIB, step=30 * MIB)
    assert left_beside(meter.run, meter, LAYOUT, 1.0)[0] == 0


def test_a_step_is_tried_where_not_even_a_block_seems_to_fit():
    meter = Meter(free=1)
    left_beside(meter.run, meter, LAYOUT, 1.0)
    assert "run 16" in meter.calls


@pytest.mark.parametrize("fraction", [0.25, 0.9, 1.0])
def test_the_pool_takes_whole_blocks_of_its_fraction(model, fraction):
    layout = model.layout("bfloat16", 16)
    config = EngineConfig(device_memory_fraction=fraction, max_batch_tokens=64)
    meter = Meter(free=4 * MIB, step=MIB)
    size = measured_pool_bytes(model, layout, config, meter)
    assert size % layout.block_bytes == 0
    assert 0 <= fraction * 3 * MIB - size < layout.block_bytes


def test_where_no_block_fits_the_error_says_what_to_lower(model):
    config = EngineConfig(max_batch_tokens=64, max_num_seqs=2)
    meter = Meter(free=4 * MIB, step=4 * MIB - 100)
    with pytest.raises(OutOfMemory) as raised:
        measured_pool_bytes(model, model.layout("bfloat16", 16), config, meter)
    assert str(raised.value) == (
        "there is no memory for a block pool: beside the model 4.0 MiB are free, and the largest step takes 4.0 MiB of "
        "that; lower max_batch_tokens (now 64), max_num_seqs (now 2) or max_model_len (now None)"
    )


def test_a_step_without_memory_says_what_to_lower(model, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(OutOfMemory, match="for the largest step beside the model: lower max_batch_tokens"):
        measured_pool_bytes(model, model.layout("bfloat16", 16), EngineConfig(), Meter(free=4 * MIB))


def test_an_engine_makes_the_pool_that_was_measured(model, monkeypatch):
    """As on CUDA; the device is the CPU, and its memory numbers."""
    seen: dict[str, Any] = {}

    def warm_up(self: Model, pool: DevicePool, size: StepSize | None = None, **more: object) -> torch.Tensor:
        seen[f"{size}"] = pool.num_slots
        return sound(self, pool, size, **more)

    sound = Model.warm_up
    monkeypatch.setattr(Model, "warm_up", warm_up)
    monkeypatch.setattr("engine.config.EngineConfig._device_bytes", lambda *_: None)
    monkeypatch.setattr("engine.tiers.CudaMeter", lambda: Meter(free=4 * MIB, step=MIB))
    config = EngineConfig(device="cpu", host_bytes=0, max_batch_tokens=64, device_memory_fraction=0.5)
    num_slots = 3 * MIB // 2 // model.layout("bfloat16", 16).block_bytes
    with Engine(model, config, announce=lambda _: None) as engine:
        assert engine.stats()["cache"]["tiers"]["device"]["slots"] == num_slots
        assert len(engine.generate([1, 2, 3]).token_ids) > 0
    most_tokens = 2 * MIB // model.layout("bfloat16", 16).block_bytes * 16
    step = StepSize(prompt_tokens=64, context_tokens=min(4096, most_tokens), num_seqs=8)
    assert list(seen) == [f"{step}", "None"], "the largest step first, then the pool, small"
    assert seen["None"] == num_slots


def test_a_pool_of_stated_size_is_not_measured(model, monkeypatch):
    monkeypatch.setattr("engine.tiers.measured_pool_bytes", lambda *_: 1 / 0)
    for device_bytes in ("1MiB", "auto"):
        config = EngineConfig(device="cpu", device_bytes=device_bytes, host_bytes=0)
        Engine(model, config, announce=lambda _: None).close()


def test_on_cuda_only_a_measurement_says_what_auto_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert EngineConfig(device="cuda").resolve().device_bytes is None
    assert EngineConfig(device="cuda", device_bytes="1MiB").resolve().device_bytes == MIB


def test_what_torch_keeps_and_does_not_use_is_free(monkeypatch):
    for name, value in {"mem_get_info": (1000, 5000), "memory_reserved": 70, "memory_allocated": 30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert CudaMeter().free_bytes() == 1000 + 70 - 30
