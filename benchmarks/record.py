"""`make bench-record`: what recording costs the engine that is recorded.

The thread that computes does nothing for a recording, but all threads share Python's lock. So prompts that are all cached are served with
a recording and without, in turn, by a small model, whose steps hide little; what the recording's own thread takes is CPU time by request
and block; what is dropped when more ends than it can write is counted.
"""

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import command
from engine import EngineConfig, SamplingParams
from engine.engine import Engine
from tiering.cli.environment import environment
from tiering.cli.markdown import gate, table
from tiering.cli.prompts import load
from tiering.recording import Ids, Recording, Served

_PROMPT_TOKENS: Final = 2000
_REQUESTS: Final = 100
_ROUNDS: Final = 8
_BLOCK: Final = 16
_FLOOD: Final = 20_000

_MOST_US: Final = 50.0
"""The thread that computes does nothing for a recording; what is seen of one is what its caches lose."""
_BLOCK_US: Final = 5.0


def served_s(
    engine: Engine, prompts: list[list[int]], folder: Path, *, recorded: bool
) -> tuple[list[float], list[float], float]:
    """Seconds of each request, by the clock and of CPU time of the thread that computes; and of the process, of one in the mean."""
    [loop] = [thread for thread in threading.enumerate() if thread.name == "kvtide-engine"]
    assert loop.ident is not None, "it runs"
    clock = time.pthread_getcpuclockid(loop.ident)
    recording = engine.record(folder / "trace.jsonl") if recorded else None
    began_s = time.process_time()
    by_clock, of_loop = [], []
    for prompt in prompts:
        began = time.perf_counter(), time.clock_gettime(clock)
        engine.generate(prompt, SamplingParams(max_tokens=1))
        by_clock.append(time.perf_counter() - began[0])
        of_loop.append(time.clock_gettime(clock) - began[1])
    if recording is not None:
        recording.close()
    return by_clock, of_loop, (time.process_time() - began_s) / len(prompts)


def beside_requests(folder: Path) -> dict[str, Any]:
    """What requests take with a recording and without, in turn, each first as often as second.

    Of each request by itself, and of all the lower quartile: what else the machine does only ever adds to it.
    """
    model = load("random-tiny", "cpu", 0, _PROMPT_TOKENS + 1)
    random = np.random.default_rng(0)
    prompts = [random.integers(1, model.vocab_size, _PROMPT_TOKENS).tolist()] * _REQUESTS
    config = EngineConfig(block_tokens=_BLOCK, device_bytes="64MiB", host_bytes=0, num_threads=1)
    times: dict[str, dict[bool, list[float]]] = {
        name: {True: [], False: []} for name in ("clock", "loop_cpu", "process_cpu")
    }
    with Engine(model, config, announce=lambda _: None) as engine:
        served_s(engine, prompts, folder, recorded=True)
        for number in range(_ROUNDS):
            for recorded in (True, False) if number % 2 else (False, True):
                by_clock, of_loop, of_all = served_s(engine, prompts, folder, recorded=recorded)
                times["clock"][recorded] += by_clock
                times["loop_cpu"][recorded] += of_loop
                times["process_cpu"][recorded].append(of_all)
    return {f"{name}_us": _added(each[True], each[False]) for name, each in times.items()}


def _added(with_it: list[float], without: list[float]) -> dict[str, float | list[float]]:
    """Microseconds: lower quartiles and their difference, and all three quartiles of both."""
    quartiles = [(1e6 * np.percentile(some, (25, 50, 75))).tolist() for some in (with_it, without)]
    (low_with, *_), (low_without, *_) = quartiles
    return {
        "with": low_with,
        "without": low_without,
        "added": low_with - low_without,
        "quartiles_with": quartiles[0],
        "quartiles_without": quartiles[1],
    }


def of_a_block() -> dict[str, Any]:
    """CPU time of naming a prompt's blocks, by block."""
    ids = Ids(bytes(32), _BLOCK)
    tokens = np.arange(128_000, dtype=np.int32)
    num_blocks, times = len(tokens) // _BLOCK, []
    for _ in range(_ROUNDS):
        began_s = time.process_time()
        assert len(ids.blocks(tokens)) == num_blocks, "each whole block has an id"
        times.append((time.process_time() - began_s) / num_blocks)
    return {"block_us": 1e6 * statistics.median(times), "blocks": num_blocks}


def flooded(folder: Path) -> dict[str, Any]:
    """More requests end at once than can be written: what offering one costs, and what is missing then."""
    tokens = np.arange(_PROMPT_TOKENS, dtype=np.int32)
    with Recording(folder / "flood.jsonl.zst", block_tokens=_BLOCK) as recording:
        now_s = time.monotonic()
        one = Served(arrived_s=now_s, tokens=tokens, prompt_tokens=len(tokens), output_tokens=1)
        began_s = time.thread_time()
        for _ in range(_FLOOD):
            recording.offer(one)
        offered_s = time.thread_time() - began_s
    stats = recording.stats()
    size = (folder / "flood.jsonl.zst").stat().st_size
    return {"offered": _FLOOD, "offer_us": 1e6 * offered_s / _FLOOD, **stats, "file_bytes": size}


def main() -> int:
    """Run all, print it, and write the figures. 1 if a gate does not hold."""
    arguments = command.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="kvtide-bench-") as scratch:
        figures = {
            "requests": beside_requests(Path(scratch)),
            "hashing": of_a_block(),
            "flood": flooded(Path(scratch)),
        }
    added = figures["requests"]["loop_cpu_us"]["added"]
    block = figures["hashing"]["block_us"]
    missing = figures["flood"]["requests"] + figures["flood"]["dropped"] - figures["flood"]["offered"]
    gates = [
        gate(
            "added to a request, CPU time of the thread that computes",
            round(added, 1),
            _MOST_US,
            "us",
            at_most=True,
        ),
        gate("CPU time of a block, beside the loop", round(block, 2), _BLOCK_US, "us", at_most=True),
        gate("requests of a flood neither written nor counted", abs(missing), 0, "", at_most=True),
    ]
    settings = {
        "prompt_tokens": _PROMPT_TOKENS,
        "requests": _REQUESTS,
        "rounds": _ROUNDS,
        "warm_up": 1,
        "seed": 0,
    }
    told = {**figures, "gates": gates, "config": settings, "environment": environment()}
    page = f"# What recording costs\n\n`make bench-record`\n\n{table(gates, ('name', 'value', 'bound', 'unit', 'holds'))}"
    command.publish(arguments.json, told, page)
    return 0 if all(gate["holds"] for gate in gates) else 1


if __name__ == "__main__":
    sys.exit(main())
