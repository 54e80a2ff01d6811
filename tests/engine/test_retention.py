"""What users ask an engine to keep: terms of requests, named caches and kept prefixes; over restarts, and when things fail."""

import shutil
from contextlib import suppress

import pytest

from engine import RequestOptions
from kvstore.errors import StoreFailed, StoreFull
from tests.engine.engines import BLOCK, GREEDY, bytes_of, engine_on, open_engine, tokens

PROMPT, OTHER = tokens(0, 4 * BLOCK + 1), tokens(1, 4 * BLOCK + 1)
SMALL = {"device_bytes": bytes_of(16), "host_bytes": bytes_of(16), "disk_bytes": "1MiB"}
ALICE, BOB = (RequestOptions(tenant=name) for name in ("alice", "bob"))


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("ab" * 32 + "\n")
    return path


def crowd(engine, num=15):
    """Other prompts, as many as push everything out that may go."""
    for seed in range(100, 100 + num):
        engine.generate(tokens(seed, 4 * BLOCK + 1), GREEDY)
    with suppress(StoreFailed):  # of a full disk: what is older than all there finds no place
        engine.flush()


def cached(engine, prompt=PROMPT, options=None):
    return sum(engine.lookup(prompt, options).values())


# --- named caches -----------------------------------------------------------------------------------------------------


def test_a_named_cache_outlives_what_pushes_everything_else_out(tiny_llama_dir, tmp_path):
    """The disk has room for some 50 blocks, and 60 come after it."""
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        made = engine.caches.create("handbook", PROMPT)
        assert (made.tokens, made.blocks, made.lost_blocks, made.held) == (4 * BLOCK, 4, 0, True)
        assert made.bytes > 0
        assert made.expires_s is None
        right = engine.generate(PROMPT, GREEDY).token_ids
        crowd(engine)
        engine.demote("disk")
        assert engine.caches.get("handbook").tiers == {"device": 0, "host": 0, "disk": 4}
        assert cached(engine) == 4 * BLOCK
        assert engine.generate(PROMPT, GREEDY).token_ids == right
        engine.check()
        engine.caches.delete("handbook")
        assert engine.caches.list() == ()
        assert cached(engine) == 4 * BLOCK, "it stays as others do"
        with pytest.raises(KeyError, match="handbook"):
            engine.caches.get("handbook")


@pytest.mark.parametrize("encrypted", [False, True])
def test_names_hold_over_a_restart_and_a_kill(tiny_llama_dir, tmp_path, key_file, encrypted):
    """A copy of the directory as it was when `create` returned is what a kill leaves."""
    disk, killed, key = tmp_path / "disk", tmp_path / "killed", key_file if encrypted else None
    with engine_on(tiny_llama_dir, disk, disk_key_file=key, **SMALL) as engine:
        made = engine.caches.create("a", PROMPT, options=ALICE)
        shutil.copytree(disk, killed)
    for path in (disk, killed):
        with engine_on(tiny_llama_dir, path, disk_key_file=key, **SMALL) as engine:
            crowd(engine)
            found = engine.caches.get("a", "alice")
            assert (found.created_s, found.tokens, found.lost_blocks) == (made.created_s, made.tokens, 0)
            assert cached(engine, options=ALICE) == 4 * BLOCK
            engine.check()
    needle = b"handbook" if not encrypted else b"alice"
    assert not encrypted or all(
        needle not in file.read_bytes() for file in killed.rglob("*") if file.is_file()
    )


def test_one_tenant_does_not_see_anothers(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        engine.caches.create("same", PROMPT, options=ALICE)
        engine.caches.create("same", OTHER[: 2 * BLOCK], options=BOB)
        assert [each.blocks for each in engine.caches.list("alice")] == [4]
        assert [each.blocks for each in engine.caches.list("bob")] == [2]
        assert engine.caches.list() == ()
        with pytest.raises(KeyError):
            engine.caches.get("same")
        assert engine.erase("alice")
        assert engine.caches.list("alice") == ()
        assert cached(engine, options=ALICE) == 0
        assert engine.caches.get("same", "bob").lost_blocks == 0
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        assert engine.caches.list("alice") == ()
        assert len(engine.caches.list("bob")) == 1


def test_there_are_no_more_names_than_may_be(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path, **SMALL, max_names=2) as engine:
        engine.caches.create("a", PROMPT)
        engine.caches.create("a, too", PROMPT, options=ALICE)
        with pytest.raises(
            ValueError, match="there are 2 named caches, and may be 2: delete others, or raise max_names"
        ):
            engine.caches.create("b", OTHER)
        engine.caches.delete("a")
        engine.caches.create("b", OTHER)
        engine.caches._retaining._drop(engine.caches._known("b", None).stored.key)  # as when its time is over
        engine.caches.create("c", OTHER)
        assert [each.name for each in engine.caches.list()] == ["c"], "what is over does not count"
        engine.check()


def test_a_name_is_made_once_and_says_what_it_wants(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path, **SMALL, held_share=0.15) as engine:
        engine.caches.create("a", PROMPT, ttl="1h")
        with pytest.raises(ValueError, match="there is a cache 'a' already"):
            engine.caches.create("a", PROMPT)
        with pytest.raises(ValueError, match="no whole block"):
            engine.caches.create("b", PROMPT[:3])
        with pytest.raises(ValueError, match="printable"):
            engine.caches.create("", PROMPT)
        with pytest.raises(ValueError, match="held_share"):
            engine.caches.create("too much", tokens(5, 4 * BLOCK))
        before = engine.caches.get("a").expires_s
        after = engine.caches.extend("a", "5m").expires_s
        assert before - 3600 == pytest.approx(after - 300, abs=60)
        engine.check()


def test_without_a_disk_names_are_held_in_memory(tiny_llama_dir):
    with engine_on(tiny_llama_dir, **{**SMALL, "disk_bytes": "64MiB"}) as engine:
        engine.caches.create("a", PROMPT)
        for seed in range(100, 112):
            engine.generate(tokens(seed, 4 * BLOCK + 1), GREEDY)
        assert cached(engine) == 4 * BLOCK
        assert engine.caches.get("a").lost_blocks == 0
        assert not engine.clear(), "what has a name stays"


def test_what_was_damaged_is_said_and_made_again(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        engine.caches.create("a", PROMPT)
        engine.demote("disk")
        store = engine._tiers.store
        raw, [first, *_] = store.raw(), [meta.key for page in store.scan() for meta in page]
        record = raw.read(first)
        raw.write(first, record[:-8] + b"damaged!")
        right = engine.generate(PROMPT, GREEDY).token_ids
        engine.demote("disk")
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        engine.caches.list()
        engine.generate(PROMPT, GREEDY)
        engine.check()
        assert engine.caches.get("a").lost_blocks == 0, "computed again, and held"
        assert engine.generate(PROMPT, GREEDY).token_ids == right


def test_a_name_that_lost_blocks_says_so_and_is_made_again(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        engine.caches.create("a", PROMPT)
        engine.demote("disk")
        engine._tiers.store.delete_many([meta.key for page in engine._tiers.store.scan() for meta in page])
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        assert engine.caches.get("a").lost_blocks == 4
        assert engine.caches.create("a", PROMPT).lost_blocks == 0
        assert cached(engine) == 4 * BLOCK
        engine.check()


def test_blocks_that_cannot_be_written_get_no_name(tiny_llama_dir, tmp_path, monkeypatch):
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        monkeypatch.setattr(engine._tiers.store._room, "free_bytes", lambda: 0)
        with pytest.raises(StoreFull, match="4 of 4 blocks"):
            engine.caches.create("a", PROMPT)
        assert engine.caches.list() == ()
        assert engine.stats()["cache"]["retention"]["holds"] == 0


def test_a_name_that_cannot_be_written_is_held_by_nobody(tiny_llama_dir, tmp_path, monkeypatch):
    """The disk is full when its turn comes: the blocks are there, and no name, also after a restart."""
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        engine.warm(PROMPT)
        engine.flush()
        with monkeypatch.context() as full:
            full.setattr(engine._tiers.store._room, "free_bytes", lambda: 0)
            with pytest.raises(StoreFull):
                engine.caches.create("a", PROMPT)
            assert engine.caches.list() == ()
            assert engine.stats()["cache"]["retention"]["holds"] == 0
        engine.caches.create("b", PROMPT)
        with monkeypatch.context() as full:
            full.setattr(engine._tiers.store._room, "free_bytes", lambda: 0)
            with pytest.raises(StoreFull):
                engine.caches.extend("b", "5m")
        assert engine.caches.get("b").expires_s is None
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        assert [each.name for each in engine.caches.list()] == ["b"]


# --- keep and release -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_what_is_kept_stays_in_its_tier_until_it_is_released(tiny_llama_dir, tmp_path, tier):
    with engine_on(tiny_llama_dir, tmp_path, **SMALL) as engine:
        assert engine.keep(PROMPT, tier) == 0, "nothing of it is cached"
        engine.generate(PROMPT, GREEDY)
        engine.demote("disk")
        assert engine.keep(PROMPT, tier) == 4 * BLOCK
        crowd(engine)
        found = engine.lookup(PROMPT)
        nearer = {"device": ["device"], "host": ["device", "host"], "disk": ["device", "host", "disk"]}[tier]
        assert sum(found[each] for each in nearer) == 4 * BLOCK, found
        engine.check()
        assert engine.release(PROMPT) == 4 * BLOCK
        assert engine.release(PROMPT) == 0
        crowd(engine)
        assert cached(engine) == 0
        kinds = [event.kind for event in engine.events()]
        assert "kept" in kinds
        assert "released" in kinds


def test_a_request_that_could_not_run_otherwise_ends_a_hold(tiny_llama_dir):
    """Eight blocks on the device, half of them kept, no other tier, and a request of seven."""
    engine = open_engine(tiny_llama_dir, host_bytes=0, device_bytes=bytes_of(8))
    with engine:
        engine.warm(PROMPT)
        assert engine.keep(PROMPT) == 4 * BLOCK
        engine.warm(OTHER)
        with pytest.raises(ValueError, match="blocks would be held in the device tier, and 4 may be"):
            engine.keep(OTHER)
        long = tokens(7, 7 * BLOCK)
        assert len(engine.generate(long, GREEDY).token_ids) == GREEDY.max_tokens
        assert engine.stats()["cache"]["retention"]["gave_way"] == 1
        assert "gave_way" in [event.kind for event in engine.events()]
        engine.check()


# --- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", ["2h", 0, -1, "300", True, float("nan")])
def test_what_is_no_ttl_is_refused(ttl):
    with pytest.raises(ValueError, match="ttl"):
        RequestOptions(ttl=ttl)


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("5m", 300.0), ("30m", 1800.0), ("1h", 3600.0), (7, 7.0), (None, None)]
)
def test_ttls_have_names(ttl, seconds):
    assert RequestOptions(ttl=ttl).ttl_s == seconds
