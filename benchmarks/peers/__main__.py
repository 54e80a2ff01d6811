"""`make faults-peers`: a few of the faults of `make faults`, against the disk stores that others have released.

Each system as a component, without an engine: blocks are stored, a file is damaged or the process ends, and all blocks
are read back. What counts: blocks served whose bytes are not those that were stored (`served_wrong`). A block that is
not served was missed (the system says it is not there), refused (the system says that reading it failed), or the read
raised; where a try ended the process, its blocks are in none of these columns.

Peers are installed from the package index the first time: 7 GB unpacked.
"""

import argparse
import datetime as dt
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.backend import BLOCK_BYTES, NUM_BLOCKS
from benchmarks.peers.environments import QUIET, SYSTEMS, python
from benchmarks.peers.faults import FAULTS, Fault
from tiering.cli.markdown import table

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ("hits", "served_wrong", "missed", "refused", "raised")


class Lines:
    """What a worker told, try by try, and how it ended."""

    def __init__(self, name: str, interpreter: Path, fault: Fault, scratch: str) -> None:
        self._command = [str(interpreter), "-m", "benchmarks.peers.worker", name]
        self._fault, self._scratch = fault, scratch
        self.versions: dict[str, str] = {}
        self.ended = 0
        self.complaints: list[str] = []

    def stage(self, stage: str, first: int, end: int) -> Iterator[dict[str, Any]]:
        """Run a stage in one process. Raises RuntimeError if it did not even start."""
        done = subprocess.run(
            [*self._command, stage, self._fault.name, self._scratch, str(first), str(end)],
            cwd=ROOT,
            env={**os.environ, **QUIET},
            capture_output=True,
            text=True,
            check=False,
        )
        told = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("told: ")]
        if not told:
            raise RuntimeError(f"{shlex.join(map(str, self._command))}: {done.stderr[-2000:]}")
        self.versions = told[0]
        if done.returncode < 0 and len(told) - 1 < end - first:
            self.ended += 1
            self.complaints.append(f"process ended by signal {-done.returncode}")
        elif len(told) - 1 < end - first:
            raise RuntimeError(f"{self._fault.name}: {done.stderr[-2000:]}")
        yield from told[1:]

    def tries(self, stage: str, num_tries: int) -> Iterator[dict[str, Any]]:
        """All tries of a stage; after one that ends the process another process goes on with the next."""
        first = 0
        while first < num_tries:
            ended = self.ended
            for told in self.stage(stage, first, num_tries):
                first += 1
                yield told
            first += self.ended - ended


def measure(name: str, interpreter: Path, fault: Fault, num_tries: int) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {
        "blocks": num_tries * NUM_BLOCKS,
        **dict.fromkeys(COUNTS, 0),
        "tries_with_wrong": 0,
    }
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        lines = Lines(name, interpreter, fault, scratch)
        if fault.when != "in use":
            written = list(lines.stage("write", 0, num_tries))
            assert len(written) == num_tries, f"{name} wrote {len(written)} of {num_tries} directories"
        for told in lines.tries("whole" if fault.when == "in use" else "read", num_tries):
            for count in COUNTS:
                row[count] += told.get(count, 0)
            row["tries_with_wrong"] += told.get("served_wrong", 0) > 0
            if told["complaint"]:
                lines.complaints.append(told["complaint"].replace(scratch, ""))
    return {
        "system": SYSTEMS[name].title,
        **lines.versions,
        "fault": fault.name,
        "tries": num_tries,
        **row,
        "processes_ended": lines.ended,
        "complaints": lines.complaints[:2],
    }


def hardware() -> str:
    """Cores and processor, as the system names them."""
    facts = dict(
        line.split(":", 1)
        for line in Path("/proc/cpuinfo").read_text().replace("\t", "").splitlines()
        if line
    )
    family = ", ".join(
        f"{name.removeprefix('cpu ')} {facts[name].strip()}" for name in ("cpu family", "model")
    )
    return f"{os.cpu_count()} cores, {facts['model name'].strip()} ({family})"


def by_fault(rows: list[dict[str, Any]]) -> str:
    """The rows for people: a system beside the other, fault by fault."""
    order = list(FAULTS)
    rows = sorted(rows, key=lambda row: order.index(row["fault"]))
    return table(rows, ("fault", "system", "tries", "blocks", *COUNTS, "processes_ended"))


METHOD = f"""\
Each try stores {NUM_BLOCKS} blocks of {BLOCK_BYTES >> 10} KiB (4 layers, bfloat16, 256 tokens) in a directory of its own,
has one thing go wrong at a seeded random place, and reads all of them back into memory that holds junk. In use: through the
object that wrote them. At rest: the object is closed, and another process opens the directory. Killed: the process gets
SIGKILL once all writes are acknowledged, and another one opens it.

Hits are blocks that were served, and served wrong those of them whose bytes are not what was stored. The others were missed
(not there, says the system), refused (reading failed, says the system), or the read raised; the blocks of a try that ended
the process are in none of these columns. Peers keep a file for each block, kvtide one for all: half a file is half a block to
them, and to kvtide half of what it has.

Each peer is its released wheel, unchanged, without an engine around the store: what an engine makes of a read that raises or
is refused was not tried."""


def report(rows: list[dict[str, Any]], facts: dict[str, str]) -> str:
    """The table, and what one has to know to read it."""
    measured = {row["system"]: row for row in rows}
    systems = [
        f"* **{system.title}** {row['version']} (numpy {row['numpy']}, torch {row['torch']}): {system.stored} "
        f"{system.checksum}"
        for system in SYSTEMS.values()
        if (row := measured.get(system.title))
    ]
    run = f"{facts['hardware']}, no GPU, Python {facts['python']}, kvtide {facts['commit']}: `{facts['command']}`"
    title = f"# Damaged files at the stores of others, {facts['date']}"
    return "\n\n".join([title, run, METHOD, "\n".join(systems), by_fault(rows)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tries", type=int, default=50, help="of each fault, for each system")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument(
        "--envs",
        type=Path,
        default=Path("~/.cache/kvtide/peers"),
        help="where the peers' environments are, or go",
    )
    parser.add_argument(
        "--json", type=Path, help="where the rows go; a report of the same name with .md beside it"
    )
    arguments = parser.parse_args()
    environments = arguments.envs.expanduser().resolve()
    interpreters = {name: python(name, environments) for name in arguments.systems.split(",")}
    start_s, rows = time.monotonic(), []
    for fault in FAULTS.values():
        for name, interpreter in interpreters.items():
            if arguments.only in fault.name:
                rows.append(row := measure(name, interpreter, fault, arguments.tries))
                counts = ", ".join(f"{count} {row[count]}" for count in (*COUNTS, "processes_ended"))
                print(f"{name:8} {fault.name}: {counts}", *row["complaints"], flush=True)
    print(by_fault(rows), f"\n{time.monotonic() - start_s:.0f} s")
    if arguments.json:
        git = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
        facts = {
            "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
            "hardware": hardware(),
            "python": sys.version.split()[0],
            "commit": commit.stdout.strip() or "of no known commit",
            "command": f"make faults-peers PEERS_ARGS={shlex.quote(shlex.join(sys.argv[1:]))}",
        }
        arguments.json.write_text(json.dumps([{**row, **facts} for row in rows], indent=1) + "\n")
        arguments.json.with_suffix(".md").write_text(report(rows, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
