"""One block as one run of bytes that proves what it is: see docs/block-format.md."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from kvstore.baseline import Baseline, Baselines
from kvstore.block import KEY_BYTES, BlockLayout, Namespace
from kvstore.codec import Bytes, Checksums, Codec, as_bytes, decode, encode
from kvstore.errors import CodecError, FormatError, MissingBaseline
from kvstore.head import (
    CHECKSUM,
    CODEC_AT,
    HEAD,
    MAGIC,
    VERSION,
    Head,
    header_bytes,
)
from kvstore.huffman import Codes
from kvstore.kernels import FUNCTIONS, kernels
from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER, OWNER_BYTES, BlockRef
from kvstore.wanted import LastFront, Wanted

if TYPE_CHECKING:
    from kvstore.store import Readable, Writable


_LEAST_BYTES: Final = 128
_MASK: Final = (1 << 64) - 1


class RecordFormat:
    """Packs and verifies the records of one namespace and layout. Any thread may use it.

    Encoded or not, with one baseline or another, records are read the same.
    """

    baselines: Baselines
    """What is known and learned of them. Nothing is learned here: a record must not name what nobody keeps."""
    encodes: bool
    """Whether payloads are encoded where that gains. Whoever made this may change it at any time."""

    def __init__(
        self,
        namespace: Namespace,
        layout: BlockLayout,
        *,
        encodes: bool = True,
        baselines: Baselines | None = None,
    ) -> None:
        self.namespace = namespace
        self.layout = layout
        self.encodes = encodes
        self._ref_sizes = KEY_BYTES, KEY_BYTES, layout.token_id_bytes
        self._codes = Codes()
        self._last = LastFront()
        self.baselines = Baselines(layout, learn_tokens=()) if baselines is None else baselines

    @property
    def max_record_bytes(self) -> int:
        """The longest a record of this layout can be: what does not compress is stored raw."""
        return header_bytes(self.layout.token_id_bytes) + self.layout.block_bytes

    def pack(self, ref: BlockRef, data: "Readable", written_ns: int) -> memoryview:
        """The record of a block. Raises ValueError for sizes that are not the layout's.

        It lies in memory of its own, as much as `max_record_bytes`: who keeps it for long copies it. The checksum of the raw bytes
        is taken before they are encoded: were they overwritten meanwhile, against the rules, the record would fail its check and
        be a miss, not a wrong block.
        """
        self._check_ref(ref)
        raw = as_bytes(data)
        if raw.size != self.layout.block_bytes:
            raise ValueError(f"a block of {raw.size} bytes where the layout has {self.layout.block_bytes}")
        raw_checksum = self._checksum(raw)
        memory = np.empty(self.max_record_bytes, np.uint8)
        codec, payload_bytes = Codec.RAW, raw.size
        if self.encodes:
            codec, payload_bytes = encode(
                raw,
                self.layout.itemsize,
                memory,
                self.baselines.current,
                self._codes,
                learns=ref.owner
                == NO_OWNER,  # of what is an owner's, nothing is to be found in what is another's
            )
        else:
            memory[memory.size - raw.size :] = raw
        whole = memory.data
        payload_begin = memory.size - payload_bytes
        head = HEAD.pack(
            MAGIC,
            VERSION,
            codec,
            self.layout.itemsize,
            len(ref.tokens),
            raw.size,
            payload_bytes,
            written_ns,
            self.namespace.digest,
            ref.key,
            ref.parent_key,
            raw_checksum,
            self._checksum(memory[payload_begin:]),
        )
        header = head + ref.tokens
        header += CHECKSUM.pack(xxhash.xxh3_64_intdigest(header))
        begin = payload_begin - len(header)
        whole[begin:payload_begin] = header
        return whole[begin:]

    def unpack(self, record: Any, ref: BlockRef, out: "Writable") -> MissReason | None:
        """Verify everything that a record claims, and decode it into `out`.

        Answers None if `out` now holds the block that `ref` names, byte for byte as it was packed; otherwise
        the reason to treat the record as damaged, and `out` is undefined. Never raises for what a record
        holds.
        """
        source = memoryview(record).cast("B")
        head = _verified_head(source)
        if isinstance(head, MissReason):
            return head
        if not self._is(head, source, ref):
            return MissReason.WRONG_IDENTITY
        return _decoded(head, source, out, self.baselines.known)

    def wanted(self, refs: Sequence[BlockRef], out: Sequence[Bytes]) -> Wanted | None:
        """What proves records of these blocks many at once; None where there is nothing to be proven so. Buffers are as `check_out` answers them."""
        if not self._is_coded or any(_sizes(ref) != self._ref_sizes for ref in refs):
            return None  # before it is asked for what is compiled: there may be none
        return Wanted(self.namespace, self.layout, refs, out, self.baselines, self._last)

    def check_out(self, refs: "Sequence[BlockRef]", out: "Sequence[Writable]") -> list[Bytes]:
        """The buffers' bytes. Raises ValueError unless there is one for each block, each can be written, and has a block's size."""
        if len(refs) != len(out):
            raise ValueError(f"{len(refs)} blocks but {len(out)} buffers")
        buffers, block_bytes = [as_bytes(buffer) for buffer in out], self.layout.block_bytes
        for buffer in buffers:
            if buffer.size != block_bytes:
                raise ValueError(f"a buffer of {buffer.size} bytes where a block has {block_bytes}")
            if not buffer.flags.writeable:
                raise ValueError("a block is to be read into a buffer that cannot be written")
        return buffers

    @property
    def _is_coded(self) -> bool:
        """Whether there is compiled code for what is encoded."""
        return self.encodes and self.layout.itemsize in FUNCTIONS

    def _checksum(self, data: Bytes) -> int:
        """XXH3, compiled where there is compiled code anyway."""
        if self._is_coded and data.size > _LEAST_BYTES:
            return kernels(self.layout.itemsize).checksum(data) & _MASK
        return xxhash.xxh3_64_intdigest(data.data)

    def _is(self, head: Head, source: memoryview, ref: BlockRef) -> bool:
        tokens = source[HEAD.size : HEAD.size + head.token_id_bytes].tobytes()
        return (
            head.namespace_digest == self.namespace.digest
            and head.key == ref.key
            and head.parent_key == ref.parent_key
            and tokens == ref.tokens
            and head.raw_bytes == self.layout.block_bytes
            and head.itemsize == self.layout.itemsize
        )

    def _check_ref(self, ref: BlockRef) -> None:
        if len(ref.key) != KEY_BYTES or len(ref.parent_key) != KEY_BYTES:
            raise ValueError(f"keys have {KEY_BYTES} bytes, not {len(ref.key)} and {len(ref.parent_key)}")
        if len(ref.tokens) != self.layout.token_id_bytes:
            expected = self.layout.token_id_bytes
            raise ValueError(f"{len(ref.tokens)} bytes of token ids where the layout has {expected}")
        if len(ref.owner) != OWNER_BYTES:
            raise ValueError(f"owners have {OWNER_BYTES} bytes, not {len(ref.owner)}")


def _sizes(ref: BlockRef) -> tuple[int, int, int]:
    return len(ref.key), len(ref.parent_key), len(ref.tokens)


def codec_of(record: Any) -> Codec:
    """How the payload of a record that was just packed is encoded."""
    return Codec(record[CODEC_AT])


def damage_of(record: Any, entry_key: bytes, baselines: Mapping[bytes, Baseline]) -> MissReason | None:
    """Why a record must not be trusted that rests under this namespace digest and key, as far as it tells by
    itself and with the baselines that are known; None if nothing is wrong. For tools, which know no layout:
    `unpack` compares more.
    """
    source = memoryview(record).cast("B")
    head = _verified_head(source)
    if isinstance(head, MissReason):
        return head
    if head.namespace_digest + head.key != entry_key:
        return MissReason.WRONG_IDENTITY
    return _decoded(head, source, bytearray(head.raw_bytes), baselines)


def _decoded(
    head: Head, record: memoryview, out: "Writable", baselines: Mapping[bytes, Baseline]
) -> MissReason | None:
    """Decode a record's payload into `out`; None if that is what was encoded.

    The payload's checksum says whether it is what was written, the block's whether it is what was packed: it covers the codec and the
    writer's buffer too.
    """
    checksums = Checksums(head.payload_checksum, head.raw_checksum)
    try:
        decode(head.codec, record[head.header_bytes :], head.itemsize, out, baselines, checksums)
    except CodecError:
        return MissReason.DAMAGED_CHECKSUM
    except MissingBaseline:
        return MissReason.MISSING_BASELINE
    except FormatError:
        return MissReason.UNKNOWN_FORMAT
    return None


def _verified_head(source: memoryview) -> Head | MissReason:
    """The header, if its length, magic, version and checksum are right."""
    if len(source) < header_bytes(0):
        return MissReason.DAMAGED_LENGTH
    magic, *fields = HEAD.unpack_from(source)
    if magic != MAGIC:
        return MissReason.DAMAGED_HEADER
    head = Head._make(fields)
    if head.version != VERSION:
        return MissReason.UNKNOWN_FORMAT
    covered = HEAD.size + head.token_id_bytes
    if len(source) < head.header_bytes:
        return MissReason.DAMAGED_LENGTH
    if xxhash.xxh3_64_intdigest(source[:covered]) != CHECKSUM.unpack_from(source, covered)[0]:
        return MissReason.DAMAGED_HEADER
    if len(source) != head.header_bytes + head.payload_bytes:
        return MissReason.DAMAGED_LENGTH
    return head
