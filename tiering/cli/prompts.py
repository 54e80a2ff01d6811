"""The models and token ids that benchmarks run on."""

import numpy as np
from numpy.typing import NDArray

from engine import EngineConfig
from engine.model import Model, load_model, random_model
from tiering.cli.texts import long_text

RANDOM = "random"
"""A model of the demo's shape with random weights."""


def load(name: str, device: str, seed: int, min_len: int) -> Model:
    """The model of that name, with weights of its own; a random one takes prompts of `min_len` tokens."""
    chosen = EngineConfig(device=device).resolve()  # type: ignore[arg-type]  # checked by EngineConfig itself
    if name == RANDOM:
        return random_model(seed=seed, device=chosen.device, dtype=chosen.dtype, min_len=min_len)
    return load_model(name, device=chosen.device, dtype=chosen.dtype)


def real_text(model: Model, num_tokens: int, random: np.random.Generator) -> NDArray[np.int32]:
    """So many tokens of real text, int32 [num_tokens]; random ones for a model without a tokenizer."""
    if model.tokenizer is None:
        return random.integers(1, model.vocab_size, num_tokens, dtype=np.int32)
    ids = model.tokenizer.encode(long_text(), add_special_tokens=False)
    copies = -(-num_tokens // len(ids))
    return np.array((ids * copies)[:num_tokens], dtype=np.int32)
