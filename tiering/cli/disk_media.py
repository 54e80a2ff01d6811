"""What a disk store is measured against: the same blocks, uncompressed and unchecked, in other places.

Each medium is filled with blocks, and answers a read as jobs, one for each request that it is split into, which any thread
may run. A job that does not find what it should raises.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol

import lmdb
import numpy as np
from numpy.typing import NDArray

from kvstore.disk.buffers import huge_pages

Job = Callable[[], None]
Blocks = NDArray[np.uint8]
"""[blocks, block_bytes]"""

_MOST_READERS: Final = 8
"""Threads that read a file at a time."""


class Medium(Protocol):
    """Filled at construction, and synced."""

    @property
    def files(self) -> list[Path]:
        """Where it all is; none for memory."""
        ...

    def open(self) -> None:
        """Be ready to read; what that takes is not part of a read."""
        ...

    def jobs(self, out: Blocks, parts: Sequence[slice]) -> list[Job]:
        """What reads all blocks into `out`, those of each part together."""
        ...

    def close(self) -> None:
        """Let go of what `open` has taken."""
        ...


class Memory:
    """A copy in memory, and the copying of it: what nothing that brings blocks into slots can beat."""

    files: list[Path] = []  # noqa: RUF012 - a constant

    def __init__(self, blocks: Sequence[Blocks]) -> None:
        self._blocks = np.array(blocks)

    def open(self) -> None:
        """Nothing to do."""

    def jobs(self, out: Blocks, parts: Sequence[slice]) -> list[Job]:
        def copy(part: slice) -> Job:
            return lambda: np.copyto(out[part], self._blocks[part])

        return [copy(part) for part in parts]

    def close(self) -> None:
        """Nothing to do."""


class PlainLmdb:
    """LMDB as it comes, a value a block."""

    def __init__(self, folder: Path, blocks: Sequence[Blocks], batch_blocks: int) -> None:
        self._folder = folder
        self._map_bytes = 2 * sum(block.nbytes for block in blocks) + (64 << 20)
        with lmdb.open(str(folder), map_size=self._map_bytes) as environment:
            for begin in range(0, len(blocks), batch_blocks):
                with environment.begin(write=True) as txn:
                    for number, block in enumerate(blocks[begin : begin + batch_blocks], start=begin):
                        txn.put(b"%08d" % number, block.data)

    @property
    def files(self) -> list[Path]:
        return [self._folder / "data.mdb"]

    def open(self) -> None:
        self._environment = lmdb.open(str(self._folder), map_size=self._map_bytes, readonly=True)

    def jobs(self, out: Blocks, parts: Sequence[slice]) -> list[Job]:
        def read(part: slice) -> Job:
            def job() -> None:
                with self._environment.begin(buffers=True) as txn:
                    for number in range(part.start, part.stop):
                        block = txn.get(b"%08d" % number)
                        assert block is not None, "it was written"
                        np.copyto(out[number], np.frombuffer(block, np.uint8))

            return job

        return [read(part) for part in parts]

    def close(self) -> None:
        self._environment.close()


class FileEach:
    """A file a block."""

    def __init__(self, folder: Path, blocks: Sequence[Blocks]) -> None:
        self.files = [folder / f"{number:08d}" for number in range(len(blocks))]
        for path, block in zip(self.files, blocks, strict=True):
            path.write_bytes(block.data)

    def open(self) -> None:
        """Each file is opened when it is read."""

    def jobs(self, out: Blocks, parts: Sequence[slice]) -> list[Job]:
        def read(part: slice) -> Job:
            def job() -> None:
                for number in range(part.start, part.stop):
                    with self.files[number].open("rb", buffering=0) as file:
                        if file.readinto(out[number].data) != out[number].nbytes:
                            raise OSError(f"{self.files[number]} is short")

            return job

        return [read(part) for part in parts]

    def close(self) -> None:
        """Nothing is open."""


RAW_PLACES: Final = ("buffers", "huge buffers", "slots")
"""Where a raw read puts its bytes: buffers, over and over, in memory as one gets it or in huge pages, from which nobody takes them; or where blocks are wanted."""


class RawFile:
    """All blocks in one file, read past the page cache.

    The file system must know O_DIRECT: ValueError if it does not.
    """

    def __init__(self, path: Path, blocks: Sequence[Blocks], *, request_bytes: int, place: str) -> None:
        """`request_bytes`: of each read. `place`: one of RAW_PLACES."""
        self.files = [path]
        self._request_bytes, self.place = request_bytes, place
        if not path.exists():
            with path.open("wb") as file:
                for block in blocks:
                    file.write(block.data)
        self._num_bytes = path.stat().st_size

    def open(self) -> None:
        try:
            self._file = os.open(self.files[0], os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            folder = self.files[0].parent
            raise ValueError(
                f"{folder} is on no disk that can be read past the page cache ({error}); give another --path"
            ) from error
        self._buffers: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(_MOST_READERS):
            if self.place == "huge buffers":
                buffer = huge_pages(self._request_bytes)[: self._request_bytes]
            else:
                memory = mmap.mmap(-1, self._request_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                buffer = memoryview(memory)
                buffer[:] = bytes(len(buffer))  # or the first read into it would pay for its pages
            self._buffers.put(buffer)

    def jobs(self, out: Blocks, parts: Sequence[slice]) -> list[Job]:  # noqa: ARG002 - a read has nothing to do with blocks
        slots = out.reshape(-1)

        def read(begin: int) -> Job:
            def job() -> None:
                wanted = min(self._request_bytes, self._num_bytes - begin)
                if self.place == "slots" and wanted == self._request_bytes:
                    num_bytes = os.preadv(self._file, [slots[begin : begin + wanted].data], begin)
                else:
                    buffer = self._buffers.get()
                    num_bytes = os.preadv(self._file, [buffer], begin)
                    if self.place == "slots":  # the last one may not be of whole pages
                        slots[begin : begin + wanted] = buffer[:wanted]
                    self._buffers.put(buffer)
                if num_bytes < wanted:
                    raise OSError(f"{self.files[0]} is short")

            return job

        return [read(begin) for begin in range(0, self._num_bytes, self._request_bytes)]

    def close(self) -> None:
        os.close(self._file)
        del self._buffers
