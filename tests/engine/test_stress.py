"""64 requests at a time over 8 prefixes from 8 threads, some called off, on tiers of a few blocks, with faults and without.

A thousand requests of either kind; `make soak` runs the same for longer: KVTIDE_STRESS_REQUESTS says how many requests,
KVTIDE_STRESS_JSON where the figures go.
"""

import json
import os
import threading
from pathlib import Path

import pytest

from engine import SamplingParams
from kvstore.layers import (
    Delay,
    ErrorAfter,
    ErrorBefore,
    Fault,
    FaultStore,
    Garbage,
    Gate,
    Hang,
    ShortData,
)
from tests.engine.engines import bytes_of, engine_on, tokens
from tests.engine.stress import Stress, idle_cpu_share, leaks_of, leaks_when_settled, num_descriptors
from tiering.rest import Rest
from tiering.transfer.faults import FaultDevice

NUM_REQUESTS = int(os.environ.get("KVTIDE_STRESS_REQUESTS", "1000"))
NUM_PREFIXES, PER_PREFIX, NUM_THREADS, IN_FLIGHT = 8, 8, 8, 64
NUM_READERS = 2
LEFT_ALONE = 20  # so many requests are answered before the reads that hang are let go
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


class Faults:
    """A disk and copies that do everything wrong now and then, and reads that hang until the disk is left alone for it.

    A while later these are let go, and others will hang.
    """

    def __init__(self) -> None:
        self.gate = Gate()
        self.layers: list[FaultStore | FaultDevice] = []
        self.num_off = self.num_back = 0
        """How often so many reads hung that the disk was left alone, and how often it was used again."""
        self._off_since: int | None = None

    def wrap_store(self, store):
        kinds = (ErrorBefore, ErrorAfter, ShortData, Garbage)
        failing = [kind(on=("read", "write"), chance=0.03) for kind in kinds]
        slow = Delay(0.005, on=("read", "write"), chance=0.1)
        self.layers.append(
            FaultStore(store, [slow, *failing, Hang(self.gate, on="read", chance=0.02)], seed=1)
        )
        return self.layers[-1]

    def wrap_device(self, device):
        failing = [kind(chance=0.01) for kind in (ErrorBefore, ErrorAfter, ShortData, Garbage)]
        self.layers.append(FaultDevice(device, [Delay(0.002, chance=0.1), *failing], seed=1))
        return self.layers[-1]

    @property
    def settings(self):
        return {"wrap_store": self.wrap_store, "wrap_device": self.wrap_device, "disk_deadline_s": 0.25}

    def injected(self, kind=Fault):
        return sum(layer.injected(kind) for layer in self.layers)

    def look(self, num_answered, disk):
        """Let go what hangs, if it is time. `disk`: its figures, now that so many requests have been answered."""
        is_off = disk["overdue_reads"] >= NUM_READERS
        if not is_off:
            self.num_back += self._off_since is not None
            self._off_since = None
        elif self._off_since is None:
            self.num_off += 1
            self._off_since = num_answered
        elif num_answered >= self._off_since + LEFT_ALONE:
            self._off_since = num_answered
            self.gate.open()
            self.gate.shut()


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    """After failures in a row the disk rests for a second: half a minute would be most of a run."""
    monkeypatch.setattr("tiering.disk_health.Rest", lambda failures, _: Rest(failures, 1.0))


@pytest.mark.parametrize("faulty", [False, True], ids=["sound", "faulty"])
def test_nothing_is_wrong_and_nothing_is_left(tiny_llama_dir, tmp_path, prompts, right, faulty, request):
    assert len(prompts) == NUM_PREFIXES * PER_PREFIX
    before = num_descriptors(), kvtide_threads()
    faults = Faults()
    settings = {
        "device_bytes": bytes_of(24),
        "host_bytes": bytes_of(16),
        "disk_bytes": 64 * 16 * 1024,
        "disk_read_threads": NUM_READERS,
        "max_num_seqs": 16,
        "max_batch_tokens": 256,
        "layer_groups": 3,
        **(faults.settings if faulty else {}),
    }
    with engine_on(tiny_llama_dir, tmp_path, **settings) as engine:

        def after_answer(num_answered):
            faults.look(num_answered, engine.stats()["cache"]["tiers"]["disk"])

        stress = Stress(engine, prompts, right, in_flight=IN_FLIGHT, after_answer=after_answer)
        report = stress.run(NUM_REQUESTS, num_threads=NUM_THREADS, seed=7)
        assert not report.complaints, report.complaints[:5]
        engine.check()
        stats = engine.stats()["cache"]
        busy = min(idle_cpu_share(0.25) for _ in range(3))
        hanging = leaks_of(engine) if faulty else leaks_when_settled(engine)
        faults.gate.open()
        leaks = leaks_when_settled(engine)
        figures = {
            **report.figures(),
            "requests_per_s": round(report.requests / report.seconds, 1),
            "faults": faults.injected(),
            "hung_reads": faults.injected(Hang),
            "disk_switched_off": faults.num_off,
            "disk_came_back": faults.num_back,
            "early_prefills": engine.stats()["engine"]["early_prefills"],
            "void_prefills": engine.stats()["engine"]["void_prefills"],
            "preempted": stats["preempted"],
            "failed_loads": stats["failed_loads"],
            "failed_writes": stats["tiers"]["disk"]["failed_writes"],
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
    assert min(report.disk_tokens_by_third) > 0, "the disk serves from beginning to end"
    assert all(stats["tiers"][tier]["evicted"] > 0 for tier in ("device", "host"))
    assert (figures["faults"] > NUM_REQUESTS // 100) is faulty
    assert (faults.num_back > NUM_REQUESTS // 500) is faulty
    assert figures["preempted"]["requests"] > 0
    assert not hanging.keys() - ({"overdue_reads", "readers", "moving_host_slots"} if faulty else set())
    assert not leaks
    assert busy < 0.05
    assert (num_descriptors(), kvtide_threads()) == before


def _write(figures: dict[str, object]) -> None:
    if path := os.environ.get("KVTIDE_STRESS_JSON"):
        known = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        Path(path).write_text(json.dumps({**known, **figures}, indent=1) + "\n")
