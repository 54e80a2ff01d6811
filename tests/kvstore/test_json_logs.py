"""Log lines as JSON: one object a line, with all that was given, whatever was given."""

import io
import json
import logging
import sys
import threading
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import MissReason
from kvstore.json_logs import JsonFormatter, configure


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Colour(Enum):
    RED = 1


class Broken(Mapping):
    def __getitem__(self, key) -> object:
        raise RuntimeError("no")

    def __iter__(self) -> NoReturn:
        raise RuntimeError("no")

    def __len__(self) -> int:
        return 1

    def __str__(self) -> str:
        return "broken"


def record_of(message="said", *args: object, **extra):
    record = logging.LogRecord("kvstore.disk", logging.WARNING, __file__, 1, message, args, None)
    vars(record).update(extra)
    return record


def line_of(record):
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


@pytest.fixture
def lines():
    """What is logged while the test runs, as text; the root logger is as before afterwards."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = list(root.handlers), root.level
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


# --- the fields -----------------------------------------------------------------------------------------------------


def test_a_line_has_time_level_logger_and_sentence():
    record = record_of("%d of %s", 3, "them")
    record.created = 1_700_000_000.25
    assert line_of(record) == {
        "ts": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "kvstore.disk",
        "message": "3 of them",
    }


def test_what_extra_gave_comes_as_it_is():
    given_ = {"request_id": "ab12", "request": 7, "blocks": [1, 2], "sizes": {"host": 1.5}, "open": None}
    line = line_of(record_of(**given_))
    assert {name: line[name] for name in given_} == given_


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Path("/a/b"), "/a/b"),
        (MissReason.EVICTED, "evicted"),
        (Colour.RED, "Colour.RED"),
        (b"ab", "b'ab'"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (2**63, "9223372036854775808"),
        (10**5000, "<int that cannot be printed>"),
        ((1, {2}), [1, [2]]),
        ({1: {"a": Path("b")}}, {"1": {"a": "b"}}),
        (True, True),
        ("a\nb\u2028\ud800", "a\nb\u2028\ud800"),
        (Unprintable(), "<Unprintable that cannot be printed>"),
        (Broken(), "broken"),
        ({Unprintable(): 1}, {"<Unprintable that cannot be printed>": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_has_no_word_for_is_text(value, written):
    assert line_of(record_of(value=value))["value"] == written


def test_what_holds_itself_is_cut():
    loop = []
    loop.append(loop)
    assert line_of(record_of(value=loop))["value"]


def test_extra_cannot_take_the_place_of_a_field():
    line = line_of(record_of(ts=1, level=2, logger=3, exc=4))
    assert (line["ts_"], line["level_"], line["logger_"], line["exc_"]) == (1, 2, 3, 4)
    assert line["logger"] == "kvstore.disk"
    assert "exc" not in line


def test_an_exception_is_one_string():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = record_of(exc_info=sys.exc_info())
    line = line_of(record)
    assert line["exc"].startswith("Traceback")
    assert line["exc"].endswith("ValueError: two\nlines")


def test_a_stack_is_one_string():
    assert line_of(record_of(stack_info="Stack:\n  here"))["stack"] == "Stack:\n  here"


# --- whatever is given ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        record_of("%d and %d", 1),
        record_of("%s", Unprintable()),
        record_of(Unprintable()),
        record_of(exc_info=(ValueError, None, None)),
        record_of(exc_info="no exception"),
        record_of(created="yesterday"),
        record_of(created=float("nan")),
        record_of(created=1e300),
        record_of(levelname=None),
        record_of(name=7),
    ],
    ids=lambda record: str(type(record.created)),
)
def test_an_odd_record_is_a_line(record):
    assert {"ts", "level", "logger", "message"} <= set(line_of(record))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(Unprintable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.text(), st.lists(values, max_size=3), st.dictionaries(st.text(min_size=1), values, max_size=4))
def test_any_record_is_one_object_on_one_line(message, args, extra):
    record = record_of(message, *args)
    own = set(vars(record))
    vars(record).update({name: value for name, value in extra.items() if name not in own})
    line = line_of(record)
    assert line["logger"] == "kvstore.disk"
    assert len(line) >= 4 + len(set(extra) - own - {"message", "asctime", "taskName"})


# --- set up ---------------------------------------------------------------------------------------------------------


def test_threads_write_whole_lines(lines):
    configure("info", "json", lines)
    log = logging.getLogger("kvstore.test")
    ready = threading.Barrier(8)

    def write(number):
        ready.wait()
        for count in range(50):
            log.info("line %d", count, extra={"request_id": f"r{number}", "request": count})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert len(written) == 8 * 50
    for number in range(8):
        of_one = [line for line in written if line["request_id"] == f"r{number}"]
        assert [line["request"] for line in of_one] == list(range(50))
        assert all(line["message"] == f"line {line['request']}" for line in of_one)


def test_the_level_holds(lines):
    configure("warning", "json", lines)
    logging.getLogger("kvstore.test").info("not this")
    logging.getLogger("kvstore.test").warning("but this")
    [line] = lines.getvalue().splitlines()
    assert json.loads(line)["message"] == "but this"


def test_called_again_it_replaces_itself_and_nobody_else(lines):
    others = logging.NullHandler()
    logging.getLogger().addHandler(others)
    configure("info", "json", io.StringIO())
    configure("info", "text", lines)
    logging.getLogger("kvstore.test").info("said", extra={"request": 1})
    [line] = lines.getvalue().splitlines()
    assert line.endswith("INFO kvstore.test: said")
    assert others in logging.getLogger().handlers


@pytest.mark.parametrize("chosen", [{"level": "loud"}, {"level": "INFO"}, {"format": "xml"}])
def test_a_level_or_format_that_there_is_not_is_refused(chosen, lines):
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(ValueError, match="must be one of"):
        configure(**chosen)
    assert logging.getLogger().handlers == handlers
