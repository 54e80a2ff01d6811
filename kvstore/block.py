"""The nouns that every tier shares: the layout of a block, its key, and the namespace that it lives in."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

BlockKey = bytes
"""A block's name: KEY_BYTES bytes, a hash chained over the namespace and all tokens up to the block's end."""

KEY_BYTES: Final = 32
TOKEN_ID_BYTES: Final = 4
"""Token ids are little-endian int32 wherever they are bytes."""

ITEMSIZES: Final[Mapping[str, int]] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockLayout:
    """How the KV of `block_tokens` consecutive tokens lies in memory: one C-contiguous run of `shape`.

    Axis 1 is 0 for keys (after rotary embedding) and 1 for values. Raises ValueError unless every number is
    positive and the dtype is known.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    block_tokens: int = 16

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZES:
            raise ValueError(f"dtype must be one of {', '.join(ITEMSIZES)}, not {self.dtype!r}")
        for name in ("num_layers", "num_kv_heads", "head_dim", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(layers, 2, block_tokens, kv_heads, head_dim)."""
        return (self.num_layers, 2, self.block_tokens, self.num_kv_heads, self.head_dim)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZES[self.dtype]

    @property
    def token_bytes(self) -> int:
        """Bytes of KV of one token, all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of KV of one block."""
        return self.token_bytes * self.block_tokens

    @property
    def token_id_bytes(self) -> int:
        """Bytes of the token ids of one block."""
        return self.block_tokens * TOKEN_ID_BYTES


@dataclass(frozen=True, slots=True)
class Namespace:
    """All that must be equal for two prompts to share KV: model, weights, dtypes, layout, versions.

    Made by the engine; stores only compare `digest`. Build one with `Namespace.of`: `fields` must be sorted
    by name and free of repeats, so that equal facts give equal digests.
    """

    fields: tuple[tuple[str, str], ...]
    digest: bytes = field(init=False, repr=False, compare=False)
    """KEY_BYTES bytes: BLAKE2b of the fields as canonical JSON."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.fields]
        if names != sorted(set(names)):
            raise ValueError(f"namespace fields must be sorted by name, each once: {names}")
        if not all(isinstance(text, str) for pair in self.fields for text in pair):
            raise ValueError("namespace fields are pairs of strings: format numbers before they come here")
        canonical = json.dumps(self.fields, ensure_ascii=True, separators=(",", ":")).encode()
        digest = hashlib.blake2b(canonical, digest_size=KEY_BYTES, person=b"kvtide-namespace").digest()
        object.__setattr__(self, "digest", digest)

    @classmethod
    def of(cls, facts: Mapping[str, str]) -> "Namespace":
        """The namespace of these facts, in any order."""
        return cls(tuple(sorted(facts.items())))

    @property
    def root_key(self) -> BlockKey:
        """The parent key of a prompt's first block. Hashed in a domain of its own, so no block has it."""
        return root_key_of(self.digest)

    def __str__(self) -> str:
        return self.digest[:6].hex()


def root_key_of(digest: bytes) -> BlockKey:
    """`Namespace.root_key`, for who has no more of a namespace than its digest."""
    return hashlib.blake2b(digest, digest_size=KEY_BYTES, person=b"kvtide-root").digest()


def chain_key(parent: BlockKey, tokens: bytes) -> BlockKey:
    """The key of the block that holds `tokens` (little-endian int32) right after the block called `parent`.

    A prompt's first block has the namespace's `root_key` as its parent. BLAKE2b-256 of parent || tokens.
    """
    return hashlib.blake2b(parent + tokens, digest_size=KEY_BYTES).digest()
