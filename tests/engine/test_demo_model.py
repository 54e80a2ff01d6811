"""The demo model through the engine: a conversation's tokens are transformers' own, from every tier."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import EngineConfig, SamplingParams
from engine.engine import Engine
from engine.model import Model
from tiering.cli.texts import handbook

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)
SIZES = {"device_bytes": "32MiB", "host_bytes": "32MiB", "disk_bytes": "128MiB", "disk_min_free_bytes": 0}


def test_the_demo_models_tokens_from_every_tier(demo_model: Model, demo_dir: Path, tmp_path: Path):
    ids = demo_model.tokenizer.encode(handbook())[:208]
    prefix, prompt = ids[:160], ids
    reference = AutoModelForCausalLM.from_pretrained(demo_dir, dtype=torch.float32).eval()
    reference.generation_config.eos_token_id = None
    with torch.inference_mode():
        attention = torch.ones(1, len(prompt), dtype=torch.int64)
        out = reference.generate(
            torch.tensor([prompt]),
            attention_mask=attention,
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
        )
    expected = out[0, len(prompt) :].tolist()
    config = EngineConfig(kv_dtype="float32", disk_path=tmp_path, **SIZES)
    found = {}
    with Engine(demo_model, config, announce=lambda _: None) as engine:
        found["cold"] = engine.generate(prompt, GREEDY)
        for tier in ("device", "host", "disk"):
            assert engine.clear()
            engine.generate(prefix, SamplingParams(max_tokens=1, ignore_eos=True))
            if tier != "device":
                engine.demote(tier)
            found[tier] = engine.generate(prompt, GREEDY)
    with Engine(demo_model, config, announce=lambda _: None) as engine:
        found["restart"] = engine.generate(prompt, GREEDY)
    assert {tier: result.token_ids for tier, result in found.items()} == dict.fromkeys(found, expected)
    served = {tier: result.usage.cached_by_tier for tier, result in found.items()}
    assert all(served[tier][tier] == 160 for tier in ("device", "host", "disk"))
    assert served["restart"]["disk"] == 192


@pytest.mark.parametrize("messages", [[{"role": "user", "content": "Name a colour."}]])
def test_chat_gives_text(demo_model: Model, messages):
    with Engine(demo_model, EngineConfig(**SIZES), announce=lambda _: None) as engine:
        result = engine.generate(messages, SamplingParams(max_tokens=6))
    assert result.text == demo_model.tokenizer.decode(result.token_ids, skip_special_tokens=True)
    assert result.text
