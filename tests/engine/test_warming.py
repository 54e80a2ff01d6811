"""Prompts are computed and cached without a reply, and what is cached is written down."""

import threading

import pytest

from engine import RequestOptions
from kvstore.errors import StoreFailed
from kvstore.layers import ErrorBefore, FaultStore, Gate, Hang
from tests.engine.engines import BLOCK, GREEDY, engine_on, tokens
from tests.engine.stress import leaks_when_settled


def test_warming_caches_whole_blocks_and_replies_nothing(tiny_llama_dir):
    prompt = tokens(0, 5 * BLOCK + 3)
    with engine_on(tiny_llama_dir) as engine:
        result = engine.warm(prompt)
        assert (result.token_ids, result.finish_reason) == ([], "length")
        assert (result.usage.prefilled_tokens, result.usage.completion_tokens) == (5 * BLOCK, 0)
        assert engine.lookup(prompt)["device"] == 5 * BLOCK
        assert engine.generate(prompt, GREEDY).usage.prefilled_tokens == 3
        again = engine.warm(prompt)
        assert (again.usage.prefilled_tokens, again.usage.cached_tokens) == (0, 5 * BLOCK)
        assert engine.warm(prompt[: BLOCK - 1]).usage.prompt_tokens == 0
        assert not leaks_when_settled(engine)


def test_warming_what_is_warm_keeps_nobody_waiting(tiny_llama_dir):
    """Nothing is computed when such a request ends, and those behind it begin all the same."""
    with engine_on(tiny_llama_dir, max_num_seqs=2) as engine:
        prompt = tokens(0, 5 * BLOCK)
        results = engine.warm([prompt] * 9 + [[1, 2, 3]] * 9)
        assert [result.finish_reason for result in results] == ["length"] * 18
        assert engine.stats()["engine"]["cached_tokens"] == 8 * 5 * BLOCK


@pytest.mark.parametrize("cache", ["read", "off"])
def test_warming_needs_leave_to_write(tiny_llama_dir, cache):
    with engine_on(tiny_llama_dir) as engine, pytest.raises(ValueError, match="warming a prompt writes"):
        engine.warm(tokens(0, 50), RequestOptions(cache=cache))


def test_warming_brings_back_what_a_lower_tier_has(tiny_llama_dir, tmp_path):
    prompt = tokens(0, 5 * BLOCK)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.warm([prompt, tokens(1, 40)])
        engine.demote("disk")
        assert engine.warm(prompt).usage.cached_by_tier["disk"] == 5 * BLOCK
        assert engine.lookup([*prompt, 1])["device"] == 5 * BLOCK


def test_a_flush_outlives_the_process(tiny_llama_dir, tmp_path):
    """An engine that is not closed, as after a power cut: what was flushed is found by the next."""
    import shutil

    prompt = tokens(0, 6 * BLOCK)
    with engine_on(tiny_llama_dir, tmp_path / "live") as engine:
        engine.warm(prompt)
        engine.flush()
        assert engine.lookup([*prompt, 1])["device"] == 6 * BLOCK, "it also stays where it is"
        shutil.copytree(tmp_path / "live", tmp_path / "copy")
    with engine_on(tiny_llama_dir, tmp_path / "copy") as engine:
        assert engine.lookup([*prompt, 1])["disk"] == 6 * BLOCK


def test_a_flush_that_cannot_write_says_so(tiny_llama_dir, tmp_path):
    failing = [ErrorBefore(on="write")]
    with engine_on(tiny_llama_dir, tmp_path, wrap_store=lambda store: FaultStore(store, failing)) as engine:
        engine.warm(tokens(0, 5 * BLOCK))
        with pytest.raises(StoreFailed, match="5 cached blocks are not on disk"):
            engine.flush()


def test_a_sweep_does_not_end_the_one_before(tiny_llama_dir, tmp_path):
    gate = Gate()
    hanging = [Hang(gate, on="write")]
    with engine_on(tiny_llama_dir, tmp_path, wrap_store=lambda store: FaultStore(store, hanging)) as engine:
        engine.warm(tokens(0, 5 * BLOCK))
        flush = threading.Thread(target=engine.flush)
        flush.start()
        assert gate.wait_until_reached(60)
        demote = threading.Thread(target=engine.demote, args=("host",))
        demote.start()
        engine.check()  # the demote is at the loop by now, or behind this
        assert flush.is_alive()
        gate.open()
        flush.join(60)
        demote.join(60)
        assert not flush.is_alive()
        assert not demote.is_alive(), "there was nothing to move, and nobody has looked"
        assert engine.stats()["cache"]["tiers"]["disk"]["blocks"] == 5
        assert engine.lookup([*tokens(0, 5 * BLOCK), 1])["host"] == 5 * BLOCK
