"""What the pages name in backticks is there, and their links lead somewhere.

docs/LOG.md tells of what was tried, and decisions that were replaced of what was: they may name what is gone.
"""

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kvstore", "tiering", "engine", "benchmarks", "tools", "tests", "examples")
FILES = {
    file.relative_to(ROOT).as_posix(): file
    for file in chain(*((ROOT / name).rglob("*") for name in (*PACKAGES, "docs")), ROOT.iterdir())
    if file.is_file() and "__pycache__" not in file.parts
}
CODE = {
    name: file.read_text("utf-8")
    for name, file in FILES.items()
    if (file.suffix in {".py", ".js", ".toml", ".html"} or name == "Makefile") and file != Path(__file__)
}
OPTIONS = frozenset(re.findall(r"--[a-z][a-z-]+", "\n".join(CODE.values())))
WORDS = frozenset(re.findall(r"\w+", "\n".join([*CODE, *CODE.values()])))

PAGES = {
    name: FILES[name].read_text("utf-8")
    for name in sorted(FILES)
    if name.endswith(".md") and (name.startswith("docs/") or "/" not in name) and name != "docs/LOG.md"
}
LIVING = [name for name, text in PAGES.items() if "Status: replaced" not in text]

OTHERS = {
    *("MADV_WILLNEED", "MADV_POPULATE_READ", "read_ahead_kb"),  # the system's
    *(
        "--fail-with-body",
        "FileHandler",
        "req_011CSHo",
    ),  # curl's, logging's, and the beginning of an id in logs of a service
}
"""What others call theirs, where our code does not happen to speak of it."""

_CLASS = re.compile(
    r"^( *)class (\w+)(?:\[[^\n]*?\])?(?:\(([^)]*)\))?:[^\n]*\n((?:\1 +[^\n]*\n|[ \t]*\n)*)", re.MULTILINE
)
CLASSES: dict[str, tuple[set[str], list[str]]] = {}
"""What stands in the classes of a name, and what they are derived from."""
for text in CODE.values():
    for _, name, bases, body in _CLASS.findall(text):
        words, above = CLASSES.setdefault(name, (set(), []))
        words.update(re.findall(r"\w+", body))
        above.extend(re.findall(r"\w+", bases or ""))


def quoted(text):
    """What stands in backticks, outside of blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def blocks(text, languages):
    """Blocks of code of these languages."""
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def has(owner, member):
    """Whether a class of ours, or what it is derived from, speaks of this."""
    words, above = CLASSES.get(owner, ({member}, []))  # what is not ours may have anything
    return member in words or any(has(each, member) for each in above if each != owner and each in CLASSES)


def unknown_names(told):
    """Those that look like ours: a_name, AName, A.name, package.module and a_call()."""
    for package, name in re.findall(r"\b(kvstore|tiering|benchmarks|tools)\.(\w+)", told):
        is_module = f"{package}/{name}.py" in CODE or (ROOT / package / name).is_dir()
        if not is_module and name not in CODE.get(f"{package}/__init__.py", ""):
            yield f"{package}.{name}"
    for owner, member in re.findall(r"\b([A-Z]\w*[a-z]\w*)\.([a-z_]\w*)", told):
        if not has(owner, member):
            yield f"{owner}.{member}"
    if re.fullmatch(r"[A-Za-z_][\w.]*(\(.*\))?", told) and not re.search(r"\.(py|json|md)$", told):
        for name in re.findall(r"\w{2,}", told.partition("(")[0]):
            looks_like_one = "_" in name or re.search(r"[a-z][A-Z]", name) or told.startswith(PACKAGES)
            if looks_like_one and name not in WORDS and name == name.strip("_"):  # else it is a part of names
                yield name


def unknown_options(told):
    """Such as --one-of-these, of the command line, of benchmarks, and of the tools that both call."""
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", told):
        if option not in OPTIONS and option.removeprefix("--").replace("-", "_") not in WORDS:
            yield option


def unknown_files(told):
    """Paths into the checkout."""
    for path in re.findall(rf"\b(?:{'|'.join((*PACKAGES, 'docs'))})/[\w./-]+", told):
        if not (ROOT / path).exists():
            yield path


def unknown_targets(told):
    """Of the Makefile."""
    for target in re.findall(r"^make ([a-z][a-z-]+)", told):
        if not re.search(rf"^{target}:", CODE["Makefile"], re.MULTILINE):
            yield target


def unknown_in_programs(text):
    """Attributes and arguments by name in blocks of Python that nobody's code speaks of, and imports of what is not there."""
    for node in chain.from_iterable(ast.walk(ast.parse(block)) for block in blocks(text, "python")):
        names = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from (each.arg for each in node.keywords if each.arg and not has(node.func.id, each.arg))
        if isinstance(node, ast.ImportFrom):
            names = [*str(node.module).split("."), *(each.name for each in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        yield from (name for name in names if name not in WORDS)


def unknown_in(text):
    """All that is named and not there."""
    kinds = (unknown_names, unknown_options, unknown_files, unknown_targets)
    told = {each for told in quoted(text) for kind in kinds for each in kind(told)}
    lines = "\n".join(blocks(text, "|sh")).splitlines()
    ours = [line for line in lines if line.startswith(("kvtide ", "make ", "python -m "))]
    told.update(each for line in ours for kind in (unknown_options, unknown_targets) for each in kind(line))
    return (told | set(unknown_in_programs(text))) - OTHERS


@pytest.mark.parametrize("page", LIVING)
def test_what_a_page_names_is_there(page):
    assert unknown_in(PAGES[page]) == set()


@pytest.mark.parametrize(
    "told",
    [
        *("`tiering.node`", "`RadixIndex.find_nothing`", "`EngineConfig.disc_path`", "`takes_no_part()`", "`NoThing`"),
        *("```sh\nkvtide disk --by-ear\n```", "```python\nEngineConfig(pitch=1)\n```", "```python\nengine.sing()\n```"),
        *("`kvtide serve --ports-of-call`", "`tiering/node.py`", "`make coffee-now`", "`docs/nowhere.md`"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_found(told):
    """Else the test above might pass because it finds nothing."""
    assert unknown_in(told)


def anchors(text):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)):
        path, _, anchor = link.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link
