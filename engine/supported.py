"""Which models may run: those whose attention is known to be right over blocks."""

from typing import Any

# Each gives its keys after rotary embedding and attends with plain softmax. Others may work, or may be
# silently wrong (attention sinks, soft caps): they are refused by name until tried.
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}

# "dynamic" and "longrope" turn keys by the longest sequence in the batch: a cached key would be wrong later.
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}


def check_config(config: Any, max_model_len: int | None, *, only_kind: bool = False) -> int:
    """Refuse a transformers config that would compute something wrong; return the length limit in tokens.

    max_model_len: the user's limit, None for the model's own. only_kind: leave the length checks to a later call.
    Raises ValueError with a sentence.
    """
    _check_architecture(config)
    _check_rope(config)
    limit = int(config.max_position_embeddings)
    if only_kind:
        return limit
    if max_model_len is not None and not 1 <= max_model_len <= limit:
        raise ValueError(f"max_model_len must be from 1 to the model's {limit}, got {max_model_len}")
    length = limit if max_model_len is None else max_model_len
    _check_window(config, length)
    return length


def check_deterministic(config: Any) -> None:
    """Refuse a transformers config whose bits are not known to be the same from batch to batch."""
    if config.hidden_act != "silu":
        raise ValueError(
            f"deterministic mode is not offered for models with the activation {config.hidden_act!r}"
        )


def _check_architecture(config: Any) -> None:
    named = list(getattr(config, "architectures", None) or [])
    if config.model_type not in _MODEL_TYPES or any(name not in ARCHITECTURES for name in named):
        what = named[0] if named else config.model_type
        raise ValueError(f"{what} is not supported; supported are {', '.join(ARCHITECTURES)}")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("quantised checkpoints are not supported yet; use the original weights")


def _check_rope(config: Any) -> None:
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        raise ValueError(
            f"rotary embedding of type {kind!r} depends on the batch, so cached keys would be wrong; "
            f"supported are {', '.join(sorted(_ROPE_TYPES))}"
        )


def _check_window(config: Any, length: int) -> None:
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layer_types if layer_types else config.model_type == "mistral"
    if window is not None and slides and window < length:
        raise ValueError(
            f"attention in a sliding window of {window} tokens is not implemented; set max_model_len to at most {window}"
        )
