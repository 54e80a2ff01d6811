"""vLLM's prefix cache as the scheduler uses it, and the index of its offloading to host memory."""

from itertools import count

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
from vllm.v1.request import Request

from benchmarks.peers.index.rows import Call
from benchmarks.workloads_index import BLOCK_TOKENS, NODE_TOKENS, PROMPT_TOKENS, Tokens

_LEFT_TO_COMPUTE = list(range(8))

init_none_hash(sha256)
_hashes = get_request_block_hasher(BLOCK_TOKENS, sha256)  # sha256 is the default
_numbers = count()
_params = SamplingParams(max_tokens=1)


def _request(tokens: list[int]) -> Request:
    """A request whose blocks are not hashed yet; the engine's own are when they are made."""
    return Request(f"request {next(_numbers)}", tokens, _params, None)


class Index:
    def __init__(self, num_blocks: int) -> None:
        spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)
        config = KVCacheConfig(
            num_blocks=num_blocks + 1,  # one is never given out
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )
        self._manager = KVCacheManager(
            config,
            max_model_len=2 * PROMPT_TOKENS,
            scheduler_block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
            enable_caching=True,
        )
        self._running: list[Request] = []

    def insert(self, tokens: Tokens) -> None:
        self.inserting(tokens)()
        self.settle()

    def matching(self, tokens: Tokens) -> Call:
        """Hash and look up. Uses are counted where blocks are taken: in `holding`."""
        request = _request(tokens.tolist())

        def match() -> int:
            request._block_hashes = []
            request.block_hashes.extend(_hashes(request))
            return self._found(request)

        return match

    def known(self, tokens: Tokens) -> Call:
        request = _request(tokens.tolist())
        request.block_hashes.extend(_hashes(request))
        return lambda: self._found(request)

    def inserting(self, tokens: Tokens) -> Call:
        request = _request(tokens.tolist())

        def insert() -> int:
            request.block_hashes.extend(_hashes(request))
            return self._start(request, max_found=len(tokens) - NODE_TOKENS)

        return insert

    def holding(self, tokens: Tokens) -> Call:
        request = _request(tokens.tolist())
        request.block_hashes.extend(_hashes(request))
        found, num_tokens, _ = self._manager.get_computed_blocks(request, len(tokens))
        [blocks] = found.blocks
        pool = self._manager.block_pool

        def hold() -> int:
            pool.touch(blocks)
            pool.free_blocks(reversed(blocks))
            return num_tokens

        return hold

    def serving(self, tokens: Tokens) -> Call:
        request = _request(tokens.tolist() + _LEFT_TO_COMPUTE)

        def serve() -> int:
            request.block_hashes.extend(_hashes(request))
            num_found = self._start(request)
            self._manager.free(self._running.pop())
            return num_found

        return serve

    def evicting(self, num_tokens: int) -> Call:
        """Blocks that are given out are taken from prompts; they stay in use, so that the next are as well."""
        pool = self._manager.block_pool
        cached = pool.cached_block_hash_to_block

        def evict() -> int:
            before = len(cached)
            pool.get_new_blocks(num_tokens // BLOCK_TOKENS)
            return (before - len(cached)) * BLOCK_TOKENS

        return evict

    def settle(self) -> None:
        for request in self._running:
            self._manager.free(request)
        self._running.clear()

    def _found(self, request: Request) -> int:
        return self._manager.get_computed_blocks(request, request.num_tokens)[1]

    def _start(self, request: Request, max_found: int | None = None) -> int:
        found, num_found, _ = self._manager.get_computed_blocks(request, max_found)
        blocks = self._manager.allocate_slots(request, request.num_tokens - num_found, num_found, found)
        assert blocks is not None, "the pool is as large as what is inserted"
        self._running.append(request)
        return num_found


class Offload:
    """CPUOffloadingManager with its LRU, which is the default. A block's hash is known before."""

    def __init__(self, num_blocks: int) -> None:
        self._manager = CPUOffloadingManager(num_blocks)
        self._storing: list[tuple[list[OffloadKey], ReqContext]] = []

    def looking_up(self, tokens: Tokens) -> Call:
        keys, context, lookup = self._keys(tokens), self._context(), self._manager.lookup

        def look_up() -> int:
            num_found = 0
            for key in keys:
                if lookup(key, context) is not LookupResult.HIT:
                    break
                num_found += 1
            return num_found * BLOCK_TOKENS

        return look_up

    def storing(self, tokens: Tokens) -> Call:
        keys, context = self._keys(tokens), self._context()
        self._storing.append((keys, context))

        def store() -> int:
            output = self._manager.prepare_store(keys, context)
            assert output is not None, "there is room, or others can go"
            return len(output.keys_to_store) * BLOCK_TOKENS

        return store

    def settle(self) -> None:
        for keys, context in self._storing:
            self._manager.complete_store(keys, context)
        self._storing.clear()

    def _context(self) -> ReqContext:
        context = ReqContext(f"request {next(_numbers)}")
        self._manager.on_new_request(context)
        return context

    @staticmethod
    def _keys(tokens: Tokens) -> list[OffloadKey]:
        return [make_offload_key(block_hash, 0) for block_hash in _hashes(_request(tokens.tolist()))]
