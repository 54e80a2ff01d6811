"""In a system's own environment: blocks written, a fault, blocks read, each try told on a line when it is over.

    python -m benchmarks.peers.worker SYSTEM STAGE FAULT SCRATCH FIRST END

does the tries [FIRST, END). Stage `whole` writes and reads in this process; `write` only writes and `read`, in another
process, only reads, each try in the directory of its number under SCRATCH.
"""

import importlib
import json
import os
import random
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.backend import NUM_BLOCKS, Backend, blocks
from benchmarks.peers.faults import FAULTS, Fault


def fill(backend: Backend, seed: int) -> None:
    for number, block in enumerate(blocks(seed)):
        backend.put(number, block)


def damage(fault: Fault, backend: Backend, directory: Path, seed: int, *, close_first: bool) -> None:
    places = [backend.place(number) for number in range(NUM_BLOCKS)]
    if close_first:
        backend.close()
    # The same places for every fault and system, as far as their files are alike.
    fault.damage(directory, places, random.Random(seed))


def read(backend: Backend, seed: int) -> dict[str, Any]:
    """Read everything back. A hit whose bytes are not those that were put is a wrong one."""
    told: dict[str, Any] = dict.fromkeys(("hits", "served_wrong", "missed", "refused", "raised"), 0)
    told["complaint"] = ""
    for number, right in enumerate(blocks(seed)):
        try:
            answer, data = backend.get(number)
        except Exception as error:  # noqa: BLE001 - what it is goes into the report
            told["raised"] += 1
            told["complaint"] = repr(error)
        else:
            told["hits" if answer == "hit" else answer] += 1
            told["served_wrong"] += answer == "hit" and (data is None or not np.array_equal(data, right))
    return told


def opened(system: Any, directory: Path, seed: int) -> dict[str, Any]:
    """Read from a directory that another process left behind."""
    try:
        backend = system.Backend(directory)
    except Exception as error:  # noqa: BLE001 - what it is goes into the report
        return {"raised": NUM_BLOCKS, "complaint": repr(error)}
    told = read(backend, seed)
    backend.close()
    return told


def tell(**what: Any) -> None:
    print("told:", json.dumps(what), flush=True)


def main() -> None:
    name, stage, fault_name, scratch, first, end = sys.argv[1:]
    system, fault = importlib.import_module(f"benchmarks.peers.systems.{name}"), FAULTS[fault_name]
    tell(version=version(name), numpy=np.__version__, torch=version("torch"))
    left_open = []
    for seed in range(int(first), int(end)):
        directory = Path(scratch) / str(seed)
        if stage == "read":
            tell(**opened(system, directory, seed))
            continue
        directory.mkdir()
        backend = system.Backend(directory)
        fill(backend, seed)
        if fault.when == "killed":
            left_open.append(backend)
        else:
            damage(fault, backend, directory, seed, close_first=stage == "write")
        if stage == "whole":
            tell(**read(backend, seed))
            backend.close()
        else:
            tell(written=seed)
    if left_open:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
