"""What verbs share: lists in their options, and telling what users can mend."""

import errno
from collections.abc import Callable

import typer


def plainly(job: Callable[[], int | None]) -> None:
    """Turn what a user can mend into one sentence on standard error, without a traceback; exit with the job's status.

    What cannot be meant ends with 2; what the machine refuses while it is done, as a disk that is full, with 1.
    """
    try:
        status = job()
    except ValueError as error:
        typer.secho(f"kvtide: {error}", err=True, fg="red")
        raise typer.Exit(2) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever reads has gone, and typer ends without a word
            raise
        told = (
            f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror or error
        )
        typer.secho(f"kvtide: {told}", err=True, fg="red")
        raise typer.Exit(1) from error
    if status:
        raise typer.Exit(status)


def lengths(text: str, option: str) -> tuple[int, ...]:
    """Numbers above 0, comma-separated, as `option` has them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers above 0", param_hint=option)
    return tuple(int(part) for part in parts)


def sizes(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers from 0 on, comma-separated; underscores may part their digits."""
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers from 0 on", param_hint=option)
    return tuple(int(part) for part in parts)


def names(text: str) -> tuple[str, ...]:
    """Whatever is between commas."""
    return tuple(name.strip() for name in text.split(","))


def percents(text: str, option: str) -> tuple[int, ...]:
    """Whole percents below 100, comma-separated."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) <= 99 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of percents from 0 to 99", param_hint=option)
    return tuple(int(part) for part in parts)
