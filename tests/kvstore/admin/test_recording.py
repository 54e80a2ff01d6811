"""A recording over HTTP: what is sent, one at a time, and that it ends with its connection."""

import http.client
import threading

from tests.kvstore.admin.asking import ask

PATH = "/admin/v1/recording"


def test_what_is_recorded_is_sent_to_its_end(server, subject):
    reply = ask(server.url, f"{PATH}?for_s=1.5&max_bytes=5000")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.body.splitlines()[-1] == b'{"ended":"seconds","requests":0,"dropped":0}'
    assert (subject.recorded.max_s, subject.recorded.max_bytes) == (1.5, 5000)
    assert subject.recorded.closed.wait(5)


def test_there_is_one_at_a_time_and_it_ends_with_the_endpoint(open_server, subject):
    subject.gate.clear()  # it goes on
    server = open_server()
    host = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", PATH)
    answer = connection.getresponse()
    assert answer.readline().startswith(b'{"format"')
    assert ask(server.url, PATH).status == 503
    server.close()
    assert answer.read() == b""
    assert subject.recorded.closed.wait(5)
    connection.close()


def test_who_has_gone_ends_the_recording(open_server, subject, monkeypatch):
    """The writer, which may wait for room, is told."""
    monkeypatch.setattr("kvstore.admin.recordings.HEARTBEAT_S", 0.02)
    subject.gate.clear()
    server = open_server()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.request("GET", PATH)
    connection.getresponse().readline()
    connection.close()
    assert subject.recorded.closed.wait(10)
    told = threading.Event()
    try:
        subject.recorded.target.write(b"more\n")
    except BrokenPipeError:
        told.set()
    assert told.is_set()
    subject.gate.set()
    assert ask(server.url, PATH).status == 200, "another may begin"


def test_what_cannot_be_asked_for_is_said(server):
    for wrong in ("for_s=0", "for_s=x", "max_bytes=1", "path=/etc/passwd"):
        assert ask(server.url, f"{PATH}?{wrong}").status == 400, wrong
