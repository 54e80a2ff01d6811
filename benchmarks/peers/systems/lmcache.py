"""LMCache's LocalDiskBackend, over the LocalCPUBackend that it takes its memory from."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend

from benchmarks.peers.backend import (
    BLOCK_TOKENS,
    HEAD_DIM,
    JUNK,
    NUM_BLOCKS,
    NUM_KV_HEADS,
    NUM_LAYERS,
    SHAPE,
    Block,
    Read,
    whole,
)
from benchmarks.peers.faults import Place

MODEL = "peers"


class Backend:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=BLOCK_TOKENS,
            local_disk=str(directory),
            max_local_disk_size=1.0,
            max_local_cpu_size=1 / 16,
        )
        metadata = LMCacheMetadata(
            model_name=MODEL,
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.bfloat16,
            kv_shape=(NUM_LAYERS, 2, BLOCK_TOKENS, NUM_KV_HEADS, HEAD_DIM),
        )
        self._memory = LocalCPUBackend(config, metadata, "cpu")
        self._disk = LocalDiskBackend(config, self._loop, self._memory, "cpu", metadata=metadata)

    def put(self, number: int, block: Block) -> None:
        memory, written = self._allocate(), threading.Event()
        self._bytes(memory)[:] = block
        self._disk.submit_put_task(self._key(number), memory, on_complete_callback=lambda _: written.set())
        assert written.wait(60), "the write did not complete within a minute"
        memory.ref_count_down()

    def get(self, number: int) -> Read:
        self._soil()
        if not self._disk.contains(self._key(number)):
            return Read("missed")
        memory = self._disk.get_blocking(self._key(number))
        if memory is None:
            return Read("refused")
        data = self._bytes(memory).copy()
        memory.ref_count_down()
        return Read("hit", data)

    def place(self, number: int) -> Place:
        return whole(self._directory / (self._key(number).to_string() + ".pt"))

    def close(self) -> None:
        self._disk.close()
        self._memory.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _soil(self) -> None:
        """Leave junk in the memory that the next reads are given."""
        memories = [self._allocate() for _ in range(NUM_BLOCKS)]
        for memory in memories:
            self._bytes(memory)[:] = JUNK
        for memory in memories:
            memory.ref_count_down()

    def _allocate(self) -> MemoryObj:
        memory = self._memory.allocate(torch.Size(SHAPE), torch.bfloat16, MemoryFormat.KV_2LTD)
        assert memory is not None
        return memory

    @staticmethod
    def _bytes(memory: MemoryObj) -> Block:
        return np.frombuffer(memory.byte_array, np.uint8)

    @staticmethod
    def _key(number: int) -> CacheEngineKey:
        return CacheEngineKey(MODEL, 1, 0, 1000 + number, torch.bfloat16)
