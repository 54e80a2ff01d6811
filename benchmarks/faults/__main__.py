"""`make faults`: everything that can go wrong with a disk tier, at the store and through an engine, many times each.

Each try begins with a directory that was left in order. What counts: a block or a reply that is not what it must be
(`served_wrong`), and a request that ends in an error, or a call to the store that ends in anything but an answer or a
StoreError (`requests_failed`). A process that a try ends is counted as well (`processes_ended`), and so is a try that takes
longer than a limit, whose process is killed (`tries_hung`); another process goes on with the next try. Exit status: 0 if
nothing wrong was served, nothing failed and nothing hung.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faults.kinds import KINDS
from benchmarks.faults.tries import LEVELS
from tiering.cli.markdown import table

COUNTS = ("requests", "served_wrong", "requests_failed", "hits")
ENDS = ("processes_ended", "tries_hung")
ROOT = Path(__file__).resolve().parents[2]
WORKER = (sys.executable, "-m", "benchmarks.faults", "--work")
START_LIMIT_S = 300.0  # imports torch and computes what replies must be
TRY_LIMIT_S = 120.0  # the slowest takes some seconds


def work(level: str, kind: str, first: int, end: int) -> None:
    """In a process of its own: the tries [first, end) of a kind, each told on a line when it is over."""
    with tempfile.TemporaryDirectory() as scratch:
        tries = LEVELS[level](Path(scratch))
        print(json.dumps({"ready": True}), flush=True)
        for seed in range(first, end):
            print(json.dumps(asdict(tries.run(KINDS[kind], seed))), flush=True)


def measure(
    level: str, kind: str, num_tries: int, limit_s: float = TRY_LIMIT_S, worker: Sequence[str] = WORKER
) -> dict[str, Any]:
    """A row of the table. The tries are played by `worker` LEVEL KIND FIRST END: see `work`."""
    row: dict[str, Any] = {"fault": kind, "level": level, "tries": 0, **dict.fromkeys((*COUNTS, *ENDS), 0)}
    complaints: list[str] = []
    while row["tries"] < num_tries:
        command = [*worker, level, kind, str(row["tries"]), str(num_tries)]
        try:
            for told in _told(command, limit_s, complaints):
                row["tries"] += 1
                for count in COUNTS:
                    row[count] += told[count]
                if told["complaint"]:
                    complaints.append(told["complaint"])
            row["processes_ended"] += row["tries"] < num_tries
        except TimeoutError:
            complaints.append(f"try {row['tries']} was not over after {limit_s:g} s")
            row["tries_hung"] += 1
        row["tries"] = min(row["tries"] + 1, num_tries)
    return {**row, "complaints": complaints[:3]}


def _told(command: list[str], limit_s: float, complaints: list[str]) -> Iterator[dict[str, Any]]:
    """What a worker tells of each try. One that takes longer is killed, with a TimeoutError."""
    with (
        tempfile.TemporaryDirectory() as scratch,  # of one that is killed nothing must be left
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "TMPDIR": scratch}, stdout=subprocess.PIPE, stderr=stderr
        ) as process,
    ):
        lines = _lines(process, limit_s)
        try:
            ready = next(lines, None)
            yield from map(json.loads, lines)
        finally:
            process.kill()
            process.wait()
        stderr.seek(0)
        said = stderr.read()
    if ready is None:
        raise RuntimeError(f"{' '.join(command)} does not start: {said[-2000:]}")
    if process.returncode:
        complaints.append(f"process ended with {process.returncode}: {said[-300:]}")


def _lines(process: subprocess.Popen[bytes], limit_s: float) -> Iterator[bytes]:
    """The lines that a process writes. TimeoutError if it neither writes nor ends for so long."""
    assert process.stdout is not None
    rest, wait_s = b"", START_LIMIT_S
    while select.select([process.stdout], [], [], wait_s)[0]:
        if not (piece := os.read(process.stdout.fileno(), 1 << 16)):
            process.wait()
            return
        *whole, rest = (rest + piece).split(b"\n")
        wait_s = limit_s
        yield from whole
    raise TimeoutError


def failed(row: dict[str, Any]) -> bool:
    """Whether a promise was broken."""
    return bool(row["served_wrong"] or row["requests_failed"] or row["tries_hung"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=50, help="of each kind, at each level")
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit-s", type=float, default=TRY_LIMIT_S, help="how long a try may take")
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
        for row in pool.map(lambda job: measure(job[0], job[1], arguments.tries, arguments.limit_s), jobs):
            rows.append(row)
            bad = failed(row) or row["processes_ended"]
            print(f"{'BAD' if bad else 'ok '} {row['level']:7}{row['fault']}", *row["complaints"], flush=True)
    text = table(rows, ("fault", "level", "tries", *COUNTS, *ENDS))
    print(text, f"\n{sum(row['tries'] for row in rows)} tries in {time.monotonic() - start_s:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
        arguments.json.with_suffix(".md").write_text(text + "\n")
    return int(any(map(failed, rows)))


if __name__ == "__main__":
    sys.exit(main())
