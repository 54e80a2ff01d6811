"""`kvtide simulate`: tables, JSON, a page, sweeps and what it says of wrong input."""

import json
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from tiering.cli.app import app
from tiering.cli.simulate import knee
from tiering.cli.simulate_page import chart

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
        "admission": "all",
        "times": dict.fromkeys(("compute_s", "demote_s", "promote_s", "read_s", "write_s"), 0.0),
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
        (["--device-blocks", "many"], "is not a list of numbers"),
        (["--device-blocks", "1", "--disk-blocks", "1"], "host_blocks is 0"),
        (["--device-blocks", "1", "--policy", "best"], "there is no policy 'best'"),
        (["--device-blocks", "1", "--host-blocks", "1", "--policy", "min"], "a bound for one tier"),
        (["--device-blocks", "1", "--admission", "some"], "admission is one of"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence(options, why, tmp_path):
    trace = tmp_path / "a.jsonl"
    trace.write_text(LINES[0], "utf-8")
    done = CliRunner().invoke(app, ["simulate", str(trace), *options])
    assert done.exit_code == 2
    assert why in " ".join(done.output.replace("│", " ").split())


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
        chart({"lru": [(1, 0.1), (9, 0.5)], "arc": [(1, 0.2), (9, 0.5)], "min": [(1, 0.3), (9, 0.51)]})
    )
    heights = [
        float(text.get("y"))
        for text in drawn.findall("text")
        if (text.text or "").endswith("%") and text.get("style")
    ]
    assert len(heights) == 3
    assert all(after - before >= 14 for before, after in pairwise(sorted(heights)))
