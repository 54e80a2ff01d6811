"""Functions are compiled once, by a process of its own, and take no array that they were not compiled for."""

import ast
import re
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import native
from kvstore import code, kernels
from kvstore.code import Function, compiled
from kvstore.disk import compiled as compiled_for_disk
from kvstore.disk import requests, runs, tree
from kvstore.errors import StoreFailed
from tests.kvstore.halved import HALVE, ODD, halves
from tiering import kernels as core_kernels

ROOT = Path(code.__file__).parents[1]


def test_that_it_compiles_is_told_before_it_does(tmp_path, compiles, caplog):
    """It takes seconds, on all cores. What is kept is loaded without a word."""
    caplog.set_level("INFO", "kvstore.code")
    assert halves([tmp_path])
    assert halves([tmp_path])
    assert [record.functions for record in caplog.records] == ["tests.kvstore.odd_loops.halve"]
    assert caplog.messages[0].startswith("compiling for this machine, once")


def test_several_processes_at_once_compile_and_keep_the_same(tmp_path):
    """Whoever comes first; and nobody finds a part."""
    program = (
        "import sys; from pathlib import Path; from kvstore.code import Function, compiled; import numpy as np\n"
        f"[halve] = compiled([{HALVE}], [Path(sys.argv[1])]); print(halve(np.arange(4), 2), 'numba' in sys.modules)"
    )
    asked = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate()[0].split() for one in both] == [["4", "False"]] * 2
    assert len(list(tmp_path.iterdir())) == 1


def test_threads_wait_for_one_that_compiles(monkeypatch):
    begun, go_on, asked = threading.Event(), threading.Event(), []

    def slow(functions: list[Function]) -> list[str]:
        asked.append(functions)
        begun.set()
        assert go_on.wait(10.0)
        if len(asked) == 1:
            raise StoreFailed("no luck")
        return ["code"]

    monkeypatch.setattr(code, "compiled", slow)
    results: list[object] = []

    def ask() -> None:
        try:
            results.append(code.loaded(HALVE))
        except StoreFailed as error:
            results.append(str(error))

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    first.start()
    assert begun.wait(10.0)
    second.start()
    go_on.set()
    first.join()
    second.join()
    ask()
    assert "no luck" in results
    assert results[-1] == ["code"]
    code._futures.clear()


def test_who_waits_is_not_interrupted_with_who_compiles(monkeypatch):
    begun, waits = threading.Event(), threading.Event()

    def interrupted(_: tuple[Function, ...]) -> list[str]:
        begun.set()
        assert waits.wait(10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(code, "compiled", interrupted)
    told: list[BaseException] = []

    def ask() -> None:
        try:
            code.loaded(HALVE)
        except BaseException as error:  # noqa: BLE001 - this is what is looked at
            told.append(error)

    first = threading.Thread(target=ask)
    first.start()
    assert begun.wait(10.0)
    future = code._futures[HALVE]
    waits.set()
    first.join()
    assert isinstance(told[0], KeyboardInterrupt)
    assert isinstance(future.exception(), StoreFailed)


def test_a_child_does_not_wait_for_threads_that_its_parent_has():
    """A fork while code is compiled, as multiprocessing does it."""
    program = """
import os, signal, threading
from kvstore import code
begun, go_on, asked = threading.Event(), threading.Event(), code.Function("a", "b", (), ())
def slow(functions):
    begun.set()
    return [go_on.wait()]
code.compiled = slow
thread = threading.Thread(target=code.loaded, args=[asked])
thread.start()
begun.wait()
if not (child := os.fork()):
    signal.alarm(5)
    code.compiled = lambda functions: ["code"]
    os._exit(code.loaded(asked) != ["code"])
_, status = os.waitpid(child, 0)
go_on.set()
thread.join()
print(status, code.loaded(asked))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0 [True]\n"


# --- calls ------------------------------------------------------------------------------------------------------------


def test_arrays_of_another_kind_are_refused_before_anything_is_touched(tmp_path, compiles):
    [halve] = compiled([HALVE], [tmp_path])
    numbers = np.arange(8)
    fixed, memory = numbers.copy(), np.zeros(80, np.uint8)
    fixed.flags.writeable = False
    for given in (
        numbers.astype(np.int32),
        numbers.astype(np.float64),
        numbers.astype(">i8"),
        numbers.reshape(2, 4),
        numbers[::2],
        fixed,
        memory[1:73].view(np.int64),
        np.ma.array([1, 2]),
        None,
        [1, 2],
        3,
    ):
        with pytest.raises(TypeError, match="halve is not compiled for"):
            halve(given, 2)
    for scalar in (2.0, None, "2"):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            halve(numbers, scalar)
    assert numbers.tolist() == list(range(8))
    assert halve(np.empty(0, np.int64), np.int64(2)) == 0


def test_arguments_may_come_in_tuples(tmp_path):
    kinds = (("float32 1", "uint16 1"), ("int64", "bool"), "bool")
    [add] = compiled([Function(ODD, "add", (ODD,), kinds)], [tmp_path])
    numbers = np.array([1, 2], np.float32), np.array([3, 4], np.uint16)
    assert add(numbers, (5, True), False) == 15
    assert add(numbers, (5, False), True) == 20
    with pytest.raises(TypeError, match="add takes a tuple of 2 as argument 1"):
        add(numbers, (5,), True)
    with pytest.raises(TypeError, match="add takes a tuple of 2 as argument 0"):
        add(list(numbers), (5, True), True)
    with pytest.raises(TypeError, match="add is not compiled for"):
        add(numbers[::-1], (5, True), True)


def test_arguments_are_counted_and_have_no_names(tmp_path, compiles):
    [halve] = compiled([HALVE], [tmp_path])
    for given in ((), (np.arange(3),), (np.arange(3), 2, 2)):
        with pytest.raises(TypeError, match="halve takes 2 arguments"):
            halve(*given)
    with pytest.raises(TypeError, match="keyword"):
        halve(np.arange(3), by=2)


class Index:
    """A number that Python has to be asked for."""

    def __init__(self, number: int | None) -> None:
        self._number = number

    def __index__(self) -> int:
        if self._number is None:
            raise LookupError("nowhere")
        return self._number


def test_numbers_are_taken_as_python_takes_them(tmp_path):
    kinds = ("int64", "float64", "bool")
    [pick] = compiled([Function(ODD, "pick", (ODD,), kinds)], [tmp_path])
    most = (1 << 63) - 1
    for number in (0, -1, most, -most - 1, True, np.int32(-1), np.uint8(255), Index(7), Index(-1)):
        assert pick(number, 0.0, True) == number.__index__()
    for number in (0.0, -1.0, 2.5, -1, np.float32(-1), float("nan"), float("-inf")):
        assert pick(0, number, False) == (number < 0)
    for truth in (True, False, 1, 0, np.True_, np.False_):
        assert pick(1, 0.0, truth) == int(truth)
    for given, error in (
        ((most + 1, 0.0, True), OverflowError),
        ((Index(None), 0.0, True), LookupError),
        ((1, "1", True), TypeError),
        ((1, 0.0, np.arange(2)), ValueError),
    ):
        with pytest.raises(error):
            pick(*given)


def test_a_call_keeps_nothing_of_what_it_is_given(tmp_path):
    """Neither one that goes well nor one that raises."""
    [halve, pick] = compiled([HALVE, Function(ODD, "pick", (ODD,), ("int64", "float64", "bool"))], [tmp_path])
    numbers, other, big, real = np.arange(3), np.arange(3.0), 1 << 40, float("2.5")
    held = [numbers, other, big, real, None, True, TypeError, MemoryError, np.ndarray]

    def calls() -> None:
        halve(numbers, 1)
        pick(big, real, True)
        for given in ((numbers, 0), (other, 1), (numbers, None), (numbers,)):
            with suppress(TypeError, MemoryError):
                halve(*given)

    calls()
    before = [sys.getrefcount(one) for one in held]
    for _ in range(100):
        calls()
    after = [sys.getrefcount(one) for one in held]
    assert max(abs(one - two) for one, two in zip(before, after, strict=True)) < 50


@pytest.mark.parametrize("keeps_gil", [False, True])
def test_others_run_meanwhile_unless_the_lock_is_kept(tmp_path, keeps_gil):
    function = Function(ODD, "is_told", (ODD,), ("int64 1", "int64"), keeps_gil)
    [is_told] = compiled([function], [tmp_path])
    signal, lock = np.zeros(1, np.int64), threading.Lock()

    def tell() -> None:
        with lock:
            signal[0] = 1

    other = threading.Thread(target=tell)
    interval = sys.getswitchinterval()
    with lock:
        other.start()
        sys.setswitchinterval(1000.0)  # nobody runs who is not let
    try:
        assert is_told(signal, 20 if keeps_gil else 10_000) == (not keeps_gil)
    finally:
        sys.setswitchinterval(interval)
    other.join()


@pytest.mark.parametrize("keeps_gil", [False, True])
def test_what_fails_within_raises(tmp_path, compiles, keeps_gil):
    [halve] = compiled([replace(HALVE, keeps_gil=keeps_gil)], [tmp_path])
    assert halve(np.arange(3), 1) == 3
    with pytest.raises(MemoryError, match="halve"):
        halve(np.arange(3), 0)
    with pytest.raises(TypeError, match="halve"):
        halve(np.arange(3.0), 1)


def test_code_that_needs_more_than_itself_is_never_loaded(tmp_path):
    """LLVM ends the process where something is not to be found."""
    with pytest.raises(StoreFailed, match="atan2"):
        compiled([Function(ODD, "needs_another_library", (ODD,), ("int64 1 written",))], [tmp_path])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interpreter", ["/bin/false", "/nowhere/python"])
def test_where_no_process_compiles_it_is_said(interpreter, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", interpreter)
    with pytest.raises(StoreFailed, match="compile"):
        compiled([HALVE], [tmp_path])


def test_a_frozen_program_is_not_begun_once_more(tmp_path, monkeypatch):
    """Its executable is no Python: each would begin another."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(code, "_compile", None)
    with pytest.raises(StoreFailed, match="frozen"):
        compiled([HALVE], [tmp_path])


def test_whatever_is_in_the_path_of_modules_is_told_or_not_minded(tmp_path, monkeypatch):
    """Python minds no path that is not a string."""
    monkeypatch.setattr(sys, "path", [Path("nowhere"), *sys.path])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StoreFailed, match="compile"):
        compiled([HALVE], [tmp_path])


# --- what it is made of ----------------------------------------------------------------------------------------------


LOADING = (kernels, native, core_kernels, requests, runs, tree)


def of_all_kernels(monkeypatch) -> list[Function]:
    found: list[Function] = []
    for module in LOADING:
        monkeypatch.setattr(
            module, "loaded", lambda *functions: found.extend(functions) or [None] * len(functions)
        )
    for word_bytes in kernels.FUNCTIONS:
        kernels.kernels.__wrapped__(word_bytes)
        runs._going_on.__wrapped__(word_bytes)
    runs._going_on.__wrapped__(None)
    runs._parting.__wrapped__()
    core_kernels.kernels.__wrapped__()
    words = np.dtype(np.float32)
    native.attending.__wrapped__(words, words)
    native.computing.__wrapped__(words, words)
    native.watching.__wrapped__()
    tree.finding.__wrapped__()
    requests.serving.__wrapped__()
    return found


def imported(module: str) -> set[str]:
    """Modules of ours that a module imports, directly or not."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        package = name.partition(".")[0]
        for node in ast.walk(ast.parse(code._source(name))):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = f"{package}.{node.module}" if node.level and node.module else node.module or package
            named = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            waiting += [
                one
                for one in named
                if one.startswith(("kvstore.", "engine.", "tiering.")) and code._path(one).exists()
            ]
    return found


def test_the_sources_that_are_told_are_all(monkeypatch):
    """Or code of an older source would be found. What loads it is none: of `engine.native` only numbers are taken."""
    texts = {
        path: path.read_text("utf-8")
        for name in ("kvstore", "tiering", "engine")
        for path in (ROOT / name).rglob("*.py")
    }
    loads = {
        path
        for path, text in texts.items()
        if re.search(r"^from \S+ import .*\bloaded\b", text, re.MULTILINE)
    }
    assert loads == {Path(module.__file__) for module in (*LOADING, compiled_for_disk)}
    for function in of_all_kernels(monkeypatch):
        made_of = imported(function.module) - imported("kvstore.code")
        assert made_of <= set(function.sources), function
