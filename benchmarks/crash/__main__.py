"""`make crash`: kill what writes to a disk tier, a thousand times and more, and look at what is left each time.

At the store, a writer without torch is killed with SIGKILL at a random moment of its opening, writing, deleting or syncing;
in one case of two the next writer goes on in the same directory, in the other a reader looks first; after twenty kills
comes a new directory. Through the engine, one that serves, writes and flushes is killed, and another one started. Each time:
it opens, nothing that fails a check or is wrong is served, nothing acknowledged is missing, and the bytes accounted are the
bytes there. Exit status: 0 if all of that held.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.crash.store_level import Blocks, Expected, complaints, killed_once

ROOT = Path(__file__).resolve().parents[2]
_KILLS_A_DIRECTORY = 20
_LATEST_ENGINE_KILL_S = 1.0


def at_the_store(num_kills: int, scratch: Path, seed: int) -> dict[str, Any]:
    """A row of the report."""
    rng, start_s = random.Random(seed), time.monotonic()
    blocks = Blocks(scratch / "first")
    found: list[str] = []
    looks = acknowledged = 0
    directory, expected = scratch / "0", Expected()
    for kill in range(num_kills):
        if kill % _KILLS_A_DIRECTORY == 0:
            shutil.rmtree(directory, ignore_errors=True)
            acknowledged += expected.acknowledged
            directory, expected = scratch / str(kill), Expected()
        killed_once(directory, blocks, expected, rng)
        if rng.random() < 0.5 or (kill + 1) % _KILLS_A_DIRECTORY == 0:
            looks += 1
            found += [f"kill {kill}: {one}" for one in complaints(directory, blocks, expected)]
        if kill % 100 == 99:
            print(f"{kill + 1} of {num_kills} kills, {len(found)} complaints", file=sys.stderr)
    return {
        "level": "store",
        "kills": num_kills,
        "looks": looks,
        "acknowledged": acknowledged + expected.acknowledged,
        "complaints": found,
        "seconds": round(time.monotonic() - start_s, 1),
    }


def through_the_engine(num_kills: int, scratch: Path, seed: int) -> dict[str, Any]:
    """A row of the report."""
    from benchmarks.crash.engine_level import CrashingEngine  # torch, which the writers above do without

    rng, start_s = random.Random(seed), time.monotonic()
    engines = CrashingEngine(scratch)
    found: list[str] = []
    acknowledged = 0
    for kill in range(num_kills):
        directory = scratch / f"engine-{kill}"
        command = [sys.executable, "-m", "benchmarks.crash", "--serve", str(directory)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as serving:
            assert serving.stdout is not None, "it is a pipe"
            told = [serving.stdout.readline()]
            time.sleep(rng.uniform(0, _LATEST_ENGINE_KILL_S))
            serving.kill()
            told += serving.stdout.readlines()
        num_flushed = max((int(line) for line in told if line.endswith("\n")), default=0)
        acknowledged += num_flushed
        found += [f"kill {kill}: {one}" for one in engines.complaints(directory, num_flushed)]
    return {
        "level": "engine",
        "kills": num_kills,
        "looks": num_kills,
        "acknowledged": acknowledged,
        "complaints": found,
        "seconds": round(time.monotonic() - start_s, 1),
    }


def serve(directory: Path) -> None:
    """In a process of its own: an engine that serves until it is killed."""
    from benchmarks.crash.engine_level import CrashingEngine

    with tempfile.TemporaryDirectory() as scratch:
        CrashingEngine(Path(scratch)).serve_for_ever(directory)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="at the store")
    parser.add_argument("--engine-kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the report goes")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    with tempfile.TemporaryDirectory() as folder:
        rows = [at_the_store(arguments.kills, Path(folder), arguments.seed)]
        if arguments.engine_kills:
            rows.append(through_the_engine(arguments.engine_kills, Path(folder), arguments.seed))
    text = json.dumps(rows, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return int(any(row["complaints"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
