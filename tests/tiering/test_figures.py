"""What requests found and what transfers carried is counted as it was, and told as events."""

import threading

import numpy as np
import pytest

from kvstore.reasons import MissReason
from tests.tiering.memory_model import DIED
from tests.tiering.small_tiers import BLOCK_TOKENS, RECORD_BYTES, model, on_disk, prompt, stats
from tiering.events import KEPT_EVENTS, EventLog
from tiering.matching import CacheUse
from tiering.moves import Demote, Promote, Read
from tiering.residency import Tier


def transfers(tiers, name):
    return tiers.index.stats()["transfers"][name]


def told(tiers, *kinds: str):
    """The kinds and facts of events, times left out."""
    found = [(each.kind, {**each.facts}) for each in tiers.index.events.after(0)]
    for _, facts in found:
        facts.pop("seconds", None)
    return [each for each in found if not kinds or each[0] in kinds]


# --- lookups --------------------------------------------------------------------------------------------------------


def test_what_a_request_asks_for_and_where_it_finds_it():
    tiers = model(device=4, host=4, disk=8)
    on_disk(tiers, 1, 2)
    tiers.run(prompt(1))
    tiers.run(prompt(1, 2, 3))
    assert tiers.index.stats()["lookups"] == {
        "requests": 3,
        "blocks": 2 + 1 + 3,
        "hit_blocks": {"device": 1, "host": 0, "disk": 2},
    }


def test_the_token_that_is_always_computed_asks_for_no_block():
    tiers = model(device=4)
    tiers.run([1] * BLOCK_TOKENS)
    assert tiers.index.stats()["lookups"]["blocks"] == 0


def test_who_does_not_use_the_cache_asks_for_nothing():
    tiers = model(device=4)
    lease = tiers.index.admit(
        np.array(prompt(1, 2), dtype="<i4"), 3, chunk_blocks=3, use=CacheUse.OFF, compute_last=True
    )
    tiers.index.release(lease)
    assert tiers.index.stats()["lookups"]["requests"] == 0


def test_each_request_that_finds_a_block_is_a_hit_of_it_and_of_what_leads_there():
    tiers = model(device=6)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(1, 2))
    tiers.run(prompt(1, 3))
    residency, radix = tiers.index._holdings.residency, tiers.index._holdings.radix
    ids = radix.match(np.array(prompt(1, 2), dtype="<i4"))
    assert residency.hits[ids].tolist() == [2, 1]
    assert tiers.index.clear()
    tiers.run(prompt(1, 2))
    ids = radix.match(np.array(prompt(1, 2), dtype="<i4"))
    assert residency.hits[ids].tolist() == [0, 0], "hits of a block that is gone were counted for another"


# --- transfers ------------------------------------------------------------------------------------------------------


def test_a_transfer_is_in_flight_from_asking_to_the_answer_and_that_is_how_long_it_took():
    tiers = model(device=3, host=4)
    tiers.index._endings._block_bytes = 100
    tiers.run(prompt(1, 2))
    tiers.try_to_admit(tiers.request(prompt(3)))
    tiers.plan()
    ((number, flight),) = tiers.flights.items()
    assert isinstance(flight.move, Demote)
    assert transfers(tiers, "demote")["in_flight_blocks"] == len(flight.move.ids) == 1
    tiers.now_s += 3.0
    tiers.index.at(tiers.now_s)
    tiers.complete(number)
    assert transfers(tiers, "demote") == {
        "moves": 1,
        "blocks": 1,
        "bytes": 100,
        "busy_s": 3.0,
        "failed_blocks": 0,
        "in_flight_blocks": 0,
    }


def test_what_a_disk_moves_is_counted_as_it_lies_there_and_what_does_not_come_is_not():
    tiers = model(device=4, host=4, disk=8)
    on_disk(tiers, 1, 2)
    written = transfers(tiers, "write")
    assert (written["blocks"], written["bytes"]) == (2, 2 * RECORD_BYTES)
    assert tiers.try_to_admit(tiers.request(prompt(1, 2)))
    tiers.plan()
    (number,) = (n for n, flight in tiers.flights.items() if isinstance(flight.move, Read))
    tiers.complete(number, misses={1: MissReason.DAMAGED_CHECKSUM})
    tiers.plan()
    (number,) = (n for n, flight in tiers.flights.items() if isinstance(flight.move, Promote))
    tiers.complete(number, error=DIED)
    read, promoted = transfers(tiers, "read"), transfers(tiers, "promote")
    assert (read["blocks"], read["failed_blocks"], read["bytes"]) == (1, 1, RECORD_BYTES)
    assert (promoted["blocks"], promoted["failed_blocks"], promoted["bytes"]) == (0, 1, 0)
    assert told(tiers, "read", "failed", "promoted") == [
        ("read", {"blocks": 1, "bytes": RECORD_BYTES}),
        ("failed", {"move": "read", "blocks": 1, "reasons": {"damaged_checksum": 1}}),
        ("failed", {"move": "promote", "blocks": 1, "error": "RuntimeError"}),
    ]


# --- events ---------------------------------------------------------------------------------------------------------


def test_what_makes_room_is_told_once_for_all_that_leaves_together():
    tiers = model(device=4)
    tiers.run(prompt(1, 2, 3))
    tiers.run(prompt(4, 5, 6))
    assert told(tiers, "dropped", "evicted") == [
        ("evicted", {"tier": "device", "blocks": 3}),
        ("dropped", {"tier": "device", "blocks": 3}),
    ]
    assert stats(tiers, "device")["dropped"] == 3


def test_what_expires_is_told():
    tiers = model(device=4, ttl_s=10.0)
    tiers.run(prompt(1, 2))
    tiers.now_s += 11.0
    tiers.plan()
    assert told(tiers, "expired") == [("expired", {"blocks": 2})]


def test_a_disk_that_rests_and_works_again_is_told():
    tiers = model(device=4, host=4, disk=8, disk_failures=1, disk_rest_s=5.0)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.plan()
    while tiers.flights:
        number = tiers.completable()[0]
        error = None if isinstance(tiers.flights[number].move, Demote) else DIED
        tiers.complete(number, error=error)
        tiers.plan()
    tiers.now_s += 6.0
    tiers.plan()
    assert told(tiers, "disk_rests", "disk_works") == [
        ("disk_rests", {"what": "writes"}),
        ("disk_works", {"what": "writes"}),
    ]


def test_a_store_that_went_on_empty_and_more_host_memory_are_told():
    tiers = model(device=4, host=4, disk=8, later_host_slots=2)
    on_disk(tiers, 1)
    tiers.index.disk_was_emptied()
    tiers.index.host_grows(4)
    assert told(tiers, "fresh_start", "host_grew") == [
        ("fresh_start", {"blocks": 1}),
        ("host_grew", {"slots": 4}),
    ]


@pytest.mark.parametrize("after", [0, 2, 5, 9])
def test_events_are_numbered_by_one_and_told_from_any_number_on(after):
    seconds = iter(range(100, 200))
    log = EventLog(lambda: float(next(seconds)))
    for i in range(5):
        log.append("seen", i=i)
    assert [(each.number, each.at_s, each.facts["i"]) for each in log.after(after)] == [
        (i + 1, 100.0 + i, i) for i in range(after, 5)
    ]
    assert log.last == 5


def test_of_too_many_events_the_last_are_kept():
    log = EventLog()
    for i in range(KEPT_EVENTS + 10):
        log.append("seen", i=i)
    assert [each.number for each in log.after(0)] == list(range(11, KEPT_EVENTS + 11))


def test_events_may_be_read_and_noted_by_several_threads():
    log = EventLog()

    def note():
        for _ in range(2 * KEPT_EVENTS):
            log.append("seen")

    threads = [threading.Thread(target=note) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        numbers = [each.number for each in log.after(0)]
        assert numbers == sorted(set(numbers))
    for thread in threads:
        thread.join()
    assert log.last == 4 * KEPT_EVENTS
    assert len(log.after(0)) == KEPT_EVENTS
