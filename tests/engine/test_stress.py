"""64 requests at a time over 8 prefixes from 8 threads, some called off, on tiers of a few blocks, with faults and without.

`make soak` runs the same for longer: KVTIDE_STRESS_REQUESTS says how many requests, KVTIDE_STRESS_JSON where the figures
go.
"""

import json
import os
import threading
from pathlib import Path

import pytest

from engine import SamplingParams
from kvstore.layers import Delay, ErrorAfter, ErrorBefore, FaultStore, Garbage, Gate, Hang, ShortData
from tests.engine.engines import bytes_of, engine_on, tokens
from tests.engine.stress import Stress, idle_cpu_share, leaks_of, leaks_when_settled, num_descriptors
from tiering.transfer.faults import FaultDevice

NUM_REQUESTS = int(os.environ.get("KVTIDE_STRESS_REQUESTS", "2000"))
NUM_PREFIXES, PER_PREFIX, NUM_THREADS, IN_FLIGHT = 8, 8, 8, 64
REPLY = SamplingParams(max_tokens=80, ignore_eos=True)


@pytest.fixture(scope="module")
def prompts():
    """8 prefixes of 3 to 5 blocks, each with 8 ends; some of them end with a block."""
    prefixes = [tokens(100 + i, 48 + 5 * i) for i in range(NUM_PREFIXES)]
    return [prefix + tokens(1000 + i, 1 + 4 * i) for prefix in prefixes for i in range(PER_PREFIX)]


@pytest.fixture(scope="module")
def right(prompts, reference):
    return [reference(prompt, REPLY) for prompt in prompts]


def kvtide_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kvtide")]


def with_faults():
    """A disk and copies that do everything wrong now and then, and a read that hangs until the end of the engine."""
    stores, devices, gate = [], [], Gate()

    def wrap_store(store):
        failing = [
            kind(on=("read", "write"), chance=0.03) for kind in (ErrorBefore, ErrorAfter, ShortData, Garbage)
        ]
        slow = Delay(0.005, on=("read", "write"), chance=0.1)
        stores.append(FaultStore(store, [slow, *failing, Hang(gate, on="read", chance=0.002)], seed=1))
        return stores[-1]

    def wrap_device(device):
        failing = [kind(chance=0.01) for kind in (ErrorBefore, ErrorAfter, ShortData, Garbage)]
        devices.append(FaultDevice(device, [Delay(0.002, chance=0.1), *failing], seed=1))
        return devices[-1]

    def injected():
        return sum(layer.injected() for layer in (*stores, *devices))

    return {"wrap_store": wrap_store, "wrap_device": wrap_device, "disk_deadline_s": 0.5}, injected, gate


@pytest.mark.parametrize("faults", [False, True], ids=["sound", "faulty"])
def test_nothing_is_wrong_and_nothing_is_left(tiny_llama_dir, tmp_path, prompts, right, faults, request):
    assert len(prompts) == NUM_PREFIXES * PER_PREFIX
    before = num_descriptors(), kvtide_threads()
    layers, injected, gate = with_faults() if faults else ({}, lambda: 0, Gate())
    settings = {
        "device_bytes": bytes_of(24),
        "host_bytes": bytes_of(16),
        "disk_bytes": 64 * 16 * 1024,
        "max_num_seqs": 16,
        "max_batch_tokens": 256,
        **layers,
    }
    with engine_on(tiny_llama_dir, tmp_path, **settings) as engine:
        stress = Stress(engine, prompts, right, in_flight=IN_FLIGHT)
        report = stress.run(NUM_REQUESTS, num_threads=NUM_THREADS, seed=7)
        assert not report.complaints, report.complaints[:5]
        engine.check()
        stats = engine.stats()["cache"]
        busy = min(idle_cpu_share(0.25) for _ in range(3))
        hanging = leaks_of(engine) if faults else leaks_when_settled(engine)
        gate.open()
        leaks = leaks_when_settled(engine)
        figures = {
            **report.figures(),
            "requests_per_s": round(report.requests / report.seconds, 1),
            "faults": injected(),
            "preempted": stats["preempted"],
            "failed_loads": stats["failed_loads"],
            "evicted": {tier: figures["evicted"] for tier, figures in stats["tiers"].items()},
            "idle_cpu_share": round(busy, 4),
            "hanging": hanging,
            "leaks": leaks,
        }
    _write({request.node.callspec.id: figures})
    assert report.requests == NUM_REQUESTS // NUM_THREADS * NUM_THREADS
    assert report.failed == report.wrong == 0
    assert report.cancelled > 0
    assert 0 < report.cached_tokens < report.prompt_tokens
    assert all(stats["tiers"][tier]["evicted"] > 0 for tier in ("device", "host"))
    assert (figures["faults"] > NUM_REQUESTS // 100) is faults
    assert figures["preempted"]["requests"] > 0
    assert not hanging.keys() - ({"overdue_reads", "readers", "moving_host_slots"} if faults else set())
    assert not leaks
    assert busy < 0.05
    assert (num_descriptors(), kvtide_threads()) == before


def _write(figures: dict[str, object]) -> None:
    if path := os.environ.get("KVTIDE_STRESS_JSON"):
        known = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        Path(path).write_text(json.dumps({**known, **figures}, indent=1) + "\n")
