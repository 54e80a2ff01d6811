"""`make bench-index`: what the prefix index costs, by the parts that an engine uses.

Trees of 1,000 to 100,000 prefixes, each of them one of 16 system prompts of 1,024 tokens and 512 tokens of its own, and beside
them prompts of 131,072 tokens: in one run of blocks, along 256 nodes with a sibling at each, and with a branch at every block
(`benchmarks.workloads_index`). Timed is the processor time of the thread, in microseconds: a match with the touch that follows
it, a lease and its release, an insertion of 512 tokens, evictions as the core makes them, whole requests. Then what the
garbage collector does to a thread that inserts and evicts, and what a block takes of memory (`benchmarks.index_memory`).
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import command
from benchmarks.index_collector import collector
from benchmarks.index_tree import Tree
from benchmarks.workloads_index import (
    LENGTHS_TOKENS,
    PROMPT_TOKENS,
    Tokens,
    chat,
    extension,
    in_any_order,
    prefixes,
    run,
    turns,
)
from tiering.cli.environment import environment
from tiering.cli.markdown import table
from tiering.residency import Ids, Tier
from tiering.slot_table import SlotTable

SHAPES = ("one run", "256 nodes", "a branch each block")
_SIZES = (1_000, 10_000, 100_000)
_OWN_BLOCKS, _SHARED_BLOCKS = 32, 64
_SAMPLE = 400
"""Prefixes of a tree that are looked up, or inserted anew."""
_ROUNDS = 15
"""In which the smallest and the largest tree are measured in turns."""
_TOGETHER = "a prompt of 1,536 tokens: match, touch, insertion"
_Row = dict[str, Any]

# name, (row's name, its column), bound, unit; the figures are those of the largest tree
_GATES = (
    ("match and touch 128k, one run", ("match 128k, one run", "median_us"), 100, "us"),
    ("match and touch 128k, 256 nodes", ("match 128k, 256 nodes", "median_us"), 100, "us"),
    ("insert 512 below 128k, one run", ("insert 512 below 128k, one run", "median_us"), 120, "us"),
    ("insert 512 below 128k, 256 nodes", ("insert 512 below 128k, 256 nodes", "median_us"), 120, "us"),
    ("lease and release 128k, one run", ("lease and release 128k, one run", "median_us"), 60, "us"),
    ("lease and release 128k, 256 nodes", ("lease and release 128k, 256 nodes", "median_us"), 60, "us"),
    ("evict one leaf", ("evict one", "median_us"), 8, "us"),
    ("evict 1,000, a block", ("evict 1,000, a block", "median_us"), 1.2, "us"),
)


def timed(
    call: Callable[[], Any], repeats: int, *, before: Callable[[], Any] | None = None, warm: int = 3
) -> list[float]:
    """Microseconds of this thread's processor time that each call took, after some that do not count.

    Less what it takes to time a call that does nothing.
    """
    took = []
    for number in range(-warm, repeats):
        if before is not None:
            before()
        start_ns = time.thread_time_ns()
        call()
        end_ns = time.thread_time_ns()
        if number >= 0:
            took.append(max(0.0, (end_ns - start_ns) / 1e3 - _OF_TIMING_US))
    return took


def _of_timing_us() -> float:
    """What a call that does nothing seems to take."""

    def nothing() -> None:
        pass

    took = []
    for _ in range(2000):
        start_ns = time.thread_time_ns()
        nothing()
        took.append((time.thread_time_ns() - start_ns) / 1e3)
    return sorted(took)[len(took) // 2]


_OF_TIMING_US = _of_timing_us()


def row(name: str, took_us: list[float], divided_by: int = 1) -> _Row:
    """Median and spread."""
    quartiles = np.percentile(took_us, [25, 50, 75, 99]) / divided_by
    low, median, high, worst = (round(float(figure), 2) for figure in quartiles)
    return {
        "name": name,
        "median_us": median,
        "p25_us": low,
        "p75_us": high,
        "p99_us": worst,
        "repeats": len(took_us),
    }


def _short(num_tokens: int) -> str:
    return f"{num_tokens // 1024}k"


class Paths:
    """The long prompts of each shape, which are in the tree."""

    def __init__(self, tree: Tree, seed: int) -> None:
        self._tree, self._seed = tree, seed
        self.by_shape: dict[str, dict[int, Tokens]] = {shape: {} for shape in SHAPES}
        for num_tokens in LENGTHS_TOKENS:
            self.by_shape["one run"][num_tokens] = self._enter_run(num_tokens)
            self.by_shape["256 nodes"][num_tokens] = self._enter_turns(num_tokens, number=0, node_tokens=512)
        self.by_shape["a branch each block"][PROMPT_TOKENS] = self._enter_turns(
            PROMPT_TOKENS, number=1, node_tokens=16
        )

    def _enter_run(self, num_tokens: int) -> Tokens:
        tokens = run(num_tokens, self._seed)
        self._tree.enter(tokens, Tier.DEVICE)
        return tokens

    def _enter_turns(self, num_tokens: int, number: int, node_tokens: int) -> Tokens:
        self._tree.enter_all(turns(num_tokens, self._seed, number, node_tokens), Tier.DEVICE)
        return chat(num_tokens, self._seed, number)

    def rows(self, repeats: int) -> list[_Row]:
        """Everything that is done with a path."""
        found: list[_Row] = []
        for shape, paths in self.by_shape.items():
            longest = paths[PROMPT_TOKENS]
            # the first time: nothing remembers the way, and the siblings were taken last
            cold = timed(partial(self._use, longest), 1, warm=0)
            found.append(row(f"match {_short(PROMPT_TOKENS)}, {shape}, the first time", cold))
            for num_tokens, tokens in paths.items():
                took = timed(partial(self._use, tokens), repeats)
                found.append(row(f"match {_short(num_tokens)}, {shape}", took))
            half = longest.copy()
            half[PROMPT_TOKENS // 2] += 1
            found.append(row(f"match half of 128k, {shape}", timed(partial(self._use, half), repeats)))
            found.append(self._insertions(longest, shape, repeats))
            ids = self._tree.radix.match(longest)
            found.append(row(f"lease and release 128k, {shape}", timed(partial(self._hold, ids), repeats)))
        missing = run(PROMPT_TOKENS, self._seed, number=99)
        found.append(row("match none of 128k", timed(lambda: self._use(missing), repeats)))
        return found + self._requests(repeats)

    def matches(self, repeats: int) -> list[_Row]:
        """Matches of the longest ones alone."""
        return [
            row(
                f"match 128k, {shape}",
                timed(partial(self._use, self.by_shape[shape][PROMPT_TOKENS]), repeats),
            )
            for shape in SHAPES[:2]
        ]

    def _requests(self, repeats: int) -> list[_Row]:
        """Whole requests that find all but their last block: admission, which starts nothing, and the end."""
        found = []
        for shape in SHAPES[:2]:
            for num_tokens in (1024, PROMPT_TOKENS):
                tokens = self.by_shape[shape][num_tokens]
                took = timed(partial(self._request, tokens), repeats)
                found.append(row(f"admit and release {_short(num_tokens)}, {shape}", took))
        return found

    def _use(self, tokens: Tokens) -> None:
        self._tree.order.touch(self._tree.radix.match(tokens))

    def _hold(self, path: Ids) -> None:
        self._tree.holdings.lease(path)
        self._tree.holdings.release(path)

    def _request(self, tokens: Tokens) -> None:
        self._tree.index.release(self._tree.admit(tokens))

    def _insertions(self, path: Tokens, shape: str, repeats: int) -> _Row:
        added: list[Ids] = []
        longer = iter([extension(path, self._seed, number) for number in range(repeats + 3)])
        prompts: list[Tokens] = []

        def before() -> None:
            if added:
                self._tree.take_out(added.pop()[: -_OWN_BLOCKS - 1 : -1])
            prompts[:] = [next(longer)]

        took = timed(lambda: added.append(self._tree.radix.insert(prompts[0])), repeats, before=before)
        self._tree.take_out(added.pop()[: -_OWN_BLOCKS - 1 : -1])
        return row(f"insert 512 below 128k, {shape}", took)


def short_prompts(tree: Tree, num_prefixes: int, seed: int) -> list[_Row]:
    """Prompts of 1,536 tokens that the tree has, in any order, and others of which it has the first 1,024."""
    order = in_any_order(num_prefixes, seed)[:_SAMPLE]
    known = iter([next(prefixes(1, seed, number)) for number in order] * 2)
    took = timed(lambda: tree.order.touch(tree.radix.match(next(known))), _SAMPLE, warm=_SAMPLE // 2)
    fresh = iter(list(prefixes(_SAMPLE, seed, 10_000_000)))
    paths: list[Ids] = []
    inserted = timed(lambda: paths.append(tree.radix.insert(next(fresh))), _SAMPLE - 3)
    for path in paths:
        tree.take_out(path[: _SHARED_BLOCKS - 1 : -1])
    return [row("match 1,536", took), row("insert 1,536, 1,024 known", inserted)]


def _make_room(tree: Tree, device: SlotTable, num_blocks: int) -> None:
    """So many blocks leave the device, whose slots these are."""
    tree.index.make_room(device.num_free + num_blocks)


def evictions(tree: Tree, repeats: int) -> list[_Row]:
    """The least recently used leaves, one by one and a thousand at a time: whatever else there is of them stays."""
    device = tree.holdings.slots[Tier.DEVICE]
    one = timed(partial(_make_room, tree, device, 1), 20 * repeats, warm=50)
    many = timed(partial(_make_room, tree, device, 1000), max(3, repeats // 4), warm=1)
    return [row("evict one", one), row("evict 1,000, a block", many, 1000)]


def other_evictions(seed: int, repeats: int) -> list[_Row]:
    """Evictions in trees of 2,000 prefixes that are lower down as well."""
    found = []
    blocks = 2000 * (_OWN_BLOCKS + 1)
    tree = Tree(blocks, blocks)
    tree.enter_all(prefixes(2000, seed), Tier.DEVICE, Tier.HOST)
    device = tree.holdings.slots[Tier.DEVICE]
    for num in (1, 1000):
        took = timed(partial(_make_room, tree, device, num), max(3, repeats // num))
        found.append(row(f"evict {num:,} that host memory has, a block", took, num))
    tree = Tree(1, 1, blocks)
    tree.enter_all(prefixes(2000, seed), Tier.DISK)

    def shrink() -> None:
        tree.holdings.disk_capacity_bytes = tree.holdings.disk_bytes - 64 * (1 << 17)
        tree.eviction.fit_disk()

    found.append(row("evict 64 from disk, a block", timed(shrink, max(3, repeats)), 64))
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = [size for size in _SIZES if size <= arguments.prefixes]
    tree = Tree(max(sizes) * (_OWN_BLOCKS + 1) + 8 * PROMPT_TOKENS // 16)
    stages: dict[int, list[_Row]] = {}
    there = 0
    paths = None
    gc.collect()
    gc.freeze()  # as an engine's process does once it is ready: see docs/architecture.md
    for size in sizes:
        tree.enter_all(prefixes(size - there, arguments.seed, there), Tier.DEVICE)
        there = size
        paths = paths or Paths(tree, arguments.seed)
        stages[size] = paths.rows(arguments.repeats) + short_prompts(tree, size, arguments.seed)
        print(f"{size} prefixes, {len(tree.radix)} blocks: measured", file=sys.stderr, flush=True)
    small = Tree(sizes[0] * (_OWN_BLOCKS + 1) + 8 * PROMPT_TOKENS // 16)
    small.enter_all(prefixes(sizes[0], arguments.seed), Tier.DEVICE)
    assert paths is not None, "there is a size"
    grown = growth((small, Paths(small, arguments.seed), sizes[0]), (tree, paths, there), arguments)
    pauses = collector(tree, arguments.seconds, arguments.seed)
    stages[sizes[-1]] += evictions(tree, arguments.repeats)
    del tree, paths, small
    last = stages[sizes[-1]] + other_evictions(arguments.seed, arguments.repeats)
    memories = [memory(blocks, arguments.seed) for blocks in arguments.blocks]
    figures = {
        "command": " ".join(["python -m benchmarks.index", *sys.argv[1:]]),
        "environment": environment(),
        "configuration": {"sizes": sizes, "max_node_blocks": 128, "block_tokens": 16},
        "seed": arguments.seed,
        "repeats": arguments.repeats,
        "rows": [{"prefixes": size, **each} for size in sizes[:-1] for each in stages[size]]
        + [{"prefixes": sizes[-1], **each} for each in last],
        "growth": grown,
        "collector": pauses,
        "memory": memories,
    }
    return {**figures, "gates": gates(last, figures)}


def growth(
    small: tuple[Tree, Paths, int], large: tuple[Tree, Paths, int], arguments: argparse.Namespace
) -> list[_Row]:
    """What the largest tree takes by what the smallest does, in turns: the median of some rounds."""

    def medians(tree: Tree, paths: Paths, size: int) -> dict[str, float]:
        rows = short_prompts(tree, size, arguments.seed) + paths.matches(arguments.repeats)
        took = {each["name"]: each["median_us"] for each in rows}
        return {_TOGETHER: sum(each for name, each in took.items() if "1,536" in name), **took}

    rounds = [(medians(*small), medians(*large)) for _ in range(_ROUNDS)]
    return [
        {
            "name": name,
            "ratio": round(float(np.median([last[name] / first[name] for first, last in rounds])), 3),
        }
        for name in rounds[0][0]
    ]


def memory(blocks: int, seed: int) -> _Row:
    """What that many take, in a process of its own, which has nothing to give back."""
    command = [sys.executable, "-m", "benchmarks.index_memory", "--blocks", str(blocks), "--seed", str(seed)]
    answer: _Row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def gates(last: list[_Row], figures: dict[str, Any]) -> list[_Row]:
    by_name = {each["name"]: each for each in last}
    found = [(name, by_name[of][column], bound, unit) for name, (of, column), bound, unit in _GATES]
    found += [(f"growth, {each['name']}", each["ratio"], 1.15, "x") for each in figures["growth"]]
    found.append(("longest pause for the collector", figures["collector"]["longest_ms"], 2.0, "ms"))
    found += [
        (f"memory of {each['blocks']:,} blocks", each["bytes_a_block"], 130, "bytes a block")
        for each in figures["memory"]
    ]
    return [
        {"name": name, "value": value, "bound": bound, "unit": unit, "holds": value <= bound}
        for name, value, bound, unit in found
    ]


def report(figures: dict[str, Any]) -> str:
    """For people."""
    machine = figures["environment"]
    sizes = figures["configuration"]["sizes"]
    names = dict.fromkeys(each["name"] for each in figures["rows"])
    cells = {(each["name"], each["prefixes"]): each for each in figures["rows"]}
    rows = []
    for name in names:
        line: dict[str, object] = {"microseconds, median (p99)": name}
        for size in sizes:
            cell = cells.get((name, size))
            line[f"{size:,} prefixes"] = "" if cell is None else f"{cell['median_us']:g} ({cell['p99_us']:g})"
        rows.append(line)
    return "\n\n".join(
        [
            "# What the prefix index costs",
            f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores.",
            table(figures["gates"], ["name", "value", "bound", "unit", "holds"]),
            table(rows, list(rows[0])),
            table(figures["growth"], ["name", "ratio"]),
            table([figures["collector"]], list(figures["collector"])),
            table(figures["memory"], list(figures["memory"][0])) if figures["memory"] else "",
        ]
    )


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--prefixes", type=int, default=100_000, help="of the largest tree: 1000, 10000 or 100000"
    )
    parser.add_argument(
        "--blocks", type=int, nargs="*", default=[10_000_000], help="whose memory is measured"
    )
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of inserting and evicting, for the collector"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = measure(arguments)
    command.publish(arguments.json, figures, report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
