"""Whoever asks something of the cache while an engine computes, sleeps, fails or ends gets an answer."""

import threading

import pytest

from engine import SamplingParams
from kvstore.reports import PrefixQuery, Removed
from tests.engine.engines import BLOCK, GREEDY, engine_on, open_engine, tokens


def test_a_sleeping_engine_lists_changes_and_removes(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        cache, prompt = engine._cache, tokens(0, 5 * BLOCK + 1)
        engine.generate(prompt, SamplingParams(max_tokens=1))
        engine.generate(prompt, SamplingParams(max_tokens=1))
        (row,) = cache.prefixes(PrefixQuery()).rows
        assert (row.blocks, row.hits, row.leases) == (5, 1, 0)
        assert row.blocks_by_tier == {"device": 5, "host": 0, "disk": 0}
        assert cache.prefix(row.key, text=True).token_ids == tuple(prompt[: 5 * BLOCK])
        assert cache.demote_prefix(row.key, "host") == Removed(blocks=5, in_use_blocks=0)
        assert engine.lookup(prompt) == {"device": 0, "host": 5 * BLOCK, "disk": 0}
        cache.change(host_slots=100, ttl_s=60.0)
        assert cache.remove_prefix(row.key) == Removed(blocks=5, in_use_blocks=0)
        assert engine.lookup(prompt) == {"device": 0, "host": 0, "disk": 0}
        engine.check()


def test_an_engine_that_computes_does_so_between_steps_and_keeps_what_is_in_use(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        running = engine.submit(tokens(0, 100), SamplingParams(max_tokens=400, ignore_eos=True))
        steps = set()
        for _ in range(20):
            steps.add(engine._cache.ask(lambda: engine._loop._counts["steps"]).result(60))
            rows = engine._cache.prefixes(PrefixQuery(flat=True)).rows
            engine._cache._listing.expire()
            if rows:
                removed = engine._cache.remove_prefix(rows[0].key)
                assert removed.in_use_blocks == rows[0].blocks or running.done or removed.in_use_blocks
        assert len(steps) > 1, "computing stood still"
        running.cancel()
        assert running.result(60).finish_reason in ("cancelled", "length")


def test_many_who_ask_at_once_are_all_answered(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        running = [engine.submit(tokens(i, 60), GREEDY) for i in range(8)]
        failures = []

        def ask(seed):
            try:
                for i in range(10):
                    page = engine._cache.prefixes(PrefixQuery(flat=True, order="hits"))
                    if page.rows and (seed + i) % 5 == 0:
                        engine._cache.remove_prefix(page.rows[-1].key)
                    engine._cache.events(0)
                    engine._cache.stats()
            except KeyError:
                pass  # somebody else has removed it
            except Exception as error:  # noqa: BLE001 - the test's thread raises it
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert all(each.result(60).finish_reason == "length" for each in running)


def test_an_engine_that_fails_answers_who_waits_and_who_comes(tiny_llama_dir):
    engine = open_engine(tiny_llama_dir)
    try:

        def waits():
            yield lambda: False

        waiting = engine._cache.ask_in_steps(waits)
        engine._cache.ask(lambda: None).result(60)

        def finds_it_broken():
            raise AssertionError("a slot is lost")

        with pytest.raises(AssertionError, match="a slot is lost"):
            engine._cache.ask(finds_it_broken).result(60)
        with pytest.raises(RuntimeError, match=r"the engine has failed: .*a slot is lost"):
            waiting.result(60)
        with pytest.raises(RuntimeError, match="a slot is lost"):
            engine._cache.prefixes(PrefixQuery())
        assert engine.generate([1, 2, 3], GREEDY).finish_reason == "error"
    finally:
        engine.close()


def test_an_engine_that_is_closed_answers_who_waits_and_who_comes(tiny_llama_dir):
    engine = open_engine(tiny_llama_dir)

    def waits():
        yield lambda: False

    waiting = engine._cache.ask_in_steps(waits)
    engine.close()
    for future in (waiting, engine._cache.ask(lambda: None)):
        with pytest.raises(RuntimeError, match="the cache is closed"):
            future.result(60)
