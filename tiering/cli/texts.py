"""The texts that come with kvtide: written for it, under its own licence."""

from importlib.resources import files

_DATA = files("tiering.cli") / "data"


def handbook() -> str:
    """A long document, about 3,200 tokens."""
    return (_DATA / "handbook.txt").read_text(encoding="utf-8")


def questions() -> list[str]:
    """Questions that the handbook answers."""
    lines = (_DATA / "questions.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def traffic() -> list[str]:
    """Short texts on other matters, about 450 tokens each."""
    folder = _DATA / "traffic"
    return [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir(), key=lambda path: path.name)]


def long_text() -> str:
    """All of it, one after the other."""
    return "\n\n".join([handbook(), *traffic()])
