"""Recording what an engine is asked, while it runs: see tiering.recording."""

from pathlib import Path
from typing import IO

import numpy as np

from kvstore.errors import StoreFailed
from tiering.index_config import IndexConfig
from tiering.keeping.admission import NO_HINTS
from tiering.recording import Recording, Served

from .config import EngineConfig
from .explained import Explained
from .request import Request


class Recorded(Explained):
    """The part of an engine that writes down what it serves."""

    def record(
        self,
        target: str | Path | IO[bytes],
        *,
        key_file: str | Path | None = None,
        max_s: float | None = None,
        max_bytes: int | None = None,
        rotate: bool = False,
    ) -> Recording:
        """Write down each request that comes from now on and ends before the recording does: a context manager.

        `target`: a file that is made anew, compressed where its name ends in .zst, or one that is open in binary mode, which is
        closed at the end. `key_file`: 32 bytes or 64 hexadecimal digits; with the same key blocks have the same ids in several
        recordings; None draws one. `max_s`, `max_bytes`: when it ends by itself; with `rotate` a file of `max_bytes` is renamed,
        in place of the one before, and another begun. Neither tokens nor text are written (docs/record.md), and the thread
        that computes does nothing for it. Raises ValueError for a key file, or bounds, that cannot be used; OSError for a file.
        """
        self._check_open()
        cache = self._cache.stats()
        recording = Recording(
            Path(target) if isinstance(target, str) else target,
            block_tokens=self.config.block_tokens,
            key=None if key_file is None else _key(key_file),
            max_s=max_s,
            max_bytes=max_bytes,
            rotate=rotate,
            about={
                "block_bytes": cache["block_bytes"],
                "device_blocks": cache["tiers"]["device"]["slots"],
                "host_blocks": cache["tiers"]["host"]["slots"],
                "disk_bytes": cache["tiers"]["disk"]["capacity_bytes"],
            },
            settle=self._accounts.settle,
        )
        self._accounts.record(recording)
        return recording

    @property
    def core(self) -> IndexConfig:
        """How the cache's core was told to work: what a replay of what was recorded needs (tiering.replay)."""
        return self._cache.config

    def _record_as(self, config: EngineConfig) -> None:
        """Begin what the configuration asks for. Raises ValueError where that cannot be."""
        if config.record_path is not None:
            assert isinstance(config.record_bytes, int), "a size is a number once it was read"
            try:
                self.record(
                    Path(config.record_path),
                    key_file=config.record_key_file,
                    max_bytes=config.record_bytes,
                    rotate=True,
                )
            except OSError as error:
                raise ValueError(f"record_path {config.record_path}: {error.strerror}") from error


def served(request: Request) -> Served:
    """What is written down of a request that has ended."""
    first, marks = request.sequences[0], request.marks
    told, reply = first.told, request.samples[min(request.samples)]
    return Served(
        arrived_s=marks.submitted_s,
        tokens=_cached(request),
        prompt_tokens=len(request.prompt),
        output_tokens=sum(len(sample.token_ids) for sample in request.samples.values()),
        hints=NO_HINTS if told is None else told.hints,
        tenant=request.options.tenant,
        kind="warm" if first.is_warming else "chat" if request.messages is not None else "prompt",
        found=request.cached_blocks,
        ttft_s=marks.first_token_s - marks.submitted_s if marks.first_token_s else None,
        end=reply.finish_reason,
    )


def _cached(request: Request) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """Its tokens as the cache was asked for them: the prompt, and of its first reply what others may find."""
    first = request.sequences[0]
    if first.deterministic or request.options.cache != "readwrite" or not first.reply:
        return first.salt(request.prompt)
    return first.salt(np.concatenate([request.prompt, np.array(first.reply[:-1], dtype=np.int32)]))


def _key(file: str | Path) -> bytes:
    from kvstore.disk import read_master_key  # needs lmdb, which nothing else does

    try:
        return read_master_key(file)
    except StoreFailed as error:
        raise ValueError(str(error)) from error
