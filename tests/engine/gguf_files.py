"""GGUF files of tiny models, written as llama.cpp's own converter does: its names, its order of rotary dimensions."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants

_KINDS = {"gemma3_text": "gemma3"}


def write_gguf(
    path: Path,
    hf: Any,
    *,
    quantise: bool = False,
    tokenizer: Any = None,
    metadata: dict[str, str | int | float] | None = None,
    more_tensors: tuple[str, ...] = (),
) -> Path:
    """The weights of a transformers model, in float32 or as Q8_0, and whatever else a file may say."""
    config = hf.config
    kind = _KINDS.get(config.model_type, config.model_type)
    writer = GGUFWriter(path, kind)
    _add_facts(writer, config, kind)
    for key, value in (metadata or {}).items():
        _add(writer, key, value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    _add_weights(writer, hf, kind, quantise=quantise)
    for name in more_tensors:
        writer.add_tensor(name, np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_facts(writer: GGUFWriter, config: Any, kind: str) -> None:
    writer.add_name(f"Tiny {kind}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any) -> None:
    """A byte-level BPE; a file has to have a merge."""
    pieces = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece == tokenizer.eos_token else 1 for piece in pieces])
    writer.add_token_merges(["# #"])
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _add_weights(writer: GGUFWriter, hf: Any, kind: str, *, quantise: bool) -> None:
    [arch] = [arch for arch, name in MODEL_ARCH_NAMES.items() if name == kind]
    names = get_tensor_name_map(arch, hf.config.num_hidden_layers)
    for name, tensor in hf.state_dict().items():
        if name == "lm_head.weight" and hf.config.tie_word_embeddings:
            continue
        stem, suffix = name.rsplit(".", 1)
        weights = tensor.float().numpy()
        if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
            weights = _interleaved(weights, hf.config, stem)
        if kind == "gemma3" and stem.endswith("norm"):
            weights = weights + 1
        weights = np.ascontiguousarray(weights)
        target = f"{names.get_name(stem)}.{suffix}"
        if quantise and weights.ndim == 2:
            blocks = quants.quantize(weights, GGMLQuantizationType.Q8_0)
            writer.add_tensor(target, blocks, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(target, weights)


def _interleaved(weights: np.ndarray, config: Any, stem: str) -> np.ndarray:
    """Rotary pairs side by side, in place of half a head apart."""
    heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)
