"""The programs in examples/, and those on pages, as a reader runs them."""

import re
import runpy
from pathlib import Path

import pytest

from engine import EngineConfig, SamplingParams
from engine.engine import Engine
from engine.model import random_model
from kvstore.testing.laws import LAWS
from tests.engine.families import CASES
from tests.engine.naive import tokens

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    f"{page} {number}": program
    for page in ("README.md", "docs/faults.md", "docs/admin.md")
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


def test_the_readmes_example_shows_the_hit_that_is_written_after_it(
    demo_at_hand, monkeypatch, tmp_path, capsys
):
    """And the reply; run once more it finds the first prompt on disk."""
    written = re.search(
        r"```python\n.*?```\n```\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert written
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAMS["README.md 1"], "utf-8")
    runpy.run_path("program.py", run_name="__main__")
    assert capsys.readouterr().out == written[1]
    runpy.run_path("program.py", run_name="__main__")
    assert capsys.readouterr().out == written[1].replace("'disk': 0", "'disk': 48", 1)


def test_every_page_has_its_programs():
    """Else none would be run, and nobody would know."""
    assert list(PROGRAMS) == ["README.md 1", "docs/faults.md 1", "docs/faults.md 2", "docs/admin.md 1"]


def test_a_store_of_ones_own_keeps_the_laws(capsys):
    runpy.run_path(str(ROOT / "examples" / "sqlite_store.py"), run_name="__main__")
    assert capsys.readouterr().out == f"{len(LAWS)} laws hold\n"


def test_an_engine_uses_a_store_of_ones_own(tmp_path):
    """As docs/writing-a-store.md says: in place of the one that it has opened, and after a restart."""
    sqlite_store = runpy.run_path(str(ROOT / "examples" / "sqlite_store.py"))["SqliteStore"]

    def mine(store):
        store.close()
        return sqlite_store(
            tmp_path / "kv.sqlite",
            namespace=store.namespace,
            layout=store.layout,
            capacity_bytes=store.capacity_bytes,
        )

    model, prompt = random_model(CASES["llama"].config()), tokens(1, 100)
    config = EngineConfig(
        device_bytes="4MiB", host_bytes="1MiB", disk_path=tmp_path / "kv", disk_bytes="4MiB", load="always"
    )
    with Engine(model, config, wrap_store=mine) as engine:
        cold = engine.generate(prompt, SamplingParams(max_tokens=5))
    with Engine(model, config, wrap_store=mine) as engine:
        found = engine.generate(prompt, SamplingParams(max_tokens=5))
    assert found.usage.cached_by_tier["disk"] == 96
    assert found.token_ids == cold.token_ids
