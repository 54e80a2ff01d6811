"""What the core says of a prompt that it cannot serve further, on the model of memory."""

import numpy as np
import pytest

from kvstore.reasons import MissReason
from kvstore.reports import Difference, Explanation
from tests.tiering.memory_model import DIED
from tests.tiering.small_tiers import BLOCK_TOKENS, model, on_disk, prompt
from tiering.explain import Others, explain
from tiering.matching import CacheUse
from tiering.moves import Promote, Read
from tiering.residency import Tier

MARK = 1 << 24


def described(divergence):
    """A difference of nothing but token ids."""
    at = divergence.at_token
    return Difference(
        at_token=at,
        before_ids=tuple(divergence.asked[:at].tolist()),
        asked_ids=tuple(divergence.asked[at:].tolist()),
        cached_ids=tuple(divergence.cached.tolist()),
    )


def now(tiers, tokens, **given) -> Explanation:
    """Of a prompt that nobody has asked for yet."""
    tiers.index.at(tiers.now_s)
    use = given.pop("use", CacheUse.READ_WRITE)
    return explain(tiers.index.observe(np.array(tokens, dtype="<i4"), use), described, **given)


def of(request) -> Explanation:
    """Of a request that was admitted, as its lease saw it."""
    lease = request.lease
    return explain(lease.observed, described, found_in=lease.found_in, lost=lease.lost)


def told(explanation):
    """Its parts in blocks: (tier or reason, blocks), and what is no whole block in tokens."""
    rows = []
    for part in explanation.parts:
        num_tokens = part.end_token - part.start_token
        if part.reason is MissReason.NOT_A_WHOLE_BLOCK:
            rows.append(("rest", num_tokens))
        else:
            rows.append((part.tier if part.reason is None else part.reason.value, num_tokens // BLOCK_TOKENS))
    ends = [part.end_token for part in explanation.parts]
    assert [part.start_token for part in explanation.parts] == [0, *ends[:-1]], "there is a gap"
    assert ends[-1] == explanation.prompt_tokens
    assert explanation.cached_tokens + sum(explanation.reasons.values()) == explanation.prompt_tokens
    return rows


def test_a_prompt_that_nobody_has_asked():
    assert told(now(model(device=4), prompt(1, 2))) == [("never_seen", 2), ("rest", 1)]


def test_a_prompt_shorter_than_a_block_and_one_token():
    tiers = model(device=4)
    tiers.run(prompt(1))
    assert told(now(tiers, [1])) == [("rest", 1)]
    assert told(now(tiers, [1, 1])) == [("rest", 2)], "its last token is always computed"


def test_what_is_served_and_what_is_new_behind_it():
    tiers = model(device=8, host=8)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    tiers.run(prompt(1))
    assert told(now(tiers, prompt(1, 2, 3))) == [("device", 1), ("host", 1), ("never_seen", 1), ("rest", 1)]


def test_a_difference_is_told_to_the_token():
    tiers = model(device=8)
    tiers.run([1, 1, 2, 2, 3, 3, 99])
    explanation = now(tiers, [1, 1, 2, 9, 3, 3, 99])
    assert told(explanation) == [("device", 1), ("differs", 2), ("rest", 1)]
    assert explanation.difference == Difference(
        at_token=3, before_ids=(1, 1, 2), asked_ids=(9, 3, 3, 99), cached_ids=(2, 3, 3)
    )


def test_of_what_is_cached_instead_no_more_is_kept_than_a_multiple_of_what_is_asked(monkeypatch):
    """Explanations are kept for long, and a short prompt may part from a very long one."""
    monkeypatch.setattr("tiering.observer._LEAST_ONWARDS_TOKENS", 6)
    tiers = model(device=40)
    tiers.run(prompt(*range(1, 31)))
    for asked, kept_blocks in (([1, 1, 2, 9, 99], 3), ([1, 1, 2, 9, *[7] * 12, 99], 14)):
        observed = tiers.index.observe(np.array(asked, dtype="<i4"))
        assert np.frombuffer(observed.onwards, "<i4").tolist() == prompt(*range(2, 2 + kept_blocks))[:-1]
    assert now(tiers, [1, 1, 2, 9, 99]).difference.cached_ids == (2, 3, 3, 4, 4)


def test_the_first_token_differs_from_what_nobody_could_mean():
    tiers = model(device=8)
    tiers.run(prompt(1, 2))
    explanation = now(tiers, prompt(5, 6))
    assert told(explanation) == [("never_seen", 2), ("rest", 1)]
    assert explanation.difference is None


def test_the_most_similar_of_many_is_compared():
    tiers = model(device=40)
    for last in range(10, 20):
        tiers.run([7, last, last, last, 99])
    tiers.run([7, 8, 3, 3, 99])
    explanation = now(tiers, [7, 8, 4, 4, 99])
    assert explanation.difference.cached_ids == (3, 3)


@pytest.mark.parametrize(
    ("tiers", "tier"),
    [
        (model(device=3), "device"),
        (model(device=3, host=2), "host"),
        (model(device=3, host=2, disk=2), "disk"),
    ],
    ids=["device", "host", "disk"],
)
def test_evicted_and_when_and_from_which_tier(tiers, tier):
    ask = on_disk if tier == "disk" else lambda tiers, *names: tiers.run(prompt(*names))
    for name in (1, *range(10, 24, 2)):
        tiers.now_s += 1.0
        ask(tiers, name, name + 1)
    before_s = tiers.now_s
    tiers.now_s += 5.0
    explanation = now(tiers, prompt(1, 2))
    assert explanation.reasons == {MissReason.EVICTED: 2 * BLOCK_TOKENS, MissReason.NOT_A_WHOLE_BLOCK: 1}
    part = explanation.parts[0]
    assert part.tier == tier
    assert 5.0 <= part.ago_s <= 5.0 + before_s


def test_the_end_was_evicted_and_the_beginning_was_not():
    tiers = model(device=4)
    tiers.run(prompt(1, 2, 3))
    tiers.run(prompt(1, 2, 4))
    assert told(now(tiers, prompt(1, 2, 3))) == [("device", 2), ("evicted", 1), ("rest", 1)]


def test_expired_before_and_after_it_has_gone():
    tiers = model(device=4, ttl_s=10.0)
    tiers.run(prompt(1, 2))
    tiers.now_s += 11.0
    assert told(now(tiers, prompt(1, 2))) == [("expired", 2), ("rest", 1)]
    tiers.settle()
    assert tiers.index.stats()["blocks"] == 0
    tiers.now_s += 4.0
    explanation = now(tiers, prompt(1, 2))
    assert told(explanation) == [("expired", 2), ("rest", 1)]
    assert explanation.parts[0].ago_s == 4.0


def test_removed_by_hand():
    tiers = model(device=4)
    tiers.run(prompt(1))
    assert tiers.index.clear()
    assert told(now(tiers, prompt(1))) == [("removed", 1), ("rest", 1)]


def test_of_what_was_erased_nothing_is_remembered():
    tiers = model(device=8)
    tiers.run(prompt(3))  # an owner's: see memory_model.ownership_of
    assert tiers.index.erase(bytes([1]) * 16)
    assert tiers.index.stats()["blocks"] == 0
    assert told(now(tiers, prompt(3))) == [("never_seen", 1), ("rest", 1)]


def test_a_reply_that_is_not_indexed():
    tiers = model(device=4)
    tiers.run(prompt(1))
    tiers.index.not_indexed(np.array([1, 1, 2, 2, 3], dtype="<i4"), 1)
    assert told(now(tiers, prompt(1, 2, 3))) == [
        ("device", 1),
        ("reply_not_indexed", 1),
        ("never_seen", 1),
        ("rest", 1),
    ]


def test_another_tenant_has_it():
    tiers = model(device=40, mark_shift=24)
    tiers.run(prompt(1, 2))
    for name in range(10, 20):
        tiers.run(prompt(1, name))
    explanation = now(tiers, [1, 1, 2 | MARK, 2 | MARK, 99], mark_shift=24)
    assert told(explanation) == [("device", 1), ("other_identity", 1), ("rest", 1)]
    assert "tenant" in explanation.parts[1].detail


def test_what_another_tenant_has_instead_is_no_reason_and_is_not_shown():
    """It could not have been shared if it were the same: the marks of both differ, and the tokens from one on."""
    tiers = model(device=40, mark_shift=24)
    tiers.run([1, 1, 2 | MARK, 3 | MARK, 4, 4, 99])
    for asked in ([1, 1, 2 | 2 * MARK, 5 | 2 * MARK, 6, 6, 99], [1, 1, 2, 5, 6, 6, 99]):
        explanation = now(tiers, asked, mark_shift=24)
        assert told(explanation) == [("device", 1), ("never_seen", 2), ("rest", 1)]
        assert explanation.difference is None
    explanation = now(tiers, [1, 1, 2 | MARK, 5 | MARK, 6, 6, 99], mark_shift=24)
    assert told(explanation) == [("device", 1), ("differs", 2), ("rest", 1)]
    assert explanation.difference.cached_ids == (3, 4, 4), "the tenant's own"
    tiers.run([1, 1, 8, 9, 99])
    explanation = now(tiers, [1, 1, 2, 3, 6, 6, 99], mark_shift=24)
    assert told(explanation) == [("device", 1), ("other_identity", 2), ("rest", 1)], "all of a block"
    explanation = now(tiers, [1, 1, 2, 7, 6, 6, 99], mark_shift=24)
    assert told(explanation) == [("device", 1), ("differs", 2), ("rest", 1)]
    assert explanation.difference.cached_ids == (8, 9), "nobody's, though less like it than the tenant's"


def test_another_model_has_it():
    tiers = model(device=8)
    others = Others(2, "another model has it")
    explanation = now(tiers, prompt(1, 2), elsewhere=lambda: others)
    assert told(explanation) == [("other_identity", 2), ("rest", 1)]
    assert explanation.parts[0].detail == "another model has it"
    explanation = now(tiers, prompt(1, 2, 3), elsewhere=lambda: others)
    assert told(explanation) == [("other_identity", 2), ("never_seen", 1), ("rest", 1)]


def test_no_use_of_the_cache():
    tiers = model(device=8)
    tiers.run(prompt(1))
    assert told(now(tiers, prompt(1), use=CacheUse.OFF)) == [("cache_off", 1), ("rest", 1)]
    assert told(now(tiers, prompt(1), use=CacheUse.READ)) == [("device", 1), ("rest", 1)]


@pytest.mark.parametrize(
    "reason", [MissReason.ABSENT, MissReason.DAMAGED_CHECKSUM, MissReason.WRONG_IDENTITY]
)
def test_a_record_that_failed_a_check(reason):
    """Who waited for it is told, and who comes later as well, while there is a hole."""
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    tiers.complete(tiers.moves(Read)[0].number, misses={1: reason})
    tiers.settle()
    assert told(of(request)) == [("disk", 1), (reason.value, 1), ("disk", 1), ("rest", 1)]
    tiers.release(request)
    tiers.settle()
    behind = ("behind_a_loss", 1)
    assert told(now(tiers, prompt(1, 2, 3))) == [("device", 1), (reason.value, 1), behind, ("rest", 1)]


def test_what_waited_behind_a_lost_block_for_too_long():
    tiers = model(device=8, host=4, disk=8, hole_ttl_s=300.0)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    tiers.complete(tiers.moves(Read)[0].number, misses={0: MissReason.DAMAGED_LENGTH})
    tiers.settle()
    tiers.release(request)
    tiers.settle()
    tiers.now_s += 301.0
    tiers.settle()
    assert tiers.index.stats()["blocks"] == 0
    assert told(now(tiers, prompt(1, 2, 3))) == [("damaged_length", 1), ("behind_a_loss", 2), ("rest", 1)]


def test_a_disk_that_was_emptied():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    tiers.index.disk_was_emptied()
    tiers.disk.clear()
    assert told(now(tiers, prompt(1, 2))) == [("read_failed", 2), ("rest", 1)]


@pytest.mark.parametrize(("kind", "reason"), [(Read, "read_failed"), (Promote, "copy_failed")])
def test_a_load_that_failed(kind, reason):
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    request = tiers.admit(prompt(1, 2))
    tiers.plan()
    while not tiers.moves(kind):
        tiers.complete(tiers.completable()[0])
        tiers.plan()
    tiers.complete(tiers.moves(kind)[0].number, error=DIED)
    tiers.settle()
    assert told(of(request)) == [(reason, 2), ("rest", 1)]


def test_a_read_that_took_too_long():
    tiers = model(device=8, host=4, disk=8, io_deadline_s=10.0)
    on_disk(tiers, 1, 2)
    request = tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.now_s += 10.0
    tiers.plan()
    assert told(of(request)) == [("overdue", 2), ("rest", 1)]
    assert told(now(tiers, prompt(1, 2))) == [("device", 2), ("rest", 1)], "the other computes it"


def test_a_record_that_is_gone_of_a_block_that_was_computed_meanwhile():
    """The read took too long, and found nothing in the end: the block has not gone."""
    tiers = model(device=8, host=4, disk=8, io_deadline_s=10.0)
    on_disk(tiers, 1, 2)
    request = tiers.admit(prompt(1, 2))
    tiers.plan()
    [read] = tiers.moves(Read)
    tiers.now_s += 10.0
    tiers.plan()
    tiers.prefill(request)
    tiers.complete(read.number, misses={0: MissReason.ABSENT, 1: MissReason.ABSENT})
    assert tiers.index.stats()["departed"] == 0
    tiers.release(request)
    tiers.settle()
    assert told(now(tiers, prompt(1, 2))) == [("device", 2), ("rest", 1)]


def test_a_disk_that_rests():
    tiers = model(device=8, host=4, disk=8, read_batch_blocks=1, disk_failures=2, disk_rest_s=30.0)
    on_disk(tiers, 1, 2)
    on_disk(tiers, 3, 4)
    tiers.admit(prompt(1, 2))
    tiers.plan()
    for read in tiers.moves(Read):
        tiers.complete(read.number, error=DIED)
    assert told(now(tiers, prompt(3, 4))) == [("tier_off", 2), ("rest", 1)]


def test_loads_that_are_switched_off():
    tiers = model(device=8, host=4, loads=False)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    assert told(now(tiers, prompt(1, 2))) == [("loads_off", 2), ("rest", 1)]


def test_what_another_request_is_computing():
    tiers = model(device=8)
    tiers.admit(prompt(1, 2))
    explanation = now(tiers, prompt(1, 2, 3))
    assert told(explanation) == [("device", 2), ("never_seen", 1), ("rest", 1)]
    assert explanation.parts[0].detail is not None


def test_an_explanation_is_of_the_moment_of_the_observation():
    tiers = model(device=3)
    tiers.run(prompt(1, 2))
    observed = tiers.index.observe(np.array(prompt(1, 2), dtype="<i4"))
    tiers.run(prompt(5, 6))
    tiers.index.clear()
    assert told(explain(observed, described)) == [("device", 2), ("rest", 1)]
