"""`kvtide simulate`: tables, JSON, a page, sweeps and what it says of wrong input."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from tiering.cli.app import app
from tiering.cli.simulate import knee
from tiering.cli.simulate_page import chart
from tiering.costs import Costs
from tiering.kept_costs import BYTES_FACT, CostsFile

TTFT = Path(__file__).parents[2] / "benchmarks" / "results" / "ttft_zen4-2core_2026-11-30.json"
LINES = [
    f'{{"timestamp": {at * 1000}, "hash_ids": [{", ".join(map(str, ids))}]}}'
    for at, ids in enumerate([(1, 2, 3), (4, 5, 6), (7, 8), (1, 2, 3), (4, 5, 9)])
]


@pytest.fixture
def simulate(tmp_path):
    trace = tmp_path / "some <trace>.jsonl"
    trace.write_text("\n".join(LINES), "utf-8")

    def simulate(options, traces=1):
        files = [str(tmp_path / name) for name in ("a.json", "a.html")]
        done = CliRunner().invoke(
            app, ["simulate", *[str(trace)] * traces, *options, "--json", files[0], "--html", files[1]]
        )
        assert done.exit_code == 0, done.output
        return done.output, json.loads((tmp_path / "a.json").read_text()), (tmp_path / "a.html").read_text()

    return simulate


def test_a_single_configuration_has_its_figures_on_top(simulate):
    table, figures, page = simulate(["--device-blocks", "4", "--host-blocks", "8"])
    assert figures["hit_rate"] == 5 / 14
    assert figures["hits_by_tier"] == {"device": 0, "host": 5}
    assert figures["writes_by_tier"] == {"device": 14, "host": 10} | figures["writes_by_tier"]
    assert (figures["num_requests"], figures["num_blocks"]) == (5, 14)
    assert figures["configuration"] == {
        "device_blocks": 4,
        "host_blocks": 8,
        "disk_blocks": 0,
        "policy": "lru",
        "admission": "adaptive",
        "times": dict.fromkeys(("compute_s", "demote_s", "promote_s", "read_s", "write_s"), 0.0),
        "load": "always",
    }
    assert "35.71" in table
    assert "35.71" in page


def test_a_sweep_has_every_combination_with_the_optimum_beside(simulate):
    table, figures, page = simulate(["--device-blocks", "2,4,12", "--policy", "lru,arc,min"])
    runs = figures["runs"]
    assert "hit_rate" not in figures
    sizes = [(run["configuration"]["policy"], run["configuration"]["device_blocks"]) for run in runs]
    assert sizes == [(policy, size) for policy in ("lru", "arc", "min") for size in (2, 4, 12)]
    for run in runs:
        assert run["hit_rate"] <= run["minimum_hit_rate"]
        same = run["configuration"]["policy"] == "min"
        assert not same or run["hit_rate"] == run["minimum_hit_rate"]
    assert "of MIN %" in table
    assert page.count("<polyline") == 3


def test_each_trace_begins_with_nothing_and_together_they_are_on_top(simulate):
    _, figures, _ = simulate(["--device-blocks", "12"], traces=2)
    assert figures["num_requests"] == 10
    assert figures["hits_by_tier"]["device"] == 2 * 5


def test_times_are_reported(simulate):
    _, figures, _ = simulate(["--device-blocks", "12", "--compute-s", "0.5"])
    assert figures["ttft_s"]["p50"] == 1.5
    assert simulate(["--device-blocks", "12"])[1]["ttft_s"] is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--device-blocks", "0"], "at least one block"),
        (["--device-blocks", "many"], "is not a list of whole numbers from 0 on"),
        (["--device-blocks", "1", "--disk-blocks", "1"], "host_blocks is 0"),
        (["--device-blocks", "1", "--policy", "best"], "there is no policy 'best'"),
        (["--device-blocks", "1", "--host-blocks", "1", "--policy", "min"], "a bound for one tier"),
        (["--device-blocks", "1", "--admission", "some"], "there is no admission 'some'"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence(options, why, tmp_path):
    trace = tmp_path / "a.jsonl"
    trace.write_text(LINES[0], "utf-8")
    done = CliRunner().invoke(app, ["simulate", str(trace), *options])
    assert done.exit_code == 2
    assert why in " ".join(done.output.replace("│", " ").split())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
def test_a_full_disk_is_one_sentence_and_a_failure(tmp_path):
    trace = tmp_path / "a.jsonl"
    trace.write_text(LINES[0], "utf-8")
    done = CliRunner().invoke(app, ["simulate", str(trace), "--device-blocks", "4", "--json", "/dev/full"])
    assert done.exit_code == 1
    assert "kvtide: No space left on device" in done.output


def test_a_trace_that_was_cut_off_says_so(tmp_path):
    trace = tmp_path / "a.jsonl"
    trace.write_text(LINES[0] + "\n" + LINES[0][:-9], "utf-8")
    done = CliRunner().invoke(app, ["simulate", str(trace), "--device-blocks", "4"])
    assert done.exit_code == 2
    assert "a.jsonl:2:" in done.output
    assert "the file ends in this line: is it whole?" in done.output


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_simulated(option, tmp_path):
    trace = tmp_path / "a.jsonl"
    trace.write_text("not a trace", "utf-8")
    done = CliRunner().invoke(
        app, ["simulate", str(trace), "--device-blocks", "4", option, str(tmp_path / "no" / "a")]
    )
    assert done.exit_code == 2
    assert "cannot write" in done.output


_PLUGIN = """
from tiering.policies.policy import Policy

class Half(Policy):
    def __init__(self, capacity_blocks): self.names = []
    def enter(self, name, position): self.names.append(name)
    def use(self, name): pass
    def leave(self, name): self.names.remove(name)

class Wrong(Half):
    def evict(self, ask, coming): return self.names[-1]

class Nobody(Half):
    def evict(self, ask, coming): return None
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Half", "leaves out evict"),
        ("Wrong", "the policy Wrong gave up"),
        ("Nobody", "says that no block may go, and some may"),
    ],
)
def test_a_policy_in_the_current_directory_is_found_and_named_where_it_breaks_the_law(
    name, why, tmp_path, monkeypatch
):
    (tmp_path / "some_policies.py").write_text(_PLUGIN, "utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(LINES), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    monkeypatch.delitem(sys.modules, "some_policies", raising=False)
    done = CliRunner().invoke(
        app, ["simulate", "a.jsonl", "--device-blocks", "4", "--policy", f"some_policies:{name}"]
    )
    assert done.exit_code == 2
    assert why in " ".join(done.output.split())


def test_the_default_is_adaptive_and_says_so(simulate):
    _, figures, page = simulate(["--device-blocks", "4,12", "--policy", "lru,arc"])
    assert [run["configuration"]["admission"] for run in figures["runs"]] == ["adaptive"] * 4
    assert "lru, adaptive" in page
    _, figures, page = simulate(["--device-blocks", "4", "--admission", "all"])
    assert figures["configuration"]["admission"] == "all"
    assert "adaptive" not in page


def test_admissions_are_swept_and_runs_side_by_side_say_the_same(simulate):
    options = ["--device-blocks", "2,4", "--policy", "lru,min", "--admission", "all,adaptive"]
    runs = [simulate([*options, "--processes", number])[1]["runs"] for number in ("1", "2")]
    for each in (*runs[0], *runs[1]):
        each.pop("cpu_s")
    assert runs[0] == runs[1]
    told = [(run["configuration"]["policy"], run["configuration"].get("admission")) for run in runs[0]]
    assert told[::2] == [("lru", "all"), ("lru", "adaptive"), ("min", None)]


def test_the_page_shows_where_blocks_were_found(simulate):
    _, _, page = simulate(["--device-blocks", "4", "--host-blocks", "8"])
    assert page.count("<rect") == 2 + 3, "device and host, and three colours are named"
    assert "host: 35.7%" in page
    assert "TTFT" not in page


def test_what_was_measured_in_tokens_needs_no_bytes(simulate):
    """As `kvtide bench ttft --json` writes it."""
    sizes = ["--device-blocks", "4", "--host-blocks", "4", "--disk-blocks", "20"]
    options = [*sizes, "--curves", str(TTFT), "--block-tokens", "16"]
    found = [simulate([*options, *more])[1]["ttft_s"] for more in ([], ["--token-bytes", "23040"])]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0]["p50"] > 0.0


def test_times_as_they_were_measured(simulate, tmp_path):
    costs = Costs()
    for tokens in (16, 160, 1600):
        costs.prefilled(0, tokens, tokens * 0.25)
        costs.loaded("host", tokens * 10, tokens * 0.01)
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(costs.as_json()), "utf-8")
    options = ["--device-blocks", "4", "--host-blocks", "8", "--curves", str(file), "--token-bytes", "10"]
    table, figures, page = simulate([*options, "--block-tokens", "16"])
    assert figures["ttft_s"]["p50"] > 8.0, "two blocks of 16 tokens, 0.25 s each, at least"
    assert "TTFT" in table
    assert "TTFT" in page
    done = CliRunner().invoke(app, ["simulate", str(file), "--device-blocks", "4", "--curves", str(file)])
    assert "does not say how many a token has: give --token-bytes" in " ".join(
        done.output.replace("│", " ").split()
    )


def test_a_wrong_line_is_named(tmp_path):
    trace = tmp_path / "a.jsonl"
    trace.write_text(LINES[0] + "\n{}", "utf-8")
    done = CliRunner().invoke(app, ["simulate", str(trace), "--device-blocks", "4"])
    assert done.exit_code == 2
    assert "a.jsonl:2: Object missing required field" in done.output.replace("\n", "")


def test_the_knee_is_where_the_curve_is_farthest_above_its_chord():
    assert knee([(1000, 0.1), (2000, 0.4), (4000, 0.45), (8000, 0.5)]) == 2000
    assert knee([(1000, 0.1), (2000, 0.2), (4000, 0.3)]) is None
    assert knee([(1000, 0.1), (2000, 0.4)]) is None


def test_a_chart_is_whole_and_its_labels_do_not_cover_each_other():
    drawn = ET.fromstring(
        chart(
            {"lru": [(1, 0.1), (9, 0.5)], "arc": [(1, 0.2), (9, 0.5)], "min": [(1, 0.3), (9, 0.51)]},
            {"lru": 9},
        )
    )
    heights = [
        float(text.get("y"))
        for text in drawn.findall("text")
        if (text.text or "").endswith("%") and text.get("style")
    ]
    assert len(heights) == 3
    assert all(after - before >= 14 for before, after in pairwise(sorted(heights)))


# ---- load or compute


def test_what_an_engine_has_learned_decides_what_is_loaded(simulate, tmp_path):
    """Of a disk that is slower than computing nothing is loaded, of a fast one all; loading nothing finds the same as choosing that."""

    def run(load, byte_s):
        costs = Costs()
        for size in (1 << 20, 1 << 22, 1 << 24):
            costs.prefilled(0, size >> 10, size * 1e-6)
            costs.loaded("disk", size, size * byte_s)
            costs.loaded("host", size, size * byte_s)
        file = CostsFile(tmp_path / "costs", {BYTES_FACT: "1000"})
        file.save(costs)
        sizes = ["--device-blocks", "4", "--host-blocks", "8", "--disk-blocks", "20", "--admission", "all"]
        options = [*sizes, "--load", load, "--curves", str(file.path), "--block-tokens", "16"]
        return simulate(options)

    table, slow, _ = run("auto", 1e-5)
    assert "p99" in table
    assert slow["hits_by_tier"]["host"] == slow["hits_by_tier"]["disk"] == 0
    assert slow["ttft_s"] == run("never", 1e-5)[1]["ttft_s"]
    assert slow["ttft_s"]["mean"] < run("always", 1e-5)[1]["ttft_s"]["mean"]
    _, fast, _ = run("auto", 1e-9)
    assert sum(fast["hits_by_tier"].values()) > sum(slow["hits_by_tier"].values())
    assert fast["ttft_s"] == run("always", 1e-9)[1]["ttft_s"]
    assert fast["configuration"]["times"]["curves"]["prefill"]["token_s"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--load", "perhaps"], "load is one of always, never, auto"),
        (["--curves", "assumed", "--read-s", "1"], "without --compute-s and the like"),
        (["--load", "auto", "--write-s", "1"], "without --compute-s and the like"),
        (["--curves", "nowhere.json"], "cannot read --curves nowhere.json"),
    ],
)
def test_what_cannot_be_meant_of_loading_is_refused(tmp_path, options, words):
    trace = tmp_path / "t.jsonl"
    trace.write_text(LINES[0], "utf-8")
    done = CliRunner().invoke(app, ["simulate", str(trace), "--device-blocks", "4", *options])
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())
