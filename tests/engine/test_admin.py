"""The admin endpoint over a real engine: what it tells is what was done."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from typer.testing import CliRunner

from engine.caches import Caches
from engine.engine import Engine
from engine.steering import CHANGEABLE
from kvstore.admin import AdminConfig, AdminServer, app, serve
from kvstore.admin.subject import NamedCaches, Subject
from tests.engine.engines import BLOCK, BLOCK_BYTES, GREEDY, open_engine, tokens
from tests.kvstore.admin.asking import ask
from tiering.cli.app import app as command_line

V1 = "/admin/v1"
PROMPT = tokens(1, 10 * BLOCK + 5)
METHODS = [
    (asked, has, name)
    for asked, has in ((Subject, Engine), (NamedCaches, Caches))
    for name, method in vars(asked).items()
    if callable(method) and not name.startswith("_")
]


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


@pytest.mark.parametrize(("protocol", "kind", "name"), METHODS)
def test_the_engine_has_what_the_protocol_says(protocol, kind, name):
    """Whoever calls with the Protocol's parameters can call the engine."""
    asked, has = (signature(getattr(each, name)).parameters for each in (protocol, kind))
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


def test_an_engine_tells_of_the_next_change_once(engine):
    told = threading.Semaphore(0)
    engine.tell_of_change(told.release)
    engine.generate(PROMPT, GREEDY)
    assert told.acquire(timeout=30)
    engine.generate(PROMPT, GREEDY)
    assert not told.acquire(blocking=False)


def test_who_looks_again_when_told_of_a_change_sees_all_that_happens(engine):
    told, before = threading.Semaphore(0), engine.stats()["engine"]["generated_tokens"]
    request = engine.submit(PROMPT, GREEDY)
    while True:
        engine.tell_of_change(told.release)
        if engine.stats()["engine"]["generated_tokens"] == before + 12:
            break
        assert told.acquire(timeout=30), "it is over, and nobody was told"
    assert len(request.result().token_ids) == 12


def test_metrics_are_the_engines(server, engine):
    engine.generate(PROMPT, GREEDY)
    threading.Event().wait(0.3)  # figures may be a quarter of a second old
    text, stats = ask(server.url, "/metrics").body.decode(), engine.stats()
    assert f"kvtide_requests_total {float(stats['engine']['requests'])}\n" in text
    indexed = float(stats["cache"]["tiers"]["device"]["indexed"])
    assert f'kvtide_slots{{state="indexed",tier="device"}} {indexed}\n' in text


def test_what_is_warmed_lives_for_as_long_as_it_was_told(server, engine):
    assert done(server, "warm", {"token_ids": PROMPT, "ttl": "5m"})["prefilled_tokens"]
    (run,) = engine.prefixes().rows
    assert run.ttl_s == pytest.approx(300, abs=30)


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
    assert set(before["changeable"]) == set(CHANGEABLE) - {"tenant_quotas"}, "these have routes of their own"
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


TOKEN, READ_TOKEN = "full-token-0123456789", "read-token-0123456789"


@contextmanager
def with_tokens(engine, **settings: Any) -> Iterator[AdminServer]:
    with serve(engine, AdminConfig(port=0, token=TOKEN, read_token=READ_TOKEN, **settings)) as served:
        yield served


@pytest.mark.parametrize("show_text", [False, True])
def test_who_sees_no_text_cannot_guess_it(engine, show_text):
    """A guess at the next token is told from a better one by nothing that the read role gets."""
    engine.generate(PROMPT, GREEDY)
    guesses = [[*PROMPT[:100], *PROMPT[100 : 100 + right], *[7] * (40 - right)] for right in range(10)]
    with with_tokens(engine, show_text=show_text) as served:
        told = [
            ask(
                served.url,
                f"{V1}/explain",
                "POST",
                {"token_ids": guess},
                Authorization=f"Bearer {READ_TOKEN}",
            ).json
            for guess in guesses
        ]
        exact = ask(
            served.url,
            f"{V1}/explain",
            "POST",
            {"token_ids": guesses[3]},
            Authorization=f"Bearer {TOKEN}",
        ).json
    assert exact["difference"]["at_token"] == 103
    assert told == [told[0]] * 10
    assert told[0]["difference"]["at_token"] == told[0]["cached_tokens"] == 6 * BLOCK


KEEPER = "You help the staff of a lighthouse, and answer from the handbook alone. It is {}. Be brief."


def recorded(path: Path, time: str) -> Path:
    """A request of Anthropic's shape, and before it one of OpenAI's, which does not count."""
    requests = [
        {"messages": [{"role": "user", "content": "Something else"}]},
        {
            "system": [{"type": "text", "text": KEEPER.format(time)}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "How high is it?"}]}],
        },
    ]
    path.write_text("\n".join(map(json.dumps, requests)))
    return path


def test_the_command_that_explains_asks_it(engine, tmp_path, monkeypatch):
    """`kvtide explain --url`, with each role, and with text and without."""

    def told(role: str, time: str) -> Any:
        path, arguments = recorded(tmp_path / "A.json", time), ["--url", served.url, "--token-env", role]
        return CliRunner().invoke(command_line, ["explain", str(path), *arguments])

    monkeypatch.setenv("FULL", TOKEN)
    monkeypatch.setenv("READ", READ_TOKEN + "\n")  # as a file has it
    chat = [
        {"role": "system", "content": KEEPER.format("09:14:07")},
        {"role": "user", "content": "How high is it?"},
    ]
    engine.warm(chat)
    with with_tokens(engine, show_text=True) as served:
        same, other, unseen = told("FULL", "09:14:07"), told("FULL", "09:15:31"), told("READ", "09:15:31")
    assert (same.exit_code, other.exit_code, unseen.exit_code) == (0, 1, 1), same.output + same.stderr
    assert "from device" in same.output
    assert "system message: timestamp." in other.output
    assert "⟦09:14:07.⟧" in other.output
    assert "⟦09:15:31.⟧" in other.output
    for hidden in ("timestamp", "09:1", "nothing more"):
        assert hidden not in unseen.output
    assert "does not show what stands there" in unseen.output
    with with_tokens(engine) as served:
        no_text = told("FULL", "09:15:31")
    assert "system message: timestamp." in no_text.output
    assert "does not show what stands there" in no_text.output
    assert "09:1" not in no_text.output


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


def test_an_engine_that_has_failed_is_not_ready(tiny_text_dir):
    def finds_it_broken() -> None:
        raise AssertionError("a slot is lost")

    with open_engine(tiny_text_dir) as broken, serve(broken, AdminConfig(port=0)) as served:
        assert ask(served.url, "/readyz").status == 200
        with pytest.raises(AssertionError, match="a slot is lost"):
            broken._cache.ask(finds_it_broken).result(60)
        assert broken.generate(PROMPT, GREEDY).finish_reason == "error"
        threading.Event().wait(0.3)  # figures may be a quarter of a second old
        reply = ask(served.url, "/readyz")
        assert (reply.status, len(reply.json["reasons"])) == (503, 1)
        assert reply.json["reasons"][0].startswith("the engine has failed")
        assert b"kvtide_failed 1.0\n" in ask(served.url, "/metrics").body


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
