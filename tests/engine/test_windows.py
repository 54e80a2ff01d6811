"""Sliding windows through the engine: a hit respects them, from whichever tier it comes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import SamplingParams
from engine.model import Model, random_model
from tests.engine.engines import GREEDY, engine_on
from tests.engine.families import CASES
from tests.engine.naive import reference_generate, tokens

NAMES = ["mistral, window", "gemma3_text, window in some layers"]
WARM = SamplingParams(max_tokens=1, ignore_eos=True)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(CASES[request.param].config(tie_word_embeddings=False), seed=3)


def reference(model: Model, **changed: int) -> list[int]:
    """What transformers' own generate says, with something in the model's config changed."""
    facts = {**model.hf.config.to_dict(), **changed}
    hf = AutoModelForCausalLM.from_config(type(model.hf.config)(**facts), dtype=torch.float32)
    hf.load_state_dict(model.hf.state_dict())
    return reference_generate(hf.eval(), tokens(1, 300), GREEDY.max_tokens)


@pytest.fixture(scope="module")
def expected(model: Model) -> list[int]:
    """The prompt is several windows long, and the reply another without them."""
    reply = reference(model)
    assert reply != reference(model, sliding_window=4096)
    return reply


@pytest.mark.parametrize("deterministic", [False, True])
def test_hits_from_every_tier(model, expected, deterministic, tmp_path: Path):
    prompt = tokens(1, 300).tolist()
    found = {}
    with engine_on(model, tmp_path, deterministic=deterministic) as engine:
        found["cold"] = engine.generate(prompt, GREEDY)
        for tier in ("device", "host", "disk"):
            assert engine.clear()
            engine.generate(prompt[:200], WARM)
            if tier != "device":
                engine.demote(tier)
            found[tier] = engine.generate(prompt, GREEDY)
            assert found[tier].usage.cached_by_tier[tier] == 192
    with engine_on(model, tmp_path, deterministic=deterministic) as engine:
        found["restart"] = engine.generate(prompt, GREEDY)
        assert found["restart"].usage.cached_by_tier["disk"] == 288
    assert {place: result.token_ids for place, result in found.items()} == dict.fromkeys(found, expected)


def test_a_hit_beside_others(model, expected):
    """A prompt that shares less than a window with another, and one that shares more."""
    prompt = tokens(1, 300).tolist()
    with engine_on(model) as engine:
        engine.generate([prompt[:64] + [7] * 40, prompt[:160] + [9] * 100], GREEDY)
        results = engine.generate([prompt, prompt[:50], prompt], GREEDY)
    assert results[0].token_ids == results[2].token_ids == expected
    assert results[0].usage.cached_tokens >= 160
