"""llama.cpp through llama-cpp-python: its Llama class with defaults, but for threads and the context's length."""

import shutil
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llama_cpp import Llama, LlamaDiskCache, LlamaRAMCache, LlamaState

from benchmarks.peers.ttft.page_cache import drop
from benchmarks.peers.ttft.protocol import Answer, Settings


class TimedLlama(Llama):
    """Notes when the first token of a completion is there, and how much of the prompt had to be computed."""

    first_s = 0.0
    first_id = -1
    num_evaluated = 0

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Iterator[int]:
        self.num_evaluated = 0
        for number, token in enumerate(super().generate(tokens, *args, **kwargs)):
            if number == 0:
                self.first_s, self.first_id = time.perf_counter(), token
            yield token

    def eval(self, tokens: Sequence[int]) -> None:
        self.num_evaluated += len(tokens)
        super().eval(tokens)


def start(settings: Settings) -> "LlamaCpp":
    return LlamaCpp(settings)


class LlamaCpp:
    """The prefix is computed once; its state is what every row but `cold` begins with."""

    def __init__(self, settings: Settings) -> None:
        self._cache = Path(settings.scratch) / "llama"
        self._llama = TimedLlama(
            settings.gguf,
            n_ctx=settings.max_tokens,
            n_threads=settings.threads,
            n_threads_batch=settings.threads,
            verbose=False,
        )
        self._state: LlamaState | None = None
        self.facts: dict[str, Any] = {
            "versions": {name: version(name) for name in ("llama-cpp-python", "numpy", "diskcache")},
            "settings": {
                "n_ctx": self._llama.n_ctx(),
                "n_batch": self._llama.n_batch,
                "weights": Path(settings.gguf).name,
                "kv_dtype": "float16",
                "threads": settings.threads,
            },
        }

    def prepare(self, row: str, prefix: list[int], other: list[int]) -> dict[str, Any]:
        del other  # prefixes are kept as such
        llama = self._llama
        llama.set_cache(None)
        llama.reset()
        if row == "cold":
            return {}
        if self._state is None:
            llama.eval(prefix)
            self._state = llama.save_state()
            llama.reset()
        if row == "context":
            llama.load_state(self._state)
            return {}
        if row == "ram":
            cache: LlamaRAMCache | LlamaDiskCache = LlamaRAMCache()
            cache[prefix] = self._state
            llama.set_cache(cache)
            return {"state_bytes": self._state.llama_state_size}
        shutil.rmtree(self._cache, ignore_errors=True)
        cache = LlamaDiskCache(str(self._cache))
        cache[prefix] = self._state
        llama.set_cache(cache)
        sizes = {"files_bytes": cache.cache_size}
        return drop(self._cache) if row == "disk_dropped" else sizes

    def first_token(self, prompt: list[int]) -> Answer:
        start_s = time.perf_counter()
        self._llama.create_completion(prompt, max_tokens=1, temperature=0.0)
        cached_tokens = len(prompt) - self._llama.num_evaluated
        return Answer(self._llama.first_s - start_s, self._llama.first_id, cached_tokens)

    def tokenize(self, text: str) -> list[int]:
        return self._llama.tokenize(text.encode(), add_bos=False, special=False)

    def close(self) -> None:
        self._llama.close()
