"""In a system's own environment: a system that does what it is told, a line of JSON at a time.

    python -m benchmarks.peers.ttft.worker ENGINE SETTINGS

Each line of standard input is one call of `protocol.System`, each line of standard output its answer, or the error that
ends this process. The first line is said when the system runs. What the system itself prints goes to standard error.
"""

import dataclasses
import importlib
import json
import os
import sys
import traceback
from typing import IO, Any

from benchmarks.peers.ttft.protocol import Settings, System


def call(system: System, do: str, what: dict[str, Any]) -> dict[str, Any]:
    if do == "prepare":
        return system.prepare(what["row"], what["prefix"], what["other"])
    if do == "first_token":
        return system.first_token(what["prompt"])._asdict()
    if do == "tokenize":
        return {"token_ids": system.tokenize(what["text"])}
    assert do == "close", f"nobody asks for {do!r}"
    system.close()
    return {}


def serve(engine: str, settings: Settings, calls: IO[str], answers: IO[str]) -> int:
    def tell(what: dict[str, Any]) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        system = importlib.import_module(f"benchmarks.peers.ttft.engines.{engine}").start(settings)
        tell(system.facts)
        for line in calls:
            what = json.loads(line)
            tell(call(system, what["do"], what))
            if what["do"] == "close":
                break
    except Exception as error:  # noqa: BLE001 - the row of the report says what it was
        traceback.print_exc()
        tell({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def main() -> int:
    engine, settings = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, also in processes of the system's own
    known = {field.name for field in dataclasses.fields(Settings)}
    told = json.loads(settings)
    assert set(told) <= known, f"settings {told.keys()}, known are {known}"
    return serve(engine, Settings(**told), sys.stdin, answers)


if __name__ == "__main__":
    sys.exit(main())
