"""A whole engine whose copies go through the CUDA devices, over a runtime that runs them in any legal order."""

import random

import pytest

from kvstore.layers.faults import ErrorBefore, Garbage
from tests.engine.engines import BLOCK, GREEDY, bytes_of, engine_on, tokens
from tests.tiering.virtual_cuda import COMPUTE, VirtualCuda
from tiering.transfer.cuda import CudaDevice
from tiering.transfer.faults import FaultDevice
from tiering.transfer.staged import StagedCudaDevice
from tiering.transfer.virtual import VirtualDevice

PROMPTS = [tokens(seed, 150 + seed) for seed in range(6)]


class ComputingHost(VirtualCuda):
    """The model runs on the caller's thread, so that is who waits where the compute stream would; all memory is its own."""

    def streamWaitEvent(self, stream, event, flags=0):
        if stream == COMPUTE:
            self.eventSynchronize(event)
        else:
            super().streamWaitEvent(stream, event, flags)

    def _side(self, address, num_bytes):
        return True


def over_cuda(kind, seed, **faults):
    def wrap(device):
        device.close()
        runtime = ComputingHost(VirtualDevice(random.Random(seed).choice), runs_itself=True)
        made = kind(runtime, lambda: COMPUTE)
        return FaultDevice(made, **faults) if faults else made

    return wrap


@pytest.mark.parametrize("kind", [CudaDevice, StagedCudaDevice])
def test_the_same_tokens_from_every_tier(tiny_llama_dir, tmp_path, reference, kind):
    right = [reference(prompt) for prompt in PROMPTS]
    settings = {"host_bytes": bytes_of(40), "device_bytes": bytes_of(30), "layer_groups": 2}
    with engine_on(tiny_llama_dir, tmp_path, wrap_device=over_cuda(kind, 0), **settings) as engine:
        for _ in range(3):
            assert [engine.generate(prompt, GREEDY).token_ids for prompt in PROMPTS] == right
        tiers = engine.stats()["cache"]["tiers"]
        assert tiers["device"]["evicted"] > 20, "or nothing went down and came back"
        engine.demote("host")
        assert engine.generate(PROMPTS[5], GREEDY).usage.cached_by_tier["host"] == 155 // BLOCK * BLOCK
    with engine_on(tiny_llama_dir, tmp_path, wrap_device=over_cuda(kind, 1), **settings) as engine:
        result = engine.generate(PROMPTS[5], GREEDY)
        assert result.usage.cached_by_tier["disk"] == 155 // BLOCK * BLOCK
        assert result.token_ids == right[5]


def test_the_same_tokens_when_copies_fail(tiny_llama_dir, reference):
    faults = [ErrorBefore(chance=0.2), Garbage(chance=0.1)]
    settings = {"device_bytes": bytes_of(24), "host_bytes": bytes_of(40), "layer_groups": 2}
    wrap = over_cuda(CudaDevice, 2, faults=faults)
    with engine_on(tiny_llama_dir, wrap_device=wrap, **settings) as engine:
        for _ in range(3):
            for prompt in PROMPTS:
                assert engine.generate(prompt, GREEDY).token_ids == reference(prompt)
        assert engine.stats()["cache"]["failed_loads"]["copy_failed"] > 0
