"""A disk that fails, forgets and garbles: the tokens are the same, only more of the prompts is computed."""

import tempfile

from transformers import LlamaConfig

from engine import Engine, EngineConfig, SamplingParams
from engine.model import random_model
from kvstore import ErrorAfter, ErrorBefore, FalseMiss, FaultStore, Garbage, ShortData, Store

SHAPE = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
MODEL = random_model(LlamaConfig(**SHAPE, num_attention_heads=4, initializer_range=0.2))
PROMPTS = [[(7 * i * n + n) % 509 + 3 for i in range(400)] for n in range(1, 7)]
SETTINGS = {"device_bytes": "8MiB", "host_bytes": "8MiB", "disk_min_free_bytes": 0, "deterministic": True}
GREEDY = SamplingParams(max_tokens=16, ignore_eos=True)


def ask(faults: list) -> list[list[int]]:
    """Ask everything, move it all to disk, and ask again: the second time, prefixes come from the disk."""
    layers = []

    def wrap(store: Store) -> Store:
        layers.append(FaultStore(store, faults))
        return layers[0]

    with (
        tempfile.TemporaryDirectory() as folder,
        Engine(MODEL, EngineConfig(disk_path=folder, **SETTINGS), wrap_store=wrap) as engine,
    ):
        results = engine.generate(PROMPTS, GREEDY)
        engine.demote("disk")
        results += [engine.generate(prompt, GREEDY) for prompt in PROMPTS]
    cached = sum(result.usage.cached_tokens for result in results)
    print(f"{layers[0].injected()} faults, {cached} prompt tokens cached")
    return [result.token_ids for result in results]


faults = [kind(on="read", chance=0.15) for kind in (ShortData, Garbage, FalseMiss, ErrorAfter, ErrorBefore)]
print("the same tokens" if ask(faults) == ask([]) else "the tokens differ")
