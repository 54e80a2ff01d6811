"""A tiny model of random weights for each family that is served, and for each kind of window and rotary embedding."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from engine.refused import REFUSALS, Refusal

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    # Large weights, so that argmax has clear winners and attention looks far back.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ODD = {"vocab_size": 515, "hidden_size": 200, "intermediate_size": 500, "num_attention_heads": 5} | {
    "num_key_value_heads": 5,
    "head_dim": 40,
    "initializer_range": 0.1,
}
"""Sizes that no vector of a kernel divides."""

_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024}
_BY_LAYER = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}


@dataclass(frozen=True, slots=True)
class Case:
    """A config of a family, and what is said of it in docs/models.md.

    what: the variant, as in "window"; empty for the family's plain form.
    """

    kind: Callable[..., Any]
    what: str
    more: dict[str, Any]

    @property
    def name(self) -> str:
        family = self.kind.model_type
        return f"{family}, {self.what}" if self.what else family

    def config(self, **sizes: Any) -> Any:
        """The tiny config, with some of its sizes changed."""
        facts = {**TINY, **sizes}
        if self.kind is GPTNeoXConfig:  # knows no such things
            facts = {
                name: fact for name, fact in facts.items() if name not in {"num_key_value_heads", "head_dim"}
            }
        return self.kind(**facts, **copy.deepcopy(self.more))  # transformers writes into what it is given


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(LlamaConfig, "", {}),
        Case(LlamaConfig, "llama3 rope", {"rope_parameters": LLAMA3}),
        Case(LlamaConfig, "linear rope", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
        Case(MistralConfig, "", {"sliding_window": None}),
        Case(MistralConfig, "window", {"sliding_window": 40}),
        Case(Qwen2Config, "", {}),
        Case(Qwen2Config, "yarn rope", {"rope_parameters": YARN}),
        Case(
            Qwen2Config,
            "window in some layers",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        ),
        Case(Qwen3Config, "", {}),
        Case(
            Qwen3Config,
            "window in some layers",
            {"use_sliding_window": True, "sliding_window": 100, "layer_types": _SLIDING},
        ),
        Case(Qwen3MoeConfig, "", {**_MOE}),
        Case(Qwen3MoeConfig, "window", {**_MOE, "use_sliding_window": True, "sliding_window": 40}),
        Case(
            Gemma3TextConfig,
            "window in some layers",
            {
                "sliding_window": 40,
                "sliding_window_pattern": 3,
                "query_pre_attn_scalar": 16,
                "rope_parameters": _BY_LAYER,
            },
        ),
        Case(Phi3Config, "", {}),
        Case(Phi3Config, "window", {"sliding_window": 130}),
        Case(SmolLM3Config, "", {}),
        Case(
            SmolLM3Config,
            "window in some layers",
            {"use_sliding_window": True, "sliding_window": 17, "no_rope_layer_interval": 2},
        ),
        Case(
            GraniteConfig,
            "",
            {
                "embedding_multiplier": 2.0,
                "residual_multiplier": 0.7,
                "attention_multiplier": 0.3,
                "logits_scaling": 2.0,
            },
        ),
        Case(Olmo2Config, "", {}),
        Case(GPTNeoXConfig, "", {}),
    )
}

DETERMINISTIC = [name for name, case in CASES.items() if case.kind is not Qwen3MoeConfig]
"""Those that deterministic mode is offered for."""


@dataclass(frozen=True, slots=True)
class RefusedCase:
    """A model that is not served: transformers' config of it, with what it leaves open, and for which reason."""

    model_type: str
    architecture: str
    refusal: Refusal

    def config(self) -> dict[str, Any]:
        config = CONFIG_MAPPING[self.model_type]().to_dict()
        return {**config, "architectures": [self.architecture]}


(_IMAGES, _ENCODER, _RECURRENT, _LATENT, _SINKS, _CAP, _ALIBI, _CHUNKS, _BOTH) = REFUSALS

REFUSED: dict[str, RefusedCase] = {
    case.architecture: case
    for case in (
        RefusedCase("gemma3", "Gemma3ForConditionalGeneration", _IMAGES),
        RefusedCase("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", _IMAGES),
        RefusedCase("llava", "LlavaForConditionalGeneration", _IMAGES),
        RefusedCase("mistral3", "Mistral3ForConditionalGeneration", _IMAGES),
        RefusedCase("llama4", "Llama4ForConditionalGeneration", _IMAGES),
        RefusedCase("t5", "T5ForConditionalGeneration", _ENCODER),
        RefusedCase("bart", "BartForConditionalGeneration", _ENCODER),
        RefusedCase("mamba", "MambaForCausalLM", _RECURRENT),
        RefusedCase("falcon_mamba", "FalconMambaForCausalLM", _RECURRENT),
        RefusedCase("jamba", "JambaForCausalLM", _RECURRENT),
        RefusedCase("qwen3_next", "Qwen3NextForCausalLM", _RECURRENT),
        RefusedCase("nemotron_h", "NemotronHForCausalLM", _RECURRENT),
        RefusedCase("lfm2", "Lfm2ForCausalLM", _RECURRENT),
        RefusedCase("deepseek_v2", "DeepseekV2ForCausalLM", _LATENT),
        RefusedCase("deepseek_v3", "DeepseekV3ForCausalLM", _LATENT),
        RefusedCase("gpt_oss", "GptOssForCausalLM", _SINKS),
        RefusedCase("gemma2", "Gemma2ForCausalLM", _CAP),
        RefusedCase("bloom", "BloomForCausalLM", _ALIBI),
        RefusedCase("mpt", "MptForCausalLM", _ALIBI),
        RefusedCase("llama4_text", "Llama4ForCausalLM", _CHUNKS),
        RefusedCase("bert", "BertLMHeadModel", _BOTH),
    )
}
