"""Many requests at a time on tiers of a few blocks, over copies and steps that are late, and copies that fail."""

import pytest

from kvstore.layers import Delay, ErrorAfter, ErrorBefore, Garbage, ShortData
from tests.engine.engines import bytes_of, engine_on, tokens
from tests.engine.stress import Stress, leaks_when_settled
from tests.gpu.late import LateCopies, late_steps
from tiering.transfer.faults import FaultDevice

NUM_REQUESTS, NUM_THREADS, IN_FLIGHT = 200, 8, 32
REPLY_TOKENS = 40
LEAST_TOKENS = 10  # what the stress asks for is a tenth of the reply, most of the time


@pytest.fixture(scope="module")
def asked(certain):
    """4 prefixes of 3 blocks and more, each with 4 ends, and the replies, those left out that are soon a matter of rounding."""
    prefixes = [tokens(100 + i, 48 + 5 * i) for i in range(4)]
    prompts = [prefix + tokens(1000 + i, 1 + 6 * i) for prefix in prefixes for i in range(4)]
    right = [certain(prompt, REPLY_TOKENS) for prompt in prompts]
    kept = [
        (prompt, reply) for prompt, reply in zip(prompts, right, strict=True) if len(reply) >= LEAST_TOKENS
    ]
    assert len(kept) > 12, "or there is no sharing left"
    return kept


@pytest.mark.parametrize("layer_groups", [1, 3])
def test_late_and_failing_copies_spoil_nothing(
    device, layer_groups, tiny_llama_dir, tmp_path, asked, monkeypatch
):
    layers: list[FaultDevice] = []

    def wrap(made):
        failing = [kind(chance=0.03) for kind in (ErrorBefore, ErrorAfter, ShortData, Garbage)]
        layers.append(FaultDevice(LateCopies(made), [Delay(0.002, chance=0.2), *failing], seed=1))
        return layers[-1]

    settings = {
        "device": device,
        "dtype": "float32",
        "device_bytes": bytes_of(24),
        "host_bytes": bytes_of(16),
        "disk_bytes": 64 * 16 * 1024,
        "max_num_seqs": 16,
        "max_batch_tokens": 256,
        "layer_groups": layer_groups,
        "wrap_device": wrap,
    }
    with engine_on(tiny_llama_dir, tmp_path, **settings) as engine:
        late_steps(engine, monkeypatch)
        stress = Stress(engine, *zip(*asked, strict=True), in_flight=IN_FLIGHT)
        report = stress.run(NUM_REQUESTS, num_threads=NUM_THREADS, seed=7)
        assert not report.complaints, report.complaints[:5]
        engine.check()
        assert not leaks_when_settled(engine)
        tiers = engine.stats()["cache"]["tiers"]
    assert report.requests == NUM_REQUESTS // NUM_THREADS * NUM_THREADS
    assert 0 < report.cached_tokens < report.prompt_tokens
    assert min(tiers[tier]["evicted"] for tier in ("device", "host")) > 0
    assert layers[0].injected() > 0
    assert layers[0].device.num_late > 50
