"""An engine writes down what it serves: by itself, in a `with`, and for who asks its endpoint."""

import json
import threading

import pytest
from typer.testing import CliRunner

from engine import CacheHints, RequestOptions, SamplingParams
from kvstore.admin import AdminConfig, serve
from tests.engine.engines import BLOCK, GREEDY, engine_on, open_engine, tokens, until
from tiering.cli.app import app
from tiering.cli.record import seconds
from tiering.keeping import Hints
from tiering.recording import Recording
from tiering.trace import read_trace

KEY = "ab" * 32


@pytest.fixture(scope="module")
def engine(tiny_llama_dir):
    with open_engine(tiny_llama_dir) as opened:
        yield opened
        opened.check()


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY)
    return path


def test_what_was_recorded_is_what_happened(engine, tmp_path):
    assert engine.clear()
    prompt = tokens(1, 3 * BLOCK + 5)
    with engine.record(tmp_path / "a.jsonl.zst") as recording:
        first = engine.generate(prompt, SamplingParams(max_tokens=BLOCK + 12, ignore_eos=True))
        longer = [*prompt, *first.token_ids, *tokens(2, 3)]
        second = engine.generate(longer, GREEDY)
        other = engine.generate(prompt, GREEDY, RequestOptions(tenant="bob"))
    one, two, three = read_trace(tmp_path / "a.jsonl.zst")
    assert (one.input_tokens, one.output_tokens) == (len(prompt), BLOCK + 12)
    assert len(one.blocks) == 3
    assert two.blocks[:5] == [*one.blocks, *one.reply_blocks][:5], "the reply is a part of the next prompt"
    for row, result in ((one, first), (two, second), (three, other)):
        assert {tier: num * BLOCK for tier, num in row.found.items()} == result.usage.cached_by_tier
        assert row.ttft_s == pytest.approx(result.timings.ttft_s, abs=1e-5)
    assert second.usage.cached_tokens == 5 * BLOCK
    assert not set(three.blocks) & set(one.blocks), "a tenant's prompt is another"
    assert recording.stats()["requests"] == 3


def test_what_the_caller_said_stands_beside_it_in_blocks(engine, tmp_path):
    assert engine.clear()
    said = CacheHints(goes_on=True, shared_tokens=BLOCK + 1, breakpoints=[2 * BLOCK])
    with engine.record(tmp_path / "a.jsonl"):
        engine.generate(tokens(3, 3 * BLOCK), GREEDY, RequestOptions(hints=said))
        engine.generate(tokens(4, 3 * BLOCK), GREEDY, RequestOptions(hints=said, cache="read"))
        engine.generate(tokens(5, 3 * BLOCK), GREEDY)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert ["hints" in line for line in lines[1:4]] == [True, False, False], "who adds nothing tells nothing"
    one, two, three = read_trace(tmp_path / "a.jsonl")
    assert one.hints == Hints(goes_on=True, shared_blocks=1, breakpoints=(2,))
    assert two.hints == three.hints == Hints()


def test_a_simulation_is_held_against_what_happened(engine, tmp_path):
    assert engine.clear()
    with engine.record(tmp_path / "a.jsonl"):
        for _ in range(3):
            engine.generate(tokens(6, 8 * BLOCK + 1), GREEDY)
    arguments = [
        "simulate",
        str(tmp_path / "a.jsonl"),
        "--device-blocks",
        "100",
        "--json",
        str(tmp_path / "f"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "recorded: the engine found 66.67% (device 66.7%); simulated are +0.00 points." in result.output
    recorded = json.loads((tmp_path / "f").read_text())["recorded"]["a.jsonl"]
    assert recorded["hits_by_tier"] == {"device": 16, "host": 0, "disk": 0}
    assert recorded["ttft_s"]["mean"] > 0


def test_the_same_key_gives_the_same_ids(engine, tmp_path, key_file):
    for name in ("a", "b"):
        with engine.record(tmp_path / name, key_file=key_file):
            engine.warm(tokens(3, 4 * BLOCK))
    a, b = [[json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("a", "b")]
    assert a[1]["blocks"] == b[1]["blocks"]
    assert a[1]["kind"] == "warm"
    assert a[0]["about"]["device_blocks"] == engine.stats()["cache"]["tiers"]["device"]["slots"]


def test_what_has_not_ended_when_the_engine_does_is_told_as_it_ended(tiny_llama_dir, tmp_path, key_file):
    """The configuration asks for it: the file is whole once the engine is closed."""
    path = tmp_path / "all.jsonl"
    with engine_on(tiny_llama_dir, record_path=path, record_key_file=key_file) as engine:
        handle = engine.submit(tokens(4, 40), SamplingParams(max_tokens=3000, ignore_eos=True))
        until(lambda: engine.stats()["engine"]["generated_tokens"] > 0)
    assert handle.result().finish_reason == "cancelled"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1]["end"] == "cancelled"
    assert rows[-1] == {"ended": "stopped", "requests": 1, "dropped": 0}


def test_who_records_while_the_engine_closes_has_a_recording_that_is_over(tiny_llama_dir, tmp_path):
    """Nobody else would end it."""
    engine = open_engine(tiny_llama_dir)
    engine.close()
    recording = Recording(tmp_path / "a.jsonl", block_tokens=BLOCK)
    engine._accounts.record(recording)
    assert recording.stats()["ended"] == "stopped"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"record_path": "/nowhere/a.jsonl"}, "record_path /nowhere/a.jsonl: No such file"),
        ({"record_key_file": "/nowhere"}, "record_path is not"),
    ],
)
def test_a_recording_that_cannot_be_begun_is_refused(tiny_llama_dir, settings, why):
    with pytest.raises(ValueError, match=why):
        open_engine(tiny_llama_dir, **settings)


def test_a_key_file_that_is_none_is_named(engine, tmp_path):
    (tmp_path / "key").write_text("short")
    with pytest.raises(ValueError, match="is no key file"):
        engine.record(tmp_path / "a", key_file=tmp_path / "key")


# --- kvtide record ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_the_command_writes_what_a_live_engine_is_asked(engine, tmp_path, name):
    out = tmp_path / name
    found = {}

    def ask_for_it(url):
        found["result"] = CliRunner().invoke(
            app, ["record", "--url", url, "--for", "1h", "--max-bytes", "4096", "--out", str(out)]
        )

    with serve(engine, AdminConfig(port=0)) as server:
        command = threading.Thread(target=ask_for_it, args=(server.url,))
        command.start()
        until(
            lambda: len(engine._accounts._recordings) > 0 and engine._accounts._recordings[-1].ended is None
        )
        while command.is_alive():
            engine.generate(tokens(5, 60 * BLOCK), SamplingParams(max_tokens=1))
    assert found["result"].exit_code == 0, found["result"].output
    requests = list(read_trace(out))
    assert f"{len(requests)} requests" in found["result"].output
    assert len(requests[0].blocks) == 60


def test_who_may_only_look_records_nothing(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("READER", "r" * 20)
    with serve(engine, AdminConfig(port=0, token="f" * 20, read_token="r" * 20)) as server:
        arguments = ["record", "--url", server.url, "--out", str(tmp_path / "a"), "--token-env", "READER"]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "answers 403" in result.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--url", "nowhere", "--out", "x"], "is no address of a kvtide"),
        (["--url", "http://127.0.0.1:1", "--out", "x", "--for", "soon"], "'soon' is no time"),
        (["--url", "http://127.0.0.1:1", "--out", "x"], "refused"),
    ],
)
def test_what_the_command_cannot_do_is_said(arguments, why):
    result = CliRunner().invoke(app, ["record", *arguments])
    assert result.exit_code == 2
    assert why in result.stderr.lower()


def test_times():
    assert [seconds(text) for text in ("90", "90s", "10m", "1.5h")] == [90, 90, 600, 5400]
