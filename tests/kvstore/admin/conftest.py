"""Endpoints over a small subject."""

from collections.abc import Callable, Iterator

import pytest

from kvstore.admin import AdminConfig, AdminServer, serve
from tests.kvstore.admin.small_subject import SmallSubject


@pytest.fixture
def subject() -> SmallSubject:
    return SmallSubject()


@pytest.fixture
def open_server(subject) -> Iterator[Callable[..., AdminServer]]:
    """Serves the subject with settings of the test's choice, until the test ends."""
    opened: list[AdminServer] = []

    def open_one(what: object = subject, **settings) -> AdminServer:
        opened.append(serve(what, AdminConfig(port=0, **settings)))
        return opened[-1]

    yield open_one
    subject.gate.set()
    for server in opened:
        server.close()


@pytest.fixture
def server(open_server) -> AdminServer:
    return open_server()
