"""The models and token ids that benchmarks run on."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaConfig

from engine import EngineConfig
from engine.model import Model, load_model, random_model
from tiering.cli.texts import long_text

RANDOM: Final[dict[str, dict[str, Any] | None]] = {
    "random": None,
    "random-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
    "random-tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        # large enough that the most probable token leads
        "initializer_range": 0.2,
    },
}
"""Models with random weights, by the shape of a llama: the demo's, that of Llama 3 8B, one to try commands on."""


def load(name: str, device: str, seed: int, min_len: int, dtype: str = "auto") -> Model:
    """The model of that name, with weights of its own; a random one takes prompts of `min_len` tokens."""
    chosen = EngineConfig(device=device, dtype=dtype).resolve()  # type: ignore[arg-type]  # checked by EngineConfig itself
    if name not in RANDOM:
        return load_model(name, device=chosen.device, dtype=chosen.dtype)
    shape = RANDOM[name]
    config = None if shape is None else LlamaConfig(**shape)
    return random_model(config, seed=seed, device=chosen.device, dtype=chosen.dtype, min_len=min_len)


def real_text(model: Model, num_tokens: int, random: np.random.Generator) -> NDArray[np.int32]:
    """So many tokens of real text, int32 [num_tokens]; random ones for a model without a tokenizer."""
    if model.tokenizer is None:
        return random.integers(1, model.vocab_size, num_tokens, dtype=np.int32)
    ids = model.tokenizer.encode(long_text(), add_special_tokens=False)
    copies = -(-num_tokens // len(ids))
    return np.array((ids * copies)[:num_tokens], dtype=np.int32)
