"""A writer of a store that is killed at a random moment, and what must be true of the directory afterwards.

The writer says on a pipe what it is about to do and when that is done: what was written to a pipe survives its writer. So
it is known of each block whether it must be there, must not, or may be either.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.faults import tries
from kvstore.disk import LmdbStore
from kvstore.disk.environment import page_rounded
from kvstore.metas import metas_of
from kvstore.store import BlockRef
from kvstore.testing import Block, chain, kv_like, read

NUM_BLOCKS = 96
_LATEST_KILL_S = 0.12
Verb = Literal["put", "delete"]


def open_store(directory: Path) -> LmdbStore:
    """A store of small blocks that syncs as often as it can, so that kills fall into syncs too."""
    return tries.open_store(directory, capacity_bytes=1 << 24, sync_interval_s=0.002)


class Blocks:
    """All blocks that there are: refs, and what they hold, which a key decides."""

    def __init__(self, directory: Path) -> None:
        with open_store(directory) as store:
            self.refs: list[BlockRef] = chain(store, NUM_BLOCKS)
            self.data: list[Block] = kv_like(store, NUM_BLOCKS)


class Expected:
    """What of the blocks must be there, must not be, or may be either, by what the writers have said."""

    def __init__(self) -> None:
        self.may_be = [{False} for _ in range(NUM_BLOCKS)]
        self.acknowledged = 0

    def begun(self, verb: Verb, members: list[int]) -> None:
        for member in members:
            self.may_be[member] = self.may_be[member] | {verb == "put"}

    def ended(self, verb: Verb, members: list[int]) -> None:
        for member in members:
            self.may_be[member] = {verb == "put"}
        self.acknowledged += len(members)

    def hear(self, said: bytes) -> None:
        """Lines of a writer's, the last of which may have been cut off."""
        for line in said.decode().splitlines(keepends=True):
            if line.endswith("\n"):
                when, verb, *members = line.split()
                (self.begun if when == "begin" else self.ended)(verb, [int(member) for member in members])  # type: ignore[arg-type]


def write_for_ever(directory: Path, blocks: Blocks, seed: int, say: Callable[[str], object]) -> None:
    """The writer: puts, replacements and deletions in batches, with syncs and reads between."""
    rng = random.Random(seed)
    with open_store(directory) as store:
        while True:
            verb = rng.choice(("put", "put", "put", "delete"))
            members = rng.sample(range(NUM_BLOCKS), rng.randint(1, 6))
            said = " ".join([verb, *map(str, members)])
            say(f"begin {said}\n")
            if verb == "put":
                store.put_many([blocks.refs[i] for i in members], [blocks.data[i] for i in members])
            else:
                store.delete_many([blocks.refs[i].key for i in members])
            say(f"end {said}\n")
            if rng.random() < 0.1:
                store.sync()
            read(store, [blocks.refs[i] for i in members])


def killed_once(directory: Path, blocks: Blocks, expected: Expected, rng: random.Random) -> None:
    """Start a writer in a process of its own and kill it at a random moment, its opening and its first steps included."""
    hear, say = os.pipe()
    seed, delay_s = rng.randrange(1 << 30), rng.uniform(0, _LATEST_KILL_S)
    child = os.fork()  # this process has one thread, and has nothing of LMDB's open
    if child == 0:
        os.close(hear)
        try:
            write_for_ever(directory, blocks, seed, lambda text: os.write(say, text.encode()))
        finally:
            os._exit(1)
    os.close(say)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(hear, "rb") as pipe:
        expected.hear(pipe.read())
    assert os.WIFSIGNALED(status), f"the writer ended by itself, with {status}"


def complaints(directory: Path, blocks: Blocks, expected: Expected) -> Iterator[str]:
    """What is not as it must be, after a kill."""
    with open_store(directory) as store:
        if store.opening.dropped is not None:
            yield f"started empty: {store.opening.dropped}"
        outcomes, found = read(store, blocks.refs)
        for i, outcome in enumerate(outcomes):
            if outcome.damaged:
                yield f"block {i} fails a check: {outcome.reason}"
            if outcome.hit and not np.array_equal(found[i], blocks.data[i]):
                yield f"block {i} is served wrong"
            if outcome.hit not in expected.may_be[i]:
                yield f"block {i} is {'there' if outcome.hit else 'missing'}, which nobody has asked for"
            expected.may_be[i] = {outcome.hit}
        try:
            store.check()
        except AssertionError as error:
            yield f"check: {error}"
        records = (store.raw().read(meta.key) for meta in metas_of(store))
        real = sum(page_rounded(len(record)) for record in records if record is not None)
        if store.stats().stored_bytes != real:
            yield f"{store.stats().stored_bytes} bytes are accounted, {real} are there"
