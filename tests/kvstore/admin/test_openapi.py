"""The endpoint keeps to its own document, whatever is sent to it."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from kvstore.admin import AdminConfig, AdminServer, serve
from kvstore.admin.openapi import document
from kvstore.admin.routes import ROUTES
from kvstore.reports import PrefixDetail, PrefixPage, PrefixQuery, Removed
from tests.kvstore.admin.asking import ask
from tests.kvstore.admin.small_subject import SmallSubject, run

TOKEN, READ_TOKEN = "full-token-0123456789", "read-token-0123456789"
DOCUMENT = document(ROUTES, version="1", tokens=True)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT).exclude(path="/admin/v1/events")  # it does not end


@SCHEMA.auth()
class FullToken:
    """Sent with what is not about tokens."""

    def get(self, case, context):
        return f"Bearer {TOKEN}"

    def set(self, case, data, context):
        case.headers = {**(case.headers or {}), "Authorization": data}


class Plenty(SmallSubject):
    """Half of all keys are there, whatever is removed comes again, and nothing is refused that the endpoint lets pass."""

    def options(self, values: dict[str, Any]) -> Any:
        return dict(values)

    def change(self, changes: dict[str, Any]) -> dict[str, Any]:
        return {**self.settings(), **changes}

    def prefixes(self, query: PrefixQuery) -> PrefixPage:
        if query.under is not None:
            self._find(query.under)
        return super().prefixes(replace(query, under=None))

    def prefix(self, key: str, *, text: bool = False) -> PrefixDetail:
        self._find(key)
        return PrefixDetail(run=run(1), above=(run(2),), token_ids=(1, 2))

    def demote_prefix(self, key: str, to: str) -> Removed:
        self._find(key)
        return Removed(blocks=1, in_use_blocks=1)

    def remove_prefix(self, key: str) -> Removed:
        return self.demote_prefix(key, "disk")

    @staticmethod
    def _find(key: str) -> None:
        if key[0] >= "8":
            raise KeyError(key)


def written_whole(value: Any) -> Any:
    """With 5 for 5.0: JSON Schema says these are the same, and the endpoint takes no fraction for a whole number."""
    if isinstance(value, dict):
        return {name: written_whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [written_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.fixture(scope="module")
def endpoint() -> Iterator[AdminServer]:
    config = AdminConfig(
        port=0,
        token=TOKEN,
        read_token=READ_TOKEN,
        max_requests_per_s=0,
        max_body_bytes=64 * 1024,
        show_text=True,
    )
    with serve(Plenty(), config) as server:
        yield server


@SCHEMA.parametrize()
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_the_answer_is_documented(case, endpoint, caplog):
    """No 5xx but 501 and 503, no status, type, header or field that is not in the document, and nothing wrong accepted."""
    caplog.set_level(logging.ERROR)
    case.body = written_whole(case.body)
    response = case.call_and_validate(base_url=endpoint.url, timeout=20)
    assert response.status_code < 500 or response.status_code in (501, 503)
    assert not caplog.records, "nothing was logged as an error"


@SCHEMA.parametrize()
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
def test_who_may_only_read_changes_nothing_whatever_is_sent(case, endpoint):
    response = case.call(base_url=endpoint.url, headers={"Authorization": f"Bearer {READ_TOKEN}"}, timeout=20)
    changes = case.method != "GET" and not case.path.endswith("/explain")
    assert not (changes and response.status_code < 400)
    assert response.status_code != 500


def test_the_document_is_valid_and_has_every_route(endpoint):
    SCHEMA.validate()
    served = ask(endpoint.url, "/openapi.json", Authorization=f"Bearer {READ_TOKEN}").json
    assert served["paths"] == DOCUMENT["paths"]
    assert served["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, item in served["paths"].items() for method in item}
    assert described == {(route.method.value, route.path.replace(":.+}", "}")) for route in ROUTES}
    ids = [operation["operationId"] for item in served["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


def test_without_tokens_the_document_asks_for_none():
    open_document = document(ROUTES, version="1", tokens=False)
    assert "security" not in str(open_document["paths"])
    assert open_document["components"]["securitySchemes"] == {}


def test_every_name_that_is_referred_to_is_there():
    def references(value) -> Iterator[str]:
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    names = DOCUMENT["components"]["schemas"]
    found = set(references(DOCUMENT))
    assert len(found) > 20
    assert {name.removeprefix("#/components/schemas/") for name in found} <= set(names)
