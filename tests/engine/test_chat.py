"""Prompts in every form that a user may give, and sentences for those that are none."""

import numpy as np
import pytest

from engine.chat import detokenise, encode, split_prompts

VOCAB = 512
MESSAGE = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize("prompt", ["text", [1, 2], np.array([1, 2]), [MESSAGE], [np.int32(4)]])
def test_one_prompt_stands_alone(prompt):
    prompts, single = split_prompts(prompt)
    assert single
    assert prompts[0] is prompt


@pytest.mark.parametrize(
    "prompts",
    [
        ["a", "b"],
        [[1, 2], [3]],
        [np.array([1]), [2]],
        [[MESSAGE], "text"],
        [["a"]],
        np.array([[1, 2], [3, 4]]),
    ],
)
def test_several_prompts(prompts):
    split, single = split_prompts(prompts)
    assert not single
    assert len(split) == len(prompts)


@pytest.mark.parametrize("prompt", [[], [1, "a"], MESSAGE, 5, None, [None], [True]])
def test_what_is_no_prompt(prompt):
    with pytest.raises(ValueError, match=r"prompt|message"):
        split_prompts(prompt)


def test_token_ids_become_little_endian_int32():
    for given in (
        [3, 4, 511],
        (3, 4, 511),
        np.array([3, 4, 511], dtype=np.uint16),
        np.array([3, 0, 4, 0, 511])[::2],
    ):
        ids = encode(given, None, VOCAB)
        assert ids.dtype == np.dtype("<i4")
        assert ids.flags.c_contiguous
        assert ids.tolist() == [3, 4, 511]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "no tokens"),
        ([1, 512], "token id 512 is outside the vocabulary"),
        ([-1, 5], "token id -1"),
        ([2**70], "whole numbers"),
        ([1.5], "whole numbers"),
        ([[1], [2, 3]], "whole numbers"),
        ([True, False], "whole numbers"),
        ("text", "no tokenizer"),
        ([MESSAGE], "no tokenizer"),
        (7, "a prompt is"),
    ],
)
def test_what_cannot_be_encoded(prompt, words):
    with pytest.raises(ValueError, match=words):
        encode(prompt, None, VOCAB)


def test_text_and_messages(demo_model):
    tokenizer, vocab = demo_model.tokenizer, demo_model.vocab_size
    ids = encode("The capital of France is Paris.", tokenizer, vocab)
    assert detokenise(ids, tokenizer) == "The capital of France is Paris."
    chat = encode([MESSAGE], tokenizer, vocab)
    whole = tokenizer.decode(chat)
    assert "Hello<|im_end|>" in whole
    assert whole.endswith("<|im_start|>assistant\n"), "the reply begins where the prompt ends"
    assert "<|im_end|>" not in detokenise(chat, tokenizer)


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "x"}, {"role": "user", "content": 5}, "x"])
def test_a_wrong_message_is_shown(demo_model, message):
    with pytest.raises(ValueError, match="'role' and 'content'"):
        encode([MESSAGE, message], demo_model.tokenizer, demo_model.vocab_size)


def test_without_a_tokenizer_there_is_no_text():
    assert detokenise([1, 2], None) == ""
