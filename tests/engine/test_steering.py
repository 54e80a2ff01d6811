"""An engine is drained, verified and set anew while it serves."""

import asyncio
import threading
from dataclasses import fields
from pathlib import Path

import pytest

from engine import AsyncEngine, Engine, EngineClosed, EngineConfig, RequestOptions, SamplingParams
from engine.aio import AsyncCaches
from engine.caches import Caches
from engine.steering import CHANGEABLE
from examples.sqlite_store import SqliteStore
from kvstore import MissReason, StoreClosed, StoreFailed, Unsupported
from kvstore.disk import capacity_within
from kvstore.layers import FaultStore, Gate, Hang
from kvstore.metas import metas_of
from kvstore.reports import Verified
from tests.engine.engines import BLOCK, BLOCK_BYTES, GREEDY, bytes_of, engine_on, open_engine, tokens

LONG = SamplingParams(max_tokens=2000, ignore_eos=True)


def on_disk(engine) -> set[bytes]:
    return {meta.key for meta in metas_of(engine._tiers.store)}


def host_slots(engine) -> int:
    """Those in service."""
    host = engine.stats()["cache"]["tiers"]["host"]
    return host["slots"] - host["retired"]


def eventually(condition, what: str) -> None:
    """Wait for what another thread brings about; nothing tells when."""
    deadline = threading.Event()
    for _ in range(3000):
        if condition():
            return
        deadline.wait(0.01)
    pytest.fail(f"never came about: {what}")


# ---- draining ----------------------------------------------------------------------------------------------------


def test_a_drained_engine_takes_no_requests_and_ends_those_it_has(tiny_llama_dir, reference):
    with engine_on(tiny_llama_dir) as engine:
        prompt = tokens(0, 100)
        running = engine.submit(prompt, GREEDY)
        assert engine.stats()["engine"]["draining"] is False
        assert engine.drain()
        assert running.done
        assert running.result().token_ids == reference(prompt)
        assert engine.stats()["engine"]["draining"] is True
        for call in (
            lambda: engine.submit(prompt),
            lambda: engine.generate([prompt, prompt], GREEDY),
            lambda: engine.stream(prompt),
            lambda: engine.warm(prompt),
        ):
            with pytest.raises(RuntimeError, match="being drained"):
                call()
        assert engine.lookup(prompt)["device"] == 96, "all else goes on"
        engine.demote("host")
        engine.resume()
        assert engine.stats()["engine"]["draining"] is False
        assert engine.generate(prompt, GREEDY).token_ids == reference(prompt)


def test_draining_does_not_wait_for_ever(tiny_llama_dir):
    """It stays drained after the time is over; what runs goes on, and a second call waits for it again."""
    with engine_on(tiny_llama_dir) as engine:
        running = engine.submit(tokens(0, 20), LONG)
        assert not engine.drain(timeout_s=0.01)
        assert not running.done
        with pytest.raises(RuntimeError, match="being drained"):
            engine.submit(tokens(0, 20))
        running.cancel()
        assert engine.drain(timeout_s=60)
        assert running.result().finish_reason == "cancelled"


def test_a_request_that_was_refused_is_not_waited_for(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        with pytest.raises(ValueError, match="token"):
            engine.submit([10**6])
        assert engine.drain(timeout_s=0.0)
    with pytest.raises(EngineClosed):
        engine.submit([1])
    assert engine._steering.intake.shut(0.0), "nor is one that came after the end"


def test_closing_ends_a_drain_that_waits(tiny_llama_dir):
    engine = open_engine(tiny_llama_dir)
    engine.submit(tokens(0, 20), LONG)
    drained = []
    thread = threading.Thread(target=lambda: drained.append(engine.drain()))
    thread.start()
    eventually(lambda: engine.stats()["engine"]["draining"], "the drain")
    engine.close()
    thread.join(timeout=60)
    assert drained == [True]
    for call in (engine.drain, engine.resume, engine.verify, engine.namespaces, lambda: engine.change({})):
        with pytest.raises(EngineClosed):
            call()


def test_resuming_ends_a_drain_that_waits(tiny_llama_dir):
    """Else it would wait for a moment without requests, which need never come."""
    with engine_on(tiny_llama_dir) as engine:
        running = engine.submit(tokens(0, 20), LONG)
        drained = []
        thread = threading.Thread(target=lambda: drained.append(engine.drain()))
        thread.start()
        eventually(lambda: engine.stats()["engine"]["draining"], "the drain")
        engine.resume()
        thread.join(timeout=60)
        assert (drained, running.done) == ([False], False)
        running.cancel()


def test_many_threads_and_a_drain_lose_nobody(tiny_llama_dir):
    """Each request is either answered or refused, and none runs when the drain says so."""
    with engine_on(tiny_llama_dir) as engine:
        answered, refused = [], []

        def ask(seed: int) -> None:
            try:
                while True:
                    answered.append(engine.generate(tokens(seed, 20), SamplingParams(max_tokens=2)))
            except RuntimeError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answered) > 20, "requests")
        assert engine.drain(timeout_s=60)
        stats = engine.stats()["engine"]
        for thread in threads:
            thread.join(timeout=60)
        assert len(refused) == 4
        assert stats["requests"] == len(answered)
        assert all(result.finish_reason in ("length", "stop") for result in answered)


@pytest.mark.parametrize("wrong", [-1, "soon", float("nan")])
def test_a_time_that_is_none_is_refused(tiny_llama_dir, wrong):
    with engine_on(tiny_llama_dir) as engine:
        with pytest.raises(ValueError, match="timeout_s"):
            engine.drain(wrong)
        assert not engine.stats()["engine"]["draining"]


# ---- verifying ---------------------------------------------------------------------------------------------------


def test_damage_on_disk_is_found_before_anybody_asks_for_it(tiny_llama_dir, reference, tmp_path):
    prompt = tokens(0, 200)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.warm(prompt)
        engine.demote("disk")
        keys = sorted(on_disk(engine))
        assert engine.verify().records == len(keys) == 200 // BLOCK
        engine._tiers.store.raw().corrupt(keys[3])
        engine._tiers.store.raw().truncate(keys[5])
        found = engine.verify()
        assert found.records == 12
        assert found.damaged == {MissReason.DAMAGED_CHECKSUM: 1, MissReason.DAMAGED_LENGTH: 1}
        assert on_disk(engine) == set(keys) - {keys[3], keys[5]}
        assert engine.generate(prompt, GREEDY).token_ids == reference(prompt)
        engine._tiers.store._writer.run(lambda: None)
        assert {one.key for one in engine._tiers.store.quarantined()} == {keys[3], keys[5]}


def test_requests_are_served_while_the_disk_is_verified(tiny_llama_dir, reference, tmp_path):
    gate = Gate()
    layer = []

    def hanging(store):
        layer.append(FaultStore(store))
        return layer[0]

    with engine_on(tiny_llama_dir, tmp_path, wrap_store=hanging) as engine:
        prompt = tokens(0, 200)
        engine.warm(prompt)
        engine.demote("disk")
        layer[0].faults = [Hang(on="read", first=1, gate=gate)]
        found = []
        thread = threading.Thread(target=lambda: found.append(engine.verify()))
        thread.start()
        assert gate.wait_until_reached(60)
        with pytest.raises(RuntimeError, match="already"):
            engine.verify()
        assert engine.generate(prompt, GREEDY).token_ids == reference(prompt)
        gate.open()
        thread.join(timeout=60)
        assert found[0].records == 12
        assert engine.verify().records == 12


def test_closing_ends_a_verification(tiny_llama_dir, tmp_path, monkeypatch):
    engine = open_engine(tiny_llama_dir, tmp_path)
    engine.warm(tokens(0, 1000))
    engine.flush()
    paused, wait = threading.Event(), engine._steering._stopped.wait
    ended = []

    def long_pause(_: float) -> bool:
        paused.set()
        return wait(timeout=60)

    def verify_it() -> None:
        try:
            engine.verify()
        except StoreClosed as error:
            ended.append(error)

    monkeypatch.setattr(engine._steering._stopped, "wait", long_pause)
    thread = threading.Thread(target=verify_it)
    thread.start()
    assert paused.wait(timeout=60)
    engine.close()
    thread.join(timeout=30)  # well before the pause is over
    assert len(ended) == 1


def test_without_a_disk_there_is_nothing_to_verify(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir) as engine:
        assert engine.verify() == Verified(records=0)
    (tmp_path / "file").write_text("")
    with (
        engine_on(tiny_llama_dir, tmp_path / "file") as engine,
        pytest.raises(StoreFailed, match="no disk tier"),
    ):
        engine.verify()


# ---- namespaces --------------------------------------------------------------------------------------------------


def test_an_engine_tells_whose_blocks_there_are(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path, kv_dtype="bfloat16") as other:
        other.warm(tokens(0, 100))
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.warm(tokens(0, 200))
        engine.flush()
        own, there = engine.namespaces()
        assert (own.own, own.facts, own.blocks) == (True, dict(engine.namespace.fields), 12)
        assert own.digest == engine.namespace.digest.hex()
        assert (there.own, there.blocks) == (False, 6)
        assert {name for name in own.facts if own.facts[name] != there.facts[name]} == {"kv_dtype"}


@pytest.mark.parametrize("disk", [False, True])
def test_without_a_disk_that_knows_it_tells_of_its_own(tiny_llama_dir, tmp_path, disk):
    """No disk at all, or a store that somebody wrapped in its place."""

    def sqlite(store):
        store.close()
        options = {"namespace": store.namespace, "layout": store.layout, "capacity_bytes": 1 << 26}
        return FaultStore(SqliteStore(tmp_path / "kv.sqlite", **options))

    with engine_on(tiny_llama_dir, tmp_path if disk else None, wrap_store=sqlite) as engine:
        engine.warm(tokens(0, 100))
        [own] = engine.namespaces()
        assert (own.own, own.blocks, own.stored_bytes) == (True, 6, 6 * BLOCK_BYTES)
        if disk:
            engine.flush()
            assert engine.verify().records == 6
            with pytest.raises(Unsupported, match="SqliteStore has limits that cannot be changed"):
                engine.change({"disk_bytes": "1GiB"})
            assert engine.change({"ttl_s": 50.0})["ttl_s"] == 50.0


# ---- settings ----------------------------------------------------------------------------------------------------


def test_settings_are_told_as_they_were_decided(tiny_llama_dir, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_bytes(b"not to be seen: secret bytes !!!")
    disk = tmp_path / "kv"
    with engine_on(tiny_llama_dir, disk, disk_key_file=key_file, host_bytes="16MiB") as engine:
        settings = engine.settings()
    assert list(settings) == [field.name for field in fields(EngineConfig)]
    assert (settings["device"], settings["dtype"], settings["attention"]) == ("cpu", "float32", "sdpa")
    assert settings["host_bytes"] == (16 << 20) // BLOCK_BYTES * BLOCK_BYTES
    assert settings["disk_bytes"] == 64 << 20
    assert (settings["disk_path"], settings["disk_key_file"]) == (str(disk), str(key_file))
    assert settings["max_model_len"] == 4096
    assert "secret" not in repr(settings)
    open_still = [name for name, value in settings.items() if value == "auto"]
    assert open_still == ["disk_compression"], "decided when the disk has enough to be measured by"


def test_what_is_changed_is_what_is_so(tiny_llama_dir, reference, tmp_path):
    changes = {
        "host_bytes": bytes_of(100),
        "host_clean_share": 0.25,
        "disk_bytes": "128MiB",
        "disk_min_free_bytes": "1MiB",
        "disk_queue_bytes": bytes_of(10),
        "disk_deadline_s": 3.0,
        "ttl_s": 3600.0,
        "tenant_quotas": {"acme": {"host": 1 << 20, "weight": 2.0}},
        "min_prefix_tokens": 32,
    }
    assert set(changes) == set(CHANGEABLE)
    prompt = tokens(0, 300)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.warm(prompt)
        before = engine.settings()
        after = engine.change(changes)
        assert after == engine.settings()
        changed = {"host_bytes": 100 * BLOCK_BYTES, "disk_bytes": 128 << 20, "disk_min_free_bytes": 1 << 20}
        assert after == {**before, **changes, **changed, "disk_queue_bytes": 10 * BLOCK_BYTES}
        store = engine._tiers.store
        assert store.min_free_bytes == 1 << 20
        assert store.capacity_bytes == capacity_within(128 << 20)
        engine.check()
        eventually(lambda: host_slots(engine) == 100, "host memory of 100 blocks")
        assert engine.generate(prompt, GREEDY).token_ids == reference(prompt)
        stats = engine.stats()["cache"]["tiers"]
        assert stats["disk"]["capacity_bytes"] == store.capacity_bytes
        assert engine.change({name: before[name] for name in changes}) == before
        [first, second] = [event for event in engine.events(0) if event.kind == "settings"]
        assert first.facts["disk_bytes"] == 128 << 20
        assert second.facts["ttl_s"] is None


def test_a_smaller_disk_gives_up_what_is_too_much(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path, disk_bytes="64MiB") as engine:
        for seed in range(12):
            engine.warm(tokens(seed, 1000))
        engine.flush()
        store = engine._tiers.store
        held = store.stats().stored_bytes
        engine.change({"disk_bytes": "10MiB"})
        assert store.capacity_bytes < held
        eventually(lambda: store.stats().stored_bytes <= store.capacity_bytes, "a smaller disk")
        engine.check()
        store.check()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"max_num_seqs": 4},
            "'max_num_seqs' cannot be changed while the engine runs; changeable are host_bytes, ",
        ),
        ({"colour": 1}, "unknown setting 'colour'; changeable are"),
        ({"host_bytes": "17MiB"}, "cannot be more than the 16773120 that were taken at the start"),
        ({"host_bytes": "auto"}, "host_bytes must be a size"),
        ({"host_bytes": "1KiB"}, "at least 8 blocks"),
        ({"disk_bytes": "a lot"}, "disk_bytes must look like"),
        ({"disk_bytes": None}, "disk_bytes must be a number of bytes"),
        ({"disk_bytes": 0}, "disk_bytes is 0"),
        ({"ttl_s": -1}, "ttl_s must be"),
        ({"disk_deadline_s": 0}, "disk_deadline_s must be"),
        ({"host_clean_share": 1.5}, "host_clean_share must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_changed_is_refused_and_nothing_else_changes(
    tiny_llama_dir, tmp_path, changes, sentence
):
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        before, capacity = engine.settings(), engine._tiers.store.capacity_bytes
        good = {"disk_min_free_bytes": 77, "disk_queue_bytes": bytes_of(3)}
        with pytest.raises(ValueError, match=sentence):
            engine.change({**good, **changes})
        assert engine.settings() == before
        assert (engine._tiers.store.capacity_bytes, engine._tiers.store.min_free_bytes) == (capacity, 0)
        assert engine.change({}) == before


def test_a_cache_that_refuses_leaves_the_disk_as_it_was(tiny_llama_dir, tmp_path, monkeypatch):
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        before, store = engine.settings(), engine._tiers.store
        limits = store._room.limits

        def refuse(**_: object) -> None:
            raise ValueError("not today")

        with monkeypatch.context() as patched:
            patched.setattr(engine._cache, "change", refuse)
            for disk_bytes in ("32MiB", "256MiB"):
                with pytest.raises(ValueError, match="not today"):
                    engine.change({"disk_bytes": disk_bytes, "disk_min_free_bytes": 5, "ttl_s": 9.0})
                assert store._room.limits == limits
        assert engine.settings() == before


def test_a_disk_that_cannot_grow_leaves_the_cache_as_it_was(tiny_llama_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("kvstore.disk.changes._GROW_S", 0.01)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        before = engine.settings()
        with engine._tiers.store._lender.lend(), pytest.raises(StoreFailed, match="while a read hangs"):
            engine.change({"disk_bytes": "1GiB", "disk_deadline_s": 1.0})
        assert engine.settings() == before
        assert engine._cache._index.config.io_deadline_s == 10.0
        assert engine.change({"disk_bytes": "1GiB"})["disk_bytes"] == 1 << 30


def test_without_a_disk_its_settings_cannot_be_changed(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        with pytest.raises(ValueError, match="disk_bytes cannot be changed: there is no disk tier"):
            engine.change({"disk_bytes": "1GiB"})
        assert engine.change({"host_bytes": 0, "ttl_s": 5.0})["host_bytes"] == 0


def test_host_memory_shrinks_and_comes_back_under_load(tiny_llama_dir, reference, tmp_path):
    prompts = [tokens(seed, 300) for seed in range(6)]
    with engine_on(tiny_llama_dir, tmp_path, device_bytes=bytes_of(40)) as engine:
        for num_blocks in (1000, 20, 300, 8, 1365):
            engine.change({"host_bytes": bytes_of(num_blocks)})
            for prompt in prompts:
                assert engine.generate(prompt, GREEDY).token_ids == reference(prompt)
            eventually(
                lambda: host_slots(engine) == num_blocks,  # noqa: B023 - at once
                f"{num_blocks} host slots",
            )
            engine.check()


# ---- the cache's own, and asyncio ----------------------------------------------------------------------------------


def test_runs_of_blocks_are_the_caches(tiny_llama_dir):
    shared = tokens(0, 160)
    with engine_on(tiny_llama_dir) as engine:
        for seed in (1, 2):
            engine.warm(shared + tokens(seed, 64))
        [root] = engine.prefixes().rows
        assert (root.blocks, root.children) == (10, 2)
        assert engine.prefix(root.key).run.key == root.key
        assert engine.demote_prefix(root.key, "host").blocks == 18
        assert engine.lookup(shared)["host"] == 160 - BLOCK
        assert engine.remove_prefix(root.key).blocks == 18
        assert engine.prefixes().total == 0
        assert engine.events(0)


def test_the_same_calls_for_asyncio(tiny_llama_dir, tmp_path):
    async def calls() -> None:
        async with AsyncEngine(open_engine(tiny_llama_dir, tmp_path)) as engine:
            await engine.warm(tokens(0, 100))
            assert await engine.drain(5.0)
            with pytest.raises(RuntimeError, match="drained"):
                await engine.generate(tokens(0, 100))
            await engine.resume()
            await engine.flush()
            assert (await engine.verify()).records == 6
            assert [info.blocks for info in await engine.namespaces()] == [6]
            assert (await engine.change({"ttl_s": 9.0})) == await engine.settings()
            [run] = (await engine.prefixes()).rows
            assert (await engine.prefix(run.key)).run.blocks == 6
            assert (await engine.demote_prefix(run.key, "host")).blocks == 6
            assert (await engine.remove_prefix(run.key)).blocks == 6
            assert await engine.events()
            assert "removed" in (await engine.explain(tokens(0, 100))).reasons
            [report] = await engine.requests()
            assert (await engine.request(report.number)).explanation is not None
            assert await engine.advice() == ()
            await engine.set_quota("acme", {"host": 0.25})
            assert [tenant.tenant for tenant in await engine.tenants()] == ["acme"]
            await engine.delete_quota("acme")
            async with engine.record(tmp_path / "trace.jsonl", key_file=None) as recording:
                made = await engine.caches.create("handbook", tokens(0, 100), ttl="5m")
                assert await engine.keep(tokens(0, 100), options=RequestOptions(cache="off")) == 96
                assert await engine.release(tokens(0, 100)) == 96
            assert recording.stats()["requests"] == 1
            await engine.caches.extend("handbook", None)
            assert [(one.tokens, one.expires_s) for one in await engine.caches.list()] == [(96, None)]
            assert (await engine.caches.get("handbook")).created_s == made.created_s
            await engine.caches.delete("handbook")
            assert (await engine.stats())["cache"]["retention"]["names"] == 0

    asyncio.run(calls())


def test_asyncio_lacks_nothing():
    """Save what tests and endpoints ask for, and what awaiting makes up for."""
    names = {name for name in dir(Engine) if not name.startswith("_")}
    lacks = {"check", "core", "options", "submit", "submit_all", "tell_of_change"}
    assert names - set(dir(AsyncEngine)) == lacks
    assert {name for name in dir(Caches) if not name.startswith("_")} - set(dir(AsyncCaches)) == {
        "erase",
        "keep",
        "release",
    }


def test_the_names_are_those_of_the_configuration():
    assert set(CHANGEABLE) < {field.name for field in fields(EngineConfig)}
    assert Path(EngineConfig(host_clean_share=0.0, disk_path="kv").disk_path).name == "kv"
