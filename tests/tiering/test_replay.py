"""The replay beside what is known: when steps end, who waits for whom, and what an engine that serves the same finds."""

import math

import numpy as np
import pytest

from tiering.costs import Costs
from tiering.decision import Chooser
from tiering.index_config import IndexConfig
from tiering.keeping import Hints, Told
from tiering.moves import Demote, Promote, Read
from tiering.replay import Asked, Replay, ReplayConfig
from tiering.step_costs import MoveCosts, Part, SameSteps, Scatter, Step, StepCosts, terms

BLOCK = 4
STEPS = StepCosts(step_s=1.0, token_s=0.1, decode_s=0.5)


def config(device=100, host=0, disk=0, later=0, **settings) -> ReplayConfig:
    index = IndexConfig(
        block_tokens=BLOCK,
        device_slots=device,
        host_slots=host,
        later_host_slots=later,
        disk_bytes=disk,
        record_bytes=1,
        clean_share=0.5,
    )
    return ReplayConfig(
        **{"index": index, "max_num_seqs": 4, "max_batch_tokens": 20, "steps": STEPS, **settings}
    )


def asked(at_s: float, tokens, new: int = 1) -> Asked:
    return Asked(at_s=at_s, prompt=np.array(tokens, dtype=np.int32), max_tokens=new)


def test_what_a_step_is_charged_for():
    parts = [Part(10, 4, decode=False), Part(7, 1, decode=True)]
    assert terms(parts).tolist() == [1, 4, 4 * 12, 1, 8]
    assert (
        StepCosts(step_s=1, token_s=2, pair_s=3, decode_s=4, context_s=5).seconds(parts)
        == 1 + 8 + 144 + 4 + 40
    )


def test_a_prompt_is_computed_in_chunks_and_others_wait_for_their_end():
    """40 tokens are two steps of 20; who comes during the first is begun with the third."""
    first, second = Replay(config()).run([asked(0, range(40)), asked(0.5, range(100, 110))])
    assert first.ttft_s == pytest.approx(6.0)
    assert second.ttft_s == pytest.approx(6.0 - 0.5 + 2.0)


def test_replies_go_on_beside_prompts():
    """The reply's token and the prompt share a step, and each of its further tokens is a step."""
    replay = Replay(config())
    first, second = replay.run([asked(0, range(10), 4), asked(0.1, range(100, 110), 1)])
    assert first.ttft_s == pytest.approx(2.0)
    assert second.ttft_s == pytest.approx(2.0 - 0.1 + 2.5)
    assert replay.num_steps == 4


def test_who_shares_a_prefix_that_is_being_computed_waits_for_it():
    prompt = list(range(12))
    seen = Replay(config()).run([asked(0, [*prompt, 50, 51]), asked(0, [*prompt, 60, 61])])
    assert [each.found["device"] for each in seen] == [0, 3]
    assert seen[1].ttft_s == pytest.approx(2.4 + 1.2)


def test_whole_blocks_of_replies_are_cached_and_no_prompt_has_them():
    replay = Replay(config())
    replay.run([asked(0, range(8), 9)])
    assert replay._index.stats()["blocks"] == 4
    assert (
        Replay(config()).run([asked(0, range(8), 9), asked(50, [*range(8), *range(9)])])[1].found["device"]
        == 2
    )


def test_what_was_pushed_down_comes_back_in_the_time_that_it_takes():
    """A device of 8 blocks: the second prompt pushes the first one down, and the third has it back."""
    moves = {Promote: MoveCosts(latency_s=3.0, block_s=0.5), Demote: MoveCosts(block_s=0.25)}
    one, other = list(range(24)), list(range(100, 124))
    seen = Replay(config(device=8, host=20, moves=moves)).run(
        [asked(0, one), asked(100, other), asked(200, one)]
    )
    found = seen[2].found
    assert found["host"] > 0
    num_found = found["device"] + found["host"]
    computed = -(-(24 - 4 * num_found) // 20) + 0.1 * (24 - 4 * num_found)
    assert seen[2].ttft_s >= 3.0 + 0.5 * found["host"] + computed - 1e-9
    assert seen[2].ttft_s <= 3.0 + 0.5 * found["host"] + computed + 0.25 * 8 + 1e-9


def test_clients_ask_one_after_the_other():
    seen = Replay(config()).run([asked(0, range(i, i + 10)) for i in range(0, 60, 20)], clients=1)
    assert [each.ttft_s for each in seen] == pytest.approx([2.0, 2.0, 2.0])


def test_the_same_requests_have_the_same_end():
    random = np.random.default_rng(0)
    asking = [asked(i * 0.7, random.integers(0, 3, 30).tolist() + [i] * 5, 5) for i in range(60)]
    shape = {"device": 20, "host": 20, "disk": 30}
    assert Replay(config(**shape)).run(asking) == Replay(config(**shape)).run(asking)


def test_host_memory_that_an_engine_makes_ready_later_is_there():
    random = np.random.default_rng(1)
    asking = [asked(i * 3.0, random.integers(0, 2, 24).tolist() + [i] * 5, 5) for i in range(25)]
    shape = {"device": 12, "host": 30, "disk": 30}
    later = Replay(config(**shape, later=26))
    assert later.run(asking) == Replay(config(**shape)).run(asking)
    assert later._index.stats()["tiers"]["host"]["slots"] == 30


def test_who_is_preempted_has_back_what_it_computed_for_itself():
    """Two replies outgrow a device of 8 blocks: the younger one's go to host memory, and come back in place of being computed."""
    replay = Replay(config(device=8, host=20, max_num_seqs=2))
    replay.run([asked(0, range(6), 18), asked(0, range(50, 53), 18)])
    preempted = replay._index.stats()["preempted"]
    assert preempted["requests"] >= 1
    assert preempted["swapped_in_blocks"] == preempted["swapped_out_blocks"] >= 1


def test_a_chooser_is_asked_and_learns_from_the_virtual_clock():
    """Copies up that take far longer than computing: after the first few they are left alone, as an engine with "auto" would."""
    moves = {Promote: MoveCosts(latency_s=30.0)}
    prompts = [list(range(24)), list(range(100, 124))]
    asking = [asked(100.0 * number, prompts[number % 2]) for number in range(40)]
    always = Replay(config(device=8, host=20, moves=moves)).run(asking)
    replay = Replay(config(device=8, host=20, moves=moves), Chooser(Costs()))
    chosen = replay.run(asking)
    assert all(each.found["host"] for each in always[2:])
    assert not any(each.found["host"] for each in chosen[30:])
    assert sum(each.ttft_s for each in chosen[30:]) < 0.5 * sum(each.ttft_s for each in always[30:])
    assert replay._index.stats()["load_or_compute"]["ended"] > 0


ONE = StepCosts(step_s=1.0, token_s=0.0)


def prompts(took_s, num_tokens=20, from_s=0.0, every_s=0.0) -> list[Step]:
    """Steps of one chunk each."""
    parts = (Part(0, num_tokens, decode=False),)
    return [Step(parts, from_s + number * every_s, each) for number, each in enumerate(took_s)]


def test_steps_scatter_as_they_are_told_to_and_by_the_seed():
    asking = [asked(0, range(400))]
    [plain] = Replay(config(steps=ONE)).run(asking)
    [twice] = Replay(config(steps=Scatter(ONE, prompts([2.0])))).run(asking)
    assert twice.ttft_s == pytest.approx(2 * plain.ttft_s)
    scattered = config(steps=Scatter(ONE, prompts([0.5, 1.0, 1.5])))
    times = [Replay(scattered, seed=seed).run(asking)[0].ttft_s for seed in (0, 0, 1)]
    assert times[0] == times[1] != times[2]


def test_steps_with_as_long_prompts_scatter_alike_whatever_they_cost():
    random = np.random.default_rng(0)
    costs = StepCosts(step_s=1.0, token_s=0.1, context_s=1.0)
    reply = (Part(9, 1, decode=True),)  # costs as much as a prompt of a hundred tokens
    steps = [*prompts([22.0] * 40, 100), *prompts([1.5] * 40, 10), *[Step(reply, 0.0, 11.0)] * 40]
    scatter = Scatter(costs, steps)
    for parts, took_s in ((reply, 11.0), (steps[0].parts, 22.0), (steps[40].parts, 1.5)):
        drawn = [scatter.took_s(parts, 0.0, random) for _ in range(20)]
        assert drawn == pytest.approx([took_s] * 20)


def test_a_machine_is_slow_when_it_was():
    """A minute of steps that take what they cost, and one of steps that take three times that."""
    random = np.random.default_rng(0)
    steps = [*prompts([1.0] * 60, every_s=1.0), *prompts([3.0] * 20, from_s=60.0, every_s=3.0)]
    scatter = Scatter(ONE, steps)
    assert [scatter.pace(now_s) for now_s in (0.0, 30.0, 90.0)] == pytest.approx([1.0, 1.0, 3.0], rel=1e-3)
    assert 1.0 < scatter.pace(60.0) < 3.0
    assert scatter.pace(1e6) == pytest.approx(120 / 80), "where nothing is near it was as in the whole run"
    drawn = [scatter.took_s(steps[0].parts, now_s, random) for now_s in (30.0, 90.0) for _ in range(20)]
    assert drawn == pytest.approx([1.0] * 20 + [3.0] * 20, rel=0.05)
    always = Scatter(ONE, steps, math.inf)
    assert always.pace(30.0) == always.pace(90.0) == pytest.approx(1.5)


def test_a_step_that_the_run_had_takes_what_it_took_there():
    random = np.random.default_rng(0)
    first, second = Part(0, 7, decode=False), Part(12, 1, decode=True)
    steps = [Step((first, second), 0.0, 0.4), Step((first, second), 9.0, 0.8), *prompts([2.0] * 16, 20)]
    same = SameSteps(ONE, steps)
    assert same.took_s([second, first], 1.0, random) == 0.4
    assert same.took_s([first, second], 8.0, random) == 0.8
    assert same.took_s([Part(0, 21, decode=False)], 1e6, random) == pytest.approx(2.0, rel=0.2)


def test_a_read_that_takes_too_long_is_waited_for_until_its_deadline():
    """Also while its answer is still to come: an engine's loop wakes then, and computes."""
    prompts = [list(range(start, start + 24)) for start in range(0, 400, 100)]
    asking = [*(asked(start, prompt) for start, prompt in zip(range(0, 400, 100), prompts, strict=True))]
    asking.append(asked(400, prompts[0]))
    for read_s, load_s in ((2.0, 2.0), (30.0, 10.0)):
        moves = {Read: MoveCosts(latency_s=read_s)}
        last = Replay(config(device=8, host=8, disk=100, moves=moves)).run(asking)[-1]
        assert last.load_s == pytest.approx(load_s)
        assert (last.found["disk"] > 0) is (read_s < load_s + 1)


def test_where_the_time_went_is_told_and_adds_up():
    moves = {Promote: MoveCosts(latency_s=3.0)}
    one, other = list(range(24)), list(range(100, 124))
    asking = [asked(0, one), asked(100, other), asked(200, one), asked(200, one)]
    seen = Replay(config(device=8, host=20, moves=moves)).run(asking)
    assert seen[0].queue_s == seen[0].load_s == 0
    assert seen[0].prefill_s == seen[0].ttft_s
    assert seen[2].load_s >= 3.0
    assert any(each.queue_s > 0 for each in seen)
    for each in seen:
        assert each.queue_s + each.load_s + each.prefill_s == pytest.approx(each.ttft_s)


def test_the_admission_is_told_the_hints(monkeypatch):
    replay, said = Replay(config()), []
    release = replay._index.release
    monkeypatch.setattr(
        replay._index, "release", lambda lease, told: (said.append(told), release(lease, told))
    )
    hints = Hints(one_shot=True)
    replay.run([Asked(at_s=0, prompt=asked(0, range(9)).prompt, max_tokens=2, hints=hints)])
    assert said == [Told(output_tokens=2, hints=hints)]
