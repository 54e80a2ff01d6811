"""Promotions that come in groups of layers, and prompts that are computed before the last group has arrived."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import SamplingParams
from engine.layer_groups import layer_groups
from kvstore.block import BlockLayout
from kvstore.layers import Gate
from tests.engine.engines import BLOCK, GREEDY, engine_on, open_engine, tokens
from tiering.transfer.cpu import CpuDevice

PROMPT = tokens(0, 330)
CACHED = 330 // BLOCK * BLOCK


def layout(num_layers, kv_heads=1):
    return BlockLayout(num_layers=num_layers, num_kv_heads=kv_heads, head_dim=64, dtype="bfloat16")


@given(st.integers(1, 40), st.integers(1, 50))
def test_groups_are_the_whole_block_in_nearly_equal_parts(num_layers, num_groups):
    block = layout(num_layers)
    groups = layer_groups(block, num_groups, "cpu")
    layer_bytes = block.block_bytes // num_layers
    assert [part.start for part in groups.parts] == [start * layer_bytes for start in groups.starts]
    assert [part.stop for part in groups.parts] == [
        *(part.start for part in groups.parts[1:]),
        block.block_bytes,
    ]
    sizes = [(part.stop - part.start) // layer_bytes for part in groups.parts]
    assert len(sizes) == min(num_groups, num_layers)
    assert max(sizes) - min(sizes) <= 1


def test_auto_makes_groups_on_cuda_that_are_worth_a_copy():
    assert layer_groups(layout(30), "auto", "cpu").starts == (0,)
    assert layer_groups(layout(30, kv_heads=3), "auto", "cuda").starts == (0, 7, 15, 22)
    assert layer_groups(layout(2), "auto", "cuda").starts == (0,), "a block of 8 KiB"


class LateDevice(CpuDevice):
    """Copies up, but later layers than the first only once a step waits for them, and then maybe not well."""

    def __init__(self, gate, *, fails=False) -> None:
        super().__init__()
        self.gate, self.fails, self.up = gate, fails, None

    def stream(self, name):
        stream = super().stream(name)
        self.up = stream if name == "up" else self.up
        return stream

    def copy(self, stream, destination, destination_slots, source, source_slots, part):
        if stream is self.up and part.start:
            stream.put(self.late)
        super().copy(stream, destination, destination_slots, source, source_slots, part)

    def late(self):
        self.gate.wait()
        if self.fails:
            raise OSError("the later layers have got lost")

    def wait(self, stream, event):
        if stream is self.compute:
            self.gate.open()
        super().wait(stream, event)


def with_late_layers(gate, **how):
    def wrap(device):
        device.close()
        return LateDevice(gate, **how)

    return {"wrap_device": wrap, "layer_groups": 3}


@pytest.mark.parametrize("deterministic", [False, True], ids=["default", "deterministic"])
@pytest.mark.parametrize("tier", ["host", "disk"])
def test_a_prompt_is_computed_while_its_later_layers_are_still_on_their_way(
    tiny_llama_dir, tmp_path, reference, tier, deterministic
):
    gate = Gate()
    with engine_on(tiny_llama_dir, tmp_path, deterministic=deterministic, **with_late_layers(gate)) as engine:
        right = engine.generate(PROMPT, GREEDY).token_ids
        engine.demote(tier)
        if tier == "disk":  # several reads, of which the last is the one that is begun early with
            gate.open()
        result = engine.submit(PROMPT, GREEDY).result(60)
        assert result.usage.cached_by_tier[tier] == CACHED
        assert result.token_ids == right == reference(PROMPT)
        if tier == "host":
            assert engine.stats()["engine"]["early_prefills"] == 1
        assert engine.stats()["engine"]["void_prefills"] == 0
        assert result.timings.ttft_s > 0


def test_what_was_computed_from_layers_that_never_came_is_computed_again(tiny_llama_dir, reference):
    gate = Gate()
    with engine_on(tiny_llama_dir, **with_late_layers(gate, fails=True)) as engine:
        engine.warm(PROMPT)
        engine.demote("host")
        draws = SamplingParams(max_tokens=12, ignore_eos=True, temperature=1.0, seed=5)
        result = engine.submit(PROMPT, GREEDY).result(60)
        assert engine.stats()["engine"]["void_prefills"] == 1
        assert engine.stats()["engine"]["early_prefills"] == 0
        assert result.token_ids == reference(PROMPT)
        assert result.usage.cached_tokens == 0
        engine.check()
        # dice that were thrown for nothing would show
        gate.shut()
        engine.demote("host")
        again = engine.submit(PROMPT, draws).result(60)
        assert engine.stats()["engine"]["void_prefills"] == 2
        assert again.token_ids == engine.generate(PROMPT, draws).token_ids


def test_nobody_waits_for_somebody_elses_layers(tiny_llama_dir, reference):
    """As long as there is anything to compute, a prompt whose layers are still on their way is left alone."""
    gate = Gate()
    with engine_on(tiny_llama_dir, **with_late_layers(gate)) as engine:
        engine.warm(PROMPT)
        engine.demote("host")
        other = engine.submit(tokens(1, 40), SamplingParams(max_tokens=200, ignore_eos=True))
        while engine.stats()["engine"]["generated_tokens"] < 2:
            engine.lookup([1, 2, 3])  # answered between two steps
        late = engine.submit(PROMPT, GREEDY)
        assert len(other.result(60).token_ids) == 200
        assert not late.done
        assert late.result(60).token_ids == reference(PROMPT)
        assert engine.stats()["engine"]["early_prefills"] == 1


def test_a_load_lasts_until_all_has_arrived_where_nothing_was_computed_before(tiny_llama_dir):
    """What is left of the prompt takes more than one step, so that it does not begin early."""
    gate = Gate()
    with engine_on(tiny_llama_dir, **with_late_layers(gate)) as engine:
        engine.warm(PROMPT)
        engine.demote("host")
        handle = engine.submit(PROMPT + tokens(1, 300), GREEDY)
        assert gate.wait_until_reached(60)
        engine.lookup(PROMPT)  # answered between two turns: the loop has looked at what is arriving
        opened_s = time.monotonic()
        gate.open()
        handle.result(60)
        assert handle._request.marks.loaded_s >= opened_s
        assert engine.stats()["engine"]["early_prefills"] == 0


def test_books_that_do_not_agree_are_nobodys_error_but_the_engines(tiny_llama_dir, monkeypatch):
    def finish(_):
        raise AssertionError("a slot has two owners")

    engine = open_engine(tiny_llama_dir, **with_late_layers(Gate()))
    engine.warm(PROMPT)
    engine.demote("host")
    monkeypatch.setattr(engine._cache, "finish", finish)
    assert engine.submit(PROMPT, GREEDY).result(60).finish_reason == "error"
    assert "two owners" in engine._loop.failure
    engine.close()


def test_prompts_that_arrive_together_are_computed_one_after_the_other(tiny_llama_dir, reference):
    prompts = [tokens(seed, 100) for seed in range(3)]
    with engine_on(tiny_llama_dir, **with_late_layers(Gate())) as engine:
        for prompt in prompts:
            engine.warm(prompt)
        engine.demote("host")
        results = engine.generate(prompts, GREEDY)
        assert [result.token_ids for result in results] == [reference(prompt) for prompt in prompts]
        assert engine.stats()["engine"]["early_prefills"] >= 1
        assert engine.stats()["engine"]["void_prefills"] == 0
