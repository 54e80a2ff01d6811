"""Whatever goes wrong inside, everybody who waits gets an answer."""

import threading

import pytest

from benchmarks.faults.kinds import break_tree, data_file
from engine import SamplingParams
from tests.engine.engines import BLOCK, GREEDY, engine_on, open_engine, tokens


def fail_once(monkeypatch, owner, name, error):
    """The next call of a method raises; later ones work again."""
    sound = getattr(owner, name)

    def fail(*_args: object, **_kwargs: object):
        monkeypatch.setattr(owner, name, sound)
        raise error

    monkeypatch.setattr(owner, name, fail)


def test_a_step_that_fails_ends_its_requests_and_no_others(tiny_llama_dir, reference, monkeypatch):
    prompts = [tokens(0, 100), tokens(1, 100)]
    with engine_on(tiny_llama_dir, max_num_seqs=1) as engine:
        fail_once(monkeypatch, engine.model, "forward", RuntimeError("the GPU has fallen off the bus"))
        failed, served = (engine.submit(prompt, GREEDY) for prompt in prompts)
        result = failed.result(60)
        assert (result.finish_reason, result.error) == (
            "error",
            "RuntimeError: the GPU has fallen off the bus",
        )
        assert served.result(60).token_ids == reference(prompts[1])
        engine.check()
        assert engine.generate(prompts[0], GREEDY).token_ids == reference(prompts[0])


def test_layers_that_a_failed_step_has_enqueued_are_waited_for(tiny_llama_dir, monkeypatch):
    """They may still run on the device: a copy into or out of their slots must not pass them."""
    with engine_on(tiny_llama_dir) as engine:
        ended = []
        after_compute = engine._cache.after_compute
        monkeypatch.setattr(engine._cache, "after_compute", lambda: ended.append(after_compute()))
        fail_once(monkeypatch, engine.model, "forward", RuntimeError("out of memory"))
        assert engine.generate(tokens(0, 20), GREEDY).finish_reason == "error"
        assert len(ended) == 1


def test_a_start_that_fails_late_leaves_nothing_behind(tiny_llama_dir, tmp_path, monkeypatch):
    before = {thread.name for thread in threading.enumerate()}
    with monkeypatch.context() as patch:
        patch.setattr("engine.engine.figures_of", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_engine(tiny_llama_dir, tmp_path)
    assert {thread.name for thread in threading.enumerate()} == before
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        assert engine.stats()["disk_off"] is None


class BrokenTokenizer:
    def decode(self, ids: list[int], **_settings: object) -> str:
        raise TypeError(f"what is {ids[0]}?")


def test_a_reply_that_cannot_be_turned_into_text_is_an_error_of_its_request(tiny_llama_dir, reference):
    prompts = [tokens(0, 100), tokens(1, 100)]
    with engine_on(tiny_llama_dir) as engine:
        sound, engine.model.tokenizer = engine.model.tokenizer, BrokenTokenizer()
        for prompt, result in zip(prompts, engine.generate(prompts, GREEDY), strict=True):
            assert result.finish_reason == "error"
            assert result.error == f"TypeError: what is {result.token_ids[0]}?"
            assert (result.text, result.token_ids) == ("", reference(prompt)[:1])
        engine.model.tokenizer = sound
        assert engine.generate(prompts[0], GREEDY).finish_reason == "length"


def test_an_engine_that_has_failed_asks_no_tokenizer(tiny_llama_dir, monkeypatch):
    engine = open_engine(tiny_llama_dir)
    try:
        engine.model.tokenizer = BrokenTokenizer()
        fail_once(monkeypatch, engine._cache, "pump", AssertionError("a slot is lost"))
        for _ in range(2):
            assert engine.generate([1, 2, 3], GREEDY).error == "AssertionError: a slot is lost"
    finally:
        engine.close()


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_store_that_cannot_be_closed_costs_no_memory(tiny_llama_dir, tmp_path, monkeypatch, has_failed):
    engine = open_engine(tiny_llama_dir, tmp_path)
    if has_failed:
        fail_once(monkeypatch, engine._cache, "pump", AssertionError("a slot is lost"))
    engine.generate(tokens(0, 100), GREEDY)
    monkeypatch.setattr(engine._cache._store, "close", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.close()
    with pytest.raises(AssertionError, match="the pool is closed"):
        engine._tiers.pool.view(0)
    with pytest.raises(AssertionError, match="the host slab was used after close"):
        engine._tiers.slab.view(0)
    engine.close()


@pytest.mark.parametrize("broken", ["lookup", "sweep", "release"])
def test_who_asked_when_it_broke_is_told_too(tiny_llama_dir, monkeypatch, broken):
    """Also if it was the answer to a question, or the end of a request, that could not be given."""
    engine = open_engine(tiny_llama_dir)
    try:
        fail_once(monkeypatch, engine._cache, broken, AssertionError("a slot is lost"))
        if broken == "release":
            assert engine.generate([1, 2, 3], GREEDY).finish_reason == "length"
        else:
            ask = {"lookup": lambda: engine.lookup([1, 2, 3]), "sweep": lambda: engine.demote("host")}[broken]
            with pytest.raises(RuntimeError, match="a slot is lost"):
                ask()
        with pytest.raises(RuntimeError, match="a slot is lost"):
            engine.check()
    finally:
        engine.close()


def test_an_engine_whose_books_are_wrong_tells_everybody_and_closes(tiny_llama_dir, tmp_path, monkeypatch):
    before = {thread.name for thread in threading.enumerate()}
    engine = open_engine(tiny_llama_dir, tmp_path)
    try:
        running = engine.submit(tokens(0, 100), SamplingParams(max_tokens=2000, ignore_eos=True))
        fail_once(monkeypatch, engine._cache, "pump", AssertionError("a slot is lost"))
        result = running.result(60)
        assert result.finish_reason == "error"
        assert "a slot is lost" in result.error
        assert engine.generate([1, 2, 3], GREEDY).finish_reason == "error"
        calls = lambda: engine.lookup([1, 2, 3]), lambda: engine.demote("host"), engine.clear, engine.check
        for call in calls:
            with pytest.raises(RuntimeError, match="a slot is lost"):
                call()
        running.cancel()
    finally:
        engine.close()
    assert {thread.name for thread in threading.enumerate()} <= before
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        assert engine.generate([1, 2, 3], GREEDY).token_ids, "the directory was let go of"


def test_the_figures_count_a_request_as_soon_as_it_is_answered(tiny_llama_dir):
    with open_engine(tiny_llama_dir) as engine:
        for number in range(1, 21):
            engine.generate(tokens(number, 20), SamplingParams(max_tokens=1))
            assert engine.stats()["engine"]["generated_tokens"] == number


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_store_that_cannot_say_its_last_figures_costs_no_others(
    tiny_llama_dir, tmp_path, monkeypatch, caplog, has_failed
):
    engine = open_engine(tiny_llama_dir, tmp_path)
    try:
        engine.generate(tokens(0, 100), SamplingParams(max_tokens=1))
        known = engine.stats()["cache"]
        if has_failed:
            fail_once(monkeypatch, engine._cache, "pump", AssertionError("a slot is lost"))
        engine.generate(tokens(1, 100), SamplingParams(max_tokens=1))
        monkeypatch.setattr(engine._cache._store, "stats", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.stats()
    finally:
        engine.close()
    assert "the cache's last figures cannot be had" in caplog.text
    assert engine.stats()["cache"] == known
    assert engine.stats()["engine"]["generated_tokens"] == (1 if has_failed else 2)


def test_trees_that_break_while_they_are_listed_cost_the_cache_and_not_the_start(tiny_llama_dir, tmp_path):
    prompt = tokens(0, 5 * BLOCK)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        right = engine.generate(prompt, GREEDY).token_ids
        engine.flush()

    def break_entries(store):
        break_tree(data_file(tmp_path, "meta"))
        return store

    with engine_on(tiny_llama_dir, tmp_path, wrap_store=break_entries) as engine:
        assert engine.generate(prompt, GREEDY).token_ids == right
        engine.flush()
        assert engine.stats()["cache"]["store"]["fresh_starts"] == 1
        assert engine.lookup([*prompt, 1])["device"] == 5 * BLOCK
