"""Whether it pays to encode blocks on this disk, with this processor: `compression="auto"`."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvstore.baseline import Baselines
from kvstore.block import KEY_BYTES, BlockLayout, Namespace
from kvstore.disk.buffers import huge_pages
from kvstore.disk.payload_file import READ_BYTES
from kvstore.record import RecordFormat
from kvstore.store import BlockRef

LEAST_FILE_BYTES: Final = 16 << 20
"""Of less, reading says nothing about a disk."""
_MOST_PROBED_BYTES: Final = 128 << 20
_MOST_PROBE_S: Final = 0.1
_REPEATS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What was measured. All of the rates are bytes a second."""

    disk: float
    """Read from the disk, by all reading threads together."""
    decoding: float
    """Of KV, by one thread, from a record that is encoded, checks included."""
    copying: float
    """The same, from a record that is not."""
    ratio: float
    """Bytes of such a record by those of the encoded one."""


def is_worth_encoding(rates: Rates, read_threads: int) -> bool:
    """Whether reads become no slower by it. `read_threads`: those that can compute at once.

    Reading is as fast as the slower of the disk and the threads. An encoded block has fewer bytes to be read, but must be decoded.
    """
    plain = min(rates.disk, read_threads * rates.copying)
    encoded = min(rates.disk * rates.ratio, read_threads * rates.decoding)
    return encoded >= plain


def measured(data: Path, layout: BlockLayout, read_threads: int) -> Rates | None:
    """The rates of the disk that this file is on, and of this processor; None where the file is too small to tell, or the
    file system does not read past its cache. Takes some 0.1 s and twice the memory of a few blocks.
    """
    disk = _disk_rate(data, read_threads)
    return None if disk is None else _rates(disk, layout)


def _rates(disk: float, layout: BlockLayout) -> Rates:
    block = _like_kv(layout)
    ref = BlockRef(bytes(KEY_BYTES), bytes(KEY_BYTES), bytes(layout.token_id_bytes))
    baselines = Baselines(layout, (layout.block_tokens,))
    baselines.learn(block)
    baselines.add(baselines.learned())
    records = {}
    for encodes in (True, False):
        form = RecordFormat(Namespace.of({}), layout, encodes=encodes, baselines=baselines)
        records[encodes] = form, form.pack(ref, block, 0)
    out = np.empty_like(block)

    def rate(form: RecordFormat, record: memoryview) -> float:
        seconds = []
        for _ in range(_REPEATS):
            begin_ns = time.thread_time_ns()
            reason = form.unpack(record, ref, out)
            seconds.append((time.thread_time_ns() - begin_ns) / 1e9)
            assert reason is None, f"a record that was just packed is a miss: {reason}"
        return block.size / max(min(seconds), 1e-9)

    return Rates(
        disk=disk,
        decoding=rate(*records[True]),
        copying=rate(*records[False]),
        ratio=len(records[False][1]) / len(records[True][1]),
    )


def _like_kv(layout: BlockLayout) -> NDArray[np.uint8]:
    """A block that encodes about as well as KV: normally distributed."""
    values = np.random.default_rng(0).standard_normal(layout.block_bytes // layout.itemsize, dtype=np.float32)
    words: NDArray[Any] = values.view(np.uint32)
    if layout.dtype == "float16":
        return values.astype(np.float16).view(np.uint8)
    return (words >> 16).astype(np.uint16).view(np.uint8) if layout.itemsize == 2 else words.view(np.uint8)


def _disk_rate(data: Path, read_threads: int) -> float | None:
    """Bytes a second that come from the disk, not from the system's memory."""
    try:
        file = os.open(data, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = min(os.fstat(file).st_size, _MOST_PROBED_BYTES)
        if size < LEAST_FILE_BYTES:
            return None
        begin = time.monotonic()
        offsets = iter(range(0, size - READ_BYTES + 1, READ_BYTES))
        num_bytes = [0] * read_threads

        def read(number: int) -> None:
            with suppress(OSError):  # of a file system that takes the flag and then reads otherwise
                num_bytes[number] = _read_until(file, offsets, begin + _MOST_PROBE_S)

        threads = []
        with suppress(RuntimeError):  # the system has no more threads
            for number in range(1, read_threads):
                thread = threading.Thread(
                    target=read, args=(number,), name=f"kvtide-probe-{number}", daemon=True
                )
                thread.start()
                threads.append(thread)
        read(0)
        for thread in threads:
            thread.join()
        return sum(num_bytes) / max(time.monotonic() - begin, 1e-9) if any(num_bytes) else None
    finally:
        os.close(file)


def _read_until(file: int, offsets: Iterator[int], end: float) -> int:
    """Read from these places, which other threads take from as well. How many bytes there were."""
    num_bytes = 0
    buffer = huge_pages(READ_BYTES)[:READ_BYTES]
    for offset in offsets:
        num_bytes += os.preadv(file, [buffer], offset)
        if time.monotonic() > end:
            break
    return num_bytes
