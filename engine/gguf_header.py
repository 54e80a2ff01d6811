"""What a GGUF file says of itself: read in a moment, without its weights, and without torch or gguf.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from .supported import NotServed, check_kind, shape_of

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_COUNT = 2**32  # more of anything is damage, not a model

MODEL_TYPES: Mapping[str, str] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma3": "gemma3_text",
}
"""The families whose GGUF files transformers reads rightly, by the name that GGUF gives them."""

# Of others, those that are refused for what they are, under the name that transformers gives them.
_REFUSED_TYPES = {
    "gpt-oss": "gpt_oss",
    "deepseek2": "deepseek_v2",
    "nemotron_h": "nemotron_h",
    "clip": "llava",
}

# What a config.json calls what a GGUF calls otherwise.
_FACTS = {
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "hidden_size": "embedding_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
}

# Where transformers takes the size of a head from; for the other families it is as their config.json assumes.
_HEAD_DIM = {"llama": "rope.dimension_count", "gemma3": "attention.key_length"}

_SCALES = (
    "expert_count",
    "attention.scale",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Of no family above, but of others whose files go by the name of one."""


@dataclass(frozen=True, slots=True)
class ArrayOf:
    """An array of the metadata, of which only the length is read."""

    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """metadata: the values by their keys.   num_elements: of each tensor, by its name."""

    metadata: Mapping[str, Any]
    num_elements: Mapping[str, int]

    @property
    def has_tokenizer(self) -> bool:
        return "tokenizer.ggml.tokens" in self.metadata

    def config(self) -> dict[str, Any]:
        """The facts that a config.json of this model would state.

        Raises NotServed, naming what it is, for a family that is not served or not read, for parts of a model, and for
        a file that asks for what transformers would drop without a word; ValueError for one that lacks something.
        """
        kind = str(self.metadata.get("general.architecture"))
        name = str(self.metadata.get("general.name") or kind)
        if self.metadata.get("split.count", 1) > 1:
            raise NotServed(f"{name} is one of several parts; join them with `llama-gguf-split --merge`")
        if (model_type := MODEL_TYPES.get(kind)) is None:
            _refuse(name, kind)
        found = {fact: self.metadata.get(f"{kind}.{key}") for fact, key in _FACTS.items()}
        found["head_dim"] = self.metadata.get(f"{kind}.{_HEAD_DIM.get(kind)}")
        if kind == "gemma3":
            found["sliding_window"] = self.metadata.get("gemma3.attention.sliding_window")
        if isinstance(tokens := self.metadata.get("tokenizer.ggml.tokens"), ArrayOf):
            found["vocab_size"] = found["vocab_size"] or tokens.length
        config: dict[str, Any] = {fact: value for fact, value in found.items() if isinstance(value, int)}
        config["model_type"] = model_type
        if (dropped := self._dropped(kind, config)) is not None:
            raise NotServed(
                f"{name} is not served from a GGUF: transformers would not read {dropped}; use the original weights"
            )
        return config

    def _dropped(self, kind: str, config: Mapping[str, Any]) -> str | None:
        """What the file asks for and transformers does not read, if there is anything."""
        shape = shape_of(config)
        said = {key.removeprefix(f"{kind}."): value for key, value in self.metadata.items()}
        window = said.get("attention.sliding_window") or shape.max_len
        if window < shape.max_len and window not in shape.windows:
            return "its sliding window"
        sizes = [said.get(f"attention.{which}_length") for which in ("key", "value")]
        if any(size not in {None, shape.head_dim} for size in (*sizes, said.get("rope.dimension_count"))):
            return "the size of its heads"
        factor = said.get("rope.scaling.factor", said.get("rope.scale_linear", 1.0))
        scaled = said.get("rope.scaling.type", "none") != "none" or factor not in {0.0, 1.0}
        if scaled or any(tensor.startswith(("rope_freqs", "rope_factors")) for tensor in self.num_elements):
            return "the scaling of its rotary embedding"
        return next((f"its {key}" for key in _SCALES if said.get(key)), None)


def _refuse(name: str, kind: str) -> NoReturn:
    check_kind({"model_type": _REFUSED_TYPES.get(kind, kind)})  # has a better reason, as a rule
    raise NotServed(
        f"{name} is not served: GGUF files of {kind} are not read, those of {', '.join(MODEL_TYPES)} are; "
        "use the original weights"
    )


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file. Raises ValueError for what is none, or is cut short, OSError as open does."""
    with path.open("rb") as file:
        try:
            return _read(file)
        except (struct.error, UnicodeDecodeError, KeyError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} is cut short or damaged; fetch it again") from error
        except _NoGguf as error:
            raise ValueError(f"{path} is no GGUF file that can be read: {error}") from error


class _NoGguf(Exception):
    pass


def _read(file: BinaryIO) -> GgufHeader:
    if file.read(4) != _MAGIC:
        raise _NoGguf("it does not begin with GGUF")
    version, num_tensors, num_values = _unpack(file, "<IQQ")
    if version not in {2, 3}:
        raise _NoGguf(f"its version is {version}, known are 2 and 3 (little-endian)")
    if max(num_tensors, num_values) > _MAX_COUNT:
        raise KeyError(num_tensors)
    metadata = {}
    for _ in range(num_values):
        key = _string(file)
        metadata[key] = _value(file, *_unpack(file, "<I"))
    elements = {}
    for _ in range(num_tensors):
        name = _string(file)
        (num_dims,) = _unpack(file, "<I")
        elements[name] = prod(_unpack(file, f"<{num_dims}Q"))
        _unpack(file, "<IQ")  # type and place of its data
    return GgufHeader(metadata=metadata, num_elements=elements)


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    text = file.read(length)
    if len(text) < length:
        raise KeyError(length)
    return text.decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _unpack(file, f"<{_NUMBERS[kind]}")[0]
    inner, length = _unpack(file, "<IQ")
    if inner in _NUMBERS:
        file.seek(length * struct.calcsize(f"<{_NUMBERS[inner]}"), 1)
    else:
        for _ in range(length):
            _value(file, inner)
    return ArrayOf(length)
