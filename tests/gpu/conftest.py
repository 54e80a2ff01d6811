"""Each test runs on the CPU too, so that where there is no GPU it is known to be right itself."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.conftest import tiny_llama_dir

__all__ = ["tiny_llama_dir"]

CERTAIN_LEAD = 0.005
"""Of the most probable token's logit: a thousand times what rounding in float32 moves one by, here. They are about 5."""

Certain = Callable[[Sequence[int], int], list[int]]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def certain(tiny_llama_dir: Path) -> Certain:
    """The greedy reply as far as no rounding decides it: certain(prompt, most tokens) -> token ids, maybe fewer.

    Kernels of a GPU add in another order than those of a CPU, and no bits are promised there.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    def reply(prompt: Sequence[int], num_tokens: int) -> list[int]:
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.cat(out.logits).topk(2).values
        leads = (best[:, 0] - best[:, 1]).tolist()
        length = next((number for number, lead in enumerate(leads) if lead < CERTAIN_LEAD), num_tokens)
        return out.sequences[0, len(prompt) :][:length].tolist()

    return reply
