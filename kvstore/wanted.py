"""Blocks that are looked for, and what proves many records at once to be theirs."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.baseline import Baselines
from kvstore.block import KEY_BYTES, BlockLayout, Namespace
from kvstore.codec import Bytes, Codec, Numbers, Records, addresses, restore_alike, way_from
from kvstore.errors import CodecError, MissingBaseline
from kvstore.head import CHECKSUMS_BEGIN, HEAD, MAGIC, OPEN_END, VERSION, header_bytes
from kvstore.huffman import PROVEN, UNTRIED
from kvstore.kernels import kernels
from kvstore.span import Span
from kvstore.store import BlockRef


@dataclass(slots=True)
class LastFront:
    """How the payload began that was restored last: most others begin so too. Any thread may read and write it."""

    front: bytes | None = None


class Wanted:
    """Some blocks of a namespace. One thread uses it."""

    def __init__(
        self,
        namespace: Namespace,
        layout: BlockLayout,
        refs: Sequence[BlockRef],
        out: Sequence[Bytes],
        baselines: Baselines,
        last: LastFront,
    ) -> None:
        """`out`: where they are to be decoded to. The references are as long as they should be."""
        self._namespace, self._layout, self._baselines = namespace, layout, baselines
        self._refs, self._out, self._last = refs, out, last

    # made when the first record is there: the disk has something to do by then

    @cached_property
    def _heads(self) -> NDArray[np.uint8]:
        return _heads(self._namespace, self._layout, self._refs)

    @cached_property
    def _targets(self) -> Numbers:
        return addresses(self._out)

    @property
    def proof(self) -> tuple[int, tuple[Any, ...]] | None:
        """What compiled code (kvstore.kernels.PROOFS) needs to prove those that are like the last one, and the bytes of a word; None before there was one.

        Of one thread, until it asks again.
        """
        layout, front = self._layout, self._last.front
        if front is None:
            return None
        try:
            way = way_from(front, layout.itemsize, layout.block_bytes, self._baselines.known)
        except (CodecError, MissingBaseline):  # of another
            return None
        return layout.itemsize, (self._heads, header_bytes(layout.token_id_bytes), self._targets, *way)

    def proven(self, numbers: Sequence[int], records: Sequence[Span]) -> list[bool]:
        """Which of these records are proven to be all that is asked of one of the block of that number, and are decoded to its place.

        Of the others nothing is said: `RecordFormat.unpack` has the word. What is encoded as KV mostly is takes two calls for all of it; a
        record is touched in these, which do without the GIL, before it is elsewhere. Nobody may write to the records meanwhile.
        """
        places = np.array([record.address for record in records], np.int64)
        sizes = np.array([record.num_bytes for record in records], np.int64)
        states = np.zeros(places.size, np.uint8)
        found = Records(
            places,
            sizes,
            np.array(numbers, np.int64),
            header_bytes(self._layout.token_id_bytes),
            np.empty((places.size, 2), np.uint64),
        )
        kernels(self._layout.itemsize).recognise(*found[:3], self._heads, found.checksums, states)
        for first in range(states.size):
            if states[first] == UNTRIED:
                with suppress(CodecError, MissingBaseline):
                    self._restore(found, first, states)
        proven: list[bool] = (states == PROVEN).tolist()
        return proven

    def _restore(self, records: Records, first: int, states: Bytes) -> None:
        """This one, and those like it."""
        layout, baselines = self._layout, self._baselines.known
        front = restore_alike(
            records, first, states, layout.itemsize, self._targets, layout.block_bytes, baselines
        )
        if states[first] == PROVEN:
            self._last.front = front


def _heads(namespace: Namespace, layout: BlockLayout, refs: Sequence[BlockRef]) -> NDArray[np.uint8]:
    """[blocks, bytes]: how HUFFMAN records begin, token ids included; zeros where only they themselves can tell."""
    fixed = HEAD.pack(
        MAGIC,
        VERSION,
        Codec.HUFFMAN,
        layout.itemsize,
        layout.token_id_bytes,
        layout.block_bytes,
        0,
        0,
        namespace.digest,
        b"",
        b"",
        0,
        0,
    )
    begin, between = fixed[: OPEN_END + KEY_BYTES], bytes(HEAD.size - CHECKSUMS_BEGIN)
    joined = b"".join(
        [part for ref in refs for part in (begin, ref.key, ref.parent_key, between, ref.tokens)]
    )
    return np.frombuffer(joined, np.uint8).reshape(len(refs), HEAD.size + layout.token_id_bytes)
