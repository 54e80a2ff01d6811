"""The command line of a benchmark."""

import argparse
from pathlib import Path

from tiering.cli.markdown import write


def parser(about: str | None) -> argparse.ArgumentParser:
    """Of the module whose docstring this is. It knows `--json`."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--json", type=Path, help="where the figures go; a report for people goes beside it, as .md"
    )
    return found


def publish(path: Path | None, figures: object, page: str) -> None:
    """Print the page, and write it beside the figures where a path was given."""
    print(page)
    write(path, figures, page)
