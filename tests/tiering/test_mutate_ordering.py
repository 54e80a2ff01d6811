"""The mutants of the mover: that all places are found, and that each is what it says it is."""

import ast
import re

import pytest

from tools.mutate_ordering import MOVER, ROOT, complaints_about, copy_tree, mutants_of

SOURCE = (ROOT / MOVER).read_text(encoding="utf-8")
MUTANTS = mutants_of(SOURCE)


def lines_with(pattern):
    """Numbers of the code lines, comments and docstrings left out, that match. No syntax tree: to find what it misses."""
    code = re.sub(r'"""(?s:.*?)"""', lambda match: "\n" * match[0].count("\n"), SOURCE)
    lines = enumerate((line.partition("  # ")[0] for line in code.splitlines()), start=1)
    return {number for number, line in lines if re.search(pattern, line)}


@pytest.mark.parametrize(
    "call", ["wait", "host_wait", "record", "notify", "query", "copy", "close", "append"]
)
def test_each_call_that_order_depends_on_has_a_mutant(call):
    changed = {m.line + extra for m in MUTANTS for extra in range(SOURCE[m.start : m.end].count("\n") + 1)}
    assert lines_with(rf"\.{call}\(") <= changed


def test_there_is_something_to_find():
    assert len(lines_with(r"\.wait\(")) >= 3
    assert len(lines_with(r"\.record\(")) >= 4
    assert len(MUTANTS) >= 45


def test_each_wait_is_taken_away_put_on_another_stream_and_made_too_late():
    for line in lines_with(r"_device\.wait\("):
        changes = {mutant.change for mutant in MUTANTS if mutant.line == line}
        assert "wait removed" in changes
        assert sum(change.endswith("waits instead") for change in changes) == 2
    assert sum(mutant.change == "behind the copy" for mutant in MUTANTS) == 2, "one for each direction"


def test_each_event_becomes_one_that_says_nothing():
    events = [mutant for mutant in MUTANTS if mutant.change == "event of an empty stream"]
    assert {mutant.line for mutant in events} == lines_with(r"\.record\(")


def test_each_choice_of_what_to_wait_for_has_a_mutant():
    tree = ast.parse(SOURCE)
    (mover,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Mover"]
    choices = [node for node in ast.walk(mover) if isinstance(node, ast.If | ast.While | ast.For)]
    assert {node.lineno for node in choices} <= {mutant.line for mutant in MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.line}-{mutant.change}")
def test_a_mutant_is_another_program_that_parses(mutant):
    mutated = mutant.apply(SOURCE)
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(SOURCE))


def test_mutants_have_names_of_their_own():
    assert len({(mutant.line, mutant.name) for mutant in MUTANTS}) == len(MUTANTS)


def test_reader_counts_would_be_found():
    source = "class Mover:\n    def f(self):\n        self.readers -= 1\n        device.host_wait(event)\n"
    assert [mutant.change for mutant in mutants_of(source)] == ["count removed", "host_wait removed"]


def test_the_copied_tree_has_no_compiled_files_that_would_hide_a_mutant(tmp_path):
    copy_tree(tmp_path)
    assert (tmp_path / MOVER).read_text(encoding="utf-8") == SOURCE
    assert not list(tmp_path.rglob("*.pyc"))


def test_a_survivor_needs_a_reason_and_there_are_few():
    few, many = MUTANTS[:2], MUTANTS[:4]
    assert complaints_about([], "") == []
    assert complaints_about(few, f"Hardware needs {few[0].name} because") == [
        f"no reason in docs/ordering.md: {few[1].name}"
    ]
    assert complaints_about(few, " ".join(mutant.name for mutant in few)) == []
    assert len(complaints_about(many, " ".join(mutant.name for mutant in many))) == 1
