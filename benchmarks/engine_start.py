"""One start of an engine with the demo model, from the start of the interpreter on: for `make bench-restart`.

`python -m benchmarks.engine_start SINCE MODEL [DISK]`: what `time.perf_counter` of the process that starts this one said
before, the directory of the model, and that of the disk tier. Without the last it loads the model as transformers alone does,
for comparison: what an engine's start takes beyond that is ours, whatever runs beside what. Prints a line of JSON. At
the top only the standard library is imported, so that whatever importing ours and others' takes is taken between the laps.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

LAPS = ("interpreter_s", "imports_s", "rest_s")
"""By the wall, in their order; they add up to all of it."""


def start(since_s: float, model: Path, disk: Path | None) -> dict[str, float]:
    """Seconds by what they are spent on, processor time, and the most memory. `since_s`: before the interpreter started."""
    laps: dict[str, float] = {}
    last_s = since_s  # the clock is the system's: Linux

    def lap() -> None:
        nonlocal last_s
        name = LAPS[len(laps)]
        laps[name] = time.perf_counter() - last_s
        last_s += laps[name]

    lap()
    if disk is None:
        _load(model, lap)
    else:
        _open(model, disk, lap)
    others = resource.getrusage(resource.RUSAGE_CHILDREN)  # that compile
    cpu_s = time.process_time() + others.ru_utime + others.ru_stime
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kB: Linux
    return {**laps, "all_s": last_s - since_s, "cpu_s": cpu_s, "memory_mb": memory_mb}


def _load(model: Path, lap: Callable[[], None]) -> None:
    """What an engine has of transformers, by transformers. Without the garbage collector, as ours sees to that too."""
    gc.disable()
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401 - or it is imported when the model is loaded

    gc.enable()
    gc.collect()
    lap()
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    AutoTokenizer.from_pretrained(model)
    lap()


def _open(model: Path, disk: Path, lap: Callable[[], None]) -> None:
    from engine import Engine, EngineConfig

    lap()
    config = EngineConfig(device="cpu", dtype="float32", disk_path=disk, disk_bytes=1 << 30)
    with Engine(model, config, announce=lambda _: None) as engine:
        assert not any(engine.lookup("Once upon a time").values()), "nothing is cached yet"
        lap()


if __name__ == "__main__":
    since_s, model, *disk = sys.argv[1:]
    print(json.dumps(start(float(since_s), Path(model), Path(disk[0]) if disk else None)))
