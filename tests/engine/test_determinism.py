"""Deterministic mode: the same bits of KV and logits, whatever was cached and whatever else was in the batch."""

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from engine.activation import ALIGNED, AlignedActivation
from engine.model import Model, load_model, random_model
from engine.supported import STABLE_ACTIVATIONS, check_deterministic, shape_of
from tests.engine.families import CASES, DETERMINISTIC, ODD
from tests.engine.naive import Driver, Row, tokens

BLOCK = 16
CUTS = [16, 112, 128, 144, 240, 288, 384, 400]
"""Where hits end: next to, on and between the edges of tiles."""


@pytest.fixture(params=["bfloat16", "float32"])
def kv_dtype(request) -> str:
    return request.param


@pytest.fixture(params=["own kernel", "SDPA"])
def attention(request, monkeypatch) -> None:
    """As on this processor, and as where the kernel has no registers: both are served."""
    if request.param == "SDPA":
        monkeypatch.setattr("engine.lanes.registers", lambda: (0, False))


@pytest.fixture(scope="module")
def tiny(tiny_llama_dir) -> Model:
    return load_model(tiny_llama_dir)


def driver_on(model: Model, kv_dtype: str, num_slots: int = 256) -> Driver:
    """A driver whose slots all hold NaN, as a slot may hold anything before it is written."""
    with model.packing():  # as an engine does
        pass
    driver = Driver(model, num_slots=num_slots, kv_dtype=kv_dtype, deterministic=True)
    for slot in range(num_slots):
        driver.pool.view(slot)[:] = 255  # NaN in every floating-point format
    return driver


def over(driver: Driver, prompt: np.ndarray, cached: Row, *runs: tuple[int, int]) -> Row:
    """A row for `prompt` whose blocks in `runs`, [first, end), are `cached`'s; the others are its own."""
    row = driver.row(prompt)
    for first, end in runs:
        row.slots[first:end] = cached.slots[first:end]
    return row


def kv(driver: Driver, row: Row, num_tokens: int, start: int = 0) -> torch.Tensor:
    """The KV of the row's tokens [start, num_tokens), as its bits."""
    blocks = torch.stack([torch.from_numpy(driver.pool.view(slot)) for slot in row.slots])
    layers, two, block_tokens, *_ = driver.pool.layout.shape
    by_token = blocks.view(len(row.slots), layers, two, block_tokens, -1).permute(0, 3, 1, 2, 4)
    return by_token.flatten(0, 1)[start:num_tokens].clone()


def assert_same(driver: Driver, row: Row, cold: Row, *, start: int = 0, end: int | None = None) -> None:
    end = len(cold.tokens) if end is None else end
    assert torch.equal(kv(driver, row, end, start), kv(driver, cold, end, start))


@pytest.mark.usefixtures("threads")
class TestTiny:
    @pytest.mark.usefixtures("attention")
    def test_a_hit_equals_the_cold_prompt_wherever_it_ends(self, tiny, kv_dtype):
        driver, prompt = driver_on(tiny, kv_dtype, 700), tokens(0, 420)
        cold = driver.row(prompt)
        logits = driver.prefill(cold)
        assert torch.isfinite(logits).all()
        for cut in CUTS:
            row = over(driver, prompt, cold, (0, cut // BLOCK))
            assert torch.equal(driver.prefill(row, cut), logits), cut
            assert_same(driver, row, cold)

    @pytest.mark.parametrize("shared", [20, 130, 256, 300, 383])
    def test_a_prompt_goes_on_from_what_a_shorter_one_left(self, tiny, kv_dtype, shared):
        """The shorter one ends inside a tile: its blocks must be those of a prompt that fills the tile."""
        driver, prompt = driver_on(tiny, kv_dtype), tokens(0, 420)
        cold, short = driver.row(prompt), driver.row(prompt[:shared])
        logits = driver.prefill(cold)
        driver.prefill(short)
        assert_same(driver, short, cold, end=shared)
        whole = shared // BLOCK
        row = over(driver, prompt, short, (0, whole))
        assert torch.equal(driver.prefill(row, whole * BLOCK), logits)
        assert_same(driver, row, cold)

    @pytest.mark.parametrize("hole", [(1, 2), (3, 8), (7, 9), (8, 16), (5, 22)])
    def test_a_hole_between_cached_blocks_is_filled_with_the_same_bits(self, tiny, kv_dtype, hole):
        driver, prompt = driver_on(tiny, kv_dtype), tokens(0, 420)
        cold = driver.row(prompt)
        driver.prefill(cold)
        row = over(driver, prompt, cold, (0, hole[0]), (hole[1], len(cold.slots)))
        driver.forward([row.chunk(hole[0] * BLOCK, hole[1] * BLOCK)])
        assert_same(driver, row, cold)

    def test_far_from_the_start(self, tiny, kv_dtype):
        """Where what all rows of a tile see is attended over apart, with nothing changed for the test."""
        driver, prompt = driver_on(tiny, kv_dtype, 450), tokens(0, 1300)
        cold = driver.row(prompt)
        logits = driver.prefill(cold, 0, 1024)
        for cut in (1008, 1152, 1168, 1296):
            row = over(driver, prompt, cold, (0, cut // BLOCK))
            assert torch.equal(driver.prefill(row, cut), logits), cut
            assert_same(driver, row, cold)

    @pytest.mark.usefixtures("attention")
    def test_the_size_of_chunks_does_not_matter(self, tiny, kv_dtype):
        driver, prompt = driver_on(tiny, kv_dtype), tokens(0, 420)
        cold = driver.row(prompt)
        logits = driver.prefill(cold)
        for chunk_tokens in (37, 100, 256, 512):
            row = driver.row(prompt)
            assert torch.equal(driver.prefill(row, 0, chunk_tokens), logits)
            assert_same(driver, row, cold)

    @pytest.mark.parametrize("suffix", [1, 2, 3, 5, 15])
    def test_a_suffix_of_a_few_tokens(self, tiny, kv_dtype, suffix):
        """The least rows that a prefill can have: without padding, kernels would compute other bits."""
        driver, prompt = driver_on(tiny, kv_dtype), tokens(0, 64 + suffix)
        row = driver.row(prompt)
        logits = driver.prefill(row)
        assert torch.equal(driver.prefill(row, 64), logits)

    def test_nor_what_else_is_in_the_batch(self, tiny, kv_dtype):
        driver, prompt = driver_on(tiny, kv_dtype), tokens(0, 300)
        cold = driver.row(prompt)
        logits = driver.prefill(cold)
        others = [driver.row(tokens(seed, count)) for seed, count in ((1, 5), (2, 200), (3, 128))]
        driver.prefill(others[2])
        row = driver.row(prompt)
        for start, end in ((0, 128), (128, 256), (256, 300)):
            packed = driver.forward(
                [
                    others[0].chunk(0, 5),
                    row.chunk(start, end),
                    others[1].chunk(0, 200),
                    others[2].chunk(127, 128, decode=True),
                ]
            )
        assert torch.equal(packed[1], logits[0])
        assert_same(driver, row, cold)

    def test_replies_are_the_same_after_a_hit_and_beside_others(self, tiny, kv_dtype):
        driver, prompt = driver_on(tiny, kv_dtype), tokens(0, 300)
        cold, other = driver.row(prompt), driver.row(tokens(1, 40))
        hit = over(driver, prompt, cold, (0, 17))
        first, second = driver.prefill(cold), driver.prefill(other)
        assert torch.equal(driver.prefill(hit, 17 * BLOCK), first)
        for _ in range(12):
            cold.tokens.append(int(first.argmax()))
            hit.tokens.append(int(first.argmax()))
            other.tokens.append(int(second.argmax()))
            first = driver.decode([cold])
            both = driver.decode([other, hit])
            assert torch.equal(both[1:], first)
            second = both[:1]


@pytest.mark.parametrize("threads", [1, 2, 5, 16], indirect=True)
def test_sizes_that_no_vector_divides(threads, kv_dtype):
    """Runs of elements and of rows, as they are dealt out to the threads, end in the middle of everything."""
    driver, prompt = driver_on(random_model(CASES["qwen3"].config(**ODD)), kv_dtype, 400), tokens(0, 420)
    cold, other = driver.row(prompt), driver.row(tokens(1, 200))
    logits = driver.prefill(cold, 0, 512)
    for cut in CUTS:
        row = over(driver, prompt, cold, (0, cut // BLOCK))
        packed = driver.forward([row.chunk(cut, 420), other.chunk(0, 100 + cut // BLOCK)])
        assert torch.equal(packed[:1], logits), cut
        assert_same(driver, row, cold)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("name", ["mistral, window", "gemma3_text, window in some layers"])
def test_a_window_that_begins_to_hide_something(name, threads):
    """A prompt that is shorter than the window, alone, beside one that is longer, and as the begin of that."""
    config = CASES[name].config()
    config.sliding_window = 200
    driver, prompt = driver_on(random_model(config), "float32"), tokens(0, 300)
    short, other = driver.row(prompt[:190]), driver.row(tokens(1, 300))
    logits = driver.prefill(short, 0, 512)
    driver.forward([other.chunk(0, 180)])
    beside = driver.row(prompt[:190])
    packed = driver.forward([beside.chunk(0, 190), other.chunk(180, 300)])
    assert torch.equal(packed[:1], logits)
    assert_same(driver, beside, short)
    cold = driver.row(prompt)
    driver.prefill(cold, 0, 512)
    assert_same(driver, short, cold, end=190)


@pytest.mark.parametrize("threads", [2, 5], indirect=True)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_family_that_it_is_offered_for(name, threads):
    """With their windows: hits, a prompt that goes on from a shorter one, other cuts, packed rows, and replies."""
    driver, prompt = driver_on(random_model(CASES[name].config(**ODD)), "float32"), tokens(0, 300)
    cold, short, other = driver.row(prompt), driver.row(prompt[:150]), driver.row(tokens(1, 90))
    logits = driver.prefill(cold, 0, 512)
    assert torch.isfinite(logits).all()
    driver.prefill(short, 0, 37)
    assert_same(driver, short, cold, end=150)
    row = over(driver, prompt, short, (0, 9))
    packed = driver.forward([other.chunk(0, 90), row.chunk(144, 300)])
    assert torch.equal(packed[1:], logits)
    assert_same(driver, row, cold)
    late = over(driver, prompt, cold, (0, 18))
    assert torch.equal(driver.prefill(late, 288), logits)
    assert_same(driver, late, cold)
    for _ in range(3):
        for each, token in zip((cold, late, other), logits.argmax(-1).tolist() * 2 + [7], strict=True):
            each.tokens.append(token)
        logits = driver.decode([cold])
        assert torch.equal(driver.decode([other, late])[1:], logits)


def test_experts_are_not():
    """How many rows an expert gets depends on the batch: the mode is refused, by name."""
    with pytest.raises(ValueError, match="not offered for Qwen3MoeForCausalLM: how many rows an expert"):
        check_deterministic(shape_of(CASES["qwen3_moe"].config().to_dict()))


def test_nor_are_activations_that_nobody_aligned():
    assert set(ALIGNED) == STABLE_ACTIVATIONS
    with pytest.raises(ValueError, match="LlamaForCausalLM: its activation, gelu_new,"):
        check_deterministic(shape_of(CASES["llama"].config(hidden_act="gelu_new").to_dict()))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_no_activation_of_a_feed_forward_is_left_as_it_was(name):
    """Whatever a family calls it; the layers of a tiny model have one each."""
    config = CASES[name].config()
    found = [type(module) for module in random_model(config).hf.modules()]
    assert found.count(AlignedActivation) == config.num_hidden_layers
    assert not any(kind.__module__ == "transformers.activations" for kind in found)


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 16], indirect=True)
@pytest.mark.parametrize("width", [50, 500, 1536])
@pytest.mark.parametrize("name", ALIGNED)
def test_an_activations_bits_do_not_depend_on_its_place(threads, width, name):
    activation, x = (
        AlignedActivation(name),
        torch.randn(400, width, generator=torch.Generator().manual_seed(0)),
    )
    expected = activation(x)
    torch.testing.assert_close(expected, ACT2FN[name](x))
    for start, end in ((0, 17), (3, 22), (100, 119), (7, 301), (64, 400), (399, 400)):
        assert torch.equal(activation(x[start:end].clone()), expected[start:end])
    both = torch.cat([x, x], dim=1)  # half of its columns are not contiguous
    assert torch.equal(activation(both[:, :width]), expected)


def test_the_demo_model_too(demo_model, kv_dtype, threads):
    """A short prompt, a longer one that goes on from it, a late hit with another prompt beside it, and a hole."""
    driver = driver_on(demo_model, kv_dtype, 120)
    prompt = tokens(0, 290, vocab=demo_model.vocab_size)
    cold, short = driver.row(prompt, room=0), driver.row(prompt[:150], room=0)
    logits = driver.prefill(cold)
    driver.prefill(short)
    assert_same(driver, short, cold, end=150)

    row = over(driver, prompt, short, (0, 9))
    assert torch.equal(driver.prefill(row, 144, 512), logits)
    assert_same(driver, row, cold)

    late, beside = over(driver, prompt, cold, (0, 18)), driver.row(tokens(1, 20), room=0)
    packed = driver.forward([beside.chunk(0, 20), late.chunk(288, 290)])
    assert torch.equal(packed[1:], logits)

    hole = over(driver, prompt, cold, (0, 5), (7, 19))
    driver.forward([hole.chunk(80, 112)])
    assert_same(driver, hole, cold)
