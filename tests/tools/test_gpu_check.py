"""`make gpu-check` without a GPU: what it lists, what it exits with, and that its rehearsal runs."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.measurements import MEASUREMENTS
from benchmarks.gpu.shapes import SHAPES
from tools import gpu_check

ROOT = Path(__file__).resolve().parents[2]
EVERY_ROW = [
    name for shape in SHAPES["full"] for each in MEASUREMENTS.values() for name in each.names(shape, "full")
]
GPU = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "gpu_driver": "580.1",
    "torch_cuda": "13.0",
    "cpu": "a CPU",
    "cores": 16,
    "memory_bytes": 2**37,
    "python": "3.12",
    "commit": "abc",
    "versions": {"torch": "2.11.0", "lmdb": None},
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(gpu_check, "environment_here", lambda: ({**GPU, "gpu": None}, None))
    monkeypatch.setattr(gpu_check, "missing", lambda _: [])


@pytest.fixture
def on_gpu(monkeypatch, no_gpu):
    """A machine on which steps are played: `play(name, status, lines, rows)` says how one ends; None is a limit."""
    monkeypatch.setattr(gpu_check, "environment_here", lambda: (GPU, None))
    plays = {}

    def run(step, command, clock, scratch, stop):
        status, lines, rows = plays.get(step.name, (0, [], step.checks))
        if step.measurement is None:
            return (status, 9.0, lines or [f"{name}[cuda] PASSED [ 50%]" for name in step.checks])
        file = Path(command[command.index("--rows") + 1])
        columns = dict.fromkeys(MEASUREMENTS[step.measurement].columns, 0.5)
        more = {"complaint": None, "scattered": True, "layer_groups": 1}
        file.write_text("".join(json.dumps({**columns, **more, "name": name}) + "\n" for name in rows))
        return status, 9.0, lines

    monkeypatch.setattr(gpu_check, "run", run)

    def play(name, status=0, lines=(), rows=()):
        plays[name] = status, list(lines), list(rows)

    return play


def report_in(directory):
    [file] = directory.glob("gpu_h100-80gb-hbm3_*.json")
    return json.loads(file.read_text()), file.with_suffix(".md").read_text()


def first_tests():
    """Of the step of that name."""
    return [name for name in gpu_check.gpu_tests() if not name.startswith(gpu_check.ATTENTION_TESTS)]


def sorted_tests():
    """In the order of their steps."""
    first = first_tests()
    return [*first, *(name for name in gpu_check.gpu_tests() if name not in first)]


def test_without_a_gpu_every_check_is_listed(no_gpu, capsys):
    assert gpu_check.main([]) == 3
    said = capsys.readouterr().out
    tests = gpu_check.gpu_tests()
    assert "tests/gpu/test_stress.py::test_late_and_failing_copies_spoil_nothing" in tests
    reason, *rest = said.splitlines()
    assert reason == "not run: torch 2.11.0 sees no CUDA device"
    assert rest[: len(tests) + len(EVERY_ROW)] == [f"  {name}" for name in [*sorted_tests(), *EVERY_ROW]]
    assert f"0 passed, 0 failed, {len(tests) + len(EVERY_ROW)} not run" in said


def test_so_it_is_without_cupy(no_gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "missing", lambda modules: [name for name in modules if name == "cupy"])
    assert gpu_check.main([]) == 3
    said = capsys.readouterr().out
    assert f"not run: {sys.executable} lacks cupy" in said
    assert f"  {EVERY_ROW[0]}\n" in said


def test_all_that_is_well_is_a_zero(on_gpu, tmp_path, capsys):
    assert gpu_check.main(["--results", str(tmp_path)]) == 0
    report, text = report_in(tmp_path)
    assert report["failed"] == report["not_run"] == {}
    assert report["passed"] == len(gpu_check.gpu_tests()) + len(EVERY_ROW)
    assert [row["name"] for row in report["rows"]["ttft"]] == [n for n in EVERY_ROW if n.startswith("ttft")]
    for part in (
        "NVIDIA H100 80GB HBM3, driver 580.1, CUDA of torch 13.0",
        "torch 2.11.0",
        "--results",
        EVERY_ROW[-1],
    ):
        assert part in text
    assert "in 0 of" in text, "a share of a half is not nine tenths"


def test_what_is_cut_off_is_listed_and_no_zero(on_gpu, tmp_path, capsys):
    names = MEASUREMENTS["ttft"].names("8b", "full")
    on_gpu("ttft 8b", None, rows=names[:5])
    assert gpu_check.main(["--results", str(tmp_path)]) == 3
    report, text = report_in(tmp_path)
    assert list(report["not_run"]) == names[5:]
    assert f"- {names[-1]}: ttft 8b: cut off after 9 s" in text


def test_a_step_that_breaks_has_failed(on_gpu, tmp_path, capsys):
    on_gpu("copies demo", 1, lines=["Traceback", "OutOfMemoryError: no"])
    assert gpu_check.main(["--results", str(tmp_path)]) == 1
    report, _ = report_in(tmp_path)
    assert report["failed"] == {"copies demo": "ended with status 1: OutOfMemoryError: no"}
    assert list(report["not_run"]) == MEASUREMENTS["copies"].names("demo", "full")


def test_a_test_that_fails_or_skips_is_told(on_gpu, tmp_path, capsys):
    first, second, *others = first_tests()
    lines = [f"{first}[two groups] FAILED [ 10%]", f"{second}[cuda] SKIPPED (no flashinfer) [ 20%]"]
    on_gpu("tests", 1, lines=[*lines, *(f"{name} PASSED" for name in others)])
    assert gpu_check.main(["--results", str(tmp_path), "--only", "tests"]) == 1
    report, text = report_in(tmp_path)
    assert report["failed"] == {f"{first}[two groups]": "failed"}
    assert report["not_run"] == {f"{second}[cuda]": "no flashinfer"}
    assert f"- failed: `{first}[two groups]`" in text


def test_an_interruption_keeps_what_there_is(on_gpu, tmp_path, monkeypatch, capsys):
    play = gpu_check.run

    def run(step, command, clock, scratch, stop):
        if step.name == "overlap demo":
            stop._tell()
            return -9, 60.0, ["half of it"]
        return play(step, command, clock, scratch, stop)

    monkeypatch.setattr(gpu_check, "run", run)
    assert gpu_check.main(["--results", str(tmp_path)]) == 3
    report, _ = report_in(tmp_path)
    assert [row["name"] for row in report["rows"]["copies"]] == MEASUREMENTS["copies"].names("demo", "full")
    assert set(EVERY_ROW) - set(MEASUREMENTS["copies"].names("demo", "full")) == set(report["not_run"])
    assert report["failed"] == {}


def test_a_kill_ends_the_measuring_process_too(tmp_path):
    """Or it would keep the GPU."""
    command = [
        sys.executable,
        "-m",
        "tools.gpu_check",
        "--rehearse",
        "--only",
        "ttft",
        "--results",
        str(tmp_path),
    ]
    places = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=places, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "at most" in line:  # it has begun
                process.terminate()
        assert process.wait(60) == 3
    [file] = tmp_path.glob("gpu_cpu_*.json")
    assert json.loads(file.read_text())["steps"][0]["outcome"] == "interrupted"
    assert not [command for command in commands_now() if str(tmp_path) in command]


def commands_now():
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            yield file.read_bytes().decode(errors="replace")


def test_a_second_report_of_a_day_gets_a_number(on_gpu, tmp_path, capsys):
    for _ in range(2):
        gpu_check.main(["--results", str(tmp_path), "--only", "copies"])
    names = sorted(file.stem for file in tmp_path.glob("*.json"))
    assert [name.rpartition("_")[2].count("-") for name in names] == [2, 3]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--results", "/proc/nowhere"], "cannot be written to"),
        (["--results", "README.md"], "cannot be written to"),
        (["--model", "/nonexistent"], "no directory /nonexistent"),
        (["--only", "nonsense"], "none of tests"),
        (["--rehearse", "--quick"], "not allowed with"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(on_gpu, given, words, capsys):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(given)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_tests_that_hang_have_failed(on_gpu, tmp_path, capsys):
    first, *others = first_tests()
    on_gpu("tests", None, lines=[f"{first} PASSED"])
    assert gpu_check.main(["--results", str(tmp_path), "--only", "tests"]) == 1
    report, _ = report_in(tmp_path)
    assert report["failed"] == {"tests": "cut off after 9 s"}
    assert list(report["not_run"]) == others


def test_without_lmdb_what_needs_the_disk_is_left_out(on_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu_check, "missing", lambda modules: [name for name in modules if name in ("lmdb", "pynvml")]
    )
    assert gpu_check.main(["--results", str(tmp_path)]) == 3
    report, _ = report_in(tmp_path)
    assert "the driver's version in the report" in report["not_run"]
    rows = [name for name in EVERY_ROW if name.startswith("decode") or name.endswith(("disk", "restart"))]
    tests = [name for name in gpu_check.gpu_tests() if "test_same_tokens" in name or "test_stress" in name]
    assert {*rows, *tests} == report["not_run"].keys() - {"the driver's version in the report"}
    commands = {step["name"]: step["command"] for step in report["steps"]}
    assert commands["ttft demo"].endswith("--without-disk")
    assert commands["tests"].endswith(
        "--ignore=tests/gpu/test_same_tokens.py --ignore=tests/gpu/test_stress.py"
    )


def test_a_limit_ends_what_a_step_has_started(tmp_path, capsys):
    """And its lines so far are kept."""
    child = "import signal; signal.pause()"
    code = f"import subprocess, sys; print('begun'); subprocess.run([sys.executable, '-c', {child!r}])"
    step = gpu_check.Step(name="long", command=["-c", code], limit_s=1.5, checks=[])
    clock = gpu_check.Clock()
    status, limit_s, lines = gpu_check.run(step, step.command, clock, tmp_path, gpu_check.Stop())
    assert (status, limit_s, lines) == (None, 1.5, ["begun"])
    assert clock.seconds < 60


def test_nothing_begins_when_the_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "BUDGET_S", 0.5)
    step = gpu_check.Step(name="late", command=["-c", "1"], limit_s=3.0, checks=[])
    assert gpu_check.run(step, step.command, gpu_check.Clock(), tmp_path, gpu_check.Stop()) == (None, 0.0, [])


def test_the_rehearsal_runs(tmp_path):
    """One measurement of it; `make gpu-rehearsal` runs all."""
    command = [
        sys.executable,
        "-m",
        "tools.gpu_check",
        "--rehearse",
        "--only",
        "copies",
        "--results",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = tmp_path.glob("gpu_cpu_*.json")
    report = json.loads(file.read_text())
    assert [row["name"] for row in report["rows"]["copies"]] == MEASUREMENTS["copies"].names(
        "tiny", "rehearsal"
    )
    assert "rehearsed on a CPU" in file.with_suffix(".md").read_text()


def test_a_measurement_that_is_not_known_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "tests,tape"])
    assert "'tape'" in capsys.readouterr().err
