"""SGLang's HiCacheFile, by the three calls that the cache controller makes."""

from pathlib import Path

import numpy as np
import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig

from benchmarks.peers.backend import BLOCK_BYTES, JUNK, Block, Read, whole
from benchmarks.peers.faults import Place


class Backend:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        config = HiCacheStorageConfig(
            tp_rank=0,
            tp_size=1,
            pp_rank=0,
            pp_size=1,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=False,
            enable_storage_metrics=False,
            is_page_first_layout=False,
            model_name="peers",
        )
        self._file = HiCacheFile(config, str(directory))

    def put(self, number: int, block: Block) -> None:
        page = torch.from_numpy(block.copy()).view(torch.bfloat16)
        assert self._file.batch_set([self._key(number)], [page]), "the write failed"

    def get(self, number: int) -> Read:
        if self._file.batch_exists([self._key(number)]) != 1:
            return Read("missed")
        out = torch.full((BLOCK_BYTES,), JUNK, dtype=torch.uint8).view(torch.bfloat16)
        [page] = self._file.batch_get([self._key(number)], [out])
        if page is None:
            return Read("refused")
        return Read("hit", np.array(page.view(torch.uint8).numpy()))

    def place(self, number: int) -> Place:
        [path] = self._directory.glob(f"{self._key(number)}*.bin")
        return whole(path)

    def close(self) -> None:
        pass  # HiCacheFile has nothing to close

    @staticmethod
    def _key(number: int) -> str:
        return f"{number:064x}"
