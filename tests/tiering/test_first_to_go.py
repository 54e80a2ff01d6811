"""What an admission lets go first leaves the device before all others, and comes back into the order when it is found again."""

from dataclasses import replace
from itertools import islice
from random import Random

import numpy as np
import pytest

from benchmarks.leaf_order import TRACES, hit_rate, read
from tiering.durations import BlockTimes
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.keeping import ADMISSIONS, Adaptive, Everything
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import TraceRequest, read_trace


def index(device_slots):
    config = IndexConfig(block_tokens=1, device_slots=device_slots, host_slots=0, chooses=True)
    return Index(config, bytes(32))


def serve(index, prompt, num_used):
    """What of the prompt was found; afterwards all of it is on the device."""
    tokens = np.array(prompt, dtype="<i4")
    lease = index.admit(tokens, len(tokens), chunk_blocks=len(tokens), compute_last=False)
    for start, end in lease.gaps(len(tokens)):
        index.publish(lease, tokens, start, end)
    found = index.stats()["lookups"]["hit_blocks"]["device"]
    index.release(lease, num_used)
    index.check()
    return found


def there(index, prompt):
    return index.num_matching(np.array([*prompt, 0], dtype="<i4"))


def test_who_goes_first_goes_before_what_is_older():
    it = index(6)
    serve(it, (1, 2), 2)
    serve(it, (3, 4, 5), 1)
    serve(it, (6, 7, 8), 3)
    assert [there(it, prompt) for prompt in ((1, 2), (3, 4, 5), (6, 7, 8))] == [2, 1, 3]


def test_among_themselves_the_earlier_request_goes_first_and_then_the_order_goes_on():
    it = index(6)
    for prompt in ((1, 2), (3, 4)):
        serve(it, prompt, 0)
    serve(it, (5, 6), 2)
    serve(it, (7,), 1)
    assert [there(it, prompt) for prompt in ((1, 2), (3, 4), (5, 6))] == [1, 2, 2]
    serve(it, (8, 9, 10, 11), 4)
    assert [there(it, prompt) for prompt in ((1, 2), (3, 4), (5, 6), (7,))] == [0, 0, 1, 1]


def test_what_is_found_again_is_used_now_and_so_is_all_above_it():
    it = index(5)
    serve(it, (1, 2, 3), 0)
    serve(it, (4, 5), 2)
    serve(it, (1, 2), 0)
    serve(it, (6, 7), 2)
    assert [there(it, prompt) for prompt in ((1, 2, 3), (4, 5))] == [2, 1], "3 was first to go still"


class AtRandom(Everything):
    """Keeps any part of a request, and all at times."""

    def __init__(self, capacity_blocks) -> None:
        self._random = Random(str(capacity_blocks))

    def ended(self, request):
        return self._random.choice((0, 2, len(request.fingerprints)))


@pytest.mark.parametrize("sizes", [(12, 0, 0), (12, 20, 0), (12, 20, 40)])
def test_whatever_goes_first_the_books_are_in_order_with_tiers_below_too(sizes, monkeypatch):
    monkeypatch.setitem(ADMISSIONS, "at random", AtRandom)
    device, host, disk = sizes
    simulation = Simulation(
        SimulationConfig(
            device_blocks=device,
            host_blocks=host,
            disk_blocks=disk,
            admission="at random",
            times=BlockTimes(compute_s=0.1, promote_s=0.02, demote_s=0.02, read_s=0.03, write_s=0.05),
        )
    )
    random = Random(1)
    for at in range(120):
        prompt = [random.randrange(3) for _ in range(random.randrange(1, 9))]
        outcome = simulation.run([TraceRequest(at * 0.2, prompt, 0, 0)])
        simulation.check()
    assert all(outcome.hits_by_tier.values())


def test_the_simulator_finds_what_the_plain_order_finds():
    """The core's order beside the benchmark's, which is written another way, on the head of a real trace."""
    name, device_blocks, num_requests = "mooncake_conversation_h1", 500, 600
    trace = read(name, 512)
    head = replace(trace, requests=trace.requests[:num_requests])
    requests = list(islice(read_trace(TRACES / f"{name}.jsonl.zst"), num_requests))
    rates = {}
    for admission in ("adaptive", "all"):
        simulation = Simulation(SimulationConfig(device_blocks=device_blocks, admission=admission))
        rates[admission] = simulation.run(requests).hit_rate
        simulation.check()
    assert rates["adaptive"] == hit_rate(head, device_blocks, Adaptive([device_blocks]))
    assert rates["adaptive"] > rates["all"]
