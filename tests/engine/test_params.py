"""What a request may ask for, and one clear sentence for what it may not."""

import pytest

from engine.params import RequestOptions, SamplingParams, check_kinds


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("presence_penalty", None),
        ("frequency_penalty", 1e9),
        ("seed", "x"),
        ("seed", -1),
        ("seed", 2**64),
        ("ignore_eos", None),
        ("logprobs", -1),
        ("logprobs", 101),
        ("n", 0),
        ("stop", ["a", ""]),
        ("stop", 5),
        ("stop", ["x"] * 65),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "12"),
        ("stop_token_ids", [1.0]),
    ],
)
def test_sampling_is_checked(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*, got"):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", ""),
        ("tenant", 5),
        ("cache_salt", b"x"),
        ("salt_offset", -1),
        ("cache", "write"),
        ("cache", None),
        ("priority", 0.5),
        ("timeout_s", 0),
        ("timeout_s", float("inf")),
    ],
)
def test_options_are_checked(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*, got"):
        RequestOptions(**{field: value})


def test_one_stop_text_need_not_be_in_a_list():
    assert SamplingParams(stop="END").stops == ("END",)
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[1, 2]).stops == ("a", "b")
    assert SamplingParams().stops == ()


def test_a_field_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match="top_q"):
        SamplingParams(top_q=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "given", [({"max_tokens": 8}, RequestOptions()), (SamplingParams(), SamplingParams())]
)
def test_what_is_neither_is_named(given):
    check_kinds(SamplingParams(), RequestOptions())
    with pytest.raises(ValueError, match=r"expected (SamplingParams|RequestOptions)\(...\), got"):
        check_kinds(*given)
