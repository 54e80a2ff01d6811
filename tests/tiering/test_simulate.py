"""The simulator runs the core: what it counts, that tiers add up, and that time passes as it is given."""

import itertools
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.simulate import AGENTS, KNOWN
from tiering.durations import BlockTimes
from tiering.index import Index
from tiering.keeping import Hints, Told
from tiering.moves import Forget
from tiering.outbox import Outbox
from tiering.residency import block_keys
from tiering.simulate import Outcome, Simulation, SimulationConfig
from tiering.trace import TraceRequest, read_trace
from tiering.writes import Writes

TRACES = Path(__file__).resolve().parents[2] / "benchmarks" / "traces"


def requests(prompts, every_s):
    return [TraceRequest(at * every_s, list(blocks), 0, 0) for at, blocks in enumerate(prompts)]


def run(prompts, device_blocks, host_blocks=0, disk_blocks=0, *, every_s=1.0, **more):
    simulation = Simulation(
        SimulationConfig(
            device_blocks=device_blocks, host_blocks=host_blocks, disk_blocks=disk_blocks, **more
        )
    )
    outcome = simulation.run(requests(prompts, every_s))
    simulation.check()
    return outcome


def test_whole_prompts_match_and_the_last_block_too():
    found = run([(1, 2, 3), (1, 2, 3), (1, 2, 4)], 8)
    assert (found.num_requests, found.num_blocks, found.num_computed) == (3, 9, 4)
    assert found.hits_by_tier == {"device": 5}
    assert found.writes_by_tier == {"device": 4}
    assert found.hit_rate == 5 / 9


def test_equal_ids_behind_different_ones_are_different_blocks():
    assert run([(1, 2), (3, 2)], 8).hits == 0


def test_of_a_prompt_that_is_too_long_the_first_blocks_stay():
    found = run([(1, 2, 3, 4, 5), (1, 2, 3, 4, 5)], 3)
    assert (found.hits, found.num_blocks) == (3, 10)


def test_a_prompt_without_blocks_counts_as_a_request():
    found = run([(), (1,), (1,)], 3)
    assert (found.num_requests, found.hits) == (3, 1)
    assert run([()], 1).hit_rate == 0.0


def test_what_leaves_the_device_is_found_below():
    prompts = [(1, 2), (3, 4), (5, 6), (1, 2)]
    assert run(prompts, 2).hits_by_tier == {"device": 0}
    assert run(prompts, 2, 8).hits_by_tier == {"device": 0, "host": 2}
    prompts = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (1, 2)]
    found = run(prompts, 2, 4, 20)
    assert found.hits_by_tier == {"device": 0, "host": 0, "disk": 2}
    assert found.writes_by_tier["device"] == 12
    assert found.num_computed == 10


@pytest.mark.parametrize("policy", ["lru", "arc"])
def test_each_tier_below_adds_hits_and_fewer_blocks_are_written_than_computed(policy):
    """On the head of a real trace, with every move of the core made."""
    head = list(itertools.islice(read_trace(TRACES / "weka_mixA_blk512.jsonl.zst"), 100))
    found = []
    for sizes in ((300, 0, 0), (300, 400, 0), (300, 400, 600)):
        config = SimulationConfig(
            device_blocks=sizes[0], host_blocks=sizes[1], disk_blocks=sizes[2], policy=policy
        )
        simulation = Simulation(config)
        found.append(simulation.run(head))
        simulation.check()
    assert found[0].hits < found[1].hits < found[2].hits
    assert all(found[2].hits_by_tier.values())
    assert 0 < found[2].writes_by_tier["disk"] < found[2].num_computed


def test_what_is_not_explained_is_found_all_the_same():
    """The simulator's index notes nothing for explanations, which an engine's does."""
    head = list(itertools.islice(read_trace(AGENTS), 300))
    config = SimulationConfig(device_blocks=60, host_blocks=60, disk_blocks=400)
    found = []
    for explains in (False, True):
        simulation = Simulation(config)
        simulation._index = Index(replace(config.index, explains=explains), bytes(32))
        found.append(simulation.run(head))
    assert found[0] == found[1]
    assert all(found[0].hits_by_tier.values())


def some_requests():
    """Paths that branch, some of which come again, in tiers that have room for few."""
    rng = random.Random(7)
    paths = [
        [rng.randrange(3), *(1000 * at + step for step in range(rng.randrange(1, 60)))] for at in range(40)
    ]
    return [tuple(path[: rng.randrange(1, len(path) + 1)]) for path in rng.choices(paths, k=300)]


@pytest.mark.parametrize("times", [BlockTimes(), BlockTimes(compute_s=0.01, write_s=0.05, demote_s=0.002)])
def test_room_for_all_batches_of_a_plan_is_what_room_for_each_would_be(monkeypatch, times):
    sizes = {"device_blocks": 80, "host_blocks": 150, "disk_blocks": 4000, "admission": "all", "times": times}
    deleted = []
    send = Outbox.send
    monkeypatch.setattr(Outbox, "send", lambda outbox, move: deleted.append(move) or send(outbox, move))
    found = []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(Writes, "_make_room", lambda _writes, _ids: None)
        deleted.clear()
        # few places on disk for batches of sixteen, which follow from its size
        with monkeypatch.context() as smaller:
            smaller.setattr(SimulationConfig, "index", small_disk(SimulationConfig.index))
            outcome = run(some_requests(), **sizes)
        keys = [block_keys(move.keys) for move in deleted if isinstance(move, Forget)]
        found.append((outcome, list(itertools.chain(*keys)), len(keys)))
    (at_once, deleted_at_once, fewer), (each, deleted_each, more) = found
    assert at_once == each
    assert deleted_at_once == deleted_each
    assert 0 < fewer < more


def small_disk(index):
    return property(lambda config: replace(index.fget(config), disk_bytes=320, write_batch_share=0.05))


def test_nobody_notes_events_in_a_simulation():
    simulation = Simulation(SimulationConfig(device_blocks=2, host_blocks=4))
    simulation.run(requests([(1, 2), (3, 4), (5, 6)], 1.0))
    assert simulation._index.stats()["transfers"]["demote"]["blocks"]
    assert not simulation._index.events.after(0)


@pytest.mark.parametrize("policy", ["lru", "fifo", "s3fifo", "arc"])
def test_an_order_finds_what_another_simulator_says(policy):
    """On a whole trace; `make bench-simulate` does all of them, at all sizes."""
    outcome = Simulation(SimulationConfig(device_blocks=1000, policy=policy)).run(read_trace(AGENTS))
    assert outcome.hit_rate == pytest.approx(KNOWN[AGENTS][policy][0], abs=0.001)


# ---- time ------------------------------------------------------------------------------------------------------------


def test_what_is_computed_takes_its_time_and_who_comes_meanwhile_waits():
    found = run([(1, 2), (1, 3)], 8, times=BlockTimes(compute_s=2.0))
    assert found.ttft_s == [4.0, 5.0], "the second came at 1 s, began at 4 s and computed one block"


def test_a_load_takes_its_time_and_so_does_making_room():
    """At 10 s: 3 and 4 come up from host memory, in 1 s a block, once 1 and 2 have gone down, in 0.25 s a block."""
    times = BlockTimes(promote_s=1.0, demote_s=0.25)
    prompts = [(3, 4), (1, 2), (3, 4)]
    found = run(prompts, 2, 8, every_s=5.0, times=times)
    assert found.ttft_s == [0.0, 0.5, 2.5]
    assert found.hits_by_tier == {"device": 0, "host": 2}


def test_reads_come_before_copies_up():
    prompts = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (1, 2)]
    found = run(prompts, 2, 4, 20, every_s=10.0, times=BlockTimes(read_s=1.0, promote_s=0.5))
    assert found.hits_by_tier["disk"] == 2
    assert found.ttft_s[-1] == 3.0


def test_nothing_takes_time_unless_it_is_said():
    assert run([(1, 2), (1, 3)], 8).ttft_s == []


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"device_blocks": 0}, "at least one block, not 0"),
        ({"device_blocks": 1, "host_blocks": -1}, "at least 0 blocks"),
        ({"device_blocks": 1, "disk_blocks": 5}, "host_blocks is 0"),
        ({"device_blocks": 1, "admission": "none"}, "there is no admission 'none': there are adaptive, all"),
    ],
)
def test_what_cannot_be_simulated_is_said(sizes, why):
    with pytest.raises(ValueError, match=why):
        SimulationConfig(**sizes)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        BlockTimes(read_s=-1.0)


def test_the_simulator_needs_no_torch(tmp_path):
    """As in an installation without models: neither it nor the engine can be imported."""
    trace = tmp_path / "a.jsonl"
    trace.write_text('{"timestamp": 0, "hash_ids": [1, 2]}\n{"timestamp": 1, "hash_ids": [1, 2]}\n', "utf-8")
    program = (
        "import sys; sys.modules['torch'] = sys.modules['engine'] = None\n"
        "from tiering.cli import main\n"
        f"sys.argv = ['kvtide', 'simulate', {str(trace)!r}, '--device-blocks', '8']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "50.00" in done.stdout


def test_an_outcome_of_nothing_hits_nothing():
    empty = Outcome(num_requests=0, num_blocks=0, hits_by_tier={}, writes_by_tier={}, num_computed=0)
    assert (empty.hits, empty.hit_rate) == (0, 0.0)


def test_the_admission_is_told_what_rows_say(monkeypatch):
    simulation, said = Simulation(SimulationConfig(device_blocks=8)), []
    release = simulation._index.release
    monkeypatch.setattr(
        simulation._index, "release", lambda lease, told: (said.append(told), release(lease, told))
    )
    hints = Hints(goes_on=True)
    simulation.run([TraceRequest(0.0, [1, 2], 32, 7, hints, kind=1)])
    assert said == [Told(output_tokens=7, kind=1, hints=hints)]
