"""The model families that are served, and how their config.json tells what a block of their KV is made of.

Everything here is read off the bare JSON, so that a model can be judged before it is downloaded and without torch. A
file may be silent on what its family takes for granted: `defaults` says what transformers assumes then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Facts = Mapping[str, Any]
"""A config.json, or a transformers config as a dict, with the family's defaults below it."""

Windows = Callable[[Facts], list[int | None]]
"""The sliding window of each layer in tokens, None where a layer sees everything."""

# "dynamic" and "longrope" turn keys by the longest sequence in the batch: a cached key would be wrong later.
TRIED_ROPES = frozenset({"default", "linear", "llama3", "yarn"})

_EXPERTS = "how many rows an expert computes, and so their last bits, depends on what else is in the batch"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What sets a family apart from the next, as far as KV goes.

    architecture: transformers' class.   defaults: what transformers assumes where config.json is silent.
    activation_key: where config.json names the feed-forward's activation.   rope_types: the rotary embeddings that
    are right over blocks.   not_deterministic: why deterministic mode is not offered, None where it is.
    """

    architecture: str
    windows: Windows
    defaults: Facts = field(default_factory=dict)
    activation_key: str = "hidden_act"
    rope_types: frozenset[str] = TRIED_ROPES
    not_deterministic: str | None = None


def _nowhere(facts: Facts) -> list[int | None]:
    return [None] * facts["num_hidden_layers"]


def _everywhere(facts: Facts) -> list[int | None]:
    return [facts["sliding_window"]] * facts["num_hidden_layers"]


def _everywhere_if_used(facts: Facts) -> list[int | None]:
    return [_if_used(facts)] * facts["num_hidden_layers"]


def _from_a_layer_on(facts: Facts) -> list[int | None]:
    return _by_layer(facts, _if_used(facts), lambda layer: layer >= facts["max_window_layers"])


def _without_rope(facts: Facts) -> list[int | None]:
    # a list named after its zeros
    has_rope, interval = facts["no_rope_layers"], facts["no_rope_layer_interval"]
    return _by_layer(
        facts,
        _if_used(facts),
        lambda layer: not has_rope[layer] if has_rope else (layer + 1) % interval == 0,
    )


def _all_but_every_so_many(facts: Facts) -> list[int | None]:
    pattern = facts["sliding_window_pattern"]
    return _by_layer(facts, facts["sliding_window"], lambda layer: (layer + 1) % pattern != 0)


def _if_used(facts: Facts) -> int | None:
    window: int | None = facts["sliding_window"]
    return window if facts["use_sliding_window"] else None


def _by_layer(facts: Facts, window: int | None, slides: Callable[[int], bool]) -> list[int | None]:
    """The window where `layer_types` says so, or, where that is silent, the family's own rule."""
    layers, types = range(facts["num_hidden_layers"]), facts["layer_types"]
    sliding = [types[i] == "sliding_attention" for i in layers] if types else [slides(i) for i in layers]
    return [window if slide else None for slide in sliding]


_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM", windows=_nowhere, defaults={"max_position_embeddings": 2048}
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        windows=_everywhere,
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    "qwen2": Family(architecture="Qwen2ForCausalLM", windows=_from_a_layer_on, defaults=_QWEN),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM", windows=_from_a_layer_on, defaults={**_QWEN, "head_dim": 128}
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        windows=_everywhere_if_used,
        defaults={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": 4096,
        },
        not_deterministic=_EXPERTS,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        windows=_all_but_every_so_many,
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "layer_types": None,
            "hidden_activation": "gelu_pytorch_tanh",
        },
        activation_key="hidden_activation",
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        windows=_everywhere,
        defaults={"max_position_embeddings": 4096, "sliding_window": None},
        rope_types=frozenset({"default"}),  # what this family calls "yarn" or "su" is longrope
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        windows=_without_rope,
        defaults={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "layer_types": None,
        },
    ),
    "granite": Family(
        architecture="GraniteForCausalLM", windows=_nowhere, defaults={"max_position_embeddings": 2048}
    ),
    "olmo2": Family(
        architecture="Olmo2ForCausalLM", windows=_nowhere, defaults={"max_position_embeddings": 2048}
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        windows=_nowhere,
        defaults={"max_position_embeddings": 2048, "hidden_act": "gelu"},
    ),
}
