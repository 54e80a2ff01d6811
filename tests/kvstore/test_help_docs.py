"""docs/troubleshooting.md and docs/logs.md leave nothing out that there is, and name nothing that there is not."""

import ast
import json
import logging
import re
from pathlib import Path

import pytest

from kvstore import MissReason
from kvstore.json_logs import JsonFormatter
from kvstore.reports import DifferenceKind

ROOT = Path(__file__).resolve().parents[2]
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LOGS = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")


def section(text, title):
    """What stands below a heading, down to the next of its rank."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no section {title!r}"
    return found.group(2)


def rows(text):
    """The cells of a table's rows, by the first; it may name several things."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            first, *rest = [cell.strip() for cell in line.strip("|").split("|")]
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", first), rest)
    return found


# --- troubleshooting ------------------------------------------------------------------------------------------------


def test_it_begins_with_what_people_ask_first():
    assert re.findall(r"^## (.*)", TROUBLE, re.MULTILINE)[0] == "I see 0 cached tokens"


def test_every_reason_is_explained_with_what_to_do():
    told = rows(section(TROUBLE, "Reasons"))
    assert set(told) == {reason.value for reason in MissReason}
    assert all(len(cells) == 2 and all(cell.endswith(".") for cell in cells) for cells in told.values())


def test_every_difference_is_explained_with_what_to_do():
    told = rows(section(TROUBLE, "Differences"))
    assert set(told) == {kind.value for kind in DifferenceKind}
    assert all(len(cells) == 2 and all(cells) for cells in told.values())


@pytest.mark.parametrize("page", [TROUBLE, LOGS], ids=["troubleshooting", "logs"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page):
        file, _, anchor = target.partition("#")
        assert not file or (ROOT / "docs" / file).exists(), target
        if not file:
            assert anchor in {title.lower() for title in re.findall(r"^#+ (.*)", page, re.MULTILINE)}


def test_sections_that_the_tables_send_to_exist():
    titles = re.findall(r"^## (.*)", TROUBLE, re.MULTILINE)
    sent = re.findall(r'[Ss]ee "([^"]+)"', TROUBLE)
    assert sent
    assert set(sent) <= set(titles)


def test_settings_that_are_named_exist():
    """Of an engine: who lowers a setting that there is not has lost an afternoon."""
    source = (ROOT / "engine" / "config.py").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:host|disk|device|max|ttl|load)_[a-z_]+)`", TROUBLE))
    of_others = {"load_s", "max_body_bytes", "max_requests_per_s"}  # a timing, and the endpoint's
    assert {name for name in named - of_others if f"    {name}:" not in source} == set()


# --- logs -----------------------------------------------------------------------------------------------------------


def fields_given():
    """The names in `extra={...}`, or in a dict that goes there, of every call that logs."""
    for package in ("kvstore", "tiering", "engine"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
                    yield from ((path.name, key.value) for key in node.value.keys)


def test_every_field_that_is_logged_is_explained():
    given = set(fields_given())
    assert given, "nothing was found"
    assert {name for _, name in given} <= set(rows(LOGS))


def test_no_field_takes_the_place_of_loggings_own():
    """logging raises for these, in the middle of whatever logs."""
    own = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    assert not {name for _, name in fields_given()} & own


def test_the_lines_own_fields_are_explained():
    record = logging.makeLogRecord({"msg": "said", "exc_text": "Traceback", "stack_info": "Stack"})
    line = json.loads(JsonFormatter().format(record))
    assert set(line) <= set(rows(LOGS))


def test_the_example_line_is_what_the_formatter_makes():
    [example] = re.findall(r"```json\n(.*?)\n```", LOGS, re.DOTALL)
    line = json.loads(example)
    assert set(line) <= set(rows(LOGS))
    extra = {name: line[name] for name in line.keys() - {"ts", "level", "logger", "message"}}
    record = logging.makeLogRecord(
        {"msg": line["message"], "name": line["logger"], "levelname": "WARNING", **extra}
    )
    made = json.loads(JsonFormatter().format(record))
    assert {**made, "ts": line["ts"]} == line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
