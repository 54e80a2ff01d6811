"""What is refused, by name, and the sentence that says why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Something that a prefix cache or this attention cannot do.

    why: completes "X is not served: ".   model_types: config.json's `model_type` of models that are known for it.
    keys: and what config.json says of it; anything but null, false and nothing counts.   layer_types: likewise, in
    that list.
    """

    why: str
    model_types: frozenset[str] = frozenset()
    keys: tuple[str, ...] = ()
    layer_types: frozenset[str] = frozenset()

    def applies_to(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this kind."""
        layers = config.get("layer_types") or config.get("layers_block_type") or ()
        return (
            config.get("model_type") in self.model_types
            or any(config.get(key) for key in self.keys)
            or not self.layer_types.isdisjoint(layers)
        )


# In this order: a hybrid with latent attention is told of its recurrent layers, and of its images before both.
REFUSALS = (
    Refusal(
        why="its prompts hold images or sound, and only prompts of text are cached; if its language model is "
        "published by itself, use that",
        model_types=frozenset(
            {
                *(
                    "gemma3",
                    "gemma3n",
                    "gemma4",
                    "llama4",
                    "llava",
                    "llava_next",
                    "llava_onevision",
                    "mistral3",
                ),
                *(
                    "idefics2",
                    "idefics3",
                    "internvl",
                    "paligemma",
                    "pixtral",
                    "mllama",
                    "smolvlm",
                    "aya_vision",
                ),
                *("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen2_audio", "qwen3_vl", "qwen3_vl_moe"),
                *("qwen3_omni_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe", "phi4_multimodal"),
                *("deepseek_vl", "ernie4_5_vl_moe", "kimi_k25", "minimax_m3_vl", "voxtral", "whisper"),
            }
        ),
        keys=("vision_config", "audio_config", "vq_config", "speech_config"),
    ),
    Refusal(
        why="it is an encoder-decoder, whose decoder attends to an encoded text and not to a prefix of its own",
        model_types=frozenset(
            {"t5", "mt5", "umt5", "t5gemma", "bart", "mbart", "pegasus", "marian", "m2m_100", "led", "longt5"}
        ),
        keys=("is_encoder_decoder",),
    ),
    Refusal(
        why="some of its layers carry a recurrent state (state-space, linear attention or convolution) "
        "in place of keys and values, and a state cannot be cut into blocks",
        model_types=frozenset(
            {
                *(
                    "mamba",
                    "mamba2",
                    "falcon_mamba",
                    "falcon_h1",
                    "jamba",
                    "bamba",
                    "zamba",
                    "zamba2",
                    "zaya",
                ),
                *("nemotron_h", "granitemoehybrid", "recurrent_gemma", "rwkv", "xlstm", "olmo_hybrid"),
                *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "lfm2", "lfm2_moe", "lfm3", "minimax"),
                *("kimi_linear", "bailing_hybrid"),
            }
        ),
        keys=("mamba_d_state", "ssm_cfg", "conv_L_cache", "linear_conv_kernel_dim", "linear_attn_config"),
        layer_types=frozenset({"linear_attention", "mamba", "conv", "recurrent", "hybrid"}),
    ),
    Refusal(
        why="its attention is latent (MLA): what it caches for a token is one compressed row and not keys and "
        "values for each head",
        model_types=frozenset(
            {
                *("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "kimi_k2", "minicpm3"),
                *("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "mistral4", "youtu"),
            }
        ),
        keys=("kv_lora_rank",),
    ),
    Refusal(
        why="its attention adds sinks to each softmax, which are not computed here",
        model_types=frozenset({"gpt_oss", "mimo_v2_flash", "granite_swa", "granitemoe_swa"}),
    ),
    Refusal(
        why="its attention caps the scores (soft cap), which is not computed here",
        model_types=frozenset({"gemma2", "vaultgemma"}),
        keys=("attn_logit_softcapping",),
    ),
    Refusal(
        why="its attention adds a bias for distance (ALiBi) to the scores, which is not computed here",
        model_types=frozenset({"bloom", "mpt"}),
        keys=("alibi",),
    ),
    Refusal(
        why="some of its layers see chunks or a selection of the tokens before them, which is not computed here",
        model_types=frozenset({"llama4_text"}),
        layer_types=frozenset({"chunked_attention", "indexed_attention", "compressed_sparse_attention"}),
    ),
    Refusal(
        why="it attends in both directions, so that a token's keys and values depend on what follows",
        model_types=frozenset({"bert", "roberta", "xlm-roberta", "modernbert", "electra", "deberta-v2"}),
        keys=("use_bidirectional_attention",),
    ),
)

_ORIGINAL = "use the original weights, or a GGUF of them"

QUANTISED: Mapping[str, str] = {
    "awq": f"its weights are quantised with AWQ, which is not computed here; {_ORIGINAL}",
    "gptq": f"its weights are quantised with GPTQ, which is not computed here; {_ORIGINAL}",
    "fp8": f"its weights are quantised to FP8, which is not computed here; {_ORIGINAL}",
}
"""By config.json's `quantization_config.quant_method`."""


def why_quantised(method: str) -> str:
    """Why weights quantised by this method are refused."""
    return QUANTISED.get(
        method, f"its weights are quantised ({method}), which is not computed here; {_ORIGINAL}"
    )


def why_refused(config: Mapping[str, Any]) -> str | None:
    """Why a model with this config.json is not served, None where nothing is known against it."""
    for refusal in REFUSALS:
        if refusal.applies_to(config):
            return refusal.why
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else "unknown"
        return why_quantised(str(method))
    return None
