"""How a record begins: see docs/block-format.md."""

import struct
from typing import Final, NamedTuple

MAGIC: Final = b"kvtide\r\n"
VERSION: Final = 1

HEAD: Final = struct.Struct("<8sHBBIQQQ32s32s32sQQ")
"""Magic, version, codec, itemsize, bytes of token ids, raw bytes, payload bytes, written at, namespace digest, key, parent key, checksum
of the raw bytes, checksum of the payload. Token ids follow, and a checksum of all before it.
"""
CHECKSUM: Final = struct.Struct("<Q")
CODEC_AT: Final = struct.calcsize("<8sH")
OPEN_BEGIN: Final = struct.calcsize("<8sHBBIQ")
OPEN_END: Final = struct.calcsize("<8sHBBIQQQ")
"""Between these two is what only the header itself says: how long the payload is, and when it was written."""
CHECKSUMS_BEGIN: Final = struct.calcsize("<8sHBBIQQQ32s32s32s")
TOKENS_BEGIN: Final = HEAD.size


class Head(NamedTuple):
    """The fixed part of a header, in the order of `HEAD` from the version on."""

    version: int
    codec: int
    itemsize: int
    token_id_bytes: int
    raw_bytes: int
    payload_bytes: int
    written_ns: int
    namespace_digest: bytes
    key: bytes
    parent_key: bytes
    raw_checksum: int
    payload_checksum: int

    @property
    def header_bytes(self) -> int:
        """Bytes of the record before its payload."""
        return header_bytes(self.token_id_bytes)


def header_bytes(token_id_bytes: int) -> int:
    """Bytes of a record before its payload."""
    return HEAD.size + token_id_bytes + CHECKSUM.size
