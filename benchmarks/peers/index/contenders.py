"""The indexes that are compared, each in a process of its own, and what the rows mean to each."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.peers.environments import QUIET

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Contender:
    """An index, where it comes from, and what is said of it in the report."""

    title: str
    environment: str
    """Its entry in `benchmarks.peers.environments.SYSTEMS`."""
    index: str
    """What makes one in `benchmarks.peers.index.systems.<environment>`."""
    meaning: str
    offload: str = ""
    """Likewise its offload index; empty where it has none of its own that runs without a GPU."""
    most_leaves: int = 10_000
    """Larger trees take it too long to build here."""


CONTENDERS = {
    "kvtide": Contender(
        title="kvtide",
        environment="kvtide",
        index="Index",
        offload="Offload",
        most_leaves=100_000,
        meaning="`RadixIndex.match` and `LRU.touch`; ids of all blocks of the path are answered. Insert: "
        "`RadixIndex.insert`, a slot for each new block, its arrival, a touch. Hold: `Holdings.lease` and `release`, each of "
        "which touches. A request: `Index.admit` and `release`, all of it: what each tier has, what may be explained "
        "afterwards, slots to compute in. Evict: `Index.make_room`, a block at least; what went is remembered. Host "
        "memory: `Index.num_matching`; `Eviction.host_slots` and the demotion of a prompt's blocks.",
    ),
    "sglang-python": Contender(
        title="SGLang RadixCache (Python)",
        environment="sglang",
        index="python_index",
        meaning="the tree in Python. `match_prefix`, which touches; it answers the last node and a length, the slots are not "
        "gathered. Where a match ends within a node it splits the node; in these rows it never does. `insert`, with the "
        "slots of the whole path. `lock` and `unlock` of a path count once a node, not once a block. A request: match, gather the "
        "slots, lock, a page of the allocator, unlock. `evict` frees whole leaves: 512 tokens are the least there is.",
    ),
    "sglang-rust": Contender(
        title="SGLang UnifiedRadixCache (Rust)",
        environment="sglang",
        index="rust_index",
        meaning="the tree that SGLang uses by default, for full attention: the same calls.",
    ),
    "vllm": Contender(
        title="vLLM KVCacheManager, CPUOffloadingManager",
        environment="vllm",
        index="Index",
        offload="Offload",
        meaning="no tree: a hash a block (sha256, the default), chained, and a dict. Match: hashing and "
        "`get_computed_blocks`, without a touch; once more: the hashes are kept with the request. Insert: hashing, look-up, "
        "`allocate_slots`, which takes the blocks found and enters the new ones. Hold: `BlockPool.touch` and `free_blocks`. A "
        "request: hashing, look-up, `allocate_slots`, `free`. Evict: `get_new_blocks` of a full pool; the order is a list "
        "of blocks, and no block knows what follows it. Host memory: `CPUOffloadingManager` with its LRU, hashes known: `lookup` "
        "for each block, `prepare_store`.",
    ),
}


class Worker:
    """A contender's process. Ends with the context."""

    def __init__(self, contender: Contender, interpreter: Path, seed: int) -> None:
        """Start it: `begun` waits for it."""
        module = f"benchmarks.peers.index.systems.{contender.environment}"
        command = [str(interpreter), "-m", "benchmarks.peers.index.worker", module]
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [*command, contender.index, contender.offload, str(seed)],
            cwd=ROOT,
            env={**os.environ, **QUIET},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        self.about: dict[str, Any] = {}

    def begun(self) -> Self:
        """Wait until it can be asked. Raises RuntimeError if it does not get there."""
        self.about = self._answer()
        return self

    def ask(self, what: str, argument: str | int) -> None:
        """Ask for something; `answer` waits for it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({what: argument}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says so

    def answer(self) -> dict[str, Any]:
        """What it says to the last question. Raises RuntimeError if it failed, or has ended."""
        told = self._answer()
        if "error" in told:
            raise RuntimeError(told["error"])
        return told

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("told: "):
                answer: dict[str, Any] = json.loads(line[6:])
                return answer
        status = self._process.wait()
        self._complaints.seek(0)
        last = [line for line in self._complaints.read().splitlines() if line.strip()][-1:]
        raise RuntimeError(f"the process ended with status {status}: {' '.join(last)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._complaints.close()
