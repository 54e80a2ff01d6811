"""What an admission lets go first leaves the device before all others, and comes back into the order when it is found again."""

from dataclasses import replace
from itertools import islice
from random import Random

import numpy as np
import pytest

from benchmarks.leaf_order import TRACES, hit_rate, read
from kvstore.store import NO_OWNER
from tests.tiering.judges import HOSTILE
from tests.tiering.tenants import A, B
from tiering.claim import Claim
from tiering.durations import BlockTimes
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.keeping import Adaptive, Everything, Told
from tiering.owners import Ownership
from tiering.quotas import Quotas
from tiering.ranks import Rank
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import TraceRequest, read_trace


class AsTold(Everything):
    """Keeps as many of a request's blocks as its kind says."""

    def ended(self, request):
        return request.told.kind


def index(device_slots, quotas=None):
    config = IndexConfig(
        block_tokens=1,
        device_slots=device_slots,
        host_slots=0,
        admission=f"{__name__}:AsTold",
        quotas=quotas,
    )
    return Index(config, bytes(32))


def serve(index, prompt, num_used, owner=NO_OWNER, rank=Rank.NORMAL):
    """What of the prompt was found; afterwards all of it is on the device."""
    tokens = np.array(prompt, dtype="<i4")
    lease = index.admit(
        tokens,
        len(tokens),
        chunk_blocks=len(tokens),
        compute_last=False,
        claim=Claim(Ownership(owner), rank),
    )
    for start, end in lease.gaps(len(tokens)):
        index.publish(lease, tokens, start, end)
    found = index.stats()["lookups"]["hit_blocks"]["device"]
    index.release(lease, Told(kind=num_used))
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


def test_what_goes_first_goes_first_among_the_blocks_of_who_is_to_give():
    it = index(8, Quotas())
    serve(it, (1, 2), 2, A)
    serve(it, (20, 21), 2, B)
    serve(it, (3, 4), 0, A)
    serve(it, (5, 6), 2, A)
    serve(it, (22, 23), 2, B)
    assert [there(it, prompt) for prompt in ((1, 2), (3, 4), (5, 6), (20, 21))] == [2, 0, 2, 2]
    serve(it, (1, 24), 1, A)  # a part that is there is told of what comes later
    assert [there(it, prompt) for prompt in ((1, 2), (1, 24), (5, 6), (20, 21))] == [1, 2, 2, 2]
    serve(it, (7,), 1, A)
    assert [there(it, prompt) for prompt in ((1, 24), (5, 6))] == [1, 2]


def test_what_goes_first_goes_first_within_its_rank():
    it = index(6)
    serve(it, (1, 2), 2, rank=Rank.HIGH)
    serve(it, (3, 4), 0, rank=Rank.HIGH)
    serve(it, (5, 6), 2)
    serve(it, (7, 8), 2, rank=Rank.HIGH)
    assert [there(it, prompt) for prompt in ((1, 2), (3, 4), (5, 6))] == [2, 2, 0]
    serve(it, (9, 10), 2, rank=Rank.HIGH)
    assert [there(it, prompt) for prompt in ((1, 2), (3, 4), (7, 8))] == [2, 0, 2]


def test_what_has_gone_is_not_remembered_where_others_give():
    it = index(40, Quotas())
    serve(it, (1, 2), 0, B)  # stays, as its owner is within its part
    for first in range(10, 3000, 10):
        serve(it, range(first, first + 10), 0, A)
    assert there(it, (1, 2)) == 2
    order = it._holdings._first_to_go
    assert len(order._runs) < 100


class AtRandom(Everything):
    """Keeps any part of a request, and all at times."""

    def __init__(self, capacity_blocks) -> None:
        self._random = Random(str(capacity_blocks))

    def ended(self, request):
        return self._random.choice((0, 2, len(request.fingerprints)))


_AT_RANDOM = f"{__name__}:AtRandom"


@pytest.mark.parametrize("admission", [_AT_RANDOM, HOSTILE])
@pytest.mark.parametrize("sizes", [(12, 0, 0), (12, 20, 0), (12, 20, 40)])
def test_whatever_goes_first_the_books_are_in_order_with_tiers_below_too(sizes, admission):
    device, host, disk = sizes
    simulation = Simulation(
        SimulationConfig(
            device_blocks=device,
            host_blocks=host,
            disk_blocks=disk,
            admission=admission,
            times=BlockTimes(compute_s=0.1, promote_s=0.02, demote_s=0.02, read_s=0.03, write_s=0.05),
        )
    )
    random = Random(1)
    for at in range(120):
        prompt = [random.randrange(3) for _ in range(random.randrange(1, 9))]
        outcome = simulation.run([TraceRequest(at * 0.2, prompt, 0, 0)])
        simulation.check()
    assert all(outcome.hits_by_tier.values()) or admission == HOSTILE


def test_the_simulator_finds_what_the_plain_order_finds():
    """The core's order beside the benchmark's, which is written another way, on the head of a real trace."""
    name, device_blocks, num_requests = "mooncake_conversation_h1", 500, 600
    trace = read(name, 512)
    head = replace(trace, requests=trace.requests[:num_requests])
    requests = list(islice(read_trace(TRACES / f"{name}.jsonl.zst"), num_requests))

    def simulated(admission):
        simulation = Simulation(SimulationConfig(device_blocks=device_blocks, admission=admission))
        rate = simulation.run(requests).hit_rate
        simulation.check()
        return rate

    assert simulated("all") == hit_rate(head, device_blocks, Everything([]))
    assert simulated(_AT_RANDOM) == hit_rate(head, device_blocks, AtRandom([device_blocks, 0, 0]))
    # fingerprints are others here, so other blocks are forgotten by chance
    adaptive = hit_rate(head, device_blocks, Adaptive([device_blocks]))
    assert simulated("adaptive") == pytest.approx(adaptive, abs=0.01)
    assert simulated("adaptive") > simulated("all")
