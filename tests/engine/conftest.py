"""Models for tests: tiny ones with random weights, and the demo model."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from engine import SamplingParams
from engine.model import Model, load_model
from tests.engine.engines import GREEDY
from tests.engine.families import CASES


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 3 layers with random weights, vocabulary 512, at most 4096 tokens, no tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(CASES["llama"].config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text_dir(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny llama with that tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-text")
    shutil.copytree(tiny_llama_dir, folder, dirs_exist_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demo_model(demo_dir: Path) -> Model:
    return load_model(demo_dir)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Bits are compared at a stated number of threads, each of these in turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reference(tiny_llama_dir: Path) -> Callable[..., list[int]]:
    """What transformers' own `generate` says to a prompt: generate(prompt, params) -> token ids.

    To the same prompt it says the same, and many tests ask for the same few: it is asked once.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # every test here goes on to max_tokens

    @cache
    def generate(prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return tuple(out[0, len(prompt) :].tolist())

    def said(prompt: Sequence[int], params: SamplingParams = GREEDY) -> list[int]:
        return list(generate(tuple(prompt), params.max_tokens))

    return said
