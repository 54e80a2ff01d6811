"""`make bench-restart`: how long a cache takes to know again what its disk holds, and an engine to start.

Stores of 100,000 and 1,000,000 blocks of 16 tokens with small payloads, so that the disk does not matter: conversations of 32
blocks behind shared system prompts of 32, and a tree that branches every fourth block. Each is left in order, and opened in
a process of its own, its files in the page cache: when the first lookup was answered, when all was in, the processor time of
that, the longest time that one turn of the thread that drives took, and the memory that a block takes in the end. Then an
engine with the converted demo model starts, with our compiled files and without (`benchmarks.engine_start`), in turns with
a process that loads the model by transformers alone: what an engine takes beyond that is ours. Processor time counts the processes that compile as well.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command
from engine.demo_model import demo_model_dir
from kvstore.block import BlockLayout, Namespace, chain_key
from kvstore.disk import LmdbStore
from kvstore.host import HostSlab
from kvstore.store import BlockRef
from tiering.cache import TieredCache
from tiering.cli.environment import environment
from tiering.cli.markdown import table, write
from tiering.index_config import IndexConfig
from tiering.transfer.cpu import CpuDevice

_LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=1, dtype="float16", block_tokens=16)
_NAMESPACE = Namespace.of({"model": "restart"})
_BATCH_BLOCKS = 16384
_SHARED_PROMPTS = 32
_CHAIN_BLOCKS = 32
_TWIG_BLOCKS = 4
_WAIT_S = 120.0
_BOUNDS_S = {100_000: 0.5, 1_000_000: 5.0}
_FIRST_S = 0.1
_STORES = ["chains:100000", "branching:100000", "chains:1000000"]  # building a large one takes longest
_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("kvstore", "tiering", "engine", "benchmarks")


# --- the stores -------------------------------------------------------------------------------------------------------


def chains(num_blocks: int, rng: np.random.Generator) -> Iterator[list[BlockRef]]:
    """Conversations behind shared system prompts."""
    prompts = [_run(_NAMESPACE.root_key, _CHAIN_BLOCKS, rng) for _ in range(_SHARED_PROMPTS)]
    yield from prompts
    for _ in range(num_blocks // _CHAIN_BLOCKS - _SHARED_PROMPTS):
        yield _run(prompts[rng.integers(_SHARED_PROMPTS)][-1].key, _CHAIN_BLOCKS, rng)


def branching(num_blocks: int, rng: np.random.Generator) -> Iterator[list[BlockRef]]:
    """A tree in which every fourth block is followed by two."""
    ends = [_NAMESPACE.root_key]
    for number in range(num_blocks // _TWIG_BLOCKS):
        twig = _run(ends[number // 2], _TWIG_BLOCKS, rng)
        ends.append(twig[-1].key)
        yield twig


SHAPES = {"chains": chains, "branching": branching}


def _run(key: bytes, num_blocks: int, rng: np.random.Generator) -> list[BlockRef]:
    refs = []
    for tokens in rng.integers(0, 50_000, (num_blocks, _LAYOUT.block_tokens), dtype="<i4"):
        refs.append(BlockRef(chain_key(key, tokens.tobytes()), key, tokens.tobytes()))
        key = refs[-1].key
    return refs


def _opened(folder: Path, num_blocks: int) -> LmdbStore:
    return LmdbStore(
        folder,
        namespace=_NAMESPACE,
        layout=_LAYOUT,
        capacity_bytes=num_blocks * 16 * 4096,  # the records take a small part of that
        min_free_bytes=0,
        compression="off",
    )


def build(folder: Path, shape: str, num_blocks: int, seed: int) -> None:
    """A store of so many blocks that was closed in order."""
    rng, block = np.random.default_rng(seed), np.zeros(_LAYOUT.block_bytes, dtype=np.uint8)
    with _opened(folder, num_blocks) as store:
        waiting: list[BlockRef] = []
        for refs in SHAPES[shape](num_blocks, rng):
            waiting += refs
            if len(waiting) >= _BATCH_BLOCKS:
                store.put_many(waiting, [block] * len(waiting))
                waiting = []
        store.put_many(waiting, [block] * len(waiting))


# --- in a process of its own ------------------------------------------------------------------------------------------


def restart(folder: Path, num_blocks: int) -> dict[str, Any]:
    """Open the store and a cache over it: a row of the report."""
    prompt = np.zeros(64, dtype="<i4")
    before, cpu_s, begun_s = _own_bytes(), time.process_time(), time.perf_counter()
    store = _opened(folder, num_blocks)
    opened_s = time.perf_counter() - begun_s
    config = IndexConfig(
        block_tokens=_LAYOUT.block_tokens,
        device_slots=64,
        host_slots=64,
        disk_bytes=store.capacity_bytes,
        record_bytes=store.max_stored_bytes,
    )
    memories = [HostSlab(64, _LAYOUT.block_bytes) for _ in range(2)]
    cache = TieredCache(
        config,
        root_key=_NAMESPACE.root_key,
        device=CpuDevice(),
        pool=memories[0],
        slab=memories[1],
        store=store,
        wake=lambda: None,
        restore_s=0.0,
    )
    cache.observe(prompt)
    first_s = time.perf_counter() - begun_s
    longest_s, deadline_s = 0.0, begun_s + _WAIT_S
    while cache._index.restoring and time.perf_counter() < deadline_s:  # asked each turn, as no engine would
        turn_s = time.perf_counter()
        cache.pump()
        longest_s = max(longest_s, time.perf_counter() - turn_s)
        if (due_s := cache.deadline_s) is None or due_s > time.monotonic():
            time.sleep(1e-3)  # as a loop that has nothing to compute waits
    all_s, used_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    found = cache.stats()["blocks"]
    assert found == num_blocks, f"{found} of {num_blocks} blocks are known again after {all_s:.1f} s"
    gc.collect()
    taken = _own_bytes() - before
    cache.close()
    return {
        "blocks": found,
        "opened_s": opened_s,
        "first_lookup_s": first_s,
        "all_in_s": all_s,
        "cpu_s": used_s,
        "longest_turn_ms": longest_s * 1e3,
        "bytes_a_block": taken / found,
    }


def _own_bytes() -> int:
    """What this process has in memory that no file is mapped to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


# --- the report -------------------------------------------------------------------------------------------------------


def _in_a_process(module: str, *arguments: object, root: Path = _ROOT) -> dict[str, Any]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled to Python's own code
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=root, env=environ)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _restarts(shape: str, num_blocks: int, repeats: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), shape, num_blocks, seed)
        asked = ("benchmarks.restart", "--restart", folder, "--blocks", num_blocks)
        rows = [_in_a_process(*asked) for _ in range(repeats + 1)][1:]
    figures = {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
    spread = [round(each(row["all_in_s"] for row in rows), 4) for each in (min, max)]
    return {"shape": shape, **figures, "all_in_s_spread": spread}


def _starts(repeats: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(_start(folder), _start(None)) for _ in range(repeats + 1)][1:]
        rows.append(_start_row(pairs, compiled=True))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        for package in _PACKAGES:
            shutil.copytree(_ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        rows.append(_start_row([(_start(folder, root), _start(None))], compiled=False))
    return rows


def _start(folder: str | None, root: Path = _ROOT) -> dict[str, Any]:
    """An interpreter is started, and an engine in it; without a folder only the model, by transformers."""
    given = [demo_model_dir(), *([] if folder is None else [folder])]
    return _in_a_process("benchmarks.engine_start", time.perf_counter(), *given, root=root)


def _start_row(pairs: list[tuple[dict[str, Any], dict[str, Any]]], *, compiled: bool) -> dict[str, Any]:
    """Ours is what an engine's start takes longer than the start beside it that loads the model alone."""
    engine, theirs = (
        {name: [run[name] for run in runs] for name in runs[0]} for runs in zip(*pairs, strict=True)
    )
    ours = {f"ours_{name}": np.subtract(engine[name], theirs[name]) for name in ("cpu_s", "all_s")}
    figures = {
        **engine,
        "theirs_all_s": theirs["all_s"],
        "ours_cpu_s": ours["ours_cpu_s"],
        "ours_s": ours["ours_all_s"],
    }
    spread = [round(float(each(figures["ours_s"])), 3) for each in (min, max)]
    medians = {name: round(float(np.median(values)), 3) for name, values in figures.items()}
    return {"ours_compiled": compiled, **medians, "ours_s_spread": spread}


def gates(restarts: list[dict[str, Any]], starts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is promised, and whether it holds."""
    rows: list[tuple[str, float, float]] = []
    for row in restarts:
        name = f"{row['blocks']:,.0f} blocks, {row['shape']}, files in the page cache"
        if bound_s := _BOUNDS_S.get(int(row["blocks"])):
            rows.append((f"{name}: all in", row["all_in_s"], bound_s))
            rows.append((f"{name}: first lookup", row["first_lookup_s"], _FIRST_S))
    for row in starts:
        if row["ours_compiled"]:
            rows += [("engine start", row["all_s"], 8.0), ("engine start, ours", row["ours_s"], 1.0)]
    return [
        {"name": name, "value": value, "bound": bound, "unit": "s", "holds": value < bound}
        for name, value, bound in rows
    ]


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--stores",
        nargs="*",
        default=_STORES,
        metavar="SHAPE:BLOCKS",
        help=f"shapes are {', '.join(SHAPES)}; blocks a multiple of {_CHAIN_BLOCKS}, chains at least {_SHARED_PROMPTS * _CHAIN_BLOCKS}",
    )
    parser.add_argument("--repeats", type=int, default=3, help="after one that warms up")
    parser.add_argument("--no-engine", action="store_true", help="measure no start of an engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.restart:
        print(json.dumps(restart(arguments.restart, arguments.blocks)))
        return 0
    restarts = []
    for shape, num_blocks in (store.split(":") for store in arguments.stores):
        restarts.append(_restarts(shape, int(num_blocks), arguments.repeats, arguments.seed))
    starts = [] if arguments.no_engine else _starts(arguments.repeats)
    held = gates(restarts, starts)
    page = "\n\n".join(table(rows, list(rows[0])) for rows in (held, restarts, starts) if rows)
    print(page)
    told = ("stores", "repeats", "no_engine", "seed")
    report = {
        **environment(),
        "configuration": {name: getattr(arguments, name) for name in told},
        "warm_up": 1,
        "restarts": restarts,
        "starts": starts,
        "gates": held,
    }
    title = f"# How long a restart takes, and a start\n\n`make bench-restart`, commit {report['commit']}, {report['cpu']}"
    write(arguments.json, report, f"{title}, {report['cores']} cores; files in the page cache.\n\n{page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
