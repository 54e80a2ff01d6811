"""SGLang's trees: RadixCache, all in Python, and UnifiedRadixCache, whose core is in Rust."""

import sys
from array import array
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers.utils.import_utils import is_torchvision_available

from benchmarks.peers.index.rows import Call
from benchmarks.workloads_index import BLOCK_TOKENS, Tokens


class _Absent(ModuleType):
    """In the place of a package whose names are imported on the way, and never used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _leave_out(*names: str) -> None:
    for name in names:
        absent = _Absent(name)
        absent.__spec__ = ModuleSpec(name, None, is_package=True)
        absent.__path__ = []
        sys.modules[name] = absent


# The caches import the configurations of all models, and these what prepares images. torchvision comes with CUDA only.
if not is_torchvision_available():
    _leave_out("torchvision", "torchvision.transforms", "torchvision.transforms.functional")

from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator  # noqa: E402
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams  # noqa: E402
from sglang.srt.mem_cache.cache_init_params import CacheInitParams  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey  # noqa: E402

_TO_COMPUTE_TOKENS = BLOCK_TOKENS


class Index:
    """The calls that the scheduler makes, on either tree."""

    def __init__(self, num_blocks: int, cache_class: type, **params: Any) -> None:
        self._allocator = PagedTokenToKVPoolAllocator(
            (num_blocks + 1) * BLOCK_TOKENS, BLOCK_TOKENS, torch.bfloat16, "cpu", None, need_sort=False
        )
        self._cache = cache_class(
            CacheInitParams(
                disable=False,
                req_to_token_pool=None,
                token_to_kv_pool_allocator=self._allocator,
                page_size=BLOCK_TOKENS,
                **params,
            )
        )

    def insert(self, tokens: Tokens) -> None:
        self.inserting(tokens)()

    def matching(self, tokens: Tokens) -> Call:
        cache, key = self._cache, self._key(tokens)
        return lambda: cache.match_prefix(MatchPrefixParams(key=key)).device_prefix_len

    known = matching  # there are no hashes

    def inserting(self, tokens: Tokens) -> Call:
        cache, key = self._cache, self._key(tokens)
        found = cache.match_prefix(MatchPrefixParams(key=key))
        known = found.device_prefix_len
        there = cache.path_device_indices(found.last_device_node)[:known]
        new = self._allocator.alloc(len(tokens) - known)
        assert new is not None, "the pool is as large as what is inserted"
        # as a request's row of slots is: those that the tree has, then its own
        value = torch.cat([there, new])

        def insert() -> int:
            return cache.insert(InsertParams(key=key, value=value, prev_prefix_len=known)).prefix_len

        return insert

    def holding(self, tokens: Tokens) -> Call:
        cache = self._cache
        found = cache.match_prefix(MatchPrefixParams(key=self._key(tokens)))

        def hold() -> int:
            cache.unlock(cache.lock(found.last_device_node))
            return found.device_prefix_len

        return hold

    def serving(self, tokens: Tokens) -> Call:
        cache, allocator, key = self._cache, self._allocator, self._key(tokens)

        def serve() -> int:
            found = cache.match_prefix(MatchPrefixParams(key=key))
            slots = cache.path_device_indices(found.last_device_node)
            lock = cache.lock(found.last_device_node)
            private = allocator.alloc(_TO_COMPUTE_TOKENS)
            allocator.free_segment(private, start_pos=0)
            cache.unlock(lock)
            return len(slots)

        return serve

    def evicting(self, num_tokens: int) -> Call:
        cache = self._cache
        return lambda: cache.evict(EvictParams(num_tokens=num_tokens)).num_tokens_evicted

    def settle(self) -> None:
        pass

    @staticmethod
    def _key(tokens: Tokens) -> RadixKey:
        return RadixKey(array("q", tokens.astype(np.int64).tobytes()))


def python_index(num_blocks: int) -> Index:
    return Index(num_blocks, RadixCache)


def rust_index(num_blocks: int) -> Index:
    from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    index = Index(
        num_blocks, UnifiedRadixCache, tree_components=(ComponentType.FULL,), tree_core_backend="rust"
    )
    core = type(index._cache.tree_core).__name__
    if core != "RustUnifiedTreeCore":
        raise RuntimeError(f"the tree's core is {core}: this wheel has no Rust core that works here")
    return index
