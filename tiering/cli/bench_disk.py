"""`kvtide bench disk`: how fast blocks come back from disk, and go there.

KV of one prompt, several times under different names, is written to a store as an engine writes it, and to other places for
comparison, uncompressed. Then all is read, with the files in memory ("warm") and with the page cache dropped ("cold", looked
at before each reading), by several numbers of threads, which take batches as an engine's do. What the store reads is checked
in every way that it has; what the others read, by nobody. Repeats are interleaved over all rows, so that a machine or a disk
that is busy for a while does not favour one. Rates are of KV bytes, 1e9 a second, by wall clock and by processor time of this
process; the kernel's own threads, which write pages back, are not in the latter.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
from rich.console import Console

from kvstore.cores import num_cores
from kvstore.disk import LmdbStore
from kvstore.disk.page_cache import drop, share_absent
from kvstore.pages import Pages
from kvstore.store import BlockRef
from tiering.batches import batches
from tiering.cli.disk_media import (
    RAW_PLACES,
    Blocks,
    FileEach,
    Job,
    Medium,
    Memory,
    PlainLmdb,
    RawFile,
)
from tiering.cli.disk_rows import RAW_REQUEST_MIB, Row, gates, page, show
from tiering.cli.environment import environment
from tiering.cli.kv_blocks import KvBlocks, kv_blocks
from tiering.cli.markdown import write
from tiering.index_config import IndexConfig
from tiering.io_threads import IoThreads

RAW_THREADS: Final = (1, 2, 4, 8)
_LEAST_ABSENT: Final = 0.9
"""Of files that count as cold: opening a store brings in its trees, and a little of what lies around them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskBench:
    """Everything that the command line says."""

    model: str
    tokens: int
    """Of the prompt whose KV it is."""
    copies: int
    threads: tuple[int, ...]
    read_batch_blocks: int
    repeats: int
    path: Path | None
    seed: int


class _Store:
    """A disk store as a medium."""

    def __init__(
        self, folder: Path, kv: KvBlocks, refs: Sequence[BlockRef], blocks: Sequence[Blocks]
    ) -> None:
        self._folder, self._kv, self._refs = folder, kv, refs
        self._capacity_bytes = _capacity_bytes(blocks)
        self.files = [folder / "v1" / "payload" / "data.mdb"]
        self.open()
        put(self._store, refs, blocks)
        self.stats = self._store.stats()
        self.close()

    def open(self) -> None:
        self._store = open_store(self._folder, self._kv, self._capacity_bytes)

    def jobs(self, out: Blocks, parts: Sequence[slice]) -> list[Job]:
        def read(part: slice) -> Job:
            refs, views = self._refs[part], list(out[part])

            def job() -> None:
                if not all(outcome.hit for outcome in self._store.get_many(refs, views)):
                    raise RuntimeError("a block that was just written is not there")

            return job

        return [read(part) for part in parts]

    def close(self) -> None:
        self._store.close()


def _capacity_bytes(blocks: Sequence[Blocks]) -> int:
    """Of a store of these blocks."""
    return 2 * sum(block.nbytes for block in blocks)


def open_store(folder: Path, kv: KvBlocks, capacity_bytes: int) -> LmdbStore:
    """A store as an engine opens it, which syncs when it is told to, and has nothing to do of itself any more."""
    store = LmdbStore(
        folder,
        namespace=kv.namespace,
        layout=kv.layout,
        capacity_bytes=capacity_bytes,
        min_free_bytes=0,
        sync_interval_s=3600,
    )
    store.sync()  # comes after its measuring of the disk, which would go on beside what is timed
    return store


def put(store: LmdbStore, refs: Sequence[BlockRef], blocks: Sequence[Blocks]) -> None:
    """Write as an engine does, a batch at a time."""
    size = engine_sizes(store.max_stored_bytes).blocks_per_write
    for begin in range(0, len(refs), size):
        store.put_many(refs[begin : begin + size], blocks[begin : begin + size])


def engine_sizes(record_bytes: int = 1) -> IndexConfig:
    """Of the work that an engine does at once, where its tiers are large enough for it."""
    return IndexConfig(
        block_tokens=16, device_slots=1, host_slots=1 << 20, disk_bytes=1 << 50, record_bytes=record_bytes
    )


def default_threads() -> tuple[int, ...]:
    """1, 2, 4 and so on, to two a core: while one waits for the disk, another decodes; and as many as an engine has."""
    from engine.config import read_threads

    doubled = {1 << bit for bit in range((2 * num_cores()).bit_length())}
    return tuple(sorted(doubled | {read_threads("auto")}))


def run(bench: DiskBench, json_path: Path | None) -> None:
    """Measure, print a table, and write the rows and a page about them."""
    console = Console(stderr=True)
    measured = measure(bench, lambda text: console.print(text, style="dim"))
    show(measured)
    write(json_path, measured, page(measured))


def measure(bench: DiskBench, tell: Callable[[str], None]) -> dict[str, Any]:
    """Rows and gates; `tell` hears what is being done. Raises ValueError where nothing can be read past the page cache."""
    with tempfile.TemporaryDirectory(prefix="kvtide-bench-", dir=bench.path) as scratch:
        folder = Path(scratch)
        kv = kv_blocks(bench.model, bench.tokens, bench.seed, folder / "kv", tell)
        refs = kv.copies(bench.copies)
        blocks = [block for _ in range(bench.copies) for block in kv.data]
        tell(f"{len(blocks)} blocks of {kv.layout.block_bytes} bytes are written to {folder}")
        store = _Store(folder / "store", kv, refs, blocks)
        media = _media(folder, store, blocks)
        with open_store(folder / "written", kv, _capacity_bytes(blocks)) as written:
            put(written, refs, blocks)
        demotions = []
        rows: dict[tuple[str, str, int], Row] = {}
        # as an engine's slots
        out = Pages(len(blocks) * kv.layout.block_bytes).bytes.reshape(len(blocks), -1)
        out.fill(1)
        for repeat in range(bench.repeats):
            tell(f"repeat {repeat + 1} of {bench.repeats}")
            for name, state, threads, medium in _readings(media, bench.threads):
                row = rows.setdefault((name, state, threads), Row(name, state, threads))
                _read(row, medium, out, list(_parts(bench, len(kv.refs), threads)))
                if not isinstance(medium, RawFile) or medium.place == "slots":
                    _check(out, blocks)
            demotions.append(_write(rows, folder / "written", kv, refs, blocks))
        listed = [row.as_dict() for row in rows.values()]
    return {
        "rows": listed,
        "gates": gates(listed, num_cores()),
        "kv": {
            "source": kv.source,
            "blocks": len(blocks),
            "different_blocks": len(kv.refs),
            "block_bytes": kv.layout.block_bytes,
            "stored_bytes": store.stats.stored_bytes,
            "records": dict(store.stats.written),
        },
        "demotions": demotions,
        "config": {**dataclasses.asdict(bench), "path": bench.path and str(bench.path)},
        "environment": environment(),
    }


def _media(folder: Path, store: _Store, blocks: Sequence[Blocks]) -> dict[str, Medium]:
    """By name. The raw file comes in all its sizes of requests, into all places."""
    for name in ("lmdb", "files"):
        (folder / name).mkdir()
    media: dict[str, Medium] = {
        "store": store,
        "lmdb": PlainLmdb(folder / "lmdb", blocks, engine_sizes(blocks[0].nbytes).blocks_per_write),
        "file each": FileEach(folder / "files", blocks),
        "memcpy": Memory(blocks),
    }
    for mib in RAW_REQUEST_MIB:
        for place in RAW_PLACES:
            media[f"raw {mib} MiB, {place}"] = RawFile(
                folder / "raw", blocks, request_bytes=mib << 20, place=place
            )
    return media


def _readings(media: dict[str, Medium], threads: tuple[int, ...]) -> Iterator[tuple[str, str, int, Medium]]:
    """Of one repeat: each medium cold, then warm, with each number of threads."""
    for name, medium in media.items():
        if isinstance(medium, RawFile):
            yield from ((name, "cold", number, medium) for number in RAW_THREADS)
        elif medium.files:
            for number in threads:
                yield name, "cold", number, medium
            yield from ((name, "warm", number, medium) for number in threads)
        else:
            yield from ((name, "warm", number, medium) for number in threads)


def _parts(bench: DiskBench, of_prompt: int, threads: int) -> Iterator[slice]:
    """The blocks that are read at once: an engine's batches of one prompt after the other, with so many threads."""
    budget = engine_sizes().read_budget_blocks
    for begin in range(0, bench.copies * of_prompt, of_prompt):
        for part in batches(of_prompt, of_prompt, budget, threads, bench.read_batch_blocks):
            yield slice(begin + part.start, begin + part.stop)


def _read(row: Row, medium: Medium, out: Blocks, parts: Sequence[slice]) -> None:
    """One reading of everything, timed."""
    if row.state == "cold":
        _drop(medium)  # before it is opened: of what is mapped and touched nothing goes
    medium.open()
    try:
        jobs = medium.jobs(out, parts)
        if row.state == "warm":
            for path in medium.files:
                _touch(path)
        else:
            _drop(medium)
            row.absent.append(min(share_absent(path) for path in medium.files))
            if row.absent[-1] < _LEAST_ABSENT:
                raise ValueError(
                    f"{1 - row.absent[-1]:.0%} of {medium.files[0]} stay in memory: name a directory on a disk with --path"
                )
        with _timed(row, out.nbytes):
            _run(jobs, row.threads)
    finally:
        medium.close()


def _drop(medium: Medium) -> None:
    for path in medium.files:
        drop(path)


def _touch(path: Path) -> None:
    """Have all of a file in memory."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


@contextmanager
def _timed(row: Row, num_bytes: int) -> Iterator[None]:
    read_bytes, wall_s, cpu_s = _read_bytes(), time.perf_counter(), time.process_time()
    yield
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    row.gb_per_s.append(num_bytes / wall_s / 1e9)
    row.gb_per_cpu_s.append(num_bytes / cpu_s / 1e9)
    row.read_bytes.append(_read_bytes() - read_bytes)


def _read_bytes() -> int:
    """What this process has had disks read so far."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _run(jobs: Sequence[Job], num_threads: int) -> None:
    """Run all jobs on so many threads; raise what one raises."""
    ended: SimpleQueue[Exception | None] = SimpleQueue()

    def reporting(job: Job) -> Job:
        def run() -> None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - the thread's top: raised by who waits for it
                ended.put(error)
            else:
                ended.put(None)

        return run

    threads = IoThreads("bench", num_threads)
    for job in jobs:
        threads.put(reporting(job))
    errors = [error for _ in jobs if (error := ended.get()) is not None]
    threads.close(10.0)
    if errors:
        raise errors[0]


def _check(out: Blocks, blocks: Sequence[Blocks]) -> None:
    """What was read is what was written; then it is forgotten, so that the next to read must bring it."""
    if not all(np.array_equal(read, block) for read, block in zip(out, blocks, strict=True)):
        raise RuntimeError("what was read is not what was written")
    out.fill(1)


def _write(
    rows: dict[tuple[str, str, int], Row],
    folder: Path,
    kv: KvBlocks,
    refs: Sequence[BlockRef],
    blocks: Sequence[Blocks],
) -> dict[str, Any]:
    """Into a store that has these blocks already, so that each takes the place of another, as in a store that is full: without
    a sync, and with one. Answers whether it encoded them, and how many by what.
    """
    num_bytes = sum(block.nbytes for block in blocks)
    with open_store(folder, kv, _capacity_bytes(blocks)) as store:
        for what in ("demotion", "demotion, synced"):
            row = rows.setdefault((what, "written", 1), Row(what, "written", 1))
            with _timed(row, num_bytes):
                put(store, refs, blocks)
                if what == "demotion, synced":
                    store.sync()
        stats = store.stats()
    return {"encodes": stats.encodes, "records": dict(stats.written)}
