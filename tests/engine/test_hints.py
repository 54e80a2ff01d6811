"""What callers say of how a prompt goes on reaches the admission, in blocks, once for each request."""

import pytest

from engine import CacheHints, RequestOptions, SamplingParams
from engine.chat import breakpoints_of, encode
from engine.params import _MAX_BREAKPOINTS
from tests.engine.engines import BLOCK, engine_on, tokens
from tiering.keeping import Everything, Hints, Told

SHORT = SamplingParams(max_tokens=2, ignore_eos=True)


class Listening(Everything):
    """Keeps what it is told."""

    heard: list = []  # noqa: RUF012 - the engine makes the object, the test asks the class

    def ended(self, request):
        self.heard.append((len(request.fingerprints), request.told))
        return super().ended(request)


LISTENING = f"{__name__}:Listening"


def test_an_engine_tells_of_each_request_once(tiny_text_dir):
    Listening.heard.clear()
    hints = CacheHints(goes_on=True, shared_tokens=3 * BLOCK + 2, breakpoints=[5, 2 * BLOCK, 5 * BLOCK + 9])
    prompt = tokens(1, 6 * BLOCK + 5)
    with engine_on(tiny_text_dir, admission=LISTENING) as engine:
        engine.generate(prompt, SHORT, RequestOptions(hints=hints))
        engine.generate(prompt, SamplingParams(max_tokens=3, n=3, ignore_eos=True, temperature=1.0, seed=1))
        engine.generate(prompt, SHORT, RequestOptions(cache="read"))
        engine.generate(prompt, SHORT, RequestOptions(cache="off"))
        engine.warm(prompt)
        engine.generate([{"role": "user", "content": "a lighthouse"}], SHORT)
    said = Hints(goes_on=True, shared_blocks=3, breakpoints=(2, 5))
    assert Listening.heard[:3] == [
        (6, Told(output_tokens=2, hints=said)),
        (6, Told(output_tokens=3)),
        (6, Told()),
    ]
    assert [told.kind for _, told in Listening.heard[3:]] == [1], "a chat"


def test_a_message_may_have_a_breakpoint_behind_it(tiny_text_dir):
    Listening.heard.clear()
    messages = [
        {"role": "system", "content": "You keep a lighthouse. " * 8, "cache_control": {"type": "ephemeral"}},
        {"role": "user", "content": "How often is the lamp turned? " * 8},
    ]
    with engine_on(tiny_text_dir, admission=LISTENING) as engine:
        tokenizer = engine.model.tokenizer
        ids = encode(messages, tokenizer, engine.model.vocab_size)
        [point] = breakpoints_of(messages, ids, tokenizer)
        assert "lighthouse" in tokenizer.decode(ids[:point])
        assert "lamp" not in tokenizer.decode(ids[:point])
        assert "lamp" in tokenizer.decode(ids[point:])
        plain = [dict(message) for message in messages]
        del plain[0]["cache_control"]
        assert breakpoints_of(plain, ids, tokenizer) == ()
        assert encode(plain, tokenizer, engine.model.vocab_size).tolist() == ids.tolist()
        engine.generate(messages, SHORT)
        engine.generate(messages, SHORT, RequestOptions(hints=CacheHints(breakpoints=[BLOCK])))
    assert [told.hints.breakpoints for _, told in Listening.heard] == [(point // BLOCK,), (1,)]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"goes_on": True, "one_shot": True}, "goes on is no one-shot"),
        ({"goes_on": "yes"}, "True or False, got 'yes'"),
        ({"shared_tokens": -1}, "shared_tokens must be a whole number of at least 0, got -1"),
        ({"breakpoints": "5"}, "a list of counts of tokens, got '5'"),
        ({"breakpoints": [1.5]}, r"each of breakpoints must be a whole number of at least 0, got 1\.5"),
        ({"breakpoints": range(_MAX_BREAKPOINTS + 1)}, "there may be 64 breakpoints, got 65"),
    ],
)
def test_hints_that_mean_nothing_are_refused(said, why):
    with pytest.raises(ValueError, match=why):
        CacheHints(**said)
    with pytest.raises(ValueError, match="hints must be CacheHints"):
        RequestOptions(hints=said)
