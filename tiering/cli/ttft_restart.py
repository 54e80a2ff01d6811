"""The `restart` rows of `kvtide bench ttft`: a process that fills the disk, and others that find it."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engine import Result
from engine.engine import Engine
from tiering.cli.reference import Reference, Tokens
from tiering.cli.ttft_rows import Row
from tiering.cli.ttft_setup import TtftBench, ask, fill, first_use, prompts, settings, suffix


def prefix_file(scratch: str, number: int) -> str:
    """Where transformers' cache of a prefix is kept for the processes to come, so that none has to fill its own."""
    return f"{scratch}/prefix-{number}"


def after_restarts(bench: TtftBench, scratch: str, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows: a process for each repeat finds the prefixes of all lengths, and then transformers are asked there."""
    names = ("restart", "reference_restart") if bench.reference else ("restart",)
    rows = {name: [Row(name, num_tokens) for num_tokens in bench.prefix_tokens] for name in names}
    engine: dict[str, Any] = {}
    tell("a process that fills the disk")
    for _ in _process(bench, scratch, 0, "fill"):
        pass
    for repeat in range(max(bench.repeats)):
        tell(f"restart {repeat + 1} of {max(bench.repeats)}")
        for answer in _process(bench, scratch, repeat, "time"):
            number = answer["number"]
            if "reference" in answer:
                rows["reference_restart"][number].add(*answer["reference"])
                continue
            result, engine = _result(answer["result"]), answer["engine"]
            rows["restart"][number].add(result.timings.ttft_s, result.token_ids, result, answer["between_s"])
    for row in (
        row for number in range(len(bench.lengths)) for row in (rows[name][number] for name in names)
    ):
        yield {**row.as_dict(), "engine": engine}


def _process(bench: TtftBench, scratch: str, repeat: int, phase: str) -> Iterator[Any]:
    """What the process says, line by line."""
    spec = {"bench": dataclasses.asdict(bench), "scratch": scratch, "repeat": repeat, "phase": phase}
    command = [sys.executable, "-m", "tiering", "bench", "ttft-process", json.dumps(spec)]
    with ExitStack() as stack:
        complaints = stack.enter_context(tempfile.TemporaryFile("w+"))
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
        )
        assert process.stdout is not None, "it is a pipe"
        yield from map(json.loads, process.stdout)
        if process.wait():
            complaints.seek(0)
            raise RuntimeError(f"the {phase} process of the restart rows failed:\n{complaints.read()}")


def run_process(spec: str) -> None:
    """One process of the restart rows: print what it finds, a line of JSON for each prefix."""
    given = json.loads(spec)
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given["bench"].items()
    }
    bench = TtftBench(**options)
    model = bench.load()
    prefixes = prompts(bench, model)
    config = bench.engine_config(model, f"{given['scratch']}/restart")
    with Engine(model, config, announce=lambda _: None) as engine:
        if given["phase"] == "fill":
            for prefix in prefixes:
                fill(engine, prefix)
                engine.flush()  # what the next prefix drives out would otherwise be dropped where writing is slow
            return
        first_use(engine, bench)
        for number, _, repeats in bench.lengths:
            if given["repeat"] < repeats:
                behind = suffix(bench, model, given["repeat"], "restart")
                _, _, result, between_s = ask(engine, prefixes[number], behind, bench.new_tokens)
                answer = {"number": number, "result": dataclasses.asdict(result), "between_s": between_s}
                print(json.dumps({**answer, "engine": settings(engine)}), flush=True)
    if bench.reference:
        _refer(bench, prefixes, given["repeat"], given["scratch"])


def _refer(bench: TtftBench, prefixes: Sequence[Tokens], repeat: int, scratch: str) -> None:
    """Print what transformers' own forward takes here behind the same prefixes, with the same suffixes: a process that has
    just begun may be slower than another.
    """
    model = bench.load()
    reference = Reference(model.hf)
    for number, _, repeats in bench.lengths:
        if repeat < repeats:
            kept = prefix_file(scratch, number)  # not there where nothing else was measured
            cache = reference.restore(kept) if Path(kept).exists() else reference.prefill(prefixes[number])
            reference.hit(cache, suffix(bench, model, repeat, "first use"), 1)
            hit = reference.hit(cache, suffix(bench, model, repeat, "restart"), bench.new_tokens)
            print(json.dumps({"number": number, "reference": hit}), flush=True)


def _result(answer: dict[str, Any]) -> Result:
    from engine.results import Sample, Timings, Usage

    samples = tuple(Sample(**sample) for sample in answer["samples"])
    usage, timings = Usage(**answer["usage"]), Timings(**answer["timings"])
    return Result(**{**answer, "samples": samples, "usage": usage, "timings": timings})
