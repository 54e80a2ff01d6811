"""README.md says what the result files say, and its charts show it."""

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from benchmarks.peers.index.rows import cases
from tools import claims, figures, results
from tools.charts import Bar, bar_chart
from tools.claims import CLAIMS, Claim, Number
from tools.figures import REGION, corrected
from tools.results import RESULTS, Result, at, newest, one_length

TEXT = figures.README.read_text(encoding="utf-8")
PAGE, CHARTS = figures.written(TEXT)

MEASURED = re.compile(
    r"\d[\d,.]*(?:\s+(?:to|of|and)\s+\d[\d,.]*)*\s*(?:%|x\b|(?:times|tries|[mun]?s|[KMG]B/s|tokens/s)\b)"
)
"""A number with a unit that something is measured in."""


def test_the_page_and_its_charts_are_what_the_results_say():
    assert [file.name for file, _ in figures.differences()] == [], "make figures"


def test_every_number_that_was_measured_stands_in_a_region_or_is_held_against_a_result():
    prose = re.sub(r"```.*?```", "", REGION.sub("", TEXT), flags=re.DOTALL)
    for claim in CLAIMS:
        prose = claim.pattern().sub("", prose)
    assert MEASURED.findall(prose) == [], "add a Claim to tools/claims.py"


def test_a_sentence_with_numbers_is_found_as_one():
    """Else the test above might pass because it finds nothing."""
    assert MEASURED.search("a prompt took 8.1 s").group() == "8.1 s"
    assert MEASURED.search("faster by 40 %")
    assert MEASURED.search("it reads 1.2 GB/s a core")
    assert MEASURED.search("5.4 times as many")
    assert not MEASURED.search("48 tokens, 16 GiB, Python 3.11 or newer")


def test_every_region_has_both_its_marks_and_a_maker():
    assert len(REGION.findall(TEXT)) == TEXT.count("<!-- figures:") == TEXT.count("<!-- /figures -->") > 0
    assert {name for _, name, *_ in REGION.findall(TEXT)} <= figures.REGIONS.keys()


def test_there_is_no_chart_that_the_page_does_not_show():
    assert {file.name for file in (figures.ROOT / figures.CHARTS).iterdir()} == CHARTS.keys()
    for name in CHARTS:
        assert f"](docs/figures/{name})" in PAGE


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence[:30])
def test_a_wrong_number_is_corrected_and_nothing_else_changes(claim):
    [match] = claim.pattern().finditer(PAGE)
    for place in range(1, len(match.groups()) + 1):
        start, end = match.span(place)
        assert corrected(PAGE[:start] + "77.7" + PAGE[end:], claim) == PAGE


def test_a_sentence_that_is_gone_is_missed():
    gone = replace(CLAIMS[0], sentence="nobody says {tries} of this")
    with pytest.raises(LookupError, match="0 times"):
        corrected(TEXT, gone)


def test_a_claim_divides(monkeypatch):
    data = {"rows": [{"tier": "disk", "s": 3.0}, {"tier": "host", "s": 1.5}]}
    monkeypatch.setattr(claims, "newest", lambda theme: Result(RESULTS / f"{theme}.json", data))
    numbers = {
        "low": Number("rows[tier=host].s", "{:.2f}"),
        "ratio": Number("rows[tier=disk].s", "{:.0f}", by="rows[tier=host].s"),
    }
    claim = Claim("a", "from {low} s, {ratio} times, see {report}", numbers)
    assert (
        corrected("took from 9\ns, 9 times, see x.", claim)
        == "took from 1.50\ns, 2 times, see benchmarks/results/a.md."
    )


@pytest.mark.parametrize("path", ["rows[tier=tape].s", "rows[s=1].s", "columns[0]", "rows[7]"])
def test_a_path_that_leads_nowhere_or_to_two_places_is_an_error(path):
    with pytest.raises(LookupError):
        at({"rows": [{"tier": "disk", "s": 1}, {"tier": "host", "s": 1}]}, path)


def test_the_newest_result_counts_and_other_themes_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    folder = tmp_path / RESULTS
    folder.mkdir(parents=True)
    names = ("serve_zen5_2026-01-02", "serve_zen3_2026-01-03", "serve-peers_zen3_2026-01-04")
    for number, name in enumerate(names):
        (folder / f"{name}.json").write_text(str(number))
    newest.cache_clear()
    try:
        assert newest("serve") == Result(RESULTS / "serve_zen3_2026-01-03.json", 1)
        with pytest.raises(LookupError, match="no ttft_"):
            newest("ttft")
    finally:
        newest.cache_clear()


def test_others_first_tokens_are_shown_as_far_as_there_are_any(monkeypatch):
    rows = [
        {"title": title, "row": row, "ttft_s": took_s}
        for title, row, took_s in (
            ("kvtide float32", "disk", 0.25),
            ("kvtide float32", "memory", 0.5),
            ("vLLM float32", "memory", 1.0),
            ("llama.cpp", "disk", None),
            ("llama.cpp", "cold", 20.0),
        )
    ]
    config = {"prefix_tokens": 4096, "suffix_tokens": 64, "rounds": 3, "model": "demo"}
    machine = {"cores": 2, "cpu": "an abacus", "gpu": None}
    data = {"rows": rows, "config": config, "environment": machine}
    monkeypatch.setattr(figures, "newest", lambda theme: Result(RESULTS, data))
    region = figures.ttft_peers()
    told = "kvtide float32, from memory: 0.50 s; vLLM float32, from memory: 1.00 s; kvtide float32, from disk: 0.25 s"
    assert f". {told}](docs/figures/ttft-peers.svg)" in region.text
    assert region.charts["ttft-peers.svg"].count('class="ours"') == 2


def test_of_several_lengths_the_first_is_shown():
    rows = [{"tier": "disk", "prefix_tokens": length} for length in (4096, 8192)]
    data = {"rows": rows, "config": {"prefix_tokens": [4096, 8192], "repeats": [3, 2], "seed": 0}}
    config = {"prefix_tokens": 4096, "repeats": 3, "seed": 0}
    assert one_length(data) == {"rows": rows[:1], "config": config}
    assert one_length({"rows": rows[1:], "config": config}) == {"rows": rows[1:], "config": config}


def test_what_the_index_table_shows_is_measured():
    names = {row.name for case in cases(0).values() for row in case.rows}
    assert set(figures.INDEX_ROWS) <= names


def test_the_index_table_names_what_was_not_run(monkeypatch):
    cells = {"kvtide": {"median_us": 64.4}, "vllm": {"why_not": "failed: no room"}}
    data = {
        "systems": {"kvtide": {"title": "kvtide"}, "vllm": {"title": "vLLM"}},
        "rows": [{"row": name, "cells": cells} for name in figures.INDEX_ROWS],
    }
    monkeypatch.setattr(figures, "newest", lambda theme: Result(RESULTS, data))
    lines = figures.index_peers().text.splitlines()
    assert lines[0] == "| microseconds | kvtide | vLLM |"
    assert lines[2] == f"| {figures.INDEX_ROWS[0]} | 64 | not run |"
    assert len(lines) == 2 + len(figures.INDEX_ROWS)


def gate(name, *, holds, bound=1.0):
    return {"name": name, "value": 0.5, "bound": bound, "unit": "s", "holds": holds}


def test_of_what_was_promised_all_that_does_not_hold_is_named(monkeypatch):
    gates = [gate("shown", holds=True), gate("not", holds=True), gate("missed", holds=False)]
    gates.append(gate("known", holds=None, bound=None))
    result = Result(RESULTS / "a_b_c.json", {"gates": gates})
    none = Result(RESULTS / "d_b_c.json", {"gates": []})
    monkeypatch.setattr(figures, "newest", lambda theme: result if theme == "a" else none)
    monkeypatch.setattr(figures, "SPEED", {"a": {"shown": "what it is"}})
    lines = figures.speed().text.splitlines()
    assert lines[2] == "| what it is | [0.5 s](benchmarks/results/a_b_c.md) |"
    assert lines[-1] == "Of 3 aims 1 is not reached: missed 0.5 s ([a](benchmarks/results/a_b_c.md), aim 1)."
    gates.remove(gates[2])
    assert figures.speed().text.endswith("All 2 aims are reached.")
    monkeypatch.setattr(figures, "SPEED", {"a": {"gone": "what it was"}})
    with pytest.raises(LookupError, match="says nothing of gone"):
        figures.speed()


# --- charts -----------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_their_values_and_stay_on_the_page():
    chart = ET.fromstring(
        bar_chart("a & b", [Bar("<one>", 4.0, "4 s"), Bar("other", 1.0, "1 s", ours=False)])
    )
    page, *bars = chart.iter(f"{SVG}rect")
    assert float(bars[0].get("width")) == pytest.approx(4 * float(bars[1].get("width")), rel=0.01)
    assert [bar.get("class") for bar in bars] == ["ours", "other"]
    texts = {text.text: text for text in chart.iter(f"{SVG}text")}
    assert texts.keys() == {"a & b", "<one>", "4 s", "other", "1 s"}
    for text in texts.values():
        assert 0 < float(text.get("x")) < float(page.get("width"))
        assert 0 < float(text.get("y")) < float(page.get("height"))
    assert chart.find(f"{SVG}desc").text == "<one>: 4 s; other: 1 s"


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_needs_nothing_from_elsewhere(name):
    chart = ET.fromstring(CHARTS[name])
    assert {element.tag.removeprefix(SVG) for element in chart.iter()} <= {
        "svg",
        "title",
        "desc",
        "style",
        "rect",
        "text",
    }
    assert "url(" not in CHARTS[name]
    assert len(CHARTS[name]) < 8192


@pytest.mark.parametrize("bars", [[], [Bar("a", -1.0, "-1 s")]])
def test_a_chart_needs_bars_that_can_be_drawn(bars):
    with pytest.raises(ValueError, match="needs bars"):
        bar_chart("empty", bars)
