"""The whole thing on a real transformers model with random weights: what a user calls, and what they get."""

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from engine import EngineClosed, Result, SamplingParams
from engine.engine import Engine
from engine.lanes import LaneCall
from engine.model import Model
from kvstore.layers import (
    DirtyMiss,
    ErrorAfter,
    ErrorBefore,
    FalseMiss,
    FaultStore,
    Garbage,
    Gate,
    Hang,
    ShortData,
)
from kvstore.metas import metas_of
from kvstore.store import Store
from tests.engine.engines import BLOCK, BLOCK_BYTES, GREEDY, engine_on, open_engine, tokens, told


def test_a_shared_prefix_is_prefilled_once(tiny_llama_dir, reference):
    shared = tokens(0, 2000)
    prompts = [shared + tokens(seed, 20) for seed in (1, 2, 3)]
    with engine_on(tiny_llama_dir) as engine:
        results = [engine.generate(prompt, GREEDY) for prompt in prompts]
    assert results[0].usage.prefilled_tokens == 2020
    assert all(result.usage.prefilled_tokens <= 20 + BLOCK for result in results[1:])
    assert [result.token_ids for result in results] == [reference(prompt) for prompt in prompts]


def test_prompts_given_together_share_too(tiny_llama_dir, reference):
    """The second and third wait for the first to compute what they share; nothing is computed twice."""
    shared = tokens(0, 500)
    prompts = [shared + tokens(seed, 20) for seed in (1, 2, 3)]
    with engine_on(tiny_llama_dir) as engine:
        results = engine.generate(prompts, GREEDY)
    assert sorted(result.usage.prefilled_tokens for result in results)[2] == 520
    assert sum(result.usage.prefilled_tokens for result in results) <= 520 + 2 * (20 + BLOCK)
    assert [result.token_ids for result in results] == [reference(prompt) for prompt in prompts]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("tier", ["cold", "device", "host", "disk", "restart"])
def test_the_same_tokens_from_every_tier(tiny_llama_dir, reference, tmp_path, tier, deterministic):
    prefix, suffix = tokens(0, 300), tokens(1, 30)
    with engine_on(tiny_llama_dir, tmp_path, deterministic=deterministic) as engine:
        if tier != "cold":
            engine.generate(prefix, SamplingParams(max_tokens=1, ignore_eos=True))
        if tier in ("host", "disk"):
            engine.demote(tier)
        if tier != "restart":
            result = engine.generate(prefix + suffix, GREEDY)
    if tier == "restart":
        with engine_on(tiny_llama_dir, tmp_path, deterministic=deterministic) as engine:
            result = engine.generate(prefix + suffix, GREEDY)
    assert result.token_ids == reference(prefix + suffix)
    cached = 0 if tier == "cold" else 300 // BLOCK * BLOCK
    where = {"restart": "disk", "cold": "device"}.get(tier, tier)
    assert result.usage.cached_by_tier == {"device": 0, "host": 0, "disk": 0, where: cached}
    assert result.usage.prefilled_tokens == 330 - cached


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_a_reply_after_a_hit_decodes_as_after_a_cold_prefill(tiny_llama_dir, tmp_path, monkeypatch, tier):
    """A step has the same rows, and gathers as many blocks in as many calls: what differs in time is the machine."""
    steps = []
    forward = Model.forward

    def recorded(model, batch, pool, *more: object):
        calls = [
            (len(call.slots if isinstance(call, LaneCall) else call.blocks), call.rows)
            for call in batch.calls[None]
        ]
        steps.append((batch.num_tokens, batch.num_rows, calls))
        return forward(model, batch, pool, *more)

    monkeypatch.setattr(Model, "forward", recorded)
    prompt = tokens(0, 150)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        steps.clear()
        engine.generate(prompt, GREEDY)
        cold = steps[-11:]
        if tier != "device":
            engine.demote(tier)
        steps.clear()
        assert engine.generate(prompt, GREEDY).usage.cached_by_tier[tier] == 144
    assert steps[0][0] == 150 - 144
    assert steps[1:] == cold
    assert len(cold) == 11


def test_the_second_turn_of_a_conversation_hits_the_first_and_its_reply(tiny_llama_dir, reference):
    first = tokens(0, 100)
    params = SamplingParams(max_tokens=50, ignore_eos=True)
    with engine_on(tiny_llama_dir) as engine:
        reply = engine.generate(first, params).token_ids
        second = first + reply + tokens(1, 10)
        result = engine.generate(second, params)
    # The last token of a reply is never fed back, so its KV is not there.
    assert result.usage.cached_tokens == (len(first) + len(reply) - 1) // BLOCK * BLOCK
    assert result.token_ids == reference(second, params)


def test_deterministic_mode_does_not_index_what_decode_wrote(tiny_llama_dir):
    first = tokens(0, 100)
    with engine_on(tiny_llama_dir, deterministic=True) as engine:
        reply = engine.generate(first, SamplingParams(max_tokens=50, ignore_eos=True)).token_ids
        assert sum(engine.lookup(first + reply + [5]).values()) == 100 // BLOCK * BLOCK


def test_small_tiers_under_many_prompts_still_give_the_right_tokens(tiny_llama_dir, reference, tmp_path):
    """Prefixes are pushed down and come back again and again."""
    prefixes = [tokens(100 + i, 150) for i in range(4)]
    prompts = [prefixes[i % 4] + tokens(i, 9) for i in range(12)]
    with engine_on(tiny_llama_dir, tmp_path, device_bytes="240KiB", host_bytes="600KiB") as engine:
        results = [engine.generate(prompt, GREEDY) for prompt in prompts]
        tiers = engine.stats()["cache"]["tiers"]
    assert [result.token_ids for result in results] == [reference(prompt) for prompt in prompts]
    assert all(result.usage.cached_tokens == 144 for result in results[4:])
    assert tiers["device"]["evicted"] > 0
    assert tiers["disk"]["blocks"] > 0


def test_many_threads_at_once(tiny_llama_dir, reference, tmp_path):
    prefixes = [tokens(100 + i, 80) for i in range(3)]
    prompts = [prefixes[i % 3] + tokens(i, 5 + i) for i in range(9)]
    results: dict[int, Result] = {}
    with engine_on(tiny_llama_dir, tmp_path, device_bytes="300KiB", host_bytes="240KiB") as engine:

        def ask(i: int) -> None:
            results[i] = engine.generate(prompts[i], GREEDY)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [results[i].token_ids for i in range(len(prompts))] == [reference(prompt) for prompt in prompts]


# --- a disk that is slow, fails, or lies ------------------------------------------------------------------------------


def test_a_miss_finishes_while_anothers_load_is_pending(tiny_llama_dir, reference, tmp_path):
    gate, layers = Gate(), []
    slow, other = [*tokens(0, 300), 7], tokens(1, 200)

    def wrap(store: Store) -> Store:
        layers.append(FaultStore(store))
        return layers[0]

    with engine_on(tiny_llama_dir, tmp_path, wrap_store=wrap) as engine:
        engine.generate(slow, GREEDY)
        engine.demote("disk")
        layers[0].faults = [Hang(gate, on="read")]
        loaded: list[Result] = []
        thread = threading.Thread(target=lambda: loaded.append(engine.generate(slow, GREEDY)))
        thread.start()
        try:
            assert gate.wait_until_reached(60)
            missed = engine.generate(other, GREEDY)
            assert not loaded
        finally:
            gate.open()
            thread.join()
    assert missed.token_ids == reference(other)
    assert loaded[0].token_ids == reference(slow)
    assert loaded[0].usage.cached_by_tier["disk"] == 300 // BLOCK * BLOCK


@pytest.mark.parametrize(
    "fault",
    [
        ErrorBefore(on="read"),
        ErrorAfter(on="read"),
        FalseMiss(),
        Garbage(on="read"),
        ShortData(on="write"),
        ErrorBefore(on=("write", "delete")),
        ErrorAfter(on=("write", "delete")),
    ],
    ids=lambda fault: f"{type(fault).__name__} on {fault.on or 'all'}",
)
def test_a_store_that_fails_costs_time_and_nothing_else(tiny_llama_dir, reference, tmp_path, fault):
    prompts = [tokens(i % 3, 150) + tokens(50 + i, 5) for i in range(9)]
    layers = []

    def wrap(store: Store) -> Store:
        layers.append(FaultStore(store, [fault, DirtyMiss()]))
        return layers[0]

    settings = {"device_bytes": "240KiB", "host_bytes": "120KiB", "wrap_store": wrap}
    with engine_on(tiny_llama_dir, tmp_path, **settings) as engine:
        results = [engine.generate(prompt, GREEDY) for prompt in prompts]
        engine.demote("disk")
        results += [engine.generate(prompt, GREEDY) for prompt in prompts]
    assert [result.token_ids for result in results] == [reference(prompt) for prompt in prompts * 2]
    assert layers[0].injected(type(fault)) > 0


def test_garbage_on_disk_is_never_served(tiny_llama_dir, reference, tmp_path):
    prompt = tokens(0, 300)
    stores: list[Store] = []

    def keep(store: Store) -> Store:
        stores.append(store)
        return store

    with engine_on(tiny_llama_dir, tmp_path, wrap_store=keep) as engine:
        engine.generate(prompt, GREEDY)
        engine.demote("disk")
        [store] = stores
        for number, meta in enumerate(list(metas_of(store))):
            if number % 2:
                store.raw().corrupt(meta.key)
        result = engine.generate(prompt, GREEDY)
        failed = engine.stats()["cache"]["failed_loads"]
    assert result.token_ids == reference(prompt)
    assert 0 < result.usage.cached_tokens < 300 // BLOCK * BLOCK
    assert sum(failed.values()) > 0


def test_a_disk_whose_trees_break_costs_time_and_no_token(tiny_llama_dir, reference, tmp_path):
    """LMDB fails in the middle of the work: requests are computed, and the tier comes back without a restart."""
    prompts = [tokens(seed, 300) for seed in range(3)]
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        for prompt in prompts:
            engine.generate(prompt, GREEDY)
        engine.demote("disk")
        data = tmp_path / "v1" / "payload" / "data.mdb"
        with data.open("r+b") as file:
            for page in range(2, data.stat().st_size // 4096):
                os.pwrite(file.fileno(), bytes(2), page * 4096 + 10)  # none says any more what it is
        results = engine.generate(prompts, GREEDY)
        assert [result.token_ids for result in results] == [reference(prompt) for prompt in prompts]
        assert all(result.finish_reason == "length" for result in results)
        assert engine.stats()["cache"]["store"]["fresh_starts"] == 1
        engine.demote("disk")
        again = engine.generate(prompts[0], GREEDY)
        assert again.token_ids == reference(prompts[0])
        assert again.usage.cached_by_tier["disk"] == 288


# --- what a user does wrong -------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tiny_llama_dir) -> Iterator[Engine]:
    with engine_on(tiny_llama_dir) as engine:
        yield engine


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [([], "empty"), ([1, 2, 100_000], "100000"), (list(range(1, 500)) * 20, "tokens"), ("text", "tokenizer")],
)
def test_wrong_prompts_get_a_sentence(engine, prompt, complaint):
    with pytest.raises(ValueError, match=complaint):
        engine.generate(prompt)


def test_what_can_never_fit_is_refused_before_anything_is_computed(tiny_llama_dir):
    with (
        engine_on(tiny_llama_dir, device_bytes="64KiB") as engine,
        pytest.raises(ValueError, match="raise device_bytes"),
    ):
        engine.generate(tokens(0, 1000))


def test_a_closed_engine_says_so(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        pass
    for call in (
        lambda: engine.generate([1, 2, 3]),
        lambda: engine.lookup([1, 2, 3]),
        lambda: engine.explain([1, 2, 3]),
        lambda: engine.demote_prefix("00", "host"),
        lambda: engine.remove_prefix("00"),
        lambda: engine.prefix("00"),
        engine.prefixes,
        engine.clear,
        engine.check,
    ):
        with pytest.raises(EngineClosed, match="the engine is closed"):
            call()
    assert engine.stats()["engine"]["requests"] == 0, "what it has counted can still be asked for"
    engine.close()


def test_an_engine_that_cannot_start_lets_go_of_the_directory(tiny_llama_dir, tmp_path):
    def refuse(store: Store) -> Store:
        raise RuntimeError("not this one")

    with (
        pytest.raises(RuntimeError, match="not this one"),
        engine_on(tiny_llama_dir, tmp_path, wrap_store=refuse),
    ):
        pass
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        assert engine.generate([1, 2, 3], GREEDY).token_ids


def test_a_second_engine_on_one_directory_runs_without_it(tiny_llama_dir, reference, tmp_path, caplog):
    """One warning, a figure that says why, and the same tokens; the first engine notices nothing."""
    prompt = tokens(0, 100)
    with engine_on(tiny_llama_dir, tmp_path) as first:
        with engine_on(tiny_llama_dir, tmp_path) as second:
            assert second.generate(prompt, GREEDY).token_ids == reference(prompt)
            second.demote("disk")
            assert str(tmp_path) in second.stats()["disk_off"]
            assert not second.stats()["cache"]["tiers"]["disk"]["ready"]
        first.generate(prompt, GREEDY)
        first.demote("disk")
        assert first.generate(prompt, GREEDY).usage.cached_by_tier["disk"] == 96
        assert first.stats()["disk_off"] is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_directory_that_cannot_be_used_is_done_without(tiny_llama_dir, reference, tmp_path, caplog):
    prompt = tokens(0, 100)
    (tmp_path / "file").write_text("")
    with engine_on(tiny_llama_dir, tmp_path / "file") as engine:
        assert engine.generate(prompt, GREEDY).token_ids == reference(prompt)
        engine.flush()
        assert str(tmp_path / "file") in engine.stats()["disk_off"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_clear_gives_the_disk_back(tiny_llama_dir, tmp_path):
    """Nothing of a prompt is left in a file, not even in free pages."""
    prompt = tokens(0, 100)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.generate(prompt, GREEDY)
        engine.flush()
        stored = np.array(prompt[:16], dtype="<i4").tobytes()
        assert [path for path in tmp_path.rglob("data.mdb") if stored in path.read_bytes()]
        assert engine.clear()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and stored in path.read_bytes()]


def test_the_reply_ends_at_the_models_limit(tiny_llama_dir):
    with engine_on(tiny_llama_dir, max_model_len=64) as engine:
        result = engine.generate(tokens(0, 60), SamplingParams(max_tokens=50, ignore_eos=True))
    assert result.finish_reason == "length"
    assert result.usage.completion_tokens == 4


def test_loading_can_be_switched_off(tiny_llama_dir, reference, tmp_path):
    prompt = tokens(0, 100)
    with engine_on(tiny_llama_dir, tmp_path, load="never") as engine:
        engine.generate(prompt, GREEDY)
        engine.demote("host")
        result = engine.generate(prompt, GREEDY)
    assert result.usage.cached_tokens == 0
    assert result.token_ids == reference(prompt)


def test_what_takes_longer_to_load_than_to_compute_is_computed(tiny_llama_dir, reference, tmp_path):
    """What loads take is told by hand: real ones of so small a model are as fast as computing, or nearly."""
    prompt = tokens(0, 100)
    with engine_on(tiny_llama_dir, tmp_path, load="auto") as engine:
        costs = engine._tiers.chooser.costs
        cold = engine.generate(prompt, GREEDY)
        assert cold.decision is None
        assert engine.stats()["cache"]["load_or_compute"]["ended"] == 0
        engine.demote("disk")
        for _ in range(20):
            costs.loaded("disk", 6 * BLOCK_BYTES, 1000.0)
        computed = engine.generate(prompt, GREEDY)
        assert (computed.decision.num_blocks, computed.decision.of_blocks) == (0, 6)
        assert computed.decision.ttft_s == computed.decision.never_s < computed.decision.always_s
        assert computed.usage.cached_tokens == 0
        assert told(computed.cache_report)[0] == ("computed_sooner", 96)
        engine.demote("disk")
        for _ in range(200):
            costs.loaded("disk", 6 * BLOCK_BYTES, 1e-6)
        loaded = engine.generate(prompt, GREEDY)
        assert loaded.decision.num_blocks == 6
        assert loaded.usage.cached_by_tier["disk"] == 96
        stats = engine.stats()["cache"]["load_or_compute"]
    assert stats["decisions"] == {"all": 1, "some": 0, "none": 1, "uncalibrated": 0}
    assert stats["curves"]["prefill"]["observations"] == 3, "real ones, of each prompt"
    assert stats["ended"] == 2
    assert cold.token_ids == computed.token_ids == loaded.token_ids == reference(prompt)


def test_another_model_in_the_same_directory_finds_nothing_and_harms_nothing(tiny_llama_dir, tmp_path):
    prompt = tokens(0, 100)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.generate(prompt, GREEDY)
    with engine_on(tiny_llama_dir, tmp_path, kv_dtype="bfloat16") as engine:
        assert engine.generate(prompt, GREEDY).usage.cached_tokens == 0
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        assert engine.generate(prompt, GREEDY).usage.cached_by_tier["disk"] == 96


def test_a_prefix_that_nobody_has_used_for_the_ttl_is_computed_anew(tiny_llama_dir, reference, tmp_path):
    """The TTL is over with the next tick of the clock; and again after a restart."""
    prompt = tokens(0, 100)
    for _ in range(2):
        with engine_on(tiny_llama_dir, tmp_path, ttl_s=1e-9) as engine:
            results = [engine.generate(prompt, GREEDY) for _ in range(2)]
            assert [result.usage.cached_tokens for result in results] == [0, 0]
            assert [result.token_ids for result in results] == [reference(prompt)] * 2
            assert sum(engine.lookup(prompt).values()) == 0
            assert engine.stats()["cache"]["expired"] > 0


def test_a_start_that_fails_leaves_the_disk_to_the_next_one(tiny_llama_dir, tmp_path, monkeypatch):
    """The store is opened beside what fails."""
    with monkeypatch.context() as patch:
        patch.setattr(Model, "warm_up", refused)
        with pytest.raises(ValueError, match="no such attention"):
            open_engine(tiny_llama_dir, disk_path=tmp_path)
    with engine_on(tiny_llama_dir, disk_path=tmp_path) as engine:
        assert engine.stats()["disk_off"] is None


def refused(*_: object, **__: object) -> None:
    raise ValueError("no such attention")
