"""`make sizes`: the tail of functions, classes and files, which decides how readable a code base is.

A length is counted from the line of `def` or `class` to the last line, docstring and comments included.
"""

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kvstore", "tiering", "engine", "tests")
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 250
MAX_FILE_LINES = 400
MAX_P90_LINES = 25


@dataclass(frozen=True, slots=True)
class Piece:
    """A function, class or file: where it begins and how many lines it has."""

    kind: str
    name: str
    where: str
    lines: int


def pieces_of(path: Path, root: Path = ROOT) -> Iterator[Piece]:
    """Yield the file itself, then each function and class in it, nested ones too."""
    text = path.read_text(encoding="utf-8")
    shown = str(path.relative_to(root))
    yield Piece("file", shown, shown, len(text.splitlines()))
    for node in ast.walk(ast.parse(text, filename=shown)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            assert node.end_lineno is not None, "a parsed node knows its end"
            yield Piece(kind, node.name, f"{shown}:{node.lineno}", node.end_lineno - node.lineno + 1)


def percentile(lengths: list[int], share: float) -> int:
    """Return the smallest length that at least `share` of the lengths do not exceed; 0 of none."""
    if not lengths:
        return 0
    return sorted(lengths)[math.ceil(share * len(lengths)) - 1]


def report(folder: str, pieces: list[Piece]) -> list[str]:
    """Return the lines to print for one folder: a summary, then what is over a limit, longest first."""
    limits = {"function": MAX_FUNCTION_LINES, "class": MAX_CLASS_LINES, "file": MAX_FILE_LINES}
    functions = [piece.lines for piece in pieces if piece.kind == "function"]
    p90 = percentile(functions, 0.9)
    files = [piece.lines for piece in pieces if piece.kind == "file"]
    out = [
        f"{folder:8} {len(files):4} files {sum(files):6} lines  functions: {len(functions):4}"
        f"  median {percentile(functions, 0.5):3}  p90 {p90:3}"
        + (f"  <- over {MAX_P90_LINES}" if p90 > MAX_P90_LINES else "")
    ]
    over = [piece for piece in pieces if piece.lines > limits[piece.kind]]
    out += [
        f"  {piece.kind:8} {piece.lines:4} lines (over {limits[piece.kind]})  {piece.name}  {piece.where}"
        for piece in sorted(over, key=lambda piece: -piece.lines)
    ]
    return out


def main() -> None:
    """Print the report of each folder that exists."""
    for folder in FOLDERS:
        paths = sorted((ROOT / folder).rglob("*.py"))
        pieces = [piece for path in paths for piece in pieces_of(path)]
        print("\n".join(report(folder, pieces)))


if __name__ == "__main__":
    main()
