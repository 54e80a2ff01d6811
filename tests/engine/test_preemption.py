"""More replies than the device has room for: some give way, come back, and say the same as if they had been alone."""

import threading

import pytest

from engine import SamplingParams
from engine.engine import Engine
from tests.engine.engines import bytes_of, engine_on, tokens

LONG = SamplingParams(max_tokens=60, ignore_eos=True)


def preempted(engine: Engine) -> dict[str, int]:
    return engine.stats()["cache"]["preempted"]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("host_blocks", [0, 2, 40])
def test_the_same_tokens_with_preemption(tiny_llama_dir, reference, host_blocks, deterministic):
    """With a place for what they had, with hardly any, and with none: then it is computed again."""
    prompts = [tokens(i, 40 + 5 * i) for i in range(6)]
    settings = {"device_bytes": bytes_of(16), "host_bytes": bytes_of(host_blocks)}
    with engine_on(tiny_llama_dir, deterministic=deterministic, **settings) as engine:
        handles = [engine.submit(prompt, LONG) for prompt in prompts]  # which keeps their order
        results = [handle.result(60) for handle in handles]
        engine.check()
        stats = preempted(engine)
    assert [result.token_ids for result in results] == [reference(prompt, LONG) for prompt in prompts]
    assert all(
        result.usage.cached_tokens + result.usage.prefilled_tokens == result.usage.prompt_tokens
        for result in results
    )
    assert stats["requests"] > 0
    if host_blocks == 0:
        assert stats["swapped_out_blocks"] == 0
    if host_blocks == 40:
        assert stats["swapped_in_blocks"] > 0


def test_preemption_during_prefill_loses_nothing(tiny_llama_dir, reference):
    prompts = [tokens(i, 200) for i in range(4)]
    settings = {"device_bytes": bytes_of(20), "host_bytes": bytes_of(40), "max_batch_tokens": 32}
    with engine_on(tiny_llama_dir, **settings) as engine:
        results = engine.generate(prompts, LONG)
        assert preempted(engine)["requests"] > 0
    assert [result.token_ids for result in results] == [reference(prompt, LONG) for prompt in prompts]


@pytest.mark.parametrize("host_blocks", [0, 40])
def test_idle_cached_blocks_cost_no_decode_its_place(tiny_llama_dir, host_blocks):
    """A pool full of them runs as many replies together as an empty one, in as many steps, and preempts nobody."""
    prompts = [tokens(i, 16) for i in range(4)]
    settings = {"device_bytes": bytes_of(20), "host_bytes": bytes_of(host_blocks)}
    steps = []
    for filled in (False, True):
        with engine_on(tiny_llama_dir, **settings) as engine:
            if filled:
                for i in range(10):
                    engine.generate(tokens(100 + i, 64), SamplingParams(max_tokens=1))
                assert engine.stats()["cache"]["tiers"]["device"]["indexed"] == 20
            before = engine.stats()["engine"]["steps"]
            engine.generate(prompts, LONG)
            engine.check()
            steps.append(engine.stats()["engine"]["steps"] - before)
            assert preempted(engine)["requests"] == 0
    empty, full = steps
    assert full <= empty * 1.25, "one after the other they would take four times as many"


@pytest.mark.parametrize("host_blocks", [0, 12])
def test_a_preempted_request_can_be_cancelled(tiny_llama_dir, reference, monkeypatch, host_blocks):
    """Whoever loses its room is called off while it waits to come back, with what was saved of it and without."""
    prompts = [tokens(i, 40 + 5 * i) for i in range(6)]
    settings = {"device_bytes": bytes_of(12), "host_bytes": bytes_of(host_blocks)}
    with engine_on(tiny_llama_dir, **settings) as engine:
        all_there, handles, saved_blocks = threading.Event(), [], {}
        forward, everybody = engine.model.forward, engine._loop._scheduler.all

        def call_off_and_forward(batch, pool, *more: object):
            """On the loop's thread: a cancellation is taken up before anybody is admitted again."""
            assert all_there.wait(60)
            sequences = {sequence.request: sequence for sequence in everybody()}
            for number, handle in enumerate(handles):
                waiting = sequences.get(handle._request)
                if waiting is not None and waiting.request.marks.admitted_s and waiting.lease is None:
                    saved_blocks[number] = len(waiting.stash or ())
                    handle.cancel()
            return forward(batch, pool, *more)

        monkeypatch.setattr(engine.model, "forward", call_off_and_forward)
        handles += [engine.submit(prompt, LONG) for prompt in prompts]
        all_there.set()
        results = [handle.result(60) for handle in handles]
        engine.check()
        num_preempted = preempted(engine)["requests"]
        tiers = engine.stats()["cache"]["tiers"]
    assert num_preempted == len(saved_blocks) > 0
    assert any(saved_blocks.values()) is (host_blocks > 0)
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        assert result.finish_reason == ("cancelled" if number in saved_blocks else "length")
        assert result.token_ids == reference(prompt, LONG)[: len(result.token_ids)]
    assert tiers["device"]["private"] == tiers["host"]["private"] == 0


def test_a_handle_waits_as_long_as_it_is_told_to(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        first, second = (
            engine.submit(tokens(i, 100), SamplingParams(max_tokens=3000, ignore_eos=True)) for i in range(2)
        )
        assert first.id != second.id
        with pytest.raises(TimeoutError):
            first.result(0.0)
        first.cancel()
        assert first.result(60).finish_reason == "cancelled"
        second.cancel()
        second.result(60)
        assert second.done
        second.cancel()
