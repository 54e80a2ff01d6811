"""The programs in examples/ and in docs/, as a reader runs them."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_faulty_disk_changes_no_token(capsys):
    runpy.run_path(str(ROOT / "examples" / "faulty_disk.py"), run_name="__main__")
    *runs, verdict = [line for line in capsys.readouterr().out.splitlines() if line]
    faulty, sound = [tuple(map(int, re.findall(r"\d+", line))) for line in runs]
    assert verdict == "the same tokens"
    assert faulty[0] > 0
    assert sound[0] == 0
    assert 0 < faulty[1] < sound[1], "the disk served some, and less than a sound one"


def test_the_store_of_the_page_on_faults_runs_as_it_stands_there(tmp_path):
    """Its asserts are the test."""
    page = (ROOT / "docs" / "faults.md").read_text("utf-8")
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "assert" in programs[0]
    (tmp_path / "program.py").write_text(programs[0], "utf-8")
    runpy.run_path(str(tmp_path / "program.py"))
