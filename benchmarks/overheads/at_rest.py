"""What kvtide takes while nobody asks for anything, and before it does anything: an idle engine, and imports."""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engine import Engine, EngineConfig
from engine.model import Model
from kvstore.admin import AdminConfig, serve
from kvstore.admin.windows import EVERY_S
from tiering.cli.host_memory import wait_for_host_memory

IMPORTS = {
    "python": ("-c", "pass"),
    "kvtide --help": ("-m", "tiering", "--help"),
    "import kvstore": ("-c", "import kvstore"),
    "import tiering": ("-c", "import tiering"),
    "import engine": ("-c", "import engine"),
}
_ROOT = Path(__file__).resolve().parents[2]
# The endpoint looks at figures until two looks in a row find the same: the first up to EVERY_S after what happened last, the second
# as long after that, of a millisecond each. Then it rests.
_SETTLE_S = 2 * EVERY_S + 1.0


def idle(model: Model, seconds: float, *, endpoint: bool) -> dict[str, Any]:
    """Processor time of the whole process a second, with an engine that has all tiers and has replied once."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        config = EngineConfig(
            device="cpu", device_bytes="64MiB", host_bytes="64MiB", disk_path=scratch, disk_min_free_bytes=0
        )
        engine = stack.enter_context(Engine(model, config, announce=lambda _: None))
        if endpoint:
            stack.enter_context(serve(engine, AdminConfig(port=0)))
        wait_for_host_memory(engine)
        turns = _counted_turns(engine)
        engine.generate(list(range(1, 100)))
        engine.flush()
        time.sleep(_SETTLE_S)
        turns.clear()
        slept = _sleeps()
        start_s, cpu_s = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        spent_s, lasted_s = time.process_time() - cpu_s, time.perf_counter() - start_s
        woken = _sleeps() - slept
        return {
            "endpoint": endpoint,
            "seconds": round(lasted_s, 2),
            "cpu_ms_a_second": round(spent_s / lasted_s * 1e3, 4),
            "turns_of_the_loop": len(turns),
            "woken": ", ".join(f"{name} {times}" for name, times in sorted(woken.items())) or "nobody",
        }


def _sleeps() -> Counter[str]:
    """How often each thread but this one has gone to sleep, by its name: where one wakes without need, it says which. Linux tells."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found: Counter[str] = Counter()
    for task in Path("/proc/self/task").glob("*/status"):
        facts = dict(line.split(":\t", 1) for line in task.read_text().splitlines())
        thread = int(facts["Pid"])
        if thread != threading.get_native_id():
            found[names.get(thread, facts["Name"])] += int(facts["voluntary_ctxt_switches"])
    return found


def _counted_turns(engine: Engine) -> list[bool]:
    """Grows by one with each turn of the loop, but for that in which it sleeps now."""
    turn, turns = engine._loop._turn, []

    def counted(*, block: bool) -> bool:
        turns.append(block)
        return turn(block=block)

    engine._loop._turn = counted  # type: ignore[method-assign]
    return turns


def start(arguments: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """A new interpreter that does this and ends: processor time, the system's share included, and wall, in seconds."""
    walls_s, cpus_s = [], []
    for _ in range(repeats + 1):
        start_s = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], cwd=_ROOT, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        walls_s.append(time.perf_counter() - start_s)
        cpus_s.append(used.ru_utime + used.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments)} has failed with {process.returncode}")
    return {
        "repeats": repeats,
        "cpu_s": round(statistics.median(cpus_s[1:]), 4),
        "cpu_s_range": [round(min(cpus_s[1:]), 4), round(max(cpus_s[1:]), 4)],
        "wall_s": round(statistics.median(walls_s[1:]), 4),
    }
