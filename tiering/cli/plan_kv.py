"""What the KV of a token is made of, by a model's config.json: also of models that are not served here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.families import FAMILIES
from engine.refused import REFUSALS
from engine.supported import NotServed, shape_of
from kvstore.block import ITEMSIZES

Facts = Mapping[str, Any]

# What config.json calls them, by its age and its author.
_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTH: Final = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_HEAD_DIM: Final = ("head_dim", "kv_channels")
_INNER: Final = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
_MAX_LEN: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

_WITHOUT_KV: Final = tuple(
    refusal for refusal in REFUSALS if not refusal.model_types.isdisjoint({"mamba", "t5", "bert"})
)
"""Recurrent states, encoders beside a decoder, both directions: there is no KV for each token of a prefix."""
_UNGATED: Final = frozenset(
    {"gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "phi", "gpt_bigcode"}
)
"""Their feed-forward has two matrices, others' three."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KvCost:
    """What a token of KV is, and about how many operations it takes to compute.

    attention: "MHA", "GQA", "MQA" or "MLA".   layer_values: numbers that a layer caches for a token.   windows: of each
    layer in tokens, None for one that sees everything.   served: whether kvtide runs the model, and if not, `why_not`.
    token_operations: of the matrices a token passes; pair_operations: of attention, for each token before it.
    """

    name: str
    attention: str
    num_layers: int
    layer_values: int
    windows: tuple[int | None, ...]
    max_len: int | None
    token_operations: float
    pair_operations: float
    served: bool
    why_not: str | None
    notes: tuple[str, ...]

    def token_bytes(self, dtype: str) -> int:
        """Bytes of KV of one token, all layers."""
        return self.num_layers * self.layer_values * ITEMSIZES[dtype]


def kv_cost(config: Facts) -> KvCost:
    """What this config.json says. Raises ValueError, with a sentence, if it says too little, or if there is no KV to cache."""
    served, why_not = True, None
    name = (config.get("architectures") or [config.get("model_type") or "a model without a name"])[0]
    for refusal in _WITHOUT_KV:
        if refusal.applies_to(config):
            raise ValueError(f"nothing can be planned for {name}: {refusal.why}")
    try:
        shape_of(config)
    except NotServed as error:
        served, why_not = False, str(error)
    return _read(name, _facts(config), served=served, why_not=why_not)


def _facts(config: Facts) -> Facts:
    """Those of the language model, with what its family takes for granted."""
    nested = config.get("text_config")
    own = {**config, **nested} if isinstance(nested, Mapping) else config
    family = FAMILIES.get(str(own.get("model_type")))
    return own if family is None else {**family.defaults, **own}


def _read(name: str, facts: Facts, *, served: bool, why_not: str | None) -> KvCost:
    layers, heads = _needed(facts, _LAYERS), _needed(facts, _HEADS)
    width = _needed(facts, _WIDTH)
    num_shared = _number(facts, ("num_kv_shared_layers",)) or 0
    if num_shared >= layers:
        raise ValueError(f"config.json says that {num_shared} of {layers} layers have no KV of their own")
    latent = _number(facts, ("kv_lora_rank",))
    kind, values, notes = _latent(facts, latent) if latent else _by_head(facts, heads, width)
    windows = _windows(facts, layers)
    if sliding := [window for window in windows if window is not None]:
        notes += (
            f"a sliding window of {sliding[0]} tokens in {len(sliding)} of {layers} layers: blocks are cached whole all the same",
        )
    if num_shared:
        notes += (f"{num_shared} of {layers} layers use the KV of others and cache none",)
    return KvCost(
        name=name,
        attention=kind,
        num_layers=layers - num_shared,
        layer_values=values,
        windows=windows,
        max_len=_number(facts, _MAX_LEN),
        token_operations=2.0
        * layers
        * (_attention_weights(facts, heads, width) + _inner_weights(facts, width)),
        pair_operations=4.0 * layers * heads * _head_dim(facts, heads, width),
        served=served,
        why_not=why_not,
        notes=notes,
    )


def _latent(facts: Facts, latent: int) -> tuple[str, int, tuple[str, ...]]:
    rope = _needed(facts, ("qk_rope_head_dim",))
    note = (
        f"latent attention (MLA): a layer caches one compressed row of {latent} + {rope} numbers for a token, for all heads together. "
        "An engine that unpacks it into keys and values for each head caches many times as much"
    )
    return "MLA", latent + rope, (note,)


def _by_head(facts: Facts, heads: int, width: int) -> tuple[str, int, tuple[str, ...]]:
    kv_heads = _kv_heads(facts, heads)
    key_dim = _head_dim(facts, heads, width)
    value_dim = _number(facts, ("v_head_dim",)) or key_dim
    kind = "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"
    return kind, kv_heads * (key_dim + value_dim), ()


def _kv_heads(facts: Facts, heads: int) -> int:
    nested = facts.get("attn_config")
    found = _number(nested, ("kv_n_heads",)) if isinstance(nested, Mapping) else None
    if found is None:
        one_for_all = facts.get("multi_query") and not facts.get("new_decoder_architecture")
        found = 1 if one_for_all else (_number(facts, _KV_HEADS) or heads)
    if found > heads or heads % found:
        raise ValueError(f"config.json says {heads} heads and {found} KV heads, which do not go together")
    return found


def _head_dim(facts: Facts, heads: int, width: int) -> int:
    if (rope := _number(facts, ("qk_rope_head_dim",))) and (plain := _number(facts, ("qk_nope_head_dim",))):
        return rope + plain
    if (found := _number(facts, _HEAD_DIM)) is not None:
        return found
    if width % heads:
        raise ValueError(f"config.json says no head_dim, and {width} is no multiple of {heads} heads")
    return width // heads


def _windows(facts: Facts, layers: int) -> tuple[int | None, ...]:
    family = FAMILIES.get(str(facts.get("model_type")))
    if family is not None:
        return tuple(family.windows(facts))
    window, types = _number(facts, ("sliding_window",)), facts.get("layer_types")
    if window is None or facts.get("use_sliding_window") is False:
        return (None,) * layers
    if isinstance(types, list) and len(types) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    return (window,) * layers


def _attention_weights(facts: Facts, heads: int, width: int) -> float:
    head_dim = _head_dim(facts, heads, width)
    if latent := _number(facts, ("kv_lora_rank",)):
        rope = _number(facts, ("qk_rope_head_dim",)) or 0
        value_dim = _number(facts, ("v_head_dim",)) or head_dim
        asked = _number(facts, ("q_lora_rank",))
        queries = heads * head_dim * width if asked is None else asked * (width + heads * head_dim)
        return (
            queries
            + width * (latent + rope)
            + latent * heads * (head_dim - rope + value_dim)
            + heads * value_dim * width
        )
    return 2.0 * width * head_dim * (heads + _kv_heads(facts, heads))


def _inner_weights(facts: Facts, width: int) -> float:
    """Those of the feed-forward that one token meets: of a mixture, its experts and the shared ones."""
    matrices = 2 if facts.get("model_type") in _UNGATED else 3
    inner = _number(facts, _INNER) or 4 * width
    chosen = _number(facts, ("num_experts_per_tok", "experts_per_token", "num_experts_per_token"))
    if chosen is None:
        return float(matrices * width * inner)
    shared = _number(facts, ("n_shared_experts",)) or 0
    return float(matrices * width * (_number(facts, ("moe_intermediate_size",)) or inner) * (chosen + shared))


def _needed(facts: Facts, names: tuple[str, ...]) -> int:
    if (found := _number(facts, names)) is None:
        others = "" if len(names) == 1 else f" (nor {', '.join(names[1:])})"
        raise ValueError(f"config.json does not say {names[0]}{others}: is it that of a transformers model?")
    return found


def _number(facts: Facts, names: tuple[str, ...]) -> int | None:
    """The first of these that says something. Raises ValueError for what is no number from 1 on."""
    for name in names:
        if (value := facts.get(name)) is None or (
            value == 0 and name.startswith(("n_shared", "num_kv_shared"))
        ):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 40:
            raise ValueError(f"config.json says {name}={value!r}, and it must be a whole number from 1 on")
        return value
    return None
