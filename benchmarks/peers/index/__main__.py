"""`make index-peers`: kvtide's prefix index beside SGLang's trees and vLLM's hashes, on the same prompts.

Each contender in a process of its own, asked in turns for one sample at a time: processor time of the thread that makes the
calls, warm-up before. A contender that answers another length than it should fails the row, and the run. One that cannot be
installed, or has no such call, is named with the reason.

Peers are installed from the package index the first time: 6 GB unpacked.
"""

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import SYSTEMS, python
from benchmarks.peers.index.contenders import CONTENDERS, Contender, Worker
from benchmarks.peers.index.report import gates, report
from benchmarks.peers.index.rows import Case, cases
from tiering.cli.environment import environment
from tiering.cli.markdown import write

_LONG_US = 200_000
"""Of samples that take so long there are few: each is a great deal of work."""
_FEW = 5


class Contest:
    """The contenders that run, and those that cannot."""

    def __init__(self, stack: ExitStack, names: list[str], environments: Path, seed: int) -> None:
        self.workers: dict[str, Worker] = {}
        self.missing: dict[str, str] = {}
        self.why_not: dict[str, str] = {}
        started: dict[str, Worker] = {}
        for name in names:
            try:
                interpreter = python(CONTENDERS[name].environment, environments)
            except (subprocess.CalledProcessError, OSError) as error:
                self.missing[name] = f"could not be installed: {error}"
            else:
                started[name] = stack.enter_context(Worker(CONTENDERS[name], interpreter, seed))
        for name, worker in started.items():
            try:
                self.workers[name] = worker.begun()
            except RuntimeError as error:
                self.missing[name] = f"could not be started: {error}"
        prompts = {worker.about["prompts"] for worker in self.workers.values()}
        assert len(prompts) <= 1, f"the contenders were given different prompts: {prompts}"

    def load(self, name: str, case: Case) -> dict[str, Worker]:
        """Those that have the case ready, all loading at once. Why the others have not is in `why_not`."""
        self.why_not = dict(self.missing)
        asked = {}
        for contender, worker in self.workers.items():
            if reason := cannot(CONTENDERS[contender], name, case):
                self.why_not[contender] = reason
            else:
                worker.ask("load", name)
                asked[contender] = worker
        ready = {}
        for contender, worker in asked.items():
            try:
                took_s = worker.answer()["load_s"]
            except RuntimeError as error:
                self.why_not[contender] = f"failed: {error}"
            else:
                ready[contender] = worker
                print(f"{name}: {contender} is ready after {took_s} s", flush=True)
        return ready


def cannot(contender: Contender, name: str, case: Case) -> str:
    """Why a contender has no part in a case; empty if it has."""
    if case.kind == "offload" and not contender.offload:
        return "not run: its index of host memory needs the memory itself"
    if name.startswith("leaves") and int(name.split()[1]) > contender.most_leaves:
        return "not run: takes too long to build"
    return ""


def samples(
    workers: dict[str, Worker], number: int, num_calls: int, warm_up: int, repeats: int
) -> dict[str, list[float] | str]:
    """Microseconds a call of one row, by contender, in turns; or, where it failed, a sentence."""
    took: dict[str, list[float]] = {name: [] for name in workers}
    failed: dict[str, str] = {}
    slowest_us = 0.0
    turn = 0
    while turn < warm_up + (repeats if slowest_us < _LONG_US else min(repeats, _FEW)):
        names = [name for name in took if name not in failed]
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            workers[name].ask("sample", number)
            try:
                took_us = workers[name].answer()["us"]
            except RuntimeError as error:
                failed[name] = f"failed: {error}"
                continue
            slowest_us = max(slowest_us, took_us * num_calls)
            if turn >= warm_up:
                took[name].append(took_us)
        turn += 1
    return took | failed


def figures_of(took: list[float] | str) -> dict[str, Any]:
    """Median and spread in microseconds, or why there is none."""
    if isinstance(took, str):
        return {"why_not": took}
    low, *_, high = statistics.quantiles(took, n=10, method="inclusive")
    return {
        "median_us": round(statistics.median(took), 2),
        "p10_us": round(low, 2),
        "p90_us": round(high, 2),
        "samples": len(took),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    names, rows = arguments.systems.split(","), []
    with ExitStack() as stack:
        environments = arguments.envs.expanduser().resolve()
        contest = Contest(stack, names, environments, arguments.seed)
        for name, case in cases(arguments.seed).items():
            if arguments.only not in name:
                continue
            ready = contest.load(name, case)
            for number, row in enumerate(case.rows):
                took = contest.why_not | samples(
                    ready, number, row.num_calls, arguments.warm_up, arguments.repeats
                )
                cells = {contender: figures_of(took[contender]) for contender in names}
                rows.append({"row": row.name, "case": name, "calls": row.num_calls, "cells": cells})
                told = ", ".join(f"{who} {cell.get('median_us', '-')}" for who, cell in cells.items())
                print(f"{row.name}: {told}", flush=True)
        about = {name: worker.about for name, worker in contest.workers.items()}
    systems = {
        name: {
            "title": CONTENDERS[name].title,
            "meaning": CONTENDERS[name].meaning,
            "requirement": SYSTEMS[CONTENDERS[name].environment].requirement,
            **about.get(name, {"why_not": contest.missing.get(name)}),
        }
        for name in names
    }
    return {"systems": systems, "rows": rows, "gates": gates(rows, systems)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--systems", default=",".join(CONTENDERS))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument(
        "--repeats", type=int, default=15, help="samples of each row, five where one takes 0.2 s"
    )
    parser.add_argument("--warm-up", type=int, default=3, help="samples before these")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument(
        "--envs",
        type=Path,
        default=Path("~/.cache/kvtide/peers"),
        help="where the peers' environments are, or go",
    )
    parser.add_argument(
        "--json", type=Path, help="where the figures go; a report of the same name with .md beside it"
    )
    arguments = parser.parse_args()
    start_s = time.monotonic()
    figures = {
        "command": " ".join(["python -m benchmarks.peers.index", *sys.argv[1:]]),
        "environment": environment(),
        "seed": arguments.seed,
        "warm_up": arguments.warm_up,
        "repeats": arguments.repeats,
        **measure(arguments),
    }
    page = report(figures)
    print(page, f"\n{time.monotonic() - start_s:.0f} s")
    write(arguments.json, figures, page)
    failed = [
        cell["why_not"]
        for row in figures["rows"]
        for cell in row["cells"].values()
        if cell.get("why_not", "").startswith("failed")
    ]
    for reason in dict.fromkeys(failed):
        print(reason, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
