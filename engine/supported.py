"""Which models may run: those whose attention is known to be right over blocks. Needs neither torch nor weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.block import BlockLayout

from .families import FAMILIES, Family
from .refused import why_refused

STABLE_ACTIVATIONS = frozenset({"silu", "swish", "gelu", "gelu_pytorch_tanh"})
"""Those that engine/activation.py gives bits that do not depend on a row's place in the batch."""

_OF_THE_BATCH = ("dynamic", "longrope", "su")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The numbers of a served model that its KV, its attention and its limits follow from.

    windows: the sliding window of each layer in tokens, None for a layer that sees everything; [num_layers].
    max_len: the most tokens of prompt and reply together.   not_deterministic: why deterministic mode is not offered,
    None where it is.
    """

    model_type: str
    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    activation: str
    max_len: int
    windows: tuple[int | None, ...]
    not_deterministic: str | None

    def layout(self, kv_dtype: str, block_tokens: int) -> BlockLayout:
        """The layout of this model's blocks."""
        return BlockLayout(
            num_layers=self.num_layers,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=kv_dtype,
            block_tokens=block_tokens,
        )


class NotServed(ValueError):
    """A model of a kind that is not computed here; the sentence names it and says why."""


def check_kind(config: Mapping[str, Any]) -> Family:
    """The family of a config.json, or of a transformers config as a dict.

    Raises NotServed for what is not computed here, ValueError for what is no model's config.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError("it names no model_type, so it is not the config.json of a transformers model")
    named = config.get("architectures") or []
    name = named[0] if named else model_type
    if (why := why_refused(config)) is not None:
        raise NotServed(f"{name} is not served: {why}")
    family = FAMILIES.get(model_type)
    if family is None:
        raise NotServed(
            f"{name} is not served: its family, {model_type}, has not been tried; served are {', '.join(FAMILIES)}"
        )
    if wrong := [other for other in named if other != family.architecture]:
        raise NotServed(f"{wrong[0]} is not served: of its family only {family.architecture} is")
    _check_rope(name, family, config)
    return family


def shape_of(config: Mapping[str, Any]) -> Shape:
    """What a config.json, or a transformers config as a dict, says of a model. Raises as check_kind does."""
    family = check_kind(config)
    facts = {**family.defaults, **config}
    for needed in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"):
        if not isinstance(facts.get(needed), int):
            raise ValueError(f"it does not say {needed}, which every model's config.json does")
    activation = facts.get(family.activation_key, "silu")
    num_heads = facts["num_attention_heads"]
    windows = tuple(family.windows(facts))
    if any(window is not None and window < 1 for window in windows):
        raise ValueError(f"a sliding window must be at least 1 token, not {facts['sliding_window']}")
    return Shape(
        model_type=facts["model_type"],
        architecture=family.architecture,
        num_layers=facts["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=facts.get("num_key_value_heads") or num_heads,
        head_dim=facts.get("head_dim") or facts["hidden_size"] // num_heads,
        vocab_size=facts["vocab_size"],
        activation=activation,
        max_len=facts["max_position_embeddings"],
        windows=windows,
        not_deterministic=_why_not_deterministic(family, activation),
    )


def length_limit(shape: Shape, max_model_len: int | None) -> int:
    """The most tokens of prompt and reply. Raises ValueError for a user's limit beyond the model's own."""
    if max_model_len is not None and not 1 <= max_model_len <= shape.max_len:
        raise ValueError(f"max_model_len must be from 1 to the model's {shape.max_len}, got {max_model_len}")
    return shape.max_len if max_model_len is None else max_model_len


def check_deterministic(shape: Shape) -> None:
    """Refuse a model whose bits are not known to be the same from batch to batch."""
    if shape.not_deterministic is not None:
        raise ValueError(
            f"deterministic mode is not offered for {shape.architecture}: {shape.not_deterministic}"
        )


def _why_not_deterministic(family: Family, activation: str) -> str | None:
    if family.not_deterministic is None and activation not in STABLE_ACTIVATIONS:
        return f"its activation, {activation}, may give other bits in another batch"
    return family.not_deterministic


def _check_rope(name: str, family: Family, config: Mapping[str, Any]) -> None:
    for kind in _rope_types(config):
        if kind in _OF_THE_BATCH:
            raise NotServed(
                f"{name} is not served with a rotary embedding of type {kind!r}: it depends on the longest sequence "
                "in the batch, so cached keys would be wrong later"
            )
        if kind not in family.rope_types:
            raise NotServed(
                f"{name} is not served with a rotary embedding of type {kind!r}: it has not been tried; "
                f"tried are {', '.join(sorted(family.rope_types))}"
            )


def _rope_types(config: Mapping[str, Any]) -> set[str]:
    """All rotary embeddings that a config names: for the model or by kind of layer, in the old spelling or the new."""
    named = [config.get("rope_parameters"), config.get("rope_scaling")]
    found = [rope for rope in named if isinstance(rope, Mapping)]
    found += [each for rope in found for each in rope.values() if isinstance(each, Mapping)]
    return {str(kind) for rope in found if (kind := rope.get("rope_type") or rope.get("type"))}
