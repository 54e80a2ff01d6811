"""A tenant is erased: from every tier, every model's part of the disk, and from copies of the disk."""

import asyncio
import shutil

import pytest

from engine import RequestOptions, SamplingParams
from engine.aio import AsyncEngine
from engine.salt import owner_of
from kvstore.errors import StoreFailed
from kvstore.layers import ErrorBefore, FaultStore
from tests.engine.engines import BLOCK, GREEDY, engine_on, open_engine, tokens

PUBLIC, PROMPT = 2 * BLOCK, tokens(0, 6 * BLOCK + 1)
ALICE, BOB = (RequestOptions(tenant=name, salt_offset=PUBLIC) for name in ("alice", "bob"))


def found(engine, options):
    return {tier: count for tier, count in engine.lookup(PROMPT, options).items() if count}


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("ab" * 32 + "\n")
    return path


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_tenant_is_erased_in_every_tier_and_nobody_else_is(
    tiny_llama_dir, tmp_path, key_file, tier, encrypted
):
    disk, key = tmp_path / "disk", key_file if encrypted else None
    with engine_on(tiny_llama_dir, disk, disk_key_file=key) as engine:
        right = engine.generate(PROMPT, GREEDY, BOB).token_ids
        engine.generate(PROMPT, GREEDY, ALICE)
        engine.flush()
        if tier != "device":
            engine.demote(tier)
        assert engine.erase("alice")
        assert found(engine, ALICE) == {tier: PUBLIC}
        assert found(engine, BOB) == {tier: 6 * BLOCK}
        assert engine.generate(PROMPT, GREEDY, ALICE).token_ids == right
        assert engine.generate(PROMPT, GREEDY, BOB).usage.cached_tokens == 6 * BLOCK
    with engine_on(tiny_llama_dir, disk, disk_key_file=key) as engine:
        assert found(engine, ALICE) == {"disk": 6 * BLOCK}, "what came after counts again"


def test_erased_is_erased_after_a_restart_and_for_other_models(tiny_llama_dir, tmp_path):
    """In another layout the same weights are another model; it is not running, and its blocks of the tenant go too."""
    for kv_dtype in ("float32", "bfloat16"):
        with engine_on(tiny_llama_dir, tmp_path, kv_dtype=kv_dtype) as engine:
            for options in (ALICE, BOB):
                engine.generate(PROMPT, GREEDY, options)
    with engine_on(tiny_llama_dir, tmp_path, kv_dtype="float32") as engine:
        assert found(engine, ALICE) == {"disk": 6 * BLOCK}
        assert engine.erase("alice")
    for kv_dtype in ("float32", "bfloat16"):
        with engine_on(tiny_llama_dir, tmp_path, kv_dtype=kv_dtype) as engine:
            assert found(engine, ALICE) == {"disk": PUBLIC}
            assert found(engine, BOB) == {"disk": 6 * BLOCK}


def test_copies_of_an_encrypted_disk_forget_with_it(tiny_llama_dir, tmp_path, key_file):
    """A backup of the blocks from before, beside today's keys: nothing of the tenant's can be read."""
    disk, backup = tmp_path / "disk", tmp_path / "backup"
    with engine_on(tiny_llama_dir, disk, disk_key_file=key_file) as engine:
        for options in (ALICE, BOB):
            engine.generate(PROMPT, GREEDY, options)
    shutil.copytree(disk, backup)
    with engine_on(tiny_llama_dir, disk, disk_key_file=key_file) as engine:
        assert engine.erase("alice")
    shutil.rmtree(backup / "v1" / "keys")
    shutil.copytree(disk / "v1" / "keys", backup / "v1" / "keys")
    with engine_on(tiny_llama_dir, backup, disk_key_file=key_file) as engine:
        assert found(engine, ALICE) == {"disk": PUBLIC}
        assert found(engine, BOB) == {"disk": 6 * BLOCK}


def test_salts_of_a_tenant_are_erased_with_it(tiny_llama_dir, tmp_path):
    salted = [RequestOptions(tenant="alice", cache_salt=salt) for salt in ("x", "y")]
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        for options in salted:
            engine.generate(PROMPT, GREEDY, options)
        assert engine.erase("alice")
        assert [found(engine, options) for options in salted] == [{}, {}]
        assert engine.stats()["cache"]["blocks"] == 0


def test_what_runs_keeps_what_it_holds_and_that_is_told(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        stream = engine.stream(PROMPT, SamplingParams(max_tokens=400, ignore_eos=True), ALICE)
        next(iter(stream))
        assert not engine.erase("alice")
        stream.close()
        assert engine.erase("alice")
        assert found(engine, ALICE) == {"device": PUBLIC}


def test_what_runs_counts_although_it_has_no_whole_block_yet(tiny_llama_dir):
    """It will have, and then it is cached."""
    with engine_on(tiny_llama_dir) as engine:
        stream = engine.stream(PROMPT[:3], SamplingParams(max_tokens=400, ignore_eos=True), ALICE)
        next(iter(stream))
        assert not engine.erase("alice")
        assert engine.erase("bob")
        stream.close()
        assert engine.erase("alice")


def test_an_engine_without_a_disk_erases_too(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        engine.generate(PROMPT, GREEDY, ALICE)
        assert engine.erase("alice")
        assert engine.erase("nobody")
        assert found(engine, ALICE) == {"device": PUBLIC}


def test_a_disk_that_cannot_erase_says_so(tiny_llama_dir, tmp_path):
    def fail(store):
        return FaultStore(store, [ErrorBefore(on="delete")])

    engine = open_engine(tiny_llama_dir, tmp_path, wrap_store=fail)
    engine.generate(PROMPT, GREEDY, ALICE)
    with pytest.raises(StoreFailed):
        engine.erase("alice")
    engine.close()


def test_asyncio_erases_too(tiny_llama_dir):
    async def erase(engine):
        await engine.generate(PROMPT, GREEDY, ALICE)
        return await engine.erase("alice")

    with engine_on(tiny_llama_dir) as engine:
        assert asyncio.run(erase(AsyncEngine(engine)))


@pytest.mark.parametrize("name", ["", None, 7, "a\nb"])
def test_only_a_tenant_can_be_erased(tiny_llama_dir, name):
    with engine_on(tiny_llama_dir) as engine, pytest.raises(ValueError, match="tenant"):
        engine.erase(name)


def test_another_key_costs_the_disk_tier_and_not_the_engine(tiny_llama_dir, tmp_path, key_file, caplog):
    disk, other = tmp_path / "disk", tmp_path / "other"
    other.write_bytes(bytes(32))
    with engine_on(tiny_llama_dir, disk, disk_key_file=key_file) as engine:
        right = engine.generate(PROMPT, GREEDY, ALICE).token_ids
    for wrong, complaint in ((other, "another key"), (None, "no key"), (tmp_path / "none", "key file")):
        with engine_on(tiny_llama_dir, disk, disk_key_file=wrong) as engine:
            assert engine.generate(PROMPT, GREEDY, ALICE).token_ids == right
            assert complaint in engine.stats()["disk_off"]
            with pytest.raises(StoreFailed, match="was not erased"):
                engine.erase("alice")
    assert "ab" * 32 not in caplog.text
    with engine_on(tiny_llama_dir, disk, disk_key_file=key_file) as engine:
        assert found(engine, ALICE) == {"disk": 6 * BLOCK}


def test_a_key_beside_what_it_protects_is_refused(tiny_llama_dir, tmp_path):
    (tmp_path / "key").write_bytes(bytes(32))
    with engine_on(tiny_llama_dir, tmp_path, disk_key_file=tmp_path / "key") as engine:
        assert "lies in disk_path" in engine.stats()["disk_off"]


def test_owners_are_digests_of_tenants():
    assert len({owner_of(name) for name in ("a", "b", "ab")}) == 3
