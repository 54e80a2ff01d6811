"""Greedy tokens over the block pool are those of transformers' own generate."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.batch import build_batch
from engine.model import Model, load_model, random_model
from tests.engine.families import CASES
from tests.engine.naive import Driver, reference_generate, reference_logits, tokens

NEW = 8


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest):
    """A tiny model over blocks, and the same weights in transformers' own hands."""
    model = random_model(CASES[request.param].config(), seed=3)
    reference = AutoModelForCausalLM.from_config(CASES[request.param].config(), dtype=torch.float32).eval()
    reference.load_state_dict(model.hf.state_dict())
    return model, reference


def test_cold_chunked_prefill(pair):
    model, reference = pair
    prompt = tokens(1, 421)
    driver = Driver(model)
    row = driver.row(prompt)
    assert driver.generate([row], driver.prefill(row), NEW)[0] == reference_generate(reference, prompt, NEW)


def test_suffix_over_blocks_of_another_prompt(pair):
    """Only the part after the shared blocks is computed; it starts inside a tile."""
    model, reference = pair
    shared = tokens(1, 16 * 11)
    driver = Driver(model)
    first = driver.row(np.concatenate([shared, tokens(2, 30)]))
    driver.prefill(first)
    prompt = np.concatenate([shared, tokens(3, 50)])
    second = driver.row(prompt)
    second.slots[:11] = first.slots[:11]
    logits = driver.prefill(second, start=len(shared))
    torch.testing.assert_close(logits, reference_logits(reference, [prompt]), rtol=1e-4, atol=1e-4)
    assert driver.generate([second], logits, NEW)[0] == reference_generate(reference, prompt, NEW)


def test_prompts_of_different_lengths_packed_and_decoded_together(pair):
    """One batch holds cold prompts, a suffix and a lone token; then decodes of very different lengths are grouped."""
    model, reference = pair
    prompts = [tokens(seed, count) for seed, count in enumerate((5, 300, 33, 64, 17))]
    driver = Driver(model)
    rows = [driver.row(prompt) for prompt in prompts]
    driver.forward([rows[1].chunk(0, 250), rows[2].chunk(0, 32)])
    starts = (0, 250, 32, 0, 0)
    logits = driver.forward(
        [row.chunk(start, len(row.tokens)) for row, start in zip(rows, starts, strict=True)]
    )
    torch.testing.assert_close(logits, reference_logits(reference, prompts), rtol=1e-4, atol=1e-4)
    replies = driver.generate(rows, logits, NEW)
    assert replies == [reference_generate(reference, prompt, NEW) for prompt in prompts]


def test_replies_behind_shared_blocks_decoded_together(pair):
    """What they share is read once for all: two behind one document, one behind another, one that shares nothing."""
    model, reference = pair
    driver = Driver(model)
    documents = [tokens(seed, 16 * 18) for seed in (1, 2)]
    holders = [driver.row(document) for document in documents]
    for holder in holders:
        driver.prefill(holder)
    rows = [driver.row(tokens(5, 150))]
    for document, holder, seed in zip(
        [*documents, documents[0]], [*holders, holders[0]], (6, 7, 8), strict=True
    ):
        row = driver.row(np.concatenate([document, tokens(seed, 11 + seed)]))
        row.slots[:18] = holder.slots[:18]
        rows.append(row)
    prompts = [np.array(row.tokens, dtype=np.int32) for row in rows]
    logits = torch.cat([driver.prefill(row, start=0 if row is rows[0] else 16 * 18) for row in rows])
    replies = driver.generate(rows, logits, NEW)
    assert replies == [reference_generate(reference, prompt, NEW) for prompt in prompts]


def test_prefill_and_decode_in_one_batch(pair):
    """Logits come back in the order of the chunks, whatever the order of the rows."""
    model, reference = pair
    prompts = [tokens(7, 40), tokens(8, 70), tokens(9, 90)]
    driver = Driver(model)
    rows = [driver.row(prompt) for prompt in prompts]
    before = driver.forward([rows[0].chunk(0, 40), rows[2].chunk(0, 90)])
    for row, token in zip((rows[0], rows[2]), before.argmax(-1).tolist(), strict=True):
        row.tokens.append(token)
    logits = driver.forward(
        [rows[2].chunk(90, 91, decode=True), rows[1].chunk(0, 70), rows[0].chunk(40, 41, decode=True)]
    )
    expected = [reference_generate(reference, prompt, 2) for prompt in prompts]
    assert logits.argmax(-1).tolist() == [expected[2][1], expected[1][0], expected[0][1]]


def test_logits_are_close_to_transformers(pair):
    model, reference = pair
    prompt = tokens(4, 200)
    driver = Driver(model)
    expected = reference_logits(reference, [prompt])
    torch.testing.assert_close(driver.prefill(driver.row(prompt)), expected, rtol=1e-4, atol=1e-4)
    row = driver.row(prompt[:-1])
    driver.prefill(row)
    row.tokens.append(int(prompt[-1]))
    torch.testing.assert_close(driver.decode([row]), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_blocks_stay_close(pair):
    """Half of the memory costs rounding, not more."""
    model, reference = pair
    prompt = tokens(4, 200)
    driver = Driver(model, kv_dtype="bfloat16")
    [expected] = reference_logits(reference, [prompt])
    logits = driver.prefill(driver.row(prompt))[0]
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()


def test_stale_bytes_in_a_slot_change_nothing(tiny_llama_dir):
    """Not even NaN in what a block's slot held before: in a lone decode, in grouped ones, in a prefill."""
    model = load_model(tiny_llama_dir)
    prompts = [tokens(1, 37), tokens(2, 50), tokens(3, 150), np.concatenate([tokens(3, 144), tokens(4, 20)])]

    def run(poison: float) -> list[torch.Tensor]:
        driver = Driver(model)
        for layer in range(model.num_layers):
            driver.pool.layer_view(layer)[: driver.pool.num_slots].fill_(poison)
        rows = [driver.row(prompt) for prompt in prompts]
        rows[3].slots[:9] = rows[2].slots[:9]  # their decodes share blocks
        results = [driver.forward([row.chunk(0, len(row.tokens)) for row in rows[:3]])]
        results.append(driver.forward([rows[3].chunk(144, 164)]))
        for row in rows:
            row.tokens.append(5)
        return [*results, driver.decode(rows), driver.decode(rows[:1])]

    for clean, poisoned in zip(run(0.0), run(float("nan")), strict=True):
        assert torch.equal(clean, poisoned)


def test_a_batch_that_wants_no_logits_returns_none_of_them(tiny_llama_dir):
    model = load_model(tiny_llama_dir)
    driver = Driver(model)
    row = driver.row(tokens(1, 100))
    assert driver.forward([row.chunk(0, 64)]).shape == (0, model.vocab_size)


def test_a_chunk_beyond_its_slots_is_refused(tiny_llama_dir):
    driver = Driver(load_model(tiny_llama_dir))
    row = driver.row(tokens(1, 40), room=0)
    row.slots = row.slots[:2]
    with pytest.raises(AssertionError, match="need 3 slots"):
        driver.forward([row.chunk(0, 40)])
    with pytest.raises(AssertionError, match="at least one chunk"):
        build_batch([], driver.pool)


def test_warm_up_leaves_the_pool_alone(tiny_llama_dir):
    model = load_model(tiny_llama_dir)
    driver = Driver(model, num_slots=4)
    model.warm_up(driver.pool)
    assert not any(driver.pool.view(slot).any() for slot in range(4))


def test_demo_model_matches_generate(demo_model: Model, demo_dir):
    """Real weights: cold, and again over the first prompt's blocks."""
    reference = AutoModelForCausalLM.from_pretrained(demo_dir, dtype=torch.float32).eval()
    text = "A prefix cache keeps the keys and values of what many prompts start with. " * 9
    ids = np.array(demo_model.tokenizer(text)["input_ids"], dtype=np.int32)
    assert 128 < len(ids) < 300
    driver = Driver(demo_model)
    row = driver.row(ids)
    assert driver.generate([row], driver.prefill(row), 8)[0] == reference_generate(reference, ids, 8)
    suffix = np.array(demo_model.tokenizer(" In short:")["input_ids"], dtype=np.int32)
    kept = len(ids) // 16 * 16
    prompt = np.concatenate([ids[:kept], suffix])
    again = driver.row(prompt)
    again.slots[: kept // 16] = row.slots[: kept // 16]
    logits = driver.prefill(again, start=kept)
    assert driver.generate([again], logits, 8)[0] == reference_generate(reference, prompt, 8)
