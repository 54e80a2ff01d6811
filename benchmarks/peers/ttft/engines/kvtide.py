"""kvtide's engine."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.ttft.page_cache import drop
from benchmarks.peers.ttft.protocol import Answer, Settings
from engine import Engine, EngineConfig, SamplingParams
from engine.model import Model, load_model
from engine.params import RequestOptions
from tiering.cli.host_memory import wait_for_host_memory
from tiering.cli.prompts import RANDOM, load

_BLOCK_TOKENS, _SPARE_BLOCKS = 16, 8
_ONE_TOKEN = SamplingParams(max_tokens=1, ignore_eos=True)
_ONLY_READ = RequestOptions(cache="read")
"""A suffix that was timed stays unseen, so that one prefix serves all rows of a round."""


def start(settings: Settings) -> "Kvtide":
    if settings.model in RANDOM:
        return Kvtide(load(settings.model, "cpu", 0, settings.max_tokens), settings)
    return Kvtide(load_model(settings.model, device="cpu", dtype=settings.dtype), settings)


class Kvtide:
    """All tiers, each with room for one prompt and little more. Row `restart` finds what another process left."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self._disk = Path(settings.scratch)
        block_bytes = model.layout("bfloat16", _BLOCK_TOKENS).block_bytes
        size = (-(-settings.max_tokens // _BLOCK_TOKENS) + _SPARE_BLOCKS) * block_bytes
        config = EngineConfig(
            device="cpu",
            block_tokens=_BLOCK_TOKENS,
            device_bytes=size,
            host_bytes=size,
            disk_path=self._disk,
            disk_bytes=4 * size,
            disk_min_free_bytes=0,
            load="always",
            num_threads=settings.threads,
        )
        self._engine = Engine(model, config, announce=lambda _: None)
        wait_for_host_memory(self._engine)
        # what is loaded at first use
        self._engine.generate([1] * 64, _ONE_TOKEN, RequestOptions(cache="off"))
        self.facts: dict[str, Any] = {
            "versions": {name: version(name) for name in ("kvtide", "torch", "transformers", "numpy")},
            "settings": {
                "dtype": str(model.dtype),
                "kv_dtype": "bfloat16",
                "block_tokens": _BLOCK_TOKENS,
                "threads": torch.get_num_threads(),
                "device_bytes": size,
            },
        }

    def prepare(self, row: str, prefix: list[int], other: list[int]) -> dict[str, Any]:
        del other  # prefixes are kept as such
        if row == "restart":
            return {}
        if row in ("cold", "device"):
            assert self._engine.clear(), "nothing runs, so everything can be forgotten"
        if row == "device":
            self._engine.warm(prefix)
        elif row == "host":
            self._engine.demote("host")
        elif row in ("disk", "disk_dropped"):
            self._engine.demote("disk")
            self._engine.flush()
        found = {tier: tokens for tier, tokens in self._engine.lookup([*prefix, prefix[0]]).items() if tokens}
        where = "disk" if row == "disk_dropped" else row
        assert found == ({} if row == "cold" else {where: len(prefix)}), f"{row}: the prefix lies in {found}"
        return drop(self._disk) if row == "disk_dropped" else {}

    def first_token(self, prompt: list[int]) -> Answer:
        start_s = time.perf_counter()
        stream = self._engine.stream(prompt, _ONE_TOKEN, _ONLY_READ)
        delta = next(stream)
        ttft_s = time.perf_counter() - start_s
        return Answer(ttft_s, delta.token_ids[0], stream.handle.result().usage.cached_tokens)

    def tokenize(self, text: str) -> list[int]:
        assert self._engine.model.tokenizer is not None, "the model has its tokenizer beside it"
        ids: list[int] = self._engine.model.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def close(self) -> None:
        self._engine.close()
