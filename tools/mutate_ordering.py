"""`make mutate`: take each wait out of the mover, one at a time, and see whether the ordering tests notice.

Every mutant is the mover with one thing removed, misplaced or mistaken for its counterpart: a wait, an event, a copy, a
wake-up, a note of what is in flight, or a condition or loop that chooses what to wait for. Each runs against the tests
in a copy of the tree; the working tree is not touched. A mutant that hangs is noticed as well, and counted apart. Exit
status: 0 if every survivor is named in docs/ordering.md, and these are at most three; 1 otherwise.
"""

import argparse
import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
MOVER = "tiering/transfer/mover.py"
REASONS = "docs/ordering.md"
NEEDED = ("kvstore", "tiering", "tests/tiering", "tests/conftest.py", "pyproject.toml")
TESTS = ("tests/tiering/test_ordering.py",)
MAX_EXCUSED = 3
UNCHANGED_S = 600.0
"""For the tests of the mover as it is: they compile what nobody has yet."""
MUTANT_S = 60.0
"""For those of a mutant: two or three times what they take on a machine that is busy."""
NO_END = "no end"

REMOVABLE = {"wait", "host_wait", "notify", "append", "close", "_wait_for"}
"""Calls whose statement is taken out. `append` notes what is in flight, which is where the mover looks for events;
`notify` because a loop that nobody wakes is as wrong as a byte that is."""

STREAMS = ("self._down", "self._up", "self._device.compute")

PAIRS = [("read_slots", "written_slots"), ("device_slots", "host_slots"), ("self._ups", "self._downs")]
COUNTERPART = {one: other for a, b in PAIRS for one, other in ((a, b), (b, a))}
"""What is easily mistaken for each other in the arguments of a call."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of the mover: the text at [start, end) becomes `replacement`."""

    line: int
    text: str
    """The source line, stripped."""
    change: str
    start: int
    end: int
    replacement: str

    @property
    def name(self) -> str:
        """How docs/ordering.md would speak of it."""
        return f"`{self.text}`: {self.change}"

    def apply(self, source: str) -> str:
        """The mutated source."""
        return source[: self.start] + self.replacement + source[self.end :]


# ---- what can be changed ---------------------------------------------------------------------------------------------


class Enumerator:
    """Finds the mutants of a source text."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines = source.splitlines(keepends=True)
        self._parameters: set[str] = set()
        """Of the method that is being looked at."""
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def _offset(self, line: int, column: int) -> int:
        """Of a node's position, which counts UTF-8 bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None, "a parsed node knows its end"
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def _mutant(self, node: ast.expr | ast.stmt, replacement: str, change: str) -> Mutant:
        return Mutant(node.lineno, self._line(node), change, *self._span(node), replacement)

    def _line(self, node: ast.expr | ast.stmt) -> str:
        """The source line without indentation and comment."""
        return self._lines[node.lineno - 1].partition("  # ")[0].strip()

    def mutants(self) -> list[Mutant]:
        """All of them, in the order of the source."""
        methods = [
            method
            for node in ast.parse(self._source).body
            if isinstance(node, ast.ClassDef) and node.name == "Mover"
            for method in node.body
            if isinstance(method, ast.FunctionDef)
        ]
        found = [mutant for method in methods for mutant in self._method(method)]
        found += self._of_steps({method.name: method.body for method in methods})
        return sorted(found, key=lambda mutant: (mutant.line, mutant.start, mutant.change))

    def _of_steps(self, bodies: dict[str, list[ast.stmt]]) -> Iterator[Mutant]:
        """The event of a step left out, or recorded when the step or its next layer group is only announced."""
        if "after_compute" in bodies:
            first, last = bodies["before_compute"][1], bodies["after_compute"][-1]
            yield self._mutant(last, "pass", "assignment removed")
            (start, _), (record, end) = self._span(first), self._span(last)
            announced, between = self._source[record:end], self._source[start:record]
            early = f"{announced}\n{' ' * first.col_offset}{between}pass"
            yield Mutant(last.lineno, self._line(last), "before the step", start, end, early)

    def _method(self, method: ast.FunctionDef) -> Iterator[Mutant]:
        self._parameters = {each.arg for each in method.args.args}
        yield from self._misplaced(method.body)
        for statement in method.body:  # not the signature: types are written like indices
            yield from self._walk(statement)

    def _walk(self, node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.Assert | ast.AnnAssign):
            return
        yield from self._of(node)
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            yield from self._misplaced(body or [])
        for child in ast.iter_child_nodes(node):
            yield from self._walk(child)

    def _of(self, node: ast.AST) -> Iterator[Mutant]:
        match node:
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=attr))) if attr in REMOVABLE:
                yield self._mutant(node, "pass", f"{attr} removed")
            case ast.Call(func=ast.Attribute(attr="record", value=device), args=[stream]):
                fresh = ast.unparse(device)
                # the value is needed: an event of a stream on which nothing is, which is complete at once
                yield self._mutant(
                    node, f'{fresh}.record({fresh}.stream("empty"))', "event of an empty stream"
                )
                yield from self._other_streams(stream, "event of {}")
            case ast.Call(func=ast.Attribute(attr="wait"), args=[stream, _]):
                yield from self._other_streams(stream, "{} waits instead")
            case ast.Call(func=ast.Attribute(attr="copy"), args=[stream, *ends, _]):
                yield from self._other_streams(stream, "copied on {}")
                yield from self._other_ends(ends)
            case ast.Call(func=ast.Name(id="frozenset"), args=[slots]):
                yield self._mutant(node, "frozenset()", "no slots")
                yield from self._counterparts([slots])
            case ast.Call(args=arguments):
                yield from self._counterparts(arguments)
            case ast.AugAssign():
                yield self._mutant(node, "pass", "count removed")
            case ast.If(test=test) | ast.While(test=test):
                yield self._mutant(test, "False", "never")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._mutant(node, ast.unparse(operand), "the opposite")
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                yield self._mutant(node, f"{ast.unparse(left)} != {ast.unparse(right)}", "the opposite")
            case ast.For(iter=values) | ast.comprehension(iter=values):
                yield from self._fewer(values)
            case ast.Subscript(slice=ast.expr() as index) if not isinstance(index, ast.Slice):
                if ast.unparse(index) != "0":
                    yield self._mutant(index, "0", "the first instead")
            case ast.ExceptHandler(body=[statement]):
                yield self._mutant(statement, "pass", "error dropped")

    def _other_streams(self, stream: ast.expr, change: str) -> Iterator[Mutant]:
        for other in STREAMS:
            if ast.unparse(stream).removeprefix("self._") != other.removeprefix("self._"):
                yield self._mutant(stream, other, change.format(other))

    def _other_ends(self, ends: list[ast.expr]) -> Iterator[Mutant]:
        """Of a copy: what it writes and what it reads, each a memory and its slots."""
        start, end = self._span(ends[0])[0], self._span(ends[-1])[1]
        to, to_slots, fro, fro_slots = map(ast.unparse, ends)
        for change, *swapped in (
            ("the other way", fro, fro_slots, to, to_slots),
            ("slots swapped", to, fro_slots, fro, to_slots),
        ):
            yield Mutant(ends[0].lineno, self._line(ends[0]), change, start, end, ", ".join(swapped))

    def _counterparts(self, arguments: list[ast.expr]) -> Iterator[Mutant]:
        for argument in arguments:
            other = COUNTERPART.get(ast.unparse(argument), "")
            if other.startswith("self.") or other in self._parameters:
                yield self._mutant(argument, other, f"{other} instead")

    def _fewer(self, values: ast.expr) -> Iterator[Mutant]:
        text = ast.unparse(values)
        yield self._mutant(values, "()", f"over nothing of {text}")
        yield self._mutant(values, f"tuple({text})[:1]", f"over the first of {text} only")
        yield self._mutant(values, f"tuple({text})[-1:]", f"over the last of {text} only")

    def _misplaced(self, body: list[ast.stmt]) -> Iterator[Mutant]:
        """A wait behind the copy that should wait, an event in front of the copy that it should follow."""
        for number, node in enumerate(body):
            if _calls(node, "copy"):
                waits = [
                    each for each in body[:number] if isinstance(each, ast.Expr) and _calls(each, "wait")
                ]
                yield from (self._too_late(wait, node) for wait in waits)
                after = [(each, record) for each in body[number + 1 :] for record in _calls(each, "record")]
                yield from (self._too_early(node, each, record) for each, record in after)

    def _too_late(self, wait: ast.Expr, copy: ast.stmt) -> Mutant:
        (start, wait_end), (_, end) = self._span(wait), self._span(copy)
        between, waits = self._source[wait_end:end].lstrip(), self._source[start:wait_end]
        late = f"{between}\n{' ' * wait.col_offset}{waits}"
        return Mutant(wait.lineno, self._line(wait), "behind the copy", start, end, late)

    def _too_early(self, copy: ast.stmt, statement: ast.stmt, record: ast.Call) -> Mutant:
        """`record` is somewhere in `statement`, which follows the copy."""
        (start, _), (record_start, end) = self._span(copy), self._span(record)
        between, event = self._source[start:record_start], self._source[record_start:end]
        early = f"early = {event}\n{' ' * copy.col_offset}{between}early"
        return Mutant(statement.lineno, self._line(statement), "before the copy", start, end, early)


def _calls(node: ast.stmt, method: str) -> list[ast.Call]:
    """The calls of a method of this name in a statement."""
    calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    return [each for each in calls if isinstance(each.func, ast.Attribute) and each.func.attr == method]


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a mover's source text."""
    return Enumerator(source).mutants()


# ---- running the tests against one -----------------------------------------------------------------------------------


def copy_tree(to: Path) -> None:
    """Copy what the tests need, without compiled files: these would be taken for current by their date."""
    for name in NEEDED:
        source, target = ROOT / name, to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def first_failure(tree: Path, select: str, most_s: float) -> str | None:
    """The first ordering test that fails in a tree, None if all pass, NO_END if they take longer than that. Raises RuntimeError if they
    could not be run.
    """
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        select,
        *TESTS,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=most_s, check=False
        )
    except subprocess.TimeoutExpired:
        return NO_END
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise RuntimeError(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[1]


def fate_of(killer: str | None) -> str:
    """One of "killed", "timeout" and "SURVIVES", by what `first_failure` says."""
    return {None: "SURVIVES", NO_END: "timeout"}.get(killer, "killed")


def run_all(mutants: list[Mutant], source: str, num_processes: int, select: str) -> list[str | None]:
    """The test that notices each mutant, None for a survivor. Prints each as it is over."""
    with tempfile.TemporaryDirectory(prefix="kvtide-mutate-") as folder:
        paths = [Path(folder) / str(number) for number in range(num_processes)]
        copy_tree(paths[0])
        if (failed := first_failure(paths[0], select, UNCHANGED_S)) is not None:
            raise SystemExit(f"{failed} fails on the mover as it is: nothing can be learnt from mutants")
        trees: SimpleQueue[Path] = SimpleQueue()
        for path in paths:
            if path != paths[0]:
                shutil.copytree(paths[0], path)  # with what has been compiled
            trees.put(path)

        def run(mutated: str) -> str | None:
            tree = trees.get()
            try:
                (tree / MOVER).write_text(mutated, encoding="utf-8")
                return first_failure(tree, select, MUTANT_S)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(num_processes) as pool:
            results = []
            for mutant, killer in zip(
                mutants, pool.map(run, [m.apply(source) for m in mutants]), strict=True
            ):
                by = f"  [{killer}]" if killer else ""
                print(f"{fate_of(killer):8}  {mutant.line:4}  {mutant.name}{by}", flush=True)
                results.append(killer)
            return results


def complaints_about(survivors: list[Mutant], reasons: str) -> list[str]:
    """What is wrong with these survivors: they are too many, or docs/ordering.md does not say why one is needed."""
    complaints = [f"no reason in {REASONS}: {each.name}" for each in survivors if each.name not in reasons]
    if len(survivors) > MAX_EXCUSED:
        complaints.append(f"{len(survivors)} survive, and reasons are taken for {MAX_EXCUSED} at most")
    return complaints


def told(mutant: Mutant) -> dict[str, str | int | None]:
    """A mutant for the JSON file."""
    return {
        key: value for key, value in dataclasses.asdict(mutant).items() if key in {"line", "text", "change"}
    }


def main() -> None:
    """Run all mutants, say which survive, and exit 1 if one does so without a reason."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--processes", type=int, default=2, help="how many run side by side (default: 2)")
    parser.add_argument("--select", default="", help="which of the tests, as pytest's -k (default: all)")
    options = parser.parse_args()
    source = (ROOT / MOVER).read_text(encoding="utf-8")
    mutants = mutants_of(source)
    if options.list:
        print("\n".join(f"{mutant.line:4}  {mutant.name}" for mutant in mutants))
        return
    began_s = time.monotonic()
    killers = run_all(mutants, source, options.processes, options.select)
    survivors = [mutant for mutant, killer in zip(mutants, killers, strict=True) if killer is None]
    fates = Counter(map(fate_of, killers))
    print(
        f"{fates['killed']} of {len(mutants)} mutants killed, {fates['timeout']} noticed by timeout, "
        f"{len(survivors)} survived, in {time.monotonic() - began_s:.0f} s"
    )
    if options.json is not None:
        result = {
            "mutants": len(mutants),
            "killed": fates["killed"],
            "timeouts": fates["timeout"],
            "survivors": [told(mutant) for mutant in survivors],
            "list": [
                told(mutant) | {"killed_by": killer} for mutant, killer in zip(mutants, killers, strict=True)
            ],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    complaints = complaints_about(survivors, (ROOT / REASONS).read_text(encoding="utf-8"))
    print("\n".join(complaints), end="\n" if complaints else "")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
