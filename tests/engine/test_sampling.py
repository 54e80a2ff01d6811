"""Which token comes next: transformers' own processors are the oracle for what may be drawn and how probable it is."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.params import SamplingParams
from engine.sampling import Dice, Draw, choose, choose_from

VOCAB = 40
KNOWN = np.array([3, 7, 7, 12, 3, 30], dtype=np.int32)  # of which the last three are the reply


def logits_of(seed, rows=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (rows, VOCAB)).astype(np.float32))


def draw(params, uniform=0.0):
    return Draw(params, uniform, KNOWN, 3)


def distribution(logits, params, steps=4000):
    """How often each token is drawn, the random number going evenly from 0 to 1."""
    draws = [draw(params, (step + 0.5) / steps) for step in range(steps)]
    counts = np.zeros(VOCAB)
    for choice in choose(logits.expand(steps, -1), draws):
        counts[choice.token] += 1
    return counts / steps


def oracle(logits, params):
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(params.min_p))
    ids = torch.from_numpy(KNOWN.astype(np.int64))[None]
    return processors(ids, logits.clone())[0].softmax(-1).numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.5, "min_p": 0.2},
        {"temperature": 1.0, "repetition_penalty": 1.7},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_tokens_are_drawn_as_probably_as_transformers_would(settings):
    params = SamplingParams(**settings)
    for seed in range(3):
        logits = logits_of(seed)
        right = oracle(logits, params)
        drawn = distribution(logits, params)
        assert np.abs(drawn - right).max() < 1e-3
        assert not drawn[right == 0].any(), "what was filtered out is never drawn"


def plainly(logits, draw):
    """The token of one row by definition: all of it sorted, the smaller id first of equals."""
    params, row = draw.params, logits.double().numpy()
    weights = np.exp((row - row.max()) / params.temperature)
    order = np.argsort(-weights, kind="stable")
    if params.top_k:
        order = order[: params.top_k]
    sorted_weights = weights[order]
    probabilities = sorted_weights / (sorted_weights.sum() if params.top_k else weights.sum())
    before = np.cumsum(probabilities) - probabilities
    kept = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
    kept[0] = True
    cumulated = np.cumsum(probabilities * kept)
    return order[np.searchsorted(cumulated, draw.uniform * cumulated[-1], side="right")]


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"top_p": 0.999999},
        {"min_p": 1e-6},
        {"min_p": 0.3},
        {"top_p": 0.9, "min_p": 0.01},
        {"top_k": 7},
        {"top_k": 300, "top_p": 0.9, "min_p": 0.001},
    ],
    ids=str,
)
def test_what_is_drawn_from_a_few_candidates_is_what_sorting_all_of_them_gives(settings, spread):
    random = np.random.default_rng(5)
    for temperature in (0.3, 1.0, 2.5):
        logits = torch.from_numpy(random.normal(0, spread, (20, 1500)).astype(np.float32))
        if "top_k" not in settings:  # whom of equals topk takes it does not say
            logits[10:] = logits[10:].bfloat16().float()
        params = SamplingParams(temperature=temperature, **settings)
        draws = [draw(params, uniform) for uniform in random.random(20)]
        right = [plainly(row, each) for row, each in zip(logits, draws, strict=True)]
        assert [choice.token for choice in choose(logits, draws)] == right


def test_the_most_probable_token_without_temperature_and_the_first_of_equals():
    logits = logits_of(0, rows=3)
    logits[2, [5, 9]] = 100.0
    chosen = [choice.token for choice in choose(logits, [draw(SamplingParams())] * 3)]
    assert chosen == [logits[0].argmax().item(), logits[1].argmax().item(), 5]


def test_presence_and_frequency_count_the_reply_only():
    """OpenAI's definition: once for being there, and once more for each time."""
    logits = torch.zeros(1, VOCAB)
    logits[0, [7, 3, 12, 30]] = torch.tensor([5.0, 4.9, 4.8, 4.7])
    params = SamplingParams(presence_penalty=0.15)
    assert choose(logits, [draw(params)])[0].token == 7, "said in the prompt, not in the reply"
    known = np.array([7, 7, 3], dtype=np.int32)
    penalised = {"presence_penalty": 0.15, "frequency_penalty": 0.1}
    [choice] = choose(logits, [Draw(SamplingParams(**penalised), 0.0, known, 3)])
    assert choice.token == 12, "7: 5 - .15 - .2 = 4.65; 3: 4.9 - .15 - .1 = 4.65; 12: 4.8"


@pytest.mark.parametrize("others", [0, 5])
def test_a_row_does_not_depend_on_what_else_is_drawn(others):
    logits, params = logits_of(1), SamplingParams(temperature=0.9, top_p=0.8, repetition_penalty=1.3)
    kinds = [SamplingParams(), SamplingParams(temperature=2.0, top_k=3), SamplingParams(presence_penalty=2.0)]
    beside = [draw(kinds[i % 3], 0.3) for i in range(others)]
    rows = torch.cat([logits, logits_of(2, rows=others)])
    for uniform in np.linspace(0, 0.999, 50):
        [alone] = choose(logits, [draw(params, uniform)])
        together = choose(rows, [draw(params, uniform), *beside])
        assert together[0].token == alone.token


@pytest.mark.parametrize(
    "rows", [[], [0, 1, 2, 3], [1, 2], [0, 0, 2], [0, 0, 1, 2, 2, 2], [3, 1], [*range(4)] * 40], ids=len
)
def test_several_draws_may_look_at_one_row(rows):
    logits = logits_of(6, rows=4)
    draws = [draw(SamplingParams(temperature=1.0), (at + 0.5) / len(rows)) for at in range(len(rows))]
    one_by_one = [choose(logits[row : row + 1], [each])[0] for row, each in zip(rows, draws, strict=True)]
    assert choose_from(logits, rows, draws) == one_by_one


def test_the_logits_that_are_given_stay_as_they_are():
    logits = logits_of(0)
    before = logits.clone()
    choose(logits, [draw(SamplingParams(repetition_penalty=2.0, temperature=1.0))])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("uniform", [0.0, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {}], ids=str)
def test_the_ends_of_the_random_numbers_are_tokens_too(uniform, settings):
    logits = logits_of(4)
    logits[0, 10:] = -torch.inf
    [choice] = choose(logits, [draw(SamplingParams(temperature=1.0, **settings), uniform)])
    assert choice.token < 10
    if settings:
        assert choice.token == logits.argmax().item()


def test_log_probabilities_are_the_models_own():
    logits = logits_of(3)
    params = SamplingParams(temperature=0.7, repetition_penalty=1.5, logprobs=4)
    [choice] = choose(logits, [draw(params, 0.6)])
    right = logits[0].double().log_softmax(-1)
    assert choice.logprob.token_id == choice.token
    assert choice.logprob.logprob == pytest.approx(right[choice.token].item())
    best, ids = right.topk(4)
    assert choice.logprob.top == tuple(zip(ids.tolist(), best.tolist(), strict=True))
    assert choose(logits, [draw(SamplingParams(logprobs=0))])[0].logprob.top == ()
    assert choose(logits, [draw(SamplingParams())])[0].logprob is None


@pytest.mark.parametrize("damage", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_told(damage, temperature):
    logits = logits_of(0, rows=2)
    logits[1, 17] = damage
    sound = [
        choice.is_sound for choice in choose(logits, [draw(SamplingParams(temperature=temperature))] * 2)
    ]
    assert sound == [True, False]


def test_dice_are_each_replys_own():
    def rolls(seed, index):
        dice = Dice(seed, index)
        return [dice.roll() for _ in range(5)]

    assert rolls(1, 0) == rolls(1, 0)
    assert len({tuple(rolls(seed, index)) for seed in (1, 2, 2**64 - 1) for index in (0, 1)}) == 6
    assert rolls(None, 0) != rolls(None, 0)
    assert all(0 <= roll < 1 for roll in rolls(3, 3))
