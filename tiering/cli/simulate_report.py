"""What `kvtide simulate` says of a sweep, and where it writes it."""

import json
import sys
from pathlib import Path

from rich.console import Console

from tiering.cli.simulate import Sweep, knees, simulate, told
from tiering.cli.simulate_page import page
from tiering.cli.simulate_table import table
from tiering.policies.policy import PolicyError


def run(sweep: Sweep, json_path: Path | None, html_path: Path | None, num_processes: int) -> None:
    """Simulate, print a table, and write the files that were asked for."""
    console = Console()
    for path in (json_path, html_path):
        if path is not None:
            _check_writable(path)
    # a policy of one's own is where one is, most likely, which a console script does not search
    sys.path.append(str(Path.cwd()))
    try:
        runs = simulate(sweep, Console(stderr=True), num_processes=num_processes)
    except PolicyError as error:
        raise ValueError(f"{error}: run it through tiering.policies.testing.LAWS") from error
    for trace in sweep.traces:
        console.print(table(trace, [each for each in runs if each.trace == trace]))
        for line in knees([each for each in runs if each.trace == trace]):
            console.print(line)
    if json_path is not None:
        json_path.write_text(json.dumps(told(sweep, runs), indent=1) + "\n", "utf-8")
        console.print(f"figures written to {json_path}")
    if html_path is not None:
        html_path.write_text(page(runs), "utf-8")
        console.print(f"page written to {html_path}")


def _check_writable(path: Path) -> None:
    """Raise ValueError if a file cannot be written there: better before a long sweep than after it."""
    was_there = path.exists()
    try:
        with path.open("ab"):
            pass
        if not was_there:
            path.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
