"""What verbs share: lists in their options, and telling what users can mend."""

from collections.abc import Callable

import typer


def plainly(job: Callable[[], int | None]) -> None:
    """Turn what a user can mend into one sentence on standard error, without a traceback; exit with the job's status."""
    try:
        status = job()
    except ValueError as error:
        typer.secho(f"kvtide: {error}", err=True, fg="red")
        raise typer.Exit(2) from error
    if status:
        raise typer.Exit(status)


def lengths(text: str, option: str) -> tuple[int, ...]:
    """Numbers above 0, comma-separated, as `option` has them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers above 0", param_hint=option)
    return tuple(int(part) for part in parts)


def sizes(text: str, option: str) -> tuple[int, ...]:
    """Numbers, comma-separated; underscores may part their digits."""
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers", param_hint=option)
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
