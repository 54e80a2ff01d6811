"""The mutants of the mover: that all places are found, and that each is what it says it is."""

import ast
import re

import pytest

from tools.mutate_ordering import MOVER, NO_END, ROOT, complaints_about, copy_tree, fate_of, mutants_of

SOURCE = (ROOT / MOVER).read_text(encoding="utf-8")
MUTANTS = mutants_of(SOURCE)


def lines_with(pattern):
    """Numbers of the code lines, comments and docstrings left out, that match. No syntax tree: to find what it misses."""
    code = re.sub(r'"""(?s:.*?)"""', lambda match: "\n" * match[0].count("\n"), SOURCE)
    lines = enumerate((line.partition("  # ")[0] for line in code.splitlines()), start=1)
    return {number for number, line in lines if re.search(pattern, line)}


def lines_of(change):
    """Numbers of the lines of which some mutant's change matches."""
    return {mutant.line for mutant in MUTANTS if re.fullmatch(change, mutant.change)}


@pytest.mark.parametrize(
    "call", ["wait", "host_wait", "record", "notify", "query", "copy", "close", "append"]
)
def test_each_call_that_order_depends_on_has_a_mutant(call):
    assert lines_with(rf"\.{call}\(") <= lines_of(".*")


def test_there_is_something_to_find():
    assert len(lines_with(r"\.wait\(")) >= 3
    assert len(lines_with(r"\.record\(")) >= 4
    assert len(lines_with(r"\.copy\(")) >= 2
    assert len(MUTANTS) >= 75


def test_each_wait_is_taken_away_and_made_too_late():
    assert lines_of("wait removed") == lines_with(r"_device\.wait\(")
    assert lines_of("behind the copy") == lines_with(r"_device\.wait\(self\._(down|up)\b")


@pytest.mark.parametrize(
    ("call", "change"), [("wait", "{} waits instead"), ("record", "event of {}"), ("copy", "copied on {}")]
)
@pytest.mark.parametrize("stream", ["down", "up", "device.compute"])
def test_each_wait_event_and_copy_is_put_on_each_other_stream(call, change, stream):
    own = lines_with(rf"\.{call}\((self\._)?{stream}\b")
    assert lines_of(change.format(rf"self\._{stream}")) == lines_with(rf"\.{call}\(") - own != set()


def test_each_event_becomes_one_that_says_nothing():
    assert lines_of("event of an empty stream") == lines_with(r"\.record\(")


def test_each_event_is_recorded_before_what_it_should_follow():
    first = lines_with(r" device\.record\(")  # made with the mover: what it follows was enqueued elsewhere
    assert len(first) == 1
    assert lines_of("before the (copy|step)") == lines_with(r"\.record\(") - first


def test_each_copy_goes_the_other_way_and_to_the_wrong_slots():
    assert lines_of("the other way") == lines_of("slots swapped") == lines_with(r"\.copy\(")


def test_what_is_read_is_mistaken_for_what_is_written_and_up_for_down():
    one_of_two = {
        "(read|written)_slots": r", frozenset\((read|written)_slots\)",
        "host_slots": r"_depart\(self\.",
        r"self\._(ups|downs)": r"\w\(self\._(ups|downs)\b(?!\[)",
    }
    for name, place in one_of_two.items():
        assert lines_of(f"{name} instead") == lines_with(place) != set()


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


def test_a_timeout_is_told_apart():
    assert [fate_of(killer) for killer in (None, NO_END, "test_x[0]")] == ["SURVIVES", "timeout", "killed"]


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
