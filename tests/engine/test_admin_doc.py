"""The examples of docs/admin.md run as they stand there, in their order, against a live engine that nobody has asked anything.

They answer what is written after them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import EngineConfig
from engine.engine import Engine
from kvstore.admin import AdminConfig, AdminServer, serve
from kvstore.admin.routes import ROUTES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "admin.md").read_text("utf-8")
EXAMPLES = re.findall(r"```sh\n(.*?)```\n(?:```json\n(.*?)```)?", PAGE, re.DOTALL)
[SETTINGS] = [tomllib.loads(each)["engine"] for each in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
NAMES = [
    f"{number} {script.split('KVTIDE_URL', 1)[1].split()[0]}"
    for number, (script, _) in enumerate(EXAMPLES, 1)
]

BASH = shutil.which("bash") or ""

pytestmark = pytest.mark.skipif(not BASH or shutil.which("curl") is None, reason="needs curl and bash")


@pytest.fixture(scope="module", params=["disk", "no disk"])
def served(request, demo_model, tmp_path_factory) -> Iterator[AdminServer]:
    """The demo's model with the page's own settings, as it is right after the start; also as it is without a disk."""
    settings = dict(SETTINGS)
    if request.param == "disk":
        settings |= {"disk_path": tmp_path_factory.mktemp("disk"), "disk_min_free_bytes": 0}
    else:
        del settings["disk_path"]
    with (
        Engine(demo_model, EngineConfig(**settings), announce=lambda _: None) as engine,
        serve(engine, AdminConfig(port=0)) as server,
    ):
        yield server


@pytest.mark.parametrize(("script", "answer"), EXAMPLES, ids=NAMES)
def test_an_example_answers_what_is_written_after_it(served, request, tmp_path, script, answer):
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
        written = json.loads(answer)
        if "disk" in written and request.node.callspec.params["served"] == "no disk":
            assert found["disk"] is None
            del written["disk"]
        assert not list(missing(written, found)), found


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
    asked |= {
        path.replace("$KEY", "{key}").replace("requests/1", "requests/{id}").replace("/captain", "/{cache}")
        for path in asked
    }
    asked |= {path.replace("tenants/acme", "tenants/{tenant}") for path in asked}
    asked |= {"/admin/v1/jobs/{id}"} if "$JOB" in scripts else set()
    page = {"/", "/page/{name:.+}"}  # for browsers
    assert {route.path for route in ROUTES} - page <= asked
    assert "-X PATCH" in scripts
    assert "-X DELETE" in scripts


def test_keys_and_digests_are_written_in_full():
    """Who copies one that is cut off gets 400."""
    named = re.findall(r'"(?:key|parent|digest)": "([^"]*)"', PAGE)
    assert named
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in named)
