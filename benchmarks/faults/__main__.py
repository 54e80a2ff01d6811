"""`make faults`: everything that can go wrong with a disk tier, at the store and through an engine, many times each.

Each try begins with a directory that was left in order. What counts: a block or a reply that is not what it must be
(`served_wrong`), and a request that ends in an error, or a call to the store that ends in anything but an answer or a
StoreError (`requests_failed`). A process that a try ends is counted as well (`processes_ended`), and another goes on with
the next try. Exit status: 0 if nothing wrong was served and nothing failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faults.kinds import KINDS
from benchmarks.faults.tries import LEVELS
from benchmarks.markdown import table

COUNTS = ("requests", "served_wrong", "requests_failed", "hits")
ROOT = Path(__file__).resolve().parents[2]


def work(level: str, kind: str, first: int, end: int) -> None:
    """In a process of its own: the tries [first, end) of a kind, each told on a line when it is over."""
    with tempfile.TemporaryDirectory() as scratch:
        tries = LEVELS[level](Path(scratch))
        print(json.dumps({"ready": True}), flush=True)
        for seed in range(first, end):
            print(json.dumps(asdict(tries.run(KINDS[kind], seed))), flush=True)


def measure(level: str, kind: str, num_tries: int) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {
        "fault": kind,
        "level": level,
        "tries": 0,
        **dict.fromkeys(COUNTS, 0),
        "processes_ended": 0,
    }
    complaints: list[str] = []
    while row["tries"] < num_tries:
        begun = row["tries"]
        for told in _lines(level, kind, begun, num_tries, complaints):
            row["tries"] += 1
            for count in COUNTS:
                row[count] += told[count]
            if told["complaint"]:
                complaints.append(told["complaint"])
        if row["tries"] < num_tries:
            row["tries"] += 1
            row["processes_ended"] += 1
    return {**row, "complaints": complaints[:3]}


def _lines(level: str, kind: str, first: int, end: int, complaints: list[str]) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.faults", "--work", level, kind, str(first), str(end)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if not lines:
        raise RuntimeError(f"{kind} cannot be tried: {done.stderr[-2000:]}")
    if done.returncode:
        complaints.append(f"process ended with {done.returncode}: {done.stderr[-300:]}")
    yield from lines[1:]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=50, help="of each kind, at each level")
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, help="where the rows go; a table of the same name with .md beside it"
    )
    parser.add_argument("--work", nargs=4, metavar=("LEVEL", "KIND", "FIRST", "END"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        level, kind, first, end = arguments.work
        work(level, kind, int(first), int(end))
        return 0
    start_s = time.monotonic()
    jobs = [
        (level, kind) for level in arguments.levels.split(",") for kind in KINDS if arguments.only in kind
    ]
    with ThreadPoolExecutor(arguments.processes) as pool:
        rows = []
        for row in pool.map(lambda job: measure(*job, arguments.tries), jobs):
            rows.append(row)
            bad = row["served_wrong"] or row["requests_failed"] or row["processes_ended"]
            print(f"{'BAD' if bad else 'ok '} {row['level']:7}{row['fault']}", *row["complaints"], flush=True)
    text = table(rows, ("fault", "level", "tries", *COUNTS, "processes_ended"))
    print(text, f"\n{sum(row['tries'] for row in rows)} tries in {time.monotonic() - start_s:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
        arguments.json.with_suffix(".md").write_text(text + "\n")
    return int(any(row["served_wrong"] or row["requests_failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
