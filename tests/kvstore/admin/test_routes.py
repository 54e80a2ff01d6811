"""What each route answers, and how it says what is wrong with a request."""

import threading
import time

import pytest

from kvstore.admin.routes import ROUTES
from tests.kvstore.admin.asking import ask
from tests.kvstore.admin.small_subject import BLOCK, PROMPT_TEXT, SmallSubject, key, run

V1 = "/admin/v1"


def ended(server, id_: str):
    """A job, once it has ended."""
    for _ in range(1000):
        job = ask(server.url, f"{V1}/jobs/{id_}").json
        if job["state"] != "running":
            return job
        threading.Event().wait(0.01)
    raise AssertionError(job)


def test_every_get_answers(server):
    for route in ROUTES:
        if route.method != "GET" or route.path in ("/", "/metrics", f"{V1}/events", f"{V1}/recording"):
            continue
        path = route.path.replace("{key}", key(1)).replace("{id}", "7")
        path = path.replace("{cache}", "handbook").replace("{tenant}", "acme")
        if "/jobs/" in path or "/page/" in path:
            continue
        reply = ask(server.url, path)
        assert reply.status == 200, path
        assert reply.headers["content-type"] == "application/json", path
        head = ask(server.url, path, "HEAD")
        assert (head.status, head.body) == (200, b""), path
        assert head.headers["content-length"] != "0"


def test_names_are_whatever_they_are(server, subject):
    """Percent-encoded in a path, a name may have what separates paths and parts of it."""
    job = ask(server.url, f"{V1}/caches", "POST", {"name": "a/b ?c", "text": "x", "tenant": "d/e"})
    assert ended(server, job.json["id"])["state"] == "done"
    path = f"{V1}/caches/a%2Fb%20%3Fc?tenant=d%2Fe"
    assert ask(server.url, path).json["name"] == "a/b ?c"
    assert ask(server.url, path, "DELETE").status == 200
    assert ask(server.url, path).status == 404
    assert ask(server.url, f"{V1}/tenants/d%2Fe/quota", "PUT", {"weight": 2}).json["tenant"] == "d/e"
    assert list(subject.quotas) == ["d/e"]


def test_probes(server, subject):
    assert ask(server.url, "/healthz").json == {"status": "ok"}
    assert ask(server.url, "/readyz").json == {"status": "ready", "reasons": []}
    assert ask(server.url, "/version").json["name"] == "kvtide"


def test_a_draining_engine_is_not_ready(open_server, subject):
    subject.draining = True
    reply = ask(open_server().url, "/readyz")
    assert (reply.status, reply.json["status"]) == (503, "not ready")
    assert "drains" in reply.json["reasons"][0]


def test_figures_that_cannot_be_had_are_a_reason_not_to_be_ready(open_server):
    class Broken:
        def stats(self):
            raise RuntimeError("the engine has failed: out of memory")

    url = open_server(Broken()).url
    assert ask(url, "/readyz").json["reasons"] == ["the engine has failed: out of memory"]
    assert ask(url, "/healthz").status == 200
    assert ask(url, f"{V1}/tiers").status == 503


def test_a_subject_that_is_closed_was_not_asked_wrongly(open_server):
    class Closed(ValueError, RuntimeError):
        pass

    class Ended(SmallSubject):
        def explain(self, prompt, options=None, *, text=True):
            raise Closed("the engine is closed")

    reply = ask(open_server(Ended()).url, f"{V1}/explain", "POST", {"text": "a"})
    assert (reply.status, reply.json["detail"]) == (503, "the engine is closed")


def test_what_a_subject_lacks_is_not_implemented(open_server):
    class Bare:
        def stats(self):
            return SmallSubject().stats()["cache"]

    url = open_server(Bare()).url
    tiers = ask(url, f"{V1}/tiers")
    assert tiers.status == 200
    assert tiers.json["tiers"][0]["capacity_blocks"] == 8
    assert tiers.json["queue"] is None
    for method, path, body in [
        ("GET", "prefixes", None),
        ("GET", "events", None),
        ("GET", "config", None),
        ("POST", "explain", {"text": "a"}),
        ("POST", "warm", {"text": "a"}),
        ("POST", "flush", {}),
        ("POST", "drain", {}),
        ("POST", "verify", {}),
        ("POST", "demote", {"to": "host"}),
        ("DELETE", f"prefixes/{key(1)}", None),
    ]:
        reply = ask(url, f"{V1}/{path}", method, body)
        assert reply.status == 501, path
        assert reply.headers["content-type"] == "application/problem+json"


def test_tiers_tell_what_the_stats_say(server):
    found = ask(server.url, f"{V1}/tiers").json
    device = found["tiers"][0]
    assert device["name"] == "device"
    assert (device["capacity_blocks"], device["used_blocks"], device["live_blocks"]) == (8, 6, 4)
    assert device["used_bytes"] == 6 * 1024
    assert [tier["on"] for tier in found["tiers"]] == [True, False, False]
    assert found["queue"] == {"waiting": 2, "running": 0}
    assert found["missed_tokens"] == {"never_seen": 3}
    assert {each["name"]: (each["from"], each["to"]) for each in found["transfers"]}["read"] == (
        "disk",
        "host",
    )


def test_prefixes_are_paged_and_filtered(server, subject):
    subject.runs[key(9)] = run(9, parent=key(1))
    page = ask(server.url, f"{V1}/prefixes?limit=2&offset=1&min_hits=2").json
    assert (page["total"], [row["hits"] for row in page["rows"]]) == (4, [3, 4])
    under = ask(server.url, f"{V1}/prefixes?under={key(1)}").json
    assert [row["key"] for row in under["rows"]] == [key(9)]
    assert ask(server.url, f"{V1}/prefixes?under={key(77)}").status == 404


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "$.limit"),
        ("limit=501", "$.limit"),
        ("limit=x", "$.limit"),
        ("offset=99999999999999999999999", "$.offset"),
        ("order=best", "$.order"),
        ("tier=tape", "$.tier"),
        ("under=12", "$.under"),
        (f"under={'a' * 63}%0A", "$.under"),
        (f"under={'a' * 64}%0A", "$.under"),
        ("flat=perhaps", "$.flat"),
        ("colour=red", "$.colour"),
        ("limit=1&limit=2", "$.limit"),
    ],
)
def test_a_wrong_parameter_is_named(server, query, path):
    reply = ask(server.url, f"{V1}/prefixes?{query}")
    assert reply.status == 400
    assert [error["path"] for error in reply.json["errors"]] == [path]


@pytest.mark.parametrize(
    "wrong", ["zz", "1", key(1).upper().replace("0", "F"), key(1) + "0", "%00", "..%2f.."]
)
def test_what_is_no_key_is_not_found(server, wrong):
    for method in ("GET", "DELETE"):
        assert ask(server.url, f"{V1}/prefixes/{wrong}", method).status == 404


def test_removing_a_run(server, subject):
    assert ask(server.url, f"{V1}/prefixes/{key(2)}", "DELETE").json == {"blocks": 2, "in_use_blocks": 0}
    assert key(2) not in subject.runs
    assert ask(server.url, f"{V1}/prefixes/{key(2)}", "DELETE").status == 404


def test_explain_takes_each_form_of_a_prompt(server):
    for body, length in [
        ({"text": "ahoy"}, 4),
        ({"token_ids": [1, 2, 3]}, 3),
        ({"messages": [{"role": "user", "content": "ahoy"}]}, 1),
        ({"text": "ahoy", "tenant": "a", "cache_salt": "b", "salt_offset": 16}, 4),
    ]:
        reply = ask(server.url, f"{V1}/explain", "POST", body)
        assert reply.status == 200, reply.body
        assert reply.json["prompt_tokens"] == length
        assert reply.json["reasons"] == {"never_seen": length}
        assert (reply.json["cached_tokens"], reply.json["block_tokens"]) == (0, BLOCK)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$"),
        ({"text": "a", "token_ids": [1]}, "$"),
        ({"tenant": "a"}, "$"),
        ({"text": None}, "$.text"),
        ({"text": 1}, "$.text"),
        ({"text": "a", "tone": "b"}, "$.tone"),
        ({"token_ids": []}, "$.token_ids"),
        ({"token_ids": [1, 2.5]}, "$.token_ids[1]"),
        ({"token_ids": [1, -1]}, "$.token_ids[1]"),
        ({"token_ids": [2**31]}, "$.token_ids[0]"),
        ({"token_ids": [10**30]}, "$.token_ids[0]"),
        ({"messages": [{"role": "user"}]}, "$.messages[0]"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "$.messages[0].name"),
        ({"text": "a", "salt_offset": -1}, "$.salt_offset"),
        ([], "$"),
        ("text", "$"),
    ],
)
@pytest.mark.parametrize("action", ["explain", "warm"])
def test_a_prompt_that_does_not_fit_is_refused_where_it_does_not(server, action, body, path):
    reply = ask(server.url, f"{V1}/{action}", "POST", body)
    assert (reply.status, reply.headers["content-type"]) == (400, "application/problem+json")
    assert [error["path"] for error in reply.json["errors"]] == [path]


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"\xff",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "a"} x',
        b'{"a":' * 50_000,
        b"[" * 50_000,
        b"",
        b'{"text": NaN}',
    ],
)
def test_what_is_no_json_is_refused(server, raw):
    assert ask(server.url, f"{V1}/explain", "POST", raw=raw).status == 400


@pytest.mark.parametrize(
    "raw", [b'{"ttl_s": 1e400}', b'{"ttl_s": {}}', b'{"ttl_s": [1]}', b"{}", b"[]", b"null"]
)
def test_changes_are_a_flat_object(server, raw):
    assert ask(server.url, f"{V1}/config", "PATCH", raw=raw).status == 400


def test_who_misspells_is_told_what_there_is(server):
    asked = ask(server.url, f"{V1}/explain", "POST", {"prompt": "a"}).json["detail"]
    assert asked.startswith("the body does not fit: Object contains unknown field `prompt`; known are text, ")
    assert "known are limit" in ask(server.url, f"{V1}/requests?size=3").json["detail"]
    assert "/openapi.json lists" in ask(server.url, f"{V1}/promts").json["detail"]


def test_what_the_subject_does_not_take_is_a_bad_request(server):
    reply = ask(server.url, f"{V1}/explain", "POST", {"text": "a", "tenant": "\n"})
    assert reply.status == 400
    assert "tenant must be" in reply.json["detail"]
    reply = ask(server.url, f"{V1}/config", "PATCH", {"block_tokens": 32})
    assert reply.status == 400
    assert "cannot be changed" in reply.json["detail"]


def test_settings_are_told_and_changed(server, subject):
    assert ask(server.url, f"{V1}/config").json == {
        "settings": subject.settings(),
        "changeable": ["host_bytes", "ttl_s"],
    }
    assert ask(server.url, f"{V1}/config", "PATCH", {"ttl_s": 60.5}).json["settings"]["ttl_s"] == 60.5
    assert subject.changed["ttl_s"] == 60.5


@pytest.mark.parametrize(
    ("kind", "body", "result"),
    [
        ("demote", {"to": "host"}, None),
        ("demote", {"to": "disk", "key": key(1)}, {"blocks": 2, "in_use_blocks": 0}),
        ("drain", {}, {"drained": True}),
        ("drain", {"timeout_s": 0}, {"drained": False}),
        ("verify", {}, {"records": 4, "damaged": {"damaged_checksum": 1}, "seconds": 0.1}),
    ],
)
def test_a_long_action_is_a_job(server, kind, body, result):
    reply = ask(server.url, f"{V1}/{kind}", "POST", body)
    assert reply.status == 202
    assert reply.headers["location"] == f"{V1}/jobs/{reply.json['id']}"
    job = ended(server, reply.json["id"])
    assert (job["kind"], job["state"], job["result"], job["error"]) == (kind, "done", result, None)
    assert job["started_ago_s"] >= job["ended_ago_s"] >= 0


def test_warming_tells_what_was_there(server):
    started = ask(server.url, f"{V1}/warm", "POST", {"text": "ahoy"}).json
    assert ended(server, started["id"])["result"] == {
        "prompt_tokens": 4,
        "cached_by_tier": {"device": 0, "host": 0, "disk": 0},
        "prefilled_tokens": 4,
        "finish_reason": "length",
    }


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        ("flush", {}, "3 cached blocks are not on disk: it is full"),
        ("warm", {"text": "too much"}, "no memory"),
        ("demote", {"to": "host", "key": key(99)}, key(99)),
    ],
)
def test_a_job_that_fails_says_why(server, kind, body, error):
    job = ended(server, ask(server.url, f"{V1}/{kind}", "POST", body).json["id"])
    assert (job["state"], job["result"], job["error"]) == ("failed", None, error)


def test_the_same_job_is_not_begun_twice(server, subject):
    subject.gate.clear()
    first = ask(server.url, f"{V1}/verify", "POST", {}).json
    second = ask(server.url, f"{V1}/verify", "POST", {})
    assert (second.status, second.json["instance"]) == (409, f"{V1}/jobs/{first['id']}")
    assert ask(server.url, f"{V1}/drain", "POST", {}).status == 202, "another kind may run beside it"
    subject.gate.set()
    ended(server, first["id"])
    assert ask(server.url, f"{V1}/verify", "POST", {}).status == 202


def test_jobs_that_run_are_bounded(server, subject):
    subject.gate.clear()
    statuses = [ask(server.url, f"{V1}/warm", "POST", {"text": "a"}).status for _ in range(9)]
    assert statuses == [202] * 8 + [503]
    subject.gate.set()


def test_the_last_jobs_are_kept(server):
    ids = [ask(server.url, f"{V1}/warm", "POST", {"text": "a"}).json["id"] for _ in range(5)]
    for _ in range(70):
        last = ask(server.url, f"{V1}/warm", "POST", {"text": "a"})
        ended(server, last.json["id"])
    kept = [job["id"] for job in ask(server.url, f"{V1}/jobs").json["jobs"]]
    assert len(kept) == 64
    assert kept[0] == last.json["id"]
    assert ask(server.url, f"{V1}/jobs/{ids[0]}").status == 404


def test_resuming(server, subject):
    subject.draining = True
    assert ask(server.url, f"{V1}/resume", "POST", {}).json == {"draining": False}
    assert not subject.draining


def test_a_post_without_fields_needs_no_body(server):
    assert ask(server.url, f"{V1}/resume", "POST", raw=b"").status == 200


def test_figures_are_asked_for_once_at_a_time(server, subject):
    """However often the endpoint is asked, the subject is a few times a second."""
    began_s, before = time.monotonic(), subject.num_stats
    for _ in range(50):
        ask(server.url, f"{V1}/tiers")
    assert subject.num_stats - before <= (time.monotonic() - began_s) / 0.25 + 2


def test_text_is_shown_only_where_allowed(open_server, subject):
    shy, frank = open_server().url, open_server(show_text=True).url
    for path in (
        "prefixes?text=true",
        "prefixes?contains=handbook",
        f"prefixes/{key(1)}?text=true",
        "requests/7?text=1",
        "advice?text=true",
    ):
        assert ask(shy, f"{V1}/{path}").status == 403, path
        assert ask(frank, f"{V1}/{path}").status == 200, path
    assert ask(shy, f"{V1}/prefixes/{key(1)}").json["token_ids"] is None
    assert ask(frank, f"{V1}/prefixes/{key(1)}").json["token_ids"] == [1, 2, 3]
    assert PROMPT_TEXT in ask(frank, f"{V1}/prefixes?text=true").body.decode()
    for url in (shy, frank):
        ask(url, f"{V1}/explain", "POST", {"text": "a"})
    assert subject.asked_text == [False, True]


def test_an_unknown_path_and_method(server):
    assert ask(server.url, "/nope").status == 404
    reply = ask(server.url, f"{V1}/explain")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert set(ask(server.url, f"{V1}/config", "DELETE").headers["allow"].split(", ")) == {
        "GET",
        "HEAD",
        "PATCH",
    }
    assert ask(server.url, f"{V1}/tiers", "OPTIONS").status == 405


def test_a_body_where_none_is_taken(server):
    assert ask(server.url, f"{V1}/prefixes/{key(1)}", "DELETE", {"a": 1}).status == 400


def test_what_should_not_happen_is_told_without_its_insides(open_server, caplog):
    class Odd(SmallSubject):
        def namespaces(self):
            raise LookupError("the secret inside")

    reply = ask(open_server(Odd()).url, f"{V1}/namespaces", X_Request_Id="odd-1")
    assert (reply.status, reply.headers["x-request-id"]) == (500, "odd-1")
    assert b"secret" not in reply.body
    assert "odd-1" in reply.json["detail"]
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.request_id == "odd-1"
    assert "the secret inside" in record.exc_text
