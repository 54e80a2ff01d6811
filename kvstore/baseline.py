"""What blocks of one model have in common, so that it need not be stored with each: the mean of every channel.

A channel is one place in a head, of one layer, of the keys or of the values. Its numbers are of one magnitude, which
differs from channel to channel. Read as an integer, the bits of a float without its sign are almost its logarithm; their
mean over many tokens is the channel's baseline, and what is left of a number when it is subtracted is small and alike
in all channels. See docs/block-format.md.
"""

import hashlib
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvstore.block import ITEMSIZES, BlockLayout
from kvstore.errors import FormatError

DIGEST_BYTES: Final = 16
LEARN_TOKENS: Final = (512, 4096)
"""The first gives most of what there is to gain, soon; the second most of the rest."""

MAGIC: Final = b"kvtidebl"
VERSION: Final = 1

# magic, version, bytes of an element, lowest bit of the byte that is coded, layers x 2, channels of each, tokens it was learned from
_HEAD: Final = struct.Struct("<8sHBBIIQ")
_MAGNITUDE: Final = 0x7FFF
_SIGN_BIT: Final = 15

FIRST_BITS: Final[Mapping[str, int]] = {"bfloat16": 7, "float16": 8, "float32": 23}
"""The lowest bit of the byte of an element that is coded: its exponent, or the upper byte of a float16, where there is room for
the sign. So the baseline of a float16 channel that is mostly negative has the sign bit: subtracting it turns the sign.
"""


_FORMS: Final = {(ITEMSIZES[dtype], first_bit) for dtype, first_bit in FIRST_BITS.items()}


@dataclass(frozen=True, eq=False, slots=True)
class Baseline:
    """One table of baselines, which never changes. Records name it by its digest."""

    digest: bytes
    """DIGEST_BYTES bytes: BLAKE2b of `content`."""
    content: bytes
    """As it rests."""
    itemsize: int
    first_bit: int
    """See FIRST_BITS."""
    num_tokens: int
    """From how many it was learned."""
    words: NDArray[Any]
    """[layers x 2, 1, KV heads x head dim], unsigned integers as large as elements: what to subtract from those."""

    @property
    def num_channels(self) -> int:
        """Of all layers."""
        return self.words.size

    @classmethod
    def parse(cls, content: bytes) -> "Baseline":
        """The baseline that rests so. Raises FormatError for what is none."""
        try:
            magic, version, *form, groups, channels, num_tokens = _HEAD.unpack_from(content)
            upper = np.frombuffer(content, "<u2", offset=_HEAD.size)
        except (struct.error, ValueError) as error:
            raise FormatError(f"no baseline: {error}") from error
        if (magic, version) != (MAGIC, VERSION) or tuple(form) not in _FORMS:
            raise FormatError(f"no baseline of version {VERSION}")
        if not upper.size == groups * channels > 0:
            raise FormatError(f"no baseline of {groups} times {channels} channels: it has {upper.size}")
        digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
        itemsize, first_bit = form
        words = upper.astype(np.uint16 if itemsize == 2 else np.uint32) << (itemsize * 8 - 16)
        words.flags.writeable = False
        return cls(digest, content, itemsize, first_bit, num_tokens, words.reshape(groups, 1, channels))

    def fits(self, layout: BlockLayout) -> bool:
        """Whether it is of blocks that lie so in memory."""
        groups, _, channels = self.words.shape
        lies = layout.num_layers * 2, layout.num_kv_heads * layout.head_dim
        return (groups, channels) == lies and (self.itemsize, self.first_bit) == _form(layout)


class Baselines:
    """The baselines of the blocks of one layout: those that are known, and the one that is being learned.

    Any thread may call it. One that is learned has no effect until `add`: who keeps it sees to it first that it is found
    again, for as long as there are records that name it.
    """

    def __init__(self, layout: BlockLayout, learn_tokens: Sequence[int] = LEARN_TOKENS) -> None:
        """`learn_tokens`: after how many a baseline is due, in ascending order."""
        if sorted(set(learn_tokens)) != list(learn_tokens) or min(learn_tokens, default=1) < 1:
            raise ValueError(f"learn_tokens must be positive and ascend, got {learn_tokens}")
        self._layout = layout
        self._learn_tokens = tuple(learn_tokens)
        self._lock = threading.Lock()
        self._known: Mapping[bytes, Baseline] = MappingProxyType({})
        self._current: Baseline | None = None
        self._sums = np.zeros(self._shape[::2], dtype=np.uint64)
        self._negative = np.zeros(self._shape[::2], dtype=np.uint64)
        self._num_tokens = 0

    @property
    def known(self) -> Mapping[bytes, Baseline]:
        """By digest. What is answered does not change any more."""
        return self._known

    @property
    def current(self) -> Baseline | None:
        """Of those that are known the one that was learned from most: what is written now is written with it."""
        return self._current

    @property
    def is_due(self) -> bool:
        """Whether enough is learned for another."""
        return self._wanted(self._num_tokens) > self._tokens_of_current

    @property
    def is_learning(self) -> bool:
        """Whether another may ever become due."""
        return bool(self._learn_tokens) and self._tokens_of_current < self._learn_tokens[-1]

    def add(self, baseline: Baseline) -> None:
        """Read records that name it from now on. ValueError for one of another layout."""
        if not baseline.fits(self._layout):
            raise ValueError(
                f"a baseline of {baseline.words.shape}, {baseline.itemsize} bytes each, for {self._layout}"
            )
        with self._lock:
            self._known = MappingProxyType({**self._known, baseline.digest: baseline})
            if baseline.num_tokens > self._tokens_of_current:
                self._current = baseline

    def learn(self, block: NDArray[np.uint8]) -> None:
        """Take the bytes of a block into account, if that is of use yet."""
        if not self.is_learning or self.is_due:
            return
        words: NDArray[Any] = block.view(np.uint16 if self._layout.itemsize == 2 else np.uint32).reshape(
            self._shape
        )
        upper = words >> (self._layout.itemsize * 8 - 16)
        sums = (upper & _MAGNITUDE).sum(axis=1, dtype=np.uint64)
        negative = (upper >> _SIGN_BIT).sum(axis=1, dtype=np.uint64)
        with self._lock:
            self._sums += sums
            self._negative += negative
            self._num_tokens += self._layout.block_tokens

    def learned(self) -> Baseline:
        """A baseline of all that was learned until now, which must be something."""
        groups, _, channels = self._shape
        with self._lock:
            num_tokens, numbers = self._num_tokens, np.rint(self._sums / self._num_tokens).astype("<u2")
            signs = (self._negative * 2 > num_tokens).astype("<u2") << _SIGN_BIT
        itemsize, first_bit = _form(self._layout)
        if first_bit == FIRST_BITS["float16"]:
            numbers |= signs
        head = _HEAD.pack(MAGIC, VERSION, itemsize, first_bit, groups, channels, num_tokens)
        return Baseline.parse(head + numbers.tobytes())

    def check(self) -> None:
        """Raise AssertionError unless what is current is known, and nothing known was learned from more."""
        best = max((known.num_tokens for known in self._known.values()), default=0)
        assert self._tokens_of_current == best, (
            f"current has {self._tokens_of_current} tokens, the best known {best}"
        )
        assert self._current is None or self._known[self._current.digest] is self._current

    @property
    def _shape(self) -> tuple[int, int, int]:
        layout = self._layout
        return layout.num_layers * 2, layout.block_tokens, layout.num_kv_heads * layout.head_dim

    @property
    def _tokens_of_current(self) -> int:
        return 0 if self._current is None else self._current.num_tokens

    def _wanted(self, num_tokens: int) -> int:
        """The most tokens of those after which one is due that these are."""
        return max((due for due in self._learn_tokens if due <= num_tokens), default=0)


def _form(layout: BlockLayout) -> tuple[int, int]:
    """Bytes of an element, and the lowest bit of the one that is coded."""
    return layout.itemsize, FIRST_BITS[layout.dtype]
