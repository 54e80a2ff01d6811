"""Everything that one request may ask for, on a whole engine."""

import asyncio
import gc
import threading

import numpy as np
import pytest
import torch

from engine import AsyncEngine, Delta, RequestOptions, SamplingParams
from kvstore.layers import FaultStore, Gate, Hang
from tests.engine.engines import BLOCK, GREEDY, bytes_of, engine_on, open_engine, tokens
from tests.engine.stress import leaks_when_settled

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
