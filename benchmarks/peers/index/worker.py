"""In a system's own environment: an index is filled, and rows are timed, one sample whenever it is asked for.

    python -m benchmarks.peers.index.worker MODULE INDEX OFFLOAD SEED

INDEX and OFFLOAD name what makes one in the module; OFFLOAD may be "". Requests come as lines of JSON on standard input; an
answer is a line that begins with "told: ".
"""

import gc
import importlib
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import Any

import numpy as np

from benchmarks.peers.index.rows import Call, Case, Row, cases
from benchmarks.workloads_index import OWN_TOKENS, PROMPT_TOKENS, chat, digest, prefixes, run

_CACHES_BYTES = 64 << 20
"""More than a processor's caches hold."""


class Bench:
    """The case that is loaded, and its index."""

    def __init__(self, module: str, index: str, offload: str, seed: int) -> None:
        system = importlib.import_module(module)
        self._makers = {"index": getattr(system, index), "offload": getattr(system, offload, None)}
        self._cases = cases(seed)
        self._case: Case | None = None
        self._index: Any = None
        self._calls = count()
        self._refills = count()
        self._gone_tokens = 0
        self._elsewhere = np.zeros(_CACHES_BYTES, dtype=np.uint8)

    def load(self, name: str) -> dict[str, Any]:
        """Another index in place of the one there was. From then on it is no news to the garbage collector."""
        self._index = None
        gc.unfreeze()
        gc.collect()
        start_s = time.perf_counter()
        self._case = case = self._cases[name]
        self._index = self._makers[case.kind](case.num_blocks)
        case.fill(self._index)
        self._gone_tokens = 0
        gc.collect()
        gc.freeze()
        return {"load_s": round(time.perf_counter() - start_s, 2)}

    def sample(self, number: int) -> dict[str, Any]:
        """Time a row of the case once. Raises AssertionError for a wrong answer."""
        assert self._case is not None, "nothing is loaded"
        row = self._case.rows[number]
        first, *calls = [row.call(self._index, next(self._calls)) for _ in range(row.num_calls + 1)]
        answers = [first()]
        if row.cold:
            spent_ns = sum(self._timed_cold(call, answers) for call in calls)
        else:
            spent_ns = _timed(calls, answers)
        wrong = [tokens for tokens in answers if not row.least_tokens <= tokens <= row.most_tokens]
        assert not wrong, f"{row.name}: it answers {wrong[0]} tokens, not {_bounds(row)}"
        self._index.settle()
        if row.makes_room:
            self._refill(sum(answers))
        return {"us": spent_ns / len(calls) / 1000, "tokens": answers[0]}

    def _timed_cold(self, call: Call, answers: list[int]) -> int:
        self._elsewhere += 1
        return _timed([call], answers)

    def _refill(self, num_tokens: int) -> None:
        assert self._case is not None, "nothing is loaded"
        assert self._case.refill is not None, "rows that make room are of cases that can be filled up"
        self._gone_tokens += num_tokens
        while self._gone_tokens >= OWN_TOKENS:
            self._gone_tokens -= OWN_TOKENS
            self._case.refill(self._index, next(self._refills))


def _timed(calls: list[Call], answers: list[int]) -> int:
    """Processor time of this thread, in ns; the answers are added to those there are."""
    start_ns = time.thread_time_ns()
    answers += [call() for call in calls]
    return time.thread_time_ns() - start_ns


def _bounds(row: Row) -> str:
    if row.least_tokens == row.most_tokens:
        return str(row.least_tokens)
    return f"{row.least_tokens} to {row.most_tokens}"


def about(package: str, seed: int) -> dict[str, Any]:
    """What runs here, and which prompts it is given."""
    versions: dict[str, str | None] = {}
    for name in (package, "numpy", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    prompts = digest([*prefixes(20, seed), run(PROMPT_TOKENS, seed), chat(PROMPT_TOKENS, seed)])
    return {
        "version": versions[package],
        "numpy": versions["numpy"],
        "torch": versions["torch"],
        "prompts": prompts,
    }


def main() -> None:
    module, index, offload, seed = sys.argv[1:]
    bench = Bench(module, index, offload, int(seed))
    tell(about(module.rpartition(".")[2], int(seed)))
    for line in sys.stdin:
        [(what, argument)] = json.loads(line).items()
        try:
            tell(bench.load(argument) if what == "load" else bench.sample(argument))
        except Exception as error:  # noqa: BLE001 - what it is goes into the report
            tell({"error": f"{type(error).__name__}: {error}"})


def tell(what: dict[str, Any]) -> None:
    print("told:", json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
