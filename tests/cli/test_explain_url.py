"""`kvtide explain --url` against a real server that answers as the endpoint does."""

import asyncio
import dataclasses
import json
import threading
from contextlib import contextmanager

import pytest
from aiohttp import web

from kvstore.reasons import MissReason
from kvstore.reports import Part
from tests.cli.explained import ANSWER, chat, code_client, explain


@pytest.fixture
def recorded(tmp_path):
    """recorded("A", request, ...) writes a file with these requests, one on each line."""

    def write(name, *requests: object):
        path = tmp_path / f"{name}.json"
        path.write_text("\n".join(map(json.dumps, requests)))
        return path

    return write


def as_answer(explanation):
    told = {"cached_tokens": explanation.cached_tokens, "reasons": explanation.reasons}
    return json.loads(json.dumps(dataclasses.asdict(explanation) | told))


@contextmanager
def answering(answer):
    """A real server whose explain route answers with what `answer(request, body)` returns; yields its address."""
    loop, ready, address = asyncio.new_event_loop(), threading.Event(), []

    async def route(request):
        return answer(request, await request.json())

    async def serve():
        application = web.Application()
        application.router.add_post("/admin/v1/explain", route)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append("http://{}:{}".format(*runner.addresses[0]))
        return runner

    def work():
        runner = loop.run_until_complete(serve())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(30)
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_a_running_kvtide_is_asked(recorded, monkeypatch):
    seen = []

    def answer(request, body):
        seen.append((request.headers.get("Authorization"), body))
        return web.json_response(as_answer(ANSWER))

    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # gone past
    with answering(answer) as url:
        done = explain(recorded("A", chat("Friday")), "--url", url + "/", "--token-env", "MY_TOKEN")
        as_json = explain(recorded("A", chat("Friday")), "--url", url, "--json")
        explain(recorded("A", {"text": "Once"}), "--url", url)
        with_tools = explain(recorded("A", code_client("36ee5")), "--url", url)
    assert seen[0] == ("Bearer secret", {"messages": chat("Friday")["messages"]})
    assert seen[1][0] is None
    assert seen[2][1] == {"text": "Once"}
    assert [message["role"] for message in seen[3][1]["messages"]] == ["system", "user"]
    assert "asked without tools" in with_tools.output
    assert done.exit_code == as_json.exit_code == 1
    assert "A.json: 32 of 100 tokens are served (32.0 %)." in done.output
    assert "tokens 0 to 32 from host" in done.output
    assert "tokens 48 to 96 computed: evicted, last in disk, 12 s ago (for \\x1broom)" in done.output
    assert "It breaks at token 33, system message: timestamp." in done.output
    assert "Today is ⟦Friday.⟧" in done.output
    assert "What to do: Put it at the end." in done.output
    assert "Note: it was here before" in done.output
    assert "secret" not in done.output
    assert json.loads(as_json.output) == as_answer(ANSWER)


@pytest.mark.parametrize("token", ["secret\nX-Evil: 1", "sécret-token"])
def test_a_token_that_is_none_is_not_said(recorded, monkeypatch, token):
    monkeypatch.setenv("MY_TOKEN", token)
    done = explain(recorded("A", chat("Friday")), "--url", "http://127.0.0.1:1", "--token-env", "MY_TOKEN")
    assert done.exit_code == 2
    assert "the token must be of printable ASCII characters" in done.stderr
    assert "cret" not in done.output + done.stderr


def test_without_text_there_are_ids(recorded):
    bare = dataclasses.replace(
        ANSWER,
        difference=dataclasses.replace(
            ANSWER.difference, before=None, asked=None, cached=None, kind=None, advice=None, section=None
        ),
    )
    with answering(lambda *_: web.json_response(as_answer(bare))) as url:
        done = explain(recorded("A", chat("Friday")), "--url", url)
    assert "It breaks at token 33." in done.output
    assert "asked   tokens 2 3" in done.output
    assert "cached  tokens 4" in done.output


def test_all_is_served(recorded):
    parts = (
        Part(start_token=0, end_token=96, tier="device"),
        Part(start_token=96, end_token=100, reason=MissReason.NOT_A_WHOLE_BLOCK),
    )
    served = dataclasses.replace(ANSWER, parts=parts, difference=None)
    with answering(lambda *_: web.json_response(as_answer(served))) as url:
        assert explain(recorded("A", chat("Friday")), "--url", url).exit_code == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda *_: web.json_response(
                {"title": "Unauthorized", "status": 401, "detail": "a token is needed"},
                status=401,
                content_type="application/problem+json",
            ),
            "answers 401: a token is needed",
        ),
        (lambda *_: web.Response(status=502, text="<html>"), "answers 502: Bad Gateway"),
        (lambda *_: web.Response(text="hello"), "something other than JSON"),
        (lambda *_: web.json_response([]), "something other than an explanation"),
        (
            lambda *_: web.json_response(as_answer(ANSWER) | {"parts": [7]}),
            "something other than an explanation",
        ),
        (
            lambda *_: web.json_response(as_answer(ANSWER) | {"difference": {}}),
            "something other than an explanation",
        ),
        (lambda *_: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), "answers 302"),
    ],
)
def test_other_answers_get_one_sentence(recorded, answer, words):
    with answering(answer) as url:
        done = explain(recorded("A", chat("Friday")), "--url", url)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
