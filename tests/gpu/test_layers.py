"""Computing that begins when the first layers of a prefix are there waits for each of the others."""

from engine import SamplingParams
from tests.engine.engines import BLOCK, bytes_of, engine_on, tokens
from tests.gpu.late import LateCopies, late_steps

REPLY_TOKENS = 12


def test_layers_that_come_late_are_waited_for(device, tiny_llama_dir, certain, monkeypatch):
    """Each layer is a group of its own, and its copy is late; the slots held another prefix before."""
    late = []

    def wrap(made):
        late.append(LateCopies(made))
        return late[0]

    prompts = [tokens(seed, 330 + seed) for seed in range(4)]
    right = [certain(prompt, REPLY_TOKENS) for prompt in prompts]
    settings = {"dtype": "float32", "layer_groups": 3, "device_bytes": bytes_of(24), "wrap_device": wrap}
    with engine_on(tiny_llama_dir, device=device, **settings) as engine:
        late_steps(engine, monkeypatch)
        for prompt in prompts:
            engine.warm(prompt)
        engine.demote("host")
        for prompt, reply in zip(prompts * 2, right * 2, strict=True):
            result = engine.generate(prompt, SamplingParams(max_tokens=len(reply), ignore_eos=True))
            assert result.usage.cached_by_tier["host"] == len(prompt) // BLOCK * BLOCK
            assert result.token_ids == reply
    assert late[0].num_late >= 3 * len(prompts) * 2
