"""Log lines that programs read: one JSON object each (docs/logs.md)."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LEVELS = ("debug", "info", "warning", "error")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# What logging itself puts on a record; the rest came by `extra`.
_LOGGINGS_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OURS = ("ts", "level", "logger", "message", "exc", "stack")
_DEEPEST = 6  # what lies deeper is written as text: it may hold itself


class JsonFormatter(logging.Formatter):
    """Makes a line of a record: ts, level, logger and message, then what `extra` gave, then exc where there is one.

    What JSON has no word for is written as text; of `extra`, a name that is one of ours gets an underscore. Whatever a record
    holds, it is formatted, and nothing is raised: a line of a log must not end what logs it. Any thread may call it.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": _time(record),
            "level": str(record.levelname).lower(),
            "logger": str(record.name),
            "message": _message(record),
        }
        for name, value in vars(record).items():
            if name not in _LOGGINGS_OWN:
                line[f"{name}_" if name in _OURS else name] = _plain(value)
        if record.exc_info or record.exc_text:
            line["exc"] = self._exception(record)
        if record.stack_info:
            line["stack"] = _text(record.stack_info)
        try:
            return json.dumps(line, allow_nan=False)
        except Exception:  # noqa: BLE001 - what `extra` gave is not ours; the sentence is worth more than it
            return json.dumps({name: str(line[name]) for name in _OURS[:4]})

    def _exception(self, record: logging.LogRecord) -> str:
        if record.exc_text:
            return _text(record.exc_text)
        try:
            return self.formatException(record.exc_info)  # type: ignore[arg-type]  # what is none raises, and is text
        except Exception:  # noqa: BLE001 - an exception's own __str__ may raise
            return _text(record.exc_info)


def configure(
    level: str = "info",
    format: Literal["text", "json"] = "text",  # noqa: A002 - the name of the option
    stream: TextIO | None = None,
) -> None:
    """Have everything from `level` on written to `stream`, standard error by default, a line each.

    For command lines: it changes the process's root logger. Called again it replaces what it set up before, and leaves
    what others did. Raises ValueError for a level or format that there is not.
    """
    if level not in LEVELS:
        raise ValueError(f"the log level must be one of {', '.join(LEVELS)}, got {level!r}")
    if format not in _FORMATTERS:
        raise ValueError(f"the log format must be one of {', '.join(_FORMATTERS)}, got {format!r}")
    root = logging.getLogger()
    for ours in [handler for handler in root.handlers if isinstance(handler, _Stream)]:
        root.removeHandler(ours)
    handler = _Stream(stream or sys.stderr)
    handler.setFormatter(_FORMATTERS[format]())
    root.addHandler(handler)
    root.setLevel(level.upper())


class _Stream(logging.StreamHandler[TextIO]):
    """What `configure` has set up."""


_FORMATTERS = {"text": lambda: logging.Formatter(_TEXT), "json": JsonFormatter}


# --- of a record ----------------------------------------------------------------------------------------------------


def _time(record: logging.LogRecord) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    try:
        when = datetime.fromtimestamp(record.created, UTC)
    except (OverflowError, OSError, TypeError, ValueError):  # a record that somebody made by hand
        return _text(record.created)
    return when.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return str(record.getMessage())
    except Exception:  # noqa: BLE001 - arguments that do not fit the sentence, or whose __str__ raises
        return f"{_text(record.msg)} {_text(record.args)}"


def _plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON has it; as text where it has no word for it."""
    # kinds by name: an enum or a number of numpy's is its own class, and is text unless it is one of these
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else _text(value)
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else _text(value)
    if isinstance(value, str) or depth == _DEEPEST:
        return _text(value)
    try:
        if isinstance(value, Mapping):
            return {_text(name): _plain(inner, depth + 1) for name, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(inner, depth + 1) for inner in value]
    except Exception:  # noqa: BLE001 - a container that changes, or fails, while it is read
        return _text(value)
    return _text(value)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - somebody's own __str__
        return f"<{type(value).__name__} that cannot be printed>"
