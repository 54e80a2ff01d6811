"""The examples of docs/admin.md run as they stand there, against a live engine, and answer what is written after them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from kvstore.admin import AdminConfig, AdminServer, serve
from kvstore.admin.routes import ROUTES
from tests.engine.engines import GREEDY, open_engine

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "admin.md").read_text("utf-8")
EXAMPLES = re.findall(r"```sh\n(.*?)```\n(?:```json\n(.*?)```)?", PAGE, re.DOTALL)
NAMES = [
    f"{number} {script.split('KVTIDE_URL', 1)[1].split()[0]}"
    for number, (script, _) in enumerate(EXAMPLES, 1)
]

BASH = shutil.which("bash") or ""

pytestmark = pytest.mark.skipif(not BASH or shutil.which("curl") is None, reason="needs curl and bash")


@pytest.fixture(scope="module")
def served(demo_model, tmp_path_factory) -> Iterator[AdminServer]:
    """The demo's model, so that each route has been asked of what a reader tries first."""
    with (
        open_engine(demo_model, tmp_path_factory.mktemp("disk"), kv_dtype="bfloat16") as engine,
        serve(engine, AdminConfig(port=0)) as server,
    ):
        _fill(engine)
        yield server


def _fill(engine: Engine) -> None:
    """Two prompts that begin alike, so that there is a tree."""
    captain = "You are the captain of a ship, and asked for advice by her cook. "
    for question in (
        "What is there for breakfast, and who is to peel it?",
        "How long does a biscuit keep at sea?",
    ):
        engine.generate(captain + question, GREEDY)


@pytest.mark.parametrize(("script", "answer"), EXAMPLES, ids=NAMES)
def test_an_example_answers_what_is_written_after_it(served, tmp_path, script, answer):
    done = subprocess.run(
        [BASH, "-euo", "pipefail", "-c", script],
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KVTIDE_URL": served.url,
            "KVTIDE_ADMIN_TOKEN": "not-needed-without-tokens",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    if answer:
        found = json.loads(
            done.stdout[done.stdout.rindex("}{") + 1 :] if "}{" in done.stdout else done.stdout
        )
        assert not list(missing(json.loads(answer), found)), found


def missing(written: Any, found: Any, path: str = "$") -> Iterator[str]:
    """What is written and was not found: fields by name, the first item of lists; values may be others, of the same kind."""
    if isinstance(written, dict):
        if not isinstance(found, dict):
            yield path
            return
        for name, value in written.items():
            if name not in found:
                yield f"{path}.{name}"
            else:
                yield from missing(value, found[name], f"{path}.{name}")
    elif isinstance(written, list):
        if not isinstance(found, list) or (written and not found):
            yield path
        elif written:
            yield from missing(written[0], found[0], f"{path}[0]")
    elif written is not None and found is not None:
        kinds = [int | float if isinstance(each, int | float) else str for each in (written, found)]
        if kinds[0] != kinds[1]:
            yield path


def test_missing_fields_are_found():
    """Else the test above would hold of anything."""
    assert list(missing({"a": [{"b": 1}]}, {"a": [{"c": 1}]})) == ["$.a[0].b"]
    assert list(missing({"a": [1]}, {"a": []})) == ["$.a"]
    assert list(missing({"a": 1}, {"a": "1"})) == ["$.a"]
    assert list(missing({"a": {"b": 1}}, {"a": 1})) == ["$.a"]
    assert not list(missing({"a": [{"b": 1.5}], "c": None}, {"a": [{"b": 2, "d": 3}], "c": "x"}))


def test_every_route_has_an_example():
    scripts = "\n".join(script for script, _ in EXAMPLES)
    asked = {re.sub(r"[?\"].*", "", path) for path in re.findall(r'\$KVTIDE_URL(\S*?)"', scripts)}
    asked |= {path.replace("$KEY", "{key}").replace("requests/1", "requests/{id}") for path in asked}
    asked |= {"/admin/v1/jobs/{id}"} if "$JOB" in scripts else set()
    page = {"/", "/page/{name:.+}"}  # for browsers
    assert {route.path for route in ROUTES} - page <= asked
    assert "-X PATCH" in scripts
    assert "-X DELETE" in scripts
