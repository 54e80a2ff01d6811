"""What an admission lets go first leaves the device before all others, and comes back into the order when it is found again."""

from dataclasses import replace
from itertools import islice

import numpy as np

from benchmarks.leaf_order import TRACES, hit_rate, read
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.keeping import Adaptive
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import read_trace


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
