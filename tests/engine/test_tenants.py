"""What one tenant's requests compute, nobody else finds."""

import pytest

from engine import RequestOptions, SamplingParams
from tests.engine.engines import BLOCK, GREEDY, engine_on, tokens

ENDLESS = SamplingParams(max_tokens=3000, ignore_eos=True)
WARM = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True, seed=5)


def test_a_public_prefix_is_stored_once_and_private_parts_never_meet(tiny_llama_dir, reference):
    """100 tenants with the same system prompt, and even the same private text behind it."""
    public, private = tokens(0, 2000), tokens(1, 2 * BLOCK)
    prompt = public + private
    right = reference([*prompt, 1], SamplingParams(max_tokens=1))
    with engine_on(tiny_llama_dir, max_model_len=2200) as engine:
        for number in range(100):
            options = RequestOptions(tenant=f"tenant {number}", salt_offset=2000)
            assert engine.lookup([*prompt, 1], options)["device"] == (2000 if number else 0)
            result = engine.generate([*prompt, 1], SamplingParams(max_tokens=1), options)
            assert result.usage.cached_tokens == (2000 if number else 0)
            assert result.token_ids == right
            assert engine.lookup([*prompt, 1], options)["device"] == 2000 + 2 * BLOCK
        blocks = engine.stats()["cache"]["blocks"]
    assert blocks == 2000 // BLOCK + 100 * 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RequestOptions(tenant="a"), RequestOptions(tenant="b")),
        (RequestOptions(tenant="a"), RequestOptions()),
        (RequestOptions(tenant="a"), RequestOptions(cache_salt="a")),
        (RequestOptions(tenant="a", cache_salt="b"), RequestOptions(tenant="ab")),
        (RequestOptions(tenant="a", cache_salt="x"), RequestOptions(tenant="a", cache_salt="y")),
        (RequestOptions(tenant="a"), RequestOptions(tenant="a", salt_offset=BLOCK)),
    ],
    ids=str,
)
def test_different_salts_share_nothing_in_any_tier_or_after_a_restart(tiny_llama_dir, tmp_path, one, other):
    prompt = tokens(0, 6 * BLOCK + 1)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.generate(prompt, GREEDY, one)
        for tier in ("device", "host", "disk"):
            if tier != "device":
                engine.demote(tier)
            assert engine.lookup(prompt, one)[tier] == 6 * BLOCK
            assert sum(engine.lookup(prompt, other).values()) == 0
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        assert sum(engine.lookup(prompt, other).values()) == 0
        assert engine.generate(prompt, GREEDY, one).usage.cached_tokens == 6 * BLOCK
        assert engine.generate(prompt, GREEDY, other).usage.cached_tokens == 0


def test_a_block_that_is_partly_private_is_private(tiny_llama_dir):
    prompt = tokens(0, 6 * BLOCK + 1)
    with engine_on(tiny_llama_dir) as engine:
        engine.generate(prompt, GREEDY, RequestOptions(tenant="a", salt_offset=3 * BLOCK - 1))
        seen = engine.lookup(prompt, RequestOptions(tenant="b", salt_offset=3 * BLOCK - 1))
    assert seen["device"] == 2 * BLOCK


def test_a_tenants_reply_is_private_too(tiny_llama_dir):
    prompt = tokens(0, 2 * BLOCK)
    with engine_on(tiny_llama_dir) as engine:
        options = RequestOptions(tenant="a", salt_offset=100)
        params = SamplingParams(max_tokens=6 * BLOCK, ignore_eos=True)
        reply = engine.generate(prompt, params, options).token_ids
        later = prompt + reply
        mine = sum(engine.lookup(later, options).values())
        assert mine == 2 * BLOCK, "of a longer prompt the offset makes more public, where nothing lies"
        assert sum(engine.lookup(later, RequestOptions()).values()) == 2 * BLOCK
        at_prompt = RequestOptions(tenant="a", salt_offset=2 * BLOCK)
        assert sum(engine.lookup(later, at_prompt).values()) == len(later) - BLOCK
        other = RequestOptions(tenant="b", salt_offset=2 * BLOCK)
        assert sum(engine.lookup(later, other).values()) == 2 * BLOCK


def test_the_first_tokens_of_a_prompt_take_as_long_for_another_tenant_as_if_it_were_new(tiny_llama_dir):
    """What is measured from outside, the steps that it takes, is the same whether somebody else had the prompt."""
    prompt = tokens(0, 20 * BLOCK)
    steps = []
    for first in ("b", "a"):
        with engine_on(tiny_llama_dir, max_batch_tokens=4 * BLOCK) as engine:
            engine.generate(prompt, GREEDY, RequestOptions(tenant=first))
            before = engine.stats()["engine"]["steps"]
            engine.generate(prompt, GREEDY, RequestOptions(tenant="b"))
            steps.append(engine.stats()["engine"]["steps"] - before)
    own, others = steps
    assert others == own + 5 - 1, "computed in full: one step of each chunk in place of one"
