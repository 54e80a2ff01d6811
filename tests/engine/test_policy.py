"""An eviction order of somebody's own, in an engine."""

import pytest

from engine import SamplingParams
from tests.engine.engines import bytes_of, engine_on, tokens
from tiering.policies.fifo import FIFO

SHORT = SamplingParams(max_tokens=4, ignore_eos=True)


class Counted(FIFO):
    """Counts what it gives up."""

    num_evicted = 0

    def evict(self, ask, coming):
        victim = super().evict(ask, coming)
        Counted.num_evicted += victim is not None
        return victim


@pytest.mark.parametrize("policy", [f"{__name__}:Counted", "arc"])
@pytest.mark.parametrize("host_blocks", [0, 12])
def test_an_engine_says_the_same_whoever_orders_its_blocks(policy, host_blocks, tiny_llama_dir, reference):
    Counted.num_evicted = 0
    prompts = [tokens(at % 4, 70) for at in range(9)]
    settings = {"device_bytes": bytes_of(14), "host_bytes": bytes_of(host_blocks), "policy": policy}
    with engine_on(tiny_llama_dir, **settings) as engine:
        results = [engine.generate(prompt, SHORT) for prompt in prompts]
        engine.check()
    assert [result.token_ids for result in results] == [reference(prompt, SHORT) for prompt in prompts]
    assert policy == "arc" or Counted.num_evicted > 0
    assert not host_blocks or sum(result.usage.cached_tokens for result in results) > 0
