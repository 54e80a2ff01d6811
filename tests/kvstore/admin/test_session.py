"""What whoever asks is told that they may do, and why a tier does not work."""

import pytest

from tests.kvstore.admin.asking import ask

FULL, READ = "full-token-0123456789", "read-token-0123456789"


def session(server, token=None):
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return ask(server.url, "/admin/v1/session", **headers)


def test_roles_and_text_are_told_to_whom_they_concern(open_server):
    server = open_server(token=FULL, read_token=READ, show_text=True)
    assert session(server).status == 401
    read, full = session(server, READ).json, session(server, FULL).json
    assert (read["role"], read["text"]) == ("read", False)
    assert (full["role"], full["text"]) == ("full", True)


def test_without_tokens_everybody_may_do_everything_and_see_text_where_it_is_shown(open_server):
    told = session(open_server()).json
    assert (told["role"], told["text"]) == ("full", False)
    assert session(open_server(show_text=True)).json["text"]


def test_it_tells_what_the_subject_has(open_server, subject):
    class Bare:
        stats = subject.stats
        prefixes = subject.prefixes

    assert session(open_server(Bare())).json["can"] == ["stats", "prefixes"]
    assert {"explain", "events", "change"} <= set(session(open_server()).json["can"])


@pytest.mark.parametrize(
    ("disk_off", "tier", "reason"),
    [
        ("another process has it", {}, "another process has it"),
        (None, {"capacity_bytes": 0}, "No directory is set for it."),
        (None, {"ready": False, "overdue_reads": 2}, "2 of its reads hang"),
        (None, {}, None),
    ],
)
def test_a_disk_that_does_not_work_says_why(open_server, subject, monkeypatch, disk_off, tier, reason):
    stats = subject.stats()
    stats["disk_off"] = disk_off
    stats["cache"]["tiers"]["disk"].update({"ready": True, "capacity_bytes": 4096, **tier})
    monkeypatch.setattr(subject, "stats", lambda: stats)
    told = ask(open_server().url, "/admin/v1/tiers").json["tiers"][2]
    if reason is None:
        assert told["ready"] and told["reason"] is None
    else:
        assert not told["ready"] and reason in told["reason"]
