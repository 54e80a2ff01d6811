"""Who may ask what, and that a client who misbehaves is a burden to nobody."""

import contextlib
import logging
import socket
import threading
import time

import pytest

from kvstore.admin import AdminConfig, serve
from kvstore.admin.guard import MAX_CLIENTS, RateLimit, Role
from kvstore.admin.routes import ROUTES
from tests.kvstore.admin.asking import ask, connect, read_all
from tests.kvstore.admin.small_subject import SmallSubject, key

V1 = "/admin/v1"
TOKEN, READ_TOKEN = "full-token-0123456789", "read-token-0123456789"
FULL, READ = f"Bearer {TOKEN}", f"Bearer {READ_TOKEN}"
BODIES = {
    "explain": {"text": "a"},
    "warm": {"text": "a"},
    "demote": {"to": "host"},
    "config": {"ttl_s": 5},
}


def every_route():
    """Method, path and a body that fits, of each route, and the role that it needs."""
    for route in ROUTES:
        if route.path != f"{V1}/events":
            path = (
                route.path.replace("{key}", key(1))
                .replace("{id}", "7")
                .replace("{cache}", "handbook")
                .replace("{tenant}", "acme")
                .replace("{name:.+}", "x.js")
            )
            body = None if route.body is None else BODIES.get(path.rpartition("/")[2], {})
            yield route.method, path, body, route.role


# --- tokens and roles -----------------------------------------------------------------------------------------------


def test_each_route_asks_for_its_role(open_server):
    url = open_server(token=TOKEN, read_token=READ_TOKEN).url
    for method, path, body, role in every_route():
        nobody = ask(url, path, method, body)
        reader = ask(url, path, method, body, Authorization=READ)
        everything = ask(url, path, method, body, Authorization=FULL)
        assert (nobody.status == 401) == (role > Role.NONE), (method, path)
        assert (reader.status == 403) == (role > Role.READ), (method, path)
        assert everything.status not in (401, 403), (method, path)
        if nobody.status == 401:
            assert nobody.headers["www-authenticate"] == 'Bearer realm="kvtide"'


def test_who_only_reads_changes_nothing(open_server, subject):
    url = open_server(token=TOKEN, read_token=READ_TOKEN).url
    before = (dict(subject.runs), subject.settings(), subject.draining)
    for method, path, body, _ in every_route():
        ask(url, path, method, body, Authorization=READ)
    assert (subject.runs, subject.settings(), subject.draining) == before


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer " + "x" * 4000,
        "Bearer \xff\xfe",
    ],
)
def test_a_wrong_token_is_no_token(open_server, given):
    assert ask(open_server(token=TOKEN).url, f"{V1}/tiers", Authorization=given).status == 401


def test_with_a_read_token_alone_nobody_changes_anything(open_server):
    url = open_server(read_token=READ_TOKEN).url
    assert ask(url, f"{V1}/tiers", Authorization=READ).status == 200
    assert ask(url, f"{V1}/flush", "POST", {}, Authorization=READ).status == 403


def test_text_needs_the_full_role(open_server, subject):
    url = open_server(token=TOKEN, read_token=READ_TOKEN, show_text=True).url
    assert ask(url, f"{V1}/prefixes?text=true", Authorization=READ).status == 403
    assert ask(url, f"{V1}/prefixes?text=true", Authorization=FULL).status == 200
    for who in (READ, FULL):
        assert ask(url, f"{V1}/explain", "POST", {"text": "a"}, Authorization=who).status == 200
    assert subject.asked_text == [False, True]


@pytest.mark.parametrize("shown", [False, True])
def test_names_of_tenants_need_the_full_role_or_leave(open_server, subject, monkeypatch, shown):
    def row(more):
        return {
            "used_bytes": {"device": 1 + more, "host": 0},
            "evicted_copies": 10 * more,
            "evictions_asked": 0,
        }

    tenants = {"": row(0), "*": row(1), "acme": row(2), "other": row(3)}
    stats, settings = subject.stats(), {"ttl_s": 5, "tenant_quotas": {"acme": {"host": 0.5}}}
    stats["engine"] = {**stats["engine"], "tenants": tenants}
    monkeypatch.setattr(subject, "stats", lambda: stats)
    monkeypatch.setattr(subject, "settings", lambda: settings)
    url = open_server(token=TOKEN, read_token=READ_TOKEN, show_tenants=shown).url
    used = 'kvtide_tenant_used_bytes{tenant="%s",tier="device"} %s'
    for who, named in ((READ, shown), (FULL, True)):
        metrics = ask(url, "/metrics", Authorization=who).body.decode()
        assert ("acme" in metrics) == named
        assert (used % ("*", 2.0) in metrics) == named
        assert (used % ("*", 2.0 + 3.0 + 4.0) in metrics) != named
        assert used % ("", 1.0) in metrics
        config = ask(url, f"{V1}/config", Authorization=who).json["settings"]
        assert ("tenant_quotas" in config) == named


def test_no_token_is_ever_logged(open_server, caplog):
    """Whether it is right, wrong, malformed, or where it does not belong."""
    caplog.set_level(logging.DEBUG)
    server = open_server(token=TOKEN, read_token=READ_TOKEN)
    url = server.url
    for who in (FULL, READ, f"Bearer {TOKEN}x", f"Digest {TOKEN}"):
        for method, path, body, _ in every_route():
            ask(url, path, method, body, Authorization=who)
    ask(url, f"{V1}/tiers?token={TOKEN}", Authorization=FULL)
    ask(url, f"/{TOKEN}")
    with connect(url) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\x00\r\n\r\n".encode())
        answered = read_all(connection)
    assert b" 400 " in answered
    assert TOKEN.encode() not in answered
    server.close()
    assert caplog.records, "something was logged at all"
    logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert TOKEN not in logged
    assert READ_TOKEN not in logged


def test_an_access_is_logged_with_its_facts(open_server, caplog):
    caplog.set_level(logging.INFO, "kvstore.admin.access")
    server = open_server(token=TOKEN, read_token=READ_TOKEN)
    reply = ask(server.url, f"{V1}/prefixes/{key(1)}", Authorization=READ, X_Request_Id="mine-1")
    assert reply.headers["x-request-id"] == "mine-1"
    odd = ask(server.url, "/healthz", X_Request_Id="a b\tc" * 50)
    assert len(odd.headers["x-request-id"]) == 32
    server.close()  # an access is logged once its answer has been sent
    record = next(record for record in caplog.records if getattr(record, "request_id", "") == "mine-1")
    assert (record.method, record.route, record.status, record.role) == (
        "GET",
        f"{V1}/prefixes/{{key}}",
        200,
        "read",
    )
    assert 0 <= record.seconds < 10


# --- pages from elsewhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "[::2]:80", ""]
)
def test_a_name_that_was_bent_to_this_machine_is_not_answered(server, host):
    for method, path, body, _ in every_route():
        assert ask(server.url, path, method, body, Host=host).status == 403, path


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9", "127.0.0.1", "127.0.0.1:1", "[::1]:80", "[::1]"]
)
def test_names_of_loopback_are_answered(server, host):
    assert ask(server.url, f"{V1}/tiers", Host=host).status == 200


def test_with_a_token_any_name_is_answered(open_server):
    url = open_server(token=TOKEN).url
    assert ask(url, f"{V1}/tiers", Host="kv.example", Authorization=FULL).status == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:1", "file://", "http://[", "chrome-extension://x"],
)
@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_page_of_another_origin_may_not_ask(open_server, subject, origin, token):
    url = open_server(token=token).url
    before = subject.settings()
    for method, path, body, _ in every_route():
        reply = ask(url, path, method, body, Origin=origin, Authorization=FULL)
        assert reply.status == 403, path
        assert not [name for name in reply.headers if name.startswith("access-control")]
    assert subject.settings() == before


def test_our_own_page_may_ask(server):
    for origin in (server.url, server.url.replace("http:", "https:")):
        reply = ask(server.url, f"{V1}/resume", "POST", {}, Origin=origin)
        assert reply.status == 200


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "application/jsonx",
    ],
)
def test_a_form_of_another_page_changes_nothing(server, subject, kind):
    """Forms may send these types to anybody without being asked whether they may."""
    for method, path, body, _ in every_route():
        if body is not None:
            reply = ask(server.url, path, method, raw=b'{"to": "host"}', Content_Type=kind)
            assert reply.status == 415, path
    assert not subject.draining


def test_a_compressed_body_is_not_taken(server):
    reply = ask(server.url, f"{V1}/resume", "POST", raw=b"x", Content_Encoding="gzip")
    assert reply.status == 415


def test_every_answer_is_held_to_its_place(open_server):
    """Headers that keep browsers from running, framing, guessing or keeping what they got."""
    url = open_server(token=TOKEN).url
    answers = [
        ask(url, "/"),
        ask(url, "/healthz"),
        ask(url, f"{V1}/tiers"),
        ask(url, f"{V1}/tiers", Authorization=FULL),
        ask(url, "/nope"),
        ask(url, f"{V1}/explain"),
    ]
    for reply in answers:
        policy = dict(
            part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == ("no-cache" if reply is answers[0] else "no-store")
        assert reply.headers["x-request-id"]


# --- limits ---------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_long(open_server):
    url = open_server(max_body_bytes=1000).url
    path = f"{V1}/explain"
    assert ask(url, path, "POST", {"text": "a" * 900}).status == 200
    reply = ask(url, path, "POST", {"text": "a" * 2000})
    assert (reply.status, reply.headers["content-type"]) == (413, "application/problem+json")
    with connect(url) as connection:  # of no stated length
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        connection.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n0\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_who_asks_too_often_is_told_when_to_come_again(open_server):
    url = open_server(max_requests_per_s=5).url
    statuses = [ask(url, "/healthz").status for _ in range(8)]
    assert statuses[:5] == [200] * 5
    assert statuses[-1] == 429
    reply = ask(url, f"{V1}/tiers")
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")


def test_the_rate_in_exact_figures():
    now_s = [0.0]
    limit = RateLimit(2, clock=lambda: now_s[0])
    assert [limit.take("a") for _ in range(3)] == [0.0, 0.0, 0.5]
    assert limit.take("b") == 0.0, "each client has its own"
    now_s[0] = 0.25
    assert limit.take("a") == 0.25
    now_s[0] = 0.5
    assert [limit.take("a") for _ in range(2)] == [0.0, 0.5]
    now_s[0] = 100.0
    assert [limit.take("a") for _ in range(3)] == [0.0, 0.0, 0.5], "a bucket holds a second's worth"
    assert RateLimit(0).take("a") == 0.0
    assert [RateLimit(0.5).take("a")] == [0.0], "less than one a second still lets one through"


def test_the_rate_is_kept_of_so_many_clients_only():
    limit = RateLimit(1, clock=lambda: 0.0)
    for number in range(2 * MAX_CLIENTS):
        limit.take(str(number))
    assert len(limit._buckets) == MAX_CLIENTS
    assert limit.take(str(2 * MAX_CLIENTS - 1)) > 0


def test_a_subject_that_hangs_is_waited_for_on_few_threads(open_server, subject):
    """Who is too many is told so at once, and what does not hang is answered."""
    url = open_server(request_timeout_s=20).url
    subject.gate.clear()
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: statuses.append(ask(url, f"{V1}/explain", "POST", {"text": "a"}).status)
        )
        for _ in range(90)
    ]
    for thread in threads:
        thread.start()
    while len(statuses) < 90 - 72:
        time.sleep(0.01)
    assert set(statuses) == {503}
    assert len([t for t in threading.enumerate() if t.name.startswith("kvtide-admin-call")]) == 8
    assert ask(url, "/healthz").status == ask(url, "/readyz").status == ask(url, f"{V1}/tiers").status == 200
    assert ask(url, f"{V1}/config").headers["retry-after"] == "1"
    subject.gate.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 72 + [503] * 18


def test_a_subject_that_takes_too_long(open_server, subject):
    url = open_server(request_timeout_s=0.2).url
    subject.gate.clear()
    reply = ask(url, f"{V1}/explain", "POST", {"text": "a"})
    assert (reply.status, reply.json["detail"]) == (503, "the cache did not answer within 0.2 seconds")


# --- connections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /healthz HT",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-",
        b"POST /admin/v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",  # answered, and then silent
    ],
)
def test_a_connection_that_falls_silent_is_closed(open_server, beginning):
    url = open_server(request_timeout_s=0.3).url
    with connect(url) as connection:
        connection.sendall(beginning)
        began_s = time.monotonic()
        answer = read_all(connection)
        assert time.monotonic() - began_s < 5
    if b"explain" in beginning:
        assert answer.startswith(b"HTTP/1.1 408 ")
    assert ask(url, "/healthz").status == 200


def test_a_request_that_trickles_in_is_given_up(open_server):
    url = open_server(request_timeout_s=0.3).url
    with connect(url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        began_s = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began_s < 10:
                connection.sendall(b"X-A: b\r\n")
                threading.Event().wait(0.05)
        assert time.monotonic() - began_s < 5, "it was closed on the other side"


def test_an_answer_that_nobody_reads_is_given_up(open_server, caplog):
    caplog.set_level(logging.INFO, "kvstore.admin.access")

    class Long(SmallSubject):
        def settings(self):
            return {"much": "x" * 30_000_000}

    server = open_server(Long(), request_timeout_s=0.5)
    with connect(server.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /admin/v1/config HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ask(server.url, "/healthz").status == 200
        began_s = time.monotonic()
        while not [record for record in caplog.records if getattr(record, "status", 0) == 499]:
            assert time.monotonic() - began_s < 10
            threading.Event().wait(0.05)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_told_so(server, sent):
    with connect(server.url) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), head
        assert b"content-security-policy" in head.lower()
        assert b"application/problem+json" in head
        assert b"yyyy" not in body
    assert ask(server.url, "/healthz").status == 200


def test_connections_are_bounded(open_server):
    server = open_server(max_connections=20, max_listeners=5)
    held = [connect(server.url) for _ in range(20)]
    try:
        while True:  # until the last of them has been taken
            with connect(server.url) as one_more:
                one_more.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = read_all(one_more)
            if not answer.startswith(b"HTTP/1.1 200"):
                break
        assert answer.startswith(b"HTTP/1.1 503 ") or not answer
    finally:
        for connection in held:
            connection.close()
    while ask(server.url, "/healthz").status != 200:
        threading.Event().wait(0.01)


def test_half_open_connections_hold_up_nobody(open_server):
    server = open_server(request_timeout_s=5)
    held = [connect(server.url) for _ in range(200)]
    try:
        for number, connection in enumerate(held):
            if number % 2:
                connection.sendall(b"POST /admin/v1/explain HTTP/1.1\r\nHost: loc")
        began_s = time.monotonic()
        assert [ask(server.url, "/healthz").status for _ in range(20)] == [200] * 20
        assert time.monotonic() - began_s < 3
    finally:
        for connection in held:
            connection.close()


# --- the end --------------------------------------------------------------------------------------------------------


def test_closing_is_quick_whatever_hangs(subject):
    subject.gate.clear()
    server = serve(subject, AdminConfig(port=0))
    asking = [
        threading.Thread(target=_asked, args=(server.url, path), daemon=True)
        for path in ("explain", "warm", "verify")
    ]
    for thread in asking:
        thread.start()
    with connect(server.url) as listening, connect(server.url):
        listening.sendall(b"GET /admin/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        listening.recv(100)
        began_s = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - began_s < 8
        assert not server._thread.is_alive()
        read_all(listening)
    with pytest.raises(OSError):
        connect(server.url)
    subject.gate.set()
    for thread in asking:
        thread.join(10)


def _asked(url: str, action: str) -> None:
    with contextlib.suppress(OSError):
        ask(url, f"{V1}/{action}", "POST", {"text": "a"} if action != "verify" else {})
