"""vLLM's fs tier, driven as the tiering manager drives it: look up, submit a job, poll for its result."""

import hashlib
import mmap
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadingSpec,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import JobResult, TransferJob
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager

from benchmarks.peers.backend import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    JUNK,
    NUM_BLOCKS,
    NUM_LAYERS,
    Block,
    Read,
    whole,
)
from benchmarks.peers.faults import Place

PATIENCE_S = 60
SOURCE, TARGET = 0, 1
"""The chunks of the primary tier that blocks are written from and read into."""


class Spec(OffloadingSpec):
    """A spec that only says what is configured: there is no engine around the tier."""

    def get_manager(self) -> None:
        raise NotImplementedError

    def get_worker(self, _kv_caches: object) -> None:
        raise NotImplementedError


def spec() -> Spec:
    """One group of layers, one worker, defaults."""
    return Spec(
        OffloadingConfig(
            groups=(
                OffloadingGroupConfig(
                    tokens_per_block=BLOCK_TOKENS,
                    layer_names=tuple(f"layers.{layer}" for layer in range(NUM_LAYERS)),
                    group_id=0,
                ),
            ),
            worker_kv_bytes_per_block=BLOCK_BYTES,
            enable_kv_cache_events=False,
            extra_config={},
            engine_id="peers",
            model=OffloadingModelConfig(name="peers", dtype="bfloat16"),
            cache=OffloadingCacheConfig(tokens_per_hash=BLOCK_TOKENS, blocks_per_chunk=1),
            parallel=OffloadingParallelConfig(
                rank=0,
                world_size=1,
                tp_size=1,
                pp_size=1,
                pcp_size=1,
                dcp_size=1,
                data_parallel_index=0,
                data_parallel_size=1,
                data_parallel_rank_local=None,
                is_parallelism_agnostic=False,
            ),
        )
    )


class Backend:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        memory = mmap.mmap(-1, NUM_BLOCKS * BLOCK_BYTES)  # page-aligned, as O_DIRECT needs it
        self._chunks = np.frombuffer(memory, np.int8).reshape(NUM_BLOCKS, BLOCK_BYTES)
        self._tier = FileSystemTierManager(spec(), self._chunks.data, "fs", str(directory))
        self._numbers = count()

    def put(self, number: int, block: Block) -> None:
        self._chunks[SOURCE] = block.view(np.int8)
        job = self._job(number, SOURCE, ReqContext(f"put {next(self._numbers)}"), is_promotion=False)
        assert self._done(self._tier.submit_store, job).success, "the write failed"

    def get(self, number: int) -> Read:
        request = ReqContext(f"get {next(self._numbers)}")
        self._tier.on_new_request(request)
        try:
            if self._look_up(self._key(number), request) is LookupResult.MISS:
                return Read("missed")
            self._chunks[TARGET] = np.uint8(JUNK).view(np.int8)
            job = self._job(number, TARGET, request, is_promotion=True)
            if not self._done(self._tier.submit_load, job).success:
                return Read("refused")
            return Read("hit", self._chunks[TARGET].view(np.uint8).copy())
        finally:
            self._tier.on_request_finished(request)

    def place(self, number: int) -> Place:
        [path] = self._directory.rglob(f"{self._key(number)[:-4].hex()}.bin")
        return whole(path)

    def close(self) -> None:
        self._tier.drain_jobs()
        self._tier.shutdown()

    def _look_up(self, key: OffloadKey, request: ReqContext) -> LookupResult:
        give_up_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_s:
            if (result := self._tier.lookup(key, request)) is not LookupResult.RETRY:
                return result
            self._tier.on_schedule_end(ScheduleEndContext((), ()))
            time.sleep(0.0005)
        raise TimeoutError("the look-up did not answer")

    def _done(self, submit: Callable[[TransferJob], None], job: TransferJob) -> JobResult:
        submit(job)
        self._tier.drain_jobs()
        [result] = self._tier.get_finished_jobs()
        assert result.job_id == job.job_id
        return result

    def _job(self, number: int, chunk: int, request: ReqContext, *, is_promotion: bool) -> TransferJob:
        return TransferJob(
            job_id=next(self._numbers),
            keys=[self._key(number)],
            chunk_ids=np.array([chunk]),
            is_promotion=is_promotion,
            req_context=request,
        )

    @staticmethod
    def _key(number: int) -> OffloadKey:
        return make_offload_key(hashlib.sha256(b"%d" % number).digest(), 0)
