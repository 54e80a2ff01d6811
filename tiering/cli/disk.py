"""`kvtide disk`: what rests in the directory of a disk tier, whether it is sound, and how it becomes smaller.

Exit codes: 0 all is well, 1 damage was found, 2 the directory cannot be used.
"""

import dataclasses
import json as json_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

disk_app = typer.Typer(
    help="Look after the directory of a disk tier that nobody has open.", no_args_is_help=True
)

T = TypeVar("T")
Where = Annotated[Path, typer.Argument(help="The directory that was given as disk_path.", metavar="PATH")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@disk_app.command()
def inspect(path: Where, json: AsJson = False) -> None:
    """What is there: blocks by model, what is in quarantine, what was set aside."""
    from kvstore.disk import maintenance

    found = _plainly(lambda: maintenance.inspect(path))
    if json:
        _print_json(dataclasses.asdict(found))
        return
    order = "in order" if found.clean else "not closed in order"
    print(f"{path}: {_size(found.file_bytes)} in files, {'encrypted, ' if found.encrypted else ''}{order}")
    for digest, used in found.namespaces.items():
        print(f"  model {digest[:12]}: {used['blocks']} blocks, {_size(used['stored_bytes'])}")
        print(f"    {_told(used['facts'])}")
    if found.names:
        print(f"  named caches: {found.names}")
    for one in found.quarantined:
        print(f"  quarantine: {one['reason']}, {_size(one['bytes'])}, {one['path']}")
    for other in (*found.set_aside, *found.other_formats):
        print(f"  of no use: {other} (kvtide disk clear --old)")


@disk_app.command()
def verify(path: Where, json: AsJson = False) -> None:
    """Check LMDB's trees and every record's checksums. Changes nothing; exits with 1 if something is damaged."""
    from kvstore.disk import maintenance

    with _progress("verifying") as progress:
        verdict = _plainly(lambda: maintenance.verify(path, progress))
    if json:
        _print_json({**dataclasses.asdict(verdict), "sound": verdict.sound})
    else:
        for problem in verdict.trees:
            print(f"trees: {problem}")
        for reason, count in verdict.damaged.items():
            print(f"records: {count} with {reason}")
        if verdict.baselines:
            print(f"baselines: {verdict.baselines} damaged")
        if verdict.unread_baselines:
            print(f"baselines: {verdict.unread_baselines} cannot be read")
        if verdict.retained:
            print(f"retained: {verdict.retained} damaged or unknown")
        print(
            f"{verdict.records} records, {verdict.unpaired} left over; {'sound' if verdict.sound else 'NOT SOUND'}"
        )
    if not verdict.sound:
        raise typer.Exit(1)


@disk_app.command()
def compact(path: Where) -> None:
    """Give free pages back to the file system."""
    from kvstore.disk import maintenance

    with _progress("compacting") as progress:
        before, after = _plainly(lambda: maintenance.compact(path, progress))
    print(f"{path}: {_size(before)} before, {_size(after)} now")


@disk_app.command()
def clear(
    path: Where,
    old: Annotated[
        bool, typer.Option("--old", help="Only other formats, what was set aside, and quarantine.")
    ] = False,
) -> None:
    """Delete all blocks, or with --old only what is of no use any more."""
    from kvstore.disk import maintenance

    freed = _plainly(lambda: maintenance.clear(path, old=old))
    print(f"{path}: {_size(freed)} freed")


def _plainly(job: Callable[[], T]) -> T:
    """Turn what a user can mend into one sentence on standard error; damage exits with 1, all else with 2."""
    from kvstore.disk.environment import Unsound
    from kvstore.disk.maintenance import Damaged
    from kvstore.errors import StoreError

    try:
        return job()
    except (Damaged, Unsound) as error:
        typer.secho(f"kvtide: {error}", err=True, fg="red")
        raise typer.Exit(1) from error
    except (StoreError, OSError) as error:
        typer.secho(f"kvtide: {error}", err=True, fg="red")
        raise typer.Exit(2) from error


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(doing, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _told(facts: dict[str, str] | None) -> str:
    """A namespace's facts on one line."""
    from kvstore.facts import shortened

    if facts is None:
        return "which model that is is not known"
    return ", ".join(f"{name} {shortened(value)}" for name, value in facts.items())


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
