"""Laws of the default admission, and what it gains on real traces."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.keeping import hints, simulated
from benchmarks.leaf_order import LeafOrder, Trace, hit_rate, read
from tiering.keeping import ADMISSIONS, Adaptive, Departing, Ended, Everything, Hints, Told, Verdict

_conversation = cache(lambda: read("mooncake_conversation_h1", 512))


def _first(trace: Trace, num_requests: int) -> Trace:
    return Trace(name=trace.name, requests=trace.requests[:num_requests], parent=trace.parent)


def _ended(*blocks: int, **said: object) -> Ended:
    return Ended(fingerprints=np.array(blocks, dtype=np.uint64) + np.uint64(1), told=Told(**said))  # type: ignore[arg-type]


def _chain(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


# --- golden figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "rate"), [(3000, 0.0641)])
def test_with_everything_admitted_the_last_use_decides(blocks, rate):
    assert hit_rate(_conversation(), blocks, Everything([blocks])) == pytest.approx(rate, abs=5e-5)


@pytest.mark.parametrize(("blocks", "least"), [(1000, 1.4 * 0.0432), (3000, 1.7 * 0.0641)])
def test_conversations_under_pressure_gain(blocks, least):
    assert hit_rate(_conversation(), blocks, Adaptive([blocks])) >= least


def test_hints_that_are_mostly_right_gain_more():
    trace = _conversation()
    assert hit_rate(trace, 5000, Adaptive([5000]), hints(trace, seed=0)) >= 0.18


def test_hints_that_say_nothing_cost_nothing():
    """Said of every other request at random: what they are worth is learned."""
    trace = _first(_conversation(), 1500)
    plain = hit_rate(trace, 3000, Adaptive([3000]))
    assert hit_rate(trace, 3000, Adaptive([3000]), hints(trace, seed=0, flipped=0.5)) > 0.85 * plain


# --- laws -------------------------------------------------------------------------------------------------------------


def test_with_room_for_all_every_hit_of_the_last_use_is_one():
    trace = _first(_conversation(), 1000)
    capacity = len(trace.parent)
    admission = Adaptive([capacity])
    assert hit_rate(trace, capacity, admission) == hit_rate(trace, capacity, Everything([capacity]))
    assert admission.chooses == (False,)


def test_it_is_deterministic_and_its_memory_is_bounded():
    trace = _first(_conversation(), 1000)
    first, second = Adaptive([500]), Adaptive([500])
    size = first.num_bytes
    assert hit_rate(trace, 500, first) == hit_rate(trace, 500, second)
    assert first.num_bytes == size < 1 << 19
    assert Adaptive([10**9]).num_bytes < 32 << 20
    first.check()


def test_what_is_never_asked_for_again_is_kept_out_once_that_is_seen():
    """One-turn requests with long replies among conversations whose turns are tool calls."""
    admission, kept = Adaptive([1000]), {True: 0, False: 0}
    for number in range(3000):
        turn, once = divmod(number, 2)
        talk = turn % 40
        blocks = (
            _chain(10**6 + 64 * number, 64) if once else [0, *_chain(1 + 1000 * talk, 2 + turn // 40 % 900)]
        )
        num = admission.ended(_ended(*blocks, output_tokens=500 if once else 10))
        if number > 2000:
            kept[bool(once)] += num == 0 if once else num >= len(blocks) - 1
    admission.check()
    assert admission.chooses == (True,)
    assert kept[True] > 450, "requests that are not asked for again are first to go"
    assert kept[False] > 440, "conversations are kept"


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_the_tier_is_whole_after_each_request(data):
    """Whatever comes and whatever is said of it: never more than fits, no parent gone before its child."""
    parent, paths = [-1], [[0]]
    capacity = data.draw(st.integers(1, 30), label="capacity")
    admission = Adaptive([capacity])
    for _ in range(data.draw(st.integers(1, 40), label="requests")):
        base = data.draw(st.sampled_from(paths))
        path = base[: data.draw(st.integers(0, len(base)))]
        for _ in range(data.draw(st.integers(0 if path else 1, 6))):
            parent.append(path[-1] if path else -1)
            path = [*path, len(parent) - 1]
        paths.append(path)
    order = LeafOrder(parent, capacity)
    for path in paths:
        said = Hints(one_shot=data.draw(st.booleans()), shared_blocks=data.draw(st.integers(0, 3)))
        num_kept = admission.ended(_ended(*path, hints=said))
        assert 0 <= num_kept <= len(path)
        # any answer must leave the order whole, not only this one
        order.enter(path, order.hits(path), data.draw(st.integers(0, len(path))))
        order.check()
    admission.check()


def test_hints_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="one of the two"):
        Hints(goes_on=True, one_shot=True)
    with pytest.raises(ValueError, match="breakpoints"):
        Hints(breakpoints=(0,))


@pytest.mark.parametrize("name", ADMISSIONS)
def test_a_request_without_blocks_is_nothing(name):
    admission = ADMISSIONS[name]([10])
    assert admission.ended(_ended()) == 0
    admission.check()


# --- going down -------------------------------------------------------------------------------------------------------


def _verdicts(admission: Adaptive, blocks: list[int], **of: object) -> list[int]:
    fingerprints = np.array(blocks, dtype=np.uint64) + np.uint64(1)
    return admission.admit(Departing(tier=1, fingerprints=fingerprints, **of)).tolist()  # type: ignore[arg-type]


def _taught() -> Adaptive:
    """Conversations of short replies that go on, and as many long ones that do not, in tiers too small for both."""
    admission = Adaptive([500, 500])
    for number in range(2000):
        turn, once = divmod(number, 2)
        blocks = (
            _chain(10**6 + 64 * number, 64) if once else [0, *_chain(1 + 1000 * (turn % 20), 2 + turn // 20)]
        )
        admission.ended(_ended(*blocks, output_tokens=500 if once else 10))
    return admission


def test_blocks_seen_again_go_down_and_those_of_a_class_that_is_not_do_not():
    admission = _taught()
    seen_again, once = _chain(1, 20), _chain(10**6 + 64 * 1999, 20)
    assert _verdicts(admission, seen_again) == [Verdict.ADMIT] * 20
    assert _verdicts(admission, once) == [Verdict.REJECT] * 20
    assert admission.reasons(1) == {"ReuseSeen": {"admit": 20}, "NeverReused": {"reject": 20}}
    assert admission.reasons(2) == {}


def test_a_lower_tier_has_more_hits_of_fewer_writes():
    trace = _first(_conversation(), 1000)
    everything, adaptive = (simulated(trace, (500, 1500, 0), each) for each in ("all", "adaptive"))
    assert adaptive.hits > 1.1 * everything.hits
    assert adaptive.writes_by_tier["host"] < 0.8 * everything.writes_by_tier["host"]


def test_a_large_lower_tier_is_not_kept_from_what_it_would_have_hit():
    trace = _first(_conversation(), 400)
    everything, adaptive = (simulated(trace, (400, 800, 20_000), each) for each in ("all", "adaptive"))
    assert adaptive.hits == everything.hits
    assert adaptive.writes_by_tier["disk"] > 0


def test_before_anything_is_known_all_goes_down():
    admission = Adaptive([100, 100])
    admission.ended(_ended(*_chain(0, 10)))
    assert _verdicts(admission, _chain(0, 20)) == [Verdict.ADMIT] * 20
