"""The admin endpoint over a real engine: what it tells is what was done."""

import asyncio
import threading
from collections.abc import Iterator
from inspect import signature

import pytest
from aiohttp import ClientSession, web

from engine.engine import Engine
from engine.steering import CHANGEABLE
from kvstore.admin import AdminConfig, AdminServer, app, serve
from kvstore.admin.subject import Subject
from tests.engine.engines import BLOCK, BLOCK_BYTES, GREEDY, open_engine, tokens
from tests.kvstore.admin.asking import ask

V1 = "/admin/v1"
PROMPT = tokens(1, 10 * BLOCK + 5)
METHODS = [name for name in vars(Subject) if not name.startswith("_")]


@pytest.fixture(scope="module")
def engine(tiny_text_dir, tmp_path_factory) -> Iterator[Engine]:
    with open_engine(tiny_text_dir, tmp_path_factory.mktemp("disk")) as opened:
        yield opened
        opened.check()


@pytest.fixture(scope="module")
def server(engine) -> Iterator[AdminServer]:
    with serve(engine, AdminConfig(port=0, show_text=True)) as served:
        yield served


@pytest.fixture(autouse=True)
def empty(engine) -> None:
    assert engine.clear()


def get(server, path: str):
    reply = ask(server.url, f"{V1}/{path}")
    assert reply.status == 200, reply.body
    return reply.json


def done(server, path: str, body: dict):
    """The result of a job that must succeed."""
    reply = ask(server.url, f"{V1}/{path}", "POST", body)
    assert reply.status == 202, reply.body
    for _ in range(3000):
        job = ask(server.url, reply.headers["location"]).json
        if job["state"] != "running":
            assert job["state"] == "done", job
            return job["result"]
        threading.Event().wait(0.01)
    raise AssertionError(job)


@pytest.mark.parametrize("name", METHODS)
def test_the_engine_has_what_the_protocol_says(name):
    """Whoever calls with the Protocol's parameters can call the engine."""
    asked, has = (signature(getattr(kind, name)).parameters for kind in (Subject, Engine))
    for parameter in asked.values():
        assert parameter.name in has
        assert has[parameter.name].kind in (parameter.kind, parameter.POSITIONAL_OR_KEYWORD)


def test_figures_are_the_engines(server, engine):
    engine.generate(PROMPT, GREEDY)
    threading.Event().wait(0.3)  # figures may be a quarter of a second old
    found = get(server, "tiers")
    stats = engine.stats()
    device = found["tiers"][0]
    assert device["capacity_blocks"] == stats["cache"]["tiers"]["device"]["slots"]
    assert device["live_blocks"] == stats["cache"]["tiers"]["device"]["indexed"] == 11
    assert found["queue"] == {"waiting": 0, "running": 0}
    assert [tier["on"] for tier in found["tiers"]] == [True, True, True]
    assert found["disk"]["stored_bytes"] == stats["cache"]["store"]["stored_bytes"]
    assert device["live_bytes"] == 11 * BLOCK_BYTES


def test_metrics_are_the_engines(server, engine):
    text = ask(server.url, "/metrics").body.decode()
    assert f"kvtide_requests_total {engine.stats()['engine']['requests']}.0" in text or "kvtide_" in text


def test_warming_computes_once(server, engine):
    first = done(server, "warm", {"token_ids": PROMPT})
    again = done(server, "warm", {"token_ids": PROMPT})
    assert (first["prefilled_tokens"], first["cached_by_tier"]["device"]) == (10 * BLOCK, 0)
    assert again["cached_by_tier"]["device"] > 0
    assert engine.generate(PROMPT, GREEDY).usage.cached_by_tier["device"] == 10 * BLOCK


@pytest.mark.parametrize(
    "body",
    [
        {"text": "Once upon a time there was a cache"},
        {"messages": [{"role": "user", "content": "Ahoy there"}]},
    ],
)
def test_each_form_of_a_prompt_is_warmed(server, body):
    assert done(server, "warm", body)["prompt_tokens"] >= BLOCK


def test_a_prompt_that_an_engine_refuses_fails_its_job(server):
    reply = ask(server.url, f"{V1}/warm", "POST", {"token_ids": [10**6]})
    for _ in range(1000):
        job = ask(server.url, reply.headers["location"]).json
        if job["state"] != "running":
            break
        threading.Event().wait(0.01)
    assert (job["state"], "outside the vocabulary" in job["error"]) == ("failed", True)


def test_demoting_and_flushing(server, engine):
    engine.generate(PROMPT, GREEDY)
    assert done(server, "demote", {"to": "host"}) is None
    assert engine.lookup(PROMPT) == {"device": 0, "host": 10 * BLOCK, "disk": 0}
    assert done(server, "flush", {}) is None
    assert engine.stats()["cache"]["tiers"]["disk"]["blocks"] >= 10
    assert done(server, "demote", {"to": "disk"}) is None
    assert engine.lookup(PROMPT) == {"device": 0, "host": 0, "disk": 10 * BLOCK}


def test_prefixes_are_listed_found_moved_and_removed(server, engine):
    engine.generate(PROMPT, GREEDY)
    engine.generate([*PROMPT[: 4 * BLOCK], *tokens(2, 3 * BLOCK)], GREEDY)
    [top] = get(server, "prefixes")["rows"]
    assert (top["blocks"], top["children"], top["blocks_by_tier"]["device"]) == (4, 2, 4)
    below = get(server, f"prefixes?under={top['key']}&order=blocks")["rows"]
    assert [row["parent"] for row in below] == [top["key"]] * 2
    detail = get(server, f"prefixes/{below[0]['key']}")
    assert [row["key"] for row in detail["above"]] == [top["key"]]
    assert detail["run"]["key"] == below[0]["key"]
    moved = done(server, "demote", {"to": "host", "key": below[0]["key"]})
    assert moved == {"blocks": below[0]["blocks"], "in_use_blocks": 0}
    assert get(server, f"prefixes/{below[0]['key']}")["run"]["blocks_by_tier"]["device"] == 0
    removed = ask(server.url, f"{V1}/prefixes/{top['key']}", "DELETE")
    assert removed.json["in_use_blocks"] == 0
    assert removed.json["blocks"] == 4 + sum(row["blocks"] for row in below)
    assert ask(server.url, f"{V1}/prefixes/{top['key']}").status == 404
    assert engine.lookup(PROMPT) == {"device": 0, "host": 0, "disk": 0}


def test_draining_and_resuming(server, engine):
    assert done(server, "drain", {"timeout_s": 10}) == {"drained": True}
    with pytest.raises(RuntimeError):
        engine.generate(PROMPT, GREEDY)
    threading.Event().wait(0.3)
    ready = ask(server.url, "/readyz")
    assert (ready.status, "drain" in ready.json["reasons"][0]) == (503, True)
    assert ask(server.url, f"{V1}/resume", "POST", {}).status == 200
    engine.generate(PROMPT, GREEDY)
    threading.Event().wait(0.3)
    assert ask(server.url, "/readyz").status == 200


def test_settings_are_changed_while_it_runs(server, engine):
    before = get(server, "config")
    assert set(before["changeable"]) == set(CHANGEABLE)
    reply = ask(server.url, f"{V1}/config", "PATCH", {"ttl_s": 3600})
    assert (reply.status, reply.json["settings"]["ttl_s"]) == (200, 3600)
    assert engine.settings()["ttl_s"] == 3600
    refused = ask(server.url, f"{V1}/config", "PATCH", {"block_tokens": 32, "ttl_s": 1})
    assert (refused.status, "cannot be changed" in refused.json["detail"]) == (400, True)
    assert engine.settings()["ttl_s"] == 3600, "all of them or none"
    ask(server.url, f"{V1}/config", "PATCH", {"ttl_s": None})


def test_all_that_is_called_changeable_is(server, engine):
    config = get(server, "config")
    for name in config["changeable"]:
        value = config["settings"][name]
        assert ask(server.url, f"{V1}/config", "PATCH", {name: value}).status == 200, name


def test_verifying(server, engine):
    engine.generate(PROMPT, GREEDY)
    engine.flush()
    found = done(server, "verify", {})
    assert found["records"] >= 10
    assert found["damaged"] == {}


def test_namespaces(server, engine):
    [own] = get(server, "namespaces")["namespaces"]
    assert own["own"]
    assert own["digest"] == engine.namespace.digest.hex()
    assert own["facts"]


def test_explaining(server, engine):
    unseen = ask(server.url, f"{V1}/explain", "POST", {"token_ids": PROMPT}).json
    assert unseen["cached_tokens"] == 0
    assert sum(unseen["reasons"].values()) == len(PROMPT)
    engine.generate(PROMPT, GREEDY)
    found = ask(server.url, f"{V1}/explain", "POST", {"token_ids": PROMPT}).json
    assert found["cached_tokens"] == 10 * BLOCK
    assert (found["parts"][0]["tier"], found["parts"][0]["end_token"]) == ("device", 10 * BLOCK)


def test_requests(server, engine):
    engine.generate(PROMPT, GREEDY)
    [last] = get(server, "requests?limit=1")["requests"]
    assert (last["prompt_tokens"], last["state"]) == (len(PROMPT), "length")
    assert get(server, f"requests/{last['number']}")["explanation"]["prompt_tokens"] == len(PROMPT)


def test_events_of_a_request(server, engine):
    from tests.kvstore.admin.test_events import listening, told

    after = engine.events(0)[-1].number if engine.events(0) else 0
    with listening(server.url, f"?after={after}") as connection:
        engine.generate(PROMPT, GREEDY)
        engine.demote("host")
        kinds = {kind for _, kind, _ in told(connection, len(engine.events(after)))}
        assert "gap" not in kinds
        assert kinds


def test_a_program_with_a_loop_of_its_own_serves_it_itself(engine):
    async def asked() -> tuple[int, int]:
        runner = web.AppRunner(app(engine))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with ClientSession() as session:
            port = runner.addresses[0][1]
            async with session.get(f"http://127.0.0.1:{port}{V1}/tiers") as reply:
                tiers = len((await reply.json())["tiers"])
            async with session.get(
                f"http://127.0.0.1:{port}{V1}/tiers", headers={"Host": "evil.example"}
            ) as reply:
                status = reply.status
        await runner.cleanup()
        return tiers, status

    assert asyncio.run(asked()) == (3, 403)


def test_the_engine_outlives_its_endpoint(engine):
    with serve(engine, AdminConfig(port=0)) as other:
        assert get(other, "tiers")
    assert engine.generate(PROMPT, GREEDY).usage.prompt_tokens == len(PROMPT)


def test_an_engine_that_is_closed_was_not_asked_wrongly(tiny_text_dir):
    with open_engine(tiny_text_dir) as closed:
        pass
    with serve(closed, AdminConfig(port=0)) as server:
        for method, path, body in (
            ("POST", "explain", {"text": "a"}),
            ("GET", "prefixes", None),
            ("PATCH", "config", {"ttl_s": 1.0}),
            ("POST", "resume", {}),
        ):
            reply = ask(server.url, f"{V1}/{path}", method, body)
            assert (reply.status, reply.json["detail"]) == (503, "the engine is closed"), path
