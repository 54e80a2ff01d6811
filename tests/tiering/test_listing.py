"""What is listed is what is there, whatever happens while it is looked at; and keys lead back to it."""

import random
import threading
import time
from collections import defaultdict

import numpy as np
import pytest

from kvstore.block import TOKEN_ID_BYTES, chain_key
from kvstore.reports import MAX_PAGE_ROWS, PrefixQuery
from tests.tiering.memory_model import OWNERS, ROOT_KEY
from tests.tiering.rig import Rig
from tests.tiering.slot_arrays import GIVE_UP_S
from tests.tiering.small_tiers import BLOCK_TOKENS, model, on_disk, prompt
from tests.tiering.traffic import Traffic
from tiering.holdings import Holdings
from tiering.listing import DETAIL_TOKENS, Listing
from tiering.residency import NO_BLOCK, State, Tier
from tiering.walk import walk


def ended(steps):
    """What an errand answers, all of its steps made at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def listing(holdings, clock=None, ttl_s=None, block_tokens=BLOCK_TOKENS, take=None):
    return Listing(
        take or (lambda: ended(walk(holdings))),
        ROOT_KEY,
        block_tokens,
        clock=clock or Clock(),
        ttl_s=lambda: ttl_s,
        wait=lambda coming: coming.result(GIVE_UP_S),
    )


def holdings_of(tiers):
    return tiers.index._holdings


def run(*names: int, block_tokens=BLOCK_TOKENS):
    return np.repeat(np.array(names, dtype="<i4"), block_tokens)


def key_of(*names: int, block_tokens=BLOCK_TOKENS):
    key = ROOT_KEY
    for name in names:
        key = chain_key(key, run(name, block_tokens=block_tokens).tobytes())
    return key.hex()


def by_key(page):
    return {row.key: row for row in page.rows}


# --- against a slow and simple list ---------------------------------------------------------------------------------


def reference(holdings, block_tokens):
    """All runs, as dicts by key, from each block's parent alone."""
    residency, radix = holdings.residency, holdings.radix
    children = defaultdict(list)
    for block in np.flatnonzero(residency.live).tolist():
        children[residency.parent.item(block)].append(block)
    runs = {}

    def go(first, parent_key, parent_run, start):
        key, blocks = parent_key, [first]
        while len(children[blocks[-1]]) == 1:
            blocks += children[blocks[-1]]
        for block in blocks:
            key = chain_key(key, radix.tokens_up(block)[0])
        below = sum(
            go(child, key, key.hex(), start + len(blocks) * block_tokens) for child in children[blocks[-1]]
        )
        runs[key.hex()] = {
            "parent": parent_run,
            "start_token": start,
            "end_token": start + len(blocks) * block_tokens,
            "blocks": len(blocks),
            "blocks_by_tier": {
                tier.label: int((residency.state[tier, blocks] == State.PRESENT).sum()) for tier in Tier
            },
            "hits": residency.hits.item(first),
            "leases": residency.leases.item(first),
            "private": residency.owner.item(blocks[-1]) != 0,
            "children": len(children[blocks[-1]]),
            "blocks_below": below,
        }
        return below + len(blocks)

    for first in children[NO_BLOCK]:
        go(first, ROOT_KEY, None, 0)
    return runs


def fields(row, names):
    return {name: getattr(row, name) for name in names}


def assert_lists_what_is_there(listing, holdings, block_tokens, *, structure_only=False):
    page = listing.page(PrefixQuery(flat=True, limit=MAX_PAGE_ROWS))
    expected = reference(holdings, block_tokens)
    assert page.total == len(page.rows) == len(expected)
    structure = ["parent", "start_token", "end_token", "blocks", "children", "blocks_below", "private"]
    names = structure if structure_only else [*structure, "blocks_by_tier", "hits", "leases"]
    for row in page.rows:
        assert fields(row, names) == {name: expected[row.key][name] for name in names}
    assert sum(row.blocks + row.blocks_below for row in page.rows if row.parent is None) == len(
        holdings.radix
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_list_is_what_is_there(seed):
    traffic = Traffic(random.Random(seed).choice)
    for _ in range(120):
        traffic.act()
        if traffic.choose(range(10)) == 0:
            holdings = holdings_of(traffic.model)
            tokens = traffic.config.block_tokens
            assert_lists_what_is_there(listing(holdings, block_tokens=tokens), holdings, tokens)


@pytest.mark.parametrize("seed", range(40))
def test_a_list_is_what_is_there_at_its_end_whatever_happens_while_it_is_made(monkeypatch, seed):
    """Nodes are split, grow, shrink, go, and their numbers are given to others, before and behind the walk."""
    monkeypatch.setattr("tiering.walk._STEP_NODES", 2)
    chance = random.Random(seed)
    holdings = Holdings(block_tokens=2, device_slots=64, host_slots=0, disk_bytes=0)
    radix, alive = holdings.radix, set()

    def change():
        names = [chance.choice([1, 2, 3]) for _ in range(chance.choice([1, 2, 3, 4]))]
        if chance.random() < 0.6:
            ids = radix.insert(run(*names))
            holdings.order.touch(ids)
            alive.update(ids.tolist())
        elif alive:
            block = chance.choice(sorted(alive))
            ids = radix.subtree(block)[::-1]
            alive.difference_update(ids.tolist())
            holdings.remove(ids)

    for _ in range(20):
        change()
    steps = walk(holdings)

    def take():
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            for _ in range(chance.choice([0, 0, 1, 2])):
                change()

    listed = listing(holdings, take=take)
    assert_lists_what_is_there(listed, holdings, 2, structure_only=True)
    assert not radix.watch.on


def test_a_walk_that_is_given_up_watches_no_more_and_a_second_waits_for_its_turn():
    holdings = Holdings(block_tokens=2, device_slots=4, host_slots=0, disk_bytes=0)
    holdings.order.touch(holdings.radix.insert(run(1, 2)))
    first, second = walk(holdings), walk(holdings)
    assert next(first) is None
    is_over = next(second)
    assert not is_over()
    first.close()
    assert is_over()
    assert len(ended(second)) == 1


# --- queries --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiers():
    """1 is on disk with 2 behind it; 1 3 and 4 5 6 are on the device, and 1 3 was found again."""
    tiers = model(device=8, host=8, disk=16, ttl_s=1000.0)
    on_disk(tiers, 1, 2)
    for names in ((1, 3), (4, 5, 6), (1, 3)):
        tiers.now_s += 10.0
        tiers.run(prompt(*names))
    return tiers


@pytest.fixture
def listed(tiers):
    clock = Clock()
    clock.now_s = tiers.now_s + 5.0
    return listing(holdings_of(tiers), clock, ttl_s=1000.0)


def test_a_row_says_what_and_where_a_run_is(listed):
    rows = by_key(listed.page(PrefixQuery()))
    assert set(rows) == {key_of(1), key_of(4, 5, 6)}
    row = rows[key_of(1)]
    assert (row.start_token, row.end_token, row.blocks) == (0, BLOCK_TOKENS, 1)
    assert (row.children, row.blocks_below, row.parent) == (2, 2, None)
    assert row.blocks_by_tier == {"device": 1, "host": 0, "disk": 1} or row.blocks_by_tier["device"] == 1
    assert (row.last_used_ago_s, row.ttl_s) == (5.0, 995.0)
    assert (row.hits, row.leases, row.text) == (2, 0, None)


def test_runs_that_follow_one_and_all_below_it(listed):
    under = by_key(listed.page(PrefixQuery(under=key_of(1))))
    assert set(under) == {key_of(1, 2), key_of(1, 3)}
    assert {row.parent for row in under.values()} == {key_of(1)}
    assert set(by_key(listed.page(PrefixQuery(under=key_of(1), flat=True)))) == set(under)
    assert listed.page(PrefixQuery(flat=True)).total == 4
    assert listed.page(PrefixQuery(under=key_of(1, 2))).rows == ()


def test_by_size_what_follows_counts_and_a_page_says_of_how_many_blocks_it_is(tiers):
    for names in ((1, 3, 7), (1, 3, 8), (1, 2, 9)):
        tiers.now_s += 10.0
        tiers.run(prompt(*names))
    clock = Clock()
    clock.now_s = tiers.now_s
    listed = listing(holdings_of(tiers), clock)
    page = listed.page(PrefixQuery(order="size"))
    assert [row.key for row in page.rows] == [
        key_of(1),
        key_of(4, 5, 6),
    ]  # 1 block with 5 behind it, 3 blocks
    assert page.blocks == sum(row.blocks + row.blocks_below for row in page.rows)
    assert listed.page(PrefixQuery(order="size", limit=1)).blocks == page.blocks
    sizes = [row.blocks + row.blocks_below for row in listed.page(PrefixQuery(order="size", flat=True)).rows]
    assert sizes == sorted(sizes, reverse=True)
    assert listed.page(PrefixQuery(flat=True)).blocks is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"order": "recent"}, [(1,), (1, 3), (4, 5, 6), (1, 2)]),
        ({"order": "oldest"}, [(1, 2), (4, 5, 6), (1,), (1, 3)]),
        ({"order": "hits"}, [(1,), (1, 3), (1, 2), (4, 5, 6)]),
        ({"order": "blocks"}, [(4, 5, 6), (1,), (1, 2), (1, 3)]),
        ({"order": "blocks", "min_blocks": 2}, [(4, 5, 6)]),
        ({"order": "recent", "tier": "device"}, [(1,), (1, 3), (4, 5, 6)]),
        ({"order": "hits", "min_hits": 1}, [(1,), (1, 3)]),
        ({"order": "recent", "offset": 1, "limit": 2}, [(1, 3), (4, 5, 6)]),
        ({"order": "recent", "offset": 9}, []),
        ({"order": "recent", "limit": 0}, []),
    ],
)
def test_order_filter_and_page(listed, query, expected):
    rows = listed.page(PrefixQuery(flat=True, **query)).rows
    names = {key_of(*each): each for each in ((1,), (1, 2), (1, 3), (4, 5, 6))}
    found = [names[row.key] for row in rows]
    if query["order"] in ("recent", "oldest"):  # of one touch any may come first
        place = {(1,): 0, (1, 3): 0, (4, 5, 6): 1, (1, 2): 2}
        assert [place[each] for each in found] == [place[each] for each in expected]
    elif query["order"] == "hits":
        assert found[: min(2, len(found))] == expected[:2]
        assert set(found) == set(expected)
    else:
        assert found[:1] == expected[:1]
        assert set(found) == set(expected)


def test_private_runs_are_those_that_end_in_somebodys_block():
    tiers = model(device=8)
    tiers.run(prompt(3, 4))  # an owner's as a whole, as the model has it
    tiers.run(prompt(1, 2))  # everybody's
    listed = listing(holdings_of(tiers))
    assert holdings_of(tiers).blocks_of(OWNERS[0]).size == 2
    assert set(by_key(listed.page(PrefixQuery(private=True)))) == {key_of(3, 4)}
    assert set(by_key(listed.page(PrefixQuery(private=False)))) == {key_of(1, 2)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "name"},
        {"tier": "shared"},
        {"offset": -1},
        {"limit": MAX_PAGE_ROWS + 1},
        {"limit": -1},
    ],
)
def test_what_no_query_can_be_is_refused(listed, wrong):
    with pytest.raises(ValueError, match=r"must"):
        listed.page(PrefixQuery(**wrong))


@pytest.mark.parametrize("key", ["ab" * 32, "ab", "no hexadecimal", ""])
def test_a_key_that_nothing_has(listed, key):
    with pytest.raises(KeyError):
        listed.page(PrefixQuery(under=key))
    with pytest.raises(KeyError):
        listed.detail(key)
    with pytest.raises(KeyError):
        listed.path_of(key)


def test_text_is_made_where_it_is_asked_for_and_of_a_run_alone(listed):
    def describe(tokens):
        return " ".join(map(str, tokens.tolist()))

    query = {"under": key_of(1)}
    assert {row.text for row in listed.page(PrefixQuery(**query), describe).rows} == {None}
    rows = by_key(listed.page(PrefixQuery(**query, text=True), describe))
    assert {row.text for row in rows.values()} == {"2 2", "3 3"}
    assert {row.text for row in listed.page(PrefixQuery(**query, text=True)).rows} == {None}


def test_runs_are_found_by_their_text(listed, monkeypatch):
    asked = []

    def describe(tokens):
        asked.append(tokens.tolist())
        return " ".join(f"Word{token}" for token in tokens.tolist())

    page = listed.page(PrefixQuery(flat=True, contains="wORD3"), describe)
    assert [row.key for row in page.rows] == [key_of(1, 3)]
    assert (page.total, page.rows[0].text) == (1, None)
    assert listed.page(PrefixQuery(contains="word4"), describe).blocks == 3
    assert listed.page(PrefixQuery(flat=True, contains="word9"), describe).total == 0
    assert len(asked) == 4, "of each run the text is made once, as long as the list is the same"
    with pytest.raises(ValueError, match="tokenizer"):
        listed.page(PrefixQuery(contains="word"))
    monkeypatch.setattr("tiering.listing.SEARCHED_RUNS", 1)
    [first, *_] = listed.page(PrefixQuery(flat=True, order="blocks")).rows
    found = listed.page(PrefixQuery(flat=True, order="blocks", contains="word"), describe).rows
    assert [row.key for row in found] == [first.key], "the search ends somewhere"


def test_a_run_in_detail(listed):
    key = key_of(1, 3)
    detail = listed.detail(key, text=True, describe=str, unmark=lambda tokens: tokens + 100)
    assert detail.run.key == key
    assert [row.key for row in detail.above] == [key_of(1)]
    assert detail.token_ids == (103,) * BLOCK_TOKENS
    assert detail.run.text == "[3 3]"
    assert listed.detail(key).token_ids is None, "ids tell as much as text does"


def test_a_list_is_hashed_once_for_keys_that_were_never_told(listed, monkeypatch):
    hashed = []

    def counted(parent, tokens):
        hashed.append(tokens)
        return chain_key(parent, tokens)

    monkeypatch.setattr("tiering.keys.chain_key", counted)
    with pytest.raises(KeyError):
        listed.path_of("ab" * 32)
    assert len(hashed) == 6, "every block of it"
    hashed.clear()
    with pytest.raises(KeyError):
        listed.path_of("cd" * 32)
    assert not hashed
    assert listed.path_of(key_of(4, 5))[0] == run(4, 5).tobytes()
    assert len(hashed) == 2, "what is found is proved"


def test_any_block_of_a_run_leads_to_it_even_if_its_key_was_never_told(listed):
    assert listed.detail(key_of(4, 5)).run.key == key_of(4, 5, 6)
    path, start = listed.path_of(key_of(4, 5))
    assert (path, start) == (run(4, 5).tobytes(), 0)
    path, start = listed.path_of(key_of(1, 3))
    assert (path, start) == (run(1, 3).tobytes(), BLOCK_TOKENS)


def test_a_key_that_was_told_finds_its_block_when_the_run_has_grown_or_was_split(tiers):
    clock = Clock()
    clock.now_s = tiers.now_s
    listed = listing(holdings_of(tiers), clock)
    listed.page(PrefixQuery(flat=True))
    tiers.run(prompt(4, 5, 6, 7))
    clock.now_s += 2.0
    assert listed.detail(key_of(4, 5, 6)).run.key == key_of(4, 5, 6, 7)
    tiers.run(prompt(4, 9))
    clock.now_s += 2.0
    assert listed.detail(key_of(4, 5, 6)).run.key == key_of(4, 5, 6, 7)
    assert listed.detail(key_of(4, 5, 6)).run.start_token == BLOCK_TOKENS
    assert tiers.index.clear()
    clock.now_s += 2.0
    with pytest.raises(KeyError):
        listed.detail(key_of(4, 5, 6))


def test_of_a_long_run_as_many_ids_are_told_as_fit():
    holdings = Holdings(block_tokens=16, device_slots=4, host_slots=0, disk_bytes=0)
    ids = holdings.radix.insert(np.arange(16 * 400, dtype="<i4"))
    holdings.order.touch(ids)
    listed = listing(holdings, block_tokens=16)
    (row,) = listed.page(PrefixQuery()).rows
    assert (row.blocks, row.end_token) == (400, 6400), "nodes that follow each other are one run"
    assert listed.detail(row.key, text=True).token_ids == tuple(range(DETAIL_TOKENS))
    assert len(listed.path_of(row.key)[0]) == 6400 * TOKEN_ID_BYTES


def test_an_empty_index_has_an_empty_list():
    listed = listing(Holdings(block_tokens=2, device_slots=4, host_slots=0, disk_bytes=0))
    assert listed.page(PrefixQuery(flat=True)).total == 0


# --- who asks, and how often ----------------------------------------------------------------------------------------


def test_a_list_is_used_again_for_a_second_and_says_how_old_it_is(tiers):
    clock, taken = Clock(), []

    def take():
        taken.append(clock.now_s)
        return ended(walk(holdings_of(tiers)))

    listed = listing(None, clock, take=take)
    ages = []
    for now_s in (0.0, 0.5, 0.9, 1.5, 1.6):
        clock.now_s = now_s
        ages.append(listed.page(PrefixQuery()).taken_ago_s)
    assert taken == [0.0, 1.5]
    assert ages == pytest.approx([0.0, 0.5, 0.9, 0.0, 0.1])
    listed.expire()
    listed.page(PrefixQuery())
    assert taken == [0.0, 1.5, 1.6], "what was changed by hand was not looked at again"


def test_who_asks_while_a_list_is_made_waits_for_that_one(tiers):
    begun, go_on, taken = threading.Event(), threading.Event(), []

    def take():
        taken.append(1)
        begun.set()
        assert go_on.wait(GIVE_UP_S)
        return ended(walk(holdings_of(tiers)))

    listed, pages = listing(None, take=take), []
    threads = [
        threading.Thread(target=lambda: pages.append(listed.page(PrefixQuery()).total)) for _ in range(4)
    ]
    threads[0].start()
    assert begun.wait(GIVE_UP_S)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert pages == [2] * 4
    assert len(taken) == 1


def test_of_a_large_index_the_last_list_is_shown_while_the_next_is_made(tiers, monkeypatch):
    """Whoever asks meanwhile does not wait, and is told how old it is; one thread makes the next."""
    monkeypatch.setattr("tiering.listing._STALE_SHARE", 1e9)
    clock, begun, go_on, taken = Clock(), threading.Event(), threading.Event(), []

    def take():
        taken.append(clock.now_s)
        if len(taken) > 1:
            begun.set()
            assert go_on.wait(GIVE_UP_S)
        return ended(walk(holdings_of(tiers)))

    listed = listing(None, clock, take=take)
    assert listed.page(PrefixQuery()).total == 2
    tiers.run(prompt(9))
    clock.now_s = 50.0
    assert [listed.page(PrefixQuery()).taken_ago_s for _ in range(3)] == [50.0] * 3
    assert begun.wait(GIVE_UP_S)
    assert taken == [0.0, 50.0]
    [making] = [thread for thread in threading.enumerate() if thread.name == "kvtide-list"]
    go_on.set()
    making.join(GIVE_UP_S)
    page = listed.page(PrefixQuery())
    assert (page.total, page.taken_ago_s) == (3, 0.0)


def test_a_list_that_cannot_be_made_fails_for_all_and_the_next_is_tried_again(tiers):
    fails = [True]

    def take():
        if fails.pop() if fails else False:
            raise RuntimeError("closed")
        return ended(walk(holdings_of(tiers)))

    listed = listing(None, take=take)
    with pytest.raises(RuntimeError, match="closed"):
        listed.page(PrefixQuery())
    assert listed.page(PrefixQuery()).total == 2


def test_what_was_forgotten_is_not_known_here_any_more(listed):
    listed.page(PrefixQuery(flat=True))
    assert listed._keys._paths
    listed.forget()
    assert not listed._keys._paths and not listed._keys._ends
    assert listed._table is None


# --- in the cache ---------------------------------------------------------------------------------------------------


def test_the_thread_that_drives_may_ask_for_a_list_that_another_has_begun():
    rig = Rig(None)
    with rig.cache as cache:
        rig.serve(1, 2)
        begun, pages = threading.Event(), []
        walk_index = cache._index.walk

        def walk_and_tell():
            begun.set()
            return walk_index()

        cache._index.walk = walk_and_tell
        ask = cache.ask_in_steps
        cache.ask_in_steps = lambda begin: (ask(begin), begun.set())[0]
        thread = threading.Thread(target=lambda: pages.append(cache.prefixes(PrefixQuery())))
        thread.start()
        assert begun.wait(GIVE_UP_S)
        pages.append(cache.prefixes(PrefixQuery()))
        thread.join()
        assert [page.total for page in pages] == [1, 1]


def test_other_threads_list_while_requests_go_on():
    rig = Rig(None)
    with rig.cache:
        rig.serve(1, 2)
        pages = []
        until_s = time.monotonic() + GIVE_UP_S

        def look():
            for _ in range(3):
                pages.append(rig.cache.prefixes(PrefixQuery(flat=True)))
                rig.cache._listing.expire()

        thread = threading.Thread(target=look)
        thread.start()
        while thread.is_alive():
            rig.serve(1, 3)
            rig.cache.pump()
            assert time.monotonic() < until_s
        thread.join()
        assert all(page.total in (1, 3) for page in pages)
        detail = rig.cache.prefix(pages[-1].rows[0].key, text=True)
        assert detail.token_ids, "the thread that drives may ask as well"
