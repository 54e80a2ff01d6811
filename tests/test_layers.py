"""The arrows between the packages: engine -> tiering -> kvstore, the command line on top, torch where it belongs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kvstore", "tiering", "engine")
TOP = ("tiering.cli", "tiering.__main__")
TORCH_IN_TIERING = (*TOP, "tiering.transfer.cuda")


def within(module: str, *roots: str) -> bool:
    """Whether the module is one of the roots or lies below one."""
    return any(module == root or module.startswith(root + ".") for root in roots)


# ---- reading imports off the syntax tree -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` is target a.b.c, of which a.b is certainly a module."""

    target: str
    line: int
    for_types_only: bool


def discover() -> dict[str, Path]:
    """Return every module of the packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test).rpartition(".")[2] == "TYPE_CHECKING"


def _walk(node: ast.AST, *, for_types_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node, and whether it stands below `if TYPE_CHECKING:`."""
    yield node, for_types_only
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        for child in node.body:
            yield from _walk(child, for_types_only=True)
        rest: list[ast.AST] = list(node.orelse)
    else:
        rest = list(ast.iter_child_nodes(node))
    for child in rest:
        yield from _walk(child, for_types_only=for_types_only)


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """Return the module that an ImportFrom names, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    above = node.level - 1 if is_package else node.level
    base = parts[: len(parts) - above]
    return ".".join([*base, node.module] if node.module else base)


def _imported_by_call(node: ast.Call) -> str | None:
    """Return "x" of import_module("x") or __import__("x")."""
    name = ast.unparse(node.func).rpartition(".")[2]
    if name in {"import_module", "__import__"} and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return None


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Return all imports of a module, those inside functions and by import_module("...") included."""
    found = []
    for node, for_types_only in _walk(ast.parse(source)):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package=is_package)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)) is not None:
            # A relative name is relative to the package: import_module(".lru", __name__).
            package = module if is_package else module.rpartition(".")[0]
            targets = [package + name if name.startswith(".") else name]
        found += [Import(target, getattr(node, "lineno", 0), for_types_only) for target in targets]
    return found


# ---- the rules -------------------------------------------------------------------------------------------------------


def broken_rule(module: str, target: str) -> str | None:
    """Return the rule that this import breaks, or None."""
    if within(module, "kvstore") and within(target, "tiering", "engine", "torch"):
        return "kvstore imports neither tiering nor engine nor torch"
    if within(module, "tiering") and not within(module, *TOP) and within(target, "engine"):
        return "tiering does not import engine"
    if within(target, *TOP) and not within(module, *TOP):
        return "nothing imports the command line"
    if within(module, "tiering") and not within(module, *TORCH_IN_TIERING) and within(target, "torch"):
        return "within tiering only transfer/cuda.py and the command line import torch"
    return None


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return a line for each import of the module that breaks a rule."""
    return [
        f"{module}:{found.line} imports {found.target}: {rule}"
        for found in imports_of(source, module, is_package=is_package)
        if (rule := broken_rule(module, found.target)) is not None
    ]


def _module_of(target: str, known: set[str]) -> str | None:
    """Return the longest prefix of the target that is one of our modules."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target or None


def graph_of(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Return who imports whom; sources are (text, is_package). What only type checkers read is left out.

    `import a.b.c` also runs a and a.b, but every module of a package does that to its own parents: such an edge says
    nothing, so a target counts as its innermost module alone.
    """
    known = set(sources)
    graph: dict[str, set[str]] = {}
    for module, (source, is_package) in sources.items():
        found = imports_of(source, module, is_package=is_package)
        targets = {_module_of(each.target, known) for each in found if not each.for_types_only}
        graph[module] = {target for target in targets if target is not None} - {module}
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """Return the modules of one import cycle, first and last the same, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


# ---- our packages obey them ------------------------------------------------------------------------------------------


def test_every_package_has_modules() -> None:
    """Else the tests below would hold of nothing."""
    assert {name.partition(".")[0] for name in discover()} == set(PACKAGES)


def test_imports_go_one_way() -> None:
    broken = [
        line
        for module, path in discover().items()
        for line in violations(path.read_text("utf-8"), module, is_package=path.name == "__init__.py")
    ]
    assert not broken, "\n".join(broken)


def test_there_is_no_import_cycle() -> None:
    sources = {
        name: (path.read_text("utf-8"), path.name == "__init__.py") for name, path in discover().items()
    }
    cycle = cycle_in(graph_of(sources))
    assert cycle is None, " -> ".join(cycle or [])


# Our modules are forgotten between two imports, so that each is imported as if it were the first, for the price of one
# interpreter. What others wrote stays loaded, and may warn when it is loaded first.
IMPORT_EACH_ALONE = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in {preload!r}:
    importlib.import_module(name)
for name in {absent!r}:
    sys.modules[name] = None  # importing it now raises ImportError
warnings.simplefilter("error")
failed = False
for name in {modules!r}:
    for loaded in [m for m in sys.modules if m.partition(".")[0] in {packages!r}]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(f"{{name}}: {{type(error).__name__}}: {{error}}")
        failed = True
sys.exit(failed)
"""


def run_python(code: str) -> str:
    """Run code in a fresh interpreter in the root of the repository; return what it printed, fail if it failed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def import_each_alone(
    modules: list[str], *, preload: tuple[str, ...] = (), absent: tuple[str, ...] = ()
) -> None:
    """Fail unless each module imports alone, warnings being errors."""
    assert modules, "nothing to import"
    run_python(
        IMPORT_EACH_ALONE.format(modules=modules, preload=preload, absent=absent, packages=set(PACKAGES))
    )


def needs_torch(module: str) -> bool:
    """Whether a module may import torch."""
    return within(module, "engine", *TORCH_IN_TIERING)


def test_modules_import_alone_and_without_torch() -> None:
    """What needs no model runs where torch is not installed."""
    import_each_alone(
        [name for name in discover() if not needs_torch(name)], absent=("torch", "transformers")
    )


@pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra [engine]")
def test_modules_that_may_use_torch_import_alone() -> None:
    import_each_alone([name for name in discover() if needs_torch(name)], preload=("torch", "transformers"))


@pytest.mark.parametrize("package", ["kvstore", "tiering"])
def test_importing_a_package_stays_light(package: str) -> None:
    loaded = run_python(f"import sys, {package}; print(*sys.modules)").split()
    heavy = [name for name in loaded if within(name, "torch", "transformers", "engine", *TOP)]
    assert not heavy, f"import {package} loads {heavy}"


# ---- the checker itself can fail -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kvstore.block", "import torch"),
        ("kvstore.block", "import torch.nn as nn"),
        ("kvstore.block", "def f():\n    from tiering.radix import RadixIndex"),
        ("kvstore.disk.lmdb", "import engine.model"),
        ("tiering.cache", "from engine import Engine"),
        ("tiering.cache", "if TYPE_CHECKING:\n    import engine.model"),
        ("tiering.cache", "async def f():\n    import importlib\n    importlib.import_module('engine')"),
        ("tiering.cache", "from tiering import cli"),
        ("tiering.cache", "from . import __main__"),
        ("tiering.cache", "import torch"),
        ("tiering.transfer.mover", "try:\n    from torch import cuda\nexcept ImportError:\n    cuda = None"),
        ("engine.engine", "from tiering.cli.bench import ttft"),
        ("engine.engine", "class A:\n    import tiering.cli"),
    ],
)
def test_an_import_against_the_arrows_is_found(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kvstore.block", "import numpy\nfrom kvstore.errors import StoreError\nimport torchless"),
        ("tiering.cache", "from kvstore import Store\nfrom .radix import RadixIndex\nimport engineering"),
        ("tiering.transfer.cuda", "import torch"),
        ("tiering.cli.bench", "import torch\nfrom engine import Engine\nfrom tiering.cli import table"),
        ("tiering.__main__", "from tiering.cli import main"),
        ("engine.pool", "import torch\nimport tiering\nfrom kvstore import BlockLayout"),
    ],
)
def test_an_import_along_the_arrows_is_not(module: str, source: str) -> None:
    assert not violations(source, module)


def test_relative_imports_are_resolved() -> None:
    targets = [each.target for each in imports_of("from . import a\nfrom ..b import c", "p.q.r")]
    assert targets == ["p.q.a", "p.b.c"]
    targets = [
        each.target for each in imports_of("from . import a\nfrom ..b import c", "p.q", is_package=True)
    ]
    assert targets == ["p.q.a", "p.b.c"]


def test_a_cycle_is_found() -> None:
    sources = {
        "p": ("from p.a import A", True),
        "p.a": ("def late():\n    from p import b", False),
        "p.b": ("import p.a", False),
    }
    assert set(cycle_in(graph_of(sources)) or []) == {"p.a", "p.b"}


def test_a_module_importing_its_own_package_is_a_cycle() -> None:
    sources = {"p": ("from p.a import A", True), "p.a": ("from p import B", False)}
    assert set(cycle_in(graph_of(sources)) or []) == {"p", "p.a"}


def test_an_import_for_types_only_makes_no_cycle() -> None:
    sources = {
        "p": ("", True),
        "p.a": ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import B", False),
        "p.b": ("from p.a import A", False),
    }
    assert cycle_in(graph_of(sources)) is None


def test_a_module_that_warns_or_wants_torch_does_not_import_alone(monkeypatch, tmp_path) -> None:
    """The check by subprocess can fail as well: on a warning, and on a package that is absent."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "warns.py").write_text("import warnings\nwarnings.warn('old', DeprecationWarning)\n")
    (tmp_path / "wants.py").write_text("import json\n")
    with pytest.raises(AssertionError, match="warns: DeprecationWarning"):
        import_each_alone(["warns"])
    with pytest.raises(AssertionError, match="wants: ModuleNotFoundError"):
        import_each_alone(["wants"], absent=("json",))
