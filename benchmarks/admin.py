"""`make bench-admin`: what the admin endpoint costs the thread that computes.

An engine with a hundred thousand cached prefixes replies without a pause; clients of a process of their own ask the endpoint
so many times a second for tiers, lists of prefixes, single prefixes, explanations, requests and metrics. Traced: how long
each turn of the engine's loop spends on what the endpoint asked of it, by the wall and by the thread's own processor time, and
how many tokens a second the engine generates with the clients and without, in turns.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks import command
from engine import Engine, EngineConfig, SamplingParams
from kvstore.admin import AdminConfig, serve
from kvstore.block import chain_key
from kvstore.disk import LmdbStore
from kvstore.store import BlockRef
from tiering.cli.environment import environment
from tiering.cli.markdown import table
from tiering.cli.prompts import load

_BATCH_BLOCKS = 2048
_SHARED_BLOCKS = 8  # of a system prompt
_PUBLIC_PROMPTS = 50


# --- the clients, in a process of their own ---------------------------------------------------------------------------


async def ask(url: str, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Ask at this rate whether answers have come or not; how long each took, by what was asked."""
    rng = random.Random(seed)
    took_s: dict[str, list[float]] = {}
    statuses: Counter[int] = Counter()
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=30)) as session:
        async with session.get("/admin/v1/prefixes", params={"flat": "true", "limit": "500"}) as answer:
            keys = [row["key"] for row in (await answer.json())["rows"]]

        async def one(kind: str) -> None:
            start_s = time.perf_counter()
            async with _request(session, kind, rng, keys) as answer:
                await answer.read()
            took_s.setdefault(kind, []).append(time.perf_counter() - start_s)
            statuses[answer.status] += 1

        begun, start_s = set(), time.perf_counter()
        kinds = ["tiers", "list", "run", "explain", "requests", "metrics"]
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start_s + number / rate - time.perf_counter()))
            [kind] = rng.choices(kinds, [25, 30, 15, 20, 5, 5])
            begun.add(task := asyncio.create_task(one(kind)))
            task.add_done_callback(begun.discard)
        await asyncio.gather(*begun)
        asked_s = time.perf_counter() - start_s
    figures = {
        kind: {"asked": len(times), **{f"p{q}_ms": _ms(np.percentile(times, q)) for q in (50, 99)}}
        for kind, times in sorted(took_s.items())
    }
    return {
        "per_s": round(sum(map(len, took_s.values())) / asked_s, 1),
        "statuses": statuses,
        "kinds": figures,
    }


def _request(session: aiohttp.ClientSession, kind: str, rng: random.Random, keys: list[str]) -> Any:
    if kind == "list":
        order = rng.choice(["recent", "oldest", "hits", "blocks"])
        query = {"flat": "true", "order": order, "offset": str(rng.randrange(0, 50_000)), "limit": "50"}
        return session.get("/admin/v1/prefixes", params=query)
    if kind == "run":
        return session.get(f"/admin/v1/prefixes/{rng.choice(keys)}")
    if kind == "explain":
        prompt = [1 + rng.randrange(500) for _ in range(rng.choice([64, 512, 3000]))]
        return session.post("/admin/v1/explain", json={"token_ids": prompt})
    paths = {"tiers": "/admin/v1/tiers", "requests": "/admin/v1/requests", "metrics": "/metrics"}
    return session.get(paths[kind])


# --- the engine -------------------------------------------------------------------------------------------------------


class Trace:
    """How long the engine's loop spends on others' work: one figure for each turn in which there was any."""

    def __init__(self, engine: Engine) -> None:
        self.on = False
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        cache = engine._cache
        cache._errands.run = self._timed(cache._errands.run)  # type: ignore[method-assign]
        cache.observe = self._timed(cache.observe)  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            answer = call(*arguments)
            if self.on and answer:
                self.wall_s.append(time.perf_counter() - wall_s)
                self.cpu_s.append(time.thread_time() - cpu_s)
            return answer

        return timed


def fill(path: Path, engine: Engine, num_prefixes: int, seed: int) -> None:
    """Prompts of a few blocks, behind some system prompts, on a disk that an engine is going to find."""
    rng = np.random.default_rng(seed)
    with LmdbStore(
        path, namespace=engine.namespace, layout=engine.layout, capacity_bytes=8 << 30, min_free_bytes=0
    ) as store:
        size = store.layout.block_tokens

        def run(parent: bytes, num_blocks: int) -> list[BlockRef]:
            refs = []
            for _ in range(num_blocks):
                tokens = rng.integers(1, 500, size).astype("<i4").tobytes()
                refs.append(BlockRef(chain_key(parent, tokens), parent, tokens))
                parent = refs[-1].key
            return refs

        shared = [run(store.namespace.root_key, _SHARED_BLOCKS) for _ in range(_PUBLIC_PROMPTS)]
        refs = [ref for one in shared for ref in one]
        for number in range(num_prefixes):
            refs += run(shared[number % _PUBLIC_PROMPTS][-1].key, 1 + number % 3)
        block = np.zeros(store.layout.block_bytes, dtype=np.uint8)
        for start in range(0, len(refs), _BATCH_BLOCKS):
            some = refs[start : start + _BATCH_BLOCKS]
            store.put_many(some, [block] * len(some))


def tokens_per_s(engine: Engine, seconds: float, stopped: threading.Event) -> float:
    """Generate without a pause."""
    before, start_s = engine.stats()["engine"]["generated_tokens"], time.perf_counter()
    stopped.wait(seconds)
    generated: int = engine.stats()["engine"]["generated_tokens"] - before
    return generated / (time.perf_counter() - start_s)


def _generate(engine: Engine, stopped: threading.Event) -> None:
    rng = np.random.default_rng(1)
    while not stopped.is_set():
        prompts = [rng.integers(1, 500, 200).tolist() for _ in range(4)]
        engine.generate(prompts, SamplingParams(max_tokens=100, ignore_eos=True))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    model = load("random-tiny", "cpu", 0, 4096)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "disk_path": Path(folder) / "kv",
            "disk_bytes": "16GiB",
            "disk_min_free_bytes": 0,
            "device_bytes": "64MiB",
            "host_bytes": "64MiB",
            "num_threads": 1,
        }
        with Engine(model, EngineConfig(**settings), announce=lambda _: None) as engine:
            pass
        fill(settings["disk_path"], engine, arguments.prefixes, seed=0)
        stopped = threading.Event()
        with (
            Engine(model, EngineConfig(**settings), announce=lambda _: None) as engine,
            serve(engine, AdminConfig(port=0, max_requests_per_s=0)) as server,
        ):
            num_blocks = engine.stats()["cache"]["blocks"]
            trace = Trace(engine)
            busy = threading.Thread(target=_generate, args=(engine, stopped))
            busy.start()
            rows = [
                _turn(engine, trace, server.url, arguments, stopped, number)
                for number in range(arguments.turns)
            ]
            stopped.set()
            busy.join()
    return {
        "command": " ".join(["python -m benchmarks.admin", *sys.argv[1:]]),
        "environment": environment(),
        "prefixes": arguments.prefixes,
        "blocks": num_blocks,
        "rate": arguments.rate,
        "seconds": arguments.seconds,
        "loop_wall_ms": _figures(trace.wall_s),
        "loop_cpu_ms": _figures(trace.cpu_s),
        "rows": rows,
    }


def _turn(
    engine: Engine,
    trace: Trace,
    url: str,
    arguments: argparse.Namespace,
    stopped: threading.Event,
    number: int,
) -> dict[str, Any]:
    """Some time alone, then as long with clients."""
    alone = tokens_per_s(engine, arguments.seconds / 4, stopped)
    command = [sys.executable, "-m", "benchmarks.admin", "--url", url, "--seed", str(number)]
    command += ["--rate", str(arguments.rate), "--seconds", str(arguments.seconds)]
    trace.on = True
    start_s, before = time.perf_counter(), engine.stats()["engine"]["generated_tokens"]
    clients = subprocess.run(command, check=True, capture_output=True, text=True)
    asked = (engine.stats()["engine"]["generated_tokens"] - before) / (time.perf_counter() - start_s)
    trace.on = False
    return {
        "tokens_per_s_alone": round(alone, 1),
        "tokens_per_s_asked": round(asked, 1),
        **json.loads(clients.stdout),
    }


def _figures(times_s: list[float]) -> dict[str, float]:
    quantiles = {f"p{q}": _ms(np.percentile(times_s, q)) for q in (50, 90, 99, 99.9)}
    return {"turns": len(times_s), **quantiles, "max": _ms(max(times_s)), "sum": _ms(sum(times_s))}


def _ms(time_s: float) -> float:
    return round(float(time_s) * 1e3, 3)


def report(figures: dict[str, Any]) -> str:
    """For people."""
    times = [
        {"of the loop's turns with others' work, ms": name, **figures[key]}
        for name, key in (("wall", "loop_wall_ms"), ("the thread's own processor time", "loop_cpu_ms"))
    ]
    kinds = [
        {"turn": number, "asked for": kind, **row}
        for number, turn in enumerate(figures["rows"], start=1)
        for kind, row in turn["kinds"].items()
    ]
    speeds = [
        {
            "turn": number,
            **{name: turn[name] for name in ("per_s", "tokens_per_s_alone", "tokens_per_s_asked")},
        }
        for number, turn in enumerate(figures["rows"], start=1)
    ]
    machine = figures["environment"]
    return (
        "\n\n".join(
            [
                "# What the admin endpoint costs the engine's loop",
                (
                    f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores: "
                    f"{figures['blocks']} blocks cached, {figures['rate']:g} requests a second."
                ),
                table(times, list(times[0])),
                table(speeds, list(speeds[0])),
                table(kinds, list(kinds[0])),
            ]
        )
        + "\n"
    )


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of asking, in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prefixes", type=int, default=100_000)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.url is not None:
        print(json.dumps(asyncio.run(ask(arguments.url, arguments.rate, arguments.seconds, arguments.seed))))
        return 0
    figures = measure(arguments)
    command.publish(arguments.json, figures, report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
