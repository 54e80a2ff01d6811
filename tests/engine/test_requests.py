"""Everything that one request may ask for, on a whole engine."""

import asyncio
import gc
import threading

import numpy as np
import pytest
import torch

from engine import AsyncEngine, Delta, RequestOptions, SamplingParams
from kvstore.errors import StoreFailed
from kvstore.layers import ErrorBefore, FaultStore, Gate, Hang
from tests.engine.engines import BLOCK, GREEDY, bytes_of, engine_on, open_engine, tokens
from tests.engine.stress import leaks_when_settled
from tiering.transfer.faults import FaultDevice

ENDLESS = SamplingParams(max_tokens=3000, ignore_eos=True)
WARM = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True, seed=5)


# ---- streams


def test_a_stream_is_the_reply_piece_by_piece(tiny_text_dir):
    with engine_on(tiny_text_dir) as engine:
        right = engine.generate("Once upon", WARM)
        with engine.stream("Once upon", WARM) as stream:
            deltas = list(stream)
        assert "".join(delta.text for delta in deltas) == right.text
        assert [token for delta in deltas for token in delta.token_ids] == right.token_ids
        assert [delta.finish_reason for delta in deltas] == [None] * 19 + ["length"]
        assert stream.handle.result(0).token_ids == right.token_ids
        assert list(stream) == []


def test_a_stream_begins_before_the_reply_ends(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        stream = engine.stream(tokens(0, 30), ENDLESS)
        first = next(stream)
        assert (len(first.token_ids), first.finish_reason) == (1, None)
        assert not stream.handle.done
        stream.close()
        assert stream.handle.result(60).finish_reason == "cancelled"
        stream.close()


def test_who_reads_no_further_calls_the_request_off(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        stream = engine.stream(tokens(0, 30), ENDLESS)
        handle = stream.handle
        for _ in stream:
            break
        del stream, _
        gc.collect()
        assert handle.result(60).finish_reason == "cancelled"
        assert not leaks_when_settled(engine)


def test_a_stream_of_several_replies_says_which(tiny_text_dir):
    params = SamplingParams(temperature=1.0, max_tokens=8, ignore_eos=True, seed=1, n=3)
    with engine_on(tiny_text_dir) as engine:
        texts = dict.fromkeys(range(3), "")
        stream = engine.stream("abc", params)
        for delta in stream:
            texts[delta.index] += delta.text
        assert [sample.text for sample in stream.handle.result().samples] == list(texts.values())


def test_an_error_ends_a_stream(tiny_llama_dir, monkeypatch):
    with engine_on(tiny_llama_dir) as engine:
        monkeypatch.setattr(engine.model, "forward", lambda *_: 1 / 0)
        [delta] = engine.stream([1, 2, 3], GREEDY)
        assert delta == Delta(
            text="", token_ids=(), finish_reason="error", error="ZeroDivisionError: division by zero"
        )


def test_closing_the_engine_ends_a_stream(tiny_llama_dir):
    with open_engine(tiny_llama_dir) as engine:
        stream = engine.stream(tokens(0, 30), ENDLESS)
        next(stream)
        closing = threading.Thread(target=engine.close)
        closing.start()
        *_, last = stream
        assert last.finish_reason == "cancelled"
        closing.join()


def test_a_stream_that_another_thread_closes_ends(tiny_llama_dir):
    """Also if the request has not begun: its reader is told, and waits no longer."""
    with engine_on(tiny_llama_dir, max_num_seqs=1) as engine:
        running = engine.submit(tokens(0, 30), ENDLESS)
        stream = engine.stream(tokens(1, 30), ENDLESS)
        seen = []
        reader = threading.Thread(target=lambda: seen.extend(stream))
        reader.start()
        stream.close()
        reader.join(60)
        assert not reader.is_alive()
        assert [delta.finish_reason for delta in seen] in ([], ["cancelled"])
        running.cancel()


def test_who_is_told_and_fails_harms_nobody_else(tiny_llama_dir, reference):
    def fail(_: Delta) -> None:
        raise KeyError("not a sink")

    with engine_on(tiny_llama_dir) as engine:
        bad = engine.submit(tokens(0, 30), GREEDY, on_delta=fail)
        assert engine.generate(tokens(1, 30), GREEDY).token_ids == reference(tokens(1, 30))
        assert bad.result(60).token_ids == reference(tokens(0, 30))


# ---- the same from asyncio


def test_asyncio_gets_the_same(tiny_text_dir):
    async def talk():
        engine_ = engine_on(tiny_text_dir)
        async with AsyncEngine(engine_.__enter__()) as engine:
            both = await engine.generate(["Once upon", "a time"], WARM)
            alone = await engine.generate("Once upon", WARM)
            deltas = [delta async for delta in engine.stream("Once upon", WARM)]
            many = await asyncio.gather(*(engine.generate("Once upon", WARM) for _ in range(4)))
            assert sum((await engine.lookup("Once upon a time, long ago")).values()) == 0
            await engine.warm("Once upon a time, long ago")
            assert sum((await engine.lookup("Once upon a time, long ago")).values()) == BLOCK
            await engine.flush()
            await engine.demote("host")
            assert (await engine.lookup("Once upon a time, long ago"))["host"] == BLOCK
            assert await engine.clear()
        return both, alone, deltas, many

    both, alone, deltas, many = asyncio.run(talk())
    assert both[0].token_ids == alone.token_ids == [t for delta in deltas for t in delta.token_ids]
    assert all(result.token_ids == alone.token_ids for result in many)


def held_until(event, post=lambda delta: None):
    """Posts deltas, and holds the engine's loop at each until the event: replies do not run to their end meanwhile."""

    def on_delta(delta):
        post(delta)
        assert event.wait(60)

    return on_delta


def test_a_cancelled_task_calls_its_request_off(tiny_llama_dir, monkeypatch):
    begun, streamed, called_off = threading.Event(), threading.Event(), threading.Event()

    async def talk(engine):
        task = asyncio.create_task(engine.generate([tokens(0, 30), tokens(1, 30)], ENDLESS))
        assert await asyncio.to_thread(begun.wait, 60)
        stream = engine.stream(tokens(2, 30), ENDLESS)
        await anext(stream)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()
        called_off.set()

    with engine_on(tiny_llama_dir) as engine:
        submit_all = engine.submit_all

        def watched(prompts, params, options, on_delta=None):
            if on_delta is None:
                handles = submit_all(prompts, params, options, on_delta=held_until(streamed))
                begun.set()
            else:
                handles = submit_all(prompts, params, options, on_delta=held_until(called_off, on_delta))
                streamed.set()
            return handles

        monkeypatch.setattr(engine, "submit_all", watched)
        asyncio.run(talk(AsyncEngine(engine)))
        assert not leaks_when_settled(engine)
        assert engine.stats()["engine"]["generated_tokens"] < 30


def test_a_task_that_is_cancelled_before_its_request_is_there_leaves_none(tiny_llama_dir, monkeypatch):
    """Nor does it where the event loop has ended when the request comes."""
    entered, go_on, called_off = threading.Event(), threading.Event(), threading.Event()

    async def talk(engine):
        task = asyncio.create_task(engine.generate(tokens(0, 30), ENDLESS))
        assert await asyncio.to_thread(entered.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    with engine_on(tiny_llama_dir) as engine:
        submit_all = engine.submit_all

        def late(prompts, params, options):
            entered.set()
            assert go_on.wait(60)
            return submit_all(prompts, params, options, on_delta=held_until(called_off))

        monkeypatch.setattr(engine, "submit_all", late)
        asyncio.run(talk(AsyncEngine(engine)))  # waits for its threads at its end
        called_off.set()
        assert not leaks_when_settled(engine)
        assert engine.stats()["engine"]["generated_tokens"] < 30


# ---- where a reply ends


def test_stop_texts_and_stop_tokens_end_a_reply(tiny_text_dir):
    with engine_on(tiny_text_dir) as engine:
        whole = engine.generate("Tell me", WARM)
        stop = whole.text[6:9]
        params = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True, seed=5, stop=stop)
        result = engine.generate("Tell me", params)
        assert result.finish_reason == "stop"
        assert result.text == whole.text[: whole.text.index(stop)]
        assert result.token_ids == whole.token_ids[: len(result.token_ids)]
        ends = whole.token_ids[4]
        params = SamplingParams(
            temperature=1.0, max_tokens=20, ignore_eos=True, seed=5, stop_token_ids=[ends]
        )
        result = engine.generate("Tell me", params)
        assert (result.finish_reason, result.token_ids[-1]) == ("stop", ends)
        assert len(result.token_ids) == whole.token_ids.index(ends) + 1
        assert whole.text.startswith(result.text)


def test_a_stop_text_needs_a_tokenizer(tiny_llama_dir):
    with (
        engine_on(tiny_llama_dir) as engine,
        pytest.raises(ValueError, match="no tokenizer, so its replies have no text"),
    ):
        engine.generate([1, 2, 3], SamplingParams(stop="END"))


def test_a_request_times_out_with_what_it_has(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        options = RequestOptions(timeout_s=2.0)
        result = engine.generate(tokens(0, 30), ENDLESS, options)
        while result.finish_reason == "length":  # a fast machine
            options = RequestOptions(timeout_s=options.timeout_s / 2)
            result = engine.generate(tokens(0, 30), ENDLESS, options)
        assert result.finish_reason == "timeout"
        assert 0 < len(result.token_ids) < 3000
        assert not leaks_when_settled(engine)


def test_a_special_token_by_its_name_ends_a_reply_too(tiny_text_dir):
    with engine_on(tiny_text_dir) as engine:
        eos = engine.model.tokenizer.eos_token_id
        bias = engine.model.hf.lm_head.weight
        with torch.no_grad():
            bias[eos] = bias.abs().max() * 10 * bias[0].sign()  # now and then it is the most probable
        ends = [
            engine.generate(text, SamplingParams(max_tokens=50, ignore_eos=True, stop=["<eos>", "zz"]))
            for text in ("a", "bc", "def", "ghij")
        ]
        assert any(result.finish_reason == "stop" and result.token_ids[-1] == eos for result in ends)
        assert not any(eos in result.token_ids[:-1] for result in ends)


def test_a_timeout_of_centuries_is_none(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.warm(tokens(0, 100))
        engine.demote("disk")
        result = engine.generate(tokens(0, 100), GREEDY, RequestOptions(timeout_s=1e12))
        assert result.finish_reason == "length"


def test_who_waits_times_out_too(tiny_llama_dir):
    with engine_on(tiny_llama_dir, max_num_seqs=1) as engine:
        running = engine.submit(tokens(0, 30), ENDLESS)
        result = engine.generate(tokens(1, 30), GREEDY, RequestOptions(timeout_s=0.05))
        assert (result.finish_reason, result.token_ids) == ("timeout", [])
        running.cancel()


def test_an_idle_engine_wakes_to_end_what_hangs(tiny_llama_dir, tmp_path):
    """A read that hangs must not keep a request beyond its time, although nothing else wakes the engine."""
    gate = Gate()
    prompt = tokens(0, 100)
    with engine_on(
        tiny_llama_dir, tmp_path, wrap_store=lambda store: FaultStore(store, [Hang(gate, on="read")])
    ) as engine:
        engine.generate(prompt, GREEDY)
        engine.demote("disk")
        result = engine.generate(prompt, GREEDY, RequestOptions(timeout_s=0.2))
        gate.open()
        assert result.finish_reason == "timeout"
        assert result.usage.completion_tokens == 0


# ---- warming


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


# ---- several replies


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("prompt_tokens", [5 * BLOCK, 5 * BLOCK + 7, 3])
def test_replies_to_one_prompt_are_what_they_would_be_alone(tiny_llama_dir, deterministic, prompt_tokens):
    """And the prompt is computed once: the others take its last block over, copied if it is not whole."""
    prompt = tokens(0, prompt_tokens)
    params = {"temperature": 1.0, "max_tokens": 25, "ignore_eos": True}
    with engine_on(tiny_llama_dir, deterministic=deterministic) as engine:
        result = engine.generate(prompt, SamplingParams(**params, seed=9, n=4))
        assert engine.stats()["engine"]["prefilled_tokens"] == prompt_tokens
        assert engine.stats()["engine"]["forked_replies"] == 3
        replies = [sample.token_ids for sample in result.samples]
        assert len({tuple(reply) for reply in replies}) == 4, "each draws for itself"
        assert result.usage.completion_tokens == 100
        again = engine.generate(prompt, SamplingParams(**params, seed=9, n=4))
        assert [sample.token_ids for sample in again.samples] == replies
        if deterministic:
            engine.clear()
            alone = engine.generate(prompt, SamplingParams(**params, seed=9))
            assert alone.token_ids == replies[0]
        assert not leaks_when_settled(engine)


@pytest.mark.parametrize("cache", ["readwrite", "off"])
def test_greedy_replies_are_all_the_same(tiny_llama_dir, reference, cache):
    prompt = tokens(0, 45)
    params = SamplingParams(max_tokens=12, ignore_eos=True, n=3)
    with engine_on(tiny_llama_dir) as engine:
        result = engine.generate(prompt, params, RequestOptions(cache=cache))
    assert [sample.token_ids for sample in result.samples] == [reference(prompt)] * 3


class CopiesDown(FaultDevice):
    """A device whose copies down can be waited for, on the engine's thread."""

    def stream(self, name):
        stream = super().stream(name)
        if name == "down":
            self.down = stream
        return stream

    def finish_down(self):
        self.host_wait(self.record(self.down))


def test_a_device_full_of_idle_blocks_leaves_room_for_forks(tiny_llama_dir, monkeypatch):
    """It leaves while the prompt is computed, which takes as long as the copies here: none is begun for a fork later."""
    devices = []

    def wrap(device):
        devices.append(CopiesDown(device))
        return devices[0]

    sizes = {"device_bytes": bytes_of(40), "host_bytes": bytes_of(200)}
    with engine_on(tiny_llama_dir, wrap_device=wrap, **sizes) as engine:
        for number in range(4):
            engine.warm(tokens(100 + number, 10 * BLOCK))
        assert engine.stats()["cache"]["tiers"]["device"]["free"] == 0
        forward = engine.model.forward

        def as_long_as_copies(*given: object):
            logits = forward(*given)
            devices[0].finish_down()
            return logits

        monkeypatch.setattr(engine.model, "forward", as_long_as_copies)
        engine.generate(tokens(0, 5 * BLOCK + 4), SamplingParams(n=4, max_tokens=4, ignore_eos=True))
        assert engine.stats()["engine"]["forked_replies"] == 3


def test_replies_that_find_no_room_wait_and_are_the_same(tiny_llama_dir, reference):
    prompt = tokens(0, 5 * BLOCK + 4)
    params = SamplingParams(max_tokens=12, ignore_eos=True, n=6)
    with engine_on(tiny_llama_dir, device_bytes=bytes_of(9), host_bytes=bytes_of(4)) as engine:
        result = engine.generate(prompt, params)
        assert [sample.token_ids for sample in result.samples] == [reference(prompt)] * 6
        assert engine.stats()["engine"]["forked_replies"] < 5
        assert not leaks_when_settled(engine)


def test_cancelling_ends_all_replies(tiny_llama_dir):
    params = SamplingParams(temperature=1.0, max_tokens=3000, ignore_eos=True, n=3)
    with engine_on(tiny_llama_dir) as engine:
        stream = engine.stream(tokens(0, 30), params)
        next(stream)
        stream.close()
        result = stream.handle.result(60)
        assert [sample.finish_reason for sample in result.samples] == ["cancelled"] * 3
        assert not leaks_when_settled(engine)


def test_replies_that_never_began_end_with_the_first(tiny_llama_dir):
    with engine_on(tiny_llama_dir, max_num_seqs=1) as engine:
        running = engine.submit(tokens(0, 30), ENDLESS)
        waiting = engine.submit(tokens(1, 30), SamplingParams(n=3))
        waiting.cancel()
        result = waiting.result(60)
        assert [(s.index, s.finish_reason, s.token_ids) for s in result.samples] == [
            (index, "cancelled", []) for index in range(3)
        ]
        running.cancel()


# ---- sampling


@pytest.mark.parametrize("others", [0, 6])
def test_a_seed_draws_the_same_whatever_else_runs(tiny_llama_dir, others):
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=30, ignore_eos=True, seed=3)
    with engine_on(tiny_llama_dir, deterministic=True) as engine:
        beside = [
            engine.submit(tokens(i, 20 * i), SamplingParams(max_tokens=60, temperature=1.0))
            for i in range(1, others + 1)
        ]
        result = engine.generate(tokens(50, 40), params)
        for handle in beside:
            handle.cancel()
    with engine_on(tiny_llama_dir, deterministic=True) as engine:
        assert engine.generate(tokens(50, 40), params).token_ids == result.token_ids


def test_log_probabilities_come_with_each_token(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        result = engine.generate(tokens(0, 20), SamplingParams(max_tokens=5, ignore_eos=True, logprobs=2))
        assert [each.token_id for each in result.logprobs] == result.token_ids
        assert all(each.top[0] == (each.token_id, each.logprob) for each in result.logprobs), "greedy"
        assert all(each.logprob <= 0 and len(each.top) == 2 for each in result.logprobs)
        assert engine.generate([1, 2], GREEDY).logprobs is None


def test_a_model_that_computes_no_numbers_is_told(tiny_llama_dir):
    with engine_on(tiny_llama_dir) as engine:
        weight = engine.model.hf.lm_head.weight
        before = weight.detach().clone()
        weight.data.fill_(float("nan"))
        result = engine.generate(tokens(0, 20), SamplingParams(n=2))
        assert result.error == "the model's logits are not numbers: its weights or its inputs are damaged"
        assert [sample.finish_reason for sample in result.samples] == ["error", "error"]
        weight.data.copy_(before)
        assert engine.generate(tokens(1, 20), GREEDY).finish_reason == "length"


# ---- what the cache may do


def test_a_request_may_read_without_writing_or_do_neither(tiny_llama_dir, reference):
    shared, prompt = tokens(0, 4 * BLOCK), tokens(0, 4 * BLOCK) + tokens(1, 3 * BLOCK)
    with engine_on(tiny_llama_dir) as engine:
        off, read = RequestOptions(cache="off"), RequestOptions(cache="read")
        for options in (off, read):
            result = engine.generate(prompt, GREEDY, options)
            assert (result.usage.cached_tokens, result.token_ids) == (0, reference(prompt))
            assert engine.stats()["cache"]["blocks"] == 0
        engine.generate(shared, GREEDY)
        num_blocks = engine.stats()["cache"]["blocks"]
        assert engine.generate(prompt, GREEDY, off).usage.cached_tokens == 0
        result = engine.generate(prompt, GREEDY, read)
        assert (result.usage.cached_tokens, result.token_ids) == (4 * BLOCK, reference(prompt))
        assert engine.stats()["cache"]["blocks"] == num_blocks
        assert not leaks_when_settled(engine)


@pytest.mark.parametrize("cache", ["read", "off"])
def test_such_requests_may_be_preempted_too(tiny_llama_dir, reference, cache):
    prompts = [tokens(i, 40 + 5 * i) for i in range(6)]
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    with engine_on(tiny_llama_dir, device_bytes=bytes_of(16), host_bytes=bytes_of(40)) as engine:
        results = engine.generate(prompts, params, RequestOptions(cache=cache))
        assert engine.stats()["cache"]["preempted"]["requests"] > 0
        assert engine.stats()["cache"]["blocks"] == 0
    assert [result.token_ids for result in results] == [reference(prompt, params) for prompt in prompts]


def test_the_lowest_priority_number_goes_first(tiny_llama_dir):
    with engine_on(tiny_llama_dir, max_num_seqs=1) as engine:
        running = engine.submit(tokens(0, 30), ENDLESS)
        ended = []
        handles = [
            engine.submit(tokens(i, 20), GREEDY, RequestOptions(priority=priority))
            for i, priority in enumerate([5, 0, -3, 0], 1)
        ]
        for handle in handles:
            handle.when_done(lambda handle: ended.append(handle.id - running.id))
        running.cancel()
        for handle in handles:
            handle.result(60)
    assert ended == [3, 2, 4, 1]


# ---- tenants


def test_a_public_prefix_is_stored_once_and_private_parts_never_meet(tiny_llama_dir, reference):
    """100 tenants with the same system prompt, and even the same private text behind it."""
    public, private = tokens(0, 2000), tokens(1, 2 * BLOCK)
    prompt = public + private
    right = reference([*prompt, 1], SamplingParams(max_tokens=1))
    with engine_on(tiny_llama_dir, max_model_len=2200) as engine:
        for number in range(100):
            options = RequestOptions(tenant=f"tenant {number}", salt_offset=2000)
            assert engine.lookup([*prompt, 1], options)["device"] == (2000 if number else 0)
            result = engine.generate([*prompt, 1], SamplingParams(max_tokens=1), options)
            assert result.usage.cached_tokens == (2000 if number else 0)
            assert result.token_ids == right
            assert engine.lookup([*prompt, 1], options)["device"] == 2000 + 2 * BLOCK
        blocks = engine.stats()["cache"]["blocks"]
    assert blocks == 2000 // BLOCK + 100 * 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RequestOptions(tenant="a"), RequestOptions(tenant="b")),
        (RequestOptions(tenant="a"), RequestOptions()),
        (RequestOptions(tenant="a"), RequestOptions(cache_salt="a")),
        (RequestOptions(tenant="a", cache_salt="b"), RequestOptions(tenant="ab")),
        (RequestOptions(tenant="a", cache_salt="x"), RequestOptions(tenant="a", cache_salt="y")),
        (RequestOptions(tenant="a"), RequestOptions(tenant="a", salt_offset=BLOCK)),
    ],
    ids=str,
)
def test_different_salts_share_nothing_in_any_tier_or_after_a_restart(tiny_llama_dir, tmp_path, one, other):
    prompt = tokens(0, 6 * BLOCK + 1)
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        engine.generate(prompt, GREEDY, one)
        for tier in ("device", "host", "disk"):
            if tier != "device":
                engine.demote(tier)
            assert engine.lookup(prompt, one)[tier] == 6 * BLOCK
            assert sum(engine.lookup(prompt, other).values()) == 0
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        assert sum(engine.lookup(prompt, other).values()) == 0
        assert engine.generate(prompt, GREEDY, one).usage.cached_tokens == 6 * BLOCK
        assert engine.generate(prompt, GREEDY, other).usage.cached_tokens == 0


def test_a_block_that_is_partly_private_is_private(tiny_llama_dir):
    prompt = tokens(0, 6 * BLOCK + 1)
    with engine_on(tiny_llama_dir) as engine:
        engine.generate(prompt, GREEDY, RequestOptions(tenant="a", salt_offset=3 * BLOCK - 1))
        seen = engine.lookup(prompt, RequestOptions(tenant="b", salt_offset=3 * BLOCK - 1))
    assert seen["device"] == 2 * BLOCK


def test_a_tenants_reply_is_private_too(tiny_llama_dir):
    prompt = tokens(0, 2 * BLOCK)
    with engine_on(tiny_llama_dir) as engine:
        options = RequestOptions(tenant="a", salt_offset=100)
        params = SamplingParams(max_tokens=6 * BLOCK, ignore_eos=True)
        reply = engine.generate(prompt, params, options).token_ids
        later = prompt + reply
        mine = sum(engine.lookup(later, options).values())
        assert mine == 2 * BLOCK, "of a longer prompt the offset makes more public, where nothing lies"
        assert sum(engine.lookup(later, RequestOptions()).values()) == 2 * BLOCK
        at_prompt = RequestOptions(tenant="a", salt_offset=2 * BLOCK)
        assert sum(engine.lookup(later, at_prompt).values()) == len(later) - BLOCK
        other = RequestOptions(tenant="b", salt_offset=2 * BLOCK)
        assert sum(engine.lookup(later, other).values()) == 2 * BLOCK


def test_the_first_tokens_of_a_prompt_take_as_long_for_another_tenant_as_if_it_were_new(tiny_llama_dir):
    """What is measured from outside, the steps that it takes, is the same whether somebody else had the prompt."""
    prompt = tokens(0, 20 * BLOCK)
    steps = []
    for first in ("b", "a"):
        with engine_on(tiny_llama_dir, max_batch_tokens=4 * BLOCK) as engine:
            engine.generate(prompt, GREEDY, RequestOptions(tenant=first))
            before = engine.stats()["engine"]["steps"]
            engine.generate(prompt, GREEDY, RequestOptions(tenant="b"))
            steps.append(engine.stats()["engine"]["steps"] - before)
    own, others = steps
    assert others == own + 5 - 1, "computed in full: one step of each chunk in place of one"


# ---- prompts that come together


def test_prompts_that_share_prefixes_are_computed_once_each(tiny_llama_dir):
    """Twelve documents, asked about in turn: the device has room for two at a time, and nothing below it."""
    documents = [tokens(100 + i, 20 * BLOCK) for i in range(12)]
    prompts = [document + tokens(i, 5) for i in range(6) for document in documents]
    small = {"device_bytes": bytes_of(60), "host_bytes": 0, "max_num_seqs": 2}
    with engine_on(tiny_llama_dir, **small) as engine:
        results = engine.generate(prompts, SamplingParams(max_tokens=2, ignore_eos=True))
        prefilled = engine.stats()["engine"]["prefilled_tokens"]
    assert len(results) == len(prompts)
    assert prefilled == sum(map(len, documents)) + 5 * len(prompts)


def test_results_come_in_the_order_of_the_prompts(tiny_llama_dir, reference):
    prompts = [tokens(i, 30) for i in np.random.default_rng(0).permutation(8)]
    with engine_on(tiny_llama_dir) as engine:
        results = engine.generate(prompts, GREEDY)
    assert [result.token_ids for result in results] == [reference(prompt) for prompt in prompts]


# ---- chats


def test_a_template_that_rewrites_earlier_turns_is_named(tiny_text_dir):
    plain = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "[think]four[/think]4"},
        {"role": "user", "content": "sure?"},
    ]
    with engine_on(tiny_text_dir) as engine:
        assert engine.generate(plain, GREEDY).cache_notes == ()
        engine.model.tokenizer.chat_template = (
            "{% for m in messages %}<{{ m['role'] }}>"
            "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}"
            "{% else %}{{ m['content'].split('[/think]')[-1] }}{% endif %}\n{% endfor %}"
        )
        [note] = engine.generate(plain, GREEDY).cache_notes
        assert note == (
            "the chat template writes message 2 in another way now that more follow: what was computed for it, from "
            "'[think]four[/think]4' on, is not found"
        )
        assert engine.generate(plain[:1], GREEDY).cache_notes == ()
        assert engine.generate("text", GREEDY).cache_notes == ()
