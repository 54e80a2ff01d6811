"""The same tokens with tiering off, on, and on with faults, from every tier, and after a restart."""

import pytest

from engine import SamplingParams
from kvstore.layers import Delay, ErrorAfter, ErrorBefore, FaultStore, Garbage, ShortData
from tests.engine.engines import BLOCK, bytes_of, engine_on, tokens
from tiering.transfer.faults import FaultDevice

REPLY_TOKENS = 12
PROMPT = tokens(0, 330)
CACHED = 330 // BLOCK * BLOCK
IN_BITS = {"dtype": "float32", "deterministic": True}
IN_BFLOAT16 = {"dtype": "bfloat16", "kv_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def asked(certain):
    """Prompts of which three share 96 tokens each, and their certain replies."""
    starts = [tokens(seed, 96) for seed in range(3)]
    prompts = [
        start + tokens(10 * number + seed, 40 + seed)
        for number, start in enumerate(starts)
        for seed in range(3)
    ]
    return [(prompt, certain(prompt, REPLY_TOKENS)) for prompt in prompts]


def ask(engine, prompt, num_tokens=REPLY_TOKENS):
    return engine.generate(prompt, SamplingParams(max_tokens=num_tokens, ignore_eos=True))


@pytest.mark.parametrize("tiering", ["off", "on", "faulty"])
def test_whatever_the_tiers_do(device, tiering, tiny_llama_dir, tmp_path, asked):
    """In float32, as far as rounding does not decide: the same as transformers' own generate says on a CPU."""
    layers: list[FaultDevice | FaultStore] = []
    kinds = (ErrorBefore, ErrorAfter, ShortData, Garbage)

    def wrap_device(made):
        layers.append(FaultDevice(made, [Delay(0.001, chance=0.2), *[kind(chance=0.05) for kind in kinds]]))
        return layers[-1]

    def wrap_store(store):
        layers.append(FaultStore(store, [kind(on=("read", "write"), chance=0.05) for kind in kinds]))
        return layers[-1]

    small = {"device_bytes": bytes_of(24), "host_bytes": bytes_of(20), "layer_groups": 3}
    faults = {"wrap_device": wrap_device, "wrap_store": wrap_store} if tiering == "faulty" else {}
    settings = {"host_bytes": 0} if tiering == "off" else {**small, **faults}
    path = None if tiering == "off" else tmp_path
    used = {"device": 0, "host": 0, "disk": 0}
    with engine_on(tiny_llama_dir, path, device=device, **IN_BITS, **settings) as engine:
        for _ in range(3):
            for prompt, right in asked:
                result = ask(engine, prompt, len(right))
                assert result.token_ids == right
                used = {tier: num + used[tier] for tier, num in result.usage.cached_by_tier.items()}
            if tiering == "off":
                engine.clear()
    assert (min(used["host"], used["disk"]) > 0) is (tiering != "off")
    assert (sum(layer.injected() for layer in layers) > 5) is (tiering == "faulty")


@pytest.mark.parametrize("settings", [IN_BITS, IN_BFLOAT16], ids=["deterministic", "bfloat16"])
def test_from_every_tier_and_after_a_restart(device, settings, tiny_llama_dir, tmp_path):
    """The KV is the same bytes, and the same rows are computed after it: with the same kernels the same tokens.

    In bfloat16 the most probable tokens are often equally probable, so that one wrong bit is seen.
    """
    chosen = {"device": device, "layer_groups": 3, **settings}
    replies = {}
    with engine_on(tiny_llama_dir, tmp_path, **chosen) as engine:
        engine.warm(PROMPT[:CACHED])
        for tier in ("device", "host", "disk"):
            if tier != "device":
                engine.demote(tier)
            replies[tier] = ask(engine, PROMPT)
    with engine_on(tiny_llama_dir, tmp_path, **chosen) as engine:
        replies["restart"] = ask(engine, PROMPT)
    for tier, result in replies.items():
        where = "disk" if tier == "restart" else tier
        assert result.usage.cached_by_tier == {"device": 0, "host": 0, "disk": 0, where: CACHED}
        assert len(result.token_ids) == REPLY_TOKENS
    assert len({tuple(result.token_ids) for result in replies.values()}) == 1
