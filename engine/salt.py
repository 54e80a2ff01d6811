"""Keeping apart what tenants must not share: a mark in the token ids that the cache is asked for.

The cache compares token ids and nothing else, from its radix index to the keys and records on disk. So what is private
is given other ids: in the first private block each id's upper byte holds a byte of the salt, a digest of tenant and
salt. A vocabulary that fits into 24 bits leaves that byte free. Blocks behind it need no mark: they follow one::

    ids      a  b  c  d | e  f  g  h | i  j  k  l | ...       salt_offset = 6 lies in the second block
    cached   a  b  c  d | e' f' g' h'| i  j  k  l | ...
             public       marked       private, by their parent

A prompt cannot forge a mark, as ids outside the vocabulary are refused.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from kvstore.store import OWNER_BYTES
from tiering.owners import EVERYBODYS, Ownership

from .params import RequestOptions

MARK_SHIFT = 24
MAX_VOCABULARY = 1 << MARK_SHIFT
"""Token ids are below this."""


class Salt:
    """The mark of one tenant and salt, for blocks of `block_tokens` tokens: at least 16, so that it has 128 bits."""

    def __init__(self, options: RequestOptions, prompt_tokens: int, block_tokens: int) -> None:
        """Marks nothing if neither tenant nor salt is given. What follows the prompt is never public."""
        self.start = min(options.salt_offset, prompt_tokens) // block_tokens * block_tokens
        """Position of the first private token; those of its block are, too."""
        self._mark = _mark(options, block_tokens)
        self.ownership = (
            Ownership(owner_of(options.tenant), self.start // block_tokens) if options.tenant else EVERYBODYS
        )
        """The tenant's are the private blocks."""

    def __call__(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """These tokens, from a prompt's first on, as the cache is asked for them; a copy if any of them is private."""
        if self._mark is None or len(tokens) <= self.start:
            return tokens
        marked = tokens.copy()
        private = marked[self.start : self.start + len(self._mark)]
        private |= self._mark[: len(private)]
        return marked


def unmarked(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """The tokens that the cache was asked for as they were before they were marked; a copy."""
    return tokens & np.int32(MAX_VOCABULARY - 1)


def owner_of(tenant: str) -> bytes:
    """What the cache knows a tenant by."""
    return hashlib.blake2b(tenant.encode(), digest_size=OWNER_BYTES, person=b"kvtide-tenant").digest()


def _mark(options: RequestOptions, block_tokens: int) -> NDArray[np.int32] | None:
    if options.tenant is None and options.cache_salt is None:
        return None
    digest = hashlib.blake2b(digest_size=block_tokens, person=b"kvtide-salt")
    for text in (options.tenant, options.cache_salt):
        # a length before each, absence apart from all: no two pairs run together
        data = b"" if text is None else text.encode()
        digest.update((-1 if text is None else len(data)).to_bytes(8, "little", signed=True) + data)
    return np.frombuffer(digest.digest(), dtype=np.uint8).astype("<u4").__lshift__(MARK_SHIFT).view("<i4")
