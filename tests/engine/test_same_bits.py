"""Deterministic mode on a whole engine: the same logits, bit for bit, wherever the prefix was and whatever else ran."""

from collections import defaultdict

import pytest
import torch

import engine.sampling
from engine import SamplingParams
from tests.engine.engines import BLOCK, GREEDY, bytes_of, engine_on, tokens

PROMPT, OTHERS = tokens(0, 330), [tokens(seed, 40 * seed) for seed in (1, 2, 3)]
REPLY_TOKENS = 12


def params(number):
    """A request that the recorder knows again: greedy, so that the seed decides nothing."""
    return SamplingParams(max_tokens=REPLY_TOKENS, ignore_eos=True, seed=number)


@pytest.fixture
def logits(monkeypatch):
    """All logits that tokens are chosen from, by the seed of their request."""
    rows = defaultdict(list)
    choose = engine.sampling.choose

    def note(computed, draws):
        for row, draw in zip(computed, draws, strict=True):
            rows[draw.params.seed].append(row.clone())
        return choose(computed, draws)

    monkeypatch.setattr(engine.sampling, "choose", note)
    return rows


def same(one, other):
    return len(one) == len(other) == REPLY_TOKENS and all(map(torch.equal, one, other))


def ask(served, logits, *, packed):
    """The logits of a reply to PROMPT, alone or beside replies that began before."""
    beside = (
        [served.submit(prompt, SamplingParams(max_tokens=60, ignore_eos=True)) for prompt in OTHERS]
        if packed
        else []
    )
    while packed and served.stats()["engine"]["running"] < len(OTHERS):
        served.lookup([1, 2, 3])  # answered between two steps
    result = served.generate(PROMPT, params(7))
    for handle in beside:
        handle.cancel()
    return result, logits.pop(7)


@pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
@pytest.mark.parametrize("tier", ["device", "host", "disk", "restart"])
def test_from_every_tier(tiny_llama_dir, tmp_path, logits, threads, tier, packed):
    settings = {"deterministic": True, "num_threads": threads}
    with engine_on(tiny_llama_dir, **settings) as served:
        _, cold = ask(served, logits, packed=False)
    with engine_on(tiny_llama_dir, tmp_path, **settings) as served:
        served.warm(PROMPT)
        if tier in ("host", "disk"):
            served.demote(tier)
        if tier != "restart":
            result, found = ask(served, logits, packed=packed)
    if tier == "restart":
        with engine_on(tiny_llama_dir, tmp_path, **settings) as served:
            result, found = ask(served, logits, packed=packed)
    where = "disk" if tier == "restart" else tier
    assert result.usage.cached_by_tier[where] == 330 // BLOCK * BLOCK
    assert same(cold, found)


@pytest.mark.parametrize("host_blocks", [0, 40], ids=["computed again", "brought back"])
def test_with_preemption_in_between(tiny_llama_dir, logits, threads, host_blocks):
    prompts = [tokens(i, 40 + 5 * i) for i in range(6)]
    settings = {"deterministic": True, "num_threads": threads}
    alone = []
    for number, prompt in enumerate(prompts):
        with engine_on(tiny_llama_dir, **settings) as served:
            served.generate(prompt, SamplingParams(max_tokens=60, ignore_eos=True, seed=number))
        alone.append(logits.pop(number))
    small = {"device_bytes": bytes_of(16), "host_bytes": bytes_of(host_blocks)}
    with engine_on(tiny_llama_dir, **settings, **small) as served:
        handles = [
            served.submit(prompt, SamplingParams(max_tokens=60, ignore_eos=True, seed=number))
            for number, prompt in enumerate(prompts)
        ]
        for handle in handles:
            handle.result(60)
        assert served.stats()["cache"]["preempted"]["requests"] > 0
    for number, rows in enumerate(alone):
        assert len(rows) == len(logits[number]) == 60
        assert all(map(torch.equal, rows, logits[number])), f"request {number}"


def test_every_reply_of_several(tiny_llama_dir, logits, threads):
    """What a reply took over by copying is what it would have computed."""
    with engine_on(tiny_llama_dir, deterministic=True, num_threads=threads) as served:
        served.generate(PROMPT, params(1))
        alone = logits.pop(1)
        served.clear()
        served.generate(PROMPT, SamplingParams(max_tokens=REPLY_TOKENS, ignore_eos=True, seed=2, n=3))
    each = [logits[2][number::3] for number in range(3)]  # one row of each reply a step
    assert all(same(alone, rows) for rows in each)


def test_what_the_default_mode_has_left_is_not_found(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path) as served:
        served.generate(PROMPT, GREEDY)
    with engine_on(tiny_llama_dir, tmp_path, deterministic=True) as served:
        assert sum(served.lookup(PROMPT).values()) == 0
        assert served.generate(PROMPT, GREEDY).usage.cached_tokens == 0
    with engine_on(tiny_llama_dir, tmp_path) as served:
        assert served.lookup(PROMPT)["disk"] == 330 // BLOCK * BLOCK
