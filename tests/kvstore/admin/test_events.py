"""Server-sent events: what each listener is told, and that many of them, and slow ones, burden nobody."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvstore.admin import listeners
from kvstore.admin.asking import Asking
from kvstore.reports import Event
from tests.kvstore.admin.asking import ask, connect
from tests.kvstore.admin.small_subject import SmallSubject

PATH = "/admin/v1/events"


@contextmanager
def listening(
    url: str, query: str = "", *headers: str, receive_bytes: int | None = None
) -> Iterator[socket.socket]:
    """A connection that has been told that it is heard."""
    connection = connect(url)
    try:
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        lines = [f"GET {PATH}{query} HTTP/1.1", "Host: localhost", *headers]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        yield connection
    finally:
        connection.close()


def told(connection: socket.socket, num_events: int) -> list[tuple[str, str, dict]]:
    """Events as they come: id, event and data."""
    found: list[tuple[str, str, dict]] = []
    lines = connection.makefile("rb")
    fields: dict[str, str] = {}
    while len(found) < num_events:
        line = lines.readline().decode().rstrip("\r\n")
        if line.startswith(("id: ", "event: ", "data: ")):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif not line and "data" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
            fields = {}
    return found


def heard(connection: socket.socket) -> None:
    """Wait until the stream has begun."""
    found = b""
    while b": kvtide" not in found:
        found += connection.recv(1000)
    assert b"text/event-stream" in found


def test_what_happened_since_is_told_first(server, subject):
    for kind in ("demoted", "evicted", "read"):
        subject.happen(kind, blocks=2)
    with listening(server.url, "?after=1") as connection:
        assert told(connection, 2) == [
            (
                "2",
                "evicted",
                {"number": 2, "at_s": subject.happened[1].at_s, "kind": "evicted", "facts": {"blocks": 2}},
            ),
            (
                "3",
                "read",
                {"number": 3, "at_s": subject.happened[2].at_s, "kind": "read", "facts": {"blocks": 2}},
            ),
        ]
        subject.happen("written")
        assert told(connection, 1)[0][:2] == ("4", "written")


def test_who_comes_again_says_what_it_knows(server, subject):
    for _ in range(4):
        subject.happen("read")
    with listening(server.url, "?after=1", "Last-Event-ID: 3") as connection:
        assert told(connection, 1)[0][0] == "4"


def test_without_a_number_only_what_comes(server, subject):
    subject.happen("read")
    with listening(server.url) as connection:
        heard(connection)
        for _ in range(20):  # told from the first poll on, which is at once
            subject.happen("written")
            threading.Event().wait(0.02)
        assert all(kind == "written" for _, kind, _ in told(connection, 3))


def test_numbers_that_are_missing_are_told_as_a_gap(server, subject):
    subject.happened = [Event(number=number, at_s=0.0, kind="read") for number in (10, 11, 15)]
    with listening(server.url, "?after=3") as connection:
        assert [(id_, kind) for id_, kind, _ in told(connection, 5)] == [
            ("9", "gap"),
            ("10", "read"),
            ("11", "read"),
            ("14", "gap"),
            ("15", "read"),
        ]
    with listening(server.url, "?after=3") as connection:
        assert told(connection, 1)[0][2] == {"first": 4, "last": 9}


@pytest.mark.parametrize("happened", [0, 2])
def test_numbers_from_before_a_restart_are_forgotten(server, subject, happened):
    for _ in range(happened):
        subject.happen("read")
    with listening(server.url, "?after=500") as connection:
        heard(connection)
        threading.Event().wait(0.6)
        subject.happen("written")
        assert [id_ for id_, _, _ in told(connection, 1)] == ["1"]


def test_who_comes_from_before_a_restart_while_something_happens_misses_nothing():
    """Others are there already, and are told of what is new alone."""
    subject = SmallSubject()
    told_to = listeners.Listeners(Asking(subject, 5.0), max_listeners=2)
    there, late = (listeners._Listener(None, after) for after in (0, 500))

    async def polled() -> list[list[bytes]]:
        subject.happen("read")
        told_to._listeners.add(there)
        await told_to._poll()
        subject.happen("written")
        told_to._listeners.add(late)
        await told_to._poll()
        return [[each.pieces.get_nowait() for _ in range(each.pieces.qsize())] for each in (there, late)]

    for pieces in asyncio.run(polled()):
        told_in_all = b"".join(pieces)
        assert [told_in_all.count(b"event: " + kind) for kind in (b"read", b"written", b"gap")] == [1, 1, 0]


def test_each_is_told_all_and_the_subject_is_asked_once(open_server):
    """300 listeners on one poller, whatever each knows already."""

    class Counting(SmallSubject):
        num_polls = 0

        def events(self, after):
            self.num_polls += 1
            return super().events(after)

    subject = Counting()
    server = open_server(subject, max_listeners=300, max_requests_per_s=0)
    subject.happen("read")
    opened = [listening(server.url, f"?after={number % 2}") for number in range(300)]
    connections = [each.__enter__() for each in opened]
    try:
        for number, connection in enumerate(connections):
            if number % 2 == 0:
                assert told(connection, 1)[0][0] == "1"
            else:
                heard(connection)
        polls, began_s = subject.num_polls, time.monotonic()
        for _ in range(3):
            subject.happen("written")
            threading.Event().wait(0.3)
        for connection in connections:
            assert [id_ for id_, _, _ in told(connection, 3)] == ["2", "3", "4"]
        assert subject.num_polls - polls <= (time.monotonic() - began_s) / listeners.POLL_S + 2
        assert "\nkvtide_http_listeners 300.0\n" in ask(server.url, "/metrics").body.decode()
        reply = ask(server.url, PATH)
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert ask(server.url, "/healthz").status == 200
    finally:
        for each in opened:
            each.__exit__(None, None, None)


def test_nobody_is_asked_while_nobody_listens(server, subject):
    asked: list[int] = []
    real = subject.events
    subject.events = lambda after: (asked.append(after), real(after))[1]
    with listening(server.url, "?after=0") as connection:
        heard(connection)
        while not asked:
            threading.Event().wait(0.01)
    threading.Event().wait(1.0)
    before = len(asked)
    threading.Event().wait(0.6)
    assert len(asked) == before


def test_a_listener_that_does_not_read_is_dropped_and_others_are_told(server, subject):
    """It may come again; what waited for it is not kept."""
    with (
        listening(server.url, receive_bytes=4096) as slow,
        listening(server.url, "?after=0") as quick,
    ):
        heard(quick)
        quick.settimeout(30)
        threading.Event().wait(0.3)
        last = 0
        for _ in range(60):
            subject.happen("read", filler="x" * 400_000)
            last += 1
            assert int(told(quick, 1)[0][0]) == last
            if _dropped(slow):
                break
        assert _dropped(slow)
        assert last < 60


def _dropped(connection: socket.socket) -> bool:
    """Whether the other side has torn the connection down; what it had sent is not read."""
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 or _state(connection) != 1


def _state(connection: socket.socket) -> int:
    """The TCP state, as Linux numbers them: 1 is established."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_who_is_told_nothing_hears_that_it_is_still_there(server, subject, monkeypatch):
    monkeypatch.setattr(listeners, "HEARTBEAT_S", 0.1)
    with listening(server.url) as connection:
        found = b""
        while found.count(b": still here") < 2:
            found += connection.recv(1000)


def test_closing_ends_the_stream_in_order(server, subject):
    with listening(server.url) as connection:
        heard(connection)
        server.close()
        assert connection.recv(1000).endswith(b"0\r\n\r\n"), "the last chunk, and not a torn connection"


def test_a_subject_that_fails_is_asked_again(open_server, caplog):
    class Moody(SmallSubject):
        num_failures = 0

        def events(self, after):
            if self.num_failures < 2:
                self.num_failures += 1
                raise RuntimeError("not now")
            return super().events(after)

    subject = Moody()
    subject.happen("read")
    with listening(open_server(subject).url, "?after=0") as connection:
        assert told(connection, 1)[0][0] == "1"
    assert "not now" in caplog.text


@pytest.mark.parametrize("query", ["?after=-1", "?after=x", "?before=1", "?after=99999999999999999999"])
def test_a_number_that_is_none(server, query):
    assert ask(server.url, PATH + query).status == 400


def test_an_event_is_written_once_for_all_who_come_at_once(monkeypatch):
    """However much less than others each of them knows: else a few listeners would keep the event loop busy."""
    make_piece, made = listeners._piece, []

    def counting(kind, data, number):
        made.append(number)
        return make_piece(kind, data, number)

    monkeypatch.setattr(listeners, "_piece", counting)
    news = listeners._News([Event(number=number, at_s=0.0, kind="read") for number in range(1, 101)])
    told_to = [news.behind(last) for last in range(101)]
    assert made == list(range(1, 101))
    assert [piece.count(b"event: read") for piece in told_to] == list(range(100, -1, -1))
