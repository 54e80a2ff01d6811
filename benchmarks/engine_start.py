"""One start of an engine with the demo model, from the start of the interpreter on: for `make bench-restart`.

`python -m benchmarks.engine_start FOLDER SINCE`: the disk tier's directory, and what `time.perf_counter` of the process that
starts this one said before. Prints a line of JSON. At the top only the standard library is imported, so that whatever
importing ours and others' takes is taken between the laps.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

LAPS = (
    *("interpreter_s", "import_torch_and_transformers_s", "import_of_their_models_s", "import_ours_s"),
    *("load_model_s", "engine_s"),
)
"""In their order, by the wall; they add up to the whole start."""


def start(folder: Path, since_s: float) -> dict[str, Any]:
    """Seconds by what they are spent on, and the processor time of ours. `since_s`: before the interpreter started."""
    laps: dict[str, float] = {
        "interpreter_s": time.perf_counter() - since_s
    }  # the clock is the system's: Linux
    ours_s, since = 0.0, (time.perf_counter(), time.thread_time())

    def lap(name: str, *, ours: bool = False) -> None:
        nonlocal ours_s, since
        now = time.perf_counter(), time.thread_time()
        laps[name] = now[0] - since[0]
        ours_s += now[1] - since[1] if ours else 0.0
        since = time.perf_counter(), time.thread_time()

    import torch  # noqa: F401 - what is measured
    import transformers  # noqa: F401

    lap("import_torch_and_transformers_s")
    # what our modules name of transformers, which loads it then
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    lap("import_of_their_models_s")
    from engine import Engine, EngineConfig
    from engine.model import load_model

    lap("import_ours_s", ours=True)
    model = load_model("demo", device="cpu", dtype="float32")
    lap("load_model_s")
    config = EngineConfig(device="cpu", disk_path=folder, disk_bytes=1 << 30)
    with Engine(model, config, announce=lambda _: None) as engine:
        lap("engine_s", ours=True)
        assert not any(engine.lookup("Once upon a time").values()), "nothing is cached yet"
    return {**laps, "ours_cpu_s": ours_s}


if __name__ == "__main__":
    print(json.dumps(start(Path(sys.argv[1]), float(sys.argv[2]))))
