"""The yardstick: transformers' own forward over its own cache, without anything of ours."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Reference:
    """A second copy of the model, with transformers' SDPA attention and DynamicCache."""

    def __init__(self, hf: Any) -> None:
        """`hf`: a transformers model that this object has for itself."""
        hf.set_attn_implementation("sdpa")
        self._hf = hf.eval()

    @torch.inference_mode()
    def cold(
        self, prompt: Tokens, new_tokens: int, prefix_tokens: int
    ) -> tuple[tuple[float, list[int]], Any]:
        """Seconds from the whole prompt to its first token, and the greedy reply; and a cache that holds the first of its tokens."""
        cache = self._cache()
        outcome = self._run(prompt, cache, new_tokens)
        _crop(cache, prefix_tokens)
        return outcome, cache

    @torch.inference_mode()
    def prefill(self, prefix: Tokens) -> Any:
        """A cache that holds the prefix."""
        cache = self._cache()
        self._hf(input_ids=self._ids(prefix), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    @torch.inference_mode()
    def hit(self, prefix_cache: Any, suffix: Tokens, new_tokens: int) -> tuple[float, list[int]]:
        """Seconds from the suffix, over a cache that holds the prefix, to the first token; the cache is as before."""
        length = prefix_cache.get_seq_length()
        outcome = self._run(suffix, prefix_cache, new_tokens)
        _crop(prefix_cache, length)
        return outcome

    def restore(self, path: str) -> Any:
        """A cache that `keep` has written."""
        cache = self._cache()
        for number, (keys, values) in enumerate(torch.load(path)):
            cache.update(keys, values, number)
        return cache

    def _run(self, tokens: Tokens, cache: Any, new_tokens: int) -> tuple[float, list[int]]:
        start_s = time.perf_counter()
        reply = [self._step(tokens, cache)]
        ttft_s = time.perf_counter() - start_s
        while len(reply) < new_tokens:
            reply.append(self._step(reply[-1:], cache))
        return ttft_s, reply

    def _step(self, tokens: "Tokens | Sequence[int]", cache: Any) -> int:
        out = self._hf(input_ids=self._ids(tokens), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())  # waits for the device

    def _ids(self, tokens: "Tokens | Sequence[int]") -> torch.Tensor:
        return torch.tensor([list(map(int, tokens))], device=self._hf.device)

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._hf.config)


def keep(cache: Any, path: str) -> None:
    """Write a cache to a new file."""
    torch.save([(layer.keys, layer.values) for layer in cache.layers], path)


def _crop(cache: Any, num_tokens: int) -> None:
    """Leave the first of its tokens."""
    cache.crop(num_tokens - cache.get_seq_length())  # negative: so many tokens less
