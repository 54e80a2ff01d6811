"""`make ttft-peers` without peers: the prompts, the worker with kvtide in it, processes that stand still, the report."""

import io
import json
import mmap
import os
import sys
from pathlib import Path

import pytest

from benchmarks.peers.ttft import process as processes
from benchmarks.peers.ttft.page_cache import cached_bytes, drop
from benchmarks.peers.ttft.process import Process, SystemFailed
from benchmarks.peers.ttft.prompts import Prompts, prompts
from benchmarks.peers.ttft.protocol import Settings
from benchmarks.peers.ttft.report import GATES, gates, report
from benchmarks.peers.ttft.rounds import Rounds
from benchmarks.peers.ttft.systems import ROWS, SYSTEMS, Measured
from benchmarks.peers.ttft.worker import serve

# Answers as a system would, and keeps what it was asked: how it ends, and how much is cached, is told by its arguments.
WORKER = """
import json, sys

name, fate = sys.argv[1:]
print(json.dumps({"versions": {"it": "1"}, "settings": {}}), flush=True)
row = None
for line in sys.stdin:
    what = json.loads(line)
    row = what.get("row", row)
    if fate == row:
        print("(Worker pid=12) ERROR 11-29 [it.py:1] RuntimeError: no such place", file=sys.stderr)
        sys.exit(json.dumps(what)) if name == "ends" else print(json.dumps({"error": "it failed"}), flush=True)
        break
    cached = 0 if row == "cold" else 256
    answer = {"ttft_s": 0.5, "token_id": len(what.get("prompt", [])), "cached_tokens": cached}
    print(json.dumps(answer), flush=True)
"""


def stub(name="it", fate="none"):
    return Process([sys.executable, "-c", WORKER, name, fate], os.environ)


@pytest.fixture
def said():
    return prompts("random-tiny", 256, 64, rounds=2, seed=0)


def test_every_round_has_a_suffix_that_no_other_has(said):
    suffixes = [said.other, said.warm_up, *said.rounds]
    assert (len(said.prefix), [len(suffix) for suffix in suffixes]) == (256, [64] * 4)
    assert len(set(map(tuple, suffixes))) == 4
    assert said == prompts("random-tiny", 256, 64, rounds=2, seed=0)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [((100, 64), "128"), ((0, 64), "128"), ((128, 128), "1 to 127"), ((128, 0), "1 to")],
)
def test_sizes_that_some_system_could_not_keep_are_refused(sizes, complaint):
    with pytest.raises(ValueError, match=complaint):
        prompts("random-tiny", *sizes, rounds=1, seed=0)


def test_a_text_that_is_too_short_is_said(monkeypatch):
    monkeypatch.setattr("benchmarks.peers.ttft.prompts.token_ids", lambda _model, _text: list(range(300)))
    with pytest.raises(ValueError, match="300 tokens, and 448"):
        prompts("some-directory", 256, 64, rounds=1, seed=0)


def asked(settings, calls):
    answers = io.StringIO()
    status = serve("kvtide", settings, io.StringIO("\n".join(map(json.dumps, calls))), answers)
    return status, [json.loads(line) for line in answers.getvalue().splitlines()]


def test_the_worker_has_kvtide_answer_from_every_tier_and_after_a_restart(said, tmp_path):
    settings = Settings(
        model="random-tiny", gguf="", scratch=str(tmp_path), threads=1, max_tokens=256 + 64 + 16
    )
    rows = ("cold", "device", "host", "disk", "disk_dropped")
    timed = {"do": "first_token", "prompt": [*said.prefix, *said.rounds[0]]}
    each = [({"do": "prepare", "row": row, "prefix": said.prefix, "other": []}, timed) for row in rows]
    status, [facts, *answers] = asked(settings, [*(call for pair in each for call in pair), {"do": "close"}])
    assert status == 0
    assert facts["settings"]["kv_dtype"] == "bfloat16"
    found = dict(zip(rows, answers[1::2], strict=False))
    assert {row: answer["cached_tokens"] for row, answer in found.items()} == {
        **dict.fromkeys(rows, 256),
        "cold": 0,
    }
    assert len({answer["token_id"] for answer in found.values()}) == 1
    assert all(answer["ttft_s"] > 0 for answer in found.values())
    assert answers[2 * rows.index("disk_dropped")]["files_bytes"] > 0

    prepare = {"do": "prepare", "row": "restart", "prefix": said.prefix, "other": []}
    status, [_, _, after, _] = asked(settings, [prepare, timed, {"do": "close"}])
    assert status == 0
    assert (after["cached_tokens"], after["token_id"]) == (256, found["cold"]["token_id"])


def test_an_error_is_told_and_ends_the_worker(tmp_path, capfd):
    settings = Settings(model="random-tiny", gguf="", scratch=str(tmp_path), threads=1, max_tokens=128)
    status, [_, told] = asked(settings, [{"do": "tokenize", "text": "a"}, {"do": "close"}])
    assert status == 1
    assert "AssertionError" in told["error"]
    assert "Traceback" in capfd.readouterr().err


def test_a_process_stands_still_unless_it_is_asked():
    with stub() as process:
        pid = process._process.pid
        for _ in range(2):
            stat = Path(f"/proc/{pid}/stat").read_text()
            assert stat.rsplit(")", 1)[1].split()[0] == "T"
            assert process.ask("prepare", row="cold")["cached_tokens"] == 0
    assert process._process.returncode is not None


def test_what_a_process_of_the_system_said_is_the_reason():
    with (
        stub(fate="host") as process,
        pytest.raises(SystemFailed, match="prepare: RuntimeError: no such place"),
    ):
        process.ask("prepare", row="host")
    with stub("ends", "host") as process, pytest.raises(SystemFailed, match="ended with 1"):
        process.ask("prepare", row="host")
    with pytest.raises(SystemFailed, match="start: the process ended with 3"):
        Process([sys.executable, "-c", "raise SystemExit(3)"], os.environ)


def test_a_system_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_S", 0.01)
    with pytest.raises(SystemFailed, match=r"no answer in"):
        Process([sys.executable, "-c", "input()"], os.environ)


SOME = {
    "kvtide": SYSTEMS["kvtide"],
    "kvtide_restart": SYSTEMS["kvtide_restart"],
    "vllm": SYSTEMS["vllm"],
    "llamacpp": SYSTEMS["llamacpp"],
}


@pytest.fixture
def measured(tmp_path):
    """Two rounds, in which llama.cpp fails from its RAM cache on and vLLM does not start."""
    heard = []

    def launch(name, directory):
        assert directory.is_dir()
        if name == "vllm":
            raise SystemFailed("it could not be installed")
        return stub(name, "ram" if name == "llamacpp" else "none")

    some = Prompts([1] * 256, [2], [3], [[4], [4, 5]], "text")
    with Rounds(SOME, some, tmp_path, launch, heard.append) as rounds:
        rounds.start()
        for number in (None, 0, 1):
            rounds.measure(number)
        rounds.close()
    return rounds, heard


def test_rows_of_one_kind_are_measured_one_after_the_other_and_the_warm_up_is_not_kept(measured):
    rounds, heard = measured
    order = [text.split(":")[0] for text in heard if "first token" in text]
    kvtide = [f"kvtide float32, {row}" for row in ROWS]
    assert order == [
        kvtide[0],
        "llama.cpp, cold",
        kvtide[1],
        "llama.cpp, memory",
        *kvtide[2:],
        *kvtide,
        *kvtide,
    ]
    assert rounds.rows["kvtide", "disk"].token_ids == [257, 258]
    assert rounds.rows["kvtide_restart", "restart"].ttft_s == [0.5, 0.5]


def test_a_system_that_fails_has_a_reason_and_the_others_go_on(measured):
    rounds, _ = measured
    assert {row.reason for row in rounds.rows.values() if row.system == "vllm"} == {
        "it could not be installed"
    }
    reasons = {row.reason for row in rounds.rows.values() if row.system == "llamacpp"}
    assert reasons == {"prepare: RuntimeError: no such place"}
    assert not any(row.reason for row in rounds.rows.values() if row.system.startswith("kvtide"))


def test_a_row_whose_prefix_was_not_cached_is_none(tmp_path):
    some = Prompts([1] * 128, [2], [3], [[4]], None)
    with Rounds({"kvtide": SYSTEMS["kvtide"]}, some, tmp_path, lambda *_: stub(), lambda _: None) as rounds:
        rounds.start()
        rounds.measure(0)
    assert rounds.rows["kvtide", "memory"].reason == "memory: 256 tokens were cached, not 128"


def row(system, name, ttft_s=(), reason=None):
    return {
        "system": system,
        "title": SYSTEMS[system].title,
        "row": name,
        "own_name": name,
        "ttft_s": sorted(ttft_s)[len(ttft_s) // 2] if ttft_s else None,
        "ttft_s_all": list(ttft_s),
        "cached_tokens": [],
        "token_ids": [7] * len(ttft_s),
        "place": {},
        "reason": reason,
    }


def test_gates_are_ratios_round_by_round_and_hold_on_their_own_side():
    rows = [
        row("kvtide", "memory", [1.0, 4.0, 3.0]),
        row("vllm", "memory", [2.0, 4.0, 6.0]),
        row("vllm_bf16", "memory", [0.5, 2.0, 1.5]),
        row("kvtide", "disk", [1.0, 1.0, 1.0]),
        row("llamacpp", "disk", [2.0, 3.0, 9.0]),
        row("llamacpp", "disk_dropped", reason="no"),
    ]
    by_name = {gate["name"]: gate for gate in gates(rows)}
    values = [by_name[gate.name]["value"] for gate in GATES]
    assert values == [0.5, None, 2.0, 3.0, None]
    assert [by_name[gate.name]["holds"] for gate in GATES] == [True, False, False, True, False]


def test_the_report_says_what_was_not_measured_and_why():
    rows = [
        row("kvtide", "cold", [1.0]),
        row("kvtide", "memory", [0.1]),
        row("vllm", "memory", reason="refused"),
    ]
    figures = {
        "command": "it",
        "took_s": 3,
        "environment": {"commit": "c", "cpu": "some", "python": "3"},
        "config": {
            "prefix_tokens": 256,
            "suffix_tokens": 64,
            "threads": 2,
            "rounds": 1,
            "cores": [0, 1],
            "bf16": "none",
        },
        "systems": {
            "kvtide": {"title": "kvtide", "computes": "x", "versions": {}, "settings": {}, "start_s": 1.0}
        },
        "same_token_ids_by_own_tokenizer": {"kvtide": True},
        "rows": rows,
        "gates": gates(rows),
    }
    lines = report(figures).splitlines()
    assert "| memory | kvtide float32 | memory | 100 | 100 to 100 | 10.0 |  |  |" in lines
    assert "| memory | vLLM float32 | memory | - | - | - |  | refused |" in lines
    assert "* kvtide float32: 7 (cold, memory)" in lines


def test_every_gate_is_on_rows_that_exist():
    for gate in GATES:
        assert (gate.at_most is None) != (gate.at_least is None)
        for system, name in (gate.above, gate.below):
            measured: Measured = SYSTEMS[system]
            assert name in measured.rows


def test_dropped_pages_come_back_as_they_were(tmp_path):
    path = tmp_path / "some" / "file"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 64)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:256] == bytes(range(256))
        assert cached_bytes(path) == 16384
        told = drop(tmp_path / "some")
        assert told["files_bytes"] >= 16384
        assert told["kept_bytes"] in (0, 16384)  # memory file systems keep everything
        assert mapped[:] == bytes(range(256)) * 64
