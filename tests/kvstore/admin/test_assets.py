"""The page's files: those that came with the package and nothing else, and not sent again to who has them."""

import re

import pytest

from kvstore.admin.assets import Assets
from tests.kvstore.admin.asking import ask


def test_the_page_and_what_it_refers_to_are_served(open_server):
    """Without a token: the page itself asks for it."""
    url = open_server(token="a-token-of-the-tests-0123").url  # noqa: S106 - opens nothing
    page = ask(url, "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    referred = re.findall(r'(?:src|href)="([^"#][^"]*)"', page.body.decode())
    assert referred, "a page without style or script would be none"
    for path in referred:
        reply = ask(url, path if path.startswith("/") else f"/{path}")
        assert reply.status == 200, path
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_what_a_client_has_is_not_sent_again(server):
    first = ask(server.url, "/")
    assert first.headers["cache-control"] == "no-cache", "it asks each time, so that a new version is seen"
    for tags in (
        first.headers["etag"],
        f'"other", {first.headers["etag"]}',
        f"W/{first.headers['etag']}",
        "*",
    ):
        again = ask(server.url, "/", If_None_Match=tags)
        assert (again.status, again.body) == (304, b""), tags
    assert ask(server.url, "/", If_None_Match='"other"').status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/nope.js",
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2e%2e/server.py",
        "/page//etc/passwd",
        "/page/index.html%00.js",
        "/page/",
        "/server.py",
    ],
)
def test_nothing_else_is_served(server, path):
    assert ask(server.url, path).status == 404


def test_files_of_other_kinds_are_no_part_of_a_page():
    assets = Assets(
        {"index.html": b"<p>", "a/b.js": b"1", "notes.md": b"x", "key.pem": b"x", "Makefile": b"x"}
    )
    assert set(assets._files) == {"index.html", "a/b.js"}


def test_each_kind_has_its_type(server):
    for name, kind in [
        ("style.css", "text/css; charset=utf-8"),
        ("app.js", "text/javascript; charset=utf-8"),
    ]:
        assert ask(server.url, f"/page/{name}").headers["content-type"] == kind
