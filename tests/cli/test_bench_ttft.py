"""`kvtide bench ttft` as a user runs it: every row, with a real restart."""

import json
import subprocess
import sys
import tempfile

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tiering.cli.dropped import can_drop
from tiering.cli.ttft_rows import Row, gates

_DROPPED = ("disk_dropped",) if can_drop(tempfile.gettempdir()) else ()
TIERS = ("cold", "device", "host", "disk", *_DROPPED, "restart")


def kvtide(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tiering", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def test_every_row_finds_its_prefix_where_it_should(tiny_dir, tmp_path):
    rows_file = tmp_path / "rows.json"
    sizes = ["--prefix-tokens", "200,80", "--suffix-tokens", "20", "--repeats", "2", "--kv-dtype", "float32"]
    sizes += ["--cold-repeats", "1"]
    done = kvtide("bench", "ttft", "--model", tiny_dir, *sizes, "--phases", "1", "--json", str(rows_file))
    assert done.returncode == 0, done.stderr
    measured = json.loads(rows_file.read_text())
    for prefix_tokens in (200, 80):
        cached = prefix_tokens // 16 * 16
        rows = {row["tier"]: row for row in measured["rows"] if row["prefix_tokens"] == prefix_tokens}
        assert list(rows) == ["reference_cold", "reference_hit", *TIERS, "reference_restart"]
        assert all(row["ttft_s"] > 0 for row in rows.values())
        assert {tier: len(row["ttft_s_all"]) for tier, row in rows.items()} == {
            "reference_cold": 1,
            "reference_hit": 2 * (len(TIERS) - 2),
            "reference_restart": 2,
            **dict.fromkeys(TIERS, 2),
            "cold": 1,
        }
        # each repeat of each hit has a suffix of its own, save that a restart is asked what the disk was
        hits = rows["reference_hit"]["token_ids"]
        assert rows["cold"]["token_ids"] == rows["reference_cold"]["token_ids"]
        of_tiers = [rows[tier]["token_ids"] for tier in TIERS[1:-1]]
        assert of_tiers == [hits[number :: len(of_tiers)] for number in range(len(of_tiers))]
        assert rows["restart"]["token_ids"] == rows["reference_restart"]["token_ids"]
        assert len({*map(tuple, hits)}) > 2
        for tier in TIERS[1:]:
            where = "disk" if tier in ("disk_dropped", "restart") else tier
            assert rows[tier]["cached_by_tier"] == {"device": 0, "host": 0, "disk": 0, where: cached}
            assert rows[tier]["prefilled_tokens"] == prefix_tokens + 20 - cached
        for tier in ("device", "host", "disk", *_DROPPED):
            assert set(rows[tier]["phases_s"]) == set(measured["phases"])
            inside = ("attention", "matrix products", "logits", "rest of the forward")
            assert all(rows[tier]["phases_s"][name] > 0 for name in inside)
            assert rows[tier]["phases_s"]["gathering"] >= 0, "where a kernel reads the pool there is none"
        assert rows["disk"]["phases_s"]["loading"] > 0
        assert rows["cold"]["phases_s"] is rows["restart"]["phases_s"] is None
        assert rows["restart"]["timings_s"]["load_s"] > 0
        for tier in TIERS:
            between_s = rows[tier]["between_tokens_s"]["50"]
            assert rows[tier]["decode_tokens_per_s"] == pytest.approx(1 / between_s)
        assert rows["reference_hit"]["decode_tokens_per_s"] is None
        assert rows["cold"]["cached_tokens"] == 0
    assert measured["gates"] == [], "they belong to other lengths"
    assert "where a hit's time goes" in done.stdout
    assert "| waiting to be admitted |" in rows_file.with_suffix(".md").read_text(), "a page beside them"
    assert "restart, in the page cache" in " ".join(done.stdout.split()), "below the times"
    assert measured["config"]["prefix_tokens"] == [200, 80]
    assert measured["config"]["engine"]["kv_dtype"] == "float32"
    assert measured["environment"]["versions"]["torch"]


def measured_row(tier: str, *ttft_s: float, prefix_tokens: int = 4096) -> dict[str, object]:
    row = Row(tier, prefix_tokens)
    for seconds in ttft_s:
        row.add(seconds, [1])
    return row.as_dict()


def test_gates_are_ratios_of_medians_to_hits_of_the_yardstick():
    rows = [
        measured_row("reference_hit", 0.9, 1.0, 1.3),
        measured_row("device", 0.8, 0.9, 1.2),
        measured_row("host", 1.0, 1.1, 1.2),
        measured_row("disk", 0.1, prefix_tokens=512),
        measured_row("reference_hit", 0.5, prefix_tokens=1024),
        measured_row("disk", 0.6, prefix_tokens=1024),
        measured_row("disk_dropped", 2.0),
        measured_row("restart", 1.2),
        measured_row("reference_restart", 1.5),
    ]
    device, host, dropped, restart, short = gates(rows, 64)
    assert (device["value"], device["bound"], device["holds"]) == (0.9, 1.0, True)
    assert (host["value"], host["bound"], host["holds"]) == (1.1, 1.05, False)
    assert (dropped["value"], dropped["bound"], dropped["holds"]) == (2.0, None, None)
    assert restart["name"].startswith("restart, in the page cache, ")
    assert restart["value"] == pytest.approx(0.8), "by transformers in processes as new"
    assert device["spread"] == [0.8, 1.2]
    assert short["name"].startswith("disk, in the page cache, ")
    assert short["name"].endswith("1024 + 64 tokens")
    assert (short["value"], short["holds"]) == (1.2, False)
    without = [row for row in rows if not row["tier"].startswith("reference")]
    assert gates(rows, 32) == gates(without, 64) == [], "other lengths, no yardstick"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["bench", "ttft", "--tiers", "cold,tape"], "tape"),
        (["bench", "ttft", "--model", "/no/such/model"], "/no/such/model"),
        (["bench", "ttft", "--repeats", "0"], "repeats"),
        (["bench", "ttft", "--prefix-tokens", "1024,0"], "1024,0"),
    ],
)
def test_wrong_options_get_a_sentence(arguments, complaint):
    done = kvtide(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
