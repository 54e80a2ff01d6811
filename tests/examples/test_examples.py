"""The programs in examples/, and those on pages, as a reader runs them."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    f"{page} {number}": program
    for page in ("README.md", "docs/faults.md")
    for number, program in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL), start=1
    )
}


def test_a_faulty_disk_changes_no_token(capsys):
    runpy.run_path(str(ROOT / "examples" / "faulty_disk.py"), run_name="__main__")
    *runs, verdict = [line for line in capsys.readouterr().out.splitlines() if line]
    faulty, sound = [tuple(map(int, re.findall(r"\d+", line))) for line in runs]
    assert verdict == "the same tokens"
    assert faulty[0] > 0
    assert sound[0] == 0
    assert 0 < faulty[1] < sound[1], "the disk served some, and less than a sound one"


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_on_a_page_runs_as_it_stands_there(program, request, monkeypatch, tmp_path):
    """In an empty folder; its own asserts, if it has any, are the test."""
    if '"demo"' in program:
        request.getfixturevalue("demo_at_hand")
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(program, "utf-8")
    runpy.run_path("program.py", run_name="__main__")


def test_every_page_has_its_programs():
    """Else none would be run, and nobody would know."""
    assert list(PROGRAMS) == ["README.md 1", "docs/faults.md 1", "docs/faults.md 2"]
