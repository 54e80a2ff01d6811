"""`make gpu-check`: what only a CUDA device can show, in one command, with the interpreter that runs this file.

The tests of tests/gpu, then the measurements of benchmarks/gpu, each in a process of its own with a limit of time, eight
minutes together. What is cut off at a limit, or cannot run, is listed with the reason. It installs and fetches nothing.
docs/gpu.md says what is needed and what comes out.

Exit status: 0 all ran and passed, 1 something failed, 2 wrong options, 3 something was not run (no CUDA device, a package
is missing, a limit, an interruption). Under make, which turns every failure into its own status 2, the 1 or 3 stands in make's last line.
"""

import argparse
import ast
import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.measurements import MEASUREMENTS
from benchmarks.gpu.report import markdown
from benchmarks.gpu.shapes import SHAPES

ROOT = Path(__file__).resolve().parent.parent
FAILED, NOT_RUN = 1, 3
BUDGET_S = 465.0
"""Of everything together; a step gets what is left of it. With what comes before and after it is under eight minutes."""

TESTS = "tests"
ATTENTION_TESTS = "tests/gpu/test_attention.py"
"""A step of their own: FlashInfer may compile for minutes when it is first used."""
NEEDED = ("torch", "transformers", "numpy", "xxhash", "rich", "typer", "pytest")
NEEDED_ON_CUDA = ("cupy",)
NEEDED_FOR_DISK = ("lmdb", "numba", "zstandard")
DISK_TESTS = ("tests/gpu/test_same_tokens.py", "tests/gpu/test_stress.py")
"""What imports these, for disks or for the layers that inject faults."""
NEEDED_FOR_FIGURES = {"pynvml": "the driver's version in the report"}
NEEDED_FOR_TESTS = {"flashinfer": "tests of FlashInfer, which skip themselves"}

LIMITS_S = {"tests": 150, "attention": 60, "copies": 60, "overlap": 60, "ttft": 150, "decode": 60}
STACKS_S = 60
"""What a test may take before the stacks of all threads are printed."""

_OUTCOME = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b(?: \((.*)\))?")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process: what it is called, its arguments to the interpreter, and the checks that it makes."""

    name: str
    command: list[str]
    limit_s: float
    checks: list[str]
    measurement: str | None = None


@dataclass(kw_only=True)
class Report:
    """All that came out. `failed` and `not_run`: why, by what."""

    command: str
    date: str
    size: str
    device: str
    environment: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    tests: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def num_passed(self) -> int:
        """Tests that passed and rows without a complaint."""
        rows = [row for rows in self.rows.values() for row in rows]
        return sum(outcome == "PASSED" for outcome in self.tests.values()) + sum(
            row["name"] not in self.failed for row in rows
        )

    @property
    def status(self) -> int:
        """The exit status."""
        return FAILED if self.failed else NOT_RUN if self.not_run else 0


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model's directory, measured beside the random ones")
    parser.add_argument("--results", type=Path, help="where the report goes; default: benchmarks/results")
    parser.add_argument("--only", help=f"of {', '.join((TESTS, *MEASUREMENTS))}: some, comma-separated")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="fewer and smaller sizes")
    sizes.add_argument(
        "--rehearse",
        action="store_true",
        help="what of it can run on a CPU, at tiny sizes; a report only with --results",
    )
    options = parser.parse_args(given)
    known = (TESTS, *MEASUREMENTS)
    options.only = known if options.only is None else tuple(map(str.strip, options.only.split(",")))
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(known)}")
    if options.model not in (None, "demo") and not Path(options.model).is_dir():
        parser.error(f"--model: there is no directory {options.model}")
    if options.results is None and not options.rehearse:
        options.results = ROOT / "benchmarks" / "results"
    if options.results is not None:
        try:  # or all that was measured would be lost at the end
            options.results.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.results).close()
        except OSError as error:
            parser.error(f"--results: {options.results} cannot be written to ({error})")
    options.size = "rehearsal" if options.rehearse else "quick" if options.quick else "full"
    options.device = "cpu" if options.rehearse else "cuda"
    return options


def missing(modules: Sequence[str]) -> list[str]:
    """Return those modules that this interpreter does not have."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def gpu_tests() -> list[str]:
    """Return the test functions of tests/gpu, found without importing them."""
    found = []
    for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        found += [f"{path.relative_to(ROOT)}::{name}" for name in names if name.startswith("test_")]
    return found


def plan(options: argparse.Namespace) -> list[Step]:
    """Return all steps, what matters most first and the largest shape last."""
    steps = tests_steps(options) if TESTS in options.only else []
    shapes = list(SHAPES[options.size])
    if options.model:
        shapes.insert(1, options.model)
    for shape in shapes:
        measured = [name for name in MEASUREMENTS if name in options.only]
        if shape == options.model:  # its blocks are copied like any others
            measured = [name for name in measured if name in ("ttft", "decode")]
        steps += [measuring_step(options, name, shape) for name in measured]
    return steps


def tests_steps(options: argparse.Namespace) -> list[Step]:
    """Return the steps that run tests/gpu: those for CUDA, or in a rehearsal the same on the CPU."""
    marked = "not gpu" if options.rehearse else "gpu"
    # A warning of some driver's library is shown and fails nothing: this machine's libraries are not known here.
    switches = ["-v", "--color=no", "-p", "no:cacheprovider", "-W", "default"]
    switches += ["-o", f"faulthandler_timeout={STACKS_S}"]
    found = gpu_tests()
    of_attention = [name for name in found if name.startswith(ATTENTION_TESTS)]
    steps = [
        Step(
            name=TESTS,
            command=["-m", "pytest", "tests/gpu", f"--ignore={ATTENTION_TESTS}", "-m", marked, *switches],
            limit_s=LIMITS_S[TESTS],
            checks=[name for name in found if name not in of_attention],
        )
    ]
    if options.device == "cuda":  # none of them runs on a CPU
        steps.append(
            Step(
                name="tests of attention",
                command=["-m", "pytest", ATTENTION_TESTS, "-m", marked, *switches],
                limit_s=LIMITS_S["attention"],
                checks=of_attention,
            )
        )
    return steps


def measuring_step(options: argparse.Namespace, name: str, shape: str) -> Step:
    """Return the step that makes one measurement of one shape."""
    command = ["-m", "benchmarks.gpu", name, "--device", options.device, "--size", options.size]
    return Step(
        name=f"{name} {shape}",
        command=[*command, "--shape", shape],
        limit_s=LIMITS_S[name],
        checks=MEASUREMENTS[name].names(shape, options.size),
        measurement=name,
    )


# --- running ----------------------------------------------------------------------------------------------------------


def environment_here() -> tuple[dict[str, Any], str | None]:
    """Return what this machine is, asked in a process that ends, and why that failed."""
    code = "import json; from tiering.cli.environment import environment; print(json.dumps(environment()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        return {}, f"torch does not start: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, None


def why_nothing_can_run(options: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """Return what this machine is, and the reason why no step can run here, or None."""
    wanted = NEEDED if options.rehearse else (*NEEDED, *NEEDED_ON_CUDA)
    if absent := missing(wanted):
        return {}, f"{sys.executable} lacks {', '.join(absent)}"
    environment, why = environment_here()
    if why is None and not options.rehearse and environment["gpu"] is None:
        why = f"torch {environment['versions']['torch']} sees no CUDA device"
    return environment, why


def leave_out(steps: list[Step], report: Report) -> list[Step]:
    """Return the steps that can run with the packages that are there; note what is left out."""
    for module, what in {**NEEDED_FOR_FIGURES, **NEEDED_FOR_TESTS}.items():
        if missing([module]) and report.device == "cuda":
            report.not_run[what] = f"{module} is not installed"
    absent = missing(NEEDED_FOR_DISK)
    if not absent:
        return steps
    kept = []
    for step in steps:
        out = [name for name in step.checks if needs_disk(step, name)]
        report.not_run |= dict.fromkeys(out, f"{', '.join(absent)} not installed")
        if rest := [name for name in step.checks if name not in out]:
            switches = ["--without-disk"] if step.measurement else [f"--ignore={path}" for path in DISK_TESTS]
            kept.append(replace(step, command=[*step.command, *switches], checks=rest))
    return kept


def needs_disk(step: Step, name: str) -> bool:
    """Whether one of a step's checks does."""
    if step.measurement is None:
        return name.startswith(DISK_TESTS)
    return MEASUREMENTS[step.measurement].needs_disk(name)


class Clock:
    """Seconds since the beginning, in front of every line that is printed."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._start_s

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"{self.seconds:6.1f} s  {text}", flush=True)


class Stop:
    """Whether the whole was told to stop: by Ctrl-C, the end of a terminal, a polite kill. Then what runs is ended at once."""

    def __init__(self) -> None:
        self.told = False
        self._process: subprocess.Popen[str] | None = None

    @contextlib.contextmanager
    def listens(self) -> Iterator[None]:
        """It takes these signals meanwhile."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, self._tell) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _tell(self, *_: object) -> None:
        self.told = True
        if self._process is not None:
            kill(self._process)

    @contextlib.contextmanager
    def ends(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """It is ended with all that it has started, where this is told to stop meanwhile or was before."""
        self._process = process
        try:
            if self.told:
                kill(process)
            yield
        finally:
            self._process = None


def kill(process: subprocess.Popen[str]) -> None:
    """End a process and those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run(
    step: Step, command: list[str], clock: Clock, scratch: Path, stop: Stop
) -> tuple[int | None, float, list[str]]:
    """Run a step, show what it says, and return its status, None if it was cut off, its limit and its lines."""
    limit_s = max(0.0, min(step.limit_s, BUDGET_S - clock.seconds))
    if limit_s < 1.0:
        return None, 0.0, []
    environment = {
        **os.environ,
        "COLUMNS": "250",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
    }
    clock.say(f"{step.name}, at most {limit_s:.0f} s: {shlex.join(['python', *command])}")
    cut = threading.Event()
    lines = []
    with (
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process,
        stop.ends(process),
    ):

        def cut_off() -> None:
            cut.set()
            kill(process)

        timer = threading.Timer(limit_s, cut_off)
        timer.start()
        try:
            assert process.stdout is not None, "it is a pipe"
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if not line.startswith("{"):  # rows go to the report
                    clock.say(f"  {lines[-1]}")
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                kill(process)
    return None if cut.is_set() else status, limit_s, lines


def carry_out(step: Step, clock: Clock, scratch: Path, stop: Stop, report: Report) -> None:
    """Run a step and note what came of it."""
    rows_file = scratch / f"{len(report.steps)}.jsonl"
    command = step.command if step.measurement is None else [*step.command, "--rows", str(rows_file)]
    start_s = clock.seconds
    status, limit_s, lines = run(step, command, clock, scratch, stop)
    outcome = f"cut off after {limit_s:.0f} s" if status is None else f"ended with status {status}"
    if stop.told:
        status, outcome = 0, "interrupted"
    report.steps.append(
        {
            "name": step.name,
            "command": shlex.join(["python", *step.command]),
            "seconds": round(clock.seconds - start_s, 1),
            "limit_s": round(limit_s),
            "outcome": outcome,
        }
    )
    if step.measurement is None:
        note_tests(step, status, outcome, lines, report)
        return
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
    report.rows.setdefault(step.measurement, []).extend(rows)
    report.failed |= {row["name"]: row["complaint"] for row in rows if row.get("complaint")}
    there = {row["name"] for row in rows}
    last = next((line for line in reversed(lines) if line.strip() and not line.startswith("{")), "")
    if status:
        report.failed[step.name] = f"{outcome}: {last.strip()}"
    report.not_run |= {name: f"{step.name}: {outcome}" for name in step.checks if name not in there}


def note_tests(step: Step, status: int | None, outcome: str, lines: list[str], report: Report) -> None:
    """Note each test's outcome, and those that have none."""
    for line in lines:
        if match := _OUTCOME.match(line):
            name, result, reason = match.groups()
            report.tests[name] = result
            if result == "SKIPPED":
                report.not_run[name] = reason or "skipped"
            elif result != "PASSED":
                report.failed[name] = result.lower()
    begun = {name.split("[", 1)[0] for name in report.tests}
    if report.device == "cuda":  # some have no way to run on a CPU
        report.not_run |= {name: f"{step.name}: {outcome}" for name in step.checks if name not in begun}
    if status is None or (status and not report.failed):
        report.failed[step.name] = outcome


# --- what came out ----------------------------------------------------------------------------------------------------


def write(report: Report, directory: Path) -> None:
    """Write the report, and the same for people."""
    gpu = report.environment.get("gpu") or "cpu"
    words = [word for word in re.split(r"[^a-z0-9]+", gpu.lower()) if word not in ("", "nvidia")]
    stem = f"gpu_{'-'.join(words)}_{report.date}"
    taken = len(list(directory.glob(f"{stem}*.json")))  # of the same day
    base = directory / (f"{stem}-{taken + 1}" if taken else stem)
    facts = {**asdict(report), "passed": report.num_passed, "status": report.status}
    base.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    base.with_suffix(".md").write_text(markdown(facts, base.with_suffix(".json").name), encoding="utf-8")
    print(f"written to {base}.json and .md")


def tell(report: Report) -> None:
    """Print what failed and what was not run, each by name, under their reasons."""
    for title, found in (("FAILED", report.failed), ("not run", report.not_run)):
        for why in dict.fromkeys(found.values()):
            print(f"{title}: {why}")
            print("\n".join(f"  {name}" for name, its in found.items() if its == why))
    counts = f"{report.num_passed} passed, {len(report.failed)} failed, {len(report.not_run)} not run"
    print(f"gpu-check: {counts}")


def main(given: Sequence[str] | None = None) -> int:
    """Run what can run, list what cannot, and return the exit status."""
    options = arguments(given)
    stop = Stop()
    clock = Clock()
    environment, why = why_nothing_can_run(options)
    report = Report(
        command=shlex.join(["gpu-check", *(sys.argv[1:] if given is None else given)]),
        date=datetime.now(UTC).date().isoformat(),
        size=options.size,
        device=options.device,
        environment=environment,
    )
    steps = plan(options)
    if why is not None:
        report.not_run |= {name: why for step in steps for name in step.checks}
        tell(report)
        print("docs/gpu.md says what is needed, and how to name an interpreter that has it")
        return report.status
    with stop.listens(), tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        left = leave_out(steps, report)
        while left and not stop.told:
            carry_out(left.pop(0), clock, Path(scratch), stop, report)
        report.not_run |= {name: "interrupted" for step in left for name in step.checks}
        if options.results is not None:
            write(report, options.results)
    tell(report)
    return report.status


if __name__ == "__main__":
    sys.exit(main())
