"""Several replies to one prompt, and how their tokens are drawn."""

import pytest

from engine import RequestOptions, SamplingParams
from tests.engine.engines import BLOCK, GREEDY, bytes_of, engine_on, tokens
from tests.engine.stress import leaks_when_settled
from tiering.transfer.faults import FaultDevice

ENDLESS = SamplingParams(max_tokens=3000, ignore_eos=True)
WARM = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True, seed=5)

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
